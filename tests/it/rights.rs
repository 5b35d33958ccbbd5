//! Who may do what, against a running daemon: principals of two accounts, by
//! what they are, by their policies and by the keys' policies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, DnValue, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustix::process::Signal;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use strongroom::operation::Operation;
use strongroom::ops::{self, Visitor};
use strongroom::pki::{Ca, user_uri};
use strongroom::proto::{admin, cloudtrail, hsm, kms};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic_prost::ProstCodec;

use crate::support::{Client, Daemon, Instance, LONG, Refusal, Rpc, create, encrypt, eventually};

/// The account that runs the installation.
const MAIN: &str = "111122223333";
const OTHER: &str = "444455556666";
const DENIED: &str = "AccessDeniedException";

/// Who there is beside the administrator: the name in the certificate, the
/// account, the kind and the identity policies.
const PRINCIPALS: [(&str, &str, &str, &[&str]); 13] = [
    ("root", MAIN, "root", &[]),
    (
        "allowed",
        MAIN,
        "user",
        &[
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["kms:ListKeys","kms:DescribeKey","kms:Encrypt"],"Resource":"*"}}"#,
        ],
    ),
    ("named", MAIN, "user", &[]),
    ("nobody", MAIN, "user", &[]),
    (
        "denied",
        MAIN,
        "user",
        &[
            "AdministratorAccess",
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":["kms:Encrypt","kms:DisableKey"],"Resource":"*"}}"#,
        ],
    ),
    ("banned", MAIN, "user", &["AdministratorAccess"]),
    (
        "role",
        MAIN,
        "role",
        &[
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["kms:De*","kms:Encrypt","kms:DisableKey"],"Resource":"arn:aws:kms:*:111122223333:key/*"}}"#,
        ],
    ),
    ("idle-role", MAIN, "role", &[]),
    (
        "painter",
        MAIN,
        "user",
        &[
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["kms:Encrypt","kms:Decrypt"],"Resource":"*","Condition":{"StringEquals":{"kms:EncryptionContext:team":"red"}}}}"#,
        ],
    ),
    ("other-root", OTHER, "root", &[]),
    ("other-user", OTHER, "user", &[]),
    (
        "other-both",
        OTHER,
        "user",
        &[r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*"}}"#],
    ),
    ("other-administrator", OTHER, "user", &["AdministratorAccess"]),
];

/// A daemon with all of them.
struct House {
    /// Before the folder, so that it ends first.
    daemon: Daemon,
    instance: Instance,
    /// Signs their certificates, and is trusted with CNs.
    partners: Ca,
}

impl House {
    async fn open() -> House {
        House::open_with("").await
    }

    /// The same with more in the configuration.
    async fn open_with(more: &str) -> House {
        let instance = Instance::new();
        instance.start().await.terminate().await;
        let (partners, strangers) = (Ca::new("partners").unwrap(), Ca::new("strangers").unwrap());
        let pki = instance.path("pki");
        for (name, account, ..) in PRINCIPALS {
            partners.client(account, name).unwrap().write(&pki, name).unwrap();
        }
        for (ca, user, file) in [
            (&partners, "carol", "carol"),
            (&partners, "mallory", "mallory"),
            (&strangers, "carol", "carol-of-strangers"),
        ] {
            ca.client(MAIN, user).unwrap().write(&pki, file).unwrap();
        }
        fs::write(pki.join("partners.pem"), &partners.identity().certificate).unwrap();
        fs::write(pki.join("strangers.pem"), &strangers.identity().certificate).unwrap();
        let configuration = instance.path("strongroom.toml");
        let text = fs::read_to_string(&configuration).unwrap() + &principals() + more;
        fs::write(&configuration, text).unwrap();
        let daemon = instance.start().await;
        House { daemon, instance, partners }
    }

    async fn client(&self, name: &str) -> Client {
        self.daemon.client_as(name).await
    }

    async fn administrator(&self) -> Client {
        self.daemon.client().await
    }
}

