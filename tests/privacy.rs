//! With `records.key_hash`, nothing that leaves the process tells who a record is about.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{
    PATIENCE, Plant, Program, brokers, create_topic, finish, is_done, producer, python, read,
    repository,
};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use serde_json::json;

const SALT: &str = "a salt that must not be seen either";
/// Part of everything raw that a person could be known by.
const RAW: &str = "Zyxwv";
const PARTITIONS: i32 = 2;
const PATIENTS: usize = 3;
const READINGS: usize = 120;

/// A message: its key, its value.
type Raw = (Vec<u8>, Vec<u8>);

fn key(patient: usize) -> String {
    format!("Patient/{RAW}-{patient}")
}

/// Runs a pipeline over messages, the last `bad` of which cannot be read, and looks for [`RAW`] and
/// [`SALT`] in everything that comes out.
fn nothing_leaks(mut plant: Plant, messages: &[Raw], bad: usize) {
    let topic = plant.topic("in");
    create_topic(&topic, PARTITIONS, &[]);
    for setting in [
        format!("source.brokers={}", brokers()),
        format!("source.topics=[\"{topic}\"]"),
        // What the client has to say, too.
        "source.properties.debug=all".to_owned(),
        format!("records.key_hash={SALT:?}"),
    ] {
        plant.set(setting);
    }
    let producer = producer();
    for (number, (key, value)) in messages.iter().enumerate() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "patient", value: Some(&format!("{RAW}-header")) })
            .insert(Header { key: &format!("{RAW}-name"), value: Some("1") });
        let record = BaseRecord::to(&topic).partition(number as i32 % PATIENTS as i32 % PARTITIONS);
        let record = record.key(key).payload(value).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();

    let mut command = plant.command("run");
    command.args(["--log-format", "json"]).env("RUST_LOG", "trace");
    let mut program = Program::start(command);
    program.until("everything committed", |_| {
        is_done(&plant.group(), &topic, PARTITIONS).then_some(())
    });
    let (_, metrics) = program.get("/metrics").unwrap();
    let ended = program.terminate().exits(0);

    let letters = read(&plant.topic("dead-letters"));
    let embeddings = read(&plant.topic("embeddings"));
    let anomalies = read(&plant.topic("anomalies"));
    assert_eq!(letters.len(), bad, "{letters:?}");
    assert!(embeddings.len() > 10 && embeddings.len() == anomalies.len());
    for letter in &letters {
        assert_eq!(letter.length, 0, "{letter:?}");
        let reason = &letter.headers["contrastream.reason"];
        assert!(reason.contains("expected "), "{letter:?}");
        let added = letter.headers.keys().all(|name| name.starts_with("contrastream."));
        assert!(added, "{letter:?}");
    }
    for message in embeddings.iter().chain(&anomalies) {
        let (key, _) = message.segment();
        assert!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    }

    let state = plant.state();
    let exported = plant.folder.path().join("exported");
    let (state_text, exported_text) = (state.to_str().unwrap(), exported.to_str().unwrap());
    let shown = finish(["checkpoint", "show", state_text]).exits(0);
    let listed = finish(["checkpoint", "list", state_text]).exits(0);
    let export = finish(["checkpoint", "export", state_text, "--to", exported_text]).exits(0);
    assert!(metrics.contains("contrastream_source_records_total"), "{metrics}");
    // Far more is logged than anyone would ask for.
    assert!(ended.stderr.lines().count() > 1000, "{}", ended.stderr);
    for (what, text) in [
        ("log", &ended.stderr),
        ("standard output", &ended.stdout),
        ("metrics", &metrics),
        ("dead letters", &format!("{letters:?}")),
        ("embeddings", &format!("{embeddings:?}")),
        ("anomalies", &format!("{anomalies:?}")),
        ("checkpoint show", &shown.stdout),
        ("checkpoint list", &listed.stdout),
        ("checkpoint export", &export.stdout),
        ("Parquet", &all_parquet(&plant.out())),
    ] {
        assert_clean(what, text.as_bytes());
    }
    let mut files = 0;
    for folder in [&state, &exported, &plant.out()] {
        for_each_file(folder, &mut |path| {
            assert_clean(&path.display().to_string(), &fs::read(path).unwrap());
            assert_clean("the name of a file", path.as_os_str().as_encoded_bytes());
            files += 1;
        });
    }
    assert!(files > 3, "{files} files");
}

#[track_caller]
fn assert_clean(what: &str, bytes: &[u8]) {
    for secret in [RAW, SALT] {
        let found = bytes
            .windows(secret.len())
            .position(|part| part.eq_ignore_ascii_case(secret.as_bytes()));
        if let Some(at) = found {
            let around = &bytes[at.saturating_sub(200)..bytes.len().min(at + 200)];
            panic!("{what} tells {secret}: {}", String::from_utf8_lossy(around));
        }
    }
}

fn for_each_file(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { for_each_file(&path, visit) } else { visit(&path) }
    }
}

