//! Results to Kafka topics.

mod arrow;
mod avro;
mod encode;
mod json;

use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use self::encode::Encoder;
use super::{Outputs, Positions, Sink, SinkError, StagedFile};
use crate::config;
use crate::decode::DeadLetter;
use crate::faults::step;
use crate::kafka::{
    self, CONNECT_TIMEOUT, LARGEST_MESSAGE, Reports, Silence, Trouble, error_code, trouble,
};
use crate::source::{Header, Lane};

/// How long a full queue is left to the brokers before trying again.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(5);
/// How long [`KafkaSink::flush`] waits before it looks at what came back.
const FLUSH_PAUSE: Duration = Duration::from_millis(5);
/// Kafka's own default of `max.message.bytes`, for topics whose settings may not be read.
const DEFAULT_LARGEST_BATCH: usize = 1_048_588;
/// Bytes that a batch of one message takes for itself (61) and its lengths, generously.
const BATCH_OVERHEAD: usize = 128;
/// Bytes that the lengths of one header take at most.
const HEADER_OVERHEAD: usize = 10;
/// Longest reason in a dead letter's header, bytes.
const LONGEST_REASON: usize = 4096;

/// Longest wait for one answer about a transaction.
const TRANSACTION_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for an epoch to be undone.
const ABORT_WAIT: Duration = Duration::from_secs(5);
/// How long brokers that cannot answer about a transaction are asked again.
const PERSISTENCE: Duration = Duration::from_secs(60);
const PERSISTENCE_PAUSE: Duration = Duration::from_millis(100);
/// Time that a slow store may take to save a checkpoint within a transaction.
const SLOW_COMMIT: Duration = Duration::from_secs(30);
/// Bounds of `transaction.timeout.ms`. An epoch that takes longer is undone, and what was queued
/// when its commit was asked for is part of it; a process that is gone for good holds readers back
/// as long. Brokers allow up to 15 minutes by default.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(120);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(900);

/// What the producer is given, unless the properties say otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("compression.type", "lz4"),
    ("linger.ms", "5"),
    // As Java clients do: a key's outputs lie in the partition number of its inputs.
    ("partitioner", "murmur2_random"),
    // All that may wait to be sent; larger than the largest message.
    ("queue.buffering.max.kbytes", "98304"),
    ("batch.size", "1000000"),
];

/// An idempotent producer of results, where they are to come exactly once a transactional one.
///
/// Each epoch is one transaction, into which [`Sink::commit`] puts the positions that it was made
/// from ([KIP-98](https://cwiki.apache.org/confluence/x/XxIIAw)), with the member's standing in its
/// consumer group, so that a member that the group has given up cannot commit
/// ([KIP-447](https://cwiki.apache.org/confluence/x/-AtbBw)). The transaction's name is
/// `<pipeline>.all.<instance>`: a restarted process ends what its predecessor had left open, and a
/// predecessor that still lives is fenced. Where the source keeps no positions, the commit is a
/// mark in the group `contrastream-<pipeline>`, at the topic of dead letters.
///
/// Each segment becomes one message on the topic of embeddings and one on that of anomalies, with
/// the fields of `schemas/`, keyed by the record's key; in Arrow, a message holds successive
/// segments of one key. At most 96 MiB (`queue.buffering.max.kbytes`) wait to be sent; when that is full, writing
/// waits. What was not flushed is lost when the sink is dropped.
pub struct KafkaSink {
    producer: ThreadedProducer<Deliveries>,
    topics: Topics,
    /// Most bytes of a dead letter, with its headers.
    largest_letter: usize,
    encoder: Encoder,
    brokers: String,
    transactions: Option<Transactions>,
}

/// What a transactional producer knows of its epochs.
struct Transactions {
    id: String,
    /// When the present epoch's began, if anything of it was sent.
    began: Option<Instant>,
    /// `transaction.timeout.ms`.
    timeout: Duration,
    /// Where the commit of a source without positions of its own is marked.
    mark: Option<Mark>,
}

/// A member of no generation of a group that nobody joins.
struct Mark {
    consumer: BaseConsumer,
    lane: Lane,
}

/// Names of the output topics.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Topics {
    embeddings: Option<String>,
    anomalies: Option<String>,
    dead_letters: String,
}

