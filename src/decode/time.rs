//! Event times, as text or numbers, become microseconds since the epoch.

use arrow::buffer::ScalarBuffer;
use arrow::compute::kernels::cast_utils::string_to_datetime;
use chrono::format::{Item, Parsed, StrftimeItems};
use chrono::{DateTime, Datelike, Days, NaiveDateTime, NaiveTime, TimeZone, Utc};
use chrono_tz::Tz;

use super::columns::Cell;
use super::error::DecodeError;
use crate::config::{Records, TimeUnit};

/// How times are read, from `[records]`.
#[derive(Debug)]
pub(crate) struct TimeRule {
    unit: TimeUnit,
    /// Of times that name none.
    zone: Tz,
    format: Option<Format>,
    sample_rate: Option<f64>,
}

#[derive(Debug)]
struct Format {
    items: Vec<Item<'static>>,
    has_year: bool,
}

/// A year in whose place a time without one is kept until its message says which: a leap year, in
/// which every date exists.
const NO_YEAR: i32 = 2000;
/// A time that lies further ahead of its message is of the year before.
const AHEAD: Days = Days::new(1);
/// Longest way back to a year that has a 29th of February.
const YEARS_BACK: i32 = 8;

impl TimeRule {
    pub fn new(records: &Records) -> Result<Self, DecodeError> {
        let zone = match &records.time_zone {
            None => Tz::UTC,
            Some(name) => {
                name.parse().map_err(|_| DecodeError::TimeZone { found: name.clone() })?
            }
        };
        let format = records.time_format.as_deref().map(Format::new).transpose();
        let format = format.map_err(|expected| DecodeError::TimeFormat { expected })?;
        Ok(Self { unit: records.time_unit, zone, format, sample_rate: records.sample_rate })
    }

    /// What a time looks like, for a person.
    pub fn expected(&self) -> &'static str {
        match (&self.format, self.sample_rate) {
            (_, Some(_)) => "the number of a sample",
            (Some(_), None) => "a time in records.time_format",
            (None, None) => {
                "a time from year 0 to 9999: RFC 3339, \"YYYY-MM-DD hh:mm:ss\", or a number since \
                 the epoch"
            }
        }
    }

    /// Whether times are written without their year, which [`TimeRule::with_year`] then finds.
    pub fn lacks_year(&self) -> bool {
        self.format.as_ref().is_some_and(|format| !format.has_year)
    }

    /// The event time in `cell`, microseconds since the epoch.
    pub fn micros(&self, cell: Cell<'_>) -> Option<i64> {
        if let Some(rate) = self.sample_rate {
            let sample = match cell {
                Cell::Text(text) | Cell::Number(text) => text.trim().parse().ok()?,
                Cell::Integer(sample) => sample as f64,
                Cell::Float(sample) => sample,
                Cell::Instant(_) | Cell::Absent | Cell::Null | Cell::Other(_) => return None,
            };
            return micros_of_float(sample / rate * 1e6, TimeUnit::Us);
        }
        match cell {
            Cell::Text(text) | Cell::Number(text) => self.micros_of_text(text.trim()),
            Cell::Integer(value) => micros_of_integer(value, self.unit),
            Cell::Float(value) => micros_of_float(value, self.unit),
            Cell::Instant(micros) => in_range(micros),
            Cell::Absent | Cell::Null | Cell::Other(_) => None,
        }
    }

    /// Event times that are instants, microseconds since the epoch; `None` where any is none.
    pub fn instants(&self, instants: &ScalarBuffer<i64>) -> Option<ScalarBuffer<i64>> {
        self.are_instants(instants).then(|| instants.clone())
    }

    /// Whether instants are event times, all of them.
    pub fn are_instants(&self, instants: &[i64]) -> bool {
        let are_known = instants.iter().fold(true, |all, at| all & (FIRST <= *at) & (*at <= LAST));
        are_known && self.sample_rate.is_none()
    }

    fn micros_of_text(&self, text: &str) -> Option<i64> {
        match &self.format {
            None => micros_of_text(text, self.unit, self.zone),
            Some(format) => format.micros(text, self.zone),
        }
    }

    /// The time that `micros` without its year stands for, in a message of `timestamp_ms`: of the
    /// latest year in which it is at most a day ahead.
    pub fn with_year(&self, micros: i64, timestamp_ms: i64) -> Option<i64> {
        let time = DateTime::from_timestamp_micros(micros)?.naive_utc();
        let latest = DateTime::from_timestamp_millis(timestamp_ms)?.checked_add_days(AHEAD)?;
        let latest_year = latest.with_timezone(&self.zone).year();
        (latest_year - YEARS_BACK..=latest_year).rev().find_map(|year| {
            let time = in_zone(time.with_year(year)?, self.zone)?;
            (time <= latest.timestamp_micros()).then_some(time)
        })
    }
}

