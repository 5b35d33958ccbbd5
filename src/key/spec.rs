//! Which key specs, usages and algorithms go together, as KMS has them.

use crate::error::{Error, Exception, Result};
use crate::hsm::{Capability, Curve, Hash, Material, MlDsa, Scheme, Use};
use crate::proto::kms::{
    EncryptionAlgorithmSpec, KeyAgreementAlgorithmSpec, KeySpec, KeyUsageType, MacAlgorithmSpec,
    SigningAlgorithmSpec,
};
use crate::wire::Text;

/// The material of a key spec; none for the ones that no HSM of ours makes.
pub fn material(spec: KeySpec) -> Option<Material> {
    Some(match spec {
        KeySpec::SymmetricDefault => Material::Aes256,
        KeySpec::Rsa2048 => Material::Rsa(2048),
        KeySpec::Rsa3072 => Material::Rsa(3072),
        KeySpec::Rsa4096 => Material::Rsa(4096),
        KeySpec::EccNistP256 => Material::Ec(Curve::P256),
        KeySpec::EccNistP384 => Material::Ec(Curve::P384),
        KeySpec::EccNistP521 => Material::Ec(Curve::P521),
        KeySpec::EccSecgP256k1 => Material::Ec(Curve::Secp256k1),
        KeySpec::EccNistEdwards25519 => Material::Ed25519,
        KeySpec::Hmac224 => Material::Generic(28),
        KeySpec::Hmac256 => Material::Generic(32),
        KeySpec::Hmac384 => Material::Generic(48),
        KeySpec::Hmac512 => Material::Generic(64),
        KeySpec::MlDsa44 => Material::MlDsa(MlDsa::MlDsa44),
        KeySpec::MlDsa65 => Material::MlDsa(MlDsa::MlDsa65),
        KeySpec::MlDsa87 => Material::MlDsa(MlDsa::MlDsa87),
        KeySpec::Unspecified | KeySpec::Sm2 | KeySpec::MlKem512 | KeySpec::MlKem768 | KeySpec::MlKem1024 => {
            return None;
        }
    })
}

/// What the HSM is told that a key is for.
pub fn hsm_use(usage: KeyUsageType) -> Option<Use> {
    match usage {
        KeyUsageType::EncryptDecrypt => Some(Use::Encrypt),
        KeyUsageType::SignVerify => Some(Use::Sign),
        KeyUsageType::GenerateVerifyMac => Some(Use::Mac),
        KeyUsageType::KeyAgreement => Some(Use::Agree),
        KeyUsageType::EncapsulateDecapsulate | KeyUsageType::Unspecified => None,
    }
}

/// The usage of a new key: as asked, checked against its spec; only a
/// symmetric encryption key needs none to be asked.
pub fn usage(spec: KeySpec, asked: Option<KeyUsageType>) -> Result<KeyUsageType> {
    let allowed = usages(spec);
    match asked {
        None if spec == KeySpec::SymmetricDefault => Ok(KeyUsageType::EncryptDecrypt),
        None => Err(Error::validation(
            "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.",
        )),
        Some(usage) if allowed.contains(&usage) => Ok(usage),
        Some(usage) => Err(Error::validation(format!(
            "KeyUsage {} is not compatible with KeySpec {}",
            usage.text(),
            spec.text()
        ))),
    }
}

fn usages(spec: KeySpec) -> &'static [KeyUsageType] {
    use KeyUsageType::{EncapsulateDecapsulate, EncryptDecrypt, GenerateVerifyMac, KeyAgreement, SignVerify};
    match spec {
        KeySpec::SymmetricDefault => &[EncryptDecrypt],
        KeySpec::Rsa2048 | KeySpec::Rsa3072 | KeySpec::Rsa4096 => &[EncryptDecrypt, SignVerify],
        KeySpec::EccNistP256 | KeySpec::EccNistP384 | KeySpec::EccNistP521 => &[SignVerify, KeyAgreement],
        KeySpec::Sm2 => &[EncryptDecrypt, SignVerify, KeyAgreement],
        KeySpec::EccSecgP256k1
        | KeySpec::EccNistEdwards25519
        | KeySpec::MlDsa44
        | KeySpec::MlDsa65
        | KeySpec::MlDsa87 => &[SignVerify],
        KeySpec::Hmac224 | KeySpec::Hmac256 | KeySpec::Hmac384 | KeySpec::Hmac512 => &[GenerateVerifyMac],
        KeySpec::MlKem512 | KeySpec::MlKem768 | KeySpec::MlKem1024 => &[EncapsulateDecapsulate],
        KeySpec::Unspecified => &[],
    }
}

