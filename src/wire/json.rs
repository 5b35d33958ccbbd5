//! AWS JSON 1.1: bytes as base64, times as seconds since the epoch, enums by
//! their text. build.rs writes each message's [`Json`].
//!
//! A member that a message does not have is ignored and null is absent, as AWS
//! has it. A value of another type is a SerializationException.

use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{Received, Sorted, Text};
use crate::error::{Error, Exception, Result};

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A message in AWS JSON.
pub trait Json: Sized {
    /// Whether an answer of it has a body: AWS's model has a structure for it.
    const HAS_BODY: bool;

    /// Sets the member of this name, if there is one.
    ///
    /// # Errors
    /// SerializationException.
    fn read(&mut self, name: &str, value: Value, reader: &mut Reader) -> Result<()>;

    /// The whole message.
    ///
    /// # Errors
    /// Where a value has no form in JSON, which no message's has.
    fn write(&self) -> serde_json::Result<Vec<u8>>;
}

/// Reads a request's body; an empty one is `{}`.
///
/// # Errors
/// SerializationException.
pub fn read<T: Json + Default>(body: &[u8]) -> Result<Received<T>> {
    let value = match body {
        b"" => Value::Object(serde_json::Map::new()),
        // Not the error's own words, which may quote the body.
        _ => serde_json::from_slice(body)
            .map_err(|error| serialization(format!("The body is not JSON, at column {}", error.column())))?,
    };
    let mut reader = Reader::default();
    let message = reader.object(value)?;
    Ok(Received { message, aside: reader.aside })
}

/// Makes members of JSON values.
#[derive(Default)]
pub struct Reader {
    aside: super::Aside,
    /// The object that is being read, `tags.1.member`; empty for the request.
    place: String,
}

impl Reader {
    fn text(&mut self, value: Value) -> Result<String> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(mismatch(&other, "a String")),
        }
    }

    fn bytes(&mut self, value: Value) -> Result<Vec<u8>> {
        let text = match value {
            Value::String(text) => text,
            other => return Err(mismatch(&other, "a Blob")),
        };
        BASE64.decode(text).map_err(|_| serialization("A blob is not valid base64"))
    }

    fn flag(&mut self, value: Value) -> Result<bool> {
        value.as_bool().ok_or_else(|| mismatch(&value, "a Boolean"))
    }

    fn integer(&mut self, value: Value) -> Result<i32> {
        whole(&value).and_then(|n| i32::try_from(n).ok()).ok_or_else(|| mismatch(&value, "an Integer"))
    }

    fn long(&mut self, value: Value) -> Result<i64> {
        whole(&value).ok_or_else(|| mismatch(&value, "a Long"))
    }

    #[allow(dead_code, reason = "for messages with a double")]
    fn double(&mut self, value: Value) -> Result<f64> {
        value.as_f64().ok_or_else(|| mismatch(&value, "a Double"))
    }

    fn choice<T: Text>(&mut self, value: Value) -> Result<i32> {
        let text = self.text(value)?;
        // What names no value is for validation to refuse, in AWS's words.
        Ok(T::from_text(&text).map_or_else(|| self.aside.keep(text), T::number))
    }

    fn time(&mut self, value: Value) -> Result<prost_types::Timestamp> {
        let seconds = value.as_f64().ok_or_else(|| mismatch(&value, "a Timestamp"))?;
        // What is too large for a number is too large for a time.
        let time = jiff::Timestamp::from_millisecond((seconds * 1000.0).round() as i64)
            .map_err(|_| serialization("A timestamp is out of range"))?
            .as_millisecond();
        let nanos = i32::try_from(time.rem_euclid(1000)).unwrap_or_default() * 1_000_000;
        Ok(prost_types::Timestamp { seconds: time.div_euclid(1000), nanos })
    }

    fn map(&mut self, value: Value) -> Result<HashMap<String, String>> {
        match value {
            Value::Object(members) => {
                members.into_iter().map(|(key, value)| Ok((key, self.text(value)?))).collect()
            }
            other => Err(mismatch(&other, "a Map")),
        }
    }

    fn list<T>(
        &mut self,
        name: &str,
        value: Value,
        entry: impl Fn(&mut Self, Value) -> Result<T>,
    ) -> Result<Vec<T>> {
        let Value::Array(entries) = value else { return Err(mismatch(&value, "a List")) };
        let place = self.member(name);
        if entries.is_empty() {
            self.aside.empty_lists.push(place);
            return Ok(Vec::new());
        }
        let numbered = entries.into_iter().zip(1..);
        numbered.map(|(value, n)| self.at(format!("{place}.{n}.member"), |r| entry(r, value))).collect()
    }

    fn message<T: Json + Default>(&mut self, name: &str, value: Value) -> Result<T> {
        let place = self.member(name);
        self.at(place, |reader| reader.object(value))
    }

    fn object<T: Json + Default>(&mut self, value: Value) -> Result<T> {
        let Value::Object(members) = value else { return Err(mismatch(&value, "a structure")) };
        let mut message = T::default();
        for (name, value) in members.into_iter().filter(|(_, value)| !value.is_null()) {
            message.read(&name, value, self)?;
        }
        Ok(message)
    }

    fn at<T>(&mut self, place: String, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = std::mem::replace(&mut self.place, place);
        let result = read(self);
        self.place = outer;
        result
    }

    fn member(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }
}

