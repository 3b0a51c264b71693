//! Servers that break HTTP/2 (RFC 9113), frame by frame.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::hostile::Misbehaviour;
use crate::wait::pause;

const DRIP: Duration = Duration::from_millis(100);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The client's first request.
const STREAM: u32 = 1;

/// `:status: 200` in the static table of HPACK (RFC 7541, appendix A).
const STATUS_200: u8 = 0x88;

pub(crate) async fn act(misbehaviour: Misbehaviour, mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    use Misbehaviour::*;
    // Preface, settings and the request come in few segments; to misbehave, it is enough that they have begun.
    let mut request = vec![0; 16 * 1024];
    let _ = stream.read(&mut request).await?;
    match misbehaviour {
        H2NoSettings => return linger(&mut stream).await,
        H2Garbage => return repeat(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await,
        H2NoWindow => send(&mut stream, SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await?,
        _ => send(&mut stream, SETTINGS, 0, 0, &[]).await?,
    }
    send(&mut stream, SETTINGS, ACK, 0, &[]).await?;
    if misbehaviour == H2NoWindow {
        return linger(&mut stream).await;
    }
    // The request is on its way when the client has acknowledged.
    let _ = stream.read(&mut request).await?;
    match misbehaviour {
        H2GoesAway => {
            send(&mut stream, GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]).await?;
            stream.shutdown().await
        }
        H2ResetsStreams => {
            send(&mut stream, RST_STREAM, 0, STREAM, &[0, 0, 0, 7]).await?;
            linger(&mut stream).await
        }
        H2PingFlood => repeat(&mut stream, &frame(PING, 0, 0, &[7; 8])).await,
        H2SettingsFlood => repeat(&mut stream, &frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])).await,
        H2EndlessContinuation => {
            send(&mut stream, HEADERS, 0, STREAM, &[STATUS_200]).await?;
            repeat(&mut stream, &frame(CONTINUATION, 0, STREAM, &literal(b"x-more", &[b'a'; 8000]))).await
        }
        H2HeaderBomb => {
            // One large value enters the table, then each byte names it once more: 16 KB become 64 MB.
            let mut block = vec![STATUS_200, 0x40];
            block.extend(&literal(b"x", &[b'a'; 4000])[1..]);
            block.extend([0xbe; 12_000]);
            send(&mut stream, HEADERS, END_HEADERS, STREAM, &block).await?;
            linger(&mut stream).await
        }
        H2IgnoresTheWindow => {
            send(&mut stream, HEADERS, END_HEADERS, STREAM, &[STATUS_200]).await?;
            repeat(&mut stream, &frame(DATA, 0, STREAM, &[b'a'; 16_384])).await
        }
        H2DripsBody => {
            send(&mut stream, HEADERS, END_HEADERS, STREAM, &[STATUS_200]).await?;
            loop {
                pause(DRIP).await;
                send(&mut stream, DATA, 0, STREAM, b"a").await?;
            }
        }
        H2Push => {
            send(&mut stream, PUSH_PROMISE, END_HEADERS, STREAM, &[0, 0, 0, 2, STATUS_200]).await?;
            linger(&mut stream).await
        }
        H2HugeFrame => {
            stream.write_all(&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]).await?;
            repeat(&mut stream, &[b'a'; 8192]).await
        }
        // Nothing more comes.
        _ => linger(&mut stream).await,
    }
}

/// Length in 24 bits, type, flags, stream, payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is small").to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [head.as_slice(), &stream.to_be_bytes(), payload].concat()
}

/// A header that is not to be indexed, its name and value as they are, the value's length in two further bytes.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let over = value.len() - 127;
    let low = u8::try_from(over % 128).expect("below 128") | 0x80;
    let high = u8::try_from(over / 128).expect("values stay below 16 KiB");
    let name_length = u8::try_from(name.len()).expect("names are short");
    [[0, name_length].as_slice(), name, &[127, low, high], value].concat()
}

async fn send(
    stream: &mut TlsStream<TcpStream>,
    kind: u8,
    flags: u8,
    id: u32,
    payload: &[u8],
) -> io::Result<()> {
    stream.write_all(&frame(kind, flags, id, payload)).await?;
    stream.flush().await
}

/// The same again and again, as fast as it goes. What the client says meanwhile is not read.
async fn repeat(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    let bytes = bytes.repeat((8192 / bytes.len()).max(1));
    loop {
        stream.write_all(&bytes).await?;
    }
}

/// Until the other side has had enough.
async fn linger(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}
