//! The configuration as an operator meets it.

mod commands;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;
use strongroom::caller::{Credential, PrincipalKind};
use strongroom::config::{Config, ConfigError, Flags, Loaded, restart_needed};
use strongroom::pki::Ca;
use tempfile::TempDir;

const ACCOUNT: &str = "111122223333";

/// A folder with certificates, in which a test writes strongroom.toml.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new("test").unwrap();
        ca.identity().write(folder.path(), "ca").unwrap();
        ca.server(&[]).unwrap().write(folder.path(), "server").unwrap();
        Folder(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Loads a file that has this text besides what every one needs.
    fn load(&self, text: &str) -> Result<Loaded, ConfigError> {
        self.load_layers(&format!("{text}\n{TLS}{ALICE}"), &[], &Flags::new())
    }

    fn load_layers(
        &self,
        text: &str,
        environment: &[(&str, &str)],
        flags: &Flags,
    ) -> Result<Loaded, ConfigError> {
        let file = self.write("strongroom.toml", text);
        let environment =
            environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Config::load_from(Some(&file), environment, flags)
    }

    /// The error's lines, the folder's path written as DIR.
    fn problems(&self, text: &str) -> Vec<String> {
        self.lines(self.load(text))
    }

    fn lines(&self, loaded: Result<Loaded, ConfigError>) -> Vec<String> {
        let text = loaded.unwrap_err().to_string().replace(self.0.path().to_str().unwrap(), "DIR");
        text.lines().map(str::to_owned).collect()
    }
}

const TLS: &str = r#"
[tls]
certificate = "server.pem"
key = "server.key"
[tls.client_cas.own]
file = "ca.pem"
"#;

const ALICE: &str = r#"
[[accounts]]
id = "111122223333"
[[accounts.principals]]
name = "alice"
identities = [{ uri = "spiffe://test/alice" }]
policies = ["AdministratorAccess"]
"#;

// ---- what deploy/ has

#[test]
fn kmss_own_quotas_are_good_ones() {
    let quotas = Folder::new().load(include_str!("../../deploy/kms-quotas.toml")).unwrap().config.quotas;
    assert_eq!((quotas.symmetric_per_second, quotas.rsa_per_second), (10_000, 1_000));
    assert_eq!(quotas.operations["CreateKey"], 5);
}

// ---- layers

#[test]
fn a_later_layer_wins_over_an_earlier_one() {
    let folder = Folder::new();
    let file = format!(
        "region = \"eu-west-1\"\n[grpc]\naddress = \"127.0.0.1:1\"\n[http]\naddress = \"127.0.0.1:2\"\n\
         [limits]\nmessage_bytes_max = 5{TLS}{ALICE}"
    );
    let environment = [
        ("STRONGROOM_GRPC__ADDRESS", "127.0.0.1:11"),
        ("STRONGROOM_HTTP__ADDRESS", "127.0.0.1:12"),
        ("STRONGROOM_LIMITS__CONNECTIONS_MAX", "77"),
        ("STRONGROOM_MANAGEMENT_ACCOUNT", ACCOUNT),
        ("STRONGROOM_TLS__CLIENT_CAS__OWN__COMMON_NAMES", "true"),
    ];
    let flags = Flags::new().set("http.address", "127.0.0.1:22");
    let config = folder.load_layers(&file, &environment, &flags).unwrap().config;

    assert_eq!(config.aws.address.to_string(), "127.0.0.1:8080", "the default");
    assert_eq!(config.region, "eu-west-1", "the file");
    assert_eq!(config.limits.message_bytes_max, 5, "the file");
    assert_eq!(config.grpc.address.to_string(), "127.0.0.1:11", "the environment over the file");
    assert_eq!(config.limits.connections_max, 77, "the environment over the default");
    assert_eq!(config.management_account.unwrap().as_str(), ACCOUNT, "digits stay a text");
    assert!(config.tls.client_cas["own"].common_names);
    assert_eq!(config.http.address.to_string(), "127.0.0.1:22", "the flag over all");
}

