//! Adam (Kingma & Ba 2015) with clipping of the gradient's norm.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::graph::Parameter;
use super::kernels::{add, scale, squares, vectorised};

/// Weights that one core changes at a time: each by itself, so that the cores do not show in the
/// result.
pub const CHUNK: usize = 16_384;

/// First and second moments of every weight's gradient.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    steps: i32,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
}

/// Decay of the first moment.
const BETA_1: f32 = 0.9;
/// Decay of the second moment.
const BETA_2: f32 = 0.999;
/// Keeps the division finite.
const EPSILON: f32 = 1e-8;

impl Adam {
    /// Moves each parameter against its gradient. The parameters are the same ones, in the same
    /// order, at every call.
    ///
    /// # Panics
    /// If there are not as many gradients as parameters, or their sizes differ.
    pub fn step(
        &mut self,
        parameters: &mut [&mut Parameter],
        gradients: &[Vec<f32>],
        learning_rate: f32,
    ) {
        assert_eq!(parameters.len(), gradients.len(), "one gradient per parameter");
        self.first.resize(gradients.len(), Vec::new());
        self.second.resize(gradients.len(), Vec::new());
        self.steps += 1;
        // The corrections of both moments' bias towards 0, folded into the rate.
        let rate = learning_rate * (1.0 - BETA_2.powi(self.steps)).sqrt()
            / (1.0 - BETA_1.powi(self.steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((parameter, gradient), (first, second)) in
            parameters.iter_mut().zip(gradients).zip(moments)
        {
            first.resize(gradient.len(), 0.0);
            second.resize(gradient.len(), 0.0);
            let weights = parameter.values_mut();
            assert_eq!(weights.len(), gradient.len(), "a gradient of another size");
            let weights = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
            let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
            weights.zip(moments).for_each(|((weights, gradient), (first, second))| {
                advance(weights, gradient, first, second, rate);
            });
        }
    }
}

vectorised! {
    /// Moves weights by what their gradient and its moments say.
    fn advance<'a>(
        weights: &'a mut [f32],
        gradient: &'a [f32],
        first: &'a mut [f32],
        second: &'a mut [f32],
        rate: f32,
    ) {
        let moments = first.iter_mut().zip(second);
        for ((weight, gradient), (first, second)) in weights.iter_mut().zip(gradient).zip(moments) {
            *first += (1.0 - BETA_1) * (gradient - *first);
            *second += (1.0 - BETA_2) * (gradient * gradient - *second);
            *weight -= rate * *first / (second.sqrt() + EPSILON);
        }
    }
}

/// Adds up the gradients that shards of a batch gave, in the order of the shards.
pub fn sum(mut shards: Vec<Vec<Vec<f32>>>) -> Vec<Vec<f32>> {
    let rest = shards.split_off(1.min(shards.len()));
    let mut total = shards.pop().unwrap_or_default();
    for (at, total) in total.iter_mut().enumerate() {
        total.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, total)| {
            for shard in &rest {
                add(&shard[at][chunk * CHUNK..][..total.len()], total);
            }
        });
    }
    total
}

/// Scales all gradients down together where their norm exceeds `most`; returns the norm before.
pub fn clip(gradients: &mut [Vec<f32>], most: f32) -> f32 {
    let norm = gradients.iter().map(|gradient| squares(gradient)).sum::<f32>().sqrt();
    if norm > most {
        let share = most / norm;
        for gradient in gradients {
            scale(gradient, share);
        }
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_has_the_size_of_the_learning_rate_whatever_the_gradient() {
        for gradient in [1e-3, 5.0, -20.0_f32] {
            let mut parameter = Parameter::zeros(1, 1);
            Adam::default().step(&mut [&mut parameter], &[vec![gradient]], 0.1);
            assert!((parameter.values()[0] + 0.1 * gradient.signum()).abs() < 1e-4);
        }
    }

    #[test]
    fn it_finds_the_minimum_of_a_parabola() {
        let mut parameter = Parameter::zeros(1, 2);
        let mut adam = Adam::default();
        for _ in 0..500 {
            let gradient =
                parameter.values().iter().zip([3.0, -1.0]).map(|(x, at)| 2.0 * (x - at)).collect();
            adam.step(&mut [&mut parameter], &[gradient], 0.05);
        }
        assert!((parameter.values()[0] - 3.0).abs() < 1e-2);
        assert!((parameter.values()[1] + 1.0).abs() < 1e-2);
    }

    #[test]
    fn clipping_keeps_the_direction_and_small_gradients() {
        let mut gradients = vec![vec![3.0], vec![4.0]];
        assert_eq!(clip(&mut gradients, 1.0), 5.0);
        assert_eq!(gradients, [[0.6], [0.8]]);
        assert!((clip(&mut gradients, 2.0) - 1.0).abs() < 1e-6);
        assert_eq!(gradients, [[0.6], [0.8]]);
    }
}
