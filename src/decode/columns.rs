//! What the fields of a record mean, whatever format they came in.
//!
//! A format shows each record as a [`Row`] of [`Cell`]s; a [`RowBuilder`] turns rows into the
//! columns of [`Rows`] by the rules of `[records]`, and notes the reason beside each row that is
//! not a record. [`Rows::into_records`] then makes the batch of [`super::records_schema`].

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, Float32Array, Float32Builder,
    Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::{and, filter_record_batch, is_not_null, take_record_batch};
use arrow::datatypes::{
    DataType, Field, Fields, Float32Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use rustc_hash::FxHashMap;

use super::error::DecodeError;
use super::time::{micros_of_float, micros_of_integer, micros_of_text};
use super::{FIRST_CHANNEL_COLUMN, KEY_COLUMN, TIME_COLUMN, records_schema};
use crate::config::{Layout, Records, TimeUnit as Unit};

/// Longest record key. It bounds the text of a batch of keys far below Arrow's 2 GiB.
const MAX_KEY_BYTES: usize = 4096;
/// Words that stand for a missing value in text, besides an empty one and `NaN`.
const MISSING: [&str; 3] = ["null", "NA", "N/A"];
/// Longest part of a refused value that is quoted in a reason, in characters.
const QUOTED_CHARS: usize = 64;

/// A field of one record as its format gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    /// The record has no such field.
    Absent,
    Null,
    Text(&'a str),
    /// A number as it was written.
    Number(&'a str),
    Integer(i64),
    Float(f64),
    /// An instant, microseconds since the epoch.
    Instant(i64),
    /// Something that no field of a record may hold, in words.
    Other(&'static str),
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing"),
            Self::Null => f.write_str("null"),
            Self::Text(text) => write!(f, "\"{}\"", shorten(text)),
            Self::Number(text) => f.write_str(shorten(text)),
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Instant(micros) => write!(f, "{micros} microseconds since the epoch"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

fn shorten(text: &str) -> &str {
    text.char_indices().nth(QUOTED_CHARS).map_or(text, |(end, _)| &text[..end])
}

/// One record, before its fields have a meaning.
pub(crate) trait Row {
    /// The value of `field`, a position in [`RowRules::fields`].
    fn cell(&self, field: usize) -> Cell<'_>;

    /// The names of the fields it has, for a person.
    fn found(&self) -> String;
}

/// Which fields a record has and what they mean, from `[records]`.
#[derive(Debug)]
pub(crate) struct RowRules {
    fields: Vec<String>,
    channels: Vec<String>,
    /// Position of each channel by name.
    by_code: FxHashMap<String, usize>,
    layout: Layout,
    time_unit: Unit,
    /// Whether a field holds the key.
    has_key: bool,
    rows: SchemaRef,
    records: SchemaRef,
}

/// Position of the time in [`RowRules::fields`].
const TIME_FIELD: usize = 0;
/// `layout = "long"`: positions of the channel's name and of its value.
const CODE_FIELD: usize = 1;
const VALUE_FIELD: usize = 2;

/// Columns of [`Rows`]: the key, the time, the channels, then these two.
const KEPT_FROM_END: usize = 2;
const FAULT_FROM_END: usize = 1;

impl RowRules {
    pub fn new(records: &Records) -> Result<Self, DecodeError> {
        let mut fields = vec![records.time.clone()];
        match records.layout {
            Layout::Wide => fields.extend_from_slice(&records.channels),
            Layout::Long => fields.extend([records.code.clone(), records.value.clone()]),
        }
        fields.extend(records.key.clone());
        for names in [&fields, &records.channels] {
            if let Some(name) = first_repeated(names) {
                return Err(DecodeError::RepeatedField { name: name.to_owned() });
            }
        }

        let records_schema = records_schema(&records.channels);
        let mut columns = vec![
            Field::new("key", DataType::Utf8, true),
            Field::new("time", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        ];
        columns
            .extend(records.channels.iter().map(|name| Field::new(name, DataType::Float32, true)));
        columns.push(Field::new("kept", DataType::Boolean, false));
        columns.push(Field::new("fault", DataType::Utf8, true));
        Ok(Self {
            fields,
            channels: records.channels.clone(),
            by_code: records.channels.iter().cloned().zip(0..).collect(),
            layout: records.layout,
            time_unit: records.time_unit,
            has_key: records.key.is_some(),
            rows: Arc::new(Schema::new(columns)),
            records: records_schema,
        })
    }

    /// The fields to look for: the time; the channels, or the code and the value; the key, if a
    /// field holds it.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// Whether a field of the record holds its key.
    pub fn has_key(&self) -> bool {
        self.has_key
    }

    /// Whether `field` is text by its meaning: the key, or the name of a channel.
    pub fn is_text(&self, field: usize) -> bool {
        Some(field) == self.key_field() || (self.layout == Layout::Long && field == CODE_FIELD)
    }

    /// The schema of [`Rows`].
    pub fn rows_schema(&self) -> &SchemaRef {
        &self.rows
    }

    /// Checks that `columns`, those of every record to come, hold what a record needs; returns the
    /// channels they do not hold.
    pub fn check_columns(&self, columns: &[String]) -> Result<Vec<String>, DecodeError> {
        let absent = |name: &&String| !columns.contains(name);
        let missing = |key: &'static str, expected: &[String]| DecodeError::MissingColumn {
            key,
            expected: quoted(expected),
            found: quoted(columns),
        };
        let field = |at: usize| &self.fields[at..=at];
        if absent(&&self.fields[TIME_FIELD]) {
            return Err(missing("time", field(TIME_FIELD)));
        }
        if let Some(at) = self.key_field().filter(|at| absent(&&self.fields[*at])) {
            return Err(missing("key", field(at)));
        }
        if self.layout == Layout::Long {
            for (at, key) in [(CODE_FIELD, "code"), (VALUE_FIELD, "value")] {
                if absent(&&self.fields[at]) {
                    return Err(missing(key, field(at)));
                }
            }
            return Ok(Vec::new());
        }
        let absent_channels: Vec<String> = self.channels.iter().filter(absent).cloned().collect();
        if absent_channels.len() == self.channels.len() {
            return Err(missing("channels", &self.channels));
        }
        Ok(absent_channels)
    }

    fn key_field(&self) -> Option<usize> {
        self.has_key.then(|| self.fields.len() - 1)
    }
}

fn first_repeated(names: &[String]) -> Option<&str> {
    names
        .iter()
        .enumerate()
        .find(|(at, name)| names[..*at].contains(name))
        .map(|(_, name)| name.as_str())
}

/// Names for a person: `"a", "b"`, or `none`.
pub(crate) fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| format!("\"{}\"", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Gathers rows into columns.
pub(crate) struct RowBuilder<'a> {
    rules: &'a RowRules,
    keys: StringBuilder,
    times: Vec<i64>,
    channels: Vec<Float32Builder>,
    kept: BooleanBufferBuilder,
    faults: StringBuilder,
    /// Channel values of the row being read; NaN is missing.
    values: Vec<f32>,
}

impl<'a> RowBuilder<'a> {
    pub fn with_capacity(rules: &'a RowRules, rows: usize) -> Self {
        let channel = || Float32Builder::with_capacity(rows);
        Self {
            rules,
            keys: StringBuilder::with_capacity(rows, 16 * rows),
            times: Vec::with_capacity(rows),
            channels: std::iter::repeat_with(channel).take(rules.channels.len()).collect(),
            kept: BooleanBufferBuilder::new(rows),
            faults: StringBuilder::with_capacity(rows, 0),
            values: vec![f32::NAN; rules.channels.len()],
        }
    }

    /// Adds one row: a record, a row of a channel nobody asked for, or a fault with its reason.
    pub fn push(&mut self, row: &impl Row) {
        match self.read(row) {
            Ok(Some((key, time))) => {
                self.keys.append_option(key);
                self.times.push(time);
                for (column, value) in self.channels.iter_mut().zip(&self.values) {
                    column.append_option(value.is_finite().then_some(*value));
                }
                self.kept.append(true);
                self.faults.append_null();
            }
            Ok(None) => self.leave_out(None),
            Err(reason) => self.leave_out(Some(&reason)),
        }
    }

    /// Adds a row that is no record because of `reason`.
    pub fn refuse(&mut self, reason: &str) {
        self.leave_out(Some(reason));
    }

    fn leave_out(&mut self, fault: Option<&str>) {
        self.keys.append_null();
        self.times.push(0);
        self.channels.iter_mut().for_each(Float32Builder::append_null);
        self.kept.append(false);
        self.faults.append_option(fault);
    }

    /// Reads the channels into `values` and returns the key, if a field holds it, and the time;
    /// `None` for a row whose code is not one of the channels.
    fn read<'r>(&mut self, row: &'r impl Row) -> Result<Option<(Option<&'r str>, i64)>, String> {
        let rules = self.rules;
        match rules.layout {
            Layout::Wide => {}
            Layout::Long => {
                let code = text_of(row.cell(CODE_FIELD))
                    .ok_or_else(|| refusal(row, rules, CODE_FIELD, "the name of a channel"))?;
                let Some(&channel) = rules.by_code.get(code) else { return Ok(None) };
                let value = row.cell(VALUE_FIELD);
                let number = (value != Cell::Absent).then(|| number_of(value)).flatten();
                self.values.fill(f32::NAN);
                self.values[channel] =
                    number.ok_or_else(|| refusal(row, rules, VALUE_FIELD, "a number"))?;
            }
        }
        let key = match rules.key_field() {
            None => None,
            Some(field) => Some(key_of(row, rules, field)?),
        };
        let time = time_of(row.cell(TIME_FIELD), rules.time_unit).ok_or_else(|| {
            let expected = "a time from year 0 to 9999: RFC 3339, \"YYYY-MM-DD hh:mm:ss\", or a \
                            number since the epoch";
            refusal(row, rules, TIME_FIELD, expected)
        })?;
        if rules.layout == Layout::Wide {
            let mut any = false;
            for (at, value) in self.values.iter_mut().enumerate() {
                let field = TIME_FIELD + 1 + at;
                let cell = row.cell(field);
                any |= cell != Cell::Absent;
                *value = number_of(cell).ok_or_else(|| refusal(row, rules, field, "a number"))?;
            }
            if !any {
                return Err(format!(
                    "expected at least one of the channels {}, found the fields {}",
                    quoted(&rules.channels),
                    row.found()
                ));
            }
        }
        Ok(Some((key, time)))
    }

    /// The columns in the order of [`RowRules::rows_schema`].
    pub fn finish(mut self) -> (Fields, Vec<ArrayRef>) {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.keys.finish()),
            Arc::new(TimestampMicrosecondArray::from(self.times)),
        ];
        for mut channel in self.channels {
            columns.push(Arc::new(channel.finish()));
        }
        columns.push(Arc::new(BooleanArray::from(self.kept.finish())));
        columns.push(Arc::new(self.faults.finish()));
        (self.rules.rows.fields().clone(), columns)
    }
}

fn refusal(row: &impl Row, rules: &RowRules, field: usize, expected: &str) -> String {
    let name = &rules.fields[field];
    match row.cell(field) {
        Cell::Absent => {
            format!("field \"{name}\": expected {expected}, found the fields {}", row.found())
        }
        cell => format!("field \"{name}\": expected {expected}, found {cell}"),
    }
}

fn key_of<'r>(row: &'r impl Row, rules: &RowRules, field: usize) -> Result<&'r str, String> {
    let key = text_of(row.cell(field))
        .ok_or_else(|| refusal(row, rules, field, "a key, as text or a number"))?;
    check_key(key)
        .map(|()| key)
        .map_err(|reason| format!("field \"{}\": {reason}", rules.fields[field]))
}