/// A whole number, also where it is written as 1.0 or 1e3.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let float = value.as_f64()?;
        let fits = float.fract() == 0.0 && float.abs() < 9e15;
        fits.then_some(float as i64)
    })
}

fn mismatch(found: &Value, wanted: &str) -> Error {
    let found = match found {
        Value::Object(_) => return serialization("Start of structure or map found where not expected."),
        Value::Array(_) => return serialization("Start of list found where not expected."),
        Value::Null => "NULL_VALUE",
        Value::Bool(true) => "TRUE_VALUE",
        Value::Bool(false) => "FALSE_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::String(_) => "STRING_VALUE",
    };
    serialization(format!("{found} can not be converted to {wanted}"))
}

fn serialization(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Exception::Serialization, message)
}

/// A message in AWS JSON.
struct Aws<'a, T>(&'a T);

struct Base64<'a>(&'a [u8]);

impl fmt::Display for Base64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        base64::display::Base64Display::new(self.0, &base64::engine::general_purpose::STANDARD).fmt(f)
    }
}

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Seconds since the epoch with their milliseconds.
struct EpochSeconds<'a>(&'a prost_types::Timestamp);

impl Serialize for EpochSeconds<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let milliseconds =
            self.0.seconds.saturating_mul(1000).saturating_add(i64::from(self.0.nanos) / 1_000_000);
        serializer.serialize_f64(milliseconds as f64 / 1000.0)
    }
}

mod messages {
    #![allow(clippy::all, reason = "generated")]

    use super::*;

