//! Custom key stores: their states, what each exception and each connection
//! error is caused by, their keys as their owner sees them, and kill -9.

mod faults;
pub mod house;
mod members;

use std::fs;
use std::process::Command;

use serde_json::Value;
use strongroom::hsm::softhsm;
use strongroom::proto::hsm::{
    ClusterState, CreateClusterRequest, DeleteClusterRequest, DescribeClustersRequest,
    InitializeClusterRequest,
};
use strongroom::proto::kms::{
    self, ConnectionErrorCodeType as Code, ConnectionStateType as State, CreateCustomKeyStoreRequest,
    CustomKeyStoreType, DeleteCustomKeyStoreRequest, DescribeCustomKeyStoresRequest, KeySpec, KeyState,
    UpdateCustomKeyStoreRequest,
};

use crate::support::{Dice, Instance, Refusal, eventually, rounds};
use house::{Hsm, Owner, PIN, anchor, instance, key_in, registration};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;
/// A kind of each family.
const SPECS: [KeySpec; 5] = [
    KeySpec::SymmetricDefault,
    KeySpec::Rsa2048,
    KeySpec::EccNistP256,
    KeySpec::EccSecgP256k1,
    KeySpec::EccNistEdwards25519,
];

fn refused<T: std::fmt::Debug>(answer: Result<T, Refusal>, exception: &str) {
    assert_eq!(answer.expect_err(exception).exception, format!("{exception}Exception"));
}

fn id(store: &str) -> Option<String> {
    Some(store.to_owned())
}

fn delete(store: &str) -> DeleteCustomKeyStoreRequest {
    DeleteCustomKeyStoreRequest { custom_key_store_id: id(store) }
}

