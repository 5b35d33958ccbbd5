//! Clusters of key stores whose HSMs fail, return, are replaced, and lack keys.

use serde_json::Value;
use strongroom::proto::hsm::{
    AddMemberRequest, BeginMaintenanceRequest, CheckMemberRequest, DeleteClusterRequest,
    EndMaintenanceRequest, FindingKind, InitializeClusterRequest, MemberState, RemoveMemberRequest,
    ReplaceMemberRequest,
};
use strongroom::proto::kms::{DeleteCustomKeyStoreRequest, KeySpec};

use super::house::{Hsm, Owner, bring, instance, key_in, registration};
use super::{SYMMETRIC, id, refused};
use crate::support::{Instance, eventually, named};

const SERVING: MemberState = MemberState::Serving;

fn three(instance: &Instance) -> Vec<Hsm> {
    let names = ["vault", "other", "third"];
    (1..).zip(names).map(|(number, name)| Hsm::of_fixture(instance, name, number)).collect()
}

async fn all_serve(owner: &Owner<'_>, cluster: &str) {
    eventually("all serve", async || owner.states(cluster).await.iter().all(|state| *state == SERVING)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_added_replaced_and_removed_while_the_key_store_is_connected() {
    let (instance, hsms) = instance(three).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let client = &owner.client;
    let (store, cluster) = owner.store_of("vault", &[&hsms[0], &hsms[1]]).await;
    all_serve(&owner, &cluster).await;
    let key = owner.key(&store, SYMMETRIC).await.unwrap();
    let blob = client.encrypt(&key, b"secret").await.unwrap();
    let add = AddMemberRequest {
        token: id(&hsms[2].uri()),
        module: id("third"),
        pin: None,
        cluster_id: id(&cluster),
    };
    let refusal = client.call(add.clone()).await.unwrap_err();
    assert!(refusal.message.contains("strongroom hsm bring"), "{refusal:?}");
    refused(client.call(AddMemberRequest { pin: id("third"), ..add.clone() }).await, "Validation");
    refused(client.call(AddMemberRequest { cluster_id: None, ..add.clone() }).await, "Validation");
    bring(&instance, &hsms[0], &hsms[2]);
    let added = client.call(add.clone()).await.unwrap().member.unwrap();
    assert_eq!(added.state(), SERVING);
    // Before it served, it had the key.
    assert_eq!(hsms[2].keys(), hsms[0].keys());
    refused(client.call(add).await, "Validation");
    assert_eq!(owner.states(&cluster).await, [SERVING; 3]);

    let of = |hsm: &Hsm| (id(&hsm.uri()), id(&cluster));
    let (token, cluster_id) = of(&hsms[1]);
    client.call(BeginMaintenanceRequest { token, cluster_id }).await.unwrap();
    eventually("it is out", async || owner.states(&cluster).await[1] == MemberState::Maintenance).await;
    // That is kept while the key store is disconnected and connected again.
    owner.disconnect(&store).await;
    assert_eq!(owner.states(&cluster).await, [MemberState::Unspecified; 3]);
    owner.connect(&store).await;
    eventually("it is out still", async || owner.states(&cluster).await[1] == MemberState::Maintenance).await;
    let (token, cluster_id) = of(&hsms[1]);
    client.call(EndMaintenanceRequest { token, cluster_id }).await.unwrap();
    all_serve(&owner, &cluster).await;

    let (token, cluster_id) = of(&hsms[0]);
    client.call(RemoveMemberRequest { token, cluster_id }).await.unwrap();
    eventually("it is gone", async || owner.states(&cluster).await == [SERVING; 2]).await;
    let (token, cluster_id) = of(&hsms[0]);
    refused(client.call(RemoveMemberRequest { token, cluster_id }).await, "NotFound");
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    let second = owner.key(&store, KeySpec::EccNistP256).await.unwrap();
    client.use_key(&second, KeySpec::EccNistP256).await.unwrap();
    assert_eq!((hsms[0].keys().len(), hsms[1].keys().len(), hsms[2].keys().len()), (1, 2, 2));

    // One is dead, and the first, which kept its keys, takes its place.
    hsms[1].unplug();
    eventually("it is lost", async || owner.states(&cluster).await[0] == MemberState::Lost).await;
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    refused(owner.key(&store, SYMMETRIC).await, "CloudHsmClusterInvalidConfiguration");
    let replace = ReplaceMemberRequest {
        replaced_token: id(&hsms[1].uri()),
        token: id(&hsms[0].uri()),
        module: id("vault"),
        pin: None,
        cluster_id: id(&cluster),
    };
    client.call(replace).await.unwrap();
    assert_eq!(hsms[0].keys(), hsms[2].keys());
    all_serve(&owner, &cluster).await;
    owner.key(&store, SYMMETRIC).await.unwrap();

    // After a restart they are the members still.
    daemon.terminate().await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    all_serve(&owner, &cluster).await;
    assert_eq!(owner.states(&cluster).await.len(), 2);
    assert_eq!(owner.client.decrypt(&blob).await.unwrap(), b"secret");
    let events = owner.client.events().await;
    let lost = named(&events, "HsmMemberLost");
    let told = |event: &&&Value| event["serviceEventDetails"]["cluster"] == store.as_str();
    assert!(lost.iter().any(|event| told(&event)), "{lost:?}");
    assert_eq!(owner.client.findings().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_lacks_it_gets_before_it_serves_or_when_it_is_asked_for() {
    let (instance, hsms) = instance(three).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let client = &owner.client;
    let (store, cluster) = owner.store_of("vault", &[&hsms[0], &hsms[1], &hsms[2]]).await;
    all_serve(&owner, &cluster).await;
    let mut keys = vec![owner.key(&store, SYMMETRIC).await.unwrap()];

    // Made, and deleted, while one is away.
    let short = owner.key(&store, SYMMETRIC).await.unwrap();
    hsms[1].unplug();
    eventually("it is lost", async || owner.states(&cluster).await[1] == MemberState::Lost).await;
    keys.push(owner.key(&store, KeySpec::EccNistP384).await.unwrap());
    keys.push(owner.key(&store, SYMMETRIC).await.unwrap());
    hsms[1].plug_in();
    all_serve(&owner, &cluster).await;
    assert_eq!(hsms[1].keys().len(), 4, "it serves with all of them");
    assert_eq!(hsms[1].keys(), hsms[0].keys());
    client.use_key(&short, SYMMETRIC).await.unwrap();

    // Somebody deletes an object on every HSM: the store has the key.
    let blob = client.encrypt(&keys[0], b"secret").await.unwrap();
    let material = material(&owner, &keys[0]).await;
    for hsm in &hsms {
        let deleted = hsm.tool(&["--delete-object", "--type", "secrkey", "--id", &material]);
        assert!(deleted.status.success(), "{deleted:?}");
    }
    for _ in 0..12 {
        assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    }
    // And on one: a check finds it, and an object that no key has.
    drop(hsms[2].tool(&["--delete-object", "--type", "secrkey", "--id", &material]));
    let orphan = "ab".repeat(32);
    let made = hsms[2].tool(&[
        "--keygen",
        "--key-type",
        "AES:32",
        "--label",
        "strongroom key",
        "--id",
        &orphan,
        "--usage-decrypt",
    ]);
    assert!(made.status.success(), "{made:?}");
    let check = |repair| CheckMemberRequest {
        token: id(&hsms[2].uri()),
        cluster_id: id(&cluster),
        repair: Some(repair),
        ..Default::default()
    };
    let found = client.call(check(false)).await.unwrap();
    assert_eq!(found.expected, Some(4));
    let kinds: Vec<FindingKind> = found.findings.iter().map(|finding| finding.kind()).collect();
    assert!(kinds.contains(&FindingKind::Orphan), "{found:?}");
    assert!(kinds.contains(&FindingKind::Missing), "{found:?}");
    let repaired = client.call(check(true)).await.unwrap();
    assert!(repaired.findings.iter().all(|finding| finding.repaired == Some(true)), "{repaired:?}");
    assert_eq!(client.call(check(false)).await.unwrap().findings, []);
    assert_eq!(hsms[2].keys(), hsms[0].keys());
    owner.disconnect(&store).await;
    refused(client.call(check(false)).await, "KMSInvalidState");
}

/// One HSM is so slow that nobody waits for it when keys are made: it gets them
/// though nobody uses them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_was_not_waited_for_it_gets_beside_its_work() {
    let slow = |instance: &Instance| three(instance).into_iter().map(Hsm::behind_shim).collect();
    let (mut instance, hsms) = instance(slow).await;
    instance.set("STRONGROOM_HSM__FAILOVER_TIMEOUT_MS", "200");
    instance.set("STRONGROOM_HSM__CALL_TIMEOUT_MS", "4000");
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let (store, cluster) = owner.store_of("vault", &[&hsms[0], &hsms[1], &hsms[2]]).await;
    all_serve(&owner, &cluster).await;
    hsms[2].set_rules("C_UnwrapKey delay_ms=3500");
    for _ in 0..3 {
        owner.key(&store, SYMMETRIC).await.unwrap();
    }
    assert!(hsms[2].keys().len() < 3, "it was waited for");
    hsms[2].set_rules("");
    eventually("it has all", async || hsms[2].keys() == hsms[0].keys()).await;
    assert_eq!(hsms[0].keys().len(), 3);
}

async fn material(owner: &Owner<'_>, key: &str) -> String {
    let request = strongroom::proto::kms::DescribeKeyRequest { key_id: id(key), ..Default::default() };
    let metadata = owner.client.call(request).await.unwrap().key_metadata.unwrap();
    metadata.current_key_material_id.unwrap()
}

/// Two daemons that know of the same token: the one whose keys are not on it
/// leaves it alone, whatever else its ceremony did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_installation_is_left_alone() {
    let (theirs, hsms) = instance(|instance| vec![Hsm::of_fixture(instance, "vault", 1)]).await;
    let their_daemon = theirs.start().await;
    let them = Owner::of(&theirs, &their_daemon).await;
    let store = them.connected_store("vault", &hsms[0]).await;
    let key = them.key(&store, SYMMETRIC).await.unwrap();
    let blob = them.client.encrypt(&key, b"secret").await.unwrap();
    let objects = hsms[0].tool(&["--list-objects"]).stdout;

    let shared = hsms[0].clone();
    let (ours, mine) = instance(|instance| vec![Hsm::of_fixture(instance, "other", 2), shared]).await;
    let mut daemon = ours.start().await;
    for kills in [true, false] {
        let us = Owner::of(&ours, &daemon).await;
        let clusters = [vec![&mine[0], &mine[1]], vec![&mine[1]]];
        for members in &clusters {
            let cluster = us.register(registration(&ours, members)).await;
            let initialize = InitializeClusterRequest {
                cluster_id: id(&cluster),
                pin: id("other"),
                security_officer_pin: id("other-so"),
            };
            if kills {
                // It may die at any point of it, and is asked again.
                let begun = us.client.call(initialize.clone());
                drop(tokio::time::timeout(std::time::Duration::from_millis(200), begun).await);
                daemon.kill9();
                daemon = ours.start().await;
                let us = Owner::of(&ours, &daemon).await;
                refused(us.client.call(initialize).await, "CloudHsmClusterInvalidConfiguration");
                us.client.call(DeleteClusterRequest { cluster_id: id(&cluster) }).await.unwrap();
                break;
            }
            refused(us.client.call(initialize).await, "CloudHsmClusterInvalidConfiguration");
            us.client.call(DeleteClusterRequest { cluster_id: id(&cluster) }).await.unwrap();
        }
    }
    assert_eq!(hsms[0].tool(&["--list-objects"]).stdout, objects);
    assert_eq!(them.client.decrypt(&blob).await.unwrap(), b"secret");
    them.key(&store, SYMMETRIC).await.unwrap();
    // Its own token is empty still, and can have its ceremony.
    let us = Owner::of(&ours, &daemon).await;
    us.connected_store("other", &mine[0]).await;
}

/// A key store that is deleted while keys are made in it leaves neither a key
/// nor an intent of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_races_with_keys_being_made_leaves_nothing() {
    const NAMES: [&str; 4] = ["vault", "other", "third", "fourth"];
    let fixture = |instance: &Instance| -> Vec<Hsm> {
        (1..).zip(NAMES).map(|(number, name)| Hsm::of_fixture(instance, name, number)).collect()
    };
    let (instance, hsms) = instance(fixture).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let mut unused = hsms.iter();
    let (mut cluster, mut kept) = (None, Vec::new());
    for round in 0..4 {
        // One that has keys keeps its cluster.
        let of = match cluster.take() {
            Some(cluster) => cluster,
            None => owner.cluster(unused.next().unwrap()).await,
        };
        let store = owner.create_store(&format!("round {round}"), &of).await;
        owner.connect(&store).await;
        let (client, making) = (owner.client.clone(), store.clone());
        let made = tokio::spawn(async move {
            let mut made = Vec::new();
            while let Ok(answer) = client.call(key_in(&making, SYMMETRIC)).await {
                made.push(answer.key_metadata.unwrap().key_id.unwrap());
            }
            made
        });
        tokio::time::sleep(std::time::Duration::from_millis(20 * round)).await;
        owner.disconnect(&store).await;
        let delete = DeleteCustomKeyStoreRequest { custom_key_store_id: id(&store) };
        let deleted = owner.client.call(delete).await;
        let made = made.await.unwrap();
        assert_eq!(deleted.is_ok(), made.is_empty(), "round {round}: {made:?}");
        match deleted {
            Ok(_) => cluster = Some(of),
            Err(_) => kept.push(store),
        }
    }
    daemon.terminate().await;
    let daemon = instance.start().await;
    // What was begun in one that is there is undone when its HSM is reached again.
    let owner = Owner::of(&instance, &daemon).await;
    for store in &kept {
        owner.connect(store).await;
    }
    eventually("no intent is left", async || {
        let mut database = instance.database().await;
        let left = database.texts("SELECT id FROM row WHERE kind = 'intent'").await;
        database.close().await;
        left.is_empty()
    })
    .await;
    daemon.terminate().await;
}
