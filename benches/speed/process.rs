//! The processes that are measured, and what the kernel says of them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// The clock ticks of /proc/PID/stat, which Linux fixes at 100 for programs.
const TICK_US: f64 = 10_000.0;

/// A server's process; killed at the end.
pub struct Process {
    child: Child,
    pub grpc: SocketAddr,
    /// From its start to its "ready".
    pub start_up: Duration,
    log: PathBuf,
}

impl Process {
    /// Starts a command and waits for its line with "ready".
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Process> {
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log)?)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = loop {
            match lines.next() {
                Some(line) => {
                    let line = line?;
                    if line.contains(" ready: ") {
                        break line;
                    }
                }
                None => anyhow::bail!("{command:?} ended: {}", fs::read_to_string(log)?),
            }
        };
        let start_up = began.elapsed();
        let (_, rest) = line.split_once("https://").context("no address")?;
        let grpc = rest.split([',', ' ']).next().context("no address")?.parse()?;
        Ok(Process { child, grpc, start_up, log: log.to_owned() })
    }

    /// Waits until its log says something; how long that took from now.
    pub fn says(&self, text: &str) -> anyhow::Result<Duration> {
        const LOOK: Duration = Duration::from_millis(100);
        const LONGEST: Duration = Duration::from_secs(3600);
        let began = Instant::now();
        while !fs::read_to_string(&self.log)?.contains(text) {
            anyhow::ensure!(began.elapsed() < LONGEST, "{} never says {text}", self.log.display());
            std::thread::sleep(LOOK);
        }
        Ok(began.elapsed())
    }

    /// Processor time of all its threads so far, microseconds.
    pub fn cpu_us(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in parentheses may have spaces; user and system time are the
        // 12th and 13th field after it (proc(5)).
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let ticks: Vec<f64> =
            fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        Ok(ticks.iter().sum::<f64>() * TICK_US)
    }

    /// Resident memory, MiB.
    pub fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// SIGTERM, and waits for its orderly end.
    pub fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder of `strongroom dev`.
pub struct Instance {
    pub dir: PathBuf,
    program: PathBuf,
}

impl Instance {
    /// A folder in which nothing was started yet.
    pub fn new(work: &Path, name: &str, program: &Path) -> Instance {
        Instance { dir: work.join(name), program: program.to_owned() }
    }

    /// Starts the daemon with its default configuration, on free ports.
    pub fn start(&self) -> anyhow::Result<Process> {
        self.start_with(&[])
    }

    /// The same with more in its environment.
    pub fn start_with(&self, environment: &[(&str, String)]) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("STRONGROOM_") && !text.contains("SOFTHSM2") {
                command.env_remove(&name);
            }
        }
        command.args(["dev", "--dir"]).arg(&self.dir);
        command.args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Process::start(command, &self.dir.with_extension("log"))
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    pub fn configuration(&self) -> PathBuf {
        self.dir.join("strongroom.toml")
    }
}
