//! Lines: no bytes make the decoder panic, each message is accounted for, and whatever the text, the
//! templates go on from where they were saved.

#![no_main]

use contrastream::config::{Encoding, Format, Layout, Log, Records};
use contrastream::decode::{Decoder, log_schema};
use contrastream::source::{Lane, Messages};
use contrastream::templates::Templates;
use libfuzzer_sys::fuzz_target;

const PATTERNS: [&str; 2] = [
    r"^(?<time>\S+) (?<key>\S+) (?:(?<level>[A-Z]+) )?(?<message>.*)$",
    r"^<(?<level>\d)>(?<key>\w+)@(?<time>\d+): (?<message>.*)$",
];

fuzz_target!(|data: &[u8]| {
    let records = Records {
        layout: Layout::Log,
        key: Some("key".to_owned()),
        time: Some("time".to_owned()),
        severity: Some("level".to_owned()),
        ..Records::default()
    };
    let log = Log { patterns: PATTERNS.map(str::to_owned).to_vec() };
    let encoding = Encoding { format: Some(Format::Log), log, ..Encoding::default() };
    let mut decoder = Decoder::new(&records, &encoding).expect("the patterns hold every field");
    let sent = contrastream_fuzz::messages(data);
    let mut messages = Messages::default();
    for (offset, (key, payload)) in (0..).zip(&sent) {
        messages.push(offset, None, *key, payload, Vec::new());
    }
    let decoded =
        decoder.decode(&Lane::new("fuzz", 0), &messages).expect("nothing is out of reach");
    assert_eq!(decoded.records.schema(), log_schema());
    assert_eq!(decoded.records.num_rows() + decoded.dead_letters.len(), sent.len());

    let text = String::from_utf8_lossy(data);
    let mut templates = Templates::default();
    for line in text.lines() {
        let (channels, tag) = templates.read(line, 1.0);
        let known = channels.iter().filter(|value| value.is_finite()).count();
        assert_eq!(known + 1, channels.len(), "all but the silence are known");
        assert!(tag.weight.is_finite() && !templates.all().is_empty());
    }
    let saved = postcard::to_stdvec(&templates).expect("templates can be saved");
    let mut loaded: Templates = postcard::from_bytes(&saved).expect("and loaded");
    for line in text.lines() {
        assert_eq!(templates.read(line, 1.0).1, loaded.read(line, 1.0).1);
    }
    // Bytes that were never saved are refused, or are templates like any.
    if let Ok(mut odd) = postcard::from_bytes::<Templates>(data) {
        for line in text.lines() {
            odd.read(line, 1.0);
        }
    }
});
