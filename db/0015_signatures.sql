-- Signature databases: sets, where they come from, how old they are.
-- works-since: 1
--
-- redoubt-upstream on the active node, or an administrator, brings files that were verified;
-- signatures_take() makes a new set of them and publishes it at once.  What is published only
-- gets newer: an old database, though genuine, would take the protection back.
--   The increments of a database are kept as a chain that ends with its version: a client
-- behind the beginning of the chain fetches the whole database.

CREATE TABLE redoubt.signature_source (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    url           text,
    proxy         text,
    ca            text,
    databases     text[] NOT NULL DEFAULT '{main,daily,bytecode}',
    interval_min  integer NOT NULL DEFAULT 240,
    keep          integer NOT NULL DEFAULT 90,
    warning_h     integer NOT NULL DEFAULT 48,
    critical_h    integer NOT NULL DEFAULT 168,
    version       bigint NOT NULL DEFAULT 1,
    changed_at    timestamptz NOT NULL DEFAULT now(),
    next_at       timestamptz NOT NULL DEFAULT now(),
    attempt_at    timestamptz,
    success_at    timestamptz,
    blocked_until timestamptz,
    error         text NOT NULL DEFAULT '',
    told_at       timestamptz,
    age_status    text NOT NULL DEFAULT 'ok' CHECK (age_status IN ('ok', 'warning', 'critical'))
);
COMMENT ON TABLE redoubt.signature_source IS
    'The mirror that databases come from, and how it went. url NULL: from imports only.';
COMMENT ON COLUMN redoubt.signature_source.ca IS 'PEM; NULL: the CAs of the node.';
COMMENT ON COLUMN redoubt.signature_source.keep IS 'How many increments of a database.';
COMMENT ON COLUMN redoubt.signature_source.blocked_until IS
    'The mirror asked for patience (429, 403).';
COMMENT ON COLUMN redoubt.signature_source.told_at IS 'When an error was last told by an event.';
COMMENT ON COLUMN redoubt.signature_source.age_status IS 'As the last event about the age said.';
INSERT INTO redoubt.signature_source DEFAULT VALUES;

CREATE TABLE redoubt.signature_db (
    name       text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,30}$'),
    version    bigint NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
    built_at   timestamptz NOT NULL,
    signatures bigint NOT NULL,
    level      bigint NOT NULL,
    fetched_at timestamptz NOT NULL DEFAULT now(),
    source     text NOT NULL
);
COMMENT ON TABLE redoubt.signature_db IS 'Databases of the published set.';
COMMENT ON COLUMN redoubt.signature_db.source IS 'The address of the mirror, or "import".';

CREATE TABLE redoubt.signature_file (
    file    text PRIMARY KEY,
    name    text NOT NULL REFERENCES redoubt.signature_db (name) ON DELETE CASCADE,
    kind    text NOT NULL CHECK (kind IN ('cvd', 'cdiff', 'cvd.sign', 'cdiff.sign')),
    version bigint NOT NULL,
    blob    text NOT NULL REFERENCES redoubt.blob (sha256)
);
COMMENT ON TABLE redoubt.signature_file IS 'Files of the published set; below /sig/.';
CREATE INDEX signature_file_by_name ON redoubt.signature_file (name, kind, version);
CREATE INDEX signature_file_by_blob ON redoubt.signature_file (blob);

CREATE TABLE redoubt.custom_set (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    serial     bigint NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT now(),
    files      jsonb NOT NULL DEFAULT '[]'
);
COMMENT ON TABLE redoubt.custom_set IS
    'Signature files of one''s own: [{"name", "sha256", "size", "mtime"}], as the manifest says.';
INSERT INTO redoubt.custom_set DEFAULT VALUES;

CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.signature_source
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.signature_db
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.signature_file
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.custom_set
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- --- a set ------------------------------------------------------------------------------------

