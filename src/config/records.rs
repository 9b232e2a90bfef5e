//! `[records]`: what the fields of a record mean.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Secret, TimeSpan};
use crate::templates::CHANNELS;

/// `[records]`: which fields of a record are its key, time and channels.
///
/// A field's name may be a path: `body.temperature` is the field `temperature` within `body`, and a
/// number picks an element of a list (`readings.0.value`). A field that has the whole name, dots
/// included, comes first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Records {
    /// `wide`: one field per channel. `long`: rows of (code, value), pivoted to channels. `log`:
    /// text, of which templates are mined.
    pub layout: Layout,
    /// Field that holds the key. Left out: the Kafka message key, or the file's name.
    pub key: Option<String>,
    /// Field that holds the event time: RFC 3339 or `YYYY-MM-DD hh:mm:ss[.f]` as text, text in
    /// `time_format`, or a number since the epoch in `time_unit`. Left out: the Kafka message's
    /// timestamp.
    pub time: Option<String>,
    /// Unit of numeric times.
    pub time_unit: TimeUnit,
    /// How times are written, in the letters of strftime: `%d/%b/%Y:%H:%M:%S %z`. Without a year,
    /// the latest one that does not lead beyond the message's timestamp, or the file's, by more
    /// than a day.
    pub time_format: Option<String>,
    /// IANA name of the zone that times without one are in, such as `Europe/Berlin`; UTC when left
    /// out.
    pub time_zone: Option<String>,
    /// Times are numbers of samples, taken at this many a second from the epoch on.
    pub sample_rate: Option<f64>,
    /// Channel names in the order in which the model sees them. For `layout = "log"`, and for it
    /// alone, there are none to name.
    pub channels: Vec<String>,
    /// What is special about a channel, by its name.
    pub channel: BTreeMap<String, Channel>,
    /// Cuts the channels of a key into groups that are windowed, embedded and scored each by
    /// itself, under the key `KEY/GROUP`.
    pub groups: Option<Groups>,
    /// `layout = "long"`: field that names the channel.
    pub code: String,
    /// `layout = "long"`: field that holds the value.
    pub value: String,
    /// `layout = "long"`: field that holds the value's unit (UCUM), for channels that name one.
    pub unit: Option<String>,
    /// `layout = "log"`: field that holds the text.
    pub message: String,
    /// `layout = "log"`: field that holds the severity, a word or syslog's number.
    pub severity: Option<String>,
    /// Salt of the keyed hash (HMAC-SHA-256) that takes the key's place: the key itself leaves the
    /// process nowhere, and dead letters come without the message's bytes.
    pub key_hash: Option<Secret>,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            layout: Layout::Wide,
            key: None,
            time: None,
            time_unit: TimeUnit::Auto,
            time_format: None,
            time_zone: None,
            sample_rate: None,
            channels: Vec::new(),
            channel: BTreeMap::new(),
            groups: None,
            code: "code".to_owned(),
            value: "value".to_owned(),
            unit: None,
            message: "message".to_owned(),
            severity: None,
            key_hash: None,
        }
    }
}

/// `[records.channel.NAME]`: what is special about a channel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Channel {
    /// `layout = "wide"`: the field that holds it, where that is not its name.
    pub field: Option<String>,
    /// `layout = "long"`: the codes that stand for it, where that is not its name.
    pub codes: Vec<String>,
    /// Unit (UCUM) that its values are converted to, where records name theirs.
    pub unit: Option<String>,
    /// Values below are taken for missing, and counted.
    pub min: Option<f64>,
    /// Values above are taken for missing, and counted.
    pub max: Option<f64>,
    /// In place of `windows.carry`.
    pub carry: Option<TimeSpan>,
    /// A value that stays the same, digit by digit, for longer is no longer believed: missing until
    /// it changes, and counted.
    pub stuck: Option<TimeSpan>,
}

/// `records.groups`: how channels are cut into groups.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Groups {
    /// This many channels each, in their order; the groups are named `0`, `1`, ….
    Of(usize),
    /// By name. A channel may be in several; groups may differ in size.
    Named(BTreeMap<String, Vec<String>>),
}

/// Shape of the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    #[default]
    Wide,
    Long,
    Log,
}

/// Unit of numeric event times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// By magnitude: below 1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds, else
    /// nanoseconds.
    #[default]
    Auto,
    S,
    Ms,
    Us,
    Ns,
}

impl Records {
    /// What is measured of a key, by group.
    pub fn inputs(&self) -> Inputs {
        Inputs::new(self, false)
    }
}

