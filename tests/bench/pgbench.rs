//! pgbench, which drives the emitters.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orbhook_tests::Database;

/// One run of pgbench with a script of its own.
pub(crate) struct Pgbench<'a> {
    pub(crate) database: &'a Database,
    /// What each transaction does, in pgbench's language.
    pub(crate) script: &'a str,
    pub(crate) clients: usize,
    pub(crate) duration: Duration,
    /// Further arguments.
    pub(crate) arguments: &'a [&'a str],
}

impl Pgbench<'_> {
    /// Transactions per second, connecting left out.
    pub(crate) fn run(&self) -> f64 {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let cluster = self.database.cluster();
        let script =
            cluster.directory().join(format!("pgbench-{}.sql", COUNTER.fetch_add(1, Ordering::Relaxed)));
        fs::write(&script, self.script).expect("the script");
        let (script, clients) = (script.display().to_string(), self.clients.to_string());
        let seconds = self.duration.as_secs().to_string();
        let mut arguments = vec!["--no-vacuum", "--protocol=prepared", "--jobs=2", "--client", &clients];
        arguments.extend(["--time", &seconds, "--file", &script]);
        arguments.extend(self.arguments);
        arguments.push(self.database.name());
        let output = tokio::task::block_in_place(|| cluster.run("pgbench", &arguments));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "pgbench fails: {text}");
        text.lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("pgbench did not say how fast it was: {text}"))
    }
}
