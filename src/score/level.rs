//! The level of all channels together, and how far it is from normal.
//!
//! Contrastive learning on one stream tells moments of the same normal apart, and what lasts soon
//! becomes one of many known moments. A fault that lasts must stay abnormal for as long as it does:
//! each key has a Gaussian of its recent level, the mean of each channel over the last quarter of
//! a segment, and the Mahalanobis distance from it (Hotelling 1947; multivariate process control)
//! with its probability. What is suspicious hardly teaches what is normal, until it has lasted so
//! long that it is; channels that have no part in it go on teaching, for temperatures wander
//! through a fault as they did before.

use pulp::{Arch, Simd, WithSimd};
use serde::{Deserialize, Serialize};

use super::change::first_observed;
use super::lanes::{Group, Samples};

/// Running mean and covariance of a key's level.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// One per channel.
    channels: Vec<Channel>,
    /// Of each two channels: the upper half of a symmetric matrix, row by row.
    covariance: Vec<f64>,
}

/// What is known of one channel's level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Channel {
    mean: f64,
    /// Variance of a level that the scatter of the samples within explains alone.
    noise: f64,
    /// Independent levels learned from; suspicious ones count for little.
    weight: f64,
    /// Independent levels since the last one without a part in anything suspicious.
    suspicious: f64,
}

/// One channel's level in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Recent {
    mean: f64,
    /// Variance of the mean, from the samples' scatter.
    noise: f64,
}

/// How a segment's level compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// `-ln` of the probability that a normal level is as far from the mean, in nats.
    pub evidence: f32,
    /// Whether it is too far to be learned from.
    pub suspicious: bool,
}

/// What is found on the way.
#[derive(Clone, Debug, Default)]
pub struct Room {
    /// Per channel, its own deviation in standard deviations.
    pub deviations: Vec<f32>,
    levels: Vec<Option<Recent>>,
    /// From the mean.
    off: Vec<f64>,
    /// One by the standard deviation.
    scales: Vec<f64>,
    correlations: Vec<f64>,
    whitened: Vec<f64>,
    weights: Vec<f64>,
    rates: Vec<f64>,
}

/// Independent levels before there is a covariance to measure by, and before anything is
/// suspicious. Segments overlap: one brings the share of an independent level that is new in it.
const KNOWN: f64 = 8.0;
const SETTLED: f64 = 16.0;
/// Independent levels over which it forgets.
const HORIZON: f64 = 500.0;
/// A suspicious level counts as this share of a normal one.
const SUSPICIOUS_WEIGHT: f64 = 1.0 / 200.0;
/// After so many independent suspicious levels in a row they are a new normal, to be learned in
/// full.
const ACCEPTED: f64 = 64.0;
/// Evidence beyond which a level is suspicious: a probability of 2e-4. Sooner than an alert begins,
/// or a slow fault is learned before it is seen.
const SUSPICION: f64 = 8.5;
/// Standard deviations that a channel must be off by to have a part in what is suspicious.
const TAKES_PART: f64 = 3.0;
/// Independent levels that the noise within a level stands in for, in the variance of its channel:
/// from a few levels alone, some channel's is always too small.
const PRIOR: f64 = 4.0;
/// Share of the diagonal in the covariance (shrinkage, Ledoit & Wolf 2004): as few segments are
/// independent as there may be channels.
const SHRINKAGE: f64 = 0.1;
/// Beyond this many channels each is judged by its own variance alone.
const CORRELATED_CHANNELS: usize = 32;

