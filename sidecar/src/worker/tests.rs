//! The worker's decisions, without a database: claims and reports are handed to it.

use orbhook_address::{Policy, parse_networks};
use orbhook_seal::KeyRing;
use uuid::Uuid;

use super::*;
use crate::{
    deliver::{is_late, may_dial, or_fault},
    delivery::{ErrorClass, Outcome, Ticket},
    resolve::SystemLookup,
    tls,
};

const MS: Duration = Duration::from_millis(1);

struct Harness {
    worker: Worker,
    results: mpsc::UnboundedReceiver<Finished>,
    mode: watch::Receiver<Mode>,
    ready: watch::Receiver<bool>,
}

fn harness(concurrency: usize, claim_batch: usize) -> Harness {
    let mut config = Config::for_database("postgres://u@h/d").unwrap();
    config.concurrency = concurrency;
    config.claim_batch = claim_batch;
    let policy = Policy::new(parse_networks("127.0.0.0/8").unwrap());
    let http =
        HttpClient::new(policy, std::sync::Arc::new(SystemLookup), tls::outbound(None).unwrap(), 1).unwrap();
    let (mode_sender, mode) = watch::channel(Mode::Awake);
    let (sender, results) = mpsc::unbounded_channel();
    let (ready_sender, ready) = watch::channel(false);
    let worker =
        Worker::new(&config, http, Metrics::default(), mode_sender, sender, ready_sender, Instant::now());
    Harness { worker, results, mode, ready }
}

fn up(harness: &mut Harness) {
    harness.worker.on_registration(Some(Uuid::from_u128(1)), Instant::now());
    harness.worker.on_report(Report::Up);
}

fn delivery(n: u128) -> Delivery {
    let now = Instant::now();
    let ticket = Ticket {
        delivery: Uuid::from_u128(n),
        attempt: 1,
        webhook: Uuid::from_u128(9),
        sidecar: Uuid::from_u128(1),
    };
    Delivery {
        ticket,
        event_type: "USER_CREATED".to_owned(),
        headers: Vec::new(),
        body: "{}".to_owned(),
        secrets: serde_json::from_str(r#"{"endpoint":"http://127.0.0.1:1/"}"#).unwrap(),
        timeout: 15_000 * MS,
        lease_until: now + 25_000 * MS,
        send_at: now,
        is_paced: false,
    }
}

fn claimed(deliveries: Vec<Delivery>) -> Option<Claimed> {
    Some(Claimed {
        sidecar: Uuid::from_u128(1),
        last_webhook: deliveries.last().map(|delivery| delivery.ticket.webhook),
        deliveries,
        unreadable: Vec::new(),
        took: MS,
    })
}

#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_before_it_is_registered_and_results_can_be_settled() {
    let mut harness = harness(10, 5);
    harness.worker.on_wake(wake::Event::Work, Instant::now());
    assert_eq!(harness.worker.next_claim(Instant::now(), true), None);
    harness.worker.on_registration(Some(Uuid::from_u128(1)), Instant::now());
    assert_eq!(harness.worker.next_claim(Instant::now(), true), None);
    assert!(!*harness.ready.borrow());
    harness.worker.on_report(Report::Up);
    assert!(*harness.ready.borrow());
    let first = ClaimRequest { batch: 5, after: None, lead: Duration::ZERO, share: 5, held: Vec::new() };
    assert_eq!(harness.worker.next_claim(Instant::now(), true), Some(first));
    assert_eq!(harness.worker.next_claim(Instant::now(), true), None, "one request asks once");
    harness.worker.on_report(Report::Down);
    harness.worker.on_wake(wake::Event::Work, Instant::now());
    assert_eq!(harness.worker.next_claim(Instant::now(), true), None);
    assert!(!*harness.ready.borrow());
}

#[tokio::test(start_paused = true)]
async fn it_claims_as_many_as_there_are_free_slots_and_goes_on_where_it_stopped() {
    let mut harness = harness(3, 5);
    up(&mut harness);
    assert_eq!(harness.worker.next_claim(Instant::now(), true).unwrap().batch, 2, "half of them at once");
    harness.worker.on_claimed(claimed(vec![delivery(1), delivery(2)]), Instant::now());
    harness.worker.dispatch(Instant::now());
    assert_eq!(harness.worker.sends.len(), 2);
    let next = harness.worker.next_claim(Instant::now(), true).unwrap();
    assert_eq!((next.batch, next.after), (1, Some(Uuid::from_u128(9))));
    harness.worker.on_claimed(claimed(vec![delivery(3)]), Instant::now());
    harness.worker.dispatch(Instant::now());
    assert_eq!(harness.worker.next_claim(Instant::now(), true), None, "no slot is free");
    let sent = harness.worker.sends.join_next().await.unwrap();
    harness.worker.on_sent(sent.ok());
    assert_eq!(harness.worker.next_claim(Instant::now(), true).unwrap().batch, 1);
}

