//! How the promise `scores.false_alarms` holds on streams without faults, and how soon it holds
//! again after a lasting change.
//!
//! ```sh
//! cargo run --release --example promise -- pipelines/sensor.toml 1000000 [KIND] [key=value ...]
//! ```
//!
//! Streams are those of a few machines with five channels, a sample a second, all of it drawn
//! without any fault:
//!
//! | kind | what the noise is |
//! | --- | --- |
//! | `plant` | that of the generator: seasonal, coupled channels |
//! | `gaussian` | autoregressive, normal, correlated between channels |
//! | `heavy` | the same of Student's t with three degrees of freedom |
//! | `drift` | `plant`, and every channel wanders by a standard deviation of its noise an hour |
//! | `bursts` | `gaussian`, its size itself a slow process (stochastic volatility) |
//! | `regime` | `gaussian`, each machine once for good at another level and twice as noisy |
//! | `fleet` | machines of `plant`, `gaussian`, `heavy` and `bursts` side by side |
//! | `modes` | `gaussian` around one of three levels, which changes every ten minutes on average |
//! | `states` | what controllers report: a constant, a switch, a whole number, a counter that begins anew, and `gaussian` |
//! | `gaps` | `plant`, a tenth of its values missing, mostly in runs, and half of the machines without a second channel |
//!
//! An alert counts once, as the episode that it is. A row tells the alerts per promised one over all
//! warm segments, and over the first 2,000 of each machine alone (cold start). With `regime`, the
//! rows of the segments after the change tell how long it is alerted.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, bail};
use arrow::array::{ArrayRef, AsArray, Float32Array, RecordBatch};
use arrow::datatypes::Float32Type;
use contrastream::config::{self, Pipeline};
use contrastream::decode::FIRST_CHANNEL_COLUMN;
use contrastream::runtime::Core;
use contrastream::source::Lane;
use contrastream::source::generator::{DEFAULT_CHANNELS, Plant};
use contrastream::window::{Segmenter, WindowShape};
use rand::{Rng, RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal, StudentT};
use rand_pcg::Pcg64Mcg;

const MACHINES: usize = 8;
const CHANNELS: usize = DEFAULT_CHANNELS.len();
/// Samples of each machine in a batch.
const SAMPLES: usize = 256;
/// Warm segments of a machine that count as its cold start.
const COLD: u64 = 2000;
/// Segments after a change of regime within which alerts are told apart.
const AFTER: [u64; 6] = [100, 300, 1_000, 3_000, 10_000, u64::MAX];
const KINDS: [&str; 10] =
    ["plant", "gaussian", "heavy", "drift", "bursts", "regime", "fleet", "modes", "states", "gaps"];

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: promise PIPELINE SEGMENTS [KIND] [key=value ...]";
    let path = arguments.next().context(usage)?;
    let segments: u64 = arguments.next().context(usage)?.parse().context(usage)?;
    let (overrides, kinds): (Vec<String>, Vec<String>) =
        arguments.partition(|argument| argument.contains('='));
    let mut pipeline = Pipeline::load(path.as_ref(), &overrides)?;
    pipeline.records.channels = DEFAULT_CHANNELS.map(str::to_owned).to_vec();
    println!("promised: {} and machine", pipeline.scores.false_alarms);
    println!(
        "{:<10} {:>9} {:>9} {:>7} {:>6}  {:>12}",
        "KIND", "SEGMENTS", "PROMISED", "ALERTS", "RATIO", "COLD (RATIO)"
    );
    for kind in KINDS {
        if !kinds.is_empty() && !kinds.iter().any(|asked| asked == kind) {
            continue;
        }
        measure(kind, &pipeline, segments)?;
    }
    if let Some(unknown) = kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        bail!("{unknown}: expected one of {}", KINDS.join(", "));
    }
    Ok(())
}

/// Alerts among some segments.
#[derive(Default)]
struct Count {
    segments: u64,
    alerts: u64,
    /// Segments that belong to an alert.
    alerting: u64,
}

impl Count {
    fn add(&mut self, begins: bool, alerting: bool) {
        self.segments += 1;
        self.alerts += u64::from(begins);
        self.alerting += u64::from(alerting);
    }
}

