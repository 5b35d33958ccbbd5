//! The service against a client in another language, made from `proto/` alone:
//! `tests/python`, which also checks the cryptography with an independent
//! library and the event log with what it did.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Where SoftHSM2 is, on an unusual system.
const LIBRARY: &str = "STRONGROOM_SOFTHSM2_LIBRARY";
const READY_TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn a_client_in_another_language_finds_kms() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let others = tests.join("aws");
    pytest(&[tests.as_os_str(), "--ignore".as_ref(), others.as_os_str()], &[]);
}

#[test]
fn clients_that_were_written_for_aws_find_kms() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/aws");
    pytest(&[tests.as_os_str()], &["--emulator-credentials"]);
}

/// Runs tests in Python against a daemon of their own.
fn pytest(arguments: &[&OsStr], daemon: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(folder.path(), daemon);
    let output = Command::new(python())
        .args(["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"])
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // For daemons that a test starts by itself.
        .env("TEST_STRONGROOM", env!("CARGO_BIN_EXE_strongroom"))
        .envs(environment(&folder.path().join("dev/env")))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "pytest: {}\n{}{}\nthe daemon's log ends with\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        daemon.log_end(),
    );
    daemon.stop();
}

/// The Python of the virtual environment that `make test` makes.
pub fn python() -> PathBuf {
    let venv = std::env::var_os("TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(
        python.exists(),
        "{} is not there: run make test, or name a virtual environment with tests/python/requirements.txt in TEST_VENV",
        python.display()
    );
    python
}

/// The variables of an env file as `strongroom dev` writes it.
pub fn environment(file: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(file).unwrap();
    let variable = |line: &str| {
        let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('\'').to_owned()))
    };
    text.lines().filter_map(variable).collect()
}

/// A `strongroom dev` of its own; killed when dropped.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(folder: &Path, arguments: &[&str]) -> Daemon {
        let log = folder.join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        // The tests' own variables are no configuration of a daemon's.
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("STRONGROOM_") && name != LIBRARY)
        {
            command.env_remove(name);
        }
        let mut child = command
            .args(["dev", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--aws", "127.0.0.1:0"])
            .args(["--regions", "us-east-1,eu-west-1,ap-southeast-2", "--dir"])
            .arg(folder.join("dev"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let (sender, ready) = mpsc::channel();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let daemon = Daemon { child, log };
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            let _ = sender.send(line);
            let _ = stdout.read_to_end(&mut Vec::new());
        });
        let line = ready.recv_timeout(READY_TIMEOUT).unwrap_or_default();
        assert!(line.contains("ready"), "{line:?}\n{}", daemon.log_end());
        daemon
    }

    fn log_end(&self) -> String {
        const LINES: usize = 40;
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Drains it, as a service manager does.
    fn stop(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log_end());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
