//! The clients: `strongroom kms`, `events`, `trail`, `iam`, `hsm`, `policy` and `admin`, over
//! gRPC.
//!
//! The commands are made at run time from the protobuf descriptors: an
//! operation that is added to proto/ has its command, its flags, its help (the
//! proto's comments) and its output without a line here.
//!
//! ```text
//! descriptors ─ schema ─→ arguments (flags → request) ─→ call ─→ json → output
//!                              values, shorthand            │
//!                                              connection ──┘
//! ```
//!
//! Exit codes, those of the AWS CLI where it has one:
//!
//! | Code | Meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | `events verify` or `trail verify` has findings; `policy explain` tells that access is denied |
//! | 2 | the command line or a value on it is wrong |
//! | 130 | interrupted (`events tail`) |
//! | 141 | standard output was closed |
//! | 253 | the connection's settings are missing or wrong |
//! | 254 | the service answered with an exception |
//! | 255 | anything else: no connection, no answer in time, a file that cannot be written |

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{ArgMatches, Command};

mod arguments;
mod call;
mod connection;
mod events;
mod hsm;
mod json;
mod operation;
mod output;
mod policy;
mod schema;
mod shorthand;
#[cfg(test)]
mod testing;
mod time;
mod trail;
mod values;

use call::ServiceError;
use schema::Service;

/// `strongroom kms`: every operation of KeyManagementService.
pub fn kms_command() -> Command {
    operation::command("kms", "Call the KMS operations, in the AWS CLI's terms", Service::Kms)
}

/// Runs what [`kms_command`] matched; errors are printed to standard error.
pub async fn run_kms(matches: &ArgMatches) -> ExitCode {
    exit_code(operation::run(Service::Kms, matches).await)
}

/// `strongroom iam`: every operation of IdentityService.
pub fn iam_command() -> Command {
    operation::command("iam", "Make, list, change and delete access keys", Service::Iam)
}

/// Runs what [`iam_command`] matched; errors are printed to standard error.
pub async fn run_iam(matches: &ArgMatches) -> ExitCode {
    exit_code(operation::run(Service::Iam, matches).await)
}

/// `strongroom admin`: every operation of AdminService.
pub fn admin_command() -> Command {
    operation::command("admin", "Do what only the host may do, over the daemon's Unix socket", Service::Admin)
}

/// Runs what [`admin_command`] matched; errors are printed to standard error.
pub async fn run_admin(matches: &ArgMatches) -> ExitCode {
    exit_code(operation::run(Service::Admin, matches).await)
}

/// `strongroom policy`: explain.
pub fn policy_command() -> Command {
    policy::command()
}

/// Runs what [`policy_command`] matched; errors are printed to standard error.
pub async fn run_policy(matches: &ArgMatches) -> ExitCode {
    exit_code(policy::run(matches).await)
}

/// `strongroom trail`: every operation of CloudTrailService, and verify.
pub fn trail_command() -> Command {
    trail::command()
}

/// Runs what [`trail_command`] matched; errors are printed to standard error.
pub async fn run_trail(matches: &ArgMatches) -> ExitCode {
    exit_code(trail::run(matches).await)
}

/// `strongroom events`: tail, lookup and verify.
pub fn events_command() -> Command {
    events::command()
}

/// Runs what [`events_command`] matched; errors are printed to standard error.
pub async fn run_events(matches: &ArgMatches) -> ExitCode {
    exit_code(events::run(matches).await)
}

/// `list`, for `strongroom hsm`.
pub fn hsm_list_command() -> Command {
    hsm::list_command()
}

/// `cluster` and `member`, for `strongroom hsm`.
pub fn hsm_commands() -> impl Iterator<Item = Command> {
    hsm::group_commands()
}

/// Whether [`hsm_commands`] has a command.
pub fn is_hsm_command(name: &str) -> bool {
    hsm::is_group(name)
}

/// Runs what [`hsm_commands`] matched; errors are printed to standard error.
pub async fn run_hsm(name: &str, matches: &ArgMatches) -> ExitCode {
    exit_code(hsm::run_group(name, matches).await)
}

/// Runs what [`hsm_list_command`] matched; errors are printed to standard error.
pub async fn run_hsm_list(matches: &ArgMatches) -> ExitCode {
    exit_code(hsm::run_list(matches).await)
}

/// Prints a table for people, as the clients do.
///
/// # Errors
/// Where standard output cannot be written.
pub fn print_table(header: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    let header: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
    let text = format!("{}\n", output::table(&header, rows));
    output::to_stdout(text.as_bytes()).map_err(|failure| anyhow::anyhow!("{failure}"))
}

/// Prints JSON for programs, as the clients do.
///
/// # Errors
/// Where standard output cannot be written.
pub fn print_json(json: &serde_json::Value) -> anyhow::Result<()> {
    output::to_stdout(&output::lines(json)).map_err(|failure| anyhow::anyhow!("{failure}"))
}

/// Why a command did not do what it was asked. No text holds an argument's value
/// that may be secret.
#[derive(Debug)]
enum Failure {
    /// The command line, or a value on it.
    Usage(String),
    /// The connection's settings.
    Settings(String),
    /// The service's exception.
    Service(Box<ServiceError>),
    /// No connection, or no answer; trying again may help.
    Connection(String),
    /// A file or a stream of this machine.
    Local(String),
    /// Nobody reads standard output any more.
    BrokenPipe,
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Usage(_) => 2,
            Failure::BrokenPipe => 141,
            Failure::Settings(_) => 253,
            Failure::Service(_) => 254,
            Failure::Connection(_) | Failure::Local(_) => 255,
        })
    }

    /// An error of writing to standard output.
    fn of_output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Local(format!("standard output cannot be written: {error}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Service(error) => error.fmt(f),
            Failure::Usage(text)
            | Failure::Settings(text)
            | Failure::Connection(text)
            | Failure::Local(text) => write!(f, "error: {text}"),
            Failure::BrokenPipe => f.write_str("error: standard output was closed"),
        }
    }
}

fn exit_code(result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| {
        if !matches!(failure, Failure::BrokenPipe) {
            notice(&failure);
        }
        failure.exit_code()
    })
}

/// Tells the person at the terminal. Where standard error is closed, nobody listens.
fn notice(text: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
