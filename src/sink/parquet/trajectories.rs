//! Trajectories as Parquet: a row per day, stay or key.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;

use super::super::SinkError;
use super::staging::Staging;
use super::{MICROS_PER_DAY, date_folder, failed, rows};
use crate::trajectory::{Kind, Trajectory};

/// Folder below the root.
const FOLDER: &str = "trajectories";
/// Rows held before they are written.
const MOST_ROWS: usize = 8_192;

/// Writes `trajectories/by=KIND/date=DAY/part-….parquet`, by the day of their end.
pub(super) struct Trajectories {
    pipeline: Arc<str>,
    embedding: usize,
    rows: BTreeMap<(Kind, i64), Vec<Trajectory>>,
    count: usize,
}

impl Trajectories {
    pub(super) fn new(pipeline: Arc<str>, embedding: usize) -> Self {
        Self { pipeline, embedding, rows: BTreeMap::new(), count: 0 }
    }

    pub(super) fn write(
        &mut self,
        trajectories: &[Trajectory],
        staging: &mut Staging,
    ) -> Result<(), SinkError> {
        for trajectory in trajectories {
            let day = trajectory.end.div_euclid(MICROS_PER_DAY);
            self.rows.entry((trajectory.kind, day)).or_default().push(trajectory.clone());
            self.count += 1;
        }
        if self.count >= MOST_ROWS { self.finish(staging) } else { Ok(()) }
    }

    /// Writes and syncs a file per kind and day, and hands them to `staging`.
    pub(super) fn finish(&mut self, staging: &mut Staging) -> Result<(), SinkError> {
        self.count = 0;
        for ((kind, day), rows) in std::mem::take(&mut self.rows) {
            let (file, staged) = staging.create(&folder(kind, day), "part", "parquet")?;
            let refuse = |reason: &dyn std::fmt::Display| failed(staged.path(), reason);
            let batch =
                batch(&self.pipeline, self.embedding, &rows).map_err(|reason| refuse(&reason))?;
            let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(rows::properties()))
                .map_err(|reason| refuse(&reason))?;
            writer.write(&batch).map_err(|reason| refuse(&reason))?;
            let file = writer.into_inner().map_err(|reason| refuse(&reason))?;
            file.sync_all().map_err(|reason| refuse(&reason))?;
            staging.keep(staged);
        }
        Ok(())
    }
}

/// Where trajectories of a kind that ended on a day, since the epoch, are.
pub(super) fn folder(kind: Kind, day: i64) -> String {
    format!("{FOLDER}/by={}/{}", kind.name(), date_folder(day))
}

/// Trajectories as columns.
pub(super) fn batch(
    pipeline: &str,
    embedding: usize,
    trajectories: &[Trajectory],
) -> Result<RecordBatch, ArrowError> {
    let ints = |of: fn(&Trajectory) -> u64| -> ArrayRef {
        let values = trajectories.iter().map(|one| of(one).cast_signed());
        Arc::new(Int64Array::from_iter_values(values))
    };
    let times = |of: fn(&Trajectory) -> i64| -> ArrayRef {
        let times = TimestampMicrosecondArray::from_iter_values(trajectories.iter().map(of));
        Arc::new(times.with_timezone("UTC"))
    };
    let values = trajectories.iter().flat_map(|one| one.embedding.iter().copied());
    let values = Float32Array::from_iter_values(values);
    let schema = schema(embedding)?;
    let embeddings = FixedSizeListArray::try_new(
        rows::value_field(),
        list_length(embedding)?,
        Arc::new(values),
        None,
    )?;
    let pipelines = std::iter::repeat_n(pipeline, trajectories.len());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(pipelines)),
        Arc::new(StringArray::from_iter_values(trajectories.iter().map(|one| &*one.key))),
        Arc::new(StringArray::from_iter_values(trajectories.iter().map(|one| one.kind.name()))),
        times(|one| one.start),
        times(|one| one.end),
        ints(|one| one.segments),
        ints(|one| one.first_sequence),
        ints(|one| one.last_sequence),
        ints(|one| one.model_version),
        Arc::new(embeddings),
        Arc::new(trajectories.iter().map(|one| one.max_score).collect::<Float64Array>()),
        Arc::new(
            trajectories.iter().map(|one| one.alerts.map(u64::cast_signed)).collect::<Int64Array>(),
        ),
    ];
    RecordBatch::try_new(schema, columns)
}

fn list_length(embedding: usize) -> Result<i32, ArrowError> {
    i32::try_from(embedding)
        .map_err(|_| ArrowError::SchemaError(format!("{embedding} values in an embedding")))
}

fn schema(embedding: usize) -> Result<SchemaRef, ArrowError> {
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let list = DataType::FixedSizeList(rows::value_field(), list_length(embedding)?);
    Ok(Arc::new(Schema::new(vec![
        Field::new("pipeline", DataType::Utf8, false),
        Field::new("key", DataType::Utf8, false),
        Field::new("kind", DataType::Utf8, false),
        Field::new("start", time(), false),
        Field::new("end", time(), false),
        Field::new("segments", DataType::Int64, false),
        Field::new("first_sequence", DataType::Int64, false),
        Field::new("last_sequence", DataType::Int64, false),
        Field::new("model_version", DataType::Int64, false),
        Field::new("embedding", list, false),
        Field::new("max_score", DataType::Float64, true),
        Field::new("alerts", DataType::Int64, true),
    ])))
}
