//! Lines of text, taken apart by regular expressions.
//!
//! The named groups of the first pattern that matches a line are its fields. A line that none
//! matches is no record. The line breaks at the end of a message do not count; those within are
//! characters like others, so that the lines of a stack trace sent as one message stay together.

use std::ops::Range;
use std::sync::Arc;

use regex::{CaptureLocations, Regex, RegexBuilder};

use super::columns::{Cell, Row, RowBuilder, RowRules, Rows, quoted, shorten};
use super::error::DecodeError;
use super::{CHUNK_MESSAGES, Refusal};
use crate::config;
use crate::source::Messages;

/// Decodes messages that are one line each.
pub(super) struct Log {
    rules: Arc<RowRules>,
    patterns: Vec<Pattern>,
}

struct Pattern {
    regex: Regex,
    /// Names of its groups.
    names: Vec<String>,
    /// Per field of the rules: the number of the group that holds it.
    groups: Vec<Option<usize>>,
    /// Where the groups of the present line are.
    found: CaptureLocations,
}

impl Log {
    /// # Errors
    /// If a pattern is no regular expression, or lacks a group that every record needs.
    pub fn new(rules: Arc<RowRules>, log: &config::Log) -> Result<Self, DecodeError> {
        // The whole line, where nothing takes it apart.
        let whole = [r"^(?<message>.*)$".to_owned()];
        let patterns = if log.patterns.is_empty() { &whole[..] } else { &log.patterns };
        let patterns = patterns.iter().map(|pattern| Pattern::new(&rules, pattern));
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()?, rules })
    }

    /// The rows of the messages in `range`, at most [`CHUNK_MESSAGES`] of them, one each.
    pub fn decode(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        debug_assert!(range.len() <= CHUNK_MESSAGES);
        let rules = Arc::clone(&self.rules);
        let mut rows = RowBuilder::with_capacity(&rules, range.len());
        for index in range {
            rows.of_message(index);
            let payload = messages.get(index).payload;
            let Ok(line) = std::str::from_utf8(payload) else {
                rows.refuse("expected a line of text, found text that is not UTF-8");
                continue;
            };
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                rows.refuse("expected a line of text, found an empty message");
                continue;
            }
            match self.patterns.iter_mut().find_map(|pattern| pattern.read(line)) {
                Some(row) => rows.push(&row),
                None => rows.refuse(&format!(
                    "expected a line that matches one of the {} source.log.patterns, found \"{}\"",
                    self.patterns.len(),
                    shorten(line)
                )),
            }
        }
        Ok(rows.finish())
    }
}

impl Pattern {
    fn new(rules: &RowRules, pattern: &str) -> Result<Self, DecodeError> {
        let failed = |reason: String| DecodeError::Pattern { pattern: pattern.to_owned(), reason };
        let regex = RegexBuilder::new(pattern)
            .dot_matches_new_line(true)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let names: Vec<String> = regex.capture_names().flatten().map(str::to_owned).collect();
        for channel in rules.check_columns(&names)? {
            tracing::warn!(
                channel,
                pattern,
                "channel is no group of the pattern: its values are missing"
            );
        }
        let group =
            |field: &String| regex.capture_names().position(|name| name == Some(field.as_str()));
        let groups = rules.fields().iter().map(group).collect();
        Ok(Self { found: regex.capture_locations(), regex, names, groups })
    }

    /// The fields of `line`, if it matches.
    fn read<'l>(&'l mut self, line: &'l str) -> Option<LineRow<'l>> {
        self.regex.captures_read(&mut self.found, line)?;
        Some(LineRow { pattern: self, line })
    }
}

struct LineRow<'l> {
    pattern: &'l Pattern,
    line: &'l str,
}

