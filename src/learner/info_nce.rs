//! InfoNCE against a queue of negatives (van den Oord et al. 2018; He et al. 2020).
//!
//! For a query `q` with its positive `k` and negatives `n`, all of unit length, and the inverse
//! temperature `s`, the loss is `-ln(e^{s q.k} / (e^{s q.k} + sum e^{s q.n}))`: cross-entropy of
//! picking the positive. Value and gradient are computed together outside the tape: the
//! `[batch, 1 + negatives]` logits never become a tensor.
//!
//! By hand: `q = (1, 0)`, `k = (1, 0)`, one negative `(0, 1)`, `s = 1` gives
//! `-ln(e / (e + 1)) = 0.3133`.

use super::kernels::{self, Matrix, dot, exp, multiply, sum, vectorised};

/// What a part of a batch adds to the batch's mean loss, and where that points.
#[derive(Clone, Debug, PartialEq)]
pub struct InfoNce {
    /// Nats.
    pub loss: f32,
    /// Gradient with respect to the queries `[queries, dimension]`.
    pub queries: Vec<f32>,
    /// Gradient with respect to the logarithm of the inverse temperature.
    pub log_scale: f32,
    /// Share of the batch's queries whose positive is more likely than every negative.
    pub accuracy: f32,
}

/// Queries taken at once: their logits against a queue of thousands stay in the second cache.
const BLOCK: usize = 64;

/// Loss and gradients of queries `[queries, dimension]` with one positive each
/// `[queries, dimension]` against `negatives` `[negatives, dimension]`, as part of a mean over `batch`
/// queries. `hide(query, cosines)` sets the inner products with those negatives that are left out
/// for a query to negative infinity. Without negatives the loss is 0.
///
/// # Panics
/// If the shapes do not fit.
pub fn info_nce(
    queries: &[f32],
    positives: &[f32],
    negatives: &[f32],
    dimension: usize,
    scale: f32,
    batch: usize,
    hide: impl Fn(usize, &mut [f32]),
) -> InfoNce {
    assert_eq!(queries.len(), positives.len(), "one positive per query");
    let count = negatives.len() / dimension;
    let negatives = Matrix::new(negatives, count, dimension);
    let share = 1.0 / batch.max(1) as f32;
    let mut result =
        InfoNce { loss: 0.0, queries: vec![0.0; queries.len()], log_scale: 0.0, accuracy: 0.0 };
    // Logits without the scale, then in place the weights of the gradient.
    let mut weights = vec![0.0; BLOCK.min(queries.len() / dimension) * count];
    let blocks = queries.chunks(BLOCK * dimension).zip(positives.chunks(BLOCK * dimension));
    let out = result.queries.chunks_mut(BLOCK * dimension);
    for (block, ((queries, positives), out)) in blocks.zip(out).enumerate() {
        let rows = queries.len() / dimension;
        let weights = &mut weights[..rows * count];
        multiply(weights, false, Matrix::new(queries, rows, dimension), negatives.transposed());
        let pairs = queries.chunks_exact(dimension).zip(positives.chunks_exact(dimension));
        for (row, ((query, key), out)) in pairs.zip(out.chunks_exact_mut(dimension)).enumerate() {
            let cosines = &mut weights[row * count..(row + 1) * count];
            hide(block * BLOCK + row, cosines);
            let positive = dot(query, key);
            let Softmax { likelihood, hardest, mean_cosine, total } =
                softmax(cosines, positive, scale);
            result.loss -= share * likelihood.ln();
            result.log_scale += share * scale * (mean_cosine - positive);
            result.accuracy += if positive > hardest { share } else { 0.0 };
            // d loss / d q = s (sum_n p_n n - (1 - p_k) k)
            kernels::scale(cosines, share * scale / total);
            let push = share * scale * (1.0 - likelihood);
            out.iter_mut().zip(key).for_each(|(out, key)| *out = -push * key);
        }
        multiply(out, true, Matrix::new(weights, rows, count), negatives);
    }
    result
}

/// The loss of one query alone, nats: how surprising it is that `positive`, the inner product with
/// its positive, goes with it rather than any of the negatives. `cosines` are the inner products
/// with those, negative infinity where one is left out.
pub fn surprise(cosines: &[f32], positive: f32, scale: f32) -> f32 {
    let (own, total) = shares(cosines, positive, scale);
    -(own / total).max(f32::MIN_POSITIVE).ln()
}

vectorised! {
    /// The weight of the positive in the softmax, and that of it and the negatives together.
    fn shares<'a>(cosines: &'a [f32], positive: f32, scale: f32) -> (f32, f32) {
        let largest = largest(cosines).max(positive);
        let mut totals = [0.0; 16];
        let (chunks, rest) = cosines.as_chunks::<16>();
        for chunk in chunks {
            for (total, cosine) in totals.iter_mut().zip(chunk) {
                // What is left out has next to no weight.
                *total += exp(scale * (cosine - largest));
            }
        }
        let own = exp(scale * (positive - largest));
        let rest: f32 = rest.iter().map(|cosine| exp(scale * (cosine - largest))).sum();
        (own, own + rest + sum(&totals))
    }
}

/// The largest value, negative infinity of none.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*value);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, value| most.max(*value))
}

struct Softmax {
    /// Probability of the positive; never 0.
    likelihood: f32,
    /// Largest inner product with a negative.
    hardest: f32,
    /// Expected inner product under the softmax.
    mean_cosine: f32,
    /// What the weights and the positive's own add up to.
    total: f32,
}

