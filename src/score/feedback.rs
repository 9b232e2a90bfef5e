//! What people say of segments that were scored, and how it weighs on those to come.
//!
//! A label names a stretch of a key's past as an anomaly or as normal. The segments of it that are
//! still remembered become examples. How much a new segment is like either kind is its kernel
//! density under each, in the space that the encoder made: the kernel `e^((cosine - 1) / t)` is the
//! likelihood ratio that InfoNCE learns, up to a constant. Segments that nobody labelled speak for
//! normal too, with the weight of one example. No weights are fitted: a handful of labels could not
//! carry them. (Parzen windows, 1962; as a classifier by class-wise kernel sums, Specht's
//! probabilistic network, 1990.)

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::learner::{Matrix, multiply};

/// What somebody said about a stretch of a key's past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The key.
    pub key: Arc<str>,
    /// Event times of the first and the last sample meant, microseconds since the epoch.
    pub from: i64,
    pub to: i64,
    /// Whether it was an anomaly, rather than normal.
    pub anomaly: bool,
}

/// Segments that may still be labelled, and those that were.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Feedback {
    recent: VecDeque<Seen>,
    /// `[examples, embedding]`.
    embeddings: Vec<f32>,
    /// `[examples, channels, time]`, standardised: to embed again as the model changes.
    values: Vec<f32>,
    anomalies: Vec<bool>,
    /// Where the next example goes once there is no more room.
    next: usize,
    next_refresh: usize,
    dimension: usize,
    size: usize,
}

/// A segment that was scored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seen {
    key: Arc<str>,
    /// Event time of its last sample.
    end: i64,
    embedding: Vec<f32>,
    values: Vec<f32>,
}

/// Segments that may still be labelled.
const RECENT: usize = 4096;
/// Examples remembered.
const EXAMPLES: usize = 512;
/// Examples embedded again after each training step.
const REFRESHED: usize = 16;
/// Width of the kernel, the temperature that the learner starts from.
const TEMPERATURE: f32 = 0.1;
/// Cosine below which an example is no likeness at all: what nothing is like, however little less
/// like it the rest is, is of neither kind.
const UNLIKE: f32 = 0.7;

impl Feedback {
    /// Without examples, for segments of `size` values, embedded in `dimension` values.
    pub fn new(dimension: usize, size: usize) -> Self {
        Self {
            recent: VecDeque::new(),
            embeddings: Vec::new(),
            values: Vec::new(),
            anomalies: Vec::new(),
            next: 0,
            next_refresh: 0,
            dimension,
            size,
        }
    }

    /// Remembers a segment for as long as labels may come.
    pub fn note(&mut self, key: &Arc<str>, end: i64, embedding: &[f32], values: &[f32]) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        let (embedding, values) = (embedding.to_vec(), values.to_vec());
        self.recent.push_back(Seen { key: Arc::clone(key), end, embedding, values });
    }

    /// Makes examples of the segments whose last sample `label` means; returns how many there are.
    pub fn take(&mut self, label: &Label) -> usize {
        let (dimension, size) = (self.dimension, self.size);
        let mut examples = 0;
        for seen in &self.recent {
            if seen.key != label.key || !(label.from..=label.to).contains(&seen.end) {
                continue;
            }
            examples += 1;
            if self.anomalies.len() < EXAMPLES {
                self.embeddings.extend_from_slice(&seen.embedding);
                self.values.extend_from_slice(&seen.values);
                self.anomalies.push(label.anomaly);
            } else {
                self.embeddings[self.next * dimension..][..dimension]
                    .copy_from_slice(&seen.embedding);
                self.values[self.next * size..][..size].copy_from_slice(&seen.values);
                self.anomalies[self.next] = label.anomaly;
                self.next = (self.next + 1) % EXAMPLES;
            }
        }
        examples
    }

    /// Examples of anomalies and of what is normal.
    pub fn examples(&self) -> (usize, usize) {
        let anomalies = self.anomalies.iter().filter(|is_anomaly| **is_anomaly).count();
        (anomalies, self.anomalies.len() - anomalies)
    }

    /// Embeds some examples again with a changed model, in turn.
    pub fn refresh(&mut self, embed: impl FnOnce(&[f32]) -> Vec<f32>) {
        let range = self.stale();
        if range.is_empty() {
            return;
        }
        let embedded = embed(&self.values[range.start * self.size..range.end * self.size]);
        self.embeddings[range.start * self.dimension..range.end * self.dimension]
            .copy_from_slice(&embedded);
        self.next_refresh = range.end;
    }

    fn stale(&self) -> Range<usize> {
        let start = if self.next_refresh < self.anomalies.len() { self.next_refresh } else { 0 };
        start..(start + REFRESHED).min(self.anomalies.len())
    }

    /// What the labels say of a segment with `embedding`; `unlabelled` are its cosines with segments
    /// that nobody labelled.
    pub fn opinion(&self, embedding: &[f32], unlabelled: &[f32]) -> Opinion {
        if self.anomalies.is_empty() {
            return Opinion::default();
        }
        let examples = self.anomalies.len();
        let mut cosines = vec![0.0; examples];
        multiply(
            &mut cosines,
            false,
            Matrix::new(embedding, 1, self.dimension),
            Matrix::new(&self.embeddings, examples, self.dimension).transposed(),
        );
        let kernel = |cosine: &f32| f64::from(((cosine - 1.0) / TEMPERATURE).exp());
        let (mut anomaly, mut normal) = (0.0, 0.0);
        for (cosine, is_anomaly) in cosines.iter().zip(&self.anomalies) {
            *(if *is_anomaly { &mut anomaly } else { &mut normal }) += kernel(cosine);
        }
        let usual = unlabelled.iter().map(kernel).sum::<f64>() / unlabelled.len().max(1) as f64;
        let all = anomaly + normal + usual + kernel(&UNLIKE);
        Opinion { anomaly: anomaly / all, normal: normal / all }
    }
}

