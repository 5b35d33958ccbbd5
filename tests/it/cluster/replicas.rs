//! Keys on several members.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use strongroom::hsm::{
    BackingId, Cluster, CopyState, Curve, Expected, Hash, Home, HsmError, KeyRef, KeyRules, Made, Material,
    MemberState, Residents, Scheme, Use,
};

use super::fixture::{Hsms, RESIDENT, all_serve, impatient, unprobed, until};
use crate::hsm::{PIN, fast, id, soon};

const KINDS: [(Material, Use); 6] = [
    (Material::Aes256, Use::Encrypt),
    (Material::Generic(48), Use::Mac),
    (Material::Ec(Curve::P256), Use::Sign),
    (Material::Ec(Curve::P384), Use::Agree),
    (Material::Rsa(2048), Use::Sign),
    (Material::Rsa(2048), Use::Encrypt),
];

fn expected(made: &Made) -> Expected {
    Expected { key: made.key.clone(), public_key: made.public_key.clone() }
}

async fn use_key(cluster: &Cluster, key: &KeyRef) -> Result<(), HsmError> {
    match (key.material, key.usage) {
        (Material::Aes256, _) => {
            let sealed = cluster.encrypt_gcm(key, b"aad", b"secret", soon()).await?;
            let opened = cluster.decrypt_gcm(key, sealed.iv, b"aad", &sealed.ciphertext, soon()).await?;
            assert_eq!(opened.as_slice(), b"secret");
        }
        (Material::Generic(_), _) => drop(cluster.mac(key, Hash::Sha384, b"message", soon()).await?),
        (Material::Ec(_), Use::Sign) => drop(cluster.sign(key, Scheme::Ecdsa, &[7; 32], soon()).await?),
        (Material::Rsa(_), Use::Sign) => {
            drop(cluster.sign(key, Scheme::RsaPkcs1(Hash::Sha256), &[7; 32], soon()).await?);
        }
        _ => {}
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_on_every_member_and_outlives_two_of_three() {
    let hsms = Hsms::new(3);
    let cluster = hsms.start(3, fast(), RESIDENT);
    all_serve(&cluster).await;
    let mut keys = Vec::new();
    for (material, usage) in KINDS {
        let made = cluster.generate(id(), material, usage, soon()).await.unwrap();
        assert!(matches!(made.key.home, Home::Resident { blob: Some(_) }), "{material}");
        for index in 0..3 {
            let state = cluster.compare(&hsms.uri(index), &expected(&made), soon()).await;
            assert_eq!(state, Ok(CopyState::Good), "{material} on {index}");
        }
        keys.push(made.key);
    }
    for index in [0, 1] {
        hsms.kill(index);
        until(&cluster, &hsms.uri(index), MemberState::Lost).await;
    }
    for key in &keys {
        use_key(&cluster, key).await.unwrap();
    }
    hsms.kill(2);
    until(&cluster, &hsms.uri(2), MemberState::Lost).await;
    let dead = use_key(&cluster, &keys[0]).await;
    assert!(matches!(dead, Err(HsmError::Unavailable(_))), "{dead:?}");
    for index in 0..3 {
        hsms.revive(index);
    }
    all_serve(&cluster).await;
    for key in &keys {
        use_key(&cluster, key).await.unwrap();
        cluster.destroy(key, soon()).await.unwrap();
    }
    assert_eq!(cluster.inventory(soon()).await.unwrap(), []);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_came_to_too_few_members_is_on_none() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, fast(), RESIDENT);
    all_serve(&cluster).await;
    // The second takes no token object; its probes and self-test are session objects.
    hsms.kill(1);
    until(&cluster, &hsms.uri(1), MemberState::Lost).await;
    let made = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await;
    assert!(
        matches!(&made, Err(HsmError::Unavailable(reason)) if reason.contains("on 2 members")),
        "{made:?}"
    );
    assert_eq!(cluster.inventory(soon()).await.unwrap(), []);
    hsms.revive(1);
    all_serve(&cluster).await;
    cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_does_not_work_does_not_count() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, unprobed(), RESIDENT);
    all_serve(&cluster).await;
    hsms.tokens[1].set_rules("C_Sign corrupt");
    let made = cluster.generate(id(), Material::Rsa(2048), Use::Sign, soon()).await;
    assert!(
        matches!(&made, Err(HsmError::Unavailable(reason)) if reason.contains("came to 1 of 2")),
        "{made:?}"
    );
    hsms.tokens[1].set_rules("");
    assert_eq!(cluster.inventory(soon()).await.unwrap(), []);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_cannot_be_wrapped_is_made_only_where_one_copy_is_allowed() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, fast(), RESIDENT);
    all_serve(&cluster).await;
    let refused = cluster.generate(id(), Material::Ed25519, Use::Sign, soon()).await;
    let Err(HsmError::Unsupported(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("Ed25519") && reason.contains("allow_single_copy"), "{reason}");
    cluster.shutdown().await;
    for rules in [
        KeyRules { allow_single_copy: true, ..RESIDENT },
        KeyRules { replicates_itself: true, ..RESIDENT },
        KeyRules { required_copies: 1, ..RESIDENT },
    ] {
        let cluster = hsms.start(2, fast(), rules);
        all_serve(&cluster).await;
        let key = cluster.generate(id(), Material::Ed25519, Use::Sign, soon()).await.unwrap().key;
        // Whichever member is asked first, the one that has it answers.
        for _ in 0..8 {
            cluster.sign(&key, Scheme::Ed25519, b"message", soon()).await.unwrap();
        }
        cluster.destroy(&key, soon()).await.unwrap();
        cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_gets_the_key_when_it_needs_it() {
    let hsms = Hsms::new(3);
    let cluster = hsms.start(3, fast(), RESIDENT);
    all_serve(&cluster).await;
    hsms.kill(2);
    until(&cluster, &hsms.uri(2), MemberState::Lost).await;
    let made = cluster.generate(id(), Material::Generic(48), Use::Mac, soon()).await.unwrap();
    let mac = cluster.mac(&made.key, Hash::Sha384, b"message", soon()).await.unwrap();
    hsms.revive(2);
    all_serve(&cluster).await;
    let missing = cluster.compare(&hsms.uri(2), &expected(&made), soon()).await;
    assert_eq!(missing, Ok(CopyState::Missing));
    for index in [0, 1] {
        cluster.set_maintenance(&hsms.uri(index), true).unwrap();
        until(&cluster, &hsms.uri(index), MemberState::Maintenance).await;
    }
    assert_eq!(cluster.mac(&made.key, Hash::Sha384, b"message", soon()).await.unwrap(), mac);
    assert_eq!(cluster.compare(&hsms.uri(2), &expected(&made), soon()).await, Ok(CopyState::Good));
    cluster.shutdown().await;
}

/// The store of a test: one key is deleted while it is brought, one cannot be
/// read.
struct Known {
    all: Vec<Expected>,
    deleted: BackingId,
    unreadable: BackingId,
    asked: AtomicUsize,
}

impl Residents for Known {
    fn all(&self) -> BoxFuture<'_, Result<HashSet<BackingId>, String>> {
        Box::pin(async { Ok(self.all.iter().map(|known| known.key.id).collect()) })
    }

    fn one(&self, id: BackingId) -> BoxFuture<'_, Result<Option<Expected>, String>> {
        let is_there = id != self.deleted || self.asked.fetch_add(1, Ordering::SeqCst) == 0;
        let known = self.all.iter().find(|known| known.key.id == id && is_there).cloned();
        let answer = if id == self.unreadable { Err("tampered with".to_owned()) } else { Ok(known) };
        Box::pin(async move { answer })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_brought_what_it_lacks_unless_that_is_deleted_meanwhile() {
    let hsms = Hsms::new(2);
    let alone = KeyRules { required_copies: 1, ..RESIDENT };
    let first = hsms.start(1, fast(), alone);
    all_serve(&first).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        let made = first.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap();
        all.push(expected(&made));
    }
    first.shutdown().await;
    let (deleted, unreadable) = (all[0].key.id, all[1].key.id);
    let residents = Arc::new(Known { all: all.clone(), deleted, unreadable, asked: AtomicUsize::new(0) });
    let members = vec![(hsms.member(0), PIN.into())];
    let identity = hsms.identity.clone();
    let cluster =
        Cluster::start_synchronized(&hsms.modules, members, identity, fast(), alone, Some(residents.clone()))
            .unwrap();
    all_serve(&cluster).await;
    cluster.add_member(&hsms.member(1), PIN.into()).unwrap();
    all_serve(&cluster).await;
    assert_eq!(residents.asked.load(Ordering::SeqCst), 2, "before it is brought, and after");
    let mut there: Vec<_> = all[2..].iter().map(|known| known.key.id).collect();
    there.sort();
    let mut found = cluster.inventory_of(&hsms.uri(1), soon()).await.unwrap();
    found.sort();
    assert_eq!(found, there);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_delete_or_leave_is_found_and_repaired() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, fast(), RESIDENT);
    all_serve(&cluster).await;
    let (first, second) = (hsms.uri(0), hsms.uri(1));
    let aes = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap();
    let pair = cluster.generate(id(), Material::Ec(Curve::P256), Use::Sign, soon()).await.unwrap();
    // Somebody deletes one object, and puts another key's in the place of the other.
    delete(&hsms, 0, "secrkey", &aes.key);
    delete(&hsms, 1, "privkey", &pair.key);
    let alone = KeyRules { required_copies: 1, ..RESIDENT };
    let members = vec![(hsms.member(1), PIN.into())];
    let other = Cluster::start(&hsms.modules, members, hsms.identity.clone(), fast(), alone).unwrap();
    let usurper = other.generate(pair.key.id, Material::Ec(Curve::P256), Use::Sign, soon()).await.unwrap();
    other.shutdown().await;
    for (uri, made, state) in [
        (&first, &aes, CopyState::Missing),
        (&second, &aes, CopyState::Good),
        (&second, &pair, CopyState::Differing),
        (&second, &usurper, CopyState::Good),
        (&first, &pair, CopyState::Good),
    ] {
        assert_eq!(cluster.compare(uri, &expected(made), soon()).await, Ok(state), "{uri} {:?}", made.key);
    }
    cluster.repair(&first, &expected(&aes), CopyState::Missing, soon()).await.unwrap();
    cluster.repair(&second, &expected(&pair), CopyState::Differing, soon()).await.unwrap();
    for uri in [&first, &second] {
        for made in [&aes, &pair] {
            assert_eq!(cluster.compare(uri, &expected(made), soon()).await, Ok(CopyState::Good));
        }
        assert_eq!(cluster.inventory_of(uri, soon()).await.unwrap().len(), 2);
        cluster.remove_orphan(uri, aes.key.id, soon()).await.unwrap();
        assert_eq!(cluster.inventory_of(uri, soon()).await.unwrap(), [pair.key.id]);
    }
    cluster.shutdown().await;
}

