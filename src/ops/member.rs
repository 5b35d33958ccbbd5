//! The members of the installation's cluster, as operators change them while it
//! runs.

use std::time::Duration;

use tokio::time::Instant;

use super::hsm::{describe_member, mechanism, member_state};
use super::prelude::*;
use crate::hsm::{self as hsms, Cluster, HsmError, MemberSettings, MemberState, TokenUri};
use crate::identity::{self, Installation};
use crate::proto::hsm;

/// Longest that a new member is waited for.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);

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
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(30));
    type Request = hsm::AddMemberRequest;
    type Response = hsm::AddMemberResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let held = identity::held(&call.app.registry, call.deadline).await?;
        let settings = settings(call, &request.token, &request.module, &request.pin)?;
        let status = attach(call, &settings).await?;
        let mut value = held.value.clone();
        value.members.push(settings);
        call.change(Draft::replace(&held, &value)?);
        Ok(hsm::AddMemberResponse { member: Some(describe_member(status)) })
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
        management_only(call)?;
        let held = identity::held(&call.app.registry, call.deadline).await?;
        let uri = known_member(&held.value, given(&request.token)?)?;
        others_serve(call, &uri)?;
        change_without(call, &held, &uri, None)?;
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
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(30));
    type Request = hsm::ReplaceMemberRequest;
    type Response = hsm::ReplaceMemberResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let held = identity::held(&call.app.registry, call.deadline).await?;
        let uri = known_member(&held.value, given(&request.replaced_token)?)?;
        let settings = settings(call, &request.token, &request.module, &request.pin)?;
        let status = attach(call, &settings).await?;
        change_without(call, &held, &uri, Some(settings))?;
        Ok(hsm::ReplaceMemberResponse { member: Some(describe_member(status)) })
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
        management_only(call)?;
        let held = identity::held(&call.app.registry, call.deadline).await?;
        let uri = known_member(&held.value, given(&request.token)?)?;
        others_serve(call, &uri)?;
        maintain(call, &held, uri, true)?;
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
        management_only(call)?;
        let held = identity::held(&call.app.registry, call.deadline).await?;
        let uri = known_member(&held.value, given(&request.token)?)?;
        maintain(call, &held, uri, false)?;
        Ok(hsm::EndMaintenanceResponse {})
    }
}

fn known_module(call: &Call, name: &str) -> Result<String> {
    if call.app.key_stores.modules().contains(name) {
        return Ok(name.to_owned());
    }
    Err(Error::validation(format!("[modules] of the configuration has no {name}.")))
}

fn settings(
    call: &Call,
    token: &Option<String>,
    module: &Option<String>,
    pin: &Option<String>,
) -> Result<MemberSettings> {
    let token: TokenUri =
        given(token)?.parse().map_err(|error: HsmError| Error::validation(error.to_string()))?;
    let module = known_module(call, given(module)?)?;
    Ok(MemberSettings { module, token: token.to_string(), pin: given(pin)?.clone() })
}

/// The URI of a member as the cluster writes it.
fn known_member(installation: &Installation, given: &str) -> Result<String> {
    let token: TokenUri = given.parse().map_err(|error: HsmError| Error::validation(error.to_string()))?;
    let same = |member: &&MemberSettings| member.token.parse().as_ref() == Ok(&token);
    match installation.members.iter().find(same) {
        Some(_) => Ok(token.to_string()),
        None => Err(Error::new(Exception::NotFound, format!("{token} is no member of the cluster."))),
    }
}

/// Refuses what would leave nobody at work.
fn others_serve(call: &Call, uri: &str) -> Result<()> {
    let health = call.app.key_stores.installation().watch().borrow().clone();
    if health.iter().any(|member| member.uri != uri && member.state == MemberState::Serving) {
        return Ok(());
    }
    Err(Error::new(
        Exception::KmsInvalidState,
        format!("{uri} cannot go: no other member of the cluster serves."),
    ))
}

/// Starts a member and waits until it serves; one that does not is let go again.
async fn attach(call: &Call, settings: &MemberSettings) -> Result<hsms::MemberStatus> {
    let pin = call.app.key_stores.pin(&settings.pin).await?;
    let cluster = call.app.key_stores.installation().clone();
    cluster.add_member(settings, pin).map_err(|error| Error::validation(error.to_string()))?;
    let until = call.deadline.min(Instant::now() + ATTACH_TIMEOUT);
    let status = settled(&cluster, &settings.token, until).await;
    match status {
        Some(status) if status.state == MemberState::Serving => Ok(status),
        other => {
            let reason =
                other.and_then(|status| status.reason).unwrap_or_else(|| "it does not answer".to_owned());
            cluster.remove_member(&settings.token).await.map_err(from_hsm)?;
            Err(Error::new(
                Exception::KmsInvalidState,
                format!(
                    "{} cannot be a member: {reason}. A token without the cluster's wrapping key gets it by \
                     `strongroom hsm bring`.",
                    settings.token
                ),
            ))
        }
    }
}

async fn settled(cluster: &Cluster, uri: &str, until: Instant) -> Option<hsms::MemberStatus> {
    let mut health = cluster.watch();
    let decided = |members: &Vec<hsms::MemberHealth>| {
        members.iter().any(|member| member.uri == uri && member.state != MemberState::Attaching)
    };
    let waited = tokio::time::timeout_at(until, health.wait_for(decided)).await.is_ok();
    tracing::debug!(member = uri, waited, "a new member was waited for");
    cluster.members().into_iter().find(|member| member.uri == uri)
}

/// Takes a member out of the row, and another in; once that is durable it goes.
fn change_without(
    call: &mut Call,
    held: &Held<Installation>,
    uri: &str,
    instead: Option<MemberSettings>,
) -> Result<()> {
    let mut value = held.value.clone();
    value
        .members
        .retain(|member| member.token.parse::<TokenUri>().map_or(true, |token| token.to_string() != uri));
    value.maintenance.retain(|out| out != uri);
    value.members.extend(instead);
    call.change(Draft::replace(held, &value)?);
    let uri = uri.to_owned();
    call.afterwards(move |app| {
        let cluster = app.key_stores.installation().clone();
        tokio::spawn(async move {
            if let Err(error) = cluster.remove_member(&uri).await {
                tracing::warn!(member = uri, "it was gone already: {error}");
            }
        });
    });
    Ok(())
}

fn maintain(call: &mut Call, held: &Held<Installation>, uri: String, out: bool) -> Result<()> {
    let mut value = held.value.clone();
    value.maintenance.retain(|other| *other != uri);
    if out {
        value.maintenance.push(uri.clone());
    }
    call.change(Draft::replace(held, &value)?);
    call.afterwards(move |app| {
        if let Err(error) = app.key_stores.installation().set_maintenance(&uri, out) {
            tracing::warn!(member = uri, "{error}");
        }
    });
    Ok(())
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
