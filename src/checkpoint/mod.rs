//! One commit point for positions, windows, model and calibration.
//!
//! A [`Checkpoint`] is all that a pipeline needs to go on where it was. A [`Store`] keeps the last
//! few. Each adds a [`Part`] to the store, which holds the state of those keys alone that were seen
//! since the one before, and refers to earlier parts for the others. A part is durable before the
//! checkpoint that names it appears; what does not verify is never used.
//!
//! ```text
//! <id>.part         magic, format; states of keys and indices of them, each with its CRC-32 told
//!                   elsewhere: an index has those of its states, the checkpoint those of indices
//! <id>.checkpoint   magic, format, lengths; manifest; CRC-32; model and calibration; CRC-32 of all
//! ```

mod part;
mod store;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};

pub use part::{Part, SavedIndex, SavedKeys, SavedWindows};
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
    pub windows: Vec<(Lane, SavedWindows)>,
    /// Per lane, what learner and scorer keep of its keys.
    pub keys: Vec<(Lane, SavedKeys)>,
    /// Files of results that become visible once this is committed.
    pub staged: Vec<StagedFile>,
    /// Learner and scorer, without their keys: a [`crate::runtime::Core`].
    #[serde(skip)]
    pub core: Vec<u8>,
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

    /// Whether `id` is `first`, or was made later by the process that made `first`.
    pub fn is_since(id: &str, first: &str) -> bool {
        let process = |id: &str| id.split_once('-').map(|(_, process)| process.to_owned());
        id >= first && process(id) == process(first)
    }

    /// Ids of the parts that it needs.
    pub fn parts(&self) -> BTreeSet<&str> {
        let windows = self.windows.iter().map(|(_, windows)| &windows.keys);
        let keys = windows.chain(self.keys.iter().map(|(_, keys)| keys));
        keys.flat_map(|keys| &keys.indices).map(|index| index.part.as_str()).collect()
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
