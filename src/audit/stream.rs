//! The live stream: every event of an account in the log's order, from a
//! position on, so that a client that comes back misses nothing and sees
//! nothing twice.
//!
//! Each subscriber goes no faster than its client takes what it is sent: a slow
//! client slows nobody else, and reads what it missed from the store.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::tail::{Logged, Reader, Tail};
use crate::audit::pattern::Pattern;
use crate::error::{Error, Result};
use crate::key::arn::Arn;
use crate::proto::cloudtrail::{Event, Resource, StreamEventsResponse};
use crate::store::{Position, StoredEvent};

/// Events that wait for a slow client.
const WAITING_EVENTS: usize = 64;

/// What a subscriber wants to see.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The account whose events these are.
    pub account: String,
    /// eventName is one of them; all where there is none.
    pub names: HashSet<String>,
    /// readOnly is this.
    pub read_only: Option<bool>,
    /// There is an errorCode, or there is none.
    pub failed: Option<bool>,
    /// errorCode is one of them.
    pub error_codes: HashSet<String>,
    /// A key of the event has one of these ARNs or ids.
    pub keys: HashSet<String>,
    /// The caller's ARN or user name is one of them.
    pub principals: HashSet<String>,
    /// The event is one that this describes.
    pub pattern: Option<Pattern>,
}

/// The parts of a record that readers of the log look at.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    #[serde(rename = "eventID")]
    event_id: String,
    #[serde(default)]
    event_name: String,
    #[serde(default)]
    event_source: String,
    read_only: Option<bool>,
    error_code: Option<String>,
    recipient_account_id: String,
    #[serde(default)]
    user_identity: SeenIdentity,
    #[serde(default)]
    resources: Vec<SeenResource>,
    insight_details: Option<SeenInsight>,
}

/// An Insights record says of what it is in here only.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenInsight {
    event_name: String,
    event_source: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenIdentity {
    arn: Option<String>,
    user_name: Option<String>,
    access_key_id: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct SeenResource {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "ARN")]
    arn: String,
}

impl Seen {
    /// Reads a record.
    ///
    /// # Errors
    /// KMSInternalException for what is no record: nobody but us writes them.
    pub fn read(record: &str) -> Result<Seen> {
        let mut seen: Seen = serde_json::from_str(record)
            .map_err(|error| Error::internal(format!("an event cannot be read: {error}")))?;
        if let Some(insight) = seen.insight_details.take() {
            (seen.event_name, seen.event_source) = (insight.event_name, insight.event_source);
        }
        Ok(seen)
    }

    /// The event as LookupEvents and StreamEvents answer it.
    pub fn event(&self, stored: &StoredEvent) -> Event {
        let resource = |resource: &SeenResource| Resource {
            resource_type: Some(resource.kind.clone()),
            resource_name: Some(resource.arn.clone()),
        };
        Event {
            event_id: Some(self.event_id.clone()),
            event_name: Some(self.event_name.clone()),
            read_only: self.read_only.map(|read_only| read_only.to_string()),
            access_key_id: self.user_identity.access_key_id.clone(),
            event_time: Some(prost_types::Timestamp { seconds: stored.time_ms.div_euclid(1000), nanos: 0 }),
            event_source: Some(self.event_source.clone()),
            username: self.user_identity.user_name.clone(),
            resources: self.resources.iter().map(resource).collect(),
            cloud_trail_event: Some(stored.record.to_string()),
        }
    }
}

impl Filter {
    fn lets_through(&self, logged: &Logged) -> bool {
        self.matches(&logged.seen)
            && self.pattern.as_ref().is_none_or(|pattern| pattern.matches(logged.envelope()))
    }

    fn matches(&self, seen: &Seen) -> bool {
        let any = |set: &HashSet<String>, value: Option<&String>| {
            set.is_empty() || value.is_some_and(|value| set.contains(value))
        };
        let identity = &seen.user_identity;
        seen.recipient_account_id == self.account
            && any(&self.names, Some(&seen.event_name))
            && self.read_only.is_none_or(|read_only| seen.read_only == Some(read_only))
            && self.failed.is_none_or(|failed| seen.error_code.is_some() == failed)
            && any(&self.error_codes, seen.error_code.as_ref())
            && (any(&self.principals, identity.arn.as_ref())
                || any(&self.principals, identity.user_name.as_ref()))
            && (self.keys.is_empty() || seen.resources.iter().any(|resource| self.names_key(&resource.arn)))
    }

