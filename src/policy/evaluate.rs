//! The decision: AWS's order, deny first, fail closed.

use std::borrow::Borrow;
use std::fmt;

use super::document::{Effect, Policy};
use super::grant::Grant;
use super::principal::Reach;
use super::request::{CallerKind, Request};
use crate::key::arn::Arn;

/// Whether a request is allowed, and what decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'p> {
    /// It may run.
    Allowed {
        /// Why.
        by: Grounds<'p>,
    },
    /// It may not.
    Denied(Reason<'p>),
}

/// Why a request is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grounds<'p> {
    /// One statement: of the key policy, or, where the resource has no policy
    /// of its own, of an identity policy.
    Statement(Source<'p>),
    /// The key policy leaves it to the account, or belongs to another account,
    /// and the caller's identity policy allows it.
    Both {
        /// The key policy's statement.
        key: Source<'p>,
        /// The identity policy's.
        identity: Source<'p>,
    },
    /// The account's root, on what has no policy of its own.
    AccountRoot,
}

/// Why a request is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason<'p> {
    /// A statement denies it.
    ExplicitDeny(Source<'p>),
    /// This kind of policy would have to allow it and does not.
    NoAllow(Side),
}

/// A statement of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'p> {
    /// Which policy.
    pub policy: PolicyRef,
    /// The statement's number in it, from 1.
    pub statement: usize,
    /// The statement's Sid.
    pub sid: Option<&'p str>,
}

/// One of the policies that were evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyRef {
    /// The key policy.
    Key,
    /// An identity policy, by its number among the caller's, from 1.
    Identity(usize),
    /// A grant, whose id stands in place of the Sid.
    Grant,
}

/// A kind of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The key policy.
    Key,
    /// The caller's identity policies.
    Identity,
}

/// Decides a request.
///
/// `key_policy` is None for what has no policy of its own: an alias, or the
/// account (resource `*`). A key without one is denied to everybody.
/// `identity_policies` are the caller's, `grants` the key's that may be meant.
pub fn authorize<'p, P: Borrow<Policy>, G: Borrow<Grant>>(
    request: &Request<'_>,
    key_policy: Option<&'p Policy>,
    grants: &'p [G],
    identity_policies: &'p [P],
) -> Decision<'p> {
    let mut key = Verdict::default();
    if let Some(policy) = key_policy {
        key.read(policy, PolicyRef::Key, request);
        key.read_grants(grants, request);
    }
    let mut identity = Verdict::default();
    for (number, policy) in (1..).zip(identity_policies) {
        identity.read(policy.borrow(), PolicyRef::Identity(number), request);
    }
    match key.deny.or(identity.deny) {
        Some(deny) => Decision::Denied(Reason::ExplicitDeny(deny)),
        None if key_policy.is_some() => on_key(request, &key, &identity),
        None => on_account(request, &identity),
    }
}

/// Whether the caller of `request`, once `new_policy` were the key's policy,
/// could not call PutKeyPolicy on it any more: KMS's lockout safety check. The
/// request's own action does not matter.
pub fn would_lock_out<P: Borrow<Policy>>(
    new_policy: &Policy,
    request: &Request<'_>,
    identity_policies: &[P],
) -> bool {
    let again = Request { action: "kms:PutKeyPolicy", ..*request };
    !authorize(&again, Some(new_policy), &[] as &[Grant], identity_policies).is_allowed()
}

/// What the policies of one side say: the first statement of each kind.
#[derive(Default)]
struct Verdict<'p> {
    deny: Option<Source<'p>>,
    /// An Allow for the caller itself.
    itself: Option<Source<'p>>,
    /// An Allow for the caller's account.
    account: Option<Source<'p>>,
}

impl<'p> Verdict<'p> {
    fn read(&mut self, policy: &'p Policy, policy_ref: PolicyRef, request: &Request<'_>) {
        for (number, statement) in (1..).zip(&policy.statements) {
            let slot = match (statement.effect, statement.reach(&request.principal)) {
                (_, Reach::No) => continue,
                (Effect::Deny, _) => &mut self.deny,
                (Effect::Allow, Reach::Itself) => &mut self.itself,
                (Effect::Allow, Reach::Account) => &mut self.account,
            };
            if slot.is_none() && statement.applies(request) {
                *slot = Some(Source { policy: policy_ref, statement: number, sid: statement.sid.as_deref() });
            }
        }
    }
}

impl<'p> Verdict<'p> {
    /// What no statement allows, a grant may: as the key policy would.
    fn read_grants<G: Borrow<Grant>>(&mut self, grants: &'p [G], request: &Request<'_>) {
        for grant in grants.iter().map(Borrow::borrow) {
            let slot = match grant.reach(request) {
                Reach::No => continue,
                Reach::Itself => &mut self.itself,
                Reach::Account => &mut self.account,
            };
            slot.get_or_insert(Source { policy: PolicyRef::Grant, statement: 0, sid: Some(&grant.id) });
        }
    }
}

/// What a caller of another account can be allowed to do with a key ("Cross-account
/// use" of KMS's API reference). A permission for anything else has no effect.
const ACROSS_ACCOUNTS: [&str; 22] = [
    "kms:CreateGrant",
    "kms:Decapsulate",
    "kms:Decrypt",
    "kms:DeriveSharedSecret",
    "kms:DescribeKey",
    "kms:Encapsulate",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:GenerateMac",
    "kms:GetKeyRotationStatus",
    "kms:GetPublicKey",
    "kms:ListGrants",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    "kms:RetireGrant",
    "kms:RevokeGrant",
    "kms:Sign",
    "kms:Verify",
    "kms:VerifyMac",
];

