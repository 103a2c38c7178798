//! Where images are kept: in the database, a directory, and a store that speaks S3; and that there is exactly one of each,
//! whatever is killed, lost, or done at the same moment.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tollgate_model::job::JobStatus;
use tollgate_sim::{Behaviour, Step};
use tollgate_testkit::{S3Like, TestApp, Tune, eventually};

use crate::images::{AT_ONCE, BINARY, POSTER, get, image_job, picture};

/// One of the three.
enum Store {
    Database,
    Directory(TempDir),
    S3(S3Like),
}

impl Store {
    async fn each() -> [Self; 3] {
        [Self::Database, Self::Directory(tempfile::tempdir().unwrap()), Self::S3(S3Like::start().await)]
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Database => Vec::new(),
            Self::Directory(root) => vec![("IMAGE_STORAGE", format!("directory:{}", root.path().display()))],
            Self::S3(s3) => s3.settings(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Directory(_) => "directory",
            Self::S3(_) => "s3",
        }
    }

    fn tune(&self, workers: usize, settings: &[(&'static str, &str)]) -> Tune {
        let mut all = self.settings();
        all.push((AT_ONCE.0, AT_ONCE.1.to_owned()));
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        Tune { settings: all, workers, ..Tune::default() }
    }

    /// Everything that is kept, by name.
    async fn kept(&self, app: &TestApp) -> BTreeMap<String, Vec<u8>> {
        match self {
            Self::Database => {
                let sql = "SELECT image_id::text, data FROM app.image_data";
                let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(sql).fetch_all(&app.owner).await.unwrap();
                rows.into_iter().collect()
            }
            Self::Directory(root) => files(root.path()),
            Self::S3(s3) => s3.objects(),
        }
    }
}

fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for account in std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
        for file in std::fs::read_dir(&account).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, std::fs::read(&file).unwrap());
        }
    }
    found
}

async fn images(app: &TestApp) -> i64 {
    app.number("SELECT count(*) FROM app.images").await
}

#[tokio::test]
async fn images_are_kept_in_each_store_and_served_from_it() {
    for store in Store::each().await {
        let app = TestApp::start(BINARY, store.tune(1, &[POSTER])).await;
        let mut shown = Vec::new();
        for (job_type, prompt) in [("image", "a gate"), ("poster", "a toll")] {
            let id = app.submit_with(prompt, image_job(job_type, None)).await;
            shown.push(picture(&app, &app.ended(id).await).await.1);
        }
        let mut kept: Vec<_> = store.kept(&app).await.into_values().collect();
        kept.sort();
        shown.sort();
        assert!(kept == shown, "{}: what is kept is not what is shown", store.name());
        let sql = format!("SELECT count(*) FROM app.images WHERE storage = '{}'", store.name());
        assert_eq!(app.number(&sql).await, 2);
        if let Store::S3(s3) = &store {
            assert_eq!(s3.refused(), 0);
            assert_eq!(app.number("SELECT count(*) FROM app.image_data").await, 0);
        }
        app.assert_consistent().await;
    }
}

#[tokio::test]
async fn images_of_one_seed_are_one_and_without_a_seed_each_jobs_own() {
    for store in Store::each().await {
        let app = TestApp::start(BINARY, store.tune(1, &[])).await;
        let mut urls = Vec::new();
        // The provider answers the same request differently each time, as models do.
        for (seed, answer) in
            [(Some(7), "one"), (Some(7), "two"), (Some(8), "three"), (None, "four"), (None, "five")]
        {
            app.provider.script([Step::ok().text(answer)]).unwrap();
            let id = app.submit_with("a gate", image_job("image", seed)).await;
            urls.push(picture(&app, &app.ended(id).await).await);
        }
        assert!(urls[0] == urls[1], "{}: one seed has two images", store.name());
        urls.dedup();
        assert_eq!(urls.len(), 4, "{}", store.name());
        assert_eq!((images(&app).await, store.kept(&app).await.len()), (4, 4), "{}", store.name());
        app.assert_consistent().await;
    }
}