/// The configuration of PRINCIPALS and of carol, who is known by her CN.
fn principals() -> String {
    let mut text = String::new();
    for account in [MAIN, OTHER] {
        if account == OTHER {
            text += "
[[accounts.principals]]
name = \"carol\"
type = \"user\"
identities = [{ common_name = \"carol\", ca = \"partners\" }]
policies = [\"AdministratorAccess\"]
";
            text += &format!("\n[[accounts]]\nid = \"{OTHER}\"\n");
        }
        for (name, _, kind, policies) in PRINCIPALS.iter().filter(|principal| principal.1 == account) {
            let policies: Vec<String> = policies.iter().map(|policy| format!("'{policy}'")).collect();
            text += &format!("\n[[accounts.principals]]\ntype = \"{kind}\"\n");
            if *kind != "root" {
                text += &format!("name = \"{name}\"\n");
            }
            text += &format!("identities = [{{ uri = \"{}\" }}]\n", user_uri(account, name));
            text += &format!("policies = [{}]\n", policies.join(", "));
        }
    }
    text + "
[tls.client_cas.partners]
file = \"pki/partners.pem\"
common_names = true

[tls.client_cas.strangers]
file = \"pki/strangers.pem\"
"
}

/// The ARN that the record names a caller by; a role's up to its session.
fn arn(name: &str) -> String {
    let (_, account, kind, _) = PRINCIPALS.iter().find(|principal| principal.0 == name).unwrap();
    match *kind {
        "root" => format!("arn:aws:iam::{account}:root"),
        "role" => format!("arn:aws:sts::{account}:assumed-role/{name}/"),
        _ => format!("arn:aws:iam::{account}:user/{name}"),
    }
}

/// A key whose policy leaves it to the account and says some things itself.
async fn shared_key(administrator: &Client) -> String {
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [
            { "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{MAIN}:root") }, "Action": "kms:*", "Resource": "*" },
            {
                "Effect": "Allow",
                "Principal": { "AWS": format!("arn:aws:iam::{MAIN}:user/named") },
                "Action": ["kms:DescribeKey", "kms:Encrypt", "kms:CreateAlias", "kms:DisableKey"],
                "Resource": "*",
            },
            { "Effect": "Allow", "Principal": { "AWS": OTHER }, "Action": "kms:*", "Resource": "*" },
            { "Effect": "Deny", "Principal": { "AWS": format!("arn:aws:iam::{MAIN}:user/banned") }, "Action": "kms:*", "Resource": "*" },
        ],
    });
    let request =
        kms::CreateKeyRequest { policy: Some(policy.to_string()), ..create(kms::KeySpec::SymmetricDefault) };
    administrator.call(request).await.unwrap().key_metadata.unwrap().arn.unwrap()
}

fn describe(key: &str) -> kms::DescribeKeyRequest {
    kms::DescribeKeyRequest { key_id: Some(key.to_owned()), ..Default::default() }
}

fn exception<T>(result: Result<T, Refusal>) -> String {
    result.err().map(|refusal| refusal.exception).unwrap_or_default()
}

/// The events of a call.
fn of<'a>(events: &'a [Value], request_id: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["requestID"] == request_id).collect()
}

// The walk over the whole API.

