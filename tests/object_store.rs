//! Results and state in a bucket, over a server that speaks S3's protocol.
//!
//! Where a bucket is, the environment says: each test runs once more, in a process of its own
//! whose environment names a server of its own.

mod common;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type};
use bytes::Bytes;
use contrastream::config::{self, ByteSize, Location, PartitionColumn, Pipeline};
use contrastream::objects::{ObjectErrorKind, Objects, Renamed};
use contrastream::sink::{ModelVersion, Outputs, ParquetSink, Score, SegmentMeta, Sink as _};
use contrastream::source::Lane;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use crate::common::{LENGTH, Machines, PATIENCE, Plant, Program, STRIDE, until, variable};

const BUCKET: &str = "plant";
/// Set in the process that runs a test's body.
const INSIDE: &str = "CONTRASTREAM_TEST_INSIDE";
/// Larger than one request takes.
const LARGE: usize = 20 << 20;

/// Runs `body` in a process whose environment names a server with an empty bucket.
fn with_bucket(test: &str, body: fn()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut server = Command::new(variable("CONTRASTREAM_TEST_PYTHON"));
    server.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]);
    server.env("NO_COLOR", "1").stdin(Stdio::null());
    let mut server = Program::start(server);
    let address = server.until("the server's address", |server| {
        let log = server.log();
        let (_, after) = log.split_once("Running on http://")?;
        let (address, _) = after.split_once('\n')?;
        Some(address.trim().to_owned())
    });
    until("a bucket", || request(&address, "PUT", BUCKET).filter(|status| *status == 200));
    let ended = inside(test, &format!("http://{address}"));
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    let ran = String::from_utf8_lossy(&ended.stdout);
    assert!(ran.contains("1 passed"), "{ran}");
}

fn inside(test: &str, endpoint: &str) -> std::process::Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test])
        .env(INSIDE, "yes")
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ACCESS_KEY_ID", "tester")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_REGION", "eu-central-1")
        // The server is on this machine.
        .env("NO_PROXY", "127.0.0.1");
    command.output().unwrap()
}

