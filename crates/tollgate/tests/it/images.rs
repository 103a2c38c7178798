//! Images from the submission to the picture: what a job brings, what a client may see of it, and what is refused.

use reqwest::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tollgate_model::job::Job;
use tollgate_model::key::Scope;
use tollgate_model::submission::Submission;
use tollgate_sim::{Fault, Step};
use tollgate_testkit::{TestApp, Tune};
use uuid::Uuid;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// A type whose images come by URL.
pub(crate) const POSTER: (&str, &str) = (
    "JOB_TYPES",
    r#"{"poster": {"endpoint": "images", "params": {"response_format": "url"}, "size": "1536x1024"}}"#,
);

/// As many at once as there are: how the provider is spared is not what is looked at here.
pub(crate) const AT_ONCE: (&str, &str) = ("GUARD", r#"{"image": {"bucket_capacity": 0}}"#);

pub(crate) fn image_job(job_type: &str, seed: Option<i64>) -> Submission {
    Submission { job_type: Some(job_type.to_owned()), seed, ..Submission::default() }
}

pub(crate) async fn get_as(key: &str, url: &str, headers: HeaderMap) -> Response {
    tollgate_outbound::install_crypto_provider();
    let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    http.get(url).bearer_auth(key).headers(headers).send().await.unwrap()
}

pub(crate) async fn get(app: &TestApp, path: &str) -> Response {
    get_as(&app.key, &format!("{}{path}", app.api.url()), HeaderMap::new()).await
}

/// The image of a job that succeeded: its URL and its bytes, as its account's client gets them.
pub(crate) async fn picture(app: &TestApp, job: &Job) -> (String, Vec<u8>) {
    let output = job.output.as_ref().unwrap_or_else(|| panic!("{:?}", job.error));
    let [image] = output.images.as_slice() else { panic!("not one image: {output:?}") };
    let reply = get(app, &image.url).await;
    assert_eq!(reply.status(), 200, "{}", image.url);
    let bytes = reply.bytes().await.unwrap().to_vec();
    assert_eq!(i64::try_from(bytes.len()), Ok(image.bytes));
    (image.url.clone(), bytes)
}

#[tokio::test]
async fn images_in_either_form_become_pictures_that_are_served() {
    let app = TestApp::start(BINARY, Tune::worker(&[POSTER])).await;
    for (job_type, size) in [("image", "1024x1024"), ("poster", "1536x1024")] {
        let id = app.submit_with("a gate at dawn", image_job(job_type, None)).await;
        let job = app.ended(id).await;
        let (url, bytes) = picture(&app, &job).await;
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "{job_type}");
        let output = serde_json::to_value(&job).unwrap()["output"].take();
        let image = &output["images"][0];
        assert_eq!(url, format!("/v1/images/{}/content", image["id"].as_str().unwrap()));
        assert_eq!((&image["media_type"], &image["bytes"]), (&json!("image/png"), &json!(bytes.len())));
        assert_eq!((&output["text"], &output["model"]), (&json!(""), &json!("gpt-image-1")));
        assert_eq!(
            output["usage"],
            json!({"prompt_tokens": 4, "completion_tokens": 272, "total_tokens": 276})
        );

        let listed = get(&app, "/v1/images?limit=1").await.json::<Value>().await.unwrap();
        let row = &listed["data"][0];
        assert_eq!((&row["id"], &row["job_id"]), (&image["id"], &json!(id)));
        let kept = [&row["url"], &row["media_type"], &row["bytes"], &row["model"], &row["size"]];
        assert_eq!(
            kept,
            [&json!(url), &json!("image/png"), &json!(bytes.len()), &json!("gpt-image-1"), &json!(size)]
        );
    }
    // What is stored of the reply holds neither the bytes nor an image twice.
    assert_eq!(app.number("SELECT count(*) FROM app.job_results WHERE raw::text LIKE '%b64_json%'").await, 0);
    assert_eq!(app.number("SELECT max(length(raw::text))::bigint / 1000 FROM app.job_results").await, 0);
    assert_eq!(app.number("SELECT count(*) FROM app.image_data").await, 2);
    app.assert_consistent().await;
}

