//! The newest part of the log, read and parsed once for all who follow it.
//!
//! ```text
//! store ──► Tail: reads the newest events once ──► readers that are there
//!   └────────────────────────────────────────────► a reader that is behind
//! ```
//!
//! Each reader has its own cursor and its own pace; what it missed it reads from
//! the store.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::AbortHandle;

use super::rules::envelope;
use super::stream::Seen;
use crate::error::{Error, Exception, Result};
use crate::registry::from_store;
use crate::store::{Position, Store, StoredEvent};

/// Events that are read at once.
const READ_EVENTS: u32 = 256;
/// Batches of the newest events that are kept for readers, each of at most
/// `READ_EVENTS`.
const TAIL_BATCHES: usize = 64;
/// The wait after events were handed on, so that those of the same moment are
/// read together.
const TAIL_PAUSE: Duration = Duration::from_millis(2);
/// The wait after the store failed.
const TAIL_RETRY: Duration = Duration::from_secs(1);

/// An event that was read.
pub struct Logged {
    /// The event.
    pub stored: StoredEvent,
    /// What most look at.
    pub seen: Seen,
    /// As EventBridge has it, once somebody asks.
    envelope: OnceLock<Value>,
}

impl Logged {
    /// Reads an event.
    ///
    /// # Errors
    /// KMSInternalException for what is no record: nobody but us writes them.
    pub fn read(stored: StoredEvent) -> Result<Logged> {
        let seen = Seen::read(&stored.record)?;
        Ok(Logged { stored, seen, envelope: OnceLock::new() })
    }

    /// The event as EventBridge has it.
    pub fn envelope(&self) -> &Value {
        self.envelope.get_or_init(|| envelope(&self.stored).unwrap_or_default())
    }
}

type Batch = Arc<Vec<Arc<Logged>>>;

/// The newest part of the log.
pub struct Tail {
    store: Arc<dyn Store>,
    batches: broadcast::Sender<Batch>,
    follower: AbortHandle,
}

impl Tail {
    /// Begins to follow the log.
    pub fn start(store: Arc<dyn Store>) -> Tail {
        let (batches, _) = broadcast::channel(TAIL_BATCHES);
        let follower = tokio::spawn(follow(store.clone(), batches.clone())).abort_handle();
        Tail { store, batches, follower }
    }

    /// A reader of every event after a position.
    pub fn read(self: &Arc<Self>, from: Position) -> Reader {
        Reader { newest: self.batches.subscribe(), tail: self.clone(), cursor: from, is_behind: true }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// Reads what is appended, as long as somebody listens.
async fn follow(store: Arc<dyn Store>, batches: broadcast::Sender<Batch>) {
    let mut end = store.end();
    let mut cursor = *end.borrow_and_update();
    while end.changed().await.is_ok() {
        let until = *end.borrow_and_update();
        while cursor < until {
            if batches.receiver_count() == 0 {
                // A reader that comes in this moment sees the gap.
                cursor = until;
                continue;
            }
            match store.follow(cursor, READ_EVENTS).await {
                Ok(events) => {
                    cursor = events.last().map_or(until, |last| last.position);
                    // Nobody may be there any more.
                    let _ = batches.send(Arc::new(logged(events)));
                    tokio::time::sleep(TAIL_PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the newest events cannot be read");
                    tokio::time::sleep(TAIL_RETRY).await;
                }
            }
        }
    }
}

/// Without what cannot be read.
fn logged(events: Vec<StoredEvent>) -> Vec<Arc<Logged>> {
    let read = |event: StoredEvent| {
        let position = event.position;
        Logged::read(event)
            .inspect_err(
                |error| tracing::error!(%error, %position, "an event cannot be read and is left out"),
            )
            .ok()
    };
    events.into_iter().filter_map(read).map(Arc::new).collect()
}

/// A reader of the log.
pub struct Reader {
    tail: Arc<Tail>,
    newest: broadcast::Receiver<Batch>,
    /// The last event that it gave.
    cursor: Position,
    /// Whether the store has events before those that the tail sends next.
    is_behind: bool,
}

impl Reader {
    /// The next events, once there are any.
    ///
    /// # Errors
    /// When the store fails or is closed; InvalidNextTokenException where the
    /// next events were removed.
    pub async fn next(&mut self) -> Result<Vec<Arc<Logged>>> {
        loop {
            if self.is_behind {
                let events = self.catch_up().await?;
                if !events.is_empty() {
                    return Ok(events);
                }
            }
            match self.newest.recv().await {
                Ok(batch) => {
                    let events = self.take(&batch);
                    if !events.is_empty() {
                        return Ok(events);
                    }
                }
                Err(RecvError::Lagged(_)) => self.is_behind = true,
                Err(RecvError::Closed) => return Err(Error::internal("the store was closed")),
            }
        }
    }

    /// What the tail has besides, without waiting.
    pub fn more(&mut self, events: &mut Vec<Arc<Logged>>) {
        while !self.is_behind && events.len() < READ_EVENTS as usize {
            match self.newest.try_recv() {
                Ok(batch) => events.extend(self.take(&batch)),
                Err(TryRecvError::Lagged(_)) => self.is_behind = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// What of a batch is next; behind a gap the store is asked.
    fn take(&mut self, batch: &[Arc<Logged>]) -> Vec<Arc<Logged>> {
        let mut events = Vec::new();
        for logged in batch.iter().filter(|logged| logged.stored.position > self.cursor) {
            if !is_next(self.cursor, events.last(), logged) {
                self.is_behind = true;
                break;
            }
            events.push(logged.clone());
        }
        if let Some(last) = events.last() {
            self.cursor = last.stored.position;
        }
        events
    }

    /// Reads from the store; nothing at the log's end.
    async fn catch_up(&mut self) -> Result<Vec<Arc<Logged>>> {
        loop {
            let end = *self.tail.store.end().borrow();
            if self.cursor >= end {
                self.is_behind = false;
                return Ok(Vec::new());
            }
            let events = self.tail.store.follow(self.cursor, READ_EVENTS).await.map_err(from_store)?;
            let (Some(first), Some(last)) = (events.first(), events.last()) else {
                // A writer's log has ended; the next one's goes on after it.
                self.cursor = Position { writer: self.cursor.writer + 1, sequence: 0 };
                continue;
            };
            // Who begins at the beginning begins where there still is something.
            if self.cursor.sequence > 0 && first.position.sequence != self.cursor.sequence + 1 {
                return Err(Error::new(
                    Exception::InvalidNextToken,
                    "Events after the position were removed.",
                ));
            }
            self.cursor = last.position;
            let events = logged(events);
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

fn is_next(cursor: Position, last: Option<&Arc<Logged>>, next: &Logged) -> bool {
    let last = last.map_or(cursor, |last| last.stored.position);
    next.stored.position == Position { sequence: last.sequence + 1, ..last }
}
