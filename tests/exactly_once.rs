//! A run that is killed and resumed gives the same results, bit for bit, as one that never was.
//!
//! Needs the test broker, and the feature `failpoints` to kill at the steps of a commit.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::{Finished, Machines, Plant, Program, is_done, parquet, produce, read};
use serde_json::Value;

const PARTITIONS: i32 = 3;
const MACHINES: usize = 6;
const SECONDS: usize = 400;

/// Steps at which a process dies, once each.
const STEPS: [&str; 7] = [
    "commit.begin",
    "commit.prepared",
    "commit.offsets",
    "commit.done",
    "publish.before",
    "publish.after",
    "commit.end",
];

/// Those of a commit without a transaction.
const PLAIN_STEPS: [&str; 6] = [
    "commit.begin",
    "commit.prepared",
    "commit.done",
    "publish.before",
    "publish.after",
    "commit.end",
];

/// Runs with something arranged at a step.
fn run_with(plant: &Plant, arranged: &str) -> Program {
    let mut command = plant.command("run");
    command.env("FAILPOINTS", arranged);
    Program::start(command)
}

/// Lets a process die at each step, somewhere in the stream, and returns how many did: one that
/// comes to the end of the stream before ends well.
fn die_at_every_step(plant: &Plant, steps: &[&str]) -> usize {
    let died = |(index, step): (usize, &&str)| {
        let arranged = format!("{step}={}*off->return(kill)", index % 3);
        let ended = run_with(plant, &arranged).wait();
        assert!(ended.signal.is_some() || ended.code == Some(0), "{step}: {}", ended.stderr);
        ended.signal.is_some()
    };
    steps.iter().enumerate().map(died).filter(|died| *died).count()
}

/// Of all results, what does not name the pipeline: by key and sequence, each exactly once.
fn results(messages: &[Value], plant: &Plant) -> BTreeMap<(String, u64), Value> {
    let mut results = BTreeMap::new();
    for message in messages {
        let mut message = message.clone();
        let fields = message.as_object_mut().unwrap();
        fields.remove("pipeline");
        fields.remove("topic");
        let sequence = message["sequence"].as_u64().unwrap();
        let key = (message["key"].as_str().unwrap().to_owned(), sequence);
        let twice = results.insert(key.clone(), message);
        assert_eq!(twice, None, "{key:?} of {} twice", plant.name);
    }
    results
}

fn of_topic(plant: &Plant, kind: &str) -> BTreeMap<(String, u64), Value> {
    let messages: Vec<_> = read(&plant.topic(kind)).iter().map(common::Message::json).collect();
    results(&messages, plant)
}

fn of_files(plant: &Plant) -> BTreeMap<(String, u64), Value> {
    results(&parquet(&plant.out()), plant)
}

#[track_caller]
fn assert_same(found: &BTreeMap<(String, u64), Value>, expected: &BTreeMap<(String, u64), Value>) {
    assert!(found.keys().eq(expected.keys()), "{} against {}", found.len(), expected.len());
    for (key, value) in expected {
        assert_eq!(found[key], *value, "{key:?}");
    }
}

/// Every part of a score, so that all of the state shows, and no training left out under lag.
fn exacting(plant: &mut Plant) {
    plant.set("checkpoint.interval=2ms");
    plant.set("training.max_share=1.0");
    plant.set(
        "scores.parts=[\"surprise\", \"distance\", \"level\", \"change\", \"residual\", \"texture\", \"novelty\"]",
    );
}

/// A member that was killed holds the group up for as long.
fn soon_forgotten(plant: &mut Plant) {
    plant.set("source.properties.session.timeout.ms=3000");
    plant.set("source.properties.heartbeat.interval.ms=500");
}

fn over_broker(name: &str, records: &[(String, String)]) -> Plant {
    let mut plant = Plant::on_broker(name, PARTITIONS);
    exacting(&mut plant);
    soon_forgotten(&mut plant);
    plant.set("source.batch_messages=64");
    plant.set("sink.kafka.properties.transaction.timeout.ms=10000");
    produce(&plant.topic("sensors"), PARTITIONS, records);
    plant
}

/// Runs until everything in the topic is committed.
fn finish(plant: &Plant) {
    let mut program = plant.run();
    let (group, topic) = (plant.group(), plant.topic("sensors"));
    program.until("all is committed", |_| is_done(&group, &topic, PARTITIONS).then_some(()));
    program.terminate().exits(0);
}

/// The same, of a topic that does not end: what did not die at its step is killed when all is
/// committed.
fn die_at_every_step_of_a_topic(plant: &Plant, steps: &[&str]) -> usize {
    let (group, topic) = (plant.group(), plant.topic("sensors"));
    let died = |(index, step): (usize, &&str)| {
        let mut program = run_with(plant, &format!("{step}={}*off->return(kill)", index % 3));
        while program.runs() && !is_done(&group, &topic, PARTITIONS) {
            thread::sleep(Duration::from_millis(20));
        }
        let died = !program.runs();
        program.kill();
        died
    };
    steps.iter().enumerate().map(died).filter(|died| *died).count()
}

