//! Attempts against small receivers that misbehave in one way each.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use orbhook_address::{Policy, parse_networks};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use uuid::Uuid;

use super::*;
use crate::{
    delivery::Ticket,
    resolve::{Lookup, LookupFuture},
    tls,
};

const NOW: i64 = 1_614_265_330;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Names answered from a table; a name that is not in it does not exist.
#[derive(Default)]
struct Table(HashMap<&'static str, Vec<IpAddr>>);

impl Lookup for Table {
    fn lookup(&self, name: &str) -> LookupFuture {
        let found = self.0.get(name).cloned();
        Box::pin(async move { found.ok_or_else(|| io::Error::other("no such name")) })
    }
}

fn client(allow: &str, names: &[(&'static str, &[&str])]) -> HttpClient {
    let parse = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
    let table = Table(names.iter().map(|(name, ips)| (*name, parse(ips))).collect());
    let policy = Policy::new(parse_networks(allow).unwrap());
    HttpClient::new(policy, Arc::new(table), tls::outbound(None).unwrap(), 10).unwrap()
}

fn local() -> HttpClient {
    client("127.0.0.0/8,::1/128", &[("hooks.test", &["127.0.0.1"])])
}

fn delivery(mut secrets: serde_json::Value, headers: serde_json::Value) -> Delivery {
    let now = Instant::now();
    secrets.as_object_mut().unwrap().entry("signing").or_insert_with(|| SECRET.into());
    let ids = Uuid::from_u128(0xfeed);
    Delivery {
        ticket: Ticket { delivery: ids, attempt: 1, webhook: ids, sidecar: ids },
        event_type: "USER_CREATED".to_owned(),
        headers: serde_json::from_value(headers).unwrap(),
        body: r#"{"type":"USER_CREATED"}"#.to_owned(),
        secrets: serde_json::from_value(secrets).unwrap(),
        timeout: Duration::from_secs(10),
        lease_until: now + Duration::from_secs(60),
        send_at: now,
        is_paced: false,
    }
}

async fn post(http: &HttpClient, url: &str) -> Finished {
    let delivery = delivery(serde_json::json!({"endpoint": url}), serde_json::json!([]));
    send(http, &delivery, NOW).await
}

/// For receivers that would take for ever.
async fn post_impatiently(http: &HttpClient, url: &str) -> Finished {
    let mut delivery = delivery(serde_json::json!({"endpoint": url}), serde_json::json!([]));
    delivery.timeout = Duration::from_millis(300);
    let finished = send(http, &delivery, NOW).await;
    assert!(finished.duration < delivery.timeout + Duration::from_secs(1), "{:?}", finished.duration);
    finished
}

fn answer(finished: Finished) -> Answer {
    match finished.outcome {
        Outcome::Answered(answer) => answer,
        other => panic!("not answered: {other:?}"),
    }
}

fn fault(finished: Finished) -> Fault {
    match finished.outcome {
        Outcome::Unanswered(fault) => fault,
        other => panic!("not a fault: {other:?}"),
    }
}

/// A receiver: reads one request per connection, then does what the script says with the socket.
struct Receiver {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    async fn start<F, S>(script: S) -> Receiver
    where
        S: Fn(TcpStream) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<()>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let script = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                tokio::spawn(async move {
                    if let Some(request) = read_request(&mut stream).await {
                        seen.lock().unwrap().push(request);
                        // Most scripts end because the sidecar hangs up on them.
                        drop(script(stream).await);
                    }
                });
            }
        });
        Receiver { address, requests }
    }

    /// Writes `response` and closes.
    async fn answering(response: impl Into<Vec<u8>>) -> Receiver {
        let response = response.into();
        Receiver::start(move |mut stream| {
            let response = response.clone();
            async move {
                stream.write_all(&response).await?;
                stream.shutdown().await
            }
        })
        .await
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok()
                })
                .unwrap_or(0);
            if body.len() >= length {
                return Some(text);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

async fn hang() -> io::Result<()> {
    std::future::pending().await
}

#[tokio::test]
async fn a_request_is_signed_and_says_what_it_is() {
    let receiver = Receiver::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-RateLimit-Left: 7\r\nX-Other: 1\r\n\r\nok",
    )
    .await;
    let sent = delivery(
        serde_json::json!({"endpoint": receiver.url(), "signing": SECRET, "signing.previous": SECRET, "apiKey": "k-1"}),
        serde_json::json!([
            {"name": "Authorization", "prefix": "Bearer ", "secret": "apiKey"},
            {"name": "Version", "prefix": "2021-07-28", "secret": null},
            {"name": "webhook-id", "prefix": "forged"},
        ]),
    );
    let finished = send(&local(), &sent, NOW).await;
    assert_eq!(finished.wire.address, Some(receiver.address));
    assert!(finished.wire.connect.is_some() && finished.wire.first_byte.is_some());
    let got = answer(finished);
    assert_eq!((got.status, got.body.as_str(), got.body_cut), (200, "ok", false));
    assert_eq!(got.headers, BTreeMap::from([("x-ratelimit-left".to_owned(), "7".to_owned())]));

    let request = receiver.requests().remove(0);
    let id = sent.ticket.delivery.to_string();
    let signature = sign([SECRET, SECRET], &id, NOW, sent.body.as_bytes()).unwrap();
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    for line in [
        "authorization: Bearer k-1",
        "version: 2021-07-28",
        "content-type: application/json",
        &format!("user-agent: orbhook/{}", env!("CARGO_PKG_VERSION")),
        &format!("webhook-id: {id}"),
        &format!("webhook-timestamp: {NOW}"),
        &format!("webhook-signature: {signature}"),
    ] {
        assert!(request.contains(&format!("\r\n{line}\r\n")), "{line} is missing in {request}");
    }
    assert!(
        request.ends_with(&sent.body) && !request.contains("forged") && !request.contains("accept-encoding")
    );
}

