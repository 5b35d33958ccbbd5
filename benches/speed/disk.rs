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

/// The median of writing so much and fdatasync, milliseconds.
pub fn fsync_ms(folder: &Path, time: Duration) -> anyhow::Result<f64> {
    let name = folder.join("fsync");
    let file = File::create(&name)?;
    file.write_all_at(&vec![7; JOURNAL_BYTES], 0)?;
    file.sync_all()?;
    let mut latency = load::histogram()?;
    let began = Instant::now();
    for number in 0.. {
        if began.elapsed() >= time {
            break;
        }
        let before = Instant::now();
        file.write_all_at(&[8; BYTES], (number * BYTES % (JOURNAL_BYTES - BYTES)) as u64)?;
        file.sync_data()?;
        latency.saturating_record(before.elapsed().as_micros() as u64);
    }
    fs::remove_file(name)?;
    Ok(latency.value_at_quantile(0.5) as f64 / 1000.0)
}
