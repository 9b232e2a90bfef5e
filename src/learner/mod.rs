//! The contrastive learner: encoder, momentum encoder, queue of negatives and InfoNCE.
//!
//! A [`Learner`] belongs to one thread. [`Learner::embed`] says what the model makes of segments;
//! [`Learner::learn`] then takes them as lessons, with a training step every `training.every`
//! segments. Training is scheduled by segments seen, never by a clock: the same segments in the
//! same order and the same seed give the same bits. The method is MoCo (He et al. 2020) on
//! temporal neighbours.

mod encoder;
mod graph;
mod health;
mod info_nce;
mod kernels;
mod layers;
mod movement;
mod network;
mod optimizer;
mod queue;
mod standardise;
mod step;
mod taps;

use std::ops::Range;

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::encoder::Views;
use self::graph::{Graph, Node, Parameter};
use self::health::Watch;
use self::network::{Encoded, Network};
use self::optimizer::Adam;
use self::queue::Queue;
use self::standardise::Standardiser;
use crate::config::{self, Input, Standardise, Temperature};
use crate::keys::{Keys, State, number_of};
use crate::pairs::{Origin, Pool};
use crate::window::{Segments, WindowShape};

pub use self::graph::NamedTensor;
pub use self::health::Health;
pub use self::kernels::{Matrix, multiply};
pub use self::step::Step;

/// Cores that there are.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Lets this thread, and `threads` less one that wait beside it, share what the learners on this
/// thread do, for as long as what is returned is held. Where it is never called, rayon's threads
/// share it.
///
/// # Errors
/// If the threads cannot be started.
pub fn share_among(threads: usize) -> std::io::Result<rayon::ThreadPool> {
    let name = |number| format!("learner-{number}");
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(name)
        .use_current_thread()
        .build()
        .map_err(std::io::Error::other)
}

/// The model with all that it learns from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Learner {
    // Not part of what is saved: the pipeline file says them anew, see `Learner::resume`.
    #[serde(skip)]
    model: config::Model,
    #[serde(skip)]
    training: config::Training,
    #[serde(skip)]
    pairs: config::Pairs,
    shape: WindowShape,
    network: Network,
    momentum: Network,
    /// Logarithm of the inverse temperature, `[1, 1]`.
    log_scale: Parameter,
    optimizer: Adam,
    queue: Queue,
    pool: Pool,
    rng: Pcg64Mcg,
    /// Segments taken as lessons.
    seen: u64,
    /// Training steps taken: the model's version.
    steps: u64,
    skipped_steps: u64,
    last_step: Option<Step>,
    watch: Watch,
    /// Where `model.standardise = "all"`, from the first segment on.
    ruler: Option<Ruler>,
}

/// One standardisation of all keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ruler {
    /// The same from one training step, as scheduled, to the next.
    used: Standardiser,
    /// Follows every segment.
    following: Standardiser,
}

/// A saved model that is not the one of the pipeline file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the saved model has weights {found:?}, the pipeline file describes {expected:?}: [model], \
     [windows] or records.channels changed since it was saved"
)]
pub struct ResumeError {
    found: Vec<(usize, usize)>,
    expected: Vec<(usize, usize)>,
}

/// What the learner keeps per key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KeyState {
    standardiser: Option<Standardiser>,
    previous: Option<Previous>,
}

/// A key's last segment.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Previous {
    origin: Origin,
    /// Its place in the pool.
    ticket: u64,
    projection: Vec<f32>,
}

/// What the model makes of some segments.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    /// What the encoder sees of the segments, standardised, `[segments, channels, time]`, NaN where missing.
    pub values: Vec<f32>,
    /// `[segments, embedding]`, rows of unit length.
    pub embeddings: Vec<f32>,
    /// Per segment: its InfoNCE term as its predecessor's neighbour, nats; `None` without a
    /// predecessor or negatives.
    pub surprises: Vec<Option<f32>>,
    /// Where each segment stands in its key's stream.
    pub origins: Vec<Origin>,
    /// Where the keys' states are, in the map that the segments were embedded with.
    pub slots: Vec<usize>,
    projections: Vec<f32>,
    /// What the ruler of all keys has become by these segments.
    ruler: Option<Ruler>,
}

