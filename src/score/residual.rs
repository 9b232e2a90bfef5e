//! The residual path: a robust one-step forecast per channel, from its own last samples and the
//! other channels' present and last ones.
//!
//! A small embedding does not see a single spike in one channel; a forecast does. And errors that
//! all point one way tell that a channel no longer follows the others. Each channel of a key has a linear filter fitted by recursive least squares with forgetting (Plackett 1950; Haykin,
//! Adaptive Filter Theory), on winsorised errors, so that one fault neither passes unseen nor
//! teaches the filter to expect more.

use serde::{Deserialize, Serialize};

/// Statistics of the errors: their largest size among the new samples, and the size of their recent
/// mean.
pub const KINDS: usize = 2;

/// A channel's own samples that a forecast looks back on.
const LAGS: usize = 4;
/// Most other channels whose present and last samples a forecast uses: the next ones in order.
const OTHERS: usize = 4;
/// Recent errors.
const RECENT: usize = 16;
/// Samples over which filter and usual size forget.
const HORIZON: f32 = 2000.0;
/// Errors beyond this many times the usual one count as this many, for filter and size alike.
const WINSOR: f32 = 3.0;
/// Mean absolute error to standard deviation, for normal errors.
const NORMAL: f32 = 1.253_3;
/// Errors before there is a usual size to measure by.
const KNOWN: f32 = 2.0 * RECENT as f32;
/// Below what `f32` resolves of standardised values, an error is none.
const RESOLUTION: f32 = 1e-4;
/// Variance of a weight before anything is known, and the most it may become where a constant
/// input leaves it undetermined.
const UNKNOWN: f32 = 1.0;
const MOST_UNKNOWN: f32 = 100.0;

/// The forecasts of all channels of a key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecasts {
    channels: Vec<Forecast>,
}

/// One channel's forecast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Forecast {
    /// Own samples, newest first; missing ones as they were forecast.
    history: [f32; LAGS],
    known: usize,
    weights: Vec<f32>,
    /// Inverse of the inputs' weighted second moments, `[inputs, inputs]`.
    inverse: Vec<f32>,
    /// The last errors, in ring order, and how many there are.
    recent: [f32; RECENT],
    errors: u64,
    /// Running mean absolute error, and the number of errors in it.
    usual: f32,
    seen: f32,
}

impl Forecasts {
    /// Takes a standardised segment `[channels, time]` (NaN where missing), of which the `fresh`
    /// last samples are new and follow the previous call's unless `continues` is false. Returns
    /// per channel its statistics, 0 where nothing can be said.
    pub fn push(
        &mut self,
        values: &[f32],
        time: usize,
        fresh: usize,
        continues: bool,
    ) -> Vec<[f32; KINDS]> {
        let count = values.len() / time;
        let inputs = LAGS + 2 * OTHERS.min(count - 1);
        self.channels.resize_with(count, || Forecast::new(inputs));
        let mut found = vec![[0.0; KINDS]; count];
        let mut input = vec![0.0; inputs];
        for (channel, (forecast, found)) in self.channels.iter_mut().zip(&mut found).enumerate() {
            if !continues {
                forecast.known = 0;
            }
            for at in time - fresh.min(time)..time {
                let others = input[LAGS..].as_chunks_mut::<2>().0;
                for (other, [present, last]) in others.iter_mut().enumerate() {
                    let samples = &values[(channel + 1 + other) % count * time..][..time];
                    // A missing value is taken to be the average one.
                    let observed = |at: usize| Some(samples[at]).filter(|v| !v.is_nan());
                    *present = observed(at).unwrap_or(0.0);
                    *last = at.checked_sub(1).and_then(observed).unwrap_or(*present);
                }
                let size = forecast.push(values[channel * time + at], &mut input);
                found[0] = size.max(found[0]);
            }
            found[1] = forecast.drift();
        }
        found
    }
}

impl Forecast {
    /// Expects each sample to be like the one before.
    fn new(inputs: usize) -> Self {
        let mut weights = vec![0.0; inputs];
        weights[0] = 1.0;
        let mut inverse = vec![0.0; inputs * inputs];
        inverse.iter_mut().step_by(inputs + 1).for_each(|value| *value = UNKNOWN);
        Self {
            history: [0.0; LAGS],
            known: 0,
            weights,
            inverse,
            recent: [0.0; RECENT],
            errors: 0,
            usual: 0.0,
            seen: 0.0,
        }
    }

