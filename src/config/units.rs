//! Quantities of the pipeline file, with their units in their types.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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
    ($($kind:ty),+) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}
as_text!(TimeSpan, ByteSize, FalseAlarms);

/// A number or a text, as TOML gives it.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Integer(i64),
    Float(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for WindowLength {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a positive number of samples, or a duration such as \"30s\"";
        match NumberOrText::deserialize(deserializer) {
            Ok(NumberOrText::Integer(samples)) if samples > 0 => {
                Ok(Self::Samples(samples as usize))
            }
            Ok(NumberOrText::Text(text)) => {
                text.parse().map(Self::Duration).map_err(de::Error::custom)
            }
            _ => Err(de::Error::custom(format!("expected {expected}"))),
        }
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
        let value = match NumberOrText::deserialize(deserializer) {
            Ok(NumberOrText::Text(text)) if text == "auto" => return Ok(Self::Auto),
            Ok(NumberOrText::Float(value)) => value,
            Ok(NumberOrText::Integer(value)) => value as f64,
            _ => f64::NAN,
        };
        if value > 0.0 && value.is_finite() {
            Ok(Self::Fixed(value as f32))
        } else {
            Err(de::Error::custom("expected a positive number, or \"auto\""))
        }
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
