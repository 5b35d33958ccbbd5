//! The log's oldest events are removed while the daemon works, whatever dies;
//! and what somebody else removes is found all the same.

use std::fs;

use strongroom::proto::cloudtrail::{self, VerifyEventsResponse};
use strongroom::proto::kms::{self, KeySpec};

use crate::support::{Client, Instance, eventually, named};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;
const ALIASES: [&str; 2] = ["alias/kept", "alias/passing"];

/// An instance that keeps events for a second, once a trail has delivered them.
fn instance() -> Instance {
    let mut instance = Instance::new();
    instance.set("STRONGROOM_TRAIL__FOLDER", instance.beside("buckets").display().to_string());
    instance.set("STRONGROOM_TRAIL__DELIVERY_INTERVAL", "100ms");
    instance.set("STRONGROOM_HISTORY__RETENTION", "1s");
    instance.set("STRONGROOM_HISTORY__TRIM_INTERVAL", "100ms");
    instance
}

async fn make_trail(client: &Client) {
    let (name, s3_bucket_name) = (Some("audit".to_owned()), Some("bucket".to_owned()));
    let request = cloudtrail::CreateTrailRequest { name: name.clone(), s3_bucket_name, ..Default::default() };
    client.call(request).await.unwrap();
    client.call(cloudtrail::StartLoggingRequest { name }).await.unwrap();
}

async fn make_alias(client: &Client, alias: &str, key: &str) {
    let (alias_name, target_key_id) = (Some(alias.to_owned()), Some(key.to_owned()));
    client.call(kms::CreateAliasRequest { alias_name, target_key_id }).await.unwrap();
}

async fn verified(client: &Client) -> VerifyEventsResponse {
    client.call(cloudtrail::VerifyEventsRequest::default()).await.unwrap()
}

/// How many events were removed.
fn removed(verified: &VerifyEventsResponse) -> u64 {
    let base = verified.base.as_deref().unwrap_or("1-0:");
    base.split(['-', ':']).nth(1).unwrap().parse().unwrap()
}

/// Waits until everything that is in the log now was removed.
async fn forgotten(client: &Client) {
    let now = verified(client).await;
    let end = removed(&now) + now.events() as u64;
    eventually("old events are removed", async || removed(&verified(client).await) >= end).await;
}

