//! A daemon with HSMs beside its own, of which key stores are made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use strongroom::hsm::softhsm;
use strongroom::proto::hsm::{
    CheckMemberRequest, ClusterMember, CreateClusterRequest, DescribeClustersRequest, FindingKind,
    InitializeClusterRequest, MemberState,
};
use strongroom::proto::kms::{
    ConnectCustomKeyStoreRequest, ConnectionStateType as State, CreateCustomKeyStoreRequest,
    CreateKeyRequest, CustomKeyStoresListEntry, DescribeCustomKeyStoresRequest,
    DisconnectCustomKeyStoreRequest, KeySpec, OriginType,
};

use crate::support::{Client, Daemon, Instance, Refusal, create, eventually};

/// The crypto user's PIN of the fixture's tokens.
pub const PIN: &str = "87654321";
/// Their security officer's.
const SO_PIN: &str = "12345678";

/// A SoftHSM2 of its own: DIR's `NAME`, the name of its module and PIN too.
#[derive(Clone)]
pub struct Hsm {
    pub name: &'static str,
    pub folder: PathBuf,
    pub label: String,
    pub serial: String,
    /// Whether it is behind the shim that fails as it is told.
    pub shimmed: bool,
}

impl Hsm {
    /// A copy of the build's token 1 to 4.
    pub fn of_fixture(instance: &Instance, name: &'static str, number: usize) -> Hsm {
        let from = Path::new(env!("STRONGROOM_FIXTURE_DIR")).join(number.to_string()).join("tokens");
        let folder = instance.beside(name);
        copy(&from, &folder.join("tokens"));
        let token = fs::read_dir(folder.join("tokens")).unwrap().next().unwrap().unwrap().file_name();
        // SoftHSM2's folder is a UUID; the serial is its last 16 digits.
        let digits: String = token.to_string_lossy().chars().filter(|c| *c != '-').collect();
        let serial = digits[digits.len() - 16..].to_owned();
        Hsm::with(name, folder, format!("strongroom-test-{number}"), serial)
    }

    /// A copy of another, as its vendor's backup makes it.
    pub fn copy_of(instance: &Instance, name: &'static str, other: &Hsm) -> Hsm {
        let folder = instance.beside(name);
        copy(&other.folder.join("tokens"), &folder.join("tokens"));
        Hsm::with(name, folder, other.label.clone(), other.serial.clone())
    }

    fn with(name: &'static str, folder: PathBuf, label: String, serial: String) -> Hsm {
        softhsm::write_configuration(&folder.join("softhsm2.conf"), &folder.join("tokens")).unwrap();
        Hsm { name, folder, label, serial, shimmed: false }
    }

    /// The same behind the shim, which [`Hsm::set_rules`] tells how to fail.
    pub fn behind_shim(self) -> Hsm {
        self.set_rules("");
        Hsm { shimmed: true, ..self }
    }

    /// Gives the shim other rules, at once.
    pub fn set_rules(&self, text: &str) {
        fs::write(self.folder.join("rules.new"), text).unwrap();
        fs::rename(self.folder.join("rules.new"), self.folder.join("rules")).unwrap();
    }

    /// How often a function was called that a rule logs.
    pub fn logged(&self, function: &str) -> usize {
        let log = fs::read_to_string(self.folder.join("rules.log")).unwrap_or_default();
        log.lines().filter(|line| *line == function).count()
    }

    pub fn uri(&self) -> String {
        format!("pkcs11:token={};serial={}", self.label, self.serial)
    }

    /// Takes its token folder away, or puts it back.
    pub fn unplug(&self) {
        fs::rename(self.folder.join("tokens"), self.folder.join("away")).unwrap();
        fs::create_dir(self.folder.join("tokens")).unwrap();
    }

    /// Puts the same token in place, by label, serial and PINs, without its
    /// keys.
    pub fn wipe(&self) {
        self.unplug();
        let token = fs::read_dir(self.folder.join("away")).unwrap().next().unwrap().unwrap().path();
        for entry in fs::read_dir(token).unwrap() {
            let path = entry.unwrap().path();
            if !path.file_name().unwrap().to_string_lossy().starts_with("token.") {
                fs::remove_file(path).unwrap();
            }
        }
        self.plug_in();
    }

    pub fn plug_in(&self) {
        fs::remove_dir_all(self.folder.join("tokens")).unwrap();
        fs::rename(self.folder.join("away"), self.folder.join("tokens")).unwrap();
    }

    /// Runs pkcs11-tool with the user's PIN.
    pub fn tool(&self, arguments: &[&str]) -> Output {
        Command::new("pkcs11-tool")
            .env("SOFTHSM2_CONF", self.folder.join("softhsm2.conf"))
            .arg("--module")
            .arg(softhsm::library().expect(softhsm::INSTALL_HINT))
            .args(["--token-label", &self.label, "--login", "--pin", PIN])
            .args(arguments)
            .output()
            .expect("pkcs11-tool is not installed: install OpenSC (Debian: apt-get install opensc)")
    }

