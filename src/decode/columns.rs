//! What the fields of a record mean, whatever format they came in.
//!
//! A format shows each record as a [`Row`] of [`Cell`]s; a [`RowBuilder`] turns rows into the
//! columns of [`Rows`] by the rules of `[records]`, and notes the reason beside each row that is
//! not a record. [`Rows::into_records`] then makes the batch of [`super::records_schema`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, Float32Array, Float32Builder,
    Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, UInt64Array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow::compute::{and, concat_batches, filter_record_batch, is_not_null, take_record_batch};
use arrow::datatypes::{
    DataType, Field, Float32Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use rustc_hash::FxHashMap;

use super::error::DecodeError;
use super::pseudonym::Pseudonyms;
use super::time::TimeRule;
use super::units::Conversion;
use super::{FIRST_CHANNEL_COLUMN, KEY_COLUMN, TIME_COLUMN, groups, log_schema, records_schema};
use crate::config::{Channel, Inputs, Layout, Records};

/// Longest record key. It bounds the text of a batch of keys far below Arrow's 2 GiB.
pub(crate) const MAX_KEY_BYTES: usize = 4096;
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

/// The beginning of a text, as far as a reason quotes it.
pub(crate) fn shorten(text: &str) -> &str {
    text.char_indices().nth(QUOTED_CHARS).map_or(text, |(end, _)| &text[..end])
}

/// One record, before its fields have a meaning.
pub(crate) trait Row {
    /// The value of `field`, a position in [`RowRules::fields`].
    fn cell(&self, field: usize) -> Cell<'_>;

    /// The names of the fields it has, for a person.
    fn found(&self) -> String;

    /// Where in its message it is, where that holds several: nothing, or a path and a colon.
    fn place(&self) -> &str {
        ""
    }
}

/// Which fields a record has and what they mean, from `[records]`.
#[derive(Debug)]
pub(crate) struct RowRules {
    fields: Vec<String>,
    time: Option<usize>,
    key: Option<usize>,
    /// Position of the first field that is neither time nor key: of the channels in the wide
    /// layout, of the code in the long one, of the text in logs.
    first: usize,
    layout: Layout,
    /// Whether a field holds the unit (long) or the severity (log).
    has_extra: bool,
    channels: Vec<ChannelRule>,
    /// Channels by the codes that stand for them.
    by_code: FxHashMap<String, Code>,
    /// Takes the keys' place, if it is to.
    pseudonyms: Option<Pseudonyms>,
    times: TimeRule,
    inputs: Inputs,
    /// Values out of their channel's bounds since they were last asked for.
    out_of_range: AtomicU64,
    rows: SchemaRef,
    records: SchemaRef,
}

/// What values of one channel must satisfy.
#[derive(Debug)]
struct ChannelRule {
    name: String,
    bounds: Option<(f32, f32)>,
}

/// What a code stands for.
#[derive(Debug)]
struct Code {
    channel: usize,
    /// From the unit of a row to the channel's.
    conversion: Option<Conversion>,
}

/// Beyond [`RowRules::first`], `layout = "long"`: the channel's code, its value, the value's unit.
const CODE: usize = 0;
const VALUE: usize = 1;
const UNIT: usize = 2;
/// `layout = "log"`: the text and its severity.
const MESSAGE: usize = 0;
const SEVERITY: usize = 1;

/// Columns of [`Rows`]: the key, the time, the channels, then these two.
const KEPT_FROM_END: usize = 2;
const FAULT_FROM_END: usize = 1;

impl RowRules {
    pub fn new(records: &Records) -> Result<Self, DecodeError> {
        let mut fields: Vec<String> = records.time.iter().cloned().collect();
        let first = fields.len();
        let rule = |name: &String| records.channel.get(name);
        match records.layout {
            Layout::Wide => fields.extend(records.channels.iter().map(|name| {
                rule(name).and_then(|rule| rule.field.as_ref()).unwrap_or(name).clone()
            })),
            Layout::Long => {
                fields.extend([records.code.clone(), records.value.clone()]);
                fields.extend(records.unit.clone());
            }
            Layout::Log => {
                fields.push(records.message.clone());
                fields.extend(records.severity.clone());
            }
        }
        fields.extend(records.key.clone());
        for names in [&fields, &records.channels] {
            if let Some(name) = first_repeated(names) {
                return Err(DecodeError::RepeatedField { name: name.to_owned() });
            }
        }

        let channels: Vec<ChannelRule> = records
            .channels
            .iter()
            .map(|name| ChannelRule { name: name.clone(), bounds: bounds_of(rule(name)) })
            .collect();
        let mut by_code = FxHashMap::default();
        for (channel, name) in records.channels.iter().enumerate() {
            let codes = match rule(name).map(|rule| rule.codes.as_slice()) {
                None | Some([]) => std::slice::from_ref(name),
                Some(codes) => codes,
            };
            for code in codes {
                let conversion = conversion(records, name, code)?;
                by_code.insert(code.clone(), Code { channel, conversion });
            }
        }
        let is_log = records.layout == Layout::Log;
        let mut columns = vec![
            Field::new("key", DataType::Utf8, true),
            Field::new("time", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        ];
        if is_log {
            columns.push(Field::new("message", DataType::Utf8, true));
            columns.push(Field::new("severity", DataType::Float32, true));
        }
        columns.extend(channels.iter().map(|rule| Field::new(&rule.name, DataType::Float32, true)));
        columns.push(Field::new("kept", DataType::Boolean, false));
        columns.push(Field::new("fault", DataType::Utf8, true));
        Ok(Self {
            time: records.time.as_ref().map(|_| 0),
            key: records.key.as_ref().map(|_| fields.len() - 1),
            first,
            layout: records.layout,
            has_extra: match records.layout {
                Layout::Wide => false,
                Layout::Long => records.unit.is_some(),
                Layout::Log => records.severity.is_some(),
            },
            times: TimeRule::new(records)?,
            records: if is_log { log_schema() } else { records_schema(&records.channels) },
            rows: Arc::new(Schema::new(columns)),
            out_of_range: AtomicU64::new(0),
            fields,
            channels,
            by_code,
            pseudonyms: records.key_hash.as_ref().map(Pseudonyms::new),
            inputs: records.inputs(),
        })
    }

    /// The fields to look for: the time, if a field holds it; the channels, or the code, the value
    /// and its unit, or the text and its severity; the key, if a field holds it.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// Position of the field that holds the key.
    pub fn key_field(&self) -> Option<usize> {
        self.key
    }

    /// Position of the field that holds the time.
    pub fn time_field(&self) -> Option<usize> {
        self.time
    }

    /// Positions of the channels' fields; `None` where channels have none of their own.
    pub fn channel_fields(&self) -> Option<Range<usize>> {
        (self.layout == Layout::Wide).then_some(self.first..self.first + self.channels.len())
    }

    /// How times are read.
    pub fn times(&self) -> &TimeRule {
        &self.times
    }

    /// Whether a field of the record holds its key.
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Whether a field of the record holds its time.
    pub fn has_time(&self) -> bool {
        self.time.is_some()
    }

    /// Whether a channel has this code (`layout = "long"`).
    pub fn has_code(&self, code: &str) -> bool {
        self.by_code.contains_key(code)
    }

    /// What takes the place of keys, if anything is to.
    pub fn pseudonyms(&self) -> Option<&Pseudonyms> {
        self.pseudonyms.as_ref()
    }

    /// Whether `field` is text by its meaning: the key, the name of a channel, a unit, a line.
    pub fn is_text(&self, field: usize) -> bool {
        let is_value = self.layout == Layout::Long && field == self.first + VALUE;
        Some(field) == self.key || (self.layout != Layout::Wide && field >= self.first && !is_value)
    }

    /// The schema of [`Rows`].
    pub fn rows_schema(&self) -> &SchemaRef {
        &self.rows
    }

    /// Values out of their channel's bounds since the last call.
    pub fn take_out_of_range(&self) -> u64 {
        self.out_of_range.swap(0, Ordering::Relaxed)
    }

    /// Checks that `columns`, those of every record to come, hold what a record needs; returns the
    /// fields of channels that they do not hold.
    pub fn check_columns(&self, columns: &[String]) -> Result<Vec<String>, DecodeError> {
        let absent = |name: &&String| !columns.contains(name);
        let missing = |key: &'static str, expected: &[String]| DecodeError::MissingColumn {
            key,
            expected: quoted(expected),
            found: quoted(columns),
        };
        let needs = |at: usize, key: &'static str| match absent(&&self.fields[at]) {
            true => Err(missing(key, &self.fields[at..=at])),
            false => Ok(()),
        };
        self.time.map_or(Ok(()), |at| needs(at, "time"))?;
        self.key.map_or(Ok(()), |at| needs(at, "key"))?;
        match self.layout {
            Layout::Long => {
                needs(self.first + CODE, "code")?;
                needs(self.first + VALUE, "value")?;
                return Ok(Vec::new());
            }
            Layout::Log => {
                needs(self.first + MESSAGE, "message")?;
                return Ok(Vec::new());
            }
            Layout::Wide => {}
        }
        let channels = &self.fields[self.first..self.first + self.channels.len()];
        let absent_channels: Vec<String> = channels.iter().filter(absent).cloned().collect();
        if absent_channels.len() == channels.len() {
            return Err(missing("channels", channels));
        }
        Ok(absent_channels)
    }
}

