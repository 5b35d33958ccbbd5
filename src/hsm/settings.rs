//! What the configuration says about HSMs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A PKCS#11 library, `[modules.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleSettings {
    /// The shared library.
    pub library: PathBuf,
    /// Environment variables that the library reads when it is initialised
    /// (`SOFTHSM2_CONF`).
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// A token that is a member of the cluster; a row in the store, which refers
/// to a module and a PIN source of the configuration by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberSettings {
    /// A name of `[modules]`.
    pub module: String,
    /// The token's RFC 7512 URI: `pkcs11:token=LABEL;serial=SERIAL`.
    pub token: String,
    /// A name of `[pins]`: the crypto user's PIN.
    pub pin: String,
}

/// How a cluster keeps its keys; of its row in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRules {
    /// Whether every key is a token object, as in a custom key store; else only
    /// those that cannot be wrapped.
    pub resident: bool,
    /// Members that a token object must be on before its key is used.
    pub required_copies: u16,
    /// Whether a key that cannot be brought to another member may be made all
    /// the same.
    pub allow_single_copy: bool,
    /// Whether the HSMs bring keys to each other themselves (CloudHSM, Luna
    /// HA): then one slot is the whole cluster.
    pub replicates_itself: bool,
}

impl KeyRules {
    /// Those of the default key store: keys are wrapped, and a kind that cannot
    /// be is wherever it was made.
    pub const DEFAULT: KeyRules =
        KeyRules { resident: false, required_copies: 1, allow_single_copy: true, replicates_itself: false };
}

/// Limits of the HSM layer, `[hsm]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSettings {
    /// Threads, each with a session of its own, per member; 2 suit SoftHSM2,
    /// 16 to 32 a network HSM.
    pub session_threads: u16,
    /// Calls that may wait for a session, per member.
    pub queue_capacity: u32,
    /// Unwrapped keys held as session objects, per member.
    pub key_cache_capacity: u32,
    /// Longest that a PKCS#11 call may take before its thread is given up.
    pub call_timeout_ms: u64,
    /// Given-up threads after which a member is taken out.
    pub hung_calls_max: u16,
    /// How long a call waits for one member before another is asked too; ten
    /// times as long where it makes a key.
    pub failover_timeout_ms: u64,
    /// How often a member is probed.
    pub probe_interval_ms: u64,
    /// Least time between two initialisations of a module.
    pub reinitialize_interval_ms: u64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        ClusterSettings {
            session_threads: 2,
            queue_capacity: 1024,
            key_cache_capacity: 10_000,
            call_timeout_ms: 10_000,
            hung_calls_max: 4,
            failover_timeout_ms: 1_000,
            probe_interval_ms: 1_000,
            reinitialize_interval_ms: 5_000,
        }
    }
}
