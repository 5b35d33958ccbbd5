//! What is asked: who, what, on what, and under which circumstances.

use std::borrow::Cow;
use std::collections::HashMap;

use super::grant::Terms;

/// One question to the evaluator.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who asks.
    pub principal: PrincipalRef<'a>,
    /// The IAM action, `kms:Encrypt`.
    pub action: &'a str,
    /// The resource's ARN, or `*` for what concerns no resource. For a key it
    /// is always the key's ARN, also where the caller named an alias.
    pub resource: &'a str,
    /// The account that owns the resource, twelve digits.
    pub resource_account: &'a str,
    /// What else is known.
    pub context: &'a Context<'a>,
    /// The encryption context, which the constraints of grants ask for.
    pub encryption_context: Option<&'a HashMap<String, String>>,
    /// The grant that is to be made, where the action is kms:CreateGrant.
    pub granting: Option<&'a Terms>,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrincipalRef<'a> {
    /// `arn:aws:iam::111122223333:user/alice`,
    /// `arn:aws:sts::111122223333:assumed-role/deployer/session`, the account's
    /// `…:root`; for a service its name, `s3.amazonaws.com`.
    pub arn: &'a str,
    /// Twelve digits; empty for a service.
    pub account: &'a str,
    /// What it is.
    pub kind: CallerKind,
    /// For the session of a role, the ARN of the role.
    pub role_arn: Option<&'a str>,
}

/// What a caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallerKind {
    /// The account's root.
    Root,
    /// An IAM user.
    User,
    /// A session of a role.
    RoleSession,
    /// An AWS service by itself.
    Service,
}

/// The condition keys of a request with their values, all text: the operator of
/// a condition says how to read them. Names compare without regard to case.
///
/// The keys that follow from the principal and the resource (`aws:PrincipalArn`,
/// `aws:PrincipalAccount`, `aws:PrincipalType`, `aws:username`,
/// `aws:PrincipalIsAWSService`, `aws:PrincipalServiceName`,
/// `aws:ResourceAccount`, `kms:CallerAccount`) are always there, and are never
/// read from here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context<'a> {
    entries: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Context<'a> {
    /// An empty context. Allocates nothing.
    pub const fn new() -> Self {
        Context { entries: Vec::new() }
    }

    /// Adds a value. A key that is added several times has several values; one
    /// that is never added is absent.
    pub fn insert(&mut self, key: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) {
        self.entries.push((key.into(), value.into()));
    }

    /// The values of a key; none where it is absent.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        let same_key = move |name: &str| name.eq_ignore_ascii_case(key);
        self.entries.iter().filter(move |(name, _)| same_key(name)).map(|(_, value)| value.as_ref())
    }
}

/// A condition key, parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConditionKey {
    /// Follows from principal and resource.
    Known(KnownKey),
    /// Comes from the context.
    Other(Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownKey {
    PrincipalArn,
    PrincipalAccount,
    PrincipalType,
    Username,
    IsService,
    ServiceName,
    ResourceAccount,
    CallerAccount,
}

const KNOWN_KEYS: [(&str, KnownKey); 8] = [
    ("aws:PrincipalArn", KnownKey::PrincipalArn),
    ("aws:PrincipalAccount", KnownKey::PrincipalAccount),
    ("aws:PrincipalType", KnownKey::PrincipalType),
    ("aws:username", KnownKey::Username),
    ("aws:PrincipalIsAWSService", KnownKey::IsService),
    ("aws:PrincipalServiceName", KnownKey::ServiceName),
    ("aws:ResourceAccount", KnownKey::ResourceAccount),
    ("kms:CallerAccount", KnownKey::CallerAccount),
];

impl ConditionKey {
    /// Any `service:name` is a key: one that we never send is absent.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        let named =
            name.split_once(':').is_some_and(|(service, rest)| !service.is_empty() && !rest.is_empty());
        if !named {
            return Err(format!("\"{name}\" is not a condition key of the form service:name"));
        }
        let known = KNOWN_KEYS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        Ok(known.map_or_else(|| ConditionKey::Other(name.into()), |(_, key)| ConditionKey::Known(*key)))
    }

    /// Its name where it comes from the context.
    pub(super) fn context_name(&self) -> Option<&str> {
        match self {
            ConditionKey::Known(_) => None,
            ConditionKey::Other(name) => Some(name),
        }
    }
}

impl<'a> Request<'a> {
    pub(super) fn values(&self, key: &'a ConditionKey) -> impl Iterator<Item = &'a str> {
        let (known, other) = match key {
            ConditionKey::Known(key) => (self.known(*key), None),
            ConditionKey::Other(name) => (None, Some(self.context.values(name))),
        };
        known.into_iter().chain(other.into_iter().flatten())
    }

    fn known(&self, key: KnownKey) -> Option<&'a str> {
        let PrincipalRef { arn, account, kind, role_arn } = self.principal;
        let service = kind == CallerKind::Service;
        match key {
            KnownKey::PrincipalArn => (!service).then(|| role_arn.unwrap_or(arn)),
            KnownKey::PrincipalAccount | KnownKey::CallerAccount => (!service).then_some(account),
            KnownKey::PrincipalType => match kind {
                CallerKind::Root => Some("Account"),
                CallerKind::User => Some("User"),
                CallerKind::RoleSession => Some("AssumedRole"),
                CallerKind::Service => None,
            },
            KnownKey::Username => {
                let path_and_name = (kind == CallerKind::User).then(|| arn.rsplit_once('/'))?;
                path_and_name.map(|(_, name)| name)
            }
            KnownKey::IsService => Some(if service { "true" } else { "false" }),
            KnownKey::ServiceName => service.then_some(arn),
            KnownKey::ResourceAccount => Some(self.resource_account),
        }
    }
}
