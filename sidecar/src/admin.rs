//! The admin listener: health and metrics for whoever supervises the process, GraphQL for whoever holds the token.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
    task::JoinHandle,
};

use crate::{
    config::Admin,
    db::Connector,
    delivery::Secret,
    error::Error,
    gauges::{Gauges, WEBHOOKS_MAX},
    graphql::{Schema, build_schema},
    metrics::{Metrics, PREFIX},
    upkeep::Upkeep,
};

/// The longest query a client has a reason to send, introspection included, is a few KiB.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// OpenMetrics, which Prometheus reads since 2.5.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds the listener and serves it until the handle is dropped.
pub(crate) async fn listen(
    admin: &Admin,
    connector: Connector,
    exposition: Exposition,
    ready: watch::Receiver<bool>,
) -> Result<Listener, Error> {
    let failed =
        |error: std::io::Error| Error::AdminListen { address: admin.listen, reason: error.to_string() };
    let listener = TcpListener::bind(admin.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let app = match &admin.token {
        Some(token) => graphql_router(build_schema(connector), token.clone()),
        None => Router::new(),
    };
    let app = app.merge(open_router(exposition, ready));
    tracing::info!(%address, "admin listener started");
    Ok(Listener(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "admin listener failed");
        }
    })))
}

/// Serving ends with it.
pub(crate) struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Everything `/metrics` says.
pub(crate) struct Exposition {
    registry: Registry,
    upkeep: Arc<Upkeep>,
    /// One at a time: the gauges are those of the look that comes with them.
    gauges: Mutex<Gauges>,
}

impl Exposition {
    pub(crate) fn new(metrics: &Metrics, upkeep: Arc<Upkeep>) -> Exposition {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let gauges = Gauges::default();
        gauges.register(registry.sub_registry_with_prefix(PREFIX));
        Exposition { registry, upkeep, gauges: Mutex::new(gauges) }
    }

    async fn encode(&self) -> Result<String, std::fmt::Error> {
        let gauges = self.gauges.lock().await;
        gauges.set(self.upkeep.gauges(WEBHOOKS_MAX).await.as_deref());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What needs no token: it says how things stand, and changes nothing.
fn open_router(exposition: Exposition, ready: watch::Receiver<bool>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(ready))
        .route("/metrics", get(metrics).with_state(Arc::new(exposition)))
}

fn graphql_router(schema: Schema, token: Secret) -> Router {
    Router::new()
        .route("/graphql", post(graphql))
        .layer(Extension(schema))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        // Outermost, so that nothing of a request is read before its token has been checked.
        .layer(from_fn_with_state(token, require_token))
}

async fn metrics(State(exposition): State<Arc<Exposition>>) -> Response {
    match exposition.encode().await {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n").into_response(),
    }
}

async fn graphql(
    Extension(schema): Extension<Schema>,
    Json(request): Json<async_graphql::Request>,
) -> Json<async_graphql::Response> {
    Json(schema.execute(request).await)
}

async fn readyz(State(ready): State<watch::Receiver<bool>>) -> (StatusCode, &'static str) {
    match *ready.borrow() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "no working connection to the database\n"),
    }
}

async fn require_token(State(token): State<Secret>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked("Bearer ".len()))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .map(|(_, token)| token);
    if given.is_some_and(|given| is_same(given, token.expose().as_bytes())) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, challenge, "send the admin token as Authorization: Bearer …\n").into_response()
}

/// Takes the same time wherever the two differ. Hashed first, so that not even the length shows.
fn is_same(given: &[u8], expected: &[u8]) -> bool {
    Sha256::digest(given).ct_eq(&Sha256::digest(expected)).into()
}

#[cfg(test)]
mod tests;
