//! A receiver that does as little as a receiver can: it reads each request and answers 200.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Instant, SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Listens on a free port of the loopback address, in a thread of its own, until it is dropped.
pub(crate) struct Sink {
    address: SocketAddr,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Seen {
    count: AtomicUsize,
    first: Mutex<Option<Instant>>,
    /// When it is kept: each body, and when its request was complete.
    bodies: Option<Mutex<Vec<(SystemTime, Bytes)>>>,
}

impl Sink {
    /// Counts requests and forgets them.
    pub(crate) fn start() -> Sink {
        Sink::run(Seen::default())
    }

    /// Keeps each body with the time of its arrival.
    pub(crate) fn keeping_bodies() -> Sink {
        Sink::run(Seen { bodies: Some(Mutex::default()), ..Seen::default() })
    }

    fn run(seen: Seen) -> Sink {
        let seen = Arc::new(seen);
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let of_thread = Arc::clone(&seen);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                tell.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = accept(listener, of_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        Sink { address: told.recv().expect("it listens"), seen, stop: Some(stop) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Begins to count anew.
    pub(crate) fn forget(&self) {
        self.seen.count.store(0, Ordering::Relaxed);
        *self.seen.first.lock().unwrap() = None;
    }

    /// Requests so far.
    pub(crate) fn count(&self) -> usize {
        self.seen.count.load(Ordering::Relaxed)
    }

    /// When the first request was complete.
    pub(crate) fn first_at(&self) -> Option<Instant> {
        *self.seen.first.lock().unwrap()
    }

    /// The bodies kept so far.
    pub(crate) fn take_bodies(&self) -> Vec<(SystemTime, Bytes)> {
        self.seen
            .bodies
            .as_ref()
            .map(|bodies| std::mem::take(&mut *bodies.lock().unwrap()))
            .unwrap_or_default()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

async fn accept(listener: TcpListener, seen: Arc<Seen>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let service = service_fn(move |request| receive(request, Arc::clone(&seen)));
            // A connection that breaks is the other side's end.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn receive(request: Request<Incoming>, seen: Arc<Seen>) -> Result<Response<Full<Bytes>>, Infallible> {
    if let Ok(body) = request.into_body().collect().await {
        if let Some(bodies) = &seen.bodies {
            bodies.lock().unwrap().push((SystemTime::now(), body.to_bytes()));
        }
        if seen.count.fetch_add(1, Ordering::Relaxed) == 0 {
            *seen.first.lock().unwrap() = Some(Instant::now());
        }
    }
    // What Slack says when it has taken a message.
    Ok(Response::new(Full::new(Bytes::from_static(b"ok"))))
}
