//! Quantities of the pipeline file, with their units in their types.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Location;

/// Microseconds, the unit of event time everywhere in this crate.
pub type Span = i64;

/// A duration written as `"5s"`, `"10 minutes"` or `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TimeSpan(pub Duration);

impl TimeSpan {
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// In microseconds; longer than 292,000 years saturates.
    pub fn micros(self) -> Span {
        Span::try_from(self.0.as_micros()).unwrap_or(Span::MAX)
    }
}

impl FromStr for TimeSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|error| {
            format!("\"{text}\" is not a duration such as \"5s\" or \"10m\": {error}")
        })
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A size written as `"128MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    pub const fn mib(mebibytes: u64) -> Self {
        Self(mebibytes << 20)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<bytesize::ByteSize>()
            .map(|size| Self(size.0))
            .map_err(|error| format!("\"{text}\" is not a size such as \"128MiB\": {error}"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0)
    }
}

/// A window's extent: a number of samples, or a duration that `resample` turns into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowLength {
    Samples(usize),
    Duration(TimeSpan),
}

impl fmt::Display for WindowLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Samples(samples) => write!(f, "{samples}"),
            Self::Duration(span) => write!(f, "{span}"),
        }
    }
}

/// The temperature of InfoNCE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperature {
    /// Learned, as in CLIP (Radford et al. 2021).
    Auto,
    Fixed(f32),
}

/// A promise such as `"1 per week"`: that many alerts in that time on a normal stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FalseAlarms {
    pub count: f64,
    pub per: TimeSpan,
}

impl FalseAlarms {
    /// Mean event time between two false alarms, microseconds.
    pub fn mean_interval_micros(self) -> f64 {
        self.per.0.as_secs_f64() * 1e6 / self.count
    }
}

impl Default for FalseAlarms {
    fn default() -> Self {
        Self { count: 1.0, per: TimeSpan::from_secs(7 * 24 * 3600) }
    }
}

impl FromStr for FalseAlarms {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed =
            || format!("\"{text}\" is not a promise such as \"1 per week\" or \"2 per 10days\"");
        let (count, per) = text.split_once(" per ").ok_or_else(malformed)?;
        let count: f64 = count.trim().parse().map_err(|_| malformed())?;
        let per = per.trim();
        let per = if per.starts_with(|first: char| first.is_ascii_digit()) {
            per.parse()
        } else {
            format!("1{per}").parse()
        };
        let per: TimeSpan = per.map_err(|_: String| malformed())?;
        if !(count > 0.0 && count.is_finite()) || per.0.is_zero() {
            return Err(malformed());
        }
        Ok(Self { count, per })
    }
}

impl fmt::Display for FalseAlarms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per {}", self.count, self.per)
    }
}

/// Serde by way of `FromStr` and `Display`.
macro_rules! as_text {
    ($($kind:ty: $expected:literal),+ $(,)?) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $kind;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$kind, E> {
                        text.parse().map_err(de::Error::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}
as_text! {
    TimeSpan: "a duration such as \"5s\" or \"10m\"",
    ByteSize: "a size such as \"128MiB\"",
    FalseAlarms: "a promise such as \"1 per week\"",
    Location: "a folder, or a bucket such as \"s3://bucket/prefix\"",
}

impl<'de> Deserialize<'de> for WindowLength {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SamplesOrDuration;
        impl Visitor<'_> for SamplesOrDuration {
            type Value = WindowLength;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a positive number of samples, or a duration such as \"30s\"")
            }

            fn visit_i64<E: de::Error>(self, samples: i64) -> Result<WindowLength, E> {
                match usize::try_from(samples) {
                    Ok(samples) if samples > 0 => Ok(WindowLength::Samples(samples)),
                    _ => Err(E::invalid_value(Unexpected::Signed(samples), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, samples: u64) -> Result<WindowLength, E> {
                match usize::try_from(samples) {
                    Ok(samples) if samples > 0 => Ok(WindowLength::Samples(samples)),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(samples), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<WindowLength, E> {
                text.parse().map(WindowLength::Duration).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SamplesOrDuration)
    }
}

impl Serialize for WindowLength {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Samples(samples) => serializer.serialize_u64(*samples as u64),
            Self::Duration(span) => span.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Temperature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AutoOrNumber;
        impl Visitor<'_> for AutoOrNumber {
            type Value = Temperature;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a positive number, or \"auto\"")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Temperature, E> {
                let temperature = value as f32;
                if temperature > 0.0 && temperature.is_finite() {
                    Ok(Temperature::Fixed(temperature))
                } else {
                    Err(E::invalid_value(Unexpected::Float(value), &self))
                }
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Temperature, E> {
                self.visit_f64(value as f64)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Temperature, E> {
                self.visit_f64(value as f64)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Temperature, E> {
                match text {
                    "auto" => Ok(Temperature::Auto),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(AutoOrNumber)
    }
}

impl Serialize for Temperature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Fixed(value) => serializer.serialize_f32(*value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value in a document, as serde meets it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder<T> {
        value: T,
    }

    fn read<T: for<'de> Deserialize<'de>>(value: &str) -> Result<T, String> {
        toml::from_str::<Holder<T>>(&format!("value = {value}"))
            .map(|holder| holder.value)
            .map_err(|error| error.message().to_owned())
    }

    fn write<T: Serialize>(value: T) -> String {
        let text = toml::to_string(&Holder { value }).unwrap();
        text.trim().strip_prefix("value = ").unwrap().to_owned()
    }

    #[test]
    fn durations_are_read_in_words_and_written_so_that_they_read_the_same() {
        let span: TimeSpan = read("\"1h 30m\"").unwrap();

        assert_eq!(span.micros(), 5_400_000_000);
        assert_eq!(read::<TimeSpan>(&write(span)), Ok(span));
        assert_eq!(read("\"0s\""), Ok(TimeSpan::default()));
        assert_eq!(read(&write(TimeSpan::default())), Ok(TimeSpan::default()));
    }

    #[test]
    fn a_duration_without_a_unit_is_refused_with_an_example() {
        let error = read::<TimeSpan>("\"5\"").unwrap_err();

        assert!(error.starts_with("\"5\" is not a duration such as \"5s\""), "{error}");
        assert!(read::<TimeSpan>("5").unwrap_err().contains("a duration such as"));
    }

    #[test]
    fn a_duration_beyond_the_range_of_event_time_saturates() {
        assert_eq!(TimeSpan(Duration::MAX).micros(), Span::MAX);
    }

    #[test]
    fn sizes_know_binary_and_decimal_units() {
        assert_eq!(read("\"128MiB\""), Ok(ByteSize::mib(128)));
        assert_eq!(read("\"1kB\""), Ok(ByteSize(1000)));
        assert_eq!(read(&write(ByteSize(1001))), Ok(ByteSize(1001)));
        assert!(read::<ByteSize>("\"much\"").unwrap_err().contains("a size such as"));
    }

    #[test]
    fn a_window_is_a_number_of_samples_or_a_duration() {
        assert_eq!(read("64"), Ok(WindowLength::Samples(64)));
        assert_eq!(read("\"30s\""), Ok(WindowLength::Duration(TimeSpan::from_secs(30))));
        for extent in [WindowLength::Samples(3), WindowLength::Duration(TimeSpan::from_secs(90))] {
            assert_eq!(read(&write(extent)), Ok(extent));
        }
        for refused in ["0", "-1", "1.5", "true", "\"long\""] {
            assert!(read::<WindowLength>(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_temperature_is_positive_or_auto() {
        assert_eq!(read("\"auto\""), Ok(Temperature::Auto));
        assert_eq!(read("0.1"), Ok(Temperature::Fixed(0.1)));
        assert_eq!(read("1"), Ok(Temperature::Fixed(1.0)));
        for temperature in [Temperature::Auto, Temperature::Fixed(0.07)] {
            assert_eq!(read(&write(temperature)), Ok(temperature));
        }
        for refused in ["0", "0.0", "-0.1", "nan", "inf", "1e-60", "\"warm\""] {
            assert!(read::<Temperature>(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_promise_of_false_alarms_is_a_rate() {
        let weekly: FalseAlarms = read("\"1 per week\"").unwrap();
        let twice: FalseAlarms = read("\"2 per 10days\"").unwrap();

        assert_eq!(weekly, FalseAlarms::default());
        assert_eq!(twice.mean_interval_micros(), 5.0 * 86_400e6);
        for promise in [weekly, twice, FalseAlarms { count: 0.5, ..weekly }] {
            assert_eq!(read(&write(promise)), Ok(promise));
        }
        for refused in
            ["1", "0 per week", "-1 per week", "inf per week", "1 per 0s", "1 per blue moon"]
        {
            assert!(read::<FalseAlarms>(&format!("\"{refused}\"")).is_err(), "{refused}");
        }
    }
}