/// Segments over which a key's standardisation is held at that of its first one.
const HELD_SEGMENTS: usize = 32;
/// Segments' worth of samples over which standardisation forgets.
const FORGETTING_SEGMENTS: u64 = 128;
/// Likewise for the standardisation of all keys.
const FORGETTING_SEGMENTS_OF_ALL: u64 = 4096;
/// Most negatives that a segment's surprise is measured against: the estimate's noise is far below
/// the spread between segments, and embedding stays cheaper than a long queue.
const SURPRISE_NEGATIVES: usize = 1024;
/// Segments that one core embeds at a time: enough to be worth handing over, and few enough for the
/// second cache to hold what the layers make of them.
const PART: usize = 16;
/// Bounds of the inverse temperature where it is learned. CLIP (Radford et al. 2021) starts at
/// 1 / 0.07 and stops at 100; a queue that holds a stream's own recurring states wants less.
const SCALE_START: f32 = 1.0 / 0.1;
const SCALE_BOUNDS: Range<f32> = 2.0..50.0;

impl AsMut<Self> for KeyState {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

impl State for KeyState {
    fn leave_model(&mut self) {
        self.previous = None;
    }
}

impl Learner {
    /// An untrained learner for segments of one shape.
    pub fn new(pipeline: &config::Pipeline) -> Self {
        let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
        let config::Pipeline { model, training, pairs, .. } = pipeline;
        let mut rng = Pcg64Mcg::seed_from_u64(training.seed);
        let network = Network::new(model, shape.channels, shape.length, &mut rng);
        let scale = match model.temperature {
            Temperature::Auto => SCALE_START,
            Temperature::Fixed(temperature) => 1.0 / temperature,
        };
        let mut log_scale = Parameter::zeros(1, 1);
        log_scale.values_mut()[0] = scale.ln();
        let dimension = model.projection.last().copied().unwrap_or(model.embedding);
        Self {
            momentum: network.clone(),
            network,
            log_scale,
            optimizer: Adam::default(),
            queue: Queue::new(model.queue, dimension),
            pool: Pool::new(pairs.pool, shape.channels * shape.length),
            rng,
            seen: 0,
            steps: 0,
            skipped_steps: 0,
            last_step: None,
            watch: Watch::default(),
            ruler: None,
            model: model.clone(),
            training: training.clone(),
            pairs: pairs.clone(),
            shape,
        }
    }

    /// Makes a loaded learner go on under `pipeline`, which may train it differently but must
    /// describe the same model.
    ///
    /// # Errors
    /// If the saved weights do not fit the model that the pipeline file describes.
    pub fn resume(mut self, pipeline: &config::Pipeline) -> Result<Self, ResumeError> {
        let mut fresh = Self::new(pipeline);
        let shapes = |network: &mut Network| -> Vec<(usize, usize)> {
            network.parameters().iter().map(|parameter| parameter.shape()).collect()
        };
        let (found, expected) = (shapes(&mut self.network), shapes(&mut fresh.network));
        if found != expected || self.shape != fresh.shape {
            return Err(ResumeError { found, expected });
        }
        self.model = fresh.model;
        self.training = fresh.training;
        self.pairs = fresh.pairs;
        Ok(self)
    }

    /// Whether a round begins: the segments from one training step, as scheduled, to the next.
    pub fn begins_round(&self) -> bool {
        self.seen.is_multiple_of(self.training.every.max(1) as u64)
    }

    /// How many segments to embed before the next call of [`Learner::learn`] changes the model.
    pub fn until_step(&self) -> usize {
        let every = self.training.every.max(1) as u64;
        (every - self.seen % every) as usize
    }

    /// Training steps taken: the version of the model that [`Learner::embed`] uses.
    pub fn version(&self) -> u64 {
        self.steps
    }

