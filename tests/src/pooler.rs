use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::cluster::Cluster;
use crate::wait::{DEADLINE, wait_until};

/// PgBouncer in transaction mode before a cluster, with two server connections for each role. It ends with this value.
pub struct Pooler {
    address: SocketAddr,
    directory: PathBuf,
    _process: Child,
}

impl Pooler {
    /// For these roles. Nobody is asked for a password: over the socket behind it, no role needs one either.
    pub async fn start(cluster: &Cluster, roles: &[&str]) -> Pooler {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        drop(listener);
        let (socket, port) = cluster.socket();
        // The server's user runs it, who may not enter the clone.
        let directory = PathBuf::from(&socket).join(format!("pooler-{}", address.port()));
        fs::create_dir(&directory).expect("a directory for the pooler");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("readable");
        let users = directory.join("users.txt");
        fs::write(&users, roles.iter().map(|role| format!("\"{role}\" \"\"\n")).collect::<String>())
            .expect("the list of users");
        let settings = format!(
            "[databases]\n* = host={socket} port={port}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 100\n",
            address.port(),
            users.display()
        );
        let file = directory.join("pgbouncer.ini");
        fs::write(&file, settings).expect("the pooler's settings");
        let mut command = Command::new("/usr/sbin/pgbouncer");
        if let Some((user, group)) = cluster.owner_ids() {
            command.uid(user).gid(group);
        }
        let process = command
            .arg(&file)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("pgbouncer cannot be run ({error}): run `make packages`"));
        wait_until("the pooler to listen", DEADLINE, async || TcpStream::connect(address).await.ok()).await;
        Pooler { address, directory, _process: process }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It goes with the cluster's directory otherwise.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
