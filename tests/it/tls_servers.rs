//! TLS as other people's servers speak it: `openssl s_server`, which the packages of PostgreSQL bring along.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fs, process};

use orbhook_tests::{Database, SidecarProcess, generic, wait_until};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

const DEADLINE: Duration = Duration::from_secs(60);

/// In the URL of every endpoint and in every payload; a server that shows it was told it.
const CANARY: &str = "CANARY";

/// Name, options of the server, host, class, words of the reason.
type Case = (&'static str, &'static [&'static str], &'static str, &'static str, &'static str);

/// Old ciphers are not even offered by this OpenSSL unless it is asked to.
const CASES: [Case; 12] = [
    ("TLS 1.2", &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "127.0.0.1", TOLD, ""),
    ("TLS 1.3", &["-tls1_3"], "127.0.0.1", TOLD, ""),
    ("TLS 1.3, by name", &["-tls1_3"], "localhost", TOLD, ""),
    ("TLS 1.0", &["-tls1", "-cipher", "ALL:@SECLEVEL=0"], "127.0.0.1", "tls", "neither TLS 1.2 nor TLS 1.3"),
    (
        "TLS 1.1",
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        "127.0.0.1",
        "tls",
        "neither TLS 1.2 nor TLS 1.3",
    ),
    ("RSA key exchange", &["-tls1_2", "-cipher", "AES128-SHA"], "127.0.0.1", "tls", "no common cipher"),
    (
        "RSA key exchange, GCM",
        &["-tls1_2", "-cipher", "AES256-GCM-SHA384"],
        "127.0.0.1",
        "tls",
        "no common cipher",
    ),
    (
        "CBC",
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-SHA384"],
        "127.0.0.1",
        "tls",
        "no common cipher",
    ),
    ("CCM", &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"], "127.0.0.1", "tls", "no common cipher"),
    (
        "client certificate, TLS 1.2",
        &["-tls1_2", "-Verify", "1", "-verify_return_error"],
        "127.0.0.1",
        "tls",
        "client certificate",
    ),
    // The server says so after the handshake, and may have closed before the request is sent.
    (
        "client certificate, TLS 1.3",
        &["-tls1_3", "-Verify", "1", "-verify_return_error"],
        "127.0.0.1",
        "tls reset",
        "client certificate",
    ),
    (
        "another server name",
        &["-servername", "other.example", "-servername_fatal", "-cert2", CERTIFICATE, "-key2", KEY],
        "localhost",
        "tls",
        "does not serve this host name",
    ),
];

/// The server understood what it was told; s_server itself never answers.
const TOLD: &str = "timeout_first_byte";

const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";

#[tokio::test(flavor = "multi_thread")]
async fn old_protocols_and_ciphers_are_refused_with_the_reason_and_told_nothing() {
    let directory = Directory::with_certificate().await;
    let database = Database::new().await;
    let mut servers = Vec::new();
    for (name, options, host, _, _) in CASES {
        let server = Server::start(&directory, options).await;
        let mut config = generic(&format!("https://{host}:{}/{CANARY}", server.port));
        config["name"] = json!(name);
        config["timeoutSeconds"] = json!(2);
        config["maxRetries"] = json!(0);
        config["subscribedEvents"] = json!(["USER_CREATED"]);
        database.create_webhook(config).await;
        servers.push(server);
    }
    let ca_file = directory.0.join(CERTIFICATE).display().to_string();
    let _sidecar = SidecarProcess::start(&database, &["--ca-file", &ca_file]).await;
    database.emit("USER_CREATED", json!({"canary": CANARY})).await;
    wait_until("all attempts to end", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries_open)";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;

    let mut faults = Vec::new();
    for ((name, _, _, class, words), server) in CASES.iter().zip(servers) {
        let select = "select coalesce(a.error_class, 'delivered'), coalesce(a.error, '')
                      from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id where w.name = $1";
        let row = database.rows(select, &[name]).await.remove(0);
        let (seen, reason): (String, String) = (row.get(0), row.get(1));
        let was_told = server.end().await.contains(CANARY);
        if !class.split(' ').any(|class| class == seen)
            || !reason.contains(words)
            || was_told != (*class == TOLD)
        {
            faults.push(format!("{name}: {seen}: {reason} (told: {was_told})"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Goes with this value.
struct Directory(PathBuf);

impl Directory {
    /// A certificate for 127.0.0.1 and localhost, with an RSA key, which the older key exchanges need.
    async fn with_certificate() -> Directory {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("orbhook-tests-tls-{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let directory = Directory(env::temp_dir().join(name));
        fs::create_dir(&directory.0).unwrap();
        let output = openssl(&directory)
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=orbhook tests",
            ])
            .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", KEY, "-out", CERTIFICATE])
            .output()
            .await
            .expect("openssl runs: postgresql depends on it by way of ssl-cert");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        directory
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Without the system's configuration, which forbids what is to be shown here. The file of requests is not read then
/// either, so what `req` needs is given by options.
fn openssl(directory: &Directory) -> Command {
    let mut command = Command::new("openssl");
    command
        .current_dir(&directory.0)
        .env("OPENSSL_CONF", "/dev/null")
        .stdin(Stdio::piped())
        .kill_on_drop(true);
    command
}

struct Server {
    child: Child,
    port: u16,
    said: String,
}

impl Server {
    async fn start(directory: &Directory, options: &[&str]) -> Server {
        let mut child = openssl(directory)
            .args(["s_server", "-accept", "127.0.0.1:0", "-cert", CERTIFICATE, "-key", KEY])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs");
        let stdout = child.stdout.as_mut().expect("it is piped");
        let mut said = String::new();
        loop {
            let mut bytes = [0; 4_096];
            let length = tokio::time::timeout(DEADLINE, stdout.read(&mut bytes)).await.unwrap().unwrap();
            assert!(length > 0, "s_server {options:?} ended: {said}");
            said.push_str(&String::from_utf8_lossy(&bytes[..length]));
            let port = said.lines().find_map(|line| line.strip_prefix("ACCEPT 127.0.0.1:"));
            // The line may have come in part.
            if let Some(port) = port.filter(|_| said.ends_with('\n')) {
                return Server { port: port.parse().unwrap(), child, said };
            }
        }
    }

    /// Everything it has said, among that what it was told.
    async fn end(mut self) -> String {
        self.child.start_kill().unwrap();
        let output = self.child.wait_with_output().await.unwrap();
        self.said + &String::from_utf8_lossy(&output.stdout)
    }
}
