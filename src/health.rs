//! Whether the daemon serves: for load balancers (grpc.health.v1), and for
//! operators (/readyz).

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::operators::{Check, Readiness};
use crate::app::App;
use crate::hsm::MemberState;
use crate::operation::Service;

const INTERVAL: Duration = Duration::from_millis(500);

/// The answer to /readyz: the store takes work, and a member serves.
pub struct Ready(pub Arc<App>);

impl Readiness for Ready {
    fn check(&self) -> Vec<Check> {
        let accepts = self.0.store.accepts_work();
        let mut checks = vec![Check {
            name: "disk".to_owned(),
            ok: accepts,
            detail: if accepts {
                String::new()
            } else {
                "free space is below store.min_free_bytes".to_owned()
            },
        }];
        let members = self.0.key_stores.installation().watch().borrow().clone();
        let serving = members.iter().filter(|member| member.state == MemberState::Serving).count();
        let down: Vec<String> = members
            .iter()
            .filter(|member| member.state != MemberState::Serving)
            .map(|member| {
                format!(
                    "{} is {:?}: {}",
                    member.uri,
                    member.state,
                    member.reason.as_deref().unwrap_or("not attached yet")
                )
            })
            .collect();
        checks.push(Check {
            name: "hsm".to_owned(),
            ok: serving > 0,
            detail: format!("{serving} of {} members serve. {}", members.len(), down.join("; "))
                .trim_end()
                .to_owned(),
        });
        checks
    }
}

/// Keeps grpc.health.v1 up to date: the service as a whole, each gRPC service,
/// and each member by its token's URI.
pub async fn report(app: Arc<App>, reporter: HealthReporter, stop: CancellationToken) {
    loop {
        let ready = Ready(app.clone()).check().iter().all(|check| check.ok);
        for service in Service::ALL {
            reporter.set_service_status(service.grpc(), status(ready)).await;
        }
        reporter.set_service_status("", status(ready)).await;
        let clusters = app.key_stores.clusters();
        for member in clusters.iter().flat_map(|cluster| cluster.watch().borrow().clone()) {
            reporter.set_service_status(member.uri, status(member.state == MemberState::Serving)).await;
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => (),
            () = stop.cancelled() => break,
        }
    }
    reporter.set_service_status("", ServingStatus::NotServing).await;
}

fn status(serves: bool) -> ServingStatus {
    if serves { ServingStatus::Serving } else { ServingStatus::NotServing }
}
