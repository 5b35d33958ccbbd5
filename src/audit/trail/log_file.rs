//! Log files: a range of the log, by account and Region, as CloudTrail's
//! `{"Records":[…]}` in one gzip member.

use std::collections::BTreeMap;
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::name::{INSIGHTS, LOGS, Place};
use super::rows::{Pause, Trail};
use super::selector::{self, InsightSelector, Seen, Selectors};
use crate::audit::follow::Cursor;
use crate::error::{Error, Result};
use crate::registry::from_store;
use crate::store::{Position, RowId, Store};

/// Events that are read at once.
const READ_EVENTS: u32 = 500;
/// Events that one range takes at most, selected or not.
const RANGE_EVENTS_MAX: usize = 200_000;
/// Log files are as small as with the usual level 6 (a nineteenth), in half the
/// time.
const LEVEL: Compression = Compression::new(3);

/// Files that are being written. Whatever dies meanwhile, the same files are
/// made again from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The last events of the range.
    pub until: Cursor,
    /// Which of them are in the files.
    pub scope: Scope,
    /// S3BucketName at the time.
    pub bucket: String,
    /// KmsKeyId at the time.
    pub kms_key_id: Option<String>,
    /// The key of each account's and Region's file.
    pub keys: BTreeMap<Owner, String>,
}

/// What a file's events have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Owner {
    /// recipientAccountId.
    pub account: String,
    /// awsRegion.
    pub region: String,
    /// Whether they are Insights, whose files are apart.
    pub insights: bool,
}

impl Owner {
    /// Whose events they are, of whatever category: one digest lists all files.
    pub fn of_all(self) -> Owner {
        Owner { insights: false, ..self }
    }
}

/// What a file of Insights has behind its owner.
const INSIGHTS_MARK: &str = "/insights";

impl From<Owner> for String {
    fn from(owner: Owner) -> String {
        let mark = if owner.insights { INSIGHTS_MARK } else { "" };
        format!("{}/{}{mark}", owner.account, owner.region)
    }
}

impl TryFrom<String> for Owner {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (account, region) = text.split_once('/').ok_or("ACCOUNT/REGION is expected")?;
        let (region, insights) = match region.strip_suffix(INSIGHTS_MARK) {
            Some(region) => (region, true),
            None => (region, false),
        };
        Ok(Owner { account: account.to_owned(), region: region.to_owned(), insights })
    }
}

/// Which events a trail delivers, as it was when a range was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Events of this account; of all where there is none.
    pub account: Option<String>,
    /// Events of this Region; of all where there is none.
    pub region: Option<String>,
    /// Its selectors.
    pub selectors: Selectors,
    /// Those of Insights.
    pub insights: Vec<InsightSelector>,
    /// When it did not log.
    pub pauses: Vec<Pause>,
}

impl Scope {
    /// What a trail delivers now of what is behind a cursor.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn of(store: &dyn Store, id: &RowId, trail: &Trail, from: &Cursor) -> Result<Scope> {
        let mut pauses = Vec::new();
        for pause in trail.logging.pauses.iter().filter(|pause| !pause.is_over_before(from)) {
            pauses.push(pause.clone().behind_stop(store).await?);
        }
        Ok(Scope {
            account: (!trail.organization).then(|| id.account.clone()),
            region: (!trail.multi_region).then(|| id.region.clone()),
            selectors: trail.selectors.clone(),
            insights: trail.insights.clone(),
            pauses,
        })
    }

    /// Whose file an event is in; none where it is in no file.
    fn owner(&self, position: Position, record: &Seen<'_>) -> Option<Owner> {
        let insights = record.is_insight();
        let (account, region) = (&record.recipient_account_id, &record.aws_region);
        let wanted = || match insights {
            true => selector::select_insight(&self.insights, record),
            false => self.selectors.select(record),
        };
        let selected = self.account.as_ref().is_none_or(|own| own == account)
            && self.region.as_ref().is_none_or(|own| own == region)
            && !self.pauses.iter().any(|pause| pause.contains(position))
            && wanted();
        selected.then(|| Owner { account: account.to_string(), region: region.to_string(), insights })
    }
}

