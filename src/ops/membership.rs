//! The members of one cluster: in its row, and in the cluster itself while it is
//! in use. What changes the one changes the other.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::cluster;
use super::hsm::describe_member;
use super::prelude::*;
use crate::app::App;
use crate::hsm::{self as hsms, Cluster, HsmError, MemberSettings, MemberState, TokenUri};
use crate::identity::{self, Installation};
use crate::key_stores::rows::{RegisteredCluster, RegisteredMember};
use crate::proto::hsm;
use crate::registry::from_store;
use crate::sealed;
use crate::store::Commit;

/// Longest that a new member is waited for: its first self-test makes keys of
/// every kind.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(45);
/// How often a store that takes nothing is asked again.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest that reading a row waits for an HSM.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The members of the installation's cluster, or of one that operators
/// registered.
pub(super) struct Membership {
    row: MemberRow,
    /// While it is in use.
    running: Option<Arc<Cluster>>,
}

enum MemberRow {
    Installation(Held<Installation>),
    Registered(Held<RegisteredCluster>),
}

/// What a row says of members.
struct Roster {
    members: Vec<MemberSettings>,
    maintenance: Vec<String>,
}

impl Membership {
    /// That of the cluster with this id, or of the installation's.
    ///
    /// # Errors
    /// AccessDeniedException to all but the management account,
    /// CloudHsmClusterNotFoundException.
    pub(super) async fn of(call: &Call, cluster_id: &Option<String>) -> Result<Membership> {
        management_only(call)?;
        let key_stores = &call.app.key_stores;
        let Some(id) = cluster_id else {
            let held = identity::held(&call.app.registry, call.deadline).await?;
            let running = Some(key_stores.installation().clone());
            return Ok(Membership { row: MemberRow::Installation(held), running });
        };
        let held = cluster::by_id(call, id).await?;
        if held.value.deleted {
            return Err(Error::new(Exception::CloudHsmClusterNotFound, format!("Cluster {id} was deleted.")));
        }
        if held.value.ceremony_ms.is_some() {
            return Err(Error::new(
                Exception::KmsInvalidState,
                format!("Cluster {id} is being initialized, or was not to the end: initialize it first."),
            ));
        }
        let running = held.value.key_store.as_deref().and_then(|store| key_stores.connected(store));
        Ok(Membership { row: MemberRow::Registered(held), running })
    }

    /// The cluster, which has to be in use.
    ///
    /// # Errors
    /// KMSInvalidStateException.
    pub(super) fn cluster(&self) -> Result<&Arc<Cluster>> {
        self.running.as_ref().ok_or_else(|| {
            Error::new(
                Exception::KmsInvalidState,
                format!("{} is not in use: connect its key store first.", self.name()),
            )
        })
    }

    /// The custom key store that has the cluster; none for the installation's.
    pub(super) fn key_store(&self) -> Option<&str> {
        match &self.row {
            MemberRow::Installation(_) => None,
            MemberRow::Registered(held) => held.value.key_store.as_deref(),
        }
    }

    /// The URI of a member as the row writes it.
    ///
    /// # Errors
    /// ValidationException for what is no URI, NotFoundException.
    pub(super) fn known(&self, given: &str) -> Result<String> {
        let token = parse(given)?;
        match self.roster().members.iter().any(|member| member.token.parse().as_ref() == Ok(&token)) {
            true => Ok(token.to_string()),
            false => {
                Err(Error::new(Exception::NotFound, format!("{token} is no member of {}.", self.name())))
            }
        }
    }

