-- What is published: blobs on the data share, packages, the list that both nodes copy.
-- works-since: 1
--
-- Bytes lie on the data share under their SHA-256 (docs/protocol/data.md) and are never changed.
-- What refers to them lies here, behind the fence.  A file is on the share before its row is
-- here; a row is gone from here before its file is removed there.

CREATE TABLE redoubt.blob (
    sha256   text PRIMARY KEY CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    size     bigint NOT NULL CHECK (size >= 0),
    mtime    timestamptz NOT NULL CHECK (mtime = date_trunc('second', mtime)),
    added_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE redoubt.blob IS 'Files of the data share that something here may refer to.';
COMMENT ON COLUMN redoubt.blob.mtime IS
    'What both nodes show as Last-Modified: whole seconds, and the same on both.';
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.blob
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- public/...: to everybody; private/...: with a link that has not expired.  Names are such that
-- no path climbs, none is hidden, and none differs from another in case only.
CREATE FUNCTION redoubt.publication_path_ok(path text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT length(path) <= 400
       AND path ~ '^(public|private)(/[a-z0-9][a-z0-9._+~-]{0,127}){1,8}$'
$$;

CREATE TABLE redoubt.publication (
    path  text PRIMARY KEY CHECK (redoubt.publication_path_ok(path)),
    blob  text NOT NULL REFERENCES redoubt.blob (sha256),
    owner text NOT NULL CHECK (owner ~ '^[a-z0-9:._-]{1,100}$')
);
COMMENT ON TABLE redoubt.publication IS 'What the Web Server shows, and which blob it is.';
COMMENT ON COLUMN redoubt.publication.owner IS
    'package:<id>, signatures, custom: whose set it is. A set changes as a whole.';
CREATE INDEX publication_by_owner ON redoubt.publication (owner);
CREATE INDEX publication_by_blob ON redoubt.publication (blob);
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.publication
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

CREATE TABLE redoubt.publication_serial (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    serial     bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE redoubt.publication_serial IS 'Raised by each change of redoubt.publication.';
INSERT INTO redoubt.publication_serial (serial) VALUES (1);
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.publication_serial
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

CREATE TABLE redoubt.package (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name        text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9.+-]{0,63}$'),
    version     text NOT NULL CHECK (version ~ '^[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,63}$'),
    platform    text NOT NULL CHECK (platform ~ '^[a-z0-9][a-z0-9.+-]{0,63}$'),
    description text NOT NULL DEFAULT '' CHECK (length(description) <= 2000),
    file        text NOT NULL CHECK (file ~ '^[a-z0-9][a-z0-9._+~-]{0,127}$'),
    blob        text NOT NULL REFERENCES redoubt.blob (sha256),
    signature   bytea NOT NULL CHECK (octet_length(signature) BETWEEN 65 AND 8192),
    visibility  text NOT NULL CHECK (visibility IN ('public', 'private')),
    created_at  timestamptz NOT NULL DEFAULT now(),
    created_by  text NOT NULL,
    revision    bigint NOT NULL DEFAULT 1,
    UNIQUE (name, version, platform)
);
COMMENT ON TABLE redoubt.package IS 'Installation packages.';
COMMENT ON COLUMN redoubt.package.signature IS
    'Ed25519 over the 32 bytes of the SHA-256, then the DER certificate of the signing key.';
CREATE INDEX package_by_age ON redoubt.package (created_at, id);
CREATE INDEX package_by_blob ON redoubt.package (blob);
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.package
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- --- blobs --------------------------------------------------------------------------------------

-- The blob is on the share: from now on something may refer to it.  Its mtime is of the first time.
CREATE FUNCTION redoubt.blob_add(sha256 text, size bigint) RETURNS redoubt.blob
LANGUAGE plpgsql AS $$
DECLARE
    b redoubt.blob;
BEGIN
    PERFORM redoubt.check_epoch();
    IF coalesce(blob_add.sha256 !~ '^[0-9a-f]{64}$' OR blob_add.size < 0, true) THEN
        PERFORM redoubt.api_refuse(400, 'blob is wrong',
            'It needs a SHA-256 (64 lower-case hex digits) and a size in bytes.', '');
    END IF;
    INSERT INTO redoubt.blob AS o (sha256, size, mtime)
    VALUES (blob_add.sha256, blob_add.size, date_trunc('second', now()))
    ON CONFLICT ON CONSTRAINT blob_pkey DO UPDATE SET added_at = now() RETURNING * INTO b;
    IF b.size <> blob_add.size THEN
        PERFORM redoubt.api_refuse(409, 'The blob has another size',
            format('%s is known with %s bytes, not %s.', b.sha256, b.size, blob_add.size), '');
    END IF;
    RETURN b;
END $$;

-- Every column that refers to blobs, in whichever table.
CREATE FUNCTION redoubt.blob_references() RETURNS TABLE (relation text, attribute text)
LANGUAGE sql STABLE AS $$
    SELECT c.conrelid::regclass::text, quote_ident(a.attname)
    FROM pg_constraint c
    JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
    WHERE c.contype = 'f' AND c.confrelid = 'redoubt.blob'::regclass
    ORDER BY 1, 2
$$;

-- Forgets blobs that nothing refers to and that nobody has added for `grace`; returns them.
-- Their files may be removed when this has committed, as docs/protocol/data.md says.
CREATE FUNCTION redoubt.blobs_forget(grace interval DEFAULT '1 day', most integer DEFAULT 1000)
RETURNS SETOF redoubt.blob LANGUAGE plpgsql AS $$
DECLARE
    unused text;
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT string_agg(format(' AND NOT EXISTS (SELECT FROM %s r WHERE r.%s = b.sha256)',
                             r.relation, r.attribute), '')
    INTO unused FROM redoubt.blob_references() r;
    -- Who refers to one meanwhile waits for the row, and then finds that it is gone.
    RETURN QUERY EXECUTE
        'DELETE FROM redoubt.blob d WHERE d.sha256 IN (SELECT b.sha256 FROM redoubt.blob b
             WHERE b.added_at < now() - $1' || coalesce(unused, '') ||
        ' ORDER BY b.added_at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING d.*'
        USING grace, most;
END $$;

-- --- the list -----------------------------------------------------------------------------------

-- All entries of an owner at once: [{"path": ..., "blob": sha256}]; [] takes them back.  Returns
-- the serial, which rises unless nothing changed.
CREATE FUNCTION redoubt.publish(owner text, entries jsonb) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    now_at bigint;
    wrong  text;
BEGIN
    PERFORM redoubt.check_epoch();
    -- One change after the other: a serial stands for one list.
    SELECT s.serial INTO STRICT now_at FROM redoubt.publication_serial s FOR UPDATE;
    IF jsonb_typeof(entries) IS DISTINCT FROM 'array' OR jsonb_array_length(entries) > 10000 THEN
        PERFORM redoubt.api_refuse(400, 'The entries are wrong',
            'They must be a list of at most 10000.', '');
    END IF;
    SELECT coalesce(e ->> 'path', e::text) INTO wrong FROM jsonb_array_elements(entries) AS e
    WHERE NOT coalesce(redoubt.publication_path_ok(e ->> 'path'), false) LIMIT 1;
    IF FOUND THEN
        PERFORM redoubt.api_refuse(400, 'A path is wrong',
            format('"%s" cannot be published.', left(wrong, 200)),
            'A path begins with public/ or private/; its names are lower-case letters, digits '
            'and . _ + ~ -, and begin with a letter or digit.');
    END IF;
    SELECT p.path INTO wrong FROM redoubt.publication p
    WHERE p.owner <> publish.owner
      AND p.path IN (SELECT e ->> 'path' FROM jsonb_array_elements(entries) AS e) LIMIT 1;
    IF FOUND THEN
        PERFORM redoubt.api_refuse(409, 'The path is taken',
            format('"%s" is published by something else.', wrong), '', 'path_taken');
    END IF;
    SELECT e ->> 'blob' INTO wrong FROM jsonb_array_elements(entries) AS e
    WHERE NOT EXISTS (SELECT FROM redoubt.blob b WHERE b.sha256 = e ->> 'blob') LIMIT 1;
    IF FOUND THEN
        PERFORM redoubt.api_refuse(409, 'A blob is missing',
            format('"%s" is not in the store.', left(coalesce(wrong, 'null'), 100)),
            'Upload it first.', 'blob_missing');
    END IF;
    IF NOT EXISTS ((SELECT p.path, p.blob FROM redoubt.publication p WHERE p.owner = publish.owner
                    EXCEPT SELECT e ->> 'path', e ->> 'blob' FROM jsonb_array_elements(entries) AS e)
                   UNION ALL
                   (SELECT e ->> 'path', e ->> 'blob' FROM jsonb_array_elements(entries) AS e
                    EXCEPT SELECT p.path, p.blob FROM redoubt.publication p
                    WHERE p.owner = publish.owner)) THEN
        RETURN now_at;
    END IF;
    DELETE FROM redoubt.publication p
    WHERE p.owner = publish.owner
      AND p.path NOT IN (SELECT e ->> 'path' FROM jsonb_array_elements(entries) AS e);
    INSERT INTO redoubt.publication (path, blob, owner)
    SELECT e ->> 'path', e ->> 'blob', publish.owner FROM jsonb_array_elements(entries) AS e
    ON CONFLICT (path) DO UPDATE SET blob = EXCLUDED.blob;
    -- A node takes no longer list (PUBLICATION_MAX): it would show nothing new any more.
    IF jsonb_array_length(entries) > 0 AND (SELECT count(*) FROM redoubt.publication) > 20000 THEN
        PERFORM redoubt.api_refuse(409, 'Too many files are published',
            'At most 20000 files can be published in all.',
            'Remove packages that nobody needs any more.', 'publication_full');
    END IF;
    UPDATE redoubt.publication_serial s SET serial = s.serial + 1, changed_at = now()
    RETURNING s.serial INTO now_at;
    PERFORM pg_notify('redoubt', jsonb_build_object('t', 'published', 'serial', now_at)::text);
    RETURN now_at;
END $$;

-- The whole list with its serial, of one moment: for the nodes, in either role.
CREATE FUNCTION redoubt.publication_list() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('serial', s.serial, 'changed_at', s.changed_at, 'entries',
        (SELECT coalesce(jsonb_agg(jsonb_build_object('path', p.path, 'blob', p.blob,
                             'size', b.size, 'mtime', extract(epoch FROM b.mtime)::bigint)
                                   ORDER BY p.path), '[]')
         FROM redoubt.publication p JOIN redoubt.blob b ON b.sha256 = p.blob))
    FROM redoubt.publication_serial s
$$;

-- --- the API of packages ------------------------------------------------------------------------

CREATE FUNCTION redoubt.package_path(p redoubt.package) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT p.visibility || '/packages/' || p.name || '/' || lower(replace(p.version, ':', '_'))
           || '/' || p.file
$$;

CREATE FUNCTION redoubt.package_json(p redoubt.package) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', p.id, 'name', p.name, 'version', p.version,
        'platform', p.platform, 'description', p.description, 'file', p.file,
        'visibility', p.visibility, 'path', redoubt.package_path(p), 'sha256', p.blob,
        'size', b.size, 'signature', translate(encode(p.signature, 'base64'), E'\n', ''),
        'created_at', p.created_at, 'created_by', p.created_by, 'revision', p.revision)
    FROM redoubt.blob b WHERE b.sha256 = p.blob
$$;

-- The package of a path; to change it, the whole installation's administrator.
CREATE FUNCTION redoubt.package_of(actor jsonb, path jsonb, change boolean DEFAULT false)
RETURNS redoubt.package LANGUAGE plpgsql AS $$
DECLARE
    p redoubt.package;
BEGIN
    IF change THEN
        PERFORM redoubt.require(actor, 'administrator', NULL);
        PERFORM redoubt.check_epoch();
        SELECT * INTO p FROM redoubt.package k
        WHERE k.id = redoubt.api_uuid(path, 'id') FOR UPDATE;
    ELSE
        PERFORM redoubt.require(actor, 'auditor');
        SELECT * INTO p FROM redoubt.package k WHERE k.id = redoubt.api_uuid(path, 'id');
    END IF;
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such package.', '');
    END IF;
    RETURN p;
END $$;

-- GET /v1/packages: newest first; ?name ?platform ?visibility
CREATE FUNCTION redoubt.api_packages_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    most   constant integer := redoubt.api_limit(query);
    before constant uuid := redoubt.api_uuid(query, 'cursor');
    items  jsonb;
    n      integer;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT coalesce(jsonb_agg(redoubt.package_json(k.p)
                              ORDER BY (k.p).created_at DESC, (k.p).id DESC), '[]'), count(*)
    INTO items, n
    FROM (SELECT p FROM redoubt.package p
          WHERE (NOT query ? 'name' OR p.name = query ->> 'name')
            AND (NOT query ? 'platform' OR p.platform = query ->> 'platform')
            AND (NOT query ? 'visibility' OR p.visibility = query ->> 'visibility')
            AND (before IS NULL OR (p.created_at, p.id) <
                 (SELECT b.created_at, b.id FROM redoubt.package b WHERE b.id = before))
          ORDER BY p.created_at DESC, p.id DESC LIMIT most) k;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'id' END));