#[test]
fn a_backlog_read_in_many_goes_gives_the_bits_of_one() {
    let mut machines = Machines::new(MACHINES);
    let records = machines.next(SECONDS);
    let at_once = over_broker("at-once", &records);
    finish(&at_once);
    let broken = over_broker("broken", &records);
    assert!(die_at_every_step_of_a_topic(&broken, &STEPS) > 0);
    finish(&broken);

    let expected = of_topic(&at_once, "anomalies");
    assert!(expected.keys().eq(machines.segments().iter()));
    assert_same(&of_topic(&broken, "anomalies"), &expected);
    assert_same(&of_topic(&broken, "embeddings"), &of_topic(&at_once, "embeddings"));
    assert_same(&of_files(&broken), &of_files(&at_once));
}

#[test]
fn a_backlog_into_files_alone_comes_out_once() {
    let mut machines = Machines::new(MACHINES);
    let records = machines.next(SECONDS);
    let into_files = |name: &str| {
        let topic = common::unique(name);
        let source = format!(
            "kind = \"kafka\"\nbrokers = {:?}\ntopics = [\"{topic}.sensors\"]\nbatch_messages = 64",
            common::brokers()
        );
        let mut plant = Plant::over(name, &source);
        plant.set(format!("name={topic}"));
        plant.name = topic;
        plant.set("http.listen=\"\"");
        exacting(&mut plant);
        soon_forgotten(&mut plant);
        common::create_topic(&plant.topic("sensors"), PARTITIONS, &[]);
        produce(&plant.topic("sensors"), PARTITIONS, &records);
        plant
    };
    let at_once = into_files("alone-at-once");
    finish(&at_once);
    let broken = into_files("alone-broken");
    assert!(die_at_every_step_of_a_topic(&broken, &PLAIN_STEPS) > 0);
    finish(&broken);

    let expected = of_files(&at_once);
    assert!(expected.keys().eq(machines.segments().iter()));
    assert_same(&of_files(&broken), &expected);
}

/// The records as files of a folder, one per machine.
fn write_files(folder: &Path, records: &[(String, String)]) {
    std::fs::create_dir_all(folder).unwrap();
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for (machine, record) in records {
        let lines = files.entry(machine).or_default();
        lines.push_str(record);
        lines.push('\n');
    }
    for (machine, lines) in files {
        std::fs::write(folder.join(format!("{machine}.jsonl")), lines).unwrap();
    }
}

/// Over files, with small batches.
fn over_files(name: &str, folder: &Path) -> Plant {
    let source = format!("kind = \"file\"\npath = {folder:?}\nbatch_rows = 32");
    let mut plant = Plant::over(name, &source);
    plant.set("http.listen=\"\"");
    exacting(&mut plant);
    plant
}

#[test]
fn files_read_in_many_goes_give_the_bits_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut machines = Machines::new(MACHINES);
    write_files(folder.path(), &machines.next(SECONDS));
    let at_once = over_files("files-at-once", folder.path());
    at_once.run().wait().exits(0);

    let broken = over_files("files-broken", folder.path());
    assert!(die_at_every_step(&broken, &PLAIN_STEPS) > 0);
    broken.run().wait().exits(0);

    let expected = of_files(&at_once);
    assert!(!expected.is_empty());
    assert_same(&of_files(&broken), &expected);
}

#[test]
fn files_read_in_many_goes_into_topics_come_out_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut machines = Machines::new(MACHINES);
    write_files(folder.path(), &machines.next(SECONDS));
    let into_topics = |name: &str| {
        let mut plant = over_files(name, folder.path());
        plant.set(format!("sink.kafka.brokers={}", common::brokers()));
        plant
    };
    let at_once = into_topics("topics-at-once");
    at_once.run().wait().exits(0);
    let broken = into_topics("topics-broken");
    assert!(die_at_every_step(&broken, &STEPS) > 0);
    broken.run().wait().exits(0);

    let expected = of_topic(&at_once, "anomalies");
    assert_same(&of_topic(&broken, "anomalies"), &expected);
    assert_same(&of_files(&broken), &of_files(&at_once));
    assert!(of_files(&at_once).keys().eq(expected.keys()));
}

/// The end of a run in which something failed that passes, and how often it went on from a commit.
fn rewinds(ended: &Finished) -> usize {
    ended.stderr.matches("going on from the last commit").count()
}

#[test]
fn what_passes_is_ridden_out_and_what_lasts_ends_the_run_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut machines = Machines::new(MACHINES);
    write_files(folder.path(), &machines.next(SECONDS));
    let at_once = over_files("ridden-at-once", folder.path());
    at_once.run().wait().exits(0);

    let ridden = over_files("ridden", folder.path());
    let ended = run_with(&ridden, "commit.prepared=1*return(gone)->off").wait().exits(0);
    assert!(rewinds(&ended) >= 1, "{}", ended.stderr);
    assert_same(&of_files(&ridden), &of_files(&at_once));

    let full = over_files("full", folder.path());
    let ended = run_with(&full, "commit.prepared=return(full)").wait().exits(1);
    assert_eq!(rewinds(&ended), 0, "{}", ended.stderr);
    assert!(ended.error().contains("no storage space"), "{}", ended.stderr);
    full.run().wait().exits(0);
    assert_same(&of_files(&full), &of_files(&at_once));
}
