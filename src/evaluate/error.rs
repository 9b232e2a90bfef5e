//! Why an evaluation failed.

use std::path::{Path, PathBuf};

use super::measures::MeasureError;

/// A recording, a labels file or a result that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A file or folder that cannot be read or written, or does not hold what it should.
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    /// A line of a recording that does not hold what it should.
    #[error("{path}:{line}: {reason}")]
    Line { path: PathBuf, line: u64, reason: String },
    /// Scores that cannot be measured.
    #[error("{series}: {reason}")]
    Measure { series: String, reason: MeasureError },
}

impl EvaluateError {
    pub(super) fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(super) fn line(path: &Path, line: u64, reason: impl ToString) -> Self {
        Self::Line { path: path.to_owned(), line, reason: reason.to_string() }
    }
}
