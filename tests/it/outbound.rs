use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use orbhook_tests::{
    Authority, Database, Hostile, Receiver, Sidecar, blocked_urls, generic, orbhook_command, wait_until,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const DEADLINE: Duration = Duration::from_secs(120);

/// In the catalogue of section I there are spellings, ranges, names and schemes; this many at least must be tried.
const VECTORS_MIN: usize = 500;

#[tokio::test]
async fn no_blocked_endpoint_can_be_configured() {
    let database = Database::new().await;
    let session = database.connect().await;
    session.execute("set orbhook.allow_networks = ''").await;
    let urls = blocked_urls(8080);
    assert!(urls.len() >= VECTORS_MIN, "{}", urls.len());
    for url in &urls {
        let refused = session.query("select orbhook_create_webhook($1)", &[&generic(url)]).await;
        let error = refused.err().unwrap_or_else(|| panic!("accepted: {url}"));
        assert_eq!(error.code().map(|code| code.code()), Some("22023"), "{url}: {error:?}");
    }
    assert_eq!(database.one::<i64>("select count(*) from orbhook.webhooks", &[]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_blocked_endpoint_is_dialled_though_it_is_stored() {
    let database = Database::new().await;
    let trap = Hostile::serving(async |_| Ok(())).await;
    let urls = blocked_urls(trap.address().port());
    for url in &urls {
        let mut config = generic("https://hooks.example.com/");
        config["maxRetries"] = json!(0);
        config["timeoutSeconds"] = json!(1);
        config["subscribedEvents"] = json!(["USER_CREATED"]);
        let webhook = database.create_webhook(config).await;
        store(&database, webhook, url).await;
    }
    let _sidecar = Sidecar::start_with(&database, |config| config.allow_networks = Vec::new()).await;
    database.emit("USER_CREATED", json!({})).await;
    ended(&database).await;

    let select = "select s.value, a.error_class, a.address, a.connect_ms
                  from orbhook.attempts a join orbhook.webhook_secrets s on s.webhook_id = a.webhook_id
                  where s.name = 'endpoint'";
    let rows = database.rows(select, &[]).await;
    assert_eq!(rows.len(), urls.len());
    for row in rows {
        let (url, class): (String, Option<String>) = (row.get(0), row.get(1));
        assert_eq!(class.as_deref(), Some("address_blocked"), "{url}");
        assert_eq!(row.get::<_, Option<i32>>(3), None, "{url} was connected to");
    }
    assert_eq!(trap.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opened_network_opens_what_it_says_and_no_more() {
    let database = Database::new().await;
    let (opened, closed) = (Served::on("127.0.0.2").await, Served::on("127.0.0.3").await);
    for served in [&opened, &closed] {
        let mut config = generic(&format!("http://{}/", served.address));
        config["name"] = json!(served.address.to_string());
        config["maxRetries"] = json!(0);
        config["subscribedEvents"] = json!(["USER_CREATED"]);
        database.create_webhook(config).await;
    }
    let networks = orbhook_address::parse_networks("127.0.0.2/32, 10.0.0.0/8").unwrap();
    let _sidecar = Sidecar::start_with(&database, |config| config.allow_networks = networks).await;
    database.emit("USER_CREATED", json!({})).await;
    ended(&database).await;
    let select = "select w.name, coalesce(a.error_class, 'delivered'), coalesce(a.error, '')
                  from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id";
    for row in database.rows(select, &[]).await {
        let (name, class, error): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        match name == opened.address.to_string() {
            true => assert_eq!(class, "delivered", "{error}"),
            false => {
                assert!(class == "address_blocked" && error.contains("--allow-network"), "{class}: {error}")
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_changed_after_a_good_delivery_is_checked_anew() {
    let database = Database::new().await;
    let (receiver, inside) = (Receiver::start().await, Served::on("127.0.0.3").await);
    let webhook = {
        let mut config = generic(&receiver.url("/hook"));
        config["maxRetries"] = json!(0);
        database.create_webhook(config).await
    };
    let networks = orbhook_address::parse_networks("127.0.0.1/32").unwrap();
    let _sidecar = Sidecar::start_with(&database, |config| config.allow_networks = networks).await;
    database.emit("USER_CREATED", json!({})).await;
    ended(&database).await;
    assert_eq!(receiver.count(), 1);

    // The connection of the good delivery is kept, and some of these would fit it.
    let (port, good) = (receiver.address().port(), receiver.address());
    for url in [
        format!("http://{}/hook", inside.address),
        format!("http://user:password@{good}/hook"),
        format!("ftp://{good}/hook"),
        format!("http://127.0.0.2:{port}/hook"),
        format!("http://[::ffff:127.0.0.2]:{port}/hook"),
        format!("http://[::1]:{port}/hook"),
        format!("http://0.0.0.0:{port}/hook"),
    ] {
        store(&database, webhook, &url).await;
        database.emit("USER_CREATED", json!({})).await;
        ended(&database).await;
        let last = "select error_class from orbhook.attempts order by started_at desc limit 1";
        let class: Option<String> = database.one(last, &[]).await;
        assert_eq!(class.as_deref(), Some("address_blocked"), "{url}");
    }
    assert_eq!((receiver.count(), receiver.connections()), (1, 1));
    assert_eq!(inside.connections.load(Ordering::Relaxed), 0);

    store(&database, webhook, &receiver.url("/other")).await;
    database.emit("USER_CREATED", json!({})).await;
    ended(&database).await;
    assert_eq!(receiver.so_far().last().unwrap().path, "/other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_in_the_environment_is_ignored() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let proxy = Hostile::serving(async |_| Ok(())).await;
    let authority = Authority::new();
    let tls = authority.issue().acceptor(&[b"http/1.1"]);
    let encrypted = Hostile::serving(move |stream| {
        let tls = tls.clone();
        async move {
            let mut stream = tls.accept(stream).await?;
            let _ = stream.read(&mut [0; 16 * 1024]).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
            stream.shutdown().await
        }
    })
    .await;
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    database.create_webhook(generic(&format!("https://{}/hook", encrypted.address()))).await;
    let url = database.url(&database.role("sender").await);
    let mut command = orbhook_command(&url);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env(name, format!("http://{}", proxy.address()));
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    command.arg("run").arg("--ca-file").arg(authority.file());
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let _sidecar = command.spawn().unwrap();
    database.emit("USER_CREATED", json!({})).await;
    receiver.requests(1).await;
    ended(&database).await;
    let delivered = "select count(*) from orbhook.deliveries where status = 'delivered'";
    assert_eq!(database.one::<i64>(delivered, &[]).await, 2);
    assert_eq!((proxy.connections(), encrypted.connections()), (0, 1));
}

/// Past the check at creation, as by an administrator's hand.
async fn store(database: &Database, webhook: uuid::Uuid, url: &str) {
    let update = "update orbhook.webhook_secrets set value = $2 where webhook_id = $1 and name = 'endpoint' returning 1";
    database.one::<i32>(update, &[&webhook, &url]).await;
}

/// Answers 200 on an address of the loopback network other than the usual one.
struct Served {
    address: std::net::SocketAddr,
    connections: Arc<AtomicUsize>,
    serving: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn on(ip: &str) -> Served {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 16 * 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        });
        Served { address, connections, serving }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn ended(database: &Database) {
    wait_until("all attempts to end", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries_open)";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}
