//! The members of clusters, as operators change them while they are in use.

use std::time::Duration;

use super::hsm::{mechanism, member_state};
use super::membership::{Joining, Membership, known_module, revive};
use super::prelude::*;
use crate::hsm::{self as hsms, HsmError};
use crate::proto::hsm;

/// Longest that an operation which waits for a new member may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Lists modules and tokens.
pub struct ListTokens;

impl Operation for ListTokens {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "ListTokens";
    const ACTION: &'static str = "hsm:ListTokens";
    const READ_ONLY: bool = true;
    type Request = hsm::ListTokensRequest;
    type Response = hsm::ListTokensResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let modules = call.app.key_stores.modules().clone();
        let names: Vec<String> = match &request.module {
            Some(name) => vec![known_module(call, name)?],
            None => modules.names().map(str::to_owned).collect(),
        };
        let members: Vec<hsms::MemberStatus> =
            call.app.key_stores.clusters().iter().flat_map(|cluster| cluster.members()).collect();
        let mut answer = Vec::with_capacity(names.len());
        for name in names {
            let (modules, asked) = (modules.clone(), name.clone());
            let listing = tokio::task::spawn_blocking(move || hsms::list_tokens(&modules, &asked));
            let listed = match tokio::time::timeout_at(call.deadline, listing).await {
                Ok(Ok(listed)) => listed,
                Ok(Err(error)) => return Err(Error::internal(error.to_string())),
                Err(_elapsed) => Err(HsmError::Deadline),
            };
            answer.push(match listed {
                Ok(tokens) => hsm::Module {
                    tokens: tokens.into_iter().map(|token| describe_token(&name, token, &members)).collect(),
                    name: Some(name),
                    reason: None,
                },
                Err(error) => {
                    hsm::Module { name: Some(name), reason: Some(error.to_string()), tokens: Vec::new() }
                }
            });
        }
        Ok(hsm::ListTokensResponse { modules: answer })
    }
}

/// Takes a token in.
pub struct AddMember;

impl Operation for AddMember {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "AddMember";
    const ACTION: &'static str = "hsm:AddMember";
    const READ_ONLY: bool = false;
    const TIMEOUT: Option<Duration> = Some(TIMEOUT);
    type Request = hsm::AddMemberRequest;
    type Response = hsm::AddMemberResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let mut joining = Joining::begin(call).await?;
        revive(call, &mut joining, &request.cluster_id, &request.token, &request.module, &request.pin)
            .await?;
        let membership = Membership::of(call, &request.cluster_id).await?;
        let new = membership.new_member(call, &request.token, &request.module, &request.pin).await?;
        let member = membership.attach(call, &mut joining, &new).await?;
        membership.change(call, None, Some(new))?;
        joining.settle(call);
        Ok(hsm::AddMemberResponse { member: Some(member) })
    }
}

/// Lets a member go.
pub struct RemoveMember;

impl Operation for RemoveMember {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "RemoveMember";
    const ACTION: &'static str = "hsm:RemoveMember";
    const READ_ONLY: bool = false;
    type Request = hsm::RemoveMemberRequest;
    type Response = hsm::RemoveMemberResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let membership = Membership::of(call, &request.cluster_id).await?;
        let uri = membership.known(given(&request.token)?)?;
        membership.others_serve(&uri)?;
        membership.change(call, Some(uri), None)?;
        Ok(hsm::RemoveMemberResponse {})
    }
}

/// Adds one and removes another.
pub struct ReplaceMember;

impl Operation for ReplaceMember {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "ReplaceMember";
    const ACTION: &'static str = "hsm:ReplaceMember";
    const READ_ONLY: bool = false;
    const TIMEOUT: Option<Duration> = Some(TIMEOUT);
    type Request = hsm::ReplaceMemberRequest;
    type Response = hsm::ReplaceMemberResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let mut joining = Joining::begin(call).await?;
        revive(call, &mut joining, &request.cluster_id, &request.token, &request.module, &request.pin)
            .await?;
        let membership = Membership::of(call, &request.cluster_id).await?;
        let uri = membership.known(given(&request.replaced_token)?)?;
        let new = membership.new_member(call, &request.token, &request.module, &request.pin).await?;
        let member = membership.attach(call, &mut joining, &new).await?;
        membership.change(call, Some(uri), Some(new))?;
        joining.settle(call);
        Ok(hsm::ReplaceMemberResponse { member: Some(member) })
    }
}

/// Takes a member out.
pub struct BeginMaintenance;

impl Operation for BeginMaintenance {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "BeginMaintenance";
    const ACTION: &'static str = "hsm:BeginMaintenance";
    const READ_ONLY: bool = false;
    type Request = hsm::BeginMaintenanceRequest;
    type Response = hsm::BeginMaintenanceResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let membership = Membership::of(call, &request.cluster_id).await?;
        let uri = membership.known(given(&request.token)?)?;
        membership.others_serve(&uri)?;
        membership.maintain(call, uri, true)?;
        Ok(hsm::BeginMaintenanceResponse {})
    }
}

/// Brings a member back.
pub struct EndMaintenance;

impl Operation for EndMaintenance {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "EndMaintenance";
    const ACTION: &'static str = "hsm:EndMaintenance";
    const READ_ONLY: bool = false;
    type Request = hsm::EndMaintenanceRequest;
    type Response = hsm::EndMaintenanceResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let membership = Membership::of(call, &request.cluster_id).await?;
        let uri = membership.known(given(&request.token)?)?;
        membership.maintain(call, uri, false)?;
        Ok(hsm::EndMaintenanceResponse {})
    }
}

fn describe_token(module: &str, token: hsms::TokenListing, members: &[hsms::MemberStatus]) -> hsm::Token {
    let uri = token.uri.to_string();
    let member = members.iter().find(|member| member.uri == uri && member.module == module);
    let number = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
    hsm::Token {
        uri: Some(uri.clone()),
        label: Some(token.uri.label),
        serial: Some(token.uri.serial),
        model: Some(token.model),
        manufacturer: Some(token.manufacturer),
        firmware_version: Some(token.firmware),
        flags: token.flags.into_iter().map(str::to_owned).collect(),
        free_private_memory: number(token.free_private_bytes),
        session_count: number(token.sessions),
        max_session_count: number(token.sessions_max),
        listed_mechanisms: token.mechanisms.into_iter().map(|number| format!("0x{number:08X}")).collect(),
        member_state: member.map(|member| member_state(member.state) as i32),
        mechanisms: member
            .map(|member| member.self_test.iter().cloned().map(mechanism).collect())
            .unwrap_or_default(),
    }
}
