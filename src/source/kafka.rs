//! Records from Kafka topics.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::{
    Assignment, Commit, Event, Header, Lane, Messages, Payload, Source, SourceBatch, SourceError,
};
use crate::config::{self, Start};
use crate::kafka::{
    self, CONNECT_TIMEOUT, LARGEST_MESSAGE, Reports, Silence, Trouble, error_code, trouble,
};

/// Bytes of one lane that are handed on together; a larger message goes alone.
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of all lanes that may wait for others of their batch, or for their turn.
const WAITING_BYTES: usize = 12 * BATCH_BYTES;
/// Longest wait for a lane that neither has messages nor is known to have none.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for a commit to be answered.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for the committed positions of lanes that were assigned.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before asking again for committed positions that the brokers could not tell yet.
const COMMITTED_PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for the group's next generation, to commit in it.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before committing again in between generations.
const REBALANCE_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for the answer whether a topic that seems to be gone is.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// What the consumer is given, unless `source.properties` says otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("isolation.level", "read_committed"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    // Only for a committed offset that the topic no longer holds: `start` decides where a lane
    // without a committed offset begins, and what is left is never skipped.
    ("auto.offset.reset", "earliest"),
    // Fetched ahead: at most this and one response of `fetch.max.bytes`, or one larger message.
    ("queued.max.messages.kbytes", "32768"),
    ("fetch.max.bytes", "16777216"),
    // A full queue is emptied much faster than in librdkafka's pause of a second.
    ("fetch.queue.backoff.ms", "20"),
];

/// A member of a consumer group.
///
/// Lanes resume at their committed offsets, whose metadata comes with the assignment. A lane that
/// is taken away stays this member's until [`Source::release`], so that its work can be committed
/// first; the group waits for that as long as `max.poll.interval.ms` (5 minutes). Assignments are
/// cooperative: lanes that stay are not interrupted.
///
/// At most 48 MiB of messages wait here for others of their batch, next to what librdkafka fetches
/// ahead (`queued.max.messages.kbytes`). The group is left when the source and all its committers
/// are dropped.
pub struct KafkaSource {
    consumer: Arc<BaseConsumer<Member>>,
    brokers: String,
    topics: Vec<String>,
    group: String,
    start: Offset,
    waiting: Waiting,
    /// Taken away, and not released yet.
    revoked: Option<TopicPartitionList>,
    paused: bool,
    /// Whether librdkafka was told to stop fetching.
    stopped: bool,
}