/// The algorithms that Encrypt and Decrypt take with a key.
pub fn encryption_algorithms(spec: KeySpec, usage: KeyUsageType) -> &'static [EncryptionAlgorithmSpec] {
    match (usage, spec) {
        (KeyUsageType::EncryptDecrypt, KeySpec::SymmetricDefault) => {
            &[EncryptionAlgorithmSpec::SymmetricDefault]
        }
        (KeyUsageType::EncryptDecrypt, KeySpec::Rsa2048 | KeySpec::Rsa3072 | KeySpec::Rsa4096) => {
            &[EncryptionAlgorithmSpec::RsaesOaepSha1, EncryptionAlgorithmSpec::RsaesOaepSha256]
        }
        _ => &[],
    }
}

/// The algorithms that Sign and Verify take with a key. Ed25519ph is not among
/// them: no module that was tried makes it right.
pub fn signing_algorithms(spec: KeySpec, usage: KeyUsageType) -> &'static [SigningAlgorithmSpec] {
    use SigningAlgorithmSpec::{
        EcdsaSha256, EcdsaSha384, EcdsaSha512, Ed25519Sha512, MlDsaShake256, RsassaPkcs1V15Sha256,
        RsassaPkcs1V15Sha384, RsassaPkcs1V15Sha512, RsassaPssSha256, RsassaPssSha384, RsassaPssSha512,
    };
    if usage != KeyUsageType::SignVerify {
        return &[];
    }
    match spec {
        KeySpec::Rsa2048 | KeySpec::Rsa3072 | KeySpec::Rsa4096 => &[
            RsassaPssSha256,
            RsassaPssSha384,
            RsassaPssSha512,
            RsassaPkcs1V15Sha256,
            RsassaPkcs1V15Sha384,
            RsassaPkcs1V15Sha512,
        ],
        KeySpec::EccNistP256 | KeySpec::EccSecgP256k1 => &[EcdsaSha256],
        KeySpec::EccNistP384 => &[EcdsaSha384],
        KeySpec::EccNistP521 => &[EcdsaSha512],
        KeySpec::EccNistEdwards25519 => &[Ed25519Sha512],
        KeySpec::MlDsa44 | KeySpec::MlDsa65 | KeySpec::MlDsa87 => &[MlDsaShake256],
        _ => &[],
    }
}

/// The algorithm that GenerateMac and VerifyMac take with a key.
pub fn mac_algorithms(spec: KeySpec) -> &'static [MacAlgorithmSpec] {
    match spec {
        KeySpec::Hmac224 => &[MacAlgorithmSpec::HmacSha224],
        KeySpec::Hmac256 => &[MacAlgorithmSpec::HmacSha256],
        KeySpec::Hmac384 => &[MacAlgorithmSpec::HmacSha384],
        KeySpec::Hmac512 => &[MacAlgorithmSpec::HmacSha512],
        _ => &[],
    }
}

/// The algorithm that DeriveSharedSecret takes with a key.
pub fn agreement_algorithms(usage: KeyUsageType) -> &'static [KeyAgreementAlgorithmSpec] {
    match usage {
        KeyUsageType::KeyAgreement => &[KeyAgreementAlgorithmSpec::Ecdh],
        _ => &[],
    }
}

