//! What every message of the API can do beyond its wire form; build.rs writes
//! the implementations from the descriptors and options in `proto/`.
//!
//! * [`Form`]: its limits, with AWS's words for what violates them, and its form
//!   in a CloudTrail record, without bytes and secrets.
//! * [`Text`]: an enum's values as AWS writes them.
//! * [`json::Json`]: its form in AWS JSON 1.1.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::LazyLock;

use regex::Regex;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::conditions::{Brings, Brought};
use crate::error::{Error, Exception, Result};

pub mod json;

/// An enum of the API.
pub trait Text: Sized + Copy + TryFrom<i32> {
    /// Every value's text and number, without UNSPECIFIED.
    const TEXTS: &'static [(&'static str, i32)];

    /// The text of a number.
    fn text_of(number: i32) -> Option<&'static str>;

    /// The number on the wire.
    fn number(self) -> i32;

    /// The text, as AWS writes it; empty for UNSPECIFIED.
    fn text(self) -> &'static str {
        Self::text_of(self.number()).unwrap_or_default()
    }

    /// The value with this text.
    fn from_text(text: &str) -> Option<Self> {
        let (_, number) = Self::TEXTS.iter().find(|(name, _)| *name == text)?;
        Self::try_from(*number).ok()
    }
}

/// Serde's form of an enum in a row: its text. Use with `#[serde(with)]`.
pub mod text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::Text;

    /// Writes the text.
    pub fn serialize<T: Text, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(value.text())
    }

    /// Reads the text.
    pub fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::from_text(&text).ok_or_else(|| de::Error::custom(format!("unknown value {text}")))
    }
}

/// A message of the API.
pub trait Form {
    /// Adds what violates a limit.
    fn check(&self, at: &At<'_>, found: &mut Violations<'_>);

    /// Its form in a CloudTrail record; none where nothing is left of it.
    fn event(&self, aside: &Aside) -> Option<Box<RawValue>>;
}

/// A request as it came: a message, and what AWS JSON says that it cannot hold.
#[derive(Default)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// The rest.
    pub aside: Aside,
}

impl<T: Form> Received<T> {
    /// Checks the whole request: AWS's ValidationException, naming every
    /// violation.
    ///
    /// # Errors
    /// ValidationException, or the exception for a member that is not served.
    pub fn validate(&self) -> Result<()> {
        let mut found = Violations { aside: &self.aside, broken: Vec::new(), refused: None };
        self.message.check(&At::root(), &mut found);
        found.into_result()
    }

    /// Its form in a CloudTrail record.
    pub fn event(&self) -> Option<Box<RawValue>> {
        self.message.event(&self.aside)
    }
}

impl<T: Brings> Brings for Received<T> {
    fn brings(&self) -> Vec<Brought<'_>> {
        self.message.brings()
    }

    fn grant_tokens(&self) -> &[String] {
        self.message.grant_tokens()
    }
}

impl<T> From<T> for Received<T> {
    fn from(message: T) -> Self {
        Received { message, aside: Aside::default() }
    }
}

/// What a protobuf message cannot hold of a request.
#[derive(Debug, Default)]
pub struct Aside {
    /// Texts of enums that name no value; -1, -2, … in the message stand for them.
    texts: Vec<String>,
    /// The places of lists that were given and are empty.
    empty_lists: Vec<String>,
}

/// What a message alone is: nothing is aside.
pub static NOTHING: Aside = Aside { texts: Vec::new(), empty_lists: Vec::new() };

impl Aside {
    /// Keeps an enum's text, and gives the number that stands for it.
    fn keep(&mut self, text: String) -> i32 {
        self.texts.push(text);
        i32::try_from(self.texts.len()).map_or(i32::MIN, |place| -place)
    }

    /// What was given for an enum's number that has no text.
    fn given(&self, number: i32) -> Cow<'_, str> {
        let place = number.checked_neg().and_then(|place| usize::try_from(place).ok()?.checked_sub(1));
        let kept = place.and_then(|place| self.texts.get(place));
        kept.map_or_else(|| number.to_string().into(), |text| text.as_str().into())
    }
}

/// A place in a request, `tags.1.member.tagKey`.
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    name: String,
    value: Shown,
}

/// How a violating value is shown.
enum Shown {
    Text(String),
    /// Bytes are never shown.
    Hidden,
}

