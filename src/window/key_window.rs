//! The open window of one key.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::{Last, Unchanged};
use super::pending::{Head, Pending};
use super::ring::{Origin, Ring};
use super::{ChannelRules, Segments, WindowShape, WindowStats};
use crate::sink::SegmentMeta;
use crate::source::Lane;
use crate::templates::{self, Tag, Templates};

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
/// last `length` final ones. What every record needs comes first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Saved", into = "Saved")]
#[repr(C)]
pub(super) struct KeyWindow {
    ring: Ring,
    /// Newest event time seen, late records aside.
    newest: Option<i64>,
    /// What many windows have nothing of.
    more: Option<Box<More>>,
    /// Samples ahead of the watermark.
    pending: Pending,
    sequence: u64,
    run: u64,
}

/// What only some settings and some streams need.
#[derive(Clone, Debug, Default)]
struct More {
    bin: Option<Box<Bin>>,
    /// The last bin, for the next one to be made of.
    spare: Option<Box<Bin>>,
    unchanged: Unchanged,
    history: Last,
    /// Event time of the last line.
    last_line: Option<i64>,
    /// Late records in a row, and the newest time among them.
    late_streak: usize,
    late_newest: i64,
}

/// A window as it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    newest: Option<i64>,
    late_streak: usize,
    late_newest: i64,
    pending: Pending,
    bin: Option<Box<Bin>>,
    ring: Ring,
    last: Option<i64>,
    sequence: u64,
    run: u64,
    unchanged: Unchanged,
    history: Last,
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

impl From<Saved> for KeyWindow {
    fn from(saved: Saved) -> Self {
        let Saved { newest, late_streak, late_newest, pending, bin, ring, .. } = saved;
        let Saved { sequence, run, unchanged, history, last_line, .. } = saved;
        let some = bin.is_some() || last_line.is_some() || late_streak > 0;
        let more =
            More { bin, spare: None, unchanged, history, last_line, late_streak, late_newest };
        let some = some || !more.unchanged.is_empty() || !more.history.is_empty();
        let more = some.then(|| Box::new(more));
        Self { ring, newest, more, pending, sequence, run }
    }
}

impl From<KeyWindow> for Saved {
    fn from(window: KeyWindow) -> Self {
        let KeyWindow { ring, newest, more, pending, sequence, run } = window;
        let last = ring.last_time(ring.channels());
        let more = more.map(|more| *more).unwrap_or_default();
        let More { bin, unchanged, history, last_line, late_streak, late_newest, .. } = more;
        Self {
            newest,
            late_streak,
            late_newest,
            pending,
            bin,
            ring,
            last,
            sequence,
            run,
            unchanged,
            history,
            last_line,
        }
    }
}

impl KeyWindow {
    pub fn new(shape: &WindowShape, first_sequence: u64, first_run: u64) -> Self {
        Self {
            ring: Ring::new(shape),
            newest: None,
            more: None,
            pending: Pending::default(),
            sequence: first_sequence,
            run: first_run,
        }
    }

    /// Whether samples wait for the watermark: without any, [`KeyWindow::advance`] does nothing.
    pub fn holds_samples_back(&self) -> bool {
        !self.pending.is_empty() || self.bin().is_some()
    }

    /// Reads of memory what the next sample needs, so that it is there by then; what is returned
    /// has no meaning.
    pub fn preview(&self, shape: &WindowShape, key: &Arc<str>) -> u32 {
        let pending = if shape.lateness > 0 { self.pending.preview() } else { 0 };
        // The segment will count among those that the key's text is shared by.
        let text = if self.ring.is_due(shape, 1) { key.as_bytes().first() } else { None };
        pending ^ self.ring.preview(shape) ^ text.copied().map_or(0, u32::from)
    }

    fn bin(&self) -> Option<&Bin> {
        self.more.as_ref()?.bin.as_deref()
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
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
            self.more = None;
            stats.clock_resets += 1;
        }
        if let Some(more) = &mut self.more {
            more.late_streak = 0;
        }
        let newest = self.newest.map_or(time, |newest| newest.max(time));
        self.newest = Some(newest);

