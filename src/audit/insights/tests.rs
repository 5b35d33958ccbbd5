//! Synthetic traffic: how often is what is usual called unusual, and how much of
//! what is unusual is missed.

use super::*;

/// A generator of its own, so that a run can be repeated (xorshift, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Poisson (Knuth), or its normal limit.
    fn poisson(&mut self, mean: f64) -> u32 {
        if mean > 50.0 {
            let normal = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
            return (mean + mean.sqrt() * normal).max(0.0) as u32;
        }
        let (limit, mut product, mut count) = ((-mean).exp(), self.unit(), 0);
        while product > limit {
            product *= self.unit();
            count += 1;
        }
        count
    }
}

const VALUES: [(&str, &str); 3] = [("userIdentityArn", "a"), ("userAgent", "b"), ("errorCode", "null")];

fn subject(name: &str) -> Subject {
    Subject {
        account: "111122223333".into(),
        region: "us-east-1".into(),
        source: "kms.amazonaws.com".into(),
        name: name.into(),
        error: None,
        is_data: false,
    }
}

/// Calls per minute at a minute.
type Rate = fn(u32) -> f64;

/// Busy by day, more so on five days of the week.
fn rhythm(minute: u32) -> f64 {
    let hour = f64::from(minute % DAY) / 60.0;
    let day = (1.0 + ((hour - 14.0) / 24.0 * std::f64::consts::TAU).cos()) / 2.0;
    let week = if (minute / DAY) % 7 < 5 { 1.0 } else { 0.2 };
    30.0 * day * week + 0.5
}

fn steady(_: u32) -> f64 {
    20.0
}

fn rare(_: u32) -> f64 {
    0.02
}

fn busy(_: u32) -> f64 {
    3_000.0
}

/// Hundreds at once, every hour.
fn bursts(minute: u32) -> f64 {
    if minute % 60 == 7 { 300.0 } else { 0.1 }
}

/// A tenth more each day.
fn ramp(minute: u32) -> f64 {
    20.0 * 1.1_f64.powf(f64::from(minute) / f64::from(DAY))
}

const USUAL: [(&str, Rate); 6] = [
    ("rhythm", rhythm),
    ("steady", steady),
    ("rare", rare),
    ("busy", busy),
    ("bursts", bursts),
    ("ramp", ramp),
];

/// Sixteen days of a rate, changed by what is unusual: the minutes at which
/// something began and ended.
fn run(seed: u64, rate: Rate, change: impl Fn(u32, f64) -> f64) -> Vec<(Turn, u32)> {
    let (mut dice, mut detector, mut turns) = (Dice(seed), Detector::default(), Vec::new());
    let first = 1_000 * DAY;
    for minute in 0..16 * DAY {
        let calls = dice.poisson(change(minute, rate(minute)));
        if calls > 0 {
            detector.note(first + minute, subject("Name"), VALUES, calls);
        }
        let found = detector.judge(first + minute, DAY);
        turns.extend(found.into_iter().map(|finding| (finding.turn, finding.minute - first)));
    }
    turns
}

const SEEDS: [u64; 2] = [7, 987_654_321];

#[test]
fn what_is_usual_raises_no_alarm() {
    for (name, rate) in USUAL {
        let alarms: usize = SEEDS.iter().map(|seed| run(*seed, rate, |_, usual| usual).len()).sum();
        // In the first week days of the week are not yet known: that of the
        // rhythm has one first Monday.
        assert!(alarms <= 2, "{name}: {alarms} alarms in 32 days");
    }
}

#[test]
fn what_is_unusual_is_found_soon_and_ends() {
    let begins = 10 * DAY + 3 * 60;
    let (mut missed, mut late, mut all) = (0, 0, 0);
    for (name, rate) in USUAL {
        for seed in SEEDS {
            // Four times the day's most for half an hour, at night.
            let most = (0..DAY).map(|minute| rate(9 * DAY + minute)).fold(0.0, f64::max).max(10.0);
            let turns = run(seed, rate, |minute, usual| {
                if (begins..begins + 30).contains(&minute) { usual + 4.0 * most } else { usual }
            });
            let found = turns.iter().find(|(turn, minute)| *turn == Turn::Starts && *minute >= begins);
            all += 1;
            match found {
                Some((_, minute)) if *minute <= begins + 5 => (),
                Some(_) => late += 1,
                None => missed += 1,
            }
            let ended = turns.iter().find(|(turn, minute)| *turn == Turn::Ends && *minute >= begins + 30);
            assert!(ended.is_some_and(|(_, minute)| *minute <= begins + 45), "{name} {seed}: {turns:?}");
        }
    }
    assert_eq!((missed, late), (0, 0), "of {all}");
}

