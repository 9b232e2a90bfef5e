//! Avro: one record a message, in Confluent's wire format or bare.
//!
//! Records are read by the schema they were written with and, where the pipeline names a reader's
//! schema, resolved to that. Each writer's schema has a decoder of its own, so that messages of
//! several schemas may alternate. [`shape`] says what `arrow-avro` does not guard itself against;
//! [`direct`] reads the plain ones without it.

mod direct;
mod shape;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::error::ArrowError;
use arrow_avro::reader::{Decoder, DecoderMode, ReaderBuilder};
use arrow_avro::schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, SchemaStore};
use rustc_hash::FxHashMap;

use self::direct::{Direct, Reading};
use self::shape::Shape;
use super::arrow_columns::Columns;
use super::columns::{RowBuilder, RowRules, Rows};
use super::{CHUNK_MESSAGES, DecodeError, Refusal};
use crate::config::{Encoding, Framing};
use crate::registry::Registry;
use crate::source::Messages;

/// First byte of Confluent's wire format; the schema's id follows, four bytes, the highest first.
const MAGIC: u8 = 0;
const PREFIX_BYTES: usize = 5;
/// The id that a schema without framing has here.
const UNFRAMED: u32 = 0;
/// Values that wait in columns before they become rows.
const WAITING_VALUES: u64 = 1 << 24;

/// Decodes messages that are one Avro record each.
pub(super) struct Avro {
    rules: Arc<RowRules>,
    /// Where schemas come from; `None`: all messages are of the one schema known.
    registry: Option<Registry>,
    reader_schema: Option<AvroSchema>,
    /// By id; of a schema that nothing can be read with, why.
    writers: FxHashMap<u32, Result<Writer, String>>,
}

/// What was written with one schema.
struct Writer {
    schema: AvroSchema,
    reader_schema: Option<AvroSchema>,
    shape: Shape,
    /// How its records are read without the decoder, where that can be.
    direct: Option<Direct>,
    decoder: Decoder,
    /// Records that the decoder holds.
    rows: usize,
}

/// A message on its way to a row: the id of its schema and its place in that writer's batch, or why
/// there is none.
type Place = Result<(u32, usize), String>;

impl Avro {
    /// A decoder of `encoding.avro`.
    ///
    /// # Errors
    /// If the reader's schema cannot be read, or is missing where it is needed, or the registry's
    /// settings cannot be used.
    pub fn new(rules: Arc<RowRules>, encoding: &Encoding) -> Result<Self, DecodeError> {
        let framing = match (encoding.avro.framing, &encoding.registry) {
            (Some(framing), _) => framing,
            (None, Some(_)) => Framing::Confluent,
            (None, None) => Framing::None,
        };
        let schema = encoding.avro.schema.as_deref().map(read_schema).transpose()?;
        let mut avro =
            Self { rules, registry: None, reader_schema: schema, writers: FxHashMap::default() };
        match (framing, &encoding.registry, &avro.reader_schema) {
            (Framing::Confluent, Some(registry), _) => {
                avro.registry = Some(Registry::new(registry)?);
            }
            (Framing::None, _, Some(schema)) => {
                let writer = Writer::new(&schema.json_string, None, Some(&avro.rules));
                avro.writers.insert(UNFRAMED, writer);
                avro.reader_schema = None;
            }
            (Framing::Confluent, None, _) | (Framing::None, _, None) => {
                return Err(DecodeError::NoAvroSchema);
            }
        }
        Ok(avro)
    }

    /// The rows of the messages in `range`, at most [`CHUNK_MESSAGES`] of them, one each.
    pub fn decode(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        debug_assert!(range.len() <= CHUNK_MESSAGES);
        let decoded = self.read(messages, range);
        if decoded.is_err() {
            // What they hold is part of a batch that will be decoded anew.
            for writer in self.writers.values_mut() {
                if let Ok(used) = writer
                    && used.rows > 0
                    && let Err(reason) = used.empty()
                {
                    *writer = Err(reason);
                }
            }
        }
        decoded
    }

    fn read(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        let rules = Arc::clone(&self.rules);
        let mut rows = RowBuilder::with_capacity(&rules, 0);
        let mut parts = Vec::new();
        let (mut next, mut odd) = (range.start, 1);
        while next < range.end {
            match self.read_directly(messages, next..range.end)? {
                Some((whole, end)) => {
                    if let Some(whole) = whole {
                        parts.extend(rows.take());
                        parts.push(whole);
                    }
                    next = end;
                    // Where there is one that cannot be read so, there may be more.
                    let end = range.end.min(next + odd);
                    self.read_through(messages, next..end, &mut rows)?;
                    (next, odd) = (end, 2 * odd);
                }
                None => {
                    self.read_through(messages, next..range.end, &mut rows)?;
                    next = range.end;
                }
            }
        }
        if parts.is_empty() {
            return Ok(rows.finish());
        }
        parts.extend(rows.take());
        Ok(match parts.len() {
            1 => parts.remove(0),
            _ => Rows::concat(&rules, &parts),
        })
    }

