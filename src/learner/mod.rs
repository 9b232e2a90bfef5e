//! The contrastive learner: encoder, momentum encoder, queue of negatives and InfoNCE.
//!
//! A [`Learner`] belongs to one thread. [`Learner::embed`] says what the model makes of segments;
//! [`Learner::learn`] then takes them as lessons, with a training step every `training.every`
//! segments. Training is scheduled by segments seen, never by a clock: the same segments in the
//! same order and the same seed give the same bits, on the CPU. Where segments come no matter how
//! long a step takes, a [`Trainer`] takes the steps beside that thread, and leaves out those that it
//! has no time for. The method is MoCo (He et al. 2020) on temporal neighbours.

#[cfg(any(test, feature = "cuda"))]
mod device;
mod encoder;
mod frame;
mod graph;
mod health;
mod info_nce;
mod kernels;
mod layers;
mod model;
mod movement;
mod negatives;
mod network;
mod optimizer;
mod queue;
mod side_by_side;
mod standardise;
mod step;
mod taps;
mod trainer;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

use self::model::{Model, Settings};
use self::standardise::Standardiser;
pub use self::standardise::all_stand_still;
use self::step::Batch;
use crate::config::{self, Input, Standardise};
use crate::keys::{Keys, State, number_of};
use crate::pairs::{Origin, Pool};
use crate::window::{Segments, WindowShape};

#[cfg(feature = "cuda")]
pub use self::device::{DeviceError, probe};
pub use self::graph::NamedTensor;
pub use self::health::Health;
pub use self::kernels::{Matrix, dot, multiply};
pub use self::side_by_side::SideBySide;
pub use self::step::Step;
pub use self::trainer::Trainer;

/// Cores that there are.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Lets this thread, and `threads` less one of the same name and priority that wait beside it, share
/// what the learners on this thread do, for as long as what is returned is held. Where it is never
/// called, rayon's threads share it.
///
/// # Errors
/// If the threads cannot be started.
pub fn share_among(threads: usize) -> std::io::Result<rayon::ThreadPool> {
    let name = std::thread::current().name().unwrap_or("learner").to_owned();
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |number| format!("{name}-{number}"))
        .use_current_thread()
        .build()
        .map_err(std::io::Error::other)
}

