//! Encoder and projection head: what is trained, and what follows it as the momentum encoder.

use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::encoder::{Encoder, Views};
use super::graph::{Graph, NamedTensor, Node, Parameter};
use super::kernels::vectorised;
use super::layers::{Activation, Dense, RunningNorm, normalise};
use super::optimizer::CHUNK;
use crate::config;

/// An encoder with the head that the loss looks through. The head is for training alone: what it
/// throws away (SimCLR, Chen et al. 2020) is worth keeping in the embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub(super) encoder: Encoder,
    pub(super) norm: RunningNorm,
    pub(super) projection: Vec<Dense>,
}

/// What a network makes of segments.
pub struct Encoded {
    /// `[segments, embedding]`: what the encoder says, before it is standardised.
    pub features: Node,
    /// `[segments, embedding]`, rows of unit length.
    pub embeddings: Node,
    /// `[segments, projection]`, rows of unit length.
    pub projections: Node,
}

impl Encoded {
    /// The rows of all parts, one part after the other: values alone, to be looked at.
    pub fn join(parts: Vec<Self>) -> Self {
        let (mut features, mut embeddings, mut projections) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            features.push(part.features);
            embeddings.push(part.embeddings);
            projections.push(part.projections);
        }
        let [features, embeddings, projections] =
            [features, embeddings, projections].map(Node::join);
        Self { features, embeddings, projections }
    }
}

impl Network {
    /// As the pipeline file asks, with random weights.
    pub fn new(model: &config::Model, channels: usize, time: usize, rng: &mut impl Rng) -> Self {
        let encoder = Encoder::new(model, channels, time, rng);
        let mut inputs = model.embedding;
        let last = model.projection.len().saturating_sub(1);
        let projection = model
            .projection
            .iter()
            .enumerate()
            .map(|(layer, &outputs)| {
                let activation = if layer == last { Activation::Linear } else { Activation::Relu };
                Dense::new(std::mem::replace(&mut inputs, outputs), outputs, activation, rng)
            })
            .collect();
        Self { encoder, norm: RunningNorm::new(model.embedding), projection }
    }

    /// Embeds segments: the encoder's features, and from them the embeddings, rows of unit length,
    /// `[segments, embedding]` both.
    pub fn embed(&self, graph: &mut Graph, views: Views<'_>) -> (Node, Node) {
        let features = self.encoder.forward(graph, views);
        let standardised = self.norm.forward(graph, &features);
        let embeddings = normalise(graph, &standardised);
        (features, embeddings)
    }

    /// Embeds and projects segments.
    pub fn forward(&self, graph: &mut Graph, views: Views<'_>) -> Encoded {
        let (features, embeddings) = self.embed(graph, views);
        let mut hidden = embeddings.clone();
        for layer in &self.projection {
            hidden = layer.forward(graph, &hidden);
        }
        let projections = normalise(graph, &hidden);
        Encoded { features, embeddings, projections }
    }

    /// Learns the statistics of the features that [`Network::forward`] returned for a batch.
    pub fn learn_features(&mut self, features: &Node) {
        self.norm.learn(features);
    }

    /// All tensors, by name: those of the encoder, the running statistics of its features, and
    /// the projection head.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        let mut tensors = self.encoder.tensors();
        tensors.extend(self.norm.tensors("norm"));
        for (number, layer) in self.projection.iter().enumerate() {
            tensors.extend(layer.tensors(&format!("projection.{number}")));
        }
        tensors
    }

    /// All parameters, in the order in which [`Network::forward`] reads them.
    pub fn parameters(&mut self) -> Vec<&mut Parameter> {
        let mut parameters = self.encoder.parameters();
        parameters.extend(self.projection.iter_mut().flat_map(Dense::parameters));
        parameters
    }

    /// Moves every weight towards that of `leader`: `w = momentum * w + (1 - momentum) * leader`
    /// (He et al. 2020, equation 2).
    pub fn follow(&mut self, leader: &mut Self, momentum: f32) {
        for (mine, theirs) in self.parameters().into_iter().zip(leader.parameters()) {
            let (mine, theirs) = (mine.values_mut(), theirs.values());
            let chunks = mine.par_chunks_mut(CHUNK).zip(theirs.par_chunks(CHUNK));
            chunks.for_each(|(mine, theirs)| follow(mine, theirs, momentum));
        }
    }
}

vectorised! {
    fn follow<'a>(mine: &'a mut [f32], theirs: &'a [f32], momentum: f32) {
        for (mine, theirs) in mine.iter_mut().zip(theirs) {
            *mine = momentum * *mine + (1.0 - momentum) * theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    #[test]
    fn a_momentum_network_moves_its_share_towards_the_leader() {
        let model = config::Model::default();
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        let mut leader = Network::new(&model, 1, 8, &mut rng);
        let mut follower = Network::new(&model, 1, 8, &mut rng);
        let (a, b) = (follower.parameters()[0].values()[0], leader.parameters()[0].values()[0]);
        follower.follow(&mut leader, 0.75);
        assert!((follower.parameters()[0].values()[0] - (0.75 * a + 0.25 * b)).abs() < 1e-6);
        follower.follow(&mut leader, 0.0);
        assert_eq!(follower, leader);
    }
}
