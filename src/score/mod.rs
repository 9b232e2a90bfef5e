//! Several views of a segment become one calibrated verdict.
//!
//! Each part of `scores.parts` says how strange a segment is, in units of its own: its InfoNCE
//! term as its predecessor's neighbour (surprise), the distance of its embedding to earlier ones, those
//! of its shape at three lengths without the encoder (discords in the sense of the left matrix profile,
//! Yeh et al. 2016, among samples of the past),
//! sudden changes of its newest samples at three time scales (`change.rs`), the level of all
//! channels against the key's normal (`level.rs`), errors of one-step forecasts (`residual.rs`), the
//! size of its steps at several lags (`texture.rs`), how often the key has shown anything like it
//! (`novelty.rs`). Each is measured by its key's own centre and
//! spread, then turned into a tail probability from all keys' values together (`tail.rs`): a key
//! lends its measure, the pipeline the shape of the tail. Fisher's method combines the
//! probabilities to the evidence that makes the score, unless the level alone says more
//! (`combine.rs`); since parts are not independent, an alert rests on the evidence calibrated in
//! turn. Everything is scored before it is learned from.

mod causes;
mod change;
mod combine;
mod feedback;
mod lanes;
mod level;
mod memory;
mod novelty;
mod record;
mod residual;
mod ruler;
mod tail;
mod texture;
mod turn;

use std::ops::Range;
use std::sync::Arc;

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

use self::causes::View;
use self::change::{Changes, Rarity, SCALES};
use self::feedback::Feedback;
use self::lanes::Samples;
use self::level::Level;
use self::memory::{Cut, Memory};
use self::novelty::Novelty;
use self::residual::{Around, Forecasts, KINDS};
use self::ruler::Ruler;
use self::tail::Tail;
use self::texture::Texture;
use self::turn::Turn;
use crate::config::{self, Inputs, Mark, Part};
use crate::keys::{Keys, State};
use crate::learner::{self, Embedded, Learner};
use crate::pairs::Origin;
use crate::sink::{Cause, Score};
use crate::templates::{ALARM, OF_TEMPLATES};
use crate::window::{SegmentTemplate, Segments, WindowShape};

pub use self::feedback::Label;

/// Scores segments and learns from them what is normal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scorer {
    // Not part of what is saved: the pipeline file says them anew, see `Scorer::resume`.
    #[serde(skip)]
    config: config::Scores,
    #[serde(skip)]
    inputs: Inputs,
    shape: WindowShape,
    /// Strides within which segments share samples.
    reach: u64,
    memory: Memory,
    /// Of single channels' changes, where changes are looked at.
    changes: Rarity,
    tails: [Tail; STATISTICS],
    /// Of their combination.
    combined: Tail,
    /// Where labels are taken.
    feedback: Option<Feedback>,
    /// Model version that the memory was last refreshed with.
    version: u64,
    rng: Pcg64Mcg,
}

/// Statistics of a segment: surprise, distance, a shape per length, level, a change per time scale, those
/// of the forecast errors, texture, and novelty.
const STATISTICS: usize = NOVELTY + 1;
const SURPRISE: usize = 0;
const DISTANCE: usize = 1;
const SHAPE: usize = 2;
const LEVEL: usize = SHAPE + SHAPES.len();
const CHANGE: usize = LEVEL + 1;
const RESIDUAL: usize = CHANGE + SCALES;
const TEXTURE: usize = RESIDUAL + KINDS;
const NOVELTY: usize = TEXTURE + 1;

/// What the scorer keeps per key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KeyState {
    segments: u64,
    changes: Changes,
    forecasts: Forecasts,
    texture: Texture,
    /// One per channel, where novelty is looked at.
    novelties: Vec<Novelty>,
    previous: Option<Origin>,
    level: Level,
    level_excursion: Excursion,
    turn: Turn,
    /// Of surprise, distance and shapes.
    rulers: [Ruler; LEVEL],
    /// End of the last segment, and the mean time from one to the next, microseconds.
    last_end: i64,
    step: f64,
    episode: Option<Episode>,
    peak: Option<Peak>,
    record: Option<Record>,
}

/// An alert that lasts over segments.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Episode {
    id: String,
    /// Sequence number of its last segment that was rare enough.
    last: u64,
    open: bool,
}

/// Suspicious levels in a row, so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Excursion {
    /// The largest evidence.
    peak: f32,
    alerted: bool,
}

