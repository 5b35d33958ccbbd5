//! Signature Version 4 (AWS General Reference, "Signing AWS API requests"): in
//! the Authorization header, or in the query of a presigned URL.
//!
//! A request is signed again, as its signature says that it was signed, by AWS's
//! own signer, and the two signatures are compared in constant time.
//!
//! A signature is good for five minutes before and after its time (a presigned
//! one until its Expires), and within them as often as it comes, as with AWS:
//! two equal requests of one second have the same signature, so that to refuse
//! the second would refuse honest callers.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use http::request::Parts;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::keys::AccessKey;
use super::refused::Refused;
use crate::api::delegation;
use crate::caller::Principal;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far a request's time may be from ours, as KMS has it.
const SKEW_S: i64 = 5 * 60;
/// Longest that a presigned URL may be good for: seven days.
const EXPIRES_S_MAX: i64 = 7 * 24 * 3600;
/// Headers that signers leave out of presigned URLs.
const UNSIGNED_HEADERS: [&str; 2] = ["x-amz-user-agent", "x-amz-checksum-mode"];
/// The members of a presigned query that the signer writes itself.
const SIGNERS_PARAMETERS: [&str; 6] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
];

/// What a signature must be for.
pub struct Scope<'a> {
    /// The service's name, `kms`.
    pub service: &'a str,
    /// Whether a Region is served.
    pub regions: &'a dyn Fn(&str) -> bool,
}

/// Who signed a request.
pub struct Verified {
    /// Whose access key it was.
    pub principal: std::sync::Arc<Principal>,
    /// The access key's id.
    pub access_key_id: String,
    /// The Region that was asked.
    pub region: String,
}

/// What a request says of its signature.
pub struct Claim {
    credential: String,
    signature: String,
    /// Lower-case names.
    signed_headers: Vec<String>,
    /// X-Amz-Date as it came, `20150830T123600Z`.
    date: String,
    /// The same in seconds since the epoch.
    time_s: i64,
    /// X-Amz-Expires; none in the header form.
    expires_s: Option<i64>,
}

impl Claim {
    /// What a request says, where that may be accepted at `now_s`, seconds since
    /// the epoch; whether it is true, [`Self::verify`] tells.
    ///
    /// # Errors
    /// AWS's refusals, in the order in which AWS looks for them.
    pub fn of(head: &Parts, scope: &Scope<'_>, now_s: i64) -> Result<Claim, Refused> {
        let claim = Claim::read(head)?;
        claim.check_headers(head)?;
        claim.check_time(now_s)?;
        Credential::read(&claim.credential)?.check(&claim.date, scope)?;
        Ok(claim)
    }

    /// The id of the access key that the request says it is signed with.
    pub fn access_key_id(&self) -> &str {
        self.credential.split('/').next().unwrap_or_default()
    }

    /// Whether the request is signed with this access key.
    ///
    /// # Errors
    /// AWS's refusals.
    pub fn verify(self, head: &Parts, body: &[u8], key: AccessKey) -> Result<Verified, Refused> {
        let credential = Credential::read(&self.credential)?;
        if session_token(head) && !key.any_session {
            // Nobody gives any out.
            return Err(Refused::unrecognized());
        }
        let payload = payload_hash(head, body)?;
        let signature = self.signed_again(head, payload, &key.identity, &credential)?;
        if bool::from(signature.as_bytes().ct_eq(self.signature.as_bytes())) {
            Ok(Verified {
                principal: key.principal,
                access_key_id: credential.access_key_id.to_owned(),
                region: credential.region.to_owned(),
            })
        } else {
            Err(Refused::mismatch())
        }
    }

    fn read(head: &Parts) -> Result<Claim, Refused> {
        let query = head.uri.query().unwrap_or_default();
        let presigned = parameter(query, "X-Amz-Algorithm");
        match (head.headers.get(http::header::AUTHORIZATION), presigned) {
            (Some(header), None) => Self::of_header(head, header.to_str().unwrap_or_default()),
            (None, Some(algorithm)) => Self::of_query(query, &algorithm),
            (Some(_), Some(_)) => Err(Refused::incomplete(
                "A request is signed in the Authorization header or in its query, not in both.",
            )),
            (None, None) => Err(Refused::missing()),
        }
    }

