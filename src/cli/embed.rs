//! `contrastream embed`: a history by one frozen model.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::Usage;
use crate::checkpoint::{Checkpoint, Store};
use crate::config::{self, Format, Location, Pipeline, Source};
use crate::embed::{Output, embed, reading};
use crate::runtime::Core;
use crate::trajectory::{Kind, Pool};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  contrastream embed plant.toml --checkpoint latest --input history/ --output embeddings
  contrastream embed ward.toml --checkpoint state/ --input 2025.parquet --output days --by day
  contrastream similar --embeddings embeddings --key press-4")]
pub struct Arguments {
    /// The pipeline file: how records are read and windowed, and the model that they are for.
    pipeline: PathBuf,
    /// The checkpoint whose model embeds: `latest` or an id, in the pipeline's checkpoint.store; or
    /// a store, or a .checkpoint file in one.
    #[arg(long, value_name = "latest|ID|PATH")]
    checkpoint: String,
    /// A file or folder to read.
    #[arg(long, value_name = "PATH")]
    input: PathBuf,
    /// Folder to write to; made if need be, and empty.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// One row per day, stay (between silences of sink.parquet.stay_gap) or key, instead of one per
    /// segment.
    #[arg(long, value_enum)]
    by: Option<By>,
    /// How the segments of a row become one embedding.
    #[arg(long, value_enum, default_value_t, requires = "by")]
    pool: Pool,
    /// The format of the files; by their extension when left out.
    #[arg(long)]
    format: Option<String>,
    /// Override a key of the file, such as `--set windows.stride=64`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum By {
    Key,
    Day,
    Stay,
}

impl From<By> for Kind {
    fn from(by: By) -> Self {
        match by {
            By::Key => Self::Key,
            By::Day => Self::Day,
            By::Stay => Self::Stay,
        }
    }
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pipeline = Pipeline::load(&arguments.pipeline, &arguments.overrides)?;
    let checkpoint = find(&pipeline, &arguments.checkpoint)?;
    let mut reading = reading(&pipeline, &arguments.input);
    if let (Some(format), Source::File(file)) = (&arguments.format, &mut reading.source) {
        file.format = Some(parse_format(format)?);
    }
    let (learner, _) = Core::look_at(&checkpoint.core)?;
    let learner =
        learner.resume(&reading).with_context(|| format!("checkpoint {}", checkpoint.id))?;
    let bar = progress();
    let output = Output { by: arguments.by.map(Kind::from), pool: arguments.pool };
    let told = |records: u64| bar.set_position(records);
    let summary = embed(&reading, &learner, output, &arguments.output, &told)?;
    bar.finish_and_clear();
    if let Some(letter) = &summary.first_dead_letter {
        tracing::warn!(
            count = summary.dead_letters,
            first = letter,
            "records could not be decoded and are left out"
        );
    }
    let written = match arguments.by {
        Some(_) => {
            format!("{} trajectories of {} segments", summary.trajectories, summary.segments)
        }
        None => format!("{} segments", summary.segments),
    };
    eprintln!(
        "embedded {written} from {} records with version {} of the model in checkpoint {}: {}",
        summary.records,
        learner.version(),
        checkpoint.id,
        arguments.output.display()
    );
    Ok(())
}

/// The checkpoint that `reference` names.
fn find(pipeline: &Pipeline, reference: &str) -> anyhow::Result<Checkpoint> {
    const SUFFIX: &str = "checkpoint";
    let path = Path::new(reference);
    let (location, id) = if path.extension().is_some_and(|found| found == SUFFIX) {
        let id = path.file_stem().and_then(|stem| stem.to_str());
        let id = id.ok_or_else(|| Usage(format!("--checkpoint {reference}: not a name")))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        (Location::Folder(folder.unwrap_or(Path::new(".")).to_owned()), Some(id))
    } else if path.is_dir() || reference.contains("://") {
        (reference.parse().map_err(Usage)?, None)
    } else {
        let location = pipeline.checkpoint.store.clone().ok_or_else(|| {
            Usage("the pipeline file names no checkpoint.store: expected a path".to_owned())
        })?;
        (location, (reference != "latest").then_some(reference))
    };
    // To look at a folder must not make it.
    if location.folder().is_some_and(|folder| !folder.is_dir()) {
        bail!("{location}: no such folder");
    }
    let config =
        config::Checkpoint { store: Some(location.clone()), ..config::Checkpoint::default() };
    let store = Store::open(&config)?.context("no store is named")?;
    match id {
        Some(id) => Ok(store.load(id, "nothing")?),
        None => {
            let latest = store.latest(&pipeline.name, true)?;
            latest.with_context(|| format!("{location}: no checkpoint of {}", pipeline.name))
        }
    }
}

fn parse_format(text: &str) -> Result<Format, Usage> {
    let value = toml::Value::String(text.to_owned());
    value.try_into().map_err(|error| Usage(format!("--format {text}: {error}")))
}

fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} records, {per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
