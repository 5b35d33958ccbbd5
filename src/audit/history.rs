//! The history: who did what with what, newest first, as LookupEvents asks.
//!
//! ```text
//! Store::end moves ──► feed: events behind the cursor ──► entries by attribute
//!                                                            │
//! lookup: waits until the feed has passed the log's end ─────┘──► events from the store
//! ```
//!
//! The index is a file of its own and holds nothing that is not in the log: where
//! it is missing, damaged or does not fit the log (which was restored), it is
//! made again from the log's beginning.

mod attributes;
mod index;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::TryFutureExt as _;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

pub use attributes::{Attribute, Attributes, attributes, insights_of};
use index::{Cursor, Index};

use crate::audit::follow;
use crate::store::{Position, Store, StoreError, StoredEvent};

/// The index in the data folder.
const INDEX_FILE: &str = "history.sqlite";
/// Events that are taken in at once.
const FEED_BATCH: u32 = 1_000;
/// The wait after the log moved, so that many events are taken in together; a
/// lookup ends it.
const FEED_PAUSE_MS: u64 = 100;
/// The wait after the feed failed.
const FEED_RETRY_MS: u64 = 1_000;
/// How long a lookup waits for the feed.
const LOOKUP_WAIT_MS: u64 = 5_000;
/// How long its query may take.
const LOOKUP_TIMEOUT_MS: u64 = 5_000;

/// What to look for.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The account whose events these are (recipientAccountId).
    pub account: String,
    /// The Region whose events these are (awsRegion).
    pub region: String,
    /// One attribute and its value; all events without one.
    pub attribute: Option<(Attribute, String)>,
    /// The earliest eventTime, milliseconds since the epoch.
    pub start_ms: i64,
    /// The latest eventTime, also included.
    pub end_ms: i64,
    /// Where the page before ended.
    pub before: Option<PageCursor>,
    /// The most events of a page.
    pub limit: u32,
}

impl Lookup {
    /// Whether an event is one of those that are looked for, its time aside.
    fn fits(&self, event: &Attributes) -> bool {
        let here = event.account == self.account && event.region == self.region;
        here && self.attribute.as_ref().is_none_or(|wanted| event.values.contains(wanted))
    }
}

/// The last event of a page. Events have a total order (time, writer,
/// sequence), so pages neither repeat nor miss any, whatever is added meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageCursor {
    /// Its eventTime, milliseconds since the epoch.
    pub time_ms: i64,
    /// Its place in the log.
    pub position: Position,
}

/// An answer to a [`Lookup`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The events, newest first.
    pub events: Vec<StoredEvent>,
    /// Where the next page begins; None at the last one.
    pub next: Option<PageCursor>,
}

/// The index and the task that keeps it up to date.
pub struct History {
    shared: Arc<Shared>,
    feed: AbortHandle,
}

struct Shared {
    store: Arc<dyn Store>,
    file: PathBuf,
    /// Replaced as a whole when the index is made again.
    index: ArcSwap<Index>,
    /// How far the feed is in the log of the writer that this process is; None
    /// until the logs of earlier writers are in.
    reached: watch::Sender<Option<u64>>,
    /// A lookup waits for the feed.
    wanted: Notify,
    /// A lookup came upon damage in the index.
    damage: Notify,
}

impl History {
    /// Opens the index in the data folder, made again where it does not fit
    /// the log, and begins to feed it.
    pub async fn open(folder: &Path, store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let file = folder.join(INDEX_FILE);
        let index = match opened(&file, Index::open).await {
            Ok(index) if fits(&index, store.as_ref()).await? => index,
            Ok(index) => {
                tracing::warn!(file = %file.display(), "the history does not fit the log and is made again");
                index.close();
                opened(&file, Index::create).await?
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the history is damaged and is made again");
                opened(&file, Index::create).await?
            }
        };
        let (reached, _) = watch::channel(None);
        let index = ArcSwap::new(index);
        let shared =
            Arc::new(Shared { store, file, index, reached, wanted: Notify::new(), damage: Notify::new() });
        let feed = tokio::spawn(shared.clone().feed()).abort_handle();
        Ok(History { shared, feed })
    }

