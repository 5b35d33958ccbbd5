//! `strongroom init`: a first configuration, with one administrator.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::access_key::{AccessKey, SECRET_FILE};
use super::template::{ADMINISTRATOR, Template};
use crate::config::{AccountId, AwsSettings, GrpcSettings, HttpSettings, check_region};
use crate::pki::{self, Ca};

/// The options of `strongroom init`.
#[derive(Debug, Clone, clap::Args)]
pub struct InitArgs {
    /// The folder to write into.
    #[arg(long, default_value = "/etc/strongroom")]
    pub dir: PathBuf,
    /// Where the store will be: /var/lib/strongroom, or DIR/data in another folder.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// The account, twelve digits.
    #[arg(long, default_value = "111122223333")]
    pub account_id: String,
    /// The Region.
    #[arg(long, default_value = "us-east-1")]
    pub region: String,
    /// The HSM's PKCS#11 library; without it, SoftHSM2's.
    #[arg(long)]
    pub module: Option<PathBuf>,
    /// A name or an address by which clients reach this host; may be repeated.
    #[arg(long = "server-name")]
    pub server_names: Vec<String>,
}

const DEFAULT_DIR: &str = "/etc/strongroom";
const PIN_NAME: &str = "crypto-user";
const PIN_FILE: &str = "pins/crypto-user.pin";
/// The folder of the administrator's access key.
const ACCESS_KEY: &str = "access-keys/administrator";

/// Writes the folder and tells on `out` what to do next. Nothing that is there
/// is overwritten. `locate` finds SoftHSM2's library.
pub fn run(
    args: &InitArgs,
    locate: impl FnOnce() -> anyhow::Result<PathBuf>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    AccountId::try_from(args.account_id.clone()).map_err(|text| anyhow::anyhow!("--account-id: {text}"))?;
    check_region(&args.region).map_err(|text| anyhow::anyhow!("--region: {text}"))?;
    let dir = std::path::absolute(&args.dir)?;
    for name in ["strongroom.toml", "pki", "pins", "access-keys"] {
        let path = dir.join(name);
        if path.symlink_metadata().is_ok() {
            bail!("{} is there already; choose another folder with --dir, or remove it", path.display());
        }
    }
    let library = library(args, locate)?;

    // Certificates first in memory, so that a name that cannot be in one
    // leaves nothing behind.
    let ca = Ca::new("Strongroom CA")?;
    let server = ca.server(&args.server_names).context("--server-name")?;
    let administrator = ca.client(&args.account_id, ADMINISTRATOR)?;
    let access_key = AccessKey::new()?;
    let text = configuration(args, &dir, &library, &access_key);

    make_folder(&dir, 0o755)?;
    make_folder(&dir.join("pki"), 0o755)?;
    make_folder(&dir.join("pins"), 0o700)?;
    make_folder(&dir.join(ACCESS_KEY), 0o700)?;
    access_key.write(&dir.join(ACCESS_KEY))?;
    ca.identity().write(&dir.join("pki"), "ca")?;
    server.write(&dir.join("pki"), "server")?;
    administrator.write(&dir.join("pki"), ADMINISTRATOR)?;
    let file = dir.join("strongroom.toml");
    pki::write_new(&file, text.as_bytes(), 0o644)?;
    write!(out, "{}", next_steps(&dir, &file, &args.region))?;
    Ok(())
}

fn library(args: &InitArgs, locate: impl FnOnce() -> anyhow::Result<PathBuf>) -> anyhow::Result<PathBuf> {
    let library = match &args.module {
        Some(module) => std::path::absolute(module)?,
        None => locate()
            .context("give the HSM's PKCS#11 library with --module, or install SoftHSM2 (softhsm2)")?,
    };
    if !library.is_file() {
        bail!("--module: there is no file {}; give the path of a PKCS#11 library", library.display());
    }
    Ok(library)
}

fn configuration(args: &InitArgs, dir: &Path, library: &Path, access_key: &AccessKey) -> String {
    let own = dir != Path::new(DEFAULT_DIR);
    let default_data_dir = if own { PathBuf::from("data") } else { PathBuf::from("/var/lib/strongroom") };
    let softhsm = library.file_name().is_some_and(|name| name.to_string_lossy().contains("softhsm"));
    Template {
        title: "Strongroom's configuration, made by `strongroom init`.",
        region: &args.region,
        data_dir: args.data_dir.as_deref().unwrap_or(&default_data_dir),
        grpc: GrpcSettings::default().address,
        aws: AwsSettings::default().address,
        aws_plaintext: false,
        http: HttpSettings::default().address,
        unix_socket: None,
        module: if softhsm { "softhsm2" } else { "hsm" },
        library,
        environment: BTreeMap::new(),
        pins: &[(PIN_NAME, PIN_FILE)],
        account: &args.account_id,
        access_key: (&access_key.id, &format!("{ACCESS_KEY}/{SECRET_FILE}")),
        uid: None,
    }
    .text()
}

fn next_steps(dir: &Path, file: &Path, region: &str) -> String {
    let (dir, file) = (dir.display(), file.display());
    format!(
        "{file} is written, with a CA, a server's and an administrator's certificate in {dir}/pki, and the \
         administrator's access key in {dir}/{ACCESS_KEY}.\n\
         \n\
         Next:\n\
         1. Write the PIN of the HSM's crypto user into {dir}/{PIN_FILE}, mode 0600\n   \
            (a token of SoftHSM2 is made with softhsm2-util --init-token --free --label strongroom).\n\
         2. strongroom hsm init --config {file} --token 'pkcs11:token=LABEL;serial=SERIAL'\n   \
            makes the wrapping key in the HSM, once (pkcs11-tool --list-token-slots tells label and serial).\n\
         3. strongroom serve --config {file}\n\
         4. Call it:\n   \
            export STRONGROOM_ENDPOINT=https://127.0.0.1:50051 STRONGROOM_CA={dir}/pki/ca.pem\n   \
            export STRONGROOM_CERT={dir}/pki/{ADMINISTRATOR}.pem STRONGROOM_KEY={dir}/pki/{ADMINISTRATOR}.key\n   \
            strongroom kms list-keys\n   \
            or with the aws command:\n   \
            export AWS_ENDPOINT_URL=https://127.0.0.1:8080 AWS_CA_BUNDLE={dir}/pki/ca.pem\n   \
            export AWS_ACCESS_KEY_ID=$(cat {dir}/{ACCESS_KEY}/access-key-id)\n   \
            export AWS_SECRET_ACCESS_KEY=$(cat {dir}/{ACCESS_KEY}/{SECRET_FILE}) AWS_REGION={region}\n   \
            aws kms list-keys\n\
         \n\
         Keep {dir}/pki/ca.key somewhere else: whoever has it can make a certificate for any principal.\n"
    )
}

fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("{} cannot be made", path.display()))
}
