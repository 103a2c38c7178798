//! What arrives at the provider: the raw request, as a server sees it that is none of ours.

use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tollgate_testkit::{TestApp, Tune};
use uuid::Uuid;

/// A request as it arrived: the head's lines, the path first, and the body.
#[derive(Debug, Clone)]
struct Arrived {
    head: Vec<String>,
    body: Value,
}

/// A provider that keeps what it is sent. It reads no more of HTTP than our own requests need.
struct Recorder {
    url: String,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Recorder {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let arrived = Arc::default();
        let kept = Arc::clone(&arrived);
        let serving = TaskTracker::new().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                answer(stream, &kept).await;
            }
        });
        Self { url, arrived, _serving: AbortOnDropHandle::new(serving) }
    }
}

async fn answer(mut stream: TcpStream, kept: &Mutex<Vec<Arrived>>) {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        read.read_line(&mut line).await.unwrap();
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_lowercase());
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.unwrap();
    let reply = json!({
        "id": "r-1", "model": "m-2", "status": "completed",
        "choices": [{"message": {"role": "assistant", "content": "chat"}}],
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "response"}]}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "input_tokens": 5, "output_tokens": 6, "total_tokens": 7},
    })
    .to_string();
    kept.lock().unwrap().push(Arrived { head, body: serde_json::from_slice(&body).unwrap() });
    let reply = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{reply}",
        reply.len()
    );
    write.write_all(reply.as_bytes()).await.unwrap();
}

