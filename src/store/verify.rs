//! Whether the event log is what was written: the hash chain, its gaps, and
//! the signed heads.

use sha2::{Digest as _, Sha256};

use super::{Effect, GENESIS_HASH, Position, RowId, SignedHead, Store, StoreError, StoredEvent, Writer};

/// Events and heads that are read at once.
const BATCH: u32 = 500;
/// Findings that a report names; more are only counted.
const FINDINGS_MAX: usize = 1_000;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The event's hash does not fit its fields and the event before it: one
    /// of the two was changed.
    Changed {
        /// Where it stands.
        position: Position,
        /// Its eventID.
        id: String,
    },
    /// Events are missing.
    Missing {
        /// The writer.
        writer: u32,
        /// The first missing sequence.
        from: u64,
        /// The last one; None where not even their number is known.
        to: Option<u64>,
    },
    /// What an event says of the rows that it changed cannot be read.
    Effects {
        /// The event.
        position: Position,
    },
    /// What is kept of what removed events said of rows is not what was kept.
    Explained,
    /// A signed head has another hash than the event that it names.
    HeadDiffers {
        /// What the head signs.
        position: Position,
    },
    /// A head's signature is not good; the text is its checker's.
    HeadSignature {
        /// What the head signs.
        position: Position,
        /// Why.
        reason: String,
    },
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finding::Changed { position, id } => {
                write!(f, "event {position} ({id}) or the one before it was changed")
            }
            Finding::Missing { writer, from, to: Some(to) } if from == to => {
                write!(f, "event {writer}/{from} is missing")
            }
            Finding::Missing { writer, from, to: Some(to) } => {
                write!(f, "events {writer}/{from} to {writer}/{to} are missing")
            }
            Finding::Missing { writer, from, to: None } => {
                write!(f, "events from {writer}/{from} on are missing")
            }
            Finding::Effects { position } => write!(f, "the effects of event {position} are unreadable"),
            Finding::Explained => write!(f, "what removed events said of rows was changed"),
            Finding::HeadDiffers { position } => {
                write!(f, "event {position} is not the one whose hash was signed")
            }
            Finding::HeadSignature { position, reason } => {
                write!(f, "the signature of the head at {position} is not good: {reason}")
            }
        }
    }
}

/// Where a log begins whose oldest events were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The last event that was removed; sequence 0 where it was of the writer
    /// before.
    pub position: Position,
    /// Its hash, on which the log goes on.
    pub hash: [u8; 32],
    /// [`explained`] up to it.
    pub explained: [u8; 32],
}

/// What [`verify_chain`] found.
#[derive(Debug, Clone, Default)]
pub struct ChainReport {
    /// Events that were read.
    pub events: u64,
    /// Signed heads that were read.
    pub heads: u64,
    /// What is wrong, in the order of the log, at most 1,000.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more_findings: u64,
    /// The last event and its hash, of the newest writer that has any.
    pub last: Option<(Position, [u8; 32])>,
}

/// Reads the whole log, of all writers, from its base up to where it ends at the
/// call.
///
/// `check_head` is shown each signed head and says why its signature is not
/// good. `each` is shown what the log says of rows, the oldest first: MACs are
/// the caller's to compare.
pub async fn verify_chain(
    store: &dyn Store,
    base: Option<&Base>,
    check_head: &mut (dyn FnMut(&SignedHead) -> Result<(), String> + Send),
    each: &mut (dyn FnMut(Effect) + Send),
) -> Result<ChainReport, StoreError> {
    let mut report = ChainReport::default();
    if let Some(base) = base
        && explained(store, base.position, each).await? != base.explained
    {
        report.note(Finding::Explained);
    }
    // Before the writers are read, so that the end is one that they all had.
    let end = *store.end().borrow();
    let first = base.map_or(0, |base| base.position.writer);
    for writer in store.writers().await?.into_iter().filter(|writer| writer.id >= first) {
        let base = base.filter(|base| base.position.writer == writer.id);
        verify_events(store, writer, base, end, &mut report, each).await?;
        verify_heads(store, writer, base, check_head, &mut report).await?;
    }
    Ok(report)
}

/// Shows what removed events up to a position last said of each row that they
/// did not remove; SHA-256 over all of it, each field behind its length.
///
/// # Errors
/// When the store fails.
pub async fn explained(
    store: &dyn Store,
    until: Position,
    each: &mut (dyn FnMut(Effect) + Send),
) -> Result<[u8; 32], StoreError> {
    let (mut hash, mut after) = (Sha256::new(), None);
    loop {
        let page = store.explained(until, after.as_ref(), BATCH).await?;
        let Some(last) = page.last() else { return Ok(hash.finalize().into()) };
        after = Some(last.effect.row.clone());
        for said in page.into_iter().filter(|said| said.effect.version > 0) {
            let Effect { row: RowId { kind, region, account, id }, version, mac } = &said.effect;
            let version = version.to_string();
            for field in [kind.as_str(), region, account, id, &version, mac] {
                hash.update((field.len() as u64).to_be_bytes());
                hash.update(field);
            }
            each(said.effect);
        }
    }
}

