//! kill -9 under load: what a client was told is true afterwards, and nothing
//! half done is left.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use strongroom::proto::kms::{self, KeySpec, KeyState};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{
    Client, Dice, Instance, Refusal, Rpc, create, decrypt, encrypt, eventually, rounds, sign,
};

/// Kills, unless a soak asks for more.
const ROUNDS: u64 = 4;
const WORKERS: u64 = 4;
/// Answers before a kill, however slow the disk is.
const ANSWERS_MIN: usize = 10;
/// Keys of one worker.
const KEYS_MAX: usize = 12;
const SPECS: [KeySpec; 3] = [KeySpec::SymmetricDefault, KeySpec::EccNistEdwards25519, KeySpec::EccNistP256];

/// A key that a client was told of.
struct Key {
    id: String,
    spec: KeySpec,
    /// The state that it has; two where the answer to a change never came.
    states: Vec<KeyState>,
    /// Ciphertexts with their plaintexts.
    blobs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a client was told.
#[derive(Default)]
struct Told {
    worker: u64,
    keys: Vec<Key>,
    /// The targets that an alias may have: none is an alias that is not there.
    aliases: HashMap<String, Vec<Option<String>>>,
    /// Requests that were answered, with their operation.
    answered: Vec<(String, &'static str)>,
    /// How many were answered to any worker.
    answers: Arc<AtomicUsize>,
}

impl Told {
    /// Calls, and remembers that there was an answer.
    async fn ask<R: Rpc>(&mut self, client: &Client, request: R) -> Result<R::Response, Refusal> {
        let name = R::PATH.rsplit('/').next().unwrap();
        match client.ask(request).await {
            Ok(answer) => {
                self.note(answer.request_id, name);
                Ok(answer.message)
            }
            Err(refusal) => {
                if refusal.is_answer() {
                    self.note(refusal.request_id.clone(), name);
                }
                Err(refusal)
            }
        }
    }

