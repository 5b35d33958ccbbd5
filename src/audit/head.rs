//! Signs the head of the hash chain with a key in the HSM, at intervals: from
//! then on nobody who can write the database can change an event before it.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::error::Result;
use crate::hsm::{Hash, Scheme};
use crate::key::public;
use crate::registry::{from_hsm, from_store};
use crate::store::{Position, SignedHead};

const INTERVAL: Duration = Duration::from_secs(1);
const SIGNATURE_TIMEOUT: Duration = Duration::from_secs(5);
/// A head is signed again after so long without events: it tells the time, by
/// which a jump of the clock is noticed after a restart.
const IDLE_MS: i64 = 10 * 60 * 1000;

/// Signs heads until it is stopped, and once more then.
pub async fn run(app: &App, stop: CancellationToken) {
    let mut last = Last::default();
    loop {
        let stopping = tokio::select! {
            () = tokio::time::sleep(INTERVAL) => false,
            () = stop.cancelled() => true,
        };
        if let Err(error) = sign(app, &mut last).await {
            tracing::warn!(%error, detail = error.detail, "the log's head could not be signed; it is tried again");
        }
        if stopping {
            return;
        }
    }
}

#[derive(Default)]
struct Last {
    position: Option<Position>,
    time_ms: i64,
}

async fn sign(app: &App, last: &mut Last) -> Result<()> {
    let position = *app.store.end().borrow();
    let now_ms = app.clock.now_ms();
    if last.position == Some(position) && now_ms < last.time_ms + IDLE_MS {
        return Ok(());
    }
    let Some(hash) = app.store.hash_at(position).await.map_err(from_store)? else { return Ok(()) };
    let mut head = SignedHead { position, hash, time_ms: now_ms, signature: Vec::new() };
    let digest = public::digest(Hash::Sha256, head.message().as_bytes());
    let deadline = Instant::now() + SIGNATURE_TIMEOUT;
    head.signature = app
        .key_stores
        .installation()
        .sign(&app.identity.head_key(), Scheme::Ecdsa, &digest, deadline)
        .await
        .map_err(from_hsm)?;
    app.store.sign_head(head).await.map_err(from_store)?;
    *last = Last { position: Some(position), time_ms: now_ms };
    Ok(())
}
