//! Records of plain fields, read straight into columns.
//!
//! Most schemas are records of numbers and text. Of such a one a single walk checks each message and
//! takes out what a record of the pipeline needs, where otherwise [`super::shape`] checks it first,
//! `arrow-avro` then makes columns of all fields, and [`super::Columns`] picks some of these. What is
//! not plain, or not whole, or would be refused, is left to those: they say why.

use arrow::array::{Float32Array, StringBuilder};
use serde_json::Value;

use super::shape::Shape;
use crate::decode::columns::{Cell, RowRules, Rows, check_key};

/// How the records of a schema are read.
pub(super) struct Direct {
    /// Per field of the schema, in its order.
    fields: Vec<Field>,
    /// Number of channels.
    channels: usize,
}

struct Field {
    kind: Kind,
    /// The branch that stands for no value, 0 or 1, of a field that may have none.
    null: Option<u8>,
    of: Of,
}

/// What of a record a field is.
#[derive(Clone, Copy)]
enum Of {
    Nothing,
    Key,
    Time,
    Channel(usize),
}

/// How the bytes of a field are read.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    Long,
    /// Microseconds in one unit of it.
    Instant(i64),
    Float,
    Double,
    Text,
    /// A node of the shape.
    Other(usize),
}

/// Reads the messages of one schema into columns.
pub(super) struct Reading<'a> {
    direct: &'a Direct,
    shape: &'a Shape,
    rules: &'a RowRules,
    keys: StringBuilder,
    times: Vec<i64>,
    channels: Vec<Vec<f32>>,
    /// Channel values of the record being read; NaN is missing.
    values: Vec<f32>,
}

impl Direct {
    /// How records of `schema`, which has this shape, are read by `rules`; `None` where a field that
    /// they need is not one of the schema's own, or not plain.
    pub fn new(schema: &str, shape: &Shape, rules: &RowRules) -> Option<Self> {
        let channels = rules.channel_fields()?;
        let schema: Value = serde_json::from_str(schema).ok()?;
        let schemas = schema.get("fields")?.as_array()?;
        let mut found = vec![false; rules.fields().len()];
        let mut fields = Vec::with_capacity(schemas.len());
        for ((name, node), schema) in shape.fields().zip(schemas) {
            let wanted = rules.fields().iter().position(|path| path == name);
            let (plain, null) = nullable(schema.get("type")?);
            let of = match wanted {
                None => Of::Nothing,
                Some(field) if std::mem::replace(&mut found[field], true) => return None,
                Some(field) if Some(field) == rules.key_field() => Of::Key,
                Some(field) if Some(field) == rules.time_field() => Of::Time,
                Some(field) => Of::Channel(field - channels.start),
            };
            let (kind, null) = match (of, plain) {
                (Of::Nothing, Some(kind)) => (kind, null),
                (Of::Nothing, None) => (Kind::Other(node), None),
                (Of::Key, Some(kind @ Kind::Text)) => (kind, null),
                (Of::Time, Some(kind)) => (kind, null),
                (
                    Of::Channel(_),
                    Some(kind @ (Kind::Int | Kind::Long | Kind::Float | Kind::Double)),
                ) => (kind, null),
                _ => return None,
            };
            fields.push(Field { kind, null, of });
        }
        (found.iter().all(|found| *found) && !channels.is_empty())
            .then_some(Self { fields, channels: channels.len() })
    }
}

/// The kind of a plain type, and the branch that is null where it is a union of that and one.
fn nullable(schema: &Value) -> (Option<Kind>, Option<u8>) {
    let is_null = |schema: &Value| {
        let name = schema.as_object().map_or(Some(schema), |object| object.get("type"));
        name.and_then(Value::as_str) == Some("null")
    };
    match schema.as_array().map(Vec::as_slice) {
        Some([null, other]) if is_null(null) => (plain(other), Some(0)),
        Some([other, null]) if is_null(null) => (plain(other), Some(1)),
        _ => (plain(schema), None),
    }
}

fn plain(schema: &Value) -> Option<Kind> {
    if let Some(object) = schema.as_object() {
        let (inner, logical) = (object.get("type")?, object.get("logicalType"));
        return match (inner.as_str(), logical.map(Value::as_str)) {
            (_, None) => plain(inner),
            (Some("long"), Some(Some("timestamp-micros"))) => Some(Kind::Instant(1)),
            (Some("long"), Some(Some("timestamp-millis"))) => Some(Kind::Instant(1000)),
            _ => None,
        };
    }
    match schema.as_str()? {
        "int" => Some(Kind::Int),
        "long" => Some(Kind::Long),
        "float" => Some(Kind::Float),
        "double" => Some(Kind::Double),
        "string" => Some(Kind::Text),
        _ => None,
    }
}

impl<'a> Reading<'a> {
    pub fn new(direct: &'a Direct, shape: &'a Shape, rules: &'a RowRules, rows: usize) -> Self {
        let channel = || Vec::with_capacity(rows);
        Self {
            direct,
            shape,
            rules,
            keys: StringBuilder::with_capacity(rows, 16 * rows),
            times: Vec::with_capacity(rows),
            channels: std::iter::repeat_with(channel).take(direct.channels).collect(),
            values: vec![f32::NAN; direct.channels],
        }
    }

