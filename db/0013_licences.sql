-- Licences: what the vendor is asked and answers, their state, upkeep, the API.
-- works-since: 1

-- --- what a licence says ----------------------------------------------------------------------

-- The document of an envelope, whose signature the caller has verified.
CREATE FUNCTION redoubt.envelope_document(envelope text) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT (envelope::jsonb ->> 'document')::jsonb
$$;

-- valid and grace count; everything else does not.
CREATE FUNCTION redoubt.licence_state(l redoubt.licence, t timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN l.refused IS NOT NULL THEN 'refused'
        WHEN l.envelope IS NULL THEN 'pending'
        WHEN l.cluster <> '*' AND k.cluster <> '' AND l.cluster <> k.cluster THEN 'other_cluster'
        WHEN t < l.not_before THEN 'not_yet_valid'
        WHEN t >= l.expires THEN 'expired'
        WHEN l.valid_until IS NULL OR t < l.valid_until THEN 'valid'
        WHEN t < l.stale_until THEN 'grace'
        ELSE 'stale' END
    FROM redoubt.licensing k
$$;

-- Writes down what the envelope says.  A serial below the one that is known is an old copy.
CREATE FUNCTION redoubt.licence_fill(entry uuid, given text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    d jsonb := redoubt.envelope_document(given);
BEGIN
    UPDATE redoubt.licence l SET
        licence = (d ->> 'licence')::uuid, envelope = given,
        serial = coalesce((d ->> 'serial')::bigint, 0), customer = d ->> 'customer',
        product = d ->> 'product', cluster = d ->> 'cluster', features = d -> 'features',
        seats = (d ->> 'seats')::bigint, not_before = (d ->> 'not_before')::timestamptz,
        expires = (d ->> 'expires')::timestamptz
    WHERE l.id = entry AND l.envelope IS DISTINCT FROM given;
    IF FOUND AND d ? 'issued' THEN
        PERFORM redoubt.licence_time_seen((d ->> 'issued')::timestamptz);
    END IF;
END $$;

CREATE FUNCTION redoubt.licences_changed() RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('redoubt_licence', '')
$$;

-- --- states and upkeep ------------------------------------------------------------------------

-- Tells what became of licences since the last time.
CREATE FUNCTION redoubt.licences_tell() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t    timestamptz := redoubt.licence_now();
    l    redoubt.licence;
    now_ text;
    days integer;
BEGIN
    PERFORM redoubt.check_epoch();
    FOR l IN SELECT * FROM redoubt.licence x ORDER BY x.id LOOP
        now_ := redoubt.licence_state(l, t);
        IF now_ <> l.told THEN
            PERFORM redoubt.event_add(NULL, 'licence_state',
                CASE WHEN now_ IN ('valid', 'pending') THEN 'info'
                     WHEN now_ IN ('grace', 'not_yet_valid') THEN 'warning' ELSE 'error' END,
                jsonb_strip_nulls(jsonb_build_object('id', l.id, 'licence', l.licence,
                    'customer', l.customer, 'state', now_, 'before', nullif(l.told, ''),
                    'why', coalesce(l.refused, nullif(l.error, '')), 'expires', l.expires)));
            UPDATE redoubt.licence x SET told = now_ WHERE x.id = l.id;
        END IF;
        days := CASE WHEN now_ NOT IN ('valid', 'grace') THEN 1000
                     WHEN l.expires < t + interval '7 days' THEN 7
                     WHEN l.expires < t + interval '30 days' THEN 30 ELSE 1000 END;
        IF days < l.told_days THEN
            PERFORM redoubt.event_add(NULL, 'licence_expiring', 'warning',
                jsonb_build_object('id', l.id, 'licence', l.licence, 'customer', l.customer,
                                   'expires', l.expires, 'days', days));
        END IF;
        IF days <> l.told_days THEN
            UPDATE redoubt.licence x SET told_days = days WHERE x.id = l.id;
        END IF;
    END LOOP;
    UPDATE redoubt.licensing k SET state = n.state
    FROM (SELECT CASE WHEN EXISTS (SELECT FROM redoubt.licence x
                                   WHERE redoubt.licence_state(x, t) IN ('valid', 'grace'))
                      THEN 'ok' WHEN j.state = 'none' THEN 'none' ELSE 'ended' END AS state
          FROM redoubt.licensing j) n
    WHERE k.state <> n.state;
END $$;

-- A step of redoubt.tick(): every ten seconds; a bounded piece at a time.
CREATE FUNCTION redoubt.licences_upkeep() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz := redoubt.licence_now();
    n bigint;
BEGIN
    PERFORM redoubt.check_epoch();
    UPDATE redoubt.licensing k SET upkeep_at = clock_timestamp()
    WHERE clock_timestamp() NOT BETWEEN k.upkeep_at AND k.upkeep_at + interval '10 s';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    DELETE FROM redoubt.seat s
    WHERE s.device IN (SELECT x.device FROM redoubt.seat x WHERE x.expires_at <= t
                       ORDER BY x.expires_at LIMIT 5000);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        PERFORM redoubt.event_add(NULL, 'licence_seats_reclaimed', 'info',
                                  jsonb_build_object('seats', n));
    END IF;
    PERFORM redoubt.seats_level(l.licence, (SELECT count(*) FROM redoubt.seat s
                                            WHERE s.licence = l.licence AND s.expires_at > t))
    FROM redoubt.licence l WHERE l.licence IS NOT NULL;
    PERFORM redoubt.licences_tell();
END $$;

-- The seat of a device that was removed or revoked is free at once.
CREATE FUNCTION redoubt.seat_of_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM redoubt.seat s WHERE s.device = OLD.id;
    IF FOUND THEN
        PERFORM redoubt.licences_changed(); -- the proxy forgets the lease, too
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER seat_removed AFTER DELETE ON redoubt.device
    FOR EACH ROW EXECUTE FUNCTION redoubt.seat_of_gone();
CREATE TRIGGER seat_revoked AFTER UPDATE OF state ON redoubt.device
    FOR EACH ROW WHEN (NEW.state = 'revoked' AND OLD.state <> 'revoked')
    EXECUTE FUNCTION redoubt.seat_of_gone();

-- Without a usable licence, where there was one, the installation is not extended: what it
-- has goes on.  Nothing that a device needs to be protected is on this list: scans, updates,
-- the quarantine, revoking, and everything that reads.  Called by redoubt.api_call().
CREATE FUNCTION redoubt.licence_gate(fn text) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF fn IN ('api_policy_put', 'api_policy_delete', 'api_rules_put', 'api_group_create',
              'api_token_create', 'api_apply')
       AND EXISTS (SELECT FROM redoubt.licensing k WHERE k.state = 'ended') THEN
        PERFORM redoubt.api_refuse(403, 'The licence has ended',
            'Without a licence the installation is not extended or changed. Devices stay '
            'protected: scans, updates and the quarantine work as before.',
            'See redoubt licence list; add a code with redoubt licence add, or a file with '
            'redoubt licence import.', 'licence_ended');
    END IF;
END $$;

-- --- redoubt-activation -----------------------------------------------------------------------

-- What the proxy knows goes in, what it is to use comes out; and the time.  file: the licence
-- file's envelope, whose signature was verified, or NULL.
CREATE FUNCTION redoubt.licence_sync(node_now timestamptz, cluster_name text, key text, file text)
RETURNS TABLE (t bigint, suspect boolean, entry uuid, source text, state text, envelope text,
               answer text, used bigint)
LANGUAGE plpgsql AS $$
DECLARE
    c    record;
    file_id uuid := (redoubt.envelope_document(file) ->> 'licence')::uuid;
    one  uuid;
BEGIN
    SELECT * INTO STRICT c FROM redoubt.licence_clock(node_now);
    UPDATE redoubt.licensing k SET cluster = cluster_name, lease_key = key
    WHERE (k.cluster, k.lease_key) <> (cluster_name, key);
    DELETE FROM redoubt.licence l
    WHERE l.source = 'file' AND l.licence IS DISTINCT FROM file_id;
    IF file_id IS NOT NULL THEN
        -- An imported copy or one that a code brought goes before the file.
        INSERT INTO redoubt.licence (source, licence, envelope, added_by)
        VALUES ('file', file_id, '', 'file') ON CONFLICT DO NOTHING;
        SELECT l.id INTO one FROM redoubt.licence l
        WHERE l.source = 'file' AND l.licence = file_id;
        IF FOUND THEN
            PERFORM redoubt.licence_fill(one, file);
        END IF;
    END IF;
    PERFORM redoubt.licences_tell();
    RETURN QUERY
    SELECT floor(extract(epoch FROM c.t))::bigint, c.suspect, l.id, l.source,
           redoubt.licence_state(l, c.t), l.envelope, l.answer,
           (SELECT count(*) FROM redoubt.seat s
            WHERE s.licence = l.licence AND s.expires_at > c.t)
    FROM (SELECT) one_row LEFT JOIN (SELECT * FROM redoubt.licence x
                                     ORDER BY x.source = 'file', x.expires DESC NULLS LAST, x.id
                                     LIMIT 64) l ON true;
END $$;

-- The request to the vendor for a code, as text.  Its nonce is stored before anybody sends
-- it, and stays until the answer is stored: the vendor answers a nonce once.
CREATE FUNCTION redoubt.licence_request(entry uuid) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    l redoubt.licence;
    k redoubt.licensing;
BEGIN
    PERFORM redoubt.check_epoch();
    UPDATE redoubt.licence x SET
        nonce = coalesce(x.nonce, replace(gen_random_uuid()::text, '-', ''))
    WHERE x.id = entry RETURNING * INTO STRICT l;
    SELECT * INTO STRICT k FROM redoubt.licensing;
    RETURN jsonb_build_object('format', 1, 'kind', 'request',
        'purpose', CASE WHEN l.licence IS NULL AND NOT l.was_active
                        THEN 'activate' ELSE 'refresh' END,
        'code', l.code, 'nonce', l.nonce, 'cluster', k.cluster,
        'installation', k.installation, 'lease_key', k.lease_key,
        'seats_used', (SELECT count(*) FROM redoubt.seat s
                       WHERE s.licence = l.licence AND s.expires_at > redoubt.licence_now()),
        'at', to_char(redoubt.licence_now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))::text;
END $$;

-- The one that is due, if one is.
CREATE FUNCTION redoubt.licence_due()
RETURNS TABLE (entry uuid, code text, nonce text, tries integer, request text)
LANGUAGE plpgsql AS $$
DECLARE
    l redoubt.licence;
    text_ text;
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT * INTO l FROM redoubt.licence x
    WHERE x.source = 'code' AND x.refused IS NULL AND x.next_try_at <= clock_timestamp()
    ORDER BY x.next_try_at, x.id LIMIT 1 FOR UPDATE;
    IF FOUND THEN
        text_ := redoubt.licence_request(l.id);
        RETURN QUERY SELECT x.id, x.code, x.nonce, x.tries, text_
                     FROM redoubt.licence x WHERE x.id = l.id;
    END IF;
END $$;

-- The vendor could not be asked, or did not answer as it should: later again, the same.
CREATE FUNCTION redoubt.licence_failed(which text, why text, wait_s double precision)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM redoubt.check_epoch();
    UPDATE redoubt.licence l SET tries = l.tries + 1, error = left(why, 300),
        next_try_at = clock_timestamp() + make_interval(secs => wait_s)
    WHERE l.nonce = which;
END $$;

-- Stores an answer whose signature was verified.  How it went: stored, refused, unknown (it
-- answers nothing that was asked, or was stored before), doubled (another code has the same
-- licence).  jitter: 0 to 1.
CREATE FUNCTION redoubt.licence_answered(given text, jitter double precision) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    d    jsonb := redoubt.envelope_document(given);
    l    redoubt.licence;
    t    timestamptz;
    life interval;
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT * INTO l FROM redoubt.licence x
    WHERE x.nonce = d ->> 'nonce' AND x.code = d ->> 'code' FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    PERFORM redoubt.licence_time_seen((d ->> 'at')::timestamptz);
    t := redoubt.licence_now();
    IF d ->> 'state' = 'refused' THEN
        UPDATE redoubt.licence x SET refused = d ->> 'reason', answer = given, nonce = NULL,
            fetched_at = t, tries = 0, error = '', next_try_at = NULL
        WHERE x.id = l.id;
    ELSE
        IF EXISTS (SELECT FROM redoubt.licence x WHERE x.source = 'code' AND x.id <> l.id
                   AND x.licence = (redoubt.envelope_document(d ->> 'licence')
                                    ->> 'licence')::uuid) THEN
            UPDATE redoubt.licence x SET refused = 'another code has the same licence',
                nonce = NULL, next_try_at = NULL WHERE x.id = l.id;
            PERFORM redoubt.licences_tell();
            RETURN 'doubled';
        END IF;
        DELETE FROM redoubt.licence x WHERE x.source <> 'code'
            AND x.licence = (redoubt.envelope_document(d ->> 'licence') ->> 'licence')::uuid;
        PERFORM redoubt.licence_fill(l.id, d ->> 'licence');
        life := greatest((d ->> 'valid_until')::timestamptz
                         - greatest(t, (d ->> 'at')::timestamptz), interval '4 s');
        UPDATE redoubt.licence x SET answer = given, nonce = NULL, fetched_at = t, tries = 0,
            error = '', valid_until = (d ->> 'valid_until')::timestamptz,
            stale_until = (d ->> 'valid_until')::timestamptz
                + make_interval(secs => (d ->> 'grace_s')::double precision),
            next_try_at = clock_timestamp() + life * (0.4 + 0.2 * jitter)
        WHERE x.id = l.id;
    END IF;
    PERFORM redoubt.licences_tell();
    PERFORM redoubt.licences_changed();
    RETURN CASE WHEN d ->> 'state' = 'refused' THEN 'refused' ELSE 'stored' END;
END $$;

-- One device asks far too often.
CREATE FUNCTION redoubt.licence_flood(device uuid, per_minute integer) RETURNS void
LANGUAGE sql AS $$
    SELECT redoubt.event_add(device, 'licence_flood', 'warning',
                             jsonb_build_object('per_minute', per_minute))
$$;

-- --- the API ----------------------------------------------------------------------------------

-- A code is told by its end only.
CREATE FUNCTION redoubt.licence_json(l redoubt.licence, t timestamptz) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', l.id, 'source', l.source,
        'state', redoubt.licence_state(l, t),
        'code', CASE WHEN l.code IS NOT NULL THEN '...' || right(l.code, 4) END,
        'licence', l.licence, 'customer', l.customer, 'product', l.product,
        'cluster', l.cluster, 'features', l.features, 'seats', l.seats,
        'used', (SELECT count(*) FROM redoubt.seat s
                 WHERE s.licence = l.licence AND s.expires_at > t),
        'not_before', l.not_before, 'expires', l.expires, 'fetched_at', l.fetched_at,
        'valid_until', l.valid_until, 'stale_until', l.stale_until,
        'next_try_at', l.next_try_at, 'tries', l.tries,
        'error', coalesce(l.refused, l.error), 'added_at', l.added_at, 'added_by', l.added_by)
$$;

CREATE FUNCTION redoubt.licence_of(path jsonb) RETURNS redoubt.licence
LANGUAGE plpgsql STABLE AS $$
DECLARE
    l redoubt.licence;
BEGIN
    SELECT * INTO l FROM redoubt.licence x WHERE x.id = redoubt.as_uuid(path ->> 'id');
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such licence.',
                                   'redoubt licence list shows the ids.');
    END IF;
    RETURN l;
