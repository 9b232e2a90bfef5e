//! How a channel moves: the size of its steps at several lags.
//!
//! Level and forecast errors say little of a wave that runs at another frequency, or of a sensor
//! that repeats its last value. The structure function `mean (x(t) - x(t - k))^2` (Kolmogorov
//! 1941) tells both: a faster wave has larger steps at short lags, a slower one smaller steps, a
//! stuck sensor none. Its logarithm is measured by the channel's own centre and spread at each lag.

use pulp::{Arch, Scalar, Simd, WithSimd};
use serde::{Deserialize, Serialize};

use super::lanes::{Group, Lanes, Samples, clear};
use super::ruler::Rulers;

/// Lags, in samples.
const LAGS: [usize; 5] = [1, 2, 4, 8, 16];
/// Steps smaller than this, in standard deviations of the channel, are none.
const RESOLUTION: f32 = 1e-3;
/// Rows of a ruler.
const ROWS: usize = Rulers::<Scalar>::ROWS;

/// The usual steps of a key's channels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Texture {
    /// Per lag, the rows of [`Rulers`]: `[lags x rows, channels]`.
    usual: Vec<f32>,
}

impl Texture {
    /// Takes the steps in the newest half of standardised `samples` (NaN where missing). Writes per
    /// channel their deviation from the usual ones at the lag where it is largest, either way, and
    /// learns what is usual.
    pub fn push(&mut self, samples: &Samples, found: &mut Vec<f32>) {
        let channels = samples.channels();
        found.clear();
        found.resize(channels, 0.0);
        self.usual.resize(LAGS.len() * ROWS * channels, 0.0);
        Arch::new().dispatch(Push { usual: &mut self.usual, samples, found });
    }

    /// Forgets a channel's usual steps.
    pub fn begin_anew(&mut self, channel: usize, channels: usize) {
        clear(&mut self.usual, channel, channels);
    }
}

struct Push<'a> {
    usual: &'a mut [f32],
    samples: &'a Samples,
    found: &'a mut [f32],
}

impl WithSimd for Push<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for group in Group::all(simd, self.samples.channels()) {
            let mut largest = group.splat(0.0);
            for (at, lag) in LAGS.into_iter().enumerate() {
                if let Some(size) = step_size(self.samples, lag, group) {
                    let mut usual = Rulers::load(group, self.usual, at * ROWS);
                    // Where there is none, it is NaN: the smaller of it and another is the other.
                    largest = usual.measure(size).abs().max(largest);
                    usual.learn(size);
                    usual.store(group, self.usual, at * ROWS);
                }
            }
            largest.store(&mut self.found[group.range()]);
        }
    }
}

