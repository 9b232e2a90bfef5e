//! Labels that people give, on a real broker: taken once, whatever is killed and whether records come
//! or not, and what is no label is a dead letter.

mod common;

use std::thread;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use common::{
    LENGTH, Machines, Plant, Program, STRIDE, create_topic, finish, is_done, produce, read,
};

const PARTITIONS: i32 = 2;
const LABELS: &str = "contrastream_feedback_labels_total";
const SEGMENTS: &str = "contrastream_feedback_segments_total";
const UNMATCHED: &str = "contrastream_feedback_unmatched_total";

fn plant(name: &str) -> Plant {
    let mut plant = Plant::on_broker(name, PARTITIONS);
    plant.set(format!("feedback.topic={}", plant.topic("labels")));
    create_topic(&plant.topic("labels"), PARTITIONS, &[]);
    plant
}

/// Feeds both, labels first, and waits until all of it is committed.
fn feed(plant: &Plant, program: &mut Program, machines: &mut Machines, labels: &[&str]) {
    let records: Vec<_> =
        labels.iter().map(|label| ("someone-1".to_owned(), (*label).to_owned())).collect();
    produce(&plant.topic("labels"), PARTITIONS, &records);
    produce(&plant.topic("sensors"), PARTITIONS, &machines.next(200));
    program.until("everything committed", |_| {
        is_done(&plant.group(), &plant.topic("sensors"), PARTITIONS).then_some(())
    });
}

#[test]
fn a_label_counts_once_and_what_is_none_is_a_dead_letter() {
    let plant = plant("feedback");
    let mut machines = Machines::new(4);
    let mut program = plant.run();
    program.wait_ready();
    feed(&plant, &mut program, &mut machines, &[]);
    let odd = r#"{"key":"press-1","from":1,"to":2,"label":"odd"}"#;
    let labels = [
        r#"{"key":"press-1","from":"2026-01-01T00:01:00Z","to":"2026-01-01T00:02:00Z","label":"anomaly"}"#,
        r#"{"key":"press-9","from":"2026-01-01T00:01:00Z","to":"2026-01-01T00:02:00Z","label":"normal"}"#,
        odd,
    ];
    feed(&plant, &mut program, &mut machines, &labels);
    // Taken between batches: the last ones may come with the next records.
    while program.metric(LABELS) < Some(2.0) {
        feed(&plant, &mut program, &mut machines, &[]);
    }
    assert!(program.metric(SEGMENTS) > Some(0.0));
    assert_eq!(program.metric(UNMATCHED), Some(1.0));
    let ended = program.terminate().exits(0);
    assert_eq!(ended.total("dead_letters"), 1);
    let letters = read(&plant.topic("dead-letters"));
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].value, odd);
    let headers = &letters[0].headers;
    assert_eq!(headers["contrastream.stage"], "feedback");
    assert_eq!(headers["contrastream.topic"], plant.topic("labels"));
    assert!(headers["contrastream.reason"].contains("odd"), "{headers:?}");

    let mut program = plant.run();
    program.wait_ready();
    let normal = r#"{"key":"press-2","from":"2026-01-01T00:05:00Z","to":"2026-01-01T00:06:00Z","label":"normal"}"#;
    feed(&plant, &mut program, &mut machines, &[normal]);
    while program.metric(LABELS).is_none_or(|labels| labels < 1.0) {
        feed(&plant, &mut program, &mut machines, &[]);
    }
    // Those before are not taken again, and their segments are remembered across the restart.
    assert_eq!(program.metric(LABELS), Some(1.0));
    assert!(program.metric(SEGMENTS) > Some(0.0));
    let ended = program.terminate().exits(0);
    assert_eq!(ended.total("dead_letters"), 0);
}

/// The end of segment `number`, seconds since the first record.
fn end(number: usize) -> usize {
    LENGTH - 1 + number * STRIDE
}

