//! Rotation by the clock, and at the end of a key's uses.

use serde_json::Value;
use strongroom::proto::kms::{self, KeySpec, RotationType};

use crate::support::{Client, Instance, eventually, faketime, named};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;
/// Keys whose period ends at once.
const KEYS: usize = 12;
const PERIOD_DAYS: i32 = 90;

async fn enable(client: &Client, key: &str) {
    let request = kms::EnableKeyRotationRequest {
        key_id: Some(key.to_owned()),
        rotation_period_in_days: Some(PERIOD_DAYS),
    };
    client.call(request).await.unwrap();
}

async fn material(client: &Client, key: &str) -> String {
    let request = kms::DescribeKeyRequest { key_id: Some(key.to_owned()), ..Default::default() };
    client.call(request).await.unwrap().key_metadata.unwrap().current_key_material_id.unwrap()
}

async fn rotations(client: &Client, key: &str) -> Vec<kms::RotationsListEntry> {
    let request = kms::ListKeyRotationsRequest { key_id: Some(key.to_owned()), ..Default::default() };
    client.call(request).await.unwrap().rotations
}

fn rotated<'a>(events: &'a [Value], key: &str) -> Vec<&'a Value> {
    named(events, "RotateKey")
        .into_iter()
        .filter(|event| event["serviceEventDetails"]["keyId"] == key)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_period_that_ends_rotates_once_whatever_is_killed() {
    let Some(faketime) = faketime() else { return };
    let mut instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let (mut keys, mut blobs, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..KEYS {
        let key = client.create(SYMMETRIC).await.unwrap();
        enable(&client, &key).await;
        blobs.push(client.encrypt(&key, key.as_bytes()).await.unwrap());
        first.push(material(&client, &key).await);
        keys.push(key);
    }
    let (disabled, never) =
        (client.create(SYMMETRIC).await.unwrap(), client.create(SYMMETRIC).await.unwrap());
    enable(&client, &disabled).await;
    client.call(kms::DisableKeyRequest { key_id: Some(disabled.clone()) }).await.unwrap();
    daemon.terminate().await;

    instance.set("LD_PRELOAD", faketime.display().to_string());
    instance.set("FAKETIME", format!("+{}d", PERIOD_DAYS + 1));
    let daemon = instance.start().await;
    let client = daemon.client().await;
    eventually("a key is rotated", async || !rotations(&client, &keys[0]).await.is_empty()).await;
    daemon.kill9();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    for key in &keys {
        eventually("the key is rotated", async || !rotations(&client, key).await.is_empty()).await;
    }
    let events = client.events().await;
    for ((key, blob), first) in keys.iter().zip(&blobs).zip(&first) {
        let current = material(&client, key).await;
        let [rotation] = &rotations(&client, key).await[..] else {
            panic!("{key} has another number of rotations")
        };
        assert_eq!(rotation.rotation_type(), RotationType::Automatic);
        assert_eq!(rotation.key_material_id(), current);
        assert_ne!(current, *first);
        let [event] = rotated(&events, key)[..] else { panic!("{key} has another number of events") };
        assert_eq!(event["eventType"], "AwsServiceEvent");
        assert_eq!(event["userIdentity"]["invokedBy"], "AWS Internal");
        assert_eq!(event["requestID"], Value::Null);
        let details = &event["serviceEventDetails"];
        assert_eq!(details["rotationType"], "AUTOMATIC");
        assert_eq!(details["previousKeyMaterialId"], **first);
        assert_eq!(details["currentKeyMaterialId"], *current);
        assert_eq!(client.decrypt(blob).await.unwrap(), key.as_bytes());
        client.use_key(key, SYMMETRIC).await.unwrap();
    }

    // A disabled key is not rotated before it is enabled: then at once.
    assert!(rotations(&client, &disabled).await.is_empty());
    client.call(kms::EnableKeyRequest { key_id: Some(disabled.clone()) }).await.unwrap();
    eventually("the key is rotated", async || !rotations(&client, &disabled).await.is_empty()).await;
    assert!(rotations(&client, &never).await.is_empty());
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}