fn measure(kind: &str, pipeline: &Pipeline, segments: u64) -> anyhow::Result<()> {
    let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
    let stride = shape.stride as u64;
    let warmup = pipeline.scores.warmup as u64;
    // The change comes to each machine when half of its segments are over, one after the other.
    let per_machine = segments.div_ceil(MACHINES as u64) + warmup;
    let change = (kind == "regime").then_some(per_machine / 2);
    let mut stream = Stream::new(kind, pipeline.training.seed, change.map(|at| at * stride));
    let mut segmenter = Segmenter::new(Lane::new(kind, 0), shape, pipeline.windows.max_keys);
    let mut core = Core::new(pipeline);
    let (mut all, mut cold) = (Count::default(), Count::default());
    let mut after: [Count; AFTER.len()] = Default::default();
    let mut seen = HashSet::new();
    while all.segments < segments {
        let found = segmenter.push(&stream.next_batch()?)?;
        core.process(&found, None, |outputs| {
            for (segment, score) in outputs.segments.iter().zip(&outputs.scores) {
                if !score.warm {
                    continue;
                }
                let begins = score.alert_id.as_ref().is_some_and(|id| seen.insert(id.clone()));
                let since_change = change.and_then(|at| segment.sequence.checked_sub(at));
                match since_change {
                    Some(since) => {
                        let at = AFTER.partition_point(|until| *until <= since);
                        after[at].add(begins, score.alert);
                    }
                    None => {
                        if segment.sequence < warmup + COLD {
                            cold.add(begins, score.alert);
                        }
                    }
                }
                all.add(begins, score.alert);
            }
        })?;
    }
    // A segment a stride, a sample a second.
    let promised = |segments: u64| {
        (segments * stride) as f64 * 1e6 / pipeline.scores.false_alarms.mean_interval_micros()
    };
    let ratio =
        |count: &Count| count.alerts as f64 / promised(count.segments).max(f64::MIN_POSITIVE);
    println!(
        "{kind:<10} {:>9} {:>9.1} {:>7} {:>6.2}  {:>5} {:>6.2}",
        all.segments,
        promised(all.segments),
        all.alerts,
        ratio(&all),
        cold.alerts,
        ratio(&cold),
    );
    let mut from = 0;
    for (count, until) in after.iter().zip(AFTER).filter(|(count, _)| count.segments > 0) {
        println!(
            "  {from} segments after the change and on: {} alerts, {:.2} per promised one; {:.1} % of the segments",
            count.alerts,
            ratio(count),
            100.0 * count.alerting as f64 / count.segments as f64
        );
        from = until;
    }
    Ok(())
}

/// Endless records of a kind.
struct Stream {
    kind: Kind,
    plant: Plant,
    machines: Vec<Machine>,
    rng: Pcg64Mcg,
    /// Samples of each machine so far.
    samples: u64,
    change: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plant,
    Gaussian,
    Heavy,
    Drift,
    Bursts,
    Fleet,
    Modes,
    States,
    Gaps,
}

impl Kind {
    /// That of one machine.
    fn of(self, machine: usize) -> Self {
        match self {
            Self::Fleet => [Self::Plant, Self::Gaussian, Self::Heavy, Self::Bursts][machine % 4],
            alone => alone,
        }
    }
}

/// The state of one machine's noise.
#[derive(Clone, Default)]
struct Machine {
    noise: [f64; CHANNELS],
    /// Logarithm of the size of its noise.
    volatility: f64,
    wander: [f64; CHANNELS],
    /// Which of the levels it is at, on or off.
    mode: usize,
    /// What its counter shows.
    count: f64,
    /// Channels whose values do not come at the moment.
    silent: [bool; CHANNELS],
}

impl Stream {
    fn new(kind: &str, seed: u64, change: Option<u64>) -> Self {
        let generator = config::GeneratorSource {
            machines: MACHINES,
            fault_every: config::TimeSpan::from_secs(0),
            seed,
            ..Default::default()
        };
        let kind = match kind {
            "plant" => Kind::Plant,
            "heavy" => Kind::Heavy,
            "drift" => Kind::Drift,
            "bursts" => Kind::Bursts,
            "fleet" => Kind::Fleet,
            "modes" => Kind::Modes,
            "states" => Kind::States,
            "gaps" => Kind::Gaps,
            _ => Kind::Gaussian,
        };
        Self {
            kind,
            plant: Plant::new(&generator, &DEFAULT_CHANNELS.map(str::to_owned)),
            machines: vec![Machine::default(); MACHINES],
            rng: Pcg64Mcg::seed_from_u64(seed),
            samples: 0,
            change,
        }
    }

