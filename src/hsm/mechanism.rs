//! The cryptography of KMS on a key's handle.

use aws_lc_rs::rand;
use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::ckr::Failure;
use super::encode;
use super::session::{Handle, Mechanism, Session};
use super::{Hash, HsmError, Material, MlDsa, Scheme, Sealed};

/// Bytes of an AES-GCM tag.
const TAG_BYTES: usize = 16;

/// AES-256-GCM in one part, under a fresh random IV. An HSM that writes the IV
/// itself puts it where ours was.
pub(crate) fn encrypt_gcm(
    session: &Session,
    key: Handle,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Sealed, Failure> {
    let mut iv = [0; 12];
    rand::fill(&mut iv).map_err(|_| HsmError::Device("the host has no random numbers".to_owned()))?;
    let size = plaintext.len() + TAG_BYTES;
    let ciphertext = session.encrypt(Mechanism::Gcm { iv: &mut iv, aad }, key, plaintext, size)?;
    Ok(Sealed { iv, ciphertext })
}

/// AES-256-GCM in one part: in several, some HSMs give plaintext before they
/// have checked the tag.
pub(crate) fn decrypt_gcm(
    session: &Session,
    key: Handle,
    mut iv: [u8; 12],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if ciphertext.len() < TAG_BYTES {
        return Err(HsmError::Input.into());
    }
    session.decrypt(Mechanism::Gcm { iv: &mut iv, aad }, key, ciphertext, ciphertext.len())
}

/// RSA-OAEP: in the HSM where it can (`native`), else RSA in the HSM and the
/// unpadding outside.
pub(crate) fn oaep_decrypt(
    session: &Session,
    key: Handle,
    material: Material,
    hash: Hash,
    native: bool,
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let Material::Rsa(bits) = material else { return Err(wrong_material(material)) };
    let size = usize::from(bits).div_ceil(8);
    if ciphertext.len() != size {
        return Err(HsmError::Input.into());
    }
    if native {
        return session.decrypt(Mechanism::Oaep(hash), key, ciphertext, size);
    }
    let number = session.decrypt(Mechanism::Plain(CKM_RSA_X_509), key, ciphertext, size)?;
    Ok(encode::oaep_unpad(hash, &encode::fixed_length(&number, size)?)?)
}

/// A signature: over a digest with RSA and ECDSA, else over the message.
pub(crate) fn sign(
    session: &Session,
    key: Handle,
    material: Material,
    scheme: Scheme,
    input: &[u8],
) -> Result<Vec<u8>, Failure> {
    let expected = match scheme {
        Scheme::RsaPss(hash) | Scheme::RsaPkcs1(hash) => Some(hash.bytes()),
        Scheme::Ecdsa | Scheme::Ed25519 | Scheme::MlDsa => None,
    };
    if expected.is_some_and(|expected| expected != input.len()) {
        return Err(HsmError::Input.into());
    }
    match (scheme, material) {
        (Scheme::RsaPss(hash), Material::Rsa(bits)) => {
            session.sign(Mechanism::Pss(hash), key, input, usize::from(bits).div_ceil(8))
        }
        (Scheme::RsaPkcs1(hash), Material::Rsa(bits)) => {
            let info = encode::digest_info(hash, input)?;
            session.sign(Mechanism::Plain(CKM_RSA_PKCS), key, &info, usize::from(bits).div_ceil(8))
        }
        (Scheme::Ecdsa, Material::Ec(curve)) => {
            let size = 2 * curve.field_bytes();
            let raw = session.sign(Mechanism::Plain(CKM_ECDSA), key, input, size)?;
            Ok(encode::ecdsa_signature(&raw)?)
        }
        (Scheme::Ed25519, Material::Ed25519) => session.sign(Mechanism::Plain(CKM_EDDSA), key, input, 64),
        (Scheme::MlDsa, Material::MlDsa(set)) => {
            session.sign(Mechanism::Plain(CKM_ML_DSA), key, input, ml_dsa_signature_bytes(set))
        }
        _ => Err(wrong_material(material)),
    }
}

/// HMAC.
pub(crate) fn mac(session: &Session, key: Handle, hash: Hash, data: &[u8]) -> Result<Vec<u8>, Failure> {
    let mechanism = match hash {
        Hash::Sha1 => CKM_SHA_1_HMAC,
        Hash::Sha224 => CKM_SHA224_HMAC,
        Hash::Sha256 => CKM_SHA256_HMAC,
        Hash::Sha384 => CKM_SHA384_HMAC,
        Hash::Sha512 => CKM_SHA512_HMAC,
    };
    session.sign(Mechanism::Plain(mechanism), key, data, hash.bytes())
}

/// FIPS 204, table 2.
fn ml_dsa_signature_bytes(set: MlDsa) -> usize {
    match set {
        MlDsa::MlDsa44 => 2420,
        MlDsa::MlDsa65 => 3309,
        MlDsa::MlDsa87 => 4627,
    }
}

fn wrong_material(material: Material) -> Failure {
    HsmError::Unsupported(format!("this with a key of {material:?}")).into()
}