/// The most extreme of the suspicious segments of late.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Peak {
    ln_p: f64,
    sequence: u64,
}

/// The last segment that was marked for its novelty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    novelty: f64,
    sequence: u64,
}

/// Which views are looked at that nothing but their parts asks for.
#[derive(Clone, Copy)]
struct Looks {
    level: bool,
    change: bool,
    texture: bool,
    /// The segment's first and last time.
    novelty: Option<(i64, i64)>,
}

/// What is found in one segment before anything is combined, and room to work in.
#[derive(Default)]
struct Findings {
    /// Measured by the key's own measure, `None` where nothing can be said.
    statistics: [Option<f32>; STATISTICS],
    /// Surprise, distance and shapes as they are.
    by_memory: [Option<f32>; LEVEL],
    level: Option<level::Found>,
    /// With each channel's deviation, in standard deviations.
    levels: level::Room,
    /// Per channel, its largest change per time scale, and how rare that is where changes are looked at.
    changes: Vec<[f32; SCALES]>,
    rarities: Vec<[f32; SCALES]>,
    /// Per channel, the statistics of its forecast errors.
    residuals: Vec<[f32; KINDS]>,
    /// Per channel, how its steps deviate from the usual ones.
    steps: Vec<f32>,
    /// Whether the level begins or ceases to change.
    turn: bool,
    /// Per channel, how new its newest samples are.
    news: Vec<f32>,
    /// The segment's measured channels, raw and standardised.
    raw: Samples,
    standardised: Samples,
    around: Around,
}

/// Windows back from which on a key's segments count for its distance: what lasts for a while would
/// soon be its own nearest neighbour, and less far than anything normal.
const EPISODE: u64 = 6;
/// Neighbours whose mean distance is an embedding's.
const NEIGHBOURS_OF_EMBEDDINGS: usize = 3;
/// Shares of a segment, its newest samples, whose shapes are compared, each by itself: how long what is
/// unusual is, and what is usual, nobody says (pan matrix profile, Madrid et al. 2019). Each has a
/// sample of the memory of its own: what one of them lacks by chance the others do not (Zimek et al. 2013).
const SHAPES: [f64; 3] = [1.0, 0.7, 0.5];
/// A shape's distance is that to the last of so many of its sample (Ramaswamy et al. 2000): a beat that
/// has come too early before is rare all the same.
const NEIGHBOURS_OF_SHAPES: usize = 3;
/// Segments that the pipeline's memory of normal holds.
const REMEMBERED: usize = 1024;
/// Remembered segments below which shapes are not compared: the nearest is not near yet, and how far it
/// is would be held against all that comes, for as long as tails remember it.
const ENOUGH_FOR_SHAPES: usize = REMEMBERED / 4;
/// A segment of an alert enters the memory once in this many: a fault is not normal, but a regime
/// that stays becomes so.
const ALERTS_REMEMBERED: u64 = 8;
/// Bounds of the probability at which an alert begins, whatever the promise asks for.
const RAREST: f64 = 1e-9;
const MOST_FREQUENT: f64 = 0.1;
/// Novelty that is worth a look, of score 0.5: two views are at what they have seen once or twice.
const NOTABLE: f64 = 4.0;
/// As many times as new as what was marked, it is marked again.
const NEWER: f64 = 1.5;
/// Probability of a line that by itself scores 0.5.
const RARE_LINE: f64 = 1e-3;

impl AsMut<Self> for KeyState {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

impl State for KeyState {}

impl Scorer {
    /// A scorer that knows nothing yet.
    pub fn new(pipeline: &config::Pipeline) -> Self {
        let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
        Self {
            config: pipeline.scores.clone(),
            inputs: pipeline.inputs(),
            reach: learner::reach(&shape, &pipeline.pairs),
            memory: Memory::new(
                REMEMBERED,
                pipeline.model.embedding,
                shape.channels * shape.length,
            ),
            changes: Rarity::default(),
            tails: std::array::from_fn(|at| match at {
                LEVEL => Tail::exponential(),
                _ => Tail::default(),
            }),
            combined: Tail::exponential(),
            feedback: feedback(pipeline, &shape),
            version: 0,
            rng: Pcg64Mcg::seed_from_u64(pipeline.training.seed),
            shape,
        }
    }