    /// A token that is to be a member.
    ///
    /// # Errors
    /// ValidationException: the configuration does not know what is named, or it
    /// is a member already, of this cluster or another.
    pub(super) async fn new_member(
        &self,
        call: &Call,
        token: &Option<String>,
        module: &Option<String>,
        pin: &Option<String>,
    ) -> Result<MemberSettings> {
        let pin = match (&self.row, pin) {
            (MemberRow::Installation(_), Some(pin)) => pin.clone(),
            (MemberRow::Installation(_), None) => {
                return Err(Error::validation("Pin is required for a member of the installation's cluster."));
            }
            (MemberRow::Registered(_), None) => String::new(),
            (MemberRow::Registered(_), Some(_)) => {
                return Err(Error::validation("Pin is not for a cluster whose key store has the password."));
            }
        };
        // [`revive`] may have started it: that is no other member.
        let running = self.running.as_ref().map(|cluster| cluster.members()).unwrap_or_default();
        let mut taken = cluster::taken(call).await?;
        taken.retain(|other| {
            !running.iter().any(|member| member.uri == other.token && member.module == other.module)
        });
        for MemberSettings { module, token, .. } in self.roster().members {
            taken.push(RegisteredMember { module, token: parse(&token)?.to_string() });
        }
        let RegisteredMember { module, token } = cluster::free(call, given(module)?, given(token)?, &taken)?;
        Ok(MemberSettings { module, token, pin })
    }

    /// Starts a member where the cluster is in use, and waits until it serves, or
    /// is known to be the cluster's and has many keys to get; one that is not is
    /// let go again.
    ///
    /// # Errors
    /// KMSInvalidStateException: it cannot be a member.
    pub(super) async fn attach(
        &self,
        call: &Call,
        joining: &mut Joining,
        new: &MemberSettings,
    ) -> Result<hsm::Member> {
        let Some(cluster) = &self.running else {
            let (uri, module) = (Some(new.token.clone()), Some(new.module.clone()));
            return Ok(hsm::Member { uri, module, ..Default::default() });
        };
        if cluster.members().iter().any(|member| member.uri == new.token) {
            return started(call, cluster, new).await;
        }
        let row = match &self.row {
            MemberRow::Installation(_) => None,
            MemberRow::Registered(held) => Some(held.id.clone()),
        };
        let pin = self.pin(call, new).await?;
        joining.start(call, cluster, new, pin, row).await
    }

    /// Refuses what would leave nobody at work.
    ///
    /// # Errors
    /// KMSInvalidStateException.
    pub(super) fn others_serve(&self, uri: &str) -> Result<()> {
        let others = match &self.running {
            Some(cluster) => {
                let serves =
                    |member: &hsms::MemberHealth| member.uri != uri && member.state == MemberState::Serving;
                cluster.watch().borrow().iter().any(serves)
            }
            None => self.roster().members.len() > 1,
        };
        match others {
            true => Ok(()),
            false => Err(Error::new(
                Exception::KmsInvalidState,
                format!("{uri} cannot go: no other member of {} serves.", self.name()),
            )),
        }
    }

    /// Takes a member out of the row, and another in; once that is durable it
    /// goes.
    ///
    /// # Errors
    /// Where the row cannot be written.
    pub(super) fn change(
        &self,
        call: &mut Call,
        gone: Option<String>,
        new: Option<MemberSettings>,
    ) -> Result<()> {
        let mut roster = self.roster();
        if let Some(gone) = &gone {
            let is_gone = |token: &str| token.parse::<TokenUri>().is_ok_and(|uri| uri.to_string() == *gone);
            roster.members.retain(|member| !is_gone(&member.token));
            roster.maintenance.retain(|out| out != gone);
        }
        roster.members.extend(new);
        call.change(self.draft(roster)?);
        if let (Some(uri), Some(cluster)) = (gone, self.running.clone()) {
            call.afterwards(move |_| {
                tokio::spawn(async move {
                    if let Err(error) = cluster.remove_member(&uri).await {
                        tracing::warn!(member = uri, "it was gone already: {error}");
                    }
                });
            });
        }
        Ok(())
    }

    /// Takes a member out for maintenance, or brings it back.
    ///
    /// # Errors
    /// Where the row cannot be written.
    pub(super) fn maintain(&self, call: &mut Call, uri: String, out: bool) -> Result<()> {
        let mut roster = self.roster();
        roster.maintenance.retain(|other| *other != uri);
        if out {
            roster.maintenance.push(uri.clone());
        }
        call.change(self.draft(roster)?);
        if let Some(cluster) = self.running.clone() {
            call.afterwards(move |_| {
                if let Err(error) = cluster.set_maintenance(&uri, out) {
                    tracing::warn!(member = uri, "{error}");
                }
            });
        }
        Ok(())
    }

