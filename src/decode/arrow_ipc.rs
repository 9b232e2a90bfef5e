//! Arrow IPC: a stream with any number of batches a message, or a file.
//!
//! `arrow-ipc` trusts lengths: a buffer beyond the message's end, or a header of another kind than
//! its tag says, is a panic, and a compressed buffer may claim any size. [`Batches`] therefore
//! checks the metadata of each part before anything is read by it, and has only those columns read
//! that hold fields of records.

mod direct;

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::{Buffer, MutableBuffer};
use arrow::datatypes::{DataType, SchemaRef, UnionMode};
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow::ipc::{self, Endianness, MessageHeader, MetadataVersion, root_as_message};

use self::direct::Direct;
use super::arrow_columns::{Columns, roots_of};
use super::columns::{RowBuilder, RowRules, Rows};
use crate::source::Messages;

/// Stands before the length of each part, since version 0.15 of Arrow.
const CONTINUATION: [u8; 4] = [0xFF; 4];
/// Largest metadata of a part, bytes.
const LARGEST_METADATA: u64 = 64 << 20;
/// Most values of one column of a batch, items of lists included.
const MOST_VALUES: i64 = 1 << 25;
/// Most bytes that what is compressed may expand to: of all batches of a message, of each one of a
/// file.
const MOST_UNCOMPRESSED: u64 = 256 << 20;
/// Most values that the records of a message may have together, missing ones included.
const MOST_CELLS: usize = 1 << 24;
/// Length of an uncompressed size before a compressed buffer, and the size that means that the
/// buffer is not compressed after all.
const SIZE_BYTES: usize = 8;
const NOT_COMPRESSED: i64 = -1;

/// Decodes messages that are one stream each, with as many records as it has rows.
pub(super) struct ArrowIpc {
    rules: Arc<RowRules>,
    direct: Direct,
}

impl ArrowIpc {
    pub fn new(rules: Arc<RowRules>) -> Self {
        Self { rules, direct: Direct::new() }
    }

    /// The rows of the messages in `range`. Of a message that is not whole, none counts.
    pub fn decode(&mut self, messages: &Messages, range: Range<usize>) -> Rows {
        let mut parts = Vec::new();
        let mut next = range.start;
        while next < range.end {
            let (whole, end) = self.direct.read(&self.rules, messages, next..range.end);
            parts.extend(whole);
            if end < range.end {
                self.read(messages, end, &mut parts);
            }
            next = end + 1;
        }
        match parts.len() {
            1 => parts.remove(0),
            _ => Rows::concat(&self.rules, &parts),
        }
    }

    /// Adds the rows of message `index`.
    fn read(&self, messages: &Messages, index: usize, parts: &mut Vec<Rows>) {
        let mut rows = RowBuilder::with_capacity(&self.rules, 0);
        rows.of_message(index);
        match self.columns(messages.get(index).payload) {
            Ok(batches) => {
                for (columns, count) in batches {
                    match columns.rows(&self.rules, vec![index; count]) {
                        Some(whole) => {
                            parts.extend(rows.take());
                            rows.of_message(index);
                            parts.push(whole);
                        }
                        None => (0..count).for_each(|row| rows.push(&columns.row(row))),
                    }
                }
            }
            Err(reason) => rows.refuse(&format!("expected an Arrow IPC stream: {reason}")),
        }
        parts.extend(rows.take());
    }

    /// The columns and the number of rows of each batch of a message.
    fn columns(&self, payload: &[u8]) -> Result<Vec<(Columns, usize)>, String> {
        if payload.is_empty() {
            return Err("found an empty message".to_owned());
        }
        let mut batches = Batches::new(payload, payload.len() as u64, Arc::clone(&self.rules));
        let mut columns = Vec::new();
        let mut room = MOST_CELLS / self.rules.fields().len().max(1);
        while let Some(batch) = batches.read()? {
            let count = batch.num_rows();
            room = room.checked_sub(count).ok_or_else(|| {
                format!("expected at most {MOST_CELLS} values of records in a message, found more")
            })?;
            let found = Columns::of(&self.rules, &batch).map_err(|error| error.to_string())?;
            columns.push((found, count));
        }
        match batches.left() {
            0 => Ok(columns),
            left => {
                Err(format!("expected the message's end behind the stream, found {left} bytes"))
            }
        }
    }
}

