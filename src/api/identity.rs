//! Who calls: from what a connection proved to a principal of the
//! configuration.
//!
//! ```text
//! handshake → Peer (what was proved, once per connection)
//!                │  each request: Authenticator::authenticate
//!                ▼
//!       Live (TLS state + resolver, swapped by a reload) → Caller
//! ```
//! The verdict on a peer is kept with its connection, for one generation of
//! the live state and no longer than the certificates and CRLs behind it are
//! valid. So a reload and the clock hold for open connections at their next
//! request, and the usual request costs two atomic loads.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use rustls::pki_types::{CertificateDer, UnixTime};
use tonic_types::{ErrorDetails, StatusExt};

use super::tls::{ClientRefused, TlsState};
use crate::caller::{Caller, Credential, Origin, Principal, TlsDetails};

/// The longest user agent that is kept, as in CloudTrail.
const USER_AGENT_BYTES_MAX: usize = 1024;

/// For how long a refusal is kept before the peer is looked at again.
const REFUSAL_CACHED_S: u64 = 1;

/// Lines in the log about refused requests, per second; the metric counts all.
const REFUSALS_LOGGED_PER_SECOND: NonZeroU32 = NonZeroU32::new(5).unwrap();

/// Finds the principal of a peer in the configuration.
pub trait Resolver: Send + Sync {
    /// The principal that the first matching credential belongs to.
    fn resolve(&self, credentials: &[Credential]) -> Option<Arc<Principal>>;
}

impl<F> Resolver for F
where
    F: Fn(&[Credential]) -> Option<Arc<Principal>> + Send + Sync,
{
    fn resolve(&self, credentials: &[Credential]) -> Option<Arc<Principal>> {
        self(credentials)
    }
}

/// The other end of a connection; an extension of each of its requests, as
/// `Arc<Peer>`.
pub struct Peer {
    origin: Origin,
    tls: Option<TlsDetails>,
    /// The client's certificates, leaf first; none on a Unix socket.
    chain: Vec<CertificateDer<'static>>,
    verdict: ArcSwapOption<Verdict>,
}

impl Peer {
    /// A peer on a Unix socket.
    pub fn unix(uid: u32, pid: Option<i32>) -> Self {
        Self::new(Origin::Unix { uid, pid }, None, Vec::new())
    }

    /// A peer without TLS, on this host.
    pub fn plain(address: std::net::SocketAddr) -> Self {
        Self::new(Origin::Tcp(address), None, Vec::new())
    }

    /// A peer after a TLS handshake.
    pub fn tls(address: std::net::SocketAddr, tls: TlsDetails, chain: Vec<CertificateDer<'static>>) -> Self {
        Self::new(Origin::Tcp(address), Some(tls), chain)
    }

    fn new(origin: Origin, tls: Option<TlsDetails>, chain: Vec<CertificateDer<'static>>) -> Self {
        Peer { origin, tls, chain, verdict: ArcSwapOption::empty() }
    }

    /// Where it is.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its TLS session.
    pub fn tls_details(&self) -> Option<&TlsDetails> {
        self.tls.as_ref()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("origin", &self.origin).field("tls", &self.tls).finish_non_exhaustive()
    }
}

/// What was decided of a peer, and for how long.
struct Verdict {
    generation: u64,
    /// A clock that was set back makes the verdict void too.
    from: UnixTime,
    until: UnixTime,
    outcome: Result<Arc<Principal>, Unauthenticated>,
}

/// Why a request has no caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unauthenticated {
    /// A word for the metric.
    pub reason: &'static str,
    /// A sentence for the client and the log.
    pub message: String,
}

impl Unauthenticated {
    /// The answer: UNAUTHENTICATED, with the name that AWS has for a
    /// certificate or access key that is not in its records.
    pub fn status(&self) -> tonic::Status {
        let details =
            ErrorDetails::with_error_info("InvalidClientTokenId", "kms.amazonaws.com", HashMap::new());
        tonic::Status::with_error_details(tonic::Code::Unauthenticated, self.message.clone(), details)
    }

    fn no_peer() -> Self {
        Unauthenticated {
            reason: "no_peer",
            message: "The request came over no authenticated connection.".to_owned(),
        }
    }

    fn no_principal(origin: &Origin) -> Self {
        let message = match origin {
            Origin::Tcp(_) => "The client certificate belongs to no principal of this service.".to_owned(),
            Origin::Unix { uid, .. } => format!("The user id {uid} belongs to no principal of this service."),
        };
        Unauthenticated { reason: "no_principal", message }
    }
}

impl fmt::Display for Unauthenticated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Unauthenticated {}

impl From<ClientRefused> for Unauthenticated {
    fn from(refused: ClientRefused) -> Self {
        Unauthenticated { reason: refused.reason, message: refused.message }
    }
}

/// What a reload replaces.
struct Live {
    generation: u64,
    tls: Option<Arc<TlsState>>,
    resolver: Arc<dyn Resolver>,
}

/// Makes callers of requests.
pub struct Authenticator {
    live: ArcSwap<Live>,
    refusals: Refusals,
}

