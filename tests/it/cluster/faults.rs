//! What one HSM does wrong does not reach the caller while another is well.

use std::time::Duration;

use futures::future::join_all;
use strongroom::hsm::{ClusterSettings, Hash, HsmError, KeyRules, Material, MemberState, Use};
use tokio::time::Instant;

use super::fixture::{Hsms, RESIDENT, all_serve, impatient, unprobed, until};
use crate::hsm::{PIN, fast, id, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_member_is_not_noticed_by_callers() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, impatient(), RESIDENT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key;
    let mac = cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap();
    for rule in [
        "C_Sign rv=0x32",        // DEVICE_REMOVED
        "C_Sign rv=0x30",        // DEVICE_ERROR
        "C_Sign rv=0x31",        // DEVICE_MEMORY
        "C_SignInit rv=0x70",    // MECHANISM_INVALID
        "C_SignInit rv=0x101",   // USER_NOT_LOGGED_IN
        "C_SignInit rv=0x82",    // OBJECT_HANDLE_INVALID
        "C_OpenSession rv=0xB1", // SESSION_COUNT
        "* rv=0xE0",             // TOKEN_NOT_PRESENT
        "C_Sign hang",
        "C_SignInit rv=0x80000001", // a vendor's own
    ] {
        hsms.tokens[1].set_rules(rule);
        for _ in 0..6 {
            let answer = cluster.mac(&key, Hash::Sha256, b"message", soon()).await;
            assert_eq!(answer.as_ref(), Ok(&mac), "{rule}");
        }
        hsms.tokens[1].set_rules("");
        all_serve(&cluster).await;
    }
    // The key is a token object: no session object is left of what failed half way.
    crate::support::eventually("no object is left", async || cluster.session_objects(soon()).await == Ok(0))
        .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_all_hang_cost_a_caller_no_more_than_its_deadline() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, impatient(), RESIDENT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key;
    let mac = cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap();
    hsms.tokens.iter().for_each(|token| token.set_rules("C_Sign hang\nC_SignInit hang"));
    for _ in 0..8 {
        let deadline = Instant::now() + Duration::from_millis(600);
        let answer = cluster.mac(&key, Hash::Sha256, b"message", deadline).await;
        assert!(matches!(answer, Err(HsmError::Deadline | HsmError::Unavailable(_))), "{answer:?}");
    }
    hsms.tokens.iter().for_each(|token| token.set_rules(""));
    all_serve(&cluster).await;
    assert_eq!(cluster.mac(&key, Hash::Sha256, b"message", soon()).await, Ok(mac));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_member_is_waited_for_when_no_other_does_it() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, impatient(), RESIDENT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key;
    let mac = cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap();
    // Longer than a call waits while there are others.
    hsms.tokens[0].set_rules("C_Sign delay_ms=500");
    hsms.tokens[1].set_rules("C_SignInit rv=0x30");
    for _ in 0..3 {
        assert_eq!(cluster.mac(&key, Hash::Sha256, b"message", soon()).await.as_ref(), Ok(&mac));
    }
    cluster.shutdown().await;
}

/// How often a function was called that a rule of a token logs.
fn logged(hsms: &Hsms, index: usize) -> usize {
    let file = hsms.tokens[index].rules().with_extension("log");
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_member_is_not_waited_for_twice() {
    const CALLS: usize = 8;
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, unprobed(), RESIDENT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key;
    hsms.tokens[0].set_rules("C_SignInit log\nC_Sign hang");
    for _ in 0..CALLS {
        cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap();
    }
    assert!(logged(&hsms, 0) <= 1, "{}", logged(&hsms, 0));
    hsms.tokens[0].set_rules("");
    cluster.shutdown().await;
}

/// A call that waits for its key is in no queue, and counts all the same.
#[tokio::test(flavor = "multi_thread")]
async fn calls_on_keys_that_no_member_has_loaded_go_to_all() {
    const CALLS: usize = 12;
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, unprobed(), KeyRules::DEFAULT);
    all_serve(&cluster).await;
    let mut keys = Vec::new();
    for _ in 0..CALLS {
        keys.push(cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key);
    }
    hsms.tokens.iter().for_each(|token| token.set_rules("C_SignInit log\nC_UnwrapKey delay_ms=20"));
    let macs = keys.iter().map(|key| cluster.mac(key, Hash::Sha256, b"message", soon()));
    for mac in join_all(macs).await {
        mac.unwrap();
    }
    let calls = [logged(&hsms, 0), logged(&hsms, 1)];
    assert!(calls.iter().all(|calls| *calls >= CALLS / 4), "{calls:?}");
    cluster.shutdown().await;
}

