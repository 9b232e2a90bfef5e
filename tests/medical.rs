//! `pipelines/medical.toml` and `pipelines/waveform.toml`, on generated patients and waveforms.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::{Plant, brokers, create_topic, finish, is_done, parquet, python, read, repository};
use serde_json::Value;

const SALT: &str = "a salt for tests, not a secret";
const PARTITIONS: i32 = 3;
const BEDS: &str = "4";

/// `pipelines/medical.toml` with short windows and a small model.
fn ward(name: &str) -> Plant {
    let mut plant = Plant::new(name);
    let file = plant.folder.path().join("plant.toml");
    fs::copy(repository("pipelines/medical.toml"), file).unwrap();
    settle(&mut plant);
    plant.set("windows.lateness=1h");
    plant.set("windows.max_gap=12h");
    plant
}

fn settle(plant: &mut Plant) {
    plant.set(format!("records.key_hash={SALT:?}"));
    plant.set("sink.parquet.trajectories=[]");
}

fn generate(to: &str, count: &str, more: &[&str]) {
    let arguments =
        ["generate", "--kind", "medical", "--to", to, "--count", count, "--machines", BEDS];
    finish(arguments.iter().chain(more)).exits(0);
}

/// The pseudonym of a key under [`SALT`], by another implementation.
fn pseudonym(key: &str) -> String {
    const PROGRAM: &str = "
import hmac, sys
salt, key = (text.encode() for text in sys.argv[1:])
print(hmac.new(salt, key, 'sha256').hexdigest()[:32])
";
    python(PROGRAM, &[SALT.as_ref(), key.as_ref()]).trim().to_owned()
}

fn keys<'a>(rows: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    rows.into_iter().map(|row| row["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn observations_of_a_topic_become_embeddings_and_scores_of_pseudonyms() {
    let mut plant = ward("ward");
    let topic = plant.topic("observations");
    create_topic(&topic, PARTITIONS, &[]);
    plant.set(format!("source.brokers={}", brokers()));
    plant.set(format!("source.topics=[\"{topic}\"]"));
    let faults = plant.folder.path().join("faults.jsonl");
    let to = format!("kafka://{}/{topic}", brokers());
    generate(&to, "8000", &["--faults", faults.to_str().unwrap(), "--fault-every", "12h"]);

    let mut program = plant.run();
    program.until("everything committed", |_| {
        is_done(&plant.group(), &topic, PARTITIONS).then_some(())
    });
    // Whatever unit it came in, a value lies within the bounds of its channel.
    let out_of_range = program.metric("contrastream_decode_out_of_range_values_total");
    assert_eq!(out_of_range.unwrap_or(0.0), 0.0);
    let ended = program.terminate().exits(0);
    assert_eq!((ended.total("dead_letters"), ended.total("late_records")), (0, 0));
    assert!(ended.total("segments") > 50, "{}", ended.stderr);

    let embeddings = read(&plant.topic("embeddings"));
    let anomalies = read(&plant.topic("anomalies"));
    let rows = parquet(&plant.out());
    assert_eq!(embeddings.len(), anomalies.len());
    assert_eq!(embeddings.len(), rows.len());
    let expected: BTreeSet<String> =
        (0..4).map(|bed| pseudonym(&format!("Patient/{:07}", bed * 1000 + 1))).collect();
    let found = keys(&rows);
    assert!(found.is_superset(&expected), "{expected:?} among {found:?}");
    for message in embeddings.iter().chain(&anomalies) {
        let (key, _) = message.segment();
        assert!(found.contains(&key), "{key}");
        assert!(!message.value.contains("Patient"), "{}", message.value);
    }
    let recorded = fs::read_to_string(faults).unwrap();
    assert!(recorded.contains("\"key\":\"Patient/"), "{recorded}");
}

/// The medical pipeline over a file of plain rows, to Parquet only.
fn over_rows(name: &str, path: &Path) -> Plant {
    let mut plant = Plant::new(name);
    let text = fs::read_to_string(repository("pipelines/medical.toml")).unwrap();
    let mut file: toml::Table = text.parse().unwrap();
    let source = format!("kind = \"file\"\npath = {path:?}");
    file.insert("source".to_owned(), source.parse::<toml::Table>().unwrap().into());
    for (field, name) in [("key", "patient"), ("time", "time"), ("unit", "unit")] {
        file["records"].as_table_mut().unwrap().insert(field.to_owned(), name.into());
    }
    file["sink"].as_table_mut().unwrap().remove("kafka");
    fs::write(plant.folder.path().join("plant.toml"), file.to_string()).unwrap();
    settle(&mut plant);
    plant.set("windows.lateness=1h");
    plant.set("windows.max_gap=12h");
    plant.set("http.listen=\"\"");
    plant
}

