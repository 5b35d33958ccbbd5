//! AWS JSON 1.1, made from the list of operations: X-Amz-Target names one, SigV4
//! says who asks.
//!
//! ```text
//! POST / → target → body → signature → Caller → the operation → JSON, x-amzn-RequestId
//!           404      413     400: counted and logged; from here on: an event
//! ```
//! The Region is picked by the scope of the signature.

mod keys;
mod refused;
mod rest;
mod routes;
mod sigv4;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

pub use keys::AccessKeys;

use self::keys::AccessKey;
use self::refused::Refused;
use self::routes::{Route, Routes};
use super::delegation::acting;
use super::grpc::CallLimits;
use super::identity::{Peer, Refusals, user_agent};
use crate::access_keys;
use crate::app::App;
use crate::caller::Caller;

/// The header that names an operation.
const TARGET: &str = "x-amz-target";

/// The Region that clients sign for where a service is one for all Regions.
const GLOBAL_REGION: &str = "us-east-1";

/// What the AWS listener serves.
#[derive(Clone)]
pub struct Front(Arc<Shared>);

struct Shared {
    app: Arc<App>,
    routes: Routes,
    keys: ArcSwap<AccessKeys>,
    limits: Arc<ArcSwap<CallLimits>>,
    refusals: Refusals,
}

impl Front {
    /// A front for every Region of a daemon.
    pub fn new(app: Arc<App>, keys: AccessKeys, limits: Arc<ArcSwap<CallLimits>>) -> Self {
        Front(Arc::new(Shared {
            app,
            routes: Routes::new(),
            keys: ArcSwap::from_pointee(keys),
            limits,
            refusals: Refusals::default(),
        }))
    }

    /// Puts other access keys in force, from the next request on.
    pub fn set_keys(&self, keys: AccessKeys) {
        self.0.keys.store(Arc::new(keys));
    }
}

impl tower::Service<Request<Incoming>> for Front {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let parts = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            Ok(parts.serve(&head, body).await.unwrap_or_else(|refused| {
                parts.refusals.note(refused.reason, &refused.message, peer(&head).map(|peer| &**peer));
                refused.answer()
            }))
        })
    }
}

impl Shared {
    async fn serve(&self, head: &Parts, body: Incoming) -> Result<Response<Full<Bytes>>, Refused> {
        let limits = **self.limits.load();
        let arrived = Instant::now();
        let route = self.route(head)?;
        let body = read(body, limits, arrived).await?;
        let claim = {
            let regions = |region: &str| self.region(route, region).is_some();
            let scope = sigv4::Scope { service: route.service.signing_name, regions: &regions };
            sigv4::Claim::of(head, &scope, now_s())?
        };
        let key = self.access_key(claim.access_key_id(), arrived + limits.request_timeout).await?;
        let verified = claim.verify(head, &body, key)?;
        let peer = peer(head).ok_or_else(Refused::no_peer)?;
        let region = self.region(route, &verified.region).ok_or_else(|| Refused::region(&verified.region))?;
        let caller = Caller {
            principal: verified.principal,
            service: None,
            access_key_id: Some(verified.access_key_id),
            origin: peer.origin().clone(),
            tls: peer.tls_details().cloned(),
            user_agent: user_agent(&head.headers),
        };
        let body = match head.uri.path() {
            "/" => body,
            _ => rest::body(head.uri.query().unwrap_or_default(), body),
        };
        let deadline = arrived + route.timeout.unwrap_or(limits.request_timeout);
        let (caller, acting) = acting(caller, &head.headers, &self.app.directory.load());
        let body = acting.map(|()| body);
        Ok((route.serve)(self.app.clone(), region.clone(), caller, body, deadline).await)
    }

    /// The access key of an id: the configuration's, or one that is sealed in the
    /// store.
    async fn access_key(&self, id: &str, deadline: Instant) -> Result<AccessKey, Refused> {
        let configured = self.keys.load().get(id);
        if let Some(key) = configured {
            return Ok(key);
        }
        match access_keys::find(&self.app, id, deadline).await {
            Ok(Some((principal, secret))) => Ok(AccessKey::new(principal, id, &secret)),
            Ok(None) => Err(Refused::unrecognized()),
            Err(error) => Err(Refused::no_key(&error)),
        }
    }

    /// The Region that a signature's scope asks an operation in.
    fn region(&self, route: &Route, name: &str) -> Option<&Arc<str>> {
        let global = route.service.is_global && name == GLOBAL_REGION;
        self.app.key_stores.region(name).or_else(|| global.then_some(&self.app.region))
    }

    fn route(&self, head: &Parts) -> Result<&Route, Refused> {
        if head.method != http::Method::POST {
            return Err(Refused::not_found());
        }
        match head.uri.path() {
            "/" => (),
            path => return self.routes.get_rest(path).ok_or_else(Refused::not_found),
        }
        let mut targets = head.headers.get_all(TARGET).iter();
        let target = match (targets.next(), targets.next()) {
            (Some(target), None) => target.to_str().unwrap_or_default(),
            _ => "",
        };
        self.routes.get(target).ok_or_else(|| Refused::unknown_operation(target))
    }
}

fn peer(head: &Parts) -> Option<&Arc<Peer>> {
    head.extensions.get()
}

fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// The body, within the limits of its length and its time.
async fn read(body: Incoming, limits: CallLimits, arrived: Instant) -> Result<Bytes, Refused> {
    let read = Limited::new(body, limits.message_bytes_max).collect();
    match timeout_at(arrived + limits.request_timeout, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refused::too_large(limits.message_bytes_max)),
        Ok(Err(_)) => Err(Refused::cut_off()),
        Err(_) => Err(Refused::too_slow()),
    }
}
