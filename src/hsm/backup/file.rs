//! The files of the ceremony: JSON, with their format and version first.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spki::SubjectPublicKeyInfoRef;
use spki::der::Decode as _;
use spki::der::asn1::UintRef;

use super::{BackupError, refused};
use crate::hsm::{BackingId, Blob, ClusterIdentity, Hash};

/// Most custodians of a backup; it has a blob for each M of them, 252 at most.
pub const CUSTODIANS_MAX: usize = 10;

/// Fewest custodians that restore: one alone never does.
pub const THRESHOLD_MIN: usize = 2;

/// Least modulus of a custodian's key in bits.
const RSA_BITS_MIN: usize = 3072;
/// Most of it.
const RSA_BITS_MAX: usize = 8192;

/// Most bytes of a file of the ceremony.
const FILE_BYTES_MAX: usize = 1 << 20;

const NAME_CHARACTERS_MAX: usize = 64;

/// Of every file.
const VERSION: u32 = 1;

/// A wrapping key that any `threshold` of the custodians can restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// 32 random bytes in hex.
    pub id: BackingId,
    /// When it was made, RFC 3339.
    pub made: String,
    /// The cluster, by which the key is known when it is restored.
    pub cluster: ClusterIdentity,
    /// How many custodians restore it.
    pub threshold: usize,
    /// All of them.
    pub custodians: Vec<Custodian>,
    /// The wrapping key for each `threshold` of them.
    pub subsets: Vec<Subset>,
}

/// Somebody who takes part in a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custodian {
    /// What the backup calls them.
    pub name: String,
    /// Their public key.
    pub public_key: RsaPublicKey,
    /// Their one-time key, encrypted to it.
    pub wrapped_key: Oaep,
}

/// The wrapping key under the one-time keys of some custodians.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subset {
    /// Their places in the list, ascending: the first one's key is innermost.
    pub custodians: Vec<usize>,
    /// RFC 5649 by the first; then, by each of the others, the IV of 12 bytes, and
    /// the AES-GCM ciphertext and tag.
    pub wrapped: Blob,
}

/// What is encrypted by RSA-OAEP, MGF1 with the same hash, empty label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oaep {
    /// SHA-256, or SHA-1 where an HSM has no other.
    #[serde(with = "oaep_hash")]
    pub hash: Hash,
    /// As long as the modulus.
    pub ciphertext: Blob,
}

/// What a new HSM asks of the custodians.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The backup's fingerprint.
    pub backup: Fingerprint,
    /// The token that made the pair, for people.
    pub token: String,
    /// CKA_ID of the pair.
    pub id: BackingId,
    /// Its public half.
    pub public_key: RsaPublicKey,
    /// The hash of OAEP that the HSM has.
    #[serde(with = "oaep_hash")]
    pub hash: Hash,
}

/// A custodian's one-time key, encrypted to a request's public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contribution {
    /// The request's fingerprint.
    pub request: Fingerprint,
    /// The custodian's name in the backup.
    pub custodian: String,
    /// The key.
    pub wrapped_key: Blob,
}

impl Backup {
    /// What the head key signs.
    pub(super) fn message(&self) -> Result<Vec<u8>, BackupError> {
        content(self)
    }

    /// What the backup is known by.
    pub fn fingerprint(&self) -> Result<Fingerprint, BackupError> {
        Ok(Fingerprint::of(&content(self)?))
    }

    /// The file.
    pub fn file(&self, signature: Vec<u8>) -> Result<Vec<u8>, BackupError> {
        write(self, Some(signature.into()))
    }

    /// Reads a file and checks it, its signature included.
    pub fn read(bytes: &[u8]) -> Result<Backup, BackupError> {
        let (backup, signature) = read::<Backup>(bytes)?;
        let signature = signature.ok_or_else(|| damaged::<Backup>("it is not signed"))?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, bare(&backup.cluster.head_public_key.0)?)
            .verify(&backup.message()?, &signature.0)
            .map_err(|_| damaged::<Backup>("its signature does not fit: it was changed"))?;
        check_custodians(backup.custodians.iter().map(|one| (&one.name, &one.public_key)), backup.threshold)?;
        let expected = subsets(backup.custodians.len(), backup.threshold);
        if !backup.subsets.iter().map(|subset| &subset.custodians).eq(expected.iter()) {
            return Err(damaged::<Backup>("it is not for each of the custodians"));
        }
        Ok(backup)
    }

    /// Binds a layer to its backup.
    pub(super) fn additional_data(id: BackingId) -> Vec<u8> {
        format!("strongroom key backup {VERSION} {id}").into_bytes()
    }
}

