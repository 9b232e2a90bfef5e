//! Records as JSON messages, JSON lines and CSV.
//!
//! Fields are named as `[records]` names them: the key (where it names one), the time as RFC 3339,
//! the channels. Layout is wide. Batches are in [`records_schema`](crate::decode::records_schema).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{Float32Type, TimestampMicrosecondType};
use chrono::{DateTime, SecondsFormat};

use super::fault::Fault;
use crate::config::{Format, Records};
use crate::decode::{FIRST_CHANNEL_COLUMN, KEY_COLUMN, TIME_COLUMN};
use crate::source::SourceError;

/// One JSON message per record, with its key: what goes to Kafka.
///
/// # Panics
/// If `batch` is not in [`records_schema`](crate::decode::records_schema).
pub fn json_messages<'a>(
    batch: &'a RecordBatch,
    records: &Records,
) -> impl Iterator<Item = (&'a [u8], Vec<u8>)> {
    let mut rows = JsonRows::new(batch, records);
    (0..batch.num_rows()).map(move |row| {
        let mut payload = Vec::with_capacity(rows.typical_length);
        rows.append(row, &mut payload);
        (rows.columns.keys.value(row).as_bytes(), payload)
    })
}

/// One JSON object per record, a line each.
///
/// # Errors
/// If `out` cannot be written.
///
/// # Panics
/// If `batch` is not in [`records_schema`](crate::decode::records_schema).
pub fn write_json_lines(
    batch: &RecordBatch,
    records: &Records,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut rows = JsonRows::new(batch, records);
    let mut line = Vec::with_capacity(rows.typical_length);
    for row in 0..batch.num_rows() {
        line.clear();
        rows.append(row, &mut line);
        line.push(b'\n');
        out.write_all(&line)?;
    }
    Ok(())
}

/// Comma-separated values; a missing one is empty. The first batch of a file brings the `header`.
///
/// # Errors
/// If `out` cannot be written.
///
/// # Panics
/// If `batch` is not in [`records_schema`](crate::decode::records_schema).
pub fn write_csv(
    batch: &RecordBatch,
    records: &Records,
    header: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut columns = Columns::of(batch);
    let mut line = Vec::new();
    if header {
        let names = records.key.iter().chain(&records.time).chain(&records.channels);
        for name in names {
            append_csv_field(name, &mut line);
            line.push(b',');
        }
        end_csv_line(&mut line, out)?;
    }
    for row in 0..batch.num_rows() {
        if records.key.is_some() {
            append_csv_field(columns.keys.value(row), &mut line);
            line.push(b',');
        }
        line.extend_from_slice(columns.times.text(row).as_bytes());
        line.push(b',');
        for channel in &columns.channels {
            if let Some(value) = observed(channel, row) {
                write!(line, "{value}")?;
            }
            line.push(b',');
        }
        end_csv_line(&mut line, out)?;
    }
    Ok(())
}

/// Writes the line, whose last comma becomes its end, and empties it.
fn end_csv_line(line: &mut Vec<u8>, out: &mut impl Write) -> io::Result<()> {
    line.pop();
    line.push(b'\n');
    out.write_all(line)?;
    line.clear();
    Ok(())
}

fn append_csv_field(text: &str, line: &mut Vec<u8>) {
    if text.contains([',', '"', '\n', '\r']) {
        line.push(b'"');
        line.extend_from_slice(text.replace('"', "\"\"").as_bytes());
        line.push(b'"');
    } else {
        line.extend_from_slice(text.as_bytes());
    }
}

/// A folder of generated records: `records.jsonl` or `records.csv`, and `_faults.jsonl` with the
/// [`Fault`]s that were injected into them. The underscore hides it from whoever reads the folder
/// as records.
pub struct RecordFolder {
    records: Records,
    format: Format,
    path: PathBuf,
    out: BufWriter<File>,
    faults_path: PathBuf,
    faults_out: BufWriter<File>,
    is_empty: bool,
}

impl RecordFolder {
    /// Makes the folder, and the files in it anew. `format` is JSON or CSV.
    ///
    /// # Errors
    /// If the folder or a file cannot be made, or the format is another.
    pub fn create(folder: &Path, records: &Records, format: Format) -> Result<Self, SourceError> {
        let name = match format {
            Format::Json => "records.jsonl",
            Format::Csv => "records.csv",
            _ => {
                return Err(SourceError::File {
                    path: folder.to_owned(),
                    reason: format!("records are generated as json or csv, not {format:?}"),
                });
            }
        };
        std::fs::create_dir_all(folder).map_err(file_error(folder))?;
        let (path, faults_path) = (folder.join(name), folder.join("_faults.jsonl"));
        let create = |path: &Path| File::create(path).map(BufWriter::new).map_err(file_error(path));
        Ok(Self {
            records: records.clone(),
            format,
            out: create(&path)?,
            path,
            faults_out: create(&faults_path)?,
            faults_path,
            is_empty: true,
        })
    }

