//! Bad requests: keys, ids, cursors, parameters, routes, methods and headers that are not as they should be.
//!
//! Every refusal is checked as a whole: status, code, the six members of its document, the request's id. After each
//! table the server is still ready, holds no job it should not, and has logged neither an error nor a panic.

use std::time::Duration;

use crate::watched::{REQUEST_ID, SUBMIT, Watched, invalid, refused};
use reqwest::Method;
use reqwest::header::{ACCEPT, ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tollgate_domain::ids;
use tollgate_model::key::Scope;

impl Watched {
    /// Sends bytes as they are and reads until the server closes. A server may answer before it has read everything,
    /// so what cannot be written any more is no failure.
    async fn raw(&self, parts: &[&[u8]]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap();
        let _ = stream.write_all(&parts.concat()).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(read.is_ok(), "the connection stayed open after {answer:?}");
        (answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), answer)
    }
}

#[tokio::test]
async fn whoever_has_no_right_is_told_so() {
    let api = Watched::start().await;
    let key = api.app.key.clone();
    let (revoked_id, revoked) = api.app.key_with(&Scope::ALL).await;
    let revoke = api.request(Method::DELETE, &format!("/v1/api-keys/{revoked_id}")).send().await.unwrap();
    assert_eq!(revoke.status(), 200);
    let (_, reader) = api.app.key_with(&[Scope::JobsRead, Scope::KeysWrite]).await;
    // A sound form and checksum, but nobody's.
    let strangers = tollgate_model::key::ApiKey::from_entropy(&[7; 44]).expose().to_owned();
    let typo = format!("{}{}", &key[..key.len() - 1], if key.ends_with('a') { 'b' } else { 'a' });

    let submit = |header: HeaderName, value: &[u8]| {
        api.bare(Method::POST, SUBMIT)
            .header(header, HeaderValue::from_bytes(value).unwrap())
            .header(CONTENT_TYPE, "application/json")
            // A bad key is the first thing to be said, not the bad body.
            .body("{")
    };
    let own = HeaderName::from_static("x-api-key");
    for (header, value) in [
        (&AUTHORIZATION, String::new()),
        (&AUTHORIZATION, "Bearer".into()),
        (&AUTHORIZATION, "Bearer ".into()),
        (&AUTHORIZATION, key.clone()),
        (&AUTHORIZATION, format!("Basic {key}")),
        (&AUTHORIZATION, format!("Token {key}")),
        (&AUTHORIZATION, format!("Bearer {key} {key}")),
        (&AUTHORIZATION, format!("Bearer {key}x")),
        (&AUTHORIZATION, format!("Bearer \"{key}\"")),
        (&AUTHORIZATION, format!("Bearer {}", key.to_uppercase())),
        (&AUTHORIZATION, "Bearer sk_live_".into()),
        (&AUTHORIZATION, format!("Bearer {}", "x".repeat(8000))),
        (&AUTHORIZATION, format!("Bearer {typo}")),
        (&AUTHORIZATION, format!("Bearer {strangers}")),
        (&AUTHORIZATION, format!("Bearer {revoked}")),
        (&AUTHORIZATION, "Bearer k\u{e9}y".into()),
        (&own, format!("Bearer {key}")),
        (&own, String::new()),
        (&own, revoked.clone()),
    ] {
        let reply = submit(header.clone(), value.as_bytes()).send().await.unwrap();
        assert_eq!(reply.headers()["www-authenticate"], "Bearer realm=\"tollgate\"");
        let detail = refused(&value, reply, 401, "unauthorized").await;
        assert!(!detail.contains(&key[8..]) && !detail.contains(&revoked[8..]), "{detail}");
    }
    let reply = api.bare(Method::POST, SUBMIT).send().await.unwrap();
    refused("no key", reply, 401, "unauthorized").await;
    let reply = submit(AUTHORIZATION, format!("Bearer {reader}").as_bytes()).send().await.unwrap();
    let detail = refused("no scope", reply, 403, "forbidden_scope").await;
    assert!(detail.contains("`jobs:write`"), "{detail}");
    api.assert_unharmed(0).await;
}

