//! What crosses the boundary of `hsm`: plain data, never a handle, so that a
//! member may one day be a process of its own.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// An elliptic curve of ECDSA and ECDH keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256 (secp256r1).
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
    /// SEC 2 secp256k1.
    Secp256k1,
}

impl Curve {
    /// Length of a field element in bytes: of a coordinate, and of each half
    /// of a signature.
    pub fn field_bytes(self) -> usize {
        match self {
            Curve::P256 | Curve::Secp256k1 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }
}

/// A parameter set of ML-DSA (FIPS 204).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the standard's own names")]
pub enum MlDsa {
    MlDsa44,
    MlDsa65,
    MlDsa87,
}

/// The kind of a key's material.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Material {
    /// AES-256.
    Aes256,
    /// A generic secret for HMAC, its length in bytes.
    Generic(u16),
    /// An RSA key pair, its modulus in bits.
    Rsa(u16),
    /// A key pair on a Weierstrass curve.
    Ec(Curve),
    /// An Ed25519 key pair (RFC 8032).
    Ed25519,
    /// An ML-DSA key pair.
    MlDsa(MlDsa),
}

/// What a key may be used for; one of them, as in KMS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// AES-GCM, or RSA-OAEP decryption.
    Encrypt,
    /// Signatures.
    Sign,
    /// HMAC.
    Mac,
    /// ECDH.
    Agree,
    /// RSA-OAEP decryption and unwrapping of key material that is imported.
    Import,
}

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the standard's own names")]
pub enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// Length of a digest in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha224 => 28,
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }
}

/// How a signature is made. RSA and ECDSA schemes take the digest, the others
/// the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// RSASSA-PSS (RFC 8017, 8.1), MGF1 with the same hash, salt as long as it.
    RsaPss(Hash),
    /// RSASSA-PKCS1-v1_5 (RFC 8017, 8.2).
    RsaPkcs1(Hash),
    /// ECDSA (FIPS 186-5); the signature is DER.
    Ecdsa,
    /// Ed25519 (RFC 8032).
    Ed25519,
    /// ML-DSA (FIPS 204), empty context.
    MlDsa,
}

/// One thing that a member can or cannot do with one kind of material; the
/// self-test tries each of them when a member is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    /// Generate, and wrap and unwrap unless the material is resident only.
    Make(Material),
    /// AES-256-GCM, 96-bit IV, 128-bit tag.
    AesGcm,
    /// RSA-OAEP decryption with this hash (and MGF1 with it).
    OaepDecrypt(Hash),
    /// A signature with this material.
    Sign(Material, Scheme),
    /// HMAC with this hash.
    Mac(Hash),
    /// ECDH on this curve.
    Agree(Curve),
    /// Unwrapping of key material that comes under RSA-OAEP with this hash.
    Import(Hash),
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Capability::Make(material) => write!(f, "make and wrap {material}"),
            Capability::AesGcm => f.write_str("AES-256-GCM"),
            Capability::OaepDecrypt(hash) => write!(f, "RSA-OAEP {hash}"),
            Capability::Sign(material, scheme) => write!(f, "sign {scheme} with {material}"),
            Capability::Mac(hash) => write!(f, "HMAC {hash}"),
            Capability::Agree(curve) => write!(f, "ECDH {curve}"),
            Capability::Import(hash) => write!(f, "import under RSA-OAEP {hash}"),
        }
    }
}

impl fmt::Display for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Material::Aes256 => f.write_str("AES-256"),
            Material::Generic(bytes) => write!(f, "a {bytes}-byte secret"),
            Material::Rsa(bits) => write!(f, "RSA-{bits}"),
            Material::Ec(curve) => write!(f, "{curve}"),
            Material::Ed25519 => f.write_str("Ed25519"),
            Material::MlDsa(MlDsa::MlDsa44) => f.write_str("ML-DSA-44"),
            Material::MlDsa(MlDsa::MlDsa65) => f.write_str("ML-DSA-65"),
            Material::MlDsa(MlDsa::MlDsa87) => f.write_str("ML-DSA-87"),
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Curve::P256 => "P-256",
            Curve::P384 => "P-384",
            Curve::P521 => "P-521",
            Curve::Secp256k1 => "secp256k1",
        })
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hash::Sha1 => "SHA-1",
            Hash::Sha224 => "SHA-224",
            Hash::Sha256 => "SHA-256",
            Hash::Sha384 => "SHA-384",
            Hash::Sha512 => "SHA-512",
        })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheme::RsaPss(hash) => write!(f, "PSS {hash}"),
            Scheme::RsaPkcs1(hash) => write!(f, "PKCS#1 v1.5 {hash}"),
            Scheme::Ecdsa => f.write_str("ECDSA"),
            Scheme::Ed25519 => f.write_str("EdDSA"),
            Scheme::MlDsa => f.write_str("ML-DSA"),
        }
    }
}

/// 32 random bytes that name a backing key: its CKA_ID where it is a token
/// object, and KMS's KeyMaterialId in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackingId(pub [u8; 32]);

impl BackingId {
    /// A fresh one from the operating system's random numbers.
    pub fn random() -> Result<BackingId, HsmError> {
        let mut id = [0; 32];
        aws_lc_rs::rand::fill(&mut id)
            .map_err(|_| HsmError::Device("the host has no random numbers".to_owned()))?;
        Ok(BackingId(id))
    }
}

/// Lower-case hex.
impl fmt::Display for BackingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for BackingId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id)?;
        Ok(BackingId(id))
    }
}

