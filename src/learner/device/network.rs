//! The network of [`super::super::network`] in dfdx's tensor operations, for whichever device they run on.
//!
//! Nothing is joined or cut on the way: weights whose inputs lie in several matrices are kept in as
//! many pieces. A convolution is three products with rows of moments shifted by a whole dilation, as
//! in [`super::super::layers::Moments`]: rows of zeros after each segment keep the shift within it.

use dfdx::prelude::{
    Axis, BroadcastTo, ChooseFrom, Device, HasShape, MaxTo, NoneTape, ReshapeTo, Roll, SumTo, Tape,
    Tensor, TryAdd, TryDiv, TryEq, TryMatMul, TryMul, TrySub,
};

use super::pass::{Matrix, Pass, Vector};
use crate::config::Pooling;
use crate::learner::encoder::Encoder;
use crate::learner::layers::{Convolution, RunningNorm};
use crate::learner::network::Network;

/// What a network is made of, where its weights do not tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub encoder: Architecture,
    /// Layers of the projection head.
    pub projection: usize,
    pub channels: usize,
    pub time: usize,
}

/// The encoder's part of a [`Plan`].
#[derive(Clone, Debug, PartialEq)]
pub enum Architecture {
    Mlp,
    Tcn {
        /// Of each block.
        dilations: Vec<usize>,
        pooling: Pooling,
    },
}

/// Layers of the MLP.
const DENSE: usize = 3;

impl Plan {
    /// Of a network of segments `[channels, time]`.
    pub fn new(network: &Network, channels: usize, time: usize) -> Self {
        let encoder = match &network.encoder {
            Encoder::Mlp(_) => Architecture::Mlp,
            Encoder::Tcn(tcn) => Architecture::Tcn {
                dilations: tcn.blocks.iter().map(Convolution::dilation).collect(),
                pooling: tcn.pooling,
            },
        };
        Self { encoder, projection: network.projection.len(), channels, time }
    }

    /// Into how many pieces of equal height each of the network's parameters is cut, in the order
    /// of [`super::super::network::Network::parameters`].
    pub fn pieces(&self) -> Vec<usize> {
        let mut pieces = match &self.encoder {
            // Values and what is missing, each with weights of its own.
            Architecture::Mlp => {
                let mut pieces = vec![1; 2 * DENSE];
                pieces[0] = 2;
                pieces
            }
            Architecture::Tcn { dilations, pooling } => {
                let pooled = match pooling {
                    Pooling::Last => 1,
                    Pooling::Every => 1 + dilations.len(),
                };
                let mut pieces = vec![1; 4 * (1 + dilations.len())];
                pieces.extend([2 * pooled, 1]);
                pieces
            }
        };
        pieces.extend(vec![1; 2 * self.projection]);
        pieces
    }

    /// Rows of zeros after each segment.
    fn pad(&self) -> usize {
        match &self.encoder {
            Architecture::Mlp => 0,
            Architecture::Tcn { dilations, .. } => dilations.iter().copied().max().unwrap_or(1),
        }
    }

    /// Brings a network's weights to the device, in pieces.
    pub fn bring<D: Device<f32>>(
        &self,
        device: &D,
        network: &Network,
    ) -> Result<Vec<Matrix<D>>, D::Err> {
        // Shares the numbers.
        let mut network = network.clone();
        let mut brought = Vec::new();
        for (parameter, pieces) in network.parameters().into_iter().zip(self.pieces()) {
            let (rows, columns) = parameter.shape();
            let shape = (rows / pieces, columns);
            for piece in parameter.values().chunks_exact(shape.0 * shape.1) {
                brought.push(device.try_tensor_from_vec(piece.to_vec(), shape)?);
            }
        }
        Ok(brought)
    }

    /// Brings standardised segments `[segments, channels, time]`, NaN where missing, to the device.
    pub fn upload<D: Device<f32>>(&self, device: &D, views: &[f32]) -> Result<Input<D>, D::Err> {
        let size = self.channels * self.time;
        let segments = views.len() / size;
        if self.encoder == Architecture::Mlp {
            let values = device.try_tensor_from_vec(views.to_vec(), (segments, size))?;
            // NaN times 0 is NaN.
            let missing = values.clone().try_mul(0.0)?.try_nans_to(1.0)?;
            return Ok(Input::Flat { values: values.try_nans_to(0.0)?, missing });
        }
        let (length, columns) = (self.time + self.pad(), 2 * self.channels);
        let mut rows = vec![0.0; segments * length * columns];
        let mut observed = vec![0.0; segments * length];
        let mut within = vec![0.0; segments * length];
        let mut shares = vec![0.0; segments * length];
        let each = views.chunks_exact(size).zip(rows.chunks_exact_mut(length * columns));
        for (segment, (view, rows)) in each.enumerate() {
            let moments = segment * length..segment * length + self.time;
            within[moments.clone()].fill(1.0);
            let observed = &mut observed[moments.clone()];
            for (channel, samples) in view.chunks_exact(self.time).enumerate() {
                let rows = rows.chunks_exact_mut(columns).zip(observed.iter_mut());
                for (sample, (row, observed)) in samples.iter().zip(rows) {
                    if !sample.is_nan() {
                        row[channel] = *sample;
                        row[self.channels + channel] = 1.0;
                        *observed = 1.0;
                    }
                }
            }
            let count = observed.iter().sum::<f32>().max(1.0);
            for (share, observed) in shares[moments].iter_mut().zip(observed) {
                *share = *observed / count;
            }
        }
        Ok(Input::Moments {
            rows: device.try_tensor_from_vec(rows, (segments * length, columns))?,
            within: device.try_tensor_from_vec(within, (segments * length,))?,
            observed: device.try_tensor_from_vec(observed, (segments, length))?,
            shares: device.try_tensor_from_vec(shares, (segments, length))?,
        })
    }
}

