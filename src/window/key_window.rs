//! The open window of one key.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::{Last, Unchanged};
use super::{ChannelRules, SegmentTemplate, Segments, WindowShape, WindowStats};
use crate::sink::SegmentMeta;
use crate::source::Lane;
use crate::templates::{self, Tag, Templates};

/// Templates that a segment tells of.
const TEMPLATES: usize = 3;

/// Whose window it is and how it is cut.
pub(super) struct Cut<'a> {
    pub shape: &'a WindowShape,
    pub lane: &'a Lane,
    pub key: &'a Arc<str>,
    /// The lane's templates, where records are lines.
    pub templates: Option<&'a Templates>,
}

/// What one record is, once it has a key.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    /// Microseconds since the epoch.
    pub time: i64,
    pub offset: i64,
    /// Per measured channel; NaN is missing.
    pub values: &'a [f32],
    /// Of a line: its template.
    pub tag: Option<Tag>,
}

impl Cut<'_> {
    /// Rules of the key's channels, none where no channel has any.
    fn rules(&self) -> &[ChannelRules] {
        self.shape.rules(self.key)
    }
}

/// One key's samples: those still open to reordering, the bin being averaged, and the ring of the
/// last `length` final ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KeyWindow {
    /// Newest event time seen, late records aside.
    newest: Option<i64>,
    /// Late records in a row, and the newest time among them.
    late_streak: usize,
    late_newest: i64,
    /// Samples ahead of the watermark, by (time, arrival).
    pending: VecDeque<Sample>,
    bin: Option<Bin>,
    ring: Ring,
    /// Event time of the last sample in the ring.
    last: Option<i64>,
    sequence: u64,
    run: u64,
    unchanged: Unchanged,
    history: Last,
    /// Event time of the last line.
    last_line: Option<i64>,
}

/// A record's values on their way into the ring; NaN is missing.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Sample {
    time: i64,
    offset: i64,
    values: Box<[f32]>,
    tag: Option<Tag>,
}

/// The resampling bin being filled: it covers `[start, start + width)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bin {
    start: i64,
    first_offset: i64,
    last_offset: i64,
    sums: Box<[f64]>,
    counts: Box<[u32]>,
    /// The one of most weight.
    tag: Option<Tag>,
}

/// The last `length` samples, oldest overwritten first.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ring {
    /// `[time, channels]`, in ring order.
    values: Vec<f32>,
    times: Vec<i64>,
    /// Smallest and largest offset behind each sample.
    offsets: Vec<(i64, i64)>,
    /// Template of each sample; empty where records are no lines.
    tags: Vec<Option<Tag>>,
    /// Samples since the run began.
    seen: u64,
    /// Samples since the last segment.
    fresh: usize,
}

impl KeyWindow {
    pub fn new(shape: &WindowShape, first_sequence: u64, first_run: u64) -> Self {
        Self {
            newest: None,
            late_streak: 0,
            late_newest: i64::MIN,
            pending: VecDeque::new(),
            bin: None,
            ring: Ring {
                values: vec![f32::NAN; shape.length * shape.channels],
                times: vec![0; shape.length],
                offsets: vec![(0, 0); shape.length],
                tags: if shape.lines { vec![None; shape.length] } else { Vec::new() },
                seen: 0,
                fresh: 0,
            },
            last: None,
            sequence: first_sequence,
            run: first_run,
            unchanged: Unchanged::default(),
            history: Last::default(),
            last_line: None,
        }
    }

    /// Whether samples wait for the watermark: without any, [`KeyWindow::advance`] does nothing.
    pub fn holds_samples_back(&self) -> bool {
        !self.pending.is_empty() || self.bin.is_some()
    }

    /// Sequence number of the next segment.
    pub fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// Number of the next run.
    pub fn next_run(&self) -> u64 {
        self.run + 1
    }

    /// Takes one record.
    pub fn push(
        &mut self,
        cut: &Cut<'_>,
        record: Record<'_>,
        out: &mut Segments,
        stats: &mut WindowStats,
    ) {
        let Record { time, offset, values, tag } = record;
        let watermark = self.newest.map(|newest| newest.saturating_sub(cut.shape.lateness));
        if watermark.max(self.closed_until(cut.shape)).is_some_and(|final_until| time < final_until)
        {
            if !self.is_clock_reset(cut.shape.length, time) {
                stats.late += 1;
                return;
            }
            // The key's clock was set back for good: waiting for it to catch up would silence the
            // key. What is open is finished, and a new run begins at the new time.
            self.advance(cut, i64::MAX, out, stats);
            self.start_run();
            self.newest = None;
            self.unchanged = Unchanged::default();
            self.history = Last::default();
            self.last_line = None;
            stats.clock_resets += 1;
        }
        self.late_streak = 0;
        self.late_newest = i64::MIN;
        let newest = self.newest.map_or(time, |newest| newest.max(time));
        self.newest = Some(newest);

        if cut.shape.lateness == 0 {
            self.take(cut, record, out, stats);
        } else {
            let at = self.pending.partition_point(|sample| sample.time <= time);
            self.pending.insert(at, Sample { time, offset, values: values.into(), tag });
            self.release(cut, newest.saturating_sub(cut.shape.lateness), out, stats);
        }
        if let Some(width) = cut.shape.resample {
            self.close_bin(cut, width, newest.saturating_sub(cut.shape.lateness), out);
        }
    }

