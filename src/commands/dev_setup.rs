//! The folder of `strongroom dev`: everything that an instance needs, made
//! from nothing, and used again the next time.
//!
//! ```text
//! DIR/.strongroom-dev     says that the folder is ours
//! DIR/pki/                CA, server's and administrator's certificates
//! DIR/hsm/1/              SoftHSM2's token, with softhsm2.conf, PINs, serial
//! DIR/hsm/2/              that of the second HSM; the rest of it is in DIR/hsm/member-2/
//! DIR/key-store/1/        a second HSM, for a custom key store to be made of
//! DIR/aws/                the administrator's access key
//! DIR/strongroom.toml     the configuration
//! DIR/data/               the store
//! DIR/strongroom.sock     gRPC for the user who started it
//! DIR/env                 a shell file for clients
//! ```
//!
//! INVARIANT: `pki`, `hsm`, `key-store` and `aws` are made under another name and renamed when they
//! are complete, so a folder that is there is whole, and nothing that a key may
//! depend on is ever made a second time.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use toml_edit::DocumentMut;

use super::access_key::{AccessKey, SECRET_FILE};
use super::dev_hsms::{DevMember, make_members, make_token, token_uri};
use super::template::{ADMINISTRATOR, Template};
use crate::config::{
    AccountId, AwsSettings, GrpcSettings, HttpSettings, SOCKET_PATH_BYTES_MAX, check_region,
};
use crate::pki::{self, Ca};

/// The token's label.
pub const TOKEN_LABEL: &str = "strongroom-dev";
/// The label of the token for a custom key store.
pub const KEY_STORE_LABEL: &str = "strongroom-dev-key-store";
/// Its folder, and the name of its module and of its crypto user's PIN.
pub const KEY_STORE: &str = "key-store";
/// The name of `[modules]`.
pub const MODULE: &str = "softhsm2";
/// The name of `[pins]` of the crypto user.
pub const USER_PIN: &str = "crypto-user";
/// The name of `[pins]` of the security officer.
pub const SO_PIN: &str = "security-officer";

const MARKER: &str = ".strongroom-dev";
const DEFAULT_ACCOUNT: &str = "111122223333";
const DEFAULT_REGION: &str = "us-east-1";

/// What `strongroom dev` was told; what it was not told stays as it is in DIR,
/// or has the default.
#[derive(Debug, Clone, Default)]
pub struct DevOptions {
    /// `--grpc`.
    pub grpc: Option<SocketAddr>,
    /// `--aws`.
    pub aws: Option<SocketAddr>,
    /// `--http`.
    pub http: Option<SocketAddr>,
    /// `--account-id`; cannot change later.
    pub account_id: Option<String>,
    /// `--region`; cannot change later.
    pub region: Option<String>,
    /// `--members`; what DIR has more stays.
    pub members: Option<u16>,
    /// The others of `--regions`; more may come later.
    pub further_regions: Vec<String>,
}

/// What this module needs of SoftHSM2.
pub trait SoftHsm {
    /// The library; an error says what to install.
    fn locate(&self) -> anyhow::Result<PathBuf>;

    /// Writes `FOLDER/softhsm2.conf` for tokens in `tokens`, over an old one.
    fn write_conf(&self, folder: &Path, tokens: &Path) -> anyhow::Result<PathBuf>;

    /// Initialises a token in the empty folder that the conf names, and gives
    /// its serial. The library is finalised when it returns: the folder moves.
    fn init_token(
        &self,
        library: &Path,
        conf: &Path,
        label: &str,
        so_pin: &SecretString,
        pin: &SecretString,
    ) -> anyhow::Result<String>;
}

/// A prepared folder.
#[derive(Debug, Clone)]
pub struct DevInstance {
    /// DIR, absolute.
    pub dir: PathBuf,
    /// `DIR/strongroom.toml`.
    pub config: PathBuf,
    /// The token's serial; its label is [`TOKEN_LABEL`], its module
    /// [`MODULE`], its PIN [`USER_PIN`].
    pub token_serial: String,
    /// Whether [`DevInstance::mark_initialized`] was never called: the
    /// wrapping key's ceremony is still to be done.
    pub needs_ceremony: bool,
    /// Whether the token was made just now: no ceremony was held on it.
    pub token_is_new: bool,
    /// The HSMs besides.
    pub others: Vec<DevMember>,
    /// The administrator's access key.
    pub access_key: AccessKey,
}

impl DevInstance {
    /// The RFC 7512 URI of the token.
    pub fn token_uri(&self) -> String {
        token_uri(TOKEN_LABEL, &self.token_serial)
    }

