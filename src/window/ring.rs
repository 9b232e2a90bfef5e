//! The last samples of one key.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::transpose::transpose;
use super::words::{HEAD, numbers, words};
use super::{SegmentTemplate, Segments, WindowShape};
use crate::templates::{Tag, Templates};

/// Templates that a segment tells of.
const TEMPLATES: usize = 3;

/// The last `length` samples, oldest overwritten first.
#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Ring {
    /// `[time, channels + HEAD]`, in ring order: what is written of one sample lies side by side,
    /// its values, then its time and smallest offset as [`super::words`] says.
    rows: Box<[f32]>,
    length: u32,
    /// Where the next sample goes: to the oldest one's place, once there are as many as there may
    /// be.
    at: u32,
    /// Samples since the last segment.
    fresh: u32,
    /// Samples since offsets last fell from one to the next, at most as many as of the ring.
    rising: u32,
    /// Samples since the run began.
    seen: u64,
    more: Option<Box<More>>,
}

/// What only some samples have more.
#[derive(Clone, Debug, Default)]
struct More {
    /// Largest offset of each sample; empty while each is of one record.
    lasts: Box<[i64]>,
    /// Template of each sample; empty where records are no lines.
    tags: Box<[Option<Tag>]>,
}

/// Where a sample is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub time: i64,
    /// Smallest and largest offset behind it.
    pub first: i64,
    pub last: i64,
}

impl Ring {
    pub fn new(shape: &WindowShape) -> Self {
        let tags = if shape.lines { vec![None; shape.length] } else { Vec::new() };
        Self {
            rows: vec![f32::NAN; shape.length * (shape.channels + HEAD)].into(),
            length: shape.length as u32,
            at: 0,
            seen: 0,
            fresh: 0,
            rising: 0,
            more: shape.lines.then(|| Box::new(More { tags: tags.into(), ..More::default() })),
        }
    }

    /// Forgets its samples, though not how far it is.
    pub fn start_run(&mut self) {
        (self.seen, self.at, self.fresh, self.rising) = (0, 0, 0, 0);
    }

    /// Goes on as if `samples` had come, which leave it as it is: whole rounds.
    pub fn skip(&mut self, samples: u64) {
        self.seen += samples;
    }

    /// Samples since the last segment.
    pub fn fresh(&self) -> usize {
        self.fresh as usize
    }

    /// Values of a sample.
    pub fn channels(&self) -> usize {
        self.rows.len() / self.length as usize - HEAD
    }

    /// Event time of the last sample of the run, of samples of `channels`.
    pub fn last_time(&self, channels: usize) -> Option<i64> {
        (self.seen > 0).then(|| self.origin(channels, self.before(self.at)).time)
    }

    /// The row before `row`.
    fn before(&self, row: u32) -> usize {
        (if row == 0 { self.length } else { row } - 1) as usize
    }

    /// Notes that a segment was cut.
    pub fn cut(&mut self) {
        self.fresh = 0;
    }

    /// Whether a segment ends with the last of `more` further samples.
    pub fn is_due(&self, shape: &WindowShape, more: u64) -> bool {
        let (seen, length) = (self.seen + more, shape.length as u64);
        seen >= length && (seen - length).is_multiple_of(shape.stride as u64)
    }

    /// Reads of memory what the next sample needs, the whole ring if it ends a segment.
    pub fn preview(&self, shape: &WindowShape) -> u32 {
        const LINE: usize = 16;
        if self.is_due(shape, 1) {
            return self.rows.iter().step_by(LINE).fold(0, |read, word| read ^ word.to_bits());
        }
        let (row, width) = (&self.rows, shape.channels + HEAD);
        let start = self.at as usize * width;
        let before = if start == 0 { row.len() } else { start } - 1;
        [before, start, start + width - 1].into_iter().fold(0, |read, at| read ^ row[at].to_bits())
    }

    /// Makes room for the next sample; returns its values, for all of them to be written.
    #[inline]
    pub fn next(&mut self, shape: &WindowShape, origin: Origin, tag: Option<Tag>) -> &mut [f32] {
        let at = self.at as usize;
        let before = self.origin(shape.channels, self.before(self.at));
        let goes_on = before.first <= origin.first && before.last <= origin.last;
        let rising = if goes_on && self.rising > 0 { self.rising + 1 } else { 1 };
        self.rising = rising.min(self.length);
        if self.more.is_some() || origin.first != origin.last {
            self.write_more(shape, origin, tag);
        }
        self.at = if self.at + 1 == self.length { 0 } else { self.at + 1 };
        self.seen += 1;
        self.fresh = (self.fresh + 1).min(self.length);
        let width = shape.channels + HEAD;
        let row = &mut self.rows[at * width..(at + 1) * width];
        let (values, head) = row.split_at_mut(shape.channels);
        head.copy_from_slice(&words(origin.time, origin.first));
        values
    }

    #[cold]
    fn write_more(&mut self, shape: &WindowShape, origin: Origin, tag: Option<Tag>) {
        if origin.first != origin.last && self.more.as_ref().is_none_or(|m| m.lasts.is_empty()) {
            let lasts = (0..shape.length).map(|at| self.origin(shape.channels, at).last).collect();
            self.more.get_or_insert_default().lasts = lasts;
        }
        let at = self.at as usize;
        let Some(more) = &mut self.more else { return };
        if let Some(place) = more.lasts.get_mut(at) {
            *place = origin.last;
        }
        if let Some(place) = more.tags.get_mut(at) {
            *place = tag;
        }
    }