    fn next_batch(&mut self) -> anyhow::Result<RecordBatch> {
        let batch = self.plant.next_batch(MACHINES * SAMPLES);
        let mut columns: Vec<Vec<f32>> = (0..CHANNELS)
            .map(|channel| {
                let column = batch.column(FIRST_CHANNEL_COLUMN + channel);
                column.as_primitive::<Float32Type>().values().to_vec()
            })
            .collect();
        for row in 0..MACHINES * SAMPLES {
            let time = self.samples + (row / MACHINES) as u64;
            self.redraw(row % MACHINES, time, columns.iter_mut().map(|column| &mut column[row]));
        }
        self.samples += SAMPLES as u64;
        let mut all = batch.columns()[..FIRST_CHANNEL_COLUMN].to_vec();
        all.extend(columns.into_iter().map(|column| {
            let values = column.into_iter().map(|value| (!value.is_nan()).then_some(value));
            Arc::new(values.collect::<Float32Array>()) as ArrayRef
        }));
        Ok(RecordBatch::try_new(batch.schema(), all)?)
    }

    /// What the sample of `machine` at `time` is instead of the plant's.
    fn redraw<'a>(&mut self, machine: usize, time: u64, sample: impl Iterator<Item = &'a mut f32>) {
        let kind = self.kind.of(machine);
        let second_is_missing = machine.is_multiple_of(2);
        let machine = &mut self.machines[machine];
        let normal = |rng: &mut Pcg64Mcg| -> f64 { StandardNormal.sample(rng) };
        match kind {
            Kind::Plant | Kind::Fleet => {}
            Kind::Drift => {
                for (value, wander) in sample.zip(&mut machine.wander) {
                    // The plant's noise is about a percent of its level.
                    let step = 0.01 / 60.0 * f64::from(*value);
                    *wander += step * normal(&mut self.rng);
                    *value += *wander as f32;
                }
            }
            Kind::Gaussian | Kind::Heavy | Kind::Bursts | Kind::Modes => {
                let changed = self.change.is_some_and(|change| time >= change);
                let (mut level, mut size) = if changed { (13.0, 2.0) } else { (10.0, 1.0) };
                if kind == Kind::Modes {
                    if self.rng.random_bool(1.0 / 600.0) {
                        machine.mode = self.rng.random_range(0..3);
                    }
                    level += 6.0 * machine.mode as f64;
                }
                if kind == Kind::Bursts {
                    machine.volatility += -0.01 * machine.volatility + 0.06 * normal(&mut self.rng);
                    size *= machine.volatility.exp();
                }
                let common = normal(&mut self.rng);
                for (value, noise) in sample.zip(&mut machine.noise) {
                    let own = match kind {
                        Kind::Heavy => student(&mut self.rng),
                        _ => normal(&mut self.rng),
                    };
                    let shock = 0.6 * common + 0.8 * own;
                    *noise = 0.7 * *noise + size * shock;
                    *value = (level + *noise) as f32;
                }
            }
            Kind::States => {
                if self.rng.random_bool(1.0 / 300.0) {
                    machine.mode = 1 - machine.mode;
                }
                machine.count += self.rng.random::<f64>();
                if time == 0 || machine.count > 500.0 {
                    machine.count = if time == 0 { self.rng.random_range(0.0..500.0) } else { 0.0 };
                }
                let noise = &mut machine.noise;
                noise[2] = 0.99 * noise[2] + normal(&mut self.rng);
                noise[4] = 0.7 * noise[4] + normal(&mut self.rng);
                let mode = machine.mode as f64;
                let states = [50.0, mode, (noise[2] / 4.0).round(), machine.count, 10.0 + noise[4]];
                for (value, state) in sample.zip(states) {
                    *value = state as f32;
                }
            }
            Kind::Gaps => {
                for (channel, value) in sample.enumerate() {
                    let silent = &mut machine.silent[channel];
                    // Silent for 20 samples, heard for 200, and one more in a hundred is lost.
                    if self.rng.random_bool(if *silent { 0.05 } else { 0.005 }) {
                        *silent = !*silent;
                    }
                    let lost = *silent || self.rng.random_bool(0.01);
                    if lost || (channel == 1 && second_is_missing) {
                        *value = f32::NAN;
                    }
                }
            }
        }
    }
}

/// Student's t with three degrees of freedom, of variance 1.
fn student(rng: &mut impl Rng) -> f64 {
    let student = StudentT::new(3.0);
    student.map_or(0.0, |student: StudentT<f64>| student.sample(rng)) / 3_f64.sqrt()
}
