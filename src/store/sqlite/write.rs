//! The one connection that writes. It is called from the writer's own thread,
//! without a hop for each statement: that is what group commit lives on.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::schema::BUSY_TIMEOUT_MS;
use super::sql::pack;
use crate::store::{Change, Effect, Explained, Position, Row, RowId, SignedHead, StoreError, StoredEvent};

/// Prepared statements that are kept: all of this file.
const STATEMENTS: usize = 24;
/// Events that are removed at once: so long may a commit wait for it.
const REMOVE_EVENTS: u32 = 500;

/// Opens a database that is sound and up to date: each COMMIT is on the disk
/// when it returns, and what is deleted is overwritten.
pub(super) fn open(file: &Path, max_pages: Option<u32>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(file, flags)?;
    db.busy_timeout(Duration::from_millis(BUSY_TIMEOUT_MS))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "secure_delete", "ON")?;
    if let Some(pages) = max_pages {
        db.pragma_update(None, "max_page_count", pages)?;
    }
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(db)
}

/// What a failed statement means to the store's caller.
pub(super) fn failed(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        // The disk or the page limit.
        Some(ErrorCode::DiskFull) => StoreError::Full,
        _ => StoreError::Failed(error.to_string()),
    }
}

/// Runs a statement that takes and gives nothing.
pub(super) fn run(db: &Connection, statement: &str) -> rusqlite::Result<()> {
    db.prepare_cached(statement)?.execute([]).map(drop)
}

/// Makes the changes of one commit, all or none: the outer result is the
/// group's transaction, the inner one this commit alone.
pub(super) fn apply(
    db: &Connection,
    changes: Vec<Change>,
) -> Result<Result<Vec<Effect>, StoreError>, StoreError> {
    if changes.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    run(db, "SAVEPOINT one").map_err(failed)?;
    let mut effects = Vec::with_capacity(changes.len());
    for change in changes {
        match apply_one(db, change) {
            Ok(effect) => effects.push(effect),
            Err(error) => {
                // SQLite ends the whole transaction by itself on a full disk;
                // then there is no savepoint left and the group fails with it.
                run(db, "ROLLBACK TO one").map_err(|_| error.clone())?;
                run(db, "RELEASE one").map_err(failed)?;
                return Ok(Err(error));
            }
        }
    }
    run(db, "RELEASE one").map_err(failed)?;
    Ok(Ok(effects))
}

fn apply_one(db: &Connection, change: Change) -> Result<Effect, StoreError> {
    let (changed, effect) = match change {
        Change::Put(row) => {
            let changed = put(db, &row)?;
            (changed, Effect { row: row.id, version: row.version, mac: hex::encode(&row.mac) })
        }
        Change::Delete { id, expected } => {
            let changed = delete(db, &id, expected)?;
            (changed, Effect { row: id, version: 0, mac: String::new() })
        }
    };
    match changed {
        0 => Err(StoreError::Conflict(effect.row)),
        _ => Ok(effect),
    }
}

/// How many rows it wrote: 0 where another version is there.
fn put(db: &Connection, row: &Row) -> Result<usize, StoreError> {
    const INSERT: &str = "INSERT INTO row (parent, due_ms, version, body, mac, kind, region, account, id)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING";
    const UPDATE: &str = "UPDATE row SET parent = ?1, due_ms = ?2, version = ?3, body = ?4, mac = ?5
        WHERE kind = ?6 AND region = ?7 AND account = ?8 AND id = ?9 AND version = ?3 - 1";
    let version = stored_version(row.version)?;
    let statement = if version == 1 { INSERT } else { UPDATE };
    let RowId { kind, region, account, id } = &row.id;
    let values =
        params![row.parent, row.due_ms, version, row.body, row.mac, kind.as_str(), region, account, id];
    db.prepare_cached(statement).and_then(|mut put| put.execute(values)).map_err(failed)
}

fn delete(db: &Connection, id: &RowId, expected: u64) -> Result<usize, StoreError> {
    const DELETE: &str =
        "DELETE FROM row WHERE kind = ?1 AND region = ?2 AND account = ?3 AND id = ?4 AND version = ?5";
    let values = params![id.kind.as_str(), id.region, id.account, id.id, stored_version(expected)?];
    db.prepare_cached(DELETE).and_then(|mut delete| delete.execute(values)).map_err(failed)
}