    /// The time before which no record can be put in order any more: samples may be final ahead of
    /// the key's own watermark, by [`KeyWindow::advance`].
    fn closed_until(&self, shape: &WindowShape) -> Option<i64> {
        let Some(width) = shape.resample else { return self.last };
        let open = self.bin.as_ref().map(|bin| bin.start);
        open.or(self.last.map(|last| last.saturating_add(width)))
    }

    /// As many late records in a row as a window holds, themselves in order: not stragglers.
    fn is_clock_reset(&mut self, length: usize, time: i64) -> bool {
        self.late_streak = if time >= self.late_newest { self.late_streak + 1 } else { 1 };
        self.late_newest = time;
        self.late_streak >= length
    }

    /// Declares every sample at or before `watermark` final.
    pub fn advance(
        &mut self,
        cut: &Cut<'_>,
        watermark: i64,
        out: &mut Segments,
        stats: &mut WindowStats,
    ) {
        self.release(cut, watermark, out, stats);
        if let Some(width) = cut.shape.resample {
            self.close_bin(cut, width, watermark, out);
        }
    }

    fn release(
        &mut self,
        cut: &Cut<'_>,
        watermark: i64,
        out: &mut Segments,
        stats: &mut WindowStats,
    ) {
        while self.pending.front().is_some_and(|sample| sample.time <= watermark) {
            if let Some(Sample { time, offset, values, tag }) = self.pending.pop_front() {
                self.take(cut, Record { time, offset, values: &values, tag }, out, stats);
            }
        }
    }

    /// Takes a final sample, in time order.
    fn take(
        &mut self,
        cut: &Cut<'_>,
        Record { time, offset, values, tag }: Record<'_>,
        out: &mut Segments,
        stats: &mut WindowStats,
    ) {
        let mut believed;
        let values = if cut.shape.groups.is_empty() && !cut.shape.lines {
            values
        } else {
            believed = values.to_vec();
            if cut.shape.lines {
                let last = self.last_line.replace(time);
                let silence = last.map(|last| templates::silence(time.saturating_sub(last)));
                believed[templates::SILENCE] = silence.unwrap_or(f32::NAN);
            }
            stats.stuck += self.unchanged.doubt(cut.rules(), time, &mut believed);
            &believed
        };
        let Some(width) = cut.shape.resample else {
            if self.is_gap(cut.shape.max_gap, time) {
                self.start_run();
                stats.gaps += 1;
            }
            self.append(cut, time, (offset, offset), values, tag, out);
            return;
        };
        let start = time.div_euclid(width).saturating_mul(width);
        if self.bin.as_ref().is_some_and(|bin| bin.start != start) {
            self.close_bin(cut, width, i64::MAX, out);
        }
        if self.bin.is_none() && self.is_gap(cut.shape.max_gap, start) {
            self.start_run();
            stats.gaps += 1;
        }
        self.bin
            .get_or_insert_with(|| Bin::new(start, offset, cut.shape.observed))
            .add(offset, values, tag);
    }

    fn is_gap(&self, max_gap: Option<i64>, time: i64) -> bool {
        match (self.last, max_gap) {
            (Some(last), Some(max_gap)) => time.saturating_sub(last) > max_gap,
            _ => false,
        }
    }

    fn start_run(&mut self) {
        self.run += 1;
        self.ring.seen = 0;
        self.ring.fresh = 0;
        self.last = None;
    }

    /// Turns the open bin into a sample once no record at or before `watermark` can reach it, with
    /// missing samples for the bins in between.
    fn close_bin(&mut self, cut: &Cut<'_>, width: i64, watermark: i64, out: &mut Segments) {
        let Some(bin) = self.bin.take_if(|bin| bin.start.saturating_add(width) <= watermark) else {
            return;
        };
        if let Some(last) = self.last {
            let missing = vec![f32::NAN; cut.shape.observed];
            let mut time = last.saturating_add(width);
            let (shape, missing_bins) =
                (cut.shape, (bin.start.saturating_sub(time) / width) as u64);
            // Beyond a window of missing samples nothing is cut: whole rounds of ring and stride,
            // which would end as they began, are left out, so that one record from a far future
            // does not stop everything.
            let round = shape.length as u64 * shape.stride as u64;
            let carried = (shape.longest_carry() / width) as u64 + 1;
            let rounds = missing_bins.saturating_sub(2 * shape.length as u64 + carried) / round;
            let skipped_from = shape.length as u64 + carried;
            let skip_at = time.saturating_add(width.saturating_mul(skipped_from as i64));
            while time < bin.start {
                if rounds > 0 && time == skip_at {
                    self.ring.seen += rounds * round;
                    time = time.saturating_add(width.saturating_mul((rounds * round) as i64));
                }
                let offsets = (bin.first_offset, bin.first_offset);
                self.append(cut, time, offsets, &missing, None, out);
                time = time.saturating_add(width);
            }
        }
        let means = bin.means();
        let offsets = (bin.first_offset, bin.last_offset);
        self.append(cut, bin.start, offsets, &means, bin.tag, out);
    }

