//! `contrastream run`: the service.

use std::path::PathBuf;
use std::sync::Arc;

use super::service::{Service, open_sinks};
use crate::checkpoint::Store;
use crate::config::Pipeline;
use crate::runtime::{Status, open_source};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The pipeline file.
    pipeline: PathBuf,
    /// Override a key of the file, such as `--set training.batch=64`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pipeline = Pipeline::load(&arguments.pipeline, &arguments.overrides)?;
    let store = Store::open(&pipeline.checkpoint)?;
    let sinks = open_sinks(&pipeline)?;
    if sinks.is_empty() {
        tracing::warn!("the pipeline file names no sink: results go nowhere but to metrics");
    }
    let (source, resumed) = open_source(&pipeline, store.as_ref())?;
    tracing::info!(pipeline = pipeline.name, "running");
    let service = Service {
        pipeline: &pipeline,
        source,
        sinks,
        store: store.as_ref(),
        resumed,
        status: Arc::new(Status::default()),
    };
    let summary = service.run()?;
    tracing::info!(
        records = summary.records,
        segments = summary.segments,
        alerts = summary.alerts,
        late_records = summary.late_records,
        dead_letters = summary.dead_letters,
        steps = summary.steps,
        "ended, everything read is committed"
    );
    Ok(())
}
