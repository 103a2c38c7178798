-- The life of a key: until when it works, which one it replaced, when it was last used, and what it may.
ALTER TABLE app.api_keys
    ADD COLUMN expires_at   timestamptz,
    ADD COLUMN rotated_from uuid,
    ADD COLUMN last_used_at timestamptz,
    ADD COLUMN rate_limit   text;
COMMENT ON COLUMN app.api_keys.rate_limit IS 'Instead of RATE_LIMIT_DEFAULT: requests and time, such as 600,1m.';
COMMENT ON COLUMN app.api_keys.last_used_at IS 'Within a minute or so: written in batches.';

DROP FUNCTION app.find_key;
-- The keys that a presented prefix could mean, in one round trip. Security invoker: it widens nothing by itself.
CREATE FUNCTION app.find_key(presented text)
RETURNS TABLE (account_id uuid, key_id uuid, secret_hash text, scopes text[], rate_limit text)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('app.key_prefix', presented, true);
    RETURN QUERY
        SELECT k.account_id, k.id, k.secret_hash, k.scopes, k.rate_limit
        FROM app.api_keys k
        WHERE k.prefix = presented AND k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true);
    PERFORM set_config('app.key_prefix', '', true);
END $$;
REVOKE ALL ON FUNCTION app.find_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.find_key TO app_api;

GRANT UPDATE (expires_at, last_used_at) ON app.api_keys TO app_api, app_operator;
