//! Group commit: one thread, one connection, one fsync for all that wait.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rusqlite::Connection;
use sqlx::{ConnectOptions, SqliteConnection};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::folder::{FolderLock, Space};
use super::recent::Recent;
use super::{OpenError, now_ms, schema, sql, write};
use crate::store::{
    Change, Commit, Effect, Explained, GENESIS_HASH, NewEvent, Position, SignedHead, StoreError, StoredEvent,
    Writer, chain_hash,
};

/// The most jobs that are taken at once, and so the most commits of a transaction.
const GROUP_MAX_JOBS: usize = 512;
/// The most bytes of rows and events that they bring; the one that reaches it is the last.
const GROUP_MAX_BYTES: usize = 8 << 20;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Job {
    Commit { commit: Commit, reply: Reply<Position> },
    SignHead { head: SignedHead, reply: Reply<()> },
    AcknowledgeRestore { reply: Reply<()> },
    Explain { said: Vec<Explained>, reply: Reply<()> },
    ReplaceExplained { said: Vec<Explained>, reply: Reply<()> },
    RemoveUntil { position: Position, reply: Reply<bool> },
    Close,
}

/// Where this writer's log ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogEnd {
    writer: Writer,
    position: Position,
    hash: [u8; 32],
}

/// Reads from the database where the writer's log ends.
pub(super) async fn log_end(db: &mut SqliteConnection, writer: Writer) -> sqlx::Result<LogEnd> {
    let beginning = Position { writer: writer.id, sequence: 0 };
    if let Some((position, hash)) = sql::last_event(&mut *db).await?
        && position.writer >= writer.id
    {
        return match position.writer == writer.id {
            true => Ok(LogEnd { writer, position, hash }),
            false => Err(sqlx::Error::Protocol(format!(
                "the log has events of writer {}, whom the database does not know",
                position.writer
            ))),
        };
    }
    let hash = match writer.follows {
        Some(follows) => sql::hash_at(db, follows).await?.ok_or_else(|| {
            let Position { writer, sequence } = follows;
            sqlx::Error::Protocol(format!("the log lacks event {writer}/{sequence}, on which it goes on"))
        })?,
        None => GENESIS_HASH,
    };
    Ok(LogEnd { writer, position: beginning, hash })
}

/// The writer: everything that changes the database goes through it.
pub(super) struct WriterThread {
    /// None after a failure, until it is opened again.
    db: Option<Connection>,
    file: PathBuf,
    max_pages: Option<u32>,
    end: LogEnd,
    announce: watch::Sender<Position>,
    jobs: mpsc::Receiver<Job>,
    space: Arc<Space>,
    recent: Arc<Recent>,
    /// Where the log's end is read again after a failure.
    runtime: Handle,
    // INVARIANT: held until the connection above is closed; fields drop in order.
    _lock: FolderLock,
}

/// What was taken from the queue at once.
#[derive(Default)]
struct Batch {
    commits: Vec<(Commit, Reply<Position>)>,
    bytes: usize,
    others: Vec<Job>,
    close: bool,
}

/// What a transaction made durable.
struct Written {
    /// Each commit's own outcome.
    outcomes: Vec<Result<Position, StoreError>>,
    events: Vec<StoredEvent>,
    /// The log's new end.
    end: LogEnd,
}

impl WriterThread {
    /// Starts the thread, and tells where its log ends.
    pub(super) fn start(
        lock: FolderLock,
        file: &Path,
        max_pages: Option<u32>,
        end: LogEnd,
        jobs: mpsc::Receiver<Job>,
        space: Arc<Space>,
        recent: Arc<Recent>,
    ) -> Result<(JoinHandle<()>, watch::Receiver<Position>), OpenError> {
        let failed = |error: String| OpenError::Database { file: file.to_owned(), error };
        let db = write::open(file, max_pages).map_err(|error| failed(error.to_string()))?;
        let (announce, announced) = watch::channel(end.position);
        let (file, runtime) = (file.to_owned(), Handle::current());
        let writer = WriterThread {
            db: Some(db),
            file: file.clone(),
            max_pages,
            end,
            announce,
            jobs,
            space,
            recent,
            runtime,
            _lock: lock,
        };
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(|| writer.run());
        Ok((thread.map_err(|error| OpenError::Database { file, error: error.to_string() })?, announced))
    }

    /// Works until it is told to close or nobody is left who could ask.
    fn run(mut self) {
        while let Some(first) = self.jobs.blocking_recv() {
            let batch = self.gather(first);
            self.commit(batch.commits);
            for job in batch.others {
                self.other(job);
            }
            if batch.close {
                // What is still in the queue is carried out; nothing more comes in.
                self.jobs.close();
            }
        }
        self.disconnect();
    }

