//! Records a second in real time.

use std::time::{Duration, Instant};

/// Records are handed out together that fall due within this time.
const TOGETHER: f64 = 0.02;
/// A plant that was held up catches up on this much time, in seconds.
const CATCH_UP: f64 = 1.0;

/// Credit that grows with time and is spent on records.
pub(super) struct Pace {
    /// Records a second, above 0.
    rate: f64,
    /// Records to hand out together.
    together: f64,
    /// Most records of a batch.
    most: usize,
    credit: f64,
    last: Instant,
}

impl Pace {
    /// Nothing is due at `now`.
    pub fn new(rate: f64, most: usize, now: Instant) -> Self {
        let together = (rate * TOGETHER).clamp(1.0, most as f64);
        Self { rate, together, most, credit: 0.0, last: now }
    }

    /// Time until the next records are due.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.earn(now);
        let seconds = (self.together - self.credit).max(0.0) / self.rate;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Spends what is due at `now`: a number of records, at least one.
    pub fn take(&mut self, now: Instant) -> usize {
        self.earn(now);
        let records = (self.credit as usize).clamp(1, self.most);
        self.credit -= records as f64;
        records
    }

    /// Forgets the time until `now`.
    pub fn restart(&mut self, now: Instant) {
        self.credit = 0.0;
        self.last = now;
    }

    fn earn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last).as_secs_f64();
        let most = (self.rate * CATCH_UP).max(self.together);
        self.credit = (self.credit + elapsed * self.rate).min(most);
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records handed out in `time` by a caller that waits as told.
    fn records_in(pace: &mut Pace, start: Instant, time: Duration) -> usize {
        let mut now = start;
        let mut records = 0;
        loop {
            now += pace.wait(now);
            if now > start + time {
                return records;
            }
            records += pace.take(now);
        }
    }

    #[test]
    fn the_rate_is_kept_whether_slow_or_fast() {
        for rate in [0.5, 3.0, 200.0, 7_000.0, 3e6] {
            let start = Instant::now();
            let mut pace = Pace::new(rate, 4096, start);

            let records = records_in(&mut pace, start, Duration::from_secs(20)) as f64;

            assert!((records - 20.0 * rate).abs() <= (0.02 * rate).max(1.0), "{rate}: {records}");
        }
    }

    #[test]
    fn a_plant_held_up_for_long_catches_up_on_one_second_only() {
        let start = Instant::now();
        let mut pace = Pace::new(100.0, 4096, start);

        assert_eq!(pace.take(start + Duration::from_secs(3600)), 100);
    }

    #[test]
    fn a_restart_forgives_the_time_before_it() {
        let start = Instant::now();
        let mut pace = Pace::new(100.0, 4096, start);
        let later = start + Duration::from_secs(5);

        pace.restart(later);

        assert_eq!(pace.wait(later), Duration::from_millis(20));
    }
}
