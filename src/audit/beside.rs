//! What an operator does to the HSMs by a command on the host, in a process
//! beside the daemon, comes onto the record by a file of the data folder.
//!
//! ```text
//! command: file, locked ─→ HSM ─→ outcome in the file, lock gone, killed or not
//! daemon:  a file that nobody holds ─→ event ─→ file gone
//! ```
//!
//! A daemon that dies between the last two steps records it twice, with one
//! eventID.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::record::{Context, Record};
use crate::app::{App, Clock};
use crate::error::{Error, Result};
use crate::registry::from_store;
use crate::service::Service;
use crate::store::Commit;

/// The folder in the data folder.
const FOLDER: &str = "beside";
/// How a file ends that the daemon looks at.
const ENDING: &str = "json";

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// `strongroom hsm bring`.
    BringWrappingKey,
    /// `strongroom hsm backup create`.
    BackUpWrappingKey,
    /// `strongroom hsm backup request`.
    RequestWrappingKey,
    /// `strongroom hsm backup restore`.
    RestoreWrappingKey,
}

impl Deed {
    /// eventName.
    fn name(self) -> &'static str {
        match self {
            Deed::BringWrappingKey => "BringWrappingKey",
            Deed::BackUpWrappingKey => "BackUpWrappingKey",
            Deed::RequestWrappingKey => "RequestWrappingKey",
            Deed::RestoreWrappingKey => "RestoreWrappingKey",
        }
    }
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    event_id: String,
    deed: Deed,
    /// Milliseconds since the epoch.
    time_ms: i64,
    /// Who ran the command.
    uid: u32,
    details: Map<String, Value>,
}

/// Its second line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    Done(Map<String, Value>),
    Failed(String),
}

/// A deed that is being done; without [`Noted::end`] its outcome is unknown.
pub struct Noted {
    /// Locked until the process ends, in any way.
    file: File,
}

impl Noted {
    /// Notes, before anything is done, what is going to be done; None where there
    /// is no data folder, and so no log.
    ///
    /// # Errors
    /// Where the file cannot be written: then it must not be done.
    pub fn begin(data_dir: &Path, deed: Deed, details: Value) -> anyhow::Result<Option<Noted>> {
        let Ok(owner) = fs::metadata(data_dir) else { return Ok(None) };
        let Value::Object(details) = details else { anyhow::bail!("details are named") };
        let time_ms = Clock.now_ms();
        let begun = Begun {
            event_id: super::record::new_event_id(time_ms),
            deed,
            time_ms,
            uid: rustix::process::getuid().as_raw(),
            details,
        };
        let write = || {
            let folder = data_dir.join(FOLDER);
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let path = folder.join(&begun.event_id);
            let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
            // Root's command, the daemon's file.
            for of in [&folder, &path] {
                let metadata = fs::metadata(of)?;
                if (metadata.uid(), metadata.gid()) != (owner.uid(), owner.gid()) {
                    chown(of, Some(owner.uid()), Some(owner.gid()))?;
                }
            }
            file.lock()?;
            write_line(&mut file, &begun)?;
            fs::rename(&path, path.with_extension(ENDING))?;
            File::open(&folder)?.sync_all()?;
            io::Result::Ok(Noted { file })
        };
        let context =
            || format!("this cannot be put on the record of {}, and is not done", data_dir.display());
        write().map(Some).with_context(context)
    }

    /// Notes the outcome: what there is to tell of it, or why it was not done.
    ///
    /// # Errors
    /// Where the file cannot be written: then it is on record as unknown.
    pub fn end(mut self, outcome: std::result::Result<Value, &anyhow::Error>) -> anyhow::Result<()> {
        let ended = match outcome {
            Ok(Value::Object(details)) => Ended::Done(details),
            Ok(_) => Ended::Done(Map::new()),
            Err(error) => Ended::Failed(format!("{error:#}")),
        };
        write_line(&mut self.file, &ended).context("the outcome cannot be put on the record")
    }
}

fn write_line(file: &mut File, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_all()
}

/// Puts what commands did on the record.
///
/// # Errors
/// Where the store does not take it; it is tried again.
pub async fn record(app: &App) -> Result<()> {
    let folder = app.data_dir.join(FOLDER);
    let internal = |error: String| Error::internal(format!("{FOLDER}: {error}"));
    let ended = tokio::task::spawn_blocking(move || ended(&folder)).await;
    let ended =
        ended.map_err(|error| internal(error.to_string()))?.map_err(|error| internal(error.to_string()))?;
    for (path, begun, outcome) in ended {
        let mut details = begun.details;
        details.insert("uid".to_owned(), begun.uid.into());
        let (outcome, more) = match outcome {
            Some(Ended::Done(more)) => ("done", more),
            Some(Ended::Failed(reason)) => ("failed", Map::from_iter([("reason".to_owned(), reason.into())])),
            None => ("unknown", Map::new()),
        };
        details.insert("outcome".to_owned(), outcome.into());
        details.extend(more);
        let context = Context {
            source: Service::Hsm.event_source(),
            name: begun.deed.name(),
            region: &app.region,
            time_ms: begun.time_ms,
            read_only: false,
        };
        let record = Record::service(context, &app.account, details.into()).with_id(begun.event_id);
        let event = record.event().map_err(|error| internal(error.to_string()))?;
        app.store.commit(Commit { changes: Vec::new(), events: vec![event] }).await.map_err(from_store)?;
        fs::remove_file(&path).map_err(|error| internal(error.to_string()))?;
    }
    Ok(())
}

/// The files that no command holds any more.
fn ended(folder: &Path) -> io::Result<Vec<(PathBuf, Begun, Option<Ended>)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != ENDING) {
            continue;
        }
        let file = File::open(&path)?;
        if file.try_lock().is_err() {
            continue;
        }
        let text = io::read_to_string(&file)?;
        let mut lines = text.lines();
        match lines.next().map(serde_json::from_str) {
            Some(Ok(begun)) => {
                let outcome = lines.next().and_then(|line| serde_json::from_str(line).ok());
                found.push((path, begun, outcome));
            }
            _ => {
                let aside = path.with_extension("unreadable");
                tracing::error!(file = %aside.display(), "this is no record of a command");
                fs::rename(&path, aside)?;
            }
        }
    }
    found.sort_by_key(|(path, ..)| path.clone());
    Ok(found)
}
