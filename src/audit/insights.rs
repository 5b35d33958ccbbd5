//! Insights: unusual rates of calls and of errors, and activity that stays away.
//!
//! ```text
//! log ──► a Follower ──► Detector: counts per minute of the past week
//!                           │ a minute is over: what is unusual begins or ends
//!                           ▼
//!                        a record in the log, for those who have a trail with
//!                        Insights selectors: history, files, stream, rules
//! ```
//!
//! What is counted is kept in a file; after a start the log is read from where it
//! ends. Without the file, or where the log does not fit it, the past week is
//! read again.

pub mod detector;
mod record;
mod series;
mod state;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::audit::follow::Cursor;
use crate::audit::trail::{InsightSelector, InsightType, Trail};
use crate::config::InsightSettings;
use crate::error::{Error, Result};
use crate::registry::from_store;
use crate::store::{Commit, Kind, NewEvent, StoredEvent};

pub use detector::{Detector, Finding, Subject};
pub use series::BASELINE;
use state::State;

/// How often a minute that is over is looked for.
const TICK: Duration = Duration::from_millis(200);
/// The wait after the log could not be read.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// How often what is counted is written down.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);
/// How long reading the trails may take.
const TRAILS_TIMEOUT: Duration = Duration::from_secs(10);
/// Trails of a daemon.
const TRAILS_MAX: u32 = 10_000;

/// Minutes are counted from 2020-01-01T00:00:00Z on.
const FIRST_MS: i64 = 1_577_836_800_000;

/// What Insights are made from.
pub struct Insights {
    settings: InsightSettings,
    detector: Mutex<Detector>,
    /// How far the log is counted.
    cursor: Mutex<Cursor>,
}

impl Insights {
    /// Nothing is counted before [`run`].
    pub fn new(settings: InsightSettings) -> Insights {
        Insights { settings, detector: Mutex::default(), cursor: Mutex::default() }
    }

    /// How far the log is counted; none where it is not watched.
    pub fn cursor(&self) -> Option<Cursor> {
        self.settings.enabled.then(|| self.cursor.lock().clone())
    }

    /// The minute of a time, milliseconds since the epoch.
    pub fn minute(&self, time_ms: i64) -> u32 {
        u32::try_from((time_ms - FIRST_MS).div_euclid(self.length_ms())).unwrap_or(0)
    }

    /// When a minute begins, milliseconds since the epoch.
    pub fn time_ms(&self, minute: u32) -> i64 {
        FIRST_MS + i64::from(minute).saturating_mul(self.length_ms())
    }

    fn length_ms(&self) -> i64 {
        i64::try_from(self.settings.minute.as_millis()).unwrap_or(i64::MAX).max(1)
    }

    /// How often what is asked for happened from a minute to another, both
    /// included: the minutes in which it did.
    pub fn counts(&self, wanted: impl Fn(&Subject) -> bool, from: u32, to: u32) -> Vec<(u32, u64)> {
        let detector = self.detector.lock();
        let mut counts = std::collections::BTreeMap::new();
        for series in detector.series(wanted) {
            for (minute, count) in series.between(from, to) {
                *counts.entry(minute).or_insert(0) += u64::from(count);
            }
        }
        counts.into_iter().collect()
    }

    fn learning(&self) -> u32 {
        let minutes = self.settings.learning.as_millis() / self.settings.minute.as_millis().max(1);
        u32::try_from(minutes).unwrap_or(u32::MAX)
    }
}

/// Watches the log until it is stopped.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    if !app.insights.settings.enabled {
        return;
    }
    let file = state::file(&app.data_dir);
    loop {
        let mut work = match Work::begin(&app, &file).await {
            Ok(work) => work,
            Err(error) => {
                pause(&error, &stop).await;
                continue;
            }
        };
        let ended = tokio::select! {
            error = work.go_on() => Some(error),
            () = stop.cancelled() => None,
        };
        work.save().await;
        match ended {
            Some(error) => pause(&error, &stop).await,
            None => return,
        }
    }
}

async fn pause(error: &Error, stop: &CancellationToken) {
    let detail = error.detail.as_deref().unwrap_or_default();
    tracing::warn!(%error, detail, "Insights cannot follow the log; they are tried again");
    tokio::select! {
        () = sleep(RETRY_WAIT) => (),
        () = stop.cancelled() => (),
    }
}

struct Work<'a> {
    app: &'a App,
    file: &'a std::path::Path,
    cursor: Cursor,
    saved_at: Instant,
    /// What is counted again before this minute is on the record already.
    quiet_until: u32,
}

