-- Who did what. Entries are only ever added, in the transaction of what they tell of.
CREATE TABLE app.audit_log (
    account_id uuid NOT NULL REFERENCES app.accounts,
    id         uuid NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    actor      text NOT NULL,
    action     text NOT NULL,
    object     text NOT NULL,
    detail     jsonb NOT NULL,
    PRIMARY KEY (account_id, id)
);
COMMENT ON COLUMN app.audit_log.actor IS 'key:<id>, operator:api (the installation''s token), or operator:shell:<database login>.';
ALTER TABLE app.audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.audit_log FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON app.audit_log
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid))
    WITH CHECK (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid));

-- What operators do to the installation as a whole, and to no one account.
CREATE TABLE queue.audit_log (
    id     uuid PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    actor  text NOT NULL,
    action text NOT NULL,
    object text NOT NULL,
    detail jsonb NOT NULL
);
ALTER TABLE queue.audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE queue.audit_log FORCE ROW LEVEL SECURITY;
CREATE POLICY operator ON queue.audit_log TO app_operator USING (true) WITH CHECK (true);

-- Nobody but the database says when it was; and nobody changes it afterwards, not even the tables' owner.
GRANT SELECT, INSERT (account_id, id, actor, action, object, detail) ON app.audit_log TO app_api, app_operator;
GRANT SELECT, INSERT (id, actor, action, object, detail) ON queue.audit_log TO app_operator;
REVOKE UPDATE, DELETE, TRUNCATE ON app.audit_log, queue.audit_log FROM app_migrator;
