//! Which cluster of HSMs holds a key: the default cluster of its Region, or
//! that of its custom key store while it is connected.
//!
//! The daemon's own keys (row MACs, the log's head) are those of the
//! installation's cluster, which is the default one of a Region too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::error::{Error, Exception, Result};
use crate::hsm::{Cluster, Modules};
use crate::key::{self, Key, Stage};
use crate::operation::Call;
use crate::proto::kms::KeyState;
use crate::registry::LoadedKey;

/// The clusters that are in use.
pub struct KeyStores {
    modules: Arc<Modules>,
    installation: Arc<Cluster>,
    /// By Region.
    defaults: BTreeMap<String, Arc<Cluster>>,
    /// By CustomKeyStoreId, which no two Regions share.
    connected: ArcSwap<HashMap<String, Arc<Cluster>>>,
}

impl KeyStores {
    /// The default clusters, by Region, and among them the installation's.
    pub fn new(
        modules: Arc<Modules>,
        installation: Arc<Cluster>,
        defaults: BTreeMap<String, Arc<Cluster>>,
    ) -> KeyStores {
        KeyStores { modules, installation, defaults, connected: ArcSwap::default() }
    }

    /// The cluster of the daemon's own keys.
    pub fn installation(&self) -> &Arc<Cluster> {
        &self.installation
    }

    /// The default cluster of a Region; none where this daemon does not serve it.
    pub fn default_of(&self, region: &str) -> Option<&Arc<Cluster>> {
        self.defaults.get(region)
    }

    /// The cluster of a custom key store; none while it is not connected.
    pub fn connected(&self, custom_key_store_id: &str) -> Option<Arc<Cluster>> {
        self.connected.load().get(custom_key_store_id).cloned()
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
        let mut clusters = vec![self.installation.clone()];
        let others = self.defaults.values().filter(|cluster| !Arc::ptr_eq(cluster, &self.installation));
        clusters.extend(others.cloned());
        clusters.extend(self.connected.load().values().cloned());
        clusters
    }

    /// Ends them all, the installation's last: what the others still do is
    /// recorded with its keys.
    pub async fn shutdown(&self) {
        for cluster in self.clusters().iter().rev() {
            cluster.shutdown().await;
        }
        let modules = self.modules.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || modules.finalise()).await {
            tracing::warn!("the HSM modules were not ended well: {error}");
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
