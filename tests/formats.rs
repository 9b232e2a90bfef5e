//! Records as their owners send them, through a real broker: nested JSON in Connect's envelope with
//! the broker's timestamps, groups of channels, bounds, local times, long rows with units.

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use common::{Message, Plant, Program, is_done, parquet, producer, read, segments_of};
use flate2::Compression;
use flate2::write::GzEncoder;
use rdkafka::producer::{BaseRecord, Producer};

const READINGS: usize = 60;
/// 2026-01-01, milliseconds since the epoch.
const BEGIN_MS: i64 = 1_767_225_600_000;

/// Appends messages to the input topic, a second apart by their timestamps.
fn send(plant: &Plant, messages: &[Vec<u8>]) {
    let (producer, topic) = (producer(), plant.topic("sensors"));
    for (second, message) in (0..).zip(messages) {
        let record = BaseRecord::to(&topic).partition(0).timestamp(BEGIN_MS + second * 1000);
        producer.send(record.key("m-0").payload(message)).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// Runs the pipeline until all that was sent is committed.
fn run(plant: &Plant) {
    let mut program: Program = plant.run();
    program.until("everything committed", |_| {
        is_done(&plant.group(), &plant.topic("sensors"), 1).then_some(())
    });
    program.terminate().exits(0);
}

/// Segments on a topic, by key.
fn by_key(messages: &[Message]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for message in messages {
        *counts.entry(message.segment().0).or_default() += 1;
    }
    counts
}

#[test]
fn nested_json_in_an_envelope_is_read_in_groups_by_the_brokers_time() {
    let mut plant = Plant::on_broker("nested", 1);
    for setting in [
        "source.json.envelope=connect",
        // The timestamp of the message stands in; the key is in the record.
        "records.key=host.name",
        "records.channels=[\"a\", \"b\", \"c\", \"d\"]",
        "records.channel.a={ field = \"body.a\", max = 100.0 }",
        "records.channel.b={ field = \"body.list.1.value\" }",
        "records.groups=2",
        "scores.warmup=1",
    ] {
        plant.set(setting);
    }
    let mut command = plant.command("check");
    command.arg("--print");
    let printed = Program::start(command).wait().exits(0).stdout;
    // `records.time` of the ready file cannot be taken away by --set: a file of its own.
    let file: String = printed
        .lines()
        .filter(|line| !line.starts_with("time = ") && !line.ends_with(": valid"))
        .flat_map(|line| [line, "\n"])
        .collect();
    std::fs::write(plant.folder.path().join("plant.toml"), file).unwrap();

    let mut messages: Vec<Vec<u8>> = (0..READINGS)
        .map(|second| {
            let angle = second as f64 / 5.0;
            // Out of bounds from the middle on.
            let a = if second < READINGS / 2 { angle.sin() } else { 101.0 };
            let body = serde_json::json!({"a": a, "list": [{"value": 0}, {"value": angle.cos()}]});
            let record =
                serde_json::json!({"host": {"name": "m"}, "body": body, "c": angle, "d": -angle});
            let message = serde_json::json!({"schema": {"type": "struct"}, "payload": record});
            message.to_string().into_bytes()
        })
        .collect();
    let good = messages.len();
    for bad in [
        &b"{\"schema\":null,\"payload\":null}"[..],
        b"{\"payload\":{\"host\":{\"name\":\"m\"},\"body\":{\"a\":[1]}}}",
        b"{\"payload\":{\"host\":{\"name\":\"\xff\"},\"c\":1}}",
        b"{\"payload\":",
    ] {
        messages.insert(messages.len() / 2, bad.to_vec());
    }
    send(&plant, &messages);
    run(&plant);

    // A bad message leaves a second without a reading, which is no gap.
    let segments = segments_of(good);
    let expected = BTreeMap::from([("m/0".to_owned(), segments), ("m/1".to_owned(), segments)]);
    assert_eq!(by_key(&read(&plant.topic("embeddings"))), expected);
    let anomalies = read(&plant.topic("anomalies"));
    assert_eq!(by_key(&anomalies), expected);
    let last = anomalies.iter().rfind(|message| message.segment().0 == "m/0");
    assert_eq!(last.unwrap().json()["missing"], serde_json::json!(["a"]));
    let letters = read(&plant.topic("dead-letters"));
    assert_eq!(letters.len(), 4);
    let reasons: Vec<_> =
        letters.iter().map(|letter| letter.headers["contrastream.reason"].as_str()).collect();
    assert!(reasons.contains(&"field \"body.a\": expected a number, found a list"), "{reasons:?}");
}

#[test]
fn csv_rows_with_local_times_become_the_same_segments_as_json() {
    let mut plant = Plant::on_broker("local", 1);
    for setting in [
        "source.format=csv",
        "source.csv.delimiter=;",
        "source.csv.columns=[\"ts\", \"machine\", \"x\"]",
        "records.channels=[\"x\"]",
        "records.time_format=%d.%m.%Y %H:%M:%S",
        "records.time_zone=Europe/Berlin",
    ] {
        plant.set(setting);
    }
    // Across the end of daylight saving time, when clocks show 02:00 to 03:00 twice: their second
    // showing reads like their first, so only what is before is sent.
    let mut rows: Vec<Vec<u8>> = (0..READINGS)
        .map(|second| format!("25.10.2026 01:{:02}:30;m;{second}", second).into_bytes())
        .collect();
    rows.insert(7, b"31.02.2026 00:00:00;m;1".to_vec());
    rows.insert(9, b"25.10.2026 01:00:00;m".to_vec());
    send(&plant, &rows);
    run(&plant);

    let embeddings = read(&plant.topic("embeddings"));
    assert_eq!(embeddings.len() as u64, segments_of(READINGS + common::LATENESS - 1));
    // 01:00:30 in Berlin, in summer time.
    let first = embeddings[0].json()["window_start"].as_i64().unwrap();
    let expected = chrono::DateTime::parse_from_rfc3339("2026-10-24T23:00:30Z").unwrap();
    assert_eq!(first, expected.timestamp_micros());
    assert_eq!(read(&plant.topic("dead-letters")).len(), 2);
}

#[test]
fn long_rows_are_converted_to_the_unit_of_their_channel() {
    let mut plant = Plant::on_broker("units", 1);
    for setting in [
        "records.layout=long",
        "records.unit=unit",
        "records.channels=[\"temperature\"]",
        "records.channel.temperature={ codes = [\"T\"], unit = \"Cel\", min = -50.0, max = 60.0 }",
        "windows.lateness=0s",
    ] {
        plant.set(setting);
    }
    let row = |second: usize, value: f64, unit: &str| {
        let ts = format!("2026-01-01T00:00:{second:02}Z");
        serde_json::json!({"machine": "m", "ts": ts, "code": "T", "value": value, "unit": unit})
            .to_string()
            .into_bytes()
    };
    // Half in Fahrenheit, as warm as the others: converted, none is out of bounds.
    let mut rows: Vec<_> = (0..READINGS)
        .map(|second| {
            let celsius = 20.0 + (second as f64 / 3.0).sin();
            match second % 2 {
                0 => row(second, celsius, "Cel"),
                _ => row(second, celsius * 1.8 + 32.0, "[degF]"),
            }
        })
        .collect();
    rows.insert(30, row(29, 20.0, "furlong"));
    send(&plant, &rows);
    let mut program = plant.run();
    program.until("everything committed", |_| {
        is_done(&plant.group(), &plant.topic("sensors"), 1).then_some(())
    });
    assert_eq!(program.metric("contrastream_decode_out_of_range_values_total"), Some(0.0));
    program.terminate().exits(0);
    let anomalies = read(&plant.topic("anomalies"));
    assert_eq!(anomalies.len() as u64, segments_of(READINGS + common::LATENESS));
    let letters = read(&plant.topic("dead-letters"));
    assert_eq!(letters.len(), 1);
    assert!(letters[0].headers["contrastream.reason"].contains("unit"), "{letters:?}");
}

#[test]
fn compressed_files_give_the_rows_of_plain_ones() {
    let lines: String = (0..READINGS).map(|n| common::reading("press-0", n, 0.0) + "\n").collect();
    let rows = |name: &str, bytes: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let plant = Plant::over_files("packed", folder.path());
        plant.run().wait().exits(0);
        parquet(&plant.out())
            .into_iter()
            .map(|row| (row["sequence"].clone(), row["embedding"].clone(), row["score"].clone()))
            .collect::<Vec<_>>()
    };
    let plain = rows("records.jsonl", lines.as_bytes());
    assert!(!plain.is_empty());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(lines.as_bytes()).unwrap();
    assert_eq!(rows("records.jsonl.gz", &gzip.finish().unwrap()), plain);
    let zstd = zstd::encode_all(lines.as_bytes(), 3).unwrap();
    assert_eq!(rows("records.jsonl.zst", &zstd), plain);
}
