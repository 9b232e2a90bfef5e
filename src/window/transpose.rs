//! Samples by time become samples by channel.

/// Rows and columns that are moved together: what they hold fits in a few registers.
const TILE: usize = 4;

/// Writes `rows`, `[rows, columns]`, into `into`, `[columns, length]`, the first row at `first`
/// within each column.
///
/// # Panics
/// If the rows are not whole, or do not fit.
pub(super) fn transpose(
    rows: &[f32],
    columns: usize,
    into: &mut [f32],
    length: usize,
    first: usize,
) {
    let mut tiles = rows.chunks_exact(TILE * columns);
    let mut at = first;
    for tile in &mut tiles {
        let (rows_01, rows_23) = tile.split_at(2 * columns);
        let ((row_0, row_1), (row_2, row_3)) =
            (rows_01.split_at(columns), rows_23.split_at(columns));
        let [four_0, four_1, four_2, four_3] =
            [row_0, row_1, row_2, row_3].map(|row| row.as_chunks::<TILE>());
        let fours = four_0.0.iter().zip(four_1.0).zip(four_2.0).zip(four_3.0);
        for (group, (((a, b), c), d)) in fours.enumerate() {
            for column in 0..TILE {
                let place = (TILE * group + column) * length + at;
                let values = [a[column], b[column], c[column], d[column]];
                into[place..place + TILE].copy_from_slice(&values);
            }
        }
        let done = columns - columns % TILE;
        let rest = four_0.1.iter().zip(four_1.1).zip(four_2.1).zip(four_3.1);
        for (column, (((a, b), c), d)) in (done..).zip(rest) {
            let place = column * length + at;
            into[place..place + TILE].copy_from_slice(&[*a, *b, *c, *d]);
        }
        at += TILE;
    }
    for row in tiles.remainder().chunks_exact(columns) {
        for (column, value) in row.iter().enumerate() {
            into[column * length + at] = *value;
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_any_shape_finds_its_place() {
        for columns in 1..11 {
            for count in 0..11 {
                for first in 0..3 {
                    let length = first + count + 1;
                    let rows: Vec<f32> = (1..=columns * count).map(|value| value as f32).collect();
                    let mut into = vec![0.0; columns * length];
                    transpose(&rows, columns, &mut into, length, first);
                    let expected: Vec<f32> = (0..columns * length)
                        .map(|place| (place / length, place % length))
                        .map(|(column, at)| match at.checked_sub(first) {
                            Some(row) if row < count => rows[row * columns + column],
                            _ => 0.0,
                        })
                        .collect();
                    assert_eq!(into, expected, "{columns} columns, {count} rows at {first}");
                }
            }
        }
    }
}
