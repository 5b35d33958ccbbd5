//! Grants, key policies and tags, and the conditions that ask for them.

use std::collections::{BTreeSet, HashMap};

use serde_json::json;
use strongroom::proto::cloudtrail;
use strongroom::proto::kms;

use super::house::{House, arn};
use super::{DENIED, MAIN, describe, exception, grant, shared_key};
use crate::support::{Client, create, encrypt};

use kms::GrantOperation as Op;

fn context(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn in_context(key: &str, pairs: &[(&str, &str)]) -> kms::EncryptRequest {
    kms::EncryptRequest { encryption_context: context(pairs), ..encrypt(key, b"x") }
}

fn retire(key: &str, grant_id: &str) -> kms::RetireGrantRequest {
    kms::RetireGrantRequest {
        key_id: Some(key.to_owned()),
        grant_id: Some(grant_id.to_owned()),
        ..Default::default()
    }
}

async fn grants_of(client: &Client, key: &str) -> Vec<kms::GrantListEntry> {
    let request = kms::ListGrantsRequest { key_id: Some(key.to_owned()), ..Default::default() };
    client.call(request).await.unwrap().grants
}

/// Who may do what with a key of the default policy by these grants:
/// - `nobody`: Encrypt under the context team = red, and DescribeKey;
/// - `idle-role`, whose callers are sessions: GenerateDataKey, RetireGrant;
/// - `other-user` and `other-both` of another account: Encrypt and DescribeKey;
///   only the second one's identity policy allows it too;
/// - `banned` has an Allow by identity policy and a grant for what a Deny of
///   `denied` forbids.
const RIGHTS: &str = "
             DescribeKey  Encrypt  EncryptRed  GenerateDataKey  CreateGrant
administrator  yes        yes      yes         yes              yes
nobody         yes        no       yes         no               no
named          no         no       no          no               no
idle-role      no         no       no          yes              no
denied         yes        no       no          yes              yes
other-user     no         no       no          no               no
other-both     yes        yes      yes         no               no
other-root     no         no       no          no               no
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_allows_its_operations_to_its_grantee() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let key = administrator.create(kms::KeySpec::SymmetricDefault).await.unwrap();
    let key = administrator.call(describe(&key)).await.unwrap().key_metadata.unwrap().arn.unwrap();
    let red = kms::GrantConstraints {
        encryption_context_subset: context(&[("team", "red")]),
        ..Default::default()
    };
    let role = format!("arn:aws:iam::{MAIN}:role/idle-role");
    for request in [
        kms::CreateGrantRequest {
            constraints: Some(red),
            ..grant(&key, &arn("nobody"), &[Op::Encrypt, Op::DescribeKey])
        },
        grant(&key, &role, &[Op::GenerateDataKey, Op::RetireGrant]),
        grant(&key, &arn("denied"), &[Op::Encrypt]),
        grant(&key, &arn("other-user"), &[Op::Encrypt, Op::DescribeKey]),
        grant(&key, &arn("other-both"), &[Op::Encrypt, Op::DescribeKey]),
    ] {
        administrator.call(request).await.unwrap();
    }
    let mut lines = RIGHTS.lines().filter(|line| !line.is_empty());
    let what: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let mut wrong = Vec::new();
    for line in lines {
        let mut cells = line.split_whitespace();
        let who = cells.next().unwrap();
        let client = if who == "administrator" { administrator.clone() } else { house.client(who).await };
        for (what, expected) in what.iter().zip(cells) {
            let found = match *what {
                "DescribeKey" => exception(client.call(describe(&key)).await),
                "Encrypt" => exception(client.call(encrypt(&key, b"x")).await),
                "EncryptRed" => {
                    exception(client.call(in_context(&key, &[("team", "red"), ("a", "b")])).await)
                }
                "GenerateDataKey" => {
                    let request = kms::GenerateDataKeyRequest {
                        key_id: Some(key.clone()),
                        number_of_bytes: Some(32),
                        ..Default::default()
                    };
                    exception(client.call(request).await)
                }
                _ => {
                    let request = grant(&key, &arn("named"), &[Op::DescribeKey]);
                    let dry = kms::CreateGrantRequest { dry_run: Some(true), ..request };
                    exception(client.call(dry).await).replace("DryRunOperationException", "")
                }
            };
            let found = if found == DENIED { "no".to_owned() } else { format!("yes{found}") };
            if found != *expected {
                wrong.push(format!("{who} {what}: {found}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(grants_of(&administrator, &key).await.len(), 5, "a trial made a grant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_is_made_once_by_its_name_and_ends_for_whom_it_may() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let key = shared_key(&administrator).await;
    let named = |name: &str, operations: &[Op]| kms::CreateGrantRequest {
        name: Some(name.to_owned()),
        retiring_principal: Some(arn("other-user")),
        ..grant(&key, &arn("nobody"), operations)
    };
    let one = administrator.call(named("one", &[Op::Encrypt])).await.unwrap();
    let again = administrator.call(named("one", &[Op::Encrypt])).await.unwrap();
    let more = administrator.call(named("one", &[Op::Encrypt, Op::Decrypt])).await.unwrap();
    assert_eq!(one.grant_id, again.grant_id);
    assert_ne!(one.grant_token, again.grant_token);
    assert_ne!(one.grant_id, more.grant_id);
    let both = (0..2).map(|_| administrator.call(named("both", &[Op::Sign; 0])));
    for refused in futures::future::join_all(both).await {
        assert_eq!(exception(refused), "ValidationException", "no operations");
    }
    let at_once = (0..4).map(|_| administrator.call(named("at once", &[Op::Decrypt])));
    let at_once: BTreeSet<_> = futures::future::join_all(at_once)
        .await
        .into_iter()
        .map(|made| made.map(|made| made.grant_id).map_err(|refusal| refusal.exception))
        .collect();
    assert_eq!(at_once.len(), 1, "{at_once:?}");

    // A name with a space is none.
    assert_eq!(at_once.first().unwrap().as_ref().unwrap_err(), "ValidationException");
    let at_once = (0..4).map(|_| administrator.call(named("at-once", &[Op::Decrypt])));
    let at_once: BTreeSet<_> =
        futures::future::join_all(at_once).await.into_iter().map(|made| made.unwrap().grant_id).collect();
    assert_eq!(at_once.len(), 1, "{at_once:?}");
    assert_eq!(grants_of(&administrator, &key).await.len(), 3);

    let nobody = house.client("nobody").await;
    let stranger = house.client("other-administrator").await;
    let retiring = house.client("other-user").await;
    nobody.call(encrypt(&key, b"x")).await.unwrap();
    let retirable = |principal: &str| kms::ListRetirableGrantsRequest {
        retiring_principal: Some(arn(principal)),
        ..Default::default()
    };
    let theirs = stranger.call(retirable("other-user")).await.unwrap().grants;
    assert_eq!(theirs.len(), 3);
    assert_eq!(stranger.call(retirable("other-both")).await.unwrap().grants, []);
    assert_eq!(exception(stranger.call(retirable("nobody")).await), "InvalidArnException");

    // By id and by token: neither its grantee nor others, only who may retire it
    // or the key's account.
    let (id, token) = (one.grant_id.unwrap(), again.grant_token.unwrap());
    for other in [&nobody, &stranger] {
        assert_eq!(exception(other.call(retire(&key, &id)).await), DENIED);
        let by_token = kms::RetireGrantRequest { grant_token: Some(token.clone()), ..Default::default() };
        assert_eq!(exception(other.call(by_token).await), DENIED);
    }
    let dry = kms::RetireGrantRequest { dry_run: Some(true), ..retire(&key, &id) };
    assert_eq!(exception(retiring.call(dry).await), "DryRunOperationException");
    nobody.call(encrypt(&key, b"x")).await.unwrap();
    let by_token = || kms::RetireGrantRequest { grant_token: Some(token.clone()), ..Default::default() };
    retiring.call(by_token()).await.unwrap();
    assert_eq!(exception(retiring.call(by_token()).await), "InvalidGrantTokenException");
    assert_eq!(exception(retiring.call(retire(&key, &id)).await), "InvalidGrantIdException");
    administrator.call(retire(&key, &more.grant_id.clone().unwrap())).await.unwrap();
    assert_eq!(exception(nobody.call(encrypt(&key, b"x")).await), DENIED);

    let last = grants_of(&administrator, &key).await;
    let revoke = |id: &Option<String>| kms::RevokeGrantRequest {
        key_id: Some(key.clone()),
        grant_id: id.clone(),
        ..Default::default()
    };
    assert_eq!(exception(nobody.call(revoke(&last[0].grant_id)).await), DENIED);
    administrator.call(revoke(&last[0].grant_id)).await.unwrap();
    assert_eq!(exception(administrator.call(revoke(&last[0].grant_id)).await), "InvalidGrantIdException");
    assert_eq!(grants_of(&administrator, &key).await, []);

    let events = administrator.events().await;
    let text = serde_json::to_string(&events).unwrap();
    assert!(!text.contains(&token), "a grant token is in an event");
    let created = events
        .iter()
        .find(|event| event["eventName"] == "CreateGrant" && event["errorCode"].is_null())
        .unwrap();
    assert_eq!(created["responseElements"], json!({ "grantId": id, "keyId": key }));
    let retired =
        events.iter().find(|event| event["eventName"] == "RetireGrant" && event["errorCode"].is_null());
    assert_eq!(retired.unwrap()["additionalEventData"]["grantId"], id.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_token_is_made_by_the_service_alone() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let key = shared_key(&administrator).await;
    let made = administrator.call(grant(&key, &arn("nobody"), &[Op::Encrypt])).await.unwrap();
    let token = made.grant_token.unwrap();
    let nobody = house.client("nobody").await;
    let with =
        |token: &str| kms::EncryptRequest { grant_tokens: vec![token.to_owned()], ..encrypt(&key, b"x") };
    nobody.call(with(&token)).await.unwrap();
    // Another's token is no right of one's own.
    assert_eq!(exception(house.client("named").await.call(describe(&key)).await), "");
    assert_eq!(exception(house.client("idle-role").await.call(with(&token)).await), DENIED);
    for at in [0, token.len() / 2, token.len() - 1] {
        let mut forged: Vec<char> = token.chars().collect();
        forged[at] = if forged[at] == 'A' { 'B' } else { 'A' };
        let forged: String = forged.into_iter().collect();
        assert_eq!(exception(nobody.call(with(&forged)).await), "InvalidGrantTokenException", "{at}");
    }
    for nonsense in ["x", "YQ", "no token"] {
        assert_eq!(exception(administrator.call(with(nonsense)).await), "InvalidGrantTokenException");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_create_grants_by_a_grant_gives_no_more_than_it_has() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let key = shared_key(&administrator).await;
    let red = |more: &[(&str, &str)]| {
        Some(kms::GrantConstraints {
            encryption_context_subset: context(&[&[("team", "red")], more].concat()),
            ..Default::default()
        })
    };
    let parent = kms::CreateGrantRequest {
        constraints: red(&[]),
        ..grant(&key, &arn("nobody"), &[Op::CreateGrant, Op::Encrypt])
    };
    administrator.call(parent).await.unwrap();
    let nobody = house.client("nobody").await;
    let child = |operations: &[Op], constraints| kms::CreateGrantRequest {
        constraints,
        ..grant(&key, &arn("named"), operations)
    };
    assert_eq!(exception(nobody.call(child(&[Op::Decrypt], red(&[]))).await), DENIED);
    assert_eq!(exception(nobody.call(child(&[Op::Encrypt], None)).await), DENIED);
    nobody.call(child(&[Op::Encrypt], red(&[("more", "x")]))).await.unwrap();
    // An identity is no grantee, and a key pair's operation is none of this key.
    for (request, expected) in [
        (grant(&key, "*", &[Op::Encrypt]), "ValidationException"),
        (grant(&key, "arn:aws:iam::111122223333:group/x", &[Op::Encrypt]), "InvalidArnException"),
        (grant(&key, &arn("named"), &[Op::Sign]), "ValidationException"),
        (grant(&key, &arn("named"), &[]), "ValidationException"),
        (
            kms::CreateGrantRequest {
                constraints: red(&[]),
                ..grant(&key, &arn("named"), &[Op::DescribeKey])
            },
            "ValidationException",
        ),
    ] {
        assert_eq!(exception(administrator.call(request.clone()).await), expected, "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_and_quotas_have_their_limits() {
    let limits = "
[limits]
grants_per_key_max = 2
aliases_per_key_max = 2
aliases_per_account_max = 3
keys_per_account_max = 2

[quotas]
operations = { ListKeyPolicies = 2, LookupEvents = 2 }
";
    let house = House::open_with(limits).await;
    let administrator = house.administrator().await;
    let key = administrator.create(kms::KeySpec::SymmetricDefault).await.unwrap();
    let second = administrator.create(kms::KeySpec::SymmetricDefault).await.unwrap();
    const FULL: &str = "LimitExceededException";
    assert_eq!(exception(administrator.call(create(kms::KeySpec::SymmetricDefault)).await), FULL);
    for (number, expected) in ["", "", FULL].into_iter().enumerate() {
        let request = grant(&key, &arn("nobody"), &[Op::Encrypt]);
        assert_eq!(exception(administrator.call(request).await), expected, "grant {number}");
    }
    for (key, name, expected) in
        [(&key, "a", ""), (&key, "b", ""), (&key, "c", FULL), (&second, "d", ""), (&second, "e", FULL)]
    {
        let request = kms::CreateAliasRequest {
            alias_name: Some(format!("alias/{name}")),
            target_key_id: Some(key.clone()),
        };
        assert_eq!(exception(administrator.call(request).await), expected, "{name}");
    }
    let to_full =
        kms::UpdateAliasRequest { alias_name: Some("alias/d".into()), target_key_id: Some(key.clone()) };
    assert_eq!(exception(administrator.call(to_full).await), FULL);
    let list = || kms::ListKeyPoliciesRequest { key_id: Some(key.clone()), ..Default::default() };
    let lookup = cloudtrail::LookupEventsRequest::default;
    let calls = futures::future::join_all((0..20).map(|_| administrator.call(list()))).await;
    let lookups = futures::future::join_all((0..20).map(|_| administrator.call(lookup()))).await;
    let lists: Vec<_> = calls.into_iter().filter_map(Result::err).collect();
    let lookups: Vec<_> = lookups.into_iter().filter_map(Result::err).collect();
    for throttled in [lists, lookups] {
        assert!(!throttled.is_empty(), "20 calls at 2 a second");
        for refusal in throttled {
            assert_eq!(refusal.exception, "ThrottlingException");
            assert!(refusal.retries);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_ask_for_the_request_the_key_and_the_principal() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let may = |condition: serde_json::Value, action: &str| json!({ "Effect": "Allow", "Principal": { "AWS": arn("nobody") }, "Action": action, "Resource": "*", "Condition": condition });
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": MAIN }, "Action": "kms:*", "Resource": "*" },
        may(json!({ "StringEquals": { "kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT", "aws:ResourceTag/team": "red" } }), "kms:Encrypt"),
        may(json!({ "StringEquals": { "kms:RequestAlias": "alias/mine" } }), "kms:DescribeKey"),
        may(json!({ "ForAnyValue:StringEquals": { "kms:ResourceAliases": "alias/mine" } }), "kms:GenerateDataKey"),
        may(json!({ "NumericLessThan": { "kms:ScheduleKeyDeletionPendingWindowInDays": 8 } }), "kms:ScheduleKeyDeletion"),
        may(json!({ "ForAllValues:StringEquals": { "aws:TagKeys": ["a", "b"] }, "StringEquals": { "aws:RequestTag/a": "1" } }), "kms:TagResource"),
        may(json!({ "Bool": { "kms:ReEncryptOnSameKey": true } }), "kms:ReEncrypt*"),
        may(json!({ "ForAllValues:StringEquals": { "kms:GrantOperations": ["Encrypt", "Decrypt"] }, "StringEquals": { "kms:GranteePrincipal": arn("named"), "kms:GrantConstraintType": "EncryptionContextSubset" } }), "kms:CreateGrant"),
        may(json!({ "Bool": { "kms:BypassPolicyLockoutSafetyCheck": true } }), "kms:PutKeyPolicy"),
        may(json!({ "StringEquals": { "kms:ViaService": "s3.us-east-1.amazonaws.com" } }), "kms:Decrypt"),
        may(json!({ "StringEquals": { "kms:KeySpec": "SYMMETRIC_DEFAULT", "kms:KeyUsage": "ENCRYPT_DECRYPT", "kms:KeyOrigin": "AWS_KMS", "aws:RequestedRegion": "us-east-1" } }), "kms:ListGrants"),
    ]});
    // The tag of the key is compared with that of the principal.
    let mut policy = policy;
    policy["Statement"].as_array_mut().unwrap().push(json!({
        "Effect": "Allow", "Principal": "*", "Action": "kms:GetKeyPolicy", "Resource": "*",
        "Condition": { "StringEquals": { "aws:ResourceTag/team": "${aws:PrincipalTag/team}" } },
    }));
    let tag = |key: &str, value: &str| kms::Tag { tag_key: Some(key.into()), tag_value: Some(value.into()) };
    let request = kms::CreateKeyRequest {
        policy: Some(policy.to_string()),
        tags: vec![tag("team", "red")],
        ..create(kms::KeySpec::SymmetricDefault)
    };
    let key = administrator.call(request).await.unwrap().key_metadata.unwrap().arn.unwrap();
    let other = administrator.create(kms::KeySpec::SymmetricDefault).await.unwrap();
    let key_id = Some(key.clone());
    let nobody = house.client("nobody").await;
    let data_key = || kms::GenerateDataKeyRequest {
        key_id: key_id.clone(),
        number_of_bytes: Some(32),
        ..Default::default()
    };
    assert_eq!(exception(nobody.call(data_key()).await), DENIED);
    let alias =
        kms::CreateAliasRequest { alias_name: Some("alias/mine".into()), target_key_id: key_id.clone() };
    administrator.call(alias).await.unwrap();
    nobody.call(data_key()).await.unwrap();

    let blob = nobody.call(encrypt(&key, b"x")).await.unwrap().ciphertext_blob;
    nobody.call(describe("alias/mine")).await.unwrap();
    assert_eq!(exception(nobody.call(describe(&key)).await), DENIED);
    let re_encrypt = |to: &str| kms::ReEncryptRequest {
        ciphertext_blob: blob.clone(),
        destination_key_id: Some(to.to_owned()),
        ..Default::default()
    };
    nobody.call(re_encrypt(&key)).await.unwrap();
    assert_eq!(exception(nobody.call(re_encrypt(&other)).await), DENIED);
    let decrypt = kms::DecryptRequest { ciphertext_blob: blob.clone(), ..Default::default() };
    assert_eq!(exception(nobody.call(decrypt).await), DENIED, "by no service");
    nobody.call(kms::ListGrantsRequest { key_id: key_id.clone(), ..Default::default() }).await.unwrap();

    let tags = |tags: Vec<kms::Tag>| kms::TagResourceRequest { key_id: key_id.clone(), tags };
    assert_eq!(exception(nobody.call(tags(vec![tag("a", "2")])).await), DENIED);
    assert_eq!(exception(nobody.call(tags(vec![tag("a", "1"), tag("c", "x")])).await), DENIED);
    nobody.call(tags(vec![tag("a", "1"), tag("b", "x")])).await.unwrap();

    let constrained = |operations: &[Op]| kms::CreateGrantRequest {
        constraints: Some(kms::GrantConstraints {
            encryption_context_subset: context(&[("a", "b")]),
            ..Default::default()
        }),
        ..grant(&key, &arn("named"), operations)
    };
    assert_eq!(exception(nobody.call(constrained(&[Op::GenerateDataKey])).await), DENIED);
    assert_eq!(exception(nobody.call(grant(&key, &arn("named"), &[Op::Encrypt])).await), DENIED);
    nobody.call(constrained(&[Op::Encrypt])).await.unwrap();

    let put = |bypass| kms::PutKeyPolicyRequest {
        key_id: key_id.clone(),
        policy: Some(policy.to_string()),
        bypass_policy_lockout_safety_check: bypass,
        ..Default::default()
    };
    assert_eq!(exception(nobody.call(put(None)).await), DENIED);
    nobody.call(put(Some(true))).await.unwrap();
    let read = || kms::GetKeyPolicyRequest { key_id: key_id.clone(), ..Default::default() };
    let painter = house.client("painter").await;
    let found = painter.call(read()).await.unwrap().policy.unwrap();
    assert_eq!(found, policy.to_string());
    assert_eq!(exception(nobody.call(read()).await), DENIED, "who has no tag");
    let untag = kms::UntagResourceRequest { key_id: key_id.clone(), tag_keys: vec!["team".into()] };
    administrator.call(untag).await.unwrap();
    assert_eq!(exception(nobody.call(encrypt(&key, b"x")).await), DENIED, "without its tag");
    let schedule =
        |days| kms::ScheduleKeyDeletionRequest { key_id: key_id.clone(), pending_window_in_days: days };
    assert_eq!(exception(nobody.call(schedule(None)).await), DENIED);
    nobody.call(schedule(Some(7))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_is_told_what_decides() {
    let house = House::open().await;
    let administrator = house.administrator().await;
    let key = shared_key(&administrator).await;
    let made = administrator.call(grant(&key, &arn("nobody"), &[Op::Encrypt])).await.unwrap();
    let alias =
        kms::CreateAliasRequest { alias_name: Some("alias/it".into()), target_key_id: Some(key.clone()) };
    administrator.call(alias).await.unwrap();
    let socket = format!("unix:{}", house.instance.path("strongroom.sock").display());
    let explain = |who: &str, action: &str, more: &[&str]| {
        let mut command = house.instance.command(&["policy", "explain", "--endpoint", &socket]);
        command.args(["--principal", who, "--action", action]).args(more);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let role = format!("arn:aws:sts::{MAIN}:assumed-role/role/a-session");
    let by_grant = format!("allowed by grant {}\n", made.grant_id.unwrap());
    for (who, action, more, code, expected) in [
        (
            administrator_arn(),
            "kms:Encrypt",
            &["--key-id", &key][..],
            0,
            "allowed by statement 1 of the key policy and statement 1 of identity policy 1\n",
        ),
        (arn("nobody"), "kms:Encrypt", &["--key-id", &key], 0, by_grant.as_str()),
        (
            arn("nobody"),
            "kms:Decrypt",
            &["--key-id", "alias/it"],
            1,
            "denied as no identity policy allows it\nUser: ",
        ),
        (arn("banned"), "kms:Encrypt", &["--key-id", &key], 1, "denied by statement 4 of the key policy\n"),
        (
            arn("painter"),
            "kms:Encrypt",
            &["--key-id", &key, "--context", "kms:EncryptionContext:team=red"],
            0,
            "allowed by statement 1 of the key policy and statement 1 of identity policy 1\n  kms:EncryptionContext:team = red\n",
        ),
        (arn("painter"), "kms:Encrypt", &["--key-id", &key], 1, "denied as no identity policy allows it\n"),
        (
            role,
            "kms:Decrypt",
            &["--key-id", &key],
            0,
            "allowed by statement 1 of the key policy and statement 1 of identity policy 1\n",
        ),
        (administrator_arn(), "kms:CreateKey", &[], 0, "allowed by statement 1 of identity policy 1\n"),
        (arn("named"), "kms:CreateKey", &[], 1, "denied as no identity policy allows it\n"),
        (
            arn("root"),
            "kms:Encrypt",
            &[
                "--key-id",
                &key,
                "--policy",
                r#"{"Statement":{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*"}}"#,
            ],
            1,
            "denied by statement 1 of the key policy\n",
        ),
    ] {
        let found = explain(&who, action, more);
        assert_eq!(found.0, Some(code), "{who} {action}: {found:?}");
        assert!(found.1.starts_with(expected), "{who} {action}: {found:?}");
    }
    let unknown = explain("arn:aws:iam::111122223333:user/stranger", "kms:Encrypt", &[]);
    assert_eq!(unknown.0, Some(254), "{unknown:?}");
    let events = administrator.events().await;
    let asked = events.iter().filter(|event| event["eventName"] == "ExplainAccess");
    assert_eq!(asked.count(), 11, "each is on the record");
}

fn administrator_arn() -> String {
    format!("arn:aws:iam::{MAIN}:user/administrator")
}
