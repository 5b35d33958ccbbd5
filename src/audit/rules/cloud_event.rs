//! An event as a CloudEvent (CloudEvents 1.0, JSON format).

use serde_json::{Value, json};

use super::target::Delivery;

/// The media type of one.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// The record in a CloudEvent: `com.amazonaws.kms.ScheduleKeyDeletion` of
/// `arn:aws:kms:REGION:ACCOUNT`, about the first of its resources.
pub fn cloud_event(delivery: &Delivery) -> Value {
    let event_source = delivery.text("/detail/eventSource");
    let reversed: Vec<&str> = event_source.split('.').rev().collect();
    let service = event_source.split('.').next().unwrap_or_default();
    let mut event = json!({
        "specversion": "1.0",
        "id": delivery.text("/id"),
        "source": format!("arn:aws:{service}:{}:{}", delivery.text("/region"), delivery.text("/account")),
        "type": format!("{}.{}", reversed.join("."), delivery.text("/detail/eventName")),
        "time": delivery.text("/time"),
        "datacontenttype": "application/json",
        // Extensions: letters only.
        "rules": delivery.rules.join(","),
        "detailtype": delivery.text("/detail-type"),
        "data": delivery.event().get("detail"),
    });
    let subject = delivery.text("/resources/0");
    if let (Some(members), false) = (event.as_object_mut(), subject.is_empty()) {
        members.insert("subject".to_owned(), subject.into());
    }
    event
}
