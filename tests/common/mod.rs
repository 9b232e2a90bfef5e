//! What the tests of the built program share: the program itself, the broker, readers of its
//! output that know nothing of contrastream.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsStr;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// Longest wait for anything that must happen; only what hangs takes so long.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The password of the test broker's user `tester`.
pub const PASSWORD: &str = "tester-secret";
const TICK: Duration = Duration::from_millis(20);

/// A variable that `scripts/test` sets.
pub fn variable(name: &str) -> String {
    match env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set: run make test, or `make broker` and what it says"),
    }
}

/// A name that no other test, and no other run, uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("{name}-{nanos}-{count}")
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Asks until the answer is there.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(answer) = ask() {
            return answer;
        }
        thread::sleep(TICK);
    }
    panic!("{what}: not within {PATIENCE:?}");
}

// ---------------------------------------------------------------------------------------------
// The program
// ---------------------------------------------------------------------------------------------

/// The built program, without a variable of the tests' own environment that it would read.
pub fn contrastream<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_contrastream"));
    command.args(arguments).stdin(Stdio::null());
    command
        .env_remove("RUST_LOG")
        .env_remove("KAFKA_BROKERS")
        .env_remove("RUST_BACKTRACE")
        .env("NO_COLOR", "1");
    command
}

/// Runs the program to its end.
pub fn finish<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    Program::start(contrastream(arguments)).wait()
}

/// A program that ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The same, if it ended with `code` and did not panic.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        for output in [&self.stdout, &self.stderr] {
            assert!(!output.contains("panicked at"), "{output}");
            assert!(!output.contains("stack backtrace"), "{output}");
        }
        self
    }

    /// The message of a failure: one `error:` line, the last of standard error.
    #[track_caller]
    pub fn error(&self) -> &str {
        let at = self.stderr.find("error: ").unwrap_or_else(|| panic!("{}", self.stderr));
        self.stderr[at..].trim_end()
    }

    /// The field `name` of the program's last log line.
    #[track_caller]
    pub fn total(&self, name: &str) -> u64 {
        let ended = self.stderr.lines().rfind(|line| line.contains("ended, everything read"));
        let ended = ended.unwrap_or_else(|| panic!("{}", self.stderr));
        let value = ended.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{ended}")).1;
        value.split(' ').next().unwrap().parse().unwrap()
    }
}

