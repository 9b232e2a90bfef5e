//! Records a second in real time.

use std::time::{Duration, Instant};

use super::BATCH;

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

/// When records are due: so many a second, so many in all.
pub struct Schedule {
    pace: Option<Pace>,
    /// Still to come; `None`: without end.
    remaining: Option<u64>,
}

impl Schedule {
    /// `rate` records a second from now on, 0 for as fast as they are taken; `count` in all, 0 for
    /// without end.
    pub fn new(rate: f64, count: u64) -> Self {
        Self {
            pace: (rate > 0.0).then(|| Pace::new(rate, BATCH, Instant::now())),
            remaining: (count > 0).then_some(count),
        }
    }

    /// Waits until records are due; returns how many, `None` at the end.
    pub fn wait(&mut self) -> Option<usize> {
        if self.remaining == Some(0) {
            return None;
        }
        let mut due = BATCH;
        if let Some(pace) = &mut self.pace {
            std::thread::sleep(pace.wait(Instant::now()));
            due = pace.take(Instant::now());
        }
        if let Some(remaining) = &mut self.remaining {
            due = due.min(usize::try_from(*remaining).unwrap_or(usize::MAX));
            *remaining -= due as u64;
        }
        Some(due)
    }
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
    fn a_schedule_hands_out_its_count_in_batches_and_ends() {
        let mut schedule = Schedule::new(0.0, 5000);
        let due: Vec<usize> = std::iter::from_fn(|| schedule.wait()).collect();
        assert_eq!(due, [4096, 904]);
        assert_eq!(schedule.wait(), None);
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
