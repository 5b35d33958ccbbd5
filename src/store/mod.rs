//! What must survive: rows with a version and a MAC, and the event log.
//!
//! [`Store::commit`] is the only write: the changes and the events that explain
//! them, in one transaction that is durable when the call returns. The store
//! knows nothing of what rows mean; [`crate::registry`] gives them types and
//! checks their MACs.

pub mod sqlite;
mod types;
mod verify;

pub use types::*;
pub use verify::*;

/// What every database behind Strongroom must do; the contract suite
/// (`tests/`) runs against each implementation.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes changes and events durable, all or none, and only then returns
    /// the position of the last event (of the log's end where there was none).
    ///
    /// Commits of many callers share one transaction and one fsync (group
    /// commit); one that conflicts fails alone. The changes are the effects of
    /// the commit's first event.
    ///
    /// A call that is dropped, or whose deadline passes, before its turn has no
    /// effect; one whose deadline passes later fails with
    /// [`StoreError::Failed`] and may yet have become durable.
    async fn commit(&self, commit: Commit) -> Result<Position, StoreError>;

    /// Whether new work may begin: false below the free-space mark, in which
    /// case `commit` still takes the events of work that has begun.
    fn accepts_work(&self) -> bool;

    /// One row.
    async fn row(&self, id: &RowId) -> Result<Option<Row>, StoreError>;

    /// Rows of a kind in a Region and account by id, after `after`, at most
    /// `limit`; only those of `parent` where it is given.
    async fn rows(
        &self,
        kind: Kind,
        region: &str,
        account: &str,
        parent: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Row>, StoreError>;

    /// How many rows of a kind there are in a Region and account; only those of
    /// `parent` where it is given.
    async fn count(
        &self,
        kind: Kind,
        region: &str,
        account: &str,
        parent: Option<&str>,
    ) -> Result<u64, StoreError>;

    /// Rows of a kind, of every Region and account, in the order of their
    /// names, after `after`, at most `limit`.
    async fn all_rows(&self, kind: Kind, after: Option<&RowId>, limit: u32) -> Result<Vec<Row>, StoreError>;

    /// The row of this kind, Region and id, in whatever account it is.
    async fn find(&self, kind: Kind, region: &str, id: &str) -> Result<Option<Row>, StoreError>;

    /// Rows of a kind that are due at `now_ms`, the longest due first.
    async fn due(&self, kind: Kind, now_ms: i64, limit: u32) -> Result<Vec<Row>, StoreError>;

    /// Events after a position of a writer, in order, at most `limit`.
    async fn events(&self, after: Position, limit: u32) -> Result<Vec<StoredEvent>, StoreError>;

    /// The same for those who follow the log: the newest may come from memory,
    /// where a change of the database from outside is not seen.
    async fn follow(&self, after: Position, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        self.events(after, limit).await
    }

    /// The events at these positions, in the order asked for; those that are
    /// not there are left out.
    async fn events_at(&self, positions: &[Position]) -> Result<Vec<StoredEvent>, StoreError>;

    /// Everybody who appended to the log, the oldest first.
    async fn writers(&self) -> Result<Vec<Writer>, StoreError>;

    /// The writer that this process is, and where its log ends.
    fn end(&self) -> tokio::sync::watch::Receiver<Position>;

    /// Keeps a signature of the log's head.
    async fn sign_head(&self, head: SignedHead) -> Result<(), StoreError>;

    /// The signed heads of a writer, oldest first, after a position, at most `limit`.
    async fn heads(&self, after: Position, limit: u32) -> Result<Vec<SignedHead>, StoreError>;

    /// The hash of the event at a position, None where there is none.
    async fn hash_at(&self, position: Position) -> Result<Option<[u8; 32]>, StoreError>;

    /// Keeps what events said of rows, before they are removed. It counts once
    /// the log begins behind them.
    async fn explain(&self, said: Vec<Explained>) -> Result<(), StoreError>;

    /// Of each row the last of what was kept up to a position, in the order of
    /// their names (the kinds' by their texts), after `after`, at most `limit`;
    /// of removed rows too.
    async fn explained(
        &self,
        until: Position,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<Explained>, StoreError>;

    /// Forgets what of the same rows was kept before these, and of those that
    /// were removed everything.
    async fn replace_explained(&self, said: Vec<Explained>) -> Result<(), StoreError>;

    /// Removes a part of the events and heads up to a position; whether there
    /// may be more. The log's last event must stay.
    async fn remove_until(&self, position: Position) -> Result<bool, StoreError>;

    /// Bytes that the database uses of its file.
    async fn bytes_used(&self) -> Result<u64, StoreError>;

    /// Whether the database answers.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Empties what a deletion may have left in the database's journals.
    async fn scrub(&self) -> Result<(), StoreError>;
}