/// A program that runs; killed if it is dropped.
pub struct Program {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Program {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = vec![
            follow(child.stdout.take().unwrap(), Arc::clone(&stdout)),
            follow(child.stderr.take().unwrap(), Arc::clone(&stderr)),
        ];
        Self { child, stdout, stderr, readers }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits for something that becomes true while the program runs.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(answer) = ask(self) {
                return answer;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{what}: ended before with {status}\n{}", self.log());
            }
            thread::sleep(TICK);
        }
        panic!("{what}: not within {PATIENCE:?}\n{}", self.log());
    }

    /// The address of its HTTP server, as it logs it.
    fn address(&self) -> Option<String> {
        let log = self.log();
        let after = log.split_once(" address=").or_else(|| log.split_once("\"address\":\""))?.1;
        Some(after.split([' ', '\n', '"']).next()?.to_owned())
    }

    /// Status and body of an HTTP GET; `None` while nobody listens.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address()?).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }

    /// Waits until it owns lanes and takes records.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.until("/readyz", |program| {
            program.get("/readyz").filter(|(status, _)| *status == 200).map(drop)
        });
    }

    /// The sum of a metric over its labels, from `/metrics`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        let of_metric = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        let values = text.lines().filter(of_metric);
        let values: Vec<f64> =
            values.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Waits until a counter reaches `value`.
    #[track_caller]
    pub fn wait_metric(&mut self, name: &str, value: f64) {
        self.until(&format!("{name} of {value}"), |program| {
            program.metric(name).filter(|found| *found >= value).map(drop)
        });
    }

    /// Tells it to end (SIGTERM) and waits until it did.
    #[track_caller]
    pub fn terminate(self) -> Finished {
        self.signal("TERM");
        self.wait()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// Ends it with no chance to do anything (SIGKILL).
    #[track_caller]
    pub fn kill(mut self) -> Finished {
        self.child.kill().unwrap();
        self.wait()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Finished {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "does not end\n{}", self.log());
            thread::sleep(TICK);
        };
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let text = |text: &Mutex<String>| text.lock().unwrap().clone();
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects what a program prints, so that it never waits for a reader.
fn follow(pipe: impl Read + Send + 'static, text: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            text.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

// ---------------------------------------------------------------------------------------------
// A pipeline like pipelines/sensor.toml, made small
// ---------------------------------------------------------------------------------------------

/// Samples of a segment, samples between two segments, and seconds that a record may be late.
pub const LENGTH: usize = 16;
pub const STRIDE: usize = 4;
pub const LATENESS: usize = 2;

/// `pipelines/sensor.toml` under another name, with short windows and a small model; results go to
/// folders below `folder`, and to topics of the name.
pub struct Plant {
    pub name: String,
    pub folder: tempfile::TempDir,
    overrides: Vec<String>,
}

impl Plant {
    pub fn new(name: &str) -> Self {
        let name = unique(name);
        let folder = tempfile::tempdir().unwrap();
        let overrides = vec![
            format!("name={name}"),
            format!("windows.length={LENGTH}"),
            format!("windows.stride={STRIDE}"),
            format!("windows.lateness={LATENESS}s"),
            "windows.max_gap=1h".to_owned(),
            "model.hidden=8".to_owned(),
            "model.embedding=8".to_owned(),
            "model.projection=[8]".to_owned(),
            "model.queue=64".to_owned(),
            "training.batch=16".to_owned(),
            "training.every=16".to_owned(),
            "scores.warmup=20".to_owned(),
            format!("sink.parquet.path={}", folder.path().join("out").display()),
            format!("checkpoint.store={}", folder.path().join("state").display()),
            "http.listen=127.0.0.1:0".to_owned(),
        ];
        Self { name, folder, overrides }
    }

    /// Over the test broker, with an input topic of so many partitions.
    pub fn on_broker(name: &str, partitions: i32) -> Self {
        let mut plant = Self::new(name);
        plant.set(format!("source.brokers={}", brokers()));
        plant.set(format!("source.topics=[\"{}\"]", plant.topic("sensors")));
        create_topic(&plant.topic("sensors"), partitions, &[]);
        for kind in ["embeddings", "anomalies"] {
            create_topic(&plant.topic(kind), partitions, &[]);
        }
        plant
    }

    /// Over another source, given as TOML, to Parquet only.
    pub fn over(name: &str, source: &str) -> Self {
        let plant = Self::new(name);
        let file = format!(
            "name = \"plant\"\n\
             [records]\nkey = \"machine\"\ntime = \"ts\"\n\
             channels = [\"temperature\", \"vibration\", \"pressure\", \"current\", \"speed\"]\n\
             [source]\n{source}\n\
             [sink.parquet]\npath = \"out\"\n"
        );
        std::fs::write(plant.folder.path().join("plant.toml"), file).unwrap();
        plant
    }

    /// Over the records of a file or folder, to Parquet only, without HTTP.
    pub fn over_files(name: &str, path: &Path) -> Self {
        let mut plant = Self::over(name, &format!("kind = \"file\"\npath = {path:?}"));
        plant.set("http.listen=\"\"");
        plant
    }

    /// As `tester`, over the listener with TLS and SCRAM; the password comes from the environment.
    pub fn as_tester(&mut self) {
        self.set(format!("source.brokers={}", variable("CONTRASTREAM_TEST_SASL_BROKERS")));
        for property in [
            "security.protocol=SASL_SSL",
            "sasl.mechanism=SCRAM-SHA-512",
            "sasl.username=tester",
            "sasl.password=${TESTER_PASSWORD}",
        ] {
            self.set(format!("source.properties.{property}"));
        }
        let ca = variable("CONTRASTREAM_TEST_CA");
        self.set(format!("source.properties.ssl.ca.location={ca}"));
    }

    pub fn set(&mut self, text: impl Into<String>) {
        self.overrides.push(text.into());
    }

    pub fn topic(&self, kind: &str) -> String {
        format!("{}.{kind}", self.name)
    }

    pub fn group(&self) -> String {
        format!("contrastream-{}", self.name)
    }

    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// `contrastream COMMAND PIPELINE --set …`.
    pub fn command(&self, command: &str) -> Command {
        let own = self.folder.path().join("plant.toml");
        let pipeline = if own.exists() { own } else { repository("pipelines/sensor.toml") };
        let mut command = contrastream([command.as_ref(), pipeline.as_os_str()]);
        for text in &self.overrides {
            command.args(["--set", text]);
        }
        command.env("TESTER_PASSWORD", PASSWORD);
        command
    }

    pub fn run(&self) -> Program {
        Program::start(self.command("run"))
    }
}

/// Records of a few machines, a reading a second each, in the order of time.
pub struct Machines {
    names: Vec<String>,
    /// Readings of each so far.
    seconds: usize,
}

impl Machines {
    pub fn new(count: usize) -> Self {
        let names = (0..count).map(|number| format!("press-{number}")).collect();
        Self { names, seconds: 0 }
    }

    /// The next `seconds` readings of every machine: (machine, record).
    pub fn next(&mut self, seconds: usize) -> Vec<(String, String)> {
        let mut records = Vec::new();
        for second in self.seconds..self.seconds + seconds {
            for (number, name) in self.names.iter().enumerate() {
                records.push((name.clone(), reading(name, second, number as f64)));
            }
        }
        self.seconds += seconds;
        records
    }

    /// The segments that the readings so far complete.
    pub fn segments(&self) -> BTreeSet<(String, u64)> {
        let of_machine = |name: &String| {
            let name = name.clone();
            (0..segments_of(self.seconds)).map(move |sequence| (name.clone(), sequence))
        };
        self.names.iter().flat_map(of_machine).collect()
    }
}

/// How many segments so many readings of a machine complete.
pub fn segments_of(readings: usize) -> u64 {
    // A reading counts once it can no longer be overtaken by a late one.
    let settled = readings.saturating_sub(LATENESS);
    if settled < LENGTH { 0 } else { ((settled - LENGTH) / STRIDE + 1) as u64 }
}

/// A reading as pipelines/sensor.toml reads it.
pub fn reading(machine: &str, second: usize, phase: f64) -> String {
    let time = chrono::DateTime::from_timestamp(1_767_225_600 + second as i64, 0).unwrap();
    let angle = second as f64 / 7.0 + phase;
    serde_json::json!({
        "machine": machine,
        "ts": time.to_rfc3339(),
        "temperature": 60.0 + 5.0 * angle.sin(),
        "vibration": 3.0 + angle.cos(),
        "pressure": 5.0 + 0.1 * (2.0 * angle).sin(),
        "current": 13.0 + phase,
        "speed": 1500.0 + 10.0 * (angle / 3.0).sin(),
    })
    .to_string()
}

// ---------------------------------------------------------------------------------------------
// The broker
// ---------------------------------------------------------------------------------------------

pub fn brokers() -> String {
    variable("CONTRASTREAM_TEST_BROKERS")
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub fn create_topic(name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap();
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for result in block_on(admin.create_topics([&topic], &options)).unwrap() {
        result.unwrap();
    }
}

pub fn producer() -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers()).set("message.max.bytes", "67108864");
    config.set("queue.buffering.max.messages", "1000000");
    config.create().unwrap()
}

/// Appends records to a topic, each to the partition of its machine.
pub fn produce(topic: &str, partitions: i32, records: &[(String, String)]) {
    let producer = producer();
    for (key, record) in records {
        let number: i32 = key.rsplit('-').next().unwrap().parse().unwrap();
        let to = BaseRecord::to(topic).partition(number % partitions);
        producer.send(to.key(key).payload(record)).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
}

/// Allows `tester` an operation on a resource, and from now on none but those allowed.
pub fn allow_only(operation: &str, kind: &str, name: &str) {
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
    let brokers = brokers();
    python(PROGRAM, &[brokers.as_ref(), kind.as_ref(), name.as_ref(), operation.as_ref()]);
}

/// Where a partition stands: its end, and the offset committed with its metadata.
#[derive(Debug)]
pub struct Standing {
    pub end: i64,
    pub committed: Option<(i64, String)>,
}

/// How far a group has come with a topic, by partition. `None` while the brokers cannot tell.
pub fn standing(group: &str, topic: &str, partitions: i32) -> Option<Vec<Standing>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", group)
        .create()
        .unwrap();
    let mut lanes = TopicPartitionList::new();
    lanes.add_partition_range(topic, 0, partitions - 1);
    let committed = match consumer.committed_offsets(lanes, PATIENCE) {
        Err(KafkaError::MetadataFetch(
            RDKafkaErrorCode::NotCoordinator
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::CoordinatorLoadInProgress,
        )) => return None,
        committed => committed.unwrap(),
    };
    let standing = committed.elements().into_iter().map(|found| {
        let (_, end) = consumer.fetch_watermarks(topic, found.partition(), PATIENCE).unwrap();
        let committed = match found.offset() {
            Offset::Offset(offset) => Some((offset, found.metadata().to_owned())),
            _ => None,
        };
        Standing { end, committed }
    });
    Some(standing.collect())
}

/// Whether everything in a topic is committed.
pub fn is_done(group: &str, topic: &str, partitions: i32) -> bool {
    standing(group, topic, partitions).is_some_and(|standing| {
        standing.iter().all(|lane| match &lane.committed {
            Some((offset, _)) => *offset == lane.end,
            None => lane.end == 0,
        })
    })
}

// ---------------------------------------------------------------------------------------------
// Readers that know nothing of contrastream
// ---------------------------------------------------------------------------------------------

/// Runs a Python program with `confluent_kafka` and `pyarrow` at hand; returns what it printed.
#[track_caller]
pub fn python(program: &str, arguments: &[&OsStr]) -> String {
    let python = variable("CONTRASTREAM_TEST_PYTHON");
    let output = Command::new(python).arg("-c").arg(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A message as Python's client read it.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Message {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    /// Decoded as Latin-1, byte by byte, and cut after 10,000 bytes.
    pub value: String,
    pub length: usize,
    pub headers: BTreeMap<String, String>,
}

impl Message {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.value).unwrap_or_else(|error| panic!("{error}: {}", self.value))
    }

    /// Key of the message, which is the machine, and number of the segment.
    #[track_caller]
    pub fn segment(&self) -> (String, u64) {
        let json = self.json();
        let key = self.key.clone().unwrap();
        assert_eq!(json["key"], *key);
        (key, json["sequence"].as_u64().unwrap())
    }
}

