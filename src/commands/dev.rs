//! `strongroom dev`: a complete instance from nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use secrecy::{ExposeSecret, SecretString};

use super::dev_hsms::{DevMember, MEMBERS_MAX};
use super::dev_setup::{self, AwsEndpoint, DevInstance, DevOptions, SoftHsm};
use super::hsm_init;
use crate::config::{Config, Flags};
use crate::daemon;
use crate::hardening::harden;
use crate::hsm::{MemberSettings, softhsm};

/// The options of `strongroom dev`.
#[derive(Debug, Clone, clap::Args)]
pub struct DevArgs {
    /// The folder that everything lives in; made where it is not there.
    #[arg(long, default_value = "strongroom-dev")]
    pub dir: PathBuf,
    /// Where gRPC listens [default: 127.0.0.1:50051].
    #[arg(long)]
    pub grpc: Option<SocketAddr>,
    /// Where the AWS protocol listens, on loopback without TLS; without this option a free port is
    /// taken where the default one is not free [default: 127.0.0.1:8080].
    #[arg(long)]
    pub aws: Option<SocketAddr>,
    /// Let twelve digits be an access key of that account's root, with the secret `test`, so that what
    /// used an emulator works by changing a URL.
    #[arg(long)]
    pub emulator_credentials: bool,
    /// Where /livez, /readyz and /metrics listen [default: 127.0.0.1:9090].
    #[arg(long)]
    pub http: Option<SocketAddr>,
    /// The account, twelve digits [default: 111122223333].
    #[arg(long)]
    pub account_id: Option<String>,
    /// The Region [default: us-east-1].
    #[arg(long)]
    pub region: Option<String>,
    /// How many HSMs make the cluster, each a SoftHSM2 with its own token folder DIR/hsm/1, 2, 3, … to
    /// be taken away and put back; what DIR has more stays [default: 1].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(MEMBERS_MAX)))]
    pub members: Option<u16>,
    /// Several Regions, as `us-east-1,eu-west-1`, all on the same HSM; the first is the one that is
    /// asked where a call names none.
    #[arg(long, value_delimiter = ',', conflicts_with = "region")]
    pub regions: Vec<String>,
}

/// Prepares the folder where that is still to be done, and serves.
pub fn run(
    args: &DevArgs,
    runtime: impl Fn() -> anyhow::Result<tokio::runtime::Runtime>,
) -> anyhow::Result<()> {
    let hardening = harden();
    let options = DevOptions {
        grpc: args.grpc,
        aws: args.aws,
        http: args.http,
        account_id: args.account_id.clone(),
        region: args.region.clone().or_else(|| args.regions.first().cloned()),
        further_regions: args.regions.iter().skip(1).cloned().collect(),
        members: args.members,
    };
    let mut instance = dev_setup::prepare(&args.dir, &options, &ThisHost)?;
    let loaded = Config::load(Some(&instance.config), &Flags::new())?;
    daemon::start_log(&loaded.config)?;
    hardening.log();
    if instance.needs_ceremony {
        let runtime = runtime()?;
        if !instance.token_is_new && !runtime.block_on(hsm_init::was_held(&loaded))? {
            // The start before this one may have died in its ceremony: the keys
            // that it left in the token are known to nobody.
            instance.discard_token()?;
            instance = dev_setup::prepare(&args.dir, &options, &ThisHost)?;
        }
        runtime.block_on(ceremony(&instance, &loaded))?;
    }
    if instance.others.iter().any(|member| member.joins) {
        runtime()?.block_on(join(&instance, &loaded))?;
    }
    let dir = instance.dir.clone();
    let hsms = hsms(&instance);
    let access_key = instance.access_key;
    let development = daemon::Development {
        emulator_credentials: args.emulator_credentials,
        any_aws_port: args.aws.is_none(),
    };
    let options =
        daemon::Options { config: instance.config, flags: Flags::new(), development: Some(development) };
    let serve = daemon::serve(options, |config, bound| {
        let plaintext = config.aws.plaintext;
        let aws = AwsEndpoint { address: bound.aws, plaintext, access_key: &access_key };
        dev_setup::write_env(&dir, &config.region, bound.grpc, &aws)?;
        daemon::announce(config, bound)?;
        print!("{hsms}");
        Ok(())
    });
    daemon::run(runtime()?, serve)
}

/// Finds SoftHSM2.
pub fn locate() -> anyhow::Result<PathBuf> {
    softhsm::library().context("SoftHSM2 is not installed: install it (Debian: apt-get install softhsm2), or name libsofthsm2.so in STRONGROOM_SOFTHSM2_LIBRARY")
}

async fn ceremony(instance: &DevInstance, loaded: &crate::config::Loaded) -> anyhow::Result<()> {
    if hsm_init::was_held(loaded).await? {
        return instance.mark_initialized();
    }
    let member = MemberSettings {
        module: dev_setup::MODULE.to_owned(),
        token: instance.token_uri(),
        pin: dev_setup::USER_PIN.to_owned(),
    };
    hsm_init::hold(loaded, member).await?;
    instance.mark_initialized()
}

/// Has the HSMs besides the first become members.
async fn join(instance: &DevInstance, loaded: &crate::config::Loaded) -> anyhow::Result<()> {
    let joins = || instance.others.iter().filter(|member| member.joins);
    let new = joins().map(|member| MemberSettings {
        module: member.module.clone(),
        token: member.token.clone(),
        pin: member.pin.clone(),
    });
    let so_pin = loaded.config.pin(dev_setup::SO_PIN)?;
    hsm_init::enlarge(loaded, &so_pin, new.collect()).await?;
    joins().try_for_each(DevMember::mark_joined)
}

/// Where each HSM is, a line each, where there are several.
fn hsms(instance: &DevInstance) -> String {
    if instance.others.is_empty() {
        return String::new();
    }
    let first = (1, instance.dir.join("hsm/1"), instance.token_uri());
    let others =
        instance.others.iter().map(|member| (member.number, member.tokens.clone(), member.token.clone()));
    std::iter::once(first)
        .chain(others)
        .map(|(number, tokens, uri)| format!("HSM {number}: {} {uri}\n", tokens.display()))
        .collect()
}

/// The SoftHSM2 of this host.
struct ThisHost;

impl SoftHsm for ThisHost {
    fn locate(&self) -> anyhow::Result<PathBuf> {
        locate()
    }

    fn write_conf(&self, folder: &Path, tokens: &Path) -> anyhow::Result<PathBuf> {
        let conf = folder.join("softhsm2.conf");
        softhsm::write_configuration_only(&conf, tokens)?;
        Ok(conf)
    }

    fn init_token(
        &self,
        library: &Path,
        conf: &Path,
        label: &str,
        so_pin: &SecretString,
        pin: &SecretString,
    ) -> anyhow::Result<String> {
        let environment = [(softhsm::CONFIGURATION_VARIABLE.to_owned(), conf.display().to_string())].into();
        crate::hsm::with_environment(&environment, || {
            softhsm::initialise_token(library, label, so_pin.expose_secret(), pin.expose_secret())
        })
        .map_err(|error| anyhow::anyhow!("the SoftHSM2 token cannot be initialised: {error}"))
    }
}
