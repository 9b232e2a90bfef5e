//! What `run` and `demo` share: sinks, HTTP, signals, and the service itself.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::checkpoint::Store;
use crate::config::Pipeline;
use crate::http;
use crate::runtime::{self, Opened, RuntimeError, Status, Summary};
use crate::sink::{KafkaSink, ParquetSink, Sink};
use crate::telemetry;

/// How often histograms are folded, so that they do not grow between scrapes, or without any.
const UPKEEP: Duration = Duration::from_secs(5);

/// A service about to run.
pub struct Service<'a> {
    pub pipeline: &'a Pipeline,
    pub store: Option<&'a Store>,
    pub status: Arc<Status>,
}

/// The sinks that the pipeline file names.
pub fn open_sinks(pipeline: &Pipeline) -> Result<Vec<Box<dyn Sink>>, RuntimeError> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if let Some(kafka) = &pipeline.sink.kafka {
        sinks.push(Box::new(KafkaSink::connect(kafka, pipeline)?));
    }
    if let Some(parquet) = &pipeline.sink.parquet {
        sinks.push(Box::new(ParquetSink::open(parquet, pipeline, pipeline.model.embedding)?));
    }
    Ok(sinks)
}

/// Makes sure that there is what `training.device` names, before anything begins.
///
/// # Errors
/// If it is a GPU that cannot be opened.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables, clippy::unnecessary_wraps))]
pub fn find_device(pipeline: &Pipeline) -> anyhow::Result<()> {
    #[cfg(feature = "cuda")]
    if pipeline.training.device == crate::config::Device::Cuda {
        crate::learner::probe().context("training.device = \"cuda\"")?;
    }
    Ok(())
}

impl Service<'_> {
    /// Serves HTTP, minds signals, and runs on what `open` opens until the source ends or the
    /// process is told to stop.
    pub fn run(
        self,
        open: impl FnMut() -> Result<Opened, RuntimeError>,
    ) -> anyhow::Result<Summary> {
        let metrics = telemetry::install_metrics(&self.pipeline.name)?;
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("http")
            .enable_all()
            .build()
            .context("cannot start the HTTP server's threads")?;
        let upkeep = metrics.clone();
        tokio.spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                upkeep.run_upkeep();
            }
        });
        let listen = &self.pipeline.http.listen;
        if !listen.is_empty() {
            let served = http::serve(listen, metrics, Arc::clone(&self.status));
            let address = tokio.block_on(served)?;
            tracing::info!(%address, "serving /metrics, /healthz and /readyz");
        }
        {
            let _entered = tokio.enter();
            let told = told_to_stop().context("cannot listen for signals")?;
            let status = Arc::clone(&self.status);
            tokio.spawn(async move {
                told.await;
                tracing::info!("told to stop: draining and committing");
                status.stop();
            });
        }
        Ok(runtime::serve(self.pipeline, self.store, &self.status, open)?)
    }
}

/// Resolves at the first SIGTERM or SIGINT; a second one ends the process as usual.
#[cfg(unix)]
fn told_to_stop() -> std::io::Result<impl Future<Output = ()> + use<>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Resolves at Ctrl-C.
#[cfg(not(unix))]
fn told_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async move {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "cannot listen for Ctrl-C");
            std::future::pending::<()>().await;
        }
    })
}
