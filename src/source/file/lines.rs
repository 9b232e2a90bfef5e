//! Text files, a batch of lines at a time.
//!
//! A line is a message; in CSV, a quoted field may carry a record over several lines, and the
//! record has the number of its first. Blank lines are counted and skipped. A file is open only
//! while a batch is read, so that a folder may hold more files than a process may open; up to
//! [`MOST_OPEN`] compressed ones, in which no byte can be gone to directly, stay open.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::csv::reader::Format;
use chrono::{DateTime, Utc};

use super::file_error;
use super::input::{Compression, Input};
use crate::decode::csv::Quoting;
use crate::source::{Messages, SourceError};

/// A batch ends at this size, however few its lines.
const BATCH_BYTES: usize = 16 << 20;
/// No line is longer; what is longer is not a text file.
const MAX_LINE_BYTES: usize = 128 << 20;
/// A quoted field that goes on over more than this is taken for a stray quote.
const MAX_QUOTED_BYTES: usize = 64 << 10;
/// Compressed files that are left open between two batches.
const MOST_OPEN: usize = 128;
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
    compression: Option<Compression>,
    /// A compressed file from `position` on.
    input: Option<Input>,
    /// How many compressed files are left open, over all lanes.
    open: Arc<AtomicUsize>,
    damage: Option<Damage>,
    /// Whether nothing more can be read.
    ended: bool,
}

/// The place at which a compressed file cannot be read on.
pub(super) struct Damage {
    /// Number of the line.
    pub line: i64,
    /// What there is of it.
    pub bytes: Vec<u8>,
    pub reason: String,
}

impl Lines {
    /// The lines from number `position` on.
    pub fn open(
        path: &Path,
        delimiter: Option<u8>,
        key: Option<String>,
        position: Option<i64>,
        batch_rows: usize,
        open: &Arc<AtomicUsize>,
    ) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|error| file_error(path, error))?;
        let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
        Ok(Self {
            path: path.to_owned(),
            delimiter,
            key,
            modified_ms: modified.map(|time| DateTime::<Utc>::from(time).timestamp_millis()),
            batch_rows,
            first_wanted: position.unwrap_or(1),
            line: 1,
            position: 0,
            compression: Compression::of(path),
            input: None,
            open: Arc::clone(open),
            damage: None,
            ended: false,
        })
    }

    /// Number of the line at which the next batch begins.
    pub fn next_offset(&self) -> i64 {
        self.line
    }

    /// Reads the column names of a CSV file from its first line that is not blank; `None` if there
    /// is none.
    pub fn header(&mut self, delimiter: u8) -> Result<Option<Vec<String>>, SourceError> {
        let mut input = self.take_input()?;
        let mut record = Vec::new();
        while self.next_record(&mut input, &mut record)?.is_some() {
            if is_blank(&record) {
                continue;
            }
            self.leave_open(input);
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
        let mut messages = Messages::default();
        if self.ended {
            return Ok(messages);
        }
        let mut input = self.take_input()?;
        let mut record = Vec::new();
        while messages.len() < self.batch_rows && messages.byte_len() < BATCH_BYTES {
            let Some(number) = self.next_record(&mut input, &mut record)? else {
                return Ok(messages);
            };
            if number >= self.first_wanted && !is_blank(&record) {
                let key = self.key.as_deref().map(str::as_bytes);
                messages.push(number, self.modified_ms, key, &record, Vec::new());
            }
        }
        self.leave_open(input);
        Ok(messages)
    }

    /// Where the file could not be read on, if that came to light since the last call.
    pub fn take_damage(&mut self) -> Option<Damage> {
        self.damage.take()
    }

    /// Key given to every message.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    fn take_input(&mut self) -> Result<Input, SourceError> {
        if let Some(input) = self.input.take() {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Ok(input);
        }
        Input::open(&self.path, self.position).map_err(|error| file_error(&self.path, error))
    }

    fn leave_open(&mut self, input: Input) {
        if self.compression.is_some() && self.open.load(Ordering::Relaxed) < MOST_OPEN {
            self.open.fetch_add(1, Ordering::Relaxed);
            self.input = Some(input);
        }
    }

    /// Reads one record without its line end into `record` and returns its line number; `None` at
    /// the end.
    fn next_record(
        &mut self,
        input: &mut Input,
        record: &mut Vec<u8>,
    ) -> Result<Option<i64>, SourceError> {
        let number = self.line;
        record.clear();
        let length = match self.read_record(input, record) {
            Ok(length) => length,
            Err(error) if self.compression.is_some() => {
                self.end_damaged(record, &error);
                return Ok(None);
            }
            Err(error) => {
                return Err(file_error(&self.path, format!("line {number}: {error}")));
            }
        };
        if length == 0 {
            self.ended = true;
            return Ok(None);
        }
        if length == MAX_LINE_BYTES {
            let reason = format!(
                "line {number}: expected at most {} MiB, found a longer line: is this a text file?",
                MAX_LINE_BYTES >> 20
            );
            return Err(file_error(&self.path, reason));
        }
        if number == 1 && record.starts_with(&BYTE_ORDER_MARK) {
            record.drain(..BYTE_ORDER_MARK.len());
        }
        while matches!(record.last(), Some(b'\n' | b'\r')) {
            record.pop();
        }
        Ok(Some(number))
    }

    /// Reads one record and goes past it; returns the length of its first line.
    fn read_record(&mut self, input: &mut Input, record: &mut Vec<u8>) -> io::Result<usize> {
        let length = input.read_line(MAX_LINE_BYTES, record)?;
        let mut lines = 1;
        if let Some(delimiter) = self.delimiter.filter(|_| record.contains(&b'"')) {
            lines += append_quoted_lines(input, record, delimiter)?;
        }
        self.position += record.len() as u64;
        self.line += if length == 0 { 0 } else { lines };
        Ok(length)
    }

    /// What is left of a compressed file that is cut off or damaged is lost: one dead letter.
    fn end_damaged(&mut self, record: &[u8], error: &io::Error) {
        self.ended = true;
        let line = self.line;
        self.line += 1;
        if line >= self.first_wanted {
            let reason = format!("expected more of the compressed file, found {error}");
            self.damage = Some(Damage { line, bytes: record.to_vec(), reason });
        }
    }
}

/// Appends the lines that `record` goes on over because a quoted field is open at its end, and
/// returns their number. A quote that is never closed is a fault of its own line alone.
fn append_quoted_lines(input: &mut Input, record: &mut Vec<u8>, delimiter: u8) -> io::Result<i64> {
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
        if left == 0 || input.read_line(left, record)? == 0 {
            input.unread(&record[first_line..]);
            record.truncate(first_line);
            return Ok(0);
        }
        lines += 1;
    }
}

fn is_blank(record: &[u8]) -> bool {
    record.iter().all(u8::is_ascii_whitespace)
}
