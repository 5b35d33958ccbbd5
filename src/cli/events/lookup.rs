//! `strongroom events lookup`: LookupEvents, all its pages.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};
use serde_json::json;

use super::line;
use crate::cli::output::{self, Format};
use crate::cli::schema::{self, Service};
use crate::cli::values::{self, Sources};
use crate::cli::{Failure, arguments, call, connection, json, notice};

const LOOKUP_EVENTS: &str = "LookupEvents";
const ATTRIBUTE: &str = "events.attribute";
const MAX_ITEMS: &str = "events.max-items";
const DEFAULT_MAX_ITEMS: &str = "1000";
/// CloudTrail's own limit.
const PAGE_EVENTS: u64 = 50;
/// The members of the request that this command sets itself.
const NOT_FLAGS: [&str; 3] = ["lookup_attributes", "max_results", "next_token"];

/// `lookup`.
pub fn command() -> Command {
    let method = Service::CloudTrail.method(LOOKUP_EVENTS);
    Command::new("lookup")
        .about(schema::method_comment(&method))
        .arg(
            Arg::new(ATTRIBUTE)
                .long("attribute")
                .value_name("NAME=VALUE")
                .action(ArgAction::Append)
                .help(format!("Only events with this attribute; the names: {}", attribute_names())),
        )
        .args(arguments::of_request(&method.input(), &NOT_FLAGS))
        .arg(
            Arg::new(MAX_ITEMS)
                .long("max-items")
                .value_name("NUMBER")
                .default_value(DEFAULT_MAX_ITEMS)
                .value_parser(value_parser!(u64).range(1..))
                .help("The most events to print"),
        )
        .arg(output::format_arg(&["table", "json"]))
}

/// Prints the events that are found, newest first.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let method = Service::CloudTrail.method(LOOKUP_EVENTS);
    let mut request = arguments::request(&method.input(), matches, &mut Sources::of_process())?;
    let attributes: Vec<&String> = matches.get_many(ATTRIBUTE).unwrap_or_default().collect();
    set_attributes(&mut request, &attributes)
        .map_err(|error| Failure::Usage(format!("--attribute: {error}")))?;
    let connection = connection::connect(matches).await?;
    let as_json = output::format(matches) == Format::Json;
    let mut left = matches.get_one::<u64>(MAX_ITEMS).copied().unwrap_or(PAGE_EVENTS);
    let mut found = Vec::new();
    loop {
        let page = i32::try_from(left.min(PAGE_EVENTS)).unwrap_or(1);
        request.set_field_by_name("max_results", Value::I32(page));
        let mut answer = call::unary(&connection, &method, request.clone()).await?;
        let events = events(&mut answer);
        left = left.saturating_sub(events.len() as u64);
        if as_json {
            found.extend(events.iter().map(json::to_json));
        } else {
            let lines: String = events.iter().map(|event| line(event) + "\n").collect();
            output::to_stdout(lines.as_bytes())?;
        }
        let Some(token) = answer.take_field_by_name("next_token") else { break };
        if left == 0 {
            notice(&"There are more events: ask for more with --max-items.");
            break;
        }
        request.set_field_by_name("next_token", token);
    }
    if as_json {
        output::to_stdout(&output::lines(&json!({ "Events": found })))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `EventName=Encrypt` as AWS's LookupAttribute. Where there is none, what
/// `--cli-input-json` says holds.
fn set_attributes(request: &mut DynamicMessage, attributes: &[&String]) -> Result<(), String> {
    if attributes.is_empty() {
        return Ok(());
    }
    let attribute = |text: &&String| {
        let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
        Ok(json!({"AttributeKey": name, "AttributeValue": value}))
    };
    let attributes: Vec<_> = attributes.iter().map(attribute).collect::<Result<_, &str>>()?;
    let all = values::message_from_json(&request.descriptor(), &json!({ "LookupAttributes": attributes }))?;
    for (field, value) in all.fields() {
        request.set_field(&field, value.clone());
    }
    Ok(())
}

fn attribute_names() -> String {
    let attribute = Service::CloudTrail.method(LOOKUP_EVENTS).input().get_field_by_name("lookup_attributes");
    let Some(Kind::Message(attribute)) = attribute.map(|field| field.kind()) else { return String::new() };
    let key = attribute.get_field_by_name("attribute_key");
    let Some(Kind::Enum(key)) = key.map(|field| field.kind()) else { return String::new() };
    schema::enum_texts(&key).join(", ")
}

fn events(answer: &mut DynamicMessage) -> Vec<DynamicMessage> {
    match answer.take_field_by_name("events") {
        Some(Value::List(events)) => {
            events.into_iter().filter_map(|event| event.as_message().cloned()).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_of_cloudtrail() {
        assert!(attribute_names().starts_with("EventId, EventName, ReadOnly"));
        let mut request = DynamicMessage::new(Service::CloudTrail.method(LOOKUP_EVENTS).input());
        set_attributes(&mut request, &[&"eventname=Encrypt".into(), &"Username=a=b".into()]).unwrap();
        assert_eq!(
            json::to_json(&request),
            json!({"LookupAttributes": [
                {"AttributeKey": "EventName", "AttributeValue": "Encrypt"},
                {"AttributeKey": "Username", "AttributeValue": "a=b"},
            ]})
        );
        assert!(set_attributes(&mut request, &[&"EventName".into()]).is_err());
        let unknown = set_attributes(&mut request, &[&"Colour=red".into()]).unwrap_err();
        assert!(unknown.contains("EventName"), "{unknown}");
    }
}