    /// Remembers that the wrapping key is made and known to the store.
    pub fn mark_initialized(&self) -> anyhow::Result<()> {
        replace(&self.dir.join("hsm/initialized"), b"", 0o600)
    }

    /// Has [`prepare`] make another token. Only for one whose keys no store
    /// knows.
    pub fn discard_token(&self) -> anyhow::Result<()> {
        let hsm = self.dir.join("hsm");
        let discarded = unfinished(&hsm);
        if discarded.exists() {
            fs::remove_dir_all(&discarded)?;
        }
        fs::rename(&hsm, &discarded).with_context(|| hsm.display().to_string())
    }
}

/// Makes DIR, or goes on with one that was made before.
pub fn prepare(dir: &Path, options: &DevOptions, softhsm: &dyn SoftHsm) -> anyhow::Result<DevInstance> {
    if let Some(id) = &options.account_id {
        AccountId::try_from(id.clone()).map_err(|text| anyhow::anyhow!("--account-id: {text}"))?;
    }
    for region in options.region.iter().chain(&options.further_regions) {
        check_region(region).map_err(|text| anyhow::anyhow!("--region: {region} {text}"))?;
    }
    let library = softhsm.locate()?;
    let dir = claim(dir)?;
    let config = dir.join("strongroom.toml");
    let before = read_configuration(&config)?;
    if let Some(before) = &before {
        check_unchanged(before, options, &dir)?;
    }

    make_pki(&dir, options)?;
    let token_is_new = !dir.join("hsm").exists();
    let token_serial = make_token(&dir.join("hsm"), "1", TOKEN_LABEL, &library, softhsm)?;
    make_token(&dir.join(KEY_STORE), "1", KEY_STORE_LABEL, &library, softhsm)?;
    let others = make_members(&dir.join("hsm"), options.members, &library, softhsm)?;
    make_whole(&dir.join("aws"), |folder| AccessKey::new()?.write(folder))?;
    let access_key = AccessKey::read(&dir.join("aws"))?;
    let first = match before {
        None => first_configuration(&dir, options, &library, &access_key).parse()?,
        Some(before) => before,
    };
    let text = update(first, options, &dir, &library, softhsm, &access_key, &others)?;
    replace(&config, text.as_bytes(), 0o600)?;
    let needs_ceremony = !dir.join("hsm/initialized").exists();
    Ok(DevInstance { dir, config, token_serial, needs_ceremony, token_is_new, others, access_key })
}

/// The AWS endpoint that `DIR/env` tells of.
#[derive(Debug, Clone)]
pub struct AwsEndpoint<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it has no TLS.
    pub plaintext: bool,
    /// Whose requests are the administrator's.
    pub access_key: &'a AccessKey,
}

/// Writes `DIR/env` when the listeners are bound and their ports known.
pub fn write_env(
    dir: &Path,
    region: &str,
    grpc: SocketAddr,
    aws: &AwsEndpoint<'_>,
) -> anyhow::Result<PathBuf> {
    let dir = fs::canonicalize(dir)?;
    let pki = |name: String| dir.join("pki").join(name).to_string_lossy().into_owned();
    let mut variables = vec![
        ("STRONGROOM_ENDPOINT", format!("https://{}", reachable(grpc))),
        ("STRONGROOM_CA", pki("ca.pem".into())),
        ("STRONGROOM_CERT", pki(format!("{ADMINISTRATOR}.pem"))),
        ("STRONGROOM_KEY", pki(format!("{ADMINISTRATOR}.key"))),
    ];
    let scheme = if aws.plaintext { "http" } else { "https" };
    variables.push(("AWS_ENDPOINT_URL", format!("{scheme}://{}", reachable(aws.address))));
    if !aws.plaintext {
        variables.push(("AWS_CA_BUNDLE", pki("ca.pem".into())));
    }
    variables.push(("AWS_ACCESS_KEY_ID", aws.access_key.id.clone()));
    variables.push(("AWS_SECRET_ACCESS_KEY", aws.access_key.secret.expose_secret().to_owned()));
    variables.push(("AWS_REGION", region.to_owned()));
    variables.push(("AWS_DEFAULT_REGION", region.to_owned()));
    let text: String = variables
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', "'\\''")))
        .collect();
    let path = dir.join("env");
    replace(&path, text.as_bytes(), 0o600)?;
    Ok(path)
}

