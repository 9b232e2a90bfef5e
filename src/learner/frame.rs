//! The frame that embeddings are published in.
//!
//! InfoNCE cares for angles between embeddings and not for where they point, so that while a model
//! learns, all of them turn together, and those of one version do not compare with another's. A
//! [`Frame`] turns them back: it remembers what some segments' embeddings were when they were first
//! seen, and finds the rotation that brings today's embeddings of the same segments nearest to them
//! (orthogonal Procrustes, Schönemann 1966).

use std::sync::Arc;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::graph::NamedTensor;
use super::kernels::{Matrix, dot, multiply};

/// Where embeddings are turned to, and by what that is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Frame {
    /// `[embedding, embedding]`, orthogonal.
    rotation: Vec<f32>,
    /// Segments `[references, channels, time]`, standardised: a uniform sample of all that were
    /// offered (algorithm R, Vitter 1985).
    segments: Arc<Vec<f32>>,
    /// What was published of them when they became references, `[references, embedding]`.
    published: Arc<Vec<f32>>,
    /// Segments offered so far.
    offered: u64,
    wander: f32,
    dimension: usize,
    /// Values of a segment.
    size: usize,
}

/// Training steps from one alignment to the next: a model turns by little in so many, and
/// embedding the references costs a sixth of a step.
pub const INTERVAL: u64 = 8;
/// References held.
const REFERENCES: usize = 256;
/// How much the last rotation counts beside the references: what they do not say of rare directions
/// stays as it was.
const INERTIA: f32 = 1e-3;

impl Frame {
    /// No rotation yet, for segments of `size` values embedded in `dimension`.
    pub fn new(dimension: usize, size: usize) -> Self {
        Self {
            rotation: identity(dimension),
            segments: Arc::default(),
            published: Arc::default(),
            offered: 0,
            wander: 0.0,
            dimension,
            size,
        }
    }

    /// The rotation, under a name: what embeddings `[segments, embedding]` are multiplied by.
    pub fn tensor(&self, name: &str) -> NamedTensor<'_> {
        NamedTensor {
            name: name.to_owned(),
            shape: vec![self.dimension, self.dimension],
            values: &self.rotation,
        }
    }

    /// How far the embeddings of the references are, once aligned, from what was published of them:
    /// the mean of `1 - cosine`, as of the last alignment.
    pub fn wander(&self) -> f32 {
        self.wander
    }

    /// Turns a model's own `embeddings` `[segments, embedding]` into the frame.
    pub fn turn(&self, embeddings: &[f32]) -> Vec<f32> {
        let rows = embeddings.len() / self.dimension;
        let mut turned = vec![0.0; embeddings.len()];
        let rotation = Matrix::new(&self.rotation, self.dimension, self.dimension);
        multiply(&mut turned, false, Matrix::new(embeddings, rows, self.dimension), rotation);
        turned
    }

    /// Finds the rotation anew for a model that has changed; `embed` gives its own embeddings of
    /// standardised segments.
    pub fn align(&mut self, embed: impl FnOnce(&[f32]) -> Vec<f32>) {
        let dimension = self.dimension;
        let references = self.published.len() / dimension;
        if references == 0 {
            return;
        }
        let embeddings = embed(&self.segments);
        let ours = Matrix::new(&embeddings, references, dimension).transposed();
        let theirs = Matrix::new(&self.published, references, dimension);
        let inertia = INERTIA * references as f32;
        let mut rotation = std::mem::take(&mut self.rotation);
        rotation.iter_mut().for_each(|value| *value *= inertia);
        multiply(&mut rotation, true, ours, theirs);
        self.rotation = nearest_orthogonal(rotation, dimension);
        let turned = self.turn(&embeddings);
        let pairs = turned.chunks_exact(dimension).zip(self.published.chunks_exact(dimension));
        let distances = pairs.map(|(now, then)| 1.0 - dot(now, then));
        self.wander = distances.sum::<f32>() / references as f32;
    }

    /// Offers standardised `segments` as references, once the model is aligned; `embed` as above.
    pub fn offer(
        &mut self,
        segments: &[f32],
        embed: impl FnOnce(&[f32]) -> Vec<f32>,
        rng: &mut impl Rng,
    ) {
        let mut taken = Vec::new();
        for segment in segments.chunks_exact(self.size) {
            self.offered += 1;
            let place = rng.random_range(0..self.offered) as usize;
            let held = self.segments.len() / self.size;
            if held < REFERENCES {
                taken.push(held);
                Arc::make_mut(&mut self.segments).extend_from_slice(segment);
            } else if place < REFERENCES {
                taken.push(place);
                Arc::make_mut(&mut self.segments)[place * self.size..][..self.size]
                    .copy_from_slice(segment);
            }
        }
        if taken.is_empty() {
            return;
        }
        let chosen =
            taken.iter().flat_map(|place| &self.segments[place * self.size..][..self.size]);
        let chosen: Vec<f32> = chosen.copied().collect();
        let embeddings = self.turn(&embed(&chosen));
        let published = Arc::make_mut(&mut self.published);
        published.resize(self.segments.len() / self.size * self.dimension, 0.0);
        for (place, embedding) in taken.iter().zip(embeddings.chunks_exact(self.dimension)) {
            published[place * self.dimension..][..self.dimension].copy_from_slice(embedding);
        }
    }
}

