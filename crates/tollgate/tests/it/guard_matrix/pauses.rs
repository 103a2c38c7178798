//! A provider that says for how long nobody may call.

use chrono::TimeDelta;
use serde_json::json;
use tollgate_sim::{Behaviour, Fault, RetryAfter, Step};

use super::CALLS_PER_JOB;
use super::fleet::{Fleet, NEWS, now};

/// So many that those who do not keep the pause are still at them when everybody knows of it.
const JOBS: usize = 80;

#[tokio::test]
async fn nobody_calls_before_the_end_however_the_provider_puts_it() {
    let slow = Behaviour { latency_median_ms: 100, ..Behaviour::default() };
    let fleet = Fleet::start(3, &json!({"pause_spread": "500ms"}), &[], slow).await;
    let refused = |after| Step::fault(Fault::RateLimit).retry_after(after);
    let none_left = |what: &str, reset: &str| {
        let header = |name: &str| format!("x-ratelimit-{name}-{what}");
        Step::ok().header(header("remaining"), "0").header(header("reset"), reset)
    };
    for (how, step, millis) in [
        ("429, Retry-After: 3", refused(RetryAfter::Seconds(3)), 3_000),
        // As exact as a date is.
        ("429, Retry-After: a date", refused(RetryAfter::Date(3)), 2_000),
        ("429, retry-after-ms", refused(RetryAfter::Missing).header("retry-after-ms", "1500"), 1_500),
        ("no requests left", none_left("requests", "1.5s"), 1_500),
        ("no tokens left", none_left("tokens", "1s500ms"), 1_500),
        (
            "503 slow_down, Retry-After: 2",
            Step::fault(Fault::SlowDown).status(503).retry_after(RetryAfter::Seconds(2)),
            2_000,
        ),
    ] {
        let began = now();
        let before = fleet.stats().arrivals;
        fleet.app.provider.script([Step::ok().times(10), step]).unwrap();
        fleet.submit(JOBS).await;
        let until = fleet.pause(began).await;
        let asked = until - TimeDelta::milliseconds(millis);
        let at_the_end = fleet.look("the first call after it", until, |look| look.at > until).await;
        let stock = fleet.stock().await;
        let (on_their_way, late) = (fleet.arrivals(asked, asked + NEWS), fleet.arrivals(asked + NEWS, until));
        let calls = fleet.stats().arrivals - before;
        println!(
            "{how}: {late} calls in {millis} ms of pause ({on_their_way} on their way), the next {} ms after it, \
             {calls} calls for {JOBS} jobs, {} lost, {} attempts by waiting, {} handed back",
            (at_the_end - until).num_milliseconds(),
            stock.failed,
            stock.burnt,
            stock.handed_back,
        );
        assert_eq!((late, stock.failed, stock.burnt), (0, 0, 0), "{how}");
        assert!((at_the_end - until).num_milliseconds() < 1500, "{how}: {}", at_the_end - until);
        assert!(calls as f64 <= JOBS as f64 * CALLS_PER_JOB, "{how}: {calls} calls");
    }
    assert!(fleet.states().is_empty(), "a pause is no outage: {:?}", fleet.states());
}
