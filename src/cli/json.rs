//! Messages as the AWS CLI prints them: PascalCase members, base64 for bytes,
//! ISO 8601 for times, AWS's text for enums.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};
use serde_json::{Map, Value as Json};

use super::{schema, time};

/// The message as AWS's JSON. What is absent is left out, apart from lists of
/// structures (`Keys`, `Aliases`), which AWS prints when they are empty, too.
pub fn to_json(message: &DynamicMessage) -> Json {
    let fields = message.descriptor();
    let fields = fields.fields().filter(|field| message.has_field(field) || is_list_of_structures(field));
    let member = |field: FieldDescriptor| {
        let json = value_to_json(&field.kind(), &message.get_field(&field));
        (schema::aws_name(&field), json)
    };
    Json::Object(fields.map(member).collect())
}

/// One value as AWS's JSON.
pub fn value_to_json(kind: &Kind, value: &Value) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::U64(value) => (*value).into(),
        Value::F32(value) => (*value).into(),
        Value::F64(value) => (*value).into(),
        Value::String(text) => text.clone().into(),
        Value::Bytes(bytes) => STANDARD.encode(bytes).into(),
        Value::EnumNumber(number) => enum_to_json(kind, *number),
        Value::List(values) => values.iter().map(|value| value_to_json(kind, value)).collect(),
        Value::Message(message) if schema::is_timestamp(&message.descriptor()) => time_to_json(message),
        Value::Message(message) => to_json(message),
        Value::Map(entries) => {
            let value_kind = match kind {
                Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
                kind => kind.clone(),
            };
            let entry = |(key, value)| (key_text(key), value_to_json(&value_kind, value));
            // Sorted, so that the same answer prints the same.
            let sorted: BTreeMap<_, _> = entries.iter().map(entry).collect();
            Json::Object(sorted.into_iter().collect::<Map<_, _>>())
        }
    }
}

/// The time in a `google.protobuf.Timestamp`, as seconds and nanoseconds since 1970.
pub fn timestamp(message: &DynamicMessage) -> (i64, i32) {
    let seconds = message.get_field_by_name("seconds").and_then(|value| value.as_i64());
    let nanos = message.get_field_by_name("nanos").and_then(|value| value.as_i32());
    (seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

fn is_list_of_structures(field: &FieldDescriptor) -> bool {
    schema::is_list(field) && matches!(field.kind(), Kind::Message(_))
}

/// AWS's text, or the number where a newer server knows a value that we do not.
fn enum_to_json(kind: &Kind, number: i32) -> Json {
    kind.as_enum()
        .and_then(|descriptor| descriptor.get_value(number))
        .map_or_else(|| number.into(), |value| schema::enum_text(&value).into())
}

fn time_to_json(message: &DynamicMessage) -> Json {
    let (seconds, nanos) = timestamp(message);
    time::iso(seconds, nanos).map_or_else(|| seconds.into(), Json::String)
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => text.clone(),
        MapKey::Bool(value) => value.to_string(),
        MapKey::I32(value) => value.to_string(),
        MapKey::I64(value) => value.to_string(),
        MapKey::U32(value) => value.to_string(),
        MapKey::U64(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::schema::Service;
    use crate::cli::values::message_from_json;
    use serde_json::json;

    #[test]
    fn a_message_is_printed_as_the_aws_cli_prints_it() {
        let metadata = json!({
            "AWSAccountId": "111122223333",
            "KeyId": "k",
            "CreationDate": 1_700_000_000.25,
            "Enabled": false,
            "KeyState": "PendingDeletion",
            "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
            "MultiRegionConfiguration": {"MultiRegionKeyType": "PRIMARY"},
        });
        let output = Service::Kms.method("DescribeKey").output();
        let message = message_from_json(&output, &json!({"KeyMetadata": metadata})).unwrap();
        let expected = json!({"KeyMetadata": {
            "AWSAccountId": "111122223333",
            "KeyId": "k",
            "CreationDate": "2023-11-14T22:13:20.250000+00:00",
            "Enabled": false,
            "KeyState": "PendingDeletion",
            "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
            "MultiRegionConfiguration": {"MultiRegionKeyType": "PRIMARY", "ReplicaKeys": []},
        }});
        assert_eq!(to_json(&message).to_string(), expected.to_string());
    }

    #[test]
    fn empty_lists_of_structures_are_printed() {
        let empty = |name| to_json(&DynamicMessage::new(Service::Kms.method(name).output()));
        assert_eq!(empty("ListKeys"), json!({"Keys": []}));
        assert_eq!(empty("Sign"), json!({}));
    }

    #[test]
    fn an_unknown_enum_value_keeps_its_number() {
        let mut message = DynamicMessage::new(Service::Kms.method("Sign").output());
        message.set_field_by_name("signing_algorithm", Value::EnumNumber(99));
        assert_eq!(to_json(&message), json!({"SigningAlgorithm": 99}));
    }
}