impl Level {
    /// Compares raw `samples` (NaN where missing), of which the `fresh` last are new, with the level
    /// so far, then learns from it. A channel without recent samples has no part in either.
    /// `None` until enough is known.
    pub fn push(&mut self, samples: &Samples, fresh: usize, room: &mut Room) -> Option<Found> {
        let recent = (samples.time() / 4).max(1);
        look(samples, recent, &mut room.levels);
        let independent = (fresh as f64 / recent as f64).min(1.0);
        room.deviations.clear();
        let channels = samples.channels();
        self.channels.resize_with(channels, Channel::default);
        self.covariance.resize(channels * (channels + 1) / 2, 0.0);
        room.off.clear();
        let channels = room.levels.iter().zip(&self.channels);
        // One that has not been observed before is not off from anything.
        room.off.extend(channels.map(|(level, channel)| match level {
            Some(level) if channel.weight > 0.0 => level.mean - channel.mean,
            _ => 0.0,
        }));
        let known = |weight| {
            let mut channels = self.channels.iter().zip(&room.levels);
            channels.all(|(channel, level)| level.is_none() || channel.weight >= weight)
        };
        let (known, settled) = (known(KNOWN), known(SETTLED));
        let found = known.then(|| self.compare(settled, room));
        let suspicious = found.is_some_and(|found| found.suspicious);
        let any_far = suspicious && room.deviations.iter().any(is_far);
        self.begin_those_that_move(room);
        room.weights.clear();
        for (at, channel) in self.channels.iter_mut().enumerate() {
            let takes_part = suspicious && (!any_far || is_far(&room.deviations[at]));
            channel.suspicious = if takes_part { channel.suspicious + independent } else { 0.0 };
            let teaches_little = takes_part && channel.suspicious <= ACCEPTED;
            let observed = if room.levels[at].is_some() { independent } else { 0.0 };
            room.weights.push(observed * if teaches_little { SUSPICIOUS_WEIGHT } else { 1.0 });
        }
        self.learn(room);
        found
    }

    /// A channel that has stood still so far says nothing of how its level varies: it begins anew with
    /// the first samples that differ.
    fn begin_those_that_move(&mut self, room: &mut Room) {
        let mut rest = &self.covariance[..];
        for (at, channel) in self.channels.iter_mut().enumerate() {
            let stood_still = channel.noise == 0.0 && rest[0] == 0.0;
            if stood_still && room.levels[at].is_some_and(|level| level.noise > 0.0) {
                *channel = Channel::default();
                room.off[at] = 0.0;
            }
            rest = &rest[room.off.len() - at..];
        }
    }

    /// Forgets a channel's level, and how the others' go with it.
    pub fn begin_anew(&mut self, channel: usize) {
        let channels = self.channels.len();
        let mut rest = &mut self.covariance[..];
        for (at, known) in self.channels.iter_mut().enumerate() {
            let (row, below) = rest.split_at_mut(channels - at);
            if at < channel {
                row[channel - at] = 0.0;
            } else if at == channel {
                row.fill(0.0);
                *known = Channel::default();
            }
            rest = below;
        }
    }

    fn compare(&self, settled: bool, room: &mut Room) -> Found {
        let channels = self.channels.len();
        let Room { deviations, levels, off, scales, correlations, whitened, .. } = room;
        scales.clear();
        let mut rest = &self.covariance[..];
        for (at, (channel, level)) in self.channels.iter().zip(&*levels).enumerate() {
            // A channel that is not observed is as far as any, and goes with none.
            scales.push(level.map_or(0.0, |_| {
                let resolution = 1e-6 * channel.mean;
                let prior = PRIOR * channel.noise / channel.weight;
                1.0 / (rest[0] + prior + resolution * resolution + 1e-18).sqrt()
            }));
            rest = &rest[channels - at..];
        }
        whitened.clear();
        whitened.extend(off.iter().zip(&*scales).map(|(off, scale)| off * scale));
        deviations.extend(whitened.iter().map(|z| *z as f32));
        let square = if channels <= CORRELATED_CHANNELS {
            // Of the correlations: with a unit diagonal, ill-conditioned covariances stay solvable.
            correlations.clear();
            let mut rest = &self.covariance[..];
            for at in 0..channels {
                let (row, below) = rest.split_at(channels - at);
                let shrunk = (1.0 - SHRINKAGE) * scales[at];
                correlations.push(1.0);
                let others = row[1..].iter().zip(&scales[at + 1..]);
                correlations.extend(others.map(|(covariance, scale)| shrunk * covariance * scale));
                rest = below;
            }
            whitened_square(whitened, correlations)
        } else {
            whitened.iter().map(|z| z * z).sum()
        };
        let evidence = evidence(square, levels.iter().flatten().count());
        Found {
            evidence: evidence.min(f64::from(f32::MAX)) as f32,
            suspicious: evidence > SUSPICION && settled,
        }
    }

