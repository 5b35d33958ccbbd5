//! Readers of the log that remember how far they are.
//!
//! Each goes at its own pace: what it has not yet read is in the log, so one
//! that waits for something slow neither loses events nor keeps others waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::tail::{Logged, Reader};
use crate::app::App;
use crate::audit::trail::service_event;
use crate::error::Result;
use crate::registry::{Draft, Held, Stored, from_store};
use crate::store::{Commit, Kind, Position, RowId, Store};

/// The wait after the log moved, so that events of the same moment are read together.
const READ_PAUSE: Duration = Duration::from_millis(3);
/// How often a place is written down; after a crash as much is read again.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long an HSM may take to seal it.
const SAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How far a reader of the log is: the last sequence of each writer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor(BTreeMap<u32, u64>);

impl Cursor {
    /// Behind everything that is in the log now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn at_end(store: &dyn Store) -> Result<Cursor> {
        let mut cursor = Cursor::default();
        for writer in store.writers().await.map_err(from_store)? {
            // A writer goes on where the one before it ended.
            writer.follows.into_iter().for_each(|end| cursor.pass(end));
        }
        cursor.pass(*store.end().borrow());
        Ok(cursor)
    }

    /// The last position of a writer that was read.
    pub fn of(&self, writer: u32) -> Position {
        Position { writer, sequence: self.0.get(&writer).copied().unwrap_or(0) }
    }

    /// The last event before the first that was not read.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn place(&self, store: &dyn Store) -> Result<Position> {
        for writer in store.writers().await.map_err(from_store)? {
            let at = self.of(writer.id);
            if !store.follow(at, 1).await.map_err(from_store)?.is_empty() {
                return Ok(at);
            }
        }
        Ok(*store.end().borrow())
    }

    /// Moves behind an event.
    pub fn pass(&mut self, position: Position) {
        self.0.insert(position.writer, position.sequence);
    }

    /// Whether it has not read all that another one has.
    pub fn is_behind(&self, other: &Cursor) -> bool {
        other.0.iter().any(|(writer, sequence)| self.of(*writer).sequence < *sequence)
    }

    /// The writers that it has read something of.
    pub fn writers(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }
}

/// Where a reader is, as a row of its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// The last events that it is done with.
    pub cursor: Cursor,
}

impl Stored for Bookmark {
    const KIND: Kind = Kind::Bookmark;
}

/// The row of a reader's place.
pub fn bookmark(app: &App, name: &str) -> RowId {
    RowId {
        kind: Kind::Bookmark,
        region: app.region.to_string(),
        account: app.account.clone(),
        id: name.to_owned(),
    }
}

/// A reader of the log.
pub struct Follower {
    app: Arc<App>,
    id: RowId,
    saved: Option<Held<Bookmark>>,
    saved_at: Instant,
    cursor: Cursor,
    log: Reader,
    end: watch::Receiver<Position>,
}

impl Follower {
    /// The reader of this name: where it was, or at the log's end where there
    /// was none.
    ///
    /// # Errors
    /// When the store or the HSM fails.
    pub async fn resume(app: &Arc<App>, name: &str) -> Result<Follower> {
        let id = bookmark(app, name);
        let saved = match app.store.row(&id).await.map_err(from_store)? {
            Some(row) => Some(app.registry.open(row, Instant::now() + SAVE_TIMEOUT).await?),
            None => None,
        };
        let cursor = match &saved {
            Some(held) => Bookmark::clone(&held.value).cursor,
            None => Cursor::at_end(&*app.store).await?,
        };
        let from = cursor.place(&*app.store).await?;
        let mut follower = Follower {
            app: app.clone(),
            id,
            saved,
            saved_at: Instant::now(),
            cursor,
            log: app.tail.read(from),
            end: app.store.end(),
        };
        if follower.saved.is_none() {
            follower.write().await?;
        }
        Ok(follower)
    }

    /// A reader that begins at the log's end, and whose place nobody writes down.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn at_end(app: &Arc<App>) -> Result<Follower> {
        let cursor = Cursor::at_end(&*app.store).await?;
        let end = app.store.end();
        let from = cursor.of(end.borrow().writer);
        Ok(Follower {
            app: app.clone(),
            id: bookmark(app, ""),
            saved: None,
            saved_at: Instant::now(),
            cursor,
            log: app.tail.read(from),
            end,
        })
    }

    /// The next events, once there are any.
    ///
    /// # Errors
    /// When the store fails, or was closed.
    pub async fn next(&mut self) -> Result<Vec<Arc<Logged>>> {
        let mut events = self.log.next().await?;
        tokio::time::sleep(READ_PAUSE).await;
        self.log.more(&mut events);
        Ok(events)
    }

    /// Is done with everything up to an event.
    pub fn pass(&mut self, position: Position) {
        self.cursor.pass(position);
    }

    /// How many events of this daemon's are behind its place.
    pub fn backlog(&self) -> u64 {
        let end = *self.end.borrow();
        end.sequence.saturating_sub(self.cursor.of(end.writer).sequence)
    }

    /// Writes its place down, if the last time is long enough ago.
    ///
    /// # Errors
    /// When the store or the HSM fails.
    pub async fn save(&mut self) -> Result<()> {
        let is_new = self.saved.as_ref().is_none_or(|saved| saved.value.cursor != self.cursor);
        if is_new && self.saved_at.elapsed() >= SAVE_INTERVAL { self.write().await } else { Ok(()) }
    }

    /// Writes its place down.
    ///
    /// # Errors
    /// When the store or the HSM fails.
    pub async fn write(&mut self) -> Result<()> {
        let value = Bookmark { cursor: self.cursor.clone() };
        let draft = match &self.saved {
            Some(held) => Draft::replace(held, &value)?,
            None => Draft::insert(self.id.clone(), &value)?,
        };
        let changes = self.app.registry.seal(&[draft], Instant::now() + SAVE_TIMEOUT).await?;
        // Later places have no event: it would have to be read, and that would
        // move the place.
        let events = match &self.saved {
            Some(_) => Vec::new(),
            None => vec![service_event(&self.app, "StartLogReader", json!({ "reader": self.id.id }))?],
        };
        self.app.store.commit(Commit { changes, events }).await.map_err(from_store)?;
        let version = self.saved.as_ref().map_or(1, |held| held.version + 1);
        self.saved = Some(Held { id: self.id.clone(), version, value });
        self.saved_at = Instant::now();
        Ok(())
    }
}
