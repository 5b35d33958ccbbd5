//! Metric filters of `deploy/` in a running daemon, and the alarms on them as
//! Prometheus's own tool tests them.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use strongroom::proto::kms::{self, KeySpec};

use crate::support::{Instance, eventually};

fn deploy(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

#[test]
fn alarms_are_raised_as_prometheus_sees_them() {
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let output = Command::new("promtool").current_dir(deploy("")).args(arguments).output();
        let output =
            output.expect("promtool is missing: install prometheus (Debian: apt-get install prometheus)");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_count_what_matches_from_the_next_reload_on() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(KeySpec::SymmetricDefault).await.unwrap();
    client.encrypt(&key, b"before there are filters").await.unwrap();

    let file = instance.path("strongroom.toml");
    let filters = fs::read_to_string(deploy("metric-filters.toml")).unwrap();
    fs::write(&file, fs::read_to_string(&file).unwrap() + "\n" + &filters).unwrap();
    daemon.signal(Signal::HUP);
    eventually("the filters are in force", async || {
        client.events().await.iter().any(|event| event["eventName"] == "ReloadConfiguration")
            && daemon.log().contains("the configuration was reloaded")
    })
    .await;
    // The first that is counted shows that they are read.
    let value = async |start: &str| {
        let (_, page) = daemon.page("/metrics").await;
        let line = page.lines().find(|line| line.starts_with(start)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let user = r#"{user="arn:aws:iam::111122223333:user/administrator"} "#;
    eventually("calls are counted", async || {
        client.encrypt(&key, b"counted").await.unwrap();
        value(&format!("strongroom_filter_calls_total{user}")).await > 0.0
    })
    .await;

    let delete = kms::ScheduleKeyDeletionRequest { key_id: Some(key.clone()), ..Default::default() };
    client.call(delete.clone()).await.unwrap();
    client.call(delete).await.unwrap_err();
    let counter = "strongroom_filter_key_deletion_total{";
    eventually("the deletion is counted", async || value(counter).await > 0.0).await;
    assert_eq!(value(counter).await, 1.0, "a refusal deletes nothing");
    let (_, page) = daemon.page("/metrics").await;
    let line = page.lines().find(|line| line.starts_with(counter)).unwrap().to_owned();
    for label in [r#"operation="ScheduleKeyDeletion""#, "user/administrator", ":key/"] {
        assert!(line.contains(label), "{line}");
    }
}
