//! How far back the history and the log go: what is older is removed while
//! everything else goes on.
//!
//! ```text
//!   removed           │ kept
//!   … ── event n ─────┼── event n+1 ── signed head ── …
//!        its hash, and what events up to it said of rows: the Base,
//!        a row with a MAC, whose change is an event of what is kept
//! ```
//!
//! Only what is whole is removed: the range is chained from the base before it
//! to a head that the HSM signed. And only what every reader that has a place in
//! the log is done with: trails, targets, the history, Insights. The order makes
//! a crash harmless: what is needed afterwards is written before the base moves,
//! and events go after it has.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::follow::Bookmark;
use super::trail::{Delivery, service_event};
use super::verify::check_head;
use crate::app::App;
use crate::error::{Error, Result};
use crate::jobs::look_at_clock;
use crate::registry::{Draft, Held, Stored, from_store};
use crate::store::{
    Base, Commit, Effect, Explained, GENESIS_HASH, Kind, Position, RowId, SignedHead, StoredEvent, Writer,
    explained,
};

/// How long one removal may wait for an HSM.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before a removal that something did not allow is tried again.
const RETRY_WAIT: Duration = Duration::from_secs(60);
/// Events of one removal, about: what they say of rows is in memory meanwhile.
const EVENTS_MAX: u64 = 1_000_000;
/// Events, heads and rows that are read at once.
const READ: u32 = 500;
/// Of what was said of rows, what is written at once.
const WRITE: usize = 500;
/// Trails or targets of a daemon.
const READERS_MAX: u32 = 10_000;

/// The row of the log's beginning.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogBase {
    writer: u32,
    sequence: u64,
    /// SHA-256 in hex.
    hash: String,
    /// SHA-256 in hex.
    explained: String,
}

impl Stored for LogBase {
    const KIND: Kind = Kind::System;
}

impl LogBase {
    fn new(base: &Base) -> LogBase {
        let Base { position: Position { writer, sequence }, hash, explained } = base;
        let (hash, explained) = (hex::encode(hash), hex::encode(explained));
        LogBase { writer: *writer, sequence: *sequence, hash, explained }
    }

    fn read(&self) -> Option<Base> {
        let hash = |text: &str| hex::decode(text).ok()?.try_into().ok();
        let position = Position { writer: self.writer, sequence: self.sequence };
        Some(Base { position, hash: hash(&self.hash)?, explained: hash(&self.explained)? })
    }
}

fn row_id() -> RowId {
    RowId { kind: Kind::System, region: String::new(), account: String::new(), id: "log".to_owned() }
}

/// Where the log begins; none where it is whole, or where nobody can be
/// believed about it: then its beginning is missing.
///
/// # Errors
/// When the store or the HSM fails.
pub async fn base(app: &App, deadline: Instant) -> Result<Option<Base>> {
    let Some(row) = app.store.row(&row_id()).await.map_err(from_store)? else { return Ok(None) };
    let is_sealed = app.registry.is_sealed(&row, deadline).await?;
    let read = || serde_json::from_str::<LogBase>(&row.body).ok()?.read();
    Ok(if is_sealed { read() } else { None })
}

/// Keeps history and log within their limits until it is stopped.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    loop {
        let wait = match trim(&app).await {
            Ok(()) => app.history_settings.trim_interval,
            Err(error) => {
                let detail = error.detail.as_deref().unwrap_or_default();
                tracing::warn!(%error, detail, "what is too old is not removed; it is tried again");
                RETRY_WAIT.min(app.history_settings.trim_interval)
            }
        };
        tokio::select! {
            () = sleep(wait) => (),
            () = stop.cancelled() => return,
        }
    }
}

/// Removes what is too old, or more than there may be.
///
/// # Errors
/// When the store or the HSM fails, or the log is not as it was written.
pub async fn trim(app: &App) -> Result<()> {
    // Nothing is old by a clock that jumped.
    look_at_clock(app).await?;
    if app.clock_gate.is_suspended() {
        return Ok(());
    }
    let settings = &app.history_settings;
    let now_ms = app.clock.now_ms();
    let before_ms = now_ms.saturating_sub(settings.retention_ms());
    app.history.trim(before_ms, now_ms, settings.bytes_max).await.map_err(from_store)?;
    if settings.keep_log {
        return Ok(());
    }
    while remove(app, before_ms, None).await? {}
    if let Some(bytes_max) = settings.log_bytes_max {
        while remove(app, i64::MAX, Some(bytes_max)).await? {}
    }
    Ok(())
}

