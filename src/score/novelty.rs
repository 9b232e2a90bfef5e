//! Novelty: has a channel ever looked like this, or gone as far?
//!
//! The newest quarter, half and whole of a segment are held against every stretch of the same
//! length among the channel's last samples. The distance to the nearest is large where nothing like
//! it was seen (a discord, Keogh, Lin & Fu 2005, of what came before: the left matrix profile of
//! Yeh et al. 2016). A stretch that merely goes on a little further than before is nobody's
//! neighbour only by a little, so the mean of the newest samples is also held against the
//! channel's usual level, above and below, and the newest sample against the mean of the same hour
//! of the day (UTC): by night, what is usual by day is not. All stay in the channel's own units:
//! what was large last week is still large when the channel has become calm. How rare each is, its
//! records tell (`record.rs`).

use serde::{Deserialize, Serialize};

use super::record::Records;

/// Views of one channel: a distance per length, how far above, how far below, and how far off for
/// the hour.
const VIEWS: usize = LENGTHS + 3;
/// Lengths of stretches that are compared.
const LENGTHS: usize = 3;
/// Samples back that a stretch is held against.
const REMEMBERED: usize = 512;
/// Samples before anything is judged: a channel of which nothing is known has records all the time.
const FEWEST: u64 = 100;
/// Samples over which the usual level forgets, and over which each hour does.
const HORIZON: f32 = 5000.0;
/// Deviations beyond this many typical ones count as this many in what is usual.
const WINSOR: f32 = 3.0;
/// Before as many samples are known, there is nothing to bound by.
const FEW: f32 = 20.0;
/// Larger samples count as this large: the squares of a stretch of them have a sum.
const LARGEST: f32 = 1e17;
const HOURS: usize = 24;
/// Microseconds.
const HOUR: i64 = 3_600_000_000;

/// What one channel was like so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Novelty {
    /// The last samples, the newest at the end; a missing one is as the one before.
    history: Vec<f32>,
    /// Samples seen.
    samples: u64,
    usual: Usual,
    hours: [Hour; HOURS],
    records: [Records; VIEWS],
}

/// The usual mean of a few samples, and how far it is usually off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Usual {
    level: f32,
    deviation: f32,
    seen: f32,
}

/// The mean of the samples in one hour of the day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Hour {
    mean: f32,
    seen: f32,
}

impl Novelty {
    /// Takes the `fresh` last samples of a segment of this channel (raw, NaN where missing), the
    /// first and last sample of which are of these times (microseconds); returns how new the fresh
    /// ones are, the most of any: the evidence of all views' records together, 0 for nothing new,
    /// and about 5 for what two views have never seen.
    pub fn push(&mut self, samples: &[f32], fresh: usize, (start, end): (i64, i64)) -> f32 {
        let time = samples.len();
        let step = end.saturating_sub(start) / (time.max(2) - 1) as i64;
        let mut most = 0.0;
        for (at, sample) in samples.iter().enumerate().skip(time - fresh.min(time)) {
            let sampled = end.saturating_sub(step.saturating_mul((time - 1 - at) as i64));
            let news = self.take_in(*sample, sampled, time);
            // A missing sample is no news.
            most = if sample.is_nan() { most } else { news.max(most) };
        }
        most as f32
    }

    fn take_in(&mut self, sample: f32, sampled: i64, time: usize) -> f64 {
        let sample = match self.history.last() {
            _ if !sample.is_nan() => sample.clamp(-LARGEST, LARGEST),
            Some(before) => *before,
            None => return 0.0,
        };
        if self.history.len() >= 2 * (REMEMBERED + time) {
            self.history.drain(..self.history.len() - REMEMBERED - time);
        }
        self.history.push(sample);
        self.samples += 1;

        let newest = &self.history[self.history.len().saturating_sub(few_of(time))..];
        let mean = newest.iter().sum::<f32>() / newest.len() as f32;
        let [first, second, third] = distances(&self.history, lengths_of(time));
        let (above, below) = self.usual.measure(mean);
        let hour = sampled.div_euclid(HOUR).rem_euclid(HOURS as i64) as usize;
        let off = self.hours[hour].measure(sample);
        let mut evidence = 0.0;
        // The largest of half a segment stands for what it is part of.
        let apart = (time / 2) as u64;
        let sizes = [first, second, third, above, below, off];
        for (records, size) in self.records.iter_mut().zip(sizes) {
            if self.samples > FEWEST {
                evidence += records.evidence(size);
            }
            records.learn(size, self.samples, apart);
        }
        evidence
    }
}

