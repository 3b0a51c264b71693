use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::hostile_h2;
use crate::http::{Incoming, read_request};
use crate::wait::pause;

const DRIP: Duration = Duration::from_millis(100);

/// Unpacked; packed it is some 66 KB.
const BOMB_BYTES: usize = 10 * 1024 * 1024;

/// The ways in which a receiver can misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    NeverAccepts,
    NeverAnswers,
    ClosesAtOnce,
    ResetsAtOnce,
    ClosesAfterTheRequest,
    DripsHeaders,
    EndlessStatusLine,
    EndlessInformation,
    TenThousandHeaders,
    MegabyteHeader,
    EndlessHeaders,
    Http09,
    NotHttp,
    HeaderWithoutColon,
    TwoLengths,
    NegativeLength,
    HugeLength,
    LongLength,
    ShortLength,
    DripsBody,
    EndlessBody,
    EndlessBodyWithoutLength,
    CompressedBomb,
    BrokenChunks,
    HugeChunk,
    EndlessChunkExtension,
    EndlessTrailers,
    EndsInTheMiddleOfAChunk,
    ResetsInTheBody,
    ControlCharacters,
    SwitchesProtocols,
    ClosesKeptConnections,
    AnswersTwice,
    H2NeverAnswers,
    H2NoSettings,
    H2GoesAway,
    H2ResetsStreams,
    H2NoWindow,
    H2PingFlood,
    H2SettingsFlood,
    H2EndlessContinuation,
    H2HeaderBomb,
    H2IgnoresTheWindow,
    H2DripsBody,
    H2Push,
    H2Garbage,
    H2HugeFrame,
}

/// A server on the loopback address that treats every connection alike. It ends with this value.
pub struct Hostile {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    longest_us: Arc<AtomicU64>,
    accepting: AbortHandle,
    /// What fills the queue of a listener that never accepts.
    _queued: Vec<TcpStream>,
}

impl Misbehaviour {
    pub const ALL: [Misbehaviour; 47] = {
        use Misbehaviour::*;
        [
            NeverAccepts,
            NeverAnswers,
            ClosesAtOnce,
            ResetsAtOnce,
            ClosesAfterTheRequest,
            DripsHeaders,
            EndlessStatusLine,
            EndlessInformation,
            TenThousandHeaders,
            MegabyteHeader,
            EndlessHeaders,
            Http09,
            NotHttp,
            HeaderWithoutColon,
            TwoLengths,
            NegativeLength,
            HugeLength,
            LongLength,
            ShortLength,
            DripsBody,
            EndlessBody,
            EndlessBodyWithoutLength,
            CompressedBomb,
            BrokenChunks,
            HugeChunk,
            EndlessChunkExtension,
            EndlessTrailers,
            EndsInTheMiddleOfAChunk,
            ResetsInTheBody,
            ControlCharacters,
            SwitchesProtocols,
            ClosesKeptConnections,
            AnswersTwice,
            H2NeverAnswers,
            H2NoSettings,
            H2GoesAway,
            H2ResetsStreams,
            H2NoWindow,
            H2PingFlood,
            H2SettingsFlood,
            H2EndlessContinuation,
            H2HeaderBomb,
            H2IgnoresTheWindow,
            H2DripsBody,
            H2Push,
            H2Garbage,
            H2HugeFrame,
        ]
    };

    /// It sends as fast as it can for as long as it is listened to.
    pub fn floods(self) -> bool {
        let name = format!("{self:?}");
        name.starts_with("Endless")
            || name.ends_with("Flood")
            || matches!(
                self,
                Misbehaviour::HugeLength
                    | Misbehaviour::HugeChunk
                    | Misbehaviour::H2EndlessContinuation
                    | Misbehaviour::H2IgnoresTheWindow
                    | Misbehaviour::H2Garbage
                    | Misbehaviour::H2HugeFrame
            )
    }

    /// HTTP/2 is spoken where TLS has agreed on it, and nowhere else.
    pub fn needs_tls(self) -> bool {
        format!("{self:?}").starts_with("H2")
    }
}

