//! Rows with their types, cached, and believed only when their MAC fits.
//!
//! The store keeps rows as text. Who can write the database could write a row;
//! only the HSM can make its MAC. So a row becomes a [`Held`] value here and
//! nowhere else, after its MAC was checked, and a value becomes a row through
//! [`Registry::seal`].

mod grants;

use std::collections::HashSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use moka::sync::Cache;
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::access_keys::LoadedAccessKey;
use crate::error::{Error, Exception, Result};
use crate::hsm::{BackingId, Cluster, Hash, HsmError, KeyRef};
use crate::key::{Alias, BackingKey, Grant, ImportParameters, Key, REGIONS_MAX, StoredHome, grant};
use crate::policy::Policy;
use crate::proto::kms::KeyState;
use crate::store::{Change, Commit, Kind, Row, RowId, Store, StoreError};

/// Rows whose MACs are checked at the same time.
const CHECKS_AT_ONCE: usize = 16;
/// How often a row is read while others change, before what was read is used
/// without being kept.
const READS_MAX: u32 = 8;
/// Uses of a backing key that one lease takes.
pub const LEASE_USES: u64 = 1 << 16;
/// Uses that a restored key is moved ahead by: what may have been leased after
/// the backup was made.
pub const RESTORE_USES: u64 = 1 << 24;
/// Uses of one AES-GCM key with random IVs (NIST SP 800-38D, 8.3): 2^32.
pub const USES_MAX: u64 = 1 << 32;

/// Most uses of a version of a key's material in one Region. A multi-Region
/// key's is in several, none of which knows of the others' uses, so each has a
/// part.
pub fn uses_max(key_id: &str) -> u64 {
    match key_id.starts_with("mrk-") {
        true => USES_MAX / REGIONS_MAX as u64,
        false => USES_MAX,
    }
}

/// From here on an operator is told: three quarters.
pub fn uses_warning(key_id: &str) -> u64 {
    uses_max(key_id) / 4 * 3
}

/// A value that a row can hold.
pub trait Stored: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The kind of its rows.
    const KIND: Kind;

    /// The row that it belongs to.
    fn parent(&self) -> Option<String> {
        None
    }

    /// When something must happen to it, milliseconds since the epoch.
    fn due_ms(&self) -> Option<i64> {
        None
    }
}

impl Stored for Key {
    const KIND: Kind = Kind::Key;

    fn parent(&self) -> Option<String> {
        self.custom_key_store_id.clone()
    }

    /// Its deletion, or its rotation: a key that is disabled is not rotated
    /// until it is enabled again.
    fn due_ms(&self) -> Option<i64> {
        match self.state {
            // A replica gets what its primary key's rotation makes.
            KeyState::Enabled => {
                self.rotation.filter(|_| !self.is_replica()).map(|rotation| rotation.next_ms)
            }
            _ => self.deletion.and_then(|deletion| deletion.due_ms),
        }
    }
}

/// A backing key as a row: with the key it belongs to.
impl Stored for BackingKey {
    const KIND: Kind = Kind::BackingKey;

    fn parent(&self) -> Option<String> {
        Some(self.key_id.clone())
    }

    /// Its expiration, while it is there.
    fn due_ms(&self) -> Option<i64> {
        self.imported.as_ref()?.valid_to_ms.filter(|_| self.home != StoredHome::Deleted)
    }
}

impl Stored for ImportParameters {
    const KIND: Kind = Kind::ImportParameters;

    fn parent(&self) -> Option<String> {
        Some(self.key_id.clone())
    }

    fn due_ms(&self) -> Option<i64> {
        Some(self.valid_to_ms)
    }
}

impl Stored for Alias {
    const KIND: Kind = Kind::Alias;

    fn parent(&self) -> Option<String> {
        Some(self.target.clone())
    }
}

impl Stored for Grant {
    const KIND: Kind = Kind::Grant;

