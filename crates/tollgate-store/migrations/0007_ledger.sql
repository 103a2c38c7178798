-- A worker of before ends a job without resolving its hold, which nothing would ever free.
ALTER TABLE queue.workers NO FORCE ROW LEVEL SECURITY;
DO $$
BEGIN
    IF EXISTS (SELECT FROM queue.workers WHERE heartbeat_at + visibility_timeout > clock_timestamp()) THEN
        RAISE EXCEPTION 'workers of an older version are running, who know nothing of credits: stop them and every API, then migrate';
    END IF;
END $$;
ALTER TABLE queue.workers FORCE ROW LEVEL SECURITY;

-- The ledger with both sides of each entry. An entry moves credits between four places: what the account may spend, what
-- is held for its jobs, what its jobs have cost, and what it owes; `granted` is what came from outside (or went back
-- there). So each row balances by itself, a CHECK says so, and no row trigger is needed.
ALTER TABLE app.credits_ledger NO FORCE ROW LEVEL SECURITY;
ALTER TABLE app.credits_ledger
    ADD COLUMN held    bigint NOT NULL DEFAULT 0,
    ADD COLUMN charged bigint NOT NULL DEFAULT 0,
    ADD COLUMN owed    bigint NOT NULL DEFAULT 0,
    ADD COLUMN granted bigint NOT NULL DEFAULT 0;
UPDATE app.credits_ledger SET granted = delta;
ALTER TABLE app.credits_ledger DROP CONSTRAINT credits_ledger_delta_check, DROP CONSTRAINT credits_ledger_reason_check;
-- A function, since PostgreSQL parses the expressions of a table's CHECKs anew in every statement that writes to it, and
-- compiles a function once a session.
CREATE FUNCTION app.is_balanced_entry(reason text, delta bigint, held bigint, charged bigint, owed bigint, granted bigint)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN delta + held + charged - owed = granted
        AND CASE reason
            WHEN 'reservation' THEN held > 0 AND charged = 0 AND owed = 0 AND granted = 0
            WHEN 'refund' THEN held < 0 AND charged = 0 AND owed BETWEEN held AND 0 AND granted = 0
            WHEN 'confirm' THEN held <= 0 AND charged >= 0 AND (owed >= 0 OR delta >= 0) AND granted = 0
            WHEN 'stripe' THEN granted <> 0 AND held = 0 AND charged = 0
            WHEN 'adjustment' THEN granted <> 0 AND held = 0 AND charged = 0
            ELSE false END;
END $$;
ALTER TABLE app.credits_ledger ADD CONSTRAINT balanced CHECK (
    app.is_balanced_entry(reason, delta, held, charged, owed, granted));
REVOKE ALL ON FUNCTION app.is_balanced_entry FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.is_balanced_entry TO app_api, app_worker, app_operator;
ALTER TABLE app.credits_ledger FORCE ROW LEVEL SECURITY;
COMMENT ON COLUMN app.credits_ledger.delta IS 'Change of what may be spent. The sum over an account is its balance.';
COMMENT ON COLUMN app.credits_ledger.held IS 'Change of what is held for jobs that have not ended.';
COMMENT ON COLUMN app.credits_ledger.charged IS 'What a job cost.';
COMMENT ON COLUMN app.credits_ledger.owed IS 'Change of what the account owes: what was taken back, or cost, beyond what it had. Paid first, by whatever is granted or comes free.';
COMMENT ON COLUMN app.credits_ledger.granted IS 'What came from outside; negative: what went back.';

-- posted: all it has, what is held included. May spend: posted - held.
ALTER TABLE app.credit_balances
    ADD COLUMN held bigint NOT NULL DEFAULT 0,
    ADD COLUMN owed bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT credit_balances_posted_check,
    -- Who owes has nothing to spend.
    ADD CONSTRAINT never_below_zero CHECK (held >= 0 AND posted >= held AND owed >= 0 AND (owed = 0 OR posted = held));
-- Changes in columns that no index has, with room in the page: every update is HOT.
ALTER TABLE app.credit_balances SET (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

GRANT INSERT ON app.credits_ledger TO app_api, app_worker;
GRANT UPDATE (posted, held, owed) ON app.credit_balances TO app_api, app_worker, app_operator;
GRANT SELECT ON app.credits_ledger, app.credit_balances TO app_worker;