impl Request {
    /// What the custodians compare, before they contribute.
    pub fn fingerprint(&self) -> Result<Fingerprint, BackupError> {
        Ok(Fingerprint::of(&content(self)?))
    }

    /// The file.
    pub fn file(&self) -> Result<Vec<u8>, BackupError> {
        write(self, None)
    }

    /// Reads a file.
    pub fn read(bytes: &[u8]) -> Result<Request, BackupError> {
        Ok(read(bytes)?.0)
    }
}

impl Contribution {
    /// The file.
    pub fn file(&self) -> Result<Vec<u8>, BackupError> {
        write(self, None)
    }

    /// Reads a file.
    pub fn read(bytes: &[u8]) -> Result<Contribution, BackupError> {
        Ok(read(bytes)?.0)
    }
}

/// Refuses names and numbers that a backup cannot have.
pub(super) fn check_custodians<'a>(
    custodians: impl ExactSizeIterator<Item = (&'a String, &'a RsaPublicKey)>,
    threshold: usize,
) -> Result<(), BackupError> {
    let count = custodians.len();
    if !(THRESHOLD_MIN..=count).contains(&threshold) || count > CUSTODIANS_MAX {
        return Err(refused(format!(
            "{threshold} of {count} custodians: at least {THRESHOLD_MIN} must be needed, and at most \
             {CUSTODIANS_MAX} can be named"
        )));
    }
    let mut seen: Vec<(&String, &RsaPublicKey)> = Vec::with_capacity(count);
    for (name, key) in custodians {
        let fits = |character: char| character.is_ascii_alphanumeric() || "-_.@".contains(character);
        if name.is_empty() || name.len() > NAME_CHARACTERS_MAX || !name.chars().all(fits) {
            return Err(refused(format!(
                "the custodian's name {name:?}: letters, digits and -_.@, {NAME_CHARACTERS_MAX} at most"
            )));
        }
        if seen.iter().any(|(other, of)| *other == name || *of == key) {
            return Err(refused(format!("{name}, or their key, is named twice")));
        }
        seen.push((name, key));
    }
    Ok(())
}

/// Each `size` of the first `count` numbers, in order.
pub(super) fn subsets(count: usize, size: usize) -> Vec<Vec<usize>> {
    let mut found = vec![Vec::new()];
    for _ in 0..size {
        found = found
            .iter()
            .flat_map(|begun: &Vec<usize>| {
                let next = begun.last().map_or(0, |last| last + 1);
                (next..count).map(move |each| [begun.as_slice(), &[each]].concat())
            })
            .collect();
    }
    found
}

/// SHA-256, as hex in groups that people can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(bytes: &[u8]) -> Fingerprint {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Fingerprint(hash)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = BackupError;

    /// Takes hex of either case, with blanks, colons and dashes anywhere.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace() && !":-".contains(*c)).collect();
        let mut hash = [0; 32];
        hex::decode_to_slice(digits, &mut hash)
            .map_err(|_| refused("a fingerprint is 64 hexadecimal digits"))?;
        Ok(Fingerprint(hash))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An RSA public key of 3072 to 8192 bits; in JSON the SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RsaPublicKey {
    der: Vec<u8>,
    pub(in crate::hsm) modulus: Vec<u8>,
    pub(in crate::hsm) exponent: Vec<u8>,
}

