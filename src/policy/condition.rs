//! Conditions: operators, and how they read the values of a request.
//!
//! An operator that is not in the table makes the policy invalid.

use std::cmp::Ordering;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::json::Json;
use super::pattern::{Compare, Pattern, Syntax};
use super::request::{ConditionKey, Request};
use super::truth::Truth;
use super::value::{Decimal, Network, parse_bool, parse_date};

/// One operator on one key, with the values of the policy: one of them must
/// match, or, for a negated operator, none.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    key: ConditionKey,
    quantifier: Quantifier,
    /// …IfExists: true of an absent key.
    if_exists: bool,
    negated: bool,
    test: Test,
}

/// Which of the request's values have to pass.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Quantifier {
    /// The one value that there is.
    Single,
    ForAllValues,
    ForAnyValue,
}

/// What is compared, with the values of the policy.
#[derive(Debug, Clone)]
enum Test {
    Text(Compare, Box<[Pattern]>),
    Number(Relation, Box<[Decimal]>),
    Date(Relation, Box<[Timestamp]>),
    Bool(Box<[bool]>),
    /// Canonical base64, of which each value has only one.
    Binary(Box<[String]>),
    Address(Box<[Network]>),
    /// Whether the key is absent.
    Null(Box<[bool]>),
}

#[derive(Debug, Clone, Copy)]
enum Relation {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Condition {
    /// Parses one key of one operator.
    pub(super) fn parse(operator: &str, key: &str, values: &Json, variables: bool) -> Result<Self, String> {
        let parsed = Operator::parse(operator).ok_or_else(|| format!("unknown operator \"{operator}\""))?;
        let within = |problem: String| format!("{operator}: {problem}");
        let condition_key = ConditionKey::parse(key).map_err(within)?;
        let within = |problem: String| format!("{operator}: {key}: {problem}");
        let test = texts(values).and_then(|texts| Test::parse(parsed.kind, &texts, variables));
        Ok(Condition {
            key: condition_key,
            quantifier: parsed.quantifier,
            if_exists: parsed.if_exists,
            negated: parsed.negated,
            test: test.map_err(within)?,
        })
    }

    /// Whether the request meets it.
    ///
    /// Several values where the operator has no ForAllValues or ForAnyValue are
    /// Unknown: AWS leaves open what that means.
    pub(super) fn holds(&self, request: &Request<'_>) -> Truth {
        let mut values = request.values(&self.key).peekable();
        let absent = values.peek().is_none();
        if let Test::Null(wanted) = &self.test {
            return Truth::from(wanted.contains(&absent));
        }
        if absent {
            return Truth::from(match self.quantifier {
                _ if self.if_exists => true,
                Quantifier::Single => self.negated,
                Quantifier::ForAllValues => true,
                Quantifier::ForAnyValue => false,
            });
        }
        let mut each = values.map(|value| self.passes(value, request));
        match self.quantifier {
            Quantifier::Single => match (each.next(), each.next()) {
                (Some(truth), None) => truth,
                _ => Truth::Unknown,
            },
            Quantifier::ForAllValues => Truth::all(each),
            Quantifier::ForAnyValue => Truth::any(each),
        }
    }

    /// The context keys that it reads.
    pub(super) fn context_keys(&self) -> impl Iterator<Item = &str> {
        let patterns: &[Pattern] = match &self.test {
            Test::Text(_, patterns) => patterns,
            _ => &[],
        };
        self.key.context_name().into_iter().chain(patterns.iter().flat_map(Pattern::context_keys))
    }

    /// A value that cannot be read does not match, as AWS has it; whether it
    /// differs cannot be told.
    fn passes(&self, value: &str, request: &Request<'_>) -> Truth {
        let matched = self.test.matches(value, request);
        if self.negated { !matched } else { matched.certainly() }
    }
}

impl Test {
    fn parse(kind: Kind, texts: &[&str], variables: bool) -> Result<Self, String> {
        let patterns = |wildcards: bool| {
            let syntax = Syntax { wildcards, variables };
            texts.iter().map(|text| Pattern::parse(text, syntax)).collect::<Result<Box<[_]>, _>>()
        };
        Ok(match kind {
            Kind::Text { compare, wildcards } => Test::Text(compare, patterns(wildcards)?),
            Kind::Arn => {
                let arns = patterns(true)?;
                if let Some((text, _)) = texts.iter().zip(&arns).find(|(_, arn)| !arn.may_begin_with("arn:"))
                {
                    return Err(format!("\"{text}\" is not an ARN"));
                }
                Test::Text(Compare::AsArn, arns)
            }
            Kind::Number(relation) => Test::Number(relation, each(texts, "a number", Decimal::parse)?),
            Kind::Date(relation) => Test::Date(relation, each(texts, "a date", parse_date)?),
            Kind::Bool => Test::Bool(each(texts, "true or false", parse_bool)?),
            Kind::Null => Test::Null(each(texts, "true or false", parse_bool)?),
            Kind::Binary => Test::Binary(each(texts, "base64", |text| {
                STANDARD.decode(text).is_ok().then(|| text.to_owned())
            })?),
            Kind::Address => Test::Address(each(texts, "an IP address or range", Network::parse)?),
        })
    }

