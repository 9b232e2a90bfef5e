//! The signal of one machine.
//!
//! Each channel is, in units of its own spread, `coupling · load + seasons + drift + noise`: the
//! load is the machine's and ties its channels together, the rest is the channel's own.

use std::f64::consts::{SQRT_2, TAU};
use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng};
use rand_distr::StandardNormal;
use rand_pcg::Pcg64Mcg;

use super::fault::{Fault, FaultKind, FaultPlan};
use crate::config;

/// Periods in samples of a channel's seasons, and their amplitudes.
const SEASONS: [([f64; 2], [f64; 2]); 3] =
    [([12.0, 40.0], [0.3, 0.7]), ([40.0, 120.0], [0.2, 0.6]), ([120.0, 400.0], [0.1, 0.5])];
/// Period in samples of the load's season.
const LOAD_PERIOD: [f64; 2] = [120.0, 400.0];
/// Samples in which the wandering part of the load forgets where it was.
const LOAD_MEMORY: f64 = 40.0;
/// The same of a load that one channel follows alone: it parts from the machine's within a fault.
const STRAY_MEMORY: f64 = 15.0;
/// Share of the load in a channel, of either sign.
const COUPLING: [f64; 2] = [0.6, 1.0];
/// Standard deviation of a channel's noise.
const NOISE: [f64; 2] = [0.12, 0.2];
/// One sample in 64 has noise wider by this factor.
const HEAVY: f64 = 1.6;
const HEAVY_MASK: u32 = 63;
/// Standard deviation of a channel's drift, and samples in which it forgets.
const DRIFT: f64 = 0.15;
const DRIFT_MEMORY: f64 = 2000.0;

/// One machine: what it measures, and what goes wrong with it.
pub(super) struct Machine {
    key: Arc<str>,
    rng: Pcg64Mcg,
    load_season: Wave,
    load_walk: Walk,
    channels: Vec<Channel>,
    sample: u64,
    plan: FaultPlan,
    fault: Option<ActiveFault>,
}

struct Channel {
    level: f64,
    spread: f64,
    coupling: f64,
    noise: f64,
    seasons: [Wave; 3],
    drift: Walk,
    last: f32,
}

/// `amplitude · sin(phase)`, turned by one angle a sample: a rotation costs four products where a
/// sine costs a hundred, and is exact to 1e-4 after 1e12 samples.
#[derive(Clone)]
struct Wave {
    sin: f64,
    cos: f64,
    angle: f64,
    turn: (f64, f64),
}

/// A mean-reverting random walk (first-order autoregressive).
struct Walk {
    value: f64,
    keep: f64,
    step: f64,
}

struct ActiveFault {
    channel: usize,
    kind: FaultKind,
    size: f64,
    /// The first sample that is good again.
    until: u64,
    /// Changed frequency: the seasons that stand in for the channel's.
    seasons: [Wave; 3],
    /// Lost correlation: the load that stands in for the machine's.
    stray: Walk,
}

impl Machine {
    /// Machine number `index` of a plant.
    pub fn new(
        config: &config::GeneratorSource,
        index: usize,
        key: Arc<str>,
        channels: &[String],
    ) -> Self {
        let mut rng = machine_rng(config.seed, index, 0);
        Self {
            key,
            load_season: Wave::draw(LOAD_PERIOD, [SQRT_2, SQRT_2], &mut rng),
            load_walk: Walk::new(1.0, LOAD_MEMORY, &mut rng),
            channels: channels.iter().map(|name| Channel::draw(name, &mut rng)).collect(),
            rng,
            sample: 0,
            plan: FaultPlan::new(config, channels.len(), machine_rng(config.seed, index, 1)),
            fault: None,
        }
    }

    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Number of the next sample.
    pub fn sample(&self) -> u64 {
        self.sample
    }