    /// Adds the record that is all of `datum`; returns `None`, adding nothing, where it is not one
    /// that can be read here.
    pub fn push(&mut self, datum: &'a [u8]) -> Option<()> {
        let Self { direct, shape, rules, .. } = *self;
        let mut bytes = Bytes(datum);
        let (mut key, mut time) = (None, None);
        for Field { kind, null, of } in &direct.fields {
            let cell = match null {
                Some(null) => match bytes.branch()? {
                    branch if branch == *null => Cell::Null,
                    _ => bytes.cell(*kind, shape, datum.len())?,
                },
                None => bytes.cell(*kind, shape, datum.len())?,
            };
            match *of {
                Of::Nothing => {}
                Of::Key => key = Some(cell),
                Of::Time => time = Some(rules.times().micros(cell)?),
                Of::Channel(channel) => {
                    self.values[channel] = match cell {
                        Cell::Float(number) => number as f32,
                        Cell::Integer(number) => number as f32,
                        _ => f32::NAN,
                    }
                }
            }
        }
        let key = match key {
            Some(Cell::Text(key)) => Some(key).filter(|key| check_key(key).is_ok()),
            Some(_) => return None,
            None => None,
        };
        if !bytes.0.is_empty() || key.is_some() != rules.has_key() {
            return None;
        }
        key.iter().for_each(|key| self.keys.append_value(key));
        self.times.push(time.unwrap_or(0));
        for (column, value) in self.channels.iter_mut().zip(&self.values) {
            column.push(*value);
        }
        Some(())
    }

    /// The rows, of the `messages` that were read; `None` where one has to be refused after all.
    pub fn finish(mut self, messages: Vec<usize>) -> Option<Rows> {
        let keys = self.rules.has_key().then(|| self.keys.finish());
        let channels =
            self.channels.into_iter().map(|values| Float32Array::new(values.into(), None));
        Rows::of_columns(self.rules, keys.as_ref(), self.times.into(), channels.collect(), messages)
    }
}

/// What is left of a message.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    #[inline]
    fn cell(&mut self, kind: Kind, shape: &'a Shape, length: usize) -> Option<Cell<'a>> {
        Some(match kind {
            Kind::Int => Cell::Integer(i32::try_from(self.long()?).ok()?.into()),
            Kind::Long => Cell::Integer(self.long()?),
            Kind::Instant(micros) => Cell::Instant(self.long()?.checked_mul(micros)?),
            Kind::Float => Cell::Float(f32::from_le_bytes(self.chunk()?).into()),
            Kind::Double => Cell::Float(f64::from_le_bytes(self.chunk()?)),
            Kind::Text => {
                let length = usize::try_from(self.long()?).ok()?;
                let (text, left) = self.0.split_at_checked(length)?;
                self.0 = left;
                Cell::Text(std::str::from_utf8(text).ok()?)
            }
            Kind::Other(node) => {
                self.0 = shape.skip(node, self.0, length)?;
                Cell::Null
            }
        })
    }

    #[inline]
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, left) = self.0.split_first_chunk()?;
        self.0 = left;
        Some(*chunk)
    }

    /// The branch of a union of two.
    #[inline]
    fn branch(&mut self) -> Option<u8> {
        match self.long()? {
            branch @ (0 | 1) => Some(branch as u8),
            _ => None,
        }
    }

    /// A zigzag number of variable length.
    #[inline]
    fn long(&mut self) -> Option<i64> {
        let number = match self.0 {
            [byte @ 0..0x80, left @ ..] => {
                self.0 = left;
                u64::from(*byte)
            }
            _ => self.longer()?,
        };
        Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    /// A number of several bytes, seven bits each, the lowest first: up to eight of them at once.
    #[inline]
    fn longer(&mut self) -> Option<u64> {
        const MORE: u64 = 0x8080_8080_8080_8080;
        if let Some(word) = self.0.first_chunk().copied().map(u64::from_le_bytes)
            && let end = (!word & MORE).trailing_zeros()
            && end < u64::BITS
        {
            self.0 = &self.0[end as usize / 8 + 1..];
            let bits = word & !MORE & (u64::MAX >> (u64::BITS - 1 - end));
            let pairs = (bits & 0x007f_007f_007f_007f) | (bits & 0x7f00_7f00_7f00_7f00) >> 1;
            let fours = (pairs & 0x0000_3fff_0000_3fff) | (pairs & 0x3fff_0000_3fff_0000) >> 2;
            return Some((fours & 0x0fff_ffff) | (fours & 0x0fff_ffff_0000_0000) >> 4);
        }
        let mut number = 0;
        for (at, byte) in self.0.iter().enumerate() {
            // The tenth byte has room for one bit.
            if at == 9 && *byte > 1 {
                return None;
            }
            number |= u64::from(byte & 0x7F) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_of_any_length_are_read_whatever_follows(
            number in any::<i64>(),
            shift in 0..64_u32,
            rest in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            let number = number >> shift;
            let mut left = ((number << 1) ^ (number >> 63)).cast_unsigned();
            let mut bytes = Vec::new();
            while left > 0x7F {
                bytes.push(left as u8 | 0x80);
                left >>= 7;
            }
            bytes.push(left as u8);
            for end in 0..bytes.len() {
                prop_assert_eq!(Bytes(&bytes[..end]).long(), None);
            }
            bytes.extend(&rest);
            let mut read = Bytes(&bytes);
            prop_assert_eq!(read.long(), Some(number));
            prop_assert_eq!(read.0, &rest[..]);
        }
    }

    #[test]
    fn numbers_of_more_than_64_bits_are_refused() {
        let most = [[0xFF; 9].as_slice(), &[1]].concat();
        assert_eq!(Bytes(&most).long(), Some(i64::MIN));
        assert_eq!(Bytes(&[[0xFF; 9].as_slice(), &[2]].concat()).long(), None);
        assert_eq!(Bytes(&[0x80; 12]).long(), None);
    }
}
