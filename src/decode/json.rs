//! JSON: one object a message.
//!
//! arrow-json reads the bytes onto its tape; [`RowsDecoder`] takes the place of its struct decoder
//! and reads the fields of `[records]` from the tape into columns, so that a field of the wrong
//! kind costs one record and not the batch. Fields that nobody asked for are ignored; of a field
//! that appears twice, the last one counts. Missing or repeated commas are let through.

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

use super::columns::{Cell, Row, RowBuilder, RowRules, Rows, quoted};
use super::{CHUNK_MESSAGES, Refusal};
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
    rules: Arc<RowRules>,
    decoder: Decoder,
}

impl Json {
    pub fn new(rules: Arc<RowRules>) -> Self {
        Self { decoder: decoder(&rules), rules }
    }

    /// The rows of the messages in `range`, at most [`CHUNK_MESSAGES`] of them, one each.
    pub fn decode(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        let decoded = self.read(messages, range);
        if decoded.is_err() {
            // What it holds is half a record.
            self.decoder = decoder(&self.rules);
        }
        decoded
    }

    fn read(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        for index in range {
            let payload = messages.get(index).payload;
            self.push(payload).map_err(|reason| Refusal { at: Some(index), reason })?;
        }
        let unattributed = |error: ArrowError| Refusal { at: None, reason: message_of(error) };
        match self.decoder.flush().map_err(unattributed)? {
            Some(batch) => Ok(Rows(batch)),
            None => Err(Refusal { at: None, reason: EMPTY.to_owned() }),
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

fn decoder(rules: &Arc<RowRules>) -> Decoder {
    ReaderBuilder::new(Arc::clone(rules.rows_schema()))
        // One more than is ever held: the second value of a message must not go unseen.
        .with_batch_size(CHUNK_MESSAGES + 1)
        .with_decoder_factory(Arc::new(RowsDecoderFactory { rules: Arc::clone(rules) }))
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
}

impl DecoderFactory for RowsDecoderFactory {
    /// Called for the record as a whole; its fields need no decoders of their own.
    fn make_default_decoder(
        &self,
        _ctx: &DecoderContext,
        _field: &FieldRef,
        _is_nullable: bool,
    ) -> Result<Option<Box<dyn ArrayDecoder>>, ArrowError> {
        let by_name = self.rules.fields().iter().cloned().zip(0..).collect();
        let places = vec![ABSENT; self.rules.fields().len()];
        Ok(Some(Box::new(RowsDecoder { rules: Arc::clone(&self.rules), by_name, places })))
    }
}

/// Reads records from the tape.
struct RowsDecoder {
    rules: Arc<RowRules>,
    by_name: FxHashMap<String, usize>,
    /// Where on the tape the current record's fields are.
    places: Vec<u32>,
}

/// The tape's first element is a sentinel that no field can be at.
const ABSENT: u32 = 0;

impl ArrayDecoder for RowsDecoder {
    fn decode(&mut self, tape: &Tape<'_>, pos: &[u32]) -> Result<ArrayRef, ArrowError> {
        let mut rows = RowBuilder::with_capacity(&self.rules, pos.len());
        for &start in pos {
            let TapeElement::StartObject(end) = tape.get(start) else {
                let found = cell_at(tape, start);
                rows.refuse(&format!("expected a JSON object, found {found}"));
                continue;
            };
            self.places.fill(ABSENT);
            for_each_field(tape, start, end, |name, value| {
                if let Some(&field) = self.by_name.get(name) {
                    self.places[field] = value;
                }
            })?;
            rows.push(&TapeRow { tape, start, end, places: &self.places });
        }
        let (fields, columns) = rows.finish();
        Ok(Arc::new(StructArray::try_new(fields, columns, None)?))
    }
}

/// Calls `visit` with the name and the value's place of each field of the object at `start`.
fn for_each_field<'t>(
    tape: &Tape<'t>,
    start: u32,
    end: u32,
    mut visit: impl FnMut(&'t str, u32),
) -> Result<(), ArrowError> {
    let mut at = start + 1;
    while at < end {
        if let TapeElement::String(name) = tape.get(at) {
            visit(tape.get_string(name), at + 1);
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
