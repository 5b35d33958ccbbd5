//! AWS's own services, or what answers like them: AWS JSON 1.1, signed with
//! what AWS's environment or the configuration says.

use http::{HeaderValue, Method, header};
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequest};
use serde_json::Value;

use super::target::{body, http_client};
use crate::config::AwsTargetSettings;

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// Failures that may pass, beside those of the server and of the network.
const PASSING: [&str; 6] = [
    "ThrottlingException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "ServiceUnavailableException",
    "ExpiredTokenException",
    "RequestTimeoutException",
];

/// A service of AWS's.
#[derive(Debug, Clone, Copy)]
pub struct Api {
    /// The service of a signature's scope, and of the host's name.
    pub signing_name: &'static str,
    /// What X-Amz-Target has before the operation's name.
    pub target: &'static str,
    /// The variable that names another endpoint.
    pub endpoint_variable: &'static str,
}

/// A client of one of them.
pub struct Client {
    api: Api,
    http: HttpClient,
    credentials: AwsCredentialProvider,
    endpoint: String,
    region: String,
}

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    /// AWS's exception; empty where there was no answer.
    pub name: String,
    /// For the log.
    pub text: String,
    /// Whether it may succeed later.
    pub passes: bool,
}

impl Failure {
    fn passing(text: impl ToString) -> Self {
        Failure { name: String::new(), text: text.to_string(), passes: true }
    }
}

impl Client {
    /// A client; `region` is the daemon's, for settings and environments that
    /// name none.
    ///
    /// # Errors
    /// What keeps it from being used.
    pub fn new(api: Api, settings: &AwsTargetSettings, region: String) -> Result<Client, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let named = || variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        let region = settings.region.clone().or_else(named).unwrap_or(region);
        let elsewhere = || variable(api.endpoint_variable).or_else(|| variable("AWS_ENDPOINT_URL"));
        let usual = || format!("https://{}.{region}.amazonaws.com", api.signing_name);
        let endpoint = settings.endpoint.clone().or_else(elsewhere).unwrap_or_else(usual);
        // The same chain of credentials as for S3; the bucket is none.
        let mut builder = AmazonS3Builder::from_env().with_bucket_name("none").with_region(region.clone());
        if let (Some(id), Some(file)) = (&settings.access_key_id, &settings.secret_access_key_file) {
            let secret =
                std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            builder = builder.with_access_key_id(id).with_secret_access_key(secret.trim());
        }
        let credentials = builder.build().map_err(|error| error.to_string())?.credentials().clone();
        Ok(Client { http: http_client(&endpoint, None)?, api, credentials, endpoint, region })
    }

    /// Whether it is not AWS that is called.
    pub fn is_elsewhere(&self) -> bool {
        !self.endpoint.contains(".amazonaws.com")
    }

    /// Calls an operation.
    ///
    /// # Errors
    /// Why there is no good answer.
    pub async fn call(&self, operation: &str, request: &Value) -> Result<Value, Failure> {
        let credential = self.credentials.get_credential().await.map_err(Failure::passing)?;
        let target = format!("{}.{operation}", self.api.target);
        let target = HeaderValue::try_from(target).map_err(Failure::passing)?;
        let mut call = HttpRequest::new(request.to_string().into());
        *call.method_mut() = Method::POST;
        *call.uri_mut() = self.endpoint.parse().map_err(Failure::passing)?;
        call.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        call.headers_mut().insert("x-amz-target", target);
        AwsAuthorizer::new(&credential, self.api.signing_name, &self.region)
            .try_authorize(&mut call, None)
            .map_err(Failure::passing)?;
        let answer = self.http.execute(call).await.map_err(Failure::passing)?;
        let status = answer.status();
        let text = body(answer).await.map_err(Failure::passing)?;
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        let told = |member: &str| value.get(member).and_then(Value::as_str);
        let name = told("__type").unwrap_or_default().rsplit('#').next().unwrap_or_default().to_owned();
        let message = told("message").or(told("Message")).unwrap_or_default();
        let passes = status.is_server_error() || PASSING.contains(&name.as_str());
        Err(Failure { text: format!("{operation}: {status} {name} {message}"), name, passes })
    }
}
