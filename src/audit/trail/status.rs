//! What trails need while they run, and how their last deliveries went.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use super::bucket::Buckets;
use crate::app::App;
use crate::audit::record::{Context, Record};
use crate::config::TrailSettings;
use crate::error::{Error, Result};
use crate::service::Service;
use crate::store::{NewEvent, RowId};

/// The trails of a daemon.
pub struct Trails {
    /// How they deliver.
    pub settings: TrailSettings,
    /// Where they deliver to.
    pub buckets: Buckets,
    /// Held while a digest key is made.
    pub making_key: tokio::sync::Mutex<()>,
    changes: watch::Sender<u64>,
    status: Mutex<HashMap<RowId, Status>>,
}

/// How a trail's last attempts went, since the daemon was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The last attempt to deliver a log file, milliseconds since the epoch.
    pub attempted_ms: Option<i64>,
    /// Why it failed.
    pub delivery_error: Option<String>,
    /// Why the last digest could not be made or delivered.
    pub digest_error: Option<String>,
    /// Events behind the cursor.
    pub backlog_events: u64,
}

impl Trails {
    /// None delivers before [`super::run`].
    pub fn new(settings: TrailSettings, region: &str) -> Trails {
        Trails {
            buckets: Buckets::new(settings.clone(), region.to_owned()),
            settings,
            making_key: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
            status: Mutex::default(),
        }
    }

    /// Has every trail look at its row.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells when a trail's row was changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How a trail's last attempts went.
    pub fn status(&self, id: &RowId) -> Status {
        self.status.lock().get(id).cloned().unwrap_or_default()
    }

    /// Notes it.
    pub(super) fn note(&self, id: &RowId, change: impl FnOnce(&mut Status)) {
        change(self.status.lock().entry(id.clone()).or_default());
    }

    /// Forgets a trail that is no more.
    pub(super) fn forget(&self, id: &RowId) {
        self.status.lock().remove(id);
    }
}

/// An event of CloudTrail's own, in the account that runs the installation.
///
/// # Errors
/// KMSInternalException for a time that no calendar has.
pub fn service_event(app: &App, name: &'static str, details: Value) -> Result<NewEvent> {
    let context = Context {
        source: Service::CloudTrail.event_source(),
        name,
        region: &app.region,
        time_ms: app.clock.now_ms(),
        read_only: false,
    };
    let record = Record::service(context, &app.account, details);
    record.event().map_err(|error| Error::internal(error.to_string()))
}
