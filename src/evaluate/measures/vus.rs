//! VUS-PR, the volume under the range-aware precision-recall surface (Paparrizos et al. 2022,
//! "Volume Under the Surface: A New Accuracy Evaluation Measure for Time-Series Anomaly
//! Detection").
//!
//! Labels are ranges whose borders nobody knows exactly. Each anomaly is widened on both sides by
//! a buffer in which labels fall off as `sqrt(1 - distance / window)`; with these soft labels,
//! recall is multiplied by the share of anomalies that were met at all. The area under the curve
//! is averaged over the windows from 0 to a largest one, so that none has to be chosen well.

use std::ops::Range;

use super::{MeasureError, check_scores, ranges};

/// A largest window for series whose period is not known, in rows.
pub const WINDOW: usize = 100;

/// Thresholds of each curve: scores at evenly spaced ranks.
const THRESHOLDS: usize = 250;

/// The mean area under the range-aware precision-recall curve over the windows `0..=window`, in
/// rows; 0..1.
///
/// Takes time in proportion to rows × windows.
///
/// ```
/// use contrastream::evaluate::measures::vus::vus_pr;
///
/// let labels = [false, false, false, true, true, false, false, false];
/// let right = [0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1];
/// let late = [0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1];
/// assert!(vus_pr(&labels, &late, 4)? < vus_pr(&labels, &right, 4)?);
/// // With a buffer, being late is better than being elsewhere.
/// let elsewhere = [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1];
/// assert!(vus_pr(&labels, &elsewhere, 4)? < vus_pr(&labels, &late, 4)?);
/// # Ok::<(), contrastream::evaluate::measures::MeasureError>(())
/// ```
///
/// # Errors
/// If a score is not finite, there are not as many labels as scores, or no row is anomalous.
pub fn vus_pr(labels: &[bool], scores: &[f64], window: usize) -> Result<f64, MeasureError> {
    check_scores(labels, scores)?;
    let anomalies = ranges(labels);
    if anomalies.is_empty() {
        return Err(MeasureError::NoAnomaly);
    }
    let mut curve = Curve::new(labels, scores, &anomalies);
    let areas: f64 = (0..=window).map(|window| curve.area(window)).sum();
    Ok(areas / (window + 1) as f64)
}

/// What the curves of all windows have in common. Thresholds fall; a row's level is the first
/// threshold that its score reaches, so that sums over the rows beyond each threshold are running
/// sums over levels.
struct Curve<'a> {
    labels: &'a [bool],
    anomalies: &'a [Range<usize>],
    /// Level of each row.
    levels: Vec<usize>,
    /// Rows that reach each threshold.
    detections: [f64; THRESHOLDS],
    /// Anomalous rows that reach each threshold.
    hits: [f64; THRESHOLDS],
    /// Anomalous rows.
    anomalous: f64,
    /// Label of each row in the buffers of the present window; 0 in between.
    buffer: Vec<f64>,
}

impl<'a> Curve<'a> {
    fn new(labels: &'a [bool], scores: &[f64], anomalies: &'a [Range<usize>]) -> Self {
        let mut falling = scores.to_vec();
        falling.sort_by(|left, right| right.total_cmp(left));
        let spacing = (falling.len() - 1) as f64 / (THRESHOLDS - 1) as f64;
        let thresholds: [f64; THRESHOLDS] = std::array::from_fn(|index| {
            // The last product may be rounded down.
            let last = index == THRESHOLDS - 1;
            falling[if last { falling.len() - 1 } else { (index as f64 * spacing) as usize }]
        });
        let levels: Vec<usize> = scores
            .iter()
            .map(|score| thresholds.partition_point(|threshold| threshold > score))
            .collect();
        let mut detections = [0.0; THRESHOLDS];
        let mut hits = [0.0; THRESHOLDS];
        for (&level, &anomalous) in levels.iter().zip(labels) {
            detections[level] += 1.0;
            hits[level] += f64::from(anomalous);
        }
        accumulate(&mut detections);
        accumulate(&mut hits);
        Self {
            labels,
            anomalies,
            levels,
            detections,
            hits,
            anomalous: hits[THRESHOLDS - 1],
            buffer: vec![0.0; labels.len()],
        }
    }

    /// Area under the curve of one window.
    fn area(&mut self, window: usize) -> f64 {
        let buffered_hits = self.buffered_hits(window);
        let met_share = self.met_share(window);
        let mut area = 0.0;
        let mut recall_before = 0.0;
        for threshold in 0..THRESHOLDS {
            let hits = self.hits[threshold] + buffered_hits[threshold];
            // Soft labels count as positives where they are detected; half of that, so that
            // recall is neither too easy nor too hard.
            let positives = (self.anomalous + (self.anomalous + buffered_hits[threshold])) / 2.0;
            let recall = (hits / positives).min(1.0) * met_share[threshold];
            let precision = hits / self.detections[threshold];
            area += (recall - recall_before) * precision;
            recall_before = recall;
        }
        area
    }

