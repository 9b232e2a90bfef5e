//! How a field tells the time.

use arrow::compute::kernels::cast_utils::string_to_datetime;
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

use super::table::Value;
use crate::config::TimeUnit;

/// Values of a field that are tried.
const TRIED: usize = 2_000;
/// Share of the values that must be times.
const MOST: f64 = 0.99;
/// 1990 to 2100, seconds since the epoch: when records are from.
const PLAUSIBLE: std::ops::Range<f64> = 631_152_000.0..4_102_444_800.0;

/// Ways in which times are written that are not read without being told, in the letters of
/// strftime. Of the two that name day and month by numbers, the day comes first in most of the
/// world.
const FORMATS: [&str; 26] = [
    "%Y-%m-%d %H:%M:%S,%3f",
    "%Y-%m-%dT%H:%M:%S,%3f",
    "%Y-%m-%dT%H:%M:%S%.f%z",
    "%d/%b/%Y:%H:%M:%S %z",
    "%b %e %H:%M:%S",
    "%a %b %e %H:%M:%S%.f %Y",
    "%Y/%m/%d %H:%M:%S%.f",
    "%y/%m/%d %H:%M:%S",
    "%y%m%d %H%M%S",
    "%Y%m%d%H%M%S",
    "%Y%m%dT%H%M%S",
    "%Y-%m-%d-%H.%M.%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%d.%m.%Y %H:%M:%S%.f",
    "%d.%m.%Y %H:%M",
    "%d/%m/%Y %H:%M:%S%.f",
    "%m/%d/%Y %H:%M:%S%.f",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
    "%d-%b-%Y %H:%M:%S%.f",
    "%d-%m-%Y %H:%M:%S%.f",
    "%Y%m%d-%H:%M:%S:%3f",
    "%m-%d %H:%M:%S%.f",
    "%m.%d %H:%M:%S",
];

/// How a field tells the time.
#[derive(Clone, Debug, PartialEq)]
pub enum Clock {
    /// RFC 3339, or a date and a time in its order: read as it is.
    Plain {
        /// Whether it names its zone.
        zoned: bool,
    },
    /// Text, in the letters of strftime.
    Format(&'static str),
    /// A number since the epoch.
    Epoch(TimeUnit),
    /// A column of times.
    Instant,
    /// A number since some beginning.
    Elapsed(TimeUnit),
    /// The number of a sample.
    Samples,
}

impl Clock {
    /// How a text tells the time, if it does.
    pub fn of_text(text: &str) -> Option<Self> {
        let text = text.trim();
        // Anything shorter is no date with a time.
        if text.len() < 8 || !text.bytes().any(|byte| byte.is_ascii_digit()) {
            return None;
        }
        if plain(text).is_some() {
            let after_date = text.get(10..).unwrap_or_default();
            let zoned = after_date.ends_with(['Z', 'z']) || after_date.contains(['+', '-']);
            return Some(Self::Plain { zoned });
        }
        FORMATS.iter().find(|format| formatted(text, format).is_some()).map(|f| Self::Format(f))
    }

    /// How it tells the time, for a person.
    pub fn in_words(&self) -> String {
        let unit = |unit: &TimeUnit| match unit {
            TimeUnit::Auto | TimeUnit::S => "seconds",
            TimeUnit::Ms => "milliseconds",
            TimeUnit::Us => "microseconds",
            TimeUnit::Ns => "nanoseconds",
        };
        match self {
            Self::Plain { zoned: true } => "RFC 3339".to_owned(),
            Self::Plain { zoned: false } => "date and time".to_owned(),
            Self::Format(format) => (*format).to_owned(),
            Self::Epoch(of) => format!("{} since 1970", unit(of)),
            Self::Instant => "a column of times".to_owned(),
            Self::Elapsed(of) => format!("{} since some beginning", unit(of)),
            Self::Samples => "the number of a sample".to_owned(),
        }
    }

    /// Whether times carry their zone.
    pub fn is_zoned(&self) -> bool {
        match self {
            Self::Plain { zoned } => *zoned,
            Self::Format(format) => format.contains("%z"),
            Self::Epoch(_) | Self::Instant | Self::Elapsed(_) | Self::Samples => true,
        }
    }

