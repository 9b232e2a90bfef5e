//! The measures of a corpus, as `evaluate` prints them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use super::EvaluateError;
use super::measures::point::{Confusion, average_precision, roc_auc};
use super::measures::vus::{WINDOW, vus_pr};
use super::measures::{MeasureError, change, nab};

/// Scores of one series beside its labels.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// Named in errors.
    pub name: &'a str,
    /// One score per row.
    pub scores: &'a [f64],
    /// Whether each row is an alert.
    pub alerts: &'a [bool],
    /// Whether each row is a change point that was found.
    pub turns: &'a [bool],
    /// Number of each row's key.
    pub keys: &'a [usize],
    /// Whether each row is anomalous, where that is known.
    pub labels: Option<&'a [bool]>,
    /// Rows of each labelled window, where windows are what is labelled.
    pub windows: Option<&'a [Range<usize>]>,
    /// Where it changes, where that is labelled.
    pub change_points: Option<&'a change::Labelled>,
    /// Rows at the start that row-wise measures and VUS-PR leave out.
    pub skip: usize,
}

/// Measures over all labelled series of a corpus. What the labels do not define is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Series scored, labelled or not.
    pub series: usize,
    /// Their rows.
    pub rows: usize,
    /// NAB's score, over the series with labelled windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nab: Option<Nab>,
    /// Of the change points, over the series with labelled ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_points: Option<ChangePoints>,
    /// Of the alerts, over the rows of all labelled series together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// False alarms in percent of the normal rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub far_percent: Option<f64>,
    /// Missed rows in percent of the anomalous ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mar_percent: Option<f64>,
    /// Of the scores, over the rows of all labelled series together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roc_auc: Option<f64>,
    /// Average precision of the scores, over the rows of all labelled series together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auc_pr: Option<f64>,
    /// Mean over the keys with an anomaly, of all series.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vus_pr: Option<f64>,
}

/// NAB's score by profile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Nab {
    pub standard: nab::Best,
    pub reward_low_fp: nab::Best,
    pub reward_low_fn: nab::Best,
}

/// Change points found, by the length of the windows behind the labelled ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ChangePoints {
    pub within_30_seconds: change::Found,
    pub within_60_seconds: change::Found,
}

