//! Recent segments with links between temporal neighbours.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Where a segment stands in its key's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The learner's number for the key.
    pub key: u64,
    /// The run within the key.
    pub run: u64,
    /// The sequence number within the key.
    pub sequence: u64,
}

impl Origin {
    /// Whether this is the segment right after `other` in the same run.
    pub fn follows(&self, other: &Self) -> bool {
        self.key == other.key && self.run == other.run && self.sequence == other.sequence + 1
    }

    /// Whether `other` is a segment of the same run, fewer than `reach` strides away.
    pub fn is_near(&self, other: &Self, reach: u64) -> bool {
        self.key == other.key
            && self.run == other.run
            && self.sequence.abs_diff(other.sequence) < reach
    }
}

/// A ring of the last segments; a ticket names one for as long as it is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    /// `[capacity, channels, time]`.
    values: Vec<f32>,
    entries: Vec<Entry>,
    size: usize,
    capacity: usize,
    pushed: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Entry {
    origin: Origin,
    /// Ticket of the segment one stride earlier.
    predecessor: Option<u64>,
}

impl Pool {
    /// An empty pool of `capacity` segments of `size` values (channels × time).
    pub fn new(capacity: usize, size: usize) -> Self {
        Self { values: Vec::new(), entries: Vec::new(), size, capacity: capacity.max(2), pushed: 0 }
    }

    /// Number of segments held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a standardised segment `[channels, time]`; the oldest makes room. `predecessor` is the
    /// ticket of the segment before it in the same run. Returns its own ticket.
    pub fn push(&mut self, values: &[f32], origin: Origin, predecessor: Option<u64>) -> u64 {
        let ticket = self.pushed;
        let entry = Entry { origin, predecessor };
        if self.entries.len() < self.capacity {
            self.values.extend_from_slice(values);
            self.entries.push(entry);
        } else {
            let slot = self.slot(ticket);
            self.values[slot * self.size..(slot + 1) * self.size].copy_from_slice(values);
            self.entries[slot] = entry;
        }
        self.pushed += 1;
        ticket
    }

    /// The segment of `ticket`, if it is still held.
    pub fn get(&self, ticket: u64) -> Option<(&[f32], Origin)> {
        self.holds(ticket).then(|| {
            let slot = self.slot(ticket);
            (&self.values[slot * self.size..(slot + 1) * self.size], self.entries[slot].origin)
        })
    }

    /// Draws (anchor, positive): tickets of two segments of one run, 1 to `max_distance` strides
    /// apart. `None` where the pool has next to no neighbours.
    pub fn sample(&self, max_distance: usize, rng: &mut impl Rng) -> Option<(u64, u64)> {
        const TRIES: usize = 16;
        if self.entries.is_empty() {
            return None;
        }
        let oldest = self.pushed - self.entries.len() as u64;
        for _ in 0..TRIES {
            let anchor = rng.random_range(oldest..self.pushed);
            let distance = rng.random_range(1..=max_distance.max(1));
            let mut positive = None;
            let mut at = anchor;
            for _ in 0..distance {
                match self.entries[self.slot(at)].predecessor.filter(|ticket| self.holds(*ticket)) {
                    Some(before) => at = before,
                    None => break,
                }
                positive = Some(at);
            }
            if let Some(positive) = positive {
                return Some((anchor, positive));
            }
        }
        None
    }

    fn holds(&self, ticket: u64) -> bool {
        ticket < self.pushed && self.pushed - ticket <= self.entries.len() as u64
    }

    fn slot(&self, ticket: u64) -> usize {
        (ticket % self.capacity as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    fn filled(capacity: usize, segments: u64) -> Pool {
        let mut pool = Pool::new(capacity, 2);
        let mut last = [None; 2];
        for at in 0..segments {
            let key = at % 2;
            let origin = Origin { key, run: 0, sequence: at / 2 };
            let ticket = pool.push(&[at as f32, key as f32], origin, last[key as usize]);
            last[key as usize] = Some(ticket);
        }
        pool
    }

    #[test]
    fn pairs_are_neighbours_of_one_run_within_the_distance() {
        let pool = filled(64, 1000);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut distances = [0_usize; 4];
        for _ in 0..500 {
            let (anchor, positive) = pool.sample(3, &mut rng).expect("a full pool has pairs");
            let (_, anchor) = pool.get(anchor).expect("the anchor is held");
            let (values, positive) = pool.get(positive).expect("the positive is held");
            assert_eq!((anchor.key, anchor.run), (positive.key, positive.run));
            assert_eq!(values[1], positive.key as f32);
            distances[(anchor.sequence - positive.sequence) as usize] += 1;
        }
        assert_eq!(distances[0], 0);
        assert!(distances[1..].iter().all(|count| *count > 100), "{distances:?}");
    }

    #[test]
    fn overwritten_segments_are_gone() {
        let pool = filled(64, 1000);
        assert_eq!(pool.len(), 64);
        assert!(pool.get(935).is_none());
        assert_eq!(pool.get(936).map(|(values, _)| values[0]), Some(936.0));
        assert!(pool.get(1000).is_none());
    }

    #[test]
    fn segments_without_neighbours_make_no_pair() {
        let mut pool = Pool::new(8, 1);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        assert_eq!(pool.sample(1, &mut rng), None);
        for key in 0..8 {
            pool.push(&[0.0], Origin { key, run: 0, sequence: 0 }, None);
        }
        assert_eq!(pool.sample(1, &mut rng), None);
    }
}
