-- Images. A row is one image of one account: what it was asked for, where it is served, and where its bytes are.

CREATE TABLE app.images (
    account_id  uuid NOT NULL REFERENCES app.accounts,
    id          uuid NOT NULL,
    job_id      uuid NOT NULL,
    content_key bytea NOT NULL,
    prompt_hash bytea NOT NULL,
    seed        bigint,
    model       text NOT NULL,
    size        text NOT NULL,
    url         text NOT NULL CHECK (url <> ''),
    media_type  text NOT NULL CHECK (media_type IN ('image/png', 'image/jpeg', 'image/webp')),
    byte_length bigint NOT NULL CHECK (byte_length > 0),
    sha256      bytea NOT NULL,
    storage     text NOT NULL CHECK (storage IN ('database', 'directory', 's3')),
    storage_key text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, id),
    -- However often a job is run, and however many jobs ask for the same: one image.
    UNIQUE (account_id, content_key),
    CHECK ((storage = 'database') = (storage_key IS NULL))
);
COMMENT ON COLUMN app.images.job_id IS 'The job that brought it first. No foreign key: a later job that asked for the same image may outlive that one.';
COMMENT ON COLUMN app.images.content_key IS 'SHA-256 over prompt hash, seed (without one: the job''s id), model and size.';

-- The bytes of images that are kept here. A table of its own, so that nothing that reads rows passes by megabytes.
CREATE TABLE app.image_data (
    account_id uuid NOT NULL,
    image_id   uuid NOT NULL,
    data       bytea NOT NULL,
    PRIMARY KEY (account_id, image_id),
    FOREIGN KEY (account_id, image_id) REFERENCES app.images
);
-- Compressed already, so not tried again.
ALTER TABLE app.image_data ALTER COLUMN data SET STORAGE EXTERNAL;

-- The image that a job brought, or found to be there already.
CREATE TABLE app.job_images (
    account_id uuid NOT NULL,
    job_id     uuid NOT NULL,
    image_id   uuid NOT NULL,
    PRIMARY KEY (account_id, job_id),
    FOREIGN KEY (account_id, job_id) REFERENCES app.jobs,
    FOREIGN KEY (account_id, image_id) REFERENCES app.images
);
-- An image goes with the last job that has it.
CREATE INDEX job_images_by_image ON app.job_images (account_id, image_id);

-- Rows of the source system's table of images that show nothing and cannot be mended, as they were; see legacy.rs.
CREATE TABLE app.image_audit (
    account_id  uuid NOT NULL,
    id          uuid NOT NULL DEFAULT gen_random_uuid(),
    source      text NOT NULL,
    status      text NOT NULL CHECK (status = 'invalid'),
    reason      text NOT NULL,
    "row"       jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, id)
);
COMMENT ON COLUMN app.image_audit.account_id IS 'The row''s own account_id; all zeros where that is no UUID. No foreign key: it need not be an account of Tollgate''s.';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['images', 'image_data', 'job_images', 'image_audit'] LOOP
        EXECUTE format('ALTER TABLE app.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE app.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY tenant ON app.%I'
            ' USING (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))'
            ' WITH CHECK (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))',
            name);
    END LOOP;
END $$;
-- The migrator takes rows of many accounts there at a time.
CREATE POLICY migrator ON app.image_audit TO app_migrator USING (true) WITH CHECK (true);

GRANT SELECT ON app.images, app.image_data, app.job_images TO app_api;
-- DELETE for retention. UPDATE of a column is what FOR UPDATE and ON CONFLICT ask for; no image is ever changed.
GRANT SELECT, INSERT, DELETE, UPDATE (content_key) ON app.images TO app_worker;
GRANT SELECT, INSERT, DELETE ON app.image_data, app.job_images TO app_worker;