impl KafkaSource {
    /// Checks brokers, topics and rights, then joins `group`.
    ///
    /// # Errors
    /// If no broker answers within 10 seconds, a topic is missing, a right is denied, or
    /// `source.properties` holds a property that librdkafka does not take or that must not change.
    /// The right to read a topic or to join the group shows only in [`Source::poll`].
    pub fn connect(config: &config::KafkaSource, group: &str) -> Result<Self, SourceError> {
        let consumer = Arc::new(consumer(config, group)?);
        let brokers = config.brokers.clone();
        let silence = |silence| unanswered(&brokers, silence);

        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let reports = &consumer.context().reports;
        // Nothing is subscribed yet: events are all that such a poll can find.
        let serve = || drop(consumer.poll(Duration::from_millis(100)));
        let mut lanes = TopicPartitionList::new();
        for topic in &config.topics {
            let partitions =
                kafka::insist(reports, deadline, serve, format_args!("topic {topic}"), |wait| {
                    kafka::partitions(consumer.client(), topic, wait)
                })
                .map_err(silence)?;
            let missing =
                || SourceError::MissingTopic { topic: topic.clone(), brokers: brokers.clone() };
            for partition in partitions.ok_or_else(missing)? {
                lanes.add_partition(topic, partition);
            }
        }
        kafka::insist(reports, deadline, serve, format_args!("group {group}"), |wait| {
            committed(&consumer, &lanes, wait)
        })
        .map_err(silence)?;

        let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| lasting(&error))?;
        Ok(Self {
            brokers,
            topics: config.topics.clone(),
            group: group.to_owned(),
            start: match config.start {
                Start::Earliest => Offset::Beginning,
                Start::Latest => Offset::End,
            },
            waiting: Waiting::new(config.batch_messages, config.linger.0),
            revoked: None,
            paused: false,
            stopped: false,
            consumer,
        })
    }

    /// Answers the group's calls since the last poll; returns what the runtime must know of them.
    fn rebalance(&mut self) -> Result<Option<Event>, SourceError> {
        while let Some(call) = self.consumer.context().next_call() {
            match call {
                Call::Assign(partitions) => match self.take_over(&partitions) {
                    Ok(assignments) if assignments.is_empty() => {}
                    Ok(assignments) => return Ok(Some(Event::Assigned(assignments))),
                    Err(error) => {
                        self.consumer.context().put_back(Call::Assign(partitions));
                        self.ride_out(&error)?;
                        thread::sleep(COMMITTED_PAUSE);
                        return Ok(Some(Event::Idle));
                    }
                },
                Call::Revoke { partitions, lost } => {
                    let lanes = lanes(&partitions);
                    self.waiting.leave(&lanes);
                    self.revoked = Some(partitions);
                    if !lanes.is_empty() {
                        let event = if lost { Event::Lost(lanes) } else { Event::Revoked(lanes) };
                        return Ok(Some(event));
                    }
                    self.release()?;
                }
            }
        }
        Ok(None)
    }

    /// Serves the group and takes at most one message. librdkafka stops fetching by itself when its
    /// queue is full, and after a pause of its own it takes up to a second to go on: that is kept
    /// for when too many messages were taken.
    fn poll_paused(&mut self, timeout: Duration) -> Result<Event, SourceError> {
        let deadline = Instant::now() + timeout;
        if let Some(event) = self.rebalance()? {
            return Ok(event);
        }
        if !self.stopped && self.waiting.held() >= WAITING_BYTES {
            self.consumer.pause(&self.waiting.partitions()).map_err(|error| lasting(&error))?;
            self.stopped = true;
        }
        match self.consumer.poll(whole_millis(timeout)) {
            Some(Ok(message)) => {
                self.waiting.push(&message);
                thread::sleep(deadline.saturating_duration_since(Instant::now()));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => self.reach_end(partition),
            Some(Err(error)) => self.ride_out(&error)?,
            None => {}
        }
        Ok(self.rebalance()?.unwrap_or(Event::Idle))
    }

    /// Starts reading `partitions` at their committed offsets.
    fn take_over(&mut self, partitions: &TopicPartitionList) -> KafkaResult<Vec<Assignment>> {
        let committed = committed(&self.consumer, partitions, COMMITTED_TIMEOUT)?;
        let mut assignments = Vec::with_capacity(committed.count());
        for mut partition in committed.elements() {
            let lane = Lane::new(partition.topic(), partition.partition());
            let committed = match partition.offset() {
                Offset::Offset(offset) => Some((offset, partition.metadata().to_owned())),
                _ => {
                    partition.set_offset(self.start)?;
                    None
                }
            };
            assignments.push(Assignment { lane, committed });
        }
        assign(&self.consumer, &committed)?;
        if self.stopped {
            self.consumer.pause(&committed)?;
        }
        self.waiting.join(assignments.iter().map(|assignment| assignment.lane.clone()));
        for (lane, end) in self.ends(&committed) {
            let begins = committed.find_partition(&lane.topic, lane.partition);
            let is_read = match begins.map(|begins| begins.offset()) {
                Some(Offset::Offset(begins)) => begins >= end,
                Some(Offset::End) => true,
                _ => false,
            };
            self.waiting.expect(&lane, end, is_read);
        }
        Ok(assignments)
    }

    /// Where lanes end now: what is before that is backlog. Without an answer, the client tells
    /// when it comes to an end.
    fn ends(&self, partitions: &TopicPartitionList) -> Vec<(Lane, i64)> {
        let mut newest = TopicPartitionList::new();
        for partition in partitions.elements() {
            newest.add_partition(partition.topic(), partition.partition());
        }
        let asked = newest.set_all_offsets(Offset::End).and_then(|()| {
            // The time of an end stands for itself.
            self.consumer.offsets_for_times(newest, COMMITTED_TIMEOUT)
        });
        let answer = asked.unwrap_or_else(|error| {
            tracing::debug!(%error, "ends of lanes are not known");
            TopicPartitionList::new()
        });
        let known =
            answer.elements().into_iter().filter_map(|partition| match partition.offset() {
                Offset::Offset(end) => {
                    Some((Lane::new(partition.topic(), partition.partition()), end))
                }
                _ => None,
            });
        known.collect()
    }

    /// Takes note that a lane was read to its end, of which the client only tells the partition.
    fn reach_end(&mut self, partition: i32) {
        for topic in &self.topics {
            if self.topics.len() == 1 || self.is_at_end(topic, partition) {
                self.waiting.reach_end(topic, partition);
            }
        }
    }

    /// Whether nothing is left to read of a lane. Not so, while a transaction is open in it.
    fn is_at_end(&self, topic: &str, partition: i32) -> bool {
        let position = self.consumer.position().ok().and_then(|positions| {
            match positions.find_partition(topic, partition)?.offset() {
                Offset::Offset(next) => Some(next),
                _ => None,
            }
        });
        let newest = self.consumer.fetch_watermarks(topic, partition, CONFIRM_TIMEOUT);
        match (position, newest) {
            (Some(next), Ok((_, end))) => next >= end,
            (None, Ok((oldest, end))) => oldest == end,
            (_, Err(_)) => false,
        }
    }

    /// Returns an error only if the consumer cannot go on after it.
    fn ride_out(&self, error: &KafkaError) -> Result<(), SourceError> {
        let report = self.consumer.context().reports.take();
        let Some(code) = error_code(error) else { return Err(lasting(error)) };
        let reason = match report {
            Some((reported, reason)) if reported == code => reason,
            _ => error.to_string(),
        };
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            return Err(SourceError::Kafka { reason, retryable: false });
        }
        match trouble(code) {
            Trouble::Passing => {
                tracing::warn!(%reason, "kafka consumer in trouble, going on");
                Ok(())
            }
            Trouble::NoTopic => self.confirm_topics(&reason),
            Trouble::Refused => {
                // librdkafka does not always say which right it missed.
                let (topics, group) = (self.topics.join(", "), &self.group);
                let reason = format!("{reason} (topics {topics}; group {group})");
                Err(SourceError::Refused { brokers: self.brokers.clone(), reason })
            }
            Trouble::Lasting => Err(SourceError::Kafka { reason, retryable: false }),
        }
    }

    /// Asks again for topics that seem to be gone: right after a start, brokers may not know yet.
    fn confirm_topics(&self, reason: &str) -> Result<(), SourceError> {
        for topic in &self.topics {
            if let Ok(None) = kafka::partitions(self.consumer.client(), topic, CONFIRM_TIMEOUT) {
                return Err(SourceError::MissingTopic {
                    topic: topic.clone(),
                    brokers: self.brokers.clone(),
                });
            }
        }
        tracing::warn!(reason, "kafka consumer in trouble, but all topics are there, going on");
        Ok(())
    }
}

