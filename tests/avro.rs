//! Avro with a real schema registry, and Arrow IPC: written and read by clients that know nothing
//! of contrastream.

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use common::{
    Machines, Plant, Program, brokers, is_done, parquet, produce, python, read, variable,
};
use serde_json::Value;

const MACHINES: usize = 3;

fn registry() -> String {
    variable("CONTRASTREAM_TEST_REGISTRY")
}

/// Over one partition, so that what is produced has one order.
fn plant(name: &str, settings: &[&str]) -> Plant {
    let mut plant = Plant::on_broker(name, 1);
    for setting in settings {
        plant.set(*setting);
    }
    plant
}

fn arguments<'a>(texts: &[&'a str]) -> Vec<&'a OsStr> {
    texts.iter().map(|text| OsStr::new(*text)).collect()
}

fn wait_done(plant: &Plant, program: &mut Program) {
    program.until("everything committed", |_| {
        is_done(&plant.group(), &plant.topic("sensors"), 1).then_some(())
    });
}

/// Writes the readings of standard input with Confluent's serializer, by the schema given: of its
/// fields alone, those that readings lack by their defaults.
fn write_avro(topic: &str, schema: &str, readings: &[(String, String)]) {
    const PROGRAM: &str = "
import datetime, json, sys
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
brokers, registry, topic, schema, readings = sys.argv[1:]
client = SchemaRegistryClient({'url': registry})
serializer = AvroSerializer(client, schema)
context = SerializationContext(topic, MessageField.VALUE)
fields = [field['name'] for field in json.loads(schema)['fields']]
producer = Producer({'bootstrap.servers': brokers})
for line in open(readings):
    reading = json.loads(line)
    reading['ts'] = datetime.datetime.fromisoformat(reading['ts'])
    record = {name: reading[name] for name in fields if name in reading}
    producer.produce(topic, key=reading['machine'], value=serializer(record, context), partition=0)
assert producer.flush(60) == 0
";
    let mut lines = tempfile::NamedTempFile::new().unwrap();
    for (_, reading) in readings {
        writeln!(lines, "{reading}").unwrap();
    }
    let path = lines.path().to_str().unwrap();
    python(PROGRAM, &arguments(&[&brokers(), &registry(), topic, schema, path]));
}

