//! Columns of Arrow, read as records: the common end of Avro, Arrow IPC and Parquet.
//!
//! A field's name is a path through structs (`body.temperature`), lists (`readings.0.value`) and
//! maps (`tags.site`), through nulls and unions on the way. A column that has the whole name comes
//! first.

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Float32Array, Float64Array, Int64Array,
    MapArray, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, UInt64Array,
    UnionArray,
};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::compute::{cast, take};
use arrow::datatypes::{
    DataType, Field, FieldRef, Float64Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use rustc_hash::FxHashMap;

use super::columns::{Cell, Row, RowRules, Rows, quoted};
use super::time::TimeRule;

/// Length of a UUID, bytes.
const UUID_BYTES: i32 = 16;

/// The columns of a batch that hold the fields of records.
pub(crate) struct Columns {
    /// Per field of [`RowRules::fields`]; `None` where no column holds it.
    fields: Vec<Option<Column>>,
    /// Names of the batch's columns.
    names: Vec<String>,
}

impl Columns {
    /// Finds the fields of `rules` in `batch`.
    ///
    /// # Errors
    /// If a column's values cannot be converted at all; single ones become null.
    pub fn of(rules: &RowRules, batch: &RecordBatch) -> Result<Self, ArrowError> {
        let schema = batch.schema_ref();
        let names = by_name(schema.fields());
        let fields = rules.fields().iter().enumerate().map(|(at, path)| {
            let root = begin(path, |name| names.get(name).copied());
            let Some((root, rest)) = root else { return Ok(None) };
            Column::find(batch.column(root), schema.field(root), rest, rules.is_text(at))
        });
        Ok(Self { fields: fields.collect::<Result<_, _>>()?, names: names_of(schema) })
    }

    /// All rows of the batch, if that can be told of whole columns: channels that hold numbers of one
    /// kind, and nothing to refuse. `messages` says for each row which message it came from.
    pub fn rows(&self, rules: &RowRules, messages: Vec<usize>) -> Option<Rows> {
        let count = messages.len();
        let channels = &self.fields[rules.channel_fields()?];
        if channels.iter().all(Option::is_none) {
            return None;
        }
        let keys = match rules.key_field() {
            Some(field) => Some(self.fields[field].as_ref()?.texts()?),
            None => None,
        };
        let times = match rules.time_field() {
            Some(field) => self.fields[field].as_ref()?.micros(rules.times(), count)?,
            None => vec![0; count].into(),
        };
        let channels = channels.iter().map(|column| match column {
            Some(column) => column.numbers(),
            None => Some(Float32Array::new_null(count)),
        });
        Rows::of_columns(rules, keys, times, channels.collect::<Option<_>>()?, messages)
    }

    /// The row at `row` of the batch.
    pub fn row(&self, row: usize) -> impl Row + '_ {
        ColumnsRow { columns: self, row }
    }
}

/// Names of the columns.
pub(crate) fn names_of(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}

/// Positions of the columns that hold the fields of `rules`, in order.
pub(crate) fn roots_of(rules: &RowRules, schema: &Schema) -> Vec<usize> {
    let names = by_name(schema.fields());
    let find = |name: &str| names.get(name).copied();
    let roots = rules.fields().iter().filter_map(|path| begin(path, find));
    let mut roots: Vec<usize> = roots.map(|(root, _)| root).collect();
    roots.sort_unstable();
    roots.dedup();
    roots
}

/// The type of what `path` leads to; `None` where it leads nowhere.
pub(crate) fn type_at<'a>(schema: &'a Schema, path: &str) -> Option<&'a DataType> {
    let (root, rest) = child_of(schema.fields(), path)?;
    leaf_of(schema.field(root).data_type(), rest)
}

/// Whether a field of a record can be read from values of this type.
pub(crate) fn is_readable(data_type: &DataType) -> bool {
    match data_type {
        DataType::Union(branches, _) => {
            branches.iter().any(|(_, branch)| is_readable(branch.data_type()))
        }
        other => Form::of(other).is_some(),
    }
}

/// Positions by name, of columns that may be thousands; of one name, the first.
fn by_name(fields: &[FieldRef]) -> FxHashMap<&str, usize> {
    fields.iter().enumerate().rev().map(|(at, field)| (field.name().as_str(), at)).collect()
}

