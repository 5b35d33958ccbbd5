//! The data folder: its lock, its permissions, and how much room it has.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::OpenError;

/// The file whose lock says that somebody uses the folder.
const LOCK_FILE: &str = "lock";

/// The folder is ours until this is dropped, or the process ends in any way.
#[derive(Debug)]
pub(super) struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Makes the folder (0700) where it is missing, and takes it.
    pub(super) fn take(folder: &Path) -> Result<Self, OpenError> {
        let io = |error| OpenError::Folder { folder: folder.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(LOCK_FILE))
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::Held { folder: folder.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        file.set_len(0).map_err(io)?;
        // Only for the message to the next one who comes; the lock is what counts.
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(FolderLock { file })
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing the file is not enough while a process that was just forked
        // has it open too.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "giving the data folder back failed");
        }
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Makes an empty file that only its owner may read, where there is none.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match file {
        Ok(file) => file.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes what was created, renamed or removed in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// How long new work is refused after a write that found no room, whatever the
/// file system says: a quota does not show in its free space.
const RAN_OUT_HOLD_MS: u64 = 5_000;

/// Whether the folder's file system has room for new work.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    min_free_bytes: u64,
    low: AtomicBool,
    ran_out_at: Mutex<Option<Instant>>,
}

impl Space {
    /// Looks at the file system for the first time.
    pub(super) fn new(folder: &Path, min_free_bytes: u64) -> Self {
        let (folder, low) = (folder.to_owned(), AtomicBool::new(false));
        let space = Space { folder, min_free_bytes, low, ran_out_at: Mutex::new(None) };
        space.refresh();
        space
    }

    /// Whether new work may begin.
    pub(super) fn is_enough(&self) -> bool {
        !self.low.load(Ordering::Relaxed)
    }

    /// A write failed for want of room.
    pub(super) fn ran_out(&self) {
        let mut ran_out_at = self.ran_out_at.lock();
        *ran_out_at = Some(Instant::now());
        self.set_low(true);
    }

    /// Asks the file system.
    pub(super) fn refresh(&self) {
        let low = match rustix::fs::statvfs(&self.folder) {
            Ok(stat) => {
                let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
                is_low(free_bytes, self.min_free_bytes, !self.is_enough())
            }
            Err(error) => {
                tracing::error!(folder = %self.folder.display(), %error, "cannot ask for the free space");
                true
            }
        };
        // Looked at last, so that a write that fails meanwhile is not overlooked.
        let hold = Duration::from_millis(RAN_OUT_HOLD_MS);
        let ran_out_at = self.ran_out_at.lock();
        self.set_low(low || ran_out_at.is_some_and(|at| at.elapsed() < hold));
    }

    fn set_low(&self, low: bool) {
        let (folder, min_free_bytes) = (self.folder.display(), self.min_free_bytes);
        match (self.low.swap(low, Ordering::Relaxed), low) {
            (false, true) => {
                tracing::error!(%folder, min_free_bytes, "too little free space: new work is refused")
            }
            (true, false) => {
                tracing::info!(%folder, min_free_bytes, "enough free space again: new work is taken")
            }
            _ => {}
        }
    }
}

/// What was too little is enough again only at an eighth above the mark, so
/// that the answer does not flap.
fn is_low(free_bytes: u64, min_free_bytes: u64, was_low: bool) -> bool {
    let margin = if was_low { min_free_bytes / 8 } else { 0 };
    free_bytes < min_free_bytes.saturating_add(margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_was_too_little_must_grow_above_the_mark() {
        assert!(!is_low(800, 800, false));
        assert!(is_low(799, 800, false));
        assert!(is_low(899, 800, true));
        assert!(!is_low(900, 800, true));
        assert!(!is_low(0, 0, true), "a mark of 0 is off");
        assert!(is_low(u64::MAX - 1, u64::MAX, true));
    }
}