    /// The rows of the first messages of `range`, as far as they can be read directly, and where the
    /// others begin; `None` where the first message is of a schema of which none can be.
    fn read_directly(
        &mut self,
        messages: &Messages,
        range: Range<usize>,
    ) -> Result<Option<(Option<Rows>, usize)>, Refusal> {
        let rules = Arc::clone(&self.rules);
        let Ok((id, _)) = self.datum(messages.get(range.start).payload)? else {
            return Ok(Some((None, range.start)));
        };
        let is_framed = self.registry.is_some();
        let Some(Ok(Writer { direct, shape, .. })) = self.writers.get(&id) else {
            return Ok(Some((None, range.start)));
        };
        let Some(direct) = direct else { return Ok(None) };
        let mut reading = Reading::new(direct, shape, &rules, range.len());
        let end = range.clone().find(|index| {
            let payload = messages.get(*index).payload;
            let datum = match is_framed {
                true => unframed(payload).ok().filter(|(other, _)| *other == id).map(|(_, d)| d),
                false => Some(payload),
            };
            datum.and_then(|datum| reading.push(datum)).is_none()
        });
        let end = end.unwrap_or(range.end);
        let read: Vec<usize> = (range.start..end).collect();
        if read.is_empty() {
            return Ok(Some((None, range.start)));
        }
        Ok(Some(match reading.finish(read) {
            Some(whole) => (Some(whole), end),
            None => (None, range.start),
        }))
    }

    /// Adds the rows of the messages in `range`, which `arrow-avro` reads.
    fn read_through(
        &mut self,
        messages: &Messages,
        range: Range<usize>,
        rows: &mut RowBuilder<'_>,
    ) -> Result<(), Refusal> {
        let mut places = Vec::with_capacity(range.len());
        let mut waiting_values = 0;
        for index in range {
            if waiting_values > WAITING_VALUES {
                self.flush(&mut places, rows)?;
                waiting_values = 0;
            }
            let place = match self.datum(messages.get(index).payload)? {
                Ok((id, datum)) => match self.writers.get_mut(&id) {
                    Some(Ok(writer)) => match writer.shape.check(datum) {
                        Ok(values) => {
                            waiting_values += values;
                            let row = writer.append(datum);
                            // What the columns hold by now is not known.
                            Ok((id, row.map_err(|reason| Refusal::Message { at: index, reason })?))
                        }
                        Err(reason) => Err(format!("expected an Avro record: {reason}")),
                    },
                    Some(Err(reason)) => Err(reason.clone()),
                    None => Err(format!("schema {id} is not known")),
                },
                Err(reason) => Err(reason),
            };
            places.push((index, place));
        }
        self.flush(&mut places, rows)
    }

    /// The schema's id and the record's bytes in a message, or why there are none; sees to it that
    /// the schema's writer is known.
    fn datum<'m>(&mut self, payload: &'m [u8]) -> Result<Result<(u32, &'m [u8]), String>, Refusal> {
        let Some(registry) = &mut self.registry else { return Ok(Ok((UNFRAMED, payload))) };
        let (id, datum) = match unframed(payload) {
            Ok(parts) => parts,
            Err(reason) => return Ok(Err(reason)),
        };
        if !self.writers.contains_key(&id) {
            let writer = match registry.schema(id) {
                Ok(schema) => Writer::new(&schema, self.reader_schema.as_ref(), Some(&self.rules))
                    .map_err(|reason| format!("schema {id} of the registry: {reason}")),
                // It may be known the next time.
                Err(error) if error.is_about_schema() => return Ok(Err(error.to_string())),
                Err(error) => return Err(Refusal::Registry(error)),
            };
            self.writers.insert(id, writer);
        }
        Ok(Ok((id, datum)))
    }

    /// Makes rows of all that waits, in the order of the messages.
    fn flush(
        &mut self,
        places: &mut Vec<(usize, Place)>,
        rows: &mut RowBuilder<'_>,
    ) -> Result<(), Refusal> {
        let mut columns = FxHashMap::default();
        for (id, writer) in &mut self.writers {
            let Ok(writer) = writer else { continue };
            if let Some(found) =
                writer.columns(&self.rules).map_err(|reason| Refusal::Unknown { reason })?
            {
                columns.insert(*id, found);
            }
        }
        if let [(_, Ok((id, _))), ..] = &places[..]
            && places.iter().all(|(_, place)| matches!(place, Ok((other, _)) if other == id))
            && let Some(columns) = columns.get(id)
            && let messages = places.iter().map(|(message, _)| *message).collect()
            && let Some(whole) = columns.rows(&self.rules, messages)
        {
            rows.extend(&whole);
            places.clear();
            return Ok(());
        }
        for (message, place) in places.drain(..) {
            rows.of_message(message);
            match place {
                Ok((id, row)) => match columns.get(&id) {
                    Some(columns) => rows.push(&columns.row(row)),
                    None => rows.refuse(&format!("schema {id} is not known")),
                },
                Err(reason) => rows.refuse(&reason),
            }
        }
        Ok(())
    }
}

