//! How log lines are made: a head of time, host, severity, …, and a message.
//!
//! Line formats are many, but their heads are made of the same things in the same places. So a head
//! is worked out: where most lines have a time; which of the words before the message are
//! severities, brackets, names with a colon. What comes after the last of these is the message.

use regex::{Captures, Regex};

use super::table::Value;
use super::time::Clock;

/// Lines that a head is worked out from.
const LOOKED_AT: usize = 2_000;
/// Share of lines that must have the same thing in the same place.
const MOST: f64 = 0.95;
/// Words that a head may have.
const LONGEST_HEAD: usize = 16;
/// Stands for the time in a line that is taken apart.
const TIME: char = '\u{1}';

/// What times look like. What matches must be a time as well.
const TIMES: [&str; 14] = [
    r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(?:[.,]\d+)?(?:Z|[+-]\d{2}:?\d{2})?",
    r"\d{4}-\d{2}-\d{2}-\d{2}\.\d{2}\.\d{2}(?:\.\d+)?",
    r"\d{4}/\d{2}/\d{2} \d{2}:\d{2}:\d{2}(?:\.\d+)?",
    r"\d{2}/[A-Z][a-z]{2}/\d{4}:\d{2}:\d{2}:\d{2} [+-]\d{4}",
    r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d{2}:\d{2}:\d{2}(?:\.\d+)? \d{4}",
    r"[A-Z][a-z]{2} +\d{1,2} \d{2}:\d{2}:\d{2}",
    r"\d{2}\.\d{2}\.\d{4} \d{2}:\d{2}:\d{2}(?:\.\d+)?",
    r"\d{2}/\d{2}/\d{2} \d{2}:\d{2}:\d{2}",
    r"\d{8}-\d{1,2}:\d{1,2}:\d{1,2}:\d{1,3}",
    r"\d{6} \d{6}",
    r"\d{2}-\d{2} \d{2}:\d{2}:\d{2}\.\d+",
    r"\d{2}\.\d{2} \d{2}:\d{2}:\d{2}",
    r"\d{13}",
    r"\d{10}(?:\.\d+)?",
];

const SEVERITIES: [&str; 24] = [
    "trace",
    "verbose",
    "debug",
    "fine",
    "finer",
    "finest",
    "info",
    "information",
    "notice",
    "warn",
    "warning",
    "error",
    "err",
    "severe",
    "failure",
    "fatal",
    "crit",
    "critical",
    "alert",
    "emerg",
    "emergency",
    "panic",
    "audit",
    "config",
];
/// Severities of one letter, as Android and glog write them.
const LETTERS: &str = "VDIWEF";

/// Patterns that take lines apart.
#[derive(Clone, Debug)]
pub struct LinePatterns {
    /// Regular expressions with named groups, the first to try first.
    pub patterns: Vec<String>,
    compiled: Vec<Regex>,
}

impl LinePatterns {
    /// Patterns given by a person.
    ///
    /// # Errors
    /// The first that is no regular expression, with what is wrong about it.
    pub fn new(patterns: Vec<String>) -> Result<Self, String> {
        let compiled = patterns
            .iter()
            .map(|pattern| Regex::new(pattern).map_err(|error| format!("{pattern}: {error}")));
        Ok(Self { compiled: compiled.collect::<Result<_, _>>()?, patterns })
    }

    /// Works out how most of `lines` are made; `None` where they have no time in common.
    pub fn of_lines(lines: &[&str]) -> Option<Self> {
        let lines: Vec<&str> =
            lines.iter().copied().filter(|line| !line.trim().is_empty()).take(LOOKED_AT).collect();
        let time = common_time(&lines)?;
        let head = Head::of(&time, &lines);
        let short = format!("^.*?(?<time>{})\\s*(?<message>.*)$", time.pattern);
        // Lines with another head still have their time.
        let mut patterns = vec![head.pattern(&time)];
        let first = Self::new(patterns.clone()).ok()?;
        if lines.iter().any(|line| first.fields(line).is_none()) {
            patterns.push(short);
        }
        Self::new(patterns).ok()
    }

