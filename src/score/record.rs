//! Records of a statistic: how often was there anything as large?
//!
//! What is rare in a stream that is known for a week is common in one that is known for a year, and
//! how heavy a statistic's tail is differs from key to key. A rank needs to know neither: in a
//! stream without a trend the number of earlier events that were at least as large does not depend
//! on what is measured (Rényi 1962, on the theory of records). Values that exceed a level come in
//! clusters; the largest of a cluster stands for all of it, as in runs declustering (Leadbetter
//! 1991). Beyond the largest event, the tail is a power of which the largest events tell the
//! exponent (Hill 1975).

use serde::{Deserialize, Serialize};

/// The largest events of one statistic of one channel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Records {
    /// Sizes of the events that are over, the largest first.
    largest: Vec<f32>,
    /// The event that is not over yet.
    open: Option<Event>,
}

/// Values near each other in time: the largest, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Event {
    size: f32,
    at: u64,
}

/// Events remembered: a value that is below them all is nothing new.
const REMEMBERED: usize = 10;
/// Fewest events that say what is large.
const FEWEST: usize = 3;
/// Bounds of the tail's exponent: an infinite mean, and hardly a tail.
const HEAVIEST: f64 = 1.0;
const LIGHTEST: f64 = 20.0;

impl Records {
    /// Evidence against `size` being nothing new: `ln (10 / n)`, where `n` is the number of earlier
    /// events that were at least as large; between two of them a number between, and less than 1
    /// beyond the largest. 0 for what there were ten of, and where nothing can be said.
    pub fn evidence(&self, size: f32) -> f64 {
        let known = &self.largest;
        if known.len() < FEWEST || size <= known[known.len() - 1] {
            return 0.0;
        }
        let as_large = known.partition_point(|other| *other > size);
        let size = f64::from(size);
        let expected = if as_large == 0 {
            (f64::from(known[0]) / size).powf(self.exponent())
        } else {
            let (above, below) = (f64::from(known[as_large - 1]), f64::from(known[as_large]));
            as_large as f64 + (above / size).ln() / (above / below).ln()
        };
        (REMEMBERED as f64).ln() - expected.max(f64::MIN_POSITIVE).ln()
    }

    /// Of the power law of which the known events are the tail.
    fn exponent(&self) -> f64 {
        let known = &self.largest;
        let (smallest, above) = (known[known.len() - 1], &known[..known.len() - 1]);
        let logarithms = above.iter().map(|size| f64::from(size / smallest).ln());
        let mean = logarithms.sum::<f64>() / above.len() as f64;
        (1.0 / mean.max(1e-9)).clamp(HEAVIEST, LIGHTEST)
    }

    /// Learns the value at `at`, counted in samples. Values belong to one event while none is
    /// larger than the one at most `apart` samples before.
    pub fn learn(&mut self, size: f32, at: u64, apart: u64) {
        if let Some(event) = self.open.take_if(|event| at - event.at > apart) {
            let place = self.largest.partition_point(|other| *other >= event.size);
            self.largest.insert(place, event.size);
            self.largest.truncate(REMEMBERED);
        }
        if size > 0.0 && size.is_finite() && self.open.is_none_or(|event| size >= event.size) {
            self.open = Some(Event { size, at });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: u64 = 5;

    /// Events of these sizes, far from each other.
    fn after(sizes: &[f32]) -> (Records, u64) {
        let mut records = Records::default();
        let mut at = 0;
        for size in sizes.iter().chain(&[0.0]) {
            records.learn(*size, at, APART);
            at += 2 * APART;
        }
        (records, at)
    }

    #[test]
    fn as_large_as_the_nth_largest_is_as_rare_as_n_in_ten() {
        let (records, _) = after(&[3.0, 9.0, 1.0, 5.0]);
        assert_eq!(records.largest, [9.0, 5.0, 3.0, 1.0]);
        for (rank, size) in [9.0, 5.0, 3.0].into_iter().enumerate() {
            let expected = (10.0 / (rank as f64 + 1.0)).ln();
            assert!((records.evidence(size) - expected).abs() < 1e-6, "{size}");
        }
        let between = records.evidence(7.0);
        assert!(records.evidence(5.0) < between && between < records.evidence(9.0));
        assert_eq!(records.evidence(1.0), 0.0);
    }

    #[test]
    fn beyond_the_largest_a_light_tail_makes_a_record_rarer_than_a_heavy_one() {
        let (light, _) = after(&[1.0, 1.1, 1.05, 1.15]);
        let (heavy, _) = after(&[1.0, 10.0, 3.0, 5.0]);
        assert!(light.evidence(2.0) > heavy.evidence(20.0));
        assert!(heavy.evidence(20.0) > 10f64.ln());
        assert!(light.evidence(f32::MAX).is_finite());
    }

    #[test]
    fn values_near_each_other_are_one_event() {
        let (mut records, mut at) = after(&[1.0, 2.0, 3.0]);
        for size in [7.0, 9.0, 8.0, 8.0] {
            records.learn(size, at, APART);
            at += 1;
        }
        assert_eq!(records.largest, [3.0, 2.0, 1.0]);
        records.learn(0.0, at + APART, APART);
        assert_eq!(records.largest, [9.0, 3.0, 2.0, 1.0]);
    }

    #[test]
    fn few_events_and_values_alike_say_nothing() {
        let (records, _) = after(&[1.0, 2.0]);
        assert_eq!(records.evidence(100.0), 0.0);
        let (alike, _) = after(&[2.0; 15]);
        assert_eq!(alike.evidence(2.0), 0.0);
        assert!(alike.evidence(2.5).is_finite());
        let (none, _) = after(&[f32::NAN, f32::INFINITY, 0.0, -1.0]);
        assert!(none.largest.is_empty());
    }
}
