//! The commands.

mod check;
mod checkpoint;
mod demo;
mod embed;
mod evaluate;
mod generate;
mod init;
mod run;
mod service;
mod similar;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::ConfigError;
use crate::infer::InferError;
use crate::runtime::RuntimeError;
use crate::sink::SinkError;
use crate::source::SourceError;
use crate::telemetry::{self, LogFormat};

/// Representation learning on live streams: Kafka topics become embeddings and calibrated anomaly
/// scores, without labels and without an offline training job.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  contrastream demo
  contrastream check pipelines/sensor.toml --connect
  contrastream run pipelines/sensor.toml --set source.group=trial
  contrastream evaluate pipelines/metrics.toml --format nab --data nab/data --labels nab/combined_windows.json --out scores

Exit codes: 0 done, 1 failed at run time, 2 bad usage or bad pipeline file."
)]
struct Arguments {
    /// How log lines on standard error look.
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline until it is told to stop: SIGTERM or Ctrl-C drain, commit and end it.
    Run(run::Arguments),
    /// Watch it learn: generated plant sensors with injected faults, no broker, no files.
    Demo(demo::Arguments),
    /// Write generated records with injected, recorded faults to a Kafka topic or a folder.
    Generate(generate::Arguments),
    /// Look at records and write a pipeline file for them.
    Init(init::Arguments),
    /// Validate a pipeline file and, with --connect, what it talks to.
    Check(check::Arguments),
    /// Look at the state that a pipeline saved: list, show, verify, export.
    Checkpoint(checkpoint::Arguments),
    /// Score labelled recordings prequentially and measure the scores.
    Evaluate(evaluate::Arguments),
    /// Embed a history of records with the model of a checkpoint, without learning.
    Embed(embed::Arguments),
    /// Find what is most like a segment, a day or a stay among embeddings that were written.
    Similar(similar::Arguments),
    /// Print a completion script for a shell.
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Runs the command line.
pub fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _armed = crate::faults::arm();
    let arguments = Arguments::parse();
    telemetry::install_logs(arguments.log_format);
    let outcome = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Checkpoint(arguments) => checkpoint::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Embed(arguments) => embed::run(&arguments),
        Command::Similar(arguments) => similar::run(&arguments),
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "contrastream", &mut std::io::stdout());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// The error and its causes, each said once: many an error's text holds its cause's.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Whether the arguments or the pipeline file are to blame. What is wrong with the properties of
/// a Kafka client, or with the records described, only shows once they are used.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || matches!(error.downcast_ref(), Some(InferError::Read { .. } | InferError::Mixed { .. }))
        || error.is::<Usage>()
        || matches!(
            error.downcast_ref(),
            Some(
                RuntimeError::Source(SourceError::Property { .. })
                    | RuntimeError::Sink(SinkError::Property { .. })
                    | RuntimeError::Decode(_)
            )
        )
}

/// A wrong argument that the parser could not see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_error_already_names_is_not_said_again() {
        let reason = "no such property".to_owned();
        let error = RuntimeError::from(SourceError::Property { reason });
        let error = anyhow::Error::from(error).context("plant.toml");
        assert_eq!(message(&error), "plant.toml: source: source.properties: no such property");
        assert!(is_usage(&error));
    }
}
