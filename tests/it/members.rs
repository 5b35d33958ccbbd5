//! Members that join and leave a running daemon, by the commands of the runbook.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use serde_json::{Value, json};
use strongroom::audit::beside::{Deed, Noted};
use strongroom::hsm::softhsm;
use strongroom::proto::hsm::{ListMembersRequest, MemberState};
use strongroom::proto::kms::KeySpec;

use crate::hsm::{PIN, Token};
use crate::secrecy::opens_no_blob;
use crate::support::{Client, Instance, eventually, named};

pub const RUNBOOK: &str = include_str!("../../deploy/hsm.md");

/// Makes another HSM known to the configuration of an instance that is stopped.
pub fn configure(instance: &Instance, token: &Token, name: &str) {
    let pin = instance.path(&format!("hsm/{name}.pin"));
    fs::write(&pin, PIN).unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    let file = instance.path("strongroom.toml");
    let text = fs::read_to_string(&file).unwrap();
    let library = softhsm::library().unwrap();
    let more = format!(
        "\n[modules.{name}]\nlibrary = {:?}\nenvironment = {{ SOFTHSM2_CONF = {:?} }}\n\n[pins.{name}]\nfile = {:?}\n",
        library,
        token.configuration(),
        pin
    );
    fs::write(&file, text + &more).unwrap();
}