#[test]
fn variables_of_clients_of_the_build_and_of_kubernetes_are_not_the_daemons() {
    let folder = Folder::new();
    let others = [
        "ENDPOINT",
        "CA",
        "CERT",
        "KEY",
        "CONFIG",
        "SOFTHSM2_LIBRARY",
        "FIXTURE_DIR",
        "LOG",
        "PORT",
        "PORT_50051_TCP_ADDR",
        "SERVICE_HOST",
    ]
    .map(|name| format!("STRONGROOM_{name}"));
    let others: Vec<_> = others.iter().map(|name| (name.as_str(), "tcp://10.0.0.1:1")).collect();
    folder.load_layers(&format!("{TLS}{ALICE}"), &others, &Flags::new()).unwrap();
}

#[test]
fn relative_paths_are_relative_to_the_files_folder() {
    let folder = Folder::new();
    let config =
        folder.load("data_dir = \"data\"\n[grpc]\nunix_socket = \"/run/strongroom.sock\"").unwrap().config;
    assert_eq!(config.data_dir, folder.path("data"));
    assert_eq!(config.tls.key, folder.path("server.key"));
    assert_eq!(config.grpc.unix_socket.unwrap(), Path::new("/run/strongroom.sock"));
}

// ---- errors

#[test]
fn every_problem_of_form_is_named_at_once_with_file_key_and_remedy() {
    let folder = Folder::new();
    let text = r#"
        region = "US East"
        data_dirr = "x"
        management_account = 111122223333
        [grpc]
        address = "localhost:1"
        unix_socket_mode = "999"
        [limits]
        connections_max = -1
        handshake_timeout_ms = "soon"
        colour = "red"
        [log]
        format = "xml"
        [pins.both]
        file = "a"
        prompt = true
        [modules.hsm]
    "#;
    let accounts = r#"
        [[accounts]]
        id = "12"
        [[accounts.principals]]
        name = "bob"
        type = "admin"
        identities = [{ common_name = "bob" }]
    "#;
    let mut lines = folder.lines(folder.load_layers(&format!("{text}{TLS}{accounts}"), &[], &Flags::new()));
    lines.sort();
    assert_eq!(
        lines,
        [
            "DIR/strongroom.toml: accounts[0].id: is not an account; write twelve digits in quotes, such as \"111122223333\"",
            "DIR/strongroom.toml: accounts[0].principals[0].identities[0]: is not one identity; write exactly one of { uri = \"…\" }, { common_name = \"…\", ca = \"NAME\" } and { uid = 1000 }",
            "DIR/strongroom.toml: accounts[0].principals[0].type: is \"admin\"; write one of \"user\", \"role\", \"root\"",
            "DIR/strongroom.toml: data_dirr: unknown key; did you mean data_dir?",
            "DIR/strongroom.toml: grpc.address: is not an address; write IP:PORT, such as 127.0.0.1:50051",
            "DIR/strongroom.toml: grpc.unix_socket_mode: is not a file mode; write it in octal and in quotes, such as \"0660\"",
            "DIR/strongroom.toml: limits.colour: unknown key; remove it, or write one of connections_max, connections_per_peer_max, handshake_timeout_ms, streams_per_connection_max, header_bytes_max, message_bytes_max, connection_age_ms, connection_idle_ms, request_timeout_ms, requests_per_principal_max, requests_waiting_per_principal_max, denials_per_second, denials_burst, drain_timeout_ms, keys_per_account_max, aliases_per_account_max, aliases_per_key_max, grants_per_key_max",
            "DIR/strongroom.toml: limits.connections_max: is out of range: signed int `-1`; write a whole number from 0 to 4294967295",
            "DIR/strongroom.toml: limits.handshake_timeout_ms: is a text; write a whole number",
            "DIR/strongroom.toml: log.format: is \"xml\"; write one of \"json\", \"text\"",
            "DIR/strongroom.toml: management_account: is a number without quotes; write a text in quotes",
            "DIR/strongroom.toml: modules.hsm.library: is missing; add it",
            "DIR/strongroom.toml: pins.both: is not one source; write exactly one of file = \"PATH\", credential = \"NAME\" and prompt = true",
            "DIR/strongroom.toml: region: is not a Region; write lower-case words with hyphens, such as us-east-1",
        ]
    );
}

