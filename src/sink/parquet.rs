//! Results to Parquet files.

mod dead_letters;
mod history;
pub(super) mod rows;
mod staging;
mod trajectories;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::DateTime;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustc_hash::FxHashMap;

use self::dead_letters::DeadLetters;
pub use self::history::HistoryFiles;
use self::rows::Rows;
use self::staging::{Staged, Staging};
use self::trajectories::Trajectories;
use super::{Outputs, SegmentMeta, Sink, SinkError, StagedFile};
use crate::config::{self, PartitionColumn};
use crate::decode::DeadLetter;
use crate::trajectory::Trajectory;

/// Files open at once; the least recently written one is closed to make room.
const MOST_OPEN: usize = 64;
/// Encoded bytes held in memory over all open files before the largest row group is written.
const MOST_BUFFERED: usize = 64 << 20;
/// Plain bytes of rows collected before they are encoded.
const CHUNK_BYTES: u64 = 1 << 20;
/// Rows collected before they are encoded.
const MOST_CHUNK_ROWS: u64 = 1024;
/// Bytes of a key in a folder's name; file systems take 255 for the whole name.
const MOST_FOLDER_BYTES: usize = 180;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Writes embeddings and scores as Parquet, one row per segment, trajectories in files of their own
/// under `trajectories`, and dead letters as JSON lines under `_dead_letters`.
///
/// Rows become visible when their epoch is published and not before: until then they are in memory
/// or in files under `_staging`, where no reader of `*.parquet` looks and which readers that follow
/// Hive's conventions pass over. After an error the sink takes and publishes nothing more. What is
/// staged outlives it, for its epoch may be committed: the next sink publishes or discards it.
///
/// The columns are the same however the files are partitioned: `key` is in the file and in the
/// folder's name. Readers that guess types from folders' names see numbers in keys that are all
/// digits; pyarrow then needs `partitioning=None`.
pub struct ParquetSink {
    pipeline: Arc<str>,
    embedding: usize,
    partition_by: Vec<PartitionColumn>,
    roll: u64,
    most_open: usize,
    chunk_rows: usize,
    schema: SchemaRef,
    properties: WriterProperties,
    staging: Staging,
    files: FxHashMap<Partition, OpenFile>,
    writes: u64,
    trajectories: Trajectories,
    dead_letters: DeadLetters,
    /// Rows were lost to an error: a flush must not claim that they are durable.
    failed: bool,
}

/// What rows of one file have in common; `None` where it is not partitioned by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Partition {
    /// Days since the epoch.
    day: Option<i64>,
    key: Option<Arc<str>>,
}

struct OpenFile {
    rows: Rows,
    writer: ArrowWriter<File>,
    staged: Staged,
    last_write: u64,
}

impl ParquetSink {
    /// A sink of segments with embeddings of length `embedding`. Makes the folder if need be.
    ///
    /// # Errors
    /// If the folder cannot be made or written to, or the bucket cannot be reached.
    pub fn open(
        config: &config::ParquetSink,
        pipeline: &config::Pipeline,
        embedding: usize,
    ) -> Result<Self, SinkError> {
        // What was committed is known of this group alone, and so is what was not.
        let staging = Staging::open(&config.path, &encoded("group=", &pipeline.group()))?;
        let chunk_bytes = CHUNK_BYTES.min(config.roll.0);
        let chunk_rows = chunk_bytes / rows::plain_row_bytes(embedding);
        let schema = rows::schema(embedding).map_err(|reason| failed(staging.root(), reason))?;
        Ok(Self {
            pipeline: pipeline.name.as_str().into(),
            embedding,
            partition_by: config.partition_by.clone(),
            roll: config.roll.0,
            most_open: MOST_OPEN,
            chunk_rows: chunk_rows.clamp(1, MOST_CHUNK_ROWS) as usize,
            schema,
            properties: rows::properties(),
            staging,
            files: FxHashMap::default(),
            writes: 0,
            trajectories: Trajectories::new(pipeline.name.as_str().into(), embedding),
            dead_letters: DeadLetters::new(config.roll.0),
            failed: false,
        })
    }

    fn unless_failed<T>(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        if self.failed {
            let reason = "an earlier error lost rows that were not published";
            return Err(failed(self.staging.root(), reason));
        }
        let result = operation(self);
        self.failed = result.is_err();
        result
    }

