//! The end of a key, a month ahead.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use strongroom::proto::kms::{self, KeySpec};

use crate::support::{Instance, eventually, faketime, named};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;
const EDWARDS: KeySpec = KeySpec::EccNistEdwards25519;
/// Whether some bytes are in a file of the store.
fn is_in_store(instance: &Instance, needle: &[u8]) -> bool {
    fs::read_dir(instance.path("data")).unwrap().any(|entry| {
        let bytes = fs::read(entry.unwrap().path()).unwrap_or_default();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_deleted_when_its_time_has_come_and_the_clock_is_confirmed() {
    let Some(faketime) = faketime() else {
        return eprintln!("skipped: install libfaketime (Debian: apt-get install faketime)");
    };
    let mut instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let (wrapped, resident) =
        (client.create(SYMMETRIC).await.unwrap(), client.create(EDWARDS).await.unwrap());
    let (kept, kept_resident) =
        (client.create(SYMMETRIC).await.unwrap(), client.create(EDWARDS).await.unwrap());
    let blob = client.encrypt(&wrapped, b"lost with its key").await.unwrap();
    let alias = kms::CreateAliasRequest {
        alias_name: Some("alias/doomed".to_owned()),
        target_key_id: Some(wrapped.clone()),
    };
    client.call(alias).await.unwrap();
    for key in [&wrapped, &resident] {
        client
            .call(kms::ScheduleKeyDeletionRequest { key_id: Some(key.clone()), ..Default::default() })
            .await
            .unwrap();
    }
    daemon.terminate().await;
    let mut database = instance.database().await;
    let material = database
        .texts(&format!(
            "SELECT json_extract(body, '$.home.wrapped.blob') FROM row WHERE kind = 'backing-key' AND parent = '{wrapped}'"
        ))
        .await
        .remove(0);
    let object = database
        .texts(&format!("SELECT id FROM row WHERE kind = 'backing-key' AND parent = '{resident}'"))
        .await
        .remove(0);
    database.close().await;
    assert!(is_in_store(&instance, material.as_bytes()), "the test looks for the wrong bytes");
    assert!(instance.token().ids().contains(&object));

    instance.set("LD_PRELOAD", faketime.display().to_string());
    instance.set("FAKETIME", "+31d");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    // The clock jumped: nothing is deleted before somebody says that it is right.
    eventually("deletions are suspended", async || {
        daemon.page("/metrics").await.1.contains("strongroom_deletions_suspended 1")
    })
    .await;
    let events = client.events().await;
    let suspended = named(&events, "DeletionsSuspended");
    assert_eq!(suspended.len(), 1, "{suspended:?}");
    assert_eq!(suspended[0]["eventType"], "AwsServiceEvent");
    assert_eq!(suspended[0]["serviceEventDetails"]["keysDue"], 2, "{suspended:?}");
    for key in [&wrapped, &resident] {
        assert_eq!(client.state(key).await.unwrap(), kms::KeyState::PendingDeletion);
    }

    // Only the host confirms it.
    let refused = client.call(strongroom::proto::admin::ConfirmClockRequest {}).await.unwrap_err();
    assert_eq!(refused.exception, "AccessDeniedException");
    instance.unset("LD_PRELOAD");
    instance.unset("FAKETIME");
    let confirmed = instance.admin(&["confirm-clock", "-o", "json"]);
    assert!(confirmed.status.success(), "{confirmed:?}");
    let confirmed: Value = serde_json::from_slice(&confirmed.stdout).unwrap();
    assert_eq!(confirmed["Waiting"], 2, "{confirmed}");
    for key in [&wrapped, &resident] {
        eventually("the key is gone", async || {
            client.state(key).await.is_err_and(|refusal| refusal.exception == "NotFoundException")
        })
        .await;
    }
    eventually("the token object is gone", async || !instance.token().ids().contains(&object)).await;
    client.decrypt(&blob).await.expect_err("a deleted key decrypted");
    let aliases = client.call(kms::ListAliasesRequest::default()).await.unwrap().aliases;
    assert!(aliases.is_empty(), "{aliases:?}");

    let events = client.events().await;
    let mut deleted: Vec<&Value> =
        named(&events, "DeleteKey").iter().map(|event| &event["serviceEventDetails"]["keyId"]).collect();
    deleted.sort_by_key(|id| id.as_str());
    let mut expected = vec![&wrapped, &resident];
    expected.sort();
    assert_eq!(deleted, expected);
    let confirmed: Vec<&Value> =
        named(&events, "ConfirmClock").iter().map(|event| &event["errorCode"]).collect();
    assert_eq!(confirmed, [&Value::from("AccessDenied"), &Value::Null]);

    client.use_key(&kept, SYMMETRIC).await.unwrap();
    client.use_key(&kept_resident, EDWARDS).await.unwrap();
    eventually("the material is gone from the store's files", async || {
        !is_in_store(&instance, material.as_bytes())
            && !is_in_store(&instance, &STANDARD.decode(&material).unwrap())
    })
    .await;
    assert_eq!(instance.token().ids(), instance.database().await.token_ids().await);
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
    assert!(!is_in_store(&instance, material.as_bytes()));
}

/// Keys that are deleted at once.
const DOOMED: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_during_deletions_leaves_no_object_behind() {
    let Some(faketime) = faketime() else {
        return eprintln!("skipped: install libfaketime (Debian: apt-get install faketime)");
    };
    let mut instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let mut doomed = Vec::new();
    for _ in 0..DOOMED {
        let key = client.create(EDWARDS).await.unwrap();
        let request = kms::ScheduleKeyDeletionRequest { key_id: Some(key.clone()), ..Default::default() };
        client.call(request).await.unwrap();
        doomed.push(key);
    }
    daemon.terminate().await;
    instance.set("LD_PRELOAD", faketime.display().to_string());
    instance.set("FAKETIME", "+31d");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    eventually("deletions are suspended", async || {
        daemon.page("/metrics").await.1.contains("strongroom_deletions_suspended 1")
    })
    .await;
    assert!(instance.admin(&["confirm-clock"]).status.success());
    eventually("a key is gone", async || client.state(&doomed[0]).await.is_err()).await;
    daemon.kill9();

    // The time is on record now: nobody has to confirm it again.
    let daemon = instance.start().await;
    let client = daemon.client().await;
    for key in &doomed {
        eventually("the key is gone", async || {
            client.state(key).await.is_err_and(|refusal| refusal.exception == "NotFoundException")
        })
        .await;
    }
    const SYSTEM_KEYS: usize = 3;
    eventually("no object is left", async || instance.token().ids().len() == SYSTEM_KEYS).await;
    let events = client.events().await;
    for key in &doomed {
        let told = named(&events, "DeleteKey");
        let told = told.iter().filter(|event| event["serviceEventDetails"]["keyId"] == **key);
        assert_eq!(told.count(), 1, "{key}");
    }
    assert_eq!(client.findings().await, Vec::<String>::new());
}