/// The events of one file.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// `{"Records":[` and the records, without the end.
    body: String,
    /// The earliest and the latest eventTime, milliseconds since the epoch.
    times_ms: Option<(i64, i64)>,
}

/// A file that is ready to be put.
pub struct File {
    /// One gzip member.
    pub gzip: Bytes,
    /// SHA-256 in hex over what is in it.
    pub sha256: String,
    /// The earliest and the latest eventTime.
    pub times_ms: (i64, i64),
}

impl Records {
    fn add(&mut self, time_ms: i64, record: &str) {
        self.body.push_str(if self.body.is_empty() { "{\"Records\":[" } else { "," });
        self.body.push_str(record);
        let (first, last) = self.times_ms.unwrap_or((time_ms, time_ms));
        self.times_ms = Some((first.min(time_ms), last.max(time_ms)));
    }

    /// Compresses it: some CPU, so not on the runtime's own threads.
    ///
    /// # Errors
    /// KMSInternalException where the host has no thread for it.
    pub async fn file(mut self) -> Result<File> {
        self.body.push_str("]}");
        let times_ms = self.times_ms.unwrap_or_default();
        let work = move || {
            let sha256 = hex::encode(Sha256::digest(self.body.as_bytes()));
            gzip(self.body.as_bytes()).map(|gzip| File { gzip, sha256, times_ms })
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal(error.to_string()))?
    }
}

/// One gzip member, the same for the same bytes.
///
/// # Errors
/// KMSInternalException, where memory fails.
pub fn gzip(bytes: &[u8]) -> Result<Bytes> {
    let failed = |error: std::io::Error| Error::internal(format!("gzip: {error}"));
    let mut encoder = GzEncoder::new(Vec::new(), LEVEL);
    encoder.write_all(bytes).map_err(failed)?;
    encoder.finish().map(Bytes::from).map_err(failed)
}

/// A range of the log that was read.
#[derive(Debug, Default)]
pub struct Range {
    /// Behind its last events.
    pub until: Cursor,
    /// What is to be delivered of it.
    pub records: BTreeMap<Owner, Records>,
    /// Whether it ended by its size rather than where it was to end.
    pub is_full: bool,
}

/// Reads what is behind a cursor and not behind another one, up to a size.
///
/// # Errors
/// When the store fails, or an event is no record.
pub async fn read(
    store: &dyn Store,
    from: &Cursor,
    until: &Cursor,
    scope: &Scope,
    bytes_max: u64,
) -> Result<Range> {
    let mut range = Range { until: from.clone(), ..Range::default() };
    let (mut events_read, mut bytes) = (0, 0);
    for writer in until.writers() {
        let last = until.of(writer);
        loop {
            let after = range.until.of(writer);
            if last <= after {
                break;
            }
            let events = store.follow(after, READ_EVENTS).await.map_err(from_store)?;
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.position > last {
                    break;
                }
                if bytes >= bytes_max || events_read >= RANGE_EVENTS_MAX {
                    range.is_full = true;
                    return Ok(range);
                }
                if let Some(owner) = scope.owner(event.position, &Seen::read(&event.record)?) {
                    bytes += event.record.len() as u64;
                    range.records.entry(owner).or_default().add(event.time_ms, &event.record);
                }
                events_read += 1;
                range.until.pass(event.position);
            }
        }
    }
    Ok(range)
}

/// Names the files of a range.
///
/// # Errors
/// KMSInternalException where the host has no random numbers.
pub fn pending(
    range: &Range,
    scope: Scope,
    trail: &Trail,
    organization: Option<&str>,
    now_ms: i64,
) -> Result<Pending> {
    let mut keys = BTreeMap::new();
    for owner in range.records.keys() {
        let prefix = trail.prefix.as_deref();
        let place = Place { prefix, organization, account: &owner.account, region: &owner.region };
        let kind = if owner.insights { INSIGHTS } else { LOGS };
        keys.insert(owner.clone(), place.log_file(kind, now_ms)?);
    }
    let (bucket, kms_key_id) = (trail.bucket.clone(), trail.kms_key_id.clone());
    Ok(Pending { until: range.until.clone(), scope, bucket, kms_key_id, keys })
}
