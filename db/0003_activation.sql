-- Licences and the seats of devices: counted in the transaction that gives the lease.
-- works-since: 1
--
-- A licence is a document that the vendor signed; redoubt-activation verifies the signature
-- whenever it reads one, and the API before it stores one.  The columns beside the envelope
-- are what it says, for lists.  What talks to the vendor and the API is in 0013.

CREATE TABLE redoubt.licensing (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    installation uuid NOT NULL DEFAULT gen_random_uuid(),
    cluster      text NOT NULL DEFAULT '',
    lease_key    text NOT NULL DEFAULT '',
    state        text NOT NULL DEFAULT 'none' CHECK (state IN ('none', 'ok', 'ended')),
    t_max        timestamptz NOT NULL DEFAULT 'epoch',
    clock        text NOT NULL DEFAULT 'ok' CHECK (clock IN ('ok', 'suspect')),
    clock_why    text NOT NULL DEFAULT '',
    upkeep_at    timestamptz NOT NULL DEFAULT 'epoch'
);
COMMENT ON TABLE redoubt.licensing IS
    'One row: who this installation is to the vendor, and the latest time that is certain.';
COMMENT ON COLUMN redoubt.licensing.t_max IS
    'It was at least this time once. A clock a day behind it is not believed.';
COMMENT ON COLUMN redoubt.licensing.state IS
    'none: there was never a usable licence; ended: there was one, and now there is none.';
INSERT INTO redoubt.licensing DEFAULT VALUES;

CREATE TABLE redoubt.licence (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    source      text NOT NULL CHECK (source IN ('file', 'import', 'code')),
    code        text UNIQUE CHECK ((code IS NOT NULL) = (source = 'code')),
    licence     uuid UNIQUE,
    envelope    text,
    serial      bigint NOT NULL DEFAULT 0,
    customer    text,
    product     text,
    cluster     text,
    features    jsonb,
    seats       bigint,
    not_before  timestamptz,
    expires     timestamptz,
    refused     text,
    answer      text,
    fetched_at  timestamptz,
    valid_until timestamptz,
    stale_until timestamptz,
    nonce       text UNIQUE,
    was_active  boolean NOT NULL DEFAULT false,
    tries       integer NOT NULL DEFAULT 0,
    next_try_at timestamptz,
    error       text NOT NULL DEFAULT '',
    seats_level integer NOT NULL DEFAULT 0,
    told        text NOT NULL DEFAULT '',
    told_days   integer NOT NULL DEFAULT 1000,
    added_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    added_by    text NOT NULL DEFAULT '',
    CHECK ((licence IS NULL) = (envelope IS NULL)),
    CHECK (envelope IS NOT NULL OR source = 'code')
);
COMMENT ON TABLE redoubt.licence IS
    'Licences: files, imported ones, and codes with what the vendor answered last.';
COMMENT ON COLUMN redoubt.licence.licence IS
    'The identity in the signed document; seats are counted for it.';
COMMENT ON COLUMN redoubt.licence.nonce IS
    'Of the request to the vendor that is under way; stored before it is sent, so that who
     repeats it, on either node, repeats the same one.';
COMMENT ON COLUMN redoubt.licence.was_active IS
    'The code was removed once while the vendor had it as active here.';
COMMENT ON COLUMN redoubt.licence.stale_until IS
    'valid_until of the answer and its grace: so long it counts without the vendor.';

