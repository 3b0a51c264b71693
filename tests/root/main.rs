//! What needs root: the sidecar in a network namespace where every address leads to a trap and names are the test's to
//! give. `make test-root` runs it, through namespace.sh.
#![allow(clippy::unwrap_used, reason = "a value that is missing is a failed test, in a test's helper too")]

mod disk; // what a full disk costs
mod packages; // installed, upgraded, removed

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use orbhook_tests::{
    Database, NameServer, Sidecar, Trap, blocked_addresses, blocked_urls, connections_begun, generic,
    is_in_namespace, wait_until,
};
use serde_json::json;
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(180);

/// Public, so the policy lets it pass; in the namespace it leads to the trap.
const PUBLIC: &str = "93.184.216.34";
const PUBLIC_V6: &str = "2606:4700:4700::1111";

/// One after another: the kernel counts the connections of all.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_blocked_is_ever_dialled() {
    assert!(is_in_namespace(), "run this by `make test-root`");
    let names = NameServer::start().await;
    let trap = Trap::start().await;
    literal_addresses(&trap).await;
    names_of_blocked_addresses(&trap, &names).await;
    mixed_answers(&trap, &names).await;
    long_answers(&trap, &names).await;
    chains_of_aliases(&trap, &names).await;
    rebinding(&trap, &names).await;
}

async fn literal_addresses(trap: &Trap) {
    let database = Database::new().await;
    let urls = blocked_urls(trap.port());
    for url in &urls {
        store(&database, url, "USER_CREATED").await;
    }
    // The counter counts, the trap springs: otherwise its silence would prove nothing.
    store(&database, &format!("http://{PUBLIC}:{}/", trap.port()), "USER_DELETED").await;
    store(&database, &format!("http://[{PUBLIC_V6}]:{}/", trap.port()), "USER_DELETED").await;
    let _sidecar = start(&database).await;
    let before = connections_begun();
    database.emit("USER_CREATED", json!({})).await;
    ended(&database).await;
    assert_eq!(connections_begun(), before, "of {} URLs some were dialled: {:?}", urls.len(), trap.dialled());
    assert_eq!(classes(&database).await, BTreeSet::from(["address_blocked".to_owned()]));

    database.emit("USER_DELETED", json!({})).await;
    ended(&database).await;
    assert_eq!(connections_begun(), before + 2);
    assert_eq!(trap.dialled(), public());
}

async fn names_of_blocked_addresses(trap: &Trap, names: &NameServer) {
    let database = Database::new().await;
    for (number, address) in blocked_addresses().into_iter().enumerate() {
        names.answer(&format!("inside-{number}.example.com"), vec![vec![address]]);
        store(&database, &format!("http://inside-{number}.example.com:{}/", trap.port()), "USER_CREATED")
            .await;
    }
    expect_blocked(&database, trap).await;
}

async fn mixed_answers(trap: &Trap, names: &NameServer) {
    let database = Database::new().await;
    let public: IpAddr = PUBLIC.parse().unwrap();
    for (number, address) in blocked_addresses().into_iter().enumerate() {
        for (order, answer) in [("first", vec![address, public]), ("last", vec![public, address])] {
            let name = format!("{order}-{number}.example.com");
            names.answer(&name, vec![answer]);
            store(&database, &format!("http://{name}:{}/", trap.port()), "USER_CREATED").await;
        }
    }
    expect_blocked(&database, trap).await;
}

/// One bad address among more good ones than would ever be tried.
async fn long_answers(trap: &Trap, names: &NameServer) {
    const GOOD: [usize; 2] = [100, 200];
    let database = Database::new().await;
    let good = |count: usize| -> Vec<IpAddr> {
        (1..=count).map(|n| IpAddr::from([93, 184, 216, u8::try_from(n).unwrap()])).collect()
    };
    let inside = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1"];
    for count in GOOD {
        for (number, address) in inside.iter().enumerate() {
            let bad: IpAddr = address.parse().unwrap();
            for (order, answer) in
                [("first", [vec![bad], good(count)].concat()), ("last", [good(count), vec![bad]].concat())]
            {
                let name = format!("long-{order}-{count}-{number}.example.com");
                names.answer(&name, vec![answer]);
                store(&database, &format!("http://{name}:{}/", trap.port()), "USER_CREATED").await;
            }
        }
    }
    // A long answer alone is no reason: what is good can be reached.
    names.answer("long-good.example.com", vec![vec![PUBLIC.parse().unwrap(); 200]]);
    store(&database, &format!("http://long-good.example.com:{}/", trap.port()), "USER_DELETED").await;
    expect_blocked(&database, trap).await;
    expect_delivered(&database, "USER_DELETED").await;
}

