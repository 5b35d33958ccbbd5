//! The ceiling of the transport: a bare tonic server over the same mutual TLS,
//! in a process of its own, that answers with as many bytes as its path says,
//! and as a [`Bare`] daemon does the work before.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::bare::Bare;
use crate::load::Raw;
use crate::raw::Function;

/// Where an answer of so many bytes is got.
pub fn path(bytes: usize) -> anyhow::Result<PathAndQuery> {
    Ok(PathAndQuery::try_from(format!("/{}/{bytes}", Echo::NAME))?)
}

/// Where a function's work is done, and an answer of so many bytes got.
pub fn path_of(function: Function, bytes: usize) -> anyhow::Result<PathAndQuery> {
    let place = Function::ALL.iter().position(|(_, other)| *other == function);
    let place = place.ok_or_else(|| anyhow::anyhow!("{function:?} is none of the HSM's"))?;
    Ok(PathAndQuery::try_from(format!("/{}/{place}/{bytes}", Echo::NAME))?)
}

/// Serves until the process ends; prints the address as `strongroom` does.
pub async fn serve(pki: &Path, bare: Option<Bare>) -> anyhow::Result<()> {
    let read = |name: &str| std::fs::read(pki.join(name));
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read("server.pem")?, read("server.key")?))
        .client_ca_root(Certificate::from_pem(read("ca.pem")?));
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
    println!("echo ready: gRPC https://{}", incoming.local_addr()?);
    std::io::stdout().flush()?;
    let echo = Echo(bare.map(Arc::new));
    Server::builder().tls_config(tls)?.add_service(echo).serve_with_incoming(incoming).await?;
    Ok(())
}

#[derive(Clone)]
struct Echo(Option<Arc<Bare>>);

impl NamedService for Echo {
    const NAME: &'static str = "echo";
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut path = request.uri().path().rsplit('/').map(str::parse);
        let bytes = path.next().and_then(Result::ok).unwrap_or(0);
        let place: Option<usize> = path.next().and_then(Result::ok);
        let function = place.and_then(|place| Function::ALL.get(place)).map(|(_, function)| *function);
        let work = self.0.clone().zip(function);
        Box::pin(async move { Ok(Grpc::new(Raw).unary(Bytesful { bytes, work }, request).await) })
    }
}

struct Bytesful {
    bytes: usize,
    work: Option<(Arc<Bare>, Function)>,
}

impl UnaryService<Bytes> for Bytesful {
    type Response = Bytes;
    type Future = Answer<Result<Response<Bytes>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        let answer = Response::new(Bytes::from(vec![0x5a; self.bytes]));
        let work = self.work.take();
        Box::pin(async move {
            if let Some((bare, function)) = work {
                bare.call(function).await.map_err(|error| Status::internal(error.to_string()))?;
            }
            Ok(answer)
        })
    }
}
