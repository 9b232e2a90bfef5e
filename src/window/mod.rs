//! Cuts each key's stream into event-time segments.
//!
//! Time is event time throughout, microseconds since the epoch. Every key has its own progress:
//! its watermark trails its newest record by `windows.lateness`, so a machine with a slow clock
//! does not lose its records to a neighbour with a fast one. Samples at or before the watermark
//! are final and enter the key's window in time order; a record behind it is late, counted and
//! left out. A [`Segmenter`] serves one lane and knows nothing of threads or clocks.

mod history;
mod key_window;
mod pending;
mod ring;
mod segment;
mod segmenter;
mod transpose;
mod words;

pub use segment::{SegmentTemplate, Segments};
pub use segmenter::{Segmenter, WindowError, WindowStats};
pub(crate) use transpose::transpose;

use crate::config;

/// The extent of segments in samples, with the rules that close them, from `[windows]`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WindowShape {
    /// Channels of a sample.
    pub channels: usize,
    /// Those of them, the first ones, that are measured.
    pub observed: usize,
    /// Samples of a segment.
    pub length: usize,
    /// Samples between the starts of two successive segments.
    pub stride: usize,
    /// Width of a resampling bin, microseconds.
    pub resample: Option<i64>,
    /// Longest time between two samples of one run, microseconds.
    pub max_gap: Option<i64>,
    /// How far a record may lie behind its key's newest, microseconds.
    pub lateness: i64,
    /// Whether the time since each measured channel was last observed follows the channels, as
    /// `ln(1 + seconds)`.
    pub time_since_last: bool,
    /// Per group of channels, in the order of the pipeline file; empty where no channel has a rule.
    pub groups: Vec<GroupRules>,
    /// Whether samples are lines of text, described by their templates.
    pub lines: bool,
}

/// Rules of the channels of one group.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GroupRules {
    /// As keys name it; `None` where channels are not grouped.
    pub name: Option<String>,
    /// Per channel.
    pub channels: Vec<ChannelRules>,
}

/// What a channel's values are held to over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChannelRules {
    /// How long the last value stands in for missing ones, microseconds.
    pub carry: Option<i64>,
    /// How long a value that does not change is believed, microseconds.
    pub stuck: Option<i64>,
}

impl WindowShape {
    /// From a checked pipeline file.
    pub fn new(windows: &config::Windows, records: &config::Records) -> Self {
        let inputs = config::Inputs::new(records, windows.time_since_last);
        let length = windows.length_samples();
        let resample = windows.resample.map(config::TimeSpan::micros);
        Self {
            channels: inputs.width(),
            observed: inputs.observed(),
            length,
            stride: windows.stride_samples(),
            resample,
            max_gap: match (windows.max_gap.map(config::TimeSpan::micros), resample) {
                // Neighbours on a grid are one bin apart, however close their records.
                (Some(max_gap), Some(width)) => Some(max_gap.max(width)),
                // On a grid, an unbounded gap would become an unbounded number of missing samples.
                (None, Some(width)) => Some(width.saturating_mul(length as i64)),
                (max_gap, None) => max_gap,
            },
            lateness: windows.lateness.micros(),
            time_since_last: windows.time_since_last,
            groups: rules(windows, records, &inputs),
            lines: records.layout == config::Layout::Log,
        }
    }

    /// The rules of the channels of `key`; none where no channel has any.
    fn rules(&self, key: &str) -> &[ChannelRules] {
        let group = match &self.groups[..] {
            [only] if only.name.is_none() => Some(only),
            groups => key.rsplit_once('/').and_then(|(_, name)| {
                groups.iter().find(|group| group.name.as_deref() == Some(name))
            }),
        };
        group.map_or(&[], |group| &group.channels)
    }

    /// Longest time over which a value is carried, microseconds.
    fn longest_carry(&self) -> i64 {
        let channels = self.groups.iter().flat_map(|group| &group.channels);
        channels.filter_map(|channel| channel.carry).max().unwrap_or(0)
    }
}

fn rules(
    windows: &config::Windows,
    records: &config::Records,
    inputs: &config::Inputs,
) -> Vec<GroupRules> {
    let rules = |name: &String| {
        let channel = records.channel.get(name);
        let carry = channel.and_then(|channel| channel.carry).or(windows.carry);
        ChannelRules {
            carry: carry.map(config::TimeSpan::micros),
            stuck: channel.and_then(|channel| channel.stuck).map(config::TimeSpan::micros),
        }
    };
    let groups: Vec<GroupRules> = inputs
        .groups()
        .iter()
        .map(|group| GroupRules {
            name: group.name.clone(),
            channels: group.channels.iter().map(rules).collect(),
        })
        .collect();
    let none = ChannelRules::default();
    let has_rules = groups.iter().any(|group| group.channels.iter().any(|rules| *rules != none));
    if has_rules { groups } else { Vec::new() }
}

/// One channel, two samples a segment, everything else off: what tests begin with.
#[cfg(test)]
impl Default for WindowShape {
    fn default() -> Self {
        Self {
            channels: 1,
            observed: 1,
            length: 2,
            stride: 1,
            resample: None,
            max_gap: None,
            lateness: 0,
            time_since_last: false,
            groups: Vec::new(),
            lines: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Records, TimeSpan, WindowLength, Windows};

    fn records(channels: usize) -> Records {
        let channels = (0..channels).map(|number| number.to_string()).collect();
        Records { channels, ..Records::default() }
    }

    #[test]
    fn durations_become_samples_of_the_grid() {
        let windows = Windows {
            length: WindowLength::Duration(TimeSpan::from_secs(30)),
            stride: WindowLength::Samples(2),
            resample: Some(TimeSpan::from_secs(5)),
            max_gap: None,
            ..Windows::default()
        };
        let shape = WindowShape::new(&windows, &records(3));
        assert_eq!((shape.channels, shape.length, shape.stride), (3, 6, 2));
        assert_eq!((shape.resample, shape.lateness), (Some(5_000_000), 5_000_000));
    }

    #[test]
    fn a_gap_on_a_grid_is_bounded_and_at_least_one_bin() {
        let gap = |max_gap: Option<u64>, resample: Option<u64>| {
            let windows = Windows {
                length: WindowLength::Samples(4),
                max_gap: max_gap.map(TimeSpan::from_secs),
                resample: resample.map(TimeSpan::from_secs),
                ..Windows::default()
            };
            WindowShape::new(&windows, &records(1)).max_gap.map(|micros| micros / 1_000_000)
        };
        assert_eq!(gap(None, None), None);
        assert_eq!(gap(Some(7), None), Some(7));
        assert_eq!(gap(None, Some(60)), Some(240));
        assert_eq!(gap(Some(7), Some(60)), Some(60));
        assert_eq!(gap(Some(90), Some(60)), Some(90));
    }
}
