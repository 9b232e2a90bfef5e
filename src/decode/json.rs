//! JSON: one object a message.
//!
//! [`Plain`] reads what is plain, which is nearly everything. All else goes to arrow-json, which
//! reads the bytes onto its tape; [`RowsDecoder`] takes the place of its struct decoder and reads
//! the fields of `[records]` from the tape into columns, so that a field of the wrong kind costs one
//! record and not the batch. Fields that nobody asked for are ignored; of a field that appears
//! twice, the last one counts. Missing or repeated commas are let through.
//!
//! A field whose name has dots is looked for by the whole name, then as a path into objects and
//! lists.

mod plain;

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, StructArray};
use arrow::datatypes::FieldRef;
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::{
    ArrayDecoder, Decoder, DecoderContext, DecoderFactory, Tape, TapeElement,
};
use rustc_hash::FxHashMap;

use self::plain::Plain;
use super::columns::{Cell, Row, RowBuilder, RowRules, Rows, quoted};
use super::{CHUNK_MESSAGES, Refusal};
use crate::config::Envelope;
use crate::source::Messages;

/// A message longer than this is checked for its depth before the tape takes it: there, each
/// bracket left open costs sixteen times its size.
const UNCHECKED_BYTES: usize = 1 << 16;
/// Deepest nesting of such a message.
const MAX_DEPTH: usize = 512;
/// Most field names that a reason lists.
const LISTED_FIELDS: usize = 16;

/// Decodes messages that are one JSON object each.
pub(super) struct Json {
    plain: Option<Plain>,
    factory: Arc<RowsDecoderFactory>,
    decoder: Decoder,
}

impl Json {
    pub fn new(rules: Arc<RowRules>, envelope: Envelope) -> Self {
        let plain = Plain::new(&rules, envelope);
        let factory = Arc::new(RowsDecoderFactory { rules, envelope });
        Self { plain, decoder: decoder(&factory), factory }
    }

    /// The rows of the messages in `range`, at most [`CHUNK_MESSAGES`] of them, one each.
    pub fn decode(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        let Some(plain) = self.plain.take() else { return self.decode_any(messages, range) };
        let factory = Arc::clone(&self.factory);
        let mut rows = RowBuilder::with_capacity(&factory.rules, range.len());
        let mut row = plain.row();
        let mut at = range.start;
        // Of messages one after the other that are not plain, ever more go to the tape together.
        let mut together = 1;
        while at < range.end {
            rows.of_message(at);
            if plain.read(messages.get(at).payload, &mut row, &mut rows) {
                at += 1;
                together = 1;
            } else {
                let end = range.end.min(at + together);
                self.add_any(messages, at..end, &mut rows);
                at = end;
                together *= 2;
            }
        }
        self.plain = Some(plain);
        Ok(rows.finish())
    }

    /// Adds a row for each message in `range`, a fault where there is no record.
    fn add_any(&mut self, messages: &Messages, range: Range<usize>, rows: &mut RowBuilder<'_>) {
        match self.decode_any(messages, range.clone()) {
            Ok(decoded) => rows.extend(&decoded),
            Err(Refusal::Message { reason, .. } | Refusal::Unknown { reason })
                if range.len() == 1 =>
            {
                rows.of_message(range.start);
                rows.refuse(&reason);
            }
            // Each bad message alone.
            Err(_) => range.for_each(|at| self.add_any(messages, at..at + 1, rows)),
        }
    }

    /// The rows of messages of which any may not be plain.
    fn decode_any(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        let decoded = self.read(messages, range);
        if decoded.is_err() {
            // What it holds is half a record.
            self.decoder = decoder(&self.factory);
        }
        decoded
    }

    fn read(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        for at in range.clone() {
            let payload = messages.get(at).payload;
            self.push(payload).map_err(|reason| Refusal::Message { at, reason })?;
        }
        let unattributed = |error| Refusal::Unknown { reason: message_of(error) };
        match self.decoder.flush().map_err(unattributed)? {
            Some(batch) => Ok(Rows { batch, messages: range.collect() }),
            None => Err(Refusal::Unknown { reason: EMPTY.to_owned() }),
        }
    }

