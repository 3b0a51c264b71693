use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use orbhook_tests::{Receiver, generic, verify_signature, wait_until};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(60);
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What `systemd-analyze security` calls OK ends at 5; here is where the unit stands.
const EXPOSURE_MAX: &str = "20";

/// A Debian system of its own with PostgreSQL in it, made by `make test-root`, and the packages as `make deb` builds them: of
/// this version, and the same under an older number.
#[tokio::test(flavor = "multi_thread")]
async fn the_packages_are_installed_upgraded_and_removed_and_deliver_sealed_and_signed() {
    let debian = Debian::clean();
    debian.must("dpkg --install /packages/older/*.deb");
    let key = debian.path("etc/orbhook/key");
    let (owner, mode) = (fs::metadata(&key).unwrap().uid(), fs::metadata(&key).unwrap().permissions().mode());
    assert_eq!((owner.to_string(), mode & 0o777), (debian.must("id -u orbhook"), 0o600));
    assert_eq!(debian.must("stat --format %U:%G:%a /etc/orbhook/orbhook.conf"), "root:orbhook:640");
    assert_eq!(
        debian.must("runuser -u nobody -- cat /etc/orbhook/key.pub | cut -d : -f 1"),
        "orbhook-public-key"
    );
    let made = fs::read(&key).unwrap();

    debian.must("pg_createcluster 15 main --start -- --no-sync");
    debian.must("runuser -u postgres -- createdb --encoding UTF8 --template template0 shop");
    debian.must("orbhook-setup shop && orbhook-setup shop");
    debian.must("sed -i s,/postgres$,/shop, /etc/orbhook/orbhook.conf; echo ORBHOOK_ALLOW_NETWORK=127.0.0.0/8 >>/etc/orbhook/orbhook.conf");
    let checked = debian.must(&as_the_service("orbhook check"));
    assert!(checked.contains("secrets are sealed with key"), "{checked}");

    // As systemd starts it, and listens to it.
    let receiver = Receiver::start().await;
    let mut config = generic(&receiver.url("/hook"));
    config["signingSecret"] = json!(SIGNING);
    debian.sql(&format!(
        "set orbhook.allow_networks = '127.0.0.0/8'; select orbhook_create_webhook('{config}')"
    ));
    let systemd = debian.listen();
    let mut sidecar = debian
        .start(&as_the_service("env NOTIFY_SOCKET=/run/systemd-notify WATCHDOG_USEC=1000000 orbhook run"));
    heard(&systemd, "READY=1").await;
    heard(&systemd, "STATUS=delivering").await;
    heard(&systemd, "WATCHDOG=1").await;
    debian.sql("select orbhook_emit('USER_ACTION', '{\"n\": 1}')");
    verify_signature(SIGNING, &receiver.requests(1).await[0]).unwrap();

    debian.must("dpkg --install --force-confdef --force-confold /packages/this/*.deb");
    debian.must("pkill --signal TERM --uid orbhook --exact orbhook");
    heard(&systemd, "STOPPING=1").await;
    assert!(sidecar.wait().unwrap().success());
    assert_eq!(fs::read(&key).unwrap(), made, "an upgrade leaves the key alone");
    assert!(debian.must("cat /etc/orbhook/orbhook.conf").contains("/shop"), "and the configuration");
    assert_eq!(debian.must("orbhook --version"), format!("orbhook {}", env!("CARGO_PKG_VERSION")));

    assert_eq!(debian.must("systemd-analyze verify orbhook.service 2>&1"), "");
    let exposure =
        format!("systemd-analyze security --offline=true --threshold={EXPOSURE_MAX} orbhook.service");
    debian.must(&exposure);

    debian.must("dpkg --remove orbhook postgresql-15-orbhook");
    for gone in
        ["usr/bin/orbhook", "usr/lib/postgresql/15/lib/orbhook.so", "lib/systemd/system/orbhook.service"]
    {
        assert!(!debian.path(gone).exists(), "{gone}");
    }
    debian.must("dpkg --purge orbhook postgresql-15-orbhook");
    assert!(!debian.path("etc/orbhook/orbhook.conf").exists());
    assert_eq!(fs::read(&key).unwrap(), made, "without it what is sealed in the database is lost");
}

/// Run as its user, with the environment that the unit's file gives it.
fn as_the_service(command: &str) -> String {
    format!("set -a; . /etc/orbhook/orbhook.conf; exec runuser -u orbhook -- {command}")
}

async fn heard(systemd: &UnixDatagram, what: &str) {
    wait_until(what, DEADLINE, async || {
        let mut message = [0; 512];
        let length = systemd.recv(&mut message).ok()?;
        String::from_utf8_lossy(&message[..length]).lines().any(|line| line.starts_with(what)).then_some(())
    })
    .await;
}

struct Debian {
    root: PathBuf,
    script: PathBuf,
}

impl Debian {
    /// Without what an earlier run left behind.
    fn clean() -> Debian {
        let root = env::var("ORBHOOK_DEBIAN").expect("run this by `make test-root`").into();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("root/debian.sh");
        let debian = Debian { root, script };
        debian.must(
            "dpkg --purge orbhook postgresql-15-orbhook 2>/dev/null; pg_dropcluster --stop 15 main 2>/dev/null;
             rm -rf /etc/orbhook; deluser --quiet orbhook 2>/dev/null; true",
        );
        debian
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    fn command(&self, shell: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.arg("run").arg(&self.root).args(["bash", "-c", shell]).stdin(Stdio::null());
        command
    }

    /// What it printed, without the last line's end.
    fn must(&self, shell: &str) -> String {
        let Output { status, stdout, stderr } = self.command(shell).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{shell}: {status}\n{stdout}{stderr}");
        stdout.trim_end().to_owned()
    }

    fn start(&self, shell: &str) -> Child {
        self.command(shell).stderr(Stdio::null()).spawn().unwrap()
    }

    fn sql(&self, sql: &str) {
        let sql = sql.replace('\'', "'\\''");
        self.must(&format!("runuser -u postgres -- psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --dbname shop --command '{sql}'"));
    }

    /// Where a service says how it is.
    fn listen(&self) -> UnixDatagram {
        let path = self.path("run/systemd-notify");
        drop(fs::remove_file(&path));
        let socket = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let end = "pkill --uid orbhook --exact orbhook; pg_dropcluster --stop 15 main 2>/dev/null; true";
        drop(self.command(end).output());
    }
}
