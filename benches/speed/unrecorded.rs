//! What it costs that every event is durable before its answer: the daemon
//! beside one that forgets its events. Strongroom itself has no such setting;
//! this is a store of the benchmark's own in front of the real one.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use strongroom::config::{Config, Flags};
use strongroom::daemon;
use strongroom::proto::kms::{KeySpec, KeyUsageType};
use strongroom::store::{
    Commit, Explained, Kind, Position, Row, RowId, SignedHead, Store, StoreError, StoredEvent, Writer,
};
use tokio::sync::watch;

use crate::load::{self, Work};
use crate::operations::{self, create};
use crate::plan::Bench;
use crate::process::Process;
use crate::report::Report;
use crate::series::{self, Running, Side};

/// Concurrent clients.
const CLIENTS: usize = 64;
const SCENARIO: &str = "durability";

/// Serves as `strongroom serve` does, over a store that takes no events.
pub async fn serve(configuration: PathBuf) -> anyhow::Result<()> {
    let development = daemon::Development { emulator_credentials: false, any_aws_port: true };
    let options =
        daemon::Options { config: configuration, flags: Flags::new(), development: Some(development) };
    daemon::start_log(&Config::load(Some(&options.config), &options.flags)?.config)?;
    daemon::serve_over(options, |store| Arc::new(Forgetful(store)), daemon::announce).await
}

/// Encrypt with and without its events, in turns.
pub async fn compare(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let mut running = Vec::new();
    for name in ["recorded", "unrecorded"] {
        let instance = bench.instance(name, program)?;
        let process = instance.start()?;
        let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
        let channel = endpoint.connect().await?;
        let key = create(&channel, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
        drop(channel);
        process.stop()?;
        let process = match name {
            "recorded" => instance.start()?,
            _ => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("--unrecorded").arg(instance.configuration());
                Process::start(command, &instance.dir.with_extension("log"))?
            }
        };
        let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
        let channels = load::connect(&endpoint, CLIENTS).await?;
        let work = Work::one(operations::path("Encrypt")?, &operations::encrypt(key, 32));
        running.push(Running { name, process, channels, work });
    }
    let sides: Vec<Side<'_>> = running.iter().map(Running::side).collect();
    let series = series::measure(&bench.plan, &sides).await?;
    let [recorded, unrecorded] = series.as_slice() else { return Ok(()) };
    for side in [recorded, unrecorded] {
        let name = |what: &str| format!("Encrypt 32 B, {}: {what}", side.name);
        report.figure(SCENARIO, name("rate"), side.rate().median, "per second");
        report.figure(SCENARIO, name("daemon's CPU"), series::Spread::of(side.cpu_us.clone()).median, "µs");
    }
    report.at_least("Encrypt 32 B with events, of without", 0.85, recorded.ratio(unrecorded).median);
    drop(sides);
    running.into_iter().try_for_each(Running::stop)
}

/// Passes everything on but events.
struct Forgetful(Arc<dyn Store>);

#[async_trait::async_trait]
impl Store for Forgetful {
    async fn commit(&self, commit: Commit) -> Result<Position, StoreError> {
        match commit.changes.is_empty() {
            true => Ok(*self.0.end().borrow()),
            false => self.0.commit(commit).await,
        }
    }

    fn accepts_work(&self) -> bool {
        self.0.accepts_work()
    }

    async fn row(&self, id: &RowId) -> Result<Option<Row>, StoreError> {
        self.0.row(id).await
    }

    async fn rows(
        &self,
        kind: Kind,
        region: &str,
        account: &str,
        parent: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Row>, StoreError> {
        self.0.rows(kind, region, account, parent, after, limit).await
    }

    async fn count(
        &self,
        kind: Kind,
        region: &str,
        account: &str,
        parent: Option<&str>,
    ) -> Result<u64, StoreError> {
        self.0.count(kind, region, account, parent).await
    }

    async fn all_rows(&self, kind: Kind, after: Option<&RowId>, limit: u32) -> Result<Vec<Row>, StoreError> {
        self.0.all_rows(kind, after, limit).await
    }

    async fn find(&self, kind: Kind, region: &str, id: &str) -> Result<Option<Row>, StoreError> {
        self.0.find(kind, region, id).await
    }

    async fn due(&self, kind: Kind, now_ms: i64, limit: u32) -> Result<Vec<Row>, StoreError> {
        self.0.due(kind, now_ms, limit).await
    }

    async fn events(&self, after: Position, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        self.0.events(after, limit).await
    }

    async fn events_at(&self, positions: &[Position]) -> Result<Vec<StoredEvent>, StoreError> {
        self.0.events_at(positions).await
    }

    async fn writers(&self) -> Result<Vec<Writer>, StoreError> {
        self.0.writers().await
    }

    fn end(&self) -> watch::Receiver<Position> {
        self.0.end()
    }

    async fn sign_head(&self, head: SignedHead) -> Result<(), StoreError> {
        self.0.sign_head(head).await
    }

    async fn heads(&self, after: Position, limit: u32) -> Result<Vec<SignedHead>, StoreError> {
        self.0.heads(after, limit).await
    }

    async fn hash_at(&self, position: Position) -> Result<Option<[u8; 32]>, StoreError> {
        self.0.hash_at(position).await
    }

    async fn explain(&self, said: Vec<Explained>) -> Result<(), StoreError> {
        self.0.explain(said).await
    }

    async fn explained(
        &self,
        until: Position,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<Explained>, StoreError> {
        self.0.explained(until, after, limit).await
    }

    async fn replace_explained(&self, said: Vec<Explained>) -> Result<(), StoreError> {
        self.0.replace_explained(said).await
    }

    async fn remove_until(&self, position: Position) -> Result<bool, StoreError> {
        self.0.remove_until(position).await
    }

    async fn bytes_used(&self) -> Result<u64, StoreError> {
        self.0.bytes_used().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.0.ping().await
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        self.0.scrub().await
    }
}
