//! Row-wise measures: F1, false and missed alarms at given decisions; ROC-AUC and average
//! precision of raw scores.

use super::{MeasureError, by_falling_score, check_lengths, check_scores};

/// How decisions and labels agree, in rows.
///
/// ```
/// use contrastream::evaluate::measures::point::Confusion;
///
/// let labels = [false, false, true, true];
/// let alerts = [true, false, true, false];
/// let confusion = Confusion::count(&labels, &alerts)?;
/// assert_eq!(confusion.f1()?, 0.5);
/// assert_eq!(confusion.far_percent()?, 50.0);
/// assert_eq!(confusion.mar_percent()?, 50.0);
/// # Ok::<(), contrastream::evaluate::measures::MeasureError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confusion {
    /// Anomalous rows with an alert.
    pub hits: usize,
    /// Normal rows with an alert.
    pub false_alarms: usize,
    /// Anomalous rows without one.
    pub misses: usize,
    /// Normal rows without one.
    pub silent: usize,
}

impl Confusion {
    /// Counts the rows of each kind.
    ///
    /// # Errors
    /// If there are no rows, or not as many labels as alerts.
    pub fn count(labels: &[bool], alerts: &[bool]) -> Result<Self, MeasureError> {
        check_lengths(labels, alerts.len())?;
        let mut confusion = Self::default();
        for (&anomalous, &alert) in labels.iter().zip(alerts) {
            let count = match (anomalous, alert) {
                (true, true) => &mut confusion.hits,
                (false, true) => &mut confusion.false_alarms,
                (true, false) => &mut confusion.misses,
                (false, false) => &mut confusion.silent,
            };
            *count += 1;
        }
        Ok(confusion)
    }

    /// Harmonic mean of precision and recall, 0..1.
    ///
    /// # Errors
    /// If no row is anomalous.
    pub fn f1(&self) -> Result<f64, MeasureError> {
        self.anomalous()?;
        let twice = 2 * self.hits;
        Ok(twice as f64 / (twice + self.false_alarms + self.misses) as f64)
    }

    /// False alarm rate: percent of the normal rows with an alert.
    ///
    /// # Errors
    /// If no row is normal.
    pub fn far_percent(&self) -> Result<f64, MeasureError> {
        match self.false_alarms + self.silent {
            0 => Err(MeasureError::NoNormal),
            normal => Ok(100.0 * self.false_alarms as f64 / normal as f64),
        }
    }

    /// Missed alarm rate: percent of the anomalous rows without an alert.
    ///
    /// # Errors
    /// If no row is anomalous.
    pub fn mar_percent(&self) -> Result<f64, MeasureError> {
        Ok(100.0 * self.misses as f64 / self.anomalous()? as f64)
    }

    fn anomalous(&self) -> Result<usize, MeasureError> {
        match self.hits + self.misses {
            0 => Err(MeasureError::NoAnomaly),
            anomalous => Ok(anomalous),
        }
    }
}

/// Area under the receiver operating characteristic: the probability that an anomalous row
/// outranks a normal one, ties counted half (Hanley & McNeil 1982, "The meaning and use of the
/// area under a receiver operating characteristic (ROC) curve").
///
/// ```
/// use contrastream::evaluate::measures::point::roc_auc;
///
/// // Of the four pairs three are in order and one is a tie.
/// let auc = roc_auc(&[false, false, true, true], &[0.1, 0.5, 0.5, 0.9])?;
/// assert_eq!(auc, 3.5 / 4.0);
/// # Ok::<(), contrastream::evaluate::measures::MeasureError>(())
/// ```
///
/// # Errors
/// If a score is not finite, there are not as many labels as scores, or either class is absent.
pub fn roc_auc(labels: &[bool], scores: &[f64]) -> Result<f64, MeasureError> {
    check_scores(labels, scores)?;
    // Pairs in order, ties half: counted from the highest score down.
    let mut pairs = 0.0;
    let (mut anomalous, mut normal) = (0, 0);
    for tied in tied_rows(scores, &by_falling_score(scores)) {
        let tied_anomalous = tied.iter().filter(|&&row| labels[row]).count();
        let tied_normal = tied.len() - tied_anomalous;
        pairs += tied_normal as f64 * (anomalous as f64 + tied_anomalous as f64 / 2.0);
        anomalous += tied_anomalous;
        normal += tied_normal;
    }
    match (anomalous, normal) {
        (0, _) => Err(MeasureError::NoAnomaly),
        (_, 0) => Err(MeasureError::NoNormal),
        _ => Ok(pairs / (anomalous as f64 * normal as f64)),
    }
}