    /// Takes what waits, up to the limits, and leaves out what nobody waits for any more.
    fn gather(&mut self, first: Job) -> Batch {
        let mut batch = Batch::default();
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Commit { reply, .. } if reply.is_closed() => {}
                Job::Commit { commit, reply } => {
                    batch.bytes += size_of_commit(&commit);
                    batch.commits.push((commit, reply));
                }
                Job::Close => batch.close = true,
                other => batch.others.push(other),
            }
            let taken = batch.commits.len() + batch.others.len();
            let full = taken >= GROUP_MAX_JOBS || batch.bytes >= GROUP_MAX_BYTES;
            next = if full { None } else { self.jobs.try_recv().ok() };
        }
        batch
    }

    fn commit(&mut self, group: Vec<(Commit, Reply<Position>)>) {
        if group.is_empty() {
            return;
        }
        let (commits, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let outcomes = match self.write(commits) {
            Ok(Written { outcomes, events, end }) => {
                self.end = end;
                // Before it is announced that they are there.
                self.recent.push(events);
                // Those who wait for an answer come before those who follow the log.
                self.announce.send_if_modified(|position| {
                    *position = end.position;
                    false
                });
                if outcomes.iter().any(|outcome| matches!(outcome, Err(StoreError::Full))) {
                    self.space.ran_out();
                }
                outcomes
            }
            Err(error) => {
                self.recover(&error);
                vec![Err(error); replies.len()]
            }
        };
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // Somebody who gave up meanwhile needs no answer.
            reply.send(outcome).ok();
        }
        self.announce.send_modify(|_| ());
    }

    /// One transaction for all.
    fn write(&mut self, commits: Vec<Commit>) -> Result<Written, StoreError> {
        let (db, mut end) = self.connection()?;
        write::run(db, "BEGIN IMMEDIATE").map_err(write::failed)?;
        let mut outcomes = Vec::with_capacity(commits.len());
        let mut appended = Vec::with_capacity(commits.len());
        for Commit { changes, events: new } in commits {
            let outcome = match write::apply(db, changes)? {
                Ok(effects) => {
                    let mut effects = effects_text(&effects)?;
                    for event in new {
                        // Only the first event carries the effects.
                        let effects = std::mem::replace(&mut effects, NO_EFFECTS.into());
                        let event = end.append(event, effects);
                        write::append(db, &event).map_err(write::failed)?;
                        appended.push(event);
                    }
                    Ok(end.position)
                }
                Err(error) => Err(error),
            };
            outcomes.push(outcome);
        }
        write::run(db, "COMMIT").map_err(write::failed)?;
        Ok(Written { outcomes, events: appended, end })
    }

    fn other(&mut self, job: Job) {
        match job {
            Job::SignHead { head, reply } => {
                let done = self.work(|db| write::insert_head(db, &head));
                self.answer(reply, done);
            }
            Job::AcknowledgeRestore { reply } => {
                let writer = self.end.writer.id;
                let done = self.work(|db| write::acknowledge_restore(db, writer, now_ms()));
                self.answer(reply, done);
            }
            Job::Explain { said, reply } => {
                let done = self.work(|db| write::explain(db, &said));
                self.answer(reply, done);
            }
            Job::ReplaceExplained { said, reply } => {
                let done = self.work(|db| write::replace_explained(db, &said));
                self.answer(reply, done);
            }
            Job::RemoveUntil { position, reply } => {
                let done = self.work(|db| write::remove_until(db, position));
                self.answer(reply, done);
            }
            // They are in the batch's other fields.
            Job::Commit { .. } | Job::Close => {}
        }
    }

    fn work<T>(&mut self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let (db, _) = self.connection()?;
        work(db).map_err(write::failed)
    }

    fn answer<T>(&mut self, reply: Reply<T>, done: Result<T, StoreError>) {
        if let Err(error) = &done {
            self.recover(error);
        }
        reply.send(done).ok();
    }

    /// The connection, opened again after a failure. What the database then
    /// says is the log's end, whatever the failure left open.
    fn connection(&mut self) -> Result<(&Connection, LogEnd), StoreError> {
        let db = match self.db.take() {
            Some(db) => db,
            None => {
                let db = write::open(&self.file, self.max_pages).map_err(write::failed)?;
                let read = async {
                    let mut db = schema::options(&self.file).read_only(true).connect().await?;
                    let end = log_end(&mut db, self.end.writer).await?;
                    sqlx::Connection::close(db).await.map(|()| end)
                };
                self.end = self.runtime.block_on(read).map_err(sql::failed)?;
                self.announce.send_replace(self.end.position);
                db
            }
        };
        Ok((self.db.insert(db), self.end))
    }

    /// After a failed write: the transaction goes with its connection.
    fn recover(&mut self, error: &StoreError) {
        tracing::error!(%error, "a write to the database failed");
        self.disconnect();
        match error {
            StoreError::Full => self.space.ran_out(),
            _ => self.space.refresh(),
        }
    }

    fn disconnect(&mut self) {
        if let Some(db) = self.db.take()
            && let Err((_, error)) = db.close()
        {
            tracing::warn!(%error, "closing the database failed");
        }
    }
}

impl LogEnd {
    /// The last event before the end, also of a writer before this one.
    pub(super) fn last_event(&self) -> Option<Position> {
        match self.position.sequence {
            0 => self.writer.follows,
            _ => Some(self.position),
        }
    }

    /// The next event; the end moves behind it.
    fn append(&mut self, event: NewEvent, effects: String) -> StoredEvent {
        let position = Position { sequence: self.position.sequence + 1, ..self.position };
        let NewEvent { id, time_ms, record } = event;
        let hash = chain_hash(&self.hash, position, &id, time_ms, &record, &effects);
        self.position = position;
        self.hash = hash;
        StoredEvent { position, id, time_ms, record: record.into(), effects, hash }
    }
}

const NO_EFFECTS: &str = "[]";

fn effects_text(effects: &[Effect]) -> Result<String, StoreError> {
    if effects.is_empty() {
        return Ok(NO_EFFECTS.into());
    }
    serde_json::to_string(effects).map_err(|e| StoreError::Failed(e.to_string()))
}

fn size_of_commit(commit: &Commit) -> usize {
    let changes = commit.changes.iter().map(|change| match change {
        Change::Put(row) => row.body.len(),
        Change::Delete { .. } => 0,
    });
    let events = commit.events.iter().map(|event| event.record.len());
    changes.chain(events).sum()
}
