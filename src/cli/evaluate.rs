//! `contrastream evaluate`: scores and measures over labelled recordings.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use super::service::find_device;
use crate::config::Pipeline;
use crate::evaluate::{self, Evaluation, Layout};

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
    /// Folder for pictures: an SVG file per recording, with its channels, score, alerts and labels.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Share of the rows whose label is told once they are scored, as by people who look at some:
    /// what `[feedback]` would bring.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    feedback: f64,
    /// Override a key of the file, such as `--set training.enabled=false`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().map_err(|_| format!("\"{text}\" is not a number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{share}: expected 0 to 1")) }
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pipeline = Pipeline::load(&arguments.pipeline, &arguments.overrides)?;
    find_device(&pipeline)?;
    // A bar on a terminal, nothing in a pipe: the report is all that goes to standard output.
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} series, {elapsed}, {msg}") {
        bar.set_style(style);
    }
    let evaluation = Evaluation {
        pipeline: &pipeline,
        layout: arguments.format,
        data: &arguments.data,
        labels: arguments.labels.as_deref(),
        out: &arguments.out,
        plots: arguments.plots.as_deref(),
        feedback: arguments.feedback,
    };
    let report = evaluate::run(&evaluation, &|series| {
        bar.inc(1);
        bar.set_message(series.name.clone());
    })?;
    bar.finish_and_clear();
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
