//! Measures of anomaly scores against labels, as pure functions over slices.

pub mod change;
pub mod nab;
pub mod point;
pub mod vus;

use std::ops::Range;

/// Why a measure has no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MeasureError {
    /// Nothing to measure.
    #[error("no rows")]
    Empty,
    /// Slices that should describe the same rows do not.
    #[error("{labels} labels for {found} rows")]
    Lengths { labels: usize, found: usize },
    /// A score that has no rank.
    #[error("the score of row {row} (counted from 0) is {score}, expected a finite number")]
    NotFinite { row: usize, score: f64 },
    /// A window that is not within its series, or not after the one before it.
    #[error("window {start}..{end} (rows from 0): expected windows in order, within {rows} rows")]
    Window { start: usize, end: usize, rows: usize },
    /// The measure compares with anomalous rows, and there is none.
    #[error("no row is labelled anomalous")]
    NoAnomaly,
    /// The measure compares with normal rows, and there is none.
    #[error("no row is labelled normal")]
    NoNormal,
}

impl MeasureError {
    /// Whether the measure is not defined for these labels, rather than the input being wrong.
    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Empty | Self::NoAnomaly | Self::NoNormal)
    }
}

/// Refuses empty input, unequal lengths and scores that are not finite.
fn check_scores(labels: &[bool], scores: &[f64]) -> Result<(), MeasureError> {
    check_lengths(labels, scores.len())?;
    check_finite(scores)
}

fn check_lengths(labels: &[bool], found: usize) -> Result<(), MeasureError> {
    if labels.len() != found {
        return Err(MeasureError::Lengths { labels: labels.len(), found });
    }
    if labels.is_empty() { Err(MeasureError::Empty) } else { Ok(()) }
}

fn check_finite(scores: &[f64]) -> Result<(), MeasureError> {
    match scores.iter().enumerate().find(|(_, score)| !score.is_finite()) {
        Some((row, &score)) => Err(MeasureError::NotFinite { row, score }),
        None => Ok(()),
    }
}

/// The runs of `true`, in order.
pub fn ranges(rows: &[bool]) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut ranges = Vec::new();
    for run in rows.chunk_by(|left, right| left == right) {
        let end = start + run.len();
        if run[0] {
            ranges.push(start..end);
        }
        start = end;
    }
    ranges
}

/// Row numbers by falling score; equal scores keep their order.
fn by_falling_score(scores: &[f64]) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..scores.len()).collect();
    rows.sort_by(|&left, &right| scores[right].total_cmp(&scores[left]));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_true_are_ranges() {
        assert_eq!(ranges(&[true, true, false, true]), [0..2, 3..4]);
        assert!(ranges(&[false; 3]).is_empty());
    }
}
