//! What a target refused: a file, a JSON object per line.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::file::append;
use super::target::Delivery;
use crate::app::App;
use crate::config::TargetSettings;

/// The folder in the data folder.
const FOLDER: &str = "dead-letters";
/// The largest file; what comes later is in the event log only.
const BYTES_MAX: u64 = 64 << 20;

/// The dead letters of one target.
pub struct DeadLetters {
    target: String,
    file: PathBuf,
}

impl DeadLetters {
    /// Where the configuration says, or in the data folder.
    pub fn new(app: &App, target: &str, settings: &TargetSettings) -> DeadLetters {
        let usual = || app.data_dir.join(FOLDER).join(format!("{target}.jsonl"));
        DeadLetters {
            target: target.to_owned(),
            file: settings.dead_letter_file.clone().unwrap_or_else(usual),
        }
    }

    /// Writes one down.
    pub async fn keep(&self, delivery: &Delivery, why: &str) {
        let line = json!({
            "target": self.target, "rules": delivery.rules, "reason": why, "event": delivery.event(),
        });
        if let Err(error) = self.write(&format!("{line}\n")).await {
            tracing::error!(
                target_name = self.target,
                event = delivery.text("/id"),
                error,
                "a dead letter could not be written: the event is in the event log only"
            );
        }
    }

    async fn write(&self, line: &str) -> Result<(), String> {
        let told = |error: std::io::Error| format!("{}: {error}", self.file.display());
        tokio::fs::create_dir_all(self.file.parent().unwrap_or(Path::new("/"))).await.map_err(told)?;
        let length = tokio::fs::metadata(&self.file).await.map_or(0, |metadata| metadata.len());
        if length >= BYTES_MAX {
            return Err(format!("{} has more than {BYTES_MAX} bytes; move it away", self.file.display()));
        }
        append(&self.file, line.as_bytes()).await.map_err(told)
    }
}
