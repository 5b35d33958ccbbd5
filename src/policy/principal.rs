//! The Principal and NotPrincipal elements of a key policy.

use super::json::{Json, Object};
use super::request::{CallerKind, PrincipalRef};
use crate::key::arn::{Arn, is_account_id};

/// Whom a statement is about.
#[derive(Debug, Clone)]
pub(super) enum Principals {
    /// Principal.
    Of(Box<[Principal]>),
    /// NotPrincipal.
    AllBut(Box<[Principal]>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Principal {
    /// `*`.
    Anyone,
    /// An account, as its id or its root's ARN: whoever its identity policies allow.
    Account(Box<str>),
    /// A user, role, or role session.
    Arn(Box<str>),
    /// An AWS service by its name.
    Service(Box<str>),
    /// A federated or a canonical user: nobody who calls us is one.
    Foreign,
}

/// How far a statement reaches a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    No,
    /// By its account: an Allow leaves it to the account's identity policies.
    Account,
    /// By itself.
    Itself,
}

impl Principals {
    /// Parses the value of Principal, or of NotPrincipal where negated.
    pub(super) fn parse(value: &Json, negated: bool) -> Result<Self, String> {
        let list = match value {
            Json::Text(text) if text == "*" => vec![Principal::Anyone],
            Json::Object(kinds) => parse_kinds(kinds)?,
            _ => return Err("is \"*\" or an object such as {\"AWS\": …}".to_owned()),
        };
        if list.is_empty() {
            return Err("names nobody".to_owned());
        }
        Ok(if negated { Principals::AllBut(list.into()) } else { Principals::Of(list.into()) })
    }

    /// How far these reach the caller.
    pub(super) fn reach(&self, caller: &PrincipalRef<'_>) -> Reach {
        match self {
            Principals::Of(list) => {
                list.iter().map(|principal| principal.reach(caller)).max().unwrap_or(Reach::No)
            }
            Principals::AllBut(list) if exempt(list, caller) => Reach::No,
            Principals::AllBut(_) => Reach::Itself,
        }
    }
}

impl Principal {
    /// The principal of a grant: an account, the ARN of a user, role or
    /// session, or a service's name.
    pub(super) fn of_grant(name: &str) -> Option<Principal> {
        parse_aws(name).filter(|principal| *principal != Principal::Anyone).or_else(|| parse_service(name))
    }

    pub(super) fn reach(&self, caller: &PrincipalRef<'_>) -> Reach {
        let service = caller.kind == CallerKind::Service;
        let itself = match self {
            Principal::Anyone => true,
            Principal::Account(account) if !service && **account == *caller.account => {
                return if caller.kind == CallerKind::Root { Reach::Itself } else { Reach::Account };
            }
            Principal::Arn(arn) => !service && (**arn == *caller.arn || Some(&**arn) == caller.role_arn),
            Principal::Service(name) => service && **name == *caller.arn,
            Principal::Account(_) | Principal::Foreign => false,
        };
        if itself { Reach::Itself } else { Reach::No }
    }
}

/// Whether a NotPrincipal spares the caller: AWS looks at the account, the role
/// and the session one after the other, and each of them must be listed.
fn exempt(list: &[Principal], caller: &PrincipalRef<'_>) -> bool {
    let arn_listed =
        |arn: &str| list.iter().any(|one| matches!(one, Principal::Arn(listed) if **listed == *arn));
    let account_listed = || list.contains(&Principal::Account(caller.account.into()));
    list.contains(&Principal::Anyone)
        || match caller.kind {
            CallerKind::Service => list.contains(&Principal::Service(caller.arn.into())),
            CallerKind::Root => account_listed(),
            CallerKind::User | CallerKind::RoleSession => {
                account_listed() && arn_listed(caller.arn) && caller.role_arn.is_none_or(arn_listed)
            }
        }
}

fn parse_kinds(kinds: &Object) -> Result<Vec<Principal>, String> {
    let mut principals = Vec::new();
    for (kind, names) in kinds {
        let parse: fn(&str) -> Option<Principal> = match kind.as_str() {
            "AWS" => parse_aws,
            "Service" => parse_service,
            "Federated" | "CanonicalUser" => |name| (!name.is_empty()).then_some(Principal::Foreign),
            _ => return Err(format!("unknown kind of principal \"{kind}\"")),
        };
        let names = names.strings().ok_or_else(|| format!("{kind}: is a string or a list of strings"))?;
        for name in names {
            principals.push(parse(name).ok_or_else(|| format!("{kind}: invalid principal \"{name}\""))?);
        }
    }
    Ok(principals)
}

/// `*`, an account, or the ARN of a user, a role, a role session or a federated
/// user. No wildcards within.
fn parse_aws(name: &str) -> Option<Principal> {
    if name == "*" {
        return Some(Principal::Anyone);
    }
    if is_account_id(name) {
        return Some(Principal::Account(name.into()));
    }
    let arn = Arn::parse(name)?;
    let partition = arn.partition == "aws" || arn.partition.starts_with("aws-");
    if !partition || !arn.region.is_empty() || !is_account_id(arn.account) || name.contains(['*', '?', '$']) {
        return None;
    }
    if arn.service == "iam" && arn.resource == "root" {
        return Some(Principal::Account(arn.account.into()));
    }
    let (kind, path) = arn.resource.split_once('/')?;
    let known = match (arn.service, kind) {
        ("iam", "user" | "role") | ("sts", "federated-user") => !path.ends_with('/'),
        ("sts", "assumed-role") => {
            path.split_once('/').is_some_and(|(role, session)| !role.is_empty() && !session.is_empty())
        }
        _ => false,
    };
    (known && !path.is_empty()).then(|| Principal::Arn(name.into()))
}

/// `s3.amazonaws.com`, also with a Region in it.
fn parse_service(name: &str) -> Option<Principal> {
    let domain = name.strip_suffix(".cn").unwrap_or(name);
    let service = domain.strip_suffix(".amazonaws.com")?;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    (!service.is_empty() && service.bytes().all(allowed)).then(|| Principal::Service(name.into()))
}
