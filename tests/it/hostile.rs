use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use orbhook_tests::{
    Answer, Authority, Database, Hostile, Misbehaviour, Receiver, Sidecar, SidecarProcess, Standstill,
    generic, wait_until,
};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

/// Of every webhook here; the least that can be configured.
const TIMEOUT_MS: i32 = 1_000;

/// What an attempt may take beyond its timeout.
const OVERTIME_MS: i32 = 1_000;

/// By how much the sidecar may grow, at its peak.
const MEMORY_GROWTH_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Attempts of one second each, on a machine that has other things to do.
const ROUND_DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_ends_in_time_with_its_reason_and_without_taking_memory() {
    const ROUNDS: usize = 5;

    let database = Database::new().await;
    let authority = Authority::new();
    let tls = authority.issue().acceptor(&[b"h2"]);
    let mut hostile = Vec::new();
    for misbehaviour in Misbehaviour::ALL {
        let server = Hostile::start(misbehaviour, &tls).await;
        let scheme = if misbehaviour.needs_tls() { "https" } else { "http" };
        let mut config = generic(&format!("{scheme}://{}/hook", server.address()));
        config["name"] = json!(format!("{misbehaviour:?}"));
        config["timeoutSeconds"] = json!(TIMEOUT_MS / 1_000);
        config["maxRetries"] = json!(0);
        // The floods leave the others little of a small machine, so they have rounds of their own.
        let event_type = if misbehaviour.floods() { "USER_DELETED" } else { "USER_ACTION" };
        config["subscribedEvents"] = json!([event_type]);
        database.create_webhook(config).await;
        hostile.push(server);
    }
    let receiver = Receiver::start().await;
    let mut good = generic(&receiver.url("/good"));
    good["name"] = json!("good");
    good["subscribedEvents"] = json!(["USER_CREATED", "USER_ACTION", "USER_DELETED"]);
    database.create_webhook(good).await;
    let ca_file = authority.file().display().to_string();
    let sidecar = SidecarProcess::start(&database, &["--ca-file", &ca_file]).await;
    let standstill = Standstill::watch();

    // Once around with a receiver that behaves: what is only made when first needed is made then.
    database.emit("USER_CREATED", json!({})).await;
    round_ended(&database).await;
    sidecar.forget_memory_peak();
    let before = sidecar.memory_bytes();
    for _ in 0..ROUNDS {
        for event_type in ["USER_ACTION", "USER_DELETED"] {
            database.emit(event_type, json!({})).await;
            round_ended(&database).await;
        }
    }
    // Nor does a connection outlive its attempt by much, however busily the other side uses it.
    wait_until("the sidecar to leave every hostile receiver", ROUND_DEADLINE, async || {
        hostile.iter().all(|server| server.open_connections() == 0).then_some(())
    })
    .await;
    let growth = sidecar.memory_peak_bytes().saturating_sub(before);

    let select = "select w.name, a.error_class, a.error, a.duration_ms, a.number, length(a.response_body)
                  from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id";
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut as_expected = BTreeSet::new();
    let mut faults = Vec::new();
    for row in database.rows(select, &[]).await {
        let name: String = row.get(0);
        let class = row.get::<_, Option<&str>>(1).unwrap_or("delivered");
        let reason = row.get::<_, Option<&str>>(2).unwrap_or_default();
        let duration_ms = row.get::<_, Option<i32>>(3).unwrap_or(i32::MAX);
        *seen.entry(name.clone()).or_default() += 1;
        if duration_ms > TIMEOUT_MS + OVERTIME_MS {
            faults.push(format!("{name}: took {duration_ms} ms"));
        }
        if row.get::<_, i32>(4) != 1 {
            faults.push(format!("{name}: was sent again by itself"));
        }
        if row.get::<_, Option<i32>>(5).is_some_and(|length| length > 16 * 1024) {
            faults.push(format!("{name}: too much of the body is kept"));
        }
        if class == expected(&name) {
            as_expected.insert(name.clone());
        } else if !class.starts_with("timeout_") {
            faults.push(format!("{name}: {class} ({reason})"));
        }
        if class != "delivered" && reason.is_empty() {
            faults.push(format!("{name}: {class} without a word"));
        }
    }
    // By the other side's clock as well. A connection that was in order is kept for the next attempt, and one of HTTP/2
    // is in order when a request in it was given up.
    let lasts_max =
        Duration::from_millis(u64::try_from(TIMEOUT_MS + OVERTIME_MS).unwrap()) + standstill.longest();
    for (misbehaviour, server) in Misbehaviour::ALL.iter().zip(&hostile) {
        let (name, lasted) = (format!("{misbehaviour:?}"), server.longest_connection());
        let is_kept =
            expected(&name) == "delivered" || expected(&name).starts_with("http") || misbehaviour.needs_tls();
        if !is_kept && lasted > lasts_max {
            faults.push(format!("{name}: its connection lasted {lasted:?}"));
        }
    }
    // On a busy machine an answer may come after the second that it has; not each time, though.
    let missed = seen.keys().filter(|name| !as_expected.contains(*name));
    faults.extend(missed.map(|name| format!("{name}: never {}", expected(name))));
    faults.sort();
    faults.dedup();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(seen.remove("good"), Some(1 + 2 * ROUNDS));
    assert_eq!(seen.len(), Misbehaviour::ALL.len());
    assert!(seen.values().all(|count| *count == ROUNDS), "each was tried each time: {seen:?}");
    assert!(growth <= MEMORY_GROWTH_BYTES_MAX, "the sidecar grew by {} KiB", growth / 1024);
}

