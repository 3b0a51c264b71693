use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::http::{Incoming, Request, read_request};
use crate::wait::{DEADLINE, pause, wait_until};

/// An HTTP/1.1 server on a free port of the loopback address. It records every request and answers as it is told, per
/// path; untold it answers 200. Connections are kept open. It ends with this value.
pub struct Receiver {
    address: SocketAddr,
    state: Arc<State>,
    accepting: AbortHandle,
}

/// What a request gets. Made with the constructors, refined with the other methods.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
    gate: Option<Gate>,
    ending: Ending,
}

/// Holds answers back until it is opened.
#[derive(Clone, Debug)]
pub struct Gate(watch::Sender<bool>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Whole,
    Silence,
    Reset,
    EndlessBody,
}

#[derive(Default)]
struct State {
    record: Mutex<Record>,
    connections: AtomicUsize,
}

#[derive(Default)]
struct Record {
    requests: Vec<Request>,
    torn: usize,
    script: HashMap<String, Script>,
}

#[derive(Default)]
struct Script {
    next: VecDeque<Answer>,
    then: Answer,
}

impl Receiver {
    pub async fn start() -> Receiver {
        Receiver::start_at(0).await
    }

    /// Starts on a certain port, as when a receiver comes back. 0: a free one.
    pub async fn start_at(port: u16) -> Receiver {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(State::default());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state))).abort_handle();
        Receiver { address, state, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path, which begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on, requests for this path (without its query) are answered so.
    pub fn answer(&self, path: &str, answer: Answer) {
        let script = Script { next: VecDeque::new(), then: answer };
        self.record().script.insert(path.to_owned(), script);
    }

    /// The next requests for this path are answered in turn; those after them as before.
    pub fn answer_next(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.record().script.entry(path.to_owned()).or_default().next.extend(answers);
    }

    /// Waits until `count` complete requests have come in all, and returns all there are.
    pub async fn requests(&self, count: usize) -> Vec<Request> {
        self.requests_within(count, DEADLINE).await
    }

    pub async fn requests_within(&self, count: usize, deadline: Duration) -> Vec<Request> {
        let what = format!("{count} requests at the receiver");
        wait_until(&what, deadline, async || {
            let record = self.record();
            (record.requests.len() >= count).then(|| record.requests.clone())
        })
        .await
    }

    /// The complete requests so far.
    pub fn so_far(&self) -> Vec<Request> {
        self.record().requests.clone()
    }

    /// The complete requests after the first so many.
    pub fn since(&self, first: usize) -> Vec<Request> {
        self.record().requests.get(first..).unwrap_or_default().to_vec()
    }

    /// How many complete requests there were so far.
    pub fn count(&self) -> usize {
        self.record().requests.len()
    }

    /// How many requests broke off before their end.
    pub fn torn(&self) -> usize {
        self.record().torn
    }

    /// How many connections were opened so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.state.record()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Answer {
    pub fn status(status: u16) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            delay: Duration::ZERO,
            gate: None,
            ending: Ending::Whole,
        }
    }

    /// A status with `Location`.
    pub fn redirect(status: u16, location: &str) -> Answer {
        Answer::status(status).header("location", location)
    }

    /// Takes the request and never says anything.
    pub fn hang() -> Answer {
        Answer { ending: Ending::Silence, ..Answer::status(200) }
    }

    /// Takes the request and resets the connection.
    pub fn reset() -> Answer {
        Answer { ending: Ending::Reset, ..Answer::status(200) }
    }

    /// 200, and then a body without an end.
    pub fn endless_body() -> Answer {
        Answer { ending: Ending::EndlessBody, ..Answer::status(200) }
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Answer {
        self.body = body.into();
        self
    }

    /// The answer comes this much later.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Answer {
        self.delay = delay;
        self
    }

    /// The answer comes when the gate is open.
    #[must_use]
    pub fn held_by(mut self, gate: &Gate) -> Answer {
        self.gate = Some(gate.clone());
        self
    }
}

impl Default for Answer {
    fn default() -> Answer {
        Answer::status(200)
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Gate {
        Gate(watch::Sender::new(false))
    }

    /// Lets every held answer go, and all later ones.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        // The sender lives in self, so the only way to wait in vain is a test that never opens it.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

impl Default for Gate {
    fn default() -> Gate {
        Gate::new()
    }
}

impl State {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nobody panics with it")
    }

    /// Records a request and takes the answer for it from the script, in one step.
    fn take_answer(&self, request: Request) -> Answer {
        let mut record = self.record();
        let path = request.path.split('?').next().unwrap_or_default().to_owned();
        record.requests.push(request);
        match record.script.get_mut(&path) {
            Some(script) => script.next.pop_front().unwrap_or_else(|| script.then.clone()),
            None => Answer::default(),
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    // Connections end with the task that accepts them.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(serve(stream, Arc::clone(&state)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    // Without this, the kernel holds an answer's second segment back until the first is acknowledged.
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    loop {
        match read_request(&mut stream).await {
            Incoming::Complete(request) => {
                let answer = state.take_answer(request);
                if reply(&mut stream, answer).await.is_err() {
                    return;
                }
            }
            Incoming::Closed => return,
            Incoming::Torn => {
                state.record().torn += 1;
                return;
            }
        }
    }
}

/// Answers; an error ends the connection.
async fn reply(stream: &mut BufReader<TcpStream>, answer: Answer) -> io::Result<()> {
    if !answer.delay.is_zero() {
        pause(answer.delay).await;
    }
    if let Some(gate) = &answer.gate {
        gate.pass().await;
    }
    match answer.ending {
        Ending::Whole => stream.get_mut().write_all(&answer.bytes()).await,
        Ending::Silence => {
            // Until the other side has had enough.
            stream.read_to_end(&mut Vec::new()).await?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Ending::Reset => {
            stream.get_ref().set_zero_linger()?;
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Ending::EndlessBody => match write_for_ever(stream.get_mut()).await? {},
    }
}

async fn write_for_ever(stream: &mut TcpStream) -> io::Result<Infallible> {
    let chunk = [b"2000\r\n".as_slice(), &[b'x'; 0x2000], b"\r\n"].concat();
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    loop {
        stream.write_all(&chunk).await?;
    }
}

impl Answer {
    fn bytes(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        // 204 and 304 have no body by definition, and no length either.
        if self.status != 204 && self.status != 304 {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200..=299 => "OK",
        300..=399 => "Elsewhere",
        400..=499 => "Refused",
        _ => "Broken",
    }
}
