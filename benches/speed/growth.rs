//! From ten keys to a million: what a start costs, and what a call.

use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use strongroom::proto::kms::{self, KeySpec, KeyUsageType};
use tonic::transport::Channel;

use crate::load::{self, Clients, Work};
use crate::operations::{self, create};
use crate::plan::Bench;
use crate::process::{Instance, Process};
use crate::report::Report;
use crate::series::{self, Side};

/// Concurrent clients.
const CLIENTS: usize = 64;
/// Keys that the API makes before the fixture writes the others.
const BY_THE_API_MAX: usize = 10_000;
/// CreateKey calls at the same time.
const CREATES_AT_ONCE: usize = 64;
const SCENARIO: &str = "growth";

/// A daemon over so many keys.
struct Grown {
    name: String,
    keys: Arc<Vec<String>>,
    process: Process,
    channels: Vec<Channel>,
}

/// Wrapped keys, which are rows of the store, and resident keys, which are
/// objects of the token.
pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    wrapped(bench, report).await?;
    resident(bench, report).await
}

/// Starts a daemon over each number of keys, and lets them take turns.
async fn wrapped(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let mut grown = Vec::new();
    for count in &bench.plan.keys {
        let instance = bench.instance(&format!("keys-{count}"), program)?;
        grown.push(grow(instance, *count, report).await?);
    }
    let most = grown.iter().map(|one| one.keys.len()).max().unwrap_or(0);
    // With one client nobody waits for another's unwrapping, but for its own alone.
    let accesses = [
        ("hot key", hot as Choice, CLIENTS),
        ("uniform", uniform, CLIENTS),
        ("Zipf", zipf, CLIENTS),
        ("hot key, one client", hot, 1),
        ("uniform, one client", uniform, 1),
    ];
    for (access, work, callers) in accesses {
        let mut sides = Vec::new();
        for one in &grown {
            let keys = one.keys.clone();
            let message = move |random| {
                let key = keys.get(work(random, keys.len())).cloned();
                Bytes::from(operations::encrypt(key, 32).encode_to_vec())
            };
            let work = Work { path: operations::path("Encrypt")?, message: Arc::new(message) };
            let clients = Clients::Grpc(one.channels.split_at(one.channels.len().min(callers)).0, work);
            sides.push(Side { name: &one.name, clients, process: &one.process });
        }
        let series = series::measure(&bench.plan, &sides).await?;
        let Some(smallest) = series.first() else { return Ok(()) };
        for (one, side) in grown.iter().zip(&series) {
            let name = |what: &str| format!("{}, {access}: {what}", one.name);
            report.figure(SCENARIO, name("Encrypt 32 B"), side.rate().median, "per second");
            report.figure(SCENARIO, name("of the fewest keys"), side.ratio(smallest).median, "");
            report.figure(SCENARIO, name("p50"), side.quantile_ms(0.5), "ms");
            report.figure(SCENARIO, name("p99"), side.quantile_ms(0.99), "ms");
            report.figure(SCENARIO, name("memory"), side.resident_mib, "MiB");
            if access == "hot key" && one.keys.len() == most {
                report.at_least(
                    format!("{}, hot key, of the fewest", one.name),
                    0.9,
                    side.ratio(smallest).median,
                );
            }
        }
    }
    grown.into_iter().try_for_each(Grown::stop)
}

