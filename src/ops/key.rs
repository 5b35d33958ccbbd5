//! The life of a key, but for its end.

use std::sync::Arc;

use super::material::public_key;
use super::policy::acceptable;
use super::prelude::*;
use super::tag::tags;
use crate::hsm::{Cluster, MemberState, Residence};
use crate::key::{Key as KeyRow, MultiRegion};
use crate::material;
use crate::policy;
use crate::registry::LoadedKey;
use crate::store::Kind;

const KEYS_PAGE: i32 = 100;

/// Makes a key.
pub struct CreateKey;

impl Operation for CreateKey {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "CreateKey";
    const ACTION: &'static str = "kms:CreateKey";
    const READ_ONLY: bool = false;
    type Request = kms::CreateKeyRequest;
    type Response = kms::CreateKeyResponse;
    type On = Account;

    fn defaults(request: &mut Self::Request) {
        if request.key_spec.is_none() && request.customer_master_key_spec.is_none() {
            request.key_spec = Some(kms::KeySpec::SymmetricDefault as i32);
        }
        request.origin.get_or_insert(kms::OriginType::AwsKms as i32);
        request.description.get_or_insert_default();
        request.bypass_policy_lockout_safety_check.get_or_insert(false);
        request.multi_region.get_or_insert(false);
    }

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn prepare(call: &mut Call, request: &Self::Request, _: &Account) -> Result<()> {
        // Whichever member names it, and whether it is named or follows from the other.
        let spec = key_spec(request)?;
        let usage = request.key_usage.map(|_| choice(request.key_usage, kms::KeyUsageType::Unspecified));
        let usage = spec::usage(spec, usage)?;
        for key in ["kms:KeySpec", "kms:CustomerMasterKeySpec"] {
            call.know(key, spec.text());
        }
        for key in ["kms:KeyUsage", "kms:CustomerMasterKeyUsage"] {
            call.know(key, usage.text());
        }
        if request.multi_region == Some(true) {
            call.know("kms:MultiRegionKeyType", kms::MultiRegionKeyType::Primary.text());
        }
        Ok(())
    }

    async fn run(
        call: &mut Call,
        request: &Self::Request,
        account: Allowed<Account>,
    ) -> Result<Self::Response> {
        let spec = key_spec(request)?;
        let usage = spec::usage(
            spec,
            request.key_usage.map(|_| choice(request.key_usage, kms::KeyUsageType::Unspecified)),
        )?;
        let origin = choice(request.origin, kms::OriginType::AwsKms);
        check_origin(origin, request.custom_key_store_id.as_deref())?;
        let tags = tags(&request.tags)?;
        if !tags.is_empty() {
            call.authorise("kms:TagResource", account.into_inner()).await?;
        }
        let policy = key_policy(call, request)?;
        let cluster = match &request.custom_key_store_id {
            Some(id) => in_key_store(call, id, spec).await?,
            None => call.default_cluster()?.clone(),
        };
        material::check_capability(&cluster, spec, usage)?;
        let multi_region = request.multi_region == Some(true);
        if multi_region {
            check_multi_region(&cluster, spec, request.custom_key_store_id.is_some())?;
        }
        if origin == kms::OriginType::External {
            check_imports(&cluster, spec)?;
        }
        room(call).await?;

        let row = RowId {
            kind: Kind::Key,
            region: call.region().to_owned(),
            account: call.account().to_owned(),
            id: new_id(multi_region),
        };
        let mut key = KeyRow {
            spec,
            usage,
            state: kms::KeyState::PendingImport,
            origin,
            manager: kms::KeyManagerType::Customer,
            description: request.description.clone().unwrap_or_default(),
            created_ms: call.now_ms,
            deletion: None,
            policy,
            tags,
            current: None,
            pending: None,
            expiration: None,
            rotation: None,
            rotations_on_demand: 0,
            custom_key_store_id: request.custom_key_store_id.clone(),
            multi_region: multi_region.then(|| MultiRegion::primary(call.region())),
        };
        if origin != kms::OriginType::External {
            let version = material::make(&call.app, &cluster, &row, &key, call.now_ms, call.deadline).await?;
            key.state = kms::KeyState::Enabled;
            key.current = Some(version.id);
            version.drafts(&row)?.into_iter().for_each(|draft| call.change(draft));
        }
        // Behind its intent: who deletes the key store now, sees that.
        if let Some(id) = &key.custom_key_store_id {
            call.connected_cluster(id).await?;
        }
        call.change(Draft::insert(row.clone(), &key)?);
        call.names(&row.account, &crate::key::arn_of_key(&row));
        Ok(kms::CreateKeyResponse { key_metadata: Some(metadata(call, &row, &key).await?) })
    }
}

