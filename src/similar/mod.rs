//! Nearest neighbours among embeddings that were written.
//!
//! [`Embeddings::read`] reads what the Parquet sink or `contrastream embed` wrote; [`nearest`]
//! looks at every row, as blocks of a matrix product; [`Index`] looks at few of them, by the graph
//! of HNSW (Malkov & Yashunin 2018), which is kept beside the files.

mod exact;
mod index;
mod read;

use std::path::PathBuf;

pub use exact::nearest;
pub use index::{Effort, Index, Kept};
pub use read::Embeddings;

/// Rows from which on an index pays.
pub const MANY: usize = 1_000_000;

/// What is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// Segments.
    #[default]
    Segment,
    /// Days of a key.
    Day,
    /// Stays of a key.
    Stay,
    /// Keys as a whole.
    Key,
}

impl By {
    pub fn name(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Day => "day",
            Self::Stay => "stay",
            Self::Key => "key",
        }
    }
}

/// A row near to the one asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    pub row: usize,
    /// Cosine of the angle between the two, -1 to 1.
    pub cosine: f32,
}

/// Why there are no neighbours.
#[derive(Debug, thiserror::Error)]
pub enum SimilarError {
    /// A file or folder cannot be read.
    #[error("{}: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    /// Nothing is there.
    #[error("{}: no embeddings by {by}", path.display())]
    Empty { path: PathBuf, by: &'static str },
    /// Embeddings of several lengths.
    #[error("{}: expected embeddings of length {expected}, found {found}", path.display())]
    Width { path: PathBuf, expected: usize, found: usize },
    /// The index cannot be made or used.
    #[error("index: {0}")]
    Index(String),
}

/// Adds a neighbour to the `most` best so far, the nearest first; of equals, the earlier row.
fn keep_nearest(best: &mut Vec<Neighbour>, neighbour: Neighbour, most: usize) {
    let is_before = |other: &Neighbour| {
        let by_cosine = other.cosine.total_cmp(&neighbour.cosine);
        by_cosine.then(neighbour.row.cmp(&other.row)).is_gt()
    };
    if best.len() >= most && best.last().is_none_or(is_before) {
        return;
    }
    let place = best.partition_point(is_before);
    best.insert(place, neighbour);
    best.truncate(most);
}