    fn origin(&self, channels: usize, at: usize) -> Origin {
        let head = at * (channels + HEAD) + channels;
        let (time, first) = numbers(&self.rows[head..head + HEAD]);
        let lasts = self.more.as_ref().map_or(&[][..], |more| &more.lasts);
        Origin { time, first, last: lasts.get(at).copied().unwrap_or(first) }
    }

    /// Appends the ring as `[channels, time]`, oldest first; returns `false`, appending nothing,
    /// when not one value of it was observed.
    pub fn copy_into(&self, shape: &WindowShape, out: &mut Segments) -> bool {
        let width = shape.channels + HEAD;
        if self
            .rows
            .chunks_exact(width)
            .all(|row| row[..shape.observed].iter().all(|value| value.is_nan()))
        {
            return false;
        }
        let oldest = self.at as usize;
        let (newer, older) = self.rows.split_at(oldest * width);
        let start = out.values.len();
        out.values.resize(start + shape.length * shape.channels, 0.0);
        let into = &mut out.values[start..];
        transpose(older, (width, shape.channels), into, shape.length, 0);
        transpose(newer, (width, shape.channels), into, shape.length, shape.length - oldest);
        true
    }

    /// The templates of most weight among the samples, those of most first.
    pub fn templates(&self, templates: &Templates) -> Vec<SegmentTemplate> {
        let tags = self.more.as_ref().map_or(&[][..], |more| &more.tags);
        let mut tags: Vec<Tag> = tags.iter().flatten().copied().collect();
        tags.sort_unstable_by_key(|tag| tag.template);
        let of_one = tags.chunk_by(|one, other| one.template == other.template);
        let mut sums: Vec<Tag> = of_one
            .map(|tags| Tag {
                template: tags[0].template,
                weight: tags.iter().map(|tag| tag.weight).sum(),
            })
            .collect();
        // Of equals, the older one first.
        sums.sort_by(|one, other| other.weight.total_cmp(&one.weight));
        sums.truncate(TEMPLATES);
        let named = |sum: Tag| SegmentTemplate {
            text: templates.name(sum.template).into(),
            weight: sum.weight,
        };
        sums.into_iter().map(named).collect()
    }

    /// Time of the oldest sample, smallest and largest offset.
    pub fn bounds(&self, shape: &WindowShape) -> (i64, i64, i64) {
        let oldest = self.at as usize;
        let newest = self.before(self.at);
        let Origin { time, first, .. } = self.origin(shape.channels, oldest);
        if self.rising >= self.length {
            return (time, first, self.origin(shape.channels, newest).last);
        }
        let all = || (0..shape.length).map(|at| self.origin(shape.channels, at));
        let first = all().map(|origin| origin.first).min().unwrap_or_default();
        let last = all().map(|origin| origin.last).max().unwrap_or_default();
        (time, first, last)
    }
}

/// A ring as it is saved: what is of one kind side by side.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// `[time, channels]`, in ring order.
    values: Vec<f32>,
    origins: Vec<Origin>,
    tags: Box<[Option<Tag>]>,
    seen: u64,
    fresh: usize,
    rising: u64,
}

impl Serialize for Ring {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let width = self.channels() + HEAD;
        let (mut values, mut origins) = (Vec::with_capacity(self.rows.len()), Vec::new());
        let more = self.more.as_deref();
        for (at, row) in self.rows.chunks_exact(width).enumerate() {
            let (sample, head) = row.split_at(width - HEAD);
            values.extend_from_slice(sample);
            let (time, first) = numbers(head);
            let last = more.and_then(|more| more.lasts.get(at).copied()).unwrap_or(first);
            origins.push(Origin { time, first, last });
        }
        let tags = more.map(|more| more.tags.clone()).unwrap_or_default();
        let (seen, fresh, rising) = (self.seen, self.fresh(), self.rising.into());
        Saved { values, origins, tags, seen, fresh, rising }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Ring {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Saved { values, origins, tags, seen, fresh, rising } =
            Saved::deserialize(deserializer)?;
        let length = origins.len();
        if length == 0 || !values.len().is_multiple_of(length) {
            let found = format_args!("{} values of {length} samples", values.len()).to_string();
            return Err(D::Error::custom(found));
        }
        let channels = values.len() / length;
        let mut rows = Vec::with_capacity(length * (channels + HEAD));
        for (at, Origin { time, first, .. }) in origins.iter().enumerate() {
            rows.extend_from_slice(&values[at * channels..(at + 1) * channels]);
            rows.extend(words(*time, *first));
        }
        let of_several = origins.iter().any(|origin| origin.first != origin.last);
        let lasts = of_several.then(|| origins.iter().map(|origin| origin.last).collect());
        let more = (of_several || !tags.is_empty())
            .then(|| Box::new(More { lasts: lasts.unwrap_or_default(), tags }));
        let at = (seen % length as u64) as u32;
        let (fresh, rising) = (fresh.min(length) as u32, rising.min(length as u64) as u32);
        Ok(Self { rows: rows.into(), length: length as u32, at, fresh, rising, seen, more })
    }
}
