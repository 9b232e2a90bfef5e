//! Resident memory of `contrastream run` stays under the bound that `docs/memory.md` states,
//! whatever comes in and however slowly it goes out.
//!
//! Linux tells what a process holds. The test of many keys needs no broker, the others do.

#![cfg(target_os = "linux")]

mod common;
#[allow(dead_code, reason = "the chaos harness uses all of it")]
#[path = "chaos/proxy.rs"]
mod proxy;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use common::{Plant, Program, is_done, producer, read, reading, segments_of, variable};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proxy::{Proxy, Weather};
use rdkafka::producer::{BaseRecord, Producer};

const MIB: u64 = 1 << 20;

// ---------------------------------------------------------------------------------------------
// The bound, as docs/memory.md explains it
// ---------------------------------------------------------------------------------------------

/// The program, its threads, and what their allocators keep for themselves.
const PROGRAM: u64 = 64 * MIB;
/// Batches from the source to the sinks, as messages, columns, segments and dead letters.
const UNDER_WAY: u64 = 64 * MIB;
/// Messages in the Kafka source that wait for others of their batch, or for their turn.
const WAITING: u64 = 48 * MIB;
/// Messages that librdkafka fetched ahead, and one response more.
const FETCHED: u64 = (32 + 16) * MIB;
/// Messages that librdkafka has not sent yet.
const TO_SEND: u64 = 96 * MIB;
/// Rows of open Parquet files.
const TO_FILES: u64 = 64 * MIB;

/// States on their way from memory to the store, without those of resident keys: of windows and of
/// scores, 16 MiB that wait and 16 that are written anew, each in two copies.
const MOVING: u64 = 2 * (16 + 16) * 2 * MIB;
/// A key in memory, and its bytes while a commit saves it.
const RESIDENT_KEY: u64 = 5 << 10;
/// Name and place of a key that is in the store alone, for its windows and for its scores.
const EVICTED_KEY: u64 = 2 * 160;

/// Without it, glibc keeps freed blocks of up to 32 MiB for later, per thread.
const ALLOCATOR: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

// ---------------------------------------------------------------------------------------------
// Watching
// ---------------------------------------------------------------------------------------------

/// What a process holds, bytes: `VmRSS` now, `VmHWM` at most so far. `None` once it ended.
fn memory(program: &Program, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// `contrastream run` with the allocator set as the container image sets it.
fn run(plant: &Plant) -> Command {
    let mut command = plant.command("run");
    command.env(ALLOCATOR.0, ALLOCATOR.1);
    command
}

#[track_caller]
fn assert_within(program: &Program, bound: u64) {
    let peak = memory(program, "VmHWM").unwrap();
    assert!(peak <= bound, "{} MiB, expected {}\n{}", peak / MIB, bound / MIB, program.log());
}

// ---------------------------------------------------------------------------------------------
// Many keys
// ---------------------------------------------------------------------------------------------

/// Records of each key: two segments.
const ROUNDS: usize = 8;
const SEGMENT: usize = 4;

/// A row of the Parquet output: number of the key, sequence, bits of score and p-value.
type Row = (u32, i64, u64, u64);

/// A run over the records of many keys.
struct KeysRun {
    keys: usize,
    max_keys: usize,
    rows: Vec<Row>,
    peak: u64,
    seconds: f64,
    /// Bytes of the checkpoint store at the end.
    store: u64,
    /// Training steps.
    steps: u64,
}

impl KeysRun {
    /// One reading of each key in turn, `ROUNDS` times, so that with fewer keys in memory each
    /// record finds its key evicted.
    fn new(keys: usize, max_keys: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let records = folder.path().join("records.json");
        write_records(&records, keys);
        let mut plant = Plant::over_files("keys", &records);
        for text in [
            "records.key=k",
            "records.time=t",
            "records.channels=[\"a\", \"b\"]",
            "windows.length=4",
            "windows.stride=4",
            "windows.lateness=0s",
            "model.encoder=mlp",
            "model.hidden=4",
            "model.embedding=4",
            "model.projection=[4]",
            "pairs.pool=131072",
            "training.every=256",
            "scores.warmup=1",
            "checkpoint.interval=1s",
        ] {
            plant.set(text);
        }
        plant.set(format!("windows.max_keys={max_keys}"));
        let began = Instant::now();
        let mut program = Program::start(run(&plant));
        let mut peak = 0;
        while program.runs() {
            peak = peak.max(memory(&program, "VmHWM").unwrap_or(0));
            thread::sleep(Duration::from_millis(5));
        }
        let seconds = began.elapsed().as_secs_f64();
        let ended = program.wait().exits(0);
        assert_eq!(ended.total("records"), (keys * ROUNDS) as u64);
        let rows = rows(&plant.out());
        let (store, steps) = (size(&plant.state()), ended.total("steps"));
        let run = Self { keys, max_keys, rows, peak, seconds, store, steps };
        run.print();
        run
    }

    fn print(&self) {
        println!(
            "{:>9} keys {:>9} in memory {:>6} MiB at most {:>7.0} records/s {:>6} MiB in the store",
            self.keys,
            self.max_keys,
            self.peak / MIB,
            (self.keys * ROUNDS) as f64 / self.seconds,
            self.store / MIB
        );
    }

    /// Every segment came out, and once, within the bound.
    #[track_caller]
    fn assert_sound(&self) {
        let resident = self.keys.min(self.max_keys) as u64;
        let evicted = self.keys as u64 - resident;
        let bound = PROGRAM + MOVING + resident * RESIDENT_KEY + evicted * EVICTED_KEY;
        assert!(self.peak <= bound, "{} MiB, expected {}", self.peak / MIB, bound / MIB);
        let of_key = |key| (0..ROUNDS / SEGMENT).map(move |sequence| (key, sequence as i64));
        let expected = (0..self.keys as u32).flat_map(of_key);
        assert_eq!(self.rows.len(), self.keys * ROUNDS / SEGMENT);
        for (found, expected) in self.rows.iter().zip(expected) {
            assert_eq!((found.0, found.1), expected);
        }
    }
}

fn write_records(path: &Path, keys: usize) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    for round in 0..ROUNDS {
        for key in 0..keys {
            let a = 60.0 + ((key * 7 + round * 13) % 101) as f64 / 10.0;
            let b = ((key + round * round) % 17) as f64 / 3.0;
            let time = 1_767_225_600 + round;
            writeln!(file, r#"{{"k":"key-{key:07}","t":{time},"a":{a:.1},"b":{b:.3}}}"#).unwrap();
        }
    }
    file.flush().unwrap();
}

/// All rows of a Parquet folder, by key and sequence.
fn rows(folder: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    for path in files(folder) {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
        let columns = ["key", "sequence", "score", "p_value"];
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns);
        for batch in builder.with_projection(mask).build().unwrap() {
            let batch = batch.unwrap();
            let keys = cast(&batch["key"], &DataType::Utf8).unwrap();
            let sequences = batch["sequence"].as_primitive::<Int64Type>();
            let scores = batch["score"].as_primitive::<Float64Type>();
            let p_values = batch["p_value"].as_primitive::<Float64Type>();
            for (at, key) in keys.as_string::<i32>().iter().flatten().enumerate() {
                let key = key.strip_prefix("key-").unwrap().parse().unwrap();
                let bits = |value: f64| value.to_bits();
                let (score, p_value) = (bits(scores.value(at)), bits(p_values.value(at)));
                rows.push((key, sequences.value(at), score, p_value));
            }
        }
    }
    rows.sort_unstable();
    rows
}