#[tokio::test]
async fn a_content_type_of_the_provider_replaces_ours() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let sent = delivery(
        serde_json::json!({"endpoint": receiver.url()}),
        serde_json::json!([{"name": "Content-Type", "prefix": "application/cloudevents+json"}]),
    );
    answer(send(&local(), &sent, NOW).await);
    let request = receiver.requests().remove(0);
    assert!(request.contains("content-type: application/cloudevents+json"));
    assert_eq!(request.matches("content-type").count(), 1);
}

#[tokio::test]
async fn nothing_is_sent_unsigned() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let mut sent = delivery(serde_json::json!({"endpoint": receiver.url()}), serde_json::json!([]));
    sent.secrets = serde_json::from_value(serde_json::json!({"endpoint": receiver.url()})).unwrap();
    let fault = fault(send(&local(), &sent, NOW).await);
    assert_eq!(fault.class, ErrorClass::Secret);
    assert!(fault.reason.contains("orbhook_rotate_secret"), "{}", fault.reason);
    assert!(receiver.requests().is_empty());
}

#[tokio::test]
async fn a_kept_connection_is_used_again_and_has_no_connect_time() {
    let (address, connections, _) = keeping().await;
    let http = local();
    let url = format!("http://{address}/");
    let first = post(&http, &url).await;
    let second = post(&http, &url).await;
    assert!(first.wire.connect.is_some());
    assert_eq!(second.wire.connect, None);
    assert_eq!(second.wire.address, Some(address));
    assert_eq!((answer(first).status, answer(second).status), (204, 204));
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// A receiver that keeps its connections, and how many there were.
async fn keeping() -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connection_count, request_count) = (Arc::clone(&connections), Arc::clone(&requests));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connection_count.fetch_add(1, Ordering::SeqCst);
            let request_count = Arc::clone(&request_count);
            tokio::spawn(async move {
                while read_request(&mut stream).await.is_some() {
                    request_count.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    (address, connections, requests)
}

#[tokio::test]
async fn a_kept_connection_of_an_open_policy_is_of_no_use_to_a_strict_one() {
    let (address, connections, requests) = keeping().await;
    let names: [(&'static str, &[&str]); 1] = [("hooks.test", &["127.0.0.1"])];
    let (open, strict) = (client("127.0.0.0/8", &names), client("", &names));
    for url in [format!("http://{address}/"), format!("http://hooks.test:{}/", address.port())] {
        for _ in 0..2 {
            assert_eq!(answer(post(&open, &url).await).status, 204);
        }
        let before = (connections.load(Ordering::SeqCst), requests.load(Ordering::SeqCst));
        for _ in 0..2 {
            assert_eq!(fault(post(&strict, &url).await).class, ErrorClass::AddressBlocked, "{url}");
        }
        assert_eq!((connections.load(Ordering::SeqCst), requests.load(Ordering::SeqCst)), before, "{url}");
        assert_eq!(answer(post(&open, &url).await).status, 204, "the connection is still there");
        assert_eq!(connections.load(Ordering::SeqCst), before.0, "{url}");
    }
}

#[tokio::test]
async fn two_names_of_one_address_have_a_connection_each() {
    let (address, connections, requests) = keeping().await;
    let http = client("127.0.0.0/8", &[("one.test", &["127.0.0.1"]), ("two.test", &["127.0.0.1"])]);
    for _ in 0..2 {
        for name in ["one.test", "two.test"] {
            answer(post(&http, &format!("http://{name}:{}/", address.port())).await);
        }
    }
    assert_eq!((connections.load(Ordering::SeqCst), requests.load(Ordering::SeqCst)), (2, 4));
}

/// With HTTP/2 a client may send requests for another name over a connection whose certificate fits it (RFC 9113, section
/// 9.1.1). The other name may be looked up to an address that is not to be reached.
#[tokio::test]
async fn two_names_of_one_certificate_have_an_http2_connection_each() {
    let names = ["one.test", "two.test"];
    let made = rcgen::generate_simple_self_signed(names.map(str::to_owned)).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut trusting = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    trusting.alpn_protocols = tls::outbound(None).unwrap().alpn_protocols;

    // For each connection the authorities it was asked for.
    let asked: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(Vec::new());
                    seen.len() - 1
                };
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let host = request.uri().host().unwrap_or_default().to_owned();
                    seen.lock().unwrap()[number].push(host);
                    respond.send_response(hyper::Response::new(()), true).unwrap();
                }
            });
        }
    });

    let table = Table(names.map(|name| (name, vec!["127.0.0.1".parse().unwrap()])).into());
    let policy = Policy::new(parse_networks("127.0.0.0/8").unwrap());
    let http = HttpClient::new(policy, Arc::new(table), trusting, 10).unwrap();
    for _ in 0..2 {
        for name in names {
            assert_eq!(answer(post(&http, &format!("https://{name}:{port}/")).await).status, 200);
        }
    }
    let mut asked = asked.lock().unwrap().clone();
    asked.sort();
    assert_eq!(asked, names.map(|name| vec![name.to_owned(); 2]));
}

