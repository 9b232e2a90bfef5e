//! Records from files: one lane per file, merged in event time.
//!
//! Every lane keeps one batch read ahead; [`FileSource`] hands out the one that begins earliest, so
//! that no lane runs ahead of the others by more than a batch. Offsets are line numbers (the first
//! line of a file is 1), in files of typed columns row numbers (the first is 1).

mod input;
mod lines;
mod replay;
mod table;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use ::arrow::array::AsArray;
use ::arrow::datatypes::TimestampMicrosecondType;

use self::input::Compression;
use self::lines::{Damage, Lines};
use self::replay::Replay;
use self::table::{Container, TableRows};
use super::{Assignment, Commit, Event, Lane, Messages, Payload, Source, SourceBatch, SourceError};
use crate::config::{self, Format};
use crate::decode::{Decoded, Decoder, TIME_COLUMN};

/// Files merged in event time.
pub struct FileSource {
    lanes: Vec<FileLane>,
    /// Decoders of text, one per dialect, shared by the lanes that speak it.
    decoders: Vec<Decoder>,
    /// Lanes with a batch read ahead, by the time of its first record.
    order: BinaryHeap<Reverse<(i64, usize)>>,
    /// What the first event tells.
    assignments: Option<Vec<Assignment>>,
    /// Whether the lanes have their first batch read ahead.
    started: bool,
    paused: bool,
    /// `None`: records are handed out as fast as they are taken.
    replay: Option<Replay>,
}

struct FileLane {
    lane: Lane,
    path: PathBuf,
    reader: Reader,
    ahead: Option<SourceBatch>,
}

enum Reader {
    Text {
        lines: Box<Lines>,
        /// Position in [`FileSource::decoders`].
        decoder: usize,
    },
    Table(Box<TableRows>),
    /// A CSV file without a header line.
    Empty,
}

impl FileSource {
    /// Opens a file, or the files of a folder: those with a known extension, or all of them where
    /// the format is given; none whose name begins with `.` or `_`. `positions` holds, per lane,
    /// the offset to go on from.
    ///
    /// # Errors
    /// If there is no file to read, or one lacks the columns that every record needs.
    pub fn open(
        config: &config::FileSource,
        records: &config::Records,
        encoding: &config::Encoding,
        positions: &BTreeMap<Lane, i64>,
    ) -> Result<Self, SourceError> {
        let mut dialects = Dialects {
            records,
            encoding,
            decoders: Vec::new(),
            by: Vec::new(),
            open: Arc::default(),
        };
        let mut lanes = Vec::new();
        let mut assignments = Vec::new();
        for (topic, path, format) in find_files(&config.path, config.format)? {
            let lane = Lane::new(topic, 0);
            let position = positions.get(&lane).copied();
            let key = records.key.is_none().then(|| key_of(&lane.topic));
            let batch_rows = config.batch_rows.max(1);
            let open_table = |container, key| {
                TableRows::open(&path, container, records, encoding, key, position, batch_rows)
                    .map(|rows| Reader::Table(Box::new(rows)))
            };
            let reader = match format {
                Format::Json | Format::Log | Format::Fhir => Reader::Text {
                    lines: Box::new(Lines::open(
                        &path,
                        None,
                        key,
                        position,
                        batch_rows,
                        &dialects.open,
                    )?),
                    decoder: dialects.decoder(&path, format, Vec::new())?,
                },
                Format::Csv => dialects.csv(&path, key, position, batch_rows)?,
                Format::Parquet => open_table(Container::Parquet, key)?,
                Format::Avro => open_table(Container::Avro, key)?,
                Format::Arrow => open_table(Container::Arrow, key)?,
            };
            let committed = position.map(|offset| (offset, String::new()));
            assignments.push(Assignment { lane: lane.clone(), committed });
            lanes.push(FileLane { lane, path, reader, ahead: None });
        }
        Ok(Self {
            lanes,
            decoders: dialects.decoders,
            order: BinaryHeap::new(),
            assignments: Some(assignments),
            started: false,
            paused: false,
            replay: (config.speed > 0.0).then(|| Replay::new(config.speed)),
        })
    }

    /// Reads the next batch of a lane ahead, if there is one.
    fn read_ahead(&mut self, index: usize) -> Result<(), SourceError> {
        if let Some(batch) = self.lanes[index].read(&mut self.decoders)? {
            self.wait_with(index, batch);
        }
        Ok(())
    }

    /// Holds a batch of a lane until its turn comes.
    fn wait_with(&mut self, index: usize, batch: SourceBatch) {
        if let Payload::Decoded(decoded) = &batch.payload {
            self.order.push(Reverse((first_time(decoded), index)));
        }
        self.lanes[index].ahead = Some(batch);
    }

    fn start(&mut self) -> Result<(), SourceError> {
        for index in 0..self.lanes.len() {
            self.read_ahead(index)?;
        }
        if let ([only], true) = (&self.lanes[..], self.order.is_empty()) {
            tracing::warn!(path = %only.path.display(), "file holds no records to read");
        }
        self.started = true;
        Ok(())
    }
}

