//! Clients that call one after the other, each on its own connection, and what
//! they saw.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::{Buf as _, BufMut as _, Bytes};
use hdrhistogram::Histogram;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

use crate::aws;

/// The longest latency that is told apart, microseconds.
const LATENCY_MAX_US: u64 = 120_000_000;
/// Latencies are kept to two digits.
const DIGITS: u8 = 2;
/// Clients share records, so that ten thousand of them need no memory each.
const RECORDS_MAX: usize = 16;
/// How often clients began.
static TURNS: AtomicU64 = AtomicU64::new(0);
/// The pause of a client that was told to wait.
const BACK_OFF: Duration = Duration::from_millis(5);

/// What is called: a path, and a message for each call.
#[derive(Clone)]
pub struct Work {
    pub path: PathAndQuery,
    pub message: Message,
}

/// Makes a call's message from a random number.
pub type Message = Arc<dyn Fn(u64) -> Bytes + Send + Sync>;

impl Work {
    /// The same message again and again.
    pub fn one(path: PathAndQuery, message: &impl prost::Message) -> Work {
        let bytes = Bytes::from(message.encode_to_vec());
        Work { path, message: Arc::new(move |_| bytes.clone()) }
    }
}

/// What clients saw.
pub struct Outcome {
    pub calls: u64,
    pub seconds: f64,
    /// Of the calls that succeeded, microseconds.
    pub latency: Histogram<u64>,
    /// How many failed, by the exception's name, or by the gRPC code where
    /// nobody answered with one.
    pub errors: BTreeMap<String, u64>,
}

impl Outcome {
    fn new() -> anyhow::Result<Outcome> {
        Ok(Outcome { calls: 0, seconds: 0.0, latency: histogram()?, errors: BTreeMap::new() })
    }

    /// Successful calls per second.
    pub fn rate(&self) -> f64 {
        self.calls as f64 / self.seconds
    }

    /// A quantile of the latency, milliseconds.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn succeeded(&mut self, after: Duration) {
        self.calls += 1;
        self.latency.saturating_record(after.as_micros() as u64);
    }

    fn failed(&mut self, status: &Status) {
        *self.errors.entry(reason(status)).or_default() += 1;
    }

    /// Fails where a call failed: what is measured must work.
    pub fn flawless(self, what: &str) -> anyhow::Result<Outcome> {
        anyhow::ensure!(self.errors.is_empty(), "{what}: {:?}", self.errors);
        anyhow::ensure!(self.calls > 0, "{what}: no call succeeded");
        Ok(self)
    }

    fn merge(&mut self, other: &Outcome) -> anyhow::Result<()> {
        self.calls += other.calls;
        self.seconds = self.seconds.max(other.seconds);
        self.latency.add(&other.latency)?;
        for (name, count) in &other.errors {
            *self.errors.entry(name.clone()).or_default() += count;
        }
        Ok(())
    }
}

/// Of latencies, microseconds.
pub fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS)?)
}

/// The client's side of the mutual TLS: `NAME.pem` and `NAME.key` in a folder
/// beside `ca.pem`.
pub fn endpoint(address: SocketAddr, pki: &Path, name: &str) -> anyhow::Result<Endpoint> {
    let read = |file: String| std::fs::read(pki.join(&file)).with_context(|| file);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem".into())?))
        .identity(Identity::from_pem(read(format!("{name}.pem"))?, read(format!("{name}.key"))?));
    Ok(Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?)
}

/// So many connections.
pub async fn connect(endpoint: &Endpoint, count: usize) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(count);
    for _ in 0..count {
        channels.push(endpoint.connect().await?);
    }
    Ok(channels)
}

/// Somebody who calls, waits for the answer, and calls again.
pub trait Client: Clone + Send + Sync + 'static {
    /// One call; what is random about it is made from a number.
    fn call(&self, random: u64) -> impl Future<Output = Result<(), Status>> + Send;
}

impl Client for (Channel, Work) {
    async fn call(&self, random: u64) -> Result<(), Status> {
        let (channel, work) = self;
        call(channel, work.path.clone(), (work.message)(random)).await.map(drop)
    }
}

/// Those who call at the same time, each over its connection.
pub enum Clients<'a> {
    Grpc(&'a [Channel], Work),
    Aws(&'a [aws::Connection]),
}

impl Clients<'_> {
    /// Has them call for a time.
    pub async fn call(&self, time: Duration) -> anyhow::Result<Outcome> {
        match self {
            Clients::Grpc(channels, work) => closed_loop(channels, work, time).await,
            Clients::Aws(connections) => all(connections.iter().cloned(), time).await,
        }
    }
}

/// One gRPC client per channel, for a time.
pub async fn closed_loop(channels: &[Channel], work: &Work, time: Duration) -> anyhow::Result<Outcome> {
    all(channels.iter().map(|channel| (channel.clone(), work.clone())), time).await
}

async fn all<C: Client>(
    clients: impl ExactSizeIterator<Item = C>,
    time: Duration,
) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let mut shared = Vec::with_capacity(RECORDS_MAX);
    for _ in 0..clients.len().min(RECORDS_MAX) {
        shared.push(Arc::new(Mutex::new(Outcome::new()?)));
    }
    let clients: Vec<_> = (0_u64..)
        .zip(clients)
        .zip(shared.iter().cycle())
        .map(|((number, client), record)| tokio::spawn(one(client, number, began + time, record.clone())))
        .collect();
    for client in clients {
        client.await?;
    }
    let mut outcome = Outcome::new()?;
    for record in shared {
        outcome.merge(&record.lock())?;
    }
    outcome.seconds = began.elapsed().as_secs_f64();
    Ok(outcome)
}

/// At least one call, however short the time.
async fn one(client: impl Client, number: u64, end: Instant, record: Arc<Mutex<Outcome>>) {
    // No turn repeats the keys of one before it, which a cache would have.
    let turn = TURNS.fetch_add(1, Ordering::Relaxed);
    let mut random = Random::new(turn << 20 | number);
    loop {
        let began = Instant::now();
        match client.call(random.next()).await {
            Ok(()) => record.lock().succeeded(began.elapsed()),
            Err(status) => {
                record.lock().failed(&status);
                tokio::time::sleep(BACK_OFF).await;
            }
        }
        if Instant::now() >= end {
            return;
        }
    }
}

/// One call: the answer's bytes.
pub async fn call(channel: &Channel, path: PathAndQuery, message: Bytes) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    Ok(grpc.unary(Request::new(message), path, Raw).await?.into_inner())
}

/// The exception's name.
pub fn reason(status: &Status) -> String {
    let info = status.get_error_details().error_info().map(|info| info.reason.clone());
    info.unwrap_or_else(|| format!("{:?}", status.code()))
}

/// xorshift64*: which key is called need not be secret.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Messages as their bytes, so that the client's own work is the same for all.
#[derive(Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
