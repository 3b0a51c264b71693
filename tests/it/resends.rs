//! An attempt is one request: whatever breaks, nothing below orbhook sends it a second time.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orbhook_tests::{Authority, Database, Hostile, Sidecar, generic, wait_until};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const DEADLINE: Duration = Duration::from_secs(60);
const EVENTS: usize = 3;

/// What a server does when a request has begun to arrive, after it has answered so many on the same connection.
#[derive(Clone, Copy, Debug)]
enum Breaks {
    Closes { answered: usize },
    Resets { answered: usize },
    GoesAway { answered: usize },
    RefusesTheStream { answered: usize },
}

impl Breaks {
    fn answered(self) -> usize {
        match self {
            Breaks::Closes { answered }
            | Breaks::Resets { answered }
            | Breaks::GoesAway { answered }
            | Breaks::RefusesTheStream { answered } => answered,
        }
    }

    fn speaks_http2(self) -> bool {
        matches!(self, Breaks::GoesAway { .. } | Breaks::RefusesTheStream { .. })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attempt_is_one_request_on_the_wire_however_its_connection_breaks() {
    let authority = Authority::new();
    let tls = authority.issue().acceptor(&[b"h2"]);
    let database = Database::new().await;
    let mut servers = Vec::new();
    for answered in [0, 1] {
        for breaks in [
            Breaks::Closes { answered },
            Breaks::Resets { answered },
            Breaks::GoesAway { answered },
            Breaks::RefusesTheStream { answered },
        ] {
            let begun = Arc::new(Mutex::new(0));
            let (tls, counter) = (tls.clone(), Arc::clone(&begun));
            let server =
                Hostile::serving(move |stream| serve(breaks, tls.clone(), stream, Arc::clone(&counter)))
                    .await;
            let scheme = if breaks.speaks_http2() { "https" } else { "http" };
            let mut config = generic(&format!("{scheme}://{}/hook", server.address()));
            config["name"] = json!(format!("{breaks:?}"));
            config["timeoutSeconds"] = json!(5);
            config["maxRetries"] = json!(1);
            config["retryDelay"] = json!(0.5);
            config["maxInFlight"] = json!(1);
            database.create_webhook(config).await;
            servers.push((breaks, server, begun));
        }
    }
    let ca_file = authority.file().to_owned();
    let _sidecar = Sidecar::start_with(&database, |config| config.ca_file = Some(ca_file)).await;
    for _ in 0..EVENTS {
        database.emit("USER_CREATED", json!({})).await;
    }
    wait_until("all deliveries to end", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries_open)";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;

    let select = "select count(*), count(*) filter (where a.error_class is not null),
                         string_agg(distinct coalesce(a.error_class, 'delivered'), ' ')
                  from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id where w.name = $1";
    for (breaks, _, begun) in &servers {
        let row = database.rows(select, &[&format!("{breaks:?}")]).await.remove(0);
        let (attempts, failed): (i64, i64) = (row.get(0), row.get(1));
        let requests: i64 = *begun.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(requests, attempts, "{breaks:?}: {}", row.get::<_, &str>(2));
        assert!(failed >= 2, "{breaks:?} broke nothing: {}", row.get::<_, &str>(2));
    }
}

type Begun = Arc<Mutex<i64>>;

async fn serve(breaks: Breaks, tls: TlsAcceptor, stream: TcpStream, begun: Begun) -> io::Result<()> {
    match breaks.speaks_http2() {
        true => serve_http2(breaks, tls.accept(stream).await?, begun).await,
        false => serve_http1(breaks, stream, begun).await,
    }
}

async fn serve_http1(breaks: Breaks, mut stream: TcpStream, begun: Begun) -> io::Result<()> {
    let mut answered = 0;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = stream.read_u8().await?;
            if head.is_empty() {
                *begun.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                if answered == breaks.answered() {
                    return match breaks {
                        Breaks::Resets { .. } => stream.set_zero_linger(),
                        _ => stream.shutdown().await,
                    };
                }
            }
            head.push(byte);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        stream.read_exact(&mut vec![0; length.unwrap_or(0)]).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
        answered += 1;
    }
}

/// RFC 9113, frame by frame: nine bytes of length, type, flags and stream, then the payload.
async fn serve_http2(breaks: Breaks, mut stream: TlsStream<TcpStream>, begun: Begun) -> io::Result<()> {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const ACK: u8 = 1;
    const END_STREAM_AND_HEADERS: u8 = 5;
    const REFUSED_STREAM: u8 = 7;
    /// `:status: 200` in the static table of HPACK (RFC 7541, appendix A).
    const STATUS_200: u8 = 0x88;

    stream.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await?;
    write_frame(&mut stream, SETTINGS, 0, [0; 4], &[]).await?;
    let mut answered = 0;
    let mut last = [0; 4];
    loop {
        let (kind, flags, id) = read_frame(&mut stream).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => write_frame(&mut stream, SETTINGS, ACK, [0; 4], &[]).await?,
            HEADERS => {
                *begun.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                if answered < breaks.answered() {
                    write_frame(&mut stream, HEADERS, END_STREAM_AND_HEADERS, id, &[STATUS_200]).await?;
                    answered += 1;
                    last = id;
                } else if matches!(breaks, Breaks::GoesAway { .. }) {
                    // "Nothing after the last was looked at": a client may send it again, if it is one that does so.
                    let no_error = [0; 4];
                    write_frame(&mut stream, GOAWAY, 0, [0; 4], &[last, no_error].concat()).await?;
                    stream.shutdown().await?;
                    return stream.read_to_end(&mut Vec::new()).await.map(drop);
                } else {
                    write_frame(&mut stream, RST_STREAM, 0, id, &[0, 0, 0, REFUSED_STREAM]).await?;
                }
            }
            _ => {}
        }
    }
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, u8, [u8; 4])> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let [high, middle, low, kind, flags, id @ ..] = head;
    let length = u32::from_be_bytes([0, high, middle, low]);
    stream.read_exact(&mut vec![0; usize::try_from(length).expect("24 bits")]).await?;
    Ok((kind, flags, id))
}

async fn write_frame(
    stream: &mut TlsStream<TcpStream>,
    kind: u8,
    flags: u8,
    id: [u8; 4],
    payload: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(payload.len()).expect("a frame is small").to_be_bytes();
    stream.write_all(&[&length[1..], &[kind, flags], &id, payload].concat()).await?;
    stream.flush().await
}
