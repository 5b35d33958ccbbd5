//! The file behind the history.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqlitePool, query, query_as, query_scalar};

use super::{Lookup, PageCursor, attributes};
use crate::store::sqlite::{create_private, remove_database};
use crate::store::{Position, StoredEvent};

/// PRAGMA user_version: an index of another layout is made again.
const LAYOUT: i64 = 2;
/// Connections, the feed's included.
const CONNECTIONS: u32 = 4;
/// How long a connection waits for another's lock, and a query for a connection.
const BUSY_TIMEOUT_MS: u64 = 5_000;

/// One entry per event and attribute in the order in which they are looked up;
/// attribute 0 with an empty value for all events. hash is the last event's.
const TABLES: &str = "
    CREATE TABLE entry (
        account TEXT NOT NULL, region TEXT NOT NULL, attribute INTEGER NOT NULL, value TEXT NOT NULL,
        time_ms INTEGER NOT NULL, writer INTEGER NOT NULL, sequence INTEGER NOT NULL,
        PRIMARY KEY (account, region, attribute, value, time_ms, writer, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE cursor (writer INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
    PRAGMA user_version = 2;
";

/// How far a writer's log is in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The last event that is in.
    pub(super) position: Position,
    /// Its hash, by which another log is noticed.
    pub(super) hash: [u8; 32],
}

pub(super) struct Index {
    pool: SqlitePool,
}

impl Index {
    /// Opens the file, made where it is missing; one that is damaged or of
    /// another layout is an error.
    pub(super) async fn open(file: &Path) -> sqlx::Result<Self> {
        create_private(file)?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .busy_timeout(Duration::from_millis(BUSY_TIMEOUT_MS))
            // The log has it all: a power failure costs at most some catching up.
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_millis(BUSY_TIMEOUT_MS))
            .connect_with(options)
            .await?;
        let layout: i64 = query_scalar("PRAGMA user_version").fetch_one(&pool).await?;
        match layout {
            LAYOUT => {}
            0 => {
                sqlx::raw_sql(TABLES).execute(&pool).await?;
            }
            other => return Err(sqlx::Error::Protocol(format!("layout {other}"))),
        }
        Ok(Index { pool })
    }

    /// Removes the file and makes a new one.
    pub(super) async fn create(file: &Path) -> sqlx::Result<Self> {
        remove_database(file)?;
        Self::open(file).await
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn cursors(&self) -> sqlx::Result<Vec<Cursor>> {
        let rows: Vec<(u32, i64, Vec<u8>)> =
            query_as("SELECT writer, sequence, hash FROM cursor").fetch_all(&self.pool).await?;
        let cursor = |(writer, sequence, hash): (u32, i64, Vec<u8>)| Cursor {
            position: position(writer, sequence),
            // No event has a hash of another length, or of zeroes.
            hash: hash.try_into().unwrap_or_default(),
        };
        Ok(rows.into_iter().map(cursor).collect())
    }

    /// Takes in events and moves their writer's cursor, both or neither.
    pub(super) async fn add(&self, events: &[StoredEvent], cursor: Cursor) -> sqlx::Result<()> {
        let entries = serde_json::to_string(&entries(events)).map_err(|e| sqlx::Error::Encode(e.into()))?;
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        query(
            "INSERT OR IGNORE INTO entry (account, region, attribute, value, time_ms, writer, sequence)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
             FROM json_each(?)",
        )
        .bind(entries)
        .execute(&mut *transaction)
        .await?;
        query("INSERT OR REPLACE INTO cursor (writer, sequence, hash) VALUES (?, ?, ?)")
            .bind(cursor.position.writer)
            .bind(stored(cursor.position.sequence))
            .bind(cursor.hash.to_vec())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }

    /// The newest entries that fit, one more than the limit where there are more.
    pub(super) async fn find(&self, lookup: &Lookup) -> sqlx::Result<Vec<PageCursor>> {
        let (attribute, value) = match &lookup.attribute {
            Some((attribute, value)) => (attribute.code(), value.as_str()),
            None => (0, ""),
        };
        let last = PageCursor {
            time_ms: lookup.end_ms,
            position: Position { writer: u32::MAX, sequence: u64::MAX },
        };
        let before = lookup.before.map_or(last, |before| before.min(last));
        let rows: Vec<(i64, u32, i64)> = query_as(
            "SELECT time_ms, writer, sequence FROM entry
             WHERE account = ? AND region = ? AND attribute = ? AND value = ?
               AND time_ms >= ? AND (time_ms, writer, sequence) < (?, ?, ?)
             ORDER BY time_ms DESC, writer DESC, sequence DESC LIMIT ?",
        )
        .bind(&lookup.account)
        .bind(&lookup.region)
        .bind(attribute)
        .bind(value)
        .bind(lookup.start_ms)
        .bind(before.time_ms)
        .bind(before.position.writer)
        .bind(stored(before.position.sequence))
        .bind(i64::from(lookup.limit) + 1)
        .fetch_all(&self.pool)
        .await?;
        let entry =
            |(time_ms, writer, sequence)| PageCursor { time_ms, position: position(writer, sequence) };
        Ok(rows.into_iter().map(entry).collect())
    }
}

/// A row of the entry table.
type Entry = (String, String, i64, String, i64, u32, u64);

/// In the table's order, which makes neighbours of what is written to one page.
fn entries(events: &[StoredEvent]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = events.iter().flat_map(entries_of).collect();
    entries.sort_unstable();
    entries
}

fn entries_of(event: &StoredEvent) -> Vec<Entry> {
    let Some(found) = attributes(&event.record) else {
        tracing::error!(position = %event.position, "an event is no CloudTrail record and cannot be looked up");
        return Vec::new();
    };
    let Position { writer, sequence } = event.position;
    let values = found.values.into_iter().map(|(attribute, value)| (attribute.code(), value));
    std::iter::once((0, String::new()))
        .chain(values)
        .map(|(attribute, value)| {
            let (account, region) = (found.account.clone(), found.region.clone());
            (account, region, attribute, value, event.time_ms, writer, sequence)
        })
        .collect()
}

fn stored(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

fn position(writer: u32, sequence: i64) -> Position {
    Position { writer, sequence: u64::try_from(sequence).unwrap_or(0) }
}
