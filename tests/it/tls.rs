use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orbhook_tests::{Authority, Database, Hostile, Identity, SidecarProcess, generic, wait_until};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

const DEADLINE: Duration = Duration::from_secs(60);

/// In the URL of every endpoint and in every payload; never to be seen in the clear.
const CANARY: &str = "CANARY";

/// TLS 1.0 in a ServerHello: handshake record, ServerHello, version 3.1, random, no session, AES128-SHA, no compression.
const HELLO_TLS10: [u8; 47] = {
    let mut hello = [0; 47];
    let head = [22, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1];
    let mut at = 0;
    while at < head.len() {
        hello[at] = head[at];
        at += 1;
    }
    hello[45] = 0x2f;
    hello
};

/// Fatal alerts (RFC 8446, section 6.2).
const ALERT_PROTOCOL_VERSION: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];
const ALERT_HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];
const ALERT_UNRECOGNISED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a server does with a connection.
#[derive(Clone)]
enum Server {
    /// Speaks TLS, reads what it is sent, answers.
    Tls(TlsAcceptor),
    /// Reads the ClientHello, sends these bytes, and closes.
    Bytes(&'static [u8]),
    /// The same, and stays.
    Hangs(&'static [u8]),
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_server_is_named_and_nothing_is_said_in_clear() {
    let (known, unknown) = (Authority::new(), Authority::new());
    let plain = |identity: Identity| Server::Tls(identity.acceptor(&[b"http/1.1"]));
    let cases = [
        ("in order", "delivered", "", plain(known.issue())),
        ("in order, HTTP/1.1 by default", "delivered", "", Server::Tls(known.issue().acceptor(&[]))),
        ("expired", "tls", "has expired", plain(known.issue_expired())),
        ("not valid yet", "tls", "not valid yet", plain(known.issue_for_the_future())),
        ("self-signed", "tls", "", plain(Identity::self_signed())),
        ("unknown authority", "tls", "issuer is unknown", plain(unknown.issue())),
        ("another host", "tls", "another host name", plain(known.issue_for("other.example", |_| {}))),
        ("another address", "tls", "another host name", plain(known.issue_for("127.0.0.2", |_| {}))),
        ("for clients", "tls", "not meant for servers", plain(known.issue_for_clients())),
        (
            "wants a client certificate",
            // In TLS 1.3 the server says so after the handshake, and may have closed before the request is sent.
            "tls reset",
            "client certificate",
            Server::Tls(known.acceptor_that_wants_clients_vouched_for(known.issue())),
        ),
        ("another protocol", "tls", "neither HTTP/1.1", Server::Tls(known.issue().acceptor(&[b"smtp"]))),
        ("TLS 1.0, by its hello", "tls", "neither TLS 1.2 nor TLS 1.3", Server::Bytes(&HELLO_TLS10)),
        (
            "TLS 1.1, by its alert",
            "tls",
            "neither TLS 1.2 nor TLS 1.3",
            Server::Bytes(&ALERT_PROTOCOL_VERSION),
        ),
        ("no common cipher", "tls", "no common cipher", Server::Bytes(&ALERT_HANDSHAKE_FAILURE)),
        ("another name", "tls", "does not serve this host name", Server::Bytes(&ALERT_UNRECOGNISED_NAME)),
        ("plain HTTP", "tls", "not TLS", Server::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        ("closes", "tls", "closed the connection during the handshake", Server::Bytes(b"")),
        (
            "truncated",
            "tls",
            "closed the connection during the handshake",
            Server::Bytes(&[22, 3, 3, 0, 80, 2, 0]),
        ),
        ("hangs", "timeout_connect", "no connection in time", Server::Hangs(b"")),
        (
            "hangs in its hello",
            "timeout_connect",
            "no connection in time",
            Server::Hangs(&[22, 3, 3, 0, 80, 2]),
        ),
    ];

    let database = Database::new().await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let mut servers = Vec::new();
    for (name, _, _, server) in &cases {
        let (server, heard) = (server.clone(), Arc::clone(&heard));
        let listening =
            Hostile::serving(move |stream| serve(server.clone(), stream, Arc::clone(&heard))).await;
        let mut config = generic(&format!("https://{}/{CANARY}", listening.address()));
        config["name"] = json!(name);
        config["timeoutSeconds"] = json!(1);
        config["maxRetries"] = json!(0);
        config["subscribedEvents"] = json!(["USER_CREATED"]);
        database.create_webhook(config).await;
        servers.push(listening);
    }
    let ca_file = known.file().display().to_string();
    let sidecar = SidecarProcess::start(&database, &["--ca-file", &ca_file, "--log-level", "debug"]).await;
    database.emit("USER_CREATED", json!({"canary": CANARY})).await;
    ended(&database).await;

    let mut faults = Vec::new();
    for (name, class, words, _) in &cases {
        let select = "select coalesce(a.error_class, 'delivered'), coalesce(a.error, ''), a.duration_ms
                      from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id where w.name = $1";
        let row = database.rows(select, &[name]).await.remove(0);
        let (seen, reason): (String, String) = (row.get(0), row.get(1));
        if !class.split(' ').any(|class| class == seen) || !reason.contains(words) {
            faults.push(format!("{name}: {seen}: {reason}"));
        }
        if reason.contains(CANARY) || row.get::<_, i32>(2) > 2_000 {
            faults.push(format!("{name}: {} ms: {reason}", row.get::<_, i32>(2)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(servers.iter().all(|server| server.connections() == 1), "each was dialled once");
    assert!(!sidecar.log().contains(CANARY));
    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), cases.len(), "each server has heard something");
    for (first, bytes) in heard.iter() {
        assert_eq!(first, &Some(22), "the first thing said is a handshake record");
        let is_secret = |window: &[u8]| window == CANARY.as_bytes() || window == b"webhook-";
        assert!(!bytes.windows(6).any(is_secret) && !bytes.windows(8).any(is_secret), "said in clear");
    }
}

#[tokio::test]
async fn without_the_ca_file_its_authority_is_unknown() {
    let authority = Authority::new();
    let acceptor = authority.issue().acceptor(&[b"http/1.1"]);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let server =
        Hostile::serving(move |stream| serve(Server::Tls(acceptor.clone()), stream, Arc::clone(&heard)))
            .await;
    let database = Database::new().await;
    let mut config = generic(&format!("https://{}/", server.address()));
    config["maxRetries"] = json!(0);
    database.create_webhook(config).await;
    let _sidecar = SidecarProcess::start(&database, &[]).await;
    database.emit("USER_CREATED", json!({})).await;
    ended(&database).await;
    let error: String = database.one("select error from orbhook.attempts", &[]).await;
    assert!(error.contains("issuer is unknown") && error.contains("--ca-file"), "{error}");
}

/// The first byte a client said, and everything it said in the clear.
type Heard = Arc<Mutex<Vec<(Option<u8>, Vec<u8>)>>>;

async fn serve(server: Server, mut stream: TcpStream, heard: Heard) -> io::Result<()> {
    let mut first = [0; 1];
    let length = stream.peek(&mut first).await?;
    let first = first[..length].first().copied();
    match server {
        Server::Tls(acceptor) => {
            // What rustls takes is not in the clear: it would break off the handshake at anything else.
            heard.lock().unwrap().push((first, Vec::new()));
            let mut stream = acceptor.accept(stream).await?;
            let mut request = vec![0; 16 * 1024];
            let _ = stream.read(&mut request).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
            stream.shutdown().await
        }
        Server::Bytes(bytes) => {
            let mut hello = vec![0; 16 * 1024];
            let length = stream.read(&mut hello).await?;
            stream.write_all(bytes).await?;
            stream.shutdown().await?;
            let mut rest = hello[..length].to_vec();
            let _ = stream.read_to_end(&mut rest).await;
            heard.lock().unwrap().push((first, rest));
            Ok(())
        }
        Server::Hangs(bytes) => {
            stream.write_all(bytes).await?;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            heard.lock().unwrap().push((first, rest));
            Ok(())
        }
    }
}

async fn ended(database: &Database) {
    wait_until("all attempts to end", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries_open)";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}