impl Work<'_> {
    async fn begin<'a>(app: &'a App, file: &'a std::path::Path) -> Result<Work<'a>> {
        let State { cursor, detector, is_known } = state::read(app, file).await?;
        *app.insights.detector.lock() = detector;
        let quiet_until = if is_known { 0 } else { app.insights.minute(app.clock.now_ms()) };
        Ok(Work { app, file, cursor, saved_at: Instant::now(), quiet_until })
    }

    /// Counts what comes and judges what is over, until the log fails.
    async fn go_on(&mut self) -> Error {
        loop {
            if let Err(error) = self.step().await {
                return error;
            }
            sleep(TICK).await;
        }
    }

    async fn step(&mut self) -> Result<()> {
        const EVENTS: u32 = 1_000;
        let now_ms = self.app.clock.now_ms();
        for writer in self.app.store.writers().await.map_err(from_store)? {
            loop {
                let after = self.cursor.of(writer.id);
                let events = self.app.store.follow(after, EVENTS).await.map_err(from_store)?;
                let Some(last) = events.last() else { break };
                self.cursor.pass(last.position);
                self.count(&events).await?;
                tokio::task::yield_now().await;
            }
        }
        *self.app.insights.cursor.lock() = self.cursor.clone();
        // A call of the minute may be committed a moment after its end.
        let settled_ms =
            now_ms - i64::try_from(self.app.insights.settings.minute.as_millis() / 2).unwrap_or(0);
        let over = self.app.insights.minute(settled_ms).saturating_sub(1);
        self.judge(over).await?;
        if self.saved_at.elapsed() >= SAVE_INTERVAL {
            self.save().await;
        }
        Ok(())
    }

    /// Counts events; what was over before them is judged first, so that a log
    /// that is read late gives the same.
    async fn count(&self, events: &[StoredEvent]) -> Result<()> {
        for stored in events {
            let minute = self.app.insights.minute(stored.time_ms);
            if minute + BASELINE < self.quiet_until {
                continue;
            }
            let Ok(seen) = serde_json::from_str::<Seen>(&stored.record) else { continue };
            if minute > 0 {
                self.judge(minute - 1).await?;
            }
            let mut detector = self.app.insights.detector.lock();
            for subject in seen.subjects() {
                detector.note(minute, subject, seen.values(), 1);
            }
        }
        Ok(())
    }

    async fn judge(&self, over: u32) -> Result<()> {
        let found = self.app.insights.detector.lock().judge(over, self.app.insights.learning());
        let found: Vec<_> = found.into_iter().filter(|finding| finding.minute >= self.quiet_until).collect();
        if found.is_empty() {
            return Ok(());
        }
        let wanted = Wanted::read(self.app).await?;
        let events: Vec<NewEvent> = found
            .iter()
            .filter(|finding| wanted.wants(&finding.subject))
            .map(|finding| record::event(self.app, finding))
            .collect::<Result<_>>()?;
        if events.is_empty() {
            return Ok(());
        }
        self.app.store.commit(Commit { changes: Vec::new(), events }).await.map_err(from_store)?;
        Ok(())
    }

    async fn save(&mut self) {
        let text = {
            let detector = self.app.insights.detector.lock();
            state::text(&self.cursor, &detector)
        };
        if let Err(error) = state::write(self.file, text).await {
            tracing::warn!(error, "what Insights have counted could not be written down");
        }
        self.saved_at = Instant::now();
    }
}

/// What Insights look at of a record.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    event_source: String,
    event_name: String,
    aws_region: String,
    recipient_account_id: String,
    read_only: bool,
    error_code: Option<String>,
    user_agent: Option<String>,
    #[serde(default)]
    user_identity: Identity,
    event_type: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    arn: Option<String>,
    invoked_by: Option<String>,
}

impl Seen {
    /// The calls are counted of what changes something and of what is
    /// cryptographic; the errors of everything.
    fn subjects(&self) -> impl Iterator<Item = Subject> {
        let is_data = crate::audit::trail::selector::is_cryptographic(&self.event_source, &self.event_name);
        let subject = move |error: Option<String>| Subject {
            account: self.recipient_account_id.clone(),
            region: self.aws_region.clone(),
            source: self.event_source.clone(),
            name: self.event_name.clone(),
            error,
            is_data,
        };
        let calls = (is_data || !self.read_only).then(|| subject(None));
        let is_call = self.event_type == "AwsApiCall";
        let errors = self.error_code.clone().filter(|_| is_call).map(|code| subject(Some(code)));
        calls.into_iter().chain(errors)
    }

    fn values(&self) -> [(&str, &str); 3] {
        let identity = self.user_identity.arn.as_deref().or(self.user_identity.invoked_by.as_deref());
        [
            ("userIdentityArn", identity.unwrap_or("null")),
            ("userAgent", self.user_agent.as_deref().unwrap_or("null")),
            ("errorCode", self.error_code.as_deref().unwrap_or("null")),
        ]
    }
}

/// Which Insights somebody wants: those of an account, or of all accounts, by
/// trails that log.
struct Wanted(Vec<(Option<String>, Vec<InsightSelector>)>);

impl Wanted {
    async fn read(app: &App) -> Result<Wanted> {
        let rows = app.store.all_rows(Kind::Trail, None, TRAILS_MAX).await.map_err(from_store)?;
        let trails = app.registry.open_all::<Trail>(rows, Instant::now() + TRAILS_TIMEOUT).await?;
        let of = |trail: crate::registry::Held<Trail>| {
            let account = (!trail.value.organization).then_some(trail.id.account);
            (account, trail.value.insights)
        };
        Ok(Wanted(trails.into_iter().filter(|trail| trail.value.logging.on).map(of).collect()))
    }

    fn wants(&self, subject: &Subject) -> bool {
        let kind = if subject.error.is_some() { InsightType::ErrorRate } else { InsightType::CallRate };
        self.0.iter().any(|(account, selectors)| {
            account.as_ref().is_none_or(|account| *account == subject.account)
                && selectors.iter().any(|selector| selector.selects(kind, subject.is_data))
        })
    }
}
