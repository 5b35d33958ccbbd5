//! The AWS JSON protocol beside gRPC.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use strongroom::proto::kms::{KeySpec, KeyUsageType};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tonic::Status;

use crate::ceilings::Running;
use crate::load::{Client, Clients, Work};
use crate::operations::{self, create};
use crate::plan::Bench;
use crate::process::Instance;
use crate::report::Report;
use crate::series::{self, Side};

/// Concurrent clients of each protocol.
const CLIENTS: usize = 64;
const SCENARIO: &str = "AWS JSON";

/// Encrypt over both protocols, in turns.
pub async fn compare(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let daemons = Running::all(bench, "aws", CLIENTS).await?;
    let Some(daemon) = daemons.into_iter().next() else { return Ok(()) };
    let channel = daemon.channels.first().context("no connection")?;
    let key = create(channel, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
    let request = operations::encrypt(key.clone(), 32);
    let work = Work::one(operations::path("Encrypt")?, &request);
    let plaintext = STANDARD.encode(request.plaintext.unwrap_or_default());
    let body = serde_json::json!({ "KeyId": key, "Plaintext": plaintext }).to_string();
    let access = Access::of(&daemon.instance)?;
    let mut connections = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        connections.push(access.connect("TrentService.Encrypt", body.clone()).await?);
    }
    let sides = [
        Side { name: "gRPC", clients: Clients::Grpc(&daemon.channels, work), process: &daemon.process },
        Side { name: "AWS JSON", clients: Clients::Aws(&connections), process: &daemon.process },
    ];
    let series = series::measure(&bench.plan, &sides).await?;
    let [grpc, aws] = series.as_slice() else { return Ok(()) };
    for side in [grpc, aws] {
        let name = |what: &str| format!("Encrypt 32 B, {}: {what}", side.name);
        report.figure(SCENARIO, name("rate"), side.rate().median, "per second");
        report.figure(SCENARIO, name("p99"), side.quantile_ms(0.99), "ms");
        report.figure(SCENARIO, name("daemon's CPU"), series::Spread::of(side.cpu_us.clone()).median, "µs");
    }
    report.at_least("Encrypt 32 B over AWS JSON, of gRPC", 0.6, aws.ratio(grpc).median);
    drop(sides);
    drop((connections, daemon.channels));
    daemon.process.stop()
}

/// Where and as whom the administrator calls.
struct Access {
    address: String,
    region: String,
    credentials: Credentials,
}

impl Access {
    /// What `strongroom dev` wrote down for the AWS command.
    fn of(instance: &Instance) -> anyhow::Result<Access> {
        let text = fs::read_to_string(instance.dir.join("env"))?;
        let variables: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name, value.trim_matches('\'')))
            .collect();
        let variable = |name: &str| variables.get(name).copied().with_context(|| format!("no {name}"));
        let address = variable("AWS_ENDPOINT_URL")?.strip_prefix("http://").context("not plain HTTP")?;
        let credentials =
            Credentials::from_keys(variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?, None);
        Ok(Access { address: address.to_owned(), region: variable("AWS_REGION")?.to_owned(), credentials })
    }

    /// A connection for one request that is signed here and sent again and
    /// again, so that the client's own work is little: a signature is good for
    /// five minutes.
    async fn connect(&self, target: &str, body: String) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::post("/")
            .header("host", &self.address)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", target)
            .body(Full::new(Bytes::from(body.clone())))?;
        let headers = request.headers().iter().map(|(name, value)| Ok((name.as_str(), value.to_str()?)));
        let headers: Vec<_> = headers.collect::<anyhow::Result<_>>()?;
        let signable = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new("POST", "/", headers.into_iter(), signable)?;
        let identity = self.credentials.clone().into();
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("kms")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let (instructions, _) = sign(signable, &parameters)?.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        Ok(Connection { sender: Arc::new(Mutex::new(sender)), request })
    }
}

/// An HTTP/1.1 connection with its request.
#[derive(Clone)]
pub struct Connection {
    sender: Arc<Mutex<SendRequest<Full<Bytes>>>>,
    request: Request<Full<Bytes>>,
}

impl Client for Connection {
    async fn call(&self, _: u64) -> Result<(), Status> {
        let failed = |error: hyper::Error| Status::unavailable(error.to_string());
        let mut sender = self.sender.lock().await;
        sender.ready().await.map_err(failed)?;
        let answer = sender.send_request(self.request.clone()).await.map_err(failed)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(failed)?.to_bytes();
        match status.is_success() {
            true => Ok(()),
            false => Err(Status::unknown(String::from_utf8_lossy(&body))),
        }
    }
}
