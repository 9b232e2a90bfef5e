//! Findings as a pipeline file, with comments for whoever reads it.

use std::fmt::Write;
use std::path::Path;

use super::fields::LeftOut;
use super::rhythm::{WindowProposal, duration};
use super::time::Clock;
use super::{Findings, Piece};
use crate::config::{Envelope, Format, Layout, TimeUnit};

/// Names of channels on one line; more are written a line each.
const INLINE: usize = 6;
/// Fields that were left out and are listed.
const LISTED: usize = 40;
/// Segments in all below which a smaller model learns better.
const FEW: usize = 20_000;

/// Where the pipeline reads from.
#[derive(Clone, Copy, Debug)]
pub enum Proposal<'a> {
    /// A file or folder.
    File(&'a Path),
    /// A topic.
    Topic {
        brokers: &'a str,
        topic: &'a str,
        /// Address of the registry of its schemas.
        registry: Option<&'a str>,
    },
}

impl Proposal<'_> {
    /// The pipeline file for what was found in `pieces`.
    pub fn text(&self, findings: &Findings, pieces: &[Piece]) -> String {
        let mut out = String::new();
        self.head(findings, &mut out);
        self.source(findings, pieces, &mut out);
        records(findings, &mut out);
        let windows = findings.rhythm.windows(findings.roles.layout, self.is_live());
        write_windows(findings, &windows, &mut out);
        self.learning(findings, &windows, &mut out);
        self.sinks(&mut out);
        out
    }

    fn is_live(&self) -> bool {
        matches!(self, Self::Topic { .. })
    }

    fn name(&self) -> String {
        let from = match self {
            Self::File(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
                name.split('.').next().unwrap_or_default().to_owned()
            }
            Self::Topic { topic, .. } => (*topic).to_owned(),
        };
        let legal = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let name: String = from.chars().map(|c| if legal(c) { c } else { '-' }).take(64).collect();
        let name = name.trim_matches(['.', '-']);
        if name.is_empty() { "records".to_owned() } else { name.to_owned() }
    }

    fn head(&self, findings: &Findings, out: &mut String) {
        let from = match self {
            Self::File(path) => path.display().to_string(),
            Self::Topic { topic, .. } => format!("the topic {topic}"),
        };
        line(out, &format!("# What a look at {} records of {from} suggests.", findings.rows));
        let doubts: Vec<&String> = findings.doubts.iter().chain(&findings.roles.doubts).collect();
        if !doubts.is_empty() {
            line(out, "# Not sure, please check:");
            doubts.iter().for_each(|doubt| comment(out, &format!("- {doubt}")));
        }
        line(out, "# ${VAR:-default} is filled from the environment; keys left out have defaults.");
        line(out, "");
        line(out, "# Begins the names of topics and marks every output.");
        line(out, &format!("name = {}", quoted(&self.name())));
        line(out, "");
    }

    fn source(&self, findings: &Findings, pieces: &[Piece], out: &mut String) {
        let format = &findings.format;
        let name = format_name(format.format);
        line(out, "[source]");
        match self {
            Self::File(path) => {
                line(out, "kind = \"file\"");
                line(out, "# A file, or a folder whose files are a stream each.");
                line(out, &format!("path = {}", quoted(&path.display().to_string())));
                if pieces.iter().any(|piece| piece.named != Some(format.format)) {
                    line(out, &format!("format = \"{name}\""));
                }
            }
            Self::Topic { brokers, topic, .. } => {
                line(out, "kind = \"kafka\"");
                let brokers = quoted(&format!("${{KAFKA_BROKERS:-{brokers}}}"));
                line(out, &format!("brokers = {}", brokers.replace("$${", "${")));
                line(out, &format!("topics = [{}]", quoted(topic)));
                line(
                    out,
                    "# Where a partition begins that this group has not read: earliest, latest.",
                );
                line(out, "start = \"earliest\"");
                line(out, &format!("format = \"{name}\""));
            }
        }
        if format.format == Format::Csv
            && (format.csv.delimiter != ',' || !format.csv.columns.is_empty())
        {
            line(out, "");
            line(out, "[source.csv]");
            line(out, &format!("delimiter = {}", quoted(&format.csv.delimiter.to_string())));
            if !format.csv.columns.is_empty() {
                line(out, "# No line names the columns: give them better names here and below.");
                list(out, "columns", &format.csv.columns);
            }
        }
        if format.envelope == Envelope::Connect {
            line(out, "");
            line(out, "[source.json]");
            line(out, "# {\"schema\": …, \"payload\": record}, as Kafka Connect writes it.");
            line(out, "envelope = \"connect\"");
        }
        if let (Format::Avro, Self::Topic { registry: Some(url), .. }) = (format.format, self) {
            line(out, "");
            line(out, "# Where the schemas of messages are.");
            line(out, "[registry]");
            line(out, &format!("url = {}", quoted(url)));
        }
        if !findings.patterns.is_empty() {
            line(out, "");
            line(out, "[source.log]");
            line(
                out,
                "# Named groups are the fields of [records]; the first pattern that fits counts.",
            );
            line(out, "patterns = [");
            findings
                .patterns
                .iter()
                .for_each(|pattern| line(out, &format!("    {},", quoted(pattern))));
            line(out, "]");
        }
        line(out, "");
    }

    fn learning(&self, findings: &Findings, windows: &WindowProposal, out: &mut String) {
        let per_key = findings.rhythm.records_per_key / windows.stride;
        let warmup = if self.is_live() { 200 } else { (per_key / 5).clamp(10, 200) };
        // Of a topic, far more is to come.
        if !self.is_live() && per_key * findings.rhythm.keys < FEW {
            line(out, "# Little to learn from teaches a small model.");
            line(out, "[model]");
            line(out, "embedding = 32");
            line(out, "projection = [64, 32]");
            line(out, "queue = 1024");
            line(out, "");
            line(out, "[training]");
            line(out, "batch = 64");
            line(out, "# A step for so many new segments.");
            line(out, "every = 16");
            line(out, "");
        }
        line(out, "[scores]");
        line(out, "# Segments of a key before it may raise alerts.");
        line(out, &format!("warmup = {warmup}"));
        line(out, "# False alarms that one key may raise while nothing is wrong with it.");
        let slow = findings.rhythm.step.is_some_and(|step| step >= 60e6);
        line(out, &format!("false_alarms = \"1 per {}\"", if slow { "week" } else { "day" }));
        if findings.roles.layout == Layout::Log {
            line(out, "# Lines come and go by bursts: forecasts of the next one say little.");
            line(out, "parts = [\"distance\", \"level\"]");
        }
        line(out, "");
    }

    fn sinks(&self, out: &mut String) {
        if let Self::Topic { .. } = self {
            let name = self.name();
            line(
                out,
                &format!("# Topics {name}.embeddings, {name}.anomalies and {name}.dead-letters."),
            );
            line(out, "[sink.kafka]");
            line(out, "");
        }
        line(out, "# Embeddings and scores as files, a folder per day.");
        line(out, "[sink.parquet]");
        line(out, "path = \"${CONTRASTREAM_OUT:-out}\"");
        line(out, "partition_by = [\"date\"]");
        line(out, "");
        line(out, "# What was learned survives a restart, and results come exactly once.");
        line(out, "[checkpoint]");
        line(out, "store = \"${CONTRASTREAM_STATE:-state}\"");
        line(out, "");
        line(out, "# /metrics, /healthz and /readyz.");
        line(out, "[http]");
        line(out, "listen = \"${CONTRASTREAM_LISTEN:-127.0.0.1:8080}\"");
    }
}