    /// Takes the next sample; `input` holds the other channels' behind room for the own ones.
    /// Returns the size of the error in standard deviations of earlier ones.
    fn push(&mut self, sample: f32, input: &mut [f32]) -> f32 {
        input[..LAGS].copy_from_slice(&self.history);
        let forecast: f32 = input.iter().zip(&self.weights).map(|(x, w)| x * w).sum();
        if self.known < LAGS || sample.is_nan() {
            let filled = match (sample.is_nan(), self.known) {
                (false, _) => sample,
                (true, LAGS) => forecast,
                (true, _) => self.history[0],
            };
            self.remember(filled);
            return 0.0;
        }
        let error = sample - forecast;
        let usual = self.usual.max(RESOLUTION);
        let settled = self.seen >= KNOWN;
        let bound = if settled { WINSOR * NORMAL * usual } else { f32::INFINITY };
        let bounded = error.clamp(-bound, bound);
        self.fit(input, bounded);
        self.recent[(self.errors % RECENT as u64) as usize] = error;
        self.errors += 1;
        self.seen = (self.seen + 1.0).min(HORIZON);
        self.usual += (bounded.abs() - self.usual) / self.seen;
        self.remember(sample);
        if settled { error.abs() / (NORMAL * usual) } else { 0.0 }
    }

    /// One step of recursive least squares.
    fn fit(&mut self, input: &[f32], error: f32) {
        let sound = match input.len() {
            4 => fit::<4>(&mut self.weights, &mut self.inverse, input, error),
            6 => fit::<6>(&mut self.weights, &mut self.inverse, input, error),
            8 => fit::<8>(&mut self.weights, &mut self.inverse, input, error),
            10 => fit::<10>(&mut self.weights, &mut self.inverse, input, error),
            12 => fit::<12>(&mut self.weights, &mut self.inverse, input, error),
            inputs => unreachable!("{inputs} inputs, not {LAGS} and at most {OTHERS} times 2"),
        };
        if !sound {
            // Rounding has spoiled it: begin anew.
            let fresh = Self::new(input.len());
            (self.weights, self.inverse) = (fresh.weights, fresh.inverse);
        }
    }

    /// The size of the recent errors' mean, in its standard deviations.
    fn drift(&self) -> f32 {
        if self.seen < KNOWN || self.errors < RECENT as u64 {
            return 0.0;
        }
        let mean = self.recent.iter().sum::<f32>() / RECENT as f32;
        mean.abs() * (RECENT as f32).sqrt() / (NORMAL * self.usual.max(RESOLUTION))
    }

    fn remember(&mut self, sample: f32) {
        self.history.rotate_right(1);
        self.history[0] = sample;
        self.known = (self.known + 1).min(LAGS);
    }
}

