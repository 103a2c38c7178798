-- The life of a key: until when it works, which one it replaced, when it was last used, and what it may.
ALTER TABLE app.api_keys NO FORCE ROW LEVEL SECURITY;
ALTER TABLE app.api_keys
    ADD COLUMN expires_at   timestamptz,
    ADD COLUMN rotated_from uuid,
    ADD COLUMN last_used_at timestamptz,
    ADD COLUMN rate_limit   text,
    ADD COLUMN counted_as   uuid;
UPDATE app.api_keys SET counted_as = id;
ALTER TABLE app.api_keys
    ALTER COLUMN counted_as SET NOT NULL,
    ADD FOREIGN KEY (account_id, counted_as) REFERENCES app.api_keys;
ALTER TABLE app.api_keys FORCE ROW LEVEL SECURITY;
COMMENT ON COLUMN app.api_keys.rate_limit IS 'Instead of RATE_LIMIT_DEFAULT: requests and time, such as 600,1m.';
COMMENT ON COLUMN app.api_keys.counted_as IS 'The key as which it counts, in rate windows and in what is spent a day: itself, or that of the key that it replaces, or of the limited key that made it. So nobody gets a limit anew by making keys.';
COMMENT ON COLUMN app.api_keys.last_used_at IS 'Within a minute or so: written in batches.';

DROP FUNCTION app.find_key;
-- The keys that a presented prefix could mean, in one round trip. Security invoker: it widens nothing by itself.
CREATE FUNCTION app.find_key(presented text)
RETURNS TABLE (account_id uuid, key_id uuid, secret_hash text, scopes text[], rate_limit text, counted_as uuid)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('app.key_prefix', presented, true);
    RETURN QUERY
        SELECT k.account_id, k.id, k.secret_hash, k.scopes, k.rate_limit, k.counted_as
        FROM app.api_keys k
        WHERE k.prefix = presented AND k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true);
    PERFORM set_config('app.key_prefix', '', true);
END $$;
REVOKE ALL ON FUNCTION app.find_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.find_key TO app_api;

GRANT UPDATE (expires_at, last_used_at) ON app.api_keys TO app_api, app_operator;
-- Whoever ends a job gives back what its key has not spent.
GRANT SELECT (account_id, id, counted_as) ON app.api_keys TO app_worker;
