-- Schema guard: what the workers know of the providers together. One row a class of models, changed under its lock by
-- whoever has news; no call waits for it.

CREATE SCHEMA guard;
COMMENT ON SCHEMA guard IS 'What stands between the workers and a provider: circuit, budget, pauses, latencies. Belongs to no account.';

CREATE TABLE guard.classes (
    class text PRIMARY KEY,
    state jsonb NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON COLUMN guard.classes.state IS 'Circuit, bucket, pause, timeouts by the minute, callers: as tollgate-model/guard/state.rs has them.';

-- How long calls took, for the timeout of the next ones. One row for each model, kind of work and size.
CREATE TABLE guard.latencies (
    class     text NOT NULL,
    key       text NOT NULL,
    latencies jsonb NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (class, key)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- What an operator has switched for all processes at once. One row.
CREATE TABLE guard.switches (
    one             boolean PRIMARY KEY DEFAULT true CHECK (one),
    breaker_enabled boolean NOT NULL DEFAULT true
);
INSERT INTO guard.switches DEFAULT VALUES;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['classes', 'latencies', 'switches'] LOOP
        EXECUTE format('ALTER TABLE guard.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE guard.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY worker ON guard.%I TO app_worker USING (true) WITH CHECK (true)', name);
        EXECUTE format('CREATE POLICY operator ON guard.%I TO app_operator USING (true) WITH CHECK (true)', name);
        EXECUTE format('CREATE POLICY api ON guard.%I FOR SELECT TO app_api USING (true)', name);
    END LOOP;
END $$;
GRANT USAGE ON SCHEMA guard TO app_api, app_worker, app_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA guard TO app_api, app_worker, app_operator;
GRANT INSERT, UPDATE ON guard.classes TO app_worker, app_operator;
GRANT INSERT, UPDATE, DELETE ON guard.latencies TO app_worker;
GRANT UPDATE (breaker_enabled) ON guard.switches TO app_operator;

-- Images wait in a line of their own: what stops them must not stop texts, and the other way round.
ALTER TABLE queue.queues NO FORCE ROW LEVEL SECURITY;
INSERT INTO queue.queues (queue) VALUES ('generation.create.image');
ALTER TABLE queue.queues FORCE ROW LEVEL SECURITY;
