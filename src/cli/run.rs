//! `contrastream run`: the service.

use std::path::PathBuf;
use std::sync::Arc;

use super::service::{Service, find_device, open_sinks};
use crate::checkpoint::Store;
use crate::config::Pipeline;
use crate::runtime::{Opened, Status};

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
    find_device(&pipeline)?;
    let store = Store::open(&pipeline.checkpoint)?;
    let store = store.as_ref();
    let status = Arc::new(Status::default());
    let service = Service { pipeline: &pipeline, store, status };
    let summary = service.run(|| {
        let sinks = open_sinks(&pipeline)?;
        if sinks.is_empty() {
            tracing::warn!("the pipeline file names no sink: results go nowhere but to metrics");
        }
        let opened = Opened::new(&pipeline, store, sinks)?;
        tracing::info!(
            pipeline = pipeline.name,
            exactly_once = pipeline.exactly_once(),
            instance = pipeline.instance(),
            "running"
        );
        Ok(opened)
    })?;
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
