//! EventBridge's event patterns: which events a rule, a metric filter or a
//! subscriber wants. Pure: a pattern and an event in, yes or no out.
//!
//! As in EventBridge a pattern has the form of the events that it matches: all
//! of its fields must match, each of them by one of its values. A dot in a
//! field's name is the step to a field below. Fields that lie in one list of the
//! event must match in the same element of it.
//!
//! ```text
//! {"source": ["aws.kms"], "detail": {"$or": [{"errorCode": [{"prefix": "Access"}]}, {"readOnly": [false]}]}}
//!      └──────────────────────────┬ one Alternative for each way through the $or
//!                                 └ a tree of fields, matchers at its leaves
//! ```

mod matcher;
mod wildcard;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use matcher::Matcher;
pub use wildcard::Wildcard;

/// Longest text of a pattern.
pub const PATTERN_BYTES_MAX: usize = 16 * 1024;
/// Ways through all `$or` of a pattern.
const ALTERNATIVES_MAX: usize = 1_000;
/// What makes of an `$or` a field's name, because it was one before there was `$or`.
const RESERVED: [&str; 10] = [
    "exactly",
    "prefix",
    "suffix",
    "numeric",
    "anything-but",
    "exists",
    "cidr",
    "equals-ignore-case",
    "wildcard",
    "version",
];

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl PatternError {
    /// An error of this text.
    pub fn new(problem: impl Into<String>) -> Self {
        PatternError(problem.into())
    }

    fn at(path: &[&str], problem: impl std::fmt::Display) -> Self {
        match path {
            [] => PatternError(format!("the pattern {problem}")),
            path => PatternError(format!("{} {problem}", path.join("."))),
        }
    }
}

/// An event pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// One of them must match.
    alternatives: Vec<Field>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.alternatives == other.alternatives
    }
}

/// What is asked of a field of the event, and of those below it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Field {
    /// One of them must match.
    leaf: Option<Leaf>,
    /// All of them must match.
    below: BTreeMap<String, Field>,
}

#[derive(Debug, Clone, PartialEq)]
struct Leaf {
    /// From the event's top.
    path: Vec<String>,
    matchers: Vec<Matcher>,
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError(format!("the pattern has more than {PATTERN_BYTES_MAX} bytes")));
        }
        let value = serde_json::from_str(text)
            .map_err(|error| PatternError(format!("the pattern is no JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(PatternError::at(&[], "must be an object"));
        };
        let alternatives = read(&fields, &[])?.iter().map(tree).collect::<Result<_, _>>()?;
        Ok(Pattern { alternatives })
    }
}

impl Pattern {
    /// Whether an event is one of those that it describes.
    pub fn matches(&self, event: &Value) -> bool {
        self.alternatives.iter().any(|alternative| alternative.matches(event, event))
    }
}

/// The leaves of one way through the pattern.
type Leaves = Vec<(Vec<String>, Vec<Matcher>)>;

/// Every way through a part of the pattern.
fn read(fields: &Map<String, Value>, path: &[&str]) -> Result<Vec<Leaves>, PatternError> {
    if fields.is_empty() {
        return Err(PatternError::at(path, "must not be empty"));
    }
    let mut ways: Vec<Leaves> = vec![Vec::new()];
    for (name, value) in fields {
        let found = match (name.as_str(), value) {
            ("$or", Value::Array(choices)) if is_or(choices) => read_or(choices, path)?,
            (name, value) => read_field(&[path, &[name]].concat(), value)?,
        };
        ways = product(ways, &found).ok_or_else(|| {
            PatternError::at(&[], format!("has more than {ALTERNATIVES_MAX} alternatives by its $or"))
        })?;
    }
    Ok(ways)
}

fn is_or(choices: &[Value]) -> bool {
    let is_choice = |choice: &Value| {
        choice.as_object().is_some_and(|fields| {
            !fields.is_empty() && !fields.keys().any(|name| RESERVED.contains(&name.as_str()))
        })
    };
    choices.len() >= 2 && choices.iter().all(is_choice)
}

