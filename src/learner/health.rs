//! Whether the model is well, and what it was when it last was.
//!
//! A contrastive model may collapse: to one point, or onto a few directions of its space (Jing et
//! al. 2022), and the loss alone does not tell. [`Health`] measures both; [`Watch`] keeps the last
//! model that was well, to which [`super::Learner`] rolls back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::graph::Parameter;
use super::kernels::{Matrix, dot, multiply};
use super::network::{Encoded, Network};
use super::optimizer::Adam;

/// How much of its space a model uses for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// See `effective_rank`; of the embeddings.
    pub rank: f32,
    /// See `uniformity`; of the projections.
    pub uniformity: f32,
}

/// A model that uses less than this share of what another makes of the same batch has collapsed
/// beside it.
const COLLAPSED: f32 = 0.25;
/// Collapsed steps in a row after which the model is rolled back.
const PATIENCE: u32 = 5;
/// Healthy steps in a row between two snapshots. The last but one is gone back to: a model may
/// have been on its way down for some time before it is seen.
const INTERVAL: u64 = 64;
/// Weight of a healthy step in what is usual.
const RECENT: f32 = 0.02;

impl Health {
    /// Of a batch, projections of `dimension` values.
    pub fn of(encoded: &Encoded) -> Self {
        let (embeddings, projections) = (&encoded.embeddings, &encoded.projections);
        Self {
            rank: effective_rank(embeddings.values(), embeddings.columns),
            uniformity: uniformity(projections.values(), projections.columns),
        }
    }

    /// Whether this is a collapsed model's, where `usual` is a healthy one's. What is not a number
    /// never is healthy.
    pub fn is_collapsed(&self, usual: &Self) -> bool {
        let rich = self.rank >= COLLAPSED * usual.rank;
        let spread = self.uniformity <= COLLAPSED * usual.uniformity;
        !(rich && spread)
    }

    fn is_finite(&self) -> bool {
        self.rank.is_finite() && self.uniformity.is_finite()
    }
}

/// A model with all that its training goes on from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Training steps that had been taken.
    pub steps: u64,
    pub network: Network,
    pub momentum: Network,
    pub log_scale: Parameter,
    pub optimizer: Adam,
}

/// Keeps snapshots of a healthy model.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Watch {
    usual: Option<Health>,
    /// Healthy and collapsed steps in a row.
    healthy: u64,
    collapsed: u32,
    last: Option<Arc<Snapshot>>,
    last_but_one: Option<Arc<Snapshot>>,
    rollbacks: u64,
    /// How often the learning rate is halved.
    halvings: i32,
}

impl Watch {
    /// Whether a step's model may have collapsed, which the model of [`Watch::snapshot`] tells.
    pub fn suspects(&self, found: &Health) -> bool {
        self.usual.is_some_and(|usual| found.is_collapsed(&usual))
    }

    /// Times the model was rolled back.
    pub fn rollbacks(&self) -> u64 {
        self.rollbacks
    }

    /// Share of the learning rate to go on with: what made the model collapse once would do so
    /// again. Halved with each rollback, doubled again with each snapshot.
    pub fn restraint(&self) -> f32 {
        0.5_f32.powi(self.halvings)
    }

    /// The model to go back to.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.last_but_one.as_deref().or(self.last.as_deref())
    }

    /// Takes note of a healthy step; returns whether a snapshot is due.
    pub fn note_healthy(&mut self, found: &Health) -> bool {
        if !found.is_finite() {
            return false;
        }
        let usual = self.usual.get_or_insert(*found);
        usual.rank += RECENT * (found.rank - usual.rank);
        usual.uniformity += RECENT * (found.uniformity - usual.uniformity);
        self.collapsed = 0;
        self.healthy += 1;
        self.healthy.is_multiple_of(INTERVAL) || self.last.is_none()
    }

    /// Keeps a snapshot of a healthy model.
    pub fn keep(&mut self, snapshot: Snapshot) {
        self.last_but_one = self.last.replace(Arc::new(snapshot));
        self.halvings = (self.halvings - 1).max(0);
    }

    /// Takes note of a collapsed step; returns the model to go back to where it is time to.
    pub fn note_collapsed(&mut self, found: &Health) -> Option<Snapshot> {
        self.healthy = 0;
        self.collapsed += 1;
        if self.collapsed < PATIENCE && found.is_finite() {
            return None;
        }
        self.collapsed = 0;
        // The newer one may have been taken on the way down.
        self.last = self.last_but_one.take().or(self.last.take());
        self.rollbacks += 1;
        self.halvings += 1;
        self.last.as_deref().cloned()
    }
}

