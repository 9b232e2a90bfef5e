//! The pipeline file: no text makes the parser panic, and a pipeline that stands up is the same
//! when it is written out and read again.

#![no_main]

use contrastream::config::Pipeline;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let pipeline = match Pipeline::from_toml(text, "fuzz.toml", &[]) {
        Ok(pipeline) => pipeline,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let written = pipeline.to_string();
    let read = Pipeline::from_toml(&written, "written.toml", &[]);
    match read {
        Ok(read) => assert_eq!(read, pipeline.redacted(), "{written}"),
        Err(error) => panic!("{error}\n{written}"),
    }
});