    fn name(&self) -> String {
        match &self.row {
            MemberRow::Installation(_) => "the installation's cluster".to_owned(),
            MemberRow::Registered(held) => format!("cluster {}", held.id.id),
        }
    }

    fn roster(&self) -> Roster {
        match &self.row {
            MemberRow::Installation(held) => {
                let Installation { members, maintenance, .. } = held.value.clone();
                Roster { members, maintenance }
            }
            MemberRow::Registered(held) => {
                let RegisteredCluster { members, maintenance, .. } = held.value.clone();
                let settings =
                    |RegisteredMember { module, token }| MemberSettings { module, token, pin: String::new() };
                Roster { members: members.into_iter().map(settings).collect(), maintenance }
            }
        }
    }

    /// The row with other members.
    fn draft(&self, Roster { members, maintenance }: Roster) -> Result<Draft> {
        match &self.row {
            MemberRow::Installation(held) => {
                Draft::replace(held, &Installation { members, maintenance, ..held.value.clone() })
            }
            MemberRow::Registered(held) => {
                let member = |MemberSettings { module, token, .. }| RegisteredMember { module, token };
                let members = members.into_iter().map(member).collect();
                Draft::replace(held, &RegisteredCluster { members, maintenance, ..held.value.clone() })
            }
        }
    }

    /// The crypto user's PIN: the configuration's, or the key store's.
    async fn pin(&self, call: &Call, new: &MemberSettings) -> Result<SecretString> {
        match (&self.row, self.key_store()) {
            (MemberRow::Registered(held), Some(store)) => {
                let store = call.key_store_of(&held.id, store).await?;
                sealed::unseal(&call.app, &store.id, &store.value.password, call.deadline).await
            }
            _ => call.app.key_stores.pin(&new.pin).await,
        }
    }
}

/// Starts a token that is to be a member of the installation's cluster where every
/// member is lost: until one serves, no row can be checked, its own neither.
///
/// # Errors
/// As [`Membership::attach`]; AccessDeniedException to all but the management
/// account.
pub(super) async fn revive(
    call: &Call,
    joining: &mut Joining,
    cluster_id: &Option<String>,
    token: &Option<String>,
    module: &Option<String>,
    pin: &Option<String>,
) -> Result<()> {
    management_only(call)?;
    let cluster = call.app.key_stores.installation();
    let members = cluster.members();
    if cluster_id.is_some() || members.iter().any(|member| is_at_work(member.state)) {
        return Ok(());
    }
    let (Some(token), Some(module), Some(pin)) = (token, module, pin) else { return Ok(()) };
    let (token, module) = (parse(token)?.to_string(), known_module(call, module)?);
    if members.iter().any(|member| member.uri == token) {
        return Ok(());
    }
    let new = MemberSettings { module, token, pin: pin.clone() };
    let pin = call.app.key_stores.pin(&new.pin).await?;
    joining.start(call, cluster, &new, pin, None).await.map(drop)
}

/// A member that was just started, once it serves, or is known to be the cluster's
/// and has many keys to get; one that does not is let go again.
async fn started(call: &Call, cluster: &Cluster, new: &MemberSettings) -> Result<hsm::Member> {
    let until = call.deadline.min(Instant::now() + ATTACH_TIMEOUT);
    match settled(cluster, &new.token, until).await {
        Some(status) if is_at_work(status.state) => Ok(describe_member(status)),
        other => {
            let reason =
                other.and_then(|status| status.reason).unwrap_or_else(|| "it does not answer".to_owned());
            cluster.remove_member(&new.token).await.map_err(from_hsm)?;
            Err(Error::new(
                Exception::KmsInvalidState,
                format!(
                    "{} cannot be a member: {reason}. A token without the cluster's wrapping key gets it by \
                     `strongroom hsm bring`, or from a backup.",
                    new.token
                ),
            ))
        }
    }
}

/// A token on its way into a cluster: a member that was started for it is let go
/// again, however the call ends, unless the row that has it became durable. One
/// token at a time.
pub(super) struct Joining {
    app: Arc<App>,
    /// Others have theirs when this is dropped.
    turn: Option<OwnedMutexGuard<()>>,
    started: Option<Started>,
}

/// A member that no durable row has.
struct Started {
    cluster: Arc<Cluster>,
    uri: String,
    /// The registered cluster's row; none for the installation's.
    row: Option<RowId>,
}

