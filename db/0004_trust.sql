-- What a device may be trusted with: enrolment, certificates, revocation, clones.
-- works-since: 1
--
-- A device is known by the id in its certificate.  The authority's key never comes here: the
-- manager reads what waits (signing_pending), signs it, and stores the result (signing_done).
-- docs/protocol/enrolment.md tells the story from the device's side.

ALTER TABLE redoubt.device
    ADD COLUMN state           text NOT NULL DEFAULT 'active'
                               CHECK (state IN ('active', 'pending', 'revoked')),
    ADD COLUMN serial          text,
    ADD COLUMN not_after       timestamptz,
    ADD COLUMN address         inet,
    ADD COLUMN instance        text,
    ADD COLUMN instances       text[] NOT NULL DEFAULT '{}',
    ADD COLUMN connected_epoch bigint,
    ADD COLUMN connected_at    timestamptz,
    ADD COLUMN connected_node  text;
COMMENT ON COLUMN redoubt.device.serial IS 'Of the certificate it connected with last; hex.';
COMMENT ON COLUMN redoubt.device.instance IS
    'redoubt.instance of the agent that connected last: new with each start of an agent.';
COMMENT ON COLUMN redoubt.device.instances IS
    'Those before it, newest first. One that comes back is an agent that never ended.';

CREATE TABLE redoubt.certificate (
    serial     text PRIMARY KEY CHECK (serial ~ '^[0-9a-f]{1,64}$'),
    device_id  uuid NOT NULL,
    not_before timestamptz,
    not_after  timestamptz,
    issued_at  timestamptz,
    revoked_at timestamptz,
    reason     text
);
COMMENT ON TABLE redoubt.certificate IS
    'Certificates of devices: those issued here, and those of the authority that were seen. '
    'Rows outlive their device, so that a revoked certificate stays revoked.';
CREATE INDEX certificate_by_device ON redoubt.certificate (device_id);

CREATE TABLE redoubt.enrol_token (
    id         text PRIMARY KEY,
    hash       bytea NOT NULL,
    name       text NOT NULL CHECK (name ~ '^[^[:cntrl:]]{1,100}$'),
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL DEFAULT '',
    expires_at timestamptz NOT NULL,
    uses_max   integer NOT NULL CHECK (uses_max > 0),
    uses       integer NOT NULL DEFAULT 0,
    group_id   uuid,
    approval   boolean NOT NULL DEFAULT false,
    revoked_at timestamptz
);
COMMENT ON TABLE redoubt.enrol_token IS
    'What a device shows to be enrolled. Of its secret only the SHA-256 is kept.';
CREATE INDEX enrol_token_by_age ON redoubt.enrol_token (created_at, id);

CREATE TABLE redoubt.enrol_request (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    kind       text NOT NULL CHECK (kind IN ('enrolment', 'renewal')),
    device_id  uuid NOT NULL,
    asked_by   uuid NOT NULL,
    key_hash   bytea NOT NULL UNIQUE,
    csr        text NOT NULL CHECK (length(csr) <= 8192),
    name       text NOT NULL DEFAULT '',
    token_id   text,
    state      text NOT NULL CHECK (state IN ('pending', 'approved', 'refused', 'issued')),
    serial     text,
    pem        text,
    why        text,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE redoubt.enrol_request IS
    'Signing requests: one enrolment a device for good, and one renewal until it is used.';
COMMENT ON COLUMN redoubt.enrol_request.asked_by IS
    'The device whose connection brought it; for a clone the identity that it shares.';
COMMENT ON COLUMN redoubt.enrol_request.key_hash IS
    'SHA-256 of the public key (enrolment) or of the request (renewal): a repeat is the same.';
CREATE INDEX enrol_request_by_device ON redoubt.enrol_request (device_id);
CREATE UNIQUE INDEX enrol_request_renewal ON redoubt.enrol_request (device_id)
    WHERE kind = 'renewal';
CREATE INDEX enrol_request_to_sign ON redoubt.enrol_request (created_at)
    WHERE state = 'approved';

CREATE TABLE redoubt.clone (
    device_id uuid NOT NULL,
    instance  text NOT NULL,
    new_id    uuid NOT NULL UNIQUE,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device_id, instance)
);
COMMENT ON TABLE redoubt.clone IS
    'Agents that use the identity of another device, and the identity they are to have.';

