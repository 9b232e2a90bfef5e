//! Bytes become Arrow columns.
//!
//! Whatever the format, the result has one schema, [`records_schema`]: `key` (Utf8), `time`
//! (timestamp, microseconds, UTC), `offset` (Int64), then one Float32 column per channel in the
//! order of `records.channels`. A null or non-finite channel value is missing. What cannot be
//! decoded becomes a [`DeadLetter`]; the rest of its batch goes on.
//!
//! A batch goes through one decoder as a whole. Only where that fails is it split, at the message
//! that is to blame, until each bad message stands alone. Long rows (key, time, code, value) become
//! records with that one channel set; consecutive rows of one key and time within a batch become
//! one record, with the offset of the last.
//!
//! Lines of text (`layout = "log"`) come in [`log_schema`] instead, for templates to be mined.

pub(crate) mod arrow_columns;
pub(crate) mod arrow_ipc;
mod avro;
pub(crate) mod columns;
pub(crate) mod csv;
mod error;
mod fhir;
mod groups;
mod json;
mod log;
mod pseudonym;
mod time;
mod units;

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Int64Array, Int64Builder, RecordBatch, StringArray, StringBuilder};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

pub(crate) use avro::read_schema as avro_schema;
pub use error::{DecodeError, DecodeFailure};
pub use time::check_time_format;

use crate::config::{Encoding, Format, Records};
use crate::registry::RegistryError;
use crate::source::{Header, Lane, Message, Messages};
use columns::{RowRules, Rows, check_key};
use time::in_range;

/// Position of the `key` column in [`records_schema`].
pub const KEY_COLUMN: usize = 0;
/// Position of the `time` column in [`records_schema`].
pub const TIME_COLUMN: usize = 1;
/// Position of the `offset` column in [`records_schema`].
pub const OFFSET_COLUMN: usize = 2;
/// Position of the first channel's column in [`records_schema`].
pub const FIRST_CHANNEL_COLUMN: usize = 3;

/// The one schema of decoded records.
pub fn records_schema(channels: &[String]) -> SchemaRef {
    let mut fields = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new("offset", DataType::Int64, false),
    ];
    fields.extend(channels.iter().map(|name| Field::new(name, DataType::Float32, true)));
    Arc::new(Schema::new(fields))
}

/// Position of the text in [`log_schema`].
pub const MESSAGE_COLUMN: usize = 3;
/// Position of the severity in [`log_schema`].
pub const SEVERITY_COLUMN: usize = 4;

/// The schema of decoded lines: key, time and offset as in [`records_schema`], then `message`
/// (Utf8) and `severity` (Float32, from 0 for debug to 7 for emergency; null where it is not
/// known).
pub fn log_schema() -> SchemaRef {
    let head = records_schema(&[]);
    let mut fields: Vec<_> = head.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("message", DataType::Utf8, false)));
    fields.push(Arc::new(Field::new("severity", DataType::Float32, true)));
    Arc::new(Schema::new(fields))
}

/// Records of one batch and what could not be decoded of it.
#[derive(Debug)]
pub struct Decoded {
    /// Rows in the order of their offsets, in [`records_schema`].
    pub records: RecordBatch,
    /// Messages left out of `records`, in the order of their offsets.
    pub dead_letters: Vec<DeadLetter>,
    /// Long rows left out because their code is not one of the channels: no fault of theirs.
    pub skipped: u64,
    /// Values taken for missing because they lie out of their channel's bounds.
    pub out_of_range: u64,
}

/// A message that a stage could not take, with all that is needed to find and replay it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Where it came from.
    pub lane: Lane,
    /// Its offset, or line number in a file.
    pub offset: i64,
    /// Its original key.
    pub key: Option<Vec<u8>>,
    /// Its original bytes.
    pub payload: Vec<u8>,
    /// Its original headers.
    pub headers: Vec<Header>,
    /// The stage that refused it: `decode`, `window`, ….
    pub stage: &'static str,
    /// Why, in words a person can act on.
    pub reason: String,
}

/// Most messages that go through a format's decoder together.
const CHUNK_MESSAGES: usize = 4096;

/// Decodes the messages of any lane.
pub struct Decoder {
    rules: Arc<RowRules>,
    format: FormatDecoder,
}

enum FormatDecoder {
    Json(json::Json),
    Csv(Box<csv::Csv>),
    Fhir(fhir::Fhir),
    Avro(Box<avro::Avro>),
    Arrow(arrow_ipc::ArrowIpc),
    Log(log::Log),
}

/// Why messages could not be decoded together.
enum Refusal {
    /// One of them is to blame.
    Message { at: usize, reason: String },
    /// One of them is to blame, though it is not known which.
    Unknown { reason: String },
    /// None of them: their schema cannot be had.
    Registry(RegistryError),
}

impl Decoder {
    /// A decoder of messages in the encoding's format; CSV must name its columns.
    ///
    /// # Errors
    /// If no record could satisfy these settings.
    pub fn new(records: &Records, encoding: &Encoding) -> Result<Self, DecodeError> {
        let format = encoding.format.unwrap_or_default();
        let rules = Arc::new(match format {
            Format::Fhir => RowRules::new(&fhir::records(records))?,
            _ => RowRules::new(records)?,
        });
        let format = match format {
            Format::Json => {
                FormatDecoder::Json(json::Json::new(Arc::clone(&rules), encoding.json.envelope))
            }
            Format::Csv => {
                FormatDecoder::Csv(Box::new(csv::Csv::new(Arc::clone(&rules), &encoding.csv)?))
            }
            Format::Fhir => FormatDecoder::Fhir(fhir::Fhir::new(Arc::clone(&rules), records)),
            Format::Avro => {
                FormatDecoder::Avro(Box::new(avro::Avro::new(Arc::clone(&rules), encoding)?))
            }
            Format::Arrow => FormatDecoder::Arrow(arrow_ipc::ArrowIpc::new(Arc::clone(&rules))),
            Format::Log => FormatDecoder::Log(log::Log::new(Arc::clone(&rules), &encoding.log)?),
            format @ Format::Parquet => {
                return Err(DecodeError::Format { found: format });
            }
        };
        Ok(Self { rules, format })
    }