/// Makes the folder, or checks that it is empty or was made by us.
fn claim(dir: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("{} cannot be used", dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(context)?;
    let dir = fs::canonicalize(dir).with_context(context)?;
    let marker = dir.join(MARKER);
    if !marker.exists() {
        // A first start that was killed while it wrote the marker left half of it.
        let is_half = |path: &Path| path == unfinished_file(&marker);
        let mut entries = fs::read_dir(&dir).with_context(context)?;
        if entries.any(|entry| entry.map_or(true, |entry| !is_half(&entry.path()))) {
            bail!(
                "{} is not empty and was not made by `strongroom dev`; give another with --dir",
                dir.display()
            );
        }
        replace(&marker, b"This folder was made by `strongroom dev`.\n", 0o600)?;
    }
    Ok(dir)
}

fn read_configuration(path: &Path) -> anyhow::Result<Option<DocumentMut>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.parse().with_context(|| path.display().to_string())?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn check_unchanged(before: &DocumentMut, options: &DevOptions, dir: &Path) -> anyhow::Result<()> {
    let account =
        before.get("accounts").and_then(|accounts| accounts.get(0)).and_then(|first| first.get("id"));
    let fixed =
        [("--account-id", account, &options.account_id), ("--region", before.get("region"), &options.region)];
    for (flag, old, new) in fixed {
        let old = old.and_then(toml_edit::Item::as_str);
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            bail!("{flag}: {} was made for {old}, not {new}; give another folder with --dir", dir.display());
        }
    }
    Ok(())
}

fn make_pki(dir: &Path, options: &DevOptions) -> anyhow::Result<()> {
    make_whole(&dir.join("pki"), |folder| {
        let listens = [options.grpc, options.aws].into_iter().flatten().map(|address| address.ip());
        let names: Vec<String> = listens.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()).collect();
        let ca = Ca::new("Strongroom dev CA")?;
        ca.identity().write(folder, "ca")?;
        ca.server(&names)?.write(folder, "server")?;
        ca.client(account(options), ADMINISTRATOR)?.write(folder, ADMINISTRATOR)?;
        Ok(())
    })
}

/// Makes a folder where there is none, completely or not at all.
pub(super) fn make_whole(
    folder: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let unfinished = unfinished(folder);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    DirBuilder::new().mode(0o700).create(&unfinished)?;
    fill(&unfinished).with_context(|| format!("{} cannot be made", folder.display()))?;
    fs::rename(&unfinished, folder)?;
    sync_parent(folder)
}

/// What a folder is called until it is complete.
fn unfinished(folder: &Path) -> PathBuf {
    folder.with_extension("new")
}

fn account(options: &DevOptions) -> &str {
    options.account_id.as_deref().unwrap_or(DEFAULT_ACCOUNT)
}

fn first_configuration(dir: &Path, options: &DevOptions, library: &Path, access_key: &AccessKey) -> String {
    // A longer path cannot be a socket's; TCP alone has to do then.
    let socket = dir.join("strongroom.sock").as_os_str().as_bytes().len() <= SOCKET_PATH_BYTES_MAX;
    let aws = options.aws.unwrap_or(AwsSettings::default().address);
    Template {
        title: "Strongroom's configuration, made by `strongroom dev`: for development, not for production.",
        region: options.region.as_deref().unwrap_or(DEFAULT_REGION),
        data_dir: Path::new("data"),
        grpc: options.grpc.unwrap_or(GrpcSettings::default().address),
        aws,
        aws_plaintext: aws.ip().is_loopback(),
        http: options.http.unwrap_or(HttpSettings::default().address),
        unix_socket: socket.then_some(Path::new("strongroom.sock")),
        module: MODULE,
        library,
        environment: BTreeMap::new(),
        pins: &[(USER_PIN, "hsm/user.pin"), (SO_PIN, "hsm/so.pin"), (KEY_STORE, "key-store/user.pin")],
        account: account(options),
        access_key: (&access_key.id, &secret_file()),
        uid: Some(rustix::process::getuid().as_raw()),
    }
    .text()
}

/// Relative to the configuration.
fn secret_file() -> String {
    format!("aws/{SECRET_FILE}")
}

