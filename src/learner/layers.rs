//! Fused layers: one operation each on the tape, forward and backward.

use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::graph::{Graph, NamedTensor, Node, Parameter};
use super::kernels::{
    Matrix, add_columns, gate, multiply, normalise_gradient, normalise_rows, relu, vectorised,
};
use super::taps::{self, Convolve, Start, TAPS};

/// What follows a layer's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// Nothing.
    Linear,
    /// `max(0, x)`.
    Relu,
}

/// `activation(x W + b)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dense {
    weights: Parameter,
    bias: Parameter,
    activation: Activation,
}

impl Dense {
    /// From `inputs` to `outputs` features.
    pub fn new(inputs: usize, outputs: usize, activation: Activation, rng: &mut impl Rng) -> Self {
        Self {
            weights: Parameter::random(inputs, outputs, rng),
            bias: Parameter::zeros(1, outputs),
            activation,
        }
    }

    /// Multiplications for a row.
    pub fn work(&self) -> usize {
        self.weights.values().len()
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, graph: &mut Graph, input: &Node) -> Node {
        self.forward_parts(graph, &[input])
    }

    /// `[rows, inputs]` to `[rows, outputs]`, the inputs as several matrices side by side. Those
    /// that are left out at the end are zero; a row's bits do not depend on whether they are.
    pub fn forward_parts(&self, graph: &mut Graph, inputs: &[&Node]) -> Node {
        let weights = graph.parameter(&self.weights);
        let bias = graph.parameter(&self.bias);
        let (rows, columns) = (inputs[0].rows, weights.columns);
        let mut out = repeat(bias.values(), rows);
        // Each input, and where its weights are.
        let mut parts: Vec<(Node, Range<usize>)> = Vec::with_capacity(inputs.len());
        for input in inputs {
            let first = parts.last().map_or(0, |(_, weights)| weights.end);
            parts.push(((*input).clone(), first..first + input.columns * columns));
        }
        for (input, of_input) in &parts {
            let weights = &weights.values()[of_input.clone()];
            let weights = Matrix::new(weights, input.columns, columns);
            multiply(&mut out, true, matrix(input), weights);
        }
        let has_relu = self.activation == Activation::Relu;
        if has_relu {
            relu(&mut out);
        }
        graph.operation(out, rows, columns, move |output, mut gradient, gradients| {
            if has_relu {
                gate(output.values(), &mut gradient);
            }
            let gradient = Matrix::new(&gradient, rows, columns);
            if let Some(out) = gradients.of(&bias) {
                add_columns(gradient.values(), out);
            }
            for (input, of_input) in &parts {
                if let Some(out) = gradients.of(&weights) {
                    let out = &mut out[of_input.clone()];
                    multiply(out, true, matrix(input).transposed(), gradient);
                }
                if let Some(out) = gradients.of(input) {
                    let weights = &weights.values()[of_input.clone()];
                    let weights = Matrix::new(weights, input.columns, columns);
                    multiply(out, true, gradient, weights.transposed());
                }
            }
        })
    }

    /// Its tensors, named below `name`: `weights` `[inputs, outputs]` and `bias` `[1, outputs]`.
    pub fn tensors(&self, name: &str) -> Vec<NamedTensor<'_>> {
        vec![
            self.weights.tensor(format!("{name}.weights")),
            self.bias.tensor(format!("{name}.bias")),
        ]
    }

    /// Weights and bias, in the order in which [`Dense::forward`] reads them.
    pub fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [&mut self.weights, &mut self.bias].into_iter()
    }
}

/// How segments of one length lie in a matrix of moments: `pad` rows of zeros, then per segment
/// its `time` rows and `pad` rows of zeros. A shift by up to `pad` rows then stays within a
/// segment or reads zeros, so a convolution reads where values lie, without copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// Number of segments.
    pub segments: usize,
    /// Samples of a segment.
    pub time: usize,
    /// Rows of zeros around each.
    pub pad: usize,
}

