//! The ceiling of durability: what one fsync of the same disk takes.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::load;

/// What one small commit writes: two pages of the database's journal.
const BYTES: usize = 2 * (4096 + 24);

/// The median of appending so much and fdatasync, milliseconds.
pub fn fsync_ms(folder: &Path, time: Duration) -> anyhow::Result<f64> {
    let name = folder.join("fsync");
    let mut file = File::create(&name)?;
    let mut latency = load::histogram()?;
    let began = Instant::now();
    while began.elapsed() < time {
        let before = Instant::now();
        file.write_all(&[7; BYTES])?;
        file.sync_data()?;
        latency.saturating_record(before.elapsed().as_micros() as u64);
    }
    fs::remove_file(name)?;
    Ok(latency.value_at_quantile(0.5) as f64 / 1000.0)
}
