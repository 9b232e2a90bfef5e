//! The sinks' thread: writes results, and makes epochs durable.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::RuntimeError;
use crate::checkpoint::{Checkpoint, Store};
use crate::decode::DeadLetter;
use crate::sink::{Outputs, Sink};
use crate::source::{self, Lane, SourceError};
use crate::telemetry;

/// Longest time that a commit is tried for: as long as the producer tries to deliver.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(300);
/// Pauses between two tries of a commit.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
    pub done: Sender<()>,
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
                    let latency = chrono::Utc::now().timestamp_millis() - appended_ms;
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
        for sink in &mut self.sinks {
            sink.flush()?;
        }
        let mut id = String::new();
        if let (Some(store), Some(checkpoint)) = (self.store, &epoch.checkpoint) {
            let bytes = store.save(checkpoint)?;
            metrics::gauge!(telemetry::CHECKPOINT_BYTES).set(bytes as f64);
            id.clone_from(&checkpoint.id);
        }
        if let Some(committer) = &self.committer {
            insist(|| committer.commit(&epoch.positions, &id))?;
        }
        self.prune()?;
        metrics::histogram!(telemetry::CHECKPOINT_SECONDS).record(began.elapsed().as_secs_f64());
        metrics::counter!(telemetry::CHECKPOINT_COMMITS).increment(1);
        // Whoever asked may be gone: nobody waits for a periodic commit at the end.
        let _ = epoch.done.send(());
        Ok(())
    }

    /// Drops checkpoints that no position needs. Where that cannot be known now, a later commit
    /// sees to it.
    fn prune(&self) -> Result<(), RuntimeError> {
        let Some(store) = self.store else { return Ok(()) };
        let in_use = match &self.committer {
            Some(committer) => committer.committed_metadata(),
            None => Ok(BTreeSet::new()),
        };
        match in_use {
            Ok(in_use) => store.prune(&in_use)?,
            Err(error) => tracing::warn!(%error, "old checkpoints are kept for now"),
        }
        Ok(())
    }
}

/// Tries again for a while what failed for now: brokers restart.
fn insist(mut commit: impl FnMut() -> Result<(), SourceError>) -> Result<(), SourceError> {
    let deadline = Instant::now() + COMMIT_TIMEOUT;
    let mut pause = FIRST_PAUSE;
    loop {
        match commit() {
            Err(error) if error.is_retryable() && Instant::now() < deadline => {
                tracing::warn!(%error, retry_in = ?pause, "commit failed, trying again");
                std::thread::sleep(pause);
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(times: usize, retryable: bool) -> impl FnMut() -> Result<(), SourceError> {
        let mut left = times;
        move || {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            Err(SourceError::Kafka { reason: "away".to_owned(), retryable })
        }
    }

    #[test]
    fn a_commit_is_tried_again_where_that_may_help_and_only_there() {
        assert!(insist(failing(2, true)).is_ok());
        assert!(insist(failing(2, false)).is_err());
    }
}
