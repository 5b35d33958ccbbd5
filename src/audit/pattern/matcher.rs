//! What a pattern asks of one value.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::wildcard::Wildcard;

/// The greatest number that is compared, and its negative the least.
const NUMBER_MAX: f64 = 5_000_000_000.0;

/// One of a field's values in a pattern.
#[derive(Debug, Clone, PartialEq)]
pub enum Matcher {
    /// This value; numbers by what they are worth.
    Equals(Value),
    /// A text.
    Text(TextMatcher),
    /// A number in a range.
    Numeric(Range),
    /// An address in a network.
    Cidr(Network),
    /// Any value.
    Present,
    /// No value.
    Absent,
    /// A value that is none of these.
    NotEquals(Vec<Value>),
    /// A value that is no such text.
    NotText(Vec<TextMatcher>),
}

/// What a text must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatcher {
    /// It begins so.
    Prefix(String),
    /// It begins so; letters in lower case.
    PrefixIgnoreCase(String),
    /// It ends so.
    Suffix(String),
    /// It ends so; letters in lower case.
    SuffixIgnoreCase(String),
    /// It is this; letters in lower case.
    EqualsIgnoreCase(String),
    /// It is like this.
    Wildcard(Wildcard),
}

/// Bounds and whether they are in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    low: Option<(f64, bool)>,
    high: Option<(f64, bool)>,
}

/// Addresses that have the first bits of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

type Problem = String;

impl Matcher {
    /// Reads one of a field's values in a pattern.
    ///
    /// # Errors
    /// What is wrong, a text that follows the field's name.
    pub fn read(value: &Value) -> Result<Matcher, Problem> {
        match value {
            Value::Object(operator) => Self::operator(operator),
            Value::Array(_) => Err("has an array in an array".into()),
            value => Ok(Matcher::Equals(value.clone())),
        }
    }

    fn operator(operator: &Map<String, Value>) -> Result<Matcher, Problem> {
        let mut entries = operator.iter();
        let (Some((name, value)), None) = (entries.next(), entries.next()) else {
            return Err("has an object that is not exactly one operator".into());
        };
        match (name.as_str(), value) {
            ("exists", Value::Bool(true)) => Ok(Matcher::Present),
            ("exists", Value::Bool(false)) => Ok(Matcher::Absent),
            ("exists", _) => Err("has an exists that is neither true nor false".into()),
            ("exactly", Value::String(_)) => Ok(Matcher::Equals(value.clone())),
            ("numeric", Value::Array(terms)) => Range::read(terms).map(Matcher::Numeric),
            ("numeric", _) => Err("has a numeric that is not an array".into()),
            ("cidr", Value::String(text)) => Network::read(text).map(Matcher::Cidr),
            ("anything-but", but) => Self::anything_but(but),
            (name, value) => TextMatcher::read(name, value).map(Matcher::Text),
        }
    }

    fn anything_but(but: &Value) -> Result<Matcher, Problem> {
        let values = match but {
            Value::Object(operator) => return Self::no_such_text(operator),
            Value::Array(values) => values.clone(),
            value => vec![value.clone()],
        };
        let all = |is: fn(&Value) -> bool| !values.is_empty() && values.iter().all(is);
        if all(Value::is_string) || all(Value::is_number) || all(Value::is_boolean) || all(Value::is_null) {
            return Ok(Matcher::NotEquals(values));
        }
        Err("has an anything-but that is neither a text, texts, a number, numbers nor one operator".into())
    }

    fn no_such_text(operator: &Map<String, Value>) -> Result<Matcher, Problem> {
        const KNOWN: [&str; 4] = ["prefix", "suffix", "equals-ignore-case", "wildcard"];
        let mut entries = operator.iter();
        let (Some((name, value)), None) = (entries.next(), entries.next()) else {
            return Err("has an anything-but that is not exactly one operator".into());
        };
        if !KNOWN.contains(&name.as_str()) {
            return Err(format!("has an anything-but with {name}, where only {} may be", KNOWN.join(", ")));
        }
        let texts = match value {
            Value::Array(texts) if !texts.is_empty() => texts.clone(),
            text => vec![text.clone()],
        };
        if texts.iter().any(|text| text == "") {
            return Err(format!("has an empty {name} in an anything-but"));
        }
        texts.iter().map(|text| TextMatcher::read(name, text)).collect::<Result<_, _>>().map(Matcher::NotText)
    }

    /// Whether a value is such a one; an object is none.
    pub fn matches(&self, value: &Value) -> bool {
        if value.is_object() || value.is_array() {
            return false;
        }
        match self {
            Matcher::Equals(wanted) => is_same(wanted, value),
            Matcher::Text(text) => value.as_str().is_some_and(|value| text.matches(value)),
            Matcher::Numeric(range) => value.as_f64().is_some_and(|number| range.contains(number)),
            Matcher::Cidr(network) => {
                value.as_str().and_then(|text| text.parse().ok()).is_some_and(|ip| network.contains(ip))
            }
            Matcher::Present => true,
            Matcher::Absent => false,
            Matcher::NotEquals(unwanted) => !unwanted.iter().any(|unwanted| is_same(unwanted, value)),
            Matcher::NotText(unwanted) => {
                !value.as_str().is_some_and(|value| unwanted.iter().any(|unwanted| unwanted.matches(value)))
            }
        }
    }
}