    fn parent(&self) -> Option<String> {
        Some(self.key_id.clone())
    }
}

/// A value with the name and version of the row that it came from.
#[derive(Debug, Clone)]
pub struct Held<T> {
    /// The row.
    pub id: RowId,
    /// Its version.
    pub version: u64,
    /// What it holds.
    pub value: T,
}

/// A change that waits for its MAC.
#[derive(Debug, Clone)]
pub enum Draft {
    /// Insert or replace.
    Put(Row),
    /// Remove.
    Delete {
        /// The row.
        id: RowId,
        /// The version that it must have.
        expected: u64,
    },
}

impl Draft {
    /// A new row.
    pub fn insert<T: Stored>(id: RowId, value: &T) -> Result<Draft> {
        Self::put(id, 1, value)
    }

    /// A row's next version.
    pub fn replace<T: Stored>(held: &Held<impl Sized>, value: &T) -> Result<Draft> {
        Self::put(held.id.clone(), held.version + 1, value)
    }

    /// A row's removal.
    pub fn delete(held: &Held<impl Sized>) -> Draft {
        Draft::Delete { id: held.id.clone(), expected: held.version }
    }

    fn put<T: Stored>(id: RowId, version: u64, value: &T) -> Result<Draft> {
        let body =
            serde_json::to_string(value).map_err(|error| Error::internal(format!("row {id}: {error}")))?;
        Ok(Draft::Put(Row {
            parent: value.parent(),
            due_ms: value.due_ms(),
            id,
            version,
            body,
            mac: Vec::new(),
        }))
    }

    fn row_id(&self) -> &RowId {
        match self {
            Draft::Put(row) => &row.id,
            Draft::Delete { id, .. } => id,
        }
    }
}

pub use grants::LoadedGrant;

/// A KMS key, ready for use.
#[derive(Debug)]
pub struct LoadedKey {
    /// Its row.
    pub held: Held<Key>,
    /// Its ARN.
    pub arn: String,
    /// Its policy, compiled.
    pub policy: Policy,
}

/// A backing key, ready for use.
#[derive(Debug)]
pub struct LoadedBacking {
    /// What the HSM must know.
    pub key: KeyRef,
    /// DER SubjectPublicKeyInfo of a key pair.
    pub public_key: Option<Vec<u8>>,
    /// The KMS key's id.
    pub key_id: String,
    lease: tokio::sync::Mutex<Lease>,
}

#[derive(Debug)]
struct Lease {
    held: Held<BackingKey>,
    left: u64,
}

/// How many entries the caches keep.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    /// Keys, and as many backing keys, aliases and access keys.
    pub keys: u64,
}

/// Typed, checked, cached access to the store's rows.
pub struct Registry {
    store: Arc<dyn Store>,
    hsm: Arc<Cluster>,
    mac_key: KeyRef,
    keys: Cache<RowId, Arc<LoadedKey>>,
    backings: Cache<RowId, Arc<LoadedBacking>>,
    aliases: Cache<RowId, Arc<Held<Alias>>>,
    access_keys: Cache<RowId, Arc<LoadedAccessKey>>,
    /// By what their ids begin with: the grants of a key and a grantee, also
    /// where there are none.
    grants: Cache<RowId, Arc<Vec<Arc<LoadedGrant>>>>,
    /// Tokens whose MACs fitted, and their grants.
    tokens: Cache<String, RowId>,
    /// Counts the commits that changed cached rows. A row that was read before
    /// such a commit is not cached after it.
    generation: RwLock<u64>,
    /// Rows that the event log contradicts, whatever their MAC says.
    refused: RwLock<HashSet<RowId>>,
}

