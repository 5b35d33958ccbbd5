//! From what is typed to the API's values: the AWS CLI's forms of text, and JSON.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};
use serde_json::Value as Json;

use super::{schema, shorthand, time};

/// The most that is read of a file or of standard input: what fits in a gRPC message.
const INPUT_LIMIT_BYTES: u64 = 4 << 20;

/// Where values may come from besides the command line.
pub struct Sources {
    /// Standard input; it can be taken once.
    stdin: Option<Box<dyn Read>>,
    /// What relative times count from.
    now: Timestamp,
}

impl Sources {
    /// The process's standard input and the clock.
    pub fn of_process() -> Self {
        Sources { stdin: Some(Box::new(std::io::stdin())), now: Timestamp::now() }
    }

    /// A file, or standard input for `-`.
    ///
    /// # Errors
    /// The file's name and the reason.
    pub fn bytes(&mut self, path: &str) -> Result<Vec<u8>, String> {
        if path == "-" {
            let stdin = self.stdin.take().ok_or("standard input ('-') can be read for one value only")?;
            return limited(stdin, "standard input");
        }
        limited(File::open(path).map_err(|e| format!("{path} cannot be read: {e}"))?, path)
    }

    /// A file's text, or that of standard input for `-`.
    ///
    /// # Errors
    /// The file's name and the reason.
    pub fn text(&mut self, path: &str) -> Result<String, String> {
        String::from_utf8(self.bytes(path)?).map_err(|_| format!("{path} is not UTF-8 text"))
    }
}

/// A value as it is typed:
/// - strings, structures and maps: the text itself, or `file://PATH`;
/// - bytes: base64, `fileb://PATH` or `file://PATH` (the file as it is), `-` for standard input;
/// - structures and maps: JSON or the AWS CLI's shorthand;
/// - enums: AWS's text in any case.
///
/// # Errors
/// What is wrong, without the value.
pub fn from_text(kind: &Kind, text: &str, sources: &mut Sources) -> Result<Value, String> {
    match kind {
        Kind::String => string(text, sources).map(Value::String),
        Kind::Bytes => bytes(text, sources).map(|bytes| Value::Bytes(bytes.into())),
        Kind::Message(message) if schema::is_timestamp(message) => {
            time::parse(text, sources.now).map(|time| timestamp(message, time))
        }
        Kind::Message(message) => {
            let json = structure(&string(text, sources)?)?;
            message_from_json(message, &json).map(Value::Message)
        }
        kind => scalar(kind, &Json::String(text.to_owned())),
    }
}

/// A map or a list from one typed text: JSON, or shorthand for a map.
///
/// # Errors
/// What is wrong, without the value.
pub fn collection_from_text(
    field: &FieldDescriptor,
    text: &str,
    sources: &mut Sources,
) -> Result<Value, String> {
    let text = string(text, sources)?;
    let json = if field.is_map() { structure(&text)? } else { json(&text)? };
    field_from_json(field, &json)
}

/// JSON as AWS writes it (`{"KeyId": "…", "Tags": […]}`) to a message.
///
/// # Errors
/// The path to the member and what is wrong with it, without its value.
pub fn message_from_json(descriptor: &MessageDescriptor, json: &Json) -> Result<DynamicMessage, String> {
    let members = json.as_object().ok_or("a JSON object is expected")?;
    let mut message = DynamicMessage::new(descriptor.clone());
    for (name, value) in members {
        let field = schema::member(descriptor, name).ok_or_else(|| {
            format!("{name} is not a member; these are: {}", schema::member_names(descriptor))
        })?;
        message.set_field(&field, field_from_json(&field, value).map_err(|e| within(name, e))?);
    }
    Ok(message)
}

/// Reads JSON text.
///
/// # Errors
/// Where it is not JSON.
pub fn json(text: &str) -> Result<Json, String> {
    serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))
}

fn field_from_json(field: &FieldDescriptor, json: &Json) -> Result<Value, String> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return Err("a map has no entry type".into()) };
        let value_kind = entry.map_entry_value_field().kind();
        let members = json.as_object().ok_or("a JSON object is expected")?;
        let entry = |(name, value)| {
            let name: &String = name;
            Ok((
                MapKey::String(name.clone()),
                value_from_json(&value_kind, value).map_err(|e| within(name, e))?,
            ))
        };
        return members.iter().map(entry).collect::<Result<HashMap<_, _>, String>>().map(Value::Map);
    }
    if schema::is_list(field) {
        let values = json.as_array().ok_or("a JSON list is expected")?;
        let value = |(index, value)| {
            value_from_json(&field.kind(), value).map_err(|e| within(&format!("[{index}]"), e))
        };
        return values.iter().enumerate().map(value).collect::<Result<_, _>>().map(Value::List);
    }
    value_from_json(&field.kind(), json)
}