    /// Makes the next sample: one value per channel. `time_of` gives a sample's event time, for
    /// the fault that begins here, if one does.
    pub fn step(&mut self, values: &mut [f32], time_of: impl Fn(u64) -> i64) -> Option<Fault> {
        let load = (self.load_season.step() + self.load_walk.step(&mut self.rng)) / SQRT_2;
        if self.fault.as_ref().is_some_and(|fault| fault.until <= self.sample) {
            self.fault = None;
        }
        let begun = self.begin_fault(load, time_of);
        for (channel, value) in self.channels.iter_mut().zip(values.iter_mut()) {
            *value = channel.step(load, &mut self.rng);
        }
        if let Some(fault) = &mut self.fault {
            let value = &mut values[fault.channel];
            *value = fault.distort(&self.channels[fault.channel], *value, load, self.plan.rng());
        }
        for (channel, value) in self.channels.iter_mut().zip(values.iter()) {
            channel.last = *value;
        }
        self.sample += 1;
        begun
    }

    fn begin_fault(&mut self, load: f64, time_of: impl Fn(u64) -> i64) -> Option<Fault> {
        let onset = self.plan.onset(self.sample)?;
        let channel = &self.channels[onset.channel];
        let until = self.sample + onset.samples;
        self.fault = Some(ActiveFault {
            channel: onset.channel,
            kind: onset.kind,
            size: onset.size,
            until,
            seasons: channel.seasons.each_ref().map(|season| season.at_frequency(onset.size)),
            stray: Walk::with_memory(load, 1.0, STRAY_MEMORY),
        });
        Some(Fault {
            key: Arc::clone(&self.key),
            channel: onset.channel,
            kind: onset.kind,
            from: time_of(self.sample),
            to: time_of(until - 1),
            size: onset.size as f32,
        })
    }
}

impl Channel {
    fn draw(name: &str, rng: &mut Pcg64Mcg) -> Self {
        let (level, spread) = scale_of(name, rng);
        let coupling = uniform(COUPLING, rng);
        Self {
            level,
            spread,
            coupling: if rng.random_bool(0.5) { coupling } else { -coupling },
            noise: uniform(NOISE, rng),
            seasons: SEASONS.map(|(period, amplitude)| Wave::draw(period, amplitude, rng)),
            drift: Walk::new(DRIFT, DRIFT_MEMORY, rng),
            last: level as f32,
        }
    }

    fn step(&mut self, load: f64, rng: &mut Pcg64Mcg) -> f32 {
        let seasons: f64 = self.seasons.iter_mut().map(Wave::step).sum();
        let width = if rng.next_u32() & HEAVY_MASK == 0 { HEAVY } else { 1.0 };
        let noise = self.noise * width * rng.sample::<f64, _>(StandardNormal);
        let strangeness = self.coupling * load + seasons + self.drift.step(rng) + noise;
        (self.level + self.spread * strangeness) as f32
    }

    /// Standard deviation of the channel, in units of its spread.
    fn deviation(&self) -> f64 {
        let seasons: f64 = self.seasons.iter().map(|season| season.amplitude().powi(2) / 2.0).sum();
        (self.coupling.powi(2) + seasons + DRIFT.powi(2) + self.noise.powi(2)).sqrt()
    }
}

impl ActiveFault {
    /// What the channel shows instead of `good`, the value it would have had.
    fn distort(&mut self, channel: &Channel, good: f32, load: f64, rng: &mut Pcg64Mcg) -> f32 {
        let moved = |strangeness: f64| good + (channel.spread * strangeness) as f32;
        match self.kind {
            FaultKind::Spike => moved(self.size * channel.noise),
            FaultKind::LevelShift => moved(self.size * channel.deviation()),
            FaultKind::ChangedFrequency => {
                let good_seasons: f64 = channel.seasons.iter().map(|season| season.sin).sum();
                let seasons: f64 = self.seasons.iter_mut().map(Wave::step).sum();
                moved(seasons - good_seasons)
            }
            FaultKind::StuckSensor => channel.last,
            FaultKind::LostCorrelation => moved(channel.coupling * (self.stray.step(rng) - load)),
        }
    }
}

impl Wave {
    fn draw(period: [f64; 2], amplitude: [f64; 2], rng: &mut Pcg64Mcg) -> Self {
        let angle = TAU / uniform(period, rng);
        let phase = uniform([0.0, TAU], rng);
        let amplitude = uniform(amplitude, rng);
        Self {
            sin: amplitude * phase.sin(),
            cos: amplitude * phase.cos(),
            angle,
            turn: angle.sin_cos(),
        }
    }