fn read_or(choices: &[Value], path: &[&str]) -> Result<Vec<Leaves>, PatternError> {
    let mut ways = Vec::new();
    for choice in choices.iter().filter_map(Value::as_object) {
        ways.extend(read(choice, path)?);
    }
    Ok(ways)
}

fn read_field(path: &[&str], value: &Value) -> Result<Vec<Leaves>, PatternError> {
    match value {
        Value::Object(fields) => read(fields, path),
        Value::Array(values) if values.is_empty() => {
            Err(PatternError::at(path, "must not be an empty array"))
        }
        Value::Array(values) => {
            let matcher = |value| Matcher::read(value).map_err(|problem| PatternError::at(path, problem));
            let matchers = values.iter().map(matcher).collect::<Result<_, _>>()?;
            let steps = path.iter().flat_map(|name| name.split('.')).map(str::to_owned).collect();
            Ok(vec![vec![(steps, matchers)]])
        }
        _ => Err(PatternError::at(path, "must be an object or an array")),
    }
}

fn product(left: Vec<Leaves>, right: &[Leaves]) -> Option<Vec<Leaves>> {
    if left.len().checked_mul(right.len())? > ALTERNATIVES_MAX {
        return None;
    }
    let join = |a: &Leaves| right.iter().map(|b| [a.as_slice(), b.as_slice()].concat()).collect::<Vec<_>>();
    Some(left.iter().flat_map(join).collect())
}

fn tree(leaves: &Leaves) -> Result<Field, PatternError> {
    let mut root = Field::default();
    for (path, matchers) in leaves {
        let mut field = &mut root;
        for step in path {
            field = field.below.entry(step.clone()).or_default();
        }
        if field.leaf.is_some() {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            return Err(PatternError::at(&path, "is asked for twice"));
        }
        field.leaf = Some(Leaf { path: path.clone(), matchers: matchers.clone() });
    }
    Ok(root)
}

impl Field {
    /// Whether this part of an event matches.
    fn matches(&self, value: &Value, event: &Value) -> bool {
        match value {
            Value::Array(elements) if elements.is_empty() => self.is_absent(event),
            Value::Array(elements) => elements.iter().any(|element| self.matches(element, event)),
            _ => {
                self.leaf.as_ref().is_none_or(|leaf| leaf.matches(value, event))
                    && self.below.iter().all(|(name, field)| field.matches_in(name, value, event))
            }
        }
    }

    /// The same of the field of this name in an object, whose names may have
    /// dots themselves: `a.b` is the field `b` below `a` too.
    fn matches_in(&self, name: &str, parent: &Value, event: &Value) -> bool {
        let Value::Object(members) = parent else { return self.is_absent(event) };
        if let Some(value) = members.get(name) {
            return self.matches(value, event);
        }
        let mut found = false;
        for (member, value) in members {
            let Some(rest) = member.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            found = true;
            let only = Value::Object([(rest.to_owned(), value.clone())].into_iter().collect());
            if self.matches(&only, event) {
                return true;
            }
        }
        !found && self.is_absent(event)
    }

    /// Whether it matches where there is nothing.
    fn is_absent(&self, event: &Value) -> bool {
        self.leaf.as_ref().is_none_or(|leaf| leaf.is_absent(event))
            && self.below.values().all(|field| field.is_absent(event))
    }
}

impl Leaf {
    fn matches(&self, value: &Value, event: &Value) -> bool {
        self.matchers.iter().any(|matcher| matcher.matches(value)) || self.is_absent(event)
    }

    /// Only leaves exist: neither objects nor lists without any do.
    fn is_absent(&self, event: &Value) -> bool {
        self.matchers.contains(&Matcher::Absent) && !exists(event, &self.path)
    }
}

fn exists(value: &Value, path: &[String]) -> bool {
    match (value, path.split_first()) {
        (Value::Array(elements), _) => elements.iter().any(|element| exists(element, path)),
        (Value::Object(members), Some((name, rest))) => {
            members.get(name).is_some_and(|value| exists(value, rest))
        }
        (Value::Object(_), None) | (_, Some(_)) => false,
        (_, None) => true,
    }
}

#[cfg(test)]
#[path = "pattern/tests.rs"]
mod tests;
