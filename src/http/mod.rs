//! Metrics and health over HTTP: `/metrics`, `/healthz`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::runtime::Status;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("http.listen = \"{address}\": {reason}")]
    Listen { address: String, reason: std::io::Error },
}

/// How often histograms are folded, so that they do not grow between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shared {
    metrics: PrometheusHandle,
    status: Arc<Status>,
}

/// Serves in the background of this tokio runtime; returns the address, which tells the port where
/// `listen` asks for port 0.
///
/// # Errors
/// If the address is malformed, taken or not allowed.
pub async fn serve(
    listen: &str,
    metrics: PrometheusHandle,
    status: Arc<Status>,
) -> Result<SocketAddr, HttpError> {
    let failed = |reason| HttpError::Listen { address: listen.to_owned(), reason };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let shared = Shared { metrics: metrics.clone(), status };
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            metrics.run_upkeep();
        }
    });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes(shared)).await {
            tracing::error!(%error, "the HTTP server ended");
        }
    });
    Ok(address)
}

fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .with_state(shared)
}

async fn render(State(shared): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.render())
}

/// 200 while the process does its work, 503 with the reason once it has failed.
async fn health(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.status.failure() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("failed: {reason}\n")),
    }
}

/// 200 while the process owns lanes and takes records.
async fn readiness(State(shared): State<Shared>) -> impl IntoResponse {
    if shared.status.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
