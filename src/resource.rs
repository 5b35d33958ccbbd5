//! What operations act on: found by the name that a caller gave, and what
//! authorises its use.

use std::future::Future;
use std::sync::Arc;

use crate::error::{Error, Exception, Result};
use crate::key::{arn::KeyName, arn_of_alias};
use crate::managed;
use crate::operation::Call;
use crate::policy::{self, Policy};
use crate::registry::{LoadedGrant, LoadedKey};
use crate::store::{Kind, RowId};

/// Something that an operation acts on.
pub trait Resource: Sized + Send + Sync {
    /// How a request names it.
    type Name: Send;

    /// Finds it.
    fn resolve(call: &mut Call, name: Self::Name) -> impl Future<Output = Result<Self>> + Send;

    /// The ARN that policies name it by, or `*`.
    fn arn(&self) -> String;

    /// The account that it belongs to; none for the caller's own.
    fn account(&self) -> Option<&str> {
        None
    }

    /// Its own policy.
    fn policy(&self) -> Option<&Policy> {
        None
    }

    /// The key, for what conditions and grants ask of it.
    fn key(&self) -> Option<&LoadedKey> {
        None
    }

    /// Grants that speak of it, in place of those that its key has.
    fn own_grants(&self) -> Option<&[policy::Grant]> {
        None
    }

    /// Account and ARN for the event's resources.
    fn recorded(&self) -> Option<(&str, &str)> {
        None
    }

    /// The custom key store that it is in, for the event.
    fn custom_key_store_id(&self) -> Option<&str> {
        None
    }

    /// Whether it is for the host's operator alone, whatever policies say.
    fn host_only(&self) -> bool {
        false
    }
}

/// The caller's account in this Region.
#[derive(Debug)]
pub struct Account;

impl Resource for Account {
    type Name = ();

    async fn resolve(_: &mut Call, (): ()) -> Result<Self> {
        Ok(Account)
    }

    fn arn(&self) -> String {
        "*".to_owned()
    }
}

/// The daemon itself, for those who run it.
#[derive(Debug)]
pub struct Host;

impl Resource for Host {
    type Name = ();

    async fn resolve(_: &mut Call, (): ()) -> Result<Self> {
        Ok(Host)
    }

    fn arn(&self) -> String {
        "*".to_owned()
    }

    fn host_only(&self) -> bool {
        true
    }
}

/// A KMS key.
pub type Key = Arc<LoadedKey>;

/// How a request names a key.
#[derive(Debug)]
pub enum KeyRefName {
    /// By KeyId: an id, an ARN, an alias name or an alias ARN.
    Given(String),
    /// By KeyId in the same ways, as DescribeKey takes it: a service's key is made
    /// where it is not there yet.
    Described(String),
    /// By KeyId: an id or an ARN; an alias is not accepted here.
    NotAlias(String),
    /// By a ciphertext that was made with it: its id.
    Ciphertext(String),
}

impl Resource for Key {
    type Name = KeyRefName;

    async fn resolve(call: &mut Call, name: KeyRefName) -> Result<Self> {
        let described = matches!(name, KeyRefName::Described(_));
        let (given, aliases) = match name {
            KeyRefName::Ciphertext(id) => {
                call.request_alias = None;
                // Most decrypt what is their own, and that is cached by its whole name.
                let own = RowId {
                    kind: Kind::Key,
                    region: call.region().to_owned(),
                    account: call.account().to_owned(),
                    id,
                };
                let registry = &call.app.registry;
                let found = match registry.key(&own, call.deadline).await? {
                    Some(key) => Some(key),
                    None => registry.find_key(call.region(), &own.id, call.deadline).await?,
                };
                return found.ok_or_else(|| Error::bare(Exception::InvalidCiphertext));
            }
            KeyRefName::Given(given) | KeyRefName::Described(given) => (given, true),
            KeyRefName::NotAlias(given) => (given, false),
        };
        let parsed = KeyName::parse(&given, call.region())?;
        call.request_alias = match &parsed {
            KeyName::AliasName(name) | KeyName::AliasArn { alias: name, .. } => Some(name.clone()),
            KeyName::KeyId(_) | KeyName::KeyArn { .. } => None,
        };
        let row = |kind, account: &str, id: String| RowId {
            kind,
            region: call.region().to_owned(),
            account: account.to_owned(),
            id,
        };
        match parsed {
            KeyName::KeyId(id) => key(call, row(Kind::Key, call.account(), id)).await,
            KeyName::KeyArn { account, key_id: id } => key(call, row(Kind::Key, &account, id)).await,
            KeyName::AliasName(_) | KeyName::AliasArn { .. } if !aliases => {
                Err(Error::new(Exception::NotFound, format!("Invalid keyId '{given}'")))
            }
            KeyName::AliasName(name) => {
                by_alias(call, row(Kind::Alias, call.account(), name), described).await
            }
            KeyName::AliasArn { account, alias: name } => {
                by_alias(call, row(Kind::Alias, &account, name), described).await
            }
        }
    }

    fn arn(&self) -> String {
        self.arn.clone()
    }