#[test]
fn every_problem_of_meaning_is_named_at_once() {
    let folder = Folder::new();
    folder.write("policy.json", "{\"bad\":1}");
    let text = r#"
        management_account = "999999999999"
        nonsense = 1
        [grpc]
        unix_socket = "SOCKET"
        [limits]
        denials_burst = 0
        drain_timeout_ms = 99999999999999
        [hsm]
        session_threads = 0
        [log]
        filter = "=="
        [modules.hsm]
        library = "no.so"
        [pins."a b"]
        prompt = true
        [tls]
        certificate = "server.pem"
        key = "ca.key"
        [tls.client_cas.own]
        file = "ca.key"
        crl = "none.crl"
        [[accounts]]
        id = "111122223333"
        [[accounts.principals]]
        name = "alice"
        identities = [{ uid = 1 }, { common_name = "a", ca = "own" }, { common_name = "a", ca = "other" }]
        policies = ["PowerUser", { file = "policy.json" }, "{\"bad\":2}", { file = "none.json" }]
        [[accounts.principals]]
        name = "alice"
        identities = [{ uid = 1 }]
        [[accounts.principals]]
        name = "a/b"
        [[accounts]]
        id = "111122223333"
    "#
    .replace("SOCKET", &"s".repeat(120));
    let file = folder.write("strongroom.toml", &text);
    let lines = folder.lines(Config::load_from(Some(&file), [], &Flags::new()));
    assert_eq!(
        lines,
        [
            "DIR/strongroom.toml: nonsense: unknown key; remove it, or write one of region, regions, data_dir, management_account, grpc, aws, http, tls, limits, quotas, store, trail, history, insights, rules, metric_filters, targets, hsm, modules, pins, log, accounts, services",
            "DIR/strongroom.toml: pins.a b: is not a name; write letters, digits, hyphens and underscores, at most 64",
            "DIR/strongroom.toml: limits.denials_burst: is 0, which is no limit; write a whole number of at least 1",
            "DIR/strongroom.toml: limits.drain_timeout_ms: is more than a year; write a whole number from 1 to 31536000000",
            "DIR/strongroom.toml: hsm.session_threads: is 0, which is no limit; write a whole number of at least 1",
            "DIR/strongroom.toml: grpc.unix_socket: is longer than 107 bytes, more than a Unix socket's path may be; write a shorter path",
            "DIR/strongroom.toml: modules.hsm.library: there is no file DIR/no.so; write the path of the PKCS#11 library, or install it",
            "DIR/strongroom.toml: log.filter: is not a filter (invalid filter directive); write a level (error, warn, info, debug, trace) or directives such as info,strongroom=debug",
            "DIR/strongroom.toml: tls.key: does not belong to tls.certificate; name the key that the certificate is for",
            "DIR/strongroom.toml: tls.client_cas.own.file: DIR/ca.key has no readable certificate in PEM form; name a PEM file (-----BEGIN CERTIFICATE-----)",
            "DIR/strongroom.toml: accounts[0].principals[0].policies[0]: there is no built-in policy of this name; write AdministratorAccess, a JSON document or { file = \"PATH\" }",
            "DIR/strongroom.toml: accounts[0].principals[0].policies[1]: DIR/policy.json is not a valid policy: unknown element \"bad\"; correct the policy",
            "DIR/strongroom.toml: accounts[0].principals[0].policies[2]: is not a valid policy: unknown element \"bad\"; correct the policy",
            "DIR/strongroom.toml: accounts[0].principals[0].policies[3].file: DIR/none.json cannot be read (No such file or directory (os error 2)); make it, correct the path or let the daemon's user read it",
            "DIR/strongroom.toml: accounts[0].principals[0].identities[1].ca: CA own is not trusted with CNs; set tls.client_cas.own.common_names = true, or use the certificate's SAN URI",
            "DIR/strongroom.toml: accounts[0].principals[0].identities[2].ca: CA other is unknown; name one of [tls.client_cas]",
            "DIR/strongroom.toml: accounts[0].principals[1].name: arn:aws:iam::111122223333:user/alice is there twice; give it another name, or put its identities into one",
            "DIR/strongroom.toml: accounts[0].principals[1].identities[0]: this identity is arn:aws:iam::111122223333:user/alice's already; an identity belongs to one principal: remove it from the other",
            "DIR/strongroom.toml: accounts[0].principals[2].name: is not a principal's name; write 1 to 64 letters, digits and _+=,.@-",
            "DIR/strongroom.toml: accounts[1].id: account 111122223333 is there twice; put its principals into one [[accounts]]",
            "DIR/strongroom.toml: management_account: account 999999999999 is unknown; write the id of one of [[accounts]]",
        ]
    );
}

