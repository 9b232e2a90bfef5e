//! Metrics and health over HTTP: `/metrics`, `/healthz`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

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
    let shared = Shared { metrics, status };
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

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn served(status: &Arc<Status>) -> SocketAddr {
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        serve("127.0.0.1:0", metrics, Arc::clone(status)).await.expect("a free port")
    }

    /// Status line and body of the answer to a GET.
    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.expect("somebody listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_follows_the_service_from_its_start_to_its_stop() {
        let status = Arc::new(Status::default());
        let address = served(&status).await;
        assert!(get(address, "/readyz").await.0.contains("503"));
        status.set_ready(true);
        assert!(get(address, "/readyz").await.0.contains("200"));
        status.stop();
        assert!(get(address, "/readyz").await.0.contains("503"));
        assert!(get(address, "/healthz").await.0.contains("200"));
    }

    #[tokio::test]
    async fn a_failed_service_says_why_it_is_not_healthy() {
        let status = Arc::new(Status::default());
        let address = served(&status).await;
        assert!(get(address, "/healthz").await.0.contains("200"));
        status.fail("sink: disk full");
        let (line, body) = get(address, "/healthz").await;
        assert!(line.contains("503"), "{line}");
        assert!(body.contains("failed: sink: disk full"), "{body}");
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named_in_the_error() {
        let address = served(&Arc::default()).await.to_string();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let error = serve(&address, metrics, Arc::default()).await.expect_err("taken").to_string();
        assert!(error.contains(&format!("http.listen = \"{address}\"")), "{error}");
    }
}