    fn push(&mut self, payload: &[u8]) -> Result<(), String> {
        if payload.len() > UNCHECKED_BYTES && is_deeper_than(MAX_DEPTH, payload) {
            return Err(format!(
                "expected a JSON object, found one nested deeper than {MAX_DEPTH} levels"
            ));
        }
        let rows = self.decoder.len();
        let read = self.decoder.decode(payload).map_err(message_of)?;
        if self.decoder.has_partial_record() {
            // A bare number ends where something else begins.
            self.decoder.decode(b" ").map_err(message_of)?;
        }
        match self.decoder.len() - rows {
            0 => Err(EMPTY.to_owned()),
            1 if self.decoder.has_partial_record() => {
                Err("expected a JSON object, found its end cut off".to_owned())
            }
            1 if read == payload.len() => Ok(()),
            _ => Err("expected one JSON object, found more behind it".to_owned()),
        }
    }
}

const EMPTY: &str = "expected a JSON object, found an empty message";

fn decoder(factory: &Arc<RowsDecoderFactory>) -> Decoder {
    ReaderBuilder::new(Arc::clone(factory.rules.rows_schema()))
        // One more than is ever held: the second value of a message must not go unseen.
        .with_batch_size(CHUNK_MESSAGES + 1)
        .with_decoder_factory(Arc::clone(factory) as Arc<dyn DecoderFactory>)
        .build_decoder()
        .expect("the factory makes the only decoder there is")
}

fn message_of(error: ArrowError) -> String {
    match error {
        ArrowError::JsonError(reason) => format!("expected a JSON object: {reason}"),
        error => format!("expected a JSON object: {error}"),
    }
}

/// Whether brackets outside strings nest deeper than `depth`.
fn is_deeper_than(depth: usize, json: &[u8]) -> bool {
    let mut open = 0_usize;
    let mut in_string = false;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if in_string => {
                bytes.next();
            }
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => open += 1,
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
        if open > depth {
            return true;
        }
    }
    false
}

#[derive(Debug)]
struct RowsDecoderFactory {
    rules: Arc<RowRules>,
    envelope: Envelope,
}

impl DecoderFactory for RowsDecoderFactory {
    /// Called for the record as a whole; its fields need no decoders of their own.
    fn make_default_decoder(
        &self,
        _ctx: &DecoderContext,
        _field: &FieldRef,
        _is_nullable: bool,
    ) -> Result<Option<Box<dyn ArrayDecoder>>, ArrowError> {
        let mut paths = Paths::default();
        for (field, name) in self.rules.fields().iter().enumerate() {
            paths.insert(name, field);
        }
        Ok(Some(Box::new(RowsDecoder {
            rules: Arc::clone(&self.rules),
            envelope: self.envelope,
            paths,
            places: Vec::new(),
            nested: Vec::new(),
        })))
    }
}

/// Fields by their names, as they lie within each other.
#[derive(Default)]
struct Paths {
    /// The field whose name this is as a whole.
    field: Option<usize>,
    /// The field whose name this is as a path.
    end: Option<usize>,
    within: FxHashMap<String, Paths>,
}

impl Paths {
    fn insert(&mut self, name: &str, field: usize) {
        self.within.entry(name.to_owned()).or_default().field = Some(field);
        if name.contains('.') {
            let mut node = self;
            for part in name.split('.') {
                node = node.within.entry(part.to_owned()).or_default();
            }
            node.end = Some(field);
        }
    }
}

/// Reads records from the tape.
struct RowsDecoder {
    rules: Arc<RowRules>,
    envelope: Envelope,
    paths: Paths,
    /// Where on the tape the current record's fields are, by their whole names and by paths.
    places: Vec<u32>,
    nested: Vec<u32>,
}

/// The tape's first element is a sentinel that no field can be at.
const ABSENT: u32 = 0;

