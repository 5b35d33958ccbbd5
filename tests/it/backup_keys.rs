//! The wrapping key's backup: made by the runbook's commands, every HSM lost, and
//! restored by each pair of three custodians.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use strongroom::proto::hsm::{ListMembersRequest, MemberState};
use strongroom::proto::kms::KeySpec;
use tempfile::TempDir;

use crate::hsm::Token;
use crate::members::{RUNBOOK, configure, done, runbook};
use crate::secrecy::opens_no_blob;
use crate::support::{Instance, eventually, named};

const CUSTODIANS: [&str; 3] = ["alice", "bob", "carol"];
/// Of the tokens of the fixture.
const SO_PIN: &str = "12345678";
const PASSPHRASE: &str = "correct horse battery staple";

/// The folder of custodians and of the ceremony's files.
struct Desk {
    folder: TempDir,
    names: Vec<(String, String)>,
}

impl Desk {
    fn new(instance: &Instance, member: &str) -> Desk {
        let mut desk = Desk { folder: tempfile::tempdir().unwrap(), names: Vec::new() };
        for custodian in CUSTODIANS.into_iter().chain(["mallory"]) {
            desk.make_key(custodian);
        }
        for custodian in CUSTODIANS {
            let key = desk.path(&format!("{custodian}.pem")).display().to_string();
            desk.name(&format!("{custodian}={custodian}.pem"), format!("{custodian}={key}"));
        }
        desk.name("CONFIG", instance.path("strongroom.toml").display().to_string());
        desk.name("MEMBER", member.to_owned());
        desk.name("MEMBER_MODULE", strongroom::commands::dev_setup::MODULE.to_owned());
        desk.name("MEMBER_PIN", strongroom::commands::dev_setup::USER_PIN.to_owned());
        desk.name("SO_PIN_FILE", instance.path("hsm/so.pin").display().to_string());
        fs::write(desk.path("so.pin"), SO_PIN).unwrap();
        desk.name("TOKEN_SO_PIN_FILE", desk.path("so.pin").display().to_string());
        desk.name("BACKUP", desk.path("backup").display().to_string());
        desk
    }

