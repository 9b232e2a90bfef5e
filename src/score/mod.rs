//! Surprise, distance and residual become one calibrated verdict per segment.
//!
//! Three statistics say how strange a segment is, each in units of its own: its InfoNCE term as
//! its predecessor's neighbour, the distance of its embedding to earlier ones, the largest
//! one-step forecast error among its new samples. Each is put on its key's own ruler, then turned
//! into a tail probability from all keys' values together (`tail.rs`): a key lends its centre and
//! spread, the pipeline the shape of the tail. The probabilities are combined, and the combination
//! is calibrated in turn, since its parts are not independent. Everything is scored before it is
//! learned from.

mod causes;
mod memory;
mod residual;
mod ruler;
mod tail;

use std::ops::Range;
use std::sync::Arc;

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

use self::memory::Memory;
use self::residual::Forecaster;
use self::ruler::Ruler;
use self::tail::Tail;
use crate::config;
use crate::keys::KeyMap;
use crate::learner::{self, Embedded, Learner};
use crate::pairs::Origin;
use crate::sink::Score;
use crate::window::{Segments, WindowShape};

/// Scores segments and learns from them what is normal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scorer {
    warmup: u64,
    /// Event time between two false alarms of a key, microseconds.
    alarm_interval: f64,
    shape: WindowShape,
    /// Strides within which segments share samples.
    reach: u64,
    memory: Memory,
    /// Of surprise, distance and residual.
    tails: [Tail; 3],
    /// Of their combination.
    combined: Tail,
    keys: KeyMap<KeyState>,
    /// Model version that the memory was last refreshed with.
    version: u64,
    rng: Pcg64Mcg,
}

/// What the scorer keeps per key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct KeyState {
    segments: u64,
    previous: Option<Origin>,
    forecasters: Vec<Forecaster>,
    rulers: [Ruler; 3],
    /// End of the last segment, and the mean time from one to the next, microseconds.
    last_end: i64,
    step: f64,
    episode: Option<Episode>,
}

/// An alert that lasts over segments.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Episode {
    id: String,
    /// Sequence number of its last alerting segment.
    last: u64,
    open: bool,
}

/// Segments that the pipeline's memory of normal holds.
const REMEMBERED: usize = 1024;
/// A segment of an alert enters the memory once in this many: a fault is not normal, but a regime
/// that stays becomes so.
const ALERTS_REMEMBERED: u64 = 8;
/// Bounds of the probability at which an alert begins, whatever the promise asks for.
const RAREST: f64 = 1e-9;
const MOST_FREQUENT: f64 = 0.1;

impl Scorer {
    /// A scorer that knows nothing yet.
    pub fn new(pipeline: &config::Pipeline) -> Self {
        let shape = WindowShape::new(&pipeline.windows, pipeline.records.channels.len());
        Self {
            warmup: pipeline.scores.warmup as u64,
            alarm_interval: pipeline.scores.false_alarms.mean_interval_micros(),
            reach: learner::reach(&shape, &pipeline.pairs),
            memory: Memory::new(
                REMEMBERED,
                pipeline.model.embedding,
                shape.channels * shape.length,
            ),
            tails: Default::default(),
            combined: Tail::default(),
            keys: KeyMap::new(pipeline.windows.max_keys),
            version: 0,
            rng: Pcg64Mcg::seed_from_u64(pipeline.training.seed),
            shape,
        }
    }

    /// Takes on what `pipeline` says of scores, after loading.
    pub fn resume(mut self, pipeline: &config::Pipeline) -> Self {
        self.warmup = pipeline.scores.warmup as u64;
        self.alarm_interval = pipeline.scores.false_alarms.mean_interval_micros();
        self
    }