/// From the units that rows of `code` come with to that of their channel, where both are named.
fn conversion(
    records: &Records,
    channel: &str,
    code: &str,
) -> Result<Option<Conversion>, DecodeError> {
    let unit = records.channel.get(channel).and_then(|rule| rule.unit.as_ref());
    let Some(unit) = unit.filter(|_| records.unit.is_some()) else { return Ok(None) };
    let conversion = Conversion::new(unit, &[code, channel]);
    let error = || DecodeError::Unit { channel: channel.to_owned(), found: unit.clone() };
    conversion.ok_or_else(error).map(Some)
}

fn bounds_of(channel: Option<&Channel>) -> Option<(f32, f32)> {
    let Channel { min, max, .. } = channel?;
    let bounds = (min.unwrap_or(f64::NEG_INFINITY), max.unwrap_or(f64::INFINITY));
    (min.is_some() || max.is_some()).then_some((bounds.0 as f32, bounds.1 as f32))
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
    texts: StringBuilder,
    channels: Vec<Float32Builder>,
    /// Rows that are no records, in order, and why, where that is a fault.
    left_out: Vec<(usize, Option<String>)>,
    /// Channel values of the row being read, the severity in logs; NaN is missing.
    values: Vec<f32>,
    /// The message that rows come from now, and that of each row.
    message: usize,
    messages: Vec<usize>,
    out_of_range: u64,
}