/// How the HSM makes a signature, and the hash whose digest it takes; no hash
/// where it takes the message.
pub fn scheme(algorithm: SigningAlgorithmSpec) -> Option<(Scheme, Option<Hash>)> {
    use SigningAlgorithmSpec as A;
    Some(match algorithm {
        A::RsassaPssSha256 => (Scheme::RsaPss(Hash::Sha256), Some(Hash::Sha256)),
        A::RsassaPssSha384 => (Scheme::RsaPss(Hash::Sha384), Some(Hash::Sha384)),
        A::RsassaPssSha512 => (Scheme::RsaPss(Hash::Sha512), Some(Hash::Sha512)),
        A::RsassaPkcs1V15Sha256 => (Scheme::RsaPkcs1(Hash::Sha256), Some(Hash::Sha256)),
        A::RsassaPkcs1V15Sha384 => (Scheme::RsaPkcs1(Hash::Sha384), Some(Hash::Sha384)),
        A::RsassaPkcs1V15Sha512 => (Scheme::RsaPkcs1(Hash::Sha512), Some(Hash::Sha512)),
        A::EcdsaSha256 => (Scheme::Ecdsa, Some(Hash::Sha256)),
        A::EcdsaSha384 => (Scheme::Ecdsa, Some(Hash::Sha384)),
        A::EcdsaSha512 => (Scheme::Ecdsa, Some(Hash::Sha512)),
        A::Ed25519Sha512 => (Scheme::Ed25519, None),
        A::MlDsaShake256 => (Scheme::MlDsa, None),
        A::Ed25519PhSha512 | A::Sm2dsa | A::Unspecified => return None,
    })
}

/// The hash of an OAEP algorithm.
pub fn oaep_hash(algorithm: EncryptionAlgorithmSpec) -> Option<Hash> {
    match algorithm {
        EncryptionAlgorithmSpec::RsaesOaepSha1 => Some(Hash::Sha1),
        EncryptionAlgorithmSpec::RsaesOaepSha256 => Some(Hash::Sha256),
        _ => None,
    }
}

/// The hash of a MAC algorithm.
pub fn mac_hash(algorithm: MacAlgorithmSpec) -> Option<Hash> {
    match algorithm {
        MacAlgorithmSpec::HmacSha224 => Some(Hash::Sha224),
        MacAlgorithmSpec::HmacSha256 => Some(Hash::Sha256),
        MacAlgorithmSpec::HmacSha384 => Some(Hash::Sha384),
        MacAlgorithmSpec::HmacSha512 => Some(Hash::Sha512),
        MacAlgorithmSpec::Unspecified => None,
    }
}

/// What a member must be able to do before a key of this spec and usage is
/// worth making.
pub fn needs(spec: KeySpec, usage: KeyUsageType) -> Option<Vec<Capability>> {
    let material = material(spec)?;
    let mut needs = vec![Capability::Make(material)];
    match usage {
        KeyUsageType::EncryptDecrypt if material == Material::Aes256 => needs.push(Capability::AesGcm),
        KeyUsageType::EncryptDecrypt => {
            needs.extend(
                encryption_algorithms(spec, usage)
                    .iter()
                    .filter_map(|a| oaep_hash(*a))
                    .map(Capability::OaepDecrypt),
            );
        }
        KeyUsageType::SignVerify => needs.extend(
            signing_algorithms(spec, usage)
                .iter()
                .filter_map(|a| scheme(*a))
                .map(|(scheme, _)| Capability::Sign(material, scheme)),
        ),
        KeyUsageType::GenerateVerifyMac => {
            needs.extend(mac_algorithms(spec).iter().filter_map(|a| mac_hash(*a)).map(Capability::Mac));
        }
        KeyUsageType::KeyAgreement => match material {
            Material::Ec(curve) => needs.push(Capability::Agree(curve)),
            _ => return None,
        },
        KeyUsageType::EncapsulateDecapsulate | KeyUsageType::Unspecified => return None,
    }
    Some(needs)
}

/// The most bytes that RSA-OAEP encrypts (RFC 8017, 7.1.1): k - 2·hLen - 2.
pub fn oaep_plaintext_max(material: Material, hash: Hash) -> usize {
    match material {
        Material::Rsa(bits) => (usize::from(bits) / 8).saturating_sub(2 * hash.bytes() + 2),
        _ => 0,
    }
}

/// UnsupportedOperationException for a spec that this service does not make.
pub fn unsupported(spec: KeySpec, why: &str) -> Error {
    Error::new(Exception::UnsupportedOperation, format!("KeySpec {} is not supported: {why}", spec.text()))
}
