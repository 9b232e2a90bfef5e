//! One row per segment, column by column.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array, Int64Array,
    ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder, StringDictionaryBuilder,
    StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int32Type, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::sink::{Cause, ModelVersion, Score, SegmentMeta};

/// Rows of a row group, where the file is not rolled before.
const ROW_GROUP_ROWS: usize = 128 << 10;
/// Encoded bytes of a row group, which wide embeddings reach first.
const ROW_GROUP_BYTES: usize = 32 << 20;
/// About the bytes of a row's other columns.
const BYTES_BESIDE_EMBEDDING: u64 = 160;

/// About the bytes of a row before it is encoded.
pub(in crate::sink) fn plain_row_bytes(embedding: usize) -> u64 {
    embedding as u64 * size_of::<f32>() as u64 + BYTES_BESIDE_EMBEDDING
}

/// The columns of every file.
///
/// # Errors
/// If an embedding is longer than Arrow's lists may be.
pub(in crate::sink) fn schema(embedding: usize) -> Result<SchemaRef, ArrowError> {
    let length = i32::try_from(embedding)
        .map_err(|_| ArrowError::SchemaError(format!("{embedding} values in an embedding")))?;
    let name = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Ok(Arc::new(Schema::new(vec![
        Field::new("pipeline", name(), false),
        Field::new("key", name(), false),
        Field::new("topic", name(), false),
        Field::new("partition", DataType::Int32, false),
        Field::new("sequence", DataType::Int64, false),
        Field::new("window_start", time(), false),
        Field::new("window_end", time(), false),
        Field::new("first_offset", DataType::Int64, false),
        Field::new("last_offset", DataType::Int64, false),
        Field::new("model_version", DataType::Int64, false),
        Field::new("embedding", DataType::FixedSizeList(value_field(), length), false),
        Field::new("score", DataType::Float64, false),
        Field::new("p_value", DataType::Float64, false),
        Field::new("surprise", DataType::Float32, false),
        Field::new("distance", DataType::Float32, false),
        Field::new("residual", DataType::Float32, false),
        Field::new("alert", DataType::Boolean, false),
        Field::new("alert_id", DataType::Utf8, true),
        Field::new("causes", DataType::List(cause_field()), false),
        Field::new("missing", DataType::List(missing_field()), false),
        Field::new("warm", DataType::Boolean, false),
        // Files of earlier versions lack these.
        Field::new("change_point", DataType::Boolean, true),
        Field::new("wander", DataType::Float32, true),
    ])))
}

/// An element of `embedding`.
pub(super) fn value_field() -> FieldRef {
    Arc::new(Field::new("item", DataType::Float32, true))
}

/// An element of `missing`.
fn missing_field() -> FieldRef {
    Arc::new(Field::new("item", DataType::Utf8, true))
}

/// An element of `causes`.
fn cause_field() -> FieldRef {
    Arc::new(Field::new("item", DataType::Struct(cause_fields()), true))
}

fn cause_fields() -> Fields {
    Fields::from(vec![
        Field::new("channel", DataType::Utf8, false),
        Field::new("share", DataType::Float32, false),
    ])
}

/// How the columns are encoded.
pub(super) fn properties() -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(Default::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by(concat!("contrastream ", env!("CARGO_PKG_VERSION")).to_owned());
    // Numbers that grow by nearly the same step from row to row.
    for column in ["sequence", "window_start", "window_end", "first_offset", "last_offset"] {
        properties = properties
            .set_column_dictionary_enabled(column.into(), false)
            .set_column_encoding(column.into(), Encoding::DELTA_BINARY_PACKED);
    }
    for column in ["window_start", "window_end"] {
        properties =
            properties.set_column_statistics_enabled(column.into(), EnabledStatistics::Page);
    }
    // Numbers that never repeat.
    for column in ["score", "p_value", "surprise", "distance", "residual"] {
        properties = properties.set_column_dictionary_enabled(column.into(), false);
    }
    // Split by byte, signs and exponents lie together and compress: random unit vectors of length
    // 64 take 85 % of their plain bytes, against 93 % unsplit.
    let embedding = ColumnPath::new(["embedding", "list", "item"].map(str::to_owned).to_vec());
    properties
        .set_column_dictionary_enabled(embedding.clone(), false)
        .set_column_encoding(embedding.clone(), Encoding::BYTE_STREAM_SPLIT)
        .set_column_statistics_enabled(embedding, EnabledStatistics::None)
        .build()
}

/// Rows that are not encoded yet. What is the same in all rows is given once.
pub(in crate::sink) struct Rows {
    schema: SchemaRef,
    pipeline: Arc<str>,
    columns: Columns,
}

#[derive(Default)]
struct Columns {
    pipeline: StringDictionaryBuilder<Int32Type>,
    key: StringDictionaryBuilder<Int32Type>,
    topic: StringDictionaryBuilder<Int32Type>,
    partition: Vec<i32>,
    sequence: Vec<i64>,
    window_start: Vec<i64>,
    window_end: Vec<i64>,
    first_offset: Vec<i64>,
    last_offset: Vec<i64>,
    model_version: Vec<i64>,
    /// `[rows, embedding]`.
    embedding: Vec<f32>,
    score: Vec<f64>,
    p_value: Vec<f64>,
    surprise: Vec<f32>,
    distance: Vec<f32>,
    residual: Vec<f32>,
    alert: Vec<bool>,
    alert_id: StringBuilder,
    cause_channel: StringBuilder,
    cause_share: Vec<f32>,
    /// Number of causes up to and including each row.
    cause_ends: Vec<i32>,
    missing: ListBuilder<StringBuilder>,
    warm: Vec<bool>,
    change_point: Vec<bool>,
    wander: Vec<f32>,
}