impl KafkaSink {
    /// Checks brokers and topics, and creates missing topics with the brokers' default number of
    /// partitions and replicas.
    ///
    /// # Errors
    /// If no broker answers within 10 seconds, a topic is missing and cannot be created, or a
    /// property is not one that librdkafka takes; if messages are to be Avro and the registry has
    /// not their schemas. The right to write shows only in [`KafkaSink::write`] and
    /// [`KafkaSink::flush`].
    pub fn connect(
        config: &config::KafkaSink,
        pipeline: &config::Pipeline,
    ) -> Result<Self, SinkError> {
        let topics = Topics::new(config, &pipeline.name);
        let (brokers, mut settings) = settings(config, pipeline)?;
        let encoder = Encoder::new(config.format, pipeline, &topics)?;

        let transactions =
            Transactions::new(pipeline, &brokers, &topics.dead_letters, &mut settings)?;
        let limits = prepare(&brokers, &settings, &topics)?;
        // A batch of small messages must not be refused where each of them would be taken.
        let largest_batch = number(&settings, "batch.size").min(limits.any_topic);
        settings.set("batch.size", largest_batch.to_string());
        // A transaction without one of its messages cannot be committed.
        let expendable = transactions.is_none().then_some(topics.dead_letters.as_str());
        let deliveries = Deliveries::new(&brokers, expendable);
        let producer = settings.create_with_context(deliveries).map_err(property)?;
        if let Some(transactions) = &transactions {
            transactions.take_over(&producer)?;
        }
        Ok(Self {
            producer,
            brokers,
            transactions,
            largest_letter: number(&settings, "message.max.bytes").min(limits.dead_letters),
            encoder,
            topics,
        })
    }

    /// Hands one message to the producer, which copies it; waits while its queue is full.
    fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), SinkError> {
        let deliveries = self.producer.context();
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                    record = unsent;
                    self.expect_delivered()?;
                    thread::sleep(FULL_QUEUE_PAUSE);
                }
                Err((error, unsent)) => {
                    return Err(self.reason_of(deliveries.failure(unsent.topic, &error)));
                }
            }
        }
    }

    /// The first failure to deliver what was sent.
    fn expect_delivered(&self) -> Result<(), SinkError> {
        self.producer.context().take_failure().map_err(|failure| self.reason_of(failure))
    }

    /// A producer that can do nothing more, or whose transaction cannot be committed, drops what it
    /// holds: why it cannot is the reason.
    fn reason_of(&self, failure: SinkError) -> SinkError {
        let Some(transactions) = &self.transactions else { return failure };
        if let Some((code, reason)) = self.producer.client().fatal_error() {
            let error = KafkaError::MessageProduction(code);
            return transactions.failed(Some((code, reason)), &error);
        }
        // What lasts is a reason by itself: that messages were dropped passes.
        if !failure.is_retryable() {
            return failure;
        }
        // Within a transaction nothing begins; of one that failed, this says why.
        match self.producer.begin_transaction() {
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                if trouble(error.code()) == Trouble::Refused {
                    let topics: Vec<_> = self.topics.all().collect();
                    let reason = format!("topics {}: {}", topics.join(", "), error.string());
                    return SinkError::Refused { brokers: self.brokers.clone(), reason };
                }
                transactions.failed(None, &KafkaError::Transaction(error))
            }
            _ => failure,
        }
    }
}

impl Sink for KafkaSink {
    /// Sends one embedding and one anomaly message per segment; does not wait for their delivery,
    /// but for room to send them.
    ///
    /// # Errors
    /// If an earlier message was not delivered, or one cannot be sent.
    fn write(&mut self, outputs: &Outputs) -> Result<(), SinkError> {
        self.begin()?;
        self.expect_delivered()?;
        let mut next = 0;
        while let Some(segment) = outputs.segments.get(next) {
            let run = self.encoder.run(outputs, next);
            let key = segment.key.as_bytes();
            if let Some(topic) = &self.topics.embeddings {
                self.encoder
                    .embeddings(outputs, run.clone())
                    .map_err(|error| unfit(topic, error))?;
                self.send(BaseRecord::to(topic).key(key).payload(self.encoder.message()))?;
            }
            if let Some(topic) = &self.topics.anomalies {
                self.encoder
                    .anomalies(outputs, run.clone())
                    .map_err(|error| unfit(topic, error))?;
                self.send(BaseRecord::to(topic).key(key).payload(self.encoder.message()))?;
            }
            next = run.end;
        }
        Ok(())
    }