/// 300, 300.0 and 3.0e2 are the same.
fn is_same(wanted: &Value, value: &Value) -> bool {
    match (wanted.as_f64(), value.as_f64()) {
        (Some(wanted), Some(value)) => wanted == value,
        _ => wanted == value,
    }
}

impl TextMatcher {
    fn read(name: &str, value: &Value) -> Result<TextMatcher, Problem> {
        let folded = match value {
            Value::Object(inner) if inner.len() == 1 => {
                inner.get("equals-ignore-case").and_then(Value::as_str)
            }
            _ => None,
        };
        Ok(match (name, value, folded) {
            ("prefix", Value::String(text), _) => TextMatcher::Prefix(text.clone()),
            ("suffix", Value::String(text), _) => TextMatcher::Suffix(text.clone()),
            ("prefix", _, Some(text)) => TextMatcher::PrefixIgnoreCase(text.to_lowercase()),
            ("suffix", _, Some(text)) => TextMatcher::SuffixIgnoreCase(text.to_lowercase()),
            ("equals-ignore-case", Value::String(text), _) => {
                TextMatcher::EqualsIgnoreCase(text.to_lowercase())
            }
            ("wildcard", Value::String(text), _) => TextMatcher::Wildcard(Wildcard::escaped(text)?),
            ("prefix" | "suffix" | "equals-ignore-case" | "wildcard" | "cidr" | "exactly", ..) => {
                return Err(format!("has a {name} that is not a text"));
            }
            (name, ..) => return Err(format!("has the operator {name}, which does not exist")),
        })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            TextMatcher::Prefix(prefix) => text.starts_with(prefix.as_str()),
            TextMatcher::PrefixIgnoreCase(prefix) => text.to_lowercase().starts_with(prefix.as_str()),
            TextMatcher::Suffix(suffix) => text.ends_with(suffix.as_str()),
            TextMatcher::SuffixIgnoreCase(suffix) => text.to_lowercase().ends_with(suffix.as_str()),
            TextMatcher::EqualsIgnoreCase(wanted) => text.to_lowercase() == *wanted,
            TextMatcher::Wildcard(wildcard) => wildcard.matches(text),
        }
    }
}

impl Range {
    /// `["=", 5]`, `["<", 10]`, `[">", 0, "<=", 5]`.
    fn read(terms: &[Value]) -> Result<Range, Problem> {
        let term = |operator: &Value, number: &Value| -> Result<(String, f64), Problem> {
            let operator = operator.as_str().ok_or("has a numeric whose operator is not a text")?;
            let number = number.as_f64().ok_or("has a numeric whose value is not a number")?;
            if number.abs() > NUMBER_MAX {
                return Err("has a numeric beyond -5.0e9 and 5.0e9".into());
            }
            Ok((operator.to_owned(), number))
        };
        let range = match terms {
            [operator, number] => match term(operator, number)? {
                (equal, value) if equal == "=" => {
                    Range { low: Some((value, true)), high: Some((value, true)) }
                }
                (operator, value) => match (Self::low(&operator, value), Self::high(&operator, value)) {
                    (None, None) => {
                        return Err(format!("has the numeric operator {operator}, which does not exist"));
                    }
                    (low, high) => Range { low, high },
                },
            },
            [operator, number, second, limit] => {
                let ((from, least), (to, most)) = (term(operator, number)?, term(second, limit)?);
                let range = Range { low: Self::low(&from, least), high: Self::high(&to, most) };
                if range.low.is_none() || range.high.is_none() {
                    return Err("has a numeric range that is not > or >=, then < or <=".into());
                }
                if least >= most {
                    return Err("has a numeric range whose bottom is not less than its top".into());
                }
                range
            }
            _ => return Err("has a numeric that is not one or two operators, each with a number".into()),
        };
        Ok(range)
    }

    fn low(operator: &str, value: f64) -> Option<(f64, bool)> {
        match operator {
            ">" => Some((value, false)),
            ">=" => Some((value, true)),
            _ => None,
        }
    }

    fn high(operator: &str, value: f64) -> Option<(f64, bool)> {
        match operator {
            "<" => Some((value, false)),
            "<=" => Some((value, true)),
            _ => None,
        }
    }

    fn contains(&self, number: f64) -> bool {
        self.low.is_none_or(|(low, included)| number > low || included && number == low)
            && self.high.is_none_or(|(high, included)| number < high || included && number == high)
    }
}

impl Network {
    fn read(text: &str) -> Result<Network, Problem> {
        let problem = || format!("has the cidr {text}, which is not ADDRESS/BITS");
        let (address, bits) = text.split_once('/').ok_or_else(problem)?;
        let network = Network {
            address: address.parse().map_err(|_| problem())?,
            bits: bits.parse().map_err(|_| problem())?,
        };
        let most = if network.address.is_ipv4() { 32 } else { 128 };
        if network.bits > most { Err(problem()) } else { Ok(network) }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= self.bits
    }
}
