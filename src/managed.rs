//! The keys of services: AWS managed keys, in the accounts that use a service,
//! and AWS owned keys, in the service's own account, which is nobody's.
//!
//! Both are named `alias/aws/SERVICE` and are made when the service first calls
//! by that name: for a principal, in the principal's account; for itself, in
//! its own. DescribeKey makes the account's too. Nobody may change them, because
//! their policies let nobody.

use serde_json::{Value, json};

use crate::caller::{PrincipalKind, short_name};
use crate::error::Result;
use crate::jobs::service_event;
use crate::key::{Alias, Key, Rotation, arn, arn_of_key};
use crate::material;
use crate::multi_region::Delivered;
use crate::operation::Call;
use crate::policy::Policy;
use crate::proto::kms::{KeyManagerType, KeySpec, KeyState, KeyUsageType, OriginType};
use crate::registry::Draft;
use crate::resource::Resource;
use crate::store::{Kind, RowId};

const ROTATION_DAYS: i32 = 365;
/// What such a key is for.
const USES: [&str; 6] = [
    "kms:CreateGrant",
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey*",
    "kms:ReEncrypt*",
];

/// kms:ViaService of a call through a service.
pub fn via_service(service: &str, region: &str) -> String {
    let (short, domain) = service.split_once('.').unwrap_or((service, ""));
    format!("{short}.{region}.{domain}")
}

/// A service's key that is not there yet.
#[derive(Debug)]
pub struct Unmade {
    alias: RowId,
    key: RowId,
    service: String,
    document: Value,
    policy: Policy,
}

/// The key of an alias that is not there: it is made when its service calls by
/// the name, and where an account describes the one that it is to have.
pub fn unmade(call: &Call, alias: &RowId, described: bool) -> Option<Unmade> {
    let short = alias.id.strip_prefix("alias/aws/").filter(|_| alias.account == call.account())?;
    let service = match &call.caller.service {
        Some(service) if service.short_name() == short => service.service.clone(),
        Some(_) => return None,
        None if described => service_named(call, short)?,
        None => return None,
    };
    let key = RowId { kind: Kind::Key, id: uuid::Uuid::new_v4().to_string(), ..alias.clone() };
    let document = match call.caller.principal.kind {
        PrincipalKind::Service => owned_policy(&service),
        PrincipalKind::Root | PrincipalKind::User | PrincipalKind::Role => managed_policy(&service, &key),
    };
    let policy = Policy::parse_key_policy(&document.to_string()).ok()?;
    Some(Unmade { alias: alias.clone(), key, service, document, policy })
}

/// A service of the installation by its short name.
fn service_named(call: &Call, short: &str) -> Option<String> {
    let directory = call.app.directory.load();
    let mut principals = directory.principals();
    principals
        .find(|one| one.kind == PrincipalKind::Service && short_name(&one.name) == short)
        .map(|one| one.name.clone())
}

/// What the key will be to policies.
impl Resource for Unmade {
    type Name = Unmade;

    async fn resolve(_: &mut Call, unmade: Unmade) -> Result<Self> {
        Ok(unmade)
    }

    fn arn(&self) -> String {
        arn_of_key(&self.key)
    }

    fn account(&self) -> Option<&str> {
        Some(&self.key.account)
    }

    fn policy(&self) -> Option<&Policy> {
        Some(&self.policy)
    }
}

impl Unmade {
    /// Makes it, durable with its event.
    ///
    /// # Errors
    /// AccessDeniedException; the store's and the HSM's; where another call was
    /// first, the conflict.
    pub async fn make(self, call: &Call) -> Result<()> {
        match call.caller.service {
            // A service needs no right to have its key.
            Some(_) => self.make_allowed(call).await,
            None => call.authorise(call.action, self).await?.into_inner().make_allowed(call).await,
        }
    }

    async fn make_allowed(self, call: &Call) -> Result<()> {
        let Unmade { alias, key: id, service, document, .. } = self;
        let mut key = Key {
            spec: KeySpec::SymmetricDefault,
            usage: KeyUsageType::EncryptDecrypt,
            state: KeyState::Enabled,
            origin: OriginType::AwsKms,
            manager: KeyManagerType::Aws,
            description: format!(
                "Default key that protects my {} data when no other key is defined",
                short_name(&service)
            ),
            created_ms: call.now_ms,
            deletion: None,
            policy: document.to_string(),
            tags: Default::default(),
            current: None,
            pending: None,
            expiration: None,
            rotation: Some(Rotation::from_now(ROTATION_DAYS, call.now_ms)),
            rotations_on_demand: 0,
            custom_key_store_id: None,
            multi_region: None,
        };
        let cluster = call.default_cluster()?;
        let version = material::make(&call.app, cluster, &id, &key, call.now_ms, call.deadline).await?;
        key.current = Some(version.id);
        let target = Alias { target: id.id.clone(), created_ms: call.now_ms, updated_ms: call.now_ms };
        let mut drafts = version.drafts(&id)?;
        drafts.push(Draft::insert(alias.clone(), &target)?);
        drafts.push(Draft::insert(id.clone(), &key)?);
        let arn = arn_of_key(&id);
        let details =
            json!({ "keyId": id.id, "keyManager": "AWS", "aliasName": alias.id, "service": service });
        let event = service_event(&call.app, "CreateKey", &id.account, details, Some(&arn))?;
        material::commit(&call.app, drafts, event, Delivered::default(), call.deadline).await?;
        tracing::info!(key = %arn, service, "made for a service");
        Ok(())
    }
}

/// Used through the service by whoever of the account may use that; seen by the
/// account.
fn managed_policy(service: &str, key: &RowId) -> Value {
    let RowId { account, region, .. } = key;
    let short = short_name(service);
    json!({
        "Version": "2012-10-17",
        "Id": format!("auto-{short}-1"),
        "Statement": [
            {
                "Sid": format!("Allow access through {short} for all principals in the account that are authorized to use {short}"),
                "Effect": "Allow",
                "Principal": { "AWS": "*" },
                "Action": USES,
                "Resource": "*",
                "Condition": {
                    "StringEquals": {
                        "kms:CallerAccount": account,
                        "kms:ViaService": via_service(service, region),
                    },
                },
            },
            {
                "Sid": "Allow direct access to key metadata to the account",
                "Effect": "Allow",
                "Principal": { "AWS": arn::root_arn(account) },
                "Action": ["kms:Describe*", "kms:Get*", "kms:List*"],
                "Resource": "*",
            },
        ],
    })
}

/// Used by the service alone.
fn owned_policy(service: &str) -> Value {
    json!({
        "Version": "2012-10-17",
        "Id": "auto-owned-1",
        "Statement": [{
            "Sid": "The service's own",
            "Effect": "Allow",
            "Principal": { "Service": service },
            "Action": USES,
            "Resource": "*",
        }],
    })
}
