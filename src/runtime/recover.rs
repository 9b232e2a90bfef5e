//! What is left to do from before: epochs that were committed become visible, others vanish.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::RuntimeError;
use crate::checkpoint::{Checkpoint, Store};
use crate::config;
use crate::sink::Sink;
use crate::source::{Commit, SourceError};

/// Longest wait for a transaction that another process left open: the brokers end it.
const UNSTABLE: Duration = Duration::from_secs(120);

/// Pause before asking again.
const PAUSE: Duration = Duration::from_millis(200);

/// Publishes what committed epochs staged, and discards what was staged by epochs that never were
/// committed and whose processes are gone.
///
/// # Errors
/// If the positions, their checkpoints or the staged files cannot be reached.
pub fn recover(
    pipeline: &config::Pipeline,
    (store, resumed): (Option<&Store>, Option<&Checkpoint>),
    committer: Option<&dyn Commit>,
    sinks: &mut [Box<dyn Sink>],
) -> Result<(), RuntimeError> {
    if pipeline.exactly_once() {
        let mut staged: Vec<_> = resumed.iter().flat_map(|last| last.staged.clone()).collect();
        if let (Some(store), Some(committer)) = (store, committer) {
            for id in committed(committer)?.iter().filter(|id| !id.is_empty()) {
                match store.staged(id)? {
                    Some(files) => staged.extend(files),
                    // Whoever owns the lane that was committed with it says so.
                    None => tracing::warn!(id, "a checkpoint that is committed is not there"),
                }
            }
        }
        for sink in &mut *sinks {
            sink.recover(&staged)?;
        }
    }
    for sink in sinks {
        sink.discard()?;
    }
    Ok(())
}

/// The ids that all lanes of the group were committed with, once no transaction that could change
/// them is open.
fn committed(committer: &dyn Commit) -> Result<BTreeSet<String>, SourceError> {
    let deadline = Instant::now() + UNSTABLE;
    loop {
        match committer.committed_metadata() {
            Err(error) if error.is_retryable() && Instant::now() < deadline => {
                tracing::warn!(%error, "positions are not settled yet, waiting");
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}
