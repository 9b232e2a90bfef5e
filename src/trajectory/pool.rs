//! Many embeddings of unit length become one.

use serde::{Deserialize, Serialize};

/// How embeddings are pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Pool {
    /// Their mean: what the key was like over all.
    #[default]
    Mean,
    /// Weighted by how much each is like the mean: what the key was like most of the time. Neural
    /// aggregation (Yang et al. 2017) attends once more with the first pooling as its query;
    /// without labels there is nothing to learn its weights from, so the query is the mean itself.
    Attention,
    /// Mean, largest and least value of each dimension, side by side: three times as long. What was
    /// short but unlike the rest is not averaged away; of use to a classifier more than to cosines.
    Extremes,
}

impl Pool {
    /// Lengths of an embedding that a pooled one has.
    pub fn parts(self) -> usize {
        match self {
            Self::Mean | Self::Attention => 1,
            Self::Extremes => 3,
        }
    }
}

/// Temperature of the attention: the learner's own to begin with. A segment at a right angle to the
/// mean weighs e⁻¹⁰ of one that equals it.
const TEMPERATURE: f64 = 0.1;

/// Embeddings on their way to be pooled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Gathered {
    /// Of a mean the sum will do: as long as one embedding, however many there are.
    Sum(Vec<f64>),
    /// Attention needs the mean before it can weigh: `[segments, width]`.
    All { width: usize, values: Vec<f32> },
    /// Per dimension; without embeddings, the extremes are empty.
    Extremes { sum: Vec<f64>, largest: Vec<f32>, least: Vec<f32> },
}

impl Gathered {
    /// Without embeddings, to be of length `width`.
    pub fn new(pool: Pool, width: usize) -> Self {
        match pool {
            Pool::Mean => Self::Sum(vec![0.0; width]),
            Pool::Attention => Self::All { width, values: Vec::new() },
            Pool::Extremes => {
                Self::Extremes { sum: vec![0.0; width], largest: Vec::new(), least: Vec::new() }
            }
        }
    }

    /// Adds an embedding of unit length.
    pub fn add(&mut self, embedding: &[f32]) {
        match self {
            Self::Sum(sum) => add(sum, embedding, 1.0),
            Self::All { values, .. } => values.extend_from_slice(embedding),
            Self::Extremes { sum, largest, least } => {
                add(sum, embedding, 1.0);
                if largest.is_empty() {
                    (*largest, *least) = (embedding.to_vec(), embedding.to_vec());
                }
                for ((largest, least), value) in largest.iter_mut().zip(least).zip(embedding) {
                    (*largest, *least) = (largest.max(*value), least.min(*value));
                }
            }
        }
    }

    /// The pooled embedding, of unit length; zeros where all cancel out.
    pub fn pooled(&self) -> Vec<f32> {
        match self {
            Self::Sum(sum) => unit(sum).into_iter().map(|value| value as f32).collect(),
            Self::All { width, values } => {
                let mut sum = vec![0.0; *width];
                let embeddings = || values.chunks_exact((*width).max(1));
                embeddings().for_each(|embedding| add(&mut sum, embedding, 1.0));
                let mean = unit(&sum);
                let cosine = |embedding: &[f32]| -> f64 {
                    mean.iter().zip(embedding).map(|(one, other)| one * f64::from(*other)).sum()
                };
                sum.fill(0.0);
                for embedding in embeddings() {
                    // Cosines are at most 1: no exponent overflows.
                    let weight = ((cosine(embedding) - 1.0) / TEMPERATURE).exp();
                    add(&mut sum, embedding, weight);
                }
                unit(&sum).into_iter().map(|value| value as f32).collect()
            }
            Self::Extremes { sum, largest, least } => {
                let wide =
                    |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                let parts = [unit(sum), unit(&wide(largest)), unit(&wide(least))].concat();
                let mut pooled: Vec<f32> = unit(&parts).iter().map(|v| *v as f32).collect();
                pooled.resize(3 * sum.len(), 0.0);
                pooled
            }
        }
    }
}

fn add(sum: &mut [f64], embedding: &[f32], weight: f64) {
    for (sum, value) in sum.iter_mut().zip(embedding) {
        *sum += weight * f64::from(*value);
    }
}

fn unit(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    let length = if length > 0.0 { length } else { 1.0 };
    vector.iter().map(|value| value / length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(pool: Pool, embeddings: &[[f32; 2]]) -> Vec<f32> {
        let mut gathered = Gathered::new(pool, 2);
        embeddings.iter().for_each(|embedding| gathered.add(embedding));
        gathered.pooled()
    }

    #[test]
    fn the_mean_is_of_unit_length() {
        assert_eq!(pooled(Pool::Mean, &[[1.0, 0.0], [0.0, 1.0]]), [0.5_f32.sqrt(); 2]);
        assert_eq!(pooled(Pool::Mean, &[[0.6, 0.8]]), [0.6, 0.8]);
        assert_eq!(pooled(Pool::Mean, &[[1.0, 0.0], [-1.0, 0.0]]), [0.0, 0.0]);
    }

    #[test]
    fn attention_turns_away_from_what_is_unlike_the_rest() {
        let embeddings = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]];
        let (mean, attention) =
            (pooled(Pool::Mean, &embeddings), pooled(Pool::Attention, &embeddings));
        // The mean is (3, 1) / √10; the weights are exp(10 (3 / √10 - 1)) and exp(10 (1 / √10 - 1)),
        // whose ratio is e^(20 / √10).
        let expected = (-20.0 / 10.0_f64.sqrt()).exp() / 3.0;
        assert!((f64::from(attention[1] / attention[0]) - expected).abs() < 1e-6, "{attention:?}");
        assert!(attention[1] < mean[1]);
        let length: f32 = attention.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-6);
    }

    #[test]
    fn extremes_keep_what_the_mean_averages_away() {
        let found = pooled(Pool::Extremes, &[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]);
        // Mean (1, 0) / 3, largest (1, 1), least (0, -1), each of unit length, and then all.
        let (one, half) = ((1.0_f32 / 3.0).sqrt(), (1.0_f32 / 6.0).sqrt());
        for (found, expected) in found.iter().zip([one, 0.0, half, half, 0.0, -one]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(pooled(Pool::Extremes, &[]), [0.0; 6]);
    }

    #[test]
    fn of_equal_embeddings_both_give_the_same() {
        let embeddings = [[0.6, 0.8]; 5];
        assert_eq!(pooled(Pool::Attention, &embeddings), pooled(Pool::Mean, &embeddings));
    }
}
