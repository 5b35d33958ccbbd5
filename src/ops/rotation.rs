//! The rotation of a key's material: by the clock, which [`crate::jobs`] looks
//! at, and on demand.

use super::key::{expiration_model, marker, unmarked};
use super::multi_region::unsupported;
use super::prelude::*;
use crate::hsm::BackingId;
use crate::key::{BackingKey, Key as KeyRow, Rotation, StoredHome};
use crate::material;
use crate::multi_region::{deliver, synchronize};
use crate::proto::kms::RotationType;

const PERIOD_DAYS: i32 = 365;
/// KMS's limit of rotations on demand of one key.
const ON_DEMAND_MAX: u32 = 25;
const ROTATIONS_PAGE: i32 = 100;

/// Has a key's material rotated by the clock.
pub struct EnableKeyRotation;

impl Operation for EnableKeyRotation {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "EnableKeyRotation";
    const ACTION: &'static str = "kms:EnableKeyRotation";
    const READ_ONLY: bool = false;
    type Request = kms::EnableKeyRotationRequest;
    type Response = kms::EnableKeyRotationResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.rotation_period_in_days.get_or_insert(PERIOD_DAYS);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_rotates_by_itself(&key)?;
        check_not_replica(&key)?;
        call.check(Stage::Use, &key)?;
        let period_days = request.rotation_period_in_days.unwrap_or(PERIOD_DAYS);
        let mut value = key.held.value.clone();
        // The same again changes no date.
        if value.rotation.is_none_or(|rotation| rotation.period_days != period_days) {
            value.rotation = Some(Rotation::from_now(period_days, call.now_ms));
            share(call, &key, &value).await?;
        }
        Ok(kms::EnableKeyRotationResponse {})
    }
}

/// Ends the rotation by the clock.
pub struct DisableKeyRotation;

impl Operation for DisableKeyRotation {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DisableKeyRotation";
    const ACTION: &'static str = "kms:DisableKeyRotation";
    const READ_ONLY: bool = false;
    type Request = kms::DisableKeyRotationRequest;
    type Response = kms::DisableKeyRotationResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_rotates_by_itself(&key)?;
        check_not_replica(&key)?;
        call.check(Stage::Use, &key)?;
        let mut value = key.held.value.clone();
        if value.rotation.take().is_some() {
            share(call, &key, &value).await?;
        }
        Ok(kms::DisableKeyRotationResponse {})
    }
}

/// Tells whether and when a key's material is rotated by the clock.
pub struct GetKeyRotationStatus;

impl Operation for GetKeyRotationStatus {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GetKeyRotationStatus";
    const ACTION: &'static str = "kms:GetKeyRotationStatus";
    const READ_ONLY: bool = true;
    type Request = kms::GetKeyRotationStatusRequest;
    type Response = kms::GetKeyRotationStatusResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(_: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_has_rotations(&key)?;
        // A key that is about to be deleted is not rotated, until that is cancelled.
        let rotation = key.held.value.rotation.filter(|_| key.held.value.deletion.is_none());
        Ok(kms::GetKeyRotationStatusResponse {
            key_rotation_enabled: Some(rotation.is_some()),
            key_id: Some(key.arn.clone()),
            rotation_period_in_days: rotation.map(|rotation| rotation.period_days),
            next_rotation_date: rotation.map(|rotation| timestamp(rotation.next_ms)),
            // It is done when RotateKeyOnDemand answers.
            on_demand_rotation_start_date: None,
        })
    }
}

/// Rotates a key's material at once.
pub struct RotateKeyOnDemand;

impl Operation for RotateKeyOnDemand {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "RotateKeyOnDemand";
    const ACTION: &'static str = "kms:RotateKeyOnDemand";
    const READ_ONLY: bool = false;
    type Request = kms::RotateKeyOnDemandRequest;
    type Response = kms::RotateKeyOnDemandResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_has_rotations(&key)?;
        check_not_replica(&key)?;
        call.check(Stage::Use, &key)?;
        if key.held.value.rotations_on_demand >= ON_DEMAND_MAX {
            return Err(Error::new(
                Exception::LimitExceeded,
                format!("{} was rotated on demand {ON_DEMAND_MAX} times, which is the most.", key.arn),
            ));
        }
        let turn =
            material::turn(&call.app, &key.held, RotationType::OnDemand, call.now_ms, call.deadline).await?;
        turn.drafts.into_iter().for_each(|draft| call.change(draft));
        deliver(&call.app, turn.messages, call.now_ms, call.deadline).await?.take_part(call)?;
        call.service_event("RotateKey", &key.held.id.account, turn.details, Some(&key.arn))?;
        Ok(kms::RotateKeyOnDemandResponse { key_id: Some(key.arn.clone()) })
    }
}

/// Lists a key's rotations, or all its material.
pub struct ListKeyRotations;