#[test]
fn a_ramp_within_a_day_is_found() {
    for seed in SEEDS {
        // From the usual to five times it, within twelve hours.
        let begins = 10 * DAY;
        let turns = run(seed, steady, |minute, usual| match minute.checked_sub(begins) {
            Some(since) if since < 720 => usual * (1.0 + f64::from(since) / 180.0),
            _ => usual,
        });
        assert!(
            turns.iter().any(|(turn, at)| *turn == Turn::Starts && (begins..begins + 300).contains(at)),
            "{turns:?}"
        );
    }
}

#[test]
fn periodic_activity_that_stays_away_is_found() {
    for (every, jitter) in [(60_u32, 3_u32), (DAY, 10), (360, 0)] {
        let (mut dice, mut detector, mut found) = (Dice(5), Detector::default(), Vec::new());
        let stops = 14 * DAY;
        let resumes = 14 * DAY + 3 * every;
        let mut next = 1;
        for minute in 1..19 * DAY {
            if minute >= next {
                if !(stops..resumes).contains(&minute) {
                    detector.note(minute, subject("RotateKey"), VALUES, 1);
                }
                next = (minute / every + 1) * every + (dice.unit() * f64::from(jitter)) as u32;
            }
            found.extend(
                detector.judge(minute, DAY).into_iter().map(|finding| (finding.turn, finding.minute)),
            );
        }
        let [(Turn::Starts, start), (Turn::Ends, end)] = found[..] else {
            panic!("every {every}: {:?}", found.first_chunk::<8>())
        };
        assert!((stops..stops + 2 * every).contains(&start), "every {every}: {found:?}");
        assert!((resumes..resumes + every + jitter + 1).contains(&end), "every {every}: {found:?}");
    }
}

#[test]
fn irregular_activity_has_no_gaps() {
    for seed in SEEDS {
        let turns = run(seed, |_| 0.004, |_, usual| usual);
        assert_eq!(turns, [], "{seed}");
    }
}

#[test]
fn memory_is_bounded() {
    let mut detector = Detector::default();
    for number in 0..SERIES_MAX + 100 {
        let minute = DAY + u32::try_from(number).unwrap() / 1_000;
        detector.note(minute, subject(&number.to_string()), VALUES, 1);
    }
    detector.judge(DAY + 10, DAY);
    assert_eq!(detector.series.len(), SERIES_MAX);
    assert!(!detector.series.contains_key(&subject("0")), "the one that was silent the longest is gone");
}

#[test]
fn it_goes_on_from_what_was_written_down() {
    let mut detector = Detector::default();
    for minute in 0..2 * DAY {
        detector.note(minute, subject("Name"), VALUES, 1);
        detector.judge(minute, DAY);
    }
    let text = serde_json::to_string(&detector).unwrap();
    let again: Detector = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
}

/// Each call counts where the clock says; judged is what is over.
fn pass(detector: &mut Detector, minutes: std::ops::Range<u32>) -> Vec<Finding> {
    let mut found = Vec::new();
    for minute in minutes {
        detector.note(minute, subject("Encrypt"), VALUES, 20);
        found.extend(detector.judge(minute, DAY));
    }
    found
}

#[test]
fn a_clock_that_is_set_back_or_forth_by_minutes_is_not_unusual() {
    let mut detector = Detector::default();
    let mut found = pass(&mut detector, 0..3 * DAY);
    found.extend(pass(&mut detector, 3 * DAY - 30..3 * DAY + 60));
    found.extend(pass(&mut detector, 3 * DAY + 90..4 * DAY));
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_clock_that_was_a_year_ahead_blinds_nobody_for_a_year() {
    let mut detector = Detector::default();
    pass(&mut detector, 0..2 * DAY);
    pass(&mut detector, 365 * DAY..365 * DAY + 10);
    assert!(pass(&mut detector, 2 * DAY..4 * DAY).is_empty());
    detector.note(4 * DAY, subject("Encrypt"), VALUES, 2000);
    assert_eq!(detector.judge(4 * DAY, DAY).len(), 1);
}
