-- Submitting is one statement: whoever is cut off in the middle of it leaves nothing, and what it costs is the work and
-- one commit, not eight round trips.

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
CREATE SCHEMA pricing;
CREATE TABLE pricing.prices (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    price      jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE pricing.prices IS 'As tollgate-model/pricing.rs has them; of two that are alike, the later one holds.';
ALTER TABLE pricing.prices ENABLE ROW LEVEL SECURITY;
ALTER TABLE pricing.prices FORCE ROW LEVEL SECURITY;
CREATE POLICY api ON pricing.prices FOR SELECT TO app_api USING (true);
CREATE POLICY operator ON pricing.prices TO app_operator USING (true) WITH CHECK (true);
GRANT USAGE ON SCHEMA pricing TO app_api, app_operator;
GRANT SELECT ON pricing.prices TO app_api, app_operator;
GRANT INSERT ON pricing.prices TO app_operator;

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

-- Submissions of one account, together: each is accepted, or refused for a reason of its own. Security invoker: the wall
-- stands around it as around any statement, and it is set to the account first of all.
--
--   accepted      job, event, task, hold, ledger entry and the answer for its idempotency key are stored
--   replayed      it was accepted before; the answer it was given then
--   conflict      its idempotency key was used for something else
--   in_flight     its idempotency key was just let go of: try again
--   unauthorized  its API key is revoked, has expired, or lacks the scope
--   full          as many of the account's jobs wait as may
--   capped        its API key has spent what it may today
--   short         the balance does not pay for it
CREATE FUNCTION app.submit(
    account uuid, lines text[], max_queued bigint, ttl interval, asked_route text, keep interval,
    ids uuid[], key_ids uuid[], onces text[], fingerprints bytea[], responses bytea[], locations text[],
    types text[], queues text[], priorities smallint[], attempts integer[], requests text[], metadatas text[],
    run_ats timestamptz[], quotes text[], holds bigint[], entries uuid[])
RETURNS TABLE (outcome text, answer bytea, place text, available bigint)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    fates    text[] := array_fill('accepted'::text, ARRAY[cardinality(ids)]);
    usable   uuid[];
    capped   uuid[];
    claimed  text[];
    let_go   text[];
    counted  text[];
    room     bigint;
    wanted   bigint := 0;
    accepted integer := 0;
    found_fingerprint bytea;
    found_answers bytea[] := responses;
    found_places text[] := locations;
BEGIN
    PERFORM set_config('app.account_id', account::text, true);

    -- The keys, as they are now: what a process remembers of them may be out of date.
    SELECT array_agg(k.id), array_agg(k.id) FILTER (WHERE k.daily_credit_limit IS NOT NULL) INTO usable, capped
    FROM app.api_keys k
    WHERE k.account_id = account AND k.id = ANY (key_ids) AND k.revoked_at IS NULL
      AND coalesce(k.expires_at > now(), true) AND 'jobs:write' = ANY (k.scopes);

    SELECT max_queued - coalesce(sum(c.queued), 0) INTO room FROM queue.lane_counts c
    WHERE c.account_id = account AND c.queue = ANY (lines);

    -- In the order of the keys, so that two who claim the same ones wait for each other in one order only. Who comes second
    -- waits here until the first has committed, and then finds the answer.
    IF num_nonnulls(VARIADIC onces) > 0 THEN
        WITH claim AS (
            INSERT INTO app.idempotency_keys AS i
                (account_id, method, route, key, fingerprint, status, response, location, expires_at)
            SELECT account, 'POST', asked_route, s.once, s.fingerprint, 202, s.response, s.location, now() + keep
            FROM unnest(onces, fingerprints, responses, locations, key_ids)
                     AS s (once, fingerprint, response, location, key_id)
            WHERE s.once IS NOT NULL AND s.key_id = ANY (usable)
            ORDER BY s.once
            ON CONFLICT (account_id, method, route, key) DO UPDATE
            SET fingerprint = excluded.fingerprint, status = excluded.status, response = excluded.response,
                location = excluded.location, expires_at = excluded.expires_at
            WHERE i.expires_at <= now()
            RETURNING i.key)
        SELECT array_agg(claim.key) INTO claimed FROM claim;
    END IF;

    FOR nr IN 1 .. cardinality(ids) LOOP
        IF (key_ids[nr] = ANY (usable)) IS NOT TRUE THEN
            fates[nr] := 'unauthorized';
        ELSIF onces[nr] IS NOT NULL AND (onces[nr] = ANY (claimed)) IS NOT TRUE THEN
            SELECT i.fingerprint, i.response, i.location
            INTO found_fingerprint, found_answers[nr], found_places[nr]
            FROM app.idempotency_keys i
            WHERE i.account_id = account AND i.method = 'POST' AND i.route = asked_route AND i.key = onces[nr];
            fates[nr] := CASE WHEN NOT FOUND THEN 'in_flight'
                              WHEN found_fingerprint = fingerprints[nr] THEN 'replayed'
                              ELSE 'conflict' END;
        ELSIF room <= 0 THEN
            fates[nr] := 'full';
        ELSIF key_ids[nr] = ANY (capped) AND NOT app.spend(account, key_ids[nr], holds[nr]) THEN
            fates[nr] := 'capped';
        ELSE
            room := room - 1;
            wanted := wanted + holds[nr];
            accepted := accepted + 1;
        END IF;
    END LOOP;

    IF wanted > 0 THEN
        UPDATE app.credit_balances b SET held = b.held + wanted
        WHERE b.account_id = account AND b.posted - b.held >= wanted;
        IF NOT FOUND THEN
            -- Not enough for all: as far as it goes, in their order.
            SELECT b.posted - b.held INTO available FROM app.credit_balances b
            WHERE b.account_id = account FOR NO KEY UPDATE;
            wanted := 0;
            FOR nr IN 1 .. cardinality(ids) LOOP
                IF fates[nr] = 'accepted' AND wanted + holds[nr] > coalesce(available, 0) THEN
                    fates[nr] := 'short';
                    accepted := accepted - 1;
                    IF key_ids[nr] = ANY (capped) THEN
                        PERFORM app.spend(account, key_ids[nr], -holds[nr]);
                    END IF;
                ELSIF fates[nr] = 'accepted' THEN
                    wanted := wanted + holds[nr];
                END IF;
            END LOOP;
            UPDATE app.credit_balances b SET held = b.held + wanted WHERE b.account_id = account AND wanted > 0;
            available := coalesce(available, 0) - wanted;
        END IF;
    END IF;

    -- What is refused for want of credits or room may be asked again.
    IF claimed IS NOT NULL AND fates && ARRAY['full', 'capped', 'short'] THEN
        SELECT array_agg(s.once) INTO let_go FROM unnest(onces, fates) AS s (once, fate)
        WHERE s.fate IN ('full', 'capped', 'short');
        DELETE FROM app.idempotency_keys i
        WHERE i.account_id = account AND i.method = 'POST' AND i.route = asked_route AND i.key = ANY (let_go)
          AND i.key = ANY (claimed);
    END IF;

    IF accepted > 0 THEN
        WITH new AS MATERIALIZED (
            SELECT s.* FROM unnest(ids, key_ids, types, queues, priorities, attempts, requests, metadatas, run_ats, quotes,
                                   holds, entries, fates)
                AS s (id, key_id, type, queue, priority, max_attempts, request, metadata, run_at, quote, hold, entry, fate)
            WHERE s.fate = 'accepted'
        ), job AS (
            INSERT INTO app.jobs (account_id, id, key_id, type, priority, max_attempts, request, metadata, scheduled_at,
                                  quote, credits_held)
            SELECT account, id, key_id, type, priority, max_attempts, request::jsonb, metadata::jsonb,
                   greatest(now(), run_at), quote::jsonb, hold FROM new
        ), event AS (
            INSERT INTO app.job_events (account_id, job_id, seq, type) SELECT account, id, 1, 'job.queued' FROM new
        ), entry AS (
            INSERT INTO app.credits_ledger (account_id, id, delta, held, reason, job_id)
            SELECT account, entry, -hold, hold, 'reservation', id FROM new WHERE hold > 0
        ), task AS (
            INSERT INTO queue.tasks (account_id, id, queue, type, state, priority, rank, max_attempts, run_at, expires_at)
            SELECT account, id, queue, type, CASE WHEN run_at > now() THEN 'scheduled' ELSE 'ready' END, priority,
                   priority * 2, max_attempts, greatest(now(), run_at), greatest(now(), run_at) + ttl FROM new
        ), sums AS (
            SELECT queue, count(*) AS tasks, bool_or(coalesce(run_at <= now(), true)) AS ready FROM new GROUP BY queue
        ), counts AS (
            -- The counts row of this connection's shard, for which no other waits.
            UPDATE queue.lane_counts c SET queued = c.queued + sums.tasks, awake = c.awake OR sums.ready
            FROM sums
            WHERE c.account_id = account AND c.queue = sums.queue AND c.shard = pg_backend_pid() % 32
            RETURNING c.queue
        )
        SELECT array_agg(counts.queue) INTO counted FROM counts;
        -- Where it is missing, it is made.
        IF counted IS NULL OR NOT queues <@ counted THEN
            INSERT INTO queue.lane_counts AS c (account_id, queue, queued, awake)
            SELECT account, s.queue, count(*), bool_or(coalesce(s.run_at <= now(), true))
            FROM unnest(queues, run_ats, fates) AS s (queue, run_at, fate)
            WHERE s.fate = 'accepted' AND (s.queue = ANY (counted)) IS NOT TRUE GROUP BY s.queue
            ON CONFLICT (account_id, queue, shard) DO UPDATE
            SET queued = c.queued + excluded.queued, awake = c.awake OR excluded.awake;
        END IF;
    END IF;

    RETURN QUERY SELECT s.fate, s.answer, s.place, available
                 FROM unnest(fates, found_answers, found_places) AS s (fate, answer, place);
END $$;
REVOKE ALL ON FUNCTION app.submit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.submit TO app_api;
