//! Files that hold columns or typed records, a batch of rows at a time: Parquet, Avro's object
//! containers, Arrow's files and streams.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use arrow_avro::reader::ReaderBuilder;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::file_error;
use crate::config::{Encoding, Records};
use crate::decode::arrow_columns::{Columns, is_readable, names_of, roots_of, type_at};
use crate::decode::arrow_ipc::Batches;
use crate::decode::columns::{RowBuilder, RowRules, quoted};
use crate::decode::{DeadLetter, Decoded, avro_schema, withheld};
use crate::source::{Lane, SourceError};

/// What a file of Arrow begins with, unlike a stream of it; a stream follows, and an index.
const ARROW_FILE: &[u8; 8] = b"ARROW1\0\0";

/// Length of what stands at the end of each block of a file of Avro.
const AVRO_MARK_BYTES: usize = 16;

/// How a file holds its rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Container {
    Parquet,
    Avro,
    Arrow,
}

/// The rows of one file.
pub(super) struct TableRows {
    path: PathBuf,
    rules: Arc<RowRules>,
    /// Key of every record, where no column holds it.
    key: Option<String>,
    batches: RowBatches,
    /// Rows to pass over before the next one.
    skip: usize,
    /// What was read of the file and not handed out yet.
    rest: Option<RecordBatch>,
    batch_rows: usize,
    /// Number of the next row, from 1.
    next_row: i64,
}

type RowBatches = Box<dyn Iterator<Item = Result<RecordBatch, String>> + Send>;

impl TableRows {
    /// The rows from number `position` on, in the columns that `records` names.
    pub fn open(
        path: &Path,
        container: Container,
        records: &Records,
        encoding: &Encoding,
        key: Option<String>,
        position: Option<i64>,
        batch_rows: usize,
    ) -> Result<Self, SourceError> {
        let rules = RowRules::new(records).map_err(|error| file_error(path, error))?;
        let rules = Arc::new(rules);
        let file = File::open(path).map_err(|error| file_error(path, error))?;
        let next_row = position.unwrap_or(1).max(1);
        let skip = usize::try_from(next_row - 1).unwrap_or(usize::MAX);
        let (batches, skip) = match container {
            Container::Parquet => (parquet(path, file, &rules, skip, batch_rows)?, 0),
            Container::Avro => (avro(path, file, &rules, encoding, batch_rows)?, skip),
            Container::Arrow => (arrow(path, file, &rules)?, skip),
        };
        let path = path.to_owned();
        Ok(Self { path, rules, key, batches, skip, rest: None, batch_rows, next_row })
    }

    /// Number of the row at which the next batch begins.
    pub fn next_offset(&self) -> i64 {
        self.next_row
    }

    /// The next batch; `None` at the end of the file.
    pub fn read(&mut self, lane: &Lane) -> Result<Option<Decoded>, SourceError> {
        let first = self.next_row;
        let failed = |path: &Path, error: &dyn std::fmt::Display| {
            file_error(path, format!("rows from {first} on: {error}"))
        };
        let next = self.next_rows().map_err(|reason| failed(&self.path, &reason))?;
        let Some(batch) = next else { return Ok(None) };
        self.next_row += batch.num_rows() as i64;
        let decoded = self.decode(lane, &batch, first);
        decoded.map(Some).map_err(|error| failed(&self.path, &error))
    }

    /// The next rows, at most `batch_rows`, as they lie in the file.
    fn next_rows(&mut self) -> Result<Option<RecordBatch>, String> {
        let batch = loop {
            let batch = match self.rest.take() {
                Some(rest) => rest,
                None => match self.batches.next() {
                    Some(batch) => batch?,
                    None => return Ok(None),
                },
            };
            let passed = self.skip.min(batch.num_rows());
            self.skip -= passed;
            if passed < batch.num_rows() {
                break batch.slice(passed, batch.num_rows() - passed);
            }
        };
        let rows = batch.num_rows().min(self.batch_rows);
        if rows < batch.num_rows() {
            self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
        }
        Ok(Some(batch.slice(0, rows)))
    }

    fn decode(&self, lane: &Lane, batch: &RecordBatch, first: i64) -> Result<Decoded, ArrowError> {
        let columns = Columns::of(&self.rules, batch)?;
        let mut rows = RowBuilder::with_capacity(&self.rules, batch.num_rows());
        for row in 0..batch.num_rows() {
            rows.push(&columns.row(row));
        }
        let rows = rows.finish();

        let dead_letters = rows
            .faults()
            .map(|(row, reason)| {
                let letter = DeadLetter {
                    lane: lane.clone(),
                    offset: first + row as i64,
                    key: self.key.clone().map(String::into_bytes),
                    payload: as_json(&batch.slice(row, 1)),
                    headers: Vec::new(),
                    stage: "decode",
                    reason: reason.to_owned(),
                };
                withheld(&self.rules, letter)
            })
            .collect();
        let keys = match &self.key {
            None => rows.keys(),
            Some(key) => StringArray::from_iter_values(std::iter::repeat_n(key, batch.num_rows())),
        };
        let offsets = Int64Array::from_iter_values((first..).take(batch.num_rows()));
        let skipped = rows.skipped();
        let times = Int64Array::from_iter_values(rows.times().iter().copied());
        let records = rows.into_records(&self.rules, keys, times, offsets);
        let out_of_range = self.rules.take_out_of_range();
        Ok(Decoded { records, dead_letters, skipped, out_of_range })
    }
}

