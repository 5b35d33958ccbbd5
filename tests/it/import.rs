//! Imported key material: what expires, and what kill -9 leaves.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use strongroom::proto::kms::{self, AlgorithmSpec, KeySpec, KeyState};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{
    Client, Dice, Instance, KEK_BYTES, create, eventually, faketime, import, named, rounds, wrapped,
};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;
const OAEP: AlgorithmSpec = AlgorithmSpec::RsaesOaepSha256;
const DAY_S: i64 = 24 * 60 * 60;
/// Kills, unless a soak asks for more.
const ROUNDS: u64 = 3;
const WORKERS: u8 = 3;

fn sealed(parameters: &kms::GetParametersForImportResponse, material: &[u8]) -> Vec<u8> {
    wrapped(OAEP, parameters.public_key(), &[9; KEK_BYTES], material)
}

fn delete(key: &str) -> kms::DeleteImportedKeyMaterialRequest {
    kms::DeleteImportedKeyMaterialRequest { key_id: Some(key.to_owned()), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn material_and_tokens_expire_by_the_clock() {
    let Some(faketime) = faketime() else { return };
    let mut instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let (expires, stays) = (
        client.create_external(create(SYMMETRIC)).await.unwrap(),
        client.create_external(create(SYMMETRIC)).await.unwrap(),
    );
    let parameters = client.parameters(&expires, OAEP).await.unwrap();
    let request = kms::ImportKeyMaterialRequest {
        expiration_model: None,
        valid_to: Some(prost_types::Timestamp { seconds: now + 10 * DAY_S, nanos: 0 }),
        ..import(&expires, &parameters, sealed(&parameters, &[1; 32]))
    };
    client.call(request).await.unwrap();
    let blob = client.encrypt(&expires, b"waits for its key").await.unwrap();
    let old = client.parameters(&stays, OAEP).await.unwrap();
    client.call(import(&stays, &old, sealed(&old, &[2; 32]))).await.unwrap();
    daemon.terminate().await;
    assert_eq!(instance.database().await.bodies("import-parameters").await.len(), 2);

    instance.set("LD_PRELOAD", faketime.display().to_string());
    instance.set("FAKETIME", "+11d");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    eventually("the material has expired", async || {
        client.state(&expires).await.unwrap() == KeyState::PendingImport
    })
    .await;
    let refused = client.decrypt(&blob).await.unwrap_err();
    assert_eq!(refused.exception, "KMSInvalidStateException");
    let refused = client.call(import(&stays, &old, sealed(&old, &[2; 32]))).await.unwrap_err();
    assert_eq!(refused.exception, "ExpiredImportTokenException");
    client.use_key(&stays, SYMMETRIC).await.unwrap();
    eventually("wrapping keys that expired are gone", async || {
        instance.database().await.bodies("import-parameters").await.is_empty()
    })
    .await;
    let events = client.events().await;
    let told = named(&events, "DeleteExpiredKeyMaterial");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["serviceEventDetails"]["keyId"], *expires);
    let rows = instance.database().await.bodies("backing-key").await;
    assert_eq!(rows.iter().filter(|row| row["home"] == "deleted").count(), 1);

    let parameters = client.parameters(&expires, OAEP).await.unwrap();
    client.call(import(&expires, &parameters, sealed(&parameters, &[1; 32]))).await.unwrap();
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"waits for its key");
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

/// A key of a worker's, and what its client was told.
struct Brought {
    id: String,
    /// Whether the material is there; unknown where the answer never came.
    is_there: Option<bool>,
    blobs: Vec<Vec<u8>>,
}

/// Imports, uses, deletes and imports again until nobody answers.
async fn work(client: Client, worker: u8, mut keys: Vec<Brought>, mut dice: Dice) -> Vec<Brought> {
    let material = [worker; 32];
    loop {
        if keys.is_empty() || dice.roll(4) == 0 {
            let Ok(id) = client.create_external(create(SYMMETRIC)).await else { return keys };
            keys.push(Brought { id, is_there: Some(false), blobs: Vec::new() });
        }
        let at = dice.roll(keys.len());
        let Brought { id, is_there, blobs } = &mut keys[at];
        let answer = match *is_there {
            Some(true) if dice.roll(2) == 0 => match client.encrypt(id, id.as_bytes()).await {
                Ok(blob) => {
                    blobs.push(blob);
                    Ok(())
                }
                Err(refusal) => Err(refusal),
            },
            Some(true) => {
                *is_there = None;
                client.call(delete(id)).await.map(|_| *is_there = Some(false))
            }
            _ => {
                *is_there = None;
                match client.parameters(id, OAEP).await {
                    Ok(parameters) => {
                        let request = import(id, &parameters, sealed(&parameters, &material));
                        client.call(request).await.map(|_| *is_there = Some(true))
                    }
                    Err(refusal) => Err(refusal),
                }
            }
        };
        if let Err(refusal) = answer {
            assert!(!refusal.is_answer(), "{refusal:?}");
            return keys;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_leaves_no_key_half_imported() {
    let instance = Instance::new();
    let mut brought: Vec<(u8, Vec<Brought>)> = (1..=WORKERS).map(|worker| (worker, Vec::new())).collect();
    for round in 0..rounds(ROUNDS) {
        let daemon = instance.start().await;
        let mut workers = JoinSet::new();
        for (worker, keys) in brought.drain(..) {
            let (client, dice) = (daemon.client().await, Dice::new(round * 100 + u64::from(worker)));
            workers.spawn(async move { (worker, work(client, worker, keys, dice).await) });
        }
        sleep(Duration::from_millis(1500 + Dice::new(round).roll(1500) as u64)).await;
        daemon.kill9();
        brought = workers.join_all().await;

        let daemon = instance.start().await;
        let client = daemon.client().await;
        for (worker, keys) in &mut brought {
            for key in keys {
                let is_there = match client.state(&key.id).await.expect("a key that a client was told of") {
                    KeyState::Enabled => true,
                    KeyState::PendingImport => false,
                    state => panic!("{} is {state:?}", key.id),
                };
                assert!(key.is_there.is_none_or(|told| told == is_there), "{} was told otherwise", key.id);
                if !is_there {
                    let parameters = client.parameters(&key.id, OAEP).await.unwrap();
                    let request = import(&key.id, &parameters, sealed(&parameters, &[*worker; 32]));
                    client.call(request).await.unwrap();
                }
                key.is_there = Some(true);
                client.use_key(&key.id, SYMMETRIC).await.unwrap();
                for blob in &key.blobs {
                    assert_eq!(client.decrypt(blob).await.unwrap(), key.id.as_bytes());
                }
            }
        }
        assert_eq!(instance.token().ids(), instance.database().await.token_ids().await);
        assert_eq!(client.findings().await, Vec::<String>::new());
        daemon.kill9();
    }
    let keys = brought.iter().map(|(_, keys)| keys.len()).sum::<usize>();
    assert!(keys > 5, "there was no load: {keys} keys");
}
