//! What operators see of the HSMs.

use super::prelude::*;
use crate::hsm::MemberState;
use crate::proto::hsm;

/// Lists the members of the cluster.
pub struct ListMembers;

impl Operation for ListMembers {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "ListMembers";
    const ACTION: &'static str = "hsm:ListMembers";
    const READ_ONLY: bool = true;
    type Request = hsm::ListMembersRequest;
    type Response = hsm::ListMembersResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, _: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let clusters = call.app.key_stores.clusters();
        let members = clusters.iter().flat_map(|cluster| cluster.members()).map(describe_member).collect();
        Ok(hsm::ListMembersResponse { members })
    }
}

pub(super) fn describe_member(status: crate::hsm::MemberStatus) -> hsm::Member {
    hsm::Member {
        uri: Some(status.uri),
        module: Some(status.module),
        state: Some(member_state(status.state) as i32),
        reason: status.reason,
        model: Some(status.model),
        manufacturer: Some(status.manufacturer),
        firmware_version: Some(status.firmware),
        session_threads: i32::try_from(status.threads).ok(),
        queue_depth: i32::try_from(status.queue_depth).ok(),
        loaded_keys: i32::try_from(status.loaded_keys).ok(),
        epoch: i64::try_from(status.epoch).ok(),
        mechanisms: status.self_test.into_iter().map(mechanism).collect(),
    }
}

pub(super) fn mechanism(
    (capability, result): (crate::hsm::Capability, Result<(), String>),
) -> hsm::Mechanism {
    hsm::Mechanism {
        algorithm: Some(capability.to_string()),
        works: Some(result.is_ok()),
        reason: result.err(),
    }
}

pub(super) fn member_state(state: MemberState) -> hsm::MemberState {
    match state {
        MemberState::Attaching => hsm::MemberState::Attaching,
        MemberState::Serving => hsm::MemberState::Serving,
        MemberState::Lost => hsm::MemberState::Lost,
        MemberState::Refused => hsm::MemberState::Refused,
        MemberState::Maintenance => hsm::MemberState::Maintenance,
        MemberState::Synchronizing => hsm::MemberState::Synchronizing,
    }
}