impl Source for FileSource {
    fn poll(&mut self, timeout: Duration) -> Result<Event, SourceError> {
        if let Some(assignments) = self.assignments.take() {
            return Ok(Event::Assigned(assignments));
        }
        if self.paused {
            std::thread::sleep(timeout);
            return Ok(Event::Idle);
        }
        if !self.started {
            self.start()?;
        }
        let Some(Reverse((time, index))) = self.order.peek().copied() else {
            return Ok(Event::End);
        };
        // A batch without records is due at any time.
        if let Some(replay) = self.replay.as_mut().filter(|_| time > i64::MIN) {
            let wait = replay.until(time, Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait.min(timeout));
                return Ok(Event::Idle);
            }
        }
        self.order.pop();
        let Some(mut batch) = self.lanes[index].ahead.take() else { return Ok(Event::Idle) };
        let rest = self.replay.as_mut().and_then(|replay| replay.cut(&mut batch, Instant::now()));
        match rest {
            Some(rest) => self.wait_with(index, rest),
            None => self.read_ahead(index)?,
        }
        Ok(Event::Batch(batch))
    }

    fn pause(&mut self, paused: bool) -> Result<(), SourceError> {
        self.paused = paused;
        Ok(())
    }

    /// Files are never revoked.
    fn release(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Positions in files are kept by the checkpoint.
    fn committer(&self) -> Option<Box<dyn Commit>> {
        None
    }
}

impl FileLane {
    fn read(&mut self, decoders: &mut [Decoder]) -> Result<Option<SourceBatch>, SourceError> {
        let (decoded, next_offset) = match &mut self.reader {
            Reader::Empty => return Ok(None),
            Reader::Table(rows) => match rows.read(&self.lane)? {
                None => return Ok(None),
                Some(decoded) => (decoded, rows.next_offset()),
            },
            Reader::Text { lines, decoder } => {
                let messages = lines.read()?;
                let damage = lines.take_damage();
                if messages.is_empty() && damage.is_none() {
                    return Ok(None);
                }
                let mut decoded = decoders[*decoder].decode(&self.lane, &messages)?;
                if let Some(Damage { line, bytes, reason }) = damage {
                    let mut cut = Messages::default();
                    cut.push(line, None, lines.key().map(str::as_bytes), &bytes, Vec::new());
                    let letter = decoders[*decoder].refuse(&self.lane, cut.get(0), reason);
                    decoded.dead_letters.push(letter);
                }
                (decoded, lines.next_offset())
            }
        };
        Ok(Some(SourceBatch {
            lane: self.lane.clone(),
            next_offset,
            appended_ms: None,
            payload: Payload::Decoded(decoded),
        }))
    }
}

/// Event time of the first record; a batch without records comes before all others.
fn first_time(decoded: &Decoded) -> i64 {
    let times = decoded.records.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
    times.values().first().copied().unwrap_or(i64::MIN)
}

/// Decoders by the columns of their files.
struct Dialects<'a> {
    records: &'a config::Records,
    encoding: &'a config::Encoding,
    decoders: Vec<Decoder>,
    /// Per decoder: its format, and the columns of its CSV files.
    by: Vec<(Format, Vec<String>)>,
    /// Compressed files that are left open.
    open: Arc<AtomicUsize>,
}

impl Dialects<'_> {
    /// Opens a CSV file past its header line.
    fn csv(
        &mut self,
        path: &Path,
        key: Option<String>,
        position: Option<i64>,
        batch_rows: usize,
    ) -> Result<Reader, SourceError> {
        let delimiter = crate::decode::csv::delimiter(&self.encoding.csv)
            .map_err(|error| file_error(path, error))?;
        let mut lines = Lines::open(path, Some(delimiter), key, position, batch_rows, &self.open)?;
        let columns = if self.encoding.csv.columns.is_empty() {
            match lines.header(delimiter)? {
                None => return Ok(Reader::Empty),
                Some(columns) => columns,
            }
        } else {
            self.encoding.csv.columns.clone()
        };
        let decoder = self.decoder(path, Format::Csv, columns)?;
        Ok(Reader::Text { lines: Box::new(lines), decoder })
    }

    fn decoder(
        &mut self,
        path: &Path,
        format: Format,
        columns: Vec<String>,
    ) -> Result<usize, SourceError> {
        let dialect = (format, columns);
        if let Some(known) = self.by.iter().position(|other| *other == dialect) {
            return Ok(known);
        }
        let mut encoding = config::Encoding { format: Some(format), ..self.encoding.clone() };
        encoding.csv.columns.clone_from(&dialect.1);
        let decoder =
            Decoder::new(self.records, &encoding).map_err(|error| file_error(path, error))?;
        self.decoders.push(decoder);
        self.by.push(dialect);
        Ok(self.decoders.len() - 1)
    }
}

fn file_error(path: &Path, reason: impl ToString) -> SourceError {
    SourceError::File { path: path.to_owned(), reason: reason.to_string() }
}

