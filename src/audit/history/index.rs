//! The file behind the history.
//!
//! For each term (an attribute's value in a Region of an account, or all of its
//! events) it has blocks: the entries of one second that were taken in
//! together. What many events share costs one row for all of them, so that the
//! index costs a call little; and a page is found second by second, newest
//! first.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, params};
use sha2::{Digest, Sha256};
use uuid::{Uuid, Version};

use super::attributes::{Attribute, Attributes};
use super::{IndexError, Lookup, PageCursor, attributes};
use crate::store::sqlite::{create_private, pack, remove_database, unpack};
use crate::store::{Position, StoredEvent};

/// PRAGMA user_version: an index of another layout is made again.
const LAYOUT: i64 = 4;
/// How long a connection waits for another's lock.
const BUSY_TIMEOUT_MS: u64 = 5_000;
const SECOND_MS: i64 = 1_000;
const DAY_SECONDS: i64 = 86_400;
/// An entry: the millisecond within its second, and the event's position.
const ENTRY_BYTES: usize = 2 + 8;

/// position is that of a block's first event; hash is that of a writer's last
/// event that is in. The day comes first, so that a day is gone in one piece.
const TABLES: &str = "
    CREATE TABLE block (
        day INTEGER NOT NULL, term INTEGER NOT NULL, second INTEGER NOT NULL, position INTEGER NOT NULL,
        entries BLOB NOT NULL,
        PRIMARY KEY (day, term, second, position)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE cursor (writer INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
    PRAGMA user_version = 4;
";

/// How far a writer's log is in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The last event that is in.
    pub(super) position: Position,
    /// Its hash, by which another log is noticed.
    pub(super) hash: [u8; 32],
}

/// Its calls block.
pub(super) struct Index {
    feed: Shared,
    /// Another one, so that lookups do not wait for the feed.
    lookups: Shared,
}

/// None once it is closed.
type Shared = Mutex<Option<Connection>>;

impl Index {
    /// Opens the file, made where it is missing; one that is damaged or of
    /// another layout is an error.
    pub(super) fn open(file: &Path) -> Result<Self, IndexError> {
        create_private(file).map_err(IndexError::File)?;
        let feed = connect(file)?;
        // The log has it all: a power failure costs at most some catching up.
        feed.pragma_update(None, "journal_mode", "WAL")?;
        feed.pragma_update(None, "synchronous", "NORMAL")?;
        match feed.pragma_query_value(None, "user_version", |row| row.get(0))? {
            LAYOUT => {}
            0 => feed.execute_batch(TABLES)?,
            other => return Err(IndexError::Layout(other)),
        }
        Ok(Index { feed: Mutex::new(Some(feed)), lookups: Mutex::new(Some(connect(file)?)) })
    }

    /// Removes the file and makes a new one.
    pub(super) fn create(file: &Path) -> Result<Self, IndexError> {
        remove_database(file).map_err(IndexError::File)?;
        Self::open(file)
    }

    /// Later calls fail.
    pub(super) fn close(&self) {
        for connection in [&self.lookups, &self.feed] {
            drop(connection.lock().take());
        }
    }

    pub(super) fn cursors(&self) -> Result<Vec<Cursor>, IndexError> {
        let feed = self.feed.lock();
        let feed = feed.as_ref().ok_or(IndexError::Closed)?;
        let mut cursors = feed.prepare_cached("SELECT writer, sequence, hash FROM cursor")?;
        let cursor = |row: &rusqlite::Row<'_>| {
            let (sequence, hash): (i64, Vec<u8>) = (row.get(1)?, row.get(2)?);
            Ok(Cursor {
                position: Position { writer: row.get(0)?, sequence: sequence.unsigned_abs() },
                // No event has a hash of another length, or of zeroes.
                hash: hash.try_into().unwrap_or_default(),
            })
        };
        Ok(cursors.query_map([], cursor)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Takes in events and moves their writer's cursor, both or neither.
    pub(super) fn add(&self, events: &[StoredEvent], cursor: Cursor) -> Result<(), IndexError> {
        const BLOCK: &str = "INSERT OR IGNORE INTO block (day, term, second, position, entries)
            VALUES (?1, ?2, ?3, ?4, ?5)";
        const CURSOR: &str = "INSERT OR REPLACE INTO cursor (writer, sequence, hash) VALUES (?1, ?2, ?3)";
        let blocks = blocks(events);
        let mut feed = self.feed.lock();
        let transaction = feed.as_mut().ok_or(IndexError::Closed)?.transaction()?;
        let mut insert = transaction.prepare_cached(BLOCK)?;
        for ((day, term, second), block) in blocks {
            insert.execute(params![day, term, second, block.position, block.entries])?;
        }
        drop(insert);
        let Cursor { position: Position { writer, sequence }, hash } = cursor;
        let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
        transaction.prepare_cached(CURSOR)?.execute(params![writer, sequence, hash])?;
        Ok(transaction.commit()?)
    }

    /// Forgets days before a time, a part at a time; whether there may be more.
    pub(super) fn forget(&self, before_ms: i64) -> Result<bool, IndexError> {
        const FORGET: &str = "DELETE FROM block WHERE (day, term, second, position) IN
            (SELECT day, term, second, position FROM block WHERE day < ?1 LIMIT 2000)";
        let feed = self.feed.lock();
        let feed = feed.as_ref().ok_or(IndexError::Closed)?;
        Ok(feed.prepare_cached(FORGET)?.execute([day_of(second_of(before_ms))])? > 0)
    }

    /// The end of its oldest day, milliseconds since the epoch, and the bytes
    /// that it uses of its file.
    pub(super) fn extent(&self) -> Result<(Option<i64>, u64), IndexError> {
        let lookups = self.lookups.lock();
        let lookups = lookups.as_ref().ok_or(IndexError::Closed)?;
        let oldest: Option<i64> = lookups.query_row("SELECT min(day) FROM block", [], |row| row.get(0))?;
        let pragma = |name: &str| lookups.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
        let bytes = pages.saturating_mul(pragma("page_size")?).unsigned_abs();
        Ok((oldest.map(|day| (day + 1) * DAY_SECONDS * SECOND_MS), bytes))
    }

    /// The newest entries that fit, newest first, one more than the limit where
    /// there are more. Of an eventID that tells its time, all of that millisecond.
    pub(super) fn find(&self, lookup: &Lookup) -> Result<Vec<PageCursor>, IndexError> {
        let Lookup { account, region, attribute, limit, .. } = lookup;
        let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
        let term_of = |attribute| term(account, region, attribute);
        let sought = Sought { term: term_of(attribute.as_ref()), lookup, time_ms: None, limit };
        let lookups = self.lookups.lock();
        let lookups = lookups.as_ref().ok_or(IndexError::Closed)?;
        let mut found = sought.find(lookups)?;
        if let Some((Attribute::EventId, id)) = attribute
            && let Some(time_ms) = time_of(id)
        {
            let of_then = Sought { term: term_of(None), time_ms: Some(time_ms), limit: usize::MAX, ..sought };
            found.extend(of_then.find(lookups)?);
        }
        Ok(found)
    }
}

/// Entries of a term that are looked for.
#[derive(Clone, Copy)]
struct Sought<'a> {
    term: i64,
    lookup: &'a Lookup,
    /// Of this millisecond only.
    time_ms: Option<i64>,
    limit: usize,
}

impl Sought<'_> {
    fn find(self, lookups: &Connection) -> Result<Vec<PageCursor>, IndexError> {
        let Lookup { start_ms, end_ms, before, .. } = *self.lookup;
        let start_ms = self.time_ms.map_or(start_ms, |time| start_ms.max(time));
        let end_ms = self.time_ms.map_or(end_ms, |time| end_ms.min(time));
        let end = PageCursor { time_ms: end_ms, position: Position { writer: u32::MAX, sequence: u64::MAX } };
        let before = before.map_or(end, |before| before.min(end));
        let (earliest, latest) = (second_of(start_ms), second_of(before.time_ms));
        let wanted = self.limit.saturating_add(1);
        let fits = |entry: &PageCursor| entry.time_ms >= start_ms && *entry < before;

        let mut found: Vec<PageCursor> = Vec::new();
        let mut until = Some(day_of(latest));
        while let Some(day) = newest_day(lookups, until)?
            && day >= day_of(earliest)
        {
            let mut blocks = lookups.prepare_cached(
                "SELECT second, entries FROM block
                 WHERE day = ?1 AND term = ?2 AND second BETWEEN ?3 AND ?4 ORDER BY second DESC",
            )?;
            let mut rows = blocks.query(params![day, self.term, earliest, latest])?;
            let mut reading = None;
            while let Some(row) = rows.next()? {
                let second: i64 = row.get(0)?;
                if reading.replace(second) != Some(second) && found.len() >= wanted {
                    break;
                }
                let entries = row.get_ref(1)?.as_blob().unwrap_or_default();
                found.extend(entries.chunks_exact(ENTRY_BYTES).map(|entry| read(second, entry)).filter(fits));
            }
            until = if found.len() >= wanted { None } else { day.checked_sub(1) };
        }
        found.sort_unstable_by(|one, other| other.cmp(one));
        found.truncate(wanted);
        Ok(found)
    }
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(Duration::from_millis(BUSY_TIMEOUT_MS))?;
    Ok(connection)
}