/// The field that `path` begins with, and the rest of it.
fn child_of<'p>(fields: &[FieldRef], path: &'p str) -> Option<(usize, Option<&'p str>)> {
    begin(path, |name| fields.iter().position(|field| field.name() == name))
}

/// The name that `path` begins with, as `find` finds it, and the rest of it: the longest counts.
fn begin(path: &str, find: impl Fn(&str) -> Option<usize>) -> Option<(usize, Option<&str>)> {
    if let Some(whole) = find(path) {
        return Some((whole, None));
    }
    path.rmatch_indices('.')
        .find_map(|(dot, _)| Some((find(&path[..dot])?, Some(&path[dot + 1..]))))
}

fn leaf_of<'a>(data_type: &'a DataType, path: Option<&str>) -> Option<&'a DataType> {
    let Some(path) = path else { return Some(data_type) };
    match data_type {
        DataType::Struct(fields) => {
            let (child, rest) = child_of(fields, path)?;
            leaf_of(fields[child].data_type(), rest)
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            let (_, rest) = element_of(path)?;
            leaf_of(item.data_type(), rest)
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else { return None };
            let values = fields.get(1)?.data_type();
            leaf_of(values, entry_of(values, path).1)
        }
        DataType::Union(branches, _) => {
            branches.iter().find_map(|(_, branch)| leaf_of(branch.data_type(), Some(path)))
        }
        _ => None,
    }
}

/// The element of a list that `path` begins with, and the rest of it.
fn element_of(path: &str) -> Option<(usize, Option<&str>)> {
    let (number, rest) = match path.split_once('.') {
        Some((number, rest)) => (number, Some(rest)),
        None => (path, None),
    };
    Some((number.parse().ok()?, rest))
}

/// The key of a map's entry that `path` begins with, and the rest of it. Only where values have
/// parts does a dot end the key.
fn entry_of<'p>(values: &DataType, path: &'p str) -> (&'p str, Option<&'p str>) {
    match path.split_once('.') {
        Some((key, rest)) if values.is_nested() => (key, Some(rest)),
        _ => (path, None),
    }
}

/// A column, wherever in its batch it lies.
struct Column {
    /// Of what it lies in: what is null there is null here.
    within: Option<NullBuffer>,
    values: Values,
}

/// A column in one of the few types that a cell is made from.
enum Values {
    Text(StringArray),
    Integers(Int64Array),
    Singles(Float32Array),
    Floats(Float64Array),
    /// Times without a zone are in UTC.
    Instants(TimestampMicrosecondArray),
    /// Per row one of several columns, by the type that the row has.
    OneOf {
        union: UnionArray,
        branches: Vec<(i8, Option<Column>)>,
    },
    /// Per row the place of its value in a column of those alone that have one.
    At {
        places: Vec<Option<usize>>,
        column: Box<Column>,
    },
    /// Something that no field of a record may hold, in words.
    Other {
        what: &'static str,
        nulls: Option<NullBuffer>,
    },
}

