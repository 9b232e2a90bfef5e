//! How a channel moves: the size of its steps at several lags.
//!
//! Level and forecast errors say little of a wave that runs at another frequency, or of a sensor
//! that repeats its last value. The structure function `mean (x(t) - x(t - k))^2` (Kolmogorov
//! 1941) tells both: a faster wave has larger steps at short lags, a slower one smaller steps, a
//! stuck sensor none. Its logarithm is measured by the channel's own centre and spread at each lag.

use serde::{Deserialize, Serialize};

use super::ruler::Ruler;

/// Lags, in samples.
const LAGS: [usize; 5] = [1, 2, 4, 8, 16];
/// Steps smaller than this, in standard deviations of the channel, are none.
const RESOLUTION: f32 = 1e-3;

/// One channel's usual steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Texture {
    usual: [Ruler; LAGS.len()],
}

/// A channel's steps in one segment: the logarithm of their mean square at each lag that the
/// segment has observed pairs of samples for.
pub type Steps = [Option<f32>; LAGS.len()];

impl Texture {
    /// The steps in the newest half of a segment's standardised samples (NaN where missing).
    pub fn steps(samples: &[f32]) -> Steps {
        let recent = &samples[samples.len() / 2..];
        LAGS.map(|lag| {
            if 2 * lag > recent.len() {
                return None;
            }
            let (mut sum, mut pairs) = (0.0, 0);
            for (late, early) in recent[lag..].iter().zip(recent) {
                let step = late - early;
                if !step.is_nan() {
                    sum += step * step;
                    pairs += 1;
                }
            }
            (pairs > 0).then(|| (sum / pairs as f32 + RESOLUTION * RESOLUTION).ln())
        })
    }

    /// The deviation of `steps` from the usual ones at the lag where it is largest, either way.
    pub fn measure(&self, steps: &Steps) -> f32 {
        let at_each = self
            .usual
            .iter()
            .zip(steps)
            .filter_map(|(usual, size)| size.map(|size| usual.measure(size).abs()));
        at_each.fold(0.0, f32::max)
    }

    /// Learns what is usual.
    pub fn learn(&mut self, steps: &Steps) {
        for (usual, size) in self.usual.iter_mut().zip(steps) {
            if let Some(size) = size {
                usual.learn(*size);
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

    fn wave(rng: &mut Pcg64Mcg, frequency: f32) -> Vec<f32> {
        let phase: f32 = rng.random_range(0.0..6.3);
        (0..64)
            .map(|at| {
                let noise: f32 = rng.sample(StandardNormal);
                (at as f32 * frequency + phase).sin() + 0.1 * noise
            })
            .collect()
    }

    fn learned(rng: &mut Pcg64Mcg) -> Texture {
        let mut texture = Texture::default();
        for _ in 0..500 {
            texture.learn(&Texture::steps(&wave(rng, 0.3)));
        }
        texture
    }

    #[test]
    fn another_frequency_and_a_stuck_sensor_stand_out() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let texture = learned(&mut rng);
        let mut of = |frequency: f32| texture.measure(&Texture::steps(&wave(&mut rng, frequency)));
        let usual = (0..200).map(|_| of(0.3)).fold(0.0, f32::max);
        assert!(of(0.7) > 1.5 * usual && of(0.12) > 1.5 * usual, "{usual}");
        assert!(texture.measure(&Texture::steps(&[0.4; 64])) > 3.0 * usual);
    }

    #[test]
    fn the_steps_of_a_ramp_are_its_lags() {
        let ramp: Vec<f32> = (0..64).map(|at| at as f32).collect();
        let steps = Texture::steps(&ramp);
        for (lag, size) in LAGS.iter().zip(steps) {
            assert!((size.unwrap() - 2.0 * (*lag as f32).ln()).abs() < 1e-5);
        }
        assert_eq!(Texture::steps(&ramp[..16])[3..], [None, None]);
    }

    #[test]
    fn missing_samples_leave_out_their_pairs_alone() {
        let mut ramp: Vec<f32> = (0..64).map(|at| at as f32).collect();
        ramp[50] = f32::NAN;
        assert!((Texture::steps(&ramp)[0].unwrap()).abs() < 1e-5);
        assert_eq!(Texture::steps(&[f32::NAN; 64]), [None; 5]);
        assert_eq!(Texture::default().measure(&[None; 5]), 0.0);
    }
}
