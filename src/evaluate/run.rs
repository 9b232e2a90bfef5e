//! Runs a pipeline over labelled recordings, prequentially: every segment is scored before it is
//! learned from, and every series begins with a fresh model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::layout::{Recording, Series, write_scores};
use super::{EvaluateError, Judged, Layout, Report};
use crate::config::{self, Pipeline};
use crate::runtime::Core;
use crate::source::{Event, FileSource, Payload, Source};
use crate::window::{Segmenter, Segments, WindowShape};

/// A series with its results.
struct Scored {
    recording: Recording,
    scores: Vec<f64>,
    alerts: Vec<bool>,
}

/// Scores every series under `data`, writes the scores below `out`, and measures them where there
/// are labels. Series run side by side over the cores; `progress` is told of each one done.
///
/// # Errors
/// If a series cannot be read or its scores not be written.
pub fn run(
    pipeline: &Pipeline,
    layout: Layout,
    data: &Path,
    labels: Option<&Path>,
    out: &Path,
    progress: &(dyn Fn(&Series) + Sync),
) -> Result<Report, EvaluateError> {
    let series = layout.series(data, labels, pipeline)?;
    let next = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, Result<Scored, EvaluateError>>> = Mutex::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(series.len()) {
            scope.spawn(|| {
                while let Some((index, one)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|i| Some((i, series.get(i)?)))
                {
                    let scored = evaluate(pipeline, one, out);
                    progress(one);
                    let mut results = results.lock().unwrap_or_else(|held| held.into_inner());
                    results.insert(index, scored);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(|held| held.into_inner());
    let scored = results.into_values().collect::<Result<Vec<_>, _>>()?;
    let judged: Vec<Judged<'_>> = series
        .iter()
        .zip(&scored)
        .map(|(series, scored)| Judged {
            name: &series.name,
            scores: &scored.scores,
            alerts: &scored.alerts,
            labels: scored.recording.labels.as_deref(),
            windows: scored.recording.windows.as_deref(),
            skip: layout.skipped_rows(scored.scores.len()),
        })
        .collect();
    Report::measure(&judged)
}

fn evaluate(pipeline: &Pipeline, series: &Series, out: &Path) -> Result<Scored, EvaluateError> {
    let recording = series.load()?;
    let rows = recording.times.len();
    let file = config::FileSource {
        path: series.path.clone(),
        format: Some(config::Format::Csv),
        csv: recording.csv.clone(),
        batch_rows: 1024,
    };
    let pipeline = Pipeline {
        records: recording.records.clone(),
        source: config::Source::File(file.clone()),
        ..pipeline.clone()
    };
    // Training must not depend on how fast this machine is.
    let mut verdicts = Verdicts::new(rows, first_row(&file.csv));
    let failed = |reason: &dyn std::fmt::Display| EvaluateError::file(&series.path, reason);
    let mut source = FileSource::open(&file, &pipeline.records, &BTreeMap::new())
        .map_err(|error| failed(&error))?;
    let shape = WindowShape::new(&pipeline.windows, pipeline.records.channels.len());
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
                let segments = segmenter.push(&decoded.records).map_err(|error| failed(&error))?;
                verdicts.take(&mut core, &segments);
            }
            Event::End => break,
            Event::Assigned(_) | Event::Revoked(_) | Event::Idle => {}
        }
    }
    if let Some(mut segmenter) = segmenter {
        verdicts.take(&mut core, &segmenter.advance(i64::MAX));
    }
    let (scores, alerts) = verdicts.per_row();
    write_scores(out, series, &recording, &scores, &alerts)?;
    Ok(Scored { recording, scores, alerts })
}

/// Line of the first row of a file: its header, if it has one, is line 1.
fn first_row(csv: &config::Csv) -> i64 {
    if csv.columns.is_empty() { 2 } else { 1 }
}

/// A score per input row: that of the first segment which holds it.
struct Verdicts {
    first_row: i64,
    rows: Vec<Option<(f64, bool)>>,
}

impl Verdicts {
    fn new(rows: usize, first_row: i64) -> Self {
        Self { first_row, rows: vec![None; rows] }
    }

    fn take(&mut self, core: &mut Core, segments: &Segments) {
        let mut index = 0;
        core.process(
            segments,
            |_| true,
            |outputs| {
                for (meta, score) in outputs.segments.iter().zip(&outputs.scores) {
                    let fresh = segments.fresh[index] as i64;
                    index += 1;
                    for offset in meta.last_offset - fresh + 1..=meta.last_offset {
                        let row = usize::try_from(offset - self.first_row).ok();
                        if let Some(row) = row.and_then(|row| self.rows.get_mut(row)) {
                            row.get_or_insert((score.score, score.alert));
                        }
                    }
                }
            },
        );
    }

    /// Rows that no segment holds (the first ones, late ones, those of a gap) take the verdict of
    /// the row before.
    fn per_row(self) -> (Vec<f64>, Vec<bool>) {
        let mut last = (0.0, false);
        self.rows
            .into_iter()
            .map(|row| {
                last = row.unwrap_or(last);
                last
            })
            .unzip()
    }
}
