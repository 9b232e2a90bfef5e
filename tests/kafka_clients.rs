//! The Kafka source and sink against a real broker: `make test` brings one up.

use std::collections::BTreeMap;
use std::env;
use std::future::Future;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contrastream::config;
use contrastream::decode::DeadLetter;
use contrastream::sink::{
    Cause, KafkaSink, ModelVersion, Outputs, Score, SegmentMeta, Sink as _, SinkError,
};
use contrastream::source::{
    Assignment, Event, KafkaSource, Lane, Messages, Payload, Source, SourceBatch, SourceError,
};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(50);

// ---------------------------------------------------------------------------------------------
// The broker
// ---------------------------------------------------------------------------------------------

fn variable(name: &str) -> String {
    match env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set: run `make test`, or `make broker` and what it says"),
    }
}

fn brokers() -> String {
    variable("CONTRASTREAM_TEST_BROKERS")
}

/// A name that no other test, and no other run, uses.
fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("{name}-{nanos}-{count}")
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap()
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE))
}

fn create_topic(name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    for result in block_on(admin().create_topics([&topic], &options())).unwrap() {
        result.unwrap();
    }
}

fn topic(name: &str, partitions: i32) -> String {
    let name = unique(name);
    create_topic(&name, partitions, &[]);
    name
}

fn producer(settings: &[(&str, &str)]) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    config.set("message.max.bytes", "67108864");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config.create().unwrap()
}