    /// Decodes messages of `lane`: records in the order of the messages, and a dead letter for each
    /// message of which anything is no record.
    ///
    /// # Errors
    /// If what is needed to decode them cannot be had now; none of them counts as read.
    pub fn decode(&mut self, lane: &Lane, messages: &Messages) -> Result<Decoded, DecodeFailure> {
        let Split { parts, taken, mut refused } =
            self.split(messages).map_err(|(index, error)| DecodeFailure {
                lane: lane.clone(),
                offset: messages.get(index).offset,
                reason: error.to_string(),
                is_retryable: error.is_retryable(),
            })?;
        let schema = self.rules.rows_schema();
        let batch = concat_batches(schema, &parts).expect("every part has the schema of rows");
        let rows = Rows { batch, messages: taken };
        refused.extend(rows.faults().map(|(row, reason)| (rows.messages[row], reason.to_owned())));
        let keys = if self.rules.has_key() {
            rows.keys()
        } else {
            message_keys(messages, &rows, &mut refused)
        };
        let times = if self.rules.has_time() && !self.rules.times().lacks_year() {
            Int64Array::new(rows.times().clone(), None)
        } else {
            message_times(messages, &rows, &self.rules, &mut refused)
        };
        // Of one message, in the order of its rows.
        refused.sort_by_key(|(index, _)| *index);

        let mut offsets = Vec::with_capacity(rows.messages.len());
        for of_one in rows.messages.chunk_by(|one, other| one == other) {
            offsets.resize(offsets.len() + of_one.len(), messages.get(of_one[0]).offset);
        }
        let offsets = Int64Array::from(offsets);
        let skipped = rows.skipped();
        let records = rows.into_records(&self.rules, keys, times, offsets);
        let dead_letters = refused
            .chunk_by(|one, other| one.0 == other.0)
            .map(|reasons| dead_letter(lane, messages.get(reasons[0].0), in_short(reasons)))
            .map(|letter| withheld(&self.rules, letter))
            .collect();
        let out_of_range = self.rules.take_out_of_range();
        Ok(Decoded { records, dead_letters, skipped, out_of_range })
    }

    /// The dead letter of a message of `lane` that cannot be taken because of `reason`.
    pub fn refuse(&self, lane: &Lane, message: Message<'_>, reason: String) -> DeadLetter {
        withheld(&self.rules, dead_letter(lane, message, reason))
    }

    /// Decodes what can be decoded together, splitting at each message that cannot. What no
    /// message is to blame for comes with the first one that it stops.
    fn split(&mut self, messages: &Messages) -> Result<Split, (usize, RegistryError)> {
        let mut split = Split::default();
        // The range to decode next is at the end.
        let chunks = (0..messages.len()).step_by(CHUNK_MESSAGES);
        let mut waiting: Vec<Range<usize>> =
            chunks.map(|start| start..messages.len().min(start + CHUNK_MESSAGES)).rev().collect();
        while let Some(range) = waiting.pop() {
            if range.is_empty() {
                continue;
            }
            let decoded = match &mut self.format {
                FormatDecoder::Json(json) => json.decode(messages, range.clone()),
                FormatDecoder::Csv(csv) => csv.decode(messages, range.clone()),
                FormatDecoder::Fhir(fhir) => fhir.decode(messages, range.clone()),
                FormatDecoder::Avro(avro) => avro.decode(messages, range.clone()),
                FormatDecoder::Arrow(arrow) => Ok(arrow.decode(messages, range.clone())),
                FormatDecoder::Log(log) => log.decode(messages, range.clone()),
            };
            match decoded {
                Ok(Rows { batch, messages }) => {
                    if split.taken.is_empty() {
                        split.taken = messages;
                    } else {
                        split.taken.extend(messages);
                    }
                    split.parts.push(batch);
                }
                Err(Refusal::Message { at, reason }) => {
                    split.refused.push((at, reason));
                    waiting.push(at + 1..range.end);
                    waiting.push(range.start..at);
                }
                Err(Refusal::Unknown { reason }) if range.len() == 1 => {
                    split.refused.push((range.start, reason));
                }
                Err(Refusal::Unknown { .. }) => {
                    let middle = range.start + range.len() / 2;
                    waiting.push(middle..range.end);
                    waiting.push(range.start..middle);
                }
                Err(Refusal::Registry(error)) => return Err((range.start, error)),
            }
        }
        Ok(split)
    }
}

/// The reasons against rows of one message, of which one is enough to name.
fn in_short(reasons: &[(usize, String)]) -> String {
    match reasons {
        [(_, reason)] => reason.clone(),
        [(_, reason), others @ ..] => format!("{reason}; and {} more like it", others.len()),
        [] => String::new(),
    }
}

/// A batch of messages, those with a row apart from those without.
#[derive(Default)]
struct Split {
    /// The rows, in parts.
    parts: Vec<RecordBatch>,
    /// Per row: its message.
    taken: Vec<usize>,
    /// Messages without a row, and why.
    refused: Vec<(usize, String)>,
}

/// The keys of the messages that the rows are of; one that is not text is refused, and null.
fn message_keys(
    messages: &Messages,
    rows: &Rows,
    refused: &mut Vec<(usize, String)>,
) -> StringArray {
    let mut keys = StringBuilder::with_capacity(rows.messages.len(), 16 * rows.messages.len());
    for (row, &index) in rows.messages.iter().enumerate() {
        if !rows.kept().value(row) {
            keys.append_null();
            continue;
        }
        match message_key(messages.get(index).key) {
            Ok(key) => keys.append_value(key),
            Err(reason) => {
                keys.append_null();
                refused.push((index, format!("message key: {reason}")));
            }
        }
    }
    keys.finish()
}

