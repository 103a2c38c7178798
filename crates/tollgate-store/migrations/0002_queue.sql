-- Schema queue: the engine. A task is the unit of work behind a job (later also a delivery, a grant); its id is the
-- id of what it stands for. A finished task is deleted, so the table holds only what is still to be done.

CREATE SCHEMA queue;
COMMENT ON SCHEMA queue IS 'The queue engine: tasks, the workers that hold leases on them, dead letters.';

-- A worker process's life sign. One row a process, a fresh id each boot; its leases live while it is fresh.
CREATE TABLE queue.workers (
    id           uuid PRIMARY KEY,
    name         text NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Its own: processes that are configured otherwise must not give it up by theirs.
    visibility_timeout interval NOT NULL
);

-- Fencing tokens: monotonic, never reused.
CREATE SEQUENCE queue.lease_token AS bigint;

CREATE TABLE queue.tasks (
    account_id   uuid NOT NULL,
    id           uuid NOT NULL,
    queue        text NOT NULL,
    type         text NOT NULL,
    payload      jsonb NOT NULL DEFAULT '{}',
    -- scheduled: not due yet. ready: claimable. running: leased.
    state        text NOT NULL CHECK (state IN ('scheduled', 'ready', 'running')),
    priority     smallint NOT NULL DEFAULT 5 CHECK (priority BETWEEN 1 AND 10),
    attempts     integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    max_attempts integer NOT NULL DEFAULT 5 CHECK (max_attempts >= 1),
    lost         smallint NOT NULL DEFAULT 0,
    run_at       timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    lease        bigint,
    worker_id    uuid,
    started_at   timestamptz,
    last_error   jsonb,
    PRIMARY KEY (account_id, id),
    CHECK ((state = 'running') = (lease IS NOT NULL)),
    CHECK ((state = 'running') = (worker_id IS NOT NULL))
);
COMMENT ON COLUMN queue.tasks.lost IS 'Leases lost with their worker. Burns no attempt; too many, and the task is held to be the cause.';
-- What may be claimed, in the order it is claimed. Tasks of the future are not in it, so a claim never reads past them.
CREATE INDEX tasks_ready ON queue.tasks (queue, priority, id) WHERE state = 'ready';
CREATE INDEX tasks_scheduled ON queue.tasks (queue, run_at) WHERE state = 'scheduled';
CREATE INDEX tasks_running ON queue.tasks (worker_id) WHERE state = 'running';
CREATE INDEX tasks_expiry ON queue.tasks (expires_at) WHERE state <> 'running';

-- What will not be tried again by itself: `<queue>.dlq`.
CREATE TABLE queue.dead_letters (
    account_id   uuid NOT NULL,
    id           uuid NOT NULL,
    queue        text NOT NULL,
    type         text NOT NULL,
    payload      jsonb NOT NULL,
    priority     smallint NOT NULL,
    attempts     integer NOT NULL,
    max_attempts integer NOT NULL,
    reason       jsonb NOT NULL,
    created_at   timestamptz NOT NULL,
    died_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (account_id, id)
);
CREATE INDEX dead_letters_by_queue ON queue.dead_letters (queue, died_at);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['workers', 'tasks', 'dead_letters'] LOOP
        EXECUTE format('ALTER TABLE queue.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE queue.%I FORCE ROW LEVEL SECURITY', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['tasks', 'dead_letters'] LOOP
        EXECUTE format(
            'CREATE POLICY tenant ON queue.%I TO app_api'
            ' USING (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))'
            ' WITH CHECK (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))',
            name);
    END LOOP;
END $$;

-- A worker serves every account: it sees the queue whole, and a tenant's own rows (schema app) one account at a time.
CREATE POLICY worker ON queue.workers TO app_worker USING (true) WITH CHECK (true);
CREATE POLICY worker ON queue.tasks TO app_worker USING (true) WITH CHECK (true);
CREATE POLICY worker ON queue.dead_letters TO app_worker USING (true) WITH CHECK (true);

GRANT USAGE ON SCHEMA queue TO app_api, app_worker;
GRANT SELECT, INSERT, DELETE ON queue.tasks TO app_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON queue.workers, queue.tasks TO app_worker;
GRANT SELECT, INSERT ON queue.dead_letters TO app_worker;
GRANT USAGE ON SEQUENCE queue.lease_token TO app_worker;
