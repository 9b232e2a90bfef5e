//! Runs a pipeline over labelled recordings, prequentially: every segment is scored before it is
//! learned from, and every series begins with a fresh model.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rustc_hash::FxHashMap;

use super::layout::{Recording, Series, write_scores};
use super::measures::ranges;
use super::plot::{Picture, Traces};
use super::{EvaluateError, Judged, Layout, Report};
use crate::checkpoint::CheckpointError;
use crate::config::{self, Mark, Pipeline};
use crate::decode::{KEY_COLUMN, OFFSET_COLUMN, TIME_COLUMN};
use crate::learner;
use crate::runtime::Core;
use crate::score::{Label, line_scores};
use crate::sink::{Score, SegmentMeta};
use crate::source::{Event, FileSource, Payload, Source};
use crate::window::{Segmenter, Segments, WindowShape};

/// A series with its results.
struct Scored {
    recording: Recording,
    verdicts: Vec<Verdict>,
}

/// An evaluation that is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation<'a> {
    pub pipeline: &'a Pipeline,
    pub layout: Layout,
    /// A recording, or a folder of them.
    pub data: &'a Path,
    /// A labels file in NAB's form.
    pub labels: Option<&'a Path>,
    /// Scores are written below it.
    pub out: &'a Path,
    /// Each series is drawn below it.
    pub plots: Option<&'a Path>,
    /// Share of the rows whose label is told once the row is scored, as if by a person.
    pub feedback: f64,
}