/// Takes Confluent's framing off a message.
fn unframed(payload: &[u8]) -> Result<(u32, &[u8]), String> {
    match payload {
        [] => Err("expected an Avro record, found an empty message".to_owned()),
        [MAGIC, a, b, c, d, datum @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), datum)),
        [MAGIC, ..] => Err(format!(
            "expected {PREFIX_BYTES} bytes that name a schema, found {} up to the message's end",
            payload.len()
        )),
        [other, ..] => Err(format!(
            "expected Confluent's framing, a message that begins with a zero byte, found {other}"
        )),
    }
}

impl Writer {
    /// What is resolved to a reader's schema is not read directly, nor is anything without `rules`.
    fn new(
        schema: &str,
        reader_schema: Option<&AvroSchema>,
        rules: Option<&RowRules>,
    ) -> Result<Self, String> {
        let shape = Shape::new(schema)?;
        let rules = rules.filter(|_| reader_schema.is_none());
        let direct = rules.and_then(|rules| Direct::new(schema, &shape, rules));
        let schema = AvroSchema::new(schema.to_owned());
        let decoder = decoder(&schema, reader_schema).map_err(|error| error.to_string())?;
        Ok(Self { schema, reader_schema: reader_schema.cloned(), shape, direct, decoder, rows: 0 })
    }

    /// Forgets all records.
    fn empty(&mut self) -> Result<(), String> {
        self.rows = 0;
        self.decoder = decoder(&self.schema, self.reader_schema.as_ref())
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Adds a record that has the schema's shape; returns its place in the batch.
    fn append(&mut self, datum: &[u8]) -> Result<usize, String> {
        self.rows += 1;
        match self.decoder.decode(datum) {
            Ok(read) if read == datum.len() => Ok(self.rows - 1),
            Ok(read) => {
                Err(format!("expected an Avro record of {read} bytes, found {}", datum.len()))
            }
            Err(error) => Err(format!("expected an Avro record: {error}")),
        }
    }

    /// The columns of all records since the last call.
    fn columns(&mut self, rules: &RowRules) -> Result<Option<Columns>, String> {
        if self.rows == 0 {
            return Ok(None);
        }
        let expected = "expected Avro records";
        let batch = self.decoder.flush().map_err(|error| format!("{expected}: {error}"))?;
        let batch = batch.ok_or_else(|| format!("{expected}, found none"))?;
        if batch.num_rows() != self.rows {
            return Err(format!("expected {} Avro records, found {}", self.rows, batch.num_rows()));
        }
        self.rows = 0;
        Columns::of(rules, &batch).map(Some).map_err(|error| format!("{expected}: {error}"))
    }
}

/// A decoder of bare records that were written with `schema`.
fn decoder(schema: &AvroSchema, reader: Option<&AvroSchema>) -> Result<Decoder, ArrowError> {
    let id = Fingerprint::Id(0);
    let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
    store.set(id, schema.clone())?;
    let mut builder = ReaderBuilder::new()
        .with_batch_size(CHUNK_MESSAGES)
        .with_decoder_mode(DecoderMode::UnframedDatum)
        .with_writer_schema_store(store)
        .with_active_fingerprint(id);
    if let Some(reader) = reader {
        builder = builder.with_reader_schema(reader.clone());
    }
    builder.build_decoder()
}

/// The reader's schema from a file.
pub(crate) fn read_schema(path: &Path) -> Result<AvroSchema, DecodeError> {
    let failed = |reason: String| DecodeError::AvroSchema { path: path.to_owned(), reason };
    let schema = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    // It must do as a writer's schema, too.
    Writer::new(&schema, None, None).map(|writer| writer.schema).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use arrow::array::AsArray;
    use arrow::datatypes::{Float32Type, Int64Type, TimestampMicrosecondType};
    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, Format, Layout, Records};
    use crate::decode::{
        Decoded, Decoder, FIRST_CHANNEL_COLUMN, KEY_COLUMN, OFFSET_COLUMN, TIME_COLUMN,
    };
    use crate::registry::double::Double;
    use crate::source::Lane;

