-- Lanes: one account's share of one queue. Fairness and caps are per lane, counts are kept per lane.
--
-- Nothing that every enqueue does may wait for another enqueue, so an enqueue never touches a row that others of its
-- account touch too: it adds to the counts row of its own connection's shard. Only a lane with a cap has a row that
-- its claims take turns on.

-- Where a task stands in its lane: by rank, then position. The position is drawn anew whenever a task becomes ready,
-- so it only grows, and a claim can go on where the last one stopped instead of stepping over what is dead.
CREATE SEQUENCE queue.position AS bigint;

ALTER TABLE queue.workers NO FORCE ROW LEVEL SECURITY;
DO $$
BEGIN
    IF EXISTS (SELECT FROM queue.workers WHERE heartbeat_at + visibility_timeout > clock_timestamp()) THEN
        RAISE EXCEPTION 'workers of an older version are running, which would not count what they do: stop them, then migrate';
    END IF;
END $$;
ALTER TABLE queue.workers FORCE ROW LEVEL SECURITY;

ALTER TABLE queue.tasks NO FORCE ROW LEVEL SECURITY;
ALTER TABLE app.jobs NO FORCE ROW LEVEL SECURITY;

ALTER TABLE queue.tasks
    ADD COLUMN rank smallint,
    ADD COLUMN position bigint NOT NULL DEFAULT nextval('queue.position'),
    ADD COLUMN lane_capped boolean NOT NULL DEFAULT false,
    ADD COLUMN queue_capped boolean NOT NULL DEFAULT false;
UPDATE queue.tasks t SET rank = priority * 2, position = waiting.nr
FROM (SELECT account_id, id, row_number() OVER (ORDER BY id) AS nr FROM queue.tasks) AS waiting
WHERE t.account_id = waiting.account_id AND t.id = waiting.id;
ALTER TABLE queue.tasks ALTER COLUMN rank SET NOT NULL;
-- PostgreSQL parses every CHECK of a table anew in each statement that writes to it: these were 50 to 100 of an enqueue's
-- 150 microseconds (measured). What they said is said by the only functions that write here, and held by a test.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = 'queue.tasks'::regclass AND contype = 'c' LOOP
        EXECUTE format('ALTER TABLE queue.tasks DROP CONSTRAINT %I', name);
    END LOOP;
END $$;
COMMENT ON COLUMN queue.tasks.rank IS 'Twice the priority; one less for a task that was handed back or lost its worker, which goes before its equals.';
COMMENT ON COLUMN queue.tasks.lane_capped IS 'Counted in queue.lanes.running.';
COMMENT ON COLUMN queue.tasks.queue_capped IS 'Counted in queue.queues.running.';

DROP INDEX queue.tasks_ready, queue.tasks_running, queue.tasks_expiry;
-- What may be claimed, lane by lane, in the order it is claimed.
CREATE INDEX tasks_ready ON queue.tasks (queue, account_id, rank, position) WHERE state = 'ready';
-- By lease too, so that a worker can ask for those it took since it last asked.
CREATE INDEX tasks_running ON queue.tasks (worker_id, lease) WHERE state = 'running';
-- A scheduled task cannot expire before it is due, and a running one may finish.
CREATE INDEX tasks_expiry ON queue.tasks (expires_at) WHERE state = 'ready';

-- What an operator has set for a queue as a whole.
CREATE TABLE queue.queues (
    queue       text PRIMARY KEY,
    max_running integer CHECK (max_running >= 0),
    running     integer NOT NULL DEFAULT 0 CHECK (running >= 0),
    overhang    integer NOT NULL DEFAULT 0 CHECK (overhang >= 0),
    settings    bigint NOT NULL DEFAULT 0,
    CHECK (running <= max_running + overhang)
);
COMMENT ON COLUMN queue.queues.settings IS 'Counted up with any change of a weight or cap: a claim names the settings it was planned with, and takes nothing if they are no longer in force.';
COMMENT ON COLUMN queue.queues.running IS 'Running tasks, where there is a cap; the CHECK is what makes the cap exact.';
COMMENT ON COLUMN queue.queues.overhang IS 'How many were running above the cap when it was set; only ever falls.';
INSERT INTO queue.queues (queue)
VALUES ('generation.create'), ('generation.probe'), ('webhook.delivery'), ('billing.credit_grant');

