//! Too little room on the disk: no new work, nothing untrue, and on again.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use strongroom::proto::hsm::{AddMemberRequest, ListMembersRequest};
use strongroom::proto::kms::{KeySpec, ListKeysRequest};

use crate::key_stores::house::{self, Hsm};
use crate::members::{done, runbook};
use crate::support::{Client, Daemon, Instance, LONG, eventually};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;
const DISK: &str = "size=16m,mode=0700";
const MIN_FREE_BYTES: &str = "2097152";
const MORE_THAN_ANY_DISK: &str = "4611686018427387904";

/// A small file system, until it is dropped.
pub struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Result<Disk, String> {
        fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&at).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Disk(at)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes all the room but `left` bytes.
    pub fn fill(&self, left: u64) {
        let free = rustix::fs::statvfs(&self.0).unwrap();
        let bytes = (free.f_bavail * free.f_frsize).saturating_sub(left);
        match fs::write(self.ballast(), vec![0x5a; bytes as usize]) {
            // The daemon took some of it meanwhile.
            Err(error) if error.kind() == ErrorKind::StorageFull => {}
            written => written.unwrap(),
        }
    }

    pub fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// An instance whose data are on a disk of their own; none where none can be
/// mounted. The token stays where there is room: a member of its own would
/// notice first.
pub fn on_a_disk() -> Option<(Instance, Disk)> {
    let mut instance = Instance::new();
    let disk = Disk::mount(instance.beside("disk"))
        .inspect_err(|why| eprintln!("skipped: this test needs a tmpfs of its own, and mount says: {why}"))
        .ok()?;
    instance.set("STRONGROOM_DATA_DIR", disk.0.join("data").display().to_string());
    Some((instance, disk))
}

/// The callers' work that the HSM was asked for, as the metrics tell; it signs
/// the log's head besides.
async fn hsm_calls(daemon: &Daemon) -> Vec<String> {
    let (_, page) = daemon.page("/metrics").await;
    // Loads are not counted: the daemon's own keys are loaded in the background.
    let work = ["function=\"encrypt\"", "function=\"generate\""];
    let counts = |line: &&str| {
        line.starts_with("strongroom_hsm_calls_total") && work.iter().any(|function| line.contains(function))
    };
    let mut lines: Vec<String> = page.lines().filter(counts).map(str::to_owned).collect();
    lines.sort();
    assert!(!lines.is_empty());
    lines
}

async fn refused(client: &Client, key: &str) {
    for refusal in [client.encrypt(key, b"x").await.unwrap_err(), client.create(SYMMETRIC).await.unwrap_err()]
    {
        assert_eq!(refusal.exception, "KMSInternalException", "{refusal:?}");
        assert!(refusal.message.contains("free space") && refusal.retries, "{refusal:?}");
    }
}

/// Encrypt works, as soon as the daemon looks at its disk.
async fn goes_on(daemon: &Daemon, client: &Client, key: &str) {
    daemon.readyz(200).await;
    client.use_key(key, SYMMETRIC).await.unwrap();
    client.create(SYMMETRIC).await.unwrap();
    assert_eq!(client.findings().await, Vec::<String>::new());
}

fn of_request<'a>(events: &'a [Value], id: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["requestID"] == id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_new_work_before_the_hsm() {
    let Some((mut instance, disk)) = on_a_disk() else { return };
    instance.set("STRONGROOM_STORE__MIN_FREE_BYTES", MIN_FREE_BYTES);
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(SYMMETRIC).await.unwrap();
    let blob = client.encrypt(&key, b"before").await.unwrap();

    // Below the mark: refused, on the record, and the HSM was not asked.
    disk.fill(1 << 20);
    daemon.readyz(503).await;
    let before = hsm_calls(&daemon).await;
    refused(&client, &key).await;
    let refusal = client.ask(crate::support::encrypt(&key, b"x")).await.unwrap_err();
    assert_eq!(hsm_calls(&daemon).await, before, "the HSM did work that was refused");
    assert_eq!(daemon.page("/livez").await.0, 200);
    disk.empty();
    goes_on(&daemon, &client, &key).await;
    let events = client.events().await;
    let recorded = of_request(&events, &refusal.request_id);
    assert_eq!(recorded.len(), 1, "{recorded:?}");
    assert_eq!(recorded[0]["errorCode"], "KMSInternalException");
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"before");
    daemon.terminate().await;
}

