//! What normal looks like: embeddings of earlier segments.

use pulp::{Arch, Simd, WithSimd};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::scattered;
use crate::learner::{Matrix, SideBySide, multiply};
use crate::pairs::Origin;

/// A sample of earlier segments, spread over the recent past: a newcomer takes a random place, so
/// the chance of being remembered falls off exponentially with age.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    embeddings: SideBySide,
    /// `[entries, channels, time]`, standardised: to embed again as the model changes.
    values: Vec<f32>,
    origins: Vec<Origin>,
    /// Those of the origins, to be searched.
    keys: Vec<u64>,
    newcomers: Vec<Newcomer>,
    capacity: usize,
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

/// The samples of a segment, and the entries, that shapes are compared by.
#[derive(Clone, Copy)]
pub struct Cut {
    /// Samples of a segment, its last.
    pub newest: usize,
    /// Which of so many samples of the entries, which have none in common.
    pub sample: usize,
    pub samples: usize,
}

/// Entries that are searched at once.
const BLOCK: usize = 16;
/// Segments of a key below which they say little: the nearest is not near yet.
const ENOUGH: usize = 24;
/// Entries embedded again after each training step.
const REFRESHED: usize = 32;
/// A newcomer's chance of a place, once the memory is full.
const ADMITTED: f64 = 0.25;

