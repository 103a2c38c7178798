//! Random input: mutations of a sound submission, of its bytes, and of whole requests.
//!
//! Whatever comes, the answer is one of those that the contract knows, never a 5xx; each job that was promised
//! exists, and no other. The seed is fixed, so that a failure comes back; `FUZZ_ROUNDS` asks for more rounds.

use std::collections::BTreeSet;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Map, Value, json};
use tollgate_testkit::{TestApp, Tune};

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

fn sound() -> Value {
    json!({
        "type": "kb.ingest", "model": "m-1", "temperature": 0.5, "max_tokens": 64, "seed": 7, "priority": 5,
        "max_attempts": 3, "scheduled_at": "2026-01-01T00:00:00Z", "timeout_ms": 1000,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}],
        "metadata": {"a": {"b": [1, 2.5, null, true, "c"]}},
    })
}

/// Values that have broken somebody's server.
fn nasty(random: &mut Random) -> Value {
    let deep = (0..random.below(140)).fold(json!(0), |inner, _| json!([inner]));
    let all = [
        json!(null),
        json!(true),
        json!(""),
        json!(" "),
        json!("\u{0}"),
        json!("\u{feff}\u{202e}\u{fffd}\u{10ffff}"),
        json!("'; DROP TABLE app.jobs; --"),
        json!("%s%n{}\\u0000"),
        json!("x".repeat(20_000)),
        json!(0),
        json!(-1),
        json!(-0.0),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(f64::MAX),
        json!(f64::MIN_POSITIVE),
        json!(5e-324),
        json!("-262143-01-01T00:00:00Z"),
        json!("+262142-12-31T23:59:59.999999999Z"),
        json!("2027-01-01T00:00:60Z"),
        json!("0000-00-00T00:00:00Z"),
        json!([]),
        json!({}),
        json!({"": ""}),
        deep,
    ];
    random.pick(&all).clone()
}

/// Replaces, adds, renames or removes something, somewhere.
fn mutate(value: &mut Value, random: &mut Random) {
    let descend = random.below(3) > 0;
    match value {
        Value::Object(map) if descend && !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = random.pick(&keys).clone();
            match random.below(8) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(key + "\u{0}", json!(1))),
                2 => drop(map.insert(nasty(random).to_string(), nasty(random))),
                3 => {
                    let moved = map.remove(&key).unwrap_or_default();
                    map.insert(key.to_uppercase(), moved);
                }
                _ => mutate(map.entry(key).or_insert(Value::Null), random),
            }
        }
        Value::Array(items) if descend && !items.is_empty() => {
            let at = random.below(items.len());
            match random.below(4) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                _ => mutate(&mut items[at], random),
            }
        }
        other => {
            *other = match random.below(6) {
                0 => json!([other]),
                1 => Value::Object(Map::from_iter([("a".to_owned(), other.take())])),
                _ => nasty(random),
            };
        }
    }
}

