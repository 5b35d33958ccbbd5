//! The record of an unusual time that begins or ends, as CloudTrail has it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::detector::Finding;
use super::series::{Attributes, Turn, WINDOW};
use crate::app::App;
use crate::audit::record::EVENT_VERSION;
use crate::audit::trail::name::iso;
use crate::error::Result;
use crate::store::NewEvent;

/// Values that a record names of each attribute.
const VALUES_MAX: usize = 5;
const ATTRIBUTES: [&str; 3] = ["userIdentityArn", "userAgent", "errorCode"];

/// The event of a finding. The same finding has the same ids whenever it is
/// made: after a crash it may be found again.
///
/// # Errors
/// KMSInternalException for a time that no calendar has.
pub fn event(app: &App, finding: &Finding) -> Result<NewEvent> {
    let Finding { subject, turn, anomaly, minute, baseline, usual } = finding;
    let state = if *turn == Turn::Starts { "Start" } else { "End" };
    let shared = format!("{subject:?} {}", anomaly.from);
    let (shared_id, id) = (id_of(&shared), id_of(&format!("{state} {shared}")));
    let duration = match turn {
        // Those five minutes in which it was found.
        Turn::Starts => (minute + 1).saturating_sub(anomaly.from).max(1),
        Turn::Ends => {
            (minute + 1).saturating_sub(anomaly.from + if anomaly.is_gap { 0 } else { WINDOW }).max(1)
        }
    };
    let time_ms = match turn {
        Turn::Starts => app.insights.time_ms(anomaly.from),
        Turn::Ends => app.insights.time_ms(anomaly.from.saturating_add(duration)),
    };
    let average = |count: u64, minutes: u32| count as f64 / f64::from(minutes.max(1));
    let insight = average(if anomaly.is_gap { 0 } else { anomaly.count }, duration);
    let mut details = json!({
        "state": state,
        "eventSource": subject.source,
        "eventName": subject.name,
        "insightType": if subject.error.is_some() { "ApiErrorRateInsight" } else { "ApiCallRateInsight" },
    });
    let context = json!({
        "statistics": {
            "baseline": { "average": average(baseline.0, baseline.1) },
            "insight": { "average": insight },
            "insightDuration": duration,
            "baselineDuration": baseline.1,
        },
        "attributions": attributions(&anomaly.attributes, anomaly.count, insight, usual, average(baseline.0, baseline.1)),
    });
    if let Some(members) = details.as_object_mut() {
        members.extend(subject.error.iter().map(|code| ("errorCode".to_owned(), code.as_str().into())));
        members.insert("insightContext".to_owned(), context);
    }
    let record = json!({
        "eventVersion": EVENT_VERSION,
        "eventTime": iso(time_ms)?,
        "awsRegion": subject.region,
        "eventID": id,
        "eventType": "AwsCloudTrailInsight",
        "recipientAccountId": subject.account,
        "sharedEventID": shared_id,
        "insightDetails": details,
        "eventCategory": "Insight",
    });
    Ok(NewEvent { id, time_ms, record: record.to_string() })
}

/// The top values of each attribute, with their shares of the averages.
fn attributions(
    insight: &Attributes,
    count: u64,
    average: f64,
    usual: &Attributes,
    baseline: f64,
) -> Vec<Value> {
    let total = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>().max(1);
    let top = |attributes: &Attributes, name: &str, whole: Option<u64>, average: f64| -> Vec<Value> {
        let Some(counts) = attributes.counts.get(name) else { return Vec::new() };
        let mut sorted: Vec<(&String, &u64)> = counts.iter().collect();
        sorted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let whole = whole.unwrap_or(0).max(total(counts)) as f64;
        let entry = |(value, count): (&String, &u64)| json!({ "value": value, "average": average * *count as f64 / whole });
        sorted.into_iter().take(VALUES_MAX).map(entry).collect()
    };
    let attribution = |name: &str| {
        json!({
            "attribute": name,
            "insight": top(insight, name, Some(count), average),
            "baseline": top(usual, name, None, baseline),
        })
    };
    ATTRIBUTES.into_iter().map(attribution).collect()
}

/// A UUID (version 8, RFC 9562) that is the same for the same text.
fn id_of(text: &str) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(Sha256::digest(text.as_bytes()).first_chunk::<16>().unwrap_or(&[0; 16]));
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}
