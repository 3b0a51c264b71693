use orbhook_tests::{Cluster, Database, orbhook_command};

/// Exit codes, as `orbhook check --help` lists them.
const CANNOT_CONNECT: i32 = 10;
const EXTENSION_MISSING: i32 = 11;
const VERSION_MISMATCH: i32 = 12;
const PRIVILEGE_MISSING: i32 = 13;
const STANDBY: i32 = 14;

/// What `orbhook check` says, on both streams, and its exit code.
struct Checked {
    code: i32,
    says: String,
}

#[tokio::test]
async fn a_good_installation_passes() {
    let database = Database::new().await;
    let checked = check(&database.url(&database.role("sender").await)).await;
    assert_eq!(checked.code, 0, "{}", checked.says);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_without_its_password() {
    // Port 9 of the loopback address: nobody listens there.
    let checked = check("postgresql://orbhook:canary-4711@127.0.0.1:9/shop").await;
    assert_eq!(checked.code, CANNOT_CONNECT, "{}", checked.says);
    assert!(checked.says.contains("127.0.0.1"), "{}", checked.says);
    assert!(!checked.says.contains("canary-4711"), "{}", checked.says);
}

#[tokio::test]
async fn a_wrong_password_is_said_to_be_one() {
    let database = Database::new().await;
    let url = database.cluster().tcp_url(database.name());
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    let checked = check(&format!("{scheme}://postgres:canary-4711@{place}")).await;
    assert_eq!(checked.code, CANNOT_CONNECT, "{}", checked.says);
    assert!(checked.says.contains("password"), "{}", checked.says);
    assert!(!checked.says.contains("canary-4711"), "{}", checked.says);
}

#[tokio::test]
async fn a_database_without_the_extension_is_told_how_to_get_it() {
    let database = Database::new().await;
    let sender = database.role("sender").await;
    database.execute("drop extension orbhook cascade").await;
    let checked = check(&database.url(&sender)).await;
    assert_eq!(checked.code, EXTENSION_MISSING, "{}", checked.says);
    assert!(checked.says.to_lowercase().contains("create extension orbhook"), "{}", checked.says);
}

#[tokio::test]
async fn an_extension_of_another_version_is_named_with_both_versions() {
    let database = Database::new().await;
    let sender = database.role("sender").await;
    database.execute("update pg_extension set extversion = '99.0.0' where extname = 'orbhook'").await;
    let checked = check(&database.url(&sender)).await;
    assert_eq!(checked.code, VERSION_MISMATCH, "{}", checked.says);
    assert!(checked.says.contains("99.0.0"), "{}", checked.says);
    assert!(checked.says.contains(env!("CARGO_PKG_VERSION")), "{}", checked.says);
}

#[tokio::test]
async fn a_role_without_privileges_is_told_which_grant_it_lacks() {
    let database = Database::new().await;
    let nobody = database.role("").await;
    let checked = check(&database.url(&nobody)).await;
    assert_eq!(checked.code, PRIVILEGE_MISSING, "{}", checked.says);
    assert!(checked.says.contains("orbhook_grant"), "{}", checked.says);
    assert!(checked.says.contains("sender"), "{}", checked.says);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_recognised() {
    let cluster = Cluster::start(&[]);
    let database = Database::on(&cluster).await;
    let sender = database.role("sender").await;
    cluster.become_standby();
    let checked = check(&database.url(&sender)).await;
    assert_eq!(checked.code, STANDBY, "{}", checked.says);
    assert!(checked.says.contains("standby"), "{}", checked.says);
}

async fn check(url: &str) -> Checked {
    let output = orbhook_command(url).arg("check").output().await.expect("orbhook check runs");
    let says =
        [output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat();
    assert!(!says.trim().is_empty(), "it says nothing");
    Checked { code: output.status.code().expect("it exits, it is not killed"), says }
}