/// How likely a segment is of either kind, by its labelled likes: 0..1, together at most 1; the
/// rest is for neither.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Opinion {
    anomaly: f64,
    normal: f64,
}

impl Opinion {
    /// The probability `p` of a segment, as a logarithm, in the light of it: what is surely one of
    /// the labelled anomalies is as rare as what begins an alert, whatever else is known of it;
    /// what is surely normal is not rare at all.
    pub fn on(self, ln_p: f64, rarest: f64) -> f64 {
        ln_p * (1.0 - self.normal) + self.anomaly * rarest.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAREST: f64 = 1e-5;

    /// Of segments at angles, in degrees, that end at 0, 1, 2, …
    fn noted(angles: &[f32]) -> Feedback {
        let mut feedback = Feedback::new(2, 1);
        for (end, angle) in (0..).zip(angles) {
            feedback.note(&"m".into(), end, &at(*angle), &[*angle]);
        }
        feedback
    }

    fn at(angle: f32) -> [f32; 2] {
        let (sine, cosine) = angle.to_radians().sin_cos();
        [cosine, sine]
    }

    fn label(from: i64, to: i64, anomaly: bool) -> Label {
        Label { key: "m".into(), from, to, anomaly }
    }

    /// The verdict on a segment at `angle` whose own `p` is 0.1, where all others are at 0 degrees.
    fn p_of(feedback: &Feedback, angle: f32) -> f64 {
        let cosines = [angle.to_radians().cos(); 8];
        feedback.opinion(&at(angle), &cosines).on(0.1_f64.ln(), RAREST).exp()
    }

    #[test]
    fn without_labels_nothing_changes() {
        assert!((p_of(&noted(&[0.0, 90.0]), 90.0) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn what_is_like_a_labelled_anomaly_becomes_as_rare_as_an_alert_and_nothing_else_does() {
        let mut feedback = noted(&[0.0, 90.0]);
        assert_eq!(feedback.take(&label(1, 1, true)), 1);
        assert!(p_of(&feedback, 90.0) < 0.2 * RAREST);
        assert!(p_of(&feedback, 0.0) > 0.09);
        assert!(p_of(&feedback, 180.0) > 0.09, "like nothing seen");
    }

    #[test]
    fn what_is_like_a_segment_labelled_normal_is_not_rare_any_more() {
        let mut feedback = noted(&[0.0, 90.0]);
        assert_eq!(feedback.take(&label(1, 5, false)), 1);
        assert!(p_of(&feedback, 90.0) > 0.85);
        assert!(p_of(&feedback, 180.0) < 0.11, "like nothing seen");
    }

    #[test]
    fn a_label_is_for_the_segments_of_its_key_that_end_within_it_while_they_are_remembered() {
        let mut feedback = noted(&[0.0; RECENT + 10]);
        assert_eq!(feedback.take(&Label { key: "n".into(), ..label(0, i64::MAX, true) }), 0);
        assert_eq!(feedback.take(&label(0, 9, true)), 0);
        assert_eq!(feedback.take(&label(5, 12, false)), 3);
        assert_eq!(feedback.examples(), (0, 3));
        assert_eq!(feedback.take(&label(0, i64::MAX, true)), RECENT);
        assert_eq!(feedback.anomalies.len(), EXAMPLES);
        assert_eq!(feedback.embeddings.len(), 2 * EXAMPLES);
    }

    #[test]
    fn examples_follow_the_model() {
        let mut feedback = noted(&[10.0; 40]);
        feedback.take(&label(0, 39, true));
        for _ in 0..3 {
            feedback.refresh(|values| values.iter().flat_map(|angle| at(angle + 50.0)).collect());
        }
        assert!(feedback.embeddings.chunks(2).all(|embedding| embedding == at(60.0)));
    }
}
