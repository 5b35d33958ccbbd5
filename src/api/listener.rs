//! Where connections come in: TCP with TLS, mutual for gRPC and one-sided for AWS
//! JSON, and a Unix socket.
//!
//! ```text
//! accept → Gate (limits) → handshake → Peer → HTTP → service
//!                                             age, idle, drain: GOAWAY
//! ```
//! Each connection is a task of its own from the moment it is accepted, so
//! that a slow peer keeps nobody waiting. Every request carries its
//! connection's `Arc<Peer>` as an extension.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt};

use super::identity::{Authenticator, Peer};
use super::limits::{Full, Gate, Pass, PeerKey, TransportLimits};
use super::tls::fingerprint;
use super::unix_socket::{self, SocketFile};
use crate::caller::TlsDetails;

/// The pause after a failed accept, which mostly means that the process has no
/// file descriptor left; without it the loop would spin.
const ACCEPT_PAUSE_MS: u64 = 100;

/// Between HTTP/2 pings to a client from which nothing came.
const KEEPALIVE_INTERVAL_MS: u64 = 30_000;

/// For an answer to such a ping, before the connection is closed.
const KEEPALIVE_TIMEOUT_MS: u64 = 20_000;

/// For requests in flight once a connection is too old; what still runs then,
/// a stream mostly, is cut off and resumed by its client.
const AGED_GRACE_MS: u64 = 60_000;

/// Streams that a client reset and that the server has not yet seen, before
/// the connection is closed: the defence against rapid reset
/// (CVE-2023-44487). h2's default, named so that an upgrade cannot move it.
const RESET_STREAMS_PENDING_MAX: usize = 20;

/// Streams that the server had to reset for a client's errors, before the
/// connection is closed (RUSTSEC-2024-0003). h2's default.
const ERROR_RESET_STREAMS_MAX: usize = 1024;

/// Bytes of responses that wait in one stream for a slow reader.
const SEND_BUFFER_BYTES_MAX: usize = 256 << 10;

/// The least buffer that hyper takes for HTTP/1.1's headers.
const HTTP1_BUFFER_BYTES_MIN: usize = 8 << 10;

/// What is spoken on a TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 over mutual TLS.
    Grpc,
    /// HTTP/1.1 or HTTP/2 over TLS without a client's certificate.
    Aws,
    /// The same without TLS, for clients of this host alone.
    AwsPlaintext,
}

/// What to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// TCP; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix {
        /// The socket file.
        path: PathBuf,
        /// Its permission bits, 0o660 usually.
        mode: u32,
    },
}

/// A bound socket that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, SocketFile),
}

/// What [`Listener::serve`] needs.
#[derive(Clone)]
pub struct Serving {
    /// What is spoken; on a Unix socket it is gRPC.
    pub protocol: Protocol,
    /// Who callers are, and the TLS state.
    pub authenticator: Arc<Authenticator>,
    /// The limits, shared by all listeners.
    pub gate: Arc<Gate>,
    /// Cancelled to drain: no new connection, no new request, and the end once
    /// the last request has its answer.
    pub shutdown: CancellationToken,
    /// For requests in flight after `shutdown`; then they are cut off.
    pub drain_timeout: Duration,
}

impl Listener {
    /// Binds a socket. A socket file that a dead process left is replaced; one
    /// on which somebody listens is an error (`AddrInUse`).
    pub async fn bind(bind: &Bind) -> io::Result<Listener> {
        let socket = match bind {
            Bind::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                let address = listener.local_addr()?;
                Socket::Tcp(listener, address)
            }
            Bind::Unix { path, mode } => {
                let (listener, file) = unix_socket::bind(path, *mode).await?;
                Socket::Unix(listener, file)
            }
        };
        Ok(Listener { socket })
    }

    /// What was bound, with the port that was taken.
    pub fn bound(&self) -> Bind {
        match &self.socket {
            Socket::Tcp(_, address) => Bind::Tcp(*address),
            Socket::Unix(_, file) => Bind::Unix { path: file.path().to_owned(), mode: file.mode() },
        }
    }

    /// Serves until `serving.shutdown`, then drains. The answer tells how many
    /// connections had to be cut off.
    pub async fn serve<S, B>(self, service: S, serving: Serving) -> usize
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        while let Some(accepted) = self.accept(&serving.shutdown).await {
            let pass = match serving.gate.admit(accepted.key()) {
                Ok(pass) => pass,
                Err(full) => {
                    refuse(full);
                    continue;
                }
            };
            let connection = Connection {
                service: service.clone(),
                serving: serving.clone(),
                cut: cut.clone(),
                _pass: pass,
            };
            connections.spawn(connection.run(accepted));
        }
        // Nobody can connect while the rest is drained.
        drop(self);
        connections.close();
        if timeout(serving.drain_timeout, connections.wait()).await.is_ok() {
            return 0;
        }
        let left = connections.len();
        tracing::warn!(connections = left, "the drain timeout has passed: open requests are cut off");
        cut.cancel();
        connections.wait().await;
        left
    }

    /// The next connection; None at shutdown.
    async fn accept(&self, shutdown: &CancellationToken) -> Option<Accepted> {
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                accepted = self.accept_one() => accepted,
            };
            match accepted {
                Ok(accepted) => return Some(accepted),
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    metrics::counter!("strongroom_accept_errors_total").increment(1);
                    tracing::error!(%error, pause_ms = ACCEPT_PAUSE_MS, "no connection can be accepted");
                    tokio::select! {
                        () = shutdown.cancelled() => return None,
                        () = sleep(Duration::from_millis(ACCEPT_PAUSE_MS)) => {}
                    }
                }
            }
        }
    }

    async fn accept_one(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener, _) => {
                let (stream, address) = listener.accept().await?;
                Ok(Accepted::Tcp(stream, address))
            }
            Socket::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred()?;
                Ok(Accepted::Unix(stream, credentials.uid(), credentials.pid()))
            }
        }
    }
}