    /// The fields of a line; `None` where no pattern matches it.
    pub fn fields(&self, line: &str) -> Option<Vec<(String, Value)>> {
        let (pattern, found): (&Regex, Captures<'_>) =
            self.compiled.iter().find_map(|pattern| Some((pattern, pattern.captures(line)?)))?;
        let fields = pattern.capture_names().flatten().filter_map(|name| {
            let text = found.name(name)?.as_str();
            Some((name.to_owned(), Value::of_text(text)))
        });
        Some(fields.collect())
    }
}

/// A time that most lines have in the same place.
struct CommonTime {
    pattern: String,
    regex: Regex,
    /// Words before it.
    place: usize,
}

impl CommonTime {
    /// The line with its time as one word.
    fn mark(&self, line: &str) -> Option<String> {
        let found = self.find(line)?;
        Some(format!("{}{TIME}{}", &line[..found.start()], &line[found.end()..]))
    }

    fn find<'l>(&self, line: &'l str) -> Option<regex::Match<'l>> {
        let found = self.regex.find_iter(line).find(|found| is_apart(line, found))?;
        Clock::of_text(found.as_str())
            .or_else(|| Clock::of_dates(&[Value::of_text(found.as_str())]))
            .map(|_| found)
    }
}

/// Whether a match is no part of a longer word or number.
fn is_apart(line: &str, found: &regex::Match<'_>) -> bool {
    let joins = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '.' | '/');
    let before = line[..found.start()].chars().next_back();
    let after = line[found.end()..].chars().next();
    !before.is_some_and(joins) && !after.is_some_and(|letter| letter.is_alphanumeric())
}

/// The first time in the lines that is in the same place in most of them.
fn common_time(lines: &[&str]) -> Option<CommonTime> {
    let candidates = TIMES.iter().filter_map(|pattern| {
        let mut time = CommonTime {
            pattern: (*pattern).to_owned(),
            regex: Regex::new(pattern).ok()?,
            place: 0,
        };
        let places: Vec<usize> = lines
            .iter()
            .filter_map(|line| time.find(line).map(|found| words(&line[..found.start()]).len()))
            .collect();
        let (place, count) = most_common(&places)?;
        time.place = place;
        (place <= LONGEST_HEAD / 2 && count as f64 >= MOST * lines.len() as f64).then_some(time)
    });
    candidates.min_by_key(|time| time.place)
}

fn most_common(values: &[usize]) -> Option<(usize, usize)> {
    let counts = values.iter().map(|value| (*value, values.iter().filter(|v| *v == value).count()));
    counts.max_by_key(|(value, count)| (*count, std::cmp::Reverse(*value)))
}

/// The words of a line; what brackets hold together is one.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (mut depth, mut end) = (0_i32, rest.len());
        let bracketed = rest.starts_with('[');
        for (at, letter) in rest.char_indices() {
            match letter {
                '[' if bracketed => depth += 1,
                ']' if bracketed => depth -= 1,
                _ if letter.is_whitespace() && depth <= 0 => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        // A bracket that never closes holds nothing together.
        if depth > 0 {
            end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        }
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    words
}

/// What most lines have in one place of their head.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Time {
        before: String,
        after: String,
    },
    Severity {
        before: &'static str,
        after: &'static str,
    },
    /// The same few signs.
    Signs(String),
    Bracket,
    /// A name with a colon at its end, perhaps with a number in brackets.
    Named,
    /// Digits and signs.
    Number,
    Word,
}

struct Head(Vec<Part>);

impl Head {
    fn of(time: &CommonTime, lines: &[&str]) -> Self {
        let marked: Vec<String> = lines.iter().filter_map(|line| time.mark(line)).collect();
        let rows: Vec<Vec<&str>> = marked.iter().map(|line| words(line)).collect();
        let mut parts: Vec<Part> =
            (0..LONGEST_HEAD).map_while(|place| Part::of(place, &rows)).collect();
        // Whatever comes after the last sure sign of a head may be the message's.
        let is_sure = |part: &Part| !matches!(part, Part::Number | Part::Word);
        let end = parts.iter().rposition(is_sure).map_or(0, |last| last + 1);
        parts.truncate(end);
        Self(parts)
    }