impl Memory {
    /// An empty memory of `capacity` segments of `size` values, embedded in `dimension` values.
    pub fn new(capacity: usize, dimension: usize, size: usize) -> Self {
        Self {
            embeddings: SideBySide::new(dimension),
            values: Vec::new(),
            origins: Vec::new(),
            keys: Vec::new(),
            newcomers: Vec::new(),
            capacity: capacity.max(1),
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
        self.embeddings.products(embeddings)
    }

    /// How alike the shapes of segments `[rows, channels, time]`, standardised, and of a sample of the
    /// entries are: 1 less their mean squared difference over the newest samples, once each channel is
    /// rid of its mean. Missing values count as the mean. `[rows, entries]`, infinitely little for what
    /// is not in the sample.
    pub fn likenesses(&self, values: &[f32], time: usize, cut: Cut) -> Vec<f32> {
        let (entries, rows) = (self.len(), values.len() / self.size);
        let size = self.size / time * cut.newest;
        let places: Vec<usize> =
            (0..entries).filter(|place| scattered(*place, cut.samples) == cut.sample).collect();
        let mut known = Vec::with_capacity(places.len() * size);
        for place in &places {
            let values = &self.values[place * self.size..][..self.size];
            push_centred(&mut known, values, time, cut.newest);
        }
        let mut shapes = Vec::with_capacity(rows * size);
        push_centred(&mut shapes, values, time, cut.newest);
        let mut products = vec![0.0; rows * places.len()];
        let known_shapes = Matrix::new(&known, places.len(), size).transposed();
        multiply(&mut products, false, Matrix::new(&shapes, rows, size), known_shapes);
        let square = |shape: &[f32]| shape.iter().map(|value| value * value).sum::<f32>();
        let squares: Vec<f32> = known.chunks_exact(size).map(square).collect();
        let mut likenesses = vec![f32::NEG_INFINITY; rows * entries];
        let of_rows = products.chunks_exact(places.len().max(1)).zip(shapes.chunks_exact(size));
        for (likenesses, (products, shape)) in
            likenesses.chunks_exact_mut(entries.max(1)).zip(of_rows)
        {
            let own = square(shape);
            for ((place, product), other) in places.iter().zip(products).zip(&squares) {
                let difference = (own + other - 2.0 * product).max(0.0);
                likenesses[*place] = 1.0 - difference / size as f32;
            }
        }
        likenesses
    }

    /// The nearest `K` neighbours, given a row of [`Memory::cosines`] or of [`Memory::likenesses`]:
    /// among segments of the same key where there are enough, else among all. Segments within
    /// `reach` strides do not count. `None` where fewer than `K` are left.
    pub fn nearest<const K: usize>(
        &self,
        cosines: &[f32],
        origin: &Origin,
        reach: u64,
    ) -> Option<Nearest<K>> {
        let (keys, origins) = (&self.keys, &self.origins);
        let (same, all) =
            Arch::new().dispatch(Search { cosines, keys, origins, origin: *origin, reach });
        let nearest = if same.offered >= ENOUGH { same } else { all };
        (nearest.offered >= K).then_some(nearest)
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
        for Newcomer { place, embedding, values, origin } in std::mem::take(&mut self.newcomers) {
            if place == self.origins.len() {
                self.values.extend_from_slice(&values);
                self.origins.push(origin);
                self.keys.push(origin.key);
            } else {
                self.values[place * self.size..][..self.size].copy_from_slice(&values);
                self.origins[place] = origin;
                self.keys[place] = origin.key;
            }
            self.embeddings.set(place, &embedding);
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
        self.next_refresh = range.end;
        let dimension = embedded.len() / range.len();
        for (place, embedding) in range.zip(embedded.chunks_exact(dimension)) {
            self.embeddings.set(place, embedding);
        }
    }
}

/// Finds the nearest entries of the key of `origin`, and of all keys, but those near it in time.
struct Search<'a, const K: usize> {
    cosines: &'a [f32],
    keys: &'a [u64],
    origins: &'a [Origin],
    origin: Origin,
    reach: u64,
}

impl<const K: usize> WithSimd for Search<'_, K> {
    type Output = (Nearest<K>, Nearest<K>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let (mut same, mut all) = (Nearest::default(), Nearest::default());
        let key = simd.splat_u64s(self.origin.key);
        // The largest few of each lane.
        let mut largest = [simd.splat_f32s(f32::NEG_INFINITY); K];
        let (cosines, rest) = self.cosines.as_chunks::<BLOCK>();
        let (keys, _) = self.keys.as_chunks::<BLOCK>();
        for (block, (cosines, keys)) in cosines.iter().zip(keys).enumerate() {
            let own = S::as_simd_u64s(keys).0.iter();
            let mut is_own = simd.greater_than_u64s(key, key);
            for keys in own {
                is_own = simd.or_m64s(is_own, simd.equal_u64s(*keys, key));
            }
            let mut counted = *cosines;
            if simd.first_true_m64s(is_own) < S::U64_LANES {
                let origins = &self.origins[block * BLOCK..];
                for (cosine, other) in counted.iter_mut().zip(origins) {
                    if self.origin.is_near(other, self.reach) {
                        *cosine = f32::NEG_INFINITY;
                    } else if other.key == self.origin.key {
                        same.offer(*cosine);
                    }
                }
            }
            for cosines in S::as_simd_f32s(&counted).0 {
                let mut cosines = *cosines;
                for kept in &mut largest {
                    let larger = simd.greater_than_f32s(cosines, *kept);
                    let less = simd.select_f32s(larger, *kept, cosines);
                    *kept = simd.select_f32s(larger, cosines, *kept);
                    cosines = less;
                }
            }
        }
        for kept in largest {
            let mut lanes = [f32::NEG_INFINITY; BLOCK];
            simd.partial_store_f32s(&mut lanes, kept);
            lanes.into_iter().for_each(|cosine| all.offer(cosine));
        }
        let origins = &self.origins[self.cosines.len() - rest.len()..];
        for (cosine, other) in rest.iter().zip(origins) {
            if !self.origin.is_near(other, self.reach) {
                if other.key == self.origin.key {
                    same.offer(*cosine);
                }
                all.offer(*cosine);
            }
        }
        (same, all)
    }
}

/// Appends the `newest` samples of segments `[.., channels, time]`, each channel less its mean; what is
/// missing becomes 0.
fn push_centred(centred: &mut Vec<f32>, values: &[f32], time: usize, newest: usize) {
    for channel in values.chunks_exact(time) {
        let samples = &channel[time - newest..];
        let observed = samples.iter().filter(|sample| !sample.is_nan());
        let (sum, count) = observed.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
        let mean = sum / count.max(1) as f32;
        let deviation = |value: &f32| if value.is_nan() { 0.0 } else { value - mean };
        centred.extend(samples.iter().map(deviation));
    }
}

