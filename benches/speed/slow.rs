//! An HSM that is a millisecond away: SoftHSM2 behind the tests' PKCS#11 shim,
//! which delays the calls that do the cryptography.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use strongroom::hsm::softhsm;
use strongroom::proto::kms::{KeySpec, KeyUsageType};
use tonic::transport::Channel;

use crate::load::{self, Work};
use crate::operations::{self, create};
use crate::plan::Bench;
use crate::process::{Instance, Process};
use crate::report::Report;
use crate::series::{self, Running, Side};

/// Concurrent clients.
const CLIENTS: usize = 64;
/// Session threads, as for a network HSM.
const THREADS: u32 = 32;
/// What the threads can do at most, each call taking a millisecond.
const MOST: f64 = THREADS as f64 * 1000.0;
const RULES: &str = "C_Encrypt delay_ms=1\nC_Decrypt delay_ms=1\nC_Sign delay_ms=1\n";
const SCENARIO: &str = "slow HSM";

/// Encrypt with and without the delay, both through the shim and with as many
/// threads, in turns.
pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some(shim) = shim()? else {
        eprintln!(
            "left out: build the shim first, `cargo build --example pkcs11_shim` with the same profile"
        );
        return Ok(());
    };
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let mut running = Vec::new();
    for (name, rules) in [("without the delay", ""), ("1 ms more", RULES)] {
        let instance = bench.instance(&format!("slow-{}", running.len()), program)?;
        let (process, channels) = start(&instance, &shim, rules).await?;
        let channel = channels.first().context("no connection")?;
        let key = create(channel, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
        let work = Work::one(operations::path("Encrypt")?, &operations::encrypt(key, 32));
        running.push(Running { name, process, channels, work });
    }
    let sides: Vec<Side<'_>> = running.iter().map(Running::side).collect();
    let series = series::measure(&bench.plan, &sides).await?;
    let [near, far] = series.as_slice() else { return Ok(()) };
    for side in [near, far] {
        report.figure(SCENARIO, format!("Encrypt 32 B, {}", side.name), side.rate().median, "per second");
        report.figure(SCENARIO, format!("Encrypt 32 B, {}: p99", side.name), side.quantile_ms(0.99), "ms");
    }
    let possible = near.rate().median.min(MOST);
    report.at_least("Encrypt 32 B, 1 ms more, of what is possible", 0.9, far.rate().median / possible);
    drop(sides);
    running.into_iter().try_for_each(Running::stop)
}

#[allow(clippy::indexing_slicing, reason = "toml_edit makes a key that is missing")]
async fn start(instance: &Instance, shim: &Path, rules: &str) -> anyhow::Result<(Process, Vec<Channel>)> {
    let real = softhsm::library().context(softhsm::INSTALL_HINT)?;
    let file = instance.dir.with_extension("rules");
    fs::write(&file, rules)?;
    instance.start()?.stop()?;
    let mut configuration: toml_edit::DocumentMut = fs::read_to_string(instance.configuration())?.parse()?;
    let variables = &mut configuration["modules"]["softhsm2"]["environment"];
    variables["PKCS11_SHIM_MODULE"] = toml_edit::value(real.display().to_string());
    variables["PKCS11_SHIM_RULES"] = toml_edit::value(file.display().to_string());
    fs::write(instance.configuration(), configuration.to_string())?;
    let environment = [
        (softhsm::LIBRARY_VARIABLE, shim.display().to_string()),
        ("STRONGROOM_HSM__SESSION_THREADS", THREADS.to_string()),
    ];
    let process = instance.start_with(&environment)?;
    let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
    Ok((process, load::connect(&endpoint, CLIENTS).await?))
}

/// The shim, where cargo puts examples of this build.
fn shim() -> anyhow::Result<Option<PathBuf>> {
    let program = std::env::current_exe()?;
    let profile = program.parent().and_then(|deps| deps.parent()).context("no target folder")?;
    Ok(Some(profile.join("examples/libpkcs11_shim.so")).filter(|file| file.is_file()))
}
