//! Sudden changes: what is new in a segment, at several time scales, channel by channel.
//!
//! A small embedding does not see a single spike in one channel, and is slow to see a new level. The
//! mean of the newest samples against the mean of those before them sees both: the newest sample
//! against its predecessor, and a short and a longer mean against the rest of the segment (a
//! two-window test of a change in mean, as in Basseville & Nikiforov 1993). Each is measured in
//! its own typical size for the channel, robust to outliers.

use serde::{Deserialize, Serialize};

/// Number of time scales.
pub const SCALES: usize = 3;
/// Changes over which the typical size forgets.
const HORIZON: f32 = 5000.0;
/// Changes beyond this many typical sizes count as this many in what is typical.
const WINSOR: f32 = 3.0;
/// Before as many changes are known, there is nothing to bound by.
const FEW: f32 = 8.0;

/// The typical size of one channel's changes, per time scale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    typical: [Typical; SCALES],
}

/// A running mean size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Typical {
    size: f32,
    seen: f32,
}

impl Changes {
    /// Takes the `fresh` last samples of a segment of this channel (raw, NaN where missing);
    /// returns per time scale the largest change that ends in one of them, in typical sizes of
    /// earlier ones. 0 where nothing can be said.
    pub fn push(&mut self, samples: &[f32], fresh: usize) -> [f32; SCALES] {
        let sums = Sums::of(samples);
        let time = samples.len();
        let recent = recent_samples(time);
        let mut largest = [0.0; SCALES];
        for end in time - fresh.min(time) + 1..=time {
            for scale in 0..SCALES {
                let middle = end.saturating_sub(recent[scale]);
                let start = if scale == 0 { middle.saturating_sub(1) } else { 0 };
                // The mean before must be the steadier of the two.
                if middle - start < recent[scale] || samples[end - 1].is_nan() {
                    continue;
                }
                if let (Some(before), Some(now)) =
                    (sums.mean(start, middle), sums.mean(middle, end))
                {
                    let size = ((now - before).abs() as f32).min(f32::MAX);
                    let size = self.typical[scale].measure(size);
                    largest[scale] = size.max(largest[scale]);
                }
            }
        }
        largest
    }
}

/// Samples whose mean is compared with those before, per time scale, in segments of `time`.
fn recent_samples(time: usize) -> [usize; SCALES] {
    [1, (time / 12).max(2), (time / 4).max(3)]
}

impl Typical {
    /// `size` in typical sizes so far, which it then joins. The first few say little: what is
    /// typical is taken to be larger then, by up to a factor of two.
    fn measure(&mut self, size: f32) -> f32 {
        let doubt = 1.0 + FEW / (self.seen + FEW);
        let measured = if self.size > 0.0 { size / (doubt * self.size) } else { 0.0 };
        let bounded =
            if self.seen > FEW && self.size > 0.0 { size.min(WINSOR * self.size) } else { size };
        self.seen = (self.seen + 1.0).min(HORIZON);
        self.size += (bounded - self.size) / self.seen;
        measured
    }
}

/// Running sums of a channel, for means of any range in constant time.
struct Sums {
    /// Sum and number of the samples before each position.
    before: Vec<(f64, u32)>,
}

impl Sums {
    fn of(samples: &[f32]) -> Self {
        let mut before = Vec::with_capacity(samples.len() + 1);
        let (mut sum, mut count) = (0.0, 0);
        before.push((sum, count));
        for sample in samples {
            if !sample.is_nan() {
                sum += f64::from(*sample);
                count += 1;
            }
            before.push((sum, count));
        }
        Self { before }
    }

    /// `None` where every sample is missing.
    fn mean(&self, start: usize, end: usize) -> Option<f64> {
        let count = self.before[end].1 - self.before[start].1;
        (count > 0).then(|| (self.before[end].0 - self.before[start].0) / f64::from(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    const TIME: usize = 48;

    /// Noise that `changes` has learned, sample by sample, and the sizes it found.
    fn noise(changes: &mut Changes, samples: usize) -> (Vec<f32>, Vec<[f32; SCALES]>) {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let values: Vec<f32> =
            (0..samples).map(|_| 50.0 + rng.sample::<f32, _>(StandardNormal)).collect();
        let found = values.windows(TIME).map(|segment| changes.push(segment, 1)).collect();
        (values, found)
    }

    #[test]
    fn changes_of_noise_are_of_typical_size() {
        let (_, found) = noise(&mut Changes::default(), 4000);
        for scale in 0..SCALES {
            let late = found[1000..].iter().map(|sizes| sizes[scale]);
            let mean = late.sum::<f32>() / (found.len() - 1000) as f32;
            assert!((0.9..1.2).contains(&mean), "{scale}: {mean}");
        }
    }

    #[test]
    fn a_spike_stands_out_at_the_shortest_scale_and_a_new_level_at_the_longest() {
        let mut changes = Changes::default();
        let (values, _) = noise(&mut changes, 4000);
        let mut segment = values[values.len() - TIME..].to_vec();
        segment[TIME - 1] += 10.0;
        let spike = changes.clone().push(&segment, 1);
        assert!(spike[0] > 6.0 && spike[0] > spike[2], "{spike:?}");
        segment[TIME - 1] -= 10.0;
        segment[TIME - TIME / 4..].iter_mut().for_each(|value| *value += 3.0);
        let level = changes.push(&segment, 1);
        assert!(level[2] > 6.0 && level[2] > level[0], "{level:?}");
    }

    #[test]
    fn every_fresh_sample_counts() {
        let mut changes = Changes::default();
        let (values, _) = noise(&mut changes, 4000);
        let mut segment = values[values.len() - TIME..].to_vec();
        segment[TIME - 5] += 20.0;
        assert!(changes.clone().push(&segment, 8)[0] > 6.0);
        assert!(changes.push(&segment, 3)[0] < 6.0);
    }

    #[test]
    fn one_outlier_hardly_changes_what_is_typical() {
        let mut changes = Changes::default();
        let (values, _) = noise(&mut changes, 4000);
        let mut segment = values[values.len() - TIME..].to_vec();
        let before = changes.clone();
        segment[TIME - 1] = 1e9;
        changes.push(&segment, 1);
        for (after, before) in changes.typical.iter().zip(before.typical) {
            assert!(after.size < 1.01 * before.size);
        }
    }

    #[test]
    fn changes_beyond_what_a_number_holds_do_not_blind_it() {
        let mut changes = Changes::default();
        let extremes: Vec<f32> =
            (0..TIME).map(|at| if at % 2 == 0 { f32::MAX } else { f32::MIN }).collect();
        for _ in 0..20 {
            assert!(changes.push(&extremes, 1).iter().all(|size| size.is_finite()));
        }
        let before = changes.typical[0].size;
        noise(&mut changes, 2000);
        assert!(changes.typical[0].size < 0.9 * before, "{before} {changes:?}");
    }

    #[test]
    fn missing_and_constant_samples_make_no_change() {
        let mut changes = Changes::default();
        assert_eq!(changes.push(&[f32::NAN; TIME], TIME), [0.0; SCALES]);
        assert_eq!(changes.push(&[7.0; TIME], TIME), [0.0; SCALES]);
        let mut gap = [7.0; TIME];
        gap[TIME - 1] = f32::NAN;
        assert_eq!(changes.push(&gap, 1), [0.0; SCALES]);
        assert!(changes.push(&[7.0, 8.0, 7.0, 9.0], 4).iter().all(|size| size.is_finite()));
    }
}