-- A number of an object, within bounds.
CREATE FUNCTION redoubt.signature_number(o jsonb, member text, low bigint, high bigint)
RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF jsonb_typeof(o -> member) IS DISTINCT FROM 'number' OR o ->> member !~ '^[0-9]{1,18}$'
       OR (o ->> member)::bigint NOT BETWEEN low AND high THEN
        PERFORM redoubt.api_refuse(400, member || ' is wrong',
            format('It must be a whole number from %s to %s.', low, high), '');
    END IF;
    RETURN (o ->> member)::bigint;
END $$;

-- What one file of a body says, with its name taken apart (src/wire/cvd.h).
CREATE FUNCTION redoubt.signature_item(f jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    file  constant text := f ->> 'file';
    parts text[];
BEGIN
    PERFORM redoubt.api_members(f, ARRAY['file', 'sha256', 'size', 'version', 'built_at',
                                         'signatures', 'level']);
    parts := regexp_match(file, '^([a-z0-9][a-z0-9-]{0,30})\.(cvd)$');
    IF parts IS NOT NULL THEN
        RETURN jsonb_build_object('file', file, 'name', parts[1], 'kind', 'cvd',
            'version', redoubt.signature_number(f, 'version', 1, 4294967295),
            'built_at', redoubt.signature_number(f, 'built_at', 0, 253402300799),
            'signatures', redoubt.signature_number(f, 'signatures', 0, 4294967295),
            'level', redoubt.signature_number(f, 'level', 0, 4294967295),
            'size', redoubt.signature_number(f, 'size', 512, 2147483648),
            'sha256', f ->> 'sha256');
    END IF;
    parts := regexp_match(file,
        '^([a-z0-9][a-z0-9-]{0,30})-([1-9][0-9]{0,9})\.(cdiff|cvd\.sign|cdiff\.sign)$');
    IF parts IS NULL OR parts[2]::bigint > 4294967295 THEN
        PERFORM redoubt.api_refuse(400, 'A file name is wrong',
            format('"%s" is no file of a signature mirror.', left(coalesce(file, 'null'), 100)),
            'They are called NAME.cvd, NAME-VERSION.cdiff and NAME-VERSION.cvd.sign.');
    END IF;
    RETURN jsonb_build_object('file', file, 'name', parts[1], 'version', parts[2]::bigint,
        'kind', parts[3], 'sha256', f ->> 'sha256',
        'size', redoubt.signature_number(f, 'size', 1, 268435456));
END $$;

-- The databases of these files: refused if older than what is published, unless forced.
CREATE FUNCTION redoubt.signature_versions(items jsonb, source text, force boolean)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    i    record;
    old  redoubt.signature_db;
    blob text;
    done jsonb := '[]';
BEGIN
    FOR i IN SELECT * FROM jsonb_to_recordset(items) AS x (file text, name text, kind text,
                 version bigint, built_at bigint, signatures bigint, level bigint, sha256 text)
             WHERE x.kind = 'cvd' ORDER BY x.name
    LOOP
        SELECT * INTO old FROM redoubt.signature_db d WHERE d.name = i.name;
        SELECT f.blob INTO blob FROM redoubt.signature_file f WHERE f.file = i.file;
        IF i.version < old.version AND NOT force THEN
            PERFORM redoubt.api_refuse(409, 'The database is older than the published one',
                format('%s has version %s; version %s is published.', i.file, i.version,
                       old.version),
                'Clients would lose newer signatures. Only if that is meant, force it.',
                'signatures_older');
        ELSIF i.version = old.version AND blob <> i.sha256 AND NOT force THEN
            PERFORM redoubt.api_refuse(409, 'The database has other bytes than the published one',
                format('%s has version %s, as what is published, but not the same bytes.',
                       i.file, i.version),
                'One version has one content: find out where this file is from.',
                'signatures_differ');
        END IF;
        IF blob IS DISTINCT FROM i.sha256 THEN
            INSERT INTO redoubt.signature_db AS d (name, version, built_at, signatures, level,
                                                   source)
            VALUES (i.name, i.version, to_timestamp(i.built_at), i.signatures, i.level, source)
            ON CONFLICT (name) DO UPDATE SET version = EXCLUDED.version,
                built_at = EXCLUDED.built_at, signatures = EXCLUDED.signatures,
                level = EXCLUDED.level, source = EXCLUDED.source, fetched_at = now();
            done := done || jsonb_build_object('name', i.name, 'from', old.version,
                                               'to', i.version);
        END IF;
    END LOOP;
    RETURN done;
END $$;

-- What no client would use: increments that are not of the chain, signatures of nothing.
CREATE FUNCTION redoubt.signatures_prune() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM redoubt.signature_file f USING redoubt.signature_db d, redoubt.signature_source s
    WHERE d.name = f.name AND f.kind = 'cdiff'
      AND (f.version > d.version OR d.version - f.version >= s.keep
           OR (SELECT count(*) FROM redoubt.signature_file o
               WHERE o.name = f.name AND o.kind = 'cdiff'
                 AND o.version BETWEEN f.version AND d.version) <= d.version - f.version);
    DELETE FROM redoubt.signature_file f USING redoubt.signature_db d
    WHERE d.name = f.name AND f.kind = 'cvd.sign' AND f.version <> d.version;
    DELETE FROM redoubt.signature_file f
    WHERE f.kind = 'cdiff.sign'
      AND NOT EXISTS (SELECT FROM redoubt.signature_file o
                      WHERE o.name = f.name AND o.kind = 'cdiff' AND o.version = f.version);
END $$;

CREATE FUNCTION redoubt.signatures_publish() RETURNS void LANGUAGE sql AS $$
    SELECT redoubt.publish('signatures', (
        SELECT coalesce(jsonb_agg(jsonb_build_object('path', 'public/sig/' || f.file,
                                                     'blob', f.blob)), '[]')
        FROM redoubt.signature_file f))
$$;

-- Verified files [{"file", "sha256", "size"; of a .cvd also "version", "built_at" (Unix time),
-- "signatures", "level"}], which are on the data share, become part of the published set.
-- {"changed": bool, "databases": [{"name", "from", "to"}]}
CREATE FUNCTION redoubt.signatures_take(files jsonb, source text, force boolean) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    items  jsonb;
    wrong  text;
    fresh  jsonb;
    before text;
    after  text;
BEGIN
    PERFORM redoubt.check_epoch();
    IF jsonb_typeof(files) IS DISTINCT FROM 'array'
       OR jsonb_array_length(files) NOT BETWEEN 1 AND 1000 THEN
        PERFORM redoubt.api_refuse(400, 'files is wrong', 'It must be a list of 1 to 1000.', '');
    END IF;
    SELECT jsonb_agg(redoubt.signature_item(f)) INTO items FROM jsonb_array_elements(files) AS f;
    PERFORM pg_advisory_xact_lock(1380208460, 1);
    SELECT string_agg(f.file || f.blob, ' ' ORDER BY f.file) INTO before
    FROM redoubt.signature_file f;

    PERFORM redoubt.blob_add(i ->> 'sha256', (i ->> 'size')::bigint)
    FROM jsonb_array_elements(items) AS i ORDER BY i ->> 'sha256';
    fresh := redoubt.signature_versions(items, source, force);
    -- freshclam asks with the time of the header whether there is something newer.
    UPDATE redoubt.blob b SET mtime = to_timestamp((i ->> 'built_at')::bigint)
    FROM jsonb_array_elements(items) AS i
    WHERE i ->> 'kind' = 'cvd' AND b.sha256 = i ->> 'sha256'
      AND b.mtime <> to_timestamp((i ->> 'built_at')::bigint);
    SELECT i ->> 'file' INTO wrong FROM jsonb_array_elements(items) AS i
    WHERE NOT EXISTS (SELECT FROM redoubt.signature_db d WHERE d.name = i ->> 'name') LIMIT 1;
    IF FOUND THEN
        PERFORM redoubt.api_refuse(409, 'The database is not published',
            format('%s belongs to a database of which there is no .cvd.', wrong),
            'Import the .cvd with it.', 'signatures_no_database');
    END IF;
    INSERT INTO redoubt.signature_file (file, name, kind, version, blob)
    SELECT i ->> 'file', i ->> 'name', i ->> 'kind', (i ->> 'version')::bigint, i ->> 'sha256'
    FROM jsonb_array_elements(items) AS i
    ON CONFLICT (file) DO UPDATE SET version = EXCLUDED.version, blob = EXCLUDED.blob;
    PERFORM redoubt.signatures_prune();

    SELECT string_agg(f.file || f.blob, ' ' ORDER BY f.file) INTO after
    FROM redoubt.signature_file f;
    IF after IS NOT DISTINCT FROM before THEN
        RETURN jsonb_build_object('changed', false, 'databases', fresh);
    END IF;
    PERFORM redoubt.signatures_publish();
    IF fresh <> '[]' THEN
        PERFORM redoubt.event_add(NULL, 'signatures_published', 'info',
            jsonb_build_object('databases', fresh, 'source', source));
    END IF;
    RETURN jsonb_build_object('changed', true, 'databases', fresh);
END $$;

-- --- upstream: what redoubt-upstream asks and tells --------------------------------------------

-- {"wait_s": n}: nothing to do before; or {"wait_s": 0, "url", ..., "have": {name: {"version",
-- "built_at", "chain": the lowest increment, NULL: none}}}
CREATE FUNCTION redoubt.upstream_due() RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    s redoubt.signature_source;
    t timestamptz;
BEGIN
    SELECT * INTO STRICT s FROM redoubt.signature_source;
    t := greatest(s.next_at, s.blocked_until);
    IF s.url IS NULL THEN
        RETURN '{"wait_s": 3600}';
    ELSIF t > now() THEN
        RETURN jsonb_build_object('wait_s',
            least(3600, ceil(extract(epoch FROM t - now())))::integer);
    END IF;
    RETURN jsonb_build_object('wait_s', 0, 'url', s.url, 'proxy', s.proxy, 'ca', s.ca,
        'databases', to_jsonb(s.databases), 'keep', s.keep, 'version', s.version,
        'have', (SELECT coalesce(jsonb_object_agg(d.name, jsonb_build_object(
                     'version', d.version, 'built_at', extract(epoch FROM d.built_at)::bigint)),
                     '{}')
                 FROM redoubt.signature_db d));
END $$;

-- What became of a look upstream: {"error": "" or why, "blocked_s": n or missing, "version": of
-- the source that was looked at}.
CREATE FUNCTION redoubt.upstream_told(result jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    s     redoubt.signature_source;
    why   constant text := left(coalesce(result ->> 'error', ''), 500);
    block constant integer := least(coalesce((result ->> 'blocked_s')::bigint, 0), 7 * 86400);
    pause interval;
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT * INTO STRICT s FROM redoubt.signature_source FOR UPDATE;
    IF s.version <> (result ->> 'version')::bigint THEN
        RETURN; -- it was changed meanwhile: what was seen says nothing about the new one
    END IF;
    -- Between 0.9 and 1.1 of the interval: mirrors do not like to be asked by all at once.
    pause := make_interval(secs => (CASE WHEN why = '' THEN s.interval_min
                                         ELSE least(s.interval_min, 30) END * 60)
                                   * (0.9 + 0.2 * random()));
    UPDATE redoubt.signature_source SET attempt_at = now(), error = why,
        success_at = CASE WHEN why = '' THEN now() ELSE s.success_at END,
        next_at = now() + pause,
        blocked_until = CASE WHEN block > 0 THEN now() + make_interval(secs => block) END,
        told_at = CASE WHEN why = '' THEN NULL
                       WHEN why = s.error AND s.told_at > now() - interval '1 day'
                       THEN s.told_at ELSE now() END;
    IF why <> '' AND (why <> s.error OR s.told_at IS NULL
                      OR s.told_at <= now() - interval '1 day') THEN
        PERFORM redoubt.event_add(NULL, 'signatures_failed', 'warning',
            jsonb_strip_nulls(jsonb_build_object('source', s.url, 'why', why,
                'blocked_s', nullif(block, 0), 'success_at', s.success_at)));
    END IF;
END $$;

-- --- the age ----------------------------------------------------------------------------------

-- The newest database is as old as the whole set: daily is made anew each day, others are not.
CREATE FUNCTION redoubt.signatures_since() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT max(d.built_at) FROM redoubt.signature_db d),
                    (SELECT s.changed_at FROM redoubt.signature_source s
                     WHERE s.url IS NOT NULL))
