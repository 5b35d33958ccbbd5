//! Whether a trail's files are what was delivered: for those who have no AWS
//! CLI. Reads what is in the bucket, and believes only the public keys.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use flate2::read::MultiGzDecoder;

use super::bucket::{Bucket, BucketError, Buckets};
use super::digest::{self, Digest};
use super::keys;
use super::name::{DIGESTS, INSIGHTS, LOGS, Place};

/// The largest file that is unpacked.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// What is verified.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The trail's name.
    pub name: String,
    /// Its home Region.
    pub home: String,
    /// The Region of the events.
    pub region: String,
    /// The account of the events.
    pub account: String,
    /// Its bucket.
    pub bucket: String,
    /// Its prefix.
    pub prefix: Option<String>,
    /// Its organization's id.
    pub organization: Option<String>,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Digests that are as they were signed.
    pub digests: usize,
    /// Log files that are as their digests say.
    pub files: usize,
    /// Log files that no digest covers yet.
    pub uncovered: usize,
    /// What was changed, removed or added, one sentence each.
    pub findings: Vec<String>,
}

/// Reads every digest and every log file of one account and Region. `keys` are
/// public keys (DER RSAPublicKey) by their fingerprints.
///
/// # Errors
/// When the bucket cannot be read.
pub async fn verify(
    buckets: &Buckets,
    subject: &Subject,
    keys: &BTreeMap<String, Vec<u8>>,
) -> Result<Report, BucketError> {
    let bucket = buckets.open(&subject.bucket, None)?;
    let place = Place {
        prefix: subject.prefix.as_deref(),
        organization: subject.organization.as_deref(),
        account: &subject.account,
        region: &subject.region,
    };
    // Before the digests: what is there now is listed by one that is read, or its
    // time is behind all of them.
    let mut files = bucket.list(&place.folder(LOGS)).await?;
    files.extend(bucket.list(&place.folder(INSIGHTS)).await?);
    let mark = format!("_{DIGESTS}_{}_{}_{}_", subject.region, subject.name, subject.home);
    let mut digests = bucket.list(&place.folder(DIGESTS)).await?;
    digests.retain(|key| key.contains(&mark));
    let mut check =
        Check { buckets, bucket, subject, keys, report: Report::default(), listed: BTreeSet::new() };
    let newest = check.digests(&digests).await?;
    check.added(files, newest.as_deref());
    Ok(check.report)
}

struct Check<'a> {
    buckets: &'a Buckets,
    bucket: Bucket,
    subject: &'a Subject,
    keys: &'a BTreeMap<String, Vec<u8>>,
    report: Report,
    /// The files that digests list.
    listed: BTreeSet<String>,
}

/// What a digest is to be by the one after it.
struct Expected {
    sha256: String,
    signature: String,
    start: String,
}

