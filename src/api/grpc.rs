//! gRPC, made from the list of operations: a path for each, one handler for
//! all.
//!
//! A message that cannot be decoded is a call too, and on the record: so the
//! codec hands over what it found instead of answering by itself.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use prost::Message;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::delegation::acting;
use crate::app::App;
use crate::audit::record::truncated;
use crate::caller::Caller;
use crate::error::{Error, Exception, Result};
use crate::operation::{Answer, Operation, execute};
use crate::ops::{self, events::StreamEvents};
use crate::proto::cloudtrail::StreamEventsResponse;
use crate::wire::Received;

/// The domain of a failure's ErrorInfo.
pub const ERROR_DOMAIN: &str = "kms.amazonaws.com";
/// The metadata that names a call: the event's requestID.
pub const REQUEST_ID: &str = "x-request-id";

/// The metadata that names the Region that is asked; without it, the daemon's
/// own is.
pub const REGION: &str = "strongroom-region";

/// Longest text of a failure: it is sent in the headers twice, in grpc-message
/// with up to three bytes for one, and clients take 8 KB of headers.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Limits that every call keeps to.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// Longest that a call may take; a shorter grpc-timeout is kept to.
    pub request_timeout: Duration,
    /// Largest message that is read.
    pub message_bytes_max: usize,
}

type Body = tonic::body::Body;
type Handler = Box<
    dyn Fn(Arc<App>, Caller, CallLimits, http::Request<Body>) -> BoxFuture<'static, http::Response<Body>>
        + Send
        + Sync,
>;

/// Every path of the API with what serves it.
pub struct Routes(HashMap<String, Handler>);

impl Routes {
    /// Makes them from the list of operations.
    #[allow(clippy::new_without_default, reason = "it does a lot for a default")]
    pub fn new() -> Self {
        let mut routes = Routes(HashMap::new());
        ops::each(&mut routes);
        routes.0.insert(
            path::<StreamEvents>(),
            Box::new(|app, caller, limits, request| Box::pin(stream(app, caller, limits, request))),
        );
        routes
    }

    /// Serves a call; none where the path is no operation's.
    pub fn serve(
        &self,
        app: Arc<App>,
        caller: Caller,
        limits: CallLimits,
        request: http::Request<Body>,
    ) -> Option<BoxFuture<'static, http::Response<Body>>> {
        self.0.get(request.uri().path()).map(|handler| handler(app, caller, limits, request))
    }

    /// Whether a path is an operation's.
    pub fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

impl ops::Visitor for Routes {
    fn visit<O>(&mut self)
    where
        O: Operation,
        O::Request: Message,
        O::Response: Message + Default,
    {
        self.0.insert(
            path::<O>(),
            Box::new(|app, caller, limits, request| Box::pin(unary::<O>(app, caller, limits, request))),
        );
    }
}

fn path<O: Operation>() -> String {
    format!("/{}/{}", O::SERVICE.grpc(), O::NAME)
}

async fn unary<O>(
    app: Arc<App>,
    caller: Caller,
    limits: CallLimits,
    request: http::Request<Body>,
) -> http::Response<Body>
where
    O: Operation,
    O::Request: Message,
    O::Response: Message + Default,
{
    let deadline = deadline::<O>(&request, limits);
    let (asked, acceptable) = Asked::new(app, caller, deadline, &request);
    if let Err(error) = acceptable {
        return refuse::<O>(asked, error).await;
    }
    let service = Unary::<O> { asked: asked.clone(), operation: PhantomData };
    let response = grpc::<O::Request, O::Response>(limits).unary(service, request).await;
    unless_reached::<O>(response, asked).await
}

