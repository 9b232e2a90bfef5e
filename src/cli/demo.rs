//! `contrastream demo`: it learns a plant's normal, then finds its faults.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::service::{Service, find_device, open_sinks};
use crate::config::{ConfigError, Location, Pipeline, Source as Origin};
use crate::decode::DeadLetter;
use crate::runtime::{Opened, RuntimeError, Status};
use crate::sink::{Outputs, Sink, SinkError, StagedFile};
use crate::source::generator::{Fault, GeneratorSource};

/// The pipeline that the demo runs.
const PIPELINE: &str = include_str!("../../pipelines/demo.toml");

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Real time to run for.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Serve /metrics, /healthz and /readyz at this port of the loopback interface.
    #[arg(long, value_name = "PORT")]
    open_port: Option<u16>,
    /// Override a key of pipelines/demo.toml, such as `--set source.machines=50`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// The demo's pipeline, as it stands in `pipelines/demo.toml`.
pub fn pipeline() -> Result<Pipeline, ConfigError> {
    Pipeline::from_toml(PIPELINE, "pipelines/demo.toml", &[])
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut pipeline = Pipeline::from_toml(PIPELINE, "pipelines/demo.toml", &arguments.overrides)?;
    find_device(&pipeline)?;
    pipeline.http.listen = match arguments.open_port {
        Some(port) => format!("127.0.0.1:{port}"),
        None => String::new(),
    };
    let Origin::Generator(config) = &pipeline.source else {
        anyhow::bail!("the demo's source is not a generator");
    };
    let source = GeneratorSource::new(config, &pipeline.records.channels, 0);
    let faults = source.faults();
    let alerts = Arc::new(Mutex::new(Alerts::default()));
    let mut sinks = open_sinks(&pipeline)?;
    sinks.push(Box::new(Watcher { alerts: Arc::clone(&alerts) }));

    println!(
        "{} machines with {} sensors each; the first faults come after {} of their time.",
        config.machines,
        pipeline.records.channels.len(),
        config.fault_after
    );
    let status = Arc::new(Status::default());
    let began = Instant::now();
    watch(arguments.seconds, Arc::clone(&status), Arc::clone(&alerts));
    let service = Service { pipeline: &pipeline, store: None, status };
    // There is no commit to go back to: it opens once.
    let mut opened = Some(Opened { source: Box::new(source), sinks, resumed: None });
    let summary = service.run(|| opened.take().ok_or(RuntimeError::Ended))?;

    let seconds = began.elapsed().as_secs_f64();
    let faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
    let alerts = alerts.lock().unwrap_or_else(PoisonError::into_inner);
    let verdict = alerts.against(&faults, &pipeline);
    println!(
        "\n{} records in {seconds:.0} s ({:.0} a second), {} segments, {} training steps",
        summary.records,
        summary.records as f64 / seconds,
        summary.segments,
        summary.steps
    );
    println!("faults found: {} of {}", verdict.found, verdict.injected);
    for (kind, (found, injected)) in &verdict.by_kind {
        println!("  {kind}: {found} of {injected}");
    }
    println!(
        "false alarms: {} in {:.0} machine-days of event time ({} promised per machine)",
        verdict.false_alarms, verdict.machine_days, pipeline.scores.false_alarms
    );
    println!("faulty channel named first: in {} of {} found", verdict.named_first, verdict.found);
    if let Some(parquet) = &pipeline.sink.parquet {
        println!("embeddings and scores: {}", absolute(&parquet.path));
    }
    Ok(())
}

fn absolute(location: &Location) -> Location {
    match location.folder().map(std::path::absolute) {
        Some(Ok(folder)) => folder.into(),
        _ => location.clone(),
    }
}

/// Shows progress and ends the demo in time, from a thread of its own.
fn watch(seconds: u64, status: Arc<Status>, alerts: Arc<Mutex<Alerts>>) {
    let bar = ProgressBar::with_draw_target(Some(seconds), ProgressDrawTarget::stdout());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} s  {msg}") {
        bar.set_style(style);
    }
    std::thread::spawn(move || {
        let began = Instant::now();
        let mut shown = 0;
        while began.elapsed() < Duration::from_secs(seconds) && !status.is_stopping() {
            std::thread::sleep(Duration::from_millis(200));
            let alerts = alerts.lock().unwrap_or_else(PoisonError::into_inner);
            bar.set_position(began.elapsed().as_secs());
            bar.set_message(format!("{} segments, {} alerts", alerts.segments, alerts.begun.len()));
            for alert in &alerts.begun[shown..] {
                bar.suspend(|| println!("{}", alert.line()));
            }
            shown = alerts.begun.len();
        }
        bar.finish_and_clear();
        status.stop();
    });
}