    fn of_header(head: &Parts, header: &str) -> Result<Claim, Refused> {
        let (algorithm, parameters) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if algorithm != ALGORITHM {
            return Err(Refused::incomplete(format!("Unsupported AWS 'algorithm': '{algorithm}'.")));
        }
        let mut missing = String::new();
        let mut required = |name: &str| {
            let mut pairs = parameters.split(',').filter_map(|pair| pair.trim().split_once('='));
            let value = pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
            if value.is_none() {
                missing.push_str(&format!("Authorization header requires '{name}' parameter. "));
            }
            value.unwrap_or_default()
        };
        let (credential, signature) = (required("Credential"), required("Signature"));
        let signed_headers = required("SignedHeaders");
        let date = head.headers.get("x-amz-date").and_then(|date| date.to_str().ok());
        if date.is_none() {
            missing.push_str("Authorization header requires existence of an 'X-Amz-Date' header. ");
        }
        if !missing.is_empty() {
            return Err(Refused::incomplete(missing + "Authorization=" + algorithm));
        }
        Self::new(credential, signature, &signed_headers, date.unwrap_or_default().to_owned(), None)
    }

    fn of_query(query: &str, algorithm: &str) -> Result<Claim, Refused> {
        if algorithm != ALGORITHM {
            return Err(Refused::incomplete(format!("Unsupported AWS 'algorithm': '{algorithm}'.")));
        }
        let required = |name: &str| {
            parameter(query, name).ok_or_else(|| {
                Refused::incomplete(format!("AWS query-string parameters must include '{name}'."))
            })
        };
        let expires = required("X-Amz-Expires")?;
        let expires_s = expires.parse().ok().filter(|seconds| (1..=EXPIRES_S_MAX).contains(seconds));
        let expires_s = expires_s.ok_or_else(|| {
            Refused::incomplete(format!(
                "X-Amz-Expires must be from 1 to {EXPIRES_S_MAX} seconds. Got '{expires}'."
            ))
        })?;
        Self::new(
            required("X-Amz-Credential")?,
            required("X-Amz-Signature")?,
            &required("X-Amz-SignedHeaders")?,
            required("X-Amz-Date")?,
            Some(expires_s),
        )
    }

    fn new(
        credential: String,
        signature: String,
        signed_headers: &str,
        date: String,
        expires_s: Option<i64>,
    ) -> Result<Claim, Refused> {
        let time_s = seconds(&date).ok_or_else(|| {
            Refused::incomplete(format!(
                "Date must be in ISO-8601 'basic format'. Got '{date}'. See http://en.wikipedia.org/wiki/ISO_8601"
            ))
        })?;
        let signed_headers = signed_headers.split(';').map(str::to_ascii_lowercase).collect();
        Ok(Claim { credential, signature, signed_headers, date, time_s, expires_s })
    }

    /// Whether all is signed that must be: the host, and what is AWS's.
    fn check_headers(&self, head: &Parts) -> Result<(), Refused> {
        let signed = |name: &str| self.signed_headers.iter().any(|signed| signed == name);
        if !signed("host") && !signed(":authority") {
            return Err(Refused::invalid(
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
            ));
        }
        let mut ours = head.headers.keys().map(http::HeaderName::as_str);
        let must = |name: &&str| {
            (name.starts_with("x-amz-") && !UNSIGNED_HEADERS.contains(name))
                || delegation::HEADERS.contains(name)
        };
        match ours.find(|name| must(name) && !signed(name)) {
            None => Ok(()),
            Some(name) => {
                Err(Refused::invalid(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization.")))
            }
        }
    }

    fn check_time(&self, now_s: i64) -> Result<(), Refused> {
        let (good_for_s, good_for) = match self.expires_s {
            None => (SKEW_S, format!("{} min.", SKEW_S / 60)),
            Some(expires_s) => (expires_s, format!("{expires_s} sec.")),
        };
        let (earliest_s, latest_s) = (now_s - good_for_s, now_s + SKEW_S);
        if self.time_s < earliest_s {
            return Err(Refused::time(format!(
                "Signature expired: {} is now earlier than {} ({} - {good_for})",
                self.date,
                basic(earliest_s),
                basic(now_s)
            )));
        }
        if self.time_s > latest_s {
            return Err(Refused::time(format!(
                "Signature not yet current: {} is still later than {} ({} + {} min.)",
                self.date,
                basic(latest_s),
                basic(now_s),
                SKEW_S / 60
            )));
        }
        Ok(())
    }

    /// The signature that this request has with this access key.
    fn signed_again(
        &self,
        head: &Parts,
        payload_hash: String,
        identity: &aws_smithy_runtime_api::client::identity::Identity,
        credential: &Credential<'_>,
    ) -> Result<String, Refused> {
        let mut settings = SigningSettings::default();
        // What is signed is said by the request, and nothing else is passed on.
        settings.excluded_headers = None;
        let mut uri: Cow<'_, str> = head.uri.path_and_query().map_or("/", |uri| uri.as_str()).into();
        if let Some(expires_s) = self.expires_s {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(Duration::from_secs(expires_s.unsigned_abs()));
            uri = format!("/?{}", others(head.uri.query().unwrap_or_default())).into();
        }
        let headers = self.headers(head)?;
        let time =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(self.time_s).unwrap_or_default());
        let parameters = SigningParams::builder()
            .identity(identity)
            .region(credential.region)
            .name(credential.service)
            .time(time)
            .settings(settings)
            .build()
            .map_err(|_| Refused::mismatch())?
            .into();
        let body = SignableBody::Precomputed(payload_hash);
        let request = SignableRequest::new(head.method.as_str(), uri, headers.into_iter(), body);
        let signed = request.and_then(|request| sign(request, &parameters));
        Ok(signed.map_err(|_| Refused::mismatch())?.signature().to_owned())
    }

    /// The signed headers with their values.
    fn headers<'a>(&'a self, head: &'a Parts) -> Result<Vec<(&'a str, &'a str)>, Refused> {
        let mut headers = Vec::with_capacity(self.signed_headers.len());
        for name in &self.signed_headers {
            let before = headers.len();
            for value in head.headers.get_all(name) {
                headers.push((name.as_str(), value.to_str().map_err(|_| Refused::mismatch())?));
            }
            if headers.len() == before {
                // HTTP/2 has the host in its :authority.
                let authority = head.uri.authority().filter(|_| name == "host" || name == ":authority");
                headers.push(("host", authority.ok_or_else(Refused::mismatch)?.as_str()));
            }
        }
        Ok(headers)
    }
}

