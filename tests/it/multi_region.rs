//! Multi-Region keys: one daemon, three Regions.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use strongroom::proto::hsm::{ListMembersRequest, MemberState};
use strongroom::proto::kms::{self, AlgorithmSpec, KeySpec, KeyState, MultiRegionKeyType};

use crate::hsm::Token;
use crate::support::{
    Client, Instance, KEK_BYTES, Refusal, create, encrypt, eventually, faketime, import, named, sign, wrapped,
};

const HOME: &str = "us-east-1";
const WEST: &str = "eu-west-1";
const SOUTH: &str = "ap-southeast-2";
const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;

fn house() -> Instance {
    let mut instance = Instance::new();
    instance.argue("--regions=us-east-1,eu-west-1,ap-southeast-2");
    instance
}

/// A client of each Region.
struct Clients {
    home: Client,
    west: Client,
    south: Client,
}

impl Clients {
    fn of(client: Client) -> Clients {
        Clients { west: client.in_region(WEST), south: client.in_region(SOUTH), home: client }
    }
}

fn key_id(key: &str) -> Option<String> {
    Some(key.to_owned())
}

fn multi_region(spec: KeySpec) -> kms::CreateKeyRequest {
    kms::CreateKeyRequest { multi_region: Some(true), ..create(spec) }
}

async fn make(client: &Client, spec: KeySpec) -> String {
    client.call(multi_region(spec)).await.unwrap().key_metadata.unwrap().key_id.unwrap()
}

fn replicate(key: &str, region: &str) -> kms::ReplicateKeyRequest {
    kms::ReplicateKeyRequest {
        key_id: key_id(key),
        replica_region: Some(region.to_owned()),
        ..Default::default()
    }
}

fn promote(key: &str, region: &str) -> kms::UpdatePrimaryRegionRequest {
    kms::UpdatePrimaryRegionRequest { key_id: key_id(key), primary_region: Some(region.to_owned()) }
}

fn schedule(key: &str) -> kms::ScheduleKeyDeletionRequest {
    kms::ScheduleKeyDeletionRequest { key_id: key_id(key), pending_window_in_days: Some(7) }
}

async fn metadata(client: &Client, key: &str) -> kms::KeyMetadata {
    let request = kms::DescribeKeyRequest { key_id: key_id(key), ..Default::default() };
    client.call(request).await.unwrap().key_metadata.unwrap()
}

/// The kind of a key and the Regions of its set, the primary's first.
async fn set(client: &Client, key: &str) -> (MultiRegionKeyType, Vec<String>) {
    let set = metadata(client, key).await.multi_region_configuration.unwrap();
    let mut regions = vec![set.primary_key.clone().unwrap().region.unwrap()];
    regions.extend(set.replica_keys.iter().map(|key| key.region.clone().unwrap()));
    (set.multi_region_key_type(), regions)
}

async fn rotations(client: &Client, key: &str) -> Vec<kms::RotationsListEntry> {
    let request = kms::ListKeyRotationsRequest {
        key_id: key_id(key),
        include_key_material: Some(kms::IncludeKeyMaterial::AllKeyMaterial as i32),
        ..Default::default()
    };
    client.call(request).await.unwrap().rotations
}

fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, exception: &str) -> String {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.exception, format!("{exception}Exception"), "{refusal:?}");
    refusal.message
}

