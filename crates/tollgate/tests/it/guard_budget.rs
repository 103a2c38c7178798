//! The budget of image calls: a fleet's workers share it exactly, and nobody else waits for it.

use chrono::TimeDelta;
use serde_json::json;

use crate::guard_matrix::fleet::{Fleet, now, pause, quick, submit};
use crate::guard_matrix::well;

/// Calls that may begin at once, and how long until one more may.
const CAPACITY: u64 = 5;
const REFILL: TimeDelta = TimeDelta::milliseconds(1000);

const JOBS: usize = 12;

#[tokio::test]
async fn five_images_begin_at_once_and_the_others_one_by_one() {
    let guard = json!({"text": quick(&json!({})), "image": {
        "bucket_capacity": CAPACITY, "bucket_refill": 1, "bucket_refill_per": format!("{}ms", REFILL.num_milliseconds()),
    }});
    let app = Fleet::app(2, &guard, &[], well()).await;
    let control = app.0.provider.clone();
    let fleet = Fleet::watch(app, control, Some("image"));
    // Workers that had nothing to do must not hold what the bucket then refills.
    pause(2500).await;
    let start = now();
    submit(&fleet.app, "image", JOBS).await;
    let first = fleet.look("the first call", start, |look| look.arrivals > 0).await;
    let fifth = fleet.look("the fifth", start, |look| look.arrivals >= CAPACITY).await;

    // A line of words beside it: nobody there waits.
    let texts = fleet.submit(20).await;
    let mut slowest = TimeDelta::zero();
    for id in texts {
        let job = fleet.app.ended(id).await;
        slowest = slowest.max(job.started_at.unwrap() - job.scheduled_at);
    }
    let stock = fleet.stock().await;
    let began = "SELECT started_at FROM app.jobs WHERE type = 'image' ORDER BY started_at";
    let began: Vec<chrono::DateTime<chrono::Utc>> =
        sqlx::query_scalar(began).fetch_all(&fleet.app.owner).await.unwrap();
    let after: Vec<i64> = began.iter().map(|at| (*at - began[0]).num_milliseconds()).collect();
    println!(
        "image budget of {CAPACITY}, one more each {} ms: calls began after {after:?} ms; {} attempts by waiting; a text \
         waited for {} ms at most",
        REFILL.num_milliseconds(),
        stock.burnt,
        slowest.num_milliseconds(),
    );
    assert!((fifth - first).num_milliseconds() < 900, "five at once: {}", fifth - first);
    assert_eq!((stock.calls, stock.failed, stock.burnt), (JOBS as u64 + 20, 0, 0));
    assert!(slowest.num_milliseconds() < 900, "a text waited for {slowest}");
    // The bucket was full until the first leave was taken, a moment before the first call.
    for (nr, after) in after.iter().enumerate().skip(5) {
        let refills = i64::try_from(nr).unwrap() - 4;
        let due = refills * REFILL.num_milliseconds();
        assert!(*after > due - 250, "call {nr} after {after} ms: {refills} refills are not over");
        assert!(*after < due + 900, "call {nr} after {after} ms: {refills} refills were over long since");
    }
}
