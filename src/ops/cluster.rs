//! Clusters of HSMs for custom key stores, as their operators register them.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use super::hsm::member_state;
use super::membership::known_module;
use super::prelude::*;
use crate::hsm::{self as hsms, HsmError, KeyRules, Modules, TokenUri};
use crate::key_stores::rows::{self, RegisteredCluster, RegisteredMember};
use crate::proto::hsm;
use crate::proto::kms::ConnectionStateType;
use crate::registry::from_store;
use crate::store::{Commit, Kind};

/// Longest that a ceremony is taken to run; after that it did not end.
const CEREMONY_MS: i64 = 5 * 60 * 1000;
const ROWS_PAGE: u32 = 100;
/// The letters of a cluster's id (RFC 4648, base 32).
const ID_LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const ID_LENGTH: usize = 11;

/// Registers a cluster.
pub struct CreateCluster;

impl Operation for CreateCluster {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "CreateCluster";
    const ACTION: &'static str = "hsm:CreateCluster";
    const READ_ONLY: bool = false;
    type Request = hsm::CreateClusterRequest;
    type Response = hsm::CreateClusterResponse;
    type On = Account;

    fn on(request: &Self::Request) -> Result<()> {
        if request.members.is_empty() {
            return Err(Error::validation("A cluster has at least one member."));
        }
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let members = members(call, request).await?;
        let source = match &request.source_cluster_id {
            Some(id) => Some(by_id(call, id).await?),
            None => None,
        };
        let replicates_itself = request.replicates_itself.unwrap_or(false);
        let usual = if replicates_itself { 1 } else { members.len().min(2) };
        let required = request.required_copies.and_then(|copies| u16::try_from(copies).ok());
        let value = RegisteredCluster {
            name: request.name.clone().unwrap_or_default(),
            members,
            maintenance: Vec::new(),
            rules: KeyRules {
                resident: true,
                required_copies: required.unwrap_or(u16::try_from(usual).unwrap_or(1)),
                allow_single_copy: request.allow_single_copy.unwrap_or(false),
                replicates_itself,
            },
            trust_anchor: given(&request.trust_anchor_certificate)?.clone(),
            identity: source.and_then(|source| source.value.identity),
            ceremony_ms: None,
            key_store: None,
            created_ms: call.now_ms,
            deleted: false,
        };
        let account = request.account_id.as_deref().unwrap_or(call.account());
        let id = rows::row(Kind::Cluster, call.region(), account, &new_id()?);
        call.change(Draft::insert(id.clone(), &value)?);
        Ok(hsm::CreateClusterResponse { cluster: Some(described(call, &id, &value)) })
    }
}

/// Makes a cluster's wrapping key.
pub struct InitializeCluster;

impl Operation for InitializeCluster {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "InitializeCluster";
    const ACTION: &'static str = "hsm:InitializeCluster";
    const READ_ONLY: bool = false;
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(120));
    type Request = hsm::InitializeClusterRequest;
    type Response = hsm::InitializeClusterResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let held = by_id(call, given(&request.cluster_id)?).await?;
        if held.value.deleted || held.value.identity.is_some() {
            return Err(Error::validation(format!(
                "Cluster {} is {}: a cluster is initialized once.",
                held.id.id,
                state(&held.value).text()
            )));
        }
        let pin = call.app.key_stores.pin(given(&request.pin)?).await?;
        let so_pin = match &request.security_officer_pin {
            Some(name) => Some(call.app.key_stores.pin(name).await?),
            None if held.value.members.len() == 1 => None,
            None => {
                return Err(Error::validation(
                    "SecurityOfficerPin is required where the wrapping key has to be brought to other members.",
                ));
            }
        };
        let left_over = left_over(call, &held)?;
        let tokens = Arc::new(Tokens::of(call, &held.value, pin, so_pin)?);
        // INVARIANT: what a ceremony that did not end left is destroyed, so none
        // begins on a token that has keys, which may be another installation's.
        if !left_over {
            tokens.clone().blocking(Tokens::check_unused).await?;
        }
        let begun = begin(call, &held, Some(call.now_ms)).await?;
        match tokens.blocking(move |tokens| tokens.ceremony(left_over)).await {
            Ok(identity) => {
                let value =
                    RegisteredCluster { identity: Some(identity), ceremony_ms: None, ..begun.value.clone() };
                call.change(Draft::replace(&begun, &value)?);
                Ok(hsm::InitializeClusterResponse { cluster: Some(described(call, &held.id, &value)) })
            }
            Err(error) => {
                begin(call, &begun, None).await?;
                Err(error)
            }
        }
    }
}

/// Tells of clusters.
pub struct DescribeClusters;

impl Operation for DescribeClusters {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "DescribeClusters";
    const ACTION: &'static str = "hsm:DescribeClusters";
    const READ_ONLY: bool = true;
    type Request = hsm::DescribeClustersRequest;
    type Response = hsm::DescribeClustersResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let clusters = match &request.cluster_id {
            Some(id) => vec![by_id(call, id).await?],
            None => all(call).await?,
        };
        let clusters = clusters.iter().map(|held| described(call, &held.id, &held.value)).collect();
        Ok(hsm::DescribeClustersResponse { clusters })
    }
}