/// Tells a key's metadata.
pub struct DescribeKey;

impl Operation for DescribeKey {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DescribeKey";
    const ACTION: &'static str = "kms:DescribeKey";
    const READ_ONLY: bool = true;
    type Request = kms::DescribeKeyRequest;
    type Response = kms::DescribeKeyResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        Ok(KeyRefName::Described(given(&request.key_id)?.clone()))
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        Ok(kms::DescribeKeyResponse {
            key_metadata: Some(metadata(call, &key.held.id, &key.held.value).await?),
        })
    }
}

/// Lists the account's keys.
pub struct ListKeys;

impl Operation for ListKeys {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ListKeys";
    const ACTION: &'static str = "kms:ListKeys";
    const READ_ONLY: bool = true;
    type Request = kms::ListKeysRequest;
    type Response = kms::ListKeysResponse;
    type On = Account;

    fn on(request: &Self::Request) -> Result<()> {
        if request.resource_owners.contains(&(kms::ResourceOwnerType::OtherAccountsViaRam as i32)) {
            return Err(Error::new(
                Exception::UnsupportedOperation,
                "Keys that other accounts share through RAM are not supported.",
            ));
        }
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let page: Page<KeyRow> =
            Page::read(call, None, request.limit.unwrap_or(KEYS_PAGE), &request.marker).await?;
        let entry = |held: &Held<KeyRow>| kms::KeyListEntry {
            key_id: Some(held.id.id.clone()),
            key_arn: Some(crate::key::arn_of_key(&held.id)),
        };
        Ok(kms::ListKeysResponse {
            keys: page.rows.iter().map(entry).collect(),
            truncated: Some(page.next.is_some()),
            next_marker: page.next,
        })
    }
}

/// Replaces a key's description.
pub struct UpdateKeyDescription;

impl Operation for UpdateKeyDescription {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "UpdateKeyDescription";
    const ACTION: &'static str = "kms:UpdateKeyDescription";
    const READ_ONLY: bool = false;
    type Request = kms::UpdateKeyDescriptionRequest;
    type Response = kms::UpdateKeyDescriptionResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let description = given(&request.description)?.clone();
        update(call, &key, Stage::Change, |key| key.description = description)?;
        Ok(kms::UpdateKeyDescriptionResponse {})
    }
}

/// Makes a disabled key usable again.
pub struct EnableKey;

impl Operation for EnableKey {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "EnableKey";
    const ACTION: &'static str = "kms:EnableKey";
    const READ_ONLY: bool = false;
    type Request = kms::EnableKeyRequest;
    type Response = kms::EnableKeyResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        update(call, &key, Stage::Switch, |key| key.state = kms::KeyState::Enabled)?;
        Ok(kms::EnableKeyResponse {})
    }
}

/// Stops every cryptographic use of a key.
pub struct DisableKey;

impl Operation for DisableKey {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DisableKey";
    const ACTION: &'static str = "kms:DisableKey";
    const READ_ONLY: bool = false;
    type Request = kms::DisableKeyRequest;
    type Response = kms::DisableKeyResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        update(call, &key, Stage::Switch, |key| key.state = kms::KeyState::Disabled)?;
        Ok(kms::DisableKeyResponse {})
    }
}

/// Returns the public key of an asymmetric key.
pub struct GetPublicKey;

