//! JSON messages: no bytes make the decoder panic, and each message is accounted for.

#![no_main]

use contrastream::config::Encoding;
use contrastream::decode::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((records, _, data)) = contrastream_fuzz::settings(data) else { return };
    let mut decoder =
        Decoder::new(&records, &Encoding::default()).expect("no field is named twice");
    contrastream_fuzz::decode(&mut decoder, &records, &contrastream_fuzz::messages(data));
});