/// A well-formed request of every operation.
const REQUESTS: [(&str, &str); 32] = [
    ("CreateKey", "{}"),
    ("DescribeKey", r#"{"keyId": "KEY"}"#),
    ("ListKeys", "{}"),
    ("UpdateKeyDescription", r#"{"keyId": "KEY", "description": "changed"}"#),
    ("EnableKey", r#"{"keyId": "KEY"}"#),
    ("DisableKey", r#"{"keyId": "KEY"}"#),
    ("ScheduleKeyDeletion", r#"{"keyId": "KEY"}"#),
    ("CancelKeyDeletion", r#"{"keyId": "KEY"}"#),
    ("GetPublicKey", r#"{"keyId": "KEY"}"#),
    ("CreateAlias", r#"{"aliasName": "alias/new", "targetKeyId": "KEY"}"#),
    ("UpdateAlias", r#"{"aliasName": "alias/old", "targetKeyId": "KEY"}"#),
    ("DeleteAlias", r#"{"aliasName": "alias/old"}"#),
    ("ListAliases", "{}"),
    ("Encrypt", r#"{"keyId": "KEY", "plaintext": "eA=="}"#),
    ("Decrypt", r#"{"ciphertextBlob": "BLOB"}"#),
    ("ReEncrypt", r#"{"ciphertextBlob": "BLOB", "destinationKeyId": "KEY"}"#),
    ("GenerateDataKey", r#"{"keyId": "KEY", "numberOfBytes": 32}"#),
    ("GenerateDataKeyWithoutPlaintext", r#"{"keyId": "KEY", "numberOfBytes": 32}"#),
    ("GenerateDataKeyPair", r#"{"keyId": "KEY", "keyPairSpec": 4}"#),
    ("GenerateDataKeyPairWithoutPlaintext", r#"{"keyId": "KEY", "keyPairSpec": 4}"#),
    ("GenerateRandom", r#"{"numberOfBytes": 32}"#),
    ("Sign", r#"{"keyId": "KEY", "message": "eA==", "signingAlgorithm": 1}"#),
    ("Verify", r#"{"keyId": "KEY", "message": "eA==", "signature": "eA==", "signingAlgorithm": 1}"#),
    ("GenerateMac", r#"{"keyId": "KEY", "message": "eA==", "macAlgorithm": 1}"#),
    ("VerifyMac", r#"{"keyId": "KEY", "message": "eA==", "mac": "eA==", "macAlgorithm": 1}"#),
    ("DeriveSharedSecret", r#"{"keyId": "KEY", "keyAgreementAlgorithm": 1, "publicKey": "eA=="}"#),
    ("LookupEvents", "{}"),
    ("VerifyEvents", "{}"),
    ("StreamEvents", "{}"),
    ("ListMembers", "{}"),
    ("RecoverKeyPolicy", r#"{"keyId": "KEY"}"#),
    ("ConfirmClock", "{}"),
];

/// An operation's method and its request.
struct Call {
    method: MethodDescriptor,
    request: DynamicMessage,
}

impl Call {
    fn name(&self) -> &str {
        self.method.name()
    }

    fn is_for_the_host(&self) -> bool {
        self.method.parent_service().name() == "AdminService"
    }

    /// What it is refused with; only refusals are looked for.
    async fn refusal(&self, client: &Client) -> Option<Refusal> {
        let mut grpc = tonic::client::Grpc::new(client.channel());
        let path = format!("/{}/{}", self.method.parent_service().full_name(), self.name());
        let call = async {
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<DynamicMessage, ()>::default();
            let path = PathAndQuery::from_maybe_shared(path).unwrap();
            let answer = grpc.server_streaming(tonic::Request::new(self.request.clone()), path, codec).await;
            match answer {
                // The first message, or the status that is there instead.
                Ok(answer) => answer.into_inner().message().await.err(),
                Err(status) => Some(status),
            }
        };
        let status = timeout(LONG, call).await.unwrap_or_else(|_| panic!("{} hangs", self.name()));
        status.as_ref().map(Refusal::read)
    }
}

/// The names of the API's own list.
#[derive(Default)]
struct Names(BTreeSet<&'static str>);

impl Visitor for Names {
    fn visit<O>(&mut self)
    where
        O: Operation,
        O::Request: prost::Message,
        O::Response: prost::Message + Default,
    {
        assert!(self.0.insert(O::NAME), "{} is there twice", O::NAME);
    }
}

/// Every operation, with a request for this key and ciphertext.
fn calls(key: &str, blob: &[u8]) -> Vec<Call> {
    use base64::Engine as _;
    let blob = base64::engine::general_purpose::STANDARD.encode(blob);
    let pool = DescriptorPool::decode(strongroom::proto::DESCRIPTORS).unwrap();
    let ours = pool.services().filter(|service| service.full_name().starts_with("strongroom."));
    let methods: BTreeMap<String, MethodDescriptor> = ours
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|m| (m.name().to_owned(), m))
        .collect();

    let mut names = Names::default();
    ops::each(&mut names);
    names.0.insert("StreamEvents");
    assert_eq!(names.0, methods.keys().map(String::as_str).collect(), "operations and proto/");
    assert_eq!(names.0, REQUESTS.iter().map(|(name, _)| *name).collect(), "operations and REQUESTS");

    let call = |(name, json): &(&str, &str)| {
        let method = methods[*name].clone();
        let json = json.replace("KEY", key).replace("BLOB", &blob);
        let mut reader = serde_json::Deserializer::from_str(&json);
        let request = DynamicMessage::deserialize(method.input(), &mut reader).expect(name);
        Call { method, request }
    };
    REQUESTS.iter().map(call).collect()
}

/// What a denied caller could have changed.
async fn everything(administrator: &Client, key: &str) -> (Vec<String>, String, String) {
    let aliases = administrator.call(kms::ListAliasesRequest::default()).await.unwrap();
    let metadata = administrator.call(describe(key)).await.unwrap();
    (administrator.keys().await, format!("{:?}", aliases.aliases), format!("{metadata:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_policy_may_do_nothing_and_it_is_on_the_record() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let key = administrator.call(create(kms::KeySpec::SymmetricDefault)).await.unwrap();
    let key = key.key_metadata.unwrap().arn.unwrap();
    let blob = administrator.encrypt(&key, b"a secret").await.unwrap();
    let alias =
        kms::CreateAliasRequest { alias_name: Some("alias/old".into()), target_key_id: Some(key.clone()) };
    administrator.call(alias).await.unwrap();
    let calls = calls(&key, &blob);
    let before = everything(&administrator, &key).await;

    let mut refused = Vec::new();
    for who in ["nobody", "idle-role"] {
        let client = house.client(who).await;
        for call in &calls {
            let refusal = call.refusal(&client).await;
            let refusal = refusal.unwrap_or_else(|| panic!("{who} may {}", call.name()));
            assert_eq!(refusal.exception, DENIED, "{who}: {}: {refusal:?}", call.name());
            assert!(refusal.message.contains(&arn(who)), "{refusal:?}");
            refused.push((who, call, refusal.request_id));
        }
    }
    assert_eq!(everything(&administrator, &key).await, before);

    let events = administrator.events().await;
    for (who, call, request_id) in &refused {
        let name = call.name();
        let [event] = of(&events, request_id)[..] else { panic!("{who}: {name}: no event, or several") };
        assert_eq!((&event["eventName"], &event["errorCode"]), (&json!(name), &json!("AccessDenied")));
        assert_eq!(event["responseElements"], Value::Null, "{name}");
        assert_eq!(event["recipientAccountId"], MAIN);
        let identity = &event["userIdentity"];
        assert_eq!(identity["accountId"], MAIN);
        let caller = identity["arn"].as_str().unwrap();
        match *who {
            "nobody" => {
                assert_eq!((&identity["type"], &identity["userName"]), (&json!("IAMUser"), &json!(who)));
                assert_eq!(caller, arn(who));
            }
            _ => {
                assert_eq!(identity["type"], "AssumedRole");
                assert!(caller.starts_with(&arn(who)), "{caller}");
                let issuer = &identity["sessionContext"]["sessionIssuer"];
                assert_eq!(issuer["arn"], format!("arn:aws:iam::{MAIN}:role/{who}"));
            }
        }
    }
    let theirs = events.iter().filter(|event| {
        let caller = event["userIdentity"]["arn"].as_str().unwrap_or_default();
        caller.starts_with(&arn("nobody")) || caller.starts_with(&arn("idle-role"))
    });
    assert_eq!(theirs.count(), refused.len(), "more events than calls");

    // The same requests are good, and the administrator may: all but what is
    // for the host alone.
    for call in calls.iter().filter(|call| call.name() != "StreamEvents") {
        let found = call.refusal(&administrator).await.map(|refusal| refusal.exception).unwrap_or_default();
        if call.is_for_the_host() {
            assert_eq!(found, DENIED, "{} over TCP", call.name());
        } else {
            assert!(found != DENIED && !found.contains("Internal"), "{}: {found}", call.name());
        }
    }
    assert_ne!(everything(&administrator, &key).await, before);
}

// Who × what.

/// Who may do what with a key of the main account whose policy
/// - leaves it to its account,
/// - allows `named` everything that is asked for here,
/// - allows the other account everything,
/// - denies `banned` everything.
const RIGHTS: &str = "
                     ListKeys  DescribeKey  Encrypt  CreateAlias  DisableKey
root                 yes       yes          yes      yes          yes
administrator        yes       yes          yes      yes          yes
carol                yes       yes          yes      yes          yes
allowed              yes       yes          yes      no           no
named                no        yes          yes      no           yes
nobody               no        no           no       no           no
denied               yes       yes          no       yes          no
banned               yes       no           no       no           no
role                 no        yes          yes      no           yes
idle-role            no        no           no       no           no
painter              no        no           no       no           no
other-root           yes       yes          yes      no           no
other-user           no        no           no       no           no
other-both           yes       yes          yes      no           no
other-administrator  yes       yes          yes      no           no
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_may_do_what_the_table_says() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let key = shared_key(&administrator).await;
    let mut lines = RIGHTS.lines().filter(|line| !line.is_empty());
    let what: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let mut wrong = Vec::new();
    for line in lines {
        let mut cells = line.split_whitespace();
        let who = cells.next().unwrap();
        let client = house.client(who).await;
        for (what, expected) in what.iter().zip(cells) {
            let found = match attempt(&client, who, what, &key).await {
                Ok(()) => "yes".to_owned(),
                Err(refusal) if refusal.exception == DENIED => "no".to_owned(),
                Err(refusal) => format!("{refusal:?}"),
            };
            if found != expected {
                wrong.push(format!("{who} {what}: {found}"));
            }
            let disabled = administrator.state(&key).await.unwrap() == kms::KeyState::Disabled;
            assert_eq!(disabled, *what == "DisableKey" && found == "yes", "{who} {what}");
            if disabled {
                let enable = kms::EnableKeyRequest { key_id: Some(key.clone()) };
                administrator.call(enable).await.unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn attempt(client: &Client, who: &str, what: &str, key: &str) -> Result<(), Refusal> {
    let key_id = Some(key.to_owned());
    match what {
        "ListKeys" => client.call(kms::ListKeysRequest::default()).await.map(drop),
        "DescribeKey" => client.call(describe(key)).await.map(drop),
        "Encrypt" => client.call(encrypt(key, b"x")).await.map(drop),
        "CreateAlias" => {
            let alias_name = Some(format!("alias/{who}"));
            client.call(kms::CreateAliasRequest { alias_name, target_key_id: key_id }).await.map(drop)
        }
        "DisableKey" => client.call(kms::DisableKeyRequest { key_id }).await.map(drop),
        _ => panic!("{what} is not in the table"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_asks_for_the_encryption_context() {
    let house = House::open().await;
    let key = house.administrator().await.create(kms::KeySpec::SymmetricDefault).await.unwrap();
    let painter = house.client("painter").await;
    let context = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    for (pairs, allowed) in [
        (&[("team", "red")][..], true),
        (&[("team", "red"), ("more", "x")], true),
        (&[("team", "blue")], false),
        (&[("Team ", "red")], false),
        (&[("other", "red")], false),
        (&[], false),
    ] {
        let request = kms::EncryptRequest { encryption_context: context(pairs), ..encrypt(&key, b"x") };
        let expected = if allowed { "" } else { DENIED };
        assert_eq!(exception(painter.call(request).await), expected, "{pairs:?}");
    }
    let red = context(&[("team", "red")]);
    let request = kms::EncryptRequest { encryption_context: red, ..encrypt(&key, b"x") };
    let blob = painter.call(request).await.unwrap().ciphertext_blob;
    let decrypt = |pairs| kms::DecryptRequest {
        ciphertext_blob: blob.clone(),
        encryption_context: context(pairs),
        ..Default::default()
    };
    assert_eq!(painter.call(decrypt(&[("team", "red")])).await.unwrap().plaintext.unwrap(), b"x");
    assert_eq!(exception(painter.call(decrypt(&[("team", "blue")])).await), DENIED);
    let re_encrypt = kms::ReEncryptRequest {
        ciphertext_blob: blob.clone(),
        source_encryption_context: context(&[("team", "red")]),
        destination_encryption_context: context(&[("team", "red")]),
        destination_key_id: Some(key.clone()),
        ..Default::default()
    };
    assert_eq!(exception(painter.call(re_encrypt).await), DENIED);
}

// Two accounts.

async fn lookup(client: &Client, name: &str) -> Vec<Value> {
    let attribute = cloudtrail::LookupAttribute {
        attribute_key: Some(cloudtrail::LookupAttributeKey::EventName as i32),
        attribute_value: Some(name.to_owned()),
    };
    let request =
        cloudtrail::LookupEventsRequest { lookup_attributes: vec![attribute], ..Default::default() };
    let found = client.call(request).await.unwrap().events;
    found.iter().map(|event| serde_json::from_str(event.cloud_trail_event()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_used_across_accounts_is_on_both_records_and_a_denial_on_the_callers() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let others = house.client("other-administrator").await;
    let key = shared_key(&administrator).await;
    let own = administrator.call(create(kms::KeySpec::SymmetricDefault)).await.unwrap();
    let own = own.key_metadata.unwrap().arn.unwrap();

    let allowed = house.client("other-both").await.ask(encrypt(&key, b"x")).await.unwrap().request_id;
    let denied = house.client("other-user").await.ask(encrypt(&key, b"x")).await.unwrap_err();
    assert_eq!(denied.exception, DENIED);
    // A key whose policy does not name the other account, one that is not there
    // and an operation that nobody does across accounts.
    let foreign = others.ask(encrypt(&own, b"x")).await.unwrap_err();
    assert_eq!(foreign.exception, DENIED);
    let missing = format!("arn:aws:kms:us-east-1:{MAIN}:key/00000000-0000-4000-8000-000000000000");
    assert_eq!(exception(others.ask(describe(&missing)).await), DENIED);
    let schedule = kms::ScheduleKeyDeletionRequest { key_id: Some(key.clone()), ..Default::default() };
    assert_eq!(exception(others.ask(schedule).await), DENIED);

    let (main, other) = (administrator.events().await, others.events().await);
    for (events, account) in [(&main, MAIN), (&other, OTHER)] {
        assert!(events.iter().all(|event| event["recipientAccountId"] == account), "{account}");
    }
    let ([copy], [original]) = (&of(&main, &allowed)[..], &of(&other, &allowed)[..]) else {
        panic!("not one event in each account");
    };
    assert!(copy["sharedEventID"].is_string());
    assert_eq!(copy["sharedEventID"], original["sharedEventID"]);
    assert_ne!(copy["eventID"], original["eventID"]);
    let identity = &original["userIdentity"];
    assert_eq!((&identity["type"], &identity["arn"]), (&json!("IAMUser"), &json!(arn("other-both"))));
    let identity = &copy["userIdentity"];
    assert_eq!((&identity["type"], &identity["accountId"]), (&json!("AWSAccount"), &json!(OTHER)));
    for hidden in ["arn", "userName", "credentialId", "sessionContext"] {
        assert_eq!(identity[hidden], Value::Null, "the owner sees the caller's {hidden}");
    }
    for refusal in [&denied, &foreign] {
        assert_eq!(of(&main, &refusal.request_id).len(), 0, "{refusal:?}");
        let [event] = of(&other, &refusal.request_id)[..] else { panic!("no event of {refusal:?}") };
        assert_eq!(event["errorCode"], "AccessDenied");
        assert_eq!(event["sharedEventID"], Value::Null);
    }

    // What one account looks up is its own too.
    let ids = |events: &[Value]| -> BTreeSet<String> {
        events.iter().map(|event| event["eventID"].as_str().unwrap().to_owned()).collect()
    };
    let encryptions = |events: &[Value]| -> Vec<Value> {
        events.iter().filter(|event| event["eventName"] == "Encrypt").cloned().collect()
    };
    assert_eq!(ids(&lookup(&administrator, "Encrypt").await), ids(&encryptions(&main)));
    assert_eq!(ids(&lookup(&others, "Encrypt").await), ids(&encryptions(&other)));
    assert_eq!(lookup(&administrator, "CreateKey").await.len(), 2);
    assert_eq!(lookup(&others, "CreateKey").await, Vec::<Value>::new());
    assert_eq!(others.keys().await, Vec::<String>::new());

    // The installation's own matters are the management account's.
    assert_eq!(exception(others.call(cloudtrail::VerifyEventsRequest::default()).await), DENIED);
    assert_eq!(exception(others.call(hsm::ListMembersRequest::default()).await), DENIED);
    assert_eq!(administrator.findings().await, Vec::<String>::new());
    assert_eq!(administrator.call(hsm::ListMembersRequest::default()).await.unwrap().members.len(), 1);
}

// A key that nobody may use.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_locked_everybody_out_is_recovered_on_the_host_alone() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let root = house.client("root").await;
    let policy = r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*"}}"#;
    let locked = |bypass| kms::CreateKeyRequest {
        policy: Some(policy.to_owned()),
        bypass_policy_lockout_safety_check: bypass,
        ..create(kms::KeySpec::SymmetricDefault)
    };
    for bypass in [None, Some(false)] {
        let refused = exception(administrator.call(locked(bypass)).await);
        assert_eq!(refused, "MalformedPolicyDocumentException");
    }
    assert_eq!(administrator.keys().await, Vec::<String>::new());
    let key = administrator.call(locked(Some(true))).await.unwrap().key_metadata.unwrap();
    let (id, key) = (key.key_id.unwrap(), key.arn.unwrap());

    let recover = || admin::RecoverKeyPolicyRequest { key_id: Some(id.clone()) };
    for client in [&administrator, &root] {
        assert_eq!(exception(client.encrypt(&key, b"x").await), DENIED);
        assert_eq!(exception(client.state(&key).await), DENIED);
        let schedule = kms::ScheduleKeyDeletionRequest { key_id: Some(key.clone()), ..Default::default() };
        assert_eq!(exception(client.call(schedule).await), DENIED);
        assert_eq!(exception(client.call(recover()).await), DENIED, "over TCP");
        assert_eq!(exception(client.encrypt(&key, b"x").await), DENIED);
    }

    let output = house.instance.admin(&["recover-key-policy", "--key-id", &id]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&key), "{output:?}");
    for client in [&administrator, &root] {
        client.use_key(&key, kms::KeySpec::SymmetricDefault).await.unwrap();
    }
    assert_eq!(exception(house.client("nobody").await.state(&key).await), DENIED);

    let events = administrator.events().await;
    let recoveries: Vec<_> = events.iter().filter(|event| event["eventName"] == "RecoverKeyPolicy").collect();
    let done: Vec<_> = recoveries.iter().filter(|event| event["errorCode"].is_null()).collect();
    assert_eq!((recoveries.len(), done.len()), (3, 1), "{recoveries:#?}");
    assert_eq!(done[0]["resources"][0]["ARN"], key.as_str());
    assert_eq!(done[0]["sourceIPAddress"], "localhost");
    assert_eq!(done[0]["requestParameters"]["keyId"], id.as_str());
    assert_eq!(done[0]["readOnly"], false);
}

// The brake on denials.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_of_one_are_slowed_and_keep_nobody_else_waiting() {
    const CALLS: usize = 20;
    const BURST: usize = 5;
    // The callers of every second one do not wait as long as the brake does.
    const PATIENCE: Duration = Duration::from_secs(1);
    let house = House::open_with("\n[limits]\ndenials_per_second = 2\ndenials_burst = 5\n").await;
    let administrator = house.administrator().await;
    let key = administrator.create(kms::KeySpec::SymmetricDefault).await.unwrap();
    let nobody = house.client("nobody").await;
    let mut denials = JoinSet::new();
    for number in 0..CALLS {
        let (nobody, key) = (nobody.clone(), key.clone());
        denials.spawn(async move {
            match number % 2 {
                0 => nobody.ask(describe(&key)).await.unwrap_err(),
                _ => nobody.ask_within(describe(&key), PATIENCE).await.unwrap_err(),
            }
        });
    }
    let mut refusals = Vec::new();
    for _ in 0..BURST {
        refusals.push(denials.join_next().await.unwrap().unwrap());
    }
    // Now the others wait; somebody else's calls, also denied ones, do not.
    administrator.use_key(&key, kms::KeySpec::SymmetricDefault).await.unwrap();
    let other = house.client("named").await;
    assert_eq!(exception(other.state(&key).await), DENIED);
    let mut waiting = CALLS - BURST;
    while let Some(refusal) = denials.try_join_next() {
        refusals.push(refusal.unwrap());
        waiting -= 1;
    }
    assert!(waiting > 0, "all {CALLS} denials were answered at once");
    while let Some(refusal) = denials.join_next().await {
        refusals.push(refusal.unwrap());
    }
    for refusal in &refusals {
        let late =
            refusal.message.starts_with("Cancelled") || refusal.message.starts_with("DeadlineExceeded");
        assert!(refusal.exception == DENIED || late, "{refusal:?}");
    }
    assert!(refusals.iter().filter(|refusal| refusal.exception == DENIED).count() >= CALLS / 2);

    let denied = async || -> Vec<Value> {
        let events = administrator.events().await;
        events.into_iter().filter(|event| event["userIdentity"]["userName"] == "nobody").collect()
    };
    // Who did not wait for the answer has an event all the same.
    eventually("each denial has its event", async || denied().await.len() >= CALLS).await;
    let events = denied().await;
    assert_eq!(events.len(), CALLS);
    assert!(events.iter().all(|event| event["errorCode"] == "AccessDenied"));
    for refusal in refusals.iter().filter(|refusal| refusal.is_answer()) {
        assert_eq!(of(&events, &refusal.request_id).len(), 1, "{refusal:?}");
    }
}

// Certificates.

/// A call that the daemon refuses to hear, let alone to record.
async fn unauthenticated<R: Rpc>(client: &Client, request: R) {
    let refusal = client.ask(request).await.err().expect("an answer");
    assert!(refusal.message.starts_with("Unauthenticated"), "{refusal:?}");
    assert_eq!(refusal.request_id, "", "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_nobodys_gets_no_answer_and_no_event() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    house.client("carol").await.call(kms::ListKeysRequest::default()).await.unwrap();
    let before = administrator.events().await.len();
    // Of a CA that is trusted; and her name, but not from the CA that may say it.
    for who in ["mallory", "carol-of-strangers"] {
        let client = house.client(who).await;
        unauthenticated(&client, kms::ListKeysRequest::default()).await;
        unauthenticated(&client, create(kms::KeySpec::SymmetricDefault)).await;
        unauthenticated(&client, admin::ConfirmClockRequest::default()).await;
    }
    let events = administrator.events().await;
    // The administrator's own reading of the log.
    let new: Vec<_> = events[before..].iter().map(|event| &event["userIdentity"]["userName"]).collect();
    assert!(new.iter().all(|user| **user == "administrator"), "{new:?}");
    assert!(events[..before].iter().any(|event| event["userIdentity"]["userName"] == "carol"));
    assert_eq!(administrator.keys().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_is_refused_on_its_open_connection() {
    let house = House::open().await;
    let (allowed, carol) = (house.client("allowed").await, house.client("carol").await);
    let list = kms::ListKeysRequest::default;
    allowed.call(list()).await.unwrap();
    carol.call(list()).await.unwrap();

    let crl = house.instance.path("pki/partners.crl");
    fs::write(&crl, revoke(&house.partners, &house.instance.path("pki/allowed.pem"))).unwrap();
    let configuration = house.instance.path("strongroom.toml");
    let text = fs::read_to_string(&configuration).unwrap();
    let with_crl = text
        .replace("file = \"pki/partners.pem\"", "file = \"pki/partners.pem\"\ncrl = \"pki/partners.crl\"");
    assert_ne!(text, with_crl);
    fs::write(&configuration, with_crl).unwrap();
    house.daemon.signal(Signal::HUP);

    eventually("the open connection is refused", async || allowed.call(list()).await.is_err()).await;
    unauthenticated(&allowed, list()).await;
    carol.call(list()).await.unwrap();
    let events = house.administrator().await.events().await;
    let reload = events.iter().find(|event| event["eventName"] == "ReloadConfiguration").unwrap();
    let details = &reload["serviceEventDetails"];
    assert!(details["newSha256"].is_string() && details["newSha256"] != details["oldSha256"], "{reload}");
}

/// A CRL of a CA that revokes this certificate.
fn revoke(ca: &Ca, certificate: &std::path::Path) -> String {
    let (_, pem) = x509_parser::pem::parse_x509_pem(&fs::read(certificate).unwrap()).unwrap();
    let serial = pem.parse_x509().unwrap().raw_serial().to_vec();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String("partners".into()));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::from_pem(ca.identity().key.expose_secret()).unwrap();
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2099, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&Issuer::new(params, key)).unwrap().pem().unwrap()
}
