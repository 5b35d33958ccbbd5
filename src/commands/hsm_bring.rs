//! `strongroom hsm bring`: a cluster's wrapping key from one HSM to an empty
//! one, which can then be added as a member. A process of its own does it, so
//! that the security officer's PIN is never the daemon's.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::hsm_init::only;
use crate::audit::beside::{Deed, Noted};
use crate::config::{Config, Flags};
use crate::hsm::{Modules, TokenAccess, bring_wrapping_key};

/// The options of `strongroom hsm bring`.
#[derive(Debug, Clone, clap::Args)]
pub struct HsmBringArgs {
    /// The configuration file.
    #[arg(long, env = "STRONGROOM_CONFIG", default_value = "/etc/strongroom/strongroom.toml")]
    pub config: PathBuf,
    /// A member of the cluster: its RFC 7512 URI, `pkcs11:token=LABEL;serial=SERIAL`.
    #[arg(long)]
    pub from: String,
    /// Its module, a name of [modules]; needed where there are several.
    #[arg(long)]
    pub from_module: Option<String>,
    /// Its crypto user's PIN, a name of [pins]; needed where there are several.
    #[arg(long)]
    pub from_pin: Option<String>,
    /// The token that gets the key, initialised and empty: its RFC 7512 URI.
    #[arg(long)]
    pub to: String,
    /// Its module, a name of [modules]; needed where there are several.
    #[arg(long)]
    pub to_module: Option<String>,
    /// Its crypto user's PIN, a name of [pins]; needed where there are several.
    #[arg(long)]
    pub to_pin: Option<String>,
    /// A file with the PIN of the member's security officer; asked for at the
    /// terminal without it.
    #[arg(long)]
    pub so_pin_file: Option<PathBuf>,
}

/// Brings the key. The daemon may run.
pub fn run(args: &HsmBringArgs) -> anyhow::Result<ExitCode> {
    crate::hardening::harden();
    let config = Config::load(Some(&args.config), &Flags::new())?.config;
    let source = access(&config, &args.from, &args.from_module, &args.from_pin, "from-")?;
    let target = access(&config, &args.to, &args.to_module, &args.to_pin, "to-")?;
    let so_pin = so_pin(&args.so_pin_file, &args.from)?;
    let details = json!({
        "from": source.token.to_string(),
        "fromModule": source.module,
        "to": target.token.to_string(),
        "toModule": target.module,
    });
    let id = on_record(&config, Deed::BringWrappingKey, details, || {
        let modules = Modules::new(config.modules.clone(), config.hsm.clone());
        let brought = bring_wrapping_key(&modules, &source, &so_pin, &target);
        modules.finalise();
        let id = brought?;
        Ok((id, json!({ "wrappingKey": id.to_string() })))
    })?;
    println!("{} has the wrapping key {id}.", target.token);
    println!(
        "Next: strongroom hsm member add --token '{}' --module {} --pin NAME",
        target.token, target.module
    );
    Ok(ExitCode::SUCCESS)
}

/// Does something that the daemon puts on the record, as it is not the daemon
/// that does it; with the result comes what there is to tell of it.
pub(super) fn on_record<T>(
    config: &Config,
    deed: Deed,
    details: Value,
    what: impl FnOnce() -> anyhow::Result<(T, Value)>,
) -> anyhow::Result<T> {
    let Some(noted) = Noted::begin(&config.data_dir, deed, details)? else {
        eprintln!("{} is not there: this is on no record.", config.data_dir.display());
        return what().map(|(done, _)| done);
    };
    match what() {
        Ok((done, told)) => noted.end(Ok(told)).map(|()| done),
        Err(error) => {
            noted.end(Err(&error))?;
            Err(error)
        }
    }
}

/// A token as its flags name it; `side` is what they begin with.
pub(super) fn access(
    config: &Config,
    token: &str,
    module: &Option<String>,
    pin: &Option<String>,
    side: &str,
) -> anyhow::Result<TokenAccess> {
    let (module_flag, pin_flag) = (format!("--{side}module"), format!("--{side}pin"));
    Ok(TokenAccess {
        module: only(module, config.modules.keys(), &module_flag, "[modules]")?,
        token: token.parse()?,
        pin: config.pin(&only(pin, config.pins.keys(), &pin_flag, "[pins]")?)?,
    })
}

/// The PIN of a token's security officer, from a file or the terminal.
pub(super) fn so_pin(file: &Option<PathBuf>, token: &str) -> anyhow::Result<SecretString> {
    secret(file, &format!("PIN of the security officer of {token}: "))
        .context("the security officer's PIN: give --so-pin-file where there is no terminal")
}

/// A secret from a file, or asked for at the terminal.
pub(super) fn secret(file: &Option<PathBuf>, question: &str) -> anyhow::Result<SecretString> {
    let text = match file {
        Some(file) => zeroize::Zeroizing::new(
            std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?,
        ),
        None => zeroize::Zeroizing::new(rpassword::prompt_password(question)?),
    };
    Ok(text.trim_end_matches(['\r', '\n']).into())
}
