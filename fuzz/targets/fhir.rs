//! FHIR messages: no bytes make the decoder panic, and no raw identifier is in what it refuses.

#![no_main]

use contrastream::config::{Encoding, Format, Layout, Records, Secret};
use contrastream::decode::Decoder;
use contrastream::source::{Lane, Messages};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let records = Records {
        layout: Layout::Long,
        channels: ["8867-4", "8480-6"].map(str::to_owned).to_vec(),
        key_hash: data
            .first()
            .is_some_and(|choice| choice & 1 == 1)
            .then(|| Secret::new("a salt of sixteen bytes or more")),
        ..Records::default()
    };
    let encoding = Encoding { format: Some(Format::Fhir), ..Encoding::default() };
    let mut decoder = Decoder::new(&records, &encoding).expect("nothing is named twice");
    let mut messages = Messages::default();
    messages.push(1, None, None, data.get(1..).unwrap_or_default(), Vec::new());
    let decoded =
        decoder.decode(&Lane::new("fuzz", 0), &messages).expect("nothing is out of reach");
    assert!(decoded.dead_letters.len() <= 1);
    for letter in &decoded.dead_letters {
        assert!(!letter.reason.is_empty());
        assert!(records.key_hash.is_none() || letter.payload.is_empty());
    }
});
