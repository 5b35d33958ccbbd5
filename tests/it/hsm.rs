//! The HSM layer on SoftHSM2, each test on tokens of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{agreement, rsa, signature};
use secrecy::SecretString;
use spki::SubjectPublicKeyInfoRef;
use spki::der::Decode as _;
use strongroom::hsm::{
    BackingId, Capability, Cluster, ClusterIdentity, ClusterSettings, Curve, Hash, Home, HsmError, KeyRef,
    KeyRules, Material, MemberSettings, MemberState, ModuleSettings, Modules, Residence, Scheme, TokenUri,
    Use, ceremony, softhsm,
};
use tempfile::TempDir;
use tokio::time::Instant;

pub const PIN: &str = "87654321";

/// A SoftHSM2 of its own: configuration and token folder.
pub struct Token {
    folder: TempDir,
    pub uri: TokenUri,
    started: std::sync::Mutex<Vec<Arc<Modules>>>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.started.lock().unwrap().iter().for_each(|modules| modules.finalise());
    }
}

impl Token {
    /// A copy of fixture token 1 to 4.
    pub fn new(number: usize) -> Token {
        let fixture = env!("STRONGROOM_FIXTURE_DIR");
        assert!(!fixture.is_empty(), "SoftHSM2 was not there at build time: {}", softhsm::INSTALL_HINT);
        let folder = tempfile::tempdir().unwrap();
        copy(&Path::new(fixture).join(number.to_string()).join("tokens"), &folder.path().join("tokens"));
        softhsm::write_configuration(&folder.path().join("softhsm2.conf"), &folder.path().join("tokens"))
            .unwrap();
        let name =
            std::fs::read_dir(folder.path().join("tokens")).unwrap().next().unwrap().unwrap().file_name();
        // SoftHSM2's folder is a UUID; the serial is its last 16 digits.
        let digits: String = name.to_string_lossy().chars().filter(|c| *c != '-').collect();
        let serial = digits[digits.len() - 16..].to_owned();
        Token {
            folder,
            uri: TokenUri { label: format!("strongroom-test-{number}"), serial },
            started: std::sync::Mutex::default(),
        }
    }

    pub fn tokens(&self) -> PathBuf {
        self.folder.path().join("tokens")
    }

    pub fn away(&self) -> PathBuf {
        self.folder.path().join("away")
    }

    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("softhsm2.conf")
    }

    pub fn module(&self) -> ModuleSettings {
        let conf = self.configuration().display().to_string();
        ModuleSettings {
            library: library(),
            environment: BTreeMap::from([("SOFTHSM2_CONF".to_owned(), conf)]),
        }
    }

    /// The same behind the shim, which reads [`Token::rules`].
    pub fn shimmed(&self) -> ModuleSettings {
        let mut module = self.module();
        let mut set = |name: &str, value: PathBuf| {
            module.environment.insert(name.to_owned(), value.display().to_string());
        };
        set("PKCS11_SHIM_MODULE", library());
        set("PKCS11_SHIM_RULES", self.rules());
        ModuleSettings { library: shim(), ..module }
    }

    /// The file of the shim's rules.
    pub fn rules(&self) -> PathBuf {
        self.folder.path().join("rules")
    }

    /// Gives the shim other rules, at once.
    pub fn set_rules(&self, text: &str) {
        let new = self.folder.path().join("rules.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.rules()).unwrap();
    }

    /// A library of its own, `m`.
    pub fn modules(&self) -> Arc<Modules> {
        let modules = Modules::new([("m".to_owned(), self.module())].into(), fast());
        self.started.lock().unwrap().push(modules.clone());
        modules
    }

    pub fn ceremony(&self) -> ClusterIdentity {
        ceremony(&self.modules(), "m", &self.uri, &PIN.into()).unwrap()
    }

    pub fn start(&self, identity: ClusterIdentity, settings: ClusterSettings) -> Arc<Cluster> {
        self.start_with_pin(identity, settings, PIN.into())
    }

    fn start_with_pin(
        &self,
        identity: ClusterIdentity,
        settings: ClusterSettings,
        pin: SecretString,
    ) -> Arc<Cluster> {
        let member =
            MemberSettings { module: "m".into(), token: self.uri.to_string(), pin: "crypto-user".into() };
        Cluster::start(&self.modules(), vec![(member, pin)], identity, settings, KeyRules::DEFAULT).unwrap()
    }

    /// Objects on the token, as pkcs11-tool lists them with the PIN.
    pub fn pkcs11_tool(&self, arguments: &[&str]) -> std::process::Output {
        std::process::Command::new("pkcs11-tool")
            .env("SOFTHSM2_CONF", self.configuration())
            .arg("--module")
            .arg(library())
            .args(["--login", "--pin", PIN])
            .args(arguments)
            .output()
            .expect("pkcs11-tool runs: install opensc")
    }
}