/// What the demo remembers of its results.
#[derive(Default)]
struct Alerts {
    segments: u64,
    begun: Vec<Alert>,
    /// Place of each machine's last alert in `begun`.
    last: HashMap<Arc<str>, usize>,
    /// First and last event time of each machine's warm segments.
    watched: HashMap<Arc<str>, (i64, i64)>,
}

/// An alert, as far as it has come.
struct Alert {
    id: String,
    key: Arc<str>,
    /// Event time of its segments, microseconds.
    from: i64,
    to: i64,
    p_value: f64,
    /// The channel that is most to blame.
    channel: Option<Arc<str>>,
}

/// Alerts compared with the injected truth.
#[derive(Debug, Default)]
struct Verdict {
    injected: usize,
    found: usize,
    by_kind: std::collections::BTreeMap<String, (usize, usize)>,
    named_first: usize,
    false_alarms: usize,
    machine_days: f64,
}

impl Alert {
    fn line(&self) -> String {
        let time = chrono::DateTime::from_timestamp_micros(self.to).unwrap_or_default();
        format!(
            "{}  {} looks wrong (p = {:.0e}), {} most of all",
            time.format("%H:%M:%S"),
            self.key,
            self.p_value,
            self.channel.as_deref().unwrap_or("no channel")
        )
    }
}

impl Alerts {
    fn take(&mut self, outputs: &Outputs) {
        for (segment, score) in outputs.segments.iter().zip(&outputs.scores) {
            self.segments += 1;
            if score.warm {
                let watched = self
                    .watched
                    .entry(Arc::clone(&segment.key))
                    .or_insert((segment.window_start, segment.window_end));
                watched.1 = segment.window_end;
            }
            let Some(id) = &score.alert_id else { continue };
            let last = self.last.get(&segment.key).and_then(|last| self.begun.get_mut(*last));
            match last.filter(|alert| alert.id == *id) {
                Some(alert) => {
                    alert.to = segment.window_end;
                    if score.p_value < alert.p_value {
                        alert.p_value = score.p_value;
                        alert.channel =
                            score.causes.first().map(|cause| Arc::clone(&cause.channel));
                    }
                }
                None => {
                    self.last.insert(Arc::clone(&segment.key), self.begun.len());
                    self.begun.push(Alert {
                        id: id.clone(),
                        key: Arc::clone(&segment.key),
                        from: segment.window_start,
                        to: segment.window_end,
                        p_value: score.p_value,
                        channel: score.causes.first().map(|cause| Arc::clone(&cause.channel)),
                    });
                }
            }
        }
    }

    /// A fault is found by an alert of its machine whose segments touch it; an alert that touches
    /// no fault, nor the window after one, is false. Faults before the warm-up's end, or too late
    /// to be seen whole, do not count.
    fn against(&self, faults: &[Fault], pipeline: &Pipeline) -> Verdict {
        let mut verdict = Verdict::default();
        let Origin::Generator(config) = &pipeline.source else { return verdict };
        let span = pipeline.windows.length_samples() as i64 * config.period.micros();
        for fault in faults {
            let Some((from, to)) = self.watched.get(&fault.key) else { continue };
            if fault.from < *from || fault.to > *to {
                continue;
            }
            let alert = self.begun.iter().find(|alert| {
                alert.key == fault.key && alert.from <= fault.to && alert.to >= fault.from
            });
            let kind = verdict.by_kind.entry(fault.kind.to_string()).or_default();
            kind.1 += 1;
            verdict.injected += 1;
            if let Some(alert) = alert {
                kind.0 += 1;
                verdict.found += 1;
                let faulty = pipeline.records.channels.get(fault.channel).map(String::as_str);
                verdict.named_first += usize::from(alert.channel.as_deref() == faulty);
            }
        }
        verdict.false_alarms = self
            .begun
            .iter()
            .filter(|alert| {
                !faults.iter().any(|fault| {
                    alert.key == fault.key
                        && alert.from <= fault.to.saturating_add(span)
                        && alert.to >= fault.from
                })
            })
            .count();
        let micros: i64 = self.watched.values().map(|(from, to)| to - from).sum();
        verdict.machine_days = micros as f64 / 86_400e6;
        verdict
    }
}

/// A sink that remembers alerts.
struct Watcher {
    alerts: Arc<Mutex<Alerts>>,
}

impl Sink for Watcher {
    fn write(&mut self, outputs: &Outputs) -> Result<(), SinkError> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner).take(outputs);
        Ok(())
    }

    fn dead_letter(&mut self, _: &DeadLetter) -> Result<(), SinkError> {
        Ok(())
    }

    fn prepare(&mut self) -> Result<Vec<StagedFile>, SinkError> {
        Ok(Vec::new())
    }
}