impl Source for KafkaSource {
    /// The next event. Takes up to 5 seconds longer when lanes are assigned and the brokers are
    /// slow to tell their committed offsets.
    fn poll(&mut self, timeout: Duration) -> Result<Event, SourceError> {
        if self.paused {
            return self.poll_paused(timeout);
        }
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.rebalance()? {
                return Ok(event);
            }
            let now = Instant::now();
            if let Some(batch) = self.waiting.take_due(now) {
                return Ok(Event::Batch(batch));
            }
            let until = self.waiting.due().map_or(deadline, |due| due.min(deadline));
            match self.consumer.poll(whole_millis(until.saturating_duration_since(now))) {
                Some(Ok(message)) => self.waiting.push(&message),
                Some(Err(KafkaError::PartitionEOF(partition))) => self.reach_end(partition),
                Some(Err(error)) => self.ride_out(&error)?,
                None if now >= deadline => return Ok(Event::Idle),
                None => {}
            }
        }
    }

    fn pause(&mut self, paused: bool) -> Result<(), SourceError> {
        if self.stopped && !paused {
            self.consumer.resume(&self.waiting.partitions()).map_err(|error| lasting(&error))?;
            self.stopped = false;
        }
        self.paused = paused;
        Ok(())
    }

    fn release(&mut self) -> Result<(), SourceError> {
        let Some(partitions) = self.revoked.take() else { return Ok(()) };
        // librdkafka keeps a partition's pause beyond its assignment.
        let resumed = if self.stopped { self.consumer.resume(&partitions) } else { Ok(()) };
        let unassigned = unassign(&self.consumer, &partitions);
        resumed.and(unassigned).map_err(|error| lasting(&error))
    }

    fn committer(&self) -> Option<Box<dyn Commit>> {
        Some(Box::new(Committer {
            consumer: Arc::clone(&self.consumer),
            brokers: self.brokers.clone(),
            topics: self.topics.clone(),
        }))
    }
}

impl Drop for KafkaSource {
    /// From here on the consumer answers the group by itself, and what it was waiting for is
    /// answered: a consumer with an open call cannot be closed.
    fn drop(&mut self) {
        self.consumer.context().closing.store(true, Ordering::Relaxed);
        if let Err(error) = self.release() {
            tracing::warn!(%error, "cannot release lanes");
        }
        while let Some(call) = self.consumer.context().next_call() {
            call.answer(&self.consumer);
        }
    }
}

/// Commits through the consumer of a [`KafkaSource`].
struct Committer {
    consumer: Arc<BaseConsumer<Member>>,
    brokers: String,
    topics: Vec<String>,
}

impl Committer {
    /// Commits, from a thread that is left behind if need be: without brokers, librdkafka may wait
    /// for them for as long as nobody polls the consumer, and whoever stops is waiting here.
    fn commit_in_time(&self, offsets: TopicPartitionList) -> KafkaResult<()> {
        let (sender, receiver) = mpsc::channel();
        let consumer = Arc::clone(&self.consumer);
        thread::spawn(move || {
            // Nobody listens any more where it took too long.
            drop(sender.send(consumer.commit(&offsets, CommitMode::Sync)));
        });
        receiver
            .recv_timeout(COMMIT_TIMEOUT)
            .unwrap_or(Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::OperationTimedOut)))
    }
}

