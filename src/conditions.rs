//! The condition keys that a request brings to policies.
//!
//! A Deny whose condition asks for a key that is never there would never deny.
//! So a policy that asks for a key which is not on the list is invalid, not
//! ignored.

use std::collections::BTreeMap;

use crate::caller::{Caller, Origin};
use crate::error::{Error, Exception, Result};
use crate::policy::{Context, Policy, PolicyError};

/// What [`context`] brings, and what the evaluator knows by itself.
const KNOWN: [&str; 15] = [
    "aws:CurrentTime",
    "aws:EpochTime",
    "aws:PrincipalAccount",
    "aws:PrincipalArn",
    "aws:PrincipalIsAWSService",
    "aws:PrincipalServiceName",
    "aws:PrincipalType",
    "aws:ResourceAccount",
    "aws:SecureTransport",
    "aws:SourceIp",
    "aws:UserAgent",
    "aws:username",
    "kms:CallerAccount",
    "kms:EncryptionContextKeys",
    "kms:EncryptionContext:",
];

/// Parses a key policy that this service can evaluate.
///
/// # Errors
/// MalformedPolicyDocumentException, LimitExceededException.
pub fn key_policy(text: &str) -> Result<Policy> {
    let policy = Policy::parse_key_policy(text).map_err(Error::from)?;
    evaluable(policy).map_err(|why| Error::new(Exception::MalformedPolicyDocument, why))
}

/// Parses an identity policy that this service can evaluate.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn identity_policy(text: &str) -> Result<Policy, String> {
    evaluable(Policy::parse_identity_policy(text).map_err(|error: PolicyError| error.to_string())?)
}

/// What policies see of a request.
pub fn context<'a>(
    caller: &'a Caller,
    now_ms: i64,
    encryption_context: &'a BTreeMap<String, String>,
) -> Context<'a> {
    let mut context = Context::new();
    if let Ok(now) = jiff::Timestamp::from_millisecond(now_ms) {
        context.insert("aws:CurrentTime", now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        context.insert("aws:EpochTime", now.as_second().to_string());
    }
    context.insert("aws:SecureTransport", if caller.tls.is_some() { "true" } else { "false" });
    if let Origin::Tcp(address) = &caller.origin {
        context.insert("aws:SourceIp", address.ip().to_string());
    }
    if let Some(agent) = &caller.user_agent {
        context.insert("aws:UserAgent", agent.as_str());
    }
    for (key, value) in encryption_context {
        context.insert(format!("kms:EncryptionContext:{key}"), value.as_str());
        context.insert("kms:EncryptionContextKeys", key.as_str());
    }
    context
}

fn evaluable(policy: Policy) -> Result<Policy, String> {
    let known = |asked: &str| {
        KNOWN.iter().any(|known| match known.strip_suffix(':') {
            // A family of keys: what follows the colon is the caller's.
            Some(_) => asked.get(..known.len()).is_some_and(|family| family.eq_ignore_ascii_case(known)),
            None => asked.eq_ignore_ascii_case(known),
        })
    };
    let unknown = policy.context_keys().find(|asked| !known(asked)).map(str::to_owned);
    match unknown {
        None => Ok(policy),
        Some(unknown) => Err(format!("condition key {unknown} is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditioned(key: &str) -> String {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Action":"*","Resource":"*","Condition":{{"StringEquals":{{"{key}":"a"}}}}}}]}}"#
        )
    }

    #[test]
    fn a_condition_that_would_never_hold_is_refused() {
        assert!(identity_policy(&conditioned("kms:EncryptionContext:team")).is_ok());
        assert!(identity_policy(&conditioned("AWS:sourceip")).is_ok());
        let refused = identity_policy(&conditioned("kms:ViaService")).unwrap_err();
        assert!(refused.contains("kms:ViaService"), "{refused}");
    }
}