    /// Whether times lack their year.
    pub fn is_without_year(&self) -> bool {
        matches!(self, Self::Format(format) if !format.contains("%Y") && !format.contains("%y"))
    }

    /// The other order of day and month, where both fit the text.
    pub fn swapped(&self) -> Option<Self> {
        let Self::Format(format) = self else { return None };
        let other = if let Some(rest) = format.strip_prefix("%d/%m/") {
            format!("%m/%d/{rest}")
        } else {
            format!("%d/%m/{}", format.strip_prefix("%m/%d/")?)
        };
        FORMATS.iter().find(|known| **known == other).map(|known| Self::Format(known))
    }

    /// Microseconds since the epoch, or since the beginning; of a sample's number, since sample 0
    /// at one a second.
    pub fn micros(&self, value: &Value) -> Option<f64> {
        let scale = |unit: TimeUnit| match unit {
            TimeUnit::Auto | TimeUnit::S => 1e6,
            TimeUnit::Ms => 1e3,
            TimeUnit::Us => 1.0,
            TimeUnit::Ns => 1e-3,
        };
        match (self, value) {
            (Self::Instant, Value::Instant(micros)) => Some(*micros as f64),
            (Self::Plain { .. }, Value::Text(text)) => plain(text.trim()),
            (Self::Format(format), Value::Text(text)) => formatted(text.trim(), format),
            // A date without dividers is a number to most formats.
            (Self::Format(format), Value::Number(number)) => formatted(&number.to_string(), format),
            (Self::Epoch(unit) | Self::Elapsed(unit), value) => {
                Some(value.number()? * scale(*unit))
            }
            (Self::Samples, value) => Some(value.number()? * 1e6),
            _ => None,
        }
    }

