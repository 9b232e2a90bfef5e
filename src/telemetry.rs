//! Metric names and logging.
//!
//! Metrics are named `contrastream_<stage>_<what>_<unit>[_total]`; [`METRICS`] is the one table of
//! them, from which `/metrics` takes its help texts.

use std::fmt;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// The value now.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric's name, kind and help text.
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($constant:ident = $kind:ident $name:literal, $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+
        /// Every metric.
        pub const METRICS: &[Metric] = &[$(Metric { name: $name, kind: Kind::$kind, help: $help }),+];
    };
}

metrics_table! {
    SOURCE_RECORDS = Counter "contrastream_source_records_total", "Records decoded.";
    SOURCE_BYTES = Counter "contrastream_source_bytes_total", "Bytes of messages read.";
    SOURCE_LANES = Gauge "contrastream_source_lanes", "Lanes (partitions, files) that this process owns.";
    SOURCE_PAUSES = Counter "contrastream_source_pauses_total", "Times the source was paused because the stages behind it were full.";
    SOURCE_RETRIES = Counter "contrastream_source_retries_total", "Failures of the source after which it was asked again.";
    DECODE_FAILURES = Counter "contrastream_decode_failures_total", "Messages that could not be decoded and became dead letters.";
    DECODE_OUT_OF_RANGE = Counter "contrastream_decode_out_of_range_values_total", "Values taken for missing because they lie out of their channel's bounds.";
    DECODE_SKIPPED = Counter "contrastream_decode_skipped_rows_total", "Long rows whose code is not one of the channels.";
    WINDOW_LATE = Counter "contrastream_window_late_records_total", "Records behind their key's watermark, left out of windows.";
    WINDOW_GAPS = Counter "contrastream_window_gaps_total", "Runs ended by a gap longer than windows.max_gap.";
    WINDOW_CLOCK_RESETS = Counter "contrastream_window_clock_resets_total", "Keys whose clock was set back for good.";
    WINDOW_STUCK = Counter "contrastream_window_stuck_values_total", "Values taken for missing because they had not changed for too long.";
    WINDOW_EVICTED = Counter "contrastream_window_evicted_keys_total", "Keys evicted to make room for others.";
    WINDOW_KEYS = Gauge "contrastream_window_open_keys", "Keys that a lane holds.";
    WINDOW_LAG = Gauge "contrastream_window_watermark_lag_seconds", "Wall-clock time less a lane's watermark.";
    WINDOW_SEGMENTS = Counter "contrastream_window_segments_total", "Segments completed.";
    LEARNER_BACKLOG = Gauge "contrastream_learner_backlog_batches", "Batches that wait for the learner.";
    LEARNER_STEPS = Counter "contrastream_learner_steps_total", "Training steps taken.";
    LEARNER_SKIPPED_STEPS = Counter "contrastream_learner_skipped_steps_total", "Training steps left out because there was no time for them.";
    LEARNER_STEP_SECONDS = Histogram "contrastream_learner_learning_seconds", "Time a batch of segments took to learn from, its training steps included.";
    LEARNER_SCORING_SECONDS = Histogram "contrastream_learner_scoring_seconds", "Time a batch of segments took to embed and score.";
    LEARNER_LOSS = Gauge "contrastream_learner_loss_nats", "InfoNCE of the last training step.";
    LEARNER_ACCURACY = Gauge "contrastream_learner_accuracy_ratio", "Share of anchors whose positive beat every negative in the last step.";
    LEARNER_GRADIENT = Gauge "contrastream_learner_gradient_norm", "Norm of the last step's gradient before clipping.";
    LEARNER_TEMPERATURE = Gauge "contrastream_learner_temperature", "Temperature of InfoNCE.";
    LEARNER_ALIGNMENT = Gauge "contrastream_learner_alignment", "Mean squared distance between the projections of a pair; lower is better.";
    LEARNER_UNIFORMITY = Gauge "contrastream_learner_uniformity", "Log mean Gaussian potential between projections; 0 is a collapsed model.";
    LEARNER_RANK = Gauge "contrastream_learner_effective_rank", "Directions that the embeddings of a batch use, from 1 to their length (participation ratio).";
    LEARNER_WANDER = Gauge "contrastream_learner_wander", "Mean distance (1 - cosine) of reference segments' embeddings from what was once published of them.";
    LEARNER_ROLLBACKS = Counter "contrastream_learner_rollbacks_total", "Times a collapsed model was rolled back to the last healthy one.";
    LEARNER_QUEUE = Gauge "contrastream_learner_queue_entries", "Negatives held.";
    LEARNER_QUEUE_AGE = Gauge "contrastream_learner_queue_age_steps", "Mean age of the negatives.";
    SCORE_VALUES = Histogram "contrastream_score_values", "Scores, 0 to 1; 0.5 is where an alert begins.";
    SCORE_ALERTS = Counter "contrastream_score_alerts_total", "Alerts begun.";
    FEEDBACK_LABELS = Counter "contrastream_feedback_labels_total", "Labels taken from the topic of labels.";
    FEEDBACK_SEGMENTS = Counter "contrastream_feedback_segments_total", "Segments that became examples of a label.";
    FEEDBACK_UNMATCHED = Counter "contrastream_feedback_unmatched_total", "Labels of segments that this process does not remember.";
    SINK_SEGMENTS = Counter "contrastream_sink_segments_total", "Segments whose results were written to every sink.";
    SINK_DEAD_LETTERS = Counter "contrastream_sink_dead_letters_total", "Dead letters written.";
    SINK_LATENCY = Histogram "contrastream_sink_latency_seconds", "Append time of a batch's newest message to its results being written.";
    CHECKPOINT_SECONDS = Histogram "contrastream_checkpoint_commit_seconds", "Time a commit took.";
    CHECKPOINT_BYTES = Gauge "contrastream_checkpoint_size_bytes", "Size of the last checkpoint.";
    CHECKPOINT_COMMITS = Counter "contrastream_checkpoint_commits_total", "Commits done.";
    CHECKPOINT_RETRIES = Counter "contrastream_checkpoint_retries_total", "Commits that failed for now, made good by a later one.";
    RUNTIME_REWINDS = Counter "contrastream_runtime_rewinds_total", "Times that everything went on from the last commit after a failure, by the stage that failed.";
}

