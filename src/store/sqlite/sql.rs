//! What is read from the store's tables; [`super::write`] writes them.

use sqlx::{SqliteExecutor, query, query_as, query_scalar};

use crate::store::{
    Effect, Explained, GENESIS_HASH, Kind, Position, Row, RowId, SignedHead, StoreError, StoredEvent, Writer,
};

/// Bits of a position that hold the sequence: enough for 8,900 years at 1,000 events a second.
const SEQUENCE_BITS: u32 = 48;
/// The last sequence that fits.
const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;
/// The last writer that fits beside the sequence in a positive i64.
pub(super) const WRITER_MAX: u32 = 0x7fff;

/// A position as the rowid of its event. What does not fit becomes the last
/// position, which no event ever has.
pub(crate) fn pack(position: Position) -> i64 {
    let writer = i64::from(position.writer.min(WRITER_MAX));
    let sequence = i64::try_from(position.sequence.min(SEQUENCE_MAX)).unwrap_or(i64::MAX);
    (writer << SEQUENCE_BITS) | sequence
}

/// The position of a rowid.
pub(crate) fn unpack(rowid: i64) -> Position {
    let bits = u64::try_from(rowid).unwrap_or(0);
    Position {
        writer: u32::try_from(bits >> SEQUENCE_BITS).unwrap_or(u32::MAX),
        sequence: bits & SEQUENCE_MAX,
    }
}

/// What a failed statement means to the store's caller.
pub(super) fn failed(error: sqlx::Error) -> StoreError {
    // Primary result code 13: SQLITE_FULL, the disk or the page limit.
    match result_code(&error) {
        Some(13) => StoreError::Full,
        _ => StoreError::Failed(error.to_string()),
    }
}

/// Whether SQLite says that the file is damaged (SQLITE_CORRUPT, SQLITE_NOTADB).
pub(super) fn is_damage(error: &sqlx::Error) -> bool {
    matches!(result_code(error), Some(11 | 26))
}

/// SQLite's primary result code (the lower byte of the extended one).
pub(super) fn result_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

// Rows

macro_rules! select_rows {
    ($rest:literal) => {
        concat!("SELECT region, account, id, parent, due_ms, version, body, mac FROM row ", $rest)
    };
}

type RowColumns = (String, String, String, Option<String>, Option<i64>, i64, String, Vec<u8>);

fn row_of(kind: Kind, columns: RowColumns) -> Row {
    let (region, account, id, parent, due_ms, version, body, mac) = columns;
    Row {
        id: RowId { kind, region, account, id },
        parent,
        due_ms,
        // A negative version is nobody's; as 0 it fails the row's MAC.
        version: u64::try_from(version).unwrap_or(0),
        body,
        mac,
    }
}

fn rows_of(kind: Kind, rows: Vec<RowColumns>) -> Vec<Row> {
    rows.into_iter().map(|columns| row_of(kind, columns)).collect()
}

pub(super) async fn row(db: impl SqliteExecutor<'_>, id: &RowId) -> sqlx::Result<Option<Row>> {
    query_as(select_rows!("WHERE kind = ? AND region = ? AND account = ? AND id = ?"))
        .bind(id.kind.as_str())
        .bind(&id.region)
        .bind(&id.account)
        .bind(&id.id)
        .fetch_optional(db)
        .await
        .map(|found| found.map(|columns| row_of(id.kind, columns)))
}

/// The rows of an account, or of one parent in it.
pub(super) async fn rows(
    db: impl SqliteExecutor<'_>,
    kind: Kind,
    (region, account): (&str, &str),
    parent: Option<&str>,
    after: Option<&str>,
    limit: u32,
) -> sqlx::Result<Vec<Row>> {
    let after = after.unwrap_or_default();
    let found = match parent {
        None => query_as(select_rows!(
            "WHERE kind = ? AND region = ? AND account = ? AND id > ? ORDER BY id LIMIT ?"
        ))
        .bind(kind.as_str())
        .bind(region)
        .bind(account),
        Some(parent) => query_as(select_rows!(
            "WHERE kind = ? AND region = ? AND account = ? AND parent = ? AND id > ? ORDER BY id LIMIT ?"
        ))
        .bind(kind.as_str())
        .bind(region)
        .bind(account)
        .bind(parent),
    };
    found.bind(after).bind(limit).fetch_all(db).await.map(|rows| rows_of(kind, rows))
}

