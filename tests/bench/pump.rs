//! The baseline of delivering: reqwest posting as fast as it can, with nothing behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use tokio::task::JoinSet;

/// Posts `body` so many times, `concurrency` at once, over kept connections; returns requests per second.
pub(crate) async fn pump(url: &str, body: &str, count: usize, concurrency: usize) -> f64 {
    // Its client wants to know how TLS would be done, though there is none.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(concurrency)
        .tcp_nodelay(true)
        .build()
        .expect("a client");
    let left = Arc::new(AtomicUsize::new(count));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for _ in 0..concurrency {
        let (client, left) = (client.clone(), Arc::clone(&left));
        let (url, body) = (url.to_owned(), body.to_owned());
        tasks.spawn(async move {
            while take_one(&left) {
                let request =
                    client.post(&url).header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                let response = request.body(body.clone()).send().await.expect("an answer");
                assert!(response.status().is_success());
                response.bytes().await.expect("a whole answer");
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("it does not panic");
    }
    per_second(count, began)
}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

pub(crate) fn per_second(count: usize, began: Instant) -> f64 {
    f64::from(u32::try_from(count).unwrap()) / began.elapsed().as_secs_f64()
}
