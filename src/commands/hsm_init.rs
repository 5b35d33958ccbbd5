//! `strongroom hsm init`: the ceremony that makes the installation's own keys
//! in a token, once, and tells the store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::SecretString;
use serde_json::json;
use tokio::time::Instant;

use crate::audit::record::{Context, Record};
use crate::config::{Config, Flags, Loaded};
use crate::hsm::{
    self, Cluster, HsmError, KeyRules, MemberSettings, MemberState, Modules, TokenAccess, TokenUri,
};
use crate::identity::{Identity, Installation};
use crate::registry::{CacheLimits, Draft, Registry};
use crate::service::Service;
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
    let store = Arc::new(store);
    let opened = vec![(member.clone(), pin)];
    let cluster = Cluster::start(&modules, opened, made.clone(), config.hsm.clone(), KeyRules::DEFAULT)?;
    let result = tell(loaded, &store, &cluster, made, member).await;
    end(modules, &cluster, store).await?;
    result
}

/// Brings the wrapping key to tokens that are not members yet, and has the store
/// know them as such. The daemon must not run.
///
/// # Errors
/// Whatever the HSMs say; then the store knows none of them.
pub async fn enlarge(loaded: &Loaded, so_pin: &SecretString, new: Vec<MemberSettings>) -> anyhow::Result<()> {
    let config = &loaded.config;
    let store = Arc::new(SqliteStore::open(&config.data_dir, daemon::sqlite_options(config)).await?);
    let Identity { cluster: identity, members, .. } = identity::read(&*store).await?;
    let new: Vec<MemberSettings> = new.into_iter().filter(|new| !members.contains(new)).collect();
    let access = |member: &MemberSettings| {
        let (module, token) = (member.module.clone(), member.token.parse()?);
        anyhow::Ok(TokenAccess { module, token, pin: config.pin(&member.pin)? })
    };
    let source = access(members.first().context("the cluster has no members")?)?;
    let targets: Vec<TokenAccess> = new.iter().map(access).collect::<anyhow::Result<_>>()?;
    let modules = Modules::new(config.modules.clone(), config.hsm.clone());
    let (so_pin, bringing) = (so_pin.clone(), modules.clone());
    let brought = tokio::task::spawn_blocking(move || {
        let brought = targets.iter().try_for_each(|target| {
            match hsm::bring_wrapping_key(&bringing, &source, &so_pin, target) {
                // It has a key already, of a start that ended too early; whether
                // it is the cluster's is seen when it is attached.
                Ok(_) | Err(HsmError::Unsupported(_)) => Ok(()),
                Err(error) => Err(error),
            }
        });
        bringing.finalise();
        brought
    });
    brought.await??;
    let mut opened = Vec::new();
    for member in members.iter().chain(&new) {
        opened.push((member.clone(), config.pin(&member.pin)?));
    }
    let cluster = Cluster::start(&modules, opened, identity.clone(), config.hsm.clone(), KeyRules::DEFAULT)?;
    let result = join(loaded, &store, &cluster, identity, new).await;
    end(modules, &cluster, store).await?;
    result
}

async fn end(modules: Arc<Modules>, cluster: &Cluster, store: Arc<SqliteStore>) -> anyhow::Result<()> {
    cluster.shutdown().await;
    tokio::task::spawn_blocking(move || modules.finalise()).await?;
    store.close().await?;
    Ok(())
}

async fn join(
    loaded: &Loaded,
    store: &Arc<SqliteStore>,
    cluster: &Arc<Cluster>,
    identity: hsm::ClusterIdentity,
    new: Vec<MemberSettings>,
) -> anyhow::Result<()> {
    let tokens: Vec<&str> = new.iter().map(|member| member.token.as_str()).collect();
    serve(cluster, &tokens).await?;
    let details = json!({ "tokens": tokens });
    let registry = registry(store, cluster, &identity);
    let held = identity::held(&registry, Instant::now() + SEAL_TIMEOUT).await?;
    let members = held.value.members.iter().cloned().chain(new.iter().cloned()).collect();
    let draft = Draft::replace(&held, &Installation { members, ..held.value.clone() })?;
    record(loaded, store, &registry, draft, "AddMember", details).await
}

async fn tell(
    loaded: &Loaded,
    store: &Arc<SqliteStore>,
    cluster: &Arc<Cluster>,
    made: hsm::ClusterIdentity,
    member: MemberSettings,
) -> anyhow::Result<()> {
    serve(cluster, &[&member.token]).await?;
    let registry = registry(store, cluster, &made);
    let details = json!({ "token": member.token, "module": member.module, "wrappingKey": made.wrapping_key.to_string() });
    let draft = identity::draft(made, vec![member])?;
    record(loaded, store, &registry, draft, "InitializeCluster", details).await
}

/// Waits until these members serve.
async fn serve(cluster: &Cluster, tokens: &[&str]) -> anyhow::Result<()> {
    let mut health = cluster.watch();
    let serves = |members: &Vec<hsm::MemberHealth>| {
        tokens.iter().all(|token| {
            members.iter().any(|member| member.uri == *token && member.state == MemberState::Serving)
        })
    };
    tokio::time::timeout(ATTACH_TIMEOUT, health.wait_for(serves))
        .await
        .with_context(|| format!("the token cannot be used: {:?}", cluster.watch().borrow()))??;
    Ok(())
}

fn registry(store: &Arc<SqliteStore>, cluster: &Arc<Cluster>, made: &hsm::ClusterIdentity) -> Registry {
    let dynamic: Arc<dyn Store> = store.clone();
    Registry::new(dynamic, cluster.clone(), made.mac_key(), CacheLimits { keys: 1 })
}

/// Makes a change durable, with the event that tells of it.
async fn record(
    loaded: &Loaded,
    store: &SqliteStore,
    registry: &Registry,
    draft: Draft,
    name: &'static str,
    details: serde_json::Value,
) -> anyhow::Result<()> {
    let changes = registry.seal(&[draft], Instant::now() + SEAL_TIMEOUT).await?;
    let context = Context {
        source: Service::Hsm.event_source(),
        name,
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
