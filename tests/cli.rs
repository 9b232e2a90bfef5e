//! The commands as a person or a script meets them: what they print, and with which exit code.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use common::{
    LENGTH, Plant, Program, STRIDE, brokers, contrastream, create_topic, finish, parquet,
    repository, unique,
};
use contrastream::telemetry::{Kind, METRICS};
use serde_json::Value;

/// The first words of the lines below a heading, up to the next empty line.
fn entries<'a>(help: &'a str, heading: &str) -> Vec<&'a str> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // What is further in continues the line before.
    let entries = lines.filter(|line| line.starts_with("  ") && !line.starts_with("     "));
    entries.filter_map(|line| line.split_whitespace().next()).collect()
}

#[test]
fn help_names_the_commands_and_teaches_by_example() {
    let help = finish(["--help"]).exits(0).stdout;
    assert_eq!(
        entries(&help, "Commands:"),
        [
            "run",
            "demo",
            "generate",
            "init",
            "check",
            "checkpoint",
            "evaluate",
            "embed",
            "similar",
            "completions",
            "help"
        ]
    );
    let headings = help.lines().filter(|line| line.ends_with(':') && !line.starts_with(' '));
    let headings: Vec<_> = headings.collect();
    assert_eq!(headings, ["Commands:", "Options:", "Examples:"]);
    for line in help.lines().filter(|line| line.starts_with("  contrastream ")) {
        let command = line.split_whitespace().nth(1).unwrap();
        assert!(entries(&help, "Commands:").contains(&command), "{line}");
    }
    assert!(help.contains("Exit codes: 0 done, 1 failed at run time, 2 bad usage"), "{help}");

    for command in entries(&help, "Commands:") {
        if command == "help" {
            continue;
        }
        let help = finish([command, "--help"]).exits(0).stdout;
        assert!(help.contains(&format!("Usage: contrastream {command}")), "{help}");
        assert!(help.contains("Options:"), "{help}");
    }
    let completions = finish(["completions", "bash"]).exits(0).stdout;
    assert!(completions.contains("_contrastream()"), "{completions}");
}

#[test]
fn bad_usage_is_told_apart_from_failure() {
    for arguments in [
        &["no-such-command"][..],
        &["run"],
        &["run", "no-such-file.toml"],
        &["run", "a.toml", "--no-such-option"],
        &["demo", "--seconds", "soon"],
        &["generate", "--to", "folder"],
        &["generate", "--to", "kafka://without-a-topic", "--count", "1"],
    ] {
        let ended = finish(arguments).exits(2);
        assert!(ended.error().len() > "error: ".len(), "{arguments:?}");
        assert_eq!(ended.stdout, "", "{arguments:?}");
    }
    let missing = finish(["run", "no-such-file.toml"]).exits(2);
    assert!(missing.error().starts_with("error: no-such-file.toml: "), "{}", missing.error());
    let nowhere = finish(["generate", "--to", "/dev/null/folder", "--count", "1"]).exits(1);
    assert!(nowhere.error().contains("/dev/null/folder"), "{}", nowhere.error());
}

#[test]
fn every_pipeline_of_the_repository_is_valid() {
    let mut checked = 0;
    for entry in fs::read_dir(repository("pipelines")).unwrap() {
        let path = entry.unwrap().path();
        let mut command = contrastream([OsString::from("check"), path.clone().into()]);
        command.env("CONTRASTREAM_KEY_SALT", "a salt of these tests");
        let ended = Program::start(command).wait().exits(0);
        assert_eq!(ended.stdout, format!("{}: valid\n", path.display()));
        checked += 1;
    }
    assert!(checked >= 3);
}

#[test]
fn check_connects_and_makes_the_output_topics() {
    let plant = Plant::on_broker("check", 1);
    let check = || {
        let mut command = plant.command("check");
        command.arg("--connect");
        Program::start(command).wait().exits(0)
    };
    assert!(check().stdout.contains("the source and 2 sinks answer"));
    assert!(common::read(&plant.topic("dead-letters")).is_empty());
    check();
}

#[test]
fn check_looks_at_the_topic_of_labels() {
    let mut plant = Plant::on_broker("check-labels", 1);
    plant.set(format!("feedback.topic={}", plant.topic("labels")));
    let check = |plant: &Plant| {
        let mut command = plant.command("check");
        command.arg("--connect");
        Program::start(command).wait()
    };
    let missing = check(&plant).exits(1);
    let expected = format!("feedback.topic: topic {} does not exist", plant.topic("labels"));
    assert!(missing.error().contains(&expected), "{}", missing.error());

    common::create_topic(&plant.topic("labels"), 2, &[]);
    let expected = format!("labels can be read from {}", plant.topic("labels"));
    assert!(check(&plant).exits(0).stdout.contains(&expected));

    plant.as_tester();
    common::allow_only("DESCRIBE", "TOPIC", &plant.topic("labels"));
    let refused = check(&plant).exits(1);
    let error = refused.error();
    assert!(error.contains("feedback.topic") && error.contains("refuse"), "{error}");
    assert!(error.contains(&plant.topic("labels")), "{error}");
}