/// How many rows an account has, or one parent in it.
pub(super) async fn count(
    db: impl SqliteExecutor<'_>,
    kind: Kind,
    region: &str,
    account: &str,
    parent: Option<&str>,
) -> sqlx::Result<u64> {
    let counted = match parent {
        None => query_scalar("SELECT count(*) FROM row WHERE kind = ? AND region = ? AND account = ?"),
        Some(_) => query_scalar(
            "SELECT count(*) FROM row WHERE kind = ? AND region = ? AND account = ? AND parent = ?",
        ),
    };
    let counted = counted.bind(kind.as_str()).bind(region).bind(account);
    let counted = match parent {
        None => counted,
        Some(parent) => counted.bind(parent),
    };
    counted.fetch_one(db).await.map(|count: i64| u64::try_from(count).unwrap_or(0))
}

pub(super) async fn all_rows(
    db: impl SqliteExecutor<'_>,
    kind: Kind,
    after: Option<&RowId>,
    limit: u32,
) -> sqlx::Result<Vec<Row>> {
    let (region, account, id) = after
        .map_or(("", "", ""), |after| (after.region.as_str(), after.account.as_str(), after.id.as_str()));
    query_as(select_rows!(
        "WHERE kind = ? AND (region, account, id) > (?, ?, ?) ORDER BY region, account, id LIMIT ?"
    ))
    .bind(kind.as_str())
    .bind(region)
    .bind(account)
    .bind(id)
    .bind(limit)
    .fetch_all(db)
    .await
    .map(|rows| rows_of(kind, rows))
}

pub(super) async fn find(
    db: impl SqliteExecutor<'_>,
    kind: Kind,
    region: &str,
    id: &str,
) -> sqlx::Result<Option<Row>> {
    query_as(select_rows!("WHERE kind = ? AND region = ? AND id = ? ORDER BY account LIMIT 1"))
        .bind(kind.as_str())
        .bind(region)
        .bind(id)
        .fetch_optional(db)
        .await
        .map(|found| found.map(|columns| row_of(kind, columns)))
}

pub(super) async fn due(
    db: impl SqliteExecutor<'_>,
    kind: Kind,
    now_ms: i64,
    limit: u32,
) -> sqlx::Result<Vec<Row>> {
    query_as(select_rows!("WHERE kind = ? AND due_ms <= ? ORDER BY due_ms, region, account, id LIMIT ?"))
        .bind(kind.as_str())
        .bind(now_ms)
        .bind(limit)
        .fetch_all(db)
        .await
        .map(|rows| rows_of(kind, rows))
}

// Events

type EventColumns = (i64, String, i64, String, String, Vec<u8>);

fn event_of((position, id, time_ms, record, effects, hash): EventColumns) -> StoredEvent {
    let position = unpack(position);
    StoredEvent { position, id, time_ms, record: record.into(), effects, hash: hash_of(&hash) }
}

/// A hash of another length is nobody's; as zeroes it fits no event.
fn hash_of(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or(GENESIS_HASH)
}

pub(super) async fn events(
    db: impl SqliteExecutor<'_>,
    after: Position,
    limit: u32,
) -> sqlx::Result<Vec<StoredEvent>> {
    query_as(
        "SELECT position, id, time_ms, record, effects, hash FROM event
         WHERE position > ? AND position <= ? ORDER BY position LIMIT ?",
    )
    .bind(pack(after))
    .bind(pack(Position { sequence: SEQUENCE_MAX, ..after }))
    .bind(limit)
    .fetch_all(db)
    .await
    .map(|rows| rows.into_iter().map(event_of).collect())
}

/// In the order of the log.
pub(super) async fn events_at(
    db: impl SqliteExecutor<'_>,
    positions: &[Position],
) -> sqlx::Result<Vec<StoredEvent>> {
    let positions: Vec<i64> = positions.iter().copied().map(pack).collect();
    let positions = serde_json::to_string(&positions).map_err(|e| sqlx::Error::Encode(e.into()))?;
    query_as(
        "SELECT position, id, time_ms, record, effects, hash FROM event
         WHERE position IN (SELECT value FROM json_each(?))",
    )
    .bind(positions)
    .fetch_all(db)
    .await
    .map(|rows| rows.into_iter().map(event_of).collect())
}

pub(super) async fn hash_at(
    db: impl SqliteExecutor<'_>,
    position: Position,
) -> sqlx::Result<Option<[u8; 32]>> {
    query_scalar::<_, Vec<u8>>("SELECT hash FROM event WHERE position = ?")
        .bind(pack(position))
        .fetch_optional(db)
        .await
        .map(|found| found.map(|hash| hash_of(&hash)))
}

/// The last event of the whole log.
pub(super) async fn last_event(db: impl SqliteExecutor<'_>) -> sqlx::Result<Option<(Position, [u8; 32])>> {
    query_as::<_, (i64, Vec<u8>)>("SELECT position, hash FROM event ORDER BY position DESC LIMIT 1")
        .fetch_optional(db)
        .await
        .map(|found| found.map(|(position, hash)| (unpack(position), hash_of(&hash))))
}

// Heads

