//! Connects and disconnects custom key stores: what their rows say is brought
//! about here, in the background, after a start as after a call. So a kill -9
//! at any point is made good by the next start.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::residents;
use super::rows::{self, KeyStore, RegisteredCluster};
use crate::app::App;
use crate::error::Result;
use crate::hsm::{Cause, Cluster, HsmError, MemberSettings, MemberState};
use crate::jobs;
use crate::proto::kms::{ConnectionErrorCodeType as Code, ConnectionStateType as State};
use crate::registry::{self, Draft, Held, from_store};
use crate::store::{Commit, Kind};
use crate::wire::Text as _;

/// How often the rows are looked at without being told to.
const INTERVAL: Duration = Duration::from_secs(5);
/// Longest that a connection waits for a first member.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that a step waits for the store or the installation's cluster.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
const PAGE: u32 = 100;

/// Does what the rows of the key stores say until it is stopped.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut work = Work::default();
    loop {
        if let Err(error) = work.round(&app).await {
            tracing::warn!(%error, detail = error.detail, "custom key stores: the round failed; it is tried again");
        }
        tokio::select! {
            () = app.key_stores.changed.notified() => (),
            () = tokio::time::sleep(INTERVAL) => (),
            () = stop.cancelled() => break,
        }
    }
    for (id, attempt) in work.attempts {
        attempt.cancel.cancel();
        if let Err(error) = attempt.task.await {
            tracing::error!(key_store = id, %error, "a connection attempt ended badly");
        }
    }
}

/// Connects what was connected before the daemon was stopped, so that it serves
/// those keys from its first call on.
pub async fn resume(app: &Arc<App>) -> Result<()> {
    for held in all(app).await? {
        if held.value.state == State::Connected {
            reconnect(app, &held).await;
        }
    }
    Ok(())
}

/// Connection attempts by key store.
#[derive(Default)]
struct Work {
    attempts: HashMap<String, Attempt>,
}