/// Area under the precision-recall curve as average precision: the sum, over the distinct scores
/// from the highest down, of the recall gained times the precision there. No interpolation, which
/// would be too optimistic (Davis & Goadrich 2006, "The relationship between Precision-Recall and
/// ROC curves").
///
/// ```
/// use contrastream::evaluate::measures::point::average_precision;
///
/// // Half of the anomalies at precision 1, the other half at precision 2/3.
/// let area = average_precision(&[false, false, true, true], &[0.1, 0.5, 0.5, 0.9])?;
/// assert_eq!(area, 0.5 * 1.0 + 0.5 * (2.0 / 3.0));
/// # Ok::<(), contrastream::evaluate::measures::MeasureError>(())
/// ```
///
/// # Errors
/// If a score is not finite, there are not as many labels as scores, or no row is anomalous.
pub fn average_precision(labels: &[bool], scores: &[f64]) -> Result<f64, MeasureError> {
    check_scores(labels, scores)?;
    let (mut hits, mut alerts) = (0, 0);
    let mut area = 0.0;
    for tied in tied_rows(scores, &by_falling_score(scores)) {
        let gained = tied.iter().filter(|&&row| labels[row]).count();
        hits += gained;
        alerts += tied.len();
        area += gained as f64 * (hits as f64 / alerts as f64);
    }
    if hits == 0 { Err(MeasureError::NoAnomaly) } else { Ok(area / hits as f64) }
}

/// Sorted rows in groups of equal scores.
fn tied_rows<'a>(scores: &'a [f64], sorted: &'a [usize]) -> impl Iterator<Item = &'a [usize]> {
    sorted.chunk_by(|&left, &right| scores[left] == scores[right])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_follow_the_counts() {
        let labels = [true, true, true, false, false, false, false, false];
        let alerts = [true, true, false, true, false, false, false, false];
        let confusion = Confusion::count(&labels, &alerts).unwrap();
        assert_eq!(confusion, Confusion { hits: 2, false_alarms: 1, misses: 1, silent: 4 });
        assert_eq!(confusion.f1().unwrap(), 4.0 / 6.0);
        assert_eq!(confusion.far_percent().unwrap(), 20.0);
        assert_eq!(confusion.mar_percent().unwrap(), 100.0 / 3.0);
    }

    #[test]
    fn what_the_labels_do_not_define_is_an_error_and_not_a_nan() {
        let normal = Confusion::count(&[false, false], &[true, false]).unwrap();
        assert_eq!(normal.f1(), Err(MeasureError::NoAnomaly));
        assert_eq!(normal.mar_percent(), Err(MeasureError::NoAnomaly));
        assert_eq!(normal.far_percent(), Ok(50.0));
        let anomalous = Confusion::count(&[true], &[true]).unwrap();
        assert_eq!(anomalous.far_percent(), Err(MeasureError::NoNormal));
        assert_eq!(roc_auc(&[true, true], &[0.0, 1.0]), Err(MeasureError::NoNormal));
        assert_eq!(roc_auc(&[false, false], &[0.0, 1.0]), Err(MeasureError::NoAnomaly));
        assert_eq!(average_precision(&[false], &[0.0]), Err(MeasureError::NoAnomaly));
    }

    #[test]
    fn wrong_input_is_named() {
        assert_eq!(roc_auc(&[], &[]), Err(MeasureError::Empty));
        assert_eq!(Confusion::count(&[], &[]), Err(MeasureError::Empty));
        assert_eq!(
            average_precision(&[true], &[0.5, 0.5]),
            Err(MeasureError::Lengths { labels: 1, found: 2 })
        );
        let error = roc_auc(&[true, false], &[0.5, f64::NAN]).unwrap_err();
        assert!(matches!(error, MeasureError::NotFinite { row: 1, .. }));
        let error = average_precision(&[true, false], &[f64::INFINITY, 0.5]).unwrap_err();
        assert_eq!(error, MeasureError::NotFinite { row: 0, score: f64::INFINITY });
    }

    #[test]
    fn one_score_for_all_rows_ranks_by_chance() {
        let labels = [true, false, false, false];
        assert_eq!(roc_auc(&labels, &[0.3; 4]).unwrap(), 0.5);
        assert_eq!(average_precision(&labels, &[0.3; 4]).unwrap(), 0.25);
    }

    #[test]
    fn negative_zero_ties_with_zero() {
        assert_eq!(roc_auc(&[true, false], &[-0.0, 0.0]).unwrap(), 0.5);
        assert_eq!(average_precision(&[true, false], &[-0.0, 0.0]).unwrap(), 0.5);
    }

    /// The definition, pair by pair.
    fn roc_auc_by_pairs(labels: &[bool], scores: &[f64]) -> f64 {
        let (mut sum, mut pairs) = (0.0, 0.0);
        for anomalous in (0..labels.len()).filter(|&row| labels[row]) {
            for normal in (0..labels.len()).filter(|&row| !labels[row]) {
                let difference = scores[anomalous] - scores[normal];
                sum += if difference == 0.0 { 0.5 } else { f64::from(difference > 0.0) };
                pairs += 1.0;
            }
        }
        sum / pairs
    }

    proptest! {
        #[test]
        fn roc_auc_is_the_share_of_ordered_pairs(
            rows in prop::collection::vec((any::<bool>(), 0_u8..6), 2..60)
        ) {
            let (labels, scores): (Vec<bool>, Vec<f64>) =
                rows.iter().map(|(label, score)| (*label, f64::from(*score))).unzip();
            prop_assume!(labels.contains(&true) && labels.contains(&false));
            let found = roc_auc(&labels, &scores).unwrap();
            prop_assert!((found - roc_auc_by_pairs(&labels, &scores)).abs() < 1e-12);
        }
    }
}
