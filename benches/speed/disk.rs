//! The ceiling of durability: what one fsync of the same disk takes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::load;

/// What one small commit writes: two pages of the database's journal.
const BYTES: usize = 2 * (4096 + 24);
/// The journal is written over from its beginning again and again, so that its
/// length is no news that the file system must write too.
const JOURNAL_BYTES: usize = 4 << 20;

/// A file that is written over and over, as a database's journal is.
pub struct Journal {
    file: File,
    place: usize,
}

impl Journal {
    pub fn new(name: &Path) -> anyhow::Result<Journal> {
        let file = File::create(name)?;
        file.write_all_at(&vec![7; JOURNAL_BYTES], 0)?;
        file.sync_all()?;
        Ok(Journal { file, place: 0 })
    }

    /// Makes so many bytes durable, at most [`JOURNAL_BYTES`].
    pub fn write(&mut self, bytes: usize) -> anyhow::Result<()> {
        if self.place + bytes > JOURNAL_BYTES {
            self.place = 0;
        }
        self.file.write_all_at(&vec![8; bytes], self.place as u64)?;
        self.place += bytes;
        Ok(self.file.sync_data()?)
    }
}

/// The median of writing a small commit and fdatasync, milliseconds.
pub fn fsync_ms(folder: &Path, time: Duration) -> anyhow::Result<f64> {
    let name = folder.join("fsync");
    let mut journal = Journal::new(&name)?;
    let mut latency = load::histogram()?;
    let began = Instant::now();
    while began.elapsed() < time {
        let before = Instant::now();
        journal.write(BYTES)?;
        latency.saturating_record(before.elapsed().as_micros() as u64);
    }
    fs::remove_file(name)?;
    Ok(latency.value_at_quantile(0.5) as f64 / 1000.0)
}
