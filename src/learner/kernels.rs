//! The arithmetic under the layers, over flat slices.

use gemm::Parallelism;

/// A row-major matrix, or the transpose of one, borrowed from a slice.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `values` as `[rows, columns]`.
    ///
    /// # Panics
    /// If their number is not `rows * columns`.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "not a {rows} x {columns} matrix");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The values as they lie in memory.
    pub fn values(self) -> &'a [f32] {
        self.values
    }

    /// The transpose, without moving a value.
    pub fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `out = a * b`, or `out += a * b` where `accumulate`; `out` is `[a.rows, b.columns]`.
///
/// One thread does it: series and stages run side by side, and the result must not depend on
/// how many cores there are. Nor does a row of the output depend on how many rows `a` has, where
/// `a` is not a transpose: what a segment gives must not depend on those that came with it.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply(out: &mut [f32], accumulate: bool, a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!(a.columns, b.rows, "inner dimensions differ");
    assert_eq!(out.len(), a.rows * b.columns, "the output has another shape");
    if out.is_empty() {
        return;
    }
    if a.columns == 0 {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    let rows = least_rows(b);
    if a.rows < rows && a.column_stride == 1 {
        let mut padded = a.values.to_vec();
        padded.resize(rows * a.columns, 0.0);
        let mut product = out.to_vec();
        product.resize(rows * b.columns, 0.0);
        multiply(&mut product, accumulate, Matrix::new(&padded, rows, a.columns), b);
        out.copy_from_slice(&product[..out.len()]);
        return;
    }
    // SAFETY: gemm reads lhs[i * rs + j * cs] for i < m, j < k and rhs[i * rs + j * cs] for i < k,
    // j < n. `Matrix::new` checked that the slice holds rows * columns values with strides
    // (columns, 1), and `transposed` swaps extents and strides together, so the largest index is
    // rows * columns - 1 in both cases. dst is m * n values with strides (n, 1), checked above,
    // and as a unique borrow overlaps neither input.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            accumulate,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Fewer rows than this are multiplied by other kernels of gemm, which add up in another order:
/// those for one row, and for up to 256 values of output where both factors lie along the inner
/// dimension.
fn least_rows(b: Matrix<'_>) -> usize {
    const SMALL: usize = 256;
    if b.column_stride == 1 && b.columns > 1 { 2 } else { (SMALL / b.columns + 1).max(2) }
}

/// Defines a function whose plain loops are compiled for the widest vector instructions there are,
/// of which the processor's are chosen when it is called. A closure will not do: one that the
/// compiler does not inline is compiled for the least of processors.
macro_rules! vectorised {
    (@output) => { () };
    (@output $out:ty) => { $out };
    (
        $(#[$meta:meta])*
        $visibility:vis fn $name:ident $(<$($life:lifetime),+>)?
        ($($argument:ident: $kind:ty),* $(,)?) $(-> $out:ty)? $body:block
    ) => {
        $(#[$meta])*
        $visibility fn $name $(<$($life),+>)? ($($argument: $kind),*) $(-> $out)? {
            struct Call $(<$($life),+>)? {
                $($argument: $kind),*
            }
            impl $(<$($life),+>)? pulp::WithSimd for Call $(<$($life),+>)? {
                type Output = vectorised!(@output $($out)?);
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
                    let Self { $($argument),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Call { $($argument),* })
        }
    };
}

pub(super) use vectorised;

/// Sum of `values` in 64 lanes, several vectors' worth, so that one addition need not wait for the
/// last: vectorisable, and the same on every run.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 64];
    let (chunks, rest) = values.as_chunks::<64>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    let mut halves = lanes.len() / 2;
    while halves > 0 {
        let (low, high) = lanes.split_at_mut(halves);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        halves /= 2;
    }
    lanes[0]
}

/// Inner product of two slices of one length, in sixteen lanes.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// `e^x` to within 2 units in the last place for `x` in [-87, 88]; below it is nearly 0, above it
/// saturates. `f32::exp` is a call per value; this is a dozen vector instructions.
///
/// `x = n ln 2 + r` with `n` an integer, so `e^x = 2^n e^r`; `ln 2` in two parts keeps `r` exact
/// (Cody & Waite 1980), and a polynomial of degree 6 is enough on `|r| <= ln 2 / 2`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which the last bits of the sum
    // hold: `as i32` would look for what no integer holds, too.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    // Fused where processors have it, of which all are that have wide vectors.
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut polynomial: f32 = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        polynomial = polynomial.mul_add(r, coefficient);
    }
    polynomial * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

vectorised! {
    /// Adds `values` to `out`.
    pub fn add<'a>(values: &'a [f32], out: &'a mut [f32]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out += value;
        }
    }
}

vectorised! {
    /// Multiplies all of `values` by a number.
    pub fn scale<'a>(values: &'a mut [f32], by: f32) {
        for value in values {
            *value *= by;
        }
    }
}

vectorised! {
    /// What is below 0 becomes 0.
    pub fn relu<'a>(values: &'a mut [f32]) {
        for value in values {
            *value = value.max(0.0);
        }
    }
}

