//! The store on SQLite: one folder, one daemon, nothing else to install.
//!
//! ```text
//! commit ──► bounded queue ──► one writer thread ─► BEGIN; savepoint per commit;
//!                              takes all that wait    the events; COMMIT (one fsync),
//! row, events, … ──► a few read-only connections       then the replies
//! ```
//!
//! WAL with synchronous=FULL: what was answered is there after a power failure.
//! The database's file is for its owner only, and an flock on the folder keeps
//! a second daemon out.

mod copy;
mod folder;
mod peek;
mod recent;
mod schema;
mod sql;
mod write;
mod writer;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

pub(crate) use copy::remove_database;
pub use copy::{RestoreReport, backup, restore};
pub(crate) use folder::create_private;
use folder::{FolderLock, Space, sync_folder};
pub use peek::peek;
use recent::Recent;
pub(crate) use sql::{pack, unpack};
use writer::{Job, WriterThread};

use super::{
    Commit, Explained, Kind, Position, Row, RowId, SignedHead, Store, StoreError, StoredEvent, Writer,
};

/// The database in the data folder.
const DATABASE_FILE: &str = "strongroom.sqlite";
/// Calls that may wait for the writer; one more waits at its caller.
const QUEUE_MAX_JOBS: usize = 1_024;
/// Read-only connections.
const READERS: u32 = 4;
/// How often the free space is looked at.
const SPACE_INTERVAL_MS: u64 = 1_000;
/// How long [`Store::scrub`] tries against readers that hold an older state.
const SCRUB_TIMEOUT_MS: u64 = 10_000;
/// How long one try of it may hold up the writer.
const SCRUB_BUSY_TIMEOUT_MS: u64 = 200;
/// The wait between two tries.
const SCRUB_PAUSE_MS: u64 = 50;

/// How a [`SqliteStore`] works.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Below this much free space in the folder's file system new work is refused.
    pub min_free_bytes: u64,
    /// The largest database, in pages of 4096 bytes; None for SQLite's own limit.
    pub max_pages: Option<u32>,
    /// How long [`Store::commit`] may take.
    pub commit_timeout_ms: u64,
    /// How long a read may take.
    pub read_timeout_ms: u64,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        SqliteOptions {
            min_free_bytes: 256 << 20,
            max_pages: None,
            commit_timeout_ms: 10_000,
            read_timeout_ms: 10_000,
        }
    }
}

/// Why a data folder cannot be used. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the data folder {} is in use{}: stop that daemon first", folder.display(), by(*pid))]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The process that has it, where it said so.
        pid: Option<u32>,
    },
    /// The folder or a file of it cannot be made or opened.
    #[error("the data folder {}: {error}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A newer Strongroom made the schema.
    #[error(
        "the database {} has schema version {found}, and this strongroom knows up to {known}: \
         start the newer strongroom, or restore a backup from before its first start",
        file.display()
    )]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The file is damaged.
    #[error("the database {} is damaged ({what}): restore a backup with `strongroom restore`", file.display())]
    Corrupt {
        /// The database.
        file: PathBuf,
        /// What SQLite found.
        what: String,
    },
    /// SQLite failed otherwise.
    #[error("the database {}: {error}", file.display())]
    Database {
        /// The database.
        file: PathBuf,
        /// What SQLite says.
        error: String,
    },
    /// A file is not to be overwritten.
    #[error("{} exists: {remedy}", file.display())]
    Exists {
        /// The file.
        file: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// A restore stopped half-way.
    #[error("the restore into {} did not finish: run `strongroom restore` again", folder.display())]
    Unfinished {
        /// The data folder.
        folder: PathBuf,
    },
    /// The database has had as many writers as there are numbers for.
    #[error("{} was restored too often", file.display())]
    WritersUsedUp {
        /// The backup.
        file: PathBuf,
    },
    /// A file that is no database of Strongroom.
    #[error("{} is no database of strongroom", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

impl OpenError {
    /// Tells damage from other failures.
    fn database(file: &Path, error: sqlx::Error) -> Self {
        let file = file.to_owned();
        match sql::is_damage(&error) {
            true => OpenError::Corrupt { file, what: error.to_string() },
            false => OpenError::Database { file, error: error.to_string() },
        }
    }
}

/// What [`SqliteStore::restored`] tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was put in place, milliseconds since the epoch.
    pub at_ms: i64,
    /// The last event that the backup had; None where it had none. What came
    /// after it is not known here.
    pub follows: Option<Position>,
}

/// A [`Store`] on SQLite.
#[derive(Debug)]
pub struct SqliteStore {
    file: PathBuf,
    options: SqliteOptions,
    jobs: mpsc::Sender<Job>,
    readers: SqlitePool,
    end: watch::Receiver<Position>,
    space: Arc<Space>,
    recent: Arc<Recent>,
    restored: Mutex<Option<Restored>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    space_watch: AbortHandle,
}

