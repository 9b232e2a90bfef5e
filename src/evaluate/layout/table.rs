//! Recordings in Parquet files.

use std::fs::File;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{LABEL, Rows, no_column, parse_label};
use crate::evaluate::EvaluateError;

/// Times, as text, and labels of the rows of a Parquet file; rows are numbered from 1.
///
/// # Errors
/// If the file cannot be read, has no column `time`, or a malformed label.
pub(super) fn read(path: &Path, time: &str) -> Result<Rows, EvaluateError> {
    let failed = |reason: &dyn std::fmt::Display| EvaluateError::file(path, reason);
    let file = File::open(path).map_err(|error| failed(&error))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| failed(&error))?;
    let schema = builder.schema();
    if schema.column_with_name(time).is_none() {
        return Err(no_column(
            path,
            time,
            schema.fields().iter().map(|field| field.name().as_str()),
        ));
    }
    let is_labelled = schema.column_with_name(LABEL).is_some();
    let mask = ProjectionMask::columns(builder.parquet_schema(), [time, LABEL]);
    let batches = builder.with_projection(mask).build().map_err(|error| failed(&error))?;

    let mut rows = Rows::default();
    let mut labels = Vec::new();
    for batch in batches {
        let batch = batch.map_err(|error| failed(&error))?;
        let times = text(&batch, time).map_err(|reason| failed(&reason))?;
        rows.times.extend(times.iter().map(|time| time.unwrap_or_default().to_owned()));
        if is_labelled {
            for label in text(&batch, LABEL).map_err(|reason| failed(&reason))?.iter() {
                let row = labels.len() as u64 + 1;
                let found = label.unwrap_or_default();
                labels.push(parse_label(found).ok_or_else(|| {
                    let reason = format!("column {LABEL}: expected 0 or 1, found \"{found}\"");
                    EvaluateError::line(path, row, reason)
                })?);
            }
        }
    }
    rows.lines = (1..).take(rows.times.len()).collect();
    rows.labels = is_labelled.then_some(labels);
    Ok(rows)
}

/// A column as text.
fn text(batch: &RecordBatch, name: &str) -> Result<StringArray, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("no column {name}"))?;
    let column = cast(column, &DataType::Utf8).map_err(|error| error.to_string())?;
    Ok(column.as_string::<i32>().clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BooleanArray, Int32Array};
    use parquet::arrow::ArrowWriter;
    use tempfile::TempDir;

    use super::*;

    fn file(columns: Vec<(&str, ArrayRef)>) -> (TempDir, std::path::PathBuf) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("record.parquet");
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer =
            ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        (folder, path)
    }

    #[test]
    fn times_are_text_and_labels_are_those_of_the_column() {
        let times: ArrayRef = Arc::new(Int32Array::from(vec![0, 1]));
        let labels: ArrayRef = Arc::new(BooleanArray::from(vec![false, true]));
        let (_folder, path) = file(vec![("sample", times.clone()), (LABEL, labels)]);
        let rows = read(&path, "sample").unwrap();
        assert_eq!(rows.times, ["0", "1"]);
        assert_eq!(rows.lines, [1, 2]);
        assert_eq!(rows.labels, Some(vec![false, true]));

        let (_folder, path) = file(vec![("sample", times)]);
        assert_eq!(read(&path, "sample").unwrap().labels, None);
        let error = read(&path, "ts").unwrap_err().to_string();
        assert!(error.ends_with("expected a column ts, found sample"), "{error}");
    }
}
