//! Every row, by blocks of a matrix product.

use std::thread;

use super::{Neighbour, keep_nearest};
use crate::learner::{self, Matrix, multiply};

/// Rows of a block: with the products for a few queries it stays in a core's cache.
const BLOCK: usize = 1_024;

/// The `most` rows nearest to each of `queries` by cosine, the nearest first.
///
/// `values` is `[rows, width]` and `queries` `[queries, width]`, both of unit length.
/// `may_be(query, row)` says which rows count. Rows with values that are no numbers are near to
/// nothing. The cores share the rows; the result does not depend on how many there are.
///
/// ```
/// use contrastream::similar::nearest;
/// let values = [1.0, 0.0, 0.6, 0.8, 0.0, 1.0];
/// let found = nearest(&values, 2, &[0.0, 1.0], 2, |_, row| row != 2);
/// assert_eq!(found[0].iter().map(|near| near.row).collect::<Vec<_>>(), [1, 0]);
/// ```
///
/// # Panics
/// If `values` or `queries` are no whole number of rows.
pub fn nearest(
    values: &[f32],
    width: usize,
    queries: &[f32],
    most: usize,
    may_be: impl Fn(usize, usize) -> bool + Sync,
) -> Vec<Vec<Neighbour>> {
    if width == 0 || most == 0 {
        return vec![Vec::new(); queries.len() / width.max(1)];
    }
    let rows = values.len() / width;
    let count = queries.len() / width;
    let cores = learner::cores();
    let share = rows.div_ceil(cores).next_multiple_of(BLOCK);
    let parts = thread::scope(|scope| {
        let parts = values.chunks(share.max(BLOCK) * width).enumerate().map(|(part, values)| {
            let may_be = &may_be;
            scope.spawn(move || {
                let first = part * share.max(BLOCK);
                of_part(values, width, queries, most, |query, row| may_be(query, first + row))
            })
        });
        let parts: Vec<_> = parts.collect();
        let joined = parts.into_iter().map(|part| match part.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Vec<_>>()
    });
    let mut best = vec![Vec::new(); count];
    for (part, found) in parts.into_iter().enumerate() {
        for (best, found) in best.iter_mut().zip(found) {
            for Neighbour { row, cosine } in found {
                let row = row + part * share.max(BLOCK);
                keep_nearest(best, Neighbour { row, cosine }, most);
            }
        }
    }
    best
}

fn of_part(
    values: &[f32],
    width: usize,
    queries: &[f32],
    most: usize,
    may_be: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<Neighbour>> {
    let count = queries.len() / width;
    let mut best = vec![Vec::with_capacity(most + 1); count];
    let mut products = vec![0.0; BLOCK * count];
    let queries = Matrix::new(queries, count, width);
    for (block, values) in values.chunks(BLOCK * width).enumerate() {
        let rows = values.len() / width;
        let products = &mut products[..rows * count];
        multiply(products, false, queries, Matrix::new(values, rows, width).transposed());
        for (query, (best, products)) in best.iter_mut().zip(products.chunks(rows)).enumerate() {
            for (row, &cosine) in products.iter().enumerate() {
                let beats = best.len() < most
                    || best.last().is_none_or(|last: &Neighbour| cosine > last.cosine);
                let row = block * BLOCK + row;
                if beats && cosine.is_finite() && may_be(query, row) {
                    keep_nearest(best, Neighbour { row, cosine }, most);
                }
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    const WIDTH: usize = 8;

    fn unit_rows(rows: usize, seed: u64) -> Vec<f32> {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut values: Vec<f32> = (0..rows * WIDTH).map(|_| rng.random_range(-1.0..1.0)).collect();
        for row in values.chunks_mut(WIDTH) {
            let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
            row.iter_mut().for_each(|value| *value /= length);
        }
        values
    }

    #[test]
    fn the_nearest_rows_are_those_of_a_full_sort() {
        for rows in [0, 1, 9, BLOCK, 3 * BLOCK + 17] {
            let values = unit_rows(rows, 1);
            let queries = unit_rows(3, 2);
            let allowed = |query: usize, row: usize| !(query + row).is_multiple_of(5);
            let found = nearest(&values, WIDTH, &queries, 10, allowed);
            for (query, found) in found.iter().enumerate() {
                let cosine = |row: usize| -> f32 {
                    let (one, other) = (&values[row * WIDTH..], &queries[query * WIDTH..]);
                    one[..WIDTH].iter().zip(other).map(|(one, other)| one * other).sum()
                };
                let mut expected: Vec<usize> =
                    (0..rows).filter(|row| allowed(query, *row)).collect();
                expected.sort_by(|one, other| cosine(*other).total_cmp(&cosine(*one)));
                expected.truncate(10);
                let rows: Vec<usize> = found.iter().map(|near| near.row).collect();
                assert_eq!(rows, expected);
                assert!(found.iter().all(|near| (near.cosine - cosine(near.row)).abs() < 1e-5));
            }
        }
    }

    #[test]
    fn of_equals_the_earlier_row_comes_first_and_what_is_no_number_never() {
        let mut values: Vec<f32> = [1.0, 0.0].repeat(3 * BLOCK);
        values[2] = f32::NAN;
        let found = nearest(&values, 2, &[1.0, 0.0], 3, |_, _| true);
        assert_eq!(found[0].iter().map(|near| near.row).collect::<Vec<_>>(), [0, 2, 3]);
    }
}
