//! Who may do what, against a running daemon: principals of two accounts, by
//! what they are, by their policies and by the keys' policies.

mod grants;
mod house;
mod walk;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use strongroom::proto::{admin, cloudtrail, hsm, kms};
use tokio::task::JoinSet;

use crate::support::{Client, Refusal, Rpc, create, encrypt, eventually};
use house::{House, arn};

/// The account that runs the installation.
const MAIN: &str = "111122223333";
const OTHER: &str = "444455556666";
const DENIED: &str = "AccessDeniedException";

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

/// A request for a grant.
fn grant(key: &str, grantee: &str, operations: &[kms::GrantOperation]) -> kms::CreateGrantRequest {
    kms::CreateGrantRequest {
        key_id: Some(key.to_owned()),
        grantee_principal: Some(grantee.to_owned()),
        operations: operations.iter().map(|operation| *operation as i32).collect(),
        ..Default::default()
    }
}

fn exception<T>(result: Result<T, Refusal>) -> String {
    result.err().map(|refusal| refusal.exception).unwrap_or_default()
}

/// The events of a call.
fn of<'a>(events: &'a [Value], request_id: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["requestID"] == request_id).collect()
}

// The walk over the whole API.

/// What a denied caller could have changed.
async fn everything(administrator: &Client, key: &str) -> (Vec<String>, String, String, String) {
    let aliases = administrator.call(kms::ListAliasesRequest::default()).await.unwrap();
    let metadata = administrator.call(describe(key)).await.unwrap();
    let key_id = Some(key.to_owned());
    let policy = kms::GetKeyPolicyRequest { key_id: key_id.clone(), ..Default::default() };
    let grants = kms::ListGrantsRequest { key_id: key_id.clone(), ..Default::default() };
    let tags = kms::ListResourceTagsRequest { key_id, ..Default::default() };
    let beside = (
        administrator.call(policy).await.unwrap(),
        administrator.call(grants).await.unwrap(),
        administrator.call(tags).await.unwrap(),
    );
    let (aliases, metadata) = (format!("{:?}", aliases.aliases), format!("{metadata:?}"));
    (administrator.keys().await, aliases, metadata, format!("{beside:?}"))
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
    let tags = vec![kms::Tag { tag_key: Some("old".into()), tag_value: Some("x".into()) }];
    let tag = kms::TagResourceRequest { key_id: Some(key.clone()), tags };
    administrator.call(tag).await.unwrap();
    let grant =
        administrator.call(grant(&key, &arn("named"), &[kms::GrantOperation::Decrypt])).await.unwrap();
    let calls = walk::calls(&key, &blob, grant.grant_id());
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
            let bad = [DENIED, "ValidationException", "KMSInternalException"].contains(&found.as_str());
            assert!(!bad, "{}: {found}", call.name());
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
    fs::write(&crl, house.revoke("allowed")).unwrap();
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