impl ArrayDecoder for RowsDecoder {
    fn decode(&mut self, tape: &Tape<'_>, pos: &[u32]) -> Result<ArrayRef, ArrowError> {
        let mut rows = RowBuilder::with_capacity(&self.rules, pos.len());
        for &start in pos {
            let (start, end) = match within(tape, start, self.envelope)? {
                Ok(record) => record,
                Err(reason) => {
                    rows.refuse(&reason);
                    continue;
                }
            };
            for places in [&mut self.places, &mut self.nested] {
                places.clear();
                places.resize(self.rules.fields().len(), ABSENT);
            }
            for_each_field(tape, start, end, |name, value| {
                let Some(paths) = self.paths.within.get(name) else { return Ok(()) };
                if let Some(field) = paths.field {
                    self.places[field] = value;
                }
                find(tape, value, paths, &mut self.nested)
            })?;
            for (place, nested) in self.places.iter_mut().zip(&self.nested) {
                if *place == ABSENT {
                    *place = *nested;
                }
            }
            rows.push(&TapeRow { tape, start, end, places: &self.places });
        }
        let fields = self.rules.rows_schema().fields().clone();
        let (columns, _) = rows.into_columns();
        Ok(Arc::new(StructArray::try_new(fields, columns, None)?))
    }
}

/// Start and end of the record in the value at `start`, or why there is none.
fn within(
    tape: &Tape<'_>,
    start: u32,
    envelope: Envelope,
) -> Result<Result<(u32, u32), String>, ArrowError> {
    let TapeElement::StartObject(end) = tape.get(start) else {
        return Ok(Err(format!("expected a JSON object, found {}", cell_at(tape, start))));
    };
    if envelope == Envelope::None {
        return Ok(Ok((start, end)));
    }
    let mut payload = ABSENT;
    for_each_field(tape, start, end, |name, value| {
        if name == "payload" {
            payload = value;
        }
        Ok(())
    })?;
    if payload == ABSENT {
        let found = TapeRow { tape, start, end, places: &[] }.found();
        return Ok(Err(format!("expected the record in \"payload\", found the fields {found}")));
    }
    match tape.get(payload) {
        TapeElement::StartObject(end) => Ok(Ok((payload, end))),
        _ => {
            let found = cell_at(tape, payload);
            Ok(Err(format!("field \"payload\": expected a JSON object, found {found}")))
        }
    }
}

