//! What things are called: trails, and the objects in their buckets.

use crate::error::{Error, Exception, Result};
use crate::key::arn::{Arn, partition_of};

const NAME_CHARS_MIN: usize = 3;
const NAME_CHARS_MAX: usize = 128;
const PREFIX_CHARS_MAX: usize = 200;
const BUCKET_CHARS_MIN: usize = 3;
const BUCKET_CHARS_MAX: usize = 63;
/// The random characters of a log file's name.
const UNIQUE_CHARS: usize = 16;
/// The hexadecimal digits of the organization's id behind `o-`.
const ORGANIZATION_DIGITS: usize = 10;

/// The ARN of a trail.
pub fn arn(region: &str, account: &str, name: &str) -> String {
    format!("arn:{}:cloudtrail:{region}:{account}:trail/{name}", partition_of(region))
}

/// Reads a trail's ARN: Region, account and name.
///
/// # Errors
/// CloudTrailARNInvalidException.
pub fn parse_arn(text: &str) -> Result<(String, String, String)> {
    let arn = Arn::parse(text).filter(|arn| arn.service == "cloudtrail" && !arn.region.is_empty());
    let parts = arn.and_then(|arn| Some((arn, arn.resource.strip_prefix("trail/")?)));
    let valid =
        parts.filter(|(arn, name)| crate::key::arn::is_account_id(arn.account) && check(name).is_ok());
    let (arn, name) = valid.ok_or_else(|| {
        Error::new(
            Exception::CloudTrailArnInvalid,
            format!(
                "{text} is not a valid trail ARN; its form is arn:aws:cloudtrail:REGION:ACCOUNT:trail/NAME."
            ),
        )
    })?;
    Ok((arn.region.to_owned(), arn.account.to_owned(), name.to_owned()))
}

/// CloudTrail's rules for trail names.
///
/// # Errors
/// InvalidTrailNameException.
pub fn check(name: &str) -> Result<()> {
    let refused = |why: &'static str| Err(Error::new(Exception::InvalidTrailName, why));
    let letters = |c: char| c.is_ascii_alphanumeric();
    let length = name.chars().count();
    if length < NAME_CHARS_MIN {
        return refused("Trail name too short. Minimum allowed length: 3 characters.");
    }
    if length > NAME_CHARS_MAX {
        return refused("Trail name too long. Maximum allowed length: 128 characters.");
    }
    if !name.chars().all(|c| letters(c) || "._-".contains(c)) {
        return refused(
            "Trail name can only contain uppercase letters, lowercase letters, numbers, periods (.), hyphens (-), and underscores (_).",
        );
    }
    if !name.starts_with(letters) {
        return refused("Trail name must starts with a letter or number.");
    }
    if !name.ends_with(letters) {
        return refused("Trail name must ends with a letter or number.");
    }
    let adjacent = name.as_bytes().windows(2).any(|pair| pair.iter().all(|byte| b"._-".contains(byte)));
    if adjacent {
        return refused("Trail name must not have adjacent periods, hyphens and underscores.");
    }
    if name.parse::<std::net::Ipv4Addr>().is_ok() {
        return refused("Trail name must not be in IP address format.");
    }
    Ok(())
}

/// S3's rules for bucket names.
///
/// # Errors
/// InvalidS3BucketNameException.
pub fn check_bucket(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let ends = bytes.first().copied().is_some_and(plain) && bytes.last().copied().is_some_and(plain);
    let good = (BUCKET_CHARS_MIN..=BUCKET_CHARS_MAX).contains(&bytes.len())
        && ends
        && bytes.iter().all(|byte| plain(*byte) || b".-".contains(byte))
        && !name.contains("..")
        && name.parse::<std::net::Ipv4Addr>().is_err();
    if good {
        return Ok(());
    }
    Err(Error::new(
        Exception::InvalidS3BucketName,
        "Bucket names must be 3 to 63 lowercase letters, numbers, periods and hyphens, and begin and end with a letter or number.",
    ))
}

/// CloudTrail's limit for prefixes; and no empty part, which no folder has.
///
/// # Errors
/// InvalidS3PrefixException.
pub fn check_prefix(prefix: &str) -> Result<()> {
    if prefix.chars().count() > PREFIX_CHARS_MAX {
        return Err(Error::new(Exception::InvalidS3Prefix, "S3 prefix is longer than maximum length."));
    }
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.chars().all(|c| c.is_ascii_graphic() && !"\\^%`[]{}\"<>~#|*?".contains(c))
    };
    match prefix.split('/').all(part) {
        true => Ok(()),
        false => Err(Error::new(
            Exception::InvalidS3Prefix,
            "The S3 prefix must be names of letters, digits and !-_.'()&$@=;:+, joined by single slashes.",
        )),
    }
}

/// The organization that the accounts of an installation make, named after
/// its management account.
pub fn organization_id(management_account: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let hash = hex::encode(Sha256::digest(format!("strongroom organization 1\n{management_account}")));
    format!("o-{}", hash.chars().take(ORGANIZATION_DIGITS).collect::<String>())
}

/// Where the objects of one account, Region and trail are.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// S3KeyPrefix.
    pub prefix: Option<&'a str>,
    /// The id of an organization trail's organization.
    pub organization: Option<&'a str>,
    /// Whose events they are.
    pub account: &'a str,
    /// awsRegion of the events.
    pub region: &'a str,
}

