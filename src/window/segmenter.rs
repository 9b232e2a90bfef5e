//! All keys of one lane.

use std::ops::Range;

use arrow::array::{Array, AsArray, Float32Array, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type, TimestampMicrosecondType};
use serde::{Deserialize, Serialize};

use super::key_window::{Cut, KeyWindow, Record};
use super::{Segments, WindowShape};
use crate::checkpoint::{CheckpointError, Part, SavedWindows, Store};
use crate::decode::{
    FIRST_CHANNEL_COLUMN, KEY_COLUMN, MESSAGE_COLUMN, OFFSET_COLUMN, SEVERITY_COLUMN, TIME_COLUMN,
};
use crate::keys::{Keys, State};
use crate::source::Lane;
use crate::templates::Templates;

/// Records that cannot be cut.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// A batch that is not in [`crate::decode::records_schema`].
    #[error("{lane}: expected columns key, time, offset and {channels} channels, found {found}")]
    Columns { lane: Lane, channels: usize, found: String },
    /// The windows of keys that were not in memory.
    #[error("windows of {lane}: {reason}")]
    Store { lane: Lane, reason: CheckpointError },
}

/// What happened to records since the last [`Segmenter::take_stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowStats {
    /// Records behind their key's watermark, left out.
    pub late: u64,
    /// Runs ended by a gap longer than `max_gap`.
    pub gaps: u64,
    /// Keys whose clock was set back for good.
    pub clock_resets: u64,
    /// Values taken for missing because they had not changed for too long.
    pub stuck: u64,
    /// Keys evicted to make room.
    pub evicted: u64,
}

/// Cuts keyed record batches of one lane into event-time segments.
#[derive(Clone, Debug)]
pub struct Segmenter {
    lane: Lane,
    progress: Progress,
    keys: Keys<KeyWindow>,
    /// Where records are lines.
    templates: Option<Templates>,
    stats: WindowStats,
}

/// What is not of one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Progress {
    shape: WindowShape,
    /// Sequence number from which a new key counts: beyond those of all dropped keys, so that a
    /// key that comes back never repeats one.
    first_sequence: u64,
    /// Likewise the number of its first run: segments before and after are not adjacent.
    first_run: u64,
    /// Newest event time over all keys.
    max_time: Option<i64>,
}

impl Progress {
    fn watermark(&self) -> Option<i64> {
        self.max_time.map(|time| time.saturating_sub(self.shape.lateness))
    }
}

impl State for KeyWindow {
    fn is_open(&self) -> bool {
        self.holds_samples_back()
    }
}

/// Records that are looked up together.
const BLOCK: usize = 64;

/// Writes `rows` of the columns as `[rows, columns]`; NaN is missing.
fn by_row(columns: &[&Float32Array], rows: Range<usize>, samples: &mut [f32]) {
    for (channel, column) in columns.iter().enumerate() {
        let places = samples.iter_mut().skip(channel).step_by(columns.len());
        let values = &column.values()[rows.clone()];
        match column.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => places.zip(values).for_each(|(place, value)| *place = *value),
            Some(nulls) => {
                for ((place, value), row) in places.zip(values).zip(rows.clone()) {
                    *place = if nulls.is_valid(row) { *value } else { f32::NAN };
                }
            }
        }
    }
}

impl Segmenter {
    /// A segmenter without keys, which holds `max_keys` of them, at least one, between two batches.
    pub fn new(lane: Lane, shape: WindowShape, max_keys: usize) -> Self {
        let templates = shape.lines.then(Templates::default);
        let progress = Progress { shape, first_sequence: 0, first_run: 0, max_time: None };
        let keys = Keys::new(max_keys, None);
        Self { lane, progress, keys, templates, stats: WindowStats::default() }
    }

    /// Lets the windows of further keys wait in `store`, where they would be dropped otherwise.
    pub fn with_store(mut self, store: Option<Store>) -> Self {
        self.keys = self.keys.with_store(store);
        self
    }

    /// The segmenter that [`Segmenter::save`] saved, if it cut to `shape`.
    ///
    /// # Errors
    /// If it cut to another shape, or what was saved is not there or does not verify.
    pub fn load(
        lane: Lane,
        shape: &WindowShape,
        max_keys: usize,
        saved: &SavedWindows,
        store: &Store,
    ) -> Result<Self, CheckpointError> {
        let failed =
            |reason: String| CheckpointError::State { what: format!("windows of {lane}"), reason };
        let progress: Progress =
            postcard::from_bytes(&saved.lane).map_err(|error| failed(error.to_string()))?;
        if progress.shape != *shape {
            return Err(failed(format!(
                "saved as {:?}, the pipeline file says {shape:?}: [windows] or records.channels \
                 changed",
                progress.shape
            )));
        }
        let templates = if shape.lines { Some(Self::saved_templates(saved)?) } else { None };
        let keys = Keys::load(&saved.keys, max_keys, store, false)?;
        Ok(Self { lane, progress, keys, templates, stats: WindowStats::default() })
    }

    /// The watermark of a segmenter that was saved, microseconds.
    ///
    /// # Errors
    /// If the bytes are not a segmenter's.
    pub fn saved_watermark(saved: &SavedWindows) -> Result<Option<i64>, CheckpointError> {
        let progress: Progress =
            postcard::from_bytes(&saved.lane).map_err(|error| CheckpointError::State {
                what: "windows of a lane".to_owned(),
                reason: error.to_string(),
            })?;
        Ok(progress.watermark())
    }

    /// The templates of a segmenter that was saved; none where records are no lines.
    ///
    /// # Errors
    /// If the bytes are not a segmenter's.
    pub fn saved_templates(saved: &SavedWindows) -> Result<Templates, CheckpointError> {
        if saved.templates.is_empty() {
            return Ok(Templates::default());
        }
        postcard::from_bytes(&saved.templates).map_err(|error| CheckpointError::State {
            what: "templates of a lane".to_owned(),
            reason: error.to_string(),
        })
    }

    /// Adds what changed since the last time to `part`; returns all that [`Segmenter::load`] needs
    /// to go on as if nothing had happened. Counts are not part of it.
    ///
    /// # Errors
    /// If a window cannot be turned into bytes, or the store fails.
    pub fn save(&mut self, part: &Part) -> Result<SavedWindows, CheckpointError> {
        let failed = |error: postcard::Error| CheckpointError::State {
            what: format!("windows of {}", self.lane),
            reason: error.to_string(),
        };
        let lane = postcard::to_stdvec(&self.progress).map_err(failed)?;
        let templates = self.templates.as_ref().map(postcard::to_stdvec);
        let templates = templates.transpose().map_err(failed)?.unwrap_or_default();
        Ok(SavedWindows { lane, templates, keys: self.keys.save(part)? })
    }