impl<'a> RowBuilder<'a> {
    pub fn with_capacity(rules: &'a RowRules, rows: usize) -> Self {
        let columns = if rules.layout == Layout::Log { 1 } else { rules.channels.len() };
        let channel = || Float32Builder::with_capacity(rows);
        Self {
            rules,
            keys: StringBuilder::with_capacity(rows, 16 * rows),
            times: Vec::with_capacity(rows),
            texts: StringBuilder::new(),
            channels: std::iter::repeat_with(channel).take(columns).collect(),
            left_out: Vec::new(),
            values: vec![f32::NAN; columns],
            message: 0,
            messages: Vec::with_capacity(rows),
            out_of_range: 0,
        }
    }

    /// The rows so far, if there are any; begins anew.
    pub fn take(&mut self) -> Option<Rows> {
        let begun = !self.messages.is_empty();
        begun.then(|| std::mem::replace(self, Self::with_capacity(self.rules, 0)).finish())
    }

    /// Says which message the rows to come are of.
    pub fn of_message(&mut self, message: usize) {
        self.message = message;
    }

    /// Adds one row: a record, a row of a channel nobody asked for, or a fault with its reason.
    pub fn push(&mut self, row: &impl Row) {
        match self.read(row) {
            Ok(Some(head)) => self.append(&head),
            Ok(None) => self.leave_out(None),
            Err(reason) => self.leave_out(Some(&reason)),
        }
    }

