//! The `strongroom` command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand};
use strongroom::commands::{backup, check_config, dev, hsm_backup, hsm_bring, hsm_check, hsm_init, init};
use strongroom::config::{Config, Flags};
use strongroom::hardening::{ALLOCATOR, Allocator, harden};
use strongroom::{cli, daemon};

/// Freed memory is zeroed: it may have held a plaintext.
#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

/// An AWS-KMS-grade key service on your own PKCS#11 HSMs.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Daemon,
}

/// The commands of those who run the daemon; the clients' are added to them.
#[derive(Debug, Subcommand)]
enum Daemon {
    /// Run the daemon.
    Serve(ServeArgs),
    /// Run a complete instance from nothing: SoftHSM2 tokens, certificates, one account.
    Dev(dev::DevArgs),
    /// Write a first configuration with one administrator.
    Init(init::InitArgs),
    /// Check a configuration file.
    CheckConfig(check_config::CheckConfigArgs),
    /// Copy the data folder's database while the daemon runs.
    Backup(backup::BackupArgs),
    /// Put a backup in place of a lost database.
    Restore(backup::RestoreArgs),
}

/// The options of `strongroom serve`. Each overrides the configuration's.
#[derive(Debug, Args)]
struct ServeArgs {
    /// The configuration file.
    #[arg(long, env = "STRONGROOM_CONFIG", default_value = "/etc/strongroom/strongroom.toml")]
    config: PathBuf,
    /// Where gRPC listens (grpc.address).
    #[arg(long)]
    grpc: Option<SocketAddr>,
    /// Where the AWS protocol will listen (aws.address); the port is not opened yet.
    #[arg(long)]
    aws: Option<SocketAddr>,
    /// Where /livez, /readyz and /metrics listen (http.address).
    #[arg(long)]
    http: Option<SocketAddr>,
    /// The data folder (data_dir).
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

impl ServeArgs {
    fn flags(&self) -> std::io::Result<Flags> {
        let addresses = [("grpc.address", self.grpc), ("aws.address", self.aws), ("http.address", self.http)];
        let flags = addresses.iter().fold(Flags::new(), |flags, (key, address)| match address {
            Some(address) => flags.set(key, address.to_string()),
            None => flags,
        });
        match &self.data_dir {
            Some(folder) => flags.set_path("data_dir", folder),
            None => Ok(flags),
        }
    }
}

fn command() -> Command {
    let hsm =
        Command::new("hsm")
            .about("The HSMs")
            .arg_required_else_help(true)
            .subcommand(
                hsm_init::HsmInitArgs::augment_args(Command::new("init"))
                    .about("Hold the ceremony: make the keys of the installation in a token, once"),
            )
            .subcommand(cli::hsm_list_command())
            .subcommand(hsm_bring::HsmBringArgs::augment_args(Command::new("bring")).about(
                "Bring a cluster's wrapping key from one HSM to an empty one, approved by the first's SO",
            ))
            .subcommand(
                hsm_backup::HsmBackupCommand::augment_subcommands(Command::new("backup"))
                    .about("Back a cluster's wrapping key up to several custodians, and restore it")
                    .subcommand_required(true)
                    .arg_required_else_help(true),
            )
            .subcommand(
                hsm_check::HsmCheckArgs::augment_args(Command::new("check"))
                    .about("Try what an HSM is worth to Strongroom, before it is bought or taken in"),
            )
            .subcommands(cli::hsm_commands());
    <Cli as clap::CommandFactory>::command()
        .subcommand(cli::kms_command())
        .subcommand(cli::events_command())
        .subcommand(cli::trail_command())
        .subcommand(cli::iam_command())
        .subcommand(hsm)
        .subcommand(cli::policy_command())
        .subcommand(cli::admin_command())
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    let outcome = match matches.subcommand() {
        Some(("kms", matches)) => client(cli::run_kms(matches)),
        Some(("events", matches)) => client(cli::run_events(matches)),
        Some(("policy", matches)) => client(cli::run_policy(matches)),
        Some(("trail", matches)) => client(cli::run_trail(matches)),
        Some(("iam", matches)) => client(cli::run_iam(matches)),
        Some(("admin", matches)) => client(cli::run_admin(matches)),
        Some(("hsm", hsm)) => match hsm.subcommand() {
            Some(("list", matches)) => client(cli::run_hsm_list(matches)),
            Some((name, matches)) if cli::is_hsm_command(name) => client(cli::run_hsm(name, matches)),
            Some(("backup", matches)) => parsed(matches).and_then(|command| hsm_backup::run(&command)),
            Some(("check", matches)) => parsed(matches).and_then(|args| hsm_check::run(&args)),
            Some(("bring", matches)) => parsed(matches).and_then(|args| hsm_bring::run(&args)),
            Some((_, matches)) => parsed(matches).and_then(|args| hsm_init::run(&args)),
            None => Ok(ExitCode::from(2)),
        },
        _ => Cli::from_arg_matches(&matches).map_err(Into::into).and_then(|cli| run(cli.command)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("strongroom: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Daemon) -> anyhow::Result<ExitCode> {
    match command {
        Daemon::Serve(args) => {
            let hardening = harden();
            let options = daemon::Options { flags: args.flags()?, config: args.config, development: None };
            let config = Config::load(Some(&options.config), &options.flags)?.config;
            daemon::start_log(&config)?;
            hardening.log();
            daemon::run(runtime()?, daemon::serve(options, daemon::announce))?;
        }
        Daemon::Dev(args) => dev::run(&args, runtime)?,
        Daemon::Init(args) => init::run(&args, dev::locate, &mut std::io::stdout())?,
        Daemon::CheckConfig(args) => check_config::run(&args, &mut std::io::stdout())?,
        Daemon::Backup(args) => runtime()?.block_on(backup::backup(&args))?,
        Daemon::Restore(args) => runtime()?.block_on(backup::restore(&args))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn client(work: impl Future<Output = ExitCode>) -> anyhow::Result<ExitCode> {
    Ok(runtime()?.block_on(work))
}

fn parsed<T: FromArgMatches>(matches: &ArgMatches) -> anyhow::Result<T> {
    Ok(T::from_arg_matches(matches)?)
}
