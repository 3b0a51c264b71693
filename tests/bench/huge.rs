//! A million events in one transaction, against a hundred thousand: time for each event, and the backend's memory.

use std::time::Instant;

use orbhook_tests::{Database, generic};

use crate::figures::{Figures, note};

pub(crate) async fn measure() -> Figures {
    let mut figures = Figures::new();
    let mut per_event = Vec::new();
    for events in [100_000_u32, 1_000_000] {
        let database = Database::new().await;
        database.create_webhook(generic("http://127.0.0.1:9/hook")).await;
        let session = database.connect().await;
        let pid: i32 = session.one("select pg_backend_pid()", &[]).await;
        session
            .execute("begin; select orbhook_emit('USER_ACTION', '{}') from generate_series(1, 1000)")
            .await;
        let (begun, before) = (Instant::now(), private_kilobytes(pid));
        session
            .execute(&format!("select orbhook_emit('USER_ACTION', '{{}}') from generate_series(1, {events})"))
            .await;
        session.execute("commit").await;
        let seconds = begun.elapsed().as_secs_f64();
        let megabytes = private_kilobytes(pid).saturating_sub(before) / 1024;
        per_event.push(seconds / f64::from(events));
        note(
            &mut figures,
            format!("{events} events in one transaction, with a delivery each"),
            format!("{seconds:.1} s, the backend's own memory grew by {megabytes} MiB"),
        );
    }
    let ratio = per_event[1] / per_event[0];
    note(
        &mut figures,
        "time for an event: among a million, against among a hundred thousand",
        format!("{ratio:.2}"),
    );
    figures
}

fn private_kilobytes(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = rollup.lines().filter_map(|line| line.strip_prefix("Private_")?.split_once(':'));
    lines
        .filter(|(kind, _)| ["Clean", "Dirty"].contains(kind))
        .filter_map(|(_, size)| size.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .sum()
}
