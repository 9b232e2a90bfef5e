//! Cuts each key's stream into event-time segments.
//!
//! Time is event time throughout, microseconds since the epoch. Every key has its own progress:
//! its watermark trails its newest record by `windows.lateness`, so a machine with a slow clock
//! does not lose its records to a neighbour with a fast one. Samples at or before the watermark
//! are final and enter the key's window in time order; a record behind it is late, counted and
//! left out. A [`Segmenter`] serves one lane and knows nothing of threads or clocks.

mod key_window;
mod segment;
mod segmenter;

pub use segment::Segments;
pub use segmenter::{Segmenter, WindowError, WindowStats};

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