impl Registry {
    /// A registry over a store, whose rows are sealed by this key of the HSM.
    pub fn new(store: Arc<dyn Store>, hsm: Arc<Cluster>, mac_key: KeyRef, limits: CacheLimits) -> Self {
        Registry {
            store,
            hsm,
            mac_key,
            keys: Cache::new(limits.keys),
            backings: Cache::new(limits.keys),
            aliases: Cache::new(limits.keys),
            access_keys: Cache::new(limits.keys),
            grants: Cache::new(limits.keys),
            tokens: Cache::new(limits.keys),
            generation: RwLock::new(0),
            refused: RwLock::new(HashSet::new()),
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// A key by its id; none where there is none.
    pub async fn key(&self, id: &RowId, deadline: Instant) -> Result<Option<Arc<LoadedKey>>> {
        self.cached(&self.keys, id, deadline, load_key).await
    }

    /// A key by its id alone, in whatever account it is.
    pub async fn find_key(
        &self,
        region: &str,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<Arc<LoadedKey>>> {
        match self.store.find(Kind::Key, region, id).await.map_err(from_store)? {
            Some(row) => self.key(&row.id, deadline).await,
            None => Ok(None),
        }
    }

    /// An alias by its name.
    pub async fn alias(&self, id: &RowId, deadline: Instant) -> Result<Option<Arc<Held<Alias>>>> {
        self.cached(&self.aliases, id, deadline, |alias| Ok(Some(alias))).await
    }

    /// An access key by its id.
    pub async fn access_key(&self, id: &RowId, deadline: Instant) -> Result<Option<Arc<LoadedAccessKey>>> {
        self.cached(&self.access_keys, id, deadline, |key| Ok(Some(LoadedAccessKey::new(key)))).await
    }

    /// A version of a key's material; the key must be its row's parent. None
    /// too where it was imported and is deleted.
    pub async fn backing(
        &self,
        key: &RowId,
        id: BackingId,
        deadline: Instant,
    ) -> Result<Option<Arc<LoadedBacking>>> {
        let row = RowId { kind: Kind::BackingKey, id: id.to_string(), ..key.clone() };
        let loaded = self.cached(&self.backings, &row, deadline, load_backing).await?;
        Ok(loaded.filter(|backing| backing.key_id == key.id))
    }

    /// Rows of one kind in a Region and account, in the order of their ids.
    pub async fn page<T: Stored>(
        &self,
        region: &str,
        account: &str,
        parent: Option<&str>,
        after: Option<&str>,
        limit: u32,
        deadline: Instant,
    ) -> Result<Vec<Held<T>>> {
        let rows =
            self.store.rows(T::KIND, region, account, parent, after, limit).await.map_err(from_store)?;
        self.open_all(rows, deadline).await
    }

    /// How many rows of a kind there are in a Region and account.
    pub async fn count(&self, kind: Kind, region: &str, account: &str, parent: Option<&str>) -> Result<u64> {
        self.store.count(kind, region, account, parent).await.map_err(from_store)
    }

    /// Rows as values, if their MACs fit.
    pub async fn open_all<T: Stored>(&self, rows: Vec<Row>, deadline: Instant) -> Result<Vec<Held<T>>> {
        stream::iter(rows).map(|row| self.open(row, deadline)).buffered(CHECKS_AT_ONCE).try_collect().await
    }

    /// Every row of one kind that belongs to a key, in the order of their ids.
    pub async fn of_key<T: Stored>(&self, key: &RowId, deadline: Instant) -> Result<Vec<Held<T>>> {
        const PAGE: u32 = 100;
        let mut rows: Vec<Held<T>> = Vec::new();
        loop {
            let after = rows.last().map(|row| row.id.id.clone());
            let page: Vec<Held<T>> =
                self.page(&key.region, &key.account, Some(&key.id), after.as_deref(), PAGE, deadline).await?;
            let more = page.len() == PAGE as usize;
            rows.extend(page);
            if !more {
                return Ok(rows);
            }
        }
    }

    /// A row as a value, if its MAC fits.
    pub async fn open<T: Stored>(&self, row: Row, deadline: Instant) -> Result<Held<T>> {
        let mac = self.mac(&row, deadline).await?;
        if aws_lc_rs::constant_time::verify_slices_are_equal(&mac, &row.mac).is_err() {
            tracing::error!(row = %row.id, "a row's MAC does not fit: the database was changed from outside");
            return Err(tampered(&row.id));
        }
        if self.refused.read().contains(&row.id) {
            return Err(tampered(&row.id));
        }
        let value: T = serde_json::from_str(&row.body)
            .map_err(|error| Error::internal(format!("row {} cannot be read: {error}", row.id)))?;
        Ok(Held { id: row.id, version: row.version, value })
    }

    /// Believes a row no more, because the event log contradicts it: an older
    /// version with its own MAC, put back from outside.
    pub fn refuse(&self, id: &RowId) {
        tracing::error!(row = %id, "the event log contradicts a row: the database was changed from outside");
        self.refused.write().insert(id.clone());
        self.invalidate([id]);
    }

    /// Whether a row's MAC fits.
    pub async fn is_sealed(&self, row: &Row, deadline: Instant) -> Result<bool> {
        let mac = self.mac(row, deadline).await?;
        Ok(aws_lc_rs::constant_time::verify_slices_are_equal(&mac, &row.mac).is_ok())
    }

    /// Gives changes their MACs.
    pub async fn seal(&self, drafts: &[Draft], deadline: Instant) -> Result<Vec<Change>> {
        let mut changes = Vec::with_capacity(drafts.len());
        for draft in drafts {
            changes.push(match draft {
                Draft::Delete { id, expected } => Change::Delete { id: id.clone(), expected: *expected },
                Draft::Put(row) => {
                    let mac = self.mac(row, deadline).await?;
                    Change::Put(Row { mac, ..row.clone() })
                }
            });
        }
        Ok(changes)
    }

    /// Makes the next reader load these rows again; called after their commit,
    /// before its answer.
    pub fn forget(&self, drafts: &[Draft]) {
        if drafts.is_empty() {
            return;
        }
        self.invalidate(drafts.iter().map(Draft::row_id));
    }

    fn invalidate<'a>(&self, ids: impl IntoIterator<Item = &'a RowId>) {
        let mut generation = self.generation.write();
        *generation += 1;
        for id in ids {
            match id.kind {
                Kind::Key => self.keys.invalidate(id),
                Kind::BackingKey => self.backings.invalidate(id),
                Kind::Alias => self.aliases.invalidate(id),
                Kind::Grant => {
                    let group = grant::group_of(&id.id).unwrap_or_default().to_owned();
                    self.grants.invalidate(&RowId { id: group, ..id.clone() });
                }
                Kind::KeyStore
                | Kind::KeyStoreName
                | Kind::Cluster
                | Kind::ImportParameters
                | Kind::Intent
                | Kind::System
                | Kind::Trail
                | Kind::Delivery
                | Kind::DigestKey
                | Kind::Bookmark => (),
                Kind::AccessKey => self.access_keys.invalidate(id),
            }
        }
    }

    /// Takes one use of a backing key with a random IV out of its lease, and
    /// makes the next lease durable first where none is left.
    ///
    /// # Errors
    /// Those of the store and the HSM; nothing is taken then.
    pub async fn take_use(&self, backing: &LoadedBacking, deadline: Instant) -> Result<UseTaken> {
        let mut lease = backing.lease.lock().await;
        if lease.left > 0 {
            lease.left -= 1;
            return Ok(UseTaken::Granted);
        }
        let leased = lease.held.value.uses_leased + LEASE_USES;
        if leased > uses_max(&backing.key_id) {
            return Ok(UseTaken::Spent);
        }
        let mut value = lease.held.value.clone();
        let before = std::mem::replace(&mut value.uses_leased, leased);
        let drafts = [Draft::replace(&lease.held, &value)?];
        let changes = self.seal(&drafts, deadline).await?;
        self.store.commit(Commit { changes, events: Vec::new() }).await.map_err(|error| match error {
            // Another instance of this row was leased from meanwhile: load it again.
            StoreError::Conflict(_) => {
                self.forget(&drafts);
                conflict()
            }
            other => from_store(other),
        })?;
        lease.held = Held { id: lease.held.id.clone(), version: lease.held.version + 1, value };
        lease.left = LEASE_USES - 1;
        let warning = uses_warning(&backing.key_id);
        Ok(match before < warning && leased >= warning {
            true => UseTaken::Warned,
            false => UseTaken::Granted,
        })
    }

    /// Moves every backing key's use count ahead, after a restore. Returns how
    /// many there are.
    ///
    /// # Errors
    /// When a row cannot be sealed or stored: nothing may be served then.
    pub async fn skip_leases(&self) -> Result<u64> {
        const PAGE: u32 = 256;
        const PAGE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
        let (mut after, mut count) = (None, 0);
        loop {
            let deadline = Instant::now() + PAGE_TIMEOUT;
            let rows =
                self.store.all_rows(Kind::BackingKey, after.as_ref(), PAGE).await.map_err(from_store)?;
            let Some(last) = rows.last() else { return Ok(count) };
            after = Some(last.id.clone());
            let mut drafts = Vec::with_capacity(rows.len());
            for row in rows {
                let held: Held<BackingKey> = self.open(row, deadline).await?;
                let mut value = held.value.clone();
                value.uses_leased = (value.uses_leased + RESTORE_USES).min(uses_max(&value.key_id));
                drafts.push(Draft::replace(&held, &value)?);
            }
            count += drafts.len() as u64;
            let changes = self.seal(&drafts, deadline).await?;
            self.store.commit(Commit { changes, events: Vec::new() }).await.map_err(from_store)?;
            self.forget(&drafts);
        }
    }

    /// A MAC by the HSM over a text of our own: `label` names what it is for, so
    /// that it is never a row's.
    pub async fn tag(&self, label: &str, parts: &[&[u8]], deadline: Instant) -> Result<[u8; 32]> {
        let mut input = Zeroizing::new(label.as_bytes().to_vec());
        for part in parts {
            input.extend_from_slice(&(part.len() as u64).to_be_bytes());
            input.extend_from_slice(part);
        }
        let tag = self.hsm.mac(&self.mac_key, Hash::Sha256, &input, deadline).await.map_err(from_hsm)?;
        tag.try_into().map_err(|_| Error::internal("an HMAC of another length"))
    }

    async fn mac(&self, row: &Row, deadline: Instant) -> Result<Vec<u8>> {
        self.hsm.mac(&self.mac_key, Hash::Sha256, &row.mac_input(), deadline).await.map_err(from_hsm)
    }

    async fn cached<T: Stored, L: Send + Sync + 'static>(
        &self,
        cache: &Cache<RowId, Arc<L>>,
        id: &RowId,
        deadline: Instant,
        load: impl Fn(Held<T>) -> Result<Option<L>>,
    ) -> Result<Option<Arc<L>>> {
        let mut last = None;
        for _ in 0..READS_MAX {
            if let Some(loaded) = cache.get(id) {
                return Ok(Some(loaded));
            }
            let before = *self.generation.read();
            let Some(row) = self.store.row(id).await.map_err(from_store)? else { return Ok(None) };
            let Some(loaded) = load(self.open(row, deadline).await?)?.map(Arc::new) else { return Ok(None) };
            let now = self.generation.read();
            if *now == before {
                // One instance of a backing key at a time, because it holds the lease.
                return Ok(Some(cache.get_with_by_ref(id, || loaded)));
            }
            last = Some(loaded);
        }
        Ok(last)
    }
}

/// What taking a use of a backing key came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseTaken {
    /// It is taken.
    Granted,
    /// It is taken; three quarters of the key's uses are leased now, and were
    /// not before.
    Warned,
    /// No use is left (NIST SP 800-38D, 8.3): the material only decrypts.
    Spent,
}

