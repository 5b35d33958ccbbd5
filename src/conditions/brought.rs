//! What a request's members bring to the conditions of policies: the option
//! `condition` in `proto/` names the key of each; build.rs writes the
//! implementations.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::proto::kms;

/// A request, as conditions see it.
pub trait Brings {
    /// Every member that is there and has a condition key.
    fn brings(&self) -> Vec<Brought<'_>>;

    /// The grant tokens that it presents.
    fn grant_tokens(&self) -> &[String] {
        &[]
    }
}

/// One member.
#[derive(Debug)]
pub struct Brought<'a> {
    /// Its condition key, or the family's name.
    pub key: &'static str,
    /// The one IAM action that it is brought to; None for every one of the call.
    pub action: Option<&'static str>,
    /// Its value.
    pub value: Value<'a>,
}

/// A member's value.
#[derive(Debug)]
pub enum Value<'a> {
    /// As text: the operator of a condition says how to read it.
    Text(Cow<'a, str>),
    /// A list.
    Texts(Vec<Cow<'a, str>>),
    /// A family of keys, `KEY:NAME`, and their names, `KEYKeys`.
    Map(&'a HashMap<String, String>),
    /// A family of keys, `aws:RequestTag/NAME`, and their names, `aws:TagKeys`.
    Tags(&'a [kms::Tag]),
}

impl Brought<'_> {
    /// Adds the values of the condition key that is asked for, if it is this
    /// member's.
    pub(super) fn values(&self, asked: &str, add: &mut impl FnMut(String)) {
        match &self.value {
            Value::Text(text) if asked.eq_ignore_ascii_case(self.key) => add(text.to_string()),
            Value::Texts(texts) if asked.eq_ignore_ascii_case(self.key) => {
                texts.iter().for_each(|text| add(text.to_string()));
            }
            Value::Text(_) | Value::Texts(_) => (),
            Value::Map(map) => {
                if let Some(name) = in_family(asked, self.key, ':') {
                    let named = map.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
                    named.for_each(|(_, value)| add(value.clone()));
                } else if asked.strip_suffix("Keys").is_some_and(|of| of.eq_ignore_ascii_case(self.key)) {
                    map.keys().for_each(|key| add(key.clone()));
                }
            }
            Value::Tags(tags) => {
                let tags =
                    tags.iter().filter_map(|tag| Some((tag.tag_key.as_ref()?, tag.tag_value.as_ref()?)));
                if let Some(name) = in_family(asked, self.key, '/') {
                    let named = tags.filter(|(key, _)| key.eq_ignore_ascii_case(name));
                    named.for_each(|(_, value)| add(value.clone()));
                } else if asked.eq_ignore_ascii_case("aws:TagKeys") {
                    tags.for_each(|(key, _)| add(key.clone()));
                }
            }
        }
    }

    /// The encryption context, if it is that and brought to this action.
    pub fn encryption_context(&self, action: &str) -> Option<&HashMap<String, String>> {
        match &self.value {
            Value::Map(map) if self.key == "kms:EncryptionContext" && self.is_for(action) => Some(map),
            _ => None,
        }
    }

    /// Whether it is brought to this action.
    pub(super) fn is_for(&self, action: &str) -> bool {
        self.action.is_none_or(|only| only == action)
    }
}

/// The name within a family of keys, `Department` of `aws:RequestTag/Department`.
pub(super) fn in_family<'k>(asked: &'k str, family: &str, separator: char) -> Option<&'k str> {
    let (name, rest) = asked.split_at_checked(family.len())?;
    name.eq_ignore_ascii_case(family).then(|| rest.strip_prefix(separator))?
}

/// A time as conditions compare it.
pub fn time_text(time: &prost_types::Timestamp) -> String {
    jiff::Timestamp::new(time.seconds, time.nanos).map(|time| time.to_string()).unwrap_or_default()
}
