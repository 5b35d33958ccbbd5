//! The task of each trail: what is due, a step at a time, each step a row.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bucket::Metadata;
use super::digest::{self, At, Chain, Chains, Digest, Link, LogFile, Window};
use super::keys;
use super::log_file::{self, Owner, Pending, Range, Scope};
use super::name::{Place, organization_id};
use super::rows::{Delivery, Logging, Trail};
use crate::app::App;
use crate::audit::follow::Cursor;
use crate::error::{Error, Result};
use crate::registry::{Draft, Held, from_store};
use crate::store::{Commit, Kind, RowId};

/// How long a step may wait for the HSM.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// The wait after a step that failed; it doubles up to the greatest.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// The greatest wait after a step that failed.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often it is looked which trails there are, whatever was told.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Where the clock was set back by more, files have its time all the same.
const SET_BACK_MAX_MS: i64 = 3_600_000;
/// Trails of a daemon.
const TRAILS_MAX: u32 = 10_000;
/// Digests that are made one by one when they are late. Further behind, one
/// covers all of the time: else what takes longer than it covers never ends.
const LATE_DIGESTS_MAX: i64 = 24;

/// Runs every trail until it is stopped.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut running: HashSet<RowId> = HashSet::new();
    let mut changes = app.trails.changes();
    loop {
        changes.mark_unchanged();
        match app.store.all_rows(Kind::Trail, None, TRAILS_MAX).await {
            Ok(rows) => {
                for row in rows {
                    if running.insert(row.id.clone()) {
                        tasks.spawn(follow(app.clone(), row.id, app.trails.changes(), stop.clone()));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the trails cannot be read"),
        }
        tokio::select! {
            _ = changes.changed() => (),
            () = tokio::time::sleep(LOOK_INTERVAL) => (),
            Some(ended) = tasks.join_next() => match ended {
                Ok(id) => {
                    running.remove(&id);
                }
                Err(error) => {
                    tracing::error!(%error, "a trail's task ended badly; trails begin again");
                    tasks.shutdown().await;
                    running.clear();
                }
            },
            () = stop.cancelled() => break,
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// One trail, until it is deleted. What it has begun when it is stopped goes on
/// after the next start.
async fn follow(
    app: Arc<App>,
    id: RowId,
    mut changes: watch::Receiver<u64>,
    stop: CancellationToken,
) -> RowId {
    let mut wait = RETRY_MIN;
    let mut read = None;
    loop {
        changes.mark_unchanged();
        let next = tokio::select! {
            next = step(&app, &id, &mut read) => next,
            () = stop.cancelled() => return id,
        };
        let pause = match next {
            Ok(Next::Again) => {
                wait = RETRY_MIN;
                continue;
            }
            Ok(Next::At(ms)) => {
                wait = RETRY_MIN;
                Duration::from_millis(u64::try_from(ms - app.clock.now_ms()).unwrap_or(0))
            }
            Ok(Next::Gone) => {
                app.trails.forget(&id);
                return id;
            }
            // Somebody else changed a row meanwhile: read it again.
            Err(error) if crate::registry::is_conflict(&error) => continue,
            Err(error) => {
                let detail = error.detail.as_deref().unwrap_or_default();
                tracing::warn!(trail = %id, %error, detail, "a trail's delivery failed; it is tried again");
                let now = wait;
                wait = (wait * 2).min(RETRY_MAX);
                now
            }
        };
        tokio::select! {
            _ = changes.changed() => (),
            () = tokio::time::sleep(pause) => (),
            () = stop.cancelled() => return id,
        }
    }
}

/// What comes after a step.
enum Next {
    /// Another one at once.
    Again,
    /// Another one then, milliseconds since the epoch.
    At(i64),
    /// The trail was deleted.
    Gone,
}

/// The next file or the next digest: of two that are due, the one that waits
/// for longer goes first, so neither waits for ever.
struct Turn {
    /// When it is due.
    due_ms: i64,
    /// When the last of its kind was written.
    last_ms: Option<i64>,
}

impl Turn {
    /// Since when it waits: one of many that are late is due ever since they
    /// are, and had its turn when the last one was written.
    fn since_ms(&self) -> i64 {
        self.due_ms.max(self.last_ms.unwrap_or(0))
    }
}

/// A trail and its delivery, as their rows are.
struct Work<'a> {
    app: &'a App,
    trail: Held<Trail>,
    delivery: Held<Delivery>,
    /// The log's end before they were read: they count for all that is before it.
    end: Cursor,
    now_ms: i64,
    deadline: Instant,
    /// What the last step read of the log, for the files that it named.
    read: &'a mut Option<(Pending, Range)>,
}

async fn step(app: &App, id: &RowId, read: &mut Option<(Pending, Range)>) -> Result<Next> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    let end = Cursor::at_end(&*app.store).await?;
    let Some(row) = app.store.row(id).await.map_err(from_store)? else { return Ok(Next::Gone) };
    let trail = app.registry.open(row, deadline).await?;
    let now_ms = app.clock.now_ms();
    let delivery = RowId { kind: Kind::Delivery, ..id.clone() };
    let Some(row) = app.store.row(&delivery).await.map_err(from_store)? else {
        // Logging was never started.
        return Ok(Next::At(now_ms + ms(LOOK_INTERVAL)));
    };
    let delivery = app.registry.open(row, deadline).await?;
    let work = Work { app, trail, delivery, end, now_ms, deadline, read };
    work.note_backlog();
    work.step().await
}

impl Work<'_> {
    async fn step(mut self) -> Result<Next> {
        let id = self.trail.id.clone();
        if self.delivery.value.pending.is_some() {
            let result = self.write_files().await;
            self.app.trails.note(&id, |status| {
                status.attempted_ms = Some(self.now_ms);
                status.delivery_error = result.as_ref().err().map(told);
            });
            count(&id, "log", &result);
            return result;
        }
        if self.is_digest_next() {
            let result = self.digest().await;
            self.app.trails.note(&id, |status| {
                status.digest_error = result.as_ref().err().map(told);
            });
            count(&id, "digest", &result);
            let Err(error) = result else { return result };
            // Files go on without it: the next digest lists them.
            return match self.take_events().await? {
                Next::Again => Ok(Next::Again),
                Next::At(_) | Next::Gone => Err(error),
            };
        }
        self.take_events().await
    }

    /// Whether events are behind the cursor.
    fn is_behind(&self) -> bool {
        self.delivery.value.cursor.is_behind(&self.end)
    }

    /// When the next range of events is due.
    fn range_due_ms(&self) -> i64 {
        let taken_ms = self.delivery.value.taken_ms;
        match self.trail.value.logging {
            // What was logged before the end is delivered at once.
            Logging { on: false, stopped_ms: Some(stopped), .. } if taken_ms < stopped => stopped,
            // The clock was set back.
            _ if taken_ms > self.now_ms => self.now_ms,
            _ => taken_ms + ms(self.app.trails.settings.delivery_interval),
        }
    }

    /// When the next digest is due.
    fn digest_due_ms(&self) -> Option<i64> {
        let Trail { logging, validation, .. } = &self.trail.value;
        match &self.delivery.value.chains {
            Some(chains) => Some(chains.from_ms + ms(self.app.trails.settings.digest_interval)),
            None => (*validation && logging.on).then_some(0),
        }
    }

    /// Whether a digest is to be begun or written.
    fn is_digest_next(&self) -> bool {
        let Delivery { chains, delivered_ms, digested_ms, .. } = &self.delivery.value;
        if chains.as_ref().is_some_and(|chains| chains.pending.is_some()) {
            return true;
        }
        let Some(due_ms) = self.digest_due_ms().filter(|due| *due <= self.now_ms) else { return false };
        let digest = Turn { due_ms, last_ms: *digested_ms };
        let range = Turn { due_ms: self.range_due_ms(), last_ms: *delivered_ms };
        !self.is_behind() || digest.since_ms() <= range.since_ms()
    }

    /// The time in a file's name: not before the end of the last digest, which
    /// would have had to list it, where the clock was set back since.
    fn named_ms(&self) -> i64 {
        let digested_ms = self.delivery.value.chains.as_ref().map_or(0, |chains| chains.from_ms);
        self.now_ms.max(digested_ms.min(self.now_ms + SET_BACK_MAX_MS))
    }

    /// Takes the events behind the cursor, names their files, and says so in
    /// the row: only then they are written.
    async fn take_events(&mut self) -> Result<Next> {
        let due_ms = self.range_due_ms();
        if due_ms > self.now_ms || !self.is_behind() {
            let idle = self.now_ms + ms(self.app.trails.settings.delivery_interval);
            let wake = if due_ms > self.now_ms { due_ms } else { idle };
            return Ok(Next::At(self.digest_due_ms().map_or(wake, |due| due.min(wake))));
        }
        let (trail, mut delivery) = (&self.trail.value, self.delivery.value.clone());
        let store = &*self.app.store;
        let scope = Scope::of(store, &self.trail.id, trail, &delivery.cursor).await?;
        let bytes_max = self.app.trails.settings.file_bytes_max;
        let range = log_file::read(store, &delivery.cursor, &self.end, &scope, bytes_max).await?;
        if !range.is_full {
            delivery.taken_ms = self.now_ms;
        }
        if range.records.is_empty() {
            delivery.cursor = range.until;
        } else {
            let organization = self.organization();
            let named_ms = self.named_ms();
            let pending = log_file::pending(&range, scope, trail, organization.as_deref(), named_ms)?;
            delivery.pending = Some(pending.clone());
            *self.read = Some((pending, range));
        }
        self.keep(&delivery).await?;
        Ok(Next::Again)
    }

    /// Writes the files that the row names, and moves the cursor behind them.
    async fn write_files(&mut self) -> Result<Next> {
        let mut delivery = self.delivery.value.clone();
        let Some(pending) = delivery.pending.take() else { return Ok(Next::Again) };
        let bucket = self.app.trails.buckets.open(&pending.bucket, pending.kms_key_id.as_deref());
        let bucket = bucket.map_err(undelivered)?;
        let range = match self.read.take() {
            Some((named, range)) if named == pending => range,
            _ => {
                let (from, until) = (&delivery.cursor, &pending.until);
                log_file::read(&*self.app.store, from, until, &pending.scope, u64::MAX).await?
            }
        };
        for (owner, records) in range.records {
            let key = pending
                .keys
                .get(&owner)
                .ok_or_else(|| Error::internal("a range of the log has other events than before"))?;
            let file = records.file().await?;
            bucket.put(key, file.gzip.clone(), &Metadata::new()).await.map_err(undelivered)?;
            if let Some(chains) = &mut delivery.chains {
                let entry = LogFile::new(&pending.bucket, key, &file)?;
                chains.chains.entry(owner.of_all()).or_default().files.push(entry);
            }
        }
        delivery.cursor = pending.until;
        delivery.delivered_ms = Some(self.app.clock.now_ms());
        self.keep(&delivery).await?;
        Ok(Next::Again)
    }

    /// One step of the digests: begin, sign, or write.
    async fn digest(&self) -> Result<Next> {
        let mut delivery = self.delivery.value.clone();
        match delivery.chains.take() {
            None => delivery.chains = Some(self.begin_chains()),
            Some(mut chains) => match chains.pending.take() {
                None => {
                    chains.pending = Some(self.sign_window(&chains).await?);
                    chains.chains.values_mut().for_each(|chain| chain.files.clear());
                    delivery.chains = Some(chains);
                }
                Some(window) => {
                    self.write_digests(&window).await?;
                    delivery.digested_ms = Some(self.app.clock.now_ms());
                    let is_last =
                        window.is_last && chains.chains.values().all(|chain| chain.files.is_empty());
                    delivery.chains = (!is_last).then(|| chains.after(window));
                }
            },
        }
        self.keep(&delivery).await?;
        Ok(Next::Again)
    }

    /// Its own account's chain is there from the beginning: empty hours are
    /// told too. Those of others begin with their first file.
    fn begin_chains(&self) -> Chains {
        let RowId { account, region, .. } = &self.trail.id;
        let owner = Owner { account: account.clone(), region: region.clone(), insights: false };
        Chains {
            from_ms: self.now_ms - self.now_ms.rem_euclid(1000),
            chains: [(owner, Chain::default())].into(),
            pending: None,
        }
    }

    async fn sign_window(&self, chains: &Chains) -> Result<Window> {
        let trail = &self.trail.value;
        let interval = ms(self.app.trails.settings.digest_interval);
        let late = (self.now_ms - chains.from_ms) / interval;
        let end_ms = chains.from_ms + interval * if late > LATE_DIGESTS_MAX { late } else { 1 };
        let key = keys::in_force(self.app, end_ms).await?;
        let organization = self.organization();
        let mut digests = std::collections::BTreeMap::new();
        for (owner, chain) in &chains.chains {
            let place = Place {
                prefix: trail.prefix.as_deref(),
                organization: organization.as_deref(),
                account: &owner.account,
                region: &owner.region,
            };
            let object = place.digest(&self.trail.id.id, &self.trail.id.region, end_ms)?;
            let range_ms = (chains.from_ms, end_ms);
            let at = At { owner, bucket: &trail.bucket, key: &object, range_ms };
            let next = Digest::next(chain, &at, &key)?;
            let text = next.text()?;
            let message = next.message(text.as_bytes());
            let signature = keys::sign(self.app, &key.value, &message, self.deadline).await?;
            let sha256 = digest::sha256(text.as_bytes());
            let link = Link { bucket: trail.bucket.clone(), key: object, sha256, signature };
            digests.insert(owner.clone(), (link, text));
        }
        let is_last = self.ends_chains() && end_ms + interval > self.now_ms;
        Ok(Window { end_ms, kms_key_id: trail.kms_key_id.clone(), digests, is_last })
    }

    /// Whether no further file will have to be in a digest.
    fn ends_chains(&self) -> bool {
        let Trail { logging, validation, .. } = &self.trail.value;
        // A request that was under way at the end is logged a little later.
        let settle = self.app.trails.settings.digest_interval.min(STEP_TIMEOUT);
        let is_drained = |stopped: i64| {
            let quiet_from = stopped + ms(settle);
            self.delivery.value.taken_ms >= quiet_from || self.now_ms >= quiet_from && !self.is_behind()
        };
        !validation || !logging.on && logging.stopped_ms.is_some_and(is_drained)
    }

    async fn write_digests(&self, window: &Window) -> Result<()> {
        for (link, text) in window.digests.values() {
            let bucket = self.app.trails.buckets.open(&link.bucket, window.kms_key_id.as_deref());
            let metadata = [
                (digest::SIGNATURE.to_owned(), link.signature.clone()),
                (digest::SIGNATURE_ALGORITHM.to_owned(), digest::ALGORITHM.to_owned()),
            ];
            let content = log_file::gzip(text.as_bytes())?;
            bucket
                .map_err(undelivered)?
                .put(&link.key, content, &metadata.into())
                .await
                .map_err(undelivered)?;
        }
        Ok(())
    }

    fn organization(&self) -> Option<String> {
        self.trail.value.organization.then(|| organization_id(&self.app.account))
    }

    async fn keep(&self, delivery: &Delivery) -> Result<()> {
        let drafts = [Draft::replace(&self.delivery, delivery)?];
        let changes = self.app.registry.seal(&drafts, self.deadline).await?;
        // No event: it would have to be delivered, and that would be an event.
        let commit = Commit { changes, events: Vec::new() };
        self.app.store.commit(commit).await.map(|_| ()).map_err(from_store)
    }

    fn note_backlog(&self) {
        let end = *self.app.store.end().borrow();
        let events = end.sequence.saturating_sub(self.delivery.value.cursor.of(end.writer).sequence);
        metrics::gauge!("strongroom_trail_backlog_events", "trail" => self.trail.id.to_string())
            .set(events as f64);
        self.app.trails.note(&self.trail.id, |status| status.backlog_events = events);
    }
}

impl Chains {
    /// The chains behind digests that were written.
    fn after(mut self, window: Window) -> Chains {
        for (owner, (link, _)) in window.digests {
            self.chains.entry(owner).or_default().last = Some(link);
        }
        self.from_ms = window.end_ms;
        self
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn undelivered(error: super::bucket::BucketError) -> Error {
    Error::internal(error.to_string())
}

/// What GetTrailStatus says of a failure.
fn told(error: &Error) -> String {
    error.detail.clone().unwrap_or_else(|| error.to_string())
}

fn count(id: &RowId, what: &'static str, result: &Result<Next>) {
    let outcome = if result.is_ok() { "OK" } else { "error" };
    metrics::counter!("strongroom_trail_steps_total", "trail" => id.to_string(), "file" => what, "result" => outcome)
        .increment(1);
}

#[cfg(test)]
mod tests {
    use super::Turn;

    #[test]
    fn many_that_are_late_take_turns() {
        const LATE: i64 = 100;
        // Each takes longer than what it covers, so both are ever later.
        let (mut now_ms, mut order) = (10_000, String::new());
        let mut digest = Turn { due_ms: now_ms - LATE, last_ms: None };
        let mut range = Turn { due_ms: now_ms - LATE / 2, last_ms: None };
        for _ in 0..8 {
            let is_digest = digest.since_ms() <= range.since_ms();
            order.push(if is_digest { 'd' } else { 'r' });
            now_ms += LATE;
            let turn = if is_digest { &mut digest } else { &mut range };
            *turn = Turn { due_ms: turn.due_ms + 1, last_ms: Some(now_ms) };
        }
        assert_eq!(order, "drdrdrdr");
    }
}
