//! Events of the customer's own services, in the same log.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::prelude::*;
use crate::audit::record::EVENT_VERSION;
use crate::audit::trail::name::iso;
use crate::proto::cloudtrail;
use crate::store::NewEvent;

/// The category that tells them from what was done here.
const CATEGORY: &str = "ActivityAuditLog";
/// The largest event.
const EVENT_BYTES_MAX: usize = 256 * 1024;
/// How far in the future an event may be: clocks differ.
const AHEAD_MS_MAX: i64 = 15 * 60 * 1000;
/// Texts that are in the event as they are given.
const TEXTS: [&str; 5] = ["sourceIPAddress", "userAgent", "errorCode", "errorMessage", "requestID"];
/// What is in it as it is given, whatever it is.
const TAKEN: [&str; 3] = ["requestParameters", "responseElements", "additionalEventData"];

/// A channel by its ARN. Every account has every name in its own Regions.
#[derive(Debug)]
pub struct Channel {
    arn: String,
    region: String,
    account: String,
}

impl Resource for Channel {
    type Name = String;

    async fn resolve(_: &mut Call, arn: String) -> Result<Self> {
        let invalid = || {
            Error::new(
                Exception::InvalidChannelArn,
                "A channel is arn:aws:cloudtrail:REGION:ACCOUNT:channel/NAME.",
            )
        };
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", "aws", "cloudtrail", region, account, resource] = parts[..] else {
            return Err(invalid());
        };
        let name = resource.strip_prefix("channel/").unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(invalid());
        }
        let (region, account) = (region.to_owned(), account.to_owned());
        Ok(Channel { arn, region, account })
    }

    fn arn(&self) -> String {
        self.arn.clone()
    }

    fn account(&self) -> Option<&str> {
        Some(&self.account)
    }
}

/// Puts events into the log.
pub struct PutAuditEvents;

impl Operation for PutAuditEvents {
    const SERVICE: Service = Service::CloudTrailData;
    const NAME: &'static str = "PutAuditEvents";
    const ACTION: &'static str = "cloudtrail-data:PutAuditEvents";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::PutAuditEventsRequest;
    type Response = cloudtrail::PutAuditEventsResponse;
    type On = Channel;

    fn on(request: &Self::Request) -> Result<String> {
        Ok(given(&request.channel_arn)?.clone())
    }

    async fn run(call: &mut Call, request: &Self::Request, on: Allowed<Channel>) -> Result<Self::Response> {
        if on.account != call.account() {
            let text = "The channel is not one of the caller's account.";
            return Err(Error::new(Exception::ChannelInsufficientPermission, text));
        }
        if on.region != call.region() {
            return Err(Error::new(Exception::ChannelNotFound, format!("There is no channel {}.", on.arn)));
        }
        let mut ids = BTreeSet::new();
        if let Some(twice) = request.audit_events.iter().find(|event| !ids.insert(&event.id)) {
            let text = format!("The id {} is there twice.", twice.id.as_deref().unwrap_or_default());
            return Err(Error::new(Exception::DuplicatedAuditEventId, text));
        }
        let mut response = cloudtrail::PutAuditEventsResponse::default();
        for entry in &request.audit_events {
            let id = entry.id.clone();
            match event(call, &on, entry) {
                Ok(event) => {
                    let event_id = Some(event.id.clone());
                    response.successful.push(cloudtrail::AuditEventResultEntry { id, event_id });
                    call.append(event);
                }
                Err(Fault(code, text)) => response.failed.push(cloudtrail::ResultErrorEntry {
                    id,
                    error_code: Some(code.to_owned()),
                    error_message: Some(text),
                }),
            }
        }
        Ok(response)
    }
}