/// A key and two aliases of it, one of which is removed; all events of that are
/// gone.
async fn aged(client: &Client) -> String {
    let key = client.create(SYMMETRIC).await.unwrap();
    for alias in ALIASES {
        make_alias(client, alias, &key).await;
    }
    client.call(kms::DisableKeyRequest { key_id: Some(key.clone()) }).await.unwrap();
    client.call(kms::EnableKeyRequest { key_id: Some(key.clone()) }).await.unwrap();
    forgotten(client).await;
    let alias_name = Some(ALIASES[1].to_owned());
    client.call(kms::DeleteAliasRequest { alias_name }).await.unwrap();
    forgotten(client).await;
    key
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_events_go_whatever_dies_and_what_they_said_stays() {
    let instance = instance();
    let mut daemon = instance.start().await;
    let client = daemon.client().await;
    make_trail(&client).await;
    let key = aged(&client).await;
    assert_eq!(named(&client.events().await, "CreateKey").len(), 0, "it is in the trail's files alone");
    for _ in 0..3 {
        let client = daemon.client().await;
        let made = client.create(SYMMETRIC).await.unwrap();
        client.use_key(&key, SYMMETRIC).await.unwrap();
        client.use_key(&made, SYMMETRIC).await.unwrap();
        // In the middle of a removal, as there is always one.
        daemon.kill9();
        daemon = instance.start().await;
    }
    let client = daemon.client().await;
    forgotten(&client).await;
    client.use_key(&key, SYMMETRIC).await.unwrap();
    assert_eq!(verified(&client).await.findings, Vec::<String>::new());
    let mut database = instance.database().await;
    let old = database.texts("SELECT id FROM event WHERE position <= (SELECT (json_extract(body, '$.writer') << 48) + json_extract(body, '$.sequence') FROM row WHERE id = 'log')").await;
    assert_eq!(old, Vec::<String>::new(), "what the log begins behind is gone from the disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_a_trail_has_not_delivered_stay() {
    let instance = instance();
    // No folder can be made there.
    fs::write(instance.beside("buckets"), "").unwrap();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    make_trail(&client).await;
    let key = client.create(SYMMETRIC).await.unwrap();
    eventually("the trail fails", async || {
        let asked = cloudtrail::GetTrailStatusRequest { name: Some("audit".into()) };
        client.call(asked).await.unwrap().latest_delivery_error.is_some()
    })
    .await;
    // Its retention has passed for long.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let mut database = instance.database().await;
    let find = "SELECT id FROM event WHERE json_extract(record, '$.eventName') = 'CreateKey'";
    assert_eq!(database.texts(find).await.len(), 1);
    fs::remove_file(instance.beside("buckets")).unwrap();
    // Which has it look again.
    client.call(cloudtrail::StartLoggingRequest { name: Some("audit".into()) }).await.unwrap();
    forgotten(&client).await;
    assert_eq!(database.texts(find).await.len(), 0);
    client.use_key(&key, SYMMETRIC).await.unwrap();
    assert_eq!(verified(&client).await.findings, Vec::<String>::new());
}

/// Rows as only removed events knew them, the oldest events of the log, and what
/// the log begins with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_changes_is_found_without_the_events() {
    let instance = instance();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    make_trail(&client).await;
    let mut database = instance.database().await;
    let key = client.create(SYMMETRIC).await.unwrap();
    database.execute("CREATE TABLE old AS SELECT * FROM row").await;
    client
        .call(kms::ScheduleKeyDeletionRequest { key_id: Some(key.clone()), ..Default::default() })
        .await
        .unwrap();
    let other = client.create(SYMMETRIC).await.unwrap();
    make_alias(&client, ALIASES[1], &other).await;
    database.execute("CREATE TABLE gone AS SELECT * FROM row WHERE id = 'alias/passing'").await;
    client.call(kms::DeleteAliasRequest { alias_name: Some(ALIASES[1].to_owned()) }).await.unwrap();
    aged(&client).await;
    daemon.terminate().await;

    let mut findings = async |statements: &[&str]| {
        for statement in statements {
            let statement = statement.replace("KEY", &key);
            assert!(database.execute(&statement).await > 0, "{statement} changed nothing");
        }
        let daemon = instance.start().await;
        let findings = verified(&daemon.client().await).await.findings;
        daemon.terminate().await;
        findings
    };
    let has = |findings: &[String], parts: &[&str]| {
        let named = findings.iter().any(|finding| parts.iter().all(|part| finding.contains(part)));
        assert!(named, "no finding names {parts:?}: {findings:#?}");
    };
    let found = findings(&[
        "REPLACE INTO row SELECT * FROM old WHERE kind = 'key' AND id = 'KEY'",
        "INSERT INTO row SELECT * FROM gone",
        "DELETE FROM row WHERE kind = 'alias' AND id LIKE '%kept'",
    ])
    .await;
    has(&found, &[&key, "older version"]);
    has(&found, &["kept", "missing"]);
    has(&found, &["passing", "in no event"]);
    let found = findings(&[
        "UPDATE explained SET version = 1 WHERE id = 'KEY'",
        "DELETE FROM event WHERE position < (SELECT max(position) - 1 FROM event)",
    ])
    .await;
    has(&found, &["removed events"]);
    has(&found, &["events 1/", "missing"]);
    let found = findings(&["DELETE FROM row WHERE kind = 'system' AND id = 'log'"]).await;
    has(&found, &["1/1 ", "missing"]);
}