/// A label for segment `number` of a machine and for no other.
fn label(machine: usize, number: usize, kind: &str) -> String {
    let time = chrono::DateTime::from_timestamp(1_767_225_600 + end(number) as i64, 0).unwrap();
    let time = time.to_rfc3339();
    format!(r#"{{"key":"press-{machine}","from":"{time}","to":"{time}","label":"{kind}"}}"#)
}

/// What the newest checkpoint holds of labels: anomalous, normal, and all messages read.
fn remembered(plant: &Plant) -> (u64, u64, i64) {
    let export = plant.folder.path().join("export");
    let (state, export_path) = (plant.state(), export.clone());
    let arguments: [&std::ffi::OsStr; 5] = [
        "checkpoint".as_ref(),
        "export".as_ref(),
        state.as_ref(),
        "--to".as_ref(),
        export_path.as_ref(),
    ];
    finish(arguments).exits(0);
    let text = std::fs::read_to_string(export.join("checkpoint.json")).unwrap();
    let labels = &serde_json::from_str::<serde_json::Value>(&text).unwrap()["labels"];
    let read = labels["read"].as_object().unwrap().values();
    let count = |kind: &str| labels[kind].as_u64().unwrap();
    (count("anomalies"), count("normal"), read.map(|next| next.as_i64().unwrap()).sum())
}

#[test]
fn labels_that_come_while_no_records_do_are_taken_and_committed() {
    let mut plant = plant("idle-feedback");
    plant.set("checkpoint.interval=100ms");
    let mut machines = Machines::new(4);
    let mut program = plant.run();
    program.wait_ready();
    feed(&plant, &mut program, &mut machines, &[]);
    let odd = r#"{"label":"odd"}"#.to_owned();
    let labels: Vec<_> = [label(1, 3, "anomaly"), label(2, 5, "normal"), odd]
        .into_iter()
        .map(|label| ("someone-1".to_owned(), label))
        .collect();
    produce(&plant.topic("labels"), PARTITIONS, &labels);
    program.wait_metric(LABELS, 2.0);
    program.until("the dead letter is committed", |_| {
        (!read(&plant.topic("dead-letters")).is_empty()).then_some(())
    });
    program.kill();
    assert_eq!(remembered(&plant), (1, 1, 3));

    let mut program = plant.run();
    program.wait_ready();
    feed(&plant, &mut program, &mut machines, &[]);
    assert_eq!(program.metric(LABELS).unwrap_or(0.0), 0.0);
    program.terminate().exits(0);
    assert_eq!(remembered(&plant), (1, 1, 3));
    assert_eq!(read(&plant.topic("dead-letters")).len(), 1);
}

#[test]
fn each_label_counts_once_however_often_the_process_is_killed() {
    const ROUNDS: usize = 24;
    const KILLED_EVERY: usize = 4;
    let mut plant = plant("killed-feedback");
    plant.set("checkpoint.interval=20ms");
    plant.set("source.properties.session.timeout.ms=3000");
    plant.set("source.properties.heartbeat.interval.ms=500");
    plant.set("sink.kafka.properties.transaction.timeout.ms=10000");
    let mut rng = Pcg64Mcg::seed_from_u64(7);
    let mut machines = Machines::new(4);
    let mut program = plant.run();
    program.wait_ready();
    feed(&plant, &mut program, &mut machines, &[]);
    for round in 0..ROUNDS {
        let told = [
            label(round % 4, round, "anomaly"),
            label((round + 1) % 4, round, "normal"),
            format!("odd {round}"),
        ];
        let labels: Vec<_> =
            told.into_iter().enumerate().map(|(at, label)| (format!("by-{at}"), label)).collect();
        produce(&plant.topic("labels"), PARTITIONS, &labels);
        produce(&plant.topic("sensors"), PARTITIONS, &machines.next(8));
        // From before the label is read to after its commit.
        thread::sleep(Duration::from_millis(rng.random_range(0..150)));
        if round % KILLED_EVERY == KILLED_EVERY - 1 {
            program.kill();
            program = plant.run();
            program.wait_ready();
        }
    }
    program.until("every odd one is a dead letter", |_| {
        (read(&plant.topic("dead-letters")).len() >= ROUNDS).then_some(())
    });
    program.until("everything committed", |_| {
        is_done(&plant.group(), &plant.topic("sensors"), PARTITIONS).then_some(())
    });
    program.terminate().exits(0);
    let count = ROUNDS as u64;
    assert_eq!(remembered(&plant), (count, count, 3 * ROUNDS as i64));
    let mut odd: Vec<_> =
        read(&plant.topic("dead-letters")).into_iter().map(|letter| letter.value).collect();
    odd.sort();
    let mut expected: Vec<_> = (0..ROUNDS).map(|round| format!("odd {round}")).collect();
    expected.sort();
    assert_eq!(odd, expected);
}

#[test]
fn a_topic_of_labels_that_is_missing_ends_the_run_with_its_name() {
    let mut plant = Plant::on_broker("nofeedback", 1);
    plant.set("feedback.topic=nowhere.labels");
    let program = plant.run();
    produce(&plant.topic("sensors"), 1, &Machines::new(1).next(100));
    let ended = program.wait().exits(1);
    assert!(ended.error().contains("topic nowhere.labels does not exist"), "{}", ended.error());
}