impl<'a> At<'a> {
    fn root() -> At<'static> {
        At { parent: None, name: String::new(), value: Shown::Hidden }
    }

    fn member(&'a self, name: &str) -> At<'a> {
        At { parent: Some(self), name: name.to_owned(), value: Shown::Hidden }
    }

    fn entry(&'a self, name: &str, index: usize) -> At<'a> {
        self.member(&format!("{name}.{}.member", index + 1))
    }

    fn list(&'a self, name: &str, length: usize) -> At<'a> {
        self.member(name).text(&format!("[{length} entries]"))
    }

    fn text(mut self, value: &str) -> Self {
        const SHOWN_CHARS_MAX: usize = 256;
        self.value = Shown::Text(value.chars().take(SHOWN_CHARS_MAX).collect());
        self
    }

    fn hidden(self) -> Self {
        self
    }

    fn path(&self) -> String {
        match self.parent {
            Some(parent) if !parent.name.is_empty() => format!("{}.{}", parent.path(), self.name),
            _ => self.name.clone(),
        }
    }
}

/// A pattern of the service model.
pub struct Pattern {
    text: &'static str,
    compiled: LazyLock<Option<Regex>>,
}

/// What violates the limits of a request.
pub struct Violations<'a> {
    aside: &'a Aside,
    broken: Vec<String>,
    refused: Option<Error>,
}

impl Violations<'_> {
    fn null(&mut self, at: &At<'_>) {
        self.broken.push(format!(
            "Value null at '{}' failed to satisfy constraint: Member must not be null",
            at.path()
        ));
    }

    fn add(&mut self, at: &At<'_>, rule: &str) {
        let path = at.path();
        self.broken.push(match &at.value {
            Shown::Text(value) => {
                format!("Value '{value}' at '{path}' failed to satisfy constraint: Member must {rule}")
            }
            Shown::Hidden => format!("Value at '{path}' failed to satisfy constraint: Member must {rule}"),
        });
    }

    fn bound<'a>(&mut self, at: impl FnOnce() -> At<'a>, value: i64, bound: i64, least: bool, what: &str) {
        if least && value < bound {
            self.add(&at(), &format!("have {what} greater than or equal to {bound}"));
        } else if !least && value > bound {
            self.add(&at(), &format!("have {what} less than or equal to {bound}"));
        }
    }

    fn pattern<'a>(&mut self, at: impl FnOnce() -> At<'a>, value: &str, pattern: &Pattern) {
        // A pattern that does not compile matches nothing: fail closed. A test walks them all.
        if !pattern.compiled.as_ref().is_some_and(|regex| regex.is_match(value)) {
            self.add(&at(), &format!("satisfy regular expression pattern: {}", pattern.text));
        }
    }

    fn value_set<'a, T: Text>(&mut self, at: impl FnOnce() -> At<'a>, number: i32) {
        if T::text_of(number).is_none() {
            let set: Vec<&str> = T::TEXTS.iter().map(|(text, _)| *text).collect();
            let at = at().text(&self.aside.given(number));
            self.add(&at, &format!("satisfy enum value set: [{}]", set.join(", ")));
        }
    }

    /// A list without entries. In protobuf it is an absent one.
    fn empty_list(&mut self, at: &At<'_>, required: bool, min: i64) {
        if self.aside.empty_lists.contains(&at.path()) {
            if min > 0 {
                self.add(at, &format!("have length greater than or equal to {min}"));
            }
        } else if required {
            self.null(at);
        }
    }

    /// A member that is not served is refused, never ignored.
    fn refuse(&mut self, at: &At<'_>, exception: Exception) {
        self.refused.get_or_insert_with(|| Error::new(exception, format!("{} is not supported.", at.path())));
    }

    fn into_result(self) -> Result<()> {
        match (self.broken.len(), self.refused) {
            (0, None) => Ok(()),
            (0, Some(refused)) => Err(refused),
            (1, _) => {
                Err(Error::validation(format!("1 validation error detected: {}", self.broken.concat())))
            }
            (n, _) => {
                Err(Error::validation(format!("{n} validation errors detected: {}", self.broken.join("; "))))
            }
        }
    }
}

/// A message in the form of a CloudTrail record's requestParameters, with what
/// it cannot hold.
pub struct Event<'a, T>(pub &'a T, pub &'a Aside);