async fn stream(
    app: Arc<App>,
    caller: Caller,
    limits: CallLimits,
    request: http::Request<Body>,
) -> http::Response<Body> {
    let deadline = Instant::now() + limits.request_timeout;
    let (asked, acceptable) = Asked::new(app, caller, deadline, &request);
    if let Err(error) = acceptable {
        return refuse::<StreamEvents>(asked, error).await;
    }
    let service = Streaming(asked.clone());
    let response = grpc::<<StreamEvents as Operation>::Request, StreamEventsResponse>(limits)
        .server_streaming(service, request)
        .await;
    unless_reached::<StreamEvents>(response, asked).await
}

/// The Region that a call's metadata names; without it, the daemon's own.
fn region(app: &App, request: &http::Request<Body>) -> Result<Arc<str>> {
    let Some(named) = request.headers().get(REGION) else { return Ok(app.region.clone()) };
    let named = named.to_str().unwrap_or_default();
    let served = app.key_stores.region(named).cloned();
    served.ok_or_else(|| Error::validation(format!("Region '{named}' is not served here.")))
}

/// A call whose message is not read yet.
#[derive(Clone)]
struct Asked {
    app: Arc<App>,
    region: Arc<str>,
    caller: Caller,
    deadline: Instant,
    /// Whether its operation has begun.
    reached: Arc<AtomicBool>,
}

impl Asked {
    /// A call to the Region that its metadata names, by whom it says; with why it
    /// is refused, where it is: then it is one to the daemon's own Region.
    fn new(
        app: Arc<App>,
        caller: Caller,
        deadline: Instant,
        request: &http::Request<Body>,
    ) -> (Asked, Result<()>) {
        let (caller, acting) = acting(caller, request.headers(), &app.directory.load());
        let (region, served) = match region(&app, request) {
            Ok(region) => (region, Ok(())),
            Err(error) => (app.region.clone(), Err(error)),
        };
        let acceptable = acting.and(served);
        (Asked { app, region, caller, deadline, reached: Arc::new(AtomicBool::new(false)) }, acceptable)
    }

    async fn execute<O: Operation>(self, request: Result<Received<O::Request>>) -> Answer<O::Response> {
        self.reached.store(true, Ordering::Release);
        execute::<O>(self.app, self.region, self.caller, request, self.deadline).await
    }
}

/// A call that was answered without its operation (its message was too large,
/// cut off or compressed in an unknown way) is put on the record here.
async fn unless_reached<O: Operation>(response: http::Response<Body>, asked: Asked) -> http::Response<Body> {
    if asked.reached.load(Ordering::Acquire) {
        return response;
    }
    let why = Status::from_header_map(response.headers())
        .map_or_else(String::new, |status| status.message().to_owned());
    refuse::<O>(asked, Error::validation(format!("The request could not be read: {why}"))).await
}

/// Refuses a call whose message was not read, on the record.
async fn refuse<O: Operation>(asked: Asked, error: Error) -> http::Response<Body> {
    let answer = asked.execute::<O>(Err(error)).await;
    match answer.result {
        Ok(_) => Status::internal("a request that could not be read was served").into_http(),
        Err(error) => status(error, &answer.request_id).into_http(),
    }
}

fn grpc<I, O>(limits: CallLimits) -> Grpc<Messages<I, O>>
where
    I: Message + Default + 'static,
    O: Message + 'static,
{
    Grpc::new(Messages(PhantomData)).max_decoding_message_size(limits.message_bytes_max)
}

fn deadline<O: Operation>(request: &http::Request<Body>, limits: CallLimits) -> Instant {
    let most = O::TIMEOUT.unwrap_or(limits.request_timeout);
    let asked = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout);
    Instant::now() + asked.map_or(most, |asked| asked.min(most))
}

/// A grpc-timeout: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(u64::from(number) * 3600),
        "M" => Duration::from_secs(u64::from(number) * 60),
        "S" => Duration::from_secs(number.into()),
        "m" => Duration::from_millis(number.into()),
        "u" => Duration::from_micros(number.into()),
        "n" => Duration::from_nanos(number.into()),
        _ => return None,
    })
}

