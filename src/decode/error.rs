//! Why a decoder cannot be made.

/// Settings that no record could satisfy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The format has no messages.
    #[error("source.format: expected json or csv, found parquet, which only files can hold")]
    Format,
    /// A CSV message has no header line.
    #[error("source.csv.columns: expected the names of the columns, found none")]
    NoColumns,
    /// The delimiter cannot delimit.
    #[error(
        "source.csv.delimiter: expected one ASCII character other than a quote or a line break, \
         found {found:?}"
    )]
    Delimiter { found: char },
    /// Two meanings for one field.
    #[error("records: field \"{name}\" is named twice")]
    RepeatedField { name: String },
    /// The columns lack what every record needs.
    #[error("records.{key}: expected {expected} among the columns, found {found}")]
    MissingColumn { key: &'static str, expected: String, found: String },
}
