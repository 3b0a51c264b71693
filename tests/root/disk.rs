use std::collections::BTreeSet;
use std::time::Duration;

use orbhook_tests::{Cluster, Database, Receiver, SidecarProcess, generic, wait_until};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn with_the_disk_full_an_emit_fails_and_nothing_accepted_is_lost() {
    let cluster = Cluster::start_on_small_disk(
        256,
        &[
            ("min_wal_size", "32MB"),
            ("max_wal_size", "48MB"),
            ("wal_recycle", "off"),
            ("shared_buffers", "16MB"),
        ],
    );
    let database = Database::on(&cluster).await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    let sidecar = SidecarProcess::start(&database, &[]).await;
    sidecar.logged("registered").await;
    let mut accepted = BTreeSet::new();
    let mut full = 0;
    for round in 0..3 {
        cluster.fill_disk();
        // Until the free pages that are left are used up.
        for number in round * 10_000..(round + 1) * 10_000 {
            let session = database.connect().await;
            let payload = json!({"n": number, "text": "x".repeat(4_000)});
            match session.query_one("select orbhook_emit('USER_ACTION', $1)", &[&payload]).await {
                Ok(_) => {
                    accepted.insert(number);
                }
                Err(error) => {
                    assert_eq!(error.code().map(|code| code.code()), Some("53100"), "{error:?}");
                    full += 1;
                    break;
                }
            }
        }
        cluster.free_disk();
    }
    assert_eq!(full, 3, "the disk was never full");
    wait_until("no delivery to be pending", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
    let arrived: BTreeSet<i32> = receiver
        .so_far()
        .iter()
        .filter_map(|request| i32::try_from(request.json()["data"]["n"].as_i64()?).ok())
        .collect();
    assert_eq!(arrived, accepted);
    assert!(sidecar.terminate().await.success());
}