    /// One page of events. Every event that was in the log at the call is
    /// considered: a feed that is too far behind is [`StoreError::Failed`].
    pub async fn lookup(&self, lookup: &Lookup) -> Result<Page, StoreError> {
        // The index first: one that is made again meanwhile fails the query,
        // where a new one that is not yet full would answer too little.
        let index = self.shared.index.load_full();
        self.shared.caught_up().await?;
        let asked = lookup.clone();
        let found = blocking(move || index.find(&asked));
        let found = timeout(Duration::from_millis(LOOKUP_TIMEOUT_MS), found).await;
        let late = || StoreError::Failed(format!("the lookup took longer than {LOOKUP_TIMEOUT_MS} ms"));
        let mut found = found.map_err(|_| late())?.inspect_err(|error| self.shared.note(error))?;
        // An eventID is one event's: what else was of that time is left out below.
        let limit = match lookup.attribute {
            Some((Attribute::EventId, _)) => usize::MAX,
            _ => usize::try_from(lookup.limit).unwrap_or(usize::MAX),
        };
        let more = found.len() > limit;
        found.truncate(limit);
        let positions: Vec<Position> = found.iter().map(|entry| entry.position).collect();
        let mut events = self.shared.store.events_at(&positions).await?;
        events.retain(|event| attributes(&event.record).is_some_and(|found| lookup.fits(&found)));
        Ok(Page { events, next: found.last().copied().filter(|_| more) })
    }
}

