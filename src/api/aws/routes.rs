//! What serves each X-Amz-Target.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use tokio::time::Instant;

use crate::app::App;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::operation::{Answer, Operation, execute};
use crate::ops::{self, Visitor};
use crate::service::AwsService;
use crate::wire::json::{self, Json};

/// The header that names a call: the event's requestID.
const REQUEST_ID: &str = "x-amzn-requestid";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

type Handler = Box<
    dyn Fn(Arc<App>, Arc<str>, Caller, Result<Bytes>, Instant) -> BoxFuture<'static, Response<Full<Bytes>>>
        + Send
        + Sync,
>;

/// One operation.
pub struct Route {
    /// The service that it belongs to.
    pub service: AwsService,
    /// Longest that it may take, where that is not what the configuration says.
    pub timeout: Option<Duration>,
    /// What serves it.
    pub serve: Handler,
}

/// Every operation that AWS has, by its target.
pub struct Routes(HashMap<String, Route>);

impl Routes {
    /// Makes them from the list of operations.
    pub fn new() -> Self {
        let mut routes = Routes(HashMap::new());
        ops::each(&mut routes);
        routes
    }

    /// The operation of a target such as `TrentService.Encrypt`.
    pub fn get(&self, target: &str) -> Option<&Route> {
        self.0.get(target)
    }
}

impl Routes {
    /// The operation of a path: those that AWS has as REST have their names in it.
    pub fn get_rest(&self, path: &str) -> Option<&Route> {
        let service = crate::service::Service::CloudTrailData.aws()?;
        self.get(&format!("{}.{}", service.target, path.strip_prefix('/')?))
    }
}

impl Visitor for Routes {
    fn visit<O>(&mut self)
    where
        O: Operation,
        O::Request: Json,
        O::Response: Json,
    {
        let Some(service) = O::SERVICE.aws() else { return };
        let serve: Handler = Box::new(|app, region, caller, body, deadline| {
            Box::pin(serve::<O>(app, region, caller, body, deadline))
        });
        let route = Route { service, timeout: O::TIMEOUT, serve };
        self.0.insert(format!("{}.{}", service.target, O::NAME), route);
    }
}

async fn serve<O>(
    app: Arc<App>,
    region: Arc<str>,
    caller: Caller,
    body: Result<Bytes>,
    deadline: Instant,
) -> Response<Full<Bytes>>
where
    O: Operation,
    O::Request: Json,
    O::Response: Json,
{
    let Answer { request_id, result } =
        execute::<O>(app, region, caller, body.and_then(|body| json::read(&body)), deadline).await;
    match result.and_then(|message| written(&message)) {
        Ok(body) => answer(StatusCode::OK, &request_id, body),
        Err(error) => failure(&error, &request_id),
    }
}

fn written<T: Json>(message: &T) -> Result<Vec<u8>> {
    if !T::HAS_BODY {
        return Ok(Vec::new());
    }
    message.write().map_err(|error| Error::internal(error.to_string()))
}

fn failure(error: &Error, request_id: &str) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(error.exception.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    refusal(status, request_id, error.exception.name(), &error.message)
}

/// An answer with AWS's body of an error; a message that is empty is left out,
/// as AWS does.
pub fn refusal(status: StatusCode, request_id: &str, name: &str, message: &str) -> Response<Full<Bytes>> {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(rename = "__type")]
        name: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        message: &'a str,
    }
    let body = serde_json::to_vec(&Body { name, message }).unwrap_or_default();
    answer(status, request_id, body)
}

fn answer(status: StatusCode, request_id: &str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}
