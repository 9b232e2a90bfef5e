//! The level of all channels together, and how far it is from normal.
//!
//! Contrastive learning on one stream tells moments of the same normal apart, and what lasts soon
//! becomes one of many known moments. A fault that lasts must stay abnormal for as long as it does:
//! each key has a Gaussian of its recent level, the mean of each channel over the last quarter of
//! a segment, and the Mahalanobis distance from it (Hotelling 1947; multivariate process control).
//! What is suspicious hardly teaches what is normal, until it has lasted so long that it is.

use serde::{Deserialize, Serialize};

/// Running mean and covariance of a key's level.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Level {
    mean: Vec<f64>,
    /// `[channels, channels]`.
    covariance: Vec<f64>,
    /// Independent levels learned from; suspicious ones count for little.
    weight: f64,
    /// Independent levels since the last one that was not suspicious.
    suspicious: f64,
}

/// How a segment's level compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Root of the squared Mahalanobis distance per channel; about 1 for a normal segment.
    pub distance: f32,
    /// Whether it is too far to be learned from.
    pub suspicious: bool,
    /// Per channel, its own deviation in standard deviations.
    pub deviations: Vec<f32>,
}

/// Independent levels before there is a covariance to measure by, and before anything is
/// suspicious. Segments overlap: one brings the share of an independent level that is new in it.
const KNOWN: f64 = 4.0;
const SETTLED: f64 = 8.0;
/// Independent levels over which it forgets.
const HORIZON: f64 = 500.0;
/// A suspicious level counts as this share of a normal one.
const SUSPICIOUS_WEIGHT: f64 = 1.0 / 200.0;
/// After so many independent suspicious levels in a row they are a new normal, to be learned in
/// full.
const ACCEPTED: f64 = 64.0;
/// Standard score of a probability of 1e-5 in a normal stream: beyond is suspicious.
const SUSPICION: f64 = 4.265;
/// Share of the diagonal in the covariance (shrinkage, Ledoit & Wolf 2004): as few segments are
/// independent as there may be channels.
const SHRINKAGE: f64 = 0.1;
/// Beyond this many channels each is judged by its own variance alone.
const CORRELATED_CHANNELS: usize = 32;

impl Level {
    /// Compares a raw segment `[channels, time]` (NaN where missing), of which the `fresh` last
    /// samples are new, with the level so far, then learns from it. A channel without recent
    /// samples is taken to be where it was. `None` until enough is known.
    pub fn push(&mut self, values: &[f32], time: usize, fresh: usize) -> Option<Found> {
        let channels = values.len() / time;
        let recent = (time / 4).max(1);
        let level = values.chunks_exact(time).map(|samples| mean(&samples[time - recent..]));
        let independent = (fresh as f64 / recent as f64).min(1.0);
        if self.mean.is_empty() {
            self.mean = level.map(|mean| mean.unwrap_or(0.0)).collect();
            self.covariance = vec![0.0; channels * channels];
            self.weight = independent;
            return None;
        }
        let deviation: Vec<f64> =
            level.zip(&self.mean).map(|(level, mean)| level.map_or(0.0, |l| l - mean)).collect();
        let found = (self.weight >= KNOWN).then(|| self.compare(&deviation));
        let suspicious = found.as_ref().is_some_and(|found| found.suspicious);
        self.suspicious = if suspicious { self.suspicious + independent } else { 0.0 };
        let teaches_little = suspicious && self.suspicious <= ACCEPTED;
        self.learn(&deviation, independent * if teaches_little { SUSPICIOUS_WEIGHT } else { 1.0 });
        found
    }

    fn compare(&self, deviation: &[f64]) -> Found {
        let channels = deviation.len();
        let variance = |channel: usize| {
            let resolution = 1e-6 * self.mean[channel];
            self.covariance[channel * channels + channel] + resolution * resolution + 1e-18
        };
        let deviations: Vec<f64> =
            (0..channels).map(|channel| deviation[channel] / variance(channel).sqrt()).collect();
        // Of the correlations: with a unit diagonal, ill-conditioned covariances stay solvable.
        let correlation = |a: usize, b: usize| {
            let covariance = self.covariance[a * channels + b];
            (1.0 - SHRINKAGE) * covariance / (variance(a) * variance(b)).sqrt()
        };
        let square = if channels <= CORRELATED_CHANNELS {
            whitened_square(&deviations, correlation)
        } else {
            deviations.iter().map(|z| z * z).sum()
        };
        let distance = (square / channels as f64).sqrt();
        Found {
            distance: distance as f32,
            suspicious: self.weight >= SETTLED && distance > suspicious_distance(channels),
            deviations: deviations.iter().map(|z| *z as f32).collect(),
        }
    }

    fn learn(&mut self, deviation: &[f64], weight: f64) {
        self.weight += weight;
        let rate = weight / self.weight.min(HORIZON);
        for (row, a) in deviation.iter().enumerate() {
            self.mean[row] += rate * a;
            let covariances = &mut self.covariance[row * deviation.len()..];
            for (covariance, b) in covariances.iter_mut().zip(deviation) {
                *covariance += rate * ((1.0 - rate) * a * b - *covariance);
            }
        }
    }
}

