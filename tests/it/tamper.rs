//! Somebody with a SQL shell on the store: what is changed is noticed, named
//! and refused, and the rest goes on.

use std::sync::atomic::{AtomicBool, Ordering};

use strongroom::proto::kms::{self, KeySpec, KeyState};

use crate::support::{Client, Daemon, Database, Instance, eventually};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;

/// An instance whose daemon is stopped: a key to be tampered with, another,
/// and a ciphertext of each.
struct Victim {
    instance: Instance,
    key: String,
    other: String,
    blob: Vec<u8>,
}

impl Victim {
    async fn new() -> Victim {
        let instance = Instance::new();
        let daemon = instance.start().await;
        let client = daemon.client().await;
        let (key, other) = (client.create(SYMMETRIC).await.unwrap(), client.create(SYMMETRIC).await.unwrap());
        let blob = client.encrypt(&key, b"x").await.unwrap();
        client.use_key(&other, SYMMETRIC).await.unwrap();
        daemon.terminate().await;
        Victim { instance, key, other, blob }
    }

    /// Runs statements, each of which must change something, and starts the
    /// daemon again.
    async fn change(&self, statements: &[&str]) -> (Daemon, Client) {
        let mut database = self.database().await;
        for statement in statements {
            let statement = statement.replace("KEY", &self.key).replace("OTHER", &self.other);
            let changed = database.execute(&statement).await;
            let defines = ["CREATE", "DROP"].iter().any(|word| statement.starts_with(word));
            assert!(changed > 0 || defines, "{statement} changed nothing");
        }
        database.close().await;
        let daemon = self.instance.start().await;
        let client = daemon.client().await;
        (daemon, client)
    }

    async fn database(&self) -> Database {
        self.instance.database().await
    }

    /// Encrypt and Decrypt with the key fail; nobody else notices.
    async fn is_refused(&self, client: &Client) {
        let encrypted = client.encrypt(&self.key, b"x").await.unwrap_err();
        assert_eq!(encrypted.exception, "KMSInternalException", "{encrypted:?}");
        let decrypted = client.decrypt(&self.blob).await.unwrap_err();
        assert_eq!(decrypted.exception, "KMSInternalException", "{decrypted:?}");
        client.use_key(&self.other, SYMMETRIC).await.unwrap();
        let made = client.create(SYMMETRIC).await.unwrap();
        client.use_key(&made, SYMMETRIC).await.unwrap();
    }

