//! Running standardisation of one key's channels, robust to outliers.
//!
//! The first segment sets centre and scale (median, and median absolute deviation); they hold
//! while the key is warming up, so that the model's first lessons come from one ruler, and the
//! running estimates gather behind them. From then on they follow the stream: every sample moves
//! them by a share of its winsorised deviation (Huber 1964), so a fault of any size moves them no
//! more than a deviation of three does.
//!
//! A channel that stands still, as that of a machine which is off or of a switch nobody turns, tells nothing
//! of how it varies: a segment of one value teaches nothing, and the first segment in which the channel does
//! vary is the one that sets its centre and scale. Otherwise the scale would shrink to nothing, and
//! winsorised at three of those, take many thousand samples to grow again. Where a sensor is never quite
//! still, it does: a channel that has varied by ten times its scale for long begins anew as well.

use pulp::{Arch, Simd, WithSimd};
use serde::{Deserialize, Serialize};

/// Centre and scale of each channel of one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standardiser {
    channels: Vec<Channel>,
    /// Segments until the running estimates are used.
    held: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Channel {
    /// In use.
    center: f32,
    scale: f32,
    /// Following the stream; `f64`, since a step may be a millionth of the value.
    running_center: f64,
    running_variance: f64,
    samples: u64,
    /// How many more of the samples of late were winsorised than were not.
    beyond: u64,
}

/// Deviations beyond this many scales count as this many.
const WINSOR: f64 = 3.0;
/// Variance of a standard normal variable winsorised at [`WINSOR`].
const WINSORISED_VARIANCE: f64 = 0.994_6;
/// Segments' worth of samples after which, were all of them winsorised, a channel that varies by
/// so many scales is taken for one that had been quiet. As long as a level is suspicious that stays.
const LASTING: u64 = 16;
const QUIET: f64 = 10.0;
/// Standardised values beyond this are compressed logarithmically: the model sees that they are
/// extreme, and its gradients stay finite.
const LINEAR: f32 = 6.0;

impl Standardiser {
    /// From the first segment `[channels, time]`; it holds for `held` segments.
    pub fn new(segment: &[f32], time: usize, held: usize) -> Self {
        let channels = segment.chunks_exact(time).map(Channel::from_samples).collect();
        Self { channels, held }
    }

    /// Appends the standardised segment `[channels, time]` to `out`; missing values stay NaN.
    pub fn apply(&self, segment: &[f32], time: usize, out: &mut Vec<f32>) {
        let first = out.len();
        out.resize(first + self.channels.len() * time, 0.0);
        let out = &mut out[first..];
        let apply = Apply { channels: &self.channels, segment, time, out };
        // A logarithm is a call, and hardly ever is one needed.
        if Arch::new().dispatch(apply) {
            for value in out.iter_mut().filter(|value| value.abs() > LINEAR) {
                *value = compress(*value);
            }
        }
    }

    /// Learns the last `fresh` samples of a segment. `horizon` is the number of samples over which
    /// the estimates forget.
    pub fn learn(&mut self, segment: &[f32], time: usize, fresh: usize, horizon: u64) {
        let follows = self.held == 0;
        self.held = self.held.saturating_sub(1);
        let fresh = fresh.min(time);
        for (channel, samples) in self.channels.iter_mut().zip(segment.chunks_exact(time)) {
            if channel.running_variance == 0.0 {
                channel.begin(samples);
            }
        }
        let channels = &mut self.channels;
        Arch::new().dispatch(Learn { channels, segment, time, fresh, horizon: horizon.max(1) });
        for channel in self.channels.iter_mut().filter(|channel| follows && channel.samples > 0) {
            channel.center = channel.running_center as f32;
            channel.scale = usable(channel.running_variance.sqrt() as f32, channel.center);
        }
    }

    /// Begins those channels anew, by a segment that was learned, that had been quiet and have not been so
    /// for long; returns which.
    pub fn begin_anew(&mut self, segment: &[f32], time: usize) -> Vec<usize> {
        let mut anew = Vec::new();
        let rows = self.channels.iter_mut().zip(segment.chunks_exact(time)).enumerate();
        for (at, (channel, samples)) in rows {
            if channel.beyond < LASTING * time as u64 {
                continue;
            }
            channel.beyond = 0;
            let fresh = Channel::from_samples(samples);
            if fresh.running_variance > QUIET.powi(2) * channel.running_variance {
                *channel = fresh;
                anew.push(at);
            }
        }
        anew
    }
}