/// A connection before its handshake.
enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream, u32, Option<i32>),
}

impl Accepted {
    fn key(&self) -> PeerKey {
        match self {
            Accepted::Tcp(_, address) => PeerKey::Address(address.ip()),
            Accepted::Unix(_, uid, _) => PeerKey::Uid(*uid),
        }
    }
}

/// Whether an error of accept concerns one peer that went away meanwhile.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | NotConnected
    )
}

fn refuse(full: Full) {
    let reason = match full {
        Full::InAll => "connections_max",
        Full::ForPeer => "connections_per_peer_max",
    };
    metrics::counter!("strongroom_connections_refused_total", "reason" => reason).increment(1);
    tracing::debug!(reason, "a connection was closed at once");
}

/// One accepted connection.
struct Connection<S> {
    service: S,
    serving: Serving,
    /// Cancelled when a drain has taken too long.
    cut: CancellationToken,
    _pass: Pass,
}

impl<S, B> Connection<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    async fn run(self, accepted: Accepted) {
        let limits = self.serving.gate.limits();
        match accepted {
            Accepted::Unix(stream, uid, pid) => {
                self.speak(TokioIo::new(stream), Peer::unix(uid, pid), &limits).await;
            }
            Accepted::Tcp(stream, address) if self.serving.protocol == Protocol::AwsPlaintext => {
                match stream.set_nodelay(true) {
                    Ok(()) => self.speak(TokioIo::new(stream), Peer::plain(address), &limits).await,
                    Err(error) => HandshakeFailure::new("io", error.to_string()).note(address),
                }
            }
            Accepted::Tcp(stream, address) => {
                let handshake =
                    timeout(limits.handshake_timeout(), handshake(stream, address, &self.serving));
                let outcome = tokio::select! {
                    () = self.serving.shutdown.cancelled() => return,
                    outcome = handshake => outcome,
                };
                match outcome {
                    Ok(Ok((stream, peer))) => self.speak(TokioIo::new(stream), peer, &limits).await,
                    Ok(Err(failure)) => failure.note(address),
                    Err(_) => HandshakeFailure::new("timeout", "it took too long").note(address),
                }
            }
        }
    }

    /// HTTP until the connection ends, for whatever reason.
    async fn speak(
        self,
        io: impl Read + Write + Unpin + Send + 'static,
        peer: Peer,
        limits: &TransportLimits,
    ) {
        let peer = Arc::new(peer);
        let activity = Activity::new();
        let service = {
            let (peer, activity, service) = (peer.clone(), activity.clone(), self.service);
            hyper::service::service_fn(move |mut request: Request<Incoming>| {
                let in_flight = activity.begin();
                request.extensions_mut().insert(peer.clone());
                let answer = service.clone().oneshot(request);
                async move {
                    answer.await.map(|response| response.map(|body| Counted { body, _in_flight: in_flight }))
                }
            })
        };
        let builder = http_builder(self.serving.protocol, limits);
        let mut connection = pin!(builder.serve_connection(io, service));
        let mut ending = pin!(end(&activity, limits, &self.serving.shutdown));
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            grace = ending.as_mut() => {
                // GOAWAY; what is in flight goes on.
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    outcome = connection.as_mut() => outcome,
                    () = sleep(grace) => Ok(()),
                    () = self.cut.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, origin = ?peer.origin(), "a connection ended with an error");
        }
    }
}

