//! Times on the command line and in output.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// A time as people write it: RFC 3339, a date or a date and time (UTC),
/// seconds since 1970, `now`, or relative to `now`: `-90s`, `-15m`, `-1h`, `-7d`.
///
/// # Errors
/// What is accepted, as a sentence.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let utc = |time: DateTime| time.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp());
    if text == "now" {
        return Ok(now);
    }
    if let Some(ago) = text.strip_prefix('-').and_then(duration) {
        return now.checked_sub(ago).map_err(|_| format!("'{text}' is too long ago"));
    }
    text.parse::<Timestamp>()
        .ok()
        .or_else(|| text.parse::<f64>().ok().and_then(epoch))
        .or_else(|| text.parse::<Date>().ok().filter(|_| !text.contains(':')).and_then(|d| utc(d.into()).ok()))
        .or_else(|| text.parse::<DateTime>().ok().and_then(|time| utc(time).ok()))
        .ok_or_else(|| {
            format!("'{text}' is not a time: 2026-01-31T12:00:00Z, 2026-01-31, seconds since 1970, -90s, -15m, -1h, -7d or now")
        })
}

/// Seconds since 1970, to the nanosecond.
pub fn epoch(seconds: f64) -> Option<Timestamp> {
    let since = Duration::try_from_secs_f64(seconds.abs()).ok()?;
    let offset = jiff::SignedDuration::try_from(since).ok()?;
    Timestamp::from_duration(if seconds < 0.0 { -offset } else { offset }).ok()
}

/// ISO 8601 in UTC as the AWS CLI prints it: microseconds only where there are any.
pub fn iso(seconds: i64, nanoseconds: i32) -> Option<String> {
    let time = Timestamp::new(seconds, nanoseconds).ok()?;
    let fraction = if time.subsec_nanosecond() / 1000 == 0 { "" } else { "%.6f" };
    Some(time.strftime(&format!("%Y-%m-%dT%H:%M:%S{fraction}+00:00")).to_string())
}

/// `90s`, `15m`, `1h`, `7d`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit_s) = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    number.parse::<u64>().ok()?.checked_mul(unit_s).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let read = |text: &str| parse(text, now).map(|time| time.to_string());
        assert_eq!(read("2026-01-31T12:00:00+02:00").unwrap(), "2026-01-31T10:00:00Z");
        assert_eq!(read("2026-01-31T12:00:00").unwrap(), "2026-01-31T12:00:00Z");
        assert_eq!(read("2026-01-31").unwrap(), "2026-01-31T00:00:00Z");
        assert_eq!(read("1700000000").unwrap(), "2023-11-14T22:13:20Z");
        assert_eq!(read("1700000000.5").unwrap(), "2023-11-14T22:13:20.5Z");
        assert_eq!(read("now").unwrap(), "2026-11-23T12:00:00Z");
        assert_eq!(read("-90s").unwrap(), "2026-11-23T11:58:30Z");
        assert_eq!(read("-1h").unwrap(), "2026-11-23T11:00:00Z");
        assert_eq!(read("-7d").unwrap(), "2026-11-16T12:00:00Z");
        for bad in ["", "-", "-h", "yesterday", "2026-13-01", "-99999999999999999999d", "-9999999999d", "nan"]
        {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_printed_as_the_aws_cli_does() {
        assert_eq!(iso(1_700_000_000, 0).unwrap(), "2023-11-14T22:13:20+00:00");
        assert_eq!(iso(1_700_000_000, 123_456_789).unwrap(), "2023-11-14T22:13:20.123456+00:00");
        assert_eq!(iso(i64::MAX, 0), None);
    }
}
