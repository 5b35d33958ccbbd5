//! The PKCS#11 libraries of the configuration, each loaded when it is first
//! used, and shared by every cluster that has a token of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::module::Module;
use super::{ClusterSettings, HsmError, ModuleSettings};

/// The configured modules by name.
pub struct Modules {
    settings: BTreeMap<String, ModuleSettings>,
    limits: ClusterSettings,
    loaded: Mutex<BTreeMap<String, Arc<Module>>>,
}

impl Modules {
    /// Loads nothing yet.
    pub fn new(settings: BTreeMap<String, ModuleSettings>, limits: ClusterSettings) -> Arc<Modules> {
        Arc::new(Modules { settings, limits, loaded: Mutex::default() })
    }

    /// The limits that every cluster keeps.
    pub fn limits(&self) -> &ClusterSettings {
        &self.limits
    }

    /// The names of the modules.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.keys().map(String::as_str)
    }

    /// Whether the configuration has a module of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.settings.contains_key(name)
    }

    /// A module by its name; the first call loads its library.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Module>, HsmError> {
        let mut loaded = self.loaded.lock();
        if let Some(module) = loaded.get(name) {
            return Ok(module.clone());
        }
        let settings = self.settings.get(name).ok_or_else(|| {
            HsmError::Unavailable(format!("the module {name:?} is not in the configuration"))
        })?;
        let module = Arc::new(Module::load(name, settings, &self.limits)?);
        loaded.insert(name.to_owned(), module.clone());
        Ok(module)
    }

    /// Finalises every module, after the clusters were shut down. Blocks, at
    /// most for `call_timeout_ms` per module where a call hangs in it.
    pub fn finalise(&self) {
        let loaded = std::mem::take(&mut *self.loaded.lock());
        loaded.values().for_each(|module| module.finalise());
    }
}
