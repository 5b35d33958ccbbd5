//! Calls that their clients give up: what has begun is done and recorded, or
//! neither.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;
use strongroom::proto::kms::KeySpec;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{Client, Daemon, Dice, Instance, create, encrypt, eventually, rounds, sign};

const WORKERS: u64 = 4;
const CALLS: usize = 150;
/// A client's patience is this, doubled some times: from less than any call
/// takes to more than most.
const PATIENCE_MIN_US: u64 = 50;
const DOUBLINGS: usize = 12;
const EDWARDS: KeySpec = KeySpec::EccNistEdwards25519;

/// Calls whose answers came.
#[derive(Default)]
struct Answered {
    made: Vec<String>,
    encrypted: usize,
    ids: Vec<String>,
}

/// Calls, and mostly leaves before the answer: by dropping the call, or by a
/// deadline that is too short.
async fn impatient(client: Client, key: String, mut dice: Dice) -> Answered {
    let mut answered = Answered::default();
    for _ in 0..CALLS {
        let patience = Duration::from_micros(PATIENCE_MIN_US << dice.roll(DOUBLINGS));
        let how = dice.roll(8);
        macro_rules! ask {
            ($request:expr) => {
                match how {
                    0 => client.ask($request).await.ok(),
                    1..4 => client.ask_within($request, patience).await.ok(),
                    _ => timeout(patience, client.ask($request)).await.ok().and_then(Result::ok),
                }
            };
        }
        match dice.roll(4) {
            0 => {
                let spec = [EDWARDS, KeySpec::SymmetricDefault][dice.roll(2)];
                if let Some(answer) = ask!(create(spec)) {
                    answered.made.push(answer.message.key_metadata.unwrap().key_id.unwrap());
                    answered.ids.push(answer.request_id);
                }
            }
            1 => {
                if let Some(answer) = ask!(sign("alias/no-such-key", EDWARDS, b"m")) {
                    panic!("{answer:?}");
                }
            }
            _ => {
                if let Some(answer) = ask!(encrypt(&key, b"m")) {
                    answered.encrypted += 1;
                    answered.ids.push(answer.request_id);
                }
            }
        }
    }
    answered
}

/// How many calls of each operation began, as the metrics say.
async fn begun(daemon: &Daemon) -> HashMap<String, usize> {
    let (_, page) = daemon.page("/metrics").await;
    let mut counts = HashMap::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("strongroom_operations_total{operation=\""))
    {
        let (operation, rest) = line.split_once('"').unwrap();
        let count: usize = rest.rsplit(' ').next().unwrap().parse().unwrap();
        *counts.entry(operation.to_owned()).or_default() += count;
    }
    counts
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["eventName"] == name).collect()
}

fn succeeded<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    named(events, name).into_iter().filter(|event| event["errorCode"].is_null()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_impatient_clients_began_is_on_the_record() {
    for round in 0..rounds(1) {
        be_impatient(round).await;
    }
}

async fn be_impatient(round: u64) {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(KeySpec::SymmetricDefault).await.unwrap();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        workers.spawn(impatient(daemon.client().await, key.clone(), Dice::new(round * WORKERS + worker)));
    }
    let answered = workers.join_all().await;

    eventually("every call that began has its event", async || {
        let begun = begun(&daemon).await;
        let events = client.events().await;
        ["CreateKey", "Encrypt", "Sign"].iter().all(|name| begun[*name] == named(&events, name).len())
    })
    .await;
    let began = begun(&daemon).await["CreateKey"];
    // Calls that nobody waits for may still run: a drained daemon has none.
    daemon.terminate().await;
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let events = client.events().await;
    let made: Vec<String> = succeeded(&events, "CreateKey")
        .iter()
        .map(|event| event["responseElements"]["keyMetadata"]["keyId"].as_str().unwrap().to_owned())
        .collect();
    let told: usize = answered.iter().map(|answered| answered.made.len()).sum();
    let encrypted: usize = answered.iter().map(|answered| answered.encrypted).sum();
    assert!(told > 0 && encrypted > 0, "no call was answered");
    assert!(told + 1 < began, "no call was given up");
    assert!(succeeded(&events, "Encrypt").len() >= encrypted);

    // The record and the keys are the same, whoever waited for the answer.
    let listed: HashSet<String> = client.keys().await.into_iter().collect();
    assert_eq!(made.len(), listed.len(), "a key was made twice, or not recorded");
    assert_eq!(HashSet::from_iter(made.clone()), listed);
    for key in answered.iter().flat_map(|answered| &answered.made) {
        assert!(listed.contains(key));
    }
    for key in &made {
        client.state(key).await.unwrap();
    }
    let ids: Vec<&Value> = events.iter().map(|event| &event["requestID"]).collect();
    for id in answered.iter().flat_map(|answered| &answered.ids) {
        assert_eq!(ids.iter().filter(|known| **known == id).count(), 1, "{id}");
    }

    // So are the record and the token, once the restart has undone what was given up half way.
    eventually("nothing half made is in the token", async || {
        instance.token().ids() == instance.database().await.token_ids().await
    })
    .await;
    let resident = succeeded(&events, "CreateKey")
        .iter()
        .filter(|event| event["requestParameters"]["keySpec"] == "ECC_NIST_EDWARDS25519")
        .count();
    let system_keys = 3;
    assert_eq!(instance.token().ids().len(), resident + system_keys);
    assert_eq!(daemon.client().await.findings().await, Vec::<String>::new());
}
