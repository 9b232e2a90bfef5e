//! MoCo's queue of negatives.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::pairs::Origin;

/// The last projections that the momentum encoder made, oldest overwritten first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Queue {
    /// `[entries, dimension]`, in ring order.
    projections: Vec<f32>,
    origins: Vec<Origin>,
    /// Training step at which each entry came in.
    steps: Vec<u64>,
    dimension: usize,
    capacity: usize,
    next: usize,
}

/// Places of entries by the number of their key.
pub type ByKey = FxHashMap<u64, Vec<usize>>;

impl Queue {
    /// An empty queue for `capacity` projections of `dimension` values.
    pub fn new(capacity: usize, dimension: usize) -> Self {
        Self {
            projections: Vec::new(),
            origins: Vec::new(),
            steps: Vec::new(),
            dimension,
            capacity: capacity.max(1),
            next: 0,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.origins.len()
    }

    /// All entries `[entries, dimension]`, in no particular order.
    pub fn projections(&self) -> &[f32] {
        &self.projections
    }

    /// Where each entry's segment stands in its stream.
    #[cfg(any(test, feature = "cuda"))]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Length of a projection.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The first `count` entries by the number of their key.
    pub fn by_key(&self, count: usize) -> ByKey {
        let mut by_key = ByKey::default();
        for (at, origin) in self.origins.iter().take(count).enumerate() {
            by_key.entry(origin.key).or_default().push(at);
        }
        by_key
    }

    /// The entries of the same run as `origin` that are fewer than `reach` strides away, given
    /// [`Queue::by_key`].
    pub fn near(&self, by_key: &ByKey, origin: &Origin, reach: u64) -> impl Iterator<Item = usize> {
        let same_key = by_key.get(&origin.key).map_or(&[][..], Vec::as_slice);
        same_key.iter().copied().filter(move |at| self.origins[*at].is_near(origin, reach))
    }

    /// Mean age of the entries at `step`, in training steps.
    pub fn mean_age(&self, step: u64) -> f64 {
        let ages = self.steps.iter().map(|entered| step.saturating_sub(*entered) as f64);
        ages.sum::<f64>() / self.len().max(1) as f64
    }

    /// Drops the entries that came in after training step `step`.
    pub fn forget_after(&mut self, step: u64) {
        let kept = std::mem::replace(self, Self::new(self.capacity, self.dimension));
        let oldest = if kept.len() < kept.capacity { 0 } else { kept.next };
        for at in (oldest..kept.len()).chain(0..oldest) {
            if kept.steps[at] <= step {
                let projection = &kept.projections[at * kept.dimension..(at + 1) * kept.dimension];
                self.push(projection, &[kept.origins[at]], kept.steps[at]);
            }
        }
    }

    /// Adds projections `[entries, dimension]`.
    pub fn push(&mut self, projections: &[f32], origins: &[Origin], step: u64) {
        for (projection, origin) in projections.chunks_exact(self.dimension).zip(origins) {
            if self.len() < self.capacity {
                self.projections.extend_from_slice(projection);
                self.origins.push(*origin);
                self.steps.push(step);
            } else {
                let first = self.next * self.dimension;
                self.projections[first..first + self.dimension].copy_from_slice(projection);
                self.origins[self.next] = *origin;
                self.steps[self.next] = step;
            }
            self.next = (self.next + 1) % self.capacity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(key: u64) -> Origin {
        Origin { key, run: 0, sequence: 0 }
    }

    #[test]
    fn the_oldest_entries_are_overwritten_first() {
        let mut queue = Queue::new(3, 1);
        queue.push(&[1.0, 2.0], &[origin(1), origin(2)], 1);
        assert_eq!(queue.len(), 2);
        queue.push(&[3.0, 4.0], &[origin(3), origin(4)], 4);
        assert_eq!(queue.projections(), [4.0, 2.0, 3.0]);
        assert_eq!(queue.origins(), [origin(4), origin(2), origin(3)]);
        assert_eq!(queue.mean_age(4), 1.0);
    }

    #[test]
    fn near_are_those_of_the_same_key_within_reach() {
        let mut queue = Queue::new(8, 1);
        let at = |key, sequence| Origin { sequence, ..origin(key) };
        queue.push(&[1.0, 2.0, 3.0], &[at(1, 0), at(2, 0), at(1, 9)], 1);
        let by_key = queue.by_key(queue.len());
        assert_eq!(queue.near(&by_key, &at(1, 8), 2).collect::<Vec<_>>(), [2]);
        assert_eq!(queue.near(&by_key, &at(3, 0), 2).count(), 0);
    }

    #[test]
    fn entries_of_steps_that_were_taken_back_are_dropped_and_the_rest_keeps_its_order() {
        let mut queue = Queue::new(4, 1);
        for step in 1..=6 {
            queue.push(&[step as f32], &[origin(step)], step);
        }
        queue.forget_after(5);
        assert_eq!(queue.projections(), [3.0, 4.0, 5.0]);
        queue.push(&[7.0, 8.0], &[origin(7), origin(8)], 7);
        assert_eq!(queue.projections(), [8.0, 4.0, 5.0, 7.0]);
    }
}
