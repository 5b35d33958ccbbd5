//! `strongroom serve`: configuration, then the parts, then the listeners; and
//! their orderly end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::aws::{self, AccessKeys};
use crate::api::front::Front;
use crate::api::grpc::CallLimits;
use crate::api::identity::{Authenticator, Resolver};
use crate::api::limits::{Gate, TransportLimits};
use crate::api::listener::{Bind, Listener, Protocol, Serving};
use crate::api::operators::{self, OperatorListener};
use crate::api::tls::{ClientCaSettings, TlsSettings, TlsState};
use crate::app::{App, Clock, Unrecorded};
use crate::audit::head;
use crate::audit::history::History;
use crate::audit::insights::{self, Insights};
use crate::audit::metric_filters::{self, MetricFilters};
use crate::audit::retention;
use crate::audit::rules::{self, RuleSet, Rules};
use crate::audit::tail::Tail;
use crate::audit::trail::{self, Trails};
use crate::brakes::{self, Brakes};
use crate::caller::{Credential, Principal};
use crate::config::{Config, Flags, Loaded, LogFormat, RegionSettings, restart_needed};
use crate::health;
use crate::hsm::{Cluster, KeyRules, MemberSettings, MemberState, Modules};
use crate::identity::{self, Identity};
use crate::jobs::{self, ClockGate};
use crate::key_stores::{KeyStores, connection};
use crate::registry::{CacheLimits, Registry};
use crate::store::sqlite::{SqliteOptions, SqliteStore};
use crate::store::{Commit, Store};
use crate::systemd;

/// Longest that the end waits for threads that may block.
const THREADS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a start waits for a first member, before it serves without one.
const FIRST_MEMBER_TIMEOUT: Duration = Duration::from_secs(10);
/// Keys, backing keys and aliases that are kept ready, each.
const CACHED_KEYS: u64 = 50_000;

/// What a daemon is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// What the command line says.
    pub flags: Flags,
    /// What only `strongroom dev` does.
    pub development: Option<Development>,
}

/// What a daemon does for development only.
#[derive(Debug, Clone, Copy)]
pub struct Development {
    /// Whether twelve digits are an access key of that account's root.
    pub emulator_credentials: bool,
    /// Whether the AWS port may be another where the configured one is taken.
    pub any_aws_port: bool,
}

/// Where a daemon listens.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// gRPC over TCP.
    pub grpc: SocketAddr,
    /// AWS JSON.
    pub aws: SocketAddr,
    /// /livez, /readyz, /metrics.
    pub http: SocketAddr,
}

/// Runs a daemon until it is told to stop. `ready` is called once, when it serves.
pub async fn serve(
    options: Options,
    ready: impl FnOnce(&Config, Bound) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    serve_over(options, |store| store, ready).await
}