/// A pipeline file of its own.
fn file(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("pipeline.toml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_nearest_one() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(repository("pipelines/demo.toml")).unwrap();
    let path = file(folder.path(), &text.replace("stride =", "strid ="));
    let line = 1 + text.lines().position(|line| line.starts_with("stride =")).unwrap();
    for command in ["check", "run"] {
        let ended = finish([command.as_ref(), path.as_os_str()]).exits(2);
        let place = format!("{}:{line}", path.display());
        assert!(ended.error().contains(&place), "{}", ended.error());
        assert!(ended.error().contains("windows.strid"), "{}", ended.error());
        assert!(ended.error().contains("nearest is stride"), "{}", ended.error());
    }
}

#[test]
fn a_variable_that_is_not_set_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(repository("pipelines/demo.toml")).unwrap();
    let path =
        file(folder.path(), &text.replace("${CONTRASTREAM_OUT:-out}", "${NOT_SET_ANYWHERE}"));
    let ended = finish(["check".as_ref(), path.as_os_str()]).exits(2);
    let line = 1 + text.lines().position(|line| line.contains("CONTRASTREAM_OUT")).unwrap();
    assert!(ended.error().contains(&format!("{}:{line}", path.display())), "{}", ended.error());
    assert!(ended.error().contains("NOT_SET_ANYWHERE"), "{}", ended.error());
    assert!(ended.error().contains("sink.parquet.path"), "{}", ended.error());
}

#[test]
fn a_wrong_override_is_named() {
    let demo = repository("pipelines/demo.toml");
    for (text, expected) in [
        ("windows.strid=8", "nearest is stride"),
        ("windows.stride", "expected key=value"),
        ("windows.stride=soon", "windows.stride"),
        ("windows=8", "windows"),
    ] {
        let ended = finish(["check".as_ref(), demo.as_os_str(), "--set".as_ref(), text.as_ref()]);
        let ended = ended.exits(2);
        assert!(ended.error().contains(&format!("--set {text}")), "{}", ended.error());
        assert!(ended.error().contains(expected), "{}", ended.error());
    }
}

/// Generates records into a folder; returns them, a JSON object a line.
fn generate(folder: &Path, count: usize, more: &[&str]) -> String {
    let count = count.to_string();
    let arguments = ["generate", "--to", folder.to_str().unwrap(), "--count", &count];
    let ended = finish(arguments.iter().chain(more)).exits(0);
    assert!(ended.stderr.contains(&format!("wrote {count} records")), "{}", ended.stderr);
    fs::read_to_string(folder.join("records.jsonl")).unwrap()
}

#[test]
fn generated_records_are_counted_faulty_and_repeatable() {
    let folder = tempfile::tempdir().unwrap();
    let (one, again, other) =
        (folder.path().join("one"), folder.path().join("again"), folder.path().join("other"));
    let faulty = ["--machines", "2", "--fault-every", "10m"];
    let records = generate(&one, 20_000, &faulty);

    assert_eq!(records.lines().count(), 20_000);
    for line in records.lines().step_by(997) {
        let record: Value = serde_json::from_str(line).unwrap();
        assert!(record["machine"].is_string() && record["ts"].is_string(), "{line}");
    }
    let faults = fs::read_to_string(one.join("_faults.jsonl")).unwrap();
    assert!(faults.lines().count() > 0);
    for line in faults.lines() {
        let fault: Value = serde_json::from_str(line).unwrap();
        assert!(records.contains(fault["key"].as_str().unwrap()), "{line}");
        assert!(fault["from"].as_i64() <= fault["to"].as_i64(), "{line}");
    }

    assert_eq!(generate(&again, 20_000, &faulty), records);
    assert_eq!(fs::read_to_string(again.join("_faults.jsonl")).unwrap(), faults);
    let seeded = ["--machines", "2", "--fault-every", "10m", "--seed", "8"];
    assert_ne!(generate(&other, 20_000, &seeded), records);
}

#[test]
fn generated_records_arrive_on_a_topic() {
    let topic = unique("generated");
    create_topic(&topic, 2, &[]);
    let to = format!("kafka://{}/{topic}", brokers());
    finish(["generate", "--to", &to, "--count", "500", "--machines", "4"]).exits(0);

    let messages = common::read(&topic);
    assert_eq!(messages.len(), 500);
    for message in messages {
        assert_eq!(message.json()["machine"], *message.key.as_deref().unwrap());
    }
}

