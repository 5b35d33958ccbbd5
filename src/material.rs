//! Versions of a key's material: made in an HSM, and one put in the other's
//! place. What was encrypted under an old one is decrypted with it for ever.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::app::App;
use crate::error::{Error, Exception, Result};
use crate::hsm::{BackingId, Cluster, HsmError, KeyRef, Residence};
use crate::jobs::{Intent, service_event};
use crate::key::{BackingKey, Expiration, Key, Rotated, Rotation, StoredHome, arn_of_key, spec};
use crate::multi_region::{self, Delivered, Message, News};
use crate::proto::kms::{KeySpec, KeyState, KeyUsageType, OriginType, RotationType};
use crate::registry::{Draft, Held, from_hsm, from_store};
use crate::store::{Commit, Kind, NewEvent, RowId, Store};
use crate::wire::Text as _;

/// Whether a cluster's HSMs can do what a key of this spec and usage is for.
///
/// # Errors
/// UnsupportedOperationException; KeyUnavailableException while no HSM was
/// there to be tried.
pub fn check_capability(cluster: &Cluster, spec: KeySpec, usage: KeyUsageType) -> Result<()> {
    let offered = cluster.capabilities();
    if offered.is_empty() {
        return Err(from_hsm(HsmError::Unavailable("no member was attached yet".to_owned())));
    }
    let needs = spec::needs(spec, usage)
        .ok_or_else(|| spec::unsupported(spec, "no module that Strongroom knows makes such keys"))?;
    match needs.into_iter().find(|need| !offered.contains(need)) {
        None => Ok(()),
        Some(lacking) => {
            Err(spec::unsupported(spec, &format!("no HSM of the cluster passed its self-test of {lacking}")))
        }
    }
}

/// A version of a key's material, and what its key's commit makes of it.
pub struct Version {
    /// Its id, KeyMaterialId.
    pub id: BackingId,
    /// Its row.
    row: BackingKey,
    /// The intent that its making left, for the same commit to take back.
    intent: Option<Held<Intent>>,
}

impl Version {
    /// The changes that make it the key's.
    pub fn drafts(&self, key: &RowId) -> Result<Vec<Draft>> {
        let id = RowId { kind: Kind::BackingKey, id: self.id.to_string(), ..key.clone() };
        let mut drafts = vec![Draft::insert(id, &self.row)?];
        drafts.extend(self.intent.as_ref().map(Draft::delete));
        Ok(drafts)
    }
}

/// Makes a version of a key's material in its cluster. Where that is a token
/// object, an intent is committed before, so that a crash leaves nothing half
/// made: at restart an intent whose material is not in the store is undone.
pub async fn make(
    app: &App,
    cluster: &Cluster,
    key_id: &RowId,
    key: &Key,
    now_ms: i64,
    deadline: Instant,
) -> Result<Version> {
    let unsupported = |why| spec::unsupported(key.spec, why);
    let material = spec::material(key.spec)
        .ok_or_else(|| unsupported("no module that Strongroom knows makes such keys"))?;
    let purpose = spec::hsm_use(key.usage).ok_or_else(|| unsupported("its usage is not offered"))?;
    let id = BackingId::random().map_err(from_hsm)?;
    let intent = match cluster.residence(material) {
        Some(Residence::Resident) => {
            Some(intend(app, Intent::create(key_id, key, id, now_ms), deadline).await?)
        }
        Some(Residence::Wrapped) | None => None,
    };
    let made = cluster.generate(id, material, purpose, deadline).await.map_err(from_hsm)?;
    Ok(Version { id, row: BackingKey::new(&key_id.id, key, &made, now_ms), intent })
}

async fn intend(app: &App, intent: Held<Intent>, deadline: Instant) -> Result<Held<Intent>> {
    let drafts = [Draft::insert(intent.id.clone(), &intent.value)?];
    let changes = app.registry.seal(&drafts, deadline).await?;
    app.store.commit(Commit { changes, events: Vec::new() }).await.map_err(from_store)?;
    Ok(intent)
}

/// A rotation that waits for its commit.
pub struct Turn {
    /// The material that will be the current one.
    pub current: BackingId,
    /// The changes, all of them but for what other Regions are told.
    pub drafts: Vec<Draft>,
    /// What the replicas of a multi-Region key are told.
    pub messages: Vec<Message>,
    /// serviceEventDetails of RotateKey.
    pub details: Value,
}

