//! `strongroom events`: the log as a stream, a search, and its check.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use prost_reflect::DynamicMessage;
use serde_json::Value as Json;

use super::output::printable;
use super::{Failure, connection, json, time};

mod lookup;
mod matching;
mod tail;
mod verify;

/// `events` with the commands below it.
pub fn command() -> Command {
    Command::new("events")
        .about("Follow, search and verify the event log")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(connection::args())
        .subcommands([tail::command(), lookup::command(), verify::command(), matching::command()])
}

/// Runs the command that was matched.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    match matches.subcommand() {
        Some(("tail", matches)) => tail::run(matches).await,
        Some(("lookup", matches)) => lookup::run(matches).await,
        Some(("verify", matches)) => verify::run(matches).await,
        Some(("match", matches)) => matching::run(matches),
        _ => Err(Failure::Usage("name one of tail, lookup, verify and match".to_owned())),
    }
}

/// An event in a line: time, name, principal, key, and the error or `ok`.
fn line(event: &DynamicMessage) -> String {
    let record = record(event);
    let text = |name: &str| event.get_field_by_name(name).and_then(|v| v.as_str().map(str::to_owned));
    let of_record = |path: &str| record.pointer(path).and_then(Json::as_str).map(str::to_owned);
    let found = |text: Option<String>| text.filter(|text| !text.is_empty());

    let time = event.get_field_by_name("event_time").filter(|_| event.has_field_by_name("event_time"));
    let time = time.and_then(|time| {
        let (seconds, _) = json::timestamp(time.as_message()?);
        time::iso(seconds, 0).map(|iso| iso.replace("+00:00", "Z"))
    });
    let principal = found(text("username"))
        .or_else(|| found(of_record("/userIdentity/arn")))
        .or_else(|| found(of_record("/userIdentity/invokedBy")))
        .or_else(|| found(of_record("/userIdentity/type")));
    let columns = [
        time,
        found(text("event_name")).map(|name| format!("{name:<20}")),
        principal,
        resource(event),
        Some(found(of_record("/errorCode")).unwrap_or_else(|| "ok".to_owned())),
    ];
    printable(&columns.map(|column| column.unwrap_or_else(|| "-".to_owned())).join("  "))
}

/// The whole record as JSON in one line.
fn record_line(event: &DynamicMessage) -> String {
    match record(event) {
        Json::Null => json::to_json(event).to_string(),
        record => record.to_string(),
    }
}

/// The CloudTrail record; null where the event has none that is JSON.
fn record(event: &DynamicMessage) -> Json {
    let text = event.get_field_by_name("cloud_trail_event");
    text.and_then(|text| serde_json::from_str(text.as_str()?).ok()).unwrap_or_default()
}

/// The first resource, an ARN without its account: `key/1234…`, `alias/a`.
fn resource(event: &DynamicMessage) -> Option<String> {
    let resources = event.get_field_by_name("resources")?;
    let first = resources.as_list()?.first()?.as_message()?.get_field_by_name("resource_name")?.into_owned();
    let name = first.as_str()?;
    let short = match name.starts_with("arn:") {
        true => name.splitn(6, ':').last().unwrap_or(name),
        false => name,
    };
    (!short.is_empty()).then(|| short.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::schema::Service;
    use crate::cli::values::message_from_json;
    use prost_reflect::ReflectMessage;
    use serde_json::json;

    fn event(record: &str) -> DynamicMessage {
        let output = Service::CloudTrail.method("LookupEvents").output();
        let event = json!({
            "EventName": "Encrypt",
            "EventTime": 1_700_000_000.5,
            "Username": "ali\u{1b}ce",
            "Resources": [{"ResourceType": "AWS::KMS::Key", "ResourceName": "arn:aws:kms:us-east-1:111122223333:key/ab:c"}],
            "CloudTrailEvent": record,
        });
        let page = message_from_json(&output, &json!({"Events": [event]})).unwrap();
        page.get_field_by_name("events").unwrap().as_list().unwrap()[0].as_message().unwrap().clone()
    }

    #[test]
    fn an_event_is_a_line() {
        let line = line(&event(r#"{"errorCode": "DisabledException"}"#));
        assert_eq!(
            line,
            "2023-11-14T22:13:20Z  Encrypt               ali\\u{1b}ce  key/ab:c  DisabledException"
        );
        assert!(super::line(&event("{}")).ends_with("  ok"));
        let empty = DynamicMessage::new(event("{}").descriptor());
        assert_eq!(super::line(&empty), "-  -  -  -  ok");
    }

    #[test]
    fn a_record_is_one_line_of_json() {
        assert_eq!(record_line(&event("{\n \"b\": 1,\n \"a\": 2}")), r#"{"b":1,"a":2}"#);
        assert!(record_line(&event("no json")).contains("\"EventName\":\"Encrypt\""));
    }
}
