//! Puts on the record when an HSM is lost, refused, or serves again.

use std::collections::HashMap;

use serde_json::json;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use super::service_event;
use crate::app::App;
use crate::error::Result;
use crate::hsm::{MemberHealth, MemberState};
use crate::registry::from_store;
use crate::store::Commit;

/// What events and metrics call the installation's cluster; a custom key store's
/// they call by its id.
pub const INSTALLATION: &str = "installation";

/// Watches the members of a cluster until it is stopped.
pub async fn watch(
    app: &App,
    cluster: &str,
    mut health: Receiver<Vec<MemberHealth>>,
    stop: CancellationToken,
) {
    let mut known: HashMap<String, MemberState> = HashMap::new();
    loop {
        let members = health.borrow_and_update().clone();
        let serving = members.iter().filter(|member| member.state == MemberState::Serving).count();
        for member in &members {
            // On the way from one state to another nothing is known yet.
            if matches!(member.state, MemberState::Attaching | MemberState::Synchronizing) {
                continue;
            }
            let before = known.insert(member.uri.clone(), member.state);
            let Some(name) = event_name(before, member.state) else { continue };
            let details = json!({
                "member": member.uri,
                "reason": member.reason,
                "cluster": cluster,
                "members": members.len(),
                "membersServing": serving,
            });
            if let Err(error) = record(app, name, details).await {
                tracing::error!(member = member.uri, name, %error, detail = error.detail, "a member's change could not be recorded");
            }
        }
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// What a change of state is called; none for those that mean nothing to an
/// operator: a member that attaches, or serves from the start.
fn event_name(before: Option<MemberState>, now: MemberState) -> Option<&'static str> {
    match (before, now) {
        (Some(before), now) if before == now => None,
        (_, MemberState::Lost) => Some("HsmMemberLost"),
        (_, MemberState::Refused) => Some("HsmMemberRefused"),
        (Some(MemberState::Lost | MemberState::Refused), MemberState::Serving) => Some("HsmMemberRecovered"),
        // Its own event says who took it out, or brought it back.
        (_, MemberState::Serving | MemberState::Maintenance) => None,
        (_, MemberState::Attaching | MemberState::Synchronizing) => None,
    }
}

async fn record(app: &App, name: &'static str, details: serde_json::Value) -> Result<()> {
    let event = service_event(app, name, &app.account, details, None)?;
    app.store
        .commit(Commit { changes: Vec::new(), events: vec![event] })
        .await
        .map(|_| ())
        .map_err(from_store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_is_called_for_is_an_event() {
        use MemberState::{Attaching, Lost, Refused, Serving};
        for (before, now, name) in [
            (None, Serving, None),
            (Some(Attaching), Serving, None),
            (Some(Serving), Lost, Some("HsmMemberLost")),
            (None, Refused, Some("HsmMemberRefused")),
            (Some(Lost), Serving, Some("HsmMemberRecovered")),
            (Some(Lost), Lost, None),
        ] {
            assert_eq!(event_name(before, now), name, "{before:?} to {now:?}");
        }
    }
}
