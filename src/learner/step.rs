//! One training step, in the order of MoCo's algorithm 1.

use serde::{Deserialize, Serialize};

use super::graph::Graph;
use super::health::{Health, Snapshot};
use super::info_nce::info_nce;
use super::{Learner, SCALE_BOUNDS, optimizer, reach};
use crate::config::Temperature;
use crate::pairs::{Origin, augment};

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

/// Augmented views of a batch of pairs.
struct Pairs {
    anchors: Vec<f32>,
    positives: Vec<f32>,
    origins: Vec<Origin>,
}

impl Learner {
    /// Trains on one batch; does nothing while the pool has next to no neighbours.
    pub fn step(&mut self) {
        let Some(pairs) = self.draw() else { return };
        if self.steps == 0 {
            let first = self.network.forward(&mut Graph::inference(), self.views(&pairs.anchors));
            self.network.learn_features(&first.features);
            self.momentum = self.network.clone();
        }
        let mut graph = Graph::training();
        let anchors = self.network.forward(&mut graph, self.views(&pairs.anchors));
        let positives =
            self.momentum.forward(&mut Graph::inference(), self.views(&pairs.positives));
        self.network.learn_features(&anchors.features);
        self.momentum.learn_features(&positives.features);
        let health = Health::of(&anchors);
        let queries = anchors.projections;
        let keys = positives.projections.into_values();

        // The batch's own keys join the queue before the loss. Were all negatives from the past,
        // the model could lower the loss by moving as a whole, away from where they were made.
        self.queue.push(&keys, &pairs.origins, self.steps + 1);
        let (reach, exclude) = (reach(&self.shape, &self.pairs), self.pairs.exclude_same_key);
        let negatives = self.queue.origins();
        let found = info_nce(
            queries.values(),
            &keys,
            self.queue.projections(),
            self.dimension(),
            self.scale(),
            |query, negative| exclude && pairs.origins[query].is_near(&negatives[negative], reach),
        );
        self.last_step = Some(Step {
            loss: found.loss,
            accuracy: found.accuracy,
            gradient_norm: 0.0,
            alignment: alignment(queries.values(), &keys, pairs.origins.len()),
            health,
        });

        let mut gradients = graph.backward(found.loss, move |gradients| {
            if let Some(out) = gradients.of(&queries) {
                out.iter_mut().zip(&found.queries).for_each(|(out, value)| *out += value);
            }
        });
        let norm = optimizer::clip(&mut gradients, self.training.clip_norm);
        if let Some(step) = &mut self.last_step {
            step.gradient_norm = norm;
        }
        gradients.push(vec![found.log_scale]);
        self.steps += 1;
        if self.rolls_back(&health, &pairs.anchors) {
            return;
        }
        self.update(&gradients);
        self.momentum.follow(&mut self.network, self.model.momentum);
    }

    /// Keeps the model while it is healthy; goes back to the one it last kept once it has
    /// collapsed, and returns whether it did.
    ///
    /// `found` is of a batch of `anchors`. A batch may be poor itself, of a stream that stands
    /// still: the model has collapsed if the one it was makes more of the same batch.
    fn rolls_back(&mut self, found: &Health, anchors: &[f32]) -> bool {
        let kept = self.watch.snapshot().filter(|_| self.watch.suspects(found));
        let collapsed = kept.is_some_and(|kept| {
            let before = kept.network.forward(&mut Graph::inference(), self.views(anchors));
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

    fn draw(&mut self) -> Option<Pairs> {
        let mut drawn = Pairs { anchors: Vec::new(), positives: Vec::new(), origins: Vec::new() };
        let (channels, size) = (self.shape.channels, self.shape.channels * self.shape.length);
        // A pool smaller than the batch would fill the queue with repetitions.
        for _ in 0..self.training.batch.min(self.pool.len()) {
            let (anchor, positive) = self.pool.sample(self.pairs.max_distance, &mut self.rng)?;
            for (ticket, views) in [(anchor, &mut drawn.anchors), (positive, &mut drawn.positives)]
            {
                let (values, origin) = self.pool.get(ticket)?;
                views.extend_from_slice(values);
                let view = views.len() - size..;
                augment::apply(&self.pairs.augment, &mut views[view], channels, &mut self.rng);
                if ticket == positive {
                    drawn.origins.push(origin);
                }
            }
        }
        (!drawn.origins.is_empty()).then_some(drawn)
    }

    fn update(&mut self, gradients: &[Vec<f32>]) {
        let mut parameters = self.network.parameters();
        parameters.push(&mut self.log_scale);
        let rate = self.watch.restraint() * self.training.learning_rate;
        self.optimizer.step(&mut parameters, gradients, rate);
        let log_scale = &mut self.log_scale.values_mut()[0];
        *log_scale = match self.model.temperature {
            Temperature::Auto => log_scale.clamp(SCALE_BOUNDS.start.ln(), SCALE_BOUNDS.end.ln()),
            Temperature::Fixed(temperature) => -temperature.ln(),
        };
    }
}

fn alignment(queries: &[f32], keys: &[f32], batch: usize) -> f32 {
    let squares = queries.iter().zip(keys).map(|(query, key)| (query - key).powi(2));
    squares.sum::<f32>() / batch as f32
}
