//! `make bench`: how near the daemon comes to what its HSM and gRPC can do.
//!
//! Machines differ, so speed is a ratio: in one run, side by side in short
//! turns, the ceilings (SoftHSM2 called in this process, a bare tonic echo over
//! the same mutual TLS, that echo with an HSM's work and an fsync) and a real
//! `strongroom` process with its default configuration. Where client, daemon and HSM share the cores, the ceiling of
//! an operation with echo rate E and HSM rate R is 1/(1/E + 1/R).
//!
//! It prints a table and writes `target/bench/speed.json` and `speed.svg`.

mod aws;
mod bare;
mod ceilings;
mod disk;
mod echo;
mod events;
mod fill;
mod growth;
mod load;
mod operations;
mod overload;
mod plan;
mod process;
mod raw;
mod report;
mod series;
mod slow;
mod unrecorded;
mod watched;

use std::path::PathBuf;

use clap::Parser;

use plan::{Bench, Plan, Scenario};

/// How near Strongroom comes to its HSM and gRPC.
#[derive(Debug, Parser)]
struct Args {
    /// Only show that everything runs: seconds, and figures that mean nothing.
    #[arg(long, conflicts_with = "full")]
    short: bool,
    /// Also what takes long: 1,000,000 keys, 10,000,000 events.
    #[arg(long)]
    full: bool,
    /// Only these scenarios.
    #[arg(long, value_enum)]
    only: Vec<Scenario>,
    /// Only these operations.
    #[arg(long)]
    operation: Vec<String>,
    /// Only so many clients.
    #[arg(long)]
    clients: Vec<usize>,
    /// Only so many keys in the store.
    #[arg(long)]
    keys: Vec<usize>,
    /// Only so many keys in the token.
    #[arg(long)]
    resident: Vec<usize>,
    /// Only so many events in the log.
    #[arg(long)]
    events: Vec<u64>,
    /// Turns of each side.
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds of a turn.
    #[arg(long)]
    turn_ms: Option<u64>,
    /// Another `strongroom`, measured beside this one: before and after.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Where the results go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the echo server, with the certificates of this folder.
    #[arg(long, hide = true)]
    echo: Option<PathBuf>,
    /// Be a bare daemon with this folder.
    #[arg(long, hide = true, requires = "echo")]
    bare: Option<PathBuf>,
    /// With so many threads for the HSM.
    #[arg(long, hide = true, requires = "bare")]
    hsm_threads: Option<usize>,
    /// Be the fixture that writes keys into this stopped instance.
    #[arg(long, hide = true, requires = "count")]
    fill: Option<PathBuf>,
    /// How many.
    #[arg(long, hide = true)]
    count: Option<usize>,
    /// Be a daemon with this configuration that keeps no events.
    #[arg(long, hide = true)]
    unrecorded: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(pki) = &args.echo {
        let bare = args.bare.map(|folder| bare::Bare::new(&folder, args.hsm_threads)).transpose()?;
        return runtime()?.block_on(echo::serve(pki, bare));
    }
    if let (Some(dir), Some(count)) = (&args.fill, args.count) {
        return runtime()?.block_on(fill::keys(dir, count));
    }
    if let Some(configuration) = args.unrecorded {
        return runtime()?.block_on(unrecorded::serve(configuration));
    }
    let mut plan = match (args.short, args.full) {
        (true, _) => Plan::short(),
        (false, true) => Plan::full(),
        (false, false) => Plan::usual(),
    };
    plan.choose(&args);
    let bench = Bench::new(plan, &args.out, args.against)?;
    let token = bench.token()?;
    runtime()?.block_on(bench.run(&token))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