vectorised! {
    /// Leaves of `gradient` what a ReLU that gave `output` let through.
    pub fn gate<'a>(output: &'a [f32], gradient: &'a mut [f32]) {
        for (gradient, output) in gradient.iter_mut().zip(output) {
            *gradient = if *output > 0.0 { *gradient } else { 0.0 };
        }
    }
}

vectorised! {
    /// Adds the column sums of `values` to `out`, one per column.
    pub fn add_columns<'a>(values: &'a [f32], out: &'a mut [f32]) {
        for row in values.chunks_exact(out.len()) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += value;
            }
        }
    }
}

vectorised! {
    /// Sum of the squares of `values`.
    pub fn squares<'a>(values: &'a [f32]) -> f32 {
        dot(values, values)
    }
}

vectorised! {
    /// Scales each row of `[rows, columns]` to unit length; returns the lengths. A row of zeros
    /// stays.
    pub fn normalise_rows<'a>(values: &'a mut [f32], columns: usize) -> Vec<f32> {
        let mut lengths = Vec::with_capacity(values.len() / columns);
        for row in values.chunks_exact_mut(columns) {
            let length = dot(row, row).sqrt().max(f32::MIN_POSITIVE);
            for value in row {
                *value /= length;
            }
            lengths.push(length);
        }
        lengths
    }
}

vectorised! {
    /// Turns the gradient with respect to `units`, rows of unit length, into that with respect to
    /// rows of `lengths`: only the part across a row turns it.
    pub fn normalise_gradient<'a>(
        units: &'a [f32],
        lengths: &'a [f32],
        columns: usize,
        gradient: &'a mut [f32],
    ) {
        let rows = units.chunks_exact(columns).zip(gradient.chunks_exact_mut(columns));
        for ((unit, gradient), length) in rows.zip(lengths) {
            let along = dot(unit, gradient);
            for (gradient, unit) in gradient.iter_mut().zip(unit) {
                *gradient = (*gradient - along * unit) / length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    fn random(rng: &mut Pcg64Mcg, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn multiply_agrees_with_three_loops_for_every_transposition() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let (m, k, n) = (7, 19, 33);
        let (a, b, start) =
            (random(&mut rng, m * k), random(&mut rng, k * n), random(&mut rng, m * n));
        for (a_transposed, b_transposed) in [(false, false), (true, false), (false, true)] {
            let a_matrix = match a_transposed {
                true => Matrix::new(&a, k, m).transposed(),
                false => Matrix::new(&a, m, k),
            };
            let b_matrix = match b_transposed {
                true => Matrix::new(&b, n, k).transposed(),
                false => Matrix::new(&b, k, n),
            };
            let mut out = start.clone();
            multiply(&mut out, true, a_matrix, b_matrix);
            for i in 0..m {
                for j in 0..n {
                    let mut expected = start[i * n + j];
                    for l in 0..k {
                        let left = if a_transposed { a[l * m + i] } else { a[i * k + l] };
                        let right = if b_transposed { b[j * k + l] } else { b[l * n + j] };
                        expected += left * right;
                    }
                    assert!((out[i * n + j] - expected).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn the_bits_of_a_row_do_not_depend_on_how_many_rows_there_are() {
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        for (k, n) in [(1, 1), (8, 8), (10, 32), (16, 1), (64, 3), (64, 64), (64, 1024), (640, 256)]
        {
            let most = if n < 1024 { 2600 } else { 300 };
            let (a, b) = (random(&mut rng, most * k), random(&mut rng, n * k));
            let start = random(&mut rng, most * n);
            for (transposed, accumulate) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let b = match transposed {
                    true => Matrix::new(&b, n, k).transposed(),
                    false => Matrix::new(&b, k, n),
                };
                let product = |rows: usize| -> Vec<u32> {
                    let mut out = start[..rows * n].to_vec();
                    multiply(&mut out, accumulate, Matrix::new(&a[..rows * k], rows, k), b);
                    out.iter().map(|value| value.to_bits()).collect()
                };
                let whole = product(most);
                for rows in [1, 2, 3, 4, 5, 8, 15, 16, 31, 32, 33, 63, 64, 100, 255, 256, 257] {
                    assert!(product(rows) == whole[..rows * n], "{rows} of [{most}, {k}] by {n}");
                }
            }
        }
    }

    #[test]
    fn multiply_by_nothing_is_zero() {
        let mut out = [3.0; 4];
        multiply(&mut out, false, Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 2));
        assert_eq!(out, [0.0; 4]);
    }

    #[test]
    fn exp_is_close_to_the_library_function_over_its_range() {
        for step in 0..=17_500 {
            let x = -87.0 + step as f32 * 0.01;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours - exact).abs() <= 3e-7 * exact, "exp({x}) = {ours}, not {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1000.0) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn sums_count_every_value_once() {
        let values: Vec<f32> = (0..37).map(|value| value as f32).collect();
        assert_eq!(sum(&values), 666.0);
        assert_eq!(dot(&values, &[2.0; 37]), 1332.0);
    }

    #[test]
    fn normalised_rows_have_unit_length_and_zeros_stay() {
        let mut rows = vec![3.0, 4.0, 0.0, 0.0];
        let lengths = normalise_rows(&mut rows, 2);
        assert_eq!(rows, [0.6, 0.8, 0.0, 0.0]);
        assert_eq!(lengths[0], 5.0);
    }
}
