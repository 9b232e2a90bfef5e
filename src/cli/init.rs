//! `contrastream init`: from a look at records to a pipeline file.

use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Usage;
use crate::config::{Pipeline, Properties};
use crate::infer::{self, Findings, Piece, Proposal, sample};

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
    Pipeline::from_toml(&text, "the proposed file", &[])?;
    report(&findings);
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
    let pieces = sample::of_topic(brokers, topic, &properties)?;
    Ok((Proposal::Topic { brokers, topic }, pieces))
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

fn write(path: &Path, text: &str, over: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).truncate(true).create(over).create_new(!over);
    options.open(path)?.write_all(text.as_bytes())
}