/// Scores every series, and measures the scores where there are labels. Series run side by side
/// over the cores; `progress` is told of each one done.
///
/// # Errors
/// If a series cannot be read, or its scores or its picture not be written.
pub fn run(
    evaluation: &Evaluation<'_>,
    progress: &(dyn Fn(&Series) + Sync),
) -> Result<Report, EvaluateError> {
    let Evaluation { pipeline, layout, data, labels, .. } = *evaluation;
    let series = layout.series(data, labels, pipeline)?;
    let next = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, Result<Scored, EvaluateError>>> = Mutex::default();
    let cores = learner::cores();
    std::thread::scope(|scope| {
        for _ in 0..cores.min(series.len()) {
            scope.spawn(|| {
                // Each core has a series of its own, so it shares no step of it. Should it not come
                // to that, rayon's threads share them, and the results are the same.
                let _pool = learner::share_among(1).ok();
                while let Some((index, one)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|i| Some((i, series.get(i)?)))
                {
                    let scored = evaluate(evaluation, one);
                    progress(one);
                    let mut results = results.lock().unwrap_or_else(|held| held.into_inner());
                    results.insert(index, scored);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(|held| held.into_inner());
    let scored = results.into_values().collect::<Result<Vec<_>, _>>()?;
    let columns: Vec<Columns> = scored.iter().map(|one| Columns::of(&one.verdicts)).collect();
    let judged: Vec<Judged<'_>> = series
        .iter()
        .zip(&scored)
        .zip(&columns)
        .map(|((series, Scored { recording, .. }), columns)| Judged {
            name: &series.name,
            scores: &columns.scores,
            alerts: &columns.alerts,
            turns: &columns.turns,
            keys: &columns.keys,
            labels: recording.labels.as_deref(),
            windows: recording.windows.as_deref(),
            change_points: recording.change_points.as_ref(),
            skip: layout.skipped_rows(columns.scores.len()),
        })
        .collect();
    Report::measure(&judged)
}

fn evaluate(evaluation: &Evaluation<'_>, series: &Series) -> Result<Scored, EvaluateError> {
    let Evaluation { pipeline, out, plots, feedback, .. } = *evaluation;
    let recording = series.load()?;
    let file = config::FileSource {
        format: Some(recording.format),
        csv: recording.csv.clone(),
        log: pipeline.encoding().log,
        ..config::FileSource::new(series.path.clone())
    };
    let pipeline = Pipeline {
        records: recording.records.clone(),
        source: config::Source::File(file.clone()),
        feedback: (feedback > 0.0).then(|| config::Feedback { topic: String::new() }),
        ..pipeline.clone()
    };
    let failed = |reason: &dyn std::fmt::Display| EvaluateError::file(&series.path, reason);
    let mut source =
        FileSource::open(&file, &pipeline.records, &pipeline.encoding(), &BTreeMap::new())
            .map_err(|error| failed(&error))?;
    let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
    let mut verdicts = Verdicts::new(recording.lines.clone(), &shape);
    verdicts = verdicts.marking(pipeline.scores.mark, &shape);
    let labels = recording.labels.as_deref().filter(|_| feedback > 0.0);
    let mut teacher = labels.map(|labels| Teacher::new(labels, feedback, &pipeline));
    let mut traces = plots.map(|_| Traces::new(recording.lines.clone()));
    let mut core = Core::new(&pipeline);
    let mut segmenter = None;
    loop {
        match source.poll(Duration::ZERO).map_err(|error| failed(&error))? {
            Event::Batch(batch) => {
                let Payload::Decoded(decoded) = batch.payload else {
                    return Err(failed(&"a file that was not decoded"));
                };
                let segmenter = segmenter.get_or_insert_with(|| {
                    Segmenter::new(batch.lane, shape.clone(), pipeline.windows.max_keys)
                });
                verdicts.expect(&decoded.records);
                if let Some(traces) = &mut traces {
                    traces.take(&decoded.records);
                }
                let segments = segmenter.push(&decoded.records).map_err(|error| failed(&error))?;
                verdicts.take(&mut core, segments, &mut teacher).map_err(|error| failed(&error))?;
            }
            Event::End => break,
            Event::Assigned(_) | Event::Revoked(_) | Event::Lost(_) | Event::Idle => {}
        }
    }
    if let Some(mut segmenter) = segmenter {
        let segments = segmenter.advance(i64::MAX).map_err(|error| failed(&error))?;
        verdicts.take(&mut core, segments, &mut teacher).map_err(|error| failed(&error))?;
    }
    let verdicts = verdicts.per_row();
    let Columns { scores, alerts, .. } = Columns::of(&verdicts);
    write_scores(out, series, &recording, &scores, &alerts)?;
    if let (Some(plots), Some(traces)) = (plots, &traces) {
        let labels = recording.labels.as_deref().map(ranges).unwrap_or_default();
        let (title, scores, alerts) = (&series.name, &scores, &alerts);
        let picture = Picture { title, traces, scores, alerts, labels: &labels };
        picture.write(&plots.join(&series.name).with_extension("svg"))?;
    }
    Ok(Scored { recording, verdicts })
}

/// The verdicts of all rows, by what they say.
struct Columns {
    scores: Vec<f64>,
    alerts: Vec<bool>,
    turns: Vec<bool>,
    keys: Vec<usize>,
}

impl Columns {
    fn of(verdicts: &[Verdict]) -> Self {
        Self {
            scores: verdicts.iter().map(|verdict| verdict.score).collect(),
            alerts: verdicts.iter().map(|verdict| verdict.alert).collect(),
            turns: verdicts.iter().map(|verdict| verdict.turn).collect(),
            keys: verdicts.iter().map(|verdict| verdict.key).collect(),
        }
    }
}

/// Tells the labels of some rows, chosen at random, once they are scored.
struct Teacher<'a> {
    labels: &'a [bool],
    share: f64,
    rng: Pcg64Mcg,
}

/// Segments after which labels are told.
const UNTOLD: usize = 16;

impl<'a> Teacher<'a> {
    fn new(labels: &'a [bool], share: f64, pipeline: &Pipeline) -> Self {
        Self { labels, share, rng: Pcg64Mcg::seed_from_u64(pipeline.training.seed) }
    }

    /// What is told of the segment that ends at `row`, if anything.
    fn label(&mut self, row: usize, segment: &SegmentMeta) -> Option<Label> {
        let anomaly = *self.labels.get(row)?;
        let (key, at) = (Arc::clone(&segment.key), segment.window_end);
        self.rng.random_bool(self.share).then_some(Label { key, from: at, to: at, anomaly })
    }
}

/// A score per input row: that of the first segment which holds it.
struct Verdicts {
    /// Line at which each row of the file begins.
    lines: Vec<i64>,
    /// Key and verdict of each row.
    rows: Vec<(Option<usize>, Option<Verdict>)>,
    /// Numbers of the keys.
    keys: FxHashMap<String, usize>,
    /// Per key: rows that no segment has reached yet, by (time, line).
    waiting: Vec<VecDeque<Waiting>>,
    /// How far the records of a sample may lie behind its time, microseconds: a bin's width.
    width: i64,
    /// Samples of a segment, where a score marks lines.
    line_window: Option<usize>,
}

/// What is said of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Verdict {
    score: f64,
    /// Whether it belongs to an alert.
    alert: bool,
    /// Whether it is a change point.
    turn: bool,
    /// Number of its key.
    key: usize,
}

#[derive(Clone, Copy)]
struct Waiting {
    time: i64,
    line: i64,
    row: usize,
}

impl Verdicts {
    fn new(lines: Vec<i64>, shape: &WindowShape) -> Self {
        Self {
            rows: vec![(None, None); lines.len()],
            lines,
            keys: FxHashMap::default(),
            waiting: Vec::new(),
            width: shape.resample.unwrap_or(1),
            line_window: None,
        }
    }

    /// Gives each line its own score, where `mark` says so.
    fn marking(self, mark: Mark, shape: &WindowShape) -> Self {
        Self { line_window: (mark == Mark::Line).then_some(shape.length), ..self }
    }

    /// Notes the rows whose segments are to come.
    fn expect(&mut self, records: &RecordBatch) {
        let keys = records.column(KEY_COLUMN).as_string::<i32>();
        let times = records.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
        let lines = records.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
        for ((key, &time), &line) in keys.iter().zip(times.values()).zip(lines.values()) {
            let Some(row) = self.lines.partition_point(|first| *first <= line).checked_sub(1)
            else {
                continue;
            };
            let key = key.unwrap_or_default();
            let key = self.keys.get(key).copied().unwrap_or_else(|| {
                self.waiting.push(VecDeque::new());
                self.keys.insert(key.to_owned(), self.waiting.len() - 1);
                self.waiting.len() - 1
            });
            self.rows[row].0 = Some(key);
            let waiting = &mut self.waiting[key];
            let at = waiting.partition_point(|before| (before.time, before.line) <= (time, line));
            waiting.insert(at, Waiting { time, line, row });
        }
    }

    fn take(
        &mut self,
        core: &mut Core,
        mut segments: Segments,
        teacher: &mut Option<Teacher<'_>>,
    ) -> Result<(), CheckpointError> {
        while !segments.is_empty() {
            let count = if teacher.is_some() { UNTOLD } else { segments.len() };
            let first = segments.take_first(count);
            let mut owns = self.line_scores(&first).into_iter();
            // Training must not depend on how fast this machine is.
            core.process(&first, None, |outputs| {
                for (meta, score) in outputs.segments.iter().zip(&outputs.scores) {
                    let own = owns.next().unwrap_or_default();
                    let Score { score, alert, turn, .. } = *score;
                    let verdict = Verdict { score, alert, turn, ..Verdict::default() };
                    self.give(meta, verdict, &own);
                }
            })?;
            if let Some(teacher) = teacher {
                let told =
                    first.meta.iter().filter_map(|meta| self.newest_row(meta).zip(Some(meta)));
                told.filter_map(|(row, meta)| teacher.label(row, meta)).for_each(|label| {
                    core.teach(&label);
                });
            }
        }
        Ok(())
    }

    /// The row at which a segment ends.
    fn newest_row(&self, segment: &SegmentMeta) -> Option<usize> {
        self.lines.partition_point(|first| *first <= segment.last_offset).checked_sub(1)
    }

    /// Per segment of logs, the scores of its newest lines by themselves, oldest first; nothing of
    /// other records.
    fn line_scores(&self, segments: &Segments) -> Vec<Vec<f64>> {
        let Some(length) = self.line_window else { return Vec::new() };
        let sizes = segments.values.len() / segments.len().max(1);
        let newest = segments.fresh.iter().enumerate();
        newest
            .map(|(at, fresh)| line_scores(segments.segment(at, sizes), length, *fresh).collect())
            .collect()
    }

    /// Gives a segment's verdict to the rows within that no earlier one held. Where its newest
    /// samples have scores of their `own`, oldest first, the rows that they are take those.
    fn give(&mut self, segment: &SegmentMeta, verdict: Verdict, own: &[f64]) {
        let rows = self.reach(segment);
        for row in &rows {
            self.rows[*row].1.get_or_insert(verdict);
        }
        for (row, score) in rows.iter().rev().zip(own.iter().rev()) {
            self.rows[*row].1 = Some(Verdict { score: *score, ..verdict });
        }
    }

    /// The rows within a segment that no earlier one held, in order of time.
    fn reach(&mut self, segment: &SegmentMeta) -> Vec<usize> {
        let mut rows = Vec::new();
        let Some(&key) = self.keys.get(&*segment.key) else { return rows };
        let waiting = &mut self.waiting[key];
        let end = segment.window_end.saturating_add(self.width);
        let mut at = 0;
        while let Some(&Waiting { time, line, row }) = waiting.get(at).filter(|row| row.time < end)
        {
            // Of several rows of one time, the later ones may be in the next segment only.
            if line > segment.last_offset {
                at += 1;
                continue;
            }
            waiting.remove(at);
            // Older ones were late, or between the windows.
            if time >= segment.window_start {
                rows.push(row);
            }
        }
        rows
    }

    /// Rows that no segment holds (the first ones, late ones, those of a gap) take the verdict of
    /// the row of their key before, and what is no record that of the row before.
    fn per_row(self) -> Vec<Verdict> {
        let mut last = Verdict::default();
        let mut last_of_key = vec![last; self.waiting.len()];
        self.rows
            .into_iter()
            .map(|(key, verdict)| {
                last = verdict.unwrap_or_else(|| key.map_or(last, |key| last_of_key[key]));
                if let Some(key) = key {
                    last.key = key;
                    last_of_key[key] = last;
                }
                last
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, Float32Array, Int64Array, StringArray, TimestampMicrosecondArray,
    };

    use super::*;
    use crate::decode::records_schema;
    use crate::source::Lane;

    const NONE: f64 = 0.0;

    /// The score of each row, where every segment's score tells its place: 1 for the first one.
    /// Rows are (key, time, line), at the lines given where no record came of one.
    fn scores(shape: WindowShape, lines: &[i64], records: &[(&str, i64, i64)]) -> Vec<f64> {
        let mut verdicts = Verdicts::new(lines.to_vec(), &shape);
        let mut segmenter = Segmenter::new(Lane::new("file", 0), shape, 10);
        let keys = StringArray::from_iter_values(records.iter().map(|record| record.0));
        let times = records.iter().map(|record| record.1);
        let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
        let offsets = Int64Array::from_iter_values(records.iter().map(|record| record.2));
        let values = Float32Array::from(vec![1.0; records.len()]);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(keys), Arc::new(times), Arc::new(offsets), Arc::new(values)];
        let batch = RecordBatch::try_new(records_schema(&["c".to_owned()]), columns).unwrap();
        verdicts.expect(&batch);
        let mut segments = segmenter.push(&batch).unwrap();
        segments.append(&mut segmenter.advance(i64::MAX).unwrap());
        for (place, segment) in (1..).zip(&segments.meta) {
            let score = f64::from(place);
            verdicts.give(segment, Verdict { score, ..Verdict::default() }, &[]);
        }
        Columns::of(&verdicts.per_row()).scores
    }

    fn shape() -> WindowShape {
        WindowShape { length: 3, ..WindowShape::default() }
    }

    fn one_key(times: &[i64]) -> Vec<(&'static str, i64, i64)> {
        times.iter().zip(2..).map(|(time, line)| ("m", *time, line)).collect()
    }

    #[test]
    fn a_row_has_the_verdict_of_the_first_segment_that_holds_it() {
        let (lines, rows) = ([2, 3, 4, 5, 6, 7, 8], one_key(&[1, 2, 3, 4, 4, 4, 5]));
        assert_eq!(scores(shape(), &lines, &rows), [1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let by_two = WindowShape { stride: 2, ..shape() };
        assert_eq!(scores(by_two, &lines, &rows), [1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
    }

    #[test]
    fn a_row_that_no_segment_holds_has_the_verdict_before() {
        // Late; between windows farther apart than they are long; after the last window.
        let (lines, rows) = ([2, 3, 4, 5, 6, 7], one_key(&[1, 2, 3, 1, 4, 5]));
        assert_eq!(scores(shape(), &lines, &rows), [1.0, 1.0, 1.0, 1.0, 2.0, 3.0]);
        let apart = WindowShape { length: 1, stride: 2, ..shape() };
        let rows = one_key(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(scores(apart, &lines, &rows), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
    }

    #[test]
    fn rows_of_several_keys_do_not_take_each_others_verdicts() {
        let rows = [
            ("m", 1, 2),
            ("n", 1, 3),
            ("m", 2, 4),
            ("m", 3, 5),
            ("n", 2, 6),
            ("m", 4, 7),
            ("n", 3, 8),
        ];
        let lines = [2, 3, 4, 5, 6, 7, 8];
        assert_eq!(scores(shape(), &lines, &rows), [1.0, 3.0, 1.0, 1.0, 3.0, 2.0, 3.0]);
        let lonely = [("m", 1, 2), ("m", 2, 3), ("m", 3, 4), ("n", 1, 5), ("m", 4, 6)];
        assert_eq!(scores(shape(), &lines[..5], &lonely), [1.0, 1.0, 1.0, NONE, 2.0]);
    }

    #[test]
    fn all_rows_of_a_bin_have_its_verdict() {
        let binned = WindowShape { length: 2, resample: Some(10), max_gap: Some(100), ..shape() };
        let rows = one_key(&[0, 4, 9, 10, 11, 20, 25, 29]);
        let lines = [2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(scores(binned, &lines, &rows), [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn lines_without_a_record_shift_no_verdict() {
        // Line 4 is blank, the row of line 6 cannot be decoded, that of line 7 has two lines.
        let rows = [("m", 1, 2), ("m", 2, 3), ("m", 3, 5), ("m", 4, 7), ("m", 5, 9)];
        let lines = [2, 3, 5, 6, 7, 9];
        assert_eq!(scores(shape(), &lines, &rows), [1.0, 1.0, 1.0, 1.0, 2.0, 3.0]);
    }
}
