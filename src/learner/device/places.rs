//! Where segments stand in their streams, as numbers that a device can compare.

use rustc_hash::FxHashSet;

use crate::pairs::Origin;

/// Places on one line, such that two that are less than `reach` apart are those of segments of one
/// run, fewer than `reach` strides away from each other: exactly, though the numbers are `f32`, and
/// only between one of `pairs` and one of `negatives`.
#[derive(Clone, Debug, PartialEq)]
pub struct Places {
    pub pairs: Vec<f32>,
    pub negatives: Vec<f32>,
    pub reach: f32,
}

/// From here on `f32` does not tell whole numbers apart.
const FARTHEST: u64 = 1 << 24;

impl Places {
    /// Of a batch and of the queue; `None` if they take more room than the line has.
    pub fn new(pairs: &[Origin], negatives: &[Origin], reach: u64) -> Option<Self> {
        let runs: FxHashSet<_> = pairs.iter().map(run).collect();
        let mut known: Vec<_> = pairs
            .iter()
            .chain(negatives)
            .filter(|origin| runs.contains(&run(origin)))
            .map(|origin| (run(origin), origin.sequence))
            .collect();
        known.sort_unstable();
        known.dedup();
        let mut places = Vec::with_capacity(known.len());
        let mut place: u64 = 0;
        for (at, (run, sequence)) in known.iter().enumerate() {
            if let Some((before, earlier)) = at.checked_sub(1).map(|before| known[before]) {
                // Farther than the reach is far enough.
                let gap = if before == *run { sequence - earlier } else { reach };
                place = place.saturating_add(gap.min(reach));
            }
            places.push(place as f32);
        }
        if place.saturating_add(reach) >= FARTHEST {
            return None;
        }
        // Of another run than any pair's: beyond the reach of the first.
        let elsewhere = -(reach as f32);
        let place = |origin: &Origin| {
            let at = known.binary_search(&(run(origin), origin.sequence));
            at.map_or(elsewhere, |at| places[at])
        };
        Some(Self {
            pairs: pairs.iter().map(place).collect(),
            negatives: negatives.iter().map(place).collect(),
            reach: reach as f32,
        })
    }
}

fn run(origin: &Origin) -> (u64, u64) {
    (origin.key, origin.run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    #[test]
    fn places_are_within_reach_exactly_where_segments_are_near() {
        let mut rng = Pcg64Mcg::seed_from_u64(3);
        for reach in [1, 2, 9, 40] {
            let mut origins = |count: usize, keys: u64| -> Vec<Origin> {
                let mut origin = || Origin {
                    key: rng.random_range(0..keys),
                    run: rng.random_range(0..2),
                    sequence: u64::MAX / 2 + rng.random_range(0..200),
                };
                (0..count).map(|_| origin()).collect()
            };
            let (pairs, negatives) = (origins(30, 4), origins(300, 6));
            let places = Places::new(&pairs, &negatives, reach).unwrap();
            for (pair, place) in pairs.iter().zip(&places.pairs) {
                for (negative, other) in negatives.iter().zip(&places.negatives) {
                    let is_near = (place - other).abs() < places.reach;
                    assert_eq!(is_near, pair.is_near(negative, reach), "{pair:?} {negative:?}");
                }
            }
        }
    }

    #[test]
    fn a_line_that_is_too_short_is_none() {
        let origins = [0, 1].map(|key| Origin { key, run: 0, sequence: 0 });
        assert!(Places::new(&origins, &origins, FARTHEST).is_none());
    }
}
