-- queue.tasks, laid out anew: what an index or a claim reads comes first, in columns of fixed width, which PostgreSQL
-- finds without walking over the text before them. A claim compares ten indexed columns of the old and the new row.
--
-- The payload is json, not jsonb: nobody looks into it here, so it need not be taken apart at the one end and put
-- together again at the other.
ALTER TABLE queue.workers NO FORCE ROW LEVEL SECURITY;
DO $$
BEGIN
    IF EXISTS (SELECT FROM queue.workers WHERE heartbeat_at + visibility_timeout > clock_timestamp()) THEN
        RAISE EXCEPTION 'workers of an older version are running, whose statements expect another table: stop them, then migrate';
    END IF;
END $$;
ALTER TABLE queue.workers FORCE ROW LEVEL SECURITY;

CREATE TABLE queue.laid_out (
    account_id   uuid NOT NULL,
    id           uuid NOT NULL,
    worker_id    uuid,
    lease        bigint,
    position     bigint NOT NULL DEFAULT nextval('queue.position'),
    run_at       timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    started_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    attempts     integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 5,
    priority     smallint NOT NULL DEFAULT 5,
    rank         smallint NOT NULL,
    lost         smallint NOT NULL DEFAULT 0,
    lane_capped  boolean NOT NULL DEFAULT false,
    queue_capped boolean NOT NULL DEFAULT false,
    -- scheduled: not due yet. ready: claimable. running: leased.
    state        text NOT NULL,
    queue        text NOT NULL,
    type         text NOT NULL,
    payload      json NOT NULL DEFAULT '{}',
    last_error   jsonb
);

ALTER TABLE queue.tasks NO FORCE ROW LEVEL SECURITY;
INSERT INTO queue.laid_out (account_id, id, worker_id, lease, position, run_at, expires_at, started_at, created_at,
    attempts, max_attempts, priority, rank, lost, lane_capped, queue_capped, state, queue, type, payload, last_error)
SELECT account_id, id, worker_id, lease, position, run_at, expires_at, started_at, created_at,
    attempts, max_attempts, priority, rank, lost, lane_capped, queue_capped, state, queue, type, payload, last_error
FROM queue.tasks;
DROP TABLE queue.tasks;
ALTER TABLE queue.laid_out RENAME TO tasks;

ALTER TABLE queue.tasks ADD CONSTRAINT tasks_pkey PRIMARY KEY (account_id, id);
-- What may be claimed, lane by lane, in the order it is claimed.
CREATE INDEX tasks_ready ON queue.tasks (queue, account_id, rank, position) WHERE state = 'ready';
CREATE INDEX tasks_scheduled ON queue.tasks (queue, run_at) WHERE state = 'scheduled';
-- By lease too, so that a worker can ask for those it took since it last asked.
CREATE INDEX tasks_running ON queue.tasks (worker_id, lease) WHERE state = 'running';
-- A scheduled task cannot expire before it is due, and a running one may finish.
CREATE INDEX tasks_expiry ON queue.tasks (expires_at) WHERE state = 'ready';

COMMENT ON COLUMN queue.tasks.lost IS 'Leases lost with their worker. Burns no attempt; too many, and the task is held to be the cause.';
COMMENT ON COLUMN queue.tasks.rank IS 'Twice the priority; one less for a task that was handed back or lost its worker, which goes before its equals.';
COMMENT ON COLUMN queue.tasks.lane_capped IS 'Counted in queue.lanes.running.';
COMMENT ON COLUMN queue.tasks.queue_capped IS 'Counted in queue.queues.running.';

-- Vacuumed after a fixed number of dead rows, whatever its size, and not at full speed: beside a long backlog a vacuum
-- without pauses took a core for seconds. Rows that were only inserted need none, since they soon go again.
ALTER TABLE queue.tasks SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_limit = 1000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 500000);

ALTER TABLE queue.tasks ENABLE ROW LEVEL SECURITY;
ALTER TABLE queue.tasks FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON queue.tasks TO app_api
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid))
    WITH CHECK (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid));
CREATE POLICY worker ON queue.tasks TO app_worker USING (true) WITH CHECK (true);
CREATE POLICY operator ON queue.tasks TO app_operator USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON queue.tasks TO app_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON queue.tasks TO app_worker;
GRANT SELECT, INSERT, UPDATE ON queue.tasks TO app_operator;

ALTER TABLE queue.dead_letters ALTER COLUMN payload TYPE json;
