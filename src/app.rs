//! Everything that serves calls.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::history::History;
use crate::error::{Error, Exception, Result};
use crate::hsm::{Cluster, ClusterIdentity};
use crate::registry::Registry;
use crate::store::Store;

/// The parts of a daemon, each behind its own interface.
pub struct App {
    /// The Region that it serves.
    pub region: String,
    /// The account whose log has what belongs to none.
    pub account: String,
    /// When it was started, milliseconds since the epoch.
    pub started_ms: i64,
    /// The last time on record before it was started.
    pub recorded_ms: Option<i64>,
    /// Rows and events.
    pub store: Arc<dyn Store>,
    /// Rows as values.
    pub registry: Registry,
    /// The HSMs.
    pub cluster: Arc<Cluster>,
    /// The keys of the daemon's own in the HSMs.
    pub identity: ClusterIdentity,
    /// The index of events.
    pub history: Arc<History>,
    /// What time it is.
    pub clock: Clock,
    /// Calls that run.
    pub tasks: TaskTracker,
    /// What one principal may do, replaced by a reload.
    limits: ArcSwap<Limits>,
    /// Calls that could not be recorded.
    pub unrecorded: Unrecorded,
    /// Cancelled when the daemon begins to stop: streams end.
    pub stopping: CancellationToken,
    /// Whether deletions wait for an operator because the clock jumped.
    pub clock_gate: crate::jobs::ClockGate,
    in_flight: Mutex<HashMap<String, u32>>,
}

struct Limits {
    denials: Denials,
    requests_per_principal_max: u32,
}

/// What an [`App`] is made of.
pub struct Parts {
    /// The Region.
    pub region: String,
    /// The account whose log has what belongs to none.
    pub account: String,
    /// The last time on record.
    pub recorded_ms: Option<i64>,
    /// Rows and events.
    pub store: Arc<dyn Store>,
    /// Rows as values.
    pub registry: Registry,
    /// The HSMs.
    pub cluster: Arc<Cluster>,
    /// The daemon's own keys.
    pub identity: ClusterIdentity,
    /// The index of events.
    pub history: Arc<History>,
    /// The brake on denials.
    pub denials: Denials,
    /// Most calls of one principal at a time.
    pub requests_per_principal_max: u32,
}

impl App {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<App> {
        Arc::new(App {
            region: parts.region,
            account: parts.account,
            started_ms: Clock.now_ms(),
            recorded_ms: parts.recorded_ms,
            store: parts.store,
            registry: parts.registry,
            cluster: parts.cluster,
            identity: parts.identity,
            history: parts.history,
            clock: Clock,
            tasks: TaskTracker::new(),
            limits: ArcSwap::from_pointee(Limits {
                denials: parts.denials,
                requests_per_principal_max: parts.requests_per_principal_max,
            }),
            unrecorded: Unrecorded::default(),
            stopping: CancellationToken::new(),
            clock_gate: crate::jobs::ClockGate::default(),
            in_flight: Mutex::new(HashMap::new()),
        })
    }

    /// Puts other limits in force.
    pub fn set_limits(&self, denials: Denials, requests_per_principal_max: u32) {
        self.limits.store(Arc::new(Limits { denials, requests_per_principal_max }));
    }

    /// Waits until this principal may be denied again.
    pub async fn denial(&self, principal: &str) {
        let limits = self.limits.load_full();
        limits.denials.wait(principal).await;
    }

    /// Lets a principal's call in, if it has not too many running: one
    /// principal cannot take every session of the HSM from the others.
    ///
    /// # Errors
    /// ThrottlingException.
    pub fn admit(&self, principal: &str) -> Result<Admission<'_>> {
        const RETRY: Duration = Duration::from_millis(50);
        let mut in_flight = self.in_flight.lock();
        let running = in_flight.entry(principal.to_owned()).or_insert(0);
        if *running >= self.limits.load().requests_per_principal_max {
            return Err(Error::new(
                Exception::Throttling,
                "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
            )
            .retry_after(RETRY));
        }
        *running += 1;
        Ok(Admission { app: self, principal: principal.to_owned() })
    }
}

/// A call that was let in, until it is dropped.
pub struct Admission<'a> {
    app: &'a App,
    principal: String,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.app.in_flight.lock();
        if let Some(running) = in_flight.get_mut(&self.principal) {
            *running -= 1;
            if *running == 0 {
                in_flight.remove(&self.principal);
            }
        }
    }
}

/// The system's clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock;

impl Clock {
    /// Milliseconds since the epoch.
    pub fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The brake on denials: each has its event, but one principal's come no
/// faster than the log should grow by them. A denial above the rate waits.
pub struct Denials(DefaultKeyedRateLimiter<String>);

impl Denials {
    /// So many a second for each principal, after a burst.
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Denials(RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)))
    }

    async fn wait(&self, principal: &str) {
        self.0.until_key_ready(&principal.to_owned()).await;
    }
}

/// Calls that got KMSInternalException because their event could not be made
/// durable; an event tells their number when the store takes events again.
#[derive(Debug, Default)]
pub struct Unrecorded(AtomicU64);

impl Unrecorded {
    /// Counts one.
    pub fn note(&self, operation: &'static str) {
        metrics::counter!("strongroom_unrecorded_calls_total", "operation" => operation).increment(1);
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there are, which are taken out of the count.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }

    /// Puts back what could not be reported.
    pub fn put_back(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}