impl Format {
    fn new(text: &str) -> Result<Self, &'static str> {
        let items = StrftimeItems::new(text)
            .parse_to_owned()
            .map_err(|_| "letters of strftime, such as \"%Y-%m-%d %H:%M:%S\"")?;
        // An instant written in the format shows what the format can say of it.
        let instant = DateTime::UNIX_EPOCH.fixed_offset();
        let mut written = String::new();
        let shown = instant.format_with_items(items.iter());
        std::fmt::Write::write_fmt(&mut written, format_args!("{shown}"))
            .map_err(|_| "letters of strftime that can be read back")?;
        let mut parsed = Parsed::new();
        chrono::format::parse(&mut parsed, &written, items.iter())
            .map_err(|_| "letters of strftime that can be read back")?;
        let has_year = parsed.timestamp().is_some()
            || parsed.year().is_some()
            || parsed.year_mod_100().is_some()
            || parsed.isoyear().is_some();
        let format = Self { items, has_year };
        match format.micros(&written, Tz::UTC) {
            Some(_) => Ok(format),
            None => Err("a date and a time of day, or a time since the epoch"),
        }
    }

    fn micros(&self, text: &str, zone: Tz) -> Option<i64> {
        let mut parsed = Parsed::new();
        chrono::format::parse(&mut parsed, text, self.items.iter()).ok()?;
        if parsed.timestamp().is_some() || parsed.offset().is_some() {
            let offset = parsed.offset().unwrap_or(0);
            let time = parsed.to_naive_datetime_with_offset(offset).ok()?;
            let local = i64::from(offset) * 1_000_000;
            return in_range(time.and_utc().timestamp_micros().checked_sub(local)?);
        }
        if !self.has_year {
            parsed.set_year(i64::from(NO_YEAR)).ok()?;
        }
        let time = match parsed.to_naive_time() {
            Ok(time) => time,
            // A date alone is its first moment.
            Err(_) if parsed.hour_div_12().is_none() && parsed.hour_mod_12().is_none() => {
                NaiveTime::MIN
            }
            Err(_) => return None,
        };
        let time = parsed.to_naive_date().ok()?.and_time(time);
        if self.has_year { in_zone(time, zone) } else { Some(time.and_utc().timestamp_micros()) }
    }
}

/// What `records.time_format` must be, where `format` is not.
pub fn check_time_format(format: &str) -> Result<(), &'static str> {
    Format::new(format).map(drop)
}

/// A time on a clock of `zone`: the earlier one where the clock shows it twice; where the clock
/// leaps over it, as if it had not leapt.
fn in_zone(time: NaiveDateTime, zone: Tz) -> Option<i64> {
    let shown = zone.from_local_datetime(&time).earliest();
    let instant = match shown {
        Some(instant) => instant.timestamp_micros(),
        None => {
            let before = time.checked_sub_signed(chrono::TimeDelta::hours(3))?;
            let before = zone.from_local_datetime(&before).earliest()?;
            before.timestamp_micros().checked_add(3 * 3_600_000_000)?
        }
    };
    in_range(instant)
}