    /// Training steps left out because the stream would have lagged.
    pub fn skipped_steps(&self) -> u64 {
        self.skipped_steps
    }

    /// How the last training step went.
    pub fn last_step(&self) -> Option<&Step> {
        self.last_step.as_ref()
    }

    /// Times that a collapsed model was rolled back to the last healthy one.
    pub fn rollbacks(&self) -> u64 {
        self.watch.rollbacks()
    }

    /// The inverse of the temperature.
    pub fn scale(&self) -> f32 {
        self.log_scale.values()[0].exp()
    }

    /// Segments taken as lessons.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The segments that it is for.
    pub fn shape(&self) -> &WindowShape {
        &self.shape
    }

    /// The tensors of the model, and those of the momentum encoder that follows it.
    pub fn tensors(&self) -> [Vec<NamedTensor<'_>>; 2] {
        [self.network.tensors(), self.momentum.tensors()]
    }

    /// Entries of the queue, and their mean age in training steps.
    pub fn queue(&self) -> (usize, f64) {
        (self.queue.len(), self.queue.mean_age(self.steps))
    }

    /// Embeds the segments of `range`, all of one lane, with the model as it is. Each is
    /// standardised by its key's segments before it, or by those of all keys up to the last
    /// training step; `keys` are those of the lane.
    pub fn embed<S: State + AsMut<KeyState> + Default>(
        &self,
        keys: &mut Keys<S>,
        segments: &Segments,
        range: Range<usize>,
    ) -> Embedded {
        let (size, time) = (self.shape.channels * self.shape.length, self.shape.length);
        let horizon = FORGETTING_SEGMENTS * time as u64;
        let horizon_of_all = FORGETTING_SEGMENTS_OF_ALL * time as u64;
        let mut ruler = self.ruler_for(segments, &range);
        let mut embedded = Embedded::default();
        for index in range {
            let meta = &segments.meta[index];
            let slot = keys.touch(&meta.key, S::default);
            let moved;
            let values = match self.model.input {
                Input::Values => segments.segment(index, size),
                Input::Movement => {
                    moved = movement::movement(segments.segment(index, size), time);
                    &moved
                }
            };
            let fresh = segments.fresh[index];
            if let Some(Ruler { used, following }) = &mut ruler {
                used.apply(values, time, &mut embedded.values);
                following.learn(values, time, fresh, horizon_of_all);
            } else {
                let standardiser = keys
                    .at(slot)
                    .1
                    .as_mut()
                    .standardiser
                    .get_or_insert_with(|| Standardiser::new(values, time, HELD_SEGMENTS));
                standardiser.apply(values, time, &mut embedded.values);
                // At once: whether the key's next segment comes along with this one or later must
                // not make a difference.
                standardiser.learn(values, time, fresh, horizon);
            }
            embedded.slots.push(slot);
            embedded.origins.push(Origin {
                key: number_of(&meta.lane, &meta.key),
                run: segments.runs[index],
                sequence: meta.sequence,
            });
        }
        embedded.ruler = ruler;
        self.encode(&mut embedded);
        self.surprise(keys, &mut embedded);
        embedded
    }

    /// The ruler of all keys, if there is to be one; the very first segment begins it.
    fn ruler_for(&self, segments: &Segments, range: &Range<usize>) -> Option<Ruler> {
        if self.model.standardise == Standardise::Key || range.is_empty() {
            return None;
        }
        let (size, time) = (self.shape.channels * self.shape.length, self.shape.length);
        let begin = || {
            let first = segments.segment(range.start, size);
            let first = Standardiser::new(first, time, HELD_SEGMENTS);
            Ruler { used: first.clone(), following: first }
        };
        Some(self.ruler.clone().unwrap_or_else(begin))
    }

    /// Embeds standardised segments `[segments, channels, time]` with the model as it is: for
    /// causes, which ask what a segment would be without one of its channels.
    pub fn embed_standardised(&self, values: &[f32]) -> Vec<f32> {
        let embed = |views: Views<'_>| self.network.embed(&mut Graph::inference(), views).1;
        Node::join(self.in_parts(values, embed)).into_values()
    }

