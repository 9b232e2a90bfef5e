//! Bytes that a checkpoint adds to the store.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::CheckpointError;

/// First bytes of every part: magic and format version.
pub(super) const HEADER: [u8; 12] = *b"CSTRPART\x03\0\0\0";

/// Bytes that are an object of the store, or are to become one. Clones are the same part.
///
/// The threads that own state append what changed; the sinks' thread writes all of it at once, with
/// the checkpoint that names it. Until then the bytes are read from memory.
#[derive(Clone, Debug)]
pub struct Part(Arc<State>);

#[derive(Debug)]
struct State {
    id: String,
    content: Mutex<Content>,
}

#[derive(Debug)]
enum Content {
    /// Not in the store yet: what was appended, each with the offset at which it begins.
    Waiting(Vec<(u64, Bytes)>),
    Stored,
}

impl Part {
    /// A part without bytes, not in the store.
    pub fn new(id: String) -> Self {
        let content = Mutex::new(Content::Waiting(Vec::new()));
        Self(Arc::new(State { id, content }))
    }

    /// The part `id` of the store.
    pub fn stored(id: String) -> Self {
        Self(Arc::new(State { id, content: Mutex::new(Content::Stored) }))
    }

    /// Names it, as [`super::Checkpoint::new_id`] names checkpoints.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Appends bytes; returns the offset at which they begin.
    ///
    /// # Errors
    /// If the part is in the store already.
    pub fn append(&self, bytes: Vec<u8>) -> Result<u64, CheckpointError> {
        match &mut *self.content() {
            Content::Waiting(chunks) => {
                let offset = end(chunks);
                chunks.push((offset, bytes.into()));
                Ok(offset)
            }
            Content::Stored => Err(CheckpointError::State {
                what: format!("part {}", self.id()),
                reason: "nothing can be added to what is stored".to_owned(),
            }),
        }
    }

    /// The bytes of each range, if they are still in memory; `None` if they are in the store.
    /// A range must lie within what was appended at once.
    pub(super) fn waiting(&self, ranges: &[Range<u64>]) -> Option<Result<Vec<Bytes>, String>> {
        let Content::Waiting(chunks) = &*self.content() else { return None };
        let read = |range: &Range<u64>| {
            let at = chunks.partition_point(|(offset, _)| *offset <= range.start).checked_sub(1)?;
            let (offset, bytes) = &chunks[at];
            let (start, end) = (range.start - offset, range.end.checked_sub(*offset)?);
            (start <= end && end <= bytes.len() as u64)
                .then(|| bytes.slice(start as usize..end as usize))
        };
        let bytes = ranges.iter().map(|range| {
            read(range).ok_or_else(|| format!("no bytes {}..{} in it", range.start, range.end))
        });
        Some(bytes.collect())
    }

    /// What makes it an object, one after the other, if it is not in the store yet and has any
    /// bytes.
    pub(super) fn object(&self) -> Option<Vec<Bytes>> {
        let chunks = match &*self.content() {
            Content::Waiting(chunks) if !chunks.is_empty() => chunks.clone(),
            Content::Waiting(_) | Content::Stored => return None,
        };
        let header = Bytes::from_static(&HEADER);
        Some([header].into_iter().chain(chunks.into_iter().map(|(_, bytes)| bytes)).collect())
    }

    /// From now on its bytes are read from the store.
    pub(super) fn settle(&self) {
        *self.content() = Content::Stored;
    }

    fn content(&self) -> std::sync::MutexGuard<'_, Content> {
        self.0.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(chunks: &[(u64, Bytes)]) -> u64 {
    chunks.last().map_or(HEADER.len() as u64, |(offset, bytes)| offset + bytes.len() as u64)
}

/// Where the saved states of some keys are.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SavedKeys {
    /// How often keys were seen.
    pub seen: u64,
    /// What tells where each key's state is, the oldest first: a key's place is the one that the
    /// last of those tells that knows it.
    pub indices: Vec<SavedIndex>,
}

/// The index of states that are in one part.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SavedIndex {
    /// Id of the part in which it is, with the states.
    pub part: String,
    /// Where the states begin.
    pub base: u64,
    /// Where the index begins, its length and CRC-32.
    pub offset: u64,
    pub length: u64,
    pub crc: u32,
    /// Whether the states were made with the model of another process.
    pub foreign: bool,
}

/// The windows of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SavedWindows {
    /// What does not belong to one key.
    pub lane: Vec<u8>,
    /// Its templates; empty where records are no lines.
    pub templates: Vec<u8>,
    pub keys: SavedKeys,
}