/// The runbook's command of this name, with the names of this installation.
pub fn runbook(instance: &Instance, command: &str, names: &[(&str, &str)]) -> Output {
    let line = RUNBOOK
        .lines()
        .map(str::trim)
        .find(|line| line.strip_prefix("strongroom ").is_some_and(|line| line.starts_with(command)));
    let line = line.unwrap_or_else(|| panic!("the runbook has no {command}"));
    let word = |word: &str| {
        let named = names.iter().find(|(name, _)| *name == word);
        named.map_or(word.to_owned(), |(_, value)| (*value).to_owned())
    };
    let words: Vec<String> = line.split_whitespace().skip(1).map(word).collect();
    instance.cli(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

pub fn done(output: Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_added_maintained_and_replaced_by_the_runbook() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(KeySpec::SymmetricDefault).await.unwrap();
    let blob = client.encrypt(&key, b"secret").await.unwrap();
    let first = client.call(ListMembersRequest::default()).await.unwrap().members.remove(0).uri.unwrap();
    daemon.terminate().await;
    let second = Token::new(2);
    configure(&instance, &second, "second");
    let daemon = instance.start().await;
    let client = daemon.client().await;

    let uri = second.uri.to_string();
    let (config, so_pin) = (instance.path("strongroom.toml"), instance.path("hsm/so.pin"));
    let names = [
        ("CONFIG", config.to_str().unwrap()),
        ("MEMBER", first.as_str()),
        ("MEMBER_MODULE", "softhsm2"),
        ("MEMBER_PIN", strongroom::commands::dev_setup::USER_PIN),
        ("TOKEN", uri.as_str()),
        ("MODULE", "second"),
        ("PIN", "second"),
        ("SO_PIN_FILE", so_pin.to_str().unwrap()),
    ];
    let run = |command: &str| runbook(&instance, command, &names);
    let members = async || -> Vec<(String, MemberState)> {
        let listed = client.call(ListMembersRequest::default()).await.unwrap().members;
        listed.into_iter().map(|member| (member.uri.clone().unwrap(), member.state())).collect()
    };

    let modules = done(run("hsm member tokens"));
    let shown: Vec<&Value> =
        modules["Modules"].as_array().unwrap().iter().map(|module| &module["Tokens"][0]).collect();
    assert!(shown.iter().any(|token| token["Uri"] == uri && token.get("MemberState").is_none()), "{modules}");
    assert!(
        shown.iter().any(|token| token["Uri"] == first && token["MemberState"] == "SERVING"),
        "{modules}"
    );

    let without_key = run("hsm member add");
    assert!(String::from_utf8_lossy(&without_key.stderr).contains("strongroom hsm bring"), "{without_key:?}");
    assert_eq!(members().await.len(), 1);
    let last = run("hsm member remove");
    assert!(String::from_utf8_lossy(&last.stderr).contains("no other member"), "{last:?}");

    done(run("hsm bring"));
    opens_no_blob(&instance, |arguments| second.pkcs11_tool(arguments)).await;
    done(run("hsm member add"));
    assert_eq!(members().await, [(first.clone(), MemberState::Serving), (uri.clone(), MemberState::Serving)]);
    let twice = run("hsm member add");
    assert!(String::from_utf8_lossy(&twice.stderr).contains("member already"), "{twice:?}");

    // An object of ours that no key has.
    let orphan = "ab".repeat(32);
    let made = second.pkcs11_tool(&[
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
    let found = instance.cli(&["hsm", "member", "check", "--token", &uri]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let repaired = done(run("hsm member check"));
    let finding = &repaired["Findings"][0];
    assert_eq!((&finding["Kind"], &finding["Id"]), (&Value::from("ORPHAN"), &Value::from(orphan)));
    assert_eq!(done(run("hsm member check"))["Findings"], Value::Array(Vec::new()));

    done(run("hsm member begin-maintenance"));
    eventually("it is out", async || members().await[0].1 == MemberState::Maintenance).await;
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    // That is kept over a restart, as the members are.
    daemon.terminate().await;
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let members = async || -> Vec<(String, MemberState)> {
        let listed = client.call(ListMembersRequest::default()).await.unwrap().members;
        listed.into_iter().map(|member| (member.uri.clone().unwrap(), member.state())).collect()
    };
    eventually("it is out still", async || members().await[0].1 == MemberState::Maintenance).await;
    done(run("hsm member end-maintenance"));
    eventually("it is back", async || members().await[0].1 == MemberState::Serving).await;

    done(run("hsm member remove"));
    eventually("it is gone", async || members().await == [(uri.clone(), MemberState::Serving)]).await;
    assert!(String::from_utf8(run("hsm list").stdout).unwrap().contains(&uri));
    // It is not down for ever.
    let (_, metrics) = daemon.page("/metrics").await;
    assert!(metrics.contains(&uri) && !metrics.contains(&first), "{metrics}");
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret");
    client.create(KeySpec::SymmetricDefault).await.unwrap();
    let is_recorded = async || !named(&client.events().await, "BringWrappingKey").is_empty();
    eventually("the bringing is on the record", is_recorded).await;
    let events = client.events().await;
    for name in
        ["AddMember", "BeginMaintenance", "EndMaintenance", "RemoveMember", "CheckMember", "ListTokens"]
    {
        assert!(
            events.iter().any(|event| event["eventName"] == name && event["errorCode"].is_null()),
            "{name}"
        );
    }
    let brought = named(&events, "BringWrappingKey");
    assert_eq!(brought.len(), 1, "{brought:?}");
    let details = &brought[0]["serviceEventDetails"];
    let told = ["from", "to", "outcome"].map(|name| details[name].as_str().unwrap_or_default());
    assert_eq!(told, [first.as_str(), &uri, "done"], "{details}");
    assert_eq!(brought[0]["eventSource"], "hsm.strongroom");
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

/// A command on the host that is killed is on the record, and once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_beside_the_daemon_is_on_the_record_however_it_ends() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let data = instance.path("data");
    let begin = |to: &str| {
        Noted::begin(&data, Deed::BringWrappingKey, json!({ "to": to }))
            .unwrap()
            .expect("there is a data folder")
    };
    let (killed, failed, runs) = (begin("killed"), begin("failed"), begin("runs"));
    failed.end(Err(&anyhow::anyhow!("a wrong PIN"))).unwrap();
    drop(killed);
    let client = daemon.client().await;
    // In any order; a daemon that ends before the file is gone records it again,
    // with the same eventID.
    let told = async |client: &Client| -> BTreeSet<[String; 3]> {
        let events = client.events().await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = named(&events, "BringWrappingKey").into_iter().map(|event| {
            let details = &event["serviceEventDetails"];
            [text(&details["to"]), text(&details["outcome"]), text(&event["eventID"])]
        });
        told.collect()
    };
    let outcomes = |told: &BTreeSet<[String; 3]>| -> Vec<(String, String)> {
        told.iter().map(|[to, outcome, _]| (to.clone(), outcome.clone())).collect()
    };
    let pair = |to: &str, outcome: &str| (to.to_owned(), outcome.to_owned());
    let mut expected = vec![pair("failed", "failed"), pair("killed", "unknown")];
    eventually("what ended is on the record", async || outcomes(&told(&client).await) == expected).await;
    daemon.terminate().await;
    runs.end(Ok(json!({ "wrappingKey": "ab" }))).unwrap();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    expected.push(pair("runs", "done"));
    eventually("it ended while no daemon ran", async || outcomes(&told(&client).await) == expected).await;
    eventually("its file is gone", async || fs::read_dir(data.join("beside")).unwrap().count() == 0).await;
    daemon.terminate().await;
}