    fn encode(&self, embedded: &mut Embedded) {
        let encode = |views: Views<'_>| self.network.forward(&mut Graph::inference(), views);
        let encoded = Encoded::join(self.in_parts(&embedded.values, encode));
        embedded.embeddings = encoded.embeddings.into_values();
        embedded.projections = encoded.projections.into_values();
    }

    /// What `network` makes of standardised segments `[segments, channels, time]`, part by part: the
    /// cores share them. A segment's bits do not depend on those beside it.
    fn in_parts<E: Send>(&self, values: &[f32], network: impl Fn(Views<'_>) -> E + Sync) -> Vec<E> {
        let size = PART * self.shape.channels * self.shape.length;
        if values.len() <= size {
            return vec![network(self.views(values))];
        }
        values.par_chunks(size).map(|values| network(self.views(values))).collect()
    }

    /// Each segment against its key's previous one, from this batch or an earlier one.
    fn surprise<S: State + AsMut<KeyState>>(&self, keys: &mut Keys<S>, embedded: &mut Embedded) {
        let dimension = self.dimension();
        let count = self.queue.len().min(SURPRISE_NEGATIVES);
        let negatives = &self.queue.projections()[..count * dimension];
        let rows = embedded.origins.len();
        let mut cosines = vec![0.0; rows * count];
        kernels::multiply(
            &mut cosines,
            false,
            kernels::Matrix::new(&embedded.projections, rows, dimension),
            kernels::Matrix::new(negatives, count, dimension).transposed(),
        );
        let scale = self.scale();
        for row in 0..rows {
            let origin = embedded.origins[row];
            let projection = &embedded.projections[row * dimension..(row + 1) * dimension];
            let earlier = (0..row).rev().find(|&at| embedded.origins[at].key == origin.key);
            let key = keys.at(embedded.slots[row]).1.as_mut();
            let predecessor = match (earlier, &key.previous) {
                (Some(at), _) => Some((
                    embedded.origins[at],
                    &embedded.projections[at * dimension..(at + 1) * dimension],
                )),
                (None, Some(previous)) => Some((previous.origin, previous.projection.as_slice())),
                (None, None) => None,
            }
            .filter(|(before, _)| origin.follows(before));
            let cosines = &mut cosines[row * count..(row + 1) * count];
            if self.pairs.exclude_same_key {
                let reach = reach(&self.shape, &self.pairs);
                for (cosine, negative) in cosines.iter_mut().zip(self.queue.origins()) {
                    if negative.is_near(&origin, reach) {
                        *cosine = f32::NEG_INFINITY;
                    }
                }
            }
            let known = cosines.iter().any(|cosine| *cosine != f32::NEG_INFINITY);
            embedded.surprises.push(predecessor.filter(|_| known).map(|(_, before)| {
                info_nce::surprise(cosines, kernels::dot(projection, before), scale)
            }));
        }
    }

    /// Takes segments, as [`Learner::embed`] returned them, as lessons; a training step follows
    /// where one is due, unless `may_train` says that there is no time for it.
    pub fn learn<S: State + AsMut<KeyState>>(
        &mut self,
        keys: &mut Keys<S>,
        embedded: &Embedded,
        may_train: bool,
    ) {
        let size = self.shape.channels * self.shape.length;
        let dimension = self.dimension();
        if self.training.enabled || self.ruler.is_none() {
            self.ruler = embedded.ruler.clone();
        }
        for (row, origin) in embedded.origins.iter().copied().enumerate() {
            let key = keys.at(embedded.slots[row]).1.as_mut();
            let predecessor = key.previous.as_ref().filter(|p| origin.follows(&p.origin));
            let ticket = self.pool.push(
                &embedded.values[row * size..(row + 1) * size],
                origin,
                predecessor.map(|previous| previous.ticket),
            );
            let projection = embedded.projections[row * dimension..(row + 1) * dimension].to_vec();
            key.previous = Some(Previous { origin, ticket, projection });
            self.seen += 1;
            if !self.training.enabled {
                continue;
            }
            if self.begins_round() {
                if let Some(ruler) = &mut self.ruler {
                    ruler.used = ruler.following.clone();
                }
                if may_train {
                    self.step();
                } else {
                    self.skipped_steps += 1;
                }
            }
        }
    }

    fn views<'a>(&self, values: &'a [f32]) -> Views<'a> {
        Views { values, channels: self.shape.channels, time: self.shape.length }
    }

