//! What is measured, how long, and in which order.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum as _;
use tempfile::TempDir;

use crate::Args;
use crate::process::{Instance, Process};
use crate::raw::Token;
use crate::report::Report;
use crate::{aws, ceilings, events, growth, overload, slow, unrecorded, watched};

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// The HSM alone, by threads.
    Hsm,
    /// Every operation beside the echo.
    Operations,
    /// What it costs that every event is durable.
    Durability,
    /// What trails, rules and Insights cost.
    Watched,
    /// The AWS JSON protocol beside gRPC.
    Aws,
    /// From few keys to many.
    Growth,
    /// The event log.
    Events,
    /// An HSM that is a millisecond away.
    SlowHsm,
    /// More requests than can be done.
    Overload,
}

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Plan {
    pub scenarios: Vec<Scenario>,
    /// Turns of each side.
    pub rounds: usize,
    /// The length of a turn.
    pub turn: Duration,
    /// Concurrent clients, each with its own connection.
    pub clients: Vec<usize>,
    /// Threads that call the HSM in this process.
    pub threads: Vec<usize>,
    /// Keys in the store.
    pub keys: Vec<usize>,
    /// Keys that are objects of the token.
    pub resident: Vec<usize>,
    /// Events in the log.
    pub events: Vec<u64>,
    /// Requests in flight of the overload.
    pub overload: usize,
    /// The operations' names; all where it is empty.
    pub operations: Vec<String>,
}

impl Plan {
    /// Seconds: shows that it runs.
    pub fn short() -> Plan {
        Plan {
            rounds: 1,
            turn: Duration::from_millis(40),
            clients: vec![1, 8],
            threads: vec![1, 2],
            keys: vec![10, 200],
            resident: vec![1, 10],
            events: vec![2_000],
            overload: 1_000,
            ..Plan::usual()
        }
    }

    /// Minutes.
    pub fn usual() -> Plan {
        Plan {
            scenarios: Scenario::value_variants().to_vec(),
            rounds: 7,
            turn: Duration::from_millis(400),
            clients: vec![1, 8, 32, 64, 256],
            threads: vec![1, 2, 4, 8],
            keys: vec![10, 1_000, 100_000],
            resident: vec![10, 1_000],
            events: vec![1_000_000],
            overload: 10_000,
            operations: Vec::new(),
        }
    }

    /// An hour.
    pub fn full() -> Plan {
        Plan {
            rounds: 15,
            turn: Duration::from_secs(1),
            keys: vec![10, 1_000, 100_000, 1_000_000],
            resident: vec![10, 1_000, 10_000],
            events: vec![1_000_000, 10_000_000],
            ..Plan::usual()
        }
    }

    /// Leaves only what was asked for.
    pub fn choose(&mut self, args: &Args) {
        fn only<T: Clone>(all: &mut Vec<T>, wanted: &[T]) {
            if !wanted.is_empty() {
                *all = wanted.to_vec();
            }
        }
        only(&mut self.scenarios, &args.only);
        only(&mut self.operations, &args.operation);
        only(&mut self.clients, &args.clients);
        only(&mut self.keys, &args.keys);
        only(&mut self.resident, &args.resident);
        only(&mut self.events, &args.events);
        self.rounds = args.rounds.unwrap_or(self.rounds);
        self.turn = args.turn_ms.map_or(self.turn, Duration::from_millis);
    }
}

/// One run.
pub struct Bench {
    pub plan: Plan,
    /// Everything that is made for the run, gone at its end.
    work: TempDir,
    out: PathBuf,
    /// The daemons that are compared: their names and programs.
    pub programs: Vec<(&'static str, PathBuf)>,
}

impl Bench {
    pub fn new(plan: Plan, out: &Path, against: Option<PathBuf>) -> anyhow::Result<Bench> {
        std::fs::create_dir_all(out)?;
        // Beside the results: the disk that is measured is the one of the checkout.
        let work = tempfile::tempdir_in(out)?;
        let mut programs = vec![("strongroom", PathBuf::from(env!("CARGO_BIN_EXE_strongroom")))];
        programs.extend(against.map(|program| ("against", program)));
        Ok(Bench { plan, work, out: out.to_owned(), programs })
    }

    /// This process's own token. Before any thread is started.
    pub fn token(&self) -> anyhow::Result<Token> {
        Token::new(&self.folder("ceiling")?)
    }

    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = std::path::absolute(self.work.path())?.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// A new instance of a program.
    pub fn instance(&self, name: &str, program: &Path) -> anyhow::Result<Instance> {
        Ok(Instance::new(&self.folder("instances")?, name, program))
    }

    /// The echo server with an instance's certificates.
    pub fn echo(&self, instance: &Instance) -> anyhow::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--echo").arg(instance.pki());
        Process::start(command, &self.work.path().join("echo.log"))
    }

    /// The bare daemon with an instance's certificates.
    pub fn bare(&self, instance: &Instance) -> anyhow::Result<Process> {
        self.bare_with(instance, "bare", None, &[])
    }

    /// The same by another name, with so many threads for the HSM and more in
    /// its environment.
    pub fn bare_with(
        &self,
        instance: &Instance,
        name: &str,
        hsm_threads: Option<u32>,
        environment: &[(&str, String)],
    ) -> anyhow::Result<Process> {
        let folder = self.folder(name)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--echo").arg(instance.pki()).arg("--bare").arg(&folder);
        command.args(hsm_threads.map(|threads| format!("--hsm-threads={threads}")));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Process::start(command, &folder.with_extension("log"))
    }

    /// Runs the scenarios, prints and writes what they found.
    pub async fn run(&self, token: &Token) -> anyhow::Result<()> {
        let mut report = Report::new(&self.plan);
        for scenario in &self.plan.scenarios {
            eprintln!("{scenario:?}");
            match scenario {
                Scenario::Hsm => ceilings::hsm(self, token, &mut report)?,
                Scenario::Operations => ceilings::operations(self, token, &mut report).await?,
                Scenario::Durability => unrecorded::compare(self, &mut report).await?,
                Scenario::Watched => watched::compare(self, &mut report).await?,
                Scenario::Aws => aws::compare(self, &mut report).await?,
                Scenario::Growth => growth::run(self, &mut report).await?,
                Scenario::Events => events::run(self, &mut report).await?,
                Scenario::SlowHsm => slow::run(self, &mut report).await?,
                Scenario::Overload => overload::run(self, &mut report).await?,
            }
        }
        report.print();
        report.write(&self.out)
    }
}
