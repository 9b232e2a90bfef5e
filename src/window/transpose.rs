//! Samples by time become samples by channel.

/// Rows and columns that are moved together: what they hold fits in a few registers.
const TILE: usize = 4;

/// Writes the first `columns` of `rows`, `[rows, width]`, into `into`, `[columns, length]`, the first
/// row at `first` within each column.
///
/// # Panics
/// If the rows are not whole, or do not fit.
pub fn transpose(
    rows: &[f32],
    (width, columns): (usize, usize),
    into: &mut [f32],
    length: usize,
    first: usize,
) {
    let count = rows.len() / width;
    let mut groups = into.chunks_exact_mut(TILE * length);
    for (group, four) in (&mut groups).enumerate() {
        let (columns_01, columns_23) = four.split_at_mut(2 * length);
        let ((column_0, column_1), (column_2, column_3)) =
            (columns_01.split_at_mut(length), columns_23.split_at_mut(length));
        let [out_0, out_1, out_2, out_3] = [column_0, column_1, column_2, column_3]
            .map(|column| column[first..first + count].as_chunks_mut::<TILE>());
        let outs = out_0.0.iter_mut().zip(out_1.0).zip(out_2.0).zip(out_3.0);
        let left = TILE * group;
        let mut tiles = rows.chunks_exact(TILE * width);
        for (tile, (((out_0, out_1), out_2), out_3)) in (&mut tiles).zip(outs) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|row| {
                let start = row * width + left;
                <[f32; TILE]>::try_from(&tile[start..start + TILE]).unwrap_or_default()
            });
            *out_0 = [a[0], b[0], c[0], d[0]];
            *out_1 = [a[1], b[1], c[1], d[1]];
            *out_2 = [a[2], b[2], c[2], d[2]];
            *out_3 = [a[3], b[3], c[3], d[3]];
        }
        for (at, row) in tiles.remainder().chunks_exact(width).enumerate() {
            out_0.1[at] = row[left];
            out_1.1[at] = row[left + 1];
            out_2.1[at] = row[left + 2];
            out_3.1[at] = row[left + 3];
        }
    }
    let left = columns - columns % TILE;
    for (at, column) in groups.into_remainder().chunks_exact_mut(length).enumerate() {
        let values = rows.iter().skip(left + at).step_by(width);
        column[first..first + count].iter_mut().zip(values).for_each(|(out, value)| *out = *value);
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
                    let width = columns + first;
                    let rows: Vec<f32> = (1..=width * count).map(|value| value as f32).collect();
                    let mut into = vec![0.0; columns * length];
                    transpose(&rows, (width, columns), &mut into, length, first);
                    let expected: Vec<f32> = (0..columns * length)
                        .map(|place| (place / length, place % length))
                        .map(|(column, at)| match at.checked_sub(first) {
                            Some(row) if row < count => rows[row * width + column],
                            _ => 0.0,
                        })
                        .collect();
                    assert_eq!(into, expected, "{columns} columns, {count} rows at {first}");
                }
            }
        }
    }
}
