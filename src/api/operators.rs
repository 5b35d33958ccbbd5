//! HTTP for operators: /livez, /readyz and /metrics, on an address of its own.
//!
//! One request per connection, each within [`REQUEST_TIMEOUT_MS`]: a scrape
//! every few seconds needs no more, and nothing is left open.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// From accept to the last byte of the answer.
const REQUEST_TIMEOUT_MS: u64 = 10_000;

/// Operators' connections at the same time; more wait in the backlog.
const CONNECTIONS_MAX: usize = 64;

/// Request line, headers and read buffer of one request.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// The pause after a failed accept.
const ACCEPT_PAUSE_MS: u64 = 100;

/// How often histograms are emptied into their buckets, whether or not anybody
/// scrapes; it bounds what they hold.
const METRICS_UPKEEP_INTERVAL_MS: u64 = 5_000;

/// Bounds of histograms named `…_seconds`, from 50 µs to 10 s.
const SECONDS_BUCKETS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0,
];

/// Bounds of every other histogram: counts and bytes.
const COUNT_BUCKETS: [f64; 11] =
    [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// How a sample begins to say which HSM it is of; a token's URI has no quotes.
const MEMBER_LABEL: &str = "member=\"";

/// One condition of being ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `store`, `hsm/<member>`, `disk`.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// Whether it holds with less to spare than it should have.
    pub degraded: bool,
    /// Why not, or what was measured. Never a secret.
    pub detail: String,
}

/// Tells whether the daemon can serve.
pub trait Readiness: Send + Sync {
    /// Every check as of now. Must not block: it answers from state that
    /// others keep.
    fn check(&self) -> Vec<Check>;

    /// The URIs of the HSMs that there are: /metrics tells of no other. Must not
    /// block either.
    fn members(&self) -> HashSet<String>;
}

/// Makes the process's metrics recorder; once per process. Somebody must run
/// [`metrics_upkeep`] beside it.
pub fn install_recorder() -> Result<PrometheusHandle, BuildError> {
    builder()?.install_recorder()
}

/// Keeps the memory of the metrics bounded until `shutdown`.
pub async fn metrics_upkeep(handle: PrometheusHandle, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(Duration::from_millis(METRICS_UPKEEP_INTERVAL_MS)) => handle.run_upkeep(),
        }
    }
}

/// The operators' pages; more may be merged into it.
pub fn router(readiness: Arc<dyn Readiness>, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(readiness.clone()))
        .route("/metrics", get(render).with_state((metrics, readiness)))
}

/// A bound socket for operators.
#[derive(Debug)]
pub struct OperatorListener {
    listener: TcpListener,
}

impl OperatorListener {
    /// Binds `address`; port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(OperatorListener { listener: TcpListener::bind(address).await? })
    }

    /// The address with the port that was taken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then waits for requests in flight, which takes
    /// [`REQUEST_TIMEOUT_MS`] at most.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            let next = async {
                let place = places.clone().acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                next = next => next,
            };
            match accepted {
                Ok((stream, _)) => {
                    let router = router.clone();
                    connections.spawn(async move {
                        answer(stream, router).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "no operator's connection can be accepted");
                    sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                }
            }
        }
        drop(self);
        connections.close();
        connections.wait().await;
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(Duration::from_millis(REQUEST_TIMEOUT_MS), connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an operator's connection ended with an error"),
        Err(_) => tracing::debug!("an operator's connection took too long"),
    }
}

async fn readyz(State(readiness): State<Arc<dyn Readiness>>) -> Response {
    #[derive(Serialize)]
    struct Body {
        ready: bool,
        degraded: bool,
        checks: Vec<Check>,
    }
    let checks = readiness.check();
    let ready = checks.iter().all(|check| check.ok);
    let degraded = checks.iter().any(|check| check.degraded);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(&Body { ready, degraded, checks }) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn render(State((metrics, readiness)): State<(PrometheusHandle, Arc<dyn Readiness>)>) -> Response {
    let page = without_gone(&metrics.render(), &readiness.members());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

/// The page without HSMs that were removed: they would be down for ever.
fn without_gone(page: &str, members: &HashSet<String>) -> String {
    let is_there = |line: &&str| {
        let label = line.split_once(MEMBER_LABEL).and_then(|(_, rest)| rest.split_once('"'));
        label.is_none_or(|(member, _)| members.contains(member))
    };
    page.split_inclusive('\n').filter(is_there).collect()
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets(&COUNT_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Checks(Mutex<Vec<Check>>);

    impl Readiness for Checks {
        fn check(&self) -> Vec<Check> {
            self.0.lock().clone()
        }

        fn members(&self) -> HashSet<String> {
            HashSet::from(["pkcs11:token=one;serial=1".to_owned()])
        }
    }

    fn check(name: &str, ok: bool) -> Check {
        Check { name: name.to_owned(), ok, degraded: !ok, detail: String::new() }
    }

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn pages_tell_life_readiness_and_metrics() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("strongroom_commit_seconds").record(0.000_07);
            metrics::counter!("strongroom_tests_total").increment(3);
            for member in ["pkcs11:token=one;serial=1", "pkcs11:token=gone;serial=1"] {
                metrics::gauge!("strongroom_hsm_member_serving", "member" => member).set(0.0);
            }
        });
        let checks = Arc::new(Checks(Mutex::new(vec![check("store", true)])));
        let listener = OperatorListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(listener.serve(router(checks.clone(), handle), shutdown.clone()));

        let live = get(address, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(live.starts_with("HTTP/1.1 200 "), "{live}");
        let ready = get(address, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");

        checks.0.lock().push(check("hsm/one", false));
        let unready = get(address, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(unready.starts_with("HTTP/1.1 503 "), "{unready}");
        let body: serde_json::Value =
            serde_json::from_str(unready.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["checks"][1]["name"], "hsm/one");
        assert_eq!(body["checks"][1]["ok"], false);
        assert_eq!(body["degraded"], true);

        let metrics = get(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(metrics.contains("strongroom_tests_total 3"), "{metrics}");
        assert!(metrics.contains("serving{member=\"pkcs11:token=one;serial=1\"} 0"), "{metrics}");
        assert!(!metrics.contains("token=gone"), "{metrics}");
        assert!(metrics.contains("strongroom_commit_seconds_bucket{le=\"0.0001\"} 1"), "{metrics}");
        assert!(metrics.contains("strongroom_commit_seconds_bucket{le=\"0.00005\"} 0"), "{metrics}");

        let huge = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(REQUEST_BYTES_MAX));
        let refused = get(address, &huge).await;
        assert!(refused.starts_with("HTTP/1.1 431 "), "{refused}");
        shutdown.cancel();
        server.await.unwrap();
    }
}