impl Row for LineRow<'_> {
    fn cell(&self, field: usize) -> Cell<'_> {
        let Some(group) = self.pattern.groups[field] else { return Cell::Absent };
        match self.pattern.found.get(group) {
            Some((start, end)) => Cell::Text(&self.line[start..end]),
            None => Cell::Null,
        }
    }

    fn found(&self) -> String {
        quoted(&self.pattern.names)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Float32Type, TimestampMicrosecondType};

    use super::*;
    use crate::config::{Encoding, Format, Layout, Records};
    use crate::decode::{
        Decoded, Decoder, KEY_COLUMN, MESSAGE_COLUMN, SEVERITY_COLUMN, TIME_COLUMN,
    };
    use crate::source::Lane;

    /// `TIME HOST LEVEL message`.
    const LEVELLED: &str = r"^(?<time>\S+) (?<host>\S+) (?:(?<level>[A-Z]+) )?(?<message>.*)$";

    fn records() -> Records {
        Records {
            layout: Layout::Log,
            key: Some("host".into()),
            time: Some("time".into()),
            severity: Some("level".into()),
            ..Records::default()
        }
    }

    fn decoder(records: &Records, patterns: &[&str]) -> Result<Decoder, DecodeError> {
        let patterns = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let log = config::Log { patterns };
        Decoder::new(records, &Encoding { format: Some(Format::Log), log, ..Encoding::default() })
    }

    fn decode(decoder: &mut Decoder, lines: &[&[u8]]) -> Decoded {
        let mut messages = Messages::default();
        for (offset, line) in (0..).zip(lines) {
            messages.push(offset, Some(7000), Some(b"key"), line, Vec::new());
        }
        decoder.decode(&Lane::new("logs", 0), &messages).unwrap()
    }

    /// (key, seconds, text, severity) of each record.
    fn lines(decoded: &Decoded) -> Vec<(String, i64, String, Option<f32>)> {
        let batch = &decoded.records;
        let text =
            |column: usize, row| batch.column(column).as_string::<i32>().value(row).to_owned();
        let times = batch.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
        let severities = batch.column(SEVERITY_COLUMN).as_primitive::<Float32Type>();
        (0..batch.num_rows())
            .map(|row| {
                let severity = severities.is_valid(row).then(|| severities.value(row));
                let seconds = times.value(row) / 1_000_000;
                (text(KEY_COLUMN, row), seconds, text(MESSAGE_COLUMN, row), severity)
            })
            .collect()
    }

    fn line(
        key: &str,
        seconds: i64,
        text: &str,
        severity: Option<f32>,
    ) -> (String, i64, String, Option<f32>) {
        (key.to_owned(), seconds, text.to_owned(), severity)
    }

    #[test]
    fn named_groups_of_the_first_pattern_that_matches_are_the_fields() {
        let legacy = r"^<(?<level>\d)>(?<host>\w+)@(?<time>\d+): (?<message>.*)$";
        let mut decoder = decoder(&records(), &[legacy, LEVELLED]).unwrap();
        let decoded = decode(
            &mut decoder,
            &[
                b"1970-01-01T00:00:05Z web-1 ERROR it broke\r\n",
                b"<3>db@6: it broke, too",
                b"1970-01-01T00:00:07Z web-1 no level here",
                b"1970-01-01T00:00:08Z web-1 WARN first\n  at second\n",
            ],
        );
        assert_eq!(
            lines(&decoded),
            [
                line("web-1", 5, "it broke", Some(4.0)),
                line("db", 6, "it broke, too", Some(4.0)),
                line("web-1", 7, "no level here", None),
                line("web-1", 8, "first\n  at second", Some(3.0)),
            ]
        );
        assert!(decoded.dead_letters.is_empty());
    }

    #[test]
    fn what_is_no_line_is_a_dead_letter_and_its_neighbours_go_on() {
        let mut decoder = decoder(&records(), &[LEVELLED]).unwrap();
        let long = format!("x{}", "é".repeat(1_000_000));
        let decoded = decode(
            &mut decoder,
            &[
                b"1970-01-01T00:00:05Z web-1 INFO good",
                b"nothing-like-it",
                b"1970-01-01T00:00:05Z web-1 INFO \xff\xfe",
                b"",
                b"\r\n",
                b"1970-13-01T00:00:05Z web-1 INFO good",
                long.as_bytes(),
                b"1970-01-01T00:00:06Z web-1 INFO good",
            ],
        );
        assert_eq!(lines(&decoded).len(), 2);
        let reasons: Vec<(i64, &str)> = decoded
            .dead_letters
            .iter()
            .map(|letter| (letter.offset, letter.reason.as_str()))
            .collect();
        let unmatched = "expected a line that matches one of the 1 source.log.patterns, found \"";
        assert_eq!(reasons[0], (1, format!("{unmatched}nothing-like-it\"").as_str()));
        assert_eq!(reasons[1], (2, "expected a line of text, found text that is not UTF-8"));
        for (at, offset) in [(2, 3), (3, 4)] {
            assert_eq!(reasons[at], (offset, "expected a line of text, found an empty message"));
        }
        assert!(reasons[4].1.starts_with("field \"time\": expected a time"), "{}", reasons[4].1);
        assert!(reasons[5].1.starts_with(unmatched) && reasons[5].1.len() < 300);
        assert_eq!(reasons.len(), 6);
    }

    #[test]
    fn without_patterns_the_line_is_the_text_and_the_message_has_key_and_time() {
        let records = Records { layout: Layout::Log, ..Records::default() };
        let decoded = decode(&mut decoder(&records, &[]).unwrap(), &[b"it broke"]);
        assert_eq!(lines(&decoded), [line("key", 7, "it broke", None)]);
    }

    #[test]
    fn a_pattern_that_cannot_be_read_or_lacks_a_field_is_refused() {
        let refused = |pattern: &str| decoder(&records(), &[pattern]).err().unwrap().to_string();
        let broken = refused("(?<time>");
        assert!(
            broken.starts_with("source.log.patterns: \"(?<time>\": regex parse error"),
            "{broken}"
        );
        assert_eq!(
            refused("(?<time>.) (?<message>.)"),
            "records.key: expected \"host\" among the columns, found \"time\", \"message\""
        );
    }

    /// The examples of docs/logs.md.
    #[test]
    fn lines_of_well_known_systems_are_taken_apart() {
        let (key, level) = (Some("host"), Some("level"));
        for (pattern, key, severity, format, line, expected) in [
            (
                r"^(?<time>\w+ +\d+ [\d:]+) (?<host>\S+) (?<message>[^:\[]+(?:\[\d+\])?: .*)$",
                key,
                None,
                Some("%b %d %H:%M:%S"),
                "Dec 10 06:55:46 LabSZ sshd[24200]: Invalid user a from 1.2.3.4",
                "LabSZ sshd[24200]: Invalid user a from 1.2.3.4",
            ),
            (
                r"^<\d+>1 (?<time>\S+) (?<host>\S+) (?<app>\S+) \S+ \S+ (?:\[.*\])?-? (?<message>.*)$",
                key,
                None,
                None,
                "<34>1 2026-01-01T00:00:00Z web app 77 ID47 - it broke",
                "web it broke",
            ),
            (
                r"^\S+ \S+ \S+ \[(?<time>[^\]]+)\] (?<message>.*)$",
                None,
                None,
                Some("%d/%b/%Y:%H:%M:%S %z"),
                "1.2.3.4 - - [10/Oct/2026:13:55:36 +0000] \"GET / HTTP/1.1\" 200 612",
                "key \"GET / HTTP/1.1\" 200 612",
            ),
            (
                r"^(?<time>\d+ \d+) \d+ (?<level>[A-Z]+) (?<host>[^:]+): (?<message>.*)$",
                key,
                level,
                Some("%y%m%d %H%M%S"),
                "081109 203615 148 INFO dfs.DataNode$PacketResponder: PacketResponder 1 ends",
                "dfs.DataNode$PacketResponder PacketResponder 1 ends",
            ),
            (
                r"^\S+ (?<time>\d+) \S+ (?<host>[^-]+)\S* \S+ \S+ (?<message>\S+ \S+ (?<level>[A-Z]+) .*)$",
                key,
                level,
                None,
                "- 1117838570 2005.06.03 R02-M1-N0-C:J12-U11 2005-06-03-15.42.50.675872 \
                 R02-M1-N0-C:J12-U11 RAS KERNEL INFO instruction cache parity error corrected",
                "R02 RAS KERNEL INFO instruction cache parity error corrected",
            ),
            (
                r"^(?<time>\S+ \S+) (?<level>[A-Z]+) (?<message>.*)$",
                None,
                level,
                Some("%y/%m/%d %H:%M:%S"),
                "17/06/09 20:10:40 INFO executor.Executor: Running task",
                "key executor.Executor: Running task",
            ),
            (
                r"^(?<time>\S+ [\d:]+),\d+ - (?<level>[A-Z]+) +\[.*?\] - (?<message>.*)$",
                None,
                level,
                None,
                "2015-07-29 17:41:44,747 - INFO  [QuorumPeer[myid=1]/0:0:0:0:0:0:0:0:2181:FastLeaderElection@774] \
                 - Notification time out: 3200",
                "key Notification time out: 3200",
            ),
        ] {
            let records = Records {
                key: key.map(str::to_owned),
                severity: severity.map(str::to_owned),
                time_format: format.map(str::to_owned),
                ..records()
            };
            let decoded = decode(&mut decoder(&records, &[pattern]).unwrap(), &[line.as_bytes()]);
            assert!(decoded.dead_letters.is_empty(), "{}", decoded.dead_letters[0].reason);
            let (key, _, text, found) = lines(&decoded).remove(0);
            assert_eq!(format!("{key} {text}"), expected);
            assert_eq!(found, severity.map(|_| 1.0), "{line}");
        }
    }
}