    /// VerifyEvents and `strongroom events verify` name what was changed.
    async fn is_found(&self, client: &Client, parts: &[&str]) {
        let findings = client.findings().await;
        let named = |finding: &String| parts.iter().all(|part| finding.contains(part));
        assert!(findings.iter().any(named), "no finding names {parts:?}: {findings:#?}");
        let verified = self.instance.cli(&["events", "verify"]);
        assert_eq!(verified.status.code(), Some(1), "{verified:?}");
        let printed = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(parts.iter().all(|part| printed.contains(part)), "{printed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_found_where_nothing_was_changed() {
    let victim = Victim::new().await;
    let (_daemon, client) = victim.change(&[]).await;
    assert_eq!(client.findings().await, Vec::<String>::new());
    assert!(victim.instance.cli(&["events", "verify"]).status.success());
}

/// Rows and log change while they are compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_found_under_load() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let done = AtomicBool::new(false);
    let load = async {
        while !done.load(Ordering::Relaxed) {
            let key = client.create(SYMMETRIC).await.unwrap();
            let (alias_name, target_key_id) = (Some("alias/short-lived".to_owned()), Some(key.clone()));
            let alias = kms::CreateAliasRequest { alias_name: alias_name.clone(), target_key_id };
            client.call(alias).await.unwrap();
            client.call(kms::DisableKeyRequest { key_id: Some(key) }).await.unwrap();
            client.call(kms::DeleteAliasRequest { alias_name }).await.unwrap();
        }
    };
    let verify = async {
        for _ in 0..30 {
            assert_eq!(client.findings().await, Vec::<String>::new());
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(load, verify);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_blobs_are_refused() {
    let victim = Victim::new().await;
    let (_daemon, client) = victim
        .change(&[
            "CREATE TABLE swap AS SELECT parent, body FROM row WHERE kind = 'backing-key'",
            "UPDATE row SET body = json_set(body, '$.home', json((SELECT json_extract(swap.body, '$.home')
             FROM swap WHERE swap.parent <> row.parent AND swap.parent IN ('KEY', 'OTHER'))))
             WHERE kind = 'backing-key' AND parent = 'KEY'",
            "DROP TABLE swap",
        ])
        .await;
    victim.is_refused(&client).await;
    victim.is_found(&client, &["backing-key", "MAC"]).await;
}

/// Both rows keep their own MACs; only their names change places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_rows_are_refused() {
    let victim = Victim::new().await;
    let (_daemon, client) = victim
        .change(&["UPDATE row SET parent = CASE parent WHEN 'KEY' THEN 'OTHER' ELSE 'KEY' END
                   WHERE kind = 'backing-key'"])
        .await;
    for key in [&victim.key, &victim.other] {
        let refused = client.encrypt(key, b"x").await.unwrap_err();
        assert_eq!(refused.exception, "KMSInternalException", "{refused:?}");
    }
    victim.is_found(&client, &["backing-key", "MAC"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_policy_is_refused() {
    let victim = Victim::new().await;
    let (_daemon, client) = victim
        .change(&["UPDATE row SET body = replace(body, 'Allow', 'Deny') WHERE kind = 'key' AND id = 'KEY'"])
        .await;
    victim.is_refused(&client).await;
    victim.is_found(&client, &["key/", &victim.key, "MAC"]).await;
    let described = client.state(&victim.key).await.unwrap_err();
    assert!(described.message.contains(&victim.key), "the caller is told what is wrong: {described:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_was_cancelled_by_sql_is_refused() {
    let victim = Victim::new().await;
    let daemon = victim.instance.start().await;
    let client = daemon.client().await;
    let request = kms::ScheduleKeyDeletionRequest { key_id: Some(victim.key.clone()), ..Default::default() };
    client.call(request).await.unwrap();
    daemon.terminate().await;
    let (_daemon, client) = victim
        .change(&["UPDATE row SET due_ms = NULL,
                   body = json_set(body, '$.state', 'Enabled', '$.deletion', NULL) WHERE id = 'KEY'"])
        .await;
    victim.is_refused(&client).await;
    victim.is_found(&client, &[&victim.key, "MAC"]).await;
}

/// The column alone, so that the deletion never comes due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_was_postponed_by_sql_is_refused() {
    let victim = Victim::new().await;
    let daemon = victim.instance.start().await;
    let client = daemon.client().await;
    let request = kms::ScheduleKeyDeletionRequest { key_id: Some(victim.key.clone()), ..Default::default() };
    client.call(request).await.unwrap();
    daemon.terminate().await;
    let (_daemon, client) =
        victim.change(&["UPDATE row SET due_ms = due_ms + 86400000 WHERE id = 'KEY'"]).await;
    victim.is_found(&client, &[&victim.key, "MAC"]).await;
    assert_eq!(client.state(&victim.key).await.unwrap_err().exception, "KMSInternalException");
}

/// The row as it was before DisableKey, whose MAC fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_that_was_put_back_is_found() {
    let victim = Victim::new().await;
    victim.database().await.execute("CREATE TABLE old AS SELECT * FROM row").await;
    let daemon = victim.instance.start().await;
    let client = daemon.client().await;
    client.call(kms::DisableKeyRequest { key_id: Some(victim.key.clone()) }).await.unwrap();
    assert_eq!(client.state(&victim.key).await.unwrap(), KeyState::Disabled);
    daemon.terminate().await;
    let (_daemon, client) = victim
        .change(&["REPLACE INTO row SELECT * FROM old WHERE kind = 'key' AND id = 'KEY'", "DROP TABLE old"])
        .await;
    // By the check after the start, without anybody asking.
    eventually("it is on the record", async || {
        let events = client.events().await;
        let told = events.iter().find(|event| event["eventName"] == "IntegrityCheckFailed");
        told.is_some_and(|event| event.to_string().contains(&victim.key))
    })
    .await;
    victim.is_refused(&client).await;
    victim.is_found(&client, &[&victim.key, "older version"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_row_is_found() {
    let victim = Victim::new().await;
    let (_daemon, client) =
        victim.change(&["DELETE FROM row WHERE kind = 'backing-key' AND parent = 'KEY'"]).await;
    assert_eq!(client.encrypt(&victim.key, b"x").await.unwrap_err().exception, "KMSInternalException");
    client.use_key(&victim.other, SYMMETRIC).await.unwrap();
    victim.is_found(&client, &["backing-key", "missing"]).await;

    drop(_daemon);
    let (_daemon, client) = victim.change(&["DELETE FROM row WHERE kind = 'key' AND id = 'KEY'"]).await;
    assert_eq!(client.encrypt(&victim.key, b"x").await.unwrap_err().exception, "NotFoundException");
    victim.is_found(&client, &[&victim.key, "missing"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_event_is_found() {
    let victim = Victim::new().await;
    let (_daemon, client) = victim
        .change(&["UPDATE event SET record = replace(record, 'Encrypt', 'Decrypt')
                   WHERE json_extract(record, '$.eventName') = 'Encrypt'"])
        .await;
    client.use_key(&victim.key, SYMMETRIC).await.unwrap();
    victim.is_found(&client, &["event 1/", "changed"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_removed_from_the_middle_is_found() {
    let victim = Victim::new().await;
    let (_daemon, client) =
        victim.change(&["DELETE FROM event WHERE json_extract(record, '$.eventName') = 'Encrypt'"]).await;
    client.use_key(&victim.key, SYMMETRIC).await.unwrap();
    victim.is_found(&client, &["1/", "missing"]).await;
}

/// The daemon signs the log's head when it stops, so that its end is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_end_of_the_log_is_found() {
    let victim = Victim::new().await;
    let (_daemon, client) =
        victim.change(&["DELETE FROM event WHERE position = (SELECT max(position) FROM event)"]).await;
    victim.is_found(&client, &["event 1/"]).await;
}

/// With the signatures removed too, the log that was exported before tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_log_is_found_by_its_exported_head() {
    let victim = Victim::new().await;
    let daemon = victim.instance.start().await;
    let head = victim.instance.beside("head");
    let path = head.display().to_string();
    let client = daemon.client().await;
    eventually("the head is signed", async || {
        let unsigned =
            client.call(strongroom::proto::cloudtrail::VerifyEventsRequest::default()).await.unwrap();
        unsigned.unsigned_events() <= 1
    })
    .await;
    assert!(victim.instance.cli(&["events", "verify", "--write-head", &path]).status.success());
    drop(daemon);
    let (_daemon, _client) = victim
        .change(&[
            "DELETE FROM event WHERE position > (SELECT min(position) + 3 FROM event)",
            "DELETE FROM head WHERE position > (SELECT max(position) FROM event)",
        ])
        .await;
    let verified = victim.instance.cli(&["events", "verify", "--expected-head", &format!("file://{path}")]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    let printed = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(printed.contains("expected head"), "{printed}");
}
