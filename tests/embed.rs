//! `contrastream embed` and `similar`, and the trajectories of a pipeline that runs.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Int64Type};
use common::{Finished, Machines, Plant, Program, finish};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

const MACHINES: usize = 3;
const SECONDS: usize = 400;

/// A pipeline that ran over a file of readings.
fn ran() -> (Plant, PathBuf) {
    let folder = tempfile::tempdir().unwrap().keep();
    let readings = folder.join("readings.jsonl");
    let records = Machines::new(MACHINES).next(SECONDS);
    let lines: Vec<String> = records.into_iter().map(|(_, record)| record).collect();
    fs::write(&readings, lines.join("\n")).unwrap();
    let plant = Plant::over_files("history", &readings);
    plant.run().wait().exits(0);
    (plant, readings)
}

fn embed(plant: &Plant, readings: &Path, output: &Path, more: &[&str]) -> Finished {
    let mut command = plant.command("embed");
    command.args(["--checkpoint", "latest"]).arg("--input").arg(readings);
    command.arg("--output").arg(output).args(more);
    Program::start(command).wait()
}

fn similar(folder: &Path, more: &[&str]) -> Finished {
    let arguments = [OsStr::new("similar"), OsStr::new("--embeddings"), folder.as_os_str()];
    finish(arguments.into_iter().chain(more.iter().map(OsStr::new)))
}

/// The rows of all Parquet files below a folder.
fn rows(folder: &Path) -> Vec<RecordBatch> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension() == Some(OsStr::new("parquet")) {
                files.push(path);
            }
        }
    }
    files.sort();
    let read = |path: PathBuf| {
        let file = File::open(path).unwrap();
        ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap()
    };
    files.into_iter().flat_map(read).map(Result::unwrap).collect()
}

fn integers(batches: &[RecordBatch], column: &str) -> Vec<i64> {
    let of = |batch: &RecordBatch| batch[column].as_primitive::<Int64Type>().values().to_vec();
    batches.iter().flat_map(of).collect()
}

fn keys(batches: &[RecordBatch]) -> Vec<String> {
    let of = |batch: &RecordBatch| {
        let keys = cast(&batch["key"], &DataType::Utf8).unwrap();
        let keys = keys.as_string::<i32>();
        keys.iter().map(|key| key.unwrap().to_owned()).collect::<Vec<_>>()
    };
    batches.iter().flat_map(of).collect()
}

#[test]
fn a_history_is_embedded_by_one_model_and_its_neighbours_are_found() {
    let (plant, readings) = ran();
    let output = plant.folder.path().join("history");
    let said = embed(&plant, &readings, &output, &[]).exits(0).stderr;
    assert!(said.contains("1200 records"), "{said}");

    let (live, history) = (rows(&plant.out()), rows(&output));
    let versions = integers(&history, "model_version");
    assert_eq!(versions.len(), integers(&live, "model_version").len());
    assert!(versions[0] > 0 && versions.iter().all(|version| *version == versions[0]));

    let found = similar(&output, &["--key", "press-1", "-k", "5", "--json", "--other-keys"]);
    let lines: Vec<Value> =
        found.exits(0).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    let cosines: Vec<f64> = lines.iter().map(|line| line["cosine"].as_f64().unwrap()).collect();
    assert!(cosines.windows(2).all(|pair| pair[0] >= pair[1]) && cosines[0] <= 1.00001);
    assert!(lines.iter().all(|line| line["key"] != "press-1"));

    // What the service wrote comes of many versions.
    let said = similar(&plant.out(), &["--key", "press-1"]).exits(0);
    assert!(said.stderr.contains("several versions of the model"), "{}", said.stderr);
    assert_eq!(said.stdout.lines().count(), 11);
}

#[test]
fn keys_as_a_whole_are_one_row_each() {
    let (plant, readings) = ran();
    for pool in ["mean", "attention"] {
        let output = plant.folder.path().join(pool);
        embed(&plant, &readings, &output, &["--by", "key", "--pool", pool]).exits(0);
        let trajectories = rows(&output);
        let mut found = keys(&trajectories);
        found.sort();
        assert_eq!(found, ["press-0", "press-1", "press-2"]);
        for batch in &trajectories {
            let embeddings = batch["embedding"].as_fixed_size_list();
            for row in 0..batch.num_rows() {
                let values = embeddings.value(row);
                let values = values.as_primitive::<Float32Type>().values();
                let length: f32 = values.iter().map(|value| value * value).sum();
                assert!((length - 1.0).abs() < 1e-5);
            }
        }
        let near = similar(&output, &["--by", "key", "--key", "press-0", "--json"]).exits(0);
        assert_eq!(near.stdout.lines().count(), MACHINES - 1);
    }
}

