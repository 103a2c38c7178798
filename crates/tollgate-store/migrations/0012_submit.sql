-- Submitting is one statement: whoever is cut off in the middle of it leaves nothing, and what it costs is the work and
-- one commit, not eight round trips.

-- A foreign key's check is planned once a session, on a new table as if it were empty: then this index tied with the primary
-- key, won, and each new event walked all of the account's jobs (measured: 480 microseconds after ten seconds, and growing). A
-- partial index is not asked by who does not say `status`.
DROP INDEX app.jobs_by_status;
CREATE INDEX jobs_by_status ON app.jobs (account_id, status, id) WHERE status IS NOT NULL;

-- PostgreSQL parses the expressions of a table's CHECKs anew in every statement that writes to it: those of jobs were 25 to 40
-- of a submission's microseconds, that of the ledger 50 to 75. A function is compiled once a session.
CREATE FUNCTION app.is_sound_job(status text, priority smallint, attempts integer, max_attempts integer, held bigint,
                                 charged bigint, finished_at timestamptz, error_code text, error_message text)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')
        AND priority BETWEEN 1 AND 10 AND attempts >= 0 AND max_attempts >= 1 AND held >= 0 AND charged >= 0
        AND (finished_at IS NOT NULL) = (status IN ('succeeded', 'failed', 'cancelled'))
        AND (error_code IS NULL) = (error_message IS NULL);
END $$;
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = 'app.jobs'::regclass AND contype = 'c' LOOP
        EXECUTE format('ALTER TABLE app.jobs DROP CONSTRAINT %I', name);
    END LOOP;
END $$;
ALTER TABLE app.jobs ADD CONSTRAINT sound CHECK (app.is_sound_job(
    status, priority, attempts, max_attempts, credits_held, credits_charged, finished_at, error_code, error_message));
REVOKE ALL ON FUNCTION app.is_sound_job FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.is_sound_job TO app_api, app_worker, app_operator;
-- That there is such an account is said by its key.
ALTER TABLE app.jobs DROP CONSTRAINT jobs_account_id_fkey;

-- What a job was accepted under. A job of before had no price, and costs nothing.
ALTER TABLE app.jobs ADD COLUMN quote jsonb;
COMMENT ON COLUMN app.jobs.quote IS 'The price in force when it was accepted, and the estimate that is held: as tollgate-model/pricing.rs has them.';
GRANT UPDATE (credits_held) ON app.jobs TO app_api;
GRANT UPDATE (credits_held, credits_charged) ON app.jobs TO app_worker;
GRANT UPDATE (credits_held) ON app.jobs TO app_operator;

-- What a key may spend a day, where it has a limit.
ALTER TABLE app.api_keys ADD COLUMN daily_credit_limit bigint CHECK (daily_credit_limit >= 0);
CREATE TABLE app.key_spending (
    account_id uuid NOT NULL,
    key_id     uuid NOT NULL,
    day        date NOT NULL,
    credits    bigint NOT NULL,
    PRIMARY KEY (account_id, key_id, day),
    FOREIGN KEY (account_id, key_id) REFERENCES app.api_keys
);
COMMENT ON TABLE app.key_spending IS 'By a key with a limit, and those that count as it (counted_as), for the jobs they submitted on a day (UTC): what is held for them, or what they cost.';
ALTER TABLE app.key_spending ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.key_spending FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON app.key_spending
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid))
    WITH CHECK (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid));
GRANT SELECT, INSERT, UPDATE (credits) ON app.key_spending TO app_api, app_operator;
GRANT SELECT, UPDATE (credits), DELETE ON app.key_spending TO app_worker;