impl Column {
    /// What `path` leads to within `array`, which is a column like `field`.
    fn find(
        array: &ArrayRef,
        field: &Field,
        path: Option<&str>,
        as_text: bool,
    ) -> Result<Option<Self>, ArrowError> {
        if let DataType::Union(fields, _) = array.data_type() {
            let union = array.as_union().clone();
            let branches = fields
                .iter()
                .map(|(id, field)| Ok((id, Self::find(union.child(id), field, path, as_text)?)));
            let branches = branches.collect::<Result<_, ArrowError>>()?;
            return Ok(Some(Self { within: None, values: Values::OneOf { union, branches } }));
        }
        let Some(path) = path else {
            let values = Values::of(array, field, as_text)?;
            return Ok(Some(Self { within: None, values }));
        };
        match array.data_type() {
            DataType::Struct(fields) => {
                let Some((child, rest)) = child_of(fields, path) else { return Ok(None) };
                let parent = array.as_struct();
                let found = Self::find(parent.column(child), &fields[child], rest, as_text)?;
                Ok(found.map(|found| Self {
                    within: NullBuffer::union(parent.nulls(), found.within.as_ref()),
                    ..found
                }))
            }
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                let Some((element, rest)) = element_of(path) else { return Ok(None) };
                let (values, places) = elements(array, element);
                Self::at(values, &places, item, rest, as_text)
            }
            DataType::Map(..) => {
                let map = array.as_map();
                let (key, rest) = entry_of(map.value_type(), path);
                let fields = map.entries().fields();
                Self::at(map.values(), &entries(map, key)?, &fields[1], rest, as_text)
            }
            _ => Ok(None),
        }
    }

    /// What `path` leads to within the values at `places`, one a row.
    fn at(
        values: &ArrayRef,
        places: &[Option<u64>],
        field: &Field,
        path: Option<&str>,
        as_text: bool,
    ) -> Result<Option<Self>, ArrowError> {
        let taken = UInt64Array::from_iter_values(places.iter().flatten().copied());
        let taken = take(values, &taken, None)?;
        let column = Self::find(&taken, field, path, as_text)?;
        let mut next = 0..taken.len();
        let places = places.iter().map(|place| place.and_then(|_| next.next())).collect();
        Ok(column.map(|column| Self {
            within: None,
            values: Values::At { places, column: Box::new(column) },
        }))
    }

    /// All text of a column that lies in nothing that may be null.
    fn texts(&self) -> Option<&StringArray> {
        match &self.values {
            Values::Text(column) if self.within.is_none() => Some(column),
            _ => None,
        }
    }

    /// All of `count` event times, microseconds since the epoch, if each is one.
    fn micros(&self, rule: &TimeRule, count: usize) -> Option<ScalarBuffer<i64>> {
        match &self.values {
            Values::Instants(column) if self.within.is_none() && column.null_count() == 0 => {
                rule.instants(column.values())
            }
            _ => (0..count).map(|row| rule.micros(self.cell(row))).collect(),
        }
    }

    /// All numbers of a column that holds nothing else.
    fn numbers(&self) -> Option<Float32Array> {
        let numbers: Float32Array = match &self.values {
            Values::Singles(column) => column.clone(),
            Values::Floats(column) => column.unary(|number| number as f32),
            Values::Integers(column) => column.unary(|number| number as f32),
            _ => return None,
        };
        if self.within.is_none() {
            return Some(numbers);
        }
        let (_, values, nulls) = numbers.into_parts();
        let nulls = NullBuffer::union(nulls.as_ref(), self.within.as_ref());
        Some(Float32Array::new(values, nulls))
    }

    fn cell(&self, row: usize) -> Cell<'_> {
        if self.within.as_ref().is_some_and(|within| within.is_null(row)) {
            return Cell::Null;
        }
        match &self.values {
            Values::Text(column) if column.is_valid(row) => Cell::Text(column.value(row)),
            Values::Integers(column) if column.is_valid(row) => Cell::Integer(column.value(row)),
            Values::Singles(column) if column.is_valid(row) => {
                Cell::Float(f64::from(column.value(row)))
            }
            Values::Floats(column) if column.is_valid(row) => Cell::Float(column.value(row)),
            Values::Instants(column) if column.is_valid(row) => Cell::Instant(column.value(row)),
            Values::OneOf { union, branches } => {
                let id = union.type_id(row);
                let branch = branches.iter().find(|(branch, _)| *branch == id);
                match branch {
                    Some((_, Some(column))) => column.cell(union.value_offset(row)),
                    _ => Cell::Absent,
                }
            }
            Values::At { places, column } => {
                places[row].map_or(Cell::Null, |place| column.cell(place))
            }
            Values::Other { what, nulls } if nulls.as_ref().is_none_or(|n| n.is_valid(row)) => {
                Cell::Other(what)
            }
            _ => Cell::Null,
        }
    }
}

/// The items of all lists, and among them the place of each row's item number `element`, if its
/// list is that long.
fn elements(array: &ArrayRef, element: usize) -> (&ArrayRef, Vec<Option<u64>>) {
    let at = |row: usize, start: usize, end: usize| {
        (array.is_valid(row) && element < end - start).then_some((start + element) as u64)
    };
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let spans = list.value_offsets().windows(2).enumerate();
            let places = spans.map(|(row, span)| at(row, span[0] as usize, span[1] as usize));
            (list.values(), places.collect())
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let spans = list.value_offsets().windows(2).enumerate();
            let places = spans.map(|(row, span)| at(row, span[0] as usize, span[1] as usize));
            (list.values(), places.collect())
        }
        _ => {
            let list = array.as_fixed_size_list();
            let length = list.value_length() as usize;
            let places = (0..list.len()).map(|row| at(row, row * length, (row + 1) * length));
            (list.values(), places.collect())
        }
    }
}