/// The model with all that it learns from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Learner {
    // Not part of what is saved: the pipeline file says them anew, see `Learner::resume`.
    #[serde(skip)]
    settings: Arc<Settings>,
    /// Shared with the trainer while a step is under way.
    model: Arc<Model>,
    pool: Pool,
    rng: Pcg64Mcg,
    /// Segments taken as lessons.
    seen: u64,
    skipped_steps: u64,
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
    /// Segments and channels whose standardisation begins anew behind them: the key was quiet there, and
    /// has not been for long.
    pub anew: Vec<(usize, usize)>,
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
        let settings = Settings::new(pipeline);
        let mut rng = Pcg64Mcg::seed_from_u64(settings.training.seed);
        Self {
            pool: Pool::new(settings.pairs.pool, shape.channels * shape.length),
            model: Arc::new(Model::new(&settings, shape, &mut rng)),
            settings: Arc::new(settings),
            rng,
            seen: 0,
            skipped_steps: 0,
            ruler: None,
        }
    }

    /// Makes a loaded learner go on under `pipeline`, which may train it differently but must
    /// describe the same model.
    ///
    /// # Errors
    /// If the saved weights do not fit the model that the pipeline file describes.
    pub fn resume(mut self, pipeline: &config::Pipeline) -> Result<Self, ResumeError> {
        let fresh = Self::new(pipeline);
        let (found, expected) = (self.model.shapes(), fresh.model.shapes());
        if found != expected || self.model.shape != fresh.model.shape {
            return Err(ResumeError { found, expected });
        }
        self.settings = fresh.settings;
        Ok(self)
    }

    /// Whether a round begins: the segments from one training step, as scheduled, to the next.
    pub fn begins_round(&self) -> bool {
        self.seen.is_multiple_of(self.settings.training.every.max(1) as u64)
    }

    /// How many segments to embed before the next call of [`Learner::learn`] changes the model.
    pub fn until_step(&self) -> usize {
        let every = self.settings.training.every.max(1) as u64;
        (every - self.seen % every) as usize
    }

    /// Training steps taken: the version of the model that [`Learner::embed`] uses.
    pub fn version(&self) -> u64 {
        self.model.steps
    }

    /// Training steps left out because there was no time for them.
    pub fn skipped_steps(&self) -> u64 {
        self.skipped_steps
    }

    /// How the last training step went.
    pub fn last_step(&self) -> Option<&Step> {
        self.model.last_step.as_ref()
    }

    /// Times that a collapsed model was rolled back to the last healthy one.
    pub fn rollbacks(&self) -> u64 {
        self.model.watch.rollbacks()
    }

    /// How far reference segments' embeddings are from what was once published of them: the mean of
    /// `1 - cosine`.
    pub fn wander(&self) -> f32 {
        self.model.frame.wander()
    }

    /// The inverse of the temperature.
    pub fn scale(&self) -> f32 {
        self.model.scale()
    }

    /// Segments taken as lessons.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The segments that it is for.
    pub fn shape(&self) -> &WindowShape {
        &self.model.shape
    }

    /// The tensors of the model, the rotation of what it publishes among them, and those of the momentum
    /// encoder that follows it.
    pub fn tensors(&self) -> [Vec<NamedTensor<'_>>; 2] {
        let mut model = self.model.network.tensors();
        model.push(self.model.frame.tensor("frame.rotation"));
        [model, self.model.momentum.tensors()]
    }

    /// Entries of the queue, and their mean age in training steps.
    pub fn queue(&self) -> (usize, f64) {
        (self.model.queue.len(), self.model.queue.mean_age(self.model.steps))
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
        let (size, time) =
            (self.model.shape.channels * self.model.shape.length, self.model.shape.length);
        let horizon = FORGETTING_SEGMENTS * time as u64;
        let horizon_of_all = FORGETTING_SEGMENTS_OF_ALL * time as u64;
        let mut ruler = self.ruler_for(segments, &range);
        let mut embedded = Embedded::default();
        for index in range {
            let meta = &segments.meta[index];
            let slot = keys.touch(&meta.key, S::default);
            let moved;
            let values = match self.settings.model.input {
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
                let (row, anew) = (embedded.slots.len(), standardiser.begin_anew(values, time));
                embedded.anew.extend(anew.into_iter().map(|channel| (row, channel)));
            }
            embedded.slots.push(slot);
            embedded.origins.push(Origin {
                key: number_of(&meta.lane, &meta.key),
                run: segments.runs[index],
                sequence: meta.sequence,
            });
        }
        embedded.ruler = ruler;
        (embedded.embeddings, embedded.projections) = self.model.encode(&embedded.values);
        self.surprise(keys, &mut embedded);
        embedded
    }

    /// The ruler of all keys, if there is to be one; the very first segment begins it.
    fn ruler_for(&self, segments: &Segments, range: &Range<usize>) -> Option<Ruler> {
        if self.settings.model.standardise == Standardise::Key || range.is_empty() {
            return None;
        }
        let (size, time) =
            (self.model.shape.channels * self.model.shape.length, self.model.shape.length);
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
        self.model.embed(values)
    }

    /// Each segment against its key's previous one, from this batch or an earlier one.
    fn surprise<S: State + AsMut<KeyState>>(&self, keys: &mut Keys<S>, embedded: &mut Embedded) {
        let dimension = self.model.dimension();
        let negatives = self.model.negatives();
        let (rows, count) = (embedded.origins.len(), negatives.projections.len());
        let mut cosines = negatives.projections.products(&embedded.projections);
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
            if self.settings.pairs.exclude_same_key {
                let reach = reach(&self.model.shape, &self.settings.pairs);
                for at in self.model.queue.near(&negatives.by_key, &origin, reach) {
                    cosines[at] = f32::NEG_INFINITY;
                }
            }
            let known = cosines.iter().any(|cosine| *cosine != f32::NEG_INFINITY);
            embedded.surprises.push(predecessor.filter(|_| known).map(|(_, before)| {
                info_nce::surprise(cosines, kernels::dot(projection, before), scale)
            }));
        }
    }

    /// Takes segments, as [`Learner::embed`] returned them, as lessons. A training step follows where
    /// one is due: at once, or by `trainer`, if there is one and it has time for it.
    pub fn learn<S: State + AsMut<KeyState>>(
        &mut self,
        keys: &mut Keys<S>,
        embedded: &Embedded,
        mut trainer: Option<&mut Trainer>,
    ) {
        let size = self.model.shape.channels * self.model.shape.length;
        let dimension = self.model.dimension();
        if self.settings.training.enabled || self.ruler.is_none() {
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
            if !self.settings.training.enabled {
                continue;
            }
            if self.begins_round() {
                if let Some(ruler) = &mut self.ruler {
                    ruler.used = ruler.following.clone();
                }
                match trainer.as_deref_mut() {
                    None => self.step(),
                    Some(trainer) if trainer.has_time() => {
                        if let Some(batch) = self.draw() {
                            trainer.begin(&self.model, &self.settings, batch);
                        }
                    }
                    Some(_) => self.skipped_steps += 1,
                }
            }
        }
    }

    /// Trains on one batch; does nothing while the pool has next to no neighbours.
    pub fn step(&mut self) {
        if let Some(batch) = self.draw() {
            Arc::make_mut(&mut self.model).step(batch, &self.settings);
        }
    }

    /// Goes on with the model that `trainer` has trained meanwhile, if it has; returns how long the
    /// step took.
    pub fn take_from(&mut self, trainer: &mut Trainer) -> Option<Duration> {
        let (model, took) = trainer.take()?;
        self.model = model;
        Some(took)
    }

    /// A batch of pairs from the pool.
    fn draw(&mut self) -> Option<Batch> {
        let Settings { training, pairs, .. } = &*self.settings;
        Batch::draw(&self.pool, training.batch, pairs.max_distance, &mut self.rng)
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
            learner.learn(keys, &embedded, None);
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
    fn a_trainer_takes_the_same_step_beside_and_leaves_out_what_it_has_no_time_for() {
        let (segments, later) = (stream(0..4), stream(4..5));
        let bits = |Fed { learner, keys }: &mut Fed| -> Vec<u32> {
            let embedded = learner.embed(keys, &later, 0..later.len());
            embedded.embeddings.iter().map(|value| value.to_bits()).collect()
        };
        let mut here = learner(config::Encoder::Tcn, "every = 16");
        // The first has no neighbours to learn from, the second does.
        let embedded = here.learner.embed(&mut here.keys, &segments, 0..32);
        here.learner.learn(&mut here.keys, &embedded, None);
        assert_eq!((here.learner.version(), here.learner.skipped_steps()), (1, 0));

        let mut beside = learner(config::Encoder::Tcn, "every = 16");
        let untrained = bits(&mut beside.clone());
        let mut trainer = Trainer::start(1e-3).expect("a thread");
        let embedded = beside.learner.embed(&mut beside.keys, &segments, 0..64);
        beside.learner.learn(&mut beside.keys, &embedded, Some(&mut trainer));
        assert_eq!((beside.learner.version(), beside.learner.skipped_steps()), (0, 2));
        while beside.learner.take_from(&mut trainer).is_none() {
            std::thread::yield_now();
        }
        assert_eq!(beside.learner.version(), 1);
        assert!(!trainer.has_time(), "it rests");
        here.keys = beside.keys.clone();
        let trained = bits(&mut beside);
        assert_eq!(trained, bits(&mut here));
        assert_ne!(trained, untrained);
    }

    #[test]
    fn embeddings_of_versions_far_apart_compare() {
        for encoder in [config::Encoder::Tcn, config::Encoder::Mlp] {
            let mut fed = learner(encoder, "learning_rate = 3e-3");
            feed(&mut fed, &stream(0..1000));
            let Fed { learner, keys } = &mut fed;
            let values = learner.embed(&mut keys.clone(), &stream(9000..9010), 0..160).values;
            let (published, as_is) =
                (learner.model.embed(&values), learner.model.embed_as_is(&values));
            let (version, queue) = (learner.version(), learner.queue());
            feed(&mut fed, &stream(1000..1800));
            let model = &fed.learner.model;
            assert!(model.steps >= version + 400 && fed.learner.queue() >= queue);
            let likeness = |a: &[f32], b: &[f32]| kernels::dot(a, b) / 160.0;
            let aligned = likeness(&published, &model.embed(&values));
            let wandered = likeness(&as_is, &model.embed_as_is(&values));
            assert!(
                aligned > wandered + 0.05 && aligned > 0.8,
                "{encoder:?}: {wandered} to {aligned}"
            );
            let wander = fed.learner.wander();
            assert!(wander > 0.0 && wander < 1.0 - wandered, "{encoder:?}: {wander}");
        }
    }

    #[test]
    fn what_a_trainer_is_told_to_forget_is_not_taken() {
        let mut fed = learner(config::Encoder::Mlp, "every = 16");
        let mut trainer = Trainer::start(1.0).expect("a thread");
        let segments = stream(0..2);
        let embedded = fed.learner.embed(&mut fed.keys, &segments, 0..32);
        fed.learner.learn(&mut fed.keys, &embedded, Some(&mut trainer));
        assert!(!trainer.has_time(), "a step is under way");
        trainer.forget();
        assert!(trainer.has_time());
        assert_eq!((fed.learner.take_from(&mut trainer), fed.learner.version()), (None, 0));
    }

    #[test]
    fn the_level_of_a_key_is_seen_from_its_first_segment_where_all_share_one_ruler() {
        let difference = |standardise: &str| -> f32 {
            let mut learner = learner(config::Encoder::Tcn, "");
            let settings = Arc::make_mut(&mut learner.learner.settings);
            settings.model.standardise = match standardise {
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
            Arc::make_mut(&mut fed.learner.settings).model.standardise = Standardise::All;
            let (mut bits, mut start) = (Vec::new(), 0);
            while start < segments.len() {
                let end = start + fed.learner.until_step().min(most);
                let embedded = fed.learner.embed(&mut fed.keys, &segments, start..end);
                fed.learner.learn(&mut fed.keys, &embedded, None);
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