#[test]
fn plain_rows_in_json_and_csv_give_the_same_results() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = Vec::new();
    for (format, file) in [("json", "rows.jsonl"), ("csv", "rows.csv")] {
        let to = folder.path().join(format);
        generate(to.to_str().unwrap(), "12000", &["--format", format]);
        let plant = over_rows(format, &to.join(file));
        let ended = plant.run().wait().exits(0);
        assert_eq!(ended.total("dead_letters"), 0);
        let mut rows = parquet(&plant.out());
        for row in &mut rows {
            // What differs by the name of the pipeline, or of the file and its first line.
            for name in ["pipeline", "topic", "first_offset", "last_offset"] {
                row.as_object_mut().unwrap().remove(name);
            }
        }
        results.push(rows);
    }
    assert!(results[0].len() > 50, "{} rows", results[0].len());
    assert!(keys(&results[0]).contains(&pseudonym("Patient/0000001")));
    assert_eq!(results[0], results[1]);
}

#[test]
fn fhir_in_a_file_is_read_by_the_line() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path().to_str().unwrap(), "6000", &[]);
    let mut plant = over_rows("lines", &folder.path().join("observations.ndjson"));
    plant.set("source.format=fhir");
    let file = plant.folder.path().join("plant.toml");
    let mut text: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    for field in ["key", "time", "unit"] {
        text["records"].as_table_mut().unwrap().remove(field);
    }
    fs::write(file, text.to_string()).unwrap();

    let ended = plant.run().wait().exits(0);

    assert_eq!(ended.total("dead_letters"), 0);
    assert!(keys(&parquet(&plant.out())).contains(&pseudonym("Patient/0000001")));
}

#[test]
fn a_pipeline_without_its_salt_does_not_begin() {
    let path = repository("pipelines/medical.toml");
    let ended = finish(["check", path.to_str().unwrap()]).exits(2);
    assert!(ended.error().contains("CONTRASTREAM_KEY_SALT"), "{}", ended.stderr);
    let arguments = ["check", path.to_str().unwrap(), "--set", "records.key_hash=0123456789"];
    assert!(finish(arguments).exits(2).error().contains("at least 16 bytes"));
    let salt = format!("records.key_hash={SALT:?}");
    let arguments = ["check", path.to_str().unwrap(), "--print", "--set", &salt];
    let ended = finish(arguments).exits(0);
    assert!(!ended.stdout.contains(SALT), "{}", ended.stdout);
}

#[test]
fn a_waveform_is_replayed_by_the_number_of_its_samples() {
    const PROGRAM: &str = "
import math, sys
import pyarrow as pa, pyarrow.parquet
count = 360 * 60
beat = lambda at: math.exp(-(((at % 300) - 100) / 6) ** 2)
pa.parquet.write_table(pa.table({
    'record': ['100'] * count,
    'sample': pa.array(range(count), pa.int32()),
    'MLII_mV': pa.array([beat(at) + 0.01 * math.sin(at) for at in range(count)], pa.float32()),
    'V5_mV': pa.array([0.6 * beat(at - 4) + 0.01 * math.cos(at) for at in range(count)], pa.float32()),
}), sys.argv[1])
";
    let mut plant = Plant::new("waveform");
    let path = plant.folder.path().join("record.parquet");
    python(PROGRAM, &[path.as_os_str()]);
    fs::copy(repository("pipelines/waveform.toml"), plant.folder.path().join("plant.toml"))
        .unwrap();
    plant.set(format!("source.path={}", path.display()));
    for setting in ["source.speed=0", "windows.length=48", "windows.stride=6", "http.listen=\"\""] {
        plant.set(setting);
    }

    plant.run().wait().exits(0);

    let rows = parquet(&plant.out());
    // A minute, on a grid of 60 a second.
    const BIN_MICROS: usize = 16_666;
    assert_eq!(rows.len(), (3600 - 48) / 6 + 1);
    assert_eq!(keys(&rows), BTreeSet::from(["100".to_owned()]));
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row["window_start"], number * 6 * BIN_MICROS);
        assert_eq!(row["window_end"], (number * 6 + 47) * BIN_MICROS);
    }
}