    /// Writes a sample to the ring and cuts a segment where the stride asks for one.
    fn append(
        &mut self,
        cut: &Cut<'_>,
        time: i64,
        offsets: (i64, i64),
        values: &[f32],
        tag: Option<Tag>,
        out: &mut Segments,
    ) {
        self.last = Some(time);
        if cut.shape.groups.is_empty() && !cut.shape.time_since_last {
            self.ring.write(cut.shape, time, offsets, values, tag);
        } else {
            let mut values = values.to_vec();
            let ages = self.history.carry(cut.rules(), time, &mut values);
            if cut.shape.time_since_last {
                values.extend(ages);
            }
            self.ring.write(cut.shape, time, offsets, &values, tag);
        }
        let length = cut.shape.length as u64;
        let due = self.ring.seen >= length
            && (self.ring.seen - length).is_multiple_of(cut.shape.stride as u64);
        if due && self.ring.copy_into(cut.shape, out) {
            let (window_start, first_offset, last_offset) = self.ring.bounds(cut.shape);
            out.meta.push(SegmentMeta {
                key: Arc::clone(cut.key),
                lane: cut.lane.clone(),
                sequence: self.sequence,
                window_start,
                window_end: time,
                first_offset,
                last_offset,
            });
            out.runs.push(self.run);
            out.fresh.push(self.ring.fresh);
            out.templates.extend(cut.templates.map(|templates| self.ring.templates(templates)));
            self.sequence += 1;
            self.ring.fresh = 0;
        }
    }
}

impl Bin {
    fn new(start: i64, offset: i64, channels: usize) -> Self {
        Self {
            start,
            first_offset: offset,
            last_offset: offset,
            sums: vec![0.0; channels].into(),
            counts: vec![0; channels].into(),
            tag: None,
        }
    }

    fn add(&mut self, offset: i64, values: &[f32], tag: Option<Tag>) {
        let weight = |tag: &Option<Tag>| tag.map_or(0.0, |tag| tag.weight);
        if weight(&tag) > weight(&self.tag) {
            self.tag = tag;
        }
        self.first_offset = self.first_offset.min(offset);
        self.last_offset = self.last_offset.max(offset);
        for ((sum, count), value) in self.sums.iter_mut().zip(&mut self.counts).zip(values) {
            if !value.is_nan() {
                *sum += f64::from(*value);
                *count += 1;
            }
        }
    }

    /// Mean per channel; NaN where nothing was observed.
    fn means(&self) -> Vec<f32> {
        self.sums.iter().zip(&self.counts).map(|(sum, n)| (sum / f64::from(*n)) as f32).collect()
    }
}

impl Ring {
    fn write(
        &mut self,
        shape: &WindowShape,
        time: i64,
        offsets: (i64, i64),
        values: &[f32],
        tag: Option<Tag>,
    ) {
        let at = (self.seen % shape.length as u64) as usize;
        self.values[at * shape.channels..(at + 1) * shape.channels].copy_from_slice(values);
        self.times[at] = time;
        self.offsets[at] = offsets;
        if let Some(place) = self.tags.get_mut(at) {
            *place = tag;
        }
        self.seen += 1;
        self.fresh = (self.fresh + 1).min(shape.length);
    }

    /// Appends the ring as `[channels, time]`, oldest first; returns `false`, appending nothing,
    /// when not one value of it was observed.
    fn copy_into(&self, shape: &WindowShape, out: &mut Segments) -> bool {
        let mut samples = self.values.chunks_exact(shape.channels);
        if samples.all(|sample| sample[..shape.observed].iter().all(|value| value.is_nan())) {
            return false;
        }
        let oldest = (self.seen % shape.length as u64) as usize;
        let (newer, older) = self.values.split_at(oldest * shape.channels);
        for channel in 0..shape.channels {
            for part in [older, newer] {
                out.values.extend(part.iter().skip(channel).step_by(shape.channels));
            }
        }
        true
    }

    /// The templates of most weight among the samples, those of most first.
    fn templates(&self, templates: &Templates) -> Vec<SegmentTemplate> {
        let mut tags: Vec<Tag> = self.tags.iter().flatten().copied().collect();
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
    fn bounds(&self, shape: &WindowShape) -> (i64, i64, i64) {
        let oldest = (self.seen % shape.length as u64) as usize;
        let first = self.offsets.iter().map(|(first, _)| *first).min().unwrap_or_default();
        let last = self.offsets.iter().map(|(_, last)| *last).max().unwrap_or_default();
        (self.times[oldest], first, last)
    }
}
