//! The residual path: a robust one-step forecast per channel.
//!
//! A small embedding does not see a single spike in one channel; a forecast of the next sample
//! from the last few does. Each channel of a key has a linear filter, adapted by normalised least
//! mean squares (Widrow & Hoff 1960) on winsorised errors, so that one spike neither passes
//! unseen nor teaches the filter to expect more.

use serde::{Deserialize, Serialize};

/// Samples that a forecast looks back.
const TAPS: usize = 8;
/// Step of the adaptation, below 2 for stability.
const RATE: f32 = 0.02;
/// Errors beyond this many scales count as this many, for filter and scale alike.
const WINSOR: f32 = 3.0;
/// Samples over which the scale of the errors forgets.
const HORIZON: f32 = 2000.0;
/// Mean absolute error to standard deviation, for normal errors.
const NORMAL: f32 = 1.253_3;

/// One channel's forecast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecaster {
    /// Newest first.
    history: [f32; TAPS],
    weights: [f32; TAPS],
    known: usize,
    /// Running mean absolute error.
    error: f32,
    errors: f32,
}

impl Default for Forecaster {
    /// Expects each sample to be like the one before.
    fn default() -> Self {
        let mut weights = [0.0; TAPS];
        weights[0] = 1.0;
        Self { history: [0.0; TAPS], weights, known: 0, error: 0.0, errors: 0.0 }
    }
}

impl Forecaster {
    /// Takes the next sample; returns the size of its forecast error in standard deviations of
    /// earlier errors, 0 where there are none yet. A missing sample (NaN) has no error and is
    /// filled in by its forecast.
    pub fn push(&mut self, sample: f32) -> f32 {
        let forecast = match self.known {
            TAPS => self.history.iter().zip(&self.weights).map(|(x, w)| x * w).sum(),
            _ => self.history[0],
        };
        if sample.is_nan() {
            self.remember(forecast);
            return 0.0;
        }
        let mut size = 0.0;
        if self.known > 0 {
            let error = sample - forecast;
            // Below what `f32` resolves of standardised values, an error is none.
            let scale = NORMAL * self.error.max(1e-4);
            size = if self.errors > 0.0 { error.abs() / scale } else { 0.0 };
            let bounded = match self.errors < TAPS as f32 {
                true => error,
                false => error.clamp(-WINSOR * scale, WINSOR * scale),
            };
            if self.known == TAPS {
                let power: f32 = self.history.iter().map(|x| x * x).sum();
                let step = RATE * bounded / (power + 1e-2);
                for (weight, x) in self.weights.iter_mut().zip(&self.history) {
                    *weight += step * x;
                }
            }
            self.errors = (self.errors + 1.0).min(HORIZON);
            self.error += (bounded.abs() - self.error) / self.errors;
        }
        self.remember(sample);
        size
    }

    /// Forgets the samples, after a gap, but not what was learned from them.
    pub fn restart(&mut self) {
        self.known = 0;
    }

    fn remember(&mut self, sample: f32) {
        self.history.rotate_right(1);
        self.history[0] = sample;
        self.known = (self.known + 1).min(TAPS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    fn wave(rng: &mut Pcg64Mcg, at: usize) -> f32 {
        (at as f32 * 0.3).sin() + 0.05 * rng.sample::<f32, _>(StandardNormal)
    }

    #[test]
    fn normal_samples_have_errors_of_about_one_and_a_spike_stands_out() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut forecaster = Forecaster::default();
        let sizes: Vec<f32> = (0..5000).map(|at| forecaster.push(wave(&mut rng, at))).collect();
        let late = &sizes[3000..];
        let mean = late.iter().sum::<f32>() / late.len() as f32;
        assert!((0.5..1.1).contains(&mean), "{mean}");
        let spike = forecaster.push(wave(&mut rng, 5000) + 1.5);
        assert!(spike > 10.0, "{spike}");
    }

    #[test]
    fn a_learned_filter_beats_persistence_on_a_wave() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut forecaster = Forecaster::default();
        for at in 0..5000 {
            forecaster.push(wave(&mut rng, at));
        }
        // Persistence errs by the wave's own step, 0.3 * 2 / pi on average, and more.
        assert!(forecaster.error < 0.12, "{}", forecaster.error);
    }

    #[test]
    fn one_spike_does_not_widen_what_is_normal() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut forecaster = Forecaster::default();
        for at in 0..5000 {
            forecaster.push(wave(&mut rng, at));
        }
        let before = forecaster.error;
        forecaster.push(1e6);
        assert!(forecaster.error < 1.01 * before);
    }

    #[test]
    fn missing_samples_and_gaps_make_no_errors() {
        let mut forecaster = Forecaster::default();
        for at in 0..100 {
            forecaster.push((at % 2) as f32);
        }
        assert_eq!(forecaster.push(f32::NAN), 0.0);
        forecaster.restart();
        assert_eq!(forecaster.push(1000.0), 0.0);
        assert!(forecaster.push(1000.0).is_finite());
    }
}
