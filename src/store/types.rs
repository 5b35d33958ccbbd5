//! What the store keeps: rows, and the events that explain their changes.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The kind of a row. A new kind of thing is a new variant, not a new table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A KMS key: metadata, policy, tags. Parent: its custom key store's id.
    /// Due: its deletion date.
    Key,
    /// One version of a key's material. Parent: the key's id.
    BackingKey,
    /// An alias. Parent: the id of the key it points to.
    Alias,
    /// A grant. Parent: the id of the key that it is for.
    Grant,
    /// A custom key store. Parent: its cluster's id.
    KeyStore,
    /// The name of a custom key store. Parent: the key store's id.
    KeyStoreName,
    /// A cluster of HSMs that was registered for custom key stores.
    Cluster,
    /// A wrapping key for an import, and its terms. Parent: the key's id. Due:
    /// when it is no longer valid.
    ImportParameters,
    /// What an HSM was asked to do that must be finished or undone.
    Intent,
    /// What the daemon keeps about itself: identity, wrapping keys.
    System,
    /// A trail: its settings, selectors, tags and whether it logs.
    Trail,
    /// How far a trail's delivery is. The id is the trail's.
    Delivery,
    /// A key that signs digests. The id is its fingerprint.
    DigestKey,
    /// How far a reader of the log is. The id is its name.
    Bookmark,
    /// An access key of the AWS protocol, in no Region. Parent: the ARN of its
    /// principal.
    AccessKey,
}

impl Kind {
    /// The kind of this text.
    pub fn parse(text: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Every kind.
    pub const ALL: [Kind; 15] = [
        Kind::Key,
        Kind::BackingKey,
        Kind::Alias,
        Kind::Grant,
        Kind::KeyStore,
        Kind::KeyStoreName,
        Kind::Cluster,
        Kind::ImportParameters,
        Kind::Intent,
        Kind::System,
        Kind::Trail,
        Kind::Delivery,
        Kind::DigestKey,
        Kind::Bookmark,
        Kind::AccessKey,
    ];

    /// Whether its rows go by themselves, without an event: they answer nobody.
    pub fn is_passing(self) -> bool {
        matches!(self, Kind::Intent | Kind::ImportParameters)
    }

    /// The text in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Key => "key",
            Kind::BackingKey => "backing-key",
            Kind::Alias => "alias",
            Kind::Grant => "grant",
            Kind::KeyStore => "key-store",
            Kind::KeyStoreName => "key-store-name",
            Kind::Cluster => "cluster",
            Kind::ImportParameters => "import-parameters",
            Kind::Intent => "intent",
            Kind::System => "system",
            Kind::Trail => "trail",
            Kind::Delivery => "delivery",
            Kind::DigestKey => "digest-key",
            Kind::Bookmark => "bookmark",
            Kind::AccessKey => "access-key",
        }
    }
}

/// The name of a row. Region and account are part of every name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowId {
    /// What it is.
    pub kind: Kind,
    /// `us-east-1`; empty for [`Kind::System`] and [`Kind::AccessKey`].
    pub region: String,
    /// Twelve digits; empty for [`Kind::System`].
    pub account: String,
    /// Unique in kind, Region and account.
    pub id: String,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.kind.as_str(), self.region, self.account, self.id)
    }
}

/// A row as it is in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub id: RowId,
    /// The row that it belongs to (a key's id), indexed.
    pub parent: Option<String>,
    /// When something must happen to it, milliseconds since the epoch, indexed.
    pub due_ms: Option<i64>,
    /// 1 when it was made, one more at each change.
    pub version: u64,
    /// Its contents: JSON.
    pub body: String,
    /// HMAC-SHA-256 by an HSM key over [`Row::mac_input`].
    pub mac: Vec<u8>,
}

impl Row {
    /// The bytes that the MAC covers: every field, each behind its length, so
    /// that no two rows give the same bytes.
    pub fn mac_input(&self) -> Vec<u8> {
        let due = self.due_ms.map(|due| due.to_string());
        let version = self.version.to_string();
        let fields = [
            Some("strongroom row 1"),
            Some(self.id.kind.as_str()),
            Some(&self.id.region),
            Some(&self.id.account),
            Some(&self.id.id),
            self.parent.as_deref(),
            due.as_deref(),
            Some(&version),
            Some(&self.body),
        ];
        let mut bytes = Vec::with_capacity(self.body.len() + 160);
        for field in fields {
            match field {
                Some(text) => {
                    bytes.push(1);
                    bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
                    bytes.extend_from_slice(text.as_bytes());
                }
                None => bytes.push(0),
            }
        }
        bytes
    }
}

