//! The values of conditions that are not text.

use std::cmp::Ordering;
use std::net::IpAddr;

use jiff::{Timestamp, civil, tz::TimeZone};

/// No date is written in more bytes than this.
const DATE_LIMIT_BYTES: usize = 64;

/// A decimal number of any size, compared digit by digit: a float would call
/// large numbers equal that are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decimal {
    negative: bool,
    /// Without leading zeros.
    whole: Box<str>,
    /// Without trailing zeros.
    fraction: Box<str>,
}

impl Decimal {
    /// `-12.50`. No exponents, no infinities.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (minus, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (whole, fraction) = match digits.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return None,
            None => (digits, ""),
        };
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Decimal { negative: minus && !zero, whole: whole.into(), fraction: fraction.into() })
    }

    fn magnitude(&self, other: &Self) -> Ordering {
        let by_size = self.whole.len().cmp(&other.whole.len());
        by_size.then_with(|| self.whole.cmp(&other.whole)).then_with(|| self.fraction.cmp(&other.fraction))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.magnitude(other),
            (true, true) => other.magnitude(self),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// `2026-01-31T12:00:00Z` with any offset, `2026-01-31` (midnight UTC), or
/// seconds since the epoch.
pub(super) fn parse_date(text: &str) -> Option<Timestamp> {
    if text.len() > DATE_LIMIT_BYTES || text.contains('[') {
        return None;
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Timestamp::from_second(text.parse().ok()?).ok();
    }
    if let Ok(timestamp) = text.parse() {
        return Some(timestamp);
    }
    let date: civil::Date = (text.len() == "2026-01-31".len()).then(|| text.parse().ok())??;
    date.to_zoned(TimeZone::UTC).ok().map(|midnight| midnight.timestamp())
}

/// `true` or `false` in any case.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// An address with a prefix length, RFC 4632.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

impl Network {
    /// `203.0.113.0/24`, `2001:db8::/32`, or a single address.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let prefix_bits = match prefix {
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => prefix.parse().ok()?,
            Some(_) => return None,
            None => width_bits(address),
        };
        (prefix_bits <= width_bits(address)).then(|| Network { address, prefix_bits }.canonical())
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let width = width_bits(self.address);
        let network = |address: IpAddr| number(address).checked_shr(width - self.prefix_bits).unwrap_or(0);
        width == width_bits(address) && network(address) == network(self.address)
    }

    /// `::ffff:203.0.113.0/120` is `203.0.113.0/24`: a listener on `::` sees
    /// IPv4 peers that way.
    fn canonical(self) -> Self {
        let address = self.address.to_canonical();
        let mapping_bits = width_bits(self.address) - width_bits(address);
        match self.prefix_bits.checked_sub(mapping_bits) {
            Some(prefix_bits) => Network { address, prefix_bits },
            None => self,
        }
    }
}

fn width_bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_compare_as_numbers() {
        let number = |text: &str| Decimal::parse(text).expect(text);
        let ascending = ["-10", "-9.5", "-0.05", "0", "0.049", "0.05", "0.5", "9", "10", "10.01"];
        assert!(ascending.windows(2).all(|pair| number(pair[0]) < number(pair[1])));
        assert!(number("9007199254740992") < number("9007199254740993"));
        for (one, other) in [("-0", "0"), ("007", "7.0"), ("+1.50", "1.5"), ("0.0", "-0.00")] {
            assert_eq!(number(one), number(other));
        }
        for bad in ["", "-", ".", "1.", ".5", "1e3", "inf", "NaN", "0x1", " 1", "1 ", "--1", "1.2.3", "１"] {
            assert_eq!(Decimal::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates_have_three_forms() {
        let epoch = |text: &str| parse_date(text).map(|date| date.as_second());
        assert_eq!(epoch("2020-01-01T00:00:00Z"), Some(1_577_836_800));
        assert_eq!(epoch("2020-01-01T01:00:00+01:00"), Some(1_577_836_800));
        assert_eq!(epoch("2020-01-01"), Some(1_577_836_800));
        assert_eq!(epoch("1577836800"), Some(1_577_836_800));
        for bad in ["", "-", "yesterday", "2020-13-01", "2020-01-01T00:00:00", "99999999999999999999"] {
            assert_eq!(epoch(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks_contain_their_addresses() {
        let inside = |network: &str, address: &str| {
            Network::parse(network).expect(network).contains(address.parse().expect(address))
        };
        for (network, address) in [
            ("203.0.113.0/24", "203.0.113.255"),
            ("203.0.113.77/24", "203.0.113.1"),
            ("203.0.113.7", "203.0.113.7"),
            ("0.0.0.0/0", "1.2.3.4"),
            ("2001:db8::/32", "2001:DB8:1::1"),
            ("::/0", "::1"),
            ("203.0.113.0/24", "::ffff:203.0.113.9"),
            ("::ffff:203.0.113.0/120", "203.0.113.9"),
        ] {
            assert!(inside(network, address), "{network} {address}");
        }
        for (network, address) in [
            ("203.0.113.0/24", "203.0.114.0"),
            ("203.0.113.7", "203.0.113.8"),
            ("0.0.0.0/0", "2001:db8::1"),
            ("::/0", "1.2.3.4"),
        ] {
            assert!(!inside(network, address), "{network} {address}");
        }
        for bad in ["", "1.2.3", "1.2.3.4/33", "::/129", "1.2.3.4/", "1.2.3.4/+1", "1.2.3.4/a", "host/8"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn decimals_order_as_integers_do(one: i64, other: i64) {
            let parse = |number: i64| Decimal::parse(&number.to_string()).expect("an integer");
            prop_assert_eq!(parse(one).cmp(&parse(other)), one.cmp(&other));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>(), near in "[0-9a-fTZ:+./ -]{0,30}") {
            for text in [text, near] {
                let _ = (Decimal::parse(&text), parse_date(&text), Network::parse(&text));
            }
        }
    }
}
