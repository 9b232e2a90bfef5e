//! Labels that people give, on a real broker: taken once, and what is no label is a dead letter.

mod common;

use common::{Machines, Plant, Program, create_topic, is_done, produce, read};

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

#[test]
fn a_topic_of_labels_that_is_missing_ends_the_run_with_its_name() {
    let mut plant = Plant::on_broker("nofeedback", 1);
    plant.set("feedback.topic=nowhere.labels");
    let program = plant.run();
    produce(&plant.topic("sensors"), 1, &Machines::new(1).next(100));
    let ended = program.wait().exits(1);
    assert!(ended.error().contains("topic nowhere.labels does not exist"), "{}", ended.error());
}