fn delete(hsms: &Hsms, index: usize, class: &str, key: &KeyRef) {
    let id = key.id.to_string();
    let output = hsms.tokens[index].pkcs11_tool(&["--delete-object", "--type", class, "--id", &id]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_leaves_no_second_object() {
    let hsms = Hsms::new(2);
    let cluster = hsms.start(2, impatient(), RESIDENT);
    all_serve(&cluster).await;
    // The object is made on the token, and the module says that it failed.
    hsms.tokens[1].set_rules("C_UnwrapKey rv=0x30 lost times=1");
    let made = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap();
    hsms.tokens[1].set_rules("");
    assert_eq!(cluster.inventory_of(&hsms.uri(1), soon()).await.unwrap(), [made.key.id]);
    cluster.destroy(&made.key, soon()).await.unwrap();
    // A pair that cannot be wrapped: its maker destroys by its name what it does not know to be there.
    cluster.shutdown().await;
    let cluster = hsms.start(1, impatient(), KeyRules { allow_single_copy: true, ..RESIDENT });
    all_serve(&cluster).await;
    hsms.tokens[0].set_rules("C_GenerateKeyPair rv=0x30 lost times=1");
    let name = id();
    let failed = cluster.generate(name, Material::Ed25519, Use::Sign, soon()).await;
    assert!(matches!(failed, Err(HsmError::Device(_))), "{failed:?}");
    assert_eq!(cluster.inventory(soon()).await.unwrap(), [name], "the orphan");
    let home = Home::Resident { blob: None };
    let orphan = KeyRef { id: name, material: Material::Ed25519, usage: Use::Sign, home };
    cluster.destroy(&orphan, soon()).await.unwrap();
    assert_eq!(cluster.inventory(soon()).await.unwrap(), []);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_on_the_same_tokens_do_not_harm_each_other() {
    let hsms = Hsms::new(2);
    let ours = hsms.start(2, fast(), RESIDENT);
    let bare = hsms.tokens.iter().map(crate::hsm::Token::module).collect();
    let others = strongroom::hsm::Modules::new(super::fixture::named(bare), fast());
    let members = (0..2).map(|index| (hsms.member(index), PIN.into())).collect();
    let theirs = Cluster::start(&others, members, hsms.identity.clone(), fast(), RESIDENT).unwrap();
    all_serve(&ours).await;
    all_serve(&theirs).await;
    let work = |cluster: &Arc<Cluster>, other: &Arc<Cluster>| {
        let (cluster, other) = (cluster.clone(), other.clone());
        tokio::spawn(async move {
            for _ in 0..5 {
                let key = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key;
                let sealed = cluster.encrypt_gcm(&key, b"", b"secret", soon()).await.unwrap();
                let opened = other.decrypt_gcm(&key, sealed.iv, b"", &sealed.ciphertext, soon()).await;
                assert_eq!(opened.unwrap().as_slice(), b"secret");
                other.destroy(&key, soon()).await.unwrap();
            }
        })
    };
    let (first, second) = tokio::join!(work(&ours, &theirs), work(&theirs, &ours));
    first.unwrap();
    second.unwrap();
    // SoftHSM2 may hide from one process what the other just made, so that it is
    // brought twice and destroyed once: an orphan, which is found and removed.
    for index in 0..2 {
        for orphan in ours.inventory_of(&hsms.uri(index), soon()).await.unwrap() {
            ours.remove_orphan(&hsms.uri(index), orphan, soon()).await.unwrap();
        }
    }
    assert_eq!(ours.inventory(soon()).await.unwrap(), []);
    theirs.shutdown().await;
    others.finalise();
    let key = ours.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key;
    ours.encrypt_gcm(&key, b"", b"secret", soon()).await.unwrap();
    ours.shutdown().await;
}
