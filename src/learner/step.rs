//! One training step, in the order of MoCo's algorithm 1.
//!
//! A batch is cut into a fixed number of shards that the cores share; what they find is added up in
//! the shards' order. So the cores there are decide how fast a step is, and never what it gives.

use std::sync::OnceLock;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

#[cfg(any(test, feature = "cuda"))]
use super::device;
use super::frame;
use super::graph::Graph;
use super::health::{Health, Snapshot};
use super::info_nce::{InfoNce, info_nce};
use super::model::{Model, SCALE_BOUNDS, Settings};
use super::network::{Encoded, Network};
use super::{optimizer, reach};
use crate::config::{Augmentation, Temperature};
use crate::pairs::{Origin, Pool, augment};

/// Parts of a batch, each with its own pass.
const SHARDS: usize = 4;

/// How a training step went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// InfoNCE, nats; 0 without negatives.
    pub loss: f32,
    /// Share of anchors whose positive was likelier than every negative.
    pub accuracy: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
    /// Mean squared distance between the projections of a pair (Wang & Isola 2020): lower is
    /// better aligned.
    pub alignment: f32,
    /// How much of its space the model used for the anchors.
    pub health: Health,
}

/// Pairs to train on, in a fixed number of parts.
#[derive(Debug)]
pub struct Batch(pub(super) Vec<Shard>);

/// A part of a batch of pairs, `[pairs, channels, time]` each: not yet augmented.
#[derive(Debug)]
pub(super) struct Shard {
    pub anchors: Vec<f32>,
    pub positives: Vec<f32>,
    /// Of the positives.
    pub origins: Vec<Origin>,
    /// For its augmentations.
    rng: Pcg64Mcg,
}

/// What a shard of anchors says.
pub(super) struct Lesson {
    pub encoded: Encoded,
    pub found: InfoNce,
    pub gradients: Vec<Vec<f32>>,
}

impl Batch {
    /// Draws at most `pairs` pairs of segments at most `max_distance` strides apart; `None` while
    /// `pool` has next to no neighbours.
    pub fn draw(
        pool: &Pool,
        pairs: usize,
        max_distance: usize,
        rng: &mut Pcg64Mcg,
    ) -> Option<Self> {
        // A pool smaller than the batch would fill the queue with repetitions.
        let pairs = pairs.min(pool.len());
        let mut shards = Vec::with_capacity(SHARDS);
        for number in 0..SHARDS {
            let mut shard = Shard {
                anchors: Vec::new(),
                positives: Vec::new(),
                origins: Vec::new(),
                rng: Pcg64Mcg::seed_from_u64(rng.random()),
            };
            for _ in number * pairs / SHARDS..(number + 1) * pairs / SHARDS {
                let (anchor, positive) = pool.sample(max_distance, rng)?;
                shard.anchors.extend_from_slice(pool.get(anchor)?.0);
                let (values, origin) = pool.get(positive)?;
                shard.positives.extend_from_slice(values);
                shard.origins.push(origin);
            }
            shards.push(shard);
        }
        shards.retain(|shard| !shard.origins.is_empty());
        (!shards.is_empty()).then_some(Self(shards))
    }
}

impl Shard {
    /// A batch whose parts are augmented already, as one.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn join(shards: Vec<Self>) -> Self {
        let join = |mut whole: Self, part: Self| {
            whole.anchors.extend(part.anchors);
            whole.positives.extend(part.positives);
            whole.origins.extend(part.origins);
            whole
        };
        shards.into_iter().reduce(join).expect("a batch has shards")
    }
}