/// Refuses a key that is empty or unreasonably long.
pub(crate) fn check_key(key: &str) -> Result<(), String> {
    match key.len() {
        0 => Err("expected a key, found an empty one".to_owned()),
        1..=MAX_KEY_BYTES => Ok(()),
        length => {
            Err(format!("expected a key of at most {MAX_KEY_BYTES} bytes, found {length} bytes"))
        }
    }
}

fn text_of(cell: Cell<'_>) -> Option<&str> {
    match cell {
        Cell::Text(text) | Cell::Number(text) => Some(text),
        _ => None,
    }
}

/// The number in `cell`, NaN where it is missing; `None` for what is no number.
fn number_of(cell: Cell<'_>) -> Option<f32> {
    match cell {
        Cell::Absent | Cell::Null => Some(f32::NAN),
        Cell::Number(text) => text.parse().ok(),
        Cell::Text(text) => {
            let text = text.trim();
            if text.is_empty() || MISSING.iter().any(|word| word.eq_ignore_ascii_case(text)) {
                Some(f32::NAN)
            } else {
                text.parse().ok()
            }
        }
        Cell::Integer(value) => Some(value as f32),
        Cell::Float(value) => Some(value as f32),
        Cell::Instant(_) | Cell::Other(_) => None,
    }
}