    fn pattern(&self, time: &CommonTime) -> String {
        let names = self.names();
        let mut pattern = "^".to_owned();
        let mut between = r"\s*";
        for (part, name) in self.0.iter().zip(names) {
            let group = |inside: &str| match name {
                Some(name) => format!("(?<{name}>{inside})"),
                None => inside.to_owned(),
            };
            pattern += std::mem::replace(&mut between, r"\s+");
            match part {
                Part::Time { before, after } => {
                    pattern += &regex::escape(before);
                    pattern += &format!("(?<time>{})", time.pattern);
                    pattern += &regex::escape(after);
                }
                Part::Severity { before, after } => {
                    pattern += &regex::escape(before);
                    pattern += r"(?<severity>[A-Za-z]+)";
                    pattern += &regex::escape(after);
                }
                Part::Signs(signs) => pattern += &regex::escape(signs),
                Part::Bracket => pattern += r"\[(?:[^\[\]]|\[[^\]]*\])*\]:?",
                Part::Named => {
                    pattern += &group(r"[^\s\[]+?");
                    pattern += r"(?:\[[^\]]*\])?:";
                }
                Part::Number | Part::Word => pattern += &group(r"\S+"),
            }
        }
        pattern + r"\s*(?<message>.*)$"
    }

    /// Names of the parts that may be keys: a host, a service.
    fn names(&self) -> Vec<Option<&'static str>> {
        let mut names = vec![None; self.0.len()];
        let time = self.0.iter().position(|part| matches!(part, Part::Time { .. }));
        let after_time = time.map_or(0, |time| time + 1);
        let word = (after_time..self.0.len()).find(|place| self.0[*place] == Part::Word);
        let named = (after_time..self.0.len()).find(|place| self.0[*place] == Part::Named);
        let severity = self.0.iter().position(|part| matches!(part, Part::Severity { .. }));
        if let Some(named) = named {
            names[named] = Some("service");
        }
        // A class or a process comes after the severity, a machine before it.
        if let Some(word) = word.filter(|word| named.is_none_or(|named| *word < named)) {
            let is_host = severity.is_none_or(|severity| word < severity);
            names[word] = match (is_host, named) {
                (true, _) => Some("host"),
                (false, None) => Some("service"),
                (false, Some(_)) => None,
            };
        }
        names
    }
}

impl Part {
    /// What most of `rows` have at `place`; `None` beyond the end of too many.
    fn of(place: usize, rows: &[Vec<&str>]) -> Option<Self> {
        let words: Vec<&str> = rows.iter().filter_map(|row| row.get(place).copied()).collect();
        let enough = MOST * rows.len() as f64;
        if (words.len() as f64) < enough {
            return None;
        }
        let most = |is: &dyn Fn(&str) -> bool| {
            words.iter().filter(|word| is(word)).count() as f64 >= enough
        };
        let first = words.iter().find(|word| word.contains(TIME));
        if let Some((before, after)) = first.and_then(|word| word.split_once(TIME)) {
            let (before, after) = (before.to_owned(), after.to_owned());
            let same = format!("{before}{TIME}{after}");
            return most(&|word| word == same).then_some(Self::Time { before, after });
        }
        for (before, after) in [("", ""), ("[", "]"), ("", ":"), ("", ","), ("<", ">"), ("[", "]:")]
        {
            let inside = |word: &str| {
                let word = word.strip_prefix(before)?.strip_suffix(after)?;
                is_severity(word).then_some(())
            };
            if most(&|word| inside(word).is_some()) {
                return Some(Self::Severity { before, after });
            }
        }
        let signs = |word: &str| !word.contains(char::is_alphanumeric);
        if let Some(first) = words.iter().find(|word| signs(word))
            && most(&|word| word == *first)
        {
            return Some(Self::Signs((*first).to_owned()));
        }
        Some(if most(&|word| word.starts_with('[') && word.ends_with([']', ':'])) {
            Self::Bracket
        } else if most(&|word| word.len() > 1 && word.ends_with(':') && !word.contains('=')) {
            Self::Named
        } else if most(&|word| {
            word.contains(|c: char| c.is_ascii_digit()) && !word.contains(char::is_alphabetic)
        }) {
            Self::Number
        } else {
            Self::Word
        })
    }
}