/// The times of the rows by the timestamps of their messages, or the years of these: microseconds
/// since the epoch. What cannot be told is refused, and null.
fn message_times(
    messages: &Messages,
    rows: &Rows,
    rules: &RowRules,
    refused: &mut Vec<(usize, String)>,
) -> Int64Array {
    let mut times = Int64Builder::with_capacity(rows.messages.len());
    for (row, &index) in rows.messages.iter().enumerate() {
        if !rows.kept().value(row) {
            times.append_null();
            continue;
        }
        let time = messages.get(index).timestamp_ms.and_then(|timestamp_ms| {
            if rules.has_time() {
                rules.times().with_year(rows.times()[row], timestamp_ms)
            } else {
                in_range(timestamp_ms.checked_mul(1000)?)
            }
        });
        times.append_option(time);
        if time.is_none() {
            let found = messages.get(index).timestamp_ms;
            let found = found.map_or("none".to_owned(), |ms| format!("{ms} ms since the epoch"));
            let what = if rules.has_time() { "to tell the year by" } else { "from year 0 to 9999" };
            let reason = format!("message timestamp: expected a time {what}, found {found}");
            refused.push((index, reason));
        }
    }
    times.finish()
}

fn message_key(key: Option<&[u8]>) -> Result<&str, String> {
    let key = key.ok_or("expected a key, found none")?;
    let key = std::str::from_utf8(key).map_err(|_| "expected UTF-8, found other bytes")?;
    check_key(key).map(|()| key)
}

fn dead_letter(lane: &Lane, message: Message<'_>, reason: String) -> DeadLetter {
    DeadLetter {
        lane: lane.clone(),
        offset: message.offset,
        key: message.key.map(<[u8]>::to_vec),
        payload: message.payload.to_vec(),
        headers: message.headers.to_vec(),
        stage: "decode",
        reason,
    }
}

