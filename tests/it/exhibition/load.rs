//! Many clients, each with its own mix of requests, who check every answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use strongroom::proto::kms::{self, KeySpec};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::key_stores::house::key_in;
use crate::support::{Client, Daemon, Dice, LONG, Refusal, create, decrypt, encrypt, rounds, sign};

pub const CLIENTS: u64 = 32;
const CONNECTIONS: usize = 4;
/// A request's deadline, which its client names.
const DEADLINE: Duration = Duration::from_secs(20);
/// How much later than its deadline an answer may come on a loaded machine.
const GRACE: Duration = Duration::from_secs(30);
/// Over which a rate is measured.
const WINDOW: Duration = Duration::from_millis(500);
/// Longest that a recovery is measured.
const RECOVERY_MAX: Duration = Duration::from_secs(20);
/// One in so many requests makes a key.
const REQUESTS_PER_KEY: usize = 200;
/// Keys made in a round: what a replaced HSM gets all at once.
const KEYS_MAX: usize = 150;

/// What the clients use.
pub struct Keys {
    symmetric: String,
    signing: String,
    mac: (String, Vec<u8>),
}

impl Keys {
    /// Keys of a key store, or of the default one.
    pub async fn make(client: &Client, store: Option<&str>) -> Keys {
        let make = async |spec| -> String {
            client.call(new_key(store, spec)).await.unwrap().key_metadata.unwrap().key_id.unwrap()
        };
        let symmetric = make(KeySpec::SymmetricDefault).await;
        let signing = make(KeySpec::EccNistP256).await;
        let hmac = make(KeySpec::Hmac256).await;
        let mac = client.call(mac(&hmac)).await.unwrap().mac.unwrap();
        Keys { symmetric, signing, mac: (hmac, mac) }
    }
}

fn new_key(store: Option<&str>, spec: KeySpec) -> kms::CreateKeyRequest {
    store.map_or_else(|| create(spec), |store| key_in(store, spec))
}

fn mac(key: &str) -> kms::GenerateMacRequest {
    kms::GenerateMacRequest {
        key_id: Some(key.to_owned()),
        message: Some(b"message".to_vec()),
        mac_algorithm: Some(kms::MacAlgorithmSpec::HmacSha256 as i32),
        ..Default::default()
    }
}

/// What the clients saw.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub answers: u64,
    pub failed: u64,
    /// Answers that were not true.
    pub wrong: u64,
    /// Answers and failures that came after their deadline.
    pub late: u64,
}

#[derive(Default)]
struct Counts {
    answers: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
    late: AtomicU64,
    stop: AtomicBool,
    /// Makes keys one after another: an HSM whose token is on a slow disk makes
    /// few, and all clients would soon wait for that alone.
    maker: tokio::sync::Mutex<()>,
    made: Mutex<Vec<(String, KeySpec)>>,
}

/// The clients at work.
pub struct Load {
    counts: Arc<Counts>,
    clients: JoinSet<()>,
}