impl Moments {
    /// Rows in all.
    pub fn rows(self) -> usize {
        self.pad + self.segments * (self.time + self.pad)
    }

    /// Row of the first moment of a segment.
    pub fn row(self, segment: usize) -> usize {
        self.pad + segment * (self.time + self.pad)
    }
}

/// A dilated convolution over time with three taps, centred: `relu(b + x[t-d] W0 + x[t] W1 +
/// x[t+d] W2)`, plus `x` itself before the ReLU where `residual`. The temporal convolutional network of
/// Bai et al. (2018), not causal, since a segment is complete when it is embedded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Convolution {
    taps: [Parameter; TAPS],
    bias: Parameter,
    dilation: usize,
    residual: bool,
}

impl Convolution {
    /// From `inputs` to `outputs` features; `residual` needs as many of both.
    pub fn new(
        inputs: usize,
        outputs: usize,
        dilation: usize,
        residual: bool,
        rng: &mut impl Rng,
    ) -> Self {
        assert!(!residual || inputs == outputs, "a residual layer keeps its width");
        // Variance 2 / (3 inputs) over the three taps together.
        let mut tap = || {
            let mut tap = Parameter::random(inputs, outputs, rng);
            let share = (1.0_f32 / 3.0).sqrt();
            tap.values_mut().iter_mut().for_each(|value| *value *= share);
            tap
        };
        Self { taps: [tap(), tap(), tap()], bias: Parameter::zeros(1, outputs), dilation, residual }
    }

    /// Multiplications for a moment.
    pub fn work(&self) -> usize {
        self.taps.iter().map(|tap| tap.values().len()).sum()
    }

    /// Steps between taps.
    pub fn dilation(&self) -> usize {
        self.dilation
    }

    /// `[moments, inputs]` to `[moments, outputs]`.
    ///
    /// # Panics
    /// If the pad is narrower than the dilation.
    pub fn forward(&self, graph: &mut Graph, input: &Node, moments: Moments) -> Node {
        let taps = self.taps.each_ref().map(|tap| graph.parameter(tap));
        let bias = graph.parameter(&self.bias);
        let (inputs, columns) = (input.columns, bias.columns);
        let (dilation, residual) = (self.dilation, self.residual);
        let mut out = vec![0.0; input.rows * columns];
        let convolve = Convolve {
            input: input.values(),
            weights: taps.each_ref().map(Node::values),
            start: Start::Bias(bias.values()),
            inputs,
            columns,
            dilation,
            residual,
            relu: true,
            moments,
        };
        convolve.run(&mut out);

        let input = input.clone();
        graph.operation(out, input.rows, columns, move |output, mut gradient, gradients| {
            // The rows between segments are zero whatever comes in: the gate shuts them too.
            gate(output.values(), &mut gradient);
            if let Some(out) = gradients.of(&bias) {
                add_columns(&gradient, out);
            }
            let mut of_taps = taps.each_ref().map(|tap| vec![0.0; tap.values().len()]);
            let each = of_taps.each_mut().map(Vec::as_mut_slice);
            taps::weight_gradients(each, input.values(), &gradient, dilation, moments);
            for (tap, gradient) in taps.iter().zip(of_taps) {
                gradients.give(tap, gradient);
            }
            if let Some(out) = gradients.of(&input) {
                // The other way round in time, by the transposed weights.
                let mut turned = taps.each_ref().map(|tap| transposed(tap.values(), columns));
                turned.reverse();
                let convolve = Convolve {
                    input: &gradient,
                    weights: turned.each_ref().map(Vec::as_slice),
                    start: Start::Output,
                    inputs: columns,
                    columns: inputs,
                    dilation,
                    residual,
                    relu: false,
                    moments,
                };
                convolve.run(out);
            }
        })
    }

