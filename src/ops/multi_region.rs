//! Multi-Region keys: one more Region for a key, and another primary key.
//! [`crate::multi_region`] carries it between the Regions.

use super::key::metadata_of;
use super::policy::acceptable;
use super::prelude::*;
use super::tag::tags;
use crate::audit::record::Elsewhere;
use crate::key::{BackingKey, Key as KeyRow, MultiRegion};
use crate::multi_region::{self, News, Own, Shared, Version, deliver, message, unserved};
use crate::policy;
use crate::wire::{Form as _, NOTHING};

/// Makes a replica of a multi-Region primary key in another Region.
pub struct ReplicateKey;

impl Operation for ReplicateKey {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ReplicateKey";
    const ACTION: &'static str = "kms:ReplicateKey";
    const READ_ONLY: bool = false;
    type Request = kms::ReplicateKeyRequest;
    type Response = kms::ReplicateKeyResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.description.get_or_insert_default();
        request.bypass_policy_lockout_safety_check.get_or_insert(false);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let region = given(&request.replica_region)?;
        let id = RowId { region: region.clone(), ..key.held.id.clone() };
        let tags = tags(&request.tags)?;
        may_create(call, &key, region, !tags.is_empty()).await?;
        let mut set = primary_set(&key)?.clone();
        call.check(Stage::Use, &key)?;
        if set.primary == *region || set.replicas.contains(region) {
            let arn = crate::key::arn_of_key(&id);
            return Err(Error::new(Exception::AlreadyExists, format!("Key {arn} already exists")));
        }
        if call.app.key_stores.region(region).is_none() {
            return Err(unserved(region));
        }
        let own = Own {
            policy: key_policy(call, request, &id)?,
            description: request.description.clone().unwrap_or_default(),
            tags,
        };
        set.replicas.insert(region.clone());
        let mut value = key.held.value.clone();
        if value.pending.is_some() {
            set.lacking.insert(region.clone());
        }
        let others = multi_region::synchronize(
            &key.held.id,
            &KeyRow { multi_region: Some(set.clone()), ..value.clone() },
            Vec::new(),
        )?;
        value.multi_region = Some(set);
        let shared = Shared::of(&value, versions(call, &key).await?)?;
        let mut messages =
            vec![message(&key.held.id, region.clone(), News::Replicate { shared, own: own.clone() })];
        messages.extend(others.into_iter().filter(|message| message.to != *region));
        let delivered = deliver(&call.app, messages, call.now_ms, call.deadline).await?;
        delivered.take_part(call)?;
        call.change(Draft::replace(&key.held, &value)?);
        answer(call, &key, &id, &value, own)
    }
}

/// Makes a replica the primary key, and the primary key a replica.
pub struct UpdatePrimaryRegion;

impl Operation for UpdatePrimaryRegion {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "UpdatePrimaryRegion";
    const ACTION: &'static str = "kms:UpdatePrimaryRegion";
    const READ_ONLY: bool = false;
    type Request = kms::UpdatePrimaryRegionRequest;
    type Response = kms::UpdatePrimaryRegionResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let before = primary_set(&key)?.clone();
        let region = given(&request.primary_region)?;
        if before.primary == *region {
            return Err(unsupported(&key, &format!("is the primary key: its Region is {region} already.")));
        }
        let id = RowId { region: region.clone(), ..key.held.id.clone() };
        let found = call.app.registry.key(&id, call.deadline).await?;
        let replica = found.ok_or_else(|| {
            Error::new(Exception::NotFound, format!("Key '{}' does not exist", crate::key::arn_of_key(&id)))
        })?;
        let replica = call.authorise_in(region, Self::ACTION, replica).await?;
        call.check(Stage::Use, &key)?;
        call.check(Stage::Use, &replica)?;
        let mut set = MultiRegion { primary: region.clone(), ..before.clone() };
        for regions in [&mut set.replicas, &mut set.lacking] {
            regions.remove(region);
        }
        set.replicas.insert(before.primary.clone());
        let mut value = key.held.value.clone();
        value.multi_region = Some(set.seen_from(&before.primary));
        let shared = Shared::of(&value, Vec::new())?;
        let tell = |to: &String| message(&key.held.id, to.clone(), News::Synchronize(shared.clone()));
        let messages = before.replicas.iter().map(tell).collect();
        let delivered = deliver(&call.app, messages, call.now_ms, call.deadline).await?;
        delivered.take_part(call)?;
        call.change(Draft::replace(&key.held, &value)?);
        let elsewhere =
            Elsewhere { name: Self::NAME, request: request.event(&NOTHING), response: None, invoked: false };
        call.also_in(&id, elsewhere)?;
        Ok(kms::UpdatePrimaryRegionResponse {})
    }
}