/// Standardises a segment; says whether any value is beyond [`LINEAR`].
struct Apply<'a> {
    channels: &'a [Channel],
    segment: &'a [f32],
    time: usize,
    out: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let mut largest = simd.splat_f32s(0.0);
        let segment = self.segment.chunks_exact(self.time);
        let rows = self.channels.iter().zip(segment).zip(self.out.chunks_exact_mut(self.time));
        for ((channel, samples), out) in rows {
            let center = simd.splat_f32s(channel.center);
            let scale = simd.splat_f32s(channel.scale);
            let pieces = samples.chunks(S::F32_LANES).zip(out.chunks_mut(S::F32_LANES));
            for (samples, out) in pieces {
                let value = simd.sub_f32s(simd.partial_load_f32s(samples), center);
                let value = simd.div_f32s(value, scale);
                simd.partial_store_f32s(out, value);
                let size = simd.abs_f32s(value);
                let larger = simd.greater_than_f32s(size, largest);
                largest = simd.select_f32s(larger, size, largest);
            }
        }
        // What is behind the end of a row counts as 0, its centre off: at worst a look too many.
        simd.reduce_max_f32s(largest) > LINEAR
    }
}

/// Lets running estimates follow the `fresh` last samples, channels side by side.
struct Learn<'a> {
    channels: &'a mut [Channel],
    segment: &'a [f32],
    time: usize,
    fresh: usize,
    horizon: u64,
}

/// Most channels side by side, and samples of each that are taken at once.
const LANES: usize = 8;
const BLOCK: usize = 16;

impl WithSimd for Learn<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F64_LANES.min(LANES);
        let (first, time) = (self.time - self.fresh, self.time);
        let segments = self.segment.chunks(lanes * time);
        for (channels, segment) in self.channels.chunks_mut(lanes).zip(segments) {
            let mut rows = Rows::of(channels);
            let mut still = [false; LANES];
            for (still, samples) in still.iter_mut().zip(segment.chunks_exact(time)) {
                *still = stands_still(samples);
            }
            for start in (first..time).step_by(BLOCK) {
                let end = time.min(start + BLOCK);
                let mut block = [[f64::NAN; LANES]; BLOCK];
                let taught = segment.chunks_exact(time).enumerate();
                for (lane, samples) in taught.filter(|(lane, _)| !still[*lane]) {
                    for (row, sample) in block.iter_mut().zip(&samples[start..end]) {
                        row[lane] = f64::from(*sample);
                    }
                }
                rows.follow(simd, &block[..end - start], self.horizon as f64);
            }
            rows.write(channels);
        }
    }
}

/// The running estimates of a few channels.
struct Rows {
    centers: [f64; LANES],
    variances: [f64; LANES],
    counts: [f64; LANES],
    beyond: [f64; LANES],
}

impl Rows {
    #[inline(always)]
    fn of(channels: &[Channel]) -> Self {
        let (zeros, ones) = ([0.0; LANES], [1.0; LANES]);
        let mut rows = Self { centers: zeros, variances: ones, counts: zeros, beyond: zeros };
        for (lane, channel) in channels.iter().enumerate() {
            rows.centers[lane] = channel.running_center;
            rows.variances[lane] = channel.running_variance;
            rows.counts[lane] = channel.samples as f64;
            rows.beyond[lane] = channel.beyond as f64;
        }
        rows
    }

    #[inline(always)]
    fn write(&self, channels: &mut [Channel]) {
        for (lane, channel) in channels.iter_mut().enumerate() {
            channel.running_center = self.centers[lane];
            channel.running_variance = self.variances[lane];
            channel.samples = self.counts[lane] as u64;
            channel.beyond = self.beyond[lane] as u64;
        }
    }