impl History {
    /// Forgets the days before a time, and the oldest while the index uses more
    /// bytes; a day of now stays. Lookups and the feed go on meanwhile.
    ///
    /// # Errors
    /// When the index cannot be changed.
    pub async fn trim(&self, before_ms: i64, now_ms: i64, bytes_max: Option<u64>) -> Result<(), StoreError> {
        self.forget(before_ms).await?;
        let Some(bytes_max) = bytes_max else { return Ok(()) };
        loop {
            let index = self.shared.index.load_full();
            match blocking(move || index.extent()).await? {
                (Some(oldest_end_ms), bytes) if bytes > bytes_max && oldest_end_ms <= now_ms => {
                    self.forget(oldest_end_ms).await?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// How far the feed is; at the beginning where the index is made again.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn cursor(&self) -> Result<follow::Cursor, StoreError> {
        let index = self.shared.index.load_full();
        let mut cursor = follow::Cursor::default();
        blocking(move || index.cursors()).await?.into_iter().for_each(|known| cursor.pass(known.position));
        Ok(cursor)
    }

    async fn forget(&self, before_ms: i64) -> Result<(), StoreError> {
        loop {
            let index = self.shared.index.load_full();
            if !blocking(move || index.forget(before_ms)).await? {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

async fn opened(file: &Path, open: fn(&Path) -> Result<Index, IndexError>) -> Result<Arc<Index>, IndexError> {
    let file = file.to_owned();
    blocking(move || open(&file)).await.map(Arc::new)
}

/// Works on the index where that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IndexError> + Send + 'static,
) -> Result<T, IndexError> {
    tokio::task::spawn_blocking(work).await?
}

/// Whether the index's cursors stand at events that the log has.
async fn fits(index: &Arc<Index>, store: &dyn Store) -> Result<bool, StoreError> {
    let index = index.clone();
    let Ok(cursors) = blocking(move || index.cursors()).await else { return Ok(false) };
    for cursor in cursors {
        if store.hash_at(cursor.position).await? != Some(cursor.hash) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Shared {
    /// Waits until every event of the log at the call is in the index.
    async fn caught_up(&self) -> Result<(), StoreError> {
        let end = self.store.end().borrow().sequence;
        let mut reached = self.reached.subscribe();
        if reached.borrow().is_some_and(|reached| reached >= end) {
            return Ok(());
        }
        self.wanted.notify_one();
        let wait = reached.wait_for(|reached| reached.is_some_and(|reached| reached >= end));
        match timeout(Duration::from_millis(LOOKUP_WAIT_MS), wait).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StoreError::Failed("the history has not yet taken in the whole log".into())),
        }
    }

    /// Follows the log as long as the store is there.
    async fn feed(self: Arc<Self>) {
        let mut end = self.store.end();
        loop {
            end.mark_unchanged();
            let damaged = match self.catch_up().await {
                Ok(()) => tokio::select! {
                    changed = end.changed() => match changed {
                        Ok(()) => false,
                        Err(_) => return,
                    },
                    () = self.damage.notified() => true,
                },
                Err(error) => {
                    tracing::error!(%error, "the history cannot take in the log");
                    sleep(Duration::from_millis(FEED_RETRY_MS)).await;
                    error.needs_new_index()
                }
            };
            match damaged {
                true => self.renew().await,
                false => {
                    // In time or wanted, what waits is taken in.
                    timeout(Duration::from_millis(FEED_PAUSE_MS), self.wanted.notified()).await.ok();
                }
            }
        }
    }

    /// Takes in what every writer's log has behind its cursor.
    async fn catch_up(&self) -> Result<(), FeedError> {
        let own = self.store.end().borrow().writer;
        let index = self.index.load_full();
        let read = index.clone();
        let cursors = blocking(move || read.cursors()).await?;
        for writer in self.store.writers().await? {
            let beginning = Position { writer: writer.id, sequence: 0 };
            let known = cursors.iter().find(|cursor| cursor.position.writer == writer.id);
            let mut after = known.map_or(beginning, |cursor| cursor.position);
            loop {
                if writer.id == own {
                    self.reached.send_replace(Some(after.sequence));
                }
                let events = self.store.follow(after, FEED_BATCH).await?;
                let Some(last) = events.last() else { break };
                after = last.position;
                let cursor = Cursor { position: after, hash: last.hash };
                let index = index.clone();
                blocking(move || index.add(&events, cursor)).await?;
            }
        }
        Ok(())
    }

    /// Makes the index again; until it has the log, lookups wait.
    async fn renew(&self) {
        tracing::warn!(file = %self.file.display(), "the history is damaged and is made again");
        let damaged = self.index.load_full();
        let closed = blocking(move || {
            damaged.close();
            Ok(())
        });
        self.reached.send_replace(None);
        match closed.and_then(|()| opened(&self.file, Index::create)).await {
            Ok(index) => self.index.store(index),
            Err(error) => tracing::error!(%error, "the history cannot be made again"),
        }
    }

    /// Damage that a lookup came upon is the feed's to mend.
    fn note(&self, error: &IndexError) {
        if error.is_damage() {
            self.damage.notify_one();
        }
    }
}

/// Which side of the feed failed.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("history: {0}")]
    Index(#[from] IndexError),
}

impl FeedError {
    /// Whether the index must be made again: it is damaged, or was closed for
    /// that and the new one could not be made.
    fn needs_new_index(&self) -> bool {
        matches!(self, FeedError::Index(error) if error.is_damage() || matches!(error, IndexError::Closed))
    }
}

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
enum IndexError {
    #[error(transparent)]
    File(io::Error),
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    #[error("it has layout {0}")]
    Layout(i64),
    #[error("it is closed")]
    Closed,
    #[error(transparent)]
    Ended(#[from] tokio::task::JoinError),
}

impl IndexError {
    fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let IndexError::Database(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
    }
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        StoreError::Failed(format!("history: {error}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::store::sqlite::{SqliteOptions, SqliteStore};
    use crate::store::{Commit, NewEvent};

    #[tokio::test]
    async fn an_index_that_is_damaged_at_work_is_made_again() {
        let folder = tempfile::TempDir::new().unwrap();
        let options = SqliteOptions { min_free_bytes: 0, ..SqliteOptions::default() };
        let store = Arc::new(SqliteStore::open(folder.path(), options).await.unwrap());
        let record =
            r#"{"eventID":"e","eventName":"n","eventSource":"s","awsRegion":"r","recipientAccountId":"a"}"#;
        let event = NewEvent { id: "e".into(), time_ms: 1, record: record.into() };
        store.commit(Commit { changes: vec![], events: vec![event; 3] }).await.unwrap();
        let history = History::open(folder.path(), store.clone()).await.unwrap();
        let lookup = Lookup {
            account: "a".into(),
            region: "r".into(),
            attribute: None,
            start_ms: 0,
            end_ms: 1,
            before: None,
            limit: 10,
        };
        let whole = history.lookup(&lookup).await.unwrap();
        assert_eq!(whole.events.len(), 3);

        let damaged = history.shared.index.load_full();
        history.shared.damage.notify_one();
        while Arc::ptr_eq(&damaged, &history.shared.index.load_full()) {
            // Whatever a lookup says meanwhile, it does not say too little.
            if let Ok(page) = history.lookup(&lookup).await {
                assert_eq!(page, whole);
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(history.lookup(&lookup).await.unwrap(), whole);
        drop(history);
        store.close().await.unwrap();
    }
}
