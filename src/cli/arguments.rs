//! A request's members as command-line flags, and the flags as a request.

use std::collections::HashMap;

use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use super::Failure;
use super::schema::{self, Limits};
use super::values::{self, Sources};

/// The flag whose file gives the whole request.
const INPUT_JSON: &str = "cli-input-json";

/// A flag for each member of the message, without those in `skip` (the proto's
/// names), and `--cli-input-json`.
pub fn of_request(message: &MessageDescriptor, skip: &[&str]) -> Vec<Arg> {
    let fields = message.fields().filter(|field| !skip.contains(&field.name()));
    let mut args: Vec<Arg> = fields.flat_map(|field| flags(&field)).collect();
    if !args.is_empty() {
        args.push(
            Arg::new(INPUT_JSON).long(INPUT_JSON).value_name("FILE").help(
                "Take the request's members from a JSON file ('-': standard input); flags come before it",
            ),
        );
    }
    args
}

/// The request that the flags of [`of_request`] make.
///
/// # Errors
/// [`Failure::Usage`] that names the flag, never its value.
pub fn request(
    message: &MessageDescriptor,
    matches: &ArgMatches,
    sources: &mut Sources,
) -> Result<DynamicMessage, Failure> {
    let mut request = match matches.try_get_one::<String>(INPUT_JSON) {
        Ok(Some(from)) => input_json(message, from, sources)
            .map_err(|error| Failure::Usage(format!("--{INPUT_JSON}: {error}")))?,
        _ => DynamicMessage::new(message.clone()),
    };
    for field in message.fields() {
        let value = value(&field, matches, sources)
            .map_err(|error| Failure::Usage(format!("--{}: {error}", schema::kebab(field.name()))))?;
        if let Some(value) = value {
            request.set_field(&field, value);
        }
    }
    Ok(request)
}

fn input_json(
    message: &MessageDescriptor,
    from: &str,
    sources: &mut Sources,
) -> Result<DynamicMessage, String> {
    let text = match from {
        json if json.trim_start().starts_with('{') => json.to_owned(),
        path => sources.text(path.strip_prefix("file://").unwrap_or(path))?,
    };
    values::message_from_json(message, &values::json(&text)?)
}

/// The flags of one member: one, or two for a boolean.
fn flags(field: &FieldDescriptor) -> Vec<Arg> {
    let long = schema::kebab(field.name());
    let arg = Arg::new(yes_id(field)).long(long.clone()).help(help(field));
    if is_switch(field) {
        let no = Arg::new(no_id(field)).long(format!("no-{long}")).action(ArgAction::SetTrue);
        let no = no.help(format!("The opposite of --{long}"));
        return vec![
            arg.action(ArgAction::SetTrue).overrides_with(no_id(field)),
            no.overrides_with(yes_id(field)),
        ];
    }
    let mut arg = arg.value_name(value_name(field)).action(ArgAction::Set);
    if schema::limits(field).required {
        arg = arg.required_unless_present(INPUT_JSON);
    }
    if field.is_map() || schema::is_list(field) {
        arg = arg.action(ArgAction::Append).num_args(1..);
    }
    vec![match field.kind() {
        Kind::Enum(descriptor) => {
            arg.value_parser(PossibleValuesParser::new(schema::enum_texts(&descriptor))).ignore_case(true)
        }
        // -1h
        Kind::Message(message) if schema::is_timestamp(&message) => arg.allow_hyphen_values(true),
        Kind::Int32 | Kind::Int64 => arg.allow_negative_numbers(true),
        _ => arg,
    }]
}

/// The member's value where its flag was given.
fn value(
    field: &FieldDescriptor,
    matches: &ArgMatches,
    sources: &mut Sources,
) -> Result<Option<Value>, String> {
    // A flag that the command skips is unknown to clap, which is no error here.
    let given = |id: &str| {
        matches.try_contains_id(id).unwrap_or(false)
            && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    if is_switch(field) {
        return Ok(match (given(&yes_id(field)), given(&no_id(field))) {
            (true, _) => Some(Value::Bool(true)),
            (_, true) => Some(Value::Bool(false)),
            _ => None,
        });
    }
    if !given(&yes_id(field)) {
        return Ok(None);
    }
    let texts: Vec<&String> = matches.get_many(&yes_id(field)).unwrap_or_default().collect();
    if field.is_map() {
        return map(field, &texts, sources).map(Some);
    }
    if schema::is_list(field) {
        return list(field, &texts, sources).map(Some);
    }
    texts.last().map(|text| values::from_text(&field.kind(), text, sources)).transpose()
}

/// The entries of every text together.
fn map(field: &FieldDescriptor, texts: &[&String], sources: &mut Sources) -> Result<Value, String> {
    let mut all = HashMap::new();
    for text in texts {
        let Value::Map(entries) = values::collection_from_text(field, text, sources)? else { continue };
        for (key, value) in entries {
            if let Some(key) = all.insert(key.clone(), value).and(key.as_str().map(str::to_owned)) {
                return Err(format!("'{key}' is given twice"));
            }
        }
    }
    Ok(Value::Map(all))
}

/// Each text one entry, or a JSON list of entries.
fn list(field: &FieldDescriptor, texts: &[&String], sources: &mut Sources) -> Result<Value, String> {
    let mut all = Vec::new();
    for text in texts {
        if !text.trim_start().starts_with('[') {
            all.push(values::from_text(&field.kind(), text, sources)?);
        } else if let Value::List(values) = values::collection_from_text(field, text, sources)? {
            all.extend(values);
        }
    }
    Ok(Value::List(all))
}

fn is_switch(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Bool) && !schema::is_list(field)
}

/// The ids of arguments are apart from those of the connection and the output.
fn yes_id(field: &FieldDescriptor) -> String {
    format!("member.{}", field.name())
}

fn no_id(field: &FieldDescriptor) -> String {
    format!("member.no.{}", field.name())
}

fn value_name(field: &FieldDescriptor) -> &'static str {
    match field.kind() {
        _ if field.is_map() => "NAME=VALUE,…",
        Kind::Bytes => "BASE64|fileb://PATH|-",
        Kind::Enum(_) => "NAME",
        Kind::Message(message) if schema::is_timestamp(&message) => "TIME",
        Kind::Message(_) => "MEMBER=VALUE,…|JSON",
        Kind::String => "TEXT",
        _ => "NUMBER",
    }
}

/// The comment of the proto, then what the options say.
fn help(field: &FieldDescriptor) -> String {
    let mut parts = vec![schema::field_comment(field)];
    let limits = schema::limits(field);
    if limits.required {
        parts.push("[required]".to_owned());
    }
    parts.push(range(field, limits));
    if let (Kind::Message(message), false) = (field.kind(), field.is_map())
        && !schema::is_timestamp(&message)
    {
        parts.push(format!("[members: {}]", schema::member_names(&message)));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

fn range(field: &FieldDescriptor, limits: Limits) -> String {
    let unit = match field.kind() {
        _ if field.is_map() => " entries",
        _ if schema::is_list(field) => " entries",
        Kind::String => " characters",
        Kind::Bytes => " bytes",
        _ => "",
    };
    match (limits.min, limits.max) {
        (Some(min), Some(max)) => format!("[{min} to {max}{unit}]"),
        (None, Some(max)) => format!("[at most {max}{unit}]"),
        (Some(min), None) => format!("[at least {min}{unit}]"),
        (None, None) => String::new(),
    }
}
