//! `strongroom hsm backup`: a cluster's wrapping key in the hands of several
//! custodians, and back onto a new HSM. As with `hsm bring` the security
//! officer's PIN is never the daemon's; a custodian's part needs neither a
//! configuration nor an HSM.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::hsm_bring::{access, on_record, secret, so_pin};
use crate::audit::beside::Deed;
use crate::config::{Config, Flags};
use crate::hsm::backup::custodian::{PrivateKey, contribute};
use crate::hsm::backup::{
    Backup, BackupError, Contribution, Fingerprint, Plan, Request, RsaPublicKey, SealedRow, back_up,
    request_restore, restore,
};
use crate::hsm::{ClusterIdentity, Modules, TokenAccess};
use crate::identity::Installation;
use crate::key_stores::rows::RegisteredCluster;
use crate::store::{Kind, Row, sqlite};

/// Most bytes of a file that is read.
const FILE_BYTES_MAX: u64 = 2 << 20;

/// The commands of `strongroom hsm backup`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum HsmBackupCommand {
    /// Back a wrapping key up, so that any M of N custodians restore it.
    Create(CreateArgs),
    /// Show what a backup is, and check it.
    Show(ShowArgs),
    /// Have a new HSM ask the custodians for a backup's key.
    Request(RequestArgs),
    /// As a custodian, answer a request; needs no HSM and no daemon.
    Contribute(ContributeArgs),
    /// Restore the key to the HSM that made the request.
    Restore(RestoreArgs),
}

/// A token and who logs in to it.
#[derive(Debug, Clone, clap::Args)]
pub struct TokenArgs {
    /// The configuration file.
    #[arg(long, env = "STRONGROOM_CONFIG", default_value = "/etc/strongroom/strongroom.toml")]
    config: PathBuf,
    /// The token: its RFC 7512 URI, `pkcs11:token=LABEL;serial=SERIAL`.
    #[arg(long)]
    token: String,
    /// Its module, a name of [modules]; needed where there are several.
    #[arg(long)]
    module: Option<String>,
    /// Its crypto user's PIN, a name of [pins]; needed where there are several.
    #[arg(long)]
    pin: Option<String>,
}

/// The options of `create`.
#[derive(Debug, Clone, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    token: TokenArgs,
    /// A file with the PIN of its security officer; asked for at the terminal
    /// without it.
    #[arg(long)]
    so_pin_file: Option<PathBuf>,
    /// A custodian: NAME=FILE, an RSA public key of at least 3072 bits in PEM.
    /// Once for each, 2 to 10.
    #[arg(long = "custodian", required = true, value_name = "NAME=FILE", value_parser = named_file)]
    custodians: Vec<(String, PathBuf)>,
    /// How many of them restore the key; at least 2.
    #[arg(long)]
    threshold: usize,
    /// The file to write; it must not be there yet.
    #[arg(long)]
    out: PathBuf,
}

/// The options of `show`.
#[derive(Debug, Clone, clap::Args)]
pub struct ShowArgs {
    /// The backup.
    #[arg(long)]
    backup: PathBuf,
}

/// The options of `request`.
#[derive(Debug, Clone, clap::Args)]
pub struct RequestArgs {
    #[command(flatten)]
    token: TokenArgs,
    /// A file with the PIN of its security officer; asked for at the terminal
    /// without it.
    #[arg(long)]
    so_pin_file: Option<PathBuf>,
    /// The backup.
    #[arg(long)]
    backup: PathBuf,
    /// The file to write, for the custodians; it must not be there yet.
    #[arg(long)]
    out: PathBuf,
}

/// The options of `contribute`.
#[derive(Debug, Clone, clap::Args)]
pub struct ContributeArgs {
    /// The backup.
    #[arg(long)]
    backup: PathBuf,
    /// The request.
    #[arg(long)]
    request: PathBuf,
    /// The request's fingerprint, as those who stand before the new HSM told you
    /// by another way than the file came.
    #[arg(long)]
    fingerprint: Fingerprint,
    /// Your private key: PKCS #8 in PEM.
    #[arg(long)]
    key: PathBuf,
    /// A file with its passphrase; asked for at the terminal without it.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
    /// The file to write, for those who restore; it must not be there yet.
    #[arg(long)]
    out: PathBuf,
}

/// The options of `restore`.
#[derive(Debug, Clone, clap::Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    token: TokenArgs,
    /// The backup.
    #[arg(long)]
    backup: PathBuf,
    /// The request that the token made.
    #[arg(long)]
    request: PathBuf,
    /// A custodian's contribution; once for each.
    #[arg(long = "contribution", required = true)]
    contributions: Vec<PathBuf>,
}

