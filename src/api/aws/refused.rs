//! Requests that are no calls: nobody is known to have made them. They have no
//! event; they are counted and logged.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::routes::refusal;
use crate::error::Error;

/// Why a request is no call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status.
    pub status: StatusCode,
    /// AWS's name, `__type`.
    pub name: &'static str,
    /// A word for the metric.
    pub reason: &'static str,
    /// A sentence for the client and the log.
    pub message: String,
}

impl Refused {
    /// The answer, with an id that only it has.
    pub fn answer(&self) -> Response<Full<Bytes>> {
        refusal(self.status, &uuid::Uuid::new_v4().to_string(), self.name, &self.message)
    }

    fn new(name: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Refused { status: StatusCode::BAD_REQUEST, name, reason, message: message.into() }
    }

    /// Another method or path than `POST /`.
    pub fn not_found() -> Self {
        let message = "AWS JSON 1.1 is served at POST / only.";
        Refused {
            status: StatusCode::NOT_FOUND,
            ..Self::new("UnknownOperationException", "not_found", message)
        }
    }

    /// A target that no operation has.
    pub fn unknown_operation(target: &str) -> Self {
        const SHOWN_CHARS_MAX: usize = 128;
        let target: String = target.chars().take(SHOWN_CHARS_MAX).collect();
        let message = format!("There is no operation with X-Amz-Target '{target}'.");
        Self::new("UnknownOperationException", "unknown_operation", message)
    }

    /// A body over the limit.
    pub fn too_large(bytes_max: usize) -> Self {
        let message = format!("The request has more than {bytes_max} bytes.");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Refused { status, ..Self::new("RequestEntityTooLargeException", "too_large", message) }
    }

    /// A body that did not come in time.
    pub fn too_slow() -> Self {
        let status = StatusCode::REQUEST_TIMEOUT;
        Refused {
            status,
            ..Self::new("RequestTimeoutException", "too_slow", "The request did not come in time.")
        }
    }

    /// A body that did not come whole.
    pub fn cut_off() -> Self {
        Self::new("SerializationException", "cut_off", "The request did not come whole.")
    }

    /// A request of no connection, which is a defect of ours.
    pub fn no_peer() -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let message = "The request came over no known connection.";
        Refused { status, ..Self::new("KMSInternalException", "no_peer", message) }
    }

    /// Neither an Authorization header nor a presigned query.
    pub fn missing() -> Self {
        let message = "Request is missing Authentication Token";
        Self::new("MissingAuthenticationTokenException", "missing", message)
    }

    /// A signature that lacks something.
    pub fn incomplete(message: impl Into<String>) -> Self {
        Self::new("IncompleteSignatureException", "incomplete", message)
    }

    /// A signature that is not the request's.
    pub fn mismatch() -> Self {
        Self::invalid(
            "The request signature we calculated does not match the signature you provided. Check your AWS \
             Secret Access Key and signing method. Consult the service documentation for details.",
        )
    }

    /// A signature that cannot be accepted.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new("InvalidSignatureException", "signature", message)
    }

    /// A signature for another Region.
    pub fn region(region: &str) -> Self {
        Self::invalid(format!("Credential should be scoped to a valid region, not '{region}'."))
    }

    /// A signature of another time.
    pub fn time(message: String) -> Self {
        Refused { reason: "time", ..Self::invalid(message) }
    }

    /// An access key that could not be looked for.
    pub fn no_key(error: &Error) -> Self {
        let status =
            StatusCode::from_u16(error.exception.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let detail = error.detail.as_deref().unwrap_or_default();
        tracing::warn!(%error, detail, "an access key could not be looked for");
        Refused { status, ..Self::new(error.exception.name(), "access_key_store", error.message.clone()) }
    }

    /// An access key that nobody has, or a session token, which nobody gave.
    pub fn unrecognized() -> Self {
        let message = "The security token included in the request is invalid.";
        Self::new("UnrecognizedClientException", "no_access_key", message)
    }
}
