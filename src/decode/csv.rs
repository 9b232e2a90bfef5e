//! CSV: one row a message, its columns named beforehand.
//!
//! arrow-csv splits the bytes into text columns; what the text means is decided in
//! [`super::columns`], so that a field of the wrong kind costs one record and not the batch. An
//! empty field is missing.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Decoder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use super::columns::{Cell, Row, RowBuilder, RowRules, Rows, quoted};
use super::error::DecodeError;
use super::{CHUNK_MESSAGES, Refusal};
use crate::config;
use crate::source::Messages;

/// Decodes messages that are one row each.
pub(super) struct Csv {
    rules: Arc<RowRules>,
    columns: Vec<String>,
    schema: SchemaRef,
    delimiter: u8,
    /// Columns of the file that a field of the rules is read from.
    projection: Vec<usize>,
    /// Per field of the rules: its place in the projection.
    places: Vec<Option<usize>>,
    decoder: Decoder,
}

impl Csv {
    pub fn new(rules: Arc<RowRules>, csv: &config::Csv) -> Result<Self, DecodeError> {
        if csv.columns.is_empty() {
            return Err(DecodeError::NoColumns);
        }
        let delimiter = delimiter(csv)?;
        for channel in rules.check_columns(&csv.columns)? {
            tracing::warn!(
                channel,
                columns = quoted(&csv.columns),
                "channel is not among the columns: its values are missing"
            );
        }
        let mut projection = Vec::new();
        let places = rules
            .fields()
            .iter()
            .map(|field| {
                let column = csv.columns.iter().position(|column| column == field)?;
                projection.push(column);
                Some(projection.len() - 1)
            })
            .collect();
        let fields = csv.columns.iter().map(|name| Field::new(name, DataType::Utf8, true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let decoder = decoder(&schema, delimiter, &projection);
        let columns = csv.columns.clone();
        Ok(Self { rules, columns, schema, delimiter, projection, places, decoder })
    }

    /// The rows of the messages in `range`, at most [`CHUNK_MESSAGES`] of them, one each.
    pub fn decode(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        let decoded = self.read(messages, range);
        if decoded.is_err() {
            // What it holds is half a row.
            self.decoder = decoder(&self.schema, self.delimiter, &self.projection);
        }
        decoded
    }

    fn read(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        for at in range.clone() {
            let payload = messages.get(at).payload;
            self.push(payload).map_err(|reason| Refusal::Message { at, reason })?;
        }
        let unattributed = |error| Refusal::Unknown { reason: message_of(&error) };
        match self.decoder.flush().map_err(unattributed)? {
            Some(batch) => Ok(self.rows(&batch, range.start)),
            None => Err(Refusal::Unknown { reason: EMPTY.to_owned() }),
        }
    }

    fn push(&mut self, payload: &[u8]) -> Result<(), String> {
        let free = self.decoder.capacity();
        // To the parser, an empty slice is the end of all input.
        if payload.is_empty() {
            return Err(EMPTY.to_owned());
        }
        // The parser checks all fields of a batch joined: two halves of a character would pass.
        if std::str::from_utf8(payload).is_err() {
            return Err("expected a row, found text that is not UTF-8".to_owned());
        }
        // The parser would go on reading the quote in the next message.
        if payload.contains(&b'"') && Quoting::at_end_of(payload, self.delimiter).is_open() {
            return Err("expected a row, found a quote that is not closed".to_owned());
        }
        let counted = |error: ArrowError| {
            format!(
                "expected {} columns ({}): {}",
                self.columns.len(),
                quoted(&self.columns),
                message_of(&error)
            )
        };
        let read = self.decoder.decode(payload).map_err(counted)?;
        self.decoder.decode(b"\n").map_err(counted)?;
        match free - self.decoder.capacity() {
            0 => Err(EMPTY.to_owned()),
            1 if read == payload.len() => Ok(()),
            _ => Err("expected one row, found more than one".to_owned()),
        }
    }

    /// The rows of `batch`, one for each message from number `first` on.
    fn rows(&self, batch: &RecordBatch, first: usize) -> Rows {
        let columns: Vec<&StringArray> =
            batch.columns().iter().map(|column| column.as_string()).collect();
        let mut rows = RowBuilder::with_capacity(&self.rules, batch.num_rows());
        for row in 0..batch.num_rows() {
            rows.of_message(first + row);
            rows.push(&TextRow {
                columns: &columns,
                places: &self.places,
                names: &self.columns,
                row,
            });
        }
        rows.finish()
    }
}

const EMPTY: &str = "expected a row, found an empty message";

/// Where in CSV a scan stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quoting {
    FieldStart,
    Unquoted,
    Quoted,
    /// Behind a quote that closes the field, unless another follows.
    Closing,
}

impl Quoting {
    /// Behind `byte`.
    pub fn after(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::Closing,
            (Self::Quoted, _) | (Self::FieldStart | Self::Closing, b'"') => Self::Quoted,
            (_, b'\n' | b'\r') => Self::FieldStart,
            (_, byte) if byte == delimiter => Self::FieldStart,
            _ => Self::Unquoted,
        }
    }

    /// Behind all of `bytes`, which begin with a field.
    fn at_end_of(bytes: &[u8], delimiter: u8) -> Self {
        bytes.iter().fold(Self::FieldStart, |state, byte| state.after(*byte, delimiter))
    }

    /// Whether a quoted field goes on.
    pub fn is_open(self) -> bool {
        self == Self::Quoted
    }
}

/// The delimiter as the parser takes it.
pub(crate) fn delimiter(csv: &config::Csv) -> Result<u8, DecodeError> {
    match u8::try_from(csv.delimiter) {
        Ok(byte) if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(byte),
        _ => Err(DecodeError::Delimiter { found: csv.delimiter }),
    }
}

fn decoder(schema: &SchemaRef, delimiter: u8, projection: &[usize]) -> Decoder {
    ReaderBuilder::new(Arc::clone(schema))
        .with_delimiter(delimiter)
        .with_projection(projection.to_vec())
        // One more than is ever held: the second row of a message must not go unseen.
        .with_batch_size(CHUNK_MESSAGES + 1)
        .build_decoder()
}

fn message_of(error: &ArrowError) -> String {
    match error {
        // Its line number counts what this decoder has seen, which no reader could place.
        ArrowError::CsvError(reason) => match reason.rsplit_once(" got ") {
            Some((_, found)) => format!("found {found}"),
            None => reason.clone(),
        },
        error => error.to_string(),
    }
}

struct TextRow<'a> {
    columns: &'a [&'a StringArray],
    places: &'a [Option<usize>],
    names: &'a [String],
    row: usize,
}

impl Row for TextRow<'_> {
    fn cell(&self, field: usize) -> Cell<'_> {
        match self.places[field].map(|place| self.columns[place]) {
            None => Cell::Absent,
            Some(column) if column.is_null(self.row) => Cell::Null,
            Some(column) => Cell::Text(column.value(self.row)),
        }
    }

    fn found(&self) -> String {
        quoted(self.names)
    }
}