fn records(findings: &Findings, out: &mut String) {
    let roles = &findings.roles;
    line(out, "[records]");
    if roles.layout != Layout::Wide {
        let what = match roles.layout {
            Layout::Log => "# Text, of which templates are mined.",
            _ => "# Rows of a code and a value each.",
        };
        line(out, what);
        line(out, &format!("layout = \"{}\"", format!("{:?}", roles.layout).to_lowercase()));
    }
    let keys = findings.rhythm.keys;
    match &roles.key {
        Some(key) => {
            line(
                out,
                &format!("# Tells {keys} streams of the sample apart; each has its own normal."),
            );
            line(out, &format!("key = {}", quoted(key)));
        }
        None if findings.messages => {
            line(out, "# No `key`: that of the Kafka message tells streams apart.")
        }
        None => line(out, "# No `key`: each file is a stream of its own."),
    }
    match &roles.time {
        None => line(out, "# No `time`: the Kafka message's timestamp is taken."),
        Some((field, clock)) => {
            line(out, &format!("# {}", sentence(&clock.in_words())));
            line(out, &format!("time = {}", quoted(field)));
            match clock {
                Clock::Plain { .. } | Clock::Instant => {}
                Clock::Format(format) => line(out, &format!("time_format = {}", quoted(format))),
                Clock::Epoch(unit) | Clock::Elapsed(unit) => {
                    line(out, &format!("time_unit = \"{}\"", unit_name(*unit)));
                }
                Clock::Samples => {
                    line(out, "# Samples a second.");
                    let rate = findings.sample_rate.unwrap_or(1.0);
                    line(out, &format!("sample_rate = {rate:?}"));
                }
            }
            if !clock.is_zoned() {
                line(out, "# Times name no zone; where they are not UTC:");
                line(out, "# time_zone = \"Europe/Berlin\"");
            }
        }
    }
    if let Some((code, value)) = &roles.code {
        line(out, "# Fields that name the channel and hold its value.");
        line(out, &format!("code = {}", quoted(code)));
        line(out, &format!("value = {}", quoted(value)));
        if let Some(unit) = &roles.unit {
            line(out, "# Field of the value's unit, for channels that name one.");
            line(out, &format!("unit = {}", quoted(unit)));
        }
    }
    if let Some(message) = &roles.message {
        line(out, &format!("message = {}", quoted(message)));
    }
    if let Some(severity) = &roles.severity {
        line(out, &format!("severity = {}", quoted(severity)));
    }
    if !roles.channels.is_empty() {
        line(out, "# What to learn from, all in one model.");
        list(out, "channels", &roles.channels);
    }
    if !roles.left_out.is_empty() {
        line(out, "# Left out:");
        for LeftOut { name, why } in roles.left_out.iter().take(LISTED) {
            comment(out, &format!("  {}: {why}", quoted(name)));
        }
        if roles.left_out.len() > LISTED {
            line(out, &format!("#   and {} more", roles.left_out.len() - LISTED));
        }
    }
    line(out, "");
}