    include!(concat!(env!("OUT_DIR"), "/json.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{cloudtrail, kms};

    fn message<T: Json + Default>(body: &str) -> T {
        read(body.as_bytes()).unwrap().message
    }

    #[test]
    fn a_request_is_read_by_its_members_names() {
        let request: kms::EncryptRequest = message(
            r#"{"KeyId": "alias/a", "Plaintext": "aGk", "EncryptionContext": {"Kept As Is": "v"},
                "GrantTokens": ["a", "b"], "DryRun": null, "NotAMember": [{}]}"#,
        );
        assert_eq!(request.key_id.as_deref(), Some("alias/a"));
        assert_eq!(request.plaintext.as_deref(), Some(&b"hi"[..]));
        assert_eq!(request.encryption_context["Kept As Is"], "v");
        assert_eq!(request.grant_tokens, ["a", "b"]);
        assert_eq!(request.dry_run, None);
        let request: cloudtrail::LookupEventsRequest =
            message(r#"{"StartTime": 1660171107.25, "MaxResults": 5.0}"#);
        let time = request.start_time.unwrap();
        assert_eq!((time.seconds, time.nanos), (1_660_171_107, 250_000_000));
        assert_eq!(request.max_results, Some(5));
        assert_eq!(message::<kms::ListKeysRequest>("").limit, None);
    }

    #[test]
    fn an_unknown_enum_is_quoted_by_validation_and_in_the_event() {
        let received: Received<kms::CreateKeyRequest> =
            read(br#"{"KeySpec": "RSA_1", "KeyUsage": "X"}"#).unwrap();
        let message = received.validate().unwrap_err().message;
        assert!(
            message.contains("Value 'RSA_1' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [RSA_2048, "),
            "{message}"
        );
        assert!(message.contains("Value 'X' at 'keyUsage'"), "{message}");
        assert_eq!(received.event().unwrap().get(), r#"{"keyUsage":"X","keySpec":"RSA_1"}"#);
    }

    #[test]
    fn an_empty_list_is_told_from_an_absent_one() {
        let refused: Received<kms::ListKeysRequest> = read(br#"{"ResourceOwners": []}"#).unwrap();
        let message = refused.validate().unwrap_err().message;
        assert!(message.contains("at 'resourceOwners' failed to satisfy constraint: Member must have length greater than or equal to 1"), "{message}");
        let absent: Received<kms::ListKeysRequest> = read(b"{}").unwrap();
        assert!(absent.validate().is_ok());
    }

    #[test]
    fn another_type_is_a_serialization_exception() {
        for (body, words) in [
            ("[]", "Start of list"),
            ("{", "not JSON"),
            (r#"{"KeyId": 1}"#, "NUMBER_VALUE can not be converted to a String"),
            (r#"{"KeyId": {}}"#, "Start of structure"),
            (r#"{"Plaintext": "%"}"#, "base64"),
            (r#"{"DryRun": "true"}"#, "STRING_VALUE can not be converted to a Boolean"),
            (r#"{"GrantTokens": "a"}"#, "STRING_VALUE can not be converted to a List"),
            (r#"{"GrantTokens": [null]}"#, "NULL_VALUE"),
            (r#"{"EncryptionContext": {"a": true}}"#, "TRUE_VALUE"),
        ] {
            let error = read::<kms::EncryptRequest>(body.as_bytes()).err().unwrap();
            assert_eq!(error.exception, Exception::Serialization);
            assert!(error.message.contains(words), "{body}: {}", error.message);
        }
        assert!(read::<kms::GenerateRandomRequest>(br#"{"NumberOfBytes": 1.5}"#).is_err());
        assert!(read::<cloudtrail::LookupEventsRequest>(br#"{"StartTime": 1e300}"#).is_err());
    }

    #[test]
    fn an_answer_is_written_as_aws_writes_it() {
        let metadata = kms::KeyMetadata {
            aws_account_id: Some("111122223333".into()),
            creation_date: Some(prost_types::Timestamp { seconds: 1_660_171_107, nanos: 250_000_000 }),
            enabled: Some(true),
            key_state: Some(kms::KeyState::PendingDeletion as i32),
            signing_algorithms: vec![kms::SigningAlgorithmSpec::EcdsaSha256 as i32],
            ..Default::default()
        };
        assert_eq!(
            String::from_utf8(metadata.write().unwrap()).unwrap(),
            r#"{"AWSAccountId":"111122223333","CreationDate":1660171107.25,"Enabled":true,"KeyState":"PendingDeletion","SigningAlgorithms":["ECDSA_SHA_256"]}"#
        );
        let blob = kms::SignResponse { signature: Some(vec![1, 2, 3, 4]), ..Default::default() };
        assert_eq!(blob.write().unwrap(), br#"{"Signature":"AQIDBA=="}"#);
        assert_eq!(kms::ListKeysResponse::default().write().unwrap(), br#"{"Keys":[]}"#);
        const { assert!(!kms::EnableKeyResponse::HAS_BODY && kms::ConnectCustomKeyStoreResponse::HAS_BODY) };
    }
}
