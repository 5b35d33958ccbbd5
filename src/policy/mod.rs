//! Who may do what: key policies and identity policies, as AWS evaluates them.
//!
//! Pure: no I/O, no clock, no globals. Everything that a decision depends on is
//! an argument, so that a decision can be explained by making it again.
//!
//! ```text
//! JSON ── Policy::parse_… ──→ Policy ┐
//! who, action, resource, context ────┴→ authorize → Decision, with the statement that decided
//! ```
//!
//! It fails closed twice over. What a document contains and we do not know makes
//! it invalid. What cannot be told when a request is evaluated (a variable
//! without a value, a value of the wrong type under a negated operator, several
//! values where one was expected) keeps an Allow from applying and a Deny not.

mod condition;
mod document;
mod evaluate;
mod grant;
mod json;
mod pattern;
mod principal;
mod request;
mod truth;
mod value;

pub use document::{POLICY_LIMIT_BYTES, Policy, PolicyError};
pub use evaluate::{Decision, Grounds, PolicyRef, Reason, Side, Source, authorize, hidden, would_lock_out};
pub use grant::{Constraints, GRANTS_WITH_CONTEXT, Grant, Terms};
pub use request::{CallerKind, Context, PrincipalRef, Request};

/// The policy that KMS gives to a key for which none was named: the account's
/// root, and so its identity policies, may do everything.
pub fn default_key_policy(account: &str) -> String {
    format!(
        r#"{{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {{
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {{
      "AWS" : "arn:aws:iam::{account}:root"
    }},
    "Action" : "kms:*",
    "Resource" : "*"
  }} ]
}}"#
    )
}