/// One change of a commit. `expected` is the version that the change was
/// computed from, 0 for a row that must not be there yet; another version in
/// the database fails the commit with [`StoreError::Conflict`].
#[derive(Debug, Clone)]
pub enum Change {
    /// Insert or replace; `row.version` is `expected + 1`.
    Put(Row),
    /// Remove. Its bytes are overwritten in the database's pages.
    Delete {
        /// The row.
        id: RowId,
        /// Its version.
        expected: u64,
    },
}

/// An event to be appended.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// CloudTrail's eventID.
    pub id: String,
    /// eventTime in milliseconds since the epoch.
    pub time_ms: i64,
    /// The CloudTrail record as JSON, as every reader gets it.
    pub record: String,
}

/// What becomes durable in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Changes of rows, all or none.
    pub changes: Vec<Change>,
    /// The events that explain them. None only for a lease of use counts and
    /// an intent, which answer nobody.
    pub events: Vec<NewEvent>,
}

/// Where an event stands: each daemon is the only writer of its own sequence.
/// The order of positions is that of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The daemon that wrote it.
    pub writer: u32,
    /// 1, 2, 3, …
    pub sequence: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.writer, self.sequence)
    }
}

/// An event as it is in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Where it stands.
    pub position: Position,
    /// eventID.
    pub id: String,
    /// eventTime in milliseconds since the epoch.
    pub time_ms: i64,
    /// The CloudTrail record.
    pub record: std::sync::Arc<str>,
    /// The changes that it explains: JSON list of [`Effect`].
    pub effects: String,
    /// SHA-256 over the previous hash and every field above.
    pub hash: [u8; 32],
}

/// The hash before the first event of a log.
pub const GENESIS_HASH: [u8; 32] = [0; 32];

impl StoredEvent {
    /// What [`StoredEvent::hash`] must be behind an event whose hash is `previous`.
    pub fn expected_hash(&self, previous: &[u8; 32]) -> [u8; 32] {
        chain_hash(previous, self.position, &self.id, self.time_ms, &self.record, &self.effects)
    }
}

/// SHA-256 over every field, each behind its length (8 bytes, big-endian), so
/// that no two events give the same bytes; numbers are big-endian.
pub(crate) fn chain_hash(
    previous: &[u8; 32],
    position: Position,
    id: &str,
    time_ms: i64,
    record: &str,
    effects: &str,
) -> [u8; 32] {
    let fields: [&[u8]; 8] = [
        b"strongroom event 1",
        previous,
        &position.writer.to_be_bytes(),
        &position.sequence.to_be_bytes(),
        id.as_bytes(),
        &time_ms.to_be_bytes(),
        record.as_bytes(),
        effects.as_bytes(),
    ];
    let mut hash = Sha256::new();
    for field in fields {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

/// Somebody who appends to the log: a daemon on its database, and after a
/// restore another one, so that a position never names two events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Its number, the first part of its events' positions.
    pub id: u32,
    /// The event after which its log goes on; None for a log of its own
    /// beginning, behind [`GENESIS_HASH`].
    pub follows: Option<Position>,
    /// When the database was restored before it began, milliseconds since the epoch.
    pub restored_ms: Option<i64>,
}

/// A row's new version as the event log remembers it, so that an older version
/// of a row that was put back is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// The row.
    pub row: RowId,
    /// Its version after the change; 0 where it was removed.
    pub version: u64,
    /// Its MAC in hex; empty where it was removed.
    pub mac: String,
}

/// What an event said of a row, kept when the event is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Where the event stood.
    pub position: Position,
    /// What it said.
    pub effect: Effect,
}

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A row has another version than the change was computed from.
    #[error("{0} was changed meanwhile")]
    Conflict(RowId),
    /// The disk has less free space than the configured mark.
    #[error("too little free space for new work")]
    Full,
    /// The database failed.
    #[error("{0}")]
    Failed(String),
}

/// A signature of the hash chain's head by a key in the HSM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHead {
    /// The event whose hash is signed.
    pub position: Position,
    /// Its hash.
    pub hash: [u8; 32],
    /// When, milliseconds since the epoch.
    pub time_ms: i64,
    /// ECDSA P-256 with SHA-256, DER, over [`SignedHead::message`].
    pub signature: Vec<u8>,
}

impl SignedHead {
    /// What is signed: one line of text that a person can make again.
    pub fn message(&self) -> String {
        format!(
            "strongroom head 1\n{}\n{}\n{}\n{}",
            self.position.writer,
            self.position.sequence,
            hex::encode(self.hash),
            self.time_ms
        )
    }
}