    /// Takes on what `pipeline` says of scores, after loading.
    pub fn resume(mut self, pipeline: &config::Pipeline) -> Self {
        self.config = pipeline.scores.clone();
        self.inputs = pipeline.inputs();
        let fresh = feedback(pipeline, &self.shape);
        self.feedback = fresh.map(|fresh| self.feedback.take().unwrap_or(fresh));
        self
    }

    /// Takes in what somebody said of segments that were scored; returns how many of them are still
    /// remembered. Nothing where the pipeline takes no labels.
    pub fn teach(&mut self, label: &Label) -> usize {
        self.feedback.as_mut().map_or(0, |feedback| feedback.take(label))
    }

    /// Labelled segments remembered: anomalies and normal ones.
    pub fn examples(&self) -> (usize, usize) {
        self.feedback.as_ref().map_or((0, 0), Feedback::examples)
    }

    /// Scores the segments of `range`, as `learner` embedded them with `keys`, and learns from each
    /// once it is scored.
    pub fn score<S: State + AsMut<KeyState>>(
        &mut self,
        keys: &mut Keys<S>,
        segments: &Segments,
        range: Range<usize>,
        embedded: &Embedded,
        learner: &Learner,
    ) -> Vec<Score> {
        if learner.begins_round() {
            self.memory.settle();
        }
        if learner.version() != self.version {
            self.version = learner.version();
            self.memory.refresh(|values| learner.embed_standardised(values));
            if let Some(feedback) = &mut self.feedback {
                feedback.refresh(|values| learner.embed_standardised(values));
            }
        }
        let size = self.shape.channels * self.shape.length;
        let dimension = embedded.embeddings.len() / range.len().max(1);
        // Against the memory as it was when the round began: the round's own segments are near
        // each other in time, or of other keys and as good a sample as those before.
        let known = self.memory.len();
        let cosines = self.memory.cosines(&embedded.embeddings);
        let (reach, episode) = (self.reach, EPISODE * self.reach);
        let distance_of = |memory: &Memory, cosines: &[f32], row, origin: &Origin| {
            let cosines = &cosines[row * known..(row + 1) * known];
            let nearest = memory.nearest::<NEIGHBOURS_OF_EMBEDDINGS>(cosines, origin, episode)?;
            Some(nearest.mean_distance())
        };
        let shape_of = |memory: &Memory, likenesses: &[f32], row, origin: &Origin| {
            let likenesses = &likenesses[row * known..(row + 1) * known];
            let nearest = memory.nearest::<NEIGHBOURS_OF_SHAPES>(likenesses, origin, reach)?;
            Some(nearest.farthest().sqrt())
        };
        let looks_at_shape = self.config.parts.contains(&Part::Shape) && known >= ENOUGH_FOR_SHAPES;
        let length = self.shape.length;
        let cuts: [Cut; SHAPES.len()] = std::array::from_fn(|at| Cut {
            newest: ((SHAPES[at] * length as f64).round() as usize).max(1),
            sample: at,
            samples: SHAPES.len(),
        });
        let likenesses = if looks_at_shape {
            cuts.map(|cut| self.memory.likenesses(&embedded.values, length, cut))
        } else {
            Default::default()
        };
        let origins = || embedded.origins.iter().enumerate();
        let distances: Vec<Option<f32>> = origins()
            .map(|(row, origin)| distance_of(&self.memory, &cosines, row, origin))
            .collect();
        let shapes: Vec<[Option<f32>; SHAPES.len()]> = origins()
            .map(|(row, origin)| {
                likenesses.each_ref().map(|likenesses| {
                    looks_at_shape.then(|| shape_of(&self.memory, likenesses, row, origin))?
                })
            })
            .collect();

        let interval = self.config.false_alarms.mean_interval_micros();
        let looks_for_novelty =
            self.config.mark == Mark::Record || self.config.parts.contains(&Part::Novelty);
        let looks_at = |part| self.config.parts.contains(&part);
        let looks = Looks {
            level: looks_at(Part::Level),
            change: looks_at(Part::Change),
            texture: looks_at(Part::Texture),
            novelty: None,
        };
        let used = self.used();
        let mut scores = Vec::with_capacity(range.len());
        let mut found = Findings::default();
        for (row, index) in range.enumerate() {
            let values = &embedded.values[row * size..(row + 1) * size];
            let embedding = &embedded.embeddings[row * dimension..(row + 1) * dimension];
            let origin = embedded.origins[row];
            let meta = &segments.meta[index];
            let (key, state) = keys.at(embedded.slots[row]);
            let state = state.as_mut();

            let rarest = state.alarm_probability(meta.window_end, interval);
            found.by_memory[SURPRISE] = embedded.surprises[row];
            found.by_memory[DISTANCE] = distances[row];
            found.by_memory[SHAPE..].copy_from_slice(&shapes[row]);
            state.find(
                &mut found,
                (segments.segment(index, size), values),
                segments.fresh[index],
                &self.shape,
                &origin,
                Looks {
                    novelty: looks_for_novelty.then_some((meta.window_start, meta.window_end)),
                    ..looks
                },
            );
            if looks.change {
                self.changes.of(&found.changes, &mut found.rarities);
                for scale in 0..SCALES {
                    let rarest = largest(found.rarities.iter().map(|rarities| rarities[scale]));
                    found.statistics[CHANGE + scale] = Some(rarest);
                }
            }
            let mut parts = [None; STATISTICS];
            for part in &self.config.parts {
                for at in statistics_of(*part) {
                    parts[at] = found.statistics[at].map(|value| self.tails[at].p_value(value));
                }
            }
            let mut ln_p = combine::ln_p_value(parts.into_iter().flatten());
            if let Some(level) = parts[LEVEL] {
                ln_p = combine::either(ln_p, level.ln());
            }
            let evidence = -ln_p as f32;
            let mut p_value = self.combined.p_value(evidence);
            if let Some(feedback) = &mut self.feedback {
                let opinion = feedback.opinion(embedding, ln_p);
                feedback.note(key, meta.window_end, embedding, values, ln_p);
                ln_p = opinion.on(ln_p, rarest);
                p_value = opinion.on(p_value.ln(), rarest).exp();
            }
            let warm = state.segments >= self.config.warmup as u64;
            let alert_id = state.episode(key, &origin, warm, p_value, rarest, self.reach);
            let alert = alert_id.is_some();
            let causes = if alert {
                let evidence_of = |range: Range<usize>| {
                    let parts = parts[range].iter().flatten();
                    parts.map(|p| -p.ln()).fold(0.0, f64::max)
                };
                let mut views = found.views(evidence_of);
                if self.shape.observed > 1 {
                    let occluded = causes::occluded(values, self.shape.channels);
                    let cosines = self.memory.cosines(&learner.embed_standardised(&occluded));
                    let nearer = |channel: usize| {
                        let without = distance_of(&self.memory, &cosines, channel, &origin);
                        distances[row].unwrap_or(0.0) - without.unwrap_or(0.0)
                    };
                    let mut weights: Vec<f32> = (0..self.shape.channels).map(nearer).collect();
                    // When a channel was last observed is a matter of that channel.
                    for since_last in self.shape.observed..self.shape.channels {
                        weights[since_last - self.shape.observed] += weights[since_last].max(0.0);
                    }
                    weights.truncate(self.shape.observed);
                    views.push(View { evidence: evidence_of(SURPRISE..SHAPE), weights });
                    for (at, cut) in cuts.into_iter().enumerate().filter(|_| looks_at_shape) {
                        let likenesses = self.memory.likenesses(&occluded, length, cut);
                        let nearer = |channel: usize| {
                            let without = shape_of(&self.memory, &likenesses, channel, &origin);
                            shapes[row][at].unwrap_or(0.0) - without.unwrap_or(0.0)
                        };
                        let weights = (0..self.shape.observed).map(nearer).collect();
                        let of_shape = SHAPE + at..SHAPE + at + 1;
                        views.push(View { evidence: evidence_of(of_shape), weights });
                    }
                }
                let shares = causes::causes(self.shape.observed, &views);
                let templates = segments.templates.get(index).map_or(&[][..], Vec::as_slice);
                self.causes(key, &shares, templates)
            } else {
                Vec::new()
            };
            let score = match self.config.mark {
                Mark::State => verdict(ln_p, rarest),
                Mark::Onset => verdict(state.onset(ln_p, rarest, &origin, self.reach), rarest),
                Mark::Record => {
                    let novelty = f64::from(found.statistics[NOVELTY].unwrap_or(0.0));
                    let novelty = state.newest(novelty, &origin, self.reach);
                    novelty / (novelty + NOTABLE)
                }
                Mark::Line => {
                    let raw = segments.segment(index, size);
                    line_scores(raw, self.shape.length, segments.fresh[index]).fold(0.0, f64::max)
                }
            };
            scores.push(Score {
                score,
                p_value,
                surprise: found.by_memory[SURPRISE].unwrap_or(0.0),
                distance: found.by_memory[DISTANCE].unwrap_or(0.0),
                residual: found.statistics[RESIDUAL].unwrap_or(0.0),
                alert,
                alert_id,
                causes,
                missing: self.missing(key, segments.segment(index, size)),
                turn: warm && found.turn,
                warm,
            });

            // Of a machine that is off, nothing is learned of how one varies that is on.
            let still = learner::all_stand_still(segments.segment(index, size), self.shape.length);
            let normal = !still && (!alert || state.segments.is_multiple_of(ALERTS_REMEMBERED));
            if normal {
                for at in (0..STATISTICS).filter(|at| *at != LEVEL && used[*at]) {
                    if let Some(value) = found.statistics[at] {
                        self.tails[at].learn(value);
                    }
                }
                if looks.change {
                    self.changes.learn(&found.changes);
                }
            }
            // What alerts is not to teach that it is normal; the parts' tails bound outliers.
            if !alert && !still {
                self.combined.learn(evidence);
            }
            if let Some(level) = &found.level {
                let lessons = state.level_excursion.take_in(level, alert);
                lessons.filter(|_| !still).for_each(|value| self.tails[LEVEL].learn(value));
            }
            state.learn(&found, &origin, meta.window_end);
            for (_, channel) in embedded.anew.iter().filter(|(at, _)| *at == row) {
                if *channel < self.shape.observed {
                    state.begin_anew(*channel, self.shape.observed);
                }
            }
            if normal {
                self.memory.admit(embedding, values, origin, &mut self.rng);
            }
        }
        scores
    }
}

impl Scorer {
    /// Whether any part is made of each of the statistics.
    fn used(&self) -> [bool; STATISTICS] {
        let mut used = [false; STATISTICS];
        for part in &self.config.parts {
            used[statistics_of(*part)].fill(true);
        }
        used
    }

