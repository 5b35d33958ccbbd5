//! Deletes the keys whose waiting period has passed: first in the store, with
//! the event, then in the HSMs.

use serde_json::json;
use tokio::time::Instant;

use super::{Intent, STEP_TIMEOUT, service_event};
use crate::app::App;
use crate::error::{Error, Result};
use crate::hsm::{BackingId, Home};
use crate::key::{Alias, BackingKey, Key, arn_of_key};
use crate::proto::kms::KeyState;
use crate::registry::{Draft, Held, Stored, from_hsm, from_store};
use crate::store::{Commit, Kind};

/// Keys that one round deletes.
const PAGE: u32 = 100;

/// Deletes what is due, unless the clock jumped.
pub(super) async fn run(app: &App) -> Result<()> {
    let now_ms = app.clock.now_ms();
    let jumped = app.clock_gate.look(now_ms, app.recorded_ms);
    let due = app.store.due(Kind::Key, now_ms, PAGE).await.map_err(from_store)?;
    metrics::gauge!("strongroom_deletions_suspended").set(if app.clock_gate.is_suspended() {
        1.0
    } else {
        0.0
    });
    if jumped {
        suspend(app, due.len()).await?;
    }
    if app.clock_gate.is_suspended() || due.is_empty() {
        return Ok(());
    }
    for row in due {
        let id = row.id.clone();
        if let Err(error) = delete(app, row).await {
            // One key that cannot be deleted keeps no other from it.
            tracing::error!(key = %id, %error, detail = error.detail, "a key that is due could not be deleted; it is tried again");
        }
    }
    // What the deleted rows left in the database's journal.
    app.store.scrub().await.map_err(from_store)
}

async fn suspend(app: &App, waiting: usize) -> Result<()> {
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

async fn delete(app: &App, row: crate::store::Row) -> Result<()> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    let key: Held<Key> = app.registry.open(row, deadline).await?;
    if key.value.state != KeyState::PendingDeletion {
        return Err(Error::internal(format!(
            "{} is due for deletion in state {:?}",
            key.id, key.value.state
        )));
    }
    let backings: Vec<Held<BackingKey>> = all(app, &key, deadline).await?;
    let aliases: Vec<Held<Alias>> = all(app, &key, deadline).await?;
    let mut drafts = vec![Draft::delete(&key)];
    drafts.extend(aliases.iter().map(Draft::delete));
    let mut objects = Vec::new();
    for backing in &backings {
        drafts.push(Draft::delete(backing));
        let id: BackingId = backing
            .id
            .id
            .parse()
            .map_err(|_| Error::internal(format!("row {} has no key's id", backing.id)))?;
        let object = backing.value.key_ref(id);
        let object = object.ok_or_else(|| Error::internal(format!("row {} makes no sense", backing.id)))?;
        if object.home != Home::Resident {
            objects.push((object, None));
            continue;
        }
        let intent = Intent::destroy(&key, id);
        drafts.push(Draft::insert(intent.id.clone(), &intent.value)?);
        objects.push((object, Some(intent)));
    }
    let arn = arn_of_key(&key.id);
    let event = service_event(app, "DeleteKey", &key.id.account, json!({ "keyId": key.id.id }), Some(&arn))?;
    let changes = app.registry.seal(&drafts, deadline).await?;
    let committed = app.store.commit(Commit { changes, events: vec![event] }).await;
    app.registry.forget(&drafts);
    committed.map_err(from_store)?;
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

/// Every row of a kind that belongs to a key.
async fn all<T: Stored>(app: &App, key: &Held<Key>, deadline: Instant) -> Result<Vec<Held<T>>> {
    let mut rows: Vec<Held<T>> = Vec::new();
    loop {
        let after = rows.last().map(|row| row.id.id.clone());
        let (region, account) = (&key.id.region, &key.id.account);
        let page: Vec<Held<T>> =
            app.registry.page(region, account, Some(&key.id.id), after.as_deref(), PAGE, deadline).await?;
        let more = page.len() == PAGE as usize;
        rows.extend(page);
        if !more {
            return Ok(rows);
        }
    }
}