-- A request that is to be done once, and the answer it was given. Nothing ever wrote here before.
DROP TABLE app.idempotency_keys;
CREATE TABLE app.idempotency_keys (
    account_id  uuid NOT NULL,
    method      text NOT NULL,
    route       text NOT NULL,
    key         text NOT NULL,
    fingerprint bytea NOT NULL,
    status      smallint NOT NULL,
    response    bytea NOT NULL,
    location    text,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (account_id, method, route, key)
);
-- Partial for the same reason: who looks for a key's answer must not walk all of the account's.
CREATE INDEX idempotency_keys_expiry ON app.idempotency_keys (account_id, expires_at) WHERE expires_at IS NOT NULL;
COMMENT ON COLUMN app.idempotency_keys.response IS 'The body of the answer; sealed under the API key of who asked where it holds a secret.';
ALTER TABLE app.idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON app.idempotency_keys
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid))
    WITH CHECK (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid));
GRANT SELECT, INSERT, UPDATE, DELETE ON app.idempotency_keys TO app_api;
-- UPDATE of a column is what FOR UPDATE asks for.
GRANT SELECT, DELETE, UPDATE (expires_at) ON app.idempotency_keys TO app_worker;

-- Prices that operators have set, beside those of the configuration's file. Belong to no account; only ever added.
CREATE TABLE billing.prices (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    price      jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE billing.prices IS 'As tollgate-model/pricing.rs has them; of two that are alike, the later one holds.';
ALTER TABLE billing.prices ENABLE ROW LEVEL SECURITY;
ALTER TABLE billing.prices FORCE ROW LEVEL SECURITY;
CREATE POLICY api ON billing.prices FOR SELECT TO app_api USING (true);
CREATE POLICY operator ON billing.prices TO app_operator USING (true) WITH CHECK (true);
GRANT SELECT ON billing.prices TO app_api, app_operator;
GRANT INSERT ON billing.prices TO app_operator;

-- Counts what a key with a limit spends today, beside those that count as the same. `false`: it would be more than it may.
-- What is given back is taken always: the others may have gone beyond this key's own limit, if they have higher ones.
CREATE FUNCTION app.spend(account uuid, key uuid, amount bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    most    bigint;
    counted uuid;
BEGIN
    SELECT k.daily_credit_limit, k.counted_as INTO most, counted FROM app.api_keys k
    WHERE k.account_id = account AND k.id = key;
    IF most IS NULL THEN
        RETURN true;
    END IF;
    INSERT INTO app.key_spending AS s (account_id, key_id, day, credits)
    SELECT account, counted, (now() AT TIME ZONE 'UTC')::date, amount WHERE amount <= most
    ON CONFLICT (account_id, key_id, day) DO UPDATE SET credits = s.credits + excluded.credits
    WHERE excluded.credits < 0 OR s.credits + excluded.credits <= most;
    RETURN FOUND;
END $$;
REVOKE ALL ON FUNCTION app.spend FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.spend TO app_api;

-- Submissions, of one account or of several, each account's together and in the order of the accounts. Security invoker: it
-- may do no more than its caller.
--
--   accepted      job, event, task, hold, ledger entry and the answer for its idempotency key are stored
--   replayed      it was accepted before; the answer it was given then
--   conflict      its idempotency key was used for something else
--   in_flight     its idempotency key was just let go of: try again
--   unauthorized  its API key is revoked, has expired, or lacks the scope
--   full          as many of the account's jobs wait as may
--   capped        its API key has spent what it may today
--   short         the balance does not pay for it
--
-- One statement for each table, whatever number of submissions and accounts: to begin a statement costs more than to insert a
-- row (measured: 850 microseconds a submission one by one, a third of that together). So the wall is opened for the batch: the
-- policies `batch` show and take the rows of the accounts that app.accounts names, in this transaction, and no others.
CREATE FUNCTION app.submit(
    lines text[], max_queued bigint, ttl interval, asked_route text, keep interval, patience interval,
    accounts uuid[], ids uuid[], key_ids uuid[], onces text[], fingerprints bytea[], responses bytea[], locations text[],
    types text[], queues text[], priorities smallint[], attempts integer[], requests text[], metadatas text[],
    run_ats timestamptz[], quotes text[], holds bigint[], entries uuid[])
RETURNS TABLE (outcome text, answer bytea, place text, available bigint)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    size      integer := cardinality(ids);
    fates     text[];
    rooms     bigint[];
    limited   boolean;
    claimed   text[];
    balances  bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(ids)]);
    room      bigint;
    known     bytea;
    known_answer bytea;
    known_place  text;
    payers    uuid[] := '{}';
    sums      bigint[] := '{}';
    paid      uuid[];
    spendable bigint;
    counted   text[];
