//! Plain JSON, read without a tape.
//!
//! Nearly every message is one object whose fields of interest are numbers and strings without
//! escapes, in the same order as in the message before. [`Plain`] walks through it once, guessing
//! each name by that order; what a field holds is borrowed from the message. What nobody asked for
//! and is no plain number or string, `serde_json` passes over. All else, a record that is refused
//! included, is left to the reader that knows what to say of it: see [`super::Json`].

use rustc_hash::FxHashMap;
use serde::de::IgnoredAny;

use super::UNCHECKED_BYTES;
use crate::config::Envelope;
use crate::decode::columns::{Cell, Row, RowBuilder, RowRules};

/// Reads messages that are plain.
pub(super) struct Plain {
    /// Fields by their names.
    fields: FxHashMap<String, usize>,
}

/// A record on its way from a message to a row.
pub(super) struct PlainRow<'m> {
    /// Per field of [`RowRules::fields`].
    cells: Vec<Cell<'m>>,
    /// Names as they followed each other, and their fields, where anybody asked for them.
    order: Vec<(&'m str, Option<usize>)>,
}

impl Plain {
    /// `None` where no message is read so: where records lie in envelopes or fields in each other.
    pub fn new(rules: &RowRules, envelope: Envelope) -> Option<Self> {
        if envelope != Envelope::None || rules.fields().iter().any(|name| name.contains('.')) {
            return None;
        }
        Some(Self { fields: rules.fields().iter().cloned().zip(0..).collect() })
    }

    /// Room for one record after the other.
    pub fn row<'m>(&self) -> PlainRow<'m> {
        PlainRow { cells: vec![Cell::Absent; self.fields.len()], order: Vec::new() }
    }

    /// Adds the record in `payload` to `rows`; returns `false`, adding nothing, where it is not plain
    /// or would be refused.
    pub fn read<'m>(
        &self,
        payload: &'m [u8],
        row: &mut PlainRow<'m>,
        rows: &mut RowBuilder<'_>,
    ) -> bool {
        if payload.len() > UNCHECKED_BYTES {
            return false;
        }
        let Ok(text) = std::str::from_utf8(payload) else { return false };
        row.cells.fill(Cell::Absent);
        Walk { text, at: 0 }.object(&self.fields, row).is_some() && rows.push_unless_fault(row)
    }
}

impl Row for PlainRow<'_> {
    fn cell(&self, field: usize) -> Cell<'_> {
        self.cells[field]
    }

    /// Nobody is told: what would be refused is read again.
    fn found(&self) -> String {
        String::new()
    }
}

/// A walk through a message; `None` is what it returns where the message ceases to be plain.
struct Walk<'m> {
    text: &'m str,
    at: usize,
}

impl<'m> Walk<'m> {
    /// All of the message: one object, of which the last of several fields of one name counts.
    fn object(mut self, fields: &FxHashMap<String, usize>, row: &mut PlainRow<'m>) -> Option<()> {
        self.space();
        self.take(b'{')?;
        self.space();
        if self.take(b'}').is_none() {
            for place in 0.. {
                let field = self.name(fields, &mut row.order, place)?;
                self.space();
                self.take(b':')?;
                self.space();
                let cell = self.value(field.is_some())?;
                if let Some(field) = field {
                    row.cells[field] = cell;
                }
                self.space();
                if self.take(b',').is_none() {
                    break;
                }
                self.space();
            }
            self.take(b'}')?;
        }
        self.space();
        (self.at == self.text.len()).then_some(())
    }

    /// A name, the one at `place`: its field, if anybody asked for it.
    fn name(
        &mut self,
        fields: &FxHashMap<String, usize>,
        order: &mut Vec<(&'m str, Option<usize>)>,
        place: usize,
    ) -> Option<Option<usize>> {
        self.take(b'"')?;
        let left = &self.text.as_bytes()[self.at..];
        if let Some((name, field)) = order.get(place)
            && left.get(name.len()) == Some(&b'"')
            && left.starts_with(name.as_bytes())
        {
            self.at += name.len() + 1;
            return Some(*field);
        }
        let name = self.rest_of_string()?;
        let field = fields.get(name).copied();
        match order.get_mut(place) {
            Some(known) => *known = (name, field),
            None => order.push((name, field)),
        }
        Some(field)
    }

    /// A value; one that is not `wanted` may be of any kind and hold escapes.
    fn value(&mut self, is_wanted: bool) -> Option<Cell<'m>> {
        let start = self.at;
        match self.peek()? {
            b'"' => {
                self.at += 1;
                match self.rest_of_string() {
                    Some(text) => return Some(Cell::Text(text)),
                    None if is_wanted => return None,
                    None => self.at = start,
                }
            }
            b'-' | b'0'..=b'9' => {
                let is_part =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let bytes = &self.text.as_bytes()[start..];
                let length = bytes.iter().position(|byte| !is_part(byte)).unwrap_or(bytes.len());
                self.at += length;
                return self.text.get(start..self.at).map(Cell::Number);
            }
            b'n' => return self.word("null").map(|()| Cell::Null),
            b't' => return self.word("true").map(|()| Cell::Other("true")),
            b'f' => return self.word("false").map(|()| Cell::Other("false")),
            b'{' | b'[' => {}
            _ => return None,
        }
        let rest = self.text.get(start..)?;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        self.at += values.byte_offset();
        // It does not see that half of a surrogate pair is missing.
        if self.text.get(start..self.at)?.contains("\\u") {
            return None;
        }
        Some(match rest.as_bytes()[0] {
            b'{' => Cell::Other("an object"),
            b'[' => Cell::Other("a list"),
            _ => Cell::Other("a string"),
        })
    }

    /// What is left of a string without escapes.
    fn rest_of_string(&mut self) -> Option<&'m str> {
        let start = self.at;
        let bytes = &self.text.as_bytes()[start..];
        let length = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
        self.at += length;
        self.take(b'"')?;
        self.text.get(start..start + length)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let found = self.text.as_bytes()[self.at..].starts_with(word.as_bytes());
        self.at += word.len();
        found.then_some(())
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found.then_some(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}
