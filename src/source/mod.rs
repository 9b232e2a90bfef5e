//! Where records come from: Kafka partitions, files, the generator.
//!
//! Every source hands out [`SourceBatch`]es of one [`Lane`] at a time. Order within a lane is the
//! order of its offsets; lanes are independent of each other.

mod error;
mod file;
pub mod generator;
mod kafka;
mod labels;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use error::SourceError;
pub use file::FileSource;
pub use generator::{Fault, FaultKind, GeneratorSource, Plant};
pub use kafka::KafkaSource;
pub use labels::{LabelReader, Told};

use rdkafka::consumer::ConsumerGroupMetadata;

use crate::decode::Decoded;

/// One ordered input: a topic's partition, a file (partition 0), or the generator.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Lane {
    /// Topic name, or the path of a file relative to the folder it was found in.
    pub topic: Arc<str>,
    /// Partition number; 0 for files.
    pub partition: i32,
}

impl Lane {
    /// A lane of `topic` and `partition`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// Header of a message: name and value (Kafka allows a null value).
pub type Header = (String, Option<Vec<u8>>);

/// Undecoded messages of one lane, back to back in one buffer: no allocation per message.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Only messages that have headers appear here: (index, headers).
    headers: Vec<(usize, Vec<Header>)>,
}

#[derive(Clone, Debug)]
struct Entry {
    offset: i64,
    timestamp_ms: Option<i64>,
    key: Option<Range<usize>>,
    payload: Range<usize>,
}

/// One message, borrowed from its [`Messages`].
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Kafka offset, or the line number in a file (the first line is 1).
    pub offset: i64,
    /// Kafka's timestamp, milliseconds since the epoch; of a file, when it was last changed.
    pub timestamp_ms: Option<i64>,
    /// Kafka message key.
    pub key: Option<&'a [u8]>,
    /// The bytes to decode. A Kafka tombstone (null value) is an empty payload.
    pub payload: &'a [u8],
    /// Kafka headers, empty in files.
    pub headers: &'a [Header],
}

impl Messages {
    /// Appends one message.
    pub fn push(
        &mut self,
        offset: i64,
        timestamp_ms: Option<i64>,
        key: Option<&[u8]>,
        payload: &[u8],
        headers: Vec<Header>,
    ) {
        let key = key.map(|key| self.append(key));
        let payload = self.append(payload);
        if !headers.is_empty() {
            self.headers.push((self.entries.len(), headers));
        }
        self.entries.push(Entry { offset, timestamp_ms, key, payload });
    }

    fn append(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys and payloads held.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The message at `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Messages::len`].
    pub fn get(&self, index: usize) -> Message<'_> {
        let entry = &self.entries[index];
        let headers = match self.headers.binary_search_by_key(&index, |(at, _)| *at) {
            Ok(found) => self.headers[found].1.as_slice(),
            Err(_) => &[],
        };
        Message {
            offset: entry.offset,
            timestamp_ms: entry.timestamp_ms,
            key: entry.key.clone().map(|range| &self.bytes[range]),
            payload: &self.bytes[entry.payload.clone()],
            headers,
        }
    }

    /// All messages in order.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// What a source hands to the next room.
#[derive(Debug)]
pub enum Payload {
    /// Bytes that still need decoding (Kafka).
    Messages(Messages),
    /// Columns the source could make itself (files, generator).
    Decoded(Decoded),
}

/// A batch of one lane.
#[derive(Debug)]
pub struct SourceBatch {
    /// The lane all of it belongs to.
    pub lane: Lane,
    /// Offset at which reading resumes once everything up to here is committed.
    pub next_offset: i64,
    /// Append time of the newest message, milliseconds since the epoch, where the source knows it.
    pub appended_ms: Option<i64>,
    /// The records.
    pub payload: Payload,
}

impl SourceBatch {
    /// Bytes that it takes, about.
    pub fn byte_len(&self) -> usize {
        match &self.payload {
            Payload::Messages(messages) => messages.byte_len(),
            Payload::Decoded(decoded) => decoded.records.get_array_memory_size(),
        }
    }
}

/// What [`Source::poll`] found.
#[derive(Debug)]
pub enum Event {
    /// Records.
    Batch(SourceBatch),
    /// Lanes this process now owns, with the committed position each resumes from.
    Assigned(Vec<Assignment>),
    /// Lanes this process no longer owns once it lets go of them.
    Revoked(Vec<Lane>),
    /// Lanes that others may own already: what was not committed for them is not to be.
    Lost(Vec<Lane>),
    /// Nothing within the time given.
    Idle,
    /// A bounded source has no more records.
    End,
}

/// A lane taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The lane.
    pub lane: Lane,
    /// Committed offset and the metadata committed with it (the checkpoint's id), if there is one.
    pub committed: Option<(i64, String)>,
}

/// One of the three kinds of input. A source belongs to one thread; it hands out lanes that
/// resume where they were committed, and never more of a lane after its revocation.
pub trait Source: Send {
    /// The next event, after at most `timeout`.
    ///
    /// # Errors
    /// If the source cannot go on; see [`SourceError::is_retryable`].
    fn poll(&mut self, timeout: Duration) -> Result<Event, SourceError>;

    /// Stops (`true`) or resumes handing out records, where the stages behind it are full. A
    /// paused source must still be polled: a consumer group takes silence for death.
    ///
    /// # Errors
    /// If the source cannot go on.
    fn pause(&mut self, paused: bool) -> Result<(), SourceError>;

    /// Lets go of the lanes of an [`Event::Revoked`], once their work is committed.
    ///
    /// # Errors
    /// If the source cannot go on.
    fn release(&mut self) -> Result<(), SourceError>;

    /// What makes positions durable, if the source keeps them itself; otherwise the checkpoint
    /// does.
    fn committer(&self) -> Option<Box<dyn Commit>>;
}

/// Makes the positions of a source durable, from whichever thread knows that the outputs are.
pub trait Commit: Send {
    /// Commits, per lane, the offset at which reading resumes, with `metadata` (the checkpoint's
    /// id) beside each. Returns once the source has it.
    ///
    /// # Errors
    /// If the positions are not durable.
    fn commit(&self, positions: &[(Lane, i64)], metadata: &str) -> Result<(), SourceError>;

    /// The consumer group that positions are committed to, and this process's standing in it, for
    /// a sink that commits them with its results.
    fn group(&self) -> Option<ConsumerGroupMetadata>;

    /// What the lanes of all processes that share the input are committed with.
    ///
    /// # Errors
    /// If the source cannot tell now.
    fn committed_metadata(&self) -> Result<BTreeSet<String>, SourceError>;
}