/// Two workers, many jobs, one key: all find their answer at about the same moment.
#[tokio::test]
async fn images_that_race_for_one_key_leave_one() {
    for store in Store::each().await {
        let provider = Behaviour { latency_median_ms: 100, ..Behaviour::default() };
        let tune = store
            .tune(2, &[("Q_GEN_IMAGE_CONCURRENCY", "8"), ("GUARD", r#"{"image": {"bucket_capacity": 0}}"#)])
            .provider(provider);
        let app = TestApp::start(BINARY, tune).await;
        app.provider.script((0..16).map(|nr| Step::ok().text(format!("answer {nr}")))).unwrap();
        let mut jobs = Vec::new();
        for _ in 0..16 {
            jobs.push(app.submit_with("a gate", image_job("image", Some(1))).await);
        }
        let mut shown = Vec::new();
        for id in jobs {
            shown.push(picture(&app, &app.ended(id).await).await);
        }
        shown.dedup();
        assert_eq!(shown.len(), 1, "{}: jobs of one key show different images", store.name());
        let kept: Vec<_> = store.kept(&app).await.into_values().collect();
        assert!(kept == [shown[0].1.clone()], "{}: {} are kept", store.name(), kept.len());
        assert_eq!(images(&app).await, 1);
        assert_eq!(app.number("SELECT count(*) FROM app.job_images").await, 16);
        app.assert_consistent().await;
    }
}

/// SIGKILL between the provider's answer and the settlement; the second attempt is answered with other bytes.
#[tokio::test]
async fn images_of_a_worker_that_was_killed_are_not_stored_twice() {
    for store in Store::each().await {
        let app = TestApp::start(BINARY, store.tune(0, &[("VISIBILITY_TIMEOUT", "1s")])).await;
        app.provider.script(["first", "second"].map(|answer| Step::ok().text(answer))).unwrap();
        // The settlement comes as far as the image's row, and no further.
        let mut hold = app.owner.begin().await.unwrap();
        sqlx::query("LOCK TABLE app.images IN SHARE MODE").execute(&mut *hold).await.unwrap();
        let worker = app.start_worker().await;
        let id = app.submit_with("a gate", image_job("image", None)).await;
        eventually("the settlement waits", Duration::from_secs(20), || async {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                           WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO app.images%'";
            (app.number(waiting).await == 1).then_some(())
        })
        .await;
        let before = store.kept(&app).await;
        assert_eq!(
            before.len(),
            usize::from(!matches!(store, Store::Database)),
            "it is kept before it is settled"
        );
        worker.kill().await;
        hold.rollback().await.unwrap();

        let _worker = app.start_worker().await;
        let job = app.ended(id).await;
        assert_eq!((job.status, app.provider.arrivals_of(&id.to_string())), (JobStatus::Succeeded, 2));
        let (_, bytes) = picture(&app, &job).await;
        let kept: Vec<_> = store.kept(&app).await.into_values().collect();
        assert!(kept == [bytes], "{}: {} are kept", store.name(), kept.len());
        assert_eq!(images(&app).await, 1);
        app.assert_consistent().await;
    }
}

#[tokio::test]
async fn images_whose_bytes_are_gone_are_not_found_and_no_error_of_ours() {
    for store in Store::each().await {
        if matches!(store, Store::Database) {
            continue;
        }
        let mut app = TestApp::start(BINARY, store.tune(1, &[])).await;
        let id = app.submit_with("a gate", image_job("image", None)).await;
        let (path, _) = picture(&app, &app.ended(id).await).await;
        match &store {
            Store::S3(s3) => {
                s3.set_down(true);
                assert_eq!(get(&app, &path).await.status(), 503, "a store that is down is no missing image");
                s3.set_down(false);
                s3.lose();
            }
            Store::Directory(root) => {
                let name = files(root.path()).into_keys().next().unwrap();
                std::fs::remove_file(root.path().join(name)).unwrap();
            }
            Store::Database => {}
        }
        assert_eq!(get(&app, &path).await.status(), 404, "{}", store.name());
        assert_eq!(get(&app, "/readyz").await.status(), 200);

        // As from a process that keeps its images elsewhere.
        app.set("IMAGE_STORAGE", "database");
        let elsewhere = app.start_api().await;
        let url = format!("{}{path}", elsewhere.url());
        assert_eq!(
            crate::images::get_as(&app.key, &url, reqwest::header::HeaderMap::new()).await.status(),
            404
        );
    }
}

/// What the provider was paid for is not thrown away because our own store hiccups.
#[tokio::test]
async fn images_wait_for_a_store_that_is_down() {
    let store = Store::S3(S3Like::start().await);
    let Store::S3(s3) = &store else { return };
    s3.set_down(true);
    let app = TestApp::start(BINARY, store.tune(1, &[])).await;
    let id = app.submit_with("a gate", image_job("image", None)).await;
    eventually("the store is asked", Duration::from_secs(20), || async { (s3.asked() > 0).then_some(()) })
        .await;
    s3.set_down(false);
    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts, app.provider.stats().arrivals), (JobStatus::Succeeded, 1, 1));
    picture(&app, &job).await;
}

#[tokio::test]
async fn images_go_with_the_last_job_that_has_them() {
    for store in Store::each().await {
        let mut app = TestApp::start(BINARY, store.tune(1, &[("JOB_RETENTION", "off")])).await;
        let mut jobs = Vec::new();
        for (prompt, seed) in [("shared", Some(1)), ("alone", None), ("shared", Some(1))] {
            let id = app.submit_with(prompt, image_job("image", seed)).await;
            jobs.push(app.ended(id).await);
        }
        assert_eq!((images(&app).await, store.kept(&app).await.len()), (2, 2));
        let last = &jobs[2];
        let ended = |when: &str| format!("UPDATE app.jobs SET finished_at = {when} WHERE id = '{}'", last.id);
        app.change(&ended("now() + interval '1 day'")).await;

        app.set("JOB_RETENTION", "1s");
        let _tidy = app.start_worker().await;
        let left = |jobs: i64, kept: usize| {
            let (app, store) = (&app, &store);
            move || async move {
                let now = (
                    app.number("SELECT count(*) FROM app.jobs").await,
                    images(app).await,
                    store.kept(app).await.len(),
                );
                (now == (jobs, i64::try_from(kept).unwrap(), kept)).then_some(())
            }
        };
        eventually("the others are gone", Duration::from_secs(30), left(1, 1)).await;
        picture(&app, last).await;
        app.change(&ended("now() - interval '1 day'")).await;
        eventually("all are gone", Duration::from_secs(30), left(0, 0)).await;
        assert_eq!(get(&app, &last.output.as_ref().unwrap().images[0].url).await.status(), 404);
    }
}