    /// Its tensors, named below `name`: `taps.0` to `taps.2`, each `[inputs, outputs]`, and `bias`.
    pub fn tensors(&self, name: &str) -> Vec<NamedTensor<'_>> {
        let taps = self.taps.iter().enumerate();
        taps.map(|(number, tap)| tap.tensor(format!("{name}.taps.{number}")))
            .chain([self.bias.tensor(format!("{name}.bias"))])
            .collect()
    }

    /// Taps and bias, in the order in which [`Convolution::forward`] reads them.
    pub fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.taps.iter_mut().chain([&mut self.bias])
    }
}

/// Mean and maximum over the observed moments of each segment: `[moments, features]` to
/// `[segments, 2 * features]`. `observed` is `[segments, time]`; a segment without an observed
/// moment gives zeros.
pub fn pool(graph: &mut Graph, input: &Node, moments: Moments, observed: &[bool]) -> Node {
    let (features, time) = (input.columns, moments.time);
    let mut out = vec![0.0; moments.segments * 2 * features];
    let mut times_of_max = vec![NEVER; moments.segments * features];
    let mut shares = vec![0.0; moments.segments];
    let rows_of = move |segment: usize| {
        moments.row(segment) * features..(moments.row(segment) + time) * features
    };
    let parts = out.chunks_exact_mut(2 * features).zip(times_of_max.chunks_exact_mut(features));
    for (segment, (out, times_of_max)) in parts.enumerate() {
        let observed = &observed[segment * time..(segment + 1) * time];
        let count = observed.iter().filter(|observed| **observed).count();
        if count > 0 {
            shares[segment] = 1.0 / count as f32;
            let (mean, max) = out.split_at_mut(features);
            let values = &input.values()[rows_of(segment)];
            pool_segment(values, observed, shares[segment], mean, max, times_of_max);
        }
    }
    let input = input.clone();
    let observed = observed.to_vec();
    graph.operation(out, moments.segments, 2 * features, move |_, gradient, gradients| {
        let Some(out) = gradients.of(&input) else { return };
        let parts = gradient.chunks_exact(2 * features).zip(times_of_max.chunks_exact(features));
        for (segment, (gradient, times_of_max)) in parts.enumerate() {
            let out = &mut out[rows_of(segment)];
            let (mean, max) = gradient.split_at(features);
            let observed = &observed[segment * time..(segment + 1) * time];
            spread_mean(mean, observed, shares[segment], out);
            for (feature, (time, gradient)) in times_of_max.iter().zip(max).enumerate() {
                if *time != NEVER {
                    out[*time as usize * features + feature] += gradient;
                }
            }
        }
    })
}

/// No time: nothing was observed.
const NEVER: u32 = u32::MAX;

vectorised! {
    /// Mean and maximum of the rows of `values` `[time, features]` that were observed, and at which
    /// time each feature is largest.
    fn pool_segment<'a>(
        values: &'a [f32],
        observed: &'a [bool],
        share: f32,
        mean: &'a mut [f32],
        max: &'a mut [f32],
        times_of_max: &'a mut [u32],
    ) {
        max.fill(f32::NEG_INFINITY);
        for (time, (values, observed)) in values.chunks_exact(max.len()).zip(observed).enumerate() {
            if !*observed {
                continue;
            }
            let best = max.iter_mut().zip(times_of_max.iter_mut());
            for ((value, mean), (max, time_of_max)) in values.iter().zip(&mut *mean).zip(best) {
                *mean += value * share;
                let larger = *value > *max;
                *max = if larger { *value } else { *max };
                *time_of_max = if larger { time as u32 } else { *time_of_max };
            }
        }
    }
}

vectorised! {
    /// Adds to each observed row of `out` `[time, features]` its share of the mean's gradient.
    fn spread_mean<'a>(
        gradient: &'a [f32],
        observed: &'a [bool],
        share: f32,
        out: &'a mut [f32],
    ) {
        for (out, observed) in out.chunks_exact_mut(gradient.len()).zip(observed) {
            if *observed {
                for (out, gradient) in out.iter_mut().zip(gradient) {
                    *out += gradient * share;
                }
            }
        }
    }
}

