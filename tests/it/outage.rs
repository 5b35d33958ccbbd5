//! A token that goes away and comes back, and one that comes back as another.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use strongroom::proto::hsm::{ListMembersRequest, Member, MemberState};
use strongroom::proto::kms::KeySpec;
use tokio::task::JoinSet;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{Client, Daemon, Dice, Instance, Refusal, eventually};

const WORKERS: u64 = 3;
/// What a caller may be told while no HSM serves.
const OUTAGE: [&str; 3] = ["KeyUnavailableException", "KMSInternalException", "DependencyTimeoutException"];
const EDWARDS: KeySpec = KeySpec::EccNistEdwards25519;
const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;
/// How long the daemon works on a request; less than what the client calls hanging.
const REQUEST_TIMEOUT_MS: &str = "4000";

fn instance() -> Instance {
    let mut instance = Instance::new();
    instance.set("STRONGROOM_LIMITS__REQUEST_TIMEOUT_MS", REQUEST_TIMEOUT_MS);
    // The product waits longer between two tries with a module that did not come back.
    instance.set("STRONGROOM_HSM__REINITIALIZE_INTERVAL_MS", "500");
    instance.set("STRONGROOM_HSM__PROBE_INTERVAL_MS", "200");
    instance
}

async fn health(client: &Client, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(client.channel()).check(request).await.unwrap().into_inner().status()
}

async fn member(client: &Client) -> Member {
    client.call(ListMembersRequest::default()).await.unwrap().members.remove(0)
}

/// What the load has seen so far.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answers: AtomicUsize,
    refusals: AtomicUsize,
}