/// The batches of a stream, in the columns that hold fields of records.
pub(crate) struct Batches<R> {
    reader: R,
    /// Bytes that the reader has left.
    left: u64,
    rules: Arc<RowRules>,
    columns: Option<Wanted>,
    dictionaries: HashMap<i64, ArrayRef>,
    /// Bytes that what is compressed may still expand to.
    uncompressed_left: u64,
}

/// What is read of a stream's batches.
struct Wanted {
    schema: SchemaRef,
    /// Positions of its columns.
    positions: Vec<usize>,
    /// The schema with these columns alone.
    projected: SchemaRef,
}

impl<R: Read> Batches<R> {
    /// The batches of a stream of `length` bytes.
    pub fn new(reader: R, length: u64, rules: Arc<RowRules>) -> Self {
        Self {
            reader,
            left: length,
            rules,
            columns: None,
            dictionaries: HashMap::new(),
            uncompressed_left: MOST_UNCOMPRESSED,
        }
    }

    /// Bytes behind what was read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The schema of the stream, all columns included.
    ///
    /// # Errors
    /// If the stream does not begin with one, in words.
    pub fn schema(&mut self) -> Result<SchemaRef, String> {
        if self.columns.is_none() {
            let part = self.part()?.ok_or("expected a schema, found the stream's end")?;
            self.take_schema(&part)?;
        }
        let columns = self.columns.as_ref();
        columns.map(|wanted| Arc::clone(&wanted.schema)).ok_or_else(|| NO_SCHEMA.to_owned())
    }

    /// Lets the next batch expand as far as the first one might.
    pub fn renew(&mut self) {
        self.uncompressed_left = MOST_UNCOMPRESSED;
    }

    /// The next batch; `None` at the end of the stream.
    ///
    /// # Errors
    /// Where the stream ceases to be one, in words.
    pub fn read(&mut self) -> Result<Option<RecordBatch>, String> {
        self.schema()?;
        while let Some(part) = self.part()? {
            let message = part.message()?;
            match message.header_type() {
                MessageHeader::RecordBatch => return self.batch(&message, &part.body).map(Some),
                MessageHeader::DictionaryBatch => self.take_dictionary(&message, &part.body)?,
                MessageHeader::NONE => {}
                other => {
                    let found = other.variant_name().unwrap_or("something else");
                    return Err(format!("expected a batch, found a message of kind {found}"));
                }
            }
        }
        Ok(None)
    }

