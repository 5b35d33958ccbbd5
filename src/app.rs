//! Everything that serves calls.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::history::History;
use crate::audit::insights::Insights;
use crate::audit::metric_filters::MetricFilters;
use crate::audit::rules::Rules;
use crate::audit::tail::Tail;
use crate::audit::trail::Trails;
use crate::brakes::Brakes;
use crate::config::{Directory, HistorySettings};
use crate::hsm::ClusterIdentity;
use crate::jobs::ClockGate;
use crate::key_stores::KeyStores;
use crate::registry::Registry;
use crate::store::Store;

/// The parts of a daemon, each behind its own interface.
pub struct App {
    /// The Region that is asked where a call names none, and that has the
    /// daemon's own events. Which others there are, `key_stores` knows.
    pub region: Arc<str>,
    /// Where the store is, and what else the daemon writes.
    pub data_dir: PathBuf,
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
    pub key_stores: KeyStores,
    /// The keys of the daemon's own in the HSMs.
    pub identity: ClusterIdentity,
    /// The index of events.
    pub history: Arc<History>,
    /// How long it and the log go back.
    pub history_settings: HistorySettings,
    /// Written while the log's oldest events are removed, read while it is verified.
    pub log_base: tokio::sync::RwLock<()>,
    /// What trails need while they run.
    pub trails: Trails,
    /// The newest events, for those who follow the log.
    pub tail: Arc<Tail>,
    /// What is unusual.
    pub insights: Insights,
    /// What is counted.
    pub metric_filters: MetricFilters,
    /// What goes to targets.
    pub rules: Rules,
    /// What time it is.
    pub clock: Clock,
    /// Calls that run.
    pub tasks: TaskTracker,
    /// Who there is; a reload replaces it.
    pub directory: ArcSwap<Directory>,
    /// What one principal may take.
    pub brakes: Brakes,
    /// Calls that could not be recorded.
    pub unrecorded: Unrecorded,
    /// Cancelled when the daemon begins to stop: streams end.
    pub stopping: CancellationToken,
    /// Whether deletions wait for an operator because the clock jumped.
    pub clock_gate: ClockGate,
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
