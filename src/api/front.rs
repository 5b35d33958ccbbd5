//! What every gRPC listener serves: authentication, then the API; health and
//! reflection besides.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use tonic_health::server::HealthReporter;

use super::grpc::{CallLimits, Routes};
use super::identity::Authenticator;
use crate::app::App;

/// The service of a gRPC listener.
#[derive(Clone)]
pub struct Front {
    app: Arc<App>,
    authenticator: Arc<Authenticator>,
    routes: Arc<Routes>,
    others: tonic::service::Routes,
    limits: Arc<ArcSwap<CallLimits>>,
}

impl Front {
    /// It, and what tells its health.
    pub fn new(
        app: Arc<App>,
        authenticator: Arc<Authenticator>,
        limits: Arc<ArcSwap<CallLimits>>,
    ) -> (HealthReporter, Front) {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let mut others = tonic::service::Routes::new(health);
        // Older clients ask by the older name.
        match (reflection().build_v1(), reflection().build_v1alpha()) {
            (Ok(v1), Ok(v1alpha)) => others = others.add_service(v1).add_service(v1alpha),
            (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "reflection is not offered"),
        }
        let routes = Arc::new(Routes::new());
        (reporter, Front { app, authenticator, routes, others: others.prepare(), limits })
    }
}

impl tower::Service<http::Request<Incoming>> for Front {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let (head, body) = request.into_parts();
        let caller = match self.authenticator.authenticate(&head) {
            Ok(caller) => caller,
            Err(refused) => return Box::pin(async move { Ok(refused.status().into_http()) }),
        };
        let request = http::Request::from_parts(head, tonic::body::Body::new(body));
        if self.routes.contains(request.uri().path()) {
            let served = self.routes.serve(self.app.clone(), caller, **self.limits.load(), request);
            return Box::pin(async move {
                match served {
                    Some(answer) => Ok(answer.await),
                    None => Ok(tonic::Status::unimplemented("no such operation").into_http()),
                }
            });
        }
        let mut others = self.others.clone();
        Box::pin(async move { tower::Service::call(&mut others, request).await })
    }
}