END $$;

CREATE FUNCTION redoubt.api_package_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    p redoubt.package := redoubt.package_of(actor, path);
BEGIN
    RETURN jsonb_build_object('status', 200, 'version', p.revision,
                              'body', redoubt.package_json(p));
END $$;

-- A text of a body; NULL where it may be missing and is.
CREATE FUNCTION redoubt.package_text(body jsonb, member text, pattern text, says text,
                                     otherwise text DEFAULT NULL, most integer DEFAULT 200)
RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF otherwise IS NOT NULL AND NOT body ? member THEN
        RETURN otherwise;
    END IF;
    IF jsonb_typeof(body -> member) IS DISTINCT FROM 'string'
       OR length(body ->> member) > most OR body ->> member !~ pattern THEN
        PERFORM redoubt.api_refuse(400, member || ' is wrong', says, '');
    END IF;
    RETURN body ->> member;
END $$;

CREATE FUNCTION redoubt.package_description(body jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT redoubt.package_text(body, 'description', '^([^[:cntrl:]]|\n|\t)*$',
        'It must be a text of at most 2000 characters, without control characters.', '', 2000)
$$;

-- The row that a body describes, without id and dates; each member was looked at.
CREATE FUNCTION redoubt.package_from(body jsonb) RETURNS redoubt.package
LANGUAGE plpgsql STABLE AS $$
DECLARE
    p redoubt.package;
BEGIN
    PERFORM redoubt.api_members(body, ARRAY['name', 'version', 'platform', 'description', 'file',
                                            'visibility', 'sha256', 'size', 'signature']);
    p.name := redoubt.package_text(body, 'name', '^[a-z0-9][a-z0-9.+-]{0,63}$',
        'It must be 1 to 64 lower-case letters, digits, or . + -, and begin with a letter or digit.');
    p.version := redoubt.package_text(body, 'version', '^[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,63}$',
        'It must be 1 to 64 letters, digits, or . + ~ : _ -, and begin with a letter or digit.');
    p.platform := redoubt.package_text(body, 'platform', '^[a-z0-9][a-z0-9.+-]{0,63}$',
        'It must be 1 to 64 lower-case letters, digits, or . + -: amd64, all.', 'all');
    p.file := redoubt.package_text(body, 'file', '^[a-z0-9][a-z0-9._+~-]{0,127}$',
        'It must be 1 to 128 lower-case letters, digits, or . _ + ~ -, without a path.');
    p.visibility := redoubt.package_text(body, 'visibility', '^(public|private)$',
        'It must be public or private.', 'public');
    p.blob := redoubt.package_text(body, 'sha256', '^[0-9a-f]{64}$',
        'It must be 64 lower-case hex digits.');
    p.description := redoubt.package_description(body);
    IF jsonb_typeof(body -> 'size') IS DISTINCT FROM 'number'
       OR body ->> 'size' !~ '^[0-9]{1,15}$' THEN
        PERFORM redoubt.api_refuse(400, 'size is wrong', 'It must be a number of bytes.', '');
    END IF;
    p.signature := decode(redoubt.package_text(body, 'signature',
        '^[A-Za-z0-9+/]+={0,2}$', 'It must be base64: 64 bytes and a certificate.',
        NULL, 10924), 'base64');
    IF octet_length(p.signature) NOT BETWEEN 65 AND 8192 THEN
        PERFORM redoubt.api_refuse(400, 'signature is wrong',
            'It must be 64 bytes and a certificate.', '');
    END IF;
    RETURN p;
EXCEPTION WHEN invalid_parameter_value THEN
    PERFORM redoubt.api_refuse(400, 'signature is wrong', 'It is no base64.', '');
END $$;

-- POST /v1/packages: its file is on the data share already, and the manager has looked at the
-- signature.  The same package with the same bytes again is no error.
CREATE FUNCTION redoubt.api_package_create(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    p   redoubt.package;
    old redoubt.package;
    want redoubt.package;
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    want := redoubt.package_from(body);
    PERFORM redoubt.blob_add(want.blob, (body ->> 'size')::bigint);
    INSERT INTO redoubt.package AS k (name, version, platform, description, file, blob,
                                      signature, visibility, created_by)
    VALUES (want.name, want.version, want.platform, want.description, want.file, want.blob,
            want.signature, want.visibility, actor ->> 'name')
    ON CONFLICT (name, version, platform) DO NOTHING RETURNING * INTO p;
    IF NOT FOUND THEN
        SELECT * INTO STRICT old FROM redoubt.package k
        WHERE k.name = want.name AND k.version = want.version AND k.platform = want.platform;
        IF old.blob <> want.blob OR old.visibility <> want.visibility OR old.file <> want.file THEN
            PERFORM redoubt.api_refuse(409, 'The version is there already',
                format('%s %s for %s is published with other bytes, or elsewhere: %s.', old.name,
                       old.version, old.platform, old.id),
                'Give it another version, or remove the old one first.', 'package_exists');
        END IF;
        RETURN jsonb_build_object('status', 200, 'version', old.revision,
                                  'body', redoubt.package_json(old));
    END IF;
    PERFORM redoubt.publish('package:' || p.id, jsonb_build_array(jsonb_build_object(
        'path', redoubt.package_path(p), 'blob', p.blob)));
    PERFORM redoubt.audit_add(actor, 'package_publish', p.id::text, NULL,
                              redoubt.package_json(p) - 'signature');
    PERFORM redoubt.event_add(NULL, 'package_published', 'info', jsonb_build_object(
        'package', p.id, 'name', p.name, 'version', p.version, 'platform', p.platform,
        'visibility', p.visibility, 'sha256', p.blob, 'by', actor ->> 'name'));
    RETURN jsonb_build_object('status', 201, 'version', p.revision,
                              'body', redoubt.package_json(p));
END $$;

-- PATCH /v1/packages/{id}: its description
CREATE FUNCTION redoubt.api_package_patch(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    old redoubt.package := redoubt.package_of(actor, path, true);
    p   redoubt.package;
BEGIN
    PERFORM redoubt.api_members(body, ARRAY['description']);
    IF NOT body ? 'description' OR redoubt.package_description(body) = old.description THEN
        p := old;
    ELSE
        UPDATE redoubt.package k SET description = redoubt.package_description(body),
                                     revision = k.revision + 1
        WHERE k.id = old.id RETURNING * INTO p;
        PERFORM redoubt.audit_add(actor, 'package_change', p.id::text,
            jsonb_build_object('description', old.description),
            jsonb_build_object('description', p.description));
    END IF;
    RETURN jsonb_build_object('status', 200, 'version', p.revision,
                              'body', redoubt.package_json(p));
END $$;

-- DELETE /v1/packages/{id}: it is not shown any more; its bytes go with the next collection.
CREATE FUNCTION redoubt.api_package_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    p redoubt.package := redoubt.package_of(actor, path, true);
BEGIN
    PERFORM redoubt.publish('package:' || p.id, '[]');
    PERFORM redoubt.audit_add(actor, 'package_remove', p.id::text,
                              redoubt.package_json(p) - 'signature', NULL);
    PERFORM redoubt.event_add(NULL, 'package_removed', 'info', jsonb_build_object(
        'package', p.id, 'name', p.name, 'version', p.version, 'platform', p.platform,
        'by', actor ->> 'name'));
    DELETE FROM redoubt.package k WHERE k.id = p.id;
    RETURN '{"status": 204}';
EXCEPTION WHEN foreign_key_violation THEN
    PERFORM redoubt.api_refuse(409, 'The package is in use',
        format('Something still refers to %s %s.', p.name, p.version),
        'A rollout offers it: stop that first.', 'package_in_use');
END $$;

-- --- the API of the store -----------------------------------------------------------------------

CREATE FUNCTION redoubt.blob_json(b redoubt.blob) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('sha256', b.sha256, 'size', b.size, 'mtime', b.mtime,
        'added_at', b.added_at, 'paths',
        (SELECT coalesce(jsonb_agg(p.path ORDER BY p.path), '[]')
         FROM redoubt.publication p WHERE p.blob = b.sha256))
$$;

-- GET /v1/store: how much there is
CREATE FUNCTION redoubt.api_store_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    RETURN jsonb_build_object('status', 200, 'body', (
        SELECT jsonb_build_object('serial', s.serial, 'changed_at', s.changed_at,
            'blobs', (SELECT count(*) FROM redoubt.blob),
            'bytes', (SELECT coalesce(sum(b.size), 0) FROM redoubt.blob b),
            'published', (SELECT count(*) FROM redoubt.publication),
            'published_bytes', (SELECT coalesce(sum(b.size), 0) FROM redoubt.blob b
                                WHERE EXISTS (SELECT FROM redoubt.publication p
                                              WHERE p.blob = b.sha256)),
            'packages', (SELECT count(*) FROM redoubt.package))
        FROM redoubt.publication_serial s));
END $$;

-- GET /v1/store/blobs: by digest
CREATE FUNCTION redoubt.api_blobs_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    most  constant integer := redoubt.api_limit(query);
    items jsonb;
    n     integer;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT coalesce(jsonb_agg(redoubt.blob_json(k.b) ORDER BY (k.b).sha256), '[]'), count(*)
    INTO items, n
    FROM (SELECT b FROM redoubt.blob b
          WHERE NOT query ? 'cursor' OR b.sha256 > query ->> 'cursor'
          ORDER BY b.sha256 LIMIT most) k;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'sha256' END));
END $$;

-- GET /v1/store/blobs/{sha256}
CREATE FUNCTION redoubt.api_blob_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    b redoubt.blob;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT * INTO b FROM redoubt.blob o WHERE o.sha256 = path ->> 'sha256';
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such blob.', '');
    END IF;
    RETURN jsonb_build_object('status', 200, 'body', redoubt.blob_json(b));
END $$;

-- POST /v1/store/collect: forgets what nothing refers to; its files may then be removed.
CREATE FUNCTION redoubt.api_store_collect(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    grace text := coalesce(body ->> 'grace_s', '86400');
    gone  jsonb;
BEGIN
    PERFORM redoubt.require(actor, 'administrator', NULL);
    IF jsonb_typeof(body) <> 'null' THEN
        PERFORM redoubt.api_members(body, ARRAY['grace_s']);
    END IF;
    IF grace !~ '^[0-9]{1,8}$' THEN
        PERFORM redoubt.api_refuse(400, 'grace_s is wrong',
            'It must be a number of seconds, at most 99999999.', '');
    END IF;
    SELECT coalesce(jsonb_agg(jsonb_build_object('sha256', b.sha256, 'size', b.size)), '[]')
    INTO gone FROM redoubt.blobs_forget(make_interval(secs => grace::integer), 1000) b;
    IF gone <> '[]' THEN
        PERFORM redoubt.audit_add(actor, 'store_collect', '', jsonb_build_object('blobs', gone),
                                  NULL);
    END IF;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('forgotten', gone));
END $$;

-- POST /v1/packages/{id}/link: the path and when the link to it ends; redoubt-manager makes the
-- link, which needs a secret of the nodes (src/app/manager/links.c).  What is public has an address
-- that does not end.
CREATE FUNCTION redoubt.api_package_link(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    p     redoubt.package := redoubt.package_of(actor, path);
    hours integer;
    until timestamptz;
BEGIN
    PERFORM redoubt.require(actor, 'operator', NULL);
    body := coalesce(body, '{}');
    PERFORM redoubt.api_members(body, ARRAY['hours']);
    hours := redoubt.body_number(body, 'hours', 24, 1, 87600);
    IF p.visibility = 'private' THEN
        until := date_trunc('second', now()) + make_interval(hours => hours);
    END IF;
    PERFORM redoubt.audit_add(actor, 'package_link', p.id::text, NULL,
                              jsonb_build_object('path', redoubt.package_path(p),
                                                 'expires_at', until));
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('package', p.id,
        'name', p.name, 'version', p.version, 'path', redoubt.package_path(p),
        'sha256', p.blob, 'expires_at', until,
        'expires', CASE WHEN until IS NOT NULL THEN extract(epoch FROM until)::bigint END));
END $$;
