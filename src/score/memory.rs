//! What normal looks like: embeddings of earlier segments.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::learner::{Matrix, multiply};
use crate::pairs::Origin;

/// A sample of earlier segments, spread over the recent past: a newcomer takes a random place, so
/// the chance of being remembered falls off exponentially with age.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// `[entries, embedding]`.
    embeddings: Vec<f32>,
    /// `[entries, channels, time]`, standardised: to embed again as the model changes.
    values: Vec<f32>,
    origins: Vec<Origin>,
    newcomers: Vec<Newcomer>,
    capacity: usize,
    dimension: usize,
    size: usize,
    next_refresh: usize,
}

/// A segment that is to be remembered, and its place.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Newcomer {
    place: usize,
    embedding: Vec<f32>,
    values: Vec<f32>,
    origin: Origin,
}

/// Neighbours whose mean distance counts.
const NEIGHBOURS: usize = 3;
/// Entries embedded again after each training step.
const REFRESHED: usize = 32;
/// A newcomer's chance of a place, once the memory is full.
const ADMITTED: f64 = 0.25;

impl Memory {
    /// An empty memory of `capacity` segments of `size` values, embedded in `dimension` values.
    pub fn new(capacity: usize, dimension: usize, size: usize) -> Self {
        Self {
            embeddings: Vec::new(),
            values: Vec::new(),
            origins: Vec::new(),
            newcomers: Vec::new(),
            capacity: capacity.max(1),
            dimension,
            size,
            next_refresh: 0,
        }
    }

    /// Number of segments held.
    pub fn len(&self) -> usize {
        self.origins.len()
    }

    /// Cosines of `embeddings` `[rows, embedding]` with all entries: `[rows, entries]`.
    pub fn cosines(&self, embeddings: &[f32]) -> Vec<f32> {
        let rows = embeddings.len() / self.dimension;
        let mut cosines = vec![0.0; rows * self.len()];
        let entries = Matrix::new(&self.embeddings, self.len(), self.dimension);
        let embeddings = Matrix::new(embeddings, rows, self.dimension);
        multiply(&mut cosines, false, embeddings, entries.transposed());
        cosines
    }

    /// How alike the shapes of segments `[rows, channels, time]`, standardised, and of all entries
    /// are: 1 less their mean squared difference, once each channel is rid of its mean. Missing
    /// values count as the mean. `[rows, entries]`
    pub fn likenesses(&self, values: &[f32], time: usize) -> Vec<f32> {
        let (entries, rows) = (self.len(), values.len() / self.size);
        let (known, shapes) = (centred(&self.values, time), centred(values, time));
        let mut products = vec![0.0; rows * entries];
        let known_shapes = Matrix::new(&known, entries, self.size).transposed();
        multiply(&mut products, false, Matrix::new(&shapes, rows, self.size), known_shapes);
        let square = |shape: &[f32]| shape.iter().map(|value| value * value).sum::<f32>();
        let squares: Vec<f32> = known.chunks_exact(self.size).map(square).collect();
        let of_rows = products.chunks_exact_mut(entries.max(1));
        for (products, shape) in of_rows.zip(shapes.chunks_exact(self.size)) {
            let own = square(shape);
            for (product, other) in products.iter_mut().zip(&squares) {
                let difference = (own + other - 2.0 * *product).max(0.0);
                *product = 1.0 - difference / self.size as f32;
            }
        }
        products
    }

    /// Mean distance `1 - cosine` to the nearest neighbours, given a row of
    /// [`Memory::cosines`], or `1 - likeness` given one of [`Memory::likenesses`]: among segments of the same key where there are enough, else among all.
    /// Segments within `reach` strides do not count. `None` where too few are left.
    pub fn distance(&self, cosines: &[f32], origin: &Origin, reach: u64) -> Option<f32> {
        let mut same = Nearest::default();
        let mut all = Nearest::default();
        for (cosine, other) in cosines.iter().zip(&self.origins) {
            if other.key == origin.key {
                if origin.is_near(other, reach) {
                    continue;
                }
                same.offer(*cosine);
            }
            all.offer(*cosine);
        }
        // A handful of a key's own segments says little: its nearest is not near yet.
        const ENOUGH: usize = 8 * NEIGHBOURS;
        let nearest = if same.offered >= ENOUGH { same } else { all };
        (nearest.offered >= NEIGHBOURS)
            .then(|| nearest.largest.iter().map(|cosine| 1.0 - cosine).sum::<f32>())
            .map(|sum| sum / NEIGHBOURS as f32)
    }

    /// Remembers a segment, or not, by chance: from the next [`Memory::settle`] on.
    pub fn admit(&mut self, embedding: &[f32], values: &[f32], origin: Origin, rng: &mut impl Rng) {
        let free = self.len() + self.newcomers.len();
        let place = if free < self.capacity {
            free
        } else if rng.random_bool(ADMITTED) {
            rng.random_range(0..self.capacity)
        } else {
            return;
        };
        let (embedding, values) = (embedding.to_vec(), values.to_vec());
        self.newcomers.push(Newcomer { place, embedding, values, origin });
    }

    /// Gives those admitted since the last call their places.
    pub fn settle(&mut self) {
        for Newcomer { place, embedding, values, origin } in self.newcomers.drain(..) {
            if place == self.origins.len() {
                self.embeddings.extend_from_slice(&embedding);
                self.values.extend_from_slice(&values);
                self.origins.push(origin);
            } else {
                self.embeddings[place * self.dimension..][..self.dimension]
                    .copy_from_slice(&embedding);
                self.values[place * self.size..][..self.size].copy_from_slice(&values);
                self.origins[place] = origin;
            }
        }
    }