/// Without the mark the disk fills up to its last block under load: what was
/// answered has its event all the same, and all of it is there after a kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_on_a_disk_that_filled_up_is_true() {
    let Some((mut instance, disk)) = on_a_disk() else { return };
    instance.set("STRONGROOM_STORE__MIN_FREE_BYTES", "0");
    instance.set("STRONGROOM_STORE__COMMIT_TIMEOUT_MS", "2000");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(SYMMETRIC).await.unwrap();
    disk.fill(256 << 10);
    let (mut answered, mut kept) = (Vec::new(), Vec::new());
    let full = tokio::time::timeout(LONG, async {
        loop {
            match client.ask(crate::support::encrypt(&key, b"filling up")).await {
                Ok(answer) => {
                    answered.push(answer.request_id);
                    kept.push(answer.message.ciphertext_blob.unwrap());
                }
                Err(refusal) => return refusal,
            }
            if let Ok(made) = client.ask(crate::support::create(SYMMETRIC)).await {
                answered.push(made.request_id);
            }
        }
    });
    let refusal = full.await.expect("the disk never fills up");
    assert_eq!(refusal.exception, "KMSInternalException", "{refusal:?}");
    assert!(!answered.is_empty());
    daemon.kill9();

    disk.empty();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    goes_on(&daemon, &client, &key).await;
    let events = client.events().await;
    for id in &answered {
        let recorded = of_request(&events, id);
        assert_eq!(recorded.len(), 1, "{recorded:?}");
        assert!(recorded[0]["errorCode"].is_null(), "{recorded:?}");
    }
    for blob in &kept {
        assert_eq!(client.decrypt(blob).await.unwrap(), b"filling up");
    }
    daemon.terminate().await;
}

/// The mark above all the room there is: a daemon that starts like this
/// serves what needs no new work: nothing, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_above_the_free_space_refuses_from_the_start() {
    let mut instance = Instance::new();
    let daemon = instance.start().await;
    let key = daemon.client().await.create(SYMMETRIC).await.unwrap();
    daemon.terminate().await;

    instance.set("STRONGROOM_STORE__MIN_FREE_BYTES", MORE_THAN_ANY_DISK);
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let body = daemon.readyz(503).await;
    assert!(body.contains("min_free_bytes"), "{body}");
    refused(&client, &key).await;
    let listed = client.call(ListKeysRequest::default()).await.unwrap_err();
    assert_eq!(listed.exception, "KMSInternalException", "no call without room for its event: {listed:?}");
    daemon.terminate().await;

    instance.unset("STRONGROOM_STORE__MIN_FREE_BYTES");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    eventually("it takes work", async || client.encrypt(&key, b"x").await.is_ok()).await;
    goes_on(&daemon, &client, &key).await;
}

/// A rule of the shim's under which the first self-test does not end.
const HANGS: &str = "C_GenerateKeyPair hang\n";

/// A member is started before it is known whether that can be recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_addition_cannot_be_recorded_is_let_go() {
    let Some((mut instance, disk)) = on_a_disk() else { return };
    instance.set("STRONGROOM_STORE__MIN_FREE_BYTES", "0");
    let hsm = Hsm::of_fixture(&instance, "late", 2).behind_shim();
    let daemon = instance.start().await;
    let first = daemon.client().await.call(ListMembersRequest::default()).await.unwrap().members.remove(0);
    daemon.terminate().await;
    house::add(&instance, std::slice::from_ref(&hsm));
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let (config, uri) = (instance.path("strongroom.toml"), hsm.uri());
    let so_pin = instance.path("hsm/so.pin");
    let names = [
        ("CONFIG", config.to_str().unwrap()),
        ("MEMBER", first.uri()),
        ("MEMBER_MODULE", first.module()),
        ("MEMBER_PIN", strongroom::commands::dev_setup::USER_PIN),
        ("TOKEN", uri.as_str()),
        ("MODULE", hsm.name),
        ("PIN", hsm.name),
        ("SO_PIN_FILE", so_pin.to_str().unwrap()),
    ];
    done(runbook(&instance, "hsm bring", &names));

    hsm.set_rules(HANGS);
    let request = AddMemberRequest {
        token: Some(hsm.uri()),
        module: Some(hsm.name.to_owned()),
        pin: Some(hsm.name.to_owned()),
        cluster_id: None,
    };
    let adding = {
        let (client, request) = (client.clone(), request.clone());
        tokio::spawn(async move { client.call(request).await })
    };
    eventually("it is tried", async || daemon.page("/readyz").await.1.contains(&hsm.uri())).await;
    disk.fill(0);
    hsm.set_rules("");
    let refusal = adding.await.unwrap().unwrap_err();
    assert_eq!(refusal.exception, "KMSInternalException", "{refusal:?}");
    disk.empty();
    daemon.readyz(200).await;
    eventually("it is let go", async || {
        client.call(ListMembersRequest::default()).await.is_ok_and(|listed| listed.members.len() == 1)
    })
    .await;

    // It can be added again, and stays.
    client.call(request).await.unwrap();
    let members = client.call(ListMembersRequest::default()).await.unwrap().members;
    assert_eq!(members.len(), 2, "{members:?}");
    daemon.terminate().await;
    let daemon = instance.start().await;
    let members = daemon.client().await.call(ListMembersRequest::default()).await.unwrap().members;
    assert_eq!(members.len(), 2, "{members:?}");
    daemon.terminate().await;
}
