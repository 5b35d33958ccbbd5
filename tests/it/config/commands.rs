//! The commands that write a configuration, and the one that checks it.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use strongroom::caller::Credential;
use strongroom::commands::access_key::AccessKey;
use strongroom::commands::check_config::{self, CheckConfigArgs};
use strongroom::commands::dev_setup::{self, AwsEndpoint, DevOptions, SoftHsm};
use strongroom::commands::init::{self, InitArgs};
use strongroom::config::{Config, ConfigError, Flags, restart_needed};
use strongroom::pki::{Ca, user_uri};

use super::{ACCOUNT, Folder};

fn init_args(dir: &Path) -> InitArgs {
    InitArgs {
        dir: dir.to_owned(),
        data_dir: None,
        account_id: "444455556666".into(),
        region: "eu-central-1".into(),
        module: None,
        server_names: vec!["kms.example.org".into(), "192.0.2.7".into()],
    }
}

fn check(config: &Path, print: bool) -> String {
    let mut out = Vec::new();
    check_config::run(&CheckConfigArgs { config: config.to_owned(), print }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn what_init_writes_passes_check_config_and_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libsofthsm2.so");
    fs::write(&library, "").unwrap();
    let dir = folder.path().join("etc");
    let mut out = Vec::new();
    init::run(&init_args(&dir), || Ok(library.clone()), &mut out).unwrap();
    let said = String::from_utf8(out).unwrap();
    let config = dir.join("strongroom.toml");
    for step in ["strongroom hsm init --config ", "strongroom serve --config "] {
        assert!(said.contains(&format!("{step}{}", config.display())), "{said}");
    }

    let checked = check(&config, false);
    assert!(
        checked.contains(&format!("OK {}: Region eu-central-1, 1 accounts, 1 principals", config.display()))
    );
    assert!(checked.contains("warning: ") && checked.contains("pins.crypto-user.file"), "{checked}");
    let loaded = Config::load_from(Some(&config), [], &Flags::new()).unwrap();
    let administrator = Credential::Uri(user_uri("444455556666", "administrator"));
    let principal = loaded.directory.resolve(&[administrator]).unwrap();
    assert_eq!(principal.arn, "arn:aws:iam::444455556666:user/administrator");
    assert_eq!(loaded.config.modules["softhsm2"].library, library);
    for name in ["ca", "server", "administrator"] {
        assert_eq!(mode(&dir.join(format!("pki/{name}.key"))), 0o600, "{name}");
    }

    // The effective configuration is a configuration, and the same one.
    let printed = dir.join("printed.toml");
    fs::write(&printed, check(&config, true)).unwrap();
    let again = Config::load_from(Some(&printed), [], &Flags::new()).unwrap();
    assert_eq!(again.config, loaded.config);
    assert_eq!(again.sha256, loaded.sha256);

    let key = fs::read(dir.join("pki/ca.key")).unwrap();
    let error = init::run(&init_args(&dir), || Ok(library.clone()), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("strongroom.toml is there already"), "{error}");
    assert_eq!(fs::read(dir.join("pki/ca.key")).unwrap(), key);
}

#[test]
fn init_refuses_what_it_cannot_write_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("etc");
    let library = || Ok(PathBuf::from("/proc/self/exe"));
    let refused = |args: InitArgs| init::run(&args, library, &mut Vec::new()).unwrap_err().to_string();
    assert!(refused(InitArgs { account_id: "1".into(), ..init_args(&dir) }).starts_with("--account-id: "));
    assert!(refused(InitArgs { region: "US".into(), ..init_args(&dir) }).starts_with("--region: "));
    assert!(
        refused(InitArgs { server_names: vec!["né".into()], ..init_args(&dir) }).starts_with("--server-name")
    );
    assert!(
        refused(InitArgs { module: Some("/none.so".into()), ..init_args(&dir) }).starts_with("--module: ")
    );
    let nowhere = || Err(anyhow::anyhow!("no SoftHSM2"));
    let error = init::run(&init_args(&dir), nowhere, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("--module"), "{error}");
    assert!(!dir.exists());
}

#[test]
fn check_config_fails_on_a_bad_configuration() {
    let folder = Folder::new();
    let config = folder.write("strongroom.toml", "colour = 1");
    let args = CheckConfigArgs { config, print: false };
    let error = check_config::run(&args, &mut Vec::new()).unwrap_err();
    assert!(error.is::<ConfigError>());
}

// ---- dev

/// A token that is a file with its PIN.
#[derive(Default)]
struct FakeHsm {
    made: Cell<u32>,
    broken: Cell<bool>,
}

