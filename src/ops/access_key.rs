//! Access keys that are sealed in the store, in IAM's terms.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::prelude::*;
use crate::access_keys::{self, AccessKey};
use crate::caller::PrincipalKind;
use crate::proto::iam;
use crate::sealed;

/// IAM's quota.
const KEYS_PER_USER_MAX: usize = 2;
/// More than a user has.
const KEYS_PAGE: u32 = 100;
/// What forty characters of base64 say, as IAM's secrets are long.
const SECRET_BYTES: usize = 30;

/// A user of the caller's account, whether the configuration has it or not; the
/// caller where none is named.
#[derive(Debug)]
pub struct User {
    name: String,
    arn: String,
}

impl Resource for User {
    type Name = Option<String>;

    async fn resolve(call: &mut Call, name: Option<String>) -> Result<Self> {
        let caller = &call.caller.principal;
        match (name, caller.kind) {
            (Some(name), _) => Ok(User { arn: format!("arn:aws:iam::{}:user/{name}", call.account()), name }),
            (None, PrincipalKind::User | PrincipalKind::Root) => {
                Ok(User { name: caller.name.clone(), arn: caller.arn.clone() })
            }
            (None, PrincipalKind::Role | PrincipalKind::Service) => {
                Err(Error::validation("Must specify userName when calling with non-User credentials"))
            }
        }
    }

    fn arn(&self) -> String {
        self.arn.clone()
    }
}

/// Makes an access key.
pub struct CreateAccessKey;

impl Operation for CreateAccessKey {
    const SERVICE: Service = Service::Iam;
    const NAME: &'static str = "CreateAccessKey";
    const ACTION: &'static str = "iam:CreateAccessKey";
    const READ_ONLY: bool = false;
    type Request = iam::CreateAccessKeyRequest;
    type Response = iam::CreateAccessKeyResponse;
    type On = User;

    fn on(request: &Self::Request) -> Result<Option<String>> {
        Ok(request.user_name.clone())
    }

    async fn run(call: &mut Call, _: &Self::Request, user: Allowed<User>) -> Result<Self::Response> {
        if call.app.directory.load().principal(&user.arn).is_none() {
            return Err(Error::new(
                Exception::NoSuchEntity,
                format!("The user with name {} cannot be found.", user.name),
            ));
        }
        if keys(call, &user).await?.len() >= KEYS_PER_USER_MAX {
            return Err(Error::new(
                Exception::LimitExceeded,
                format!("Cannot exceed quota for AccessKeysPerUser: {KEYS_PER_USER_MAX}"),
            ));
        }
        let mut random = [0; 5];
        let cluster = call.app.key_stores.installation().clone();
        let bytes = cluster.random(random.len() + SECRET_BYTES, call.deadline).await.map_err(from_hsm)?;
        let unfit = || Error::internal("an access key could not be made of random bytes");
        let (of_id, of_secret) = bytes.split_at_checked(random.len()).ok_or_else(unfit)?;
        random.copy_from_slice(of_id);
        let row = access_keys::new_row(call.account(), random).ok_or_else(unfit)?;
        let secret = Zeroizing::new(STANDARD.encode(of_secret));
        let sealed = sealed::seal(call, &row, &SecretString::from(secret.as_str())).await?;
        let value =
            AccessKey { principal: user.arn.clone(), active: true, created_ms: call.now_ms, secret: sealed };
        call.change(Draft::insert(row.clone(), &value)?);
        let access_key = iam::AccessKey {
            user_name: Some(user.name.clone()),
            access_key_id: Some(row.id),
            status: Some(status(&value) as i32),
            secret_access_key: Some((*secret).clone()),
            create_date: Some(timestamp(value.created_ms)),
        };
        Ok(iam::CreateAccessKeyResponse { access_key: Some(access_key) })
    }
}

/// Lists a user's access keys.
pub struct ListAccessKeys;

