//! Threads, bounded channels, epochs and shutdown: all that the stages need not know.
//!
//! ```text
//! source thread ──▶ workers (decode, windows; one per lane) ──▶ learner thread ──▶ sinks' thread
//!       └──────────── order of batches, commits ────────────────────▲    ▲
//!                                                                     trainer
//! ```
//!
//! The source's thread gives each batch to the worker of its lane, and a place in the learner's
//! queue: workers run side by side, yet the learner sees batches in the source's order, so a run
//! can be repeated bit for bit. Every queue is bounded; a full one holds back the one before it,
//! down to the source, which is paused. Where records come no matter how fast they are taken, training
//! steps are taken by a thread beside the learner's, as far as there is time for them.
//!
//! A commit travels the same way as the records before it: the workers add their windows, the
//! learner its state, and the sinks' thread makes first the results durable, then the checkpoint,
//! then the positions, and at last the results visible.
//!
//! Before the first record, `recover` finishes what an epoch that was committed had left to do.
//! After a failure that may pass, [`serve`] goes on from the last commit.

mod backoff;
mod core;
mod deliver;
mod feed;
mod ingest;
mod learn;
mod recover;
mod rewind;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize};
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

pub use self::core::{Core, Effort, SavedCore, TakenLabels};
pub use self::ingest::IngestError;
pub use self::rewind::serve;
pub use self::status::Status;

use self::deliver::Deliver;
use self::feed::Feed;
use self::ingest::Worker;
use self::learn::Learn;
use crate::checkpoint::{Checkpoint, CheckpointError, Store};
use crate::config;
use crate::decode::DecodeError;
use crate::faults;
use crate::learner;
use crate::sink::{Outputs, Sink, SinkError};
use crate::source::{FileSource, GeneratorSource, KafkaSource, Source, SourceError};

/// Batches that may wait for the learner.
const QUEUE: usize = 16;
/// Results, of one batch of segments each, that may wait for the sinks.
const DELIVERIES: usize = 64;
/// Most workers; lanes share them.
const WORKERS: usize = 8;

