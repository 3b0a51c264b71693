//! A server whose clock is turned from outside: Debian's package faketime puts itself between it and the system's.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::Cluster;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The clock of one server.
pub struct Clock(PathBuf);

impl Cluster {
    /// Starts a cluster whose clock is `days` off the machine's. Programs that are run in it see the same.
    pub fn start_with_clock(settings: &[(&str, &str)], days: i64) -> (Arc<Cluster>, Clock) {
        assert!(
            fs::exists(LIBRARY).is_ok_and(|exists| exists),
            "{LIBRARY} is missing: apt-get install faketime"
        );
        let mut cluster = Cluster::unmade();
        let clock = Clock(cluster.directory.join("clock"));
        clock.set(days);
        cluster.hand_over(&clock.0);
        cluster.environment = vec![
            ("LD_PRELOAD", LIBRARY.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", clock.0.display().to_string()),
            // Every process sees every turn at once.
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // What the server waits for by is left alone.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        cluster.initialise(settings);
        cluster.start_on_a_free_port_with("");
        cluster.create_template();
        (Arc::new(cluster), clock)
    }
}

impl Clock {
    /// Turns it to so many days off the machine's.
    pub fn set(&self, days: i64) {
        // Under another name first: nobody reads half of it.
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{:+}d", days)).expect("the clock's file");
        fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("its mode");
        fs::rename(&next, &self.0).expect("the clock is turned");
    }
}