/// The segments of a file of records once it is read to its end.
fn segments(records: &str) -> Vec<(String, u64)> {
    let mut readings: BTreeMap<String, usize> = BTreeMap::new();
    for line in records.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        *readings.entry(record["machine"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let of_machine = |(machine, readings): (String, usize)| {
        let count = (readings - LENGTH) / STRIDE + 1;
        (0..count as u64).map(move |sequence| (machine.clone(), sequence))
    };
    readings.into_iter().flat_map(of_machine).collect()
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

#[test]
fn files_are_read_once_however_often_they_are_run() {
    let folder = tempfile::tempdir().unwrap();
    let records = generate(folder.path(), 3000, &["--machines", "3"]);
    let plant = Plant::over_files("files", folder.path());

    let first = plant.run().wait().exits(0);
    assert_eq!((first.total("records"), first.total("dead_letters")), (3000, 0));
    let rows = parquet(&plant.out());
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row["key"].as_str().unwrap().to_owned(), row["sequence"].as_u64().unwrap()))
        .collect();
    assert_eq!(found, segments(&records));
    let written = files(&plant.out());

    for _ in 0..3 {
        let again = plant.run().wait().exits(0);
        assert!(again.stderr.contains("going on from a checkpoint"), "{}", again.stderr);
        assert_eq!((again.total("records"), again.total("segments")), (0, 0));
        assert_eq!(files(&plant.out()), written);
    }
}

#[test]
fn the_same_records_and_seed_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path(), 8000, &["--machines", "4"]);
    let run = |seed: &str| {
        let mut plant = Plant::over_files("seed", folder.path());
        plant.set(format!("training.seed={seed}"));
        // Nothing is left out of a replay, however slow the machine is.
        plant.set("training.max_share=0.01");
        let ended = plant.run().wait().exits(0);
        assert!(ended.total("steps") > 10, "{}", ended.stderr);
        let mut rows = parquet(&plant.out());
        for row in &mut rows {
            row.as_object_mut().unwrap().remove("pipeline");
        }
        rows
    };

    let rows = run("7");
    assert_eq!(rows, run("7"));
    assert_ne!(rows, run("8"));
}

#[test]
fn the_demo_ends_by_itself_with_a_summary() {
    let folder = tempfile::tempdir().unwrap();
    let out = format!("sink.parquet.path={}", folder.path().display());
    let ended = finish(["demo", "--seconds", "6", "--set", &out]).exits(0);
    for expected in [
        "24 machines with 5 sensors each",
        " records in ",
        " segments, ",
        "faults found: ",
        "false alarms: ",
        &format!("embeddings and scores: {}", folder.path().display()),
    ] {
        assert!(ended.stdout.contains(expected), "{expected}\n{}", ended.stdout);
    }
    let summary = ended.stdout.lines().find(|line| line.contains(" records in ")).unwrap();
    let records: u64 = summary.split(' ').next().unwrap().parse().unwrap();
    assert!(records > 0, "{summary}");
    let segments = summary.split(", ").find_map(|part| part.strip_suffix(" segments")).unwrap();
    assert_eq!(parquet(folder.path()).len(), segments.parse::<usize>().unwrap());
}

/// Rows of a made-up series a minute apart, with a disturbance in the middle of it.
fn series(rows: usize, row: impl Fn(String, f64, bool) -> String) -> String {
    let mut text = String::new();
    for minute in 0..rows {
        let time = chrono::DateTime::from_timestamp(1_400_000_000 + 60 * minute as i64, 0).unwrap();
        let disturbed = (rows / 2..rows / 2 + 10).contains(&minute);
        let value = (minute as f64 / 5.0).sin() + if disturbed { 5.0 } else { 0.0 };
        let time = time.format("%Y-%m-%d %H:%M:%S").to_string();
        writeln!(text, "{}", row(time, value, disturbed)).unwrap();
    }
    text
}