/// Segments on a device, as the encoder reads them.
pub enum Input<D: Device<f32>> {
    /// For dense layers, `[segments, channels * time]` both: 0 where missing, and where that is.
    Flat { values: Matrix<D>, missing: Matrix<D> },
    /// For convolutions. `length` is that of a segment and of the rows of zeros after it.
    Moments {
        /// `[segments * length, 2 * channels]`: values, and whether they were observed.
        rows: Matrix<D>,
        /// `[segments * length]`: 1 within segments.
        within: Vector<D>,
        /// `[segments, length]`: 1 where any channel was observed.
        observed: Matrix<D>,
        /// `[segments, length]`: of those, each one's share of its segment's.
        shares: Matrix<D>,
    },
}

/// What a network makes of segments, on the device.
pub struct Encoded<D: Device<f32>> {
    pub features: Matrix<D>,
    pub embeddings: Matrix<D>,
    pub projections: Matrix<D>,
}

/// Embeds and projects segments; `weights` are a network's, in pieces as [`Plan::pieces`] says.
pub fn forward<D: Device<f32>, T: Tape<f32, D>>(
    plan: &Plan,
    weights: &[Matrix<D>],
    norm: &RunningNorm,
    input: Input<D>,
    pass: &mut Pass<T>,
) -> Result<Encoded<D>, D::Err> {
    let mut weights = Weights(weights.iter());
    let features = match (&plan.encoder, input) {
        (Architecture::Mlp, Input::Flat { values, missing }) => {
            let mut hidden = dense(pass, &mut weights, [values, missing], true)?;
            for layer in 1..DENSE {
                hidden = dense(pass, &mut weights, [hidden], layer + 1 < DENSE)?;
            }
            hidden
        }
        (
            Architecture::Tcn { dilations, pooling },
            Input::Moments { rows, within, observed, shares },
        ) => {
            let mut hidden = convolution(pass, &mut weights, rows, &within, 1, false)?;
            let mut pooled = Vec::new();
            for dilation in dilations {
                if *pooling == Pooling::Every {
                    pooled.extend(pool(pass, hidden.clone(), &observed, &shares)?);
                }
                hidden = convolution(pass, &mut weights, hidden, &within, *dilation, true)?;
            }
            pooled.extend(pool(pass, hidden, &observed, &shares)?);
            dense(pass, &mut weights, pooled, false)?
        }
        _ => unreachable!("an input of another architecture"),
    };
    let device = features.device().clone();
    let shape = *features.shape();
    let mean = device.try_tensor_from_vec(norm.mean.clone(), (shape.1,))?;
    let scale = device.try_tensor_from_vec(norm.scales(), (shape.1,))?;
    let mean = mean.try_broadcast_like::<_, Axis<0>>(&shape)?;
    let scale = scale.try_broadcast_like::<_, Axis<0>>(&shape)?;
    let standardised = pass.on(features.clone(), |it| it.try_sub(mean)?.try_mul(scale))?;
    let embeddings = normalise(pass, standardised)?;
    let mut hidden = embeddings.clone();
    for layer in 1..=plan.projection {
        hidden = dense(pass, &mut weights, [hidden], layer < plan.projection)?;
    }
    let projections = normalise(pass, hidden)?;
    Ok(Encoded { features, embeddings, projections })
}

/// A network's weights, read one after the other.
struct Weights<'a, D: Device<f32>>(std::slice::Iter<'a, Matrix<D>>);

impl<D: Device<f32>> Weights<'_, D> {
    fn next(&mut self) -> Matrix<D> {
        self.0.next().expect("as many weights as the plan has pieces").clone()
    }

    /// `[1, columns]`, once for each row.
    fn bias(&mut self, rows: usize) -> Result<Matrix<D>, D::Err> {
        let bias = self.next();
        let (_, columns) = *bias.shape();
        bias.try_reshape_like(&(columns,))?.try_broadcast_like::<_, Axis<0>>(&(rows, columns))
    }
}

