//! Metric filters: counters of the events that match a pattern, with dimensions
//! such as who and which key, for alarms.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::audit::follow::Follower;
use crate::audit::log_filter::{LogFilter, Selector};
use crate::audit::pattern::Pattern;
use crate::audit::tail::Logged;
use crate::config::MetricFilterSettings;
use crate::error::Result;

/// Sets of dimensions' values of one filter that have a counter of their own.
const VALUES_MAX: usize = 1_000;
/// The value of all others.
const OTHER: &str = "other";
/// The wait after the log could not be read.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// What the configuration says, by name.
pub type FilterSettings = BTreeMap<String, MetricFilterSettings>;

/// The metric filters of a daemon.
pub struct MetricFilters {
    current: watch::Sender<Arc<FilterSettings>>,
}

impl MetricFilters {
    /// None counts before [`run`].
    pub fn new(filters: FilterSettings) -> MetricFilters {
        MetricFilters { current: watch::Sender::new(Arc::new(filters)) }
    }

    /// Puts others in force.
    pub fn set(&self, filters: FilterSettings) {
        self.current.send_if_modified(|current| {
            let differs = **current != filters;
            *current = Arc::new(filters);
            differs
        });
    }
}

/// Counts until it is stopped: what is committed from now on, as counters begin
/// anew with their process.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut changes = app.metric_filters.current.subscribe();
    let mut log = None;
    loop {
        let settings = changes.borrow_and_update().clone();
        let filters = settings.iter().filter_map(|(name, settings)| Filter::open(name, settings)).collect();
        let ends = tokio::select! {
            changed = changes.changed() => changed.is_err(),
            () = count(&app, &mut log, filters) => true,
            () = stop.cancelled() => true,
        };
        if ends {
            return;
        }
    }
}

/// Counts as long as these filters are in force; without any, nothing is read.
async fn count(app: &Arc<App>, log: &mut Option<Follower>, mut filters: Vec<Filter>) {
    if filters.is_empty() {
        *log = None;
        return std::future::pending().await;
    }
    loop {
        if let Err(error) = follow(app, log, &mut filters).await {
            tracing::warn!(%error, "metric filters cannot follow the log; they are tried again");
            *log = None;
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
}

async fn follow(app: &Arc<App>, log: &mut Option<Follower>, filters: &mut [Filter]) -> Result<()> {
    let log = match log {
        Some(log) => log,
        None => log.insert(Follower::at_end(app).await?),
    };
    loop {
        let events = log.next().await?;
        for event in &events {
            filters.iter_mut().for_each(|filter| filter.count(event));
        }
        if let Some(last) = events.last() {
            log.pass(last.stored.position);
        }
    }
}

/// A filter at work.
struct Filter {
    metric: String,
    wanted: Wanted,
    dimensions: Vec<(String, Selector)>,
    /// The values that have counters.
    known: HashSet<Vec<String>>,
}

enum Wanted {
    Pattern(Pattern),
    Filter(LogFilter),
}

impl Filter {
    /// The configuration was checked: one of the two is there, and can be read.
    fn open(name: &str, settings: &MetricFilterSettings) -> Option<Filter> {
        let wanted = match (&settings.event_pattern, &settings.filter_pattern) {
            (Some(pattern), _) => Wanted::Pattern(pattern.parse().ok()?),
            (None, Some(filter)) => Wanted::Filter(filter.parse().ok()?),
            (None, None) => return None,
        };
        let dimension = |(name, selector): (&String, &String)| Some((name.clone(), selector.parse().ok()?));
        Some(Filter {
            metric: format!("strongroom_filter_{}_total", name.replace('-', "_")),
            wanted,
            dimensions: settings.dimensions.iter().filter_map(dimension).collect(),
            known: HashSet::new(),
        })
    }

    fn count(&mut self, logged: &Logged) {
        let event = logged.envelope();
        let record = event.get("detail").unwrap_or(&Value::Null);
        let matches = match &self.wanted {
            Wanted::Pattern(pattern) => pattern.matches(event),
            Wanted::Filter(filter) => filter.matches(record),
        };
        if !matches {
            return;
        }
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let value = |(_, selector): &(String, Selector)| selector.find(record).map(text).unwrap_or_default();
        let mut values: Vec<String> = self.dimensions.iter().map(value).collect();
        if !self.known.contains(&values) {
            if self.known.len() >= VALUES_MAX {
                values.fill(OTHER.to_owned());
            } else {
                self.known.insert(values.clone());
            }
        }
        let names = self.dimensions.iter().map(|(name, _)| name.clone());
        let labels: Vec<(String, String)> = names.zip(values).collect();
        metrics::counter!(self.metric.clone(), &labels).increment(1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::store::{Position, StoredEvent};

    #[test]
    fn a_filter_has_so_many_counters_and_no_more() {
        let settings = MetricFilterSettings {
            event_pattern: None,
            filter_pattern: Some("{ $.eventName = Decrypt }".into()),
            dimensions: [("user".to_owned(), "$.userIdentity.arn".to_owned())].into(),
        };
        let mut filter = Filter::open("by-user", &settings).unwrap();
        assert_eq!(filter.metric, "strongroom_filter_by_user_total");
        for number in 0..VALUES_MAX + 50 {
            for name in ["Decrypt", "Encrypt"] {
                let record = serde_json::json!({
                    "eventID": "e", "recipientAccountId": "a", "eventName": name, "userIdentity": {"arn": format!("{name}{number}")},
                });
                let stored = StoredEvent {
                    position: Position { writer: 1, sequence: 1 },
                    id: String::new(),
                    time_ms: 0,
                    record: record.to_string().into(),
                    effects: String::new(),
                    hash: [0; 32],
                };
                filter.count(&Logged::read(stored).unwrap());
            }
        }
        assert_eq!(filter.known.len(), VALUES_MAX);
        assert!(filter.known.iter().all(|values| values[0].starts_with("Decrypt")));
    }
}