/// How attempts at such a receiver end.
fn expected(name: &str) -> &'static str {
    match name {
        "NeverAccepts" => "timeout_connect",
        "NeverAnswers" | "DripsHeaders" | "EndlessInformation" | "H2NeverAnswers" | "H2NoSettings"
        | "H2NoWindow" | "H2PingFlood" | "H2SettingsFlood" => "timeout_first_byte",
        "DripsBody" | "LongLength" | "H2DripsBody" => "timeout_body",
        "ClosesAtOnce"
        | "ResetsAtOnce"
        | "ClosesAfterTheRequest"
        | "EndsInTheMiddleOfAChunk"
        | "ResetsInTheBody"
        | "H2GoesAway"
        | "H2ResetsStreams" => "reset",
        "EndlessStatusLine"
        | "TenThousandHeaders"
        | "MegabyteHeader"
        | "EndlessHeaders"
        | "Http09"
        | "NotHttp"
        | "HeaderWithoutColon"
        | "TwoLengths"
        | "NegativeLength"
        | "BrokenChunks"
        | "HugeChunk"
        | "EndlessChunkExtension"
        | "EndlessTrailers"
        | "H2EndlessContinuation"
        | "H2HeaderBomb"
        | "H2Push"
        | "H2Garbage"
        | "H2HugeFrame" => "malformed_response",
        "SwitchesProtocols" => "http_1xx",
        _ => "delivered",
    }
}

