//! The rows of trails, as JSON in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Chains;
use super::log_file::Pending;
use super::selector::{InsightSelector, Selectors};
use crate::audit::follow::Cursor;
use crate::error::Result;
use crate::hsm::{BackingId, Blob};
use crate::key::StoredHome;
use crate::registry::{Stored, from_store};
use crate::store::{Kind, Position, Store};

/// Events that are read at once to find that of StopLogging: only those of
/// calls that were under way beside it are before it.
const STOP_EVENTS: u32 = 100;

/// A trail. Its home Region, account and name are the row's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trail {
    /// S3BucketName.
    pub bucket: String,
    /// S3KeyPrefix.
    pub prefix: Option<String>,
    /// IncludeGlobalServiceEvents.
    pub global_events: bool,
    /// IsMultiRegionTrail.
    pub multi_region: bool,
    /// LogFileValidationEnabled.
    pub validation: bool,
    /// KmsKeyId, for SSE-KMS.
    pub kms_key_id: Option<String>,
    /// IsOrganizationTrail.
    pub organization: bool,
    /// Which events it delivers.
    pub selectors: Selectors,
    /// Which Insights are made and delivered.
    pub insights: Vec<InsightSelector>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Whether it logs.
    pub logging: Logging,
}

impl Stored for Trail {
    const KIND: Kind = Kind::Trail;
}

/// When a trail logged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logging {
    /// Whether it does now.
    pub on: bool,
    /// The last StartLogging, milliseconds since the epoch.
    pub started_ms: Option<i64>,
    /// The last StopLogging.
    pub stopped_ms: Option<i64>,
    /// When it did not, for events that are not yet delivered; the oldest first.
    pub pauses: Vec<Pause>,
}

/// A time without logging: between two places in the log, because clocks are
/// set, and a millisecond has many events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The last event that is logged, or one before it that was the log's last
    /// when StopLogging ran.
    pub after: Position,
    /// eventID of StopLogging, the last event that is logged.
    pub stop: String,
    /// The log's last event when StartLogging ran, the last that is not logged;
    /// none while it lasts.
    pub until: Option<Position>,
}

impl Pause {
    /// Whether an event falls into it.
    pub fn contains(&self, position: Position) -> bool {
        self.after < position && self.until.is_none_or(|until| position <= until)
    }

    /// Whether nothing that is behind a cursor falls into it.
    pub fn is_over_before(&self, cursor: &Cursor) -> bool {
        self.until.is_some_and(|until| until <= cursor.of(until.writer))
    }

    /// Begins behind the event of StopLogging, as far as the log still has it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn behind_stop(mut self, store: &dyn Store) -> Result<Pause> {
        let mut last = self.after;
        loop {
            let events = store.follow(last, STOP_EVENTS).await.map_err(from_store)?;
            // Its beginning was removed, and what is left is behind it.
            let removed = events.first().is_some_and(|first| first.position.sequence != last.sequence + 1);
            let Some(end) = events.last().filter(|_| !removed) else { return Ok(self) };
            last = end.position;
            if let Some(stop) = events.iter().find(|event| event.id == self.stop) {
                self.after = stop.position;
                return Ok(self);
            }
        }
    }
}

/// How far a trail's delivery is. It moves without events, which would have to
/// be delivered themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The last events that are in delivered files, or in none.
    pub cursor: Cursor,
    /// Files that are being written.
    pub pending: Option<Pending>,
    /// When the last range of events was taken, milliseconds since the epoch.
    pub taken_ms: i64,
    /// When the last file was delivered.
    pub delivered_ms: Option<i64>,
    /// The digests; none where the trail has no validation.
    pub chains: Option<Chains>,
    /// When the last digest was delivered.
    pub digested_ms: Option<i64>,
}

impl Stored for Delivery {
    const KIND: Kind = Kind::Delivery;
}

/// An RSA key that signs digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestKey {
    /// The HSM's name of it.
    pub id: BackingId,
    /// Where it lives.
    pub home: StoredHome,
    /// DER RSAPublicKey (PKCS #1).
    pub public_key: Blob,
    /// From when it signs, milliseconds since the epoch.
    pub from_ms: i64,
    /// Until when.
    pub until_ms: i64,
}

impl Stored for DigestKey {
    const KIND: Kind = Kind::DigestKey;
}
