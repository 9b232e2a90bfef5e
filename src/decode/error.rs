//! Why a decoder cannot be made.

use std::path::PathBuf;

use crate::config::Format;
use crate::registry::RegistryError;
use crate::source::Lane;

/// Settings that no record could satisfy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The format has no messages.
    #[error("source.format: {found:?} is not a format of messages")]
    Format { found: Format },
    /// A CSV message has no header line.
    #[error("source.csv.columns: expected the names of the columns, found none")]
    NoColumns,
    /// The delimiter cannot delimit.
    #[error(
        "source.csv.delimiter: expected one ASCII character other than a quote or a line break, \
         found {found:?}"
    )]
    Delimiter { found: char },
    /// No such zone.
    #[error("records.time_zone: expected an IANA name such as \"Europe/Berlin\", found {found:?}")]
    TimeZone { found: String },
    /// No format that a time could be read from.
    #[error("records.time_format: expected {expected}")]
    TimeFormat { expected: &'static str },
    /// Values cannot be converted to it.
    #[error(
        "records.channel.{channel}.unit: expected a unit such as \"mmol/L\", \"Cel\" or \
         \"mm[Hg]\", found {found:?}"
    )]
    Unit { channel: String, found: String },
    /// No schema that Avro could be read by.
    #[error("source.avro.schema: {}: {reason}", path.display())]
    AvroSchema { path: PathBuf, reason: String },
    /// Nothing tells what was written.
    #[error("source.avro: expected [registry], or avro.schema where framing = \"none\"")]
    NoAvroSchema,
    /// `[registry]` cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A pattern that takes no line apart.
    #[error("source.log.patterns: {pattern:?}: {reason}")]
    Pattern { pattern: String, reason: String },
    /// Two meanings for one field.
    #[error("records: field \"{name}\" is named twice")]
    RepeatedField { name: String },
    /// The columns lack what every record needs.
    #[error("records.{key}: expected {expected} among the columns, found {found}")]
    MissingColumn { key: &'static str, expected: String, found: String },
}

/// Messages that cannot be decoded now, through no fault of theirs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{lane}, offset {offset}: {reason}")]
pub struct DecodeFailure {
    /// Where the first of them came from.
    pub lane: Lane,
    /// Its offset, or line number in a file.
    pub offset: i64,
    /// What is in the way.
    pub reason: String,
    /// Whether trying again later may help.
    pub is_retryable: bool,
}