impl Model {
    /// Trains on one batch.
    pub fn step(&mut self, Batch(mut shards): Batch, settings: &Settings) {
        let batch = shards.iter().map(|shard| shard.origins.len()).sum();
        let aligns = self.steps.is_multiple_of(frame::INTERVAL);
        // As they came, before they are augmented.
        let offered: Vec<f32> = if aligns {
            shards.iter().flat_map(|shard| &shard.anchors).copied().collect()
        } else {
            Vec::new()
        };
        shards.par_iter_mut().for_each(|shard| self.augment(&settings.pairs.augment, shard));
        if self.steps == 0 {
            let first = self.encode_anchors(&self.network, &shards);
            self.network.learn_features(&first.features);
            self.momentum = self.network.clone();
        }
        #[cfg(any(test, feature = "cuda"))]
        if device::is_used(settings) {
            shards = vec![Shard::join(shards)];
        }
        let positives = self.keys(&shards, settings);
        // The batch's own keys join the queue before the loss. Were all negatives from the past,
        // the model could lower the loss by moving as a whole, away from where they were made.
        for (shard, positives) in shards.iter().zip(&positives) {
            let keys = positives.projections.values();
            self.queue.push(keys, &shard.origins, self.steps + 1);
        }
        let lessons = self.lessons(&shards, &positives, settings);
        let (mut anchors, mut found, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
        for lesson in lessons {
            anchors.push(lesson.encoded);
            found.push(lesson.found);
            gradients.push(lesson.gradients);
        }
        let (anchors, positives) = (Encoded::join(anchors), Encoded::join(positives));
        self.network.learn_features(&anchors.features);
        self.momentum.learn_features(&positives.features);
        let health = Health::of(&anchors);

        let sum = |part: fn(&InfoNce) -> f32| found.iter().map(part).sum();
        let log_scale: f32 = sum(|found| found.log_scale);
        self.last_step = Some(Step {
            loss: sum(|found| found.loss),
            accuracy: sum(|found| found.accuracy),
            gradient_norm: 0.0,
            alignment: alignment(
                anchors.projections.values(),
                positives.projections.values(),
                batch,
            ),
            health,
        });
        let mut gradients = optimizer::sum(gradients);
        let norm = optimizer::clip(&mut gradients, settings.training.clip_norm);
        if let Some(step) = &mut self.last_step {
            step.gradient_norm = norm;
        }
        gradients.push(vec![log_scale]);
        self.steps += 1;
        self.negatives = OnceLock::new();
        let rolled_back = self.rolls_back(&health, &shards);
        if !rolled_back {
            self.update(&gradients, settings);
            self.momentum.follow(&mut self.network, settings.model.momentum);
        }
        if aligns || rolled_back {
            self.align(&offered, &mut shards[0].rng);
        }
    }

    /// Turns embeddings back to where they were published before, and offers segments to know that
    /// by from now on.
    fn align(&mut self, offered: &[f32], rng: &mut Pcg64Mcg) {
        let mut frame = self.frame.clone();
        frame.align(|segments| self.embed_as_is(segments));
        frame.offer(offered, |segments| self.embed_as_is(segments), rng);
        self.frame = frame;
    }

    /// What the momentum network makes of a batch's positives.
    #[cfg_attr(not(any(test, feature = "cuda")), allow(unused_variables))]
    pub(super) fn keys(&self, shards: &[Shard], settings: &Settings) -> Vec<Encoded> {
        #[cfg(any(test, feature = "cuda"))]
        if let [batch] = shards
            && let Some(keys) = device::keys(self, batch, settings)
        {
            return vec![keys];
        }
        let encode = |shard: &Shard| {
            self.momentum.forward(&mut Graph::inference(), self.views(&shard.positives))
        };
        shards.par_iter().map(encode).collect()
    }

    /// What a batch says, the keys of its `positives` in the queue already.
    pub(super) fn lessons(
        &self,
        shards: &[Shard],
        positives: &[Encoded],
        settings: &Settings,
    ) -> Vec<Lesson> {
        #[cfg(any(test, feature = "cuda"))]
        if let ([batch], [keys]) = (shards, positives)
            && let Some(lesson) = device::learn(self, batch, keys, settings)
        {
            return vec![lesson];
        }
        let batch = shards.iter().map(|shard| shard.origins.len()).sum();
        let near = settings.pairs.exclude_same_key.then(|| self.queue.by_key(self.queue.len()));
        let learn = |(shard, positives): (&Shard, &Encoded)| {
            let mut graph = Graph::training();
            let encoded = self.network.forward(&mut graph, self.views(&shard.anchors));
            let mut found = info_nce(
                encoded.projections.values(),
                positives.projections.values(),
                self.queue.projections(),
                self.dimension(),
                self.scale(),
                batch,
                |query, cosines| {
                    if let Some(by_key) = &near {
                        let reach = reach(&self.shape, &settings.pairs);
                        let origin = &shard.origins[query];
                        for at in self.queue.near(by_key, origin, reach) {
                            cosines[at] = f32::NEG_INFINITY;
                        }
                    }
                },
            );
            let (queries, gradient) =
                (encoded.projections.clone(), std::mem::take(&mut found.queries));
            let gradients =
                graph.backward(found.loss, move |gradients| gradients.give(&queries, gradient));
            Lesson { encoded, found, gradients }
        };
        let pairs = shards.par_iter().zip(positives);
        pairs.map(learn).collect()
    }

    /// What `network` makes of a batch's anchors.
    fn encode_anchors(&self, network: &Network, batch: &[Shard]) -> Encoded {
        let encode =
            |shard: &Shard| network.forward(&mut Graph::inference(), self.views(&shard.anchors));
        Encoded::join(batch.par_iter().map(encode).collect())
    }

    /// Keeps the model while it is healthy; goes back to the one it last kept once it has
    /// collapsed, and returns whether it did.
    ///
    /// `found` is of the anchors of `batch`. A batch may be poor itself, of a stream that stands
    /// still: the model has collapsed if the one it was makes more of the same batch.
    fn rolls_back(&mut self, found: &Health, batch: &[Shard]) -> bool {
        let kept = self.watch.snapshot().filter(|_| self.watch.suspects(found));
        let collapsed = kept.is_some_and(|kept| {
            let before = self.encode_anchors(&kept.network, batch);
            found.is_collapsed(&Health::of(&before))
        });
        if !collapsed {
            if self.watch.note_healthy(found) {
                self.watch.keep(Snapshot {
                    steps: self.steps,
                    network: self.network.clone(),
                    momentum: self.momentum.clone(),
                    log_scale: self.log_scale.clone(),
                    optimizer: self.optimizer.clone(),
                });
            }
            return false;
        }
        let Some(kept) = self.watch.note_collapsed(found) else { return false };
        tracing::warn!(
            step = self.steps,
            kept = kept.steps,
            rank = found.rank,
            uniformity = found.uniformity,
            "model collapsed, rolled back"
        );
        self.queue.forget_after(kept.steps);
        self.network = kept.network;
        self.momentum = kept.momentum;
        self.log_scale = kept.log_scale;
        self.optimizer = kept.optimizer;
        true
    }

    fn augment(&self, how: &[Augmentation], shard: &mut Shard) {
        let (channels, size) = (self.shape.channels, self.shape.channels * self.shape.length);
        let views = [&mut shard.anchors, &mut shard.positives];
        for view in views.into_iter().flat_map(|views| views.chunks_exact_mut(size)) {
            augment::apply(how, view, channels, &mut shard.rng);
        }
    }

    fn update(&mut self, gradients: &[Vec<f32>], settings: &Settings) {
        let mut parameters = self.network.parameters();
        parameters.push(&mut self.log_scale);
        let rate = self.watch.restraint() * settings.training.learning_rate;
        self.optimizer.step(&mut parameters, gradients, rate);
        let log_scale = &mut self.log_scale.values_mut()[0];
        *log_scale = match settings.model.temperature {
            Temperature::Auto => log_scale.clamp(SCALE_BOUNDS.start.ln(), SCALE_BOUNDS.end.ln()),
            Temperature::Fixed(temperature) => -temperature.ln(),
        };
    }
}

fn alignment(queries: &[f32], keys: &[f32], batch: usize) -> f32 {
    let squares = queries.iter().zip(keys).map(|(query, key)| (query - key).powi(2));
    squares.sum::<f32>() / batch as f32
}
