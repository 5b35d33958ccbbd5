//! The event log's operations: LookupEvents, StreamEvents, VerifyEvents. Each
//! shows the caller's own account only.

use std::time::Duration;

use super::prelude::*;
use crate::audit::history::{Attribute, Lookup, PageCursor, insights_of};
use crate::audit::pattern::Pattern;
use crate::audit::stream::{self, Filter, Seen, Subscription};
use crate::proto::cloudtrail;
use crate::registry::from_store;
use crate::store::Position;
use crate::wire::{Aside, At, Form, Violations};

/// The most events of one answer, and those of one that does not say how many.
const LOOKUP_EVENTS: i32 = 50;
/// Longest that checking a log may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(3600);

/// Finds events.
pub struct LookupEvents;

impl Operation for LookupEvents {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "LookupEvents";
    const ACTION: &'static str = "cloudtrail:LookupEvents";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::LookupEventsRequest;
    type Response = cloudtrail::LookupEventsResponse;
    type On = Account;

    fn on(request: &Self::Request) -> Result<()> {
        if request.lookup_attributes.len() > 1 {
            return Err(Error::new(
                Exception::InvalidLookupAttributes,
                "You can specify only one lookup attribute.",
            ));
        }
        if let Some(number) = request.max_results
            && !(1..=LOOKUP_EVENTS).contains(&number)
        {
            return Err(Error::new(
                Exception::InvalidMaxResults,
                format!(
                    "A max results value of {number} is invalid. Specify max results between 1 and {LOOKUP_EVENTS}."
                ),
            ));
        }
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let (start_ms, end_ms) = range(request)?;
        let kept_ms = call.now_ms.saturating_sub(call.app.history_settings.retention_ms());
        let start_ms = start_ms.max(kept_ms);
        let attribute = request.lookup_attributes.first().map(attribute).transpose()?;
        let account = match request.event_category {
            Some(_) => insights_of(call.account()),
            None => call.account().to_owned(),
        };
        let invalid = || Error::new(Exception::InvalidNextToken, "The NextToken is not valid.");
        let lookup = Lookup {
            account,
            region: call.region().to_owned(),
            attribute,
            start_ms,
            end_ms,
            before: request
                .next_token
                .as_deref()
                .map(|token| cursor(token).ok_or_else(invalid))
                .transpose()?,
            limit: u32::try_from(request.max_results.unwrap_or(LOOKUP_EVENTS)).unwrap_or(1),
        };
        let page =
            call.app.history.lookup(&lookup).await.map_err(|error| Error::internal(error.to_string()))?;
        let events: Result<Vec<_>> =
            page.events.iter().map(|stored| Ok(Seen::read(&stored.record)?.event(stored))).collect();
        Ok(cloudtrail::LookupEventsResponse { events: events?, next_token: page.next.map(token) })
    }
}

/// A page's end as clients give it back.
fn token(cursor: PageCursor) -> String {
    format!("{}.{}", cursor.time_ms, stream::token(cursor.position))
}

fn cursor(token: &str) -> Option<PageCursor> {
    let (time, position) = token.split_once('.')?;
    Some(PageCursor { time_ms: time.parse().ok()?, position: stream::position(position)? })
}

fn range(request: &cloudtrail::LookupEventsRequest) -> Result<(i64, i64)> {
    let ms = |time: &prost_types::Timestamp| {
        time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos) / 1_000_000)
    };
    let start_ms = request.start_time.as_ref().map_or(i64::MIN, ms);
    // A time of whole seconds includes its second, as events are told by seconds.
    let end_ms = request.end_time.as_ref().map_or(i64::MAX, |time| match time.nanos {
        0 => ms(time).saturating_add(999),
        _ => ms(time),
    });
    if start_ms > end_ms {
        return Err(Error::new(Exception::InvalidTimeRange, "The start time is after the end time."));
    }
    Ok((start_ms, end_ms))
}

fn attribute(attribute: &cloudtrail::LookupAttribute) -> Result<(Attribute, String)> {
    use cloudtrail::LookupAttributeKey as Key;
    let value = given(&attribute.attribute_value)?.clone();
    let key = match chosen::<Key>(attribute.attribute_key)? {
        Key::EventId => Attribute::EventId,
        Key::EventName => Attribute::EventName,
        Key::ReadOnly => Attribute::ReadOnly,
        Key::Username => Attribute::Username,
        Key::ResourceType => Attribute::ResourceType,
        Key::ResourceName => Attribute::ResourceName,
        Key::EventSource => Attribute::EventSource,
        Key::AccessKeyId => Attribute::AccessKeyId,
        Key::Unspecified => return Err(Error::bare(Exception::InvalidLookupAttributes)),
    };
    Ok((key, value))
}

/// Subscribes to the live tail.
pub struct StreamEvents;

impl Operation for StreamEvents {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "StreamEvents";
    const ACTION: &'static str = "cloudtrail:StreamEvents";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::StreamEventsRequest;
    type Response = Subscription;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let set = |list: &[String]| list.iter().cloned().collect();
        let filter = Filter {
            account: call.account().to_owned(),
            names: set(&request.event_names),
            read_only: request.read_only,
            failed: request.failed,
            error_codes: set(&request.error_codes),
            keys: set(&request.keys),
            principals: set(&request.principals),
            pattern: request.event_pattern.as_deref().map(pattern).transpose()?,
        };
        let from = from(call, request).await?;
        Ok(stream::subscribe(&call.app.tail, from, filter, call.app.stopping.clone()))
    }
}

fn pattern(text: &str) -> Result<Pattern> {
    text.parse().map_err(|error| {
        Error::new(Exception::InvalidEventPattern, format!("Event pattern is not valid. Reason: {error}"))
    })
}

async fn from(call: &Call, request: &cloudtrail::StreamEventsRequest) -> Result<Position> {
    let end = *call.app.store.end().borrow();
    if let Some(token) = &request.position {
        let invalid = || Error::new(Exception::InvalidNextToken, "The log has no such position.");
        let position = stream::position(token).ok_or_else(invalid)?;
        let zero = position.sequence == 0;
        if position > end || (!zero && call.app.store.hash_at(position).await.map_err(from_store)?.is_none())
        {
            return Err(invalid());
        }
        return Ok(position);
    }
    Ok(match choice(request.start, cloudtrail::StartPosition::Latest) {
        cloudtrail::StartPosition::TrimHorizon => Position { writer: 1, sequence: 0 },
        cloudtrail::StartPosition::Latest | cloudtrail::StartPosition::Unspecified => end,
    })
}

/// A subscription is no message: what it sends is.
impl Form for Subscription {
    fn check(&self, _: &At<'_>, _: &mut Violations<'_>) {}

    fn event(&self, _: &Aside) -> Option<Box<serde_json::value::RawValue>> {
        None
    }
}

/// Checks the log.
pub struct VerifyEvents;

impl Operation for VerifyEvents {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "VerifyEvents";
    const ACTION: &'static str = "cloudtrail:VerifyEvents";
    const READ_ONLY: bool = true;
    const TIMEOUT: Option<Duration> = Some(VERIFY_TIMEOUT);
    type Request = cloudtrail::VerifyEventsRequest;
    type Response = cloudtrail::VerifyEventsResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        crate::audit::verify::verify(&call.app, request.expected_head.as_deref(), call.deadline).await
    }
}