#[test]
fn a_problem_names_the_layer_that_it_comes_from() {
    let folder = Folder::new();
    let good = format!("{TLS}{ALICE}");
    let load = |environment: &[(&str, &str)], flags: &Flags| {
        folder.lines(folder.load_layers(&good, environment, flags))
    };
    assert_eq!(
        load(
            &[("STRONGROOM_GRPC__ADRESS", "127.0.0.1:1"), ("STRONGROOM_LIMITS__DENIALS_BURST", "0")],
            &Flags::new()
        ),
        [
            "environment variable STRONGROOM_GRPC__ADRESS: grpc.adress: unknown key; did you mean address?",
            "environment variable STRONGROOM_LIMITS__DENIALS_BURST: limits.denials_burst: is 0, which is no limit; write a whole number of at least 1",
        ]
    );
    assert_eq!(
        load(&[], &Flags::new().set("http.address", "here")),
        ["the command line: http.address: is not an address; write IP:PORT, such as 127.0.0.1:50051"]
    );
    assert_eq!(
        load(&[("STRONGROOM_REGION", "")], &Flags::new()),
        ["environment variable STRONGROOM_REGION: region: is empty; give a value or unset the variable"]
    );
}

#[test]
fn a_file_that_cannot_be_read_or_is_not_toml_is_named() {
    let folder = Folder::new();
    assert_eq!(
        folder.problems("region = \"us-east-1\"\nregion = 4711"),
        [
            "DIR/strongroom.toml: is not TOML in line 2: duplicate key `region` in document root; correct this line"
        ]
    );
    let missing = Config::load_from(Some(&folder.path("none.toml")), [], &Flags::new());
    assert_eq!(
        folder.lines(missing),
        [
            "DIR/none.toml: cannot be read (No such file or directory (os error 2)); give its path with --config, or make one with `strongroom init`"
        ]
    );
    assert_eq!(
        folder.lines(folder.load_layers("", &[], &Flags::new())),
        [
            "DIR/strongroom.toml: tls: is missing; add a section [tls] with certificate, key and client_cas; `strongroom init` makes one"
        ]
    );
    let empty = "[tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"";
    assert_eq!(
        folder.lines(folder.load_layers(empty, &[], &Flags::new())),
        [
            "DIR/strongroom.toml: tls.client_cas: there is no CA for clients; add a section [tls.client_cas.NAME] with file = \"PATH\"",
            "DIR/strongroom.toml: accounts: there is no account, so nobody may call; add [[accounts]] with an id and [[accounts.principals]] with identities and policies",
        ]
    );
}