struct Attempt {
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Work {
    async fn round(&mut self, app: &Arc<App>) -> Result<()> {
        self.attempts.retain(|_, attempt| !attempt.task.is_finished());
        app.key_stores.end_disconnected().await;
        let stores = all(app).await?;
        for held in &stores {
            self.settle(app, held).await?;
        }
        let known: HashSet<&str> = stores.iter().map(|held| held.id.id.as_str()).collect();
        for (id, _) in app.key_stores.in_use().iter().filter(|(id, _)| !known.contains(id.as_str())) {
            app.key_stores.disconnect(id);
        }
        app.key_stores.end_disconnected().await;
        Ok(())
    }

    async fn settle(&mut self, app: &Arc<App>, held: &Held<KeyStore>) -> Result<()> {
        let (id, state) = (&held.id.id, held.value.state);
        if let Some(attempt) = self.attempts.get(id) {
            if state != State::Connecting {
                attempt.cancel.cancel();
            }
            return Ok(());
        }
        let is_connected = app.key_stores.connected(id).is_some();
        match state {
            State::Connected if !is_connected => reconnect(app, held).await,
            State::Connecting => {
                let cancel = CancellationToken::new();
                let task = tokio::spawn(attempt(app.clone(), held.clone(), cancel.clone()));
                self.attempts.insert(id.clone(), Attempt { cancel, task });
            }
            State::Disconnecting => {
                app.key_stores.disconnect(id);
                app.key_stores.end_disconnected().await;
                let details = json!({ "customKeyStoreId": id, "cloudHsmClusterId": held.value.cluster });
                change(app, held, State::Disconnected, None, "CustomKeyStoreDisconnected", details).await?;
            }
            State::Disconnected | State::Failed if is_connected => app.key_stores.disconnect(id),
            _ => (),
        }
        Ok(())
    }
}

/// The key stores of the Regions that this daemon serves; one whose row was
/// tampered with is left out.
async fn all(app: &App) -> Result<Vec<Held<KeyStore>>> {
    let (mut stores, mut after) = (Vec::new(), None);
    loop {
        let rows = app.store.all_rows(Kind::KeyStore, after.as_ref(), PAGE).await.map_err(from_store)?;
        let Some(last) = rows.last() else { return Ok(stores) };
        after = Some(last.id.clone());
        for row in rows {
            if app.key_stores.default_of(&row.id.region).is_none() {
                continue;
            }
            let id = row.id.clone();
            match app.registry.open(row, Instant::now() + STEP_TIMEOUT).await {
                Ok(held) => stores.push(held),
                Err(error) => {
                    tracing::error!(key_store = %id, %error, detail = error.detail, "a custom key store is left alone");
                }
            }
        }
    }
}

/// Why a key store is not connected.
struct Failed(Code, String);

/// Starts the cluster of a key store that is connected by its row: its members
/// attach in the background.
async fn reconnect(app: &Arc<App>, held: &Held<KeyStore>) {
    match start(app, held).await {
        Ok(cluster) => app.key_stores.connect(app, &held.id.id, cluster),
        Err(Failed(code, reason)) => {
            tracing::warn!(
                key_store = held.id.id,
                reason,
                "a connected key store cannot be reached ({}); it is tried again",
                code.text()
            );
        }
    }
}

async fn attempt(app: Arc<App>, held: Held<KeyStore>, cancel: CancellationToken) {
    let outcome = match start(&app, &held).await {
        Ok(cluster) => {
            let attached = tokio::select! {
                attached = attached(&cluster) => attached,
                () = cancel.cancelled() => {
                    cluster.shutdown().await;
                    return app.key_stores.wake();
                }
            };
            match attached {
                Ok(()) => Ok(cluster),
                Err(failed) => {
                    cluster.shutdown().await;
                    Err(failed)
                }
            }
        }
        Err(failed) => Err(failed),
    };
    if let Err(error) = conclude(&app, &held, outcome).await {
        // The row says CONNECTING still: it is tried again.
        tracing::warn!(key_store = held.id.id, %error, detail = error.detail, "a connection could not be recorded");
    }
    app.key_stores.wake();
}

/// Puts the outcome in the row. A key store that was disconnected meanwhile
/// stays so.
async fn conclude(
    app: &Arc<App>,
    held: &Held<KeyStore>,
    outcome: Result<Arc<Cluster>, Failed>,
) -> Result<()> {
    let (id, cluster_id) = (&held.id.id, &held.value.cluster);
    let result = match outcome {
        Ok(cluster) => {
            // First, so that who sees it CONNECTED can use it.
            app.key_stores.connect(app, id, cluster);
            let details = json!({ "customKeyStoreId": id, "cloudHsmClusterId": cluster_id });
            let changed = change(app, held, State::Connected, None, "CustomKeyStoreConnected", details).await;
            if changed.is_err() {
                app.key_stores.disconnect(id);
                app.key_stores.end_disconnected().await;
            }
            changed
        }
        Err(Failed(code, reason)) => {
            tracing::warn!(key_store = id, reason, "not connected: {}", code.text());
            let details = json!({
                "customKeyStoreId": id,
                "cloudHsmClusterId": cluster_id,
                "connectionErrorCode": code.text(),
                "reason": reason,
            });
            change(app, held, State::Failed, Some(code), "CustomKeyStoreConnectionFailed", details).await
        }
    };
    match result {
        Err(error) if registry::is_conflict(&error) => Ok(()),
        other => other,
    }
}

/// Starts the members of a key store's cluster.
async fn start(app: &Arc<App>, held: &Held<KeyStore>) -> Result<Arc<Cluster>, Failed> {
    let internal = |error: crate::error::Error| {
        Failed(Code::InternalError, error.detail.unwrap_or_else(|| error.message.into_owned()))
    };
    let deadline = Instant::now() + STEP_TIMEOUT;
    let id = rows::row(Kind::Cluster, &held.id.region, &held.id.account, &held.value.cluster);
    let row = app.store.row(&id).await.map_err(|error| internal(from_store(error)))?;
    let gone = || Failed(Code::ClusterNotFound, format!("there is no cluster {}", id.id));
    let cluster: Held<RegisteredCluster> =
        app.registry.open(row.ok_or_else(gone)?, deadline).await.map_err(internal)?;
    let RegisteredCluster { members, maintenance, rules, identity, deleted: false, .. } = cluster.value
    else {
        return Err(gone());
    };
    let identity = identity
        .ok_or_else(|| Failed(Code::InternalError, format!("cluster {} is not initialised", id.id)))?;
    let pin = crate::sealed::unseal(app, &held.id, &held.value.password, deadline).await.map_err(internal)?;
    let members = members.into_iter().map(|member| {
        let settings = MemberSettings { module: member.module, token: member.token, pin: String::new() };
        (settings, pin.clone())
    });
    let residents = residents::of_key_store(app, &held.id.region, &held.id.id);
    let unreachable = |error: HsmError| Failed(Code::NetworkErrors, error.to_string());
    let cluster = app.key_stores.start(members.collect(), identity, rules, residents).map_err(unreachable)?;
    for out in &maintenance {
        cluster.set_maintenance(out, true).map_err(unreachable)?;
    }
    Ok(cluster)
}

/// Waits until a member serves, or it is known that none will.
async fn attached(cluster: &Cluster) -> Result<(), Failed> {
    let mut health = cluster.watch();
    let decided = |members: &Vec<crate::hsm::MemberHealth>| {
        let count = |state| members.iter().filter(|member| member.state == state).count();
        let settled = count(MemberState::Attaching) == 0;
        settled && (count(MemberState::Serving) > 0 || count(MemberState::Refused) == members.len())
    };
    let waited = tokio::time::timeout(CONNECT_TIMEOUT, health.wait_for(decided)).await;
    drop(waited);
    let members = cluster.members();
    if members.iter().any(|member| member.state == MemberState::Serving) {
        return Ok(());
    }
    let reasons: Vec<String> = members
        .iter()
        .map(|member| format!("{}: {}", member.uri, member.reason.as_deref().unwrap_or("it does not answer")))
        .collect();
    let causes: Vec<Cause> = members.iter().filter_map(|member| member.cause).collect();
    Err(Failed(error_code(&causes), reasons.join("; ")))
}

/// What KMS calls it: first what the key store's owner can mend.
fn error_code(causes: &[Cause]) -> Code {
    const ORDER: [(Cause, Code); 7] = [
        (Cause::WrongPin, Code::InvalidCredentials),
        (Cause::LockedPin, Code::UserLockedOut),
        (Cause::NoUser, Code::UserNotFound),
        (Cause::UserLoggedIn, Code::UserLoggedIn),
        (Cause::Foreign, Code::InternalError),
        (Cause::Silent, Code::NetworkErrors),
        (Cause::Absent, Code::InsufficientCloudhsmHsms),
    ];
    let found = ORDER.iter().find(|(cause, _)| causes.contains(cause));
    found.map_or(Code::NetworkErrors, |(_, code)| *code)
}

/// Makes a key store's new state durable, with its event.
async fn change(
    app: &App,
    held: &Held<KeyStore>,
    state: State,
    error: Option<Code>,
    event: &'static str,
    details: serde_json::Value,
) -> Result<()> {
    let drafts = [Draft::replace(held, &held.value.in_state(state, error))?];
    let changes = app.registry.seal(&drafts, Instant::now() + STEP_TIMEOUT).await?;
    let event = jobs::service_event_in(app, &held.id.region, event, &held.id.account, details)?;
    app.store.commit(Commit { changes, events: vec![event] }).await.map_err(from_store)?;
    tracing::info!(key_store = held.id.id, "{}", state.text());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_owner_can_mend_is_told_first() {
        for (causes, code) in [
            (&[Cause::Absent, Cause::WrongPin][..], Code::InvalidCredentials),
            (&[Cause::LockedPin], Code::UserLockedOut),
            (&[Cause::NoUser], Code::UserNotFound),
            (&[Cause::UserLoggedIn], Code::UserLoggedIn),
            (&[Cause::Absent, Cause::Absent], Code::InsufficientCloudhsmHsms),
            (&[Cause::Absent, Cause::Silent], Code::NetworkErrors),
            (&[Cause::Foreign], Code::InternalError),
            (&[], Code::NetworkErrors),
        ] {
            assert_eq!(error_code(causes), code, "{causes:?}");
        }
    }
}
