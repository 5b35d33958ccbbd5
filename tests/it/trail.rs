//! Trails of real daemons into a folder: each event in one file, whatever
//! dies, and nothing changed unnoticed.

mod another_s3;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use strongroom::proto::cloudtrail;
use strongroom::proto::kms::{KeySpec, ListKeysRequest};
use tokio::time::sleep;

use crate::disk::{Disk, on_a_disk};
use crate::support::{Client, Daemon, Instance, eventually, faketime};

const TRAIL: &str = "audit";
const BUCKET: &str = "bucket";

/// An instance whose buckets are folders, with short hours.
fn instance() -> Instance {
    with_folder(Instance::new())
}

fn with_folder(mut instance: Instance) -> Instance {
    instance.set("STRONGROOM_TRAIL__FOLDER", instance.beside("buckets").display().to_string());
    instance.set("STRONGROOM_TRAIL__DELIVERY_INTERVAL", "200ms");
    instance.set("STRONGROOM_TRAIL__DIGEST_INTERVAL", "1s");
    instance
}

fn bucket(instance: &Instance) -> PathBuf {
    instance.beside("buckets").join(BUCKET)
}

async fn make_trail(client: &Client) {
    let request = cloudtrail::CreateTrailRequest {
        name: Some(TRAIL.into()),
        s3_bucket_name: Some(BUCKET.into()),
        s3_key_prefix: Some("logs".into()),
        enable_log_file_validation: Some(true),
        ..Default::default()
    };
    client.call(request).await.unwrap();
    start(client).await;
}

async fn start(client: &Client) {
    client.call(cloudtrail::StartLoggingRequest { name: Some(TRAIL.into()) }).await.unwrap();
}

async fn status(client: &Client) -> cloudtrail::GetTrailStatusResponse {
    client.call(cloudtrail::GetTrailStatusRequest { name: Some(TRAIL.into()) }).await.unwrap()
}

async fn stop(client: &Client) {
    client.call(cloudtrail::StopLoggingRequest { name: Some(TRAIL.into()) }).await.unwrap();
}

async fn work(client: &Client, calls: usize) {
    let key = client.create(KeySpec::SymmetricDefault).await.unwrap();
    for _ in 0..calls {
        client.encrypt(&key, b"some work").await.unwrap();
    }
}

/// Every file below a folder whose path has this in it, in order.
fn files(folder: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path, part)),
            false if path.to_string_lossy().contains(part) && path.extension().unwrap() == "gz" => {
                found.push(path)
            }
            false => (),
        }
    }
    found.sort();
    found
}