#[test]
fn a_pin_in_the_configuration_is_refused_and_not_repeated() {
    let folder = Folder::new();
    let secret = "47114711";
    let texts = [
        format!("pin = \"{secret}\""),
        format!("[pins]\nuser = \"{secret}\""),
        format!("[pins]\nuser = {secret}"),
        format!("[pins.user]\nvalue = \"{secret}\""),
        format!("[hsm]\nuser_pin = {secret}"),
        format!("[modules.hsm]\nlibrary = \"x.so\"\nenvironment = {{ TOKEN_PIN = \"{secret}\" }}"),
        format!("[pins.user]\nprompt = \"{secret}\""),
        format!("[pins.user]\nfile = \"a\"\npassword = \"{secret}\""),
    ];
    for text in &texts {
        let lines = folder.problems(text);
        assert!(!lines.concat().contains(secret), "{lines:?}");
        let source = if text.contains("prompt") {
            "write true or false"
        } else {
            "say in [pins.NAME] where the PIN comes from"
        };
        assert!(lines[0].contains(source), "{lines:?}");
    }
    for variable in
        ["STRONGROOM_PIN", "STRONGROOM_PINS__USER", "STRONGROOM_HSM__PIN", "STRONGROOM_PINS__USER__PIN"]
    {
        let loaded = folder.load_layers(&format!("{TLS}{ALICE}"), &[(variable, secret)], &Flags::new());
        let lines = folder.lines(loaded);
        assert!(lines[0].starts_with(&format!("environment variable {variable}: ")), "{lines:?}");
        assert!(lines[0].contains("say in [pins.NAME] where the PIN comes from"), "{lines:?}");
        assert!(!lines.concat().contains(secret), "{lines:?}");
    }
    let broken = folder.problems(&format!("[pins.user]\nfile = \"{secret}"));
    assert!(!broken.concat().contains(secret), "{broken:?}");
}

