//! The encoder: standardised segments become features.
//!
//! A missing value enters as 0 together with a second input per channel that says whether the
//! value was observed (to convolutions) or missing (to dense layers), so that "missing" and
//! "average" are different things to the model.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::graph::{Graph, NamedTensor, Node, Parameter};
use super::layers::{Activation, Convolution, Dense, Moments, pool};
use crate::config::{self, Pooling};

/// Segments `[segments, channels, time]`, standardised, NaN where missing.
#[derive(Clone, Copy, Debug)]
pub struct Views<'a> {
    /// The values, segment by segment and channel by channel.
    pub values: &'a [f32],
    /// Channels of a segment.
    pub channels: usize,
    /// Samples of a segment.
    pub time: usize,
}

impl Views<'_> {
    /// Number of segments.
    pub fn len(&self) -> usize {
        self.values.len() / (self.channels * self.time)
    }
}

/// An encoder of either architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Encoder {
    /// A temporal convolutional network.
    Tcn(Tcn),
    /// Dense layers.
    Mlp(Mlp),
}

impl Encoder {
    /// As the pipeline file asks, with random weights.
    pub fn new(model: &config::Model, channels: usize, time: usize, rng: &mut impl Rng) -> Self {
        match model.encoder {
            config::Encoder::Tcn => Self::Tcn(Tcn::new(model, channels, time, rng)),
            config::Encoder::Mlp => Self::Mlp(Mlp::new(model, channels, time, rng)),
        }
    }

    /// Segments to features `[segments, embedding]`.
    pub fn forward(&self, graph: &mut Graph, views: Views<'_>) -> Node {
        match self {
            Self::Tcn(tcn) => tcn.forward(graph, views),
            Self::Mlp(mlp) => mlp.forward(graph, views),
        }
    }

    /// Multiplications for a segment of `time` samples, of its layers but a convolutional one's last.
    pub fn work(&self, time: usize) -> usize {
        match self {
            Self::Tcn(Tcn { lift, blocks, .. }) => {
                time * (lift.work() + blocks.iter().map(Convolution::work).sum::<usize>())
            }
            Self::Mlp(Mlp { layers }) => layers.iter().map(Dense::work).sum(),
        }
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        match self {
            Self::Tcn(Tcn { lift, blocks, head, .. }) => {
                let mut tensors = lift.tensors("encoder.lift");
                for (number, block) in blocks.iter().enumerate() {
                    tensors.extend(block.tensors(&format!("encoder.blocks.{number}")));
                }
                tensors.extend(head.tensors("encoder.head"));
                tensors
            }
            Self::Mlp(Mlp { layers }) => {
                let layers = layers.iter().enumerate();
                layers
                    .flat_map(|(number, layer)| layer.tensors(&format!("encoder.layers.{number}")))
                    .collect()
            }
        }
    }

    /// All parameters, in the order in which [`Encoder::forward`] reads them.
    pub fn parameters(&mut self) -> Vec<&mut Parameter> {
        match self {
            Self::Tcn(tcn) => tcn.parameters().collect(),
            Self::Mlp(mlp) => mlp.parameters().collect(),
        }
    }
}

/// Dilated convolutions with residual connections, mean and maximum over time, a dense layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tcn {
    lift: Convolution,
    /// Their dilations double from 1 on while they fit into the segment.
    pub(super) blocks: Vec<Convolution>,
    head: Dense,
    pub(super) pooling: Pooling,
}

impl Tcn {
    fn new(model: &config::Model, channels: usize, time: usize, rng: &mut impl Rng) -> Self {
        let width = model.hidden;
        let lift = Convolution::new(2 * channels, width, 1, false, rng);
        let blocks: Vec<Convolution> = (0..model.blocks)
            .map(|block| 1_usize << block)
            .filter(|dilation| *dilation == 1 || 2 * dilation < time)
            .map(|dilation| Convolution::new(width, width, dilation, true, rng))
            .collect();
        let pooled = match model.pool {
            Pooling::Last => 1,
            Pooling::Every => 1 + blocks.len(),
        };
        let head = Dense::new(pooled * 2 * width, model.embedding, Activation::Linear, rng);
        Self { lift, blocks, head, pooling: model.pool }
    }

    fn forward(&self, graph: &mut Graph, views: Views<'_>) -> Node {
        let pad = self.blocks.iter().map(Convolution::dilation).max().unwrap_or(1);
        let moments = Moments { segments: views.len(), time: views.time, pad };
        let (values, observed) = by_moment(views, moments);
        let input = graph.constant(values, moments.rows(), 2 * views.channels);
        let mut hidden = self.lift.forward(graph, &input, moments);
        let mut pooled = Vec::new();
        for block in &self.blocks {
            if self.pooling == Pooling::Every {
                pooled.push(pool(graph, &hidden, moments, &observed));
            }
            hidden = block.forward(graph, &hidden, moments);
        }
        pooled.push(pool(graph, &hidden, moments, &observed));
        self.head.forward_parts(graph, &pooled.iter().collect::<Vec<_>>())
    }

    fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let blocks = self.blocks.iter_mut().flat_map(Convolution::parameters);
        self.lift.parameters().chain(blocks).chain(self.head.parameters())
    }
}

/// Three dense layers over the flattened segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mlp {
    layers: [Dense; 3],
}