CREATE TABLE redoubt.licence_code (
    code       text PRIMARY KEY,
    nonce      text,
    was_active boolean NOT NULL,
    removed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE redoubt.licence_code IS
    'Codes that were removed: one that comes back is not activated once more.';

CREATE TABLE redoubt.seat (
    device     uuid PRIMARY KEY,
    licence    uuid NOT NULL,
    device_key text NOT NULL,
    taken_at   timestamptz NOT NULL,
    issued_at  timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    epoch      bigint NOT NULL
);
COMMENT ON TABLE redoubt.seat IS
    'The lease of a device. One row a device, so no device has two seats; counts until expires_at.';
COMMENT ON COLUMN redoubt.seat.device_key IS
    'SHA-256 of the public key (SubjectPublicKeyInfo) that the lease is bound to, in hex.';
CREATE INDEX seat_by_licence ON redoubt.seat (licence, expires_at);
CREATE INDEX seat_by_expiry ON redoubt.seat (expires_at);

CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.licensing
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.licence
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.licence_code
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.seat
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- --- time -----------------------------------------------------------------------------------

-- The time that decides about licences, from the clocks of the node and of the DBMS: the
-- earlier of the two, because one clock alone that runs ahead proves nothing, and never
-- before t_max.  A day behind t_max, one was set back: suspect.  t_max is written at most
-- every five minutes.  Locks the one row: whoever counts seats does it alone.
CREATE FUNCTION redoubt.licence_clock(node_now timestamptz, OUT t timestamptz,
                                      OUT suspect boolean)
LANGUAGE plpgsql AS $$
DECLARE
    k   redoubt.licensing;
    db  timestamptz := clock_timestamp();
    low timestamptz := least(db, node_now);
    why text := '';
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT * INTO STRICT k FROM redoubt.licensing FOR UPDATE;
    suspect := low < k.t_max - interval '24 hours';
    t := date_trunc('second', greatest(low, k.t_max));
    IF suspect THEN
        why := format('The clock of the %s is more than %s hours behind.',
            CASE WHEN db < k.t_max - interval '24 hours'
                 THEN 'database computer' ELSE 'node' END,
            floor(extract(epoch FROM k.t_max - low) / 3600));
    END IF;
    IF suspect <> (k.clock = 'suspect') THEN
        UPDATE redoubt.licensing SET clock = CASE WHEN suspect THEN 'suspect' ELSE 'ok' END,
                                     clock_why = why;
        PERFORM redoubt.event_add(NULL, 'licence_clock',
            CASE WHEN suspect THEN 'critical' ELSE 'info' END,
            jsonb_build_object('state', CASE WHEN suspect THEN 'suspect' ELSE 'ok' END,
                               'why', why, 'latest', k.t_max));
    END IF;
    IF t > k.t_max + interval '5 minutes' THEN
        UPDATE redoubt.licensing SET t_max = licence_clock.t;
    END IF;
END $$;

-- A time that the vendor signed has been.  More than a day beyond the clock here (or, if that
-- was set back, beyond t_max) it is only told: t_max never falls, so one wrong clock of the
-- vendor's would end all seats and licences for good.
CREATE FUNCTION redoubt.licence_time_seen(t timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    k    redoubt.licensing;
    here timestamptz := clock_timestamp();
BEGIN
    SELECT * INTO STRICT k FROM redoubt.licensing FOR UPDATE;
    IF k.clock = 'suspect' THEN
        here := greatest(here, k.t_max);
    END IF;
    IF t > here + interval '1 day' THEN
        PERFORM redoubt.event_add(NULL, 'licence_vendor_clock', 'error',
                                  jsonb_build_object('signed', t, 'here', here));
    ELSIF t > k.t_max THEN
        UPDATE redoubt.licensing SET t_max = licence_time_seen.t;
    END IF;
END $$;

-- The same for readers, who know no node's clock.
CREATE FUNCTION redoubt.licence_now() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN k.t_max > 'epoch' AND clock_timestamp() > k.t_max + interval '1 day'
                THEN k.t_max ELSE greatest(clock_timestamp(), k.t_max) END
    FROM redoubt.licensing k
$$;

-- --- seats ----------------------------------------------------------------------------------

-- Tells each threshold that was crossed upwards, once.
CREATE FUNCTION redoubt.seats_level(which uuid, used bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    l     redoubt.licence;
    level integer;
BEGIN
    SELECT * INTO l FROM redoubt.licence x WHERE x.licence = which;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    level := CASE WHEN used * 100 >= l.seats * 110 THEN 110
                  WHEN used >= l.seats THEN 100
                  WHEN used * 100 >= l.seats * 90 THEN 90 ELSE 0 END;
    FOR i IN 9..11 LOOP
        IF i * 10 > l.seats_level AND i * 10 <= level THEN
            PERFORM redoubt.event_add(NULL, 'licence_seats_' || i * 10,
                CASE WHEN i = 11 THEN 'error' ELSE 'warning' END,
                jsonb_build_object('licence', which, 'customer', l.customer,
                                   'used', used, 'seats', l.seats));
        END IF;
    END LOOP;
    IF level <> l.seats_level THEN
        UPDATE redoubt.licence x SET seats_level = level WHERE x.id = l.id;
    END IF;
END $$;

-- The first licence with a free seat, else the first with room in its overdraft; NULL: all
-- are taken.  taken: {licence: seats taken}.
CREATE FUNCTION redoubt.seat_choose(usable jsonb, taken jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT u.item
    FROM jsonb_array_elements(usable) WITH ORDINALITY AS u (item, n),
         LATERAL (SELECT (taken ->> (u.item ->> 'licence'))::bigint AS used) c
    WHERE c.used < (u.item ->> 'limit')::bigint
    ORDER BY c.used >= (u.item ->> 'seats')::bigint, u.n LIMIT 1
$$;

-- A batch of devices.  asked: [{"device", "key", "serial"}]; usable: [{"licence", "seats",
-- "limit", "until" (Unix seconds)}] in the order of preference.  A lease that is younger than
-- young_s, of the same key and a licence that is usable is told again and not written.
--   outcome: kept, renewed, taken; or why not: full, clock, revoked, pending
CREATE FUNCTION redoubt.take_seats(asked jsonb, usable jsonb, hold_s bigint, young_s bigint,
                                   node_now timestamptz)
RETURNS TABLE (outcome text, licence uuid, issued bigint, expires bigint, used bigint)
LANGUAGE plpgsql AS $$
DECLARE
    present bigint := redoubt.check_epoch();
    c       record;
    a       record;
    s       redoubt.seat;
    one     jsonb;
    taken   jsonb;
    fresh   boolean := false;
    ends    timestamptz;
BEGIN
    SELECT * INTO STRICT c FROM redoubt.licence_clock(node_now);
    SELECT coalesce(jsonb_agg(u.item ORDER BY u.n), '[]') INTO usable
    FROM jsonb_array_elements(usable) WITH ORDINALITY AS u (item, n)
    WHERE to_timestamp((u.item ->> 'until')::bigint) > c.t;
    SELECT coalesce(jsonb_object_agg(u ->> 'licence', (
               SELECT count(*) FROM redoubt.seat x
               WHERE x.licence = (u ->> 'licence')::uuid AND x.expires_at > c.t)), '{}')
    INTO taken FROM jsonb_array_elements(usable) u;

    FOR a IN SELECT i.device, i.key, i.serial, d.state,
                    EXISTS (SELECT FROM redoubt.certificate z
                            WHERE z.serial = i.serial AND z.revoked_at IS NOT NULL) AS revoked
             FROM ROWS FROM (jsonb_to_recordset(asked)
                             AS (device uuid, key text, serial text)) WITH ORDINALITY
                  AS i (device, key, serial, n)
             LEFT JOIN redoubt.device d ON d.id = i.device
             ORDER BY i.n LOOP
        licence := NULL; issued := NULL; expires := NULL; used := NULL;
        SELECT * INTO s FROM redoubt.seat x WHERE x.device = a.device AND x.expires_at > c.t;
        SELECT u INTO one FROM jsonb_array_elements(usable) u
        WHERE (u ->> 'licence')::uuid = s.licence;
        outcome := CASE
            WHEN a.revoked OR a.state = 'revoked' THEN 'revoked'
            WHEN a.state = 'pending' THEN 'pending'
            WHEN one IS NOT NULL AND s.device_key = a.key
                 AND (c.suspect OR (s.issued_at > c.t - make_interval(secs => young_s)
                                    AND c.t - s.issued_at < (s.expires_at - s.issued_at) / 2))
                THEN 'kept'
            WHEN c.suspect THEN 'clock'
            WHEN one IS NOT NULL THEN 'renewed'
            ELSE 'taken' END;
        IF outcome = 'taken' THEN
            one := redoubt.seat_choose(usable, taken);
            IF one IS NULL THEN
                outcome := 'full';
            ELSE
                taken := jsonb_set(taken, ARRAY[one ->> 'licence'],
                    to_jsonb((taken ->> (one ->> 'licence'))::bigint + 1));
                fresh := true;
            END IF;
        END IF;
        IF outcome IN ('taken', 'renewed') THEN
            ends := least(c.t + make_interval(secs => hold_s),
                          to_timestamp((one ->> 'until')::bigint));
            INSERT INTO redoubt.seat AS x (device, licence, device_key, taken_at, issued_at,
                                           expires_at, epoch)
            VALUES (a.device, (one ->> 'licence')::uuid, a.key, c.t, c.t, ends, present)
            ON CONFLICT (device) DO UPDATE SET
                licence = excluded.licence, device_key = excluded.device_key,
                issued_at = excluded.issued_at, expires_at = excluded.expires_at,
                epoch = excluded.epoch, taken_at = CASE WHEN outcome = 'renewed'
                    THEN x.taken_at ELSE excluded.taken_at END
            RETURNING x.* INTO s;
        END IF;
        IF outcome IN ('taken', 'renewed', 'kept') THEN
            licence := s.licence;
            issued := floor(extract(epoch FROM s.issued_at));
            expires := floor(extract(epoch FROM s.expires_at));
            used := (taken ->> s.licence::text)::bigint;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF fresh THEN
        PERFORM redoubt.seats_level(t.key::uuid, t.value::bigint)
        FROM jsonb_each_text(taken) t;
    END IF;
END $$;