    /// Learns levels by the weight that each channel's counts with; two channels' covariance by
    /// the lesser of theirs.
    fn learn(&mut self, room: &mut Room) {
        let Room { levels, off, weights, rates, .. } = room;
        rates.clear();
        let channels = self.channels.iter_mut().zip(levels).zip(weights);
        for ((channel, level), weight) in channels {
            channel.weight += *weight;
            let rate = if *weight > 0.0 { *weight / channel.weight.min(HORIZON) } else { 0.0 };
            if let Some(level) = level {
                channel.mean += rate * (level.mean - channel.mean);
                channel.noise += rate * (level.noise - channel.noise);
            }
            rates.push(rate);
        }
        let mut rest = &mut self.covariance[..];
        for (at, (a, of_a)) in off.iter().zip(&*rates).enumerate() {
            let (row, below) = rest.split_at_mut(off.len() - at);
            let others = off[at..].iter().zip(&rates[at..]);
            for (covariance, (b, of_b)) in row.iter_mut().zip(others) {
                let rate = if of_b < of_a { *of_b } else { *of_a };
                *covariance += rate * ((1.0 - rate) * a * b - *covariance);
            }
            rest = below;
        }
    }
}

/// Whether a channel has a part in what is suspicious: those far off by themselves, or all where
/// only the channels' relation is.
fn is_far(deviation: &f32) -> bool {
    f64::from(deviation.abs()) > TAKES_PART
}

/// `-ln` of the probability that a chi-squared variable of `channels` degrees of freedom is at
/// least `square` (Wilson & Hilferty 1931: its cube root is all but normal). 0 for none.
fn evidence(square: f64, channels: usize) -> f64 {
    if channels == 0 {
        return 0.0;
    }
    let spread = 2.0 / (9.0 * channels as f64);
    let z = ((square.max(0.0) / channels as f64).cbrt() - (1.0 - spread)) / spread.sqrt();
    -ln_survival(z)
}

/// `ln` of the probability that a standard normal variable is at least `z`, to half a percent of
/// the probability (Karagiannidis & Lioumpas 2007).
fn ln_survival(z: f64) -> f64 {
    let size = z.abs().max(1e-3);
    let ln_tail = (1.0 - (-1.4 * size).exp()).ln()
        - size * size / 2.0
        - (1.135 * (2.0 * std::f64::consts::PI).sqrt() * size).ln();
    if z > 0.0 { ln_tail } else { (-ln_tail.exp()).ln_1p() }
}

/// `z' R^-1 z` for the matrix `R` of which `matrix` holds the upper half row by row, with a unit
/// diagonal, by a decomposition into `L D L'` that takes the place of both.
fn whitened_square(z: &mut [f64], matrix: &mut [f64]) -> f64 {
    let mut square = 0.0;
    let (mut z, mut rest) = (z, matrix);
    while let Some((first, others)) = z.split_first_mut() {
        let (row, below) = rest.split_at_mut(1 + others.len());
        // Not below the shrinkage in exact arithmetic.
        let pivot = 1.0 / row[0].max(1e-6);
        square += *first * *first * pivot;
        let mut lower = &mut *below;
        for (at, other) in others.iter_mut().enumerate() {
            let share = row[1 + at] * pivot;
            *other -= share * *first;
            let (into, further) = lower.split_at_mut(row.len() - 1 - at);
            for (value, of) in into.iter_mut().zip(&row[1 + at..]) {
                *value -= share * of;
            }
            lower = further;
        }
        (z, rest) = (others, below);
    }
    square
}