/// What may leave the process of a letter: all of it, or what `records.key_hash` leaves.
pub(crate) fn withheld(rules: &RowRules, letter: DeadLetter) -> DeadLetter {
    match rules.pseudonyms() {
        Some(pseudonyms) => pseudonyms.withhold(letter),
        None => letter,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Float32Type, Int64Type, TimestampMicrosecondType};
    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, Channel, Groups, Layout};

    /// Key in `machine`, time in `ts`, channels `a` and `b`.
    fn wide() -> Records {
        Records {
            key: Some("machine".into()),
            time: Some("ts".into()),
            channels: vec!["a".into(), "b".into()],
            ..Records::default()
        }
    }

    fn long() -> Records {
        Records { layout: Layout::Long, ..wide() }
    }

    fn keyed_by_message() -> Records {
        Records { key: None, ..wide() }
    }

    fn lane() -> Lane {
        Lane::new("plant", 3)
    }

    fn json(records: &Records) -> Decoder {
        Decoder::new(records, &Encoding::default()).unwrap()
    }

    fn csv(records: &Records, columns: &[&str]) -> Decoder {
        let columns = columns.iter().map(|name| (*name).to_owned()).collect();
        let csv = config::Csv { columns, ..config::Csv::default() };
        let encoding = Encoding { format: Some(Format::Csv), csv, ..Encoding::default() };
        Decoder::new(records, &encoding).unwrap()
    }

    /// Messages with offsets from 100, without keys.
    fn messages<T: AsRef<[u8]>>(payloads: &[T]) -> Messages {
        let mut messages = Messages::default();
        for (offset, payload) in (100..).zip(payloads) {
            messages.push(offset, None, None, payload.as_ref(), Vec::new());
        }
        messages
    }

    /// One record: key, time, offset, channels.
    type Record = (String, i64, i64, Vec<Option<f32>>);

    fn records(decoded: &Decoded) -> Vec<Record> {
        let batch = &decoded.records;
        let names: Vec<String> = batch.schema().fields()[FIRST_CHANNEL_COLUMN..]
            .iter()
            .map(|field| field.name().clone())
            .collect();
        assert_eq!(batch.schema(), records_schema(&names));
        let keys = batch.column(KEY_COLUMN).as_string::<i32>();
        let times = batch.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
        let offsets = batch.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
        (0..batch.num_rows())
            .map(|row| {
                let channels = batch.columns()[FIRST_CHANNEL_COLUMN..]
                    .iter()
                    .map(|column| column.as_primitive::<Float32Type>())
                    .map(|column| column.is_valid(row).then(|| column.value(row)))
                    .collect();
                (keys.value(row).to_owned(), times.value(row), offsets.value(row), channels)
            })
            .collect()
    }

    fn reasons(decoded: &Decoded) -> Vec<(i64, &str)> {
        decoded.dead_letters.iter().map(|letter| (letter.offset, letter.reason.as_str())).collect()
    }

    fn record(key: &str, seconds: i64, offset: i64, channels: &[Option<f32>]) -> Record {
        (key.to_owned(), seconds * 1_000_000, offset, channels.to_vec())
    }

    #[test]
    fn json_objects_become_records_in_the_order_of_their_offsets() {
        let decoded = json(&wide()).decode(&lane(),
            &messages(&[
                r#"{"machine":"m1","ts":10,"a":1.5,"b":-2e3}"#,
                " {\"b\":2,\r\n \"note\":{\"x\":[1,{}]}, \"a\":1, \"ts\":\"1970-01-01T00:00:11Z\", \"machine\":\"m\\u00e9\"}\n",
            ]),
        ).unwrap();
        assert_eq!(
            records(&decoded),
            [
                record("m1", 10, 100, &[Some(1.5), Some(-2000.0)]),
                record("mé", 11, 101, &[Some(1.0), Some(2.0)]),
            ]
        );
        assert!(decoded.dead_letters.is_empty());
        assert_eq!(decoded.skipped, 0);
    }

    #[test]
    fn null_absent_empty_and_non_finite_values_are_missing() {
        let decoded = json(&wide())
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","ts":1,"a":null,"b":1}"#,
                    r#"{"machine":"m","ts":1,"b":1}"#,
                    r#"{"machine":"m","ts":1,"a":"","b":1}"#,
                    r#"{"machine":"m","ts":1,"a":"NaN","b":1}"#,
                    r#"{"machine":"m","ts":1,"a":"-inf","b":1}"#,
                    r#"{"machine":"m","ts":1,"a":1e999,"b":1}"#,
                    r#"{"machine":"m","ts":1,"a":"n/a","b":1}"#,
                ]),
            )
            .unwrap();
        assert!(decoded.dead_letters.is_empty(), "{:?}", reasons(&decoded));
        let channels: Vec<_> = records(&decoded).into_iter().map(|record| record.3).collect();
        assert_eq!(channels, vec![vec![None, Some(1.0)]; 7]);
    }

    #[test]
    fn numbers_may_come_as_text_and_keys_as_numbers() {
        let decoded = json(&wide())
            .decode(&lane(), &messages(&[r#"{"machine":17,"ts":"1.5","a":" 2.5 ","b":"1e1"}"#]))
            .unwrap();
        let expected = ("17".to_owned(), 1_500_000, 100, vec![Some(2.5), Some(10.0)]);
        assert_eq!(records(&decoded), [expected]);
    }

    #[test]
    fn of_a_field_that_appears_twice_the_last_one_counts() {
        let decoded = json(&wide())
            .decode(&lane(), &messages(&[r#"{"machine":"m","a":1,"ts":1,"a":2,"b":0}"#]))
            .unwrap();
        assert_eq!(records(&decoded), [record("m", 1, 100, &[Some(2.0), Some(0.0)])]);
    }

    #[test]
    fn a_fault_names_the_field_what_was_expected_and_what_was_found() {
        let decoded = json(&wide())
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","a":1}"#,
                    r#"{"machine":"m","ts":"soon","a":1}"#,
                    r#"{"ts":1,"a":1}"#,
                    r#"{"machine":true,"ts":1,"a":1}"#,
                    r#"{"machine":"","ts":1,"a":1}"#,
                    r#"{"machine":"m","ts":1,"a":"high"}"#,
                    r#"{"machine":"m","ts":1,"a":[1]}"#,
                    r#"{"machine":"m","ts":1,"c":1}"#,
                    r#"{"machine":"m","ts":1,"a":1-2}"#,
                ]),
            )
            .unwrap();
        assert!(records(&decoded).is_empty());
        let time = "a time from year 0 to 9999: RFC 3339, \"YYYY-MM-DD hh:mm:ss\", or a number \
                    since the epoch";
        let key = "field \"machine\": expected a key, as text or a number";
        let expected = [
            format!("field \"ts\": expected {time}, found the fields \"machine\", \"a\""),
            format!("field \"ts\": expected {time}, found \"soon\""),
            format!("{key}, found the fields \"ts\", \"a\""),
            format!("{key}, found true"),
            "field \"machine\": expected a key, found an empty one".to_owned(),
            "field \"a\": expected a number, found \"high\"".to_owned(),
            "field \"a\": expected a number, found a list".to_owned(),
            "expected at least one of the channels \"a\", \"b\", found the fields \"machine\", \
             \"ts\", \"c\""
                .to_owned(),
            "field \"a\": expected a number, found 1-2".to_owned(),
        ];
        let expected: Vec<_> = (100..).zip(expected.iter().map(String::as_str)).collect();
        assert_eq!(reasons(&decoded), expected);
    }

    #[test]
    fn each_bad_message_alone_becomes_a_dead_letter() {
        let good = |second| format!(r#"{{"machine":"m","ts":{second},"a":1,"b":2}}"#).into_bytes();
        let bad: [&[u8]; 14] = [
            b"",
            b" \n ",
            br#"{"machine":"m","ts":1,"a":1"#,
            br#"{"machine":"m","ts":1,"a":1} x"#,
            br#"{"machine":"m","ts":1,"a":1}{"machine":"m","ts":1,"a":1}"#,
            b"{\"machine\":\"\xff\",\"ts\":1,\"a\":1}",
            b"{\"machine\":\"m\",\"ts\":1,\"a\":1,\"note\":\"\xc3\"}",
            b"\x00\x01\x02\xfe",
            b"[1,2]",
            b"17",
            b"\"text",
            b"null",
            br#"{"machine":"\ud800x","ts":1,"a":1}"#,
            b"}",
        ];
        let mut payloads = vec![good(0)];
        for (second, bad) in (1..).zip(bad) {
            payloads.push(bad.to_vec());
            payloads.push(good(second));
        }
        let mut decoder = json(&wide());
        for _ in 0..2 {
            let decoded = decoder.decode(&lane(), &messages(&payloads)).unwrap();
            let expected: Vec<_> = (0..=bad.len() as i64)
                .map(|second| record("m", second, 100 + 2 * second, &[Some(1.0), Some(2.0)]))
                .collect();
            assert_eq!(records(&decoded), expected);
            let letters = &decoded.dead_letters;
            let offsets: Vec<_> = letters.iter().map(|letter| letter.offset).collect();
            assert_eq!(offsets, (0..bad.len() as i64).map(|n| 101 + 2 * n).collect::<Vec<_>>());
            for (letter, bad) in letters.iter().zip(bad) {
                assert_eq!(letter.payload, bad);
                assert_eq!((letter.stage, &letter.lane), ("decode", &lane()));
                assert!(letter.reason.starts_with("expected "), "{}", letter.reason);
            }
        }
    }

    #[test]
    fn a_batch_of_nothing_but_bad_messages_leaves_no_record() {
        let payloads = vec![b"\xff{".as_slice(); 5000];
        let decoded = json(&wide()).decode(&lane(), &messages(&payloads)).unwrap();
        assert_eq!((decoded.records.num_rows(), decoded.dead_letters.len()), (0, 5000));
        let none = json(&wide()).decode(&lane(), &Messages::default()).unwrap();
        assert_eq!((none.records.num_rows(), none.dead_letters.len()), (0, 0));
    }

    #[test]
    fn batches_larger_than_a_chunk_stay_whole_and_in_order() {
        let payloads: Vec<_> =
            (0..10_000).map(|n| format!(r#"{{"machine":"m","ts":{n},"a":{n}}}"#)).collect();
        let decoded = json(&wide()).decode(&lane(), &messages(&payloads)).unwrap();
        let offsets: Vec<_> = records(&decoded).iter().map(|record| record.2).collect();
        assert_eq!(offsets, (100..10_100).collect::<Vec<_>>());
    }

    #[test]
    fn nesting_without_end_is_refused_without_a_crash() {
        let small =
            format!(r#"{{"machine":"m","ts":1,"a":{}1{}}}"#, "[".repeat(9000), "]".repeat(9000));
        let key = format!(r#"{{"machine":{}"#, r#"{"x":"#.repeat(10_000_000));
        let unknown = format!(
            r#"{{"machine":"m","ts":1,"a":1,"note":"{}","x":{}{}}}"#,
            r#"\"[{["#.repeat(20_000),
            "[".repeat(100),
            "]".repeat(100)
        );
        let decoded = json(&wide())
            .decode(&lane(), &messages(&[small, key, unknown, "[".repeat(1 << 26)]))
            .unwrap();
        assert_eq!(records(&decoded), [record("m", 1, 102, &[Some(1.0), None])]);
        assert_eq!(
            reasons(&decoded),
            [
                (100, "field \"a\": expected a number, found a list"),
                (101, "expected a JSON object, found one nested deeper than 512 levels"),
                (103, "expected a JSON object, found one nested deeper than 512 levels"),
            ]
        );
    }

    #[test]
    fn a_message_of_fifty_megabytes_is_decoded_like_any_other() {
        let huge = format!(r#"{{"machine":"m","ts":1,"a":1,"note":"{}"}}"#, "x".repeat(50 << 20));
        let broken = &huge[..huge.len() - 1];
        let decoded = json(&wide()).decode(&lane(), &messages(&[&huge, broken])).unwrap();
        assert_eq!(records(&decoded), [record("m", 1, 100, &[Some(1.0), None])]);
        assert_eq!(reasons(&decoded), [(101, "expected a JSON object, found its end cut off")]);
    }

    #[test]
    fn the_message_key_is_the_key_where_no_field_is_named() {
        let payload = br#"{"ts":1,"a":1,"b":2}"#;
        let mut messages = Messages::default();
        messages.push(1, None, Some(b"m1"), payload, Vec::new());
        messages.push(2, None, None, payload, Vec::new());
        messages.push(3, None, Some(b"\xff"), payload, vec![("h".into(), Some(b"v".to_vec()))]);
        messages.push(4, None, Some(b""), payload, Vec::new());
        messages.push(5, None, None, b"{}", Vec::new());
        messages.push(6, None, Some(b"m2"), payload, Vec::new());
        let decoded = json(&keyed_by_message()).decode(&lane(), &messages).unwrap();
        let channels = [Some(1.0), Some(2.0)];
        assert_eq!(
            records(&decoded),
            [record("m1", 1, 1, &channels), record("m2", 1, 6, &channels)]
        );
        let found: Vec<_> = reasons(&decoded).into_iter().take(3).collect();
        assert_eq!(
            found,
            [
                (2, "message key: expected a key, found none"),
                (3, "message key: expected UTF-8, found other bytes"),
                (4, "message key: expected a key, found an empty one"),
            ]
        );
        assert_eq!(decoded.dead_letters.len(), 4);
        assert_eq!(decoded.dead_letters[1].key.as_deref(), Some(b"\xff".as_slice()));
        assert_eq!(decoded.dead_letters[1].headers, [("h".to_owned(), Some(b"v".to_vec()))]);
    }

    #[test]
    fn long_rows_of_one_key_and_time_become_one_record() {
        let decoded = json(&long())
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","ts":1,"code":"a","value":1}"#,
                    r#"{"machine":"m","ts":1,"code":"b","value":"2"}"#,
                    r#"{"machine":"m","ts":2,"code":"b","value":3}"#,
                    r#"{"machine":"n","ts":2,"code":"a","value":4}"#,
                    r#"{"machine":"n","ts":2,"code":"note","value":"fine"}"#,
                    r#"{"machine":"n","ts":2,"code":"b","value":5}"#,
                    r#"{"machine":"n","ts":2,"code":"a","value":null}"#,
                    r#"{"machine":"m","ts":2,"code":"a","value":6}"#,
                ]),
            )
            .unwrap();
        assert_eq!(
            records(&decoded),
            [
                record("m", 1, 101, &[Some(1.0), Some(2.0)]),
                record("m", 2, 102, &[None, Some(3.0)]),
                record("n", 2, 106, &[Some(4.0), Some(5.0)]),
                record("m", 2, 107, &[Some(6.0), None]),
            ]
        );
        assert_eq!((decoded.skipped, decoded.dead_letters.len()), (1, 0));
    }

    #[test]
    fn a_long_value_is_converted_to_the_unit_of_its_channel_before_its_bounds_are_looked_at() {
        let celsius = Channel {
            unit: Some("Cel".into()),
            min: Some(30.0),
            max: Some(45.0),
            ..Channel::default()
        };
        let channel = [("a".to_owned(), celsius)].into_iter().collect();
        let records_of = Records { unit: Some("unit".into()), channel, ..long() };
        let decoded = json(&records_of)
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","ts":1,"code":"a","value":98.6,"unit":"[degF]"}"#,
                    r#"{"machine":"m","ts":2,"code":"a","value":37,"unit":null}"#,
                    r#"{"machine":"m","ts":3,"code":"a","value":37,"unit":"K"}"#,
                    r#"{"machine":"m","ts":4,"code":"a","value":37,"unit":"kg"}"#,
                    r#"{"machine":"m","ts":5,"code":"b","value":37,"unit":"kg"}"#,
                ]),
            )
            .unwrap();
        assert_eq!(
            records(&decoded),
            [
                record("m", 1, 100, &[Some(37.0), None]),
                record("m", 2, 101, &[Some(37.0), None]),
                record("m", 3, 102, &[None, None]),
                record("m", 5, 104, &[None, Some(37.0)]),
            ]
        );
        assert_eq!(decoded.out_of_range, 1);
        assert_eq!(
            reasons(&decoded),
            [(103, "field \"unit\": expected a unit that converts to the channel's, found \"kg\"")]
        );
    }

    #[test]
    fn a_long_row_without_code_or_value_is_a_dead_letter() {
        let decoded = json(&long())
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","ts":1,"value":1}"#,
                    r#"{"machine":"m","ts":1,"code":"a"}"#,
                    r#"{"machine":"m","ts":1,"code":"a","value":{}}"#,
                ]),
            )
            .unwrap();
        assert_eq!((decoded.records.num_rows(), decoded.skipped), (0, 0));
        assert_eq!(
            reasons(&decoded),
            [
                (
                    100,
                    "field \"code\": expected the name of a channel, found the fields \"machine\", \
                     \"ts\", \"value\""
                ),
                (
                    101,
                    "field \"value\": expected a number, found the fields \"machine\", \"ts\", \
                     \"code\""
                ),
                (102, "field \"value\": expected a number, found an object"),
            ]
        );
    }

    #[test]
    fn a_path_leads_into_objects_and_lists_and_a_whole_name_comes_first() {
        let records_read = Records {
            key: Some("host.name".into()),
            time: Some("meta.ts".into()),
            channels: vec!["body.temp".into(), "readings.1.value".into()],
            ..Records::default()
        };
        let decoded = json(&records_read).decode(
            &lane(),
            &messages(&[
                r#"{"host":{"name":"m"},"meta":{"ts":1},"body":{"temp":2},"readings":[{"value":3},{"value":4}]}"#,
                r#"{"host":{"name":"m"},"body.temp":5,"meta":{"ts":2},"body":{"temp":2},"readings":[]}"#,
                r#"{"host":"m","meta":{"ts":3},"body":{"temp":2}}"#,
                r#"{"host":{"name":"m"},"meta":{"ts":4},"body":{"temp":[6]}}"#,
                r#"{"host":{"name":"m"},"meta":[1],"body":{"temp":1}}"#,
            ]),
        ).unwrap();
        assert_eq!(
            records(&decoded),
            [record("m", 1, 100, &[Some(2.0), Some(4.0)]), record("m", 2, 101, &[Some(5.0), None]),]
        );
        let found: Vec<_> = reasons(&decoded).into_iter().map(|(offset, _)| offset).collect();
        assert_eq!(found, [102, 103, 104]);
        assert_eq!(
            decoded.dead_letters[1].reason,
            "field \"body.temp\": expected a number, found a list"
        );
    }

    #[test]
    fn a_connect_envelope_is_taken_off() {
        let json = config::Json { envelope: config::Envelope::Connect };
        let mut decoder = Decoder::new(&wide(), &Encoding { json, ..Encoding::default() }).unwrap();
        let decoded = decoder.decode(
            &lane(),
            &messages(&[
                r#"{"schema":{"type":"struct","fields":[]},"payload":{"machine":"m","ts":1,"a":1}}"#,
                r#"{"machine":"m","ts":1,"a":1}"#,
                r#"{"schema":null,"payload":null}"#,
                r#"{"payload":{"machine":"m","ts":2,"a":"x"}}"#,
            ]),
        ).unwrap();
        assert_eq!(records(&decoded), [record("m", 1, 100, &[Some(1.0), None])]);
        assert_eq!(
            reasons(&decoded),
            [
                (
                    101,
                    "expected the record in \"payload\", found the fields \"machine\", \"ts\", \"a\""
                ),
                (102, "field \"payload\": expected a JSON object, found null"),
                (103, "field \"a\": expected a number, found \"x\""),
            ]
        );
    }

    #[test]
    fn without_a_field_for_it_the_time_is_that_of_the_message() {
        let records_read = Records { time: None, ..wide() };
        let payload = br#"{"machine":"m","a":1,"b":2}"#;
        let mut messages = Messages::default();
        messages.push(1, Some(5_000), None, payload, Vec::new());
        messages.push(2, None, None, payload, Vec::new());
        messages.push(3, Some(i64::MAX), None, payload, Vec::new());
        messages.push(4, Some(6_000), None, b"{}", Vec::new());
        let decoded = json(&records_read).decode(&lane(), &messages).unwrap();
        assert_eq!(records(&decoded), [record("m", 5, 1, &[Some(1.0), Some(2.0)])]);
        let found = reasons(&decoded);
        assert_eq!(found.len(), 3);
        assert_eq!(
            found[0],
            (2, "message timestamp: expected a time from year 0 to 9999, found none")
        );
    }

    #[test]
    fn times_without_a_year_take_it_from_their_message() {
        let records_read = Records { time_format: Some("%b %e %H:%M:%S".into()), ..wide() };
        let payload = br#"{"machine":"m","ts":"Jan  1 00:00:01","a":1,"b":2}"#;
        let mut messages = Messages::default();
        messages.push(1, Some(1_735_689_600_000), None, payload, Vec::new());
        messages.push(2, None, None, payload, Vec::new());
        let decoded = json(&records_read).decode(&lane(), &messages).unwrap();
        let expected = record("m", 1_735_689_601, 1, &[Some(1.0), Some(2.0)]);
        assert_eq!(records(&decoded), [expected]);
        assert_eq!(
            reasons(&decoded),
            [(2, "message timestamp: expected a time to tell the year by, found none")]
        );
    }

    #[test]
    fn values_out_of_bounds_are_missing_and_counted() {
        let bounded = |records: Records| {
            let bounds = Channel { min: Some(0.0), max: Some(10.0), ..Channel::default() };
            Records { channel: [("a".to_owned(), bounds)].into(), ..records }
        };
        let decoded = json(&bounded(wide()))
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","ts":1,"a":-0.1,"b":-1}"#,
                    r#"{"machine":"m","ts":2,"a":10,"b":11}"#,
                    r#"{"machine":"m","ts":3,"a":1e30,"b":11}"#,
                ]),
            )
            .unwrap();
        let channels: Vec<_> = records(&decoded).into_iter().map(|record| record.3).collect();
        assert_eq!(
            channels,
            [vec![None, Some(-1.0)], vec![Some(10.0), Some(11.0)], vec![None, Some(11.0)]]
        );
        assert_eq!(decoded.out_of_range, 2);
        let rows = messages(&[r#"{"machine":"m","ts":1,"code":"a","value":99}"#]);
        assert_eq!(json(&bounded(long())).decode(&lane(), &rows).unwrap().out_of_range, 1);
    }

    #[test]
    fn a_channel_may_come_from_another_field_or_by_other_codes() {
        let named = |channel: Channel, records: Records| Records {
            channel: [("a".to_owned(), channel)].into(),
            ..records
        };
        let field = Channel { field: Some("body.temp".into()), ..Channel::default() };
        let payload = messages(&[r#"{"machine":"m","ts":1,"body":{"temp":3},"a":1}"#]);
        let decoded = json(&named(field, wide())).decode(&lane(), &payload).unwrap();
        assert_eq!(records(&decoded), [record("m", 1, 100, &[Some(3.0), None])]);

        let codes = Channel { codes: vec!["8310-5".into(), "T".into()], ..Channel::default() };
        let decoded = json(&named(codes, long()))
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","ts":1,"code":"8310-5","value":1}"#,
                    r#"{"machine":"m","ts":2,"code":"T","value":2}"#,
                    r#"{"machine":"m","ts":3,"code":"a","value":3}"#,
                ]),
            )
            .unwrap();
        let values: Vec<_> = records(&decoded).into_iter().map(|record| record.3[0]).collect();
        assert_eq!((values, decoded.skipped), (vec![Some(1.0), Some(2.0)], 1));
    }

    #[test]
    fn groups_of_channels_become_records_of_their_own() {
        let records_read = Records {
            channels: ["a", "b", "c"].map(str::to_owned).to_vec(),
            groups: Some(Groups::Of(2)),
            ..wide()
        };
        let decoded = json(&records_read)
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","ts":1,"a":1,"b":2,"c":3}"#,
                    r#"{"machine":"m","ts":2,"c":4}"#,
                    r#"{"machine":"m","ts":3,"a":"x"}"#,
                ]),
            )
            .unwrap();
        assert_eq!(
            records(&decoded),
            [
                record("m/0", 1, 100, &[Some(1.0), Some(2.0)]),
                record("m/1", 1, 100, &[Some(3.0), None]),
                record("m/1", 2, 101, &[Some(4.0), None]),
            ]
        );
        assert_eq!(decoded.dead_letters.len(), 1);
    }

    #[test]
    fn lines_keep_their_text_and_severity() {
        let lines = Records {
            layout: Layout::Log,
            channels: Vec::new(),
            severity: Some("level".into()),
            ..wide()
        };
        let decoded = json(&lines)
            .decode(
                &lane(),
                &messages(&[
                    r#"{"machine":"m","ts":1,"level":"WARN","message":"disk is full"}"#,
                    r#"{"machine":"m","ts":2,"level":6,"message":"17"}"#,
                    r#"{"machine":"m","ts":3,"level":"odd","message":""}"#,
                    r#"{"machine":"m","ts":4,"level":"info"}"#,
                ]),
            )
            .unwrap();
        let batch = &decoded.records;
        assert_eq!(batch.schema(), log_schema());
        let texts = batch.column(MESSAGE_COLUMN).as_string::<i32>();
        assert_eq!(texts.iter().flatten().collect::<Vec<_>>(), ["disk is full", "17", ""]);
        let severities = batch.column(SEVERITY_COLUMN).as_primitive::<Float32Type>();
        assert_eq!(severities.iter().collect::<Vec<_>>(), [Some(3.0), Some(1.0), None]);
        let found =
            "field \"message\": expected text, found the fields \"machine\", \"ts\", \"level\"";
        assert_eq!(reasons(&decoded), [(103, found)]);
    }

    #[test]
    fn csv_rows_become_records_and_bad_ones_dead_letters() {
        let mut decoder = csv(&wide(), &["ts", "note", "b", "machine", "a"]);
        let payloads: [&[u8]; 12] = [
            b"1,x,2.5,m,1",
            b"1970-01-01 00:00:02,\"a \"\"quoted\"\"\nnote, long\",,m, 4 \r\n",
            b"3,x,1,m",
            b"3,x,1,m,2,3",
            b"3,\xff,1,m,2",
            b"3,\"x,1,m,2",
            b"3,x,1,m,2\n3,x,1,m,2",
            b"",
            b"3,x,1,,2",
            b"3,x,low,m,2",
            b"3,\xc3,1,m\xa9,2",
            b"4,x,NaN,m,5",
        ];
        for _ in 0..2 {
            let decoded = decoder.decode(&lane(), &messages(&payloads)).unwrap();
            assert_eq!(
                records(&decoded),
                [
                    record("m", 1, 100, &[Some(1.0), Some(2.5)]),
                    record("m", 2, 101, &[Some(4.0), None]),
                    record("m", 4, 111, &[Some(5.0), None]),
                ]
            );
            let columns = "expected 5 columns (\"ts\", \"note\", \"b\", \"machine\", \"a\")";
            assert_eq!(
                reasons(&decoded),
                [
                    (102, format!("{columns}: found 4").as_str()),
                    (103, format!("{columns}: found 6").as_str()),
                    (104, "expected a row, found text that is not UTF-8"),
                    (105, "expected a row, found a quote that is not closed"),
                    (106, "expected one row, found more than one"),
                    (107, "expected a row, found an empty message"),
                    (108, "field \"machine\": expected a key, as text or a number, found null"),
                    (109, "field \"b\": expected a number, found \"low\""),
                    (110, "expected a row, found text that is not UTF-8"),
                ]
            );
        }
    }

    #[test]
    fn a_quote_left_open_behind_a_row_does_not_swallow_the_next_message() {
        let decoded = csv(&wide(), &["machine", "ts", "a"])
            .decode(&lane(), &messages(&["m,1,1", "m,2,2\nm,3,\"4", "m,5,5", "m,6,\"6\"", "m,7,7"]))
            .unwrap();
        let offsets: Vec<i64> = records(&decoded).iter().map(|record| record.2).collect();
        assert_eq!(offsets, [100, 102, 103, 104]);
        assert_eq!(reasons(&decoded), [(101, "expected a row, found a quote that is not closed")]);
    }

    #[test]
    fn a_channel_that_csv_does_not_have_is_missing() {
        let decoded =
            csv(&wide(), &["machine", "ts", "b"]).decode(&lane(), &messages(&["m,1,2"])).unwrap();
        assert_eq!(records(&decoded), [record("m", 1, 100, &[None, Some(2.0)])]);
    }

    #[test]
    fn settings_that_no_record_could_satisfy_are_refused() {
        let error = |records: &Records, format, columns: &[&str], delimiter| {
            let columns = columns.iter().map(|name| (*name).to_owned()).collect();
            let csv = config::Csv { delimiter, columns };
            let format = Some(format);
            let decoder = Decoder::new(records, &Encoding { format, csv, ..Encoding::default() });
            decoder.err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(
            error(&wide(), Format::Csv, &["machine", "a"], ','),
            "records.time: expected \"ts\" among the columns, found \"machine\", \"a\""
        );
        assert_eq!(
            error(&wide(), Format::Csv, &["ts", "a"], ','),
            "records.key: expected \"machine\" among the columns, found \"ts\", \"a\""
        );
        assert_eq!(
            error(&wide(), Format::Csv, &["machine", "ts"], ','),
            "records.channels: expected \"a\", \"b\" among the columns, found \"machine\", \"ts\""
        );
        assert_eq!(
            error(&long(), Format::Csv, &["machine", "ts", "code"], ','),
            "records.value: expected \"value\" among the columns, found \"machine\", \"ts\", \
             \"code\""
        );
        assert!(error(&wide(), Format::Csv, &[], ',').starts_with("source.csv.columns: "));
        assert!(error(&wide(), Format::Csv, &["ts"], 'é').starts_with("source.csv.delimiter: "));
        assert!(error(&wide(), Format::Parquet, &[], ',').starts_with("source.format: "));
        let twice = Records { key: Some("ts".into()), ..wide() };
        assert_eq!(error(&twice, Format::Json, &[], ','), "records: field \"ts\" is named twice");
    }

    proptest! {
        #[test]
        fn every_message_becomes_a_record_or_a_dead_letter(
            payloads in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    "[\\[\\]{}\",:0-9truenl\\\\ .eE-]{0,40}".prop_map(String::into_bytes),
                    (0..100_i64, any::<f32>()).prop_map(|(time, a)| {
                        format!(r#"{{"machine":"m","ts":{time},"a":"{a}"}}"#).into_bytes()
                    }),
                ],
                0..40,
            ),
        ) {
            let messages = messages(&payloads);
            for mut decoder in [json(&wide()), csv(&wide(), &["machine", "ts", "a"])] {
                let decoded = decoder.decode(&lane(), &messages).unwrap();
                let mut offsets: Vec<i64> = records(&decoded).iter().map(|r| r.2).collect();
                prop_assert!(offsets.is_sorted());
                prop_assert!(decoded.dead_letters.is_sorted_by_key(|letter| letter.offset));
                offsets.extend(decoded.dead_letters.iter().map(|letter| letter.offset));
                offsets.sort_unstable();
                let all: Vec<i64> = (100..).take(payloads.len()).collect();
                prop_assert_eq!(offsets, all);
            }
        }

        #[test]
        fn a_message_fares_the_same_alone_and_in_a_batch(
            payloads in prop::collection::vec(
                prop_oneof![
                    "[\\[\\]{}\",:0-9 -]{0,12}",
                    (0..100_i64, -9..9_i32).prop_map(|(time, a)| {
                        format!(r#"{{"machine":"m","ts":{time},"a":{a}}}"#)
                    }),
                ],
                1..20,
            ),
        ) {
            let mut decoder = json(&wide());
            let together = decoder.decode(&lane(), &messages(&payloads)).unwrap();
            let mut apart = Vec::new();
            let mut letters = Vec::new();
            for (offset, payload) in (100..).zip(&payloads) {
                let mut one = Messages::default();
                one.push(offset, None, None, payload.as_bytes(), Vec::new());
                let decoded = json(&wide()).decode(&lane(), &one).unwrap();
                apart.extend(records(&decoded));
                letters.extend(decoded.dead_letters);
            }
            prop_assert_eq!(records(&together), apart);
            prop_assert_eq!(together.dead_letters, letters);
        }
    }
}
