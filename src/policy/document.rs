//! Policy documents: from JSON to statements that are ready to be evaluated.
//!
//! Whatever is not understood makes the document invalid: an element that were
//! ignored could be the one that was meant to forbid.

use std::fmt;

use super::condition::Condition;
use super::json::Json;
use super::pattern::{Compare, Pattern, Syntax};
use super::principal::{Principals, Reach};
use super::request::{PrincipalRef, Request};
use super::truth::Truth;
use crate::error::{Error, Exception};

/// The largest policy document: KMS's limit for key policies, which we apply to
/// identity policies too.
pub const POLICY_LIMIT_BYTES: usize = 32_768;

/// A valid policy document.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(super) statements: Box<[Statement]>,
    context_keys: Box<[Box<str>]>,
}

/// Why a document is not a valid policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyError {
    /// It has more than [`POLICY_LIMIT_BYTES`]: LimitExceededException.
    TooLarge {
        /// How many it has.
        size_bytes: usize,
    },
    /// Where and what is wrong: MalformedPolicyDocumentException.
    Malformed(String),
}

impl Policy {
    /// Parses a key policy, whose statements all name principals.
    pub fn parse_key_policy(json: &str) -> Result<Policy, PolicyError> {
        Self::parse(json, Attached::ToKey)
    }

    /// Parses an identity policy, whose statements name none: it is about the
    /// principal that has it.
    pub fn parse_identity_policy(json: &str) -> Result<Policy, PolicyError> {
        Self::parse(json, Attached::ToPrincipal)
    }

    /// The condition keys that its conditions and variables read from the
    /// context of a request, each as written and perhaps several times. A key
    /// that the daemon never fills is absent when the policy is evaluated.
    pub fn context_keys(&self) -> impl Iterator<Item = &str> {
        self.context_keys.iter().map(|key| &**key)
    }

    fn parse(json: &str, attached: Attached) -> Result<Policy, PolicyError> {
        if json.len() > POLICY_LIMIT_BYTES {
            return Err(PolicyError::TooLarge { size_bytes: json.len() });
        }
        let document = serde_json::from_str(json).map_err(|error| error.to_string());
        let statements = document.and_then(|document| parse_document(&document, attached));
        let statements = statements.map_err(PolicyError::Malformed)?;
        let context_keys = statements.iter().flat_map(Statement::context_keys).map(Into::into).collect();
        Ok(Policy { statements, context_keys })
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyError::TooLarge { size_bytes } => {
                write!(f, "The policy has {size_bytes} bytes; the limit is {POLICY_LIMIT_BYTES}.")
            }
            PolicyError::Malformed(problem) => f.write_str(problem),
        }
    }
}

impl std::error::Error for PolicyError {}

impl From<PolicyError> for Error {
    fn from(error: PolicyError) -> Error {
        let exception = match error {
            PolicyError::TooLarge { .. } => Exception::LimitExceeded,
            PolicyError::Malformed(_) => Exception::MalformedPolicyDocument,
        };
        Error::new(exception, error.to_string())
    }
}

/// What a policy belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Attached {
    ToKey,
    ToPrincipal,
}

/// One statement.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) sid: Option<Box<str>>,
    pub(super) effect: Effect,
    /// None in an identity policy.
    principals: Option<Principals>,
    actions: Choice,
    resources: Choice,
    conditions: Box<[Condition]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
}

/// Action or Resource; NotAction or NotResource.
#[derive(Debug, Clone)]
struct Choice {
    negated: bool,
    patterns: Box<[Pattern]>,
}

impl Statement {
    /// How far it reaches the caller; an identity policy's reaches its own.
    pub(super) fn reach(&self, caller: &PrincipalRef<'_>) -> Reach {
        self.principals.as_ref().map_or(Reach::Itself, |principals| principals.reach(caller))
    }

    /// Whether it speaks of this request, its principals apart: an Allow only
    /// where that is certain, a Deny also where it cannot be told.
    pub(super) fn applies(&self, request: &Request<'_>) -> bool {
        let parts = [
            self.actions.covers(request.action, Compare::IgnoringCase, request),
            self.resources.covers(request.resource, Compare::Exactly, request),
        ];
        let covered = Truth::all(parts);
        let truth = match covered {
            Truth::False => covered,
            _ => covered.min(Truth::all(self.conditions.iter().map(|condition| condition.holds(request)))),
        };
        match self.effect {
            Effect::Allow => truth == Truth::True,
            Effect::Deny => truth != Truth::False,
        }
    }

    fn context_keys(&self) -> impl Iterator<Item = &str> {
        let patterns = self.resources.patterns.iter().flat_map(Pattern::context_keys);
        patterns.chain(self.conditions.iter().flat_map(Condition::context_keys))
    }
}

impl Choice {
    /// A variable without a value does not match, as AWS has it; whether it
    /// lies outside a NotResource cannot be told.
    fn covers(&self, input: &str, compare: Compare, request: &Request<'_>) -> Truth {
        let matched = Truth::any(self.patterns.iter().map(|one| one.matches(input, compare, request)));
        if self.negated { !matched } else { matched.certainly() }
    }
}