fn write_windows(findings: &Findings, windows: &WindowProposal, out: &mut String) {
    line(out, "[windows]");
    let rhythm = &findings.rhythm;
    if let Some(step) = rhythm.step {
        let often = if rhythm.regular { "Regularly" } else { "Irregularly, in the middle" };
        line(out, &format!("# {often} a record of a key every {}.", duration(step)));
    }
    match rhythm.period {
        Some(period) => {
            line(out, &format!("# Samples of a segment; they repeat after about {period}."))
        }
        None => {
            line(out, "# Samples of a segment: long enough for the slowest pattern that matters.")
        }
    }
    line(out, &format!("length = {}", windows.length));
    line(out, "# Samples from one segment to the next: 1 scores at every sample, more saves work.");
    line(out, &format!("stride = {}", windows.stride));
    if let Some(resample) = windows.resample {
        line(out, "# Samples are averaged onto a grid.");
        line(out, &format!("resample = \"{resample}\""));
    }
    if let Some(max_gap) = windows.max_gap {
        line(out, "# No segment spans a longer silence of its key.");
        line(out, &format!("max_gap = \"{max_gap}\""));
    }
    line(out, "# How far a record may lie behind the newest of its key before it counts as lost.");
    line(out, &format!("lateness = \"{}\"", windows.lateness));
    line(out, "");
}