$$;

CREATE FUNCTION redoubt.signatures_age_status() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN s.critical_h > 0
                 AND redoubt.signatures_since() < now() - make_interval(hours => s.critical_h)
                THEN 'critical'
                WHEN s.warning_h > 0
                 AND redoubt.signatures_since() < now() - make_interval(hours => s.warning_h)
                THEN 'warning' ELSE 'ok' END
    FROM redoubt.signature_source s
$$;

-- What the mirror of the active node asks now and then: {"wait_s", "status", "detail"}.
CREATE FUNCTION redoubt.upstream_state() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('wait_s', redoubt.upstream_due() -> 'wait_s',
        'status', redoubt.signatures_age_status(), 'detail',
        format('the newest is %s days old%s',
               floor(extract(epoch FROM now() - redoubt.signatures_since()) / 86400),
               CASE WHEN s.error <> '' THEN '; ' || left(s.error, 150) ELSE '' END))
    FROM redoubt.signature_source s
$$;

-- A step of redoubt.tick(): tells when the age becomes worse or better.
CREATE FUNCTION redoubt.signatures_upkeep() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    here constant text := redoubt.signatures_age_status();
    told text;
BEGIN
    SELECT s.age_status INTO STRICT told FROM redoubt.signature_source s;
    IF here = told THEN
        RETURN;
    END IF;
    UPDATE redoubt.signature_source SET age_status = here;
    PERFORM redoubt.event_add(NULL,
        CASE here WHEN 'ok' THEN 'signatures_recovered' ELSE 'signatures_old' END,
        CASE here WHEN 'ok' THEN 'info' ELSE here END,
        (SELECT jsonb_strip_nulls(jsonb_build_object('since', redoubt.signatures_since(),
                    'hours', floor(extract(epoch FROM now() - redoubt.signatures_since()) / 3600),
                    'error', nullif(s.error, ''), 'success_at', s.success_at))
         FROM redoubt.signature_source s));