impl SoftHsm for FakeHsm {
    fn locate(&self) -> anyhow::Result<PathBuf> {
        Ok("/proc/self/exe".into())
    }

    fn write_conf(&self, folder: &Path, tokens: &Path) -> anyhow::Result<PathBuf> {
        let conf = folder.join("softhsm2.conf");
        fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display()))?;
        Ok(conf)
    }

    fn init_token(
        &self,
        _library: &Path,
        conf: &Path,
        _label: &str,
        so_pin: &SecretString,
        pin: &SecretString,
    ) -> anyhow::Result<String> {
        assert_ne!(so_pin.expose_secret(), pin.expose_secret());
        let tokens = fs::read_to_string(conf)?;
        let tokens = Path::new(tokens.trim().strip_prefix("directories.tokendir = ").unwrap());
        assert!(fs::read_dir(tokens)?.next().is_none(), "only an empty folder is initialised");
        fs::write(tokens.join("token"), pin.expose_secret())?;
        anyhow::ensure!(!self.broken.get(), "broken");
        self.made.set(self.made.get() + 1);
        Ok("0123456789abcdef".into())
    }
}

#[test]
fn dev_goes_on_with_what_it_made() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("dev it's");
    let hsm = FakeHsm::default();
    let options = DevOptions { grpc: Some("127.0.0.1:0".parse().unwrap()), ..Default::default() };
    let first = dev_setup::prepare(&dir, &options, &hsm).unwrap();
    assert_eq!(first.token_uri(), "pkcs11:token=strongroom-dev;serial=0123456789abcdef");
    assert!(first.needs_ceremony);
    let before = Config::load_from(Some(&first.config), [], &Flags::new()).unwrap();
    assert_eq!(before.config.grpc.address.to_string(), "127.0.0.1:0");
    assert_eq!(before.config.http.address.to_string(), "127.0.0.1:9090");
    let uid = Credential::Uid(rustix::process::getuid().as_raw());
    let uri = Credential::Uri(user_uri(ACCOUNT, "administrator"));
    assert_eq!(before.directory.resolve(&[uid]).unwrap().arn, before.directory.resolve(&[uri]).unwrap().arn);
    let pin = before.config.pin("crypto-user").unwrap();
    assert_eq!(fs::read_to_string(first.dir.join("hsm/1/token")).unwrap(), pin.expose_secret());
    let conf = &before.config.modules["softhsm2"].environment["SOFTHSM2_CONF"];
    assert!(fs::read_to_string(conf).unwrap().ends_with("dev it's/hsm/1\n"), "not where it was made");
    assert_eq!((mode(&first.dir), mode(&first.dir.join("hsm"))), (0o700, 0o700));
    first.mark_initialized().unwrap();

    // What a person changed stays; what a flag says changes; keys stay.
    let text = fs::read_to_string(&first.config).unwrap();
    fs::write(&first.config, text.replace("name = \"main\"", "name = \"mine\" # kept")).unwrap();
    let key = fs::read(first.dir.join("pki/ca.key")).unwrap();
    let options = DevOptions { http: Some("127.0.0.1:7".parse().unwrap()), ..Default::default() };
    let second = dev_setup::prepare(&dir, &options, &hsm).unwrap();
    let after = Config::load_from(Some(&second.config), [], &Flags::new()).unwrap();
    assert!(!second.needs_ceremony);
    assert_eq!(second.token_serial, first.token_serial);
    assert_eq!(hsm.made.get(), 2, "the token of the default key store and one for a custom key store");
    assert_eq!(fs::read(first.dir.join("pki/ca.key")).unwrap(), key);
    assert_eq!(after.config.pin("crypto-user").unwrap().expose_secret(), pin.expose_secret());
    assert_eq!(restart_needed(&before.config, &after.config), ["http.address"]);
    assert!(fs::read_to_string(&second.config).unwrap().contains("name = \"mine\" # kept"));

    for (options, flag) in [
        (DevOptions { account_id: Some("444455556666".into()), ..Default::default() }, "--account-id: "),
        (DevOptions { region: Some("eu-west-1".into()), ..Default::default() }, "--region: "),
    ] {
        let error = dev_setup::prepare(&dir, &options, &hsm).unwrap_err().to_string();
        assert!(error.starts_with(flag) && error.contains("give another folder with --dir"), "{error}");
    }
}