impl Authenticator {
    /// An authenticator; without a TLS state only Unix sockets are served.
    pub fn new(tls: Option<Arc<TlsState>>, resolver: Arc<dyn Resolver>) -> Self {
        publish_expiry(tls.as_deref());
        Authenticator {
            live: ArcSwap::from_pointee(Live { generation: 0, tls, resolver }),
            refusals: Refusals::default(),
        }
    }

    /// Puts a new configuration in force, for new handshakes and for the next
    /// request of each open connection. Returns its generation.
    pub fn swap(&self, tls: Option<Arc<TlsState>>, resolver: Arc<dyn Resolver>) -> u64 {
        publish_expiry(tls.as_deref());
        let before = self.live.rcu(|live| Live {
            generation: live.generation + 1,
            tls: tls.clone(),
            resolver: resolver.clone(),
        });
        before.generation + 1
    }

    /// The TLS state in force.
    pub fn tls(&self) -> Option<Arc<TlsState>> {
        self.live.load().tls.clone()
    }

    /// The caller of a request, whose connection's `Arc<Peer>` is among its
    /// extensions. A refusal has been counted and logged.
    pub fn authenticate(&self, request: &http::request::Parts) -> Result<Caller, Unauthenticated> {
        self.authenticate_at(request, UnixTime::now())
    }

    /// [`Self::authenticate`] as at a given time.
    pub fn authenticate_at(
        &self,
        request: &http::request::Parts,
        now: UnixTime,
    ) -> Result<Caller, Unauthenticated> {
        let peer = request.extensions.get::<Arc<Peer>>();
        let outcome = match peer {
            Some(peer) => self.principal(peer, now),
            None => Err(Unauthenticated::no_peer()),
        };
        match (outcome, peer) {
            (Ok(principal), Some(peer)) => Ok(Caller {
                principal,
                service: None,
                access_key_id: None,
                origin: peer.origin.clone(),
                tls: peer.tls.clone(),
                user_agent: user_agent(&request.headers),
            }),
            (Err(refusal), _) => {
                self.refusals.note(refusal.reason, &refusal.message, peer.map(|peer| &**peer));
                Err(refusal)
            }
            (Ok(_), None) => Err(Unauthenticated::no_peer()),
        }
    }

    fn principal(&self, peer: &Peer, now: UnixTime) -> Result<Arc<Principal>, Unauthenticated> {
        let live = self.live.load();
        if let Some(verdict) = &*peer.verdict.load()
            && verdict.generation == live.generation
            && (verdict.from..verdict.until).contains(&now)
        {
            return verdict.outcome.clone();
        }
        // INVARIANT: the generation of a verdict is that of the very state
        // that made it, so a verdict stored late is void, never wrong.
        let (outcome, until) = match judge(&live, peer, now) {
            Ok((principal, until)) => (Ok(principal), until),
            Err(refusal) => (Err(refusal), seconds(now.as_secs().saturating_add(REFUSAL_CACHED_S))),
        };
        peer.verdict.store(Some(Arc::new(Verdict {
            generation: live.generation,
            from: now,
            until,
            outcome: outcome.clone(),
        })));
        outcome
    }
}

/// Counts refused requests, and logs some of them.
pub(super) struct Refusals {
    log_limit: DefaultDirectRateLimiter,
    /// Refusals not logged since the last one that was.
    unlogged: AtomicU64,
}

impl Default for Refusals {
    fn default() -> Self {
        let log_limit = RateLimiter::direct(Quota::per_second(REFUSALS_LOGGED_PER_SECOND));
        Refusals { log_limit, unlogged: AtomicU64::new(0) }
    }
}

