//! Decoding and windowing of the lanes that one worker serves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use crate::checkpoint::{CheckpointError, Part, SavedWindows, Store};
use crate::config;
use crate::decode::{DeadLetter, DecodeError, DecodeFailure, Decoded, Decoder};
use crate::source::{Lane, Payload, SourceBatch};
use crate::window::{Segmenter, Segments, WindowError, WindowShape, WindowStats};

/// Work for the worker of a lane, in the lane's order.
pub enum Task {
    /// A lane is taken over, with its windows where a checkpoint has them.
    Open(Lane, Option<Box<Segmenter>>),
    /// A lane is let go.
    Close(Lane),
    /// Records.
    Batch(SourceBatch, Sender<Answer>),
    /// A lane has been silent for a while: its windows follow the others'.
    Idle(Lane, Sender<Answer>),
    /// The stream of a lane is over: what its windows still hold comes in as many answers as it
    /// takes.
    Finish(Lane, SyncSender<Answer>),
    /// The windows of all lanes, for a checkpoint: what changed is added to its part.
    Save(Part, Sender<SavedLanes>),
    /// How many keys each lane may hold in memory from now on.
    Limit(usize),
}

/// Answers to a finished lane that may wait for the learner.
pub const FINISHED: usize = 2;
/// Segments of one such answer, or a few more.
const FINISHED_SEGMENTS: usize = 1024;

/// The windows of a worker's lanes.
pub type SavedLanes = Result<Vec<(Lane, SavedWindows)>, CheckpointError>;

/// What a worker says to a task.
pub type Answer = Result<Ingested, IngestError>;

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Ingested {
    pub segments: Segments,
    pub dead_letters: Vec<DeadLetter>,
    /// Records decoded.
    pub records: u64,
    /// Bytes of the messages.
    pub bytes: u64,
    /// Long rows whose code is no channel.
    pub skipped: u64,
    /// Values out of their channel's bounds.
    pub out_of_range: u64,
    pub windows: WindowStats,
    /// Keys that the lane holds.
    pub keys: usize,
    /// The lane, and its watermark, microseconds since the epoch.
    pub watermark: Option<(Lane, i64)>,
    /// Append time of the newest message, milliseconds since the epoch.
    pub appended_ms: Option<i64>,
}

/// A batch that no worker could take: a defect or a store that fails, not bad input.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error(transparent)]
    Decode(#[from] DecodeFailure),
    #[error(transparent)]
    Window(#[from] WindowError),
    #[error("{0}: records of a lane that was not taken over")]
    Unknown(Lane),
}

impl IngestError {
    /// Whether going on from the last commit may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Decode(failure) => failure.is_retryable,
            Self::Window(WindowError::Store { reason, .. }) => reason.is_retryable(),
            Self::Window(_) | Self::Unknown(_) => false,
        }
    }
}

/// Serves tasks until their sender is gone.
pub struct Worker {
    decoder: Decoder,
    shape: WindowShape,
    max_keys: usize,
    store: Option<Store>,
    lanes: HashMap<Lane, Segmenter>,
    /// Newest watermark of all workers' lanes, microseconds since the epoch.
    watermark: Arc<AtomicI64>,
}

impl Worker {
    /// A worker without lanes.
    ///
    /// # Errors
    /// If the records that the pipeline file describes cannot be decoded.
    pub fn new(
        pipeline: &config::Pipeline,
        store: Option<Store>,
        watermark: Arc<AtomicI64>,
    ) -> Result<Self, DecodeError> {
        let encoding = match &pipeline.source {
            config::Source::Kafka(_) => pipeline.encoding(),
            // These decode for themselves.
            config::Source::File(_) | config::Source::Generator(_) => config::Encoding::default(),
        };
        Ok(Self {
            decoder: Decoder::new(&pipeline.records, &encoding)?,
            shape: WindowShape::new(&pipeline.windows, &pipeline.records),
            max_keys: pipeline.windows.max_keys,
            store,
            lanes: HashMap::new(),
            watermark,
        })
    }