/// `AKIA…/20150830/us-east-1/kms/aws4_request`.
struct Credential<'a> {
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    terminator: &'a str,
}

impl<'a> Credential<'a> {
    fn read(text: &'a str) -> Result<Self, Refused> {
        let mut parts = text.split('/');
        let mut next = || parts.next();
        match (next(), next(), next(), next(), next(), next()) {
            (Some(access_key_id), Some(date), Some(region), Some(service), Some(terminator), None) => {
                Ok(Credential { access_key_id, date, region, service, terminator })
            }
            _ => Err(Refused::incomplete(format!(
                "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{text}'"
            ))),
        }
    }

    /// Whether the signature is for this service, in a Region that it has.
    fn check(&self, date: &str, scope: &Scope<'_>) -> Result<(), Refused> {
        if !(scope.regions)(self.region) {
            return Err(Refused::region(self.region));
        }
        if self.service != scope.service {
            let service = scope.service;
            return Err(Refused::invalid(format!(
                "Credential should be scoped to correct service: '{service}'."
            )));
        }
        if self.terminator != "aws4_request" {
            return Err(Refused::invalid(format!(
                "Credential should be scoped with a valid terminator: 'aws4_request', not '{}'.",
                self.terminator
            )));
        }
        if !date.starts_with(self.date) || self.date.len() != "20150830".len() {
            return Err(Refused::invalid(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != '{}', from '{date}'.",
                self.date,
                date.get(..8).unwrap_or_default()
            )));
        }
        Ok(())
    }
}

fn session_token(head: &Parts) -> bool {
    const TOKEN: &str = "X-Amz-Security-Token";
    head.headers.contains_key("x-amz-security-token")
        || parameter(head.uri.query().unwrap_or_default(), TOKEN).is_some()
}

/// The body's hash, which is what a client that states one must have stated.
fn payload_hash(head: &Parts, body: &[u8]) -> Result<String, Refused> {
    let hash = hex::encode(Sha256::digest(body));
    match head.headers.get("x-amz-content-sha256") {
        Some(stated) if stated.as_bytes() == b"UNSIGNED-PAYLOAD" => {
            Err(Refused::invalid("The payload must be signed: UNSIGNED-PAYLOAD is not accepted."))
        }
        Some(stated) if !stated.as_bytes().eq_ignore_ascii_case(hash.as_bytes()) => {
            Err(Refused::invalid("The x-amz-content-sha256 header is not the hash of the payload."))
        }
        _ => Ok(hash),
    }
}

/// A parameter of a query, decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    if query.is_empty() {
        return None;
    }
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// A presigned query without what the signer writes itself.
fn others(query: &str) -> String {
    let own = |pair: &&str| {
        let key = form_urlencoded::parse(pair.as_bytes()).next().map(|(key, _)| key.into_owned());
        key.is_some_and(|key| SIGNERS_PARAMETERS.contains(&key.as_str()))
    };
    query.split('&').filter(|pair| !own(pair)).collect::<Vec<_>>().join("&")
}

const BASIC_FORMAT: &str = "%Y%m%dT%H%M%SZ";

fn seconds(date: &str) -> Option<i64> {
    let time = jiff::civil::DateTime::strptime(BASIC_FORMAT, date).ok()?;
    if date.len() != "20150830T123600Z".len() {
        return None;
    }
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

fn basic(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| String::new(), |t| t.strftime(BASIC_FORMAT).to_string())
}

#[cfg(test)]
mod tests;