    /// Adds the row whose numbers are in `values`.
    fn append(&mut self, head: &Head<'_>) {
        self.keys.append_option(head.key);
        self.times.push(head.time);
        self.append_text(head.text);
        for (column, value) in self.channels.iter_mut().zip(&self.values) {
            column.append_option(value.is_finite().then_some(*value));
        }
        self.messages.push(self.message);
    }

    /// Adds one row as [`RowBuilder::push`] does, unless it would be a fault; returns whether it was
    /// added.
    pub fn push_unless_fault(&mut self, row: &impl Row) -> bool {
        let out_of_range = self.out_of_range;
        match self.read(row) {
            Ok(Some(head)) => self.append(&head),
            Ok(None) => self.leave_out(None),
            Err(_) => {
                // Whoever reads it again counts it again.
                self.out_of_range = out_of_range;
                return false;
            }
        }
        true
    }

    /// Adds rows that another builder made by the same rules.
    pub fn extend(&mut self, Rows { batch, messages }: &Rows) {
        let columns = batch.columns();
        let channels = &columns[columns.len() - KEPT_FROM_END - self.channels.len()..];
        self.keys.append_array(columns[KEY_COLUMN].as_string()).expect(TEXT);
        let times = columns[TIME_COLUMN].as_primitive::<TimestampMicrosecondType>();
        self.times.extend_from_slice(times.values());
        if self.rules.layout == Layout::Log {
            self.texts.append_array(columns[TIME_COLUMN + 1].as_string()).expect(TEXT);
        }
        for (channel, column) in self.channels.iter_mut().zip(channels) {
            channel.append_array(column.as_primitive());
        }
        let kept = columns[columns.len() - KEPT_FROM_END].as_boolean();
        if kept.false_count() > 0 {
            let faults = columns[columns.len() - FAULT_FROM_END].as_string::<i32>();
            let fault = |row| faults.is_valid(row).then(|| faults.value(row).to_owned());
            let left_out = (0..kept.len()).filter(|row| !kept.value(*row));
            let before = self.messages.len();
            self.left_out.extend(left_out.map(|row| (before + row, fault(row))));
        }
        self.messages.extend_from_slice(messages);
    }

    /// Adds a row that nobody asked for.
    pub fn skip(&mut self) {
        self.leave_out(None);
    }

    /// Adds a row that is no record because of `reason`.
    pub fn refuse(&mut self, reason: &str) {
        self.leave_out(Some(reason));
    }

    fn leave_out(&mut self, fault: Option<&str>) {
        self.keys.append_null();
        self.times.push(0);
        self.append_text(None);
        self.channels.iter_mut().for_each(Float32Builder::append_null);
        self.left_out.push((self.messages.len(), fault.map(str::to_owned)));
        self.messages.push(self.message);
    }

    fn append_text(&mut self, text: Option<&str>) {
        if self.rules.layout == Layout::Log {
            self.texts.append_option(text);
        }
    }