/// The newest day with entries that is not after `until`.
fn newest_day(index: &Connection, until: Option<i64>) -> rusqlite::Result<Option<i64>> {
    let Some(until) = until else { return Ok(None) };
    index.prepare_cached("SELECT max(day) FROM block WHERE day <= ?1")?.query_row([until], |row| row.get(0))
}

/// Entries of one term and second.
struct Block {
    position: i64,
    entries: Vec<u8>,
}

/// The terms of an account in a Region: most are many events'.
type Known = HashMap<Option<(Attribute, String)>, i64>;

/// By day, term and second: in the table's order, which makes neighbours of
/// what is written to one page.
fn blocks(events: &[StoredEvent]) -> BTreeMap<(i64, i64, i64), Block> {
    let mut blocks = BTreeMap::new();
    let mut known: HashMap<_, Known> = HashMap::new();
    for event in events {
        let Some(found) = attributes(&event.record) else {
            tracing::error!(position = %event.position, "an event is no CloudTrail record and cannot be looked up");
            continue;
        };
        let position = pack(event.position);
        let second = second_of(event.time_ms);
        let Attributes { account, region, values, .. } = found;
        let known = known.entry((account.clone(), region.clone())).or_default();
        // An event that is found by its time needs no entry for its id.
        let is_entry = |(attribute, value): &(Attribute, String)| {
            *attribute != Attribute::EventId || time_of(value) != Some(event.time_ms)
        };
        let values = values.into_iter().filter(is_entry).map(Some);
        for value in std::iter::once(None).chain(values) {
            let term =
                *known.entry(value).or_insert_with_key(|value| term(&account, &region, value.as_ref()));
            let place = (day_of(second), term, second);
            let block = blocks.entry(place).or_insert_with(|| Block { position, entries: Vec::new() });
            write(&mut block.entries, event.time_ms, position);
        }
    }
    blocks
}