/// CloudTrail's code for what is wrong with an entry, and a sentence.
struct Fault(&'static str, String);

fn invalid(text: impl Into<String>) -> Fault {
    Fault("InvalidData", text.into())
}

fn event(call: &Call, channel: &Channel, entry: &cloudtrail::AuditEvent) -> Result<NewEvent, Fault> {
    let data = entry.event_data.as_deref().unwrap_or_default();
    if data.len() > EVENT_BYTES_MAX {
        return Err(Fault("FieldTooLong", format!("eventData has more than {EVENT_BYTES_MAX} bytes.")));
    }
    let checksum = entry.event_data_checksum.as_deref();
    if checksum.is_some_and(|checksum| checksum != STANDARD.encode(Sha256::digest(data))) {
        return Err(Fault("InvalidChecksum", "eventDataChecksum is not the SHA-256 of eventData.".into()));
    }
    let given: Map<String, Value> =
        serde_json::from_str(data).map_err(|_| invalid("eventData is not a JSON object."))?;
    let text = |name: &str| match given.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.as_str()),
        Some(_) => Err(invalid(format!("{name} is not a text."))),
        None => Err(Fault("FieldNotFound", format!("{name} is missing."))),
    };
    let source = text("eventSource")?;
    if source.ends_with(".amazonaws.com") || source.ends_with(".strongroom") {
        let why = format!("{source} is a service whose events are made here.");
        return Err(Fault("InvalidEventSource", why));
    }
    let time: jiff::Timestamp = text("eventTime")?
        .parse()
        .map_err(|_| invalid("eventTime is not a time such as 2026-01-31T12:00:00Z."))?;
    let time_ms = time.as_millisecond();
    if time_ms > call.now_ms + AHEAD_MS_MAX {
        return Err(invalid("eventTime is in the future."));
    }
    if given.get("recipientAccountId").is_some_and(|account| account != call.account()) {
        return Err(Fault("InvalidRecipient", "recipientAccountId is not the caller's account.".into()));
    }
    let id = uuid::Uuid::new_v4().to_string();
    let mut record = json!({
        "eventVersion": EVENT_VERSION,
        "userIdentity": identity(call, &given)?,
        "eventTime": iso(time_ms).map_err(|_| invalid("eventTime is no time."))?,
        "eventSource": source,
        "eventName": text("eventName")?,
        "awsRegion": call.region(),
        "eventID": id,
        "eventType": "ActivityLog",
        "managementEvent": false,
        "recipientAccountId": call.account(),
        "eventCategory": CATEGORY,
        "metadata": {
            "UID": text("UID")?,
            "channelARN": channel.arn,
            "ingestionTime": iso(call.now_ms).map_err(|_| invalid("it is no time now."))?,
            "ingestedBy": call.caller.arn(),
        },
    });
    if let Some(wrong) = TEXTS
        .iter()
        .find(|name| given.get(**name).is_some_and(|value| !value.is_string() && !value.is_null()))
    {
        return Err(invalid(format!("{wrong} is not a text.")));
    }
    if let Some(members) = record.as_object_mut() {
        // Null is as good as nothing: a text that is null is none.
        let value = |name: &str| given.get(name).filter(|value| !value.is_null()).cloned();
        let taken = TEXTS.iter().chain(&TAKEN).filter_map(|name| Some(((*name).to_owned(), value(name)?)));
        members.extend(taken);
    }
    let record = record.to_string();
    if record.len() > EVENT_BYTES_MAX {
        return Err(Fault("FieldTooLong", format!("The event has more than {EVENT_BYTES_MAX} bytes.")));
    }
    Ok(NewEvent { id, time_ms, record })
}

fn identity(call: &Call, given: &Map<String, Value>) -> Result<Value, Fault> {
    let missing = |name: &str| Fault("FieldNotFound", format!("userIdentity.{name} is missing."));
    let identity = given.get("userIdentity").and_then(Value::as_object);
    let identity = identity.ok_or_else(|| Fault("FieldNotFound", "userIdentity is missing.".into()))?;
    let text = |name: &str| identity.get(name).and_then(Value::as_str).ok_or_else(|| missing(name));
    let mut record = json!({
        "type": text("type")?, "principalId": text("principalId")?, "accountId": call.account(),
    });
    if let (Some(details), Some(members)) = (identity.get("details"), record.as_object_mut()) {
        members.insert("details".to_owned(), details.clone());
    }
    Ok(record)
}