    /// The causes with these shares, the largest first, by name. Where a segment has `templates`,
    /// they stand for the channels that follow from them, each by its weight.
    fn causes(
        &self,
        key: &str,
        shares: &[(usize, f32)],
        templates: &[SegmentTemplate],
    ) -> Vec<Cause> {
        let weights: f32 = templates.iter().map(|template| template.weight).sum();
        let is_of_templates = |at: usize| weights > 0.0 && OF_TEMPLATES.contains(&at);
        let mut causes: Vec<Cause> = shares
            .iter()
            .filter(|(at, _)| !is_of_templates(*at))
            .filter_map(|(at, share)| self.cause(key, *at, *share))
            .collect();
        let of_templates = shares.iter().filter(|(at, _)| is_of_templates(*at));
        let share: f32 = of_templates.map(|(_, share)| share).sum();
        causes.extend(templates.iter().filter(|_| weights > 0.0).map(|template| Cause {
            channel: Arc::clone(&template.text),
            share: share * template.weight / weights,
        }));
        causes.sort_by(|one, other| other.share.total_cmp(&one.share));
        causes
    }

    /// `None` for a channel that the key's group does not have.
    fn cause(&self, key: &str, channel: usize, share: f32) -> Option<Cause> {
        let name = self.inputs.name(key, channel);
        (!name.is_empty()).then(|| Cause { channel: name.into(), share })
    }

