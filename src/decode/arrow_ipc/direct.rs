//! Streams of plain columns, copied straight to where rows are.
//!
//! `arrow-ipc` copies each message before it makes columns of it, and columns of several messages
//! have to be joined, by a second copy. Here what is wanted is copied once, behind what the message
//! before held. What is not plain, or would be refused, is left to [`super::Batches`], which says
//! why.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Float32Array, StringArray};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::{Endianness, MessageHeader, root_as_message};

use super::{Batches, CONTINUATION, MOST_CELLS, Widths};
use crate::decode::columns::{Cell, MAX_KEY_BYTES, RowRules, Rows};
use crate::source::Messages;

/// How the streams of one schema are read; the last schema's is kept.
pub(super) struct Direct {
    /// The schema's part of a stream.
    schema: Vec<u8>,
    /// `None` where its columns are not plain.
    plan: Option<Plan>,
}

struct Plan {
    columns: Vec<Column>,
    /// Number of all columns, and of what their buffers' lengths are multiples.
    nodes: usize,
    widths: Widths,
}

/// A column that is wanted.
#[derive(Clone, Copy)]
struct Column {
    of: Of,
    kind: Kind,
    /// Its number, and that of its first buffer.
    node: usize,
    buffer: usize,
}

#[derive(Clone, Copy)]
enum Of {
    Key,
    Time,
    Channel(usize),
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    /// Microseconds in one unit of it.
    Instant(i64),
    Int,
    Long,
    Single,
    Double,
}

/// Where the values of a column lie in a message.
struct Place<'m> {
    column: Column,
    rows: usize,
    /// A bit for each row, where some are null.
    validity: Option<&'m [u8]>,
    values: &'m [u8],
    /// Of text: its bytes, with the offsets in `values`.
    text: &'m [u8],
}

/// Columns of several messages, one behind the other.
struct Joined {
    offsets: Vec<i32>,
    text: Vec<u8>,
    times: Vec<i64>,
    channels: Vec<Vec<f32>>,
    messages: Vec<usize>,
}

impl Direct {
    pub fn new() -> Self {
        Self { schema: Vec::new(), plan: None }
    }

    /// The rows of the first messages of `range`, as far as they can be read here, and where the
    /// others begin.
    pub fn read(
        &mut self,
        rules: &Arc<RowRules>,
        messages: &Messages,
        range: Range<usize>,
    ) -> (Option<Rows>, usize) {
        let channels = rules.channel_fields().map_or(0, |channels| channels.len());
        let mut joined = Joined {
            offsets: vec![0],
            text: Vec::new(),
            times: Vec::new(),
            channels: vec![Vec::new(); channels],
            messages: Vec::new(),
        };
        let mut end = range.start;
        for index in range.clone() {
            let Some(batches) = self.places(rules, messages.get(index).payload) else { break };
            if index == range.start {
                // Those to come may well be like the first one.
                let bytes = |index| messages.get(index).payload.len();
                let all: usize = range.clone().map(bytes).sum();
                joined.reserve(&batches, all.div_ceil(bytes(index).max(1)));
            }
            if joined.take(rules, index, &batches).is_none() {
                break;
            }
            end = index + 1;
        }
        if joined.messages.is_empty() {
            return (None, end);
        }
        match joined.rows(rules) {
            Some(rows) => (Some(rows), end),
            None => (None, range.start),
        }
    }