#[tokio::test]
async fn anothers_job_is_no_job() {
    let api = Watched::start().await;
    let job = api.app.submit("mine").await;
    let (_, other) = api.app.open_account().await;
    let unknown = ids::new_id().to_string();
    let mut details = std::collections::BTreeSet::new();
    for (method, tail) in [(Method::GET, ""), (Method::GET, "/events"), (Method::POST, "/cancel")] {
        let odd = ["1", "%ff", "%00", "%zz", "..%2f", "-", "null", "0x0", &unknown[..35]];
        for id in [&job.to_string(), &unknown].into_iter().map(String::as_str).chain(odd) {
            for accept in ["application/json", "text/event-stream"] {
                let path = format!("/v1/jobs/{id}{tail}");
                let request = api.bare(method.clone(), &path).bearer_auth(&other).header(ACCEPT, accept);
                details.insert(refused(&path, request.send().await.unwrap(), 404, "not_found").await);
            }
        }
    }
    assert_eq!(details.into_iter().collect::<Vec<_>>(), ["no such job"], "the answers differ");
    // It is there all the same, and what the other account did has not touched it.
    let shown = api.request(Method::GET, &format!("/v1/jobs/{job}")).send().await.unwrap();
    assert_eq!(shown.json::<Value>().await.unwrap()["status"], "queued");
    api.assert_unharmed(1).await;
}

#[tokio::test]
async fn bad_queries_are_refused_by_parameter() {
    let api = Watched::start().await;
    for name in ["one", "two"] {
        let body = json!({"scopes": ["jobs:read"], "name": name}).to_string();
        assert_eq!(api.post("/v1/api-keys", body).send().await.unwrap().status(), 201);
    }
    let (job, other) = (ids::new_id(), ids::new_id());
    let page =
        api.request(Method::GET, "/v1/api-keys?limit=1").send().await.unwrap().json::<Value>().await.unwrap();
    let of_keys = page["next_cursor"].as_str().unwrap();
    let of_events = tollgate_model::cursor::encode(&format!("jobs/{other}/events"), &1);
    let of_jobs = tollgate_model::cursor::encode("jobs", &job);
    let no_place = tollgate_model::cursor::encode("jobs", &"DROP TABLE");
    let events = format!("/v1/jobs/{job}/events");
    for (path, query, says) in [
        ("/v1/jobs", "limit=0", "limit"),
        ("/v1/jobs", "limit=101", "limit"),
        ("/v1/jobs", "limit=-1", "limit"),
        ("/v1/jobs", "limit=abc", "limit"),
        ("/v1/jobs", "limit=", "limit"),
        ("/v1/jobs", "limit=1.0", "limit"),
        ("/v1/jobs", "limit=%ff", "limit"),
        ("/v1/jobs", "limit=99999999999999999999", "limit"),
        ("/v1/jobs", "limit=1&limit=2", "limit"),
        ("/v1/jobs", "status=done", "status"),
        ("/v1/jobs", "status=", "status"),
        ("/v1/jobs", "status=Queued", "status"),
        ("/v1/jobs", "status=queued%00", "status"),
        ("/v1/jobs", "colour=red", "`colour`"),
        ("/v1/jobs", "limit[]=1", "`limit[]`"),
        ("/v1/jobs", "%", "`%`"),
        ("/v1/jobs", "cursor=", "cursor"),
        ("/v1/jobs", "cursor=junk", "cursor"),
        ("/v1/jobs", "cursor=%00", "cursor"),
        ("/v1/jobs", &format!("cursor={}", "A".repeat(5000)), "cursor"),
        ("/v1/jobs", &format!("cursor={of_keys}"), "cursor"),
        ("/v1/jobs", &format!("cursor={of_events}"), "cursor"),
        ("/v1/jobs", &format!("cursor={no_place}"), "cursor"),
        ("/v1/jobs", &format!("cursor={}", &of_jobs[1..]), "cursor"),
        ("/v1/api-keys", "limit=0", "limit"),
        ("/v1/api-keys", "status=queued", "`status`"),
        ("/v1/api-keys", &format!("cursor={of_jobs}"), "cursor"),
        (&events, "limit=101", "limit"),
        (&events, "after=1", "`after`"),
        (&events, &format!("cursor={of_jobs}"), "cursor"),
        (&events, &format!("cursor={of_events}"), "cursor"),
    ] {
        let path = format!("{path}?{query}");
        invalid(&path, api.request(Method::GET, &path).send().await.unwrap(), says).await;
    }
    for last in ["-1", "x", "1.5", "99999999999"] {
        let request = api.request(Method::GET, &events).header(ACCEPT, "text/event-stream");
        invalid(last, request.header("last-event-id", last).send().await.unwrap(), "`Last-Event-ID`").await;
    }
    api.assert_unharmed(0).await;
}

