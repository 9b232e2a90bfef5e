//! `contrastream run` on a real broker, seen from outside: topics, Parquet, committed offsets.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Machines, Message, Plant, Program, is_done, parquet, produce, read, standing};
use serde_json::Value;

const PARTITIONS: i32 = 3;
const MACHINES: usize = 5;

fn plant(name: &str) -> Plant {
    Plant::on_broker(name, PARTITIONS)
}

impl Plant {
    fn feed(&self, machines: &mut Machines, seconds: usize) {
        produce(&self.topic("sensors"), PARTITIONS, &machines.next(seconds));
    }

    /// One replica of several.
    fn run_as(&self, instance: &str) -> Program {
        let mut command = self.command("run");
        command.args(["--set", &format!("checkpoint.instance={instance}")]);
        Program::start(command)
    }

    fn is_done(&self) -> bool {
        is_done(&self.group(), &self.topic("sensors"), PARTITIONS)
    }

    fn wait_done(&self, program: &mut Program) {
        program.until("everything committed", |_| self.is_done().then_some(()));
    }
}

/// Sequence numbers by key, in the order of the topic; every key in one partition.
fn sequences(messages: &[Message]) -> BTreeMap<String, Vec<u64>> {
    let mut sequences: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut partitions = BTreeMap::new();
    for message in messages {
        let (key, sequence) = message.segment();
        let partition = *partitions.entry(key.clone()).or_insert(message.partition);
        assert_eq!(message.partition, partition, "{key}");
        sequences.entry(key).or_default().push(sequence);
    }
    sequences
}

/// Exactly the expected segments, each once, in order per key, on both topics and in Parquet.
#[track_caller]
fn assert_exactly_once(plant: &Plant, machines: &Machines) {
    for kind in ["embeddings", "anomalies"] {
        let found = sequences(&read(&plant.topic(kind)));
        let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (key, sequence) in machines.segments() {
            expected.entry(key).or_default().push(sequence);
        }
        assert_eq!(found, expected, "{kind}");
    }
    let rows: Vec<(String, u64)> = parquet(&plant.out()).iter().map(segment_of_row).collect();
    assert_eq!(rows, machines.segments().into_iter().collect::<Vec<_>>());
}

fn segment_of_row(row: &Value) -> (String, u64) {
    (row["key"].as_str().unwrap().to_owned(), row["sequence"].as_u64().unwrap())
}

#[test]
fn every_segment_comes_out_once_with_the_same_values_everywhere() {
    let mut plant = plant("once");
    // Only the end commits.
    plant.set("checkpoint.interval=1h");
    // However short it is, it waits for the steps.
    plant.set("training.max_share=1.0");
    let mut machines = Machines::new(MACHINES);
    let mut program = plant.run();
    program.wait_ready();
    plant.feed(&mut machines, 120);
    program.wait_metric("contrastream_source_records_total", 600.0);
    let ended = program.terminate().exits(0);

    assert_eq!(ended.total("records"), 600);
    assert_eq!(ended.total("segments"), machines.segments().len() as u64);
    assert!(ended.total("steps") > 0);
    assert_eq!((ended.total("late_records"), ended.total("dead_letters")), (0, 0));
    assert_exactly_once(&plant, &machines);
    assert!(read(&plant.topic("dead-letters")).is_empty());

    let rows = parquet(&plant.out());
    let row_of =
        |segment: &(String, u64)| rows.iter().find(|row| segment_of_row(row) == *segment).unwrap();
    for message in read(&plant.topic("embeddings")) {
        let (json, segment) = (message.json(), message.segment());
        let row = row_of(&segment);
        let fields = [
            "pipeline",
            "window_start",
            "window_end",
            "model_version",
            "topic",
            "partition",
            "first_offset",
            "last_offset",
        ];
        for field in fields {
            assert_eq!(json[field], row[field], "{field} of {segment:?}");
        }
        assert_eq!(json["topic"], plant.topic("sensors"));
        let (sent, written) = (floats(&json["embedding"]), floats(&row["embedding"]));
        assert_eq!(sent, written, "{segment:?}");
        assert_eq!(float(&json["wander"]), float(&row["wander"]), "{segment:?}");
        let norm: f32 = sent.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-3, "{segment:?}: {norm}");
        // Readings are a second apart, and the first is of midnight.
        let start = 1_767_225_600_000_000 + segment.1 as i64 * common::STRIDE as i64 * 1_000_000;
        assert_eq!(json["window_start"], start);
        assert_eq!(json["window_end"], start + (common::LENGTH as i64 - 1) * 1_000_000);
    }
    for message in read(&plant.topic("anomalies")) {
        let (json, segment) = (message.json(), message.segment());
        let row = row_of(&segment);
        for field in ["score", "p_value", "alert", "alert_id", "warm", "model_version"] {
            assert_eq!(json[field], row[field], "{field} of {segment:?}");
        }
        for field in ["surprise", "distance", "residual"] {
            assert_eq!(float(&json[field]), float(&row[field]), "{field} of {segment:?}");
        }
        assert!((0.0..=1.0).contains(&json["score"].as_f64().unwrap()), "{json}");
        let shares: f64 =
            json["causes"].as_array().unwrap().iter().map(|c| c["share"].as_f64().unwrap()).sum();
        assert!(json["causes"] == Value::Array(vec![]) || (shares - 1.0).abs() < 1e-3, "{json}");
    }
}

