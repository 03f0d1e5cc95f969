//! The file in which the owner writes a licence down: TOML.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml_edit::{Datetime, Document, Offset, Value};

use super::error::ManifestError;
use super::licence::Licence;

/// A licence is a page of text; no file is longer than this.
const LARGEST: u64 = 64 << 10;
const DAY: i64 = 86_400;

/// Read a licence: the texts `id` and `licensee`, and optionally `policy`, `text`, `not_before` and `not_after`, which are
/// dates or times with an offset. A date is its whole day in UTC: `not_after = 2026-12-31` includes that day.
///
/// # Errors
/// [`ManifestError::LicenceFile`] when it cannot be read, [`ManifestError::LicenceText`] when it is not as above.
pub fn read_licence(path: &Path) -> Result<Licence, ManifestError> {
    let failed = |source| ManifestError::LicenceFile { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(LARGEST).read_to_string(&mut text)).map_err(failed)?;
    parse(&text).map_err(|what| ManifestError::LicenceText { path: path.to_owned(), what })
}

fn parse(text: &str) -> Result<Licence, String> {
    let document = Document::parse(text).map_err(|error| format!("not TOML: {}", error.message()))?;
    let mut licence = Licence {
        id: String::new(),
        licensee: String::new(),
        policy: String::new(),
        text: String::new(),
        not_before: None,
        not_after: None,
    };
    for (key, item) in document.as_table() {
        let value = item.as_value().ok_or_else(|| format!("{key} is a section"))?;
        let words =
            || value.as_str().map(str::to_owned).ok_or_else(|| format!("{key} is not text in quotes"));
        match key {
            "id" => licence.id = words()?,
            "licensee" => licence.licensee = words()?,
            "policy" => licence.policy = words()?,
            "text" => licence.text = words()?,
            "not_before" => licence.not_before = Some(seconds(key, value, 0)?),
            "not_after" => licence.not_after = Some(seconds(key, value, DAY - 1)?),
            _ => return Err(format!("{key} is none of id, licensee, policy, text, not_before, not_after")),
        }
    }
    let bytes = licence.encode().map_err(|error| error.to_string())?;
    Licence::decode(&bytes).map_err(|error| error.to_string())
}

/// Seconds since 1970 of a date, at second `of_day` of it, or of a time with an offset.
fn seconds(key: &str, value: &Value, of_day: i64) -> Result<u64, String> {
    let wrong =
        || format!("{key} is neither a date (2026-12-31) nor a time with offset (2026-12-31T12:00:00Z)");
    let Some(Datetime { date: Some(date), time, offset }) = value.as_datetime().copied() else {
        return Err(wrong());
    };
    let days = days(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let within = match (time, offset) {
        (None, None) => of_day,
        (Some(time), Some(offset)) => {
            let east = match offset {
                Offset::Z => 0,
                Offset::Custom { minutes } => i64::from(minutes) * 60,
            };
            let second = time.second.unwrap_or(0);
            i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(second) - east
        }
        _ => return Err(wrong()),
    };
    let seconds = u64::try_from(days * DAY + within).map_err(|_| format!("{key} is before 1970"))?;
    if seconds == 0 { Err(format!("{key} is the first second of 1970")) } else { Ok(seconds) }
}

/// Days since 1970-01-01. Years are counted from 1 March, so that the leap day is the last of its year, and from year 0,
/// which is 719468 days before 1970.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_file_is_read_with_dates_as_whole_days() {
        let text = "id = \"LD-1\"\nlicensee = \"Example\"\npolicy = \"p\"\ntext = \"\"\"\na\nb\"\"\"\n\
                    not_before = 2026-01-01\nnot_after = 2026-12-31\n";
        let licence = parse(text).unwrap();
        assert_eq!(licence.text, "a\nb");
        // date -u -d 2026-01-01 +%s; date -u -d '2026-12-31 23:59:59' +%s
        assert_eq!((licence.not_before, licence.not_after), (Some(1_767_225_600), Some(1_798_761_599)));
    }

    #[test]
    fn times_with_offsets_are_utc_seconds() {
        let until = |time: &str| {
            parse(&format!("id = \"a\"\nlicensee = \"b\"\nnot_after = {time}"))
                .map(|licence| licence.not_after.unwrap())
        };
        assert_eq!(until("2000-02-29T12:30:15Z"), Ok(951_827_415));
        assert_eq!(until("2000-02-29T20:30:15+08:00"), Ok(951_827_415));
        assert_eq!(until("2000-02-29"), Ok(951_868_799));
        for bad in ["2000-02-29T12:30:15", "12:30:15", "1969-01-01", "\"2000-01-01\"", "951827415"] {
            assert!(until(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn licence_file_with_anything_unexpected_is_refused() {
        for bad in [
            "",
            "id = \"a\"",
            "id = 1\nlicensee = \"b\"",
            "id = \"a\"\nlicensee = \"b\"\nnotafter = 2026-01-01",
            "id = \"a\"\nlicensee = \"b\"\n[text]\nx = 1",
            "id = \"a\"\nlicensee = \"b\"\nnot_before = 2026-01-02\nnot_after = 2026-01-01",
            "id = ",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
