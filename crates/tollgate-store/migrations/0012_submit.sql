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
COMMENT ON TABLE app.key_spending IS 'By a key with a limit, for the jobs it submitted on a day (UTC): what is held for them, or what they cost.';
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
CREATE INDEX idempotency_keys_expiry ON app.idempotency_keys (account_id, expires_at);
COMMENT ON COLUMN app.idempotency_keys.response IS 'The body of the answer; sealed under the API key of who asked where it holds a secret.';
ALTER TABLE app.idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON app.idempotency_keys
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid))
    WITH CHECK (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid));
GRANT SELECT, INSERT, UPDATE, DELETE ON app.idempotency_keys TO app_api;
GRANT SELECT, DELETE ON app.idempotency_keys TO app_worker;

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

-- Counts what a key with a limit spends today. `false`: it would be more than it may.
CREATE FUNCTION app.spend(account uuid, key uuid, amount bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    most bigint;
BEGIN
    SELECT k.daily_credit_limit INTO most FROM app.api_keys k WHERE k.account_id = account AND k.id = key;
    INSERT INTO app.key_spending AS s (account_id, key_id, day, credits)
    SELECT account, key, (now() AT TIME ZONE 'UTC')::date, amount WHERE amount <= most
    ON CONFLICT (account_id, key_id, day) DO UPDATE SET credits = s.credits + excluded.credits
    WHERE s.credits + excluded.credits <= most;
    RETURN FOUND;
END $$;
REVOKE ALL ON FUNCTION app.spend FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.spend TO app_api;

-- Submissions, of one account or of several, each account's together and in the order of the accounts. Security invoker: the
-- wall stands around it as around any statement, and it is set to the account before anything of it is touched.
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
-- One row at a time: most batches have one of an account, and for one row a plain INSERT costs half of what a set costs.
CREATE FUNCTION app.submit(
    lines text[], max_queued bigint, ttl interval, asked_route text, keep interval,
    accounts uuid[], ids uuid[], key_ids uuid[], onces text[], fingerprints bytea[], responses bytea[], locations text[],
    types text[], queues text[], priorities smallint[], attempts integer[], requests text[], metadatas text[],
    run_ats timestamptz[], quotes text[], holds bigint[], entries uuid[])
RETURNS TABLE (outcome text, answer bytea, place text, available bigint)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    own       uuid;
    first     integer := 1;
    last      integer;
    fates     text[] := array_fill('accepted'::text, ARRAY[cardinality(ids)]);
    balances  bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(ids)]);
    usable    uuid[];
    capped    uuid[];
    room      bigint;
    wanted    bigint;
    spendable bigint;
    due       timestamptz;
    known     bytea;
    line      integer;
    tasks     bigint[];
    ready     boolean[];