impl Rows {
    /// No rows.
    pub(in crate::sink) fn new(pipeline: Arc<str>, schema: SchemaRef) -> Self {
        Self { schema, pipeline, columns: Columns::default() }
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.columns.partition.len()
    }

    /// Appends one row; `embedding` has the schema's length.
    pub(in crate::sink) fn push(
        &mut self,
        segment: &SegmentMeta,
        embedding: &[f32],
        score: &Score,
        model: ModelVersion,
    ) {
        let columns = &mut self.columns;
        columns.pipeline.append_value(&self.pipeline);
        columns.key.append_value(&segment.key);
        columns.topic.append_value(&segment.lane.topic);
        columns.partition.push(segment.lane.partition);
        columns.sequence.push(segment.sequence.cast_signed());
        columns.window_start.push(segment.window_start);
        columns.window_end.push(segment.window_end);
        columns.first_offset.push(segment.first_offset);
        columns.last_offset.push(segment.last_offset);
        columns.model_version.push(model.steps.cast_signed());
        columns.embedding.extend_from_slice(embedding);
        columns.score.push(score.score);
        columns.p_value.push(score.p_value);
        columns.surprise.push(score.surprise);
        columns.distance.push(score.distance);
        columns.residual.push(score.residual);
        columns.alert.push(score.alert);
        columns.alert_id.append_option(score.alert_id.as_deref());
        for Cause { channel, share } in &score.causes {
            columns.cause_channel.append_value(channel);
            columns.cause_share.push(*share);
        }
        columns.cause_ends.push(columns.cause_share.len() as i32);
        for channel in &score.missing {
            columns.missing.values().append_value(channel);
        }
        columns.missing.append(true);
        columns.warm.push(score.warm);
        columns.change_point.push(score.turn);
        columns.wander.push(model.wander);
    }

    /// All rows as a batch; none are left.
    ///
    /// # Errors
    /// If an embedding had another length than the schema's.
    pub(in crate::sink) fn take(&mut self) -> Result<RecordBatch, ArrowError> {
        let columns = std::mem::take(&mut self.columns);
        let embedding_type = self.schema.field_with_name("embedding")?.data_type();
        let DataType::FixedSizeList(value_field, length) = embedding_type else {
            return Err(ArrowError::SchemaError(format!("embedding of type {embedding_type}")));
        };
        let embedding = FixedSizeListArray::try_new_with_length(
            value_field.clone(),
            *length,
            Arc::new(Float32Array::from(columns.embedding)),
            None,
            columns.partition.len(),
        )?;
        RecordBatch::try_new(
            self.schema.clone(),
            vec![
                names(columns.pipeline),
                names(columns.key),
                names(columns.topic),
                Arc::new(Int32Array::from(columns.partition)),
                Arc::new(Int64Array::from(columns.sequence)),
                times(columns.window_start),
                times(columns.window_end),
                Arc::new(Int64Array::from(columns.first_offset)),
                Arc::new(Int64Array::from(columns.last_offset)),
                Arc::new(Int64Array::from(columns.model_version)),
                Arc::new(embedding),
                Arc::new(Float64Array::from(columns.score)),
                Arc::new(Float64Array::from(columns.p_value)),
                Arc::new(Float32Array::from(columns.surprise)),
                Arc::new(Float32Array::from(columns.distance)),
                Arc::new(Float32Array::from(columns.residual)),
                Arc::new(BooleanArray::from(columns.alert)),
                strings(columns.alert_id),
                causes(columns.cause_channel, columns.cause_share, columns.cause_ends)?,
                missing(columns.missing),
                Arc::new(BooleanArray::from(columns.warm)),
                Arc::new(BooleanArray::from(columns.change_point)),
                Arc::new(Float32Array::from(columns.wander)),
            ],
        )
    }
}

fn names(mut values: StringDictionaryBuilder<Int32Type>) -> ArrayRef {
    Arc::new(values.finish())
}

fn strings(mut values: StringBuilder) -> Arc<StringArray> {
    Arc::new(values.finish())
}

fn times(micros: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC"))
}

fn missing(mut values: ListBuilder<StringBuilder>) -> ArrayRef {
    Arc::new(values.finish())
}

fn causes(channel: StringBuilder, share: Vec<f32>, ends: Vec<i32>) -> Result<ArrayRef, ArrowError> {
    let offsets = std::iter::once(0).chain(ends).collect::<ScalarBuffer<i32>>();
    let columns: Vec<ArrayRef> = vec![strings(channel), Arc::new(Float32Array::from(share))];
    let values = StructArray::try_new(cause_fields(), columns, None)?;
    let causes =
        ListArray::try_new(cause_field(), OffsetBuffer::new(offsets), Arc::new(values), None)?;
    Ok(Arc::new(causes))
}
