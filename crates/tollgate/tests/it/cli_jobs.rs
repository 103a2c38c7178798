//! `tollgate job …`: what it prints for people and for machines, and what its exit code says.

use std::io::Write as _;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tollgate_domain::ids;
use tollgate_sim::{Fault, Step};
use tollgate_testkit::{Process, TestApp, Tune};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// Runs `tollgate job`, which must succeed in silence on stderr; returns its stdout.
async fn job(app: &TestApp, arguments: &[&str]) -> String {
    let (code, out, err) = app.command(&[&["job"], arguments].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}: {out}");
    out
}

/// The same with `--json`: each line of stdout.
async fn job_json(app: &TestApp, arguments: &[&str]) -> Vec<Value> {
    let out = job(app, &[arguments, &["--json"]].concat()).await;
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn a_job_from_the_shell() {
    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    let submitted =
        &job_json(&app, &["submit", "--prompt", "why a tollgate?", "--type", "kb.ingest", "--priority", "2"])
            .await[0];
    let id = submitted["job_id"].as_str().unwrap();
    assert_eq!(submitted, &json!({"job_id": id}));

    // Watching prints every event, then the job.
    let lines = job_json(&app, &["watch", id]).await;
    let kinds: Vec<_> =
        lines[..lines.len() - 1].iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["job.queued", "job.started", "job.completed"]);
    let shown = &job_json(&app, &["show", id]).await[0];
    assert_eq!(lines.last(), Some(shown));
    assert_eq!(
        [&shown["id"], &shown["status"], &shown["type"], &shown["priority"]],
        [&json!(id), &json!("succeeded"), &json!("kb.ingest"), &json!(2)]
    );

    let text = job(&app, &["show", id]).await;
    for part in [id, "succeeded", "kb.ingest", "gpt-4o-mini-simulated", "You asked: why a tollgate?"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let text = job(&app, &["watch", id]).await;
    let places: Vec<_> =
        ["job.queued", "job.started", "job.completed", "You asked"].map(|part| text.find(part)).into();
    assert!(places.is_sorted() && places[0].is_some(), "{text}");

    // Submitting and watching in one.
    let text = job(&app, &["submit", "--prompt", "and then?", "--watch"]).await;
    assert!(text.lines().next().unwrap().parse::<uuid::Uuid>().is_ok(), "{text}");
    assert!(text.contains("job.completed") && text.contains("You asked: and then?"), "{text}");
}

#[tokio::test]
async fn a_submission_from_a_file_and_options_that_win_over_it() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let submission = file(
        &json!({"messages": [{"role": "user", "content": "hi"}], "priority": 9, "metadata": {"from": "a file"},
                "scheduled_at": "2020-01-01T00:00:00Z"})
        .to_string(),
    );
    let path = submission.path().to_str().unwrap();
    let id = job(&app, &["submit", "--file", path, "--priority", "1", "--max-attempts", "7"]).await;
    let shown = &job_json(&app, &["show", id.trim()]).await[0];
    assert_eq!(
        [&shown["priority"], &shown["max_attempts"], &shown["metadata"], &shown["status"]],
        [&json!(1), &json!(7), &json!({"from": "a file"}), &json!("queued")]
    );
}

#[tokio::test]
async fn jobs_are_listed_in_pages_and_called_off() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    assert_eq!(job(&app, &["list"]).await, "no jobs\n");
    let mut ids = Vec::new();
    for prompt in ["a", "b", "c"] {
        ids.insert(0, job(&app, &["submit", "--prompt", prompt]).await.trim().to_owned());
    }
    let page = &job_json(&app, &["list", "--limit", "2"]).await[0];
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = &job_json(&app, &["list", "--limit", "2", "--cursor", cursor]).await[0];
    let listed: Vec<_> =
        [page, rest].iter().flat_map(|page| page["data"].as_array().unwrap()).map(|job| &job["id"]).collect();
    assert_eq!(listed, ids.iter().collect::<Vec<_>>());
    assert_eq!(rest["next_cursor"], Value::Null);
    let text = job(&app, &["list", "--limit", "2"]).await;
    assert_eq!(text.lines().count(), 3);
    assert!(text.lines().last().unwrap().ends_with(&format!("--cursor {cursor}")), "{text}");

    let cancelled = &job_json(&app, &["cancel", &ids[0]]).await[0];
    assert_eq!((&cancelled["id"], &cancelled["status"]), (&json!(ids[0]), &json!("cancelled")));
    assert!(job(&app, &["cancel", &ids[0]]).await.contains("cancelled"));
    let text = job(&app, &["list", "--status", "cancelled"]).await;
    assert!(text.lines().count() == 1 && text.starts_with(&ids[0]), "{text}");

    // Who watches a job that did not succeed is told so by the exit code as well.
    let (code, out, err) = app.command(&["job", "watch", &ids[0]]).await;
    assert!(code == 1 && out.contains("job.cancelled") && err.contains("cancelled"), "{code} {out} {err}");
}