/// The same with something between the daemon and its store: the benchmark
/// measures so what the store costs.
pub async fn serve_over(
    options: Options,
    over: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ready: impl FnOnce(&Config, Bound) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let signals = Signals::taken()?;
    let loaded = Config::load(Some(&options.config), &options.flags)?;
    let metrics = operators::install_recorder()?;
    let parts = assemble(&loaded, over).await?;
    let authenticator = Arc::new(Authenticator::new(Some(Arc::new(tls(&loaded.config)?)), resolver(&loaded)));
    let gate = Gate::new(transport_limits(&loaded.config));
    let stop = CancellationToken::new();
    let serving = Serving {
        protocol: Protocol::Grpc,
        authenticator: authenticator.clone(),
        gate: gate.clone(),
        shutdown: stop.clone(),
        drain_timeout: Duration::from_millis(loaded.config.limits.drain_timeout_ms),
    };

    let mut listeners =
        vec![Listener::bind(&Bind::Tcp(loaded.config.grpc.address)).await.context("grpc.address")?];
    if let Some(path) = &loaded.config.grpc.unix_socket {
        let bind = Bind::Unix { path: path.clone(), mode: loaded.config.grpc.unix_socket_mode.0 };
        listeners.push(Listener::bind(&bind).await.context("grpc.unix_socket")?);
    }
    let operators = OperatorListener::bind(loaded.config.http.address).await.context("http.address")?;
    let aws_listener = aws_listener(&loaded.config, options.development).await.context("aws.address")?;
    let bound = Bound {
        grpc: tcp(&listeners)?,
        aws: tcp(std::slice::from_ref(&aws_listener))?,
        http: operators.address()?,
    };

    let app = parts.app.clone();
    record_start(&app, &loaded).await?;
    if let Err(error) = connection::resume(&app).await {
        tracing::warn!(%error, "custom key stores are connected when the HSMs serve");
    }
    let background = Background::start(&app);
    let limits = Arc::new(ArcSwap::from_pointee(call_limits(&loaded.config)));
    let (reporter, front) = Front::new(app.clone(), authenticator.clone(), limits.clone());
    let mut servers = JoinSet::new();
    for listener in listeners {
        servers.spawn(listener.serve(front.clone(), serving.clone()));
    }
    let emulator = options.development.is_some_and(|development| development.emulator_credentials);
    let keys = AccessKeys::new(&loaded.directory, emulator);
    let aws = aws::Front::new(app.clone(), keys, limits.clone());
    let aws_serving = Serving { protocol: aws_protocol(&loaded.config), ..serving.clone() };
    servers.spawn(aws_listener.serve(aws.clone(), aws_serving));
    let pages = operators::router(Arc::new(health::Ready(app.clone())), metrics.clone());
    let operators = tokio::spawn(operators.serve(pages, background.stop.clone()));
    tokio::spawn(operators::metrics_upkeep(metrics, background.stop.clone()));
    tokio::spawn(health::report(app.clone(), reporter, stop.clone()));
    tokio::spawn(systemd::watchdog(|| true, stop.clone()));
    ready(&loaded.config, bound)?;
    systemd::ready();

    let reload =
        Reload { options, authenticator, gate, app: app.clone(), limits, aws, current: Mutex::new(loaded) };
    signals.until_end(&reload).await;

    systemd::stopping();
    tracing::info!("stopping: requests in flight are finished");
    app.stopping.cancel();
    stop.cancel();
    while let Some(ended) = servers.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a listener ended badly");
        }
    }
    app.tasks.close();
    let drained = tokio::time::timeout(serving.drain_timeout, app.tasks.wait()).await;
    if drained.is_err() {
        tracing::warn!(calls = app.tasks.len(), "calls did not end within limits.drain_timeout_ms");
    }
    background.end(&app).await;
    operators.await.context("the operators' pages")?;
    parts.end().await
}

/// Runs a daemon to its end, which a thread that hangs in an HSM does not keep.
///
/// # Errors
/// Those of [`serve`].
pub fn run(
    runtime: tokio::runtime::Runtime,
    daemon: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let result = runtime.block_on(daemon);
    runtime.shutdown_timeout(THREADS_TIMEOUT);
    result
}

/// The parts that outlive requests and must be ended in order.
struct Assembled {
    app: Arc<App>,
    store: Arc<SqliteStore>,
}