#[tokio::test]
async fn a_receiver_that_never_answers_is_a_timeout_of_the_first_byte() {
    let receiver = Receiver::start(async |_stream| hang().await).await;
    let finished = post_impatiently(&local(), &receiver.url()).await;
    assert_eq!(finished.wire.address, Some(receiver.address));
    assert_eq!(fault(finished).class, ErrorClass::TimeoutFirstByte);
}

#[tokio::test]
async fn headers_that_drip_are_a_timeout_of_the_first_byte() {
    let receiver = Receiver::start(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX-").await?;
        loop {
            stream.write_all(b"a").await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(fault(post_impatiently(&local(), &receiver.url()).await).class, ErrorClass::TimeoutFirstByte);
}

#[tokio::test]
async fn informational_responses_without_end_are_a_timeout() {
    let receiver = Receiver::start(|mut stream| async move {
        loop {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(fault(post_impatiently(&local(), &receiver.url()).await).class, ErrorClass::TimeoutFirstByte);
}

#[tokio::test]
async fn a_body_that_drips_is_a_timeout_of_the_body() {
    let receiver = Receiver::start(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        loop {
            stream.write_all(b"1\r\nx\r\n").await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let fault = fault(post_impatiently(&local(), &receiver.url()).await);
    assert_eq!(fault.class, ErrorClass::TimeoutBody);
    assert!(fault.reason.starts_with("answered 200"), "{}", fault.reason);
}

#[tokio::test]
async fn an_endless_body_is_read_to_its_limit_and_the_connection_closed() {
    let (closed, was_closed) = tokio::sync::oneshot::channel();
    let closed = Mutex::new(Some(closed));
    let receiver = Receiver::start(move |mut stream| {
        let closed = closed.lock().unwrap().take();
        async move {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            let mut bytes = 0_usize;
            while stream.write_all(&[b'x'; 1024]).await.is_ok() {
                bytes += 1024;
            }
            closed.unwrap().send(bytes).unwrap();
            Ok(())
        }
    })
    .await;
    let got = answer(post(&local(), &receiver.url()).await);
    assert_eq!(got.body.len(), BODY_RECORDED_BYTES_MAX);
    assert!(got.body_cut);
    let bytes = tokio::time::timeout(Duration::from_secs(5), was_closed).await.unwrap().unwrap();
    assert!(bytes >= BODY_READ_BYTES_MAX);
}

#[tokio::test]
async fn a_body_within_the_limit_is_kept_whole() {
    let body = "y".repeat(BODY_RECORDED_BYTES_MAX);
    let receiver =
        Receiver::answering(format!("HTTP/1.1 500 No\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    let got = answer(post(&local(), &receiver.url()).await);
    assert_eq!((got.status, got.body, got.body_cut), (500, body, false));
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let target = Receiver::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    for status in [301, 302, 303, 307, 308] {
        let receiver = Receiver::answering(format!(
            "HTTP/1.1 {status} Elsewhere\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
            target.url()
        ))
        .await;
        let got = answer(post(&local(), &receiver.url()).await);
        assert_eq!(got.status, status);
        assert_eq!(got.headers["location"], target.url());
    }
    assert!(target.requests().is_empty());
}

#[tokio::test]
async fn a_connection_closed_without_an_answer_is_a_reset() {
    let receiver = Receiver::start(|stream| async move {
        drop(stream);
        Ok(())
    })
    .await;
    assert_eq!(fault(post(&local(), &receiver.url()).await).class, ErrorClass::Reset);
}

#[tokio::test]
async fn a_reset_connection_is_a_reset() {
    let receiver = Receiver::start(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200").await?;
        stream.set_zero_linger()?;
        drop(stream);
        Ok(())
    })
    .await;
    assert_eq!(fault(post(&local(), &receiver.url()).await).class, ErrorClass::Reset);
}

#[tokio::test]
async fn a_reset_in_the_middle_of_the_body_keeps_the_status_in_words() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    let fault = fault(post(&local(), &receiver.url()).await);
    assert_eq!(fault.class, ErrorClass::Reset);
    assert!(fault.reason.starts_with("answered 200, but the body broke off"), "{}", fault.reason);
}

#[tokio::test]
async fn what_is_not_http_is_malformed() {
    for nonsense in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
        "HTTP/1.1 abc\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nab\r\n0\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-A: b\r\n".repeat(10_000)),
        format!("HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\n", "b".repeat(1_000_000)),
    ] {
        let receiver = Receiver::answering(nonsense.clone()).await;
        let fault = fault(post(&local(), &receiver.url()).await);
        assert_eq!(fault.class, ErrorClass::MalformedResponse, "{} for {nonsense:.60}", fault.reason);
    }
}

#[tokio::test]
async fn a_compressed_body_is_not_unpacked() {
    let packed = b"\x1f\x8b\x08\x00not really";
    let mut response =
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", packed.len())
            .into_bytes();
    response.extend_from_slice(packed);
    let receiver = Receiver::answering(response).await;
    let got = answer(post(&local(), &receiver.url()).await);
    assert_eq!(got.body, "\u{fffd}\u{fffd}\u{fffd}\u{fffd}not really");
}

#[tokio::test]
async fn a_body_with_control_characters_is_made_safe() {
    let receiver = Receiver::answering(
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nServer: a\x09b\xff\r\n\r\nok\0\x1b[2J\xffA\n".as_slice(),
    )
    .await;
    let got = answer(post(&local(), &receiver.url()).await);
    assert_eq!(got.body, "ok\u{fffd}\u{fffd}[2J\u{fffd}A\n");
    assert_eq!(got.headers["server"], "a\tb\u{fffd}");
}

#[tokio::test]
async fn nothing_listening_is_a_refused_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for url in [
        format!("http://{address}/"),
        format!("https://{address}/"),
        format!("http://hooks.test:{}/", address.port()),
    ] {
        let finished = post(&local(), &url).await;
        assert_eq!(finished.wire.address, Some(address), "{url}");
        assert_eq!(fault(finished).class, ErrorClass::ConnectionRefused, "{url}");
    }
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_gets_nothing_in_clear() {
    let (sender, mut first_bytes) = tokio::sync::mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).await.unwrap();
            sender.send(bytes[..read].to_vec()).unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        }
    });
    let fault = fault(post(&local(), &format!("https://{address}/SECRET")).await);
    assert_eq!(fault.class, ErrorClass::Tls);
    assert!(fault.reason.contains("not TLS"), "{}", fault.reason);
    let bytes = first_bytes.recv().await.unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"SECRET" || window == b"webhoo"));
}