/// Appends `count` small messages to each of `partitions`.
fn produce(topic: &str, partitions: i32, count: usize) {
    let producer = producer(&[]);
    for partition in 0..partitions {
        for number in 0..count {
            let payload = number.to_string();
            let record = BaseRecord::<str, str>::to(topic).partition(partition);
            producer.send(record.key("k").payload(&payload)).unwrap();
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// Appends `count` messages of a megabyte to partition 0.
fn produce_large(topic: &str, count: usize) {
    let producer = producer(&[]);
    let payload = noise(1_000_000);
    for _ in 0..count {
        let record = BaseRecord::<str, _>::to(topic).partition(0);
        producer.send(record.payload(&payload)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        // Xorshift, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some((state >> 32) as u8)
    };
    std::iter::from_fn(next).take(length).collect()
}

/// Runs a Python program that knows nothing of contrastream, with `confluent_kafka` at hand.
fn python(program: &str, arguments: &[&str]) -> String {
    let python = variable("CONTRASTREAM_TEST_PYTHON");
    let output = Command::new(python).arg("-c").arg(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Allows `tester` an operation on a resource, and from now on none but those allowed.
fn allow_only(operation: &str, kind: &str, name: &str) {
    const PROGRAM: &str = "
import sys
from confluent_kafka.admin import (AclBinding, AclOperation, AclPermissionType, AdminClient,
                                   ResourcePatternType, ResourceType)
brokers, kind, name, operation = sys.argv[1:]
acl = AclBinding(ResourceType[kind], name, ResourcePatternType.LITERAL, 'User:tester', '*',
                 AclOperation[operation], AclPermissionType.ALLOW)
admin = AdminClient({'bootstrap.servers': brokers})
for answer in admin.create_acls([acl]).values():
    answer.result(60)
";
    python(PROGRAM, &[&brokers(), kind, name, operation]);
}

/// A message as Python's client read it.
#[derive(Debug, serde::Deserialize)]
struct Read {
    key: Option<String>,
    value: String,
    headers: BTreeMap<String, String>,
}

/// The first `count` messages of a topic, in the order of partitions and offsets, committed ones
/// only. Values are decoded as Latin-1, byte by byte.
fn read(topic: &str, count: usize) -> Vec<Read> {
    const PROGRAM: &str = "
import json, sys
from confluent_kafka import Consumer
brokers, topic, count = sys.argv[1:]
consumer = Consumer({'bootstrap.servers': brokers, 'group.id': topic + '-reader',
                     'auto.offset.reset': 'earliest', 'isolation.level': 'read_committed',
                     'enable.auto.commit': False})
consumer.subscribe([topic])
found = []
while len(found) < int(count):
    message = consumer.poll(60)
    assert message is not None, f'{len(found)} of {count} messages within a minute'
    assert message.error() is None, message.error()
    found.append(message)
for message in sorted(found, key=lambda m: (m.partition(), m.offset())):
    text = lambda value: None if value is None else value.decode('latin-1')
    print(json.dumps({'key': text(message.key()), 'value': text(message.value()),
                      'headers': {k: text(v) for k, v in message.headers() or []}}))
consumer.close()
";
    let lines = python(PROGRAM, &[&brokers(), topic, &count.to_string()]);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

// ---------------------------------------------------------------------------------------------
// The source
// ---------------------------------------------------------------------------------------------

fn source_config(topic: &str) -> config::KafkaSource {
    config::KafkaSource {
        brokers: brokers(),
        topics: vec![topic.to_owned()],
        group: None,
        start: config::Start::Earliest,
        format: config::Format::Json,
        json: config::Json::default(),
        avro: config::Avro::default(),
        log: config::Log::default(),
        csv: config::Csv::default(),
        batch_messages: 1000,
        linger: config::TimeSpan::from_millis(2),
        properties: config::Properties::new(),
    }
}

/// Only a source that is polled stays a member for longer than a second.
const SHORT_TIMEOUTS: [(&str, &str); 3] = [
    ("session.timeout.ms", "1000"),
    ("heartbeat.interval.ms", "200"),
    ("max.poll.interval.ms", "1000"),
];

fn with(mut config: config::KafkaSource, properties: &[(&str, &str)]) -> config::KafkaSource {
    config
        .properties
        .extend(properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    config
}

/// As `tester`, over the listener with TLS and SCRAM.
fn as_tester(topic: &str, password: &str) -> config::KafkaSource {
    let config = config::KafkaSource {
        brokers: variable("CONTRASTREAM_TEST_SASL_BROKERS"),
        ..source_config(topic)
    };
    with(config, &tester(password, &variable("CONTRASTREAM_TEST_CA")))
}

fn tester<'a>(password: &'a str, ca: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "tester"),
        ("sasl.password", password),
        ("ssl.ca.location", ca),
    ]
}

/// Polls until `wanted` finds what it waits for; other events are its business too.
fn until<T>(source: &mut KafkaSource, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(found) = wanted(source.poll(TICK).unwrap()) {
            return found;
        }
    }
    panic!("nothing of the kind within {PATIENCE:?}");
}

fn assigned(source: &mut KafkaSource) -> Vec<Assignment> {
    until(source, |event| match event {
        Event::Assigned(assignments) => Some(assignments),
        Event::Idle => None,
        other => panic!("before the assignment: {other:?}"),
    })
}

fn poll_error(source: &mut KafkaSource) -> SourceError {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Err(error) = source.poll(TICK) {
            return error;
        }
    }
    panic!("no error within {PATIENCE:?}");
}

fn messages(batch: &SourceBatch) -> &Messages {
    match &batch.payload {
        Payload::Messages(messages) => messages,
        Payload::Decoded(_) => panic!("a Kafka source decodes nothing"),
    }
}

/// What came out, by lane: offsets in order.
#[derive(Default)]
struct Seen(BTreeMap<Lane, Vec<i64>>);

impl Seen {
    fn add(&mut self, batch: &SourceBatch) {
        let offsets: Vec<i64> = messages(batch).iter().map(|message| message.offset).collect();
        assert_eq!(batch.next_offset, offsets.last().unwrap() + 1);
        self.0.entry(batch.lane.clone()).or_default().extend(offsets);
    }

    fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

/// Polls until `count` messages came, without any event between.
fn receive(source: &mut KafkaSource, count: usize) -> Seen {
    let mut seen = Seen::default();
    until(source, |event| {
        match event {
            Event::Batch(batch) => seen.add(&batch),
            Event::Idle => {}
            other => panic!("between messages: {other:?}"),
        }
        (seen.count() >= count).then_some(())
    });
    seen
}

fn connect_error(config: &config::KafkaSource) -> SourceError {
    KafkaSource::connect(config, &unique("group")).err().expect("a refusal")
}

#[test]
fn a_restart_resumes_at_the_committed_offset_with_its_metadata() {
    let topic = topic("restart", 2);
    let group = unique("group");
    produce(&topic, 2, 10);
    let config = source_config(&topic);

    let mut first = KafkaSource::connect(&config, &group).unwrap();
    let fresh = assigned(&mut first);
    let lanes = [Lane::new(topic.as_str(), 0), Lane::new(topic.as_str(), 1)];
    assert_eq!(fresh.iter().map(|found| &found.lane).collect::<Vec<_>>(), [&lanes[0], &lanes[1]]);
    assert!(fresh.iter().all(|found| found.committed.is_none()));
    let seen = receive(&mut first, 20);
    assert_eq!(seen.0[&lanes[0]], (0..10).collect::<Vec<i64>>());
    let committer = first.committer().unwrap();
    committer.commit(&[(lanes[0].clone(), 4)], "checkpoint-1").unwrap();
    committer.commit(&[(lanes[0].clone(), 7)], "checkpoint-2 é").unwrap();
    drop((first, committer));

    let mut second = KafkaSource::connect(&config, &group).unwrap();
    let resumed = assigned(&mut second);
    assert_eq!(resumed[0].committed, Some((7, "checkpoint-2 é".to_owned())));
    assert_eq!(resumed[1].committed, None);
    let seen = receive(&mut second, 13);
    assert_eq!(seen.0[&lanes[0]], [7, 8, 9]);
    assert_eq!(seen.0[&lanes[1]], (0..10).collect::<Vec<i64>>());
}

#[test]
fn another_client_sees_the_committed_offset_and_metadata() {
    let topic = topic("commit", 1);
    let group = unique("group");
    let mut source = KafkaSource::connect(&source_config(&topic), &group).unwrap();
    assigned(&mut source);

    let position = (Lane::new(topic.as_str(), 0), 3);
    source.committer().unwrap().commit(&[position], "checkpoint-9").unwrap();

    let other: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", &group)
        .create()
        .unwrap();
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(&topic, 0);
    let committed = other.committed_offsets(wanted, PATIENCE).unwrap();
    let found = &committed.elements()[0];
    assert_eq!((found.offset(), found.metadata()), (Offset::Offset(3), "checkpoint-9"));
}

#[test]
fn lanes_move_to_a_second_member_only_once_released() {
    lanes_move("cooperative-sticky");
}

#[test]
fn lanes_move_with_the_eager_protocol_too() {
    lanes_move("range");
}

fn lanes_move(strategy: &str) {
    const PARTITIONS: i32 = 4;
    let topic = topic("move", PARTITIONS);
    let group = unique("group");
    produce(&topic, PARTITIONS, 5);
    let config = with(source_config(&topic), &[("partition.assignment.strategy", strategy)]);
    let mut first = KafkaSource::connect(&config, &group).unwrap();
    assert_eq!(assigned(&mut first).len(), 4);
    receive(&mut first, 20);

    // When a second member comes, the first is asked for lanes and has unread messages in them.
    let mut second = KafkaSource::connect(&config, &group).unwrap();
    let mut revoked = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while revoked.is_empty() && Instant::now() < deadline {
        assert!(matches!(second.poll(TICK).unwrap(), Event::Idle));
        match first.poll(TICK).unwrap() {
            Event::Revoked(lanes) => revoked = lanes,
            Event::Idle => {}
            other => panic!("before the revocation: {other:?}"),
        }
    }
    assert!(!revoked.is_empty());
    produce(&topic, PARTITIONS, 5);
    for _ in 0..20 {
        let event = first.poll(TICK).unwrap();
        if let Event::Batch(batch) = &event {
            assert!(!revoked.contains(&batch.lane), "{batch:?}");
        }
        assert!(matches!(second.poll(TICK).unwrap(), Event::Idle));
    }

    // Its work is committed, then it lets go.
    let positions: Vec<_> = revoked.iter().map(|lane| (lane.clone(), 5)).collect();
    first.committer().unwrap().commit(&positions, "moved").unwrap();
    first.release().unwrap();

    let mut taken = Vec::new();
    let mut kept = Vec::new();
    let mut seen = [Seen::default(), Seen::default()];
    let deadline = Instant::now() + PATIENCE;
    while seen[0].count() + seen[1].count() < 20 && Instant::now() < deadline {
        match first.poll(TICK).unwrap() {
            Event::Batch(batch) => seen[0].add(&batch),
            Event::Assigned(assignments) => kept.extend(assignments),
            Event::Idle => {}
            other => panic!("first: {other:?}"),
        }
        match second.poll(TICK).unwrap() {
            Event::Batch(batch) => seen[1].add(&batch),
            Event::Assigned(assignments) => taken.extend(assignments),
            Event::Idle => {}
            other => panic!("second: {other:?}"),
        }
    }
    assert_eq!(taken.len(), 2);
    for assignment in taken.iter().chain(&kept) {
        assert!(revoked.contains(&assignment.lane));
        assert_eq!(assignment.committed, Some((5, "moved".to_owned())));
    }
    for (seen, other) in [(&seen[0], &seen[1]), (&seen[1], &seen[0])] {
        assert_eq!(seen.0.len(), 2);
        for (lane, offsets) in &seen.0 {
            assert_eq!(*offsets, [5, 6, 7, 8, 9]);
            assert!(!other.0.contains_key(lane));
        }
    }
    assert!(taken.iter().all(|assignment| seen[1].0.contains_key(&assignment.lane)));
}

#[test]
fn lanes_lost_by_silence_are_told_so_and_can_no_longer_be_committed() {
    let topic = topic("lost", 1);
    produce(&topic, 1, 5);
    let config = with(source_config(&topic), &SHORT_TIMEOUTS);
    let mut source = KafkaSource::connect(&config, &unique("group")).unwrap();
    assigned(&mut source);
    receive(&mut source, 5);

    thread::sleep(Duration::from_millis(2500));

    let lanes = until(&mut source, |event| match event {
        Event::Lost(lanes) => Some(lanes),
        Event::Idle => None,
        other => panic!("of a lost lane: {other:?}"),
    });
    assert_eq!(lanes, [Lane::new(topic.as_str(), 0)]);
    let late = source.committer().unwrap().commit(&[(lanes[0].clone(), 5)], "late").unwrap_err();
    assert!(matches!(late, SourceError::Lost { lanes: 1 }), "{late}");

    source.release().unwrap();
    assert_eq!(assigned(&mut source)[0].committed, None);
    assert_eq!(receive(&mut source, 5).0[&lanes[0]], [0, 1, 2, 3, 4]);
}

#[test]
fn a_paused_source_stays_a_member_and_hands_nothing_out() {
    let topic = topic("pause", 2);
    let config = with(source_config(&topic), &SHORT_TIMEOUTS);
    let mut source = KafkaSource::connect(&config, &unique("group")).unwrap();
    source.pause(true).unwrap();
    assigned(&mut source);
    produce(&topic, 2, 100);
    for _ in 0..10 {
        assert!(matches!(source.poll(TICK).unwrap(), Event::Idle));
    }

    source.pause(false).unwrap();
    receive(&mut source, 200);
    source.pause(true).unwrap();
    produce(&topic, 2, 100);
    for _ in 0..60 {
        assert!(matches!(source.poll(TICK).unwrap(), Event::Idle));
    }

    source.pause(false).unwrap();
    let seen = receive(&mut source, 200);
    for offsets in seen.0.values() {
        assert_eq!(*offsets, (100..200).collect::<Vec<i64>>());
    }
}

#[test]
fn a_paused_source_of_large_messages_goes_on_where_it_stopped() {
    let topic = topic("large-pause", 1);
    produce_large(&topic, 60);
    let mut source = KafkaSource::connect(&source_config(&topic), &unique("group")).unwrap();
    assigned(&mut source);
    let mut seen = receive(&mut source, 1);
    source.pause(true).unwrap();
    for _ in 0..100 {
        assert!(matches!(source.poll(Duration::from_millis(5)).unwrap(), Event::Idle));
    }

    source.pause(false).unwrap();
    let missing = 60 - seen.count();
    for (lane, offsets) in receive(&mut source, missing).0 {
        seen.0.entry(lane).or_default().extend(offsets);
    }
    assert_eq!(seen.0[&Lane::new(topic.as_str(), 0)], (0..60).collect::<Vec<i64>>());
}

#[test]
fn a_pause_does_not_outlive_the_lanes_it_was_for() {
    let topic = topic("repause", 1);
    produce_large(&topic, 30);
    let config = with(source_config(&topic), &SHORT_TIMEOUTS);
    let mut source = KafkaSource::connect(&config, &unique("group")).unwrap();
    assigned(&mut source);
    receive(&mut source, 1);
    source.pause(true).unwrap();
    // Long enough that librdkafka itself is paused.
    for _ in 0..100 {
        assert!(matches!(source.poll(Duration::from_millis(5)).unwrap(), Event::Idle));
    }
    thread::sleep(Duration::from_millis(2500));
    until(&mut source, |event| matches!(event, Event::Lost(_)).then_some(()));
    source.release().unwrap();
    source.pause(false).unwrap();

    assigned(&mut source);
    let seen = receive(&mut source, 30);
    assert_eq!(seen.0[&Lane::new(topic.as_str(), 0)], (0..30).collect::<Vec<i64>>());
}

#[test]
fn a_lane_without_a_committed_offset_starts_where_the_pipeline_says() {
    let topic = topic("start", 1);
    produce(&topic, 1, 5);
    let config = config::KafkaSource { start: config::Start::Latest, ..source_config(&topic) };
    let mut source = KafkaSource::connect(&config, &unique("group")).unwrap();
    assigned(&mut source);
    // The end of the lane is looked up after its assignment: later messages come for certain.
    let mut first = None;
    let deadline = Instant::now() + PATIENCE;
    while first.is_none() && Instant::now() < deadline {
        produce(&topic, 1, 1);
        if let Event::Batch(batch) = source.poll(TICK).unwrap() {
            first = Some(messages(&batch).get(0).offset);
        }
    }
    assert!(first.is_some_and(|offset| offset >= 5), "{first:?}");
}

#[test]
fn messages_of_aborted_transactions_do_not_come_out() {
    let topic = topic("aborted", 1);
    let producer = producer(&[("transactional.id", &topic)]);
    producer.init_transactions(PATIENCE).unwrap();
    for (payload, commit) in [("first", true), ("aborted", false), ("second", true)] {
        producer.begin_transaction().unwrap();
        producer.send(BaseRecord::<str, str>::to(&topic).key("k").payload(payload)).unwrap();
        producer.flush(PATIENCE).unwrap();
        if commit {
            producer.commit_transaction(PATIENCE).unwrap();
        } else {
            producer.abort_transaction(PATIENCE).unwrap();
        }
    }

    let mut source = KafkaSource::connect(&source_config(&topic), &unique("group")).unwrap();
    assigned(&mut source);
    let mut payloads = Vec::new();
    until(&mut source, |event| {
        if let Event::Batch(batch) = event {
            let payload = |message: contrastream::source::Message<'_>| message.payload.to_vec();
            payloads.extend(messages(&batch).iter().map(payload));
        }
        (payloads.len() >= 2).then_some(())
    });
    assert_eq!(payloads, [b"first".to_vec(), b"second".to_vec()]);
}

#[test]
fn large_and_binary_messages_with_headers_pass_through_unchanged() {
    let topic = topic("large", 1);
    let large = noise(50_000_000);
    let binary: Vec<u8> = (0..=255).collect();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "unit", value: Some(&binary) })
        .insert(Header { key: "none", value: None::<&str> });
    let producer = producer(&[]);
    producer.send(BaseRecord::<[u8], _>::to(&topic).payload(&large)).unwrap();
    let record = BaseRecord::to(&topic).key(&binary).payload(&binary).headers(headers);
    producer.send(record).unwrap();
    producer.send(BaseRecord::<_, [u8]>::to(&topic).key(&binary)).unwrap();
    producer.flush(PATIENCE).unwrap();

    let mut source = KafkaSource::connect(&source_config(&topic), &unique("group")).unwrap();
    assigned(&mut source);
    let mut found = Vec::new();
    until(&mut source, |event| {
        if let Event::Batch(batch) = event {
            assert!(batch.appended_ms.is_some_and(|appended| appended > 1_600_000_000_000));
            for message in messages(&batch).iter() {
                let key = message.key.map(<[u8]>::to_vec);
                found.push((key, message.payload.to_vec(), message.headers.to_vec()));
            }
        }
        (found.len() >= 3).then_some(())
    });
    assert!(found[0].0.is_none() && found[0].1 == large);
    assert_eq!((&found[1].0, &found[1].1), (&Some(binary.clone()), &binary));
    let headers = [("unit".to_owned(), Some(binary.clone())), ("none".to_owned(), None)];
    assert_eq!(found[1].2, headers);
    // A tombstone.
    assert_eq!(found[2], (Some(binary), Vec::new(), Vec::new()));
}

#[test]
fn a_missing_topic_is_named() {
    let name = unique("missing");
    let error = connect_error(&source_config(&name));
    assert!(matches!(&error, SourceError::MissingTopic { topic, .. } if *topic == name), "{error}");
}

#[test]
fn a_topic_deleted_while_reading_is_an_error() {
    let topic = topic("deleted", 1);
    produce(&topic, 1, 1);
    let mut source = KafkaSource::connect(&source_config(&topic), &unique("group")).unwrap();
    assigned(&mut source);
    receive(&mut source, 1);

    block_on(admin().delete_topics(&[&topic], &options())).unwrap();

    let error = poll_error(&mut source);
    assert!(matches!(&error, SourceError::MissingTopic { topic: t, .. } if *t == topic), "{error}");
}

#[test]
fn unreachable_brokers_are_named_with_the_reason() {
    let config = config::KafkaSource { brokers: "127.0.0.1:1".to_owned(), ..source_config("t") };
    let error = connect_error(&config);
    assert!(error.is_retryable());
    let text = error.to_string();
    assert!(text.contains("no broker of 127.0.0.1:1") && text.contains("refused"), "{text}");
}

#[test]
fn properties_that_librdkafka_does_not_take_are_named() {
    let topic = unique("unused");
    for (property, value) in [("fetch.min.bites", "1"), ("enable.auto.commit", "true")] {
        let error = connect_error(&with(source_config(&topic), &[(property, value)]));
        assert!(matches!(&error, SourceError::Property { reason } if reason.contains(property)));
    }
}

#[test]
fn a_member_authenticates_with_scram_over_tls() {
    let topic = topic("scram", 1);
    produce(&topic, 1, 3);
    let config = as_tester(&topic, "tester-secret");
    let mut source = KafkaSource::connect(&config, &unique("group")).unwrap();
    assigned(&mut source);
    assert_eq!(receive(&mut source, 3).count(), 3);
}

#[test]
fn a_wrong_password_is_a_refusal_that_does_not_show_it() {
    let topic = topic("password", 1);
    let error = connect_error(&as_tester(&topic, "not-the-secret"));
    assert!(matches!(&error, SourceError::Refused { .. }), "{error}");
    assert!(!error.to_string().contains("not-the-secret"), "{error}");
}

#[test]
fn denied_rights_are_refusals_that_name_topic_or_group() {
    let described = topic("denied-describe", 1);
    allow_only("DESCRIBE_CONFIGS", "TOPIC", &described);
    let error = connect_error(&as_tester(&described, "tester-secret"));
    assert!(matches!(&error, SourceError::Refused { reason, .. } if reason.contains(&described)));

    let read = topic("denied-read", 1);
    produce(&read, 1, 1);
    allow_only("DESCRIBE", "TOPIC", &read);
    let config = as_tester(&read, "tester-secret");
    let mut source = KafkaSource::connect(&config, &unique("group")).unwrap();
    let error = poll_error(&mut source);
    assert!(
        matches!(&error, SourceError::Refused { reason, .. } if reason.contains(&read)),
        "{error}"
    );

    let free = topic("denied-group", 1);
    let config = as_tester(&free, "tester-secret");
    let group = unique("described-group");
    allow_only("DESCRIBE_CONFIGS", "GROUP", &group);
    let error = KafkaSource::connect(&config, &group).err().expect("a refusal");
    assert!(
        matches!(&error, SourceError::Refused { reason, .. } if reason.contains(&group)),
        "{error}"
    );

    let group = unique("read-group");
    allow_only("DESCRIBE", "GROUP", &group);
    let mut source = KafkaSource::connect(&config, &group).unwrap();
    let error = poll_error(&mut source);
    assert!(matches!(&error, SourceError::Refused { .. }), "{error}");
}

/// A cluster of one broker that can be taken away, within this process.
fn mock_cluster(topic: &str) -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(topic, 1, 1).unwrap();
    cluster
}

#[test]
fn a_source_rides_out_brokers_that_are_away() {
    let cluster = mock_cluster("t");
    let produce = |count| {
        let producer = producer(&[("bootstrap.servers", &cluster.bootstrap_servers())]);
        for _ in 0..count {
            producer.send(BaseRecord::<str, str>::to("t").key("k").payload("v")).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    };
    let config = config::KafkaSource { brokers: cluster.bootstrap_servers(), ..source_config("t") };
    let mut source = KafkaSource::connect(&config, "g").unwrap();
    assigned(&mut source);
    produce(5);
    receive(&mut source, 5);

    cluster.broker_down(1).unwrap();
    for _ in 0..20 {
        assert!(matches!(source.poll(TICK).unwrap(), Event::Idle));
    }
    cluster.broker_up(1).unwrap();
    produce(5);

    let seen = receive(&mut source, 5);
    assert_eq!(seen.0[&Lane::new("t", 0)], [5, 6, 7, 8, 9]);
}

#[test]
fn a_commit_without_brokers_fails_and_is_worth_a_retry() {
    let cluster = mock_cluster("t");
    let config = config::KafkaSource { brokers: cluster.bootstrap_servers(), ..source_config("t") };
    let config = with(config, &[("session.timeout.ms", "5000")]);
    let mut source = KafkaSource::connect(&config, "g").unwrap();
    assigned(&mut source);

    cluster.broker_down(1).unwrap();

    let committer = source.committer().unwrap();
    let error = committer.commit(&[(Lane::new("t", 0), 5)], "checkpoint").unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

// ---------------------------------------------------------------------------------------------
// The sink
// ---------------------------------------------------------------------------------------------

/// A pipeline over a source that names the brokers, and the sink's own table.
fn pipeline(name: &str, source: config::KafkaSource, sink: config::KafkaSink) -> config::Pipeline {
    let text = format!(
        "name = {name:?}\n\
         [source]\nkind = \"generator\"\n\
         [records]\ntime = \"ts\"\nchannels = [\"temperature\", \"vibration\"]\n"
    );
    let mut pipeline: config::Pipeline = toml::from_str(&text).unwrap();
    pipeline.source = config::Source::Kafka(source);
    pipeline.sink.kafka = Some(sink);
    pipeline
}

fn connect(pipeline: &config::Pipeline) -> Result<KafkaSink, SinkError> {
    KafkaSink::connect(pipeline.sink.kafka.as_ref().unwrap(), pipeline)
}

/// A pipeline of the given name, with all its output topics still to be created.
fn default_sink(name: &str) -> KafkaSink {
    connect(&pipeline(name, source_config("unused"), config::KafkaSink::default())).unwrap()
}

fn segment(key: &str, sequence: u64) -> SegmentMeta {
    SegmentMeta {
        key: key.into(),
        lane: Lane::new("plant.sensors", 1),
        sequence,
        window_start: 1_700_000_000_000_000,
        window_end: 1_700_000_001_000_000,
        first_offset: 10,
        last_offset: 20,
    }
}

fn calm() -> Score {
    Score {
        score: 0.25,
        p_value: 0.5,
        surprise: 1.5,
        distance: 0.125,
        residual: 2.0,
        alert: false,
        alert_id: None,
        causes: Vec::new(),
        missing: Vec::new(),
        turn: false,
        warm: true,
    }
}

fn outputs(segments: Vec<SegmentMeta>) -> Outputs {
    Outputs {
        embeddings: segments.iter().flat_map(|_| [0.6, -0.8]).collect(),
        scores: segments.iter().map(|_| calm()).collect(),
        segments,
        model_version: ModelVersion { steps: 3, wander: 0.25 },
    }
}

fn letter(payload: Vec<u8>) -> DeadLetter {
    DeadLetter {
        lane: Lane::new("plant.sensors", 1),
        offset: 42,
        key: Some(b"pump".to_vec()),
        payload,
        headers: vec![("unit".to_owned(), Some(b"mm/s".to_vec()))],
        stage: "decode",
        reason: "expected a number".to_owned(),
    }
}

#[test]
fn results_are_read_back_by_another_client() {
    let name = unique("results");
    let mut sink = default_sink(&name);
    let mut outputs = outputs(vec![segment("pump-1", 7), segment("pump-1", 8)]);
    outputs.scores[1] = Score {
        alert: true,
        alert_id: Some("a".to_owned()),
        causes: vec![
            Cause { channel: "vibration".into(), share: 0.75 },
            Cause { channel: "temperature".into(), share: 0.25 },
        ],
        missing: Vec::new(),
        ..calm()
    };
    sink.write(&outputs).unwrap();
    sink.flush().unwrap();

    let embeddings = read(&format!("{name}.embeddings"), 2);
    assert_eq!(embeddings[0].key.as_deref(), Some("pump-1"));
    let expected =
        format!(r#"{{"pipeline":"{name}","key":"pump-1","window_start":1700000000000000,"#)
            + r#""window_end":1700000001000000,"sequence":7,"model_version":3,"#
            + r#""embedding":[0.6,-0.8],"topic":"plant.sensors","partition":1,"#
            + r#""first_offset":10,"last_offset":20,"wander":0.25}"#;
    assert_eq!(embeddings[0].value, expected);

    let anomalies = read(&format!("{name}.anomalies"), 2);
    let anomaly: serde_json::Value = serde_json::from_str(&anomalies[1].value).unwrap();
    assert_eq!((&anomaly["sequence"], &anomaly["alert"]), (&8.into(), &true.into()));
    let causes = serde_json::json!([
        {"channel": "vibration", "share": 0.75}, {"channel": "temperature", "share": 0.25}
    ]);
    assert_eq!(anomaly["causes"], causes);
}

#[test]
fn a_full_queue_is_waited_for_and_order_per_key_holds() {
    let name = unique("queue");
    let mut sink = config::KafkaSink::default();
    sink.properties.insert("queue.buffering.max.messages".to_owned(), "10".to_owned());
    sink.embeddings = Some(String::new());
    let mut sink = connect(&pipeline(&name, source_config("unused"), sink)).unwrap();
    for sequence in 0..500 {
        sink.write(&outputs(vec![segment("a", sequence), segment("b", sequence)])).unwrap();
    }
    sink.flush().unwrap();

    let found = read(&format!("{name}.anomalies"), 1000);
    for key in ["a", "b"] {
        let of_key = found.iter().filter(|message| message.key.as_deref() == Some(key));
        let sequences = of_key.map(|message| {
            let value: serde_json::Value = serde_json::from_str(&message.value).unwrap();
            value["sequence"].as_u64().unwrap()
        });
        assert!(sequences.eq(0..500));
    }
}

#[test]
fn a_flush_waits_for_brokers_that_are_away() {
    let cluster = mock_cluster("p.dead-letters");
    let sink = config::KafkaSink {
        brokers: Some(cluster.bootstrap_servers()),
        embeddings: Some(String::new()),
        anomalies: Some(String::new()),
        ..config::KafkaSink::default()
    };
    let mut sink = connect(&pipeline("p", source_config("unused"), sink)).unwrap();
    sink.dead_letter(&letter(b"before".to_vec())).unwrap();
    sink.flush().unwrap();

    cluster.broker_down(1).unwrap();
    sink.dead_letter(&letter(b"while away".to_vec())).unwrap();
    let back = AtomicBool::new(false);
    thread::scope(|scope| {
        let flushed = scope.spawn(|| {
            sink.flush().unwrap();
            assert!(back.load(Ordering::SeqCst));
        });
        thread::sleep(Duration::from_secs(1));
        back.store(true, Ordering::SeqCst);
        cluster.broker_up(1).unwrap();
        flushed.join().unwrap();
    });
}

#[test]
fn what_no_broker_takes_in_time_is_a_failure_worth_a_retry() {
    let cluster = mock_cluster("p.dead-letters");
    let mut sink = config::KafkaSink {
        brokers: Some(cluster.bootstrap_servers()),
        embeddings: Some(String::new()),
        anomalies: Some(String::new()),
        ..config::KafkaSink::default()
    };
    sink.properties.insert("message.timeout.ms".to_owned(), "500".to_owned());
    let mut sink = connect(&pipeline("p", source_config("unused"), sink)).unwrap();
    cluster.broker_down(1).unwrap();
    sink.dead_letter(&letter(b"lost".to_vec())).unwrap();

    let error = sink.flush().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(matches!(error, SinkError::Delivery { topic, .. } if topic == "p.dead-letters"));
}

#[test]
fn a_dead_letter_keeps_its_bytes_and_says_why_and_where() {
    let name = unique("dead");
    let mut sink = default_sink(&name);
    sink.dead_letter(&letter(vec![0, 159, 255])).unwrap();
    sink.flush().unwrap();

    let found = &read(&format!("{name}.dead-letters"), 1)[0];
    assert_eq!((found.key.as_deref(), found.value.as_str()), (Some("pump"), "\0\u{9f}\u{ff}"));
    let expected = [
        ("contrastream.offset", "42"),
        ("contrastream.partition", "1"),
        ("contrastream.reason", "expected a number"),
        ("contrastream.stage", "decode"),
        ("contrastream.topic", "plant.sensors"),
        ("unit", "mm/s"),
    ];
    let headers: Vec<_> = found.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(headers, expected);
}

#[test]
fn dead_letters_are_cut_to_what_their_topic_takes() {
    let name = unique("oversize");
    let dead_letters = format!("{name}.dead-letters");
    create_topic(&dead_letters, 1, &[("max.message.bytes", "100000")]);
    let mut sink = default_sink(&name);
    sink.dead_letter(&letter(noise(5_000_000))).unwrap();
    // Each of these fits, all in one batch would not.
    for _ in 0..20 {
        sink.dead_letter(&letter(noise(60_000))).unwrap();
    }
    sink.flush().unwrap();

    let found = read(&dead_letters, 21);
    let cut: Vec<char> = found[0].value.chars().collect();
    assert!((99_000..100_000).contains(&cut.len()), "{}", cut.len());
    assert!(cut.iter().zip(noise(5_000_000)).all(|(found, sent)| *found == char::from(sent)));
    assert_eq!(found[0].headers["contrastream.truncated"], "5000000");
    assert_eq!(found[0].headers["unit"], "mm/s");
    for whole in &found[1..] {
        assert_eq!(whole.value.chars().count(), 60_000);
        assert!(!whole.headers.contains_key("contrastream.truncated"));
    }
}

#[test]
fn a_dead_letter_that_its_topic_refuses_as_too_large_does_not_stop_the_sink() {
    let name = unique("unread-limit");
    let dead_letters = format!("{name}.dead-letters");
    create_topic(&dead_letters, 1, &[("max.message.bytes", "100000")]);
    // Without the right to read it, the limit is taken to be Kafka's default.
    allow_only("DESCRIBE", "TOPIC", &dead_letters);
    allow_only("WRITE", "TOPIC", &dead_letters);
    let source = as_tester("unused", "tester-secret");
    let mut sink = connect(&pipeline(&name, source, config::KafkaSink::default())).unwrap();
    sink.dead_letter(&letter(noise(200_000))).unwrap();
    sink.flush().unwrap();
    sink.dead_letter(&letter(noise(1000))).unwrap();
    sink.flush().unwrap();

    assert_eq!(read(&dead_letters, 1)[0].value.chars().count(), 1000);
}

#[test]
fn within_a_transaction_a_dead_letter_that_is_refused_as_too_large_is_a_lasting_failure() {
    let name = unique("unread-limit-once");
    let dead_letters = format!("{name}.dead-letters");
    create_topic(&dead_letters, 1, &[("max.message.bytes", "100000")]);
    allow_only("DESCRIBE", "TOPIC", &dead_letters);
    allow_only("WRITE", "TOPIC", &dead_letters);
    let source = as_tester("unused", "tester-secret");
    let mut pipeline = pipeline(&name, source, config::KafkaSink::default());
    pipeline.checkpoint.delivery = Some(config::Delivery::ExactlyOnce);
    pipeline.checkpoint.instance = Some(name.clone());
    let mut sink = connect(&pipeline).unwrap();
    sink.dead_letter(&letter(noise(200_000))).unwrap();

    let error = sink.flush().unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    assert!(error.to_string().contains(&dead_letters), "{error}");
}

#[test]
fn a_message_that_is_not_delivered_surfaces_at_flush() {
    let name = unique("undelivered");
    let anomalies = format!("{name}.anomalies");
    create_topic(&anomalies, 1, &[]);
    allow_only("DESCRIBE", "TOPIC", &anomalies);
    // Brokers and properties are those of the source.
    let source = as_tester("unused", "tester-secret");
    let mut sink = connect(&pipeline(&name, source, config::KafkaSink::default())).unwrap();
    sink.write(&outputs(vec![segment("a", 0)])).unwrap();

    let error = sink.flush().unwrap_err();
    assert!(
        matches!(&error, SinkError::Refused { reason, .. } if reason.contains(&anomalies)),
        "{error}"
    );
    // The embedding got through, and nothing else is owed.
    sink.flush().unwrap();
    assert_eq!(read(&format!("{name}.embeddings"), 1).len(), 1);
}

#[test]
fn output_topics_that_cannot_be_created_are_named() {
    let name = unique("impossible");
    let impossible = "no spaces allowed".to_owned();
    let sink = config::KafkaSink { anomalies: Some(impossible.clone()), ..Default::default() };
    let error = connect(&pipeline(&name, source_config("unused"), sink)).err().unwrap();
    assert!(
        matches!(&error, SinkError::MissingTopic { topic, .. } if *topic == impossible),
        "{error}"
    );
}

#[test]
fn the_sinks_own_brokers_and_properties_are_checked() {
    let sink = config::KafkaSink {
        brokers: Some("127.0.0.1:1".to_owned()),
        ..config::KafkaSink::default()
    };
    let error = connect(&pipeline("p", source_config("unused"), sink)).err().unwrap();
    assert!(matches!(&error, SinkError::Unreachable { reason, .. } if reason.contains("refused")));

    for (property, value) in [
        ("linger.mss", "1"),
        ("acks", "1"),
        ("queue.buffering.max.kbytes", "1"),
        ("transactional.id", "t"),
    ] {
        let mut sink = config::KafkaSink::default();
        sink.properties.insert(property.to_owned(), value.to_owned());
        let error = connect(&pipeline("p", source_config("unused"), sink)).err().unwrap();
        assert!(
            matches!(&error, SinkError::Property { reason } if reason.contains(property)),
            "{error}"
        );
    }
}
