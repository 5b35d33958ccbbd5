//! An event as EventBridge has it: the record in its `detail`.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::store::StoredEvent;

/// The event of a record.
///
/// # Errors
/// KMSInternalException for what is no record: nobody but us writes them.
pub fn envelope(stored: &StoredEvent) -> Result<Value> {
    let record: Value = serde_json::from_str(&stored.record)
        .map_err(|error| Error::internal(format!("event {}: {error}", stored.position)))?;
    Ok(event_of(record))
}

/// The same of a record that is at hand.
pub fn event_of(record: Value) -> Value {
    let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default();
    let detail_type = match text("eventType") {
        "AwsServiceEvent" => "AWS Service Event via CloudTrail",
        "AwsCloudTrailInsight" => "AWS Insight via CloudTrail",
        _ => "AWS API Call via CloudTrail",
    };
    let list = record.get("resources").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let resources: Vec<&Value> = list.iter().filter_map(|resource| resource.get("ARN")).collect();
    let mut event = json!({
        "version": "0",
        "id": text("eventID"),
        "detail-type": detail_type,
        "source": source(text("eventSource")),
        "account": text("recipientAccountId"),
        "time": text("eventTime"),
        "region": text("awsRegion"),
        "resources": resources,
    });
    if let Some(members) = event.as_object_mut() {
        members.insert("detail".to_owned(), record);
    }
    event
}

/// `aws.kms` for `kms.amazonaws.com`, `strongroom.hsm` for `hsm.strongroom`.
fn source(event_source: &str) -> String {
    match event_source.split_once('.') {
        Some((service, "amazonaws.com")) => format!("aws.{service}"),
        Some((service, owner)) => format!("{owner}.{service}"),
        None => event_source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_eventbridges() {
        let record = json!({
            "eventID": "i", "eventType": "AwsApiCall", "eventSource": "kms.amazonaws.com", "awsRegion": "r",
            "recipientAccountId": "a", "eventTime": "t", "resources": [{"ARN": "arn:k"}],
        });
        let expected = json!({
            "version": "0", "id": "i", "detail-type": "AWS API Call via CloudTrail", "source": "aws.kms",
            "account": "a", "time": "t", "region": "r", "resources": ["arn:k"], "detail": record.clone(),
        });
        assert_eq!(event_of(record), expected);
        let service = event_of(json!({"eventType": "AwsServiceEvent", "eventSource": "hsm.strongroom"}));
        assert_eq!(service.pointer("/detail-type"), Some(&json!("AWS Service Event via CloudTrail")));
        assert_eq!(service.pointer("/source"), Some(&json!("strongroom.hsm")));
    }
}