/// Status of an HTTP request without a body.
fn request(address: &str, method: &str, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

fn open(location: &str) -> Objects {
    Objects::open(&location.parse::<Location>().unwrap()).unwrap()
}

fn names(objects: &Objects, prefix: &str) -> Vec<String> {
    objects.list(prefix).unwrap().into_iter().map(|object| object.name).collect()
}

// ---------------------------------------------------------------------------------------------
// Objects
// ---------------------------------------------------------------------------------------------

#[test]
fn a_bucket_keeps_objects_as_a_folder_does() {
    with_bucket("a_bucket_keeps_objects_as_a_folder_does", || {
        let folder = tempfile::tempdir().unwrap();
        for objects in [
            open("s3://plant"),
            open("s3://plant/state/of/one"),
            open(folder.path().to_str().unwrap()),
        ] {
            keep_objects(&objects);
        }
        let all = open("s3://plant");
        assert!(names(&all, "").contains(&"state/of/one/date=1/key=press%2F4/a b".to_owned()));
    });
}

fn keep_objects(objects: &Objects) {
    let name = "date=1/key=press%2F4/a b";
    objects.put(name, Bytes::from_static(b"first")).unwrap();
    objects.put(name, Bytes::from_static(b"0123456789")).unwrap();
    assert_eq!(objects.get(name).unwrap(), "0123456789");
    assert_eq!(objects.get_ranges(name, &[7..10, 0..2, 3..3]).unwrap(), ["789", "01", ""]);
    let beyond = objects.get_ranges(name, &[5..5, 9..11]).unwrap_err();
    assert_eq!(beyond.kind, ObjectErrorKind::Invalid, "{beyond}");
    let missing = objects.get("missing").unwrap_err();
    assert_eq!(missing.kind, ObjectErrorKind::NotFound, "{missing}");
    assert!(objects.exists(name).unwrap());
    assert!(!objects.exists("missing").unwrap());
    assert!(!objects.exists("date=1").unwrap());

    objects.put("s/a", Bytes::from_static(b"a")).unwrap();
    objects.put("s/b%25", Bytes::new()).unwrap();
    objects.put("sc", Bytes::new()).unwrap();
    assert_eq!(names(objects, "s"), ["s/a", "s/b%25"]);
    assert_eq!(names(objects, "s/"), ["s/a", "s/b%25"]);
    assert!(names(objects, "missing").is_empty());
    let found = &objects.list("date=1").unwrap()[..];
    assert_eq!((found.len(), found[0].size, found[0].name.as_str()), (1, 10, name));
    let age = chrono::Utc::now().timestamp_micros() - found[0].modified_micros;
    assert!(age.abs() < 600_000_000, "{age} microseconds");

    assert!(objects.rename("s/a", "t/key=a%2Fb/a").unwrap());
    assert!(!objects.rename("s/a", "t/key=a%2Fb/a").unwrap());
    let renamed =
        objects.rename_all(&[("s/a", "t/key=a%2Fb/a"), ("s/b%25", "b"), ("s/c", "v/c")]).unwrap();
    assert_eq!(renamed, [Renamed::Before, Renamed::Now, Renamed::Gone]);
    assert_eq!(objects.rename("s/c", "v/c").unwrap_err().kind, ObjectErrorKind::NotFound);
    assert_eq!(names(objects, ""), ["b", name, "sc", "t/key=a%2Fb/a"]);
    objects.delete("b").unwrap();
    objects.delete("b").unwrap();
    assert_eq!(names(objects, ""), [name, "sc", "t/key=a%2Fb/a"]);

    // In several requests each way.
    let large: Bytes = (0..LARGE).map(|at| (at / 7 % 251) as u8).collect();
    objects.put("large", large.clone()).unwrap();
    assert_eq!(objects.get("large").unwrap(), large);
    let (start, end) = (1_000, LARGE - 1);
    let ranges = objects.get_ranges("large", &[start as u64..end as u64, 0..1]).unwrap();
    assert_eq!(ranges, [large.slice(start..end), large.slice(0..1)]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, &large).unwrap();
    objects.put_file("copied", &file).unwrap();
    assert_eq!(objects.get("copied").unwrap(), large);
    objects.delete("large").unwrap();
    objects.delete("copied").unwrap();
}

#[test]
fn a_bucket_that_is_not_there_is_named_and_no_retry_helps() {
    with_bucket("a_bucket_that_is_not_there_is_named_and_no_retry_helps", || {
        let error = Objects::open(&"s3://missing/a".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind, ObjectErrorKind::NoPlace);
        assert!(!error.is_retryable());
        let text = error.to_string();
        assert!(text.starts_with("s3://missing/a: NoSuchBucket: "), "{text}");
    });
}

#[test]
fn a_server_that_does_not_answer_is_given_up_in_half_a_minute_and_may_be_tried_again() {
    const TEST: &str =
        "a_server_that_does_not_answer_is_given_up_in_half_a_minute_and_may_be_tried_again";
    if env::var_os(INSIDE).is_some() {
        let began = Instant::now();
        let error = Objects::open(&"s3://plant".parse().unwrap()).unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
        return;
    }
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ended = inside(TEST, &format!("http://{}", silent.local_addr().unwrap()));
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
}

// ---------------------------------------------------------------------------------------------
// Parquet
// ---------------------------------------------------------------------------------------------

/// One segment of `key` with an embedding of length 2.
fn output(key: &str, sequence: u64) -> Outputs {
    let segment = SegmentMeta {
        key: key.into(),
        lane: Lane::new("plant.sensors", 3),
        sequence,
        window_start: 0,
        window_end: 63_000_000,
        first_offset: 0,
        last_offset: 63,
    };
    let score = Score {
        score: 0.25,
        p_value: 0.125,
        surprise: 1.5,
        distance: 0.5,
        residual: 2.0,
        alert: false,
        alert_id: None,
        causes: Vec::new(),
        missing: Vec::new(),
        turn: false,
        warm: true,
    };
    Outputs {
        segments: vec![segment],
        embeddings: vec![0.6, -0.8],
        scores: vec![score],
        model_version: ModelVersion { steps: 42, wander: 0.25 },
    }
}

fn sink(location: &str) -> ParquetSink {
    let pipeline: Pipeline = toml::from_str(
        r#"
        name = "plant"
        source = { kind = "generator" }
        records = { time = "ts", channels = ["temperature", "pressure"] }
        "#,
    )
    .unwrap();
    let config = config::ParquetSink {
        path: location.parse().unwrap(),
        partition_by: vec![PartitionColumn::Date, PartitionColumn::Key],
        roll: ByteSize::mib(128),
        trajectories: Vec::new(),
        stay_gap: config::TimeSpan::from_secs(86_400),
    };
    ParquetSink::open(&config, &pipeline, 2).unwrap()
}

/// (key, sequence, bits of the score) of every visible row, sorted.
fn rows(objects: &Objects) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    for name in names(objects, "") {
        if !name.ends_with(".parquet") {
            continue;
        }
        // The types that Parquet itself has, not those that its writer had.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let file = objects.get(&name).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).unwrap();
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let keys = batch["key"].as_string::<i32>();
            let sequences = batch["sequence"].as_primitive::<Int64Type>();
            let scores = batch["score"].as_primitive::<Float64Type>();
            found.extend((0..batch.num_rows()).map(|row| {
                let (sequence, score) = (sequences.value(row), scores.value(row));
                (keys.value(row).to_owned(), sequence as u64, score.to_bits())
            }));
        }
    }
    found.sort();
    found
}

fn segments(objects: &Objects) -> Vec<(String, u64)> {
    rows(objects).into_iter().map(|(key, sequence, _)| (key, sequence)).collect()
}