    /// Adds one batch in [`crate::decode::records_schema`], or of lines in
    /// [`crate::decode::log_schema`]; returns the segments it completed.
    ///
    /// # Errors
    /// If the batch has other columns, or the store fails.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<Segments, WindowError> {
        let mismatch = || WindowError::Columns {
            lane: self.lane.clone(),
            channels: self.progress.shape.observed,
            found: batch
                .schema()
                .fields()
                .iter()
                .map(|f| f.to_string())
                .collect::<Vec<_>>()
                .join(", "),
        };
        let values = if self.templates.is_some() {
            SEVERITY_COLUMN + 1 - FIRST_CHANNEL_COLUMN
        } else {
            self.progress.shape.observed
        };
        if batch.num_columns() != FIRST_CHANNEL_COLUMN + values {
            return Err(mismatch());
        }
        let keys = batch.column(KEY_COLUMN).as_string_opt::<i32>().ok_or_else(mismatch)?;
        let times = batch
            .column(TIME_COLUMN)
            .as_primitive_opt::<TimestampMicrosecondType>()
            .ok_or_else(mismatch)?
            .values();
        let offsets = batch
            .column(OFFSET_COLUMN)
            .as_primitive_opt::<Int64Type>()
            .ok_or_else(mismatch)?
            .values();
        let texts = match &self.templates {
            Some(_) => {
                let texts = batch.column(MESSAGE_COLUMN).as_string_opt::<i32>();
                Some(texts.ok_or_else(mismatch)?)
            }
            None => None,
        };
        let first = if texts.is_some() { SEVERITY_COLUMN } else { FIRST_CHANNEL_COLUMN };
        let columns = batch.columns()[first..]
            .iter()
            .map(|column| column.as_primitive_opt::<Float32Type>().ok_or_else(mismatch))
            .collect::<Result<Vec<_>, _>>()?;

