//! Calls with messages that are known by their descriptors only.

use std::error::Error as _;
use std::fmt;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_types::StatusExt;

use super::Failure;
use super::connection::{Connection, reasons};
use crate::api::grpc::REGION;

/// The largest answer that is taken; a page of 50 events with large requests
/// exceeds gRPC's usual 4 MiB.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;

/// A gRPC codec for messages of one descriptor; what is encoded brings its own.
#[derive(Debug, Clone)]
pub struct DynamicCodec {
    decoded: MessageDescriptor,
}

impl DynamicCodec {
    /// A codec that decodes messages of this descriptor.
    pub fn new(decoded: MessageDescriptor) -> Self {
        DynamicCodec { decoded }
    }
}

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicCodec;
    type Decoder = DynamicCodec;

    fn encoder(&mut self) -> Self::Encoder {
        self.clone()
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.clone()
    }
}

impl Encoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(to).map_err(|error| Status::internal(format!("the message cannot be encoded: {error}")))
    }
}

impl Decoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.decoded.clone(), from)
            .map(Some)
            .map_err(|error| Status::internal(format!("the message cannot be decoded: {error}")))
    }
}

/// An exception of the service, told as the AWS CLI tells it.
#[derive(Debug)]
pub struct ServiceError {
    /// The operation as the protos name it: `Encrypt`.
    pub operation: String,
    /// KMS's exception, or the gRPC status where there is none.
    pub exception: String,
    /// The service's text; some exceptions have none.
    pub message: String,
    /// The gRPC status.
    pub status: tonic::Code,
    /// The id that the service's log and event have.
    pub request_id: Option<String>,
    /// When to try again, where the service says so.
    pub retry_after: Option<Duration>,
}

impl ServiceError {
    fn new(operation: &str, status: &Status) -> Self {
        let exception = status.get_details_error_info().map(|info| info.reason);
        let header = status.metadata().get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let detail = || status.get_details_request_info().map(|info| info.request_id);
        ServiceError {
            operation: operation.to_owned(),
            exception: exception.unwrap_or_else(|| format!("{:?}", status.code())),
            message: status.message().to_owned(),
            status: status.code(),
            request_id: header.or_else(detail),
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
        }
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServiceError { operation, exception, message, .. } = self;
        write!(f, "An error occurred ({exception}) when calling the {operation} operation: {message}")?;
        if let Some(wait) = self.retry_after {
            write!(f, "\nTry again in {:.3} s.", wait.as_secs_f64())?;
        }
        if let Some(id) = &self.request_id {
            write!(f, "\nRequest id: {id}")?;
        }
        Ok(())
    }
}

/// Calls an operation that answers with one message.
///
/// # Errors
/// [`Failure::Service`] for the service's exceptions, [`Failure::Connection`]
/// where no answer came.
pub async fn unary(
    connection: &Connection,
    method: &MethodDescriptor,
    message: DynamicMessage,
) -> Result<DynamicMessage, Failure> {
    let (mut grpc, path, codec) = prepared(connection, method).await?;
    let mut request = asked(connection, message);
    request.set_timeout(connection.timeout);
    let answer = in_time(connection, method, grpc.unary(request, path, codec)).await?;
    Ok(answer.into_inner())
}

/// Calls an operation that answers with a stream; the timeout is for its beginning.
///
/// # Errors
/// As [`unary`].
pub async fn stream(
    connection: &Connection,
    method: &MethodDescriptor,
    message: DynamicMessage,
) -> Result<Streaming<DynamicMessage>, Failure> {
    let (mut grpc, path, codec) = prepared(connection, method).await?;
    let answer = grpc.server_streaming(asked(connection, message), path, codec);
    Ok(in_time(connection, method, answer).await?.into_inner())
}

/// A request to the Region that the person asks.
fn asked(connection: &Connection, message: DynamicMessage) -> Request<DynamicMessage> {
    let mut request = Request::new(message);
    if let Some(region) = &connection.region {
        request.metadata_mut().insert(REGION, region.clone());
    }
    request
}

/// The failure that a status tells of.
pub fn failure(method: &MethodDescriptor, status: &Status) -> Failure {
    // A status that was made on this side has a source, the service's has none.
    match status.source() {
        Some(source) if status.details().is_empty() => {
            Failure::Connection(format!("{} got no answer: {}", method.name(), reasons(source)))
        }
        _ => Failure::Service(Box::new(ServiceError::new(method.name(), status))),
    }
}

async fn prepared(
    connection: &Connection,
    method: &MethodDescriptor,
) -> Result<(Grpc<Channel>, PathAndQuery, DynamicCodec), Failure> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = PathAndQuery::try_from(path)
        .map_err(|error| Failure::Local(format!("{} has no path: {error}", method.name())))?;
    let mut grpc = Grpc::new(connection.channel.clone()).max_decoding_message_size(ANSWER_LIMIT_BYTES);
    let ready = tokio::time::timeout(connection.timeout, grpc.ready()).await;
    match ready {
        Ok(Ok(())) => Ok((grpc, path, DynamicCodec::new(method.output()))),
        Ok(Err(error)) => Err(Failure::Connection(reasons(&error))),
        Err(_) => Err(no_answer(connection, method)),
    }
}

async fn in_time<T>(
    connection: &Connection,
    method: &MethodDescriptor,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    let begin = Instant::now();
    match tokio::time::timeout(connection.timeout, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        // The channel's own deadline may ring before this one.
        Ok(Err(status))
            if status.details().is_empty()
                && matches!(status.code(), tonic::Code::Cancelled | tonic::Code::DeadlineExceeded)
                && begin.elapsed() >= connection.timeout =>
        {
            Err(no_answer(connection, method))
        }
        Ok(Err(status)) => Err(failure(method, &status)),
        Err(_) => Err(no_answer(connection, method)),
    }
}

fn no_answer(connection: &Connection, method: &MethodDescriptor) -> Failure {
    Failure::Connection(format!(
        "{} got no answer within {} s (--timeout); it may have been done all the same",
        method.name(),
        connection.timeout.as_secs_f64()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::schema::Service;
    use tonic::metadata::MetadataMap;
    use tonic_types::ErrorDetails;

    #[test]
    fn an_exception_reads_as_in_the_aws_cli() {
        let mut details = ErrorDetails::with_error_info("ThrottlingException", "kms.amazonaws.com", []);
        details.set_retry_info(Some(Duration::from_millis(1500)));
        let mut metadata = MetadataMap::new();
        metadata.insert("x-request-id", "6f1c".parse().unwrap());
        let status = Status::with_error_details_and_metadata(
            tonic::Code::ResourceExhausted,
            "Rate exceeded",
            details,
            metadata,
        );
        let failure = failure(&Service::Kms.method("Encrypt"), &status);
        assert_eq!(
            failure.to_string(),
            "An error occurred (ThrottlingException) when calling the Encrypt operation: Rate exceeded\n\
             Try again in 1.500 s.\nRequest id: 6f1c"
        );
        assert_eq!(failure.exit_code(), std::process::ExitCode::from(254));
    }

    #[test]
    fn a_status_without_details_has_its_code() {
        let failure = failure(&Service::Kms.method("Encrypt"), &Status::unimplemented("no such method"));
        assert!(failure.to_string().starts_with("An error occurred (Unimplemented) when calling"));
    }
}