/// Even its C_Initialize does not return: the daemon ends all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_hangs_keeps_the_end_no_longer_than_its_deadline() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, impatient(), RESIDENT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key;
    hsms.tokens[1].set_rules("C_Initialize log\n* hang");
    until(&cluster, &hsms.uri(1), MemberState::Lost).await;
    let log = hsms.tokens[1].rules().with_extension("log");
    crate::support::eventually("it is initialised anew", async || log.exists()).await;
    // The other one goes on meanwhile.
    cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap();
    let end = async {
        cluster.shutdown().await;
        let modules = hsms.modules.clone();
        tokio::task::spawn_blocking(move || modules.finalise()).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), end).await.expect("the end hangs");
    hsms.tokens[1].set_rules("");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_is_tried_once_on_a_member_that_counts() {
    let hsms = Hsms::new(2);
    hsms.tokens[1].set_rules("C_Login log\npin_tries_max=3");
    let members = vec![(hsms.member(0), PIN.into()), (hsms.member(1), "11223344".into())];
    let cluster = strongroom::hsm::Cluster::start(
        &hsms.modules,
        members,
        hsms.identity.clone(),
        fast(),
        KeyRules { required_copies: 1, ..RESIDENT },
    )
    .unwrap();
    let reason = until(&cluster, &hsms.uri(1), MemberState::Refused).await;
    assert!(reason.contains("CKR_PIN_INCORRECT"), "{reason}");
    until(&cluster, &hsms.uri(0), MemberState::Serving).await;
    // Probes of many rounds, and work, do not try it again.
    for _ in 0..20 {
        cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap();
        tokio::time::sleep(fast_probe()).await;
    }
    let log = hsms.tokens[1].rules().with_extension("log");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "C_Login\n");
    cluster.retry_pin(&hsms.uri(1), Some(PIN.into())).unwrap();
    all_serve(&cluster).await;
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "C_Login\nC_Login\n");
    cluster.shutdown().await;
}

fn fast_probe() -> Duration {
    Duration::from_millis(fast().probe_interval_ms)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hsm_that_writes_the_iv_or_takes_little_is_served_as_it_is() {
    let hsms = Hsms::new(1);
    hsms.tokens[0].set_rules("gcm_iv\ngcm_bytes_max=4096");
    let cluster = hsms.start(1, fast(), KeyRules::DEFAULT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key;
    let sealed = cluster.encrypt_gcm(&key, b"aad", &[7; 4096], soon()).await.unwrap();
    let opened = cluster.decrypt_gcm(&key, sealed.iv, b"aad", &sealed.ciphertext, soon()).await.unwrap();
    assert_eq!(opened.as_slice(), &[7; 4096]);
    let long = cluster.encrypt_gcm(&key, b"aad", &[7; 4097], soon()).await;
    assert_eq!(long.err(), Some(HsmError::Input));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_on_sessions_pushes_back_and_leaks_none() {
    let hsms = Hsms::new(1);
    let settings = ClusterSettings { session_threads: 4, ..fast() };
    // Anchor, keeper, self-test: one is left for four threads.
    hsms.tokens[0].set_rules("sessions_max=4");
    let cluster = hsms.start(1, settings, KeyRules::DEFAULT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key;
    for _ in 0..20 {
        let answers =
            futures::future::join_all((0..8).map(|_| cluster.mac(&key, Hash::Sha256, b"m", soon()))).await;
        for answer in answers {
            assert!(matches!(answer, Ok(_) | Err(HsmError::Busy)), "{answer:?}");
        }
    }
    assert_eq!(cluster.members()[0].state, MemberState::Serving);
    hsms.tokens[0].set_rules("");
    cluster.mac(&key, Hash::Sha256, b"m", soon()).await.unwrap();
    cluster.shutdown().await;
}