/// The messages of a topic as Confluent's deserializer reads them, each a line of JSON.
fn read_avro(topic: &str) -> Vec<Value> {
    const PROGRAM: &str = "
import json, sys
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
brokers, registry, topic = sys.argv[1:]
deserializer = AvroDeserializer(SchemaRegistryClient({'url': registry}))
context = SerializationContext(topic, MessageField.VALUE)
consumer = Consumer({'bootstrap.servers': brokers, 'group.id': 'reader', 'enable.auto.commit': False,
                     'isolation.level': 'read_committed', 'enable.partition.eof': True})
consumer.assign([TopicPartition(topic, 0, 0)])
micros = lambda time: int(time.timestamp()) * 1000000 + time.microsecond
while True:
    message = consumer.poll(60)
    assert message is not None
    if message.error() is not None:
        assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
        break
    record = deserializer(message.value(), context)
    assert message.key().decode() == record['key']
    for name in ['window_start', 'window_end']:
        record[name] = micros(record[name])
    print(json.dumps(record))
consumer.close()
";
    let lines = python(PROGRAM, &arguments(&[&brokers(), &registry(), topic]));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn segments(records: &[Value]) -> BTreeSet<(String, u64)> {
    let segment = |record: &Value| {
        (record["key"].as_str().unwrap().to_owned(), record["sequence"].as_u64().unwrap())
    };
    records.iter().map(segment).collect()
}

/// Exactly the expected segments, each once.
#[track_caller]
fn assert_segments(records: &[Value], machines: &Machines) {
    assert_eq!(segments(records), machines.segments());
    assert_eq!(records.len(), machines.segments().len());
}

/// The same numbers as in Parquet, to the last bit that both have.
#[track_caller]
fn assert_as_in_parquet(plant: &Plant, records: &[Value], fields: &[&str]) {
    for row in parquet(&plant.out()) {
        let of_row =
            |record: &&Value| record["key"] == row["key"] && record["sequence"] == row["sequence"];
        let record = records.iter().find(of_row).unwrap_or_else(|| panic!("no message of {row}"));
        for field in fields {
            assert_eq!(record[field], row[field], "{field} of {row}");
        }
    }
}

/// As `schemas/sensor.avsc` after a change: `speed` is gone, `site` is new, the order is another.
const CHANGED: &str = r#"{"type":"record","name":"Sensor","namespace":"contrastream","fields":[
    {"name":"site","type":"string","default":"here"},
    {"name":"pressure","type":["null","float"],"default":null},
    {"name":"machine","type":"string"},
    {"name":"current","type":"float","default":0},
    {"name":"temperature","type":["null","float"],"default":null},
    {"name":"ts","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"vibration","type":["null","float"],"default":null}]}"#;

#[test]
fn avro_goes_in_through_a_change_of_its_schema_and_comes_out() {
    let url = format!("registry.url={}", registry());
    let plant = plant("avro", &[&url, "source.format=avro", "sink.kafka.format=avro"]);
    let sensor = std::fs::read_to_string(common::repository("schemas/sensor.avsc")).unwrap();
    let topic = plant.topic("sensors");
    let mut machines = Machines::new(MACHINES);
    write_avro(&topic, &sensor, &machines.next(60));
    // An id that nobody registered, other bytes, and nothing at all.
    let bad = ["\0\u{1}\u{2}\u{3}\u{4}ab", "{\"machine\":\"m\"}", ""];
    let bad: Vec<_> = bad.iter().map(|value| ("press-0".to_owned(), (*value).to_owned())).collect();
    produce(&topic, 1, &bad);
    write_avro(&topic, CHANGED, &machines.next(60));

    let mut program = plant.run();
    wait_done(&plant, &mut program);
    let ended = program.terminate().exits(0);
    assert_eq!(ended.total("records"), 120 * MACHINES as u64);

    let embeddings = read_avro(&plant.topic("embeddings"));
    assert_segments(&embeddings, &machines);
    let common = ["pipeline", "window_start", "window_end", "model_version"];
    let own = ["topic", "partition", "first_offset", "last_offset", "embedding", "wander"];
    assert_as_in_parquet(&plant, &embeddings, &[&common[..], &own].concat());
    let anomalies = read_avro(&plant.topic("anomalies"));
    assert_segments(&anomalies, &machines);
    let own =
        ["score", "p_value", "alert", "alert_id", "causes", "missing", "warm", "change_point"];
    assert_as_in_parquet(&plant, &anomalies, &[&common[..], &own].concat());

    let letters = read(&plant.topic("dead-letters"));
    let reasons: Vec<&str> =
        letters.iter().map(|letter| &*letter.headers["contrastream.reason"]).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons[0].contains("knows no schema with id 16909060"), "{}", reasons[0]);
    assert!(reasons[1].contains("begins with a zero byte"), "{}", reasons[1]);
    assert!(reasons[2].contains("found an empty message"), "{}", reasons[2]);
}

#[test]
fn the_readers_schema_makes_one_of_several_writers_schemas() {
    let folder = tempfile::tempdir().unwrap();
    let reader = folder.path().join("reader.avsc");
    // What only the changed schema lacks has a default; what it widened is a double.
    let schema = r#"{"type":"record","name":"Sensor","namespace":"contrastream","fields":[
        {"name":"machine","type":"string"},
        {"name":"ts","type":{"type":"long","logicalType":"timestamp-micros"}},
        {"name":"temperature","type":["null","double"],"default":null},
        {"name":"speed","type":["null","double"],"default":null}]}"#;
    std::fs::write(&reader, schema).unwrap();
    let url = format!("registry.url={}", registry());
    let reader = format!("source.avro.schema={}", reader.display());
    let channels = "records.channels=[\"temperature\",\"speed\"]";
    let plant = plant("reader", &[&url, &reader, channels, "source.format=avro"]);
    let sensor = std::fs::read_to_string(common::repository("schemas/sensor.avsc")).unwrap();
    let mut machines = Machines::new(MACHINES);
    write_avro(&plant.topic("sensors"), &sensor, &machines.next(40));
    write_avro(&plant.topic("sensors"), CHANGED, &machines.next(40));
    let mut program = plant.run();
    wait_done(&plant, &mut program);
    let ended = program.terminate().exits(0);
    assert_eq!((ended.total("records"), ended.total("dead_letters")), (80 * MACHINES as u64, 0));
    assert_segments(&parquet(&plant.out()), &machines);
}

