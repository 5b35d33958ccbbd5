//! ASN.1 around keys and signatures, and OAEP's unpadding.

use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature as software;
use der::asn1::{Any, AnyRef, BitString, ObjectIdentifier, OctetString, UintRef};
use der::{Decode as _, Encode as _};
use spki::{AlgorithmIdentifier, SubjectPublicKeyInfo};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use zeroize::Zeroizing;

use super::{Curve, Hash, HsmError, MlDsa};

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// RFC 5480, 2.1.1.1, and SEC 2, A.2.1 for secp256k1.
fn curve_oid(curve: Curve) -> ObjectIdentifier {
    match curve {
        Curve::P256 => ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"),
        Curve::P384 => ObjectIdentifier::new_unwrap("1.3.132.0.34"),
        Curve::P521 => ObjectIdentifier::new_unwrap("1.3.132.0.35"),
        Curve::Secp256k1 => ObjectIdentifier::new_unwrap("1.3.132.0.10"),
    }
}

/// RFC 9881, 2.
fn ml_dsa_oid(set: MlDsa) -> ObjectIdentifier {
    match set {
        MlDsa::MlDsa44 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.17"),
        MlDsa::MlDsa65 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.18"),
        MlDsa::MlDsa87 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.19"),
    }
}

fn hash_oid(hash: Hash) -> ObjectIdentifier {
    match hash {
        Hash::Sha1 => ObjectIdentifier::new_unwrap("1.3.14.3.2.26"),
        Hash::Sha224 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.4"),
        Hash::Sha256 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"),
        Hash::Sha384 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"),
        Hash::Sha512 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3"),
    }
}

/// CKA_EC_PARAMS of a curve: its OID.
pub(crate) fn curve_parameters(curve: Curve) -> Result<Vec<u8>, HsmError> {
    Ok(curve_oid(curve).to_der()?)
}

/// CKA_EC_PARAMS of Ed25519: its OID (PKCS#11 3.0, 2.3.5).
pub(crate) fn ed25519_parameters() -> Result<Vec<u8>, HsmError> {
    Ok(ED25519.to_der()?)
}

/// The point inside CKA_EC_POINT, an OCTET STRING; some HSMs leave it bare.
pub(crate) fn ec_point(attribute: &[u8]) -> Vec<u8> {
    match OctetString::from_der(attribute) {
        Ok(inner) => inner.into_bytes().into(),
        Err(_) => attribute.to_vec(),
    }
}

/// SubjectPublicKeyInfo of an RSA key (RFC 3279, 2.3.1).
pub(crate) fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Result<Vec<u8>, HsmError> {
    let key = integers([modulus, exponent])?;
    public_key(RSA_ENCRYPTION, Some(Any::null()), &key)
}

/// SubjectPublicKeyInfo of a point on a curve (RFC 5480, 2).
pub(crate) fn ec_public_key(curve: Curve, point: &[u8]) -> Result<Vec<u8>, HsmError> {
    public_key(EC_PUBLIC_KEY, Some(Any::encode_from(&curve_oid(curve))?), point)
}

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410, 4).
pub(crate) fn ed25519_public_key(point: &[u8]) -> Result<Vec<u8>, HsmError> {
    public_key(ED25519, None, point)
}

/// SubjectPublicKeyInfo of an ML-DSA key (RFC 9881, 4).
pub(crate) fn ml_dsa_public_key(set: MlDsa, key: &[u8]) -> Result<Vec<u8>, HsmError> {
    public_key(ml_dsa_oid(set), None, key)
}

fn public_key(oid: ObjectIdentifier, parameters: Option<Any>, key: &[u8]) -> Result<Vec<u8>, HsmError> {
    let algorithm = AlgorithmIdentifier { oid, parameters };
    let subject_public_key = BitString::from_bytes(key)?;
    Ok(SubjectPublicKeyInfo { algorithm, subject_public_key }.to_der()?)
}

/// SEQUENCE of positive INTEGERs.
fn integers<const N: usize>(values: [&[u8]; N]) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let sequence = values.into_iter().map(UintRef::new).collect::<Result<Vec<_>, _>>()?;
    Ok(Zeroizing::new(sequence.to_der()?))
}