END $$;

-- --- the API ----------------------------------------------------------------------------------

-- A password in an address of a proxy is nobody's business.
CREATE FUNCTION redoubt.without_password(url text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT regexp_replace(url, '^([a-z]+://[^:/@]*):[^@/]*@', '\1:***@')
$$;

CREATE FUNCTION redoubt.signature_source_json(s redoubt.signature_source) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('url', s.url, 'proxy', redoubt.without_password(s.proxy),
        'ca', s.ca, 'databases', to_jsonb(s.databases), 'interval_min', s.interval_min,
        'keep', s.keep, 'warning_h', s.warning_h, 'critical_h', s.critical_h)
$$;

CREATE FUNCTION redoubt.signature_db_json(d redoubt.signature_db) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('name', d.name, 'version', d.version, 'built_at', d.built_at,
        'signatures', d.signatures, 'level', d.level, 'fetched_at', d.fetched_at,
        'source', d.source,
        'size', (SELECT b.size FROM redoubt.signature_file f
                 JOIN redoubt.blob b ON b.sha256 = f.blob
                 WHERE f.name = d.name AND f.kind = 'cvd'),
        'increments', (SELECT count(*) FROM redoubt.signature_file f
                       WHERE f.name = d.name AND f.kind = 'cdiff'))
$$;

-- GET /v1/signatures
CREATE FUNCTION redoubt.api_signatures_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    s redoubt.signature_source;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT * INTO STRICT s FROM redoubt.signature_source;
    RETURN jsonb_build_object('status', 200, 'version', s.version, 'body', jsonb_build_object(
        'status', redoubt.signatures_age_status(), 'since', redoubt.signatures_since(),
        'databases', (SELECT coalesce(jsonb_agg(redoubt.signature_db_json(d) ORDER BY d.name),
                                      '[]') FROM redoubt.signature_db d),
        'source', redoubt.signature_source_json(s),
        'upstream', jsonb_build_object('attempt_at', s.attempt_at, 'success_at', s.success_at,
            'error', nullif(s.error, ''),
            'next_at', CASE WHEN s.url IS NOT NULL
                            THEN greatest(s.next_at, s.blocked_until) END,
            'blocked_until', CASE WHEN s.blocked_until > now() THEN s.blocked_until END),
        'custom', (SELECT jsonb_build_object('serial', c.serial, 'changed_at', c.changed_at,
                              'files', jsonb_array_length(c.files))
                   FROM redoubt.custom_set c)));
END $$;

-- A text of a body, or NULL.
CREATE FUNCTION redoubt.signature_text(body jsonb, member text, pattern text, says text)
RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF jsonb_typeof(coalesce(body -> member, 'null')) = 'null' THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(body -> member) <> 'string' OR length(body ->> member) > 65536
       OR body ->> member !~ pattern THEN
        PERFORM redoubt.api_refuse(400, member || ' is wrong', says, '');
    END IF;
    RETURN body ->> member;
END $$;

-- GET /v1/signatures/source
CREATE FUNCTION redoubt.api_signature_source_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    s redoubt.signature_source;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT * INTO STRICT s FROM redoubt.signature_source;
    RETURN jsonb_build_object('status', 200, 'version', s.version,
                              'body', redoubt.signature_source_json(s));
END $$;

-- PUT /v1/signatures/source: what is not given becomes the default.  The password of a proxy
-- that is given as it was told ("***") stays.
CREATE FUNCTION redoubt.api_signature_source_put(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    old redoubt.signature_source;
    s   redoubt.signature_source;
    list constant jsonb := coalesce(body -> 'databases', '["main", "daily", "bytecode"]');
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    PERFORM redoubt.api_members(body, ARRAY['url', 'proxy', 'ca', 'databases', 'interval_min',
                                            'keep', 'warning_h', 'critical_h']);
    body := '{"interval_min": 240, "keep": 90, "warning_h": 48, "critical_h": 168}' || body;
    PERFORM redoubt.check_epoch();
    -- Before anything is read: what is published below must be what others have committed.
    PERFORM pg_advisory_xact_lock(1380208460, 1);
    SELECT * INTO STRICT old FROM redoubt.signature_source FOR UPDATE;
    s := old;
    s.url := redoubt.signature_text(body, 'url', '^https?://[!-.0-~]+(/[!-~]*)?$',
        'It must be null or an address: https://host/path.');
    s.proxy := redoubt.signature_text(body, 'proxy', '^https?://[!-.0-~]+/?$',
        'It must be null or an address: http://host:port.');
    IF length(s.url) > 500 OR length(s.proxy) > 500 OR s.url ~ '[?#@"''\\]' THEN
        PERFORM redoubt.api_refuse(400, 'url is wrong',
            'It must have at most 500 characters, and no user, query or fragment.', '');
    END IF;
    IF s.proxy = redoubt.without_password(old.proxy) THEN
        s.proxy := old.proxy;
    END IF;
    s.ca := redoubt.signature_text(body, 'ca', '^\s*-----BEGIN CERTIFICATE-----',
        'It must be null or certificates in PEM, at most 64 KiB.');
    IF jsonb_typeof(list) <> 'array' OR jsonb_array_length(list) NOT BETWEEN 1 AND 16
       OR EXISTS (SELECT FROM jsonb_array_elements(list) AS n
                  WHERE jsonb_typeof(n) <> 'string' OR n #>> '{}' !~ '^[a-z0-9][a-z0-9-]{0,30}$')
    THEN
        PERFORM redoubt.api_refuse(400, 'databases is wrong',
            'It must be a list of 1 to 16 names: main, daily, bytecode.', '');
    END IF;
    s.databases := ARRAY(SELECT n FROM jsonb_array_elements_text(list) WITH ORDINALITY AS e (n, i)
                         GROUP BY n ORDER BY min(i));
    s.interval_min := redoubt.signature_number(body, 'interval_min', 10, 10080);
    s.keep := redoubt.signature_number(body, 'keep', 0, 500);
    s.warning_h := redoubt.signature_number(body, 'warning_h', 0, 8760);
    s.critical_h := redoubt.signature_number(body, 'critical_h', 0, 8760);
    UPDATE redoubt.signature_source SET url = s.url, proxy = s.proxy, ca = s.ca,
        databases = s.databases, interval_min = s.interval_min, keep = s.keep,
        warning_h = s.warning_h, critical_h = s.critical_h, version = old.version + 1,
        changed_at = now(), next_at = now(), error = '', told_at = NULL,
        blocked_until = CASE WHEN s.url IS NOT DISTINCT FROM old.url THEN old.blocked_until END;
    PERFORM redoubt.signatures_prune();
    PERFORM redoubt.signatures_publish();
    PERFORM redoubt.audit_add(actor, 'signature_source_put', 'signatures',
        redoubt.signature_source_json(old), redoubt.signature_source_json(s));
    PERFORM pg_notify('redoubt', '{"t":"upstream"}');
    RETURN redoubt.api_signature_source_get(actor, '{}', '{}', '{}');
END $$;

-- POST /v1/signatures: files that are on the data share, verified by who brings them.
CREATE FUNCTION redoubt.api_signatures_import(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    done jsonb;
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    PERFORM redoubt.api_members(body, ARRAY['files', 'force']);
    IF jsonb_typeof(coalesce(body -> 'force', 'false')) <> 'boolean' THEN
        PERFORM redoubt.api_refuse(400, 'force is wrong', 'It must be true or false.', '');
    END IF;
    done := redoubt.signatures_take(body -> 'files', 'import',
                                    coalesce((body ->> 'force')::boolean, false));
    IF (done ->> 'changed')::boolean THEN
        PERFORM redoubt.audit_add(actor, 'signatures_import', 'signatures', NULL,
            done || jsonb_build_object('files', (SELECT jsonb_agg(f -> 'file')
                                                 FROM jsonb_array_elements(body -> 'files') AS f)));
    END IF;
    RETURN jsonb_build_object('status', 200, 'body', done);
END $$;

-- POST /v1/signatures/update: look upstream now.
CREATE FUNCTION redoubt.api_signatures_update(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    s redoubt.signature_source;
BEGIN
    PERFORM redoubt.require(actor, 'operator', NULL);
    IF body IS NOT NULL THEN
        PERFORM redoubt.api_members(body, '{}');
    END IF;
    SELECT * INTO STRICT s FROM redoubt.signature_source FOR UPDATE;
    IF s.url IS NULL THEN
        PERFORM redoubt.api_refuse(409, 'There is no source',
            'No mirror is configured that databases come from.',
            'Set one with redoubt signature source URL, or import files.', 'signatures_no_source');
    ELSIF s.blocked_until > now() THEN
        PERFORM redoubt.api_refuse(409, 'The source asked for patience',
            format('It must not be asked before %s.',
                   to_char(s.blocked_until, 'YYYY-MM-DD HH24:MI "UTC"')),
            'Asking all the same would make it worse. Import files meanwhile.',
            'signatures_blocked');
    END IF;
    UPDATE redoubt.signature_source SET next_at = now();
    PERFORM pg_notify('redoubt', '{"t":"upstream"}');
    RETURN jsonb_build_object('status', 202, 'body', '{"asked": true}'::jsonb);
END $$;

-- DELETE /v1/signatures/databases/{name}
CREATE FUNCTION redoubt.api_signature_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    d redoubt.signature_db;
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    PERFORM redoubt.check_epoch();
    PERFORM pg_advisory_xact_lock(1380208460, 1);
    SELECT * INTO d FROM redoubt.signature_db k WHERE k.name = path ->> 'name';
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such signature database.', '');
    END IF;
    PERFORM redoubt.audit_add(actor, 'signatures_remove', d.name, redoubt.signature_db_json(d),
                              NULL);
    DELETE FROM redoubt.signature_db k WHERE k.name = d.name;
    PERFORM redoubt.signatures_publish();
    RETURN '{"status": 204}';
END $$;

-- --- signature files of one's own -------------------------------------------------------------

-- GET /v1/signatures/custom
CREATE FUNCTION redoubt.api_custom_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    c redoubt.custom_set;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT * INTO STRICT c FROM redoubt.custom_set;
    RETURN jsonb_build_object('status', 200, 'version', c.serial, 'body', jsonb_build_object(
        'serial', c.serial, 'changed_at', c.changed_at, 'files', c.files));
END $$;

-- PUT /v1/signatures/custom: the whole set with its signed manifest; each file, the manifest
-- and its signature, which is in the body, too, are on the data share.  The serial is the next one.
CREATE FUNCTION redoubt.api_custom_put(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    old   redoubt.custom_set;
    files constant jsonb := body -> 'files';
    f     jsonb;
    all_  jsonb := '[]';
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    PERFORM redoubt.api_members(body, ARRAY['serial', 'files', 'manifest', 'signature']);
    SELECT * INTO STRICT old FROM redoubt.custom_set FOR UPDATE;
    IF redoubt.signature_number(body, 'serial', 1, 9007199254740991) <> old.serial + 1 THEN
        PERFORM redoubt.api_refuse(409, 'The files were changed meanwhile',
            format('The serial after %s is %s.', old.serial, old.serial + 1),
            'Publish again.', 'custom_serial');
    ELSIF jsonb_typeof(files) IS DISTINCT FROM 'array' OR jsonb_array_length(files) > 200 THEN
        PERFORM redoubt.api_refuse(400, 'files is wrong', 'It must be a list of at most 200.', '');
    END IF;
    FOR f IN SELECT jsonb_array_elements(files) LOOP
        PERFORM redoubt.api_members(f, ARRAY['name', 'sha256', 'size', 'mtime']);
        IF coalesce(f ->> 'name' !~ '^[a-z0-9][a-z0-9._-]{0,62}$', true)
           OR f ->> 'name' LIKE 'manifest.json%' THEN
            PERFORM redoubt.api_refuse(400, 'A file name is wrong',
                format('"%s" cannot be published.', left(coalesce(f ->> 'name', 'null'), 100)), '');
        END IF;
        PERFORM redoubt.blob_add(f ->> 'sha256', redoubt.signature_number(f, 'size', 1, 268435456));
        PERFORM redoubt.signature_number(f, 'mtime', 0, 253402300799);
        all_ := all_ || jsonb_build_object('path', 'public/custom/' || (f ->> 'name'),
                                           'blob', f ->> 'sha256');
    END LOOP;
    IF (SELECT count(DISTINCT k ->> 'name') <> count(*) FROM jsonb_array_elements(files) AS k) THEN
        PERFORM redoubt.api_refuse(400, 'A file name is wrong', 'One is there twice.', '');
    END IF;
    PERFORM redoubt.api_members(body -> 'manifest', ARRAY['sha256', 'size']);
    -- "bytes" were verified by the manager.
    PERFORM redoubt.api_members(body -> 'signature', ARRAY['sha256', 'size', 'bytes']);
    FOR f IN SELECT unnest(ARRAY[body -> 'manifest', body -> 'signature']) LOOP
        PERFORM redoubt.blob_add(f ->> 'sha256', redoubt.signature_number(f, 'size', 1, 1048576));
    END LOOP;
    all_ := all_ || jsonb_build_object('path', 'public/custom/manifest.json',
                                       'blob', body #>> '{manifest,sha256}')
                 || jsonb_build_object('path', 'public/custom/manifest.json.sig',
                                       'blob', body #>> '{signature,sha256}');
    UPDATE redoubt.custom_set SET serial = old.serial + 1, files = body -> 'files',
                                  changed_at = now();
    PERFORM redoubt.publish('custom', all_);
    PERFORM redoubt.audit_add(actor, 'custom_signatures_put', 'custom', old.files, files);
    PERFORM redoubt.event_add(NULL, 'custom_signatures_published', 'info',
        jsonb_build_object('serial', old.serial + 1, 'by', actor ->> 'name',
            'files', (SELECT coalesce(jsonb_agg(k -> 'name'), '[]')
                      FROM jsonb_array_elements(files) AS k)));
    RETURN redoubt.api_custom_get(actor, '{}', '{}', '{}');
END $$;
