//! Which cluster of HSMs holds a key: the default cluster of its Region, or
//! that of its custom key store while it is connected.
//!
//! The daemon's own keys (row MACs, the log's head, the passwords of key stores)
//! are those of the installation's cluster, which is the default one of a
//! Region too.
//!
//! ```text
//! ConnectCustomKeyStore ─→ row CONNECTING ─→ connection: start, attach ─→ row CONNECTED ─→ keys
//!                                            (in the background, after a restart too)
//! ```

pub mod connection;
pub mod residents;
pub mod rows;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::Config;
use crate::error::{Error, Exception, Result};
use crate::hsm::{Cluster, ClusterIdentity, HsmError, KeyRules, MemberSettings, Modules, Residents};
use crate::jobs;
use crate::key::{self, Key, Stage};
use crate::operation::Call;
use crate::proto::kms::KeyState;
use crate::registry::{Held, LoadedKey, from_store};
use crate::store::{Kind, RowId};
use rows::{KeyStore, RegisteredCluster};

/// The clusters that are in use.
pub struct KeyStores {
    modules: Arc<Modules>,
    /// Where PINs come from.
    config: ArcSwap<Config>,
    installation: Arc<Cluster>,
    /// By Region: every one that is served.
    defaults: BTreeMap<Arc<str>, Arc<Cluster>>,
    /// By CustomKeyStoreId, which no two Regions share.
    connected: ArcSwap<HashMap<String, Connection>>,
    /// Clusters that are to be ended.
    disconnected: Mutex<Vec<Arc<Cluster>>>,
    /// Tells the background that a row was changed.
    changed: Notify,
    /// Whose turn it is to join a cluster.
    joining: Arc<AsyncMutex<()>>,
}

/// A custom key store that is connected.
#[derive(Clone)]
struct Connection {
    cluster: Arc<Cluster>,
    /// Ends the watch over its members.
    watch: CancellationToken,
}

impl KeyStores {
    /// The default clusters, by Region, and among them the installation's.
    pub fn new(
        config: Config,
        modules: Arc<Modules>,
        installation: Arc<Cluster>,
        defaults: BTreeMap<Arc<str>, Arc<Cluster>>,
    ) -> KeyStores {
        KeyStores {
            modules,
            config: ArcSwap::from_pointee(config),
            installation,
            defaults,
            connected: ArcSwap::default(),
            disconnected: Mutex::default(),
            changed: Notify::new(),
            joining: Arc::default(),
        }
    }

    /// The configuration was reloaded: its PINs are those from now on.
    pub fn reload(&self, config: Config) {
        self.config.store(Arc::new(config));
    }

    /// The configured modules.
    pub fn modules(&self) -> &Arc<Modules> {
        &self.modules
    }

    /// The configured modules once more, loaded for work that logs tokens in and
    /// out; finalised by whoever asked for them.
    pub fn other_modules(&self) -> Arc<Modules> {
        Modules::new(self.config.load().modules.clone(), self.modules.limits().clone())
    }

    /// The PIN of `[pins.NAME]`, read now.
    ///
    /// # Errors
    /// ValidationException: there is no such PIN, or it cannot be read.
    pub async fn pin(&self, name: &str) -> Result<SecretString> {
        let (config, name) = (self.config.load_full(), name.to_owned());
        let read = tokio::task::spawn_blocking(move || config.pin(&name)).await;
        read.map_err(|error| Error::internal(error.to_string()))?
            .map_err(|problem| Error::validation(problem.to_string()))
    }

    /// The cluster of the daemon's own keys.
    pub fn installation(&self) -> &Arc<Cluster> {
        &self.installation
    }

    /// A Region, if this daemon serves it.
    pub fn region(&self, name: &str) -> Option<&Arc<str>> {
        self.defaults.get_key_value(name).map(|(region, _)| region)
    }

    /// The default clusters of all Regions, each once and with its name: the
    /// installation's first, others by their Region's.
    pub fn regional(&self) -> Vec<(String, Arc<Cluster>)> {
        let mut clusters = vec![(jobs::members::INSTALLATION.to_owned(), self.installation.clone())];
        for (region, cluster) in &self.defaults {
            if !clusters.iter().any(|(_, known)| Arc::ptr_eq(known, cluster)) {
                clusters.push((region.to_string(), cluster.clone()));
            }
        }
        clusters
    }

