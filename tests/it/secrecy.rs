//! No secret leaves: not in the log, not in the events, the store's files or
//! the metrics, not in what a finished request leaves in memory, and not
//! through the token for somebody who has the PIN.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use strongroom::proto::kms::{self, KeySpec};

use crate::support::{Client, Daemon, Instance, KEK_BYTES, create, encrypt, import, sign, wrapped};

const SYMMETRIC: KeySpec = KeySpec::SymmetricDefault;

/// Something that must not be found, with what it is.
struct Secret {
    what: String,
    bytes: Vec<u8>,
}

/// Every secret of a run.
#[derive(Default)]
struct Secrets(Vec<Secret>);

impl Secrets {
    fn add(&mut self, what: &str, bytes: &[u8]) -> Vec<u8> {
        assert!(bytes.len() >= 16, "{what} is too short to be searched for");
        self.0.push(Secret { what: what.to_owned(), bytes: bytes.to_vec() });
        bytes.to_vec()
    }

    /// A secret that no other run has, of 48 bytes; as text, so that it would
    /// be told as text too.
    fn make(&mut self, what: &str) -> Vec<u8> {
        let mut random = [0; 18];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        self.add(what, format!("SECRET-{}-OF-", hex::encode(random)).as_bytes())
    }

    /// Where any of them is in these bytes: as it is, in hex or in base64.
    fn found_in(&self, place: &str, bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for Secret { what, bytes: secret } in &self.0 {
            // The middle of the base64 text, whatever stands before the secret.
            let base64 = |skip: usize| STANDARD.encode(&secret[skip..skip + (secret.len() - skip) / 3 * 3]);
            let debug = secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            let forms = [
                ("raw", secret.clone()),
                ("hex", hex::encode(secret).into_bytes()),
                ("HEX", hex::encode_upper(secret).into_bytes()),
                ("base64", base64(0).into_bytes()),
                ("base64 behind one byte", base64(2).into_bytes()),
                ("base64 behind two bytes", base64(1).into_bytes()),
                ("a list of numbers", debug.into_bytes()),
            ];
            for (form, needle) in forms {
                if contains(bytes, &needle) {
                    found.push(format!("{what} is in {place}, {form}"));
                }
            }
        }
        found
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let (first, rest) = needle.split_first().unwrap();
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| byte == first) {
        from += at + 1;
        if haystack[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

/// Every operation, with secrets that can be recognised.
async fn run_everything(client: &Client, secrets: &mut Secrets) {
    let key = client.create(SYMMETRIC).await.unwrap();
    let other = client.create(SYMMETRIC).await.unwrap();
    let plaintext = secrets.make("a plaintext");
    let blob = client.encrypt(&key, &plaintext).await.unwrap();
    assert_eq!(client.decrypt(&blob).await.unwrap(), plaintext);
    let request = kms::ReEncryptRequest {
        ciphertext_blob: Some(blob.clone()),
        destination_key_id: Some(other.clone()),
        ..Default::default()
    };
    client.call(request).await.unwrap();
    // Failures tell no more than successes.
    let refused = secrets.make("a refused plaintext");
    client.encrypt("alias/nobody", &refused).await.unwrap_err();
    client.call(kms::DisableKeyRequest { key_id: Some(other.clone()) }).await.unwrap();
    client.encrypt(&other, &refused).await.unwrap_err();
    let too_long = [refused.repeat(100), b"x".to_vec()].concat();
    client.encrypt(&key, &too_long).await.unwrap_err();

    let request = kms::GenerateDataKeyRequest {
        key_id: Some(key.clone()),
        number_of_bytes: Some(48),
        ..Default::default()
    };
    secrets.add("a data key", client.call(request).await.unwrap().plaintext());
    for spec in [kms::DataKeyPairSpec::Rsa2048, kms::DataKeyPairSpec::EccNistP256] {
        let request = kms::GenerateDataKeyPairRequest {
            key_id: Some(key.clone()),
            key_pair_spec: Some(spec as i32),
            ..Default::default()
        };
        let pair = client.call(request).await.unwrap();
        // The end of the DER, which the public key has not: of RSA the CRT
        // coefficient, of EC the middle of the private number.
        let private = pair.private_key_plaintext();
        let part = match spec {
            kms::DataKeyPairSpec::Rsa2048 => &private[private.len() - 64..],
            _ => &private[38..62],
        };
        assert!(!contains(pair.public_key(), part));
        secrets.add(&format!("a data key pair's {}", spec.as_str_name()), part);
    }
    let random = client.call(kms::GenerateRandomRequest { number_of_bytes: Some(64), ..Default::default() });
    secrets.add("random bytes", random.await.unwrap().plaintext());

    let message = secrets.make("a message");
    for spec in [KeySpec::Rsa2048, KeySpec::EccNistP256, KeySpec::EccNistEdwards25519] {
        let key = client.create(spec).await.unwrap();
        client.sign(&key, spec, &message).await.unwrap();
    }
    client.call(sign(&key, SYMMETRIC, &message)).await.unwrap_err();
    let rsa = kms::CreateKeyRequest {
        key_usage: Some(kms::KeyUsageType::EncryptDecrypt as i32),
        ..create(KeySpec::Rsa2048)
    };
    let rsa = client.call(rsa).await.unwrap().key_metadata.unwrap().key_id.unwrap();
    let plaintext = secrets.make("a plaintext under RSA");
    for algorithm in
        [kms::EncryptionAlgorithmSpec::RsaesOaepSha1, kms::EncryptionAlgorithmSpec::RsaesOaepSha256]
    {
        let encryption_algorithm = Some(algorithm as i32);
        let request = kms::EncryptRequest { encryption_algorithm, ..encrypt(&rsa, &plaintext) };
        let ciphertext_blob = client.call(request).await.unwrap().ciphertext_blob;
        let request = kms::DecryptRequest {
            ciphertext_blob,
            key_id: Some(rsa.clone()),
            encryption_algorithm,
            ..Default::default()
        };
        assert_eq!(client.call(request).await.unwrap().plaintext(), plaintext);
    }
    run_mac_and_agreement(client, secrets).await;
    run_imports(client, secrets).await;
}

/// Imported material, under every algorithm; where the HSM lacks a hash, and
/// of a curve, it passes through memory.
async fn run_imports(client: &Client, secrets: &mut Secrets) {
    use kms::AlgorithmSpec as A;
    for algorithm in [A::RsaesOaepSha1, A::RsaesOaepSha256, A::RsaAesKeyWrapSha1, A::RsaAesKeyWrapSha256] {
        for spec in [SYMMETRIC, KeySpec::Hmac384, KeySpec::EccNistP256] {
            let what = format!("imported {} under {}", spec.as_str_name(), algorithm.as_str_name());
            let (material, secret) = match spec {
                SYMMETRIC => (secrets.make(&what)[..32].to_vec(), 0..32),
                KeySpec::Hmac384 => ([secrets.make(&what), b"!".to_vec()].concat(), 0..47),
                // The private number is in the middle.
                _ => (new_p256_key(), 36..68),
            };
            let number = material[secret].to_vec();
            secrets.add(&what, &number);
            let mut kek = [0; KEK_BYTES];
            aws_lc_rs::rand::fill(&mut kek).unwrap();
            secrets.add(&format!("the AES key of {what}"), &kek);
            let key = client.create_external(create(spec)).await.unwrap();
            let parameters = client.parameters(&key, algorithm).await.unwrap();
            let encrypted = wrapped(algorithm, parameters.public_key(), &kek, &material);
            client.call(import(&key, &parameters, encrypted.clone())).await.unwrap();
            if spec == SYMMETRIC || spec == KeySpec::EccNistP256 {
                client.use_key(&key, spec).await.unwrap();
            }
            // Refused, it tells no more.
            let other = client.create_external(create(KeySpec::Hmac512)).await.unwrap();
            let parameters = client.parameters(&other, algorithm).await.unwrap();
            let encrypted = wrapped(algorithm, parameters.public_key(), &kek, &material);
            client.call(import(&other, &parameters, encrypted)).await.unwrap_err();
        }
    }
}

fn new_p256_key() -> Vec<u8> {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    pair.to_pkcs8v1().unwrap().as_ref().to_vec()
}

async fn run_mac_and_agreement(client: &Client, secrets: &mut Secrets) {
    let message = secrets.make("a message under HMAC");
    let key = client.create(KeySpec::Hmac256).await.unwrap();
    let mac_algorithm = Some(kms::MacAlgorithmSpec::HmacSha256 as i32);
    let request = kms::GenerateMacRequest {
        key_id: Some(key.clone()),
        message: Some(message.clone()),
        mac_algorithm,
        ..Default::default()
    };
    let mac = client.call(request).await.unwrap().mac;
    let request = kms::VerifyMacRequest {
        key_id: Some(key),
        message: Some(message),
        mac_algorithm,
        mac,
        ..Default::default()
    };
    assert_eq!(client.call(request).await.unwrap().mac_valid, Some(true));

    let agreement = kms::CreateKeyRequest {
        key_usage: Some(kms::KeyUsageType::KeyAgreement as i32),
        ..create(KeySpec::EccNistP256)
    };
    let mut keys = Vec::new();
    for _ in 0..2 {
        keys.push(client.call(agreement.clone()).await.unwrap().key_metadata.unwrap().key_id.unwrap());
    }
    let request = kms::GetPublicKeyRequest { key_id: Some(keys[0].clone()), ..Default::default() };
    let public_key = client.call(request).await.unwrap().public_key;
    let request = kms::DeriveSharedSecretRequest {
        key_id: Some(keys[1].clone()),
        key_agreement_algorithm: Some(kms::KeyAgreementAlgorithmSpec::Ecdh as i32),
        public_key,
        ..Default::default()
    };
    secrets.add("a shared secret", client.call(request).await.unwrap().shared_secret());
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push((path.display().to_string(), fs::read(&path).unwrap_or_default())),
        }
    }
    files
}

/// Bytes that are read from memory at a time.
const PIECE: usize = 1 << 20;

/// The writable memory of a process as root reads it, mapping by mapping.
fn memory(pid: u32) -> Vec<(String, Vec<u8>)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut mappings = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; (number(to) - number(from)) as usize];
        memory.seek(SeekFrom::Start(number(from))).unwrap();
        // A mapping cannot be read beyond the end of what it maps.
        let read = bytes.chunks_mut(PIECE).map_while(|piece| memory.read_exact(piece).ok()).count();
        bytes.truncate(read * PIECE);
        mappings.push((line.to_owned(), bytes));
    }
    mappings
}

