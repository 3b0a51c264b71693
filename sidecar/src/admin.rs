//! The admin listener: health for whoever supervises the process, GraphQL for whoever holds the token.

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    config::Admin,
    db::Connector,
    delivery::Secret,
    error::Error,
    graphql::{Schema, build_schema},
};

/// The longest query a client has a reason to send, introspection included, is a few KiB.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Binds the listener and serves it until the handle is dropped.
pub(crate) async fn listen(
    admin: &Admin,
    connector: Connector,
    ready: watch::Receiver<bool>,
) -> Result<Listener, Error> {
    let failed =
        |error: std::io::Error| Error::AdminListen { address: admin.listen, reason: error.to_string() };
    let listener = TcpListener::bind(admin.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let app = router(build_schema(connector), admin.token.clone(), ready);
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

fn router(schema: Schema, token: Secret, ready: watch::Receiver<bool>) -> Router {
    Router::new()
        .route("/graphql", post(graphql))
        .layer(Extension(schema))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        // Outermost, so that nothing of a request is read before its token has been checked.
        .layer(from_fn_with_state(token, require_token))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(ready))
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
