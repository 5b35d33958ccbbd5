//! Checks the log and the rows once after a start, in the background: an older
//! version of a row that was put back has a MAC that fits, and only the log
//! tells.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::service_event;
use crate::app::App;
use crate::audit::verify::verify;
use crate::error::Result;
use crate::registry::from_store;
use crate::store::Commit;

/// Longest that the check may take.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// The pause after a check that an HSM or the store did not allow.
const RETRY: Duration = Duration::from_secs(5);
/// Findings that the event names; `strongroom events verify` names all.
const FINDINGS_MAX: usize = 20;

/// Checks until a check was completed, or it is stopped.
pub async fn check(app: &App, stop: CancellationToken) {
    loop {
        let checked = tokio::select! {
            checked = check_once(app) => checked,
            () = stop.cancelled() => return,
        };
        match checked {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%error, detail = error.detail, "the log could not be checked; it is tried again");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => (),
            () = stop.cancelled() => return,
        }
    }
}

async fn check_once(app: &App) -> Result<()> {
    let began = Instant::now();
    let report = verify(app, None, began + TIMEOUT).await?;
    let findings = report.findings;
    if findings.is_empty() {
        let (events, rows) = (report.events.unwrap_or_default(), report.rows.unwrap_or_default());
        let seconds = began.elapsed().as_secs();
        tracing::info!(events, rows, seconds, "the log and its rows were checked, and nothing was found");
        return Ok(());
    }
    tracing::error!(
        findings = findings.len(),
        "the log or its rows were changed: see `strongroom events verify`"
    );
    let named: Vec<&String> = findings.iter().take(FINDINGS_MAX).collect();
    let details = json!({ "findings": findings.len(), "named": named });
    let event = service_event(app, "IntegrityCheckFailed", &app.account, details, None)?;
    let commit = Commit { changes: Vec::new(), events: vec![event] };
    app.store.commit(commit).await.map(|_| ()).map_err(from_store)
}
