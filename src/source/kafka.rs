//! Records from Kafka topics.

/// A member of a consumer group.
pub struct KafkaSource {}