fn second_of(time_ms: i64) -> i64 {
    time_ms.div_euclid(SECOND_MS)
}

fn day_of(second: i64) -> i64 {
    second.div_euclid(DAY_SECONDS)
}

fn write(entries: &mut Vec<u8>, time_ms: i64, position: i64) {
    let entry = position.to_be_bytes();
    // One event may have the same value twice.
    if !entries.ends_with(&entry) {
        entries.extend((time_ms.rem_euclid(SECOND_MS) as u16).to_be_bytes());
        entries.extend(entry);
    }
}

/// An entry of [`ENTRY_BYTES`].
fn read(second: i64, entry: &[u8]) -> PageCursor {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| (number << 8) | i64::from(*byte));
    let (millisecond, position) = entry.split_at(2);
    PageCursor {
        time_ms: second.saturating_mul(SECOND_MS).saturating_add(number(millisecond)),
        position: unpack(number(position)),
    }
}

/// What is looked up together, in eight bytes. Two that share a term are told
/// apart by the events themselves ([`Lookup::fits`]).
fn term(account: &str, region: &str, attribute: Option<&(Attribute, String)>) -> i64 {
    let (code, value) = attribute.map_or((0, ""), |(attribute, value)| (attribute.code(), value.as_str()));
    let mut hash = Sha256::new();
    for field in [account, region, value] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.update(code.to_be_bytes());
    hash.finalize().iter().take(8).fold(0, |term, byte| (term << 8) | i64::from(*byte))
}

/// The time that an eventID tells, milliseconds since the epoch (RFC 9562, 5.7).
fn time_of(event_id: &str) -> Option<i64> {
    let id = Uuid::parse_str(event_id).ok().filter(|id| id.get_version() == Some(Version::SortRand))?;
    let [a, b, c, d, e, f, ..] = *id.as_bytes();
    Some(i64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}