/// One removal: of what was signed before a time, as far as it makes the
/// database small enough. Whether there may be more.
async fn remove(app: &App, before_ms: i64, bytes_max: Option<u64>) -> Result<bool> {
    // Nobody verifies meanwhile.
    let _alone = app.log_base.write().await;
    let deadline = Instant::now() + STEP_TIMEOUT;
    let held = match app.store.row(&row_id()).await.map_err(from_store)? {
        Some(row) => Some(app.registry.open::<LogBase>(row, deadline).await?),
        None => None,
    };
    let beginning = Position { writer: 1, sequence: 0 };
    let base = match &held {
        Some(held) => held.value.read().ok_or_else(|| Error::internal("the log's beginning is not known"))?,
        None => Base { position: beginning, hash: GENESIS_HASH, explained: nothing_explained() },
    };
    // What a crash left.
    sweep(app, base.position).await?;
    let mut until = read_by_all(app, deadline).await?;
    if let Some(bytes_max) = bytes_max {
        match enough(app, &base, bytes_max).await? {
            Some(position) => until = until.min(position),
            None => return Ok(false),
        }
    }
    let Some(head) = newest_head(app, &base, before_ms, until).await? else { return Ok(false) };
    check_head(app, &head).map_err(|why| changed(head.position, &why))?;
    let range = Range::read(app, &base, &head).await?;

    if explained(&*app.store, base.position, &mut drop).await.map_err(from_store)? != base.explained {
        return Err(Error::internal("what removed events said of rows was changed"));
    }
    let said: Vec<Explained> = range.said.into_values().collect();
    for part in said.chunks(WRITE) {
        app.store.explain(part.to_vec()).await.map_err(from_store)?;
    }
    let digest = explained(&*app.store, range.until, &mut drop).await.map_err(from_store)?;
    let next = Base { position: range.until, hash: range.hash, explained: digest };
    move_base(app, held.as_ref(), &next, range.events).await?;
    for part in said.chunks(WRITE) {
        app.store.replace_explained(part.to_vec()).await.map_err(from_store)?;
    }
    sweep(app, next.position).await?;
    Ok(true)
}

/// The digest of nothing, as [`explained`] has it.
fn nothing_explained() -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest([]).into()
}

fn changed(position: Position, why: &str) -> Error {
    Error::internal(format!("the log was changed, and nothing is removed of it: at {position}: {why}"))
}

