//! Embeddings of a history, made in one go by one model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeListArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;

use super::super::{SegmentMeta, SinkError};
use super::{MICROS_PER_DAY, date_folder, failed, rows, trajectories};
use crate::trajectory::{Kind, Trajectory};

/// Rows held over all days before they are written.
const MOST_ROWS: usize = 65_536;
/// Suffix of files whose run has not ended.
const SUFFIX: &str = ".inprogress";

/// Writes embeddings alone, in the folders of [`super::ParquetSink`] and under names that are the
/// same in every run. Nothing is visible before [`HistoryFiles::finish`].
pub struct HistoryFiles {
    folder: PathBuf,
    pipeline: String,
    embedding: usize,
    days: BTreeMap<i64, Segments>,
    trajectories: BTreeMap<(Kind, i64), Vec<Trajectory>>,
    rows: usize,
    /// Final paths of the files that are whole.
    whole: Vec<PathBuf>,
}

#[derive(Default)]
struct Segments {
    meta: Vec<SegmentMeta>,
    versions: Vec<i64>,
    /// `[segments, embedding]`.
    embeddings: Vec<f32>,
}

impl HistoryFiles {
    /// Files below `folder`, which is made if need be and must be empty.
    ///
    /// # Errors
    /// If it cannot be made, or holds something.
    pub fn create(folder: &Path, pipeline: &str, embedding: usize) -> Result<Self, SinkError> {
        fs::create_dir_all(folder).map_err(|reason| failed(folder, reason))?;
        let mut entries = fs::read_dir(folder).map_err(|reason| failed(folder, reason))?;
        if entries.next().is_some() {
            return Err(failed(folder, "expected an empty folder"));
        }
        Ok(Self {
            folder: folder.to_owned(),
            pipeline: pipeline.to_owned(),
            embedding,
            days: BTreeMap::new(),
            trajectories: BTreeMap::new(),
            rows: 0,
            whole: Vec::new(),
        })
    }

    /// Takes a segment's embedding.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn segment(
        &mut self,
        meta: &SegmentMeta,
        embedding: &[f32],
        model_version: u64,
    ) -> Result<(), SinkError> {
        let day = self.days.entry(meta.window_end.div_euclid(MICROS_PER_DAY)).or_default();
        day.meta.push(meta.clone());
        day.versions.push(model_version.cast_signed());
        day.embeddings.extend_from_slice(embedding);
        self.count()
    }

    /// Takes a trajectory.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn trajectory(&mut self, trajectory: Trajectory) -> Result<(), SinkError> {
        let day = trajectory.end.div_euclid(MICROS_PER_DAY);
        self.trajectories.entry((trajectory.kind, day)).or_default().push(trajectory);
        self.count()
    }

    /// Makes everything visible.
    ///
    /// # Errors
    /// If a file cannot be written or renamed.
    pub fn finish(mut self) -> Result<(), SinkError> {
        self.write()?;
        for path in &self.whole {
            fs::rename(in_progress(path), path).map_err(|reason| failed(path, reason))?;
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), SinkError> {
        self.rows += 1;
        if self.rows >= MOST_ROWS { self.write() } else { Ok(()) }
    }

    /// Writes what is held, a file per day.
    fn write(&mut self) -> Result<(), SinkError> {
        self.rows = 0;
        for (day, segments) in std::mem::take(&mut self.days) {
            let batch = segments.batch(&self.pipeline, self.embedding);
            self.write_file(&date_folder(day), batch)?;
        }
        for ((kind, day), rows) in std::mem::take(&mut self.trajectories) {
            let batch = trajectories::batch(&self.pipeline, self.embedding, &rows);
            self.write_file(&trajectories::folder(kind, day), batch)?;
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        folder: &str,
        batch: Result<RecordBatch, ArrowError>,
    ) -> Result<(), SinkError> {
        let folder = self.folder.join(folder);
        fs::create_dir_all(&folder).map_err(|reason| failed(&folder, reason))?;
        let path = folder.join(format!("part-{:06}.parquet", self.whole.len()));
        let refuse = |reason: &dyn std::fmt::Display| failed(&path, reason);
        let batch = batch.map_err(|reason| refuse(&reason))?;
        let file = File::create(in_progress(&path)).map_err(|reason| refuse(&reason))?;
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(rows::properties()))
            .map_err(|reason| refuse(&reason))?;
        writer.write(&batch).map_err(|reason| refuse(&reason))?;
        let file = writer.into_inner().map_err(|reason| refuse(&reason))?;
        file.sync_all().map_err(|reason| refuse(&reason))?;
        self.whole.push(path);
        Ok(())
    }
}

fn in_progress(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(SUFFIX);
    path.into()
}

impl Segments {
    fn batch(self, pipeline: &str, embedding: usize) -> Result<RecordBatch, ArrowError> {
        let length = i32::try_from(embedding)
            .map_err(|_| ArrowError::SchemaError(format!("{embedding} values in an embedding")))?;
        let meta = &self.meta;
        let ints = |of: fn(&SegmentMeta) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(meta.iter().map(of)))
        };
        let times = |of: fn(&SegmentMeta) -> i64| -> ArrayRef {
            let times = TimestampMicrosecondArray::from_iter_values(meta.iter().map(of));
            Arc::new(times.with_timezone("UTC"))
        };
        let text = |values: Vec<&str>| -> ArrayRef { Arc::new(StringArray::from(values)) };
        let partitions = Int32Array::from_iter_values(meta.iter().map(|one| one.lane.partition));
        let values = Arc::new(Float32Array::from(self.embeddings));
        let embeddings = FixedSizeListArray::try_new(rows::value_field(), length, values, None)?;
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("pipeline", text(vec![pipeline; meta.len()])),
            ("key", text(meta.iter().map(|one| &*one.key).collect())),
            ("topic", text(meta.iter().map(|one| &*one.lane.topic).collect())),
            ("partition", Arc::new(partitions)),
            ("sequence", ints(|one| one.sequence.cast_signed())),
            ("window_start", times(|one| one.window_start)),
            ("window_end", times(|one| one.window_end)),
            ("first_offset", ints(|one| one.first_offset)),
            ("last_offset", ints(|one| one.last_offset)),
            ("model_version", Arc::new(Int64Array::from(self.versions))),
            ("embedding", Arc::new(embeddings)),
        ];
        let fields = columns
            .iter()
            .map(|(name, column)| Field::new(*name, column.data_type().clone(), false));
        let schema = Schema::new(fields.collect::<Vec<_>>());
        RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, c)| c).collect())
    }
}
