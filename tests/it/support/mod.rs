//! Real processes of `strongroom dev`, each in a folder of its own with free
//! ports, and what tests look at from outside: the API, the log, the store's
//! file, the token.

mod client;
mod database;
mod dice;
mod material;
mod token;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

pub use client::{Client, Refusal, Rpc, create, decrypt, encrypt, sign};
pub use database::Database;
pub use dice::Dice;
pub use material::{KEK_BYTES, import, wrapped};
pub use token::Token;

/// Longer than anything here takes; what takes longer hangs.
pub const LONG: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(20);

/// Waits until something is true.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = timeout(LONG, async {
        while !condition().await {
            sleep(STEP).await;
        }
    });
    assert!(waited.await.is_ok(), "this never came true: {what}");
}

const FAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// libfaketime, which lets a process believe in another time.
pub fn faketime() -> Option<PathBuf> {
    let found = FAKETIME.iter().map(PathBuf::from).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: install libfaketime (Debian: apt-get install faketime)");
    }
    found
}

/// The events with this eventName.
pub fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["eventName"] == name).collect()
}

/// `make soak` says how often.
const SOAK_ROUNDS: &str = "STRONGROOM_SOAK_ROUNDS";

/// How often a test with chance in it runs: `make soak` asks for more than the
/// test itself.
pub fn rounds(default: u64) -> u64 {
    std::env::var(SOAK_ROUNDS).map_or(default, |rounds| rounds.parse().unwrap())
}

/// Whether it is a soak, which has the time to wait as long as the product does.
pub fn soaks() -> bool {
    std::env::var_os(SOAK_ROUNDS).is_some()
}

/// The folder of an instance: DIR and what its processes print, gone at the end.
pub struct Instance {
    folder: TempDir,
    dir: PathBuf,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    starts: AtomicUsize,
}

impl Instance {
    /// A folder in which nothing was started yet.
    pub fn new() -> Instance {
        Instance::in_folder(|folder| folder.join("dev"))
    }

    /// The same with DIR somewhere else.
    pub fn in_folder(dir: impl FnOnce(&Path) -> PathBuf) -> Instance {
        let folder = tempfile::tempdir().unwrap();
        let dir = dir(folder.path());
        let starts = AtomicUsize::new(0);
        Instance { folder, dir, environment: Vec::new(), arguments: Vec::new(), starts }
    }

    /// DIR.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// DIR/`path`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// A path beside DIR.
    pub fn beside(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// An environment variable of every daemon and command from now on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.into()));
    }

    /// An argument of `strongroom dev` from now on.
    pub fn argue(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    /// Waits for HSMs as the product does where it is a soak, and else less long.
    pub fn hurry(&mut self, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            let name = format!("STRONGROOM_HSM__{name}");
            match soaks() {
                true => self.unset(&name),
                false => self.set(&name, *value),
            }
        }
    }

    /// Takes it back.
    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// Starts a daemon and waits until it serves.
    pub async fn start(&self) -> Daemon {
        let mut daemon = self.spawn();
        daemon.ready().await;
        daemon
    }

    /// Starts a daemon.
    pub fn spawn(&self) -> Daemon {
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        let output = |name: &str| self.beside(&format!("{name}.{number}"));
        let (stdout, stderr) = (output("stdout"), output("stderr"));
        let mut command = self.command(&["dev", "--dir"]);
        command.arg(&self.dir).args([
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--aws",
            "127.0.0.1:0",
        ]);
        command.args(&self.arguments);
        command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        let child = command.spawn().unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Daemon { child, dir: self.dir.clone(), grpc: nowhere, http: nowhere, stdout, stderr }
    }

    /// A `strongroom` command with this instance's environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("STRONGROOM_") && !text.contains("SOFTHSM2") {
                command.env_remove(&name);
            }
        }
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Runs a client's command with DIR/env, as a person does.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let env = fs::read_to_string(self.path("env")).unwrap();
        let variables = env.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let variables = variables.map(|(name, value)| (name, value.trim_matches('\'')));
        self.command(arguments).envs(variables).output().unwrap()
    }

    /// Runs a command of the host's administrator, over the Unix socket.
    pub fn admin(&self, arguments: &[&str]) -> Output {
        let socket = format!("unix:{}", self.path("strongroom.sock").display());
        self.command(&["admin"]).args(arguments).args(["--endpoint", &socket]).output().unwrap()
    }

    /// The store's file, of a daemon that is stopped or runs.
    pub async fn database(&self) -> Database {
        Database::open(&self.path("data/strongroom.sqlite")).await
    }

    /// The token, seen with pkcs11-tool.
    pub fn token(&self) -> Token {
        Token::new(&self.path("hsm"))
    }

    /// The crypto user's PIN.
    pub fn pin(&self) -> String {
        fs::read_to_string(self.path("hsm/user.pin")).unwrap()
    }

    /// What all daemons of this instance printed so far.
    pub fn printed(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for number in 0..self.starts.load(Ordering::Relaxed) {
            for name in ["stdout", "stderr"] {
                all.extend(fs::read(self.beside(&format!("{name}.{number}"))).unwrap());
            }
        }
        all
    }
}

/// A process of `strongroom dev`; killed at the end.
pub struct Daemon {
    child: Child,
    dir: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Daemon {
    /// Waits until it serves, and reads its ports.
    pub async fn ready(&mut self) {
        let end = Instant::now() + LONG;
        let line = loop {
            let printed = fs::read_to_string(&self.stdout).unwrap();
            if let Some(line) =
                printed.lines().find(|line| line.contains(" ready: ") && printed.ends_with('\n'))
            {
                break line.to_owned();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended, {}: {}", ended.unwrap(), self.log());
            assert!(Instant::now() < end, "the daemon does not serve: {}", self.log());
            sleep(STEP).await;
        };
        let address = |scheme: &str| {
            let (_, rest) = line.split_once(scheme).unwrap();
            rest.split([',', ' ']).next().unwrap().parse().unwrap()
        };
        self.grpc = address("https://");
        self.http = address("http://");
    }

    /// A client of its own connection, as the administrator of DIR/env.
    pub async fn client(&self) -> Client {
        self.client_as("administrator").await
    }

    /// The same as somebody else, with DIR/pki/`name`.pem.
    pub async fn client_as(&self, name: &str) -> Client {
        Client::connect(self.grpc, &self.dir.join("pki"), name).await
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap()).into_owned()
    }

    /// GET of an operators' page: the status and the body.
    pub async fn page(&self, path: &str) -> (u16, String) {
        let answer = timeout(LONG, async {
            let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: operators\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        });
        let answer = answer.await.expect("an operators' page hangs");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// Waits until /readyz has this status; its body.
    pub async fn readyz(&self, status: u16) -> String {
        eventually(&format!("/readyz is {status}"), async || self.page("/readyz").await.0 == status).await;
        self.page("/readyz").await.1
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGKILL.
    pub fn kill9(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "the daemon had ended by itself: {status}: {}", self.log());
        // Told where the test fails later, when its log is gone.
        self.log().lines().filter(|line| line.contains("ERROR")).for_each(|line| eprintln!("{line}"));
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the daemon does not end: {}", self.log());
            sleep(STEP).await;
        }
    }

    /// SIGTERM, and waits for its orderly end.
    pub async fn terminate(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!(
                "the end of the daemon's log:\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
    }
}