/// Every row of every Parquet file below a folder.
fn all_parquet(folder: &Path) -> String {
    const PROGRAM: &str = "
import pathlib, sys
import pyarrow.parquet
for path in sorted(pathlib.Path(sys.argv[1]).rglob('*.parquet')):
    print(path, pyarrow.parquet.read_metadata(path))
    for row in pyarrow.parquet.ParquetFile(path).read().to_pylist():
        print(row)
";
    python(PROGRAM, &[folder.as_os_str()])
}

#[test]
fn patients_in_fhir_leave_as_pseudonyms_only() {
    let mut plant = Plant::new("fhir-privacy");
    let file = plant.folder.path().join("plant.toml");
    fs::copy(repository("pipelines/medical.toml"), file).unwrap();
    plant.set("windows.lateness=1h");
    plant.set("windows.max_gap=12h");

    let observation = |patient: usize, reading: usize| {
        let minutes = reading * 15;
        let (day, hour, minute) = (1 + minutes / 1440, minutes / 60 % 24, minutes % 60);
        json!({
            "resourceType": "Observation",
            "status": "final",
            "text": {"div": format!("{RAW} is well")},
            "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
            "subject": {"reference": key(patient), "display": RAW},
            "effectiveDateTime": format!("2026-01-{day:02}T{hour:02}:{minute:02}:00Z"),
            "valueQuantity": {"value": 70 + reading % 5, "unit": "/min"},
        })
    };
    let mut messages: Vec<Raw> = Vec::new();
    for reading in 0..READINGS {
        for patient in 0..PATIENTS {
            let message = observation(patient, reading).to_string();
            messages.push((key(patient).into_bytes(), message.into_bytes()));
        }
    }
    let good = observation(0, 0);
    let with = |name: &str, value: serde_json::Value| {
        let mut bad = good.clone();
        bad[name] = value;
        bad.to_string().into_bytes()
    };
    let cut = messages[0].1[..200].to_vec();
    let bad: Vec<Vec<u8>> = vec![
        RAW.as_bytes().to_vec(),
        format!("{{\"{RAW}\": \"{RAW}\"}}").into_bytes(),
        format!("[\"{RAW}\"]").into_bytes(),
        [RAW.as_bytes(), b"\xff\xfe"].concat(),
        cut,
        with("resourceType", json!({RAW: RAW})),
        with("subject", json!(RAW)),
        with("subject", json!({"reference": [RAW]})),
        with("subject", json!({"reference": RAW.repeat(2000)})),
        with("effectiveDateTime", json!(RAW)),
        with("code", json!(RAW)),
        with("component", json!(RAW)),
        with("valueQuantity", json!(RAW)),
        with("valueQuantity", json!({"value": RAW})),
        with("valueQuantity", json!({"value": 7, "unit": RAW})),
        json!({"resourceType": "Bundle", "entry": RAW}).to_string().into_bytes(),
        json!({"resourceType": "Bundle", "entry": [RAW, {"resource": RAW}]})
            .to_string()
            .into_bytes(),
    ];
    let count = bad.len();
    messages.extend(bad.into_iter().map(|value| (key(0).into_bytes(), value)));
    nothing_leaks(plant, &messages, count);
}

#[test]
fn keys_of_messages_leave_as_pseudonyms_only() {
    let mut plant = Plant::new("json-privacy");
    let file = "name = \"plant\"\n\
                [source]\nkind = \"kafka\"\nbrokers = \"\"\ntopics = []\n\
                [records]\ntime = \"ts\"\nchannels = [\"temperature\"]\n\
                [sink.kafka]\n[sink.parquet]\npath = \"out\"\n";
    fs::write(plant.folder.path().join("plant.toml"), file).unwrap();
    plant.set("windows.max_gap=1h");

    let mut messages: Vec<Raw> = Vec::new();
    for reading in 0..READINGS {
        for patient in 0..PATIENTS {
            let time = 1_767_225_600 + reading;
            let value =
                json!({"ts": time, "temperature": 36.5 + reading as f64 / 100.0, "name": RAW});
            messages.push((key(patient).into_bytes(), value.to_string().into_bytes()));
        }
    }
    let good = format!("{{\"ts\":1767225600,\"temperature\":37,\"name\":\"{RAW}\"}}").into_bytes();
    let of = |text: String| (key(0).into_bytes(), text.into_bytes());
    let bad: Vec<Raw> = vec![
        of(RAW.to_owned()),
        of(format!("{{\"{RAW}\":1}}")),
        of(format!("{{\"ts\":\"{RAW}\",\"temperature\":1}}")),
        of(format!("{{\"ts\":1,\"temperature\":\"{RAW}\"}}")),
        of(format!("{{\"ts\":1,\"temperature\":1}} {RAW}")),
        of(format!("{{\"ts\":1,\"temperature\":{RAW}}}")),
        of(format!("{{\"ts\":1,\"{RAW}")),
        ([RAW.as_bytes(), b"\xff"].concat(), good.clone()),
        (RAW.repeat(2000).into_bytes(), good),
    ];
    let count = bad.len();
    messages.extend(bad);
    nothing_leaks(plant, &messages, count);
}