#[test]
fn a_private_key_that_everyone_can_read_is_refused() {
    let folder = Folder::new();
    fs::set_permissions(folder.path("server.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        folder.problems(""),
        ["DIR/strongroom.toml: tls.key: everyone may use DIR/server.key; run chmod o= DIR/server.key"]
    );
}

// ---- PINs

#[test]
fn a_pins_file_is_read_without_its_newline_and_only_where_it_is_private() {
    let folder = Folder::new();
    let file = folder.write("pin", "12 34\n");
    symlink(&file, folder.path("link")).unwrap();
    let config = folder.load("[pins.user]\nfile = \"pin\"\n[pins.link]\nfile = \"link\"").unwrap().config;
    let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();

    for open in [0o640, 0o604, 0o620] {
        mode(open);
        let line =
            config.pin("link").unwrap_err().to_string().replace(folder.0.path().to_str().unwrap(), "DIR");
        assert_eq!(
            line,
            format!(
                "DIR/link: pins.link.file: others than its owner may use it (mode {open:04o}); run chmod 600 DIR/link"
            )
        );
    }
    assert_eq!(config.pin_file_problems().len(), 2);
    mode(0o600);
    assert_eq!(config.pin_file_problems(), []);
    assert_eq!(config.pin("user").unwrap().expose_secret(), "12 34");
    assert_eq!(config.pin("link").unwrap().expose_secret(), "12 34");

    for (contents, text) in [
        ("\n", "has no PIN in it; write the PIN into it".to_owned()),
        (&"9".repeat(256), "has more than 255 bytes; write the PIN alone into it".to_owned()),
    ] {
        fs::write(&file, contents).unwrap();
        let line = config.pin("user").unwrap_err().to_string();
        assert!(line.ends_with(&format!("pins.user: {text}")), "{line}");
    }
    fs::write(&file, "9".repeat(255)).unwrap();
    assert_eq!(config.pin("user").unwrap().expose_secret().len(), 255);
    fs::remove_file(&file).unwrap();
    assert!(config.pin("user").unwrap_err().remedy.contains("readable by the daemon's user alone"));
    assert!(config.pin("other").unwrap_err().to_string().contains("pins.other: is missing"));
}

// ---- who there is

#[test]
fn a_peer_is_known_by_uri_before_cn_before_uid_and_never_by_a_guess() {
    let folder = Folder::new();
    let text = r#"
        [tls]
        certificate = "server.pem"
        key = "server.key"
        [tls.client_cas.own]
        file = "ca.pem"
        common_names = true
        [[accounts]]
        id = "111122223333"
        [[accounts.principals]]
        name = "alice"
        identities = [{ uri = "spiffe://test/alice" }, { uri = "spiffe://test/alice2" }]
        policies = ["AdministratorAccess"]
        [[accounts.principals]]
        name = "batch"
        type = "role"
        identities = [{ common_name = "batch", ca = "own" }]
        [[accounts.principals]]
        type = "root"
        identities = [{ uid = 0 }, { uri = "spiffe://test/root" }]
    "#;
    let directory = folder.load_layers(text, &[], &Flags::new()).unwrap().directory;
    let uri = |name: &str| Credential::Uri(format!("spiffe://test/{name}"));
    let cn = |ca: &str| Credential::CommonName { ca: ca.into(), cn: "batch".into() };
    let who =
        |credentials: &[Credential]| directory.resolve(credentials).map(|principal| principal.arn.clone());
    let arn = |rest: &str| Some(format!("arn:aws:iam::{ACCOUNT}:{rest}"));

    assert_eq!(who(&[uri("alice")]), arn("user/alice"));
    assert_eq!(who(&[cn("own")]), arn("role/batch"));
    assert_eq!(who(&[Credential::Uid(0)]), arn("root"));
    assert_eq!(
        who(&[Credential::Uid(0), cn("own"), uri("alice")]),
        arn("user/alice"),
        "the URI counts first"
    );
    assert_eq!(who(&[Credential::Uid(0), cn("own")]), arn("role/batch"), "then the CN");
    assert_eq!(who(&[uri("alice"), uri("alice2")]), arn("user/alice"), "two URIs of one principal");
    assert_eq!(who(&[uri("alice"), uri("root")]), None, "two principals");
    assert_eq!(who(&[uri("unknown"), cn("own")]), arn("role/batch"));
    assert_eq!(who(&[cn("other")]), None, "another CA's CN");
    assert_eq!(who(&[uri("ALICE")]), None, "compared exactly");
    assert_eq!(who(&[Credential::Uid(1)]), None);
    assert_eq!(who(&[]), None);

    let alice = directory.resolve(&[uri("alice")]).unwrap();
    assert_eq!(
        (alice.account.as_str(), alice.kind, alice.name.as_str()),
        (ACCOUNT, PrincipalKind::User, "alice")
    );
    assert_eq!(alice.policies.len(), 1);
    // Ids are in events and policies: they may never change.
    assert_eq!(alice.principal_id, "AIDAMFGQBKSC5PFYHSOPF");
    assert_eq!(directory.resolve(&[cn("own")]).unwrap().principal_id, "AROAYJMCBVDBHQ2HGUJQW");
    assert_eq!(directory.resolve(&[Credential::Uid(0)]).unwrap().principal_id, ACCOUNT);
    assert_eq!(directory.principal(&arn("root").unwrap()).unwrap().name, "root");
    assert_eq!(directory.accounts().map(|account| account.id.as_str()).collect::<Vec<_>>(), [ACCOUNT]);
}

// ---- reload

#[test]
fn the_hash_covers_the_configuration_and_its_files() {
    let folder = Folder::new();
    folder.write(
        "policy.json",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#,
    );
    let accounts = ALICE.replace("\"AdministratorAccess\"", "{ file = \"policy.json\" }");
    let hash = |text: &str| {
        folder.load_layers(&format!("{text}{TLS}{accounts}"), &[], &Flags::new()).unwrap().sha256
    };

    let first = hash("");
    assert_eq!(first.len(), 64);
    assert_eq!(hash("# the same\nregion = \"us-east-1\""), first, "the effective configuration counts");
    assert_ne!(hash("region = \"eu-west-1\""), first);
    folder.write(
        "policy.json",
        r#"{"Version":"2012-10-17", "Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#,
    );
    let policy = hash("");
    assert_ne!(policy, first, "a policy");
    let ca = fs::read_to_string(folder.path("ca.pem")).unwrap();
    folder.write("ca.pem", &format!("{ca}{}", Ca::new("more").unwrap().identity().certificate));
    assert_ne!(hash(""), policy, "a CA");
}

#[test]
fn what_a_reload_cannot_change_is_named() {
    let folder = Folder::new();
    let old = folder.load("").unwrap().config;
    let new = folder
        .load("data_dir = \"other\"\n[grpc]\naddress = \"127.0.0.1:0\"\n[limits]\ndenials_burst = 7\n[store]\nmin_free_bytes = 1")
        .unwrap()
        .config;
    assert_eq!(restart_needed(&old, &new), ["data_dir", "grpc.address", "store"]);
    assert!(restart_needed(&old, &old).is_empty());
}
