//! A webhook: a CloudEvent per POST, signed as Standard Webhooks has it
//! (HMAC-SHA-256 over `id.time.body`).

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{FutureExt as _, StreamExt as _};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use object_store::client::{HttpClient, HttpRequest};

use super::cloud_event::{CONTENT_TYPE, cloud_event};
use super::target::{Delivery, Outcome, http_client};
use crate::config::WebhookSettings;

/// What a secret begins with.
const SECRET_PREFIX: &str = "whsec_";
/// POSTs of one target at the same time.
const AT_ONCE: usize = 16;
/// Statuses of refusals that may pass, beside those of the server (5xx).
const PASSING: [StatusCode; 3] =
    [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];

/// Where events are posted.
pub struct Webhook {
    http: HttpClient,
    url: String,
    key: Option<hmac::Key>,
}

impl Webhook {
    /// The webhook that the configuration describes.
    pub fn open(settings: &WebhookSettings) -> Result<Webhook, String> {
        let key = match &settings.secret_file {
            None => None,
            Some(file) => {
                let told = |error| format!("{}: {error}", file.display());
                let text = std::fs::read_to_string(file).map_err(told)?;
                Some(secret(&text).ok_or_else(|| format!("{} has no whsec_ secret", file.display()))?)
            }
        };
        let http = http_client(&settings.url, settings.ca_file.as_ref())?;
        Ok(Webhook { http, url: settings.url.clone(), key })
    }

    /// Posts events, several at the same time.
    pub async fn send(&self, deliveries: &[Delivery]) -> Vec<Outcome> {
        let posts: Vec<_> = deliveries.iter().map(|delivery| self.post(delivery).boxed()).collect();
        futures::stream::iter(posts).buffered(AT_ONCE).collect().await
    }

    async fn post(&self, delivery: &Delivery) -> Outcome {
        let request = match self.request(delivery) {
            Ok(request) => request,
            Err(error) => return Outcome::Refused(error),
        };
        match self.http.execute(request).await {
            Ok(answer) if answer.status().is_success() => Outcome::Done,
            Ok(answer) => {
                let status = answer.status();
                let passes = status.is_server_error() || PASSING.contains(&status);
                let text = format!("the webhook answers {status}");
                if passes { Outcome::Again(text) } else { Outcome::Refused(text) }
            }
            Err(error) => Outcome::Again(error.to_string()),
        }
    }

    fn request(&self, delivery: &Delivery) -> Result<HttpRequest, String> {
        let body = cloud_event(delivery).to_string();
        let (id, time) = (delivery.text("/id"), jiff::Timestamp::now().as_second().to_string());
        let mut headers = vec![("webhook-id", id.to_owned())];
        if let Some(key) = &self.key {
            headers.push(("webhook-signature", signature(key, id, &time, &body)));
        }
        headers.push(("webhook-timestamp", time));
        let mut request = HttpRequest::new(body.into());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.parse().map_err(|error| format!("{}: {error}", self.url))?;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        for (name, value) in headers {
            let value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        Ok(request)
    }
}

/// The key of `whsec_` and Base64.
pub fn secret(text: &str) -> Option<hmac::Key> {
    let bytes = STANDARD.decode(text.trim().strip_prefix(SECRET_PREFIX)?).ok()?;
    (!bytes.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn signature(key: &hmac::Key, id: &str, time: &str, body: &str) -> String {
    let tag = hmac::sign(key, format!("{id}.{time}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification.
    #[test]
    fn a_signature_is_standard_webhooks() {
        let key = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        for bad in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!"] {
            assert!(secret(bad).is_none(), "{bad}");
        }
    }
}
