//! What an HSM was asked to do in its tokens is outside the store's
//! transaction. An intent is committed first, and finished or undone here if
//! the daemon did not live to do it.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::STEP_TIMEOUT;
use crate::app::App;
use crate::error::{Error, Result};
use crate::hsm::{BackingId, Home, KeyRef};
use crate::key::{Key, spec};
use crate::key_stores::rows;
use crate::proto::kms::{KeySpec, KeyUsageType};
use crate::registry::{Draft, Held, Stored, from_hsm, from_store};
use crate::store::{Commit, Kind, Row, RowId};
use crate::wire;

/// An intent is left alone so long, because the call that made it may still run.
const AGE_MS: i64 = 5 * 60 * 1000;
const PAGE: u32 = 100;

/// Something that is to happen to a token object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Made or destroyed.
    effect: Effect,
    /// The KMS key.
    key: RowId,
    /// The custom key store that the object is in; none for the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    custom_key_store_id: Option<String>,
    /// Its spec.
    #[serde(with = "wire::text")]
    spec: KeySpec,
    /// Its usage.
    #[serde(with = "wire::text")]
    usage: KeyUsageType,
    /// When, milliseconds since the epoch; 0 is at once.
    created_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Effect {
    /// The object is made; undone unless the key's commit came.
    Create,
    /// The object is destroyed; done again until it is gone.
    Destroy,
}

impl Stored for Intent {
    const KIND: Kind = Kind::Intent;

    fn parent(&self) -> Option<String> {
        self.custom_key_store_id.clone()
    }
}

impl Intent {
    /// Before a key's object is made.
    pub fn create(key: &RowId, value: &Key, backing: BackingId, now_ms: i64) -> Held<Intent> {
        Self::held(Effect::Create, key, value, backing, now_ms)
    }

    /// Together with the commit after which a key's object is destroyed.
    pub fn destroy(key: &Held<Key>, backing: BackingId) -> Held<Intent> {
        Self::held(Effect::Destroy, &key.id, &key.value, backing, 0)
    }

    fn held(effect: Effect, key: &RowId, value: &Key, backing: BackingId, created_ms: i64) -> Held<Intent> {
        let intent = Intent {
            effect,
            key: key.clone(),
            custom_key_store_id: value.custom_key_store_id.clone(),
            spec: value.spec,
            usage: value.usage,
            created_ms,
        };
        let id = RowId { kind: Kind::Intent, id: backing.to_string(), ..key.clone() };
        Held { id, version: 1, value: intent }
    }
}

/// Finishes or undoes what is left.
pub(super) async fn settle(app: &App) -> Result<()> {
    let now_ms = app.clock.now_ms();
    let mut after = None;
    loop {
        let rows = app.store.all_rows(Kind::Intent, after.as_ref(), PAGE).await.map_err(from_store)?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = Some(last.id.clone());
        for row in rows {
            let id = row.id.clone();
            let settled = match is_reachable(app, &row) {
                true => settle_one(app, row, now_ms).await,
                false => forget_if_orphaned(app, row).await,
            };
            if let Err(error) = settled {
                // One HSM that is away keeps no other from it.
                tracing::warn!(intent = %id, %error, detail = error.detail, "an object is left for the next round");
            }
        }
    }
}

/// Whether its cluster is in use: the turn of a custom key store's comes when
/// it is connected again.
fn is_reachable(app: &App, row: &Row) -> bool {
    app.key_stores.find(&row.id.region, row.parent.as_deref()).is_some()
}

/// One that came while its key store was deleted, whose removal did not see it:
/// no HSM of it will ever be reached again. Its key was not made, as its store
/// was gone.
async fn forget_if_orphaned(app: &App, row: Row) -> Result<()> {
    let Some(store) = &row.parent else { return Ok(()) };
    let store = rows::row(Kind::KeyStore, &row.id.region, &row.id.account, store);
    if app.store.row(&store).await.map_err(from_store)?.is_some() {
        return Ok(());
    }
    tracing::warn!(object = row.id.id, "it may stay in the tokens: its key store was deleted");
    let deadline = Instant::now() + STEP_TIMEOUT;
    let held: Held<Intent> = app.registry.open(row, deadline).await?;
    remove(app, &held, deadline).await
}

async fn remove(app: &App, held: &Held<Intent>, deadline: Instant) -> Result<()> {
    let changes = app.registry.seal(&[Draft::delete(held)], deadline).await?;
    app.store.commit(Commit { changes, events: Vec::new() }).await.map(|_| ()).map_err(from_store)
}

async fn settle_one(app: &App, row: Row, now_ms: i64) -> Result<()> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    let held: Held<Intent> = app.registry.open(row, deadline).await?;
    if now_ms < held.value.created_ms + AGE_MS && held.value.created_ms >= app.started_ms {
        return Ok(());
    }
    let id: BackingId =
        held.id.id.parse().map_err(|_| Error::internal(format!("row {} has no key's id", held.id)))?;
    let kept = held.value.effect == Effect::Create
        && app.registry.backing(&held.value.key, id, deadline).await?.is_some();
    if !kept {
        let store = held.value.custom_key_store_id.as_deref();
        let Some(cluster) = app.key_stores.find(&held.value.key.region, store) else {
            return Ok(());
        };
        tracing::info!(object = %held.id.id, effect = ?held.value.effect, "removing a token object that no key has");
        let unknown = || Error::internal(format!("row {} is of a kind that no HSM makes", held.id));
        let material = spec::material(held.value.spec).ok_or_else(unknown)?;
        let usage = spec::hsm_use(held.value.usage).ok_or_else(unknown)?;
        let object = KeyRef { id, material, usage, home: Home::Resident { blob: None } };
        cluster.destroy(&object, deadline).await.map_err(from_hsm)?;
    }
    remove(app, &held, deadline).await
}