/// The first and last microsecond that a record may lie at: years 0 to 9999, those that RFC 3339
/// can write.
const FIRST: i64 = -62_167_219_200_000_000;
const LAST: i64 = 253_402_300_799_999_999;

/// `YYYY-MM-DD`, with `hh:mm:ss[.f]` after a blank or a `T`, in `zone` where none is named; or a
/// number in `unit`. `None` for anything else and for times out of range.
fn micros_of_text(text: &str, unit: TimeUnit, zone: Tz) -> Option<i64> {
    if text.as_bytes().get(4) == Some(&b'-') {
        let micros = match zone {
            Tz::UTC => string_to_datetime(&Utc, text).ok()?.timestamp_micros(),
            zone => string_to_datetime(&zone, text).ok()?.timestamp_micros(),
        };
        return in_range(micros);
    }
    match text.parse() {
        Ok(integer) => micros_of_integer(integer, unit),
        Err(_) => micros_of_float(text.parse().ok()?, unit),
    }
}

/// An integer in `unit`.
fn micros_of_integer(value: i64, unit: TimeUnit) -> Option<i64> {
    let micros = match resolve(unit, value.unsigned_abs() as f64) {
        TimeUnit::S => value.checked_mul(1_000_000)?,
        TimeUnit::Ms => value.checked_mul(1_000)?,
        TimeUnit::Us => value,
        TimeUnit::Auto | TimeUnit::Ns => value.div_euclid(1_000),
    };
    in_range(micros)
}

/// A number with a fraction in `unit`, to the nearest microsecond.
fn micros_of_float(value: f64, unit: TimeUnit) -> Option<i64> {
    let micros = match resolve(unit, value.abs()) {
        TimeUnit::S => value * 1e6,
        TimeUnit::Ms => value * 1e3,
        TimeUnit::Us => value,
        TimeUnit::Auto | TimeUnit::Ns => value / 1e3,
    };
    // The cast saturates; NaN would become 0.
    if micros.is_nan() { None } else { in_range(micros.round() as i64) }
}

/// The unit that `auto` means for a number of this magnitude.
fn resolve(unit: TimeUnit, magnitude: f64) -> TimeUnit {
    match unit {
        TimeUnit::Auto if magnitude < 1e11 => TimeUnit::S,
        TimeUnit::Auto if magnitude < 1e14 => TimeUnit::Ms,
        TimeUnit::Auto if magnitude < 1e17 => TimeUnit::Us,
        TimeUnit::Auto => TimeUnit::Ns,
        named => named,
    }
}