    /// Appends a batch of records.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), SourceError> {
        let header = std::mem::take(&mut self.is_empty);
        match self.format {
            Format::Csv => write_csv(batch, &self.records, header, &mut self.out),
            _ => write_json_lines(batch, &self.records, &mut self.out),
        }
        .map_err(file_error(&self.path))
    }

    /// Appends faults, a JSON object a line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_faults(&mut self, faults: &[Fault]) -> Result<(), SourceError> {
        for fault in faults {
            serde_json::to_writer(&mut self.faults_out, fault)
                .map_err(io::Error::from)
                .and_then(|()| self.faults_out.write_all(b"\n"))
                .map_err(file_error(&self.faults_path))?;
        }
        Ok(())
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn finish(mut self) -> Result<(), SourceError> {
        self.out.flush().map_err(file_error(&self.path))?;
        self.faults_out.flush().map_err(file_error(&self.faults_path))
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> SourceError + '_ {
    |error| SourceError::File { path: path.to_owned(), reason: error.to_string() }
}

/// Records of a batch as JSON objects.
struct JsonRows<'a> {
    columns: Columns<'a>,
    /// `"machine":`, where records have a key.
    key_name: Option<Vec<u8>>,
    /// `"ts":"`.
    time_name: Vec<u8>,
    /// `","temperature":` and so on.
    channel_names: Vec<Vec<u8>>,
    typical_length: usize,
}

impl<'a> JsonRows<'a> {
    fn new(batch: &'a RecordBatch, records: &Records) -> Self {
        let named = |name: &str| {
            let mut text = json_text(name);
            text.push(b':');
            text
        };
        let mut time_name = named(records.time.as_deref().unwrap_or("time"));
        time_name.push(b'"');
        let channel_names: Vec<Vec<u8>> =
            records.channels.iter().map(|name| [b",", &*named(name)].concat()).collect();
        let names: usize = channel_names.iter().map(Vec::len).sum();
        Self {
            columns: Columns::of(batch),
            key_name: records.key.as_deref().map(named),
            time_name,
            typical_length: 96 + names + 12 * channel_names.len(),
            channel_names,
        }
    }

    fn append(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'{');
        if let Some(key_name) = &self.key_name {
            out.extend_from_slice(key_name);
            out.extend_from_slice(&json_text(self.columns.keys.value(row)));
            out.push(b',');
        }
        out.extend_from_slice(&self.time_name);
        out.extend_from_slice(self.columns.times.text(row).as_bytes());
        out.push(b'"');
        for (name, channel) in self.channel_names.iter().zip(&self.columns.channels) {
            out.extend_from_slice(name);
            match observed(channel, row) {
                // Writing to memory does not fail; of finite numbers, Rust's text is JSON's.
                Some(value) => {
                    let _ = write!(out, "{value}");
                }
                None => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
    }
}

/// `text` in quotes, escaped.
fn json_text(text: &str) -> Vec<u8> {
    serde_json::Value::from(text).to_string().into_bytes()
}

/// Typed columns of a batch.
struct Columns<'a> {
    keys: &'a StringArray,
    times: Times<'a>,
    channels: Vec<&'a Float32Array>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Self {
        let channels = &batch.columns()[FIRST_CHANNEL_COLUMN..];
        Self {
            keys: batch.column(KEY_COLUMN).as_string(),
            times: Times {
                values: batch
                    .column(TIME_COLUMN)
                    .as_primitive::<TimestampMicrosecondType>()
                    .values(),
                time: None,
                text: String::new(),
            },
            channels: channels.iter().map(|column| column.as_primitive::<Float32Type>()).collect(),
        }
    }
}

/// Event times as text, kept from one record to the next: machines share theirs.
struct Times<'a> {
    values: &'a [i64],
    time: Option<i64>,
    text: String,
}

impl Times<'_> {
    fn text(&mut self, row: usize) -> &str {
        let time = self.values[row];
        if self.time != Some(time) {
            self.time = Some(time);
            self.text = DateTime::from_timestamp_micros(time)
                .unwrap_or_default()
                .to_rfc3339_opts(SecondsFormat::AutoSi, true);
        }
        &self.text
    }
}