/// Standardises each feature by its running mean and deviation: batch normalisation (Ioffe &
/// Szegedy 2015) with the statistics of training and of inference the same, and constant for the
/// gradient. Features that all segments share would otherwise hold every embedding in one corner
/// of the sphere, where contrast starts from nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningNorm {
    pub(super) mean: Vec<f32>,
    variance: Vec<f32>,
    batches: u32,
}

impl RunningNorm {
    /// Batches over which the statistics forget.
    const HORIZON: u32 = 100;

    /// Passes `features` on unchanged until it has learned.
    pub fn new(features: usize) -> Self {
        Self { mean: vec![0.0; features], variance: vec![1.0; features], batches: 0 }
    }

    /// Its statistics, named below `name`: `mean` and `variance`, each `[features]`.
    pub fn tensors(&self, name: &str) -> Vec<NamedTensor<'_>> {
        let statistics = [("mean", &self.mean), ("variance", &self.variance)];
        let named = statistics.into_iter().map(|(part, values)| NamedTensor {
            name: format!("{name}.{part}"),
            shape: vec![values.len()],
            values,
        });
        named.collect()
    }

    /// `[rows, features]`, standardised.
    pub fn forward(&self, graph: &mut Graph, input: &Node) -> Node {
        let scales = self.scales();
        let mut out = input.values().to_vec();
        standardise(&self.mean, &scales, &mut out);
        let input = input.clone();
        graph.operation(out, input.rows, input.columns, move |_, mut gradient, gradients| {
            standardise(&vec![0.0; input.columns], &scales, &mut gradient);
            gradients.give(&input, gradient);
        })
    }

    /// What each feature is multiplied by, less its mean.
    pub(super) fn scales(&self) -> Vec<f32> {
        self.variance.iter().map(|v| 1.0 / (v + 1e-5).sqrt()).collect()
    }

    /// Learns the features `[rows, features]` that a batch sent in.
    pub fn learn(&mut self, batch: &Node) {
        self.batches = (self.batches + 1).min(Self::HORIZON);
        let rate = 1.0 / self.batches as f32;
        let share = 1.0 / batch.rows as f32;
        let columns = batch.columns;
        let mut mean = vec![0.0; columns];
        add_columns(batch.values(), &mut mean);
        mean.iter_mut().for_each(|value| *value *= share);
        let mut variance = vec![0.0; columns];
        for row in batch.values().chunks_exact(columns) {
            for ((variance, value), mean) in variance.iter_mut().zip(row).zip(&mean) {
                *variance += share * (value - mean).powi(2);
            }
        }
        for (running, found) in self.mean.iter_mut().zip(mean) {
            *running += rate * (found - *running);
        }
        for (running, found) in self.variance.iter_mut().zip(variance) {
            *running += rate * (found - *running);
        }
    }
}

vectorised! {
    /// Moves and scales each feature of rows.
    fn standardise<'a>(means: &'a [f32], scales: &'a [f32], rows: &'a mut [f32]) {
        for row in rows.chunks_exact_mut(means.len()) {
            for ((value, mean), scale) in row.iter_mut().zip(means).zip(scales) {
                *value = (*value - mean) * scale;
            }
        }
    }
}

/// Scales each row to unit length.
pub fn normalise(graph: &mut Graph, input: &Node) -> Node {
    let columns = input.columns;
    let mut out = input.values().to_vec();
    let lengths = normalise_rows(&mut out, columns);
    let input = input.clone();
    graph.operation(out, input.rows, columns, move |output, mut gradient, gradients| {
        normalise_gradient(output.values(), &lengths, columns, &mut gradient);
        gradients.give(&input, gradient);
    })
}