-- What an operator has set for one account's lane. A lane without a row has weight 1 and no cap.
CREATE TABLE queue.lanes (
    account_id  uuid NOT NULL,
    queue       text NOT NULL,
    weight      smallint NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 1000),
    max_running integer CHECK (max_running >= 0),
    running     integer NOT NULL DEFAULT 0 CHECK (running >= 0),
    overhang    integer NOT NULL DEFAULT 0 CHECK (overhang >= 0),
    PRIMARY KEY (account_id, queue),
    CHECK (running <= max_running + overhang)
);

-- How many tasks a lane has: the sum over its shards. A task may be counted in by one shard and out by another, so a
-- single shard may be negative; the sum is exact in every snapshot.
CREATE TABLE queue.lane_counts (
    account_id uuid NOT NULL,
    queue      text NOT NULL,
    shard      smallint NOT NULL DEFAULT pg_backend_pid() % 32,
    queued     bigint NOT NULL DEFAULT 0,
    running    bigint NOT NULL DEFAULT 0,
    done       bigint NOT NULL DEFAULT 0,
    failed     bigint NOT NULL DEFAULT 0,
    awake      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (account_id, queue, shard)
);
COMMENT ON COLUMN queue.lane_counts.queued IS 'Scheduled and ready.';
COMMENT ON COLUMN queue.lane_counts.awake IS 'The lane may have ready tasks. Set by whoever makes one ready, cleared under the locks of all its shards.';
-- The lanes that a claim has to look at, however many accounts there are.
CREATE INDEX lane_counts_awake ON queue.lane_counts (queue, account_id) WHERE awake;

INSERT INTO queue.lane_counts (account_id, queue, queued, running, awake)
SELECT account_id, queue, count(*) FILTER (WHERE state <> 'running'), count(*) FILTER (WHERE state = 'running'),
       count(*) FILTER (WHERE state = 'ready') > 0
FROM queue.tasks GROUP BY account_id, queue;
INSERT INTO queue.lane_counts (account_id, queue, done, failed)
SELECT account_id, 'generation.create', count(*) FILTER (WHERE status = 'succeeded'),
       count(*) FILTER (WHERE status = 'failed')
FROM app.jobs WHERE finished_at IS NOT NULL GROUP BY account_id
ON CONFLICT (account_id, queue, shard) DO UPDATE SET done = excluded.done, failed = excluded.failed;

ALTER TABLE queue.tasks FORCE ROW LEVEL SECURITY;
ALTER TABLE app.jobs FORCE ROW LEVEL SECURITY;

-- What a worker can testify to when it sweeps: that the database could be reached all the time from here to its last
-- heartbeat, by itself or by those whose place it took. Silence outside of that time is nobody's death.
ALTER TABLE queue.workers ADD COLUMN heard_since timestamptz NOT NULL DEFAULT clock_timestamp();