async fn round_ended(database: &Database) {
    wait_until("all attempts to end", ROUND_DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries_open)";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}

/// Whoever does not even say hello is given up long before the timeout of the whole attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_not_made_in_five_seconds_is_given_up() {
    const CONNECT_TIMEOUT_MS: i32 = 5_000;
    const TIMEOUT_SECONDS: i32 = 15;

    let database = Database::new().await;
    let tls = Authority::new().issue().acceptor(&[]);
    let unaccepting = Hostile::start(Misbehaviour::NeverAccepts, &tls).await;
    let silent =
        Hostile::serving(async |mut stream| stream.read_to_end(&mut Vec::new()).await.map(drop)).await;
    for (name, url) in [
        ("never accepts", format!("http://{}/", unaccepting.address())),
        ("no TLS hello", format!("https://{}/", silent.address())),
    ] {
        let mut config = generic(&url);
        config["name"] = json!(name);
        config["timeoutSeconds"] = json!(TIMEOUT_SECONDS);
        config["subscribedEvents"] = json!(["USER_CREATED"]);
        config["maxRetries"] = json!(0);
        database.create_webhook(config).await;
    }
    let _sidecar = Sidecar::start(&database).await;
    database.emit("USER_CREATED", json!({})).await;
    round_ended(&database).await;

    let select = "select w.name, a.error_class, a.error, a.duration_ms, a.connect_ms
                  from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id order by 1";
    let rows = database.rows(select, &[]).await;
    assert_eq!(rows.len(), 2);
    for row in rows {
        let (name, class, reason): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        assert_eq!(class, "timeout_connect", "{name}: {reason}");
        assert!(reason.contains("no connection in time"), "{name}: {reason}");
        let took: i32 = row.get(3);
        assert!((CONNECT_TIMEOUT_MS..TIMEOUT_SECONDS * 1_000).contains(&took), "{name}: {took} ms");
        assert_eq!(row.get::<_, Option<i32>>(4), None, "{name}");
    }
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let database = Database::new().await;
    let (receiver, target) = (Receiver::start().await, Receiver::start().await);
    let targets = [
        ("absolute", target.url("/target")),
        ("relative", "/target".to_owned()),
        ("without-scheme", format!("//{}/target", target.address())),
        ("loop", receiver.url("/loop")),
        ("metadata", "http://169.254.169.254/latest/meta-data/".to_owned()),
        ("file", "file:///etc/passwd".to_owned()),
        ("long", target.url(&format!("/{}", "a".repeat(4_000)))),
    ];
    let statuses = [300, 301, 302, 303, 305, 307, 308];
    for (name, location) in &targets {
        for status in statuses {
            let path = format!("/{name}/{status}");
            receiver.answer(&path, Answer::redirect(status, location));
            let mut config = generic(&receiver.url(&path));
            config["maxRetries"] = json!(0);
            config["subscribedEvents"] = json!(["USER_CREATED"]);
            config["name"] = json!(path);
            database.create_webhook(config).await;
        }
    }
    let sent = targets.len() * statuses.len();
    let _sidecar = Sidecar::start(&database).await;
    database.emit("USER_CREATED", json!({})).await;
    round_ended(&database).await;

    assert_eq!((receiver.count(), target.count(), target.connections()), (sent, 0, 0));
    let select = "select w.name, a.status_code, a.error_class, a.response_headers ->> 'location'
                  from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id";
    let rows = database.rows(select, &[]).await;
    assert_eq!(rows.len(), sent);
    for row in rows {
        let (name, status): (String, i32) = (row.get(0), row.get(1));
        assert!(name.ends_with(&status.to_string()), "{name} {status}");
        assert_eq!(row.get::<_, Option<&str>>(2), Some("http_3xx"), "{name}: a redirect is a failure");
        let location = row.get::<_, Option<String>>(3).expect("Location is kept");
        assert!(!location.is_empty() && location.len() <= 1_024, "{name}: {} bytes", location.len());
    }
}

#[tokio::test]
async fn what_a_stranger_answers_is_stored_without_harm() {
    let (database, _server, _sidecar) = with_one(Misbehaviour::ControlCharacters).await;
    let row = database
        .rows("select response_body, response_headers ->> 'server' from orbhook.attempts", &[])
        .await
        .remove(0);
    assert_eq!(
        row.get::<_, &str>(0),
        "\u{fffd}\u{fffd}[31mred\u{fffd}[0m\u{fffd}\u{fffd}\u{fffd}ok\u{fffd}\u{fffd}("
    );
    assert_eq!(row.get::<_, &str>(1), "\u{fffd}evil");
}