    /// Reads the numbers into `values` and returns the rest; `None` for a row whose code is not one
    /// of the channels.
    fn read<'r>(&mut self, row: &'r impl Row) -> Result<Option<Head<'r>>, String> {
        let rules = self.rules;
        let first = rules.first;
        let mut text = None;
        match rules.layout {
            Layout::Wide => {}
            Layout::Long => {
                let code = text_of(row.cell(first + CODE))
                    .ok_or_else(|| refusal(row, rules, first + CODE, "the name of a channel"))?;
                let Some(code) = rules.by_code.get(code) else { return Ok(None) };
                let value = row.cell(first + VALUE);
                let number = (value != Cell::Absent).then(|| number_of(value)).flatten();
                self.values.fill(f32::NAN);
                let number =
                    number.ok_or_else(|| refusal(row, rules, first + VALUE, "a number"))?;
                let number = in_unit_of_channel(row, rules, code, number)?;
                self.values[code.channel] = self.within_bounds(code.channel, number);
            }
            Layout::Log => {
                text = text_of(row.cell(first + MESSAGE));
                if text.is_none() {
                    return Err(refusal(row, rules, first + MESSAGE, "text"));
                }
                self.values[0] = match rules.has_extra {
                    true => severity_of(row.cell(first + SEVERITY)),
                    false => f32::NAN,
                };
            }
        }
        let key = match rules.key {
            None => None,
            Some(field) => Some(key_of(row, rules, field)?),
        };
        let time = match rules.time {
            None => 0,
            Some(field) => rules
                .times
                .micros(row.cell(field))
                .ok_or_else(|| refusal(row, rules, field, rules.times.expected()))?,
        };
        if rules.layout == Layout::Wide {
            let mut any = false;
            for channel in 0..self.values.len() {
                let field = first + channel;
                let cell = row.cell(field);
                any |= cell != Cell::Absent;
                let number =
                    number_of(cell).ok_or_else(|| refusal(row, rules, field, "a number"))?;
                self.values[channel] = self.within_bounds(channel, number);
            }
            if !any {
                return Err(format!(
                    "expected at least one of the channels {}, found the fields {}",
                    quoted(&rules.fields[first..first + rules.channels.len()]),
                    row.found()
                ));
            }
        }
        Ok(Some(Head { key, time, text }))
    }

    /// NaN for what lies out of the channel's bounds.
    fn within_bounds(&mut self, channel: usize, value: f32) -> f32 {
        match self.rules.channels[channel].bounds {
            Some((min, max)) if value < min || value > max => {
                self.out_of_range += 1;
                f32::NAN
            }
            _ => value,
        }
    }

    /// The rows, with the messages that [`RowBuilder::of_message`] told.
    pub fn finish(self) -> Rows {
        let schema = Arc::clone(self.rules.rows_schema());
        let (columns, messages) = self.into_columns();
        let batch = RecordBatch::try_new(schema, columns).expect("columns of one length");
        Rows { batch, messages }
    }

    /// The columns in the order of [`RowRules::rows_schema`], and the message of each row.
    pub fn into_columns(mut self) -> (Vec<ArrayRef>, Vec<usize>) {
        self.rules.out_of_range.fetch_add(self.out_of_range, Ordering::Relaxed);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.keys.finish()),
            Arc::new(TimestampMicrosecondArray::from(self.times)),
        ];
        if self.rules.layout == Layout::Log {
            columns.push(Arc::new(self.texts.finish()));
        }
        for mut channel in self.channels {
            columns.push(Arc::new(channel.finish()));
        }
        columns.extend(kept_and_faults(self.messages.len(), self.left_out));
        (columns, self.messages)
    }
}

/// What a row holds besides numbers.
struct Head<'r> {
    key: Option<&'r str>,
    /// Microseconds since the epoch; 0 where no field holds the time.
    time: i64,
    text: Option<&'r str>,
}

/// Words for severities, most severe first: their places are syslog's numbers
/// ([RFC 5424](https://www.rfc-editor.org/rfc/rfc5424), 6.2.1).
const SEVERITIES: [&[&str]; 8] = [
    &["emergency", "emerg", "panic"],
    &["alert"],
    &["critical", "crit", "fatal", "failure", "severe"],
    &["error", "err", "e", "f"],
    &["warning", "warn", "w"],
    &["notice"],
    &["informational", "information", "info", "i"],
    &["debug", "trace", "verbose", "fine", "finer", "finest", "d", "t", "v"],
];