impl Operation for GetPublicKey {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GetPublicKey";
    const ACTION: &'static str = "kms:GetPublicKey";
    const READ_ONLY: bool = true;
    type Request = kms::GetPublicKeyRequest;
    type Response = kms::GetPublicKeyResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        call.check(Stage::Use, &key)?;
        if is_symmetric(key.held.value.spec) {
            return Err(Error::new(
                Exception::UnsupportedOperation,
                format!("{} is a symmetric key: it has no public key.", key.arn),
            ));
        }
        let value = &key.held.value;
        Ok(kms::GetPublicKeyResponse {
            key_id: Some(key.arn.clone()),
            public_key: Some(public_key(call, &key).await?),
            customer_master_key_spec: deprecated_spec(value.spec),
            key_spec: Some(value.spec as i32),
            key_usage: Some(value.usage as i32),
            encryption_algorithms: numbers(spec::encryption_algorithms(value.spec, value.usage)),
            signing_algorithms: numbers(spec::signing_algorithms(value.spec, value.usage)),
            key_agreement_algorithms: numbers(spec::agreement_algorithms(value.usage)),
            encapsulation_algorithms: Vec::new(),
        })
    }
}

/// A page of a listing.
pub(super) struct Page<T> {
    pub(super) rows: Vec<Held<T>>,
    /// NextMarker: the id of the page's last row, in hex so that nobody builds on it.
    pub(super) next: Option<String>,
}

impl<T: crate::registry::Stored> Page<T> {
    /// Reads a page of the account's rows after a marker.
    pub(super) async fn read(
        call: &Call,
        parent: Option<&str>,
        limit: i32,
        from: &Option<String>,
    ) -> Result<Self> {
        let after = from.as_deref().map(unmarked).transpose()?;
        let limit = u32::try_from(limit).unwrap_or(1);
        let registry = &call.app.registry;
        let mut rows: Vec<Held<T>> = registry
            .page(call.region(), call.account(), parent, after.as_deref(), limit + 1, call.deadline)
            .await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|last| self::marker(&last.id.id));
        Ok(Page { rows, next })
    }
}

/// NextMarker: the id of a page's last row, in hex so that nobody builds on it.
pub(super) fn marker(id: &str) -> String {
    hex::encode(id)
}

/// The id in a marker.
pub(super) fn unmarked(marker: &str) -> Result<String> {
    let text = hex::decode(marker).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(bad_marker)
}

/// The exception for a marker that no answer had.
pub(super) fn bad_marker() -> Error {
    Error::new(Exception::InvalidMarker, "Could not deserialize token.")
}

/// A key's metadata.
async fn metadata(call: &Call, id: &RowId, key: &KeyRow) -> Result<kms::KeyMetadata> {
    let key_store = match &key.custom_key_store_id {
        Some(store) => Some(call.key_store_of(id, store).await?),
        None => None,
    };
    Ok(metadata_of(id, key, call.key_state(key), key_store.map(|store| store.value.cluster)))
}