#[tokio::test]
async fn a_compressed_bomb_is_stored_as_it_came() {
    let (database, _server, _sidecar) = with_one(Misbehaviour::CompressedBomb).await;
    let row = database.rows("select response_body, body_cut from orbhook.attempts", &[]).await.remove(0);
    let body: &str = row.get(0);
    // The two bytes that every gzip file begins with; neither is text.
    assert!(body.starts_with("\u{fffd}\u{fffd}"), "{:?}", &body[..body.len().min(20)]);
    assert!(body.len() <= 16 * 1024 && row.get::<_, bool>(1));
}

#[tokio::test]
async fn nothing_packed_is_asked_for_and_what_comes_packed_is_not_unpacked() {
    /// 10 MiB of zeros, as `brotli --quality=11 --lgwin=24` packs them.
    const BROTLI_BOMB: [u8; 14] =
        [0x9f, 0xff, 0xff, 0x9f, 0xf8, 0x27, 0x00, 0xe2, 0xb1, 0x40, 0x20, 0xf7, 0xfe, 0x13];

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let bombs = [("br", BROTLI_BOMB.to_vec()), ("zstd", zstd_zeros()), ("deflate", vec![0x78, 0x9c, 0xff])];
    for (encoding, bomb) in &bombs {
        let path = format!("/{encoding}");
        receiver.answer(&path, Answer::status(200).header("content-encoding", encoding).body(bomb.clone()));
        let mut config = generic(&receiver.url(&path));
        config["name"] = json!(encoding);
        database.create_webhook(config).await;
    }
    let sidecar = SidecarProcess::start(&database, &[]).await;
    database.emit("USER_CREATED", json!({})).await;
    round_ended(&database).await;

    for request in receiver.requests(bombs.len()).await {
        for name in ["accept-encoding", "te"] {
            assert_eq!(request.header(name), None, "{}", request.path);
        }
    }
    for (encoding, bomb) in &bombs {
        let select = "select a.response_body, a.body_cut, a.status_code
                      from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id where w.name = $1";
        let row = database.rows(select, &[encoding]).await.remove(0);
        let (body, cut): (&str, bool) = (row.get(0), row.get(1));
        assert_eq!((row.get::<_, i32>(2), cut), (200, bomb.len() > 16 * 1024), "{encoding}");
        // Byte for byte, with a mark in the place of what is no text.
        let kept = &bomb[..bomb.len().min(200)];
        let text = kept.iter().filter(|byte| byte.is_ascii_graphic() || **byte == b' ');
        let shown = body.chars().filter(|character| *character != '\u{fffd}').take(text.clone().count());
        assert!(shown.eq(text.map(|byte| char::from(*byte))), "{encoding}: {body:.50}");
    }
    assert!(sidecar.memory_peak_bytes() < 512 * 1024 * 1024, "2 GiB were not unpacked");
}

/// 2 GiB of zeros in 64 KiB of Zstandard: blocks that say "128 KiB of this byte" (RFC 8878, section 3.1.1.2).
fn zstd_zeros() -> Vec<u8> {
    const BLOCKS: u32 = 16 * 1024;
    const BLOCK_BYTES: u32 = 128 * 1024;
    const REPEATED_BYTE: u32 = 1 << 1;

    // Magic number; nothing special; a window of 128 KiB.
    let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    for block in 1..=BLOCKS {
        let head = u32::from(block == BLOCKS) | REPEATED_BYTE | BLOCK_BYTES << 3;
        packed.extend(&head.to_le_bytes()[..3]);
        packed.push(0);
    }
    packed
}

async fn with_one(misbehaviour: Misbehaviour) -> (Database, Hostile, Sidecar) {
    let database = Database::new().await;
    let tls = Authority::new().issue().acceptor(&[]);
    let server = Hostile::start(misbehaviour, &tls).await;
    database.create_webhook(generic(&format!("http://{}/hook", server.address()))).await;
    let sidecar = Sidecar::start(&database).await;
    database.emit("USER_CREATED", json!({})).await;
    round_ended(&database).await;
    (database, server, sidecar)
}
