//! What must not stop the program, and what must stop it with a reason.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::process::Command;

use common::{
    Machines, Message, PATIENCE, Plant, Program, allow_only, contrastream, is_done, parquet,
    produce, producer, read, reading,
};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use serde_json::Value;

/// Messages that are no records: a name, the bytes (`None`: a tombstone), and what the reason
/// must say.
fn bad_messages() -> Vec<(&'static str, Option<Vec<u8>>, &'static str)> {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let with = |field: &str, value: &str| {
        let mut record: Value = serde_json::from_str(&reading("press-0", 0, 0.0)).unwrap();
        record[field] = serde_json::from_str(value).unwrap();
        Some(record.to_string().into_bytes())
    };
    let without = |fields: &[&str]| {
        let mut record: Value = serde_json::from_str(&reading("press-0", 0, 0.0)).unwrap();
        for field in fields {
            record.as_object_mut().unwrap().remove(*field);
        }
        Some(record.to_string().into_bytes())
    };
    let mut huge = b"{\"machine\": \"press-0\", \"padding\": \"".to_vec();
    huge.resize(50 << 20, b'x');
    vec![
        ("cut off", text(r#"{"machine": "press-0", "ts": "#), "expected a JSON object"),
        ("prose", text("the pump sounds odd"), "expected a JSON object"),
        ("binary", Some((0..=255).collect()), "expected a JSON object"),
        ("not UTF-8", Some(b"{\"machine\": \"\xff\xfe\"}".to_vec()), "UTF-8"),
        ("a list", text("[1, 2, 3]"), "expected"),
        ("a number", text("42"), "expected"),
        ("null", text("null"), "expected"),
        ("two objects", text("{} {}"), "expected"),
        ("NaN", text(r#"{"machine": "press-0", "ts": 1, "speed": NaN}"#), "expected"),
        ("tombstone", None, "empty message"),
        ("empty", text(""), "empty message"),
        ("a text for a number", with("temperature", "\"hot\""), "temperature"),
        ("an object for a number", with("vibration", "{\"x\": 1}"), "vibration"),
        ("a flag for a time", with("ts", "true"), "ts"),
        ("no such time", with("ts", "\"yesterday\""), "ts"),
        ("a time out of range", with("ts", "1e300"), "ts"),
        ("a list for a key", with("machine", "[]"), "machine"),
        ("no time", without(&["ts"]), "ts"),
        ("no key", without(&["machine"]), "machine"),
        (
            "no channel",
            without(&["temperature", "vibration", "pressure", "current", "speed"]),
            "temperature",
        ),
        ("small nesting bomb", Some(vec![b'['; 40_000]), "expected"),
        ("large nesting bomb", Some(vec![b'['; 5_000_000]), "nested deeper"),
        ("nested objects", Some(b"{\"a\":".repeat(1_000_000)), "nested deeper"),
        ("50 MiB", Some(huge), "expected"),
    ]
}

#[test]
fn bad_messages_become_dead_letters_and_the_rest_goes_on() {
    let plant = Plant::on_broker("bad", 3);
    let topic = plant.topic("sensors");
    let bad = bad_messages();
    let mut machines = Machines::new(3);
    for (round, (name, payload, _)) in bad.iter().enumerate() {
        produce(&topic, 3, &machines.next(4));
        let producer = producer();
        let headers = OwnedHeaders::new().insert(Header { key: "case", value: Some(*name) });
        let mut record = BaseRecord::to(&topic).partition(1).key("press-1").headers(headers);
        if let Some(payload) = payload {
            record = record.payload(payload);
        }
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
        if round < 5 {
            // Time runs backwards for one record.
            produce(&topic, 3, &[("press-2".to_owned(), reading("press-2", 0, 2.0))]);
        }
    }
    let mut program = plant.run();
    program.until("everything committed", |_| is_done(&plant.group(), &topic, 3).then_some(()));
    let failures = program.metric("contrastream_decode_failures_total");
    let letters = program.metric("contrastream_sink_dead_letters_total");
    let late_records = program.metric("contrastream_window_late_records_total");
    let ended = program.terminate().exits(0);

    let expected = bad.len() as f64;
    assert_eq!((failures, letters), (Some(expected), Some(expected)));
    assert_eq!(late_records, Some(5.0));
    assert_eq!((ended.total("dead_letters"), ended.total("late_records")), (bad.len() as u64, 5));
    for kind in ["embeddings", "anomalies"] {
        let mut found: Vec<_> = read(&plant.topic(kind)).iter().map(Message::segment).collect();
        found.sort();
        assert_eq!(found, machines.segments().into_iter().collect::<Vec<_>>(), "{kind}");
    }

    let sent = read(&topic);
    let mut letters: BTreeMap<String, Message> = BTreeMap::new();
    for letter in read(&plant.topic("dead-letters")) {
        letters.insert(letter.headers["case"].clone(), letter);
    }
    assert_eq!(letters.len(), bad.len());
    for (name, payload, reason) in &bad {
        let letter = &letters[*name];
        let headers = &letter.headers;
        assert!(headers["contrastream.reason"].contains(reason), "{name}: {headers:?}");
        assert_eq!(headers["contrastream.stage"], "decode", "{name}");
        assert_eq!(headers["contrastream.topic"], topic, "{name}");
        assert_eq!(headers["contrastream.partition"], "1", "{name}");
        let offset: i64 = headers["contrastream.offset"].parse().unwrap();
        let original = sent.iter().find(|m| (m.partition, m.offset) == (1, offset)).unwrap();
        assert_eq!(original.headers["case"], *name);
        assert_eq!((&letter.key, &letter.value), (&original.key, &original.value), "{name}");
        assert_eq!(letter.length, payload.as_ref().map_or(0, Vec::len), "{name}");
    }
    // The other sink has them too.
    assert_eq!(dead_letters_of(&plant).len(), bad.len());
}

/// What the Parquet sink wrote beside its rows.
fn dead_letters_of(plant: &Plant) -> Vec<Value> {
    let mut letters = Vec::new();
    for entry in fs::read_dir(plant.out().join("_dead_letters")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        letters.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    letters
}

#[test]
fn values_that_no_sensor_reads_are_missing_and_the_record_counts() {
    let plant = Plant::on_broker("values", 1);
    let topic = plant.topic("sensors");
    let mut machines = Machines::new(1);
    let mut records = machines.next(60);
    for (value, (_, record)) in
        ["1e999", "-1e999", "null", "\"NaN\"", "1e300"].iter().zip(&mut records)
    {
        *record = record.replace("\"current\":13.0", &format!("\"current\":{value}"));
    }
    produce(&topic, 1, &records);
    let mut program = plant.run();
    program.until("everything committed", |_| is_done(&plant.group(), &topic, 1).then_some(()));
    let ended = program.terminate().exits(0);

    assert_eq!((ended.total("records"), ended.total("dead_letters")), (60, 0));
    let found: Vec<_> = read(&plant.topic("embeddings"))
        .iter()
        .map(|message| {
            let embedding = message.json()["embedding"].as_array().unwrap().clone();
            assert!(embedding.iter().all(Value::is_number), "{embedding:?}");
            message.segment()
        })
        .collect();
    assert_eq!(found, machines.segments().into_iter().collect::<Vec<_>>());
}

#[test]
fn bad_lines_of_files_become_dead_letters_beside_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut machines = Machines::new(2);
    let mut text = String::new();
    for (number, (_, record)) in machines.next(50).into_iter().enumerate() {
        text.push_str(&record);
        text.push('\n');
        if number % 10 == 9 {
            text.push_str("{\"machine\": \n");
        }
    }
    fs::write(folder.path().join("readings.jsonl"), text).unwrap();
    fs::write(folder.path().join("empty.jsonl"), "").unwrap();
    fs::write(folder.path().join("only-a-header.csv"), "machine,ts,temperature\n").unwrap();
    fs::write(folder.path().join("no-header.csv"), "").unwrap();
    fs::write(folder.path().join("rubbish.json"), [0, 159, 146, 150, b'\n', 255]).unwrap();
    let plant = Plant::over_files("lines", folder.path());
    let ended = plant.run().wait().exits(0);

    assert_eq!((ended.total("records"), ended.total("dead_letters")), (100, 12));
    // To the last record: the end of the files is the end of the stream.
    assert_eq!(parquet(&plant.out()).len(), 2 * ((50 - common::LENGTH) / common::STRIDE + 1));
    let letters = dead_letters_of(&plant);
    assert_eq!(letters.len(), 12);
    let of_readings = letters.iter().filter(|letter| letter["topic"] == "readings.jsonl");
    let lines: Vec<_> = of_readings.map(|letter| letter["offset"].as_i64().unwrap()).collect();
    assert_eq!(lines, (1..=10).map(|bad| 11 * bad).collect::<Vec<i64>>());
    for letter in &letters {
        assert_eq!(letter["stage"], "decode", "{letter}");
        assert!(letter["reason"].as_str().unwrap().contains("expected"), "{letter}");
    }
}

#[test]
fn an_empty_file_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("empty.jsonl");
    fs::write(&file, "").unwrap();
    let plant = Plant::over_files("empty", &file);
    let ended = plant.run().wait().exits(0);
    assert_eq!((ended.total("records"), ended.total("segments")), (0, 0));
    assert!(ended.stderr.contains("holds no records"), "{}", ended.stderr);
}

// ---------------------------------------------------------------------------------------------
// What it cannot go on without
// ---------------------------------------------------------------------------------------------

/// Runs a pipeline that cannot go on; its message must hold `expected`.
#[track_caller]
fn assert_fails(plant: &Plant, code: i32, expected: &[&str]) {
    assert_says(Program::start(plant.command("run")), code, expected);
}

#[track_caller]
fn assert_says(program: Program, code: i32, expected: &[&str]) {
    let ended = program.wait().exits(code);
    for expected in expected {
        assert!(ended.error().contains(expected), "{expected}\n{}", ended.stderr);
    }
    assert_eq!(ended.stdout, "");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_fails(&Plant::over_files("none", folder.path()), 1, &[path, "found none"]);
    let gone = folder.path().join("gone");
    assert_fails(&Plant::over_files("gone", &gone), 1, &[gone.to_str().unwrap()]);
    let rubbish = folder.path().join("rubbish.parquet");
    fs::write(&rubbish, "PAR1 this is not").unwrap();
    assert_fails(&Plant::over_files("rubbish", &rubbish), 1, &[rubbish.to_str().unwrap()]);
    let other = folder.path().join("other.csv");
    fs::write(&other, "a,b\n1,2\n").unwrap();
    assert_fails(
        &Plant::over_files("columns", &other),
        1,
        &["other.csv", "\"ts\"", "\"a\", \"b\""],
    );
}

#[test]
fn brokers_that_do_not_answer_are_named() {
    let mut plant = Plant::new("unreachable");
    // Reserved, never listened on.
    plant.set("source.brokers=127.0.0.1:1");
    let generate = ["generate", "--to", "kafka://127.0.0.1:1/records", "--count", "1"];
    // Side by side: each gives the brokers some time.
    let programs = [plant.run(), Program::start(contrastream(generate))];
    for program in programs {
        assert_says(program, 1, &["no broker of 127.0.0.1:1 answers"]);
    }
}

#[test]
fn a_topic_that_is_missing_is_named() {
    let mut plant = Plant::on_broker("missing", 1);
    plant.set("source.topics=[\"no.such.topic\"]");
    assert_fails(&plant, 1, &["topic no.such.topic does not exist", &common::brokers()]);
    let to = format!("kafka://{}/no.such.topic", common::brokers());
    let to = contrastream(["generate", "--to", &to, "--count", "1"]);
    assert_says(Program::start(to), 1, &["topic no.such.topic does not exist"]);
}

#[test]
fn a_right_to_read_that_is_denied_is_named() {
    let mut plant = Plant::on_broker("unreadable", 1);
    plant.as_tester();
    let topic = plant.topic("sensors");
    allow_only("DESCRIBE", "TOPIC", &topic);
    produce(&topic, 1, &Machines::new(1).next(1));
    assert_fails(&plant, 1, &["refuse", &topic]);
}

#[test]
fn a_right_to_write_that_is_denied_is_named() {
    let mut plant = Plant::on_broker("unwritable", 1);
    plant.as_tester();
    let topic = plant.topic("anomalies");
    allow_only("DESCRIBE", "TOPIC", &topic);
    produce(&plant.topic("sensors"), 1, &Machines::new(1).next(60));
    assert_fails(&plant, 1, &["refuse", &topic]);
}

#[test]
fn a_property_that_is_unknown_is_named() {
    for (table, place) in [("source", "source.properties"), ("sink.kafka", "sink.kafka.properties")]
    {
        let mut plant = Plant::on_broker("property", 1);
        plant.set(format!("{table}.properties.no.such.property=1"));
        assert_fails(&plant, 2, &[place, "no.such.property"]);
    }
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    for key in ["sink.parquet.path", "checkpoint.store"] {
        let mut plant = Plant::over("unwritable", "kind = \"generator\"\ncount = 1000");
        plant.set(format!("{key}=/dev/null/folder"));
        assert_fails(&plant, 1, &["/dev/null/folder"]);
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut plant = Plant::over("port", "kind = \"generator\"\ncount = 1000");
    plant.set(format!("http.listen={address}"));
    assert_fails(&plant, 1, &["http.listen", &address]);
}

#[test]
fn a_disk_that_is_full_ends_the_run_with_the_file_named() {
    let plant = Plant::over("full", "kind = \"generator\"");
    let run = plant.command("run");
    // The system refuses to make any file larger, as it would on a full disk.
    let mut limited = Command::new("bash");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$@\"", "bash"]);
    limited.arg(run.get_program()).args(run.get_args());
    let out = plant.folder.path().to_str().unwrap();
    assert_says(Program::start(limited), 1, &[out, "File too large"]);
}

#[test]
fn a_state_folder_that_goes_away_ends_even_an_idle_run() {
    let mut plant = Plant::on_broker("stateless", 1);
    plant.set("checkpoint.interval=100ms");
    let topic = plant.topic("sensors");
    let mut machines = Machines::new(1);
    let mut program = plant.run();
    program.wait_ready();
    produce(&topic, 1, &machines.next(20));
    program.until("everything committed", |_| is_done(&plant.group(), &topic, 1).then_some(()));

    fs::remove_dir_all(plant.state()).unwrap();
    // No more than this comes to tell.
    produce(&topic, 1, &machines.next(1));

    assert_says(program, 1, &["checkpoint", plant.state().to_str().unwrap()]);
}
