//! Text files, a batch of lines at a time.
//!
//! A line is a message; in CSV, a quoted field may carry a record over several lines, and the
//! record has the number of its first. Blank lines are counted and skipped. The file is open only
//! while a batch is read, so that a folder may hold more files than a process may open.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow::csv::reader::Format;
use chrono::{DateTime, Utc};

use super::file_error;
use crate::source::{Messages, SourceError};

/// A batch ends at this size, however few its lines.
const BATCH_BYTES: usize = 16 << 20;
/// No line is longer; what is longer is not a text file.
const MAX_LINE_BYTES: u64 = 128 << 20;
/// A quoted field that goes on over more than this is taken for a stray quote.
const MAX_QUOTED_BYTES: usize = 64 << 10;
const BUFFER_BYTES: usize = 256 << 10;
const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// The lines of one file.
pub(super) struct Lines {
    path: PathBuf,
    /// Of CSV.
    delimiter: Option<u8>,
    /// Key given to every message.
    key: Option<String>,
    /// When the file was last changed, milliseconds since the epoch: the time of its messages.
    modified_ms: Option<i64>,
    batch_rows: usize,
    /// Number of the first line wanted.
    first_wanted: i64,
    /// Number of the next line, and the byte at which it begins.
    line: i64,
    position: u64,
}

impl Lines {
    /// The lines from number `position` on.
    pub fn open(
        path: &Path,
        delimiter: Option<u8>,
        key: Option<String>,
        position: Option<i64>,
        batch_rows: usize,
    ) -> Result<Self, SourceError> {
        let mut mark = Vec::new();
        let file = File::open(path).map_err(|error| file_error(path, error))?;
        let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
        file.take(BYTE_ORDER_MARK.len() as u64)
            .read_to_end(&mut mark)
            .map_err(|error| file_error(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            delimiter,
            key,
            modified_ms: modified.map(|time| DateTime::<Utc>::from(time).timestamp_millis()),
            batch_rows,
            first_wanted: position.unwrap_or(1),
            line: 1,
            position: if mark == BYTE_ORDER_MARK { mark.len() as u64 } else { 0 },
        })
    }

    /// Number of the line at which the next batch begins.
    pub fn next_offset(&self) -> i64 {
        self.line
    }

    /// Reads the column names of a CSV file from its first line that is not blank; `None` if there
    /// is none.
    pub fn header(&mut self, delimiter: u8) -> Result<Option<Vec<String>>, SourceError> {
        let mut reader = self.reader()?;
        let mut record = Vec::new();
        while self.next_record(&mut reader, &mut record)?.is_some() {
            if is_blank(&record) {
                continue;
            }
            let format = Format::default().with_header(true).with_delimiter(delimiter);
            let (schema, _) = format
                .infer_schema(&record[..], Some(0))
                .map_err(|error| file_error(&self.path, format!("header line: {error}")))?;
            let names = schema.fields().iter().map(|field| field.name().trim().to_owned());
            return Ok(Some(names.collect()));
        }
        Ok(None)
    }

    /// The next batch, empty at the end of the file.
    pub fn read(&mut self) -> Result<Messages, SourceError> {
        let mut reader = self.reader()?;
        let mut messages = Messages::default();
        let mut record = Vec::new();
        while messages.len() < self.batch_rows && messages.byte_len() < BATCH_BYTES {
            let Some(number) = self.next_record(&mut reader, &mut record)? else { break };
            if number >= self.first_wanted && !is_blank(&record) {
                let key = self.key.as_deref().map(str::as_bytes);
                messages.push(number, self.modified_ms, key, &record, Vec::new());
            }
        }
        Ok(messages)
    }

    fn reader(&self) -> Result<BufReader<File>, SourceError> {
        let open = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.position))?;
            Ok(BufReader::with_capacity(BUFFER_BYTES, file))
        };
        open().map_err(|error: std::io::Error| file_error(&self.path, error))
    }

    /// Reads one record without its line end into `record` and returns its line number.
    fn next_record(
        &mut self,
        reader: &mut BufReader<File>,
        record: &mut Vec<u8>,
    ) -> Result<Option<i64>, SourceError> {
        let number = self.line;
        let failed =
            |error: std::io::Error| file_error(&self.path, format!("line {number}: {error}"));
        record.clear();
        let length =
            reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', record).map_err(failed)?;
        if length == 0 {
            return Ok(None);
        }
        if length as u64 == MAX_LINE_BYTES {
            let reason = format!(
                "line {number}: expected at most {} MiB, found a longer line: is this a text file?",
                MAX_LINE_BYTES >> 20
            );
            return Err(file_error(&self.path, reason));
        }
        let mut lines = 1;
        if let Some(delimiter) = self.delimiter.filter(|_| record.contains(&b'"')) {
            lines += append_quoted_lines(reader, record, delimiter).map_err(failed)?;
        }
        self.position += record.len() as u64;
        self.line += lines;
        while matches!(record.last(), Some(b'\n' | b'\r')) {
            record.pop();
        }
        Ok(Some(number))
    }
}

/// Appends the lines that `record` goes on over because a quoted field is open at its end, and
/// returns their number. A quote that is never closed is a fault of its own line alone.
fn append_quoted_lines(
    reader: &mut BufReader<File>,
    record: &mut Vec<u8>,
    delimiter: u8,
) -> std::io::Result<i64> {
    let first_line = record.len();
    let mut scanned = 0;
    let mut lines = 0;
    let mut quoting = Quoting::FieldStart;
    loop {
        quoting =
            record[scanned..].iter().fold(quoting, |state, byte| state.after(*byte, delimiter));
        if quoting != Quoting::Quoted {
            return Ok(lines);
        }
        scanned = record.len();
        let left = (first_line + MAX_QUOTED_BYTES).saturating_sub(scanned);
        if left == 0 || reader.by_ref().take(left as u64).read_until(b'\n', record)? == 0 {
            reader.seek_relative(-((scanned - first_line) as i64))?;
            record.truncate(first_line);
            return Ok(0);
        }
        lines += 1;
    }
}

/// Where in a CSV record a scan stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quoting {
    FieldStart,
    Unquoted,
    Quoted,
    /// Behind a quote that closes the field, unless another follows.
    Closing,
}

impl Quoting {
    fn after(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::Closing,
            (Self::Quoted, _) | (Self::FieldStart | Self::Closing, b'"') => Self::Quoted,
            (_, byte) if byte == delimiter => Self::FieldStart,
            _ => Self::Unquoted,
        }
    }
}

fn is_blank(record: &[u8]) -> bool {
    record.iter().all(u8::is_ascii_whitespace)
}