    /// Sends a message that a stage could not take on to the topic of dead letters, with headers
    /// that say why and where it came from. What does not fit there is cut: first the end of its
    /// bytes, then its headers, then its key; `contrastream.truncated` holds its original size.
    ///
    /// # Errors
    /// If an earlier message was not delivered, or this one cannot be sent.
    fn dead_letter(&mut self, letter: &DeadLetter) -> Result<(), SinkError> {
        self.begin()?;
        self.expect_delivered()?;
        let mut marks = marks(letter);
        let truncated = mark("truncated", letter.payload.len().to_string());
        let own: usize = marks.iter().chain([&truncated]).map(header_size).sum();
        let cut = Cut::new(letter, self.largest_letter.saturating_sub(own));
        if cut.truncated {
            marks.push(truncated);
        }
        let mut headers = OwnedHeaders::new_with_capacity(cut.headers.len() + marks.len());
        for (name, value) in cut.headers.iter().chain(&marks) {
            headers = headers.insert(rdkafka::message::Header { key: name, value: value.as_ref() });
        }
        self.send(BaseRecord {
            key: cut.key,
            payload: Some(cut.payload),
            headers: Some(headers),
            ..BaseRecord::to(&self.topics.dead_letters)
        })
    }

    /// Returns once everything written is acknowledged.
    ///
    /// # Errors
    /// The first message that was not delivered, as soon as that is known; at the latest after
    /// `message.timeout.ms` (5 minutes).
    fn prepare(&mut self) -> Result<Vec<StagedFile>, SinkError> {
        loop {
            let outcome = self.producer.flush(FLUSH_PAUSE);
            self.expect_delivered()?;
            match outcome {
                Ok(()) => return Ok(Vec::new()),
                Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)) => {}
                Err(error) => return Err(self.producer.context().failure("", &error)),
            }
        }
    }

    /// Commits the transaction with the positions in it. What cannot be committed is undone.
    fn commit(&mut self, positions: &Positions<'_>) -> Option<Result<(), SinkError>> {
        self.transactions.as_ref()?;
        let committed = self.begin().and_then(|()| self.commit_transaction(positions));
        if committed.is_err() {
            self.abort();
        } else if let Some(transactions) = &mut self.transactions {
            transactions.began = None;
        }
        Some(committed)
    }

    fn last_commit(&mut self) -> Option<Result<Option<String>, SinkError>> {
        let transactions = self.transactions.as_ref()?;
        Some(transactions.mark.as_ref()?.read(&transactions.id))
    }
}

impl KafkaSink {
    /// Begins the epoch's transaction unless it has begun.
    fn begin(&mut self) -> Result<(), SinkError> {
        let Some(transactions) = self.transactions.as_mut().filter(|epoch| epoch.began.is_none())
        else {
            return Ok(());
        };
        self.producer
            .begin_transaction()
            .map_err(|error| transactions.failed(self.producer.client().fatal_error(), &error))?;
        transactions.began = Some(Instant::now());
        Ok(())
    }

    fn commit_transaction(&self, positions: &Positions<'_>) -> Result<(), SinkError> {
        let Some(transactions) = &self.transactions else { return Ok(()) };
        let Transactions { id, mark, .. } = transactions;
        let failed = |error| transactions.failed(self.producer.client().fatal_error(), &error);
        let mut offsets = TopicPartitionList::new();
        let at_mark;
        let (lanes, group) = match (&positions.group, mark) {
            (Some(group), _) => (positions.offsets, Some(group)),
            (None, Some(mark)) => {
                at_mark = ([(mark.lane.clone(), 0)], mark.consumer.group_metadata());
                (&at_mark.0[..], at_mark.1.as_ref())
            }
            (None, None) => (positions.offsets, None),
        };
        for (lane, offset) in lanes {
            let mut partition = offsets.add_partition(&lane.topic, lane.partition);
            partition.set_offset(Offset::Offset(*offset)).map_err(failed)?;
            partition.set_metadata(positions.checkpoint);
        }
        if let (Some(group), true) = (group, offsets.count() > 0) {
            persist(id, || {
                self.producer.send_offsets_to_transaction(&offsets, group, TRANSACTION_WAIT)
            })
            .map_err(failed)?;
        }
        step("commit.offsets").map_err(|reason| SinkError::Transaction {
            id: id.clone(),
            reason: reason.to_string(),
            retryable: true,
        })?;
        persist(id, || self.producer.commit_transaction(TRANSACTION_WAIT)).map_err(failed)
    }

