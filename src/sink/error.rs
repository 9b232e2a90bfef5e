//! Why a result could not be delivered.

use crate::objects::ObjectError;
use crate::registry::RegistryError;

/// An output that failed, with what a person needs to act on it.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// No broker answered.
    #[error("no broker of {brokers} answers: {reason}")]
    Unreachable { brokers: String, reason: String },
    /// A topic of the pipeline file is not on the brokers.
    #[error("topic {topic} does not exist on {brokers}")]
    MissingTopic { topic: String, brokers: String },
    /// The brokers refuse the right that is needed.
    #[error("{brokers} refuse: {reason}")]
    Refused { brokers: String, reason: String },
    /// A property that librdkafka does not take.
    #[error("sink.kafka.properties: {reason}")]
    Property { reason: String },
    /// The registry does not have, or give, what Avro messages need.
    #[error("sink.kafka.format = \"avro\": {0}")]
    Registry(#[from] RegistryError),
    /// A schema that is not registered, and is not to be.
    #[error(
        "subject {subject} of the schema registry {registry} lacks {schema}: register it, or set \
         registry.register = true"
    )]
    MissingSchema { subject: String, registry: String, schema: &'static str },
    /// A message that the brokers did not take.
    #[error("topic {topic}: {reason}")]
    Delivery { topic: String, reason: String, retryable: bool },
    /// A transaction that could not be committed, and is undone.
    #[error("transaction {id}: {reason}")]
    Transaction { id: String, reason: String, retryable: bool },
    /// Another process goes on as this one.
    #[error(
        "transaction {id}: another process took over ({reason}): give each replica its own \
         checkpoint.instance"
    )]
    Fenced { id: String, reason: String },
    /// A file that cannot be written.
    #[error("{path}: {reason}")]
    File { path: std::path::PathBuf, reason: String },
    /// The folder or bucket of results failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl SinkError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Object(error) => error.is_retryable(),
            Self::Registry(error) => error.is_retryable(),
            Self::Delivery { retryable, .. } | Self::Transaction { retryable, .. } => *retryable,
            Self::MissingTopic { .. }
            | Self::MissingSchema { .. }
            | Self::Fenced { .. }
            | Self::Refused { .. }
            | Self::Property { .. }
            | Self::File { .. } => false,
        }
    }
}
