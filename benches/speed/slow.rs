//! An HSM that is a millisecond away: SoftHSM2 behind the tests' PKCS#11 shim,
//! which delays the calls that do the cryptography.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use strongroom::hsm::softhsm;
use tonic::transport::Channel;

use crate::echo;
use crate::load::{self, Work};
use crate::operations::{self, Operation};
use crate::plan::Bench;
use crate::process::{Instance, Process};
use crate::report::Report;
use crate::series::{self, Running, Series, Side, Spread};

/// Concurrent clients.
const CLIENTS: usize = 64;
/// Session threads, as for a network HSM.
const THREADS: u32 = 32;
/// What the threads can do at most, each call taking a millisecond.
const MOST: f64 = THREADS as f64 * 1000.0;
const RULES: &str = "C_Encrypt delay_ms=1\nC_Decrypt delay_ms=1\nC_Sign delay_ms=1\n";
const SCENARIO: &str = "slow HSM";
/// What the shim does, for the daemon and the bare daemon of these names.
const SIDES: [(&str, &str, &str); 2] = [
    ("", "without the delay", "the bare daemon without the delay"),
    (RULES, "1 ms more", "the bare daemon with 1 ms more"),
];
const ENCRYPT: &str = "Encrypt 32 B";

/// Encrypt with and without the delay, both through the shim and with as many
/// threads, by a daemon and by a bare one, in turns.
pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some(shim) = shim()? else {
        eprintln!(
            "left out: build the shim first, `cargo build --example pkcs11_shim` with the same profile"
        );
        return Ok(());
    };
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let mut running = Vec::new();
    for (number, (rules, own, bare)) in SIDES.into_iter().enumerate() {
        let instance = bench.instance(&format!("slow-{number}"), program)?;
        let shim = Shim::new(&shim, &instance, rules)?;
        let process = shim.start(&instance)?;
        let channels = connect(&process, &instance).await?;
        let channel = channels.first().context("no connection")?;
        let encrypt = operations::prepare(channel, &[ENCRYPT.to_owned()]).await?.pop();
        let Operation { work, function, answer_bytes, .. } = encrypt.context("no Encrypt")?;

        let function = function.context("it has no work for the HSM")?;
        let same = Work { path: echo::path_of(function, answer_bytes)?, ..work.clone() };
        running.push(Running { name: own, process, channels, work });
        let process =
            bench.bare_with(&instance, &format!("bare-{number}"), Some(THREADS), &shim.environment())?;
        let channels = connect(&process, &instance).await?;
        running.push(Running { name: bare, process, channels, work: same });
    }
    let sides: Vec<Side<'_>> = running.iter().map(Running::side).collect();
    let series = series::measure(&bench.plan, &sides).await?;
    for side in &series {
        let name = |what: &str| format!("{ENCRYPT}, {}{what}", side.name);
        report.figure(SCENARIO, name(""), side.rate().median, "per second");
        report.figure(SCENARIO, name(": p99"), side.quantile_ms(0.99), "ms");
        report.figure(SCENARIO, name(": CPU"), Spread::of(side.cpu_us.clone()).median, "µs per call");
    }
    let [near, bare_near, far, bare_far] = series.as_slice() else { return Ok(()) };
    let of_possible = |near: &Series, far: &Series| far.rate().median / near.rate().median.min(MOST);
    let bare = of_possible(bare_near, bare_far);
    report.figure(SCENARIO, format!("{ENCRYPT}, the bare daemon: of what is possible"), bare, "");
    report.at_least(format!("{ENCRYPT}, 1 ms more, of what is possible"), 0.9, of_possible(near, far));
    drop(sides);
    running.into_iter().try_for_each(Running::stop)
}

async fn connect(process: &Process, instance: &Instance) -> anyhow::Result<Vec<Channel>> {
    let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
    load::connect(&endpoint, CLIENTS).await
}

/// The shim before SoftHSM2, with rules.
struct Shim {
    library: PathBuf,
    variables: [(&'static str, String); 2],
}

impl Shim {
    fn new(library: &Path, instance: &Instance, rules: &str) -> anyhow::Result<Shim> {
        let real = softhsm::library().context(softhsm::INSTALL_HINT)?;
        let file = instance.dir.with_extension("rules");
        fs::write(&file, rules)?;
        let variables = [
            ("PKCS11_SHIM_MODULE", real.display().to_string()),
            ("PKCS11_SHIM_RULES", file.display().to_string()),
        ];
        Ok(Shim { library: library.to_owned(), variables })
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let library = (softhsm::LIBRARY_VARIABLE, self.library.display().to_string());
        self.variables.iter().cloned().chain([library]).collect()
    }

    /// A daemon behind it.
    #[allow(clippy::indexing_slicing, reason = "toml_edit makes a key that is missing")]
    fn start(&self, instance: &Instance) -> anyhow::Result<Process> {
        instance.start()?.stop()?;
        let mut configuration: toml_edit::DocumentMut =
            fs::read_to_string(instance.configuration())?.parse()?;
        for (name, value) in &self.variables {
            configuration["modules"]["softhsm2"]["environment"][*name] = toml_edit::value(value);
        }
        fs::write(instance.configuration(), configuration.to_string())?;
        let threads = ("STRONGROOM_HSM__SESSION_THREADS", THREADS.to_string());
        instance.start_with(&[threads, (softhsm::LIBRARY_VARIABLE, self.library.display().to_string())])
    }
}

/// The shim, where cargo puts examples of this build.
fn shim() -> anyhow::Result<Option<PathBuf>> {
    let program = std::env::current_exe()?;
    let profile = program.parent().and_then(|deps| deps.parent()).context("no target folder")?;
    Ok(Some(profile.join("examples/libpkcs11_shim.so")).filter(|file| file.is_file()))
}