/// The set of a primary key.
fn primary_set(key: &Allowed<Key>) -> Result<&MultiRegion> {
    match &key.held.value.multi_region {
        Some(set) if set.is_primary => Ok(set),
        Some(set) => {
            let primary = &set.primary;
            Err(unsupported(key, &format!("is a multi-Region replica key: its primary key is in {primary}.")))
        }
        None => Err(unsupported(key, "is not a multi-Region key.")),
    }
}

pub(super) fn unsupported(key: &Key, why: &str) -> Error {
    Error::new(Exception::UnsupportedOperation, format!("{} {why}", key.arn))
}

/// Asks for what making a key takes in the replica's Region.
async fn may_create(call: &mut Call, key: &Key, region: &str, tagged: bool) -> Result<()> {
    let KeyRow { spec, usage, origin, .. } = &key.held.value;
    for (name, value) in [
        ("kms:KeySpec", spec.text()),
        ("kms:CustomerMasterKeySpec", spec.text()),
        ("kms:KeyUsage", usage.text()),
        ("kms:CustomerMasterKeyUsage", usage.text()),
        ("kms:KeyOrigin", origin.text()),
        ("kms:MultiRegion", "true"),
        ("kms:MultiRegionKeyType", kms::MultiRegionKeyType::Replica.text()),
    ] {
        call.know(name, value);
    }
    call.authorise_in(region, "kms:CreateKey", Account).await?;
    if tagged {
        call.authorise_in(region, "kms:TagResource", Account).await?;
    }
    Ok(())
}

/// Every version of the key's material.
async fn versions(call: &Call, key: &Key) -> Result<Vec<Version>> {
    let rows: Vec<Held<BackingKey>> = call.app.registry.of_key(&key.held.id, call.deadline).await?;
    let version = |held: Held<BackingKey>| {
        let unreadable = || Error::internal(format!("row {} has no id", held.id));
        Ok(Version { id: held.id.id.parse().map_err(|_| unreadable())?, row: held.value })
    };
    rows.into_iter().map(version).collect()
}

fn key_policy(call: &Call, request: &kms::ReplicateKeyRequest, id: &RowId) -> Result<String> {
    let Some(text) = &request.policy else { return Ok(policy::default_key_policy(call.account())) };
    let arn = crate::key::arn_of_key(id);
    acceptable(call, text, request.bypass_policy_lockout_safety_check, &arn, None)?;
    Ok(text.clone())
}

/// The answer, and the event in the replica's Region. KMS tells of a key that
/// is still being created; the next question finds it ready.
fn answer(
    call: &mut Call,
    key: &Key,
    id: &RowId,
    primary: &KeyRow,
    own: Own,
) -> Result<kms::ReplicateKeyResponse> {
    let replica = KeyRow {
        state: kms::KeyState::Creating,
        description: own.description.clone(),
        created_ms: call.now_ms,
        expiration: None,
        multi_region: primary.multi_region.as_ref().map(|set| set.seen_from(&id.region)),
        ..key.held.value.clone()
    };
    let metadata = metadata_of(id, &replica, replica.state, None);
    let made = kms::CreateKeyResponse { key_metadata: Some(metadata.clone()) };
    let asked = kms::CreateKeyRequest {
        description: Some(own.description),
        key_spec: Some(replica.spec as i32),
        key_usage: Some(replica.usage as i32),
        origin: Some(replica.origin as i32),
        multi_region: Some(true),
        ..Default::default()
    };
    let elsewhere = Elsewhere {
        name: "CreateKey",
        request: asked.event(&NOTHING),
        response: made.event(&NOTHING),
        invoked: true,
    };
    call.also_in(id, elsewhere)?;
    let tag = |(key, value): (String, String)| kms::Tag { tag_key: Some(key), tag_value: Some(value) };
    Ok(kms::ReplicateKeyResponse {
        replica_key_metadata: Some(metadata),
        replica_policy: Some(own.policy),
        replica_tags: own.tags.into_iter().map(tag).collect(),
    })
}