/// Uses keys until it is stopped; every call is answered in one way or another.
async fn load(client: Client, symmetric: String, edwards: String, mut dice: Dice, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        let result: Result<(), Refusal> = match dice.roll(4) {
            0 => client.use_key(&symmetric, SYMMETRIC).await,
            1 => client.use_key(&edwards, EDWARDS).await,
            2 => client.create(SYMMETRIC).await.map(|_| ()),
            _ => client.create(EDWARDS).await.map(|_| ()),
        };
        match result {
            Ok(()) => seen.answers.fetch_add(1, Ordering::Relaxed),
            Err(refusal) => {
                assert!(OUTAGE.contains(&refusal.exception.as_str()), "{refusal:?}");
                seen.refusals.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

async fn more(what: &str, count: &AtomicUsize) {
    let before = count.load(Ordering::Relaxed);
    eventually(what, async || count.load(Ordering::Relaxed) > before + 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_goes_away_and_comes_back_is_survived() {
    let instance = instance();
    let mut daemon = instance.start().await;
    let client = daemon.client().await;
    let uri = member(&client).await.uri.unwrap();
    let (symmetric, edwards) =
        (client.create(SYMMETRIC).await.unwrap(), client.create(EDWARDS).await.unwrap());
    let blob = client.encrypt(&symmetric, b"before the outage").await.unwrap();
    let seen = Arc::new(Seen::default());
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let (client, dice) = (daemon.client().await, Dice::new(worker));
        workers.spawn(load(client, symmetric.clone(), edwards.clone(), dice, seen.clone()));
    }
    more("the load is served", &seen.answers).await;

    let (token, away) = (instance.path("hsm/1"), instance.path("hsm/away"));
    fs::rename(&token, &away).unwrap();
    let body = daemon.readyz(503).await;
    assert!(body.contains(&uri), "{body}");
    more("callers are refused", &seen.refusals).await;
    for service in ["", "strongroom.kms.v1.KeyManagementService", &uri] {
        eventually("health turns", async || health(&client, service).await == ServingStatus::NotServing)
            .await;
    }
    let lost = member(&client).await;
    assert_eq!(lost.state(), MemberState::Lost, "{lost:?}");
    assert!(!lost.reason().is_empty());
    assert_eq!(daemon.page("/livez").await.0, 200);
    // What needs no HSM goes on, and is on the record.
    client.state(&symmetric).await.unwrap();

    fs::rename(&away, &token).unwrap();
    daemon.readyz(200).await;
    more("the load is served again", &seen.answers).await;
    for service in ["", "strongroom.kms.v1.KeyManagementService", &uri] {
        eventually("health returns", async || health(&client, service).await == ServingStatus::Serving).await;
    }
    seen.stop.store(true, Ordering::Relaxed);
    workers.join_all().await;
    assert!(daemon.is_running());

    assert_eq!(client.decrypt(&blob).await.unwrap(), b"before the outage");
    for (key, spec) in [(&symmetric, SYMMETRIC), (&edwards, EDWARDS)] {
        client.use_key(key, spec).await.unwrap();
    }
    assert_eq!(member(&client).await.state(), MemberState::Serving);
    let events = client.events().await;
    for name in ["HsmMemberLost", "HsmMemberRecovered"] {
        let told = events.iter().find(|event| event["eventName"] == name);
        assert!(told.is_some_and(|event| event.to_string().contains(&uri)), "{name}: {told:?}");
    }
    assert_eq!(client.findings().await, Vec::<String>::new());
}

/// Removes every object of the token: the same token, by label, serial and
/// PIN, without its keys.
fn wipe(token: &Path) {
    let folder = fs::read_dir(token).unwrap().next().unwrap().unwrap().path();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("token.") {
            fs::remove_file(path).unwrap();
        }
    }
}

/// Puts another token of the same label and PINs in place.
fn replace(instance: &Instance, token: &Path) {
    fs::create_dir(token).unwrap();
    let read = |name: &str| fs::read_to_string(instance.path(name)).unwrap();
    let made = Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", instance.path("hsm/softhsm2.conf"))
        .args(["--init-token", "--free", "--label", "strongroom-dev"])
        .args(["--so-pin", &read("hsm/so.pin"), "--pin", &read("hsm/user.pin")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Every object below a folder with its bytes; not the token's own, in which
/// SoftHSM2 counts logins, nor its lock and generation.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else if path.extension().is_some_and(|kind| kind == "object") && !path.ends_with("token.object") {
            files.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

/// The daemon refuses what is in the token folder, says so, and leaves it alone.
async fn is_refused(instance: &Instance, daemon: &Daemon, client: &Client, key: &str) {
    let before = contents(&instance.path("hsm/1"));
    let body = daemon.readyz(503).await;
    let uri = member(client).await.uri.unwrap();
    assert!(body.contains(&uri), "{body}");
    let reason = member(client).await.reason.unwrap();
    assert!(!reason.is_empty());
    let listed = instance.cli(&["hsm", "list", "-o", "json"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("REFUSED") || listed.contains("LOST"), "{listed}");
    for spec in [SYMMETRIC, EDWARDS] {
        let refused = client.create(spec).await.unwrap_err();
        assert!(OUTAGE.contains(&refused.exception.as_str()), "{refused:?}");
    }
    let refused = client.encrypt(key, b"x").await.unwrap_err();
    assert!(OUTAGE.contains(&refused.exception.as_str()), "{refused:?}");
    assert_eq!(contents(&instance.path("hsm/1")), before, "the token was written to");
}

/// Takes the token from a running daemon, gives it another, and in the end its
/// own again.
async fn comes_back_as(other: impl Fn(&Instance, &Path)) {
    let instance = instance();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(SYMMETRIC).await.unwrap();
    let (token, away) = (instance.path("hsm/1"), instance.path("hsm/away"));
    let copied = Command::new("cp").arg("-a").args([&token, &away]).status().unwrap();
    assert!(copied.success());
    fs::rename(&token, instance.path("hsm/old")).unwrap();
    daemon.readyz(503).await;
    other(&instance, &token);
    is_refused(&instance, &daemon, &client, &key).await;

    // The same after a restart.
    daemon.terminate().await;
    let daemon = instance.start().await;
    let client = daemon.client().await;
    is_refused(&instance, &daemon, &client, &key).await;

    fs::remove_dir_all(&token).unwrap();
    fs::rename(&away, &token).unwrap();
    daemon.readyz(200).await;
    client.use_key(&key, SYMMETRIC).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_folder_is_no_token() {
    comes_back_as(|_, token| fs::create_dir(token).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_token_is_refused() {
    comes_back_as(replace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_token_is_refused() {
    comes_back_as(|instance, token| {
        fs::rename(instance.path("hsm/old"), token).unwrap();
        wipe(token);
    })
    .await;
}
