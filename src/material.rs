//! Versions of a key's material: made in an HSM, and one put in the other's
//! place. What was encrypted under an old one is decrypted with it for ever.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::app::App;
use crate::error::{Error, Exception, Result};
use crate::hsm::{BackingId, Cluster, KeyRef, Residence};
use crate::jobs::{Intent, service_event};
use crate::key::{BackingKey, Expiration, Key, Rotated, Rotation, StoredHome, arn_of_key, spec};
use crate::proto::kms::{KeyState, OriginType, RotationType};
use crate::registry::{Draft, Held, from_hsm, from_store};
use crate::store::{Commit, Kind, RowId, Store};
use crate::wire::Text as _;

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
    /// The changes, all of them.
    pub drafts: Vec<Draft>,
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
    let (id, mut drafts) = match key.origin {
        OriginType::External => {
            let id = key.pending.take().ok_or_else(|| nothing_pending(held))?;
            let version = stored(app, &held.id, id, deadline).await?;
            (id, vec![Draft::replace(&version, &BackingKey { rotated, ..version.value.clone() })?])
        }
        _ => {
            let mut version = make(app, &cluster, &held.id, &key, now_ms, deadline).await?;
            version.row.rotated = rotated;
            (version.id, version.drafts(&held.id)?)
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
    let details = json!({
        "rotationType": by.text(),
        "keyOrigin": key.origin.text(),
        "previousKeyMaterialId": previous.map(|id| id.to_string()),
        "currentKeyMaterialId": id.to_string(),
        "keyId": held.id.id,
    });
    Ok(Turn { current: id, drafts, details })
}

fn nothing_pending(key: &Held<Key>) -> Error {
    Error::new(
        Exception::KmsInvalidState,
        format!("{} has no imported key material that is pending rotation.", arn_of_key(&key.id)),
    )
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

/// The removal of imported material, which waits for its commit.
pub struct Removal {
    /// The changes, all of them.
    pub drafts: Vec<Draft>,
    /// Where it was.
    place: Option<(Option<Arc<Cluster>>, KeyRef)>,
}

/// Takes imported material away. Until it is imported again its key is pending
/// import; material that only waited for its rotation is of no key any more.
pub fn remove(app: &App, held: &Held<Key>, version: &Held<BackingKey>) -> Result<Removal> {
    let mut key = held.value.clone();
    let id: BackingId =
        version.id.id.parse().map_err(|_| Error::internal(format!("row {} has no id", version.id)))?;
    let first = match key.pending == Some(id) {
        true => {
            key.pending = None;
            Draft::delete(version)
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
    Ok(Removal { drafts: vec![first, Draft::replace(held, &key)?], place })
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
    let turn = turn(app, held, by, app.clock.now_ms(), deadline).await?;
    let arn = arn_of_key(&held.id);
    let event = service_event(app, "RotateKey", &held.id.account, turn.details, Some(&arn))?;
    let changes = app.registry.seal(&turn.drafts, deadline).await?;
    let committed = app.store.commit(Commit { changes, events: vec![event] }).await;
    app.registry.forget(&turn.drafts);
    committed.map_err(from_store)?;
    tracing::info!(key = %arn, material = %turn.current, "rotated");
    Ok(turn.current)
}