#[tokio::test]
async fn exit_codes_tell_failure_from_misuse() {
    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    app.provider.script([Step::fault(Fault::BadRequest).matching("refuse me")]).unwrap();
    let done = app.submit("a").await;
    app.ended(done).await;
    let (done, nobody) = (done.to_string(), ids::new_id().to_string());
    let (broken, list) = (file("{\"prompt\": "), file("[\"prompt\"]"));
    let [broken, list] = [&broken, &list].map(|file| file.path().to_str().unwrap());
    for (code, says, arguments) in [
        (1, "no such job", &["show", &*nobody][..]),
        (1, "no such job", &["watch", &nobody]),
        (1, "no such job", &["cancel", &nobody]),
        (1, "already succeeded", &["cancel", &done]),
        (1, "BAD_REQUEST", &["submit", "--prompt", "refuse me", "--watch"]),
        (2, "`temperature`", &["submit", "--prompt", "a", "--temperature", "3"]),
        (2, "kb.ingest", &["submit", "--prompt", "a", "--type", "nope"]),
        (2, "`prompt`", &["submit", "--prompt", " "]),
        (2, "cursor", &["list", "--cursor", "junk"]),
        (2, "limit", &["list", "--limit", "0"]),
        (2, "<ID>", &["show", "1"]),
        (2, "<ID>", &["show"]),
        (2, "--prompt", &["submit"]),
        (2, "--priority", &["submit", "--prompt", "a", "--priority", "high"]),
        (2, "queued, running, succeeded", &["list", "--status", "done"]),
        (2, "--colour", &["list", "--colour", "red"]),
        (2, "frob", &["frob"]),
        (2, "/no/such/file", &["submit", "--file", "/no/such/file"]),
        (2, "not JSON", &["submit", "--file", broken]),
        (2, "object", &["submit", "--file", list]),
        // Nothing comes from a closed stdin.
        (2, "not JSON", &["submit", "--file", "-"]),
    ] {
        for json in [false, true] {
            let flag = if json { &["--json"][..] } else { &[] };
            let (was, out, err) = app.command(&[&["job"], arguments, flag].concat()).await;
            assert_eq!(was, code, "{arguments:?}: {out}{err}");
            // The watched job's own words are on stdout, all else on stderr.
            assert!(err.contains(says) || out.contains(says), "{arguments:?}: `{err}` does not say `{says}`");
            assert!(!err.is_empty(), "{arguments:?} failed without a word");
        }
    }
}

#[tokio::test]
async fn a_wrong_address_or_key_is_explained() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let data = tempfile::tempdir().unwrap();
    let run = async |settings: &[(&str, &str)]| {
        // An empty data directory: no `tollgate dev` of whoever runs the test is asked.
        let mut environment =
            vec![("TOLLGATE_DATA_DIR".to_owned(), data.path().to_str().unwrap().to_owned())];
        environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let (code, out, err) = Process::run(BINARY.as_ref(), &["job", "list"], &environment).await;
        assert_eq!(out, "", "{settings:?}");
        (code, err)
    };
    let (url, key) = (&*app.api.url(), &*app.key);
    for (settings, code, says) in [
        (&[][..], 2, "TOLLGATE_URL"),
        (&[("TOLLGATE_URL", url)], 2, "TOLLGATE_API_KEY"),
        (&[("TOLLGATE_URL", "nonsense"), ("TOLLGATE_API_KEY", key)], 2, "nonsense"),
        (&[("TOLLGATE_URL", "ftp://127.0.0.1"), ("TOLLGATE_API_KEY", key)], 2, "ftp"),
        (&[("TOLLGATE_URL", "http://127.0.0.1:1"), ("TOLLGATE_API_KEY", key)], 1, "tollgate dev"),
        (&[("TOLLGATE_URL", url), ("TOLLGATE_API_KEY", "sk_live_typo")], 1, "unauthorized"),
        (&[("TOLLGATE_URL", url), ("TOLLGATE_API_KEY", key), ("LOG_LEVEL", "==")], 2, "LOG_LEVEL"),
    ] {
        let (was, err) = run(settings).await;
        assert_eq!(was, code, "{err}");
        assert!(err.contains(says), "`{err}` does not say `{says}`");
        assert!(!err.contains(key), "a key in {err}");
    }
}
