//! The score of the Numenta Anomaly Benchmark (Lavin & Ahmad 2015, "Evaluating Real-time Anomaly
//! Detection Algorithms: the Numenta Anomaly Benchmark").
//!
//! A detection within an anomaly window counts the more the earlier it comes, and only the best
//! one of a window counts. One outside costs the more the farther it lies behind the last window.
//! A window without a detection costs. The first rows of each series, its probation, do not
//! count. One threshold serves the whole corpus: the best one for the profile.

use std::ops::Range;

use super::{MeasureError, by_falling_score, check_finite};

/// Share of a series that is probation, at most [`PROBATION_MOST`] rows.
const PROBATION_SHARE: f64 = 0.15;
/// Most rows of probation: 15 % of 5,000, NAB's usual length of a series.
const PROBATION_MOST: usize = 750;
/// Threshold that no score in [0, 1] reaches: the detector that says nothing.
const SILENT: f64 = 1.1;

/// What hits, false alarms and misses weigh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Gain of a detection at the start of a window.
    pub hit: f64,
    /// Cost of a detection far from any window.
    pub false_alarm: f64,
    /// Cost of a window without a detection.
    pub miss: f64,
}

impl Profile {
    /// NAB's `standard`.
    pub const STANDARD: Self = Self { hit: 1.0, false_alarm: 0.11, miss: 1.0 };
    /// NAB's `reward_low_FP_rate`: false alarms cost twice.
    pub const REWARD_LOW_FP: Self = Self { hit: 1.0, false_alarm: 0.22, miss: 1.0 };
    /// NAB's `reward_low_FN_rate`: misses cost twice.
    pub const REWARD_LOW_FN: Self = Self { hit: 1.0, false_alarm: 0.11, miss: 2.0 };
}

/// Scores of one series and its anomaly windows.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    /// One score per row.
    pub scores: &'a [f64],
    /// Rows of each window, in order.
    pub windows: &'a [Range<usize>],
}

impl Series<'_> {
    /// Whether it can be measured.
    ///
    /// # Errors
    /// If a score is not finite, or a window is empty, beyond its series, or before the end of
    /// the one before it.
    pub fn check(&self) -> Result<(), MeasureError> {
        check_finite(self.scores)?;
        let rows = self.scores.len();
        let mut free_from = 0;
        for window in self.windows {
            if window.start < free_from || window.is_empty() || window.end > rows {
                return Err(MeasureError::Window { start: window.start, end: window.end, rows });
            }
            free_from = window.end;
        }
        Ok(())
    }
}

/// The best that one threshold reaches over a corpus.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Best {
    /// 0: as good as saying nothing; 100: every window found at its first row, no false alarm.
    pub score: f64,
    /// The threshold: rows that reach it are detections. 1.1 where saying nothing is best.
    pub threshold: f64,
}

/// All rows of a corpus after probation, by falling score.
#[derive(Clone, Debug)]
pub struct Corpus {
    rows: Vec<Row>,
    /// Windows of all series, those wholly within probation included.
    windows: usize,
    /// Windows with a row after probation.
    scored_windows: usize,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    score: f64,
    /// The window it lies in, numbered over the corpus.
    window: Option<usize>,
    /// Place relative to the last window that began: -1 at its first row, 0 just behind its last
    /// one; infinite before the first window.
    position: f64,
}

/// Rows at the start of a series of `rows` rows that do not count.
pub fn probation(rows: usize) -> usize {
    ((PROBATION_SHARE * rows as f64) as usize).min(PROBATION_MOST)
}