pub(super) async fn heads(
    db: impl SqliteExecutor<'_>,
    after: Position,
    limit: u32,
) -> sqlx::Result<Vec<SignedHead>> {
    let rows: Vec<(i64, Vec<u8>, i64, Vec<u8>)> = query_as(
        "SELECT position, hash, time_ms, signature FROM head
         WHERE position > ? AND position <= ? ORDER BY position LIMIT ?",
    )
    .bind(pack(after))
    .bind(pack(Position { sequence: SEQUENCE_MAX, ..after }))
    .bind(limit)
    .fetch_all(db)
    .await?;
    let head = |(position, hash, time_ms, signature): (i64, Vec<u8>, i64, Vec<u8>)| SignedHead {
        position: unpack(position),
        hash: hash_of(&hash),
        time_ms,
        signature,
    };
    Ok(rows.into_iter().map(head).collect())
}

// What removed events said

type ExplainedColumns = (String, String, String, String, i64, i64, String);

pub(super) async fn explained(
    db: impl SqliteExecutor<'_>,
    until: Position,
    after: Option<&RowId>,
    limit: u32,
) -> sqlx::Result<Vec<Explained>> {
    let (kind, region, account, id) = after.map_or(("", "", "", ""), |after| {
        (after.kind.as_str(), after.region.as_str(), after.account.as_str(), after.id.as_str())
    });
    // SQLite takes the other columns from the row that has the maximum.
    let rows: Vec<ExplainedColumns> = query_as(
        "SELECT kind, region, account, id, max(position), version, mac FROM explained
         WHERE position <= ? AND (kind, region, account, id) > (?, ?, ?, ?)
         GROUP BY kind, region, account, id ORDER BY kind, region, account, id LIMIT ?",
    )
    .bind(pack(until))
    .bind(kind)
    .bind(region)
    .bind(account)
    .bind(id)
    .bind(limit)
    .fetch_all(db)
    .await?;
    let explained = |(kind, region, account, id, position, version, mac): ExplainedColumns| {
        let unknown = || sqlx::Error::Protocol(format!("there is no kind of row {kind}"));
        let row = RowId { kind: Kind::parse(&kind).ok_or_else(unknown)?, region, account, id };
        let effect = Effect { row, version: u64::try_from(version).unwrap_or(0), mac };
        Ok(Explained { position: unpack(position), effect })
    };
    rows.into_iter().map(explained).collect()
}

pub(super) async fn bytes_used(db: impl SqliteExecutor<'_>) -> sqlx::Result<u64> {
    query_scalar(
        "SELECT (page_count - freelist_count) * page_size
         FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
    )
    .fetch_one(db)
    .await
    .map(|bytes: i64| bytes.unsigned_abs())
}

// Writers

pub(super) async fn writers(db: impl SqliteExecutor<'_>) -> sqlx::Result<Vec<Writer>> {
    let rows: Vec<(u32, Option<i64>, Option<i64>)> =
        query_as("SELECT id, follows, restored_ms FROM writer ORDER BY id").fetch_all(db).await?;
    let writer = |(id, follows, restored_ms): (u32, Option<i64>, Option<i64>)| Writer {
        id,
        follows: follows.map(unpack),
        restored_ms,
    };
    Ok(rows.into_iter().map(writer).collect())
}

pub(super) async fn insert_writer(
    db: impl SqliteExecutor<'_>,
    writer: Writer,
    now_ms: i64,
) -> sqlx::Result<()> {
    query("INSERT INTO writer (id, follows, started_ms, restored_ms) VALUES (?, ?, ?, ?)")
        .bind(writer.id)
        .bind(writer.follows.map(pack))
        .bind(now_ms)
        .bind(writer.restored_ms)
        .execute(db)
        .await
        .map(drop)
}

/// When this writer's database was restored, until that is acknowledged.
pub(super) async fn unacknowledged_restore(
    db: impl SqliteExecutor<'_>,
    writer: u32,
) -> sqlx::Result<Option<i64>> {
    query_scalar::<_, Option<i64>>("SELECT restored_ms FROM writer WHERE id = ? AND acknowledged_ms IS NULL")
        .bind(writer)
        .fetch_optional(db)
        .await
        .map(Option::flatten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_positions_keep_their_order_and_come_back() {
        let position = |writer, sequence| Position { writer, sequence };
        let ordered = [
            position(1, 0),
            position(1, 1),
            position(1, SEQUENCE_MAX - 1),
            position(2, 0),
            position(2, 7),
            position(WRITER_MAX, SEQUENCE_MAX - 1),
        ];
        assert!(ordered.is_sorted_by(|one, next| pack(*one) < pack(*next)));
        for position in ordered {
            assert_eq!(unpack(pack(position)), position);
        }
        assert_eq!(pack(position(u32::MAX, u64::MAX)), i64::MAX);
    }
}
