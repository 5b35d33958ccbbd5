//! What the API does, a file per family. This list is the API: gRPC and
//! AWS JSON, and with them authorisation, audit and the tests that walk the API,
//! are made from it.

mod access_key;
mod admin;
mod agreement;
mod alias;
mod audit_events;
mod cipher;
mod cluster;
mod data_key;
mod deletion;
mod digest_keys;
mod encapsulation;
pub mod events;
mod explain;
mod grant;
mod hsm;
mod import;
mod insights;
mod inventory;
mod key;
mod key_store;
mod mac;
mod material;
mod member;
mod membership;
mod multi_region;
mod organization;
mod policy;
mod random;
mod rotation;
mod signature;
mod tag;
mod trail;
mod trail_logging;
mod trail_selectors;
mod trail_tags;
mod usage;

use crate::operation::Operation;
use crate::wire::json::Json;

/// Something that is done with every operation of the API.
pub trait Visitor {
    /// Called once for each.
    fn visit<O>(&mut self)
    where
        O: Operation,
        O::Request: prost::Message + Json,
        O::Response: prost::Message + Default + Json;
}

macro_rules! operations {
    ($($module:ident: $($operation:ident)+,)*) => {
        /// Visits every operation that answers once. (StreamEvents, which
        /// answers many times, is the only other one.)
        pub fn each(visitor: &mut impl Visitor) {
            $($(visitor.visit::<$module::$operation>();)+)*
        }
    };
}

operations! {
    key: CreateKey DescribeKey ListKeys UpdateKeyDescription EnableKey DisableKey GetPublicKey,
    deletion: ScheduleKeyDeletion CancelKeyDeletion,
    usage: GetKeyLastUsage,
    import: GetParametersForImport ImportKeyMaterial DeleteImportedKeyMaterial,
    multi_region: ReplicateKey UpdatePrimaryRegion,
    rotation: EnableKeyRotation DisableKeyRotation GetKeyRotationStatus RotateKeyOnDemand ListKeyRotations,
    alias: CreateAlias UpdateAlias DeleteAlias ListAliases,
    cipher: Encrypt Decrypt ReEncrypt,
    data_key: GenerateDataKey GenerateDataKeyWithoutPlaintext GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext,
    random: GenerateRandom,
    signature: Sign Verify,
    mac: GenerateMac VerifyMac,
    agreement: DeriveSharedSecret,
    encapsulation: Encapsulate Decapsulate,
    grant: CreateGrant ListGrants ListRetirableGrants RetireGrant RevokeGrant,
    policy: GetKeyPolicy PutKeyPolicy ListKeyPolicies,
    tag: TagResource UntagResource ListResourceTags,
    events: LookupEvents VerifyEvents,
    key_store: CreateCustomKeyStore ConnectCustomKeyStore DisconnectCustomKeyStore UpdateCustomKeyStore DeleteCustomKeyStore DescribeCustomKeyStores,
    trail: CreateTrail UpdateTrail DeleteTrail GetTrail DescribeTrails ListTrails,
    trail_logging: StartLogging StopLogging GetTrailStatus,
    trail_selectors: PutEventSelectors GetEventSelectors,
    insights: PutInsightSelectors GetInsightSelectors ListInsightsMetricData,
    trail_tags: AddTags RemoveTags ListTags,
    digest_keys: ListPublicKeys RotateDigestKey,
    organization: DescribeOrganization,
    audit_events: PutAuditEvents,
    access_key: CreateAccessKey ListAccessKeys UpdateAccessKey DeleteAccessKey,
    hsm: ListMembers,
    member: ListTokens AddMember RemoveMember ReplaceMember BeginMaintenance EndMaintenance,
    inventory: CheckMember,
    cluster: CreateCluster InitializeCluster DescribeClusters DeleteCluster,
    admin: RecoverKeyPolicy ConfirmClock,
    explain: ExplainAccess,
}

/// What most operations need: the traits and types of the heart.
mod prelude {
    pub(super) use crate::error::{Error, Exception, Result};
    pub(super) use crate::key::{Stage, spec};
    pub(super) use crate::operation::{Allowed, Call, Operation};
    pub(super) use crate::proto::kms;
    pub(super) use crate::registry::{Draft, Held, from_hsm};
    pub(super) use crate::resource::{Account, AliasName, Host, Key, KeyRefName, Resource};
    pub(super) use crate::service::Service;
    pub(super) use crate::store::RowId;
    pub(super) use crate::wire::Text;

    /// A member that validation has shown to be there.
    pub(super) fn given<T>(member: &Option<T>) -> Result<&T> {
        member
            .as_ref()
            .ok_or_else(|| Error::internal("a required member passed validation without being there"))
    }

    /// The key that a KeyId names: by id, ARN, alias name or alias ARN.
    pub(super) fn by_key_id(key_id: &Option<String>) -> Result<KeyRefName> {
        Ok(KeyRefName::Given(given(key_id)?.clone()))
    }

    /// The key that a KeyId names, where KMS takes no alias.
    pub(super) fn by_key_id_only(key_id: &Option<String>) -> Result<KeyRefName> {
        Ok(KeyRefName::NotAlias(given(key_id)?.clone()))
    }

    /// An enum member that validation has shown to be known, or its default.
    pub(super) fn choice<T: Text>(number: Option<i32>, default: T) -> T {
        number.and_then(|number| T::try_from(number).ok()).unwrap_or(default)
    }

    /// An enum member that has no default.
    pub(super) fn chosen<T: Text>(number: Option<i32>) -> Result<T> {
        let number = *given(&number)?;
        T::try_from(number)
            .map_err(|_| Error::internal("an enum member passed validation with an unknown value"))
    }

    /// Refuses what shows the whole installation to all but the account that
    /// runs it.
    pub(super) fn management_only(call: &Call) -> Result<()> {
        if call.account() == call.app.account {
            return Ok(());
        }
        Err(Error::new(
            Exception::AccessDenied,
            format!("User: {} is not of the management account, which alone may do this", call.caller.arn()),
        ))
    }

    /// Milliseconds since the epoch as a message's timestamp.
    pub(super) fn timestamp(ms: i64) -> prost_types::Timestamp {
        let nanos = i32::try_from(ms.rem_euclid(1000)).unwrap_or_default() * 1_000_000;
        prost_types::Timestamp { seconds: ms.div_euclid(1000), nanos }
    }
}
