//! The sinks' thread: writes results, and makes epochs durable.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use super::feed::{Committed, Freight};
use super::{RuntimeError, Status};
use crate::checkpoint::{Checkpoint, Part, Store};
use crate::decode::DeadLetter;
use crate::faults::step;
use crate::sink::{Outputs, Positions, Sink, StagedFile};
use crate::source::{self, Lane};
use crate::telemetry;
use crate::trajectory::Trajectory;

/// What the sinks' thread gets, in the order in which it came about.
pub enum Delivery {
    /// Results of some segments.
    Outputs(Outputs),
    /// Days and stays that ended with these results.
    Trajectories(Vec<Trajectory>),
    /// What could not be taken, which holds the bytes of its messages.
    DeadLetters(Vec<DeadLetter>, Arc<Freight>),
    /// All results of a batch are in; its newest message was appended then, milliseconds since
    /// the epoch.
    BatchEnd(i64),
    /// All results of an epoch are in.
    Commit(Epoch),
    /// Files that a committed epoch of another process staged: they become visible.
    Recover(Vec<StagedFile>),
}

/// An epoch to be made durable.
pub struct Epoch {
    pub positions: Vec<(Lane, i64)>,
    /// What to save, where there is a store, and the part that it adds.
    pub checkpoint: Option<(Checkpoint, Part)>,
    pub done: Sender<Committed>,
}

/// The sinks' side of the service.
pub struct Deliver<'a> {
    pub sinks: Vec<Box<dyn Sink>>,
    pub committer: Option<Box<dyn source::Commit>>,
    pub store: Option<&'a Store>,
    /// Whether results become visible with the commit, or before it.
    pub exactly_once: bool,
    pub status: &'a Status,
}

impl Deliver<'_> {
    /// Delivers until nothing can come any more.
    pub fn run(mut self, deliveries: Receiver<Delivery>) -> Result<(), RuntimeError> {
        for delivery in deliveries {
            match delivery {
                Delivery::Outputs(outputs) => {
                    step("deliver.outputs")?;
                    for sink in &mut self.sinks {
                        sink.write(&outputs)?;
                    }
                    let count = outputs.segments.len() as u64;
                    metrics::counter!(telemetry::SINK_SEGMENTS).increment(count);
                }
                Delivery::Trajectories(ended) => {
                    for sink in &mut self.sinks {
                        sink.write_trajectories(&ended)?;
                    }
                }
                Delivery::DeadLetters(letters, _freight) => {
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
                Delivery::Recover(staged) => {
                    for sink in &mut self.sinks {
                        sink.recover(&staged)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends an epoch. Its results become durable first, then the state that names them; then the
    /// positions are committed, which is the one moment at which the epoch comes about; then its
    /// results become visible. A crash before that moment leaves nothing, one after it leaves the
    /// rest to [`super::recover`].
    ///
    /// At least once, results become visible before the commit: a crash in between repeats them.
    fn commit(&mut self, mut epoch: Epoch) -> Result<(), RuntimeError> {
        let began = Instant::now();
        step("commit.begin")?;
        let mut staged = Vec::new();
        for sink in &mut self.sinks {
            staged.extend(sink.prepare()?);
        }
        step("commit.prepared")?;
        if !self.exactly_once {
            self.publish()?;
        }
        let mut id = String::new();
        if let (Some(store), Some((checkpoint, part))) = (self.store, &mut epoch.checkpoint) {
            if self.exactly_once {
                checkpoint.staged = staged;
            }
            let bytes = store.save(checkpoint, part)?;
            metrics::gauge!(telemetry::CHECKPOINT_BYTES).set(bytes as f64);
            id.clone_from(&checkpoint.id);
        }
        let committed = self.commit_positions(&epoch.positions, &id)?;
        step("commit.done")?;
        if committed.is_ok() {
            if self.exactly_once {
                self.publish()?;
            }
            self.status.count_commit();
            if let Some((checkpoint, _)) = &epoch.checkpoint {
                self.prune(&checkpoint.pipeline)?;
            }
            let seconds = began.elapsed().as_secs_f64();
            metrics::histogram!(telemetry::CHECKPOINT_SECONDS).record(seconds);
            metrics::counter!(telemetry::CHECKPOINT_COMMITS).increment(1);
        }
        step("commit.end")?;
        // Whoever asked may be gone, for another thread failed.
        let _ = epoch.done.send(committed);
        Ok(())
    }

    /// Commits by the sink that can commit results and positions at once, else by the source.
    /// Within, the failure of a commit that a later one makes good: it covers these positions too,
    /// and a crash until then goes back further.
    fn commit_positions(
        &mut self,
        positions: &[(Lane, i64)],
        id: &str,
    ) -> Result<Committed, RuntimeError> {
        let group = self.committer.as_ref().and_then(|committer| committer.group());
        let at_once = Positions { offsets: positions, checkpoint: id, group };
        if let Some(committed) = self.sinks.iter_mut().find_map(|sink| sink.commit(&at_once)) {
            return Ok(Ok(committed?));
        }
        match self.committer.as_ref().map(|committer| committer.commit(positions, id)) {
            None => Ok(Ok(())),
            Some(Err(error)) if !error.is_retryable() => Err(error.into()),
            Some(outcome) => {
                if outcome.is_err() {
                    metrics::counter!(telemetry::CHECKPOINT_RETRIES).increment(1);
                }
                Ok(outcome)
            }
        }
    }

    fn publish(&mut self) -> Result<(), RuntimeError> {
        self.sinks.iter_mut().try_for_each(|sink| sink.publish()).map_err(RuntimeError::from)
    }

    /// Drops checkpoints of the pipeline that no position needs. Where that cannot be known now, a
    /// later commit sees to it.
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