    /// Takes samples `[time, lanes]`, NaN where missing.
    #[inline(always)]
    fn follow<S: Simd>(&mut self, simd: S, samples: &[[f64; LANES]], horizon: f64) {
        /// The first segment's estimate weighs as much as this many samples.
        const PRIOR: f64 = 16.0;
        let lanes = S::F64_LANES.min(LANES);
        let load = |values: &[f64; LANES]| simd.partial_load_f64s(&values[..lanes]);
        let splat = |value| simd.splat_f64s(value);
        let (one, winsor, zero) = (splat(1.0), splat(WINSOR), splat(0.0));
        let minus_one = splat(-1.0);
        let mut center = load(&self.centers);
        let mut variance = load(&self.variances);
        let mut count = load(&self.counts);
        let mut beyond = load(&self.beyond);
        for row in samples {
            let value = load(row);
            let known = simd.equal_f64s(value, value);
            let bound = simd.mul_f64s(winsor, simd.sqrt_f64s(variance));
            let deviation = simd.sub_f64s(value, center);
            let above = simd.greater_than_f64s(deviation, bound);
            let bounded = simd.select_f64s(above, bound, deviation);
            let lowest = simd.sub_f64s(zero, bound);
            let below = simd.less_than_f64s(bounded, lowest);
            let bounded = simd.select_f64s(below, lowest, bounded);

            let seen = simd.add_f64s(count, one);
            let weight = simd.add_f64s(seen, splat(PRIOR));
            let full = simd.greater_than_f64s(weight, splat(horizon));
            let rate = simd.div_f64s(one, simd.select_f64s(full, splat(horizon), weight));
            let square = simd.mul_f64s(bounded, bounded);
            let square = simd.mul_f64s(square, splat(1.0 / WINSORISED_VARIANCE));
            let spread = simd.mul_add_f64s(rate, simd.sub_f64s(square, variance), variance);
            let middle = simd.mul_add_f64s(rate, bounded, center);
            center = simd.select_f64s(known, middle, center);
            variance = simd.select_f64s(known, spread, variance);
            count = simd.select_f64s(known, seen, count);
            let step = simd.select_f64s(above, one, simd.select_f64s(below, one, minus_one));
            let further = simd.max_f64s(simd.add_f64s(beyond, step), zero);
            beyond = simd.select_f64s(known, further, beyond);
        }
        simd.partial_store_f64s(&mut self.centers[..lanes], center);
        simd.partial_store_f64s(&mut self.variances[..lanes], variance);
        simd.partial_store_f64s(&mut self.counts[..lanes], count);
        simd.partial_store_f64s(&mut self.beyond[..lanes], beyond);
    }
}

impl Channel {
    fn from_samples(samples: &[f32]) -> Self {
        let observed: Vec<f32> = samples.iter().copied().filter(|value| !value.is_nan()).collect();
        let Some(center) = median(observed.clone()) else {
            // Nothing to compare with: the first values count as missing.
            return Self { center: f32::NAN, scale: 1.0, ..Self::default() };
        };
        let deviations: Vec<f32> = observed.iter().map(|value| (value - center).abs()).collect();
        let mean = deviations.iter().sum::<f32>() / deviations.len() as f32;
        // Of a normal variable: sigma = 1.4826 MAD = 1.2533 mean absolute deviation. The latter
        // serves where more than half of the samples are one value.
        let scale = match median(deviations) {
            Some(deviation) if deviation > 0.0 => 1.4826 * deviation,
            _ => 1.2533 * mean,
        };
        Self {
            center,
            scale: usable(scale, center),
            running_center: f64::from(center),
            running_variance: f64::from(scale).powi(2),
            samples: 0,
            beyond: 0,
        }
    }

    /// Begins, once there is something to measure a scale by: a segment that varies, or a value beside
    /// the one that was there before.
    fn begin(&mut self, samples: &[f32]) {
        let Some(newest) = samples.iter().rev().find(|sample| !sample.is_nan()) else { return };
        // A constant channel comes here with each segment.
        if samples.iter().all(|sample| sample.is_nan() || *sample == self.center) {
            return;
        }
        let fresh = Self::from_samples(samples);
        if fresh.running_variance > 0.0 || self.center.is_nan() {
            *self = fresh;
        } else if *newest != self.center {
            *self = Self::from_samples(&[self.center, *newest]);
        }
    }
}

/// Whether all that was observed of a segment `[channels, time]` stands still, channel by channel.
pub fn all_stand_still(segment: &[f32], time: usize) -> bool {
    segment
        .chunks_exact(time)
        .all(|samples| stands_still(samples) || samples.iter().all(|sample| sample.is_nan()))
}

/// Whether a channel was observed for at least half of a segment and is of one value. Most channels tell
/// by the newest two.
fn stands_still(samples: &[f32]) -> bool {
    let mut observed = samples.iter().rev().filter(|sample| !sample.is_nan());
    let Some(newest) = observed.next() else { return false };
    let mut alike = 1;
    observed.all(|sample| {
        alike += 1;
        sample == newest
    }) && 2 * alike >= samples.len()
}

/// A scale to divide by: not below what `f32` can tell apart around the centre, and finite, for
/// the variance of an infinite one would turn into NaN.
fn usable(scale: f32, center: f32) -> f32 {
    scale.max(1e-4 * center.abs()).clamp(1e-6, f32::MAX)
}