/// The level of each channel in its `recent` last samples, of those that are not missing.
fn look(samples: &Samples, recent: usize, levels: &mut Vec<Option<Recent>>) {
    levels.clear();
    levels.resize(samples.channels(), None);
    Arch::new().dispatch(Look { samples, recent, levels });
    let from = samples.time() - recent;
    for (channel, level) in levels.iter_mut().enumerate() {
        // Squares of what an `f32` holds may be more than it holds.
        if level.is_some_and(|level| !(level.mean + level.noise).is_finite()) {
            let all = (from..samples.time()).map(|at| f64::from(samples.row(at)[channel]));
            let observed = all.filter(|sample| !sample.is_nan());
            let count = observed.clone().count() as f64;
            let mean = observed.clone().sum::<f64>() / count;
            let square = observed.map(|sample| (sample - mean).powi(2)).sum::<f64>();
            *level = Some(Recent { mean, noise: square / (count - 1.0).max(1.0) / count });
        }
    }
}

struct Look<'a> {
    samples: &'a Samples,
    recent: usize,
    levels: &'a mut [Option<Recent>],
}

impl WithSimd for Look<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let from = self.samples.time() - self.recent;
        for group in Group::all(simd, self.samples.channels()) {
            let (nothing, one) = (group.splat(0.0), group.splat(1.0));
            // Less one of them: where a channel is far from 0, its scatter is not lost.
            let first = first_observed(self.samples, from, group);
            let (mut sum, mut count) = (nothing, nothing);
            for at in from..self.samples.time() {
                let sample = group.at(self.samples, at);
                sum = sum + sample.known().choose(sample - first, nothing);
                count = count + sample.known().choose(one, nothing);
            }
            let mean = sum / count;
            let mut square = nothing;
            for at in from..self.samples.time() {
                let sample = group.at(self.samples, at);
                let off = sample.known().choose(sample - first - mean, nothing);
                square = off.mul_add(off, square);
            }
            let noise = square / (count - one).max(one) / count;
            let found = first.array().into_iter().zip(mean.array()).zip(noise.array());
            let found = found.zip(count.array());
            for (level, (((first, mean), noise), count)) in
                self.levels[group.range()].iter_mut().zip(found)
            {
                let mean = f64::from(first) + f64::from(mean);
                *level = (count > 0.0).then_some(Recent { mean, noise: f64::from(noise) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    /// What is found, and each channel's deviation.
    #[derive(Clone, Debug)]
    struct Seen {
        evidence: f32,
        suspicious: bool,
        deviations: Vec<f32>,
    }

    impl Level {
        fn see(&mut self, segment: &[f32], time: usize, fresh: usize) -> Option<Seen> {
            let mut room = Room::default();
            let found = self.push(&Samples::new(segment, time), fresh, &mut room)?;
            let Found { evidence, suspicious } = found;
            Some(Seen { evidence, suspicious, deviations: room.deviations })
        }
    }

    /// A sample of two channels that move together, and one apart; `shift` is added to the first.
    fn sample(rng: &mut Pcg64Mcg, shift: f32) -> [f32; 3] {
        let mut normal = || rng.sample::<f32, _>(StandardNormal);
        let common = normal();
        [5.0 + common + 0.1 * normal() + shift, 100.0 + 10.0 * common, normal()]
    }

    /// What `level` finds in `segments` normal samples.
    fn normal(level: &mut Level, rng: &mut Pcg64Mcg, segments: usize) -> Vec<Seen> {
        (0..segments).filter_map(|_| level.see(&sample(rng, 0.0), 1, 1)).collect()
    }

    fn learned(rng: &mut Pcg64Mcg, segments: usize) -> Level {
        let mut level = Level::default();
        normal(&mut level, rng, segments);
        level
    }

    #[test]
    fn a_channel_that_stood_still_begins_with_the_first_that_differs() {
        let mut rng = Pcg64Mcg::seed_from_u64(5);
        let mut level = Level::default();
        // Sixteen samples of two channels, of which the newest four are new.
        let mut push = |first: f32, scatter: f32| {
            let mut segment = [0.0; 32];
            segment.fill_with(|| rng.sample(StandardNormal));
            segment[..16].iter_mut().for_each(|value| *value = first + scatter * *value);
            level.see(&segment, 16, 4)
        };
        (0..200).for_each(|_| drop(push(0.0, 0.0)));
        // Seen at once, and no longer once there is something to compare with.
        assert!(push(50.0, 1.0).unwrap().suspicious);
        (0..100).for_each(|_| drop(push(50.0, 1.0)));
        let suspicious = (0..100).filter(|_| push(50.0, 1.0).unwrap().suspicious).count();
        assert!(suspicious <= 1, "{suspicious}");
        assert!(push(60.0, 1.0).unwrap().suspicious);
    }

    #[test]
    fn a_channel_that_begins_anew_forgets_what_it_was_and_went_with_and_others_do_not() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let before = learned(&mut rng, 2000);
        let mut level = before.clone();
        level.begin_anew(1);
        assert_eq!(level.channels[0], before.channels[0]);
        // Rows of three, two and one: what the second has a part in.
        for (at, (after, before)) in level.covariance.iter().zip(&before.covariance).enumerate() {
            let forgotten = [1, 3, 4].contains(&at);
            assert_eq!(*after, if forgotten { 0.0 } else { *before }, "{at}");
        }
        // At home at another level, and soon measured there.
        let mut elsewhere = |off: f32| {
            let mut values = sample(&mut rng, 0.0);
            values[1] += 1000.0 + off;
            level.see(&values, 1, 1)
        };
        (0..100).for_each(|_| drop(elsewhere(0.0)));
        assert!(!elsewhere(0.0).unwrap().suspicious);
        assert!(elsewhere(-1000.0).unwrap().suspicious);
    }

    #[test]
    fn a_channel_that_is_seldom_observed_is_as_far_as_it_seems_and_hides_no_other() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut level = Level::default();
        let mut push = |level: &mut Level, shift: f32| {
            let mut values = sample(&mut rng, shift);
            values[2] += 1e5;
            // Not at first, and one time in ten.
            if level.channels.is_empty() || rng.random_bool(0.9) {
                values[2] = f32::NAN;
            }
            (values[2].is_nan(), level.see(&values, 1, 1))
        };
        let mut far = [0, 0];
        for _ in 0..20_000 {
            let (absent, found) = push(&mut level, 0.0);
            let rare = found.is_some_and(|found| found.evidence > 100_f32.ln());
            far[usize::from(!absent)] += usize::from(rare);
        }
        // Of those without it and with it one in a hundred; shrinkage makes it less.
        assert!((36..360).contains(&far[0]) && (4..40).contains(&far[1]), "{far:?}");
        assert!(push(&mut level, 5.0).1.unwrap().suspicious);
    }

    #[test]
    fn normal_segments_are_as_rare_as_their_evidence_says() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut level = learned(&mut rng, 2000);
        let found = normal(&mut level, &mut rng, 20_000);
        let beyond = |p: f64| {
            let far = found.iter().filter(|found| f64::from(found.evidence) > -p.ln()).count();
            far as f64 / found.len() as f64 / p
        };
        // Shrinkage takes some of the strong correlation for noise.
        assert!((0.2..2.0).contains(&beyond(0.1)), "{}", beyond(0.1));
        assert!((0.2..2.0).contains(&beyond(0.01)), "{}", beyond(0.01));
        let suspicious = found.iter().filter(|found| found.suspicious).count();
        assert!(suspicious <= 10, "{suspicious}");
    }

    #[test]
    fn a_short_history_does_not_make_normal_levels_suspicious() {
        // Levels of 16 samples, one new sample at a time, as with a stride of 1.
        const TIME: usize = 64;
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut suspicious = 0;
        for _ in 0..20 {
            let rows: Vec<[f32; 3]> = (0..600).map(|_| sample(&mut rng, 0.0)).collect();
            let mut level = Level::default();
            suspicious += rows
                .windows(TIME)
                .filter(|rows| {
                    let segment: Vec<f32> = (0..3)
                        .flat_map(|channel| rows.iter().map(move |row| row[channel]))
                        .collect();
                    level.see(&segment, TIME, 1).is_some_and(|found| found.suspicious)
                })
                .count();
        }
        assert!(suspicious <= 20 * 536 / 100, "{suspicious}");
    }

    #[test]
    fn a_broken_correlation_is_far_though_each_channel_is_within_its_range() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let level = learned(&mut rng, 2000);
        let together = level.clone().see(&[7.0, 120.0, 0.0], 1, 1).unwrap();
        let apart = level.clone().see(&[7.0, 80.0, 0.0], 1, 1).unwrap();
        assert!(!together.suspicious && apart.suspicious, "{together:?} {apart:?}");
        assert!(apart.deviations.iter().all(|z| z.abs() < 2.5));
        // Nothing is learned of it but a little.
        let mut after = level.clone();
        for _ in 0..ACCEPTED as usize {
            assert!(after.see(&[7.0, 80.0, 0.0], 1, 1).unwrap().suspicious);
        }
    }

    #[test]
    fn a_fault_stays_far_while_it_lasts_and_becomes_normal_in_the_end() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut level = learned(&mut rng, 2000);
        for at in 0..ACCEPTED as u32 {
            assert!(level.see(&sample(&mut rng, 3.0), 1, 1).unwrap().suspicious, "{at}");
        }
        for _ in 0..4 * HORIZON as usize {
            level.see(&sample(&mut rng, 3.0), 1, 1);
        }
        assert!(!level.see(&sample(&mut rng, 3.0), 1, 1).unwrap().suspicious);
    }

    #[test]
    fn channels_without_a_part_in_a_fault_go_on_teaching() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut level = learned(&mut rng, 2000);
        for _ in 0..60 {
            let mut values = sample(&mut rng, 40.0);
            // The third has gone elsewhere, not far for what it does.
            values[2] += 1.5;
            assert!(level.see(&values, 1, 1).unwrap().suspicious);
        }
        assert!(level.channels[0].mean < 5.5, "{:?}", level.channels[0]);
        assert!(level.channels[2].mean > 0.1, "{:?}", level.channels[2]);
    }

    #[test]
    fn missing_and_constant_channels_stay_finite() {
        let mut level = Level::default();
        for at in 0..200 {
            let found = level.see(&[7.0, (at % 7) as f32, f32::NAN], 1, 1);
            assert!(found.is_none_or(|found| !found.suspicious));
        }
        assert!(level.see(&[f32::NAN; 3], 1, 1).unwrap().evidence < 0.1);
        let changed = level.see(&[8.0, 3.0, f32::NAN], 1, 1).unwrap();
        assert!(changed.evidence.is_finite() && changed.suspicious);
    }

    #[test]
    fn evidence_is_that_of_chi_squared_tables() {
        // Upper quantiles of the chi-squared distribution.
        for (square, channels, p) in [
            (3.841, 1, 0.05),
            (10.828, 1, 0.001),
            (15.507, 8, 0.05),
            (26.124, 8, 0.001),
            (37.332, 8, 1e-5),
            (7.344, 8, 0.5),
        ] {
            let found = (-evidence(square, channels)).exp();
            assert!((0.8..1.35).contains(&(found / p)), "{square} {channels}: {found} for {p}");
        }
        assert!(evidence(0.0, 3) < 0.05 && evidence(1e30, 3).is_finite());
    }

    #[test]
    fn the_whitened_square_of_a_pair_is_that_of_the_textbook() {
        // For correlation r: (a^2 - 2 r a b + b^2) / (1 - r^2).
        let (a, b, r) = (1.5, -0.5, 0.6);
        let expected = (a * a - 2.0 * r * a * b + b * b) / (1.0 - r * r);
        assert!((whitened_square(&mut [a, b], &mut [1.0, r, 1.0]) - expected).abs() < 1e-12);
    }

    #[test]
    fn levels_beyond_what_the_square_of_a_number_holds_are_finite() {
        let mut levels = Vec::new();
        look(&Samples::new(&[1e30, 3e30, -3e38, 3e38, 1e6, f32::NAN], 2), 2, &mut levels);
        let [large, largest, one] = levels[..] else { panic!("three channels") };
        let close = |level: Option<Recent>, mean: f64, noise: f64| {
            let level = level.expect("observed");
            (level.mean - mean).abs() <= 1e-6 * mean.abs() && level.noise / noise - 1.0 < 1e-6
        };
        assert!(close(large, 2e30, 1e60) && close(one, 1e6, f64::INFINITY));
        assert!(largest.expect("observed").noise.is_finite());
    }
}