/// The largest `K` of the cosines offered, the largest first; one that is infinitely small is none.
pub struct Nearest<const K: usize> {
    largest: [f32; K],
    offered: usize,
}

impl<const K: usize> Default for Nearest<K> {
    fn default() -> Self {
        Self { largest: [f32::NEG_INFINITY; K], offered: 0 }
    }
}

impl<const K: usize> Nearest<K> {
    /// Mean distance `1 - cosine` to all of them.
    pub fn mean_distance(&self) -> f32 {
        self.largest.iter().map(|cosine| 1.0 - cosine).sum::<f32>() / K as f32
    }

    /// Distance `1 - cosine` to the farthest of them.
    pub fn farthest(&self) -> f32 {
        1.0 - self.largest[K - 1]
    }

    fn offer(&mut self, cosine: f32) {
        if cosine == f32::NEG_INFINITY {
            return;
        }
        self.offered += 1;
        // Hardly ever is one of the few.
        if cosine <= self.largest[K - 1] {
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

    /// All samples of segments of two, and all entries.
    const WHOLE: Cut = Cut { newest: 2, sample: 0, samples: 1 };

    fn origin(key: u64, sequence: u64) -> Origin {
        Origin { key, run: 0, sequence }
    }

    #[test]
    fn those_near_in_time_are_no_neighbours() {
        let mut memory = Memory::new(8, 2, 1);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let entries = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]];
        for (sequence, embedding) in entries.iter().enumerate() {
            memory.admit(embedding, &[0.0], origin(1, sequence as u64 * 10), &mut rng);
        }
        memory.settle();
        let cosines = memory.cosines(&[1.0, 0.0]);
        let far = memory.nearest::<3>(&cosines, &origin(1, 1000), 5).expect("four entries");
        assert!((far.mean_distance() - 0.2).abs() < 1e-6, "{}", far.mean_distance());
        assert!((far.farthest() - 0.4).abs() < 1e-6, "{}", far.farthest());
        let near = memory.nearest::<3>(&cosines, &origin(1, 1), 5).expect("three entries");
        let mean = (0.2 + 0.4 + 1.0) / 3.0;
        assert!((near.mean_distance() - mean).abs() < 1e-6, "{}", near.mean_distance());
        assert!((near.farthest() - 1.0).abs() < 1e-6, "{}", near.farthest());
        assert!(memory.nearest::<3>(&cosines, &origin(1, 5), 6).is_none());
    }

    /// A memory of `entries` random segments of three keys.
    fn random(rng: &mut Pcg64Mcg, entries: usize, dimension: usize) -> Memory {
        let mut memory = Memory::new(entries, dimension, 1);
        for sequence in 0..entries as u64 {
            let embedding: Vec<f32> = (0..dimension).map(|_| rng.random_range(-1.0..1.0)).collect();
            memory.admit(&embedding, &[0.0], origin(sequence % 3, sequence), rng);
        }
        memory.settle();
        memory
    }

    #[test]
    fn the_nearest_are_those_of_a_search_one_by_one() {
        let mut rng = Pcg64Mcg::seed_from_u64(5);
        for entries in [4, 5, 16, 50, 90, 200] {
            let memory = random(&mut rng, entries, 2);
            let cosines: Vec<f32> = (0..entries).map(|_| rng.random_range(-1.0..1.0)).collect();
            for key in 0..5 {
                let own = origin(key, 40);
                let nearest = |same: bool| -> Vec<f32> {
                    let others = cosines.iter().zip(&memory.origins);
                    let others = others.filter(|(_, other)| !own.is_near(other, 20));
                    let others = others.filter(|(_, other)| !same || other.key == key);
                    let mut found: Vec<f32> = others.map(|(cosine, _)| *cosine).collect();
                    found.sort_by(|a, b| b.total_cmp(a));
                    found
                };
                let (same, all) = (nearest(true), nearest(false));
                let nearest = if same.len() >= ENOUGH { same } else { all };
                let found = memory.nearest::<5>(&cosines, &own, 20).map(|found| found.largest);
                assert_eq!(found.as_ref(), nearest.first_chunk::<5>(), "{entries} {key}");
            }
        }
    }

