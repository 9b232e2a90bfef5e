//! One commit point for positions, windows, model and calibration.
//!
//! A [`Checkpoint`] is all that a pipeline needs to go on where it was. A [`Store`] keeps the last
//! few as files: magic, format version, length, body, CRC-32. A file appears under its name only
//! once it is whole and on disk, and one that does not verify is never used.

mod store;

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};

pub use store::{CheckpointError, Store};

use crate::sink::StagedFile;
use crate::source::Lane;

/// The state of a pipeline between two records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Names it, in the order of time: microseconds since the epoch and the process's token.
    pub id: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// Per lane, the offset at which reading resumes.
    pub positions: Vec<(Lane, i64)>,
    /// Per lane, its open windows: a [`crate::window::Segmenter`].
    pub windows: Vec<(Lane, Vec<u8>)>,
    /// Learner and scorer: a [`crate::runtime::Core`].
    pub core: Vec<u8>,
    /// Files of results that become visible once this is committed.
    pub staged: Vec<StagedFile>,
}

impl Checkpoint {
    /// A new id, larger than every earlier one of this process and than those that the stores it
    /// opened hold, even where the clock was set back.
    pub fn new_id() -> String {
        let now = chrono::Utc::now().timestamp_micros();
        let last = NEWEST.fetch_max(now, Ordering::Relaxed);
        let made = if last < now { now } else { NEWEST.fetch_add(1, Ordering::Relaxed) + 1 };
        format!("{made:020}-{:016x}", process_token())
    }
}

/// Microseconds of the newest id that this process made or found.
static NEWEST: AtomicI64 = AtomicI64::new(0);

/// Tells this process from all others that ever wrote to the same store: in containers, process
/// numbers repeat.
fn process_token() -> u64 {
    static TOKEN: OnceLock<u64> = OnceLock::new();
    *TOKEN.get_or_init(|| RandomState::new().hash_one(std::process::id()))
}