    /// The next part of the stream; `None` at its end, marked or not.
    fn part(&mut self) -> Result<Option<Part>, String> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.fill(&mut length)?;
        if length == CONTINUATION {
            self.fill(&mut length)?;
        }
        let length = i64::from(i32::from_le_bytes(length));
        if length == 0 {
            return Ok(None);
        }
        let metadata = self.bytes(length, LARGEST_METADATA)?;
        let message = root_as_message(&metadata).map_err(|error| error.to_string())?;
        let body = self.bytes(message.bodyLength(), u64::MAX)?;
        Ok(Some(Part { metadata, body }))
    }

    fn bytes(&mut self, length: i64, most: u64) -> Result<Buffer, String> {
        let most = most.min(self.left);
        let fits = u64::try_from(length).ok().filter(|length| *length <= most);
        let Some(fits) = fits.and_then(|length| usize::try_from(length).ok()) else {
            return Err(format!("expected {length} bytes, found {} up to the end", self.left));
        };
        let mut bytes = MutableBuffer::from_len_zeroed(fits);
        self.fill(&mut bytes)?;
        Ok(bytes.into())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        let length = bytes.len() as u64;
        if length > self.left {
            return Err(format!("expected {length} bytes, found {} up to the end", self.left));
        }
        self.reader.read_exact(bytes).map_err(|error| error.to_string())?;
        self.left -= length;
        Ok(())
    }

    fn take_schema(&mut self, part: &Part) -> Result<(), String> {
        let message = part.message()?;
        let schema = message.header_as_schema().ok_or(NO_SCHEMA)?;
        if schema.endianness() != Endianness::Little {
            return Err("expected little-endian numbers, found big-endian ones".to_owned());
        }
        let schema = try_fb_to_schema(schema).map_err(|error| error.to_string())?;
        let positions = roots_of(&self.rules, &schema);
        for at in &positions {
            let field = schema.field(*at);
            if !is_safe(field.data_type()) {
                let (name, found) = (field.name(), field.data_type());
                return Err(format!("column \"{name}\": expected plain values, found {found}"));
            }
        }
        let projected = schema.project(&positions).map_err(|error| error.to_string())?;
        let (schema, projected) = (Arc::new(schema), Arc::new(projected));
        self.columns = Some(Wanted { schema, positions, projected });
        Ok(())
    }

    fn batch(&mut self, message: &ipc::Message<'_>, body: &Buffer) -> Result<RecordBatch, String> {
        let header = message.header_as_record_batch().ok_or(NO_BATCH)?;
        let wanted = self.columns.as_ref().ok_or(NO_SCHEMA)?;
        let types = wanted.schema.fields().iter().map(|field| field.data_type());
        let widths = Widths::new(&header, message.version(), types);
        self.check(&header, &widths, body)?;
        let wanted = self.columns.as_ref().ok_or(NO_SCHEMA)?;
        let batch = RecordBatchDecoder::try_new(
            body,
            header,
            Arc::clone(&wanted.schema),
            &self.dictionaries,
            &message.version(),
        )
        .and_then(|decoder| decoder.with_projection(Some(&wanted.positions)).read_record_batch())
        .map_err(|error| error.to_string())?;
        Ok(batch)
    }

    fn take_dictionary(&mut self, message: &ipc::Message<'_>, body: &Buffer) -> Result<(), String> {
        let header = message.header_as_dictionary_batch().ok_or(NO_BATCH)?;
        let wanted = self.columns.as_ref().ok_or(NO_SCHEMA)?;
        let schema = Arc::clone(&wanted.projected);
        #[expect(deprecated, reason = "the numbers of dictionaries are nowhere else")]
        let fields = schema.fields_with_dict_id(header.id());
        let Some(DataType::Dictionary(_, values)) = fields.first().map(|field| field.data_type())
        else {
            return Ok(());
        };
        let data = header.data().ok_or(NO_BATCH)?;
        let widths = Widths::new(&data, message.version(), [&**values].into_iter());
        self.check(&data, &widths, body)?;
        let version = message.version();
        read_dictionary(body, header, &schema, &mut self.dictionaries, &version)
            .map_err(|error| error.to_string())
    }

    /// Checks all that a batch says of its body.
    fn check(
        &mut self,
        batch: &ipc::RecordBatch<'_>,
        widths: &Widths,
        body: &[u8],
    ) -> Result<(), String> {
        let count = |count: i64| {
            let fits = (0..=MOST_VALUES).contains(&count);
            fits.then_some(()).ok_or_else(|| {
                format!("expected at most {MOST_VALUES} values in a column, found {count}")
            })
        };
        count(batch.length())?;
        for node in batch.nodes().iter().flatten() {
            count(node.length())?;
            count(node.null_count())?;
        }
        let is_compressed = batch.compression().is_some();
        for (at, place) in batch.buffers().iter().flatten().enumerate() {
            let buffer = usize::try_from(place.offset())
                .ok()
                .zip(usize::try_from(place.length()).ok())
                .and_then(|(offset, length)| body.get(offset..offset.checked_add(length)?))
                .ok_or_else(|| {
                    let (offset, length) = (place.offset(), place.length());
                    format!(
                        "expected a body of {} bytes, found a buffer of {length} at {offset}",
                        body.len()
                    )
                })?;
            let length = match is_compressed && !buffer.is_empty() {
                true => self.uncompressed_length(buffer)?,
                false => buffer.len(),
            };
            let width = widths.0.get(at).copied().unwrap_or(1);
            if length % width != 0 {
                return Err(format!(
                    "expected a buffer of values of {width} bytes, found one of {length} bytes"
                ));
            }
        }
        Ok(())
    }

    /// How large a compressed buffer says that it will be.
    fn uncompressed_length(&mut self, buffer: &[u8]) -> Result<usize, String> {
        let Some(size) = buffer.first_chunk::<SIZE_BYTES>() else {
            let found = buffer.len();
            return Err(format!("expected the size of a compressed buffer, found {found} bytes"));
        };
        let size = i64::from_le_bytes(*size);
        if size == NOT_COMPRESSED {
            return Ok(buffer.len() - SIZE_BYTES);
        }
        let left =
            u64::try_from(size).ok().and_then(|size| self.uncompressed_left.checked_sub(size));
        self.uncompressed_left = left.ok_or_else(|| {
            let most = MOST_UNCOMPRESSED;
            format!("expected at most {most} bytes once uncompressed, found {size} in one buffer")
        })?;
        Ok(size as usize)
    }
}

