//! Where results go: Kafka topics and Parquet files.

mod error;
mod kafka;
mod parquet;

use std::sync::Arc;

pub use error::SinkError;
pub use kafka::KafkaSink;
pub use parquet::ParquetSink;

use crate::decode::DeadLetter;
use crate::source::Lane;

/// Coordinates of one segment; (pipeline, key, sequence) is unique.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SegmentMeta {
    /// The record key.
    pub key: Arc<str>,
    /// The lane its records came from.
    pub lane: Lane,
    /// Number of the segment within its key, from 0.
    pub sequence: u64,
    /// Event time of the first sample, microseconds since the epoch.
    pub window_start: i64,
    /// Event time of the last sample, microseconds since the epoch.
    pub window_end: i64,
    /// Smallest offset of the records within.
    pub first_offset: i64,
    /// Largest offset of the records within.
    pub last_offset: i64,
}

/// The calibrated verdict on one segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// 0..1: how much speaks against a normal segment; about 0.5 where an alert begins.
    pub score: f64,
    /// Probability that a normal segment looks at least this strange.
    pub p_value: f64,
    /// InfoNCE term of the segment as its predecessor's neighbour, nats.
    pub surprise: f32,
    /// Distance of its embedding to recent normal ones.
    pub distance: f32,
    /// Largest one-step forecast error among its new samples, in robust standard deviations.
    pub residual: f32,
    /// Whether it belongs to an alert.
    pub alert: bool,
    /// The episode's id, the same for all segments of one alert.
    pub alert_id: Option<String>,
    /// (channel index, share), largest first; the shares add up to 1. Empty unless `alert`.
    pub causes: Vec<(usize, f32)>,
    /// Whether the key's warm-up is over.
    pub warm: bool,
}

impl Score {
    /// Whether `segment`, whose score this is, is the first of its alert.
    pub fn begins_alert(&self, segment: &SegmentMeta) -> bool {
        let begins = |id: &String| id.ends_with(&format!("#{}", segment.sequence));
        self.alert_id.as_ref().is_some_and(begins)
    }
}

/// Results for a batch of segments, in the order the learner took them.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    pub segments: Vec<SegmentMeta>,
    /// `[segments, embedding]`, each row of unit length.
    pub embeddings: Vec<f32>,
    pub scores: Vec<Score>,
    /// Training steps behind the model that made these.
    pub model_version: u64,
}

/// Somewhere results go. A sink belongs to one thread.
pub trait Sink: Send {
    /// Takes results. They are durable only after [`Sink::flush`].
    ///
    /// # Errors
    /// If these or earlier results cannot be delivered.
    fn write(&mut self, outputs: &Outputs) -> Result<(), SinkError>;

    /// Takes a message that could not be taken itself.
    ///
    /// # Errors
    /// If this or earlier results cannot be delivered.
    fn dead_letter(&mut self, letter: &DeadLetter) -> Result<(), SinkError>;

    /// Returns once everything taken so far is durable.
    ///
    /// # Errors
    /// If something taken so far cannot be delivered.
    fn flush(&mut self) -> Result<(), SinkError>;
}
