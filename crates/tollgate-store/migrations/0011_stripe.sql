-- Schema billing: Stripe's events as they come, before it is known whose they are. It belongs to the platform. What they
-- come to for an account is in that account's own tables, in schema app.

CREATE SCHEMA billing;
COMMENT ON SCHEMA billing IS 'What Stripe has sent, and whose its objects are. Belongs to the platform, not to an account.';

CREATE TABLE billing.stripe_events (
    event_id    text PRIMARY KEY,
    id          uuid NOT NULL UNIQUE,
    type        text NOT NULL,
    created     timestamptz NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    livemode    boolean NOT NULL,
    customer    text,
    account_id  uuid,
    state       text NOT NULL CHECK (state IN
                ('received', 'processed', 'ignored', 'unknown_customer', 'unknown_payment', 'needs_attention',
                 'resolved')),
    error       text,
    payload     json NOT NULL,
    CHECK (account_id IS NOT NULL OR state IN ('ignored', 'unknown_customer', 'unknown_payment', 'resolved'))
);
COMMENT ON COLUMN billing.stripe_events.id IS 'UUIDv7: its task''s id, and its place in lists.';
COMMENT ON COLUMN billing.stripe_events.payload IS 'As it was signed; json, not jsonb: it is kept as it came, and holds what people paid with.';
-- Also what retention walks along.
CREATE INDEX stripe_events_by_state ON billing.stripe_events (state, id);

-- Whose an object of Stripe's is: a customer, a subscription, an invoice, a payment. NULL: somebody waits to be told. Whoever
-- tells and whoever waits lock the row, so neither misses the other.
CREATE TABLE billing.stripe_objects (
    object_id  text PRIMARY KEY,
    account_id uuid
);

-- Events whose account is not known yet, by the objects that may make it known.
CREATE TABLE billing.stripe_waiting (
    object_id text NOT NULL,
    event_id  text NOT NULL,
    PRIMARY KEY (object_id, event_id)
);
CREATE INDEX stripe_waiting_by_event ON billing.stripe_waiting (event_id);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['stripe_events', 'stripe_objects', 'stripe_waiting'] LOOP
        EXECUTE format('ALTER TABLE billing.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE billing.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY worker ON billing.%I TO app_worker USING (true) WITH CHECK (true)', name);
        EXECUTE format('CREATE POLICY operator ON billing.%I TO app_operator USING (true) WITH CHECK (true)', name);
    END LOOP;
END $$;
-- The API takes events in, and never sees one again.
CREATE POLICY api ON billing.stripe_events FOR INSERT TO app_api WITH CHECK (true);
CREATE POLICY api ON billing.stripe_waiting FOR INSERT TO app_api WITH CHECK (true);
CREATE POLICY api ON billing.stripe_objects TO app_api USING (true) WITH CHECK (true);

GRANT USAGE ON SCHEMA billing TO app_api, app_worker, app_operator;
GRANT INSERT ON billing.stripe_events, billing.stripe_waiting TO app_api, app_operator;
GRANT SELECT, INSERT, UPDATE (account_id) ON billing.stripe_objects TO app_api, app_worker, app_operator;
GRANT SELECT, UPDATE (account_id, state, error) ON billing.stripe_events TO app_worker, app_operator;
GRANT DELETE ON billing.stripe_events TO app_worker;
GRANT SELECT, DELETE ON billing.stripe_waiting TO app_worker, app_operator;

-- An account's own books. What a purchase is worth follows from these rows alone (tollgate-model/stripe/book.rs); they only
-- ever grow.

-- A purchase is granted once: by the checkout session or the invoice, whatever events speak of it.
CREATE TABLE app.stripe_grants (
    account_id uuid NOT NULL REFERENCES app.accounts,
    object_id  text NOT NULL,
    amount     bigint NOT NULL CHECK (amount > 0),
    currency   text NOT NULL,
    credits    bigint NOT NULL CHECK (credits > 0),
    taken_back bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, object_id),
    CHECK (taken_back BETWEEN 0 AND credits)
);
COMMENT ON COLUMN app.stripe_grants.amount IS 'What was paid, in the currency''s smallest unit.';
COMMENT ON COLUMN app.stripe_grants.taken_back IS 'How many of the credits refunds and disputes have taken back so far.';

-- Which payment was for which purchase. Either may become known first.
CREATE TABLE app.stripe_payments (
    account_id uuid NOT NULL REFERENCES app.accounts,
    payment_id text NOT NULL,
    object_id  text NOT NULL,
    PRIMARY KEY (account_id, payment_id, object_id)
);
-- Not asked by who looks for a payment, as jobs_by_status is not by who does not say `status`.
CREATE INDEX stripe_payments_by_object ON app.stripe_payments (account_id, object_id, payment_id)
    WHERE object_id IS NOT NULL;

-- A charge's refunds together, or one dispute.
CREATE TABLE app.stripe_reversals (
    account_id  uuid NOT NULL REFERENCES app.accounts,
    payment_id  text NOT NULL,
    reversal_id text NOT NULL,
    amount      bigint NOT NULL CHECK (amount >= 0),
    currency    text,
    withdrawn   boolean NOT NULL,
    returned    boolean NOT NULL,
    PRIMARY KEY (account_id, payment_id, reversal_id)
);

COMMENT ON COLUMN app.stripe_reversals.currency IS 'Where it is another than the purchase''s, the amount counts for nothing, and an operator is told.';

-- One row an event that has been entered: its key is what makes entering it twice impossible.
ALTER TABLE app.stripe_events ADD COLUMN credits bigint NOT NULL;
ALTER TABLE app.stripe_events RENAME COLUMN received_at TO processed_at;
COMMENT ON COLUMN app.stripe_events.credits IS 'What it granted; negative: took back.';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['stripe_grants', 'stripe_payments', 'stripe_reversals'] LOOP
        EXECUTE format('ALTER TABLE app.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE app.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY tenant ON app.%I'
            ' USING (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))'
            ' WITH CHECK (account_id = (SELECT NULLIF(current_setting(''app.account_id'', true), '''')::uuid))',
            name);
    END LOOP;
END $$;

GRANT SELECT, INSERT ON app.stripe_events, app.stripe_customers, app.stripe_grants, app.stripe_payments,
    app.stripe_reversals TO app_worker;
GRANT UPDATE (taken_back) ON app.stripe_grants TO app_worker;
GRANT UPDATE (amount, currency, withdrawn, returned) ON app.stripe_reversals TO app_worker;
