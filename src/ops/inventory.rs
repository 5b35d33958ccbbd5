//! The keys on a member of a cluster against the store.

use std::collections::BTreeMap;

use super::membership::Membership;
use super::prelude::*;
use crate::hsm::{BackingId, Cluster, CopyState, Expected, Home, MemberState};
use crate::key::BackingKey;
use crate::key_stores::residents;
use crate::proto::hsm;
use crate::store::{Kind, Row};

/// Keys compared in one answer, where the request does not say.
const LIMIT: i32 = 100;

/// Compares and repairs.
pub struct CheckMember;

impl Operation for CheckMember {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "CheckMember";
    const ACTION: &'static str = "hsm:CheckMember";
    const READ_ONLY: bool = false;
    const TIMEOUT: Option<std::time::Duration> = Some(std::time::Duration::from_secs(60));
    type Request = hsm::CheckMemberRequest;
    type Response = hsm::CheckMemberResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let membership = Membership::of(call, &request.cluster_id).await?;
        let uri = membership.known(given(&request.token)?)?;
        let cluster = membership.cluster()?.clone();
        let repair = request.repair.unwrap_or(false);
        // Before the keys, so that one that is made meanwhile is not taken for an orphan.
        let present = cluster.inventory_of(&uri, call.deadline).await.map_err(from_hsm)?;
        let all = residents::resident_rows(&call.app, membership.key_store()).await?;
        let marker = request.marker.as_deref().unwrap_or_default();
        let limit = usize::try_from(request.limit.unwrap_or(LIMIT)).unwrap_or_default();
        let rest = all.iter().filter(|(id, _)| id.as_str() > marker);
        let page: Vec<(&String, &Row)> = rest.clone().take(limit).collect();
        let more = rest.count() > page.len();
        let mut findings = Vec::new();
        for (_, row) in &page {
            let held: Held<BackingKey> = call.app.registry.open((*row).clone(), call.deadline).await?;
            findings.extend(compare(call, &cluster, &uri, &held, repair).await?);
        }
        if !more {
            findings.extend(orphans(call, &cluster, &uri, present, &all, repair).await?);
        }
        let before = all.keys().filter(|id| id.as_str() <= marker).count();
        Ok(hsm::CheckMemberResponse {
            expected: i32::try_from(all.len()).ok(),
            compared: i32::try_from(before + page.len()).ok(),
            findings,
            next_marker: page.last().filter(|_| more).map(|(id, _)| (*id).clone()),
        })
    }
}

async fn compare(
    call: &Call,
    cluster: &Cluster,
    uri: &str,
    held: &Held<BackingKey>,
    repair: bool,
) -> Result<Option<hsm::KeyFinding>> {
    let expected = residents::expected(held)?;
    let id = expected.key.id;
    let state = cluster.compare(uri, &expected, call.deadline).await.map_err(from_hsm)?;
    let kind = match state {
        CopyState::Good => return Ok(None),
        // One that no blob brings to others belongs on the member that made it.
        CopyState::Missing if is_elsewhere(call, cluster, uri, &expected).await? => return Ok(None),
        CopyState::Missing => hsm::FindingKind::Missing,
        CopyState::Differing => hsm::FindingKind::Differing,
    };
    let repaired = match repair {
        true => Some(cluster.repair(uri, &expected, state, call.deadline).await),
        false => None,
    };
    Ok(Some(finding(kind, id, Some(held.value.key_id.clone()), repaired)))
}

async fn is_elsewhere(call: &Call, cluster: &Cluster, uri: &str, expected: &Expected) -> Result<bool> {
    if !matches!(expected.key.home, Home::Resident { blob: None }) {
        return Ok(false);
    }
    for member in cluster.members() {
        if member.uri != uri
            && member.state == MemberState::Serving
            && cluster.compare(&member.uri, expected, call.deadline).await.map_err(from_hsm)?
                == CopyState::Good
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Objects of ours that no row of the store names.
async fn orphans(
    call: &Call,
    cluster: &Cluster,
    uri: &str,
    present: Vec<BackingId>,
    expected: &BTreeMap<String, Row>,
    repair: bool,
) -> Result<Vec<hsm::KeyFinding>> {
    let mut strangers: BTreeMap<String, BackingId> =
        present.into_iter().map(|id| (id.to_string(), id)).collect();
    strangers.retain(|name, _| !expected.contains_key(name));
    let names = |row: &Row, name: &str| row.id.id == name || row.body.contains(name);
    // Every kind of row that may name an object: what one names is no orphan.
    for kind in [Kind::BackingKey, Kind::Intent, Kind::DigestKey, Kind::System] {
        if strangers.is_empty() {
            break;
        }
        let is_wanted = |row: &Row| strangers.keys().any(|name| names(row, name));
        for row in residents::rows(&call.app, kind, is_wanted).await? {
            strangers.retain(|name, _| !names(&row, name));
        }
    }
    let mut findings = Vec::new();
    for id in strangers.into_values() {
        let repaired = match repair {
            true => Some(cluster.remove_orphan(uri, id, call.deadline).await),
            false => None,
        };
        findings.push(finding(hsm::FindingKind::Orphan, id, None, repaired));
    }
    Ok(findings)
}

fn finding(
    kind: hsm::FindingKind,
    id: BackingId,
    key_id: Option<String>,
    repaired: Option<std::result::Result<(), crate::hsm::HsmError>>,
) -> hsm::KeyFinding {
    hsm::KeyFinding {
        kind: Some(kind as i32),
        id: Some(id.to_string()),
        key_id,
        repaired: repaired.as_ref().map(std::result::Result::is_ok),
        reason: repaired.and_then(std::result::Result::err).map(|error| error.to_string()),
    }
}