#[tokio::test]
async fn a_handshake_that_hangs_or_breaks_off_is_told_apart() {
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let finished = post_impatiently(&local(), &format!("https://{}/", hanging.local_addr().unwrap())).await;
    assert_eq!(fault(finished).class, ErrorClass::TimeoutConnect);

    let breaking = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = breaking.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = breaking.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let fault = fault(post(&local(), &format!("https://{address}/")).await);
    assert_eq!(fault.class, ErrorClass::Tls, "{}", fault.reason);
}

#[tokio::test]
async fn blocked_addresses_are_not_dialled_however_they_are_named() {
    let trap = Receiver::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let port = trap.address.port();
    let strict = client(
        "",
        &[
            ("inside.test", &["127.0.0.1"]),
            ("mixed.test", &["93.184.216.34", "127.0.0.1"]),
            ("mapped.test", &["::ffff:127.0.0.1"]),
            ("localhost", &["127.0.0.1"]),
        ],
    );
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0x7f.1:{port}/"),
        format!("http://[::ffff:7f00:1]:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://inside.test:{port}/"),
        format!("http://mixed.test:{port}/"),
        format!("http://mapped.test:{port}/"),
        "ftp://93.184.216.34/".to_owned(),
        "http://user:pw@93.184.216.34/".to_owned(),
    ] {
        let fault = fault(post(&strict, &url).await);
        assert_eq!(fault.class, ErrorClass::AddressBlocked, "{url}: {}", fault.reason);
    }
    assert!(trap.requests().is_empty());
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_a_matter_of_dns() {
    let fault = fault(post(&local(), "http://nowhere.test/").await);
    assert_eq!(fault.class, ErrorClass::Dns);
    assert!(fault.reason.contains("no such name"), "{}", fault.reason);
}