fn stored_version(version: u64) -> Result<i64, StoreError> {
    match i64::try_from(version) {
        Ok(version) if version > 0 => Ok(version),
        _ => Err(StoreError::Failed(format!("{version} is no row's version"))),
    }
}

/// Appends an event, without an index to keep.
pub(super) fn append(db: &Connection, event: &StoredEvent) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT INTO event (position, id, time_ms, record, effects, hash)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let values =
        params![pack(event.position), event.id, event.time_ms, &*event.record, event.effects, event.hash];
    db.prepare_cached(INSERT)?.execute(values).map(drop)
}

/// Keeps a signature of the log's head.
pub(super) fn insert_head(db: &Connection, head: &SignedHead) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT INTO head (position, hash, time_ms, signature) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT DO UPDATE SET hash = excluded.hash, time_ms = excluded.time_ms,
                                  signature = excluded.signature";
    let values = params![pack(head.position), head.hash, head.time_ms, head.signature];
    db.prepare_cached(INSERT)?.execute(values).map(drop)
}

/// Notes that what a restore asks for was done.
pub(super) fn acknowledge_restore(db: &Connection, writer: u32, now_ms: i64) -> rusqlite::Result<()> {
    const UPDATE: &str = "UPDATE writer SET acknowledged_ms = ?1 WHERE id = ?2";
    db.prepare_cached(UPDATE)?.execute(params![now_ms, writer]).map(drop)
}

/// Keeps what events said of rows.
pub(super) fn explain(db: &Connection, said: &[Explained]) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT INTO explained (kind, region, account, id, position, version, mac)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";
    together(db, || {
        for Explained { position, effect: Effect { row, version, mac } } in said {
            let RowId { kind, region, account, id } = row;
            let version = i64::try_from(*version).unwrap_or(i64::MAX);
            let values = params![kind.as_str(), region, account, id, pack(*position), version, mac];
            db.prepare_cached(INSERT)?.execute(values)?;
        }
        Ok(())
    })
}

/// Forgets what these replaced; the last word on a removed row goes last, so
/// that none before it comes to count.
pub(super) fn replace_explained(db: &Connection, said: &[Explained]) -> rusqlite::Result<()> {
    const OLDER: &str = "DELETE FROM explained
        WHERE kind = ?1 AND region = ?2 AND account = ?3 AND id = ?4 AND position < ?5";
    const REMOVED: &str = "DELETE FROM explained
        WHERE kind = ?1 AND region = ?2 AND account = ?3 AND id = ?4 AND position = ?5 AND version = 0";
    together(db, || {
        for Explained { position, effect } in said {
            let RowId { kind, region, account, id } = &effect.row;
            for statement in [OLDER, REMOVED] {
                let name = params![kind.as_str(), region, account, id, pack(*position)];
                db.prepare_cached(statement)?.execute(name)?;
            }
        }
        Ok(())
    })
}

/// Removes a part of the events and heads up to a position; whether there may
/// be more.
pub(super) fn remove_until(db: &Connection, position: Position) -> rusqlite::Result<bool> {
    const EVENTS: &str = "DELETE FROM event WHERE position IN
        (SELECT position FROM event WHERE position <= ?1 ORDER BY position LIMIT ?2)";
    const HEADS: &str = "DELETE FROM head WHERE position IN
        (SELECT position FROM head WHERE position <= ?1 ORDER BY position LIMIT ?2)";
    let mut removed = 0;
    together(db, || {
        for statement in [EVENTS, HEADS] {
            removed += db.prepare_cached(statement)?.execute(params![pack(position), REMOVE_EVENTS])?;
        }
        Ok(())
    })?;
    Ok(removed > 0)
}

/// One transaction; after a failure the connection is given up, and it with it.
fn together(db: &Connection, work: impl FnOnce() -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    run(db, "BEGIN IMMEDIATE")?;
    work()?;
    run(db, "COMMIT")
}