    /// The channels of a segment `[channels, time]` whose newer half holds no value.
    fn missing(&self, key: &str, values: &[f32]) -> Vec<Arc<str>> {
        let channels = values.chunks_exact(self.shape.length).take(self.shape.observed);
        channels
            .enumerate()
            .filter(|(_, values)| values[values.len() / 2..].iter().all(|value| value.is_nan()))
            .map(|(channel, _)| self.inputs.name(key, channel))
            .filter(|name| !name.is_empty())
            .map(Arc::from)
            .collect()
    }
}

/// A number below `bound` that looks random (Knuth's multiplicative hash): for samples of what comes in
/// an order of keys that may take turns.
fn scattered(at: usize, bound: usize) -> usize {
    ((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % bound
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, f32::max)
}

fn feedback(pipeline: &config::Pipeline, shape: &WindowShape) -> Option<Feedback> {
    let size = shape.channels * shape.length;
    pipeline.feedback.as_ref().map(|_| Feedback::new(pipeline.model.embedding, size))
}

fn statistics_of(part: Part) -> Range<usize> {
    match part {
        Part::Surprise => SURPRISE..SURPRISE + 1,
        Part::Distance => DISTANCE..DISTANCE + 1,
        Part::Shape => SHAPE..LEVEL,
        Part::Level => LEVEL..LEVEL + 1,
        Part::Change => CHANGE..CHANGE + SCALES,
        Part::Residual => RESIDUAL..RESIDUAL + KINDS,
        Part::Texture => TEXTURE..TEXTURE + 1,
        Part::Novelty => NOVELTY..NOVELTY + 1,
    }
}

impl Findings {
    /// What level, changes and residuals say about the channels, each with as much weight as its
    /// statistics have evidence.
    fn views(&self, evidence_of: impl Fn(Range<usize>) -> f64) -> Vec<View> {
        let mut views = Vec::new();
        if self.level.is_some() {
            let weights =
                self.levels.deviations.iter().map(|deviation| deviation.powi(2)).collect();
            views.push(View { evidence: evidence_of(LEVEL..CHANGE), weights });
        }
        for scale in 0..SCALES {
            let weights = self.rarities.iter().map(|rarities| rarities[scale].powi(2)).collect();
            let at = CHANGE + scale;
            views.push(View { evidence: evidence_of(at..at + 1), weights });
        }
        for kind in 0..KINDS {
            let weights = self.residuals.iter().map(|sizes| sizes[kind].powi(2)).collect();
            let at = RESIDUAL + kind;
            views.push(View { evidence: evidence_of(at..at + 1), weights });
        }
        let weights = self.steps.iter().map(|deviation| deviation.powi(2)).collect();
        views.push(View { evidence: evidence_of(TEXTURE..NOVELTY), weights });
        let weights = self.news.iter().map(|news| news.powi(2)).collect();
        views.push(View { evidence: evidence_of(NOVELTY..STATISTICS), weights });
        views
    }
}

impl Excursion {
    /// The evidence to calibrate by after a level. An excursion counts once, by its peak, when it
    /// is over: how often there are such excursions is to be known. One that raised an alert does
    /// not count.
    fn take_in(&mut self, level: &level::Found, alert: bool) -> impl Iterator<Item = f32> {
        let over = if level.suspicious {
            self.peak = self.peak.max(level.evidence);
            self.alerted |= alert;
            None
        } else {
            let over = std::mem::take(self);
            (over.peak > 0.0 && !over.alerted).then_some(over.peak)
        };
        over.into_iter().chain((!level.suspicious && !alert).then_some(level.evidence))
    }
}

impl KeyState {
    /// Looks at the measured channels of a segment `[channels, time]`, raw and standardised, of
    /// which the `fresh` last samples are new, as far as anybody asks for it. What looks learns from it,
    /// novelty where the segment's first and last time are given; the rulers do not.
    fn find(
        &mut self,
        found: &mut Findings,
        (raw, standardised): (&[f32], &[f32]),
        fresh: usize,
        shape: &WindowShape,
        origin: &Origin,
        looks: Looks,
    ) {
        let measured = shape.observed * shape.length;
        let (raw, standardised) = (&raw[..measured], &standardised[..measured]);
        found.raw.fill(raw, shape.length);
        found.standardised.fill(standardised, shape.length);
        found.statistics = [None; STATISTICS];
        for (at, value) in found.by_memory.into_iter().enumerate() {
            found.statistics[at] = value.map(|value| self.rulers[at].measure(value));
        }
        found.level = None;
        if looks.level {
            found.level = self.level.push(&found.raw, fresh, &mut found.levels);
            found.statistics[LEVEL] = found.level.map(|level| level.evidence);
        }
        // The longest scale tells where the level turns.
        let scales = if looks.change { 0..SCALES } else { SCALES - 1..SCALES };
        self.changes.push(&found.raw, fresh, scales, &mut found.changes);
        let longest = found.changes.iter().map(|sizes| sizes[SCALES - 1]);
        found.turn = self.turn.push(largest(longest));
        let continues = self.previous.is_some_and(|previous| origin.follows(&previous));
        let Findings { standardised: samples, around, residuals, .. } = found;
        self.forecasts.push(samples, fresh, continues, around, residuals);
        for kind in 0..KINDS {
            let largest = largest(found.residuals.iter().map(|sizes| sizes[kind]));
            found.statistics[RESIDUAL + kind] = Some(largest);
        }
        if looks.texture {
            self.texture.push(&found.standardised, &mut found.steps);
            found.statistics[TEXTURE] = Some(largest(found.steps.iter().copied()));
        }
        found.news.clear();
        if let Some(span) = looks.novelty {
            self.novelties.resize_with(shape.observed, Novelty::default);
            let channels = self.novelties.iter_mut().zip(raw.chunks_exact(shape.length));
            found
                .news
                .extend(channels.map(|(novelty, samples)| novelty.push(samples, fresh, span)));
            found.statistics[NOVELTY] = Some(largest(found.news.iter().copied()));
        }
    }

    /// Probability per segment that keeps the promised time between false alarms.
    fn alarm_probability(&self, window_end: i64, interval: f64) -> f64 {
        let step = if self.step > 0.0 { self.step } else { (window_end - self.last_end) as f64 };
        (step / interval).clamp(RAREST, MOST_FREQUENT)
    }

    /// `ln_p` if a segment is more extreme than every suspicious one that it may share samples
    /// with, else 0: what has been marked is not marked again. Suspicious is what would make an
    /// alert last.
    fn onset(&mut self, ln_p: f64, rarest: f64, origin: &Origin, reach: u64) -> f64 {
        let past = self.peak.filter(|peak| origin.sequence.saturating_sub(peak.sequence) <= reach);
        if past.is_some_and(|peak| peak.ln_p <= ln_p) {
            return 0.0;
        }
        let suspicious = ln_p < 0.5 * rarest.ln();
        self.peak = suspicious.then_some(Peak { ln_p, sequence: origin.sequence });
        ln_p
    }

    /// `novelty` of a segment, or 0 where it belongs to what was marked not long before: within two
    /// windows only what is half as new again is marked.
    fn newest(&mut self, novelty: f64, origin: &Origin, reach: u64) -> f64 {
        let recent = self
            .record
            .filter(|record| origin.sequence.saturating_sub(record.sequence) <= 2 * reach);
        if novelty <= recent.map_or(0.0, |record| NEWER * record.novelty) {
            return 0.0;
        }
        self.record = Some(Record { novelty, sequence: origin.sequence });
        novelty
    }

    /// The id of the alert that a segment belongs to, if any. Once begun, an alert lasts while
    /// segments are rarer than the square root of what begins one, and for half a window after
    /// that: the parts look at the newer half of a segment, and the older may still hold the
    /// fault. It goes on if the next begins before the window has left it.
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
            Some(episode) if episode.open && sequence.saturating_sub(episode.last) <= reach / 2 => {
                Some(episode.id.clone())
            }
            Some(episode) => {
                episode.open = false;
                None
            }
            None => None,
        }
    }