BEGIN
    IF accounts[1] <> accounts[cardinality(accounts)] THEN
        -- Who must wait for long must not let the others wait: each account is tried again by itself then.
        PERFORM set_config('lock_timeout', '100ms', true);
    END IF;
    WHILE first <= cardinality(ids) LOOP
        own := accounts[first];
        last := first;
        WHILE accounts[last + 1] = own LOOP
            last := last + 1;
        END LOOP;
        PERFORM set_config('app.account_id', own::text, true);

        -- The keys, as they are now: what a process remembers of them may be out of date.
        SELECT array_agg(k.id), array_agg(k.id) FILTER (WHERE k.daily_credit_limit IS NOT NULL) INTO usable, capped
        FROM app.api_keys k
        WHERE k.account_id = own AND k.id = ANY (key_ids[first:last]) AND k.revoked_at IS NULL
          AND coalesce(k.expires_at > now(), true) AND 'jobs:write' = ANY (k.scopes);

        SELECT max_queued - coalesce(sum(c.queued), 0) INTO room FROM queue.lane_counts c
        WHERE c.account_id = own AND c.queue = ANY (lines);

        wanted := 0;
        FOR nr IN first .. last LOOP
            IF (key_ids[nr] = ANY (usable)) IS NOT TRUE THEN
                fates[nr] := 'unauthorized';
                CONTINUE;
            END IF;
            IF onces[nr] IS NOT NULL THEN
                -- Who comes second waits here until the first has committed, and then finds the answer. They come in the
                -- order of the keys, so that any two wait for each other in one order only.
                INSERT INTO app.idempotency_keys AS i
                    (account_id, method, route, key, fingerprint, status, response, location, expires_at)
                VALUES (own, 'POST', asked_route, onces[nr], fingerprints[nr], 202, responses[nr], locations[nr],
                        now() + keep)
                ON CONFLICT (account_id, method, route, key) DO UPDATE
                SET fingerprint = excluded.fingerprint, status = excluded.status, response = excluded.response,
                    location = excluded.location, expires_at = excluded.expires_at
                WHERE i.expires_at <= now();
                IF NOT FOUND THEN
                    SELECT i.fingerprint, i.response, i.location INTO known, responses[nr], locations[nr]
                    FROM app.idempotency_keys i
                    WHERE i.account_id = own AND i.method = 'POST' AND i.route = asked_route AND i.key = onces[nr];
                    fates[nr] := CASE WHEN NOT FOUND THEN 'in_flight'
                                      WHEN known = fingerprints[nr] THEN 'replayed'
                                      ELSE 'conflict' END;
                    CONTINUE;
                END IF;
            END IF;
            IF room <= 0 THEN
                fates[nr] := 'full';
            ELSIF key_ids[nr] = ANY (capped) AND NOT app.spend(own, key_ids[nr], holds[nr]) THEN
                fates[nr] := 'capped';
            ELSE
                room := room - 1;
                wanted := wanted + holds[nr];
            END IF;
        END LOOP;

        IF wanted > 0 THEN
            UPDATE app.credit_balances b SET held = b.held + wanted
            WHERE b.account_id = own AND b.posted - b.held >= wanted;
            IF NOT FOUND THEN
                -- Not enough for all: as far as it goes, in their order.
                SELECT b.posted - b.held INTO spendable FROM app.credit_balances b
                WHERE b.account_id = own FOR NO KEY UPDATE;
                wanted := 0;
                FOR nr IN first .. last LOOP
                    IF fates[nr] = 'accepted' AND wanted + holds[nr] > coalesce(spendable, 0) THEN
                        fates[nr] := 'short';
                        balances[nr] := coalesce(spendable, 0) - wanted;
                        IF key_ids[nr] = ANY (capped) THEN
                            PERFORM app.spend(own, key_ids[nr], -holds[nr]);
                        END IF;
                    ELSIF fates[nr] = 'accepted' THEN
                        wanted := wanted + holds[nr];
                    END IF;
                END LOOP;
                UPDATE app.credit_balances b SET held = b.held + wanted WHERE b.account_id = own AND wanted > 0;
            END IF;
        END IF;

        tasks := array_fill(0, ARRAY[cardinality(lines)]);
        ready := array_fill(false, ARRAY[cardinality(lines)]);
        FOR nr IN first .. last LOOP
            IF fates[nr] = 'accepted' THEN
                due := greatest(now(), run_ats[nr]);
                line := array_position(lines, queues[nr]);
                tasks[line] := tasks[line] + 1;
                ready[line] := ready[line] OR due <= now();
                INSERT INTO app.jobs (account_id, id, key_id, type, priority, max_attempts, request, metadata,
                                      scheduled_at, quote, credits_held)
                VALUES (own, ids[nr], key_ids[nr], types[nr], priorities[nr], attempts[nr], requests[nr]::jsonb,
                        metadatas[nr]::jsonb, due, quotes[nr]::jsonb, holds[nr]);
                INSERT INTO app.job_events (account_id, job_id, seq, type) VALUES (own, ids[nr], 1, 'job.queued');
                IF holds[nr] > 0 THEN
                    INSERT INTO app.credits_ledger (account_id, id, delta, held, reason, job_id)
                    VALUES (own, entries[nr], -holds[nr], holds[nr], 'reservation', ids[nr]);
                END IF;
                INSERT INTO queue.tasks (account_id, id, queue, type, state, priority, rank, max_attempts, run_at, expires_at)
                VALUES (own, ids[nr], queues[nr], types[nr], CASE WHEN due > now() THEN 'scheduled' ELSE 'ready' END,
                        priorities[nr], priorities[nr] * 2, attempts[nr], due, due + ttl);
            ELSIF fates[nr] IN ('full', 'capped', 'short') AND onces[nr] IS NOT NULL THEN
                -- What is refused for want of room or credits may be asked again.
                DELETE FROM app.idempotency_keys i
                WHERE i.account_id = own AND i.method = 'POST' AND i.route = asked_route AND i.key = onces[nr];
            END IF;
        END LOOP;

        -- In the counts row of this connection's shard, for which no other waits. Where it is missing, it is made.
        FOR nr IN 1 .. cardinality(lines) LOOP
            CONTINUE WHEN tasks[nr] = 0;
            UPDATE queue.lane_counts c SET queued = c.queued + tasks[nr], awake = c.awake OR ready[nr]
            WHERE c.account_id = own AND c.queue = lines[nr] AND c.shard = pg_backend_pid() % 32;
            IF NOT FOUND THEN
                INSERT INTO queue.lane_counts AS c (account_id, queue, queued, awake)
                VALUES (own, lines[nr], tasks[nr], ready[nr])
                ON CONFLICT (account_id, queue, shard) DO UPDATE
                SET queued = c.queued + excluded.queued, awake = c.awake OR excluded.awake;
            END IF;
        END LOOP;
        first := last + 1;
    END LOOP;

    RETURN QUERY SELECT s.fate, s.answer, s.place, s.available
                 FROM unnest(fates, responses, locations, balances) AS s (fate, answer, place, available);
END $$;
REVOKE ALL ON FUNCTION app.submit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.submit TO app_api;
