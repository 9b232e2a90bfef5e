//! Rows of a sample as columns of plain values, whatever format they came in.

use std::fmt;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, TimeUnit, TimestampMicrosecondType};
use rustc_hash::FxHashMap;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Rows that a sample keeps; more tell nothing new.
pub(super) const MOST_ROWS: usize = 50_000;
/// Fields that a sample keeps.
const MOST_FIELDS: usize = 4_096;
/// A list of more elements is data of its own, not fields of a record.
const LONGEST_LIST: usize = 32;
/// Words that stand for a missing value in text.
const MISSING: [&str; 7] = ["", "null", "NULL", "NA", "N/A", "NaN", "nan"];

/// The value of one field of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Missing.
    Null,
    Boolean(bool),
    Number(f64),
    Text(String),
    /// An instant, microseconds since the epoch.
    Instant(i64),
}

impl Value {
    /// Text as it is in files that know nothing but text.
    pub fn of_text(text: &str) -> Self {
        if MISSING.contains(&text.trim()) { Self::Null } else { Self::Text(text.to_owned()) }
    }

    /// The number that it is, or that it spells.
    pub fn number(&self) -> Option<f64> {
        let number = match self {
            Self::Number(number) => *number,
            Self::Text(text) => text.trim().parse().ok()?,
            Self::Null | Self::Boolean(_) | Self::Instant(_) => return None,
        };
        number.is_finite().then_some(number)
    }

    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Boolean(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(text) => f.write_str(text),
            Self::Instant(micros) => micros.fmt(f),
        }
    }
}

/// Where a row came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The piece of the sample: a file, or a partition.
    pub piece: usize,
    /// Key of the Kafka message.
    pub key: Option<String>,
    /// Timestamp of the Kafka message, milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
}

/// Rows with the same fields in the same places. Fields within others are named by their path.
#[derive(Clone, Debug, Default)]
pub struct Table {
    fields: Vec<String>,
    places: FxHashMap<String, usize>,
    columns: Vec<Vec<Value>>,
    origins: Vec<Origin>,
}

impl Table {
    pub fn len(&self) -> usize {
        self.origins.len()
    }

    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= MOST_ROWS
    }

    /// Names, in the order in which they were first seen.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// The values of the field at `place`, one per row.
    pub fn column(&self, place: usize) -> &[Value] {
        &self.columns[place]
    }

    pub fn place(&self, field: &str) -> Option<usize> {
        self.places.get(field).copied()
    }

    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Adds a row; fields that it has not are missing.
    pub fn push(&mut self, row: impl IntoIterator<Item = (String, Value)>, origin: Origin) {
        for (field, value) in row {
            let place = match self.places.get(&field) {
                Some(place) => *place,
                None if self.fields.len() >= MOST_FIELDS => continue,
                None => {
                    self.places.insert(field.clone(), self.fields.len());
                    self.fields.push(field);
                    self.columns.push(vec![Value::Null; self.origins.len()]);
                    self.fields.len() - 1
                }
            };
            let column = &mut self.columns[place];
            // Of a field that appears twice, the last one counts.
            column.truncate(self.origins.len());
            column.push(value);
        }
        self.origins.push(origin);
        for column in &mut self.columns {
            column.resize(self.origins.len(), Value::Null);
        }
    }

    /// Adds the rows of a batch, up to `MOST_ROWS` in all.
    pub fn push_batch(&mut self, batch: &RecordBatch, piece: usize) {
        let mut columns = Vec::new();
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            flatten_column(field.name().clone(), column, &mut columns);
        }
        for row in 0..batch.num_rows().min(MOST_ROWS.saturating_sub(self.len())) {
            let values = columns.iter().map(|(name, column)| (name.clone(), column[row].clone()));
            self.push(values, Origin { piece, ..Origin::default() });
        }
    }

    /// A table of one piece.
    #[cfg(test)]
    pub fn of(fields: &[&str], rows: &[Vec<Value>]) -> Self {
        let mut table = Self::default();
        for row in rows {
            let names = fields.iter().map(|name| (*name).to_owned());
            table.push(names.zip(row.iter().cloned()), Origin::default());
        }
        table
    }
}

/// The columns that a record can be made of, structures by the paths of their fields.
fn flatten_column(name: String, column: &ArrayRef, out: &mut Vec<(String, Vec<Value>)>) {
    if let DataType::Struct(_) = column.data_type() {
        let fields = column.as_struct();
        for (field, inner) in fields.fields().iter().zip(fields.columns()) {
            flatten_column(format!("{name}.{}", field.name()), inner, out);
        }
        return;
    }
    if let Some(values) = values_of(column) {
        out.push((name, values));
    }
}

