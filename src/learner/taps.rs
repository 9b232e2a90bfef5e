//! The arithmetic of dilated convolutions with three taps, straight from and into rows of moments.
//!
//! Matrix products of a width of a few dozen spend as long on rearranging their factors as on
//! multiplying them. Here a tile of sums stays in registers over all three taps; weights are used
//! where they lie. Segment by segment, so that rows are in the nearest cache when they are needed
//! again. A row's bits do not depend on how many segments there are.

use pulp::{Arch, Simd, WithSimd};

use super::layers::Moments;

/// Number of taps: earlier, present, later.
pub const TAPS: usize = 3;

/// Rows of a tile where registers are many (AVX-512), and where they are few.
const TALL: usize = 8;
const SHORT: usize = 4;

/// What a convolution begins from.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// `[columns]`, the same for each row.
    Bias(&'a [f32]),
    /// What is there already.
    Output,
}

/// `out[t] = start + x[t - d] W0 + x[t] W1 + x[t + d] W2`.
pub struct Convolve<'a> {
    /// `[moments, inputs]`, rows between segments zero.
    pub input: &'a [f32],
    /// Each `[inputs, columns]`.
    pub weights: [&'a [f32]; TAPS],
    pub start: Start<'a>,
    /// Features of a row of `input`.
    pub inputs: usize,
    /// Features of a row of the output.
    pub columns: usize,
    /// Steps from one tap to the next.
    pub dilation: usize,
    /// Whether the input's row is added too; it is as wide as the output's then.
    pub residual: bool,
    /// Whether what is below 0 becomes 0.
    pub relu: bool,
    pub moments: Moments,
}

impl Convolve<'_> {
    /// Writes the segments' rows of `out` `[moments, columns]`; those between segments stay.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn run(&self, out: &mut [f32]) {
        let rows = self.moments.rows();
        assert!(self.moments.pad >= self.dilation, "the pad is narrower than the dilation");
        assert_eq!(self.input.len(), rows * self.inputs, "the input has another shape");
        assert_eq!(out.len(), rows * self.columns, "the output has another shape");
        assert!(!self.residual || self.inputs == self.columns, "a residual keeps its width");
        for weights in self.weights {
            assert_eq!(weights.len(), self.inputs * self.columns, "a tap of another shape");
        }
        Arch::new().dispatch(Forward { of: self, out });
    }
}

struct Forward<'a, 'o> {
    of: &'a Convolve<'a>,
    out: &'o mut [f32],
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let moments = self.of.moments;
        for segment in 0..moments.segments {
            let first = moments.row(segment);
            let mut column = 0;
            while let Some((tile, width)) = tile::<S>(self.of.columns, column) {
                match tile {
                    Tile::Two if S::F32_LANES >= 16 => {
                        self.rows::<S, TALL, 2, false>(simd, first, column);
                    }
                    Tile::Two => self.rows::<S, SHORT, 2, false>(simd, first, column),
                    Tile::One => self.rows::<S, TALL, 1, false>(simd, first, column),
                    Tile::Part => self.rows::<S, TALL, 1, true>(simd, first, column),
                }
                column += width;
            }
        }
    }
}

impl Forward<'_, '_> {
    /// All rows of the segment from row `first` on, for the tile's columns.
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize, const WIDTH: usize, const PART: bool>(
        &mut self,
        simd: S,
        first: usize,
        column: usize,
    ) {
        let end = first + self.of.moments.time;
        let mut row = first;
        while row + ROWS <= end {
            self.tile::<S, ROWS, WIDTH, PART>(simd, row, column);
            row += ROWS;
        }
        while row < end {
            self.tile::<S, 1, WIDTH, PART>(simd, row, column);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const WIDTH: usize, const PART: bool>(
        &mut self,
        simd: S,
        row: usize,
        column: usize,
    ) {
        let Convolve { input, weights, inputs, columns, dilation, .. } = *self.of;
        let width = if PART { columns - column } else { WIDTH * S::F32_LANES };
        let mut sums = match self.of.start {
            Start::Bias(bias) => [load::<S, WIDTH, PART>(simd, &bias[column..][..width]); ROWS],
            Start::Output => std::array::from_fn(|at| {
                load::<S, WIDTH, PART>(simd, &self.out[(row + at) * columns + column..][..width])
            }),
        };
        for (tap, weights) in weights.iter().enumerate() {
            let shifted = row + tap * dilation - dilation;
            let rows: [&[f32]; ROWS] =
                std::array::from_fn(|at| &input[(shifted + at) * inputs..][..inputs]);
            for feature in 0..inputs {
                let weights =
                    load::<S, WIDTH, PART>(simd, &weights[feature * columns + column..][..width]);
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let value = simd.splat_f32s(row[feature]);
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum = simd.mul_add_e_f32s(value, weight, *sum);
                    }
                }
            }
        }
        for (at, mut sums) in sums.into_iter().enumerate() {
            let place = (row + at) * columns + column;
            if self.of.residual {
                let skipped = load::<S, WIDTH, PART>(simd, &input[place..][..width]);
                for (sum, skipped) in sums.iter_mut().zip(skipped) {
                    *sum = simd.add_f32s(*sum, skipped);
                }
            }
            if self.of.relu {
                sums = sums.map(|sum| simd.max_f32s(sum, simd.splat_f32s(0.0)));
            }
            store::<S, WIDTH, PART>(simd, &mut self.out[place..][..width], sums);
        }
    }
}

