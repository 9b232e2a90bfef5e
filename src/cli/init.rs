//! `contrastream init`: from a look at records to a pipeline file.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::Usage;
use crate::config::{self, Pipeline, Properties, Source};
use crate::decode::{Decoded, Decoder};
use crate::infer::{self, Content, Findings, Piece, Proposal, sample};
use crate::registry::Registry;
use crate::source::{Event, FileSource, Lane, Messages, Payload, Source as _, SourceBatch};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  contrastream init --from kafka://localhost:9092/plant.sensors --out plant.toml
  contrastream init --from recordings/ --out pump.toml
  contrastream init --from ecg.parquet --sample-rate 360

What was seen, and what a person should check, is said on standard error.")]
pub struct Arguments {
    /// What to look at: kafka://HOST:PORT,HOST:PORT/TOPIC, a file, or a folder of files of one
    /// format.
    #[arg(long, value_name = "kafka://…|FILE|FOLDER", default_value = ".")]
    from: String,
    /// The pipeline file to write; standard output when left out.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write over a file that is there.
    #[arg(long, requires = "out")]
    force: bool,
    /// Samples a second, where records only number them.
    #[arg(long, value_name = "HERTZ")]
    sample_rate: Option<f64>,
    /// A property of librdkafka to connect with, such as security.protocol=SSL; may be repeated.
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// Schema registry of messages that are Avro.
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(rate) = arguments.sample_rate.filter(|rate| !(rate.is_finite() && *rate > 0.0)) {
        anyhow::bail!(Usage(format!("--sample-rate {rate}: expected a number above 0")));
    }
    if let Some(out) = arguments.out.as_deref().filter(|out| out.exists() && !arguments.force) {
        anyhow::bail!(Usage(format!("{} is there already; --force writes over it", out.display())));
    }
    let (proposal, pieces) = sampled(arguments)?;
    let mut findings = infer::look(&pieces, arguments.sample_rate)?;
    if findings.sample_rate.is_some()
        && arguments.sample_rate.is_none()
        && let Some(rate) = ask_sample_rate()?
    {
        findings = infer::look(&pieces, Some(rate))?;
    }
    let text = proposal.text(&findings, &pieces);
    // What is proposed must be what `check` and `run` take.
    let pipeline = Pipeline::from_toml(&text, "the proposed file", &[])?;
    report(&findings);
    try_out(&pipeline, &pieces);
    match &arguments.out {
        Some(out) => {
            write(out, &text, arguments.force).with_context(|| out.display().to_string())?;
            eprintln!("wrote {}; next: contrastream check {}", out.display(), out.display());
        }
        None => print!("{text}"),
    }
    Ok(())
}

fn sampled(arguments: &Arguments) -> anyhow::Result<(Proposal<'_>, Vec<Piece>)> {
    let Some(address) = arguments.from.strip_prefix("kafka://") else {
        let path = Path::new(&arguments.from);
        return Ok((Proposal::File(path), sample::of_path(path)?));
    };
    let (brokers, topic) = address
        .split_once('/')
        .filter(|(brokers, topic)| !brokers.is_empty() && !topic.is_empty())
        .ok_or_else(|| {
            Usage(format!("--from kafka://{address}: expected kafka://HOST:PORT/TOPIC"))
        })?;
    let mut properties = Properties::new();
    for property in &arguments.properties {
        let (name, value) = property
            .split_once('=')
            .ok_or_else(|| Usage(format!("--property {property}: expected NAME=VALUE")))?;
        properties.insert(name.to_owned(), value.to_owned());
    }
    let mut pieces = sample::of_topic(brokers, topic, &properties)?;
    let registry = arguments.registry.as_deref();
    let client = registry.map(|url| {
        Registry::new(&config::Registry {
            url: url.to_owned(),
            username: None,
            password: None,
            token: None,
            ca: None,
            register: false,
        })
    });
    let client = client.transpose()?;
    sample::read_columns(&mut pieces, client)?;
    Ok((Proposal::Topic { brokers, topic, registry }, pieces))
}

