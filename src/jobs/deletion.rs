//! Deletes a key: first in the store, with the event, then in the HSMs.

use serde_json::json;
use tokio::time::Instant;

use super::{Intent, service_event};
use crate::app::App;
use crate::error::{Error, Result};
use crate::hsm::BackingId;
use crate::key::{Alias, BackingKey, Grant, ImportParameters, Key, StoredHome, arn_of_key};
use crate::material;
use crate::multi_region::{self, News};
use crate::registry::{Draft, Held, from_hsm, from_store};
use crate::store::Commit;

/// Says that deletions wait because the clock jumped.
pub(super) async fn suspend(app: &App, waiting: usize) -> Result<()> {
    tracing::error!(
        waiting,
        "the clock jumped forward by more than an hour: deletions wait for `strongroom admin confirm-clock`"
    );
    let event = service_event(
        app,
        "DeletionsSuspended",
        &app.account,
        json!({ "reason": "ClockJump", "keysDue": waiting }),
        None,
    )?;
    app.store
        .commit(Commit { changes: Vec::new(), events: vec![event] })
        .await
        .map(|_| ())
        .map_err(from_store)
}

/// Deletes a key whose waiting period has passed.
pub(super) async fn delete(app: &App, key: &Held<Key>, deadline: Instant) -> Result<()> {
    let backings: Vec<Held<BackingKey>> = app.registry.of_key(&key.id, deadline).await?;
    let parameters: Vec<Held<ImportParameters>> = app.registry.of_key(&key.id, deadline).await?;
    let aliases: Vec<Held<Alias>> = app.registry.of_key(&key.id, deadline).await?;
    let grants: Vec<Held<Grant>> = app.registry.of_key(&key.id, deadline).await?;
    let mut drafts = vec![Draft::delete(key)];
    drafts.extend(grants.iter().map(Draft::delete));
    drafts.extend(aliases.iter().map(Draft::delete));
    drafts.extend(parameters.iter().map(Draft::delete));
    let mut objects = Vec::new();
    for backing in &backings {
        drafts.push(Draft::delete(backing));
        if backing.value.home == StoredHome::Deleted {
            continue;
        }
        let id: BackingId = backing
            .id
            .id
            .parse()
            .map_err(|_| Error::internal(format!("row {} has no key's id", backing.id)))?;
        let object = backing.value.key_ref(id);
        let object = object.ok_or_else(|| Error::internal(format!("row {} makes no sense", backing.id)))?;
        if !object.home.is_resident() {
            objects.push((object, None));
            continue;
        }
        let intent = Intent::destroy(key, id);
        drafts.push(Draft::insert(intent.id.clone(), &intent.value)?);
        objects.push((object, Some(intent)));
    }
    let arn = arn_of_key(&key.id);
    let event = service_event(app, "DeleteKey", &key.id.account, json!({ "keyId": key.id.id }), Some(&arn))?;
    let told = multi_region::report(&key.id, &key.value, News::Deleted).into_iter().collect();
    let delivered = multi_region::deliver(app, told, app.clock.now_ms(), deadline).await?;
    material::commit(app, drafts, event, delivered, deadline).await?;
    tracing::info!(key = %arn, "deleted");
    let store = key.value.custom_key_store_id.as_deref();
    let Some(cluster) = app.key_stores.find(&key.id.region, store) else {
        tracing::info!(key = %arn, "its objects are destroyed when its key store is connected again");
        return Ok(());
    };
    for (object, intent) in objects {
        cluster.destroy(&object, deadline).await.map_err(from_hsm)?;
        let Some(intent) = intent else { continue };
        let drafts = [Draft::delete(&intent)];
        let changes = app.registry.seal(&drafts, deadline).await?;
        app.store.commit(Commit { changes, events: Vec::new() }).await.map_err(from_store)?;
    }
    Ok(())
}