/// Per buffer of a batch, the bytes that its length must be a multiple of: `arrow-ipc` checks that
/// a buffer is long enough, but not that a number ends where it does.
struct Widths(Vec<usize>);

impl Widths {
    fn new<'t>(
        batch: &ipc::RecordBatch<'_>,
        version: MetadataVersion,
        types: impl Iterator<Item = &'t DataType>,
    ) -> Self {
        let mut widths = Self(Vec::new());
        let mut view_buffers = batch.variadicBufferCounts().into_iter().flatten();
        for data_type in types {
            widths.add(data_type, version, &mut view_buffers);
        }
        widths
    }

    /// The buffers of a column, in their order.
    fn add(
        &mut self,
        data_type: &DataType,
        version: MetadataVersion,
        view_buffers: &mut impl Iterator<Item = i64>,
    ) {
        let validity = 1;
        match data_type {
            DataType::Null => {}
            DataType::Utf8 | DataType::Binary => self.0.extend([validity, 4, 1]),
            DataType::LargeUtf8 | DataType::LargeBinary => self.0.extend([validity, 8, 1]),
            DataType::Utf8View | DataType::BinaryView => {
                self.0.extend([validity, 16]);
                // More than the batch has buffers is a fault that is found elsewhere.
                let count = view_buffers.next().unwrap_or(0).clamp(0, 1 << 16);
                self.0.extend(std::iter::repeat_n(1, count as usize));
            }
            DataType::List(item) | DataType::Map(item, _) => {
                self.0.extend([validity, 4]);
                self.add(item.data_type(), version, view_buffers);
            }
            DataType::LargeList(item) => {
                self.0.extend([validity, 8]);
                self.add(item.data_type(), version, view_buffers);
            }
            DataType::ListView(item) => {
                self.0.extend([validity, 4, 4]);
                self.add(item.data_type(), version, view_buffers);
            }
            DataType::LargeListView(item) => {
                self.0.extend([validity, 8, 8]);
                self.add(item.data_type(), version, view_buffers);
            }
            DataType::FixedSizeList(item, _) => {
                self.0.push(validity);
                self.add(item.data_type(), version, view_buffers);
            }
            DataType::Struct(fields) => {
                self.0.push(validity);
                for field in fields {
                    self.add(field.data_type(), version, view_buffers);
                }
            }
            DataType::RunEndEncoded(ends, values) => {
                self.add(ends.data_type(), version, view_buffers);
                self.add(values.data_type(), version, view_buffers);
            }
            DataType::Union(branches, mode) => {
                if version < MetadataVersion::V5 {
                    self.0.push(validity);
                }
                self.0.push(1);
                if *mode == UnionMode::Dense {
                    self.0.push(4);
                }
                for (_, branch) in branches.iter() {
                    self.add(branch.data_type(), version, view_buffers);
                }
            }
            DataType::Dictionary(keys, _) => {
                self.0.extend([validity, keys.primitive_width().unwrap_or(1)]);
            }
            plain => self.0.extend([validity, plain.primitive_width().unwrap_or(1)]),
        }
    }
}

