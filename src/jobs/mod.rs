//! What happens by the clock, and what a crash left to be finished.

mod clock;
mod deletion;
mod due;
mod expiry;
pub mod integrity;
mod intent;
pub mod members;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use clock::ClockGate;
pub use due::look_at_clock;
pub use intent::Intent;

use crate::app::App;
use crate::audit::beside;
use crate::audit::record::{Context, EventResource, Record};
use crate::error::{Error, Result};
use crate::store::{NewEvent, RowId};

const INTERVAL: Duration = Duration::from_secs(1);
/// Longest that one step of a job waits for an HSM.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs every job until it is stopped.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => (),
            () = stop.cancelled() => return,
        }
        for (job, result) in [
            ("unrecorded calls", unrecorded(&app).await),
            ("what was done beside the daemon", beside::record(&app).await),
            ("intents", intent::settle(&app).await),
            ("keys that are due", due::run(&app).await),
            ("key material that expires", expiry::run(&app).await),
        ] {
            if let Err(error) = result {
                tracing::warn!(job, %error, detail = error.detail, "a job failed; it is tried again");
            }
        }
    }
}

/// Reports calls that could not be recorded, once the log takes events again.
async fn unrecorded(app: &App) -> Result<()> {
    let count = app.unrecorded.take();
    if count == 0 {
        return Ok(());
    }
    let event = service_event(
        app,
        "UnrecordedCalls",
        &app.account,
        json!({ "calls": count, "answer": "KMSInternalException" }),
        None,
    )?;
    let commit = crate::store::Commit { changes: Vec::new(), events: vec![event] };
    app.store.commit(commit).await.map(|_| ()).map_err(|error| {
        app.unrecorded.put_back(count);
        crate::registry::from_store(error)
    })
}

/// An event of the daemon's own: in the key's Region where it is of a key, else
/// where the daemon has its own.
pub fn service_event(
    app: &App,
    name: &'static str,
    account: &str,
    details: Value,
    key: Option<&str>,
) -> Result<NewEvent> {
    let region = crate::key::region_of(key).unwrap_or(&app.region);
    let mut record = service_record(app, region, name, account, details);
    record.resources.extend(key.map(|arn| EventResource::key(account, arn)));
    record.event().map_err(|error| Error::internal(error.to_string()))
}

/// The same of something else that is in a Region.
pub fn service_event_in(
    app: &App,
    region: &str,
    name: &'static str,
    account: &str,
    details: Value,
) -> Result<NewEvent> {
    let record = service_record(app, region, name, account, details);
    record.event().map_err(|error| Error::internal(error.to_string()))
}

/// An event of a call that the daemon made itself, of one key.
pub fn internal_call(app: &App, name: &'static str, key: &RowId) -> Result<NewEvent> {
    let context = context(app, &key.region, name);
    let record = Record::internal_call(context, &key.account, &crate::key::arn_of_key(key));
    record.and_then(|record| record.event()).map_err(|error| Error::internal(error.to_string()))
}

fn service_record(app: &App, region: &str, name: &'static str, account: &str, details: Value) -> Record {
    Record::service(context(app, region, name), account, details)
}

fn context<'a>(app: &App, region: &'a str, name: &'static str) -> Context<'a> {
    Context {
        source: crate::service::Service::Kms.event_source(),
        name,
        region,
        time_ms: app.clock.now_ms(),
        read_only: false,
    }
}