fn parquet(
    path: &Path,
    file: File,
    rules: &RowRules,
    skip: usize,
    batch_rows: usize,
) -> Result<RowBatches, SourceError> {
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| file_error(path, error))?;
    check_columns(path, rules, builder.schema())?;
    let wanted = roots_of(rules, builder.schema());
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
    let reader = builder
        .with_projection(mask)
        .with_batch_size(batch_rows)
        .with_offset(skip)
        .build()
        .map_err(|error| file_error(path, error))?;
    Ok(Box::new(reader.map(|batch| batch.map_err(|error| error.to_string()))))
}

fn avro(
    path: &Path,
    file: File,
    rules: &RowRules,
    encoding: &Encoding,
    batch_rows: usize,
) -> Result<RowBatches, SourceError> {
    let mut builder = ReaderBuilder::new().with_batch_size(batch_rows);
    if let Some(schema) = &encoding.avro.schema {
        let schema = avro_schema(schema).map_err(|error| file_error(path, error))?;
        builder = builder.with_reader_schema(schema);
    }
    let tail = tail(&file).map_err(|error| file_error(path, error))?;
    let reader = builder.build(BufReader::new(file)).map_err(|error| file_error(path, error))?;
    check_columns(path, rules, &reader.schema())?;
    // The reader takes a file that breaks off within a block for one that ends before it.
    let is_whole = tail == reader.avro_header().sync();
    let broken = "expected the mark of a block's end, found the file's end".to_owned();
    let batches = reader.map(|batch| batch.map_err(|error| error.to_string()));
    Ok(Box::new(batches.chain((!is_whole).then_some(Err(broken)))))
}

/// The last bytes of a file of Avro, where its mark is; zeros where it has not as many.
fn tail(mut file: &File) -> std::io::Result<[u8; AVRO_MARK_BYTES]> {
    let mut tail = [0; AVRO_MARK_BYTES];
    let length = file.metadata()?.len();
    if let Some(start) = length.checked_sub(AVRO_MARK_BYTES as u64) {
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut tail)?;
        file.rewind()?;
    }
    Ok(tail)
}

fn arrow(path: &Path, file: File, rules: &Arc<RowRules>) -> Result<RowBatches, SourceError> {
    let failed = |error: std::io::Error| file_error(path, error);
    let mut length = file.metadata().map_err(failed)?.len();
    let mut reader = BufReader::new(file);
    let mut word = ARROW_FILE;
    // Zeros follow, up to where the writer wanted its first part to lie.
    while reader.fill_buf().map_err(failed)?.starts_with(word) {
        reader.consume(word.len());
        length -= word.len() as u64;
        word = &[0; ARROW_FILE.len()];
    }
    let mut batches = Batches::new(reader, length, Arc::clone(rules));
    let schema = batches.schema().map_err(|reason| file_error(path, reason))?;
    check_columns(path, rules, &schema)?;
    Ok(Box::new(std::iter::from_fn(move || {
        batches.renew();
        batches.read().transpose()
    })))
}

/// Checks that a file has columns to read records from, and says which channels it lacks.
fn check_columns(path: &Path, rules: &RowRules, schema: &Schema) -> Result<(), SourceError> {
    let names = names_of(schema);
    let mut held = names.clone();
    for field in rules.fields() {
        let Some(found) = type_at(schema, field) else { continue };
        if !is_readable(found) {
            let reason =
                format!("column \"{field}\": expected text, numbers or times, found {found}");
            return Err(file_error(path, reason));
        }
        if !held.contains(field) {
            held.push(field.clone());
        }
    }
    for channel in rules.check_columns(&held).map_err(|error| file_error(path, error))? {
        tracing::warn!(
            path = %path.display(),
            channel,
            columns = quoted(&names),
            "channel is not among the columns: its values are missing"
        );
    }
    Ok(())
}

/// The row as a person would want to find it in a dead letter; empty where it holds what JSON
/// cannot.
fn as_json(row: &RecordBatch) -> Vec<u8> {
    let write = || -> Result<Vec<u8>, ArrowError> {
        let mut json = Vec::new();
        let mut writer = LineDelimitedWriter::new(&mut json);
        writer.write(row)?;
        writer.finish()?;
        json.truncate(json.trim_ascii_end().len());
        Ok(json)
    };
    write().unwrap_or_default()
}