impl Joining {
    /// Waits for its turn.
    ///
    /// # Errors
    /// DependencyTimeoutException.
    pub(super) async fn begin(call: &Call) -> Result<Joining> {
        let turn = tokio::time::timeout_at(call.deadline, call.app.key_stores.joining()).await;
        let late = |_| Error::new(Exception::DependencyTimeout, "Other members are being added.");
        Ok(Joining { app: call.app.clone(), turn: Some(turn.map_err(late)?), started: None })
    }

    /// It is a member once the call's changes are durable.
    pub(super) fn settle(self, call: &mut Call) {
        call.afterwards(move |_| self.stay());
    }

    fn stay(mut self) {
        self.started = None;
    }

    async fn start(
        &mut self,
        call: &Call,
        cluster: &Arc<Cluster>,
        new: &MemberSettings,
        pin: SecretString,
        row: Option<RowId>,
    ) -> Result<hsm::Member> {
        cluster.add_member(new, pin).map_err(|error| Error::validation(error.to_string()))?;
        self.started = Some(Started { cluster: cluster.clone(), uri: new.token.clone(), row });
        started(call, cluster, new).await
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        let (started, turn) = (self.started.take(), self.turn.take());
        if let Some(started) = started {
            let app = self.app.clone();
            self.app.tasks.spawn(async move {
                started.let_go(&app).await;
                drop(turn);
            });
        }
    }
}

impl Started {
    async fn let_go(self, app: &App) {
        // A commit that was given up may still be carried out: after another one
        // it is known whether it was.
        while let Err(error) = app.store.commit(Commit::default()).await {
            tracing::debug!(%error, "the store takes nothing yet");
            tokio::select! {
                () = tokio::time::sleep(STORE_INTERVAL) => (),
                () = app.stopping.cancelled() => return,
            }
        }
        match self.is_in_row(app).await {
            Ok(true) => return,
            Ok(false) => (),
            Err(error) => tracing::warn!(%error, detail = error.detail, "the members' row cannot be read"),
        }
        if self.cluster.remove_member(&self.uri).await.is_ok() {
            tracing::warn!(member = self.uri, "let go again: its addition was not recorded");
        }
    }

    async fn is_in_row(&self, app: &App) -> Result<bool> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        let tokens: Vec<String> = match &self.row {
            None => {
                let held = identity::held(&app.registry, deadline).await?;
                held.value.members.into_iter().map(|member| member.token).collect()
            }
            Some(id) => match app.store.row(id).await.map_err(from_store)? {
                Some(row) => {
                    let held: Held<RegisteredCluster> = app.registry.open(row, deadline).await?;
                    held.value.members.into_iter().map(|member| member.token).collect()
                }
                None => Vec::new(),
            },
        };
        Ok(tokens.iter().any(|token| parse(token).is_ok_and(|token| token.to_string() == self.uri)))
    }
}

fn is_at_work(state: MemberState) -> bool {
    matches!(state, MemberState::Serving | MemberState::Synchronizing)
}

/// A module's name, if the configuration has it.
///
/// # Errors
/// ValidationException.
pub(super) fn known_module(call: &Call, name: &str) -> Result<String> {
    if call.app.key_stores.modules().contains(name) {
        return Ok(name.to_owned());
    }
    Err(Error::validation(format!("[modules] of the configuration has no {name}.")))
}

fn parse(token: &str) -> Result<TokenUri> {
    token.parse().map_err(|error: HsmError| Error::validation(error.to_string()))
}

async fn settled(cluster: &Cluster, uri: &str, until: Instant) -> Option<hsms::MemberStatus> {
    let mut health = cluster.watch();
    let on_the_way = |state| matches!(state, MemberState::Attaching | MemberState::Synchronizing);
    let decided = |members: &Vec<hsms::MemberHealth>| {
        !members.iter().any(|member| member.uri == uri && on_the_way(member.state))
    };
    let waited = tokio::time::timeout_at(until, health.wait_for(decided)).await.is_ok();
    tracing::debug!(member = uri, waited, "a new member was waited for");
    cluster.members().into_iter().find(|member| member.uri == uri)
}
