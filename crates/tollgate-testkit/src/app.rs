//! A whole Tollgate as its users have it: API and workers as processes, the simulated provider beside them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tokio_util::task::TaskTracker;
use tollgate_domain::keys::{self, NewKey};
use tollgate_domain::{Database, KeyHashing, Role, accounts};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::job::Job;
use tollgate_model::key::{ApiKey, KeyInfo, Scope};
use tollgate_model::submission::Submission;
use tollgate_outbound::TollgateClient;
use tollgate_sim::{Behaviour, Control, Sim};
use uuid::Uuid;

use crate::{Process, TestDb, eventually};

/// What an account of a test begins with: more than any test spends.
const CREDITS: i64 = 1_000_000_000;

/// What a test wants otherwise.
#[derive(Debug, Clone, Default)]
pub struct Tune {
    /// How the provider behaves at first.
    pub provider: Behaviour,
    /// Further settings, for API and workers.
    pub settings: Vec<(&'static str, String)>,
    /// Workers to begin with.
    pub workers: usize,
    /// On a PostgreSQL of its own, which the test may crash, stop and start.
    pub own_database: bool,
    /// What the account begins with; `None`: more than any test spends.
    pub credits: Option<i64>,
    /// Where the workers log, instead of the test's stderr.
    pub log: Option<PathBuf>,
}

impl Tune {
    /// One worker, and these settings.
    pub fn worker(settings: &[(&'static str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { settings, workers: 1, ..Self::default() }
    }

    /// The same, with this provider.
    #[must_use]
    pub fn provider(mut self, provider: Behaviour) -> Self {
        self.provider = provider;
        self
    }
}

/// A running Tollgate with one account.
#[derive(Debug)]
pub struct TestApp {
    binary: PathBuf,
    settings: Vec<(&'static str, String)>,
    /// Its database.
    pub db: TestDb,
    /// The owner's view of it.
    pub owner: PgPool,
    /// Its API.
    pub api: Process,
    /// Its workers; more can be [started](Self::start_worker).
    pub workers: Vec<Process>,
    /// Its provider.
    pub provider: Control,
    /// The first account.
    pub account: AccountId,
    /// A key of that account with every scope.
    pub key: String,
    provider_url: String,
    log: Option<PathBuf>,
    credits: i64,
    _provider: AbortOnDropHandle<()>,
}

impl TestApp {
    /// Starts everything. `binary`: `env!("CARGO_BIN_EXE_tollgate")`.
    pub async fn start(binary: &str, tune: Tune) -> Self {
        let db = if tune.own_database { TestDb::alone().await } else { TestDb::new().await };
        let owner = db.owner().await;
        let sim = Sim::bind(([127, 0, 0, 1], 0).into(), tune.provider)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let (provider, provider_url) = (sim.control(), sim.base_url());
        let running = TaskTracker::new().spawn(sim.run(CancellationToken::new()));
        let binary = Path::new(binary).to_owned();
        let api = {
            let environment = environment(&db, Role::Api, &provider_url, &tune.settings);
            Process::start(&binary, &["--json", "api", "--listen", "127.0.0.1:0"], &environment).await
        };
        let credits = tune.credits.unwrap_or(CREDITS);
        let (account, key) = open_account(&db, credits).await;
        let mut app = Self {
            binary,
            settings: tune.settings,
            db,
            owner,
            api,
            workers: Vec::new(),
            provider,
            account,
            key,
            provider_url,
            log: tune.log,
            credits,
            _provider: AbortOnDropHandle::new(running),
        };
        for _ in 0..tune.workers {
            let worker = app.start_worker().await;
            app.workers.push(worker);
        }
        app
    }

    /// Changes a setting for the processes that are started from here on.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.settings.retain(|(known, _)| *known != name);
        self.settings.push((name, value.to_owned()));
    }

    /// Another worker process, held by the caller.
    pub async fn start_worker(&self) -> Process {
        let environment = environment(&self.db, Role::Worker, &self.provider_url, &self.settings);
        let arguments = ["--json", "worker", "--listen", "127.0.0.1:0"];
        Process::start_logged(&self.binary, &arguments, &environment, self.log.as_deref()).await
    }

    /// Another API process, held by the caller.
    pub async fn start_api(&self) -> Process {
        let environment = environment(&self.db, Role::Api, &self.provider_url, &self.settings);
        Process::start(&self.binary, &["--json", "api", "--listen", "127.0.0.1:0"], &environment).await
    }

    /// Runs a command that ends, against this Tollgate.
    pub async fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut environment = environment(&self.db, Role::Operator, &self.provider_url, &self.settings);
        environment.push(("TOLLGATE_URL".into(), self.api.url()));
        environment.push(("TOLLGATE_API_KEY".into(), self.key.clone()));
        Process::run(&self.binary, arguments, &environment).await
    }

    /// A client with the first account's key.
    pub fn client(&self) -> TollgateClient {
        self.client_with(&self.key)
    }

    /// A client with another key.
    pub fn client_with(&self, key: &str) -> TollgateClient {
        TollgateClient::new(&self.api.url(), SecretString::from(key.to_owned()))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Another account with a key of every scope.
    pub async fn open_account(&self) -> (AccountId, String) {
        open_account(&self.db, self.credits).await
    }

    /// A key of the first account with these scopes.
    pub async fn key_with(&self, scopes: &[Scope]) -> (Uuid, String) {
        let operator = operator(&self.db).await;
        let (info, key) = make_key(&operator, self.account, scopes).await;
        (info.id, key.expose().to_owned())
    }

    /// Submits a prompt.
    pub async fn submit(&self, prompt: &str) -> Uuid {
        let submission = Submission { prompt: Some(prompt.to_owned()), ..Submission::default() };
        self.client().submit(&submission).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The job, once it has ended.
    pub async fn ended(&self, id: Uuid) -> Job {
        self.job_when("ended", id, |job| job.status.is_final()).await
    }

    /// The job, once it is as wished.
    pub async fn job_when(&self, what: &str, id: Uuid, wish: impl Fn(&Job) -> bool) -> Job {
        let client = self.client();
        eventually(&format!("job {id} {what}"), Duration::from_mins(1), || async {
            client.job(id).await.ok().filter(|job| wish(job))
        })
        .await
    }
}

fn environment(
    db: &TestDb,
    role: Role,
    provider: &str,
    settings: &[(&'static str, String)],
) -> Vec<(String, String)> {
    let mut all = vec![
        ("DATABASE_URL".to_owned(), db.role_url(role)),
        ("OPERATOR_DATABASE_URL".to_owned(), db.role_url(Role::Operator)),
        ("OPENAI_BASE_URL".to_owned(), provider.to_owned()),
        ("OPENAI_API_KEY".to_owned(), "sk-test".to_owned()),
        ("LOG_LEVEL".to_owned(), "warn".to_owned()),
        ("SHUTDOWN_GRACE".to_owned(), "5s".to_owned()),
        // Tests of other things ask as often as they like.
        ("RATE_LIMIT_DEFAULT".to_owned(), "1000000,1m".to_owned()),
    ];
    all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    all
}

async fn operator(db: &TestDb) -> Database {
    let url = db.role_url(Role::Operator);
    Database::connect(&url, Role::Operator, 1, true).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn open_account(db: &TestDb, credits: i64) -> (AccountId, String) {
    let operator = operator(db).await;
    let account =
        accounts::create(&operator, "test", credits).await.unwrap_or_else(|error| panic!("{error}"));
    let (_, key) = make_key(&operator, account, &Scope::ALL).await;
    (account, key.expose().to_owned())
}

async fn make_key(operator: &Database, account: AccountId, scopes: &[Scope]) -> (KeyInfo, ApiKey) {
    let new = NewKey { name: "test", scopes, ..NewKey::default() };
    let made = keys::create(operator, account, Actor::Shell, KeyHashing::default(), new).await;
    made.unwrap_or_else(|error| panic!("{error}"))
}