async fn sweep(app: &App, position: Position) -> Result<()> {
    while app.store.remove_until(position).await.map_err(from_store)? {
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn move_base(app: &App, held: Option<&Held<LogBase>>, next: &Base, events: u64) -> Result<()> {
    let value = LogBase::new(next);
    let draft = match held {
        Some(held) => Draft::replace(held, &value)?,
        None => Draft::insert(row_id(), &value)?,
    };
    let changes = app.registry.seal(&[draft], Instant::now() + STEP_TIMEOUT).await?;
    let details =
        json!({ "until": super::stream::token(next.position), "events": events, "hash": value.hash });
    let events = vec![service_event(app, "RemoveEvents", details)?];
    app.store.commit(Commit { changes, events }).await.map(drop).map_err(from_store)
}

/// Where the events end that are to go, so that the others fit; none where all
/// fit. Events are taken to be of one size.
async fn enough(app: &App, base: &Base, bytes_max: u64) -> Result<Option<Position>> {
    let used = app.store.bytes_used().await.map_err(from_store)?;
    let end = *app.store.end().borrow();
    if used <= bytes_max {
        return Ok(None);
    }
    // An older writer's events go all.
    let first = if end.writer == base.position.writer { base.position.sequence } else { 0 };
    let excess = u128::from(end.sequence - first) * u128::from(used - bytes_max) / u128::from(used);
    Ok(Some(Position { sequence: first + u64::try_from(excess).unwrap_or(0), ..end }))
}

/// The newest head before a time and a position, not too far ahead; events
/// before it can go.
async fn newest_head(app: &App, base: &Base, before_ms: i64, until: Position) -> Result<Option<SignedHead>> {
    let mut found: Option<SignedHead> = None;
    let writers = app.store.writers().await.map_err(from_store)?;
    for writer in writers.iter().filter(|writer| writer.id >= base.position.writer) {
        let mut after = base.position.max(Position { writer: writer.id, sequence: 0 });
        let far = after.sequence + EVENTS_MAX;
        loop {
            let heads = app.store.heads(after, READ).await.map_err(from_store)?;
            let Some(last) = heads.last() else { break };
            after = last.position;
            for head in heads {
                let is_far = found.is_some() && head.position.sequence > far;
                if head.time_ms >= before_ms || head.position > until || is_far {
                    return Ok(found);
                }
                // The head's own event stays: readers may stand at it.
                if head.position != (Position { sequence: base.position.sequence + 1, ..base.position }) {
                    found = Some(head);
                }
            }
        }
    }
    Ok(found)
}

/// The events between a base and a head.
struct Range {
    /// The last that is to go.
    until: Position,
    /// Its hash.
    hash: [u8; 32],
    /// How many go.
    events: u64,
    /// What they last said of each row.
    said: HashMap<RowId, Explained>,
}

impl Range {
    /// Reads them, and sees that they are as they were written.
    async fn read(app: &App, base: &Base, head: &SignedHead) -> Result<Range> {
        let writers = app.store.writers().await.map_err(from_store)?;
        let mut range = Range { until: base.position, hash: base.hash, events: 0, said: HashMap::new() };
        loop {
            let events = app.store.events(range.until, READ).await.map_err(from_store)?;
            if events.is_empty() {
                range.until = next_log(&writers, range.until)?;
            }
            for event in &events {
                if range.take(event, head)? {
                    return Ok(range);
                }
            }
        }
    }

    /// Takes an event in; whether it is the head's, which stays.
    fn take(&mut self, event: &StoredEvent, head: &SignedHead) -> Result<bool> {
        let position = event.position;
        if position.sequence != self.until.sequence + 1 {
            return Err(changed(position, "events before it are missing"));
        }
        if event.expected_hash(&self.hash) != event.hash {
            return Err(changed(position, "its hash does not fit"));
        }
        if position == head.position {
            let is_signed = event.hash == head.hash;
            return if is_signed { Ok(true) } else { Err(changed(position, "it is not what was signed")) };
        }
        let effects: Vec<Effect> = serde_json::from_str(&event.effects)
            .map_err(|error| changed(position, &format!("its effects: {error}")))?;
        for effect in effects {
            self.said.insert(effect.row.clone(), Explained { position, effect });
        }
        (self.until, self.hash) = (position, event.hash);
        self.events += 1;
        Ok(false)
    }
}

/// Where the log goes on that has ended here: before the first event of the
/// newest writer who followed.
fn next_log(writers: &[Writer], end: Position) -> Result<Position> {
    let next = writers.iter().rfind(|writer| writer.id > end.writer && writer.follows == Some(end));
    let next = next.ok_or_else(|| changed(end, "the events after it are missing"))?;
    Ok(Position { writer: next.id, sequence: 0 })
}

/// The last event that every reader is done with.
async fn read_by_all(app: &App, deadline: Instant) -> Result<Position> {
    let mut cursors = vec![app.history.cursor().await.map_err(from_store)?];
    cursors.extend(app.insights.cursor());
    cursors.extend(readers::<Delivery>(app, deadline).await?.into_iter().map(|delivery| delivery.cursor));
    cursors.extend(readers::<Bookmark>(app, deadline).await?.into_iter().map(|bookmark| bookmark.cursor));
    let mut until = *app.store.end().borrow();
    for cursor in cursors {
        until = until.min(cursor.place(&*app.store).await?);
    }
    Ok(until)
}

async fn readers<T: Stored>(app: &App, deadline: Instant) -> Result<Vec<T>> {
    let rows = app.store.all_rows(T::KIND, None, READERS_MAX).await.map_err(from_store)?;
    if rows.len() >= READERS_MAX as usize {
        return Err(Error::internal("the log has too many readers to know where all of them are"));
    }
    let held = app.registry.open_all::<T>(rows, deadline).await?;
    Ok(held.into_iter().map(|held| held.value).collect())
}