fn value_from_json(kind: &Kind, json: &Json) -> Result<Value, String> {
    match (kind, json) {
        (Kind::String, Json::String(text)) => Ok(Value::String(text.clone())),
        (Kind::String, _) => Err("a string is expected".into()),
        (Kind::Bytes, Json::String(text)) => base64(text).map(|bytes| Value::Bytes(bytes.into())),
        (Kind::Bytes, _) => Err("base64 in a string is expected".into()),
        (Kind::Message(message), json) if schema::is_timestamp(message) => {
            let time = match json {
                Json::Number(seconds) => seconds.as_f64().and_then(time::epoch).ok_or("not a time")?,
                Json::String(text) => time::parse(text, Timestamp::now())?,
                _ => return Err("a time is expected".into()),
            };
            Ok(timestamp(message, time))
        }
        (Kind::Message(message), json) => message_from_json(message, json).map(Value::Message),
        (kind, json) => scalar(kind, json),
    }
}

/// A number, boolean or enum value, from JSON's own type or from text.
fn scalar(kind: &Kind, json: &Json) -> Result<Value, String> {
    let text = match json {
        Json::String(text) => text.clone(),
        Json::Bool(_) | Json::Number(_) => json.to_string(),
        _ => return Err("one value is expected".into()),
    };
    fn number<T: std::str::FromStr>(text: &str, value: impl Fn(T) -> Value) -> Result<Value, String> {
        text.parse().map(value).map_err(|_| format!("'{text}' is not a number of its range"))
    }
    match kind {
        Kind::Bool => {
            text.parse().map(Value::Bool).map_err(|_| format!("'{text}' is neither true nor false"))
        }
        Kind::Enum(descriptor) => enum_value(descriptor, &text),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => number(&text, Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => number(&text, Value::I64),
        Kind::Uint32 | Kind::Fixed32 => number(&text, Value::U32),
        Kind::Uint64 | Kind::Fixed64 => number(&text, Value::U64),
        Kind::Float => number(&text, Value::F32),
        Kind::Double => number(&text, Value::F64),
        Kind::String | Kind::Bytes | Kind::Message(_) => Err("one value is expected".into()),
    }
}

fn enum_value(descriptor: &EnumDescriptor, text: &str) -> Result<Value, String> {
    schema::enum_number(descriptor, text)
        .map(Value::EnumNumber)
        .ok_or_else(|| format!("'{text}' is not one of {}", schema::enum_texts(descriptor).join(", ")))
}

fn timestamp(message: &MessageDescriptor, time: Timestamp) -> Value {
    let mut value = DynamicMessage::new(message.clone());
    // The sign of both is the same in jiff; protobuf wants nanos from 0 up.
    let nanos = time.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default();
    let nanos = i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default();
    value.set_field_by_name("seconds", Value::I64(seconds));
    value.set_field_by_name("nanos", Value::I32(nanos));
    Value::Message(value)
}

fn string(text: &str, sources: &mut Sources) -> Result<String, String> {
    match text.strip_prefix("file://") {
        Some(path) => sources.text(path),
        None => Ok(text.to_owned()),
    }
}

fn bytes(text: &str, sources: &mut Sources) -> Result<Vec<u8>, String> {
    match text.strip_prefix("fileb://").or_else(|| text.strip_prefix("file://")) {
        Some(path) => sources.bytes(path),
        None if text == "-" => sources.bytes(text),
        None => base64(text),
    }
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    // The decoder's own error tells a byte of what may be secret.
    STANDARD
        .decode(text.trim())
        .map_err(|_| "not base64; for a file write fileb://PATH, for standard input -".to_owned())
}

/// `{…}` is JSON, anything else shorthand.
fn structure(text: &str) -> Result<Json, String> {
    if text.trim_start().starts_with('{') { json(text) } else { shorthand::parse(text).map(Json::Object) }
}

fn limited(from: impl Read, name: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    from.take(INPUT_LIMIT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("{name} cannot be read: {e}"))?;
    if bytes.len() as u64 > INPUT_LIMIT_BYTES {
        return Err(format!("{name} is longer than {INPUT_LIMIT_BYTES} bytes"));
    }
    Ok(bytes)
}

/// The error's path grows on the way out: `Tags`, `[0]`, `TagKey`.
fn within(outer: &str, error: String) -> String {
    match error.starts_with('[') {
        true => format!("{outer}{error}"),
        false => format!("{outer}: {error}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::json::to_json;
    use crate::cli::schema::Service;
    use serde_json::json;

    /// Sources whose standard input is this text.
    pub fn sources(stdin: &'static str) -> Sources {
        Sources { stdin: Some(Box::new(stdin.as_bytes())), now: "2026-11-23T12:00:00Z".parse().unwrap() }
    }

    fn input(operation: &str) -> MessageDescriptor {
        Service::Kms.method(operation).input()
    }

    fn kind(operation: &str, field: &str) -> Kind {
        input(operation).get_field_by_name(field).unwrap().kind()
    }

    #[test]
    fn bytes_come_from_base64_files_and_standard_input() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("message");
        std::fs::write(&path, [0, 255, 10]).unwrap();
        let kind = kind("Encrypt", "plaintext");
        let read = |text: &str| from_text(&kind, text, &mut sources("stdin\n"));
        let of = |bytes: &'static [u8]| Value::Bytes(bytes.into());
        assert_eq!(read("AP8K").unwrap(), of(&[0, 255, 10]));
        assert_eq!(read(&format!("fileb://{}", path.display())).unwrap(), of(&[0, 255, 10]));
        assert_eq!(read(&format!("file://{}", path.display())).unwrap(), of(&[0, 255, 10]));
        assert_eq!(read("-").unwrap(), of(b"stdin\n"));
        let error = read("no base64!").unwrap_err();
        assert!(error.contains("fileb://PATH") && !error.contains("no base64!"), "{error}");
        assert!(read("fileb:///no/such/file").unwrap_err().contains("/no/such/file"));
    }

    #[test]
    fn standard_input_is_read_once() {
        let mut sources = sources("x");
        let kind = kind("Verify", "message");
        assert!(from_text(&kind, "-", &mut sources).is_ok());
        assert!(from_text(&kind, "-", &mut sources).unwrap_err().contains("one value only"));
    }

    #[test]
    fn input_has_a_limit() {
        let long = limited(std::io::repeat(0), "it");
        assert!(long.unwrap_err().contains("longer than 4194304 bytes"));
    }

    #[test]
    fn scalars_are_read() {
        let mut no = sources("");
        let mut read = |operation, field, text| from_text(&kind(operation, field), text, &mut no);
        assert_eq!(read("GenerateRandom", "number_of_bytes", "32"), Ok(Value::I32(32)));
        assert!(read("GenerateRandom", "number_of_bytes", "x").is_err());
        assert!(read("GenerateRandom", "number_of_bytes", "4294967296").is_err());
        assert_eq!(read("CreateKey", "key_spec", "rsa_2048"), Ok(Value::EnumNumber(1)));
        assert!(read("CreateKey", "key_spec", "RSA_1024").unwrap_err().contains("RSA_2048, RSA_3072"));
        assert!(read("CreateKey", "key_spec", "UNSPECIFIED").is_err());
        assert_eq!(read("Encrypt", "dry_run", "true"), Ok(Value::Bool(true)));
        assert_eq!(read("CreateKey", "description", "a"), Ok(Value::String("a".into())));
    }

    #[test]
    fn json_becomes_a_message_and_comes_back() {
        let json = json!({
            "Policy": "{}", "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", "MultiRegion": false,
            "Tags": [{"TagKey": "a", "TagValue": ""}],
        });
        assert_eq!(to_json(&message_from_json(&input("CreateKey"), &json).unwrap()), json);
        let json = json!({
            "KeyId": "k", "Plaintext": "AP8K", "EncryptionContext": {"a": "b"}, "GrantTokens": ["t"],
            "DryRun": "true",
        });
        let message = message_from_json(&input("Encrypt"), &json).unwrap();
        assert_eq!(
            message.get_field_by_name("plaintext").unwrap().as_bytes().unwrap().as_ref(),
            [0, 255, 10]
        );
        assert_eq!(message.get_field_by_name("dry_run").unwrap().as_bool(), Some(true));
    }

    #[test]
    fn an_error_names_the_member_and_not_its_value() {
        let error = |json| message_from_json(&input("CreateKey"), &json).unwrap_err();
        assert_eq!(
            error(json!({"Tags": [{"TagKey": "a", "TagValue": 7}]})),
            "Tags[0]: TagValue: a string is expected"
        );
        assert!(error(json!({"Tag": []})).starts_with("Tag is not a member; these are: Policy, Description"));
        assert!(error(json!({"Tags": {}})).contains("a JSON list"));
        assert!(error(json!([])).contains("a JSON object"));
        let error = message_from_json(&input("Encrypt"), &json!({"Plaintext": "s3cret?"})).unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn times_are_timestamps() {
        let request = Service::CloudTrail.method("LookupEvents").input();
        for (json, seconds) in
            [(json!(1_700_000_000.5), 1_700_000_000), (json!("1969-12-31T23:59:59.5Z"), -1)]
        {
            let message = message_from_json(&request, &json!({"StartTime": json})).unwrap();
            let time = message.get_field_by_name("start_time").unwrap().as_message().unwrap().clone();
            assert_eq!(time.get_field_by_name("seconds").unwrap().as_i64(), Some(seconds));
            assert_eq!(time.get_field_by_name("nanos").unwrap().as_i32(), Some(500_000_000));
        }
    }
}