impl Corpus {
    /// Places every row of the series relative to their windows.
    ///
    /// # Errors
    /// See [`Series::check`].
    pub fn new(series: &[Series<'_>]) -> Result<Self, MeasureError> {
        let mut rows = Vec::new();
        let mut windows = 0;
        let mut scored_windows = 0;
        for one in series {
            one.check()?;
            let probation = probation(one.scores.len());
            rows.extend(place(one, windows).skip(probation));
            windows += one.windows.len();
            scored_windows += one.windows.iter().filter(|window| window.end > probation).count();
        }
        let scores: Vec<f64> = rows.iter().map(|row| row.score).collect();
        let rows = by_falling_score(&scores).into_iter().map(|row| rows[row]).collect();
        Ok(Self { rows, windows, scored_windows })
    }

    /// The best score of `profile` over all thresholds.
    ///
    /// # Errors
    /// If there is no window after probation.
    pub fn best(&self, profile: Profile) -> Result<Best, MeasureError> {
        if self.scored_windows == 0 {
            return Err(MeasureError::NoAnomaly);
        }
        let windows = self.scored_windows as f64;
        let silence = -profile.miss * windows;
        let perfection = windows * profile.hit;
        let (mut best, mut threshold) = (silence, SILENT);
        let mut best_of_window = vec![-profile.miss; self.windows];
        let mut gained = 0.0;
        for (index, row) in self.rows.iter().enumerate() {
            match row.window {
                Some(window) => {
                    let gain = profile.hit * value(row.position) / value(-1.0);
                    let improvement = (gain - best_of_window[window]).max(0.0);
                    best_of_window[window] += improvement;
                    gained += improvement;
                }
                None => gained += profile.false_alarm * value(row.position),
            }
            let is_last_of_ties =
                self.rows.get(index + 1).is_none_or(|next| next.score != row.score);
            if is_last_of_ties && silence + gained > best {
                (best, threshold) = (silence + gained, row.score);
            }
        }
        Ok(Best { score: 100.0 * (best - silence) / (perfection - silence), threshold })
    }
}

/// The rows of one series; `first_window` is the number of its first window.
fn place<'a>(series: &Series<'a>, first_window: usize) -> impl Iterator<Item = Row> + use<'a> {
    let Series { scores, windows } = *series;
    let mut begun = 0;
    scores.iter().enumerate().map(move |(row, &score)| {
        if windows.get(begun).is_some_and(|next| next.start == row) {
            begun += 1;
        }
        let Some(number) = begun.checked_sub(1) else {
            return Row { score, window: None, position: f64::INFINITY };
        };
        let window = &windows[number];
        if row < window.end {
            let position = -((window.end - row) as f64) / window.len() as f64;
            Row { score, window: Some(first_window + number), position }
        } else {
            let behind = (row + 1 - window.end) as f64;
            let position = behind / (window.len() - 1).max(1) as f64;
            Row { score, window: None, position }
        }
    })
}

