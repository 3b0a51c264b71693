use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// A way to a server by TCP that can go dead without a word: connections stay open at both ends, and nothing passes any more,
/// as when a cable is pulled or a firewall forgets. It ends with this value.
pub struct Tunnel {
    address: SocketAddr,
    state: Arc<State>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct State {
    /// By number: dead or not, and whether the client said the word that [`Tunnel::cut_where`] looks for.
    connections: Mutex<HashMap<usize, Connection>>,
    /// Of equal length: what the client says, and what arrives.
    replaced: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

struct Connection {
    is_dead: watch::Sender<bool>,
    said: Vec<u8>,
}

/// As much of what a client says as is remembered.
const SAID_BYTES_MAX: usize = 64 * 1024;

impl Tunnel {
    pub async fn start(to: SocketAddr) -> Tunnel {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(State::default());
        let accepting = tokio::spawn(accept(listener, to, Arc::clone(&state))).abort_handle();
        Tunnel { address, state, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes on connections whose client has said this. Returns how many there are; new ones work.
    pub fn cut_where(&self, said: &str) -> usize {
        let connections = self.state.connections();
        let cut = connections.values().filter(|connection| {
            let is_open = !*connection.is_dead.borrow() && connection.is_dead.receiver_count() > 0;
            is_open && contains(&connection.said, said.as_bytes())
        });
        cut.inspect(|connection| {
            connection.is_dead.send_replace(true);
        })
        .count()
    }

    /// From now on the server hears `other` where a client says `word`; both are of one length.
    pub fn replace(&self, word: &str, other: &str) {
        assert_eq!(word.len(), other.len());
        *self.state.replaced.lock().expect("nobody panics with it") = Some((word.into(), other.into()));
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    fn connections(&self) -> MutexGuard<'_, HashMap<usize, Connection>> {
        self.connections.lock().expect("nobody panics with it")
    }

    /// Takes note of what a client said, and changes it as told.
    fn hear(&self, number: usize, bytes: &mut [u8]) {
        if let Some(connection) = self.connections().get_mut(&number)
            && connection.said.len() < SAID_BYTES_MAX
        {
            connection.said.extend_from_slice(bytes);
        }
        if let Some((word, other)) = &*self.replaced.lock().expect("nobody panics with it") {
            for begin in 0..bytes.len().saturating_sub(word.len() - 1) {
                if bytes[begin..].starts_with(word) {
                    bytes[begin..begin + word.len()].copy_from_slice(other);
                }
            }
        }
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, state: Arc<State>) {
    let mut tunnelling = JoinSet::new();
    for number in 0.. {
        let Ok((client, _)) = listener.accept().await else { return };
        let (is_dead, dead) = watch::channel(false);
        state.connections().insert(number, Connection { is_dead, said: Vec::new() });
        let state = Arc::clone(&state);
        tunnelling.spawn(async move {
            // How it ended is of no interest: either side may leave at any point.
            let _ = tunnel(client, to, number, &state, dead).await;
        });
        while tunnelling.try_join_next().is_some() {}
    }
}

async fn tunnel(
    client: TcpStream,
    to: SocketAddr,
    number: usize,
    state: &State,
    dead: watch::Receiver<bool>,
) -> io::Result<()> {
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let there = pass(client_reads, server_writes, dead.clone(), |bytes| state.hear(number, bytes));
    let back = pass(server_reads, client_writes, dead, |_| {});
    // One that is dead keeps both: neither end is told.
    tokio::try_join!(there, back).map(drop)
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut dead: watch::Receiver<bool>,
    hear: impl Fn(&mut [u8]),
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => Some(read?),
            () = async { drop(dead.wait_for(|dead| *dead).await) } => None,
        };
        let Some(count) = read else { return std::future::pending().await };
        if count == 0 {
            // The other direction is of no use then either, and an error ends both.
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        hear(&mut bytes[..count]);
        to.write_all(&bytes[..count]).await?;
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}