/// Forgets a cluster.
pub struct DeleteCluster;

impl Operation for DeleteCluster {
    const SERVICE: Service = Service::Hsm;
    const NAME: &'static str = "DeleteCluster";
    const ACTION: &'static str = "hsm:DeleteCluster";
    const READ_ONLY: bool = false;
    type Request = hsm::DeleteClusterRequest;
    type Response = hsm::DeleteClusterResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let held = by_id(call, given(&request.cluster_id)?).await?;
        if let Some(store) = &held.value.key_store {
            let row = rows::row(Kind::KeyStore, &held.id.region, &held.id.account, store);
            let row = call.app.store.row(&row).await.map_err(from_store)?;
            let row = row.ok_or_else(|| Error::internal(format!("{} has no key store {store}", held.id)))?;
            let store: Held<rows::KeyStore> = call.app.registry.open(row, call.deadline).await?;
            if !matches!(store.value.state, ConnectionStateType::Disconnected | ConnectionStateType::Failed) {
                return Err(Error::new(
                    Exception::CloudHsmClusterInUse,
                    format!(
                        "Custom key store {} of cluster {} is {}: disconnect it first.",
                        store.id.id,
                        held.id.id,
                        store.value.state.text()
                    ),
                ));
            }
        }
        let value = RegisteredCluster { deleted: true, ..held.value.clone() };
        call.change(Draft::replace(&held, &value)?);
        Ok(hsm::DeleteClusterResponse { cluster: Some(described(call, &held.id, &value)) })
    }
}

/// The tokens that a request names: none twice, and none of another cluster.
async fn members(call: &Call, request: &hsm::CreateClusterRequest) -> Result<Vec<RegisteredMember>> {
    let mut taken = taken(call).await?;
    let mut members = Vec::with_capacity(request.members.len());
    for member in &request.members {
        let member = free(call, given(&member.module)?, given(&member.token)?, &taken)?;
        members.push(member.clone());
        taken.push(member);
    }
    Ok(members)
}

/// Every token that is a member of a cluster.
pub(super) async fn taken(call: &Call) -> Result<Vec<RegisteredMember>> {
    let mut taken: Vec<RegisteredMember> = Vec::new();
    for cluster in call.app.key_stores.clusters() {
        let members = cluster.members().into_iter();
        taken.extend(members.map(|member| RegisteredMember { module: member.module, token: member.uri }));
    }
    for held in all(call).await?.into_iter().filter(|held| !held.value.deleted) {
        taken.extend(held.value.members);
    }
    Ok(taken)
}

/// A token that is a member of no cluster.
pub(super) fn free(
    call: &Call,
    module: &str,
    token: &str,
    taken: &[RegisteredMember],
) -> Result<RegisteredMember> {
    let module = known_module(call, module)?;
    let uri: TokenUri = token.parse().map_err(|error: HsmError| Error::validation(error.to_string()))?;
    let member = RegisteredMember { module, token: uri.to_string() };
    if taken.contains(&member) {
        return Err(Error::validation(format!("{uri} is a member already, of this cluster or another.")));
    }
    Ok(member)
}

/// Every cluster of the Region, of whatever account.
async fn all(call: &Call) -> Result<Vec<Held<RegisteredCluster>>> {
    let (mut clusters, mut after) = (Vec::new(), None);
    loop {
        let rows =
            call.app.store.all_rows(Kind::Cluster, after.as_ref(), ROWS_PAGE).await.map_err(from_store)?;
        let Some(last) = rows.last() else { return Ok(clusters) };
        after = Some(last.id.clone());
        for row in rows.into_iter().filter(|row| row.id.region == call.region()) {
            clusters.push(call.app.registry.open(row, call.deadline).await?);
        }
    }
}

pub(super) async fn by_id(call: &Call, id: &str) -> Result<Held<RegisteredCluster>> {
    match call.app.store.find(Kind::Cluster, call.region(), id).await.map_err(from_store)? {
        Some(row) => call.app.registry.open(row, call.deadline).await,
        None => Err(Error::new(
            Exception::CloudHsmClusterNotFound,
            format!("Cluster {id} is not registered in this Region."),
        )),
    }
}

/// Whether the tokens may have keys of a ceremony that did not end, which
/// nobody knows.
fn left_over(call: &Call, held: &Held<RegisteredCluster>) -> Result<bool> {
    match held.value.ceremony_ms {
        None => Ok(false),
        Some(begun_ms) if begun_ms >= call.app.started_ms && call.now_ms < begun_ms + CEREMONY_MS => {
            Err(Error::validation(format!("Cluster {} is being initialized.", held.id.id)))
        }
        Some(_) => Ok(true),
    }
}