/// The metadata of a key in a state and in a custom key store's cluster.
pub(super) fn metadata_of(
    id: &RowId,
    key: &KeyRow,
    state: kms::KeyState,
    cluster: Option<String>,
) -> kms::KeyMetadata {
    kms::KeyMetadata {
        aws_account_id: Some(id.account.clone()),
        key_id: Some(id.id.clone()),
        arn: Some(crate::key::arn_of_key(id)),
        creation_date: Some(timestamp(key.created_ms)),
        enabled: Some(state == kms::KeyState::Enabled),
        description: Some(key.description.clone()),
        key_usage: Some(key.usage as i32),
        key_state: Some(state as i32),
        deletion_date: key.deletion.and_then(|deletion| deletion.due_ms).map(timestamp),
        origin: Some(key.origin as i32),
        custom_key_store_id: key.custom_key_store_id.clone(),
        cloud_hsm_cluster_id: cluster,
        key_manager: Some(key.manager as i32),
        customer_master_key_spec: deprecated_spec(key.spec),
        key_spec: Some(key.spec as i32),
        encryption_algorithms: numbers(spec::encryption_algorithms(key.spec, key.usage)),
        signing_algorithms: numbers(spec::signing_algorithms(key.spec, key.usage)),
        key_agreement_algorithms: numbers(spec::agreement_algorithms(key.usage)),
        mac_algorithms: numbers(spec::mac_algorithms(key.spec)),
        multi_region: Some(key.multi_region.is_some()),
        multi_region_configuration: key.multi_region.as_ref().map(|set| multi_region_configuration(id, set)),
        pending_deletion_window_in_days: key
            .deletion
            .filter(|deletion| deletion.due_ms.is_none())
            .map(|deletion| deletion.window_days),
        expiration_model: key.expiration.map(|expiration| expiration_model(expiration.valid_to_ms) as i32),
        valid_to: key.expiration.and_then(|expiration| expiration.valid_to_ms).map(timestamp),
        current_key_material_id: (key.spec == kms::KeySpec::SymmetricDefault)
            .then_some(key.current)
            .flatten()
            .map(|id| id.to_string()),
        ..Default::default()
    }
}

fn multi_region_configuration(id: &RowId, set: &MultiRegion) -> kms::MultiRegionConfiguration {
    let related = |region: &String| kms::MultiRegionKey {
        arn: Some(crate::key::arn_of_key(&RowId { region: region.clone(), ..id.clone() })),
        region: Some(region.clone()),
    };
    kms::MultiRegionConfiguration {
        multi_region_key_type: Some(set.key_type() as i32),
        primary_key: Some(related(&set.primary)),
        replica_keys: set.replicas.iter().map(related).collect(),
    }
}

/// A UUID; a multi-Region key's looks so that one knows it.
fn new_id(multi_region: bool) -> String {
    let id = uuid::Uuid::new_v4();
    match multi_region {
        true => format!("mrk-{}", id.simple()),
        false => id.to_string(),
    }
}

/// Material that goes to another Region goes wrapped.
fn check_multi_region(cluster: &Cluster, spec: kms::KeySpec, in_key_store: bool) -> Result<()> {
    if in_key_store {
        return Err(Error::new(
            Exception::UnsupportedOperation,
            "A multi-Region key cannot be made in a custom key store.",
        ));
    }
    match spec::material(spec).and_then(|material| cluster.residence(material)) {
        Some(Residence::Wrapped) => Ok(()),
        _ => Err(spec::unsupported(
            spec,
            "the HSMs cannot wrap such key material, so it cannot be in several Regions",
        )),
    }
}

/// Changes a key in a state that allows it.
fn update(call: &mut Call, key: &LoadedKey, stage: Stage, change: impl FnOnce(&mut KeyRow)) -> Result<()> {
    call.check(stage, key)?;
    let mut value = key.held.value.clone();
    change(&mut value);
    call.change(Draft::replace(&key.held, &value)?);
    Ok(())
}

fn numbers<T: Text>(values: &[T]) -> Vec<i32> {
    values.iter().map(|value| value.number()).collect()
}

/// CustomerMasterKeySpec, which has the older specs only.
fn deprecated_spec(spec: kms::KeySpec) -> Option<i32> {
    kms::CustomerMasterKeySpec::from_text(spec.text()).map(|spec| spec as i32)
}

fn is_symmetric(spec: kms::KeySpec) -> bool {
    spec == kms::KeySpec::SymmetricDefault || !spec::mac_algorithms(spec).is_empty()
}

fn key_spec(request: &kms::CreateKeyRequest) -> Result<kms::KeySpec> {
    match (request.key_spec, request.customer_master_key_spec) {
        (Some(_), Some(_)) => Err(Error::validation(
            "You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.",
        )),
        (None, Some(old)) => {
            let text = choice(Some(old), kms::CustomerMasterKeySpec::Unspecified).text();
            kms::KeySpec::from_text(text)
                .ok_or_else(|| Error::internal("a CustomerMasterKeySpec that is no KeySpec"))
        }
        (new, None) => Ok(choice(new, kms::KeySpec::SymmetricDefault)),
    }
}