/// Linear up to [`LINEAR`] in size, logarithmic beyond. NaN stays NaN; what overflowed becomes
/// finite, for one infinity would be in every weight after the next step.
fn compress(value: f32) -> f32 {
    let size = value.abs().clamp(0.0, f32::MAX);
    if size > LINEAR { (LINEAR + (1.0 + size - LINEAR).ln()).copysign(value) } else { value }
}

/// The middle value; the mean of the middle two where there are two.
fn median(mut values: Vec<f32>) -> Option<f32> {
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    let (below, upper, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    let upper = *upper;
    match below.iter().copied().max_by(f32::total_cmp) {
        Some(lower) if values.len().is_multiple_of(2) => Some(lower.midpoint(upper)),
        _ => Some(upper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    #[test]
    fn values_of_any_size_stay_finite() {
        let extremes = [f32::MAX, f32::MIN, 0.0, 1.0];
        let alternating = [f32::MAX, f32::MIN, f32::MAX, f32::MIN];
        for first in [[0.0; 4], [f32::MAX; 4], [f32::MIN; 4], alternating, extremes] {
            let mut standardiser = Standardiser::new(&first, 4, 0);
            for _ in 0..100 {
                let values = apply(&standardiser, &extremes);
                assert!(values.iter().all(|value| value.is_finite()), "{first:?}: {values:?}");
                standardiser.learn(&extremes, 4, 4, 10);
            }
        }
    }

    fn apply(standardiser: &Standardiser, segment: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        standardiser.apply(segment, segment.len(), &mut out);
        out
    }

    #[test]
    fn the_median_of_the_first_segment_becomes_zero_and_its_deviation_one() {
        let segment = [10.0, 12.0, 14.0, 16.0, 1000.0];
        let standardised = apply(&Standardiser::new(&segment, 5, 0), &segment);
        assert_eq!(standardised[2], 0.0);
        // Median absolute deviation 2, times 1.4826.
        assert!((standardised[3] - 0.674_5).abs() < 1e-3);
        assert!(standardised[4] > LINEAR && standardised[4] < 20.0);
    }

    #[test]
    fn it_is_frozen_while_warming_up_and_then_follows() {
        let mut standardiser = Standardiser::new(&[0.0, 1.0, 2.0, 3.0], 4, 3);
        let before = apply(&standardiser, &[5.0]);
        for _ in 0..3 {
            standardiser.learn(&[4.0, 5.0, 6.0, 7.0], 4, 4, 1000);
            assert_eq!(apply(&standardiser, &[5.0]), before);
        }
        standardiser.learn(&[4.0, 5.0, 6.0, 7.0], 4, 4, 1000);
        assert!(apply(&standardiser, &[5.0])[0] < before[0]);
    }

    #[test]
    fn estimates_settle_on_the_true_centre_and_scale() {
        let mut rng = Pcg64Mcg::seed_from_u64(8);
        let mut standardiser = Standardiser::new(&[0.0, 1.0], 2, 0);
        for _ in 0..20_000 {
            let value = 50.0 + 4.0 * rng.sample::<f32, _>(StandardNormal);
            standardiser.learn(&[0.0, value], 2, 1, 2000);
        }
        let [channel] = &standardiser.channels[..] else { panic!("one channel") };
        assert!((channel.center - 50.0).abs() < 0.5, "{}", channel.center);
        assert!((channel.scale - 4.0).abs() < 0.4, "{}", channel.scale);
    }

    #[test]
    fn one_wild_value_hardly_moves_it() {
        let segment: Vec<f32> = (0..64).map(|at| (at as f32).sin()).collect();
        let mut standardiser = Standardiser::new(&segment, 64, 0);
        standardiser.learn(&segment, 64, 64, 1000);
        let before = apply(&standardiser, &[1.0])[0];
        standardiser.learn(&[1e30], 1, 1, 1000);
        assert!((apply(&standardiser, &[1.0])[0] - before).abs() < 0.1);
    }

    #[test]
    fn a_channel_that_stood_still_at_first_is_measured_as_soon_as_it_moves() {
        let mut rng = Pcg64Mcg::seed_from_u64(8);
        let mut standardiser = Standardiser::new(&[0.0; 16], 16, 0);
        let mut window = [0.0; 16];
        for at in 0..1_300 {
            window.rotate_left(1);
            let running = 50.0 + 4.0 * rng.sample::<f32, _>(StandardNormal);
            window[15] = if at < 1_000 { 0.0 } else { running };
            standardiser.learn(&window, 16, 1, 8192);
        }
        let size = apply(&standardiser, &[58.0])[0].abs();
        assert!(size < LINEAR, "{size}");
    }

    #[test]
    fn a_channel_that_was_quiet_begins_anew_once_it_has_run_for_long() {
        let mut rng = Pcg64Mcg::seed_from_u64(8);
        // Two channels of a machine that is off: noise, and as much as when it runs.
        let mut standardiser = Standardiser::new(&[0.0; 32], 16, 0);
        let mut window = [0.0; 32];
        let mut begun = Vec::new();
        for at in 0..3_000 {
            let (level, size) = if at < 1_500 { (0.0, 0.01) } else { (50.0, 4.0) };
            window.rotate_left(1);
            window[15] = level + size * rng.sample::<f32, _>(StandardNormal);
            window[31] = level + 4.0 * rng.sample::<f32, _>(StandardNormal);
            standardiser.learn(&window, 16, 1, 8192);
            begun.extend(standardiser.begin_anew(&window, 16).into_iter().map(|of| (at, of)));
        }
        // As soon as may be, and a little later: some samples are not far from where it was.
        let [(at, 0)] = begun[..] else { panic!("{begun:?}") };
        assert!((1_500..1_550).contains(&(at + 1 - LASTING as usize * 16)), "{at}");
        assert!((standardiser.channels[0].center - 50.0).abs() < 1.0);
        assert!((standardiser.channels[0].scale - 4.0).abs() < 0.5, "{standardiser:?}");
    }

    #[test]
    fn a_fault_that_ends_soon_does_not_begin_a_channel_anew() {
        let mut rng = Pcg64Mcg::seed_from_u64(8);
        let mut standardiser = Standardiser::new(&[0.0; 16], 16, 0);
        let mut window = [0.0; 16];
        for at in 0..10_000 {
            // A third of the time it is wild, for as long as is not long.
            let size = if at % 600 < 200 { 100.0 } else { 1.0 };
            window.rotate_left(1);
            window[15] = size * rng.sample::<f32, _>(StandardNormal);
            standardiser.learn(&window, 16, 1, 100_000);
            assert!(standardiser.begin_anew(&window, 16).is_empty(), "{at}");
        }
    }

    #[test]
    fn what_stands_still_teaches_nothing_but_a_rare_value_does() {
        let varied: Vec<f32> = (0..16).map(|at| (at as f32).sin()).collect();
        let before = Standardiser::new(&varied, 16, 0);
        let mut off = before.clone();
        for _ in 0..10_000 {
            off.learn(&[0.0; 16], 16, 1, 100);
        }
        assert_eq!(apply(&off, &varied), apply(&before, &varied));

        // A laboratory value: one in each segment.
        let mut rare = before;
        let mut segment = [f32::NAN; 16];
        for at in 0..1_000 {
            segment[15] = 5.0 + (at as f32).sin();
            rare.learn(&segment, 16, 1, 100);
        }
        assert!((rare.channels[0].center - 5.0).abs() < 0.5, "{:?}", rare.channels);
    }

    #[test]
    fn a_segment_stands_still_where_each_channel_does_or_is_missing() {
        let nan = f32::NAN;
        for (segment, still) in [
            ([1.0, 1.0, 1.0, 5.0, 5.0, 5.0], true),
            ([1.0, nan, 1.0, nan, nan, nan], true),
            ([1.0, 1.0, 1.0, 5.0, 5.0, 6.0], false),
            // One value of three says nothing of that.
            ([1.0, 1.0, 1.0, nan, nan, 5.0], false),
        ] {
            assert_eq!(all_stand_still(&segment, 3), still, "{segment:?}");
        }
    }

    #[test]
    fn constant_and_absent_channels_stay_finite() {
        let constant = Standardiser::new(&[7.0; 8], 8, 0);
        assert_eq!(apply(&constant, &[7.0]), [0.0]);
        assert!(apply(&constant, &[8.0])[0].is_finite());
        let mut absent = Standardiser::new(&[f32::NAN; 8], 8, 0);
        assert!(apply(&absent, &[f32::NAN])[0].is_nan());
        // There is nothing yet to tell a first value's size by.
        assert!(apply(&absent, &[3.0])[0].is_nan());
        absent.learn(&[3.0], 1, 1, 100);
        assert_eq!(apply(&absent, &[3.0]), [0.0]);
    }
}