/// Adds to each of `gradients` `[inputs, columns]` what the rows of `gradient` `[moments, columns]`
/// say of its tap of a convolution of `input` `[moments, inputs]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn weight_gradients(
    gradients: [&mut [f32]; TAPS],
    input: &[f32],
    gradient: &[f32],
    dilation: usize,
    moments: Moments,
) {
    let rows = moments.rows();
    let (inputs, columns) = (input.len() / rows, gradient.len() / rows);
    assert!(moments.pad >= dilation, "the pad is narrower than the dilation");
    assert_eq!(input.len(), rows * inputs, "the input has another shape");
    assert_eq!(gradient.len(), rows * columns, "the gradient has another shape");
    for gradient in &gradients {
        assert_eq!(gradient.len(), inputs * columns, "a tap of another shape");
    }
    let of_weights =
        OfWeights { out: gradients, input, gradient, inputs, columns, dilation, moments };
    Arch::new().dispatch(of_weights);
}

struct OfWeights<'a> {
    out: [&'a mut [f32]; TAPS],
    input: &'a [f32],
    gradient: &'a [f32],
    inputs: usize,
    columns: usize,
    dilation: usize,
    moments: Moments,
}

impl WithSimd for OfWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for segment in 0..self.moments.segments {
            let first = self.moments.row(segment);
            let mut column = 0;
            while let Some((tile, width)) = tile::<S>(self.columns, column) {
                match tile {
                    Tile::Two if S::F32_LANES >= 16 => {
                        self.features::<S, TALL, 2, false>(simd, first, column);
                    }
                    Tile::Two => self.features::<S, SHORT, 2, false>(simd, first, column),
                    Tile::One => self.features::<S, TALL, 1, false>(simd, first, column),
                    Tile::Part => self.features::<S, TALL, 1, true>(simd, first, column),
                }
                column += width;
            }
        }
    }
}