fn observed(channel: &Float32Array, row: usize) -> Option<f32> {
    (channel.is_valid(row)).then(|| channel.value(row)).filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::TimestampMicrosecondArray;
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;
    use crate::config::{GeneratorSource, TimeSpan};
    use crate::decode::records_schema;
    use crate::source::generator::{EPOCH, Plant};

    fn records(key: Option<&str>) -> Records {
        Records {
            key: key.map(str::to_owned),
            time: Some("ts".to_owned()),
            channels: vec!["temperature".to_owned(), "a \"b\", c".to_owned()],
            ..Records::default()
        }
    }

    /// Two records, with a missing value and a fraction of a second.
    fn batch() -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["m-1", "m \"2\",x"])),
            Arc::new(
                TimestampMicrosecondArray::from(vec![EPOCH, EPOCH + 1_500_000])
                    .with_timezone("UTC"),
            ),
            Arc::new(Int64Array::from(vec![0, 1])),
            Arc::new(Float32Array::from(vec![Some(20.25), None])),
            Arc::new(Float32Array::from(vec![1e-7, f32::NAN])),
        ];
        RecordBatch::try_new(records_schema(&records(None).channels), columns).unwrap()
    }

    #[test]
    fn messages_are_json_objects_with_the_fields_of_the_pipeline_file() {
        let batch = batch();

        let messages: Vec<_> = json_messages(&batch, &records(Some("machine"))).collect();

        let keys: Vec<_> = messages.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, [b"m-1".as_slice(), b"m \"2\",x"]);
        let objects: Vec<serde_json::Value> =
            messages.iter().map(|(_, payload)| serde_json::from_slice(payload).unwrap()).collect();
        assert_eq!(
            objects,
            [
                serde_json::json!({
                    "machine": "m-1",
                    "ts": "2026-01-01T00:00:00Z",
                    "temperature": 20.25,
                    "a \"b\", c": 1e-7
                }),
                serde_json::json!({
                    "machine": "m \"2\",x",
                    "ts": "2026-01-01T00:00:01.500Z",
                    "temperature": null,
                    "a \"b\", c": null
                }),
            ]
        );
    }

    #[test]
    fn json_lines_are_the_same_objects_one_a_line() {
        let batch = batch();
        let records = records(None);
        let mut lines = Vec::new();

        write_json_lines(&batch, &records, &mut lines).unwrap();

        let lines: Vec<_> = lines.strip_suffix(b"\n").unwrap().split(|b| *b == b'\n').collect();
        let messages: Vec<_> = json_messages(&batch, &records).map(|(_, text)| text).collect();
        assert_eq!(lines, messages);
        assert!(lines[0].starts_with(b"{\"ts\":\""), "no key where records name none");
    }

    #[test]
    fn csv_quotes_what_needs_it_and_leaves_missing_values_empty() {
        let mut text = Vec::new();

        write_csv(&batch(), &records(Some("machine")), true, &mut text).unwrap();

        assert_eq!(
            String::from_utf8(text).unwrap(),
            "machine,ts,temperature,\"a \"\"b\"\", c\"\n\
             m-1,2026-01-01T00:00:00Z,20.25,0.0000001\n\
             \"m \"\"2\"\",x\",2026-01-01T00:00:01.500Z,,\n"
        );
    }

    #[test]
    fn a_folder_holds_all_records_one_header_and_the_faults() {
        let config = GeneratorSource {
            machines: 2,
            fault_every: TimeSpan::from_secs(20),
            fault_after: TimeSpan::default(),
            ..Default::default()
        };
        let records = records(Some("machine"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made");
        for (format, file, lines) in
            [(Format::Csv, "records.csv", 201), (Format::Json, "records.jsonl", 200)]
        {
            let mut plant = Plant::new(&config, &records.channels);
            let mut out = RecordFolder::create(&path, &records, format).unwrap();
            for _ in 0..2 {
                out.write(&plant.next_batch(100)).unwrap();
            }
            let faults = plant.take_faults();
            out.write_faults(&faults).unwrap();
            out.finish().unwrap();

            let text = std::fs::read_to_string(path.join(file)).unwrap();
            assert_eq!(text.lines().count(), lines);
            let written: Vec<Fault> = std::fs::read_to_string(path.join("_faults.jsonl"))
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert!(!written.is_empty());
            assert_eq!(written, faults);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();

        let error = RecordFolder::create(&file, &records(None), Format::Json).err().unwrap();

        assert!(error.to_string().starts_with(&file.display().to_string()), "{error}");
    }
}
