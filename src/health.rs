//! Whether the daemon serves: for load balancers (grpc.health.v1), and for
//! operators (/readyz, /metrics).

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::operators::{Check, Readiness};
use crate::app::App;
use crate::hsm::{Cluster, MemberHealth, MemberState};
use crate::jobs::members::INSTALLATION;
use crate::key_stores::KeyStores;
use crate::service::Service;

const INTERVAL: Duration = Duration::from_millis(500);

/// What the ids of custom key stores begin with.
const KEY_STORE_PREFIX: &str = "cks-";

/// The service of grpc.health.v1 that serves while every HSM does.
const REDUNDANCY: &str = "redundancy";

/// The answer to /readyz: the store takes work, and a member serves. That a
/// custom key store, or another Region, has no member is no reason to take the
/// daemon out.
pub struct Ready(pub Arc<App>);

impl Readiness for Ready {
    fn check(&self) -> Vec<Check> {
        let accepts = self.0.store.accepts_work();
        let disk = Check {
            name: "disk".to_owned(),
            ok: accepts,
            degraded: !accepts,
            detail: if accepts {
                String::new()
            } else {
                "free space is below store.min_free_bytes".to_owned()
            },
        };
        let key_stores = &self.0.key_stores;
        let installation = Strength::of(key_stores.installation());
        let mut checks = vec![disk, installation.check("hsm".to_owned(), installation.serving > 0)];
        for (id, cluster) in beside_installation(key_stores) {
            checks.push(Strength::of(&cluster).check(format!("hsm/{id}"), true));
        }
        checks
    }

    fn members(&self) -> HashSet<String> {
        let clusters = self.0.key_stores.clusters();
        clusters
            .iter()
            .flat_map(|cluster| cluster.watch().borrow().clone())
            .map(|member| member.uri)
            .collect()
    }
}

/// The other clusters: of Regions that have their own, by the Region, and of
/// custom key stores, by the id.
fn beside_installation(key_stores: &KeyStores) -> impl Iterator<Item = (String, Arc<Cluster>)> {
    key_stores.regional().into_iter().skip(1).chain(key_stores.in_use())
}

/// How many of a cluster's members serve.
struct Strength {
    members: Vec<MemberHealth>,
    serving: usize,
}

impl Strength {
    fn of(cluster: &Cluster) -> Strength {
        let members = cluster.watch().borrow().clone();
        let serving = members.iter().filter(|member| member.state == MemberState::Serving).count();
        Strength { members, serving }
    }

    /// Whether one is out that no operator took out.
    fn is_degraded(&self) -> bool {
        let counts = |member: &&MemberHealth| member.state != MemberState::Maintenance;
        self.serving < self.members.iter().filter(counts).count().max(1)
    }

    fn check(&self, name: String, ok: bool) -> Check {
        let down: Vec<String> = self
            .members
            .iter()
            .filter(|member| member.state != MemberState::Serving)
            .map(|member| {
                let reason = member.reason.as_deref().unwrap_or("not attached yet");
                format!("{} is {:?}: {reason}", member.uri, member.state)
            })
            .collect();
        let detail = format!("{} of {} members serve. {}", self.serving, self.members.len(), down.join("; "));
        Check { name, ok, degraded: self.is_degraded(), detail: detail.trim_end().to_owned() }
    }

    fn measure(&self, cluster: &str) {
        gauge!("strongroom_hsm_members", "cluster" => cluster.to_owned()).set(self.members.len() as f64);
        gauge!("strongroom_hsm_members_serving", "cluster" => cluster.to_owned()).set(self.serving as f64);
    }
}

/// Keeps grpc.health.v1 and the gauges up to date: the service as a whole, each
/// gRPC service, each connected custom key store by its id and each Region with
/// HSMs of its own by its name, each member by its
/// token's URI, and whether none is out.
pub async fn report(app: Arc<App>, reporter: HealthReporter, stop: CancellationToken) {
    let mut known = BTreeSet::new();
    loop {
        let checks = Ready(app.clone()).check();
        let ready = checks.iter().all(|check| check.ok);
        for service in Service::ALL {
            reporter.set_service_status(service.grpc(), status(ready)).await;
        }
        reporter.set_service_status("", status(ready)).await;
        let degraded = checks.iter().any(|check| check.degraded);
        reporter.set_service_status(REDUNDANCY, status(!degraded)).await;
        gauge!("strongroom_degraded").set(f64::from(u8::from(degraded)));
        Strength::of(app.key_stores.installation()).measure(INSTALLATION);
        let mut present = BTreeSet::new();
        for (id, cluster) in beside_installation(&app.key_stores) {
            let strength = Strength::of(&cluster);
            strength.measure(&id);
            reporter.set_service_status(&id, status(strength.serving > 0)).await;
            present.insert(id);
        }
        let clusters = app.key_stores.clusters();
        for member in clusters.iter().flat_map(|cluster| cluster.watch().borrow().clone()) {
            reporter.set_service_status(&member.uri, status(member.state == MemberState::Serving)).await;
            present.insert(member.uri);
        }
        // A key store that was disconnected, a member that was removed.
        for gone in known.difference(&present) {
            reporter.set_service_status(gone, ServingStatus::NotServing).await;
            if gone.starts_with(KEY_STORE_PREFIX) {
                Strength { members: Vec::new(), serving: 0 }.measure(gone);
            }
        }
        known = present;
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
