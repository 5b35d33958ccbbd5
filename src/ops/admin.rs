//! What only the host may do.

use super::prelude::*;
use crate::key::arn::KeyName;
use crate::proto::admin;
use crate::store::Kind;

/// Gives a key the default policy again.
pub struct RecoverKeyPolicy;

impl Operation for RecoverKeyPolicy {
    const SERVICE: Service = Service::Admin;
    const NAME: &'static str = "RecoverKeyPolicy";
    const ACTION: &'static str = "strongroom:RecoverKeyPolicy";
    const READ_ONLY: bool = false;
    type Request = admin::RecoverKeyPolicyRequest;
    type Response = admin::RecoverKeyPolicyResponse;
    type On = Host;

    fn on(request: &Self::Request) -> Result<()> {
        request.key_id.as_ref().map(|_| ()).ok_or_else(|| Error::validation("KeyId is required."))
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Host>) -> Result<Self::Response> {
        let key = anywhere(call, given(&request.key_id)?).await?;
        let account = key.held.id.account.clone();
        if key.held.value.manager == kms::KeyManagerType::Aws {
            return Err(Error::new(
                Exception::UnsupportedOperation,
                format!("{} is a service's key, whose policy is what it is.", key.arn),
            ));
        }
        let mut value = key.held.value.clone();
        value.policy = crate::policy::default_key_policy(&account);
        call.change(Draft::replace(&key.held, &value)?);
        call.names(&account, &key.arn);
        if account != call.account() {
            // The key's own account sees it too.
            let details = serde_json::json!({ "keyId": key.arn, "recoveredBy": call.caller.arn() });
            call.service_event(Self::NAME, &account, details, Some(&key.arn))?;
        }
        Ok(admin::RecoverKeyPolicyResponse { key_id: Some(key.arn.clone()) })
    }
}

/// Lets deletions go on that wait because the clock jumped.
pub struct ConfirmClock;

impl Operation for ConfirmClock {
    const SERVICE: Service = Service::Admin;
    const NAME: &'static str = "ConfirmClock";
    const ACTION: &'static str = "strongroom:ConfirmClock";
    const READ_ONLY: bool = false;
    type Request = admin::ConfirmClockRequest;
    type Response = admin::ConfirmClockResponse;
    type On = Host;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, _: &Self::Request, _: Allowed<Host>) -> Result<Self::Response> {
        const COUNTED_MAX: u32 = 10_000;
        let due = call
            .app
            .store
            .due(Kind::Key, call.now_ms, COUNTED_MAX)
            .await
            .map_err(crate::registry::from_store)?;
        call.afterwards(|app| app.clock_gate.confirm());
        Ok(admin::ConfirmClockResponse { waiting: i32::try_from(due.len()).ok() })
    }
}

/// The key of an id or ARN, whatever account it is in.
pub(super) async fn anywhere(call: &Call, given: &str) -> Result<Key> {
    let found = match KeyName::parse(given, call.region())? {
        KeyName::KeyId(id) => call.app.registry.find_key(call.region(), &id, call.deadline).await?,
        KeyName::KeyArn { account, key_id: id } => {
            let row = RowId { kind: Kind::Key, region: call.region().to_owned(), account, id };
            call.app.registry.key(&row, call.deadline).await?
        }
        KeyName::AliasName(_) | KeyName::AliasArn { .. } => None,
    };
    found.ok_or_else(|| Error::new(Exception::NotFound, format!("Key '{given}' does not exist")))
}
