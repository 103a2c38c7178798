//! What operators, dashboards and clients see of a guard while it happens.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tollgate_sim::{Behaviour, Faults};
use tollgate_testkit::eventually;

use crate::guard_matrix::fleet::{Fleet, now};
use crate::operators::{Operator, command};

/// The text class, as the API shows it to operators.
async fn health(api: &Operator) -> Value {
    let page = api.get("/internal/gen-health").await;
    let classes: Vec<_> =
        page["data"].as_array().unwrap().iter().map(|class| class["class"].clone()).collect();
    assert_eq!(classes, [json!("text"), json!("image")]);
    assert_eq!(
        (&page["data"][1]["circuit"]["state"], &page["data"][1]["budget"]["capacity"]),
        (&json!("closed"), &json!(5))
    );
    page["data"][0].clone()
}

/// The breaker, as a tenant's client sees it: once that is `state`.
async fn breaker(fleet: &Fleet, state: &str) -> Value {
    let api = Operator::of(&fleet.app).with(&fleet.app.key);
    eventually(state, Duration::from_secs(5), || async {
        let status: Value = api.send(Method::GET, "/api/ai/status", None).await.json().await.unwrap();
        let breaker = status["breaker"].clone();
        (breaker["state"] == state).then_some(breaker)
    })
    .await
}

/// A series of a worker's metrics, once it is as wished.
async fn metric(fleet: &Fleet, series: &str, wish: impl Fn(f64) -> bool) -> f64 {
    tollgate_outbound::install_crypto_provider();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let url = format!("{}/metrics", fleet.app.workers[0].url());
    eventually(series, Duration::from_secs(10), || async {
        let page = http.get(&url).send().await.unwrap().text().await.unwrap();
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.filter(|value| wish(*value))
    })
    .await
}

fn is_one(value: f64) -> bool {
    (value - 1.0).abs() < f64::EPSILON
}

#[tokio::test]
async fn circuit_window_and_metrics_are_right_while_it_happens() {
    let hanging = Behaviour { faults: Faults { hang: 1.0, ..Faults::default() }, ..Behaviour::default() };
    let figures = json!({
        "timeout_floor": "3s", "timeout_initial": "3s", "timeout_ceiling": "3s", "open_period": "7s", "open_period_cap": "7s",
    });
    let fleet = Fleet::start(1, &figures, &[], hanging).await;
    let api = Operator::of(&fleet.app);
    let idle = health(&api).await;
    assert_eq!((&idle["circuit"]["state"], &idle["gen_timeout_rate_15m"]), (&json!("closed"), &Value::Null));
    assert_eq!(breaker(&fleet, "closed").await, json!({"state": "closed", "failures": 0, "openedAt": null}));

    let start = now();
    fleet.submit(12).await;
    eventually("calls in flight are reported", Duration::from_secs(5), || async {
        (health(&api).await["in_flight"] == 2).then_some(())
    })
    .await;
    let opened = fleet.becomes("open", start).await;
    // The other call in flight ends as well, and is told of.
    let open = eventually("nothing is in flight", Duration::from_secs(5), || async {
        Some(health(&api).await).filter(|class| class["in_flight"] == 0)
    })
    .await;
    let circuit = &open["circuit"];
    let calls = fleet.stats().arrivals;
    assert_eq!(
        (&circuit["state"], &circuit["trips"], &circuit["enabled"]),
        (&json!("open"), &json!(1), &json!(true))
    );
    assert_eq!(
        circuit["opened_at"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap(),
        opened
    );
    let until = circuit["until"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert_eq!((until - opened).num_milliseconds(), 7000);
    assert!(circuit["timeouts_in_a_row"].as_u64().unwrap() >= 3, "{open}");
    assert_eq!((&open["window"]["deadline"], &open["window"]["success"]), (&circuit["attempts"], &json!(0)));
    assert_eq!((&open["gen_timeout_rate_15m"], &open["timeouts"]["initial_ms"]), (&json!(1.0), &json!(3000)));
    assert_eq!(open["budget"]["capacity"], Value::Null);

    // The shell says the same, and the client what concerns it.
    let (code, status, said) = command(&fleet.app, "guard status").await;
    assert_eq!(code, 0, "{said}");
    let same = |field: &str| assert_eq!(status["data"][0]["circuit"][field], circuit[field], "{field}");
    ["state", "since", "opened_at", "until", "failures", "trips"].into_iter().for_each(same);
    let (_, text, _) = fleet.app.command(&["guard", "status"]).await;
    assert!(
        text.contains("text: open since ") && text.contains("budget: 5 of 5, 1 more every 60s"),
        "{text}"
    );
    let seen = breaker(&fleet, "open").await;
    assert_eq!((&seen["failures"], &seen["openedAt"]), (&circuit["failures"], &circuit["opened_at"]));
    metric(&fleet, "tollgate_guard_state{class=\"text\",state=\"open\"}", is_one).await;
    metric(&fleet, "tollgate_gen_timeout_rate_15m{class=\"text\"}", is_one).await;
    let shown = metric(&fleet, "tollgate_breaker_open_time_daily{class=\"text\"}", |value| value > 0.0).await;
    assert!(shown <= (now() - opened).num_milliseconds() as f64, "open for {shown} ms already");

    fleet.provider_is(Behaviour { latency_median_ms: 700, ..Behaviour::default() });
    fleet.becomes("half_open", opened).await;
    fleet.look("a probe", opened, |look| look.arrivals > calls).await;
    let half_open = health(&api).await;
    assert_eq!(half_open["circuit"]["state"], "half-open");
    assert_eq!(
        (&half_open["circuit"]["probing"], &half_open["circuit"]["opened_at"]),
        (&json!(true), &circuit["opened_at"])
    );
    assert_eq!(breaker(&fleet, "half-open").await["openedAt"], circuit["opened_at"]);

    fleet.becomes("closed", opened).await;
    let stock = fleet.stock().await;
    let closed = health(&api).await;
    assert_eq!(
        (&closed["circuit"]["state"], &closed["circuit"]["opened_at"]),
        (&json!("closed"), &Value::Null)
    );
    assert_eq!(breaker(&fleet, "closed").await["openedAt"], Value::Null);
    // The open time is that of the open period, to the moment at which a probe was due.
    let shown =
        metric(&fleet, "tollgate_breaker_open_time_daily{class=\"text\"}", |value| value >= 7000.0).await;
    assert!(shown < 7100.0, "{shown}");
    #[expect(clippy::cast_precision_loss, reason = "a few calls")]
    let rate = calls as f64 / stock.calls as f64;
    let is_rate = |value: f64| (value - rate).abs() < 0.001;
    eventually(&format!("a rate of {rate}"), Duration::from_secs(5), || async {
        let shown = health(&api).await["gen_timeout_rate_15m"].as_f64().unwrap();
        is_rate(shown).then_some(())
    })
    .await;
    metric(&fleet, "tollgate_gen_timeout_rate_15m{class=\"text\"}", is_rate).await;
    metric(&fleet, "tollgate_guard_state{class=\"text\",state=\"closed\"}", is_one).await;
    println!("status: {calls} timeouts of {} calls, a rate of {rate:.3}; open for {shown} ms", stock.calls);
}