/// `z' R^-1 z` for the matrix `R` with a unit diagonal and `correlation(a, b)` beside it, by
/// Cholesky's decomposition.
fn whitened_square(z: &[f64], correlation: impl Fn(usize, usize) -> f64) -> f64 {
    let count = z.len();
    let mut factor = vec![0.0; count * count];
    let mut whitened = vec![0.0; count];
    for row in 0..count {
        for column in 0..=row {
            let known: f64 =
                (0..column).map(|at| factor[row * count + at] * factor[column * count + at]).sum();
            factor[row * count + column] = if row == column {
                // Not below the shrinkage in exact arithmetic.
                (1.0 - known).max(1e-6).sqrt()
            } else {
                (correlation(row, column) - known) / factor[column * count + column]
            };
        }
        let known: f64 = (0..row).map(|at| factor[row * count + at] * whitened[at]).sum();
        whitened[row] = (z[row] - known) / factor[row * count + row];
    }
    whitened.iter().map(|value| value * value).sum()
}

/// Where a chi-squared variable of as many degrees of freedom, divided by them, has its
/// [`SUSPICION`] quantile, as a root (Wilson & Hilferty 1931).
fn suspicious_distance(channels: usize) -> f64 {
    let spread = 2.0 / (9.0 * channels as f64);
    (1.0 - spread + SUSPICION * spread.sqrt()).powf(1.5)
}

/// Of those that are not missing.
fn mean(samples: &[f32]) -> Option<f64> {
    let observed = samples.iter().filter(|sample| !sample.is_nan());
    let (sum, count) =
        observed.fold((0.0, 0), |(sum, count), sample| (sum + f64::from(*sample), count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    /// A sample of two channels that move together, and one apart; `shift` is added to the first.
    fn sample(rng: &mut Pcg64Mcg, shift: f32) -> [f32; 3] {
        let mut normal = || rng.sample::<f32, _>(StandardNormal);
        let common = normal();
        [5.0 + common + 0.1 * normal() + shift, 100.0 + 10.0 * common, normal()]
    }

    fn learned(rng: &mut Pcg64Mcg, segments: usize) -> (Level, Vec<f32>) {
        let mut level = Level::default();
        let found = (0..segments).filter_map(|_| level.push(&sample(rng, 0.0), 1, 1));
        let distances = found.map(|found| found.distance).collect();
        (level, distances)
    }

    #[test]
    fn normal_segments_are_about_one_away_and_seldom_suspicious() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let (mut level, distances) = learned(&mut rng, 2000);
        let late = &distances[500..];
        let square = late.iter().map(|d| d * d).sum::<f32>() / late.len() as f32;
        // Shrinkage takes some of the strong correlation for noise.
        assert!((0.5..1.3).contains(&square), "{square}");
        let suspicious = (0..5000)
            .filter(|_| level.push(&sample(&mut rng, 0.0), 1, 1).is_some_and(|f| f.suspicious))
            .count();
        assert!(suspicious <= 2, "{suspicious}");
    }

    #[test]
    fn a_broken_correlation_is_far_though_each_channel_is_within_its_range() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let (level, _) = learned(&mut rng, 2000);
        let together = level.clone().push(&[7.0, 120.0, 0.0], 1, 1).unwrap();
        let apart = level.clone().push(&[7.0, 80.0, 0.0], 1, 1).unwrap();
        assert!(!together.suspicious && apart.suspicious, "{together:?} {apart:?}");
        assert!(apart.deviations.iter().all(|z| z.abs() < 2.5));
    }

    #[test]
    fn a_fault_stays_far_while_it_lasts_and_becomes_normal_in_the_end() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let (mut level, _) = learned(&mut rng, 2000);
        for at in 0..ACCEPTED as u32 {
            assert!(level.push(&sample(&mut rng, 3.0), 1, 1).unwrap().suspicious, "{at}");
        }
        for _ in 0..4 * HORIZON as usize {
            level.push(&sample(&mut rng, 3.0), 1, 1);
        }
        assert!(!level.push(&sample(&mut rng, 3.0), 1, 1).unwrap().suspicious);
    }

    #[test]
    fn missing_and_constant_channels_stay_finite() {
        let mut level = Level::default();
        for at in 0..200 {
            let found = level.push(&[7.0, (at % 7) as f32, f32::NAN], 1, 1);
            assert!(found.is_none_or(|found| found.distance < 3.0));
        }
        assert!(level.push(&[f32::NAN; 3], 1, 1).unwrap().distance < 1e-3);
        let changed = level.push(&[8.0, 3.0, f32::NAN], 1, 1).unwrap();
        assert!(changed.distance.is_finite() && changed.suspicious);
    }

    #[test]
    fn the_whitened_square_of_a_pair_is_that_of_the_textbook() {
        // For correlation r: (a^2 - 2 r a b + b^2) / (1 - r^2).
        let (a, b, r) = (1.5, -0.5, 0.6);
        let expected = (a * a - 2.0 * r * a * b + b * b) / (1.0 - r * r);
        assert!((whitened_square(&[a, b], |_, _| r) - expected).abs() < 1e-12);
    }
}