        if cut.shape.lateness == 0 {
            self.take(cut, record, out, stats);
        } else {
            let head = Head { time, offset: record.offset, tag: record.tag };
            self.pending.insert(head, record.values);
            self.release(cut, newest.saturating_sub(cut.shape.lateness), out, stats);
        }
        if let Some(width) = cut.shape.resample {
            self.close_bin(cut, width, newest.saturating_sub(cut.shape.lateness), out);
        }
    }

    /// The time before which no record can be put in order any more: samples may be final ahead of
    /// the key's own watermark, by [`KeyWindow::advance`].
    fn closed_until(&self, shape: &WindowShape) -> Option<i64> {
        let last = self.ring.last_time(shape.channels);
        let Some(width) = shape.resample else { return last };
        let open = self.bin().map(|bin| bin.start);
        open.or(last.map(|last| last.saturating_add(width)))
    }

    /// As many late records in a row as a window holds, themselves in order: not stragglers.
    fn is_clock_reset(&mut self, length: usize, time: i64) -> bool {
        let More { late_streak, late_newest, .. } = self.more();
        let goes_on = *late_streak > 0 && time >= *late_newest;
        *late_streak = if goes_on { *late_streak + 1 } else { 1 };
        *late_newest = time;
        *late_streak >= length
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
        let mut take = |Head { time, offset, tag }: Head, values: &mut [f32]| {
            self.take(cut, &mut Record { time, offset, values, tag }, out, stats);
        };
        while pending.pop(watermark, &mut take) {}
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
            let last = self.more().last_line.replace(time);
            let silence = last.map(|last| templates::silence(time.saturating_sub(last)));
            values[templates::SILENCE] = silence.unwrap_or(f32::NAN);
        }
        if !cut.shape.groups.is_empty() {
            stats.stuck += self.more().unchanged.doubt(cut.rules(), time, values);
        }
        let Some(width) = cut.shape.resample else {
            if self.is_gap(cut.shape, time) {
                self.start_run();
                stats.gaps += 1;
            }
            let origin = Origin { time, first: offset, last: offset };
            self.append(cut, origin, tag, |sample| sample.copy_from_slice(values), out);
            return;
        };
        let start = time.div_euclid(width).saturating_mul(width);
        if self.bin().is_some_and(|bin| bin.start != start) {
            self.close_bin(cut, width, i64::MAX, out);
        }
        if self.bin().is_none() && self.is_gap(cut.shape, start) {
            self.start_run();
            stats.gaps += 1;
        }
        let More { bin, spare, .. } = self.more();
        bin.get_or_insert_with(|| Bin::begin(spare.take(), start, offset, cut.shape.observed))
            .add(offset, values, tag);
    }

    fn is_gap(&self, shape: &WindowShape, time: i64) -> bool {
        match (self.ring.last_time(shape.channels), shape.max_gap) {
            (Some(last), Some(max_gap)) => time.saturating_sub(last) > max_gap,
            _ => false,
        }
    }

    fn start_run(&mut self) {
        self.run += 1;
        self.ring.start_run();
    }

    /// Turns the open bin into a sample once no record at or before `watermark` can reach it, with
    /// missing samples for the bins in between.
    fn close_bin(&mut self, cut: &Cut<'_>, width: i64, watermark: i64, out: &mut Segments) {
        let is_over = |bin: &mut Box<Bin>| bin.start.saturating_add(width) <= watermark;
        let Some(bin) = self.more.as_mut().and_then(|more| more.bin.take_if(is_over)) else {
            return;
        };
        if let Some(last) = self.ring.last_time(cut.shape.channels) {
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
                    self.ring.skip(rounds * round);
                    time = time.saturating_add(width.saturating_mul((rounds * round) as i64));
                }
                let origin = Origin { time, first: bin.first_offset, last: bin.first_offset };
                self.append(cut, origin, None, |sample| sample.fill(f32::NAN), out);
                time = time.saturating_add(width);
            }
        }
        let origin = Origin { time: bin.start, first: bin.first_offset, last: bin.last_offset };
        self.append(cut, origin, bin.tag, |sample| bin.write_means(sample), out);
        self.more().spare = Some(bin);
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
        let sample = self.ring.next(cut.shape, origin, tag);
        let (observed, ages) = sample.split_at_mut(cut.shape.observed);
        write(observed);
        if !cut.shape.groups.is_empty() || cut.shape.time_since_last {
            let history = &mut self.more.get_or_insert_default().history;
            history.carry(cut.rules(), time, observed, ages);
        }
        if self.ring.is_due(cut.shape, 0) && self.ring.copy_into(cut.shape, out) {
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
            out.fresh.push(self.ring.fresh());
            out.templates.extend(cut.templates.map(|templates| self.ring.templates(templates)));
            self.sequence += 1;
            self.ring.cut();
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