fn parse_document(document: &Json, attached: Attached) -> Result<Box<[Statement]>, String> {
    let members = document.object().ok_or("A policy is a JSON object")?;
    let mut variables = false;
    let mut statements: Option<&[Json]> = None;
    for (name, value) in members {
        match (name.as_str(), value) {
            ("Version", Json::Text(version)) if version == "2012-10-17" => variables = true,
            ("Version", Json::Text(version)) if version == "2008-10-17" => variables = false,
            ("Version", _) => return Err("Version is neither \"2012-10-17\" nor \"2008-10-17\"".to_owned()),
            ("Id", Json::Text(_)) => {}
            ("Id", _) => return Err("Id is not a string".to_owned()),
            ("Statement", Json::List(list)) => statements = Some(list),
            ("Statement", one @ Json::Object(_)) => statements = Some(std::slice::from_ref(one)),
            ("Statement", _) => return Err("Statement is neither an object nor a list of them".to_owned()),
            _ => return Err(format!("unknown element \"{name}\"")),
        }
    }
    match statements {
        None => Err("Statement is missing".to_owned()),
        Some([]) => Err("Statement is empty".to_owned()),
        Some(list) => (1..)
            .zip(list)
            .map(|(number, statement)| {
                let parsed = parse_statement(statement, attached, variables);
                parsed.map_err(|problem| format!("Statement {number}: {problem}"))
            })
            .collect(),
    }
}

fn parse_statement(statement: &Json, attached: Attached, variables: bool) -> Result<Statement, String> {
    let members = statement.object().ok_or("is not an object")?;
    let mut sid = None;
    let mut effect = None;
    let mut principals = None;
    let mut actions = None;
    let mut resources = None;
    let mut conditions = Box::default();
    for (name, value) in members {
        let within = |problem: String| format!("{name}: {problem}");
        match name.as_str() {
            "Sid" => sid = Some(parse_sid(value).map_err(within)?),
            "Effect" => effect = Some(parse_effect(value).map_err(within)?),
            "Principal" | "NotPrincipal" if attached == Attached::ToPrincipal => {
                return Err(format!("{name} does not belong in an identity policy"));
            }
            "Principal" | "NotPrincipal" => {
                let parsed = Principals::parse(value, name == "NotPrincipal").map_err(within)?;
                once(&mut principals, parsed, "Principal")?;
            }
            "Action" | "NotAction" => {
                let parsed = Choice::parse(value, name == "NotAction", parse_action).map_err(within)?;
                once(&mut actions, parsed, "Action")?;
            }
            "Resource" | "NotResource" => {
                let parse = |text: &str| parse_resource(text, variables);
                let parsed = Choice::parse(value, name == "NotResource", parse).map_err(within)?;
                once(&mut resources, parsed, "Resource")?;
            }
            "Condition" => conditions = parse_conditions(value, variables).map_err(within)?,
            _ => return Err(format!("unknown element \"{name}\"")),
        }
    }
    let effect = effect.ok_or("Effect is missing")?;
    match &principals {
        None if attached == Attached::ToKey => return Err("Principal is missing".to_owned()),
        // AWS: "Using it with Allow is not supported."
        Some(Principals::AllBut(_)) if effect == Effect::Allow => {
            return Err("NotPrincipal needs the Effect \"Deny\"".to_owned());
        }
        _ => {}
    }
    Ok(Statement {
        sid,
        effect,
        principals,
        actions: actions.ok_or("Action is missing")?,
        resources: resources.ok_or("Resource is missing")?,
        conditions,
    })
}

/// Refuses Principal next to NotPrincipal, and so on.
fn once<T>(slot: &mut Option<T>, value: T, name: &str) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{name} and Not{name} exclude each other")),
    }
}

fn parse_sid(value: &Json) -> Result<Box<str>, String> {
    match value {
        Json::Text(sid) => Ok(sid.as_str().into()),
        _ => Err("is not a string".to_owned()),
    }
}

fn parse_effect(value: &Json) -> Result<Effect, String> {
    match value {
        Json::Text(effect) if effect == "Allow" => Ok(Effect::Allow),
        Json::Text(effect) if effect == "Deny" => Ok(Effect::Deny),
        _ => Err("is neither \"Allow\" nor \"Deny\"".to_owned()),
    }
}

impl Choice {
    fn parse(
        value: &Json,
        negated: bool,
        parse: impl Fn(&str) -> Result<Pattern, String>,
    ) -> Result<Self, String> {
        let texts = value.strings().ok_or("is a string or a list of strings")?;
        let patterns = texts.into_iter().map(parse).collect::<Result<Box<[_]>, _>>()?;
        match patterns.is_empty() {
            true => Err("is empty".to_owned()),
            false => Ok(Choice { negated, patterns }),
        }
    }
}

/// `*`, or `service:Name` with wildcards in the name.
fn parse_action(text: &str) -> Result<Pattern, String> {
    let valid = text == "*"
        || text.split_once(':').is_some_and(|(service, name)| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"*?-_".contains(&byte);
            !service.is_empty() && service.bytes().all(plain) && !name.is_empty() && name.bytes().all(in_name)
        });
    match valid {
        true => Pattern::parse(text, Syntax { wildcards: true, variables: false }),
        false => Err(format!("\"{text}\" is not an action of the form service:Name")),
    }
}

/// `*`, or an ARN with wildcards and variables.
fn parse_resource(text: &str, variables: bool) -> Result<Pattern, String> {
    match text == "*" || text.starts_with("arn:") {
        true => Pattern::parse(text, Syntax { wildcards: true, variables }),
        false => Err(format!("\"{text}\" is neither an ARN nor \"*\"")),
    }
}

fn parse_conditions(value: &Json, variables: bool) -> Result<Box<[Condition]>, String> {
    let mut conditions = Vec::new();
    for (operator, keys) in value.object().ok_or("is not an object")? {
        let keys = keys.object().ok_or_else(|| format!("{operator}: is not an object"))?;
        for (key, values) in keys {
            conditions.push(Condition::parse(operator, key, values, variables)?);
        }
    }
    Ok(conditions.into())
}