/// The same file with the addresses that were given, with this folder's and
/// this library's path should they have moved, and with every HSM; with an
/// access key, should an older version have made it.
fn update(
    mut file: DocumentMut,
    options: &DevOptions,
    dir: &Path,
    library: &Path,
    softhsm: &dyn SoftHsm,
    access_key: &AccessKey,
    others: &[DevMember],
) -> anyhow::Result<String> {
    let addresses = [("grpc", options.grpc), ("aws", options.aws), ("http", options.http)];
    for (section, address) in addresses {
        if let Some(address) = address {
            set(&mut file, &[section, "address"], &address.to_string())?;
        }
    }
    for region in &options.further_regions {
        add_region(&mut file, region)?;
    }
    set_plaintext(&mut file);
    add_access_key(&mut file, access_key);
    let first = [(MODULE.to_owned(), dir.join("hsm")), (KEY_STORE.to_owned(), dir.join(KEY_STORE))];
    let modules = first.into_iter().map(|(module, folder)| (module, folder.join("1"), folder));
    let others_modules =
        others.iter().map(|member| (member.module.clone(), member.tokens.clone(), member.folder.clone()));
    for (module, tokens, folder) in modules.chain(others_modules) {
        let conf = softhsm.write_conf(&folder, &tokens)?;
        set(&mut file, &["modules", &module, "library"], &library.to_string_lossy())?;
        set(&mut file, &["modules", &module, "environment", "SOFTHSM2_CONF"], &conf.to_string_lossy())?;
    }
    set(&mut file, &["pins", KEY_STORE, "file"], "key-store/user.pin")?;
    for member in others {
        let pin = member.folder.join("user.pin");
        let pin = pin.strip_prefix(dir).unwrap_or(&pin).to_string_lossy().into_owned();
        set(&mut file, &["pins", &member.pin, "file"], &pin)?;
    }
    Ok(file.to_string())
}

fn set(file: &mut DocumentMut, path: &[&str], text: &str) -> anyhow::Result<()> {
    let mut item = file.as_item_mut();
    for step in path {
        let key = path.join(".");
        let table = item
            .as_table_like_mut()
            .with_context(|| format!("strongroom.toml: {key} is not in a section"))?;
        item = table.entry(step).or_insert_with(toml_edit::table);
    }
    if item.as_str() != Some(text) {
        *item = toml_edit::value(text);
    }
    Ok(())
}

/// A further Region on the same HSM.
fn add_region(file: &mut DocumentMut, name: &str) -> anyhow::Result<()> {
    let implicit = || {
        let mut table = toml_edit::Table::new();
        table.set_implicit(true);
        toml_edit::Item::Table(table)
    };
    let regions = file.as_table_mut().entry("regions").or_insert_with(implicit);
    let regions = regions.as_table_like_mut().context("strongroom.toml: regions is not a section")?;
    regions.entry(name).or_insert_with(toml_edit::table);
    Ok(())
}

/// What stays on this host needs no TLS, and clients then no CA.
fn set_plaintext(file: &mut DocumentMut) {
    let Some(aws) = file.get_mut("aws").and_then(toml_edit::Item::as_table_like_mut) else { return };
    let address = aws.get("address").and_then(toml_edit::Item::as_str);
    let Some(Ok(address)) = address.map(str::parse::<SocketAddr>) else { return };
    let loopback = address.ip().is_loopback();
    if aws.get("plaintext").and_then(toml_edit::Item::as_bool).unwrap_or(false) != loopback {
        aws.insert("plaintext", toml_edit::value(loopback));
    }
}

fn add_access_key(file: &mut DocumentMut, access_key: &AccessKey) {
    let principals = file
        .get_mut("accounts")
        .and_then(|accounts| accounts.get_mut(0))
        .and_then(|a| a.get_mut("principals"));
    let Some(principals) = principals.and_then(toml_edit::Item::as_array_of_tables_mut) else { return };
    let administrator = |table: &&mut toml_edit::Table| {
        table.get("name").and_then(toml_edit::Item::as_str) == Some(ADMINISTRATOR)
    };
    let Some(administrator) = principals.iter_mut().find(administrator) else { return };
    if !administrator.contains_key("access_keys") {
        let mut key = toml_edit::InlineTable::new();
        key.insert("id", access_key.id.as_str().into());
        key.insert("secret_file", secret_file().into());
        administrator.insert("access_keys", toml_edit::value(toml_edit::Array::from_iter([key])));
    }
}

/// An address that a client of this host can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Writes a file so that its name always means a whole one.
pub(super) fn replace(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    let new = unfinished_file(path);
    if new.exists() {
        fs::remove_file(&new)?;
    }
    pki::write_new(&new, contents, mode)?;
    fs::rename(&new, path).with_context(|| path.display().to_string())?;
    sync_parent(path)
}

/// What a file is called until it is complete.
fn unfinished_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

pub(super) fn sync_parent(path: &Path) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}
