//! `contrastream evaluate`: scores and measures over labelled recordings.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use crate::config::Pipeline;
use crate::evaluate::{self, Layout};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The pipeline file; its [source] and [records] give way to the layout of the recordings.
    pipeline: PathBuf,
    /// A recording, or a folder of them.
    #[arg(long)]
    data: PathBuf,
    /// Labels in NAB's form: windows by relative path, as JSON.
    #[arg(long)]
    labels: Option<PathBuf>,
    /// How recordings are laid out.
    #[arg(long, value_enum, default_value_t = Layout::Csv)]
    format: Layout,
    /// Folder for the scores: a CSV file per recording, of the same relative path.
    #[arg(long)]
    out: PathBuf,
    /// Override a key of the file, such as `--set training.enabled=false`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pipeline = Pipeline::load(&arguments.pipeline, &arguments.overrides)?;
    let labels = arguments.labels.as_deref();
    // A bar on a terminal, nothing in a pipe: the report is all that goes to standard output.
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} series, {elapsed}, {msg}") {
        bar.set_style(style);
    }
    let report = evaluate::run(
        &pipeline,
        arguments.format,
        &arguments.data,
        labels,
        &arguments.out,
        &|series| {
            bar.inc(1);
            bar.set_message(series.name.clone());
        },
    )?;
    bar.finish_and_clear();
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