/// Names that stand for names that stand for an address inside.
async fn chains_of_aliases(trap: &Trap, names: &NameServer) {
    let database = Database::new().await;
    for (number, address) in blocked_addresses().into_iter().enumerate() {
        let chain = ["first", "second", "third", "last"].map(|place| format!("{place}-{number}.example.net"));
        names.alias(&chain.each_ref().map(String::as_str));
        names.answer(&chain[3], vec![vec![address]]);
        store(&database, &format!("http://{}:{}/", chain[0], trap.port()), "USER_CREATED").await;
    }
    names.alias(&["outside.example.net", "further.example.org", "public.example.com"]);
    names.answer("public.example.com", vec![vec![PUBLIC.parse().unwrap()]]);
    store(&database, &format!("http://outside.example.net:{}/", trap.port()), "USER_DELETED").await;
    // Without an end there is no address.
    names.alias(&["round.example.net", "about.example.net", "round.example.net"]);
    store(&database, &format!("http://round.example.net:{}/", trap.port()), "USER_LOGIN").await;
    expect_blocked(&database, trap).await;
    expect_delivered(&database, "USER_DELETED").await;

    let _sidecar = start(&database).await;
    database.emit("USER_LOGIN", json!({})).await;
    ended(&database).await;
    assert!(classes(&database).await.contains("dns"));
}

/// Every second answer is an address inside. What was checked is what is dialled, or nothing.
async fn rebinding(trap: &Trap, names: &NameServer) {
    const LOOK_UPS: usize = 1_000;
    let database = Database::new().await;
    let (public, inside): (IpAddr, IpAddr) = (PUBLIC.parse().unwrap(), "127.0.0.1".parse().unwrap());
    let turns = (0..LOOK_UPS).map(|turn| vec![if turn % 2 == 0 { public } else { inside }]).collect();
    names.answer("rebinding.example.com", turns);
    let url = format!("http://rebinding.example.com:{}/", trap.port());
    let webhook = store(&database, &url, "USER_CREATED").await;
    database.execute(&format!("update orbhook.webhooks set max_in_flight = 50 where id = '{webhook}'")).await;
    let _sidecar = start(&database).await;
    database
        .execute(&format!("select orbhook_emit('USER_CREATED', '{{}}') from generate_series(1, {LOOK_UPS})"))
        .await;
    ended(&database).await;
    let count = "select count(*) from orbhook.attempts where error_class is not distinct from $1";
    let delivered: i64 = database.one(count, &[&None::<String>]).await;
    let blocked: i64 = database.one(count, &[&"address_blocked"]).await;
    assert!(delivered > 100 && blocked > 100, "{delivered} delivered, {blocked} blocked: nothing alternated");
    assert_eq!(usize::try_from(delivered + blocked).unwrap(), LOOK_UPS);
    assert!(!trap.dialled().contains(&inside));
    assert_eq!(trap.dialled(), self::public());
}

async fn expect_blocked(database: &Database, trap: &Trap) {
    let _sidecar = start(database).await;
    let before = connections_begun();
    database.emit("USER_CREATED", json!({})).await;
    ended(database).await;
    assert_eq!(classes(database).await, BTreeSet::from(["address_blocked".to_owned()]));
    assert_eq!(connections_begun(), before, "{:?}", trap.dialled());
}

/// The way there is open: what was blocked was not blocked by chance.
async fn expect_delivered(database: &Database, event_type: &str) {
    let _sidecar = start(database).await;
    let event = database.emit(event_type, json!({})).await;
    ended(database).await;
    let select = "select status, last_error from orbhook.deliveries where event_id = $1";
    let row = database.rows(select, &[&event]).await.remove(0);
    assert_eq!(row.get::<_, &str>(0), "delivered", "{:?}", row.get::<_, Option<&str>>(1));
}

/// Stored past the check at creation, as by an administrator's hand.
async fn store(database: &Database, url: &str, event_type: &str) -> Uuid {
    let mut config = generic("https://hooks.example.com/");
    config["maxRetries"] = json!(0);
    config["timeoutSeconds"] = json!(10);
    config["subscribedEvents"] = json!([event_type]);
    let webhook = database.create_webhook(config).await;
    let update = "update orbhook.webhook_secrets set value = $2 where webhook_id = $1 and name = 'endpoint' returning 1";
    database.one::<i32>(update, &[&webhook, &url]).await;
    webhook
}

async fn start(database: &Database) -> Sidecar {
    Sidecar::start_with(database, |config| config.allow_networks = Vec::new()).await
}

async fn ended(database: &Database) {
    wait_until("all attempts to end", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries_open)";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}

async fn classes(database: &Database) -> BTreeSet<String> {
    let rows =
        database.rows("select distinct coalesce(error_class, 'delivered') from orbhook.attempts", &[]).await;
    rows.iter().map(|row| row.get(0)).collect()
}

fn public() -> BTreeSet<IpAddr> {
    [PUBLIC, PUBLIC_V6].map(|ip| ip.parse().unwrap()).into()
}