/// The place of the value under `key` of each row's map, of the last one of several.
fn entries(map: &MapArray, key: &str) -> Result<Vec<Option<u64>>, ArrowError> {
    let keys = cast(map.keys(), &DataType::Utf8)?;
    let keys = keys.as_string::<i32>();
    let spans = map.value_offsets().windows(2).enumerate();
    let places = spans.map(|(row, span)| {
        let mut entries = (span[0] as usize..span[1] as usize).rev();
        let found = entries.find(|at| keys.is_valid(*at) && keys.value(*at) == key);
        found.filter(|_| map.is_valid(row)).map(|at| at as u64)
    });
    Ok(places.collect())
}

/// What a column's values can be read as.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Integers,
    Floats,
    Instants,
    Uuids,
}

impl Form {
    fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Dictionary(_, values) => Self::of(values),
            DataType::Null
            | DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView => Some(Self::Text),
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => Some(Self::Instants),
            DataType::FixedSizeBinary(UUID_BYTES) => Some(Self::Uuids),
            DataType::Boolean => Some(Self::Integers),
            integer if integer.is_integer() => Some(Self::Integers),
            number if number.is_numeric() => Some(Self::Floats),
            _ => None,
        }
    }
}

impl Values {
    /// What does not fit becomes null.
    fn of(column: &ArrayRef, field: &Field, as_text: bool) -> Result<Self, ArrowError> {
        let form = match Form::of(column.data_type()) {
            Some(Form::Uuids) if !is_uuid(field) => None,
            Some(Form::Uuids) => Some(Form::Uuids),
            Some(_) if as_text => Some(Form::Text),
            form => form,
        };
        Ok(match form {
            Some(Form::Integers) => {
                Self::Integers(cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
            }
            Some(Form::Floats) if column.data_type() == &DataType::Float32 => {
                Self::Singles(column.as_primitive().clone())
            }
            Some(Form::Floats) => {
                let floats = cast(column, &DataType::Float64)?;
                Self::Floats(floats.as_primitive::<Float64Type>().clone())
            }
            Some(Form::Instants) => {
                let micros = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
                Self::Instants(micros.as_primitive::<TimestampMicrosecondType>().clone())
            }
            Some(Form::Text) => Self::Text(cast(column, &DataType::Utf8)?.as_string().clone()),
            Some(Form::Uuids) => Self::Text(uuids(column.as_fixed_size_binary())),
            None => {
                Self::Other { what: in_words(column.data_type()), nulls: column.logical_nulls() }
            }
        })
    }
}

/// Whether sixteen bytes are a UUID, by what Avro or Arrow say of them.
fn is_uuid(field: &Field) -> bool {
    let says = |key: &str, word: &str| field.metadata().get(key).is_some_and(|said| said == word);
    says("logicalType", "uuid") || says("ARROW:extension:name", "arrow.uuid")
}

/// As RFC 9562 writes them.
fn uuids(column: &FixedSizeBinaryArray) -> StringArray {
    let mut texts = StringBuilder::with_capacity(column.len(), 36 * column.len());
    for bytes in column {
        let Some(bytes) = bytes else {
            texts.append_null();
            continue;
        };
        let mut text = String::with_capacity(36);
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            for half in [byte >> 4, byte & 0xF] {
                text.extend(char::from_digit(u32::from(half), 16));
            }
        }
        texts.append_value(text);
    }
    texts.finish()
}

fn in_words(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Struct(_) => "a record",
        DataType::Map(..) => "a map",
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => "a list",
        DataType::FixedSizeBinary(_) => "bytes",
        DataType::Time32(_) | DataType::Time64(_) => "a time of day",
        DataType::Duration(_) | DataType::Interval(_) => "a duration",
        _ => "something else",
    }
}

struct ColumnsRow<'a> {
    columns: &'a Columns,
    row: usize,
}