    /// Embeds some entries again with a changed model, in turn: none is ever far behind it.
    pub fn refresh(&mut self, embed: impl FnOnce(&[f32]) -> Vec<f32>) {
        if self.next_refresh >= self.len() {
            self.next_refresh = 0;
        }
        let range = self.next_refresh..(self.next_refresh + REFRESHED).min(self.len());
        if range.is_empty() {
            return;
        }
        let embedded = embed(&self.values[range.start * self.size..range.end * self.size]);
        self.embeddings[range.start * self.dimension..range.end * self.dimension]
            .copy_from_slice(&embedded);
        self.next_refresh = range.end;
    }
}

/// Segments `[.., channels, time]` with each channel less its mean; what is missing becomes 0.
fn centred(values: &[f32], time: usize) -> Vec<f32> {
    let mut centred = Vec::with_capacity(values.len());
    for samples in values.chunks_exact(time) {
        let observed = samples.iter().filter(|sample| !sample.is_nan());
        let (sum, count) = observed.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
        let mean = sum / count.max(1) as f32;
        let deviation = |value: &f32| if value.is_nan() { 0.0 } else { value - mean };
        centred.extend(samples.iter().map(deviation));
    }
    centred
}

/// The largest few of the cosines offered.
struct Nearest {
    largest: [f32; NEIGHBOURS],
    offered: usize,
}

impl Default for Nearest {
    fn default() -> Self {
        Self { largest: [f32::NEG_INFINITY; NEIGHBOURS], offered: 0 }
    }
}

impl Nearest {
    fn offer(&mut self, cosine: f32) {
        self.offered += 1;
        // Hardly ever is one of the few.
        if cosine <= self.largest[NEIGHBOURS - 1] {
            return;
        }
        let mut cosine = cosine;
        for kept in &mut self.largest {
            if cosine > *kept {
                std::mem::swap(kept, &mut cosine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    fn origin(key: u64, sequence: u64) -> Origin {
        Origin { key, run: 0, sequence }
    }

    #[test]
    fn distance_is_the_mean_to_the_nearest_three_that_are_not_near_in_time() {
        let mut memory = Memory::new(8, 2, 1);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let entries = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]];
        for (sequence, embedding) in entries.iter().enumerate() {
            memory.admit(embedding, &[0.0], origin(1, sequence as u64 * 10), &mut rng);
        }
        memory.settle();
        let cosines = memory.cosines(&[1.0, 0.0]);
        let far = memory.distance(&cosines, &origin(1, 1000), 5).expect("four entries");
        assert!((far - 0.2).abs() < 1e-6, "{far}");
        let near = memory.distance(&cosines, &origin(1, 1), 5).expect("three entries");
        assert!((near - (0.2 + 0.4 + 1.0) / 3.0).abs() < 1e-6, "{near}");
        assert_eq!(memory.distance(&cosines, &origin(1, 5), 6), None);
    }

    #[test]
    fn shapes_are_compared_wherever_their_channels_are() {
        let mut memory = Memory::new(8, 1, 4);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        assert!(memory.likenesses(&[0.0; 4], 2).is_empty());
        for sequence in 0..3 {
            memory.admit(&[0.0], &[1.0, 2.0, 7.0, 7.0], origin(1, sequence), &mut rng);
        }
        memory.settle();
        let shifted = [11.0, 12.0, -3.0, -3.0];
        let missing = [5.0, 6.0, f32::NAN, f32::NAN];
        let turned = [2.0, 1.0, 7.0, 9.0];
        let likenesses = memory.likenesses(&[shifted, missing, turned].concat(), 2);
        // Two samples that are off by 1 each, and two by 1 again.
        assert_eq!(likenesses, [[1.0; 3], [1.0; 3], [0.0; 3]].concat());
        assert_eq!(memory.distance(&likenesses[6..], &origin(1, 100), 1), Some(1.0));
    }

    #[test]
    fn a_key_is_compared_with_itself_once_enough_of_it_is_known() {
        let mut memory = Memory::new(64, 2, 1);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        for sequence in 0..30 {
            memory.admit(&[0.0, 1.0], &[0.0], origin(1, sequence), &mut rng);
            memory.admit(&[1.0, 0.0], &[0.0], origin(2, sequence), &mut rng);
        }
        memory.settle();
        let cosines = memory.cosines(&[1.0, 0.0]);
        assert_eq!(memory.distance(&cosines, &origin(1, 1000), 1), Some(1.0));
        assert_eq!(memory.distance(&cosines, &origin(2, 1000), 1), Some(0.0));
        assert_eq!(memory.distance(&cosines, &origin(3, 1000), 1), Some(0.0));
    }

    #[test]
    fn a_full_memory_turns_over_and_is_embedded_again_in_turn() {
        let mut memory = Memory::new(40, 1, 1);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        for sequence in 0..1000 {
            memory.admit(&[0.0], &[sequence as f32], origin(1, sequence), &mut rng);
            if sequence % 7 == 0 {
                memory.settle();
            }
        }
        memory.settle();
        assert_eq!(memory.len(), 40);
        assert!(memory.origins.iter().filter(|origin| origin.sequence > 500).count() > 30);
        for _ in 0..2 {
            memory.refresh(|values| values.iter().map(|value| value + 1.0).collect());
        }
        assert!(memory.embeddings.iter().zip(&memory.values).all(|(e, v)| *e == v + 1.0));
    }
}
