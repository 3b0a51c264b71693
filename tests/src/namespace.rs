//! Inside the network namespace that `tests/root/namespace.sh` makes: who was dialled, and what names mean.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::{env, fs};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::AbortHandle;

use crate::http::{Incoming, read_request};

/// Answers requests at every address there is, and notes which ones were dialled.
pub struct Trap {
    port: u16,
    dialled: Arc<Mutex<BTreeSet<IpAddr>>>,
    accepting: AbortHandle,
}

/// A name server on 127.0.0.1. An answer is never to be kept.
pub struct NameServer {
    answers: Answers,
    aliases: Aliases,
    serving: AbortHandle,
}

/// Each look-up takes the next of a name's answers; the last one stays.
type Answers = Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>;

/// The name that a name stands for.
type Aliases = Arc<Mutex<HashMap<String, String>>>;

/// As many aliases are followed within one answer; a resolver has had enough long before.
const ALIASES_MAX: usize = 16;

/// The way out is closed.
pub fn is_in_namespace() -> bool {
    env::var_os("ORBHOOK_NETWORK_NAMESPACE").is_some()
}

/// How many TCP connections were begun in this namespace, by anybody and to anywhere: the kernel's own count.
pub fn connections_begun() -> u64 {
    let table = fs::read_to_string("/proc/self/net/snmp").expect("the kernel's counters");
    let mut rows = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (rows.next().expect("names"), rows.next().expect("values"));
    let place = names.split(' ').position(|name| name == "ActiveOpens").expect("a counter of that name");
    values.split(' ').nth(place).and_then(|value| value.parse().ok()).expect("a number")
}

impl Trap {
    pub async fn start() -> Trap {
        let listener = TcpListener::bind("[::]:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let dialled: Arc<Mutex<BTreeSet<IpAddr>>> = Arc::default();
        let noted = Arc::clone(&dialled);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(address) = stream.local_addr() {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).insert(address.ip().to_canonical());
                }
                tokio::spawn(async move {
                    let mut stream = tokio::io::BufReader::new(stream);
                    if let Incoming::Complete(_) = read_request(&mut stream).await {
                        // Closed, so that the next request looks its name up again.
                        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                        let _ = stream.get_mut().write_all(answer).await;
                    }
                });
            }
        });
        Trap { port, dialled, accepting: accepting.abort_handle() }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The addresses at which somebody knocked.
    pub fn dialled(&self) -> BTreeSet<IpAddr> {
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl NameServer {
    pub async fn start() -> NameServer {
        let address = SocketAddr::from(([127, 0, 0, 1], 53));
        let socket = UdpSocket::bind(address).await.expect("port 53 of the namespace");
        let answers: Answers = Arc::default();
        let aliases: Aliases = Arc::default();
        let (known, known_aliases) = (Arc::clone(&answers), Arc::clone(&aliases));
        let serving = tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                if let Some(answer) = answer(&query[..length], &known, &known_aliases) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        NameServer { answers, aliases, serving: serving.abort_handle() }
    }

    /// From now on, look-ups of this name are answered in turn, and then as the last one.
    pub fn answer(&self, name: &str, answers: Vec<Vec<IpAddr>>) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), answers);
    }

    /// From now on, the first of these names is an alias of the second (CNAME), that of the third, and so on. What the last
    /// one means is for [`NameServer::answer`] to say.
    pub fn alias(&self, chain: &[&str]) {
        let mut aliases = self.aliases.lock().unwrap_or_else(PoisonError::into_inner);
        for pair in chain.windows(2) {
            aliases.insert(pair[0].to_owned(), pair[1].to_owned());
        }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// RFC 1035, section 4: header, question as it came, a record for each alias, one for each address of the kind asked for.
fn answer(query: &[u8], answers: &Answers, aliases: &Aliases) -> Option<Vec<u8>> {
    const A: u16 = 1;
    const CNAME: u16 = 5;
    const AAAA: u16 = 28;
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;

    let mut name = labels.join(".");
    let mut records = Vec::new();
    let aliases = aliases.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some(target) = aliases.get(&name).filter(|_| records.len() < ALIASES_MAX) {
        records.push(record(&encoded(&name)?, CNAME, &encoded(target)?)?);
        name.clone_from(target);
    }

    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    let turns = answers.get_mut(&name);
    let is_known = turns.is_some();
    let addresses = match turns {
        // The resolver asks for both kinds at once; the turn is over when the older kind was asked for.
        Some(turns) if turns.len() > 1 && kind == A => turns.remove(0),
        Some(turns) => turns.first().cloned().unwrap_or_default(),
        None => Vec::new(),
    };
    let owner = encoded(&name)?;
    for address in addresses {
        match address {
            IpAddr::V4(ip) if kind == A => records.push(record(&owner, kind, &ip.octets())?),
            IpAddr::V6(ip) if kind == AAAA => records.push(record(&owner, kind, &ip.octets())?),
            _ => {}
        }
    }
    let code = if is_known { 0 } else { 3 };
    let mut response = query.get(..2)?.to_vec();
    response.extend([0x81, 0x80 | code, 0, 1]);
    response.extend(u16::try_from(records.len()).ok()?.to_be_bytes());
    response.extend([0; 4]);
    response.extend(question);
    response.extend(records.concat());
    Some(response)
}

/// Owner, kind, class IN, a time to live of nothing, data.
fn record(owner: &[u8], kind: u16, data: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(data.len()).ok()?.to_be_bytes();
    Some([owner, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 0], &length, data].concat())
}

/// A name as it stands in a record: each label with its length before it.
fn encoded(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).ok()?);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    Some(bytes)
}