async fn verify_events(
    store: &dyn Store,
    writer: Writer,
    base: Option<&Base>,
    end: Position,
    report: &mut ChainReport,
    each: &mut (dyn FnMut(Effect) + Send),
) -> Result<(), StoreError> {
    let beginning = Position { writer: writer.id, sequence: 0 };
    let mut at = base.map_or(beginning, |base| base.position);
    let mut previous = match (base, writer.follows) {
        (Some(base), _) => Some(base.hash),
        (None, None) => Some(GENESIS_HASH),
        (None, Some(follows)) => {
            let hash = store.hash_at(follows).await?;
            // What a later writer went on after was there. If the rest of the
            // older log is gone, this is where it shows.
            if hash.is_none() && report.last.is_none_or(|(last, _)| last < follows) {
                let from = report.last.filter(|(last, _)| last.writer == follows.writer);
                let from = from.map_or(1, |(last, _)| last.sequence + 1);
                report.note_missing(follows.writer, from, Some(follows.sequence));
            }
            hash
        }
    };
    loop {
        let events = store.events(at, BATCH).await?;
        let Some(last) = events.last().map(|event| event.position) else { break };
        for event in &events {
            previous = Some(report.note_event(event, at.sequence, previous, each));
            at = event.position;
        }
        if last.writer == end.writer && last.sequence >= end.sequence {
            break;
        }
    }
    if at.writer == end.writer && at.sequence < end.sequence {
        report.note_missing(writer.id, at.sequence + 1, Some(end.sequence));
    }
    Ok(())
}

async fn verify_heads(
    store: &dyn Store,
    writer: Writer,
    base: Option<&Base>,
    check_head: &mut (dyn FnMut(&SignedHead) -> Result<(), String> + Send),
    report: &mut ChainReport,
) -> Result<(), StoreError> {
    let mut after = base.map_or(Position { writer: writer.id, sequence: 0 }, |base| base.position);
    loop {
        let heads = store.heads(after, BATCH).await?;
        let Some(last) = heads.last() else { return Ok(()) };
        after = last.position;
        for head in &heads {
            report.heads += 1;
            let position = head.position;
            if let Err(reason) = check_head(head) {
                report.note(Finding::HeadSignature { position, reason });
            }
            match store.hash_at(position).await? {
                Some(hash) if hash == head.hash => {}
                Some(_) => report.note(Finding::HeadDiffers { position }),
                None => report.note_end_before(position),
            }
        }
    }
}

impl ChainReport {
    fn note(&mut self, finding: Finding) {
        match self.findings.len() < FINDINGS_MAX {
            true => self.findings.push(finding),
            false => self.more_findings += 1,
        }
    }

    fn note_missing(&mut self, writer: u32, from: u64, to: Option<u64>) {
        self.note(Finding::Missing { writer, from, to });
    }

    /// Takes one event in; the hash behind which the next one stands.
    fn note_event(
        &mut self,
        event: &StoredEvent,
        after: u64,
        previous: Option<[u8; 32]>,
        each: &mut dyn FnMut(Effect),
    ) -> [u8; 32] {
        let position = event.position;
        let gap = position.sequence != after + 1;
        if gap {
            self.note_missing(position.writer, after + 1, Some(position.sequence - 1));
        }
        // Behind a gap nothing is known to compare with; the gap is named already.
        if let (false, Some(previous)) = (gap, previous)
            && event.expected_hash(&previous) != event.hash
        {
            self.note(Finding::Changed { position, id: event.id.clone() });
        }
        match serde_json::from_str::<Vec<super::Effect>>(&event.effects) {
            Ok(effects) => effects.into_iter().for_each(each),
            Err(_) => self.note(Finding::Effects { position }),
        }
        self.events += 1;
        self.last = Some((position, event.hash));
        event.hash
    }

    /// A head signs an event that is not there: one of a gap that is named
    /// already, or one behind the log's end.
    fn note_end_before(&mut self, head: Position) {
        let named = self.findings.iter().any(|finding| match finding {
            Finding::Missing { writer, from, to } => {
                *writer == head.writer && *from <= head.sequence && to.is_none_or(|to| head.sequence <= to)
            }
            _ => false,
        });
        if !named {
            let last = self.last.filter(|(last, _)| last.writer == head.writer);
            let from = last.map_or(1, |(last, _)| last.sequence + 1);
            self.note_missing(head.writer, from, None);
        }
    }
}
