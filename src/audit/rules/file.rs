//! A file of this host: an event per line, as EventBridge has it.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::target::{Delivery, Outcome};

/// Only its owner and its group read who did what.
const MODE: u32 = 0o640;

/// The file. It is opened for each batch, so that it may be moved away.
pub struct LocalFile {
    path: PathBuf,
}

impl LocalFile {
    /// A file that need not be there.
    pub fn new(path: &Path) -> LocalFile {
        LocalFile { path: path.to_owned() }
    }

    /// Appends events, durably.
    pub async fn send(&self, deliveries: &[Delivery]) -> Vec<Outcome> {
        let lines: String = deliveries.iter().map(|delivery| format!("{}\n", delivery.event())).collect();
        let outcome = match append(&self.path, lines.as_bytes()).await {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Again(format!("{}: {error}", self.path.display())),
        };
        vec![outcome; deliveries.len()]
    }
}

/// Appends to a file, durably; half of what could not be written is taken back.
pub async fn append(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let (path, bytes) = (path.to_owned(), bytes.to_owned());
    let write = move || {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).mode(MODE).open(path)?;
        let before = file.metadata()?.len();
        file.write_all(&bytes).and_then(|()| file.sync_data()).inspect_err(|_| {
            // The error is told whether this succeeds or not.
            let _ = file.set_len(before);
        })
    };
    tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
}
