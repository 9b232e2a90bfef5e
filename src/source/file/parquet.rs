//! Parquet files, a batch of rows at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Float64Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::file_error;
use crate::config::Records;
use crate::decode::columns::{Cell, Row, RowBuilder, RowRules, quoted};
use crate::decode::{DeadLetter, Decoded, withheld};
use crate::source::{Lane, SourceError};

/// The rows of one file.
pub(super) struct ParquetRows {
    path: PathBuf,
    rules: RowRules,
    /// Key of every record, where no column holds it.
    key: Option<String>,
    reader: ParquetRecordBatchReader,
    /// Number of the next row, from 1.
    next_row: i64,
}

impl ParquetRows {
    /// The rows from number `position` on, in the columns that `records` names.
    pub fn open(
        path: &Path,
        records: &Records,
        key: Option<String>,
        position: Option<i64>,
        batch_rows: usize,
    ) -> Result<Self, SourceError> {
        let rules = RowRules::new(records).map_err(|error| file_error(path, error))?;
        let file = File::open(path).map_err(|error| file_error(path, error))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|error| file_error(path, error))?;
        let schema = builder.schema();
        let wanted = wanted_columns(path, &rules, schema)?;

        let next_row = position.unwrap_or(1).max(1);
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        let reader = builder
            .with_projection(mask)
            .with_batch_size(batch_rows)
            .with_offset(usize::try_from(next_row - 1).unwrap_or(usize::MAX))
            .build()
            .map_err(|error| file_error(path, error))?;
        Ok(Self { path: path.to_owned(), rules, key, reader, next_row })
    }

    /// Number of the row at which the next batch begins.
    pub fn next_offset(&self) -> i64 {
        self.next_row
    }

    /// The next batch; `None` at the end of the file.
    pub fn read(&mut self, lane: &Lane) -> Result<Option<Decoded>, SourceError> {
        let Some(batch) = self.reader.next() else { return Ok(None) };
        let first = self.next_row;
        let failed =
            |error: ArrowError| file_error(&self.path, format!("rows from {first} on: {error}"));
        let batch = batch.map_err(failed)?;
        self.next_row += batch.num_rows() as i64;
        self.decode(lane, &batch, first).map(Some).map_err(failed)
    }

    fn decode(&self, lane: &Lane, batch: &RecordBatch, first: i64) -> Result<Decoded, ArrowError> {
        let fields = self.rules.fields().iter().enumerate();
        let columns = fields
            .map(|(at, name)| {
                let column = batch.column_by_name(name);
                column.map(|column| Values::of(column, self.rules.is_text(at))).transpose()
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut rows = RowBuilder::with_capacity(&self.rules, batch.num_rows());
        for row in 0..batch.num_rows() {
            rows.push(&ColumnsRow { columns: &columns, schema: batch.schema_ref(), row });
        }
        let rows = rows.finish();

        let dead_letters = rows
            .faults()
            .map(|(row, reason)| {
                let letter = DeadLetter {
                    lane: lane.clone(),
                    offset: first + row as i64,
                    key: self.key.clone().map(String::into_bytes),
                    payload: as_json(&batch.slice(row, 1))?,
                    headers: Vec::new(),
                    stage: "decode",
                    reason: reason.to_owned(),
                };
                Ok(withheld(&self.rules, letter))
            })
            .collect::<Result<Vec<_>, ArrowError>>()?;
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

/// Positions of the file's columns that hold a field of the rules.
fn wanted_columns(
    path: &Path,
    rules: &RowRules,
    schema: &Schema,
) -> Result<Vec<usize>, SourceError> {
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let absent = rules.check_columns(&names).map_err(|error| file_error(path, error))?;
    for channel in absent {
        tracing::warn!(
            path = %path.display(),
            channel,
            columns = quoted(&names),
            "channel is not among the columns: its values are missing"
        );
    }
    let wanted = rules.fields().iter().filter_map(|name| names.iter().position(|n| n == name));
    let wanted: Vec<usize> = wanted.collect();
    for at in &wanted {
        let field = schema.field(*at);
        if Form::of(field.data_type()).is_none() {
            let reason = format!(
                "column \"{}\": expected text, numbers or times, found {}",
                field.name(),
                field.data_type()
            );
            return Err(file_error(path, reason));
        }
    }
    Ok(wanted)
}

/// The row as a person would want to find it in a dead letter.
fn as_json(row: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut json = Vec::new();
    let mut writer = LineDelimitedWriter::new(&mut json);
    writer.write(row)?;
    writer.finish()?;
    json.truncate(json.trim_ascii_end().len());
    Ok(json)
}

/// What a column's values can be read as.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Integers,
    Floats,
    Instants,
}

impl Form {
    fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Dictionary(_, values) => Self::of(values),
            DataType::Null
            | DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView => Some(Self::Text),
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => Some(Self::Instants),
            DataType::Boolean => Some(Self::Integers),
            integer if integer.is_integer() => Some(Self::Integers),
            number if number.is_numeric() => Some(Self::Floats),
            _ => None,
        }
    }
}

/// A column in one of the few types that a cell is made from.
enum Values {
    Text(StringArray),
    Integers(Int64Array),
    Floats(Float64Array),
    /// Times without a zone are in UTC.
    Instants(TimestampMicrosecondArray),
}

impl Values {
    /// What does not fit becomes null.
    fn of(column: &ArrayRef, as_text: bool) -> Result<Self, ArrowError> {
        let form = if as_text { Some(Form::Text) } else { Form::of(column.data_type()) };
        Ok(match form {
            Some(Form::Integers) => {
                Self::Integers(cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
            }
            Some(Form::Floats) => {
                let floats = cast(column, &DataType::Float64)?;
                Self::Floats(floats.as_primitive::<Float64Type>().clone())
            }
            Some(Form::Instants) => {
                let micros = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
                Self::Instants(micros.as_primitive::<TimestampMicrosecondType>().clone())
            }
            Some(Form::Text) | None => {
                Self::Text(cast(column, &DataType::Utf8)?.as_string::<i32>().clone())
            }
        })
    }

    fn cell(&self, row: usize) -> Cell<'_> {
        match self {
            Self::Text(column) if column.is_valid(row) => Cell::Text(column.value(row)),
            Self::Integers(column) if column.is_valid(row) => Cell::Integer(column.value(row)),
            Self::Floats(column) if column.is_valid(row) => Cell::Float(column.value(row)),
            Self::Instants(column) if column.is_valid(row) => Cell::Instant(column.value(row)),
            _ => Cell::Null,
        }
    }
}

struct ColumnsRow<'a> {
    columns: &'a [Option<Values>],
    schema: &'a Schema,
    row: usize,
}

impl Row for ColumnsRow<'_> {
    fn cell(&self, field: usize) -> Cell<'_> {
        self.columns[field].as_ref().map_or(Cell::Absent, |values| values.cell(self.row))
    }

    fn found(&self) -> String {
        let names: Vec<&str> = self.schema.fields().iter().map(|f| f.name().as_str()).collect();
        quoted(&names)
    }
}