/// Samples of a stretch, in segments of `time`, the shortest first.
fn lengths_of(time: usize) -> [usize; LENGTHS] {
    [(time / 4).max(1), (time / 2).max(1), time]
}

/// Samples whose mean is held against the usual level, in segments of `time`.
fn few_of(time: usize) -> usize {
    (time / 12).max(1)
}

/// Root mean square difference between the last samples of `history`, for each of `lengths`
/// (ascending), and the nearest stretch that does not overlap them; 0 where there is none.
fn distances(history: &[f32], lengths: [usize; LENGTHS]) -> [f32; LENGTHS] {
    let end = history.len();
    let first = end.saturating_sub(REMEMBERED);
    // Of squared differences, for the stretches that end before `first`, `first + 1` and so on.
    let mut sums = vec![0.0; end - first];
    let mut summed = 0;
    lengths.map(|length| {
        // A stretch has its samples, and none of the newest ones.
        let (shortest, last) = (first.max(length), end.saturating_sub(length));
        if shortest > last {
            return 0.0;
        }
        sums.truncate(last + 1 - first);
        for back in summed + 1..=length {
            let sample = history[end - back];
            let skipped = back.saturating_sub(first);
            let others = &history[first + skipped - back..=last - back];
            for (sum, other) in sums[skipped..].iter_mut().zip(others) {
                let difference = sample - other;
                *sum += difference * difference;
            }
        }
        summed = length;
        let least = sums[shortest - first..].iter().copied().fold(f32::INFINITY, f32::min);
        (least / length as f32).sqrt()
    })
}

impl Usual {
    /// How far `mean` is above and below the usual level, in typical deviations so far; it then
    /// joins them.
    fn measure(&mut self, mean: f32) -> (f32, f32) {
        let off = mean - self.level;
        let known = self.seen > FEW && self.deviation > 0.0;
        let measured = if known { off / self.deviation } else { 0.0 };
        let bound = WINSOR * self.deviation;
        let bounded = if known { off.clamp(-bound, bound) } else { off };
        self.seen = (self.seen + 1.0).min(HORIZON);
        self.level += bounded / self.seen;
        self.deviation += (bounded.abs() - self.deviation) / self.seen;
        (measured.max(0.0), (-measured).max(0.0))
    }
}