#[tokio::test(start_paused = true)]
async fn a_webhook_may_hold_half_of_the_free_slots_and_what_it_holds_is_counted_until_it_is_over() {
    let mut harness = harness(10, 5);
    up(&mut harness);
    let nine = Uuid::from_u128(9);
    assert_eq!(harness.worker.next_claim(Instant::now(), true).unwrap().share, 5);
    let mut paced = delivery(3);
    paced.send_at = Instant::now() + 100 * MS;
    harness.worker.on_claimed(claimed(vec![delivery(1), delivery(2), paced]), Instant::now());
    harness.worker.dispatch(Instant::now());
    let request = harness.worker.next_claim(Instant::now(), true).unwrap();
    assert_eq!(
        (request.share, request.held),
        (4, vec![(nine, 3)]),
        "what waits for its moment holds no slot"
    );
    for left in [2, 1] {
        let sent = harness.worker.sends.join_next().await.unwrap();
        harness.worker.on_sent(sent.ok());
        assert_eq!(harness.worker.held.get(&nine), Some(&left));
    }
    harness.worker.release_waiting(Instant::now());
    assert!(harness.worker.held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn slow_claims_ask_for_later_moments_until_claims_are_quick_again() {
    let mut lead = Lead::default();
    lead.note(19 * MS);
    assert_eq!(lead.get(), Duration::ZERO);
    lead.note(400 * MS);
    assert_eq!(lead.get(), 500 * MS);
    lead.note(MS);
    assert_eq!(lead.get(), Duration::from_micros(437_500));
    for _ in 0..30 {
        lead.note(MS);
    }
    assert_eq!(lead.get(), Duration::ZERO);
    lead.note(3_600_000 * MS);
    assert_eq!(lead.get(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn with_most_slots_taken_a_claim_waits_three_milliseconds_for_room() {
    let mut harness = harness(8, 8);
    up(&mut harness);
    harness.worker.next_claim(Instant::now(), true).unwrap();
    harness.worker.on_claimed(claimed((1..=7).map(delivery).collect()), Instant::now());
    harness.worker.dispatch(Instant::now());
    let begun = Instant::now();
    assert_eq!(harness.worker.next_claim(Instant::now(), true), None, "one slot of eight is free");
    tokio::time::sleep_until(harness.worker.next_timer(Instant::now())).await;
    harness.worker.on_timer(Instant::now());
    assert_eq!(harness.worker.next_claim(Instant::now(), true).unwrap().batch, 1);
    assert_eq!(begun.elapsed(), ROOM_WAIT);

    harness.worker.on_claimed(claimed(Vec::new()), Instant::now());
    for _ in 0..3 {
        let sent = harness.worker.sends.join_next().await.unwrap();
        harness.worker.on_sent(sent.ok());
    }
    harness.worker.on_wake(wake::Event::Work, Instant::now());
    let at_once = harness.worker.next_claim(Instant::now(), true);
    assert_eq!(at_once.unwrap().batch, 2, "half of four, which are worth a claim");
}

#[tokio::test(start_paused = true)]
async fn after_the_last_work_it_lingers_ten_milliseconds_before_it_sleeps() {
    let mut harness = harness(10, 5);
    up(&mut harness);
    let begun = Instant::now();
    harness.worker.next_claim(Instant::now(), true).unwrap();
    harness.worker.on_claimed(claimed(vec![delivery(1)]), Instant::now());
    let mut claims = 0;
    while *harness.mode.borrow() == Mode::Awake {
        if harness.worker.next_claim(Instant::now(), true).is_some() {
            claims += 1;
            harness.worker.on_claimed(claimed(Vec::new()), Instant::now());
        } else {
            tokio::time::sleep_until(harness.worker.next_timer(Instant::now())).await;
            harness.worker.on_timer(Instant::now());
        }
    }
    assert_eq!(*harness.mode.borrow(), Mode::Sleepy { found: true });
    assert!((10 * MS..=15 * MS).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!((4..=6).contains(&claims), "{claims}");

    harness.worker.on_wake(wake::Event::Work, Instant::now());
    harness.worker.next_claim(Instant::now(), true).unwrap();
    harness.worker.on_claimed(claimed(Vec::new()), Instant::now());
    assert_eq!(*harness.mode.borrow(), Mode::Sleepy { found: false }, "a claim in vain is not work");
}

#[tokio::test(start_paused = true)]
async fn a_paced_delivery_waits_without_a_slot_and_goes_before_the_others() {
    let mut harness = harness(1, 5);
    up(&mut harness);
    let mut paced = delivery(1);
    paced.send_at = Instant::now() + 100 * MS;
    harness.worker.on_claimed(claimed(vec![paced]), Instant::now());
    harness.worker.dispatch(Instant::now());
    assert_eq!((harness.worker.sends.len(), harness.worker.delayed.len()), (0, 1));
    assert_eq!(
        harness.worker.next_claim(Instant::now(), true).unwrap().batch,
        1,
        "its slot is free for others"
    );
    assert_eq!(harness.worker.next_timer(Instant::now()), Instant::now() + 100 * MS);
    tokio::time::advance(100 * MS).await;
    harness.worker.ready_to_send.push_back(delivery(2));
    harness.worker.dispatch(Instant::now());
    assert_eq!((harness.worker.sends.len(), harness.worker.delayed.len()), (1, 0));
    assert_eq!(harness.worker.ready_to_send.front().unwrap().ticket.delivery, Uuid::from_u128(2));
}

#[tokio::test(start_paused = true)]
async fn paced_deliveries_held_ahead_are_bounded() {
    let mut harness = harness(1000, 5);
    up(&mut harness);
    for n in 0..4 {
        let mut batch: Vec<_> = (0..5).map(|m| delivery(n * 5 + m)).collect();
        for delivery in &mut batch {
            delivery.send_at = Instant::now() + 1000 * MS;
        }
        harness.worker.on_claimed(claimed(batch), Instant::now());
    }
    assert_eq!(harness.worker.room(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_wake_connection_is_replaced_by_polling() {
    let mut harness = harness(10, 5);
    up(&mut harness);
    let begun = Instant::now();
    harness.worker.next_claim(begun, true).unwrap();
    harness.worker.on_claimed(claimed(Vec::new()), begun);
    for _ in 0..3 {
        tokio::time::sleep_until(harness.worker.next_timer(Instant::now())).await;
        harness.worker.on_timer(Instant::now());
        assert!(harness.worker.next_claim(Instant::now(), true).is_some());
        harness.worker.on_claimed(claimed(Vec::new()), Instant::now());
    }
    assert!(begun.elapsed() <= 3 * (1000 * MS + SILENCE_SLACK), "{:?}", begun.elapsed());
    harness.worker.on_wake(wake::Event::Beat, Instant::now());
    assert!(
        harness.worker.next_timer(Instant::now()) > Instant::now() + 1000 * MS,
        "a beat is as good as a poll"
    );
}

#[tokio::test(start_paused = true)]
async fn when_the_registration_is_lost_what_waits_is_given_back_unsent() {
    let mut harness = harness(1, 5);
    up(&mut harness);
    let mut paced = delivery(1);
    paced.send_at = Instant::now() + 100 * MS;
    harness.worker.on_claimed(claimed(vec![paced, delivery(2)]), Instant::now());
    harness.worker.on_registration(None, Instant::now());
    for _ in 0..2 {
        let finished = harness.results.recv().await.unwrap();
        assert!(matches!(finished.outcome, Outcome::Released));
    }
    harness.worker.dispatch(Instant::now());
    assert_eq!(harness.worker.sends.len(), 0);
    // A claim that comes in under the lost id is given back as well.
    harness.worker.on_claimed(claimed(vec![delivery(3)]), Instant::now());
    assert_eq!(harness.results.recv().await.unwrap().ticket.delivery, Uuid::from_u128(3));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_whose_lease_has_run_down_is_given_back_and_not_dialled() {
    let http = harness(1, 1).worker.http;
    let mut late = delivery(1);
    // Timeout 15 s and 5 s to settle in: 20 s must be left.
    assert!(may_dial(&late, late.lease_until - 20_000 * MS));
    assert!(!may_dial(&late, late.lease_until - 19_999 * MS));
    assert!(!may_dial(&late, late.lease_until + 1000 * MS));
    late.lease_until = Instant::now() + 19_999 * MS;
    assert!(matches!(
        deliver(http, Keys::new(KeyRing::default()), late, Instant::now()).await.outcome,
        Outcome::Released
    ));
}

#[tokio::test(start_paused = true)]
async fn a_paced_delivery_that_is_late_is_given_back_and_not_dialled() {
    let http = harness(1, 1).worker.http;
    let mut paced = delivery(1);
    paced.is_paced = true;
    assert!(!is_late(&paced, paced.send_at + 40 * MS));
    assert!(is_late(&paced, paced.send_at + 41 * MS));
    assert!(!is_late(&delivery(2), paced.send_at + 10_000 * MS), "what is not paced cannot be late");
    tokio::time::advance(41 * MS).await;
    assert!(matches!(
        deliver(http, Keys::new(KeyRing::default()), paced, Instant::now()).await.outcome,
        Outcome::Released
    ));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_gives_back_what_it_had_and_what_it_was_claiming() {
    let mut harness = harness(1, 5);
    up(&mut harness);
    let mut paced = delivery(1);
    paced.send_at = Instant::now() + 2000 * MS;
    harness.worker.on_claimed(claimed(vec![paced]), Instant::now());
    harness.worker.next_claim(Instant::now(), true).unwrap();
    assert!(harness.worker.next_timer(Instant::now()) <= Instant::now() + TURN, "it would notice");
    tokio::time::advance(600 * MS).await;
    harness.worker.on_claimed(claimed(vec![delivery(2)]), Instant::now());
    harness.worker.dispatch(Instant::now());
    for n in [2, 1] {
        let finished = harness.results.try_recv().unwrap();
        assert_eq!(finished.ticket.delivery, Uuid::from_u128(n));
        assert!(matches!(finished.outcome, Outcome::Released));
    }
    assert_eq!((harness.worker.sends.len(), harness.worker.waiting()), (0, 0));

    // The loop may turn before it sees what the claim has brought.
    harness.worker.next_claim(Instant::now(), true).unwrap();
    tokio::time::advance(600 * MS).await;
    harness.worker.dispatch(Instant::now());
    harness.worker.on_claimed(claimed(vec![delivery(4)]), Instant::now());
    assert!(matches!(harness.results.try_recv().unwrap().outcome, Outcome::Released));
    harness.worker.on_claimed(claimed(vec![delivery(5)]), Instant::now());
    assert_eq!(harness.worker.waiting(), 1, "the next one is as good as any");
    harness.worker.release_waiting(Instant::now());

    let dispatched = Instant::now();
    tokio::time::advance(600 * MS).await;
    let finished = deliver(harness.worker.http, Keys::new(KeyRing::default()), delivery(3), dispatched).await;
    assert!(matches!(finished.outcome, Outcome::Released), "it was stopped between the loop and the task");
}

#[tokio::test(start_paused = true)]
async fn results_that_cannot_be_settled_stop_the_claims() {
    let mut harness = harness(10, 5);
    up(&mut harness);
    for n in 0..2_010 {
        harness.worker.finish(Finished::released(delivery(n).ticket, Instant::now()));
    }
    assert_eq!(harness.worker.room(), 0);
    harness.worker.on_report(Report::Settled { count: 2_010 });
    assert_eq!(harness.worker.room(), 5);
}

#[tokio::test]
async fn a_panic_in_one_task_costs_its_delivery_an_attempt_and_leaves_the_slot() {
    let mut harness = harness(2, 10);
    up(&mut harness);
    let (bad, good) = (delivery(1).ticket, delivery(2).ticket);
    for ticket in [bad, good] {
        let sending = async move {
            assert_ne!(ticket, bad, "as a bug in the client would");
            Finished::released(ticket, Instant::now())
        };
        harness.worker.sends.spawn(or_fault(ticket, Instant::now(), sending));
    }
    while let Some(sent) = harness.worker.sends.join_next().await {
        harness.worker.on_sent(sent.ok());
    }
    let mut outcomes = [harness.results.try_recv().unwrap(), harness.results.try_recv().unwrap()];
    outcomes.sort_by_key(|finished| finished.ticket.delivery);
    assert!(
        matches!(&outcomes[0].outcome, Outcome::Unanswered(fault) if fault.class == ErrorClass::Internal),
        "{outcomes:?}"
    );
    assert!(matches!(outcomes[1].outcome, Outcome::Released));
    assert_eq!(harness.worker.free_slots(), 2);
}