        let Self { lane, progress, keys: windows, templates, stats } = self;
        let failed = |reason| WindowError::Store { lane: lane.clone(), reason };
        windows.fetch(keys.iter().flatten()).map_err(failed)?;
        let shape = &progress.shape;
        let mut out = Segments::default();
        let mut samples = vec![f32::NAN; BLOCK * shape.observed];
        let mut slots = Vec::with_capacity(BLOCK);
        for start in (0..batch.num_rows()).step_by(BLOCK) {
            let rows = start..batch.num_rows().min(start + BLOCK);
            windows.touch_all(
                rows.clone().map(|row| keys.value(row)),
                || KeyWindow::new(shape, progress.first_sequence, progress.first_run),
                |key, window| window.preview(shape, key),
                &mut slots,
            );
            if texts.is_none() {
                by_row(&columns, rows.clone(), &mut samples);
            }
            let samples = samples.chunks_exact_mut(shape.observed);
            for ((row, slot), sample) in rows.zip(&slots).zip(samples) {
                let tag = templates.as_mut().zip(texts).map(|(templates, texts)| {
                    let severity = columns[0].is_valid(row).then(|| columns[0].value(row));
                    let (channels, tag) =
                        templates.read(texts.value(row), severity.unwrap_or(f32::NAN));
                    sample.copy_from_slice(&channels);
                    tag
                });
                let time = times[row];
                progress.max_time = Some(progress.max_time.map_or(time, |max| max.max(time)));
                let (key, window) = windows.at(*slot);
                let cut = Cut { shape, lane, key, templates: templates.as_ref() };
                let mut record = Record { time, offset: offsets[row], values: sample, tag };
                window.push(&cut, &mut record, &mut out, stats);
            }
        }
        let Progress { first_sequence, first_run, .. } = progress;
        let evicted = windows.shrink(|window| {
            *first_sequence = (*first_sequence).max(window.next_sequence());
            *first_run = (*first_run).max(window.next_run());
        });
        stats.evicted += evicted.map_err(failed)? as u64;
        Ok(out)
    }

    /// Declares every record at or before `watermark` (microseconds) to have come: what a silent
    /// lane does once others have gone on without it. `i64::MAX` ends the stream. Evicted keys
    /// are no exception.
    ///
    /// # Errors
    /// If the store fails.
    pub fn advance(&mut self, watermark: i64) -> Result<Segments, WindowError> {
        self.advance_in_parts(watermark, usize::MAX, |_| {})
    }

    /// As [`Segmenter::advance`], but hands segments on to `deliver` as soon as there are `most`,
    /// and returns the last ones.
    ///
    /// # Errors
    /// If the store fails.
    pub fn advance_in_parts(
        &mut self,
        watermark: i64,
        most: usize,
        mut deliver: impl FnMut(Segments),
    ) -> Result<Segments, WindowError> {
        let mut out = Segments::default();
        let Self { lane, progress: Progress { shape, .. }, keys, templates, stats } = self;
        let templates = templates.as_ref();
        keys.visit_open(|key, window| {
            let cut = Cut { shape, lane, key, templates };
            window.advance(&cut, watermark, &mut out, stats);
            if out.len() >= most {
                deliver(std::mem::take(&mut out));
            }
        })
        .map_err(|reason| WindowError::Store { lane: lane.clone(), reason })?;
        Ok(out)
    }

    /// Newest event time seen less the lateness, microseconds.
    pub fn watermark(&self) -> Option<i64> {
        self.progress.watermark()
    }

    /// Holds at most `max_keys` keys in memory, from the next batch on.
    pub fn limit_keys(&mut self, max_keys: usize) {
        self.keys.limit(max_keys);
    }

    /// Number of keys in memory.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// The lane served.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Counts since the last call.
    pub fn take_stats(&mut self) -> WindowStats {
        std::mem::take(&mut self.stats)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, Float32Array, Int64Array, StringArray, TimestampMicrosecondArray,
    };
    use proptest::prelude::*;

    use std::path::Path;
    use std::slice::from_ref;
    use std::sync::Arc;

    use rustc_hash::FxHashMap;

    use super::super::{ChannelRules, GroupRules};
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::config;
    use crate::decode::{log_schema, records_schema};
    use crate::templates::{CHANNELS, SILENCE};

    /// One channel, windows of 3 samples at every sample, no lateness.
    fn shape() -> WindowShape {
        WindowShape { length: 3, ..WindowShape::default() }
    }

    fn segmenter(shape: &WindowShape) -> Segmenter {
        Segmenter::new(Lane::new("plant", 0), shape.clone(), 100)
    }

    fn store(folder: &Path) -> Store {
        let config = config::Checkpoint {
            store: Some(folder.to_owned().into()),
            ..config::Checkpoint::default()
        };
        Store::open(&config).unwrap().unwrap()
    }

    /// Another segmenter that goes on where `segmenter` is.
    fn saved_and_loaded(segmenter: &mut Segmenter, store: &Store, max_keys: usize) -> Segmenter {
        let part = Part::new(Checkpoint::new_id());
        let saved = segmenter.save(&part).unwrap();
        store.save_part(&part).unwrap();
        let (lane, shape) = (segmenter.lane.clone(), &segmenter.progress.shape);
        Segmenter::load(lane, shape, max_keys, &saved, store).unwrap()
    }

    /// A record: key, time, offset, values.
    #[derive(Clone, Debug)]
    struct Record(&'static str, i64, i64, Vec<f32>);

    fn batch(channels: usize, records: &[Record]) -> RecordBatch {
        let names: Vec<String> = (0..channels).map(|channel| format!("c{channel}")).collect();
        let times = records.iter().map(|record| record.1);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(records.iter().map(|record| record.0))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
            Arc::new(Int64Array::from_iter_values(records.iter().map(|record| record.2))),
        ];
        for channel in 0..channels {
            let values = records.iter().map(|record| record.3[channel]);
            let observed = values.map(|value| (!value.is_nan()).then_some(value));
            columns.push(Arc::new(Float32Array::from_iter(observed)));
        }
        RecordBatch::try_new(records_schema(&names), columns).unwrap()
    }

    /// Records of key `m` at `times`; each value is its time, each offset its place.
    fn at_times(times: &[i64]) -> RecordBatch {
        let records: Vec<_> = (0..)
            .zip(times)
            .map(|(offset, time)| Record("m", *time, offset, vec![*time as f32]))
            .collect();
        batch(1, &records)
    }

    #[test]
    fn on_a_grid_the_last_value_is_carried_and_its_age_follows() {
        let rules = ChannelRules { carry: Some(2), stuck: None };
        let shape = WindowShape {
            channels: 4,
            observed: 2,
            length: 5,
            stride: 5,
            resample: Some(1),
            max_gap: Some(10),
            time_since_last: true,
            groups: vec![GroupRules { name: None, channels: vec![rules, ChannelRules::default()] }],
            ..WindowShape::default()
        };
        let mut segmenter = Segmenter::new(Lane::new("plant", 0), shape.clone(), 10);
        let records = [Record("m", 0, 0, vec![7.0, 1.0]), Record("m", 4, 1, vec![f32::NAN, 2.0])];
        let mut segments = segmenter.push(&batch(2, &records)).unwrap();
        segments.append(&mut segmenter.advance(i64::MAX).unwrap());
        let values = &values(&segments, &shape)[0];
        assert_eq!(values[..10], [7.0, 7.0, 7.0, -1.0, -1.0, 1.0, -1.0, -1.0, -1.0, 2.0]);
        let micros: Vec<i64> = values[10..]
            .iter()
            .map(|age| (f64::from(*age).exp_m1() * 1e6).round() as i64)
            .collect();
        assert_eq!(micros, [0, 1, 2, 3, 4, 0, 1, 2, 3, 0]);
    }

    #[test]
    fn a_value_that_stays_too_long_is_missing_and_counted() {
        let rules = ChannelRules { carry: None, stuck: Some(2) };
        let shape = WindowShape {
            length: 5,
            groups: vec![GroupRules { name: None, channels: vec![rules] }],
            ..WindowShape::default()
        };
        let mut segmenter = Segmenter::new(Lane::new("plant", 0), shape.clone(), 10);
        let records: Vec<_> = (0..5).map(|time| Record("m", time, time, vec![3.0])).collect();
        let segments = segmenter.push(&batch(1, &records)).unwrap();
        assert_eq!(values(&segments, &shape)[0], [3.0, 3.0, 3.0, -1.0, -1.0]);
        assert_eq!(segmenter.take_stats().stuck, 2);
    }

    /// The values of every segment, -1 where missing.
    fn values(segments: &Segments, shape: &WindowShape) -> Vec<Vec<f32>> {
        let size = shape.channels * shape.length;
        (0..segments.len())
            .map(|at| segments.segment(at, size))
            .map(|segment| segment.iter().map(|v| if v.is_nan() { -1.0 } else { *v }).collect())
            .collect()
    }

    fn sequences(segments: &Segments) -> Vec<(&str, u64)> {
        segments.meta.iter().map(|meta| (&*meta.key, meta.sequence)).collect()
    }

    /// Lines of key `m`, a second apart.
    fn lines(first: i64, texts: &[&str]) -> RecordBatch {
        let times = (first..).map(|at| at * 1_000_000).take(texts.len());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(texts.iter().map(|_| "m"))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
            Arc::new(Int64Array::from_iter_values((first..).take(texts.len()))),
            Arc::new(StringArray::from_iter_values(texts)),
            Arc::new(Float32Array::from_iter(texts.iter().map(|_| Some(1.0)))),
        ];
        RecordBatch::try_new(log_schema(), columns).unwrap()
    }

    #[test]
    fn segments_of_lines_name_the_templates_that_stand_out_and_know_the_silence() {
        let width = CHANNELS.len();
        let shape = WindowShape {
            channels: width,
            observed: width,
            length: 4,
            stride: 4,
            lateness: 500_000,
            lines: true,
            ..WindowShape::default()
        };
        let mut segmenter = segmenter(&shape);
        let usual: Vec<String> = (0..400).map(|at| format!("job {at} done")).collect();
        let usual: Vec<&str> = usual.iter().map(String::as_str).collect();
        segmenter.push(&lines(0, &usual)).unwrap();
        segmenter.advance(i64::MAX).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut loaded = saved_and_loaded(&mut segmenter, &store(folder.path()), 100);
        let odd = ["job 1 done", "disk full on sda1", "job 2 done", "job 3 done"];
        for segmenter in [&mut segmenter, &mut loaded] {
            let mut segments = segmenter.push(&lines(1000, &odd)).unwrap();
            segments.append(&mut segmenter.advance(i64::MAX).unwrap());
            assert_eq!(segments.len(), 1);
            let named: Vec<&str> = segments.templates[0].iter().map(|one| &*one.text).collect();
            assert_eq!(named, ["disk full on sda<*>", "job <*> done"]);
            assert!(segments.templates[0][0].weight > 10.0 * segments.templates[0][1].weight);
            let silences = &segments.values[SILENCE * 4..][..4];
            assert_eq!(silences, [601.0, 1.0, 1.0, 1.0]);
        }
    }

    #[test]
    fn lines_cannot_be_cut_without_their_text() {
        let width = CHANNELS.len();
        let shape = WindowShape { channels: width, observed: width, lines: true, ..shape() };
        let error = segmenter(&shape).push(&at_times(&[1])).err().unwrap().to_string();
        assert!(error.contains("found"), "{error}");
    }

    #[test]
    fn segments_of_length_samples_start_every_stride_samples() {
        let shape = WindowShape { stride: 2, ..shape() };
        let mut segmenter = segmenter(&shape);
        let segments = segmenter.push(&at_times(&[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
        assert_eq!(values(&segments, &shape), [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0], [5.0, 6.0, 7.0]]);
        assert_eq!(sequences(&segments), [("m", 0), ("m", 1), ("m", 2)]);
        assert_eq!(segments.runs, [0, 0, 0]);
        let spans: Vec<_> =
            segments.meta.iter().map(|meta| (meta.window_start, meta.window_end)).collect();
        assert_eq!(spans, [(1, 3), (3, 5), (5, 7)]);
    }

    #[test]
    fn values_are_laid_out_channel_by_channel_with_nan_where_missing() {
        let shape = WindowShape { channels: 2, observed: 2, ..shape() };
        let records = [
            Record("m", 1, 0, vec![1.0, 10.0]),
            Record("m", 2, 1, vec![f32::NAN, 20.0]),
            Record("m", 3, 2, vec![3.0, f32::NAN]),
        ];
        let segments = segmenter(&shape).push(&batch(2, &records)).unwrap();
        assert_eq!(values(&segments, &shape), [[1.0, -1.0, 3.0, 10.0, 20.0, -1.0]]);
    }

    #[test]
    fn fresh_counts_the_samples_that_no_earlier_segment_held() {
        for (stride, expected) in [(1, vec![3, 1, 1]), (2, vec![3, 2]), (5, vec![3])] {
            let shape = WindowShape { stride, ..shape() };
            let segments = segmenter(&shape).push(&at_times(&[1, 2, 3, 4, 5])).unwrap();
            assert_eq!(segments.fresh, expected, "stride {stride}");
        }
        // Between windows farther apart than they are long, samples belong to none.
        let shape = WindowShape { stride: 5, ..shape() };
        let segments = segmenter(&shape).push(&at_times(&[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
        assert_eq!(segments.fresh, [3, 3]);
    }

    #[test]
    fn keys_have_windows_of_their_own() {
        let records: Vec<_> = (0..8)
            .map(|n| Record(["m", "n"][n as usize % 2], 10 - n % 2 * 5 + n, n, vec![n as f32]))
            .collect();
        let segments = segmenter(&shape()).push(&batch(1, &records)).unwrap();
        assert_eq!(sequences(&segments), [("m", 0), ("n", 0), ("m", 1), ("n", 1)]);
        assert_eq!(
            values(&segments, &shape()),
            [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0], [2.0, 4.0, 6.0], [3.0, 5.0, 7.0]]
        );
    }

    #[test]
    fn resampling_averages_bins_and_leaves_empty_ones_missing() {
        let shape = WindowShape { length: 4, resample: Some(10), max_gap: Some(100), ..shape() };
        let mut segmenter = segmenter(&shape);
        let mut segments = segmenter.push(&at_times(&[-4, 2, 4, 31, 39])).unwrap();
        assert!(segments.is_empty());
        segments.append(&mut segmenter.push(&at_times(&[40])).unwrap());
        segments.append(&mut segmenter.advance(i64::MAX).unwrap());
        // The bins begin at -10, 0, 10, 20, 30 and 40.
        assert_eq!(
            values(&segments, &shape),
            [[-4.0, 3.0, -1.0, -1.0], [3.0, -1.0, -1.0, 35.0], [-1.0, -1.0, 35.0, 40.0]]
        );
        assert_eq!(segments.meta[0].window_start, -10);
    }

    #[test]
    fn a_window_without_one_observed_value_is_no_segment() {
        let shape = WindowShape { resample: Some(1), max_gap: Some(100), ..shape() };
        let mut segmenter = segmenter(&shape);
        let mut segments = segmenter.push(&at_times(&[1, 2, 3, 8])).unwrap();
        segments.append(&mut segmenter.advance(i64::MAX).unwrap());
        assert_eq!(
            values(&segments, &shape),
            [[1.0, 2.0, 3.0], [2.0, 3.0, -1.0], [3.0, -1.0, -1.0], [-1.0, -1.0, 8.0]]
        );
        assert_eq!(sequences(&segments), [("m", 0), ("m", 1), ("m", 2), ("m", 3)]);
        // The windows that end at 6 and 7 held nothing: their samples are fresh in the next.
        assert_eq!(segments.fresh, [3, 1, 1, 3]);
    }

    #[test]
    fn a_gap_of_ages_is_as_soon_over_as_a_short_one() {
        for (length, stride) in [(3, 2), (4, 1), (4, 3)] {
            let shape = WindowShape { length, stride, resample: Some(1), max_gap: None, ..shape() };
            let after = |gap: i64| {
                let mut segmenter = segmenter(&shape);
                let times = [1, 2, 3, 4, 4 + gap, 5 + gap, 6 + gap, 7 + gap, 8 + gap];
                let mut segments = segmenter.push(&at_times(&times)).unwrap();
                segments.append(&mut segmenter.advance(i64::MAX).unwrap());
                let found = segments.meta.iter().zip(&segments.fresh);
                let found = found.map(|(meta, fresh)| {
                    let (start, end) = (meta.window_start, meta.window_end);
                    let moved = |time: i64| if time > 4 + gap / 2 { time - gap } else { time };
                    (meta.sequence, moved(start), moved(end), *fresh)
                });
                found.collect::<Vec<_>>()
            };
            let round = (length * stride) as i64;
            for gap in 30..30 + round {
                let short = after(gap);
                assert!(short.iter().any(|(_, _, end, _)| *end > 4), "{short:?}");
                assert_eq!(after(gap + 7 * round), short, "{gap}");
                assert_eq!(after(gap + 1_000_000_000_000 * round), short, "{gap}");
            }
        }
    }

    #[test]
    fn a_gap_longer_than_max_gap_starts_a_new_run() {
        let shape = WindowShape { max_gap: Some(10), ..shape() };
        let mut segmenter = segmenter(&shape);
        let segments = segmenter.push(&at_times(&[1, 2, 12, 23, 24, 25, 26])).unwrap();
        assert_eq!(
            values(&segments, &shape),
            [[1.0, 2.0, 12.0], [23.0, 24.0, 25.0], [24.0, 25.0, 26.0]]
        );
        assert_eq!(segments.runs, [0, 1, 1]);
        assert_eq!(segments.fresh, [3, 3, 1]);
        assert_eq!(segmenter.take_stats(), WindowStats { gaps: 1, ..WindowStats::default() });
    }

    #[test]
    fn a_gap_on_the_grid_starts_a_new_run_without_missing_samples() {
        let shape = WindowShape { resample: Some(10), max_gap: Some(30), ..shape() };
        let mut segmenter = segmenter(&shape);
        let mut segments = segmenter.push(&at_times(&[0, 10, 20, 60, 70, 80])).unwrap();
        segments.append(&mut segmenter.advance(i64::MAX).unwrap());
        assert_eq!(values(&segments, &shape), [[0.0, 10.0, 20.0], [60.0, 70.0, 80.0]]);
        assert_eq!(segments.runs, [0, 1]);
        assert_eq!(segmenter.take_stats().gaps, 1);
    }

    #[test]
    fn records_out_of_order_within_lateness_are_put_in_order() {
        let shape = WindowShape { lateness: 5, ..shape() };
        let mut segmenter = segmenter(&shape);
        let segments = segmenter.push(&at_times(&[10, 8, 12, 9, 11, 17])).unwrap();
        assert_eq!(
            values(&segments, &shape),
            [[8.0, 9.0, 10.0], [9.0, 10.0, 11.0], [10.0, 11.0, 12.0]]
        );
        assert_eq!(segmenter.take_stats(), WindowStats::default());
    }

    #[test]
    fn late_records_are_counted_and_left_out() {
        let shape = WindowShape { lateness: 5, ..shape() };
        let mut segmenter = segmenter(&shape);
        let mut segments = segmenter.push(&at_times(&[10, 20, 14, 15, 30])).unwrap();
        segments.append(&mut segmenter.advance(i64::MAX).unwrap());
        assert_eq!(values(&segments, &shape), [[10.0, 15.0, 20.0], [15.0, 20.0, 30.0]]);
        assert_eq!(segmenter.take_stats(), WindowStats { late: 1, ..WindowStats::default() });
        assert_eq!(segmenter.take_stats(), WindowStats::default());
    }

    #[test]
    fn a_record_behind_what_advance_made_final_is_late() {
        let shape = WindowShape { lateness: 100, ..shape() };
        let mut segmenter = segmenter(&shape);
        segmenter.push(&at_times(&[10, 20, 30])).unwrap();
        let first = segmenter.advance(25).unwrap();
        assert!(first.is_empty());
        segmenter.push(&at_times(&[19, 20, 22])).unwrap();
        let segments = segmenter.advance(i64::MAX).unwrap();
        assert_eq!(
            values(&segments, &shape),
            [[10.0, 20.0, 20.0], [20.0, 20.0, 22.0], [20.0, 22.0, 30.0]]
        );
        assert_eq!(segmenter.take_stats().late, 1);
    }

    #[test]
    fn a_record_of_a_bin_that_advance_closed_is_late() {
        let shape =
            WindowShape { resample: Some(10), max_gap: Some(100), lateness: 100, ..shape() };
        let mut segmenter = segmenter(&shape);
        segmenter.push(&at_times(&[5, 15])).unwrap();
        segmenter.advance(22).unwrap();
        segmenter.push(&at_times(&[18, 3, 21])).unwrap();
        let segments = segmenter.advance(i64::MAX).unwrap();
        assert_eq!(values(&segments, &shape), [[5.0, 15.0, 21.0]]);
        assert_eq!(segmenter.take_stats().late, 2);
    }

    #[test]
    fn a_stream_goes_on_after_its_end_was_declared() {
        let shape = WindowShape { lateness: 5, ..shape() };
        let mut segmenter = segmenter(&shape);
        segmenter.push(&at_times(&[1, 2])).unwrap();
        assert!(segmenter.advance(i64::MAX).unwrap().is_empty());
        segmenter.push(&at_times(&[3])).unwrap();
        assert_eq!(values(&segmenter.advance(i64::MAX).unwrap(), &shape), [[1.0, 2.0, 3.0]]);
    }

    #[test]
    fn a_clock_set_back_for_good_starts_a_new_run() {
        let shape = WindowShape { lateness: 5, ..shape() };
        let mut segmenter = segmenter(&shape);
        let mut segments =
            segmenter.push(&at_times(&[1000, 1001, 1002, 1, 2, 3, 4, 5, 6])).unwrap();
        segments.append(&mut segmenter.advance(i64::MAX).unwrap());
        assert_eq!(
            values(&segments, &shape),
            [[1000.0, 1001.0, 1002.0], [3.0, 4.0, 5.0], [4.0, 5.0, 6.0]]
        );
        assert_eq!(segments.runs, [0, 1, 1]);
        assert_eq!(sequences(&segments), [("m", 0), ("m", 1), ("m", 2)]);
        let expected = WindowStats { late: 2, clock_resets: 1, ..WindowStats::default() };
        assert_eq!(segmenter.take_stats(), expected);
    }

    #[test]
    fn stragglers_between_timely_records_are_no_clock_reset() {
        let mut segmenter = segmenter(&shape());
        let times: Vec<i64> = (0..10).flat_map(|n| [1000 + n, n]).collect();
        segmenter.push(&at_times(&times)).unwrap();
        let stats = segmenter.take_stats();
        assert_eq!((stats.late, stats.clock_resets), (10, 0));
    }

    #[test]
    fn an_evicted_key_that_comes_back_repeats_no_sequence_and_no_run() {
        let shape = WindowShape { length: 1, ..shape() };
        let mut segmenter = Segmenter::new(Lane::new("plant", 0), shape, 2);
        let order = ["a", "a", "b", "a", "c", "b", "a", "a", "c", "b"];
        let records: Vec<_> =
            (0..).zip(order).map(|(n, key)| Record(key, n, n, vec![n as f32])).collect();
        let mut segments = Segments::default();
        for record in &records {
            segments.append(&mut segmenter.push(&batch(1, from_ref(record))).unwrap());
        }
        assert_eq!(segments.len(), order.len());
        assert_eq!(segmenter.keys(), 2);
        // c evicts b, b evicts a, a evicts c, c evicts b, b evicts a.
        assert_eq!(segmenter.take_stats().evicted, 5);
        let mut seen = sequences(&segments);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), order.len());
        let runs_of_a: Vec<u64> = segments
            .meta
            .iter()
            .zip(&segments.runs)
            .filter(|(meta, _)| &*meta.key == "a")
            .map(|(_, run)| *run)
            .collect();
        assert_eq!(runs_of_a[..3], [0, 0, 0]);
        assert!(runs_of_a[3] > 0 && runs_of_a[3] == runs_of_a[4], "{runs_of_a:?}");
    }

    #[test]
    fn the_least_recently_seen_key_makes_room() {
        let mut segmenter = Segmenter::new(Lane::new("plant", 0), shape(), 2);
        let records: Vec<_> = (0..)
            .zip(["a", "b", "a", "c", "a"])
            .map(|(n, key)| Record(key, n, n, vec![n as f32]))
            .collect();
        let mut segments = Segments::default();
        for record in &records {
            segments.append(&mut segmenter.push(&batch(1, from_ref(record))).unwrap());
        }
        assert_eq!(values(&segments, &shape()), [[0.0, 2.0, 4.0]]);
    }

    #[test]
    fn offsets_span_the_records_within_the_window() {
        let shape = WindowShape { lateness: 5, ..shape() };
        let times_and_offsets = [(10, 100), (12, 101), (11, 102), (13, 103), (14, 104)];
        let records = times_and_offsets.map(|(time, offset)| Record("m", time, offset, vec![0.0]));
        let mut segmenter = segmenter(&shape);
        let mut segments = segmenter.push(&batch(1, &records)).unwrap();
        segments.append(&mut segmenter.advance(i64::MAX).unwrap());
        let bounds: Vec<_> =
            segments.meta.iter().map(|meta| (meta.first_offset, meta.last_offset)).collect();
        assert_eq!(bounds, [(100, 102), (101, 103), (101, 104)]);
        assert!(segments.meta.iter().all(|meta| meta.lane == Lane::new("plant", 0)));
    }

    #[test]
    fn advance_makes_final_what_lies_at_or_before_the_watermark() {
        let shape = WindowShape { lateness: 1000, ..shape() };
        let mut segmenter = segmenter(&shape);
        assert!(segmenter.push(&at_times(&[1, 2, 3, 4])).unwrap().is_empty());
        assert_eq!(segmenter.watermark(), Some(4 - 1000));
        assert!(segmenter.advance(2).unwrap().is_empty());
        assert_eq!(values(&segmenter.advance(3).unwrap(), &shape), [[1.0, 2.0, 3.0]]);
        assert_eq!(values(&segmenter.advance(i64::MAX).unwrap(), &shape), [[2.0, 3.0, 4.0]]);
        assert!(segmenter.advance(i64::MAX).unwrap().is_empty());
    }

    #[test]
    fn windows_cut_to_another_shape_are_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let part = Part::new(Checkpoint::new_id());
        let saved = segmenter(&shape()).save(&part).unwrap();
        let other = WindowShape { length: 4, ..shape() };
        let error = Segmenter::load(Lane::new("plant", 0), &other, 2, &saved, &store).unwrap_err();
        assert!(error.to_string().starts_with("windows of plant[0]: saved as "), "{error}");
    }

    #[test]
    fn a_batch_with_other_columns_is_refused() {
        let wrong = batch(2, &[Record("m", 1, 0, vec![1.0, 2.0])]);
        let error = segmenter(&shape()).push(&wrong).unwrap_err().to_string();
        assert!(error.starts_with("plant[0]: expected columns key, time, offset and 1 channels"));
        let swapped = at_times(&[1]).project(&[0, 2, 1, 3]).unwrap();
        assert!(segmenter(&shape()).push(&swapped).is_err());
    }

    /// A segment in a form that can be compared: key, sequence, run, fresh, span, offsets, bits.
    type Plain = (String, u64, u64, usize, (i64, i64), (i64, i64), Vec<u32>);

    fn plain(segments: &Segments, shape: &WindowShape) -> Vec<Plain> {
        let size = shape.channels * shape.length;
        let mut plain: Vec<_> = (0..segments.len())
            .map(|at| {
                let meta = &segments.meta[at];
                (
                    meta.key.to_string(),
                    meta.sequence,
                    segments.runs[at],
                    segments.fresh[at],
                    (meta.window_start, meta.window_end),
                    (meta.first_offset, meta.last_offset),
                    segments.segment(at, size).iter().map(|value| value.to_bits()).collect(),
                )
            })
            .collect();
        plain.sort();
        plain
    }

    /// A sample of the reference: time, offsets, values.
    type Sample = (i64, (i64, i64), Vec<f32>);

    /// All segments of `records`, made with the whole stream at hand: leave out the late, sort,
    /// average on the grid, split on gaps, cut.
    fn reference(shape: &WindowShape, records: &[Record]) -> (Vec<Plain>, WindowStats) {
        let mut stats = WindowStats::default();
        let mut all = Vec::new();
        for key in ["m", "n"] {
            let mut sequence = 0;
            let mut runs = 0..;
            for kept in between_resets(shape, records.iter().filter(|r| r.0 == key), &mut stats) {
                let samples = samples_of(shape, &kept);
                let max_gap = shape.max_gap.unwrap_or(i64::MAX);
                let spans = samples.chunk_by(|one, other| other.0 - one.0 <= max_gap);
                stats.gaps += spans.clone().count() as u64 - 1;
                for (samples, run) in spans.zip(&mut runs) {
                    cut_run(shape, key, run, samples, &mut sequence, &mut all);
                }
            }
        }
        all.sort();
        (all, stats)
    }

    /// The records of one key that are not late, anew from each point at which its clock was set
    /// back for good.
    fn between_resets<'r>(
        shape: &WindowShape,
        records: impl Iterator<Item = &'r Record>,
        stats: &mut WindowStats,
    ) -> Vec<Vec<&'r Record>> {
        let mut parts: Vec<Vec<&Record>> = Vec::new();
        let mut late: Vec<i64> = Vec::new();
        for record in records {
            let newest = parts.last().and_then(|part| part.iter().map(|kept| kept.1).max());
            if newest.is_some_and(|newest| record.1 < newest - shape.lateness) {
                if late.last().is_some_and(|last| record.1 < *last) {
                    late.clear();
                }
                late.push(record.1);
                if late.len() < shape.length {
                    stats.late += 1;
                    continue;
                }
                stats.clock_resets += 1;
                parts.push(Vec::new());
            }
            late.clear();
            if parts.is_empty() {
                parts.push(Vec::new());
            }
            parts.last_mut().unwrap().push(record);
        }
        parts
    }

    /// The records in order, averaged on the grid.
    fn samples_of(shape: &WindowShape, kept: &[&Record]) -> Vec<Sample> {
        let mut kept = kept.to_vec();
        kept.sort_by_key(|record| record.1);
        let Some(width) = shape.resample else {
            return kept.iter().map(|r| (r.1, (r.2, r.2), r.3.clone())).collect();
        };
        kept.chunk_by(|one, other| one.1.div_euclid(width) == other.1.div_euclid(width))
            .map(|bin| {
                let mean = |channel: usize| {
                    let values = bin.iter().map(|record| f64::from(record.3[channel]));
                    let known: Vec<f64> = values.filter(|value| !value.is_nan()).collect();
                    (known.iter().sum::<f64>() / known.len() as f64) as f32
                };
                let offsets = bin.iter().map(|record| record.2);
                (
                    bin[0].1.div_euclid(width) * width,
                    (offsets.clone().min().unwrap(), offsets.max().unwrap()),
                    (0..shape.channels).map(mean).collect(),
                )
            })
            .collect()
    }

    /// The windows over the samples of one run, with missing samples for its empty bins.
    fn cut_run(
        shape: &WindowShape,
        key: &str,
        run: u64,
        samples: &[Sample],
        sequence: &mut u64,
        all: &mut Vec<Plain>,
    ) {
        let mut on_grid: Vec<Sample> = Vec::new();
        for sample in samples {
            while let (Some(width), Some(last)) = (shape.resample, on_grid.last())
                && last.0 + width < sample.0
            {
                let missing = vec![f32::NAN; shape.channels];
                on_grid.push((last.0 + width, (sample.1.0, sample.1.0), missing));
            }
            on_grid.push(sample.clone());
        }
        let mut shown = 0;
        for start in (0..).step_by(shape.stride) {
            let end = start + shape.length;
            let Some(window) = on_grid.get(start..end) else { break };
            if window.iter().all(|sample| sample.2.iter().all(|value| value.is_nan())) {
                continue;
            }
            let values = (0..shape.channels)
                .flat_map(|channel| window.iter().map(move |sample| sample.2[channel].to_bits()));
            all.push((
                key.to_owned(),
                *sequence,
                run,
                (end - shown).min(shape.length),
                (window[0].0, window[shape.length - 1].0),
                (
                    window.iter().map(|sample| sample.1.0).min().unwrap(),
                    window.iter().map(|sample| sample.1.1).max().unwrap(),
                ),
                values.collect(),
            ));
            *sequence += 1;
            shown = end;
        }
    }

    /// The first and last microsecond that a decoded record may lie at.
    const FIRST_TIME: i64 = -62_167_219_200_000_000;
    const LAST_TIME: i64 = 253_402_300_799_999_999;

    /// Records whose clocks mostly go forward, with stragglers and gaps.
    fn stream() -> impl Strategy<Value = Vec<Record>> {
        let value = prop_oneof![3 => (-99..99_i32).prop_map(|v| v as f32), 1 => Just(f32::NAN)];
        let step = prop_oneof![8 => -3..8_i64, 1 => -40..60_i64];
        let record = (prop::sample::select(vec!["m", "n"]), step, [value.clone(), value]);
        prop::collection::vec(record, 0..80).prop_map(|steps| {
            let mut time = 0;
            (0..)
                .zip(steps)
                .map(|(offset, (key, step, values))| {
                    time += step;
                    Record(key, time, offset, values.to_vec())
                })
                .collect()
        })
    }

    fn shapes() -> impl Strategy<Value = WindowShape> {
        let resample = prop::option::of(1..12_i64);
        let parts = (1..6_usize, 1..8_usize, resample, prop::option::of(1..50_i64), 0..12_i64);
        parts.prop_map(|(length, stride, resample, max_gap, lateness)| {
            let max_gap = match (resample, max_gap) {
                (Some(width), max_gap) => Some(max_gap.unwrap_or(20).max(width)),
                (None, max_gap) => max_gap,
            };
            WindowShape {
                channels: 2,
                observed: 2,
                length,
                stride,
                resample,
                max_gap,
                lateness,
                ..WindowShape::default()
            }
        })
    }

    proptest! {
        #[test]
        fn segments_are_those_of_the_sorted_whole(
            shape in shapes(),
            records in stream(),
            cuts in prop::collection::vec(0..80_usize, 0..6),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let store = store(folder.path());
            let mut segmenter = segmenter(&shape).with_store(Some(store.clone()));
            let mut segments = Segments::default();
            let mut rest = records.as_slice();
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                segments.append(&mut segmenter.push(&batch(2, head)).unwrap());
                // A restart from a checkpoint changes nothing; counts are not part of it.
                let stats = segmenter.stats;
                segmenter = saved_and_loaded(&mut segmenter, &store, 100);
                segmenter.stats = stats;
                rest = tail;
            }
            segments.append(&mut segmenter.push(&batch(2, rest)).unwrap());
            segments.append(&mut segmenter.advance(i64::MAX).unwrap());

            let stats = segmenter.take_stats();
            let (expected, expected_stats) = reference(&shape, &records);
            prop_assert_eq!(plain(&segments, &shape), expected);
            prop_assert_eq!(stats, expected_stats);
        }

        #[test]
        fn segments_do_not_depend_on_where_the_stream_is_cut_into_batches(
            shape in shapes(),
            records in stream(),
            sizes in prop::collection::vec(0..9_usize, 80),
            max_keys in 1..3_usize,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let store = store(folder.path());
            let new = || {
                Segmenter::new(Lane::new("plant", 0), shape.clone(), max_keys)
                    .with_store(Some(store.clone()))
            };
            let mut whole = new();
            let mut expected = whole.push(&batch(2, &records)).unwrap();
            expected.append(&mut whole.advance(i64::MAX).unwrap());

            let mut in_parts = new();
            let mut found = Segments::default();
            let mut rest = records.as_slice();
            for size in sizes.into_iter().chain([records.len()]) {
                let (head, tail) = rest.split_at(size.min(rest.len()));
                found.append(&mut in_parts.push(&batch(2, head)).unwrap());
                rest = tail;
            }
            found.append(&mut in_parts.advance(i64::MAX).unwrap());

            prop_assert_eq!(&found.meta, &expected.meta);
            prop_assert_eq!(plain(&found, &shape), plain(&expected, &shape));
            // Keys are evicted at the end of a batch.
            let stats = |segmenter: &mut Segmenter| WindowStats {
                evicted: 0,
                ..segmenter.take_stats()
            };
            prop_assert_eq!(stats(&mut in_parts), stats(&mut whole));
        }

        #[test]
        fn times_from_year_0_to_9999_and_any_settings_break_nothing(
            times in prop::collection::vec(
                prop_oneof![FIRST_TIME..LAST_TIME, Just(FIRST_TIME), Just(LAST_TIME), -5..5_i64],
                0..40,
            ),
            length in 1..6_usize,
            stride in 1..6_usize,
            // At least a thousandth of the time between the first and the last of these.
            resample in prop::option::of(LAST_TIME / 1000..i64::MAX),
            lateness in prop_oneof![0..10_i64, any::<i64>().prop_map(|span| span.max(0))],
            watermark in any::<i64>(),
        ) {
            let max_gap = resample.map(|width| width.saturating_mul(length as i64));
            let shape = WindowShape {
                length,
                stride,
                resample,
                max_gap,
                lateness,
                ..WindowShape::default()
            };
            let mut segmenter = segmenter(&shape);
            let mut segments = segmenter.push(&at_times(&times)).unwrap();
            segments.append(&mut segmenter.advance(watermark).unwrap());
            segments.append(&mut segmenter.advance(i64::MAX).unwrap());
            for meta in &segments.meta {
                prop_assert!(meta.window_start <= meta.window_end, "{meta:?}");
            }
        }

        #[test]
        fn a_saved_segmenter_goes_on_as_if_it_had_not_been(
            shape in shapes(),
            before in stream(),
            after in stream(),
            watermark in -50..200_i64,
            max_keys in 1..3_usize,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let store = store(folder.path());
            let lane = Lane::new("plant", 0);
            let mut original =
                Segmenter::new(lane, shape.clone(), max_keys).with_store(Some(store.clone()));
            original.push(&batch(2, &before)).unwrap();
            original.advance(watermark).unwrap();
            let mut restored = saved_and_loaded(&mut original, &store, max_keys);
            original.take_stats();

            prop_assert_eq!(restored.watermark(), original.watermark());
            prop_assert_eq!(restored.keys(), original.keys());
            for step in 0..2 {
                let (one, other) = match step {
                    0 => {
                        let after = batch(2, &after);
                        (original.push(&after).unwrap(), restored.push(&after).unwrap())
                    }
                    _ => (original.advance(i64::MAX).unwrap(), restored.advance(i64::MAX).unwrap()),
                };
                prop_assert_eq!(plain(&one, &shape), plain(&other, &shape));
            }
            prop_assert_eq!(restored.take_stats(), original.take_stats());
        }

        #[test]
        fn segments_are_the_same_however_few_keys_are_in_memory(
            shape in shapes(),
            records in stream(),
            watermark in -50..200_i64,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let store = store(folder.path());
            let lane = Lane::new("plant", 0);
            let mut few = Segmenter::new(lane, shape.clone(), 1).with_store(Some(store));
            let mut all = segmenter(&shape);
            let size = shape.channels * shape.length;
            let bits = |segments: Segments| -> Vec<_> {
                let values = |at| segments.segment(at, size).iter().map(|value| value.to_bits());
                let values: Vec<Vec<u32>> =
                    (0..segments.len()).map(|at| values(at).collect()).collect();
                segments.meta.into_iter().zip(values).collect()
            };
            for (at, record) in records.iter().enumerate() {
                let record = batch(2, from_ref(record));
                let (few_cut, all_cut) = (few.push(&record).unwrap(), all.push(&record).unwrap());
                prop_assert_eq!(bits(few_cut), bits(all_cut));
                prop_assert_eq!(few.keys(), 1);
                if at == records.len() / 2 {
                    let (few_cut, all_cut) =
                        (few.advance(watermark).unwrap(), all.advance(watermark).unwrap());
                    prop_assert_eq!(bits(few_cut), bits(all_cut));
                }
            }
            let mut few_cut = Segments::default();
            let last = few.advance_in_parts(i64::MAX, 2, |mut some| few_cut.append(&mut some));
            few_cut.append(&mut last.unwrap());
            prop_assert_eq!(bits(few_cut), bits(all.advance(i64::MAX).unwrap()));
        }

        #[test]
        fn samples_of_a_segment_are_in_time_order_whatever_the_watermark(
            shape in shapes(),
            records in stream(),
            watermarks in prop::collection::vec(-50..200_i64, 80),
        ) {
            let mut segmenter = segmenter(&shape);
            let mut segments = Segments::default();
            for (record, watermark) in records.iter().zip(watermarks) {
                segments.append(&mut segmenter.push(&batch(2, from_ref(record))).unwrap());
                segments.append(&mut segmenter.advance(watermark).unwrap());
            }
            segments.append(&mut segmenter.advance(i64::MAX).unwrap());
            let mut last_end: FxHashMap<(&str, u64), i64> = FxHashMap::default();
            for (meta, run) in segments.meta.iter().zip(&segments.runs) {
                let last = last_end.insert((&meta.key, *run), meta.window_end);
                prop_assert!(last.is_none_or(|last| last <= meta.window_end), "{:?}", meta);
            }
            for meta in &segments.meta {
                let span = meta.window_end - meta.window_start;
                match shape.resample {
                    Some(width) => prop_assert_eq!(span, width * (shape.length as i64 - 1)),
                    None => prop_assert!(span >= 0),
                }
            }
        }
    }
}
