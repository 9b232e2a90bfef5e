//! What people say of segments that were scored, and how it weighs on those to come.
//!
//! A label names a stretch of a key's past as an anomaly or as normal. The segments of it that are
//! still remembered become examples. How much a new segment is like either kind is its kernel
//! density under each, by two things: the space that the encoder made, where the kernel
//! `e^((cosine - 1) / t)` is the likelihood ratio that InfoNCE learns, up to a constant; and how rare
//! the segment seemed before anybody was asked. What is rarer than an anomaly is no less of one, and
//! what is less rare than a normal one no less normal, so that a label speaks for all on its far side.
//! Segments that nobody labelled speak against either kind. No weights are fitted: a handful of labels
//! could not carry them. (Parzen windows, 1962; as a classifier by class-wise kernel sums, Specht's
//! probabilistic network, 1990.)

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::scattered;
use crate::learner::dot;

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
    /// How rare each seemed without labels, as [`rarity`] has it.
    rarities: Vec<f32>,
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
    rarity: f32,
    labelled: bool,
}

/// Segments that may still be labelled.
const RECENT: usize = 4096;
/// Examples remembered.
const EXAMPLES: usize = 512;
/// Examples embedded again after each training step.
const REFRESHED: usize = 16;
/// Segments that nobody labelled, of those that may be, that examples are held against.
const SAMPLE: usize = 256;
/// Width of the kernel by cosine, the temperature that the learner starts from.
const TEMPERATURE: f32 = 0.1;
/// Deviation of the kernel by rarity, on its scale: between probabilities of 0.01 and 1e-5 lie 1.6 of it.
const WIDTH: f32 = 0.5;
/// How many times as dense as what nobody labelled examples must be to count half: what they say is
/// little where most of what is alike went without a label.
const AGAINST: f64 = 3.0;
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
            rarities: Vec::new(),
            anomalies: Vec::new(),
            next: 0,
            next_refresh: 0,
            dimension,
            size,
        }
    }

    /// Remembers a segment of this probability, without labels, for as long as labels may come.
    pub fn note(&mut self, key: &Arc<str>, end: i64, embedding: &[f32], values: &[f32], ln_p: f64) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Seen {
            key: Arc::clone(key),
            end,
            embedding: embedding.to_vec(),
            values: values.to_vec(),
            rarity: rarity(ln_p),
            labelled: false,
        });
    }

    /// Makes examples of the segments whose last sample `label` means; returns how many there are.
    pub fn take(&mut self, label: &Label) -> usize {
        let (dimension, size) = (self.dimension, self.size);
        let mut examples = 0;
        for seen in &mut self.recent {
            if seen.key != label.key || !(label.from..=label.to).contains(&seen.end) {
                continue;
            }
            examples += 1;
            seen.labelled = true;
            if self.anomalies.len() < EXAMPLES {
                self.embeddings.extend_from_slice(&seen.embedding);
                self.values.extend_from_slice(&seen.values);
                self.rarities.push(seen.rarity);
                self.anomalies.push(label.anomaly);
            } else {
                self.embeddings[self.next * dimension..][..dimension]
                    .copy_from_slice(&seen.embedding);
                self.values[self.next * size..][..size].copy_from_slice(&seen.values);
                self.rarities[self.next] = seen.rarity;
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

    /// Segments that may be labelled and were not: one of each stretch of them, at a place of its own,
    /// since keys may take turns.
    fn unlabelled(&self) -> impl Iterator<Item = &Seen> {
        let stretch = self.recent.len().div_ceil(SAMPLE).max(1);
        let stretches = 0..self.recent.len() / stretch;
        let one_of = move |at| &self.recent[at * stretch + scattered(at, stretch)];
        stretches.map(one_of).filter(|seen| !seen.labelled)
    }

    /// What the labels say of a segment with `embedding` and this probability without them.
    pub fn opinion(&self, embedding: &[f32], ln_p: f64) -> Opinion {
        if self.anomalies.is_empty() {
            return Opinion::default();
        }
        let rarity = rarity(ln_p);
        let kernel = |example: &[f32], apart: f32| {
            let by_cosine = (dot(embedding, example) - 1.0) / TEMPERATURE;
            f64::from((by_cosine - (apart.max(0.0) / WIDTH).powi(2) / 2.0).exp())
        };
        let (mut anomaly, mut normal) = (0.0, 0.0);
        let examples = self.embeddings.chunks_exact(self.dimension).zip(&self.rarities);
        for ((example, of), is_anomaly) in examples.zip(&self.anomalies) {
            if *is_anomaly {
                anomaly += kernel(example, of - rarity);
            } else {
                normal += kernel(example, rarity - of);
            }
        }
        let (mut unlabelled, mut sample) = (0.0, 0);
        for seen in self.unlabelled() {
            unlabelled += kernel(&seen.embedding, rarity - seen.rarity);
            sample += 1;
        }
        let usual = AGAINST * unlabelled / f64::from(sample.max(1));
        let (anomalies, normals) = self.examples();
        let all = anomaly + normal + f64::from(((UNLIKE - 1.0) / TEMPERATURE).exp());
        Opinion {
            anomaly: anomaly / (all + usual * anomalies as f64),
            normal: normal / (all + usual * normals as f64),
        }
    }
}

/// How rare a segment of this probability is, so that small probabilities do not lie too far apart:
/// `ln (1 - ln p)`.
fn rarity(ln_p: f64) -> f32 {
    (1.0 - ln_p).ln() as f32
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

    /// Of segments at angles, in degrees, and of probabilities, that end at 0, 1, 2, …
    fn noted(segments: &[(f32, f64)]) -> Feedback {
        let mut feedback = Feedback::new(2, 1);
        for (end, (angle, p)) in (0..).zip(segments) {
            feedback.note(&"m".into(), end, &at(*angle), &[*angle], p.ln());
        }
        feedback
    }

    /// One at 90 degrees, of this probability, then a hundred that nothing is special about.
    fn one_apart(p: f64) -> Feedback {
        let usual = (1..=100).map(|rank| (0.0, f64::from(rank) / 100.0));
        noted(&[(90.0, p)].into_iter().chain(usual).collect::<Vec<_>>())
    }

    fn at(angle: f32) -> [f32; 2] {
        let (sine, cosine) = angle.to_radians().sin_cos();
        [cosine, sine]
    }

    fn label(from: i64, to: i64, anomaly: bool) -> Label {
        Label { key: "m".into(), from, to, anomaly }
    }

    /// The verdict on a segment at `angle` whose own probability is `p`.
    fn p_of(feedback: &Feedback, angle: f32, p: f64) -> f64 {
        feedback.opinion(&at(angle), p.ln()).on(p.ln(), RAREST).exp()
    }

    #[test]
    fn without_labels_nothing_changes() {
        assert!((p_of(&one_apart(0.1), 90.0, 0.1) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn what_is_like_a_labelled_anomaly_becomes_as_rare_as_an_alert_and_nothing_else_does() {
        let mut feedback = one_apart(0.1);
        assert_eq!(feedback.take(&label(0, 0, true)), 1);
        assert!(p_of(&feedback, 90.0, 0.1) < 0.2 * RAREST);
        assert!(p_of(&feedback, 90.0, 0.01) < 0.02 * RAREST, "rarer than it");
        assert!(p_of(&feedback, 0.0, 0.1) > 0.09);
        assert!(p_of(&feedback, 180.0, 0.1) > 0.09, "like nothing seen");

        let mut feedback = one_apart(1e-6);
        assert_eq!(feedback.take(&label(0, 0, true)), 1);
        assert!(p_of(&feedback, 90.0, 0.5) > 0.45, "far less rare than it");
    }

    #[test]
    fn what_is_like_a_segment_labelled_normal_is_not_rare_any_more() {
        let mut feedback = one_apart(0.1);
        assert_eq!(feedback.take(&label(0, 0, false)), 1);
        assert!(p_of(&feedback, 90.0, 0.1) > 0.85);
        assert!(p_of(&feedback, 180.0, 0.1) < 0.11, "like nothing seen");

        let mut feedback = one_apart(1e-6);
        assert_eq!(feedback.take(&label(0, 0, false)), 1);
        assert!(p_of(&feedback, 90.0, 1e-6) > 0.4);
        assert!(p_of(&feedback, 90.0, 1e-4) > 0.6, "less rare than it");
        assert!(p_of(&feedback, 90.0, 1e-30) < 1e-24, "far rarer than it");
        assert!(p_of(&feedback, 180.0, 1e-6) < 1.1e-6, "like nothing seen");
    }

    #[test]
    fn a_label_says_little_where_most_of_what_is_alike_went_without_one() {
        for anomaly in [true, false] {
            let mut feedback = one_apart(0.1);
            assert_eq!(feedback.take(&label(31, 35, anomaly)), 5);
            let p = p_of(&feedback, 0.0, 0.3);
            assert!((500.0 * RAREST..0.5).contains(&p), "{anomaly}: {p}");
        }
    }

    #[test]
    fn however_many_labels_say_that_the_usual_is_normal_what_is_rare_stays_so() {
        let mut feedback = noted(&[(0.0, 0.5); RECENT]);
        assert_eq!(feedback.take(&label(0, RECENT as i64 / 2, false)), RECENT / 2 + 1);
        assert!(p_of(&feedback, 0.0, 1e-9) < 2e-9);
    }

    #[test]
    fn a_label_is_for_the_segments_of_its_key_that_end_within_it_while_they_are_remembered() {
        let mut feedback = noted(&[(0.0, 0.5); RECENT + 10]);
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
        let mut feedback = noted(&[(10.0, 0.5); 40]);
        feedback.take(&label(0, 39, true));
        for _ in 0..3 {
            feedback.refresh(|values| values.iter().flat_map(|angle| at(angle + 50.0)).collect());
        }
        assert!(feedback.embeddings.chunks(2).all(|embedding| embedding == at(60.0)));
    }
}