/// The event time in `cell`, microseconds since the epoch.
fn time_of(cell: Cell<'_>, unit: Unit) -> Option<i64> {
    match cell {
        Cell::Text(text) | Cell::Number(text) => micros_of_text(text.trim(), unit),
        Cell::Integer(value) => micros_of_integer(value, unit),
        Cell::Float(value) => micros_of_float(value, unit),
        Cell::Instant(micros) => micros_of_integer(micros, Unit::Us),
        Cell::Absent | Cell::Null | Cell::Other(_) => None,
    }
}

/// Rows in the columns of [`RowRules::rows_schema`], faults included.
#[derive(Debug)]
pub(crate) struct Rows(pub RecordBatch);

impl Rows {
    /// (row, reason) of each row that is not a record.
    pub fn faults(&self) -> impl Iterator<Item = (usize, &str)> {
        let faults = self.column_from_end(FAULT_FROM_END).as_string::<i32>();
        let none = faults.null_count() == faults.len();
        let rows = if none { 0 } else { faults.len() };
        (0..rows).filter(|row| faults.is_valid(*row)).map(|row| (row, faults.value(row)))
    }

    /// Which rows are records.
    pub fn kept(&self) -> &BooleanArray {
        self.column_from_end(KEPT_FROM_END).as_boolean()
    }