impl Commit for Committer {
    /// Once a lane was lost to another member the commit fails for good: only that member may
    /// commit it. Without a coordinator, the call waits for one as long as `session.timeout.ms`.
    fn commit(&self, positions: &[(Lane, i64)], metadata: &str) -> Result<(), SourceError> {
        if positions.is_empty() {
            return Ok(());
        }
        let mut offsets = TopicPartitionList::with_capacity(positions.len());
        for (lane, offset) in positions {
            let mut partition = offsets.add_partition(&lane.topic, lane.partition);
            partition.set_offset(Offset::Offset(*offset)).map_err(|error| lasting(&error))?;
            partition.set_metadata(metadata);
        }
        let deadline = Instant::now() + REBALANCE_TIMEOUT;
        let outcome = loop {
            match self.commit_in_time(offsets.clone()) {
                // The group moved on to its next generation, this member has not heard of it yet.
                Err(error) if is_rebalance(&error) && Instant::now() < deadline => {
                    thread::sleep(REBALANCE_PAUSE);
                }
                outcome => break outcome,
            }
        };
        outcome.map_err(|error| {
            if is_lost(&error) {
                return SourceError::Lost { lanes: positions.len() };
            }
            let reason = error.to_string();
            match error_code(&error).map(trouble) {
                Some(Trouble::Refused) => {
                    SourceError::Refused { brokers: self.brokers.clone(), reason }
                }
                Some(Trouble::Passing) => SourceError::Kafka { reason, retryable: true },
                _ => SourceError::Kafka { reason, retryable: false },
            }
        })
    }

    fn group(&self) -> Option<ConsumerGroupMetadata> {
        self.consumer.group_metadata()
    }

    fn committed_metadata(&self) -> Result<BTreeSet<String>, SourceError> {
        let read = || {
            let mut lanes = TopicPartitionList::new();
            for topic in &self.topics {
                let client = self.consumer.client();
                let partitions = kafka::partitions(client, topic, COMMITTED_TIMEOUT)?;
                for partition in partitions.unwrap_or_default() {
                    lanes.add_partition(topic, partition);
                }
            }
            committed(&self.consumer, &lanes, COMMITTED_TIMEOUT)
        };
        let committed = read().map_err(|error| {
            let reason = format!("committed offsets: {error}");
            SourceError::Kafka { reason, retryable: true }
        })?;
        let elements = committed.elements();
        Ok(elements.iter().map(|partition| partition.metadata().to_owned()).collect())
    }
}

/// Whether a commit came between two generations of the group.
fn is_rebalance(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{IllegalGeneration, RebalanceInProgress};
    matches!(error_code(error), Some(IllegalGeneration | RebalanceInProgress))
}

/// Whether the group has given this member up.
fn is_lost(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AssignmentLost, FencedInstanceId, IllegalGeneration, UnknownMemberId};
    let codes = [AssignmentLost, FencedInstanceId, IllegalGeneration, UnknownMemberId];
    error_code(error).is_some_and(|code| codes.contains(&code))
}

/// What the group asks of this member. It waits for the answer.
enum Call {
    Assign(TopicPartitionList),
    Revoke { partitions: TopicPartitionList, lost: bool },
}

impl Call {
    /// Answers without asking anyone, when closing.
    fn answer(&self, consumer: &BaseConsumer<Member>) {
        let outcome = match self {
            Self::Assign(partitions) => assign(consumer, partitions),
            Self::Revoke { partitions, .. } => unassign(consumer, partitions),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "cannot answer the group while leaving it");
        }
    }
}

/// Callbacks of the consumer. They run within its polls, on the source's thread.
#[derive(Default)]
struct Member {
    reports: Reports,
    calls: Mutex<VecDeque<Call>>,
    closing: AtomicBool,
}

impl Member {
    fn next_call(&self) -> Option<Call> {
        kafka::lock(&self.calls).pop_front()
    }

    fn put_back(&self, call: Call) {
        kafka::lock(&self.calls).push_front(call);
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Reports::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reports.note(&error, reason);
    }
}

impl ConsumerContext for Member {
    /// Only takes note: [`KafkaSource::rebalance`] answers, with the committed offsets at hand.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let partitions = partitions.clone();
        let call = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Call::Assign(partitions),
            _ => Call::Revoke { partitions, lost: consumer.assignment_lost() },
        };
        if self.closing.load(Ordering::Relaxed) {
            call.answer(consumer);
        } else {
            kafka::lock(&self.calls).push_back(call);
        }
    }
}

fn consumer(
    config: &config::KafkaSource,
    group: &str,
) -> Result<BaseConsumer<Member>, SourceError> {
    // A response holds `fetch.max.bytes`, or one larger message.
    let largest_response = (2 * LARGEST_MESSAGE).to_string();
    let mut defaults = DEFAULTS.to_vec();
    defaults.push(("receive.message.max.bytes", &largest_response));
    let fixed =
        [("group.id", group), ("enable.auto.commit", "false"), ("enable.partition.eof", "true")];
    let settings = kafka::settings(&config.brokers, &defaults, &config.properties, &fixed)
        .map_err(|reason| SourceError::Property { reason })?;
    BaseConsumer::from_config_and_context(&settings, Member::default())
        .map_err(|error| SourceError::Property { reason: kafka::property_reason(&error) })
}

/// Committed offsets, with their metadata, of `partitions`.
fn committed(
    consumer: &BaseConsumer<Member>,
    partitions: &TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<TopicPartitionList> {
    if partitions.count() == 0 {
        return Ok(partitions.clone());
    }
    let committed = consumer.committed_offsets(partitions.clone(), timeout)?;
    for partition in committed.elements() {
        partition.error()?;
    }
    Ok(committed)
}

fn assign(consumer: &BaseConsumer<Member>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(partitions),
        _ => consumer.assign(partitions),
    }
}