impl Assembled {
    async fn end(self) -> anyhow::Result<()> {
        self.app.key_stores.shutdown().await;
        self.store.close().await.context("the store could not be closed")?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Opens the store and the HSMs.
async fn assemble(
    loaded: &Loaded,
    over: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
) -> anyhow::Result<Assembled> {
    let config = &loaded.config;
    let store = Arc::new(SqliteStore::open(&config.data_dir, sqlite_options(config)).await?);
    let dynamic = over(store.clone());
    let Identity { cluster: identity, members, maintenance, row } = identity::read(&*dynamic).await?;
    let modules = Modules::new(config.modules.clone(), config.hsm.clone());
    let mut opened = Vec::with_capacity(members.len());
    for member in &members {
        opened.push((member.clone(), config.pin(&member.pin)?));
    }
    let cluster = Cluster::start(&modules, opened, identity.clone(), config.hsm.clone(), KeyRules::DEFAULT)?;
    for out in &maintenance {
        cluster.set_maintenance(out, true)?;
    }
    let registry = Registry::new(
        dynamic.clone(),
        cluster.clone(),
        identity.mac_key(),
        CacheLimits { keys: CACHED_KEYS },
    );
    if first_member(&cluster).await {
        identity::check(&registry, &row).await?;
    } else {
        tracing::warn!("no member of the cluster is attached yet: the daemon serves when one is");
    }
    let region: Arc<str> = config.region.as_str().into();
    let mut regional = BTreeMap::from([(region.clone(), cluster.clone())]);
    for (name, settings) in &config.regions {
        let own = regional_cluster(config, settings, &members, &modules, &cluster)
            .with_context(|| format!("regions.{name}"))?;
        regional.insert(name.as_str().into(), own);
    }
    let key_stores = KeyStores::new(config.clone(), modules, cluster, regional);
    let history = Arc::new(History::open(&config.data_dir, dynamic.clone()).await?);
    let recorded_ms = last_recorded_ms(&*dynamic).await?;
    let app = Arc::new(App {
        region,
        data_dir: config.data_dir.clone(),
        account: account(loaded)?,
        started_ms: Clock.now_ms(),
        recorded_ms,
        tail: Arc::new(Tail::start(dynamic.clone())),
        store: dynamic,
        registry,
        key_stores,
        identity,
        history,
        history_settings: config.history.clone(),
        log_base: Default::default(),
        trails: Trails::new(config.trail.clone(), &config.region),
        insights: Insights::new(config.insights.clone()),
        metric_filters: MetricFilters::new(config.metric_filters.clone()),
        rules: Rules::new(rule_set(config)),
        clock: Clock,
        tasks: TaskTracker::new(),
        directory: ArcSwap::from_pointee(loaded.directory.clone()),
        brakes: Brakes::new(brake_limits(config)),
        unrecorded: Unrecorded::default(),
        stopping: CancellationToken::new(),
        clock_gate: ClockGate::default(),
    });
    if let Some(restored) = store.restored() {
        recover_leases(&app, restored.at_ms).await?;
        store.acknowledge_restore().await?;
    }
    Ok(Assembled { app, store })
}

/// The HSMs of a further Region: its own, or those of the installation.
fn regional_cluster(
    config: &Config,
    settings: &RegionSettings,
    installation: &[MemberSettings],
    modules: &Arc<Modules>,
    cluster: &Arc<Cluster>,
) -> anyhow::Result<Arc<Cluster>> {
    if settings.members.is_empty() {
        return Ok(cluster.clone());
    }
    let mut members = Vec::with_capacity(settings.members.len());
    for member in &settings.members {
        if installation.iter().any(|known| known.token == member.token) {
            bail!("{} is an HSM of `region`: a Region's own HSMs are no other's", member.token);
        }
        members.push((member.clone(), config.pin(&member.pin)?));
    }
    let identity = cluster.identity().clone();
    Ok(Cluster::start(modules, members, identity, config.hsm.clone(), KeyRules::DEFAULT)?)
}

/// How the store is opened.
pub fn sqlite_options(config: &Config) -> SqliteOptions {
    SqliteOptions {
        min_free_bytes: config.store.min_free_bytes,
        commit_timeout_ms: config.store.commit_timeout_ms,
        ..SqliteOptions::default()
    }
}

/// The account that has the events that belong to none.
pub fn account(loaded: &Loaded) -> anyhow::Result<String> {
    let management = loaded.config.management_account.as_ref().map(|id| id.as_str().to_owned());
    let first = || loaded.directory.accounts().next().map(|account| account.id.clone());
    management.or_else(first).context("the configuration has no account")
}

async fn first_member(cluster: &Cluster) -> bool {
    let mut health = cluster.watch();
    let serves = |members: &Vec<crate::hsm::MemberHealth>| {
        members.iter().any(|member| member.state == MemberState::Serving)
    };
    let waited = tokio::time::timeout(FIRST_MEMBER_TIMEOUT, health.wait_for(serves)).await;
    matches!(waited, Ok(Ok(_)))
}

/// The time of the last event or signed head, whichever is later.
async fn last_recorded_ms(store: &dyn Store) -> anyhow::Result<Option<i64>> {
    let end = *store.end().borrow();
    let event = store.events_at(&[end]).await?.first().map(|event| event.time_ms);
    let before = crate::store::Position { sequence: end.sequence.saturating_sub(1), ..end };
    let head = store.heads(before, 1).await?.last().map(|head| head.time_ms);
    Ok(event.max(head))
}

/// After a restore nobody knows how many uses of which key were leased since
/// the backup: every key goes on as if a generous number of leases were gone.
async fn recover_leases(app: &App, restored_ms: i64) -> anyhow::Result<()> {
    let moved = app.registry.skip_leases().await.map_err(|error| {
        anyhow::anyhow!(
            "the use counts of the restored keys could not be moved ahead: {error} {}",
            error.detail.as_deref().unwrap_or_default()
        )
    })?;
    let details = json!({
        "restoredAtMs": restored_ms,
        "keysMovedAhead": moved,
        "usesMovedAhead": crate::registry::RESTORE_USES,
        "unknown": "what was changed and recorded after the backup was made",
    });
    record(app, "StoreRestored", details).await
}

async fn record(app: &App, name: &'static str, details: Value) -> anyhow::Result<()> {
    let event = jobs::service_event(app, name, &app.account, details, None)?;
    app.store.commit(Commit { changes: Vec::new(), events: vec![event] }).await?;
    Ok(())
}

async fn record_start(app: &App, loaded: &Loaded) -> anyhow::Result<()> {
    let details = json!({ "version": env!("CARGO_PKG_VERSION"), "configurationSha256": loaded.sha256 });
    record(app, "StartService", details).await
}

/// What runs beside the requests.
struct Background {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Background {
    fn start(app: &Arc<App>) -> Background {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(jobs::run(app.clone(), stop.clone()));
        tasks.spawn(trail::run(app.clone(), stop.clone()));
        tasks.spawn(retention::run(app.clone(), stop.clone()));
        tasks.spawn(rules::run(app.clone(), stop.clone()));
        tasks.spawn(metric_filters::run(app.clone(), stop.clone()));
        tasks.spawn(insights::run(app.clone(), stop.clone()));
        let (head_app, head_stop) = (app.clone(), stop.clone());
        tasks.spawn(async move { head::run(&head_app, head_stop).await });
        for (name, cluster) in app.key_stores.regional() {
            let (app, stop) = (app.clone(), stop.clone());
            tasks.spawn(async move { jobs::members::watch(&app, &name, cluster.watch(), stop).await });
        }
        tasks.spawn(connection::run(app.clone(), stop.clone()));
        let (check_app, check_stop) = (app.clone(), stop.clone());
        tasks.spawn(async move { jobs::integrity::check(&check_app, check_stop).await });
        Background { stop, tasks }
    }

    /// Records the end, and signs the log's head a last time.
    async fn end(mut self, app: &App) {
        if let Err(error) = record(app, "StopService", json!({})).await {
            tracing::error!(%error, "the end of the service could not be recorded");
        }
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a job ended badly");
            }
        }
    }
}

/// What the daemon is told by signals: taken before it says that it is ready,
/// as the first may come at once.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn taken() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn until_end(mut self, reload: &Reload) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => reload.run().await,
            }
        }
    }
}