fn http_builder(protocol: Protocol, limits: &TransportLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if protocol == Protocol::Grpc {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        // It runs between requests too.
        .header_read_timeout(limits.connection_idle())
        .max_buf_size((limits.header_bytes_max as usize).max(HTTP1_BUFFER_BYTES_MIN));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_per_connection_max)
        .max_header_list_size(limits.header_bytes_max)
        .max_pending_accept_reset_streams(RESET_STREAMS_PENDING_MAX)
        .max_local_error_reset_streams(ERROR_RESET_STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .keep_alive_interval(Duration::from_millis(KEEPALIVE_INTERVAL_MS))
        .keep_alive_timeout(Duration::from_millis(KEEPALIVE_TIMEOUT_MS));
    builder
}

/// Waits until a connection should take no more requests, and tells how long
/// those in flight may go on.
async fn end(activity: &Activity, limits: &TransportLimits, shutdown: &CancellationToken) -> Duration {
    tokio::select! {
        // A drain has its own, common deadline.
        () = shutdown.cancelled() => Duration::MAX,
        () = sleep(spread(limits.connection_age())) => Duration::from_millis(AGED_GRACE_MS),
        () = activity.idle_for(limits.connection_idle()) => Duration::from_millis(AGED_GRACE_MS),
    }
}

/// A time within a tenth of `time`, so that connections of one moment do not
/// all end in one moment.
fn spread(time: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = RandomState::new().build_hasher().finish() % 201;
    time.mul_f64(0.9 + random as f64 / 1000.0)
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Why a connection came to no TLS session.
struct HandshakeFailure {
    /// A word for the metric.
    reason: &'static str,
    detail: String,
}

impl HandshakeFailure {
    fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        HandshakeFailure { reason, detail: detail.into() }
    }

    /// Not a warning: anybody who reaches the port can make any number.
    fn note(&self, address: SocketAddr) {
        metrics::counter!("strongroom_handshake_failures_total", "reason" => self.reason).increment(1);
        tracing::info!(%address, reason = self.reason, "TLS handshake failed: {}", self.detail);
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    serving: &Serving,
) -> Result<(TlsStream, Peer), HandshakeFailure> {
    stream.set_nodelay(true).map_err(|e| HandshakeFailure::new("io", e.to_string()))?;
    let Some(tls) = serving.authenticator.tls() else {
        return Err(HandshakeFailure::new("tls_off", "no TLS is configured"));
    };
    let config = if serving.protocol == Protocol::Grpc { tls.mutual() } else { tls.one_sided() };
    let stream = TlsAcceptor::from(config).accept(stream).await.map_err(|e| {
        let rustls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let reason = match rustls {
            Some(rustls::Error::NoCertificatesPresented) => "no_certificate",
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidCertRevocationList(_)) => {
                "certificate"
            }
            Some(_) => "tls",
            None => "io",
        };
        HandshakeFailure::new(reason, e.to_string())
    })?;
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    if serving.protocol == Protocol::Grpc {
        // RFC 9113, 3.2: HTTP/2 over TLS is agreed by ALPN, or not spoken.
        if session.alpn_protocol() != Some(b"h2") {
            return Err(HandshakeFailure::new("alpn", "the client does not offer h2"));
        }
        if chain.is_empty() {
            return Err(HandshakeFailure::new("no_certificate", "the session has no client certificate"));
        }
    }
    let details = tls_details(session, &chain)
        .ok_or_else(|| HandshakeFailure::new("tls", "the session is of no known version"))?;
    Ok((stream, Peer::tls(address, details, chain)))
}

fn tls_details(
    session: &rustls::ServerConnection,
    chain: &[rustls::pki_types::CertificateDer<'_>],
) -> Option<TlsDetails> {
    let version = match session.protocol_version()? {
        rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3",
        rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2",
        _ => return None,
    };
    let suite = session.negotiated_cipher_suite()?.suite();
    // rustls writes TLS13_AES_…, IANA TLS_AES_….
    let suite = suite.as_str()?.replacen("TLS13_", "TLS_", 1);
    Some(TlsDetails {
        version: version.to_owned(),
        cipher_suite: suite,
        host: session.server_name().map(str::to_owned),
        certificate_sha256: chain.first().map(fingerprint),
    })
}

/// The requests in flight on one connection.
struct Activity {
    in_flight: AtomicUsize,
    /// When the last one ended.
    idle_since: Mutex<Instant>,
}

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Activity { in_flight: AtomicUsize::new(0), idle_since: Mutex::new(Instant::now()) })
    }

    fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(self.clone())
    }

    /// Waits until no request has been in flight for a time.
    async fn idle_for(&self, time: Duration) {
        loop {
            let since = *self.idle_since.lock();
            let idle = self.in_flight.load(Ordering::Acquire) == 0;
            if idle && since.elapsed() >= time {
                return;
            }
            sleep_until(if idle { since } else { Instant::now() } + time).await;
        }
    }
}

/// One request, from its headers to the end of its answer.
struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer's body that counts as in flight until it is sent.
struct Counted<B> {
    body: B,
    _in_flight: InFlight,
}

impl<B: http_body::Body + Unpin> http_body::Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