/// How many directions rows `[rows, dimension]` use: the participation ratio `tr(M)² / |M|²` of
/// their second moment `M`, from 1 where all lie in one line to `dimension` where no direction
/// is preferred. 0 where all are zero.
///
/// By hand: `(1, 0), (0, 1)` have `M = I / 2`, so `1² / (2 / 4) = 2`; `(1, 0), (1, 0)` have 1.
pub fn effective_rank(rows: &[f32], dimension: usize) -> f32 {
    let matrix = Matrix::new(rows, rows.len() / dimension, dimension);
    let mut moment = vec![0.0; dimension * dimension];
    multiply(&mut moment, false, matrix.transposed(), matrix);
    let trace: f32 = moment.iter().step_by(dimension + 1).sum();
    let square = dot(&moment, &moment);
    if square == 0.0 { 0.0 } else { trace * trace / square }
}

/// Logarithm of the mean Gaussian potential between rows of unit length (Wang & Isola 2020): lower
/// is more uniform; 0 where all are the same.
pub fn uniformity(rows: &[f32], dimension: usize) -> f32 {
    /// Pairs are taken from this many rows at most.
    const ROWS: usize = 64;
    let rows: Vec<&[f32]> = rows.chunks_exact(dimension).take(ROWS).collect();
    let mut total = 0.0;
    let mut count = 0;
    for (index, a) in rows.iter().enumerate() {
        for b in &rows[..index] {
            let square: f32 = a.iter().zip(*b).map(|(a, b)| (a - b).powi(2)).sum();
            total += (-2.0 * square).exp();
            count += 1;
        }
    }
    if count == 0 { 0.0 } else { (total / count as f32).ln() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Health = Health { rank: 8.0, uniformity: -2.0 };

    #[test]
    fn the_effective_rank_counts_directions() {
        for (rows, rank) in [
            ([1.0, 0.0, 0.0, 1.0], 2.0),
            ([1.0, 0.0, 1.0, 0.0], 1.0),
            ([0.6, 0.8, -0.6, -0.8], 1.0),
        ] {
            assert!((effective_rank(&rows, 2) - rank).abs() < 1e-5, "{rows:?}");
        }
        assert_eq!(effective_rank(&[0.0; 4], 2), 0.0);
        assert!(effective_rank(&[f32::NAN; 4], 2).is_nan());
    }

    #[test]
    fn uniformity_is_zero_for_one_point_and_falls_as_points_spread() {
        let (same, spread) = (uniformity(&[1.0, 0.0, 1.0, 0.0], 2), [1.0, 0.0, -1.0, 0.0]);
        assert_eq!(same, 0.0);
        // ln e^(-2 * 4)
        assert!((uniformity(&spread, 2) + 8.0).abs() < 1e-4);
    }

    #[test]
    fn a_model_collapses_in_rank_or_in_uniformity() {
        assert!(!WELL.is_collapsed(&WELL));
        assert!(Health { rank: 1.5, ..WELL }.is_collapsed(&WELL));
        assert!(Health { uniformity: -0.1, ..WELL }.is_collapsed(&WELL));
        assert!(Health { rank: f32::NAN, ..WELL }.is_collapsed(&WELL));
    }
}
