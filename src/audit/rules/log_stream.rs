//! CloudWatch Logs: PutLogEvents, as CloudTrail does it: a record per log event.

use serde_json::{Value, json};

use super::aws::{Api, Client, Failure};
use super::target::{Delivery, Outcome};
use crate::config::LogStreamSettings;

const API: Api = Api {
    signing_name: "logs",
    target: "Logs_20140328",
    endpoint_variable: "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
};
/// What each log event counts beside its message.
const EVENT_OVERHEAD_BYTES: usize = 26;
/// Bytes of one PutLogEvents.
const BYTES_MAX: usize = 1_048_576;
/// Log events of one PutLogEvents.
const EVENTS_MAX: usize = 10_000;

/// A log stream.
pub struct LogStream {
    client: Client,
    group: String,
    stream: String,
}

impl LogStream {
    /// The stream that the configuration names; it is made when it is not there,
    /// its group is not.
    pub fn open(settings: &LogStreamSettings, region: String) -> Result<LogStream, String> {
        Ok(LogStream {
            client: Client::new(API, &settings.aws, region)?,
            group: settings.group.clone(),
            stream: settings.name.clone(),
        })
    }

    /// Puts events, as many as a call takes at a time.
    pub async fn send(&self, deliveries: &[Delivery]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(deliveries.len());
        let mut rest = deliveries;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(fitting(rest));
            let outcome = match self.put(batch).await {
                Ok(()) => Outcome::Done,
                // A group that is not there may yet be made.
                Err(failure) if failure.passes || is_missing(&failure) => Outcome::Again(failure.text),
                Err(failure) => Outcome::Refused(failure.text),
            };
            outcomes.extend(vec![outcome; batch.len()]);
            rest = after;
        }
        outcomes
    }

    async fn put(&self, batch: &[Delivery]) -> Result<(), Failure> {
        // In the order of their times, as PutLogEvents wants them.
        let mut sorted: Vec<&Delivery> = batch.iter().collect();
        sorted.sort_by_key(|delivery| delivery.time_ms());
        let event =
            |delivery: &&Delivery| json!({ "timestamp": delivery.time_ms(), "message": message(delivery) });
        let request = json!({
            "logGroupName": self.group,
            "logStreamName": self.stream,
            "logEvents": sorted.iter().map(event).collect::<Vec<_>>(),
        });
        match self.client.call("PutLogEvents", &request).await {
            Err(failure) if is_missing(&failure) => {
                self.make().await?;
                self.client.call("PutLogEvents", &request).await.map(drop)
            }
            answer => answer.map(drop),
        }
    }

    async fn make(&self) -> Result<(), Failure> {
        let request = json!({ "logGroupName": self.group, "logStreamName": self.stream });
        match self.client.call("CreateLogStream", &request).await {
            Err(failure) if failure.name != "ResourceAlreadyExistsException" => Err(failure),
            _ => Ok(()),
        }
    }
}

fn is_missing(failure: &Failure) -> bool {
    failure.name == "ResourceNotFoundException"
}

fn message(delivery: &Delivery) -> String {
    delivery.event().get("detail").map(Value::to_string).unwrap_or_default()
}

/// How many of these go into one call, at least one.
fn fitting(deliveries: &[Delivery]) -> usize {
    let mut bytes = 0;
    let fits = |delivery: &&Delivery| {
        bytes += message(delivery).len() + EVENT_OVERHEAD_BYTES;
        bytes <= BYTES_MAX
    };
    deliveries.iter().take(EVENTS_MAX).take_while(fits).count().max(1)
}
