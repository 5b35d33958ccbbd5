//! Insights of a real daemon, whose minutes are short: what is unusual is on the
//! record while it lasts, wherever events are.

use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use strongroom::proto::cloudtrail::{self, InsightType, SourceEventCategory};
use strongroom::proto::kms::{self, KeySpec};
use tokio::time::sleep;

use crate::support::{Client, Instance, eventually};

const TRAIL: &str = "unusual";
const MINUTE: Duration = Duration::from_millis(200);
const BURST: usize = 150;

async fn make_trail(client: &Client) {
    let name = || Some(TRAIL.to_owned());
    let create = cloudtrail::CreateTrailRequest {
        name: name(),
        s3_bucket_name: Some("bucket".into()),
        ..Default::default()
    };
    client.call(create).await.unwrap();
    client.call(cloudtrail::StartLoggingRequest { name: name() }).await.unwrap();
    let get = cloudtrail::GetInsightSelectorsRequest { trail_name: name(), ..Default::default() };
    assert_eq!(client.call(get.clone()).await.unwrap_err().exception, "InsightNotEnabledException");
    let selector = |kind: InsightType| cloudtrail::InsightSelector {
        insight_type: Some(kind as i32),
        event_categories: vec![SourceEventCategory::Management as i32, SourceEventCategory::Data as i32],
    };
    let selectors =
        vec![selector(InsightType::ApiCallRateInsight), selector(InsightType::ApiErrorRateInsight)];
    let put = cloudtrail::PutInsightSelectorsRequest {
        trail_name: name(),
        insight_selectors: selectors.clone(),
        ..Default::default()
    };
    client.call(put).await.unwrap();
    assert_eq!(client.call(get).await.unwrap().insight_selectors, selectors);
}

/// The Insights of an operation, oldest first.
async fn insights(client: &Client, name: &str) -> Vec<Value> {
    let lookup = cloudtrail::LookupEventsRequest {
        event_category: Some(cloudtrail::EventCategory::Insight as i32),
        ..Default::default()
    };
    let mut found: Vec<Value> = Vec::new();
    for event in client.call(lookup).await.unwrap().events {
        if event.event_name.as_deref() == Some(name) {
            found.push(serde_json::from_str(&event.cloud_trail_event.unwrap()).unwrap());
        }
    }
    found.reverse();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unusual_is_on_the_record_from_its_start_to_its_end() {
    let mut instance = Instance::new();
    instance.set("STRONGROOM_TRAIL__FOLDER", instance.beside("buckets").display().to_string());
    instance.set("STRONGROOM_TRAIL__DELIVERY_INTERVAL", "200ms");
    instance.set("STRONGROOM_INSIGHTS__MINUTE", format!("{}ms", MINUTE.as_millis()));
    instance.set("STRONGROOM_INSIGHTS__LEARNING", "3s");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    make_trail(&client).await;
    let key = client.create(KeySpec::SymmetricDefault).await.unwrap();
    for _ in 0..20 {
        client.encrypt(&key, b"as usual").await.unwrap();
        sleep(MINUTE).await;
    }
    assert_eq!(insights(&client, "Encrypt").await, Vec::<Value>::new());

    // At the same time, so that a slow machine too does many in one minute.
    let burst = (0..BURST).map(|_| client.encrypt(&key, b"more than usual"));
    for answer in join_all(burst).await {
        answer.unwrap();
    }
    eventually("the burst is over", async || {
        insights(&client, "Encrypt").await.iter().any(|record| record["insightDetails"]["state"] == "End")
    })
    .await;
    let found = insights(&client, "Encrypt").await;
    let [start, end] = &found[..] else { panic!("{found:?}") };
    assert_eq!(start["insightDetails"]["state"], "Start");
    assert_eq!(start["sharedEventID"], end["sharedEventID"]);
    assert_ne!(start["eventID"], end["eventID"]);
    assert_eq!(
        (&start["eventCategory"], &start["eventType"]),
        (&"Insight".into(), &"AwsCloudTrailInsight".into())
    );
    for record in [start, end] {
        let details = &record["insightDetails"];
        assert_eq!(details["insightType"], "ApiCallRateInsight");
        assert_eq!(details["eventSource"], "kms.amazonaws.com");
        let statistics = &details["insightContext"]["statistics"];
        let average = |of: &str| statistics[of]["average"].as_f64().unwrap();
        // How much more depends on how many minutes a slow machine takes for it.
        assert!(average("insight") > average("baseline"), "{record}");
        let attributions = details["insightContext"]["attributions"].as_array().unwrap();
        let names: Vec<&str> = attributions.iter().map(|each| each["attribute"].as_str().unwrap()).collect();
        assert_eq!(names, ["userIdentityArn", "userAgent", "errorCode"]);
        assert_eq!(attributions[0]["insight"][0]["value"], "arn:aws:iam::111122223333:user/administrator");
        assert_eq!(attributions[2]["insight"][0]["value"], "null");
    }

    // In the history of events there are none, and in files of their own they are.
    let of_history = client.call(cloudtrail::LookupEventsRequest::default()).await.unwrap();
    assert!(of_history.events.iter().all(|event| !event.cloud_trail_event().contains("insightDetails")));
    let folder = instance.beside("buckets").join("bucket/AWSLogs/111122223333/CloudTrail-Insight");
    eventually("they are delivered", async || folder.is_dir()).await;

    let metric = cloudtrail::ListInsightsMetricDataRequest {
        event_source: Some("kms.amazonaws.com".into()),
        event_name: Some("Encrypt".into()),
        insight_type: Some(InsightType::ApiCallRateInsight as i32),
        period: Some(60),
        ..Default::default()
    };
    let data = client.call(metric).await.unwrap();
    assert_eq!(data.values.iter().sum::<f64>(), (20 + BURST) as f64);
    assert_eq!(data.values.len(), data.timestamps.len());

    // Errors are counted by their codes.
    let disable = kms::DisableKeyRequest { key_id: Some(key.clone()) };
    client.call(disable).await.unwrap();
    let refused = (0..BURST).map(|_| client.encrypt(&key, b"refused"));
    for answer in join_all(refused).await {
        assert_eq!(answer.unwrap_err().exception, "DisabledException");
    }
    let of_errors = async || {
        let found = insights(&client, "Encrypt").await;
        found.into_iter().find(|record| record["insightDetails"]["insightType"] == "ApiErrorRateInsight")
    };
    eventually("errors are unusual", async || of_errors().await.is_some()).await;
    assert_eq!(of_errors().await.unwrap()["insightDetails"]["errorCode"], "DisabledException");
    assert_eq!(client.findings().await, Vec::<String>::new());
}
