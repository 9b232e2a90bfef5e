//! Log lines, from what `contrastream generate --kind logs` writes to alerts that name templates.
//!
//! Needs the test broker.

mod common;

use std::fs;
use std::path::Path;

use common::{Plant, brokers, create_topic, finish, is_done, parquet, read, repository, unique};
use serde_json::Value;

const PARTITIONS: i32 = 2;

/// `pipelines/logs.toml` as it is but for names, places and the size of the model.
fn pipeline(name: &str) -> Plant {
    let mut plant = Plant::new(name);
    let file = plant.folder.path().join("plant.toml");
    fs::copy(repository("pipelines/logs.toml"), file).unwrap();
    plant.set("training.max_share=1.0");
    plant.set("windows.length=128");
    plant.set("windows.stride=8");
    plant.set("scores.warmup=100");
    plant
}

/// The same over a folder of lines, to Parquet only.
fn over_files(name: &str, folder: &Path) -> Plant {
    let mut plant = pipeline(name);
    let text = fs::read_to_string(repository("pipelines/logs.toml")).unwrap();
    let (head, source) = text.split_once("[source]\n").unwrap();
    let (_, rest) = source.split_once("format = \"log\"\n").unwrap();
    let rest = rest.replace("[sink.kafka]\n", "");
    let file =
        format!("{head}[source]\nkind = \"file\"\npath = {folder:?}\nformat = \"log\"\n{rest}");
    fs::write(plant.folder.path().join("plant.toml"), file).unwrap();
    plant.set("http.listen=\"\"");
    plant
}

fn faults(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What `checkpoint show` says of templates: the number of each with its lines, and its text.
fn templates(plant: &Plant) -> Vec<(String, String)> {
    let shown = finish(["checkpoint", "show", plant.state().to_str().unwrap()]).exits(0).stdout;
    let of_template = |line: &str| {
        let (head, text) = line.strip_prefix("    template ")?.split_once(" lines, ")?;
        Some((head.to_owned(), text.to_owned()))
    };
    shown.lines().filter_map(of_template).collect()
}

#[test]
fn alerts_on_generated_lines_name_the_templates_of_the_faults() {
    const LINES: usize = 60_000;
    let mut plant = pipeline("logs");
    let topic = plant.topic("lines");
    create_topic(&topic, PARTITIONS, &[]);
    for kind in ["embeddings", "anomalies"] {
        create_topic(&plant.topic(kind), PARTITIONS, &[]);
    }
    let file = plant.folder.path().join("faults.jsonl");
    let to = format!("kafka://{}/{topic}", brokers());
    let count = LINES.to_string();
    let arguments = ["--kind", "logs", "--to", &to, "--count", &count, "--machines", "4"];
    let faulty = ["--fault-every", "1h", "--faults", file.to_str().unwrap()];
    finish(["generate"].iter().chain(&arguments).chain(&faulty)).exits(0);

    plant.set(format!("source.brokers={}", brokers()));
    plant.set(format!("source.topics=[\"{topic}\"]"));
    let mut program = plant.run();
    let group = plant.group();
    program.until("all lines are committed", |_| is_done(&group, &topic, PARTITIONS).then_some(()));
    program.terminate().exits(0);

    let anomalies: Vec<Value> =
        read(&plant.topic("anomalies")).iter().map(common::Message::json).collect();
    let alerts: Vec<&Value> = anomalies.iter().filter(|anomaly| anomaly["alert"] == true).collect();
    assert!(!alerts.is_empty());
    for alert in &alerts {
        let causes = alert["causes"].as_array().unwrap();
        let total: f64 = causes.iter().map(|cause| cause["share"].as_f64().unwrap()).sum();
        assert!((total - 1.0).abs() < 1e-3, "{alert}");
        let names = causes.iter().map(|cause| cause["channel"].as_str().unwrap());
        let known = ["severity", "silence"];
        let (own, of_templates): (Vec<&str>, _) = names.partition(|name| known.contains(name));
        assert_eq!(own.len(), known.len(), "{alert}");
        assert!(
            !of_templates.is_empty() && of_templates.iter().all(|text: &&str| text.contains(' '))
        );
    }
    // The words before the first parameter tell templates apart.
    let names_fault = |alert: &&&Value, fault: &Value| {
        let Some((start, _)) = fault["template"].as_str().and_then(|text| text.split_once(" {"))
        else {
            return false;
        };
        let causes = alert["causes"].as_array().unwrap();
        let named =
            causes.iter().any(|cause| cause["channel"].as_str().unwrap().starts_with(start));
        alert["key"] == fault["key"] && named
    };
    let named = faults(&file)
        .iter()
        .filter(|fault| alerts.iter().any(|alert| names_fault(&alert, fault)))
        .count();
    assert!(named > 0, "{} alerts", alerts.len());

    let templates = templates(&plant);
    let lines = |(head, _): &(String, String)| -> usize {
        head.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(templates.iter().map(lines).sum::<usize>(), LINES, "{templates:?}");
    assert!(templates.iter().any(|(_, text)| text == "app: cache sweep started"), "{templates:?}");
}

#[test]
fn a_run_that_was_killed_goes_on_with_the_same_templates() {
    let lines = tempfile::tempdir().unwrap();
    let to = lines.path().to_str().unwrap();
    finish(["generate", "--kind", "logs", "--to", to, "--count", "40000"]).exits(0);
    let straight = over_files(&unique("straight"), lines.path());
    straight.run().wait().exits(0);

    let mut killed = over_files(&unique("killed"), lines.path());
    killed.set("checkpoint.interval=50ms");
    let state = killed.state();
    let mut program = killed.run();
    program.until("a checkpoint", |_| {
        let mut names = fs::read_dir(&state).ok()?.flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().ends_with(".checkpoint")).then_some(())
    });
    program.signal("KILL");
    assert!(program.wait().signal.is_some());
    killed.run().wait().exits(0);

    assert_eq!(templates(&killed), templates(&straight));
    let without_name = |plant: &Plant| -> Vec<Value> {
        let mut rows = parquet(&plant.out());
        rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("pipeline")));
        rows
    };
    let (found, expected) = (without_name(&killed), without_name(&straight));
    assert!(found == expected, "{} rows against {}", found.len(), expected.len());
}