#[tokio::test]
async fn routes_and_methods_that_are_not() {
    let api = Watched::start().await;
    let long = format!("/v1/jobs/{}", "x".repeat(60_000));
    for path in
        ["/", "/v1", "/v1/", "/v1/job", "/v1/jobs/", "/V1/jobs", "//v1/jobs", "/v1/jobs/a/b/c", "/%", "/%ff"]
    {
        let detail =
            refused(path, api.request(Method::GET, path).send().await.unwrap(), 404, "not_found").await;
        assert!(detail.contains("/openapi.json"), "{path}: {detail}");
    }
    refused("long", api.request(Method::GET, &long).send().await.unwrap(), 404, "not_found").await;
    for (method, path, allow) in [
        ("PUT", "/v1/jobs", "GET,HEAD"),
        ("GET", SUBMIT, "POST"),
        ("OPTIONS", "/v1/jobs", "GET,HEAD"),
        ("DELETE", "/v1/api-keys", "GET,HEAD,POST"),
        ("PATCH", "/v1/api-keys/x", "DELETE"),
        ("POST", "/healthz", "GET,HEAD"),
        ("BREW", "/v1/jobs/x/cancel", "POST"),
    ] {
        let what = format!("{method} {path}");
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let reply = api.request(method, path).send().await.unwrap();
        let mut allowed: Vec<_> =
            reply.headers()[ALLOW].to_str().unwrap().split(',').map(str::to_owned).collect();
        allowed.sort();
        assert_eq!(allowed.join(","), allow, "{what}");
        refused(&what, reply, 405, "method_not_allowed").await;
    }
    let head = api.request(Method::HEAD, "/v1/nothing").send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), head.headers()[CONTENT_TYPE].as_bytes()),
        (404, &b"application/problem+json"[..])
    );
    assert_eq!(api.request(Method::HEAD, "/v1/jobs").send().await.unwrap().status(), 200);
    api.assert_unharmed(0).await;
}

#[tokio::test]
async fn odd_headers_change_nothing() {
    let api = Watched::start().await;
    for accept in ["text/html", "*/*;q=0", "application/xml", ";;,,==", &"x/y,".repeat(2000), "k\u{e9}"] {
        let value = HeaderValue::from_bytes(accept.as_bytes()).unwrap();
        let reply = api.request(Method::GET, "/v1/jobs").header(ACCEPT, value).send().await.unwrap();
        assert_eq!(reply.status(), 200, "{accept}");
    }
    for (id, kept) in [
        ("mine-1.A_b", true),
        (&*"x".repeat(64), true),
        (&*"x".repeat(65), false),
        (&*"x".repeat(9000), false),
        ("", false),
        ("a b", false),
        ("a\tb", false),
        ("a\"b", false),
        ("a;b", false),
        ("\u{e9}", false),
    ] {
        let value = HeaderValue::from_bytes(id.as_bytes()).unwrap();
        let reply = api.request(Method::GET, "/v1/nothing").header(REQUEST_ID, value).send().await.unwrap();
        let given = reply.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        assert_eq!(given == id, kept, "{id} became {given}");
        assert!(kept || given.parse::<uuid::Uuid>().is_ok(), "{id} became {given}");
        refused(id, reply, 404, "not_found").await;
    }
    // What is no HTTP never reaches the routes: the server refuses it in its own words, and closes.
    let bearer = format!("Authorization: Bearer {}", api.app.key);
    let long = "x".repeat(200_000);
    for head in [
        format!("GET /v1/jobs HTTP/1.1\r\nX-Request-Id: a\u{1}b\r\n{bearer}"),
        format!("GET /v1/jobs HTTP/1.1\r\nX-Request-Id: a\0b\r\n{bearer}"),
        format!("GET /v1/jobs/\u{e9} HTTP/1.1\r\n{bearer}"),
        format!("GET /v1/jobs HTTP/1.1\r\nContent-Length: many\r\n{bearer}"),
        format!("POST {SUBMIT} HTTP/1.1\r\nTransfer-Encoding: gzip\r\n{bearer}"),
        format!("GET /{long} HTTP/1.1\r\n{bearer}"),
        format!("GET /v1/jobs HTTP/1.1\r\nX: {long}\r\n{bearer}"),
        "GET /v1/jobs HTTP/9.9".to_owned(),
        "\u{16}\u{3}\u{1}".to_owned(),
    ] {
        let (status, answer) = api.raw(&[head.as_bytes(), b"\r\nConnection: close\r\n\r\n"]).await;
        let what = head.chars().take(60).collect::<String>();
        assert!((400..500).contains(&status), "{what}: {answer}");
    }
    api.assert_unharmed(0).await;
}