fn unassign(consumer: &BaseConsumer<Member>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
        _ => consumer.unassign(),
    }
}

fn lanes(partitions: &TopicPartitionList) -> Vec<Lane> {
    partitions
        .elements()
        .iter()
        .map(|partition| Lane::new(partition.topic(), partition.partition()))
        .collect()
}

/// What it means for a source that the brokers did not answer when connecting.
pub(super) fn unanswered(brokers: &str, silence: Silence) -> SourceError {
    let brokers = brokers.to_owned();
    match silence {
        Silence::Unreachable(reason) => SourceError::Unreachable { brokers, reason },
        Silence::Refused(reason) => SourceError::Refused { brokers, reason },
    }
}

pub(super) fn lasting(error: &KafkaError) -> SourceError {
    SourceError::Kafka { reason: error.to_string(), retryable: false }
}

/// Rounded up to librdkafka's milliseconds: rounded down, the rest would be waited for in a loop.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(u64::MAX))
}

/// Messages that wait for others of their batch, by lane.
///
/// A batch is a block of a lane's offsets: those from one multiple of `batch_messages` up to the
/// next, or fewer where they take [`BATCH_BYTES`]. While there is a backlog, lanes take turns by the
/// times of their messages, and no block is handed on before it is known that no lane has an
/// earlier one: the order is that of the log, whenever and in however many goes it is read, and no
/// lane runs ahead of the others in event time. A lane is live once it was read to where it ended
/// when it was taken over: what comes then waits for others of its batch no longer than `linger`,
/// and not for other lanes.
struct Waiting {
    batch_messages: usize,
    linger: Duration,
    /// Lanes owned, in order.
    queues: Vec<LaneQueue>,
    /// The queue of the last message: the next one is likely of the same lane.
    latest: usize,
    /// Bytes in all queues.
    bytes: usize,
    /// When the first message of a live lane came that is not ready yet.
    since: Option<Instant>,
    /// When it was first found that a block waits for a lane that says nothing.
    held_back: Option<Instant>,
}

struct LaneQueue {
    lane: Lane,
    /// The block that is being filled.
    open: Block,
    /// Blocks that are complete, or as complete as they are to be.
    ready: VecDeque<Block>,
    /// Where its backlog ends.
    end: Option<i64>,
    /// Whether that was reached, or the lane is not waited for any more.
    live: bool,
}

/// Messages of one lane, and what orders them among those of other lanes.
#[derive(Default)]
struct Block {
    messages: Messages,
    /// Timestamp of the first message, milliseconds since the epoch, and the block's number.
    order: (i64, i64),
    next_offset: i64,
    appended_ms: Option<i64>,
    /// Whether it came after the backlog, and waits for no turn.
    live: bool,
}

impl LaneQueue {
    fn new(lane: Lane) -> Self {
        Self { lane, open: Block::default(), ready: VecDeque::new(), end: None, live: false }
    }

    fn close(&mut self) {
        if !self.open.messages.is_empty() {
            self.open.live = self.live;
            self.ready.push_back(std::mem::take(&mut self.open));
        }
    }

    /// The backlog is over.
    fn go_live(&mut self) {
        self.close();
        self.live = true;
    }

    /// Order of the lane's first block, if it has any message.
    fn first(&self) -> Option<(i64, i64)> {
        let open = Some(&self.open).filter(|open| !open.messages.is_empty());
        self.ready.front().or(open).map(|block| block.order)
    }

    fn byte_len(&self) -> usize {
        let ready: usize = self.ready.iter().map(|block| block.messages.byte_len()).sum();
        ready + self.open.messages.byte_len()
    }
}

impl Waiting {
    fn new(batch_messages: usize, linger: Duration) -> Self {
        Self {
            batch_messages,
            linger,
            queues: Vec::new(),
            latest: 0,
            bytes: 0,
            since: None,
            held_back: None,
        }
    }

    /// The lanes owned.
    fn partitions(&self) -> TopicPartitionList {
        let mut partitions = TopicPartitionList::with_capacity(self.queues.len());
        for LaneQueue { lane, .. } in &self.queues {
            partitions.add_partition(&lane.topic, lane.partition);
        }
        partitions
    }

    /// Bytes of all messages that were not handed out.
    fn held(&self) -> usize {
        self.bytes
    }

    fn join(&mut self, lanes: impl Iterator<Item = Lane>) {
        for lane in lanes {
            if let Err(at) = self.find(&lane.topic, lane.partition) {
                self.queues.insert(at, LaneQueue::new(lane));
            }
        }
    }

    /// Forgets lanes, with all of theirs that was not handed out.
    fn leave(&mut self, lanes: &[Lane]) {
        self.queues.retain(|queue| {
            let stays = !lanes.contains(&queue.lane);
            if !stays {
                self.bytes -= queue.byte_len();
            }
            stays
        });
        self.latest = 0;
    }