impl Row for ColumnsRow<'_> {
    fn cell(&self, field: usize) -> Cell<'_> {
        self.columns.fields[field].as_ref().map_or(Cell::Absent, |column| column.cell(self.row))
    }

    fn found(&self) -> String {
        quoted(&self.columns.names)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, FixedSizeListArray, Int32Array, LargeListArray, StructArray, UnionArray,
    };
    use arrow::datatypes::{Fields, Int64Type, UnionFields};

    use super::*;
    use crate::config::{Channel, Records};
    use crate::decode::columns::RowBuilder;

    /// The cells of `channel` in each row.
    fn cells(columns: Vec<(&str, ArrayRef)>, channel: &str) -> Vec<String> {
        let records = Records { channels: vec![channel.to_owned()], ..Records::default() };
        let rules = RowRules::new(&records).unwrap();
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        // Whether it is a part of a longer batch makes no difference.
        let columns = Columns::of(&rules, &batch).unwrap();
        let whole = (0..batch.num_rows()).map(|row| columns.row(row).cell(0).to_string());
        let whole: Vec<String> = whole.collect();
        let part = batch.slice(1, batch.num_rows() - 1);
        let columns = Columns::of(&rules, &part).unwrap();
        let rest = (0..part.num_rows()).map(|row| columns.row(row).cell(0).to_string());
        assert_eq!(rest.collect::<Vec<_>>(), whole[1..]);
        assert_eq!(type_at(batch.schema_ref(), channel).is_some(), whole[0] != "nothing");
        whole
    }

    fn numbers(values: &[Option<i64>]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    #[test]
    fn elements_of_lists_of_all_kinds_are_found() {
        let lists = [Some(vec![Some(1), Some(2)]), None, Some(vec![]), Some(vec![Some(3), None])];
        let large = LargeListArray::from_iter_primitive::<Int64Type, _, _>(lists);
        let large: ArrayRef = Arc::new(large);
        assert_eq!(cells(vec![("x", Arc::clone(&large))], "x.0"), ["1", "null", "null", "3"]);
        assert_eq!(cells(vec![("x", Arc::clone(&large))], "x.1"), ["2", "null", "null", "null"]);
        assert_eq!(cells(vec![("x", Arc::clone(&large))], "x.y"), vec!["nothing"; 4]);
        assert_eq!(cells(vec![("x", large)], "x"), ["a list", "null", "a list", "a list"]);

        let pairs = [Some(vec![Some(1), Some(2)]), None, Some(vec![Some(3), Some(4)])];
        let fixed = FixedSizeListArray::from_iter_primitive::<Int64Type, _, _>(pairs, 2);
        let fixed: ArrayRef = Arc::new(fixed);
        assert_eq!(cells(vec![("x", Arc::clone(&fixed))], "x.1"), ["2", "null", "4"]);
        assert_eq!(cells(vec![("x", fixed)], "x.2"), ["null", "null", "null"]);
    }

    #[test]
    fn what_is_null_in_a_struct_is_null_throughout() {
        let fields = Fields::from(vec![Field::new("y", DataType::Int64, true)]);
        let inner = vec![numbers(&[Some(1), Some(2), None])];
        let nulls = Some(NullBuffer::from(vec![true, false, true]));
        let x: ArrayRef = Arc::new(StructArray::new(fields, inner, nulls));
        assert_eq!(cells(vec![("x", x)], "x.y"), ["1", "null", "null"]);
    }

    #[test]
    fn a_column_with_the_whole_name_comes_first() {
        let fields = Fields::from(vec![Field::new("y.z", DataType::Int64, true)]);
        let inner = vec![numbers(&[Some(1), Some(2)])];
        let x: ArrayRef = Arc::new(StructArray::new(fields, inner, None));
        let whole = numbers(&[Some(7), Some(8)]);
        assert_eq!(cells(vec![("x", Arc::clone(&x))], "x.y.z"), ["1", "2"]);
        assert_eq!(cells(vec![("x", x), ("x.y.z", whole)], "x.y.z"), ["7", "8"]);
    }

    #[test]
    fn each_row_of_a_union_has_a_type_of_its_own() {
        let inner = Fields::from(vec![Field::new("y", DataType::Int64, true)]);
        let record: ArrayRef =
            Arc::new(StructArray::new(inner.clone(), vec![numbers(&[Some(5)])], None));
        let plain: ArrayRef = Arc::new(Int32Array::from(vec![Some(6), None]));
        let branches = UnionFields::try_new(
            [3, 5],
            [
                Field::new("record", DataType::Struct(inner), true),
                Field::new("plain", DataType::Int32, true),
            ],
        );
        let union = UnionArray::try_new(
            branches.unwrap(),
            vec![5_i8, 3, 5].into(),
            Some(vec![0, 0, 1].into()),
            vec![record, plain],
        );
        let union: ArrayRef = Arc::new(union.unwrap());
        assert_eq!(cells(vec![("x", Arc::clone(&union))], "x"), ["6", "a record", "null"]);
        let within = Records { channels: vec!["x.y".to_owned()], ..Records::default() };
        let rules = RowRules::new(&within).unwrap();
        let batch = RecordBatch::try_from_iter(vec![("x", union)]).unwrap();
        let columns = Columns::of(&rules, &batch).unwrap();
        let found: Vec<_> = (0..3).map(|row| columns.row(row).cell(0).to_string()).collect();
        assert_eq!(found, ["nothing", "5", "nothing"]);
    }

    #[test]
    fn whole_columns_make_the_rows_that_rows_make_one_by_one() {
        let bounds = Channel { min: Some(-2.0), max: Some(1e9), ..Channel::default() };
        let records = Records {
            key: Some("key".into()),
            time: Some("time".into()),
            channels: ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec(),
            channel: [("b".to_owned(), bounds)].into_iter().collect(),
            ..Records::default()
        };
        let rules = RowRules::new(&records).unwrap();
        let nan = f32::NAN;
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1, -2, 3, 4, 5]));
        let text: ArrayRef = Arc::new(StringArray::from(vec!["m", "n", "m", "o", "p"]));
        let channels: [(&str, ArrayRef); 4] = [
            ("a", Arc::new(Float32Array::from(vec![Some(1.5), None, Some(nan), Some(0.1), None]))),
            ("b", Arc::new(Float64Array::from(vec![0.1, -3.0, 2e9, f64::INFINITY, f64::NAN]))),
            ("c", Arc::new(Int64Array::from(vec![Some(1), None, Some(i64::MAX), Some(-7), None]))),
            ("d", Arc::new(UInt64Array::from(vec![u64::MAX, 1, 2, 3, 4]))),
        ];
        let batch = |key: &ArrayRef, time: &ArrayRef| {
            let head = [("key", Arc::clone(key)), ("time", Arc::clone(time))];
            RecordBatch::try_from_iter(head.into_iter().chain(channels.clone())).unwrap()
        };
        let messages = [3, 3, 4, 4, 9];
        let whole = |batch: &RecordBatch| {
            let columns = Columns::of(&rules, batch).unwrap();
            let whole = columns.rows(&rules, messages[..batch.num_rows()].to_vec())?;
            let out_of_range = rules.take_out_of_range();
            let mut rows = RowBuilder::with_capacity(&rules, 0);
            for (row, message) in messages[..batch.num_rows()].iter().enumerate() {
                rows.of_message(*message);
                rows.push(&columns.row(row));
            }
            let rows = rows.finish();
            assert_eq!(rows.batch, whole.batch);
            assert_eq!(rows.messages, whole.messages);
            assert_eq!(rules.take_out_of_range(), out_of_range);
            Some(out_of_range)
        };
        assert_eq!(whole(&batch(&text, &times)), Some(3));
        assert_eq!(whole(&batch(&text, &times).slice(1, 3)), Some(3));
        let seconds: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4, 1_700_000_000]));
        assert_eq!(whole(&batch(&text, &seconds)), Some(3));

        // What would be refused is not told of whole columns.
        let unknown: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, None, None, None]));
        assert_eq!(whole(&batch(&text, &unknown)), None);
        let far: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX; 5]));
        assert_eq!(whole(&batch(&text, &far)), None);
        let no_key: ArrayRef = Arc::new(StringArray::from(vec!["m", "", "m", "o", "p"]));
        assert_eq!(whole(&batch(&no_key, &times)), None);
        let null: ArrayRef = Arc::new(StringArray::from(vec![Some("m"), None, None, None, None]));
        assert_eq!(whole(&batch(&null, &times)), None);
    }
}
