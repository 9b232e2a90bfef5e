//! Plain JSON, read without a tape.
//!
//! Nearly every message is one well-formed object whose fields of interest are numbers and strings
//! without escapes. `serde_json` walks through it once, and what a field holds is borrowed from the
//! message. All else, a record that is refused included, is left to the reader that knows what to
//! say of it: see [`super::Json`].

use std::fmt;

use rustc_hash::FxHashMap;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

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
        PlainRow { cells: vec![Cell::Absent; self.fields.len()] }
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
        // Of what it passes over, the walk would not see that half a surrogate pair is missing.
        if text.as_bytes().contains(&b'\\') && text.contains("\\u") {
            return false;
        }
        row.cells.fill(Cell::Absent);
        let mut json = serde_json::Deserializer::from_str(text);
        let record = Record { fields: &self.fields, cells: &mut row.cells };
        json.deserialize_map(record).is_ok() && json.end().is_ok() && rows.push_unless_fault(row)
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

/// The fields of an object, of which the last of one name counts.
struct Record<'a, 'm> {
    fields: &'a FxHashMap<String, usize>,
    cells: &'a mut [Cell<'m>],
}

impl<'m> Visitor<'m> for Record<'_, 'm> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'m>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(field) = object.next_key_seed(Name { fields: self.fields })? {
            match field {
                Some(field) => {
                    self.cells[field] = cell_of(object.next_value::<&RawValue>()?.get())
                        .ok_or_else(|| de::Error::custom("an escape"))?;
                }
                None => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The field of a name, if anybody asked for it.
struct Name<'a> {
    fields: &'a FxHashMap<String, usize>,
}

impl<'m> DeserializeSeed<'m> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'m>>(self, name: D) -> Result<Option<usize>, D::Error> {
        name.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(self.fields.get(name).copied())
    }
}

/// What a well-formed value is to a record; `None` for a string with escapes.
fn cell_of(value: &str) -> Option<Cell<'_>> {
    Some(match value.as_bytes().first()? {
        b'"' => {
            let text = value.get(1..value.len() - 1)?;
            if text.as_bytes().contains(&b'\\') {
                return None;
            }
            Cell::Text(text)
        }
        b'n' => Cell::Null,
        b't' => Cell::Other("true"),
        b'f' => Cell::Other("false"),
        b'{' => Cell::Other("an object"),
        b'[' => Cell::Other("a list"),
        _ => Cell::Number(value),
    })
}