    /// Sum of the soft labels of the rows in buffers that reach each threshold.
    fn buffered_hits(&mut self, window: usize) -> [f64; THRESHOLDS] {
        let mut hits = [0.0; THRESHOLDS];
        let reach = window / 2;
        let label = |distance: usize| (1.0 - distance as f64 / window as f64).sqrt();
        for anomaly in self.anomalies {
            for row in anomaly.start.saturating_sub(reach)..anomaly.start {
                self.buffer[row] += label(anomaly.start - row);
            }
            for row in anomaly.end..(anomaly.end + reach).min(self.labels.len()) {
                self.buffer[row] += label(row + 1 - anomaly.end);
            }
        }
        for range in buffered(self.anomalies, reach, self.labels.len()) {
            for row in range {
                let label = std::mem::take(&mut self.buffer[row]);
                if !self.labels[row] {
                    hits[self.levels[row]] += label.min(1.0);
                }
            }
        }
        accumulate(&mut hits);
        hits
    }

    /// Share of the buffered anomalies with a row that reaches each threshold.
    fn met_share(&self, window: usize) -> [f64; THRESHOLDS] {
        let mut met = [0.0; THRESHOLDS];
        let mut ranges = 0.0;
        for range in buffered(self.anomalies, window / 2, self.labels.len()) {
            if let Some(&level) = self.levels[range].iter().min() {
                met[level] += 1.0;
            }
            ranges += 1.0;
        }
        accumulate(&mut met);
        met.map(|met| met / ranges)
    }
}

/// Anomalies with their buffers of `reach` rows; where buffers overlap or touch, they are one.
fn buffered(
    anomalies: &[Range<usize>],
    reach: usize,
    rows: usize,
) -> impl Iterator<Item = Range<usize>> + '_ {
    let joined = anomalies.chunk_by(move |left, right| left.end + 2 * reach > right.start);
    joined.map(move |joined| {
        let (first, last) = (&joined[0], &joined[joined.len() - 1]);
        first.start.saturating_sub(reach)..(last.end + reach).min(rows)
    })
}

/// Turns counts by level into counts up to each level.
fn accumulate(counts: &mut [f64; THRESHOLDS]) {
    let mut sum = 0.0;
    for count in counts {
        sum += *count;
        *count = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform numbers in [0, 1) from a 64-bit linear congruential generator.
    fn uniform(count: usize) -> Vec<f64> {
        let mut state = 1_u64;
        let draw = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        (0..count).map(draw).collect()
    }

    /// Labels of the given ranges, and uniform scores raised by `lift` where they hold.
    fn case(rows: usize, ranges: &[Range<usize>], lift: f64) -> (Vec<bool>, Vec<f64>) {
        let labels: Vec<bool> =
            (0..rows).map(|row| ranges.iter().any(|range| range.contains(&row))).collect();
        let lifted = uniform(rows)
            .into_iter()
            .zip(&labels)
            .map(|(score, &label)| score + lift * f64::from(label));
        let scores = lifted.collect();
        (labels, scores)
    }

    // The expected numbers are those of the Python package vus 0.0.6, `get_metrics` with
    // `metric="vus"`, of the same labels and scores.

    #[test]
    fn many_rows_agree_with_the_authors_package() {
        let ranges = [300..340, 352..360, 1200..1201, 1960..2000];
        let (labels, scores) = case(2000, &ranges, 0.5);
        for (window, expected) in [
            (0, 0.6587157568291622),
            (1, 0.6587157568291622),
            (20, 0.6695051660085699),
            (100, 0.7038917584450439),
        ] {
            let found = vus_pr(&labels, &scores, window).unwrap();
            assert!((found - expected).abs() < 1e-12, "window {window}: {found}");
        }
    }

    #[test]
    fn few_rows_with_ties_and_anomalies_at_both_ends_agree_with_the_authors_package() {
        let (labels, scores) = case(120, &[0..5, 60..70, 119..120], 0.4);
        let scores: Vec<f64> = scores.iter().map(|score| (score * 8.0).floor() / 8.0).collect();
        for (window, expected) in [
            (0, 0.6053611975726746),
            (1, 0.6053611975726746),
            (20, 0.7211006424556496),
            (100, 0.8941118115388965),
        ] {
            let found = vus_pr(&labels, &scores, window).unwrap();
            assert!((found - expected).abs() < 1e-12, "window {window}: {found}");
        }
    }

    #[test]
    fn scores_that_are_the_labels_have_the_full_volume_without_a_buffer() {
        let labels = [false, true, true, false, false, true];
        let scores = labels.map(f64::from);
        assert!((vus_pr(&labels, &scores, 1).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(vus_pr(&[true], &[0.0], 3).unwrap(), 1.0);
    }

    #[test]
    fn wrong_input_is_named() {
        assert_eq!(vus_pr(&[], &[], 10), Err(MeasureError::Empty));
        assert_eq!(vus_pr(&[false; 3], &[0.0; 3], 10), Err(MeasureError::NoAnomaly));
        assert_eq!(
            vus_pr(&[true; 3], &[0.0; 2], 10),
            Err(MeasureError::Lengths { labels: 3, found: 2 })
        );
        let error = vus_pr(&[true; 2], &[0.0, f64::NEG_INFINITY], 10).unwrap_err();
        assert_eq!(error, MeasureError::NotFinite { row: 1, score: f64::NEG_INFINITY });
    }
}
