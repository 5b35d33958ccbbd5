//! Rules: the events that match a pattern go to targets, at once.
//!
//! ```text
//! log ──► a Follower for each target ──► the patterns of its rules ──► the target
//!                                              │                          │ again, with longer and longer waits
//!                                              └ no rule wants it         ▼ refused, or too old
//!                                                                     dead letters, a file
//! ```
//!
//! Rules and targets are configuration, and change with it at a reload. Each
//! target has its own place in the log and its own task, so one that hangs or
//! refuses keeps nobody else waiting. A target gets an event once however many
//! of its rules want it, and again after a crash that came before its place was
//! written down: the event's id tells.

mod aws;
mod cloud_event;
mod dead_letter;
mod envelope;
mod event_bus;
mod file;
mod log_stream;
mod target;
mod webhook;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use envelope::{envelope, event_of};

use crate::app::App;
use crate::audit::pattern::Pattern;
use crate::audit::trail::service_event;
use crate::config::{RuleSettings, TargetSettings};
use crate::error::Result;
use crate::registry::from_store;
use crate::store::{Change, Commit, Kind, Row};

/// The bookmarks of targets begin so.
const BOOKMARK: &str = "target/";
/// Bookmarks that are looked at when targets change.
const BOOKMARKS_MAX: u32 = 10_000;

/// What the configuration says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleSet {
    /// By their names.
    pub rules: BTreeMap<String, RuleSettings>,
    /// By their names.
    pub targets: BTreeMap<String, TargetSettings>,
}

/// A rule of a target.
struct Rule {
    name: String,
    pattern: Pattern,
}

/// The rules of a daemon.
pub struct Rules {
    current: watch::Sender<Arc<RuleSet>>,
}

impl Rules {
    /// None is in force before [`run`].
    pub fn new(rules: RuleSet) -> Rules {
        Rules { current: watch::Sender::new(Arc::new(rules)) }
    }

    /// Puts others in force.
    pub fn set(&self, rules: RuleSet) {
        self.current.send_if_modified(|current| {
            let differs = **current != rules;
            *current = Arc::new(rules);
            differs
        });
    }
}

/// Serves targets until it is stopped.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut changes = app.rules.current.subscribe();
    loop {
        let rules = changes.borrow_and_update().clone();
        forget_others(&app, &rules).await;
        let generation = stop.child_token();
        let mut tasks = JoinSet::new();
        for (name, settings) in &rules.targets {
            let own = rules.of(name);
            tasks.spawn(worker::run(app.clone(), name.clone(), settings.clone(), own, generation.clone()));
        }
        let ends = tokio::select! {
            changed = changes.changed() => changed.is_err(),
            () = stop.cancelled() => true,
        };
        generation.cancel();
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a target's task ended badly");
            }
        }
        if ends {
            return;
        }
    }
}

impl RuleSet {
    /// The rules of a target. The configuration was checked: each is a pattern.
    fn of(&self, target: &str) -> Vec<Rule> {
        let named = self.rules.iter().filter(|(_, rule)| rule.targets.iter().any(|name| name == target));
        let compiled = named.filter(|(_, rule)| rule.enabled).filter_map(|(name, rule)| {
            let pattern = rule.event_pattern.parse().ok()?;
            Some(Rule { name: name.clone(), pattern })
        });
        compiled.collect()
    }
}

/// A target that is no more has no place in the log: one that comes back under
/// its name begins at the end.
async fn forget_others(app: &App, rules: &RuleSet) {
    let rows = app.store.rows(Kind::Bookmark, &app.region, &app.account, None, None, BOOKMARKS_MAX).await;
    let gone = rows
        .unwrap_or_default()
        .into_iter()
        .filter(|row| row.id.id.strip_prefix(BOOKMARK).is_some_and(|name| !rules.targets.contains_key(name)));
    for row in gone {
        if let Err(error) = forget(app, &row).await {
            tracing::warn!(row = %row.id, %error, "the place of a target that is no more stays");
        }
    }
}

async fn forget(app: &App, row: &Row) -> Result<()> {
    let event = service_event(app, "StopLogReader", json!({ "reader": row.id.id }))?;
    let delete = Change::Delete { id: row.id.clone(), expected: row.version };
    let commit = Commit { changes: vec![delete], events: vec![event] };
    app.store.commit(commit).await.map(drop).map_err(from_store)
}