impl Operation for ListKeyRotations {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ListKeyRotations";
    const ACTION: &'static str = "kms:ListKeyRotations";
    const READ_ONLY: bool = true;
    type Request = kms::ListKeyRotationsRequest;
    type Response = kms::ListKeyRotationsResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_has_rotations(&key)?;
        let all = choice(request.include_key_material, kms::IncludeKeyMaterial::RotationsOnly)
            == kms::IncludeKeyMaterial::AllKeyMaterial;
        let mut rows: Vec<Held<BackingKey>> = call.app.registry.of_key(&key.held.id, call.deadline).await?;
        rows.retain(|row| all || row.value.rotated.is_some());
        // In the order in which they became, or will become, the current one.
        rows.sort_by_key(|row| (when(row), row.id.id.clone()));
        let begin = match &request.marker {
            None => 0,
            Some(marker) => {
                let after = unmarked(marker)?;
                let place = rows.iter().position(|row| row.id.id == after);
                1 + place
                    .ok_or_else(|| Error::new(Exception::InvalidMarker, "Could not deserialize token."))?
            }
        };
        let limit = usize::try_from(request.limit.unwrap_or(ROTATIONS_PAGE)).unwrap_or(1);
        let page: Vec<&Held<BackingKey>> = rows.iter().skip(begin).take(limit).collect();
        let more = rows.len() > begin + page.len();
        Ok(kms::ListKeyRotationsResponse {
            rotations: page.iter().map(|row| entry(&key, row)).collect(),
            next_marker: page.last().filter(|_| more).map(|row| marker(&row.id.id)),
            truncated: Some(more),
        })
    }
}

fn when(row: &Held<BackingKey>) -> i64 {
    row.value.rotated.map_or(row.value.created_ms, |rotated| rotated.at_ms)
}

fn entry(key: &Key, row: &Held<BackingKey>) -> kms::RotationsListEntry {
    let KeyRow { current, pending, multi_region, .. } = &key.held.value;
    let is = |id: &Option<BackingId>| id.is_some_and(|id| id.to_string() == row.id.id);
    let is_there = row.value.home != StoredHome::Deleted;
    let lacking = multi_region.as_ref().is_some_and(|set| set.is_primary && !set.lacking.is_empty());
    let state = match (is(current), is(pending)) {
        (true, _) => kms::KeyMaterialState::Current,
        (_, true) if lacking || !is_there => kms::KeyMaterialState::PendingMultiRegionImportAndRotation,
        (_, true) => kms::KeyMaterialState::PendingRotation,
        _ => kms::KeyMaterialState::NonCurrent,
    };
    let import = row.value.imported.as_ref();
    let import_state = match is_there {
        true => kms::ImportState::Imported,
        false => kms::ImportState::PendingImport,
    };
    let terms = import.filter(|_| is_there);
    kms::RotationsListEntry {
        key_id: Some(key.held.id.id.clone()),
        key_material_id: Some(row.id.id.clone()),
        key_material_description: import.and_then(|import| import.description.clone()),
        import_state: import.map(|_| import_state as i32),
        key_material_state: Some(state as i32),
        expiration_model: terms.map(|terms| expiration_model(terms.valid_to_ms) as i32),
        valid_to: terms.and_then(|terms| terms.valid_to_ms).map(timestamp),
        rotation_date: row.value.rotated.map(|rotated| timestamp(rotated.at_ms)),
        rotation_type: row.value.rotated.map(|rotated| rotated.by as i32),
    }
}

/// Only symmetric encryption keys of the default key store have rotations.
fn check_has_rotations(key: &Key) -> Result<()> {
    let KeyRow { spec, custom_key_store_id, .. } = &key.held.value;
    let refused = |why: &str| Err(Error::new(Exception::UnsupportedOperation, format!("{} {why}", key.arn)));
    if *spec != kms::KeySpec::SymmetricDefault {
        return refused(&format!("key spec is {} which is not valid for this operation.", spec.text()));
    }
    match custom_key_store_id {
        Some(_) => refused("is in a custom key store, where keys are not rotated."),
        None => Ok(()),
    }
}

/// A replica is rotated with its primary key.
fn check_not_replica(key: &Key) -> Result<()> {
    match key.held.value.is_replica() {
        true => Err(unsupported(key, "is a multi-Region replica key: its rotation is its primary key's.")),
        false => Ok(()),
    }
}

/// Makes a change of a key durable that its replicas share.
async fn share(call: &mut Call, key: &Key, value: &KeyRow) -> Result<()> {
    call.change(Draft::replace(&key.held, value)?);
    let messages = synchronize(&key.held.id, value, Vec::new())?;
    deliver(&call.app, messages, call.now_ms, call.deadline).await?.take_part(call)
}

/// Of these, only those whose material the HSM made are rotated by the clock.
fn check_rotates_by_itself(key: &Key) -> Result<()> {
    check_has_rotations(key)?;
    match key.held.value.origin {
        kms::OriginType::AwsKms => Ok(()),
        origin => Err(Error::new(
            Exception::UnsupportedOperation,
            format!("{} origin is {} which is not valid for this operation.", key.arn, origin.text()),
        )),
    }
}