BEGIN
    PERFORM set_config('lock_timeout', (extract(epoch FROM patience) * 1000)::integer::text, true),
            set_config('app.accounts', accounts::text, true);

    -- The keys, as they are now: what a process remembers of them may be out of date. And, with the first submission of each
    -- account, how many more of its jobs may wait.
    SELECT array_agg(CASE WHEN k.id IS NULL THEN 'unauthorized' ELSE 'accepted' END ORDER BY s.nr),
           array_agg(CASE WHEN s.nr = 1 OR s.account <> accounts[s.nr - 1] THEN
                         (SELECT max_queued - coalesce(sum(c.queued), 0)::bigint FROM queue.lane_counts c
                          WHERE c.account_id = s.account AND c.queue = ANY (lines)) END ORDER BY s.nr),
           coalesce(bool_or(k.daily_credit_limit IS NOT NULL), false)
    INTO fates, rooms, limited
    FROM unnest(accounts, key_ids) WITH ORDINALITY AS s (account, key_id, nr)
         LEFT JOIN LATERAL (SELECT k.id, k.daily_credit_limit FROM app.api_keys k
                            WHERE k.account_id = s.account AND k.id = s.key_id AND k.revoked_at IS NULL
                              AND coalesce(k.expires_at > now(), true) AND 'jobs:write' = ANY (k.scopes)
                            LIMIT 1) AS k ON true;

    -- Who comes second waits here until the first has committed, and then finds the answer. They come in the order of their
    -- accounts and keys, so that any two wait for each other in one order only.
    IF num_nonnulls(VARIADIC onces) > 0 THEN
        WITH claim AS (
            INSERT INTO app.idempotency_keys AS i
                (account_id, method, route, key, fingerprint, status, response, location, expires_at)
            SELECT s.account, 'POST', asked_route, s.once, s.fingerprint, 202, s.response, s.location, now() + keep
            FROM unnest(accounts, onces, fingerprints, responses, locations, fates)
                     AS s (account, once, fingerprint, response, location, fate)
            WHERE s.once IS NOT NULL AND s.fate = 'accepted'
            ON CONFLICT (account_id, method, route, key) DO UPDATE
            SET fingerprint = excluded.fingerprint, status = excluded.status, response = excluded.response,
                location = excluded.location, expires_at = excluded.expires_at
            WHERE i.expires_at <= now()
            RETURNING i.account_id, i.key)
        SELECT array_agg(claim.account_id || claim.key) INTO claimed FROM claim;
    END IF;

    IF limited THEN
        -- The order of locks, everywhere: counts, job, what a key has spent, balance.
        PERFORM FROM unnest(accounts, queues) AS s (account, queue),
                     LATERAL (SELECT c.shard FROM queue.lane_counts c
                              WHERE c.account_id = s.account AND c.queue = s.queue AND c.shard = pg_backend_pid() % 32
                              FOR NO KEY UPDATE) AS held;
    END IF;
    FOR nr IN 1 .. size LOOP
        IF rooms[nr] IS NOT NULL THEN
            room := rooms[nr];
            payers := payers || accounts[nr];
            sums := sums || 0::bigint;
        END IF;
        CONTINUE WHEN fates[nr] <> 'accepted';
        IF onces[nr] IS NOT NULL AND (accounts[nr] || onces[nr] = ANY (claimed)) IS NOT TRUE THEN
            SELECT i.fingerprint, i.response, i.location INTO known, known_answer, known_place
            FROM app.idempotency_keys i
            WHERE i.account_id = accounts[nr] AND i.method = 'POST' AND i.route = asked_route AND i.key = onces[nr];
            fates[nr] := CASE WHEN NOT FOUND THEN 'in_flight'
                              WHEN known = fingerprints[nr] THEN 'replayed'
                              ELSE 'conflict' END;
            responses[nr] := known_answer;
            locations[nr] := known_place;
        ELSIF room <= 0 THEN
            fates[nr] := 'full';
        ELSIF limited AND NOT app.spend(accounts[nr], key_ids[nr], holds[nr]) THEN
            fates[nr] := 'capped';
        ELSE
            room := room - 1;
            sums[cardinality(sums)] := sums[cardinality(sums)] + holds[nr];
        END IF;
    END LOOP;

    -- In the counts rows of this connection's shard, for which few others wait. Before the balances: who ends a job has its
    -- counts first, too. What is refused below is counted out again.
    WITH lane AS (
        SELECT account, queue, count(*) AS tasks, bool_or(coalesce(run_at <= now(), true)) AS ready
        FROM unnest(accounts, queues, run_ats, fates) AS s (account, queue, run_at, fate)
        WHERE s.fate = 'accepted' GROUP BY account, queue ORDER BY account, queue
    ), counts AS (
        UPDATE queue.lane_counts c SET queued = c.queued + lane.tasks, awake = c.awake OR lane.ready
        FROM lane
        WHERE c.account_id = lane.account AND c.queue = lane.queue AND c.shard = pg_backend_pid() % 32
        RETURNING c.account_id || c.queue AS lane
    )
    SELECT array_agg(counts.lane) INTO counted FROM counts;
    -- Where one is missing, it is made.
    IF EXISTS (SELECT FROM unnest(accounts, queues, fates) AS s (account, queue, fate)
               WHERE s.fate = 'accepted' AND (s.account || s.queue = ANY (counted)) IS NOT TRUE) THEN
        INSERT INTO queue.lane_counts AS c (account_id, queue, queued, awake)
        SELECT s.account, s.queue, count(*), bool_or(coalesce(s.run_at <= now(), true))
        FROM unnest(accounts, queues, run_ats, fates) AS s (account, queue, run_at, fate)
        WHERE s.fate = 'accepted' AND (s.account || s.queue = ANY (counted)) IS NOT TRUE
        GROUP BY s.account, s.queue ORDER BY s.account, s.queue
        ON CONFLICT (account_id, queue, shard) DO UPDATE
        SET queued = c.queued + excluded.queued, awake = c.awake OR excluded.awake;
    END IF;

    WITH payment AS (
        UPDATE app.credit_balances b SET held = b.held + s.credits
        FROM unnest(payers, sums) AS s (account, credits)
        WHERE b.account_id = s.account AND b.posted - b.held >= s.credits AND s.credits > 0
        RETURNING b.account_id)
    SELECT array_agg(payment.account_id) INTO paid FROM payment;
    FOR payer IN 1 .. cardinality(payers) LOOP
        CONTINUE WHEN sums[payer] = 0 OR payers[payer] = ANY (paid);
        -- Not enough for all: as far as it goes, in their order.
        SELECT b.posted - b.held INTO spendable FROM app.credit_balances b
        WHERE b.account_id = payers[payer] FOR NO KEY UPDATE;
        spendable := coalesce(spendable, 0);
        sums[payer] := 0;
        FOR nr IN array_position(accounts, payers[payer]) .. size LOOP
            EXIT WHEN accounts[nr] <> payers[payer];
            CONTINUE WHEN fates[nr] <> 'accepted';
            IF holds[nr] <= spendable THEN
                spendable := spendable - holds[nr];
                sums[payer] := sums[payer] + holds[nr];
            ELSE
                fates[nr] := 'short';
                balances[nr] := spendable;
                UPDATE queue.lane_counts c SET queued = c.queued - 1
                WHERE c.account_id = accounts[nr] AND c.queue = queues[nr] AND c.shard = pg_backend_pid() % 32;
                IF limited THEN
                    PERFORM app.spend(accounts[nr], key_ids[nr], -holds[nr]);
                END IF;
            END IF;
        END LOOP;
        UPDATE app.credit_balances b SET held = b.held + sums[payer]
        WHERE b.account_id = payers[payer] AND sums[payer] > 0;
    END LOOP;

    -- What is refused for want of room or credits may be asked again.
    IF fates && ARRAY['full', 'capped', 'short'] THEN
        DELETE FROM app.idempotency_keys i
        USING unnest(accounts, onces, fates) AS s (account, once, fate)
        WHERE i.account_id = s.account AND i.method = 'POST' AND i.route = asked_route AND i.key = s.once
          AND s.fate IN ('full', 'capped', 'short');
    END IF;

    IF 'accepted' = ANY (fates) THEN
        WITH new AS MATERIALIZED (
            SELECT s.*, greatest(now(), s.run_at) AS due
            FROM unnest(accounts, ids, key_ids, types, queues, priorities, attempts, requests, metadatas, run_ats, quotes,
                        holds, entries, fates)
                AS s (account, id, key_id, type, queue, priority, max_attempts, request, metadata, run_at, quote, hold, entry,
                      fate)
            WHERE s.fate = 'accepted'
        ), job AS (
            INSERT INTO app.jobs (account_id, id, key_id, type, priority, max_attempts, request, metadata, scheduled_at,
                                  quote, credits_held)
            SELECT account, id, key_id, type, priority, max_attempts, request::jsonb, metadata::jsonb, due, quote::jsonb, hold
            FROM new
        ), event AS (
            INSERT INTO app.job_events (account_id, job_id, seq, type) SELECT account, id, 1, 'job.queued' FROM new
        ), entry AS (
            INSERT INTO app.credits_ledger (account_id, id, delta, held, reason, job_id)
            SELECT account, entry, -hold, hold, 'reservation', id FROM new WHERE hold > 0
        )
        INSERT INTO queue.tasks (account_id, id, queue, type, state, priority, rank, max_attempts, run_at, expires_at)
        SELECT account, id, queue, type, CASE WHEN due > now() THEN 'scheduled' ELSE 'ready' END, priority, priority * 2,
               max_attempts, due, due + ttl FROM new;
    END IF;

    RETURN QUERY SELECT s.fate, s.answer, s.place, s.available
                 FROM unnest(fates, responses, locations, balances) AS s (fate, answer, place, available);
END $$;
REVOKE ALL ON FUNCTION app.submit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.submit TO app_api;

DO $$
DECLARE
    may   record;
    batch text := 'account_id = ANY ((SELECT NULLIF(current_setting(''app.accounts'', true), '''')::uuid[])::uuid[])';
BEGIN
    FOR may IN VALUES ('app.api_keys', 'SELECT'), ('app.jobs', 'INSERT'), ('app.job_events', 'INSERT'),
                      ('app.credits_ledger', 'INSERT'), ('app.credit_balances', 'ALL'), ('app.idempotency_keys', 'ALL'),
                      ('app.key_spending', 'ALL'), ('queue.tasks', 'INSERT'), ('queue.lane_counts', 'ALL') LOOP
        EXECUTE format('CREATE POLICY batch ON %s FOR %s TO app_api %s %s', may.column1, may.column2,
                       CASE WHEN may.column2 <> 'INSERT' THEN format('USING (%s)', batch) END,
                       CASE WHEN may.column2 <> 'SELECT' THEN format('WITH CHECK (%s)', batch) END);
    END LOOP;
END $$;