/// Installs the process's metrics, every one with the label `pipeline`; `/metrics` renders them
/// through the handle.
///
/// # Errors
/// If metrics are already installed.
pub fn install_metrics(pipeline: &str) -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .add_global_label("pipeline", pipeline)
        .set_buckets_for_metric(
            metrics_exporter_prometheus::Matcher::Full(SCORE_VALUES.to_owned()),
            &[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        )?
        .set_buckets(&[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0])?
        .install_recorder()?;
    for Metric { name, kind, help } in METRICS {
        match kind {
            Kind::Counter => {
                metrics::describe_counter!(*name, *help);
                // Seen as 0 before the first event: a rate needs a start.
                metrics::counter!(*name).absolute(0);
            }
            Kind::Gauge => metrics::describe_gauge!(*name, *help),
            Kind::Histogram => metrics::describe_histogram!(*name, *help),
        }
    }
    Ok(handle)
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Sends log lines to standard error: level `info`, or what `RUST_LOG` says. Does nothing where
/// logging is already set up.
pub fn install_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // The only failure is a subscriber that is already there.
    let _ = match format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            logs.with_ansi(colours).with_target(false).try_init()
        }
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_scheme() {
        for Metric { name, kind, help } in METRICS {
            assert!(name.starts_with("contrastream_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(help.ends_with('.'), "{name}");
            assert_eq!(METRICS.iter().filter(|other| other.name == *name).count(), 1, "{name}");
        }
    }
}