impl Refusals {
    /// Notes one, with a word for the metric.
    pub(super) fn note(&self, reason: &'static str, message: &str, peer: Option<&Peer>) {
        metrics::counter!("strongroom_authentication_failures_total", "reason" => reason).increment(1);
        if self.log_limit.check().is_err() {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
        tracing::warn!(
            reason,
            origin = ?peer.map(Peer::origin),
            certificate_sha256 = peer.and_then(|peer| peer.tls.as_ref()).and_then(|tls| tls.certificate_sha256.as_deref()),
            unlogged,
            "a request was refused: {message}"
        );
    }
}

/// Decides who a peer is, and until when that holds.
fn judge(live: &Live, peer: &Peer, now: UnixTime) -> Result<(Arc<Principal>, UnixTime), Unauthenticated> {
    let (credentials, until) = match &peer.origin {
        Origin::Unix { uid, .. } => (vec![Credential::Uid(*uid)], seconds(u64::MAX)),
        Origin::Tcp(_) => {
            let tls = live.tls.as_ref().ok_or_else(|| Unauthenticated {
                reason: "tls_off",
                message: "This service no longer takes callers over TCP.".to_owned(),
            })?;
            let client = tls.verify(&peer.chain, now)?;
            (client.credentials, client.valid_until)
        }
    };
    let principal = live.resolver.resolve(&credentials);
    principal.map(|principal| (principal, until)).ok_or_else(|| Unauthenticated::no_principal(&peer.origin))
}

/// The user agent as the event may show it: no control characters, cut at
/// [`USER_AGENT_BYTES_MAX`].
pub(super) fn user_agent(headers: &http::HeaderMap) -> Option<String> {
    let value = headers.get(http::header::USER_AGENT)?.as_bytes();
    // Cut before the text is made, so that a huge header costs nothing.
    let value = value.get(..USER_AGENT_BYTES_MAX).unwrap_or(value);
    let mut text = String::new();
    for c in String::from_utf8_lossy(value).chars() {
        if text.len() + c.len_utf8() > USER_AGENT_BYTES_MAX {
            break;
        }
        text.push(if c.is_control() { ' ' } else { c });
    }
    Some(text)
}

/// Lets an operator see the end of the daemon's certificate coming.
fn publish_expiry(tls: Option<&TlsState>) {
    if let Some(tls) = tls {
        metrics::gauge!("strongroom_tls_certificate_not_after_seconds").set(tls.not_after().as_secs() as f64);
    }
}

fn seconds(since_epoch: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(since_epoch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::PrincipalKind;
    use std::sync::atomic::AtomicUsize;

    fn principal(name: &str) -> Arc<Principal> {
        Arc::new(Principal {
            tags: Default::default(),
            account: "111122223333".to_owned(),
            kind: PrincipalKind::User,
            name: name.to_owned(),
            arn: format!("arn:aws:iam::111122223333:user/{name}"),
            principal_id: "AIDA1".to_owned(),
            policies: Vec::new(),
        })
    }

    fn request(peer: Option<Peer>) -> http::request::Parts {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        if let Some(peer) = peer {
            parts.extensions.insert(Arc::new(peer));
        }
        parts
    }

    #[test]
    fn a_request_without_a_peer_is_refused() {
        let authenticator = Authenticator::new(None, Arc::new(|_: &[Credential]| Some(principal("alice"))));
        let refusal = authenticator.authenticate(&request(None)).unwrap_err();
        assert_eq!(refusal.reason, "no_peer");
        let status = refusal.status();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "InvalidClientTokenId");
    }

    #[test]
    fn a_tcp_peer_without_a_tls_state_is_refused() {
        let authenticator = Authenticator::new(None, Arc::new(|_: &[Credential]| Some(principal("alice"))));
        let details = TlsDetails {
            version: "TLSv1.3".to_owned(),
            cipher_suite: "TLS_AES_256_GCM_SHA384".to_owned(),
            host: None,
            certificate_sha256: None,
        };
        let peer = Peer::tls("127.0.0.1:1".parse().unwrap(), details, Vec::new());
        assert_eq!(authenticator.authenticate(&request(Some(peer))).unwrap_err().reason, "tls_off");
    }

    #[test]
    fn a_verdict_is_kept_within_its_generation_only() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counting = |name: &'static str| {
            let asked = asked.clone();
            Arc::new(move |credentials: &[Credential]| {
                asked.fetch_add(1, Ordering::Relaxed);
                (credentials == [Credential::Uid(7)]).then(|| principal(name))
            })
        };
        let authenticator = Authenticator::new(None, counting("alice"));
        let request = request(Some(Peer::unix(7, None)));
        for _ in 0..3 {
            assert_eq!(authenticator.authenticate(&request).unwrap().principal.name, "alice");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1, "the verdict was not kept");
        assert_eq!(authenticator.swap(None, counting("bob")), 1);
        assert_eq!(authenticator.authenticate(&request).unwrap().principal.name, "bob");
        authenticator.swap(None, Arc::new(|_: &[Credential]| None));
        assert_eq!(authenticator.authenticate(&request).unwrap_err().reason, "no_principal");
    }

    #[test]
    fn a_clock_that_was_set_back_makes_a_verdict_void() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let authenticator = Authenticator::new(
            None,
            Arc::new(move |_: &[Credential]| {
                counted.fetch_add(1, Ordering::Relaxed);
                Some(principal("alice"))
            }),
        );
        let request = request(Some(Peer::unix(7, None)));
        authenticator.authenticate_at(&request, seconds(1000)).unwrap();
        authenticator.authenticate_at(&request, seconds(999)).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_user_agent_is_cut_and_cleaned() {
        let of = |value: &[u8]| {
            let mut headers = http::HeaderMap::new();
            headers.insert(http::header::USER_AGENT, http::HeaderValue::from_bytes(value).unwrap());
            user_agent(&headers).unwrap()
        };
        assert_eq!(of(b"grpc-python/1.80"), "grpc-python/1.80");
        assert_eq!(of(b"a\tb"), "a b");
        // Each byte that is not UTF-8 becomes three.
        assert!(of(&[0xff; 4000]).len() <= USER_AGENT_BYTES_MAX);
        assert_eq!(of(&[b'x'; 4000]).len(), USER_AGENT_BYTES_MAX);
        assert_eq!(user_agent(&http::HeaderMap::new()), None);
    }
}
