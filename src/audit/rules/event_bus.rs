//! EventBridge: PutEvents.

use serde_json::{Value, json};

use super::aws::{Api, Client};
use super::target::{Delivery, Outcome};
use crate::config::EventBusSettings;

const API: Api =
    Api { signing_name: "events", target: "AWSEvents", endpoint_variable: "AWS_ENDPOINT_URL_EVENTBRIDGE" };
/// Entries of one PutEvents.
const ENTRIES_MAX: usize = 10;
/// Bytes of one PutEvents, of EventBridge's 256 KiB.
const BYTES_MAX: usize = 250_000;
/// Entries' failures that may pass.
const PASSING: [&str; 2] = ["ThrottlingException", "InternalFailure"];

/// An event bus.
pub struct EventBus {
    client: Client,
    bus: String,
    source_prefix: String,
}

impl EventBus {
    /// The bus that the configuration names.
    pub fn open(settings: &EventBusSettings, region: String) -> Result<EventBus, String> {
        let client = Client::new(API, &settings.aws, region)?;
        // AWS takes no events of sources that begin with aws. from its customers.
        let usual = || if client.is_elsewhere() { "aws" } else { "strongroom" }.to_owned();
        Ok(EventBus {
            source_prefix: settings.source_prefix.clone().unwrap_or_else(usual),
            bus: settings.name.clone(),
            client,
        })
    }

    /// Puts events, as many as a call takes at a time.
    pub async fn send(&self, deliveries: &[Delivery]) -> Vec<Outcome> {
        let entries: Vec<Value> = deliveries.iter().map(|delivery| self.entry(delivery)).collect();
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(fitting(rest));
            outcomes.extend(self.put(batch).await);
            rest = after;
        }
        outcomes
    }

    fn entry(&self, delivery: &Delivery) -> Value {
        let event = delivery.event();
        let source = delivery.text("/source");
        let source = match source.strip_prefix("aws.") {
            Some(service) => format!("{}.{service}", self.source_prefix),
            None => source.to_owned(),
        };
        json!({
            "EventBusName": self.bus,
            "Source": source,
            "DetailType": event.get("detail-type"),
            "Time": delivery.time_ms() as f64 / 1000.0,
            "Resources": event.get("resources"),
            "Detail": event.get("detail").map(Value::to_string),
        })
    }

    async fn put(&self, batch: &[Value]) -> Vec<Outcome> {
        let answer = match self.client.call("PutEvents", &json!({ "Entries": batch })).await {
            Ok(answer) => answer,
            Err(failure) if failure.passes => return vec![Outcome::Again(failure.text); batch.len()],
            Err(failure) => return vec![Outcome::Refused(failure.text); batch.len()],
        };
        let entries = answer.get("Entries").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let outcome = |index: usize| {
            let told = |member: &str| entries.get(index).and_then(|entry| entry.get(member)?.as_str());
            match (told("EventId"), told("ErrorCode")) {
                (_, Some(code)) => {
                    let text = format!("PutEvents: {code} {}", told("ErrorMessage").unwrap_or_default());
                    if PASSING.contains(&code) { Outcome::Again(text) } else { Outcome::Refused(text) }
                }
                (Some(_), None) => Outcome::Done,
                (None, None) => Outcome::Again("PutEvents: the answer says nothing of an entry".to_owned()),
            }
        };
        (0..batch.len()).map(outcome).collect()
    }
}

/// How many of these go into one call, at least one.
fn fitting(entries: &[Value]) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&Value| {
        bytes += entry.to_string().len();
        bytes <= BYTES_MAX
    };
    entries.iter().take(ENTRIES_MAX).take_while(fits).count().max(1)
}
