-- What needs a superuser, or a role that may create roles: the four roles, and the migrator's right to make schemas.
-- Idempotent. Two sessions may collide on the shared catalogues; the caller repeats it then.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['app_migrator', 'app_api', 'app_worker', 'app_operator'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            -- No password: with password authentication nobody can log in until the operator sets one.
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOINHERIT', name);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
    END LOOP;
    EXECUTE format('GRANT CREATE ON DATABASE %I TO app_migrator', current_database());
    -- Nobody needs temporary tables, and functions in pg_temp would be code of a tenant's own.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    -- A superuser may become any role. Who may only create roles must be a member (from 16 on, one that may SET it).
    IF NOT pg_has_role(current_user, 'app_migrator',
                       CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END) THEN
        EXECUTE format('GRANT app_migrator TO %I', current_user);
    END IF;
END $$;
