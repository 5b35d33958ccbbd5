//! `strongroom check-config`: is this configuration good?

use std::io::Write;
use std::path::PathBuf;

use crate::config::{Config, Flags, Loaded};

/// The options of `strongroom check-config`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckConfigArgs {
    /// The configuration file.
    #[arg(long, env = "STRONGROOM_CONFIG", default_value = "/etc/strongroom/strongroom.toml")]
    pub config: PathBuf,
    /// Print the effective configuration, with every default.
    #[arg(long)]
    pub print: bool,
}

/// Loads the configuration as `serve` would. What is good goes to `out`, what
/// is wrong is the error: a [`crate::config::ConfigError`].
pub fn run(args: &CheckConfigArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let loaded = Config::load(Some(&args.config), &Flags::new())?;
    if args.print {
        write!(out, "{}", toml_edit::ser::to_string_pretty(&loaded.config)?)?;
        return Ok(());
    }
    for problem in loaded.config.pin_file_problems() {
        writeln!(out, "warning: {problem}")?;
    }
    writeln!(out, "OK {}: {}", args.config.display(), summary(&loaded))?;
    Ok(())
}

fn summary(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let identities: usize =
        config.accounts.iter().flat_map(|account| &account.principals).map(|who| who.identities.len()).sum();
    format!(
        "Region {}, {} accounts, {} principals with {identities} identities, {} modules, {} client CAs, SHA-256 {}",
        config.region,
        loaded.directory.accounts().count(),
        loaded.directory.principals().count(),
        config.modules.len(),
        config.tls.client_cas.len(),
        loaded.sha256,
    )
}