/// r‖s as the standard's ECDSA-Sig-Value (RFC 3279, 2.2.3).
pub(crate) fn ecdsa_signature(raw: &[u8]) -> Result<Vec<u8>, HsmError> {
    if raw.is_empty() || !raw.len().is_multiple_of(2) {
        return Err(HsmError::Device(format!("an ECDSA signature of {} bytes", raw.len())));
    }
    let (r, s) = raw.split_at(raw.len() / 2);
    Ok(integers([r, s])?.to_vec())
}

/// DigestInfo (RFC 8017, 9.2).
pub(crate) fn digest_info(hash: Hash, digest: &[u8]) -> Result<Vec<u8>, HsmError> {
    let algorithm = AlgorithmIdentifier::<AnyRef<'_>> { oid: hash_oid(hash), parameters: Some(AnyRef::NULL) };
    let algorithm = Any::encode_from(&algorithm)?;
    let digest = Any::encode_from(&OctetString::new(digest)?)?;
    Ok(vec![algorithm, digest].to_der()?)
}

/// PKCS #8 of an RSA key from its CKA_ attributes: modulus, public exponent,
/// private exponent, the two primes, their exponents and the coefficient.
pub(crate) fn rsa_private_key(parts: [&[u8]; 8]) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let [n, e, d, p, q, dp, dq, qi] = parts;
    // RSAPrivateKey (RFC 8017, A.1.2), version 0.
    let key = integers([&[0], n, e, d, p, q, dp, dq, qi])?;
    let pair = aws_lc_rs::rsa::KeyPair::from_der(&key).map_err(rejected)?;
    let der = pair.as_der().map_err(|_| rejected("RSA"))?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

/// A curve's keys in software; the hash is of no matter.
pub(crate) fn ecdsa(curve: Curve) -> &'static software::EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &software::ECDSA_P256_SHA256_ASN1_SIGNING,
        Curve::P384 => &software::ECDSA_P384_SHA384_ASN1_SIGNING,
        Curve::P521 => &software::ECDSA_P521_SHA512_ASN1_SIGNING,
        Curve::Secp256k1 => &software::ECDSA_P256K1_SHA256_ASN1_SIGNING,
    }
}

/// PKCS #8 of an EC key from its scalar and its point.
pub(crate) fn ec_private_key(
    curve: Curve,
    scalar: &[u8],
    point: &[u8],
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let scalar = fixed_length(scalar, curve.field_bytes())?;
    let pair = software::EcdsaKeyPair::from_private_key_and_public_key(ecdsa(curve), &scalar, point)
        .map_err(rejected)?;
    let der = pair.to_pkcs8v1().map_err(|_| rejected("EC"))?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

/// PKCS #8 of an Ed25519 key from its seed and its public key.
pub(crate) fn ed25519_private_key(seed: &[u8], public: &[u8]) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let pair = software::Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(rejected)?;
    let der = pair.to_pkcs8v1().map_err(|_| rejected("Ed25519"))?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

/// A big-endian number in `bytes` bytes, no more and no less.
pub(crate) fn fixed_length(number: &[u8], bytes: usize) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let too_long = || HsmError::Device(format!("the HSM gave {} bytes for {bytes}", number.len()));
    let missing = bytes.checked_sub(number.len()).ok_or_else(too_long)?;
    let mut padded = Zeroizing::new(vec![0; bytes]);
    padded.iter_mut().skip(missing).zip(number).for_each(|(to, from)| *to = *from);
    Ok(padded)
}

fn rejected(reason: impl std::fmt::Display) -> HsmError {
    HsmError::Device(format!("the HSM's key does not encode: {reason}"))
}