    /// The default cluster of a Region; none where this daemon does not serve it.
    pub fn default_of(&self, region: &str) -> Option<&Arc<Cluster>> {
        self.defaults.get(region)
    }

    /// The cluster of a custom key store; none while it is not connected.
    pub fn connected(&self, custom_key_store_id: &str) -> Option<Arc<Cluster>> {
        self.connected.load().get(custom_key_store_id).map(|connection| connection.cluster.clone())
    }

    /// The cluster of a custom key store, or the default one of the Region.
    pub fn find(&self, region: &str, custom_key_store_id: Option<&str>) -> Option<Arc<Cluster>> {
        match custom_key_store_id {
            Some(id) => self.connected(id),
            None => self.default_of(region).cloned(),
        }
    }

    /// Every cluster in use, the installation's first, each once.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let mut clusters: Vec<_> = self.regional().into_iter().map(|(_, cluster)| cluster).collect();
        clusters.extend(self.connected.load().values().map(|connection| connection.cluster.clone()));
        clusters
    }

    /// Has the background look at the rows.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// The turn to start a member that no row has yet.
    pub async fn joining(&self) -> OwnedMutexGuard<()> {
        self.joining.clone().lock_owned().await
    }

    /// Takes a custom key store's cluster out of use, at once; the background
    /// ends it when the calls in it are done.
    pub fn disconnect(&self, custom_key_store_id: &str) {
        if let Some(connection) = self.replace(custom_key_store_id, None) {
            connection.watch.cancel();
            self.disconnected.lock().push(connection.cluster);
        }
        self.wake();
    }

    /// Ends them all, the installation's last: what the others still do is
    /// recorded with its keys.
    pub async fn shutdown(&self) {
        self.end_disconnected().await;
        for cluster in self.clusters().iter().rev() {
            cluster.shutdown().await;
        }
        let modules = self.modules.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || modules.finalise()).await {
            tracing::warn!("the HSM modules were not ended well: {error}");
        }
    }

    fn start(
        &self,
        members: Vec<(MemberSettings, SecretString)>,
        identity: ClusterIdentity,
        rules: KeyRules,
        residents: Arc<dyn Residents>,
    ) -> Result<Arc<Cluster>, HsmError> {
        let limits = self.modules.limits().clone();
        Cluster::start_synchronized(&self.modules, members, identity, limits, rules, Some(residents))
    }

    fn connect(&self, app: &Arc<App>, id: &str, cluster: Arc<Cluster>) {
        let watch = CancellationToken::new();
        let (app, name, health, stop) = (app.clone(), id.to_owned(), cluster.watch(), watch.clone());
        tokio::spawn(async move { jobs::members::watch(&app, &name, health, stop).await });
        if let Some(before) = self.replace(id, Some(Connection { cluster, watch })) {
            before.watch.cancel();
            self.disconnected.lock().push(before.cluster);
        }
    }

    fn replace(&self, id: &str, new: Option<Connection>) -> Option<Connection> {
        let before = self.connected.rcu(|connected| {
            let mut next = HashMap::clone(connected);
            match &new {
                Some(connection) => next.insert(id.to_owned(), connection.clone()),
                None => next.remove(id),
            };
            next
        });
        before.get(id).cloned()
    }

    /// The clusters of the custom key stores that are connected, by their ids.
    pub fn in_use(&self) -> Vec<(String, Arc<Cluster>)> {
        let connected = self.connected.load();
        connected.iter().map(|(id, connection)| (id.clone(), connection.cluster.clone())).collect()
    }

    async fn end_disconnected(&self) {
        let ended = std::mem::take(&mut *self.disconnected.lock());
        for cluster in ended {
            cluster.shutdown().await;
        }
    }
}