/// A resource with a policy, where nothing denies.
fn on_key<'p>(request: &Request<'_>, key: &Verdict<'p>, identity: &Verdict<'p>) -> Decision<'p> {
    let caller = &request.principal;
    let other_account = caller.kind != CallerKind::Service && caller.account != request.resource_account;
    if other_account && !ACROSS_ACCOUNTS.contains(&request.action) {
        return Decision::Denied(Reason::NoAllow(Side::Key));
    }
    // Services have no identity policies, and a root needs none. Who may retire a
    // grant, the grant alone says.
    let retires =
        |source: Source<'_>| source.policy == PolicyRef::Grant && request.action == "kms:RetireGrant";
    let alone = matches!(caller.kind, CallerKind::Service | CallerKind::Root)
        || caller.account == request.resource_account
        || key.itself.is_some_and(retires);
    match (key.itself, key.itself.or(key.account), identity.itself) {
        (Some(source), _, _) if alone => Decision::Allowed { by: Grounds::Statement(source) },
        (_, Some(key), Some(identity)) => Decision::Allowed { by: Grounds::Both { key, identity } },
        (_, Some(_), None) => Decision::Denied(Reason::NoAllow(Side::Identity)),
        (_, None, _) => Decision::Denied(Reason::NoAllow(Side::Key)),
    }
}

/// A resource without a policy, where nothing denies.
fn on_account<'p>(request: &Request<'_>, identity: &Verdict<'p>) -> Decision<'p> {
    let caller = &request.principal;
    let is_key = Arn::parse(request.resource).is_some_and(|arn| arn.resource.starts_with("key/"));
    let own = caller.account == request.resource_account && caller.kind != CallerKind::Service;
    match identity.itself {
        _ if is_key || !own => Decision::Denied(Reason::NoAllow(Side::Key)),
        _ if caller.kind == CallerKind::Root => Decision::Allowed { by: Grounds::AccountRoot },
        Some(source) => Decision::Allowed { by: Grounds::Statement(source) },
        None => Decision::Denied(Reason::NoAllow(Side::Identity)),
    }
}

impl Decision<'_> {
    /// Whether the request may run.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allowed { .. })
    }
}

impl Reason<'_> {
    /// The message of AccessDeniedException, as AWS words it. Of a resource of
    /// another account, whose policy does not allow it, it does not tell whether
    /// there is one.
    pub fn message(&self, request: &Request<'_>) -> String {
        let Request { principal, action, resource, .. } = request;
        let by_its_policy = match self {
            Reason::ExplicitDeny(source) => source.side() == Side::Key,
            Reason::NoAllow(missing) => *missing == Side::Key,
        };
        let foreign = principal.kind != CallerKind::Service && principal.account != request.resource_account;
        if by_its_policy && foreign {
            return hidden(principal.arn, action);
        }
        let side = |side: Side| match side {
            Side::Key => "resource-based",
            Side::Identity => "identity-based",
        };
        let because = match self {
            Reason::ExplicitDeny(source) => {
                format!("with an explicit deny in {} policy", article(side(source.side())))
            }
            Reason::NoAllow(missing) => {
                format!("because no {} policy allows the {action} action", side(*missing))
            }
        };
        format!(
            "User: {} is not authorized to perform: {action} on resource: {resource} {because}",
            principal.arn
        )
    }
}

/// AWS's words for what another account does not let the caller do, and for what
/// it does not have.
pub fn hidden(caller: &str, action: &str) -> String {
    format!(
        "User: {caller} is not authorized to perform: {action} on this resource because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access"
    )
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with('i') { "an" } else { "a" };
    format!("{article} {kind}")
}

impl Source<'_> {
    fn side(&self) -> Side {
        match self.policy {
            PolicyRef::Key | PolicyRef::Grant => Side::Key,
            PolicyRef::Identity(_) => Side::Identity,
        }
    }
}

/// For the log: `denied by statement 2 "No deletion" of the key policy`.
impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Allowed { by } => write!(f, "allowed by {by}"),
            Decision::Denied(reason) => write!(f, "denied {reason}"),
        }
    }
}

impl fmt::Display for Grounds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grounds::Statement(source) => source.fmt(f),
            Grounds::Both { key, identity } => write!(f, "{key} and {identity}"),
            Grounds::AccountRoot => f.write_str("being the account's root"),
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::ExplicitDeny(source) => write!(f, "by {source}"),
            Reason::NoAllow(Side::Key) => f.write_str("as the key policy does not allow it"),
            Reason::NoAllow(Side::Identity) => f.write_str("as no identity policy allows it"),
        }
    }
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.policy == PolicyRef::Grant {
            return write!(f, "grant {}", self.sid.unwrap_or_default());
        }
        write!(f, "statement {}", self.statement)?;
        if let Some(sid) = self.sid {
            write!(f, " \"{sid}\"")?;
        }
        match self.policy {
            PolicyRef::Key => f.write_str(" of the key policy"),
            PolicyRef::Identity(number) => write!(f, " of identity policy {number}"),
            PolicyRef::Grant => Ok(()),
        }
    }
}
