//! Imported material that expires, and wrapping keys for imports that are no
//! longer valid. Both can be had again from whoever has the material, so a
//! clock that jumped does not keep them.

use serde_json::json;
use tokio::time::Instant;

use super::{STEP_TIMEOUT, service_event};
use crate::app::App;
use crate::error::{Error, Result};
use crate::key::{BackingKey, ImportParameters, Key, arn_of_key};
use crate::material;
use crate::multi_region;
use crate::registry::{Draft, Held, from_store};
use crate::store::{Commit, Kind, Row, RowId};

/// Rows that one round looks at.
const PAGE: u32 = 100;

/// Deletes what is due.
pub(super) async fn run(app: &App) -> Result<()> {
    let now_ms = app.clock.now_ms();
    for row in app.store.due(Kind::BackingKey, now_ms, PAGE).await.map_err(from_store)? {
        let id = row.id.clone();
        if let Err(error) = expire(app, row).await {
            // What cannot be deleted keeps nothing else from it.
            tracing::error!(material = %id, %error, detail = error.detail, "key material could not be deleted when it expired; it is tried again");
        }
    }
    forget_parameters(app, now_ms).await
}

async fn expire(app: &App, row: Row) -> Result<()> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    let version: Held<BackingKey> = app.registry.open(row, deadline).await?;
    let id = RowId { kind: Kind::Key, id: version.value.key_id.clone(), ..version.id.clone() };
    let row = app.store.row(&id).await.map_err(from_store)?;
    let row = row.ok_or_else(|| Error::internal(format!("{} is of no key", version.id)))?;
    let key: Held<Key> = app.registry.open(row, deadline).await?;
    let mut removal = material::remove(app, &key, &version)?;
    let arn = arn_of_key(&key.id);
    let details = json!({ "keyId": key.id.id, "keyMaterialId": version.id.id });
    let event = service_event(app, "DeleteExpiredKeyMaterial", &key.id.account, details, Some(&arn))?;
    let messages = std::mem::take(&mut removal.messages);
    let delivered = multi_region::deliver(app, messages, app.clock.now_ms(), deadline).await?;
    material::commit(app, std::mem::take(&mut removal.drafts), event, delivered, deadline).await?;
    tracing::info!(key = %arn, "imported key material has expired and is deleted");
    removal.wipe(&*app.store, deadline).await
}

/// Deletes the wrapping keys that nothing can be encrypted to any more.
async fn forget_parameters(app: &App, now_ms: i64) -> Result<()> {
    let due = app.store.due(Kind::ImportParameters, now_ms, PAGE).await.map_err(from_store)?;
    if due.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + STEP_TIMEOUT;
    let mut drafts = Vec::with_capacity(due.len());
    for row in due {
        let held: Held<ImportParameters> = app.registry.open(row, deadline).await?;
        drafts.push(Draft::delete(&held));
    }
    let changes = app.registry.seal(&drafts, deadline).await?;
    app.store.commit(Commit { changes, events: Vec::new() }).await.map_err(from_store)?;
    app.store.scrub().await.map_err(from_store)
}