fn tampered(id: &RowId) -> Error {
    metrics::counter!("strongroom_integrity_failures_total", "kind" => id.kind.as_str()).increment(1);
    Error::new(
        Exception::KmsInternal,
        format!("The stored {} {} fails its integrity check and is refused.", id.kind.as_str(), id.id),
    )
}

fn load_key(held: Held<Key>) -> Result<Option<LoadedKey>> {
    let policy = Policy::parse_key_policy(&held.value.policy)
        .map_err(|error| Error::internal(format!("the policy of {} cannot be read: {error}", held.id)))?;
    let arn = crate::key::arn_of_key(&held.id);
    Ok(Some(LoadedKey { held, arn, policy }))
}

/// Material that was deleted or has expired is not there.
fn load_backing(held: Held<BackingKey>) -> Result<Option<LoadedBacking>> {
    if held.value.home == StoredHome::Deleted {
        return Ok(None);
    }
    let unreadable = || Error::internal(format!("row {} makes no sense", held.id));
    let id: BackingId = held.id.id.parse().map_err(|_| unreadable())?;
    let key = held.value.key_ref(id).ok_or_else(unreadable)?;
    let public_key = held.value.public_key.as_ref().map(|key| key.0.to_vec());
    let key_id = held.value.key_id.clone();
    let lease = tokio::sync::Mutex::new(Lease { held, left: 0 });
    Ok(Some(LoadedBacking { key, public_key, key_id, lease }))
}

