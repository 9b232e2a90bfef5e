//! The Parquet output as readers see it that know nothing of contrastream.

use std::path::Path;
use std::process::Command;

use contrastream::config::{self, ByteSize, PartitionColumn, Pipeline};
use contrastream::decode::DeadLetter;
use contrastream::sink::{
    Cause, ModelVersion, Outputs, ParquetSink, Score, SegmentMeta, Sink as _,
};
use contrastream::source::Lane;
use tempfile::TempDir;

const EMBEDDING: usize = 4;
/// 2026-01-31T12:00:00Z.
const NOON: i64 = 1_769_860_800_000_000;
const HOUR: i64 = 3_600_000_000;

/// Runs a Python script with `folder` as its argument; fails with what it printed.
fn python(folder: &Path, script: &str) {
    let python = std::env::var_os("CONTRASTREAM_TEST_PYTHON").expect(
        "CONTRASTREAM_TEST_PYTHON is not set: run `make test`, or \
         `export CONTRASTREAM_TEST_PYTHON=$(scripts/venv)`",
    );
    let output = Command::new(&python).arg("-c").arg(script).arg(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", python.display()));
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn sink(folder: &TempDir, partition_by: &[PartitionColumn]) -> ParquetSink {
    let pipeline: Pipeline = toml::from_str(
        r#"
        name = "plant"
        source = { kind = "generator" }
        records = { time = "ts", channels = ["temperature", "pressure"] }
        "#,
    )
    .expect("a valid pipeline file");
    let config = config::ParquetSink {
        path: folder.path().to_owned().into(),
        partition_by: partition_by.to_vec(),
        roll: ByteSize::mib(128),
        trajectories: Vec::new(),
        stay_gap: config::TimeSpan::from_secs(86_400),
    };
    ParquetSink::open(&config, &pipeline, EMBEDDING).expect("a folder to write to")
}

/// 200 segments of two keys, an hour apart, from noon on; every 50th is an alert.
fn outputs() -> Outputs {
    let mut outputs =
        Outputs { model_version: ModelVersion { steps: 42, wander: 0.25 }, ..Outputs::default() };
    for row in 0..200 {
        let end = NOON + row as i64 / 2 * HOUR;
        outputs.segments.push(SegmentMeta {
            key: if row % 2 == 0 { "press/4" } else { "pump" }.into(),
            lane: Lane::new("plant.sensors", 3),
            sequence: row / 2,
            window_start: end - 63_000_000,
            window_end: end,
            first_offset: 8 * row as i64,
            last_offset: 8 * row as i64 + 63,
        });
        outputs.embeddings.extend([0.5, -0.5, 0.5, 0.5]);
        let alert = row % 50 == 0;
        outputs.scores.push(Score {
            score: row as f64 / 200.0,
            p_value: 1.0 - row as f64 / 200.0,
            surprise: 1.5,
            distance: 0.25,
            residual: 2.0,
            alert,
            alert_id: alert.then(|| format!("alert-{row}")),
            causes: if alert {
                vec![
                    Cause { channel: "pressure".into(), share: 0.75 },
                    Cause { channel: "temperature".into(), share: 0.25 },
                ]
            } else {
                Vec::new()
            },
            missing: if alert { vec!["speed".into()] } else { Vec::new() },
            turn: alert,
            warm: row >= 10,
        });
    }
    outputs
}

#[test]
fn pyarrow_reads_every_row_with_the_documented_schema() {
    let folder = TempDir::new().expect("a folder");
    let mut sink = sink(&folder, &[PartitionColumn::Date]);
    sink.write(&outputs()).expect("written");
    sink.flush().expect("flushed");

    python(
        folder.path(),
        r#"
import datetime, sys
import pyarrow as pa
import pyarrow.parquet as pq

name = pa.dictionary(pa.int32(), pa.string())
time = pa.timestamp("us", tz="UTC")
cause = pa.struct([pa.field("channel", pa.string(), False), pa.field("share", pa.float32(), False)])
expected = {
    "pipeline": name, "key": name, "topic": name, "partition": pa.int32(), "sequence": pa.int64(),
    "window_start": time, "window_end": time, "first_offset": pa.int64(), "last_offset": pa.int64(),
    "model_version": pa.int64(), "embedding": pa.list_(pa.float32(), 4), "score": pa.float64(),
    "p_value": pa.float64(), "surprise": pa.float32(), "distance": pa.float32(),
    "residual": pa.float32(), "alert": pa.bool_(), "alert_id": pa.string(),
    "causes": pa.list_(cause), "missing": pa.list_(pa.string()), "warm": pa.bool_(),
    "change_point": pa.bool_(), "wander": pa.float32(), "date": pa.dictionary(pa.int32(), pa.string()),
}
table = pq.read_table(sys.argv[1])
assert {field.name: field.type for field in table.schema} == expected, table.schema
assert table.num_rows == 200

rows = sorted(table.to_pylist(), key=lambda row: (row["sequence"], row["key"]))
first = rows[0]
noon = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.timezone.utc)
assert first["key"] == "press/4" and first["topic"] == "plant.sensors" and first["pipeline"] == "plant"
assert first["window_end"] == noon, first["window_end"]
assert first["window_start"] == noon - datetime.timedelta(seconds=63)
assert first["embedding"] == [0.5, -0.5, 0.5, 0.5]
assert first["change_point"] and first["alert"] and first["alert_id"] == "alert-0" and not first["warm"]
assert first["causes"] == [{"channel": "pressure", "share": 0.75}, {"channel": "temperature", "share": 0.25}]
assert first["model_version"] == 42 and first["wander"] == 0.25 and first["partition"] == 3
assert rows[1]["alert_id"] is None and rows[1]["causes"] == []
assert [row["score"] for row in rows] == [i / 200 for i in range(200)]
assert all(str(row["window_end"].date()) == row["date"] for row in rows)
"#,
    );
}

#[test]
fn pandas_reads_the_folder() {
    let folder = TempDir::new().expect("a folder");
    let mut sink = sink(&folder, &[PartitionColumn::Date]);
    sink.write(&outputs()).expect("written");
    sink.flush().expect("flushed");

    python(
        folder.path(),
        r#"
import sys
import numpy as np
import pandas as pd

frame = pd.read_parquet(sys.argv[1])
assert len(frame) == 200
assert isinstance(frame["key"].dtype, pd.CategoricalDtype), frame["key"].dtype
assert sorted(frame["key"].unique()) == ["press/4", "pump"]
assert np.stack(frame["embedding"]).shape == (200, 4)
assert str(frame["window_end"].dt.tz) == "UTC"
assert frame["alert"].sum() == 4 and frame["alert_id"].notna().sum() == 4
"#,
    );
}

#[test]
fn duckdb_reads_dates_and_keys_from_the_folders() {
    let folder = TempDir::new().expect("a folder");
    let mut sink = sink(&folder, &[PartitionColumn::Date, PartitionColumn::Key]);
    sink.write(&outputs()).expect("written");
    sink.flush().expect("flushed");

    python(
        folder.path(),
        r#"
import datetime, sys
import duckdb

rows = f"read_parquet('{sys.argv[1]}/**/*.parquet', hive_partitioning = true)"
def ask(query):
    return duckdb.sql(query.replace("ROWS", rows)).fetchall()

assert ask("SELECT count(*), count(DISTINCT (key, sequence)) FROM ROWS") == [(200, 200)]
assert ask("SELECT DISTINCT key FROM ROWS ORDER BY key") == [("press/4",), ("pump",)]
assert ask("SELECT count(*) FROM ROWS WHERE date = DATE '2026-01-31'") == [(24,)]
assert ask("SELECT count(*) FROM ROWS WHERE list_inner_product(embedding, embedding) = 1") == [(200,)]
assert ask("SELECT causes[1].channel FROM ROWS WHERE alert_id = 'alert-50'") == [("pressure",)]
"#,
    );
    python(
        folder.path(),
        r#"
import sys
import pyarrow.parquet as pq

table = pq.read_table(sys.argv[1], filters=[("key", "=", "press/4")])
assert table.num_rows == 100, table.num_rows
"#,
    );
}

#[test]
fn readers_see_nothing_before_the_flush() {
    let folder = TempDir::new().expect("a folder");
    let mut sink = sink(&folder, &[PartitionColumn::Date]);
    let visible = r#"
import pathlib, sys
import duckdb
import pyarrow.dataset

folder = pathlib.Path(sys.argv[1])
print([str(path) for path in folder.rglob("*")])
assert list(folder.rglob("*.parquet")) == []
assert pyarrow.dataset.dataset(folder, format="parquet").files == []
assert duckdb.sql(f"FROM glob('{folder}/**/*.parquet')").fetchall() == []
"#;
    let letter = DeadLetter {
        lane: Lane::new("plant.sensors", 3),
        offset: 17,
        key: None,
        payload: b"{".to_vec(),
        headers: Vec::new(),
        stage: "decode",
        reason: "expected a value".to_owned(),
    };

    sink.write(&outputs()).expect("written");
    sink.dead_letter(&letter).expect("written");
    python(folder.path(), visible);

    // A reader of the data set is not bothered by the dead letters beside it.
    sink.flush().expect("flushed");
    python(
        folder.path(),
        r#"
import json, pathlib, sys
import pyarrow.dataset

folder = pathlib.Path(sys.argv[1])
assert pyarrow.dataset.dataset(folder, format="parquet", partitioning="hive").count_rows() == 200
[letters] = (folder / "_dead_letters").glob("*.jsonl")
[letter] = map(json.loads, letters.read_text().splitlines())
assert letter["payload"] == "{" and letter["offset"] == 17, letter
"#,
    );
}