fn in_region<'a>(events: &'a [Value], name: &str, region: &str) -> Vec<&'a Value> {
    named(events, name).into_iter().filter(|event| event["awsRegion"] == region).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_region_has_keys_of_its_own() {
    let instance = house();
    let daemon = instance.start().await;
    let Clients { home, west, .. } = Clients::of(daemon.client().await);
    let (here, there) = (home.create(SYMMETRIC).await.unwrap(), west.create(SYMMETRIC).await.unwrap());
    assert_eq!((home.keys().await, west.keys().await), (vec![here.clone()], vec![there.clone()]));
    let arn = metadata(&west, &there).await.arn.unwrap();
    assert_eq!(arn, format!("arn:aws:kms:{WEST}:111122223333:key/{there}"));
    refused(home.encrypt(&there, b"x").await, "NotFound");
    assert!(refused(home.encrypt(&arn, b"x").await, "NotFound").ends_with(&format!("Invalid arn {WEST}")));
    let blob = west.encrypt(&arn, b"secret").await.unwrap();
    refused(home.decrypt(&blob).await, "InvalidCiphertext");
    let message = refused(home.in_region("us-west-2").create(SYMMETRIC).await, "Validation");
    assert!(message.contains("us-west-2"), "{message}");

    let listed = instance.cli(&["kms", "list-keys", "--region", WEST]);
    assert!(String::from_utf8(listed.stdout).unwrap().contains(&there), "the command asks a Region too");

    let events = home.events().await;
    let regions = |name| named(&events, name).iter().map(|e| e["awsRegion"].as_str().unwrap()).collect();
    let of_create: Vec<&str> = regions("CreateKey");
    // What asks for a Region that there is not is a call to the daemon's own.
    assert_eq!(of_create, [HOME, WEST, HOME]);
    for (client, count) in [(&home, 2), (&west, 1)] {
        let attribute = strongroom::proto::cloudtrail::LookupAttribute {
            attribute_key: Some(strongroom::proto::cloudtrail::LookupAttributeKey::EventName as i32),
            attribute_value: Some("CreateKey".into()),
        };
        let request = strongroom::proto::cloudtrail::LookupEventsRequest {
            lookup_attributes: vec![attribute],
            ..Default::default()
        };
        assert_eq!(client.call(request).await.unwrap().events.len(), count);
    }
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_does_what_its_primary_key_does() {
    let instance = house();
    let daemon = instance.start().await;
    let Clients { home, west, south } = Clients::of(daemon.client().await);
    let key = make(&home, SYMMETRIC).await;
    assert!(key.starts_with("mrk-"));
    let made = metadata(&home, &key).await;
    assert_eq!((made.multi_region, made.description()), (Some(true), ""));
    assert_eq!(set(&home, &key).await, (MultiRegionKeyType::Primary, vec![HOME.to_owned()]));

    let request = kms::ReplicateKeyRequest {
        description: Some("in the west".into()),
        tags: vec![kms::Tag { tag_key: Some("team".into()), tag_value: Some("west".into()) }],
        ..replicate(&key, WEST)
    };
    let answer = home.call(request).await.unwrap();
    let told = answer.replica_key_metadata.unwrap();
    assert_eq!((told.key_state(), told.enabled), (KeyState::Creating, Some(false)));
    assert_eq!(told.arn, Some(format!("arn:aws:kms:{WEST}:111122223333:key/{key}")));
    assert!(answer.replica_policy.unwrap().contains("111122223333:root"));
    assert_eq!(answer.replica_tags.len(), 1);
    home.call(replicate(&key, SOUTH)).await.unwrap();
    let regions = vec![HOME.to_owned(), SOUTH.to_owned(), WEST.to_owned()];
    assert_eq!(set(&home, &key).await, (MultiRegionKeyType::Primary, regions.clone()));
    for client in [&west, &south] {
        assert_eq!(set(client, &key).await, (MultiRegionKeyType::Replica, regions.clone()));
        assert_eq!(client.state(&key).await.unwrap(), KeyState::Enabled);
    }
    assert_eq!(metadata(&west, &key).await.description(), "in the west");

    // The same material, and a state, alias and description of its own.
    for (from, to) in [(&home, &west), (&west, &south), (&south, &home)] {
        let blob = from.encrypt(&key, b"secret").await.unwrap();
        assert_eq!(to.decrypt(&blob).await.unwrap(), b"secret");
    }
    west.call(kms::DisableKeyRequest { key_id: key_id(&key) }).await.unwrap();
    refused(west.encrypt(&key, b"x").await, "Disabled");
    home.encrypt(&key, b"x").await.unwrap();
    let alias =
        kms::CreateAliasRequest { alias_name: Some("alias/west".into()), target_key_id: key_id(&key) };
    south.call(alias).await.unwrap();
    south.encrypt("alias/west", b"x").await.unwrap();
    refused(home.encrypt("alias/west", b"x").await, "NotFound");

    for (client, request, exception) in [
        (&home, replicate(&key, WEST), "AlreadyExists"),
        (&home, replicate(&key, HOME), "AlreadyExists"),
        (&home, replicate(&key, "us-west-2"), "UnsupportedOperation"),
        (&south, replicate(&key, "us-west-2"), "UnsupportedOperation"),
        (&home, replicate(&home.create(SYMMETRIC).await.unwrap(), WEST), "UnsupportedOperation"),
    ] {
        refused(client.call(request).await, exception);
    }
    // A token object cannot travel.
    refused(home.call(multi_region(KeySpec::EccNistEdwards25519)).await, "UnsupportedOperation");

    let events = home.events().await;
    let [replicated, ..] = in_region(&events, "ReplicateKey", HOME)[..] else { panic!("no ReplicateKey") };
    assert_eq!(replicated["requestParameters"]["replicaRegion"], WEST);
    assert!(replicated["responseElements"]["replicaKeyMetadata"]["arn"].as_str().unwrap().contains(WEST));
    assert!(replicated["resources"][0]["ARN"].as_str().unwrap().contains(HOME));
    let [created] = in_region(&events, "CreateKey", WEST)[..] else { panic!("no CreateKey") };
    assert_eq!(created["userIdentity"]["invokedBy"], "AWS Internal");
    assert_eq!(created["userIdentity"]["userName"], "administrator");
    for id in ["requestID", "eventID"] {
        assert_ne!(created[id], replicated[id]);
    }
    assert_eq!(created["resources"][0]["ARN"], *told.arn.as_ref().unwrap());
    assert_eq!(created["responseElements"]["keyMetadata"]["keyId"], *key);
    // The first replica learned of the second.
    assert_eq!(in_region(&events, "SynchronizeMultiRegionKey", WEST).len(), 1);
    assert_eq!(home.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_and_macs_of_one_region_are_verified_in_another() {
    let instance = house();
    let daemon = instance.start().await;
    let Clients { home, west, .. } = Clients::of(daemon.client().await);
    for spec in [KeySpec::Rsa2048, KeySpec::EccNistP256, KeySpec::EccSecgP256k1] {
        let key = make(&west, spec).await;
        west.call(replicate(&key, HOME)).await.unwrap();
        let request = sign(&key, spec, b"a message");
        let signature = west.call(request.clone()).await.unwrap().signature;
        let verify = kms::VerifyRequest {
            key_id: key_id(&key),
            message: request.message,
            signature,
            signing_algorithm: request.signing_algorithm,
            ..Default::default()
        };
        assert_eq!(home.call(verify).await.unwrap().signature_valid, Some(true));
        // Each has the private key.
        home.sign(&key, spec, b"another").await.unwrap();
    }
    let key = make(&home, KeySpec::Hmac256).await;
    home.call(replicate(&key, WEST)).await.unwrap();
    let request = kms::GenerateMacRequest {
        key_id: key_id(&key),
        message: Some(b"a message".to_vec()),
        mac_algorithm: Some(kms::MacAlgorithmSpec::HmacSha256 as i32),
        ..Default::default()
    };
    let macs = (home.call(request.clone()).await.unwrap().mac, west.call(request).await.unwrap().mac);
    assert_eq!(macs.0, macs.1);
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_follows_the_primary_key() {
    let instance = house();
    let daemon = instance.start().await;
    let Clients { home, west, south } = Clients::of(daemon.client().await);
    let key = make(&home, SYMMETRIC).await;
    home.call(replicate(&key, WEST)).await.unwrap();
    let before = home.encrypt(&key, b"before").await.unwrap();
    let enable = || kms::EnableKeyRotationRequest { key_id: key_id(&key), rotation_period_in_days: Some(90) };
    let rotate = || kms::RotateKeyOnDemandRequest { key_id: key_id(&key) };
    refused(west.call(enable()).await, "UnsupportedOperation");
    refused(west.call(kms::DisableKeyRotationRequest { key_id: key_id(&key) }).await, "UnsupportedOperation");
    refused(west.call(rotate()).await, "UnsupportedOperation");
    home.call(enable()).await.unwrap();
    let status = kms::GetKeyRotationStatusRequest { key_id: key_id(&key) };
    let (of_home, of_west) =
        (home.call(status.clone()).await.unwrap(), west.call(status.clone()).await.unwrap());
    assert_eq!(of_west.rotation_period_in_days, Some(90));
    assert_eq!(of_home.next_rotation_date, of_west.next_rotation_date);

    home.call(rotate()).await.unwrap();
    let current = metadata(&home, &key).await.current_key_material_id;
    assert_eq!(metadata(&west, &key).await.current_key_material_id, current);
    let kinds = |entries: Vec<kms::RotationsListEntry>| -> Vec<_> {
        entries.iter().map(|entry| (entry.key_material_id.clone(), entry.key_material_state())).collect()
    };
    assert_eq!(kinds(rotations(&home, &key).await), kinds(rotations(&west, &key).await));
    let after = west.encrypt(&key, b"after").await.unwrap();
    assert_eq!(home.decrypt(&after).await.unwrap(), b"after");
    assert_eq!(west.decrypt(&before).await.unwrap(), b"before");
    // A replica that comes later has all of it.
    home.call(replicate(&key, SOUTH)).await.unwrap();
    for (blob, plaintext) in [(&before, "before"), (&after, "after")] {
        assert_eq!(south.decrypt(blob).await.unwrap(), plaintext.as_bytes());
    }

    // Promoted, it rotates the others.
    home.call(promote(&key, SOUTH)).await.unwrap();
    let regions = vec![SOUTH.to_owned(), WEST.to_owned(), HOME.to_owned()];
    for (client, kind) in [
        (&south, MultiRegionKeyType::Primary),
        (&west, MultiRegionKeyType::Replica),
        (&home, MultiRegionKeyType::Replica),
    ] {
        let (found, set) = set(client, &key).await;
        assert_eq!(found, kind);
        assert_eq!(set[0], SOUTH);
        assert_eq!(BTreeSet::from_iter(&set), BTreeSet::from_iter(&regions));
    }
    refused(home.call(rotate()).await, "UnsupportedOperation");
    south.call(rotate()).await.unwrap();
    let blob = home.encrypt(&key, b"rotated in the south").await.unwrap();
    assert_eq!(west.decrypt(&blob).await.unwrap(), b"rotated in the south");
    refused(home.call(promote(&key, WEST)).await, "UnsupportedOperation");
    refused(south.call(promote(&key, SOUTH)).await, "UnsupportedOperation");
    refused(south.call(promote(&key, "us-west-2")).await, "NotFound");
    west.call(kms::DisableKeyRequest { key_id: key_id(&key) }).await.unwrap();
    refused(south.call(promote(&key, WEST)).await, "Disabled");

    let events = home.events().await;
    let promoted: Vec<(&str, &str)> = named(&events, "UpdatePrimaryRegion")
        .into_iter()
        .filter(|event| event["errorCode"].is_null())
        .map(|event| {
            let arn = event["responseElements"]["keyId"].as_str().unwrap();
            (event["awsRegion"].as_str().unwrap(), arn.split(':').nth(3).unwrap())
        })
        .collect();
    assert_eq!(promoted, [(HOME, HOME), (SOUTH, SOUTH)]);
    assert_eq!(in_region(&events, "RotateKey", HOME).len(), 1);
    assert_eq!(in_region(&events, "RotateKey", SOUTH).len(), 1);
    let synchronized = in_region(&events, "SynchronizeMultiRegionKey", WEST);
    let event = synchronized[0];
    assert_eq!(event["eventType"], "AwsApiCall");
    assert_eq!(event["userIdentity"], json!({ "accountId": "111122223333", "invokedBy": "AWS Internal" }));
    let arn = &event["resources"][0]["ARN"];
    assert_eq!(event["responseElements"], json!({ "keyId": arn }));
    assert!(event["requestParameters"].is_null() && event["requestID"].is_string(), "{event}");
    assert!(event.get("serviceEventDetails").is_none(), "{event}");
    assert_eq!(home.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imported_material_is_imported_into_each_region() {
    let instance = house();
    let daemon = instance.start().await;
    let Clients { home, west, .. } = Clients::of(daemon.client().await);
    let bring = async |client: &Client, key: &str, material: &[u8], kind: Option<kms::ImportType>| {
        let algorithm = AlgorithmSpec::RsaesOaepSha256;
        let parameters = client.parameters(key, algorithm).await.unwrap();
        let encrypted = wrapped(algorithm, parameters.public_key(), &[0; KEK_BYTES], material);
        let import_type = kind.map(|kind| kind as i32);
        client
            .call(kms::ImportKeyMaterialRequest { import_type, ..import(key, &parameters, encrypted) })
            .await
            .map(|answer| answer.key_material_id.unwrap())
    };
    let key = home.create_external(multi_region(SYMMETRIC)).await.unwrap();
    refused(home.call(replicate(&key, WEST)).await, "KMSInvalidState");
    let first = bring(&home, &key, &[1; 32], None).await.unwrap();
    home.call(replicate(&key, WEST)).await.unwrap();
    assert_eq!(west.state(&key).await.unwrap(), KeyState::PendingImport);
    let blob = home.encrypt(&key, b"first").await.unwrap();
    refused(west.decrypt(&blob).await, "KMSInvalidState");
    refused(bring(&west, &key, &[2; 32], None).await, "IncorrectKeyMaterial");
    assert_eq!(bring(&west, &key, &[1; 32], None).await.unwrap(), first);
    assert_eq!(west.state(&key).await.unwrap(), KeyState::Enabled);
    assert_eq!(west.decrypt(&blob).await.unwrap(), b"first");

    // New material: into the primary key, then everywhere, then it is rotated to.
    let new = Some(kms::ImportType::NewKeyMaterial);
    refused(bring(&west, &key, &[2; 32], new).await, "UnsupportedOperation");
    let second = bring(&home, &key, &[2; 32], new).await.unwrap();
    let state = async |client: &Client, id: &str| {
        let entries = rotations(client, &key).await;
        entries.iter().find(|entry| entry.key_material_id() == id).unwrap().key_material_state()
    };
    use kms::KeyMaterialState::{Current, NonCurrent, PendingMultiRegionImportAndRotation, PendingRotation};
    assert_eq!(state(&home, &second).await, PendingMultiRegionImportAndRotation);
    assert_eq!(state(&west, &second).await, PendingMultiRegionImportAndRotation);
    assert_eq!(west.state(&key).await.unwrap(), KeyState::Enabled);
    let rotate = || kms::RotateKeyOnDemandRequest { key_id: key_id(&key) };
    refused(home.call(rotate()).await, "KMSInvalidState");
    let existing = Some(kms::ImportType::ExistingKeyMaterial);
    assert_eq!(bring(&west, &key, &[2; 32], existing).await.unwrap(), second);
    assert_eq!(
        (state(&home, &second).await, state(&west, &second).await),
        (PendingRotation, PendingRotation)
    );
    // Deleted in the west it is lacking there again.
    let delete = |id: &str| kms::DeleteImportedKeyMaterialRequest {
        key_id: key_id(&key),
        key_material_id: Some(id.to_owned()),
    };
    west.call(delete(&second)).await.unwrap();
    refused(home.call(rotate()).await, "KMSInvalidState");
    bring(&west, &key, &[2; 32], existing).await.unwrap();
    home.call(rotate()).await.unwrap();
    for client in [&home, &west] {
        assert_eq!((state(client, &first).await, state(client, &second).await), (NonCurrent, Current));
    }
    let after = west.encrypt(&key, b"second").await.unwrap();
    assert_eq!(home.decrypt(&after).await.unwrap(), b"second");
    assert_eq!(west.decrypt(&blob).await.unwrap(), b"first");
    // Material that is pending in the primary key goes from its replicas with it.
    let third = bring(&home, &key, &[3; 32], new).await.unwrap();
    bring(&west, &key, &[3; 32], existing).await.unwrap();
    home.call(delete(&third)).await.unwrap();
    for client in [&home, &west] {
        assert_eq!(rotations(client, &key).await.len(), 2);
    }
    // What one Region's owner deletes is deleted there only.
    home.call(delete(&first)).await.unwrap();
    assert_eq!(home.state(&key).await.unwrap(), KeyState::PendingImport);
    assert_eq!(west.decrypt(&blob).await.unwrap(), b"first");
    assert_eq!(home.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_key_is_deleted_after_its_replicas() {
    let Some(faketime) = faketime() else { return };
    let mut instance = house();
    let daemon = instance.start().await;
    let Clients { home, west, south } = Clients::of(daemon.client().await);
    let (key, lone) = (make(&home, SYMMETRIC).await, make(&home, SYMMETRIC).await);
    for region in [WEST, SOUTH] {
        home.call(replicate(&key, region)).await.unwrap();
    }
    let alone = home.call(schedule(&lone)).await.unwrap();
    assert_eq!(alone.key_state(), KeyState::PendingDeletion);
    let waits = home.call(schedule(&key)).await.unwrap();
    assert_eq!((waits.key_state(), waits.deletion_date), (KeyState::PendingReplicaDeletion, None));
    let told = metadata(&home, &key).await;
    assert_eq!((told.pending_deletion_window_in_days, told.deletion_date), (Some(7), None));
    refused(home.encrypt(&key, b"x").await, "KMSInvalidState");
    refused(home.call(replicate(&key, WEST)).await, "KMSInvalidState");
    refused(home.call(promote(&key, WEST)).await, "KMSInvalidState");
    let blob = west.encrypt(&key, b"a replica lives on").await.unwrap();
    assert_eq!(south.decrypt(&blob).await.unwrap(), b"a replica lives on");
    home.call(kms::CancelKeyDeletionRequest { key_id: key_id(&key) }).await.unwrap();
    home.call(schedule(&key)).await.unwrap();
    for client in [&west, &south] {
        client.call(schedule(&key)).await.unwrap();
    }
    daemon.terminate().await;

    instance.set("LD_PRELOAD", faketime.display().to_string());
    instance.set("FAKETIME", "+8d");
    let daemon = instance.start().await;
    let Clients { home, west, south } = Clients::of(daemon.client().await);
    eventually("deletions are suspended", async || {
        daemon.page("/metrics").await.1.contains("strongroom_deletions_suspended 1")
    })
    .await;
    assert!(instance.admin(&["confirm-clock"]).status.success());
    eventually("the replicas are deleted", async || {
        west.keys().await.is_empty() && south.keys().await.is_empty()
    })
    .await;
    eventually("the waiting period begins", async || {
        home.state(&key).await.unwrap() == KeyState::PendingDeletion
    })
    .await;
    let told = metadata(&home, &key).await;
    assert!(told.deletion_date.is_some() && told.pending_deletion_window_in_days.is_none());
    assert_eq!(set(&home, &key).await, (MultiRegionKeyType::Primary, vec![HOME.to_owned()]));
    let events = home.events().await;
    for region in [WEST, SOUTH] {
        assert_eq!(in_region(&events, "DeleteKey", region).len(), 1);
    }
    assert!(!in_region(&events, "SynchronizeMultiRegionKey", HOME).is_empty());
    daemon.terminate().await;
    instance.set("FAKETIME", "+16d");
    let daemon = instance.start().await;
    let client = daemon.client().await;
    eventually("deletions are suspended", async || {
        daemon.page("/metrics").await.1.contains("strongroom_deletions_suspended 1")
    })
    .await;
    assert!(instance.admin(&["confirm-clock"]).status.success());
    eventually("the primary key is deleted", async || client.keys().await.is_empty()).await;
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_may_have_hsms_of_its_own() {
    let instance = Instance::new();
    instance.start().await.terminate().await;
    let second = Token::new(2);
    crate::members::configure(&instance, &second, "second");
    let file = instance.path("strongroom.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let uri = second.uri.to_string();
    let region =
        format!("\n[[regions.{WEST}.members]]\nmodule = \"second\"\ntoken = {uri:?}\npin = \"second\"\n");
    std::fs::write(&file, text + &region).unwrap();

    let daemon = instance.start().await;
    let Clients { home, west, .. } = Clients::of(daemon.client().await);
    let members = async || home.call(ListMembersRequest::default()).await.unwrap().members;
    let first = members().await.remove(0).uri.unwrap();
    let of_west = async || members().await.into_iter().find(|member| member.uri() == uri).unwrap();
    // Without the installation's wrapping key it holds nothing.
    eventually("it is refused", async || of_west().await.reason.is_some()).await;
    let key = make(&home, SYMMETRIC).await;
    refused(home.call(replicate(&key, WEST)).await, "KeyUnavailable");
    assert_eq!(set(&home, &key).await, (MultiRegionKeyType::Primary, vec![HOME.to_owned()]));

    let (config, so_pin) = (instance.path("strongroom.toml"), instance.path("hsm/so.pin"));
    let (config, so_pin) = (config.to_str().unwrap(), so_pin.to_str().unwrap());
    let pin = strongroom::commands::dev_setup::USER_PIN;
    let from = ["--from", &first, "--from-module", "softhsm2", "--from-pin", pin];
    let to = ["--to", &uri, "--to-module", "second", "--to-pin", "second", "--so-pin-file", so_pin];
    let bring = [&["hsm", "bring", "--config", config][..], &from, &to].concat();
    let brought = instance.cli(&bring);
    assert!(brought.status.success(), "{brought:?}");
    eventually("it serves", async || of_west().await.state() == MemberState::Serving).await;
    home.call(replicate(&key, WEST)).await.unwrap();
    let blob = home.encrypt(&key, b"from home").await.unwrap();
    let loaded = of_west().await.loaded_keys;
    assert_eq!(west.decrypt(&blob).await.unwrap(), b"from home");
    assert!(of_west().await.loaded_keys > loaded, "another HSM decrypted");
    let own = west.create(SYMMETRIC).await.unwrap();
    west.use_key(&own, SYMMETRIC).await.unwrap();
    assert_eq!(home.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

/// Each restore moves use counts ahead by 2^24: after so many no use is left of
/// the 2^27 that a multi-Region key's material has in a Region.
const RESTORES: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spent_material_has_a_successor_in_every_region() {
    let instance = house();
    let daemon = instance.start().await;
    let home = daemon.client().await;
    let key = make(&home, SYMMETRIC).await;
    home.call(replicate(&key, WEST)).await.unwrap();
    let algorithm = AlgorithmSpec::RsaesOaepSha256;
    let imported = home.create_external(multi_region(SYMMETRIC)).await.unwrap();
    let parameters = home.parameters(&imported, algorithm).await.unwrap();
    let encrypted = wrapped(algorithm, parameters.public_key(), &[0; KEK_BYTES], &[7; 32]);
    home.call(import(&imported, &parameters, encrypted)).await.unwrap();
    let blobs =
        [home.encrypt(&key, b"before").await.unwrap(), home.encrypt(&imported, b"before").await.unwrap()];
    let first = metadata(&home, &key).await.current_key_material_id;
    daemon.terminate().await;
    let config = instance.path("strongroom.toml");
    for round in 0..RESTORES {
        let copy = instance.beside(&format!("copy.{round}"));
        for (name, flag, more) in [("backup", "--to", None), ("restore", "--from", Some("--force"))] {
            let mut command = instance.command(&[name, "--config"]);
            let done = command.arg(&config).arg(flag).arg(&copy).args(more).output().unwrap();
            assert!(done.status.success(), "{done:?}");
        }
        instance.start().await.terminate().await;
    }

    let daemon = instance.start().await;
    let Clients { home, west, .. } = Clients::of(daemon.client().await);
    assert_eq!(metadata(&home, &key).await.current_key_material_id, first);
    let after = west.encrypt(&key, b"after").await.unwrap();
    let second = metadata(&west, &key).await.current_key_material_id;
    assert_ne!(second, first);
    assert_eq!(metadata(&home, &key).await.current_key_material_id, second);
    assert_eq!(home.decrypt(&after).await.unwrap(), b"after");
    // What nobody here can make a successor of only decrypts.
    refused(home.encrypt(&imported, b"x").await, "KMSInvalidState");
    for blob in &blobs {
        assert_eq!(home.decrypt(blob).await.unwrap(), b"before");
    }
    let events = home.events().await;
    let [rotated] = in_region(&events, "RotateKey", HOME)[..] else { panic!("no RotateKey") };
    assert_eq!(rotated["serviceEventDetails"]["rotationType"], "AUTOMATIC");
    assert_eq!(in_region(&events, "SynchronizeMultiRegionKey", WEST).len(), 1);
    daemon.terminate().await;
}

/// A set is whole whenever the daemon is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replica_is_half_made() {
    let instance = house();
    let mut made = Vec::new();
    for round in 0..crate::support::rounds(3) {
        let daemon = instance.start().await;
        let clients = Clients::of(daemon.client().await);
        let worker = tokio::spawn(load(clients.home, clients.west));
        tokio::time::sleep(std::time::Duration::from_millis(200 + 150 * round)).await;
        daemon.kill9();
        made.extend(worker.await.unwrap());
        let daemon = instance.start().await;
        let Clients { home, west, south } = Clients::of(daemon.client().await);
        for key in home.keys().await {
            let (_, regions) = set(&home, &key).await;
            for (client, region) in [(&west, WEST), (&south, SOUTH)] {
                let listed = client.keys().await.contains(&key);
                assert_eq!(listed, regions.iter().any(|known| known == region), "{key} in {region}");
                if listed {
                    assert_eq!(set(client, &key).await.1, regions);
                    let blob = client.encrypt(&key, b"x").await.unwrap();
                    assert_eq!(home.decrypt(&blob).await.unwrap(), b"x");
                    let current = metadata(client, &key).await.current_key_material_id;
                    assert_eq!(current, metadata(&home, &key).await.current_key_material_id);
                }
            }
        }
        assert_eq!(home.findings().await, Vec::<String>::new());
        for (key, blob) in &made {
            assert_eq!(west.decrypt(blob).await.unwrap(), key.as_bytes(), "what was told is so");
        }
        daemon.kill9();
    }
    assert!(!made.is_empty(), "there was no load");
}

/// Replicates, rotates and promotes until the daemon answers no more: keys that
/// were told to be in both Regions, each with a ciphertext.
async fn load(home: Client, west: Client) -> Vec<(String, Vec<u8>)> {
    let mut made = Vec::new();
    loop {
        let result: Result<(), Refusal> = async {
            let key = home.call(multi_region(SYMMETRIC)).await?.key_metadata.unwrap().key_id.unwrap();
            let blob = home.call(encrypt(&key, key.as_bytes())).await?.ciphertext_blob.unwrap();
            home.call(replicate(&key, WEST)).await?;
            made.push((key.clone(), blob));
            home.call(kms::RotateKeyOnDemandRequest { key_id: key_id(&key) }).await?;
            home.call(replicate(&key, SOUTH)).await?;
            home.call(promote(&key, WEST)).await?;
            west.call(kms::RotateKeyOnDemandRequest { key_id: key_id(&key) }).await.map(|_| ())
        }
        .await;
        if let Err(refusal) = result {
            assert!(!refusal.is_answer(), "{refusal:?}");
            return made;
        }
    }
}