impl Operation for ListAccessKeys {
    const SERVICE: Service = Service::Iam;
    const NAME: &'static str = "ListAccessKeys";
    const ACTION: &'static str = "iam:ListAccessKeys";
    const READ_ONLY: bool = true;
    type Request = iam::ListAccessKeysRequest;
    type Response = iam::ListAccessKeysResponse;
    type On = User;

    fn on(request: &Self::Request) -> Result<Option<String>> {
        Ok(request.user_name.clone())
    }

    async fn run(call: &mut Call, _: &Self::Request, user: Allowed<User>) -> Result<Self::Response> {
        let metadata = |held: Held<AccessKey>| iam::AccessKeyMetadata {
            user_name: Some(user.name.clone()),
            status: Some(status(&held.value) as i32),
            create_date: Some(timestamp(held.value.created_ms)),
            access_key_id: Some(held.id.id),
        };
        let keys = keys(call, &user).await?;
        Ok(iam::ListAccessKeysResponse { access_key_metadata: keys.into_iter().map(metadata).collect() })
    }
}

/// Takes an access key out of force, or puts it back.
pub struct UpdateAccessKey;

impl Operation for UpdateAccessKey {
    const SERVICE: Service = Service::Iam;
    const NAME: &'static str = "UpdateAccessKey";
    const ACTION: &'static str = "iam:UpdateAccessKey";
    const READ_ONLY: bool = false;
    type Request = iam::UpdateAccessKeyRequest;
    type Response = iam::UpdateAccessKeyResponse;
    type On = User;

    fn on(request: &Self::Request) -> Result<Option<String>> {
        Ok(request.user_name.clone())
    }

    async fn run(call: &mut Call, request: &Self::Request, user: Allowed<User>) -> Result<Self::Response> {
        let held = key(call, &user, given(&request.access_key_id)?).await?;
        let active = chosen::<iam::StatusType>(request.status)? == iam::StatusType::Active;
        call.change(Draft::replace(&held, &AccessKey { active, ..held.value.clone() })?);
        Ok(iam::UpdateAccessKeyResponse {})
    }
}

/// Deletes an access key.
pub struct DeleteAccessKey;

impl Operation for DeleteAccessKey {
    const SERVICE: Service = Service::Iam;
    const NAME: &'static str = "DeleteAccessKey";
    const ACTION: &'static str = "iam:DeleteAccessKey";
    const READ_ONLY: bool = false;
    type Request = iam::DeleteAccessKeyRequest;
    type Response = iam::DeleteAccessKeyResponse;
    type On = User;

    fn on(request: &Self::Request) -> Result<Option<String>> {
        Ok(request.user_name.clone())
    }

    async fn run(call: &mut Call, request: &Self::Request, user: Allowed<User>) -> Result<Self::Response> {
        let held = key(call, &user, given(&request.access_key_id)?).await?;
        call.change(Draft::delete(&held));
        Ok(iam::DeleteAccessKeyResponse {})
    }
}

fn status(key: &AccessKey) -> iam::StatusType {
    match key.active {
        true => iam::StatusType::Active,
        false => iam::StatusType::Inactive,
    }
}

async fn keys(call: &Call, user: &User) -> Result<Vec<Held<AccessKey>>> {
    let registry = &call.app.registry;
    registry.page("", call.account(), Some(&user.arn), None, KEYS_PAGE, call.deadline).await
}

/// A user's access key by its id.
async fn key(call: &Call, user: &User, id: &str) -> Result<Held<AccessKey>> {
    let found = match access_keys::row_of(id) {
        Some(row) => call.app.registry.access_key(&row, call.deadline).await?,
        None => None,
    };
    let own = found.map(|key| key.held.clone()).filter(|held| held.value.principal == user.arn);
    own.ok_or_else(|| {
        Error::new(Exception::NoSuchEntity, format!("The Access Key with id {id} cannot be found."))
    })
}