#[tokio::test]
async fn a_look_up_that_hangs_ends_with_the_attempt() {
    struct Hanging;
    impl Lookup for Hanging {
        fn lookup(&self, _: &str) -> LookupFuture {
            Box::pin(std::future::pending())
        }
    }
    let http =
        HttpClient::new(Policy::default(), Arc::new(Hanging), tls::outbound(None).unwrap(), 1).unwrap();
    assert_eq!(fault(post_impatiently(&http, "http://slow.test/").await).class, ErrorClass::TimeoutConnect);
}

#[tokio::test]
async fn secrets_that_are_missing_or_unusable_fail_the_attempt_and_nothing_is_sent() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let endpoint = receiver.url();
    for (secrets, headers) in [
        (serde_json::json!({}), serde_json::json!([])),
        (serde_json::json!({"endpoint": endpoint, "signing": "***"}), serde_json::json!([])),
        (
            serde_json::json!({"endpoint": endpoint}),
            serde_json::json!([{"name": "Authorization", "prefix": "Bearer ", "secret": "apiKey"}]),
        ),
        (
            serde_json::json!({"endpoint": endpoint, "apiKey": "CANARY\r\nX-Evil: 1"}),
            serde_json::json!([{"name": "Authorization", "prefix": "", "secret": "apiKey"}]),
        ),
    ] {
        let fault = fault(send(&local(), &delivery(secrets, headers), NOW).await);
        assert_eq!(fault.class, ErrorClass::Secret);
        assert!(!fault.reason.contains("CANARY"));
    }
    for reserved in ["Host", "Content-Length", "Transfer-Encoding", "a b"] {
        let headers = serde_json::json!([{"name": reserved, "prefix": "0"}]);
        let fault =
            fault(send(&local(), &delivery(serde_json::json!({"endpoint": endpoint}), headers), NOW).await);
        assert_eq!(fault.class, ErrorClass::Internal, "{reserved}");
    }
    assert!(receiver.requests().is_empty());
}

#[tokio::test]
async fn no_fault_repeats_the_url() {
    for url in [
        "http://127.0.0.1:1/CANARY",
        "https://10.0.0.1/CANARY",
        "http://nowhere.test/CANARY?CANARY",
        "ftp://a/CANARY",
        "CANARY",
    ] {
        let fault = fault(post(&local(), url).await);
        assert!(!format!("{fault:?}").contains("CANARY"), "{fault:?}");
    }
}
