//! DeriveSharedSecret.

use super::material::{current, usable};
use super::prelude::*;
use crate::hsm::{HsmError, Material};
use crate::key::public;

/// Derives the raw ECDH secret with a peer's public key.
pub struct DeriveSharedSecret;

impl Operation for DeriveSharedSecret {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DeriveSharedSecret";
    const ACTION: &'static str = "kms:DeriveSharedSecret";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::DeriveSharedSecretRequest;
    type Response = kms::DeriveSharedSecretResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        usable(call, &key, kms::KeyUsageType::KeyAgreement, Self::NAME)?;
        let Some(Material::Ec(curve)) = spec::material(key.held.value.spec) else {
            return Err(Error::internal("a key agreement key that is on no curve"));
        };
        let invalid = || {
            Error::validation(format!(
                "PublicKey is not a DER-encoded SubjectPublicKeyInfo of a valid point on the curve of key spec {}.",
                key.held.value.spec.text()
            ))
        };
        let point = public::point(given(&request.public_key)?, curve).ok_or_else(invalid)?;
        call.dry_run(request.dry_run)?;
        let backing = current(call, &key).await?;
        let secret =
            call.cluster_of(&key)?.agree(&backing.key, &point, call.deadline).await.map_err(|error| {
                match error {
                    HsmError::Input => invalid(),
                    other => from_hsm(other),
                }
            })?;
        Ok(kms::DeriveSharedSecretResponse {
            key_id: Some(key.arn.clone()),
            shared_secret: Some(secret.to_vec()),
            ciphertext_for_recipient: None,
            key_agreement_algorithm: Some(kms::KeyAgreementAlgorithmSpec::Ecdh as i32),
            key_origin: Some(key.held.value.origin as i32),
        })
    }
}