/// What SIGHUP does.
struct Reload {
    options: Options,
    authenticator: Arc<Authenticator>,
    gate: Arc<Gate>,
    app: Arc<App>,
    limits: Arc<ArcSwap<CallLimits>>,
    aws: aws::Front,
    current: Mutex<Loaded>,
}

impl Reload {
    async fn run(&self) {
        systemd::reloading();
        let old = self.current.lock().sha256.clone();
        let (outcome, details) = match self.prepare() {
            Ok((loaded, tls)) => {
                let details = json!({ "oldSha256": old, "newSha256": loaded.sha256 });
                (Ok((loaded, tls)), details)
            }
            Err(error) => {
                let details = json!({ "oldSha256": old, "refused": error.to_string() });
                (Err(error), details)
            }
        };
        // On the record first: no rule is in force that the log does not know.
        let recorded = record(&self.app, "ReloadConfiguration", details).await;
        match (outcome, recorded) {
            (Ok((loaded, tls)), Ok(())) => {
                tracing::info!(sha256 = loaded.sha256, "the configuration was reloaded");
                self.apply(loaded, tls);
            }
            (Err(error), _) => tracing::error!("the configuration stays as it was: {error:#}"),
            (Ok(_), Err(error)) => tracing::error!(
                "the configuration stays as it was: the reload could not be recorded: {error:#}"
            ),
        }
        systemd::ready();
    }

