//! Decoding of small records to columns, beside the raw readers of each format.
//!
//! `cargo bench --bench decode [-- FILTER]` prints `name cpu-ns wall-ns` a record for us and for
//! the yardstick, and `name/ratio` (yardstick's time by ours: above 1 we are faster). All figures
//! are medians of rounds in which the two alternate (`ROUNDS`, 15), on one thread.
//!
//! The yardsticks stop at values in their own form, ours ends at columns in the records' schema:
//! - `simd-json` fills a tape, in place, on a copy of the message, with buffers that are kept;
//! - `apache-avro` reads a `Value` by the writer's schema;
//! - `arrow-ipc` reads the batches of a stream.

mod measure;

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use apache_avro::Schema as AvroSchema;
use apache_avro::reader::datum::GenericDatumReader;
use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use contrastream::config::{Avro, Csv, Encoding, Format, Framing, Layout, Records};
use contrastream::decode::Decoder;
use contrastream::source::{Lane, Messages};
use cpu_time::ThreadTime;
use measure::{median, wanted};

const MESSAGES: u64 = 4096;
/// Records of one message of Arrow, and several such messages.
const BATCH: u64 = 4096;
const BATCHES: u64 = 8;
/// Batches decoded in one round.
const REPEATS: usize = 20;

const SCHEMA: &str = r#"{"type":"record","name":"Reading","fields":[
    {"name":"machine","type":"string"},
    {"name":"ts","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"temperature","type":["null","double"],"default":null},
    {"name":"vibration","type":"float"},
    {"name":"pressure","type":"double"}]}"#;

fn records(layout: Layout) -> Records {
    Records {
        layout,
        key: Some("machine".to_owned()),
        time: Some("ts".to_owned()),
        channels: ["temperature", "vibration", "pressure"].map(str::to_owned).to_vec(),
        ..Records::default()
    }
}

fn messages<P: AsRef<[u8]>>(count: u64, record: impl Fn(u64) -> P) -> Messages {
    let mut messages = Messages::default();
    for (offset, number) in (0..).zip(0..count) {
        messages.push(offset, None, None, record(number).as_ref(), Vec::new());
    }
    messages
}

fn wide_json(number: u64) -> String {
    format!(
        r#"{{"machine":"press-{}","ts":"2024-01-01T00:{:02}:{:02}.250Z","temperature":{}.5,"vibration":0.0{},"pressure":1013.25}}"#,
        number % 16,
        number / 60 % 60,
        number % 60,
        number % 90,
        number
    )
}

/// Beside what is wanted, twice as much that is not.
fn rich_json(number: u64) -> String {
    let wanted = wide_json(number);
    let wanted = wanted.trim_end_matches('}');
    format!(
        r#"{wanted},"site":{{"name":"north \"2\"","line":{}}},"operator":"A. N. Other","firmware":"2.11.{}","quality":[192,192,0],"shift":null,"is_warm":true,"note":"Temperatur in °C"}}"#,
        number % 7,
        number % 10
    )
}

fn long_json(number: u64) -> String {
    let code = ["temperature", "vibration", "pressure", "note"][number as usize % 4];
    let (machine, time) = (number / 4 % 16, 1_700_000_000 + number / 4);
    format!(r#"{{"machine":"press-{machine}","ts":{time},"code":"{code}","value":{number}.5}}"#)
}

fn wide_csv(number: u64) -> String {
    let (machine, time) = (number % 16, 1_700_000_000 + number);
    format!("press-{machine},{time},{}.5,0.0{number},1013.25", number % 90)
}

/// A batch in which every 256th message is cut off.
fn damaged_json(number: u64) -> String {
    let mut record = wide_json(number);
    if number % 256 == 255 {
        record.pop();
    }
    record
}

fn micros(number: u64) -> i64 {
    (1_700_000_000 + number as i64) * 1_000_000
}

fn wide_avro(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let machine = format!("press-{}", number % 16);
    long(machine.len() as i64, &mut bytes);
    bytes.extend(machine.as_bytes());
    long(micros(number), &mut bytes);
    long(1, &mut bytes);
    bytes.extend((number as f64 + 0.5).to_le_bytes());
    bytes.extend((number as f32 * 0.01).to_le_bytes());
    bytes.extend(1013.25_f64.to_le_bytes());
    bytes
}

/// Avro's zigzag number of variable length.
fn long(value: i64, bytes: &mut Vec<u8>) {
    let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while left > 0x7F {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
}

/// A stream of one batch.
fn wide_arrow(message: u64) -> Vec<u8> {
    let numbers = message * BATCH..(message + 1) * BATCH;
    let keys = numbers.clone().map(|number| format!("press-{}", number % 16));
    let channel = |scale: f32| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(numbers.clone().map(|n| n as f32 * scale)))
    };
    let columns: [(&str, ArrayRef); 5] = [
        ("machine", Arc::new(StringArray::from_iter_values(keys))),
        ("ts", Arc::new(TimestampMicrosecondArray::from_iter_values(numbers.clone().map(micros)))),
        ("temperature", channel(0.5)),
        ("vibration", channel(0.01)),
        ("pressure", channel(1.25)),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).expect("a schema");
    writer.write(&batch).expect("room");
    writer.into_inner().expect("room")
}