/// Runs `evaluate` with a small model; returns its report.
fn evaluate(format: &str, data: &Path, labels: Option<&Path>, out: &Path) -> Value {
    let mut command = contrastream(["evaluate"]);
    command.arg(repository("pipelines/metrics.toml"));
    command.args(["--format", format, "--data"]).arg(data).arg("--out").arg(out);
    if let Some(labels) = labels {
        command.arg("--labels").arg(labels);
    }
    for text in ["windows.length=16", "model.hidden=8", "model.queue=128", "scores.warmup=50"] {
        command.args(["--set", text]);
    }
    let ended = Program::start(command).wait().exits(0);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// One row per input row, of the same time, with a score from 0 to 1 and a verdict.
fn assert_scored(scores: &Path, recording: &str, time: &str, delimiter: char) {
    let scores = fs::read_to_string(scores).unwrap();
    let mut lines = scores.lines();
    assert_eq!(lines.next().unwrap(), format!("{time},anomaly_score,is_anomaly"));
    let times = recording.lines().skip(1).map(|line| line.split(delimiter).next().unwrap());
    assert_eq!(lines.clone().count(), times.clone().count());
    let mut distinct = BTreeSet::new();
    for (line, time) in lines.zip(times) {
        let fields: Vec<_> = line.split(',').collect();
        assert_eq!((fields.len(), fields[0]), (3, time));
        assert!((0.0..=1.0).contains(&fields[1].parse::<f64>().unwrap()), "{line}");
        assert!(["0", "1"].contains(&fields[2]), "{line}");
        distinct.insert(fields[1].to_owned());
    }
    assert!(distinct.len() > 10);
}

#[test]
fn evaluate_scores_every_row_of_a_nab_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    let rows = series(400, |time, value, _| format!("{time},{value}"));
    let text = format!("timestamp,value\n{rows}");
    for group in ["realA", "realB"] {
        fs::create_dir_all(data.join(group)).unwrap();
        fs::write(data.join(group).join("one.csv"), &text).unwrap();
    }
    let disturbed: Vec<_> =
        rows.lines().skip(200).take(10).map(|line| line.split(',').next().unwrap()).collect();
    let labels = serde_json::json!({
        "realA/one.csv": [[disturbed[0], disturbed[9]]], "realB/one.csv": [],
    });
    fs::write(folder.path().join("labels.json"), labels.to_string()).unwrap();

    let report = evaluate("nab", &data, Some(&folder.path().join("labels.json")), &out);

    assert_eq!((&report["series"], &report["rows"]), (&2.into(), &800.into()));
    assert!(report["nab"].is_object() && report["f1"].is_number(), "{report}");
    assert!((0.0..=1.0).contains(&report["roc_auc"].as_f64().unwrap()), "{report}");
    for group in ["realA", "realB"] {
        assert_scored(&out.join(group).join("one.csv"), &text, "timestamp", ',');
    }
}

#[test]
fn evaluate_scores_every_row_of_a_skab_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    let rows = series(1200, |time, value, disturbed| {
        let label = u8::from(disturbed);
        format!("{time};{value};{};{label}.0;0.0", 2.0 - value)
    });
    let text = format!("datetime;Current;Pressure;anomaly;changepoint\n{rows}");
    fs::create_dir_all(data.join("valve1")).unwrap();
    fs::write(data.join("valve1/0.csv"), &text).unwrap();

    let report = evaluate("skab", &data, None, &out);

    assert_eq!((&report["series"], &report["rows"]), (&1.into(), &1200.into()));
    for measure in ["f1", "far_percent", "mar_percent", "roc_auc", "auc_pr", "vus_pr"] {
        assert!(report[measure].is_number(), "{measure}: {report}");
    }
    assert_scored(&out.join("valve1/0.csv"), &text, "datetime", ';');
}

#[test]
fn metrics_and_health_are_served_while_it_runs_and_a_load_does_not_delay_its_end() {
    // Without end, as fast as it can be taken.
    let plant = Plant::over("served", "kind = \"generator\"\nmachines = 20");
    let mut program = plant.run();
    program.wait_ready();
    program.wait_metric("contrastream_sink_segments_total", 1000.0);

    assert_eq!(program.get("/healthz").unwrap(), (200, "ok\n".to_owned()));
    assert_eq!(program.get("/readyz").unwrap().0, 200);
    assert_eq!(program.get("/no-such-page").unwrap().0, 404);
    let (status, text) = program.get("/metrics").unwrap();
    assert_eq!(status, 200);
    for metric in METRICS.iter().filter(|metric| metric.kind == Kind::Counter) {
        let name = metric.name;
        assert!(text.contains(&format!("# TYPE {name} counter")), "{name}\n{text}");
        assert!(text.contains(&format!("# HELP {name} {}", metric.help)), "{name}\n{text}");
        assert!(
            text.contains(&format!("{name}{{pipeline=\"{}\"}} ", plant.name)),
            "{name}\n{text}"
        );
    }

    let ended = program.terminate().exits(0);
    assert_eq!(parquet(&plant.out()).len() as u64, ended.total("segments"));
}

#[test]
fn log_lines_are_json_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path(), 500, &[]);
    let plant = Plant::over_files("log", folder.path());
    let mut command = plant.command("run");
    command.args(["--log-format", "json"]);
    let ended = Program::start(command).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.lines().count() >= 2, "{}", ended.stderr);
    for line in ended.stderr.lines() {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
}