/// One step of recursive least squares, for a number of inputs that the compiler can unroll.
/// `inverse` is `[inputs, inputs]`. Returns whether all is still sound.
fn fit<const INPUTS: usize>(
    weights: &mut [f32],
    inverse: &mut [f32],
    input: &[f32],
    error: f32,
) -> bool {
    let forgetting = 1.0 - 1.0 / HORIZON;
    let (rows, _) = inverse.as_chunks_mut::<INPUTS>();
    let mut gain = [0.0; INPUTS];
    // It is symmetric: its rows are its columns.
    for (row, x) in rows.iter().zip(input) {
        for (gain, p) in gain.iter_mut().zip(row) {
            *gain += p * x;
        }
    }
    let power: f32 = gain.iter().zip(input).map(|(gain, x)| gain * x).sum();
    let share = 1.0 / (forgetting + power);
    for (weight, gain) in weights.iter_mut().zip(gain) {
        *weight += share * gain * error;
    }
    // Kept from growing where the inputs say nothing.
    let mut largest = 0.0_f32;
    for (at, row) in rows.iter().enumerate() {
        largest = largest.max(row[at]);
    }
    let growth = if largest < MOST_UNKNOWN { 1.0 / forgetting } else { 1.0 };
    let shared = gain.map(|gain| share * gain);
    for (row, a) in rows.iter_mut().zip(gain) {
        for (value, b) in row.iter_mut().zip(shared) {
            *value = growth * (*value - a * b);
        }
    }
    let positive = rows.iter().enumerate().all(|(at, row)| row[at] > 0.0);
    positive && weights.iter().all(|weight| weight.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    const TIME: usize = 32;

    /// Two channels that follow one wave each and a load of both, with noise; time runs on.
    struct Machine {
        rng: Pcg64Mcg,
        at: usize,
        load: f32,
    }

    impl Machine {
        fn new() -> Self {
            Self { rng: Pcg64Mcg::seed_from_u64(1), at: 0, load: 0.0 }
        }

        fn segment(&mut self) -> Vec<f32> {
            let mut values = vec![0.0; 2 * TIME];
            for time in 0..TIME {
                let mut normal = || self.rng.sample::<f32, _>(StandardNormal);
                self.load = 0.95 * self.load + 0.3 * normal();
                values[time] = (self.at as f32 * 0.3).sin() + self.load + 0.05 * normal();
                values[TIME + time] = (self.at as f32 * 0.2).sin() - self.load + 0.05 * normal();
                self.at += 1;
            }
            values
        }

        fn learned(&mut self) -> Forecasts {
            let mut forecasts = Forecasts::default();
            for _ in 0..100 {
                forecasts.push(&self.segment(), TIME, TIME, true);
            }
            forecasts
        }
    }

    #[test]
    fn normal_samples_are_usual_and_a_spike_stands_out_in_its_channel() {
        let mut machine = Machine::new();
        let mut forecasts = machine.learned();
        let mut segment = machine.segment();
        let usual = forecasts.clone().push(&segment, TIME, TIME, true);
        assert!(usual.iter().all(|found| found[0] < 4.5 && found[1] < 4.0));
        segment[TIME - 1] += 2.0;
        let spike = forecasts.push(&segment, TIME, TIME, true);
        assert!(spike[0][0] > 6.0 && spike[0][0] > spike[1][0], "{spike:?}");
    }

    #[test]
    fn the_present_of_the_other_channels_is_used() {
        let mut machine = Machine::new();
        let forecasts = machine.learned();
        // The load's own step is 0.3: without the other channel no forecast errs by less.
        assert!(forecasts.channels[0].usual < 0.2, "{}", forecasts.channels[0].usual);
    }

    #[test]
    fn a_channel_that_leaves_the_others_has_errors_of_one_sign() {
        let mut machine = Machine::new();
        let mut forecasts = machine.learned();
        let normal = machine.segment();
        let usual = forecasts.clone().push(&normal, TIME, TIME, true);
        let mut drifting = normal.clone();
        drifting[..TIME].iter_mut().zip(0..).for_each(|(value, at)| *value += 0.2 * at as f32);
        let loose = forecasts.push(&drifting, TIME, TIME, true);
        assert!(loose[0][1] > 3.0 * usual[0][1].max(1.0), "{loose:?} {usual:?}");
    }

    #[test]
    fn missing_samples_gaps_and_constants_make_no_errors() {
        let mut machine = Machine::new();
        let mut forecasts = machine.learned();
        let missing = forecasts.push(&[f32::NAN; 2 * TIME], TIME, 4, true);
        assert!(missing.iter().flatten().all(|value| value.is_finite()));
        assert_eq!(missing[0][0], 0.0);
        let after_gap = forecasts.push(&[50.0; 2 * TIME], TIME, LAGS, false);
        assert_eq!(after_gap[0][0], 0.0);
        let mut constant = Forecasts::default();
        for _ in 0..2000 {
            let found = constant.push(&[1.0; 2 * TIME], TIME, TIME, true);
            assert!(found.iter().flatten().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn it_stays_sound_over_a_million_samples_of_correlated_channels() {
        let mut machine = Machine::new();
        let mut forecasts = machine.learned();
        let early = forecasts.channels[0].usual;
        for _ in 0..31_250 {
            forecasts.push(&machine.segment(), TIME, TIME, true);
        }
        let late = forecasts.channels[0].usual;
        assert!((0.7..1.4).contains(&(late / early)), "{early} {late}");
    }
}
