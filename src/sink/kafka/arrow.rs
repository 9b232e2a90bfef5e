//! Results as Arrow IPC: a stream with one batch a message, in the columns of the Parquet files.

use std::sync::Arc;

use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;

use crate::sink::parquet::rows::{self, Rows};
use crate::sink::{ModelVersion, Score, SegmentMeta};

/// Rows are gathered up to about this many bytes, so that a message stays below what topics take.
const MESSAGE_BYTES: u64 = 256 << 10;

/// Columns of the Parquet files that a message does not have.
const NOT_OF_EMBEDDINGS: [&str; 11] = [
    "score",
    "p_value",
    "surprise",
    "distance",
    "residual",
    "alert",
    "alert_id",
    "causes",
    "missing",
    "warm",
    "change_point",
];
const NOT_OF_ANOMALIES: [&str; 2] = ["embedding", "wander"];

/// What a message is about.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Embeddings,
    Anomalies,
}

/// Rows on their way into a message.
pub(super) struct ArrowRows {
    rows: Rows,
    most_rows: usize,
    /// Positions of the columns of each kind of message.
    embeddings: Vec<usize>,
    anomalies: Vec<usize>,
}

impl ArrowRows {
    /// No rows yet; embeddings have `embedding` values.
    ///
    /// # Errors
    /// If an embedding is longer than Arrow's lists may be.
    pub fn new(pipeline: Arc<str>, embedding: usize) -> Result<Self, ArrowError> {
        let schema = rows::schema(embedding)?;
        let columns_without = |left_out: &[&str]| {
            let fields = schema.fields().iter().enumerate();
            let kept = fields.filter(|(_, field)| !left_out.contains(&field.name().as_str()));
            kept.map(|(at, _)| at).collect()
        };
        Ok(Self {
            most_rows: (MESSAGE_BYTES / rows::plain_row_bytes(embedding)).max(1) as usize,
            embeddings: columns_without(&NOT_OF_EMBEDDINGS),
            anomalies: columns_without(&NOT_OF_ANOMALIES),
            rows: Rows::new(pipeline, schema),
        })
    }

    /// How many segments from the first of `segments` on are of its key, and fit one message.
    pub fn run(&self, segments: &[SegmentMeta]) -> usize {
        let of_key = segments.chunk_by(|one, other| one.key == other.key).next();
        of_key.map_or(0, <[_]>::len).min(self.most_rows)
    }

    /// Adds a row.
    pub fn push(
        &mut self,
        segment: &SegmentMeta,
        embedding: &[f32],
        score: &Score,
        model: ModelVersion,
    ) {
        self.rows.push(segment, embedding, score, model);
    }

    /// Appends a stream of all rows to `message`; none are left.
    ///
    /// # Errors
    /// If an embedding has another length than it should have.
    pub fn write(&mut self, kind: Kind, message: &mut Vec<u8>) -> Result<(), ArrowError> {
        let columns = match kind {
            Kind::Embeddings => &self.embeddings,
            Kind::Anomalies => &self.anomalies,
        };
        let batch = self.rows.take()?.project(columns)?;
        let mut writer = StreamWriter::try_new(message, &batch.schema())?;
        writer.write(&batch)?;
        writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::{Float32Type, Float64Type, Int32Type, Int64Type};
    use arrow::ipc::reader::StreamReader;

    use super::super::tests::{MODEL, score, segment};
    use super::*;

    fn read(message: &[u8]) -> RecordBatch {
        let batches: Result<Vec<_>, _> = StreamReader::try_new(message, None).unwrap().collect();
        let [batch] = &batches.unwrap()[..] else { panic!("expected one batch") };
        batch.clone()
    }

    fn names(batch: &RecordBatch) -> Vec<String> {
        batch.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    #[test]
    fn a_message_holds_the_segments_of_one_key_in_the_columns_of_parquet() {
        let mut rows = ArrowRows::new("plant".into(), 2).unwrap();
        let mut message = Vec::new();
        let second = SegmentMeta { sequence: 12, ..segment() };
        rows.push(&segment(), &[0.6, -0.8], &score(), MODEL);
        rows.push(&second, &[1.0, 0.0], &score(), MODEL);
        rows.write(Kind::Embeddings, &mut message).unwrap();
        let batch = read(&message);
        assert_eq!(
            names(&batch),
            [
                "pipeline",
                "key",
                "topic",
                "partition",
                "sequence",
                "window_start",
                "window_end",
                "first_offset",
                "last_offset",
                "model_version",
                "embedding",
                "wander"
            ]
        );
        assert_eq!(batch["sequence"].as_primitive::<Int64Type>().values(), &[11, 12]);
        let keys = batch["key"].as_dictionary::<Int32Type>();
        assert_eq!(keys.values().as_string::<i32>().value(0), "pump \"7\"");
        let values = batch["embedding"].as_fixed_size_list();
        assert_eq!(values.value(0).as_primitive::<Float32Type>().values(), &[0.6, -0.8]);

        message.clear();
        rows.push(&segment(), &[0.6, -0.8], &score(), MODEL);
        rows.write(Kind::Anomalies, &mut message).unwrap();
        let batch = read(&message);
        assert_eq!(batch.num_rows(), 1);
        assert_eq!(names(&batch).len(), 21);
        assert!(!names(&batch).contains(&"embedding".to_owned()));
        assert_eq!(batch["score"].as_primitive::<Float64Type>().values(), &[0.75]);
    }

    #[test]
    fn a_run_ends_with_its_key_and_where_a_message_is_full() {
        let rows = ArrowRows::new("plant".into(), 2).unwrap();
        let of = |key: &str| SegmentMeta { key: key.into(), ..segment() };
        assert_eq!(rows.run(&[of("a"), of("a"), of("b"), of("a")]), 2);
        assert_eq!(rows.run(&vec![of("a"); 10_000]), rows.most_rows);
        let wide = ArrowRows::new("plant".into(), 1 << 20).unwrap();
        assert_eq!(wide.run(&[of("a"), of("a")]), 1);
    }
}
