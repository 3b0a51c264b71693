use orbhook_tests::{Answer, Database, Receiver, SidecarProcess, generic};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

const TOKEN: &str = "a-token-of-sixteen-or-more";

#[tokio::test]
async fn the_documents_mutation_sends_a_test_and_says_true() {
    let test = Test::start(200).await;
    let answer = test.ask(&test_mutation(test.webhook), Some(TOKEN)).await;
    assert_eq!(answer, (200, json!({"data": {"testWebhookConfiguration": true}})));
    let body = test.receiver.requests(1).await.remove(0).json();
    assert_eq!(body["test"], true);
}

#[tokio::test]
async fn an_endpoint_that_refuses_makes_an_error_that_says_what_it_answered() {
    let test = Test::start(404).await;
    let (status, answer) = test.ask(&test_mutation(test.webhook), Some(TOKEN)).await;
    assert_eq!(status, 200);
    assert!(answer["errors"][0]["message"].as_str().unwrap().contains("404"), "{answer}");
    assert_eq!(test.receiver.count(), 1, "a test is never retried");
}

#[tokio::test]
async fn a_webhook_that_is_not_there_is_said_not_to_be() {
    let test = Test::start(200).await;
    let (_, answer) = test.ask(&test_mutation(Uuid::nil()), Some(TOKEN)).await;
    assert!(answer["errors"][0]["message"].as_str().unwrap().contains("no webhook has id"), "{answer}");
}

#[tokio::test]
async fn without_the_token_nothing_is_answered() {
    let test = Test::start(200).await;
    for token in [None, Some("wrong-wrong-wrong-wrong")] {
        assert_eq!(test.ask("{ version }", token).await.0, 401);
    }
    assert_eq!(test.receiver.count(), 0);
}

#[tokio::test]
async fn an_ordinary_client_can_introspect_and_ask_for_the_version() {
    let test = Test::start(200).await;
    let (_, answer) = test.ask("{ version }", Some(TOKEN)).await;
    assert_eq!(answer["data"]["version"], env!("CARGO_PKG_VERSION"));
    let introspection =
        "{ __schema { mutationType { fields { name args { name type { kind ofType { name } } } } } } }";
    let (_, answer) = test.ask(introspection, Some(TOKEN)).await;
    let field = &answer["data"]["__schema"]["mutationType"]["fields"][0];
    assert_eq!(field["name"], "testWebhookConfiguration");
    assert_eq!(field["args"][0]["name"], "id");
}

struct Test {
    receiver: Receiver,
    webhook: Uuid,
    /// Of the admin listener.
    address: String,
    _database: Database,
    _sidecar: SidecarProcess,
}

impl Test {
    async fn start(status: u16) -> Test {
        let database = Database::new().await;
        let receiver = Receiver::start().await;
        receiver.answer("/hook", Answer::status(status));
        let webhook = database.create_webhook(generic(&receiver.url("/hook"))).await;
        let arguments = ["--admin-listen", "127.0.0.1:0", "--admin-token", TOKEN];
        let sidecar = SidecarProcess::start(&database, &arguments).await;
        sidecar.logged("registered").await;
        let address = sidecar
            .log()
            .split("address=")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next())
            .unwrap()
            .to_owned();
        Test { receiver, webhook, address, _database: database, _sidecar: sidecar }
    }

    /// Status and body, or null when the body is no JSON.
    async fn ask(&self, query: &str, token: Option<&str>) -> (u16, Value) {
        let body = json!({ "query": query }).to_string();
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "POST /graphql HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{authorization}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

fn test_mutation(webhook: Uuid) -> String {
    format!("mutation {{ testWebhookConfiguration(id: \"{webhook}\") }}")
}
