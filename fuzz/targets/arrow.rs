//! Arrow IPC streams: no bytes make the decoder panic or ask for memory without measure, and a
//! message costs its neighbours nothing.

#![no_main]

use contrastream::config::{Encoding, Format};
use contrastream::decode::Decoder;
use contrastream::source::{Lane, Messages};
use libfuzzer_sys::fuzz_target;

/// A stream with two rows and all fields of records.
const SOUND: &[u8] = include_bytes!("../seeds/arrow/plain");

fuzz_target!(|data: &[u8]| {
    // Its first byte chooses the settings, as that of `data` does.
    let Some((_, _, sound)) = contrastream_fuzz::settings(SOUND) else { return };
    let Some((records, _, data)) = contrastream_fuzz::settings(data) else { return };
    let encoding = Encoding { format: Some(Format::Arrow), ..Encoding::default() };
    let mut decoder = Decoder::new(&records, &encoding).expect("no field is named twice");
    let mut messages = Messages::default();
    for (offset, payload) in (100..).zip([sound, data, sound]) {
        messages.push(offset, None, Some(b"key"), payload, Vec::new());
    }
    let lane = Lane::new("fuzz", 0);
    let decoded = decoder.decode(&lane, &messages).expect("nothing is out of reach");
    assert!(decoded.dead_letters.iter().all(|letter| letter.offset == 101));
    assert!(decoded.dead_letters.len() <= 1);

    let mut alone = Messages::default();
    alone.push(101, None, Some(b"key"), data, Vec::new());
    let alone = decoder.decode(&lane, &alone).expect("nothing is out of reach");
    assert_eq!(alone.dead_letters, decoded.dead_letters);
});