    /// Undoes the present epoch, as far as the brokers can be told: the next process of this name,
    /// or the brokers themselves after `transaction.timeout.ms`, see to the rest.
    fn abort(&mut self) {
        let Some(transactions) = self.transactions.as_mut().filter(|epoch| epoch.began.is_some())
        else {
            return;
        };
        transactions.began = None;
        if let Err(error) = self.producer.abort_transaction(ABORT_WAIT) {
            tracing::warn!(%error, transaction = transactions.id, "epoch not undone yet");
        }
    }
}

impl Drop for KafkaSink {
    /// Readers need not wait for an epoch that never ends.
    fn drop(&mut self) {
        self.abort();
    }
}

impl Transactions {
    /// Makes `settings` transactional where results are to come exactly once.
    fn new(
        pipeline: &config::Pipeline,
        brokers: &str,
        dead_letters: &str,
        settings: &mut ClientConfig,
    ) -> Result<Option<Self>, SinkError> {
        if !pipeline.exactly_once() {
            return Ok(None);
        }
        let group_commits = matches!(pipeline.source, config::Source::Kafka(_));
        let mark = if group_commits {
            None
        } else {
            let mut consumer = kafka::settings(brokers, &[], &config::Properties::new(), &[])
                .map_err(|reason| SinkError::Property { reason })?;
            for name in settings.config_map().keys().filter(|name| is_connection(name)) {
                consumer.set(*name, settings.get(name).unwrap_or_default());
            }
            consumer.set("group.id", pipeline.group()).set("enable.auto.commit", "false");
            consumer.set("isolation.level", "read_committed");
            let consumer = consumer.create().map_err(property)?;
            Some(Mark { consumer, lane: Lane::new(dead_letters, 0) })
        };
        // Nobody but one process can read a file for a pipeline: any other is to be fenced.
        let id = match group_commits {
            true => format!("{}.all.{}", pipeline.name, pipeline.instance()),
            false => format!("{}.all", pipeline.name),
        };
        settings.set("transactional.id", &id);
        if settings.get("transaction.timeout.ms").is_none() {
            let epoch = pipeline.checkpoint.interval.0.saturating_mul(2) + SLOW_COMMIT;
            let timeout = epoch.clamp(SHORTEST_TIMEOUT, LONGEST_TIMEOUT);
            settings.set("transaction.timeout.ms", timeout.as_millis().to_string());
        }
        let timeout = Duration::from_millis(number(settings, "transaction.timeout.ms") as u64);
        Ok(Some(Self { id, began: None, timeout, mark }))
    }

    /// Ends what a predecessor of the same name had left open, and fences it.
    fn take_over(&self, producer: &ThreadedProducer<Deliveries>) -> Result<(), SinkError> {
        persist(&self.id, || producer.init_transactions(TRANSACTION_WAIT))
            .map_err(|error| self.failed(producer.client().fatal_error(), &error))
    }

    /// What it means that the transaction failed with `error`, given the producer's last fatal
    /// error.
    fn failed(&self, fatal: Option<(RDKafkaErrorCode, String)>, error: &KafkaError) -> SinkError {
        use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
        let id = self.id.clone();
        let (code, reason) = match (fatal, error) {
            (Some((code, reason)), _) => (Some(code), reason),
            (None, KafkaError::Transaction(error)) => (Some(error.code()), error.string()),
            (None, other) => (error_code(other), other.to_string()),
        };
        let undone = matches!(error, KafkaError::Transaction(error) if error.txn_requires_abort());
        match code {
            Some(Fenced | ProducerFenced | InvalidProducerEpoch) if !undone => {
                match self.began.map(|began| began.elapsed()) {
                    // The brokers undo what takes too long in the same way.
                    Some(took) if took >= self.timeout => {
                        let reason = format!("took {took:.0?}, longer than transaction.timeout.ms");
                        SinkError::Transaction { id, reason, retryable: true }
                    }
                    _ => SinkError::Fenced { id, reason },
                }
            }
            Some(code) if trouble(code) == Trouble::Refused => {
                SinkError::Transaction { id, reason, retryable: false }
            }
            // Undone, or not known to be done: whoever goes on reads what was committed.
            _ => SinkError::Transaction { id, reason, retryable: true },
        }
    }
}