    /// The wave from here on, `factor` times as fast.
    fn at_frequency(&self, factor: f64) -> Self {
        let angle = self.angle * factor;
        Self { angle, turn: angle.sin_cos(), ..*self }
    }

    fn amplitude(&self) -> f64 {
        self.sin.hypot(self.cos)
    }

    fn step(&mut self) -> f64 {
        let (sin, cos) = self.turn;
        (self.sin, self.cos) = (self.sin * cos + self.cos * sin, self.cos * cos - self.sin * sin);
        self.sin
    }
}

impl Walk {
    /// Begins at a draw from its own long run.
    fn new(deviation: f64, memory: f64, rng: &mut Pcg64Mcg) -> Self {
        let value = deviation * rng.sample::<f64, _>(StandardNormal);
        Self::with_memory(value, deviation, memory)
    }

    fn with_memory(value: f64, deviation: f64, memory: f64) -> Self {
        let keep = (-memory.recip()).exp();
        Self { value, keep, step: deviation * (1.0 - keep * keep).sqrt() }
    }

    fn step(&mut self, rng: &mut Pcg64Mcg) -> f64 {
        self.value = self.keep * self.value + self.step * rng.sample::<f64, _>(StandardNormal);
        self.value
    }
}

/// Level and spread of a channel, in its usual unit where its name tells one.
fn scale_of(name: &str, rng: &mut Pcg64Mcg) -> (f64, f64) {
    let (level, spread) = match name.to_ascii_lowercase().as_str() {
        "temperature" => (65.0, 6.0), // °C
        "vibration" => (2.8, 0.4),    // mm/s
        "pressure" => (5.2, 0.5),     // bar
        "current" => (14.0, 1.8),     // A
        "speed" => (1480.0, 45.0),    // 1/min
        _ => {
            let level = uniform([10.0, 100.0], rng);
            (level, level * uniform([0.05, 0.15], rng))
        }
    };
    (level * uniform([0.9, 1.1], rng), spread * uniform([0.8, 1.2], rng))
}