/// `None` for what is neither text, a number nor a time.
fn values_of(column: &ArrayRef) -> Option<Vec<Value>> {
    let rows = 0..column.len();
    let present = |row: usize, value: &dyn Fn(usize) -> Value| {
        if column.is_null(row) { Value::Null } else { value(row) }
    };
    Some(match column.data_type() {
        DataType::Boolean => {
            let values = column.as_boolean();
            rows.map(|row| present(row, &|row| Value::Boolean(values.value(row)))).collect()
        }
        kind if kind.is_numeric() => {
            let values = cast(column, &DataType::Float64).ok()?;
            let values = values.as_primitive::<Float64Type>();
            let number = |row: usize| Some(values.value(row)).filter(|value| value.is_finite());
            rows.map(|row| present(row, &|row| number(row).map_or(Value::Null, Value::Number)))
                .collect()
        }
        DataType::Timestamp(_, _) | DataType::Date32 | DataType::Date64 => {
            let values = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None)).ok()?;
            let values = values.as_primitive::<TimestampMicrosecondType>();
            rows.map(|row| present(row, &|row| Value::Instant(values.value(row)))).collect()
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(_, _) => {
            let values = cast(column, &DataType::Utf8).ok()?;
            let values = values.as_string::<i32>();
            rows.map(|row| present(row, &|row| Value::of_text(values.value(row)))).collect()
        }
        _ => return None,
    })
}

/// The fields of a JSON object, those within others by their path.
///
/// # Errors
/// If the text is no JSON object.
pub fn json_row(text: &str) -> Result<Vec<(String, Value)>, serde_json::Error> {
    let mut row = Vec::new();
    let mut json = serde_json::Deserializer::from_str(text);
    Flatten { path: String::new(), row: &mut row }.deserialize(&mut json)?;
    json.end()?;
    Ok(row)
}

/// Reads a value of JSON into the fields of a row, in the order of the text.
struct Flatten<'a> {
    path: String,
    row: &'a mut Vec<(String, Value)>,
}

impl Flatten<'_> {
    fn below(&mut self, name: &str) -> Flatten<'_> {
        let path =
            if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Flatten { path, row: self.row }
    }

    fn leaf<E: serde::de::Error>(self, value: Value) -> Result<(), E> {
        if self.path.is_empty() {
            return Err(E::custom("expected an object"));
        }
        self.row.push((self.path, value));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Flatten<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flatten<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.leaf(Value::Boolean(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.leaf(Value::Number(value as f64))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.leaf(Value::Number(value as f64))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.leaf(Value::Number(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.leaf(Value::of_text(value))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.leaf(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        if self.path.is_empty() {
            return Err(serde::de::Error::custom("expected an object, found a list"));
        }
        let before = self.row.len();
        let mut index = 0;
        while elements.next_element_seed(self.below(&index.to_string()))?.is_some() {
            index += 1;
        }
        if index > LONGEST_LIST {
            self.row.truncate(before);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        while let Some(name) = fields.next_key::<String>()? {
            fields.next_value_seed(self.below(&name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray, StructArray, TimestampMillisecondArray};
    use arrow::datatypes::Field;

    use super::*;

    fn number(value: f64) -> Value {
        Value::Number(value)
    }

    #[test]
    fn nested_fields_are_named_by_their_path_in_the_order_of_the_text() {
        let row = json_row(r#"{"b":{"z":1,"a":[2,"x"]},"a":null,"c":true}"#).unwrap();
        let expected = [
            ("b.z", number(1.0)),
            ("b.a.0", number(2.0)),
            ("b.a.1", Value::Text("x".into())),
            ("a", Value::Null),
            ("c", Value::Boolean(true)),
        ];
        assert_eq!(row, expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn what_is_no_object_is_refused_and_long_lists_are_left_out() {
        for text in ["[1]", "3", "", "{", "{} {}"] {
            assert!(json_row(text).is_err(), "{text}");
        }
        assert!(json_row(&format!("{}{}", "[".repeat(9999), "]".repeat(9999))).is_err());
        let long = format!("{{\"wave\":[{}0],\"v\":1}}", "0,".repeat(40));
        assert_eq!(json_row(&long).unwrap(), [("v".to_owned(), number(1.0))]);
    }

    #[test]
    fn rows_without_a_field_have_it_missing() {
        let mut table = Table::default();
        table.push([("a".to_owned(), number(1.0))], Origin::default());
        table.push([("b".to_owned(), number(2.0))], Origin::default());
        assert_eq!(table.fields(), ["a", "b"]);
        assert_eq!(table.column(0), [number(1.0), Value::Null]);
        assert_eq!(table.column(1), [Value::Null, number(2.0)]);
    }

    #[test]
    fn columns_become_values_and_structures_paths() {
        let inner: ArrayRef = Arc::new(Int64Array::from(vec![Some(4), None]));
        let body =
            StructArray::from(vec![(Arc::new(Field::new("temp", DataType::Int64, true)), inner)]);
        let batch = RecordBatch::try_from_iter([
            ("t", Arc::new(TimestampMillisecondArray::from(vec![1, 2])) as ArrayRef),
            ("body", Arc::new(body) as ArrayRef),
            ("name", Arc::new(StringArray::from(vec!["x", "NA"])) as ArrayRef),
        ]);
        let mut table = Table::default();
        table.push_batch(&batch.unwrap(), 0);
        assert_eq!(table.fields(), ["t", "body.temp", "name"]);
        assert_eq!(table.column(0)[1], Value::Instant(2_000));
        assert_eq!(table.column(1), [number(4.0), Value::Null]);
        assert_eq!(table.column(2), [Value::Text("x".into()), Value::Null]);
    }

    #[test]
    fn text_that_spells_a_number_is_one() {
        for (text, expected) in
            [("1.5", Some(1.5)), (" 2 ", Some(2.0)), ("1,5", None), ("inf", None), ("x", None)]
        {
            assert_eq!(Value::of_text(text).number(), expected, "{text}");
        }
    }
}
