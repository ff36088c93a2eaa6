-- Ringcast's transactional outbox, for PostgreSQL 13 and later. Safe to run again; `ringcast relay postgres --sql`
-- prints it. Run it in the schema that the application's and the relay's search_path begin with.
--
-- The application:  GRANT INSERT, SELECT (id) ON ringcast_outbox TO app;
-- The relay:        GRANT SELECT, DELETE ON ringcast_outbox TO relay;
--                   GRANT SELECT, UPDATE ON ringcast_outbox_lanes TO relay;
--                   GRANT SELECT, INSERT, DELETE ON ringcast_outbox_refused TO relay;

BEGIN;

-- What is committed here will be published. A channel always has the same lane, and one relay at a time has a lane.
CREATE TABLE IF NOT EXISTS ringcast_outbox (
    lane       smallint NOT NULL CHECK (lane BETWEEN 0 AND 63),
    id         bigint GENERATED ALWAYS AS IDENTITY,
    channel    text NOT NULL CHECK (channel ~ '^[a-z][a-z0-9_-]{0,62}:[^ ,*]{1,200}$'),
    event      text NOT NULL CHECK (length(event) BETWEEN 1 AND 200),
    data       jsonb NOT NULL CHECK (octet_length(data::text) <= 524288),
    key        text,
    version    bigint[],
    deleted    boolean NOT NULL,
    ttl        double precision CHECK (ttl > 0),  -- seconds
    message_id text NOT NULL CHECK (length(message_id) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (lane, id)
);

-- What a relay may have sent without hearing that it arrived: up to which id, and since when.
CREATE TABLE IF NOT EXISTS ringcast_outbox_lanes (
    lane          smallint PRIMARY KEY,
    doubt_from    timestamptz,
    doubt_through bigint
);
INSERT INTO ringcast_outbox_lanes (lane) SELECT generate_series(0, 63) ON CONFLICT DO NOTHING;

-- What the gateway refused for good, and why. The relay goes on behind it.
CREATE TABLE IF NOT EXISTS ringcast_outbox_refused (
    LIKE ringcast_outbox,
    code       text NOT NULL,
    reason     text NOT NULL,
    refused_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id)
);

-- Publish when, and only when, the transaction commits. Returns the row's number. `id` is the message's id and makes a
-- repeat harmless; there is one anyway.
CREATE OR REPLACE FUNCTION ringcast_publish(
    channel text, data jsonb, event text DEFAULT 'message', key text DEFAULT NULL, version bigint[] DEFAULT NULL,
    deleted boolean DEFAULT false, ttl interval DEFAULT NULL, id text DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql AS $function$
DECLARE
    number bigint;
BEGIN
    INSERT INTO ringcast_outbox AS o (lane, channel, event, data, key, version, deleted, ttl, message_id)
    VALUES (
        get_byte(sha256(convert_to(ringcast_publish.channel, 'UTF8')), 0) % 64, ringcast_publish.channel,
        ringcast_publish.event, coalesce(ringcast_publish.data, 'null'), ringcast_publish.key,
        ringcast_publish.version, coalesce(ringcast_publish.deleted, false),
        extract(epoch FROM ringcast_publish.ttl), coalesce(ringcast_publish.id, gen_random_uuid()::text)
    )
    RETURNING o.id INTO number;
    -- Wakes the relays at the commit. Commits that notify wait for each other for a moment: an application with
    -- thousands of commits a second leaves this line out, and its messages wait for the relays' next look.
    PERFORM pg_notify('ringcast_outbox', '');
    RETURN number;
END
$function$;

COMMIT;