fn identity(size: usize) -> Vec<f32> {
    let mut matrix = vec![0.0; size * size];
    matrix.iter_mut().step_by(size + 1).for_each(|value| *value = 1.0);
    matrix
}

/// The orthogonal matrix nearest to `matrix` `[size, size]`, its polar factor, by the iteration of Björck
/// and Bowie (1971): `X <- (3 X - X X' X) / 2` brings each singular value below `sqrt(3)` to 1.
fn nearest_orthogonal(mut matrix: Vec<f32>, size: usize) -> Vec<f32> {
    /// One that is a millionth of the largest takes some forty.
    const MOST_ROUNDS: usize = 60;
    const ORTHOGONAL: f32 = 1e-5;
    let norm = dot(&matrix, &matrix).sqrt().max(f32::MIN_POSITIVE);
    matrix.iter_mut().for_each(|value| *value /= norm);
    let (mut square, mut cube) = (vec![0.0; size * size], vec![0.0; size * size]);
    for _ in 0..MOST_ROUNDS {
        let known = Matrix::new(&matrix, size, size);
        multiply(&mut square, false, known, known.transposed());
        let off = square.iter().enumerate().map(|(at, value)| {
            let expected = if at % (size + 1) == 0 { 1.0 } else { 0.0 };
            (value - expected).abs()
        });
        if off.fold(0.0, f32::max) < ORTHOGONAL {
            break;
        }
        multiply(&mut cube, false, Matrix::new(&square, size, size), known);
        for (value, cube) in matrix.iter_mut().zip(&cube) {
            *value = 1.5 * *value - 0.5 * cube;
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    const DIMENSION: usize = 12;

    fn random(count: usize, rng: &mut Pcg64Mcg) -> Vec<f32> {
        (0..count).map(|_| rng.sample(StandardNormal)).collect()
    }

    /// Rows of unit length, most of their length in a few directions, as a model's are.
    fn embeddings(rows: usize, rng: &mut Pcg64Mcg) -> Vec<f32> {
        let mut values = random(rows * DIMENSION, rng);
        for row in values.chunks_exact_mut(DIMENSION) {
            row.iter_mut().skip(3).for_each(|value| *value *= 0.1);
            let length = dot(row, row).sqrt();
            row.iter_mut().for_each(|value| *value /= length);
        }
        values
    }

    fn orthogonal(rng: &mut Pcg64Mcg) -> Vec<f32> {
        nearest_orthogonal(random(DIMENSION * DIMENSION, rng), DIMENSION)
    }

    fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; a.len()];
        let a = Matrix::new(a, a.len() / DIMENSION, DIMENSION);
        multiply(&mut out, false, a, Matrix::new(b, DIMENSION, DIMENSION));
        out
    }

    fn farthest(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn the_nearest_orthogonal_matrix_of_a_stretched_rotation_is_the_rotation() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let rotation = orthogonal(&mut rng);
        let square = Matrix::new(&rotation, DIMENSION, DIMENSION);
        let mut product = vec![0.0; DIMENSION * DIMENSION];
        multiply(&mut product, false, square, square.transposed());
        assert!(farthest(&product, &identity(DIMENSION)) < 1e-4);
        let mut stretched = rotation.clone();
        for (row, values) in stretched.chunks_exact_mut(DIMENSION).enumerate() {
            // Down to a hundred-thousandth.
            values.iter_mut().for_each(|value| *value *= 10_f32.powf(-5.0 * row as f32 / 11.0));
        }
        assert!(farthest(&nearest_orthogonal(stretched, DIMENSION), &rotation) < 1e-3);
    }

    /// Mean cosine of rows with each other.
    fn likeness(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b) / (a.len() / DIMENSION) as f32
    }

    /// Segments are their own embeddings here, until the model turns them.
    #[test]
    fn a_model_that_turns_goes_on_being_published_as_before() {
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        let mut frame = Frame::new(DIMENSION, DIMENSION);
        frame.align(<[f32]>::to_vec);
        assert_eq!(frame.wander(), 0.0);
        frame.offer(&embeddings(200, &mut rng), <[f32]>::to_vec, &mut rng);
        let others = embeddings(50, &mut rng);
        let before = frame.turn(&others);
        assert!(farthest(&before, &others) < 1e-6);
        let mut turn = identity(DIMENSION);
        for _ in 0..40 {
            let mut step = random(DIMENSION * DIMENSION, &mut rng);
            step.iter_mut().for_each(|value| *value *= 0.1);
            step.iter_mut().step_by(DIMENSION + 1).for_each(|value| *value += 1.0);
            turn = product(&turn, &nearest_orthogonal(step, DIMENSION));
            frame.align(|segments| product(segments, &turn));
            assert!(frame.wander() < 2e-3, "{}", frame.wander());
            // Those that come later are remembered as they are published, not as the model has them.
            let newer = embeddings(50, &mut rng);
            frame.offer(&newer, |segments| product(segments, &turn), &mut rng);
        }
        let turned = product(&others, &turn);
        assert!(likeness(&turned, &before) < 0.5);
        let after = frame.turn(&turned);
        assert!(likeness(&after, &before) > 0.99, "{}", likeness(&after, &before));
    }

    #[test]
    fn what_is_not_a_turn_is_told_and_a_direction_without_references_stays() {
        let mut rng = Pcg64Mcg::seed_from_u64(3);
        let mut frame = Frame::new(DIMENSION, DIMENSION);
        frame.align(<[f32]>::to_vec);
        let mut flat = embeddings(100, &mut rng);
        flat.chunks_exact_mut(DIMENSION).for_each(|row| row[DIMENSION - 1] = 0.0);
        frame.offer(&flat, <[f32]>::to_vec, &mut rng);
        frame.align(<[f32]>::to_vec);
        assert!(frame.wander().abs() < 1e-2);
        let mut unseen = vec![0.0; DIMENSION];
        unseen[DIMENSION - 1] = 1.0;
        assert!(farthest(&frame.turn(&unseen), &unseen) < 1e-3);
        let shuffled = |segments: &[f32]| {
            let mut segments = segments.to_vec();
            segments.rotate_left(7 * DIMENSION);
            segments
        };
        frame.align(shuffled);
        assert!(frame.wander() > 0.3);
    }
}