/// The key of a file's records where no field holds it: its path without the extension.
fn key_of(topic: &str) -> String {
    plain_name(Path::new(topic)).with_extension("").to_string_lossy().into_owned()
}

/// A file's name without what tells its compression.
fn plain_name(path: &Path) -> PathBuf {
    match Compression::of(path) {
        Some(_) => path.with_extension(""),
        None => path.to_owned(),
    }
}

/// (topic, path, format) of every file to read, by topic.
fn find_files(
    root: &Path,
    format: Option<Format>,
) -> Result<Vec<(Arc<str>, PathBuf, Format)>, SourceError> {
    let metadata = std::fs::metadata(root).map_err(|error| file_error(root, error))?;
    let mut found = Vec::new();
    if metadata.is_file() {
        let format = format.or_else(|| format_of(root)).ok_or_else(|| {
            file_error(root, format!("expected the extension {EXTENSIONS}, or source.format"))
        })?;
        let folder = root.parent().unwrap_or(Path::new(""));
        found.push((topic_of(folder, root)?, root.to_owned(), format));
        return Ok(found);
    }
    walk(root, root, format, &mut found)?;
    if found.is_empty() {
        let reason = format!("expected files with the extension {EXTENSIONS}, found none");
        return Err(file_error(root, reason));
    }
    found.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}

const EXTENSIONS: &str = ".csv, .json, .jsonl, .ndjson, .log, .parquet, .avro, .arrow or .arrows";

fn format_of(path: &Path) -> Option<Format> {
    match plain_name(path).extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" => Some(Format::Csv),
        "json" | "jsonl" | "ndjson" => Some(Format::Json),
        "log" => Some(Format::Log),
        "parquet" => Some(Format::Parquet),
        "avro" => Some(Format::Avro),
        "arrow" | "arrows" => Some(Format::Arrow),
        _ => None,
    }
}

fn walk(
    root: &Path,
    folder: &Path,
    format: Option<Format>,
    found: &mut Vec<(Arc<str>, PathBuf, Format)>,
) -> Result<(), SourceError> {
    for entry in std::fs::read_dir(folder).map_err(|error| file_error(folder, error))? {
        let entry = entry.map_err(|error| file_error(folder, error))?;
        let path = entry.path();
        // Half-written and bookkeeping files of other programs begin like this.
        if matches!(entry.file_name().as_encoded_bytes().first(), Some(b'.' | b'_')) {
            continue;
        }
        let kind = entry.file_type().map_err(|error| file_error(&path, error))?;
        // A link to a file is read; one to a folder may lead in a circle.
        if kind.is_dir() {
            walk(root, &path, format, found)?;
        } else if path.is_file()
            && let Some(format) = format.or_else(|| format_of(&path))
        {
            found.push((topic_of(root, &path)?, path, format));
        }
    }
    Ok(())
}

