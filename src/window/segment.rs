//! A batch of segments: what windows hand to pairing, learning and scoring.

use std::sync::Arc;

use crate::sink::SegmentMeta;

/// Segments of one lane, in the order in which they were completed.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    /// `[segments, channels, time]`; NaN where a value is missing.
    pub values: Vec<f32>,
    /// Who, when and from which records.
    pub meta: Vec<SegmentMeta>,
    /// Per segment: the run it belongs to. Two segments of one key and run, one sequence number
    /// apart, are adjacent; a gap in the stream starts a new run.
    pub runs: Vec<u64>,
    /// Per segment: how many of its last samples no earlier segment of its key contained.
    pub fresh: Vec<usize>,
    /// Per segment of lines, the templates that stand out most among its samples, the first most;
    /// empty where records are no lines.
    pub templates: Vec<Vec<SegmentTemplate>>,
}

/// A template in a segment.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentTemplate {
    /// Its text, parameters as `<*>`.
    pub text: Arc<str>,
    /// Sum of what its samples weigh, see [`crate::templates::Tag`].
    pub weight: f32,
}

impl Segments {
    /// Number of segments.
    pub fn len(&self) -> usize {
        self.meta.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.meta.is_empty()
    }

    /// The values of segment `index`, `[channels, time]`, given their number per segment.
    pub fn segment(&self, index: usize, size: usize) -> &[f32] {
        &self.values[index * size..(index + 1) * size]
    }

    /// Takes the first `count` of them, or all there are.
    pub fn take_first(&mut self, count: usize) -> Self {
        let count = count.min(self.len());
        let size = if self.is_empty() { 0 } else { self.values.len() / self.len() };
        Self {
            values: self.values.drain(..count * size).collect(),
            meta: self.meta.drain(..count).collect(),
            runs: self.runs.drain(..count).collect(),
            fresh: self.fresh.drain(..count).collect(),
            templates: self.templates.drain(..count.min(self.templates.len())).collect(),
        }
    }

    /// Moves all of `other` behind these.
    pub fn append(&mut self, other: &mut Self) {
        self.values.append(&mut other.values);
        self.meta.append(&mut other.meta);
        self.runs.append(&mut other.runs);
        self.fresh.append(&mut other.fresh);
        self.templates.append(&mut other.templates);
    }
}
