//! The operations beside their ceilings.

use tonic::transport::Channel;

use crate::load::{self, Clients, Work};
use crate::operations::{self, Operation};
use crate::plan::Bench;
use crate::process::{Instance, Process};
use crate::raw::{Function, Token};
use crate::report::Report;
use crate::series::{self, Side, Spread};
use crate::{disk, echo};

/// What two hand-offs between threads may cost.
const HAND_OFFS_MS: f64 = 0.1;
const ALONE: &str = "one client";

/// The HSM alone: each function with a token object and a session object, by
/// threads, in turns.
pub fn hsm(bench: &Bench, token: &Token, report: &mut Report) -> anyhow::Result<()> {
    for (name, function) in Function::ALL {
        let keys =
            [("token object", token.key(function, true)?), ("session object", token.key(function, false)?)];
        let mut rates = vec![Vec::new(); keys.len() * bench.plan.threads.len()];
        for _ in 0..bench.plan.rounds {
            let turns =
                keys.iter().flat_map(|(_, key)| bench.plan.threads.iter().map(move |threads| (key, threads)));
            for ((key, threads), rates) in turns.zip(&mut rates) {
                rates.push(token.rate(function, *key, *threads, bench.plan.turn / 2)?);
            }
        }
        let turns = keys
            .iter()
            .flat_map(|(object, _)| bench.plan.threads.iter().map(move |threads| (object, threads)));
        for ((object, threads), rates) in turns.zip(rates) {
            report.hsm(name, object, *threads, Spread::of(rates));
        }
    }
    Ok(())
}

/// A server that is a ceiling, with connections.
struct Ceiling {
    process: Process,
    channels: Vec<Channel>,
}

impl Ceiling {
    async fn start(process: Process, instance: &Instance, connections: usize) -> anyhow::Result<Ceiling> {
        let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
        Ok(Ceiling { channels: load::connect(&endpoint, connections).await?, process })
    }

    fn side(&self, name: &'static str, work: Work, clients: usize) -> Side<'_> {
        let channels = self.channels.split_at(self.channels.len().min(clients)).0;
        Side { name, clients: Clients::Grpc(channels, work), process: &self.process }
    }
}

/// A running daemon with connections.
pub struct Running<'a> {
    pub name: &'a str,
    pub instance: Instance,
    pub process: Process,
    pub channels: Vec<Channel>,
}

impl<'a> Running<'a> {
    /// Starts every program that is compared.
    pub async fn all(
        bench: &'a Bench,
        scenario: &str,
        connections: usize,
    ) -> anyhow::Result<Vec<Running<'a>>> {
        let mut running = Vec::new();
        for (name, program) in &bench.programs {
            let instance = bench.instance(&format!("{scenario}-{name}"), program)?;
            let process = instance.start()?;
            let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
            let channels = load::connect(&endpoint, connections).await?;
            running.push(Running { name, instance, process, channels });
        }
        Ok(running)
    }
}

/// Each operation beside an echo of messages of its size, the bare daemon, and
/// the HSM's best rate for it.
pub async fn operations(bench: &Bench, token: &Token, report: &mut Report) -> anyhow::Result<()> {
    let most = bench.plan.clients.iter().copied().max().unwrap_or(1);
    let daemons = Running::all(bench, "operations", most).await?;
    let Some(first) = daemons.first() else { return Ok(()) };
    let echo = Ceiling::start(bench.echo(&first.instance)?, &first.instance, most).await?;
    let bare = Ceiling::start(bench.bare(&first.instance)?, &first.instance, most).await?;
    let mut prepared = Vec::new();
    for daemon in &daemons {
        let channel = daemon.channels.first().ok_or_else(|| anyhow::anyhow!("no clients"))?;
        prepared.push(operations::prepare(channel, &bench.plan.operations).await?);
    }
    let count = prepared.first().map_or(0, Vec::len);
    for number in 0..count {
        let operations: Vec<&Operation> = prepared.iter().filter_map(|all| all.get(number)).collect();
        for clients in &bench.plan.clients {
            one(bench, token, report, (&echo, &bare), &daemons, &operations, *clients).await?;
        }
    }
    drop((echo, bare));
    for daemon in daemons {
        drop(daemon.channels);
        daemon.process.stop()?;
    }
    Ok(())
}

async fn one(
    bench: &Bench,
    token: &Token,
    report: &mut Report,
    (echo, bare): (&Ceiling, &Ceiling),
    daemons: &[Running<'_>],
    operations: &[&Operation],
    clients: usize,
) -> anyhow::Result<()> {
    let Some(first) = operations.first() else { return Ok(()) };
    eprintln!("{} with {clients} clients", first.name);
    let echoed = Work { path: echo::path(first.answer_bytes)?, ..first.work.clone() };
    let mut sides = vec![echo.side("echo", echoed, clients)];
    for (daemon, operation) in daemons.iter().zip(operations) {
        sides.push(Side {
            name: daemon.name,
            clients: Clients::Grpc(
                daemon.channels.split_at(daemon.channels.len().min(clients)).0,
                operation.work.clone(),
            ),
            process: &daemon.process,
        });
    }
    if let Some(function) = first.function {
        let work = Work { path: echo::path_of(function, first.answer_bytes)?, ..first.work.clone() };
        sides.push(bare.side("bare", work, clients));
    }
    let series = series::measure(&bench.plan, &sides).await?;
    let raw = best(bench, token, first.function)?;
    report.operation(first.name, clients, &series, raw);
    if let (1, Some(function)) = (clients, first.function) {
        alone(bench, token, report, function, first.name, &series)?;
    }
    Ok(())
}

/// One client's latency beside what it cannot be without: the echo, the HSM's
/// work, an fsync, and two hand-offs between threads.
fn alone(
    bench: &Bench,
    token: &Token,
    report: &mut Report,
    function: Function,
    name: &str,
    series: &[series::Series],
) -> anyhow::Result<()> {
    let [echo, own, ..] = series else { return Ok(()) };
    let hsm_ms = 1000.0 / token.rate(function, token.key(function, false)?, 1, bench.plan.turn)?;
    let fsync_ms = disk::fsync_ms(&bench.folder("disk")?, bench.plan.turn)?;
    let least_ms = echo.quantile_ms(0.5) + hsm_ms + fsync_ms + HAND_OFFS_MS;
    for (what, ms) in [("echo, p50", echo.quantile_ms(0.5)), ("HSM", hsm_ms), ("fsync, p50", fsync_ms)] {
        report.figure(ALONE, format!("{name}: {what}"), ms, "ms");
    }
    report.at_most(format!("{name}, one client: p50 ms"), least_ms, own.quantile_ms(0.5));
    Ok(())
}

/// The HSM's best rate for a function, right beside what it is compared with.
fn best(bench: &Bench, token: &Token, function: Option<Function>) -> anyhow::Result<Option<f64>> {
    let Some(function) = function else { return Ok(None) };
    let key = token.key(function, false)?;
    let mut best: f64 = 0.0;
    for threads in &bench.plan.threads {
        let mut rates = Vec::new();
        for _ in 0..bench.plan.rounds.min(3) {
            rates.push(token.rate(function, key, *threads, bench.plan.turn / 4)?);
        }
        best = best.max(Spread::of(rates).median);
    }
    Ok(Some(best))
}