#[test]
fn parquet_files_appear_in_a_bucket_once_they_are_published() {
    with_bucket("parquet_files_appear_in_a_bucket_once_they_are_published", || {
        const OUT: &str = "s3://plant/out";
        let out = open(OUT);
        let mut dying = sink(OUT);
        dying.write(&output("press/4", 0)).unwrap();
        dying.write(&output("pump", 1)).unwrap();
        assert!(names(&out, "").is_empty(), "nothing leaves this machine before the epoch's end");
        let committed = dying.prepare().unwrap();
        let staged: BTreeSet<_> = committed.iter().map(|file| file.staged.clone()).collect();
        assert_eq!(names(&out, ""), Vec::from_iter(staged));
        assert!(rows(&out).is_empty());
        dying.publish().unwrap();
        let visible = [("press/4".to_owned(), 0), ("pump".to_owned(), 1)];
        assert_eq!(segments(&out), visible);

        // It commits another epoch, dies after the first of its files is published, and had begun
        // a third.
        dying.write(&output("press/4", 2)).unwrap();
        dying.write(&output("pump", 3)).unwrap();
        let committed = dying.prepare().unwrap();
        out.rename(&committed[0].staged, &committed[0].target).unwrap();
        dying.write(&output("pump", 4)).unwrap();
        drop(dying);

        let mut next = sink(OUT);
        for _ in 0..2 {
            next.recover(&committed).unwrap();
            next.discard().unwrap();
            let sequences: Vec<_> =
                segments(&out).into_iter().map(|(_, sequence)| sequence).collect();
            assert_eq!(sequences, [0, 2, 1, 3]);
        }
        assert!(names(&out, "_staging").is_empty());

        // What another process staged just now may be about to be committed.
        let mut living = sink(OUT);
        living.write(&output("pump", 5)).unwrap();
        living.prepare().unwrap();
        next.discard().unwrap();
        living.publish().unwrap();
        assert_eq!(rows(&out).len(), 5);
    });
}

// ---------------------------------------------------------------------------------------------
// The program
// ---------------------------------------------------------------------------------------------

/// A pipeline over a file, which gives the same values whenever it runs.
fn plant(records: &Path, state: &str, out: &str) -> Plant {
    let mut plant = Plant::over_files("bucket", records);
    plant.set("checkpoint.interval=10ms");
    plant.set("training.max_share=1.0");
    plant.set("source.batch_rows=64");
    // Slow enough for many commits.
    plant.set("model.hidden=32");
    plant.set(format!("checkpoint.store={state}"));
    plant.set(format!("sink.parquet.path={out}"));
    plant
}

fn write_records(folder: &Path, machines: usize, seconds: usize) -> std::path::PathBuf {
    let path = folder.join("readings.jsonl");
    let lines: Vec<_> =
        Machines::new(machines).next(seconds).into_iter().map(|(_, record)| record).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn a_run_over_a_file_is_killed_again_and_again_and_loses_and_repeats_nothing() {
    with_bucket(
        "a_run_over_a_file_is_killed_again_and_again_and_loses_and_repeats_nothing",
        || {
            const MACHINES: usize = 3;
            const SECONDS: usize = 20_000;
            const KILLS: usize = 5;
            let folder = tempfile::tempdir().unwrap();
            let records = write_records(folder.path(), MACHINES, SECONDS);
            let place = |name: &str| folder.path().join(name).display().to_string();
            let undisturbed = plant(&records, &place("state"), &place("out"));
            undisturbed.run().wait().exits(0);
            let expected = rows(&open(&place("out")));
            assert_eq!(expected.len(), MACHINES * ((SECONDS - LENGTH) / STRIDE + 1));

            let out = open("s3://plant/out");
            let killed = plant(&records, "s3://plant/state", "s3://plant/out");
            for _ in 0..KILLS {
                let before = names(&out, "").len();
                let mut run = killed.run();
                run.until("another file", |_| (names(&out, "").len() > before).then_some(()));
                assert_eq!(run.kill().signal, Some(9));
            }
            killed.run().wait().exits(0);
            assert_eq!(rows(&out), expected);
        },
    );
}

#[cfg(feature = "failpoints")]
#[test]
fn a_kill_at_any_step_of_a_commit_loses_and_repeats_nothing() {
    with_bucket("a_kill_at_any_step_of_a_commit_loses_and_repeats_nothing", || {
        let folder = tempfile::tempdir().unwrap();
        let records = write_records(folder.path(), 2, 20_000);
        let place = |name: &str| folder.path().join(name).display().to_string();
        let mut undisturbed = plant(&records, &place("state"), &place("out"));
        undisturbed.set("sink.parquet.partition_by=[\"key\"]");
        undisturbed.run().wait().exits(0);
        let expected = rows(&open(&place("out")));

        for step in ["commit.prepared", "publish.before", "publish.between", "publish.after"] {
            let to = format!("s3://plant/{step}");
            let mut killed = plant(&records, &format!("s3://plant/state-{step}"), &to);
            killed.set("sink.parquet.partition_by=[\"key\"]");
            let mut command = killed.command("run");
            command.env("FAILPOINTS", format!("{step}=1*off->return(kill)"));
            let ended = Program::start(command).wait();
            assert_eq!(ended.signal, Some(6), "{step}: {}", ended.stderr);
            killed.run().wait().exits(0);
            assert_eq!(rows(&open(&to)), expected, "{step}");
        }
    });
}