/// Runs one. The daemon may run.
pub fn run(command: &HsmBackupCommand) -> anyhow::Result<ExitCode> {
    crate::hardening::harden();
    match command {
        HsmBackupCommand::Create(args) => run_create(args),
        HsmBackupCommand::Show(args) => {
            describe(&Backup::read(&read(&args.backup)?)?)?;
            Ok(())
        }
        HsmBackupCommand::Request(args) => run_request(args),
        HsmBackupCommand::Contribute(args) => run_contribute(args),
        HsmBackupCommand::Restore(args) => run_restore(args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn run_create(args: &CreateArgs) -> anyhow::Result<()> {
    let key = |(name, file): &(String, PathBuf)| {
        let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let key = RsaPublicKey::from_pem(&text).with_context(|| file.display().to_string())?;
        anyhow::Ok((name.clone(), key))
    };
    let plan = Plan {
        custodians: args.custodians.iter().map(key).collect::<anyhow::Result<_>>()?,
        threshold: args.threshold,
        made: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    };
    let at = Place::open(&args.token)?;
    let known = known_clusters(&at.config)?;
    let known: Vec<ClusterIdentity> = known.into_iter().map(|(cluster, _)| cluster).collect();
    ensure!(!known.is_empty(), "{} has had no ceremony", at.config.data_dir.display());
    let so_pin = so_pin(&args.so_pin_file, &args.token.token)?;
    let custodian =
        |(name, key): &(String, RsaPublicKey)| json!({ "name": name, "fingerprint": key.fingerprint() });
    let custodians: Vec<Value> = plan.custodians.iter().map(custodian).collect();
    let details = json!({ "custodians": custodians, "threshold": plan.threshold });
    let backup = at.on_record(Deed::BackUpWrappingKey, details, || {
        let (backup, file) = at.with(|modules, token| back_up(modules, token, &so_pin, &plan, &known))?;
        write_new(&args.out, &file)?;
        let told = about(&backup)?;
        Ok((backup, told))
    })?;
    describe(&backup)
}

fn run_request(args: &RequestArgs) -> anyhow::Result<()> {
    let backup = Backup::read(&read(&args.backup)?)?;
    let at = Place::open(&args.token)?;
    let so_pin = so_pin(&args.so_pin_file, &args.token.token)?;
    let request = at.on_record(Deed::RequestWrappingKey, about(&backup)?, || {
        let request = at.with(|modules, token| request_restore(modules, token, &so_pin, &backup))?;
        write_new(&args.out, &request.file()?)?;
        let told = json!({ "requestFingerprint": request.fingerprint()? });
        Ok((request, told))
    })?;
    println!(
        "Send the backup and {} to {} custodians, and tell each by another way",
        args.out.display(),
        backup.threshold
    );
    println!("the fingerprint of the request:");
    println!("{}", request.fingerprint()?);
    Ok(())
}

fn run_contribute(args: &ContributeArgs) -> anyhow::Result<()> {
    let backup = Backup::read(&read(&args.backup)?)?;
    let request = Request::read(&read(&args.request)?)?;
    let pem = Zeroizing::new(read(&args.key)?);
    let pem = std::str::from_utf8(&pem).with_context(|| format!("{} is no PEM", args.key.display()))?;
    let passphrase = || {
        secret(&args.passphrase_file, &format!("Passphrase of {}: ", args.key.display()))
            .map_err(|error| BackupError::Refused(format!("the passphrase: {error:#}")))
    };
    let key = PrivateKey::from_pem(pem, passphrase).with_context(|| args.key.display().to_string())?;
    let contribution = contribute(&backup, &request, args.fingerprint, &key)?;
    write_new(&args.out, &contribution.file()?)?;
    println!(
        "{}'s key for backup {} is in {}, for {} only.",
        contribution.custodian,
        backup.id,
        args.out.display(),
        printable(&request.token)
    );
    Ok(())
}

fn run_restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let backup = Backup::read(&read(&args.backup)?)?;
    let request = Request::read(&read(&args.request)?)?;
    let contribution =
        |file: &PathBuf| Contribution::read(&read(file)?).with_context(|| file.display().to_string());
    let contributions = args.contributions.iter().map(contribution).collect::<anyhow::Result<Vec<_>>>()?;
    let at = Place::open(&args.token)?;
    let row = sealed_row(&at.config, &backup.cluster)?;
    let custodians: Vec<&str> = contributions.iter().map(|one| one.custodian.as_str()).collect();
    let more = json!({ "requestFingerprint": request.fingerprint()?, "custodians": custodians });
    let details = joined(about(&backup)?, more);
    let id = at.on_record(Deed::RestoreWrappingKey, details, || {
        let id = at.with(|modules, token| {
            restore(modules, token, &backup, &request, &contributions, row.as_ref())
        })?;
        Ok((id, json!({})))
    })?;
    println!("{} has the wrapping key {id}.", at.token.token);
    println!("Where it is no member yet, next:");
    println!(
        "strongroom hsm member add --token '{}' --module {} --pin NAME",
        at.token.token, at.token.module
    );
    Ok(())
}

/// A token, and the modules of this process.
struct Place {
    config: Config,
    token: TokenAccess,
}

impl Place {
    fn open(args: &TokenArgs) -> anyhow::Result<Place> {
        let config = Config::load(Some(&args.config), &Flags::new())?.config;
        let token = access(&config, &args.token, &args.module, &args.pin, "")?;
        Ok(Place { config, token })
    }

    fn with<T>(
        &self,
        step: impl FnOnce(&Modules, &TokenAccess) -> Result<T, BackupError>,
    ) -> anyhow::Result<T> {
        let modules = Modules::new(self.config.modules.clone(), self.config.hsm.clone());
        let done = step(&modules, &self.token);
        modules.finalise();
        Ok(done?)
    }

    /// Does something with the token that goes on the record.
    fn on_record<T>(
        &self,
        deed: Deed,
        details: Value,
        what: impl FnOnce() -> anyhow::Result<(T, Value)>,
    ) -> anyhow::Result<T> {
        let token = json!({ "token": self.token.token.to_string(), "module": self.token.module });
        on_record(&self.config, deed, joined(details, token), what)
    }
}

/// What the record tells of a backup.
fn about(backup: &Backup) -> anyhow::Result<Value> {
    Ok(json!({
        "backup": backup.id.to_string(),
        "fingerprint": backup.fingerprint()?,
        "wrappingKey": backup.cluster.wrapping_key.to_string(),
    }))
}

/// The members of both.
fn joined(details: Value, more: Value) -> Value {
    match (details, more) {
        (Value::Object(details), Value::Object(more)) => details.into_iter().chain(more).collect(),
        (details, _) => details,
    }
}

/// The clusters that the data folder knows; with the installation's its row.
fn known_clusters(config: &Config) -> anyhow::Result<Vec<(ClusterIdentity, Option<Row>)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let peek = |kind| anyhow::Ok(runtime.block_on(sqlite::peek(&config.data_dir, kind))?.unwrap_or_default());
    let mut known = Vec::new();
    for row in peek(Kind::System)? {
        // A row of another id is none.
        if let Ok(installation) = serde_json::from_str::<Installation>(&row.body) {
            known.push((installation.cluster().clone(), Some(row)));
        }
    }
    for row in peek(Kind::Cluster)? {
        let cluster: RegisteredCluster =
            serde_json::from_str(&row.body).with_context(|| format!("row {} cannot be read", row.id))?;
        known.extend(cluster.identity.map(|identity| (identity, None)));
    }
    Ok(known)
}

/// A row of the store that shows that a key is the cluster's; none where the
/// store is lost too, or the cluster is not the installation's.
fn sealed_row(config: &Config, cluster: &ClusterIdentity) -> anyhow::Result<Option<SealedRow>> {
    let known = known_clusters(config)?;
    if known.is_empty() {
        println!("{} knows no cluster: the key is not compared with a store.", config.data_dir.display());
        return Ok(None);
    }
    match known.into_iter().find(|(known, _)| known.wrapping_key == cluster.wrapping_key) {
        None => {
            bail!("the backup is of the wrapping key {}, which the store does not know", cluster.wrapping_key)
        }
        Some((known, _)) if known != *cluster => {
            bail!("the backup and the store differ about the cluster of {}", cluster.wrapping_key)
        }
        Some((_, row)) => Ok(row.map(|row| SealedRow { message: row.mac_input(), mac: row.mac })),
    }
}

fn describe(backup: &Backup) -> anyhow::Result<()> {
    println!("backup       {}", backup.id);
    println!("made         {}", printable(&backup.made));
    println!("wrapping key {}", backup.cluster.wrapping_key);
    println!("fingerprint  {}", backup.fingerprint()?);
    println!("custodians   any {} of {}", backup.threshold, backup.custodians.len());
    for custodian in &backup.custodians {
        println!("  {}  {}", custodian.public_key.fingerprint(), custodian.name);
    }
    Ok(())
}

/// What a file says does not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("a custodian is NAME=FILE")?;
    Ok((name.to_owned(), file.into()))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(bytes)
}

/// Writes a file that is not there yet, for its owner.
fn write_new(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || {
        let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        new.write_all(bytes)?;
        new.sync_all()
    };
    write().with_context(|| format!("{} cannot be written", file.display()))
}