    /// Works until no task can come any more.
    pub fn run(mut self, tasks: Receiver<Task>) {
        for task in tasks {
            // Whoever asked and went away wants no answer.
            match task {
                Task::Open(lane, windows) => self.open(lane, windows),
                Task::Close(lane) => drop(self.lanes.remove(&lane)),
                Task::Batch(batch, answer) => drop(answer.send(self.ingest(batch))),
                Task::Idle(lane, answer) => {
                    let watermark = self.watermark.load(Ordering::Relaxed);
                    drop(answer.send(self.advance(lane, watermark)));
                }
                Task::Finish(lane, answer) => self.finish(lane, &answer),
                Task::Save(part, answer) => drop(answer.send(self.save(&part))),
                Task::Limit(max_keys) => {
                    self.max_keys = max_keys;
                    self.lanes.values_mut().for_each(|lane| lane.limit_keys(max_keys));
                }
            }
        }
    }

    fn open(&mut self, lane: Lane, windows: Option<Box<Segmenter>>) {
        let segmenter = windows.map_or_else(
            || {
                Segmenter::new(lane.clone(), self.shape.clone(), self.max_keys)
                    .with_store(self.store.clone())
            },
            |segmenter| *segmenter,
        );
        self.lanes.insert(lane, segmenter);
    }

    fn ingest(&mut self, batch: SourceBatch) -> Answer {
        let bytes = batch.byte_len() as u64;
        let SourceBatch { lane, appended_ms, payload, .. } = batch;
        let Decoded { records, dead_letters, skipped, out_of_range } = match payload {
            Payload::Messages(messages) => self.decoder.decode(&lane, &messages)?,
            Payload::Decoded(decoded) => decoded,
        };
        let segmenter =
            self.lanes.get_mut(&lane).ok_or_else(|| IngestError::Unknown(lane.clone()))?;
        let segments = segmenter.push(&records)?;
        let rows = records.num_rows() as u64;
        let ingested = Ingested {
            dead_letters,
            records: rows,
            bytes,
            skipped,
            out_of_range,
            appended_ms,
            ..describe(segmenter, segments)
        };
        if let Some((_, watermark)) = &ingested.watermark {
            self.watermark.fetch_max(*watermark, Ordering::Relaxed);
        }
        Ok(ingested)
    }

    fn advance(&mut self, lane: Lane, watermark: i64) -> Answer {
        let segmenter =
            self.lanes.get_mut(&lane).ok_or_else(|| IngestError::Unknown(lane.clone()))?;
        let segments = segmenter.advance(watermark)?;
        Ok(describe(segmenter, segments))
    }

    fn finish(&mut self, lane: Lane, answer: &SyncSender<Answer>) {
        let Some(segmenter) = self.lanes.get_mut(&lane) else {
            return drop(answer.send(Err(IngestError::Unknown(lane))));
        };
        let in_parts = segmenter.advance_in_parts(i64::MAX, FINISHED_SEGMENTS, |segments| {
            // Whoever asked and went away wants no answer.
            let _ = answer.send(Ok(Ingested { segments, ..Ingested::default() }));
        });
        let last = in_parts.map(|segments| describe(segmenter, segments));
        drop(answer.send(last.map_err(IngestError::from)));
    }

    fn save(&mut self, part: &Part) -> SavedLanes {
        let lanes = self.lanes.iter_mut();
        lanes.map(|(lane, segmenter)| Ok((lane.clone(), segmenter.save(part)?))).collect()
    }
}

fn describe(segmenter: &mut Segmenter, segments: Segments) -> Ingested {
    Ingested {
        segments,
        windows: segmenter.take_stats(),
        keys: segmenter.keys(),
        watermark: segmenter.watermark().map(|watermark| (segmenter.lane().clone(), watermark)),
        ..Ingested::default()
    }
}
