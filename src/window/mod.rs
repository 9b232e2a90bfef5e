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
    pub fn new(windows: &config::Windows, channels: usize) -> Self {
        let length = windows.length_samples();
        let resample = windows.resample.map(config::TimeSpan::micros);
        Self {
            channels,
            length,
            stride: windows.stride_samples(),
            resample,
            // On a grid, an unbounded gap would become an unbounded number of missing samples.
            max_gap: windows
                .max_gap
                .map(config::TimeSpan::micros)
                .or(resample.map(|width| width.saturating_mul(length as i64))),
            lateness: windows.lateness.micros(),
        }
    }
}