/// All Parquet files of a folder but those that are not published.
fn files(folder: &Path) -> Vec<PathBuf> {
    let days = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let days = days.filter(|path| path.to_str().unwrap().contains("date="));
    days.flat_map(|day| fs::read_dir(day).unwrap()).map(|entry| entry.unwrap().path()).collect()
}

/// Bytes of the files of a folder and those below it.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_path = |path: PathBuf| {
        if path.is_dir() { size(&path) } else { fs::metadata(path).unwrap().len() }
    };
    entries.map(of_path).sum()
}

#[test]
fn keys_beyond_max_keys_cost_their_place_alone_and_come_back_bit_for_bit() {
    let long = std::env::var("MEMORY_KEYS").map(|keys| keys.parse().unwrap());
    if let Ok(keys) = long {
        return measure(keys);
    }
    const KEYS: usize = 100_000;
    let in_memory = KeysRun::new(KEYS, KEYS);
    let in_store = KeysRun::new(KEYS, KEYS / 10);
    in_memory.assert_sound();
    in_store.assert_sound();
    assert!(in_memory.steps > 0);
    assert!(in_store.rows == in_memory.rows, "scores differ");
}

/// What `make memory` prints.
fn measure(keys: usize) {
    let run = |keys, max_keys| {
        let run = KeysRun::new(keys, max_keys);
        run.assert_sound();
        run
    };
    let per_key = |more: &KeysRun, less: &KeysRun| {
        (more.peak as f64 - less.peak as f64) / (more.keys - less.keys) as f64
    };
    let (half, resident) = (run(keys / 20, keys / 10), run(keys / 10, keys / 10));
    println!("{:.0} bytes per key in memory", per_key(&resident, &half));
    let (half, all) = (run(keys / 2, keys / 10), run(keys, keys / 10));
    println!("{:.0} bytes per key in the store alone", per_key(&all, &half));
}

// ---------------------------------------------------------------------------------------------
// Slow sinks, a broker that stalls, giant messages
// ---------------------------------------------------------------------------------------------

const PARTITIONS: i32 = 4;
/// More than may be anywhere between the topic and the results.
const BACKLOG: u64 = 400 * MIB;
/// Bytes of a record beside its readings.
const FILLER: usize = 30_000;

