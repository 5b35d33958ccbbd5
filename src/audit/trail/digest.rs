//! Digests: what files an hour delivered, signed and chained to the hour
//! before, in the form that `aws cloudtrail validate-logs` checks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::log_file::{File, Owner};
use super::name::iso;
use super::rows::DigestKey;
use crate::error::{Error, Result};
use crate::registry::Held;

/// The object metadata that has the signature.
pub const SIGNATURE: &str = "signature";
/// The object metadata that has the signature's algorithm.
pub const SIGNATURE_ALGORITHM: &str = "signature-algorithm";
/// PKCS #1 v1.5 (RFC 8017, 8.2).
pub const ALGORITHM: &str = "SHA256withRSA";
const HASH_ALGORITHM: &str = "SHA-256";

/// The digests of one trail: one chain for each account and Region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chains {
    /// The beginning of the current hours, milliseconds since the epoch.
    pub from_ms: i64,
    /// By account and Region.
    pub chains: BTreeMap<Owner, Chain>,
    /// Digests that are being written, all of the same end.
    pub pending: Option<Window>,
}

/// The digests of one account and Region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The files that were delivered since the last digest was signed.
    pub files: Vec<LogFile>,
    /// The last digest; none before the first.
    pub last: Option<Link>,
}

/// A file, as its digest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogFile {
    /// Its bucket.
    pub s3_bucket: String,
    /// Its key.
    pub s3_object: String,
    /// SHA-256 in hex over the uncompressed file.
    pub hash_value: String,
    hash_algorithm: String,
    newest_event_time: String,
    oldest_event_time: String,
}

impl LogFile {
    /// A file that was delivered.
    ///
    /// # Errors
    /// KMSInternalException for a time that no calendar has.
    pub fn new(bucket: &str, key: &str, file: &File) -> Result<LogFile> {
        Ok(LogFile {
            s3_bucket: bucket.to_owned(),
            s3_object: key.to_owned(),
            hash_value: file.sha256.clone(),
            hash_algorithm: HASH_ALGORITHM.to_owned(),
            newest_event_time: iso(file.times_ms.1)?,
            oldest_event_time: iso(file.times_ms.0)?,
        })
    }
}

/// What a digest says of the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// SHA-256 in hex over the uncompressed digest.
    pub sha256: String,
    /// Its signature in hex.
    pub signature: String,
}

/// Digests that are being written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// digestEndTime, milliseconds since the epoch.
    pub end_ms: i64,
    /// KmsKeyId at the time.
    pub kms_key_id: Option<String>,
    /// The digest of each chain, and its content.
    pub digests: BTreeMap<Owner, (Link, String)>,
    /// Whether they are the last: logging or validation has ended.
    pub is_last: bool,
}

/// A digest. The order is CloudTrail's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Digest {
    /// Whose files it lists.
    pub aws_account_id: String,
    /// The beginning of its time.
    pub digest_start_time: String,
    /// The end of its time.
    pub digest_end_time: String,
    /// Where it is itself.
    pub digest_s3_bucket: String,
    /// Where it is itself.
    pub digest_s3_object: String,
    /// The public key that its signature fits.
    pub digest_public_key_fingerprint: String,
    /// [`ALGORITHM`].
    pub digest_signature_algorithm: String,
    newest_event_time: Option<String>,
    oldest_event_time: Option<String>,
    /// The digest before it; none in the first.
    pub previous_digest_s3_bucket: Option<String>,
    /// The digest before it; none in the first.
    pub previous_digest_s3_object: Option<String>,
    /// SHA-256 in hex over the digest before it.
    pub previous_digest_hash_value: Option<String>,
    previous_digest_hash_algorithm: Option<String>,
    /// The signature of the digest before it, in hex.
    pub previous_digest_signature: Option<String>,
    /// The files.
    pub log_files: Vec<LogFile>,
}

/// Where and when a digest is.
pub struct At<'a> {
    /// Whose it is.
    pub owner: &'a Owner,
    /// Its bucket.
    pub bucket: &'a str,
    /// Its key.
    pub key: &'a str,
    /// Its time, milliseconds since the epoch.
    pub range_ms: (i64, i64),
}

impl Digest {
    /// The next digest of a chain.
    ///
    /// # Errors
    /// KMSInternalException for a time that no calendar has.
    pub fn next(chain: &Chain, at: &At<'_>, key: &Held<DigestKey>) -> Result<Digest> {
        let last = chain.last.as_ref();
        // The form is such that the texts' order is that of the times.
        let oldest = chain.files.iter().map(|file| &file.oldest_event_time).min();
        let newest = chain.files.iter().map(|file| &file.newest_event_time).max();
        Ok(Digest {
            aws_account_id: at.owner.account.clone(),
            digest_start_time: iso(at.range_ms.0)?,
            digest_end_time: iso(at.range_ms.1)?,
            digest_s3_bucket: at.bucket.to_owned(),
            digest_s3_object: at.key.to_owned(),
            digest_public_key_fingerprint: key.id.id.clone(),
            digest_signature_algorithm: ALGORITHM.to_owned(),
            newest_event_time: newest.cloned(),
            oldest_event_time: oldest.cloned(),
            previous_digest_s3_bucket: last.map(|last| last.bucket.clone()),
            previous_digest_s3_object: last.map(|last| last.key.clone()),
            previous_digest_hash_value: last.map(|last| last.sha256.clone()),
            previous_digest_hash_algorithm: last.map(|_| HASH_ALGORITHM.to_owned()),
            previous_digest_signature: last.map(|last| last.signature.clone()),
            log_files: chain.files.clone(),
        })
    }

    /// The digest as it is in its object, before compression.
    ///
    /// # Errors
    /// KMSInternalException; there is no value that JSON has not.
    pub fn text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::internal(error.to_string()))
    }

    /// What is signed; `text` is the digest as it is in its object.
    pub fn message(&self, text: &[u8]) -> String {
        format!(
            "{}\n{}/{}\n{}\n{}",
            self.digest_end_time,
            self.digest_s3_bucket,
            self.digest_s3_object,
            sha256(text),
            self.previous_digest_signature.as_deref().unwrap_or("null")
        )
    }
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_first_digest_has_null_for_what_was_before_it() {
        let owner = Owner { account: "111122223333".into(), region: "us-east-1".into(), insights: false };
        let at = At { owner: &owner, bucket: "b", key: "k", range_ms: (0, 3_600_000) };
        let key = Held {
            id: crate::store::RowId {
                kind: crate::store::Kind::DigestKey,
                region: "us-east-1".into(),
                account: String::new(),
                id: "f".into(),
            },
            version: 1,
            value: DigestKey {
                id: crate::hsm::BackingId([0; 32]),
                home: crate::key::StoredHome::Resident { blob: None },
                public_key: vec![].into(),
                from_ms: 0,
                until_ms: 1,
            },
        };
        let digest = Digest::next(&Chain::default(), &at, &key).unwrap();
        let text = digest.text().unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        for name in ["S3Bucket", "S3Object", "HashValue", "HashAlgorithm", "Signature"] {
            assert_eq!(json.get(format!("previousDigest{name}")), Some(&serde_json::Value::Null), "{name}");
        }
        assert_eq!(json["logFiles"], serde_json::json!([]));
        let signed = digest.message(text.as_bytes());
        assert_eq!(signed, format!("1970-01-01T01:00:00Z\nb/k\n{}\nnull", sha256(text.as_bytes())));
    }
}
