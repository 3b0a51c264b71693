use std::io;
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Longer lines are no request of orbhook's: its longest is a header with a key of some KiB.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// A request, complete, as it was on the wire.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query, undecoded.
    pub path: String,
    /// In order, names as written.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// When its last byte was read.
    pub at: Instant,
}

impl Request {
    /// The value of the first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("the body is no JSON ({error}): {}", String::from_utf8_lossy(&self.body))
        })
    }

    /// The `webhook-id` header: the delivery's id.
    pub fn webhook_id(&self) -> &str {
        self.header("webhook-id").expect("every request has a webhook-id")
    }
}

/// What came of reading.
pub enum Incoming {
    Complete(Request),
    /// The peer went away between two requests.
    Closed,
    /// The peer went away, or made no sense, within a request.
    Torn,
}

/// Reads one request of HTTP/1.1: a body comes with `Content-Length` or in chunks.
pub async fn read_request(stream: &mut (impl AsyncBufRead + Unpin)) -> Incoming {
    match stream.fill_buf().await {
        Ok(buffer) if !buffer.is_empty() => {}
        _ => return Incoming::Closed,
    }
    match read_begun_request(stream).await {
        Ok(request) => Incoming::Complete(request),
        Err(_) => Incoming::Torn,
    }
}

async fn read_begun_request(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Request> {
    let request_line = read_line(stream).await?;
    let mut words = request_line.split(' ');
    let (Some(method), Some(path), Some("HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };

    let mut headers = Vec::new();
    loop {
        let line = read_line(stream).await?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }

    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
        body: Vec::new(),
        at: Instant::now(),
    };
    if request.header("transfer-encoding").is_some() {
        request.body = read_chunks(stream).await?;
    } else if let Some(length) = request.header("content-length") {
        let length = length.parse::<usize>().map_err(|_| io::ErrorKind::InvalidData)?;
        request.body.resize(length, 0);
        stream.read_exact(&mut request.body).await?;
    }
    request.at = Instant::now();
    Ok(request)
}

async fn read_chunks(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size =
            usize::from_str_radix(&read_line(stream).await?, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        let start = body.len();
        body.resize(start + size, 0);
        stream.read_exact(&mut body[start..]).await?;
        read_line(stream).await?;
        if size == 0 {
            return Ok(body);
        }
    }
}

async fn read_line(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    stream.take(LINE_BYTES_MAX).read_line(&mut line).await?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