    /// The wanted columns of each batch of a message, every one checked as far as its bytes go.
    fn places<'m>(
        &mut self,
        rules: &Arc<RowRules>,
        payload: &'m [u8],
    ) -> Option<Vec<Vec<Place<'m>>>> {
        let mut left = payload;
        let schema = metadata(&mut left)??;
        if self.schema != schema {
            self.schema = schema.to_vec();
            self.plan = Plan::new(schema, rules);
        }
        let plan = self.plan.as_ref()?;
        let mut checks = Batches::new(payload, payload.len() as u64, Arc::clone(rules));
        let mut batches = Vec::new();
        let mut room = MOST_CELLS / rules.fields().len().max(1);
        while let Some(metadata) = metadata(&mut left)? {
            let metadata = Buffer::from(metadata);
            let message = root_as_message(&metadata).ok()?;
            let length = usize::try_from(message.bodyLength()).ok()?;
            let (body, rest) = left.split_at_checked(length)?;
            left = rest;
            let batch = match message.header_type() {
                MessageHeader::RecordBatch => message.header_as_record_batch()?,
                _ => return None,
            };
            if batch.compression().is_some() {
                return None;
            }
            checks.check(&batch, &plan.widths, body).ok()?;
            let rows = usize::try_from(batch.length()).ok()?;
            room = room.checked_sub(rows)?;
            let (nodes, buffers) = (batch.nodes()?, batch.buffers()?);
            if nodes.len() != plan.nodes || buffers.len() != plan.widths.0.len() {
                return None;
            }
            // Where it lies was checked.
            let buffer = |at: usize| {
                let place = buffers.get(at);
                let start = place.offset() as usize;
                &body[start..start + place.length() as usize]
            };
            let place = |column: &Column| {
                let node = nodes.get(column.node);
                if node.length() != batch.length() {
                    return None;
                }
                let is_text = column.kind == Kind::Text;
                let validity = (node.null_count() > 0).then(|| buffer(column.buffer));
                let values = buffer(column.buffer + 1);
                let text = if is_text { buffer(column.buffer + 2) } else { &[] };
                let wanted = if is_text { rows + 1 } else { rows } * column.kind.width();
                let nulls = validity.map_or(Some(0), |bits| nulls(bits, rows))?;
                let fits = i64::try_from(nulls) == Ok(node.null_count());
                let values = values.get(..wanted).filter(|_| fits)?;
                Some(Place { column: *column, rows, validity, values, text })
            };
            batches.push(plan.columns.iter().map(place).collect::<Option<Vec<_>>>()?);
        }
        left.is_empty().then_some(batches)
    }
}

/// The metadata of the next part of a stream, which is taken off it; none at the stream's end,
/// marked or not.
fn metadata<'m>(left: &mut &'m [u8]) -> Option<Option<&'m [u8]>> {
    if left.is_empty() {
        return Some(None);
    }
    let mut length = take(left, 4)?;
    if length == CONTINUATION {
        length = take(left, 4)?;
    }
    match i32::from_le_bytes(length.try_into().ok()?) {
        0 => Some(None),
        length => take(left, usize::try_from(length).ok()?).map(Some),
    }
}

/// How many of the first `rows` bits are not set; `None` where there are fewer bits.
fn nulls(bits: &[u8], rows: usize) -> Option<usize> {
    let bits = bits.get(..rows.div_ceil(8))?;
    let valid = |row: &usize| bits[row / 8] >> (row % 8) & 1 == 1;
    Some(rows - (0..rows).filter(valid).count())
}

fn take<'m>(left: &mut &'m [u8], length: usize) -> Option<&'m [u8]> {
    let (taken, rest) = left.split_at_checked(length)?;
    *left = rest;
    Some(taken)
}

impl Kind {
    fn of(data_type: &DataType) -> Option<Self> {
        let is_utc = |zone: &Arc<str>| matches!(&**zone, "UTC" | "+00:00");
        match data_type {
            DataType::Utf8 => Some(Self::Text),
            DataType::Timestamp(unit, zone) if zone.as_ref().is_none_or(is_utc) => match unit {
                TimeUnit::Second => Some(Self::Instant(1_000_000)),
                TimeUnit::Millisecond => Some(Self::Instant(1000)),
                TimeUnit::Microsecond => Some(Self::Instant(1)),
                TimeUnit::Nanosecond => None,
            },
            DataType::Int32 => Some(Self::Int),
            DataType::Int64 => Some(Self::Long),
            DataType::Float32 => Some(Self::Single),
            DataType::Float64 => Some(Self::Double),
            _ => None,
        }
    }

