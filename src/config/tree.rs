//! A TOML document as a tree whose nodes know where they were written, and its way into types.
//!
//! serde's own TOML errors name neither the key nor, behind a tagged enum, the line; deserialising
//! from this tree keeps both.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use toml::de::{DeTable, DeValue};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the pipeline file, counted from 1.
    Line { file: Arc<str>, line: usize },
    /// A `--set` of the command line.
    Override(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::Override(text) => write!(f, "--set {text}"),
        }
    }
}

/// A value and where it was written; for an entry of a table that is where its key stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime,
    List(Vec<Node>),
    Table(Table),
}

pub(super) type Table = BTreeMap<String, Node>;

/// Text that is not TOML.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub place: Place,
    pub reason: String,
}

/// Parses a document.
pub(super) fn parse(text: &str, file: &str) -> Result<Node, SyntaxError> {
    let file: Arc<str> = file.into();
    let place = |offset: usize| Place::Line {
        file: Arc::clone(&file),
        line: 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count(),
    };
    match DeTable::parse(text) {
        Ok(document) => {
            Ok(Node { place: place(0), value: Value::Table(table(document.into_inner(), &place)?) })
        }
        Err(error) => Err(SyntaxError {
            place: place(error.span().map_or(0, |span| span.start)),
            reason: error.message().to_owned(),
        }),
    }
}

/// Parses one value as TOML; what is not TOML is text.
pub(super) fn parse_value(text: &str, place: &Place) -> Node {
    let parsed = DeValue::parse(text)
        .ok()
        .and_then(|parsed| value(parsed.into_inner(), place.clone(), &|_| place.clone()).ok());
    let value = parsed.unwrap_or_else(|| Value::Text(text.to_owned()));
    Node { place: place.clone(), value }
}

fn table(entries: DeTable<'_>, place: &dyn Fn(usize) -> Place) -> Result<Table, SyntaxError> {
    entries
        .into_iter()
        .map(|(key, entry)| {
            let at = place(key.span().start);
            let value = value(entry.into_inner(), at.clone(), place)?;
            Ok((key.into_inner().into_owned(), Node { place: at, value }))
        })
        .collect()
}

fn value(
    value_read: DeValue<'_>,
    at: Place,
    place: &dyn Fn(usize) -> Place,
) -> Result<Value, SyntaxError> {
    Ok(match value_read {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(error) => {
                return Err(SyntaxError { place: at, reason: format!("{number}: {error}") });
            }
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(error) => {
                return Err(SyntaxError { place: at, reason: format!("{number}: {error}") });
            }
        },
        DeValue::Boolean(flag) => Value::Boolean(flag),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::List(
            items
                .into_iter()
                .map(|item| {
                    let at = place(item.span().start);
                    Ok(Node { place: at.clone(), value: value(item.into_inner(), at, place)? })
                })
                .collect::<Result<_, _>>()?,
        ),
        DeValue::Table(entries) => Value::Table(table(entries, place)?),
    })
}

impl Node {
    /// The place of the key `path`, or of the innermost table around it that was written.
    pub fn place_of(&self, path: &str) -> &Place {
        let inner = match &self.value {
            Value::Table(entries) => entries.iter().find_map(|(name, node)| {
                let rest = path.strip_prefix(name.as_str())?;
                (rest.is_empty() || rest.starts_with(['.', '[']))
                    .then(|| node.place_of(rest.strip_prefix('.').unwrap_or(rest)))
            }),
            Value::List(items) => path.strip_prefix('[').and_then(|path| {
                let (index, rest) = path.split_once(']')?;
                Some(items.get(index.parse::<usize>().ok()?)?.place_of(rest))
            }),
            _ => None,
        };
        inner.unwrap_or(&self.place)
    }

