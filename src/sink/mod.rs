//! Where results go: Kafka topics and Parquet files.

mod error;
mod kafka;
mod parquet;

use std::sync::Arc;

pub use error::SinkError;
pub use kafka::KafkaSink;
pub use parquet::{HistoryFiles, ParquetSink};

use rdkafka::consumer::ConsumerGroupMetadata;

use crate::decode::DeadLetter;
use crate::source::Lane;
use crate::trajectory::Trajectory;

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
    /// Largest share first; the shares add up to 1. Empty unless `alert`.
    pub causes: Vec<Cause>,
    /// Channels of which the newer half of the segment holds no value: dropped out, stuck, or out
    /// of range.
    pub missing: Vec<Arc<str>>,
    /// Whether the level of a channel begins or ceases to change: a change point.
    pub turn: bool,
    /// Whether the key's warm-up is over.
    pub warm: bool,
}

/// What an alert is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// Name of a channel.
    pub channel: Arc<str>,
    /// Its part in the anomaly.
    pub share: f32,
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
    /// Of the model that made these.
    pub model_version: ModelVersion,
}

/// Which model made some results, and how its embeddings compare with those of other versions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelVersion {
    /// Training steps behind it.
    pub steps: u64,
    /// Mean distance (1 - cosine) of reference segments' embeddings from what was once published of
    /// them: what alignment leaves.
    pub wander: f32,
}

/// A file that is whole and durable, though no reader sees it yet. Both names are relative to the
/// folder or bucket that results go to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StagedFile {
    /// Where it is.
    pub staged: String,
    /// Where readers will find it.
    pub target: String,
}

/// Somewhere results go. A sink belongs to one thread.
///
/// Results belong to epochs. [`Sink::prepare`] ends one: all of it is durable. Once the epoch is
/// committed, [`Sink::publish`] makes it visible; a process that dies in between leaves that to
/// whoever goes on from the commit, by [`Sink::recover`].
pub trait Sink: Send {
    /// Takes results of the present epoch.
    ///
    /// # Errors
    /// If these or earlier results cannot be delivered.
    fn write(&mut self, outputs: &Outputs) -> Result<(), SinkError>;

    /// Takes trajectories that ended in the present epoch, where this sink keeps them.
    ///
    /// # Errors
    /// If these or earlier results cannot be delivered.
    fn write_trajectories(&mut self, _trajectories: &[Trajectory]) -> Result<(), SinkError> {
        Ok(())
    }

    /// Takes a message that could not be taken itself.
    ///
    /// # Errors
    /// If this or earlier results cannot be delivered.
    fn dead_letter(&mut self, letter: &DeadLetter) -> Result<(), SinkError>;

    /// Ends the epoch: returns once everything taken so far is durable. The files are all that
    /// were prepared, in this epoch or earlier ones, and not published yet.
    ///
    /// # Errors
    /// If something taken so far cannot be delivered.
    fn prepare(&mut self) -> Result<Vec<StagedFile>, SinkError>;

    /// Commits the epoch together with the positions that it was made from, where this sink can
    /// do both at once.
    fn commit(&mut self, _positions: &Positions<'_>) -> Option<Result<(), SinkError>> {
        None
    }

    /// The checkpoint of the last epoch that [`Sink::commit`] committed, where the source keeps no
    /// positions and this sink keeps the commit; a sink that never committed says `None` within.
    fn last_commit(&mut self) -> Option<Result<Option<String>, SinkError>> {
        None
    }

    /// Makes all that was prepared visible.
    ///
    /// # Errors
    /// If a file cannot be moved to its place.
    fn publish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Ends an epoch that needs no commit: on return, all that was taken is durable and visible.
    ///
    /// # Errors
    /// If something taken so far cannot be delivered.
    fn flush(&mut self) -> Result<(), SinkError> {
        self.prepare()?;
        self.publish()
    }

    /// Makes visible what a committed epoch of a process that is gone had staged. What is visible
    /// already is left alone.
    ///
    /// # Errors
    /// If a file cannot be moved to its place.
    fn recover(&mut self, _committed: &[StagedFile]) -> Result<(), SinkError> {
        Ok(())
    }

    /// Deletes what epochs that were never committed had staged and what [`Sink::recover`] did not
    /// name, of processes that are gone.
    ///
    /// # Errors
    /// If a file cannot be deleted.
    fn discard(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Where reading resumes after an epoch.
pub struct Positions<'a> {
    /// Per lane, the offset at which reading resumes.
    pub offsets: &'a [(Lane, i64)],
    /// Id of the checkpoint that goes with them.
    pub checkpoint: &'a str,
    /// The consumer group that they are of, and this member's standing in it.
    pub group: Option<ConsumerGroupMetadata>,
}
