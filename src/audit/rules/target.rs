//! What a target is, whatever it does with events.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::client::{HttpClient, HttpConnector as _, HttpResponse, ReqwestConnector};
use object_store::{Certificate, ClientOptions};
use serde_json::Value;

use super::event_bus::EventBus;
use super::file::LocalFile;
use super::log_stream::LogStream;
use super::webhook::Webhook;
use crate::app::App;
use crate::audit::tail::Logged;
use crate::config::TargetSettings;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The most that is read of an answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// An event that a target gets.
#[derive(Clone)]
pub struct Delivery {
    /// The rules that want it, sorted.
    pub rules: Vec<String>,
    /// The event.
    pub logged: Arc<Logged>,
}

impl Delivery {
    /// The event as EventBridge has it.
    pub fn event(&self) -> &Value {
        self.logged.envelope()
    }

    /// eventTime, milliseconds since the epoch.
    pub fn time_ms(&self) -> i64 {
        self.logged.stored.time_ms
    }

    /// A text of the event.
    pub fn text(&self, pointer: &str) -> &str {
        self.event().pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The target has it.
    Done,
    /// It may succeed later.
    Again(String),
    /// It will not.
    Refused(String),
}

/// Where events go.
pub enum Target {
    /// EventBridge.
    EventBus(Box<EventBus>),
    /// CloudWatch Logs.
    LogStream(Box<LogStream>),
    /// CloudEvents over HTTP.
    Webhook(Box<Webhook>),
    /// A file of this host.
    File(LocalFile),
}

impl Target {
    /// The target that the configuration describes.
    ///
    /// # Errors
    /// What keeps it from being used.
    pub fn open(app: &App, settings: &TargetSettings) -> Result<Target, String> {
        let region = app.region.to_string();
        match settings {
            TargetSettings { event_bus: Some(bus), .. } => {
                EventBus::open(bus, region).map(Box::new).map(Target::EventBus)
            }
            TargetSettings { log_stream: Some(stream), .. } => {
                LogStream::open(stream, region).map(Box::new).map(Target::LogStream)
            }
            TargetSettings { webhook: Some(hook), .. } => {
                Webhook::open(hook).map(Box::new).map(Target::Webhook)
            }
            TargetSettings { file: Some(file), .. } => Ok(Target::File(LocalFile::new(file))),
            // The configuration was checked.
            _ => Err("there is no such target".to_owned()),
        }
    }

    /// Delivers all of these, as far as it can: an outcome for each.
    pub async fn send(&self, deliveries: &[Delivery]) -> Vec<Outcome> {
        match self {
            Target::EventBus(bus) => bus.send(deliveries).await,
            Target::LogStream(stream) => stream.send(deliveries).await,
            Target::Webhook(hook) => hook.send(deliveries).await,
            Target::File(file) => file.send(deliveries).await,
        }
    }
}

/// A client for a URL, which trusts the system's CAs and those of a file.
pub fn http_client(url: &str, ca_file: Option<&PathBuf>) -> Result<HttpClient, String> {
    let plain = url.starts_with("http://");
    let mut options = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
        .with_allow_http(plain);
    if let Some(file) = ca_file {
        let pem = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string())?;
        options = certificates.into_iter().fold(options, ClientOptions::with_root_certificate);
    }
    ReqwestConnector::default().connect(&options).map_err(|error| error.to_string())
}

/// An answer's body, as far as anybody looks at it.
pub async fn body(answer: HttpResponse) -> Result<Vec<u8>, String> {
    use futures::TryStreamExt as _;
    let mut chunks = answer.into_body().bytes_stream();
    let mut body = Vec::new();
    while let Some(chunk) = chunks.try_next().await.map_err(|error| error.to_string())? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(format!("the answer has more than {ANSWER_BYTES_MAX} bytes"));
        }
    }
    Ok(body)
}
