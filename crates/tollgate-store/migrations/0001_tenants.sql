-- Schema app: everything that belongs to an account.
--
-- Each table begins with account_id, in every primary, unique and foreign key, and stands behind forced row-level
-- security (at the end of this file). A test walks the catalogue and fails for a table that does not.
-- Status and the like are text with a CHECK: under row-level security an enum's "=" cannot be an index condition.

CREATE SCHEMA app;
COMMENT ON SCHEMA app IS 'What belongs to an account (tenant). Set app.account_id in the transaction to see its rows.';

CREATE TABLE app.accounts (
    account_id uuid PRIMARY KEY,
    name       text NOT NULL CHECK (name <> ''),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE app.users (
    account_id uuid NOT NULL REFERENCES app.accounts,
    id         uuid NOT NULL,
    email      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, id),
    UNIQUE (account_id, email)
);

CREATE TABLE app.api_keys (
    account_id  uuid NOT NULL REFERENCES app.accounts,
    id          uuid NOT NULL,
    name        text NOT NULL,
    prefix      text NOT NULL,
    secret_hash text NOT NULL,
    scopes      text[] NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz,
    PRIMARY KEY (account_id, id)
);
COMMENT ON COLUMN app.api_keys.secret_hash IS 'Argon2id (PHC string) of the whole key; the key itself is stored nowhere.';
-- A request brings a key before its account is known. Not unique: a unique key would have to lead with account_id;
-- two keys that shared a prefix (12 random characters) would both be tried.
CREATE INDEX api_keys_prefix ON app.api_keys (prefix);

CREATE TABLE app.jobs (
    account_id      uuid NOT NULL REFERENCES app.accounts,
    id              uuid NOT NULL,
    key_id          uuid,
    type            text NOT NULL,
    status          text NOT NULL DEFAULT 'queued'
                    CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    priority        smallint NOT NULL CHECK (priority BETWEEN 1 AND 10),
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    max_attempts    integer NOT NULL CHECK (max_attempts >= 1),
    request         jsonb NOT NULL,
    metadata        jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    scheduled_at    timestamptz NOT NULL,
    started_at      timestamptz,
    finished_at     timestamptz,
    error_code      text,
    error_message   text,
    credits_held    bigint NOT NULL DEFAULT 0 CHECK (credits_held >= 0),
    credits_charged bigint NOT NULL DEFAULT 0 CHECK (credits_charged >= 0),
    last_event      integer NOT NULL DEFAULT 1,
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, key_id) REFERENCES app.api_keys,
    CHECK ((finished_at IS NOT NULL) = (status IN ('succeeded', 'failed', 'cancelled'))),
    CHECK ((error_code IS NULL) = (error_message IS NULL))
);
COMMENT ON COLUMN app.jobs.last_event IS 'seq of the job''s latest event; counted under the row''s lock, so events have no gaps.';
CREATE INDEX jobs_by_status ON app.jobs (account_id, status, id);

-- Exactly one result a job: the primary key says so, whoever races.
CREATE TABLE app.job_results (
    account_id        uuid NOT NULL,
    job_id            uuid NOT NULL,
    text              text NOT NULL,
    provider          text NOT NULL,
    provider_id       text NOT NULL,
    model             text NOT NULL,
    latency_ms        bigint NOT NULL,
    prompt_tokens     bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens      bigint NOT NULL,
    raw               jsonb NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, job_id),
    FOREIGN KEY (account_id, job_id) REFERENCES app.jobs
);

CREATE TABLE app.job_events (
    account_id uuid NOT NULL,
    job_id     uuid NOT NULL,
    seq        integer NOT NULL,
    type       text NOT NULL,
    data       jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (account_id, job_id, seq),
    FOREIGN KEY (account_id, job_id) REFERENCES app.jobs
);

-- Money: entries are only ever added. credit_balances holds their sum, so that nobody adds them up to read it.
CREATE TABLE app.credits_ledger (
    account_id uuid NOT NULL REFERENCES app.accounts,
    id         uuid NOT NULL,
    delta      bigint NOT NULL CHECK (delta <> 0),
    reason     text NOT NULL CHECK (reason IN ('reservation', 'confirm', 'refund', 'stripe', 'adjustment')),
    note       text,
    job_id     uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, job_id) REFERENCES app.jobs
);

CREATE TABLE app.credit_balances (
    account_id uuid PRIMARY KEY REFERENCES app.accounts,
    posted     bigint NOT NULL DEFAULT 0 CHECK (posted >= 0)
);

