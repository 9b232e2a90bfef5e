//! `contrastream similar`: what is most like this?

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use chrono::{DateTime, SecondsFormat};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Usage;
use crate::similar::{By, Embeddings, Kept, MANY, Neighbour, nearest};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  contrastream similar --embeddings out --key press-4
  contrastream similar --embeddings out --key press-4 --at 2026-01-01T12:00:00Z --other-keys
  contrastream similar --embeddings out --by day --key 1f3a… -k 5 --json

Parts of the same key that share time with the one asked for are left out.")]
pub struct Arguments {
    /// The folder that the Parquet sink or `contrastream embed` wrote.
    #[arg(long, value_name = "FOLDER")]
    embeddings: PathBuf,
    /// The key to compare with.
    #[arg(long)]
    key: String,
    /// A time within the segment, day or stay, RFC 3339; the latest one when left out.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// How many neighbours.
    #[arg(short, default_value_t = 10)]
    k: usize,
    /// What to compare.
    #[arg(long, value_enum, default_value_t)]
    by: By,
    /// Leave out all else of the same key.
    #[arg(long)]
    other_keys: bool,
    /// Compare embeddings of this version of the model alone.
    #[arg(long, value_name = "VERSION")]
    model_version: Option<u64>,
    /// Look at every embedding, however many there are, and keep no index.
    #[arg(long)]
    exact: bool,
    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
}

/// A line of the answer.
#[derive(Serialize)]
struct Line {
    cosine: f32,
    key: String,
    start: String,
    end: String,
    sequence: i64,
    model_version: i64,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let at = arguments.at.as_deref().map(micros).transpose()?;
    let Arguments { embeddings: folder, by, model_version, .. } = arguments;
    let kept = if arguments.exact { None } else { Kept::open(folder, *by, *model_version)? };
    let (embeddings, query, found) = match kept {
        Some(kept) => of_index(arguments, kept, at)?,
        None => {
            let embeddings = Embeddings::read(folder, *by, *model_version)?;
            if embeddings.len() >= MANY && !arguments.exact {
                let bar = progress(embeddings.len() as u64);
                let told = |row: usize| bar.set_position(row as u64);
                let kept = Kept::build(folder, *by, *model_version, embeddings, &told)?;
                bar.finish_and_clear();
                of_index(arguments, kept, at)?
            } else {
                let row = query(arguments, &embeddings, at)?;
                let width = embeddings.width();
                let vector = &embeddings.values()[row * width..][..width];
                let may_be =
                    |_: usize, other: usize| embeddings.is_apart(row, other, arguments.other_keys);
                let found = nearest(embeddings.values(), width, vector, arguments.k, may_be);
                (embeddings, row, found.into_iter().next().unwrap_or_default())
            }
        }
    };
    warn_of_versions(&embeddings);
    print(arguments, &embeddings, query, &found)
}

type Answer = (Embeddings, usize, Vec<Neighbour>);

fn of_index(arguments: &Arguments, kept: Kept, at: Option<i64>) -> anyhow::Result<Answer> {
    let Kept { embeddings, index } = kept;
    let row = query(arguments, &embeddings, at)?;
    let vector = index.embedding(row)?;
    let may_be = |other: usize| embeddings.is_apart(row, other, arguments.other_keys);
    let found = index.nearest(&vector, arguments.k, may_be)?;
    Ok((embeddings, row, found))
}

/// The row that is asked for.
fn query(arguments: &Arguments, embeddings: &Embeddings, at: Option<i64>) -> anyhow::Result<usize> {
    if let Some(row) = embeddings.find(&arguments.key, at) {
        return Ok(row);
    }
    let (by, key) = (arguments.by.name(), &arguments.key);
    match (embeddings.find(key, None), &arguments.at) {
        (Some(latest), Some(at)) => {
            let (start, end) = embeddings.window(latest);
            let (start, end) = (text(start), text(end));
            bail!("no {by} of key {key:?} holds {at}; its latest is from {start} to {end}")
        }
        _ => bail!("no {by} of key {key:?} among {} embeddings", embeddings.len()),
    }
}

/// Embeddings of different versions lie in spaces that are only nearly the same.
fn warn_of_versions(embeddings: &Embeddings) {
    let versions = embeddings.versions();
    if let (Some((first, _)), Some((last, _))) =
        (versions.first_key_value(), versions.last_key_value())
        && first != last
    {
        tracing::warn!(
            versions = versions.len(),
            first,
            last,
            "embeddings of several versions of the model are compared: \
             contrastream embed makes all of one, --model-version picks one"
        );
    }
}

fn print(
    arguments: &Arguments,
    embeddings: &Embeddings,
    query: usize,
    found: &[Neighbour],
) -> anyhow::Result<()> {
    let line = |row: usize, cosine: f32| {
        let (start, end) = embeddings.window(row);
        Line {
            cosine,
            key: embeddings.key(row).to_owned(),
            start: text(start),
            end: text(end),
            sequence: embeddings.sequence(row),
            model_version: embeddings.version(row),
        }
    };
    let lines: Vec<Line> = found.iter().map(|near| line(near.row, near.cosine)).collect();
    if arguments.json {
        for line in &lines {
            println!("{}", serde_json::to_string(line)?);
        }
        return Ok(());
    }
    let of = line(query, 1.0);
    eprintln!("near {} from {} to {}:", of.key, of.start, of.end);
    let width = lines.iter().map(|line| line.key.chars().count()).max().unwrap_or_default().max(3);
    println!("COSINE  {:width$}  {:24}  {:24}  SEQUENCE", "KEY", "FROM", "TO");
    for Line { cosine, key, start, end, sequence, .. } in &lines {
        println!("{cosine:6.4}  {key:width$}  {start:24}  {end:24}  {sequence}");
    }
    Ok(())
}

fn micros(time: &str) -> anyhow::Result<i64> {
    let parsed = DateTime::parse_from_rfc3339(time);
    let parsed = parsed.map_err(|error| {
        Usage(format!("--at {time}: expected a time such as 2026-01-01T12:00:00Z: {error}"))
    })?;
    Ok(parsed.timestamp_micros())
}

fn text(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).map_or_else(
        || micros.to_string(),
        |time| time.to_rfc3339_opts(SecondsFormat::Millis, true),
    )
}

fn progress(rows: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} indexed, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(rows).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
