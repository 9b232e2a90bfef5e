//! Decoding of small records: one batch of 4096 messages, records a second.

use std::hint::black_box;

use contrastream::config::{Csv, Encoding, Format, Layout, Records};
use contrastream::decode::Decoder;
use contrastream::source::{Lane, Messages};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const MESSAGES: u64 = 4096;

fn records(layout: Layout) -> Records {
    Records {
        layout,
        key: Some("machine".to_owned()),
        time: Some("ts".to_owned()),
        channels: ["temperature", "vibration", "pressure"].map(str::to_owned).to_vec(),
        ..Records::default()
    }
}

fn messages(record: impl Fn(u64) -> String) -> Messages {
    let mut messages = Messages::default();
    for (offset, number) in (0..).zip(0..MESSAGES) {
        messages.push(offset, None, None, record(number).as_bytes(), Vec::new());
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

fn decode(criterion: &mut Criterion) {
    let columns = ["machine", "ts", "temperature", "vibration", "pressure"].map(str::to_owned);
    let csv = Csv { columns: columns.to_vec(), ..Csv::default() };
    let cases = [
        ("json", Layout::Wide, Format::Json, messages(wide_json)),
        ("json_long", Layout::Long, Format::Json, messages(long_json)),
        ("json_damaged", Layout::Wide, Format::Json, messages(damaged_json)),
        ("csv", Layout::Wide, Format::Csv, messages(wide_csv)),
    ];
    let lane = Lane::new("plant", 0);
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(MESSAGES));
    for (name, layout, format, messages) in cases {
        let encoding = Encoding { format: Some(format), csv: csv.clone(), ..Encoding::default() };
        let mut decoder = Decoder::new(&records(layout), &encoding).expect("valid settings");
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(decoder.decode(&lane, &messages)));
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