CREATE TABLE redoubt.authority (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    certificate text NOT NULL,
    digest      text NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE redoubt.authority IS
    'The certificate of the authority that signs now; digest: base64url of its SHA-256.';

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['certificate', 'enrol_token', 'enrol_request', 'clone',
                             'authority'] LOOP
        EXECUTE format('CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE '
                       'ON redoubt.%I FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced()',
                       t);
    END LOOP;
END $$;

-- The trust in a device ends with its row: it would come back with its certificate.
CREATE FUNCTION redoubt.device_forgotten() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE redoubt.certificate c SET revoked_at = now(), reason = 'the device was removed'
    WHERE c.device_id = OLD.id AND c.revoked_at IS NULL;
    DELETE FROM redoubt.enrol_request r WHERE r.device_id = OLD.id;
    DELETE FROM redoubt.clone k WHERE k.device_id = OLD.id;
    PERFORM redoubt.device_changed(OLD.id);
    RETURN NULL;
END $$;
CREATE TRIGGER forgotten AFTER DELETE ON redoubt.device
    FOR EACH ROW EXECUTE FUNCTION redoubt.device_forgotten();

-- Tells the workers, when this is committed, to look at a device anew.
CREATE FUNCTION redoubt.device_changed(id uuid) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('redoubt', json_build_object('t', 'device', 'd', device_changed.id)::text)
$$;

CREATE FUNCTION redoubt.sign_soon() RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('redoubt', '{"t":"sign"}')
$$;

-- --- who connects ---------------------------------------------------------------------------

-- An agent says which one it is with each connection.  One that had already been followed by
-- another, and is still the same process, was never gone: those after it use its identity.
CREATE FUNCTION redoubt.instance_told(device uuid, told text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    d      redoubt.device;
    at     integer;
    other  text;
    own    uuid;
BEGIN
    SELECT * INTO d FROM redoubt.device x WHERE x.id = device FOR NO KEY UPDATE;
    IF NOT FOUND OR d.instance IS NOT DISTINCT FROM told
       OR EXISTS (SELECT FROM redoubt.clone k WHERE k.device_id = d.id AND k.instance = told)
    THEN
        RETURN;
    END IF;
    at := array_position(d.instances, told);
    IF at IS NULL THEN
        UPDATE redoubt.device x SET instance = told,
            instances = CASE WHEN d.instance IS NULL THEN d.instances
                             ELSE (array_prepend(d.instance, d.instances))[1:8] END
        WHERE x.id = d.id;
        RETURN;
    END IF;
    FOREACH other IN ARRAY array_prepend(d.instance, d.instances[1:at - 1]) LOOP
        own := gen_random_uuid();
        INSERT INTO redoubt.clone (device_id, instance, new_id)
        VALUES (d.id, other, own) ON CONFLICT DO NOTHING;
        PERFORM redoubt.event_add(d.id, 'device_clone', 'warning', jsonb_build_object(
            'instance', told, 'clone', other, 'new_device', own, 'address', d.address));
    END LOOP;
    UPDATE redoubt.device x SET instance = told, instances = d.instances[at + 1:]
    WHERE x.id = d.id;
END $$;

-- What an item of a batch says about a connection.
CREATE TYPE redoubt.hello AS (n bigint, id uuid, fresh boolean, serial text,
                              not_after timestamptz, address inet, instance text, node text);

CREATE FUNCTION redoubt.hello_items(items jsonb) RETURNS SETOF redoubt.hello
LANGUAGE sql IMMUTABLE AS $$
    SELECT i.n, (i.item ->> 'device')::uuid, i.item ? 'hello', h.h ->> 'serial',
           to_timestamp((h.h ->> 'not_after')::double precision),
           nullif(h.h ->> 'address', '')::inet, left(h.h ->> 'instance', 100),
           h.h ->> 'node'
    FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n),
         LATERAL (SELECT CASE WHEN i.item ? 'hello' THEN i.item -> 'hello'
                              ELSE i.item -> 'refresh' END AS h) h
    WHERE i.item ?| ARRAY['hello', 'refresh']
$$;

-- The instances of these connections.  What is usual in one statement; one by one those that
-- the device has had before, and devices that are there more than once.
CREATE FUNCTION redoubt.instances_told(fresh redoubt.hello[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    told record;
BEGIN
    UPDATE redoubt.device d
    SET instance = t.instance,
        instances = CASE WHEN d.instance IS NULL THEN d.instances
                         ELSE (array_prepend(d.instance, d.instances))[1:8] END
    FROM (SELECT h.id, min(h.instance) AS instance FROM unnest(fresh) h
          WHERE h.instance <> '' GROUP BY h.id HAVING count(*) = 1) t
    WHERE d.id = t.id AND d.instance IS DISTINCT FROM t.instance
      AND array_position(d.instances, t.instance) IS NULL
      AND NOT EXISTS (SELECT FROM redoubt.clone k
                      WHERE k.device_id = t.id AND k.instance = t.instance);
    FOR told IN
        SELECT h.id, h.instance FROM unnest(fresh) h JOIN redoubt.device d ON d.id = h.id
        WHERE h.instance <> '' AND d.instance IS DISTINCT FROM h.instance
        ORDER BY h.n
    LOOP
        PERFORM redoubt.instance_told(told.id, told.instance);
    END LOOP;
END $$;

-- hello: a connection began.  refresh: the same answer, of what is known; its value may be
-- {"instance", "serial"} to ask for a connection that is not the device's latest.
CREATE FUNCTION redoubt.x_hello(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    hellos  constant redoubt.hello[] := ARRAY(SELECT h FROM redoubt.hello_items(items) h);
    fresh   constant redoubt.hello[] := ARRAY(SELECT h FROM unnest(hellos) h WHERE h.fresh);
    adopted uuid[];
BEGIN
    -- Who shows a certificate of our authority belongs to us, though its row is not here: the
    -- authority was used before, or the DBMS came back from a backup.
    WITH made AS (
        INSERT INTO redoubt.device (id)
        SELECT DISTINCT h.id FROM unnest(fresh) h
        WHERE NOT EXISTS (SELECT FROM redoubt.device d WHERE d.id = h.id)
          AND NOT EXISTS (SELECT FROM redoubt.certificate c
                          WHERE c.serial = h.serial AND c.revoked_at IS NOT NULL)
        ORDER BY 1
        ON CONFLICT DO NOTHING RETURNING id)
    SELECT array_agg(m.id ORDER BY m.id) INTO adopted FROM made m;
    PERFORM redoubt.events_add(adopted, 'device_adopted');
    INSERT INTO redoubt.certificate (serial, device_id, not_after)
    SELECT DISTINCT ON (h.serial) h.serial, h.id, h.not_after
    FROM unnest(fresh) h
    WHERE h.serial ~ '^[0-9a-f]{1,64}$'
      AND NOT EXISTS (SELECT FROM redoubt.certificate c WHERE c.serial = h.serial)
      AND EXISTS (SELECT FROM redoubt.device d WHERE d.id = h.id)
    ORDER BY h.serial
    ON CONFLICT DO NOTHING;
    PERFORM redoubt.instances_told(fresh);

    UPDATE redoubt.device d
    SET serial = h.serial, not_after = h.not_after, address = h.address,
        connected_epoch = current_setting('redoubt.epoch')::bigint,
        connected_at = clock_timestamp(), connected_node = h.node
    FROM (SELECT DISTINCT ON (i.id) i.* FROM unnest(fresh) i ORDER BY i.id, i.n DESC) h
    WHERE d.id = h.id AND d.state = 'active'
      AND NOT EXISTS (SELECT FROM redoubt.certificate c
                      WHERE c.serial = h.serial AND c.revoked_at IS NOT NULL)
      AND NOT EXISTS (SELECT FROM redoubt.clone k
                      WHERE k.device_id = h.id AND k.instance = h.instance);
    -- A renewed certificate that is in use has been fetched.
    DELETE FROM redoubt.enrol_request r USING unnest(fresh) h
    WHERE r.device_id = h.id AND r.kind = 'renewal' AND r.serial = h.serial;

    RETURN QUERY
    SELECT h.n, jsonb_build_object('hello', CASE
        WHEN d.id IS NULL OR d.state = 'revoked' OR c.revoked_at IS NOT NULL
            THEN '{"state": "revoked"}'
        WHEN k.new_id IS NOT NULL THEN jsonb_strip_nulls(jsonb_build_object(
            'state', 'clone', 'new_id', k.new_id, 'certificate', r.pem))
        WHEN d.state = 'pending' THEN '{"state": "pending"}'
        ELSE jsonb_strip_nulls(jsonb_build_object(
            'state', 'ok', 'group', d.group_id, 'policy_hash', e.hash, 'certificate', r.pem,
            'streams', (SELECT coalesce(jsonb_object_agg(s.stream, s.through), '{}')
                        FROM redoubt.event_cursor s WHERE s.device_id = d.id)))
        END)
    FROM unnest(hellos) h
    LEFT JOIN redoubt.device d ON d.id = h.id
    LEFT JOIN redoubt.certificate c ON c.serial = coalesce(h.serial, d.serial)
    LEFT JOIN redoubt.clone k ON k.device_id = h.id AND k.instance = h.instance
    LEFT JOIN redoubt.effective e ON e.group_id = d.group_id
    LEFT JOIN redoubt.enrol_request r
        ON r.device_id = coalesce(k.new_id, h.id) AND r.kind = 'renewal'
       AND r.state = 'issued' AND r.serial IS DISTINCT FROM coalesce(h.serial, d.serial);
END $$;

-- csr: {"pem", "instance"} of a device that is connected: a renewal; of a clone: the request
-- for its own identity.  The same request again is answered with what became of it, another
-- one takes its place, at most once a minute.
CREATE FUNCTION redoubt.x_csr(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    i      record;
    d      redoubt.device;
    target uuid;
    r      redoubt.enrol_request;
BEGIN
    FOR i IN SELECT e.n, (e.item ->> 'device')::uuid AS id, e.item -> 'csr' ->> 'pem' AS pem,
                    left(e.item -> 'csr' ->> 'instance', 100) AS instance
             FROM jsonb_array_elements(items) WITH ORDINALITY AS e (item, n)
             WHERE e.item ? 'csr' ORDER BY 2, 1
    LOOP
        SELECT * INTO d FROM redoubt.device x WHERE x.id = i.id AND x.state = 'active';
        CONTINUE WHEN NOT FOUND OR coalesce(length(i.pem), 8193) > 8192;
        SELECT k.new_id INTO target FROM redoubt.clone k
        WHERE k.device_id = i.id AND k.instance = i.instance;
        IF FOUND THEN
            INSERT INTO redoubt.device (id, name, group_id)
            VALUES (target, d.name, d.group_id) ON CONFLICT DO NOTHING;
        ELSE
            target := i.id;
        END IF;
        INSERT INTO redoubt.enrol_request AS q (kind, device_id, asked_by, key_hash, csr, state)
        VALUES ('renewal', target, i.id, sha256(convert_to(i.pem, 'UTF8')), i.pem, 'approved')
        ON CONFLICT (device_id) WHERE kind = 'renewal' DO UPDATE SET
            asked_by = excluded.asked_by, key_hash = excluded.key_hash, csr = excluded.csr,
            state = 'approved', pem = NULL, serial = NULL, why = NULL, created_at = now()
        WHERE q.key_hash <> excluded.key_hash AND q.created_at < now() - interval '1 minute';
        IF FOUND THEN
            PERFORM redoubt.sign_soon();
        END IF;
        SELECT * INTO r FROM redoubt.enrol_request q
        WHERE q.device_id = target AND q.kind = 'renewal';
        IF r.state = 'issued' AND r.key_hash = sha256(convert_to(i.pem, 'UTF8')) THEN
            n := i.n;
            answer := jsonb_build_object('csr', jsonb_build_object(
                'device', target, 'certificate', r.pem));
            RETURN NEXT;
        ELSIF r.state = 'refused' THEN
            n := i.n;
            answer := jsonb_build_object('csr', jsonb_build_object('refused', r.why));
            RETURN NEXT;
        END IF;
    END LOOP;
END $$;

-- --- enrolment ------------------------------------------------------------------------------

-- A device shows a token and a signing request, which the caller has checked.  The answer is
-- {"state": "approved", "id", "device", "csr"}: to be signed now, {"state": "pending",
-- "device"}: to be asked again, or {"state": "issued", "device", "pem"}.  A refusal is RH403.
CREATE FUNCTION redoubt.enrol(token_id text, secret_hash bytea, key_hash bytea, csr text,
                              name text)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    t      redoubt.enrol_token;
    r      redoubt.enrol_request;
    d      redoubt.device;
    device uuid := gen_random_uuid();
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT * INTO t FROM redoubt.enrol_token x WHERE x.id = enrol.token_id
    FOR UPDATE;
    IF NOT FOUND OR t.hash <> secret_hash THEN
        PERFORM redoubt.api_refuse(403, 'The token is not known',
            'No enrolment token like this exists.',
            'Copy it completely, or ask for a new one: redoubt token create.',
            'token_unknown');
    END IF;
    -- The same key again is the same request, whatever became of the token since.
    SELECT * INTO r FROM redoubt.enrol_request x WHERE x.key_hash = enrol.key_hash;
    IF FOUND THEN
        SELECT * INTO d FROM redoubt.device x WHERE x.id = r.device_id;
        IF r.token_id IS DISTINCT FROM t.id OR d.state = 'revoked' OR r.state = 'refused' THEN
            PERFORM redoubt.api_refuse(403, 'The enrolment was refused',
                coalesce(r.why, CASE WHEN d.state = 'revoked' THEN 'The device was revoked.'
                                     ELSE 'The key was enrolled with another token.' END),
                'Ask the administrator. Repeating the enrolment begins with a new key.',
                'enrolment_refused');
        END IF;
        RETURN jsonb_build_object('state', r.state, 'id', r.id, 'device', r.device_id,
                                  'csr', r.csr, 'pem', r.pem);
    END IF;
    IF t.revoked_at IS NOT NULL THEN
        PERFORM redoubt.api_refuse(403, 'The token was revoked',
            format('The enrolment token "%s" was revoked.', t.name), 'Ask for a new one.',
            'token_revoked');
    ELSIF t.expires_at <= now() THEN
        PERFORM redoubt.api_refuse(403, 'The token has expired',
            format('The enrolment token "%s" expired on %s.', t.name,
                   to_char(t.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')),
            'Ask for a new one.', 'token_expired');
    ELSIF t.uses >= t.uses_max THEN
        PERFORM redoubt.api_refuse(403, 'The token is used up',
            format('The enrolment token "%s" was good for %s.', t.name,
                   CASE t.uses_max WHEN 1 THEN 'one device' ELSE t.uses_max || ' devices' END),
            'Ask for a new one.', 'token_used');
    END IF;

    UPDATE redoubt.enrol_token x SET uses = x.uses + 1 WHERE x.id = t.id;
    INSERT INTO redoubt.device (id, name, state, group_id)
    VALUES (device, coalesce(enrol.name, ''),
            CASE WHEN t.approval THEN 'pending' ELSE 'active' END,
            coalesce((SELECT g.id FROM redoubt.device_group g WHERE g.id = t.group_id),
                     (SELECT g.id FROM redoubt.device_group g WHERE g.path = '/')));
    INSERT INTO redoubt.enrol_request (kind, device_id, asked_by, key_hash, csr, name, token_id,
                                       state)
    VALUES ('enrolment', device, device, enrol.key_hash, enrol.csr, coalesce(enrol.name, ''),
            t.id, CASE WHEN t.approval THEN 'pending' ELSE 'approved' END)
    RETURNING * INTO r;
    PERFORM redoubt.event_add(device,
        CASE WHEN t.approval THEN 'device_pending' ELSE 'device_enrolled' END,
        CASE WHEN t.approval THEN 'warning' ELSE 'info' END,
        jsonb_build_object('name', r.name, 'token', t.id, 'token_name', t.name));
    RETURN jsonb_build_object('state', r.state, 'id', r.id, 'device', device, 'csr', r.csr);
END $$;

-- What waits to be signed, oldest first.
CREATE FUNCTION redoubt.signing_pending(most integer)
RETURNS TABLE (id uuid, device_id uuid, csr text) LANGUAGE sql STABLE AS $$
    SELECT r.id, r.device_id, r.csr FROM redoubt.enrol_request r
    WHERE r.state = 'approved' ORDER BY r.created_at LIMIT most
$$;

-- done: [{"id", "csr_hash": hex of what was signed, "serial", "not_before", "not_after" (Unix
-- seconds), "pem"} or {"id", "refused": why}].  Of two that signed the same the first counts;
-- the answer is the certificates that are stored, by id.
CREATE FUNCTION redoubt.signing_done(done jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    i      jsonb;
    r      redoubt.enrol_request;
    stored jsonb := '{}';
BEGIN
    PERFORM redoubt.check_epoch();
    FOR i IN SELECT e.i FROM jsonb_array_elements(done) AS e (i) ORDER BY e.i ->> 'id' LOOP
        SELECT * INTO r FROM redoubt.enrol_request x WHERE x.id = (i ->> 'id')::uuid
        FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF r.state = 'issued' THEN
            stored := stored || jsonb_build_object(r.id::text, r.pem);
        END IF;
        CONTINUE WHEN r.state <> 'approved';
        IF i ? 'refused' THEN
            UPDATE redoubt.enrol_request x SET state = 'refused', why = i ->> 'refused'
            WHERE x.id = r.id;
            PERFORM redoubt.event_add(r.asked_by, 'certificate_refused', 'warning',
                                      jsonb_build_object('why', i ->> 'refused'));
            CONTINUE;
        END IF;
        -- Another request has taken the place of the one that was signed.
        CONTINUE WHEN i ->> 'csr_hash' <> encode(sha256(convert_to(r.csr, 'UTF8')), 'hex');
        INSERT INTO redoubt.certificate (serial, device_id, not_before, not_after, issued_at)
        VALUES (i ->> 'serial', r.device_id,
                to_timestamp((i ->> 'not_before')::double precision),
                to_timestamp((i ->> 'not_after')::double precision), now());
        UPDATE redoubt.enrol_request x SET state = 'issued', serial = i ->> 'serial',
                                           pem = i ->> 'pem'
        WHERE x.id = r.id;
        stored := stored || jsonb_build_object(r.id::text, i ->> 'pem');
        IF r.kind = 'renewal' THEN
            PERFORM redoubt.event_add(r.device_id, 'certificate_renewed', 'info',
                jsonb_build_object('serial', i ->> 'serial', 'not_after', i -> 'not_after'));
            PERFORM redoubt.device_changed(r.asked_by);
        END IF;
    END LOOP;
    RETURN stored;
END $$;

-- The manager of the active node says which authority it signs with.
CREATE FUNCTION redoubt.authority_set(certificate text, digest text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM redoubt.check_epoch();
    INSERT INTO redoubt.authority AS a (certificate, digest)
    VALUES (authority_set.certificate, authority_set.digest)
    ON CONFLICT (only_row) DO UPDATE SET certificate = excluded.certificate,
                                         digest = excluded.digest, changed_at = now()
    WHERE a.digest <> excluded.digest;
END $$;

-- --- the API: enrolment tokens -------------------------------------------------------------

CREATE FUNCTION redoubt.enrol_token_json(t redoubt.enrol_token) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN jsonb_build_object('id', t.id, 'name', t.name, 'group', t.group_id,
        'group_path', (SELECT g.path FROM redoubt.device_group g WHERE g.id = t.group_id),
        'approval', t.approval, 'uses', t.uses, 'uses_max', t.uses_max,
        'created_at', t.created_at, 'created_by', t.created_by, 'expires_at', t.expires_at,
        'revoked_at', t.revoked_at,
        'state', CASE WHEN t.revoked_at IS NOT NULL THEN 'revoked'
                      WHEN t.expires_at <= now() THEN 'expired'
                      WHEN t.uses >= t.uses_max THEN 'used' ELSE 'valid' END);
END $$;

CREATE FUNCTION redoubt.api_tokens_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    n     integer := redoubt.api_limit(query);
    after text := nullif(query ->> 'cursor', '');
    items jsonb;
    last  text;
    more  boolean;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    WITH page AS (
        SELECT t, row_number() OVER (ORDER BY t.created_at, t.id) AS i
        FROM redoubt.enrol_token t
        WHERE redoubt.may_see(actor, t.group_id)
          AND (after IS NULL OR (t.created_at, t.id) >
               (SELECT a.created_at, a.id FROM redoubt.enrol_token a WHERE a.id = after))
        ORDER BY t.created_at, t.id LIMIT n + 1)
    SELECT coalesce(jsonb_agg(redoubt.enrol_token_json(p.t) ORDER BY p.i)
                    FILTER (WHERE p.i <= n), '[]'),
           (array_agg((p.t).id) FILTER (WHERE p.i = n))[1], count(*) > n
    INTO items, last, more FROM page p;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'items', items, 'next', CASE WHEN more THEN last END));
END $$;

-- A whole number in a body, between low and high.
CREATE FUNCTION redoubt.body_number(body jsonb, key text, dflt integer, low integer,
                                    high integer)
RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    given jsonb := coalesce(body -> key, to_jsonb(dflt));
BEGIN
    IF jsonb_typeof(given) <> 'number' OR given::text !~ '^[0-9]{1,9}$'
       OR given::text::integer NOT BETWEEN low AND high THEN
        PERFORM redoubt.api_refuse(400, key || ' is wrong',
            format('It must be a whole number between %s and %s.', low, high), '');
    END IF;
    RETURN given::text::integer;
END $$;

-- body: name, group (id or path; default: the top), uses (1), expires_hours (168), approval
-- (false).  The token itself is told this once.
CREATE FUNCTION redoubt.api_token_create(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    name     text := body ->> 'name';
    wanted   text := coalesce(body ->> 'group', '/');
    uses     integer;
    hours    integer;
    g        uuid;
    secret   text;
    pinned   text;
    t        redoubt.enrol_token;
BEGIN
    PERFORM redoubt.api_members(body, ARRAY['name', 'group', 'uses', 'expires_hours',
                                            'approval']);
    uses := redoubt.body_number(body, 'uses', 1, 1, 1000000);
    hours := redoubt.body_number(body, 'expires_hours', 168, 1, 87600);
    IF jsonb_typeof(body -> 'name') IS DISTINCT FROM 'string'
       OR name !~ '^[^[:cntrl:]]{1,100}$' THEN
        PERFORM redoubt.api_refuse(400, 'name is wrong',
            'It must be 1 to 100 characters, without control characters.', '');
    ELSIF jsonb_typeof(coalesce(body -> 'approval', 'false')) <> 'boolean' THEN
        PERFORM redoubt.api_refuse(400, 'approval is wrong', 'It must be true or false.', '');
    END IF;
    SELECT d.id INTO g FROM redoubt.device_group d
    WHERE d.path = wanted OR d.id::text = lower(wanted);
    IF NOT FOUND OR NOT redoubt.may_see(actor, g) THEN
        PERFORM redoubt.api_refuse(400, 'group is wrong',
            format('There is no group "%s".', left(wanted, 200)), '');
    END IF;
    PERFORM redoubt.require(actor, 'administrator', g);
    SELECT a.digest INTO pinned FROM redoubt.authority a;
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(503, 'The authority is not known yet',
            'No manager has said yet which authority signs the certificates.',
            'Was redoubt init run, and is redoubt-manager active? See redoubt status.',
            'no_authority');
    END IF;
    secret := replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
    INSERT INTO redoubt.enrol_token (id, hash, name, created_by, expires_at, uses_max, group_id,
                                     approval)
    VALUES (substr(replace(gen_random_uuid()::text, '-', ''), 1, 12),
            sha256(convert_to(secret, 'UTF8')), name, coalesce(actor ->> 'name', ''),
            now() + make_interval(hours => hours), uses, g,
            coalesce((body ->> 'approval')::boolean, false))
    RETURNING * INTO t;
    PERFORM redoubt.audit_add(actor, 'token_create', t.id, NULL, redoubt.enrol_token_json(t));
    RETURN jsonb_build_object('status', 201, 'body', redoubt.enrol_token_json(t) ||
        jsonb_build_object('token', format('rdt1.%s.%s.%s', t.id, secret, pinned)));
END $$;

-- Revokes it; what was enrolled with it stays.
CREATE FUNCTION redoubt.api_token_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    before redoubt.enrol_token;
    t      redoubt.enrol_token;
BEGIN
    SELECT * INTO before FROM redoubt.enrol_token x WHERE x.id = path ->> 'id' FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such enrolment token.', '');
    END IF;
    PERFORM redoubt.require(actor, 'administrator', before.group_id);
    UPDATE redoubt.enrol_token x SET revoked_at = coalesce(x.revoked_at, now())
    WHERE x.id = before.id RETURNING * INTO t;
    IF before.revoked_at IS NULL THEN
        PERFORM redoubt.audit_add(actor, 'token_revoke', t.id,
                                  redoubt.enrol_token_json(before),
                                  redoubt.enrol_token_json(t));
    END IF;
    RETURN jsonb_build_object('status', 200, 'body', redoubt.enrol_token_json(t));
END $$;

-- --- the API: approval and revocation -------------------------------------------------------

CREATE FUNCTION redoubt.trust_device(actor jsonb, path jsonb) RETURNS redoubt.device
LANGUAGE plpgsql AS $$
DECLARE
    d redoubt.device;
BEGIN
    SELECT * INTO d FROM redoubt.device x WHERE x.id::text = lower(path ->> 'id')
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(404, 'Not found',
            'There is no such object, or it is outside the scope of this token.', '');
    END IF;
    PERFORM redoubt.require(actor, 'administrator', d.group_id);
    RETURN d;
END $$;

CREATE FUNCTION redoubt.api_device_approve(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    d redoubt.device := redoubt.trust_device(actor, path);
BEGIN
    IF d.state = 'revoked' THEN
        PERFORM redoubt.api_refuse(409, 'The device is revoked',
            'A revoked device gets no certificate any more.', 'Enrol it anew.',
            'device_revoked');
    ELSIF d.state = 'pending' THEN
        UPDATE redoubt.device x SET state = 'active', version = x.version + 1
        WHERE x.id = d.id;
        UPDATE redoubt.enrol_request r SET state = 'approved'
        WHERE r.device_id = d.id AND r.state = 'pending';
        PERFORM redoubt.audit_add(actor, 'device_approve', d.id::text,
                                  '{"state": "pending"}', '{"state": "active"}');
        PERFORM redoubt.event_add(d.id, 'device_enrolled', 'info',
            jsonb_build_object('name', d.name, 'approved_by', actor -> 'name'));
        PERFORM redoubt.sign_soon();
        PERFORM redoubt.device_changed(d.id);
    END IF;
    RETURN redoubt.api_device_get(actor, path, '{}', '{}');
END $$;

-- body: reason, serial (only this certificate; without it the device and all it has).
CREATE FUNCTION redoubt.api_device_revoke(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    d    redoubt.device := redoubt.trust_device(actor, path);
    why  text := coalesce(left(body ->> 'reason', 500), '');
    one  text := lower(body ->> 'serial');
BEGIN
    IF jsonb_typeof(body) = 'object' THEN
        PERFORM redoubt.api_members(body, ARRAY['reason', 'serial']);
    END IF;
    IF one IS NOT NULL AND NOT EXISTS (SELECT FROM redoubt.certificate c
                                        WHERE c.serial = one AND c.device_id = d.id) THEN
        PERFORM redoubt.api_refuse(404, 'Not found',
            'The device has no certificate with this serial number.', '');
    END IF;
    UPDATE redoubt.certificate c SET revoked_at = now(), reason = why
    WHERE c.device_id = d.id AND c.revoked_at IS NULL AND (one IS NULL OR c.serial = one);
    IF one IS NULL AND d.state <> 'revoked' THEN
        UPDATE redoubt.device x SET state = 'revoked', version = x.version + 1
        WHERE x.id = d.id;
        UPDATE redoubt.enrol_request r SET state = 'refused', pem = NULL,
                                           why = 'The device was revoked.'
        WHERE r.device_id = d.id;
    END IF;
    PERFORM redoubt.audit_add(actor, 'device_revoke', d.id::text,
        jsonb_build_object('state', d.state),
        jsonb_strip_nulls(jsonb_build_object('state', CASE WHEN one IS NULL THEN 'revoked'
                                                           ELSE d.state END,
                                             'serial', one, 'reason', why)));
    PERFORM redoubt.event_add(d.id, 'device_revoked', 'warning', jsonb_strip_nulls(
        jsonb_build_object('reason', why, 'serial', one, 'by', actor -> 'name')));
    PERFORM redoubt.device_changed(d.id);
    PERFORM redoubt.licences_changed(); -- 0013: the proxy forgets the lease
    RETURN redoubt.api_device_get(actor, path, '{}', '{}');
END $$;
