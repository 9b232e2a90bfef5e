//! Cuts records of many channels into one record per group of them.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float32Builder, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{Float32Type, Int64Type, TimestampMicrosecondType};

use super::{FIRST_CHANNEL_COLUMN, KEY_COLUMN, OFFSET_COLUMN, TIME_COLUMN, records_schema};
use crate::config::Inputs;

/// The records of each group under the key `KEY/GROUP`, its channels first, in columns named `0`,
/// `1`, …; a group of which a record says nothing gets none. Without groups, the records as they
/// are.
pub(super) fn split(records: RecordBatch, inputs: &Inputs) -> RecordBatch {
    if inputs.groups().iter().all(|group| group.name.is_none()) {
        return records;
    }
    let names: Vec<String> = (0..inputs.observed()).map(|channel| channel.to_string()).collect();
    let schema = records.schema();
    let column = |name: &String| {
        let at = schema.fields()[FIRST_CHANNEL_COLUMN..].iter().position(|f| f.name() == name)?;
        Some(records.column(FIRST_CHANNEL_COLUMN + at).as_primitive::<Float32Type>())
    };
    let groups: Vec<_> = inputs
        .groups()
        .iter()
        .map(|group| (group, group.channels.iter().filter_map(column).collect::<Vec<_>>()))
        .collect();

    let keys = records.column(KEY_COLUMN).as_string::<i32>();
    let times = records.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
    let offsets = records.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
    let (mut key_out, mut key) = (StringBuilder::new(), String::new());
    let mut time_out = TimestampMicrosecondBuilder::new();
    let mut offset_out = Int64Builder::new();
    let mut channels_out: Vec<Float32Builder> =
        names.iter().map(|_| Float32Builder::new()).collect();
    for row in 0..records.num_rows() {
        for (group, columns) in &groups {
            if columns.iter().all(|column| column.is_null(row)) {
                continue;
            }
            key.clear();
            // Writing to text cannot fail.
            let _ = write!(key, "{}/{}", keys.value(row), group.name.as_deref().unwrap_or(""));
            key_out.append_value(&key);
            time_out.append_value(times.value(row));
            offset_out.append_value(offsets.value(row));
            for (at, out) in channels_out.iter_mut().enumerate() {
                let value = columns.get(at).filter(|column| column.is_valid(row));
                out.append_option(value.map(|column| column.value(row)));
            }
        }
    }
    let mut out: Vec<ArrayRef> = vec![
        Arc::new(key_out.finish()),
        Arc::new(time_out.finish().with_timezone("UTC")),
        Arc::new(offset_out.finish()),
    ];
    out.extend(channels_out.iter_mut().map(|channel| Arc::new(channel.finish()) as ArrayRef));
    RecordBatch::try_new(records_schema(&names), out).expect("columns of one length")
}