vectorised! {
    /// Replaces the inner products with the negatives by weights in proportion to their
    /// probabilities.
    fn softmax<'a>(row: &'a mut [f32], positive: f32, scale: f32) -> Softmax {
        let hardest = largest(row);
        let largest = hardest.max(positive);
        let mut along = 0.0;
        let mut total = 0.0;
        // In blocks that stay in the nearest cache: weights in the place of inner products.
        for block in row.chunks_mut(1024) {
            let mut kept = [0.0; 1024];
            let kept = &mut kept[..block.len()];
            for (value, kept) in block.iter_mut().zip(kept.iter_mut()) {
                // A masked one has no weight, and must not spoil the mean with 0 * infinity.
                let masked = *value == f32::NEG_INFINITY;
                let cosine = if masked { 0.0 } else { *value };
                let weight = exp(scale * (cosine - largest));
                *value = if masked { 0.0 } else { weight };
                *kept = *value * cosine;
            }
            total += sum(block);
            along += sum(kept);
        }
        let own = exp(scale * (positive - largest));
        total += own;
        along += own * positive;
        Softmax {
            likelihood: (own / total).max(f32::MIN_POSITIVE),
            hardest,
            mean_cosine: along / total,
            total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::normalise_rows;
    use super::*;
    use dfdx::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    const DIMENSION: usize = 6;

    fn units(rng: &mut Pcg64Mcg, rows: usize) -> Vec<f32> {
        let mut values: Vec<f32> =
            (0..rows * DIMENSION).map(|_| rng.random_range(-1.0..1.0)).collect();
        normalise_rows(&mut values, DIMENSION);
        values
    }

    fn masked(query: usize, negative: usize) -> bool {
        (query + negative).is_multiple_of(5)
    }

    fn hide(query: usize, cosines: &mut [f32]) {
        for (negative, cosine) in cosines.iter_mut().enumerate() {
            if masked(query, negative) {
                *cosine = f32::NEG_INFINITY;
            }
        }
    }

    #[test]
    fn the_example_worked_by_hand_holds() {
        let found = info_nce(&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0], 2, 1.0, 1, |_, _| ());
        assert!((found.loss - 0.313_26).abs() < 1e-5);
        assert_eq!(found.accuracy, 1.0);
    }

    #[test]
    fn loss_and_gradient_agree_with_the_same_loss_in_dfdx() {
        let mut rng = Pcg64Mcg::seed_from_u64(9);
        let (batch, count, scale) = (4, 1100, 10.0);
        let (queries, positives) = (units(&mut rng, batch), units(&mut rng, batch));
        let negatives = units(&mut rng, count);
        let ours = info_nce(&queries, &positives, &negatives, DIMENSION, scale, batch, hide);

        let device = Cpu::default();
        let q = device.tensor_from_vec(queries, (batch, DIMENSION));
        let k = device.tensor_from_vec(positives, (batch, DIMENSION));
        let n = device.tensor_from_vec(negatives, (count, DIMENSION));
        let hide: Vec<f32> = (0..batch * count)
            .map(|at| if masked(at / count, at % count) { -1e9 } else { 0.0 })
            .collect();
        let hide = device.tensor_from_vec(hide, (batch, count));
        let positive = (q.leaky_trace() * k).sum::<_, Axis<1>>() * scale;
        let own = positive.retaped::<NoneTape>();
        let negative = q.leaky_trace().matmul(n.permute()) * scale + hide;
        let total = negative.exp().sum::<_, Axis<1>>() + positive.exp();
        let loss = (total.ln() - own).mean();
        assert!((loss.array() - ours.loss).abs() < 1e-4, "{} {}", loss.array(), ours.loss);
        let theirs = loss.backward().get(&q).as_vec();
        for (theirs, ours) in theirs.iter().zip(&ours.queries) {
            assert!((theirs - ours).abs() < 1e-4, "{theirs} {ours}");
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let mut rng = Pcg64Mcg::seed_from_u64(4);
        let (queries, positives) = (units(&mut rng, 3), units(&mut rng, 3));
        let negatives = units(&mut rng, 40);
        let at = |queries: &[f32], log_scale: f32| {
            info_nce(queries, &positives, &negatives, DIMENSION, log_scale.exp(), 3, hide)
        };
        let found = at(&queries, 1.5);
        for index in 0..queries.len() {
            let shifted = |by: f32| {
                let mut queries = queries.clone();
                queries[index] += by;
                at(&queries, 1.5).loss
            };
            let numeric = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
            assert!((numeric - found.queries[index]).abs() < 2e-3);
        }
        let numeric = (at(&queries, 1.51).loss - at(&queries, 1.49).loss) / 2e-2;
        assert!((numeric - found.log_scale).abs() < 2e-3);
    }

    #[test]
    fn without_negatives_nothing_is_to_be_learned() {
        let found = info_nce(&[1.0, 0.0], &[0.0, 1.0], &[], 2, 10.0, 1, |_, _| ());
        assert_eq!((found.loss, found.queries), (0.0, vec![0.0; 2]));
        let hidden = info_nce(&[1.0, 0.0], &[0.0, 1.0], &[1.0, 0.0], 2, 10.0, 1, |_, cosines| {
            cosines.fill(f32::NEG_INFINITY);
        });
        assert_eq!((hidden.loss, hidden.queries), (0.0, vec![0.0; 2]));
    }

    #[test]
    fn surprise_is_the_loss_of_one_query() {
        let mut cosines = [-1.0; 37];
        cosines[..3].copy_from_slice(&[0.2, f32::NEG_INFINITY, -0.4]);
        let expected = -((0.9_f32 * 5.0).exp()
            / ((0.9_f32 * 5.0).exp() + 1.0_f32.exp() + (-2.0_f32).exp() + 34.0 * (-5.0_f32).exp()))
        .ln();
        assert!((surprise(&cosines, 0.9, 5.0) - expected).abs() < 1e-6);
    }
}
