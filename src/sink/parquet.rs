//! Results to Parquet files.

/// Writes embeddings and scores as Parquet.
pub struct ParquetSink {}