fn check_origin(origin: kms::OriginType, key_store: Option<&str>) -> Result<()> {
    match origin {
        kms::OriginType::AwsKms | kms::OriginType::External if key_store.is_none() => Ok(()),
        kms::OriginType::AwsCloudhsm if key_store.is_some() => Ok(()),
        kms::OriginType::AwsCloudhsm => {
            Err(Error::validation("Origin AWS_CLOUDHSM needs a CustomKeyStoreId."))
        }
        _ if key_store.is_some() => Err(Error::validation(format!(
            "Origin {} cannot be used with a CustomKeyStoreId: its keys have the origin AWS_CLOUDHSM.",
            origin.text()
        ))),
        kms::OriginType::AwsKms
        | kms::OriginType::External
        | kms::OriginType::ExternalKeyStore
        | kms::OriginType::Unspecified => Err(Error::new(
            Exception::UnsupportedOperation,
            format!("Origin {} is not supported.", origin.text()),
        )),
    }
}

/// The policy of a new key: KMS's default, or the one that is given.
fn key_policy(call: &Call, request: &kms::CreateKeyRequest) -> Result<String> {
    let Some(text) = &request.policy else { return Ok(policy::default_key_policy(call.account())) };
    let arn = crate::key::arn::key_arn(call.region(), call.account(), "new");
    acceptable(call, text, request.bypass_policy_lockout_safety_check, &arn, None)?;
    Ok(text.clone())
}

/// Whether the account may have one more key.
async fn room(call: &Call) -> Result<()> {
    let (account, most) = (call.account(), call.app.brakes.counts().keys_per_account_max);
    let count = call.app.registry.count(Kind::Key, call.region(), account, None).await?;
    match count >= most {
        true => Err(Error::new(
            Exception::LimitExceeded,
            format!("Account {account} has as many keys as an account may have: {most}."),
        )),
        false => Ok(()),
    }
}

/// The cluster of a custom key store, if a key can be made in it.
async fn in_key_store(call: &mut Call, id: &str, spec: kms::KeySpec) -> Result<Arc<Cluster>> {
    let cluster = call.connected_cluster(id).await?;
    let (rules, members) = (cluster.rules(), cluster.members());
    let is_active = |state| matches!(state, MemberState::Serving | MemberState::Synchronizing);
    let serving = members.iter().filter(|member| is_active(member.state)).count();
    if serving < usize::from(rules.required_copies) && serving > 0 {
        return Err(Error::new(
            Exception::CloudHsmClusterInvalidConfiguration,
            format!(
                "A {} key in custom key store {id} must be on {} HSMs; {serving} of {} are active.",
                spec.text(),
                rules.required_copies,
                members.len()
            ),
        ));
    }
    Ok(cluster)
}

/// ExpirationModel of material with this ValidTo.
pub(super) fn expiration_model(valid_to_ms: Option<i64>) -> kms::ExpirationModelType {
    match valid_to_ms {
        Some(_) => kms::ExpirationModelType::KeyMaterialExpires,
        None => kms::ExpirationModelType::KeyMaterialDoesNotExpire,
    }
}

/// Imported material is kept wrapped, so a kind of key that the cluster cannot
/// wrap is not imported.
fn check_imports(cluster: &Cluster, spec: kms::KeySpec) -> Result<()> {
    let residence = spec::material(spec).and_then(|material| cluster.residence(material));
    match (spec, residence) {
        (kms::KeySpec::MlDsa44 | kms::KeySpec::MlDsa65 | kms::KeySpec::MlDsa87, _) => {
            Err(spec::unsupported(spec, "such key material cannot be imported"))
        }
        (_, Some(Residence::Wrapped)) => Ok(()),
        _ => Err(spec::unsupported(spec, "the HSMs cannot wrap such key material, so it cannot be imported")),
    }
}