async fn submit(app: &TestApp, submission: &Value) -> Uuid {
    tollgate_outbound::install_crypto_provider();
    let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let request = http.post(format!("{}/v1/jobs/generations", app.api.url())).bearer_auth(&app.key);
    let reply = request.json(submission).send().await.unwrap();
    assert_eq!(reply.status(), 202, "{submission}");
    reply.json::<Value>().await.unwrap()["job_id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_submission_and_its_job_type_become_the_providers_request() {
    let provider = Recorder::start().await;
    let job_types = json!({
        "haiku": {
            "endpoint": "responses", "model": "m-own", "temperature": 0.9, "max_tokens": 50,
            "params": {"reasoning": {"effort": "low"}, "store": true},
        },
        "tuned": {"params": {"top_p": 0.5, "logit_bias": {"50256": -100}, "temperature": 1.9, "stream_options": {}}},
        "thinker": {"max_tokens": 9, "params": {"max_completion_tokens": 1}},
        "diary.entry": {"temperature": 0.1},
    })
    .to_string();
    let settings =
        [("OPENAI_BASE_URL", &*provider.url), ("JOB_TYPES", &*job_types), ("DEFAULT_MODEL", "m-default")];
    let app = TestApp::start(env!("CARGO_BIN_EXE_tollgate"), Tune::worker(&settings)).await;

    let hi = json!([{"role": "user", "content": "hi"}]);
    let talk = json!([
        {"role": "system", "content": "be \"brief\"\n"}, {"role": "user", "content": "☃?"},
        {"role": "assistant", "content": ""}, {"role": "developer", "content": "x"},
    ]);
    for (submission, path, expected) in [
        (
            json!({"prompt": "hi"}),
            "/v1/chat/completions",
            json!({"model": "m-default", "messages": hi, "stream": false}),
        ),
        (
            json!({"type": "kb.ingest", "prompt": "hi"}),
            "/v1/chat/completions",
            json!({"model": "m-default", "messages": hi, "stream": false, "temperature": 0.2}),
        ),
        (
            json!({"type": "kb.ingest", "prompt": "hi", "temperature": 0}),
            "/v1/chat/completions",
            json!({"model": "m-default", "messages": hi, "stream": false, "temperature": 0.0}),
        ),
        (
            json!({"type": "autopoietic.tick", "prompt": "hi"}),
            "/v1/chat/completions",
            json!({"model": "m-default", "messages": hi, "stream": false, "temperature": 0.5}),
        ),
        (
            // Declared anew, it is the declaration that holds.
            json!({"type": "diary.entry", "prompt": "hi"}),
            "/v1/chat/completions",
            json!({"model": "m-default", "messages": hi, "stream": false, "temperature": 0.1}),
        ),
        (
            json!({"type": "text", "model": "m-1", "messages": talk, "temperature": 1.25, "max_tokens": 77, "seed": -5,
                   "priority": 1, "max_attempts": 1, "timeout_ms": 5000, "metadata": {"secret": "ours"}}),
            "/v1/chat/completions",
            json!({"model": "m-1", "messages": talk, "stream": false, "temperature": 1.25, "max_tokens": 77, "seed": -5}),
        ),
        (
            json!({"type": "tuned", "prompt": "hi", "temperature": 0.3}),
            "/v1/chat/completions",
            json!({"model": "m-default", "messages": hi, "stream": false, "temperature": 0.3, "top_p": 0.5,
                   "logit_bias": {"50256": -100}}),
        ),
        (
            json!({"type": "thinker", "prompt": "hi"}),
            "/v1/chat/completions",
            json!({"model": "m-default", "messages": hi, "stream": false, "max_completion_tokens": 9}),
        ),
        (
            json!({"type": "haiku", "messages": talk, "seed": 3}),
            "/v1/responses",
            json!({"model": "m-own", "input": talk, "stream": false, "temperature": 0.9, "max_output_tokens": 50,
                   "reasoning": {"effort": "low"}, "store": true}),
        ),
        (
            json!({"type": "haiku", "prompt": "hi", "model": "m-1", "max_tokens": 10}),
            "/v1/responses",
            json!({"model": "m-1", "input": hi, "stream": false, "temperature": 0.9, "max_output_tokens": 10,
                   "reasoning": {"effort": "low"}, "store": true}),
        ),
    ] {
        let id = submit(&app, &submission).await;
        let job = app.ended(id).await;
        let calls: Vec<Arrived> = std::mem::take(&mut *provider.arrived.lock().unwrap());
        let [call] = calls.as_slice() else { panic!("{submission}: not one call, but {calls:?}") };
        assert_eq!(call.head[0], format!("post {path} http/1.1"), "{submission}");
        assert_eq!(call.body, expected, "{submission}");
        for line in ["authorization: bearer sk-test", &format!("x-client-request-id: {id}")] {
            assert!(call.head.iter().any(|header| header == line), "no {line} in {:?}", call.head);
        }

        let output = job.output.unwrap_or_else(|| panic!("{submission}: {:?}", job.error));
        let usage = (output.usage.prompt_tokens, output.usage.completion_tokens, output.usage.total_tokens);
        let said = if path.ends_with("responses") { ("response", (5, 6, 7)) } else { ("chat", (3, 4, 7)) };
        assert_eq!(
            (output.text.as_str(), usage, output.model.as_str()),
            (said.0, said.1, "m-2"),
            "{submission}"
        );
    }
}

#[tokio::test]
async fn without_a_providers_key_jobs_fail_at_once_and_nobody_is_called() {
    let app = TestApp::start(env!("CARGO_BIN_EXE_tollgate"), Tune::worker(&[("OPENAI_API_KEY", "")])).await;
    let id = app.submit("hello?").await;
    let job = app.ended(id).await;
    let error = job.error.unwrap();
    assert_eq!((job.status.as_str(), error.code.as_str(), job.attempts), ("failed", "SERVER_ERROR", 1));
    assert!(error.message.contains("OPENAI_API_KEY"), "it does not say what to do: {}", error.message);
    assert!(job.finished_at.unwrap() - job.created_at < TimeDelta::seconds(5), "it was not at once");
    assert!(job.output.is_none());

    let letters: Vec<(Uuid, String, i32, Value, DateTime<Utc>)> =
        sqlx::query_as("SELECT id, queue, attempts, reason, died_at FROM queue.dead_letters")
            .fetch_all(&app.owner)
            .await
            .unwrap();
    let [(dead, queue, attempts, reason, _)] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((dead, queue.as_str(), *attempts), (&id, "generation.create", 1));
    assert_eq!(reason["code"], "SERVER_ERROR");
    let tasks: i64 =
        sqlx::query_scalar("SELECT count(*) FROM queue.tasks").fetch_one(&app.owner).await.unwrap();
    assert_eq!(tasks, 0, "something is left that would try again");
    let stats = app.provider.stats();
    assert_eq!((stats.arrivals, stats.open_sockets), (0, 0), "the provider was called");
}
