//! GenerateMac and VerifyMac.

use super::material::{current, incompatible, usable};
use super::prelude::*;

/// Makes an HMAC.
pub struct GenerateMac;

impl Operation for GenerateMac {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GenerateMac";
    const ACTION: &'static str = "kms:GenerateMac";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::GenerateMacRequest;
    type Response = kms::GenerateMacResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let algorithm = checked(call, &key, Self::NAME, chosen(request.mac_algorithm)?)?;
        call.dry_run(request.dry_run)?;
        let mac = mac(call, &key, algorithm, given(&request.message)?).await?;
        Ok(kms::GenerateMacResponse {
            mac: Some(mac),
            mac_algorithm: Some(algorithm as i32),
            key_id: Some(key.arn.clone()),
        })
    }
}

/// Verifies an HMAC.
pub struct VerifyMac;

impl Operation for VerifyMac {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "VerifyMac";
    const ACTION: &'static str = "kms:VerifyMac";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::VerifyMacRequest;
    type Response = kms::VerifyMacResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let algorithm = checked(call, &key, Self::NAME, chosen(request.mac_algorithm)?)?;
        let mac = mac(call, &key, algorithm, given(&request.message)?).await?;
        aws_lc_rs::constant_time::verify_slices_are_equal(&mac, given(&request.mac)?)
            .map_err(|_| Error::bare(Exception::KmsInvalidMac))?;
        call.dry_run(request.dry_run)?;
        Ok(kms::VerifyMacResponse {
            key_id: Some(key.arn.clone()),
            mac_valid: Some(true),
            mac_algorithm: Some(algorithm as i32),
        })
    }
}

fn checked(
    call: &Call,
    key: &Allowed<Key>,
    operation: &str,
    algorithm: kms::MacAlgorithmSpec,
) -> Result<kms::MacAlgorithmSpec> {
    usable(call, key, kms::KeyUsageType::GenerateVerifyMac, operation)?;
    if !spec::mac_algorithms(key.held.value.spec).contains(&algorithm) {
        return Err(incompatible(algorithm.text(), key));
    }
    Ok(algorithm)
}

async fn mac(
    call: &Call,
    key: &Allowed<Key>,
    algorithm: kms::MacAlgorithmSpec,
    message: &[u8],
) -> Result<Vec<u8>> {
    let backing = current(call, key).await?;
    let hash = spec::mac_hash(algorithm).ok_or_else(|| Error::internal("a MAC algorithm without a hash"))?;
    call.cluster_of(key)?.mac(&backing.key, hash, message, call.deadline).await.map_err(from_hsm)
}
