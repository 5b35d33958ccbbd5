//! A second vendor's module: kryoptic, by itself and in one cluster with SoftHSM2.
//! `make test-vendors` builds it; without it these tests say so and do nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ED25519, ML_DSA_44, ML_DSA_65, ML_DSA_87, UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::Value;
use spki::SubjectPublicKeyInfoRef;
use spki::der::Decode as _;
use strongroom::hsm::{
    Cluster, KeyRules, Material, MemberSettings, MlDsa, ModuleSettings, Modules, Scheme, TokenUri, Use,
    ceremony, list_tokens,
};
use strongroom::proto::hsm::ListMembersRequest;
use strongroom::proto::kms::{self, KeySpec, SigningAlgorithmSpec};
use tempfile::TempDir;

use crate::cluster::fixture::all_serve;
use crate::hsm::{fast, id, soon};
use crate::members::{done, runbook};
use crate::support::{Instance, create, eventually};

/// Names the library where it is not where `make vendors` puts it.
const LIBRARY_VARIABLE: &str = "KRYOPTIC_LIBRARY";

const SO_PIN: &str = "12345678";
const PIN: &str = "87654321";

/// A token of kryoptic's, in a folder of its own.
struct Kryoptic {
    folder: TempDir,
    library: PathBuf,
    uri: TokenUri,
}

