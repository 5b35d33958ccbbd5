//! What every cryptographic operation does with an allowed key: checks state
//! and usage, finds the material, encrypts and decrypts.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::error::Unspecified;
use zeroize::Zeroizing;

use super::prelude::*;
use crate::hsm::{BackingId, HsmError};
use crate::key::{Ciphertext, Header, public};
use crate::material;
use crate::multi_region;
use crate::registry::{LoadedBacking, UseTaken};

/// KMS's limit of an encryption context, in bytes of all its keys and values.
const CONTEXT_BYTES_MAX: usize = 8192;

/// Checks that a key is enabled and made for this usage.
pub(super) fn usable(
    call: &Call,
    key: &Allowed<Key>,
    usage: kms::KeyUsageType,
    operation: &str,
) -> Result<()> {
    call.check(Stage::Use, key)?;
    if key.held.value.usage != usage {
        return Err(Error::new(
            Exception::InvalidKeyUsage,
            format!(
                "{} key usage is {} which is not valid for {operation}.",
                key.arn,
                key.held.value.usage.text()
            ),
        ));
    }
    Ok(())
}

/// The error for an algorithm that the key's spec does not have.
pub(super) fn incompatible(algorithm: &str, key: &Key) -> Error {
    Error::new(
        Exception::InvalidKeyUsage,
        format!("Algorithm {algorithm} is incompatible with key spec {}.", key.held.value.spec.text()),
    )
}

/// The material that new work uses.
pub(super) async fn current(call: &Call, key: &Allowed<Key>) -> Result<Arc<LoadedBacking>> {
    let missing = || Error::internal(format!("{} has no material", key.arn));
    let id = key.held.value.current.ok_or_else(missing)?;
    backing(call, key, id).await?.ok_or_else(missing)
}

/// A version of the key's material, by its id.
pub(super) async fn backing(
    call: &Call,
    key: &Allowed<Key>,
    id: BackingId,
) -> Result<Option<Arc<LoadedBacking>>> {
    call.app.registry.backing(&key.held.id, id, call.deadline).await
}

/// The public key of an asymmetric key.
pub(super) async fn public_key(call: &Call, key: &Allowed<Key>) -> Result<Vec<u8>> {
    let backing = current(call, key).await?;
    backing.public_key.clone().ok_or_else(|| Error::internal(format!("{} has no public key", key.arn)))
}

/// Something encrypted under a KMS key.
pub(super) struct Encrypted {
    /// CiphertextBlob.
    pub(super) blob: Vec<u8>,
    /// KeyMaterialId, of symmetric keys.
    pub(super) material_id: Option<String>,
}

/// Something decrypted.
pub(super) struct Decrypted {
    /// Plaintext.
    pub(super) plaintext: Zeroizing<Vec<u8>>,
    /// KeyMaterialId, of symmetric keys.
    pub(super) material_id: Option<String>,
}

/// Checks everything about an encryption but the key's ability to do it.
pub(super) fn check_encryption(
    call: &Call,
    key: &Allowed<Key>,
    operation: &str,
    algorithm: kms::EncryptionAlgorithmSpec,
    context: &HashMap<String, String>,
) -> Result<()> {
    usable(call, key, kms::KeyUsageType::EncryptDecrypt, operation)?;
    check_algorithm(key, algorithm, context)
}

fn check_algorithm(
    key: &Allowed<Key>,
    algorithm: kms::EncryptionAlgorithmSpec,
    context: &HashMap<String, String>,
) -> Result<()> {
    let value = &key.held.value;
    if !spec::encryption_algorithms(value.spec, value.usage).contains(&algorithm) {
        return Err(incompatible(algorithm.text(), key));
    }
    if algorithm != kms::EncryptionAlgorithmSpec::SymmetricDefault && !context.is_empty() {
        return Err(Error::validation(
            "An encryption context can only be used with the SYMMETRIC_DEFAULT algorithm.",
        ));
    }
    let bytes: usize = context.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > CONTEXT_BYTES_MAX {
        return Err(Error::validation(format!(
            "The encryption context has {bytes} bytes; at most {CONTEXT_BYTES_MAX} are allowed."
        )));
    }
    Ok(())
}