    /// CKA_IDs of the keys of key stores, as their owner sees them.
    pub fn keys(&self) -> Vec<String> {
        let output = self.tool(&["--list-objects"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let (mut ids, mut ours) = (Vec::new(), false);
        for line in text.lines() {
            match line.trim().split_once(':') {
                Some(("label", label)) => ours = label.trim() == "strongroom key",
                Some(("ID", id)) if ours => ids.push(id.trim().to_owned()),
                _ => (),
            }
        }
        ids.sort();
        ids
    }

    /// What strongroom.toml says of it.
    fn configuration(&self) -> String {
        let conf = self.folder.join("softhsm2.conf");
        let pin = |name: &str, text: &str| {
            let path = self.folder.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            path
        };
        let (so_pin, pin) = (pin("so-pin", SO_PIN), pin("pin", PIN));
        let real = softhsm::library().expect(softhsm::INSTALL_HINT);
        let (library, shim) = match self.shimmed {
            true => (
                crate::hsm::shim(),
                format!(
                    "PKCS11_SHIM_MODULE = {real:?}\nPKCS11_SHIM_RULES = {:?}\n",
                    self.folder.join("rules")
                ),
            ),
            false => (real, String::new()),
        };
        let name = self.name;
        format!(
            "\n[modules.{name}]\nlibrary = {library:?}\n[modules.{name}.environment]\nSOFTHSM2_CONF = {conf:?}\n{shim}[pins.{name}]\nfile = {pin:?}\n[pins.{name}-so]\nfile = {so_pin:?}\n"
        )
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// An instance whose configuration knows these HSMs.
pub async fn instance(hsms: impl FnOnce(&Instance) -> Vec<Hsm>) -> (Instance, Vec<Hsm>) {
    let mut instance = Instance::new();
    instance.set("STRONGROOM_HSM__REINITIALIZE_INTERVAL_MS", "500");
    instance.set("STRONGROOM_HSM__PROBE_INTERVAL_MS", "200");
    let hsms = hsms(&instance);
    instance.start().await.terminate().await;
    add(&instance, &hsms);
    (instance, hsms)
}

/// Tells the configuration of HSMs; the daemon knows them after a restart.
pub fn add(instance: &Instance, hsms: &[Hsm]) {
    let path = instance.path("strongroom.toml");
    let text = fs::read_to_string(&path).unwrap();
    let more: String = hsms.iter().map(Hsm::configuration).collect();
    fs::write(path, text + &more).unwrap();
}

/// The certificate that every cluster of the tests is registered with.
pub fn anchor(instance: &Instance) -> String {
    fs::read_to_string(instance.path("pki/ca.pem")).unwrap()
}

pub fn registration(instance: &Instance, hsms: &[&Hsm]) -> CreateClusterRequest {
    let member = |hsm: &&Hsm| ClusterMember { module: Some(hsm.name.to_owned()), token: Some(hsm.uri()) };
    CreateClusterRequest {
        members: hsms.iter().map(member).collect(),
        trust_anchor_certificate: Some(anchor(instance)),
        ..Default::default()
    }
}

/// What an owner does.
pub struct Owner<'a> {
    pub instance: &'a Instance,
    pub client: Client,
}

impl Owner<'_> {
    pub async fn of<'a>(instance: &'a Instance, daemon: &Daemon) -> Owner<'a> {
        Owner { instance, client: daemon.client().await }
    }

    /// Registers a cluster.
    pub async fn register(&self, request: CreateClusterRequest) -> String {
        self.client.call(request).await.unwrap().cluster.unwrap().cluster_id.unwrap()
    }

    pub async fn initialize(&self, cluster: &str, pin: &str) -> Result<(), Refusal> {
        let request = InitializeClusterRequest {
            cluster_id: Some(cluster.to_owned()),
            pin: Some(pin.to_owned()),
            ..Default::default()
        };
        self.client.call(request).await.map(|_| ())
    }

    /// A cluster that is ready for a key store.
    pub async fn cluster(&self, hsm: &Hsm) -> String {
        let cluster = self.register(registration(self.instance, &[hsm])).await;
        self.initialize(&cluster, hsm.name).await.unwrap();
        cluster
    }

    pub fn new_store(&self, name: &str, cluster: &str) -> CreateCustomKeyStoreRequest {
        CreateCustomKeyStoreRequest {
            custom_key_store_name: Some(name.to_owned()),
            cloud_hsm_cluster_id: Some(cluster.to_owned()),
            trust_anchor_certificate: Some(anchor(self.instance)),
            key_store_password: Some(PIN.to_owned()),
            ..Default::default()
        }
    }

    pub async fn create_store(&self, name: &str, cluster: &str) -> String {
        self.client.call(self.new_store(name, cluster)).await.unwrap().custom_key_store_id.unwrap()
    }