impl RsaPublicKey {
    /// Reads a DER SubjectPublicKeyInfo.
    pub fn from_der(der: &[u8]) -> Result<RsaPublicKey, BackupError> {
        let key = PublicEncryptingKey::from_der(der).map_err(|_| refused("it is no RSA public key"))?;
        let bits = key.key_size_bits();
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return Err(refused(format!(
                "an RSA key of {bits} bits: {RSA_BITS_MIN} to {RSA_BITS_MAX} are taken"
            )));
        }
        // As the library writes it: one key has one form.
        let der = key.as_der().map_err(|_| refused("it is no RSA public key"))?.as_ref().to_vec();
        // RSAPublicKey (RFC 8017, A.1.1).
        let numbers = Vec::<UintRef<'_>>::from_der(&bare_of(&der)?)
            .map_err(|_| refused("it is no RSA public key"))?
            .iter()
            .map(|number| number.as_bytes().to_vec())
            .collect::<Vec<_>>();
        let [modulus, exponent] =
            <[Vec<u8>; 2]>::try_from(numbers).map_err(|_| refused("it is no RSA public key"))?;
        Ok(RsaPublicKey { der, modulus, exponent })
    }

    /// Reads PEM, `PUBLIC KEY`.
    pub fn from_pem(text: &str) -> Result<RsaPublicKey, BackupError> {
        let (label, document) = pkcs8::Document::from_pem(text).map_err(|_| refused("it is no PEM"))?;
        if label != "PUBLIC KEY" {
            return Err(refused(format!(
                "it is a {label}, not a PUBLIC KEY: openssl pkey -pubout writes one"
            )));
        }
        RsaPublicKey::from_der(document.as_bytes())
    }

    /// SHA-256 of its DER: what `openssl pkey -pubin -outform DER | openssl dgst
    /// -sha256` says.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.der)
    }

    /// Encrypts a key to it.
    pub(in crate::hsm) fn encrypt(&self, hash: Hash, key: &[u8]) -> Result<Blob, BackupError> {
        let failed = || refused("RSA-OAEP encryption failed");
        let public = PublicEncryptingKey::from_der(&self.der).map_err(|_| failed())?;
        let public = OaepPublicEncryptingKey::new(public).map_err(|_| failed())?;
        let mut ciphertext = vec![0; public.ciphertext_size()];
        public.encrypt(algorithm(hash)?, key, &mut ciphertext, None).map_err(|_| failed())?;
        Ok(ciphertext.into())
    }
}

impl Serialize for RsaPublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Blob::from(self.der.clone()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RsaPublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RsaPublicKey::from_der(&Blob::deserialize(deserializer)?.0).map_err(serde::de::Error::custom)
    }
}

/// The hashes of OAEP, the best first.
pub(super) const OAEP_HASHES: [Hash; 2] = [Hash::Sha256, Hash::Sha1];

pub(super) fn algorithm(hash: Hash) -> Result<&'static OaepAlgorithm, BackupError> {
    match hash {
        Hash::Sha1 => Ok(&OAEP_SHA1_MGF1SHA1),
        Hash::Sha256 => Ok(&OAEP_SHA256_MGF1SHA256),
        _ => Err(refused(format!("RSA-OAEP with {hash}"))),
    }
}

mod oaep_hash {
    use super::{Deserialize as _, Deserializer, Hash, OAEP_HASHES, Serializer};

    pub(super) fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = OAEP_HASHES.into_iter().find(|hash| hash.to_string() == name);
        known.ok_or_else(|| serde::de::Error::custom(format!("RSA-OAEP with {name:?}")))
    }
}

/// What a file is.
trait Format: Serialize + DeserializeOwned {
    const FORMAT: &'static str;
}

impl Format for Backup {
    const FORMAT: &'static str = "strongroom key backup";
}

impl Format for Request {
    const FORMAT: &'static str = "strongroom restore request";
}

impl Format for Contribution {
    const FORMAT: &'static str = "strongroom restore contribution";
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    format: String,
    version: u32,
    content: T,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<Blob>,
}

/// The bytes that are signed and hashed: the content, behind what it is.
fn content<T: Format>(value: &T) -> Result<Vec<u8>, BackupError> {
    let mut bytes = format!("{} {VERSION}\n", T::FORMAT).into_bytes();
    bytes.extend(serde_json::to_vec(value).map_err(|error| damaged::<T>(&error.to_string()))?);
    Ok(bytes)
}

