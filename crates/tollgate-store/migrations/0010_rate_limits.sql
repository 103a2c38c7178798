-- How many requests of a kind a key has made: one row a key and row of the URL table, used again for each window. API
-- processes lease slices by adding to it (tollgate-model/rate_limit/share.rs).
--
-- Unlogged: a crash of PostgreSQL forgets the counts of windows under way, so a key may then have its limit once more.
-- In return a lease's commit waits for no disk, and none of it is in the log or at the replicas.
CREATE UNLOGGED TABLE app.rate_windows (
    account_id  uuid NOT NULL,
    key_id      uuid NOT NULL,
    route_group text NOT NULL,
    started_at  timestamptz NOT NULL,
    used        bigint NOT NULL,
    PRIMARY KEY (account_id, key_id, route_group),
    FOREIGN KEY (account_id, key_id) REFERENCES app.api_keys
    -- Changes in columns that no index has, with room in the page: every update is HOT.
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON COLUMN app.rate_windows.used IS 'Leased in this window; beyond the limit, where more was asked for than there was.';

ALTER TABLE app.rate_windows ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON app.rate_windows
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid))
    WITH CHECK (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid));
GRANT SELECT, INSERT, UPDATE (started_at, used) ON app.rate_windows TO app_api;
GRANT SELECT, DELETE ON app.rate_windows TO app_worker;
