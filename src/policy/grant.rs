//! Grants: who may do what with one key, under which constraints, beside its
//! policy ("Grants in AWS KMS" of the KMS developer guide).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::principal::{Principal, Reach};
use super::request::Request;

/// The operations of a grant that have an encryption context, and so can be
/// constrained by one.
pub const GRANTS_WITH_CONTEXT: [&str; 8] = [
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
];

/// What a grant says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Who may: an ARN, or a service's name.
    pub grantee: String,
    /// What, as KMS's GrantOperation names it.
    pub operations: BTreeSet<String>,
    /// Under which constraints.
    #[serde(default)]
    pub constraints: Constraints,
}

/// When a grant applies; without any, always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraints {
    /// The request's encryption context is exactly this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_context_equals: Option<BTreeMap<String, String>>,
    /// The request's encryption context has at least these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_context_subset: Option<BTreeMap<String, String>>,
    /// The resource on whose behalf a service calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_arn: Option<String>,
}

/// A grant, ready to be evaluated.
#[derive(Debug, Clone)]
pub struct Grant {
    /// GrantId.
    pub id: String,
    terms: Terms,
    grantee: Principal,
}

impl Grant {
    /// A grant of these terms; None where its grantee is no principal.
    pub fn new(id: String, terms: Terms) -> Option<Grant> {
        let grantee = Principal::of_grant(&terms.grantee)?;
        Some(Grant { id, terms, grantee })
    }

    /// How far it reaches the caller of a request, if it allows it at all.
    pub(super) fn reach(&self, request: &Request<'_>) -> Reach {
        let operation = request.action.strip_prefix("kms:").unwrap_or_default();
        let allows = self.terms.operations.contains(operation) && self.terms.hold(operation, request);
        if allows { self.grantee.reach(&request.principal) } else { Reach::No }
    }
}

impl Terms {
    fn hold(&self, operation: &str, request: &Request<'_>) -> bool {
        let of_source = self.constraints.source_arn.as_deref().is_none_or(|arn| {
            operation == "RetireGrant" || request.context.values("aws:SourceArn").any(|source| source == arn)
        });
        of_source
            && match operation {
                "CreateGrant" => request.granting.is_some_and(|new| self.admits(new)),
                _ if GRANTS_WITH_CONTEXT.contains(&operation) => {
                    self.constraints.admit(request.encryption_context)
                }
                _ => true,
            }
    }

    /// Whether who has this grant may make that one: no more operations, and
    /// constraints that are as strict.
    fn admits(&self, new: &Terms) -> bool {
        let (mine, theirs) = (&self.constraints, &new.constraints);
        let equals = mine
            .encryption_context_equals
            .as_ref()
            .is_none_or(|pairs| theirs.encryption_context_equals.as_ref() == Some(pairs));
        let subset = mine.encryption_context_subset.as_ref().is_none_or(|pairs| {
            let has_all =
                |of: &BTreeMap<String, String>| pairs.iter().all(|(key, value)| of.get(key) == Some(value));
            theirs.encryption_context_equals.as_ref().is_some_and(has_all)
                || theirs.encryption_context_subset.as_ref().is_some_and(has_all)
        });
        let source = mine.source_arn.is_none() || mine.source_arn == theirs.source_arn;
        new.operations.is_subset(&self.operations) && equals && subset && source
    }
}

impl Constraints {
    /// Whether there are none of the encryption context.
    pub fn is_free(&self) -> bool {
        self.encryption_context_equals.is_none() && self.encryption_context_subset.is_none()
    }

    fn admit(&self, context: Option<&HashMap<String, String>>) -> bool {
        let value = |key: &String| context.and_then(|context| context.get(key));
        let has_all =
            |pairs: &BTreeMap<String, String>| pairs.iter().all(|(key, wanted)| value(key) == Some(wanted));
        let length = context.map_or(0, HashMap::len);
        let equals = |pairs: &BTreeMap<String, String>| pairs.len() == length && has_all(pairs);
        self.encryption_context_equals.as_ref().is_none_or(equals)
            && self.encryption_context_subset.as_ref().is_none_or(has_all)
    }
}