/// All committed messages of a topic, by partition and offset.
#[track_caller]
pub fn read(topic: &str) -> Vec<Message> {
    const PROGRAM: &str = "
import json, sys
from confluent_kafka import Consumer, KafkaError, TopicPartition
brokers, topic = sys.argv[1:]
consumer = Consumer({'bootstrap.servers': brokers, 'group.id': 'reader', 'enable.auto.commit': False,
                     'isolation.level': 'read_committed', 'enable.partition.eof': True,
                     'fetch.message.max.bytes': 67108864})
found = consumer.list_topics(topic, 60).topics[topic]
assert found.error is None, found.error
open_partitions = set(found.partitions)
consumer.assign([TopicPartition(topic, partition, 0) for partition in found.partitions])
messages = []
while open_partitions:
    message = consumer.poll(60)
    assert message is not None, f'nothing more of {open_partitions} within a minute'
    if message.error() is None:
        messages.append(message)
    elif message.error().code() == KafkaError._PARTITION_EOF:
        open_partitions.discard(message.partition())
    else:
        raise SystemExit(str(message.error()))
text = lambda value: None if value is None else value.decode('latin-1')
for message in sorted(messages, key=lambda m: (m.partition(), m.offset())):
    value = message.value() or b''
    print(json.dumps({'partition': message.partition(), 'offset': message.offset(),
                      'key': text(message.key()), 'value': text(value[:10000]), 'length': len(value),
                      'headers': {k: text(v) for k, v in message.headers() or []}}))
consumer.close()
";
    let lines = python(PROGRAM, &[brokers().as_ref(), topic.as_ref()]);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All rows of a Parquet folder as pyarrow reads them, as JSON, by key and sequence.
#[track_caller]
pub fn parquet(folder: &Path) -> Vec<serde_json::Value> {
    const PROGRAM: &str = "
import json, sys
import pyarrow.dataset
rows = pyarrow.dataset.dataset(sys.argv[1], format='parquet').to_table().to_pylist()
for row in sorted(rows, key=lambda row: (row['key'], row['sequence'])):
    print(json.dumps(row, default=lambda time: round(time.timestamp() * 1e6)))
";
    let lines = python(PROGRAM, &[folder.as_os_str()]);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
