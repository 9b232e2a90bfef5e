//! From a broker to a broker: records a second of `contrastream run`, at least and exactly once,
//! beside the bare consumer of librdkafka and jobs in Python, and how long it takes from a record to
//! its result, beside a bare loop that consumes and produces. `checkpoint.delivery` is at least once but
//! where the name says otherwise.
//!
//! Needs a broker: `make broker`, then `eval "$(scripts/kafka env)"`. `PEERS_PYTHON` names a Python
//! with quixstreams, bytewax, pathway, river and jax for the jobs of `scripts/peers/stream.py`
//! (`make bench-peers` sees to both). Everything takes its turn `RUNS` (3) times; medians and ratios
//! are printed. Records are JSON of 8 channels, some 150 bytes; segments of 64 samples every 8, all
//! scored; training as it is by default.

#[path = "../tests/common/mod.rs"]
mod common;
mod measure;

use std::collections::HashMap;
use std::env;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Program, brokers, contrastream, create_topic, producer, repository, unique};
use measure::{count, median, quantile, record};
use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const MACHINES: usize = 100;
const CHANNELS: usize = 8;
const PARTITIONS: i32 = 4;
const LENGTH: usize = 64;
const STRIDE: usize = 8;
/// Readings of each machine on the topic.
const READINGS: usize = 8000;
/// Records that a job in Python gets.
const FOR_PYTHON: usize = 40_000;
/// How long results are waited for one by one.
const SECONDS_OF_LATENCY: usize = 15;
/// What the brokers and librdkafka take of a latency.
const BARE_LOOP: &str = "bare-loop";

fn main() {
    if env::var("CONTRASTREAM_TEST_BROKERS").is_ok_and(|brokers| !brokers.is_empty()) {
        run();
    } else {
        println!("stream: skipped, CONTRASTREAM_TEST_BROKERS names no broker: make broker");
    }
}

fn run() {
    let topic = unique("stream");
    create_topic(&topic, PARTITIONS, &[]);
    let bytes = fill(&topic, READINGS);
    // For what reads a topic as a whole.
    let short = format!("{topic}.short");
    create_topic(&short, PARTITIONS, &[]);
    fill(&short, FOR_PYTHON / MACHINES);
    let records = MACHINES * READINGS;
    println!("{records} records of {} bytes, {PARTITIONS} partitions", bytes / records);
    let python = env::var("PEERS_PYTHON").ok();
    let runs = count("RUNS", 3);

    type Contender<'a> = (&'a str, Box<dyn Fn() -> f64 + 'a>);
    let mut contenders: Vec<Contender<'_>> = vec![
        ("bare-consumer", Box::new(|| records as f64 / bare(&topic, records).as_secs_f64())),
        ("contrastream-tcn", Box::new(|| run_once(&topic, "tcn", "at-least-once"))),
        ("exactly-once-tcn", Box::new(|| run_once(&topic, "tcn", "exactly-once"))),
        ("contrastream-mlp", Box::new(|| run_once(&topic, "mlp", "at-least-once"))),
    ];
    if let Some(python) = &python {
        for (kind, topic) in
            [("river", &topic), ("jax", &topic), ("bytewax", &topic), ("pathway", &short)]
        {
            contenders.push((kind, Box::new(move || peer(python, kind, topic))));
        }
    }
    let mut rates = vec![Vec::new(); contenders.len()];
    for run in 0..runs {
        for turn in 0..contenders.len() {
            // None always comes first.
            let at = (run + turn) % contenders.len();
            let rate = contenders[at].1();
            println!("{:>17}  {rate:9.0} records/s", contenders[at].0);
            rates[at].push(rate);
        }
    }
    let medians: Vec<f64> = rates.into_iter().map(median).collect();
    let ours = medians[1];
    for ((name, _), rate) in contenders.iter().zip(&medians) {
        println!("median {name:>17}  {rate:9.0} records/s, the TCN at {:.2} of it", ours / rate);
    }
    let cases = [
        (BARE_LOOP, 0.5),
        ("at-least-once", 0.5),
        (BARE_LOOP, 0.2),
        ("at-least-once", 0.2),
        ("exactly-once", 0.2),
    ];
    let mut delays = vec![[Vec::new(), Vec::new()]; cases.len()];
    for _ in 0..runs {
        for ((of, share), delays) in cases.iter().zip(&mut delays) {
            for (delays, delay) in delays.iter_mut().zip(latency(of, ours * share)) {
                delays.push(delay);
            }
        }
    }
    for ((of, share), delays) in cases.iter().zip(delays) {
        let [half, most] = delays.map(median);
        println!("median {of:>17}  at {share} of the TCN's rate {half:.1} ms, {most:.1} ms (99 %)");
    }
}