impl SqliteStore {
    /// Takes the folder, makes what is missing in it, and checks what is there.
    ///
    /// Must be called in a Tokio runtime.
    pub async fn open(folder: &Path, options: SqliteOptions) -> Result<Self, OpenError> {
        let lock = FolderLock::take(folder)?;
        let file = folder.join(DATABASE_FILE);
        copy::refuse_unfinished(folder)?;
        let io = |error| OpenError::Folder { folder: folder.to_owned(), error };
        create_private(&file).and_then(|()| sync_folder(folder)).map_err(io)?;

        let database = |error| OpenError::database(&file, error);
        let mut db = prepare(&file).await?;
        let writers = sql::writers(&mut db).await.map_err(database)?;
        let (end, restored) = match writers.last() {
            Some(writer) => {
                let restored = sql::unacknowledged_restore(&mut db, writer.id).await.map_err(database)?;
                let end = writer::log_end(&mut db, *writer).await.map_err(database)?;
                (end, restored.map(|at_ms| Restored { at_ms, follows: writer.follows }))
            }
            None => {
                let first = Writer { id: 1, follows: None, restored_ms: None };
                sql::insert_writer(&mut db, first, now_ms()).await.map_err(database)?;
                (writer::log_end(&mut db, first).await.map_err(database)?, None)
            }
        };
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(Duration::from_millis(options.read_timeout_ms))
            .connect_with(schema::options(&file).read_only(true))
            .await
            .map_err(database)?;

        let space = Arc::new(Space::new(folder, options.min_free_bytes));
        let (jobs, waiting) = mpsc::channel(QUEUE_MAX_JOBS);
        sqlx::Connection::close(db).await.map_err(database)?;
        let recent = Arc::new(Recent::default());
        let (writer, end) =
            WriterThread::start(lock, &file, options.max_pages, end, waiting, space.clone(), recent.clone())?;
        let space_watch = tokio::spawn(watch_space(space.clone())).abort_handle();
        Ok(SqliteStore {
            file,
            options,
            jobs,
            readers,
            end,
            space,
            recent,
            restored: Mutex::new(restored),
            writer: Mutex::new(Some(writer)),
            space_watch,
        })
    }

    /// That the database was put back from a backup and that nobody has yet
    /// done what follows from it.
    pub fn restored(&self) -> Option<Restored> {
        *self.restored.lock()
    }

    /// What follows from the restore is done: later starts do not tell of it.
    pub async fn acknowledge_restore(&self) -> Result<(), StoreError> {
        self.ask(|reply| Job::AcknowledgeRestore { reply }).await?;
        *self.restored.lock() = None;
        Ok(())
    }

    /// Looks for damage in the whole database, however long that takes.
    pub async fn check(&self) -> Result<(), OpenError> {
        let open = schema::options(&self.file).read_only(true).connect().await;
        let mut db = open.map_err(|e| OpenError::database(&self.file, e))?;
        schema::check_fully(&mut db, &self.file).await
    }

    /// Carries out what waits, then gives the folder back. Later commits fail.
    pub async fn close(&self) -> Result<(), StoreError> {
        let Some(writer) = self.writer.lock().take() else { return Ok(()) };
        let limit = Duration::from_millis(self.options.commit_timeout_ms);
        let closed = timeout(limit, async {
            self.readers.close().await;
            // An error means that the writer has ended already.
            self.jobs.send(Job::Close).await.ok();
            tokio::task::spawn_blocking(|| writer.join()).await
        });
        match closed.await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(_) => Err(StoreError::Failed("the writer ended badly".into())),
            Err(_) => Err(late("closing", self.options.commit_timeout_ms)),
        }
    }

    /// Sends the writer a job and waits for its answer, both within the deadline.
    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Failed("the store is closed".into());
        let (reply, answer) = oneshot::channel();
        let work = async {
            self.jobs.send(job(reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        let limit_ms = self.options.commit_timeout_ms;
        timeout(Duration::from_millis(limit_ms), work).await.map_err(|_| late("the commit", limit_ms))?
    }

    async fn read<T>(&self, work: impl Future<Output = sqlx::Result<T>>) -> Result<T, StoreError> {
        let limit_ms = self.options.read_timeout_ms;
        let done = timeout(Duration::from_millis(limit_ms), work).await;
        done.map_err(|_| late("reading", limit_ms))?.map_err(sql::failed)
    }

    /// Moves the journal into the database and empties it; false where a
    /// reader still needs it.
    async fn checkpoint(&self) -> sqlx::Result<bool> {
        let mut db = schema::options(&self.file)
            .busy_timeout(Duration::from_millis(SCRUB_BUSY_TIMEOUT_MS))
            .connect()
            .await?;
        let (busy, _, _): (i64, i64, i64) =
            sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut db).await?;
        Ok(busy == 0)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The writer ends by itself when it has no more senders.
        self.space_watch.abort();
    }
}

#[async_trait::async_trait]
impl Store for SqliteStore {
    async fn commit(&self, commit: Commit) -> Result<Position, StoreError> {
        self.ask(|reply| Job::Commit { commit, reply }).await
    }

    fn accepts_work(&self) -> bool {
        self.space.is_enough()
    }

    async fn row(&self, id: &RowId) -> Result<Option<Row>, StoreError> {
        self.read(sql::row(&self.readers, id)).await
    }

