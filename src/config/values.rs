//! Values that are checked while they are read. An error's text is what is
//! wrong and, after a semicolon, the remedy.

use std::fmt;
use std::net::SocketAddr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// An account: twelve digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct AccountId(String);

impl AccountId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AccountId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(AccountId(text))
        } else {
            Err("is not an account; write twelve digits in quotes, such as \"111122223333\"")
        }
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file's permissions, written in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(pub u32);

impl TryFrom<String> for FileMode {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(FileMode(mode)),
            _ => Err("is not a file mode; write it in octal and in quotes, such as \"0660\""),
        }
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> String {
        format!("{:04o}", mode.0)
    }
}

/// What is a Region's name here: the ones of AWS, and others of their form.
pub(super) fn region<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    check_region(&text).map_err(D::Error::custom)?;
    Ok(text)
}

/// See [`region`].
pub fn check_region(text: &str) -> Result<(), &'static str> {
    const REGION_BYTES_MAX: usize = 32;
    let words = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    if text.len() <= REGION_BYTES_MAX && text.split('-').all(words) {
        Ok(())
    } else {
        Err("is not a Region; write lower-case words with hyphens, such as us-east-1")
    }
}

/// A time: whole seconds, or a number with its unit (`"5m"`).
pub(super) mod interval {
    use std::time::Duration;

    use serde::de::{self, Deserializer, Visitor};
    use serde::ser::Serializer;

    /// In milliseconds; `ms` before `s` and `m`, whose ends they share.
    const UNITS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    /// Ten years: longer times overflow what the clock can add.
    const MS_MAX: u64 = 3_650 * 86_400_000;
    const REMEDY: &str = "is not a time from 1 ms to 3650 days; write a number with its unit, such as \"5m\"";

    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = u64::try_from(time.as_millis()).unwrap_or(MS_MAX);
        let unit = UNITS.iter().rev().find(|(_, unit)| ms % unit == 0);
        let (unit, size) = unit.copied().unwrap_or(("ms", 1));
        serializer.collect_str(&format_args!("{}{unit}", ms / size))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(Time)
    }

    struct Time;

    impl Visitor<'_> for Time {
        type Value = Duration;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a time such as \"5m\"")
        }

        fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Duration, E> {
            checked(seconds, 1_000)
        }

        fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Duration, E> {
            checked(u64::try_from(seconds).unwrap_or(0), 1_000)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (number, unit) = text.split_at(split);
            let unit = if unit.is_empty() { "s" } else { unit.trim() };
            let size = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, size)| *size);
            match (number.parse(), size) {
                (Ok(number), Some(size)) => checked(number, size),
                _ => Err(E::custom(REMEDY)),
            }
        }
    }

    fn checked<E: de::Error>(number: u64, unit: u64) -> Result<Duration, E> {
        let ms = number.checked_mul(unit).filter(|ms| (1..=MS_MAX).contains(ms));
        ms.map(Duration::from_millis).ok_or_else(|| E::custom(REMEDY))
    }
}

/// `IP:PORT`.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(|_| D::Error::custom("is not an address; write IP:PORT, such as 127.0.0.1:50051"))
}
