//! `contrastream checkpoint`: what it says of a store, whole or damaged.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::{LATENESS, LENGTH, Machines, Plant, STRIDE, finish, variable};

const MACHINES: usize = 3;
const SECONDS: usize = 400;
/// Beyond the last record, for the end of the file is behind it too.
const NEXT_OFFSET: usize = MACHINES * SECONDS + 1;

/// A pipeline that ran over a file, and its store.
fn ran() -> (Plant, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("readings.jsonl");
    let lines: Vec<_> =
        Machines::new(MACHINES).next(SECONDS).into_iter().map(|(_, record)| record).collect();
    fs::write(&records, lines.join("\n")).unwrap();
    let mut plant = Plant::over_files("state", &records);
    plant.set("training.max_share=1.0");
    plant.run().wait().exits(0);
    let state = plant.state();
    (plant, state)
}

/// Names of the objects of a kind, the oldest first.
fn objects(state: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        entries.filter(|path| path.to_str().unwrap().ends_with(suffix)).collect();
    found.sort();
    found
}

fn id(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_list_tells_when_each_checkpoint_was_made_how_large_it_is_and_whether_it_is_whole() {
    let (plant, state) = ran();
    let checkpoints = objects(&state, ".checkpoint");
    let newest = checkpoints.last().unwrap();
    let listed = finish(["checkpoint", "list", state.to_str().unwrap()]).exits(0).stdout;
    let mut lines = listed.lines();
    let headings: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(headings, ["ID", "TIME", "PIPELINE", "LANES", "BYTES", "OK"]);
    assert_eq!(lines.clone().count(), checkpoints.len());
    let last: Vec<_> = lines.next_back().unwrap().split_whitespace().collect();
    assert_eq!((last[0], last[2], last[3], last[5]), (&*id(newest), &*plant.name, "1", "yes"));
    chrono::DateTime::parse_from_rfc3339(last[1]).unwrap();
    assert!(last[4].parse::<u64>().unwrap() > fs::metadata(newest).unwrap().len());

    // The pipeline file names the same store.
    let file = plant.folder.path().join("named.toml");
    let text = fs::read_to_string(plant.folder.path().join("plant.toml")).unwrap();
    fs::write(&file, format!("{text}[checkpoint]\nstore = {state:?}\n")).unwrap();
    let by_file = finish(["checkpoint", "list", file.to_str().unwrap()]).exits(0).stdout;
    assert_eq!(by_file, listed);

    flip(newest, 100);
    let listed = finish(["checkpoint", "list", state.to_str().unwrap()]).exits(0).stdout;
    let last = listed.lines().next_back().unwrap();
    assert!(last.starts_with(&id(newest)), "{listed}");
    assert!(last.contains("no: ") && last.contains("checksum does not match"), "{listed}");
}

#[test]
fn the_newest_checkpoint_is_shown_with_its_lanes_and_its_model() {
    let (plant, state) = ran();
    let newest = objects(&state, ".checkpoint").pop().unwrap();
    let shown = finish(["checkpoint", "show", state.to_str().unwrap()]).exits(0).stdout;
    let named = finish(["checkpoint", "show", state.to_str().unwrap(), &id(&newest)]).exits(0);
    assert_eq!(shown, named.stdout);
    let segments = MACHINES * ((SECONDS - LENGTH) / STRIDE + 1);
    let steps = segments / 16;
    let watermark = chrono::DateTime::from_timestamp(1_767_225_600 + SECONDS as i64 - 1, 0);
    let watermark = watermark.unwrap() - chrono::Duration::seconds(LATENESS as i64);
    for line in [
        format!("checkpoint: {}\n", id(&newest)),
        format!("pipeline: {}\n", plant.name),
        format!("model: version {steps}, {segments} segments seen, 0 steps left out, "),
        format!("segments: 5 channels, {LENGTH} samples, every {STRIDE}\n"),
        "queue: 64 negatives, ".to_owned(),
        format!(
            "  readings.jsonl[0]: next offset {NEXT_OFFSET}, watermark {}, {MACHINES} keys in windows, \
             {MACHINES} in the model\n",
            watermark.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
        ),
        "staged files: 1\n  _staging/".to_owned(),
    ] {
        assert!(shown.contains(&line), "{line:?}\n{shown}");
    }
}

#[test]
fn verification_reads_what_every_checkpoint_needs_and_names_what_is_corrupt() {
    let (_plant, state) = ran();
    let place = state.to_str().unwrap();
    let newest = objects(&state, ".checkpoint").pop().unwrap();
    let whole = finish(["checkpoint", "verify", place]).exits(0);
    assert!(whole.stdout.contains(&format!("{}: ok\n", id(&newest))), "{}", whole.stdout);

    // The first state of a key comes after the part's header.
    let part = objects(&state, ".part").pop().unwrap();
    flip(&part, 20);
    let corrupt = finish(["checkpoint", "verify", place]).exits(1);
    assert!(corrupt.stdout.contains(": corrupt\n"), "{}", corrupt.stdout);
    assert!(corrupt.error().contains(part.to_str().unwrap()), "{}", corrupt.error());
    flip(&part, 20);
    finish(["checkpoint", "verify", place]).exits(0);

    flip(&newest, 200);
    let corrupt = finish(["checkpoint", "verify", place]).exits(1);
    assert!(corrupt.error().contains(newest.to_str().unwrap()), "{}", corrupt.error());
    flip(&newest, 200);

    fs::remove_file(&part).unwrap();
    let missing = finish(["checkpoint", "verify", place]).exits(1);
    assert!(missing.error().contains(part.to_str().unwrap()), "{}", missing.error());
}

#[test]
fn an_exported_model_is_read_by_numpy_with_the_shapes_it_was_trained_in() {
    let (plant, state) = ran();
    let to = plant.folder.path().join("exported");
    let arguments = ["checkpoint", "export", state.to_str().unwrap(), "--to", to.to_str().unwrap()];
    finish(arguments).exits(0);

    let description: Value =
        serde_json::from_slice(&fs::read(to.join("checkpoint.json")).unwrap()).unwrap();
    assert_eq!(description["pipeline"], plant.name);
    assert_eq!(description["model"]["channels"], 5);
    assert_eq!(description["lanes"][0]["next_offset"], NEXT_OFFSET);

    // The format as its documentation has it, read by other means.
    const READ: &str = r#"
import json, sys
import numpy
names = []
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        values = numpy.frombuffer(data[8 + length:][start:end], "<f4").reshape(entry["shape"])
        assert numpy.isfinite(values).all(), name
        tensors[name] = values
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(data) - 8 - length
    names.append({name: tensor.shape for name, tensor in tensors.items()})
# What is published is turned, by a rotation that the momentum model has no use for.
assert names[0] == names[1] | {"frame.rotation": names[0].get("frame.rotation")}
print(json.dumps(names[0]))
"#;
    let mut python = Command::new(variable("CONTRASTREAM_TEST_PYTHON"));
    python.args(["-c", READ]);
    let read = python.arg(to.join("model.safetensors")).arg(to.join("momentum.safetensors"));
    let read = read.output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_slice(&read.stdout).unwrap();
    // As the pipeline has it: 5 channels with their masks, 8 hidden, 8 to embed, 8 to project.
    for (name, shape) in [
        ("encoder.lift.taps.0", &[10, 8][..]),
        ("encoder.lift.bias", &[1, 8]),
        ("encoder.blocks.0.taps.2", &[8, 8]),
        ("encoder.head.weights", &[16, 8]),
        ("norm.variance", &[8]),
        ("projection.0.weights", &[8, 8]),
        ("projection.0.bias", &[1, 8]),
        ("frame.rotation", &[8, 8]),
    ] {
        assert_eq!(shapes.get(name).map(Vec::as_slice), Some(shape), "{name}: {shapes:?}");
    }
}

#[test]
fn a_store_or_checkpoint_that_is_not_there_is_named_and_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    for command in ["list", "show", "verify"] {
        let ended = finish(["checkpoint", command, missing.to_str().unwrap()]).exits(1);
        assert!(ended.error().contains(missing.to_str().unwrap()), "{}", ended.error());
    }
    assert!(!missing.exists());
    let empty = folder.path().to_str().unwrap();
    let ended = finish(["checkpoint", "show", empty, "17-1"]).exits(1);
    assert_eq!(ended.error(), format!("error: {empty}: no checkpoint 17-1"));
    let ended = finish(["checkpoint", "list", "gs://bucket/state"]).exits(2);
    assert!(ended.error().contains("s3://bucket/prefix"), "{}", ended.error());
}
