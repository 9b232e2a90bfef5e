//! Generated records.

/// A generated plant as a source.
pub struct GeneratorSource {}
