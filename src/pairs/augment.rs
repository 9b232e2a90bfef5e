//! Augmentations: small changes that leave a segment's meaning as it is.
//!
//! Each takes one standardised segment `[channels, time]`, NaN where missing, and changes it in
//! place. What is missing stays missing. The set follows TS2Vec (Yue et al. 2022: crop and mask)
//! and TS-TCC (Eldele et al. 2021: jitter and scale).

use std::sync::LazyLock;

use rand::{Rng, RngExt, SeedableRng};
use rand_distr::StandardNormal;
use rand_pcg::Pcg64Mcg;

use crate::config::Augmentation;

/// Standard deviation of [`jitter`]'s noise, in standard deviations of the channel.
const JITTER: f32 = 0.1;
/// Standard deviation of [`scale`]'s factors around 1.
const SCALE: f32 = 0.1;
/// Share of the samples that [`mask`] hides.
const MASK: f64 = 0.1;
/// Smallest share of the segment that [`crop`] leaves.
const CROP: f64 = 0.75;

/// Applies `augmentations` in order to a segment `[channels, time]`.
pub fn apply(
    augmentations: &[Augmentation],
    segment: &mut [f32],
    channels: usize,
    rng: &mut impl Rng,
) {
    let time = segment.len() / channels.max(1);
    for augmentation in augmentations {
        match augmentation {
            Augmentation::Jitter => jitter(segment, rng),
            Augmentation::Scale => scale(segment, time, rng),
            Augmentation::Mask => mask(segment, time, rng),
            Augmentation::Crop => crop(segment, time, rng),
            Augmentation::DropChannel => drop_channel(segment, time, rng),
        }
    }
}

/// Adds Gaussian noise to every value: a random stretch of noise that is drawn once.
pub fn jitter(segment: &mut [f32], rng: &mut impl Rng) {
    // A segment may be longer than the noise.
    for values in segment.chunks_mut(NOISE / 4) {
        let first = rng.random_range(0..NOISE - values.len());
        let noise = &noise()[first..first + values.len()];
        values.iter_mut().zip(noise).for_each(|(value, noise)| *value += noise);
    }
}

/// Length of [`noise`].
const NOISE: usize = 1 << 16;

/// Normal values of deviation [`JITTER`], always the same ones: drawing as many for each view makes a
/// training step of an MLP a tenth longer.
fn noise() -> &'static [f32] {
    static NOISE_DRAWN: LazyLock<Vec<f32>> = LazyLock::new(|| {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        (0..NOISE).map(|_| JITTER * rng.sample::<f32, _>(StandardNormal)).collect()
    });
    &NOISE_DRAWN
}

/// Multiplies each channel by a random factor near 1.
pub fn scale(segment: &mut [f32], time: usize, rng: &mut impl Rng) {
    for channel in segment.chunks_exact_mut(time) {
        let factor = 1.0 + SCALE * rng.sample::<f32, _>(StandardNormal);
        channel.iter_mut().for_each(|value| *value *= factor);
    }
}

/// Hides random points in time, in all channels at once.
pub fn mask(segment: &mut [f32], time: usize, rng: &mut impl Rng) {
    for at in 0..time {
        if rng.random_bool(MASK) {
            segment.iter_mut().skip(at).step_by(time).for_each(|value| *value = f32::NAN);
        }
    }
}

/// Hides everything outside a random part of at least three quarters.
pub fn crop(segment: &mut [f32], time: usize, rng: &mut impl Rng) {
    let shortest = ((time as f64 * CROP).ceil() as usize).clamp(1, time);
    let length = rng.random_range(shortest..=time);
    let start = rng.random_range(0..=time - length);
    for channel in segment.chunks_exact_mut(time) {
        channel[..start].fill(f32::NAN);
        channel[start + length..].fill(f32::NAN);
    }
}