impl Serialize for BackingId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackingId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// In which of the two ways a kind of key lives in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Residence {
    /// In the store, wrapped.
    Wrapped,
    /// In the token, where it cannot be wrapped.
    Resident,
}

/// Where a backing key lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Home {
    /// In the store, wrapped under the wrapping key of this CKA_ID
    /// (RFC 5649).
    Wrapped {
        /// CKA_ID of the wrapping key.
        by: BackingId,
        /// What C_WrapKey returned.
        blob: Arc<[u8]>,
    },
    /// In the tokens, an object with the backing key's id as its CKA_ID.
    Resident {
        /// The same key, wrapped once under the cluster's wrapping key when it
        /// was made: from it a member gets the object (again). None for a kind
        /// that cannot be wrapped.
        blob: Option<Arc<[u8]>>,
    },
}

impl Home {
    /// Whether it is a token object.
    pub fn is_resident(&self) -> bool {
        matches!(self, Home::Resident { .. })
    }
}

/// What an HSM must know of a backing key to use it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyRef {
    /// Its name.
    pub id: BackingId,
    /// Its kind.
    pub material: Material,
    /// What it may be used for.
    pub usage: Use,
    /// Where it lives.
    pub home: Home,
}

/// A backing key that was just made.
#[derive(Debug, Clone)]
pub struct Made {
    /// The key.
    pub key: KeyRef,
    /// DER SubjectPublicKeyInfo of a key pair.
    pub public_key: Option<Vec<u8>>,
}

/// AES-GCM's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The IV that was used: the caller's, or the one the HSM wrote.
    pub iv: [u8; 12],
    /// Ciphertext, then the 16-byte tag.
    pub ciphertext: Vec<u8>,
}

/// A key pair for GenerateDataKeyPair.
pub struct DataKeyPair {
    /// DER PrivateKeyInfo (PKCS #8, RFC 5958).
    pub private_key: Zeroizing<Vec<u8>>,
    /// DER SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

/// Why an HSM did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HsmError {
    /// The input does not fit the key: a wrong tag, padding or point. One
    /// answer for every such cause.
    #[error("the HSM refused the input")]
    Input,
    /// The key material that was imported is not of the key's kind.
    #[error("the key material is of another kind")]
    Unfit,
    /// Not with these HSMs, or not with what was given.
    #[error("it cannot be done: {0}")]
    Unsupported(String),
    /// No member serves now, or this one does not.
    #[error("{0}")]
    Unavailable(String),
    /// The key's object is in no serving member.
    #[error("the key is not in the HSM: {0}")]
    Missing(String),
    /// Queues are full.
    #[error("every member of the cluster is busy")]
    Busy,
    /// The deadline passed first.
    #[error("the HSM did not answer in time")]
    Deadline,
    /// The HSM failed and its canary does not blame the caller.
    #[error("the HSM failed: {0}")]
    Device(String),
}

/// How a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// Its token is being found, logged in to and tested.
    Attaching,
    /// It is attached, and gets the keys that it lacks before it serves.
    Synchronizing,
    /// It does work.
    Serving,
    /// It does not answer; it is tried again by itself.
    Lost,
    /// It answers, and must not be used: wrong PIN, wiped or another token.
    Refused,
    /// An operator took it out; it is left alone until it is brought back.
    Maintenance,
}

/// Why a token could not be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The module or the token does not answer.
    Silent,
    /// The module has no such token.
    Absent,
    /// It is another token, or was wiped.
    Foreign,
    /// CKR_PIN_INCORRECT, or a PIN that is no PIN for it.
    WrongPin,
    /// CKR_PIN_LOCKED, CKR_PIN_EXPIRED.
    LockedPin,
    /// CKR_USER_PIN_NOT_INITIALIZED: it has no crypto user.
    NoUser,
    /// CKR_USER_ANOTHER_ALREADY_LOGGED_IN, CKR_USER_TOO_MANY_TYPES.
    UserLoggedIn,
}

/// What an operator sees of a member.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    /// RFC 7512 URI.
    pub uri: String,
    /// The name of its module in the configuration.
    pub module: String,
    /// The name of its PIN in the configuration.
    pub pin: String,
    /// How it is.
    pub state: MemberState,
    /// Why it is lost or refused.
    pub reason: Option<String>,
    /// The kind of that reason, where it is known since the last try to attach.
    pub cause: Option<Cause>,
    /// The token's model.
    pub model: String,
    /// The token's manufacturer.
    pub manufacturer: String,
    /// The token's firmware version.
    pub firmware: String,
    /// Session threads that take work.
    pub threads: usize,
    /// Calls that wait for a thread.
    pub queue_depth: usize,
    /// Keys whose handles are held.
    pub loaded_keys: usize,
    /// Grows with each attempt to attach the token: handles of one epoch are
    /// void in the next.
    pub epoch: u64,
    /// What was tried when it was attached, and why what failed did.
    pub self_test: Vec<(Capability, Result<(), String>)>,
}

/// A resident key as the store knows it, to compare the members with.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The key.
    pub key: KeyRef,
    /// DER SubjectPublicKeyInfo of a key pair.
    pub public_key: Option<Vec<u8>>,
}

/// How a resident key's object is on one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    /// It is there and is the key.
    Good,
    /// It is not there.
    Missing,
    /// It is there, and is another key, or several objects.
    Differing,
}

/// What is published when a member's state changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHealth {
    /// RFC 7512 URI.
    pub uri: String,
    /// How it is.
    pub state: MemberState,
    /// Why it is lost or refused.
    pub reason: Option<String>,
}