/// The example `pkcs11_shim`, which cargo builds for the tests.
pub fn shim() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let shim = tests.parent().unwrap().parent().unwrap().join("examples/libpkcs11_shim.so");
    assert!(shim.is_file(), "{} is not there: cargo build --example pkcs11_shim", shim.display());
    shim
}

pub fn library() -> PathBuf {
    softhsm::library().expect(softhsm::INSTALL_HINT)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub fn fast() -> ClusterSettings {
    ClusterSettings { probe_interval_ms: 50, reinitialize_interval_ms: 100, ..ClusterSettings::default() }
}

async fn until(cluster: &Cluster, state: MemberState) -> String {
    let mut health = cluster.watch();
    let reached = health.wait_for(|members| members.iter().all(|member| member.state == state));
    let members = tokio::time::timeout(Duration::from_secs(60), reached).await;
    match members {
        Ok(Ok(members)) => members[0].reason.clone().unwrap_or_default(),
        _ => panic!("never {state:?}: {:?}", cluster.watch().borrow()),
    }
}

pub fn id() -> BackingId {
    BackingId::random().unwrap()
}

fn bare(spki: &[u8]) -> Vec<u8> {
    SubjectPublicKeyInfoRef::from_der(spki).unwrap().subject_public_key.raw_bytes().to_vec()
}

fn digest(hash: Hash, data: &[u8]) -> Vec<u8> {
    let algorithm = match hash {
        Hash::Sha1 => &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha224 => &aws_lc_rs::digest::SHA224,
        Hash::Sha256 => &aws_lc_rs::digest::SHA256,
        Hash::Sha384 => &aws_lc_rs::digest::SHA384,
        Hash::Sha512 => &aws_lc_rs::digest::SHA512,
    };
    aws_lc_rs::digest::digest(algorithm, data).as_ref().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_algorithm_agrees_with_software() {
    let token = Token::new(1);
    let cluster = token.start(token.ceremony(), fast());
    until(&cluster, MemberState::Serving).await;
    for (capability, result) in &cluster.members()[0].self_test {
        let absent = format!("{capability:?}").contains("MlDsa");
        assert_eq!(result.is_err(), absent, "{capability:?}: {result:?}");
    }
    symmetric(&cluster).await;
    signatures(&cluster).await;
    oaep(&cluster).await;
    agreements(&cluster).await;
    data_key_pairs(&cluster).await;
    daemon_keys(&cluster).await;
    assert_eq!(cluster.random(1000, soon()).await.unwrap().len(), 1000);
    cluster.shutdown().await;
}

async fn symmetric(cluster: &Cluster) {
    let key = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key;
    assert!(matches!(key.home, Home::Wrapped { .. }));
    for plaintext in [&b""[..], b"secret", &[7; 4096]] {
        let sealed = cluster.encrypt_gcm(&key, b"aad", plaintext, soon()).await.unwrap();
        assert_eq!(sealed.ciphertext.len(), plaintext.len() + 16);
        let opened = cluster.decrypt_gcm(&key, sealed.iv, b"aad", &sealed.ciphertext, soon()).await.unwrap();
        assert_eq!(opened.as_slice(), plaintext);
    }
    for (bytes, hash) in [(28, Hash::Sha224), (32, Hash::Sha256), (48, Hash::Sha384), (64, Hash::Sha512)] {
        let key = cluster.generate(id(), Material::Generic(bytes), Use::Mac, soon()).await.unwrap().key;
        let mac = cluster.mac(&key, hash, b"message", soon()).await.unwrap();
        assert_eq!(mac.len(), hash.bytes());
        assert_eq!(mac, cluster.mac(&key, hash, b"message", soon()).await.unwrap());
        assert_ne!(mac, cluster.mac(&key, hash, b"massage", soon()).await.unwrap());
    }
}

async fn signatures(cluster: &Cluster) {
    use signature::*;
    let rsa = |scheme: fn(Hash) -> Scheme, hash| (Material::Rsa(2048), scheme(hash), Some(hash));
    let ec = |curve, hash| (Material::Ec(curve), Scheme::Ecdsa, Some(hash));
    type Case = (Material, Scheme, Option<Hash>);
    let table: [(Case, &dyn VerificationAlgorithm); 11] = [
        (rsa(Scheme::RsaPss, Hash::Sha256), &RSA_PSS_2048_8192_SHA256),
        (rsa(Scheme::RsaPss, Hash::Sha384), &RSA_PSS_2048_8192_SHA384),
        (rsa(Scheme::RsaPss, Hash::Sha512), &RSA_PSS_2048_8192_SHA512),
        (rsa(Scheme::RsaPkcs1, Hash::Sha256), &RSA_PKCS1_2048_8192_SHA256),
        (rsa(Scheme::RsaPkcs1, Hash::Sha384), &RSA_PKCS1_2048_8192_SHA384),
        (rsa(Scheme::RsaPkcs1, Hash::Sha512), &RSA_PKCS1_2048_8192_SHA512),
        (ec(Curve::P256, Hash::Sha256), &ECDSA_P256_SHA256_ASN1),
        (ec(Curve::P384, Hash::Sha384), &ECDSA_P384_SHA384_ASN1),
        (ec(Curve::P521, Hash::Sha512), &ECDSA_P521_SHA512_ASN1),
        (ec(Curve::Secp256k1, Hash::Sha256), &ECDSA_P256K1_SHA256_ASN1),
        ((Material::Ed25519, Scheme::Ed25519, None), &ED25519),
    ];
    for ((material, scheme, hash), algorithm) in table {
        let made = cluster.generate(id(), material, Use::Sign, soon()).await.unwrap();
        let resident = material == Material::Ed25519;
        assert_eq!(made.key.home.is_resident(), resident, "{material:?}");
        let input = hash.map_or(b"message".to_vec(), |hash| digest(hash, b"message"));
        let made_signature = cluster.sign(&made.key, scheme, &input, soon()).await.unwrap();
        let public = UnparsedPublicKey::new(algorithm, bare(&made.public_key.unwrap()));
        assert!(public.verify(b"message", &made_signature).is_ok(), "{scheme:?} {material:?}");
        assert!(public.verify(b"massage", &made_signature).is_err());
        cluster.destroy(&made.key, soon()).await.unwrap();
        if resident {
            let gone = cluster.sign(&made.key, scheme, &input, soon()).await;
            assert!(matches!(gone, Err(HsmError::Missing(_))), "{gone:?}");
        }
    }
    assert_eq!(cluster.residence(Material::Ed25519), Some(Residence::Resident));
    assert_eq!(cluster.inventory(soon()).await.unwrap(), []);
}

async fn oaep(cluster: &Cluster) {
    for bits in [2048, 3072] {
        let made = cluster.generate(id(), Material::Rsa(bits), Use::Encrypt, soon()).await.unwrap();
        let public = rsa::PublicEncryptingKey::from_der(&made.public_key.unwrap()).unwrap();
        let public = rsa::OaepPublicEncryptingKey::new(public).unwrap();
        for (hash, algorithm) in
            [(Hash::Sha1, &rsa::OAEP_SHA1_MGF1SHA1), (Hash::Sha256, &rsa::OAEP_SHA256_MGF1SHA256)]
        {
            let mut ciphertext = vec![0; public.ciphertext_size()];
            public.encrypt(algorithm, b"secret", &mut ciphertext, None).unwrap();
            let plain = cluster.oaep_decrypt(&made.key, hash, &ciphertext, soon()).await.unwrap();
            assert_eq!(plain.as_slice(), b"secret");
            ciphertext[17] ^= 1;
            for bad in [&ciphertext[..], &ciphertext[1..], &[0xff; 256][..], &[0; 256][..], &[]] {
                let answer = cluster.oaep_decrypt(&made.key, hash, bad, soon()).await;
                assert_eq!(answer.err(), Some(HsmError::Input));
            }
        }
    }
}

async fn agreements(cluster: &Cluster) {
    for (curve, algorithm) in [
        (Curve::P256, &agreement::ECDH_P256),
        (Curve::P384, &agreement::ECDH_P384),
        (Curve::P521, &agreement::ECDH_P521),
    ] {
        let made = cluster.generate(id(), Material::Ec(curve), Use::Agree, soon()).await.unwrap();
        let point = bare(&made.public_key.unwrap());
        let peer = agreement::PrivateKey::generate(algorithm).unwrap();
        let peer_point = peer.compute_public_key().unwrap();
        let secret = cluster.agree(&made.key, peer_point.as_ref(), soon()).await.unwrap();
        let theirs = agreement::UnparsedPublicKey::new(algorithm, &point);
        agreement::agree(&peer, theirs, (), |expected| {
            assert_eq!(expected, secret.as_slice(), "{curve:?}");
            Ok(())
        })
        .unwrap();
        let mut off_curve = peer_point.as_ref().to_vec();
        *off_curve.last_mut().unwrap() ^= 1;
        for bad in [&off_curve[..], &off_curve[1..], &[], &[4]] {
            assert_eq!(cluster.agree(&made.key, bad, soon()).await.err(), Some(HsmError::Input));
        }
    }
}

async fn data_key_pairs(cluster: &Cluster) {
    for (material, algorithm) in [
        (Material::Ec(Curve::P256), &signature::ECDSA_P256_SHA256_ASN1_SIGNING),
        (Material::Ec(Curve::P384), &signature::ECDSA_P384_SHA384_ASN1_SIGNING),
        (Material::Ec(Curve::P521), &signature::ECDSA_P521_SHA512_ASN1_SIGNING),
        (Material::Ec(Curve::Secp256k1), &signature::ECDSA_P256K1_SHA256_ASN1_SIGNING),
    ] {
        use signature::KeyPair as _;
        let pair = cluster.data_key_pair(material, soon()).await.unwrap();
        let software = signature::EcdsaKeyPair::from_pkcs8(algorithm, &pair.private_key).unwrap();
        assert_eq!(software.public_key().as_ref(), bare(&pair.public_key));
    }
    use signature::KeyPair as _;
    let pair = cluster.data_key_pair(Material::Ed25519, soon()).await.unwrap();
    let software = signature::Ed25519KeyPair::from_pkcs8(&pair.private_key).unwrap();
    assert_eq!(software.public_key().as_ref(), bare(&pair.public_key));
    let pair = cluster.data_key_pair(Material::Rsa(2048), soon()).await.unwrap();
    let software = signature::RsaKeyPair::from_pkcs8(&pair.private_key).unwrap();
    assert_eq!(software.public_key().as_ref(), bare(&pair.public_key));
}

async fn daemon_keys(cluster: &Cluster) {
    let identity = cluster.identity().clone();
    let json = serde_json::to_string(&identity).unwrap();
    assert_eq!(serde_json::from_str::<ClusterIdentity>(&json).unwrap(), identity);
    let mac = cluster.mac(&identity.mac_key(), Hash::Sha256, b"row", soon()).await.unwrap();
    assert_eq!(mac.len(), 32);
    let head = digest(Hash::Sha256, b"head");
    let signed = cluster.sign(&identity.head_key(), Scheme::Ecdsa, &head, soon()).await.unwrap();
    let public = bare(&identity.head_public_key.0);
    signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, public)
        .verify(b"head", &signed)
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_the_callers_fault_and_the_member_goes_on() {
    let token = Token::new(1);
    let cluster = token.start(token.ceremony(), fast());
    let key = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key;
    let sealed = cluster.encrypt_gcm(&key, b"aad", b"secret", soon()).await.unwrap();
    let epoch = cluster.members()[0].epoch;
    for round in 0..sealed.ciphertext.len() {
        let mut bad = sealed.ciphertext.clone();
        bad[round] ^= 1;
        let answer = cluster.decrypt_gcm(&key, sealed.iv, b"aad", &bad, soon()).await;
        assert_eq!(answer.err(), Some(HsmError::Input), "byte {round}");
        let good = cluster.decrypt_gcm(&key, sealed.iv, b"aad", &sealed.ciphertext, soon()).await.unwrap();
        assert_eq!(good.as_slice(), b"secret");
    }
    let answer = cluster.decrypt_gcm(&key, sealed.iv, b"other", &sealed.ciphertext, soon()).await;
    assert_eq!(answer.err(), Some(HsmError::Input));
    let answer = cluster.decrypt_gcm(&key, sealed.iv, b"aad", &sealed.ciphertext[..15], soon()).await;
    assert_eq!(answer.err(), Some(HsmError::Input));
    assert_eq!(cluster.members()[0].epoch, epoch, "the member was not attached anew");
    cluster.shutdown().await;
}

/// Calls until told to stop; the answers that were neither right nor an honest
/// refusal.
async fn load(cluster: Arc<Cluster>, key: KeyRef, stop: Arc<std::sync::atomic::AtomicBool>) -> Vec<String> {
    let mut wrong = Vec::new();
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let answer = match cluster.encrypt_gcm(&key, b"aad", b"secret", deadline).await {
            Ok(sealed) => cluster.decrypt_gcm(&key, sealed.iv, b"aad", &sealed.ciphertext, deadline).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(plaintext) if plaintext.as_slice() == b"secret" => {}
            Err(HsmError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
            other => wrong.push(format!("{other:?}")),
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_goes_away_under_load_comes_back_by_itself() {
    let token = Token::new(1);
    let cluster = token.start(token.ceremony(), fast());
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.push(cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key);
    }
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let spawn = |key: &KeyRef| tokio::spawn(load(cluster.clone(), key.clone(), stop.clone()));
    let tasks: Vec<_> = keys.iter().map(spawn).collect();
    let mac_key = cluster.identity().mac_key();
    let before = cluster.mac(&mac_key, Hash::Sha256, b"row", soon()).await.unwrap();
    let mut epoch = cluster.members()[0].epoch;
    for _ in 0..3 {
        std::fs::rename(token.tokens(), token.away()).unwrap();
        until(&cluster, MemberState::Lost).await;
        let refused = cluster.mac(&mac_key, Hash::Sha256, b"row", soon()).await;
        assert!(matches!(refused, Err(HsmError::Unavailable(_))), "{refused:?}");
        std::fs::rename(token.away(), token.tokens()).unwrap();
        until(&cluster, MemberState::Serving).await;
        let now = cluster.members()[0].epoch;
        assert!(now > epoch, "handles of before are void");
        epoch = now;
        // A stale handle would reach another object: the MAC would be another.
        assert_eq!(cluster.mac(&mac_key, Hash::Sha256, b"row", soon()).await.unwrap(), before);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for task in tasks {
        assert_eq!(task.await.unwrap(), [] as [String; 0]);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_token_is_refused() {
    let token = Token::new(1);
    let identity = token.ceremony();
    let wiped = std::process::Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", token.configuration())
        .args(["--init-token", "--serial", &token.uri.serial, "--label", &token.uri.label])
        .args(["--so-pin", "12345678", "--pin", PIN])
        .output()
        .unwrap();
    assert!(wiped.status.success(), "{wiped:?}");
    let cluster = token.start(identity, fast());
    let reason = until(&cluster, MemberState::Refused).await;
    assert!(reason.contains("0 wrapping keys"), "{reason}");
    let refused = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await;
    assert!(matches!(refused, Err(HsmError::Unavailable(_))), "{refused:?}");
    cluster.shutdown().await;
    let listed = token.pkcs11_tool(&["--list-objects"]);
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("strongroom"), "nothing was made on it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_cluster_is_refused() {
    let (token, other) = (Token::new(1), Token::new(2));
    token.ceremony();
    let cluster = token.start(other.ceremony(), fast());
    until(&cluster, MemberState::Refused).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapping_key_with_the_right_name_and_another_value_is_refused() {
    let (token, other) = (Token::new(1), Token::new(2));
    let mut identity = token.ceremony();
    identity.test_key = other.ceremony().test_key;
    let cluster = token.start(identity, fast());
    let reason = until(&cluster, MemberState::Refused).await;
    assert!(reason.contains("test key"), "{reason}");
    cluster.shutdown().await;
}

#[test]
fn a_ceremony_is_held_once() {
    let token = Token::new(1);
    token.ceremony();
    let again = ceremony(&token.modules(), "m", &token.uri, &PIN.into());
    assert!(matches!(again, Err(HsmError::Unsupported(_))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_is_tried_once_and_again_only_when_the_operator_says_so() {
    let token = Token::new(1);
    let cluster = token.start_with_pin(token.ceremony(), fast(), "11223344".into());
    let reason = until(&cluster, MemberState::Refused).await;
    assert!(reason.contains("CKR_PIN_INCORRECT"), "{reason}");
    // Each try is an epoch.
    let epoch = cluster.members()[0].epoch;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.members()[0].state, MemberState::Refused);
    assert_eq!(cluster.members()[0].epoch, epoch, "nobody tried");
    cluster.retry_pin(&token.uri.to_string(), Some(PIN.into())).unwrap();
    until(&cluster, MemberState::Serving).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_cache_under_load_gives_right_answers_and_leaks_nothing() {
    let token = Token::new(1);
    let settings = ClusterSettings { key_cache_capacity: 2, ..fast() };
    let cluster = token.start(token.ceremony(), settings);
    let mut keys = Vec::new();
    for _ in 0..8 {
        keys.push(cluster.generate(id(), Material::Generic(32), Use::Mac, soon()).await.unwrap().key);
    }
    let mut expected = Vec::new();
    for key in &keys {
        expected.push(cluster.mac(key, Hash::Sha256, b"message", soon()).await.unwrap());
    }
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (cluster, keys, expected) = (cluster.clone(), keys.clone(), expected.clone());
            tokio::spawn(async move {
                for round in 0..200 {
                    let which = (task + round * 3) % keys.len();
                    let mac = cluster.mac(&keys[which], Hash::Sha256, b"message", soon()).await.unwrap();
                    assert_eq!(mac, expected[which]);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(cluster.members()[0].loaded_keys, 2);
    // The keeper sweeps at its next probe.
    while cluster.session_objects(soon()).await.unwrap() > 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for key in &keys {
        cluster.destroy(key, soon()).await.unwrap();
    }
    while cluster.session_objects(soon()).await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.shutdown().await;
}

/// What somebody with the PIN and the store's blobs can try.
#[tokio::test(flavor = "multi_thread")]
async fn neither_pin_nor_blob_gives_a_key_in_the_clear() {
    use cryptoki::mechanism::Mechanism;
    use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
    let token = Token::new(1);
    let cluster = token.start(token.ceremony(), fast());
    let key = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key;
    let pair = cluster.generate(id(), Material::Ec(Curve::P256), Use::Sign, soon()).await.unwrap().key;
    cluster.generate(id(), Material::Ed25519, Use::Sign, soon()).await.unwrap();
    cluster.shutdown().await;

    let path = strongroom::hsm::private_copy(&library()).unwrap();
    let pkcs11 = cryptoki::context::Pkcs11::new(path).unwrap();
    strongroom::hsm::with_environment(&token.module().environment, || {
        use cryptoki::context::{CInitializeArgs, CInitializeFlags};
        pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    });
    let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
    let session = pkcs11.open_rw_session(slot).unwrap();
    session
        .login(cryptoki::session::UserType::User, Some(&cryptoki::types::AuthPin::new(PIN.into())))
        .unwrap();

    let objects = session.find_objects(&[Attribute::Token(true), Attribute::Private(true)]).unwrap();
    assert_eq!(objects.len(), 4, "wrapping, MAC, head and Ed25519 key");
    for object in &objects {
        let values = session.get_attributes(*object, &[AttributeType::Value]).unwrap();
        assert_eq!(values, [], "CKA_VALUE was read");
        assert!(session.update_attributes(*object, &[Attribute::Sensitive(false)]).is_err());
        assert!(session.update_attributes(*object, &[Attribute::Decrypt(true)]).is_err());
        assert!(session.copy_object(*object, &[Attribute::Sensitive(false)]).is_err());
    }

    let wrapping_key =
        session.find_objects(&[Attribute::Label("strongroom wrapping key".into())]).unwrap()[0];
    for (key, class, kind) in [
        (&key, ObjectClass::SECRET_KEY, KeyType::AES),
        (&key, ObjectClass::SECRET_KEY, KeyType::GENERIC_SECRET),
        (&pair, ObjectClass::PRIVATE_KEY, KeyType::EC),
    ] {
        let Home::Wrapped { blob, .. } = &key.home else { panic!("it is wrapped") };
        let basis = vec![Attribute::Class(class), Attribute::KeyType(kind), Attribute::Token(false)];
        for demand in [
            vec![Attribute::Sensitive(false), Attribute::Extractable(true)],
            vec![Attribute::Sensitive(false)],
            vec![Attribute::Extractable(true)],
            vec![Attribute::Sensitive(true), Attribute::Extractable(true)],
            vec![Attribute::Sensitive(true), Attribute::Extractable(true), Attribute::WrapWithTrusted(true)],
            vec![Attribute::Private(false), Attribute::Sensitive(false), Attribute::Extractable(true)],
        ] {
            let template = [basis.clone(), demand.clone()].concat();
            let Ok(object) = session.unwrap_key(&Mechanism::AesKeyWrapPad, wrapping_key, blob, &template)
            else {
                continue;
            };
            assert_eq!(session.get_attributes(object, &[AttributeType::Value]).unwrap(), [], "{demand:?}");
            let mine = attackers_key(&session);
            for mechanism in [Mechanism::AesKeyWrapPad, Mechanism::AesKeyWrap] {
                assert!(session.wrap_key(&mechanism, mine, object).is_err(), "{demand:?} left under my key");
            }
        }
        assert!(session.decrypt(&Mechanism::AesEcb, wrapping_key, &blob[..32]).is_err());
    }
    let mine = attackers_key(&session);
    for object in objects {
        assert!(session.wrap_key(&Mechanism::AesKeyWrapPad, mine, object).is_err());
    }
}

/// A wrapping key whose owner can decrypt what it wraps.
fn attackers_key(session: &cryptoki::session::Session) -> cryptoki::object::ObjectHandle {
    use cryptoki::object::Attribute;
    let template = [
        Attribute::ValueLen(32.into()),
        Attribute::Token(false),
        Attribute::Wrap(true),
        Attribute::Decrypt(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    session.generate_key(&cryptoki::mechanism::Mechanism::AesKeyGen, &template).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_member_does_not_hinder_another() {
    let (token, other) = (Token::new(1), Token::new(2));
    let identity = token.ceremony();
    let settings = BTreeMap::from([("a".to_owned(), token.module()), ("b".to_owned(), other.module())]);
    let modules = Modules::new(settings, fast());
    let member = |module: &str, token: &Token| {
        let settings =
            MemberSettings { module: module.into(), token: token.uri.to_string(), pin: "crypto-user".into() };
        (settings, SecretString::from(PIN))
    };
    let members = vec![member("b", &other), member("a", &token)];
    let cluster = Cluster::start(&modules, members, identity, fast(), KeyRules::DEFAULT).unwrap();
    // The other token does not hold the cluster's keys: it is refused, the first serves.
    let key = cluster.generate(id(), Material::Aes256, Use::Encrypt, soon()).await.unwrap().key;
    cluster.encrypt_gcm(&key, b"", b"secret", soon()).await.unwrap();
    let members = cluster.members();
    assert_eq!(members[1].state, MemberState::Serving);
    assert!(cluster.capabilities().contains(&Capability::AesGcm));
    cluster.shutdown().await;
    modules.finalise();
}
