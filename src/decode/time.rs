//! Event times, as text or numbers, become microseconds since the epoch.

use arrow::compute::kernels::cast_utils::string_to_datetime;
use chrono::Utc;

use crate::config::TimeUnit;

/// The first and last microsecond that a record may lie at: years 0 to 9999, those that RFC 3339
/// can write.
const FIRST: i64 = -62_167_219_200_000_000;
const LAST: i64 = 253_402_300_799_999_999;

/// `YYYY-MM-DD`, with `hh:mm:ss[.f]` after a blank or a `T`, UTC where no zone is named; or a
/// number in `unit`. `None` for anything else and for times out of range.
pub(super) fn micros_of_text(text: &str, unit: TimeUnit) -> Option<i64> {
    if text.as_bytes().get(4) == Some(&b'-') {
        let time = string_to_datetime(&Utc, text).ok()?;
        return in_range(time.timestamp_micros());
    }
    match text.parse() {
        Ok(integer) => micros_of_integer(integer, unit),
        Err(_) => micros_of_float(text.parse().ok()?, unit),
    }
}

/// An integer in `unit`.
pub(super) fn micros_of_integer(value: i64, unit: TimeUnit) -> Option<i64> {
    let micros = match resolve(unit, value.unsigned_abs() as f64) {
        TimeUnit::S => value.checked_mul(1_000_000)?,
        TimeUnit::Ms => value.checked_mul(1_000)?,
        TimeUnit::Us => value,
        TimeUnit::Auto | TimeUnit::Ns => value.div_euclid(1_000),
    };
    in_range(micros)
}

/// A number with a fraction in `unit`, to the nearest microsecond.
pub(super) fn micros_of_float(value: f64, unit: TimeUnit) -> Option<i64> {
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

fn in_range(micros: i64) -> Option<i64> {
    (FIRST..=LAST).contains(&micros).then_some(micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            assert_eq!(micros_of_text(text, TimeUnit::Auto), Some(expected), "{text}");
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
            assert_eq!(micros_of_text(text, TimeUnit::Auto), None, "{text}");
        }
    }

    #[test]
    fn auto_tells_the_unit_of_a_number_by_its_magnitude() {
        let micros = Some(SECOND * 1_000_000);
        for factor in [1, 1_000, 1_000_000, 1_000_000_000] {
            assert_eq!(micros_of_integer(SECOND * factor, TimeUnit::Auto), micros);
            assert_eq!(micros_of_text(&(SECOND * factor).to_string(), TimeUnit::Auto), micros);
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
        assert_eq!(micros_of_text(text, TimeUnit::Auto), Some(1_704_164_645_123_457));
        assert_eq!(micros_of_text("1.5e3", TimeUnit::S), Some(1_500_000_000));
        assert_eq!(micros_of_float(-0.5, TimeUnit::S), Some(-500_000));
    }

    #[test]
    fn times_beyond_the_years_0_to_9999_are_refused() {
        assert_eq!(micros_of_text("9999-12-31T23:59:59.999999Z", TimeUnit::Auto), Some(LAST));
        assert_eq!(micros_of_text("0000-01-01T00:00:00Z", TimeUnit::Auto), Some(FIRST));
        assert_eq!(micros_of_text("9999-12-31T23:59:59-01:00", TimeUnit::Auto), None);
        assert_eq!(micros_of_integer(i64::MAX, TimeUnit::S), None);
        assert_eq!(micros_of_integer(i64::MAX, TimeUnit::Us), None);
        assert_eq!(micros_of_float(f64::INFINITY, TimeUnit::Auto), None);
        assert_eq!(micros_of_float(f64::NAN, TimeUnit::Ns), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\d{4}-\\d{2}-\\d{2}[T ]?)?\\PC{0,40}") {
            let _ = micros_of_text(&text, TimeUnit::Auto);
        }

        #[test]
        fn written_times_are_read_back(micros in FIRST..=LAST) {
            let time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
            let text = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            prop_assert_eq!(micros_of_text(&text, TimeUnit::Auto), Some(micros));
        }
    }
}