impl Mlp {
    fn new(model: &config::Model, channels: usize, time: usize, rng: &mut impl Rng) -> Self {
        let inputs = 2 * channels * time;
        let (wide, narrow) = (8 * model.hidden, 4 * model.hidden);
        Self {
            layers: [
                Dense::new(inputs, wide, Activation::Relu, rng),
                Dense::new(wide, narrow, Activation::Relu, rng),
                Dense::new(narrow, model.embedding, Activation::Linear, rng),
            ],
        }
    }

    fn forward(&self, graph: &mut Graph, views: Views<'_>) -> Node {
        let size = views.channels * views.time;
        let [first, rest @ ..] = &self.layers;
        let filled = |value: &f32| if value.is_nan() { 0.0 } else { *value };
        let values = views.values.iter().map(filled).collect();
        let values = graph.constant(values, views.len(), size);
        // Mostly nothing is missing, and half of the first layer has nothing to do.
        let mut hidden = if views.values.iter().any(|value| value.is_nan()) {
            let missing = views.values.iter().map(|value| f32::from(value.is_nan())).collect();
            let missing = graph.constant(missing, views.len(), size);
            first.forward_parts(graph, &[&values, &missing])
        } else {
            first.forward(graph, &values)
        };
        for layer in rest {
            hidden = layer.forward(graph, &hidden);
        }
        hidden
    }

    fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.layers.iter_mut().flat_map(Dense::parameters)
    }
}

/// Segments as rows of moments `[moments, 2 * channels]`, values and then their mask, and per
/// segment and moment whether any channel was observed.
fn by_moment(views: Views<'_>, moments: Moments) -> (Vec<f32>, Vec<bool>) {
    let columns = 2 * views.channels;
    let mut values = vec![0.0; moments.rows() * columns];
    let mut observed = vec![false; moments.segments * views.time];
    let segments = views.values.chunks_exact(views.channels * views.time);
    for (segment, channels) in segments.enumerate() {
        let first = moments.row(segment) * columns;
        let rows = &mut values[first..first + views.time * columns];
        let observed = &mut observed[segment * views.time..(segment + 1) * views.time];
        for (channel, samples) in channels.chunks_exact(views.time).enumerate() {
            let moments = rows.chunks_exact_mut(columns).zip(observed.iter_mut());
            for (sample, (row, observed)) in samples.iter().zip(moments) {
                if !sample.is_nan() {
                    row[channel] = *sample;
                    row[views.channels + channel] = 1.0;
                    *observed = true;
                }
            }
        }
    }
    (values, observed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    fn encoders() -> Vec<Encoder> {
        use config::Encoder::{Mlp, Tcn};
        [(Tcn, Pooling::Last), (Tcn, Pooling::Every), (Mlp, Pooling::Last)]
            .map(|(encoder, pool)| {
                let model = config::Model { encoder, pool, ..config::Model::default() };
                Encoder::new(&model, 2, 8, &mut Pcg64Mcg::seed_from_u64(1))
            })
            .into()
    }

    fn embed(encoder: &Encoder, values: &[f32]) -> Vec<f32> {
        let views = Views { values, channels: 2, time: 8 };
        encoder.forward(&mut Graph::inference(), views).into_values()
    }

    #[test]
    fn features_do_not_depend_on_the_rest_of_the_batch() {
        let segments: Vec<f32> = (0..48).map(|at| (at as f32 * 0.7).sin()).collect();
        for encoder in encoders() {
            let together = embed(&encoder, &segments);
            for (segment, embedding) in segments.chunks(16).zip(together.chunks(64)) {
                let alone = embed(&encoder, segment);
                assert!(alone.iter().zip(embedding).all(|(a, b)| (a - b).abs() < 1e-4));
            }
        }
    }

    #[test]
    fn a_missing_value_is_not_the_same_as_an_average_one() {
        for encoder in encoders() {
            let mut segment = vec![1.0; 16];
            segment[3] = 0.0;
            let average = embed(&encoder, &segment);
            segment[3] = f32::NAN;
            let missing = embed(&encoder, &segment);
            assert!(missing.iter().all(|value| value.is_finite()));
            assert_ne!(average, missing);
        }
    }

    #[test]
    fn a_segment_without_any_value_still_has_finite_features() {
        for encoder in encoders() {
            assert!(embed(&encoder, &[f32::NAN; 16]).iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn blocks_double_their_dilation_while_they_fit_into_the_segment() {
        let dilations = |blocks: usize, time: usize| -> Vec<usize> {
            let model = config::Model { blocks, ..config::Model::default() };
            match Encoder::new(&model, 1, time, &mut Pcg64Mcg::seed_from_u64(1)) {
                Encoder::Tcn(tcn) => tcn.blocks.iter().map(Convolution::dilation).collect(),
                Encoder::Mlp(_) => Vec::new(),
            }
        };
        assert_eq!(dilations(4, 64), [1, 2, 4, 8]);
        assert_eq!(dilations(16, 64), [1, 2, 4, 8, 16]);
        assert_eq!(dilations(4, 2), [1]);
    }

    #[test]
    fn every_parameter_is_read_once() {
        for mut encoder in encoders() {
            let mut graph = Graph::training();
            let values = [0.5; 16];
            encoder.forward(&mut graph, Views { values: &values, channels: 2, time: 8 });
            let gradients = graph.backward(0.0, |_| ());
            let sizes: Vec<usize> =
                encoder.parameters().iter().map(|parameter| parameter.values().len()).collect();
            assert_eq!(gradients.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        }
    }
}
