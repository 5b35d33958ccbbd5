//! Encrypt, Decrypt, ReEncrypt.

use super::material::{check_ciphertext, check_decryption, check_encryption, decrypt, encrypt, source};
use super::prelude::*;

const DEFAULT: kms::EncryptionAlgorithmSpec = kms::EncryptionAlgorithmSpec::SymmetricDefault;

/// Encrypts up to 4096 bytes.
pub struct Encrypt;

impl Operation for Encrypt {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "Encrypt";
    const ACTION: &'static str = "kms:Encrypt";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::EncryptRequest;
    type Response = kms::EncryptResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.encryption_algorithm.get_or_insert(DEFAULT as i32);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let algorithm = choice(request.encryption_algorithm, DEFAULT);
        check_encryption(call, &key, Self::NAME, algorithm, &request.encryption_context)?;
        call.dry_run(request.dry_run)?;
        let plaintext = given(&request.plaintext)?;
        let encrypted = encrypt(call, &key, algorithm, &request.encryption_context, plaintext).await?;
        if let Some(id) = encrypted.material_id {
            call.note("keyMaterialId", id);
        }
        Ok(kms::EncryptResponse {
            ciphertext_blob: Some(encrypted.blob),
            key_id: Some(key.arn.clone()),
            encryption_algorithm: Some(algorithm as i32),
        })
    }
}

/// Decrypts.
pub struct Decrypt;

impl Operation for Decrypt {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "Decrypt";
    const ACTION: &'static str = "kms:Decrypt";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::DecryptRequest;
    type Response = kms::DecryptResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.encryption_algorithm.get_or_insert(DEFAULT as i32);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        check_ciphertext(
            &request.ciphertext_blob,
            &request.key_id,
            request.dry_run,
            &request.dry_run_modifiers,
        )?;
        source(&request.key_id, &request.ciphertext_blob, choice(request.encryption_algorithm, DEFAULT))
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let algorithm = choice(request.encryption_algorithm, DEFAULT);
        check_decryption(
            call,
            &key,
            algorithm,
            &request.encryption_context,
            request.ciphertext_blob.as_deref(),
        )?;
        // A trial decrypts too, if there is something to decrypt: it tells
        // whether the call would succeed.
        let Some(blob) = &request.ciphertext_blob else {
            call.dry_run(request.dry_run)?;
            return Err(Error::internal("a ciphertext was required and is not there"));
        };
        let decrypted = decrypt(call, &key, algorithm, &request.encryption_context, blob).await?;
        call.dry_run(request.dry_run)?;
        if let Some(id) = &decrypted.material_id {
            call.note("keyMaterialId", id.clone());
        }
        Ok(kms::DecryptResponse {
            key_id: Some(key.arn.clone()),
            plaintext: Some(decrypted.plaintext.to_vec()),
            encryption_algorithm: Some(algorithm as i32),
            ciphertext_for_recipient: None,
            key_material_id: decrypted.material_id,
        })
    }
}

/// Decrypts and encrypts again under another key or context.
pub struct ReEncrypt;

impl Operation for ReEncrypt {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ReEncrypt";
    const ACTION: &'static str = "kms:ReEncryptFrom";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::ReEncryptRequest;
    type Response = kms::ReEncryptResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.source_encryption_algorithm.get_or_insert(DEFAULT as i32);
        request.destination_encryption_algorithm.get_or_insert(DEFAULT as i32);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        check_ciphertext(
            &request.ciphertext_blob,
            &request.source_key_id,
            request.dry_run,
            &request.dry_run_modifiers,
        )?;
        source(
            &request.source_key_id,
            &request.ciphertext_blob,
            choice(request.source_encryption_algorithm, DEFAULT),
        )
    }

    async fn prepare(call: &mut Call, request: &Self::Request, from: &Key) -> Result<()> {
        // Quietly: what is wrong with the destination is told when its turn comes.
        let alias = call.request_alias.take();
        let to = Key::resolve(call, destination(request)?).await;
        call.request_alias = alias;
        if let Ok(to) = to {
            call.know("kms:ReEncryptOnSameKey", (to.held.id == from.held.id).to_string());
        }
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, from: Allowed<Key>) -> Result<Self::Response> {
        let to = call.allow::<Key>("kms:ReEncryptTo", destination(request)?).await?;
        let from_algorithm = choice(request.source_encryption_algorithm, DEFAULT);
        let to_algorithm = choice(request.destination_encryption_algorithm, DEFAULT);
        check_decryption(
            call,
            &from,
            from_algorithm,
            &request.source_encryption_context,
            request.ciphertext_blob.as_deref(),
        )?;
        check_encryption(call, &to, Self::NAME, to_algorithm, &request.destination_encryption_context)?;
        let Some(blob) = &request.ciphertext_blob else {
            call.dry_run(request.dry_run)?;
            return Err(Error::internal("a ciphertext was required and is not there"));
        };
        let plain = decrypt(call, &from, from_algorithm, &request.source_encryption_context, blob).await?;
        call.dry_run(request.dry_run)?;
        let context = &request.destination_encryption_context;
        let encrypted = encrypt(call, &to, to_algorithm, context, &plain.plaintext).await?;
        for (name, id) in [
            ("sourceKeyMaterialId", &plain.material_id),
            ("destinationKeyMaterialId", &encrypted.material_id),
        ] {
            if let Some(id) = id {
                call.note(name, id.clone());
            }
        }
        Ok(kms::ReEncryptResponse {
            ciphertext_blob: Some(encrypted.blob),
            source_key_id: Some(from.arn.clone()),
            key_id: Some(to.arn.clone()),
            source_encryption_algorithm: Some(from_algorithm as i32),
            destination_encryption_algorithm: Some(to_algorithm as i32),
            source_key_material_id: plain.material_id,
            destination_key_material_id: encrypted.material_id,
        })
    }
}

fn destination(request: &kms::ReEncryptRequest) -> Result<KeyRefName> {
    Ok(KeyRefName::Given(given(&request.destination_key_id)?.clone()))
}
