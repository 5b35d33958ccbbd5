//! `strongroom dev --members 3`: HSMs that anybody can take away and put back,
//! and what the daemon says of it meanwhile.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use strongroom::proto::hsm::{ListMembersRequest, MemberState};
use strongroom::proto::kms::KeySpec;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::members::runbook;
use crate::support::{Client, Daemon, Instance, eventually, named};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;
/// What a caller may be told while no HSM serves.
const OUTAGE: [&str; 3] = ["KeyUnavailableException", "KMSInternalException", "DependencyTimeoutException"];

pub fn instance(members: &str) -> Instance {
    let mut instance = Instance::new();
    instance.argue("--members");
    instance.argue(members);
    instance.set("STRONGROOM_LIMITS__REQUEST_TIMEOUT_MS", "4000");
    instance.set("STRONGROOM_HSM__REINITIALIZE_INTERVAL_MS", "500");
    instance.set("STRONGROOM_HSM__PROBE_INTERVAL_MS", "200");
    instance
}

async fn health(client: &Client, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(client.channel()).check(request).await.unwrap().into_inner().status()
}

async fn members(client: &Client) -> Vec<(String, MemberState)> {
    let listed = client.call(ListMembersRequest::default()).await.unwrap().members;
    listed.into_iter().map(|member| (member.uri.clone().unwrap(), member.state())).collect()
}

pub async fn serving(client: &Client, count: usize) {
    eventually(&format!("{count} serve"), async || {
        members(client).await.iter().filter(|(_, state)| *state == MemberState::Serving).count() == count
    })
    .await;
}

/// DIR/hsm/N, and where it is while it is away.
fn places(instance: &Instance, number: usize) -> (PathBuf, PathBuf) {
    (instance.path(&format!("hsm/{number}")), instance.beside(&format!("away-{number}")))
}

pub fn take(instance: &Instance, number: usize) {
    let (place, away) = places(instance, number);
    fs::rename(place, away).unwrap();
}

pub fn put_back(instance: &Instance, number: usize) {
    let (place, away) = places(instance, number);
    fs::rename(away, place).unwrap();
}

async fn ready(daemon: &Daemon) -> Value {
    serde_json::from_str(&daemon.page("/readyz").await.1).unwrap()
}

