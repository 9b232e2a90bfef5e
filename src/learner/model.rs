//! What training changes: the encoder, its momentum encoder, the queue of negatives.

use std::sync::OnceLock;

use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::encoder::Views;
use super::frame::Frame;
use super::graph::{Graph, Node, Parameter};
use super::health::Watch;
use super::negatives::Negatives;
use super::network::{Encoded, Network};
use super::optimizer::Adam;
use super::queue::Queue;
use super::step::Step;
use crate::config::{self, Temperature};
use crate::window::WindowShape;

/// What a training step starts from, and what it leaves behind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Model {
    pub shape: WindowShape,
    pub network: Network,
    pub momentum: Network,
    /// Logarithm of the inverse temperature, `[1, 1]`.
    pub log_scale: Parameter,
    pub optimizer: Adam,
    pub queue: Queue,
    /// Made when they are first asked for after a step.
    #[serde(skip)]
    pub negatives: OnceLock<Negatives>,
    /// Training steps taken: the model's version.
    pub steps: u64,
    pub last_step: Option<Step>,
    pub watch: Watch,
    /// What embeddings are turned into, so that those of different versions compare.
    pub frame: Frame,
}

/// What the pipeline file says of the model and its training.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub model: config::Model,
    pub training: config::Training,
    pub pairs: config::Pairs,
}

/// Multiplications of the segments that one core embeds at a time: enough to be worth handing over, some
/// 0.1 ms, and few enough for the second cache to hold what the layers make of them.
const PART: usize = 12 << 20;
/// Bounds of the inverse temperature where it is learned. CLIP (Radford et al. 2021) starts at
/// 1 / 0.07 and stops at 100; a queue that holds a stream's own recurring states wants less.
pub const SCALE_BOUNDS: std::ops::Range<f32> = 2.0..50.0;
const SCALE_START: f32 = 1.0 / 0.1;

impl Settings {
    /// Those of a pipeline file.
    pub fn new(pipeline: &config::Pipeline) -> Self {
        let config::Pipeline { model, training, pairs, .. } = pipeline.clone();
        Self { model, training, pairs }
    }
}

impl Model {
    /// An untrained one for segments of one shape.
    pub fn new(settings: &Settings, shape: WindowShape, rng: &mut Pcg64Mcg) -> Self {
        let model = &settings.model;
        let network = Network::new(model, shape.channels, shape.length, rng);
        let dimension = model.projection.last().copied().unwrap_or(model.embedding);
        let frame = Frame::new(model.embedding, shape.channels * shape.length);
        let scale = match model.temperature {
            Temperature::Auto => SCALE_START,
            Temperature::Fixed(temperature) => 1.0 / temperature,
        };
        let mut log_scale = Parameter::zeros(1, 1);
        log_scale.values_mut()[0] = scale.ln();
        Self {
            shape,
            momentum: network.clone(),
            queue: Queue::new(model.queue, dimension),
            negatives: OnceLock::new(),
            network,
            log_scale,
            optimizer: Adam::default(),
            steps: 0,
            last_step: None,
            watch: Watch::default(),
            frame,
        }
    }

    /// Rows and columns of all weights.
    pub fn shapes(&self) -> Vec<(usize, usize)> {
        let mut network = self.network.clone();
        network.parameters().iter().map(|parameter| parameter.shape()).collect()
    }

    /// The inverse of the temperature.
    pub fn scale(&self) -> f32 {
        self.log_scale.values()[0].exp()
    }

    /// What surprise is measured against.
    pub fn negatives(&self) -> &Negatives {
        self.negatives.get_or_init(|| Negatives::of(&self.queue))
    }

    /// Length of a projection.
    pub fn dimension(&self) -> usize {
        self.queue.dimension()
    }

    /// Embeds standardised segments `[segments, channels, time]`, in the frame of all versions.
    pub fn embed(&self, values: &[f32]) -> Vec<f32> {
        self.frame.turn(&self.embed_as_is(values))
    }

    /// Embeds standardised segments `[segments, channels, time]`, in the frame of this version.
    pub fn embed_as_is(&self, values: &[f32]) -> Vec<f32> {
        let embed = |views: Views<'_>| self.network.embed(&mut Graph::inference(), views).1;
        Node::join(self.in_parts(values, embed)).into_values()
    }

    /// Embeds, in the frame of all versions, and projects standardised segments
    /// `[segments, channels, time]`.
    pub fn encode(&self, values: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let encode = |views: Views<'_>| self.network.forward(&mut Graph::inference(), views);
        let Encoded { embeddings, projections, .. } = Encoded::join(self.in_parts(values, encode));
        (self.frame.turn(embeddings.values()), projections.into_values())
    }

    /// What `network` makes of standardised segments `[segments, channels, time]`, part by part: the
    /// cores share them. A segment's bits do not depend on those beside it.
    fn in_parts<E: Send>(&self, values: &[f32], network: impl Fn(Views<'_>) -> E + Sync) -> Vec<E> {
        let views = self.views(values);
        let parts = views.len() * self.network.encoder.work(views.time) / PART;
        if parts <= 1 {
            return vec![network(views)];
        }
        let part = views.len().div_ceil(parts) * views.channels * views.time;
        values.par_chunks(part).map(|values| network(self.views(values))).collect()
    }

    /// Segments `[segments, channels, time]` as the network takes them.
    pub fn views<'a>(&self, values: &'a [f32]) -> Views<'a> {
        Views { values, channels: self.shape.channels, time: self.shape.length }
    }
}