fn uniform([low, high]: [f64; 2], rng: &mut Pcg64Mcg) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// A generator of its own for each machine and purpose.
fn machine_rng(seed: u64, index: usize, purpose: u64) -> Pcg64Mcg {
    const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
    let stream = (index as u64).wrapping_mul(2).wrapping_add(purpose + 1);
    Pcg64Mcg::seed_from_u64(seed.wrapping_add(stream.wrapping_mul(GOLDEN_RATIO)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TimeSpan;

    const SAMPLES: usize = 60_000;

    fn channels(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("channel-{index}")).collect()
    }

    /// `[time][channel]` and the faults of one machine.
    fn run(config: &config::GeneratorSource, count: usize) -> (Vec<Vec<f32>>, Vec<Fault>) {
        let mut machine = Machine::new(config, 0, "m".into(), &channels(count));
        let mut faults = Vec::new();
        let values = (0..SAMPLES)
            .map(|_| {
                let mut row = vec![0.0; count];
                faults.extend(machine.step(&mut row, |sample| sample as i64));
                row
            })
            .collect();
        (values, faults)
    }

    fn faulty() -> config::GeneratorSource {
        config::GeneratorSource {
            fault_every: TimeSpan::from_secs(300),
            fault_after: TimeSpan::from_secs(300),
            ..Default::default()
        }
    }

    fn without_faults() -> config::GeneratorSource {
        config::GeneratorSource { fault_every: TimeSpan::default(), ..faulty() }
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn correlation(one: &[f64], other: &[f64]) -> f64 {
        let (mean_one, mean_other) = (mean(one), mean(other));
        let products: Vec<f64> =
            one.iter().zip(other).map(|(a, b)| (a - mean_one) * (b - mean_other)).collect();
        let squares = |values: &[f64], mean: f64| -> f64 {
            values.iter().map(|value| (value - mean).powi(2)).sum()
        };
        products.iter().sum::<f64>() / (squares(one, mean_one) * squares(other, mean_other)).sqrt()
    }

    fn column(values: &[Vec<f32>], channel: usize) -> Vec<f64> {
        values.iter().map(|row| f64::from(row[channel])).collect()
    }

    #[test]
    fn a_fault_touches_its_own_channel_and_time_and_nothing_else() {
        let (values, faults) = run(&faulty(), 3);
        let (good, none) = run(&without_faults(), 3);

        assert!(none.is_empty());
        assert!(faults.len() > 100);
        let covered = |time: i64, channel: usize| {
            faults.iter().any(|f| f.channel == channel && (f.from..=f.to).contains(&time))
        };
        for (time, (row, good_row)) in values.iter().zip(&good).enumerate() {
            for channel in 0..3 {
                if !covered(time as i64, channel) {
                    assert_eq!(row[channel], good_row[channel], "at {time} in {channel}");
                }
            }
        }
    }

    #[test]
    fn each_kind_of_fault_does_what_its_name_says() {
        let (values, faults) = run(&faulty(), 3);
        let (good, _) = run(&without_faults(), 3);
        let machine = Machine::new(&faulty(), 0, "m".into(), &channels(3));

        for fault in faults.iter().filter(|fault| (fault.to as usize) < SAMPLES) {
            let channel = &machine.channels[fault.channel];
            let span = fault.from as usize..=fault.to as usize;
            let shown: Vec<f64> = column(&values[span.clone()], fault.channel);
            let hidden = column(&good[span], fault.channel);
            let off: Vec<f64> =
                shown.iter().zip(&hidden).map(|(a, b)| (a - b) / channel.spread).collect();
            let within = |expected: f64| off.iter().all(|off| (off - expected).abs() < 1e-3);
            let size = f64::from(fault.size);
            match fault.kind {
                FaultKind::Spike => assert!(within(size * channel.noise), "{fault:?} {off:?}"),
                FaultKind::LevelShift => {
                    assert!(within(size * channel.deviation()), "{fault:?} {off:?}");
                }
                FaultKind::StuckSensor => {
                    let before = f64::from(values[fault.from as usize - 1][fault.channel]);
                    assert!(shown.iter().all(|value| *value == before), "{fault:?}");
                }
                FaultKind::ChangedFrequency | FaultKind::LostCorrelation => {
                    let largest = off.iter().fold(0.0_f64, |most, off| most.max(off.abs()));
                    assert!(off[0].abs() < 0.6, "begins where the channel was: {fault:?} {off:?}");
                    assert!(largest > 0.3, "and leaves it: {fault:?} {off:?}");
                }
            }
        }
    }

    #[test]
    fn a_channel_has_the_deviation_that_level_shifts_are_measured_in() {
        let (values, _) = run(&without_faults(), 2);
        let machine = Machine::new(&without_faults(), 0, "m".into(), &channels(2));

        for (index, channel) in machine.channels.iter().enumerate() {
            let column = column(&values, index);
            let center = mean(&column);
            let squares: Vec<f64> = column.iter().map(|value| (value - center).powi(2)).collect();
            let ratio = mean(&squares).sqrt() / channel.spread / channel.deviation();
            assert!((ratio - 1.0).abs() < 0.1, "{ratio}");
        }
    }

    #[test]
    fn the_shared_load_correlates_the_channels_of_a_machine_only() {
        let (values, _) = run(&without_faults(), 2);
        let mut other = Machine::new(&without_faults(), 1, "n".into(), &channels(2));
        let stranger: Vec<f64> = (0..SAMPLES)
            .map(|_| {
                let mut row = [0.0; 2];
                other.step(&mut row, |_| 0);
                f64::from(row[0])
            })
            .collect();

        assert!(correlation(&column(&values, 0), &column(&values, 1)).abs() > 0.3);
        assert!(correlation(&column(&values, 0), &stranger).abs() < 0.1);
    }

    #[test]
    fn a_wave_turns_once_a_period_and_keeps_its_amplitude() {
        let mut wave = Wave::draw([50.0, 50.0], [0.5, 0.5], &mut machine_rng(1, 0, 0));
        let first = wave.step();
        for _ in 0..50 * 100_000 - 1 {
            wave.step();
        }

        assert!((wave.step() - first).abs() < 1e-6);
        assert!((wave.amplitude() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn the_same_seed_makes_the_same_machine_and_another_seed_another() {
        let (one, _) = run(&faulty(), 1);
        let (same, _) = run(&faulty(), 1);
        let (other, _) = run(&config::GeneratorSource { seed: 8, ..faulty() }, 1);

        assert_eq!(one, same);
        assert_ne!(one, other);
    }
}