async fn drained(daemon: &Daemon) {
    // Histograms, connections and threads come to rest.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(daemon.page("/livez").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_told_or_kept() {
    let mut instance = Instance::new();
    instance.set("STRONGROOM_LOG__FILTER", "trace");
    let daemon = instance.start().await;
    let mut secrets = Secrets::default();
    {
        let client = daemon.client().await;
        run_everything(&client, &mut secrets).await;
    }
    drained(&daemon).await;

    // As root: what finished requests left in memory.
    if rustix::process::geteuid().is_root() {
        let memory = memory(daemon.pid());
        let known = instance.dir().display().to_string();
        assert!(
            memory.iter().any(|(_, bytes)| contains(bytes, known.as_bytes())),
            "nothing is found in memory"
        );
        let found: Vec<String> = memory
            .iter()
            .flat_map(|(mapping, bytes)| secrets.found_in(&format!("memory {mapping}"), bytes))
            .collect();
        assert!(found.is_empty(), "left in memory:\n{}", found.join("\n"));
        // The PIN has to stay: the daemon logs in again when a token comes back.
        let pin = instance.pin();
        let copies = memory.iter().filter(|(_, bytes)| contains(bytes, pin.as_bytes()));
        eprintln!("the PIN is in {} mappings of the daemon's memory", copies.count());
    } else {
        eprintln!("the daemon's memory is not searched: only root can read it");
    }

    secrets.add("the crypto user's PIN", instance.pin().as_bytes());
    secrets.add("the security officer's PIN", &fs::read(instance.path("hsm/so.pin")).unwrap());
    let client = daemon.client().await;
    let events = client.events().await;
    assert!(events.len() > 30);
    let mut places = vec![
        ("an event".to_owned(), Value::from(events).to_string().into_bytes()),
        ("/metrics".to_owned(), daemon.page("/metrics").await.1.into_bytes()),
        ("/readyz".to_owned(), daemon.page("/readyz").await.1.into_bytes()),
    ];
    // With the journal beside the database while the daemon runs, and without it after.
    places.extend(files(&instance.path("data")));
    assert!(
        places.iter().any(|(name, bytes)| name.ends_with("-wal") && !bytes.is_empty()),
        "no journal to search"
    );
    daemon.terminate().await;
    places.extend(files(&instance.path("data")));
    let printed = instance.printed();
    assert!(
        contains(&printed, b"TRACE") && contains(&printed, b"GenerateDataKey"),
        "the log says too little"
    );
    places.push(("the log".to_owned(), printed));
    for file in ["strongroom.toml", "env"] {
        places.push((file.to_owned(), fs::read(instance.path(file)).unwrap()));
    }
    let found: Vec<String> =
        places.iter().flat_map(|(place, bytes)| secrets.found_in(place, bytes)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The search itself finds what is there.
#[test]
fn the_search_finds_every_form() {
    let mut secrets = Secrets::default();
    let secret = secrets.make("it");
    let text = |bytes: &[u8]| format!("before {} after", STANDARD.encode(bytes)).into_bytes();
    for place in [
        secret.clone(),
        hex::encode(&secret).into_bytes(),
        text(&secret),
        text(&[b"1".as_slice(), &secret].concat()),
        text(&[b"12".as_slice(), &secret].concat()),
        text(&[b"123".as_slice(), &secret].concat()),
        format!("{secret:?}").into_bytes(),
    ] {
        assert!(!secrets.found_in("here", &place).is_empty());
    }
    assert!(secrets.found_in("here", b"SECRET-").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_processes_cannot_look_in() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let of_process = |name: &str| format!("/proc/{}/{name}", daemon.pid());
    let limits = fs::read_to_string(of_process("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: who may read /proc/PID/mem is tried as root alone");
    }
    let open = format!(": < {}", of_process("mem"));
    let output = Command::new("sh").args(["-c", &open]).output().unwrap();
    assert!(output.status.success(), "root cannot read memory here: this test shows nothing");
    // Not dumpable: other processes of its own user cannot, without CAP_SYS_PTRACE.
    let own_user = vec!["--bounding-set", "-sys_ptrace", "--inh-caps", "-all", "sh", "-c", &open];
    let nobody = vec!["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", &open];
    for arguments in [own_user, nobody] {
        let output = Command::new("setpriv").args(&arguments).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(printed.contains("Permission denied"), "{arguments:?}: {output:?}");
    }
}

/// Whoever has the PIN can use the token's keys, but take none of them away,
/// nor open a blob of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pin_reads_no_key_and_opens_no_blob() {
    let instance = Instance::new();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    client.create(SYMMETRIC).await.unwrap();
    client.create(KeySpec::EccNistEdwards25519).await.unwrap();
    daemon.terminate().await;
    let token = instance.token();
    let objects = token.objects();
    assert_eq!(objects.len(), 4, "{objects:?}");
    for object in &objects {
        let class = if object.kind.starts_with("Secret") { "secrkey" } else { "privkey" };
        let file = instance.beside("read").display().to_string();
        let read =
            token.tool(&["--read-object", "--type", class, "--id", &object.id, "--output-file", &file]);
        let bytes = fs::read(&file).unwrap_or_default();
        assert!(!read.status.success() || bytes.is_empty(), "{object:?} was read: {bytes:?}");
    }

    opens_no_blob(&instance, |arguments| token.tool(arguments)).await;
    assert_eq!(token.objects(), objects);
}

/// Tries to unwrap a blob of the store on a member to what can be read.
pub async fn opens_no_blob(instance: &Instance, tool: impl Fn(&[&str]) -> Output) {
    let backing = instance.database().await.bodies("backing-key").await;
    let wrapped = backing.iter().find_map(|row| row["home"]["wrapped"].as_object()).unwrap();
    let blob = instance.beside("blob");
    fs::write(&blob, STANDARD.decode(wrapped["blob"].as_str().unwrap()).unwrap()).unwrap();
    let by = wrapped["by"].as_str().unwrap();
    let path = blob.display().to_string();
    for (key_type, option) in
        [("AES:", None), ("AES:", Some("--extractable")), ("GENERIC:", Some("--sensitive"))]
    {
        // CKM_AES_KEY_WRAP_PAD by its number: pkcs11-tool has no name for it.
        let mut arguments = vec!["--unwrap", "--mechanism", "0x210A", "--id", by, "--input-file", &path];
        arguments.extend([
            "--key-type",
            key_type,
            "--application-id",
            "7e57",
            "--application-label",
            "stolen",
        ]);
        arguments.extend(option);
        let unwrapped = tool(&arguments);
        let printed = String::from_utf8_lossy(&unwrapped.stderr).into_owned();
        // CKA_UNWRAP_TEMPLATE stands against it, not a mistake of this test.
        assert!(!unwrapped.status.success() && printed.contains("CKR_TEMPLATE_INCONSISTENT"), "{printed}");
    }
}
