//! The access keys of the configuration that are in force; and one, whatever it
//! comes from, ready to check signatures with.

use std::collections::HashMap;
use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::identity::Identity;
use secrecy::{ExposeSecret as _, SecretString};

use crate::caller::Principal;
use crate::config::{AccountId, Directory};

/// The secret of every account's root with `--emulator-credentials`.
const EMULATOR_SECRET: &str = "test";

/// Access keys by their ids.
pub struct AccessKeys {
    by_id: HashMap<String, AccessKey>,
    emulator: bool,
}

/// One access key.
#[derive(Clone)]
pub struct AccessKey {
    /// Whose it is.
    pub principal: Arc<Principal>,
    /// What the signer takes.
    pub identity: Identity,
    /// Whether a session token that comes with it is not looked at.
    pub any_session: bool,
}

impl AccessKey {
    /// A principal's own.
    pub fn new(principal: Arc<Principal>, id: &str, secret: &SecretString) -> Self {
        AccessKey { principal, identity: identity(id, secret.expose_secret()), any_session: false }
    }
}

impl AccessKeys {
    /// Those of the configuration. As an emulator, twelve digits are an access
    /// key of that account's root besides.
    pub fn new(directory: &Directory, emulator: bool) -> Self {
        let key = |(id, key): (&String, &crate::config::AccessKey)| {
            (id.clone(), AccessKey::new(key.principal.clone(), id, &key.secret))
        };
        AccessKeys { by_id: directory.access_keys().map(key).collect(), emulator }
    }

    /// The access key of an id.
    pub fn get(&self, id: &str) -> Option<AccessKey> {
        self.by_id.get(id).cloned().or_else(|| self.emulated(id))
    }

    fn emulated(&self, id: &str) -> Option<AccessKey> {
        if !self.emulator || AccountId::try_from(id.to_owned()).is_err() {
            return None;
        }
        let principal = Arc::new(Principal::root(id));
        Some(AccessKey { principal, identity: identity(id, EMULATOR_SECRET), any_session: true })
    }
}

fn identity(id: &str, secret: &str) -> Identity {
    Credentials::new(id, secret, None, None, "strongroom").into()
}