-- The tables below have no code yet. They exist so that the walls around them are tested from the start.
CREATE TABLE app.idempotency_keys (
    account_id uuid NOT NULL REFERENCES app.accounts,
    method     text NOT NULL,
    route      text NOT NULL,
    key        text NOT NULL,
    body_hash  bytea NOT NULL,
    status     smallint,
    response   bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, method, route, key)
);

CREATE TABLE app.webhook_endpoints (
    account_id uuid NOT NULL REFERENCES app.accounts,
    id         uuid NOT NULL,
    url        text NOT NULL,
    events     text[] NOT NULL,
    active     boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, id)
);

CREATE TABLE app.webhook_deliveries (
    account_id  uuid NOT NULL,
    id          uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    event       text NOT NULL,
    status      text NOT NULL CHECK (status IN ('pending', 'delivered', 'failed')),
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, id),
    FOREIGN KEY (account_id, endpoint_id) REFERENCES app.webhook_endpoints
);

CREATE TABLE app.stripe_customers (
    account_id  uuid NOT NULL REFERENCES app.accounts,
    customer_id text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, customer_id)
);

CREATE TABLE app.stripe_events (
    account_id  uuid NOT NULL REFERENCES app.accounts,
    event_id    text NOT NULL,
    type        text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, event_id)
);

CREATE TABLE app.usage_rollups_daily (
    account_id uuid NOT NULL REFERENCES app.accounts,
    day        date NOT NULL,
    metric     text NOT NULL,
    value      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account_id, day, metric)
);

-- The wall. The subselect makes the account an InitPlan, read once a statement: the bare call was 7 times slower on
-- a scan. NULLIF, since after a commit the setting is '' and a cast of '' raises. No account set: no rows.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT relname FROM pg_class WHERE relnamespace = 'app'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE app.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE app.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY tenant ON app.%I'
            ' USING (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))'
            ' WITH CHECK (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))',
            name);
    END LOOP;
END $$;

-- Who brings a key may see that key's row, and by it learn the account. Only app.find_key sets this.
CREATE POLICY holder ON app.api_keys FOR SELECT TO app_api
    USING (prefix = (SELECT NULLIF(current_setting('app.key_prefix', true), '')));

-- Operators list accounts; their rows, not what belongs to them.
CREATE POLICY operator ON app.accounts FOR SELECT TO app_operator USING (true);
CREATE POLICY operator ON app.credit_balances FOR SELECT TO app_operator USING (true);

-- The keys that a presented prefix could mean, in one round trip. Security invoker: it widens nothing by itself.
CREATE FUNCTION app.find_key(presented text)
RETURNS TABLE (account_id uuid, key_id uuid, secret_hash text, scopes text[])
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('app.key_prefix', presented, true);
    RETURN QUERY
        SELECT k.account_id, k.id, k.secret_hash, k.scopes
        FROM app.api_keys k WHERE k.prefix = presented AND k.revoked_at IS NULL;
    PERFORM set_config('app.key_prefix', '', true);
END $$;
REVOKE ALL ON FUNCTION app.find_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.find_key TO app_api;

GRANT USAGE ON SCHEMA app TO app_api, app_worker, app_operator;

GRANT SELECT ON ALL TABLES IN SCHEMA app TO app_api;
GRANT INSERT, UPDATE (revoked_at) ON app.api_keys TO app_api;
GRANT INSERT, UPDATE (status, finished_at, last_event) ON app.jobs TO app_api;
GRANT INSERT ON app.job_events TO app_api;

GRANT SELECT, UPDATE (status, attempts, scheduled_at, started_at, finished_at, error_code, error_message, last_event)
    ON app.jobs TO app_worker;
GRANT SELECT, INSERT ON app.job_results, app.job_events TO app_worker;

GRANT SELECT, INSERT ON app.accounts, app.credits_ledger TO app_operator;
GRANT SELECT, INSERT, UPDATE (posted) ON app.credit_balances TO app_operator;
GRANT SELECT, INSERT, UPDATE (revoked_at) ON app.api_keys TO app_operator;

-- Whoever starts can see whether the schema is the one it was built for.
GRANT USAGE ON SCHEMA migrations TO app_api, app_worker, app_operator;
GRANT SELECT ON migrations._sqlx_migrations TO app_api, app_worker, app_operator;