/// Writes `readings` of each machine, all of a machine to one partition; returns their bytes.
fn fill(topic: &str, readings: usize) -> usize {
    let producer = producer();
    let mut bytes = 0;
    for reading in 0..readings {
        for machine in 0..MACHINES {
            bytes += send(
                &producer,
                topic,
                machine,
                reading,
                1_767_225_600_000 + 1000 * reading as u128,
            );
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(common::PATIENCE).expect("the broker takes them");
    bytes
}

/// Sends a reading of a machine; returns its bytes.
fn send(producer: &BaseProducer, topic: &str, machine: usize, reading: usize, ms: u128) -> usize {
    let key = format!("machine-{machine:03}");
    let record = record(&key, ms, (machine, reading), CHANNELS);
    let partition = (machine % PARTITIONS as usize) as i32;
    let message = BaseRecord::to(topic).partition(partition).key(&key).payload(&record);
    producer.send(message).map_err(|(error, _)| error).expect("the queue holds them all");
    record.len()
}

fn consumer(topic: &str, from: Offset) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", unique("bare"))
        .set("isolation.level", "read_committed")
        // As we set it: where it comes to librdkafka's pause of a second at a full queue, a consumer that
        // takes all of this topic in half a second spends most of its time in it.
        .set("fetch.queue.backoff.ms", "20")
        .create()
        .expect("a consumer");
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, from).expect("a partition");
    }
    consumer.assign(&partitions).expect("assigned");
    consumer
}

/// How long librdkafka takes to hand out all records, looked at no further.
fn bare(topic: &str, records: usize) -> Duration {
    let consumer = consumer(topic, Offset::Beginning);
    let mut seen = 0;
    let mut began = None;
    while seen < records {
        if let Some(message) = consumer.poll(Duration::from_secs(10)) {
            let message = message.expect("the broker answers");
            began.get_or_insert_with(Instant::now);
            seen += usize::from(message.payload().is_some());
        }
    }
    began.map(|began| began.elapsed()).expect("there are records")
}

/// A pipeline file for `topic` in `folder`, and the pipeline's name.
fn pipeline(
    folder: &tempfile::TempDir,
    topic: &str,
    encoder: &str,
    delivery: &str,
) -> (std::path::PathBuf, String) {
    let name = unique("bench");
    let channels: Vec<String> = (0..CHANNELS).map(|channel| format!("\"c{channel}\"")).collect();
    // Exactly once, a result waits for the commit.
    let interval = if delivery == "exactly-once" { "interval = \"1s\"\n" } else { "" };
    let text = format!(
        "name = \"{name}\"\n\
         [source]\nkind = \"kafka\"\nbrokers = \"{}\"\ntopics = [\"{topic}\"]\n\
         [records]\nkey = \"machine\"\ntime = \"ts\"\nchannels = [{}]\n\
         [windows]\nlength = {LENGTH}\nstride = {STRIDE}\nlateness = \"0s\"\n\
         [model]\nencoder = \"{encoder}\"\n\
         [sink.kafka]\n\
         [checkpoint]\nstore = {:?}\n{interval}delivery = \"{delivery}\"\n\
         [http]\nlisten = \"127.0.0.1:0\"\n",
        brokers(),
        channels.join(", "),
        folder.path().join("state"),
    );
    let file = folder.path().join("pipeline.toml");
    fs::write(&file, text).expect("a pipeline file");
    (file, name)
}

/// Takes the whole topic as a group of its own, into topics of its own: records a second.
fn run_once(topic: &str, encoder: &str, delivery: &str) -> f64 {
    let folder = tempfile::tempdir().expect("a folder for state");
    let (file, _) = pipeline(&folder, topic, encoder, delivery);
    let mut program = Program::start(contrastream(["run".as_ref(), file.as_os_str()]));
    program.wait_metric("contrastream_source_records_total", 1.0);
    let began = Instant::now();
    let segments = MACHINES * ((READINGS - LENGTH) / STRIDE + 1);
    program.wait_metric("contrastream_sink_segments_total", segments as f64);
    let took = began.elapsed();
    let skipped = program.metric("contrastream_learner_skipped_steps_total").unwrap_or(0.0);
    let steps = program.metric("contrastream_learner_steps_total").unwrap_or(0.0);
    println!("{encoder:>17}  {steps} training steps, {skipped} left out");
    let ended = program.terminate().exits(0);
    assert_eq!(ended.total("segments"), segments as u64);
    (MACHINES * READINGS) as f64 / took.as_secs_f64()
}