const NO_SCHEMA: &str = "expected a schema at the stream's beginning";
const NO_BATCH: &str = "expected the header of a batch";

/// Metadata and body of a part of a stream.
struct Part {
    /// Verified to be a message.
    metadata: Buffer,
    body: Buffer,
}

impl Part {
    fn message(&self) -> Result<ipc::Message<'_>, String> {
        root_as_message(&self.metadata).map_err(|error| error.to_string())
    }
}

/// Whether `arrow-ipc` checks what it reads of this type, and has sizes that make sense.
fn is_safe(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => {
            is_safe(item.data_type())
        }
        DataType::FixedSizeList(item, length) => *length > 0 && is_safe(item.data_type()),
        DataType::FixedSizeBinary(length) => *length > 0,
        DataType::Struct(fields) => fields.iter().all(|field| is_safe(field.data_type())),
        DataType::Dictionary(_, values) => is_safe(values),
        DataType::Union(..)
        | DataType::RunEndEncoded(..)
        | DataType::ListView(_)
        | DataType::LargeListView(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use arrow::array::{
        Array, AsArray, BooleanArray, DictionaryArray, Float32Array, Float64Array, Int32Array,
        Int64Array, ListArray, NullArray, StringArray, StructArray, TimestampMicrosecondArray,
        TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
    };
    use arrow::datatypes::{Field, Float32Type, Float64Type, Int32Type, Int64Type, Schema};
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Channel, Encoding, Format, Records};
    use crate::decode::{Decoded, Decoder, FIRST_CHANNEL_COLUMN, KEY_COLUMN, OFFSET_COLUMN};
    use crate::source::Lane;

    fn wide() -> Records {
        Records {
            key: Some("machine".into()),
            time: Some("ts".into()),
            channels: vec!["a".into(), "b.c".into(), "b.d.1".into()],
            ..Records::default()
        }
    }

    /// Three rows: machines m, n, m at 1 s, 2 s, 3 s; a 1.5, null, 2.5; b.c 1, 2, 3; b.d [], [7, 8],
    /// null.
    fn batch() -> RecordBatch {
        let machine: DictionaryArray<Int32Type> = ["m", "n", "m"].into_iter().collect();
        let times = [1, 2, 3].map(|second| second * 1_000_000_000);
        let list = ListArray::from_iter_primitive::<Float64Type, _, _>([
            Some(vec![]),
            Some(vec![Some(7.0), Some(8.0)]),
            None,
        ]);
        let within: Vec<(Arc<Field>, ArrayRef)> = vec![
            (
                Arc::new(Field::new("c", DataType::Int64, false)),
                Arc::new(Int64Array::from(vec![1, 2, 3])),
            ),
            (Arc::new(Field::new("d", list.data_type().clone(), true)), Arc::new(list)),
        ];
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("machine", Arc::new(machine)),
            ("unread", Arc::new(NullArray::new(3))),
            ("ts", Arc::new(TimestampNanosecondArray::from(times.to_vec()).with_timezone("UTC"))),
            ("a", Arc::new(Float32Array::from(vec![Some(1.5), None, Some(2.5)]))),
            ("b", Arc::new(StructArray::from(within))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn stream(batches: &[RecordBatch], compression: Option<CompressionType>) -> Vec<u8> {
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let mut bytes = Vec::new();
        let mut writer =
            StreamWriter::try_new_with_options(&mut bytes, &batches[0].schema(), options).unwrap();
        for batch in batches {
            writer.write(batch).unwrap();
        }
        writer.finish().unwrap();
        drop(writer);
        bytes
    }

    fn decode(records: &Records, payloads: &[&[u8]]) -> Decoded {
        let encoding = Encoding { format: Some(Format::Arrow), ..Encoding::default() };
        let mut decoder = Decoder::new(records, &encoding).unwrap();
        let mut messages = Messages::default();
        for (offset, payload) in (100..).zip(payloads) {
            messages.push(offset, None, Some(b"k"), payload, Vec::new());
        }
        decoder.decode(&Lane::new("t", 0), &messages).unwrap()
    }

    fn reason(payload: &[u8]) -> String {
        let decoded = decode(&wide(), &[payload]);
        assert_eq!(decoded.records.num_rows(), 0);
        decoded.dead_letters[0].reason.clone()
    }

    fn keys_and_offsets(decoded: &Decoded) -> Vec<(String, i64)> {
        let keys = decoded.records.column(KEY_COLUMN).as_string::<i32>();
        let offsets = decoded.records.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
        let keys = keys.iter().map(|key| key.unwrap().to_owned());
        keys.zip(offsets.values().iter().copied()).collect()
    }

    #[test]
    fn every_row_of_a_message_is_a_record_of_its_offset() {
        for compression in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
            let two = stream(&[batch(), batch().slice(1, 1)], compression);
            let none = stream(&[batch().slice(0, 0)], compression);
            let decoded = decode(&wide(), &[&two, &none, &two]);
            assert!(decoded.dead_letters.is_empty(), "{:?}", decoded.dead_letters[0].reason);
            let expected =
                [("m", 100), ("n", 100), ("m", 100), ("n", 100)].map(|(k, o)| (k.to_owned(), o));
            assert_eq!(keys_and_offsets(&decoded)[..4], expected);
            assert_eq!(decoded.records.num_rows(), 8);
            let channel = |at: usize| -> Vec<Option<f32>> {
                let column = decoded.records.column(FIRST_CHANNEL_COLUMN + at);
                column.as_primitive::<Float32Type>().iter().take(3).collect()
            };
            assert_eq!(channel(0), [Some(1.5), None, Some(2.5)]);
            assert_eq!(channel(1), [Some(1.0), Some(2.0), Some(3.0)]);
            assert_eq!(channel(2), [None, Some(8.0), None]);
        }
    }

    #[test]
    fn without_a_field_for_it_the_key_is_the_messages() {
        let keyed = Records { key: None, ..wide() };
        let decoded = decode(&keyed, &[&stream(&[batch()], None)]);
        assert_eq!(keys_and_offsets(&decoded), vec![("k".to_owned(), 100); 3]);
    }

    #[test]
    fn a_bad_row_is_told_and_the_others_are_kept() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("machine", Arc::new(StringArray::from(vec![Some("m"), None, Some("m"), None]))),
            ("ts", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
            ("a", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
        ];
        let message = stream(&[RecordBatch::try_from_iter(columns).unwrap()], None);
        let decoded = decode(&wide(), &[&message]);
        assert_eq!(decoded.records.num_rows(), 2);
        let [letter] = &decoded.dead_letters[..] else { panic!("expected one dead letter") };
        assert_eq!(
            letter.reason,
            "field \"machine\": expected a key, as text or a number, found null; and 1 more like it"
        );
    }

    #[test]
    fn a_stream_that_breaks_off_is_refused_whole_wherever_it_does() {
        let whole = stream(&[batch(), batch()], None);
        // The end's mark may be left out, as a stream that is closed ends anyway.
        let marked = whole.len() - 8;
        for end in (0..marked).step_by(7) {
            let decoded = decode(&wide(), &[&whole[..end], &whole]);
            // At the end of a batch, or of the schema, it is a shorter stream.
            if decoded.dead_letters.is_empty() {
                assert!(decoded.records.num_rows().is_multiple_of(3));
                continue;
            }
            assert_eq!(decoded.records.num_rows(), 6, "{end}");
            assert!(
                decoded.dead_letters[0].reason.starts_with("expected an Arrow IPC stream: "),
                "{}",
                decoded.dead_letters[0].reason
            );
        }
        let longer = [&whole[..], b"more"].concat();
        assert!(
            reason(&longer)
                .ends_with("expected the message's end behind the stream, found 4 bytes")
        );
    }

    #[test]
    fn other_bytes_and_other_messages_are_refused() {
        assert!(reason(b"").ends_with("found an empty message"));
        assert!(reason(br#"{"machine":"m"}"#).contains("up to the end"));
        let whole = stream(&[batch()], None);
        let schema_bytes = i32::from_le_bytes(whole[4..8].try_into().unwrap()) as usize + 8;
        assert!(reason(&whole[schema_bytes..]).contains(NO_SCHEMA));
        let twice = [&whole[..schema_bytes], &whole].concat();
        assert!(reason(&twice).contains("found a message of kind Schema"), "{}", reason(&twice));
    }

    #[test]
    fn columns_that_no_field_is_read_from_may_be_anything() {
        let union = DataType::Union(
            [(0, Arc::new(Field::new("x", DataType::Int32, true)))].into_iter().collect(),
            UnionMode::Sparse,
        );
        let with = |name: &str| {
            let whole = batch();
            let schema = whole.schema();
            let others = schema.fields().iter().zip(whole.columns());
            let (mut fields, mut columns): (Vec<_>, Vec<_>) = others
                .filter(|(field, _)| field.name() != name)
                .map(|(field, column)| (Arc::clone(field), Arc::clone(column)))
                .unzip();
            fields.push(Arc::new(Field::new(name, union.clone(), true)));
            columns.push(arrow::array::new_null_array(&union, 3));
            RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
        };
        assert_eq!(decode(&wide(), &[&stream(&[with("other")], None)]).records.num_rows(), 3);
        assert!(
            reason(&stream(&[with("a")], None)).contains("column \"a\": expected plain values")
        );
    }

    #[test]
    fn sizes_that_compressed_buffers_claim_are_bounded() {
        let zeros = Float64Array::from(vec![0.0; 100_000]);
        let columns: Vec<(&str, ArrayRef)> = vec![("ts", Arc::new(zeros))];
        let small = RecordBatch::try_from_iter(columns).unwrap();
        let mut message = stream(&[small], Some(CompressionType::ZSTD));
        let size = 800_000_i64.to_le_bytes();
        let at = message.windows(8).position(|window| window == size).unwrap();
        message[at..at + 8].copy_from_slice(&i64::MAX.to_le_bytes());
        assert!(reason(&message).contains("once uncompressed"), "{}", reason(&message));
    }

    static STREAMS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)]
            .map(|compression| stream(&[batch(), batch()], compression))
            .to_vec()
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_change_of_a_stream_breaks_the_decoder_or_costs_a_neighbour(
            which in 0..3_usize,
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let whole = &STREAMS[which];
            let mut message = whole.clone();
            for (at, byte) in changes {
                let at = at.index(message.len());
                message[at] = byte;
            }
            let decoded = decode(&wide(), &[whole, &message, whole]);
            let good = keys_and_offsets(&decoded);
            let good = good.iter().filter(|(_, offset)| *offset != 101).count();
            prop_assert_eq!(good, 12);
        }
    }

    /// Key, seconds, `a`, `b`.
    type PlainRow<'a> = (Option<&'a str>, i64, Option<f64>, Option<i32>);

    /// A stream of plain columns, of `batches` of rows, in types that `variant` chooses.
    fn plain(variant: u8, batches: &[Vec<PlainRow<'_>>]) -> Vec<u8> {
        let batch = |rows: &Vec<PlainRow<'_>>| {
            let times = rows.iter().map(|row| row.1);
            let times: ArrayRef = match variant % 4 {
                0 => Arc::new(Int64Array::from_iter_values(times)),
                1 => Arc::new(TimestampSecondArray::from_iter_values(times)),
                2 => {
                    let times = times.map(|time| time.wrapping_mul(1000));
                    Arc::new(
                        TimestampMillisecondArray::from_iter_values(times).with_timezone("UTC"),
                    )
                }
                _ => {
                    let times = times.map(|time| time.wrapping_mul(1_000_000));
                    Arc::new(TimestampMicrosecondArray::from_iter_values(times))
                }
            };
            let (a, b) = (rows.iter().map(|row| row.2), rows.iter().map(|row| row.3));
            let a: ArrayRef = match variant & 4 == 0 {
                true => Arc::new(Float64Array::from_iter(a)),
                false => Arc::new(Float32Array::from_iter(a.map(|a| a.map(|a| a as f32)))),
            };
            let b: ArrayRef = match variant & 8 == 0 {
                true => Arc::new(Int32Array::from_iter(b)),
                false => Arc::new(Int64Array::from_iter(b.map(|b| b.map(i64::from)))),
            };
            let keys: ArrayRef = Arc::new(StringArray::from_iter(rows.iter().map(|row| row.0)));
            let other: ArrayRef = Arc::new(BooleanArray::from(vec![true; rows.len()]));
            let columns = [("a", a), ("other", other), ("machine", keys), ("ts", times), ("b", b)];
            RecordBatch::try_from_iter_with_nullable(
                columns.into_iter().map(|(name, column)| (name, column, true)),
            )
            .unwrap()
        };
        stream(&batches.iter().map(batch).collect::<Vec<_>>(), None)
    }

    proptest! {
        #[test]
        fn what_is_read_directly_is_what_arrow_ipc_reads(
            variant in 0..16_u8,
            messages in prop::collection::vec(
                (
                    prop::collection::vec(
                        prop::collection::vec(
                            (
                                prop_oneof![20 => Just(Some("press")), 20 => Just(Some("ofen-ä")), 1 => Just(Some("")), 1 => Just(None)],
                                prop_oneof![40 => 0..2_000_000_000_i64, 1 => any::<i64>()],
                                any::<Option<f64>>(),
                                any::<Option<i32>>(),
                            ),
                            0..5,
                        ),
                        1..4,
                    ),
                    prop::option::weighted(0.2, any::<(prop::sample::Index, u8)>()),
                    0..4_usize,
                ),
                1..6,
            ),
            bounded in any::<bool>(),
        ) {
            let mut records = Records {
                key: Some("machine".into()),
                time: Some("ts".into()),
                channels: vec!["b".into(), "a".into()],
                ..Records::default()
            };
            if bounded {
                let bounds = Channel { min: Some(-1e9), max: Some(0.5), ..Channel::default() };
                records.channel.insert("a".to_owned(), bounds);
            }
            let mut sent = Messages::default();
            for (offset, (batches, change, cut)) in (0..).zip(&messages) {
                let mut message = plain(variant, batches);
                if let Some((at, byte)) = change {
                    let at = at.index(message.len());
                    message[at] = *byte;
                }
                // Mostly whole; sometimes without the mark at its end, or a part of it.
                message.truncate(message.len() - [0, 0, 8, 5][*cut]);
                sent.push(offset, None, None, &message, Vec::new());
            }
            let decoder = || ArrowIpc::new(Arc::new(RowRules::new(&records).unwrap()));
            let (mut directly, through) = (decoder(), decoder());
            let found = directly.decode(&sent, 0..sent.len());
            let mut parts = Vec::new();
            (0..sent.len()).for_each(|index| through.read(&sent, index, &mut parts));
            let expected = Rows::concat(&through.rules, &parts);
            prop_assert_eq!(found.batch, expected.batch);
            prop_assert_eq!(found.messages, expected.messages);
            prop_assert_eq!(
                directly.rules.take_out_of_range(),
                through.rules.take_out_of_range()
            );
        }
    }

    #[test]
    fn plain_columns_are_read_directly_and_others_are_not() {
        let rows = vec![(Some("m"), 1, Some(1.5), None), (Some("n"), 2, None, Some(2))];
        let whole = plain(3, &[rows.clone(), rows]);
        let records = Records { channels: vec!["b".into(), "a".into()], ..wide() };
        let rules = Arc::new(RowRules::new(&records).unwrap());
        let read = |payloads: &[&[u8]]| {
            let mut messages = Messages::default();
            payloads.iter().for_each(|payload| messages.push(0, None, None, payload, Vec::new()));
            let (rows, end) = Direct::new().read(&rules, &messages, 0..payloads.len());
            (rows.map_or(0, |rows| rows.messages.len()), end)
        };
        assert_eq!(read(&[&whole, &whole]), (8, 2));
        assert_eq!(read(&[&whole, &whole[..90], &whole]), (4, 1));
        let compressed = stream(&[batch()], Some(CompressionType::ZSTD));
        assert_eq!(read(&[&compressed]), (0, 0));
        assert_eq!(read(&[&stream(&[batch()], None)]), (0, 0));
    }
}