/// Fills a topic with readings, each with a long field that nobody asked for.
fn fill(plant: &Plant) {
    let producer = producer();
    let topic = plant.topic("sensors");
    let filler = format!(",\"note\":\"{}\"}}", "n".repeat(FILLER));
    let (mut bytes, mut second) = (0, 0);
    while bytes < BACKLOG {
        for partition in 0..PARTITIONS {
            let machine = format!("press-{partition}");
            let reading = reading(&machine, second, 0.0);
            let record = format!("{}{filler}", reading.trim_end_matches('}'));
            let to = BaseRecord::to(&topic).partition(partition).key(&machine).payload(&record);
            producer.send(to).map_err(|(error, _)| error).unwrap();
            bytes += record.len() as u64;
        }
        second += 1;
        producer.poll(Duration::ZERO);
    }
    producer.flush(common::PATIENCE).unwrap();
}

#[test]
fn slow_sinks_hold_the_source_back_and_nothing_piles_up() {
    let mut plant = Plant::on_broker("slow", PARTITIONS);
    // Whoever does not poll is soon taken for dead.
    plant.set("source.properties.session.timeout.ms=6000");
    plant.set("source.properties.max.poll.interval.ms=6000");
    fill(&plant);
    let mut command = run(&plant);
    command.env("FAILPOINTS", "deliver.outputs=sleep(400)");
    let mut program = Program::start(command);
    program.wait_metric("contrastream_source_pauses_total", 1.0);
    thread::sleep(Duration::from_secs(10));
    let segments = program.metric("contrastream_sink_segments_total").unwrap();
    program.wait_metric("contrastream_sink_segments_total", segments + 1.0);
    assert_eq!(program.metric("contrastream_source_lanes"), Some(f64::from(PARTITIONS)));
    assert_eq!(program.metric("contrastream_runtime_rewinds_total"), Some(0.0));
    // The results wait before the sinks.
    assert_within(&program, PROGRAM + UNDER_WAY + WAITING + FETCHED);
}

#[test]
fn a_broker_that_stalls_costs_no_memory_and_is_taken_up_again() {
    // Brokers that are not ours do not tell clients to come by a proxy.
    if std::env::var("CONTRASTREAM_TEST_PROXY_LISTEN").is_ok_and(|listen| listen.is_empty()) {
        return;
    }
    let mut plant = Plant::on_broker("stall", PARTITIONS);
    let listen = variable("CONTRASTREAM_TEST_PROXY_LISTEN");
    let proxy = Proxy::start(&listen, &variable("CONTRASTREAM_TEST_PROXY_TARGET")).unwrap();
    plant.set(format!("source.brokers={listen}"));
    fill(&plant);
    let mut program = Program::start(run(&plant));
    program.wait_metric("contrastream_sink_segments_total", 1.0);
    proxy.set(Weather::Dark);
    // What had come by then passes through in a moment.
    thread::sleep(Duration::from_secs(5));
    let early = memory(&program, "VmRSS").unwrap();
    thread::sleep(Duration::from_secs(10));
    let late = memory(&program, "VmRSS").unwrap();
    assert!(late <= early + 8 * MIB, "{} MiB, then {} MiB", early / MIB, late / MIB);
    assert!(!is_done(&plant.group(), &plant.topic("sensors"), PARTITIONS));
    proxy.set(Weather::Fair);
    let done = || is_done(&plant.group(), &plant.topic("sensors"), PARTITIONS);
    program.until("everything committed", |_| done().then_some(()));
    assert_within(&program, PROGRAM + UNDER_WAY + WAITING + FETCHED + TO_SEND + TO_FILES);
    program.terminate().exits(0);
}

#[test]
fn giant_messages_that_are_no_records_are_let_through_one_after_another() {
    const GIANTS: usize = 12;
    const GIANT: usize = 30_000_000;
    let plant = Plant::on_broker("giant", 1);
    let topic = plant.topic("sensors");
    let producer = producer();
    let giant = vec![b'x'; GIANT];
    for second in 0..GIANTS * 4 {
        let record = reading("press-0", second, 0.0);
        let to = BaseRecord::to(&topic).key("press-0");
        producer.send(to.payload(&record)).map_err(|(error, _)| error).unwrap();
        if second % 4 == 0 {
            let to = BaseRecord::<str, _>::to(&topic).payload(&giant);
            producer.send(to).map_err(|(error, _)| error).unwrap();
            producer.flush(common::PATIENCE).unwrap();
        }
    }
    producer.flush(common::PATIENCE).unwrap();
    let mut program = Program::start(run(&plant));
    let done = || is_done(&plant.group(), &topic, 1);
    program.until("everything committed", |_| done().then_some(()));
    assert_within(&program, PROGRAM + UNDER_WAY + WAITING + FETCHED + TO_SEND + TO_FILES);
    let ended = program.terminate().exits(0);
    assert_eq!(ended.total("dead_letters"), GIANTS as u64);
    let letters = read(&plant.topic("dead-letters"));
    assert_eq!(letters.len(), GIANTS);
    assert!(letters.iter().all(|letter| letter.length == GIANT));
    let segments = segments_of(GIANTS * 4) as usize;
    assert_eq!(read(&plant.topic("anomalies")).len(), segments);
}
