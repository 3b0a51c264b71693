//! Somebody who pauses webhooks and lets them go on: no excuse for anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use orbhook_tests::pause;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use uuid::Uuid;

use crate::emitters::Signals;
use crate::stage::Stage;

/// Keeps them apart from the other users of the seed.
const SALT: u64 = 0x6f70_6572_6174_6f72;

/// Until the emitters are told to stop; every webhook then goes on. Says how often it paused one.
pub(crate) async fn pause_and_resume(
    stage: Arc<Stage>,
    webhooks: Vec<Uuid>,
    signals: Arc<Signals>,
    seed: u64,
) -> u32 {
    let mut pauses = 0;
    let mut random = StdRng::seed_from_u64(seed ^ SALT);
    while !signals.stop.load(Ordering::Relaxed) {
        pause(Duration::from_millis(random.random_range(0..2_000))).await;
        let webhook = webhooks[random.random_range(0..webhooks.len())];
        pauses += u32::from(say(&stage, "select orbhook_pause($1)", webhook).await);
        pause(Duration::from_millis(random.random_range(500..3_000))).await;
        while !say(&stage, "select orbhook_resume($1)", webhook).await {
            pause(Duration::from_millis(100)).await;
        }
    }
    pauses
}

/// False if the server did not say that it did it.
async fn say(stage: &Stage, statement: &str, webhook: Uuid) -> bool {
    let Ok(client) = stage.connect().await else { return false };
    client.query_one(statement, &[&webhook]).await.is_ok()
}