    const FLAT: &str = r#"{"type":"record","name":"Reading","fields":[
        {"name":"machine","type":"string"},
        {"name":"ts","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"a","type":["null","double"],"default":null},
        {"name":"b","type":"float"}]}"#;

    /// As `FLAT` after a change: `a` is gone, `c` and `note` are new, the order is another.
    const CHANGED: &str = r#"{"type":"record","name":"Reading","fields":[
        {"name":"b","type":"float"},
        {"name":"note","type":{"type":"array","items":"string"}},
        {"name":"machine","type":"string"},
        {"name":"c","type":"int"},
        {"name":"ts","type":{"type":"long","logicalType":"timestamp-millis"}}]}"#;

    fn wide() -> Records {
        Records {
            key: Some("machine".into()),
            time: Some("ts".into()),
            channels: vec!["a".into(), "b".into()],
            ..Records::default()
        }
    }

    fn registry(double: &Double) -> config::Registry {
        config::Registry {
            url: double.url.clone(),
            username: None,
            password: None,
            token: None,
            ca: None,
            register: false,
        }
    }

    fn encoding(double: &Double) -> Encoding {
        Encoding {
            format: Some(Format::Avro),
            registry: Some(registry(double)),
            ..Encoding::default()
        }
    }

    fn schema_file(schema: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(schema.as_bytes()).unwrap();
        file
    }

    /// A decoder of bare records of `schema`.
    fn bare(records: &Records, schema: &str) -> Decoder {
        let file = schema_file(schema);
        let avro =
            config::Avro { schema: Some(file.path().to_owned()), framing: Some(Framing::None) };
        let encoding = Encoding { format: Some(Format::Avro), avro, ..Encoding::default() };
        Decoder::new(records, &encoding).unwrap()
    }

    /// Parts of a datum.
    enum Part<'a> {
        Long(i64),
        Text(&'a str),
        Float(f32),
        Double(f64),
        Raw(&'a [u8]),
    }
    use Part::{Double as F64, Float, Long, Raw, Text};

    fn datum(parts: &[Part<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in parts {
            match part {
                Long(value) => long(*value, &mut bytes),
                Text(text) => {
                    long(text.len() as i64, &mut bytes);
                    bytes.extend(text.as_bytes());
                }
                Float(value) => bytes.extend(value.to_le_bytes()),
                F64(value) => bytes.extend(value.to_le_bytes()),
                Raw(raw) => bytes.extend(*raw),
            }
        }
        bytes
    }

    fn long(value: i64, bytes: &mut Vec<u8>) {
        let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while left > 0x7F {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
    }

    fn flat(machine: &str, second: i64, a: Option<f64>, b: f32) -> Vec<u8> {
        let head = datum(&[Text(machine), Long(second * 1000)]);
        let a = a.map_or(datum(&[Long(0)]), |a| datum(&[Long(1), F64(a)]));
        [head, a, b.to_le_bytes().to_vec()].concat()
    }

    fn changed(machine: &str, second: i64, b: f32, c: i64) -> Vec<u8> {
        datum(&[
            Float(b),
            Long(2),
            Text("x"),
            Text("y"),
            Long(0),
            Text(machine),
            Long(c),
            Long(second * 1000),
        ])
    }

    fn framed(id: u32, datum: Vec<u8>) -> Vec<u8> {
        [vec![MAGIC], id.to_be_bytes().to_vec(), datum].concat()
    }

    fn decode(decoder: &mut Decoder, payloads: &[Vec<u8>]) -> Decoded {
        let mut messages = Messages::default();
        for (offset, payload) in (100..).zip(payloads) {
            messages.push(offset, None, None, payload, Vec::new());
        }
        decoder.decode(&Lane::new("t", 0), &messages).unwrap()
    }

    /// (key, seconds, offset, channels) of each record.
    type Record = (String, i64, i64, Vec<Option<f32>>);

    fn records(decoded: &Decoded) -> Vec<Record> {
        let batch = &decoded.records;
        let keys = batch.column(KEY_COLUMN).as_string::<i32>();
        let times = batch.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
        let offsets = batch.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
        (0..batch.num_rows())
            .map(|row| {
                let channels = batch.columns()[FIRST_CHANNEL_COLUMN..]
                    .iter()
                    .map(|column| column.as_primitive::<Float32Type>().iter().nth(row).unwrap());
                let seconds = times.value(row) / 1_000_000;
                (keys.value(row).to_owned(), seconds, offsets.value(row), channels.collect())
            })
            .collect()
    }

    fn record(key: &str, seconds: i64, offset: i64, channels: &[Option<f32>]) -> Record {
        (key.to_owned(), seconds, offset, channels.to_vec())
    }

    fn reasons(decoded: &Decoded) -> Vec<(i64, &str)> {
        decoded.dead_letters.iter().map(|letter| (letter.offset, letter.reason.as_str())).collect()
    }

    #[test]
    fn framed_records_of_several_schemas_keep_their_order() {
        let double = Double::with(&[FLAT, CHANGED]);
        let mut decoder = Decoder::new(&wide(), &encoding(&double)).unwrap();
        let decoded = decode(
            &mut decoder,
            &[
                framed(1, flat("m", 1, Some(1.5), 2.0)),
                framed(2, changed("m", 2, 3.0, 7)),
                framed(1, flat("n", 3, None, 4.0)),
                framed(2, changed("n", 4, 5.0, 8)),
            ],
        );
        assert_eq!(reasons(&decoded), []);
        assert_eq!(
            records(&decoded),
            [
                record("m", 1, 100, &[Some(1.5), Some(2.0)]),
                record("m", 2, 101, &[None, Some(3.0)]),
                record("n", 3, 102, &[None, Some(4.0)]),
                record("n", 4, 103, &[None, Some(5.0)]),
            ]
        );
    }

    #[test]
    fn the_readers_schema_fills_in_renames_and_widens() {
        let double = Double::with(&[FLAT, CHANGED]);
        let reader = schema_file(
            r#"{"type":"record","name":"Reading","fields":[
                {"name":"machine","type":"string"},
                {"name":"ts","type":{"type":"long","logicalType":"timestamp-millis"}},
                {"name":"a","type":"double","default":-1.0,"aliases":["c"]},
                {"name":"b","type":"double"},
                {"name":"site","type":"string","default":"here"}]}"#,
        );
        let avro = config::Avro { schema: Some(reader.path().to_owned()), framing: None };
        let mut decoder = Decoder::new(&wide(), &Encoding { avro, ..encoding(&double) }).unwrap();
        let decoded = decode(
            &mut decoder,
            &[framed(2, changed("m", 2, 3.0, 7)), framed(2, changed("m", 3, 3.5, 8))],
        );
        assert_eq!(reasons(&decoded), []);
        assert_eq!(
            records(&decoded),
            [
                record("m", 2, 100, &[Some(7.0), Some(3.0)]),
                record("m", 3, 101, &[Some(8.0), Some(3.5)]),
            ]
        );
    }

    #[test]
    fn each_bad_message_is_a_dead_letter_and_its_neighbours_are_kept() {
        let double = Double::with(&[FLAT, "\"string\"", "no schema"]);
        let mut decoder = Decoder::new(&wide(), &encoding(&double)).unwrap();
        let whole = framed(1, flat("m", 1, Some(1.0), 2.0));
        let cut = whole[..whole.len() - 1].to_vec();
        let longer = [whole.clone(), vec![9]].concat();
        let mut nonsense = whole.clone();
        nonsense[0] = b'{';
        let decoded = decode(
            &mut decoder,
            &[
                whole.clone(),
                Vec::new(),
                nonsense,
                vec![0, 0, 0],
                whole.clone(),
                cut,
                longer,
                framed(9, flat("m", 1, None, 2.0)),
                framed(2, vec![2, b'x']),
                framed(3, vec![2, b'x']),
                framed(1, flat("", 1, None, 2.0)),
                whole,
            ],
        );
        let kept: Vec<i64> = records(&decoded).iter().map(|record| record.2).collect();
        assert_eq!(kept, [100, 104, 111]);
        let expected = [
            (101, "found an empty message"),
            (102, "a message that begins with a zero byte, found 123"),
            (103, "found 3 up to the message's end"),
            (105, "field \"b\": expected 4 bytes, found 3 up to the message's end"),
            (106, "expected the record's end, found 1 bytes more"),
            (107, "knows no schema with id 9"),
            (108, "schema 2 of the registry: expected the schema of a record"),
            (109, "schema 3 of the registry: "),
            (110, "field \"machine\": expected a key, found an empty one"),
        ];
        let found = reasons(&decoded);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((offset, reason), (expected_offset, expected)) in found.into_iter().zip(expected) {
            assert_eq!(offset, expected_offset);
            assert!(reason.contains(expected), "{offset}: {reason}");
        }
    }

    #[test]
    fn a_registry_in_trouble_stops_decoding_and_says_whether_it_may_pass() {
        let double = Double::with(&[FLAT]);
        double.answer_next(401, "{}");
        let mut decoder = Decoder::new(&wide(), &encoding(&double)).unwrap();
        let mut messages = Messages::default();
        messages.push(7, None, None, &framed(1, flat("m", 1, None, 2.0)), Vec::new());
        let lane = Lane::new("t", 3);
        let failure = decoder.decode(&lane, &messages).unwrap_err();
        assert_eq!((failure.offset, failure.is_retryable), (7, false));
        assert!(failure.reason.contains("401"), "{failure}");
        // It was not the message's fault.
        assert_eq!(decoder.decode(&lane, &messages).unwrap().records.num_rows(), 1);
    }

    #[test]
    fn fields_are_found_in_records_unions_lists_and_maps() {
        let schema = r#"{"type":"record","name":"R","namespace":"x.y","fields":[
            {"name":"meta","type":{"type":"record","name":"Meta","fields":[
                {"name":"id","type":{"type":"string","logicalType":"uuid"}},
                {"name":"when","type":{"type":"long","logicalType":"timestamp-micros"}}]}},
            {"name":"body","type":["null",{"type":"record","name":"Body","fields":[
                {"name":"temp","type":["null","int","double","string"]},
                {"name":"price","type":
                    {"type":"bytes","logicalType":"decimal","precision":6,"scale":2}}]}]},
            {"name":"list","type":{"type":"array","items":"x.y.Body"}},
            {"name":"tags","type":{"type":"map","values":"float"}},
            {"name":"day","type":{"type":"int","logicalType":"date"}},
            {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["COLD","HOT"],
                "doc":"said \"so\"\n°"}}]}"#;
        let records = Records {
            key: Some("meta.id".into()),
            time: Some("meta.when".into()),
            channels: ["body.temp", "body.price", "list.1.temp", "tags.a.b", "list.0.price"]
                .map(String::from)
                .to_vec(),
            ..Records::default()
        };
        let id = "0b5fde5a-9a1c-4d3e-8f00-0123456789ab";
        let price = |cents: u8| [Long(1), Raw(vec![cents].leak())];
        let body = |temp: Vec<Part<'static>>, cents| {
            let mut parts = temp;
            parts.extend(price(cents));
            datum(&parts)
        };
        let first = [
            datum(&[Text(id), Long(5_000_000), Long(1)]),
            body(vec![Long(1), Long(21)], 125),
            datum(&[Long(2)]),
            body(vec![Long(0)], 100),
            body(vec![Long(2), F64(2.5)], 50),
            datum(&[Long(0), Long(1), Text("a.b"), Float(0.5), Long(0), Long(1), Long(1)]),
        ]
        .concat();
        let second =
            datum(&[Text(id), Long(6_000_000), Long(0), Long(0), Long(0), Long(0), Long(0)]);
        let third = [
            datum(&[Text(id), Long(7_000_000), Long(1)]),
            body(vec![Long(3), Text("3.5")], 0),
            datum(&[Long(0), Long(0), Long(0), Long(0)]),
        ]
        .concat();
        let mut decoder = bare(&records, schema);
        let decoded = decode(&mut decoder, &[first, second, third]);
        assert_eq!(reasons(&decoded), []);
        assert_eq!(
            super::tests::records(&decoded),
            [
                record(id, 5, 100, &[Some(21.0), Some(1.25), Some(2.5), Some(0.5), Some(1.0)]),
                record(id, 6, 101, &[None; 5]),
                record(id, 7, 102, &[Some(3.5), Some(0.0), None, None, None]),
            ]
        );

        let by_kind = Records {
            layout: Layout::Long,
            key: Some("meta.id".into()),
            time: Some("day".into()),
            code: "kind".into(),
            value: "tags.v".into(),
            channels: vec!["HOT".into()],
            ..Records::default()
        };
        let hot = datum(&[
            Text(id),
            Long(0),
            Long(0),
            Long(0),
            Long(1),
            Text("v"),
            Float(4.0),
            Long(0),
            Long(2),
            Long(1),
        ]);
        let decoded = decode(&mut bare(&by_kind, schema), &[hot]);
        assert_eq!(super::tests::records(&decoded), [record(id, 172_800, 100, &[Some(4.0)])]);
    }

    #[test]
    fn a_channel_that_is_no_number_is_a_fault_that_names_it() {
        let schema = r#"{"type":"record","name":"R","fields":[
            {"name":"machine","type":"string"},{"name":"ts","type":"double"},
            {"name":"a","type":{"type":"array","items":"int"}},{"name":"b","type":"bytes"}]}"#;
        let message = datum(&[Text("m"), F64(1.5), Long(0), Long(0)]);
        let decoded = decode(&mut bare(&wide(), schema), &[message]);
        assert_eq!(reasons(&decoded), [(100, "field \"a\": expected a number, found a list")]);
    }

    #[test]
    fn what_the_resolution_refuses_costs_its_message_alone() {
        let writer = r#"{"type":"record","name":"R","fields":[
            {"name":"machine","type":"string"},{"name":"ts","type":"long"},
            {"name":"a","type":["string","int"]},{"name":"b","type":"int"}]}"#;
        let reader = schema_file(
            r#"{"type":"record","name":"R","fields":[
                {"name":"machine","type":"string"},{"name":"ts","type":"long"},
                {"name":"a","type":"int"},{"name":"b","type":"int"}]}"#,
        );
        let double = Double::with(&[writer]);
        let avro = config::Avro { schema: Some(reader.path().to_owned()), framing: None };
        let mut decoder = Decoder::new(&wide(), &Encoding { avro, ..encoding(&double) }).unwrap();
        let number = |ts| framed(1, datum(&[Text("m"), Long(ts), Long(1), Long(5), Long(6)]));
        let text = framed(1, datum(&[Text("m"), Long(2), Long(0), Text("x"), Long(6)]));
        let decoded = decode(&mut decoder, &[number(1), text, number(3)]);
        let kept: Vec<i64> = records(&decoded).iter().map(|record| record.2).collect();
        assert_eq!(kept, [100, 102]);
        assert_eq!(reasons(&decoded).len(), 1);
        assert!(reasons(&decoded)[0].1.starts_with("expected an Avro record: "));
    }

    #[test]
    fn settings_without_a_schema_are_refused() {
        let rules = || Arc::new(RowRules::new(&wide()).unwrap());
        let encoding = |avro| Encoding { avro, ..Encoding::default() };
        let missing = Avro::new(rules(), &encoding(config::Avro::default())).err();
        assert_eq!(missing, Some(DecodeError::NoAvroSchema));
        let framing = Some(Framing::Confluent);
        let unanswered = Avro::new(rules(), &encoding(config::Avro { schema: None, framing }));
        assert_eq!(unanswered.err(), Some(DecodeError::NoAvroSchema));
        let file = schema_file("{}");
        let schema = Some(file.path().to_owned());
        let broken = Avro::new(rules(), &encoding(config::Avro { schema, framing: None }));
        let reason = broken.err().unwrap().to_string();
        assert!(reason.starts_with("source.avro.schema: "), "{reason}");
        assert!(reason.ends_with("found an object without \"type\""), "{reason}");
    }

    /// All kinds of types, and in `d` what arrow-avro keeps none of.
    const RICH: &str = r#"{"type":"record","name":"R","fields":[
        {"name":"machine","type":"string"},
        {"name":"ts","type":{"type":"long","logicalType":"timestamp-nanos"}},
        {"name":"a","type":["null","boolean","double",{"type":"map","values":"long"}]},
        {"name":"b","type":{"type":"array","items":["null",{"type":"record","name":"I","fields":[
            {"name":"x","type":{"type":"fixed","name":"F","size":12,"logicalType":"duration"}},
            {"name":"y","type":{"type":"enum","name":"E","symbols":["P","Q"]}},
            {"name":"z","type":{"type":"bytes","logicalType":"decimal","precision":9}}]}]}},
        {"name":"c","type":{"type":"string","logicalType":"uuid"}},
        {"name":"d","type":{"type":"array","items":"null"}}]}"#;

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder_or_cost_a_neighbour(
            hostile in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    proptest::collection::vec(
                        prop_oneof![Just(0_u8), Just(1), Just(2), Just(4), Just(0xFF), any::<u8>()],
                        0..60,
                    ),
                ],
                1..12,
            ),
        ) {
            let mut decoder = bare(&wide(), RICH);
            let good = datum(&[
                Text("m"), Long(1_000_000_000), Long(0), Long(0),
                Text("0b5fde5a-9a1c-4d3e-8f00-0123456789ab"), Long(0),
            ]);
            let mut payloads = vec![good.clone()];
            for bytes in hostile {
                payloads.push(bytes);
                payloads.push(good.clone());
            }
            let count = payloads.len() as i64;
            let decoded = decode(&mut decoder, &payloads);
            // The list `b` is no number, of which the good ones are told.
            prop_assert_eq!(decoded.records.num_rows() + decoded.dead_letters.len(), count as usize);
            for letter in decoded.dead_letters.iter().filter(|letter| letter.offset % 2 == 0) {
                prop_assert!(letter.reason.starts_with("field \"b\""), "{}", letter.reason);
            }
        }
    }

    /// Fields of all plain kinds, and of others that nobody asks for.
    const PLAIN: &str = r#"{"type":"record","name":"Reading","fields":[
        {"name":"list","type":{"type":"array","items":["null","int"]}},
        {"name":"machine","type":{"type":"string","avro.java.string":"String"}},
        {"name":"a","type":["null","double"],"default":null},
        {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["A","B"]}},
        {"name":"ts","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"b","type":["float","null"]},
        {"name":"note","type":["null","string"]},
        {"name":"c","type":"int"},
        {"name":"d","type":["null","long"]}]}"#;

    #[derive(Clone, Debug)]
    struct Reading {
        list: Vec<Option<i64>>,
        machine: String,
        time: i64,
        a: Option<f64>,
        b: Option<f32>,
        note: Option<String>,
        c: i64,
        d: Option<i64>,
        change: Option<(prop::sample::Index, u8)>,
        end: Option<prop::sample::Index>,
    }

    impl Reading {
        fn datum(&self) -> Vec<u8> {
            let mut bytes = Vec::new();
            if !self.list.is_empty() {
                long(self.list.len() as i64, &mut bytes);
                for item in &self.list {
                    long(item.is_some().into(), &mut bytes);
                    item.iter().for_each(|item| long(*item, &mut bytes));
                }
            }
            bytes.extend(datum(&[Long(0), Text(&self.machine)]));
            bytes.extend(self.a.map_or(datum(&[Long(0)]), |a| datum(&[Long(1), F64(a)])));
            bytes.extend(datum(&[Long(1), Long(self.time)]));
            bytes.extend(self.b.map_or(datum(&[Long(1)]), |b| datum(&[Long(0), Float(b)])));
            let note = self.note.as_deref();
            bytes.extend(note.map_or(datum(&[Long(0)]), |note| datum(&[Long(1), Text(note)])));
            bytes.extend(datum(&[Long(self.c)]));
            bytes.extend(self.d.map_or(datum(&[Long(0)]), |d| datum(&[Long(1), Long(d)])));
            if let Some((at, byte)) = self.change {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(end) = self.end {
                bytes.truncate(end.index(bytes.len()));
            }
            bytes
        }
    }

    fn reading() -> impl Strategy<Value = Reading> {
        let often =
            |machine: &'static str| prop_oneof![9 => Just(machine.to_owned()), 1 => ".{0,2}"];
        let time = prop_oneof![
            9 => 1_600_000_000_000..1_800_000_000_000_i64,
            1 => any::<i64>(),
        ];
        let c = prop_oneof![9 => any::<i32>().prop_map(i64::from), 1 => any::<i64>()];
        let change = prop::option::weighted(0.1, any::<(prop::sample::Index, u8)>());
        let end = prop::option::weighted(0.05, any::<prop::sample::Index>());
        let values = (any::<Option<f64>>(), any::<Option<f32>>(), c, any::<Option<i64>>());
        let list = prop::collection::vec(any::<Option<i32>>(), 0..3);
        (list, often("press"), time, values, any::<Option<String>>(), change, end).prop_map(
            |(list, machine, time, (a, b, c, d), note, change, end)| Reading {
                list: list.into_iter().map(|item| item.map(i64::from)).collect(),
                machine,
                time,
                a,
                b,
                note,
                c,
                d,
                change,
                end,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_read_directly_is_what_arrow_avro_reads(
            readings in prop::collection::vec(reading(), 1..40),
            time in prop_oneof![Just("ts"), Just("c"), Just("d"), Just("b")],
            has_key in any::<bool>(),
            bounded in any::<bool>(),
        ) {
            let channels = ["d", "a", "b", "c"].into_iter().filter(|channel| *channel != time);
            let mut records = Records {
                key: has_key.then(|| "machine".into()),
                time: Some(time.into()),
                channels: channels.map(str::to_owned).collect(),
                ..Records::default()
            };
            if bounded {
                let bounds = config::Channel { min: Some(-1e9), max: Some(0.5), ..Default::default() };
                records.channel.insert("a".to_owned(), bounds);
            }
            let file = schema_file(PLAIN);
            let avro = config::Avro {
                schema: Some(file.path().to_owned()),
                framing: Some(Framing::None),
            };
            let encoding = Encoding { format: Some(Format::Avro), avro, ..Encoding::default() };
            let decoder = || Avro::new(Arc::new(RowRules::new(&records).unwrap()), &encoding).unwrap();
            let (mut directly, mut through) = (decoder(), decoder());
            for writer in through.writers.values_mut() {
                prop_assert!(writer.as_mut().unwrap().direct.take().is_some());
            }
            let mut messages = Messages::default();
            for (offset, reading) in (0..).zip(&readings) {
                messages.push(offset, None, None, &reading.datum(), Vec::new());
            }
            let [found, expected] = [&mut directly, &mut through]
                .map(|avro| avro.decode(&messages, 0..readings.len()).ok().unwrap());
            prop_assert_eq!(found.batch, expected.batch);
            prop_assert_eq!(found.messages, expected.messages);
            prop_assert_eq!(
                directly.rules.take_out_of_range(),
                through.rules.take_out_of_range()
            );
        }
    }

    #[test]
    fn only_plain_fields_of_the_schema_itself_are_read_directly() {
        let direct = |records: &Records, schema: &str| {
            let rules = RowRules::new(records).unwrap();
            Direct::new(schema, &Shape::new(schema).unwrap(), &rules).is_some()
        };
        assert!(direct(&wide(), FLAT));
        assert!(!direct(&wide(), CHANGED));
        for (of, by) in [
            ("\"string\"", "[\"int\",\"string\"]"),
            ("\"string\"", r#"{"type":"string","logicalType":"uuid"}"#),
            ("timestamp-millis", "time-micros"),
            ("\"double\"", "\"bytes\""),
            ("\"float\"", r#"{"type":"array","items":"float"}"#),
        ] {
            assert!(!direct(&wide(), &FLAT.replace(of, by)), "{by}");
        }
    }
}