/// Asks a person, if there is one; an empty answer leaves it open.
fn ask_sample_rate() -> anyhow::Result<Option<f64>> {
    let input = io::stdin();
    if !input.is_terminal() || !io::stderr().is_terminal() {
        return Ok(None);
    }
    eprint!("Samples are numbered, not timed. How many are taken a second? ");
    io::stderr().flush()?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    let rate = answer.trim().parse::<f64>().ok();
    Ok(rate.filter(|rate| rate.is_finite() && *rate > 0.0))
}

/// What was seen, and what is not sure.
fn report(findings: &Findings) {
    findings.seen().iter().for_each(|sentence| eprintln!("saw: {sentence}"));
    for left_out in &findings.roles.left_out {
        eprintln!("left out: {}: {}", left_out.name, left_out.why);
    }
    let doubts = findings.doubts.iter().chain(&findings.roles.doubts);
    doubts.for_each(|doubt| eprintln!("not sure: {doubt}"));
}

/// Records of a file that are tried.
const TRIED: u64 = 10_000;

/// Reads the sample as the proposed pipeline would.
fn try_out(pipeline: &Pipeline, pieces: &[Piece]) {
    let tried = match &pipeline.source {
        Source::File(file) => try_file(file, pipeline),
        Source::Kafka(_) => try_messages(pipeline, pieces),
        Source::Generator(_) => return,
    };
    match tried {
        Err(error) => eprintln!("not sure: trying it out failed: {error:#}"),
        Ok(Tried { records, dead_letters: 0, .. }) => eprintln!("tried: {records} records decode"),
        Ok(Tried { records, dead_letters, reason }) => eprintln!(
            "not sure: of {} records tried, {dead_letters} become dead letters: {reason}",
            records + dead_letters
        ),
    }
}

#[derive(Default)]
struct Tried {
    records: u64,
    dead_letters: u64,
    /// Why the first of them did.
    reason: String,
}

impl Tried {
    fn count(&mut self, decoded: &Decoded) {
        self.records += decoded.records.num_rows() as u64;
        if let (0, Some(letter)) = (self.dead_letters, decoded.dead_letters.first()) {
            self.reason.clone_from(&letter.reason);
        }
        self.dead_letters += decoded.dead_letters.len() as u64;
    }
}

fn try_file(file: &config::FileSource, pipeline: &Pipeline) -> anyhow::Result<Tried> {
    let mut tried = Tried::default();
    let positions = BTreeMap::new();
    let mut source = FileSource::open(file, &pipeline.records, &pipeline.encoding(), &positions)?;
    while tried.records + tried.dead_letters < TRIED {
        match source.poll(Duration::ZERO)? {
            Event::Batch(SourceBatch { payload: Payload::Decoded(decoded), .. }) => {
                tried.count(&decoded);
            }
            Event::End => break,
            _ => {}
        }
    }
    Ok(tried)
}

fn try_messages(pipeline: &Pipeline, pieces: &[Piece]) -> anyhow::Result<Tried> {
    let mut decoder = Decoder::new(&pipeline.records, &pipeline.encoding())?;
    let mut tried = Tried::default();
    for piece in pieces {
        let Content::Messages(sampled) = &piece.content else { continue };
        let mut messages = Messages::default();
        for (offset, message) in (0..).zip(sampled) {
            let key = message.key.as_ref().map(String::as_bytes);
            messages.push(offset, message.timestamp_ms, key, &message.payload, Vec::new());
        }
        tried.count(&decoder.decode(&Lane::new(piece.name.as_str(), 0), &messages)?);
    }
    Ok(tried)
}

fn write(path: &Path, text: &str, over: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).truncate(true).create(over).create_new(!over);
    options.open(path)?.write_all(text.as_bytes())
}
