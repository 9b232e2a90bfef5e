//! A reader of committed results that follows them all the while, and one that reads them again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;

use crate::common::{Plant, brokers, segments_of};
use crate::load::{MACHINES, PARTITIONS, Sent};
use crate::tally::{Found, Place};

/// Topics of results; dead letters have one partition.
pub const TOPICS: [&str; 3] = ["embeddings", "anomalies", "dead-letters"];
/// The key under which dead letters are counted.
pub const LETTERS: &str = "letter";
/// Longest wait for a partition to be read to its end.
const READ: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Arrivals closer together than this are one.
const ONE_ARRIVAL: Duration = Duration::from_millis(5);

pub fn partitions(kind: &str) -> i32 {
    if kind == "dead-letters" { 1 } else { PARTITIONS }
}

pub fn machines() -> Vec<String> {
    (0..MACHINES).map(|number| format!("press-{number}")).collect()
}

/// The number of the dead letter `letter 17`.
pub fn letter(payload: &str) -> anyhow::Result<u64> {
    let number = payload.strip_prefix("letter ").and_then(|number| number.parse().ok());
    number.with_context(|| format!("not a letter of the load: {payload:?}"))
}

/// Follows the topics of results from their beginning.
pub struct Witness {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen so far.
struct Seen {
    /// By topic and key, the number that comes next.
    next: BTreeMap<(&'static str, String), u64>,
    letters: BTreeSet<u64>,
    arrivals: Vec<Instant>,
    /// The first thing that must not be.
    wrong: Option<String>,
}

impl Witness {
    pub fn start(plant: &Plant) -> anyhow::Result<Self> {
        let consumer = consumer(plant, &TOPICS)?;
        let kinds = TOPICS.map(|kind| (plant.topic(kind), kind));
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::new(Mutex::new(Seen::nothing())));
        let (stopped, witnessed) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A broker that is away comes back; what it has then is read from where we were.
                let Some(Ok(message)) = consumer.poll(POLL) else { continue };
                let kind = kinds.iter().find(|(topic, _)| topic == message.topic());
                let Some((_, kind)) = kind else { continue };
                let mut seen = witnessed.lock().unwrap();
                if let Err(error) = seen.take(kind, &message) {
                    seen.wrong.get_or_insert(format!("{kind}: {error:#}"));
                }
            }
        });
        Ok(Self { stop, seen, thread: Some(thread) })
    }

    /// An error as soon as something is there twice, or before its predecessor.
    pub fn expect_clean(&self) -> anyhow::Result<()> {
        match &self.seen.lock().unwrap().wrong {
            Some(wrong) => bail!("{wrong}"),
            None => Ok(()),
        }
    }

    /// How many results of what was sent are not visible yet.
    pub fn missing(&self, sent: Sent) -> u64 {
        let seen = self.seen.lock().unwrap();
        let expected = segments_of(sent.rounds);
        let segments: u64 = seen.next.values().map(|next| expected.saturating_sub(*next)).sum();
        let letters = (0..sent.letters as u64).filter(|letter| !seen.letters.contains(letter));
        segments + letters.count() as u64
    }

    /// When results became visible.
    pub fn arrivals(&self) -> Vec<Instant> {
        self.seen.lock().unwrap().arrivals.clone()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn nothing() -> Self {
        let keys = |kind| machines().into_iter().map(move |key| ((kind, key), 0));
        Self {
            next: keys("embeddings").chain(keys("anomalies")).collect(),
            letters: BTreeSet::new(),
            arrivals: Vec::new(),
            wrong: None,
        }
    }

    fn take(&mut self, kind: &'static str, message: &impl Message) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.arrivals.last().is_none_or(|last| now - *last >= ONE_ARRIVAL) {
            self.arrivals.push(now);
        }
        let (key, sequence) = identity(kind, message)?;
        let place = place(message);
        if kind == "dead-letters" {
            anyhow::ensure!(self.letters.insert(sequence), "{key} {sequence} again at {place}");
            return Ok(());
        }
        let next = self.next.get_mut(&(kind, key.clone()));
        let next = next.with_context(|| format!("unknown key {key:?} at {place}"))?;
        anyhow::ensure!(
            sequence == *next,
            "{key} #{sequence} at {place}, where #{next} was to come"
        );
        *next += 1;
        Ok(())
    }
}

/// What a message of a topic of results is about: key and sequence.
fn identity(kind: &str, message: &impl Message) -> anyhow::Result<(String, u64)> {
    #[derive(Deserialize)]
    struct Segment {
        key: String,
        sequence: u64,
    }
    let payload = message.payload().context("an empty message")?;
    if kind == "dead-letters" {
        return Ok((LETTERS.to_owned(), letter(str::from_utf8(payload)?)?));
    }
    let segment: Segment = serde_json::from_slice(payload)?;
    anyhow::ensure!(
        message.key() == Some(segment.key.as_bytes()),
        "the message's key is not {:?}",
        segment.key
    );
    Ok((segment.key, segment.sequence))
}

fn place(message: &impl Message) -> Place {
    Place::Message { partition: message.partition(), offset: message.offset() }
}

/// Reads the committed messages of a topic of results once more, from beginning to end.
pub fn read(plant: &Plant, kind: &str) -> anyhow::Result<Found> {
    let consumer = consumer(plant, &[kind])?;
    let mut open = partitions(kind);
    let mut found = if kind == "dead-letters" { Found::in_any_order() } else { Found::in_order() };
    let mut homes: BTreeMap<String, i32> = BTreeMap::new();
    while open > 0 {
        match consumer.poll(READ) {
            Some(Ok(message)) => {
                let (key, sequence) = identity(kind, &message)?;
                let home = *homes.entry(key.clone()).or_insert(message.partition());
                anyhow::ensure!(
                    home == message.partition(),
                    "{kind}: {key} in partitions {home} and {}",
                    message.partition()
                );
                found.add(&key, sequence, place(&message));
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => bail!("{kind}: {error}"),
            None => bail!("{kind}: {open} partitions not read to their end within {READ:?}"),
        }
    }
    Ok(found)
}

/// Stands at the beginning of every partition of the topics; sees only what is committed.
fn consumer(plant: &Plant, kinds: &[&str]) -> anyhow::Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", "witness")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("reconnect.backoff.max.ms", "500")
        .create()?;
    let mut lanes = TopicPartitionList::new();
    for kind in kinds {
        for partition in 0..partitions(kind) {
            lanes.add_partition_offset(&plant.topic(kind), partition, Offset::Beginning)?;
        }
    }
    consumer.assign(&lanes)?;
    Ok(consumer)
}