/// NAB's scaled sigmoid: what a detection at `position` is worth, from 0.99 at the start of a
/// window over 0 just behind it to -1.
fn value(position: f64) -> f64 {
    if position > 3.0 { -1.0 } else { 2.0 / (1.0 + (5.0 * position).exp()) - 1.0 }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one window are meant")]
mod tests {
    use super::*;

    /// 20 rows (probation 3), one window of rows 10 to 14.
    fn best(scores: &[f64; 20], profile: Profile) -> Best {
        let windows = [10..15];
        Corpus::new(&[Series { scores, windows: &windows }]).unwrap().best(profile).unwrap()
    }

    #[test]
    fn a_hit_at_the_window_s_first_row_is_perfect() {
        let mut scores = [0.1; 20];
        scores[10] = 0.9;
        let found = best(&scores, Profile::STANDARD);
        assert!((found.score - 100.0).abs() < 1e-12);
        assert_eq!(found.threshold, 0.9);
    }

    #[test]
    fn a_later_hit_counts_less_and_a_second_hit_counts_nothing() {
        let mut scores = [0.1; 20];
        scores[14] = 0.9;
        // The last of five rows lies at -0.2: (2 / (1 + e^-1) - 1) / (2 / (1 + e^-5) - 1).
        let gain = 0.462_117_157_260_009_7 / 0.986_614_298_151_430_3;
        let late = best(&scores, Profile::STANDARD);
        assert!((late.score - 100.0 * (gain + 1.0) / 2.0).abs() < 1e-9, "{}", late.score);
        scores[13] = 0.9;
        let both = best(&scores, Profile::STANDARD);
        scores[14] = 0.1;
        let earlier = best(&scores, Profile::STANDARD);
        assert_eq!(both, earlier);
        assert!(both.score > late.score);
    }

    #[test]
    fn a_false_alarm_before_any_window_costs_its_full_weight() {
        let mut scores = [0.1; 20];
        scores[10] = 0.9;
        scores[5] = 0.95;
        assert!((best(&scores, Profile::STANDARD).score - 100.0 * (2.0 - 0.11) / 2.0).abs() < 1e-9);
        assert!(
            (best(&scores, Profile::REWARD_LOW_FP).score - 100.0 * (2.0 - 0.22) / 2.0).abs() < 1e-9
        );
        assert!(
            (best(&scores, Profile::REWARD_LOW_FN).score - 100.0 * (3.0 - 0.11) / 3.0).abs() < 1e-9
        );
    }

    #[test]
    fn a_detection_just_behind_a_window_costs_little() {
        let mut scores = [0.1; 20];
        scores[10] = 0.9;
        scores[15] = 0.95;
        // One row behind a window of five lies at 1/4.
        let cost = 0.11 * (1.0 - 2.0 / (1.0 + 1.25_f64.exp()));
        let found = best(&scores, Profile::STANDARD).score;
        assert!((found - 100.0 * (2.0 - cost) / 2.0).abs() < 1e-9, "{found}");
    }

    #[test]
    fn probation_counts_neither_for_nor_against() {
        let mut scores = [0.1; 20];
        scores[10] = 0.9;
        scores[..3].fill(1.0);
        assert!((best(&scores, Profile::STANDARD).score - 100.0).abs() < 1e-12);
        assert_eq!(probation(20), 3);
        assert_eq!(probation(4032), 604);
        assert_eq!(probation(22_695), 750);
    }

    #[test]
    fn saying_nothing_is_zero_and_never_beaten_by_noise() {
        let mut scores = [0.5; 20];
        scores[10..15].fill(0.0);
        let found = best(&scores, Profile { false_alarm: 1.0, ..Profile::STANDARD });
        assert_eq!(found, Best { score: 0.0, threshold: 1.1 });
    }

    #[test]
    fn one_threshold_serves_all_series() {
        // The second series' hit lies below the first one's false alarms.
        let mut loud = [0.6; 20];
        loud[10] = 0.9;
        let mut quiet = [0.1; 20];
        quiet[10] = 0.5;
        let windows = [10..15];
        let corpus = [
            Series { scores: &loud, windows: &windows },
            Series { scores: &quiet, windows: &windows },
        ];
        let profile = Profile { false_alarm: 1.0, ..Profile::STANDARD };
        let found = Corpus::new(&corpus).unwrap().best(profile).unwrap();
        assert!((found.score - 50.0).abs() < 1e-12);
        assert_eq!(found.threshold, 0.9);
    }

    #[test]
    fn a_window_wholly_within_probation_is_not_counted() {
        let mut scores = [0.1; 20];
        scores[10] = 0.9;
        let windows = [1..3, 10..15];
        let corpus = Corpus::new(&[Series { scores: &scores, windows: &windows }]).unwrap();
        assert!((corpus.best(Profile::STANDARD).unwrap().score - 100.0).abs() < 1e-12);
    }

    #[test]
    fn wrong_input_is_named() {
        let scores = [0.5, f64::NAN];
        let error = Corpus::new(&[Series { scores: &scores, windows: &[] }]).unwrap_err();
        assert!(matches!(error, MeasureError::NotFinite { row: 1, .. }));
        let scores = [0.5; 10];
        for windows in [[2..4, 3..5], [2..4, 8..11], [2..4, 6..6]] {
            let error = Corpus::new(&[Series { scores: &scores, windows: &windows }]).unwrap_err();
            let Range { start, end } = windows[1];
            assert_eq!(error, MeasureError::Window { start, end, rows: 10 });
        }
        let corpus = Corpus::new(&[Series { scores: &scores, windows: &[] }]).unwrap();
        assert_eq!(corpus.best(Profile::STANDARD), Err(MeasureError::NoAnomaly));
        assert_eq!(Corpus::new(&[]).unwrap().best(Profile::STANDARD), Err(MeasureError::NoAnomaly));
    }
}
