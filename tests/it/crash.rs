use std::collections::BTreeSet;
use std::time::Duration;

use orbhook_tests::{
    Answer, Cluster, DEADLINE, Database, Gate, Receiver, ShutdownMode, Sidecar, SidecarProcess, generic,
    wait_until,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// From the moment the server takes connections again.
const RESUMED_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_stops_delivery_for_a_moment_only() {
    survives(async |database, cluster| {
        let role = database.role("sender").await;
        let find = "select pid from pg_stat_activity where usename = $1 limit 1";
        let pid = database.one::<i32>(find, &[&role]).await;
        cluster.kill_backend(pid).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immediate_restart_stops_delivery_for_a_moment_only() {
    survives(async |_, cluster| cluster.restart(ShutdownMode::Immediate)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_killed_in_the_middle_of_a_body_leaves_it_torn_and_another_sends_it_whole() {
    let database = Database::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/hook", listener.local_addr().unwrap());
    database.create_webhook(generic(&endpoint)).await;
    let session = database.connect().await;
    // What the kernels hold of a body arrives whatever happens to the process: this one does not fit into their buffers.
    session.execute("set orbhook.payload_bytes_max = 16000000").await;
    session
        .execute("select orbhook_emit('USER_ACTION', jsonb_build_object('text', repeat('x', 15000000)))")
        .await;

    let killed = SidecarProcess::start(&database, &[]).await;
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut torn = vec![0; 1_000];
    connection.read_exact(&mut torn).await.unwrap();
    killed.kill().await;
    // It ends in order or by a reset.
    drop(connection.read_to_end(&mut torn).await);
    assert!(!is_whole(&torn), "{} bytes came", torn.len());

    let _other = SidecarProcess::start(&database, &[]).await;
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut whole = Vec::new();
    while !is_whole(&whole) {
        assert_ne!(connection.read_buf(&mut whole).await.unwrap(), 0, "{} bytes came", whole.len());
    }
    assert_eq!(header(&torn, "webhook-id"), header(&whole, "webhook-id"));
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    wait_until("the delivery to end", DEADLINE, async || {
        let attempts = "select string_agg(coalesce(a.error_class, a.status_code::text), ' ' order by a.number)
                        from orbhook.attempts a join orbhook.deliveries d on d.id = a.delivery_id where d.status = 'delivered'";
        (database.one::<Option<String>>(attempts, &[]).await.as_deref() == Some("unknown 200")).then_some(())
    })
    .await;
}

fn is_whole(request: &[u8]) -> bool {
    let Some(head) = request.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    request.len() >= head + 4 + header(request, "content-length").parse::<usize>().expect("a length")
}

fn header(request: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(request);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.expect("the header").to_owned()
}

/// Crashes the server with requests under way and others queued; everything arrives, and soon.
async fn survives(crash: impl AsyncFnOnce(&Database, &Cluster)) {
    const EVENTS: i64 = 50;
    const IN_FLIGHT: usize = 10;

    let cluster = Cluster::start(&[]);
    let database = Database::on(&cluster).await;
    let receiver = Receiver::start().await;
    let mut config = generic(&receiver.url("/hook"));
    config["maxInFlight"] = json!(IN_FLIGHT);
    database.create_webhook(config).await;
    let _sidecar = Sidecar::start(&database).await;

    let gate = Gate::new();
    receiver.answer("/hook", Answer::status(200).held_by(&gate));
    for number in 0..EVENTS {
        database.emit("USER_ACTION", json!({"n": number})).await;
    }
    // Without a new claim, not one more can come: the next request is a sign of life.
    receiver.requests(IN_FLIGHT).await;
    crash(&database, &cluster).await;
    gate.open();

    database.emit("USER_ACTION", json!({"n": EVENTS})).await;
    wait_until("the sidecar to resume", RESUMED_WITHIN, async || {
        (receiver.count() > IN_FLIGHT).then_some(())
    })
    .await;
    let expected: BTreeSet<_> = (0..=EVENTS).collect();
    wait_until("every event to arrive", DEADLINE, async || {
        let arrived: BTreeSet<_> =
            receiver.so_far().iter().filter_map(|request| request.json()["data"]["n"].as_i64()).collect();
        (arrived == expected).then_some(())
    })
    .await;
}