impl Kryoptic {
    fn new() -> Option<Kryoptic> {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vendors/build/debug/libkryoptic.so");
        let library = std::env::var_os(LIBRARY_VARIABLE).map_or(built, PathBuf::from);
        if !library.is_file() {
            eprintln!("skipped: kryoptic is not built (make vendors)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let conf = format!(
            "[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = {:?}\n",
            folder.path().join("token.sql").display().to_string()
        );
        fs::write(folder.path().join("kryoptic.conf"), conf).unwrap();
        let mut token =
            Kryoptic { folder, library, uri: TokenUri { label: String::new(), serial: String::new() } };
        token.tool(&["--init-token", "--label", "kryoptic", "--so-pin", SO_PIN]);
        token.tool(&["--init-pin", "--login", "--login-type", "so", "--so-pin", SO_PIN, "--new-pin", PIN]);
        let modules = token.modules();
        token.uri = list_tokens(&modules, "m").unwrap().remove(0).uri;
        modules.finalise();
        Some(token)
    }

    fn configuration(&self) -> String {
        self.folder.path().join("kryoptic.conf").display().to_string()
    }

    fn module(&self) -> ModuleSettings {
        let environment = BTreeMap::from([("KRYOPTIC_CONF".to_owned(), self.configuration())]);
        ModuleSettings { library: self.library.clone(), environment }
    }

    fn modules(&self) -> Arc<Modules> {
        Modules::new([("m".to_owned(), self.module())].into(), fast())
    }

    fn tool(&self, arguments: &[&str]) {
        let output = Command::new("pkcs11-tool")
            .env("KRYOPTIC_CONF", self.configuration())
            .arg("--module")
            .arg(&self.library)
            .args(arguments)
            .output()
            .expect("pkcs11-tool runs: install opensc");
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn the_check_tells_what_kryoptic_is_worth() {
    let Some(token) = Kryoptic::new() else { return };
    let (pin, so_pin) = (token.folder.path().join("pin"), token.folder.path().join("so.pin"));
    fs::write(&pin, PIN).unwrap();
    fs::write(&so_pin, SO_PIN).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(["hsm", "check", "-o", "json"])
        .arg(&token.library)
        .arg("--pin-file")
        .arg(pin)
        .arg("--so-pin-file")
        .arg(so_pin)
        .env("KRYOPTIC_CONF", token.configuration())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let failing = |list: &str, name: &str| -> Vec<String> {
        let of = report[list].as_array().unwrap().iter().filter(|one| one["Works"] != true);
        of.map(|one| one[name].as_str().unwrap().to_owned()).collect()
    };
    // Nobody can mark a key TRUSTED: a wrapping key comes to it and does not leave.
    assert_eq!(
        failing("Findings", "What"),
        [
            "leaves to another HSM, as the security officer approves",
            "is backed up to custodians, as the security officer approves",
        ]
    );
    assert_eq!(failing("KeySpecs", "KeySpec"), ["ECC_SECG_P256K1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kryoptic_is_a_cluster_of_its_own() {
    let Some(token) = Kryoptic::new() else { return };
    let modules = token.modules();
    let identity = ceremony(&modules, "m", &token.uri, &PIN.into()).unwrap();
    modules.finalise();
    let modules = token.modules();
    let member = MemberSettings { module: "m".into(), token: token.uri.to_string(), pin: "pin".into() };
    let cluster =
        Cluster::start(&modules, vec![(member, PIN.into())], identity, fast(), KeyRules::DEFAULT).unwrap();
    all_serve(&cluster).await;
    let key = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key;
    let sealed = cluster.encrypt_gcm(&key, b"aad", b"secret", soon()).await.unwrap();
    let opened = cluster.decrypt_gcm(&key, sealed.iv, b"aad", &sealed.ciphertext, soon()).await.unwrap();
    assert_eq!(opened.as_slice(), b"secret");
    let table: [(Material, Scheme, &dyn VerificationAlgorithm); 4] = [
        (Material::Ed25519, Scheme::Ed25519, &ED25519),
        (Material::MlDsa(MlDsa::MlDsa44), Scheme::MlDsa, &ML_DSA_44),
        (Material::MlDsa(MlDsa::MlDsa65), Scheme::MlDsa, &ML_DSA_65),
        (Material::MlDsa(MlDsa::MlDsa87), Scheme::MlDsa, &ML_DSA_87),
    ];
    for (material, scheme, algorithm) in table {
        let made = cluster.generate(id(), material, Use::Sign, soon()).await.unwrap();
        let signature = cluster.sign(&made.key, scheme, b"message", soon()).await.unwrap();
        let spki = made.public_key.unwrap();
        let spki = SubjectPublicKeyInfoRef::from_der(&spki).unwrap();
        let public = UnparsedPublicKey::new(algorithm, spki.subject_public_key.raw_bytes());
        public.verify(b"message", &signature).unwrap();
        assert!(public.verify(b"massage", &signature).is_err());
        cluster.destroy(&made.key, soon()).await.unwrap();
    }
    cluster.shutdown().await;
    modules.finalise();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn softhsm2_and_kryoptic_serve_the_same_keys() {
    let Some(token) = Kryoptic::new() else { return };
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let first = client.call(ListMembersRequest::default()).await.unwrap().members.remove(0).uri.unwrap();
    let before = [KeySpec::SymmetricDefault, KeySpec::Rsa2048, KeySpec::EccNistP384];
    let mut keys = Vec::new();
    for spec in before {
        keys.push((client.create(spec).await.unwrap(), spec));
    }
    let blob = client.encrypt(&keys[0].0, b"made by SoftHSM2").await.unwrap();
    daemon.terminate().await;
    let pin = instance.path("hsm/kryoptic.pin");
    fs::write(&pin, PIN).unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    let file = instance.path("strongroom.toml");
    let more = format!(
        "\n[modules.kryoptic]\nlibrary = {:?}\nenvironment = {{ KRYOPTIC_CONF = {:?} }}\n\n[pins.kryoptic]\nfile = {pin:?}\n",
        token.library,
        token.configuration(),
    );
    fs::write(&file, fs::read_to_string(&file).unwrap() + &more).unwrap();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    let uri = token.uri.to_string();
    let (config, so_pin) = (file.display().to_string(), instance.path("hsm/so.pin").display().to_string());
    let names = [
        ("CONFIG", config.as_str()),
        ("MEMBER", first.as_str()),
        ("MEMBER_MODULE", "softhsm2"),
        ("MEMBER_PIN", strongroom::commands::dev_setup::USER_PIN),
        ("TOKEN", uri.as_str()),
        ("MODULE", "kryoptic"),
        ("PIN", "kryoptic"),
        ("SO_PIN_FILE", so_pin.as_str()),
    ];
    done(runbook(&instance, "hsm bring", &names));
    done(runbook(&instance, "hsm member add", &names));

    // What only kryoptic can.
    for (spec, name) in
        [(KeySpec::MlDsa44, "ML-DSA-44"), (KeySpec::MlDsa65, "ML-DSA-65"), (KeySpec::MlDsa87, "ML-DSA-87")]
    {
        let request =
            kms::CreateKeyRequest { key_usage: Some(kms::KeyUsageType::SignVerify as i32), ..create(spec) };
        let key = client.call(request).await.unwrap().key_metadata.unwrap();
        assert_eq!(key.signing_algorithms, [SigningAlgorithmSpec::MlDsaShake256 as i32], "{name}");
        let sign = kms::SignRequest {
            key_id: key.key_id.clone(),
            message: Some(b"message".to_vec()),
            signing_algorithm: Some(SigningAlgorithmSpec::MlDsaShake256 as i32),
            ..Default::default()
        };
        let signature = client.call(sign.clone()).await.unwrap().signature;
        let verify = |message: &[u8]| kms::VerifyRequest {
            key_id: key.key_id.clone(),
            message: Some(message.to_vec()),
            signature: signature.clone(),
            signing_algorithm: Some(SigningAlgorithmSpec::MlDsaShake256 as i32),
            ..Default::default()
        };
        assert_eq!(client.call(verify(b"message")).await.unwrap().signature_valid, Some(true), "{name}");
        let refused = client.call(verify(b"massage")).await.unwrap_err();
        assert_eq!(refused.exception, "KMSInvalidSignatureException", "{name}");
    }

    // One goes, and the other does its work with the same keys; then the other way.
    fs::rename(instance.path("hsm/1"), instance.beside("away")).unwrap();
    let state = async |uri: &str| {
        let members = client.call(ListMembersRequest::default()).await.unwrap().members;
        members.into_iter().find(|member| member.uri() == uri).unwrap().state()
    };
    let serving = strongroom::proto::hsm::MemberState::Serving;
    eventually("SoftHSM2 is lost", async || state(&first).await != serving).await;
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"made by SoftHSM2");
    for (key, spec) in &keys {
        client.use_key(key, *spec).await.unwrap();
    }
    let mut made = Vec::new();
    for spec in [KeySpec::SymmetricDefault, KeySpec::Rsa2048, KeySpec::EccNistP256] {
        made.push((client.create(spec).await.unwrap(), spec));
    }
    let blob = client.encrypt(&made[0].0, b"made by kryoptic").await.unwrap();
    fs::rename(instance.beside("away"), instance.path("hsm/1")).unwrap();
    eventually("SoftHSM2 is back", async || state(&first).await == serving).await;
    done(runbook(&instance, "hsm member begin-maintenance", &[("MEMBER", uri.as_str())]));
    eventually("kryoptic is out", async || state(&uri).await != serving).await;
    assert_eq!(client.decrypt(&blob).await.unwrap(), b"made by kryoptic");
    for (key, spec) in &made {
        client.use_key(key, *spec).await.unwrap();
    }
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}
