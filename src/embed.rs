//! A history of records embedded by one frozen model.
//!
//! The model of a checkpoint embeds files from their beginning, without learning: as a service with
//! `training.enabled = false` would that began with that model and knew no key. The embeddings are
//! the same bit for bit. What a key's values are standardised by is no part of the model: it
//! follows each key from its first record on, here as there.
//!
//! ```text
//! reader ──▶ workers (one per core; a lane stays with one) ──▶ writer, in the reader's order
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use crate::config::{self, Pipeline};
use crate::keys::Keys;
use crate::learner::{self, Learner};
use crate::sink::{HistoryFiles, SinkError};
use crate::source::{Event, FileSource, Lane, Payload, Source, SourceError};
use crate::trajectory::{Kind, Open, Part, Pool, Rules, Trajectory};
use crate::window::{Segmenter, Segments, WindowError, WindowShape};

/// Batches under way.
const QUEUE: usize = 16;
/// Segments embedded at once.
const BATCH: usize = 256;

/// Why a history was not embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    #[error("source: {0}")]
    Source(#[from] SourceError),
    #[error("window: {0}")]
    Window(#[from] WindowError),
    #[error("output: {0}")]
    Sink(#[from] SinkError),
    /// Another thread ended first: its error is the reason.
    #[error("a stage ended early")]
    Ended,
}

/// What is to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    /// A row per trajectory of this kind, instead of one per segment.
    pub by: Option<Kind>,
    /// How a trajectory's segments become one embedding.
    pub pool: Pool,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub records: u64,
    pub segments: u64,
    /// Trajectories, where these were asked for.
    pub trajectories: u64,
    pub dead_letters: u64,
    /// The first of them: where it was, and why.
    pub first_dead_letter: Option<String>,
}

/// The pipeline that reads files at `input` as `pipeline` reads its source. Of messages, each file's
/// extension names the format, and a header the columns of CSV.
pub fn reading(pipeline: &Pipeline, input: &Path) -> Pipeline {
    let encoding = pipeline.encoding();
    let mut file = config::FileSource::new(input.to_owned());
    match &pipeline.source {
        config::Source::File(source) => {
            file = config::FileSource { path: file.path, ..source.clone() }
        }
        config::Source::Kafka(_) | config::Source::Generator(_) => {
            file.csv.delimiter = encoding.csv.delimiter;
            file.json = encoding.json;
            file.avro = encoding.avro;
            file.log = encoding.log;
        }
    }
    // A history is read as fast as it can be.
    file.speed = 0.0;
    Pipeline { source: config::Source::File(file), ..pipeline.clone() }
}

/// Embeds all that `pipeline`, of [`reading`], reads, with `learner` as it is; writes below
/// `folder`, which must be empty. `progress` is told how many records were read.
///
/// # Errors
/// If a file cannot be read or written.
pub fn embed(
    pipeline: &Pipeline,
    learner: &Learner,
    output: Output,
    folder: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Summary, EmbedError> {
    let config::Source::File(file) = &pipeline.source else { return Ok(Summary::default()) };
    let source = FileSource::open(file, &pipeline.records, &pipeline.encoding(), &BTreeMap::new())?;
    let mut writer = Writer::new(pipeline, output, folder)?;
    let cores = learner::cores();
    thread::scope(|scope| {
        let (in_order, answers) = sync_channel(QUEUE);
        let workers: Vec<SyncSender<Work>> = (0..cores)
            .map(|_| {
                let (sender, work) = sync_channel(QUEUE);
                let learner = learner.clone();
                scope.spawn(move || {
                    // Each core has lanes of its own; see `evaluate`.
                    let _pool = learner::share_among(1).ok();
                    embed_lanes(&learner, &work);
                });
                sender
            })
            .collect();
        let shape = learner.shape().clone();
        let reader = scope.spawn(move || read(source, shape, &workers, &in_order, progress));
        let written = answers.iter().try_for_each(|answer: Receiver<Embedded>| {
            let embedded = answer.recv().map_err(|_| EmbedError::Ended)?;
            writer.write(&embedded, learner.version())
        });
        // A reader that waits for room learns that nobody takes any more.
        drop(answers);
        let read = match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // A failure to write ends the reader early, and one to read the writer.
        match (written, read) {
            (Err(error), Err(EmbedError::Ended)) | (Ok(()), Err(error)) => Err(error),
            (Err(_), Err(error)) => Err(error),
            (Err(error), Ok(_)) => Err(error),
            (Ok(()), Ok(summary)) => writer.finish(summary),
        }
    })
}

/// Segments of a lane, and whoever waits for their embeddings.
struct Work {
    segments: Segments,
    answer: SyncSender<Embedded>,
}

struct Embedded {
    segments: Segments,
    /// `[segments, embedding]`.
    embeddings: Vec<f32>,
}

fn read(
    mut source: FileSource,
    shape: WindowShape,
    workers: &[SyncSender<Work>],
    in_order: &SyncSender<Receiver<Embedded>>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Summary, EmbedError> {
    let mut summary = Summary::default();
    let mut lanes: BTreeMap<Lane, (usize, Segmenter)> = BTreeMap::new();
    let hand_on = |worker: usize, segments: Segments| {
        if segments.is_empty() {
            return Ok(());
        }
        let (answer, embedded) = sync_channel(1);
        in_order.send(embedded).map_err(|_| EmbedError::Ended)?;
        workers[worker].send(Work { segments, answer }).map_err(|_| EmbedError::Ended)
    };
    loop {
        match source.poll(Duration::ZERO)? {
            Event::Batch(batch) => {
                let Payload::Decoded(decoded) = batch.payload else { continue };
                summary.records += decoded.records.num_rows() as u64;
                summary.dead_letters += decoded.dead_letters.len() as u64;
                if let (None, Some(letter)) =
                    (&summary.first_dead_letter, decoded.dead_letters.first())
                {
                    let place = format!("{} at {}", letter.lane.topic, letter.offset);
                    summary.first_dead_letter = Some(format!("{place}: {}", letter.reason));
                }
                let next = lanes.len() % workers.len().max(1);
                let (worker, segmenter) = lanes.entry(batch.lane.clone()).or_insert_with(|| {
                    // No store would take evicted keys in: all are held.
                    (next, Segmenter::new(batch.lane, shape.clone(), usize::MAX))
                });
                hand_on(*worker, segmenter.push(&decoded.records)?)?;
                progress(summary.records);
            }
            Event::End => break,
            Event::Assigned(_) | Event::Revoked(_) | Event::Lost(_) | Event::Idle => {}
        }
    }
    for (worker, segmenter) in lanes.values_mut() {
        let mut handed = Ok(());
        let last = segmenter.advance_in_parts(i64::MAX, BATCH, |segments| {
            if handed.is_ok() {
                handed = hand_on(*worker, segments);
            }
        })?;
        handed?;
        hand_on(*worker, last)?;
    }
    Ok(summary)
}

/// Embeds the segments of some lanes until no more come.
fn embed_lanes(learner: &Learner, work: &Receiver<Work>) {
    let mut lanes: HashMap<Lane, Keys<learner::KeyState>> = HashMap::new();
    for Work { segments, answer } in work {
        let Some(first) = segments.meta.first() else { continue };
        let keys = lanes.entry(first.lane.clone()).or_insert_with(|| Keys::new(usize::MAX, None));
        let mut embeddings = Vec::new();
        for start in (0..segments.len()).step_by(BATCH) {
            let range = start..(start + BATCH).min(segments.len());
            embeddings.append(&mut learner.embed(keys, &segments, range).embeddings);
        }
        // A writer that is gone wants no more.
        let _ = answer.send(Embedded { segments, embeddings });
    }
}

/// Writes segments, or gathers them into trajectories.
struct Writer {
    files: HistoryFiles,
    rules: Rules,
    open: BTreeMap<Arc<str>, Open>,
    ended: Vec<Trajectory>,
    segments: u64,
    trajectories: u64,
}

impl Writer {
    fn new(pipeline: &Pipeline, output: Output, folder: &Path) -> Result<Self, EmbedError> {
        let stay_gap = pipeline.sink.parquet.as_ref().map(|sink| sink.stay_gap.micros());
        let rules = Rules {
            kinds: output.by.into_iter().collect(),
            stay_gap: stay_gap.unwrap_or(DEFAULT_STAY_GAP),
            pool: output.pool,
        };
        let parts = if output.by.is_some() { output.pool.parts() } else { 1 };
        let width = parts * pipeline.model.embedding;
        Ok(Self {
            files: HistoryFiles::create(folder, &pipeline.name, width)?,
            rules,
            open: BTreeMap::new(),
            ended: Vec::new(),
            segments: 0,
            trajectories: 0,
        })
    }

    fn write(&mut self, embedded: &Embedded, model_version: u64) -> Result<(), EmbedError> {
        let Embedded { segments, embeddings } = embedded;
        let width = embeddings.len() / segments.len().max(1);
        for (segment, embedding) in segments.meta.iter().zip(embeddings.chunks_exact(width.max(1)))
        {
            self.segments += 1;
            if self.rules.kinds.is_empty() {
                self.files.segment(segment, embedding, model_version)?;
                continue;
            }
            let part = Part { segment, embedding, model_version, score: None };
            let open = self.open.entry(segment.key.clone()).or_default();
            open.add(&self.rules, part, segment.window_end, &mut self.ended);
            self.write_ended()?;
        }
        Ok(())
    }

    fn write_ended(&mut self) -> Result<(), EmbedError> {
        for trajectory in self.ended.drain(..) {
            self.trajectories += 1;
            self.files.trajectory(trajectory)?;
        }
        Ok(())
    }

    fn finish(mut self, summary: Summary) -> Result<Summary, EmbedError> {
        for (key, open) in &mut self.open {
            open.finish(key, &mut self.ended);
        }
        self.write_ended()?;
        let Self { files, segments, trajectories, .. } = self;
        files.finish()?;
        Ok(Summary { segments, trajectories, ..summary })
    }
}

/// Of a pipeline without Parquet output: that of `sink.parquet.stay_gap`, microseconds.
const DEFAULT_STAY_GAP: i64 = 24 * 3_600_000_000;

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::{Float32Type, Int64Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::runtime::Core;

    /// Two files of a wave each, and the pipeline that reads them.
    fn history(folder: &Path) -> Pipeline {
        for (name, shift) in [("a", 0.0), ("b", 1.0)] {
            let mut text = "time,x,y\n".to_owned();
            for row in 0..400 {
                let (time, phase) = (1_704_000_000 + 600 * row, row as f64 * 0.3 + shift);
                text += &format!("{time},{},{}\n", phase.sin(), (phase * 1.7).cos() + shift);
            }
            std::fs::write(folder.join(format!("{name}.csv")), text).unwrap();
        }
        let text = format!(
            "name = 'wave'\n[source]\nkind = 'file'\npath = '{}'\n[records]\ntime = 'time'\n\
             channels = ['x', 'y']\n[windows]\nlength = 16\nstride = 4\n[model]\nhidden = 8\n\
             embedding = 16\nprojection = [16, 8]\nqueue = 64\n[training]\nbatch = 16\nevery = 8\n\
             enabled = false",
            folder.display()
        );
        Pipeline::from_toml(&text, "wave.toml", &[]).unwrap()
    }

    fn rows(folder: &Path) -> Vec<RecordBatch> {
        let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        let read = |path| {
            let file = std::fs::File::open(path).unwrap();
            ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap()
        };
        files.into_iter().flat_map(read).map(Result::unwrap).collect()
    }

    /// (key, sequence) and the bits of each embedding.
    fn embeddings(batches: &[RecordBatch], sequence: &str) -> BTreeMap<(String, i64), Vec<u32>> {
        let mut found = BTreeMap::new();
        for batch in batches {
            let keys = batch["key"].as_string::<i32>();
            let sequences = batch[sequence].as_primitive::<Int64Type>();
            let lists = batch["embedding"].as_fixed_size_list();
            for row in 0..batch.num_rows() {
                let values = lists.value(row);
                let bits =
                    values.as_primitive::<Float32Type>().values().iter().map(|v| v.to_bits());
                let place = (keys.value(row).to_owned(), sequences.value(row));
                assert!(found.insert(place, bits.collect()).is_none());
            }
        }
        found
    }

    #[test]
    fn embeddings_are_those_of_the_service_with_that_model() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = history(folder.path());
        let out = folder.path().join("_out");
        let learner = Learner::new(&pipeline);
        let summary = embed(&pipeline, &learner, Output::default(), &out, &|_| {}).unwrap();
        assert_eq!((summary.records, summary.dead_letters), (800, 0));

        let mut expected = BTreeMap::new();
        let config::Source::File(file) = &pipeline.source else { panic!("files") };
        let mut source =
            FileSource::open(file, &pipeline.records, &pipeline.encoding(), &BTreeMap::new())
                .unwrap();
        let mut core = Core::new(&pipeline);
        let mut segmenters: BTreeMap<Lane, Segmenter> = BTreeMap::new();
        let mut take = |segments: &Segments| {
            let taken = core.process(segments, None, |outputs| {
                let rows = outputs.embeddings.chunks(16);
                for (meta, row) in outputs.segments.iter().zip(rows) {
                    let bits: Vec<u32> = row.iter().map(|value| value.to_bits()).collect();
                    expected.insert((meta.key.to_string(), meta.sequence.cast_signed()), bits);
                }
            });
            taken.unwrap();
        };
        loop {
            match source.poll(Duration::ZERO).unwrap() {
                Event::Batch(batch) => {
                    let Payload::Decoded(decoded) = batch.payload else { panic!("decoded") };
                    let shape = learner.shape().clone();
                    let segmenter = segmenters
                        .entry(batch.lane.clone())
                        .or_insert_with(|| Segmenter::new(batch.lane, shape, 10));
                    take(&segmenter.push(&decoded.records).unwrap());
                }
                Event::End => break,
                _ => {}
            }
        }
        segmenters.values_mut().for_each(|one| take(&one.advance(i64::MAX).unwrap()));
        assert_eq!(summary.segments as usize, expected.len());
        assert_eq!(embeddings(&rows(&out), "sequence"), expected);
    }

    #[test]
    fn the_files_are_the_same_in_every_run_and_none_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = history(folder.path());
        let learner = Learner::new(&pipeline);
        let run = |name: &str| {
            let out = folder.path().join(name);
            embed(&pipeline, &learner, Output::default(), &out, &|_| {}).map(|_| rows(&out))
        };
        assert_eq!(run("_one").unwrap(), run("_two").unwrap());
        assert!(matches!(run("_one"), Err(EmbedError::Sink(_))));
    }

    #[test]
    fn by_key_each_key_has_one_row_of_unit_length() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = history(folder.path());
        let learner = Learner::new(&pipeline);
        for pool in [Pool::Mean, Pool::Attention, Pool::Extremes] {
            let out = folder.path().join(format!("_{pool:?}"));
            let output = Output { by: Some(Kind::Key), pool };
            let summary = embed(&pipeline, &learner, output, &out, &|_| {}).unwrap();
            assert_eq!(summary.trajectories, 2);
            let batches = rows(&out);
            let found = embeddings(&batches, "first_sequence");
            assert_eq!(found.keys().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
            for bits in found.values() {
                let length: f32 = bits.iter().map(|bits| f32::from_bits(*bits).powi(2)).sum();
                assert!((length - 1.0).abs() < 1e-5);
            }
            assert!(out.join("trajectories/by=key").is_dir());
        }
        // 400 rows of ten minutes, from five in the morning on: three days.
        let out = folder.path().join("_days");
        let output = Output { by: Some(Kind::Day), pool: Pool::Mean };
        let summary = embed(&pipeline, &learner, output, &out, &|_| {}).unwrap();
        assert_eq!(summary.trajectories, 2 * 3);
    }
}