    /// By the runbook's lines of openssl.
    fn make_key(&self, custodian: &str) {
        fs::write(self.path(&format!("{custodian}.passphrase")), PASSPHRASE).unwrap();
        let lines = RUNBOOK.lines().map(str::trim).filter(|line| line.starts_with("openssl "));
        let mut run = 0;
        for line in lines {
            // Smaller than the runbook's, and sooner made.
            let line = line.replace("alice", custodian).replace("4096", "3072");
            let output = openssl(self.folder.path(), &line);
            assert!(output.status.success(), "{line}: {output:?}");
            run += 1;
        }
        assert_eq!(run, 5, "the runbook makes a pair and its fingerprint");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A word of the runbook's, and what it stands for.
    fn name(&mut self, word: &str, value: String) {
        self.names.retain(|(known, _)| known != word);
        self.names.push((word.to_owned(), value));
    }

    fn run(&self, instance: &Instance, command: &str) -> Output {
        let names: Vec<_> = self.names.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        runbook(instance, command, &names)
    }

    /// Names the token that the key is restored to, and has it make a request.
    fn request(&mut self, instance: &Instance, token: &Token, module: &str) -> String {
        self.name("TOKEN", token.uri.to_string());
        self.name("MODULE", module.to_owned());
        self.name("PIN", module.to_owned());
        let file = self.path(&format!("{module}.request"));
        let _ = fs::remove_file(&file);
        self.name("REQUEST", file.display().to_string());
        let told = said(self.run(instance, "hsm backup request"));
        let fingerprint = told.lines().last().unwrap().to_owned();
        assert_eq!(fingerprint.len(), 64, "{told}");
        self.name("FINGERPRINT", fingerprint.clone());
        fingerprint
    }

    /// As the custodian does it, and what came of it.
    fn contribute(&mut self, instance: &Instance, custodian: &str) -> Output {
        let _ = fs::remove_file(self.path(&format!("{custodian}.contribution")));
        for file in ["key", "passphrase", "contribution"] {
            let path = self.path(&format!("{custodian}.{file}")).display().to_string();
            self.name(&format!("alice.{file}"), path);
        }
        self.run(instance, "hsm backup contribute")
    }

    /// With the contributions of two, or twice of the same.
    fn restore(&mut self, instance: &Instance, [first, second]: [&str; 2]) -> Output {
        for (word, custodian) in [("alice", first), ("bob", second)] {
            let path = self.path(&format!("{custodian}.contribution")).display().to_string();
            self.name(&format!("{word}.contribution"), path);
        }
        self.run(instance, "hsm backup restore")
    }

    /// A file with something else in one place.
    fn changed(&self, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let mut value: Value = serde_json::from_str(&self.text(name)).unwrap();
        change(&mut value["content"]);
        let path = self.path("changed");
        fs::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
        path
    }
}

fn openssl(folder: &Path, line: &str) -> Output {
    Command::new("openssl").args(line.split_whitespace().skip(1)).current_dir(folder).output().unwrap()
}

fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Why a command did nothing.
fn refused(output: Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Another character of base64 in the middle.
fn flip(text: &mut Value) {
    let mut changed = text.as_str().unwrap().to_owned();
    let place = changed.len() / 2;
    let other = if changed.as_bytes()[place] == b'A' { "B" } else { "A" };
    changed.replace_range(place..=place, other);
    *text = changed.into();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_of_three_custodians_bring_a_lost_cluster_back() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let key = client.create(KeySpec::SymmetricDefault).await.unwrap();
    let blob = client.encrypt(&key, b"secret").await.unwrap();
    let signer = client.create(KeySpec::EccNistP256).await.unwrap();
    let member = client.call(ListMembersRequest::default()).await.unwrap().members.remove(0).uri.unwrap();
    daemon.terminate().await;
    let tokens: Vec<Token> = (2..=4).map(Token::new).collect();
    let modules = ["second", "third", "fourth"];
    for (token, module) in tokens.iter().zip(modules) {
        configure(&instance, token, module);
    }
    let daemon = instance.start().await;
    let client = daemon.client().await;

    let mut desk = Desk::new(&instance, &member);
    let shown = said(desk.run(&instance, "hsm backup create"));
    assert_eq!(said(desk.run(&instance, "hsm backup show")), shown);
    for custodian in CUSTODIANS {
        let digest = said(openssl(desk.folder.path(), &format!("openssl dgst -sha256 -r {custodian}.der")));
        let line = format!("{}  {custodian}", digest.split(' ').next().unwrap());
        assert!(shown.contains(&line), "{line} in {shown}");
    }
    // Nothing of the ceremony stays on the member.
    let left = instance.token().tool(&["--list-objects"]);
    let left = String::from_utf8(left.stdout).unwrap();
    assert!(!left.contains("one-time") && !left.contains("transport"), "{left}");
    let again = refused(desk.run(&instance, "hsm backup create"));
    assert!(again.contains("cannot be written"), "{again}");

    fs::rename(instance.path("hsm/1"), instance.beside("lost")).unwrap();
    eventually("every HSM is lost", async || {
        client.call(ListMembersRequest::default()).await.unwrap().members[0].state() != MemberState::Serving
    })
    .await;
    client.decrypt(&blob).await.unwrap_err();

    let mut serving = member;
    let pairs = [["alice", "bob"], ["carol", "alice"], ["bob", "carol"]];
    for ((token, module), pair) in tokens.iter().zip(modules).zip(pairs) {
        desk.request(&instance, token, module);
        for custodian in pair {
            said(desk.contribute(&instance, custodian));
        }
        let alone = refused(desk.restore(&instance, [pair[0]; 2]));
        assert!(alone.contains("twice"), "{alone}");
        said(desk.restore(&instance, pair));
        done(desk.run(&instance, "hsm member add"));
        let removed = instance.cli(&["hsm", "member", "remove", "--token", &serving]);
        assert!(removed.status.success(), "{removed:?}");
        serving = token.uri.to_string();
        eventually("it serves alone", async || {
            let members = client.call(ListMembersRequest::default()).await.unwrap().members;
            members.len() == 1 && members[0].uri() == serving && members[0].state() == MemberState::Serving
        })
        .await;
        assert_eq!(client.decrypt(&blob).await.unwrap(), b"secret", "{pair:?}");
        client.use_key(&signer, KeySpec::EccNistP256).await.unwrap();
        let left = String::from_utf8(token.pkcs11_tool(&["--list-objects"]).stdout).unwrap();
        assert!(left.contains("wrapping key") && !left.contains("transport"), "{left}");
        opens_no_blob(&instance, |arguments| token.pkcs11_tool(arguments)).await;
    }
    client.create(KeySpec::SymmetricDefault).await.unwrap();
    assert_eq!(client.findings().await, Vec::<String>::new());
    let mut events = Vec::new();
    eventually("what was done is on the record", async || {
        events = client.events().await;
        named(&events, "RestoreWrappingKey").len() == 2 * pairs.len()
    })
    .await;
    let outcomes = |name: &str| -> Vec<String> {
        let told = named(&events, name).into_iter().map(|event| &event["serviceEventDetails"]);
        told.map(|details| format!("{}: {}", details["module"], details["outcome"])).collect()
    };
    assert_eq!(outcomes("BackUpWrappingKey"), [r#""softhsm2": "done""#, r#""softhsm2": "failed""#]);
    let asked = modules.map(|module| format!("{module:?}: \"done\""));
    assert_eq!(outcomes("RequestWrappingKey"), asked);
    let restored = modules.map(|module| ["failed", "done"].map(|outcome| format!("{module:?}: {outcome:?}")));
    assert_eq!(outcomes("RestoreWrappingKey"), restored.concat());
    let backup = &named(&events, "BackUpWrappingKey")[0]["serviceEventDetails"];
    let names: Vec<&Value> =
        backup["custodians"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, CUSTODIANS);
    assert!(shown.contains(backup["fingerprint"].as_str().unwrap()), "{backup} and {shown}");
    daemon.terminate().await;
    // With the members as they are now.
    let daemon = instance.start().await;
    assert_eq!(daemon.client().await.decrypt(&blob).await.unwrap(), b"secret");
    daemon.terminate().await;

    // What a custodian sees, by openssl: nobody else sees it.
    let backup: Value = serde_json::from_str(&desk.text("backup")).unwrap();
    let wrapped = &backup["content"]["custodians"][0]["wrapped_key"];
    assert_eq!(wrapped["hash"], "SHA-1");
    let bytes = base64_of(wrapped["ciphertext"].as_str().unwrap());
    fs::write(desk.path("wrapped"), bytes).unwrap();
    let line = "openssl pkeyutl -decrypt -inkey alice.key -passin file:alice.passphrase -pkeyopt rsa_padding_mode:oaep -in wrapped";
    let one_time_key = openssl(desk.folder.path(), line).stdout;
    assert_eq!(one_time_key.len(), 32);
    let printed = instance.printed();
    let files = ["backup", "second.request", "alice.contribution"];
    for (place, bytes) in
        files.iter().map(|name| (*name, fs::read(desk.path(name)).unwrap())).chain([("log", printed)])
    {
        for secret in
            [one_time_key.clone(), hex::encode(&one_time_key).into_bytes(), PASSPHRASE.into(), SO_PIN.into()]
        {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "a secret is in {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_belong_together_restores_nothing() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let member = client.call(ListMembersRequest::default()).await.unwrap().members.remove(0).uri.unwrap();
    daemon.terminate().await;
    let (token, other) = (Token::new(2), Token::new(3));
    configure(&instance, &token, "second");
    configure(&instance, &other, "third");
    let mut desk = Desk::new(&instance, &member);

    // Keys that are no custodian's.
    let small = "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out small.key";
    assert!(openssl(desk.folder.path(), small).status.success());
    assert!(
        openssl(desk.folder.path(), "openssl pkey -in small.key -pubout -out small.pem").status.success()
    );
    let honest = desk.path("bob.pem").display().to_string();
    for (file, reason) in
        [("small.pem", "2048 bits"), ("alice.key", "PUBLIC KEY"), ("alice.pem", "named twice")]
    {
        let path = desk.path(file).display().to_string();
        desk.name("bob=bob.pem", format!("bob={path}"));
        let told = refused(desk.run(&instance, "hsm backup create"));
        assert!(told.contains(reason), "{told}");
    }
    desk.name("bob=bob.pem", format!("bob={honest}"));
    for threshold in ["1", "4"] {
        desk.name("2", threshold.to_owned());
        let told = refused(desk.run(&instance, "hsm backup create"));
        assert!(told.contains(&format!("{threshold} of 3 custodians")), "{told}");
    }
    desk.name("2", "2".to_owned());
    let wrong_pin = desk.path("wrong.pin").display().to_string();
    fs::write(&wrong_pin, "87654321").unwrap();
    let so_pin = instance.path("hsm/so.pin").display().to_string();
    desk.name("SO_PIN_FILE", wrong_pin);
    let told = refused(desk.run(&instance, "hsm backup create"));
    assert!(told.contains("CKR_PIN_INCORRECT") && !desk.path("backup").exists(), "{told}");
    desk.name("SO_PIN_FILE", so_pin);
    said(desk.run(&instance, "hsm backup create"));

    // A changed backup is known anywhere.
    let changes: [fn(&mut Value); 5] = [
        |content| content["threshold"] = 3.into(),
        |content| content["made"] = "2001-01-01T00:00:00Z".into(),
        |content| flip(&mut content["subsets"][1]["wrapped"]),
        |content| flip(&mut content["custodians"][2]["wrapped_key"]["ciphertext"]),
        |content| content["custodians"].as_array_mut().unwrap().swap(0, 1),
    ];
    let backup = desk.path("backup").display().to_string();
    for change in changes {
        desk.name("BACKUP", desk.changed("backup", change).display().to_string());
        let told = refused(desk.run(&instance, "hsm backup show"));
        assert!(told.contains("it was changed"), "{told}");
    }
    desk.name("BACKUP", backup.clone());

    // Who may contribute, and to what.
    let fingerprint = desk.request(&instance, &other, "third");
    let told = said(desk.run(&instance, "hsm check"));
    assert!(told.contains("The daemon can use it."), "{told}");
    said(desk.contribute(&instance, "bob"));
    fs::copy(desk.path("bob.contribution"), desk.path("stale.contribution")).unwrap();
    desk.request(&instance, &token, "second");
    let told = refused(desk.contribute(&instance, "mallory"));
    assert!(told.contains("none of the backup's custodians"), "{told}");
    said(desk.contribute(&instance, "alice"));
    said(desk.contribute(&instance, "bob"));
    let asked = desk.path("second.request").display().to_string();
    desk.name("FINGERPRINT", fingerprint);
    let told = refused(desk.contribute(&instance, "carol"));
    assert!(told.contains("another fingerprint"), "{told}");
    let mine = said(openssl(
        desk.folder.path(),
        "openssl pkey -in mallory.key -passin file:mallory.passphrase -pubout",
    ));
    let mine: String = mine.lines().filter(|line| !line.starts_with('-')).collect();
    let forged = desk.changed("second.request", |content| content["public_key"] = mine.into());
    desk.name("REQUEST", forged.display().to_string());
    desk.request_fingerprint_of("second.request");
    let told = refused(desk.contribute(&instance, "carol"));
    assert!(told.contains("another fingerprint"), "{told}");
    desk.name("REQUEST", asked);
    fs::write(desk.path("carol.passphrase"), "wrong").unwrap();
    let told = refused(desk.contribute(&instance, "carol"));
    assert!(told.contains("passphrase does not open it"), "{told}");

    // What restores nothing.
    let one = instance.cli(&[
        "hsm",
        "backup",
        "restore",
        "--config",
        desk.named("CONFIG"),
        "--token",
        &token.uri.to_string(),
        "--module",
        "second",
        "--pin",
        "second",
        "--backup",
        &backup,
        "--request",
        desk.named("REQUEST"),
        "--contribution",
        &desk.path("alice.contribution").display().to_string(),
    ]);
    let told = refused(one);
    assert!(told.contains("1 of 3 custodians contributed; 2 are needed"), "{told}");
    let told = refused(desk.restore(&instance, ["alice", "stale"]));
    assert!(told.contains("bob's contribution is for another request"), "{told}");
    let bad = desk.changed("bob.contribution", |content| flip(&mut content["wrapped_key"]));
    fs::rename(bad, desk.path("bad.contribution")).unwrap();
    let told = refused(desk.restore(&instance, ["alice", "bad"]));
    assert!(told.contains("bob's contribution is not what the backup needs"), "{told}");
    // Bob's key in carol's name: it opens, and is not hers.
    let taken = desk.changed("bob.contribution", |content| content["custodian"] = "carol".into());
    fs::rename(taken, desk.path("taken.contribution")).unwrap();
    let told = refused(desk.restore(&instance, ["alice", "taken"]));
    assert!(told.contains("carol's contribution is not what the backup needs"), "{told}");
    let objects = String::from_utf8(token.pkcs11_tool(&["--list-objects"]).stdout).unwrap();
    assert!(!objects.contains("wrapping key"), "{objects}");

    // Another installation's store does not know the key.
    let stranger = Instance::new();
    stranger.start().await.terminate().await;
    configure(&stranger, &token, "second");
    let config = desk.named("CONFIG").to_owned();
    desk.name("CONFIG", stranger.path("strongroom.toml").display().to_string());
    let told = refused(desk.restore(&instance, ["alice", "bob"]));
    assert!(told.contains("the store does not know"), "{told}");
    desk.name("CONFIG", config);
    // Without the security officer's mark, and with another's.
    let public = ["--delete-object", "--type", "pubkey", "--label", "strongroom transport key"];
    assert!(token.pkcs11_tool(&public).status.success());
    let told = refused(desk.restore(&instance, ["alice", "bob"]));
    assert!(told.contains("did not make this request"), "{told}");
    let request: Value = serde_json::from_str(&desk.text("second.request")).unwrap();
    let (id, key) = (&request["content"]["id"], request["content"]["public_key"].as_str().unwrap());
    fs::write(desk.path("request.der"), base64_of(key)).unwrap();
    let file = desk.path("request.der").display().to_string();
    let put = ["--write-object", &file, "--type", "pubkey", "--id", id.as_str().unwrap(), "--label", "put"];
    let put = token.pkcs11_tool(&put);
    assert!(put.status.success(), "{put:?}");
    let told = refused(desk.restore(&instance, ["alice", "bob"]));
    assert!(told.contains("did not approve"), "{told}");
    let taken = ["--delete-object", "--type", "pubkey", "--label", "put"];
    assert!(token.pkcs11_tool(&taken).status.success());

    // Of the same custodians, but another backup.
    desk.name("BACKUP", desk.path("another").display().to_string());
    said(desk.run(&instance, "hsm backup create"));
    desk.request_fingerprint_of("second.request");
    let told = refused(desk.contribute(&instance, "alice"));
    assert!(told.contains("another backup"), "{told}");
    let told = refused(desk.restore(&instance, ["bob", "stale"]));
    assert!(told.contains("another backup"), "{told}");
    desk.name("BACKUP", backup);

    desk.request(&instance, &token, "second");
    for custodian in ["alice", "bob"] {
        said(desk.contribute(&instance, custodian));
    }
    // A store whose row another key sealed: what is restored does not stay.
    const OF_CLUSTER: &str = "kind = 'system' AND id = 'cluster'";
    let mut database = instance.database().await;
    let mac = database.texts(&format!("SELECT hex(mac) FROM row WHERE {OF_CLUSTER}")).await.remove(0);
    database.execute(&format!("UPDATE row SET mac = zeroblob(32) WHERE {OF_CLUSTER}")).await;
    let told = refused(desk.restore(&instance, ["alice", "bob"]));
    assert!(told.contains("sealed by another key"), "{told}");
    let objects = String::from_utf8(token.pkcs11_tool(&["--list-objects"]).stdout).unwrap();
    assert!(!objects.contains("wrapping key"), "{objects}");
    database.execute(&format!("UPDATE row SET mac = x'{mac}' WHERE {OF_CLUSTER}")).await;
    database.close().await;
    said(desk.restore(&instance, ["alice", "bob"]));
    let told = refused(desk.restore(&instance, ["alice", "bob"]));
    assert!(told.contains("belongs to a cluster"), "{told}");
}

impl Desk {
    fn named(&self, word: &str) -> &str {
        &self.names.iter().find(|(name, _)| name == word).unwrap().1
    }

    /// The fingerprint that the makers of a request told: SHA-256 of its content.
    fn request_fingerprint_of(&mut self, file: &str) {
        let value: Value = serde_json::from_str(&self.text(file)).unwrap();
        let content = serde_json::to_string(&value["content"]).unwrap();
        let text = format!("strongroom restore request 1\n{content}");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        self.name("FINGERPRINT", hex::encode(digest));
    }
}

fn base64_of(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}
