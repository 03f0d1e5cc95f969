//! Calendar arithmetic and the three date forms on the wire.
//!
//! Owns the conversions between Unix time and HTTP dates (RFC 9110), ISO 8601 in its extended form (listings) and in its
//! basic form (`x-oss-date`). All times are UTC. Tested below against dates computed elsewhere (GNU date).

use std::time::{SystemTime, UNIX_EPOCH};

const DAY_SECS: u64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Milliseconds since 1970; zero when the machine's clock is before that.
pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
pub(crate) fn unix_secs() -> u64 {
    unix_millis() / 1000
}

struct Civil {
    year: u64,
    month: u64,
    day: u64,
    second_of_day: u64,
}

fn is_leap(year: u64) -> bool {
    (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first day of `year`.
fn days_before(year: u64) -> u64 {
    let leaps = |y: u64| y / 4 - y / 100 + y / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

fn civil(secs: u64) -> Civil {
    let mut day = secs / DAY_SECS;
    // 365 days are the shortest year, so the guess is never too early.
    let mut year = 1970 + day / 365;
    while days_before(year) > day {
        year -= 1;
    }
    day -= days_before(year);
    let mut month = 1;
    while day >= month_days(year, month) {
        day -= month_days(year, month);
        month += 1;
    }
    Civil { year, month, day: day + 1, second_of_day: secs % DAY_SECS }
}

fn unix(year: u64, month: u64, day: u64, time: (u64, u64, u64)) -> Option<u64> {
    let (hour, minute, second) = time;
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=month_days(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    in_range.then(|| {
        let days = days_before(year) + (1..month).map(|m| month_days(year, m)).sum::<u64>() + day - 1;
        days * DAY_SECS + hour * 3600 + minute * 60 + second
    })
}

fn name<'a>(names: &[&'a str], index: u64) -> &'a str {
    usize::try_from(index).ok().and_then(|at| names.get(at)).copied().unwrap_or("?")
}

/// `Sun, 22 Nov 2026 09:56:24 GMT`.
pub(crate) fn http_date(secs: u64) -> String {
    let at = civil(secs);
    let (h, m, s) = (at.second_of_day / 3600, at.second_of_day / 60 % 60, at.second_of_day % 60);
    let weekday = name(&WEEKDAYS, secs / DAY_SECS % 7);
    let month = name(&MONTHS, at.month - 1);
    format!("{weekday}, {:02} {month} {:04} {h:02}:{m:02}:{s:02} GMT", at.day, at.year)
}

/// `2026-11-22T09:56:24.123Z`.
pub(crate) fn iso_millis(millis: u64) -> String {
    let at = civil(millis / 1000);
    let (h, m, s) = (at.second_of_day / 3600, at.second_of_day / 60 % 60, at.second_of_day % 60);
    let rest = millis % 1000;
    format!("{:04}-{:02}-{:02}T{h:02}:{m:02}:{s:02}.{rest:03}Z", at.year, at.month, at.day)
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Seconds since 1970 of an HTTP date in its preferred form; anything else is `None`.
pub(crate) fn parse_http_date(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once(", ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = fields.as_slice() else { return None };
    let month = MONTHS.iter().position(|known| known == month)?;
    let clock: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = clock.as_slice() else { return None };
    let time = (digits(hour)?, digits(minute)?, digits(second)?);
    unix(digits(year)?, u64::try_from(month).ok()? + 1, digits(day)?, time)
}

/// Seconds since 1970 of `20261122T095624Z`; anything else is `None`.
pub(crate) fn parse_iso_basic(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    if date.len() != 8 || time.len() != 6 {
        return None;
    }
    let part = |text: &str, from: usize, to: usize| text.get(from..to).and_then(digits);
    let time = (part(time, 0, 2)?, part(time, 2, 4)?, part(time, 4, 6)?);
    unix(part(date, 0, 4)?, part(date, 4, 6)?, part(date, 6, 8)?, time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [(u64, &str, &str); 5] = [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT", "19700101T000000Z"),
        (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT", "20000229T000000Z"),
        (1_795_341_384, "Sun, 22 Nov 2026 09:56:24 GMT", "20261122T095624Z"),
        (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT", "20241231T235959Z"),
        (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT", "21000301T000000Z"),
    ];

    #[test]
    fn http_date_of_known_instants_matches() {
        for (secs, text, _) in KNOWN {
            assert_eq!(http_date(secs), text);
            assert_eq!(parse_http_date(text), Some(secs));
        }
    }

    #[test]
    fn iso_basic_of_known_instants_parses() {
        for (secs, _, text) in KNOWN {
            assert_eq!(parse_iso_basic(text), Some(secs));
        }
        assert_eq!(iso_millis(1_795_341_384_007), "2026-11-22T09:56:24.007Z");
    }

    #[test]
    fn parse_of_impossible_dates_returns_none() {
        for text in [
            "20250229T000000Z",
            "20261322T000000Z",
            "20261122T240000Z",
            "2026-11-22T00:00:00Z",
            "",
            "+0261122T000000Z",
        ] {
            assert_eq!(parse_iso_basic(text), None, "{text}");
        }
        for text in
            ["Sun, 22 Nov 2026 09:56:24", "Sun, 22 Foo 2026 09:56:24 GMT", "Sunday, 22-Nov-26 09:56:24 GMT"]
        {
            assert_eq!(parse_http_date(text), None, "{text}");
        }
    }
}
