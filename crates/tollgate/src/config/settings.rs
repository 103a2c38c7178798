//! The table of settings: names, defaults, and what they do.

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// Its name in the environment; in the file, the same in lower case.
    pub name: &'static str,
    /// What holds if it is not set; `None`: nothing.
    pub default: Option<&'static str>,
    /// What it does.
    pub doc: &'static str,
}

const fn set(name: &'static str, default: &'static str, doc: &'static str) -> Setting {
    Setting { name, default: Some(default), doc }
}

const fn unset(name: &'static str, doc: &'static str) -> Setting {
    Setting { name, default: None, doc }
}

/// Every setting, but for `job_types`, `guard`, `prices` and `stripe`, which are tables of their own.
/// `docs/configuration.md` is made of this.
pub(crate) const SETTINGS: &[Setting] = &[
    unset(
        "DATABASE_URL",
        "PostgreSQL, 15 to 18: `postgres://user:password@host:port/database`. Required by `migrate`, `api` and `worker`; `dev` and `demo` start a private PostgreSQL without it.",
    ),
    set(
        "DATABASE_MAX_CONNECTIONS",
        "10",
        "Connections that each of a process's roles (API, worker) may open.",
    ),
    unset(
        "OPERATOR_DATABASE_URL",
        "The operators' login, for their commands and for the API's routes under `/internal`. Unset: `DATABASE_URL`.",
    ),
    unset(
        "TOLLGATE_ADMIN_TOKEN",
        "What operators send as `Authorization: Bearer …` to the API's routes under `/internal`; at least 16 characters. Unset: those routes refuse everybody.",
    ),
    unset(
        "OPENAI_API_KEY",
        "The provider's key. Without it generation jobs fail at once with `SERVER_ERROR`. A server that needs none takes any value.",
    ),
    unset(
        "OPENAI_BASE_URL",
        "The provider's base URL, `/v1` included. Unset: the vendor's, `https://api.openai.com/v1`. `dev` and `demo` use the simulated provider if neither this nor the key is set.",
    ),
    set("DEFAULT_MODEL", "gpt-4o-mini", "The model of a job whose submission and job type name none."),
    set("DEFAULT_IMAGE_MODEL", "gpt-image-1", "The same for image jobs."),
    set(
        "REQUEST_TIMEOUT_MS",
        "30000",
        "Total deadline of one call to the provider, in milliseconds, where a job asks for none.",
    ),
    set(
        "IMAGE_TIMEOUT_MS",
        "600000",
        "The same for image jobs; fetching an image that the provider's reply points at included. The guard's own timeout, 45 to 90 s, is mostly shorter.",
    ),
    set("PROVIDER_CONNECT_TIMEOUT", "5s", "Deadline for connecting to the provider, within the total one."),
    set(
        "PROVIDER_MAX_RESPONSE_BYTES",
        "8388608",
        "The longest reply of the provider that is read, but for images.",
    ),
    set(
        "Q_GEN_CREATE_CONCURRENCY",
        "5",
        "Generation jobs that one worker process runs at a time, but for image jobs.",
    ),
    set(
        "Q_GEN_IMAGE_CONCURRENCY",
        "5",
        "Image jobs that one worker process runs at a time, beside the others.",
    ),
    set("Q_BILLING_GRANT_CONCURRENCY", "2", "Events of Stripe's that one worker process enters at a time."),
    set(
        "GEN_BREAKER_ENABLED",
        "true",
        "`false`: the circuits' decisions do not hold; they are still recorded. A change in `tollgate.toml` takes effect within seconds, without a restart, and so does `tollgate guard breaker off`, for all processes.",
    ),
    set(
        "GENERATION_JOB_TTL",
        "30m",
        "From a job's scheduled time until it fails as `EXPIRED` if no worker has finished it.",
    ),
    set(
        "WEBHOOK_TTL",
        "2h",
        "The same for a task of `webhook.delivery`. Until webhooks are delivered: that of a redriven one.",
    ),
    set(
        "BILLING_TTL",
        "2h",
        "The same for a task of `billing.credit_grant`. What expires is in the dead letters, and can be redriven.",
    ),
    set(
        "GENERATION_RETRY_DELAYS",
        "5s,15s,45s,2m,5m",
        "Upper bounds of the delays between a job's attempts; each delay is drawn from 0 to its bound. The last one repeats.",
    ),
    set(
        "VISIBILITY_TIMEOUT",
        "30s",
        "A worker that is silent for this long is given up, and its jobs run again.",
    ),
    set(
        "QUEUE_POLL_INTERVAL",
        "1s",
        "How often an idle worker looks for work without having been told of any.",
    ),
    set(
        "SHUTDOWN_GRACE",
        "25s",
        "After SIGTERM: how long requests and running jobs may still finish. What is left is handed back, no attempt counted. `dev` waits 2 s at most.",
    ),
    set(
        "LISTEN",
        "127.0.0.1:8787",
        "Where `api` and `dev` listen. `dev` takes another port if this one is in use and was not asked for.",
    ),
    set("WORKER_LISTEN", "127.0.0.1:8788", "Where `worker` serves `/healthz`, `/readyz` and `/metrics`."),
    unset(
        "TLS_CERT",
        "`api` serves HTTPS with this certificate and the chain behind it, a PEM file; it goes with `TLS_KEY`. Unset: it serves plain HTTP, and refuses what comes neither from this machine nor through one of `TRUSTED_PROXIES` over HTTPS.",
    ),
    unset("TLS_KEY", "The certificate's key, a PEM file."),
    unset(
        "TRUSTED_PROXIES",
        "Addresses or networks, such as `10.0.0.0/8,127.0.0.1`, of proxies where TLS ends: their `X-Forwarded-Proto` and `X-Forwarded-For` are believed, and nobody else's.",
    ),
    unset(
        "CORS_ALLOWED_ORIGINS",
        "Origins whose pages may ask from a browser, such as `https://app.example.com`. Unset: none.",
    ),
    set(
        "API_KEY_HASH_ALGO",
        "argon2id",
        "How new API keys are hashed: `argon2id`, or with its memory in KiB, passes and lanes: `argon2id:m=19456,t=2,p=1`, which is the same. Keys hashed otherwise go on working.",
    ),
    set("HTTP_TIMEOUT", "15s", "Deadline for answering one API request."),
    set("MAX_BODY_BYTES", "1048576", "The largest request body."),
    set("MAX_EVENT_STREAMS", "256", "Live event streams that one API process serves at a time."),
    unset(
        "RATE_LIMIT_DEFAULT",
        "How many requests a key may make of each row of the URL table, and in how much time, over all API processes; `off`: any number. A key may have a limit of its own. Unset: `60,1m`; in `dev` and `demo` `1000000,1m`, which keeps nobody from trying things out.",
    ),
    set(
        "MAX_QUEUED_PER_ACCOUNT",
        "1000000",
        "Jobs of one account that may wait, scheduled ones included; a submission beyond it is answered `429 queue_full`. Submissions under way at the same time may exceed it by the number of database connections.",
    ),
    set(
        "MAX_QUEUED",
        "5000000",
        "The same for all accounts together. Each API process counts what it lets in, and looks at the others' at least once a second (near the limit, 20 times).",
    ),
    set(
        "EXPECTED_COMPLETION_TOKENS",
        "500",
        "What a text job that names no `max_tokens` is expected to generate: by it, and by its messages, it is estimated how many credits are held until the job has ended.",
    ),
    set(
        "JOB_RETENTION",
        "30d",
        "Finished jobs older than this are removed, with their results, events and dead letters; `0` or `off`: never. Counts are of all time, and stay.",
    ),
    unset(
        "PUBLIC_STATUS",
        "`true`: `/api/ai/status` shows the platform's totals to those without a key. Unset: only in `dev` and `demo`.",
    ),
    unset(
        "LOG_LEVEL",
        "`error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,tollgate_worker=debug`. Unset: `info`, and `warn` for `demo`, whose progress it would bury.",
    ),
    set(
        "LOG_FORMAT",
        "auto",
        "`json`, `text`, or `auto`: JSON for `api` and `worker`, text for the rest. Logs go to stderr.",
    ),
    set(
        "IMAGE_STORAGE",
        "database",
        "Where images are kept: `database`, `directory:/absolute/path` (the same for API and workers), or `s3://bucket/prefix`. What is in the database is served from there whatever is set; what was kept elsewhere is found only while that is set.",
    ),
    set("IMAGE_MAX_BYTES", "10485760", "The largest image; a larger one fails its job."),
    unset("AWS_ENDPOINT_URL", "The S3 service, for `s3://`. Unset: Amazon's."),
    set("AWS_REGION", "us-east-1", "The bucket's region."),
    unset(
        "AWS_ACCESS_KEY_ID",
        "The access key for the bucket: it must be allowed to get, put and delete objects.",
    ),
    unset("AWS_SECRET_ACCESS_KEY", "The access key's secret."),
    unset("AWS_SESSION_TOKEN", "The token of temporary credentials."),
    unset(
        "PUBLIC_URL",
        "Where clients reach the API, such as `https://ai.example.com`: images are then shown by whole URLs. Unset: by paths.",
    ),
    unset(
        "STRIPE_WEBHOOK_SECRET",
        "The signing secret of Stripe's webhook endpoint, `whsec_…`; two with a comma between them while one is being rolled. Unset: `/internal/stripe/webhook` is off.",
    ),
    set(
        "WEBHOOK_TOLERANCE_SEC",
        "300",
        "How far the time in a webhook's signature may be from now, in seconds.",
    ),
    unset(
        "STRIPE_API_KEY",
        "The key by which `tollgate stripe reconcile` reads events from Stripe: a restricted one that may read events will do.",
    ),
    set("STRIPE_API_BASE", "https://api.stripe.com", "Where it reads them."),
    set(
        "STRIPE_EVENT_RETENTION",
        "90d",
        "Events of Stripe's that are entered, say nothing about credits, or were resolved by an operator (`tollgate stripe resolve`), are removed so long after they came: they hold what is known of people. At least `31d`, since Stripe may send an event again for 30 days; `0` or `off`: never. Those that wait for somebody to act stay.",
    ),
    unset(
        "TOLLGATE_DATA_DIR",
        "Where `dev` keeps its PostgreSQL and its key. Unset: `~/.local/share/tollgate`, or `/var/lib/tollgate/dev` for root.",
    ),
    unset("TOLLGATE_URL", "The Tollgate that `tollgate job` talks to. Unset: the running `tollgate dev`."),
    unset("TOLLGATE_API_KEY", "The key that `tollgate job` uses. Unset: that of the running `tollgate dev`."),
];