/// The logarithm of the mean square of steps over `lag` in the newest half of `samples`, NaN where
/// there are none; `None` where the half is too short.
#[inline(always)]
fn step_size<S: Simd>(samples: &Samples, lag: usize, group: Group<S>) -> Option<Lanes<S>> {
    let (first, time) = (samples.time() / 2, samples.time());
    if 2 * lag > time - first {
        return None;
    }
    let (nothing, one) = (group.splat(0.0), group.splat(1.0));
    let (mut sum, mut pairs) = (nothing, nothing);
    for at in first + lag..time {
        let step = group.at(samples, at) - group.at(samples, at - lag);
        let known = step.known();
        let step = known.choose(step, nothing);
        sum = step.mul_add(step, sum);
        pairs = pairs + known.choose(one, nothing);
    }
    let size = (sum / pairs + group.splat(RESOLUTION * RESOLUTION)).ln();
    let enough = group.splat((0.25 * (time - first - lag) as f32).max(1.0));
    Some(pairs.reaches(enough).choose(size, group.splat(f32::NAN)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    fn wave(rng: &mut Pcg64Mcg, frequency: f32) -> Vec<f32> {
        let phase: f32 = rng.random_range(0.0..6.3);
        (0..64)
            .map(|at| {
                let noise: f32 = rng.sample(StandardNormal);
                (at as f32 * frequency + phase).sin() + 0.1 * noise
            })
            .collect()
    }

    fn steps(segment: &[f32]) -> [Option<f32>; LAGS.len()] {
        struct Sizes<'a>(&'a Samples);

        impl WithSimd for Sizes<'_> {
            type Output = [Option<f32>; LAGS.len()];

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
                let group = Group::all(simd, 1).next().expect("one channel");
                let size = |lag| step_size(self.0, lag, group).map(|size| size.array()[0]);
                LAGS.map(|lag| size(lag).filter(|size| !size.is_nan()))
            }
        }
        Arch::new().dispatch(Sizes(&Samples::new(segment, segment.len())))
    }

    fn measured(texture: &mut Texture, segment: &[f32]) -> f32 {
        let mut found = Vec::new();
        texture.push(&Samples::new(segment, segment.len()), &mut found);
        found[0]
    }

    fn learned(rng: &mut Pcg64Mcg) -> Texture {
        let mut texture = Texture::default();
        for _ in 0..500 {
            measured(&mut texture, &wave(rng, 0.3));
        }
        texture
    }

    #[test]
    fn another_frequency_and_a_stuck_sensor_stand_out() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let texture = learned(&mut rng);
        let mut of = |frequency: f32| measured(&mut texture.clone(), &wave(&mut rng, frequency));
        let usual = (0..200).map(|_| of(0.3)).fold(0.0, f32::max);
        assert!(of(0.7) > 1.5 * usual && of(0.12) > 1.5 * usual, "{usual}");
        assert!(measured(&mut texture.clone(), &[0.4; 64]) > 3.0 * usual);
    }

    #[test]
    fn the_steps_of_a_ramp_are_its_lags() {
        let ramp: Vec<f32> = (0..64).map(|at| at as f32).collect();
        for (lag, size) in LAGS.iter().zip(steps(&ramp)) {
            assert!((size.unwrap() - 2.0 * (*lag as f32).ln()).abs() < 1e-5);
        }
        assert_eq!(steps(&ramp[..16])[3..], [None, None]);
    }

    #[test]
    fn missing_samples_leave_out_their_pairs_alone() {
        let mut ramp: Vec<f32> = (0..64).map(|at| at as f32).collect();
        ramp[50] = f32::NAN;
        assert!((steps(&ramp)[0].unwrap()).abs() < 1e-5);
        assert_eq!(steps(&[f32::NAN; 64]), [None; 5]);
        let mut texture = Texture::default();
        assert_eq!(measured(&mut texture, &[f32::NAN; 64]), 0.0);
        assert!(texture.usual.iter().all(|value| *value == 0.0));
    }

    #[test]
    fn a_channel_that_begins_anew_has_no_usual_steps_and_others_have() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut texture = Texture::default();
        let mut push = |texture: &mut Texture| {
            let segment = [wave(&mut rng, 0.3), wave(&mut rng, 0.5)].concat();
            let mut found = Vec::new();
            texture.push(&Samples::new(&segment, 64), &mut found);
            found
        };
        for _ in 0..50 {
            push(&mut texture);
        }
        texture.begin_anew(1, 2);
        let found = push(&mut texture);
        assert!(found[0] > 0.0 && found[1] == 0.0, "{found:?}");
    }

    #[test]
    fn a_few_steps_say_nothing_of_their_size() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut texture = learned(&mut rng);
        // One step of a lag of 1, and one of 16.
        let mut segment = wave(&mut rng, 0.9);
        for at in (0..64).filter(|at| ![40, 41, 57].contains(at)) {
            segment[at] = f32::NAN;
        }
        assert_eq!(measured(&mut texture.clone(), &segment), 0.0);
        let mut segment = wave(&mut rng, 0.9);
        segment.iter_mut().step_by(3).for_each(|value| *value = f32::NAN);
        assert!(measured(&mut texture, &segment) > 0.0);
    }
}
