//! Goes on from the last commit after failures that may pass.

use std::time::Duration;

use super::backoff::Backoff;
use super::{Opened, RuntimeError, Status, Summary, run};
use crate::checkpoint::Store;
use crate::config;
use crate::telemetry;

/// Pauses before going on: doubled at each failure without a commit in between.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a pause looks whether the service is told to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// Runs a pipeline like [`run`]; a failure that may pass rewinds everything to the last commit:
/// `open` is asked for what to run on again. The summary is of the last run.
///
/// # Errors
/// A failure that will not pass, or any of the first `open`.
pub fn serve(
    pipeline: &config::Pipeline,
    store: Option<&Store>,
    status: &Status,
    mut open: impl FnMut() -> Result<Opened, RuntimeError>,
) -> Result<Summary, RuntimeError> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    // Whoever starts a service that cannot start wants to know.
    let mut opened = open();
    let mut started = false;
    loop {
        let commits = status.commits();
        let runs = opened.is_ok();
        started |= runs;
        let error = match opened.and_then(|opened| run(pipeline, opened, store, status)) {
            Ok(summary) => return Ok(summary),
            Err(error) => error,
        };
        if started && !runs && error.may_pass() && status.is_stopping() {
            return Ok(stopped_at_last_commit());
        }
        if !started || !error.may_pass() || status.is_stopping() {
            status.fail(&error.to_string());
            return Err(error);
        }
        if status.commits() > commits {
            backoff.reset();
        }
        let retry_in = backoff.pause();
        tracing::warn!(%error, ?retry_in, "going on from the last commit");
        metrics::counter!(telemetry::RUNTIME_REWINDS, "stage" => error.stage()).increment(1);
        if !wait(retry_in, status) {
            return Ok(stopped_at_last_commit());
        }
        opened = open();
    }
}

/// The end of a service that is told to stop while nothing runs: all that was committed stays, and
/// nothing else was made visible.
fn stopped_at_last_commit() -> Summary {
    tracing::warn!("told to stop before it could go on from the last commit");
    Summary::default()
}

/// Waits, unless the service is told to stop.
fn wait(pause: Duration, status: &Status) -> bool {
    let mut left = pause;
    while !left.is_zero() && !status.is_stopping() {
        let glance = left.min(GLANCE);
        std::thread::sleep(glance);
        left -= glance;
    }
    !status.is_stopping()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_when_the_service_is_told_to_stop() {
        let status = Status::default();
        assert!(wait(Duration::from_millis(1), &status));
        std::thread::scope(|scope| {
            let pause = scope.spawn(|| wait(Duration::from_secs(3600), &status));
            status.stop();
            assert!(!pause.join().expect("it returns"));
        });
    }
}
