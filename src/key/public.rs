//! Public-key work in software: it needs no secret, so it needs no HSM.

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use spki::SubjectPublicKeyInfoRef;
use spki::der::Decode;
use spki::der::asn1::ObjectIdentifier;

use crate::hsm::{Curve, Hash, Material, MlDsa, Scheme};

/// id-ecPublicKey (RFC 5480, 2.1.1).
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// Whether a signature fits. `message` is the digest for the schemes that have
/// a hash.
pub fn verify(
    material: Material,
    scheme: Scheme,
    hash: Option<Hash>,
    spki: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    let Some(algorithm) = algorithm(material, scheme, hash) else { return false };
    let Ok(key) = ParsedPublicKey::new(algorithm, spki) else { return false };
    match hash.map(|hash| imported(hash, message)) {
        Some(Some(digest)) => key.verify_digest_sig(&digest, signature).is_ok(),
        Some(None) => false,
        None => key.verify_sig(message, signature).is_ok(),
    }
}

/// Hashes in software.
pub fn digest(hash: Hash, data: &[u8]) -> Vec<u8> {
    digest::digest(digest_algorithm(hash), data).as_ref().to_vec()
}

/// RSAES-OAEP (RFC 8017, 7.1.1) with an empty label; none where the plaintext
/// is too long or the key no RSA key.
pub fn oaep_encrypt(spki: &[u8], hash: Hash, plaintext: &[u8]) -> Option<Vec<u8>> {
    let algorithm = match hash {
        Hash::Sha1 => &OAEP_SHA1_MGF1SHA1,
        Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
        Hash::Sha224 | Hash::Sha384 | Hash::Sha512 => return None,
    };
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(spki).ok()?).ok()?;
    let mut ciphertext = vec![0; key.ciphertext_size()];
    let length = key.encrypt(algorithm, plaintext, &mut ciphertext, None).ok()?.len();
    ciphertext.truncate(length);
    Some(ciphertext)
}

/// The uncompressed point (SEC 1, 2.3.3) of a DER SubjectPublicKeyInfo on this
/// curve; none where it is anything else. What is no point of the curve is
/// found here and never reaches an HSM.
pub fn point(spki: &[u8], curve: Curve) -> Option<Vec<u8>> {
    let parsed = SubjectPublicKeyInfoRef::from_der(spki).ok()?;
    let named: ObjectIdentifier = parsed.algorithm.parameters?.decode_as().ok()?;
    if parsed.algorithm.oid != EC_PUBLIC_KEY || named != curve_oid(curve) {
        return None;
    }
    ParsedPublicKey::new(ecdsa(curve), spki).ok()?;
    let point = parsed.subject_public_key.as_bytes()?;
    (point.first() == Some(&4) && point.len() == 1 + 2 * curve.field_bytes()).then(|| point.to_vec())
}

/// An algorithm that reads the public keys of this curve, and checks them.
fn ecdsa(curve: Curve) -> &'static dyn VerificationAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1,
        Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1,
        Curve::P521 => &signature::ECDSA_P521_SHA512_ASN1,
        Curve::Secp256k1 => &signature::ECDSA_P256K1_SHA256_ASN1,
    }
}

fn curve_oid(curve: Curve) -> ObjectIdentifier {
    match curve {
        Curve::P256 => ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"),
        Curve::P384 => ObjectIdentifier::new_unwrap("1.3.132.0.34"),
        Curve::P521 => ObjectIdentifier::new_unwrap("1.3.132.0.35"),
        Curve::Secp256k1 => ObjectIdentifier::new_unwrap("1.3.132.0.10"),
    }
}

fn imported(hash: Hash, bytes: &[u8]) -> Option<Digest> {
    Digest::import_less_safe(bytes, digest_algorithm(hash)).ok()
}

fn digest_algorithm(hash: Hash) -> &'static digest::Algorithm {
    match hash {
        Hash::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha224 => &digest::SHA224,
        Hash::Sha256 => &digest::SHA256,
        Hash::Sha384 => &digest::SHA384,
        Hash::Sha512 => &digest::SHA512,
    }
}

fn algorithm(
    material: Material,
    scheme: Scheme,
    hash: Option<Hash>,
) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (material, scheme, hash) {
        (Material::Rsa(_), Scheme::RsaPss(Hash::Sha256), _) => &signature::RSA_PSS_2048_8192_SHA256,
        (Material::Rsa(_), Scheme::RsaPss(Hash::Sha384), _) => &signature::RSA_PSS_2048_8192_SHA384,
        (Material::Rsa(_), Scheme::RsaPss(Hash::Sha512), _) => &signature::RSA_PSS_2048_8192_SHA512,
        (Material::Rsa(_), Scheme::RsaPkcs1(Hash::Sha256), _) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (Material::Rsa(_), Scheme::RsaPkcs1(Hash::Sha384), _) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (Material::Rsa(_), Scheme::RsaPkcs1(Hash::Sha512), _) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (Material::Ec(Curve::P256), Scheme::Ecdsa, Some(Hash::Sha256)) => &signature::ECDSA_P256_SHA256_ASN1,
        (Material::Ec(Curve::P384), Scheme::Ecdsa, Some(Hash::Sha384)) => &signature::ECDSA_P384_SHA384_ASN1,
        (Material::Ec(Curve::P521), Scheme::Ecdsa, Some(Hash::Sha512)) => &signature::ECDSA_P521_SHA512_ASN1,
        (Material::Ec(Curve::Secp256k1), Scheme::Ecdsa, Some(Hash::Sha256)) => {
            &signature::ECDSA_P256K1_SHA256_ASN1
        }
        (Material::Ed25519, Scheme::Ed25519, None) => &signature::ED25519,
        (Material::MlDsa(MlDsa::MlDsa44), Scheme::MlDsa, None) => &signature::ML_DSA_44,
        (Material::MlDsa(MlDsa::MlDsa65), Scheme::MlDsa, None) => &signature::ML_DSA_65,
        (Material::MlDsa(MlDsa::MlDsa87), Scheme::MlDsa, None) => &signature::ML_DSA_87,
        _ => return None,
    })
}
