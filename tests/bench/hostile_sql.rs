//! Hostile statements against the SQL calls: `make hostile-sql COUNT=1000000`, which hands the number over as HOSTILE_SQL_COUNT.

use std::time::Instant;

use orbhook_tests::{Database, SqlStorm};

use crate::figures::{Figures, note};

const COUNT_DEFAULT: u64 = 1_000_000;
const SEED: u64 = 2;

pub(crate) async fn measure() -> Figures {
    let count =
        std::env::var("HOSTILE_SQL_COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(COUNT_DEFAULT);
    let database = Database::new().await;
    let begun = Instant::now();
    let outcome = SqlStorm::new(SEED).run(&database, count).await;
    let mut figures = Figures::new();
    note(
        &mut figures,
        "hostile statements",
        format!("{} in {:.0} s, seed {SEED}", outcome.statements, begun.elapsed().as_secs_f64()),
    );
    note(&mut figures, "accepted", outcome.accepted.to_string());
    note(&mut figures, "refused, by SQLSTATE", format!("{:?}", outcome.refused));
    note(&mut figures, "SQLSTATEs that are not documented", outcome.undocumented.len().to_string());
    note(
        &mut figures,
        "backends ended, server restarts",
        format!("{}, {}", outcome.fatal.len(), i32::from(!outcome.same_server)),
    );
    outcome.check();
    figures
}