/// Why a service ended.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("source: {0}")]
    Source(#[from] SourceError),
    #[error("decode: {0}")]
    Decode(#[from] DecodeError),
    #[error("window: {0}")]
    Ingest(#[from] IngestError),
    #[error("sink: {0}")]
    Sink(#[from] SinkError),
    #[error("checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// A step of the commit was made to fail.
    #[error("commit: {0}")]
    Step(#[from] std::io::Error),
    /// Another thread ended first: its error is the reason.
    #[error("a stage ended early")]
    Ended,
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl RuntimeError {
    /// Whether going on from the last commit may help, with nobody doing anything about it.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Source(SourceError::Lost { .. }) => true,
            Self::Source(error) => error.is_retryable(),
            Self::Sink(error) => error.is_retryable(),
            Self::Checkpoint(error) => error.is_retryable(),
            Self::Step(error) => faults::may_pass(error.kind()),
            Self::Ingest(error) => error.is_retryable(),
            Self::Decode(_) | Self::Ended | Self::Thread(_) => false,
        }
    }

    /// The stage that failed.
    fn stage(&self) -> &'static str {
        match self {
            Self::Source(_) => "source",
            Self::Decode(_) => "decode",
            Self::Ingest(_) => "window",
            Self::Sink(_) => "sink",
            Self::Checkpoint(_) | Self::Step(_) => "checkpoint",
            Self::Ended | Self::Thread(_) => "runtime",
        }
    }
}

/// What a service did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records decoded.
    pub records: u64,
    /// Records behind their key's watermark.
    pub late_records: u64,
    /// Messages that could not be taken.
    pub dead_letters: u64,
    /// Segments scored.
    pub segments: u64,
    /// Alerts begun.
    pub alerts: u64,
    /// Training steps behind the model.
    pub steps: u64,
}

impl Summary {
    fn count(&mut self, outputs: &Outputs) {
        self.segments += outputs.segments.len() as u64;
        let begun = outputs.scores.iter().zip(&outputs.segments);
        self.alerts += begun.filter(|(score, segment)| score.begins_alert(segment)).count() as u64;
    }
}

/// What a pipeline runs on.
pub struct Opened {
    pub source: Box<dyn Source>,
    pub sinks: Vec<Box<dyn Sink>>,
    /// The checkpoint that a source without positions of its own goes on from.
    pub resumed: Option<Checkpoint>,
}

impl Opened {
    /// Opens the source of a pipeline, to go on from what it was committed with in `store` and by
    /// `sinks`.
    ///
    /// # Errors
    /// If the source cannot be opened, or the store or the last commit not be read.
    pub fn new(
        pipeline: &config::Pipeline,
        store: Option<&Store>,
        mut sinks: Vec<Box<dyn Sink>>,
    ) -> Result<Self, RuntimeError> {
        let kafka = matches!(pipeline.source, config::Source::Kafka(_));
        let resumed = match store {
            Some(store) if !kafka => last_commit(pipeline, store, &mut sinks)?,
            _ => None,
        };
        let positions =
            resumed.iter().flat_map(|checkpoint| checkpoint.positions.iter().cloned()).collect();
        let source: Box<dyn Source> = match &pipeline.source {
            config::Source::Kafka(kafka) => {
                Box::new(KafkaSource::connect(kafka, &pipeline.group())?)
            }
            config::Source::File(file) => Box::new(FileSource::open(
                file,
                &pipeline.records,
                &pipeline.encoding(),
                &positions,
            )?),
            config::Source::Generator(generator) => {
                let position = positions.values().next().copied().unwrap_or(0);
                Box::new(GeneratorSource::new(generator, &pipeline.records.channels, position))
            }
        };
        Ok(Self { source, sinks, resumed })
    }
}

/// The checkpoint that a source without positions of its own was last committed with: the one that
/// a sink says, or else the newest.
fn last_commit(
    pipeline: &config::Pipeline,
    store: &Store,
    sinks: &mut [Box<dyn Sink>],
) -> Result<Option<Checkpoint>, RuntimeError> {
    match sinks.iter_mut().find_map(|sink| sink.last_commit()) {
        Some(committed) => Ok(match committed? {
            Some(id) => Some(store.load(&id, "the source")?),
            None => None,
        }),
        None => Ok(store.latest(&pipeline.name, !pipeline.exactly_once())?),
    }
}

/// Runs a pipeline until its source ends or `status` is told to stop; either way, everything that
/// was read is then committed.
///
/// # Errors
/// The first failure of any stage. What was committed before it stays; the rest is read again by
/// the next run.
pub fn run(
    pipeline: &config::Pipeline,
    opened: Opened,
    store: Option<&Store>,
    status: &Status,
) -> Result<Summary, RuntimeError> {
    let Opened { source, mut sinks, resumed } = opened;
    let committer = source.committer();
    recover::recover(pipeline, (store, resumed.as_ref()), committer.as_deref(), &mut sinks)?;
    let watermark = Arc::new(AtomicI64::new(i64::MIN));
    let (backlog, taught) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (to_learner, from_feed) = sync_channel(QUEUE);
    let (to_sinks, from_learner) = sync_channel(DELIVERIES);

    let outcomes = thread::scope(|scope| -> Result<_, RuntimeError> {
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let mut workers = Vec::new();
        let cores = learner::cores();
        for number in 0..cores.min(WORKERS) {
            let (sender, receiver) = channel();
            let worker = Worker::new(pipeline, store.cloned(), Arc::clone(&watermark))?;
            spawn(&format!("ingest-{number}"))
                .spawn_scoped(scope, move || worker.run(receiver))
                .map_err(RuntimeError::Thread)?;
            workers.push(sender);
        }
        let exactly_once = pipeline.exactly_once();
        let deliver = Deliver { sinks, committer, store, exactly_once, status };
        let deliver = spawn("sinks")
            .spawn_scoped(scope, move || deliver.run(from_learner))
            .map_err(RuntimeError::Thread)?;
        let learn = Learn::new(pipeline, store, to_sinks, (&backlog, &taught))?;
        let learn = spawn("learner")
            .spawn_scoped(scope, move || learn.run(from_feed))
            .map_err(RuntimeError::Thread)?;
        let to_learner = (to_learner, &backlog, &taught);
        let feed = Feed::new(pipeline, source, workers, to_learner, (store, resumed), status);
        let feed = spawn("source")
            .spawn_scoped(scope, move || feed.run())
            .map_err(RuntimeError::Thread)?;
        let panicked = |name: &str| -> ! { panic!("the {name} thread panicked") };
        let fed = feed.join().unwrap_or_else(|_| panicked("source"));
        let learned = learn.join().unwrap_or_else(|_| panicked("learner"));
        let delivered = deliver.join().unwrap_or_else(|_| panicked("sinks"));
        Ok((fed, learned, delivered))
    })?;

    status.set_ready(false);
    let (fed, learned, delivered) = outcomes;
    // A stage that fails ends those before it, which then only know that it ended: the reason is
    // the last one's.
    let mut summary = Err(RuntimeError::Ended);
    let mut reason = RuntimeError::Ended;
    for outcome in [fed.map(|()| None), learned.map(Some), delivered.map(|()| None)] {
        match outcome {
            Ok(Some(found)) => summary = Ok(found),
            Ok(None) | Err(RuntimeError::Ended) => {}
            Err(error) => reason = error,
        }
    }
    match (reason, summary) {
        (RuntimeError::Ended, Ok(summary)) => Ok(summary),
        (reason, _) => Err(reason),
    }
}