async fn metric(daemon: &Daemon, line: &str) -> bool {
    daemon.page("/metrics").await.1.lines().any(|found| found == line)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hsms_are_taken_away_and_put_back_while_it_serves() {
    let instance = instance("3");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    serving(&client, 3).await;
    let printed = String::from_utf8(instance.printed()).unwrap();
    let uris: Vec<String> = members(&client).await.into_iter().map(|(uri, _)| uri).collect();
    for (number, uri) in (1..).zip(&uris) {
        let line = format!("HSM {number}: {} {uri}", instance.path(&format!("hsm/{number}")).display());
        assert!(printed.lines().any(|found| found == line), "{line} in {printed}");
    }
    let key = client.create(SYMMETRIC).await.unwrap();
    let blob = client.encrypt(&key, b"secret").await.unwrap();
    assert_eq!(ready(&daemon).await["degraded"], false);
    eventually("all is well", async || health(&client, "redundancy").await == ServingStatus::Serving).await;

    // Two of three: the service goes on, and says which are out.
    for number in [2, 1] {
        take(&instance, number);
    }
    serving(&client, 1).await;
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    client.use_key(&key, SYMMETRIC).await.unwrap();
    client.create(SYMMETRIC).await.unwrap();
    let body = ready(&daemon).await;
    assert_eq!((&body["ready"], &body["degraded"]), (&Value::Bool(true), &Value::Bool(true)), "{body}");
    let check = body["checks"].as_array().unwrap().iter().find(|check| check["name"] == "hsm").unwrap();
    for uri in &uris[..2] {
        assert!(check["detail"].as_str().unwrap().contains(uri), "{check}");
        eventually("its health turns", async || health(&client, uri).await == ServingStatus::NotServing)
            .await;
        let line = format!("strongroom_hsm_member_serving{{member=\"{uri}\"}} 0");
        assert!(metric(&daemon, &line).await, "{line}");
    }
    eventually("redundancy is lost", async || {
        health(&client, "redundancy").await == ServingStatus::NotServing
    })
    .await;
    for service in ["", "strongroom.kms.v1.KeyManagementService", &uris[2]] {
        assert_eq!(health(&client, service).await, ServingStatus::Serving, "{service}");
    }
    for line in ["strongroom_degraded 1", "strongroom_hsm_members_serving{cluster=\"installation\"} 1"] {
        eventually(line, async || metric(&daemon, line).await).await;
    }

    // All: clear errors, which cost no more than the deadline.
    take(&instance, 3);
    daemon.readyz(503).await;
    for _ in 0..3 {
        let refused = client.encrypt(&key, b"x").await.unwrap_err();
        assert!(OUTAGE.contains(&refused.exception.as_str()), "{refused:?}");
    }
    let refused = client.create(SYMMETRIC).await.unwrap_err();
    assert!(OUTAGE.contains(&refused.exception.as_str()), "{refused:?}");

    // One after another comes back by itself.
    for (number, count) in [(2, 1), (3, 2), (1, 3)] {
        put_back(&instance, number);
        serving(&client, count).await;
        eventually("it serves", async || client.decrypt(&blob).await.is_ok_and(|it| it == b"secret")).await;
    }
    daemon.readyz(200).await;
    eventually("nothing is out", async || ready(&daemon).await["degraded"] == false).await;
    eventually("strongroom_degraded 0", async || metric(&daemon, "strongroom_degraded 0").await).await;
    client.use_key(&key, SYMMETRIC).await.unwrap();

    for uri in &uris {
        for (name, counts) in [("HsmMemberLost", 0..3), ("HsmMemberRecovered", 1..4)] {
            eventually(&format!("{name} of {uri}"), async || {
                named(&client.events().await, name).iter().any(|event| {
                    let details = &event["serviceEventDetails"];
                    details["member"] == uri.as_str()
                        && details["cluster"] == "installation"
                        && details["members"] == 3
                        && counts.contains(&details["membersServing"].as_i64().unwrap())
                })
            })
            .await;
        }
    }
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_hsms_join_an_instance_that_has_keys_and_a_start_without_one_goes_on() {
    let mut instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(SYMMETRIC).await.unwrap();
    let blob = client.encrypt(&key, b"secret").await.unwrap();
    daemon.terminate().await;

    // A process that dies while they join is made good by the next.
    instance.argue("--members=3");
    let mut daemon = instance.spawn();
    let folder = instance.path("hsm/member-3");
    eventually("it is made", async || folder.exists() || !daemon.is_running()).await;
    drop(daemon);
    let daemon = instance.start().await;
    let client = daemon.client().await;
    serving(&client, 3).await;
    let joined = client.events().await;
    assert!(!named(&joined, "AddMember").is_empty());
    daemon.terminate().await;

    take(&instance, 1);
    let daemon = instance.start().await;
    let client = daemon.client().await;
    serving(&client, 2).await;
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    assert!(!instance.path("hsm/1").exists(), "what was taken away is not made again");
    // What an operator removed stays removed.
    let uri = members(&client).await.remove(1).0;
    let removed = instance.cli(&["hsm", "member", "remove", "--token", &uri]);
    assert!(removed.status.success(), "{removed:?}");
    put_back(&instance, 1);
    serving(&client, 2).await;
    daemon.terminate().await;
    let daemon = instance.start().await;
    serving(&daemon.client().await, 2).await;
    assert!(!members(&daemon.client().await).await.iter().any(|(member, _)| *member == uri));
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_hsm_is_replaced_in_one_step_by_the_runbook() {
    let instance = instance("2");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    serving(&client, 2).await;
    let uris: Vec<String> = members(&client).await.into_iter().map(|(uri, _)| uri).collect();
    let key = client.create(SYMMETRIC).await.unwrap();
    let blob = client.encrypt(&key, b"secret").await.unwrap();
    take(&instance, 2);
    serving(&client, 1).await;

    // Dev's HSM for key stores is empty.
    let spare = fs::read_to_string(instance.path("key-store/uri")).unwrap();
    let (config, so_pin) = (instance.path("strongroom.toml"), instance.path("hsm/so.pin"));
    let names = |member: &'static str| {
        let member = if member == "dead" { &uris[1] } else { &uris[0] };
        [
            ("CONFIG", config.to_str().unwrap()),
            ("MEMBER", member.as_str()),
            ("MEMBER_MODULE", "softhsm2"),
            ("MEMBER_PIN", strongroom::commands::dev_setup::USER_PIN),
            ("TOKEN", spare.as_str()),
            ("MODULE", "key-store"),
            ("PIN", "key-store"),
            ("SO_PIN_FILE", so_pin.to_str().unwrap()),
        ]
    };
    let early = runbook(&instance, "hsm member replace", &names("dead"));
    assert!(String::from_utf8_lossy(&early.stderr).contains("strongroom hsm bring"), "{early:?}");
    let brought = runbook(&instance, "hsm bring", &names("alive"));
    assert!(brought.status.success(), "{brought:?}");
    let replaced = runbook(&instance, "hsm member replace", &names("dead"));
    assert!(replaced.status.success(), "{replaced:?}");
    let expected = [(uris[0].clone(), MemberState::Serving), (spare.clone(), MemberState::Serving)];
    eventually("it took its place", async || members(&client).await == expected).await;

    // The new one alone does it all.
    take(&instance, 1);
    serving(&client, 1).await;
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    client.create(SYMMETRIC).await.unwrap();
    put_back(&instance, 1);
    serving(&client, 2).await;
    let checked = runbook(&instance, "hsm member check", &names("alive"));
    assert!(checked.status.success(), "{checked:?}");
    let events = client.events().await;
    assert!(named(&events, "ReplaceMember").iter().any(|event| event["errorCode"].is_null()));
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}
