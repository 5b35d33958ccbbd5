//! Data keys and data key pairs: in the clear for their caller, and encrypted
//! under a symmetric KMS key.

use std::collections::HashMap;

use zeroize::Zeroizing;

use super::material::{Encrypted, check_encryption, encrypt};
use super::prelude::*;

const SYMMETRIC: kms::EncryptionAlgorithmSpec = kms::EncryptionAlgorithmSpec::SymmetricDefault;

/// A symmetric data key, in the clear and encrypted.
pub struct GenerateDataKey;

impl Operation for GenerateDataKey {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GenerateDataKey";
    const ACTION: &'static str = "kms:GenerateDataKey";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::GenerateDataKeyRequest;
    type Response = kms::GenerateDataKeyResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        data_key_bytes(request.key_spec, request.number_of_bytes)?;
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let bytes = data_key_bytes(request.key_spec, request.number_of_bytes)?;
        let context = &request.encryption_context;
        let (plaintext, encrypted) =
            data_key(call, &key, Self::NAME, bytes, context, request.dry_run).await?;
        Ok(kms::GenerateDataKeyResponse {
            ciphertext_blob: Some(encrypted.blob),
            plaintext: Some(plaintext.to_vec()),
            key_id: Some(key.arn.clone()),
            ciphertext_for_recipient: None,
            key_material_id: encrypted.material_id,
        })
    }
}

/// A symmetric data key, encrypted only.
pub struct GenerateDataKeyWithoutPlaintext;

impl Operation for GenerateDataKeyWithoutPlaintext {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GenerateDataKeyWithoutPlaintext";
    const ACTION: &'static str = "kms:GenerateDataKeyWithoutPlaintext";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::GenerateDataKeyWithoutPlaintextRequest;
    type Response = kms::GenerateDataKeyWithoutPlaintextResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        data_key_bytes(request.key_spec, request.number_of_bytes)?;
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let bytes = data_key_bytes(request.key_spec, request.number_of_bytes)?;
        let context = &request.encryption_context;
        let (_, encrypted) = data_key(call, &key, Self::NAME, bytes, context, request.dry_run).await?;
        Ok(kms::GenerateDataKeyWithoutPlaintextResponse {
            ciphertext_blob: Some(encrypted.blob),
            key_id: Some(key.arn.clone()),
            key_material_id: encrypted.material_id,
        })
    }
}

/// A data key pair, its private key in the clear and encrypted.
pub struct GenerateDataKeyPair;

impl Operation for GenerateDataKeyPair {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GenerateDataKeyPair";
    const ACTION: &'static str = "kms:GenerateDataKeyPair";
    const READ_ONLY: bool = true;
    type Request = kms::GenerateDataKeyPairRequest;
    type Response = kms::GenerateDataKeyPairResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let spec = chosen(request.key_pair_spec)?;
        let pair =
            key_pair(call, &key, Self::NAME, spec, &request.encryption_context, request.dry_run).await?;
        Ok(kms::GenerateDataKeyPairResponse {
            private_key_ciphertext_blob: Some(pair.encrypted.blob),
            private_key_plaintext: Some(pair.private_key.to_vec()),
            public_key: Some(pair.public_key),
            key_id: Some(key.arn.clone()),
            key_pair_spec: Some(spec as i32),
            ciphertext_for_recipient: None,
            key_material_id: pair.encrypted.material_id,
        })
    }
}

/// A data key pair, its private key encrypted only.
pub struct GenerateDataKeyPairWithoutPlaintext;

impl Operation for GenerateDataKeyPairWithoutPlaintext {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GenerateDataKeyPairWithoutPlaintext";
    const ACTION: &'static str = "kms:GenerateDataKeyPairWithoutPlaintext";
    const READ_ONLY: bool = true;
    type Request = kms::GenerateDataKeyPairWithoutPlaintextRequest;
    type Response = kms::GenerateDataKeyPairWithoutPlaintextResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let spec = chosen(request.key_pair_spec)?;
        let pair =
            key_pair(call, &key, Self::NAME, spec, &request.encryption_context, request.dry_run).await?;
        Ok(kms::GenerateDataKeyPairWithoutPlaintextResponse {
            private_key_ciphertext_blob: Some(pair.encrypted.blob),
            public_key: Some(pair.public_key),
            key_id: Some(key.arn.clone()),
            key_pair_spec: Some(spec as i32),
            key_material_id: pair.encrypted.material_id,
        })
    }
}

/// The length of a data key: one of KeySpec and NumberOfBytes tells it.
fn data_key_bytes(spec: Option<i32>, number: Option<i32>) -> Result<usize> {
    match (spec, number) {
        (None, Some(bytes)) => Ok(usize::try_from(bytes).unwrap_or_default()),
        (Some(spec), None) => Ok(match choice(Some(spec), kms::DataKeySpec::Unspecified) {
            kms::DataKeySpec::Aes128 => 16,
            kms::DataKeySpec::Aes256 => 32,
            kms::DataKeySpec::Unspecified => {
                return Err(Error::internal("a data key spec passed validation"));
            }
        }),
        _ => Err(Error::validation("Please specify either number of bytes or key spec.")),
    }
}

async fn data_key(
    call: &mut Call,
    key: &Allowed<Key>,
    operation: &str,
    bytes: usize,
    context: &HashMap<String, String>,
    dry_run: Option<bool>,
) -> Result<(Zeroizing<Vec<u8>>, Encrypted)> {
    check_encryption(call, key, operation, SYMMETRIC, context)?;
    call.dry_run(dry_run)?;
    let plaintext = call.cluster_of(key)?.random(bytes, call.deadline).await.map_err(from_hsm)?;
    let encrypted = encrypted(call, key, context, &plaintext).await?;
    Ok((plaintext, encrypted))
}

struct Pair {
    private_key: Zeroizing<Vec<u8>>,
    public_key: Vec<u8>,
    encrypted: Encrypted,
}

async fn key_pair(
    call: &mut Call,
    key: &Allowed<Key>,
    operation: &str,
    pair: kms::DataKeyPairSpec,
    context: &HashMap<String, String>,
    dry_run: Option<bool>,
) -> Result<Pair> {
    check_encryption(call, key, operation, SYMMETRIC, context)?;
    if key.held.value.custom_key_store_id.is_some() {
        return Err(Error::new(
            Exception::UnsupportedOperation,
            format!("{operation} is not supported for keys in custom key stores."),
        ));
    }
    // Every data key pair spec is a key spec by the same name.
    let material = kms::KeySpec::from_text(pair.text()).and_then(spec::material).ok_or_else(|| {
        Error::new(Exception::UnsupportedOperation, format!("KeyPairSpec {} is not supported.", pair.text()))
    })?;
    call.dry_run(dry_run)?;
    let made = call.cluster_of(key)?.data_key_pair(material, call.deadline).await.map_err(from_hsm)?;
    let encrypted = encrypted(call, key, context, &made.private_key).await?;
    Ok(Pair { private_key: made.private_key, public_key: made.public_key, encrypted })
}

async fn encrypted(
    call: &mut Call,
    key: &Allowed<Key>,
    context: &HashMap<String, String>,
    plaintext: &[u8],
) -> Result<Encrypted> {
    let encrypted = encrypt(call, key, SYMMETRIC, context, plaintext).await?;
    if let Some(id) = &encrypted.material_id {
        call.note("keyMaterialId", id.clone());
    }
    Ok(encrypted)
}
