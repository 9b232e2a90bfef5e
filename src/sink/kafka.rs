//! Results to Kafka topics.

/// An idempotent producer of results.
pub struct KafkaSink {}
