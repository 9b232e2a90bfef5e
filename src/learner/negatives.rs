//! The negatives that a segment's surprise is measured against.

use super::kernels::{Matrix, multiply};
use super::queue::{ByKey, Queue};
use crate::pairs::Origin;

/// Some of the queue's entries, laid out to be compared with a few segments at a time.
#[derive(Clone, Debug)]
pub struct Negatives {
    /// `[dimension, negatives]`: those that a vector of the processor's takes lie side by side.
    columns: Vec<f32>,
    dimension: usize,
    origins: Vec<Origin>,
    by_key: ByKey,
}

/// Most of them: the estimate's noise is far below the spread between segments, and embedding stays
/// cheaper than a long queue.
const MOST: usize = 1024;

impl Negatives {
    pub fn of(queue: &Queue) -> Self {
        let (count, dimension) = (queue.len().min(MOST), queue.dimension());
        let mut columns = vec![0.0; count * dimension];
        for (at, projection) in queue.projections().chunks_exact(dimension).take(count).enumerate()
        {
            let places = columns[at..].iter_mut().step_by(count);
            places.zip(projection).for_each(|(place, value)| *place = *value);
        }
        let origins = queue.origins()[..count].to_vec();
        let by_key = queue.by_key(count);
        Self { columns, dimension, origins, by_key }
    }

    pub fn len(&self) -> usize {
        self.origins.len()
    }

    /// Inner products of `projections` `[rows, dimension]` with all of them: `[rows, negatives]`.
    pub fn cosines(&self, projections: &[f32]) -> Vec<f32> {
        let (rows, count) = (projections.len() / self.dimension, self.len());
        let mut cosines = vec![0.0; rows * count];
        let projections = Matrix::new(projections, rows, self.dimension);
        multiply(
            &mut cosines,
            false,
            projections,
            Matrix::new(&self.columns, self.dimension, count),
        );
        cosines
    }

    /// Those of a segment's own key that are within `reach` strides of it.
    pub fn near(&self, origin: &Origin, reach: u64) -> impl Iterator<Item = usize> {
        let same_key = self.by_key.get(&origin.key).map_or(&[][..], Vec::as_slice);
        same_key.iter().copied().filter(move |at| self.origins[*at].is_near(origin, reach))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_compared_with_every_entry_and_near_ones_are_known() {
        let mut queue = Queue::new(8, 2);
        let origin = |key, sequence| Origin { key, run: 0, sequence };
        let origins = [origin(1, 0), origin(2, 0), origin(1, 9)];
        queue.push(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &origins, 1);
        let negatives = Negatives::of(&queue);
        assert_eq!(negatives.cosines(&[1.0, 10.0, 0.0, 1.0]), [21.0, 43.0, 65.0, 2.0, 4.0, 6.0]);
        assert_eq!(negatives.near(&origin(1, 8), 2).collect::<Vec<_>>(), [2]);
        assert_eq!(negatives.near(&origin(3, 0), 2).count(), 0);
    }
}