impl Call {
    /// The default cluster of the call's Region.
    ///
    /// # Errors
    /// KMSInternalException: the daemon does not serve the Region.
    pub fn default_cluster(&self) -> Result<&Arc<Cluster>> {
        let region = self.region();
        self.app
            .key_stores
            .default_of(region)
            .ok_or_else(|| Error::internal(format!("no cluster serves the Region {region}")))
    }

    /// The cluster that holds a key.
    ///
    /// # Errors
    /// KMSInvalidStateException while its custom key store is not connected.
    pub fn cluster_of(&self, key: &LoadedKey) -> Result<Arc<Cluster>> {
        let store = key.held.value.custom_key_store_id.as_deref();
        self.app.key_stores.find(&key.held.id.region, store).ok_or_else(|| unavailable(&key.arn))
    }

    /// A custom key store of the caller's account.
    ///
    /// # Errors
    /// CustomKeyStoreNotFoundException.
    pub async fn key_store(&self, id: &str) -> Result<Held<KeyStore>> {
        let row = rows::row(Kind::KeyStore, self.region(), self.account(), id);
        self.open_key_store(&row).await
    }

    /// The custom key store that a key, of whatever account, is in.
    ///
    /// # Errors
    /// CustomKeyStoreNotFoundException.
    pub async fn key_store_of(&self, key: &RowId, id: &str) -> Result<Held<KeyStore>> {
        self.open_key_store(&rows::row(Kind::KeyStore, &key.region, &key.account, id)).await
    }

    async fn open_key_store(&self, row: &RowId) -> Result<Held<KeyStore>> {
        match self.app.store.row(row).await.map_err(from_store)? {
            Some(row) => self.app.registry.open(row, self.deadline).await,
            None => Err(Error::new(
                Exception::CustomKeyStoreNotFound,
                format!("Custom key store {} does not exist in this account and Region.", row.id),
            )),
        }
    }

    /// A registered cluster that an account may use.
    ///
    /// # Errors
    /// CloudHsmClusterNotFoundException.
    pub async fn registered_cluster(&self, account: &str, id: &str) -> Result<Held<RegisteredCluster>> {
        let row = rows::row(Kind::Cluster, self.region(), account, id);
        match self.app.store.row(&row).await.map_err(from_store)? {
            Some(row) => self.app.registry.open(row, self.deadline).await,
            None => Err(Error::new(
                Exception::CloudHsmClusterNotFound,
                format!("Cluster {id} is not registered for this account in this Region."),
            )),
        }
    }

    /// The cluster of a custom key store that is to be used now.
    ///
    /// # Errors
    /// CustomKeyStoreNotFoundException, CustomKeyStoreInvalidStateException.
    pub async fn connected_cluster(&mut self, id: &str) -> Result<Arc<Cluster>> {
        self.note("customKeyStoreId", id);
        let held = self.key_store(id).await?;
        self.app.key_stores.connected(id).ok_or_else(|| {
            Error::new(
                Exception::CustomKeyStoreInvalidState,
                format!(
                    "Custom key store {id} is {}: it must be CONNECTED for this.",
                    crate::wire::Text::text(held.value.state)
                ),
            )
        })
    }

    /// Whether a key may be used so now, in KMS's words.
    ///
    /// # Errors
    /// The exception of the state that the key is in.
    pub fn check(&self, stage: Stage, key: &LoadedKey) -> Result<()> {
        key::check(stage, key.held.value.state, &key.arn)?;
        match (stage, &key.held.value.custom_key_store_id) {
            (Stage::Use, Some(store)) if self.app.key_stores.connected(store).is_none() => {
                Err(unavailable(&key.arn))
            }
            _ => Ok(()),
        }
    }

    /// A key's KeyState: that of its row, but Unavailable while its custom key
    /// store is not connected.
    pub fn key_state(&self, key: &Key) -> KeyState {
        match (key.state, &key.custom_key_store_id) {
            (KeyState::Enabled | KeyState::Disabled, Some(store))
                if self.app.key_stores.connected(store).is_none() =>
            {
                KeyState::Unavailable
            }
            (state, _) => state,
        }
    }
}

fn unavailable(arn: &str) -> Error {
    Error::new(Exception::KmsInvalidState, format!("{arn} is unavailable."))
}
