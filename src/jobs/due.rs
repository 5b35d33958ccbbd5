//! Keys whose time has come: rotated when their period has passed, deleted when
//! their waiting period has.

use tokio::time::Instant;

use super::{STEP_TIMEOUT, deletion};
use crate::app::App;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::material;
use crate::proto::kms::{KeyState, RotationType};
use crate::registry::{Held, from_store};
use crate::store::{Kind, Row};

/// Keys that one round looks at.
const PAGE: u32 = 1000;

/// Does what is due; deletions only while the clock can be believed, as they
/// cannot be undone.
pub(super) async fn run(app: &App) -> Result<()> {
    look_at_clock(app).await?;
    let (doomed, others) = due(app).await?;
    let suspended = app.clock_gate.is_suspended();
    metrics::gauge!("strongroom_deletions_suspended").set(if suspended { 1.0 } else { 0.0 });
    for row in others {
        act(app, row).await;
    }
    if suspended || doomed.is_empty() {
        return Ok(());
    }
    for row in doomed {
        act(app, row).await;
    }
    // What the deleted rows left in the database's journal.
    app.store.scrub().await.map_err(from_store)
}

/// Has what cannot be undone wait where the clock jumped, and says so.
///
/// # Errors
/// When the store fails.
pub async fn look_at_clock(app: &App) -> Result<()> {
    match app.clock_gate.look(app.clock.now_ms(), app.recorded_ms) {
        true => deletion::suspend(app, due(app).await?.0.len()).await,
        false => Ok(()),
    }
}

/// Keys that are to be deleted now, and others that are due.
async fn due(app: &App) -> Result<(Vec<Row>, Vec<Row>)> {
    let due = app.store.due(Kind::Key, app.clock.now_ms(), PAGE).await.map_err(from_store)?;
    Ok(due.into_iter().partition(is_doomed))
}

/// Whether the row says that its key is to be deleted. Only whoever acts on it
/// checks its MAC.
fn is_doomed(row: &Row) -> bool {
    serde_json::from_str::<Key>(&row.body).is_ok_and(|key| key.state == KeyState::PendingDeletion)
}

/// One key with which nothing can be done keeps no other from it.
async fn act(app: &App, row: Row) {
    let id = row.id.clone();
    if let Err(error) = try_act(app, row).await {
        tracing::error!(key = %id, %error, detail = error.detail, "a key is due and could not be served; it is tried again");
    }
}

async fn try_act(app: &App, row: Row) -> Result<()> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    let key: Held<Key> = app.registry.open(row, deadline).await?;
    match key.value.state {
        KeyState::PendingDeletion => deletion::delete(app, &key, deadline).await,
        KeyState::Enabled => {
            material::rotate_by_itself(app, &key, RotationType::Automatic, deadline).await.map(|_| ())
        }
        state => Err(Error::internal(format!("{} is due in state {state:?}", key.id))),
    }
}
