-- That the ledger adds up to the balance is looked at all the time, and must not cost more the longer the ledger is: what is
-- so old that nothing can be added before it any more is added up once.
CREATE TABLE app.ledger_sums (
    account_id uuid PRIMARY KEY REFERENCES app.accounts,
    until      uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    delta      bigint NOT NULL DEFAULT 0,
    held       bigint NOT NULL DEFAULT 0,
    owed       bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE app.ledger_sums IS 'The sums of an account''s entries up to and including `until`.';
ALTER TABLE app.ledger_sums ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.ledger_sums FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON app.ledger_sums
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid))
    WITH CHECK (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid));
GRANT SELECT, INSERT, UPDATE ON app.ledger_sums TO app_worker;

-- Which accounts there are, for who goes through all of them; nothing else of any.
CREATE POLICY listed ON app.credit_balances FOR SELECT TO app_migrator USING (true);
CREATE FUNCTION app.accounts_after(last uuid, most integer, OUT account_id uuid) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT b.account_id FROM app.credit_balances b WHERE b.account_id > last ORDER BY b.account_id LIMIT most
$$;
REVOKE ALL ON FUNCTION app.accounts_after FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.accounts_after TO app_worker, app_operator;

-- A foreign key's check is planned once a session, on tables that were new as if they were empty: then these indexes tied with
-- the primary keys and won, and each new image walked all of the account's, and each job that went all of its jobs' images
-- (20,000 rows for one, until the first ANALYZE). A partial index is not asked by who does not say its column.
ALTER TABLE app.images DROP CONSTRAINT images_account_id_content_key_key;
CREATE UNIQUE INDEX images_by_content ON app.images (account_id, content_key) WHERE content_key IS NOT NULL;
DROP INDEX app.job_images_by_image;
CREATE INDEX job_images_by_image ON app.job_images (account_id, image_id) WHERE image_id IS NOT NULL;