    /// Bytes of a value, of an offset of text.
    fn width(self) -> usize {
        match self {
            Self::Text | Self::Int | Self::Single => 4,
            Self::Instant(_) | Self::Long | Self::Double => 8,
        }
    }
}

impl Plan {
    /// How batches behind the schema in `metadata` are read; `None` where a field of records is not
    /// a column of its own, or anything is not plain.
    fn new(metadata: &[u8], rules: &RowRules) -> Option<Self> {
        let metadata = Buffer::from(metadata);
        let message = root_as_message(&metadata).ok()?;
        let schema = message.header_as_schema()?;
        if schema.endianness() != Endianness::Little || message.bodyLength() != 0 {
            return None;
        }
        let schema = try_fb_to_schema(schema).ok()?;
        let columns = Self::columns(&schema, rules)?;
        let mut widths = Widths(Vec::new());
        for field in schema.fields() {
            widths.add(field.data_type(), message.version(), &mut std::iter::empty());
        }
        Some(Self { columns, nodes: schema.fields().len(), widths })
    }

    fn columns(schema: &Schema, rules: &RowRules) -> Option<Vec<Column>> {
        let channels = rules.channel_fields()?;
        let mut found = vec![None; rules.fields().len()];
        let mut buffer = 0;
        for (node, field) in schema.fields().iter().enumerate() {
            // One node each, and buffers that are known without a look at the batch.
            let data_type = field.data_type();
            let buffers = match data_type {
                DataType::Utf8 | DataType::Binary => 3,
                DataType::Boolean => 2,
                plain if plain.is_primitive() => 2,
                _ => return None,
            };
            let wanted = rules.fields().iter().position(|path| path == field.name());
            if let Some(wanted) = wanted.filter(|wanted| found[*wanted].is_none()) {
                let kind = Kind::of(data_type)?;
                let is_number =
                    matches!(kind, Kind::Int | Kind::Long | Kind::Single | Kind::Double);
                let (of, fits) = match wanted {
                    key if Some(key) == rules.key_field() => (Of::Key, kind == Kind::Text),
                    time if Some(time) == rules.time_field() => {
                        (Of::Time, matches!(kind, Kind::Instant(_) | Kind::Long))
                    }
                    channel => (Of::Channel(channel - channels.start), is_number),
                };
                found[wanted] = fits.then_some(Column { of, kind, node, buffer });
                found[wanted]?;
            }
            buffer += buffers;
        }
        found.into_iter().collect()
    }
}