/// Makes new material the key's current one.
pub async fn turn(
    app: &App,
    held: &Held<Key>,
    by: RotationType,
    now_ms: i64,
    deadline: Instant,
) -> Result<Turn> {
    let mut key = held.value.clone();
    let cluster = app
        .key_stores
        .find(&held.id.region, key.custom_key_store_id.as_deref())
        .ok_or_else(|| Error::internal(format!("the cluster of {} is not connected", held.id)))?;
    let rotated = Some(Rotated { at_ms: now_ms, by });
    let (id, row, mut drafts) = match key.origin {
        OriginType::External => {
            let id = key.pending.take().ok_or_else(|| nothing_pending(held))?;
            let version = stored(app, &held.id, id, deadline).await?;
            check_imported(held, &version)?;
            let row = BackingKey { rotated, ..version.value.clone() };
            let drafts = vec![Draft::replace(&version, &row)?];
            (id, row, drafts)
        }
        _ => {
            let mut version = make(app, &cluster, &held.id, &key, now_ms, deadline).await?;
            version.row.rotated = rotated;
            let drafts = version.drafts(&held.id)?;
            (version.id, version.row, drafts)
        }
    };
    let previous = key.current.replace(id);
    match by {
        RotationType::OnDemand => key.rotations_on_demand += 1,
        // What was overdue goes on from now, as the others do.
        _ => key.rotation = key.rotation.map(|old| Rotation::from_now(old.period_days, now_ms)),
    }
    if key.origin == OriginType::External {
        let versions = app.registry.of_key(&held.id, deadline).await?;
        key.expiration = expiration(versions.iter().map(|version: &Held<BackingKey>| &version.value));
    }
    drafts.push(Draft::replace(held, &key)?);
    let messages = multi_region::synchronize(&held.id, &key, vec![multi_region::Version { id, row }])?;
    let details = json!({
        "rotationType": by.text(),
        "keyOrigin": key.origin.text(),
        "previousKeyMaterialId": previous.map(|id| id.to_string()),
        "currentKeyMaterialId": id.to_string(),
        "keyId": held.id.id,
    });
    Ok(Turn { current: id, drafts, messages, details })
}

fn nothing_pending(key: &Held<Key>) -> Error {
    Error::new(
        Exception::KmsInvalidState,
        format!("{} has no imported key material that is pending rotation.", arn_of_key(&key.id)),
    )
}

/// Whether material to rotate to is there, in every Region.
fn check_imported(key: &Held<Key>, version: &Held<BackingKey>) -> Result<()> {
    let set = key.value.multi_region.as_ref();
    let lacking: Vec<&str> = set.iter().flat_map(|set| &set.lacking).map(String::as_str).collect();
    let place = match lacking.is_empty() {
        true if version.value.home != StoredHome::Deleted => return Ok(()),
        true => key.id.region.clone(),
        false => lacking.join(", "),
    };
    Err(Error::new(
        Exception::KmsInvalidState,
        format!(
            "{}: the key material that is pending rotation is not imported in {place}.",
            arn_of_key(&key.id)
        ),
    ))
}

async fn stored(app: &App, key: &RowId, id: BackingId, deadline: Instant) -> Result<Held<BackingKey>> {
    let id = RowId { kind: Kind::BackingKey, id: id.to_string(), ..key.clone() };
    let row = app.store.row(&id).await.map_err(from_store)?;
    app.registry.open(row.ok_or_else(|| Error::internal(format!("row {id} is missing")))?, deadline).await
}

/// When material expires that is all there; none where some is deleted.
pub fn expiration<'a>(versions: impl Iterator<Item = &'a BackingKey>) -> Option<Expiration> {
    let mut valid_to_ms: Option<i64> = None;
    for version in versions {
        if version.home == StoredHome::Deleted {
            return None;
        }
        let other = version.imported.as_ref().and_then(|import| import.valid_to_ms);
        valid_to_ms = valid_to_ms.into_iter().chain(other).min();
    }
    Some(Expiration { valid_to_ms })
}

