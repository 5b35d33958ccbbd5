//! A key's policy: there is one, and its name is `default`.

use super::prelude::*;
use crate::policy::Policy;

const NAME: &str = "default";
/// What AWS's resource shares bring, which are not served.
const RAM_NAME: &str = "AWS_RAM";

/// Returns a key's policy.
pub struct GetKeyPolicy;

impl Operation for GetKeyPolicy {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GetKeyPolicy";
    const ACTION: &'static str = "kms:GetKeyPolicy";
    const READ_ONLY: bool = true;
    type Request = kms::GetKeyPolicyRequest;
    type Response = kms::GetKeyPolicyResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.policy_name.get_or_insert_with(|| NAME.to_owned());
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(_: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_name(&request.policy_name)?;
        Ok(kms::GetKeyPolicyResponse {
            policy: Some(key.held.value.policy.clone()),
            policy_name: Some(NAME.to_owned()),
        })
    }
}

/// Replaces a key's policy.
pub struct PutKeyPolicy;

impl Operation for PutKeyPolicy {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "PutKeyPolicy";
    const ACTION: &'static str = "kms:PutKeyPolicy";
    const READ_ONLY: bool = false;
    type Request = kms::PutKeyPolicyRequest;
    type Response = kms::PutKeyPolicyResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.policy_name.get_or_insert_with(|| NAME.to_owned());
        request.bypass_policy_lockout_safety_check.get_or_insert(false);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        if request.policy_name.as_deref() == Some(RAM_NAME) {
            return Err(Error::validation("The AWS_RAM policy can only be managed by the RAM service."));
        }
        check_name(&request.policy_name)?;
        // In every state of the key, as with KMS.
        let text = given(&request.policy)?;
        acceptable(call, text, request.bypass_policy_lockout_safety_check, &key.arn, Some(&key))?;
        let mut value = key.held.value.clone();
        value.policy.clone_from(text);
        call.change(Draft::replace(&key.held, &value)?);
        Ok(kms::PutKeyPolicyResponse {})
    }
}

/// Lists the names of a key's policies.
pub struct ListKeyPolicies;

impl Operation for ListKeyPolicies {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ListKeyPolicies";
    const ACTION: &'static str = "kms:ListKeyPolicies";
    const READ_ONLY: bool = true;
    type Request = kms::ListKeyPoliciesRequest;
    type Response = kms::ListKeyPoliciesResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(_: &mut Call, request: &Self::Request, _: Allowed<Key>) -> Result<Self::Response> {
        if request.marker.is_some() {
            // One name is never more than a page: no answer has a marker.
            return Err(Error::validation("The marker is not of an answer of ListKeyPolicies."));
        }
        Ok(kms::ListKeyPoliciesResponse {
            policy_names: vec![NAME.to_owned()],
            next_marker: None,
            truncated: Some(false),
        })
    }
}

/// Refuses a key policy that cannot be evaluated, or that keeps its author from
/// changing it again (unless `bypass` is set).
///
/// # Errors
/// MalformedPolicyDocumentException, LimitExceededException.
pub(super) fn acceptable(
    call: &Call,
    text: &str,
    bypass: Option<bool>,
    arn: &str,
    key: Option<&Key>,
) -> Result<Policy> {
    let policy = crate::conditions::key_policy(text)?;
    if bypass != Some(true) && call.locked_out_by(&policy, arn, key.map(|key| &**key)) {
        return Err(Error::new(
            Exception::MalformedPolicyDocument,
            "The new key policy will not allow you to update the key policy in the future.",
        ));
    }
    Ok(policy)
}

fn check_name(name: &Option<String>) -> Result<()> {
    match name.as_deref() {
        None | Some(NAME) => Ok(()),
        Some(_) => Err(Error::new(Exception::NotFound, "No such policy exists")),
    }
}