impl Load {
    pub async fn start(daemon: &Daemon, keys: Keys, store: Option<&str>) -> Load {
        let (counts, keys) = (Arc::<Counts>::default(), Arc::new(keys));
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(daemon.client().await);
        }
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = connections[number as usize % CONNECTIONS].clone();
            let (counts, keys, store) = (counts.clone(), keys.clone(), store.map(str::to_owned));
            clients.spawn(
                async move { work(client, &keys, store.as_deref(), Dice::new(number), &counts).await },
            );
        }
        Load { counts, clients }
    }

    /// Waits until there are so many more answers.
    pub async fn more(&self, answers: u64) {
        let goal = self.counts.answers.load(Ordering::Relaxed) + answers;
        let reached = async {
            while self.counts.answers.load(Ordering::Relaxed) < goal {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(2 * LONG, reached).await.expect("the clients stand still");
    }

    /// Answers per second now.
    pub async fn rate(&self) -> f64 {
        let (before, begun) = (self.counts.answers.load(Ordering::Relaxed), Instant::now());
        sleep(WINDOW).await;
        let answers = self.counts.answers.load(Ordering::Relaxed) - before;
        answers as f64 / begun.elapsed().as_secs_f64()
    }

    /// How long after `begun` there was 80% of a rate; none where it never came.
    pub async fn recovers(&self, rate: f64, begun: Instant) -> Option<Duration> {
        while begun.elapsed() < RECOVERY_MAX {
            if self.rate().await >= 0.8 * rate {
                return Some(begun.elapsed());
            }
        }
        None
    }

    /// Stops the clients: what they saw, and the keys that they made.
    pub async fn end(self) -> (Tally, Vec<(String, KeySpec)>) {
        self.counts.stop.store(true, Ordering::Relaxed);
        timeout(2 * LONG, self.clients.join_all()).await.expect("a client hangs");
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        let tally = Tally {
            answers: count(&counts.answers),
            failed: count(&counts.failed),
            wrong: count(&counts.wrong),
            late: count(&counts.late),
        };
        (tally, std::mem::take(&mut counts.made.lock()))
    }
}

async fn work(client: Client, keys: &Keys, store: Option<&str>, mut dice: Dice, counts: &Counts) {
    while !counts.stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let outcome = request(&client, keys, store, &mut dice, counts).await;
        if begun.elapsed() > DEADLINE + GRACE {
            counts.late.fetch_add(1, Ordering::Relaxed);
        }
        match outcome {
            Ok(true) => drop(counts.answers.fetch_add(1, Ordering::Relaxed)),
            Ok(false) => drop(counts.wrong.fetch_add(1, Ordering::Relaxed)),
            Err(refusal) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                eprintln!("failed after {:?}: {refusal:?}", begun.elapsed());
                // A refusal comes at once: no storm of them.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One request, or two of which the second proves the first; whether they are right.
async fn request(
    client: &Client,
    keys: &Keys,
    store: Option<&str>,
    dice: &mut Dice,
    counts: &Counts,
) -> Result<bool, Refusal> {
    macro_rules! ask {
        ($request:expr) => {
            client.ask_within($request, DEADLINE).await?.message
        };
    }
    if dice.roll(REQUESTS_PER_KEY) == 0
        && counts.made.lock().len() < KEYS_MAX * rounds(1) as usize
        && let Ok(_alone) = counts.maker.try_lock()
    {
        let spec = [KeySpec::SymmetricDefault, KeySpec::EccNistP256][dice.roll(2)];
        let made = ask!(new_key(store, spec)).key_metadata.unwrap().key_id.unwrap();
        counts.made.lock().push((made, spec));
        return Ok(true);
    }
    Ok(match dice.roll(4) {
        0 => {
            let secret = format!("secret {}", dice.roll(1_000_000)).into_bytes();
            let blob = ask!(encrypt(&keys.symmetric, &secret)).ciphertext_blob.unwrap();
            ask!(decrypt(&blob)).plaintext.unwrap() == secret
        }
        1 => {
            let request = kms::GenerateDataKeyRequest {
                key_id: Some(keys.symmetric.clone()),
                number_of_bytes: Some(32),
                ..Default::default()
            };
            let data_key = ask!(request);
            ask!(decrypt(&data_key.ciphertext_blob.unwrap())).plaintext == data_key.plaintext
        }
        2 => {
            let request = sign(&keys.signing, KeySpec::EccNistP256, b"message");
            let signature = ask!(request.clone()).signature;
            let verify = kms::VerifyRequest {
                key_id: request.key_id,
                message: request.message,
                message_type: request.message_type,
                signature,
                signing_algorithm: request.signing_algorithm,
                ..Default::default()
            };
            ask!(verify).signature_valid == Some(true)
        }
        _ => ask!(mac(&keys.mac.0)).mac.as_ref() == Some(&keys.mac.1),
    })
}