async fn one(number: usize) -> (Instance, Hsm) {
    let (instance, mut hsms) = instance(|instance| vec![Hsm::of_fixture(instance, "vault", number)]).await;
    (instance, hsms.remove(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_stores_keys_are_in_its_hsm_and_unavailable_while_it_is_disconnected() {
    let (instance, hsm) = one(1).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let client = &owner.client;
    let store = owner.connected_store("vault", &hsm).await;
    let cluster = owner.describe(&store).await.cloud_hsm_cluster_id.unwrap();

    let mut keys = Vec::new();
    for spec in SPECS {
        let made = client.call(key_in(&store, spec)).await.unwrap().key_metadata.unwrap();
        assert_eq!(made.custom_key_store_id.as_ref(), Some(&store));
        assert_eq!(made.cloud_hsm_cluster_id.as_ref(), Some(&cluster));
        assert_eq!(made.origin(), kms::OriginType::AwsCloudhsm);
        let key = made.key_id.unwrap();
        client.use_key(&key, spec).await.unwrap();
        keys.push((key, spec));
    }
    let hmac = owner.key(&store, KeySpec::Hmac256).await.unwrap();
    let mac = kms::GenerateMacRequest {
        key_id: id(&hmac),
        message: Some(b"message".to_vec()),
        mac_algorithm: Some(kms::MacAlgorithmSpec::HmacSha256 as i32),
        ..Default::default()
    };
    client.call(mac.clone()).await.unwrap();
    // Its owner sees the objects, and reads none.
    let objects = hsm.keys();
    assert_eq!(objects.len(), SPECS.len() + 1);
    let symmetric = keys[0].0.clone();
    let described = kms::DescribeKeyRequest { key_id: id(&symmetric), ..Default::default() };
    let material =
        client.call(described.clone()).await.unwrap().key_metadata.unwrap().current_key_material_id;
    assert!(objects.contains(&material.clone().unwrap()));
    let read = hsm.tool(&["--read-object", "--type", "secrkey", "--id", &material.unwrap()]);
    assert!(!read.status.success() && read.stdout.is_empty(), "{read:?}");
    assert!(instance.token().objects().iter().all(|object| object.label != "strongroom key"));

    let blob = client.encrypt(&symmetric, b"secret").await.unwrap();
    let data_key = kms::GenerateDataKeyRequest {
        key_id: id(&symmetric),
        number_of_bytes: Some(32),
        ..Default::default()
    };
    client.call(data_key).await.unwrap();
    let pair = kms::GenerateDataKeyPairRequest {
        key_id: id(&symmetric),
        key_pair_spec: Some(kms::DataKeyPairSpec::EccNistP256 as i32),
        ..Default::default()
    };
    refused(client.call(pair).await, "UnsupportedOperation");
    let random = kms::GenerateRandomRequest {
        number_of_bytes: Some(24),
        custom_key_store_id: id(&store),
        ..Default::default()
    };
    assert_eq!(client.call(random.clone()).await.unwrap().plaintext.unwrap().len(), 24);

    owner.disconnect(&store).await;
    let state = |key: String| async move { client.state(&key).await.unwrap() };
    assert_eq!(state(symmetric.clone()).await, KeyState::Unavailable);
    let unavailable = client.encrypt(&symmetric, b"secret").await.unwrap_err();
    assert_eq!(unavailable.exception, "KMSInvalidStateException");
    assert!(unavailable.message.ends_with(&format!("key/{symmetric} is unavailable.")), "{unavailable:?}");
    refused(client.decrypt(&blob).await, "KMSInvalidState");
    refused(client.call(mac).await, "KMSInvalidState");
    for (key, spec) in &keys[1..] {
        refused(client.use_key(key, *spec).await, "KMSInvalidState");
        let public = kms::GetPublicKeyRequest { key_id: id(key), ..Default::default() };
        refused(client.call(public).await, "KMSInvalidState");
    }
    refused(client.call(random).await, "CustomKeyStoreInvalidState");
    refused(owner.key(&store, SYMMETRIC).await, "CustomKeyStoreInvalidState");
    // What is done to the key's row is done; it shows when the key is there again.
    client.call(kms::DisableKeyRequest { key_id: id(&symmetric) }).await.unwrap();
    assert_eq!(state(symmetric.clone()).await, KeyState::Unavailable);
    let schedule = kms::ScheduleKeyDeletionRequest { key_id: id(&hmac), ..Default::default() };
    client.call(schedule).await.unwrap();
    assert_eq!(state(hmac.clone()).await, KeyState::PendingDeletion);
    client.call(kms::CancelKeyDeletionRequest { key_id: id(&hmac) }).await.unwrap();
    refused(client.call(delete(&store)).await, "CustomKeyStoreHasCMKs");

    owner.connect(&store).await;
    assert_eq!(state(symmetric.clone()).await, KeyState::Disabled);
    client.call(kms::EnableKeyRequest { key_id: id(&symmetric) }).await.unwrap();
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    assert_eq!(hsm.keys(), objects);

    let events = client.events().await;
    let of = |name: &str| events.iter().filter(|event| event["eventName"] == name).collect::<Vec<&Value>>();
    for name in ["CreateKey", "Encrypt", "GenerateDataKey", "GenerateRandom", "ConnectCustomKeyStore"] {
        let event = *of(name).last().unwrap();
        assert_eq!(event["additionalEventData"]["customKeyStoreId"], store.as_str(), "{event}");
    }
    for (name, count) in [("CustomKeyStoreConnected", 2), ("CustomKeyStoreDisconnected", 1)] {
        assert_eq!(of(name).len(), count, "{name}");
        assert_eq!(of(name)[0]["eventType"], "AwsServiceEvent");
        assert_eq!(of(name)[0]["serviceEventDetails"]["customKeyStoreId"], store.as_str());
    }
    // (That pkcs11-tool ran beside it may have lost a member for a moment.)
    let ended = |event: &&Value| event["serviceEventDetails"]["reason"].to_string().contains("shutting down");
    assert!(!of("HsmMemberLost").into_iter().any(|event| ended(&event)), "a disconnection is no loss");
    let created = of("CreateCustomKeyStore")[0];
    assert!(created["requestParameters"]["keyStorePassword"].is_null(), "{created}");
    assert_eq!(client.findings().await, [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_state_and_every_wrong_cluster_has_its_exception() {
    let hsms = |instance: &Instance| {
        vec![Hsm::of_fixture(instance, "vault", 1), Hsm::of_fixture(instance, "other", 2)]
    };
    let (instance, hsms) = instance(hsms).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let client = &owner.client;

    let cluster = owner.register(registration(&instance, &[&hsms[0]])).await;
    let request = owner.new_store("vault", &cluster);
    refused(client.call(request.clone()).await, "CloudHsmClusterNotActive");
    refused(owner.initialize(&cluster, "no such pin").await, "Validation");
    owner.initialize(&cluster, "vault").await.unwrap();
    refused(owner.initialize(&cluster, "vault").await, "Validation");
    refused(client.call(registration(&instance, &[&hsms[0]])).await, "Validation");
    let unknown = CreateClusterRequest {
        members: vec![strongroom::proto::hsm::ClusterMember {
            module: Some("nowhere".to_owned()),
            token: Some(hsms[1].uri()),
        }],
        ..registration(&instance, &[])
    };
    refused(client.call(unknown).await, "Validation");

    let with = |change: &dyn Fn(&mut CreateCustomKeyStoreRequest)| {
        let mut request = request.clone();
        change(&mut request);
        client.call(request)
    };
    refused(with(&|r| r.cloud_hsm_cluster_id = id("cluster-aaaaaaaaaaa")).await, "CloudHsmClusterNotFound");
    refused(with(&|r| r.cloud_hsm_cluster_id = None).await, "Validation");
    refused(with(&|r| r.key_store_password = None).await, "Validation");
    let short = with(&|r| r.key_store_password = Some("s3cr3t".to_owned())).await.unwrap_err();
    assert_eq!(short.exception, "ValidationException");
    assert!(!short.message.contains("s3cr3t"), "{short:?}");
    let another = fs::read_to_string(instance.path("pki/server.pem")).unwrap();
    refused(with(&|r| r.trust_anchor_certificate = Some(another.clone())).await, "IncorrectTrustAnchor");
    refused(with(&|r| r.trust_anchor_certificate = id("no certificate")).await, "IncorrectTrustAnchor");
    let external = |r: &mut CreateCustomKeyStoreRequest| {
        r.custom_key_store_type = Some(CustomKeyStoreType::ExternalKeyStore as i32);
    };
    refused(with(&external).await, "Validation");

    let store = owner.create_store("vault", &cluster).await;
    refused(with(&|_| ()).await, "CustomKeyStoreNameInUse");
    refused(with(&|r| r.custom_key_store_name = id("second")).await, "CloudHsmClusterInUse");
    refused(client.call(delete("cks-00000000000000000")).await, "CustomKeyStoreNotFound");
    refused(owner.begin_to_connect("cks-00000000000000000").await, "CustomKeyStoreNotFound");
    refused(owner.key("cks-00000000000000000", SYMMETRIC).await, "CustomKeyStoreNotFound");
    refused(owner.begin_to_disconnect(&store).await, "CustomKeyStoreInvalidState");
    let describe =
        |name: &str| DescribeCustomKeyStoresRequest { custom_key_store_name: id(name), ..Default::default() };
    refused(client.call(describe("second")).await, "CustomKeyStoreNotFound");
    let both = DescribeCustomKeyStoresRequest { custom_key_store_id: id(&store), ..describe("vault") };
    refused(client.call(both).await, "Validation");
    let entry = client.call(describe("vault")).await.unwrap().custom_key_stores.remove(0);
    assert_eq!(
        (entry.custom_key_store_id.as_ref(), entry.connection_state()),
        (Some(&store), State::Disconnected)
    );
    assert_eq!(entry.trust_anchor_certificate, Some(anchor(&instance)));

    // Too few HSMs for its keys.
    let wanting = CreateClusterRequest { required_copies: Some(2), ..registration(&instance, &[&hsms[1]]) };
    let wanting = owner.register(wanting).await;
    owner.initialize(&wanting, "other").await.unwrap();
    let request = owner.new_store("second", &wanting);
    refused(client.call(request).await, "CloudHsmClusterInvalidConfiguration");
    let update = |change: &dyn Fn(&mut UpdateCustomKeyStoreRequest)| {
        let mut request =
            UpdateCustomKeyStoreRequest { custom_key_store_id: id(&store), ..Default::default() };
        change(&mut request);
        client.call(request)
    };
    let to_wanting = |r: &mut UpdateCustomKeyStoreRequest| r.cloud_hsm_cluster_id = id(&wanting);
    refused(update(&to_wanting).await, "CloudHsmClusterInvalidConfiguration");
    client.call(DeleteClusterRequest { cluster_id: id(&wanting) }).await.unwrap();
    refused(update(&to_wanting).await, "CloudHsmClusterNotFound");

    owner.connect(&store).await;
    owner.begin_to_connect(&store).await.unwrap();
    refused(client.call(delete(&store)).await, "CustomKeyStoreInvalidState");
    refused(update(&|r| r.key_store_password = id(PIN)).await, "CustomKeyStoreInvalidState");
    refused(client.call(DeleteClusterRequest { cluster_id: id(&cluster) }).await, "CloudHsmClusterInUse");
    update(&|r| r.new_custom_key_store_name = id("renamed")).await.unwrap();
    refused(client.call(describe("vault")).await, "CustomKeyStoreNotFound");
    assert_eq!(client.call(describe("renamed")).await.unwrap().custom_key_stores.len(), 1);
    let wrong_origin = kms::CreateKeyRequest { origin: None, ..key_in(&store, SYMMETRIC) };
    refused(client.call(wrong_origin).await, "Validation");
    let multi_region = kms::CreateKeyRequest { multi_region: Some(true), ..key_in(&store, SYMMETRIC) };
    refused(client.call(multi_region).await, "UnsupportedOperation");

    owner.disconnect(&store).await;
    client.call(delete(&store)).await.unwrap();
    assert_eq!(client.call(DescribeCustomKeyStoresRequest::default()).await.unwrap().custom_key_stores, []);
    let clusters = client.call(DescribeClustersRequest::default()).await.unwrap().clusters;
    let states: Vec<ClusterState> = clusters.iter().map(|cluster| cluster.state()).collect();
    assert!(states.contains(&ClusterState::Active) && states.contains(&ClusterState::Deleted), "{states:?}");
    // Its cluster and its name are free again.
    owner.create_store("renamed", &cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_error_has_its_cause_and_is_mended() {
    let hsms = |instance: &Instance| {
        let userless = Hsm::of_fixture(instance, "userless", 3);
        vec![Hsm::of_fixture(instance, "vault", 1), Hsm::of_fixture(instance, "other", 2), userless]
    };
    let (instance, hsms) = instance(hsms).await;
    let userless = initialise_without_user(&instance, &hsms[2]);
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let client = &owner.client;
    let cluster = owner.cluster(&hsms[0]).await;
    let copy = |hsm: &Hsm| CreateClusterRequest {
        source_cluster_id: id(&cluster),
        ..registration(&instance, &[hsm])
    };
    let fails = async |store: &str, code: Code| {
        owner.begin_to_connect(store).await.unwrap();
        let entry = owner.reaches(store, State::Failed).await;
        assert_eq!(entry.connection_error_code(), code);
        refused(owner.begin_to_connect(store).await, "CustomKeyStoreInvalidState");
        owner.disconnect(store).await;
        assert_eq!(owner.describe(store).await.connection_error_code, None);
    };
    let update = async |request: UpdateCustomKeyStoreRequest| client.call(request).await.unwrap();
    let cluster_of = |store: &str, cluster: &str| UpdateCustomKeyStoreRequest {
        custom_key_store_id: id(store),
        cloud_hsm_cluster_id: id(cluster),
        ..Default::default()
    };

    let wrong = CreateCustomKeyStoreRequest {
        key_store_password: id("11223344"),
        ..owner.new_store("vault", &cluster)
    };
    let store = client.call(wrong).await.unwrap().custom_key_store_id.unwrap();
    fails(&store, Code::InvalidCredentials).await;
    update(UpdateCustomKeyStoreRequest {
        custom_key_store_id: id(&store),
        key_store_password: id(PIN),
        ..Default::default()
    })
    .await;
    owner.connect(&store).await;
    owner.disconnect(&store).await;

    hsms[0].unplug();
    owner.begin_to_connect(&store).await.unwrap();
    // The module saw the token before it went: it does not answer, or is not there.
    let entry = owner.reaches(&store, State::Failed).await;
    assert!(
        [Code::InsufficientCloudhsmHsms, Code::NetworkErrors].contains(&entry.connection_error_code()),
        "{entry:?}"
    );
    hsms[0].plug_in();
    owner.disconnect(&store).await;
    owner.connect(&store).await;
    owner.disconnect(&store).await;

    // A cluster of the same name whose token is another.
    let foreign = owner.register(copy(&hsms[1])).await;
    update(cluster_of(&store, &foreign)).await;
    fails(&store, Code::InternalError).await;
    // One without a crypto user, and one that is not there at all.
    let nobody = owner.register(copy(&userless)).await;
    update(cluster_of(&store, &nobody)).await;
    fails(&store, Code::UserNotFound).await;
    let absent = Hsm { serial: "0123456789abcdef".to_owned(), ..hsms[1].clone() };
    let absent = owner.register(copy(&absent)).await;
    update(cluster_of(&store, &absent)).await;
    fails(&store, Code::InsufficientCloudhsmHsms).await;
    client.call(DeleteClusterRequest { cluster_id: id(&absent) }).await.unwrap();
    fails(&store, Code::ClusterNotFound).await;
    update(cluster_of(&store, &cluster)).await;
    owner.connect(&store).await;

    let events = client.events().await;
    let failed: Vec<&Value> =
        events.iter().filter(|event| event["eventName"] == "CustomKeyStoreConnectionFailed").collect();
    assert_eq!(failed[0]["serviceEventDetails"]["connectionErrorCode"], "INVALID_CREDENTIALS");
    assert_eq!(failed.len(), 6);
}

/// Makes a token anew, without a crypto user: its serial is another.
fn initialise_without_user(instance: &Instance, hsm: &Hsm) -> Hsm {
    let folder = instance.beside(hsm.name);
    fs::remove_dir_all(folder.join("tokens")).unwrap();
    fs::create_dir(folder.join("tokens")).unwrap();
    let tool = |arguments: &[&str]| {
        Command::new("pkcs11-tool")
            .env("SOFTHSM2_CONF", folder.join("softhsm2.conf"))
            .arg("--module")
            .arg(softhsm::library().expect(softhsm::INSTALL_HINT))
            .args(arguments)
            .output()
            .expect("pkcs11-tool is not installed: install OpenSC (Debian: apt-get install opensc)")
    };
    let made = tool(&["--init-token", "--slot-index", "0", "--label", "userless", "--so-pin", "12345678"]);
    assert!(made.status.success(), "{made:?}");
    let listed = String::from_utf8(tool(&["--list-slots"]).stdout).unwrap();
    let serial = listed.lines().find_map(|line| line.trim().strip_prefix("serial num")).unwrap();
    let serial = serial.trim_start_matches([' ', ':']).trim().to_owned();
    Hsm { label: "userless".to_owned(), serial, ..hsm.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_store_moves_to_a_copy_of_its_cluster_only() {
    let hsms = |instance: &Instance| {
        vec![Hsm::of_fixture(instance, "vault", 1), Hsm::of_fixture(instance, "other", 2)]
    };
    let (instance, hsms) = instance(hsms).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let store = owner.connected_store("vault", &hsms[0]).await;
    let old = owner.describe(&store).await.cloud_hsm_cluster_id.unwrap();
    let key = owner.key(&store, SYMMETRIC).await.unwrap();
    let blob = owner.client.encrypt(&key, b"secret").await.unwrap();
    let unrelated = owner.cluster(&hsms[1]).await;
    owner.disconnect(&store).await;
    let to = |cluster: &str| UpdateCustomKeyStoreRequest {
        custom_key_store_id: id(&store),
        cloud_hsm_cluster_id: id(cluster),
        ..Default::default()
    };
    refused(owner.client.call(to(&unrelated)).await, "CloudHsmClusterNotRelated");

    // Backed up and restored elsewhere; the original is gone.
    let copy = Hsm::copy_of(&instance, "restored", &hsms[0]);
    owner.client.call(DeleteClusterRequest { cluster_id: id(&old) }).await.unwrap();
    daemon.terminate().await;
    hsms[0].unplug();
    house::add(&instance, std::slice::from_ref(&copy));
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let restored = CreateClusterRequest { source_cluster_id: id(&old), ..registration(&instance, &[&copy]) };
    let restored = owner.register(restored).await;
    refused(owner.client.call(owner.new_store("second", &restored)).await, "CloudHsmClusterInUse");
    owner.client.call(to(&restored)).await.unwrap();
    owner.connect(&store).await;
    assert_eq!(owner.client.decrypt(&blob).await.unwrap(), b"secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_store_of_two_hsms_has_each_key_on_both_and_does_with_one() {
    let hsms = |instance: &Instance| {
        vec![Hsm::of_fixture(instance, "vault", 1), Hsm::of_fixture(instance, "other", 2)]
    };
    let (instance, hsms) = instance(hsms).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let cluster = owner.register(registration(&instance, &[&hsms[0], &hsms[1]])).await;
    refused(owner.initialize(&cluster, "vault").await, "Validation");
    let initialize = |so_pin: &str| InitializeClusterRequest {
        cluster_id: id(&cluster),
        pin: id("vault"),
        security_officer_pin: id(so_pin),
    };
    // What did not come about leaves nothing, and can be done again.
    refused(owner.client.call(initialize("vault")).await, "CloudHsmClusterInvalidConfiguration");
    owner.client.call(initialize("vault-so")).await.unwrap();
    let store = owner.create_store("vault", &cluster).await;
    owner.connect(&store).await;
    let mut key = None;
    eventually("both serve", async || {
        key = owner.key(&store, SYMMETRIC).await.ok();
        key.is_some()
    })
    .await;
    let key = key.unwrap();
    assert_eq!(hsms[0].keys().len(), 1);
    assert_eq!(hsms[0].keys(), hsms[1].keys());
    let blob = owner.client.encrypt(&key, b"secret").await.unwrap();
    hsms[0].unplug();
    eventually("the other does it", async || {
        owner.client.decrypt(&blob).await.is_ok_and(|plaintext| plaintext == b"secret")
    })
    .await;
    eventually("one is too few for a new key", async || {
        let refusal = owner.key(&store, SYMMETRIC).await.err();
        refusal.is_some_and(|refusal| refusal.exception == "CloudHsmClusterInvalidConfigurationException")
    })
    .await;
}

/// kill -9 at any point of making keys and connecting: no object without a
/// key, no key without its object, and what was connected is connected again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_leaves_no_object_behind_and_a_connected_key_store_comes_back() {
    let (instance, hsm) = one(1).await;
    let mut daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let store = owner.connected_store("vault", &hsm).await;
    let first = owner.key(&store, SYMMETRIC).await.unwrap();
    let blob = owner.client.encrypt(&first, b"secret").await.unwrap();
    let mut dice = Dice::new(4);
    for _ in 0..rounds(3) {
        let owner = Owner::of(&instance, &daemon).await;
        let (client, name) = (owner.client.clone(), store.clone());
        let load = tokio::spawn(async move {
            let mut spec = SPECS.iter().filter(|spec| **spec != KeySpec::Rsa2048).cycle();
            while client.call(key_in(&name, *spec.next().unwrap())).await.is_ok() {}
        });
        tokio::time::sleep(std::time::Duration::from_millis(dice.roll(400) as u64)).await;
        if dice.roll(2) == 0 {
            // Its connection is cut off too.
            let _ = owner.begin_to_disconnect(&store).await;
            let _ = owner.begin_to_connect(&store).await;
        }
        daemon.kill9();
        load.await.unwrap();
        daemon = instance.start().await;
        let owner = Owner::of(&instance, &daemon).await;
        match owner.describe(&store).await.connection_state() {
            State::Connected => assert_eq!(owner.client.decrypt(&blob).await.unwrap(), b"secret"),
            State::Disconnecting => {
                owner.reaches(&store, State::Disconnected).await;
                owner.connect(&store).await;
            }
            State::Disconnected => owner.connect(&store).await,
            _ => drop(owner.reaches(&store, State::Connected).await),
        }
        let mut known = Vec::new();
        for key in owner.client.keys().await {
            let request = kms::DescribeKeyRequest { key_id: id(&key), ..Default::default() };
            let metadata = owner.client.call(request).await.unwrap().key_metadata.unwrap();
            owner.client.use_key(&key, metadata.key_spec()).await.unwrap();
            known.push(key);
        }
        eventually("every object has its key", async || hsm.keys().len() == known.len()).await;
    }
    assert_eq!(Owner::of(&instance, &daemon).await.client.findings().await, [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_nowhere_in_the_clear() {
    let (instance, hsm) = one(1).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let secret = "kmsuser:Xq7-never-to-be-seen";
    let cluster = owner.cluster(&hsm).await;
    let request =
        CreateCustomKeyStoreRequest { key_store_password: id(secret), ..owner.new_store("vault", &cluster) };
    let store = owner.client.call(request).await.unwrap().custom_key_store_id.unwrap();
    owner.begin_to_connect(&store).await.unwrap();
    let failed = owner.reaches(&store, State::Failed).await;
    assert_eq!(failed.connection_error_code(), Code::InvalidCredentials);
    let events = serde_json::to_string(&owner.client.events().await).unwrap();
    assert!(!events.contains(secret));
    let (_, metrics) = daemon.page("/metrics").await;
    assert!(!metrics.contains(secret));
    daemon.terminate().await;
    let contains = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
    assert!(!contains(&instance.printed()));
    for entry in fs::read_dir(instance.path("data")).unwrap() {
        let path = entry.unwrap().path();
        assert!(path.is_dir() || !contains(&fs::read(&path).unwrap()), "{}", path.display());
    }
    // The row is another's nowhere: neither moved nor changed is it believed.
    let mut database = instance.database().await;
    let sealed = database.texts("SELECT body FROM row WHERE kind = 'key-store'").await.remove(0);
    database.close().await;
    assert!(sealed.contains("ciphertext") && !sealed.contains("never-to-be-seen"));
}
