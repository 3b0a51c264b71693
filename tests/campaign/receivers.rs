//! Receivers: log every complete request before they answer, and answer badly now and then.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use std::{fs::File, io};

use orbhook_tests::{Incoming, Request, pause, read_request, verify_signature};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::clock::{Clock, Micros};
use crate::ledger::Token;

/// A receiver takes this long to answer, at most.
const THINK_MS_MAX: u64 = 20;

/// What a receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Accepted,
    Broken,
    Silence,
    Reset,
    Elsewhere,
}

impl Reply {
    /// The status a sidecar sees, if it sees one.
    pub(crate) fn status(self) -> Option<i32> {
        match self {
            Reply::Accepted => Some(200),
            Reply::Broken => Some(500),
            Reply::Elsewhere => Some(307),
            Reply::Silence | Reply::Reset => None,
        }
    }
}

/// How often requests are treated badly, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Misbehaviour {
    pub(crate) broken: u64,
    pub(crate) silence: u64,
    pub(crate) reset: u64,
    pub(crate) elsewhere: u64,
    /// Answers take a moment.
    pub(crate) thinks: bool,
}

impl Misbehaviour {
    pub(crate) const NONE: Misbehaviour =
        Misbehaviour { broken: 0, silence: 0, reset: 0, elsewhere: 0, thinks: true };
    pub(crate) const USUAL: Misbehaviour =
        Misbehaviour { broken: 5, silence: 1, reset: 1, elsewhere: 1, thinks: true };
    pub(crate) const BAD: Misbehaviour =
        Misbehaviour { broken: 75, silence: 1, reset: 1, elsewhere: 1, thinks: true };
}

/// One complete request.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Micros,
    /// Number of the webhook whose endpoint it came to.
    pub(crate) webhook: usize,
    pub(crate) delivery: Uuid,
    pub(crate) attempt: i32,
    /// The registration that sent it.
    pub(crate) sidecar: Uuid,
    pub(crate) token: Token,
    pub(crate) body_hash: u64,
    pub(crate) reply: Reply,
}

/// What has come in.
pub(crate) struct Receivers {
    clock: Clock,
    seed: u64,
    misbehaviour: Misbehaviour,
    record: Mutex<Record>,
    torn: AtomicUsize,
    _accepting: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Record {
    arrivals: Vec<Arrival>,
    /// Requests that no delivery can explain: where, and why.
    strays: Vec<String>,
    file: Option<File>,
}

impl Receivers {
    /// One for each secret, and one that nobody has a reason to call. Returns their URLs.
    pub(crate) async fn start(
        secrets: Vec<String>,
        misbehaviour: Misbehaviour,
        seed: u64,
        clock: Clock,
        directory: &Path,
    ) -> (Arc<Receivers>, Vec<String>) {
        let file = File::create(directory.join("arrivals")).expect("the receivers' file");
        let receivers = Arc::new(Receivers {
            clock,
            seed,
            misbehaviour,
            record: Mutex::new(Record { file: Some(file), ..Record::default() }),
            torn: AtomicUsize::new(0),
            _accepting: Mutex::new(JoinSet::new()),
        });
        let nowhere = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let elsewhere = nowhere.local_addr().expect("its address");
        let mut accepting = JoinSet::new();
        accepting.spawn(accept_strays(nowhere, Arc::clone(&receivers)));
        let mut urls = Vec::new();
        for (webhook, secret) in secrets.into_iter().enumerate() {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
            urls.push(format!("http://{}/hook", listener.local_addr().expect("its address")));
            let place = Place { webhook, secret, elsewhere };
            accepting.spawn(accept(listener, Arc::new(place), Arc::clone(&receivers)));
        }
        *receivers._accepting.lock().expect("nobody panics with it") = accepting;
        (receivers, urls)
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.record().arrivals.clone()
    }

    pub(crate) fn strays(&self) -> Vec<String> {
        self.record().strays.clone()
    }

    /// Requests that broke off before their end.
    pub(crate) fn torn(&self) -> usize {
        self.torn.load(Ordering::Relaxed)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nobody panics with it")
    }

