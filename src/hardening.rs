//! What the process does to keep secrets in its own memory: no core dumps, no
//! other process of its user looking in, no swap where that is allowed, and
//! freed memory zeroed.
//!
//! What this cannot do: root reads any process's memory, a PKCS#11 module
//! allocates by itself and is not zeroed by [`ALLOCATOR`], and neither are
//! stacks and registers.

use std::fmt;
use std::io;

use mimalloc::MiMalloc;
use rustix::fs::Mode;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
};
use rustix::thread::{CapabilitySet, capabilities};
use zeroizing_alloc::ZeroAlloc;

/// The type of [`ALLOCATOR`].
pub type Allocator = ZeroAlloc<MiMalloc>;

/// The allocator of the daemon, for its `#[global_allocator]`: zeroes memory
/// before it is freed, and when it is moved to grow.
pub const ALLOCATOR: Allocator = ZeroAlloc(MiMalloc);

/// What [`harden`] could do.
#[derive(Debug)]
pub struct Hardening {
    core_dumps: io::Result<()>,
    dumpable: io::Result<()>,
    memory_lock: MemoryLock,
}

/// Whether memory is kept out of swap.
#[derive(Debug)]
pub enum MemoryLock {
    /// All of it, now and later.
    Locked,
    /// None: locking would make later allocations fail.
    NotAllowed {
        /// RLIMIT_MEMLOCK; the process lacks CAP_IPC_LOCK too.
        limit_bytes: u64,
    },
    /// None: the kernel refused.
    Failed(io::Error),
}

impl fmt::Display for MemoryLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryLock::Locked => write!(f, "memory is locked and is not swapped"),
            MemoryLock::NotAllowed { limit_bytes } => write!(
                f,
                "memory may be swapped: RLIMIT_MEMLOCK is {limit_bytes} bytes; \
                 give CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity), \
                 or use no swap or encrypted swap"
            ),
            MemoryLock::Failed(error) => write!(f, "memory may be swapped: mlockall: {error}"),
        }
    }
}

/// Hardens the process; to be called first, before threads and secrets. The
/// result is to be logged when there is a log.
pub fn harden() -> Hardening {
    // Files are the daemon's own unless a mode is set on purpose.
    umask(Mode::from_raw_mode(0o077));
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    Hardening {
        core_dumps: setrlimit(Resource::Core, none).map_err(io::Error::from),
        // A core_pattern that pipes ignores the limit, but not this; and it
        // keeps ptrace and /proc/<pid>/mem from other processes of the user.
        dumpable: set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from),
        memory_lock: lock_memory(),
    }
}

impl Hardening {
    /// Writes to the log what was done, and what was not with its remedy.
    pub fn log(&self) {
        if let Err(error) = &self.core_dumps {
            tracing::warn!(%error, "core dumps cannot be turned off (RLIMIT_CORE)");
        }
        if let Err(error) = &self.dumpable {
            tracing::warn!(%error, "the process cannot be made undumpable (PR_SET_DUMPABLE)");
        }
        match &self.memory_lock {
            MemoryLock::Locked => tracing::info!("{}", self.memory_lock),
            not_locked => tracing::warn!("{not_locked}"),
        }
    }

    /// Whether memory is kept out of swap.
    pub fn memory_lock(&self) -> &MemoryLock {
        &self.memory_lock
    }
}

/// Locks all memory, if what is allocated later may be locked too: under a
/// limit every mapping past it would fail.
fn lock_memory() -> MemoryLock {
    let privileged = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !privileged && let Some(limit_bytes) = getrlimit(Resource::Memlock).current {
        return MemoryLock::NotAllowed { limit_bytes };
    }
    // ONFAULT: pages are locked when they are touched, so that reserved stacks
    // and arenas cost no memory.
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        Ok(()) => MemoryLock::Locked,
        Err(error) => MemoryLock::Failed(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// An allocator that looks at memory when it is given back.
    struct Inspector {
        freed: AtomicUsize,
        not_zero: AtomicUsize,
    }

    // SAFETY: the system allocator does all the work; a block is read only
    // while it is still allocated.
    unsafe impl GlobalAlloc for &Inspector {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            self.freed.fetch_add(1, Ordering::Relaxed);
            self.not_zero.fetch_add(bytes.iter().filter(|byte| **byte != 0).count(), Ordering::Relaxed);
            unsafe { System.dealloc(block, layout) }
        }
    }

    #[test]
    fn freed_and_moved_memory_is_zeroed() {
        let inspector = Inspector { freed: AtomicUsize::new(0), not_zero: AtomicUsize::new(0) };
        let allocator = ZeroAlloc(&inspector);
        let layout = Layout::from_size_align(48, 8).unwrap();
        // SAFETY: the layouts are those of the allocations, and nothing is
        // used after it is freed.
        unsafe {
            let block = allocator.alloc(layout);
            assert!(!block.is_null());
            block.write_bytes(0x5a, 48);
            let grown = allocator.realloc(block, layout, 4096);
            assert!(!grown.is_null());
            assert_eq!(*grown.add(47), 0x5a, "what was there must move along");
            grown.write_bytes(0x5a, 4096);
            allocator.dealloc(grown, Layout::from_size_align(4096, 8).unwrap());
        }
        assert_eq!(inspector.freed.load(Ordering::Relaxed), 2);
        assert_eq!(inspector.not_zero.load(Ordering::Relaxed), 0);
    }

    /// Run in a process of its own by the test below: hardening cannot be
    /// taken back.
    #[test]
    #[ignore = "changes its process; the test below runs it in another one"]
    fn harden_this_process() {
        let hardening = harden();
        assert!(hardening.core_dumps.is_ok() && hardening.dumpable.is_ok(), "{hardening:?}");
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.path().join("secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Whatever was decided about locking, memory and threads are still to
        // be had.
        let large = vec![1_u8; 64 << 20];
        let threads: Vec<_> = (0..32).map(|_| std::thread::spawn(|| ())).collect();
        assert_eq!(large[large.len() - 1], 1);
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_hardened_process_goes_on_working() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hardening::tests::harden_this_process", "--ignored"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