impl Place<'_> {
    /// `[prefix/]AWSLogs/[ORG-ID/]ACCOUNT/KIND/REGION/`.
    pub fn folder(&self, kind: &str) -> String {
        let part = |part: Option<&str>| part.map(|part| format!("{part}/")).unwrap_or_default();
        let (prefix, organization) = (part(self.prefix), part(self.organization));
        format!("{prefix}AWSLogs/{organization}{}/{kind}/{}/", self.account, self.region)
    }

    /// A log file's key: unique, because 16 of its characters are random.
    ///
    /// # Errors
    /// KMSInternalException where the host has no random numbers.
    pub fn log_file(&self, kind: &str, now_ms: i64) -> Result<String> {
        let Place { account, region, .. } = self;
        let (day, time) = (format_time("%Y/%m/%d", now_ms)?, format_time("%Y%m%dT%H%MZ", now_ms)?);
        let folder = self.folder(kind);
        Ok(format!("{folder}{day}/{account}_{kind}_{region}_{time}_{}.json.gz", unique()?))
    }

    /// A digest's key.
    ///
    /// # Errors
    /// KMSInternalException for a time that no calendar has.
    pub fn digest(&self, trail: &str, home: &str, end_ms: i64) -> Result<String> {
        let Place { account, region, .. } = self;
        let (day, time) = (format_time("%Y/%m/%d", end_ms)?, format_time("%Y%m%dT%H%M%SZ", end_ms)?);
        let folder = self.folder(DIGESTS);
        Ok(format!("{folder}{day}/{account}_{DIGESTS}_{region}_{trail}_{home}_{time}.json.gz"))
    }
}

/// The folder of log files, and a part of their names.
pub const LOGS: &str = "CloudTrail";
/// The folder of Insights, and a part of their names.
pub const INSIGHTS: &str = "CloudTrail-Insight";
/// The folder of digests, and a part of their names.
pub const DIGESTS: &str = "CloudTrail-Digest";

/// A time as records and digests write it, in whole seconds.
///
/// # Errors
/// KMSInternalException for a time that no calendar has.
pub fn iso(time_ms: i64) -> Result<String> {
    format_time("%Y-%m-%dT%H:%M:%SZ", time_ms)
}

fn format_time(format: &str, time_ms: i64) -> Result<String> {
    let time = jiff::Timestamp::from_second(time_ms.div_euclid(1000))
        .map_err(|error| Error::internal(format!("{time_ms} ms is no time: {error}")))?;
    Ok(time.strftime(format).to_string())
}

fn unique() -> Result<String> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012345678901";
    let mut bytes = [0; UNIQUE_CHARS];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::internal("the host has no random numbers"))?;
    let letter = |byte: u8| LETTERS.get(usize::from(byte & 63)).copied().unwrap_or(b'A');
    Ok(bytes.into_iter().map(|byte| char::from(letter(byte))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cloudtrails() {
        for good in ["abc", "My-Trail_1", "a.b.c", "1ab"] {
            check(good).unwrap();
        }
        for bad in ["ab", "-abc", "abc-", "a..b", "a-_b", "a b c", "192.168.5.4", &"a".repeat(129)] {
            assert_eq!(check(bad).unwrap_err().exception, Exception::InvalidTrailName, "{bad}");
        }
        for bad in ["AB", "ab", "-abc", "A-bucket", "a..b", "1.2.3.4", "a/b"] {
            assert_eq!(check_bucket(bad).unwrap_err().exception, Exception::InvalidS3BucketName, "{bad}");
        }
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", &"a".repeat(201)] {
            assert_eq!(check_prefix(bad).unwrap_err().exception, Exception::InvalidS3Prefix, "{bad}");
        }
        check_prefix("audit/2026").unwrap();
    }

    #[test]
    fn keys_are_cloudtrails() {
        let place = Place {
            prefix: Some("p"),
            organization: Some("o-1"),
            account: "111122223333",
            region: "us-east-1",
        };
        let time_ms = 1_700_000_000_000;
        assert_eq!(
            place.digest("t", "eu-west-1", time_ms).unwrap(),
            "p/AWSLogs/o-1/111122223333/CloudTrail-Digest/us-east-1/2023/11/14/\
             111122223333_CloudTrail-Digest_us-east-1_t_eu-west-1_20231114T221320Z.json.gz"
        );
        let plain = Place { prefix: None, organization: None, ..place };
        let key = plain.log_file(LOGS, time_ms).unwrap();
        let start = "AWSLogs/111122223333/CloudTrail/us-east-1/2023/11/14/111122223333_CloudTrail_us-east-1_20231114T2213Z_";
        let unique = key.strip_prefix(start).unwrap().strip_suffix(".json.gz").unwrap();
        assert_eq!(unique.len(), 16);
        assert_ne!(key, plain.log_file(LOGS, time_ms).unwrap());
    }

    #[test]
    fn an_arn_is_read_as_it_was_written() {
        let text = arn("us-east-1", "111122223333", "my-trail");
        assert_eq!(parse_arn(&text).unwrap(), ("us-east-1".into(), "111122223333".into(), "my-trail".into()));
        for bad in [
            "arn:aws:kms:us-east-1:111122223333:trail/abc",
            "arn:aws:cloudtrail:us-east-1:1:trail/abc",
            "arn:x",
        ] {
            assert_eq!(parse_arn(bad).unwrap_err().exception, Exception::CloudTrailArnInvalid, "{bad}");
        }
    }
}