impl<'de> Deserialize<'de> for Groups {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeOrTable;
        impl<'de> Visitor<'de> for SizeOrTable {
            type Value = Groups;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a positive number of channels, or a table of lists of channels")
            }

            fn visit_i64<E: de::Error>(self, size: i64) -> Result<Groups, E> {
                match usize::try_from(size) {
                    Ok(size) if size > 0 => Ok(Groups::Of(size)),
                    _ => Err(E::invalid_value(Unexpected::Signed(size), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Groups, A::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(map)).map(Groups::Named)
            }
        }
        deserializer.deserialize_any(SizeOrTable)
    }
}

/// What the model sees of a key: the channels of its segments, in order.
///
/// First come the measured ones, then, where `windows.time_since_last` asks for it, the time since
/// each of them was last observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    groups: Vec<Group>,
    observed: usize,
    time_since_last: bool,
}

/// Channels that are windowed, embedded and scored together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What follows the key and a slash; `None` where channels are not grouped.
    pub name: Option<String>,
    /// Names of its channels.
    pub channels: Vec<String>,
}

impl Inputs {
    /// Of records that are windowed as `windows.time_since_last` says.
    pub fn new(records: &Records, time_since_last: bool) -> Self {
        let groups = match &records.groups {
            _ if records.layout == Layout::Log => {
                vec![Group { name: None, channels: CHANNELS.map(str::to_owned).to_vec() }]
            }
            None => vec![Group { name: None, channels: records.channels.clone() }],
            Some(Groups::Of(size)) => {
                let groups = records.channels.chunks((*size).max(1)).enumerate();
                groups
                    .map(|(number, channels)| Group {
                        name: Some(number.to_string()),
                        channels: channels.to_vec(),
                    })
                    .collect()
            }
            Some(Groups::Named(groups)) => {
                let groups = groups.iter();
                groups
                    .map(|(name, channels)| Group {
                        name: Some(name.clone()),
                        channels: channels.clone(),
                    })
                    .collect()
            }
        };
        let observed = groups.iter().map(|group| group.channels.len()).max().unwrap_or(0);
        Self { groups, observed, time_since_last }
    }

    /// Measured channels of a segment, its first ones.
    pub fn observed(&self) -> usize {
        self.observed
    }

    /// Channels of a segment.
    pub fn width(&self) -> usize {
        if self.time_since_last { 2 * self.observed } else { self.observed }
    }

    /// The groups that a key's channels are cut into: one without a name where they are not.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Name of the measured channel at `channel` in the segments of `key`; `""` where its group has
    /// fewer.
    pub fn name(&self, key: &str, channel: usize) -> &str {
        let group = match &self.groups[..] {
            [only] if only.name.is_none() => Some(only),
            groups => key.rsplit_once('/').and_then(|(_, name)| {
                groups.iter().find(|group| group.name.as_deref() == Some(name))
            }),
        };
        group.and_then(|group| group.channels.get(channel)).map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(channels: &[&str]) -> Vec<String> {
        channels.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn without_groups_channels_are_the_inputs() {
        let records = Records { channels: names(&["a", "b"]), ..Records::default() };
        let inputs = Inputs::new(&records, false);
        assert_eq!((inputs.observed(), inputs.width()), (2, 2));
        assert_eq!((inputs.name("m/1", 1), inputs.name("m", 2)), ("b", ""));
        assert_eq!(Inputs::new(&records, true).width(), 4);
    }

    #[test]
    fn lines_have_channels_of_their_own() {
        let records = Records { layout: Layout::Log, ..Records::default() };
        let inputs = Inputs::new(&records, false);
        assert_eq!((inputs.width(), inputs.name("h/1", 2)), (CHANNELS.len(), "rarity"));
    }

    #[test]
    fn groups_are_as_wide_as_the_widest_and_name_their_own_channels() {
        let channels = names(&["a", "b", "c", "d", "e"]);
        let records = Records { channels, groups: Some(Groups::Of(2)), ..Records::default() };
        let inputs = Inputs::new(&records, false);
        assert_eq!((inputs.groups().len(), inputs.observed()), (3, 2));
        assert_eq!(inputs.name("m/0", 1), "b");
        assert_eq!((inputs.name("m/2", 0), inputs.name("m/2", 1)), ("e", ""));

        let named = BTreeMap::from([
            ("x".to_owned(), names(&["a", "b", "c"])),
            ("y".to_owned(), names(&["c"])),
        ]);
        let inputs = Inputs::new(&Records { groups: Some(Groups::Named(named)), ..records }, false);
        assert_eq!(inputs.observed(), 3);
        assert_eq!((inputs.name("m/n/x", 2), inputs.name("m/y", 0)), ("c", "c"));
    }
}