/// `activation(x W + b)`, `x` and `W` in as many pieces as there are inputs.
fn dense<D: Device<f32>, T: Tape<f32, D>>(
    pass: &mut Pass<T>,
    weights: &mut Weights<'_, D>,
    inputs: impl IntoIterator<Item = Matrix<D>>,
    has_relu: bool,
) -> Result<Matrix<D>, D::Err> {
    let mut sum: Option<Matrix<D>> = None;
    for input in inputs {
        let weights = weights.next();
        let product = pass.on(input, |input| input.try_matmul(weights))?;
        sum = Some(match sum {
            Some(sum) => pass.on(sum, |sum| sum.try_add(product))?,
            None => product,
        });
    }
    let sum = sum.expect("an input");
    let bias = weights.bias(sum.shape().0)?;
    pass.on(sum, |sum| {
        let sum = sum.try_add(bias)?;
        if has_relu { sum.try_relu() } else { Ok(sum) }
    })
}

/// See [`super::super::layers::Convolution`]; `within` is 1 for the rows of segments and 0 between them.
fn convolution<D: Device<f32>, T: Tape<f32, D>>(
    pass: &mut Pass<T>,
    weights: &mut Weights<'_, D>,
    input: Matrix<D>,
    within: &Vector<D>,
    dilation: usize,
    residual: bool,
) -> Result<Matrix<D>, D::Err> {
    let rows = input.shape().0;
    let mut sum: Option<Matrix<D>> = None;
    for shift in [dilation, 0, rows - dilation] {
        let tap = weights.next();
        let product = pass.on(input.clone(), |input| {
            let input = if shift > 0 { input.try_roll::<Axis<0>>(shift)? } else { input };
            input.try_matmul(tap)
        })?;
        sum = Some(match sum {
            Some(sum) => pass.on(sum, |sum| sum.try_add(product))?,
            None => product,
        });
    }
    let mut sum = sum.expect("three taps");
    let bias = weights.bias(rows)?;
    if residual {
        sum = pass.on(sum, |sum| sum.try_add(input))?;
    }
    let within = within.clone().try_broadcast_like::<_, Axis<1>>(sum.shape())?;
    pass.on(sum, |sum| sum.try_add(bias)?.try_relu()?.try_mul(within))
}

/// Mean and maximum of each feature over the observed moments of a segment, `[segments, features]`
/// each. Of features that are not negative; several moments that share the maximum share its
/// gradient, where the CPU gives it to the first.
fn pool<D: Device<f32>, T: Tape<f32, D>>(
    pass: &mut Pass<T>,
    input: Matrix<D>,
    observed: &Matrix<D>,
    shares: &Matrix<D>,
) -> Result<[Matrix<D>; 2], D::Err> {
    let (segments, length) = *observed.shape();
    let shape = (segments, length, input.shape().1);
    let input = input.try_reshape_like(&shape)?;
    let observed = observed.clone().try_broadcast_like::<_, Axis<2>>(&shape)?;
    let shares = shares.clone().try_broadcast_like::<_, Axis<2>>(&shape)?;

    let seen = input.clone().try_mul(observed.clone())?;
    let largest = seen.clone().try_max::<(usize, usize), Axis<1>>()?;
    let is_largest = seen.try_eq(&largest.try_broadcast_like::<_, Axis<1>>(&shape)?)?;
    let largest = is_largest.try_choose(observed, zeros(&input)?)?;
    let count =
        largest.clone().try_sum::<(usize, usize), Axis<1>>()?.try_clamp(1.0, length as f32)?;
    let largest = largest.try_div(count.try_broadcast_like::<_, Axis<1>>(&shape)?)?;

    let mut sum = |weights: Tensor<_, f32, D, NoneTape>| {
        pass.on(input.clone(), |input| input.try_mul(weights)?.try_sum::<_, Axis<1>>())
    };
    Ok([sum(shares)?, sum(largest)?])
}

fn zeros<D: Device<f32>, S: dfdx::prelude::Shape>(
    like: &Tensor<S, f32, D>,
) -> Result<Tensor<S, f32, D>, D::Err> {
    like.device().try_zeros_like(like.shape())
}

/// Scales each row to unit length; a row of zeros stays.
fn normalise<D: Device<f32>, T: Tape<f32, D>>(
    pass: &mut Pass<T>,
    input: Matrix<D>,
) -> Result<Matrix<D>, D::Err> {
    /// Keeps the division finite, and is lost in the square of any length that is not 0.
    const TINY: f32 = 1e-24;
    let shape = *input.shape();
    let lengths = pass.on(input.clone(), |it| {
        let squares = it.try_square()?.try_sum::<(usize,), Axis<1>>()?;
        squares.try_add(TINY)?.try_sqrt()?.try_broadcast_like::<_, Axis<1>>(&shape)
    })?;
    pass.on(input, |it| it.try_div(lengths))
}