fn line(out: &mut String, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

/// A comment of one line, whatever the text holds.
fn comment(out: &mut String, text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line(out, &format!("# {text}"));
}

fn list(out: &mut String, key: &str, names: &[String]) {
    let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
    if names.len() <= INLINE {
        return line(out, &format!("{key} = [{}]", names.join(", ")));
    }
    line(out, &format!("{key} = ["));
    names.iter().for_each(|name| line(out, &format!("    {name},")));
    line(out, "]");
}

/// Text as TOML and the pipeline file's placeholders need it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.replace("${", "$${")).to_string()
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

fn format_name(format: Format) -> String {
    format!("{format:?}").to_lowercase()
}

fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Auto => "auto",
        TimeUnit::S => "s",
        TimeUnit::Ms => "ms",
        TimeUnit::Us => "us",
        TimeUnit::Ns => "ns",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Pipeline, Source, WindowLength};
    use crate::infer::{Content, SampledMessage, look};

    fn pipeline(proposal: Proposal<'_>, pieces: &[Piece]) -> Pipeline {
        let findings = look(pieces, None).expect("records");
        let text = proposal.text(&findings, pieces);
        Pipeline::from_toml(&text, "proposed", &[])
            .unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn file(name: &str, named: Option<Format>, text: String) -> Vec<Piece> {
        vec![Piece { name: name.to_owned(), named, content: Content::Text(text) }]
    }

    fn wave(row: usize) -> f64 {
        (row * 7919 % 101) as f64 / 10.0
    }

    #[test]
    fn a_file_with_semicolons_and_labels_becomes_a_valid_pipeline() {
        let mut text = "datetime;Flow Rate;a\"b;anomaly\n".to_owned();
        for row in 0..400 {
            let (minute, second) = (row / 60, row % 60);
            let label = u8::from(row > 300);
            text += &format!(
                "2020-03-09 10:{minute:02}:{second:02};{};{};{label}.0\n",
                wave(row),
                wave(row + 9)
            );
        }
        let path = Path::new("pump data/1.csv");
        let found = pipeline(Proposal::File(path), &file("1.csv", Some(Format::Csv), text));
        let Source::File(source) = &found.source else { panic!("a file") };
        assert_eq!((source.csv.delimiter, source.format), (';', None));
        assert_eq!(found.records.channels, ["Flow Rate", "a\"b"]);
        assert_eq!(found.records.time.as_deref(), Some("datetime"));
        assert_eq!(found.records.key, None);
        assert_eq!(found.windows.length, WindowLength::Samples(16));
    }

    #[test]
    fn a_topic_becomes_a_pipeline_of_the_topic() {
        let messages = (0..300).map(|row| SampledMessage {
            key: Some(format!("m{}", row % 3)),
            timestamp_ms: Some(1_704_000_000_000),
            payload: format!(
                r#"{{"machine":"m{}","ts":{},"body":{{"t":{},"p":{}}}}}"#,
                row % 3,
                1_704_000_000 + row / 3,
                wave(row),
                wave(row + 5)
            )
            .into_bytes(),
            as_json: Vec::new(),
        });
        let content = Content::Messages(messages.collect());
        let pieces = [Piece { name: "plant/0".to_owned(), named: None, content }];
        let proposal = Proposal::Topic { brokers: "localhost:1", topic: "plant", registry: None };
        let found = pipeline(proposal, &pieces);
        let Source::Kafka(source) = &found.source else { panic!("a topic") };
        assert_eq!(
            (source.topics.as_slice(), source.format),
            (&["plant".to_owned()][..], Format::Json)
        );
        assert_eq!(found.records.key.as_deref(), Some("machine"));
        assert_eq!(found.records.channels, ["body.t", "body.p"]);
        assert!(found.sink.kafka.is_some());
    }

    #[test]
    fn log_lines_become_patterns() {
        let lines: String = (0..200)
            .map(|row| {
                let second = row % 60;
                format!("Dec 10 06:{:02}:{second:02} gate sshd[{row}]: user {row} came\n", row / 60)
            })
            .collect();
        let found =
            pipeline(Proposal::File(Path::new("a.log")), &file("a.log", Some(Format::Log), lines));
        let Source::File(source) = &found.source else { panic!("a file") };
        assert_eq!(source.log.patterns.len(), 1);
        assert_eq!(found.records.layout, Layout::Log);
        assert_eq!(found.records.time_format.as_deref(), Some("%b %e %H:%M:%S"));
        assert_eq!(found.records.key.as_deref(), Some("host"));
    }

    #[test]
    fn rows_without_a_header_get_names() {
        let rows =
            (0..100).map(|row| format!("m{},{},{}\n", row % 2, 1_704_000_000 + row / 2, wave(row)));
        let pieces = file("x.csv", Some(Format::Csv), rows.collect());
        let found = pipeline(Proposal::File(Path::new("x.csv")), &pieces);
        let Source::File(source) = &found.source else { panic!("a file") };
        assert_eq!(
            source.csv,
            config::Csv {
                delimiter: ',',
                columns: ["c1", "time", "c3"].map(str::to_owned).to_vec(),
            }
        );
        assert_eq!(found.records.key.as_deref(), Some("c1"));
        assert_eq!(found.records.channels, ["c3"]);
    }
}