/// As the single precision number that was written; `None` where there is none.
fn float(value: &Value) -> Option<f32> {
    value.as_f64().map(|value| value as f32)
}

fn floats(values: &Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(|value| float(value).unwrap()).collect()
}

#[test]
fn the_end_commits_all_offsets_with_the_id_of_a_checkpoint() {
    let mut plant = plant("offsets");
    plant.set("checkpoint.interval=1h");
    let mut machines = Machines::new(MACHINES);
    plant.feed(&mut machines, 30);
    let mut program = plant.run();
    program.wait_metric("contrastream_source_records_total", 150.0);
    program.terminate().exits(0);

    let lanes = standing(&plant.group(), &plant.topic("sensors"), PARTITIONS).unwrap();
    assert_eq!(lanes.len(), 3);
    for lane in lanes {
        let (offset, id) = lane.committed.unwrap();
        assert_eq!((offset, lane.end > 0), (lane.end, true));
        assert!(plant.state().join(format!("{id}.checkpoint")).is_file(), "{id}");
    }
}

#[test]
fn a_restart_goes_on_where_the_last_run_ended() {
    let mut plant = plant("restart");
    plant.set("checkpoint.interval=300ms");
    let mut machines = Machines::new(MACHINES);
    for seconds in [40, 25, 37] {
        // In the middle of windows, and with readings that wait for late ones.
        plant.feed(&mut machines, seconds);
        let mut program = plant.run();
        plant.wait_done(&mut program);
        // Without anything new.
        program.terminate().exits(0);
        plant.run_until_ready().terminate().exits(0);
    }

    assert_exactly_once(&plant, &machines);
}

impl Plant {
    fn run_until_ready(&self) -> Program {
        let mut program = self.run();
        program.wait_ready();
        program
    }
}

#[test]
fn partitions_without_news_outlive_many_checkpoints() {
    let mut plant = plant("quiet");
    plant.set("checkpoint.interval=50ms");
    let mut machines = Machines::new(3);
    plant.feed(&mut machines, 30);
    let mut program = plant.run();
    plant.wait_done(&mut program);
    program.terminate().exits(0);

    // From now on, one machine of three.
    let mut program = plant.run_until_ready();
    let all = machines.next(60);
    let of_one: Vec<_> = all.iter().filter(|(key, _)| key == "press-0").cloned().collect();
    for (done, record) in of_one.chunks(10).enumerate() {
        produce(&plant.topic("sensors"), PARTITIONS, record);
        program.wait_metric("contrastream_source_records_total", 10.0 * (done + 1) as f64);
        plant.wait_done(&mut program);
    }
    program.terminate().exits(0);

    let mut program = plant.run_until_ready();
    let of_others: Vec<_> = all.into_iter().filter(|(key, _)| key != "press-0").collect();
    produce(&plant.topic("sensors"), PARTITIONS, &of_others);
    plant.wait_done(&mut program);
    program.terminate().exits(0);
    assert_exactly_once(&plant, &machines);
}

