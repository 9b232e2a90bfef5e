//! Change points by NAB's rule, as the Skoltech Anomaly Benchmark has it (Katser & Kozitsin 2020).
//!
//! Behind each labelled change point lies a window of fixed length; where two overlap, the later
//! one begins where the earlier ends. The first detection within a window counts the more the
//! earlier it comes, from a hit's gain at the window's start to a false alarm's cost at its end,
//! the others within do not count. A detection outside costs, and so does a window without one. 0 is
//! the detector that says nothing, 100 a perfect one.
//!
//! To be read beside the number of false alarms: a false alarm costs little against a hit, and a
//! detection once a minute, whatever the data, reaches about 60 in windows of a minute.

use std::time::Duration;

use serde::Serialize;

use super::MeasureError;
use super::nab::Profile;

/// Where one series changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labelled {
    /// Time of each row, microseconds since the epoch, rising.
    pub instants: Vec<i64>,
    /// Rows of the change points, in order.
    pub rows: Vec<usize>,
}

/// A series' change points, and those found.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    pub labelled: &'a Labelled,
    /// Whether each row belongs to a change point found. Rows in a row are one detection.
    pub found: &'a [bool],
}

/// What was found in a corpus with windows of one length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Found {
    /// NAB's score by profile.
    pub standard: f64,
    pub reward_low_fp: f64,
    pub reward_low_fn: f64,
    /// Windows with a detection, and without.
    pub hits: usize,
    pub misses: usize,
    /// Detections outside of all windows.
    pub false_alarms: usize,
}

/// Gains of the hits, from 1 at a window's start to 0 at its end, with misses and false alarms.
#[derive(Clone, Debug, Default)]
struct Counts {
    gains: Vec<f64>,
    misses: usize,
    false_alarms: usize,
}

/// Measures a corpus with windows of length `window`.
///
/// # Errors
/// If a series has not one mark and instant per row, or there is no change point.
pub fn measure(corpus: &[Series<'_>], window: Duration) -> Result<Found, MeasureError> {
    let window = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
    let mut counts = Counts::default();
    for series in corpus {
        let (labels, found) = (series.labelled.instants.len(), series.found.len());
        if labels != found || series.labelled.rows.iter().any(|row| *row >= labels) {
            return Err(MeasureError::Lengths { labels, found });
        }
        counts.add(series, window);
    }
    if counts.gains.is_empty() && counts.misses == 0 {
        return Err(MeasureError::NoAnomaly);
    }
    Ok(Found {
        standard: counts.score(Profile::STANDARD),
        reward_low_fp: counts.score(Profile::REWARD_LOW_FP),
        reward_low_fn: counts.score(Profile::REWARD_LOW_FN),
        hits: counts.gains.len(),
        misses: counts.misses,
        false_alarms: counts.false_alarms,
    })
}

impl Counts {
    fn add(&mut self, series: &Series<'_>, window: i64) {
        let Labelled { instants, rows } = series.labelled;
        let begins = |row: &usize| series.found[*row] && (*row == 0 || !series.found[*row - 1]);
        let detections: Vec<i64> =
            (0..instants.len()).filter(begins).map(|row| instants[row]).collect();
        let mut within = vec![false; detections.len()];
        let mut free_from = i64::MIN;
        for row in rows {
            let start = instants[*row].max(free_from);
            let end = instants[*row].saturating_add(window);
            let mut first = None;
            for (detection, within) in detections.iter().zip(&mut within) {
                if (start..=end).contains(detection) {
                    *within = true;
                    first = first.or(Some(*detection));
                }
            }
            match first {
                Some(first) => {
                    self.gains.push(gain((first - start) as f64 / (end - start).max(1) as f64))
                }
                None => self.misses += 1,
            }
            free_from = end;
        }
        self.false_alarms += within.iter().filter(|within| !**within).count();
    }

    fn score(&self, profile: Profile) -> f64 {
        let Profile { hit, false_alarm, miss } = profile;
        let gains: f64 =
            self.gains.iter().map(|gain| gain * (hit + false_alarm) - false_alarm).sum();
        let costs = false_alarm * self.false_alarms as f64 + miss * self.misses as f64;
        let windows = (self.gains.len() + self.misses) as f64;
        let silent = -miss * windows;
        100.0 * (gains - costs - silent) / (hit * windows - silent)
    }
}

/// From 1 at the start of a window (`position` 0) to 0 at its end (1).
fn gain(position: f64) -> f64 {
    let steepest = std::f64::consts::FRAC_PI_2;
    let x = (2.0 * position - 1.0) * steepest;
    0.5 - 0.5 * x.tanh() / steepest.tanh()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn labelled(rows: &[usize]) -> Labelled {
        Labelled { instants: (0..200).map(|at| at * SECOND).collect(), rows: rows.to_vec() }
    }

    fn found(labels: &[usize], detections: &[usize]) -> Found {
        let mut found = vec![false; 200];
        detections.iter().for_each(|row| found[*row] = true);
        let labelled = labelled(labels);
        let series = Series { labelled: &labelled, found: &found };
        measure(&[series], Duration::from_secs(30)).unwrap()
    }

    #[test]
    fn silence_is_0_and_each_change_point_at_once_is_100() {
        let silent = found(&[50, 100], &[]);
        assert_eq!((silent.standard, silent.reward_low_fn, silent.misses), (0.0, 0.0, 2));
        let perfect = found(&[50, 100], &[50, 100]);
        for score in [perfect.standard, perfect.reward_low_fp, perfect.reward_low_fn] {
            assert!((score - 100.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_hit_loses_with_delay_and_only_the_first_of_a_window_counts() {
        // In the middle half of the way from 1 to -0.11: 0.445; (0.445 + 1) / 2.
        let late = found(&[50], &[65, 70, 80]);
        assert!((late.standard - 72.25).abs() < 1e-9, "{late:?}");
        assert_eq!((late.hits, late.misses, late.false_alarms), (1, 0, 0));
        // At the very end as good as a false alarm without a miss.
        assert!((found(&[50], &[80]).standard - 44.5).abs() < 1e-9);
        assert!((found(&[50], &[80]).reward_low_fp - 39.0).abs() < 1e-9);
    }

    #[test]
    fn detections_outside_cost_once_per_run_of_rows() {
        let noisy = found(&[50], &[10, 11, 12, 49, 50, 81]);
        // The run from 49 on begins before the window.
        assert_eq!((noisy.hits, noisy.misses, noisy.false_alarms), (0, 1, 3));
        assert!((noisy.standard + 100.0 * 0.33 / 2.0).abs() < 1e-9);
    }

    #[test]
    fn of_windows_that_overlap_the_later_is_cut() {
        // 50..=80 and 80..=90.
        let both = found(&[50, 60], &[60, 85]);
        assert_eq!((both.hits, both.false_alarms), (2, 0));
        assert_eq!((found(&[50, 60], &[60]).hits, found(&[50, 50], &[50, 80]).hits), (1, 2));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let short = labelled(&[50]);
        let series = Series { labelled: &short, found: &[false; 3] };
        let window = Duration::from_secs(30);
        let error = measure(&[series], window).unwrap_err();
        assert_eq!(error, MeasureError::Lengths { labels: 200, found: 3 });
        let none = labelled(&[]);
        let series = Series { labelled: &none, found: &[true; 200] };
        assert!(measure(&[series], window).unwrap_err().is_undefined());
    }
}