    fn prepare(&self) -> anyhow::Result<(Loaded, TlsState)> {
        let loaded = Config::load(Some(&self.options.config), &self.options.flags)?;
        let restart = restart_needed(&self.current.lock().config, &loaded.config);
        if !restart.is_empty() {
            bail!("these keys take effect only after a restart: {}", restart.join(", "));
        }
        let tls = tls(&loaded.config)?;
        Ok((loaded, tls))
    }

    /// A reload is the operator's word that a refused member may be tried once
    /// more, with its PIN as it is now.
    fn retry_pins(&self, config: &Config) {
        for (_, cluster) in self.app.key_stores.regional() {
            let members = cluster.members();
            for refused in members.iter().filter(|member| member.state == MemberState::Refused) {
                let retried = match config.pin(&refused.pin) {
                    Ok(pin) => cluster.retry_pin(&refused.uri, Some(pin)).map_err(anyhow::Error::from),
                    Err(problem) => Err(anyhow::anyhow!("{problem}")),
                };
                if let Err(error) = retried {
                    tracing::error!(member = refused.uri, "the member stays refused: {error:#}");
                }
            }
        }
    }

    fn apply(&self, loaded: Loaded, tls: TlsState) {
        self.gate.set_limits(transport_limits(&loaded.config));
        self.app.brakes.set(brake_limits(&loaded.config));
        self.app.rules.set(rule_set(&loaded.config));
        self.app.metric_filters.set(loaded.config.metric_filters.clone());
        self.app.directory.store(Arc::new(loaded.directory.clone()));
        self.limits.store(Arc::new(call_limits(&loaded.config)));
        self.authenticator.swap(Some(Arc::new(tls)), resolver(&loaded));
        let emulator = self.options.development.is_some_and(|development| development.emulator_credentials);
        self.aws.set_keys(AccessKeys::new(&loaded.directory, emulator));
        self.retry_pins(&loaded.config);
        self.app.key_stores.reload(loaded.config.clone());
        *self.current.lock() = loaded;
    }
}

fn resolver(loaded: &Loaded) -> Arc<dyn Resolver> {
    let directory = loaded.directory.clone();
    let host_account = account(loaded).unwrap_or_default();
    let own = rustix::process::geteuid().as_raw();
    Arc::new(move |credentials: &[Credential]| {
        directory.resolve(credentials).or_else(|| {
            let host = credentials.iter().find_map(|credential| match credential {
                Credential::Uid(uid) if *uid == 0 || *uid == own => Some(*uid),
                _ => None,
            });
            host.map(|uid| Arc::new(Principal::host(&host_account, uid)))
        })
    })
}

fn tls(config: &Config) -> anyhow::Result<TlsState> {
    let client_cas = config
        .tls
        .client_cas
        .iter()
        .map(|(name, ca)| ClientCaSettings {
            name: name.clone(),
            file: ca.file.clone(),
            crl: ca.crl.clone(),
            common_names: ca.common_names,
        })
        .collect();
    let settings =
        TlsSettings { certificate: config.tls.certificate.clone(), key: config.tls.key.clone(), client_cas };
    Ok(TlsState::load(&settings)?)
}

