//! `strongroom hsm init`: the ceremony that makes the installation's own keys
//! in a token, once, and tells the store.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::time::Instant;

use crate::audit::record::{Context, Record};
use crate::config::{Config, Flags, Loaded};
use crate::hsm::{self, Cluster, KeyRules, MemberSettings, MemberState, Modules, TokenUri};
use crate::operation::Service;
use crate::registry::{CacheLimits, Registry};
use crate::store::sqlite::SqliteStore;
use crate::store::{Commit, Store};
use crate::{daemon, identity};

const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
const SEAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The options of `strongroom hsm init`.
#[derive(Debug, Clone, clap::Args)]
pub struct HsmInitArgs {
    /// The configuration file.
    #[arg(long, env = "STRONGROOM_CONFIG", default_value = "/etc/strongroom/strongroom.toml")]
    pub config: PathBuf,
    /// The token, initialised and empty: its RFC 7512 URI, `pkcs11:token=LABEL;serial=SERIAL`.
    #[arg(long)]
    pub token: String,
    /// Its module, a name of [modules]; needed where there are several.
    #[arg(long)]
    pub module: Option<String>,
    /// The crypto user's PIN, a name of [pins]; needed where there are several.
    #[arg(long)]
    pub pin: Option<String>,
}

/// Holds the ceremony. The daemon must not run.
pub fn run(args: &HsmInitArgs) -> anyhow::Result<std::process::ExitCode> {
    crate::hardening::harden();
    let loaded = Config::load(Some(&args.config), &Flags::new())?;
    let member = MemberSettings {
        module: only(&args.module, loaded.config.modules.keys(), "--module", "[modules]")?,
        token: args.token.clone(),
        pin: only(&args.pin, loaded.config.pins.keys(), "--pin", "[pins]")?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(hold(&loaded, member))?;
    println!("The keys of this installation are made in {}.", args.token);
    println!("Next: strongroom serve --config {}", args.config.display());
    Ok(std::process::ExitCode::SUCCESS)
}

/// Whether the store knows of a ceremony.
///
/// # Errors
/// Where the store cannot be opened.
pub async fn was_held(loaded: &Loaded) -> anyhow::Result<bool> {
    let store = SqliteStore::open(&loaded.config.data_dir, daemon::sqlite_options(&loaded.config)).await?;
    let held = identity::exists(&store).await;
    store.close().await?;
    held
}

/// Makes the keys, and the row and the event that tell of them.
///
/// # Errors
/// Where the store knows of a ceremony already, and whatever the HSM says.
pub async fn hold(loaded: &Loaded, member: MemberSettings) -> anyhow::Result<()> {
    let config = &loaded.config;
    let token: TokenUri = member.token.parse()?;
    let store = SqliteStore::open(&config.data_dir, daemon::sqlite_options(config)).await?;
    if identity::exists(&store).await? {
        store.close().await?;
        bail!("{} has had its ceremony: its keys are made once only", config.data_dir.display());
    }
    let modules = Modules::new(config.modules.clone(), config.hsm.clone());
    let pin = config.pin(&member.pin)?;
    let made = {
        let (modules, module, pin) = (modules.clone(), member.module.clone(), pin.clone());
        tokio::task::spawn_blocking(move || hsm::ceremony(&modules, &module, &token, &pin)).await??
    };
    let store: std::sync::Arc<SqliteStore> = std::sync::Arc::new(store);
    let cluster = Cluster::start(
        &modules,
        vec![(member.clone(), pin)],
        made.clone(),
        config.hsm.clone(),
        KeyRules::DEFAULT,
    )?;
    let result = tell(loaded, &store, &cluster, made, member).await;
    cluster.shutdown().await;
    tokio::task::spawn_blocking(move || modules.finalise()).await?;
    store.close().await?;
    result
}

async fn tell(
    loaded: &Loaded,
    store: &std::sync::Arc<SqliteStore>,
    cluster: &std::sync::Arc<Cluster>,
    made: hsm::ClusterIdentity,
    member: MemberSettings,
) -> anyhow::Result<()> {
    let mut health = cluster.watch();
    let settled =
        |members: &Vec<hsm::MemberHealth>| members.iter().all(|member| member.state == MemberState::Serving);
    tokio::time::timeout(ATTACH_TIMEOUT, health.wait_for(settled))
        .await
        .with_context(|| format!("the token cannot be used: {:?}", cluster.watch().borrow()))??;
    let dynamic: std::sync::Arc<dyn Store> = store.clone();
    let registry = Registry::new(dynamic, cluster.clone(), made.mac_key(), CacheLimits { keys: 1 });
    let details = json!({ "token": member.token, "module": member.module, "wrappingKey": made.wrapping_key.to_string() });
    let drafts = [identity::draft(made, vec![member])?];
    let changes = registry.seal(&drafts, Instant::now() + SEAL_TIMEOUT).await?;
    let context = Context {
        source: Service::Hsm.event_source(),
        name: "InitializeCluster",
        region: &loaded.config.region,
        time_ms: crate::app::Clock.now_ms(),
        read_only: false,
    };
    let event = Record::service(context, &daemon::account(loaded)?, details).event()?;
    store.commit(Commit { changes, events: vec![event] }).await?;
    Ok(())
}

/// What was given, or the only one that there is.
pub(super) fn only<'a>(
    given: &Option<String>,
    mut names: impl Iterator<Item = &'a String>,
    flag: &str,
    section: &str,
) -> anyhow::Result<String> {
    if let Some(name) = given {
        return Ok(name.clone());
    }
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name.clone()),
        (None, _) => bail!("the configuration has no {section}"),
        (Some(_), Some(_)) => bail!("{flag}: the configuration has several {section}; say which"),
    }
}
