//! What the benchmarks share that print lines of their own.

// Each of them uses a part of it.
#![allow(dead_code)]

use std::fmt::Write;

/// A reading of `machine` as JSON, called `key` there: a wave per channel, and noise that is the same in
/// every run.
pub fn record(key: &str, ms: u128, (machine, reading): (usize, usize), channels: usize) -> String {
    let mut record = format!(r#"{{"machine":"{key}","ts":{ms}"#);
    for channel in 0..channels {
        let phase = reading as f64 / (5 + machine % 7 + channel) as f64;
        let noise = (reading * 7919 + channel * 104_729 + machine * 31) % 1000;
        let value = 10.0 * phase.sin() + noise as f64 / 1000.0;
        write!(record, r#","c{channel}":{value:.3}"#).expect("a string takes everything");
    }
    record.push('}');
    record
}

/// The number that a variable holds, such as `RUNS`, or the `usual` one.
pub fn count(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |count| count.parse().expect("a number"))
}

/// The filter on the command line, if there is one.
pub fn wanted() -> Option<String> {
    std::env::args().skip(1).find(|argument| !argument.starts_with("--"))
}

/// The value that half of `values` are below; NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value that a `share` of `values` are below; NaN of none.
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get((values.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}
