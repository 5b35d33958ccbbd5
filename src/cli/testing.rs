//! A daemon for the clients' tests: it answers any operation as a test says.

use std::convert::Infallible;
use std::sync::Arc;

use clap::{ArgMatches, Command};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use prost_reflect::DynamicMessage;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use super::call::DynamicCodec;
use super::json::to_json;
use super::schema::Service;
use super::values::message_from_json;

/// What a call was: its operation and its request as AWS's JSON.
pub type Call = (String, Json);

/// Makes an operation's answers, as AWS's JSON; a unary one has one.
pub type Answer = fn(operation: &str, request: &Json) -> Vec<Result<Json, Status>>;

/// A daemon on a socket in a folder of its own.
pub struct Server {
    folder: TempDir,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Server {
    /// Serves each connection until the test's runtime ends.
    pub fn start(answer: Answer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let server = Server { folder, calls: calls.clone() };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let calls = calls.clone();
                let service =
                    hyper::service::service_fn(move |request| serve(answer, calls.clone(), request));
                tokio::spawn(async move {
                    let connection = auto::Builder::new(TokioExecutor::new());
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        server
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().clone()
    }

    /// A file in the server's folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The matches of a command line that names this server.
    pub fn matches(&self, command: Command, line: &[&str]) -> ArgMatches {
        let endpoint = format!("--endpoint=unix:{}", self.path("socket"));
        let line = ["test"].into_iter().chain(line.iter().copied()).chain([endpoint.as_str()]);
        command.try_get_matches_from(line).unwrap()
    }
}

async fn serve<B>(
    answer: Answer,
    calls: Arc<Mutex<Vec<Call>>>,
    request: http::Request<B>,
) -> Result<http::Response<tonic::body::Body>, Infallible>
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send,
{
    let path = request.uri().path().to_owned();
    let (service, operation) = path.trim_start_matches('/').split_once('/').unwrap();
    let services = [Service::Kms, Service::CloudTrail, Service::Iam, Service::Hsm, Service::Admin];
    let service = services.into_iter().find(|known| known.descriptor().full_name() == service).unwrap();
    let method = service.method(operation);
    let output = method.output();
    let operation = operation.to_owned();
    let handler = tower::service_fn(move |request: Request<DynamicMessage>| {
        let request = to_json(request.get_ref());
        calls.lock().push((operation.clone(), request.clone()));
        let mut answers = answer(&operation, &request);
        let output = output.clone();
        async move {
            if let Some(Err(status)) = answers.first() {
                return Err(status.clone());
            }
            let messages: Vec<_> = answers
                .drain(..)
                .map(|answer| answer.map(|json| message_from_json(&output, &json).unwrap()))
                .collect();
            Ok(Response::new(tokio_stream::iter(messages)))
        }
    });
    let mut grpc = tonic::server::Grpc::new(DynamicCodec::new(method.input()));
    Ok(grpc.server_streaming(handler, request).await)
}

/// An event for StreamEvents and LookupEvents.
pub fn event(name: &str) -> Json {
    json!({"EventName": name, "CloudTrailEvent": json!({"eventName": name}).to_string()})
}