/// Nanoseconds of the processor and of the wall in one run.
fn timed(run: &mut dyn FnMut()) -> (f64, f64) {
    let (cpu, wall) = (ThreadTime::now(), Instant::now());
    (0..REPEATS).for_each(|_| run());
    (cpu.elapsed().as_secs_f64() * 1e9, wall.elapsed().as_secs_f64() * 1e9)
}

/// Times `ours`, which decodes `count` records, and its yardstick by turns.
fn compare(
    name: &str,
    count: u64,
    ours: &mut dyn FnMut(),
    yardstick: Option<(&str, &mut dyn FnMut())>,
) {
    let rounds = measure::count("ROUNDS", 15);
    let records = count as f64 * REPEATS as f64;
    let print = |name: &str, times: &[(f64, f64)]| {
        let cpu = median(times.iter().map(|time| time.0 / records));
        let wall = median(times.iter().map(|time| time.1 / records));
        println!("{name} {cpu:.1} {wall:.1}");
    };
    let Some((other, theirs)) = yardstick else {
        ours();
        print(name, &(0..rounds).map(|_| timed(ours)).collect::<Vec<_>>());
        return;
    };
    ours();
    theirs();
    let both: Vec<_> = (0..rounds).map(|_| (timed(ours), timed(theirs))).collect();
    print(name, &both.iter().map(|both| both.0).collect::<Vec<_>>());
    print(&format!("{name}/{other}"), &both.iter().map(|both| both.1).collect::<Vec<_>>());
    let cpu = median(both.iter().map(|(ours, theirs)| theirs.0 / ours.0));
    let wall = median(both.iter().map(|(ours, theirs)| theirs.1 / ours.1));
    println!("{name}/ratio {cpu:.2} {wall:.2}");
}

fn simd_json(messages: &Messages) -> impl FnMut() {
    let mut buffers = simd_json::Buffers::default();
    let mut tape = simd_json::Tape::null();
    let mut copy = Vec::new();
    move || {
        for index in 0..messages.len() {
            copy.clear();
            copy.extend_from_slice(messages.get(index).payload);
            let mut filled = std::mem::replace(&mut tape, simd_json::Tape::null()).reset();
            // A damaged message is an error, as it is to us.
            let _ = black_box(simd_json::fill_tape(&mut copy, &mut buffers, &mut filled));
            tape = filled.reset();
        }
    }
}

fn apache_avro(messages: &Messages) -> impl FnMut() {
    let schema = AvroSchema::parse_str(SCHEMA).expect("a schema");
    move || {
        let reader = GenericDatumReader::builder(&schema).build().expect("a reader");
        for index in 0..messages.len() {
            let mut payload = messages.get(index).payload;
            black_box(reader.read_value(&mut payload).expect("a record"));
        }
    }
}

fn arrow_ipc(messages: &Messages) -> impl FnMut() {
    move || {
        for index in 0..messages.len() {
            let payload = messages.get(index).payload;
            for batch in StreamReader::try_new(payload, None).expect("a stream") {
                black_box(batch.expect("a batch"));
            }
        }
    }
}

fn main() {
    let wanted = wanted();
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| name.contains(wanted));
    let columns = ["machine", "ts", "temperature", "vibration", "pressure"].map(str::to_owned);
    let csv = Csv { columns: columns.to_vec(), ..Csv::default() };
    let mut schema = tempfile::NamedTempFile::new().expect("a file");
    schema.write_all(SCHEMA.as_bytes()).expect("room");
    let avro = Avro { schema: Some(schema.path().to_owned()), framing: Some(Framing::None) };
    let lane = Lane::new("plant", 0);

    let (wide, long) = (Layout::Wide, Layout::Long);
    let cases = [
        ("json", wide, Format::Json, messages(MESSAGES, wide_json)),
        ("json-rich", wide, Format::Json, messages(MESSAGES, rich_json)),
        ("json-long", long, Format::Json, messages(MESSAGES, long_json)),
        ("json-damaged", wide, Format::Json, messages(MESSAGES, damaged_json)),
        ("csv", wide, Format::Csv, messages(MESSAGES, wide_csv)),
        ("avro", wide, Format::Avro, messages(MESSAGES, wide_avro)),
        ("arrow", wide, Format::Arrow, messages(1, wide_arrow)),
        ("arrow-several", wide, Format::Arrow, messages(BATCHES, wide_arrow)),
    ];
    for (name, layout, format, messages) in cases {
        if !is_wanted(name) {
            continue;
        }
        let (avro, csv) = (avro.clone(), csv.clone());
        let encoding = Encoding { format: Some(format), csv, avro, ..Encoding::default() };
        let mut decoder = Decoder::new(&records(layout), &encoding).expect("valid settings");
        let per_message = if format == Format::Arrow { BATCH } else { 1 };
        let count = messages.len() as u64 * per_message;
        let mut ours = || {
            black_box(decoder.decode(&lane, &messages).expect("a schema"));
        };
        match format {
            Format::Json => {
                let mut theirs = simd_json(&messages);
                compare(name, count, &mut ours, Some(("simd-json", &mut theirs)));
            }
            Format::Avro => {
                let mut theirs = apache_avro(&messages);
                compare(name, count, &mut ours, Some(("apache-avro", &mut theirs)));
            }
            Format::Arrow => {
                let mut theirs = arrow_ipc(&messages);
                compare(name, count, &mut ours, Some(("arrow-ipc", &mut theirs)));
            }
            _ => compare(name, count, &mut ours, None),
        }
    }
}