/// Encrypts under a key whose state, usage and algorithm were checked.
pub(super) async fn encrypt(
    call: &mut Call,
    key: &Allowed<Key>,
    algorithm: kms::EncryptionAlgorithmSpec,
    context: &HashMap<String, String>,
    plaintext: &[u8],
) -> Result<Encrypted> {
    let mut backing = current(call, key).await?;
    if let Some(hash) = spec::oaep_hash(algorithm) {
        return oaep(&backing, hash, plaintext).map(|blob| Encrypted { blob, material_id: None });
    }
    match call.app.registry.take_use(&backing, call.deadline).await? {
        UseTaken::Granted => (),
        UseTaken::Warned => warn_of_uses(call, key)?,
        UseTaken::Spent => backing = successor(call, key).await?,
    }
    let header = Header { key_id: key.held.id.id.clone(), backing: backing.key.id };
    let unreadable = || Error::internal(format!("{} has an id that no ciphertext can carry", key.arn));
    let aad = header.aad(context).ok_or_else(unreadable)?;
    let sealed = call
        .cluster_of(key)?
        .encrypt_gcm(&backing.key, &aad, plaintext, call.deadline)
        .await
        .map_err(from_hsm)?;
    let blob = header.join(&sealed).ok_or_else(unreadable)?;
    Ok(Encrypted { blob, material_id: Some(backing.key.id.to_string()) })
}

/// New material in the place of one that has encrypted as often as it may, and
/// its first use. Only material that the HSM makes has a successor by itself.
async fn successor(call: &Call, key: &Allowed<Key>) -> Result<Arc<LoadedBacking>> {
    if key.held.value.origin != kms::OriginType::AwsKms {
        return Err(Error::new(
            Exception::KmsInvalidState,
            format!(
                "{} has encrypted as often as NIST SP 800-38D allows with random IVs; it only decrypts until new key material is imported and rotated to.",
                key.arn
            ),
        ));
    }
    let kind = kms::RotationType::Automatic;
    let id = match key.held.value.is_replica() {
        true => {
            let primary = multi_region::primary(&call.app, &key.held, call.deadline).await?;
            material::rotate_by_itself(&call.app, &primary, kind, call.deadline).await?
        }
        false => material::rotate_by_itself(&call.app, &key.held, kind, call.deadline).await?,
    };
    let missing = || Error::internal(format!("{} has no material", key.arn));
    let backing = backing(call, key, id).await?.ok_or_else(missing)?;
    call.app.registry.take_use(&backing, call.deadline).await?;
    Ok(backing)
}

fn oaep(backing: &LoadedBacking, hash: crate::hsm::Hash, plaintext: &[u8]) -> Result<Vec<u8>> {
    let most = spec::oaep_plaintext_max(backing.key.material, hash);
    if plaintext.len() > most {
        return Err(Error::validation(format!(
            "Algorithm and key spec encrypt at most {most} bytes; the plaintext has {}.",
            plaintext.len()
        )));
    }
    let spki =
        backing.public_key.as_ref().ok_or_else(|| Error::internal("a key pair without a public key"))?;
    public::oaep_encrypt(spki, hash, plaintext).ok_or_else(|| Error::internal(format!("OAEP: {Unspecified}")))
}

/// Tells the operators, once per key, that three quarters of its uses are gone.
fn warn_of_uses(call: &mut Call, key: &Allowed<Key>) -> Result<()> {
    metrics::counter!("strongroom_keys_near_use_limit_total").increment(1);
    let details =
        serde_json::json!({ "keyId": key.arn, "usesLeased": crate::registry::uses_warning(&key.held.id.id) });
    call.service_event("KeyUseLimitApproaching", &key.held.id.account, details, Some(&key.arn))
}

