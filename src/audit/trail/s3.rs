//! The client of an S3-compatible store, which says with each object what
//! object_store has no words for: its lock, and whose it is. S3 wants every such
//! header signed, so they are added, and the request is signed again, just
//! before it is sent.

use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredentialProvider, Checksum};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, RetryConfig};

use super::bucket::{BucketError, told};
use crate::config::S3Settings;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The service of a signature's scope.
const SERVICE: &str = "s3";
/// The payload's SHA-256 in hex, as it was signed the first time.
const PAYLOAD: &str = "x-amz-content-sha256";
/// What CloudTrail gives its files: a bucket of another account's has them whole.
const OWNERS: &str = "bucket-owner-full-control";

/// A client of a bucket; `region` is the daemon's, for settings and environments
/// that name none.
///
/// # Errors
/// [`BucketError::Failed`] where the settings make no client.
pub fn client(
    s3: &S3Settings,
    region: &str,
    bucket: &str,
    kms_key_id: Option<&str>,
) -> Result<AmazonS3, BucketError> {
    let failed = |error: object_store::Error| BucketError::Failed(told(&error));
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let named = || variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
    let region = s3.region.clone().or_else(named).unwrap_or_else(|| region.to_owned());
    let elsewhere = || variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL"));
    let endpoint = s3.endpoint.clone().or_else(elsewhere);
    let client = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT);
    // The deliveries themselves are tried again, with a file that is known to the store.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let plain = endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
    let mut builder = AmazonS3Builder::from_env()
        .with_client_options(client.with_allow_http(plain))
        .with_retry(retry)
        .with_bucket_name(bucket)
        .with_region(region.clone())
        // A bucket that locks its objects wants one.
        .with_checksum_algorithm(Checksum::SHA256)
        .with_virtual_hosted_style_request(!s3.path_style);
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let (Some(id), Some(file)) = (&s3.access_key_id, &s3.secret_access_key_file) {
        let secret = std::fs::read_to_string(file).map_err(|error| {
            BucketError::Failed(format!("trail.s3.secret_access_key_file {}: {error}", file.display()))
        })?;
        builder = builder.with_access_key_id(id).with_secret_access_key(secret.trim());
    }
    if let Some(key) = kms_key_id {
        builder = builder.with_sse_kms_encryption(key);
    }
    let credentials = builder.clone().build().map_err(failed)?.credentials().clone();
    let acl = s3.acl.as_deref().or(endpoint.is_none().then_some(OWNERS)).filter(|acl| !acl.is_empty());
    let mut headers = vec![("x-amz-sdk-checksum-algorithm", "SHA256".to_owned())];
    headers.extend(acl.map(|acl| ("x-amz-acl", acl.to_owned())));
    let lock = s3.object_lock_mode.zip(s3.object_lock_days).map(|(mode, days)| (mode.as_str(), days));
    let signing = Signing { credentials: credentials.clone(), region, headers, lock };
    builder.with_credentials(credentials).with_http_connector(signing).build().map_err(failed)
}

/// What is said with each object.
#[derive(Debug, Clone)]
struct Signing {
    credentials: AwsCredentialProvider,
    region: String,
    headers: Vec<(&'static str, String)>,
    /// The mode of its lock, and for how many days.
    lock: Option<(&'static str, u32)>,
}

impl HttpConnector for Signing {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Signer { client, signing: self.clone() }))
    }
}

#[derive(Debug)]
struct Signer {
    client: HttpClient,
    signing: Signing,
}

#[async_trait::async_trait]
impl HttpService for Signer {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if request.method() == Method::PUT {
            self.signing.say(&mut request).await?;
        }
        self.client.execute(request).await
    }
}

impl Signing {
    async fn say(&self, request: &mut HttpRequest) -> Result<(), HttpError> {
        self.add(request.headers_mut()).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        // Without credentials nothing is signed.
        if !request.headers().contains_key(AUTHORIZATION) {
            return Ok(());
        }
        let failed = |error: object_store::Error| HttpError::new(HttpErrorKind::Request, error);
        let credential = self.credentials.get_credential().await.map_err(failed)?;
        let payload = request.headers().get(PAYLOAD).and_then(|digest| hex::decode(digest).ok());
        AwsAuthorizer::new(&credential, SERVICE, &self.region)
            .with_sign_payload(payload.is_some())
            .try_authorize(request, payload.as_deref())
            .map_err(failed)
    }

    fn add(&self, headers: &mut HeaderMap) -> Result<(), http::header::InvalidHeaderValue> {
        for (name, value) in &self.headers {
            headers.insert(HeaderName::from_static(name), HeaderValue::try_from(value)?);
        }
        if let Some((mode, days)) = self.lock {
            let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * i64::from(days));
            let until = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            headers.insert("x-amz-object-lock-mode", HeaderValue::from_static(mode));
            headers.insert("x-amz-object-lock-retain-until-date", HeaderValue::try_from(until)?);
        }
        Ok(())
    }
}