    /// Length of a projection.
    fn dimension(&self) -> usize {
        self.model.projection.last().copied().unwrap_or(self.model.embedding)
    }
}

/// Strides within which two segments of a run share samples, or may be each other's positive.
pub fn reach(shape: &WindowShape, pairs: &config::Pairs) -> u64 {
    (shape.length.div_ceil(shape.stride) + pairs.max_distance) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::SegmentMeta;
    use crate::source::Lane;
    use rand::RngExt;
    use rand_distr::StandardNormal;

    const LENGTH: usize = 32;
    const CHANNELS: usize = 2;
    const MACHINES: u64 = 16;

    fn pipeline(encoder: config::Encoder, extra: &str) -> config::Pipeline {
        let mut pipeline: config::Pipeline = toml::from_str(&format!(
            "name = 'test'\n[source]\nkind = 'generator'\n\
             [records]\nkey = 'machine'\ntime = 'ts'\nchannels = ['a', 'b']\n\
             [windows]\nlength = {LENGTH}\nstride = 8\n\
             [model]\nhidden = 16\nembedding = 32\nprojection = [32, 16]\nqueue = 1024\n\
             [training]\nbatch = 64\n{extra}"
        ))
        .expect("a valid pipeline");
        pipeline.model.encoder = encoder;
        pipeline
    }

    fn learner(encoder: config::Encoder, extra: &str) -> Fed {
        Fed { learner: Learner::new(&pipeline(encoder, extra)), keys: Keys::new(1000, None) }
    }

    /// `rounds` segments of each machine, the machines in turn. A machine is known by its period
    /// and phase lag; where its segments start is not.
    fn stream(rounds: Range<u64>) -> Segments {
        let mut rng = Pcg64Mcg::seed_from_u64(rounds.start);
        let mut segments = Segments::default();
        for sequence in rounds {
            for machine in 0..MACHINES {
                let period = 5.0 + 1.7 * machine as f32;
                for channel in 0..CHANNELS {
                    for time in 0..LENGTH {
                        let at = (sequence * 8) as f32 + time as f32;
                        let lag = channel as f32 * machine as f32 * 0.4;
                        let wave = (std::f32::consts::TAU * at / period + lag).sin();
                        let noise: f32 = rng.sample(StandardNormal);
                        segments.values.push(wave + 0.3 * noise);
                    }
                }
                segments.runs.push(0);
                segments.fresh.push(if sequence == 0 { LENGTH } else { 8 });
                segments.meta.push(SegmentMeta {
                    key: format!("machine-{machine}").into(),
                    lane: Lane::new("test", 0),
                    sequence,
                    window_start: 0,
                    window_end: 0,
                    first_offset: 0,
                    last_offset: 0,
                });
            }
        }
        segments
    }

    /// A learner with its keys.
    #[derive(Clone)]
    struct Fed {
        learner: Learner,
        keys: Keys<KeyState>,
    }

    fn feed(Fed { learner, keys }: &mut Fed, segments: &Segments) -> Vec<f32> {
        let mut embeddings = Vec::new();
        let mut start = 0;
        while start < segments.len() {
            let range = start..(start + learner.until_step()).min(segments.len());
            let embedded = learner.embed(keys, segments, range.clone());
            learner.learn(keys, &embedded, true);
            embeddings.extend(embedded.embeddings);
            start = range.end;
        }
        embeddings
    }

    /// Share of segments whose nearest other segment is of the same machine; chance is 1 in 16.
    fn retrieval(Fed { learner, keys }: &mut Fed, segments: &Segments) -> f64 {
        let embeddings = learner.embed(keys, segments, 0..segments.len()).embeddings;
        let rows: Vec<&[f32]> = embeddings.chunks(32).collect();
        let hits = rows.iter().enumerate().filter(|(at, row)| {
            let nearest = (0..rows.len())
                .filter(|other| other != at)
                .max_by(|a, b| kernels::dot(row, rows[*a]).total_cmp(&kernels::dot(row, rows[*b])));
            nearest.is_some_and(|other| segments.meta[other].key == segments.meta[*at].key)
        });
        hits.count() as f64 / rows.len() as f64
    }

    #[test]
    fn training_lowers_the_loss_and_finds_neighbours_far_above_chance() {
        for encoder in [config::Encoder::Tcn, config::Encoder::Mlp] {
            let mut learner = learner(encoder, "learning_rate = 3e-3");
            let later = stream(9000..9010);
            let before = retrieval(&mut learner.clone(), &later);
            feed(&mut learner, &stream(0..40));
            let early = learner.learner.last_step().expect("steps were taken").clone();
            feed(&mut learner, &stream(40..3000));
            let late = learner.learner.last_step().expect("steps were taken").clone();
            let after = retrieval(&mut learner, &later);
            assert!(late.loss < early.loss - 0.5, "{encoder:?}: {early:?}, then {late:?}");
            assert!(late.accuracy > early.accuracy, "{encoder:?}: {early:?}, then {late:?}");
            assert!(after > 0.65 && after > before + 0.05, "{encoder:?}: {before}, then {after}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_and_another_seed_gives_others() {
        let bits = |extra: &str| -> Vec<u32> {
            let mut learner = learner(config::Encoder::Tcn, extra);
            feed(&mut learner, &stream(0..20)).iter().map(|value| value.to_bits()).collect()
        };
        assert_eq!(bits("seed = 7"), bits("seed = 7"));
        assert_ne!(bits("seed = 7"), bits("seed = 8"));
    }

    #[test]
    fn a_saved_and_loaded_learner_goes_on_as_if_nothing_had_happened() {
        let mut learner = learner(config::Encoder::Tcn, "");
        feed(&mut learner, &stream(0..20));
        let saved = postcard::to_stdvec(&learner.learner).expect("a learner can be saved");
        let loaded: Learner = postcard::from_bytes(&saved).expect("and loaded");
        let keys = learner.keys.clone();
        let mut pipeline = pipeline(config::Encoder::Tcn, "");
        let loaded = loaded.resume(&pipeline).expect("the same model");
        let mut loaded = Fed { learner: loaded, keys };
        let next = stream(20..30);
        assert_eq!(feed(&mut learner, &next), feed(&mut loaded, &next));
        pipeline.model.hidden = 8;
        assert!(loaded.learner.resume(&pipeline).is_err());
    }

    #[test]
    fn a_frozen_learner_embeds_without_a_step() {
        let mut learner = learner(config::Encoder::Tcn, "enabled = false");
        feed(&mut learner, &stream(0..20));
        assert_eq!((learner.learner.version(), learner.learner.last_step()), (0, None));
    }

    #[test]
    fn steps_left_out_for_want_of_time_are_counted() {
        let Fed { mut learner, mut keys } = learner(config::Encoder::Tcn, "every = 16");
        let segments = stream(0..2);
        let embedded = learner.embed(&mut keys, &segments, 0..32);
        learner.learn(&mut keys, &embedded, false);
        assert_eq!((learner.version(), learner.skipped_steps()), (0, 2));
    }

    #[test]
    fn the_level_of_a_key_is_seen_from_its_first_segment_where_all_share_one_ruler() {
        let difference = |standardise: &str| -> f32 {
            let mut learner = learner(config::Encoder::Tcn, "");
            learner.learner.model.standardise = match standardise {
                "all" => Standardise::All,
                _ => Standardise::Key,
            };
            feed(&mut learner, &stream(0..100));
            let mut new = stream(0..1);
            new.meta.iter_mut().for_each(|meta| meta.key = format!("{}-new", meta.key).into());
            let mut raised = new.clone();
            raised.values.iter_mut().for_each(|value| *value += 2.0);
            let Fed { learner, keys } = &mut learner;
            let embed = |segments: &Segments| {
                learner.embed(&mut keys.clone(), segments, 0..segments.len()).embeddings
            };
            embed(&new).iter().zip(embed(&raised)).map(|(a, b)| (a - b).abs()).sum()
        };
        assert!(difference("key") < 1e-2 * difference("all"), "{}", difference("key"));
    }

    #[test]
    fn the_ruler_of_all_keys_does_not_depend_on_how_many_segments_come_at_once() {
        let segments = stream(0..20);
        let feed_by = |most: usize| -> Vec<u32> {
            let mut fed = learner(config::Encoder::Tcn, "");
            fed.learner.model.standardise = Standardise::All;
            let (mut bits, mut start) = (Vec::new(), 0);
            while start < segments.len() {
                let end = start + fed.learner.until_step().min(most);
                let embedded = fed.learner.embed(&mut fed.keys, &segments, start..end);
                fed.learner.learn(&mut fed.keys, &embedded, true);
                bits.extend(embedded.embeddings.iter().map(|value| value.to_bits()));
                start = end;
            }
            bits
        };
        assert!(feed_by(usize::MAX) == feed_by(1) && feed_by(1) == feed_by(5));
    }

    #[test]
    fn a_collapsed_model_is_rolled_back_and_goes_on_learning() {
        let mut wild = learner(config::Encoder::Tcn, "learning_rate = 30.0");
        feed(&mut wild, &stream(0..300));
        let rollbacks = wild.learner.rollbacks();
        assert!(rollbacks > 0);
        let step = wild.learner.last_step().expect("steps were taken").clone();
        assert!(step.health.rank > 2.0, "{rollbacks}: {step:?}");
        // What was kept is part of what is saved.
        let saved = postcard::to_stdvec(&wild.learner).expect("a learner can be saved");
        let loaded: Learner = postcard::from_bytes(&saved).expect("and loaded");
        let pipeline = pipeline(config::Encoder::Tcn, "learning_rate = 30.0");
        let learner = loaded.resume(&pipeline).expect("the same model");
        let mut loaded = Fed { learner, keys: wild.keys.clone() };
        let next = stream(300..400);
        assert_eq!(feed(&mut wild, &next), feed(&mut loaded, &next));
        assert_eq!(wild.learner.rollbacks(), loaded.learner.rollbacks());
    }

    #[test]
    fn a_stream_that_stands_still_is_no_collapse() {
        let mut still = learner(config::Encoder::Tcn, "");
        feed(&mut still, &stream(0..200));
        let mut constant = stream(200..600);
        constant.values.fill(1.0);
        feed(&mut still, &constant);
        assert_eq!(still.learner.rollbacks(), 0);
    }

    #[test]
    fn a_neighbour_from_another_machine_is_more_surprising_than_ones_own() {
        let mut learner = learner(config::Encoder::Tcn, "");
        feed(&mut learner, &stream(0..400));
        let usual = stream(400..401);
        let mut swapped = usual.clone();
        let size = CHANNELS * LENGTH;
        swapped.values.rotate_left(size * 5);
        let mean = |embedded: Embedded| -> f32 {
            let known: Vec<f32> = embedded.surprises.into_iter().flatten().collect();
            assert_eq!(known.len(), MACHINES as usize);
            known.iter().sum::<f32>() / known.len() as f32
        };
        let Fed { learner, keys } = &mut learner;
        let usual = mean(learner.embed(&mut keys.clone(), &usual, 0..MACHINES as usize));
        let odd = mean(learner.embed(keys, &swapped, 0..MACHINES as usize));
        assert!(odd > usual + 1.0, "{odd} against {usual}");
    }
}
