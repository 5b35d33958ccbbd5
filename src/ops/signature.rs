//! Sign and Verify. RAW and DIGEST become one: a message is hashed here, the
//! HSM signs the digest; verifying needs only the public key.

use super::material::{current, incompatible, public_key, usable};
use super::prelude::*;
use crate::hsm::{Hash, Scheme};
use crate::key::public;

/// Signs a message or a digest.
pub struct Sign;

impl Operation for Sign {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "Sign";
    const ACTION: &'static str = "kms:Sign";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::SignRequest;
    type Response = kms::SignResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.message_type.get_or_insert(kms::MessageType::Raw as i32);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let plan = Plan::new(call, &key, Self::NAME, chosen(request.signing_algorithm)?)?;
        let input =
            plan.input(choice(request.message_type, kms::MessageType::Raw), given(&request.message)?)?;
        call.dry_run(request.dry_run)?;
        let backing = current(call, &key).await?;
        let signature = call
            .cluster_of(&key)?
            .sign(&backing.key, plan.scheme, &input, call.deadline)
            .await
            .map_err(from_hsm)?;
        Ok(kms::SignResponse {
            key_id: Some(key.arn.clone()),
            signature: Some(signature),
            signing_algorithm: Some(plan.algorithm as i32),
        })
    }
}

/// Verifies a signature.
pub struct Verify;

impl Operation for Verify {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "Verify";
    const ACTION: &'static str = "kms:Verify";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::VerifyRequest;
    type Response = kms::VerifyResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.message_type.get_or_insert(kms::MessageType::Raw as i32);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let plan = Plan::new(call, &key, Self::NAME, chosen(request.signing_algorithm)?)?;
        let input =
            plan.input(choice(request.message_type, kms::MessageType::Raw), given(&request.message)?)?;
        let spki = public_key(call, &key).await?;
        let material =
            spec::material(key.held.value.spec).ok_or_else(|| Error::internal("a key without material"))?;
        if !public::verify(material, plan.scheme, plan.hash, &spki, &input, given(&request.signature)?) {
            return Err(Error::bare(Exception::KmsInvalidSignature));
        }
        call.dry_run(request.dry_run)?;
        Ok(kms::VerifyResponse {
            key_id: Some(key.arn.clone()),
            signature_valid: Some(true),
            signing_algorithm: Some(plan.algorithm as i32),
        })
    }
}

/// How one algorithm is carried out with one key.
struct Plan {
    algorithm: kms::SigningAlgorithmSpec,
    scheme: Scheme,
    hash: Option<Hash>,
}

impl Plan {
    fn new(
        call: &Call,
        key: &Allowed<Key>,
        operation: &str,
        algorithm: kms::SigningAlgorithmSpec,
    ) -> Result<Plan> {
        usable(call, key, kms::KeyUsageType::SignVerify, operation)?;
        let value = &key.held.value;
        let (scheme, hash) = spec::scheme(algorithm).ok_or_else(|| {
            Error::new(
                Exception::UnsupportedOperation,
                format!("Algorithm {} is not supported.", algorithm.text()),
            )
        })?;
        if !spec::signing_algorithms(value.spec, value.usage).contains(&algorithm) {
            return Err(incompatible(algorithm.text(), key));
        }
        Ok(Plan { algorithm, scheme, hash })
    }

    /// What the HSM signs.
    fn input(&self, kind: kms::MessageType, message: &[u8]) -> Result<Vec<u8>> {
        match (kind, self.hash) {
            (kms::MessageType::Digest, Some(hash)) if message.len() == hash.bytes() => Ok(message.to_vec()),
            (kms::MessageType::Digest, Some(_)) => Err(Error::validation(format!(
                "Digest is invalid length for algorithm {}.",
                self.algorithm.text()
            ))),
            (kms::MessageType::Raw, Some(hash)) => Ok(public::digest(hash, message)),
            (kms::MessageType::Raw, None) => Ok(message.to_vec()),
            (kind, _) => Err(Error::validation(format!(
                "MessageType {} is not valid for algorithm {}.",
                kind.text(),
                self.algorithm.text()
            ))),
        }
    }
}