/// Severity from 0 (debug) to 7 (emergency), NaN where none is told that is known.
fn severity_of(cell: Cell<'_>) -> f32 {
    let number = match cell {
        Cell::Text(text) | Cell::Number(text) => {
            let text = text.trim();
            let is = |words: &&[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
            match SEVERITIES.iter().position(is) {
                Some(place) => Some(place as f32),
                None => text.parse().ok(),
            }
        }
        Cell::Integer(number) => Some(number as f32),
        Cell::Float(number) => Some(number as f32),
        Cell::Absent | Cell::Null | Cell::Instant(_) | Cell::Other(_) => None,
    };
    let most = SEVERITIES.len() as f32 - 1.0;
    number.filter(|number| (0.0..=most).contains(number)).map_or(f32::NAN, |number| most - number)
}

/// `number` in the unit of its channel; as it is where a unit is not named.
fn in_unit_of_channel(
    row: &impl Row,
    rules: &RowRules,
    code: &Code,
    number: f32,
) -> Result<f32, String> {
    let Some(conversion) = code.conversion.as_ref().filter(|_| rules.has_extra) else {
        return Ok(number);
    };
    let field = rules.first + UNIT;
    match row.cell(field) {
        Cell::Absent | Cell::Null => Ok(number),
        Cell::Text(unit) if unit.trim().is_empty() => Ok(number),
        Cell::Text(unit) if number.is_finite() => conversion
            .convert(f64::from(number), unit.trim())
            .map(|converted| converted as f32)
            .ok_or_else(|| refusal(row, rules, field, "a unit that converts to the channel's")),
        Cell::Text(_) => Ok(number),
        _ => Err(refusal(row, rules, field, "a unit, as text")),
    }
}

fn refusal(row: &impl Row, rules: &RowRules, field: usize, expected: &str) -> String {
    let (place, name) = (row.place(), &rules.fields[field]);
    match row.cell(field) {
        Cell::Absent => {
            let found = row.found();
            format!("{place}field \"{name}\": expected {expected}, found the fields {found}")
        }
        cell => format!("{place}field \"{name}\": expected {expected}, found {cell}"),
    }
}

fn key_of<'r>(row: &'r impl Row, rules: &RowRules, field: usize) -> Result<&'r str, String> {
    let key = text_of(row.cell(field))
        .ok_or_else(|| refusal(row, rules, field, "a key, as text or a number"))?;
    check_key(key)
        .map(|()| key)
        .map_err(|reason| format!("{}field \"{}\": {reason}", row.place(), rules.fields[field]))
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

/// Rows in the columns of [`RowRules::rows_schema`], faults included.
#[derive(Debug)]
pub(crate) struct Rows {
    pub batch: RecordBatch,
    /// Per row: the message it came from.
    pub messages: Vec<usize>,
}

impl Rows {
    /// Rows of the wide layout that are records all of them, from whole columns: `times` in
    /// microseconds since the epoch, one of `channels` per channel, missing where it is null or not
    /// finite. `None` where a key would be refused.
    pub fn of_columns(
        rules: &RowRules,
        keys: Option<&StringArray>,
        times: ScalarBuffer<i64>,
        channels: Vec<Float32Array>,
        messages: Vec<usize>,
    ) -> Option<Self> {
        let rows = messages.len();
        let keys = match keys {
            Some(keys) => {
                let offsets = keys.value_offsets();
                let lengths = offsets.iter().zip(&offsets[1..]).map(|(start, end)| end - start);
                // Without a branch: most often, all fit.
                let fit = lengths
                    .fold(true, |all, bytes| all & (bytes > 0) & (bytes <= MAX_KEY_BYTES as i32));
                if !fit || keys.null_count() > 0 {
                    return None;
                }
                keys.clone()
            }
            None => StringArray::new_null(rows),
        };
        let mut out_of_range = 0;
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(keys), Arc::new(TimestampMicrosecondArray::new(times, None))];
        for (column, rule) in channels.into_iter().zip(&rules.channels) {
            let (column, out) = known(column, rule.bounds);
            columns.push(Arc::new(column));
            out_of_range += out;
        }
        columns.extend(kept_and_faults(rows, Vec::new()));
        rules.out_of_range.fetch_add(out_of_range, Ordering::Relaxed);
        let batch = RecordBatch::try_new(Arc::clone(&rules.rows), columns).ok()?;
        Some(Self { batch, messages })
    }

    /// Rows one behind the other, all by the same rules.
    pub fn concat(rules: &RowRules, parts: &[Self]) -> Self {
        let batches = parts.iter().map(|part| &part.batch);
        let batch = concat_batches(&rules.rows, batches).expect("every part has these columns");
        Self { batch, messages: parts.iter().flat_map(|part| &part.messages).copied().collect() }
    }

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
        self.batch.column(KEY_COLUMN).as_string().clone()
    }

    /// The times that a field of the records held, microseconds since the epoch.
    pub fn times(&self) -> &ScalarBuffer<i64> {
        self.batch.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>().values()
    }

    fn column_from_end(&self, columns: usize) -> &ArrayRef {
        self.batch.column(self.batch.num_columns() - columns)
    }

    /// The records among the rows: in [`records_schema`] of the channels of a group, in
    /// [`log_schema`] for logs. A row without a key or a time is left out. In the long layout,
    /// consecutive rows of one key and time become one record.
    ///
    /// `keys`, `times` (microseconds since the epoch) and `offsets` have one value per row.
    pub fn into_records(
        self,
        rules: &RowRules,
        keys: StringArray,
        times: Int64Array,
        offsets: Int64Array,
    ) -> RecordBatch {
        let mut kept = self.kept().clone();
        for column in [&keys as &dyn Array, &times] {
            if column.null_count() > 0 {
                let known = is_not_null(column).expect("a plain array has a null mask");
                kept = and(&kept, &known).expect("one value per row");
            }
        }
        // What is null in a row left out is filled: the schema allows no nulls, and the filter
        // takes the row away.
        let keys = if kept.false_count() == 0 { keys } else { without_nulls(&keys) };
        let keys = match &rules.pseudonyms {
            Some(pseudonyms) => pseudonyms.of_all(&keys),
            None => keys,
        };
        let times = TimestampMicrosecondArray::new(times.values().clone(), None);
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(keys), Arc::new(times.with_timezone("UTC")), Arc::new(offsets)];
        let end = self.batch.num_columns() - KEPT_FROM_END;
        columns.extend_from_slice(&self.batch.columns()[TIME_COLUMN + 1..end]);
        let records = if kept.false_count() == 0 {
            RecordBatch::try_new(Arc::clone(&rules.records), columns)
        } else {
            let schema = Arc::new(nullable(&rules.records));
            let all = RecordBatch::try_new(schema, columns).expect(ROWS);
            let kept = filter_record_batch(&all, &kept).expect("the mask has one bit per row");
            RecordBatch::try_new(Arc::clone(&rules.records), kept.columns().to_vec())
        }
        .expect(ROWS);
        let records = match rules.layout {
            Layout::Wide | Layout::Log => records,
            Layout::Long => merge_neighbours(&records),
        };
        groups::split(records, &rules.inputs)
    }
}

