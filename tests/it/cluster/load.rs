//! A three-member cluster under a mixed load while one member after another
//! fails, comes back and is replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::signature;
use spki::SubjectPublicKeyInfoRef;
use spki::der::Decode as _;
use strongroom::hsm::{
    Cluster, Curve, Hash, HsmError, KeyRef, KeyRules, Made, Material, MemberState, Scheme, Use,
};
use tokio::time::Instant;

use super::fixture::{Hsms, RESIDENT, all_serve, impatient, until};
use crate::hsm::{id, soon};

const CLIENTS: usize = 32;
/// A caller's deadline.
const DEADLINE: Duration = Duration::from_secs(30);

struct Keys {
    aes: KeyRef,
    hmac: (KeyRef, Vec<u8>),
    pair: (KeyRef, Vec<u8>),
}

#[derive(Default)]
struct Tally {
    calls: AtomicU64,
    failed: AtomicU64,
}

async fn client(cluster: Arc<Cluster>, keys: Arc<Keys>, tally: Arc<Tally>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = round(&cluster, &keys, begun + DEADLINE).await;
        assert!(begun.elapsed() < 2 * DEADLINE, "an answer came long after its deadline");
        tally.calls.fetch_add(4, Ordering::Relaxed);
        if let Err(error) = answer {
            assert!(!matches!(error, HsmError::Input | HsmError::Missing(_)), "a wrong answer: {error}");
            tally.failed.fetch_add(1, Ordering::Relaxed);
            eprintln!("failed: {error}");
            // A refusal comes at once: no storm of them.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Four calls, each answer checked.
async fn round(cluster: &Cluster, keys: &Keys, deadline: Instant) -> Result<(), HsmError> {
    let sealed = cluster.encrypt_gcm(&keys.aes, b"aad", b"secret", deadline).await?;
    let opened = cluster.decrypt_gcm(&keys.aes, sealed.iv, b"aad", &sealed.ciphertext, deadline).await?;
    assert_eq!(opened.as_slice(), b"secret");
    let (key, expected) = &keys.hmac;
    assert_eq!(cluster.mac(key, Hash::Sha256, b"message", deadline).await?, *expected);
    let (key, public_key) = &keys.pair;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"message");
    let made = cluster.sign(key, Scheme::Ecdsa, digest.as_ref(), deadline).await?;
    signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, public_key)
        .verify(b"message", &made)
        .expect("a wrong signature");
    Ok(())
}

async fn keys(cluster: &Cluster) -> Keys {
    let make =
        async |material, usage| -> Made { cluster.generate(id(), material, usage, soon()).await.unwrap() };
    let aes = make(Material::Aes256, Use::Encrypt).await.key;
    let hmac = make(Material::Generic(32), Use::Mac).await.key;
    let mac = cluster.mac(&hmac, Hash::Sha256, b"message", soon()).await.unwrap();
    let pair = make(Material::Ec(Curve::P256), Use::Sign).await;
    let spki = pair.public_key.unwrap();
    let bare = SubjectPublicKeyInfoRef::from_der(&spki).unwrap().subject_public_key.raw_bytes().to_vec();
    Keys { aes, hmac: (hmac, mac), pair: (pair.key, bare) }
}

/// Waits until the clients have made some more calls.
async fn more(tally: &Tally, calls: u64) {
    let goal = tally.calls.load(Ordering::Relaxed) + calls;
    let reached = async {
        while tally.calls.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("the clients stand still");
}

async fn outlive_faults(rules: KeyRules) {
    let hsms = Hsms::new(3);
    let cluster = hsms.start(3, impatient(), rules);
    all_serve(&cluster).await;
    let keys = Arc::new(keys(&cluster).await);
    let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let spawn = |_| tokio::spawn(client(cluster.clone(), keys.clone(), tally.clone(), stop.clone()));
    let clients: Vec<_> = (0..CLIENTS).map(spawn).collect();
    for round in 0..crate::support::rounds(1) as usize {
        let victim = |step: usize| (round + step) % 3;
        // Its folder is gone.
        hsms.kill(victim(0));
        until(&cluster, &hsms.uri(victim(0)), MemberState::Lost).await;
        more(&tally, 1000).await;
        hsms.revive(victim(0));
        all_serve(&cluster).await;
        // It is pulled out.
        hsms.tokens[victim(1)].set_rules("* rv=0x32");
        until(&cluster, &hsms.uri(victim(1)), MemberState::Lost).await;
        more(&tally, 1000).await;
        hsms.tokens[victim(1)].set_rules("");
        all_serve(&cluster).await;
        // It hangs.
        hsms.tokens[victim(2)].set_rules("* hang");
        until(&cluster, &hsms.uri(victim(2)), MemberState::Lost).await;
        more(&tally, 1000).await;
        hsms.tokens[victim(2)].set_rules("");
        all_serve(&cluster).await;
        more(&tally, 1000).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let (calls, failed) = (tally.calls.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
    eprintln!("{calls} calls, {failed} failed");
    assert!(failed * 1000 <= calls, "{failed} of {calls} calls failed");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrapped_keys_outlive_faults_under_load() {
    outlive_faults(KeyRules::DEFAULT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resident_keys_outlive_faults_under_load() {
    outlive_faults(RESIDENT).await;
}
