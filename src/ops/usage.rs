//! GetKeyLastUsage: read from the history of events, so that a use costs
//! nothing more than its event, and is told at once and after any crash.

use serde::Deserialize;

use super::prelude::*;
use crate::audit::history::{Attribute, Lookup};
use crate::key::DAY_MS;
use crate::store::StoredEvent;

/// How long the history is asked for, as LookupEvents.
const TRACKED_DAYS: i64 = 90;

/// Tells a key's last use.
pub struct GetKeyLastUsage;

impl Operation for GetKeyLastUsage {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GetKeyLastUsage";
    const ACTION: &'static str = "kms:GetKeyLastUsage";
    const READ_ONLY: bool = true;
    type Request = kms::GetKeyLastUsageRequest;
    type Response = kms::GetKeyLastUsageResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let created_ms = key.held.value.created_ms;
        let tracked_ms = call.app.history_settings.retention_ms().min(TRACKED_DAYS * DAY_MS);
        let start_ms = created_ms.max(call.now_ms - tracked_ms);
        let lookup = Lookup {
            account: key.held.id.account.clone(),
            region: key.held.id.region.clone(),
            attribute: Some((Attribute::KeyUse, key.arn.clone())),
            start_ms,
            end_ms: i64::MAX,
            before: None,
            limit: 1,
        };
        let page =
            call.app.history.lookup(&lookup).await.map_err(|error| Error::internal(error.to_string()))?;
        Ok(kms::GetKeyLastUsageResponse {
            key_id: Some(key.held.id.id.clone()),
            key_last_usage: Some(page.events.first().map(usage).transpose()?.unwrap_or_default()),
            tracking_start_date: Some(timestamp(start_ms)),
            key_creation_date: Some(timestamp(created_ms)),
        })
    }
}

fn usage(event: &StoredEvent) -> Result<kms::KeyLastUsageData> {
    #[derive(Deserialize)]
    struct Record {
        #[serde(rename = "eventName")]
        event_name: String,
        #[serde(rename = "requestID")]
        request_id: Option<String>,
    }
    let record: Record =
        serde_json::from_str(&event.record).map_err(|error| Error::internal(error.to_string()))?;
    let operation = kms::KeyLastUsageTrackingOperation::from_text(&record.event_name);
    Ok(kms::KeyLastUsageData {
        operation: operation.map(|operation| operation as i32),
        timestamp: Some(timestamp(event.time_ms)),
        cloud_trail_event_id: Some(event.id.clone()),
        kms_request_id: record.request_id,
    })
}
