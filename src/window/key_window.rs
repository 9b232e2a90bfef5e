//! The open window of one key.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::{Last, Unchanged};
use super::pending::{Head, Pending};
use super::transpose::transpose;
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
pub(super) struct Record<'a> {
    /// Microseconds since the epoch.
    pub time: i64,
    pub offset: i64,
    /// Per measured channel; NaN is missing, and what is not believed becomes so.
    pub values: &'a mut [f32],
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
    /// Samples ahead of the watermark.
    pending: Pending,
    bin: Option<Box<Bin>>,
    /// The last bin, for the next one to be made of.
    #[serde(skip)]
    spare: Option<Box<Bin>>,
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
    values: Box<[f32]>,
    origins: Box<[Origin]>,
    /// Template of each sample; empty where records are no lines.
    tags: Box<[Option<Tag>]>,
    /// Samples since the run began.
    seen: u64,
    /// Samples since the last segment.
    fresh: usize,
    /// Samples since offsets last fell from one to the next, at most as many as of the run.
    rising: u64,
}

/// Where a sample is from.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Origin {
    time: i64,
    /// Smallest and largest offset behind it.
    first: i64,
    last: i64,
}

impl KeyWindow {
    pub fn new(shape: &WindowShape, first_sequence: u64, first_run: u64) -> Self {
        Self {
            newest: None,
            late_streak: 0,
            late_newest: i64::MIN,
            pending: Pending::default(),
            bin: None,
            spare: None,
            ring: Ring {
                values: vec![f32::NAN; shape.length * shape.channels].into(),
                origins: vec![Origin::default(); shape.length].into(),
                tags: if shape.lines { vec![None; shape.length] } else { Vec::new() }.into(),
                seen: 0,
                fresh: 0,
                rising: 0,
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

    /// Reads of memory what the next sample needs, so that it is there by then; what is returned
    /// has no meaning.
    pub fn preview(&self, shape: &WindowShape) -> u32 {
        let pending = if shape.lateness > 0 { self.pending.preview(shape.observed) } else { 0 };
        let at = self.ring.place(shape);
        let value = self.ring.values.get(at * shape.channels).map_or(0, |value| value.to_bits());
        pending ^ value ^ self.ring.origins[at].time as u32
    }

    /// Sequence number of the next segment.
    pub fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// Number of the next run.
    pub fn next_run(&self) -> u64 {
        self.run + 1
    }

    /// Takes one record. It is passed by reference down to the ring: a copy of what was just
    /// written, of another width, waits for all that was to be written before.
    pub fn push(
        &mut self,
        cut: &Cut<'_>,
        record: &mut Record<'_>,
        out: &mut Segments,
        stats: &mut WindowStats,
    ) {
        let time = record.time;
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
            self.pending.insert(time, record.offset, record.values, record.tag);
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
        if !self.pending.is_due(watermark) {
            return;
        }
        let mut pending = std::mem::take(&mut self.pending);
        let mut take = |Head { time, offset, tag, .. }: Head, values: &mut [f32]| {
            self.take(cut, &mut Record { time, offset, values, tag }, out, stats);
        };
        while pending.pop(watermark, cut.shape.observed, &mut take) {}
        // What is empty waits for nothing, maybe for long: it keeps no memory.
        if !pending.is_empty() {
            self.pending = pending;
        }
    }

    /// Takes a final sample, in time order.
    fn take(
        &mut self,
        cut: &Cut<'_>,
        record: &mut Record<'_>,
        out: &mut Segments,
        stats: &mut WindowStats,
    ) {
        let &mut Record { time, offset, ref mut values, tag } = record;
        if cut.shape.lines {
            let last = self.last_line.replace(time);
            let silence = last.map(|last| templates::silence(time.saturating_sub(last)));
            values[templates::SILENCE] = silence.unwrap_or(f32::NAN);
        }
        if !cut.shape.groups.is_empty() {
            stats.stuck += self.unchanged.doubt(cut.rules(), time, values);
        }
        let Some(width) = cut.shape.resample else {
            if self.is_gap(cut.shape.max_gap, time) {
                self.start_run();
                stats.gaps += 1;
            }
            let origin = Origin { time, first: offset, last: offset };
            self.append(cut, origin, tag, |sample| sample.copy_from_slice(values), out);
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
        let spare = &mut self.spare;
        self.bin
            .get_or_insert_with(|| Bin::begin(spare.take(), start, offset, cut.shape.observed))
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
        self.ring.rising = 0;
        self.last = None;
    }

    /// Turns the open bin into a sample once no record at or before `watermark` can reach it, with
    /// missing samples for the bins in between.
    fn close_bin(&mut self, cut: &Cut<'_>, width: i64, watermark: i64, out: &mut Segments) {
        let Some(bin) = self.bin.take_if(|bin| bin.start.saturating_add(width) <= watermark) else {
            return;
        };
        if let Some(last) = self.last {
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
                let origin = Origin { time, first: bin.first_offset, last: bin.first_offset };
                self.append(cut, origin, None, |sample| sample.fill(f32::NAN), out);
                time = time.saturating_add(width);
            }
        }
        let origin = Origin { time: bin.start, first: bin.first_offset, last: bin.last_offset };
        self.append(cut, origin, bin.tag, |sample| bin.write_means(sample), out);
        self.spare = Some(bin);
    }

    /// Writes a sample, whose measured channels `write` writes, to the ring and cuts a segment where
    /// the stride asks for one.
    #[inline]
    fn append(
        &mut self,
        cut: &Cut<'_>,
        origin: Origin,
        tag: Option<Tag>,
        write: impl FnOnce(&mut [f32]),
        out: &mut Segments,
    ) {
        let time = origin.time;
        self.last = Some(time);
        let sample = self.ring.next(cut.shape, origin, tag);
        let (observed, ages) = sample.split_at_mut(cut.shape.observed);
        write(observed);
        if !cut.shape.groups.is_empty() || cut.shape.time_since_last {
            self.history.carry(cut.rules(), time, observed, ages);
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
    /// An empty bin, made of a `spare` one where there is one.
    fn begin(spare: Option<Box<Self>>, start: i64, offset: i64, channels: usize) -> Box<Self> {
        let mut bin = spare.unwrap_or_else(|| {
            Box::new(Self {
                start,
                first_offset: offset,
                last_offset: offset,
                sums: vec![0.0; channels].into(),
                counts: vec![0; channels].into(),
                tag: None,
            })
        });
        (bin.start, bin.first_offset, bin.last_offset, bin.tag) = (start, offset, offset, None);
        bin.sums.fill(0.0);
        bin.counts.fill(0);
        bin
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
    fn write_means(&self, means: &mut [f32]) {
        for ((mean, sum), count) in means.iter_mut().zip(&self.sums).zip(&self.counts) {
            *mean = (sum / f64::from(*count)) as f32;
        }
    }
}

impl Ring {
    /// Where the next sample goes: to the oldest one's place, once there are as many as there may
    /// be.
    fn place(&self, shape: &WindowShape) -> usize {
        (self.seen % shape.length as u64) as usize
    }

    /// Makes room for the next sample; returns its values, for all of them to be written.
    #[inline]
    fn next(&mut self, shape: &WindowShape, origin: Origin, tag: Option<Tag>) -> &mut [f32] {
        let at = self.place(shape);
        let before = self.origins[if at == 0 { shape.length } else { at } - 1];
        let goes_on = before.first <= origin.first && before.last <= origin.last;
        self.rising = if goes_on && self.rising > 0 { self.rising + 1 } else { 1 };
        self.origins[at] = origin;
        if let Some(place) = self.tags.get_mut(at) {
            *place = tag;
        }
        self.seen += 1;
        self.fresh = (self.fresh + 1).min(shape.length);
        &mut self.values[at * shape.channels..(at + 1) * shape.channels]
    }

    /// Appends the ring as `[channels, time]`, oldest first; returns `false`, appending nothing,
    /// when not one value of it was observed.
    fn copy_into(&self, shape: &WindowShape, out: &mut Segments) -> bool {
        let mut samples = self.values.chunks_exact(shape.channels);
        if samples.all(|sample| sample[..shape.observed].iter().all(|value| value.is_nan())) {
            return false;
        }
        let oldest = self.place(shape);
        let (newer, older) = self.values.split_at(oldest * shape.channels);
        let start = out.values.len();
        out.values.resize(start + self.values.len(), 0.0);
        let into = &mut out.values[start..];
        transpose(older, shape.channels, into, shape.length, 0);
        transpose(newer, shape.channels, into, shape.length, shape.length - oldest);
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
        let oldest = self.place(shape);
        let newest = if oldest == 0 { shape.length } else { oldest } - 1;
        let Origin { time, first, .. } = self.origins[oldest];
        if self.rising >= shape.length as u64 {
            return (time, first, self.origins[newest].last);
        }
        let first = self.origins.iter().map(|origin| origin.first).min().unwrap_or_default();
        let last = self.origins.iter().map(|origin| origin.last).max().unwrap_or_default();
        (time, first, last)
    }
}