/// Flips, inserts, removes and repeats bytes.
fn garble(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, *random.pick(b"{}[]\",:\\0-.eE\0\xff\xc3u \n")),
            2 => drop(bytes.drain(at..(at + random.below(9)).min(bytes.len()))),
            3 => {
                let end = (at + random.below(40)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
}

struct Fuzzer {
    app: TestApp,
    http: Client,
    random: Random,
}

impl Fuzzer {
    fn submission(&mut self) -> Vec<u8> {
        let mut value = sound();
        for _ in 0..=self.random.below(2) {
            mutate(&mut value, &mut self.random);
        }
        let mut bytes = value.to_string().into_bytes();
        if self.random.below(3) == 0 {
            garble(&mut bytes, &mut self.random);
        }
        bytes
    }

    /// A submission that is wrong in any way, or not at all; and what to say of it if it is answered wrongly.
    fn submit(&mut self) -> (RequestBuilder, String) {
        let body = self.submission();
        let shown = String::from_utf8_lossy(&body).chars().take(2000).collect();
        let request = self.http.post(format!("{}/v1/jobs/generations", self.app.api.url()));
        let request = request.bearer_auth(&self.app.key).header(CONTENT_TYPE, "application/json");
        (request.body(body), shown)
    }

    /// Any method, path, query, key and headers.
    fn wander(&mut self) -> (RequestBuilder, String) {
        let random = &mut self.random;
        let methods = ["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "FROB"];
        let segments = [
            "v1",
            "jobs",
            "api-keys",
            "events",
            "cancel",
            "%ff",
            "%00",
            "",
            "01a20172-238e-7302-99f4-bb409651c11f",
        ];
        let mut path = random
            .pick(&["/v1/jobs", "/v1/api-keys", "", "/v1/jobs/01a20172-238e-7302-99f4-bb409651c11f"])
            .to_string();
        for _ in 0..random.below(3) {
            path = format!("{path}/{}", random.pick(&segments));
        }
        let queries = [
            "",
            "?limit=5",
            "?limit=-5",
            "?status=failed",
            "?cursor=e30",
            "?cursor=%00",
            "?a=b&a=c",
            "?%ff=%fe&&=",
        ];
        path += random.pick::<&str>(&queries);
        let method = Method::from_bytes(random.pick(&methods).as_bytes()).unwrap();
        let shown = format!("{method} {path}");
        let mut request = self.http.request(method, format!("{}{path}", self.app.api.url()));
        // Mostly the right key: the others get no further than the door.
        let own = &*self.app.key;
        let key = *random.pick(&[own, own, own, own, own, "", "sk_live_", "\u{e9}"]);
        request = request
            .header("authorization", HeaderValue::from_bytes(format!("Bearer {key}").as_bytes()).unwrap());
        for name in ["accept", "content-type", "last-event-id", "x-request-id"] {
            if random.below(3) == 0 {
                let values =
                    ["text/event-stream", "application/json", "7", "", "*/*", "\u{e9}", ";q=\"", "-1"];
                request =
                    request.header(name, HeaderValue::from_bytes(random.pick(&values).as_bytes()).unwrap());
            }
        }
        if random.below(2) == 0 {
            request = request.body(self.submission());
        }
        (request, shown)
    }
}

#[tokio::test]
async fn nothing_that_comes_brings_it_down() {
    tollgate_outbound::install_crypto_provider();
    let app = TestApp::start(env!("CARGO_BIN_EXE_tollgate"), Tune::default()).await;
    let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let mut fuzzer = Fuzzer { app, http, random: Random(2026) };
    let rounds = std::env::var("FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(800);
    let mut promised = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for round in 0..rounds {
        let (request, shown) = if round % 4 == 0 { fuzzer.wander() } else { fuzzer.submit() };
        let reply = request.send().await.unwrap_or_else(|error| panic!("round {round}: {error:?}: {shown}"));
        let status = reply.status().as_u16();
        let known = matches!(status, 200 | 202 | 400 | 401 | 403 | 404 | 405 | 413);
        let body = reply.text().await.unwrap();
        assert!(known, "round {round}: {status} {body}: {shown}");
        seen.insert(status);
        if status == 202 {
            let body: Value = serde_json::from_str(&body).unwrap();
            promised.insert(body["job_id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap());
        }
    }
    // Otherwise it tested nothing.
    assert!([200, 202, 400, 401, 404, 405].iter().all(|status| seen.contains(status)), "only {seen:?}");
    let stored: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT id FROM app.jobs").fetch_all(&fuzzer.app.owner).await.unwrap();
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), promised);

    // Each can be read: alone, and in a list.
    let client = fuzzer.app.client();
    for id in &promised {
        assert_eq!(client.job(*id).await.unwrap().id, *id);
    }
    let (mut listed, mut cursor) = (BTreeSet::new(), None);
    loop {
        let page = client.jobs(None, 100, cursor.as_deref()).await.unwrap();
        listed.extend(page.data.iter().map(|job| job.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(listed, promised);
    let ready = fuzzer.http.get(format!("{}/readyz", fuzzer.app.api.url())).send().await.unwrap();
    assert_eq!(ready.status(), 200);
}