    fn write_rows(&mut self, outputs: &Outputs) -> Result<(), SinkError> {
        let segments = outputs.segments.len();
        if outputs.scores.len() != segments || outputs.embeddings.len() != segments * self.embedding
        {
            let reason = format!(
                "{segments} segments need as many scores and {} embedding values, found {} and {}",
                segments * self.embedding,
                outputs.scores.len(),
                outputs.embeddings.len()
            );
            return Err(failed(self.staging.root(), reason));
        }
        for (row, segment) in outputs.segments.iter().enumerate() {
            let embedding = &outputs.embeddings[row * self.embedding..][..self.embedding];
            let partition = self.partition(segment);
            let file = match self.files.get_mut(&partition) {
                Some(file) => file,
                None => {
                    let file = self.begin(&partition)?;
                    self.files.entry(partition.clone()).or_insert(file)
                }
            };
            self.writes += 1;
            file.last_write = self.writes;
            file.rows.push(segment, embedding, &outputs.scores[row], outputs.model_version);
            if file.rows.len() >= self.chunk_rows {
                file.encode()?;
                if file.size() >= self.roll {
                    self.close(&partition)?;
                }
            }
        }
        self.bound_memory()
    }

    fn partition(&self, segment: &SegmentMeta) -> Partition {
        let mut partition = Partition { day: None, key: None };
        for column in &self.partition_by {
            match column {
                PartitionColumn::Date => {
                    partition.day = Some(segment.window_end.div_euclid(MICROS_PER_DAY));
                }
                PartitionColumn::Key => partition.key = Some(segment.key.clone()),
            }
        }
        partition
    }

    /// Folder of a partition below the root, in the order of `partition_by`.
    fn folder(&self, partition: &Partition) -> String {
        let folders = self.partition_by.iter().map(|column| match column {
            PartitionColumn::Date => date_folder(partition.day.unwrap_or(0)),
            PartitionColumn::Key => key_folder(partition.key.as_deref().unwrap_or("")),
        });
        folders.collect::<Vec<_>>().join("/")
    }

    fn begin(&mut self, partition: &Partition) -> Result<OpenFile, SinkError> {
        if self.files.len() >= self.most_open {
            let oldest = self.files.iter().min_by_key(|(_, file)| file.last_write);
            if let Some(oldest) = oldest.map(|(partition, _)| partition.clone()) {
                self.close(&oldest)?;
            }
        }
        let (file, staged) = self.staging.create(&self.folder(partition), "part", "parquet")?;
        let writer = ArrowWriter::try_new(file, self.schema.clone(), Some(self.properties.clone()))
            .map_err(|reason| failed(staged.path(), reason))?;
        let rows = Rows::new(self.pipeline.clone(), self.schema.clone());
        Ok(OpenFile { rows, writer, staged, last_write: self.writes })
    }

    fn close(&mut self, partition: &Partition) -> Result<(), SinkError> {
        if let Some(file) = self.files.remove(partition) {
            self.staging.keep(file.finish()?);
        }
        Ok(())
    }

    fn bound_memory(&mut self) -> Result<(), SinkError> {
        let memory = |file: &OpenFile| file.writer.memory_size();
        while self.files.values().map(memory).sum::<usize>() > MOST_BUFFERED {
            let Some(largest) = self.files.values_mut().max_by_key(|file| memory(file)) else {
                break;
            };
            largest.writer.flush().map_err(|reason| failed(largest.staged.path(), reason))?;
        }
        Ok(())
    }
}

impl Sink for ParquetSink {
    /// Takes one row per segment of `outputs`.
    ///
    /// # Errors
    /// If a file cannot be written, or `outputs` has not one score and one embedding per segment.
    fn write(&mut self, outputs: &Outputs) -> Result<(), SinkError> {
        self.unless_failed(|sink| sink.write_rows(outputs))
    }

    fn write_trajectories(&mut self, trajectories: &[Trajectory]) -> Result<(), SinkError> {
        self.unless_failed(|sink| sink.trajectories.write(trajectories, &mut sink.staging))
    }

    /// Takes a message that a stage could not.
    ///
    /// # Errors
    /// If its file cannot be written.
    fn dead_letter(&mut self, letter: &DeadLetter) -> Result<(), SinkError> {
        self.unless_failed(|sink| sink.dead_letters.write(letter, &mut sink.staging))
    }

    /// Finishes every file and makes it durable under its staged name.
    ///
    /// # Errors
    /// If any of that fails, or an earlier call did; what was published before stays.
    fn prepare(&mut self) -> Result<Vec<StagedFile>, SinkError> {
        self.unless_failed(|sink| {
            for (_, file) in sink.files.drain() {
                sink.staging.keep(file.finish()?);
            }
            sink.trajectories.finish(&mut sink.staging)?;
            sink.dead_letters.finish(&mut sink.staging)?;
            sink.staging.prepare()
        })
    }