    /// The table at `keys`, if there is one.
    pub fn table_mut(&mut self, keys: &[&str]) -> Option<&mut Table> {
        let Value::Table(entries) = &mut self.value else { return None };
        match keys {
            [] => Some(entries),
            [first, rest @ ..] => entries.get_mut(*first)?.table_mut(rest),
        }
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match &self.value {
            Value::Text(text) => Unexpected::Str(text),
            Value::Integer(number) => Unexpected::Signed(*number),
            Value::Float(number) => Unexpected::Float(*number),
            Value::Boolean(flag) => Unexpected::Bool(*flag),
            Value::Datetime => Unexpected::Other("a date or time"),
            Value::List(_) => Unexpected::Seq,
            Value::Table(_) => Unexpected::Map,
        }
    }
}

/// Why a tree does not fit a type, and at which key.
#[derive(Debug)]
pub(super) struct Misfit {
    /// Key path such as `windows.stride` or `source.topics[1]`.
    pub key: String,
    pub kind: MisfitKind,
}

#[derive(Debug)]
pub(super) enum MisfitKind {
    UnknownKey { valid: &'static [&'static str] },
    Missing,
    UnknownName { found: String, valid: &'static [&'static str] },
    WrongType { expected: String, found: String },
    Invalid { reason: String },
}

impl Misfit {
    fn here(kind: MisfitKind) -> Self {
        Self { key: String::new(), kind }
    }

    /// The same misfit seen from the table or list around it.
    pub fn under(mut self, key: &str) -> Self {
        self.key = join(key, &self.key);
        self
    }
}

/// `outer.inner`, or `outer[i]`.
pub(super) fn join(outer: &str, inner: &str) -> String {
    let dot = if outer.is_empty() || inner.is_empty() || inner.starts_with('[') { "" } else { "." };
    format!("{outer}{dot}{inner}")
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.key, self.kind)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::here(MisfitKind::Invalid { reason: reason.to_string() })
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::here(MisfitKind::WrongType {
            expected: expected_in_words(&expected.to_string()).to_owned(),
            found: found_in_words(found),
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(found: &str, valid: &'static [&'static str]) -> Self {
        Self::here(MisfitKind::UnknownName { found: found.to_owned(), valid })
    }

    fn unknown_field(key: &str, valid: &'static [&'static str]) -> Self {
        Self { key: key.to_owned(), kind: MisfitKind::UnknownKey { valid } }
    }

    fn missing_field(key: &'static str) -> Self {
        Self { key: key.to_owned(), kind: MisfitKind::Missing }
    }
}

/// serde's names of types, as a reader of the pipeline file would put them.
fn expected_in_words(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" => "a whole number, 0 or more",
        "f64" | "f32" => "a number",
        "a string" => "a text in quotes",
        "a boolean" => "true or false",
        "a character" => "one character in quotes",
        "a sequence" => "a list",
        "a map" => "a table",
        other if other.starts_with("struct ") || other.contains("tagged enum") => "a table",
        other => other,
    }
}

fn found_in_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(flag) => flag.to_string(),
        Unexpected::Signed(number) => number.to_string(),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Float(number) => format!("{number:?}"),
        Unexpected::Str(text) => format!("{text:?}"),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.value {
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(flag) => visitor.visit_bool(*flag),
            Value::Datetime => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            Value::Table(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), current: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.value {
            Value::Text(name) => {
                let name: StrDeserializer<'_, Misfit> = name.as_str().into_deserializer();
                visitor.visit_enum(name)
            }
            _ => Err(Misfit::here(MisfitKind::WrongType {
                expected: format!("one of {}", quoted_list(variants)),
                found: found_in_words(self.unexpected()),
            })),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// `"a", "b", "c"`.
pub(super) fn quoted_list(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let key = format!("[{}]", self.index);
        self.index += 1;
        seed.deserialize(item).map(Some).map_err(|misfit| misfit.under(&key))
    }
}

struct Entries<'de> {
    entries: std::collections::btree_map::Iter<'de, String, Node>,
    current: Option<(&'de str, &'de Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Misfit> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        self.current = Some((key, node));
        let key: StrDeserializer<'_, Misfit> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let Some((key, node)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(node).map_err(|misfit| misfit.under(key))
    }
}