/// The path below `root`, its parts joined by `/`.
fn topic_of(root: &Path, path: &Path) -> Result<Arc<str>, SourceError> {
    let below = path.strip_prefix(root).unwrap_or(path);
    let parts: Option<Vec<&str>> = below.iter().map(|part| part.to_str()).collect();
    let parts = parts.ok_or_else(|| file_error(path, "expected a path in UTF-8"))?;
    Ok(parts.join("/").into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::arrow::array::{
        Array, ArrayRef, Date32Array, DictionaryArray, Float64Array, Int16Array, Int64Array,
        ListArray, RecordBatch, StringArray, StructArray, TimestampMillisecondArray,
    };
    use ::arrow::datatypes::{Float32Type, Int32Type, Int64Type};
    use ::parquet::arrow::ArrowWriter;
    use tempfile::TempDir;

    use super::*;
    use crate::config::{Layout, Records};
    use crate::decode::{DeadLetter, FIRST_CHANNEL_COLUMN, KEY_COLUMN, OFFSET_COLUMN};

    fn encoding() -> config::Encoding {
        config::Encoding::default()
    }

    /// Time in `t`, channels `a` and `b`, key from the file's name.
    fn records() -> Records {
        Records {
            time: Some("t".into()),
            channels: vec!["a".into(), "b".into()],
            ..Records::default()
        }
    }

    fn config(path: &Path, batch_rows: usize) -> config::FileSource {
        let csv = config::Csv::default();
        config::FileSource { csv, batch_rows, ..config::FileSource::new(path.to_owned()) }
    }

    fn open(path: &Path, batch_rows: usize) -> Result<FileSource, SourceError> {
        FileSource::open(&config(path, batch_rows), &records(), &encoding(), &BTreeMap::new())
    }

    fn write(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn write_parquet(folder: &TempDir, name: &str, columns: Vec<(&str, ArrayRef)>) -> PathBuf {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        write(folder, name, bytes)
    }

    /// All batches up to the end, after the assignment.
    fn batches(mut source: FileSource) -> Vec<SourceBatch> {
        assert!(matches!(source.poll(Duration::ZERO), Ok(Event::Assigned(_))));
        let mut batches = Vec::new();
        loop {
            match source.poll(Duration::ZERO).unwrap() {
                Event::Batch(batch) => batches.push(batch),
                Event::End => break,
                Event::Idle => std::thread::sleep(Duration::from_millis(1)),
                other => panic!("expected a batch or the end, found {other:?}"),
            }
        }
        assert!(matches!(source.poll(Duration::ZERO), Ok(Event::End)));
        batches
    }

    fn decoded(batch: &SourceBatch) -> &Decoded {
        match &batch.payload {
            Payload::Decoded(decoded) => decoded,
            Payload::Messages(_) => panic!("expected columns"),
        }
    }

    /// (key, time in seconds, offset, channels) of each record.
    type Record = (String, i64, i64, Vec<Option<f32>>);

    fn rows(batches: &[SourceBatch]) -> Vec<Record> {
        let mut rows = Vec::new();
        for batch in batches.iter().map(|batch| &decoded(batch).records) {
            let keys = batch.column(KEY_COLUMN).as_string::<i32>();
            let times = batch.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
            let offsets = batch.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                let channels = batch.columns()[FIRST_CHANNEL_COLUMN..]
                    .iter()
                    .map(|column| column.as_primitive::<Float32Type>())
                    .map(|column| column.is_valid(row).then(|| column.value(row)))
                    .collect();
                let time = times.value(row) / 1_000_000;
                rows.push((keys.value(row).to_owned(), time, offsets.value(row), channels));
            }
        }
        rows
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compressed_text_is_read_like_plain_text_from_any_line_on() {
        let text: String = (1..=9).map(|n| format!("{n},{n},\"0\n.5\"\n")).collect();
        let text = format!("\u{feff}t,a,note\n{text}");
        let folder = TempDir::new().unwrap();
        // A file of several members, as `cat a.gz b.gz` makes it.
        let (one, other) = text.split_at(30);
        write(&folder, "g.csv.gz", [gzip(one), gzip(other)].concat());
        write(&folder, "z.csv.zst", zstd::encode_all(text.as_bytes(), 3).unwrap());
        write(&folder, "p.csv", &text);
        let of = |name: &str, position: i64| {
            let path = folder.path().join(name);
            let positions = [(Lane::new(name, 0), position)].into();
            let source = FileSource::open(&config(&path, 2), &records(), &encoding(), &positions);
            let rows = rows(&batches(source.unwrap()));
            rows.into_iter().map(|row| (row.1, row.2, row.3)).collect::<Vec<_>>()
        };
        assert_eq!(of("p.csv", 1).len(), 9);
        for position in [1, 2, 4, 9, 18, 20] {
            assert_eq!(of("g.csv.gz", position), of("p.csv", position), "from {position}");
            assert_eq!(of("z.csv.zst", position), of("p.csv", position), "from {position}");
        }
        let keys = rows(&batches(open(&folder.path().join("g.csv.gz"), 10).unwrap()));
        assert_eq!(keys[0].0, "g");
    }

    #[test]
    fn of_a_compressed_file_that_is_cut_off_all_but_the_rest_is_read() {
        let text: String = (1..=999).map(|n| format!("{{\"t\":{n},\"a\":{n}}}\n")).collect();
        for (name, whole) in [
            ("x.jsonl.gz", gzip(&text)),
            ("x.jsonl.zst", zstd::encode_all(text.as_bytes(), 3).unwrap()),
        ] {
            let folder = TempDir::new().unwrap();
            let path = write(&folder, name, &whole[..whole.len() - 20]);
            write(&folder, "other.jsonl", "{\"t\":1,\"a\":1}\n");
            let all = batches(open(folder.path(), 100).unwrap());
            let letters = dead_letters(&all);
            assert_eq!(letters.len(), 1, "{name}");
            let reason = &letters[0].reason;
            assert!(reason.starts_with("expected more of the compressed file"), "{reason}");
            assert!(rows(&all).iter().any(|row| row.0 == "other"));
            // Once told, it is not told again.
            let positions = [(Lane::new(name, 0), letters[0].offset + 1)].into();
            let again = FileSource::open(&config(&path, 100), &records(), &encoding(), &positions);
            let again = batches(again.unwrap());
            assert!(rows(&again).is_empty() && dead_letters(&again).is_empty());
        }
    }

    #[test]
    fn a_replay_hands_out_records_when_they_are_due_and_resumes_between_them() {
        let folder = TempDir::new().unwrap();
        let path = write(&folder, "x.csv", "t,a\n0.0,1\n0.05,2\n0.1,x\n0.15,4\n");
        let config = config::FileSource { speed: 1.0, ..config(&path, 10) };
        let source = FileSource::open(&config, &records(), &encoding(), &BTreeMap::new()).unwrap();
        let all = batches(source);
        let offsets: Vec<i64> = rows(&all).iter().map(|row| row.2).collect();
        assert_eq!(offsets, [2, 3, 5]);
        assert!(all.len() > 1);
        assert_eq!(dead_letters(&all).len(), 1);
        let next: Vec<i64> = all.iter().map(|batch| batch.next_offset).collect();
        assert!(next.is_sorted() && next.last() == Some(&6), "{next:?}");
    }

    fn dead_letters(batches: &[SourceBatch]) -> Vec<&DeadLetter> {
        batches.iter().flat_map(|batch| &decoded(batch).dead_letters).collect()
    }

    fn row(key: &str, time: i64, offset: i64, a: f32, b: impl Into<Option<f32>>) -> Record {
        (key.to_owned(), time, offset, vec![Some(a), b.into()])
    }

    fn reason(result: Result<FileSource, SourceError>) -> String {
        match result {
            Err(SourceError::File { reason, .. }) => reason,
            Err(other) => panic!("expected a file error, found {other}"),
            Ok(_) => panic!("expected an error"),
        }
    }

    #[test]
    fn a_csv_file_is_one_lane_with_its_line_numbers_as_offsets() {
        let folder = TempDir::new().unwrap();
        let path = write(&folder, "pump.csv", "t, b ,a,note\n1,2,3,x\n\n2,,4,y\r\n3,5,6,z");
        let mut source = open(&path, 2).unwrap();
        let lane = Lane::new("pump.csv", 0);
        match source.poll(Duration::ZERO).unwrap() {
            Event::Assigned(assignments) => {
                assert_eq!(assignments, [Assignment { lane: lane.clone(), committed: None }]);
            }
            other => panic!("expected the assignment, found {other:?}"),
        }
        let batches = batches(open(&path, 2).unwrap());
        assert_eq!(
            rows(&batches),
            [
                row("pump", 1, 2, 3.0, 2.0),
                row("pump", 2, 4, 4.0, None),
                row("pump", 3, 5, 6.0, 5.0),
            ]
        );
        assert!(batches.iter().all(|batch| batch.lane == lane));
        let next: Vec<i64> = batches.iter().map(|batch| batch.next_offset).collect();
        assert_eq!(next, [5, 6]);
    }

    #[test]
    fn columns_of_a_csv_file_without_header_are_named_by_the_pipeline() {
        let folder = TempDir::new().unwrap();
        let path = write(&folder, "pump.csv", "1;2;3\n");
        let columns = ["t", "a", "b"].map(String::from).to_vec();
        let csv = config::Csv { delimiter: ';', columns };
        let config = config(&path, 10);
        let encoding = config::Encoding { csv, ..encoding() };
        let source = FileSource::open(&config, &records(), &encoding, &BTreeMap::new()).unwrap();
        assert_eq!(rows(&batches(source)), [row("pump", 1, 1, 2.0, 3.0)]);
    }

    #[test]
    fn a_quoted_field_may_go_over_several_lines() {
        let folder = TempDir::new().unwrap();
        let content = "t,note,a,b\n1,\"one\ntwo, \"\"three\"\"\n\nfour\",2,3\n2,5\" pipe,4,5\n";
        let path = write(&folder, "pump.csv", content);
        let batches = batches(open(&path, 1).unwrap());
        assert_eq!(rows(&batches), [row("pump", 1, 2, 2.0, 3.0), row("pump", 2, 6, 4.0, 5.0)]);
        assert!(dead_letters(&batches).is_empty());
    }

    #[test]
    fn a_quote_that_is_never_closed_costs_its_own_line_alone() {
        let folder = TempDir::new().unwrap();
        let rest: String = (2..9_000).map(|time| format!("{time},x,1,2\n")).collect();
        for rest in [rest.as_str(), "2,x,1,2\n"] {
            let path = write(&folder, "pump.csv", format!("t,note,a,b\n1,\"x,1,2\n{rest}"));
            let batches = batches(open(&path, 100).unwrap());
            let rows = rows(&batches);
            assert_eq!(rows.len(), rest.lines().count());
            assert_eq!(rows[0], row("pump", 2, 3, 1.0, 2.0));
            let letters = dead_letters(&batches);
            assert_eq!(letters.len(), 1);
            assert_eq!((letters[0].offset, letters[0].payload.as_slice()), (2, &b"1,\"x,1,2"[..]));
        }
    }

    #[test]
    fn bad_lines_become_dead_letters_and_the_rest_goes_on() {
        let folder = TempDir::new().unwrap();
        let content =
            b"\xEF\xBB\xBF{\"t\":1,\"a\":2,\"b\":3}\r\n{\"t\":2\n\n\xff\n{\"t\":3,\"a\":4}";
        let path = write(&folder, "pump.jsonl", content);
        let batches = batches(open(&path, 10).unwrap());
        assert_eq!(rows(&batches), [row("pump", 1, 1, 2.0, 3.0), row("pump", 3, 5, 4.0, None)]);
        let letters: Vec<_> = dead_letters(&batches)
            .into_iter()
            .map(|letter| (letter.offset, letter.payload.as_slice(), letter.key.as_deref()))
            .collect();
        let key = Some(&b"pump"[..]);
        assert_eq!(letters, [(2, &b"{\"t\":2"[..], key), (4, &b"\xff"[..], key)]);
    }

    #[test]
    fn files_of_a_folder_are_lanes_by_name_hidden_and_unknown_ones_left_out() {
        let folder = TempDir::new().unwrap();
        for name in [
            "b.csv",
            "a/x.JSON",
            "a/deep/y.ndjson",
            "notes.txt",
            ".hidden.csv",
            "_temporary/z.csv",
            "a/_success.csv",
            "README",
        ] {
            let csv = name.ends_with("csv");
            write(&folder, name, if csv { "t,a\n1,1\n" } else { "{\"t\":1,\"a\":1}" });
        }
        let mut source = open(folder.path(), 10).unwrap();
        let Event::Assigned(assigned) = source.poll(Duration::ZERO).unwrap() else {
            panic!("expected the assignment");
        };
        let topics: Vec<_> = assigned.iter().map(|one| one.lane.topic.to_string()).collect();
        assert_eq!(topics, ["a/deep/y.ndjson", "a/x.JSON", "b.csv"]);
        let keys: Vec<_> = rows(&batches(open(folder.path(), 10).unwrap()))
            .into_iter()
            .map(|record| record.0)
            .collect();
        assert_eq!(keys, ["a/deep/y", "a/x", "b"]);
    }

    #[test]
    fn a_format_that_is_given_holds_for_every_file() {
        let folder = TempDir::new().unwrap();
        write(&folder, "x.txt", "t,a\n1,1\n");
        let format = Some(Format::Csv);
        let config = config::FileSource { format, ..config(folder.path(), 10) };
        let source = FileSource::open(&config, &records(), &encoding(), &BTreeMap::new()).unwrap();
        assert_eq!(rows(&batches(source)), [row("x", 1, 2, 1.0, None)]);
    }

    #[test]
    fn no_lane_runs_ahead_of_the_others_by_more_than_a_batch() {
        let folder = TempDir::new().unwrap();
        let lines = |range: std::ops::Range<i64>| -> String {
            range.map(|time| format!("{{\"t\":{time},\"a\":1}}\n")).collect()
        };
        write(&folder, "early.json", lines(0..50));
        write(&folder, "late.json", lines(30..90));
        write(&folder, "whole.json", lines(0..90));
        let batches = batches(open(folder.path(), 10).unwrap());
        let starts: Vec<i64> =
            batches.iter().map(|batch| first_time(decoded(batch)) / 1_000_000).collect();
        assert!(starts.is_sorted(), "{starts:?}");
        assert_eq!(rows(&batches).len(), 200);
        let topics: Vec<_> =
            batches.iter().take(4).map(|batch| batch.lane.topic.to_string()).collect();
        assert_eq!(topics, ["early.json", "whole.json", "early.json", "whole.json"]);
    }

    #[test]
    fn reading_resumes_at_the_positions_given() {
        let folder = TempDir::new().unwrap();
        let lines: String = (0..20).map(|n| format!("{n},{n},\"x\ny\"\n\n")).collect();
        write(&folder, "a.csv", format!("t,a,note\n{lines}"));
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(5..25));
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(0..20));
        write_parquet(&folder, "b.parquet", vec![("t", times), ("b", values)]);

        let whole = batches(open(folder.path(), 3).unwrap());
        let all = rows(&whole);
        assert_eq!(all.len(), 40);
        for cut in 0..=whole.len() {
            let mut positions = BTreeMap::new();
            for batch in &whole[..cut] {
                positions.insert(batch.lane.clone(), batch.next_offset);
            }
            let config = config(folder.path(), 3);
            let mut source =
                FileSource::open(&config, &records(), &encoding(), &positions).unwrap();
            let Event::Assigned(assigned) = source.poll(Duration::ZERO).unwrap() else {
                panic!("expected the assignment");
            };
            for Assignment { lane, committed } in assigned {
                let expected = positions.get(&lane).map(|offset| (*offset, String::new()));
                assert_eq!(committed, expected);
            }
            let source = FileSource::open(&config, &records(), &encoding(), &positions).unwrap();
            let mut seen = rows(&whole[..cut]);
            seen.extend(rows(&batches(source)));
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn a_position_past_the_end_leaves_nothing_to_read() {
        let folder = TempDir::new().unwrap();
        write(&folder, "a.json", "{\"t\":1,\"a\":1}");
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(0..3));
        write_parquet(&folder, "b.parquet", vec![("t", Arc::clone(&times)), ("a", times)]);
        let positions = ["a.json", "b.parquet"].map(|topic| (Lane::new(topic, 0), 50)).into();
        let source =
            FileSource::open(&config(folder.path(), 3), &records(), &encoding(), &positions)
                .unwrap();
        assert!(batches(source).is_empty());
    }

    #[test]
    fn parquet_columns_of_any_sensible_type_are_read() {
        let folder = TempDir::new().unwrap();
        let times: ArrayRef = Arc::new(
            TimestampMillisecondArray::from(vec![Some(1_000), None, Some(3_000)])
                .with_timezone("+02:00"),
        );
        let a: ArrayRef = Arc::new(Int16Array::from(vec![Some(1), Some(2), None]));
        let b: DictionaryArray<Int32Type> = ["1.5", "x", "2.5"].into_iter().collect();
        let unused: ArrayRef = Arc::new(ListArray::new_null(
            Arc::new(::arrow::datatypes::Field::new_list_field(
                ::arrow::datatypes::DataType::Int64,
                true,
            )),
            3,
        ));
        let path = write_parquet(
            &folder,
            "x.parquet",
            vec![("unused", unused), ("b", Arc::new(b)), ("t", times), ("a", a)],
        );
        let batches = batches(open(&path, 10).unwrap());
        let expected = [row("x", 1, 1, 1.0, 1.5), ("x".to_owned(), 3, 3, vec![None, Some(2.5)])];
        assert_eq!(rows(&batches), expected);
        let letters = dead_letters(&batches);
        assert_eq!(letters.len(), 1);
        assert_eq!((letters[0].offset, letters[0].key.as_deref()), (2, Some(&b"x"[..])));
        assert_eq!(letters[0].payload, br#"{"b":"x","a":2}"#);
        assert!(letters[0].reason.starts_with("field \"t\": expected a time"));
    }

    #[test]
    fn long_parquet_rows_are_pivoted_by_code() {
        let folder = TempDir::new().unwrap();
        let path = write_parquet(
            &folder,
            "x.parquet",
            vec![
                ("bed", Arc::new(Int64Array::from(vec![7, 7, 7])) as ArrayRef),
                ("t", Arc::new(Date32Array::from(vec![1, 1, 1]))),
                ("code", Arc::new(StringArray::from(vec!["b", "other", "a"]))),
                ("value", Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]))),
            ],
        );
        let records = Records { layout: Layout::Long, key: Some("bed".into()), ..records() };
        let source =
            FileSource::open(&config(&path, 10), &records, &encoding(), &BTreeMap::new()).unwrap();
        let batches = batches(source);
        assert_eq!(rows(&batches), [row("7", 86_400, 3, 3.0, 1.0)]);
        assert_eq!(decoded(&batches[0]).skipped, 1);
    }

    /// Ten rows: t and a from 1, b null but in the first.
    fn ten_rows() -> RecordBatch {
        let numbers = || Int64Array::from_iter_values(1..=10);
        let b = Float64Array::from_iter((1..=10).map(|row| (row == 1).then_some(0.5)));
        let columns: Vec<(&str, ArrayRef, bool)> = vec![
            ("t", Arc::new(numbers()), false),
            ("a", Arc::new(numbers()), false),
            ("b", Arc::new(b), true),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    #[test]
    fn avro_and_arrow_files_resume_at_any_row_of_any_batch() {
        let rows_of = ten_rows();
        let schema = rows_of.schema();
        let halves = [rows_of.slice(0, 6), rows_of.slice(6, 4)];
        let mut avro =
            ::arrow_avro::writer::AvroWriter::new(Vec::new(), (*schema).clone()).unwrap();
        let mut file = ::arrow::ipc::writer::FileWriter::try_new(Vec::new(), &schema).unwrap();
        let mut stream = ::arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &schema).unwrap();
        for half in &halves {
            avro.write(half).unwrap();
            file.write(half).unwrap();
            stream.write(half).unwrap();
        }
        avro.finish().unwrap();
        let contents = [
            ("x.avro", avro.into_inner()),
            ("x.arrow", file.into_inner().unwrap()),
            ("x.arrows", stream.into_inner().unwrap()),
        ];
        for (name, content) in contents {
            let folder = TempDir::new().unwrap();
            let path = write(&folder, name, &content);
            let whole = batches(open(&path, 4).unwrap());
            let expected: Vec<Record> =
                (1..=10).map(|n| row("x", n, n, n as f32, (n == 1).then_some(0.5))).collect();
            assert_eq!(rows(&whole), expected, "{name}");
            assert!(whole.iter().all(|batch| decoded(batch).records.num_rows() <= 4));
            for position in 1..=11 {
                let positions = [(Lane::new(name, 0), position)].into();
                let source =
                    FileSource::open(&config(&path, 3), &records(), &encoding(), &positions);
                let left = rows(&batches(source.unwrap()));
                assert_eq!(left, expected[position as usize - 1..], "{name} from {position}");
            }
            // Cut off, it is told at which row.
            let path = write(&folder, name, &content[..content.len() * 3 / 4]);
            let mut source = open(&path, 100).unwrap();
            let mut cut = None;
            while cut.is_none() {
                match source.poll(Duration::ZERO) {
                    Ok(Event::End) => break,
                    Ok(_) => {}
                    Err(error) => cut = Some(error.to_string()),
                }
            }
            let reason = cut.unwrap_or_else(|| panic!("{name}: expected an error"));
            assert!(reason.contains(name) && reason.contains("rows from"), "{reason}");
        }
    }

    #[test]
    fn an_avro_file_is_read_by_the_readers_schema() {
        let folder = TempDir::new().unwrap();
        let rows_of = ten_rows();
        let mut avro =
            ::arrow_avro::writer::AvroWriter::new(Vec::new(), (*rows_of.schema()).clone()).unwrap();
        avro.write(&rows_of).unwrap();
        avro.finish().unwrap();
        let path = write(&folder, "x.avro", avro.into_inner());
        let schema = write(
            &folder,
            "reader.avsc",
            r#"{"type":"record","name":"topLevelRecord","fields":[
                {"name":"t","type":"long"},
                {"name":"c","type":"int","default":7},
                {"name":"a","type":"double"}]}"#,
        );
        let mut encoding = encoding();
        encoding.avro.schema = Some(schema);
        let source =
            FileSource::open(&config(&path, 1), &records(), &encoding, &BTreeMap::new()).unwrap();
        assert_eq!(rows(&batches(source))[0], row("x", 1, 1, 1.0, None));
    }

    #[test]
    fn fields_within_columns_are_found_by_their_paths() {
        let folder = TempDir::new().unwrap();
        let times: ArrayRef = Arc::new(Int64Array::from(vec![5]));
        let field = ::arrow::datatypes::Field::new("t", ::arrow::datatypes::DataType::Int64, true);
        let within: ArrayRef =
            Arc::new(StructArray::from(vec![(Arc::new(field), Arc::clone(&times))]));
        let path = write_parquet(&folder, "x.parquet", vec![("body", within), ("a", times)]);
        let records = Records { time: Some("body.t".into()), ..records() };
        let source =
            FileSource::open(&config(&path, 10), &records, &encoding(), &BTreeMap::new()).unwrap();
        assert_eq!(rows(&batches(source)), [row("x", 5, 1, 5.0, None)]);
    }

    #[test]
    fn files_without_the_columns_of_a_record_are_refused() {
        let folder = TempDir::new().unwrap();
        let csv = write(&folder, "x.csv", "time,a\n1,2\n");
        assert_eq!(
            reason(open(&csv, 10)),
            "records.time: expected \"t\" among the columns, found \"time\", \"a\""
        );
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let parquet = write_parquet(
            &folder,
            "x.parquet",
            vec![("t", Arc::clone(&numbers)), ("c", Arc::clone(&numbers))],
        );
        assert_eq!(
            reason(open(&parquet, 10)),
            "records.channels: expected \"a\", \"b\" among the columns, found \"t\", \"c\""
        );
        let nested: ArrayRef = Arc::new(::arrow::array::StructArray::from(
            RecordBatch::try_from_iter([("x", Arc::clone(&numbers))]).unwrap(),
        ));
        let parquet = write_parquet(&folder, "y.parquet", vec![("t", numbers), ("a", nested)]);
        assert!(reason(open(&parquet, 10)).starts_with("column \"a\": expected text, numbers"));
    }

    #[test]
    fn what_cannot_be_read_at_all_is_an_error_that_names_it() {
        let folder = TempDir::new().unwrap();
        write(&folder, "notes.txt", "");
        assert_eq!(
            reason(open(folder.path(), 10)),
            "expected files with the extension .csv, .json, .jsonl, .ndjson, .log, .parquet, \
             .avro, .arrow or .arrows, found none"
        );
        assert!(reason(open(&folder.path().join("notes.txt"), 10)).contains("source.format"));
        assert!(matches!(
            open(&folder.path().join("gone"), 10),
            Err(SourceError::File { path, .. }) if path.ends_with("gone")
        ));
        let garbage = write(&folder, "x.parquet", "not parquet at all");
        assert!(matches!(
            open(&garbage, 10),
            Err(error @ SourceError::File { .. }) if !error.is_retryable()
        ));
    }

    #[test]
    fn empty_files_hold_no_records_and_no_error() {
        let folder = TempDir::new().unwrap();
        for (name, content) in
            [("a.csv", ""), ("b.csv", "t,a\n"), ("c.json", "\n\n"), ("d.csv", "\n \nt,a\n9,1\n")]
        {
            write(&folder, name, content);
        }
        assert_eq!(rows(&batches(open(folder.path(), 10).unwrap())), [row("d", 9, 4, 1.0, None)]);
        assert!(batches(open(&folder.path().join("a.csv"), 10).unwrap()).is_empty());
    }

    #[test]
    fn a_paused_source_is_idle_until_it_is_resumed() {
        let folder = TempDir::new().unwrap();
        let path = write(&folder, "x.json", "{\"t\":1,\"a\":1}");
        let mut source = open(&path, 10).unwrap();
        source.poll(Duration::ZERO).unwrap();
        source.pause(true).unwrap();
        assert!(matches!(source.poll(Duration::ZERO), Ok(Event::Idle)));
        source.pause(false).unwrap();
        assert!(matches!(source.poll(Duration::ZERO), Ok(Event::Batch(_))));
        assert!(source.committer().is_none());
    }
}
