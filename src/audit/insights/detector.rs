//! All series of a daemon.
//!
//! A window of five minutes is unusual when it has more than half as much again
//! (and five square roots) as the most that any window had within an hour of the
//! same time on each of the seven days before. So neither a daily nor a weekly
//! rhythm is unusual, nor bursts that come every day; what grows slowly is
//! unusual once it is that much over the week. What happened at regular times and
//! then stays away for half as long again as ever is unusual too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::series::{Anomaly, BASELINE, DAY, Series, Turn};

/// Series that are kept; beyond, those that were silent the longest are forgotten.
const SERIES_MAX: usize = 5_000;
/// Minutes with something in them that all series together remember.
const MINUTES_MAX: usize = 4_000_000;

/// Minutes by which a call may be on the record late.
const LATE: u32 = 2;

/// What a series counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    /// recipientAccountId.
    pub account: String,
    /// awsRegion.
    pub region: String,
    /// eventSource.
    pub source: String,
    /// eventName.
    pub name: String,
    /// Calls with this errorCode; all calls where there is none.
    pub error: Option<String>,
    /// Whether it is a data event's: a cryptographic operation.
    pub is_data: bool,
}

/// An unusual time that begins or ends.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Of what.
    pub subject: Subject,
    /// Which of the two.
    pub turn: Turn,
    /// The time.
    pub anomaly: Anomaly,
    /// The minute after which it was found.
    pub minute: u32,
    /// How often it happened before, and over how many minutes.
    pub baseline: (u64, u32),
    /// Who did it before.
    pub usual: super::series::Attributes,
}

/// Everything that is known of the past week.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Detector {
    #[serde(with = "pairs")]
    series: BTreeMap<Subject, Series>,
    /// The first minute of which anything is known.
    since: Option<u32>,
    /// The last minute that was judged.
    judged: u32,
}

impl Detector {
    /// Counts calls of a subject.
    pub fn note(&mut self, minute: u32, subject: Subject, values: [(&str, &str); 3], calls: u32) {
        self.since.get_or_insert(minute);
        // A clock that was set back does not undo what was judged; nor is all
        // that comes until it is there again a burst of one minute.
        if minute + LATE < self.judged {
            return;
        }
        let minute = minute.max(self.judged + 1);
        self.series.entry(subject).or_default().note(minute, values, calls);
    }

    /// Judges every minute up to this one, which is over; `learning` minutes must
    /// have passed since the first.
    pub fn judge(&mut self, until: u32, learning: u32) -> Vec<Finding> {
        // The clock was ahead for longer than it may take to be there again.
        if until + DAY < self.judged {
            *self = Detector::default();
        }
        let Some(since) = self.since else { return Vec::new() };
        // After a long time away only the last day is looked at.
        let from = (self.judged + 1).max(since).max(until.saturating_sub(DAY));
        let mut findings = Vec::new();
        if from > until {
            return findings;
        }
        for minute in from..=until {
            let learned = minute >= since + learning;
            for (subject, series) in &mut self.series {
                let Some(turn) = series.judge(minute, since, learned) else { continue };
                let Some(anomaly) = series.anomaly.clone() else { continue };
                if turn == Turn::Ends {
                    series.anomaly = None;
                }
                let first = since.max(anomaly.from.saturating_sub(BASELINE));
                let baseline = match anomaly.from.checked_sub(1) {
                    Some(last) if last >= first => (series.count(first, last), anomaly.from - first),
                    _ => (0, 1),
                };
                let usual = series.usual.clone();
                findings.push(Finding { subject: subject.clone(), turn, anomaly, minute, baseline, usual });
            }
            self.judged = minute;
        }
        self.make_room();
        findings
    }

    /// The series of what is asked for.
    pub fn series(&self, wanted: impl Fn(&Subject) -> bool) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |(subject, _)| wanted(subject)).map(|(_, series)| series)
    }

    fn make_room(&mut self) {
        let minutes = |all: &BTreeMap<Subject, Series>| all.values().map(Series::len).sum::<usize>();
        self.series.retain(|_, series| series.len() > 0 || series.anomaly.is_some());
        while self.series.len() > SERIES_MAX || minutes(&self.series) > MINUTES_MAX {
            let silent = self.series.iter().min_by_key(|(_, series)| series.last());
            let Some(subject) = silent.map(|(subject, _)| subject.clone()) else { return };
            self.series.remove(&subject);
        }
    }
}

/// A map whose keys are no texts, as a list.
mod pairs {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(map: &BTreeMap<Subject, Series>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<Subject, Series>, D::Error> {
        Vec::deserialize(from).map(|pairs: Vec<(Subject, Series)>| pairs.into_iter().collect())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