    async fn rows(
        &self,
        kind: Kind,
        region: &str,
        account: &str,
        parent: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Row>, StoreError> {
        self.read(sql::rows(&self.readers, kind, (region, account), parent, after, limit)).await
    }

    async fn count(
        &self,
        kind: Kind,
        region: &str,
        account: &str,
        parent: Option<&str>,
    ) -> Result<u64, StoreError> {
        self.read(sql::count(&self.readers, kind, region, account, parent)).await
    }

    async fn all_rows(&self, kind: Kind, after: Option<&RowId>, limit: u32) -> Result<Vec<Row>, StoreError> {
        self.read(sql::all_rows(&self.readers, kind, after, limit)).await
    }

    async fn find(&self, kind: Kind, region: &str, id: &str) -> Result<Option<Row>, StoreError> {
        self.read(sql::find(&self.readers, kind, region, id)).await
    }

    async fn due(&self, kind: Kind, now_ms: i64, limit: u32) -> Result<Vec<Row>, StoreError> {
        self.read(sql::due(&self.readers, kind, now_ms, limit)).await
    }

    async fn events(&self, after: Position, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        self.read(sql::events(&self.readers, after, limit)).await
    }

    async fn follow(&self, after: Position, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        match self.recent.after(after, limit) {
            Some(events) => Ok(events),
            None => self.events(after, limit).await,
        }
    }

    async fn events_at(&self, positions: &[Position]) -> Result<Vec<StoredEvent>, StoreError> {
        let found = self.read(sql::events_at(&self.readers, positions)).await?;
        let mut found: HashMap<Position, StoredEvent> =
            found.into_iter().map(|event| (event.position, event)).collect();
        Ok(positions.iter().filter_map(|position| found.remove(position)).collect())
    }

    async fn writers(&self) -> Result<Vec<Writer>, StoreError> {
        self.read(sql::writers(&self.readers)).await
    }

    fn end(&self) -> watch::Receiver<Position> {
        self.end.clone()
    }

    async fn sign_head(&self, head: SignedHead) -> Result<(), StoreError> {
        self.ask(|reply| Job::SignHead { head, reply }).await
    }

    async fn heads(&self, after: Position, limit: u32) -> Result<Vec<SignedHead>, StoreError> {
        self.read(sql::heads(&self.readers, after, limit)).await
    }

    async fn hash_at(&self, position: Position) -> Result<Option<[u8; 32]>, StoreError> {
        self.read(sql::hash_at(&self.readers, position)).await
    }

    async fn explain(&self, said: Vec<Explained>) -> Result<(), StoreError> {
        self.ask(|reply| Job::Explain { said, reply }).await
    }

    async fn explained(
        &self,
        until: Position,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<Explained>, StoreError> {
        self.read(sql::explained(&self.readers, until, after, limit)).await
    }

    async fn replace_explained(&self, said: Vec<Explained>) -> Result<(), StoreError> {
        self.ask(|reply| Job::ReplaceExplained { said, reply }).await
    }

    async fn remove_until(&self, position: Position) -> Result<bool, StoreError> {
        self.ask(|reply| Job::RemoveUntil { position, reply }).await
    }

    async fn bytes_used(&self) -> Result<u64, StoreError> {
        self.read(sql::bytes_used(&self.readers)).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        if self.jobs.is_closed() {
            return Err(StoreError::Failed("the store is closed".into()));
        }
        self.read(sql::last_event(&self.readers)).await.map(drop)
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        let work = async {
            while !self.checkpoint().await.map_err(sql::failed)? {
                sleep(Duration::from_millis(SCRUB_PAUSE_MS)).await;
            }
            Ok(())
        };
        timeout(Duration::from_millis(SCRUB_TIMEOUT_MS), work)
            .await
            .map_err(|_| late("emptying the journal", SCRUB_TIMEOUT_MS))?
    }
}

/// Makes a database that is sound and up to date.
async fn prepare(file: &Path) -> Result<SqliteConnection, OpenError> {
    // The version first, in a connection that sets nothing: the file of a
    // newer schema must stay as it is.
    let database = |error| OpenError::database(file, error);
    let mut look = schema::options(file).connect().await.map_err(database)?;
    schema::refuse_newer(&mut look, file).await?;
    schema::check_quickly(&mut look, file).await?;
    sqlx::Connection::close(look).await.map_err(database)?;
    let mut db = schema::migration_options(file).connect().await.map_err(database)?;
    schema::migrate(&mut db, file).await?;
    Ok(db)
}

async fn watch_space(space: Arc<Space>) {
    loop {
        sleep(Duration::from_millis(SPACE_INTERVAL_MS)).await;
        let space = space.clone();
        // A file system that hangs holds a thread of the pool, not a worker.
        if let Err(error) = tokio::task::spawn_blocking(move || space.refresh()).await {
            tracing::error!(%error, "looking at the free space failed");
        }
    }
}

fn late(what: &str, limit_ms: u64) -> StoreError {
    StoreError::Failed(format!("{what} took longer than {limit_ms} ms"))
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