#[tokio::test]
async fn images_are_listed_page_by_page_newest_first() {
    let app = TestApp::start(BINARY, Tune::worker(&[AT_ONCE])).await;
    let mut jobs = Vec::new();
    for nr in 0..5 {
        let id = app.submit_with(&format!("picture {nr}"), image_job("image", None)).await;
        jobs.push(app.ended(id).await.id);
    }
    jobs.reverse();
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(&app, &format!("/v1/images?limit=2{cursor}")).await.json::<Value>().await.unwrap();
        found.extend(page["data"].as_array().unwrap().iter().map(|image| image["job_id"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(json!(found), json!(jobs));
    assert_eq!(get(&app, "/v1/images?cursor=junk").await.status(), 400);
}

#[tokio::test]
async fn images_are_fetched_once_and_kept_by_the_client_alone() {
    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    let id = app.submit_with("a gate", image_job("image", None)).await;
    let (path, bytes) = picture(&app, &app.ended(id).await).await;
    let reply = get(&app, &path).await;
    let headers = reply.headers().clone();
    assert_eq!(headers[CONTENT_TYPE], "image/png");
    assert_eq!(headers[CACHE_CONTROL], "private, max-age=31536000, immutable");
    assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
    let sql = "SELECT '\"' || encode(sha256(data), 'hex') || '\"' FROM app.image_data";
    let tag: String = sqlx::query_scalar(sql).fetch_one(&app.owner).await.unwrap();
    assert_eq!(headers[ETAG], tag.as_str());
    assert!(reply.bytes().await.unwrap() == bytes, "it is not the same twice");

    let url = format!("{}{path}", app.api.url());
    for (sent, status) in [(tag.as_str(), 304), (&*format!("W/{tag}"), 304), ("*", 304), ("\"other\"", 200)] {
        let copy = HeaderMap::from_iter([(IF_NONE_MATCH, sent.parse().unwrap())]);
        let reply = get_as(&app.key, &url, copy).await;
        assert_eq!(reply.status().as_u16(), status, "{sent}");
        assert_eq!(
            (&reply.headers()[ETAG], &reply.headers()[CACHE_CONTROL]),
            (&headers[ETAG], &headers[CACHE_CONTROL])
        );
        assert_eq!(reply.bytes().await.unwrap().is_empty(), status == 304, "{sent}");
    }
}

#[tokio::test]
async fn images_are_their_tenants_own() {
    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    // The same prompt and seed, by two accounts: two images, and neither sees the other's.
    let id = app.submit_with("a secret gate", image_job("image", Some(7))).await;
    let (path, _) = picture(&app, &app.ended(id).await).await;
    let (_, other) = app.open_account().await;
    let submission = Submission { prompt: Some("a secret gate".into()), ..image_job("image", Some(7)) };
    let theirs = app.client_with(&other).submit(&submission).await.unwrap();
    tollgate_testkit::eventually("their job ends", std::time::Duration::from_secs(20), || async {
        app.client_with(&other).job(theirs).await.unwrap().status.is_final().then_some(())
    })
    .await;
    assert_eq!(app.number("SELECT count(*) FROM app.images").await, 2);

    let url = format!("{}{path}", app.api.url());
    let listed = get_as(&other, &format!("{}/v1/images", app.api.url()), HeaderMap::new()).await;
    let listed: Value = listed.json().await.unwrap();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(listed["data"][0]["job_id"], json!(theirs));
    let (_, writer) = app.key_with(&[Scope::JobsWrite]).await;
    for (key, status, code) in [
        (other.as_str(), 404, "not_found"),
        (&writer, 403, "forbidden_scope"),
        ("sk_live_nobody", 401, "unauthorized"),
    ] {
        for url in [&url, &format!("{url}?x=1")] {
            let reply = get_as(key, url, HeaderMap::from_iter([(IF_NONE_MATCH, "*".parse().unwrap())])).await;
            assert_eq!(reply.status().as_u16(), status, "{url}");
            assert_eq!(reply.headers()[CACHE_CONTROL], "no-store", "a refusal is kept");
            assert_eq!(reply.json::<Value>().await.unwrap()["code"], code);
        }
    }
    for nothing in [Uuid::max().to_string(), "x".to_owned(), "..%2f..%2fetc%2fpasswd".to_owned()] {
        assert_eq!(get(&app, &format!("/v1/images/{nothing}/content")).await.status(), 404, "{nothing}");
    }
}

#[tokio::test]
async fn images_without_a_url_end_their_job_at_once() {
    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    for fault in [Fault::NoImageUrl, Fault::EmptyImageUrl] {
        app.provider.script([Step::fault(fault).matching(fault.as_str())]).unwrap();
        let id = app.submit_with(fault.as_str(), image_job("image", None)).await;
        let job = app.ended(id).await;
        let error = job.error.unwrap();
        assert_eq!((job.status.as_str(), error.code.as_str(), job.attempts), ("failed", "no-image-url", 1));
        assert_eq!(app.dead_letter(id).await, Some(("no-image-url".to_owned(), 1)));
        assert_eq!(app.provider.arrivals_of(&id.to_string()), 1, "it was asked again");
    }
    assert_eq!(app.number("SELECT count(*) FROM app.images").await, 0);
    app.assert_consistent().await;
}

#[tokio::test]
async fn images_too_large_fail_and_are_not_bought_again() {
    let app = TestApp::start(BINARY, Tune::worker(&[POSTER, ("IMAGE_MAX_BYTES", "5000")])).await;
    for job_type in ["image", "poster"] {
        let id = app.submit_with("a gate", image_job(job_type, None)).await;
        let job = app.ended(id).await;
        let error = job.error.unwrap();
        assert_eq!((error.code.as_str(), job.attempts), ("SERVER_ERROR", 1), "{job_type}");
        assert!(error.message.contains("longer than the 5000 bytes"), "{}", error.message);
    }
}

/// The database holds what the code promises: no image is without a URL (SPEC I2).
#[tokio::test]
async fn images_without_a_url_are_refused_by_the_database() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let insert = |url: &str| {
        format!(
            "INSERT INTO app.images (account_id, id, job_id, content_key, prompt_hash, model, size, url, media_type,
                                     byte_length, sha256, storage)
             VALUES ('{}', gen_random_uuid(), gen_random_uuid(), sha256(random()::text::bytea), '', 'm', 'auto', {url},
                     'image/png', 1, '', 'database')",
            app.account
        )
    };
    for (url, code) in [("NULL", Some("23502")), ("''", Some("23514")), ("'/v1/images/1/content'", None)] {
        let done = sqlx::raw_sql(AssertSqlSafe(insert(url))).execute(&app.owner).await;
        let refused = done.err().map(|error| error.as_database_error().unwrap().code().unwrap().into_owned());
        assert_eq!(refused.as_deref(), code, "{url}");
    }
}

#[tokio::test]
async fn images_are_asked_for_by_prompt_and_size_alone() {
    let app = TestApp::start(BINARY, Tune::worker(&[POSTER])).await;
    let hi = json!([{"role": "user", "content": "hi"}]);
    for (body, named) in [
        (json!({"type": "image", "messages": hi}), "`messages`"),
        (json!({"type": "image", "prompt": "a", "temperature": 1}), "`temperature`"),
        (json!({"type": "poster", "prompt": "a", "max_tokens": 5}), "`max_tokens`"),
        (json!({"type": "image", "prompt": "a", "size": "large"}), "`size`"),
        (json!({"type": "image", "prompt": "a", "size": "1024"}), "`size`"),
        (json!({"type": "text", "prompt": "a", "size": "1024x1024"}), "`size`"),
        (json!({"type": "image"}), "`prompt`"),
    ] {
        let error = app.client().submit_json(&body).await.unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("invalid_request"), "{body}: {error}");
    }
}

#[tokio::test]
async fn images_from_the_shell_and_by_whole_urls() {
    let app = TestApp::start(BINARY, Tune::worker(&[("PUBLIC_URL", "https://ai.example.com/api/")])).await;
    let submit = [
        "job", "submit", "--type", "image", "--prompt", "a gate", "--size", "512x512", "--seed", "-3",
        "--watch",
    ];
    let (code, out, err) = app.command(&submit).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let url = out.lines().last().unwrap().split(' ').next().unwrap();
    assert!(url.starts_with("https://ai.example.com/api/v1/images/") && url.ends_with("/content"), "{out}");
    let listed = get(&app, "/v1/images").await.json::<Value>().await.unwrap();
    assert_eq!(listed["data"][0]["url"], url);
    assert_eq!(listed["data"][0]["size"], "512x512");

    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    let (_, out, _) =
        app.command(&["job", "submit", "--type", "image", "--prompt", "a gate", "--watch"]).await;
    let url = out.lines().last().unwrap().split(' ').next().unwrap();
    assert!(url.starts_with(&app.api.url()), "{out}");
    assert_eq!(get_as(&app.key, url, HeaderMap::new()).await.status(), 200);
}