impl Mark {
    /// The checkpoint of the last commit.
    fn read(&self, id: &str) -> Result<Option<String>, SinkError> {
        let mut mark = TopicPartitionList::new();
        mark.add_partition(&self.lane.topic, self.lane.partition);
        let read = || {
            let committed = self.consumer.committed_offsets(mark.clone(), CONNECT_TIMEOUT)?;
            let elements = committed.elements();
            let Some(partition) = elements.first() else { return Ok(None) };
            partition.error()?;
            let marked = matches!(partition.offset(), Offset::Offset(_));
            Ok(marked.then(|| partition.metadata().to_owned()))
        };
        persist(id, read).map_err(|error| SinkError::Transaction {
            id: id.to_owned(),
            reason: format!("its last commit: {error}"),
            retryable: error_code(&error).map(trouble) == Some(Trouble::Passing),
        })
    }
}

/// Whether a property says how to reach the brokers, rather than how to produce.
fn is_connection(name: &str) -> bool {
    ["security.", "ssl.", "sasl.", "socket.", "broker.", "client.", "enable.ssl"]
        .iter()
        .any(|beginning| name.starts_with(beginning))
}

/// Repeats what the brokers could not do for now. An answer that was not waited for is picked up by
/// the next try.
fn persist<T>(id: &str, mut attempt: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let deadline = Instant::now() + PERSISTENCE;
    loop {
        match attempt() {
            Err(error) if may_repeat(&error) && Instant::now() < deadline => {
                tracing::warn!(%error, transaction = id, "brokers in trouble, trying again");
                thread::sleep(PERSISTENCE_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn may_repeat(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_retriable(),
        other => error_code(other).map(trouble) == Some(Trouble::Passing),
    }
}

impl Topics {
    fn new(config: &config::KafkaSink, pipeline: &str) -> Self {
        let named = |name: &Option<String>, kind| match name {
            Some(name) => name.clone(),
            None => format!("{pipeline}.{kind}"),
        };
        let or_none = |name: String| (!name.is_empty()).then_some(name);
        Self {
            embeddings: or_none(named(&config.embeddings, "embeddings")),
            anomalies: or_none(named(&config.anomalies, "anomalies")),
            dead_letters: named(&config.dead_letters, "dead-letters"),
        }
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        let results = [self.embeddings.as_deref(), self.anomalies.as_deref()];
        results.into_iter().flatten().chain([self.dead_letters.as_str()])
    }
}

/// Brokers and settings of the producer: those of the sink, and where it names no brokers, those
/// of a Kafka source beneath them.
fn settings(
    config: &config::KafkaSink,
    pipeline: &config::Pipeline,
) -> Result<(String, ClientConfig), SinkError> {
    let (brokers, mut properties) = match (&config.brokers, &pipeline.source) {
        (Some(brokers), _) => (brokers, config::Properties::new()),
        (None, config::Source::Kafka(source)) => {
            kafka::settings(&source.brokers, &[], &source.properties, &[]).map_err(|reason| {
                SinkError::Property { reason: format!("those of source.properties: {reason}") }
            })?;
            (&source.brokers, source.properties.clone())
        }
        (None, _) => {
            let reason = "brokers are needed where the source is not Kafka".to_owned();
            return Err(SinkError::Property { reason });
        }
    };
    properties.overlay(&config.properties);
    let largest_message = LARGEST_MESSAGE.to_string();
    let mut defaults = DEFAULTS.to_vec();
    defaults.push(("message.max.bytes", &largest_message));
    let settings = kafka::settings(brokers, &defaults, &properties, &[])
        .map_err(|reason| SinkError::Property { reason })?;
    if settings.get("transactional.id").is_some() {
        let reason = "transactional.id is set by checkpoint.instance".to_owned();
        return Err(SinkError::Property { reason });
    }
    let (queue, message) = (
        number(&settings, "queue.buffering.max.kbytes") * 1024,
        number(&settings, "message.max.bytes"),
    );
    if queue < message {
        let reason = format!(
            "queue.buffering.max.kbytes ({queue} bytes) must hold a message of message.max.bytes ({message})"
        );
        return Err(SinkError::Property { reason });
    }
    Ok((brokers.clone(), settings))
}

/// A property that has a default here and was checked by librdkafka to be a number.
fn number(settings: &ClientConfig, name: &str) -> usize {
    settings.get(name).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Largest batches that topics take, bytes.
struct Limits {
    any_topic: usize,
    dead_letters: usize,
}

/// Sees to it that all output topics are there.
fn prepare(brokers: &str, settings: &ClientConfig, topics: &Topics) -> Result<Limits, SinkError> {
    let silence = |silence| match silence {
        Silence::Unreachable(reason) => {
            SinkError::Unreachable { brokers: brokers.to_owned(), reason }
        }
        Silence::Refused(reason) => SinkError::Refused { brokers: brokers.to_owned(), reason },
    };
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    // Only asks. An admin client would not tell why no broker answers.
    let deliveries = Deliveries::new(brokers, None);
    let mut plain = settings.clone();
    plain.remove("transactional.id");
    let asking: BaseProducer<Deliveries> =
        plain.create_with_context(deliveries).map_err(property)?;
    let mut missing = Vec::new();
    for topic in topics.all() {
        let serve = || asking.poll(Duration::from_millis(100));
        let reports = &asking.context().reports;
        let partitions =
            kafka::insist(reports, deadline, serve, format_args!("topic {topic}"), |wait| {
                kafka::partitions(asking.client(), topic, wait)
            })
            .map_err(silence)?;
        if partitions.is_none() {
            missing.push(topic);
        }
    }
    let admin: AdminClient<DefaultClientContext> = plain.create().map_err(property)?;
    if !missing.is_empty() {
        create(&admin, &missing, brokers)?;
    }
    let limits: Vec<usize> = topics.all().map(|topic| largest_batch(&admin, topic)).collect();
    let any_topic = limits.iter().copied().min().unwrap_or(DEFAULT_LARGEST_BATCH);
    let dead_letters = limits.last().copied().unwrap_or(DEFAULT_LARGEST_BATCH);
    Ok(Limits { any_topic, dead_letters })
}

fn create(
    admin: &AdminClient<DefaultClientContext>,
    missing: &[&str],
    brokers: &str,
) -> Result<(), SinkError> {
    let as_brokers_default = -1;
    let topics: Vec<_> = missing
        .iter()
        .map(|topic| {
            let replication = TopicReplication::Fixed(as_brokers_default);
            NewTopic::new(topic, as_brokers_default, replication)
        })
        .collect();
    let options = AdminOptions::new()
        .request_timeout(Some(CONNECT_TIMEOUT))
        .operation_timeout(Some(CONNECT_TIMEOUT));
    let refused = |topic: &str, error: &dyn std::fmt::Display| SinkError::Refused {
        brokers: brokers.to_owned(),
        reason: format!("topic {topic} does not exist and cannot be created: {error}"),
    };
    let results = wait_for(admin.create_topics(&topics, &options))
        .map_err(|error| refused(&missing.join(", "), &error))?;
    for result in results {
        match result {
            Ok(topic) => tracing::info!(%topic, "created output topic"),
            // By another instance, just now.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) if trouble(code) == Trouble::NoTopic => {
                return Err(SinkError::MissingTopic { topic, brokers: brokers.to_owned() });
            }
            Err((topic, code)) => return Err(refused(&topic, &code)),
        }
    }
    Ok(())
}

/// `max.message.bytes` of a topic; Kafka's default where it may not be read.
fn largest_batch(admin: &AdminClient<DefaultClientContext>, topic: &str) -> usize {
    let specifier = [ResourceSpecifier::Topic(topic)];
    let options = AdminOptions::new().request_timeout(Some(CONNECT_TIMEOUT));
    let described = wait_for(admin.describe_configs(&specifier, &options));
    let limit = described.ok().and_then(|results| {
        let resource = results.into_iter().next()?.ok()?;
        resource.get("max.message.bytes")?.value.as_ref()?.parse().ok()
    });
    limit.unwrap_or_else(|| {
        tracing::debug!(topic, "max.message.bytes cannot be read, taken to be Kafka's default");
        DEFAULT_LARGEST_BATCH
    })
}

/// Waits for an answer that librdkafka bounds in time, on no runtime.
fn wait_for<F: Future>(answer: F) -> F::Output {
    let mut answer = pin!(answer);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match answer.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn property(error: KafkaError) -> SinkError {
    SinkError::Property { reason: kafka::property_reason(&error) }
}

/// Callbacks of the producer, on its own thread.
struct Deliveries {
    reports: Reports,
    brokers: String,
    /// The topic of which messages that it refuses as too large are passed over.
    expendable: Option<String>,
    /// The first message that was not delivered, until it is told.
    failure: Mutex<Option<SinkError>>,
}

impl Deliveries {
    fn new(brokers: &str, expendable: Option<&str>) -> Self {
        Self {
            reports: Reports::default(),
            brokers: brokers.to_owned(),
            expendable: expendable.map(str::to_owned),
            failure: Mutex::default(),
        }
    }

    fn take_failure(&self) -> Result<(), SinkError> {
        kafka::lock(&self.failure).take().map_or(Ok(()), Err)
    }

    /// What it means that a message to `topic` met `error`.
    fn failure(&self, topic: &str, error: &KafkaError) -> SinkError {
        let (topic, brokers) = (topic.to_owned(), self.brokers.clone());
        let reason = error.to_string();
        match error_code(error).map(trouble) {
            Some(Trouble::NoTopic) => SinkError::MissingTopic { topic, brokers },
            Some(Trouble::Refused) => {
                SinkError::Refused { brokers, reason: format!("topic {topic}: {reason}") }
            }
            Some(Trouble::Passing) => SinkError::Delivery { topic, reason, retryable: true },
            _ => SinkError::Delivery { topic, reason, retryable: false },
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Reports::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if self.reports.is_news(&error) {
            tracing::warn!(%error, reason, "kafka producer in trouble, going on");
        }
        self.reports.note(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Err((error, message)) = result else { return };
        let topic = message.topic();
        let too_large = error_code(error) == Some(RDKafkaErrorCode::MessageSizeTooLarge);
        if too_large && self.expendable.as_deref() == Some(topic) {
            // The topic takes less than it said, or may not be asked. The message is still where
            // it came from, and is not worth stopping for.
            let origin = message.headers().map(origin).unwrap_or_default();
            tracing::error!(topic, %error, origin, "dead letter lost");
            return;
        }
        kafka::lock(&self.failure).get_or_insert_with(|| self.failure(topic, error));
    }
}

/// Results that cannot be encoded.
fn unfit(topic: &str, reason: impl ToString) -> SinkError {
    SinkError::Delivery { topic: topic.to_owned(), reason: reason.to_string(), retryable: false }
}

/// The headers that say why a message is a dead letter and where it came from.
fn marks(letter: &DeadLetter) -> Vec<Header> {
    let reason = &letter.reason[..letter.reason.floor_char_boundary(LONGEST_REASON)];
    vec![
        mark("reason", reason.to_owned()),
        mark("stage", letter.stage.to_owned()),
        mark("topic", letter.lane.topic.to_string()),
        mark("partition", letter.lane.partition.to_string()),
        mark("offset", letter.offset.to_string()),
    ]
}

fn mark(name: &str, value: String) -> Header {
    (format!("contrastream.{name}"), Some(value.into_bytes()))
}

/// Where a dead letter came from, from its headers: `topic partition offset`.
fn origin<H: Headers>(headers: &H) -> String {
    let wanted = ["contrastream.topic", "contrastream.partition", "contrastream.offset"];
    let found = headers.iter().filter(|header| wanted.contains(&header.key));
    let values = found.map(|header| String::from_utf8_lossy(header.value.unwrap_or_default()));
    values.collect::<Vec<_>>().join(" ")
}

fn header_size((name, value): &Header) -> usize {
    name.len() + value.as_ref().map_or(0, Vec::len) + HEADER_OVERHEAD
}

/// What of a dead letter fits.
#[derive(Debug, PartialEq)]
struct Cut<'a> {
    key: Option<&'a [u8]>,
    headers: &'a [Header],
    payload: &'a [u8],
    truncated: bool,
}

impl<'a> Cut<'a> {
    /// Cuts `letter` down to `room` bytes.
    fn new(letter: &'a DeadLetter, room: usize) -> Self {
        let room = room.saturating_sub(BATCH_OVERHEAD);
        let key = letter.key.as_deref();
        let key_size = key.map_or(0, <[u8]>::len);
        let headers_size: usize = letter.headers.iter().map(header_size).sum();
        let (key, headers, left) = if key_size + headers_size <= room {
            (key, letter.headers.as_slice(), room - key_size - headers_size)
        } else if key_size <= room {
            (key, &[][..], room - key_size)
        } else {
            (None, &[][..], room)
        };
        let payload = &letter.payload[..letter.payload.len().min(left)];
        let truncated = payload.len() < letter.payload.len()
            || headers.len() < letter.headers.len()
            || key != letter.key.as_deref();
        Self { key, headers, payload, truncated }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::super::{Cause, ModelVersion, Score, SegmentMeta};
    use super::*;
    use crate::source::Lane;

    pub(super) const MODEL: ModelVersion = ModelVersion { steps: 5, wander: 0.25 };

    pub(super) fn segment() -> SegmentMeta {
        SegmentMeta {
            key: Arc::from("pump \"7\""),
            lane: Lane::new("plant.sensors", 3),
            sequence: 11,
            window_start: 1_700_000_000_000_000,
            window_end: 1_700_000_063_000_000,
            first_offset: 40,
            last_offset: 103,
        }
    }

    pub(super) fn score() -> Score {
        Score {
            score: 0.75,
            p_value: 0.001,
            surprise: 2.5,
            distance: 0.125,
            residual: 6.0,
            alert: true,
            alert_id: Some("pump-7/11".to_owned()),
            causes: vec![
                Cause { channel: "vibration".into(), share: 0.75 },
                Cause { channel: "temperature".into(), share: 0.25 },
            ],
            missing: vec!["speed".into()],
            turn: true,
            warm: true,
        }
    }

    fn letter() -> DeadLetter {
        DeadLetter {
            lane: Lane::new("plant.sensors", 3),
            offset: 42,
            key: Some(vec![1; 10]),
            payload: vec![2; 1000],
            headers: vec![("unit".to_owned(), Some(vec![3; 86])), ("none".to_owned(), None)],
            stage: "decode",
            reason: "not json".to_owned(),
        }
    }

    #[test]
    fn topics_are_named_after_the_pipeline_unless_named_or_none() {
        let default = Topics::new(&config::KafkaSink::default(), "plant");
        let names: Vec<_> = default.all().collect();
        assert_eq!(names, ["plant.embeddings", "plant.anomalies", "plant.dead-letters"]);

        let some = config::KafkaSink {
            embeddings: Some(String::new()),
            anomalies: Some("scores".to_owned()),
            ..config::KafkaSink::default()
        };
        let names: Vec<_> = Topics::new(&some, "plant").all().map(str::to_owned).collect();
        assert_eq!(names, ["scores", "plant.dead-letters"]);
    }

    #[test]
    fn a_letter_that_fits_is_whole() {
        let letter = letter();
        // Key 10, headers (4 + 86 + 10) + (4 + 10), payload 1000.
        let whole = Cut::new(&letter, BATCH_OVERHEAD + 10 + 100 + 14 + 1000);
        assert_eq!(
            whole,
            Cut {
                key: letter.key.as_deref(),
                headers: &letter.headers,
                payload: &letter.payload,
                truncated: false
            }
        );
    }

    #[test]
    fn a_letter_too_large_loses_payload_then_headers_then_its_key() {
        let letter = letter();
        let shorter = Cut::new(&letter, BATCH_OVERHEAD + 10 + 100 + 14 + 999);
        assert_eq!((shorter.payload.len(), shorter.headers.len()), (999, 2));
        assert!(shorter.truncated);

        let bare = Cut::new(&letter, BATCH_OVERHEAD + 110);
        assert_eq!((bare.payload.len(), bare.headers.len()), (100, 0));
        assert_eq!(bare.key, letter.key.as_deref());

        let keyless = Cut::new(&letter, BATCH_OVERHEAD + 9);
        assert_eq!((keyless.payload.len(), keyless.key), (9, None));
        assert!(keyless.truncated);
    }

    #[test]
    fn marks_say_why_and_where_and_bound_the_reason() {
        let long = DeadLetter { reason: "é".repeat(LONGEST_REASON), ..letter() };
        let marks = marks(&long);
        let names: Vec<_> = marks.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "contrastream.reason",
                "contrastream.stage",
                "contrastream.topic",
                "contrastream.partition",
                "contrastream.offset"
            ]
        );
        assert_eq!(marks[0].1.as_ref().unwrap().len(), LONGEST_REASON);
        assert_eq!(marks[4].1.as_deref(), Some(&b"42"[..]));
    }

    #[test]
    fn delivery_failures_tell_what_helps() {
        let deliveries = Deliveries::new("b:1", Some("t.dead-letters"));
        let failure = |code| deliveries.failure("t", &KafkaError::MessageProduction(code));

        assert!(failure(RDKafkaErrorCode::MessageTimedOut).is_retryable());
        assert!(!failure(RDKafkaErrorCode::Fatal).is_retryable());
        let refused = failure(RDKafkaErrorCode::TopicAuthorizationFailed);
        assert!(matches!(refused, SinkError::Refused { reason, .. } if reason.contains("topic t")));
        let missing = failure(RDKafkaErrorCode::UnknownTopicOrPartition);
        assert!(matches!(missing, SinkError::MissingTopic { topic, .. } if topic == "t"));
    }
}
