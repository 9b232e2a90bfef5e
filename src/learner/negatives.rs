//! The negatives that a segment's surprise is measured against.

use super::queue::{ByKey, Queue};
use super::side_by_side::SideBySide;

/// The first entries of the queue, to be compared with a few segments at a time.
#[derive(Clone, Debug)]
pub struct Negatives {
    pub projections: SideBySide,
    pub by_key: ByKey,
}

/// Most of them: the estimate's noise is far below the spread between segments, and embedding stays
/// cheaper than a long queue.
const MOST: usize = 1024;

impl Negatives {
    pub fn of(queue: &Queue) -> Self {
        let (count, dimension) = (queue.len().min(MOST), queue.dimension());
        let mut projections = SideBySide::new(dimension);
        for (at, projection) in queue.projections().chunks_exact(dimension).take(count).enumerate()
        {
            projections.set(at, projection);
        }
        Self { projections, by_key: queue.by_key(count) }
    }
}