/// The same with keys of a kind that SoftHSM2 cannot wrap: one of them signs.
async fn resident(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let mut grown = Vec::new();
    for count in &bench.plan.resident {
        eprintln!("making {count} resident keys");
        let instance = bench.instance(&format!("resident-{count}"), program)?;
        let process = instance.start()?;
        let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
        let keys = make(&endpoint.connect().await?, *count, KeySpec::EccNistEdwards25519).await?;
        process.stop()?;
        grown.push(Grown::start(&instance, format!("{count} resident keys"), keys, report).await?);
    }
    let mut sides = Vec::new();
    for one in &grown {
        let request = kms::SignRequest {
            key_id: one.keys.first().cloned(),
            message: Some(vec![7; 32]),
            signing_algorithm: Some(kms::SigningAlgorithmSpec::Ed25519Sha512 as i32),
            ..Default::default()
        };
        let clients = Clients::Grpc(&one.channels, Work::one(operations::path("Sign")?, &request));
        sides.push(Side { name: &one.name, clients, process: &one.process });
    }
    let series = series::measure(&bench.plan, &sides).await?;
    for (one, side) in grown.iter().zip(&series) {
        report.figure(SCENARIO, format!("{}: Sign Ed25519", one.name), side.rate().median, "per second");
    }
    if let [fewest, .., most] = series.as_slice() {
        report.at_least(format!("{}, hot key, of the fewest", most.name), 0.9, most.ratio(fewest).median);
    }
    grown.into_iter().try_for_each(Grown::stop)
}

async fn grow(instance: Instance, count: usize, report: &mut Report) -> anyhow::Result<Grown> {
    eprintln!("making {count} keys");
    let process = instance.start()?;
    let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
    let by_the_api = count.min(BY_THE_API_MAX);
    let mut keys = make(&endpoint.connect().await?, by_the_api, KeySpec::SymmetricDefault).await?;
    process.stop()?;
    if count > keys.len() {
        keys.extend(fill(&instance, count - keys.len())?);
    }
    Grown::start(&instance, format!("{count} keys"), keys, report).await
}

impl Grown {
    async fn start(
        instance: &Instance,
        name: String,
        keys: Vec<String>,
        report: &mut Report,
    ) -> anyhow::Result<Grown> {
        let process = instance.start()?;
        let seconds = process.start_up.as_secs_f64();
        report.figure(SCENARIO, format!("{name}: start"), seconds, "s");
        report.figure(SCENARIO, format!("{name}: memory after the start"), process.resident_mib()?, "MiB");
        // It reads all of the log once, in the background.
        let check = process.says("were checked, and nothing was found")?.as_secs_f64();
        report.figure(SCENARIO, format!("{name}: the check after the start"), check, "s");
        report.figure(SCENARIO, format!("{name}: memory after the check"), process.resident_mib()?, "MiB");
        report.at_most(format!("{name}: start, seconds"), 2.0, seconds);
        let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
        let channels = load::connect(&endpoint, CLIENTS).await?;
        Ok(Grown { name, keys: Arc::new(keys), process, channels })
    }

    fn stop(self) -> anyhow::Result<()> {
        drop(self.channels);
        self.process.stop()
    }
}

/// Makes keys through the API: their ids.
async fn make(channel: &Channel, count: usize, spec: KeySpec) -> anyhow::Result<Vec<String>> {
    let usage = match spec {
        KeySpec::SymmetricDefault => KeyUsageType::EncryptDecrypt,
        _ => KeyUsageType::SignVerify,
    };
    stream::iter(0..count)
        .map(|_| create(channel, spec, usage))
        .buffer_unordered(CREATES_AT_ONCE)
        .try_filter_map(|id| async move { Ok(id) })
        .try_collect()
        .await
}

/// Has another process write keys into the store of a stopped instance.
fn fill(instance: &Instance, count: usize) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--fill").arg(&instance.dir).arg("--count").arg(count.to_string());
    let output = command.stderr(Stdio::inherit()).output()?;
    anyhow::ensure!(output.status.success(), "the fixture failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// Which of so many keys a random number means.
type Choice = fn(u64, usize) -> usize;

fn hot(_: u64, _: usize) -> usize {
    0
}

fn uniform(random: u64, keys: usize) -> usize {
    (random >> 11) as usize % keys
}

/// Zipf's law with exponent 1: the logarithm of the rank is uniform.
fn zipf(random: u64, keys: usize) -> usize {
    let part = (random >> 11) as f64 / (1_u64 << 53) as f64;
    ((keys as f64).powf(part) as usize).min(keys) - 1
}