#[test]
fn a_kill_at_any_time_loses_nothing() {
    let mut plant = plant("kill");
    plant.set("checkpoint.interval=100ms");
    plant.set("source.properties.session.timeout.ms=2000");
    plant.set("source.properties.heartbeat.interval.ms=300");
    plant.set("source.batch_messages=50");
    let mut machines = Machines::new(MACHINES);
    for round in 0..4 {
        let records = machines.next(60);
        let (before, after) = records.split_at(200);
        let mut program = plant.run();
        produce(&plant.topic("sensors"), PARTITIONS, before);
        if round > 0 {
            // Somewhere between the first record and the commit of the last one.
            program.wait_metric("contrastream_source_records_total", 1.0);
        }
        program.kill();
        produce(&plant.topic("sensors"), PARTITIONS, after);
    }
    let mut program = plant.run();
    plant.wait_done(&mut program);
    program.terminate().exits(0);

    assert_exactly_once(&plant, &machines);
}

/// How many lanes a program owns.
fn lanes(program: &Program) -> f64 {
    program.metric("contrastream_source_lanes").unwrap_or(0.0)
}

fn wait_lanes(program: &mut Program, expected: f64) {
    program
        .until(&format!("{expected} lanes"), |program| (lanes(program) == expected).then_some(()));
}

/// Ends a thread that runs beside a test, however the test ends.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn replicas_share_the_partitions_and_hand_them_over_without_repeating_any() {
    let mut plant = plant("replicas");
    // Often, so that commits and changes of hands meet, and old checkpoints go.
    plant.set("checkpoint.interval=50ms");
    let mut machines = Machines::new(MACHINES);
    let mut first = plant.run_until_ready();
    wait_lanes(&mut first, 3.0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopped = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                plant.feed(&mut machines, 4);
            }
        });
        for _ in 0..2 {
            let mut second = plant.run_as("second");
            second.until("a share for each", |second| {
                (lanes(&first) + lanes(second) == 3.0 && lanes(second) > 0.0).then_some(())
            });
            let others = second.metric("contrastream_sink_segments_total").unwrap_or(0.0);
            second.wait_metric("contrastream_sink_segments_total", others + 10.0);
            second.terminate().exits(0);
            wait_lanes(&mut first, 3.0);
        }
        drop(stopped);
    });
    plant.wait_done(&mut first);
    first.terminate().exits(0);

    assert_exactly_once(&plant, &machines);
}

#[test]
fn a_replica_takes_over_from_one_that_was_killed() {
    let mut plant = plant("takeover");
    plant.set("checkpoint.interval=100ms");
    plant.set("source.properties.session.timeout.ms=2000");
    plant.set("source.properties.heartbeat.interval.ms=300");
    let mut machines = Machines::new(MACHINES);
    let mut first = plant.run_until_ready();
    let mut second = plant.run_as("second");
    second.wait_ready();
    first.until("a share for each", |first| {
        (lanes(first) + lanes(&second) == 3.0 && lanes(first) > 0.0).then_some(())
    });
    for _ in 0..5 {
        plant.feed(&mut machines, 20);
    }
    second.kill();
    plant.feed(&mut machines, 20);
    wait_lanes(&mut first, 3.0);
    plant.wait_done(&mut first);
    first.terminate().exits(0);

    assert_exactly_once(&plant, &machines);
}