    /// Logs the request and decides what becomes of it.
    fn take(&self, place: &Place, request: &Request) -> Reply {
        match self.read(place, request) {
            Ok(arrival) => {
                let reply = arrival.reply;
                let mut record = self.record();
                let line = format!(
                    "{} {} {} {} {} {} {:016x} {:?}\n",
                    arrival.at,
                    arrival.webhook,
                    arrival.delivery,
                    arrival.attempt,
                    arrival.sidecar,
                    arrival.token,
                    arrival.body_hash,
                    arrival.reply
                );
                let file = record.file.as_mut().expect("it is open");
                file.write_all(line.as_bytes()).expect("the log is written");
                record.arrivals.push(arrival);
                reply
            }
            Err(reason) => {
                self.record().strays.push(format!("at webhook {}: {reason}", place.webhook));
                Reply::Accepted
            }
        }
    }

    fn read(&self, place: &Place, request: &Request) -> Result<Arrival, String> {
        verify_signature(&place.secret, request)?;
        let header = |name: &str| request.header(name).ok_or_else(|| format!("{name} is missing"));
        let delivery: Uuid = header("webhook-id")?.parse().map_err(|_| "webhook-id is no uuid")?;
        let attempt: i32 =
            header("campaign-attempt")?.parse().map_err(|_| "campaign-attempt is no number")?;
        let sidecar = header("campaign-sidecar")?.parse().map_err(|_| "campaign-sidecar is no uuid")?;
        let body: Value = serde_json::from_slice(&request.body).map_err(|_| "the body is no JSON")?;
        let token = body["data"]["token"].as_u64().ok_or("the body has no token")?;
        let mut hasher = DefaultHasher::new();
        request.body.hash(&mut hasher);
        let reply = self.choose(delivery, attempt);
        let at = self.clock.now();
        Ok(Arrival {
            at,
            webhook: place.webhook,
            delivery,
            attempt,
            sidecar,
            token,
            body_hash: hasher.finish(),
            reply,
        })
    }

    /// Depends on the seed, the delivery and the attempt alone.
    fn choose(&self, delivery: Uuid, attempt: i32) -> Reply {
        let mut hasher = DefaultHasher::new();
        (self.seed, delivery, attempt).hash(&mut hasher);
        let Misbehaviour { broken, silence, reset, elsewhere, .. } = self.misbehaviour;
        match hasher.finish() % 100 {
            chance if chance < broken => Reply::Broken,
            chance if chance < broken + silence => Reply::Silence,
            chance if chance < broken + silence + reset => Reply::Reset,
            chance if chance < broken + silence + reset + elsewhere => Reply::Elsewhere,
            _ => Reply::Accepted,
        }
    }
}

struct Place {
    webhook: usize,
    secret: String,
    /// Where a redirect points to.
    elsewhere: SocketAddr,
}

async fn accept(listener: TcpListener, place: Arc<Place>, receivers: Arc<Receivers>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, Arc::clone(&place), Arc::clone(&receivers)));
        while connections.try_join_next().is_some() {}
    }
}

async fn accept_strays(listener: TcpListener, receivers: Arc<Receivers>) {
    while let Ok((stream, _)) = listener.accept().await {
        receivers.record().strays.push("a redirect was followed".to_owned());
        drop(stream);
    }
}

async fn serve(stream: TcpStream, place: Arc<Place>, receivers: Arc<Receivers>) {
    drop(stream.set_nodelay(true));
    let mut stream = BufReader::new(stream);
    loop {
        match read_request(&mut stream).await {
            Incoming::Complete(request) => {
                let reply = receivers.take(&place, &request);
                if receivers.misbehaviour.thinks {
                    pause(Duration::from_millis(rand::random_range(0..THINK_MS_MAX))).await;
                }
                if answer(&mut stream, reply, place.elsewhere).await.is_err() {
                    return;
                }
            }
            Incoming::Closed => return,
            Incoming::Torn => {
                receivers.torn.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

async fn answer(stream: &mut BufReader<TcpStream>, reply: Reply, elsewhere: SocketAddr) -> io::Result<()> {
    let head = match reply {
        Reply::Accepted => "200 OK\r\n".to_owned(),
        Reply::Broken => "500 Broken\r\n".to_owned(),
        Reply::Elsewhere => format!("307 Elsewhere\r\nlocation: http://{elsewhere}/\r\n"),
        Reply::Reset => {
            stream.get_ref().set_zero_linger()?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Reply::Silence => {
            stream.read_to_end(&mut Vec::new()).await?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    };
    stream.get_mut().write_all(format!("HTTP/1.1 {head}content-length: 0\r\n\r\n").as_bytes()).await
}
