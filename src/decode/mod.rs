//! Bytes become Arrow columns.
//!
//! Whatever the format, the result has one schema, [`records_schema`]: `key` (Utf8), `time`
//! (timestamp, microseconds, UTC), `offset` (Int64), then one Float32 column per channel in the
//! order of `records.channels`. A null or non-finite channel value is missing. What cannot be
//! decoded becomes a [`DeadLetter`]; the rest of its batch goes on.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::source::{Header, Lane};

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

/// Records of one batch and what could not be decoded of it.
#[derive(Debug)]
pub struct Decoded {
    /// Rows in the order of their offsets, in [`records_schema`].
    pub records: RecordBatch,
    /// Messages left out of `records`, in the order of their offsets.
    pub dead_letters: Vec<DeadLetter>,
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