#[test]
fn a_registry_that_is_down_costs_time_and_no_record() {
    // Nobody listens here yet.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let real = registry();
    let (host, path) = real.trim_start_matches("http://").split_once('/').unwrap();
    let url = format!("registry.url=http://{address}/{path}");
    let plant = plant("down", &[&url, "source.format=avro"]);
    let sensor = std::fs::read_to_string(common::repository("schemas/sensor.avsc")).unwrap();
    let mut machines = Machines::new(MACHINES);
    write_avro(&plant.topic("sensors"), &sensor, &machines.next(60));

    let mut program = plant.run();
    program.until("the registry is asked again", |program| {
        program.log().contains("schema registry in trouble").then_some(())
    });
    // Long enough that asking again was given up once.
    program.until("it went back to the last commit", |program| {
        program.log().contains("going on from the last commit").then_some(())
    });
    let host = host.to_owned();
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&host).unwrap());
            let (other_client, other_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || pass_on(client, server));
            thread::spawn(move || pass_on(other_server, other_client));
        }
    });
    wait_done(&plant, &mut program);
    let ended = program.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(read(&plant.topic("dead-letters")).is_empty());
    assert_segments(&parquet(&plant.out()), &machines);
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // The other direction may have closed it.
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn a_check_asks_the_registry_and_says_what_is_missing() {
    let url = format!("registry.url={}", registry());
    let settings = ["source.format=avro", "sink.kafka.format=avro", "registry.register=false"];
    let mut plant = plant("check", &settings);
    plant.set(&*url);
    let mut check = plant.command("check");
    check.arg("--connect");
    let ended = Program::start(check).wait().exits(1);
    let subject = format!("subject {}-value", plant.topic("embeddings"));
    assert!(ended.error().contains(&subject), "{}", ended.error());
    assert!(ended.error().contains("schemas/embedding.avsc"), "{}", ended.error());

    plant.set("registry.register=true");
    let mut check = plant.command("check");
    check.arg("--connect");
    let ended = Program::start(check).wait().exits(0);
    assert!(ended.stdout.contains("the schema registry answers"), "{}", ended.stdout);

    plant.set(format!("registry.url={}/elsewhere", registry()));
    let mut check = plant.command("check");
    check.arg("--connect");
    let ended = Program::start(check).wait().exits(1);
    assert!(ended.error().contains("/elsewhere"), "{}", ended.error());
}

#[test]
fn arrow_streams_by_pyarrow_go_in_and_come_out() {
    const WRITE: &str = "
import json, sys
import pyarrow as pa
from confluent_kafka import Producer
brokers, topic, readings = sys.argv[1:]
rows = [json.loads(line) for line in open(readings)]
producer = Producer({'bootstrap.servers': brokers})
compressions = [None, 'lz4', 'zstd']
for number, start in enumerate(range(0, len(rows), 50)):
    part = pa.Table.from_pylist(rows[start:start + 50])
    machines = part.column('machine').dictionary_encode()
    times = pa.array([__import__('datetime').datetime.fromisoformat(row['ts'])
                      for row in rows[start:start + 50]], pa.timestamp('ms', 'UTC'))
    body = pa.StructArray.from_arrays(
        [part.column(name).combine_chunks() for name in ['temperature', 'vibration']],
        ['temperature', 'vibration'])
    table = pa.table({'machine': machines, 'ts': times, 'body': body,
                      'speed': part.column('speed').cast(pa.float32())})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compressions[number % 3])
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=20)
    producer.produce(topic, value=sink.getvalue().to_pybytes(), partition=0)
assert producer.flush(60) == 0
";
    const READ: &str = "
import json, sys
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, TopicPartition
brokers, topic = sys.argv[1:]
consumer = Consumer({'bootstrap.servers': brokers, 'group.id': 'reader', 'enable.auto.commit': False,
                     'isolation.level': 'read_committed', 'enable.partition.eof': True})
consumer.assign([TopicPartition(topic, 0, 0)])
while True:
    message = consumer.poll(60)
    assert message is not None
    if message.error() is not None:
        assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
        break
    table = pa.ipc.open_stream(message.value()).read_all()
    assert set(table.column('key').to_pylist()) == {message.key().decode()}
    for name in ['window_start', 'window_end']:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table.column(name).cast(pa.int64()))
    for row in table.to_pylist():
        print(json.dumps(row))
consumer.close()
";
    let channels = "records.channels=[\"body.temperature\",\"body.vibration\",\"speed\"]";
    let plant = plant("arrow", &["source.format=arrow", "sink.kafka.format=arrow", channels]);
    let mut machines = Machines::new(MACHINES);
    let mut lines = tempfile::NamedTempFile::new().unwrap();
    for (_, reading) in machines.next(120) {
        writeln!(lines, "{reading}").unwrap();
    }
    let path = lines.path().to_str().unwrap();
    python(WRITE, &arguments(&[&brokers(), &plant.topic("sensors"), path]));

    let mut program = plant.run();
    wait_done(&plant, &mut program);
    let ended = program.terminate().exits(0);
    let totals = (ended.total("records"), ended.total("dead_letters"));
    assert_eq!(totals, (120 * MACHINES as u64, 0));
    let common = ["pipeline", "window_start", "window_end", "model_version"];
    for (kind, own) in [
        ("embeddings", &["embedding", "first_offset", "last_offset", "topic", "wander"][..]),
        ("anomalies", &["score", "p_value", "alert", "causes", "missing", "warm", "change_point"]),
    ] {
        let rows = python(READ, &arguments(&[&brokers(), &plant.topic(kind)]));
        let rows: Vec<Value> =
            rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_segments(&rows, &machines);
        assert_as_in_parquet(&plant, &rows, &[&common[..], own].concat());
    }
}