/// The error of an operation whose rows changed meanwhile: it is run again.
pub fn conflict() -> Error {
    Error::new(Exception::KmsInternal, "The key was changed at the same time; the request can be retried.")
        .with_detail(CONFLICT)
}

/// Whether an operation is to be run again.
pub fn is_conflict(error: &Error) -> bool {
    error.detail.as_deref() == Some(CONFLICT)
}

const CONFLICT: &str = "conflict";

/// What a failing store means to a caller.
pub fn from_store(error: StoreError) -> Error {
    match error {
        StoreError::Conflict(_) => conflict(),
        StoreError::Full => full(),
        StoreError::Failed(why) => Error::internal(format!("store: {why}")),
    }
}

/// New work is refused while the disk is too full to record it.
pub fn full() -> Error {
    const RETRY: std::time::Duration = std::time::Duration::from_secs(5);
    Error::new(Exception::KmsInternal, "The audit log has too little free space for new work.")
        .with_detail("free space is below store.min_free_bytes")
        .retry_after(RETRY)
}

/// What a failing HSM means to a caller.
pub fn from_hsm(error: HsmError) -> Error {
    const RETRY: std::time::Duration = std::time::Duration::from_millis(100);
    let detail = error.to_string();
    match error {
        // Which operations blame the caller, and how, they say themselves.
        HsmError::Input => Error::internal(detail),
        HsmError::Unfit => Error::new(
            Exception::IncorrectKeyMaterial,
            "The key material in the request is not of the kind that the KMS key's spec asks for.",
        ),
        HsmError::Unsupported(_) => Error::new(Exception::UnsupportedOperation, detail),
        HsmError::Unavailable(_) | HsmError::Missing(_) => Error::new(
            Exception::KeyUnavailable,
            "The request was rejected because the HSM that holds the key is not available; it can be retried.",
        )
        .with_detail(detail),
        HsmError::Busy => {
            Error::new(Exception::Throttling, "The HSM's queue is full; retry after a moment.").retry_after(RETRY)
        }
        HsmError::Deadline => Error::new(Exception::DependencyTimeout, "The HSM did not answer in time.").with_detail(detail),
        HsmError::Device(_) => Error::internal(detail),
    }
}
