//! Avro records: no bytes make the decoder panic or ask for memory without measure, and each
//! message is accounted for.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use contrastream::config::{self, Encoding, Format, Framing};
use contrastream::decode::Decoder;
use libfuzzer_sys::fuzz_target;

/// Flat, and with all that Avro knows.
const SCHEMAS: [&str; 2] = [
    r#"{"type":"record","name":"R","fields":[
        {"name":"key","type":"string"},{"name":"time","type":["null","long"]},
        {"name":"code","type":{"type":"enum","name":"E","symbols":["a","b","c"]}},
        {"name":"value","type":"double"},
        {"name":"a","type":["null","float"]},{"name":"b","type":"int"}]}"#,
    r#"{"type":"record","name":"R","fields":[
        {"name":"key","type":{"type":"string","logicalType":"uuid"}},
        {"name":"time","type":{"type":"long","logicalType":"timestamp-nanos"}},
        {"name":"code","type":["bytes","string"]},
        {"name":"value","type":{"type":"bytes","logicalType":"decimal","precision":40}},
        {"name":"a","type":["null","boolean",{"type":"map","values":["null","long"]}]},
        {"name":"b","type":{"type":"array","items":["null",{"type":"record","name":"I","fields":[
            {"name":"x","type":{"type":"fixed","name":"F","size":12,"logicalType":"duration"}},
            {"name":"y","type":{"type":"int","logicalType":"date"}},
            {"name":"z","type":{"type":"array","items":"null"}}]}]}}]}"#,
];

static FILES: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let file = |(number, schema)| {
        let name = format!("fuzz-{}-{number}.avsc", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, schema).expect("the folder of temporary files can be written to");
        path
    };
    SCHEMAS.iter().enumerate().map(file).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((records, choice, data)) = contrastream_fuzz::settings(data) else { return };
    let schema = FILES[usize::from(choice >> 2) % FILES.len()].clone();
    let avro = config::Avro { schema: Some(schema), framing: Some(Framing::None) };
    let encoding = Encoding { format: Some(Format::Avro), avro, ..Encoding::default() };
    let mut decoder = Decoder::new(&records, &encoding).expect("the schemas are sound");
    contrastream_fuzz::decode(&mut decoder, &records, &contrastream_fuzz::messages(data));
});
