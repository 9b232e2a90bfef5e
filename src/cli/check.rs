//! `contrastream check`: is a pipeline file right?

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;

use super::service::{find_device, open_sinks};
use crate::checkpoint::Store;
use crate::config::{Delivery, Pipeline, Source};
use crate::decode::{DecodeError, Decoder};
use crate::registry::Registry;
use crate::runtime::{Opened, RuntimeError};
use crate::source::LabelReader;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The pipeline file.
    pipeline: PathBuf,
    /// Override a key of the file, such as `--set source.group=trial`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Also connect: brokers, topics and that of labels, rights, the schema registry, files, folders.
    /// Output topics that are missing are made, and schemas registered, as `run` would.
    #[arg(long)]
    connect: bool,
    /// Print the file with all defaults filled in, secrets hidden.
    #[arg(long)]
    print: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pipeline = Pipeline::load(&arguments.pipeline, &arguments.overrides)?;
    find_device(&pipeline)?;
    check_records(&pipeline)?;
    if arguments.print {
        println!("{pipeline}");
    }
    if arguments.connect {
        if let Some(registry) = &pipeline.registry {
            Registry::new(registry)?.ping()?;
            println!("connected: the schema registry answers");
        }
        let store = Store::open(&pipeline.checkpoint)?;
        // A transactional producer of the same name would fence one that runs.
        let mut asking = pipeline.clone();
        asking.checkpoint.delivery = Some(Delivery::AtLeastOnce);
        let opened = Opened::new(&asking, store.as_ref(), open_sinks(&asking)?)?;
        if let Some(checkpoint) = opened.resumed {
            println!("newest checkpoint: {}", checkpoint.id);
        }
        println!("connected: the source and {} sinks answer", opened.sinks.len());
        if let (Some(feedback), Source::Kafka(source)) = (&pipeline.feedback, &pipeline.source) {
            LabelReader::open(source, &feedback.topic, &BTreeMap::new())
                .and_then(|labels| labels.check())
                .context("feedback.topic")?;
            println!("connected: labels can be read from {}", feedback.topic);
        }
    }
    println!("{}: valid", arguments.pipeline.display());
    Ok(())
}

/// Whether records as the file describes them can be decoded at all.
fn check_records(pipeline: &Pipeline) -> Result<(), RuntimeError> {
    let decodable: Result<(), DecodeError> = match &pipeline.source {
        Source::Kafka(_) => Decoder::new(&pipeline.records, &pipeline.encoding()).map(|_| ()),
        Source::File(_) | Source::Generator(_) => Ok(()),
    };
    Ok(decodable?)
}
