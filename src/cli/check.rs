//! `contrastream check`: is a pipeline file right?

use std::path::PathBuf;

use super::service::open_sinks;
use crate::checkpoint::Store;
use crate::config::Pipeline;
use crate::decode::{DecodeError, Decoder};
use crate::runtime::{RuntimeError, open_source};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The pipeline file.
    pipeline: PathBuf,
    /// Override a key of the file, such as `--set source.group=trial`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Also connect: brokers, topics, rights, files, folders. Output topics that are missing are
    /// made, as `run` would.
    #[arg(long)]
    connect: bool,
    /// Print the file with all defaults filled in, secrets hidden.
    #[arg(long)]
    print: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pipeline = Pipeline::load(&arguments.pipeline, &arguments.overrides)?;
    check_records(&pipeline)?;
    if arguments.print {
        println!("{}", toml::to_string_pretty(&pipeline.redacted())?);
    }
    if arguments.connect {
        let store = Store::open(&pipeline.checkpoint)?;
        let sinks = open_sinks(&pipeline)?;
        let (_, resumed) = open_source(&pipeline, store.as_ref())?;
        if let Some(checkpoint) = resumed {
            println!("would go on from checkpoint {}", checkpoint.id);
        }
        println!("connected: the source and {} sinks answer", sinks.len());
    }
    println!("{}: valid", arguments.pipeline.display());
    Ok(())
}

/// Whether records as the file describes them can be decoded at all.
fn check_records(pipeline: &Pipeline) -> Result<(), RuntimeError> {
    use crate::config::Source;
    let decodable: Result<(), DecodeError> = match &pipeline.source {
        Source::Kafka(kafka) => {
            Decoder::new(&pipeline.records, kafka.format, &kafka.csv).map(|_| ())
        }
        Source::File(_) | Source::Generator(_) => Ok(()),
    };
    Ok(decodable?)
}
