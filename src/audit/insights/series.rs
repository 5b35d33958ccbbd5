//! How often something happened, minute by minute, and what of that is usual.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Minutes of a day.
pub const DAY: u32 = 24 * 60;
/// Minutes that the usual is learned from.
pub const BASELINE: u32 = 7 * DAY;
/// Minutes that are judged together.
pub const WINDOW: u32 = 5;
/// How far before and after the same time of another day is looked.
const AROUND: u32 = 60;
/// Minutes for which the usual is looked for once.
const SLOT: u32 = 10;
/// Gaps that a series must have had to be called periodic.
const GAPS_MIN: usize = 5;
/// A periodic series' longest gap, compared with its mean.
const PERIODIC_RATIO: f64 = 1.5;
/// How much longer than ever a gap must be to be unusual.
const GAP_RATIO: f64 = 1.5;
/// What happened at least so often in a window may be unusual.
const COUNT_MIN: f64 = 10.0;
/// Values of one attribute that are counted.
const VALUES_MAX: usize = 50;

/// Who called, and how it went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// `userIdentityArn`, `userAgent`, `errorCode`: the counts of their values.
    pub counts: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Attributes {
    /// Counts calls.
    fn note(&mut self, values: [(&str, &str); 3], calls: u32) {
        for (name, value) in values {
            let counts = self.counts.entry(name.to_owned()).or_default();
            if counts.len() < VALUES_MAX || counts.contains_key(value) {
                *counts.entry(value.to_owned()).or_default() += u64::from(calls);
            }
        }
    }

    /// Forgets half, so that what was long ago counts less.
    fn fade(&mut self) {
        for counts in self.counts.values_mut() {
            counts.values_mut().for_each(|count| *count /= 2);
            counts.retain(|_, count| *count > 0);
        }
    }

    fn add(&mut self, other: &Attributes) {
        for (name, counts) in &other.counts {
            let own = self.counts.entry(name.clone()).or_default();
            for (value, count) in counts {
                *own.entry(value.clone()).or_default() += count;
            }
        }
    }
}

/// One operation, or one of its errors, of one account in one Region.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Series {
    /// Minutes in which something happened, and how often; the oldest first.
    minutes: VecDeque<(u32, u32)>,
    /// Times that were unusual, which teach nothing.
    unusual: VecDeque<(u32, u32)>,
    /// Of the last minutes, each.
    recent: VecDeque<(u32, Attributes)>,
    /// Of what is usual; halved each day.
    pub usual: Attributes,
    faded: u32,
    /// Minutes between the beginnings of what happened, the oldest first.
    gaps: VecDeque<(u32, u32)>,
    episode: Option<u32>,
    /// The slot whose peak was found last, and that.
    #[serde(skip)]
    peak_of: Option<(u32, f64)>,
    /// What is unusual now.
    pub anomaly: Option<Anomaly>,
}

/// A time that is unusual.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Anomaly {
    /// Its first minute.
    pub from: u32,
    /// Whether it is that nothing happens.
    pub is_gap: bool,
    /// What happened since.
    pub count: u64,
    /// Who did it.
    pub attributes: Attributes,
    /// Minutes in sequence that were usual again.
    calm: u32,
}

/// What a minute brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// An unusual time begins.
    Starts,
    /// It is over.
    Ends,
}

impl Series {
    /// Counts calls in a minute that is not before any other's.
    pub fn note(&mut self, minute: u32, values: [(&str, &str); 3], calls: u32) {
        match self.minutes.back_mut() {
            Some((last, count)) if *last >= minute => *count = count.saturating_add(calls),
            last => {
                let idle = last.is_none_or(|(last, _)| minute - *last > WINDOW);
                if idle {
                    self.begin_episode(minute);
                }
                self.minutes.push_back((minute, calls));
            }
        }
        match self.recent.back_mut() {
            Some((last, attributes)) if *last >= minute => attributes.note(values, calls),
            _ => {
                let mut attributes = Attributes::default();
                attributes.note(values, calls);
                self.recent.push_back((minute, attributes));
            }
        }
    }

    fn begin_episode(&mut self, minute: u32) {
        if let Some(before) = self.episode.replace(minute) {
            // A gap that was unusual teaches nothing.
            if !self.anomaly.as_ref().is_some_and(|anomaly| anomaly.is_gap) {
                self.gaps.push_back((minute, minute - before));
            }
        }
    }

    /// How many minutes it remembers something of.
    pub fn len(&self) -> usize {
        self.minutes.len()
    }

    /// The last minute in which something happened.
    pub fn last(&self) -> u32 {
        self.minutes.back().map_or(0, |(minute, _)| *minute)
    }

    /// How often it happened from a minute to another, both included.
    pub fn count(&self, from: u32, to: u32) -> u64 {
        self.between(from, to).map(|(_, count)| u64::from(count)).sum()
    }

    /// The minutes in which something happened, and how often.
    pub fn between(&self, from: u32, to: u32) -> impl Iterator<Item = (u32, u32)> {
        let first = self.minutes.partition_point(|(minute, _)| *minute < from);
        self.minutes.range(first..).take_while(move |(minute, _)| *minute <= to).copied()
    }

    /// Judges the window that ends with a minute, which is over. `since` is the
    /// first minute of which anything is known.
    pub fn judge(&mut self, minute: u32, since: u32, learned: bool) -> Option<Turn> {
        self.forget(minute);
        let now = self.count((minute + 1).saturating_sub(WINDOW), minute) as f64;
        let turn = if self.anomaly.is_some() {
            self.go_on(minute, since, now)
        } else if !learned {
            None
        } else if now >= COUNT_MIN && now >= self.alarm(minute, since) {
            Some(self.start(minute, false))
        } else {
            self.is_missing(minute).then(|| self.start(minute, true))
        };
        self.settle(minute);
        turn
    }