    /// How most of `values` tell the time of day and year, if they do: text and times; numbers of
    /// a plausible size.
    pub fn of_dates(values: &[Value]) -> Option<Self> {
        let present: Vec<&Value> =
            values.iter().filter(|value| !value.is_null()).take(TRIED).collect();
        let first = *present.first()?;
        let fits = |clock: &Self| {
            let fit = present.iter().filter(|value| clock.micros(value).is_some()).count();
            fit as f64 >= MOST * present.len() as f64
        };
        let clock = match first {
            Value::Instant(_) => Self::Instant,
            Value::Null | Value::Boolean(_) => return None,
            Value::Number(_) => Self::Epoch(epoch_unit(&present)?),
            Value::Text(text) => match epoch_unit(&present) {
                Some(unit) => Self::Epoch(unit),
                None => {
                    let clock = Self::of_text(text)?;
                    if fits(&clock) {
                        clock
                    } else if let Some(swapped) = clock.swapped().filter(&fits) {
                        swapped
                    } else {
                        let formats = FORMATS.iter().map(|format| Self::Format(format));
                        return formats.into_iter().find(fits);
                    }
                }
            },
        };
        fits(&clock).then_some(clock)
    }
}

/// The unit in which numbers are times since the epoch.
fn epoch_unit(values: &[&Value]) -> Option<TimeUnit> {
    let numbers: Vec<f64> = values.iter().filter_map(|value| value.number()).collect();
    if numbers.is_empty() || (numbers.len() as f64) < MOST * values.len() as f64 {
        return None;
    }
    let units = [(TimeUnit::S, 1.0), (TimeUnit::Ms, 1e3), (TimeUnit::Us, 1e6), (TimeUnit::Ns, 1e9)];
    let plausible = |scale: f64| numbers.iter().all(|number| PLAUSIBLE.contains(&(number / scale)));
    units.iter().find(|(_, scale)| plausible(*scale)).map(|(unit, _)| *unit)
}

/// What is read without being told how.
fn plain(text: &str) -> Option<f64> {
    if text.as_bytes().get(4) != Some(&b'-') || text.len() < 19 && text.len() != 10 {
        return None;
    }
    string_to_datetime(&Utc, text).ok().map(|time| time.timestamp_micros() as f64)
}

fn formatted(text: &str, format: &str) -> Option<f64> {
    // Of a year alone it is only known which one it is not: a leap year knows all days.
    const LEAP_YEAR: i32 = 2024;
    if !format.contains("%Y") && !format.contains("%y") {
        let text = format!("{LEAP_YEAR} {text}");
        let time = NaiveDateTime::parse_from_str(&text, &format!("%Y {format}")).ok()?;
        return Some(time.and_utc().timestamp_micros() as f64);
    }
    if format.contains("%z") {
        let time = DateTime::parse_from_str(text, format).ok()?;
        return Some(time.timestamp_micros() as f64);
    }
    let time = NaiveDateTime::parse_from_str(text, format).ok()?;
    // `%Y` takes years of any length.
    let first = NaiveDate::from_ymd_opt(1900, 1, 1)?;
    (time.date() > first).then(|| time.and_utc().timestamp_micros() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Option<Clock> {
        let values: Vec<Value> = texts.iter().map(|text| Value::of_text(text)).collect();
        Clock::of_dates(&values)
    }

    #[test]
    fn times_are_known_however_they_are_written() {
        for (text, expected) in [
            ("2024-01-02T03:04:05Z", Clock::Plain { zoned: true }),
            ("2024-01-02T03:04:05.25+02:00", Clock::Plain { zoned: true }),
            ("2024-01-02 03:04:05", Clock::Plain { zoned: false }),
            ("2024-01-02 03:04:05,678", Clock::Format("%Y-%m-%d %H:%M:%S,%3f")),
            ("10/Oct/2000:13:55:36 -0700", Clock::Format("%d/%b/%Y:%H:%M:%S %z")),
            ("Dec 10 06:55:46", Clock::Format("%b %e %H:%M:%S")),
            ("Feb 29 06:55:46", Clock::Format("%b %e %H:%M:%S")),
            ("Sun Dec 04 04:47:44 2005", Clock::Format("%a %b %e %H:%M:%S%.f %Y")),
            ("17/06/09 20:10:40", Clock::Format("%y/%m/%d %H:%M:%S")),
            ("081109 203615", Clock::Format("%y%m%d %H%M%S")),
            ("2005-06-03-15.42.50.675872", Clock::Format("%Y-%m-%d-%H.%M.%S%.f")),
            ("31.12.2024 23:59", Clock::Format("%d.%m.%Y %H:%M")),
            ("1704164645", Clock::Epoch(TimeUnit::S)),
            ("1704164645.5", Clock::Epoch(TimeUnit::S)),
            ("1704164645123", Clock::Epoch(TimeUnit::Ms)),
            ("1704164645123456", Clock::Epoch(TimeUnit::Us)),
            ("1704164645123456789", Clock::Epoch(TimeUnit::Ns)),
        ] {
            assert_eq!(of(&[text]), Some(expected), "{text}");
        }
        assert_eq!(Clock::of_dates(&[Value::Instant(5)]), Some(Clock::Instant));
    }

    #[test]
    fn what_is_no_time_is_not_taken_for_one() {
        for text in ["", "x", "12", "61.25", "12345678", "press-4", "10.251.73.220", "1.2.3.4:80"] {
            assert_eq!(of(&[text]), None, "{text}");
        }
        assert_eq!(of(&["1704164645", "7", "8"]), None);
    }

    #[test]
    fn a_day_beyond_the_twelfth_tells_day_from_month() {
        let day_first = of(&["01/02/2024 00:00", "13/02/2024 00:00"]);
        assert_eq!(day_first, Some(Clock::Format("%d/%m/%Y %H:%M")));
        let month_first = of(&["01/02/2024 00:00", "01/13/2024 00:00"]);
        assert_eq!(month_first, Some(Clock::Format("%m/%d/%Y %H:%M")));
        assert_eq!(day_first.unwrap().swapped(), month_first);
    }

    #[test]
    fn times_are_microseconds() {
        let text = |text: &str| Value::Text(text.to_owned());
        let first = 1_704_164_645e6;
        for (clock, value) in [
            (Clock::Plain { zoned: false }, text("2024-01-02 03:04:05")),
            (Clock::Format("%y%m%d %H%M%S"), text("240102 030405")),
            (Clock::Format("%b %e %H:%M:%S"), text("Jan  2 03:04:05")),
            (Clock::Epoch(TimeUnit::Ms), Value::Number(1_704_164_645e3)),
        ] {
            assert_eq!(clock.micros(&value), Some(first), "{clock:?}");
        }
    }
}