struct Unary<O> {
    asked: Asked,
    operation: PhantomData<fn() -> O>,
}

impl<O> UnaryService<Decoded<O::Request>> for Unary<O>
where
    O: Operation,
{
    type Response = O::Response;
    type Future = BoxFuture<'static, Result<Response<O::Response>, Status>>;

    fn call(&mut self, request: Request<Decoded<O::Request>>) -> Self::Future {
        let answer = self.asked.clone().execute::<O>(request.into_inner().received());
        Box::pin(async move { respond(answer.await) })
    }
}

struct Streaming(Asked);

impl ServerStreamingService<Decoded<<StreamEvents as Operation>::Request>> for Streaming {
    type Response = StreamEventsResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<StreamEventsResponse, Status>> + Send>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Decoded<<StreamEvents as Operation>::Request>>) -> Self::Future {
        let answer = self.0.clone().execute::<StreamEvents>(request.into_inner().received());
        Box::pin(async move {
            let answer = answer.await;
            let request_id = answer.request_id.clone();
            respond(answer).map(|response| {
                response.map(|subscription| -> Self::ResponseStream {
                    Box::pin(
                        ReceiverStream::new(subscription.events)
                            .map(move |item| item.map_err(|error| status(error, &request_id))),
                    )
                })
            })
        })
    }
}

fn respond<T>(answer: Answer<T>) -> Result<Response<T>, Status> {
    let Answer { request_id, result } = answer;
    let message = result.map_err(|error| status(error, &request_id))?;
    let mut response = Response::new(message);
    if let Ok(id) = MetadataValue::try_from(request_id) {
        response.metadata_mut().insert(REQUEST_ID, id);
    }
    Ok(response)
}

/// A failure as a status: code, message, ErrorInfo, and RetryInfo where waiting
/// helps.
fn status(error: Error, request_id: &str) -> Status {
    let Error { exception, message, retry_after, .. } = error;
    let mut details = ErrorDetails::with_error_info(exception.name(), ERROR_DOMAIN, HashMap::new());
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    details.set_request_info(request_id, "");
    let message = truncated(&message, MESSAGE_BYTES_MAX);
    let mut status = Status::with_error_details(exception.grpc(), message, details);
    if let Ok(id) = MetadataValue::try_from(request_id) {
        status.metadata_mut().insert(REQUEST_ID, id);
    }
    status
}

/// What came over the wire: a message, or why it is none.
struct Decoded<T>(Result<T>);

impl<T> Decoded<T> {
    fn received(self) -> Result<Received<T>> {
        self.0.map(Received::from)
    }
}

/// Protobuf, whose decoder never fails by itself.
struct Messages<I, O>(PhantomData<fn() -> (I, O)>);

impl<I, O> Codec for Messages<I, O>
where
    I: Message + Default + 'static,
    O: Message + 'static,
{
    type Encode = O;
    type Decode = Decoded<I>;
    type Encoder = ToBytes<O>;
    type Decoder = FromBytes<I>;

    fn encoder(&mut self) -> Self::Encoder {
        ToBytes(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        FromBytes(PhantomData)
    }
}

struct ToBytes<O>(PhantomData<fn() -> O>);

impl<O: Message> Encoder for ToBytes<O> {
    type Item = O;
    type Error = Status;

    fn encode(&mut self, item: O, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::new(Code::Internal, error.to_string()))
    }
}

struct FromBytes<I>(PhantomData<fn() -> I>);

impl<I: Message + Default> Decoder for FromBytes<I> {
    type Item = Decoded<I>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Decoded<I>>, Status> {
        let message = I::decode(buffer).map_err(|error| {
            Error::new(Exception::Validation, "The request is not a valid protobuf message of its type.")
                .with_detail(error.to_string())
        });
        Ok(Some(Decoded(message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_by_its_unit() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3600)));
        for wrong in ["", "S", "1", "1x", "-1S", "1é"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }
}