    /// Adds a message; one of a lane not owned is none of ours.
    fn push<M: Message>(&mut self, message: &M) {
        let (topic, partition) = (message.topic(), message.partition());
        let is_latest =
            |queue: &LaneQueue| queue.lane.partition == partition && *queue.lane.topic == *topic;
        if !self.queues.get(self.latest).is_some_and(is_latest) {
            let Ok(found) = self.find(topic, partition) else { return };
            self.latest = found;
        }
        let queue = &mut self.queues[self.latest];
        let block_length = self.batch_messages as i64;
        let number = message.offset().div_euclid(block_length);
        if queue.open.order.1 != number {
            queue.close();
        }
        let time = message.timestamp().to_millis();
        let open = &mut queue.open;
        if open.messages.is_empty() {
            open.order = (time.unwrap_or(0), number);
        }
        let before = open.messages.byte_len();
        let payload = message.payload().unwrap_or_default();
        let timestamp_ms = message.timestamp().to_millis();
        let headers = headers(message);
        open.messages.push(message.offset(), timestamp_ms, message.key(), payload, headers);
        open.next_offset = message.offset() + 1;
        open.appended_ms = time;
        self.bytes += open.messages.byte_len() - before;

        let is_last = open.next_offset.rem_euclid(block_length) == 0;
        if !queue.live && queue.end == Some(open.next_offset) {
            queue.go_live();
        } else if is_last || open.messages.byte_len() >= BATCH_BYTES {
            queue.close();
        } else if queue.live {
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// Takes note where the backlog of a lane ends, and whether it is all read.
    fn expect(&mut self, lane: &Lane, end: i64, is_read: bool) {
        if let Ok(at) = self.find(&lane.topic, lane.partition) {
            self.queues[at].end = Some(end);
            self.queues[at].live = is_read;
        }
    }

    /// Takes note that a lane was read to its end.
    fn reach_end(&mut self, topic: &str, partition: i32) {
        if let Ok(at) = self.find(topic, partition) {
            self.queues[at].go_live();
        }
    }

    /// When to look for a batch again, should no message come; `None` where only a message helps.
    fn due(&self) -> Option<Instant> {
        let lingered = self.since.and_then(|since| since.checked_add(self.linger));
        let patient = self.held_back.and_then(|since| since.checked_add(PATIENCE));
        lingered.into_iter().chain(patient).min()
    }

    /// The next batch that is due at `now`.
    fn take_due(&mut self, now: Instant) -> Option<SourceBatch> {
        let passed = |since: Option<Instant>, wait| {
            since.and_then(|since| since.checked_add(wait)).is_some_and(|due| now >= due)
        };
        if passed(self.since, self.linger) {
            self.since = None;
            self.queues.iter_mut().filter(|queue| queue.live).for_each(LaneQueue::close);
        }
        // What a lane keeps back must not keep memory, nor the other lanes for ever.
        let full = self.bytes >= WAITING_BYTES;
        let impatient = passed(self.held_back, PATIENCE);
        if impatient || full && self.queues.iter().all(|queue| queue.ready.is_empty()) {
            self.queues.iter_mut().for_each(LaneQueue::close);
        }
        if impatient {
            self.held_back = None;
            let silent = self.queues.iter_mut().filter(|queue| queue.ready.is_empty());
            silent.for_each(LaneQueue::go_live);
        }
        // Those of live lanes before all others.
        let first = |queue: &LaneQueue| queue.ready.front().map(|block| (!block.live, block.order));
        let filled = self.queues.iter().enumerate().filter_map(|(at, q)| Some((first(q)?, at)));
        let ((takes_turn, order), at) = filled.min()?;
        let comes_later = |(other, queue): (usize, &LaneQueue)| {
            queue.live || queue.first().is_some_and(|first| (first, other) >= (order, at))
        };
        if takes_turn && !full && !self.queues.iter().enumerate().all(comes_later) {
            self.held_back.get_or_insert(now);
            return None;
        }
        self.held_back = None;
        let queue = &mut self.queues[at];
        let Block { messages, next_offset, appended_ms, .. } = queue.ready.pop_front()?;
        self.bytes -= messages.byte_len();
        let payload = Payload::Messages(messages);
        Some(SourceBatch { lane: queue.lane.clone(), next_offset, appended_ms, payload })
    }

    fn find(&self, topic: &str, partition: i32) -> Result<usize, usize> {
        self.queues.binary_search_by(|queue| {
            (&*queue.lane.topic, queue.lane.partition).cmp(&(topic, partition))
        })
    }
}

/// The headers of a message. Without them, rather than not at all, goes a message of which one has
/// a name that is not UTF-8: the client library panics there, and no [`Header`] could hold it.
fn headers<M: Message>(message: &M) -> Vec<Header> {
    let Some(headers) = message.headers() else { return Vec::new() };
    let copy = || {
        let owned = |header: rdkafka::message::Header<'_, &[u8]>| {
            (header.key.to_owned(), header.value.map(<[u8]>::to_vec))
        };
        headers.iter().map(owned).collect()
    };
    catch_unwind(AssertUnwindSafe(copy)).unwrap_or_else(|_| {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        tracing::warn!(topic, partition, offset, "header name is not utf-8, headers left out");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{OwnedHeaders, OwnedMessage, Timestamp};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn message(partition: i32, offset: i64, payload: Option<&[u8]>) -> OwnedMessage {
        OwnedMessage::new(
            payload.map(<[u8]>::to_vec),
            Some(b"key".to_vec()),
            "t".to_owned(),
            Timestamp::CreateTime(1000 + offset),
            partition,
            offset,
            None,
        )
    }

    fn waiting(batch_messages: usize, linger: Duration, partitions: &[i32]) -> Waiting {
        let mut waiting = Waiting::new(batch_messages, linger);
        waiting.join(partitions.iter().map(|partition| Lane::new("t", *partition)));
        waiting
    }

    fn offsets(batch: &SourceBatch) -> Vec<i64> {
        let Payload::Messages(messages) = &batch.payload else { panic!("messages") };
        messages.iter().map(|message| message.offset).collect()
    }

    /// All batches that are due at `now`: lane and offsets.
    fn due(waiting: &mut Waiting, now: Instant) -> Vec<(i32, Vec<i64>)> {
        let batches = std::iter::from_fn(|| waiting.take_due(now));
        batches.map(|batch| (batch.lane.partition, offsets(&batch))).collect()
    }

    /// Lanes that were read to their ends.
    fn live(batch_messages: usize, linger: Duration, partitions: &[i32]) -> Waiting {
        let mut waiting = waiting(batch_messages, linger, partitions);
        partitions.iter().for_each(|partition| waiting.reach_end("t", *partition));
        waiting
    }

    #[test]
    fn a_full_batch_is_due_at_once_and_others_after_the_linger() {
        let mut waiting = live(2, HOUR, &[0, 1]);
        for (partition, offset) in [(0, 6), (1, 10), (0, 7)] {
            waiting.push(&message(partition, offset, Some(b"x")));
        }

        let now = Instant::now();
        let full = waiting.take_due(now).unwrap();
        assert_eq!((full.lane.partition, offsets(&full)), (0, vec![6, 7]));
        assert_eq!((full.next_offset, full.appended_ms), (8, Some(1007)));
        assert!(waiting.take_due(now).is_none());

        let rest = waiting.take_due(now + HOUR).unwrap();
        assert_eq!((rest.lane.partition, offsets(&rest)), (1, vec![10]));
        assert!(waiting.due().is_none());
    }

    #[test]
    fn one_linger_serves_every_lane_with_a_batch_of_its_own() {
        let mut waiting = live(100, Duration::ZERO, &[2, 0, 1]);
        for (partition, offset) in [(2, 1), (0, 1), (2, 2), (1, 1)] {
            waiting.push(&message(partition, offset, Some(b"x")));
        }
        let found = due(&mut waiting, Instant::now());
        assert_eq!(found, [(0, vec![1]), (1, vec![1]), (2, vec![1, 2])]);
    }

    #[test]
    fn a_backlog_comes_in_the_order_of_its_times_however_it_arrives() {
        // Lane 1 is twice as fast: its offsets 4 and 5 have the times of lane 0's 2 and 3.
        let at = |partition: i32, offset: i64| {
            let time = if partition == 0 { 2 * offset } else { offset };
            message(partition, offset, Some(b"x")).set_timestamp(Timestamp::CreateTime(time))
        };
        let expected = [
            (0, vec![0, 1]),
            (1, vec![0, 1]),
            (1, vec![2, 3]),
            (0, vec![2, 3]),
            (1, vec![4, 5]),
            (1, vec![6]),
            (0, vec![4]),
        ];
        let (first, second) = ((0..5).map(|offset| (0, offset)), (0..7).map(|offset| (1, offset)));
        let one_by_one: Vec<_> = first.clone().chain(second.clone()).collect();
        let other_first: Vec<_> = second.chain(first).collect();
        for arrivals in [one_by_one, other_first] {
            let mut waiting = waiting(2, Duration::ZERO, &[0, 1]);
            let mut found = Vec::new();
            let now = Instant::now();
            for (index, (partition, offset)) in arrivals.iter().enumerate() {
                waiting.push(&at(*partition, *offset));
                found.extend(due(&mut waiting, now));
                if arrivals.get(index + 1).is_none_or(|(next, _)| next != partition) {
                    waiting.reach_end("t", *partition);
                    found.extend(due(&mut waiting, now));
                }
            }
            assert_eq!(found, expected);
            assert_eq!((waiting.bytes, waiting.held_back), (0, None));
        }
    }

    #[test]
    fn a_reading_that_begins_at_a_block_goes_on_in_the_same_order() {
        let all = |from: [i64; 2]| {
            let mut waiting = waiting(3, Duration::ZERO, &[0, 1]);
            for partition in [1, 0] {
                for offset in from[partition as usize]..10 {
                    waiting.push(&message(partition, offset, Some(b"x")));
                }
                waiting.reach_end("t", partition);
            }
            due(&mut waiting, Instant::now())
        };
        let at_once = all([0, 0]);
        assert_eq!(at_once.len(), 8);
        // After the first three blocks: two of lane 0 and one of lane 1.
        assert_eq!(all([6, 3]), at_once[3..]);
    }

    #[test]
    fn a_live_lane_does_not_wait_for_the_backlog_of_another() {
        let mut waiting = waiting(2, Duration::ZERO, &[0, 1]);
        // Lane 0 is read up to its end; of lane 1 nothing is known.
        waiting.push(&message(0, 0, Some(b"x")));
        waiting.reach_end("t", 0);
        waiting.push(&message(0, 1, Some(b"x")));
        waiting.push(&message(0, 2, Some(b"x")));
        let now = Instant::now() + Duration::from_millis(1);
        assert_eq!(due(&mut waiting, now), [], "the end of its backlog takes its turn");
        waiting.push(&message(1, 0, Some(b"x")));
        waiting.push(&message(1, 1, Some(b"x")));
        let expected = [(0, vec![0]), (0, vec![1]), (0, vec![2]), (1, vec![0, 1])];
        assert_eq!(due(&mut waiting, now), expected);
        waiting.push(&message(0, 3, Some(b"x")));
        assert_eq!(due(&mut waiting, now), [(0, vec![3])], "with no word of lane 1");
    }

    #[test]
    fn a_backlog_ends_where_the_lane_ended_when_it_was_taken_over() {
        let mut waiting = waiting(100, Duration::ZERO, &[0, 1]);
        waiting.expect(&Lane::new("t", 0), 2, false);
        waiting.expect(&Lane::new("t", 1), 7, true);
        let now = Instant::now();
        for offset in 0..4 {
            waiting.push(&message(0, offset, Some(b"x")));
        }
        assert_eq!(due(&mut waiting, now), [(0, vec![0, 1])]);
        assert_eq!(due(&mut waiting, now + HOUR), [(0, vec![2, 3])]);
    }

    #[test]
    fn a_lane_that_says_nothing_holds_the_others_back_for_a_while_only() {
        let mut waiting = waiting(2, Duration::ZERO, &[0, 1]);
        (0..4).for_each(|offset| waiting.push(&message(0, offset, Some(b"x"))));
        let now = Instant::now();
        assert!(waiting.take_due(now).is_none());
        assert_eq!(waiting.due(), Some(now + PATIENCE));
        assert_eq!(due(&mut waiting, now + PATIENCE), [(0, vec![0, 1]), (0, vec![2, 3])]);
    }

    #[test]
    fn bytes_bound_a_batch_and_all_that_waits() {
        let quarter = vec![0; BATCH_BYTES / 4];
        let mut one = live(100, HOUR, &[0]);
        for offset in 0..4 {
            assert!(one.take_due(Instant::now()).is_none());
            one.push(&message(0, offset, Some(&quarter)));
        }
        assert_eq!(offsets(&one.take_due(Instant::now()).unwrap()), [0, 1, 2, 3]);
        assert_eq!(one.bytes, 0);

        let partitions: Vec<i32> = (0..WAITING_BYTES.div_ceil(quarter.len()) as i32).collect();
        let mut many = waiting(100, HOUR, &partitions);
        for partition in &partitions {
            assert!(many.take_due(Instant::now()).is_none());
            many.push(&message(*partition, 0, Some(&quarter)));
        }
        assert_eq!(due(&mut many, Instant::now()), [(0, vec![0])]);
        assert!(many.bytes < WAITING_BYTES);
    }

    #[test]
    fn nothing_of_a_lane_that_was_taken_away_comes_out() {
        let mut waiting = live(2, HOUR, &[0, 1]);
        for offset in 0..3 {
            waiting.push(&message(0, offset, Some(b"x")));
            waiting.push(&message(1, offset, Some(b"x")));
        }

        waiting.leave(&[Lane::new("t", 0)]);
        waiting.push(&message(0, 3, Some(b"x")));

        let found = due(&mut waiting, Instant::now() + HOUR);
        assert_eq!(found, [(1, vec![0, 1]), (1, vec![2])]);
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn a_tombstone_is_an_empty_payload_and_headers_are_kept() {
        let mut waiting = waiting(1, HOUR, &[0]);
        let unit = rdkafka::message::Header { key: "unit", value: Some("mm/s") };
        let none = rdkafka::message::Header { key: "none", value: None::<&str> };
        let headers = OwnedHeaders::new().insert(unit).insert(none);
        waiting.push(&message(0, 4, None).replace_headers(Some(headers)));

        let batch = waiting.take_due(Instant::now()).unwrap();
        let Payload::Messages(messages) = &batch.payload else { panic!("messages") };
        let message = messages.get(0);
        assert_eq!((message.payload, message.key), (&b""[..], Some(&b"key"[..])));
        let expected = [("unit".to_owned(), Some(b"mm/s".to_vec())), ("none".to_owned(), None)];
        assert_eq!(message.headers, expected);
    }

    #[test]
    fn waits_are_rounded_up_to_milliseconds() {
        assert_eq!(whole_millis(Duration::ZERO), Duration::ZERO);
        assert_eq!(whole_millis(Duration::from_nanos(1)), Duration::from_millis(1));
        assert_eq!(whole_millis(Duration::from_millis(2)), Duration::from_millis(2));
    }
}
