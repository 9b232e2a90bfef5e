//! CSV messages: no bytes make the decoder panic, and each message is accounted for.

#![no_main]

use contrastream::config::{Csv, Encoding, Format};
use contrastream::decode::Decoder;
use libfuzzer_sys::fuzz_target;

const COLUMNS: [&str; 7] = ["key", "time", "a", "code", "value", "b", "note"];

fuzz_target!(|data: &[u8]| {
    let Some((records, choice, data)) = contrastream_fuzz::settings(data) else { return };
    let csv = Csv {
        delimiter: if choice & 4 == 0 { ',' } else { ';' },
        columns: COLUMNS.map(str::to_owned).to_vec(),
    };
    let encoding = Encoding { format: Some(Format::Csv), csv, ..Encoding::default() };
    let mut decoder = Decoder::new(&records, &encoding).expect("the columns hold every field");
    contrastream_fuzz::decode(&mut decoder, &records, &contrastream_fuzz::messages(data));
});