/// Notes where the fields that lie within the value at `place` are.
fn find(tape: &Tape<'_>, place: u32, paths: &Paths, nested: &mut [u32]) -> Result<(), ArrowError> {
    if let Some(field) = paths.end {
        nested[field] = place;
    }
    if paths.within.is_empty() {
        return Ok(());
    }
    match tape.get(place) {
        TapeElement::StartObject(end) => for_each_field(tape, place, end, |name, value| {
            paths.within.get(name).map_or(Ok(()), |paths| find(tape, value, paths, nested))
        }),
        TapeElement::StartList(end) => {
            let mut at = place + 1;
            for number in 0_usize.. {
                if at >= end {
                    break;
                }
                if let Some(paths) = paths.within.get(number.to_string().as_str()) {
                    find(tape, at, paths, nested)?;
                }
                at = tape.next(at, "a value")?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Calls `visit` with the name and the value's place of each field of the object at `start`.
fn for_each_field<'t>(
    tape: &Tape<'t>,
    start: u32,
    end: u32,
    mut visit: impl FnMut(&'t str, u32) -> Result<(), ArrowError>,
) -> Result<(), ArrowError> {
    let mut at = start + 1;
    while at < end {
        if let TapeElement::String(name) = tape.get(at) {
            visit(tape.get_string(name), at + 1)?;
        }
        at = tape.next(at + 1, "a value")?;
    }
    Ok(())
}

struct TapeRow<'t> {
    tape: &'t Tape<'t>,
    start: u32,
    end: u32,
    places: &'t [u32],
}

impl Row for TapeRow<'_> {
    fn cell(&self, field: usize) -> Cell<'_> {
        match self.places[field] {
            ABSENT => Cell::Absent,
            place => cell_at(self.tape, place),
        }
    }

    fn found(&self) -> String {
        let mut names = Vec::new();
        let walked = for_each_field(self.tape, self.start, self.end, |name, _| {
            if names.len() < LISTED_FIELDS {
                names.push(name);
            }
            Ok(())
        });
        match walked {
            Ok(()) => quoted(&names),
            Err(error) => error.to_string(),
        }
    }
}

fn cell_at<'t>(tape: &Tape<'t>, place: u32) -> Cell<'t> {
    match tape.get(place) {
        TapeElement::Null => Cell::Null,
        TapeElement::String(text) => Cell::Text(tape.get_string(text)),
        TapeElement::Number(text) => Cell::Number(tape.get_string(text)),
        TapeElement::True => Cell::Other("true"),
        TapeElement::False => Cell::Other("false"),
        TapeElement::StartObject(_) => Cell::Other("an object"),
        TapeElement::StartList(_) => Cell::Other("a list"),
        _ => Cell::Other("something else"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::config::{Channel, Encoding, Layout, Records};
    use crate::decode::{Decoder, FormatDecoder};
    use crate::source::{Lane, Messages};

    fn records(layout: Layout) -> Records {
        let bounds = Channel { min: Some(-5.0), max: Some(5.0), ..Channel::default() };
        Records {
            layout,
            key: Some("machine".into()),
            time: Some("ts".into()),
            channels: vec!["a".into(), "b".into()],
            channel: [("b".to_owned(), bounds)].into_iter().collect(),
            ..Records::default()
        }
    }

    /// Objects, most of them plain and whole.
    fn message() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            8 => prop::sample::select(vec!["machine", "ts", "a", "b", "code", "value", "x"]),
            1 => prop::sample::select(vec![r"\u0061", r"x\n", "", "é"]),
        ];
        let value = prop_oneof![
            8 => prop::sample::select(vec![
                "1", "-2.5", "7", "\"4\"", "null", "1700000000", "\"2024-01-02T03:04:05Z\"",
                "\"a\"", "\"b\"", "0.1", "16777217", "1e-3",
            ]),
            2 => prop::sample::select(vec![
                "true", "false", "{}", r#"[1,{"a":2}]"#, "\"\"", "\"NaN\"", "1e400", "-0", "1E+5",
                "0.1000000014901161193847656251", " 3 ", "\"é\"", "\n5",
            ]),
            1 => prop::sample::select(vec![
                r#""\n""#, r#""\u00e9""#, r#""\ud800""#, r#""\x""#, "01", "1.", ".5", "+1", "NaN",
                "nul", "\"", "[", "}", "\"\t\"", "--1", "-",
            ]),
        ];
        let comma =
            prop_oneof![20 => Just(","), 1 => Just(",,"), 1 => Just(" "), 1 => Just(" ,\t")];
        let field = (name, value, comma).prop_map(|(n, v, c)| format!("\"{n}\":{v}{c}"));
        let head = prop::bool::weighted(0.7).prop_map(|has_head| match has_head {
            true => r#""machine":"m","ts":1700000000,"code":"a","value":2,"#,
            false => "",
        });
        let end = prop_oneof![
            20 => Just("}"), 1 => Just("} \n"), 1 => Just(",}"), 1 => Just("}{}"), 1 => Just("")
        ];
        let begin = prop_oneof![20 => Just("{"), 1 => Just(" {"), 1 => Just("[{"), 1 => Just("")];
        (begin, head, prop::collection::vec(field, 0..5), end).prop_map(
            |(begin, head, fields, end)| {
                let inner = format!("{head}{}", fields.concat());
                format!("{begin}{}{end}", inner.strip_suffix(',').unwrap_or(&inner))
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn what_is_read_without_a_tape_is_what_would_be_read_with_one(
            payloads in prop::collection::vec(message(), 0..12),
            layout in prop::sample::select(vec![Layout::Wide, Layout::Long]),
        ) {
            let mut messages = Messages::default();
            for (offset, payload) in (0..).zip(&payloads) {
                messages.push(offset, None, None, payload.as_bytes(), Vec::new());
            }
            let [with, without] = [true, false].map(|has_plain| {
                let mut decoder = Decoder::new(&records(layout), &Encoding::default()).unwrap();
                let FormatDecoder::Json(json) = &mut decoder.format else { unreachable!() };
                assert!(json.plain.is_some());
                if !has_plain {
                    json.plain = None;
                }
                decoder.decode(&Lane::new("plant", 0), &messages).unwrap()
            });
            prop_assert_eq!(with.records, without.records);
            prop_assert_eq!(with.dead_letters, without.dead_letters);
            prop_assert_eq!(with.skipped, without.skipped);
            prop_assert_eq!(with.out_of_range, without.out_of_range);
        }
    }
}