END $$;

CREATE FUNCTION redoubt.api_licences_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    t     timestamptz := redoubt.licence_now();
    k     redoubt.licensing;
    items jsonb;
BEGIN
    PERFORM redoubt.require(actor, 'auditor', NULL);
    SELECT * INTO STRICT k FROM redoubt.licensing;
    SELECT coalesce(jsonb_agg(redoubt.licence_json(l, t)
                    ORDER BY l.source = 'file', l.expires DESC NULLS LAST, l.id), '[]')
    INTO items FROM redoubt.licence l;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'items', items, 'next', NULL, 'state', k.state, 'clock', k.clock,
        'clock_why', k.clock_why, 'installation', k.installation, 'lease_key', k.lease_key));
END $$;

CREATE FUNCTION redoubt.api_licence_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM redoubt.require(actor, 'auditor', NULL);
    RETURN jsonb_build_object('status', 200, 'body',
        redoubt.licence_json(redoubt.licence_of(path), redoubt.licence_now()));
END $$;

-- A code; the proxy asks the vendor at once.  One that was refused is asked for anew; one
-- that was removed goes on with the request that it had.
CREATE FUNCTION redoubt.api_licence_add(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    given  text := body ->> 'code';
    once   redoubt.licence_code;
    before redoubt.licence;
    l      redoubt.licence;
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    PERFORM redoubt.api_members(body, ARRAY['code']);
    IF jsonb_typeof(body -> 'code') IS DISTINCT FROM 'string'
       OR given !~ '^[A-Za-z0-9][A-Za-z0-9-]{6,62}[A-Za-z0-9]$' THEN
        PERFORM redoubt.api_refuse(400, 'code is wrong',
            'An activation code is 8 to 64 letters, digits and hyphens.',
            'Write it as the vendor sent it.');
    END IF;
    IF (SELECT count(*) FROM redoubt.licence) >= 64 THEN
        PERFORM redoubt.api_refuse(409, 'There are too many licences',
            'An installation has at most 64.', 'Remove one that has ended.', 'too_many');
    END IF;
    SELECT * INTO before FROM redoubt.licence x WHERE x.code = given FOR UPDATE;
    IF NOT FOUND THEN
        DELETE FROM redoubt.licence_code x WHERE x.code = given RETURNING * INTO once;
        INSERT INTO redoubt.licence (source, code, nonce, was_active, next_try_at, added_by)
        VALUES ('code', given, once.nonce, coalesce(once.was_active, false), clock_timestamp(),
                coalesce(actor ->> 'name', ''))
        RETURNING * INTO l;
        PERFORM redoubt.audit_add(actor, 'licence_add', l.id::text, NULL,
                                  jsonb_build_object('code', '...' || right(given, 4)));
    ELSE
        UPDATE redoubt.licence x SET refused = NULL, next_try_at = clock_timestamp()
        WHERE x.id = before.id RETURNING * INTO l;
        PERFORM redoubt.audit_add(actor, 'licence_retry', l.id::text, NULL, NULL);
    END IF;
    PERFORM redoubt.licences_tell();
    PERFORM redoubt.licences_changed();
    RETURN jsonb_build_object('status', 201, 'body',
                              redoubt.licence_json(l, redoubt.licence_now()));
END $$;

-- body: {"envelope", "problem"}, made by the manager, which has verified the envelope: a
-- licence, or the vendor's answer.
CREATE FUNCTION redoubt.api_licence_import(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    given text := (body -> 'envelope')::text;
    d     jsonb;
    l     redoubt.licence;
    went  text;
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    IF jsonb_typeof(body -> 'problem') IS DISTINCT FROM 'null' THEN
        PERFORM redoubt.api_refuse(422, 'It cannot be imported', body ->> 'problem',
            'Import the file exactly as the vendor sent it; it carries a signature, which is '
            'verified with [activation] anchor.', 'licence_invalid');
    END IF;
    d := redoubt.envelope_document(given);
    IF d ->> 'kind' = 'answer' THEN
        SELECT * INTO l FROM redoubt.licence x WHERE x.nonce = d ->> 'nonce';
        went := redoubt.licence_answered(given, 0.5);
        IF went = 'unknown' THEN
            PERFORM redoubt.api_refuse(409, 'Nobody asked for this answer',
                'It answers another request, or it was imported before.',
                'Make a new request with redoubt licence request.', 'answer_unknown');
        END IF;
    ELSE
        SELECT * INTO l FROM redoubt.licence x
        WHERE x.licence = (d ->> 'licence')::uuid FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO redoubt.licence (source, licence, envelope, added_by)
            VALUES ('import', (d ->> 'licence')::uuid, '', coalesce(actor ->> 'name', ''))
            RETURNING * INTO l;
        ELSIF coalesce((d ->> 'serial')::bigint, 0) < l.serial THEN
            PERFORM redoubt.api_refuse(409, 'This is an older copy of the licence',
                format('Its serial is %s, the one in use has %s.',
                       coalesce(d ->> 'serial', '0'), l.serial), '', 'licence_older');
        ELSIF l.source = 'file' THEN
            UPDATE redoubt.licence x SET source = 'import' WHERE x.id = l.id;
        END IF;
        PERFORM redoubt.licence_fill(l.id, given);
        PERFORM redoubt.licences_tell();
        PERFORM redoubt.licences_changed();
    END IF;
    SELECT * INTO STRICT l FROM redoubt.licence x WHERE x.id = l.id;
    PERFORM redoubt.audit_add(actor, 'licence_import', l.id::text, NULL,
        d - 'licence' - 'code' - 'nonce' || jsonb_build_object('licence', l.licence));
    RETURN jsonb_build_object('status', 201, 'body',
                              redoubt.licence_json(l, redoubt.licence_now()));
END $$;

-- The request for the vendor, to be carried there by hand.
CREATE FUNCTION redoubt.api_licence_request(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    l     redoubt.licence;
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    l := redoubt.licence_of(path);
    IF l.source <> 'code' OR l.refused IS NOT NULL THEN
        PERFORM redoubt.api_refuse(409, 'There is nothing to ask for',
            'Only a licence that was added by its code has a request, and not if it was refused.',
            'redoubt licence add CODE', 'no_request');
    ELSIF (SELECT k.lease_key = '' FROM redoubt.licensing k) THEN
        PERFORM redoubt.api_refuse(503, 'The lease key is not known yet',
            'redoubt-activation has not been active on any node with a lease key.',
            'See redoubt status and [activation] key.', 'no_lease_key');
    END IF;
    PERFORM redoubt.audit_add(actor, 'licence_request', l.id::text, NULL, NULL);
    RETURN jsonb_build_object('status', 200, 'body', redoubt.licence_request(l.id)::jsonb);
END $$;

-- What the vendor may have of a code is kept, of the last thousand.  Not of one that the
-- vendor refused: it starts anew.
CREATE FUNCTION redoubt.licence_code_keep(l redoubt.licence) RETURNS void LANGUAGE sql AS $$
    INSERT INTO redoubt.licence_code (code, nonce, was_active)
    SELECT l.code, l.nonce, l.was_active OR l.licence IS NOT NULL
    WHERE l.code IS NOT NULL AND l.refused IS NULL
      AND (l.nonce IS NOT NULL OR l.was_active OR l.licence IS NOT NULL);
    DELETE FROM redoubt.licence_code x
    WHERE x.code IN (SELECT y.code FROM redoubt.licence_code y
                     ORDER BY y.removed_at DESC OFFSET 1000)
$$;

CREATE FUNCTION redoubt.api_licence_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    l redoubt.licence;
    b jsonb;
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    l := redoubt.licence_of(path);
    IF l.source = 'file' THEN
        PERFORM redoubt.api_refuse(409, 'It is the licence file',
            'The licence comes from the file of [activation] licence.',
            'Remove that file on both nodes.', 'licence_file');
    END IF;
    b := redoubt.licence_json(l, redoubt.licence_now());
    PERFORM redoubt.licence_code_keep(l);
    DELETE FROM redoubt.licence x WHERE x.id = l.id;
    PERFORM redoubt.audit_add(actor, 'licence_remove', l.id::text, b, NULL);
    PERFORM redoubt.licences_tell();
    PERFORM redoubt.licences_changed();
    RETURN jsonb_build_object('status', 200, 'body', b);
END $$;

CREATE FUNCTION redoubt.api_seats_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    most   integer := redoubt.api_limit(query);
    low    uuid := redoubt.api_uuid(query, 'cursor');
    one    uuid := redoubt.api_uuid(query, 'licence');
    t      timestamptz := redoubt.licence_now();
    groups uuid[] := redoubt.scope_groups(actor);
    items  jsonb;
    n      integer;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT coalesce(jsonb_agg(jsonb_build_object('device', s.device, 'device_name', s.name,
               'licence', s.licence, 'taken_at', s.taken_at, 'issued_at', s.issued_at,
               'expires_at', s.expires_at, 'device_key', s.device_key) ORDER BY s.device), '[]'),
           count(*)
    INTO items, n
    FROM (SELECT x.*, d.name FROM redoubt.seat x LEFT JOIN redoubt.device d ON d.id = x.device
          WHERE x.expires_at > t AND (low IS NULL OR x.device > low)
            AND (one IS NULL OR x.licence = one)
            AND (groups IS NULL OR d.group_id = ANY (groups))
          ORDER BY x.device LIMIT most) s;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'device' END));
END $$;
