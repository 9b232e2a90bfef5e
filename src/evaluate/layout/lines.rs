//! Recordings that are lines of text.

use std::fs;
use std::path::Path;

use regex::{Regex, RegexBuilder};

use super::Rows;
use crate::config;
use crate::evaluate::EvaluateError;

/// Group of a pattern that tells whether a line is anomalous. It is nobody's input.
const LABEL: &str = "label";
/// What the group holds where a line is normal, or nothing: so it is in the logs of BGL,
/// Thunderbird, Spirit and Liberty (Oliner & Stearley 2007).
const NORMAL: [&str; 3] = ["-", "0", "false"];

/// Times and labels of the lines of a file, by the first of the patterns that matches. A line that
/// none matches is normal and of no time; blank ones are no rows. There are labels where a pattern
/// has a group for them.
///
/// # Errors
/// If the file cannot be read, or a pattern is no regular expression.
pub(super) fn read(path: &Path, time: &str, log: &config::Log) -> Result<Rows, EvaluateError> {
    let failed = |reason: &dyn std::fmt::Display| EvaluateError::file(path, reason);
    let patterns = log
        .patterns
        .iter()
        .map(|pattern| RegexBuilder::new(pattern).dot_matches_new_line(true).build())
        .collect::<Result<Vec<Regex>, _>>()
        .map_err(|error| failed(&error))?;
    let bytes = fs::read(path).map_err(|error| failed(&error))?;

    let mut rows = Rows::default();
    let mut labels = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line = String::from_utf8_lossy(line);
        let found = patterns.iter().find_map(|pattern| pattern.captures(&line));
        let group = |name| found.as_ref().and_then(|groups| groups.name(name));
        let label = group(LABEL).map_or("", |label| label.as_str());
        labels.push(!label.is_empty() && !NORMAL.contains(&label));
        rows.times.push(group(time).map_or_else(String::new, |time| time.as_str().to_owned()));
        rows.lines.push(number);
    }
    let is_label = |name: Option<&str>| name == Some(LABEL);
    let is_labelled = patterns.iter().any(|pattern| pattern.capture_names().any(is_label));
    rows.labels = is_labelled.then_some(labels);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn rows(pattern: &str) -> Rows {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("one.log");
        fs::write(&path, "- 5 fine\n\nAPPREAD 6 broke\r\nno time\n").unwrap();
        let log = config::Log { patterns: vec![pattern.to_owned()] };
        read(&path, "time", &log).unwrap()
    }

    #[test]
    fn lines_have_the_time_and_label_that_a_pattern_finds() {
        let found = rows(r"^(?<label>\S+) (?<time>\d+) (?<message>.*)$");
        assert_eq!(found.times, ["5", "6", ""]);
        assert_eq!(found.lines, [1, 3, 4]);
        assert_eq!(found.labels, Some(vec![false, true, false]));
        assert_eq!(rows(r"^\S+ (?<time>\d+) (?<message>.*)$").labels, None);
    }
}
