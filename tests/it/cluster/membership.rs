//! Members that come and go while the cluster works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strongroom::hsm::{
    Cluster, Hash, HsmError, KeyRef, Material, MemberState, Modules, Use, bring_wrapping_key,
};

use super::fixture::{Hsms, RESIDENT, SO_PIN, access, all_serve, named, until};
use crate::hsm::{PIN, Token, fast, id, soon};

async fn work(cluster: Arc<Cluster>, key: KeyRef, mac: Vec<u8>, stop: Arc<AtomicBool>) -> u64 {
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(cluster.mac(&key, Hash::Sha256, b"message", soon()).await, Ok(mac.clone()));
        calls += 1;
    }
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_without_a_failed_call() {
    let hsms = Hsms::new(3);
    let cluster = hsms.start(2, fast(), RESIDENT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key;
    let mac = cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let spawn = |_| tokio::spawn(work(cluster.clone(), key.clone(), mac.clone(), stop.clone()));
    let tasks: Vec<_> = (0..8).map(spawn).collect();

    cluster.add_member(&hsms.member(2), PIN.into()).unwrap();
    let twice = cluster.add_member(&hsms.member(2), PIN.into());
    assert!(matches!(twice, Err(HsmError::Unsupported(_))), "{twice:?}");
    until(&cluster, &hsms.uri(2), MemberState::Serving).await;
    cluster.set_maintenance(&hsms.uri(0), true).unwrap();
    until(&cluster, &hsms.uri(0), MemberState::Maintenance).await;
    cluster.remove_member(&hsms.uri(1)).await.unwrap();
    assert!(cluster.remove_member(&hsms.uri(1)).await.is_err());
    cluster.set_maintenance(&hsms.uri(0), false).unwrap();
    until(&cluster, &hsms.uri(0), MemberState::Serving).await;
    cluster.add_member(&hsms.member(1), PIN.into()).unwrap();
    all_serve(&cluster).await;
    assert_eq!(cluster.members().len(), 3);

    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        assert!(task.await.unwrap() > 0);
    }
    cluster.shutdown().await;
}

/// A dead member's slot gets an empty token, which gets the wrapping key from
/// another member while both work.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_member_is_replaced_while_the_others_work() {
    let mut hsms = Hsms::new(2);
    let cluster = hsms.start(2, fast(), RESIDENT);
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key;
    let mac = cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap();
    hsms.kill(1);
    until(&cluster, &hsms.uri(1), MemberState::Lost).await;
    cluster.remove_member(&hsms.uri(1)).await.unwrap();
    cluster.shutdown().await;

    hsms.tokens[1] = Token::new(3);
    let settings = hsms.tokens.iter().map(Token::module).collect();
    let modules = Modules::new(named(settings), fast());
    let cluster =
        Cluster::start(&modules, vec![(hsms.member(0), PIN.into())], hsms.identity.clone(), fast(), RESIDENT)
            .unwrap();
    all_serve(&cluster).await;
    let settings = hsms.tokens.iter().map(Token::module).collect();
    let elsewhere = Modules::new(named(settings), fast());
    let (source, target) = (access(&hsms.tokens, 0), access(&hsms.tokens, 1));
    let moved = {
        let elsewhere = elsewhere.clone();
        tokio::task::spawn_blocking(move || {
            let wrong = bring_wrapping_key(&elsewhere, &source, &"87654321".into(), &target);
            assert!(matches!(wrong, Err(HsmError::Unavailable(_))), "a wrong SO PIN: {wrong:?}");
            let moved = bring_wrapping_key(&elsewhere, &source, &SO_PIN.into(), &target);
            let again = bring_wrapping_key(&elsewhere, &source, &SO_PIN.into(), &target);
            assert!(matches!(again, Err(HsmError::Unsupported(_))), "{again:?}");
            elsewhere.finalise();
            moved
        })
    };
    // The cluster's login is its own process's, here its own library's.
    for _ in 0..20 {
        assert_eq!(cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap(), mac);
    }
    assert_eq!(moved.await.unwrap(), Ok(hsms.identity.wrapping_key));
    let left = hsms.tokens[0].pkcs11_tool(&["--list-objects", "--type", "pubkey"]);
    assert!(!String::from_utf8_lossy(&left.stdout).contains("transport"), "an approval is for once");

    cluster.add_member(&hsms.member(1), PIN.into()).unwrap();
    until(&cluster, &hsms.uri(1), MemberState::Serving).await;
    cluster.set_maintenance(&hsms.uri(0), true).unwrap();
    until(&cluster, &hsms.uri(0), MemberState::Maintenance).await;
    assert_eq!(cluster.mac(&key, Hash::Sha256, b"message", soon()).await.unwrap(), mac);
    cluster.shutdown().await;
    modules.finalise();
}
