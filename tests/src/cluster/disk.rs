//! A server whose disk is small enough to be filled.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use super::Cluster;

impl Cluster {
    /// Starts a cluster on a file system of its own, of so many megabytes. Needs root, and a mount namespace that ends with the
    /// test (namespace.sh gives it one).
    pub fn start_on_small_disk(megabytes: u32, settings: &[(&str, &str)]) -> Arc<Cluster> {
        let mut cluster = Cluster::unmade();
        let data = cluster.directory.join("data");
        fs::create_dir(&data).expect("the directory of the data");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=700"), "tmpfs"])
            .arg(&data)
            .status()
            .expect("mount runs");
        assert!(mounted.success(), "a file system of its own needs root: make test-root");
        cluster.hand_over(&data);
        cluster.initialise(settings);
        cluster.start_on_a_free_port_with("");
        cluster.create_template();
        Arc::new(cluster)
    }

    /// Fills the disk with a file, to the last byte.
    pub fn fill_disk(&self) {
        // It ends by an error: that is its purpose.
        let _ = std::io::copy(
            &mut std::io::repeat(0),
            &mut fs::File::create(self.ballast()).expect("a file on the small disk"),
        );
    }

    pub fn free_disk(&self) {
        fs::remove_file(self.ballast()).expect("the file goes");
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.directory.join("data/ballast")
    }
}