impl<T> Event<'_, T>
where
    Self: Serialize,
{
    fn raw(&self) -> Option<Box<RawValue>> {
        serde_json::value::to_raw_value(self).ok().filter(|raw| raw.get() != "{}")
    }

    fn debug(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// A time as CloudTrail writes it in requestParameters and responseElements:
/// `Aug 10, 2022, 10:38:27 PM`.
struct EventTime<'a>(&'a prost_types::Timestamp);

impl Serialize for EventTime<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match jiff::Timestamp::from_second(self.0.seconds) {
            Ok(time) => serializer.collect_str(&time.strftime("%b %-d, %Y, %-I:%M:%S %p")),
            // No calendar has it; the record must have the request all the same.
            Err(_) => serializer.collect_str(&self.0.seconds),
        }
    }
}

/// A map in the order of its keys, so that the same request gives the same text.
struct Sorted<'a>(&'a HashMap<String, String>);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.iter().collect::<BTreeMap<_, _>>().serialize(serializer)
    }
}

/// An enum's text, or what was given instead of one.
fn enum_text<T: Text>(number: i32, aside: &Aside) -> Cow<'_, str> {
    T::text_of(number).map_or_else(|| aside.given(number), Into::into)
}

mod forms {
    #![allow(clippy::all, reason = "generated")]

    use super::*;
    use crate::conditions::Value as BroughtValue;

    include!(concat!(env!("OUT_DIR"), "/forms.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::kms;

    #[test]
    fn every_violation_is_named_in_awss_words() {
        let request = kms::EncryptRequest {
            key_id: Some(String::new()),
            plaintext: Some(vec![7; 4097]),
            encryption_algorithm: Some(99),
            ..Default::default()
        };
        let error = Received::from(request).validate().unwrap_err();
        assert_eq!(
            error.message,
            "3 validation errors detected: \
             Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1; \
             Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096; \
             Value '99' at 'encryptionAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: \
             [SYMMETRIC_DEFAULT, RSAES_OAEP_SHA_1, RSAES_OAEP_SHA_256, SM2PKE]"
        );
    }

    #[test]
    fn a_list_entry_is_named_by_its_place() {
        let request = kms::CreateKeyRequest {
            tags: vec![kms::Tag { tag_key: Some("a".into()), tag_value: None }],
            policy: Some("\u{1}".into()),
            ..Default::default()
        };
        let message = Received::from(request).validate().unwrap_err().message;
        assert!(message.contains("Value null at 'tags.1.member.tagValue'"), "{message}");
        assert!(message.contains("regular expression pattern: [\\u0009"), "{message}");
        let fine = kms::CreateKeyRequest { policy: Some("{\n}".into()), ..Default::default() };
        assert!(Received::from(fine).validate().is_ok());
    }

    #[test]
    fn bytes_and_tokens_have_no_event_form() {
        let request = kms::EncryptRequest {
            key_id: Some("alias/a".into()),
            plaintext: Some(b"secret".to_vec()),
            encryption_context: [("Kept As Is".to_owned(), "v".to_owned())].into(),
            grant_tokens: vec!["token".into()],
            encryption_algorithm: Some(kms::EncryptionAlgorithmSpec::SymmetricDefault as i32),
            ..Default::default()
        };
        let json = serde_json::to_string(&Event(&request, &NOTHING)).unwrap();
        assert_eq!(
            json,
            r#"{"keyId":"alias/a","encryptionContext":{"Kept As Is":"v"},"encryptionAlgorithm":"SYMMETRIC_DEFAULT"}"#
        );
        assert_eq!(format!("{request:?}"), json);
    }

    #[test]
    fn a_time_is_written_as_cloudtrail_writes_it() {
        let response = kms::ScheduleKeyDeletionResponse {
            deletion_date: Some(prost_types::Timestamp { seconds: 1_660_171_107, nanos: 0 }),
            ..Default::default()
        };
        let json = serde_json::to_value(Event(&response, &NOTHING)).unwrap();
        assert_eq!(json["deletionDate"], "Aug 10, 2022, 10:38:27 PM");
        let never = kms::ImportKeyMaterialRequest {
            key_id: Some("key".into()),
            valid_to: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
            ..Default::default()
        };
        let json = serde_json::to_value(Event(&never, &NOTHING)).unwrap();
        assert_eq!((&json["keyId"], &json["validTo"]), (&"key".into(), &i64::MAX.to_string().into()));
    }

    #[test]
    fn enum_texts_are_awss() {
        assert_eq!(kms::KeyState::PendingDeletion.text(), "PendingDeletion");
        assert_eq!(kms::KeySpec::from_text("ECC_SECG_P256K1"), Some(kms::KeySpec::EccSecgP256k1));
    }
}