    fn note(&mut self, request_id: String, name: &'static str) {
        self.answered.push((request_id, name));
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    async fn make_key(&mut self, client: &Client, spec: KeySpec) -> Result<(), Refusal> {
        let id = self.ask(client, create(spec)).await?.key_metadata.unwrap().key_id.unwrap();
        self.keys.push(Key { id, spec, states: vec![KeyState::Enabled], blobs: Vec::new() });
        Ok(())
    }

    /// Changes the state of the key at `at`.
    async fn change<R: Rpc>(
        &mut self,
        client: &Client,
        at: usize,
        to: KeyState,
        request: R,
    ) -> Result<(), Refusal> {
        self.keys[at].states.push(to);
        let answer = self.ask(client, request).await;
        match &answer {
            Ok(_) => self.keys[at].states = vec![to],
            Err(refusal) if refusal.is_answer() => self.keys[at].states.truncate(1),
            Err(_) => (),
        }
        answer.map(|_| ())
    }

    async fn use_alias(&mut self, client: &Client, name: String, key: String) -> Result<(), Refusal> {
        let now = self.aliases.get(&name).and_then(|targets| targets[0].clone());
        let delete = now.as_ref() == Some(&key);
        let then = (!delete).then(|| key.clone());
        self.aliases.insert(name.clone(), vec![now.clone(), then.clone()]);
        let (alias_name, target_key_id) = (Some(name.clone()), Some(key));
        match (now, delete) {
            (_, true) => self.ask(client, kms::DeleteAliasRequest { alias_name }).await.map(|_| ()),
            (None, _) => {
                self.ask(client, kms::CreateAliasRequest { alias_name, target_key_id }).await.map(|_| ())
            }
            (Some(_), _) => {
                self.ask(client, kms::UpdateAliasRequest { alias_name, target_key_id }).await.map(|_| ())
            }
        }?;
        self.aliases.insert(name, vec![then]);
        Ok(())
    }

    /// One operation of the load.
    async fn step(&mut self, client: &Client, dice: &mut Dice) -> Result<(), Refusal> {
        let choice = dice.roll(10);
        if self.keys.is_empty() || (choice < 2 && self.keys.len() < KEYS_MAX) {
            return self.make_key(client, SPECS[dice.roll(SPECS.len())]).await;
        }
        let at = dice.roll(self.keys.len());
        let Key { id, spec, states, blobs } = &self.keys[at];
        let (id, spec) = (id.clone(), *spec);
        match states[0] {
            KeyState::Enabled => (),
            KeyState::Disabled if choice < 5 => {
                let request = kms::EnableKeyRequest { key_id: Some(id) };
                return self.change(client, at, KeyState::Enabled, request).await;
            }
            KeyState::Disabled => {
                let refused = self.ask(client, encrypt(&id, b"x")).await.unwrap_err();
                return if refused.exception == "DisabledException" { Ok(()) } else { Err(refused) };
            }
            _ => {
                let request = kms::CancelKeyDeletionRequest { key_id: Some(id) };
                return self.change(client, at, KeyState::Disabled, request).await;
            }
        }
        match choice {
            2 => {
                self.change(client, at, KeyState::Disabled, kms::DisableKeyRequest { key_id: Some(id) }).await
            }
            3 => {
                let request = kms::ScheduleKeyDeletionRequest { key_id: Some(id), ..Default::default() };
                self.change(client, at, KeyState::PendingDeletion, request).await
            }
            4 => {
                let name = format!("alias/{}-{}-{}", self.worker, spec.as_str_name(), dice.roll(2));
                self.use_alias(client, name, id).await
            }
            _ if spec != KeySpec::SymmetricDefault => {
                self.ask(client, sign(&id, spec, &dice.roll(usize::MAX).to_be_bytes())).await.map(|_| ())
            }
            5 | 6 if !blobs.is_empty() => {
                let (blob, plaintext) = blobs[dice.roll(blobs.len())].clone();
                let answer = self.ask(client, decrypt(&blob)).await?;
                assert_eq!(answer.plaintext, Some(plaintext));
                Ok(())
            }
            8 => {
                let request = kms::RotateKeyOnDemandRequest { key_id: Some(id) };
                match self.ask(client, request).await {
                    Err(refusal) if refusal.exception == "LimitExceededException" => Ok(()),
                    other => other.map(|_| ()),
                }
            }
            7 => {
                let request = kms::GenerateDataKeyRequest {
                    key_id: Some(id),
                    key_spec: Some(kms::DataKeySpec::Aes256 as i32),
                    ..Default::default()
                };
                let answer = self.ask(client, request).await?;
                self.keys[at].blobs.push((answer.ciphertext_blob.unwrap(), answer.plaintext.unwrap()));
                Ok(())
            }
            _ => {
                let plaintext = dice.roll(usize::MAX).to_be_bytes();
                let blob = self.ask(client, encrypt(&id, &plaintext)).await?.ciphertext_blob.unwrap();
                self.keys[at].blobs.push((blob, plaintext.to_vec()));
                Ok(())
            }
        }
    }

    /// Works until the daemon answers no more.
    async fn work(mut self, client: Client, mut dice: Dice) -> Told {
        loop {
            if let Err(refusal) = self.step(&client, &mut dice).await {
                assert!(!refusal.is_answer(), "{refusal:?}");
                return self;
            }
        }
    }

    /// Everything that was told is so.
    async fn check(&mut self, client: &Client) {
        for key in &mut self.keys {
            let state = client.state(&key.id).await.expect("a key that a client was told of");
            assert!(key.states.contains(&state), "{} is {state:?}, not {:?}", key.id, key.states);
            if state == KeyState::PendingDeletion {
                let request = kms::CancelKeyDeletionRequest { key_id: Some(key.id.clone()) };
                client.call(request).await.unwrap();
            }
            if state != KeyState::Enabled {
                client.call(kms::EnableKeyRequest { key_id: Some(key.id.clone()) }).await.unwrap();
            }
            key.states = vec![KeyState::Enabled];
            client.use_key(&key.id, key.spec).await.unwrap();
            for (blob, plaintext) in &key.blobs {
                assert_eq!(&client.decrypt(blob).await.unwrap(), plaintext);
            }
        }
        let found =
            client.call(kms::ListAliasesRequest { limit: Some(1000), ..Default::default() }).await.unwrap();
        for (name, targets) in &mut self.aliases {
            let alias = found.aliases.iter().find(|alias| alias.alias_name.as_ref() == Some(name));
            let target = alias.map(|alias| alias.target_key_id.clone().unwrap());
            assert!(targets.contains(&target), "{name} is {target:?}, not {targets:?}");
            *targets = vec![target];
        }
    }
}

/// Every answered request has exactly one event, of its operation.
fn check_events(events: &[Value], told: &[Told]) {
    let mut of_request: HashMap<&str, Vec<&str>> = HashMap::new();
    for event in events {
        if let Some(id) = event["requestID"].as_str() {
            of_request.entry(id).or_default().push(event["eventName"].as_str().unwrap());
        }
    }
    for (id, name) in told.iter().flat_map(|told| &told.answered) {
        assert_eq!(of_request.get(id.as_str()), Some(&vec![*name]), "the events of {name} {id}");
    }
}

/// The keys that exist are those whose CreateKey is on the record.
async fn check_keys(events: &[Value], client: &Client) {
    let made: HashSet<String> = events
        .iter()
        .filter(|event| event["eventName"] == "CreateKey" && event["errorCode"].is_null())
        .map(|event| event["responseElements"]["keyMetadata"]["keyId"].as_str().unwrap().to_owned())
        .collect();
    let listed: HashSet<String> = client.keys().await.into_iter().collect();
    assert_eq!(made, listed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_survives_kill_9() {
    let instance = Instance::new();
    let answers = Arc::new(AtomicUsize::new(0));
    let worker = |worker| Told { worker, answers: answers.clone(), ..Told::default() };
    let mut told: Vec<Told> = (0..WORKERS).map(worker).collect();
    for round in 0..rounds(ROUNDS) {
        let enough = answers.load(Ordering::Relaxed) + ANSWERS_MIN;
        let daemon = instance.start().await;
        let mut workers = JoinSet::new();
        for told in told.drain(..) {
            let dice = Dice::new(round * WORKERS + told.worker);
            workers.spawn(told.work(daemon.client().await, dice));
        }
        let mut dice = Dice::new(round);
        eventually("there is load", async || answers.load(Ordering::Relaxed) >= enough).await;
        sleep(Duration::from_millis(150 + dice.roll(700) as u64)).await;
        daemon.kill9();
        told = workers.join_all().await;

        let daemon = instance.start().await;
        let client = daemon.client().await;
        for told in &mut told {
            told.check(&client).await;
        }
        let events = client.events().await;
        check_events(&events, &told);
        check_keys(&events, &client).await;
        eventually("nothing half made is left", async || {
            let mut database = instance.database().await;
            instance.token().named_ids() == database.token_ids().await
                && database.bodies("intent").await.is_empty()
        })
        .await;
        assert_eq!(client.findings().await, Vec::<String>::new());
        // The next round begins with a daemon that was killed while idle.
        daemon.kill9();
    }
    let keys: Vec<&Key> = told.iter().flat_map(|told| &told.keys).collect();
    for spec in SPECS {
        assert!(keys.iter().any(|key| key.spec == spec), "the load made no {spec:?}");
    }
}

/// The first start makes certificates, a token and its keys: wherever it is
/// killed, the next one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_was_killed_is_repeated() {
    for round in 0..rounds(ROUNDS) {
        let instance = Instance::new();
        let mut dice = Dice::new(1000 + round);
        let daemon = instance.spawn();
        sleep(Duration::from_millis(20 + dice.roll(600) as u64)).await;
        daemon.kill9();
        let daemon = instance.start().await;
        let client = daemon.client().await;
        let key = client.create(KeySpec::SymmetricDefault).await.unwrap();
        client.use_key(&key, KeySpec::SymmetricDefault).await.unwrap();
        assert_eq!(instance.token().named_ids(), instance.database().await.token_ids().await);
        assert_eq!(client.findings().await, Vec::<String>::new());
    }
}

/// A kill while the folder is marked as ours, which a slow disk makes likely.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_was_killed_before_all_else_is_repeated() {
    let instance = Instance::new();
    fs::create_dir(instance.dir()).unwrap();
    fs::write(instance.path(".strongroom-dev.new"), "This fol").unwrap();
    instance.start().await.terminate().await;

    // What is not ours is left alone.
    let other = Instance::new();
    fs::create_dir(other.dir()).unwrap();
    fs::write(other.path("letter.txt"), "Dear").unwrap();
    let mut daemon = other.spawn();
    assert_eq!(daemon.ended().await.code(), Some(1));
    assert!(daemon.log().contains("is not empty and was not made by"), "{}", daemon.log());
    assert_eq!(fs::read_dir(other.dir()).unwrap().count(), 1);
}