impl Report {
    /// Measures the scores of a corpus.
    ///
    /// # Errors
    /// If a series has not one score, alert and label per row, a score that is not finite, or a
    /// window that is not within it.
    pub fn measure(corpus: &[Judged<'_>]) -> Result<Self, EvaluateError> {
        let (mut labels, mut alerts, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        let mut volumes = Vec::new();
        let mut rows = 0;
        for series in corpus {
            let in_series =
                |reason| EvaluateError::Measure { series: series.name.to_owned(), reason };
            rows += series.scores.len();
            check(series).map_err(in_series)?;
            if let Some(series_labels) = series.labels {
                let kept = series.skip.min(series_labels.len())..;
                labels.extend_from_slice(&series_labels[kept.clone()]);
                alerts.extend_from_slice(&series.alerts[kept.clone()]);
                scores.extend_from_slice(&series.scores[kept.clone()]);
                for rows in rows_by_key(&series.keys[kept.clone()]) {
                    let of_key = rows.iter().map(|row| kept.start + row);
                    let (labels, scores): (Vec<_>, Vec<_>) =
                        of_key.map(|row| (series_labels[row], series.scores[row])).unzip();
                    let volume = vus_pr(&labels, &scores, WINDOW);
                    volumes.extend(if_defined(volume).map_err(in_series)?);
                }
            }
        }
        let whole = |reason| EvaluateError::Measure { series: "all series".to_owned(), reason };
        let confusion = if_defined(Confusion::count(&labels, &alerts)).map_err(whole)?;
        let vus_pr = match volumes.len() {
            0 => None,
            count => Some(volumes.iter().sum::<f64>() / count as f64),
        };
        Ok(Self {
            series: corpus.len(),
            rows,
            nab: if_defined(nab(corpus)).map_err(whole)?,
            change_points: if_defined(change_points(corpus)).map_err(whole)?,
            f1: confusion.and_then(|found| found.f1().ok()),
            far_percent: confusion.and_then(|found| found.far_percent().ok()),
            mar_percent: confusion.and_then(|found| found.mar_percent().ok()),
            roc_auc: if_defined(roc_auc(&labels, &scores)).map_err(whole)?,
            auc_pr: if_defined(average_precision(&labels, &scores)).map_err(whole)?,
            vus_pr,
        })
    }
}

/// Refuses a series that does not fit its labels, so that the error names it.
fn check(series: &Judged<'_>) -> Result<(), MeasureError> {
    let windows = series.windows.unwrap_or_default();
    nab::Series { scores: series.scores, windows }.check()?;
    let found = series.scores.len();
    let labels = series.labels.map(<[bool]>::len);
    let others = [series.alerts.len(), series.turns.len(), series.keys.len()];
    for labels in others.into_iter().chain(labels) {
        if labels != found {
            return Err(MeasureError::Lengths { labels, found });
        }
    }
    Ok(())
}

/// Of each key, its rows in order: what is next to each other is of one key.
fn rows_by_key(keys: &[usize]) -> Vec<Vec<usize>> {
    let mut rows = BTreeMap::<usize, Vec<usize>>::new();
    for (row, key) in keys.iter().enumerate() {
        rows.entry(*key).or_default().push(row);
    }
    rows.into_values().collect()
}

fn nab(corpus: &[Judged<'_>]) -> Result<Nab, MeasureError> {
    let windowed = corpus.iter().filter_map(|series| {
        series.windows.map(|windows| nab::Series { scores: series.scores, windows })
    });
    let corpus = nab::Corpus::new(&windowed.collect::<Vec<_>>())?;
    Ok(Nab {
        standard: corpus.best(nab::Profile::STANDARD)?,
        reward_low_fp: corpus.best(nab::Profile::REWARD_LOW_FP)?,
        reward_low_fn: corpus.best(nab::Profile::REWARD_LOW_FN)?,
    })
}

fn change_points(corpus: &[Judged<'_>]) -> Result<ChangePoints, MeasureError> {
    let labelled = corpus.iter().filter_map(|series| {
        series.change_points.map(|labelled| change::Series { labelled, found: series.turns })
    });
    let labelled: Vec<change::Series<'_>> = labelled.collect();
    let within = |seconds| change::measure(&labelled, Duration::from_secs(seconds));
    Ok(ChangePoints { within_30_seconds: within(30)?, within_60_seconds: within(60)? })
}

fn if_defined<T>(measure: Result<T, MeasureError>) -> Result<Option<T>, MeasureError> {
    match measure {
        Ok(value) => Ok(Some(value)),
        Err(reason) if reason.is_undefined() => Ok(None),
        Err(reason) => Err(reason),
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one window are meant")]
mod tests {
    use super::*;

    const SCORES: [f64; 8] = [0.9, 0.1, 0.1, 0.1, 0.8, 0.1, 0.1, 0.1];
    const ALERTS: [bool; 8] = [true, false, false, false, true, false, false, false];
    const LABELS: [bool; 8] = [false, false, false, false, true, true, false, false];

    fn judged() -> Judged<'static> {
        Judged {
            name: "press.csv",
            scores: &SCORES,
            alerts: &ALERTS,
            turns: &ALERTS,
            keys: &[0; 8],
            labels: Some(&LABELS),
            windows: None,
            change_points: None,
            skip: 1,
        }
    }

    #[test]
    fn rows_of_all_labelled_series_are_pooled_without_those_skipped() {
        let unlabelled = Judged { labels: None, ..judged() };
        let report = Report::measure(&[judged(), unlabelled, judged()]).unwrap();
        assert_eq!((report.series, report.rows), (3, 24));
        // Of each labelled series seven rows count: one hit, one miss, no false alarm.
        assert_eq!(report.f1, Some(2.0 / 3.0));
        assert_eq!(report.far_percent, Some(0.0));
        assert_eq!(report.mar_percent, Some(50.0));
        assert_eq!(report.roc_auc, Some(0.75));
        assert_eq!(report.auc_pr, Some(0.5 + 0.5 * (2.0 / 7.0)));
        assert_eq!(report.vus_pr, Some(vus_pr(&LABELS[1..], &SCORES[1..], WINDOW).unwrap()));
        assert_eq!(report.nab, None);
    }

    #[test]
    fn rows_of_keys_that_take_turns_are_judged_as_if_each_had_its_file() {
        let keys = [0, 1, 0, 1, 0, 1, 0, 1];
        let labels = [false, true, false, true, true, false, false, false];
        let turns = Judged { keys: &keys, labels: Some(&labels), skip: 0, ..judged() };
        let alone: [(Vec<bool>, Vec<f64>); 2] = [0, 1].map(|key| {
            let rows = (0..8).filter(|row| keys[*row] == key);
            rows.map(|row| (labels[row], SCORES[row])).unzip()
        });
        let [one, other] = alone.map(|(labels, scores)| vus_pr(&labels, &scores, WINDOW).unwrap());
        assert_eq!(Report::measure(&[turns]).unwrap().vus_pr, Some((one + other) / 2.0));
    }

    #[test]
    fn windows_bring_nab_s_profiles() {
        let windows = [4..6];
        let report = Report::measure(&[Judged { windows: Some(&windows), ..judged() }]).unwrap();
        let found = report.nab.unwrap();
        // Row 0 is NAB's probation.
        assert!((found.standard.score - 100.0).abs() < 1e-9);
        assert_eq!(found.standard.threshold, 0.8);
    }

    #[test]
    fn labelled_change_points_are_measured_with_both_lengths_of_windows() {
        let instants = (0..8).map(|at| at * 20_000_000).collect();
        let labelled = change::Labelled { instants, rows: vec![2] };
        let report =
            Report::measure(&[Judged { change_points: Some(&labelled), ..judged() }]).unwrap();
        let found = report.change_points.unwrap();
        // Found 40 s behind.
        assert_eq!((found.within_30_seconds.hits, found.within_60_seconds.hits), (0, 1));
        let alarms = (found.within_30_seconds.false_alarms, found.within_60_seconds.false_alarms);
        assert_eq!(alarms, (2, 1));
    }

    #[test]
    fn what_labels_do_not_define_is_absent_from_the_json() {
        let unlabelled = Judged { labels: None, ..judged() };
        let report = Report::measure(&[unlabelled]).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json, serde_json::json!({"series": 1, "rows": 8}));

        let normal = Judged { labels: Some(&[false; 8]), ..judged() };
        let json = serde_json::to_value(Report::measure(&[normal]).unwrap()).unwrap();
        let far_percent = 100.0 / 7.0;
        assert_eq!(json, serde_json::json!({"series": 1, "rows": 8, "far_percent": far_percent}));
    }

    #[test]
    fn a_series_that_does_not_fit_its_labels_is_named() {
        let short = Judged { labels: Some(&[true, false]), name: "pump.csv", ..judged() };
        let error = Report::measure(&[judged(), short]).unwrap_err();
        assert_eq!(error.to_string(), "pump.csv: 2 labels for 8 rows");

        let scores = [f64::NAN; 8];
        let error = Report::measure(&[Judged { scores: &scores, ..judged() }]).unwrap_err();
        assert!(error.to_string().starts_with("press.csv: the score of row 0"), "{error}");
    }
}