fn peer(python: &str, kind: &str, topic: &str) -> f64 {
    let output = Command::new(python)
        .arg(repository("scripts/peers/stream.py"))
        .args([kind, &brokers(), topic, &FOR_PYTHON.to_string()])
        .output()
        .expect("PEERS_PYTHON names a Python");
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.strip_prefix(kind)?.trim().parse().ok());
    rate.unwrap_or_else(|| panic!("{kind}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Where the last record of a result was.
#[derive(serde::Deserialize)]
struct Place {
    partition: i32,
    last_offset: i64,
}

/// Writes a result of the usual size for each segment that would end, as soon as its last record is
/// consumed, until it is over.
fn bare_loop(topic: &str, name: &str, over: &AtomicBool) {
    let consumer = consumer(topic, Offset::Beginning);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .create()
        .expect("a producer");
    let in_partition = MACHINES / PARTITIONS as usize;
    let results = format!("{name}.embeddings");
    while !over.load(Ordering::Relaxed) {
        producer.poll(Duration::ZERO);
        let Some(message) = consumer.poll(Duration::from_millis(1)) else { continue };
        let message = message.expect("the broker answers");
        let (partition, last_offset) = (message.partition(), message.offset());
        // Machines take turns.
        let readings = last_offset as usize / in_partition + 1;
        if readings < LENGTH || !(readings - LENGTH).is_multiple_of(STRIDE) {
            continue;
        }
        let embedding =
            (0..64).map(|at| ((last_offset * 64 + at) as f32).sin()).collect::<Vec<_>>();
        let result = serde_json::json!({
            "pipeline": name, "partition": partition, "last_offset": last_offset, "embedding": embedding,
        });
        let (key, result) = (message.key().unwrap_or_default(), result.to_string());
        let record = BaseRecord::to(&results).key(key).payload(&result);
        producer.send(record).map_err(|(error, _)| error).expect("the queue holds them all");
    }
    producer.flush(common::PATIENCE).expect("the broker takes them");
}

/// From when the broker has a segment's last record to when the segment's embedding can be read, of half
/// of them and of 99 % at most, in milliseconds, records coming at `rate` a second. [`BARE_LOOP`] takes
/// the program's place, or it delivers as `of` says.
fn latency(of: &str, rate: f64) -> [f64; 2] {
    let topic = unique("latency");
    create_topic(&topic, PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
    let folder = tempfile::tempdir().expect("a folder for state");
    let (file, name) = pipeline(&folder, &topic, "tcn", of);
    let results = format!("{name}.embeddings");
    create_topic(&results, PARTITIONS, &[]);
    let program = (of != BARE_LOOP).then(|| {
        let mut program = Program::start(contrastream(["run".as_ref(), file.as_os_str()]));
        program.wait_ready();
        program
    });
    let readings = (rate * SECONDS_OF_LATENCY as f64 / MACHINES as f64) as usize;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    // By partition and offset of the record: when the broker took it, and when what was made of it
    // came, milliseconds since the epoch.
    type Seen = Vec<((i32, i64), f64, Option<i64>)>;
    let listen = |topic: &str, place: fn(&[u8]) -> Option<(i32, i64)>| {
        let consumer = consumer(topic, Offset::End);
        move || {
            let mut seen: Seen = Vec::new();
            while let Some(message) = consumer.poll(Duration::from_secs(5)) {
                let message = message.expect("the broker answers");
                let came = now().as_secs_f64() * 1e3;
                let place = place(message.payload().unwrap_or_default())
                    .unwrap_or((message.partition(), message.offset()));
                seen.push((place, came, message.timestamp().to_millis()));
            }
            seen
        }
    };
    let over = AtomicBool::new(false);
    let [records, results] = thread::scope(|scope| {
        if program.is_none() {
            scope.spawn(|| bare_loop(&topic, &name, &over));
        }
        let records = scope.spawn(listen(&topic, |_| None));
        let results = scope.spawn(listen(&results, |json| {
            let result: Place = serde_json::from_slice(json).expect("the message is JSON");
            Some((result.partition, result.last_offset))
        }));
        let producer = producer();
        let began = Instant::now();
        for reading in 0..readings {
            for machine in 0..MACHINES {
                send(&producer, &topic, machine, reading, now().as_millis());
            }
            let due = Duration::from_secs_f64((reading + 1) as f64 * MACHINES as f64 / rate);
            // To be told of deliveries by librdkafka, waiting, would keep a core busy.
            thread::sleep(due.saturating_sub(began.elapsed()));
            producer.poll(Duration::ZERO);
        }
        producer.flush(common::PATIENCE).expect("the broker takes them");
        let seen = [records, results].map(|thread| thread.join().expect("a listener"));
        over.store(true, Ordering::Relaxed);
        seen
    });
    let steps = program.map_or(0.0, |program| {
        let steps = program.metric("contrastream_learner_steps_total");
        program.terminate().exits(0);
        steps.unwrap_or(0.0)
    });
    let taken: HashMap<(i32, i64), i64> =
        records.iter().filter_map(|(place, _, taken)| Some((*place, (*taken)?))).collect();
    // The first few seconds belong to the start, when the listeners may not have been there yet.
    let seen = results.iter().skip(results.len() / 5);
    let delay = |(place, came, _): &((i32, i64), f64, _)| Some(came - *taken.get(place)? as f64);
    let delays: Vec<f64> = seen.filter_map(delay).collect();
    let [half, most] = [0.5, 0.99].map(|share| quantile(delays.iter().copied(), share));
    println!("{of:>17}  {rate:.0} records/s, {steps} steps, {half:.1} ms, {most:.1} ms (99 %)");
    [half, most]
}
