//! Whether the clock can be believed when something irreversible is due.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// A jump forward beyond this makes deletions wait.
const JUMP_MS: i64 = 60 * 60 * 1000;

/// Compares the clock with the last time that is on record, and while the
/// daemon runs with the monotonic clock. Once it has seen a jump, deletions
/// wait until an operator confirms the clock.
#[derive(Debug, Default)]
pub struct ClockGate {
    suspended: AtomicBool,
    last: Mutex<Option<(i64, Instant)>>,
}

impl ClockGate {
    /// Looks at the clock. `recorded_ms` is the last time on record, for the
    /// first look after a start. Returns true when a jump is seen for the
    /// first time.
    pub fn look(&self, now_ms: i64, recorded_ms: Option<i64>) -> bool {
        let mut last = self.last.lock();
        let expected_ms = match *last {
            Some((then_ms, at)) => {
                Some(then_ms + i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX))
            }
            None => recorded_ms,
        };
        *last = Some((now_ms, Instant::now()));
        let jumped = expected_ms.is_some_and(|expected_ms| now_ms - expected_ms > JUMP_MS);
        jumped && !self.suspended.swap(true, Ordering::Relaxed)
    }

    /// Whether deletions wait.
    pub fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }

    /// Lets them go on.
    pub fn confirm(&self) {
        self.suspended.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_suspends_until_it_is_confirmed() {
        let gate = ClockGate::default();
        assert!(!gate.look(1_000, Some(1_000)));
        assert!(!gate.look(1_000 + JUMP_MS, None), "an hour is no jump yet");
        assert!(!gate.is_suspended());
        assert!(gate.look(2_000 + 2 * JUMP_MS + 60_000, None));
        assert!(gate.is_suspended());
        gate.confirm();
        assert!(!gate.is_suspended());
        assert!(!gate.look(2_000 + 2 * JUMP_MS + 60_500, None), "the new time is the time now");
    }

    #[test]
    fn the_first_look_compares_with_the_record() {
        assert!(ClockGate::default().look(JUMP_MS * 3, Some(0)));
        assert!(!ClockGate::default().look(JUMP_MS * 3, None), "nothing is on record yet");
        assert!(
            !ClockGate::default().look(0, Some(JUMP_MS * 3)),
            "a clock that went back deletes nothing early"
        );
    }
}