/// The last columns of `rows` rows.
fn kept_and_faults(rows: usize, left_out: Vec<(usize, Option<String>)>) -> [ArrayRef; 2] {
    if left_out.is_empty() {
        let kept = BooleanArray::new(BooleanBuffer::new_set(rows), None);
        return [Arc::new(kept), Arc::new(StringArray::new_null(rows))];
    }
    let mut kept = BooleanBufferBuilder::new(rows);
    kept.append_n(rows, true);
    let mut faults = vec![None; rows];
    for (row, fault) in left_out {
        kept.set_bit(row, false);
        faults[row] = fault;
    }
    let kept = BooleanArray::new(kept.finish(), None);
    [Arc::new(kept), Arc::new(StringArray::from_iter(faults))]
}

/// The same values, null where they are not finite or out of `bounds`; how many of them are out of
/// bounds.
fn known(column: Float32Array, bounds: Option<(f32, f32)>) -> (Float32Array, u64) {
    let (least, most) = bounds.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
    let is_known = |value: &f32| value.is_finite() & (*value >= least) & (*value <= most);
    // Without a branch: this is most often all that is to be done.
    if column.values().iter().fold(true, |all, value| all & is_known(value)) {
        return (column, 0);
    }
    let (_, values, nulls) = column.into_parts();
    let is_valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
    let is_out = |row: usize| is_valid(row) && (values[row] < least || values[row] > most);
    let out_of_range = (0..values.len()).filter(|row| is_out(*row)).count();
    let known =
        BooleanBuffer::collect_bool(values.len(), |row| is_valid(row) && is_known(&values[row]));
    (Float32Array::new(values, Some(NullBuffer::new(known))), out_of_range as u64)
}

const TEXT: &str = "the text of a batch is far below 2 GiB";
const ROWS: &str = "rows hold the columns of records";

/// The same columns, any of which may hold nulls.
fn nullable(schema: &Schema) -> Schema {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Schema::new(fields.collect::<Vec<_>>())
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