fn is_severity(word: &str) -> bool {
    SEVERITIES.contains(&word.to_ascii_lowercase().as_str())
        || (word.len() == 1 && LETTERS.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of the last line, by name.
    #[track_caller]
    fn fields(lines: &[&str]) -> Vec<(String, String)> {
        let patterns = LinePatterns::of_lines(lines).expect("lines with a time");
        let fields = patterns.fields(lines[lines.len() - 1]).expect("a line that matches");
        fields.into_iter().map(|(name, value)| (name, value.to_string())).collect()
    }

    #[track_caller]
    fn assert_fields(lines: &[&str], expected: &[(&str, &str)]) {
        let expected: Vec<(String, String)> = expected
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(fields(lines), expected);
    }

    #[test]
    fn syslog_has_a_host_and_a_service() {
        let lines = [
            "Dec 10 06:55:46 gate sshd[24200]: Invalid user webmaster from 10.0.0.1",
            "Dec 10 06:55:48 gate kernel: eth0: link up",
            "Dec  9 06:55:50 gate sshd[24201]: Connection closed [preauth]",
        ];
        let expected = [
            ("time", "Dec  9 06:55:50"),
            ("host", "gate"),
            ("service", "sshd"),
            ("message", "Connection closed [preauth]"),
        ];
        assert_fields(&lines, &expected);
    }

    #[test]
    fn a_severity_ends_the_head_of_java_s_logs() {
        let lines = [
            "2024-07-29 17:41:44,747 - INFO  [Peer[myid=1]/0:0:2181:Election@774] - Time out: 3200",
            "2024-07-29 19:04:29,071 - WARN  [SendWorker:18897 x:Listener@493] - Leaving thread",
        ];
        let expected = [
            ("time", "2024-07-29 19:04:29,071"),
            ("severity", "WARN"),
            ("message", "Leaving thread"),
        ];
        assert_fields(&lines, &expected);
        let lines = [
            "17/06/09 20:10:40 INFO executor.Backend: Registered signal handlers",
            "17/06/09 20:10:41 ERROR spark.Manager: Changing view acls to: yarn",
        ];
        let expected = [
            ("time", "17/06/09 20:10:41"),
            ("severity", "ERROR"),
            ("service", "spark.Manager"),
            ("message", "Changing view acls to: yarn"),
        ];
        assert_fields(&lines, &expected);
    }

    #[test]
    fn a_time_may_stand_anywhere_in_the_head() {
        let lines = [
            "- 1117838570 2005.06.03 R02-M1 2005-06-03-15.42.50.675872 R02-M1 RAS KERNEL INFO parity",
            "- 1117838573 2005.06.03 R02-M0 2005-06-03-15.42.53.276129 R02-M0 RAS KERNEL FATAL bad",
        ];
        let expected =
            [("time", "1117838573"), ("host", "R02-M0"), ("severity", "FATAL"), ("message", "bad")];
        assert_fields(&lines, &expected);
        let lines = [
            "[Sun Dec 04 04:47:44 2005] [notice] workerEnv.init() ok",
            "[Sun Dec 04 04:47:45 2005] [error] mod_jk child workerEnv in error state 6",
        ];
        let expected = [
            ("time", "Sun Dec 04 04:47:45 2005"),
            ("severity", "error"),
            ("message", "mod_jk child workerEnv in error state 6"),
        ];
        assert_fields(&lines, &expected);
    }

    #[test]
    fn lines_with_another_head_keep_their_time() {
        let mut lines = vec!["2024-01-02 03:04:05 INFO main: all is well"; 60];
        lines.push("2024-01-02 03:04:05 something else");
        let expected = [("time", "2024-01-02 03:04:05"), ("message", "something else")];
        assert_fields(&lines, &expected);
        let patterns = LinePatterns::of_lines(&lines).unwrap();
        assert_eq!(patterns.fields("  at Foo.java:12"), None);
    }

    #[test]
    fn lines_without_a_time_have_no_pattern() {
        assert!(LinePatterns::of_lines(&["one two", "three"]).is_none());
        assert!(LinePatterns::of_lines(&[]).is_none());
        assert!(LinePatterns::of_lines(&["[[[[", "]]]] [", "\u{1}"]).is_none());
    }
}