impl Joined {
    /// Makes room for the batches of `messages` messages like this one.
    fn reserve(&mut self, batches: &[Vec<Place<'_>>], messages: usize) {
        let places = || batches.iter().filter_map(|places| places.first());
        let rows = messages * places().map(|place| place.rows).sum::<usize>();
        let text = batches.iter().flatten().map(|place| place.text.len()).sum::<usize>();
        self.offsets.reserve(rows);
        self.text.reserve(messages * text);
        self.times.reserve(rows);
        self.messages.reserve(rows);
        self.channels.iter_mut().for_each(|channel| channel.reserve(rows));
    }

    /// Adds the batches of a message; `None`, with nothing added, where a row is no record.
    fn take(&mut self, rules: &RowRules, message: usize, batches: &[Vec<Place<'_>>]) -> Option<()> {
        let (rows, text) = (self.messages.len(), self.text.len());
        let taken = batches.iter().try_for_each(|places| {
            places.iter().try_for_each(|place| self.take_column(rules, place))?;
            let count = places.first()?.rows;
            self.messages.resize(self.messages.len() + count, message);
            if rules.time_field().is_none() {
                self.times.resize(self.messages.len(), 0);
            }
            Some(())
        });
        if taken.is_none() {
            self.offsets.truncate(rows + 1);
            self.text.truncate(text);
            self.times.truncate(rows);
            self.messages.truncate(rows);
            self.channels.iter_mut().for_each(|channel| channel.truncate(rows));
        }
        taken
    }

    fn take_column(&mut self, rules: &RowRules, place: &Place<'_>) -> Option<()> {
        let Place { column: Column { of, kind, .. }, validity, values, text, .. } = *place;
        match of {
            Of::Key if validity.is_none() => self.take_keys(values, text),
            Of::Time if validity.is_none() => {
                let known = self.times.len();
                if kind == Kind::Instant(1) {
                    self.times.extend(longs(values));
                    return rules.times().are_instants(&self.times[known..]).then_some(());
                }
                for time in longs(values) {
                    let cell = match kind {
                        Kind::Instant(micros) => Cell::Instant(time.checked_mul(micros)?),
                        _ => Cell::Integer(time),
                    };
                    self.times.push(rules.times().micros(cell)?);
                }
                Some(())
            }
            Of::Key | Of::Time => None,
            Of::Channel(channel) => {
                let numbers = &mut self.channels[channel];
                let known = numbers.len();
                match kind {
                    Kind::Single => numbers.extend(chunks(values).map(f32::from_le_bytes)),
                    Kind::Double => {
                        numbers
                            .extend(chunks(values).map(|bytes| f64::from_le_bytes(bytes) as f32));
                    }
                    Kind::Int => {
                        let ints = chunks(values).map(i32::from_le_bytes);
                        numbers.extend(ints.map(|number| i64::from(number) as f32));
                    }
                    Kind::Long => numbers.extend(longs(values).map(|number| number as f32)),
                    Kind::Text | Kind::Instant(_) => return None,
                }
                if let Some(bits) = validity {
                    for (row, number) in numbers[known..].iter_mut().enumerate() {
                        if bits[row / 8] >> (row % 8) & 1 == 0 {
                            *number = f32::NAN;
                        }
                    }
                }
                Some(())
            }
        }
    }

    fn take_keys(&mut self, offsets: &[u8], text: &[u8]) -> Option<()> {
        let offsets = || chunks(offsets).map(i32::from_le_bytes);
        let first = offsets().next()?;
        let last = offsets().last()?;
        let text = text.get(usize::try_from(first).ok()?..usize::try_from(last).ok()?)?;
        // Where they rise, all of them lie within the text.
        let (_, fit) = offsets().skip(1).fold((first, true), |(before, fit), at| {
            let length = at.wrapping_sub(before);
            (at, fit & (length > 0) & (length <= MAX_KEY_BYTES as i32))
        });
        let shift = i32::try_from(self.text.len()).ok()?.checked_sub(first)?;
        shift.checked_add(last)?;
        let are_texts =
            |whole: &str| offsets().all(|at| whole.is_char_boundary((at - first) as usize));
        if !fit || !(text.is_ascii() || std::str::from_utf8(text).is_ok_and(are_texts)) {
            return None;
        }
        self.text.extend_from_slice(text);
        self.offsets.extend(offsets().skip(1).map(|at| at + shift));
        Some(())
    }

    /// The rows; `None` where one has to be refused after all.
    fn rows(self, rules: &RowRules) -> Option<Rows> {
        let keys = match rules.has_key() {
            // They rise: each was checked.
            true => {
                let offsets = OffsetBuffer::new(self.offsets.into());
                Some(StringArray::try_new(offsets, self.text.into(), None).ok()?)
            }
            false => None,
        };
        let channels =
            self.channels.into_iter().map(|values| Float32Array::new(values.into(), None));
        Rows::of_columns(rules, keys.as_ref(), self.times.into(), channels.collect(), self.messages)
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

fn longs(bytes: &[u8]) -> impl Iterator<Item = i64> {
    chunks(bytes).map(i64::from_le_bytes)
}
