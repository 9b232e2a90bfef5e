//! What exactly once costs: records a second of `contrastream run`, from a filled topic to results
//! and positions that are committed, with both values of `checkpoint.delivery`.
//!
//! Needs a broker: `make broker`, then `eval "$(scripts/kafka env)"`. The clock runs from the first
//! record that the program takes to its end, which commits; runs of both kinds alternate.

#[path = "../tests/common/mod.rs"]
mod common;

use std::env;
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use common::{Program, brokers, contrastream, create_topic, producer, unique};
use rdkafka::producer::{BaseRecord, Producer};

const MACHINES: usize = 100;
/// Readings of each machine.
const READINGS: usize = 4000;
const CHANNELS: usize = 8;
const PARTITIONS: i32 = 4;
const LENGTH: usize = 64;
const STRIDE: usize = 8;
/// Runs of each kind.
const RUNS: usize = 5;
const KINDS: [&str; 2] = ["at-least-once", "exactly-once"];

fn main() {
    if env::var("CONTRASTREAM_TEST_BROKERS").is_ok_and(|brokers| !brokers.is_empty()) {
        measure();
    } else {
        println!("delivery: skipped, CONTRASTREAM_TEST_BROKERS names no broker: make broker");
    }
}

fn measure() {
    let topic = unique("delivery");
    create_topic(&topic, PARTITIONS, &[]);
    let bytes = fill(&topic);
    let records = MACHINES * READINGS;
    println!("{records} records of {} bytes, {PARTITIONS} partitions", bytes / records);

    let mut rates = [const { Vec::new() }; KINDS.len()];
    for run in 0..RUNS {
        for turn in 0..KINDS.len() {
            // Neither kind always comes first.
            let kind = (run + turn) % KINDS.len();
            let seconds = run_once(&topic, KINDS[kind]).as_secs_f64();
            println!("{:>13}  {seconds:6.2} s", KINDS[kind]);
            rates[kind].push(records as f64 / seconds);
        }
    }
    let [at_least_once, exactly_once] = rates.map(median);
    for (kind, rate) in KINDS.iter().zip([at_least_once, exactly_once]) {
        println!("{kind:>13}  {rate:8.0} records/s, median of {RUNS}");
    }
    println!("exactly once runs at {:.3} of at least once", exactly_once / at_least_once);
}

/// Writes all records, those of a machine to one partition; returns their bytes.
fn fill(topic: &str) -> usize {
    let producer = producer();
    let mut bytes = 0;
    for reading in 0..READINGS {
        for machine in 0..MACHINES {
            let key = format!("machine-{machine:03}");
            let record = record(&key, machine, reading);
            bytes += record.len();
            let partition = (machine % PARTITIONS as usize) as i32;
            let message = BaseRecord::to(topic).partition(partition).key(&key).payload(&record);
            producer.send(message).map_err(|(error, _)| error).expect("the queue holds them all");
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(common::PATIENCE).expect("the broker takes them");
    bytes
}

/// A reading a second: a wave per channel, and noise that is the same in every run.
fn record(key: &str, machine: usize, reading: usize) -> String {
    let mut record = format!(r#"{{"machine":"{key}","ts":{}"#, 1_767_225_600 + reading);
    for channel in 0..CHANNELS {
        let phase = reading as f64 / (5 + machine % 7 + channel) as f64;
        let noise = (reading * 7919 + channel * 104_729 + machine * 31) % 1000;
        let value = 10.0 * phase.sin() + noise as f64 / 1000.0;
        write!(record, r#","c{channel}":{value:.3}"#).expect("a string takes everything");
    }
    record.push('}');
    record
}

/// Takes the whole topic as a group of its own, into topics of its own.
fn run_once(topic: &str, delivery: &str) -> Duration {
    let folder = tempfile::tempdir().expect("a folder for state");
    let name = unique(delivery);
    let channels: Vec<String> = (0..CHANNELS).map(|channel| format!("\"c{channel}\"")).collect();
    let text = format!(
        "name = \"{name}\"\n\
         [source]\nkind = \"kafka\"\nbrokers = \"{}\"\ntopics = [\"{topic}\"]\n\
         [records]\nkey = \"machine\"\ntime = \"ts\"\nchannels = [{}]\n\
         [windows]\nlength = {LENGTH}\nstride = {STRIDE}\nlateness = \"0s\"\n\
         [sink.kafka]\n\
         [checkpoint]\nstore = {:?}\ninterval = \"1s\"\ndelivery = \"{delivery}\"\n\
         [http]\nlisten = \"127.0.0.1:0\"\n",
        brokers(),
        channels.join(", "),
        folder.path().join("state"),
    );
    let file = folder.path().join("pipeline.toml");
    fs::write(&file, text).expect("a pipeline file");

    let mut program = Program::start(contrastream(["run".as_ref(), file.as_os_str()]));
    program.wait_metric("contrastream_source_records_total", 1.0);
    let began = Instant::now();
    let segments = MACHINES * ((READINGS - LENGTH) / STRIDE + 1);
    program.wait_metric("contrastream_sink_segments_total", segments as f64);
    let ended = program.terminate().exits(0);
    let took = began.elapsed();
    assert_eq!(ended.total("segments"), segments as u64);
    took
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