#[test]
fn dev_recovers_from_a_token_that_was_not_finished_and_keeps_off_other_folders() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("dev");
    let hsm = FakeHsm { broken: Cell::new(true), ..Default::default() };
    dev_setup::prepare(&dir, &DevOptions::default(), &hsm).unwrap_err();
    assert!(!dir.join("hsm").exists() && !dir.join("strongroom.toml").exists());
    hsm.broken.set(false);
    dev_setup::prepare(&dir, &DevOptions::default(), &hsm).unwrap();

    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.tex"), "").unwrap();
    let error = dev_setup::prepare(&other, &DevOptions::default(), &hsm).unwrap_err();
    assert!(error.to_string().contains("is not empty and was not made by `strongroom dev`"), "{error}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
}

#[test]
fn devs_env_is_what_a_shell_reads() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("it's $HOME");
    fs::create_dir(&dir).unwrap();
    let access_key = AccessKey { id: "AKIA".into(), secret: SecretString::from("s'ecret") };
    let aws =
        AwsEndpoint { address: "0.0.0.0:1".parse().unwrap(), plaintext: false, access_key: &access_key };
    let path = dev_setup::write_env(&dir, "us-east-1", "0.0.0.0:50051".parse().unwrap(), &aws).unwrap();
    let read = |name: &str| {
        let script = format!(". \"$0\"; env | sed -n 's/^{name}=//p'");
        let shell =
            std::process::Command::new("sh").arg("-c").arg(script).arg(&path).env_clear().output().unwrap();
        String::from_utf8(shell.stdout).unwrap().trim_end().to_owned()
    };
    assert_eq!(mode(&path), 0o600);
    assert_eq!(read("STRONGROOM_ENDPOINT"), "https://127.0.0.1:50051");
    assert_eq!(
        Path::new(&read("STRONGROOM_KEY")),
        fs::canonicalize(&dir).unwrap().join("pki/administrator.key")
    );
    assert_eq!(read("AWS_DEFAULT_REGION"), "us-east-1");
    assert_eq!(read("AWS_ENDPOINT_URL"), "https://127.0.0.1:1");
    assert_eq!(Path::new(&read("AWS_CA_BUNDLE")), fs::canonicalize(&dir).unwrap().join("pki/ca.pem"));

    let aws = AwsEndpoint { address: "[::]:8080".parse().unwrap(), plaintext: true, access_key: &access_key };
    dev_setup::write_env(&dir, "us-east-1", "[::1]:5".parse().unwrap(), &aws).unwrap();
    assert_eq!(read("STRONGROOM_ENDPOINT"), "https://[::1]:5");
    assert_eq!(read("AWS_ENDPOINT_URL"), "http://[::1]:8080");
    assert_eq!(read("AWS_CA_BUNDLE"), "", "there is no TLS");
    assert_eq!((read("AWS_ACCESS_KEY_ID"), read("AWS_SECRET_ACCESS_KEY")), ("AKIA".into(), "s'ecret".into()));
    assert!(!format!("{aws:?}").contains("ecret\""));
}

// ---- certificates

#[test]
fn the_certificates_say_what_mutual_tls_and_openssl_ask() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("test").unwrap();
    let client = ca.client(ACCOUNT, "alice").unwrap();
    ca.identity().write(folder.path(), "ca").unwrap();
    client.write(folder.path(), "alice").unwrap();
    ca.server(&["kms.example.org".into(), "localhost".into()])
        .unwrap()
        .write(folder.path(), "server")
        .unwrap();
    assert!(client.write(folder.path(), "alice").is_err(), "never overwritten");
    assert!(!format!("{ca:?}{client:?}").contains("PRIVATE KEY"));

    let openssl = |arguments: &[&str]| {
        let output =
            std::process::Command::new("openssl").args(arguments).current_dir(&folder).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for (purpose, file) in [("sslclient", "alice.pem"), ("sslserver", "server.pem")] {
        let (good, said) =
            openssl(&["verify", "-x509_strict", "-CAfile", "ca.pem", "-purpose", purpose, file]);
        assert!(good, "{said}");
    }
    assert!(!openssl(&["verify", "-CAfile", "ca.pem", "-purpose", "sslserver", "alice.pem"]).0);
    let (_, sans) = openssl(&["x509", "-in", "server.pem", "-noout", "-ext", "subjectAltName"]);
    assert!(
        sans.contains("DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1, DNS:kms.example.org"),
        "{sans}"
    );
    let (_, sans) = openssl(&["x509", "-in", "alice.pem", "-noout", "-ext", "subjectAltName"]);
    assert!(sans.contains("URI:spiffe://strongroom/account/111122223333/user/alice"), "{sans}");
    let (_, key) = openssl(&["ec", "-in", "alice.key", "-noout", "-text"]);
    assert!(key.contains("prime256v1"), "{key}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}
