//! How the service is, for `/healthz`, `/readyz` and whoever stops it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by all threads of a service: flags, and the error that ended it.
#[derive(Debug, Default)]
pub struct Status {
    stop: AtomicBool,
    ready: AtomicBool,
    commits: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Status {
    /// Asks the service to drain, commit and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the service was asked to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Notes whether the service owns lanes and its outputs answer.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether the service takes records.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.is_stopping() && self.failure().is_none()
    }

    /// Notes that an epoch was committed.
    pub fn count_commit(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Epochs committed.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Notes why the service ends; the first reason stays.
    pub fn fail(&self, reason: &str) {
        let mut failure = self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failure.get_or_insert_with(|| reason.to_owned());
    }

    /// Why the service ended, if it failed.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}