    fn names_key(&self, arn: &str) -> bool {
        self.keys.contains(arn)
            || Arn::parse(arn)
                .and_then(|arn| arn.resource.strip_prefix("key/").map(|id| self.keys.contains(id)))
                .unwrap_or(false)
    }
}

/// A position as clients keep it.
pub fn token(position: Position) -> String {
    format!("{}-{}", position.writer, position.sequence)
}

/// Reads a position that a client kept.
pub fn position(token: &str) -> Option<Position> {
    let (writer, sequence) = token.split_once('-')?;
    Some(Position { writer: writer.parse().ok()?, sequence: sequence.parse().ok()? })
}

/// A running subscription.
pub struct Subscription {
    /// What is to be sent, in order; ends when the daemon stops.
    pub events: mpsc::Receiver<Result<StreamEventsResponse>>,
}

/// One subscription at work.
struct Subscriber {
    log: Reader,
    filter: Filter,
    sender: mpsc::Sender<Result<StreamEventsResponse>>,
}

impl Subscriber {
    async fn run(&mut self) -> Result<()> {
        loop {
            for logged in self.log.next().await? {
                if self.filter.lets_through(&logged) {
                    let response = StreamEventsResponse {
                        position: Some(token(logged.stored.position)),
                        event: Some(logged.seen.event(&logged.stored)),
                    };
                    // Without its receiver the subscription is about to end.
                    let _ = self.sender.send(Ok(response)).await;
                }
            }
        }
    }
}

/// Begins to send every event after `from` that the filter lets through.
pub fn subscribe(tail: &Arc<Tail>, from: Position, filter: Filter, stop: CancellationToken) -> Subscription {
    let (sender, events) = mpsc::channel(WAITING_EVENTS);
    let mut subscriber = Subscriber { log: tail.read(from), filter, sender: sender.clone() };
    tokio::spawn(async move {
        let end = tokio::select! {
            result = subscriber.run() => result,
            () = stop.cancelled() => Err(Error::new(
                crate::error::Exception::KeyUnavailable,
                "The service is stopping; resume from the last position.",
            )),
            () = sender.closed() => Ok(()),
        };
        if let Err(error) = end {
            // The client may be gone: then there is nobody to tell.
            let _ = sender.send(Err(error)).await;
        }
    });
    Subscription { events }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"eventID":"e","eventName":"Decrypt","eventSource":"kms.amazonaws.com","readOnly":true,
        "errorCode":"AccessDenied","recipientAccountId":"111122223333",
        "userIdentity":{"arn":"arn:aws:iam::111122223333:user/alice","userName":"alice"},
        "resources":[{"type":"AWS::KMS::Key","accountId":"111122223333","ARN":"arn:aws:kms:us-east-1:111122223333:key/k"}]}"#;

    fn filter() -> Filter {
        Filter { account: "111122223333".into(), ..Default::default() }
    }

    fn set(value: &str) -> HashSet<String> {
        [value.to_owned()].into()
    }

    #[test]
    fn each_part_of_a_filter_can_refuse() {
        let seen = Seen::read(RECORD).unwrap();
        assert!(filter().matches(&seen));
        for (matching, refusing) in [
            (Filter { names: set("Decrypt"), ..filter() }, Filter { names: set("Encrypt"), ..filter() }),
            (Filter { read_only: Some(true), ..filter() }, Filter { read_only: Some(false), ..filter() }),
            (Filter { failed: Some(true), ..filter() }, Filter { failed: Some(false), ..filter() }),
            (
                Filter { error_codes: set("AccessDenied"), ..filter() },
                Filter { error_codes: set("NotFoundException"), ..filter() },
            ),
            (Filter { keys: set("k"), ..filter() }, Filter { keys: set("other"), ..filter() }),
            (Filter { principals: set("alice"), ..filter() }, Filter { principals: set("bob"), ..filter() }),
            (filter(), Filter { account: "444455556666".into(), ..filter() }),
        ] {
            assert!(matching.matches(&seen), "{matching:?}");
            assert!(!refusing.matches(&seen), "{refusing:?}");
        }
    }

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let at = Position { writer: 2, sequence: 77 };
        assert_eq!(position(&token(at)), Some(at));
        for wrong in ["", "1", "a-1", "1-", "1-2-3", "-1-2"] {
            assert_eq!(position(wrong), None, "{wrong}");
        }
    }
}