fn transport_limits(config: &Config) -> TransportLimits {
    let limits = &config.limits;
    TransportLimits {
        connections_max: limits.connections_max as usize,
        connections_per_peer_max: limits.connections_per_peer_max as usize,
        handshake_timeout_ms: limits.handshake_timeout_ms,
        streams_per_connection_max: limits.streams_per_connection_max,
        header_bytes_max: limits.header_bytes_max,
        message_bytes_max: limits.message_bytes_max as usize,
        connection_age_ms: limits.connection_age_ms,
        connection_idle_ms: limits.connection_idle_ms,
    }
}

fn call_limits(config: &Config) -> CallLimits {
    CallLimits {
        request_timeout: Duration::from_millis(config.limits.request_timeout_ms),
        message_bytes_max: config.limits.message_bytes_max as usize,
    }
}

fn rule_set(config: &Config) -> RuleSet {
    RuleSet { rules: config.rules.clone(), targets: config.targets.clone() }
}

fn brake_limits(config: &Config) -> brakes::Limits {
    let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    brakes::Limits {
        requests_per_principal_max: config.limits.requests_per_principal_max,
        requests_waiting_per_principal_max: config.limits.requests_waiting_per_principal_max,
        denials_per_second: at_least_one(config.limits.denials_per_second),
        denials_burst: at_least_one(config.limits.denials_burst),
        counts: brakes::Counts {
            keys_per_account_max: config.limits.keys_per_account_max,
            aliases_per_account_max: config.limits.aliases_per_account_max,
            aliases_per_key_max: config.limits.aliases_per_key_max,
            grants_per_key_max: config.limits.grants_per_key_max,
        },
        quotas: brakes::Quotas {
            symmetric_per_second: at_least_one(config.quotas.symmetric_per_second),
            rsa_per_second: at_least_one(config.quotas.rsa_per_second),
            ecc_per_second: at_least_one(config.quotas.ecc_per_second),
            ml_dsa_per_second: at_least_one(config.quotas.ml_dsa_per_second),
            custom_key_store_per_second: at_least_one(config.quotas.custom_key_store_per_second),
            operation_per_second: at_least_one(config.quotas.operation_per_second),
            operations: config
                .quotas
                .operations
                .iter()
                .map(|(name, own)| (name.clone(), at_least_one(*own)))
                .collect(),
        },
    }
}

fn tcp(listeners: &[Listener]) -> anyhow::Result<SocketAddr> {
    let bound = listeners.iter().find_map(|listener| match listener.bound() {
        Bind::Tcp(address) => Some(address),
        Bind::Unix { .. } => None,
    });
    bound.context("no TCP listener")
}

fn aws_protocol(config: &Config) -> Protocol {
    if config.aws.plaintext { Protocol::AwsPlaintext } else { Protocol::Aws }
}

async fn aws_listener(config: &Config, development: Option<Development>) -> std::io::Result<Listener> {
    let mut address = config.aws.address;
    match Listener::bind(&Bind::Tcp(address)).await {
        Err(error)
            if error.kind() == std::io::ErrorKind::AddrInUse
                && development.is_some_and(|development| development.any_aws_port) =>
        {
            tracing::warn!(%address, "another process has the AWS port: a free one is taken, say --aws to choose");
            address.set_port(0);
            Listener::bind(&Bind::Tcp(address)).await
        }
        bound => bound,
    }
}

/// Begins to write the log as the configuration says. The filter counts for
/// this crate and its libraries.
pub fn start_log(config: &Config) -> anyhow::Result<()> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(&config.log.filter).context("log.filter")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("the log cannot be started: {error}"))
}

/// Tells that the daemon serves, in one line on standard output.
pub fn announce(config: &Config, bound: Bound) -> anyhow::Result<()> {
    use std::io::Write as _;
    let socket = config.grpc.unix_socket.as_ref().map(|path| format!(", unix:{}", path.display()));
    let mut out = std::io::stdout();
    writeln!(
        out,
        "strongroom {} ready: gRPC https://{}{}, operators http://{}, AWS {}://{}",
        env!("CARGO_PKG_VERSION"),
        bound.grpc,
        socket.unwrap_or_default(),
        bound.http,
        if config.aws.plaintext { "http" } else { "https" },
        bound.aws
    )?;
    out.flush()?;
    Ok(())
}