    /// Whether one of the policy's values matches. Unknown for a value that is
    /// not of the operator's type.
    fn matches(&self, value: &str, request: &Request<'_>) -> Truth {
        match self {
            Test::Text(compare, patterns) => {
                Truth::any(patterns.iter().map(|pattern| pattern.matches(value, *compare, request)))
            }
            Test::Number(relation, wanted) => {
                any(Decimal::parse(value), wanted, |number, wanted| relation.admits(number.cmp(wanted)))
            }
            Test::Date(relation, wanted) => {
                any(parse_date(value), wanted, |date, wanted| relation.admits(date.cmp(wanted)))
            }
            Test::Bool(wanted) => any(parse_bool(value), wanted, |one, other| one == other),
            Test::Binary(wanted) => any(Some(value), wanted, |one, other| one == other),
            Test::Address(wanted) => {
                any(value.parse::<IpAddr>().ok(), wanted, |address, network| network.contains(*address))
            }
            Test::Null(_) => Truth::Unknown,
        }
    }
}

impl Relation {
    fn admits(self, order: Ordering) -> bool {
        match self {
            Relation::Equal => order.is_eq(),
            Relation::Less => order.is_lt(),
            Relation::LessOrEqual => order.is_le(),
            Relation::Greater => order.is_gt(),
            Relation::GreaterOrEqual => order.is_ge(),
        }
    }
}

/// What an operator's name says.
struct Operator {
    quantifier: Quantifier,
    if_exists: bool,
    negated: bool,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Text { compare: Compare, wildcards: bool },
    Arn,
    Number(Relation),
    Date(Relation),
    Bool,
    Binary,
    Address,
    Null,
}

impl Operator {
    fn parse(name: &str) -> Option<Self> {
        let (quantifier, name) = match name.split_once(':') {
            None => (Quantifier::Single, name),
            Some(("ForAllValues", name)) => (Quantifier::ForAllValues, name),
            Some(("ForAnyValue", name)) => (Quantifier::ForAnyValue, name),
            Some(_) => return None,
        };
        let (if_exists, name) = match name.strip_suffix("IfExists") {
            Some(name) => (true, name),
            None => (false, name),
        };
        let (kind, negated) = kind_of(name)?;
        let plain = quantifier == Quantifier::Single && !if_exists;
        (plain || !matches!(kind, Kind::Null)).then_some(Operator { quantifier, if_exists, negated, kind })
    }
}

/// The table of operators, and whether each is negated.
fn kind_of(name: &str) -> Option<(Kind, bool)> {
    let exact = Kind::Text { compare: Compare::Exactly, wildcards: false };
    let any_case = Kind::Text { compare: Compare::IgnoringCase, wildcards: false };
    let like = Kind::Text { compare: Compare::Exactly, wildcards: true };
    Some(match name {
        "StringEquals" => (exact, false),
        "StringNotEquals" => (exact, true),
        "StringEqualsIgnoreCase" => (any_case, false),
        "StringNotEqualsIgnoreCase" => (any_case, true),
        "StringLike" => (like, false),
        "StringNotLike" => (like, true),
        "NumericEquals" => (Kind::Number(Relation::Equal), false),
        "NumericNotEquals" => (Kind::Number(Relation::Equal), true),
        "NumericLessThan" => (Kind::Number(Relation::Less), false),
        "NumericLessThanEquals" => (Kind::Number(Relation::LessOrEqual), false),
        "NumericGreaterThan" => (Kind::Number(Relation::Greater), false),
        "NumericGreaterThanEquals" => (Kind::Number(Relation::GreaterOrEqual), false),
        "DateEquals" => (Kind::Date(Relation::Equal), false),
        "DateNotEquals" => (Kind::Date(Relation::Equal), true),
        "DateLessThan" => (Kind::Date(Relation::Less), false),
        "DateLessThanEquals" => (Kind::Date(Relation::LessOrEqual), false),
        "DateGreaterThan" => (Kind::Date(Relation::Greater), false),
        "DateGreaterThanEquals" => (Kind::Date(Relation::GreaterOrEqual), false),
        "Bool" => (Kind::Bool, false),
        "BinaryEquals" => (Kind::Binary, false),
        "IpAddress" => (Kind::Address, false),
        "NotIpAddress" => (Kind::Address, true),
        // ArnEquals and ArnLike are one and the same.
        "ArnEquals" | "ArnLike" => (Kind::Arn, false),
        "ArnNotEquals" | "ArnNotLike" => (Kind::Arn, true),
        "Null" => (Kind::Null, false),
        _ => return None,
    })
}

/// The values of a condition: text, number or bool, one or a list of them.
fn texts(values: &Json) -> Result<Vec<&str>, String> {
    fn text(value: &Json) -> Option<&str> {
        match value {
            Json::Text(text) | Json::Number(text) => Some(text),
            Json::Bool(flag) => Some(if *flag { "true" } else { "false" }),
            _ => None,
        }
    }
    let texts: Option<Vec<_>> = values.items().iter().map(text).collect();
    match texts {
        None => Err("a value is a string, a number, true or false".to_owned()),
        Some(texts) if texts.is_empty() => Err("needs a value".to_owned()),
        Some(texts) => Ok(texts),
    }
}

/// Reads each value by its type.
fn each<T>(texts: &[&str], what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Box<[T]>, String> {
    texts.iter().map(|text| parse(text).ok_or_else(|| format!("\"{text}\" is not {what}"))).collect()
}

/// Whether a value that could be read matches one of the wanted.
fn any<V, W>(value: Option<V>, wanted: &[W], matches: impl Fn(&V, &W) -> bool) -> Truth {
    match value {
        Some(value) => Truth::from(wanted.iter().any(|wanted| matches(&value, wanted))),
        None => Truth::Unknown,
    }
}
