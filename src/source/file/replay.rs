//! Recordings replayed as they happened.

use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};

use crate::decode::{Decoded, OFFSET_COLUMN, TIME_COLUMN};
use crate::source::{Payload, SourceBatch};

/// The event time that has come.
pub(super) struct Replay {
    /// Event time that passes per second of real time, above 0.
    speed: f64,
    /// When it began, and at which event time, microseconds since the epoch.
    began: Option<(Instant, i64)>,
}

impl Replay {
    pub fn new(speed: f64) -> Self {
        Self { speed, began: None }
    }

    /// How long it is until event time `time`, microseconds since the epoch. The first one asked
    /// for is now.
    pub fn until(&mut self, time: i64, now: Instant) -> Duration {
        let (began, first) = *self.began.get_or_insert((now, time));
        let due = time.saturating_sub(first).max(0) as f64 / 1e6 / self.speed;
        let due = Duration::try_from_secs_f64(due).unwrap_or(Duration::MAX);
        due.saturating_sub(now.saturating_duration_since(began))
    }

    /// Cuts `batch` after the records that are due at `now`, the first at least; returns the rest,
    /// if there is any.
    pub fn cut(&mut self, batch: &mut SourceBatch, now: Instant) -> Option<SourceBatch> {
        let Payload::Decoded(decoded) = &mut batch.payload else { return None };
        let times = decoded.records.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
        let due = |row: &usize| self.until(times.value(*row), now).is_zero();
        let rows = decoded.records.num_rows();
        let due = (1..rows).take_while(due).count() + 1;
        if due >= rows {
            return None;
        }
        let offsets = decoded.records.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
        // Records of one offset stay together: reading resumes between offsets.
        let offset = offsets.value(due - 1);
        let due = (due..rows).take_while(|row| offsets.value(*row) == offset).count() + due;
        if due >= rows {
            return None;
        }
        let next_offset = offsets.value(due);
        let later = decoded.dead_letters.partition_point(|letter| letter.offset < next_offset);
        let rest = Decoded {
            records: decoded.records.slice(due, rows - due),
            dead_letters: decoded.dead_letters.split_off(later),
            skipped: std::mem::take(&mut decoded.skipped),
            out_of_range: std::mem::take(&mut decoded.out_of_range),
        };
        decoded.records = decoded.records.slice(0, due);
        let rest = SourceBatch {
            lane: batch.lane.clone(),
            next_offset: batch.next_offset,
            appended_ms: batch.appended_ms,
            payload: Payload::Decoded(rest),
        };
        batch.next_offset = next_offset;
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_time_passes_at_its_speed_from_the_first_record_on() {
        let now = Instant::now();
        let mut replay = Replay::new(2.0);
        assert_eq!(replay.until(5_000_000, now), Duration::ZERO);
        assert_eq!(replay.until(9_000_000, now), Duration::from_secs(2));
        let later = now + Duration::from_secs(1);
        assert_eq!(replay.until(9_000_000, later), Duration::from_secs(1));
        assert_eq!(replay.until(6_000_000, later), Duration::ZERO);
    }
}