impl Hostile {
    /// `tls`: for those that need it; it must agree on HTTP/2.
    pub async fn start(misbehaviour: Misbehaviour, tls: &TlsAcceptor) -> Hostile {
        if misbehaviour == Misbehaviour::NeverAccepts {
            return Hostile::never_accepting().await;
        }
        let tls = misbehaviour.needs_tls().then(|| tls.clone());
        Hostile::serving(move |stream| {
            let tls = tls.clone();
            async move {
                match tls {
                    None => act(misbehaviour, stream).await,
                    Some(tls) => hostile_h2::act(misbehaviour, tls.accept(stream).await?).await,
                }
            }
        })
        .await
    }

    /// A server that does with each connection what the test says; it is closed afterwards.
    pub async fn serving<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Hostile
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let connections = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(AtomicUsize::new(0));
        let longest_us = Arc::new(AtomicU64::new(0));
        let (counter, open_counter) = (Arc::clone(&connections), Arc::clone(&open));
        let longest = Arc::clone(&longest_us);
        let accepting = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                open_counter.fetch_add(1, Ordering::Relaxed);
                let (served, open_counter) = (serve(stream), Arc::clone(&open_counter));
                let (longest, accepted) = (Arc::clone(&longest), Instant::now());
                serving.spawn(async move {
                    // How it ended is of no interest: the other side may leave at any point.
                    let _ = served.await;
                    let lasted = u64::try_from(accepted.elapsed().as_micros()).unwrap_or(u64::MAX);
                    longest.fetch_max(lasted, Ordering::Relaxed);
                    open_counter.fetch_sub(1, Ordering::Relaxed);
                });
                while serving.try_join_next().is_some() {}
            }
        });
        let accepting = accepting.abort_handle();
        Hostile { address, connections, open, longest_us, accepting, _queued: Vec::new() }
    }

    /// Its queue is full, so that the kernel drops whatever asks for a connection.
    async fn never_accepting() -> Hostile {
        const PATIENCE: Duration = Duration::from_millis(200);
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let address = socket.local_addr().expect("its address");
        let listener = socket.listen(1).expect("it listens");
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
            queued.push(stream);
        }
        let held = tokio::spawn(async move {
            let _listener = listener;
            std::future::pending::<()>().await;
        });
        Hostile {
            address,
            connections: Arc::new(AtomicUsize::new(0)),
            open: Arc::new(AtomicUsize::new(0)),
            longest_us: Arc::new(AtomicU64::new(0)),
            accepting: held.abort_handle(),
            _queued: queued,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many of them neither side has given up.
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How long the longest of them lasted that has ended, from its being accepted to the end of both its directions.
    pub fn longest_connection(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn act(misbehaviour: Misbehaviour, stream: TcpStream) -> io::Result<()> {
    use Misbehaviour::*;
    match misbehaviour {
        ClosesAtOnce => return Ok(()),
        ResetsAtOnce => return stream.set_zero_linger(),
        _ => {}
    }
    let mut stream = BufReader::new(stream);
    let Incoming::Complete(_) = read_request(&mut stream).await else { return Ok(()) };
    match misbehaviour {
        ClosesAfterTheRequest => Ok(()),
        DripsHeaders => drip(&mut stream, "HTTP/1.1 200 OK\r\nx-drip: ", "a").await,
        EndlessStatusLine => repeat(&mut stream, "HTTP/1.1 200 ", &"a".repeat(8192)).await,
        EndlessInformation => repeat(&mut stream, "", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await,
        TenThousandHeaders => {
            let headers: String = (0..10_000).map(|number| format!("x-{number}: a\r\n")).collect();
            once(&mut stream, &format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n")).await
        }
        MegabyteHeader => {
            let value = "a".repeat(1024 * 1024);
            once(&mut stream, &format!("HTTP/1.1 200 OK\r\nx-large: {value}\r\ncontent-length: 0\r\n\r\n"))
                .await
        }
        EndlessHeaders => {
            repeat(&mut stream, "HTTP/1.1 200 OK\r\n", "x-more: aaaaaaaaaaaaaaaaaaaaaaaaa\r\n").await
        }
        Http09 => once(&mut stream, "<html>ok</html>\n").await,
        NotHttp => once(&mut stream, "220 mail.example ESMTP ready\r\n").await,
        HeaderWithoutColon => once(&mut stream, "HTTP/1.1 200 OK\r\nno colon here\r\n\r\n").await,
        TwoLengths => {
            once(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc").await
        }
        NegativeLength => once(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n").await,
        HugeLength => {
            repeat(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 9999999999999\r\n\r\n", &"a".repeat(8192))
                .await
        }
        LongLength => once(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort").await,
        ShortLength => once(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokay, and more").await,
        DripsBody => drip(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", "a").await,
        EndlessBody => {
            let chunk = format!("2000\r\n{}\r\n", "a".repeat(0x2000));
            repeat(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", &chunk).await
        }
        EndlessBodyWithoutLength => repeat(&mut stream, "HTTP/1.1 200 OK\r\n\r\n", &"a".repeat(8192)).await,
        CompressedBomb => {
            let bomb = gzip_zeros(BOMB_BYTES);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
                bomb.len()
            );
            stream.get_mut().write_all(&[head.as_bytes(), &bomb].concat()).await?;
            linger(&mut stream).await
        }
        BrokenChunks => {
            once(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nab\r\n").await
        }
        HugeChunk => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n";
            repeat(&mut stream, head, &"a".repeat(8192)).await
        }
        EndlessChunkExtension => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;";
            repeat(&mut stream, head, &"a".repeat(8192)).await
        }
        EndlessTrailers => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n";
            repeat(&mut stream, head, "x-more: aaaaaaaaaaaaaaaaaaaaaaaaa\r\n").await
        }
        EndsInTheMiddleOfAChunk => {
            stream
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n20\r\nhalf a chu")
                .await
        }
        ResetsInTheBody => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{}", "a".repeat(5000));
            stream.get_mut().write_all(head.as_bytes()).await?;
            pause(DRIP).await;
            stream.get_ref().set_zero_linger()
        }
        ControlCharacters => {
            let head = b"HTTP/1.1 200 OK\r\nserver: \x80evil\r\ncontent-length: 21\r\n\r\n";
            let body = b"\0\x1b[31mred\x1b[0m\xff\xfe\x07ok\x9b\xc3(";
            stream.get_mut().write_all(&[head.as_slice(), body].concat()).await?;
            linger(&mut stream).await
        }
        SwitchesProtocols => {
            once(
                &mut stream,
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
            )
            .await
        }
        ClosesKeptConnections => {
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await
        }
        AnswersTwice => {
            // The second answer is for a request that was not made.
            let answers =
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n";
            once(&mut stream, answers).await
        }
        // Nothing more comes.
        _ => linger(&mut stream).await,
    }
}

/// Sends this and then nothing.
async fn once(stream: &mut BufReader<TcpStream>, text: &str) -> io::Result<()> {
    stream.get_mut().write_all(text.as_bytes()).await?;
    linger(stream).await
}

/// Sends the beginning, and then the rest again and again, as fast as it goes.
async fn repeat(stream: &mut BufReader<TcpStream>, beginning: &str, rest: &str) -> io::Result<()> {
    stream.get_mut().write_all(beginning.as_bytes()).await?;
    let rest = rest.repeat((8192 / rest.len()).max(1));
    loop {
        stream.get_mut().write_all(rest.as_bytes()).await?;
    }
}

async fn drip(stream: &mut BufReader<TcpStream>, beginning: &str, drop: &str) -> io::Result<()> {
    stream.get_ref().set_nodelay(true)?;
    stream.get_mut().write_all(beginning.as_bytes()).await?;
    loop {
        pause(DRIP).await;
        stream.get_mut().write_all(drop.as_bytes()).await?;
    }
}

/// Until the other side has had enough.
async fn linger(stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}

/// So many zeros as gzip: one zero, then copies of the byte before, 258 at a time, in 13 bits (RFC 1951, section 3.2.6).
fn gzip_zeros(bytes: usize) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let (mut pending, mut pending_bits) = (0_u64, 0);
    let mut push = |bits: u64, count: u32| {
        pending |= bits << pending_bits;
        pending_bits += count;
        while pending_bits >= 8 {
            packed.push(pending.to_le_bytes()[0]);
            pending >>= 8;
            pending_bits -= 8;
        }
    };
    // Last block, fixed codes; the literal 0 is 00110000, length 258 is 11000101, distance 1 is 00000, the end 0000000.
    push(0b011, 3);
    push(0b0000_1100, 8);
    for _ in 0..bytes / 258 {
        push(0b1010_0011, 8);
        push(0, 5);
    }
    push(0, 7 + 8);
    packed.extend([0; 8]);
    packed
}