    /// A key store that is connected.
    pub async fn connected_store(&self, name: &str, hsm: &Hsm) -> String {
        let cluster = self.cluster(hsm).await;
        let store = self.create_store(name, &cluster).await;
        self.connect(&store).await;
        store
    }

    /// A cluster of several HSMs, and a key store of it that is connected.
    pub async fn store_of(&self, name: &str, hsms: &[&Hsm]) -> (String, String) {
        let cluster = self.register(registration(self.instance, hsms)).await;
        let initialize = InitializeClusterRequest {
            cluster_id: Some(cluster.clone()),
            pin: Some(hsms[0].name.to_owned()),
            security_officer_pin: Some(format!("{}-so", hsms[0].name)),
        };
        self.client.call(initialize).await.unwrap();
        let store = self.create_store(name, &cluster).await;
        self.connect(&store).await;
        (store, cluster)
    }

    /// The states of a cluster's members.
    pub async fn states(&self, cluster: &str) -> Vec<MemberState> {
        let request = DescribeClustersRequest { cluster_id: Some(cluster.to_owned()) };
        let described = self.client.call(request).await.unwrap().clusters.remove(0);
        described.members.iter().map(|member| member.state()).collect()
    }

    /// Of how many keys one of a cluster's members has no object, or another one.
    pub async fn lacks(&self, cluster: &str, hsm: &Hsm) -> usize {
        let (mut lacks, mut marker) = (0, None);
        loop {
            let request = CheckMemberRequest {
                token: Some(hsm.uri()),
                cluster_id: Some(cluster.to_owned()),
                marker,
                ..Default::default()
            };
            let page = self.client.call(request).await.unwrap();
            lacks += page.findings.iter().filter(|finding| finding.kind() != FindingKind::Orphan).count();
            marker = page.next_marker;
            if marker.is_none() {
                return lacks;
            }
        }
    }

    pub async fn begin_to_connect(&self, store: &str) -> Result<(), Refusal> {
        let request = ConnectCustomKeyStoreRequest { custom_key_store_id: Some(store.to_owned()) };
        self.client.call(request).await.map(|_| ())
    }

    pub async fn connect(&self, store: &str) {
        self.begin_to_connect(store).await.unwrap();
        self.reaches(store, State::Connected).await;
    }

    pub async fn begin_to_disconnect(&self, store: &str) -> Result<(), Refusal> {
        let request = DisconnectCustomKeyStoreRequest { custom_key_store_id: Some(store.to_owned()) };
        self.client.call(request).await.map(|_| ())
    }

    pub async fn disconnect(&self, store: &str) {
        self.begin_to_disconnect(store).await.unwrap();
        self.reaches(store, State::Disconnected).await;
    }

    /// Waits until a key store is in a state: its description then.
    pub async fn reaches(&self, store: &str, state: State) -> CustomKeyStoresListEntry {
        let mut seen = None;
        eventually(&format!("{store} is {state:?}"), async || {
            let entry = self.describe(store).await;
            let is = entry.connection_state();
            let failed = (is, state) == (State::Failed, State::Connected);
            assert!(!failed, "{:?}", entry.connection_error_code());
            seen = Some(entry);
            is == state
        })
        .await;
        seen.unwrap()
    }

    pub async fn describe(&self, store: &str) -> CustomKeyStoresListEntry {
        let request = DescribeCustomKeyStoresRequest {
            custom_key_store_id: Some(store.to_owned()),
            ..Default::default()
        };
        self.client.call(request).await.unwrap().custom_key_stores.remove(0)
    }

    /// Makes a key in a key store.
    pub async fn key(&self, store: &str, spec: KeySpec) -> Result<String, Refusal> {
        let answer = self.client.call(key_in(store, spec)).await?;
        Ok(answer.key_metadata.unwrap().key_id.unwrap())
    }
}

pub fn key_in(store: &str, spec: KeySpec) -> CreateKeyRequest {
    CreateKeyRequest {
        custom_key_store_id: Some(store.to_owned()),
        origin: Some(OriginType::AwsCloudhsm as i32),
        ..create(spec)
    }
}

/// `strongroom hsm bring` from one to another.
pub fn bring(instance: &Instance, from: &Hsm, to: &Hsm) {
    let config = instance.path("strongroom.toml");
    let so_pin = from.folder.join("so-pin");
    let brought = instance.cli(&[
        "hsm",
        "bring",
        "--config",
        config.to_str().unwrap(),
        "--from",
        &from.uri(),
        "--from-module",
        from.name,
        "--from-pin",
        from.name,
        "--to",
        &to.uri(),
        "--to-module",
        to.name,
        "--to-pin",
        to.name,
        "--so-pin-file",
        so_pin.to_str().unwrap(),
    ]);
    assert!(brought.status.success(), "{brought:?}");
}
