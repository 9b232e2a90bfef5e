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
}

impl Gathered {
    /// Without embeddings, to be of length `width`.
    pub fn new(pool: Pool, width: usize) -> Self {
        match pool {
            Pool::Mean => Self::Sum(vec![0.0; width]),
            Pool::Attention => Self::All { width, values: Vec::new() },
        }
    }

    /// Adds an embedding of unit length.
    pub fn add(&mut self, embedding: &[f32]) {
        match self {
            Self::Sum(sum) => add(sum, embedding, 1.0),
            Self::All { values, .. } => values.extend_from_slice(embedding),
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
    fn of_equal_embeddings_both_give_the_same() {
        let embeddings = [[0.6, 0.8]; 5];
        assert_eq!(pooled(Pool::Attention, &embeddings), pooled(Pool::Mean, &embeddings));
    }
}