    /// Gives the files their final names.
    ///
    /// # Errors
    /// If any of that fails, or an earlier call did.
    fn publish(&mut self) -> Result<(), SinkError> {
        self.unless_failed(|sink| sink.staging.publish())
    }

    fn recover(&mut self, committed: &[StagedFile]) -> Result<(), SinkError> {
        self.unless_failed(|sink| sink.staging.recover(committed))
    }

    fn discard(&mut self) -> Result<(), SinkError> {
        self.unless_failed(|sink| sink.staging.discard())
    }
}

impl OpenFile {
    /// Moves the collected rows to the writer.
    fn encode(&mut self) -> Result<(), SinkError> {
        let batch = self.rows.take().map_err(|reason| failed(self.staged.path(), reason))?;
        self.writer.write(&batch).map_err(|reason| failed(self.staged.path(), reason))
    }

    /// About the bytes the file would have if it were finished now.
    fn size(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// Writes all that is left and syncs the file.
    fn finish(mut self) -> Result<Staged, SinkError> {
        self.encode()?;
        let file = self.writer.into_inner().map_err(|reason| failed(self.staged.path(), reason))?;
        file.sync_all().map_err(|reason| failed(self.staged.path(), reason))?;
        Ok(self.staged)
    }
}

/// `date=2026-01-31`.
fn date_folder(day: i64) -> String {
    match DateTime::from_timestamp_micros(day.saturating_mul(MICROS_PER_DAY)) {
        Some(date) => date.format("date=%Y-%m-%d").to_string(),
        // Years that the calendar does not know.
        None => "date=__HIVE_DEFAULT_PARTITION__".to_owned(),
    }
}

/// `key=press%2F4`.
fn key_folder(key: &str) -> String {
    encoded("key=", key)
}

/// `beginning` and what of `text` a folder's name has room for, the rest replaced by a checksum.
fn encoded(beginning: &str, text: &str) -> String {
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    let mut folder = beginning.to_owned();
    let mut buffer = [0; 4];
    for letter in text.chars() {
        let before = folder.len();
        folder.extend(utf8_percent_encode(letter.encode_utf8(&mut buffer), ESCAPED));
        if folder.len() > MOST_FOLDER_BYTES {
            folder.truncate(before);
            folder.push_str(&format!("-{:08x}", crc32fast::hash(text.as_bytes())));
            break;
        }
    }
    folder
}

fn failed(path: &Path, reason: impl ToString) -> SinkError {
    SinkError::File { path: path.to_owned(), reason: reason.to_string() }
}

/// For `map_err` after an operation on `path`.
fn failed_at(path: &Path) -> impl FnOnce(io::Error) -> SinkError + '_ {
    move |reason| failed(path, reason)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use arrow::array::{Array, AsArray, RecordBatch};
    use arrow::compute::concat_batches;
    use arrow::datatypes::{
        DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit,
        TimestampMicrosecondType,
    };
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use parquet::basic::{Compression, Encoding};
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use tempfile::TempDir;

    use super::*;
    use crate::config::{ByteSize, Pipeline, TimeSpan};
    use crate::sink::{Cause, ModelVersion, Score};
    use crate::source::Lane;

    /// 2026-01-31T23:59:59Z.
    const LAST_SECOND_OF_JANUARY: i64 = 1_769_903_999_000_000;

    fn pipeline() -> Pipeline {
        toml::from_str(
            r#"
            name = "plant"
            source = { kind = "generator" }
            records = { time = "ts", channels = ["temperature", "pressure"] }
            "#,
        )
        .unwrap()
    }

    fn config(folder: &TempDir, partition_by: &[PartitionColumn]) -> config::ParquetSink {
        config::ParquetSink {
            path: folder.path().to_owned().into(),
            partition_by: partition_by.to_vec(),
            roll: ByteSize::mib(128),
            trajectories: Vec::new(),
            stay_gap: TimeSpan::from_secs(60),
        }
    }

    fn score() -> Score {
        Score {
            score: 0.25,
            p_value: 0.125,
            surprise: 1.5,
            distance: 0.5,
            residual: 2.0,
            alert: false,
            alert_id: None,
            causes: Vec::new(),
            missing: Vec::new(),
            turn: false,
            warm: true,
        }
    }

