//! The rows of custom key stores and of the clusters that they are made of.

use serde::{Deserialize, Serialize};

use crate::hsm::{ClusterIdentity, KeyRules};
use crate::proto::kms::{ConnectionErrorCodeType, ConnectionStateType};
use crate::registry::Stored;
use crate::sealed::Sealed;
use crate::store::{Kind, RowId};
use crate::wire::{self, Text as _};

/// A custom key store. Its Region, account and id (`cks-…`) are the row's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyStore {
    /// CustomKeyStoreName.
    pub name: String,
    /// CloudHsmClusterId.
    pub cluster: String,
    /// TrustAnchorCertificate.
    pub trust_anchor: String,
    /// The crypto user's PIN.
    pub password: Sealed,
    /// ConnectionState.
    #[serde(with = "wire::text")]
    pub state: ConnectionStateType,
    /// ConnectionErrorCode, while it is FAILED.
    error: Option<String>,
    /// CreationDate, milliseconds since the epoch.
    pub created_ms: i64,
}

impl KeyStore {
    /// A key store that was never connected.
    pub fn new(name: &str, cluster: &str, trust_anchor: &str, password: Sealed, created_ms: i64) -> Self {
        KeyStore {
            name: name.to_owned(),
            cluster: cluster.to_owned(),
            trust_anchor: trust_anchor.to_owned(),
            password,
            state: ConnectionStateType::Disconnected,
            error: None,
            created_ms,
        }
    }

    /// ConnectionErrorCode.
    pub fn error(&self) -> Option<ConnectionErrorCodeType> {
        self.error.as_deref().and_then(ConnectionErrorCodeType::from_text)
    }

    /// The same in another state.
    pub fn in_state(&self, state: ConnectionStateType, error: Option<ConnectionErrorCodeType>) -> Self {
        KeyStore { state, error: error.map(|code| code.text().to_owned()), ..self.clone() }
    }
}

impl Stored for KeyStore {
    const KIND: Kind = Kind::KeyStore;

    fn parent(&self) -> Option<String> {
        Some(self.cluster.clone())
    }
}

/// What keeps the names of an account's key stores apart: the row's id is the
/// name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyStoreName {
    /// CustomKeyStoreId.
    pub key_store: String,
}

impl Stored for KeyStoreName {
    const KIND: Kind = Kind::KeyStoreName;

    fn parent(&self) -> Option<String> {
        Some(self.key_store.clone())
    }
}

/// A cluster that the operators registered. Its Region and id (`cluster-…`) are
/// the row's; its account is the one whose key stores may use it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegisteredCluster {
    /// For people.
    pub name: String,
    /// Its tokens.
    pub members: Vec<RegisteredMember>,
    /// The URIs of those that an operator took out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maintenance: Vec<String>,
    /// How it keeps its keys.
    pub rules: KeyRules,
    /// The certificate, PEM, that CreateCustomKeyStore must show.
    pub trust_anchor: String,
    /// What makes a token a member; none until its ceremony.
    pub identity: Option<ClusterIdentity>,
    /// When a ceremony began whose end is not known, milliseconds since the epoch.
    pub ceremony_ms: Option<i64>,
    /// The custom key store that uses it.
    pub key_store: Option<String>,
    /// When it was registered, milliseconds since the epoch.
    pub created_ms: i64,
    /// Whether it was deleted: it stays known, so that a copy of it can be
    /// registered.
    pub deleted: bool,
}

/// A token of a [`RegisteredCluster`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredMember {
    /// A name of `[modules]`.
    pub module: String,
    /// RFC 7512 URI.
    pub token: String,
}

impl RegisteredCluster {
    /// Whether keys can be made in it.
    pub fn is_active(&self) -> bool {
        self.identity.is_some() && !self.deleted
    }

    /// Whether it shares the wrapping key of another: one's tokens are copies
    /// of the other's.
    pub fn is_related(&self, other: &RegisteredCluster) -> bool {
        match (&self.identity, &other.identity) {
            (Some(one), Some(other)) => one.wrapping_key == other.wrapping_key,
            _ => false,
        }
    }

    /// Whether it has as many members as its keys need.
    pub fn is_large_enough(&self) -> bool {
        self.members.len() >= usize::from(self.rules.required_copies)
    }
}

impl Stored for RegisteredCluster {
    const KIND: Kind = Kind::Cluster;

    fn parent(&self) -> Option<String> {
        self.key_store.clone()
    }
}

/// The row of a key store, its name or its cluster.
pub fn row(kind: Kind, region: &str, account: &str, id: &str) -> RowId {
    RowId { kind, region: region.to_owned(), account: account.to_owned(), id: id.to_owned() }
}