/// Hides one channel in every second segment that has several.
pub fn drop_channel(segment: &mut [f32], time: usize, rng: &mut impl Rng) {
    let channels = segment.len() / time;
    if channels > 1 && rng.random_bool(0.5) {
        let dropped = rng.random_range(0..channels);
        segment[dropped * time..(dropped + 1) * time].fill(f32::NAN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    const TIME: usize = 40;
    const CHANNELS: usize = 3;

    /// Ones, with one value missing in each channel.
    fn segment() -> Vec<f32> {
        let mut segment = vec![1.0; CHANNELS * TIME];
        segment.iter_mut().skip(7).step_by(TIME).for_each(|value| *value = f32::NAN);
        segment
    }

    fn missing(values: &[f32]) -> usize {
        values.iter().filter(|value| value.is_nan()).count()
    }

    fn rng() -> Pcg64Mcg {
        Pcg64Mcg::seed_from_u64(3)
    }

    #[test]
    fn jitter_moves_every_value_a_little() {
        let mut values = segment();
        jitter(&mut values, &mut rng());
        assert_eq!(missing(&values), CHANNELS);
        let moved: Vec<f32> =
            values.iter().filter(|v| !v.is_nan()).map(|value| value - 1.0).collect();
        assert!(moved.iter().all(|by| *by != 0.0 && by.abs() < 6.0 * JITTER));
        let mean = moved.iter().sum::<f32>() / moved.len() as f32;
        assert!(mean.abs() < 0.05, "{mean}");
    }

    #[test]
    fn scale_keeps_the_shape_of_each_channel() {
        let mut values = segment();
        scale(&mut values, TIME, &mut rng());
        assert_eq!(missing(&values), CHANNELS);
        let factors: Vec<f32> = values.chunks(TIME).map(|channel| channel[0]).collect();
        for (channel, factor) in values.chunks(TIME).zip(&factors) {
            assert!(channel.iter().all(|value| value.is_nan() || value == factor));
        }
        assert!(factors[0] != factors[1] && factors[1] != factors[2]);
    }

    #[test]
    fn mask_hides_the_same_moments_in_all_channels() {
        let mut values = segment();
        mask(&mut values, TIME, &mut rng());
        let hidden = missing(&values[..TIME]);
        assert!((2..TIME / 2).contains(&hidden), "{hidden}");
        for at in 0..TIME {
            let states: Vec<bool> =
                values.iter().skip(at).step_by(TIME).map(|v| v.is_nan()).collect();
            assert!(states.iter().all(|state| *state == states[0]));
        }
    }

    #[test]
    fn crop_leaves_one_piece_of_three_quarters_or_more() {
        let mut rng = rng();
        for _ in 0..100 {
            let mut values = vec![1.0; CHANNELS * TIME];
            crop(&mut values, TIME, &mut rng);
            let kept: Vec<usize> = (0..TIME).filter(|at| !values[*at].is_nan()).collect();
            assert!(kept.len() >= TIME * 3 / 4);
            assert_eq!(kept[kept.len() - 1] - kept[0] + 1, kept.len());
            assert_eq!(missing(&values), CHANNELS * (TIME - kept.len()));
        }
    }

    #[test]
    fn drop_channel_hides_at_most_one_and_never_the_only_one() {
        let mut rng = rng();
        let mut dropped = 0;
        for _ in 0..100 {
            let mut values = vec![1.0; CHANNELS * TIME];
            drop_channel(&mut values, TIME, &mut rng);
            let gone = values.chunks(TIME).filter(|channel| missing(channel) == TIME).count();
            assert!(gone <= 1 && missing(&values) == gone * TIME);
            dropped += gone;
            let mut single = vec![1.0; TIME];
            drop_channel(&mut single, TIME, &mut rng);
            assert_eq!(missing(&single), 0);
        }
        assert!((30..70).contains(&dropped), "{dropped}");
    }

    #[test]
    fn the_same_seed_makes_the_same_views() {
        let all = crate::config::Pairs::default().augment;
        let views: Vec<Vec<u32>> = (0..2)
            .map(|_| {
                let mut values = segment();
                apply(&all, &mut values, CHANNELS, &mut rng());
                values.iter().map(|value| value.to_bits()).collect()
            })
            .collect();
        assert_eq!(views[0], views[1]);
    }
}