    /// One segment of `key` with an embedding of length 2.
    fn output(key: &str, sequence: u64, window_end: i64) -> Outputs {
        let segment = SegmentMeta {
            key: key.into(),
            lane: Lane::new("plant.sensors", 3),
            sequence,
            window_start: window_end - 63_000_000,
            window_end,
            first_offset: 100,
            last_offset: 163,
        };
        Outputs {
            segments: vec![segment],
            embeddings: vec![0.6, -0.8],
            scores: vec![score()],
            model_version: ModelVersion { steps: 42, wander: 0.25 },
        }
    }

    /// Files below `folder` with their paths relative to it, sorted.
    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap();
                    found.push(name.to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    }

    fn files_but_staging(folder: &Path) -> Vec<String> {
        files(folder).into_iter().filter(|name| !name.starts_with("_staging")).collect()
    }

    fn read(folder: &Path, names: &[String]) -> RecordBatch {
        let mut batches = Vec::new();
        for name in names {
            let file = File::open(folder.join(name)).unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
            batches.extend(reader.map(Result::unwrap));
        }
        concat_batches(&batches[0].schema(), &batches).unwrap()
    }

    /// Numbers that do not compress.
    fn noise() -> impl FnMut() -> f32 {
        let mut state = 1_u32;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        }
    }

    fn sequences(rows: &RecordBatch) -> Vec<i64> {
        let mut found = rows["sequence"].as_primitive::<Int64Type>().values().to_vec();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_row_comes_back_as_it_was_written() {
        let folder = TempDir::new().unwrap();
        let mut sink =
            ParquetSink::open(&config(&folder, &[PartitionColumn::Date]), &pipeline(), 2).unwrap();
        let mut outputs = output("press-4", 7, LAST_SECOND_OF_JANUARY);
        outputs.scores[0].alert = true;
        outputs.scores[0].alert_id = Some("press-4/7".to_owned());
        outputs.scores[0].causes = vec![
            Cause { channel: "pressure".into(), share: 0.75 },
            Cause { channel: "temperature".into(), share: 0.25 },
        ];
        outputs.scores[0].missing = vec!["speed".into()];
        outputs.scores[0].turn = true;
        sink.write(&outputs).unwrap();
        sink.write(&output("press-4", 8, LAST_SECOND_OF_JANUARY)).unwrap();
        sink.flush().unwrap();

        let names = files_but_staging(folder.path());
        assert_eq!(names.len(), 1);
        let rows = read(folder.path(), &names);
        let name = |column: &str| {
            let column = rows[column].as_dictionary::<Int32Type>();
            column.downcast_dict::<arrow::array::StringArray>().unwrap().into_iter().next()
        };
        assert_eq!(name("pipeline"), Some(Some("plant")));
        assert_eq!(name("key"), Some(Some("press-4")));
        assert_eq!(name("topic"), Some(Some("plant.sensors")));
        assert_eq!(rows["partition"].as_primitive::<Int32Type>().values(), &[3, 3]);
        assert_eq!(rows["sequence"].as_primitive::<Int64Type>().values(), &[7, 8]);
        assert_eq!(
            rows["window_end"].data_type(),
            &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        );
        assert_eq!(
            rows["window_start"].as_primitive::<TimestampMicrosecondType>().value(0),
            LAST_SECOND_OF_JANUARY - 63_000_000
        );
        assert_eq!(
            rows["window_end"].as_primitive::<TimestampMicrosecondType>().value(0),
            LAST_SECOND_OF_JANUARY
        );
        assert_eq!(rows["first_offset"].as_primitive::<Int64Type>().value(0), 100);
        assert_eq!(rows["last_offset"].as_primitive::<Int64Type>().value(0), 163);
        assert_eq!(rows["model_version"].as_primitive::<Int64Type>().value(0), 42);
        assert_eq!(rows["wander"].as_primitive::<Float32Type>().value(0), 0.25);
        let embeddings = rows["embedding"].as_fixed_size_list();
        assert_eq!(embeddings.value_length(), 2);
        assert_eq!(
            embeddings.values().as_primitive::<Float32Type>().values(),
            &[0.6, -0.8, 0.6, -0.8]
        );
        assert_eq!(rows["score"].as_primitive::<Float64Type>().value(0), 0.25);
        assert_eq!(rows["p_value"].as_primitive::<Float64Type>().value(0), 0.125);
        assert_eq!(rows["surprise"].as_primitive::<Float32Type>().value(0), 1.5);
        assert_eq!(rows["distance"].as_primitive::<Float32Type>().value(0), 0.5);
        assert_eq!(rows["residual"].as_primitive::<Float32Type>().value(0), 2.0);
        assert!(rows["alert"].as_boolean().value(0));
        assert!(!rows["alert"].as_boolean().value(1));
        assert_eq!(rows["alert_id"].as_string::<i32>().value(0), "press-4/7");
        assert!(rows["alert_id"].is_null(1));
        assert!(rows["warm"].as_boolean().value(0));
        let change_points: Vec<_> = rows["change_point"].as_boolean().iter().take(2).collect();
        assert_eq!(change_points, [Some(true), Some(false)]);
        let causes = rows["causes"].as_list::<i32>();
        let first = causes.value(0);
        let first = first.as_struct();
        assert_eq!(first["channel"].as_string::<i32>().value(0), "pressure");
        assert_eq!(first["channel"].as_string::<i32>().value(1), "temperature");
        assert_eq!(first["share"].as_primitive::<Float32Type>().values(), &[0.75, 0.25]);
        assert!(causes.value(1).is_empty());
    }

    #[test]
    fn nothing_is_visible_before_a_flush_and_nothing_is_left_staged_after_it() {
        let folder = TempDir::new().unwrap();
        let mut sink = ParquetSink::open(&config(&folder, &[]), &pipeline(), 2).unwrap();
        sink.write(&output("press-4", 0, 0)).unwrap();
        assert!(files_but_staging(folder.path()).is_empty());
        assert!(!files(folder.path()).iter().any(|name| name.ends_with(".parquet")));

        sink.flush().unwrap();
        assert_eq!(files_but_staging(folder.path()).len(), 1);

        drop(sink);
        assert!(!folder.path().join("_staging").exists());
    }

    #[test]
    fn what_was_never_committed_is_discarded_by_the_next_sink_and_leaves_no_trace() {
        let folder = TempDir::new().unwrap();
        let mut sink = ParquetSink::open(&config(&folder, &[]), &pipeline(), 2).unwrap();
        sink.write(&output("press-4", 0, 0)).unwrap();
        assert_eq!(sink.prepare().unwrap().len(), 1);
        sink.write(&output("press-4", 1, 0)).unwrap();
        drop(sink);
        assert_eq!(files(folder.path()).len(), 3, "two files and a lock");

        let mut next = ParquetSink::open(&config(&folder, &[]), &pipeline(), 2).unwrap();
        next.recover(&[]).unwrap();
        next.discard().unwrap();
        drop(next);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_committed_epoch_had_staged_is_published_by_the_next_sink_once() {
        let folder = TempDir::new().unwrap();
        let config = config(&folder, &[PartitionColumn::Date, PartitionColumn::Key]);
        let mut sink = ParquetSink::open(&config, &pipeline(), 2).unwrap();
        sink.write(&output("press/4", 0, 0)).unwrap();
        sink.write(&output("press/5", 1, 0)).unwrap();
        let committed = sink.prepare().unwrap();
        assert_eq!(committed.len(), 2);
        assert!(files_but_staging(folder.path()).is_empty());
        // It dies after the first of its files is published.
        let StagedFile { staged, target } = &committed[0];
        let target = folder.path().join(target);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::rename(folder.path().join(staged), target).unwrap();
        sink.write(&output("press/4", 2, 0)).unwrap();
        drop(sink);

        for _ in 0..2 {
            let mut next = ParquetSink::open(&config, &pipeline(), 2).unwrap();
            next.recover(&committed).unwrap();
            next.discard().unwrap();
            let names = files_but_staging(folder.path());
            assert_eq!(sequences(&read(folder.path(), &names)), [0, 1]);
        }
        assert!(!folder.path().join("_staging").exists());
    }

    #[test]
    fn an_epoch_that_is_not_published_yet_is_prepared_again_with_the_next() {
        let folder = TempDir::new().unwrap();
        let mut sink = ParquetSink::open(&config(&folder, &[]), &pipeline(), 2).unwrap();
        sink.write(&output("press-4", 0, 0)).unwrap();
        let first = sink.prepare().unwrap();
        sink.write(&output("press-4", 1, 0)).unwrap();
        let both = sink.prepare().unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!(both[..1], first);
        sink.publish().unwrap();
        assert!(sink.prepare().unwrap().is_empty());
        let names = files_but_staging(folder.path());
        assert_eq!(sequences(&read(folder.path(), &names)), [0, 1]);
    }

    #[test]
    fn a_committed_file_that_readers_moved_on_is_no_error() {
        let folder = TempDir::new().unwrap();
        let mut sink = ParquetSink::open(&config(&folder, &[]), &pipeline(), 2).unwrap();
        let staged = "_staging/0123456789abcdef/part-1.parquet.inprogress".to_owned();
        sink.recover(&[StagedFile { staged, target: "part-1.parquet".to_owned() }]).unwrap();
    }

    #[test]
    fn what_was_staged_after_the_sink_was_opened_is_not_discarded() {
        let folder = TempDir::new().unwrap();
        let config = config(&folder, &[]);
        let mut dying = ParquetSink::open(&config, &pipeline(), 2).unwrap();
        let mut next = ParquetSink::open(&config, &pipeline(), 2).unwrap();
        dying.write(&output("press-4", 0, 0)).unwrap();
        let committed = dying.prepare().unwrap();
        drop(dying);

        next.discard().unwrap();
        drop(next);
        let mut last = ParquetSink::open(&config, &pipeline(), 2).unwrap();
        last.recover(&committed).unwrap();
        last.discard().unwrap();
        assert_eq!(files_but_staging(folder.path()).len(), 1);
    }

    #[test]
    fn a_flush_without_rows_writes_no_file() {
        let folder = TempDir::new().unwrap();
        let mut sink = ParquetSink::open(&config(&folder, &[]), &pipeline(), 2).unwrap();
        sink.flush().unwrap();
        sink.write(&Outputs::default()).unwrap();
        sink.flush().unwrap();
        assert!(files_but_staging(folder.path()).is_empty());
    }

    #[test]
    fn files_of_successive_flushes_sort_in_the_order_of_writing() {
        let folder = TempDir::new().unwrap();
        let config = config(&folder, &[]);
        for sequence in 0..3 {
            // A sink of its own each: names are unique across restarts.
            let mut sink = ParquetSink::open(&config, &pipeline(), 2).unwrap();
            sink.write(&output("press-4", sequence, 0)).unwrap();
            sink.flush().unwrap();
        }
        let names = files(folder.path());
        assert_eq!(names.len(), 3);
        let rows = read(folder.path(), &names);
        assert_eq!(rows["sequence"].as_primitive::<Int64Type>().values(), &[0, 1, 2]);
    }

    #[test]
    fn folders_follow_the_utc_day_of_the_window_s_end_and_the_escaped_key() {
        let folder = TempDir::new().unwrap();
        let by = [PartitionColumn::Date, PartitionColumn::Key];
        let mut sink = ParquetSink::open(&config(&folder, &by), &pipeline(), 2).unwrap();
        sink.write(&output("hall 1/press=4", 0, LAST_SECOND_OF_JANUARY)).unwrap();
        sink.write(&output("hall 1/press=4", 1, LAST_SECOND_OF_JANUARY + 1_000_000)).unwrap();
        sink.write(&output("été", 2, -1)).unwrap();
        sink.flush().unwrap();

        let mut folders: Vec<_> = files_but_staging(folder.path())
            .iter()
            .map(|name| Path::new(name).parent().unwrap().to_str().unwrap().to_owned())
            .collect();
        folders.sort();
        assert_eq!(
            folders,
            [
                "date=1969-12-31/key=%C3%A9t%C3%A9",
                "date=2026-01-31/key=hall%201%2Fpress%3D4",
                "date=2026-02-01/key=hall%201%2Fpress%3D4",
            ]
        );
    }

    #[test]
    fn a_long_key_s_folder_is_cut_and_stays_its_own() {
        let long = "é".repeat(300);
        let other = format!("{long}!");
        let folder = key_folder(&long);
        assert!(folder.len() <= 255);
        assert!(folder.starts_with("key=%C3%A9"));
        assert_ne!(folder, key_folder(&other));
        let cut = folder.rsplit_once('-').unwrap().0;
        assert!(percent_encoding::percent_decode_str(cut).decode_utf8().is_ok());
    }

    #[test]
    fn a_day_beyond_the_calendar_has_a_folder_too() {
        assert_eq!(date_folder(0), "date=1970-01-01");
        assert_eq!(date_folder(i64::MAX / MICROS_PER_DAY), "date=__HIVE_DEFAULT_PARTITION__");
    }

    #[test]
    fn a_file_is_rolled_at_its_size_and_all_parts_appear_at_the_flush() {
        let folder = TempDir::new().unwrap();
        let mut config = config(&folder, &[]);
        config.roll = ByteSize(64 << 10);
        let mut sink = ParquetSink::open(&config, &pipeline(), 256).unwrap();
        let mut noise = noise();
        for sequence in 0..500 {
            let mut outputs = output("press-4", sequence, 0);
            outputs.embeddings = (0..256).map(|_| noise()).collect();
            sink.write(&outputs).unwrap();
        }
        assert!(files_but_staging(folder.path()).is_empty());
        sink.flush().unwrap();

        let names = files_but_staging(folder.path());
        assert!(names.len() >= 4, "{} files", names.len());
        for name in &names {
            let size = fs::metadata(folder.path().join(name)).unwrap().len();
            assert!(size < 256 << 10, "{name} has {size} bytes");
        }
        assert_eq!(sequences(&read(folder.path(), &names)), (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn the_least_recently_written_file_makes_room_and_no_row_is_lost() {
        let folder = TempDir::new().unwrap();
        let mut sink =
            ParquetSink::open(&config(&folder, &[PartitionColumn::Key]), &pipeline(), 2).unwrap();
        sink.most_open = 2;
        for (sequence, key) in ["a", "b", "a", "c", "a", "b"].into_iter().enumerate() {
            sink.write(&output(key, sequence as u64, 0)).unwrap();
            assert!(sink.files.len() <= 2);
        }
        sink.flush().unwrap();

        let names = files_but_staging(folder.path());
        let of_key = |key: &str| names.iter().filter(|name| name.starts_with(key)).count();
        assert_eq!((of_key("key=a"), of_key("key=b"), of_key("key=c")), (1, 2, 1));
        assert_eq!(sequences(&read(folder.path(), &names)), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn unfinished_files_of_a_dead_process_are_removed_and_those_of_a_living_one_are_not() {
        let folder = TempDir::new().unwrap();
        let config = config(&folder, &[]);
        let mut living = ParquetSink::open(&config, &pipeline(), 2).unwrap();
        living.write(&output("press-4", 0, 0)).unwrap();
        let group = "_staging/group=contrastream-plant";
        let dead = folder.path().join(group).join("0123456789abcdef");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        fs::write(dead.join("part-1-0123456789abcdef-000000.parquet.inprogress"), "PAR1").unwrap();
        let notes = folder.path().join(group).join("notes");
        fs::create_dir(&notes).unwrap();
        let other = folder.path().join("_staging/group=other/0123456789abcdef");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("lock"), "").unwrap();

        let mut next = ParquetSink::open(&config, &pipeline(), 2).unwrap();
        assert!(dead.exists(), "a committed epoch may have staged it");
        next.discard().unwrap();
        assert!(!dead.exists());
        assert!(notes.exists() && other.exists());
        drop(next);
        living.flush().unwrap();
        assert_eq!(files_but_staging(folder.path()).len(), 1);
    }

    #[test]
    fn columns_are_encoded_for_their_kind() {
        let folder = TempDir::new().unwrap();
        let mut sink = ParquetSink::open(&config(&folder, &[]), &pipeline(), 2).unwrap();
        sink.write(&output("press-4", 0, LAST_SECOND_OF_JANUARY)).unwrap();
        sink.flush().unwrap();

        let path = folder.path().join(&files_but_staging(folder.path())[0]);
        let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
        let group = reader.metadata().row_group(0);
        let column = |path: &str| {
            group.columns().iter().find(|column| column.column_path().string() == path).unwrap()
        };
        let encodings = |path: &str| column(path).encodings().collect::<Vec<_>>();
        assert!(encodings("key").contains(&Encoding::RLE_DICTIONARY));
        assert!(encodings("embedding.list.item").contains(&Encoding::BYTE_STREAM_SPLIT));
        assert!(!encodings("embedding.list.item").contains(&Encoding::RLE_DICTIONARY));
        assert!(matches!(column("key").compression(), Compression::ZSTD(_)));
        assert!(
            column("window_end").statistics().is_some_and(|found| found.min_bytes_opt().is_some())
        );
        assert!(column("embedding.list.item").statistics().is_none());
    }

    #[test]
    fn dead_letters_are_json_lines_with_text_or_base64() {
        let folder = TempDir::new().unwrap();
        let mut sink = ParquetSink::open(&config(&folder, &[]), &pipeline(), 2).unwrap();
        let text = DeadLetter {
            lane: Lane::new("plant.sensors", 3),
            offset: 17,
            key: Some(b"press-4".to_vec()),
            payload: b"{\"ts\": \xc3\xa9".to_vec(),
            headers: vec![("trace".to_owned(), Some(b"abc".to_vec())), ("empty".to_owned(), None)],
            stage: "decode",
            reason: "expected a value".to_owned(),
        };
        let binary = DeadLetter {
            key: None,
            payload: vec![0xff, 0xfe],
            headers: Vec::new(),
            offset: 18,
            ..text.clone()
        };
        sink.dead_letter(&text).unwrap();
        sink.dead_letter(&binary).unwrap();
        assert!(!folder.path().join("_dead_letters").exists());
        sink.flush().unwrap();

        let names = files_but_staging(folder.path());
        assert_eq!(names.len(), 1);
        assert!(names[0].starts_with("_dead_letters/dead-letters-"));
        assert!(names[0].ends_with(".jsonl"));
        let written = fs::read_to_string(folder.path().join(&names[0])).unwrap();
        let lines: Vec<serde_json::Value> =
            written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines,
            [
                serde_json::json!({
                    "stage": "decode", "reason": "expected a value",
                    "topic": "plant.sensors", "partition": 3, "offset": 17,
                    "key": "press-4", "payload": "{\"ts\": é",
                    "headers": [{"name": "trace", "value": "abc"}, {"name": "empty", "value": null}],
                }),
                serde_json::json!({
                    "stage": "decode", "reason": "expected a value",
                    "topic": "plant.sensors", "partition": 3, "offset": 18,
                    "key": null, "payload": null, "payload_base64": "//4=", "headers": [],
                }),
            ]
        );
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = TempDir::new().unwrap();
        let mut config = config(&folder, &[]);
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let below = file.join("below");
        config.path = below.clone().into();
        let error = ParquetSink::open(&config, &pipeline(), 2).err().unwrap();
        assert!(error.to_string().starts_with(&below.display().to_string()), "{error}");
        assert!(!error.is_retryable());
    }

    #[test]
    fn a_flush_that_fails_names_the_path_and_keeps_what_was_flushed_before() {
        let folder = TempDir::new().unwrap();
        let mut sink =
            ParquetSink::open(&config(&folder, &[PartitionColumn::Date]), &pipeline(), 2).unwrap();
        sink.write(&output("press-4", 0, 0)).unwrap();
        sink.flush().unwrap();
        let blocked = folder.path().join("date=2026-01-31");
        fs::write(&blocked, "").unwrap();
        sink.write(&output("press-4", 1, LAST_SECOND_OF_JANUARY)).unwrap();
        let error = sink.flush().unwrap_err();
        assert!(error.to_string().starts_with(&blocked.display().to_string()), "{error}");

        // Nor does a later flush claim the lost row.
        fs::remove_file(&blocked).unwrap();
        assert!(sink.flush().is_err());
        assert!(sink.write(&output("press-4", 2, 0)).is_err());
        drop(sink);
        let names: Vec<_> =
            files(folder.path()).into_iter().filter(|name| name.ends_with(".parquet")).collect();
        assert_eq!(sequences(&read(folder.path(), &names)), [0]);
    }

    #[test]
    fn outputs_without_an_embedding_for_each_segment_are_refused() {
        let folder = TempDir::new().unwrap();
        let mut sink = ParquetSink::open(&config(&folder, &[]), &pipeline(), 3).unwrap();
        let error = sink.write(&output("press-4", 0, 0)).unwrap_err();
        assert!(error.to_string().contains("3 embedding values"), "{error}");
    }

    #[test]
    fn memory_is_bounded_by_writing_row_groups_early() {
        let folder = TempDir::new().unwrap();
        let embedding = 1 << 18;
        let mut sink =
            ParquetSink::open(&config(&folder, &[PartitionColumn::Key]), &pipeline(), embedding)
                .unwrap();
        // 16 files of 5 MiB that do not compress: none fills a row group of its own accord.
        let mut noise = noise();
        let embeddings: Vec<f32> = (0..embedding).map(|_| noise()).collect();
        let mut most = 0;
        for row in 0..80 {
            let mut outputs = output(&format!("press-{}", row % 16), row, 0);
            outputs.embeddings.clone_from(&embeddings);
            sink.write(&outputs).unwrap();
            let buffered: usize = sink.files.values().map(|file| file.writer.memory_size()).sum();
            assert!(buffered <= MOST_BUFFERED, "{buffered} bytes after row {row}");
            most = most.max(buffered);
        }
        assert!(most > MOST_BUFFERED / 2, "the bound was never near: {most} bytes");
        sink.flush().unwrap();
        let names = files_but_staging(folder.path());
        assert_eq!(sequences(&read(folder.path(), &names)), (0..80).collect::<Vec<_>>());
    }
}