    fn account(&self) -> Option<&str> {
        Some(&self.held.id.account)
    }

    fn policy(&self) -> Option<&Policy> {
        Some(&self.policy)
    }

    fn key(&self) -> Option<&LoadedKey> {
        Some(self)
    }

    fn recorded(&self) -> Option<(&str, &str)> {
        Some((&self.held.id.account, &self.arn))
    }

    fn custom_key_store_id(&self) -> Option<&str> {
        self.held.value.custom_key_store_id.as_deref()
    }
}

/// A grant that is to be retired. Who may, it says itself: its retiring
/// principal, its grantee where RetireGrant is among the operations, and the
/// key's account with its identity policies. The key's policy says nothing.
#[derive(Debug)]
pub struct Retirable {
    /// The grant.
    pub grant: Arc<LoadedGrant>,
    key: Key,
    policy: Policy,
    grants: Vec<policy::Grant>,
}

/// How a request names a grant that is to be retired.
#[derive(Debug)]
pub enum GrantName {
    /// By its token.
    Token(String),
    /// By its key and its id.
    Id {
        /// KeyId.
        key_id: String,
        /// GrantId.
        grant_id: String,
    },
}

impl Resource for Retirable {
    type Name = GrantName;

    async fn resolve(call: &mut Call, name: GrantName) -> Result<Self> {
        let (grant, key) = match name {
            GrantName::Token(token) => {
                let grant = call.app.registry.by_token(&token, call.deadline).await?;
                let id =
                    RowId { kind: Kind::Key, id: grant.held.value.key_id.clone(), ..grant.held.id.clone() };
                (grant, key(call, id).await?)
            }
            GrantName::Id { key_id, grant_id } => {
                let key = Key::resolve(call, KeyRefName::NotAlias(key_id)).await?;
                let grant = call.app.registry.grant(&key.held.id, &grant_id, call.deadline).await?;
                let grant = grant.ok_or_else(|| no_grant(&grant_id))?;
                (grant, key)
            }
        };
        let policy = Policy::parse_key_policy(&policy::default_key_policy(&key.held.id.account))
            .map_err(|error| Error::internal(error.to_string()))?;
        let value = &grant.held.value;
        let retiring = value.retiring.as_ref().map(|retiring| policy::Terms {
            grantee: retiring.clone(),
            operations: ["RetireGrant".to_owned()].into(),
            constraints: policy::Constraints::default(),
        });
        let terms = [Some(value.terms.clone()), retiring].into_iter().flatten();
        let grants = terms.filter_map(|terms| policy::Grant::new(grant.held.id.id.clone(), terms)).collect();
        Ok(Retirable { grant, key, policy, grants })
    }

    fn arn(&self) -> String {
        self.key.arn.clone()
    }

    fn account(&self) -> Option<&str> {
        Resource::account(&self.key)
    }

    fn policy(&self) -> Option<&Policy> {
        Some(&self.policy)
    }

    fn key(&self) -> Option<&LoadedKey> {
        Some(&self.key)
    }

    fn own_grants(&self) -> Option<&[policy::Grant]> {
        Some(&self.grants)
    }

    fn recorded(&self) -> Option<(&str, &str)> {
        self.key.recorded()
    }
}

/// The exception for a grant that a key does not have.
pub fn no_grant(grant_id: &str) -> Error {
    Error::new(Exception::InvalidGrantId, format!("Grant ID {grant_id} not found"))
}

async fn key(call: &Call, id: RowId) -> Result<Key> {
    match call.app.registry.key(&id, call.deadline).await? {
        Some(key) => Ok(key),
        None => Err(missing(call, &id, format!("Key '{}' does not exist", crate::key::arn_of_key(&id)))),
    }
}

async fn by_alias(call: &Call, id: RowId, described: bool) -> Result<Key> {
    let mut found = call.app.registry.alias(&id, call.deadline).await?;
    if found.is_none()
        && let Some(unmade) = managed::unmade(call, &id, described)
    {
        unmade.make(call).await?;
        found = call.app.registry.alias(&id, call.deadline).await?;
    }
    match found {
        Some(alias) => key(call, RowId { kind: Kind::Key, id: alias.value.target.clone(), ..id }).await,
        None => Err(missing(call, &id, format!("Alias {} is not found.", arn_of_alias(&id)))),
    }
}

/// What does not exist in another account looks like what may not be used.
fn missing(call: &Call, id: &RowId, message: String) -> Error {
    match id.account == call.account() {
        true => Error::new(Exception::NotFound, message),
        false => Error::new(Exception::AccessDenied, policy::hidden(&call.caller.arn(), call.action)),
    }
}

/// An alias by its name, whether there is one or not; the key is authorised on
/// its own.
#[derive(Debug)]
pub struct AliasName(pub RowId);

impl Resource for AliasName {
    type Name = String;

    async fn resolve(call: &mut Call, name: String) -> Result<Self> {
        Ok(AliasName(RowId {
            kind: Kind::Alias,
            region: call.region().to_owned(),
            account: call.account().to_owned(),
            id: name,
        }))
    }

    fn arn(&self) -> String {
        arn_of_alias(&self.0)
    }
}
