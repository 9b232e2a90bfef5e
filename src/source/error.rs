//! Why a source cannot go on.

use crate::decode::DecodeFailure;

/// An input that failed, with what a person needs to act on it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
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
    #[error("source.properties: {reason}")]
    Property { reason: String },
    /// Another failure of the Kafka client.
    #[error("kafka: {reason}")]
    Kafka { reason: String, retryable: bool },
    /// Others own lanes that were this process's, with work that it had not committed.
    #[error("{lanes} lanes lost to the group, uncommitted work with them")]
    Lost { lanes: usize },
    /// Records of a file that cannot be decoded now.
    #[error(transparent)]
    Decode(#[from] DecodeFailure),
    /// A file or folder that cannot be read at all.
    #[error("{path}: {reason}")]
    File { path: std::path::PathBuf, reason: String },
}

impl SourceError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Kafka { retryable, .. } => *retryable,
            Self::Decode(failure) => failure.is_retryable,
            Self::MissingTopic { .. }
            | Self::Refused { .. }
            | Self::Property { .. }
            | Self::Lost { .. }
            | Self::File { .. } => false,
        }
    }
}