    /// How many rows belong to a channel that nobody asked for.
    pub fn skipped(&self) -> u64 {
        let kept = self.kept();
        let faults = self.column_from_end(FAULT_FROM_END);
        let fault_count = faults.len() - faults.null_count();
        (kept.false_count() - fault_count) as u64
    }

    /// The keys that a field of the records held.
    pub fn keys(&self) -> StringArray {
        self.0.column(KEY_COLUMN).as_string().clone()
    }

    fn column_from_end(&self, columns: usize) -> &ArrayRef {
        self.0.column(self.0.num_columns() - columns)
    }

    /// The records among the rows, in [`records_schema`]. A row without a key is left out. In the
    /// long layout, consecutive rows of one key and time become one record.
    ///
    /// `keys` and `offsets` have one value per row.
    pub fn into_records(
        self,
        rules: &RowRules,
        keys: StringArray,
        offsets: Int64Array,
    ) -> RecordBatch {
        let kept = self.kept().clone();
        let kept = if keys.null_count() == 0 {
            kept
        } else {
            let has_key = is_not_null(&keys).expect("a plain array has a null mask");
            and(&kept, &has_key).expect("one key per row")
        };
        let times = self.0.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
        // A key of a row left out is null; the schema allows none, but the filter takes them away.
        let keys = if kept.false_count() == 0 { keys } else { without_nulls(&keys) };
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(keys), Arc::new(times.clone().with_timezone("UTC")), Arc::new(offsets)];
        let channels = FIRST_CHANNEL_COLUMN - 1;
        columns.extend_from_slice(&self.0.columns()[channels..channels + rules.channels.len()]);
        let records = RecordBatch::try_new(Arc::clone(&rules.records), columns)
            .expect("rows hold the columns of records_schema");
        let records = if kept.false_count() == 0 {
            records
        } else {
            filter_record_batch(&records, &kept).expect("the mask has one bit per row")
        };
        match rules.layout {
            Layout::Wide => records,
            Layout::Long => merge_neighbours(&records),
        }
    }
}

/// The same text with empty strings for nulls.
fn without_nulls(keys: &StringArray) -> StringArray {
    let (offsets, values, _) = keys.clone().into_parts();
    StringArray::new(offsets, values, None)
}

/// Consecutive records of one key and time become one: the last value of each channel that is not
/// missing, the last offset.
fn merge_neighbours(records: &RecordBatch) -> RecordBatch {
    let keys = records.column(KEY_COLUMN).as_string::<i32>();
    let times = records.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>().values();
    let goes_on =
        |row: usize| times[row] == times[row - 1] && keys.value(row) == keys.value(row - 1);
    let starts: Vec<usize> =
        (0..records.num_rows()).filter(|row| *row == 0 || !goes_on(*row)).collect();
    if starts.len() == records.num_rows() {
        return records.clone();
    }
    let ends = starts.iter().skip(1).copied().chain([records.num_rows()]);
    let last_rows = UInt64Array::from_iter_values(ends.clone().map(|end| end as u64 - 1));
    let merged = take_record_batch(records, &last_rows).expect("rows of this batch");
    let mut columns = merged.columns().to_vec();
    for (column, values) in columns.iter_mut().zip(records.columns()).skip(FIRST_CHANNEL_COLUMN) {
        let values = values.as_primitive::<Float32Type>();
        let last_known = |(start, end): (usize, usize)| {
            (start..end).rev().find(|row| values.is_valid(*row)).map(|row| values.value(row))
        };
        let spans = starts.iter().copied().zip(ends.clone());
        *column = Arc::new(Float32Array::from_iter(spans.map(last_known)));
    }
    RecordBatch::try_new(records.schema(), columns).expect("the columns keep their types")
}
