//! Vectors that a few others are compared with again and again.

use pulp::{Arch, Simd, WithSimd};
use serde::{Deserialize, Serialize};

/// Vectors of one length, sixteen of them side by side: as their products with a few others want them,
/// for which `gemm` would pack all of them anew each time, and take as long for that as for the products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SideBySide {
    /// `[blocks, dimension, BLOCK]`, the last block filled up with zeros.
    blocks: Vec<f32>,
    dimension: usize,
    count: usize,
}

/// Vectors side by side.
const BLOCK: usize = 16;

impl SideBySide {
    /// None yet, of `dimension` values.
    pub fn new(dimension: usize) -> Self {
        Self { blocks: Vec::new(), dimension, count: 0 }
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Puts a vector in the place of another, or behind the last.
    pub fn set(&mut self, place: usize, vector: &[f32]) {
        let block = self.dimension * BLOCK;
        let start = place / BLOCK * block;
        if start == self.blocks.len() {
            self.blocks.resize(start + block, 0.0);
        }
        self.count = self.count.max(place + 1);
        let rows = self.blocks[start..start + block].chunks_exact_mut(BLOCK);
        rows.zip(vector).for_each(|(row, value)| row[place % BLOCK] = *value);
    }

    /// Inner products of `vectors` `[rows, dimension]` with all of them: `[rows, count]`. The bits of a
    /// row do not depend on the others.
    pub fn products(&self, vectors: &[f32]) -> Vec<f32> {
        let rows = vectors.len() / self.dimension;
        let mut out = vec![0.0; rows * self.count];
        if !out.is_empty() {
            let Self { blocks, dimension, count } = self;
            let (dimension, count, out) = (*dimension, *count, &mut out);
            Arch::new().dispatch(Products { blocks, count, dimension, vectors, out });
        }
        out
    }
}

/// Inner products of `vectors` `[rows, dimension]` with those in `blocks`.
struct Products<'a> {
    blocks: &'a [f32],
    count: usize,
    dimension: usize,
    vectors: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        /// Rows of a tile of sums.
        const ROWS: usize = 4;
        let rows = self.vectors.len() / self.dimension;
        let end = self.count.next_multiple_of(BLOCK);
        let mut first = 0;
        while first < end {
            let wide = first + 2 * S::F32_LANES <= end;
            let mut row = 0;
            while row < rows {
                let tall = row + ROWS <= rows;
                match (tall, wide) {
                    (true, true) => self.tile::<S, ROWS, 2>(simd, row, first),
                    (true, false) => self.tile::<S, ROWS, 1>(simd, row, first),
                    (false, true) => self.tile::<S, 1, 2>(simd, row, first),
                    (false, false) => self.tile::<S, 1, 1>(simd, row, first),
                }
                row += if tall { ROWS } else { 1 };
            }
            first += if wide { 2 } else { 1 } * S::F32_LANES;
        }
    }
}

impl Products<'_> {
    /// The products of a few rows with the `WIDTH` vectors of entries from `first` on. The bits of
    /// one do not depend on the others: each is added up on its own.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const WIDTH: usize>(
        &mut self,
        simd: S,
        row: usize,
        first: usize,
    ) {
        let dimension = self.dimension;
        let rows: [&[f32]; ROWS] =
            std::array::from_fn(|at| &self.vectors[(row + at) * dimension..][..dimension]);
        let columns: [&[f32]; WIDTH] = std::array::from_fn(|at| {
            let entry = first + at * S::F32_LANES;
            &self.blocks[entry / BLOCK * dimension * BLOCK + entry % BLOCK..]
        });
        let mut sums = [[simd.splat_f32s(0.0); WIDTH]; ROWS];
        for at in 0..dimension {
            let columns: [S::f32s; WIDTH] = std::array::from_fn(|column| {
                S::as_simd_f32s(&columns[column][at * BLOCK..][..S::F32_LANES]).0[0]
            });
            for (sums, row) in sums.iter_mut().zip(rows) {
                let value = simd.splat_f32s(row[at]);
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = simd.mul_add_f32s(value, column, *sum);
                }
            }
        }
        for (at, sums) in sums.into_iter().enumerate() {
            let out = &mut self.out[(row + at) * self.count..][..self.count];
            for (column, sum) in sums.into_iter().enumerate() {
                let start = (first + column * S::F32_LANES).min(self.count);
                let end = (start + S::F32_LANES).min(self.count);
                simd.partial_store_f32s(&mut out[start..end], sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    #[test]
    fn products_are_inner_products_whose_bits_do_not_depend_on_the_other_rows() {
        const DIMENSION: usize = 7;
        let mut rng = Pcg64Mcg::seed_from_u64(4);
        let mut random = |count: usize| -> Vec<f32> {
            (0..count * DIMENSION).map(|_| rng.random_range(-1.0..1.0)).collect()
        };
        for count in [0, 1, 15, 16, 17, 40, 100] {
            let (known, rows) = (random(count), random(9));
            let mut vectors = SideBySide::new(DIMENSION);
            for (place, vector) in known.chunks_exact(DIMENSION).enumerate() {
                vectors.set(place, &[9.0; DIMENSION]);
                vectors.set(place, vector);
            }
            assert_eq!((vectors.len(), vectors.is_empty()), (count, count == 0));
            let all = vectors.products(&rows);
            for (row, vector) in rows.chunks_exact(DIMENSION).enumerate() {
                let found = &all[row * count..][..count];
                assert_eq!(vectors.products(vector), found);
                for (product, known) in found.iter().zip(known.chunks_exact(DIMENSION)) {
                    let expected: f32 = vector.iter().zip(known).map(|(a, b)| a * b).sum();
                    assert!((product - expected).abs() < 1e-5, "{product} {expected}");
                }
            }
        }
    }
}