/// Notes, before it touches the tokens, that a ceremony begins, or that it
/// failed and left nothing.
async fn begin(
    call: &Call,
    held: &Held<RegisteredCluster>,
    ceremony_ms: Option<i64>,
) -> Result<Held<RegisteredCluster>> {
    let value = RegisteredCluster { ceremony_ms, ..held.value.clone() };
    let drafts = [Draft::replace(held, &value)?];
    let changes = call.app.registry.seal(&drafts, call.deadline).await?;
    call.app.store.commit(Commit { changes, events: Vec::new() }).await.map_err(from_store)?;
    Ok(Held { id: held.id.clone(), version: held.version + 1, value })
}

/// The tokens of a cluster, for its ceremony.
struct Tokens {
    /// Of its own: tokens are logged out on the way.
    modules: Arc<Modules>,
    members: Vec<hsms::TokenAccess>,
    so_pin: Option<SecretString>,
}

impl Tokens {
    fn of(
        call: &Call,
        cluster: &RegisteredCluster,
        pin: SecretString,
        so_pin: Option<SecretString>,
    ) -> Result<Tokens> {
        let access = |member: &RegisteredMember| {
            let token: TokenUri = member.token.parse().map_err(from_hsm)?;
            Ok(hsms::TokenAccess { module: member.module.clone(), token, pin: pin.clone() })
        };
        let members = cluster.members.iter().map(access).collect::<Result<_>>()?;
        Ok(Tokens { modules: call.app.key_stores.other_modules(), members, so_pin })
    }

    /// Does something on a thread that may block, and ends the modules.
    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Tokens) -> Result<T, HsmError> + Send + 'static,
    ) -> Result<T> {
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&self);
            self.modules.finalise();
            result
        });
        // What is wrong with a token or its PIN is for the operator who asks.
        done.await
            .map_err(|error| Error::internal(error.to_string()))?
            .map_err(|error| Error::new(Exception::CloudHsmClusterInvalidConfiguration, error.to_string()))
    }

    fn check_unused(&self) -> Result<(), HsmError> {
        self.members.iter().try_for_each(|member| {
            hsms::check_unused(&self.modules, &member.module, &member.token, &member.pin)
                .map_err(|error| HsmError::Unsupported(format!("{}: {error}", member.token)))
        })
    }

    /// Makes the keys on the first token, and brings the wrapping key to the others.
    fn ceremony(&self, left_over: bool) -> Result<hsms::ClusterIdentity, HsmError> {
        let Some((first, others)) = self.members.split_first() else {
            return Err(HsmError::Unsupported("a cluster without members".to_owned()));
        };
        if left_over {
            self.discard()?;
        }
        let identity = hsms::ceremony(&self.modules, &first.module, &first.token, &first.pin)?;
        let brought = others.iter().try_for_each(|target| match &self.so_pin {
            Some(so_pin) => hsms::bring_wrapping_key(&self.modules, first, so_pin, target).map(drop),
            None => Err(HsmError::Unsupported("the security officer's PIN is needed".to_owned())),
        });
        if let Err(error) = brought {
            // Nothing half made stays, so that the ceremony can be held again.
            self.discard()?;
            return Err(error);
        }
        Ok(identity)
    }

    fn discard(&self) -> Result<(), HsmError> {
        self.members.iter().try_for_each(|member| {
            hsms::discard_ceremony(&self.modules, &member.module, &member.token, &member.pin)
        })
    }
}

fn state(cluster: &RegisteredCluster) -> hsm::ClusterState {
    match cluster.is_active() {
        _ if cluster.deleted => hsm::ClusterState::Deleted,
        true => hsm::ClusterState::Active,
        false => hsm::ClusterState::Uninitialized,
    }
}

fn described(call: &Call, id: &RowId, cluster: &RegisteredCluster) -> hsm::Cluster {
    let running = cluster.key_store.as_deref().and_then(|store| call.app.key_stores.connected(store));
    let health = running.map(|running| running.watch().borrow().clone()).unwrap_or_default();
    let member = |member: &RegisteredMember| {
        let now = health.iter().find(|now| now.uri == member.token);
        hsm::ClusterMemberStatus {
            module: Some(member.module.clone()),
            token: Some(member.token.clone()),
            state: now.map(|now| member_state(now.state) as i32),
            reason: now.and_then(|now| now.reason.clone()),
        }
    };
    hsm::Cluster {
        cluster_id: Some(id.id.clone()),
        name: Some(cluster.name.clone()),
        state: Some(state(cluster) as i32),
        members: cluster.members.iter().map(member).collect(),
        required_copies: Some(cluster.rules.required_copies.into()),
        allow_single_copy: Some(cluster.rules.allow_single_copy),
        replicates_itself: Some(cluster.rules.replicates_itself),
        trust_anchor_certificate: Some(cluster.trust_anchor.clone()),
        account_id: Some(id.account.clone()),
        custom_key_store_id: cluster.key_store.clone(),
        creation_date: Some(timestamp(cluster.created_ms)),
    }
}

fn new_id() -> Result<String> {
    let mut random = [0; ID_LENGTH];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::internal("the host has no random numbers"))?;
    let letter = |byte: u8| char::from(ID_LETTERS.get(usize::from(byte % 32)).copied().unwrap_or(b'a'));
    Ok(format!("cluster-{}", random.into_iter().map(letter).collect::<String>()))
}