    /// Forgets all that is known of one of the measured channels by itself.
    fn begin_anew(&mut self, channel: usize, channels: usize) {
        self.level.begin_anew(channel);
        self.changes.begin_anew(channel, channels);
        self.forecasts.begin_anew(channel, channels);
        self.texture.begin_anew(channel, channels);
    }

    fn learn(&mut self, found: &Findings, origin: &Origin, window_end: i64) {
        for (ruler, value) in self.rulers.iter_mut().zip(found.by_memory) {
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
        self.previous = Some(*origin);
        self.segments += 1;
    }
}

/// Scores in 0..1 of the `fresh` newest lines of a raw segment of logs `[channels, time]`, by what
/// each is by itself; see [`Mark::Line`]. One that is as rarely as severe as 1 in 1000 scores 0.5.
pub fn line_scores(raw: &[f32], time: usize, fresh: usize) -> impl Iterator<Item = f64> {
    let alarms = &raw[ALARM * time..(ALARM + 1) * time];
    let newest = &alarms[time - fresh.min(time)..];
    newest.iter().map(|alarm| {
        let alarm = if alarm.is_nan() { 0.0 } else { f64::from(alarm.max(0.0)) };
        verdict(-alarm, RARE_LINE)
    })
}

/// A score in 0..1, 0.5 where the evidence alone would begin an alert: `L / (1 + L)` with
/// `L = ln p / ln p_alert`.
fn verdict(ln_p: f64, rarest: f64) -> f64 {
    // Plus zero: no evidence is 0, not -0.
    let level = ln_p / rarest.ln() + 0.0;
    level / (1.0 + level)
}
