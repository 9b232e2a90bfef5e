//! The sinks' thread: writes results, and makes epochs durable.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use super::RuntimeError;
use super::feed::Committed;
use crate::checkpoint::{Checkpoint, Store};
use crate::decode::DeadLetter;
use crate::faults::step;
use crate::sink::{Outputs, Sink};
use crate::source::{self, Lane};
use crate::telemetry;

/// What the sinks' thread gets, in the order in which it came about.
pub enum Delivery {
    /// Results of some segments.
    Outputs(Outputs),
    /// What could not be taken.
    DeadLetters(Vec<DeadLetter>),
    /// All results of a batch are in; its newest message was appended then, milliseconds since
    /// the epoch.
    BatchEnd(i64),
    /// All results of an epoch are in.
    Commit(Epoch),
}

/// An epoch to be made durable.
pub struct Epoch {
    pub positions: Vec<(Lane, i64)>,
    /// What to save, where there is a store.
    pub checkpoint: Option<Checkpoint>,
    pub done: Sender<Committed>,
}

/// The sinks' side of the service.
pub struct Deliver<'a> {
    pub sinks: Vec<Box<dyn Sink>>,
    pub committer: Option<Box<dyn source::Commit>>,
    pub store: Option<&'a Store>,
}

impl Deliver<'_> {
    /// Delivers until nothing can come any more.
    pub fn run(mut self, deliveries: Receiver<Delivery>) -> Result<(), RuntimeError> {
        for delivery in deliveries {
            match delivery {
                Delivery::Outputs(outputs) => {
                    for sink in &mut self.sinks {
                        sink.write(&outputs)?;
                    }
                    let count = outputs.segments.len() as u64;
                    metrics::counter!(telemetry::SINK_SEGMENTS).increment(count);
                }
                Delivery::DeadLetters(letters) => {
                    for letter in &letters {
                        tracing::debug!(
                            lane = %letter.lane, offset = letter.offset, stage = letter.stage,
                            reason = letter.reason, "dead letter"
                        );
                        for sink in &mut self.sinks {
                            sink.dead_letter(letter)?;
                        }
                    }
                    let count = letters.len() as u64;
                    metrics::counter!(telemetry::SINK_DEAD_LETTERS).increment(count);
                }
                Delivery::BatchEnd(appended_ms) => {
                    let latency = chrono::Utc::now().timestamp_millis().saturating_sub(appended_ms);
                    metrics::histogram!(telemetry::SINK_LATENCY).record(latency as f64 / 1e3);
                }
                Delivery::Commit(epoch) => self.commit(epoch)?,
            }
        }
        Ok(())
    }

    /// Outputs first, then the state, then the positions: a crash in between repeats work, and
    /// never skips any.
    fn commit(&mut self, epoch: Epoch) -> Result<(), RuntimeError> {
        let began = Instant::now();
        step("commit.begin")?;
        for sink in &mut self.sinks {
            sink.flush()?;
        }
        step("commit.prepared")?;
        let mut id = String::new();
        if let (Some(store), Some(checkpoint)) = (self.store, &epoch.checkpoint) {
            let bytes = store.save(checkpoint)?;
            metrics::gauge!(telemetry::CHECKPOINT_BYTES).set(bytes as f64);
            id.clone_from(&checkpoint.id);
        }
        let committed = match &self.committer {
            Some(committer) => committer.commit(&epoch.positions, &id),
            None => Ok(()),
        };
        match &committed {
            Ok(()) => {
                if let Some(checkpoint) = &epoch.checkpoint {
                    self.prune(&checkpoint.pipeline)?;
                }
                let seconds = began.elapsed().as_secs_f64();
                metrics::histogram!(telemetry::CHECKPOINT_SECONDS).record(seconds);
                metrics::counter!(telemetry::CHECKPOINT_COMMITS).increment(1);
            }
            // A later commit covers these positions too; a crash until then repeats more.
            Err(error) if error.is_retryable() => {}
            Err(_) => return Ok(committed?),
        }
        // Whoever asked may be gone, for another thread failed.
        let _ = epoch.done.send(committed);
        Ok(())
    }

    /// Drops checkpoints of the pipeline that no position needs. Where that cannot be known now, a later commit
    /// sees to it.
    fn prune(&self, pipeline: &str) -> Result<(), RuntimeError> {
        let Some(store) = self.store else { return Ok(()) };
        let in_use = match &self.committer {
            Some(committer) => committer.committed_metadata(),
            None => Ok(BTreeSet::new()),
        };
        match in_use {
            Ok(in_use) => store.prune(pipeline, &in_use)?,
            Err(error) => tracing::warn!(%error, "old checkpoints are kept for now"),
        }
        Ok(())
    }
}