/// EME-OAEP decoding (RFC 8017, 7.1.2, step 3) with an empty label. `encoded`
/// is as long as the modulus. Everything up to the one answer takes the same
/// time whatever is wrong, so that nothing tells one malformed field from
/// another (Manger's attack).
pub(crate) fn oaep_unpad(hash: Hash, encoded: &[u8]) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let size = hash.bytes();
    if encoded.len() < 2 * size + 2 {
        return Err(HsmError::Input);
    }
    let (first, masked) = encoded.split_at(1);
    let (masked_seed, masked_block) = masked.split_at(size);
    let mut seed = Zeroizing::new(masked_seed.to_vec());
    mask(hash, masked_block, &mut seed);
    let mut block = Zeroizing::new(masked_block.to_vec());
    mask(hash, &seed, &mut block);

    let (label_hash, rest) = block.split_at(size);
    let mut good = first.ct_eq(&[0]) & label_hash.ct_eq(digest_of(hash, &[]).as_ref());
    let mut separated = Choice::from(0);
    let mut start = 0u32;
    for (index, byte) in (1u32..).zip(rest) {
        let one = byte.ct_eq(&1);
        let zero = byte.ct_eq(&0);
        start.conditional_assign(&index, one & !separated);
        good &= separated | one | zero;
        separated |= one;
    }
    good &= separated;
    // One branch on one bit: whether all of it was well-formed.
    match bool::from(good) {
        true => Ok(Zeroizing::new(rest.get(start as usize..).unwrap_or_default().to_vec())),
        false => Err(HsmError::Input),
    }
}

/// XORs MGF1 of `seed` (RFC 8017, B.2.1) into `data`.
fn mask(hash: Hash, seed: &[u8], data: &mut [u8]) {
    for (counter, piece) in (0u32..).zip(data.chunks_mut(hash.bytes())) {
        let mut input = Zeroizing::new(seed.to_vec());
        input.extend_from_slice(&counter.to_be_bytes());
        let output = digest_of(hash, &input);
        piece.iter_mut().zip(output.as_ref()).for_each(|(to, mask)| *to ^= mask);
    }
}

/// A digest in software.
pub(crate) fn digest_of(hash: Hash, data: &[u8]) -> digest::Digest {
    let algorithm = match hash {
        Hash::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha224 => &digest::SHA224,
        Hash::Sha256 => &digest::SHA256,
        Hash::Sha384 => &digest::SHA384,
        Hash::Sha512 => &digest::SHA512,
    };
    digest::digest(algorithm, data)
}

impl From<der::Error> for HsmError {
    fn from(error: der::Error) -> Self {
        HsmError::Device(format!("what the HSM gave does not encode: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EME-OAEP encoding, RFC 8017, 7.1.1, step 2.
    fn pad(hash: Hash, message: &[u8], size: usize) -> Vec<u8> {
        let mut block = digest_of(hash, &[]).as_ref().to_vec();
        block.resize(size - hash.bytes() - 2 - message.len(), 0);
        block.push(1);
        block.extend_from_slice(message);
        let mut seed = vec![7; hash.bytes()];
        mask(hash, &seed, &mut block);
        mask(hash, &block, &mut seed);
        [vec![0], seed, block].concat()
    }

    #[test]
    fn oaep_unpads_what_was_padded() {
        for message in [&b""[..], b"\x01\x00 a message", &[0; 190]] {
            let encoded = pad(Hash::Sha256, message, 256);
            assert_eq!(encoded.len(), 256);
            assert_eq!(oaep_unpad(Hash::Sha256, &encoded).map(|plain| plain.to_vec()), Ok(message.to_vec()));
        }
    }

    #[test]
    fn oaep_answers_every_malformed_field_alike() {
        let good = pad(Hash::Sha256, b"a message", 256);
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x80;
            assert_eq!(oaep_unpad(Hash::Sha256, &bad), Err(HsmError::Input), "byte {index}");
        }
        assert_eq!(oaep_unpad(Hash::Sha256, &good[..65]), Err(HsmError::Input));
    }

    #[test]
    fn ecdsa_signatures_are_canonical() {
        let raw = [vec![0, 0, 0x80, 1], vec![0, 0, 0, 5]].concat();
        let expected = vec![0x30, 8, 2, 3, 0, 0x80, 1, 2, 1, 5];
        assert_eq!(ecdsa_signature(&raw), Ok(expected));
        assert!(ecdsa_signature(&raw[1..]).is_err());
    }

    #[test]
    fn a_digest_info_is_the_standards() {
        let prefix = hex::decode("3031300d060960864801650304020105000420").unwrap();
        let info = digest_info(Hash::Sha256, &[9; 32]).unwrap();
        assert_eq!(info, [prefix, vec![9; 32]].concat());
    }

    #[test]
    fn a_short_number_is_padded_on_the_left() {
        assert_eq!(fixed_length(&[1, 2], 4).map(|number| number.to_vec()), Ok(vec![0, 0, 1, 2]));
        assert!(fixed_length(&[1, 2, 3], 2).is_err());
    }
}
