//! The listener with a database that is not there: everything up to the database is its own business.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{config::Database, metrics::Verdict};

const TOKEN: &str = "0123456789abcdef";

struct Running {
    address: std::net::SocketAddr,
    ready: watch::Sender<bool>,
    metrics: Metrics,
    _serving: Listener,
}

async fn start() -> Running {
    let database = Database::parse("postgres://u@127.0.0.1:1/d", None).unwrap();
    let connector = Connector::new(&database).unwrap();
    let (ready, is_ready) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::default();
    let exposition = Exposition::new(&metrics, Arc::new(Upkeep::new(connector.clone(), metrics.clone())));
    let app =
        graphql_router(build_schema(connector), Secret::new(TOKEN)).merge(open_router(exposition, is_ready));
    let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Running { address, ready, metrics, _serving: Listener(serving) }
}

impl Running {
    async fn request(&self, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head}\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    async fn graphql(&self, query: &str) -> String {
        let body = serde_json::json!({ "query": query }).to_string();
        self.request(&format!("POST /graphql HTTP/1.1\r\nAuthorization: Bearer {TOKEN}"), &body).await
    }
}

#[tokio::test]
async fn graphql_answers_only_to_the_token() {
    let running = start().await;
    let body = r#"{"query":"{ version }"}"#;
    for wrong in [
        "",
        "\r\nAuthorization: Bearer",
        "\r\nAuthorization: Bearer 0123456789abcdeX",
        "\r\nAuthorization: Bearer 0123456789abcdef0",
        "\r\nAuthorization: Basic 0123456789abcdef",
        "\r\nAuthorization: 0123456789abcdef",
    ] {
        let response = running.request(&format!("POST /graphql HTTP/1.1{wrong}"), body).await;
        assert!(response.starts_with("HTTP/1.1 401"), "{wrong}: {response}");
    }
    let response = running.graphql("{ version }").await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(response.contains(&format!(r#"{{"version":"{}"}}"#, env!("CARGO_PKG_VERSION"))), "{response}");
}

#[tokio::test]
async fn introspection_shows_the_documents_own_mutation() {
    let running = start().await;
    let response = running
        .graphql("{ __schema { mutationType { fields { name args { name type { kind ofType { name } } } type { ofType { name } } } } } }")
        .await;
    for expected in
        [r#""name":"testWebhookConfiguration""#, r#""name":"id""#, r#""name":"ID""#, r#""name":"Boolean""#]
    {
        assert!(response.contains(expected), "{expected} in {response}");
    }
}

#[tokio::test]
async fn a_test_that_cannot_be_made_says_why_without_saying_too_much() {
    let running = start().await;
    let wrong = running.graphql(r#"mutation { testWebhookConfiguration(id: "webhook_123") }"#).await;
    assert!(wrong.contains("id must be the UUID of a webhook"), "{wrong}");
    let id = uuid::Uuid::from_u128(1);
    let down = running.graphql(&format!(r#"mutation {{ testWebhookConfiguration(id: "{id}") }}"#)).await;
    assert!(down.contains("the database cannot be asked at the moment"), "{down}");
    assert!(!down.contains("127.0.0.1"), "{down}");
}

#[tokio::test]
async fn health_needs_no_token_and_readiness_follows_the_database() {
    let running = start().await;
    assert!(running.request("GET /healthz HTTP/1.1", "").await.starts_with("HTTP/1.1 200"));
    assert!(running.request("GET /readyz HTTP/1.1", "").await.starts_with("HTTP/1.1 503"));
    running.ready.send_replace(true);
    assert!(running.request("GET /readyz HTTP/1.1", "").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn metrics_need_no_token_and_speak_while_the_database_does_not() {
    let running = start().await;
    running.metrics.settled(Verdict::Failed, 2);
    let response = running.request("GET /metrics HTTP/1.1", "").await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(response.contains("content-type: application/openmetrics-text; version=1.0.0"), "{response}");
    for line in [
        "orbhook_database_up 0\n",
        "orbhook_attempts_total{verdict=\"failed\"} 2\n",
        "orbhook_requests_total{outcome=\"timeout_body\"} 0\n",
        "orbhook_database_errors_total{connection=\"upkeep\"} 1\n",
    ] {
        assert!(response.contains(line), "{line} in {response}");
    }
    assert!(response.trim_end().ends_with("# EOF"), "{response}");
}

#[tokio::test]
async fn a_request_without_end_and_a_query_without_bottom_are_refused() {
    let running = start().await;
    let long = running.graphql(&format!("{{ version #{}\n }}", "x".repeat(REQUEST_BYTES_MAX))).await;
    assert!(!long.starts_with("HTTP/1.1 200"), "{}", &long[..60]);
    let deep = format!(
        "{{ __schema {{ types {{ {} name {} }} }} }}",
        "fields { type { ".repeat(15),
        "} }".repeat(15)
    );
    assert!(running.graphql(&deep).await.contains("nested too deep"));
}