-- Hot tables stay small: vacuumed after a fixed number of dead rows, not a share of the table, and without pausing.
-- A claim moves a task to another index, so no update of a task can be HOT, and room in its page would be wasted;
-- counts and workers change only in columns that no index has, so room in the page makes every update HOT.
ALTER TABLE queue.tasks SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000);
ALTER TABLE queue.lane_counts SET (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE queue.lanes SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE queue.queues SET (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE queue.workers SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['queues', 'lanes', 'lane_counts'] LOOP
        EXECUTE format('ALTER TABLE queue.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE queue.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY worker ON queue.%I TO app_worker USING (true) WITH CHECK (true)', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['lanes', 'lane_counts'] LOOP
        EXECUTE format(
            'CREATE POLICY tenant ON queue.%I TO app_api'
            ' USING (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))'
            ' WITH CHECK (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))',
            name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['queues', 'lanes', 'lane_counts', 'tasks', 'dead_letters', 'workers'] LOOP
        EXECUTE format('CREATE POLICY operator ON queue.%I TO app_operator USING (true) WITH CHECK (true)', name);
    END LOOP;
END $$;
-- A queue belongs to no account.
CREATE POLICY api ON queue.queues TO app_api USING (true) WITH CHECK (true);

GRANT SELECT, INSERT, UPDATE ON queue.lane_counts TO app_api, app_worker, app_operator;
GRANT SELECT, UPDATE (running, overhang) ON queue.lanes, queue.queues TO app_api, app_worker;
GRANT USAGE ON SEQUENCE queue.position TO app_api, app_worker, app_operator;
GRANT SELECT ON SEQUENCE queue.lease_token TO app_worker;

-- The operator: settings, dead letters.
GRANT USAGE ON SCHEMA queue TO app_operator;
GRANT SELECT, UPDATE ON queue.queues TO app_operator;
GRANT SELECT, INSERT, UPDATE ON queue.lanes TO app_operator;
GRANT SELECT ON queue.workers TO app_operator;
GRANT SELECT, INSERT, UPDATE ON queue.tasks TO app_operator;
-- UPDATE of a column is what FOR UPDATE asks for; no letter is ever changed.
GRANT SELECT, DELETE, UPDATE (died_at) ON queue.dead_letters TO app_operator;
GRANT SELECT, UPDATE (status, attempts, scheduled_at, finished_at, error_code, error_message, last_event)
    ON app.jobs TO app_operator;
GRANT SELECT, INSERT ON app.job_events TO app_operator;

-- Dead letters are listed newest first, and redriven oldest first, by whatever an operator asks for: each combination of
-- account and code is a walk along its own index, queue by queue. An operator names a letter by its id alone.
ALTER TABLE queue.dead_letters ADD COLUMN code text NOT NULL
    GENERATED ALWAYS AS (coalesce(reason ->> 'code', '')) STORED;
DROP INDEX queue.dead_letters_by_queue;
CREATE INDEX dead_letters_by_queue ON queue.dead_letters (queue, died_at, id);
CREATE INDEX dead_letters_by_code ON queue.dead_letters (queue, code, died_at, id);
CREATE INDEX dead_letters_by_account ON queue.dead_letters (account_id, queue, died_at, id);
CREATE INDEX dead_letters_by_account_code ON queue.dead_letters (account_id, queue, code, died_at, id);
CREATE INDEX dead_letters_by_id ON queue.dead_letters (id);

-- Retention: what has ended long ago goes, by the worker's sweep. An entry of the ledger outlives the job it names.
ALTER TABLE app.credits_ledger DROP CONSTRAINT credits_ledger_account_id_job_id_fkey;
GRANT DELETE ON app.jobs, app.job_results, app.job_events TO app_worker;
-- UPDATE of a column for FOR UPDATE, as above.
GRANT DELETE, UPDATE (died_at) ON queue.dead_letters TO app_worker;

-- The platform's totals, which no tenant's account may add up for itself: sums, and nothing of any one account.
CREATE POLICY totals ON queue.lane_counts FOR SELECT TO app_migrator USING (true);
CREATE FUNCTION queue.totals(wanted text, OUT queued bigint, OUT running bigint, OUT done bigint, OUT failed bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT coalesce(sum(queued), 0), coalesce(sum(running), 0), coalesce(sum(done), 0), coalesce(sum(failed), 0)
    FROM queue.lane_counts WHERE queue = wanted
$$;
REVOKE ALL ON FUNCTION queue.totals FROM PUBLIC;
GRANT EXECUTE ON FUNCTION queue.totals TO app_api, app_worker, app_operator;