/// Puts a key in the state that its imported material is in: pending import
/// while some of what it encrypted with is not there.
pub fn settle_import(key: &mut Key, versions: &[Held<BackingKey>]) {
    let pending = key.pending.map(|id| id.to_string());
    let permanent = versions.iter().filter(|version| Some(&version.id.id) != pending.as_ref());
    key.expiration = expiration(permanent.map(|version| &version.value));
    key.state = match (key.state, key.expiration) {
        (KeyState::PendingImport, Some(_)) => KeyState::Enabled,
        (KeyState::Enabled | KeyState::Disabled, None) => KeyState::PendingImport,
        (state, _) => state,
    };
}

/// The removal of imported material, which waits for its commit.
pub struct Removal {
    /// The changes, all of them but for what other Regions are told.
    pub drafts: Vec<Draft>,
    /// What the related keys of a multi-Region key are told.
    pub messages: Vec<Message>,
    /// Where it was.
    place: Option<(Option<Arc<Cluster>>, KeyRef)>,
}

/// Takes imported material away. Until it is imported again its key is pending
/// import; material that only waited for its rotation is of no key any more.
pub fn remove(app: &App, held: &Held<Key>, version: &Held<BackingKey>) -> Result<Removal> {
    let mut key = held.value.clone();
    let id: BackingId =
        version.id.id.parse().map_err(|_| Error::internal(format!("row {} has no id", version.id)))?;
    let is_pending = key.pending == Some(id);
    let first = match is_pending && !key.is_replica() {
        true => {
            key.pending = None;
            key.multi_region.iter_mut().for_each(|set| set.lacking.clear());
            Draft::delete(version)
        }
        false if is_pending => {
            Draft::replace(version, &BackingKey { home: StoredHome::Deleted, ..version.value.clone() })?
        }
        false => {
            key.expiration = None;
            if matches!(key.state, KeyState::Enabled | KeyState::Disabled) {
                key.state = KeyState::PendingImport;
            }
            Draft::replace(version, &BackingKey { home: StoredHome::Deleted, ..version.value.clone() })?
        }
    };
    let cluster = app.key_stores.find(&held.id.region, key.custom_key_store_id.as_deref());
    let place = version.value.key_ref(id).map(|object| (cluster, object));
    let messages = match is_pending {
        false => Vec::new(),
        true => {
            let gone = News::Pending { material: id, is_there: false };
            let report = multi_region::report(&held.id, &key, gone);
            report.into_iter().chain(multi_region::synchronize(&held.id, &key, Vec::new())?).collect()
        }
    };
    Ok(Removal { drafts: vec![first, Draft::replace(held, &key)?], messages, place })
}

impl Removal {
    /// Has the HSMs and the database's journal forget it, after the commit.
    pub async fn wipe(self, store: &dyn Store, deadline: Instant) -> Result<()> {
        if let Some((Some(cluster), object)) = self.place {
            cluster.destroy(&object, deadline).await.map_err(from_hsm)?;
        }
        store.scrub().await.map_err(from_store)
    }
}

/// Rotates a key that nobody asked to rotate: the new material, durable with
/// its event.
pub async fn rotate_by_itself(
    app: &App,
    held: &Held<Key>,
    by: RotationType,
    deadline: Instant,
) -> Result<BackingId> {
    let now_ms = app.clock.now_ms();
    let turn = turn(app, held, by, now_ms, deadline).await?;
    let arn = arn_of_key(&held.id);
    let event = service_event(app, "RotateKey", &held.id.account, turn.details, Some(&arn))?;
    let delivered = multi_region::deliver(app, turn.messages, now_ms, deadline).await?;
    commit(app, turn.drafts, event, delivered, deadline).await?;
    tracing::info!(key = %arn, material = %turn.current, "rotated");
    Ok(turn.current)
}

/// Makes durable what the daemon does by itself, with its event and with what
/// it leads to in other Regions.
///
/// # Errors
/// The store's and the HSM's; nothing is changed then.
pub async fn commit(
    app: &App,
    mut drafts: Vec<Draft>,
    event: NewEvent,
    delivered: Delivered,
    deadline: Instant,
) -> Result<()> {
    let mut events = vec![event];
    events.extend(delivered.events(app)?);
    drafts.extend(delivered.drafts);
    let changes = app.registry.seal(&drafts, deadline).await?;
    let committed = app.store.commit(Commit { changes, events }).await;
    app.registry.forget(&drafts);
    committed.map(|_| ()).map_err(from_store)
}
