//! What a batch says, on one device: the passes of [`super::super::step`] and their loss.

use dfdx::prelude::{
    Axes2, Axis, BroadcastTo, ChooseFrom, Device, Gradients, HasErr, HasShape, MaxTo, NoneTape,
    OwnedTape, PermuteTo, Shape, SumTo, Tensor, TryAdd, TryDiv, TryGe, TryMatMul, TryMul, TrySub,
};

use super::network::{Encoded, Plan, forward};
use super::pass::{Matrix, Pass, Vector};
use super::places::Places;
use crate::learner::network::Network;

/// What a network makes of segments, `[segments, _]` each.
pub struct Made {
    pub features: Vec<f32>,
    pub embeddings: Vec<f32>,
    pub projections: Vec<f32>,
}

/// A batch's anchors, and what they are held against.
pub struct Question<'a> {
    /// `[pairs, channels, time]`, standardised.
    pub anchors: &'a [f32],
    /// Projections of the positives, `[pairs, projection]`.
    pub keys: &'a [f32],
    /// `[negatives, projection]`.
    pub negatives: &'a [f32],
    /// Where pairs and negatives stand in their streams, if some are left out for that.
    pub places: Option<Places>,
    /// Logarithm of the inverse temperature.
    pub log_scale: f32,
}

/// What a batch says.
pub struct Answer {
    /// Of the anchors.
    pub made: Made,
    /// InfoNCE, nats.
    pub loss: f32,
    /// Share of the pairs that are likelier than every negative.
    pub accuracy: f32,
    /// With respect to each parameter of the network, row by row.
    pub gradients: Vec<Vec<f32>>,
    /// With respect to the logarithm of the inverse temperature.
    pub log_scale: f32,
}

type Done<D, T> = Result<T, <D as HasErr>::Err>;

/// Embeds and projects segments `[segments, channels, time]`.
pub fn encode<D: Device<f32>>(
    device: &D,
    network: &Network,
    views: &[f32],
    plan: &Plan,
) -> Done<D, Made> {
    let weights = plan.bring(device, network)?;
    let input = plan.upload(device, views)?;
    let mut pass = Pass::<NoneTape>::default();
    Ok(made(&forward(plan, &weights, &network.norm, input, &mut pass)?))
}

/// Loss and gradients of a batch's anchors.
pub fn learn<D: Device<f32>>(
    device: &D,
    network: &Network,
    question: Question<'_>,
    plan: &Plan,
) -> Done<D, Answer> {
    let weights = plan.bring(device, network)?;
    let log_scale = device.try_tensor_from_vec(vec![question.log_scale], ())?;
    let input = plan.upload(device, question.anchors)?;
    let mut pass = Pass::<OwnedTape<f32, D>>::default();
    let encoded = forward(plan, &weights, &network.norm, input, &mut pass)?;
    let (loss, accuracy) = info_nce(device, &mut pass, &encoded, log_scale.clone(), question)?;
    let gradients = pass.backward(loss.clone())?;
    Ok(Answer {
        made: made(&encoded),
        loss: number(&loss),
        accuracy,
        gradients: whole(&gradients, &weights, plan),
        log_scale: number(&gradients.get(&log_scale)),
    })
}

/// InfoNCE as in [`super::super::info_nce`], and the share of pairs that are likelier than every
/// negative.
fn info_nce<D: Device<f32>>(
    device: &D,
    pass: &mut Pass<OwnedTape<f32, D>>,
    encoded: &Encoded<D>,
    log_scale: Tensor<(), f32, D>,
    question: Question<'_>,
) -> Done<D, (Tensor<(), f32, D>, f32)> {
    /// The logit of what is left out: its exponential is 0 beside any other.
    const LEFT_OUT: f32 = -1e30;
    let shape = *encoded.projections.shape();
    let count = question.negatives.len() / shape.1;
    let keys = device.try_tensor_from_vec(question.keys.to_vec(), shape)?;
    let negatives = device.try_tensor_from_vec(question.negatives.to_vec(), (count, shape.1))?;

    let scale =
        pass.on(log_scale, |it| it.try_exp()?.try_broadcast_like::<_, Axes2<0, 1>>(&shape))?;
    let queries = pass.on(encoded.projections.clone(), |it| it.try_mul(scale))?;
    let positive =
        pass.on(queries.clone(), |it| it.try_mul(keys)?.try_sum::<(usize,), Axis<1>>())?;
    let across = negatives.try_permute::<(usize, usize), Axes2<1, 0>>()?;
    let mut negative = pass.on(queries, |it| it.try_matmul(across))?;
    let shape = *negative.shape();
    if let Some(Places { pairs, negatives, reach }) = question.places {
        let pairs = device.try_tensor_from_vec(pairs, (shape.0,))?;
        let pairs = pairs.try_broadcast_like::<_, Axis<1>>(&shape)?;
        let others = device.try_tensor_from_vec(negatives, (shape.1,))?;
        let others = others.try_broadcast_like::<_, Axis<0>>(&shape)?;
        let is_far = pairs.try_sub(others)?.try_abs()?.try_ge(reach)?;
        let left_out = device.try_zeros_like(&shape)?.try_add(LEFT_OUT)?;
        negative = pass.on(negative, |it| is_far.try_choose(it, left_out))?;
    }
    let hardest: Vector<D> = negative.clone().try_max::<_, Axis<1>>()?;
    // Taken away before the exponentials and added after the logarithm: a constant.
    let largest = hardest.clone().try_maximum(positive.clone())?;
    let everywhere = largest.clone().try_broadcast_like::<_, Axis<1>>(&shape)?;
    let others =
        pass.on(negative, |it| it.try_sub(everywhere)?.try_exp()?.try_sum::<(usize,), Axis<1>>())?;
    let (own, below) = (positive.clone(), largest.clone());
    let own = pass.on(own, |it| it.try_sub(below)?.try_exp())?;
    let total = pass.on(others, |it| it.try_add(own)?.try_ln()?.try_add(largest))?;
    let likelihood = positive.clone();
    let loss = pass.on(total, |it| {
        it.try_sub(likelihood)?.try_sum::<(), Axis<0>>()?.try_div(shape.0 as f32)
    })?;
    let pairs = download(&positive).into_iter().zip(download(&hardest));
    let likelier = pairs.filter(|(positive, hardest)| positive > hardest).count();
    Ok((loss, likelier as f32 / shape.0 as f32))
}

fn made<D: Device<f32>>(encoded: &Encoded<D>) -> Made {
    Made {
        features: download(&encoded.features),
        embeddings: download(&encoded.embeddings),
        projections: download(&encoded.projections),
    }
}

/// The gradient with respect to each parameter, its pieces in one.
fn whole<D: Device<f32>>(
    gradients: &Gradients<f32, D>,
    weights: &[Matrix<D>],
    plan: &Plan,
) -> Vec<Vec<f32>> {
    let mut pieces = weights.iter();
    let parameters = plan.pieces().into_iter();
    parameters
        .map(|count| {
            let pieces = pieces.by_ref().take(count);
            pieces.flat_map(|piece| download(&gradients.get(piece))).collect()
        })
        .collect()
}

/// The numbers of a tensor that an operation made.
fn download<S: Shape, D: Device<f32>>(tensor: &Tensor<S, f32, D>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape().num_elements()];
    tensor.copy_into(&mut values);
    values
}

fn number<D: Device<f32>>(tensor: &Tensor<(), f32, D>) -> f32 {
    download(tensor).first().copied().unwrap_or(f32::NAN)
}