#[test]
fn what_cannot_be_embedded_or_compared_says_why() {
    let (mut plant, readings) = ran();
    let output = plant.folder.path().join("history");
    embed(&plant, &readings, &output, &[]).exits(0);
    let again = embed(&plant, &readings, &output, &[]).exits(1);
    assert!(again.error().contains("expected an empty folder"), "{}", again.error());

    let other = similar(&output, &["--key", "press-9"]).exits(1);
    assert!(other.error().contains("no segment of key \"press-9\""), "{}", other.error());
    let never = similar(&output, &["--key", "press-1", "--at", "1999-01-01T00:00:00Z"]).exits(1);
    assert!(never.error().contains("its latest is from"), "{}", never.error());
    similar(&output, &["--key", "press-1", "--at", "noon"]).exits(2);
    let days = similar(&output, &["--key", "press-1", "--by", "day"]).exits(1);
    assert!(days.error().contains("no embeddings by day"), "{}", days.error());

    plant.set("model.hidden=16");
    let resized = embed(&plant, &readings, &plant.folder.path().join("resized"), &[]).exits(1);
    assert!(resized.error().contains("the saved model has weights"), "{}", resized.error());
}

/// Readings of each machine every ten minutes for `days`, with a silence of a day after the first.
fn readings_of_days(path: &Path, days: usize) {
    let mut lines = Vec::new();
    for sample in 0..days * 144 {
        let silence = if sample >= 144 { 86_400 } else { 0 };
        for machine in 0..MACHINES {
            let record = common::reading(&format!("press-{machine}"), sample, machine as f64);
            let mut record: Value = serde_json::from_str(&record).unwrap();
            let time = 1_767_225_600 + sample as i64 * 600 + silence;
            record["ts"] = time.into();
            lines.push(record.to_string());
        }
    }
    fs::write(path, lines.join("\n")).unwrap();
}

/// Per (kind, key, start): everything of a trajectory, as text.
fn trajectories(plant: &Plant) -> BTreeMap<(String, String, i64), String> {
    let mut found = BTreeMap::new();
    for kind in ["day", "stay"] {
        for batch in rows(&plant.out().join("trajectories").join(format!("by={kind}"))) {
            let starts = cast(&batch["start"], &DataType::Int64).unwrap();
            let starts = starts.as_primitive::<Int64Type>();
            let keys = batch["key"].as_string::<i32>();
            // Named by run, and not a part of what is compared.
            let rest = batch.project(&(2..batch.num_columns()).collect::<Vec<_>>()).unwrap();
            for row in 0..batch.num_rows() {
                let place = (kind.to_owned(), keys.value(row).to_owned(), starts.value(row));
                let text = format!("{:?}", rest.slice(row, 1));
                assert_eq!(found.insert(place.clone(), text), None, "{place:?} twice");
            }
        }
    }
    found
}

#[test]
fn days_and_stays_come_out_once_though_the_service_dies_at_every_step() {
    const DAYS: usize = 4;
    let folder = tempfile::tempdir().unwrap();
    let readings = folder.path().join("readings.jsonl");
    readings_of_days(&readings, DAYS);
    let plant = |name: &str| {
        let source = format!("kind = \"file\"\npath = {readings:?}\nbatch_rows = 32");
        let mut plant = Plant::over(name, &source);
        plant.set("http.listen=\"\"");
        plant.set("checkpoint.interval=2ms");
        plant.set("training.max_share=1.0");
        plant.set("sink.parquet.trajectories=[\"day\", \"stay\"]");
        plant.set("sink.parquet.stay_gap=6h");
        // States of keys go to the store and come back.
        plant.set("windows.max_keys=2");
        plant
    };
    let whole = plant("whole");
    whole.run().wait().exits(0);
    let expected = trajectories(&whole);
    let of_kind = |kind: &str| expected.keys().filter(|(found, ..)| found == kind).count();
    assert_eq!((of_kind("day"), of_kind("stay")), (MACHINES * DAYS, MACHINES * 2));

    let broken = plant("broken");
    let mut died = 0;
    for (index, step) in
        ["commit.prepared", "commit.done", "publish.before", "publish.after"].iter().enumerate()
    {
        let mut command = broken.command("run");
        command.env("FAILPOINTS", format!("{step}={}*off->return(kill)", index + 1));
        died += usize::from(Program::start(command).wait().signal.is_some());
    }
    assert!(died > 0);
    broken.run().wait().exits(0);
    assert_eq!(trajectories(&broken), expected);
}