fn unpack(file: &Path) -> Value {
    let mut text = String::new();
    let bytes = fs::read(file).unwrap();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// How often each event is in the delivered files.
fn delivered(instance: &Instance) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for file in files(&bucket(instance), "/CloudTrail/") {
        for record in unpack(&file)["Records"].as_array().unwrap() {
            *counts.entry(record["eventID"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    counts
}

/// The events from StartLogging to StopLogging, with both.
async fn logged(client: &Client) -> BTreeMap<String, usize> {
    let mut logged = BTreeMap::new();
    let mut logs = false;
    for event in client.events().await {
        logs |= event["eventName"] == "StartLogging";
        if logs {
            logged.insert(event["eventID"].as_str().unwrap().to_owned(), 1);
        }
        logs &= event["eventName"] != "StopLogging";
    }
    logged
}

fn verify(instance: &Instance) -> (Option<i32>, Value) {
    let folder = instance.beside("buckets").display().to_string();
    let output = instance.cli(&["trail", "verify", "--name", TRAIL, "--folder", &folder, "-o", "json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{error}"));
    (output.status.code(), report)
}

/// Waits until all that was logged is in files, and a digest covers them.
async fn settled(instance: &Instance, client: &Client) {
    let expected = logged(client).await;
    eventually("every event is delivered", async || delivered(instance).len() >= expected.len()).await;
    assert_eq!(delivered(instance), expected);
    eventually("digests cover every file", async || verify(instance).1["NotYetCovered"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_in_one_file_whatever_dies() {
    let (instance, disk) = on_a_disk().map_or_else(|| (Instance::new(), None), |(on, disk)| (on, Some(disk)));
    let mut instance = with_folder(instance);
    instance.set("STRONGROOM_STORE__MIN_FREE_BYTES", "0");
    instance.set("STRONGROOM_STORE__COMMIT_TIMEOUT_MS", "2000");
    let mut daemon = instance.start().await;
    make_trail(&daemon.client().await).await;
    for round in 0..4 {
        let client = daemon.client().await;
        work(&client, 10).await;
        if round == 1 {
            eventually("the first digest has its key", async || public_keys(&client).await > 0).await;
            client.call(cloudtrail::RotateDigestKeyRequest {}).await.unwrap();
        }
        if round == 2 {
            outage(&instance, &client).await;
        }
        if let (3, Some(disk)) = (round, &disk) {
            full_disk(disk, &client).await;
        }
        daemon.kill9();
        daemon = instance.start().await;
    }
    let client = daemon.client().await;
    work(&client, 5).await;
    stop(&client).await;
    settled(&instance, &client).await;
    // A file that came while the digests were read is known a digest later.
    eventually("verify finds nothing", async || verify(&instance).0 == Some(0)).await;
    let (_, report) = verify(&instance);
    assert!(report["Digests"].as_u64().unwrap() >= 2, "{report}");
    assert!(public_keys(&client).await >= 2);
    assert_eq!(client.findings().await, Vec::<String>::new());
    contiguous(&instance);
}

/// How many keys sign or have signed digests.
async fn public_keys(client: &Client) -> usize {
    let all = cloudtrail::ListPublicKeysRequest {
        start_time: Some(prost_types::Timestamp::default()),
        ..Default::default()
    };
    client.call(all).await.unwrap().public_key_list.len()
}

/// A store that refuses everything for a while.
async fn outage(instance: &Instance, client: &Client) {
    let (bucket, away) = (bucket(instance), instance.beside("away"));
    fs::rename(&bucket, &away).unwrap();
    fs::write(&bucket, "no folder").unwrap();
    work(client, 10).await;
    let failed = async || {
        status(client).await.latest_delivery_error.is_some_and(|error| error.contains("events wait"))
    };
    eventually("GetTrailStatus tells of the failure", failed).await;
    fs::remove_file(&bucket).unwrap();
    fs::rename(&away, &bucket).unwrap();
}

/// The daemon's own disk is full for a while: it answers nothing, and keeps no
/// row of what it delivers.
async fn full_disk(disk: &Disk, client: &Client) {
    disk.fill(0);
    let answers = async || client.call(ListKeysRequest::default()).await.is_ok();
    eventually("no event can be written", async || !answers().await).await;
    // Meanwhile deliveries are due.
    sleep(Duration::from_secs(1)).await;
    disk.empty();
    eventually("it goes on", answers).await;
    work(client, 10).await;
}

/// Each digest begins where the one before it ended, through every outage.
fn contiguous(instance: &Instance) {
    let digests: Vec<Value> =
        files(&bucket(instance), "CloudTrail-Digest").iter().map(|file| unpack(file)).collect();
    assert_eq!(digests[0]["previousDigestSignature"], Value::Null);
    for pair in digests.windows(2) {
        assert_eq!(pair[0]["digestEndTime"], pair[1]["digestStartTime"]);
        assert_eq!(pair[0]["digestS3Object"], pair[1]["previousDigestS3Object"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_what_was_changed_removed_or_added() {
    let instance = instance();
    let daemon: Daemon = instance.start().await;
    let client = daemon.client().await;
    make_trail(&client).await;
    for _ in 0..4 {
        let before = files(&bucket(&instance), "/CloudTrail/").len();
        work(&client, 3).await;
        eventually("a file is delivered", async || files(&bucket(&instance), "/CloudTrail/").len() > before)
            .await;
    }
    eventually("there are digests", async || files(&bucket(&instance), "CloudTrail-Digest").len() >= 4).await;
    stop(&client).await;
    settled(&instance, &client).await;

    let logs = files(&bucket(&instance), "/CloudTrail/");
    let digests = files(&bucket(&instance), "CloudTrail-Digest");
    let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
    let backup = |file: &Path| fs::read(file).unwrap();
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let found = |what: &str, file: &Path| {
        let (code, report) = verify(&instance);
        let findings = report["Findings"].as_array().unwrap();
        let named = findings.iter().any(|finding| {
            let finding = finding.as_str().unwrap();
            finding.contains(&name(file)) && finding.contains(what)
        });
        assert!(code == Some(1) && named, "{what} {}: {report}", name(file));
    };

    for file in [&logs[1], &digests[1]] {
        let content = backup(file);
        let text = unpack(file).to_string().replace("us-east-1", "us-east-2");
        fs::write(file, gzip(&text)).unwrap();
        found("was changed", file);
        fs::remove_file(file).unwrap();
        found("was removed", file);
        fs::write(file, content).unwrap();
    }
    let added = logs[0].with_file_name(name(&logs[0]).replace(".json", "X.json"));
    let early = added.with_file_name(name(&added).replacen("_20", "_19", 1));
    fs::write(&early, gzip("{\"Records\":[]}")).unwrap();
    found("was added", &early);
    fs::remove_file(&early).unwrap();
    assert_eq!(verify(&instance).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trails_operations_are_cloudtrails() {
    let instance = instance();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let refused = async |name: &str, bucket: &str| {
        let request = cloudtrail::CreateTrailRequest {
            name: Some(name.into()),
            s3_bucket_name: Some(bucket.into()),
            ..Default::default()
        };
        client.call(request).await.unwrap_err().exception
    };
    assert_eq!(refused("a", BUCKET).await, "InvalidTrailNameException");
    assert_eq!(refused(TRAIL, "No Bucket").await, "InvalidS3BucketNameException");
    make_trail(&client).await;
    assert_eq!(refused(TRAIL, BUCKET).await, "TrailAlreadyExistsException");

    let arn = format!("arn:aws:cloudtrail:us-east-1:111122223333:trail/{TRAIL}");
    let trail =
        client.call(cloudtrail::GetTrailRequest { name: Some(arn.clone()) }).await.unwrap().trail.unwrap();
    assert_eq!(trail.trail_arn.as_deref(), Some(arn.as_str()));
    assert_eq!((trail.log_file_validation_enabled, trail.is_multi_region_trail), (Some(true), Some(false)));
    let tag = |key: &str| cloudtrail::Tag { key: Some(key.into()), value: Some("v".into()) };
    let add =
        cloudtrail::AddTagsRequest { resource_id: Some(arn.clone()), tags_list: vec![tag("a"), tag("b")] };
    client.call(add).await.unwrap();
    let remove = cloudtrail::RemoveTagsRequest { resource_id: Some(arn.clone()), tags_list: vec![tag("a")] };
    client.call(remove).await.unwrap();
    let list =
        client.call(cloudtrail::ListTagsRequest { resource_id_list: vec![arn.clone()], next_token: None });
    assert_eq!(list.await.unwrap().resource_tag_list[0].tags_list, [tag("b")]);

    let selectors = cloudtrail::PutEventSelectorsRequest {
        trail_name: Some(TRAIL.into()),
        event_selectors: vec![cloudtrail::EventSelector {
            exclude_management_event_sources: vec!["kms.amazonaws.com".into()],
            ..Default::default()
        }],
        ..Default::default()
    };
    client.call(selectors).await.unwrap();
    work(&client, 3).await;
    stop(&client).await;
    eventually("the selected events are delivered", async || {
        files(&bucket(&instance), "/CloudTrail/")
            .iter()
            .any(|file| unpack(file).to_string().contains("PutEventSelectors"))
    })
    .await;
    let records: Vec<Value> =
        files(&bucket(&instance), "/CloudTrail/").iter().map(|file| unpack(file)).collect();
    assert!(!serde_json::to_string(&records).unwrap().contains("\"Encrypt\""));

    client.call(cloudtrail::DeleteTrailRequest { name: Some(TRAIL.into()) }).await.unwrap();
    let gone = client.call(cloudtrail::GetTrailRequest { name: Some(TRAIL.into()) }).await.unwrap_err();
    assert_eq!(gone.exception, "TrailNotFoundException");
    assert_eq!(client.findings().await, Vec::<String>::new());
}

/// Has the daemon's time follow a file; none where nothing can.
fn with_a_clock(instance: &mut Instance) -> Option<PathBuf> {
    let faketime = faketime()?;
    let clock = instance.beside("clock");
    fs::write(&clock, "+0").unwrap();
    instance.set("LD_PRELOAD", faketime.display().to_string());
    instance.set("FAKETIME_TIMESTAMP_FILE", clock.display().to_string());
    instance.set("FAKETIME_NO_CACHE", "1");
    instance.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    instance.set("TZ", "UTC");
    Some(clock)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_goes_by_the_order_of_events_and_not_by_their_times() {
    let mut instance = instance();
    let Some(clock) = with_a_clock(&mut instance) else { return };
    let daemon = instance.start().await;
    let client = daemon.client().await;
    // A clock that stands: all of it is in one millisecond.
    let stands = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    fs::write(&clock, stands).unwrap();
    make_trail(&client).await;
    work(&client, 3).await;
    stop(&client).await;
    work(&client, 3).await;
    start(&client).await;
    work(&client, 3).await;
    fs::write(&clock, "+20m").unwrap();
    stop(&client).await;
    // And one that is set back.
    fs::write(&clock, "+0").unwrap();
    work(&client, 3).await;
    start(&client).await;
    work(&client, 3).await;
    stop(&client).await;
    fs::write(&clock, "+20m").unwrap();
    settled(&instance, &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_forth_and_back_loses_nothing_and_accuses_nobody() {
    let mut instance = instance();
    let Some(clock) = with_a_clock(&mut instance) else { return };
    let daemon = instance.start().await;
    let client = daemon.client().await;
    make_trail(&client).await;
    // While it is set back no digest can end.
    for (offset, digests) in [("+0", true), ("+20m", true), ("+0", false), ("+20m", true)] {
        fs::write(&clock, offset).unwrap();
        let known = delivered(&instance).len();
        work(&client, 5).await;
        eventually("it is delivered", async || delivered(&instance).len() >= known + 6).await;
        if digests {
            eventually("a digest has it", async || verify(&instance).1["NotYetCovered"] == 0).await;
        }
        let (code, report) = verify(&instance);
        assert_eq!(code, Some(0), "{offset}: {report}");
    }
    stop(&client).await;
    settled(&instance, &client).await;
}