fn matrix(node: &Node) -> Matrix<'_> {
    Matrix::new(node.values(), node.rows, node.columns)
}

/// `row`, `rows` times.
fn repeat(row: &[f32], rows: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(row.len() * rows);
    for _ in 0..rows {
        out.extend_from_slice(row);
    }
    out
}

/// `values` `[rows, columns]` as `[columns, rows]`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |column: usize| values.iter().skip(column).step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    fn rng() -> Pcg64Mcg {
        Pcg64Mcg::seed_from_u64(5)
    }

    fn random(rng: &mut Pcg64Mcg, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// Compares the gradients of `sum(weights * output)` with central differences, parameter by
    /// parameter; `parameters` lists them, `forward` makes the output.
    fn check_gradients<M>(
        model: &mut M,
        parameters: impl Fn(&mut M) -> Vec<&mut Parameter>,
        forward: impl Fn(&M, &mut Graph) -> Node,
    ) {
        let mut graph = Graph::training();
        let output = forward(model, &mut graph);
        let weights = random(&mut rng(), output.values().len());
        let value = |model: &M| -> f64 {
            let output = forward(model, &mut Graph::inference());
            output.values().iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let seed = weights.clone();
        let gradients = graph.backward(0.0, move |gradients| {
            gradients.give(&output, seed);
        });
        assert_eq!(gradients.len(), parameters(model).len());
        const STEP: f32 = 1e-3;
        for (index, gradient) in gradients.iter().enumerate() {
            for at in (0..gradient.len()).step_by(gradient.len().div_ceil(12)) {
                let original = parameters(model)[index].values()[at];
                let mut shifted = |by: f32| {
                    parameters(model)[index].values_mut()[at] = original + by;
                    value(model)
                };
                let numeric = (shifted(STEP) - shifted(-STEP)) / (2.0 * f64::from(STEP));
                shifted(0.0);
                let found = f64::from(gradient[at]);
                assert!(
                    (found - numeric).abs() < 2e-2 * (1.0 + numeric.abs()),
                    "parameter {index}[{at}]: {found} by the tape, {numeric} by differences"
                );
            }
        }
    }

    #[test]
    fn gradients_of_dense_layers_agree_with_finite_differences() {
        let mut rng = rng();
        let mut layers = [
            Dense::new(5, 7, Activation::Relu, &mut rng),
            Dense::new(7, 3, Activation::Linear, &mut rng),
        ];
        let input = random(&mut rng, 4 * 5);
        check_gradients(
            &mut layers,
            |layers| layers.iter_mut().flat_map(Dense::parameters).collect(),
            |layers, graph| {
                let input = graph.constant(input.clone(), 4, 5);
                let hidden = layers[0].forward(graph, &input);
                let out = layers[1].forward(graph, &hidden);
                normalise(graph, &out)
            },
        );
    }

    /// Two segments of 6 samples of 2 features, with pads of 2.
    const MOMENTS: Moments = Moments { segments: 2, time: 6, pad: 2 };

    fn padded(rng: &mut Pcg64Mcg) -> Vec<f32> {
        let mut values = vec![0.0; MOMENTS.rows() * 2];
        for segment in 0..MOMENTS.segments {
            let first = MOMENTS.row(segment) * 2;
            values[first..first + MOMENTS.time * 2].copy_from_slice(&random(rng, MOMENTS.time * 2));
        }
        values
    }

    #[test]
    fn gradients_of_convolutions_and_pooling_agree_with_finite_differences() {
        let mut rng = rng();
        let mut layers =
            [Convolution::new(2, 4, 1, false, &mut rng), Convolution::new(4, 4, 2, true, &mut rng)];
        let input = padded(&mut rng);
        let mut observed = [true; 12];
        observed[3] = false;
        check_gradients(
            &mut layers,
            |layers| layers.iter_mut().flat_map(Convolution::parameters).collect(),
            |layers, graph| {
                let input = graph.constant(input.clone(), MOMENTS.rows(), 2);
                let hidden = layers[0].forward(graph, &input, MOMENTS);
                let hidden = layers[1].forward(graph, &hidden, MOMENTS);
                pool(graph, &hidden, MOMENTS, &observed)
            },
        );
    }

    #[test]
    fn a_running_norm_standardises_what_it_has_learned() {
        let graph = &mut Graph::inference();
        let batch = graph.constant(vec![1.0, 10.0, 3.0, 30.0], 2, 2);
        let mut norm = RunningNorm::new(2);
        let passed = norm.forward(graph, &batch).into_values();
        assert!(passed.iter().zip(batch.values()).all(|(a, b)| (a - b).abs() < 1e-3));
        norm.learn(&batch);
        let found = norm.forward(graph, &batch).into_values();
        assert!(found.iter().zip([-1.0, -1.0, 1.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-4));
        let mut layers = (Dense::new(2, 2, Activation::Linear, &mut rng()), norm);
        check_gradients(
            &mut layers,
            |layers| layers.0.parameters().collect(),
            |(dense, norm), graph| {
                let input = graph.constant(vec![0.5, -1.0, 2.0, 0.3], 2, 2);
                let hidden = dense.forward(graph, &input);
                norm.forward(graph, &hidden)
            },
        );
    }

    #[test]
    fn a_convolution_agrees_with_its_formula_and_reads_zeros_past_the_ends() {
        let mut rng = rng();
        let layer = Convolution::new(2, 3, 2, false, &mut rng);
        let input = padded(&mut rng);
        let graph = &mut Graph::inference();
        let node = graph.constant(input.clone(), MOMENTS.rows(), 2);
        let output = layer.forward(graph, &node, MOMENTS);
        for segment in 0..2 {
            for time in 0..6_i32 {
                for column in 0..3 {
                    let mut expected = 0.0;
                    for (tap, weights) in layer.taps.iter().enumerate() {
                        let at = time + (tap as i32 - 1) * 2;
                        if !(0..6).contains(&at) {
                            continue;
                        }
                        let row = MOMENTS.row(segment) + at as usize;
                        for feature in 0..2 {
                            expected +=
                                input[row * 2 + feature] * weights.values()[feature * 3 + column];
                        }
                    }
                    let row = MOMENTS.row(segment) + time as usize;
                    let found = output.values()[row * 3 + column];
                    assert!((found - expected.max(0.0)).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_segment_is_embedded_alike_whatever_its_neighbours_in_the_batch() {
        let mut rng = rng();
        let layer = Convolution::new(2, 2, 2, true, &mut rng);
        let mut input = padded(&mut rng);
        let graph = &mut Graph::inference();
        let rows = MOMENTS.rows();
        let node = graph.constant(input.clone(), rows, 2);
        let before = layer.forward(graph, &node, MOMENTS);
        let second = MOMENTS.row(1) * 2;
        input[second..second + 12].fill(9.0);
        let node = graph.constant(input, rows, 2);
        let after = layer.forward(graph, &node, MOMENTS);
        assert_eq!(before.values()[..second], after.values()[..second]);
        assert_ne!(before.values()[second..], after.values()[second..]);
    }

    #[test]
    fn unobserved_moments_do_not_count_in_the_pool() {
        let moments = Moments { segments: 2, time: 2, pad: 1 };
        let graph = &mut Graph::inference();
        let values = vec![0.0, 1.0, 5.0, 0.0, 2.0, 3.0, 0.0];
        let input = graph.constant(values, moments.rows(), 1);
        let pooled = pool(graph, &input, moments, &[true, false, true, true]);
        assert_eq!(pooled.values(), [1.0, 1.0, 2.5, 3.0]);
        let nothing = pool(graph, &input, moments, &[false; 4]);
        assert_eq!(nothing.values(), [0.0; 4]);
    }
}