    /// Scores the segments of `range`, as `learner` embedded them, and learns from each once it is
    /// scored.
    pub fn score(
        &mut self,
        segments: &Segments,
        range: Range<usize>,
        embedded: &Embedded,
        learner: &Learner,
    ) -> Vec<Score> {
        if learner.version() != self.version {
            self.version = learner.version();
            self.memory.refresh(|values| learner.embed_standardised(values));
        }
        let size = self.shape.channels * self.shape.length;
        let dimension = embedded.embeddings.len() / range.len().max(1);
        // Against the memory as it was: a batch's own segments are near each other in time, or
        // of other keys and as good a sample as those before.
        let known = self.memory.len();
        let cosines = self.memory.cosines(&embedded.embeddings);
        let distances: Vec<Option<f32>> = embedded
            .origins
            .iter()
            .enumerate()
            .map(|(row, origin)| {
                let cosines = &cosines[row * known..(row + 1) * known];
                self.memory.distance(cosines, origin, self.reach)
            })
            .collect();

        let mut scores = Vec::with_capacity(range.len());
        for (row, index) in range.enumerate() {
            let values = &embedded.values[row * size..(row + 1) * size];
            let embedding = &embedded.embeddings[row * dimension..(row + 1) * dimension];
            let origin = embedded.origins[row];
            let meta = &segments.meta[index];
            let slot = self.keys.touch(&meta.key, |_| KeyState::default());
            let (key, state) = self.keys.at(slot);

            let errors =
                state.forecast_errors(values, self.shape.length, segments.fresh[index], &origin);
            let residual = errors.iter().copied().fold(0.0, f32::max);
            let found = [embedded.surprises[row], distances[row], Some(residual)];
            let rarest = state.alarm_probability(meta.window_end, self.alarm_interval);
            let statistics = state.on_rulers(found);
            let parts: [f64; 3] = std::array::from_fn(|part| {
                statistics[part].map_or(1.0, |value| self.tails[part].p_value(value))
            });
            // Euclidean in -ln p: one rare part is enough, several moderate ones add up.
            let combined = parts.iter().map(|p| p.ln().powi(2)).sum::<f64>().sqrt();
            let p_value = self.combined.p_value(combined as f32);
            let warm = state.segments >= self.warmup;
            let alert_id = state.episode(key, &origin, warm, p_value, rarest, self.reach);
            let alert = alert_id.is_some();
            let causes = if alert {
                causes::causes(values, self.shape.channels, &errors, &parts, |occluded| {
                    let embeddings = learner.embed_standardised(occluded);
                    let cosines = self.memory.cosines(&embeddings);
                    (0..self.shape.channels)
                        .map(|channel| {
                            let cosines = &cosines[channel * known..(channel + 1) * known];
                            self.memory.distance(cosines, &origin, self.reach)
                        })
                        .zip(std::iter::repeat(distances[row]))
                        .map(|(without, with)| with.unwrap_or(0.0) - without.unwrap_or(0.0))
                        .collect()
                })
            } else {
                Vec::new()
            };
            scores.push(Score {
                score: verdict(p_value, rarest),
                p_value,
                surprise: found[0].unwrap_or(0.0),
                distance: found[1].unwrap_or(0.0),
                residual,
                alert,
                alert_id,
                causes,
                warm,
            });

            for (part, value) in statistics.iter().enumerate() {
                if let Some(value) = value {
                    self.tails[part].learn(*value, rarest);
                }
            }
            self.combined.learn(combined as f32, rarest);
            state.learn(found, &origin, meta.window_end);
            if !alert || state.segments.is_multiple_of(ALERTS_REMEMBERED) {
                self.memory.admit(embedding, values, origin, &mut self.rng);
            }
        }
        scores
    }
}

impl KeyState {
    /// Per channel, the largest one-step forecast error among the fresh samples of a standardised
    /// segment `[channels, time]`.
    fn forecast_errors(
        &mut self,
        values: &[f32],
        time: usize,
        fresh: usize,
        origin: &Origin,
    ) -> Vec<f32> {
        let continues = self.previous.is_some_and(|previous| origin.follows(&previous));
        self.forecasters.resize_with(values.len() / time, Forecaster::default);
        self.forecasters
            .iter_mut()
            .zip(values.chunks_exact(time))
            .map(|(forecaster, samples)| {
                if !continues {
                    forecaster.restart();
                }
                let new = &samples[time - fresh.min(time)..];
                new.iter().map(|sample| forecaster.push(*sample)).fold(0.0, f32::max)
            })
            .collect()
    }

    /// Probability per segment that keeps the promised time between false alarms.
    fn alarm_probability(&self, window_end: i64, interval: f64) -> f64 {
        let step = if self.step > 0.0 { self.step } else { (window_end - self.last_end) as f64 };
        (step / interval).clamp(RAREST, MOST_FREQUENT)
    }

    fn on_rulers(&self, found: [Option<f32>; 3]) -> [Option<f32>; 3] {
        std::array::from_fn(|part| found[part].map(|value| self.rulers[part].measure(value)))
    }

    /// The id of the alert that a segment belongs to, if any. Once begun, an alert lasts while
    /// segments are rarer than the square root of what begins one, and goes on if the next begins
    /// before the window has left it.
    fn episode(
        &mut self,
        key: &Arc<str>,
        origin: &Origin,
        warm: bool,
        p_value: f64,
        rarest: f64,
        reach: u64,
    ) -> Option<String> {
        let sequence = origin.sequence;
        let begins = warm && p_value < rarest;
        let lasts = p_value < rarest.sqrt();
        match &mut self.episode {
            Some(episode)
                if (episode.open && lasts)
                    || (begins && sequence.saturating_sub(episode.last) <= reach) =>
            {
                episode.open = true;
                episode.last = sequence;
                Some(episode.id.clone())
            }
            _ if begins => {
                let id = format!("{key}#{sequence}");
                self.episode = Some(Episode { id: id.clone(), last: sequence, open: true });
                Some(id)
            }
            Some(episode) => {
                episode.open = false;
                None
            }
            None => None,
        }
    }

    fn learn(&mut self, found: [Option<f32>; 3], origin: &Origin, window_end: i64) {
        for (ruler, value) in self.rulers.iter_mut().zip(found) {
            if let Some(value) = value {
                ruler.learn(value);
            }
        }
        if self.segments > 0 {
            let step = (window_end - self.last_end).max(0) as f64;
            // A gap is not a step: it counts as a few.
            let step = if self.step > 0.0 { step.min(4.0 * self.step) } else { step };
            self.step += (step - self.step) / self.segments.min(100) as f64;
        }
        self.last_end = window_end;
        self.segments += 1;
        self.previous = Some(*origin);
    }
}

/// A score in 0..1 that is 0.5 where an alert begins: `L / (1 + L)` with `L = ln p / ln p_alert`.
fn verdict(p_value: f64, rarest: f64) -> f64 {
    let level = p_value.ln() / rarest.ln();
    level / (1.0 + level)
}