impl Hour {
    /// How far `sample` is off the mean so far, which it then joins; 0 for the first.
    fn measure(&mut self, sample: f32) -> f32 {
        let off = if self.seen > 0.0 { sample - self.mean } else { 0.0 };
        self.seen = (self.seen + 1.0).min(HORIZON);
        self.mean += (sample - self.mean) / self.seen;
        off.abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    const TIME: usize = 24;
    /// All samples in one hour.
    const SECONDS: (i64, i64) = (0, 23_000_000);

    /// A daily wave of 48 samples with some noise.
    fn wave(samples: usize) -> Vec<f32> {
        let mut rng = Pcg64Mcg::seed_from_u64(3);
        let at = |t: usize| 10.0 * (std::f32::consts::TAU * t as f32 / 48.0).sin();
        (0..samples).map(|t| at(t) + 0.3 * rng.sample::<f32, _>(StandardNormal)).collect()
    }

    /// How new each segment of `values` is, one sample after the other.
    fn news(novelty: &mut Novelty, values: &[f32]) -> Vec<f32> {
        values.windows(TIME).map(|segment| novelty.push(segment, 1, SECONDS)).collect()
    }

    /// As [`distances`], stretch by stretch.
    fn distances_by_definition(history: &[f32], lengths: [usize; LENGTHS]) -> [f32; LENGTHS] {
        lengths.map(|length| {
            let Some(start) = history.len().checked_sub(length) else { return 0.0 };
            let newest = &history[start..];
            let from = history.len().saturating_sub(REMEMBERED);
            let stretches = (from.max(length)..=start).map(|end| &history[end - length..end]);
            let squares = stretches.map(|stretch| {
                newest.iter().zip(stretch).map(|(one, other)| (one - other).powi(2)).sum::<f32>()
            });
            squares.reduce(f32::min).map_or(0.0, |least| (least / length as f32).sqrt())
        })
    }

    #[test]
    fn the_nearest_stretch_is_found() {
        let values = wave(REMEMBERED + 300);
        for samples in [0, 1, 7, 12, 13, 25, 48, 49, 500, REMEMBERED, values.len()] {
            for lengths in [[6, 12, 24], [1, 1, 2], [12, 24, 48]] {
                let (found, wanted) = (
                    distances(&values[..samples], lengths),
                    distances_by_definition(&values[..samples], lengths),
                );
                for (found, wanted) in found.iter().zip(wanted) {
                    assert!((found - wanted).abs() < 1e-4, "{samples} {found} {wanted}");
                }
            }
        }
    }

    #[test]
    fn what_was_never_seen_stands_out_and_what_recurs_does_not() {
        let mut values = wave(3000);
        // The highest of the wave where its lowest should be: nothing the levels could tell.
        values[2100..2112].fill(10.0);
        let found = news(&mut Novelty::default(), &values);
        let at = |sample: usize| found[sample + 1 - TIME];
        let before = (1000..2100).map(at).fold(0.0, f32::max);
        let during = (2100..2124).map(at).fold(0.0, f32::max);
        assert!(during > 5.0 && during > 1.2 * before, "{before} {during}");
        let usual = (1000..2100).map(at).filter(|new| *new > 2.0).count();
        assert!(usual < 60, "{usual}");
    }

    #[test]
    fn going_further_than_ever_stands_out() {
        let mut values = wave(3000);
        values[2508..2512].fill(16.0);
        let found = news(&mut Novelty::default(), &values);
        assert!(found[2512 - TIME] > 5.0, "{}", found[2512 - TIME]);
    }

    #[test]
    fn what_is_unusual_for_the_hour_stands_out() {
        // A sample each half hour; high by day, but now by night.
        let value = |t: i64| if (t / 2) % 24 < 12 { 10.0 } else { 0.0 };
        let (mut with, mut without) = (Novelty::default(), Novelty::default());
        let mut most = (0.0, 0.0);
        for t in 0..2000 {
            let wobble = (t * 7 % 11) as f32 / 10.0;
            let sample = if t == 1999 { 10.0 } else { value(t) } + wobble;
            assert!(t < 1999 || value(t) == 0.0);
            let at = t * HOUR / 2;
            most = (with.push(&[sample], 1, (at, at)), without.push(&[sample], 1, (0, 0)));
        }
        assert!(most.0 > 2.0 && most.0 > 2.0 * most.1, "{most:?}");
    }

    #[test]
    fn every_fresh_sample_counts() {
        let mut values = wave(3000);
        values[2508] = 30.0;
        let mut novelty = Novelty::default();
        news(&mut novelty, &values[..2500]);
        let segment = &values[2516 - TIME..2516];
        assert!(novelty.clone().push(segment, 16, SECONDS) > 5.0);
        assert!(novelty.push(segment, 3, SECONDS) < 5.0);
    }

    #[test]
    fn missing_constant_and_huge_samples_are_no_trouble() {
        let mut novelty = Novelty::default();
        assert_eq!(novelty.push(&[f32::NAN; TIME], TIME, SECONDS), 0.0);
        for _ in 0..20 {
            assert_eq!(novelty.push(&[7.0; TIME], TIME, SECONDS), 0.0);
            assert_eq!(novelty.push(&[f32::NAN; TIME], TIME, SECONDS), 0.0);
        }
        let extremes: Vec<f32> =
            (0..TIME).map(|at| if at % 2 == 0 { f32::MAX } else { f32::MIN }).collect();
        for _ in 0..20 {
            assert!(novelty.push(&extremes, TIME, SECONDS).is_finite());
        }
        assert!(novelty.push(&[1.0, 2.0, 3.0], 3, SECONDS).is_finite());
        assert!(novelty.push(&[1.0], 1, SECONDS).is_finite());
        assert!(novelty.push(&[], 0, (i64::MIN, i64::MAX)).is_finite());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut novelty = Novelty::default();
        news(&mut novelty, &wave(10_000));
        assert!(novelty.history.len() <= 2 * (REMEMBERED + TIME));
    }
}