fn write<T: Format>(value: &T, signature: Option<Blob>) -> Result<Vec<u8>, BackupError> {
    let envelope = Envelope { format: T::FORMAT.to_owned(), version: VERSION, content: value, signature };
    let mut bytes = serde_json::to_vec_pretty(&envelope).map_err(|error| damaged::<T>(&error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn read<T: Format>(bytes: &[u8]) -> Result<(T, Option<Blob>), BackupError> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    if bytes.len() > FILE_BYTES_MAX {
        return Err(damaged::<T>("it is too long"));
    }
    let wrong = |error: serde_json::Error| damaged::<T>(&error.to_string());
    let head: Head = serde_json::from_slice(bytes).map_err(wrong)?;
    if head.format != T::FORMAT {
        return Err(damaged::<T>(&format!("it is a {:?}", head.format)));
    }
    if head.version != VERSION {
        return Err(damaged::<T>(&format!(
            "its version is {}, this Strongroom knows version {VERSION}",
            head.version
        )));
    }
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(wrong)?;
    Ok((envelope.content, envelope.signature))
}

fn damaged<T: Format>(reason: &str) -> BackupError {
    BackupError::File(format!("it is no {} that can be used: {reason}", T::FORMAT))
}

fn bare(spki: &[u8]) -> Result<Vec<u8>, BackupError> {
    bare_of(spki).map_err(|_| damaged::<Backup>("the head key is no public key"))
}

/// The key in a SubjectPublicKeyInfo.
fn bare_of(spki: &[u8]) -> Result<Vec<u8>, BackupError> {
    let spki = SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| refused("it is no public key"))?;
    Ok(spki.subject_public_key.raw_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subset_is_there_once() {
        assert_eq!(subsets(3, 2), [[0, 1], [0, 2], [1, 2]]);
        assert_eq!(subsets(4, 4), [[0, 1, 2, 3]]);
        assert_eq!(subsets(CUSTODIANS_MAX, 5).len(), 252);
    }

    #[test]
    fn a_fingerprint_is_read_as_people_write_it() {
        let fingerprint = Fingerprint::of(b"x");
        let text = fingerprint.to_string();
        assert_eq!(text.len(), 64);
        let spaced = text
            .to_uppercase()
            .as_bytes()
            .chunks(4)
            .map(String::from_utf8_lossy)
            .collect::<Vec<_>>()
            .join(" ");
        for written in [text.clone(), spaced.clone(), spaced.replace(' ', ":")] {
            assert_eq!(written.parse::<Fingerprint>().unwrap(), fingerprint);
        }
        assert!(text[1..].parse::<Fingerprint>().is_err());
        assert!(text.replace(&text[..1], "g").parse::<Fingerprint>().is_err());
    }

    #[test]
    fn names_and_numbers_have_limits() {
        let key = |number: u8| RsaPublicKey { der: vec![number], modulus: vec![], exponent: vec![] };
        let check = |names: &[&str], threshold| {
            let named: Vec<_> =
                names.iter().zip(0..).map(|(name, number)| ((*name).to_owned(), key(number))).collect();
            check_custodians(named.iter().map(|(name, key)| (name, key)), threshold)
        };
        check(&["alice", "bob@example.com", "carol-2"], 2).unwrap();
        check(&["alice", "bob"], 2).unwrap();
        for threshold in [0, 1, 4] {
            assert!(check(&["alice", "bob", "carol"], threshold).is_err(), "{threshold}");
        }
        assert!(check(&["alice", "alice"], 2).is_err());
        assert!(check(&["alice", "b b"], 2).is_err());
        assert!(check(&["alice", ""], 2).is_err());
        assert!(check(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"], 2).is_err());
        let same = [("alice".to_owned(), key(1)), ("bob".to_owned(), key(1))];
        assert!(check_custodians(same.iter().map(|(name, key)| (name, key)), 2).is_err());
    }

    #[test]
    fn another_format_or_version_is_refused() {
        let of = |text: &str| Contribution::read(text.as_bytes()).unwrap_err().to_string();
        assert!(of(r#"{"format":"strongroom key backup","version":1}"#).contains("strongroom key backup"));
        assert!(of(r#"{"format":"strongroom restore contribution","version":2}"#).contains("version is 2"));
        assert!(of("{}").contains("missing field"));
    }
}
