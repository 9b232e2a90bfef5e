//! Embedding and scoring of segments, without training: microseconds of the processors' time a
//! segment, whatever else runs beside.
//!
//! `cargo bench --bench score [-- FILTER]` prints one line a case, `name all rest`, where the rest is
//! what is not the encoder: medians of 31 runs (`RUNS`) of 2048 segments after 10 (`BEFORE`). Segments
//! are 64 samples of 8 channels, of 64 keys in turn, every 8 samples; what is scored is as in
//! `pipelines/sensor.toml`, by a model whose queue of negatives is full.

mod measure;

use std::hint::black_box;

use contrastream::checkpoint::{Checkpoint, Part};
use contrastream::config::Pipeline;
use contrastream::learner;
use contrastream::runtime::Core;
use contrastream::sink::SegmentMeta;
use contrastream::source::Lane;
use contrastream::window::Segments;
use cpu_time::ProcessTime;
use measure::{count, median, wanted};
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use rand_pcg::Pcg64Mcg;

const CHANNELS: usize = 8;
const LENGTH: usize = 64;
const STRIDE: usize = 8;
const KEYS: usize = 64;
/// Segments of each key in one run.
const ROUNDS: usize = 32;

fn pipeline(encoder: &str, trains: bool) -> Pipeline {
    let channels: Vec<String> = (0..CHANNELS).map(|channel| format!("\"c{channel}\"")).collect();
    let overrides = [
        format!("model.encoder={encoder}"),
        format!("records.channels=[{}]", channels.join(",")),
        format!("windows.stride={STRIDE}"),
        format!("training.enabled={trains}"),
    ];
    let text = include_str!("../pipelines/sensor.toml");
    Pipeline::from_toml(text, "pipelines/sensor.toml", &overrides).expect("a valid pipeline")
}

/// Keys whose channels wander around their level.
struct Stream {
    rng: Pcg64Mcg,
    /// `[keys, channels, samples]`, the last window's worth.
    samples: Vec<Vec<f32>>,
    sequence: u64,
}

impl Stream {
    fn new() -> Self {
        let samples = vec![vec![0.0]; KEYS * CHANNELS];
        Self { rng: Pcg64Mcg::seed_from_u64(1), samples, sequence: 0 }
    }

    fn next(&mut self) -> Segments {
        let mut segments = Segments::default();
        for _ in 0..ROUNDS {
            for key in 0..KEYS {
                for samples in &mut self.samples[key * CHANNELS..(key + 1) * CHANNELS] {
                    let fresh = if samples.len() < LENGTH { LENGTH } else { STRIDE };
                    for _ in 0..fresh {
                        let noise: f32 = self.rng.sample(StandardNormal);
                        samples.push(0.9 * samples[samples.len() - 1] + noise);
                    }
                    let old = samples.len() - LENGTH;
                    samples.drain(..old);
                    segments.values.extend_from_slice(samples);
                }
                segments.runs.push(0);
                segments.fresh.push(if self.sequence == 0 { LENGTH } else { STRIDE });
                let end = (self.sequence as i64 + 8) * STRIDE as i64 * 1_000_000;
                segments.meta.push(SegmentMeta {
                    key: format!("machine-{key}").into(),
                    lane: Lane::new("bench", 0),
                    sequence: self.sequence,
                    window_start: end - LENGTH as i64 * 1_000_000,
                    window_end: end,
                    first_offset: 0,
                    last_offset: 0,
                });
            }
            self.sequence += 1;
        }
        segments
    }
}

/// A model that has filled its queue of negatives and learns no more.
fn trained(encoder: &str, stream: &mut Stream) -> Core {
    let mut learning = pipeline(encoder, true);
    // No steps but those below.
    learning.training.every = usize::MAX;
    let mut core = Core::new(&learning);
    core.process(&stream.next(), None, |outputs| drop(black_box(outputs))).expect("no store");
    let steps = learning.model.queue / learning.training.batch;
    (0..steps).for_each(|_| core.train());
    let saved = core.save(&Part::new(Checkpoint::new_id())).expect("no store");
    Core::load(&saved.core, &pipeline(encoder, false)).expect("what was saved")
}

fn main() {
    let wanted = wanted();
    let (before, runs) = (count("BEFORE", 10), count("RUNS", 31));
    // As the learner's thread does.
    let _pool = learner::share_among(learner::cores()).expect("threads");
    for encoder in ["mlp", "tcn"] {
        let name = format!("{encoder}-score");
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted)) {
            continue;
        }
        let mut stream = Stream::new();
        // Where every instruction is counted, without negatives.
        let mut core = match before {
            0 => Core::new(&pipeline(encoder, false)),
            _ => trained(encoder, &mut stream),
        };
        let micros = |began: ProcessTime| began.elapsed().as_secs_f64() * 1e6;
        let times: Vec<(f64, f64)> = (0..before + runs)
            .map(|_| {
                let segments = stream.next();
                let began = ProcessTime::now();
                core.process(&segments, None, |outputs| drop(black_box(outputs)))
                    .expect("no store");
                let all = micros(began) / segments.len() as f64;
                // As many at once as when they are scored.
                let batch = core.learner().until_step() * CHANNELS * LENGTH;
                let began = ProcessTime::now();
                for values in segments.values.chunks(batch) {
                    black_box(core.learner().embed_standardised(values));
                }
                (all, all - micros(began) / segments.len() as f64)
            })
            .skip(before)
            .collect();
        let (all, rest): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
        println!("{name} {:.2} {:.2}", median(all), median(rest));
    }
}
