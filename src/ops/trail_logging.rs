//! Whether a trail logs, and how it goes.

use super::prelude::*;
use super::trail::{TrailName, by_name};
use crate::audit::follow::Cursor;
use crate::audit::trail::{Delivery, Pause};
use crate::proto::cloudtrail;

/// Pauses that a trail remembers until what was logged before them is
/// delivered; the oldest go first.
const PAUSES_MAX: usize = 100;

/// Begins to deliver events.
pub struct StartLogging;

impl Operation for StartLogging {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "StartLogging";
    const ACTION: &'static str = "cloudtrail:StartLogging";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::StartLoggingRequest;
    type Response = cloudtrail::StartLoggingResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        by_name(&request.name)
    }

    async fn run(call: &mut Call, _: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.at_home(call).await?;
        if held.value.logging.on {
            return Ok(cloudtrail::StartLoggingResponse {});
        }
        let mut trail = held.value.clone();
        trail.logging.on = true;
        trail.logging.started_ms = Some(call.now_ms);
        match on.delivery(call).await? {
            Some(_) => {
                if let Some(pause) = trail.logging.pauses.last_mut() {
                    pause.until = Some(*call.app.store.end().borrow());
                }
            }
            None => {
                // It begins behind what is in the log already.
                let cursor = Cursor::at_end(&*call.app.store).await?;
                let delivery = Delivery { cursor, taken_ms: call.now_ms, ..Delivery::default() };
                call.change(Draft::insert(on.delivery_id(), &delivery)?);
            }
        }
        call.change(Draft::replace(&held, &trail)?);
        call.afterwards(|app| app.trails.changed());
        Ok(cloudtrail::StartLoggingResponse {})
    }
}

/// Ends logging, with its own event as the last that is delivered.
pub struct StopLogging;

impl Operation for StopLogging {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "StopLogging";
    const ACTION: &'static str = "cloudtrail:StopLogging";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::StopLoggingRequest;
    type Response = cloudtrail::StopLoggingResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        by_name(&request.name)
    }

    async fn run(call: &mut Call, _: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.at_home(call).await?;
        if !held.value.logging.on {
            return Ok(cloudtrail::StopLoggingResponse {});
        }
        let mut trail = held.value.clone();
        trail.logging.on = false;
        trail.logging.stopped_ms = Some(call.now_ms);
        let after = *call.app.store.end().borrow();
        trail.logging.pauses.push(Pause { after, stop: call.event_id().to_owned(), until: None });
        let surplus = trail.logging.pauses.len().saturating_sub(PAUSES_MAX);
        trail.logging.pauses.drain(..surplus);
        call.change(Draft::replace(&held, &trail)?);
        call.afterwards(|app| app.trails.changed());
        Ok(cloudtrail::StopLoggingResponse {})
    }
}

/// Tells how a trail is.
pub struct GetTrailStatus;

impl Operation for GetTrailStatus {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "GetTrailStatus";
    const ACTION: &'static str = "cloudtrail:GetTrailStatus";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::GetTrailStatusRequest;
    type Response = cloudtrail::GetTrailStatusResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        by_name(&request.name)
    }

    async fn run(call: &mut Call, _: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.existing(call).await?;
        let delivery = on.delivery(call).await?.map(|held| held.value).unwrap_or_default();
        let status = call.app.trails.status(&on.0);
        let logging = &held.value.logging;
        // The members that are text are empty where there was nothing yet.
        let text = |ms: Option<i64>| ms.map_or(Ok(String::new()), crate::audit::trail::name::iso).map(Some);
        let waiting = |error: String| format!("{error} ({} events wait)", status.backlog_events);
        let attempted_ms = status.attempted_ms.or(delivery.delivered_ms);
        Ok(cloudtrail::GetTrailStatusResponse {
            is_logging: Some(logging.on),
            latest_delivery_time: delivery.delivered_ms.map(timestamp),
            latest_delivery_attempt_succeeded: text(delivery.delivered_ms)?,
            latest_delivery_error: status.delivery_error.clone().map(waiting),
            latest_delivery_attempt_time: text(attempted_ms)?,
            latest_digest_delivery_time: delivery.digested_ms.map(timestamp),
            latest_digest_delivery_error: status.digest_error.clone(),
            start_logging_time: logging.started_ms.map(timestamp),
            stop_logging_time: logging.stopped_ms.map(timestamp),
            time_logging_started: text(logging.started_ms)?,
            time_logging_stopped: text(logging.stopped_ms)?,
            latest_notification_attempt_time: Some(String::new()),
            latest_notification_attempt_succeeded: Some(String::new()),
            ..Default::default()
        })
    }
}
