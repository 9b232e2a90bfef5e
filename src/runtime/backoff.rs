//! Pauses between tries.

use std::time::Duration;

use rand::RngExt;

/// Pauses that grow, each shortened by chance: processes that failed together are not to come back
/// together.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// From `first`, doubled each time up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, next: first, longest }
    }

    /// The pause before the next try: between half and all of what it has grown to.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::rng().random_range(0.5..1.0));
        self.next = (2 * self.next).min(self.longest);
        pause
    }

    /// A try did well.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_begin_anew_after_a_reset() {
        let [first, longest] = [100, 500].map(Duration::from_millis);
        let mut backoff = Backoff::new(first, longest);
        for grown in [100, 200, 400, 500, 500].map(Duration::from_millis) {
            let pause = backoff.pause();
            assert!((grown / 2..=grown).contains(&pause), "{pause:?} of {grown:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= first);
    }
}
