//! The newest events in memory: whoever follows the log closely reads them
//! here, and not from the disk once for each reader.

use std::collections::VecDeque;

use parking_lot::RwLock;

use crate::store::{Position, StoredEvent};

/// The most bytes of records that are kept, about 10,000 events.
const BYTES_MAX: usize = 16 << 20;

/// INVARIANT: without a gap, of one writer.
#[derive(Debug, Default)]
pub(super) struct Recent(RwLock<Kept>);

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<StoredEvent>,
    bytes: usize,
}

impl Recent {
    /// Takes in what was appended, in order.
    pub(super) fn push(&self, events: Vec<StoredEvent>) {
        let mut kept = self.0.write();
        for event in events {
            if kept.events.back().is_some_and(|last| !follows(last.position, event.position)) {
                *kept = Kept::default();
            }
            kept.bytes += event.record.len();
            kept.events.push_back(event);
        }
        while kept.bytes > BYTES_MAX
            && let Some(oldest) = kept.events.pop_front()
        {
            kept.bytes -= oldest.record.len();
        }
    }

    /// The events of a writer after a position; none where not all of them are
    /// kept.
    pub(super) fn after(&self, after: Position, limit: u32) -> Option<Vec<StoredEvent>> {
        let kept = self.0.read();
        let first = kept.events.front()?.position;
        let skipped = (after.sequence + 1).checked_sub(first.sequence)?;
        let skipped = usize::try_from(skipped).ok()?;
        if after.writer != first.writer || skipped > kept.events.len() {
            return None;
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Some(kept.events.iter().skip(skipped).take(limit).cloned().collect())
    }
}

fn follows(last: Position, next: Position) -> bool {
    next == Position { sequence: last.sequence + 1, ..last }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(writer: u32, sequences: std::ops::Range<u64>, bytes: usize) -> Vec<StoredEvent> {
        let record: std::sync::Arc<str> = "x".repeat(bytes).into();
        let event = |sequence| StoredEvent {
            position: Position { writer, sequence },
            id: String::new(),
            time_ms: 0,
            record: record.clone(),
            effects: String::new(),
            hash: [0; 32],
        };
        sequences.map(event).collect()
    }

    fn after(recent: &Recent, writer: u32, sequence: u64) -> Option<Vec<u64>> {
        let found = recent.after(Position { writer, sequence }, 2)?;
        Some(found.iter().map(|event| event.position.sequence).collect())
    }

    #[test]
    fn what_is_kept_is_told_without_a_gap() {
        let recent = Recent::default();
        assert_eq!(after(&recent, 1, 0), None);
        recent.push(events(1, 5..8, 1));
        recent.push(events(1, 8..9, 1));
        assert_eq!(after(&recent, 1, 3), None, "4 is not here");
        assert_eq!(after(&recent, 1, 4), Some(vec![5, 6]));
        assert_eq!(after(&recent, 1, 7), Some(vec![8]));
        assert_eq!(after(&recent, 1, 8), Some(vec![]));
        assert_eq!(after(&recent, 1, 9), None);
        assert_eq!(after(&recent, 2, 7), None);
        recent.push(events(1, 10..11, 1));
        assert_eq!(after(&recent, 1, 8), None, "9 is missing");
        assert_eq!(after(&recent, 1, 9), Some(vec![10]));
    }

    #[test]
    fn it_stays_bounded() {
        let recent = Recent::default();
        recent.push(events(1, 1..4, BYTES_MAX / 2));
        assert_eq!(after(&recent, 1, 0), None);
        assert_eq!(after(&recent, 1, 1), Some(vec![2, 3]));
    }
}