impl OfWeights<'_> {
    #[inline(always)]
    fn features<S: Simd, const ROWS: usize, const WIDTH: usize, const PART: bool>(
        &mut self,
        simd: S,
        first: usize,
        column: usize,
    ) {
        for tap in 0..TAPS {
            let mut feature = 0;
            while feature + ROWS <= self.inputs {
                self.tile::<S, ROWS, WIDTH, PART>(simd, first, tap, feature, column);
                feature += ROWS;
            }
            while feature < self.inputs {
                self.tile::<S, 1, WIDTH, PART>(simd, first, tap, feature, column);
                feature += 1;
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const WIDTH: usize, const PART: bool>(
        &mut self,
        simd: S,
        first: usize,
        tap: usize,
        feature: usize,
        column: usize,
    ) {
        let (inputs, columns, time) = (self.inputs, self.columns, self.moments.time);
        let width = if PART { columns - column } else { WIDTH * S::F32_LANES };
        let shifted = first + tap * self.dilation - self.dilation;
        let rows = self.input[shifted * inputs..][..time * inputs].chunks_exact(inputs);
        let gradients = self.gradient[first * columns..][..time * columns].chunks_exact(columns);
        let mut sums = [[simd.splat_f32s(0.0); WIDTH]; ROWS];
        for (row, gradient) in rows.zip(gradients) {
            let gradient = load::<S, WIDTH, PART>(simd, &gradient[column..][..width]);
            let row = &row[feature..][..ROWS];
            for (sums, value) in sums.iter_mut().zip(row) {
                let value = simd.splat_f32s(*value);
                for (sum, gradient) in sums.iter_mut().zip(gradient) {
                    *sum = simd.mul_add_e_f32s(value, gradient, *sum);
                }
            }
        }
        for (at, sums) in sums.into_iter().enumerate() {
            let out = &mut self.out[tap][(feature + at) * columns + column..][..width];
            let known = load::<S, WIDTH, PART>(simd, out);
            let sums = std::array::from_fn(|at| simd.add_f32s(known[at], sums[at]));
            store::<S, WIDTH, PART>(simd, out, sums);
        }
    }
}

/// How wide a tile is, in vectors.
enum Tile {
    Two,
    One,
    /// Less than one: the last columns.
    Part,
}

/// The kind and width of the tile that begins at `column` of `columns`.
#[inline(always)]
fn tile<S: Simd>(columns: usize, column: usize) -> Option<(Tile, usize)> {
    match columns - column {
        0 => None,
        left if left >= 2 * S::F32_LANES => Some((Tile::Two, 2 * S::F32_LANES)),
        left if left >= S::F32_LANES => Some((Tile::One, S::F32_LANES)),
        left => Some((Tile::Part, left)),
    }
}

#[inline(always)]
fn load<S: Simd, const WIDTH: usize, const PART: bool>(
    simd: S,
    values: &[f32],
) -> [S::f32s; WIDTH] {
    if PART {
        [simd.partial_load_f32s(values); WIDTH]
    } else {
        let vectors = S::as_simd_f32s(values).0;
        std::array::from_fn(|at| vectors[at])
    }
}

#[inline(always)]
fn store<S: Simd, const WIDTH: usize, const PART: bool>(
    simd: S,
    out: &mut [f32],
    vectors: [S::f32s; WIDTH],
) {
    if PART {
        simd.partial_store_f32s(out, vectors[0]);
    } else {
        S::as_mut_simd_f32s(out).0.copy_from_slice(&vectors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    const MOMENTS: Moments = Moments { segments: 3, time: 13, pad: 4 };

    fn random(rng: &mut Pcg64Mcg, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// Rows of segments random, those between them zero.
    fn padded(rng: &mut Pcg64Mcg, columns: usize) -> Vec<f32> {
        let mut values = vec![0.0; MOMENTS.rows() * columns];
        for segment in 0..MOMENTS.segments {
            let first = MOMENTS.row(segment) * columns;
            let random = random(rng, MOMENTS.time * columns);
            values[first..first + random.len()].copy_from_slice(&random);
        }
        values
    }

    /// Calls `visit(row, row of the input, tap)` for each of the segments' rows.
    fn for_rows(dilation: usize, mut visit: impl FnMut(usize, usize, usize)) {
        for segment in 0..MOMENTS.segments {
            for row in (0..MOMENTS.time).map(|time| MOMENTS.row(segment) + time) {
                (0..TAPS).for_each(|tap| visit(row, row + tap * dilation - dilation, tap));
            }
        }
    }

    #[test]
    fn convolutions_of_every_width_agree_with_plain_loops() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        for (inputs, columns, dilation) in [(3, 1, 1), (9, 16, 2), (40, 40, 4), (5, 61, 3)] {
            let input = padded(&mut rng, inputs);
            let weights: [Vec<f32>; TAPS] =
                std::array::from_fn(|_| random(&mut rng, inputs * columns));
            let bias = random(&mut rng, columns);
            let start = padded(&mut rng, columns);
            for (from_bias, relu) in [(true, true), (false, false)] {
                let residual = inputs == columns;
                let convolve = Convolve {
                    input: &input,
                    weights: weights.each_ref().map(Vec::as_slice),
                    start: if from_bias { Start::Bias(&bias) } else { Start::Output },
                    inputs,
                    columns,
                    dilation,
                    residual,
                    relu,
                    moments: MOMENTS,
                };
                let mut out = start.clone();
                convolve.run(&mut out);
                let mut expected = start.clone();
                for_rows(dilation, |row, shifted, tap| {
                    for column in 0..columns {
                        let sum = &mut expected[row * columns + column];
                        if tap == 0 && from_bias {
                            *sum = bias[column];
                        }
                        if tap == 0 && residual {
                            *sum += input[row * columns + column];
                        }
                        for feature in 0..inputs {
                            *sum += input[shifted * inputs + feature]
                                * weights[tap][feature * columns + column];
                        }
                        if tap == TAPS - 1 && relu {
                            *sum = sum.max(0.0);
                        }
                    }
                });
                for (found, expected) in out.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-4, "{inputs} to {columns}");
                }
            }
        }
    }

    #[test]
    fn gradients_of_weights_of_every_width_agree_with_plain_loops() {
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        for (inputs, columns, dilation) in [(3, 1, 1), (9, 16, 2), (40, 40, 4), (5, 61, 3)] {
            let (input, gradient) = (padded(&mut rng, inputs), padded(&mut rng, columns));
            let mut found: [Vec<f32>; TAPS] = std::array::from_fn(|_| vec![1.0; inputs * columns]);
            let each = found.each_mut().map(Vec::as_mut_slice);
            weight_gradients(each, &input, &gradient, dilation, MOMENTS);
            let mut expected: [Vec<f32>; TAPS] = found.each_ref().map(|tap| vec![1.0; tap.len()]);
            for_rows(dilation, |row, shifted, tap| {
                for feature in 0..inputs {
                    for column in 0..columns {
                        expected[tap][feature * columns + column] +=
                            input[shifted * inputs + feature] * gradient[row * columns + column];
                    }
                }
            });
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() < 1e-3, "{inputs} to {columns}");
            }
        }
    }
}