    /// The most that a window had around the same time of the days before; for
    /// all minutes of a slot the same.
    fn peak(&mut self, minute: u32, since: u32) -> f64 {
        let slot = minute - minute % SLOT;
        match self.peak_of {
            Some((known, peak)) if known == slot => peak,
            _ => {
                let peak = self.find_peak(slot, since);
                self.peak_of = Some((slot, peak));
                peak
            }
        }
    }

    fn find_peak(&self, minute: u32, since: u32) -> f64 {
        let days = (1..=BASELINE / DAY).filter_map(|day| minute.checked_sub(day * DAY));
        let of_day = |same: u32| {
            let (from, to) = (same.saturating_sub(AROUND), same + SLOT + AROUND);
            let (mut sum, mut most) = (0_u64, 0_u64);
            let mut window: VecDeque<(u32, u32)> = VecDeque::new();
            for (at, count) in self.between(from, to).filter(|(at, _)| !self.was_unusual(*at)) {
                sum += u64::from(count);
                window.push_back((at, count));
                while let Some((_, gone)) = pop_if(&mut window, |(first, _)| *first + WINDOW <= at) {
                    sum -= u64::from(gone);
                }
                most = most.max(sum);
            }
            most
        };
        days.filter(|same| *same + AROUND >= since).map(of_day).max().unwrap_or(0) as f64
    }

    fn was_unusual(&self, minute: u32) -> bool {
        self.unusual.iter().any(|(from, to)| (*from..=*to).contains(&minute))
    }

    /// What a window must have to be unusual.
    fn alarm(&mut self, minute: u32, since: u32) -> f64 {
        let peak = self.peak(minute, since);
        1.5 * peak + 5.0 * peak.sqrt()
    }

    /// Whether nothing has happened for longer than ever, where it happens
    /// periodically.
    fn is_missing(&self, minute: u32) -> bool {
        let Some(before) = self.episode else { return false };
        if self.gaps.len() < GAPS_MIN {
            return false;
        }
        let longest = self.gaps.iter().map(|(_, gap)| *gap).max().unwrap_or(0);
        let mean = self.gaps.iter().map(|(_, gap)| f64::from(*gap)).sum::<f64>() / self.gaps.len() as f64;
        let longest = f64::from(longest);
        let silent = f64::from(minute.saturating_sub(before.max(self.last())));
        longest <= PERIODIC_RATIO * mean && silent > GAP_RATIO * longest + f64::from(WINDOW)
    }

    fn start(&mut self, minute: u32, is_gap: bool) -> Turn {
        let from = if is_gap { self.last() + 1 } else { (minute + 1).saturating_sub(WINDOW) };
        // Its first minute is the first in which anything happened.
        let from = self.between(from, minute).next().map_or(from, |(first, _)| first);
        let mut attributes = Attributes::default();
        self.recent.iter().filter(|(at, _)| *at >= from).for_each(|(_, more)| attributes.add(more));
        self.anomaly = Some(Anomaly { from, is_gap, count: self.count(from, minute), attributes, calm: 0 });
        Turn::Starts
    }

    fn go_on(&mut self, minute: u32, since: u32, now: f64) -> Option<Turn> {
        let peak = self.peak(minute, since);
        let (last_minute, last) = (self.last(), self.recent.back().cloned());
        let count = self.count(minute, minute);
        let anomaly = self.anomaly.as_mut()?;
        if minute > anomaly.from && last_minute == minute {
            anomaly.count += count;
            last.iter().for_each(|(_, attributes)| anomaly.attributes.add(attributes));
        }
        let is_usual = match anomaly.is_gap {
            true => last_minute == minute,
            false => now <= (1.2 * peak + 3.0 * peak.sqrt()).max(COUNT_MIN / 2.0),
        };
        anomaly.calm = if is_usual { anomaly.calm + 1 } else { 0 };
        let longest = if anomaly.is_gap { BASELINE } else { DAY };
        let lasts_long = minute.saturating_sub(anomaly.from) >= longest;
        let over = anomaly.is_gap && is_usual || anomaly.calm >= WINDOW || lasts_long;
        if !over {
            return None;
        }
        // What lasts for a day is the usual from then on.
        if !lasts_long && !anomaly.is_gap {
            self.unusual.push_back((anomaly.from, minute));
        }
        Some(Turn::Ends)
    }

    /// Minutes that are no longer judged count as usual.
    fn settle(&mut self, minute: u32) {
        while let Some((_, attributes)) = pop_if(&mut self.recent, |(at, _)| *at + WINDOW <= minute) {
            if self.anomaly.is_none() {
                self.usual.add(&attributes);
            }
        }
        if minute >= self.faded + DAY {
            self.usual.fade();
            self.faded = minute;
        }
    }

    fn forget(&mut self, minute: u32) {
        let first = minute.saturating_sub(BASELINE + AROUND);
        while pop_if(&mut self.minutes, |(at, _)| *at < first).is_some() {}
        while pop_if(&mut self.unusual, |(_, to)| *to < first).is_some() {}
        while pop_if(&mut self.gaps, |(at, _)| *at < first).is_some() {}
    }
}

/// Takes the first, if it is such a one.
fn pop_if<T>(queue: &mut VecDeque<T>, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
    if queue.front().is_some_and(wanted) { queue.pop_front() } else { None }
}