pub(super) fn in_range(micros: i64) -> Option<i64> {
    (FIRST..=LAST).contains(&micros).then_some(micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text_micros(text: &str, unit: TimeUnit) -> Option<i64> {
        micros_of_text(text, unit, Tz::UTC)
    }

    /// 2024-01-02 03:04:05 UTC.
    const SECOND: i64 = 1_704_164_645;

    #[test]
    fn text_is_rfc_3339_or_a_date_and_time_in_utc() {
        let micros = SECOND * 1_000_000;
        for (text, expected) in [
            ("2024-01-02T03:04:05Z", micros),
            ("2024-01-02t03:04:05.25z", micros + 250_000),
            ("2024-01-02T05:04:05+02:00", micros),
            ("2024-01-02 03:04:05", micros),
            ("2024-01-02 03:04:05.000001", micros + 1),
            ("2024-01-02T03:04:05.123456789Z", micros + 123_456),
            ("2024-01-02", (SECOND - 11_045) * 1_000_000),
        ] {
            assert_eq!(text_micros(text, TimeUnit::Auto), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in [
            "",
            "yesterday",
            "2024-13-01 00:00:00",
            "2024-01-02 25:00:00",
            "2024-01-02 03:04",
            "2024-01-02 03:04:05 soon",
            "nan",
            "inf",
            "-",
            "1_000",
            "2024-01-0é",
        ] {
            assert_eq!(text_micros(text, TimeUnit::Auto), None, "{text}");
        }
    }

    #[test]
    fn auto_tells_the_unit_of_a_number_by_its_magnitude() {
        let micros = Some(SECOND * 1_000_000);
        for factor in [1, 1_000, 1_000_000, 1_000_000_000] {
            assert_eq!(micros_of_integer(SECOND * factor, TimeUnit::Auto), micros);
            assert_eq!(text_micros(&(SECOND * factor).to_string(), TimeUnit::Auto), micros);
        }
        assert_eq!(micros_of_integer(-86_400, TimeUnit::Auto), Some(-86_400_000_000));
    }

    #[test]
    fn a_named_unit_is_taken_at_its_word() {
        for (unit, expected) in [
            (TimeUnit::S, 1_500_000_000),
            (TimeUnit::Ms, 1_500_000),
            (TimeUnit::Us, 1_500),
            (TimeUnit::Ns, 1),
        ] {
            assert_eq!(micros_of_integer(1_500, unit), Some(expected), "{unit:?}");
        }
    }

    #[test]
    fn fractions_of_seconds_keep_their_microseconds() {
        let text = "1704164645.123457";
        assert_eq!(text_micros(text, TimeUnit::Auto), Some(1_704_164_645_123_457));
        assert_eq!(text_micros("1.5e3", TimeUnit::S), Some(1_500_000_000));
        assert_eq!(micros_of_float(-0.5, TimeUnit::S), Some(-500_000));
    }

    #[test]
    fn times_beyond_the_years_0_to_9999_are_refused() {
        assert_eq!(text_micros("9999-12-31T23:59:59.999999Z", TimeUnit::Auto), Some(LAST));
        assert_eq!(text_micros("0000-01-01T00:00:00Z", TimeUnit::Auto), Some(FIRST));
        assert_eq!(text_micros("9999-12-31T23:59:59-01:00", TimeUnit::Auto), None);
        assert_eq!(micros_of_integer(i64::MAX, TimeUnit::S), None);
        assert_eq!(micros_of_integer(i64::MAX, TimeUnit::Us), None);
        assert_eq!(micros_of_float(f64::INFINITY, TimeUnit::Auto), None);
        assert_eq!(micros_of_float(f64::NAN, TimeUnit::Ns), None);
    }

    fn rule(format: &str, zone: &str) -> TimeRule {
        let records = Records {
            time_format: (!format.is_empty()).then(|| format.to_owned()),
            time_zone: Some(zone.to_owned()),
            ..Records::default()
        };
        TimeRule::new(&records).unwrap()
    }

    #[test]
    fn a_format_is_read_with_its_zone_or_the_one_named() {
        let micros = SECOND * 1_000_000;
        for (format, zone, text, expected) in [
            ("%d/%b/%Y:%H:%M:%S %z", "UTC", "02/Jan/2024:05:04:05 +0200", micros),
            ("%Y-%m-%d %H:%M:%S,%3f", "UTC", "2024-01-02 03:04:05,250", micros + 250_000),
            ("%Y-%m-%d %H:%M:%S", "Europe/Berlin", "2024-01-02 04:04:05", micros),
            ("%y%m%d %H%M%S", "UTC", "240102 030405", micros),
            ("%Y-%m-%d-%H.%M.%S%.f", "America/New_York", "2024-01-01-22.04.05.5", micros + 500_000),
            ("%s", "Europe/Berlin", "1704164645", micros),
            ("%Y/%m/%d", "UTC", "2024/01/02", micros - 11_045_000_000),
        ] {
            let found = rule(format, zone).micros(Cell::Text(text));
            assert_eq!(found, Some(expected), "{format} {text}");
        }
        let plain = rule("", "Europe/Berlin");
        assert_eq!(plain.micros(Cell::Text("2024-01-02 04:04:05")), Some(micros));
        assert_eq!(plain.micros(Cell::Text("2024-01-02T03:04:05Z")), Some(micros));
    }

    #[test]
    fn what_does_not_fit_the_format_is_refused() {
        let rule = rule("%Y-%m-%d %H:%M:%S", "UTC");
        for text in ["", "2024-01-02", "2024-02-30 00:00:00", "2024-01-02 03:04:05Z", "99999999999"]
        {
            assert_eq!(rule.micros(Cell::Text(text)), None, "{text}");
        }
    }

    #[test]
    fn formats_that_cannot_tell_a_time_are_refused() {
        for format in ["%H:%M:%S", "%Q", "", "no letters", "%Y", "%A"] {
            assert!(check_time_format(format).is_err(), "{format}");
        }
        for format in ["%b %e %H:%M:%S", "%s", "%Y-%m-%d", "%c", "%+"] {
            assert_eq!(check_time_format(format), Ok(()), "{format}");
        }
    }

    #[test]
    fn a_time_on_a_clock_that_leaps_is_read_all_the_same() {
        let rule = rule("%Y-%m-%d %H:%M:%S", "Europe/Berlin");
        let micros = |text| rule.micros(Cell::Text(text)).unwrap();
        // 02:30 does not exist on that day; 02:30 exists twice on the other.
        assert_eq!(micros("2024-03-31 02:30:00") - micros("2024-03-31 01:30:00"), 3_600_000_000);
        assert_eq!(micros("2024-10-27 02:30:00") - micros("2024-10-27 01:30:00"), 3_600_000_000);
    }

    #[test]
    fn a_time_without_a_year_is_of_the_latest_that_its_message_allows() {
        let rule = rule("%b %e %H:%M:%S", "UTC");
        assert!(rule.lacks_year());
        let at = |text: &str, message: &str| {
            let time = rule.micros(Cell::Text(text)).unwrap();
            let message = DateTime::parse_from_rfc3339(message).unwrap().timestamp_millis();
            let time = rule.with_year(time, message).unwrap();
            DateTime::from_timestamp_micros(time).unwrap().format("%F %T").to_string()
        };
        assert_eq!(at("Dec 10 06:55:46", "2024-12-10T06:55:47Z"), "2024-12-10 06:55:46");
        assert_eq!(at("Dec 31 23:59:59", "2025-01-01T00:00:01Z"), "2024-12-31 23:59:59");
        // A clock that is ahead of the broker's.
        assert_eq!(at("Jan  1 00:00:05", "2024-12-31T23:59:59Z"), "2025-01-01 00:00:05");
        assert_eq!(at("Feb 29 12:00:00", "2027-01-01T00:00:00Z"), "2024-02-29 12:00:00");
    }

    #[test]
    fn numbers_of_samples_become_times() {
        let records = Records { sample_rate: Some(360.0), ..Records::default() };
        let rule = TimeRule::new(&records).unwrap();
        assert_eq!(rule.micros(Cell::Integer(0)), Some(0));
        assert_eq!(rule.micros(Cell::Integer(1)), Some(2778));
        assert_eq!(rule.micros(Cell::Number("650000")), Some(1_805_555_556));
        assert_eq!(rule.micros(Cell::Text("soon")), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_format_panic(
            format in "(%[a-zA-Z0-9]|[-: ]|\\PC){0,8}",
            text in "\\PC{0,20}",
        ) {
            let records = Records { time_format: Some(format), ..Records::default() };
            if let Ok(rule) = TimeRule::new(&records) {
                let _ = rule.micros(Cell::Text(&text)).map(|micros| rule.with_year(micros, 0));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "(\\d{4}-\\d{2}-\\d{2}[T ]?)?\\PC{0,40}") {
            let _ = text_micros(&text, TimeUnit::Auto);
        }

        #[test]
        fn written_times_are_read_back(micros in FIRST..=LAST) {
            let time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
            let text = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            prop_assert_eq!(text_micros(&text, TimeUnit::Auto), Some(micros));
        }
    }
}