impl Check<'_> {
    /// Follows the chain back from the newest digest; digestEndTime of that.
    async fn digests(&mut self, keys: &[String]) -> Result<Option<String>, BucketError> {
        let mut newest = None;
        let mut expected: BTreeMap<String, Expected> = BTreeMap::new();
        let mut there: BTreeSet<&String> = keys.iter().collect();
        for key in keys.iter().rev() {
            there.remove(key);
            let wanted = expected.remove(key);
            let Some(digest) = self.digest(key, wanted.as_ref()).await? else { continue };
            newest.get_or_insert(digest.digest_end_time.clone());
            if let (Some(previous), Some(sha256), Some(signature)) = (
                &digest.previous_digest_s3_object,
                &digest.previous_digest_hash_value,
                &digest.previous_digest_signature,
            ) {
                if digest.previous_digest_s3_bucket.as_ref() == Some(&self.subject.bucket)
                    && !there.contains(previous)
                {
                    self.find(format!("digest {previous} was removed"));
                }
                let start = digest.digest_start_time.clone();
                let link = Expected { sha256: sha256.clone(), signature: signature.clone(), start };
                expected.insert(previous.clone(), link);
            }
            for file in &digest.log_files {
                self.listed.insert(file.s3_object.clone());
                self.file(&file.s3_bucket, &file.s3_object, &file.hash_value).await?;
            }
        }
        Ok(newest)
    }

    /// A digest that is as it was signed.
    async fn digest(&mut self, key: &str, wanted: Option<&Expected>) -> Result<Option<Digest>, BucketError> {
        let Some(object) = self.bucket.get(key).await? else {
            self.find(format!("digest {key} was removed"));
            return Ok(None);
        };
        let text = unpack(&object.bytes);
        let read = text.and_then(|text| Some((serde_json::from_slice::<Digest>(&text).ok()?, text)));
        let Some((digest, text)) = read else {
            self.find(format!("digest {key} was changed: it cannot be read"));
            return Ok(None);
        };
        let signature = object.metadata.get(digest::SIGNATURE).cloned().unwrap_or_default();
        let problem = match self.keys.get(&digest.digest_public_key_fingerprint) {
            None => Some("its public key is not one of this service".to_owned()),
            Some(public_key) => {
                let fits = keys::verify(public_key, &digest.message(&text), &signature);
                (!fits).then(|| "its signature does not fit".to_owned())
            }
        };
        let moved = digest.digest_s3_object != key || digest.digest_s3_bucket != self.subject.bucket;
        let moved = moved.then(|| format!("it was moved from {}", digest.digest_s3_object));
        let unlike = wanted.filter(|wanted| {
            wanted.sha256 != digest::sha256(&text)
                || wanted.signature != signature
                || wanted.start != digest.digest_end_time
        });
        let unlike = unlike.map(|_| "it is not the one that the next digest follows".to_owned());
        match problem.or(moved).or(unlike) {
            Some(problem) => {
                self.find(format!("digest {key} was changed: {problem}"));
                Ok(None)
            }
            None => {
                self.report.digests += 1;
                Ok(Some(digest))
            }
        }
    }

    async fn file(&mut self, bucket: &str, key: &str, sha256: &str) -> Result<(), BucketError> {
        let found = match bucket == self.subject.bucket {
            true => self.bucket.get(key).await?,
            false => self.buckets.open(bucket, None)?.get(key).await?,
        };
        match found.map(|object| unpack(&object.bytes)) {
            None => self.find(format!("log file {key} was removed")),
            Some(Some(text)) if digest::sha256(&text) == sha256 => self.report.files += 1,
            Some(_) => self.find(format!("log file {key} was changed")),
        }
        Ok(())
    }

    /// Log files that no digest lists, though one covers their time.
    fn added(&mut self, files: Vec<String>, newest: Option<&str>) {
        // 2026-11-26T13:05:00Z, of which names have 20261126T1305Z.
        let is_whole = !self.report.findings.iter().any(|finding| finding.starts_with("digest "));
        let minute: Option<String> =
            newest.map(|end| end.chars().filter(|c| c.is_ascii_digit() || *c == 'T').take(13).collect());
        for key in files {
            if self.listed.contains(&key) {
                continue;
            }
            let time = key.rsplit('_').nth(1).map(|time| time.trim_end_matches('Z'));
            match (time, &minute) {
                (Some(time), Some(minute)) if time < minute.as_str() => {
                    self.find(match is_whole {
                        true => format!("log file {key} was added: no digest lists it"),
                        false => {
                            format!("log file {key} cannot be verified: no digest that is left lists it")
                        }
                    });
                }
                (None, _) => self.find(format!("file {key} was added: it has not the name of a log file")),
                _ => self.report.uncovered += 1,
            }
        }
    }

    fn find(&mut self, finding: String) {
        if !self.report.findings.contains(&finding) {
            self.report.findings.push(finding);
        }
    }
}

fn unpack(gzip: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    MultiGzDecoder::new(gzip).take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(text)
}
