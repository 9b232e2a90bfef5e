//! What flows all the while: numbered readings of many machines, and messages that are none.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::common::{Machines, brokers};

/// Machines, named `press-0` and so on.
pub const MACHINES: usize = 40;
/// Partitions of the input, and of the results.
pub const PARTITIONS: i32 = 4;
/// Time between two rounds: a reading of every machine, a second of event time after the last.
const PACE: Duration = Duration::from_millis(100);
/// Rounds between two messages that are no records.
const LETTER_EVERY: usize = 7;
/// A wait after which the producer is asked again whether all is delivered.
const FLUSH: Duration = Duration::from_millis(500);

/// What the broker has acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Readings of each machine.
    pub rounds: usize,
    /// Messages that are no records, `letter 0` and so on.
    pub letters: usize,
}

/// A thread that writes until it is told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<Sent>>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Load {
    pub fn start(topic: String) -> anyhow::Result<Self> {
        let (stop, sent) = (Arc::default(), Arc::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        // Appends every message exactly once and in order, however long the broker is away.
        let producer: BaseProducer<Failures> = ClientConfig::new()
            .set("bootstrap.servers", brokers())
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("reconnect.backoff.max.ms", "500")
            .create_with_context(Failures::default())
            .context("the load's producer")?;
        let thread = thread::spawn(move || write(&producer, &topic, &stopped, &counted));
        Ok(Self { stop, sent, thread })
    }

    pub fn sent(&self) -> Sent {
        *self.sent.lock().unwrap()
    }

    /// An error if the thread has ended by itself.
    pub fn expect_running(&self) -> anyhow::Result<()> {
        ensure!(!self.thread.is_finished(), "the load ended by itself");
        Ok(())
    }

    /// Ends the thread; everything it wrote is acknowledged.
    pub fn stop(self) -> anyhow::Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(outcome) => outcome.context("the load")?,
            Err(_) => bail!("the load panicked"),
        }
        Ok(*self.sent.lock().unwrap())
    }
}

fn write(
    producer: &BaseProducer<Failures>,
    topic: &str,
    stop: &AtomicBool,
    sent: &Mutex<Sent>,
) -> anyhow::Result<()> {
    let mut machines = Machines::new(MACHINES);
    let mut now = Sent::default();
    while !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + PACE;
        for (number, (key, record)) in machines.next(1).iter().enumerate() {
            append(producer, topic, number, key, record)?;
        }
        now.rounds += 1;
        if now.rounds.is_multiple_of(LETTER_EVERY) {
            append(producer, topic, now.letters, "letters", &format!("letter {}", now.letters))?;
            now.letters += 1;
        }
        while let Err(error) = producer.flush(FLUSH) {
            let waiting = KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut);
            ensure!(error == waiting, "flush: {error}");
        }
        let failures = producer.context().0.load(Ordering::Relaxed);
        ensure!(failures == 0, "{failures} messages of the load were not delivered");
        *sent.lock().unwrap() = now;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn append(
    producer: &BaseProducer<Failures>,
    topic: &str,
    number: usize,
    key: &str,
    value: &str,
) -> anyhow::Result<()> {
    let partition = (number % PARTITIONS as usize) as i32;
    let record = BaseRecord::to(topic).partition(partition).key(key).payload(value);
    producer.send(record).map_err(|(error, _)| error)?;
    producer.poll(Duration::ZERO);
    Ok(())
}

/// Counts messages that were not delivered.
#[derive(Default)]
struct Failures(AtomicUsize);

impl rdkafka::ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, delivery: &DeliveryResult<'_>, (): ()) {
        if delivery.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
