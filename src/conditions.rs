//! The condition keys that a request brings to policies.
//!
//! Policies tell which keys they read, and only those are brought, so that a
//! call under policies without conditions pays nothing for them. A key that AWS
//! defines and the daemon does not know for a request is absent, as AWS has it.
//! A policy that asks for a key which nobody defines is invalid: a Deny whose
//! condition never holds would never deny.

mod brought;
mod defined;

use crate::caller::{Caller, Origin};
use crate::error::{Error, Exception, Result};
use crate::policy::{Context, Policy, PolicyError};
use crate::registry::LoadedKey;
use crate::wire::Text;
use brought::in_family;

pub use brought::{Brings, Brought, Value, time_text};

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

/// Everything that conditions can ask for.
pub struct Facts<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// The Region that is asked.
    pub region: &'a str,
    /// When, milliseconds since the epoch.
    pub now_ms: i64,
    /// The IAM action.
    pub action: &'a str,
    /// What the request's members bring.
    pub request: &'a [Brought<'a>],
    /// The key that is asked for.
    pub key: Option<&'a LoadedKey>,
    /// What the operation knows besides. A key that is here is told by nothing else.
    pub known: &'a [(String, String)],
}

impl Facts<'_> {
    /// What these keys are for the request.
    pub fn context<'k>(&self, read: impl IntoIterator<Item = &'k str>) -> Context<'k> {
        let mut context = Context::new();
        let mut done: Vec<&str> = Vec::new();
        for key in read {
            if done.iter().any(|other| other.eq_ignore_ascii_case(key)) {
                continue;
            }
            done.push(key);
            self.values(key).into_iter().for_each(|value| context.insert(key, value));
        }
        context
    }

    /// The first of those who know the key tells it.
    fn values(&self, asked: &str) -> Vec<String> {
        let known = self.known.iter().filter(|(key, _)| key.eq_ignore_ascii_case(asked));
        let mut found: Vec<String> = known.map(|(_, value)| value.clone()).collect();
        if found.is_empty() {
            for member in self.request.iter().filter(|member| member.is_for(self.action)) {
                member.values(asked, &mut |value| found.push(value));
            }
        }
        if found.is_empty() {
            found = self.tags(asked);
        }
        if found.is_empty() {
            found.extend(self.one(&asked.to_ascii_lowercase()));
        }
        found
    }

    fn tags(&self, asked: &str) -> Vec<String> {
        let principal = Some(&self.caller.principal.tags);
        let resource = self.key.map(|key| &key.held.value.tags);
        let families = [("aws:PrincipalTag", principal), ("aws:ResourceTag", resource)];
        let named =
            families.into_iter().find_map(|(family, tags)| Some((in_family(asked, family, '/')?, tags?)));
        let Some((name, tags)) = named else { return Vec::new() };
        tags.iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// A key that has one value, by its name in lower case.
    fn one(&self, asked: &str) -> Option<String> {
        let caller = self.caller;
        let key = self.key.map(|key| &key.held.value);
        let now = || jiff::Timestamp::from_millisecond(self.now_ms).ok();
        match asked {
            "aws:currenttime" => Some(now()?.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            "aws:epochtime" => Some(now()?.as_second().to_string()),
            "aws:securetransport" => Some(caller.tls.is_some().to_string()),
            "aws:sourceip" => match &caller.origin {
                // Where the principal is, the service does not say.
                Origin::Tcp(_) if caller.via().is_some() => None,
                Origin::Tcp(address) => Some(address.ip().to_string()),
                Origin::Unix { .. } => None,
            },
            "aws:useragent" => caller.user_agent.clone(),
            "aws:requestedregion" => Some(self.region.to_owned()),
            "aws:viaawsservice" => Some(caller.via().is_some().to_string()),
            "aws:calledvia" | "aws:calledviafirst" | "aws:calledvialast" => {
                Some(caller.via()?.service.clone())
            }
            "aws:sourcearn" => caller.service.as_ref()?.source_arn.clone(),
            "aws:sourceaccount" => caller.service.as_ref()?.source_account.clone(),
            "kms:viaservice" => Some(crate::managed::via_service(&caller.via()?.service, self.region)),
            "aws:userid" => Some(caller.user_id()),
            "kms:grantisforawsresource" if GRANT_CHANGES.contains(&self.action) => {
                Some(caller.service.is_some().to_string())
            }
            "kms:keyspec" | "kms:customermasterkeyspec" => Some(key?.spec.text().to_owned()),
            "kms:keyusage" | "kms:customermasterkeyusage" => Some(key?.usage.text().to_owned()),
            "kms:keyorigin" => Some(key?.origin.text().to_owned()),
            "kms:multiregion" => Some(key?.multi_region.is_some().to_string()),
            "kms:multiregionkeytype" => Some(key?.multi_region.as_ref()?.key_type().text().to_owned()),
            _ => None,
        }
    }
}

/// The actions that kms:GrantIsForAWSResource is brought to.
const GRANT_CHANGES: [&str; 3] = ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"];

fn evaluable(policy: Policy) -> Result<Policy, String> {
    let is_defined = |asked: &str| {
        defined::KEYS.iter().any(|key| match key.ends_with([':', '/']) {
            true => {
                asked.len() > key.len()
                    && asked.get(..key.len()).is_some_and(|family| family.eq_ignore_ascii_case(key))
            }
            false => asked.eq_ignore_ascii_case(key),
        })
    };
    let unknown = policy.context_keys().find(|asked| !is_defined(asked)).map(str::to_owned);
    match unknown {
        None => Ok(policy),
        Some(unknown) => Err(format!("condition key {unknown} is not defined")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::kms;

    fn conditioned(key: &str) -> String {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Action":"*","Resource":"*","Condition":{{"StringEquals":{{"{key}":"a"}}}}}}]}}"#
        )
    }

    #[test]
    fn a_condition_that_would_never_hold_is_refused() {
        for key in ["kms:EncryptionContext:team", "AWS:sourceip", "kms:ViaService", "aws:PrincipalTag/team"] {
            assert!(identity_policy(&conditioned(key)).is_ok(), "{key}");
        }
        for key in ["kms:ViaServices", "kms:EncryptionContext:", "aws:PrincipalTag", "s3:prefix"] {
            let refused = identity_policy(&conditioned(key)).unwrap_err();
            assert!(refused.contains(key), "{refused}");
        }
    }

    /// Every key that a member of proto/ names, and what the request makes of it.
    fn values(request: &impl Brings, action: &str, asked: &str) -> Vec<String> {
        let brought = request.brings();
        let mut found = Vec::new();
        for member in brought.iter().filter(|member| member.is_for(action)) {
            member.values(asked, &mut |value| found.push(value));
        }
        found.sort();
        found
    }

    #[test]
    fn members_bring_their_values_to_their_action() {
        let context = |text: &str| [(text.to_owned(), "red".to_owned())].into();
        let request = kms::ReEncryptRequest {
            source_encryption_context: context("From"),
            destination_encryption_context: context("To"),
            destination_encryption_algorithm: Some(kms::EncryptionAlgorithmSpec::RsaesOaepSha1 as i32),
            ..Default::default()
        };
        let asked = |action, key| values(&request, action, key);
        assert_eq!(asked("kms:ReEncryptFrom", "kms:EncryptionContext:from"), ["red"]);
        assert_eq!(asked("kms:ReEncryptTo", "kms:EncryptionContext:from"), [""; 0]);
        assert_eq!(asked("kms:ReEncryptTo", "KMS:encryptionContextKeys"), ["To"]);
        assert_eq!(asked("kms:ReEncryptTo", "kms:EncryptionAlgorithm"), ["RSAES_OAEP_SHA_1"]);
        assert_eq!(asked("kms:ReEncryptFrom", "kms:EncryptionAlgorithm"), [""; 0]);
        let tag = |key: &str| kms::Tag { tag_key: Some(key.into()), tag_value: Some("v".into()) };
        let request = kms::CreateKeyRequest {
            tags: vec![tag("a"), tag("b")],
            bypass_policy_lockout_safety_check: Some(true),
            ..Default::default()
        };
        assert_eq!(values(&request, "kms:CreateKey", "aws:TagKeys"), ["a", "b"]);
        assert_eq!(values(&request, "kms:CreateKey", "aws:RequestTag/B"), ["v"]);
        assert_eq!(values(&request, "kms:CreateKey", "kms:BypassPolicyLockoutSafetyCheck"), ["true"]);
    }

    #[test]
    fn every_key_of_a_member_is_defined() {
        for message in
            prost_reflect::DescriptorPool::decode(crate::proto::DESCRIPTORS).unwrap().all_messages()
        {
            let option =
                message.parent_pool().get_extension_by_name("strongroom.options.v1.condition").unwrap();
            for field in message.fields() {
                let options = field.options();
                if !options.has_extension(&option) {
                    continue;
                }
                let condition = options.get_extension(&option);
                let key = condition.as_message().unwrap().get_field_by_name("key").unwrap();
                let key = key.as_str().unwrap();
                let known = defined::KEYS.iter().any(|known| known.trim_end_matches([':', '/']) == key);
                assert!(known, "{}: {key}", field.full_name());
            }
        }
    }
}