/// Checks everything about a decryption but the ciphertext itself. A key that
/// the ciphertext is not of is told before an algorithm that the key has not.
pub(super) fn check_decryption(
    call: &Call,
    key: &Allowed<Key>,
    algorithm: kms::EncryptionAlgorithmSpec,
    context: &HashMap<String, String>,
    blob: Option<&[u8]>,
) -> Result<()> {
    call.check(Stage::Use, key)?;
    let symmetric = algorithm == kms::EncryptionAlgorithmSpec::SymmetricDefault;
    let other = blob.and_then(Ciphertext::parse).is_some_and(|parsed| parsed.header.key_id != key.held.id.id);
    if key.held.value.usage != kms::KeyUsageType::EncryptDecrypt || (symmetric && other) {
        return Err(incorrect_key());
    }
    check_algorithm(key, algorithm, context)
}

/// Decrypts with a key whose state, usage and algorithm were checked.
pub(super) async fn decrypt(
    call: &Call,
    key: &Allowed<Key>,
    algorithm: kms::EncryptionAlgorithmSpec,
    context: &HashMap<String, String>,
    blob: &[u8],
) -> Result<Decrypted> {
    let invalid = || Error::bare(Exception::InvalidCiphertext);
    let refused = |error| match error {
        HsmError::Input => invalid(),
        other => from_hsm(other),
    };
    if let Some(hash) = spec::oaep_hash(algorithm) {
        let backing = current(call, key).await?;
        let plaintext = call
            .cluster_of(key)?
            .oaep_decrypt(&backing.key, hash, blob, call.deadline)
            .await
            .map_err(refused)?;
        return Ok(Decrypted { plaintext, material_id: None });
    }
    let ciphertext = Ciphertext::parse(blob).ok_or_else(invalid)?;
    let backing = backing(call, key, ciphertext.header.backing).await?.ok_or_else(invalid)?;
    let aad = ciphertext.header.aad(context).ok_or_else(invalid)?;
    let sealed = &ciphertext.sealed;
    let plaintext = call
        .cluster_of(key)?
        .decrypt_gcm(&backing.key, sealed.iv, &aad, &sealed.ciphertext, call.deadline)
        .await
        .map_err(refused)?;
    Ok(Decrypted { plaintext, material_id: Some(backing.key.id.to_string()) })
}

/// How Decrypt and ReEncrypt find their key: as the caller names it, else as
/// the ciphertext does.
pub(super) fn source(
    key_id: &Option<String>,
    blob: &Option<Vec<u8>>,
    algorithm: kms::EncryptionAlgorithmSpec,
) -> Result<KeyRefName> {
    if let Some(given) = key_id {
        return Ok(KeyRefName::Given(given.clone()));
    }
    if algorithm != kms::EncryptionAlgorithmSpec::SymmetricDefault {
        return Err(Error::validation(format!(
            "A key id is required with the {} algorithm.",
            algorithm.text()
        )));
    }
    let ciphertext = blob.as_deref().and_then(Ciphertext::parse);
    ciphertext
        .map(|ciphertext| KeyRefName::Ciphertext(ciphertext.header.key_id))
        .ok_or_else(|| Error::bare(Exception::InvalidCiphertext))
}

/// A trial may come without the ciphertext where it says so.
pub(super) fn check_ciphertext(
    blob: &Option<Vec<u8>>,
    key_id: &Option<String>,
    dry_run: Option<bool>,
    modifiers: &[i32],
) -> Result<()> {
    let ignored = modifiers.contains(&(kms::DryRunModifierType::IgnoreCiphertext as i32));
    if ignored && dry_run != Some(true) {
        return Err(Error::validation("DryRunModifiers can only be used with DryRun."));
    }
    match (blob, key_id) {
        (Some(_), _) => Ok(()),
        (None, Some(_)) if ignored => Ok(()),
        _ => Err(Error::validation(
            "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null",
        )),
    }
}

fn incorrect_key() -> Error {
    Error::new(
        Exception::IncorrectKey,
        "The key ID in the request does not identify a KMS key that can perform this operation.",
    )
}