    #[test]
    fn shapes_are_compared_wherever_their_channels_are() {
        let mut memory = Memory::new(8, 1, 4);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        assert!(memory.likenesses(&[0.0; 4], 2, WHOLE).is_empty());
        for sequence in 0..3 {
            memory.admit(&[0.0], &[1.0, 2.0, 7.0, 7.0], origin(1, sequence), &mut rng);
        }
        memory.settle();
        let shifted = [11.0, 12.0, -3.0, -3.0];
        let missing = [5.0, 6.0, f32::NAN, f32::NAN];
        let turned = [2.0, 1.0, 7.0, 9.0];
        let likenesses = memory.likenesses(&[shifted, missing, turned].concat(), 2, WHOLE);
        // Two samples that are off by 1 each, and two by 1 again.
        assert_eq!(likenesses, [[1.0; 3], [1.0; 3], [0.0; 3]].concat());
        let nearest = memory.nearest::<3>(&likenesses[6..], &origin(1, 100), 1);
        assert_eq!(nearest.map(|nearest| nearest.mean_distance()), Some(1.0));
    }

    #[test]
    fn shapes_of_the_newest_samples_are_those_of_shorter_segments_and_of_their_sample_alone() {
        let mut rng = Pcg64Mcg::seed_from_u64(3);
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
        };
        // Two channels of five samples, and the last three of each.
        let newest = |segments: &[f32]| -> Vec<f32> {
            segments.chunks_exact(5).flat_map(|samples| samples[2..].to_vec()).collect()
        };
        let (mut long, mut short) = (Memory::new(8, 1, 10), Memory::new(8, 1, 6));
        let mut chance = Pcg64Mcg::seed_from_u64(1);
        for sequence in 0..5 {
            let values = draw(10);
            long.admit(&[0.0], &values, origin(1, sequence), &mut chance);
            short.admit(&[0.0], &newest(&values), origin(1, sequence), &mut chance);
        }
        long.settle();
        short.settle();
        let values = draw(20);
        let whole = Cut { newest: 3, ..WHOLE };
        let expected = short.likenesses(&newest(&values), 3, whole);
        assert_eq!(long.likenesses(&values, 5, whole), expected);
        assert_ne!(long.likenesses(&values, 5, Cut { newest: 5, ..WHOLE }), expected);
        for sample in 0..2 {
            let found = long.likenesses(&values, 5, Cut { newest: 3, sample, samples: 2 });
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let is_in_it = scattered(at % 5, 2) == sample;
                // The order of the products' sums is not that of fewer of them.
                let alike = (found - expected).abs() < 1e-5;
                assert!(if is_in_it { alike } else { *found == f32::NEG_INFINITY }, "{at}");
            }
        }
    }

    #[test]
    fn each_sample_has_its_share_of_keys_that_take_turns() {
        for keys in 1..=24 {
            for key in 0..keys {
                let mut found = [0; 3];
                (key..1024).step_by(keys).for_each(|place| found[scattered(place, 3)] += 1);
                let expected = 1024.0 / keys as f64 / 3.0;
                let share = |found: usize| found as f64 / expected;
                assert!(found.iter().all(|found| (0.5..2.0).contains(&share(*found))), "{found:?}");
            }
        }
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
        let distance = |key| {
            memory.nearest::<3>(&cosines, &origin(key, 1000), 1).map(|found| found.mean_distance())
        };
        assert_eq!(distance(1), Some(1.0));
        assert_eq!(distance(2), Some(0.0));
        assert_eq!(distance(3), Some(0.0));
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
        let embeddings = memory.cosines(&[1.0]);
        assert!(embeddings.iter().zip(&memory.values).all(|(e, v)| *e == v + 1.0));
    }
}
