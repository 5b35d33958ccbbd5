//! What was counted, as a file beside the store.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::detector::Detector;
use crate::app::App;
use crate::audit::follow::Cursor;
use crate::error::Result;
use crate::registry::from_store;

const FILE: &str = "insights.json";

/// How far the log was read, and what came of it.
#[derive(Default, Deserialize)]
pub struct State {
    /// The last events that are counted.
    pub cursor: Cursor,
    /// The counts.
    pub detector: Detector,
    /// Whether they are as they were written down; else they are counted again.
    #[serde(default = "yes")]
    pub is_known: bool,
}

fn yes() -> bool {
    true
}

#[derive(Serialize)]
struct Written<'a> {
    cursor: &'a Cursor,
    detector: &'a Detector,
}

/// The file.
pub fn file(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// What was written down, if it fits the log (which may have been restored);
/// else nothing: the log is read from its beginning.
///
/// # Errors
/// When the store fails.
pub async fn read(app: &App, file: &Path) -> Result<State> {
    let text = tokio::fs::read(file).await.unwrap_or_default();
    let Ok(state) = serde_json::from_slice::<State>(&text) else { return Ok(State::default()) };
    for writer in state.cursor.writers() {
        let position = state.cursor.of(writer);
        let known =
            position.sequence == 0 || app.store.hash_at(position).await.map_err(from_store)?.is_some();
        if !known {
            tracing::warn!("what Insights have counted does not fit the log and is counted again");
            return Ok(State::default());
        }
    }
    Ok(state)
}

/// What is written down.
pub fn text(cursor: &Cursor, detector: &Detector) -> Vec<u8> {
    // Maps with texts, lists and numbers: they have a JSON form.
    serde_json::to_vec(&Written { cursor, detector }).unwrap_or_default()
}

/// Writes it, whole or not at all.
///
/// # Errors
/// What kept it from being written.
pub async fn write(file: &Path, text: Vec<u8>) -> Result<(), String> {
    let (file, partial) = (file.to_owned(), file.with_extension("partial"));
    let work = move || std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &file));
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}
