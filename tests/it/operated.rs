//! Being operated: draining, reloading, one daemon per folder, backup and
//! restore, the administrator's commands, pages, health and reflection.

use std::collections::HashSet;
use std::fs;

use rustix::process::Signal;
use serde_json::Value;
use strongroom::proto::cloudtrail::VerifyEventsRequest;
use strongroom::proto::kms::{self, KeySpec};
use tokio::task::JoinSet;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::{Instance, create, encrypt, eventually, sign};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["eventName"] == name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_what_is_in_flight() {
    let instance = Instance::new();
    let mut daemon = instance.start().await;
    let client = daemon.client().await;
    // Each takes an HSM long enough to be in flight when the signal comes.
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        calls.spawn(async move { client.ask(create(KeySpec::Rsa2048)).await });
    }
    eventually("a call is answered", async || {
        calls.try_join_next().is_some_and(|answer| answer.unwrap().is_ok())
    })
    .await;
    daemon.signal(Signal::TERM);
    let rest = calls.join_all().await;
    let status = daemon.ended().await;
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    let mut answered = Vec::new();
    for call in rest {
        match call {
            Ok(answer) => answered.push(answer),
            Err(refusal) => panic!("a request in flight was not finished: {refusal:?}"),
        }
    }

    let daemon = instance.start().await;
    let client = daemon.client().await;
    let events = client.events().await;
    for answer in &answered {
        assert!(events.iter().any(|event| event["requestID"] == answer.request_id));
        let key = answer.message.key_metadata.as_ref().unwrap().key_id();
        client.use_key(key, KeySpec::Rsa2048).await.unwrap();
    }
    let stopped = events.iter().position(|event| event["eventName"] == "StopService").unwrap();
    let started = events.iter().rposition(|event| event["eventName"] == "StartService").unwrap();
    assert!(stopped < started);
    // The head was signed after the last event: nobody can cut off the end.
    let heads = instance.database().await.texts("SELECT CAST(max(position) AS TEXT) FROM head").await;
    let ends = instance
        .database()
        .await
        .texts("SELECT CAST(position AS TEXT) FROM event WHERE json_extract(record, '$.eventName') = 'StopService'")
        .await;
    let (head, end): (i64, i64) = (heads[0].parse().unwrap(), ends[0].parse().unwrap());
    assert!(head >= end, "{head} {end}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_changes_all_or_nothing_for_open_connections() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(SYMMETRIC).await.unwrap();
    let file = instance.path("strongroom.toml");
    let before = fs::read_to_string(&file).unwrap();
    const MAY_ALL: &str = r#"policies = ["AdministratorAccess"]"#;
    assert!(before.contains(MAY_ALL));

    // No Encrypt any more, on the same connection.
    const NO_ENCRYPT: &str = r#"policies = ["AdministratorAccess", '{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"kms:Encrypt","Resource":"*"}]}']"#;
    fs::write(&file, before.replace(MAY_ALL, NO_ENCRYPT)).unwrap();
    client.encrypt(&key, b"x").await.expect("nothing changes before SIGHUP");
    daemon.signal(Signal::HUP);
    eventually("Encrypt is denied", async || {
        client.encrypt(&key, b"x").await.is_err_and(|refusal| refusal.exception == "AccessDeniedException")
    })
    .await;
    client.state(&key).await.unwrap();

    // What is wrong changes nothing, not even what is right in the same file.
    fs::write(&file, before.clone() + "\n[nonsense]\n").unwrap();
    daemon.signal(Signal::HUP);
    let reloads = async || named(&client.events().await, "ReloadConfiguration").len();
    eventually("the refusal is on the record", async || reloads().await == 2).await;
    assert_eq!(client.encrypt(&key, b"x").await.unwrap_err().exception, "AccessDeniedException");

    fs::write(&file, &before).unwrap();
    daemon.signal(Signal::HUP);
    eventually("Encrypt is allowed again", async || client.encrypt(&key, b"x").await.is_ok()).await;

    let events = client.events().await;
    let started = named(&events, "StartService")[0]["serviceEventDetails"]["configurationSha256"].clone();
    let details: Vec<&Value> =
        named(&events, "ReloadConfiguration").iter().map(|event| &event["serviceEventDetails"]).collect();
    let [changed, refused, restored] = details[..] else { panic!("{details:?}") };
    assert!(started.as_str().is_some_and(|hash| hash.len() == 64), "{started}");
    assert_eq!(changed["oldSha256"], started);
    assert_ne!(changed["newSha256"], started);
    assert_eq!(refused["oldSha256"], changed["newSha256"]);
    assert!(refused["newSha256"].is_null());
    assert!(refused["refused"].as_str().unwrap().contains("nonsense"), "{refused}");
    assert_eq!(restored["oldSha256"], changed["newSha256"]);
    assert_eq!(restored["newSha256"], started);
    assert!(
        named(&events, "ReloadConfiguration").iter().all(|event| event["eventType"] == "AwsServiceEvent")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_the_same_folder_is_refused() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let mut second = instance.spawn();
    let status = second.ended().await;
    assert!(!status.success());
    let log = second.log();
    let folder = fs::canonicalize(instance.path("data")).unwrap().display().to_string();
    assert!(log.contains(&folder) && log.contains(&daemon.pid().to_string()), "{log}");
    // The first one does not notice.
    let client = daemon.client().await;
    client.create(SYMMETRIC).await.unwrap();
    assert_eq!(instance.cli(&["kms", "list-keys"]).status.code(), Some(0));
    assert!(instance.admin(&["confirm-clock"]).status.success(), "the socket is still the first one's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_made_at_work_is_restored_with_leases_ahead() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(SYMMETRIC).await.unwrap();
    let blob = client.encrypt(&key, b"before the backup").await.unwrap();
    let config = instance.path("strongroom.toml").display().to_string();
    let backup = instance.beside("backup.sqlite").display().to_string();
    let made = instance.command(&["backup", "--config", &config, "--to", &backup]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let later = client.create(SYMMETRIC).await.unwrap();
    let restore = ["restore", "--config", &config, "--from", &backup, "--force"];
    let refused = instance.command(&restore).output().unwrap();
    assert!(!refused.status.success(), "a restore under a running daemon");
    client.use_key(&later, SYMMETRIC).await.unwrap();
    daemon.terminate().await;

    let leased = async || {
        let rows = instance.database().await.bodies("backing-key").await;
        rows.iter().map(|row| row["uses_leased"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let before = leased().await[0];
    let without_force = instance.command(&restore[..5]).output().unwrap();
    assert!(!without_force.status.success(), "a database that is there was replaced unasked");
    let restored = instance.command(&restore).output().unwrap();
    assert!(restored.status.success(), "{restored:?}");
    let printed = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(printed.contains("cannot know"), "{printed}");

    let daemon = instance.start().await;
    let client = daemon.client().await;
    let after = leased().await;
    assert_eq!(after.len(), 1, "the key that was made after the backup is lost");
    assert!(after[0] >= before + strongroom::registry::RESTORE_USES, "{before} {after:?}");
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"before the backup");
    client.use_key(&key, SYMMETRIC).await.unwrap();
    assert_eq!(client.state(&later).await.unwrap_err().exception, "NotFoundException");
    let events = client.events().await;
    let told = named(&events, "StoreRestored");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["serviceEventDetails"]["keysMovedAhead"], 1);
    assert_eq!(client.findings().await, Vec::<String>::new());

    // Once is enough.
    daemon.terminate().await;
    let daemon = instance.start().await;
    let events = daemon.client().await.events().await;
    assert_eq!(named(&events, "StoreRestored").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_locked_everybody_out_is_recovered_on_the_host() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let nobody = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/nobody"},"Action":"kms:*","Resource":"*"}]}"#;
    let mut request = create(SYMMETRIC);
    request.policy = Some(nobody.to_owned());
    let refused = client.call(request.clone()).await.unwrap_err();
    assert_eq!(refused.exception, "MalformedPolicyDocumentException", "{refused:?}");
    request.bypass_policy_lockout_safety_check = Some(true);
    let key = client.call(request).await.unwrap().key_metadata.unwrap().key_id.unwrap();
    assert_eq!(client.encrypt(&key, b"x").await.unwrap_err().exception, "AccessDeniedException");

    let recover = strongroom::proto::admin::RecoverKeyPolicyRequest { key_id: Some(key.clone()) };
    assert_eq!(client.call(recover).await.unwrap_err().exception, "AccessDeniedException");
    assert_eq!(client.encrypt(&key, b"x").await.unwrap_err().exception, "AccessDeniedException");
    let recovered = instance.admin(&["recover-key-policy", "--key-id", &key]);
    assert!(recovered.status.success(), "{recovered:?}");
    client.use_key(&key, SYMMETRIC).await.unwrap();

    let events = client.events().await;
    let told = named(&events, "RecoverKeyPolicy");
    let [denied, done] = told[..] else { panic!("{told:?}") };
    assert_eq!(denied["errorCode"], "AccessDenied");
    assert!(done["errorCode"].is_null());
    assert!(done["resources"][0]["ARN"].as_str().unwrap().ends_with(&key), "{done}");
    assert_eq!(client.findings().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_reflection_tell_what_there_is() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(SYMMETRIC).await.unwrap();
    client.encrypt(&key, b"x").await.unwrap();
    client.call(sign(&key, SYMMETRIC, b"x")).await.unwrap_err();
    let answer = client.ask(encrypt(&key, b"x")).await.unwrap();
    let events = client.events().await;
    assert!(events.iter().any(|event| event["requestID"] == answer.request_id));

    assert_eq!(daemon.page("/livez").await.0, 200);
    let ready: Value = serde_json::from_str(&daemon.readyz(200).await).unwrap();
    assert_eq!(ready["ready"], true);
    let (status, metrics) = daemon.page("/metrics").await;
    assert_eq!(status, 200);
    for expected in [
        "strongroom_operations_total{operation=\"Encrypt\",result=\"OK\"} 2",
        "strongroom_operations_total{operation=\"Sign\",result=\"InvalidKeyUsageException\"} 1",
        "strongroom_operation_seconds_bucket{operation=\"Encrypt\"",
        "strongroom_hsm_queue_depth",
        "strongroom_hsm_sessions",
        "commit_seconds_bucket",
    ] {
        assert!(metrics.contains(expected), "{expected} in {metrics}");
    }
    assert_eq!(daemon.page("/nothing").await.0, 404);

    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(client.channel());
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(listed)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let listed: HashSet<String> = listed.service.into_iter().map(|service| service.name).collect();
    for service in [
        "strongroom.kms.v1.KeyManagementService",
        "strongroom.cloudtrail.v1.CloudTrailService",
        "strongroom.hsm.v1.HsmService",
        "strongroom.admin.v1.AdminService",
        "grpc.health.v1.Health",
    ] {
        assert!(listed.contains(service), "{service} in {listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_in_environment_or_configuration_is_refused() {
    let mut instance = Instance::new();
    instance.start().await.terminate().await;
    let pin = instance.pin();
    instance.set("STRONGROOM_PINS__CRYPTO_USER", pin.clone());
    let mut daemon = instance.spawn();
    assert!(!daemon.ended().await.success(), "a PIN in the environment is used");
    assert!(!daemon.log().contains(&pin), "the error repeats the PIN");
    instance.unset("STRONGROOM_PINS__CRYPTO_USER");

    let file = instance.path("strongroom.toml");
    let before = fs::read_to_string(&file).unwrap();
    for written in [format!("pin = \"{pin}\""), format!("value = \"{pin}\"")] {
        fs::write(&file, before.replace("file = \"hsm/user.pin\"", &written)).unwrap();
        let mut daemon = instance.spawn();
        assert!(!daemon.ended().await.success(), "a PIN in the configuration is used");
        let log = daemon.log();
        assert!(!log.contains(&pin), "the error repeats the PIN");
        assert!(log.contains("pins"), "{log}");
    }
    fs::write(&file, before).unwrap();
    let daemon = instance.start().await;
    let verified = daemon.client().await.call(VerifyEventsRequest::default()).await.unwrap();
    assert!(verified.findings.is_empty());
    assert!(daemon.client().await.call(kms::ListKeysRequest::default()).await.is_ok());
}
