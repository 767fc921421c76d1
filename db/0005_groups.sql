-- Groups, policies and their inheritance, rules that move devices, the status of a device.
-- works-since: 1
--
-- A device is in one group; groups are a tree.  Each group has a policy (settings, each of
-- which may be locked for the groups below).  What follows from all that for a group is
-- written to redoubt.effective in the transaction of the change, so that workers only read.
-- docs/policies.md has the rules in words; the API is in 0011_groups_api.sql.

-- --- the catalogue of settings ---------------------------------------------------------------

CREATE TABLE redoubt.setting (
    position  integer PRIMARY KEY,
    key       text NOT NULL UNIQUE,
    type      text NOT NULL CHECK (type IN ('int', 'bool', 'choice', 'url', 'urls', 'paths')),
    min       integer NOT NULL,
    max       integer NOT NULL,
    words     text[] NOT NULL,
    "default" jsonb NOT NULL,
    doc       text NOT NULL
);
COMMENT ON TABLE redoubt.setting IS
    'The settings of a policy, as in src/core/policy/policy.h: a test compares the two.';
COMMENT ON COLUMN redoubt.setting.max IS
    'int: the highest value; url: the longest text in bytes; urls, paths: the most entries.';

INSERT INTO redoubt.setting (position, key, type, min, max, words, "default", doc) VALUES
    (1, 'engine.max_file_size_mib', 'int', 1, 2000, '{}', '100',
     'Files larger than this many MiB are not scanned.'),
    (2, 'engine.max_scan_size_mib', 'int', 1, 4000, '{}', '400',
     'How many MiB of one file or archive, unpacked, are scanned at most.'),
    (3, 'engine.max_recursion', 'int', 1, 100, '{}', '17',
     'How deep archives within archives are opened.'),
    (4, 'engine.scan_archives', 'bool', 0, 1, '{}', 'true',
     'Look into archives.'),
    (5, 'engine.alert_exceeds_max', 'bool', 0, 1, '{}', 'false',
     'Report a file that exceeds a limit of the engine as a threat.'),
    (6, 'engine.detect_pua', 'bool', 0, 1, '{}', 'false',
     'Detect applications that are possibly unwanted.'),
    (7, 'engine.threads', 'int', 1, 64, '{}', '2',
     'How many files the engine scans at the same time.'),
    (8, 'exclusions.paths', 'paths', 0, 32, '{}', '[]',
     'Files and folders that are never scanned.'),
    (9, 'onaccess.mode', 'choice', 0, 2, '{off,notify,block}', '"notify"',
     'Real-time protection: off; notify of threats in files that were written or opened; or block access to them.'),
    (10, 'onaccess.paths', 'paths', 0, 32, '{}', '["/home", "/tmp"]',
     'Folders that real-time protection watches.'),
    (11, 'onaccess.timeout_ms', 'int', 100, 30000, '{}', '2000',
     'After this many milliseconds without a verdict, access is allowed.'),
    (12, 'onaccess.max_file_mib', 'int', 1, 2000, '{}', '25',
     'Real-time protection lets larger files pass.'),
    (13, 'quarantine.enabled', 'bool', 0, 1, '{}', 'true',
     'Move infected files to the quarantine of the device.'),
    (14, 'quarantine.days', 'int', 1, 3650, '{}', '90',
     'Files are kept in quarantine for this many days.'),
    (15, 'quarantine.max_mib', 'int', 1, 1048576, '{}', '1024',
     'How large the quarantine may become; the oldest files go first.'),
    (16, 'update.source', 'url', 0, 200, '{}', '""',
     'The mirror that signatures come from: an address, or cluster: its own. Empty: as the freshclam of the device is configured.'),
    (17, 'update.interval_min', 'int', 10, 10080, '{}', '240',
     'How often signatures are updated, in minutes.'),
    (18, 'update.custom_urls', 'urls', 0, 32, '{}', '[]',
     'Signature files of your own, fetched with each update.'),
    (19, 'update.cluster_files', 'bool', 0, 1, '{}', 'true',
     'With each update also the signature files that the cluster publishes, verified.'),
    (20, 'scan.cpu_percent', 'int', 1, 100, '{}', '50',
     'How much of one CPU a scan may use.'),
    (21, 'scan.quick_paths', 'paths', 0, 32, '{}', '["/tmp", "/home", "/root"]',
     'What a quick scan looks at.'),
    (22, 'scan.one_filesystem', 'bool', 0, 1, '{}', 'true',
     'A full scan stays on the file systems of the paths that it began with.'),
    (23, 'agent.heartbeat_s', 'int', 10, 3600, '{}', '120',
     'A device says that it is there at least this often, in seconds.'),
    (24, 'agent.reconnect_spread_s', 'int', 0, 3600, '{}', '0',
     'After a lost connection, devices come back spread over this many seconds. 0: as the server says.'),
    (25, 'status.signatures_warning_h', 'int', 0, 8760, '{}', '72',
     'Warning when the signatures are older than this many hours. 0: never.'),
    (26, 'status.signatures_critical_h', 'int', 0, 8760, '{}', '168',
     'Critical when the signatures are older than this many hours. 0: never.'),
    (27, 'status.scan_warning_days', 'int', 0, 365, '{}', '0',
     'Warning when the last full or quick scan is older than this many days. 0: never.'),
    (28, 'status.unseen_warning_h', 'int', 0, 8760, '{}', '24',
     'Warning when the device was not heard of for this many hours. 0: never.'),
    (29, 'status.unseen_critical_h', 'int', 0, 8760, '{}', '0',
     'Critical when the device was not heard of for this many hours. 0: never.'),
    (30, 'status.realtime_off', 'choice', 0, 2, '{ok,warning,critical}', '"warning"',
     'The status of a device whose real-time protection is off or has failed.'),
    (31, 'status.licence_missing', 'choice', 0, 2, '{ok,warning,critical}', '"ok"',
     'The status of a device whose licence is missing or has expired.'),
    (32, 'status.engine_down', 'choice', 0, 2, '{ok,warning,critical}', '"critical"',
     'The status of a device whose engine does not run.'),
    (33, 'status.threat', 'choice', 0, 2, '{ok,warning,critical}', '"critical"',
     'The status of a device with a threat that was not cured.');

-- What is wrong with one value; NULL: nothing.
CREATE FUNCTION redoubt.setting_problem(s redoubt.setting, value jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    kind text := jsonb_typeof(value);
    item jsonb;
    t    text;
BEGIN
    IF s.type = 'bool' THEN
        RETURN CASE WHEN kind <> 'boolean' THEN 'must be true or false' END;
    ELSIF s.type = 'int' THEN
        IF kind <> 'number' OR value::text !~ '^[0-9]{1,9}$'
           OR value::text::integer NOT BETWEEN s.min AND s.max THEN
            RETURN format('must be a whole number from %s to %s', s.min, s.max);
        END IF;
        RETURN NULL;
    ELSIF s.type = 'choice' THEN
        IF kind <> 'string' OR (value #>> '{}') <> ALL (s.words) THEN
            RETURN 'must be one of: ' || array_to_string(s.words, ', ');
        END IF;
        RETURN NULL;
    ELSIF s.type = 'url' THEN
        RETURN CASE WHEN value NOT IN ('""', '"cluster"') THEN redoubt.item_problem('urls', value) END;
    END IF;
    IF kind <> 'array' THEN
        RETURN 'must be a list of texts';
    ELSIF jsonb_array_length(value) > s.max THEN
        RETURN format('may have at most %s entries', s.max);
    END IF;
    FOR item IN SELECT jsonb_array_elements(value) LOOP
        t := redoubt.item_problem(s.type, item);
        IF t IS NOT NULL THEN
            RETURN t;
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

-- One path or address.  They end up in configuration files of the engine: nothing that would
-- have to be quoted there.
CREATE FUNCTION redoubt.item_problem(type text, value jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    t text := value #>> '{}';
BEGIN
    IF jsonb_typeof(value) <> 'string' OR octet_length(t) NOT BETWEEN 1 AND 200 THEN
        RETURN 'must be a text of 1 to 200 bytes';
    ELSIF t ~ E'[\\x01-\\x1f\\x7f"\\\\]' THEN
        RETURN 'may not contain control characters, " or \';
    ELSIF type = 'paths' AND (left(t, 1) <> '/' OR t || '/' LIKE '%/../%') THEN
        RETURN 'must be an absolute path without ".."';
    ELSIF type = 'urls' AND (t !~ '^https?://[^/]' OR t LIKE '% %') THEN
        RETURN 'must begin with http:// or https:// and have no blanks';
    END IF;
    RETURN NULL;
END $$;

-- Settings as an administrator gives them, {"key": value} or {"key": {"value", "locked"}}:
-- what is wrong with them, a row for each.
CREATE FUNCTION redoubt.policy_problems(settings jsonb)
RETURNS TABLE (path text, why text) LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF jsonb_typeof(settings) IS DISTINCT FROM 'object' THEN
        RETURN QUERY SELECT '', 'must be an object of settings';
        RETURN;
    END IF;
    RETURN QUERY
    SELECT left(g.key, 100), p.why
    FROM jsonb_each(settings) g
    LEFT JOIN redoubt.setting s ON s.key = g.key
    CROSS JOIN LATERAL (SELECT CASE
        WHEN s.key IS NULL THEN 'there is no such setting'
        WHEN jsonb_typeof(g.value) <> 'object' THEN redoubt.setting_problem(s, g.value)
        WHEN NOT g.value ? 'value' THEN 'has no "value"'
        WHEN g.value - 'value' - 'locked' <> '{}' THEN
            'may only have "value" and "locked"'
        WHEN jsonb_typeof(coalesce(g.value -> 'locked', 'false')) <> 'boolean' THEN
            '"locked" must be true or false'
        ELSE redoubt.setting_problem(s, g.value -> 'value') END AS why) p
    WHERE p.why IS NOT NULL
    ORDER BY 1
    LIMIT 100;
END $$;

-- The same, as it is stored.  NULL if there are none.
CREATE FUNCTION redoubt.policy_normal(settings jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(g.key, CASE WHEN jsonb_typeof(g.value) = 'object'
        THEN jsonb_build_object('value', g.value -> 'value',
                                'locked', coalesce(g.value -> 'locked', 'false'))
        ELSE jsonb_build_object('value', g.value, 'locked', false) END), '{}')
    FROM jsonb_each(settings) g
$$;

-- --- groups and policies ---------------------------------------------------------------------

CREATE FUNCTION redoubt.root_group() RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT '00000000-0000-4000-8000-000000000000'::uuid
$$;

CREATE TABLE redoubt.device_group (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    parent_id  uuid REFERENCES redoubt.device_group (id),
    name       text NOT NULL,
    path       text COLLATE "C" NOT NULL UNIQUE,
    lineage    uuid[] NOT NULL,
    version    bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((parent_id IS NULL) = (id = redoubt.root_group())),
    CHECK (lineage[cardinality(lineage)] = id AND lineage[1] = redoubt.root_group()),
    CHECK (cardinality(lineage) <= 16)
);
COMMENT ON TABLE redoubt.device_group IS 'The tree of groups. Its root is "/".';
COMMENT ON COLUMN redoubt.device_group.lineage IS
    'The groups from the root to this one, itself included.';
CREATE INDEX device_group_by_parent ON redoubt.device_group (parent_id);
CREATE INDEX device_group_by_lineage ON redoubt.device_group USING gin (lineage);

CREATE TABLE redoubt.policy (
    group_id   uuid PRIMARY KEY REFERENCES redoubt.device_group (id) ON DELETE CASCADE,
    settings   jsonb NOT NULL DEFAULT '{}',
    version    bigint NOT NULL DEFAULT 1,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE redoubt.policy IS
    'What is set for a group itself: {"key": {"value": v, "locked": bool}}. One row a group.';

CREATE TABLE redoubt.effective (
    group_id uuid PRIMARY KEY REFERENCES redoubt.device_group (id) ON DELETE CASCADE,
    settings jsonb NOT NULL,
    sources  jsonb NOT NULL,
    hash     text NOT NULL,
    document text NOT NULL
);
COMMENT ON TABLE redoubt.effective IS
    'What the policies make of each group: the document for its agents, and its SHA-256.';
COMMENT ON COLUMN redoubt.effective.sources IS
    '{"key": {"group": id, "locked": bool}} of all that is not a default.';

-- A change of the tree or of a policy holds this until it ends: one at a time.
CREATE FUNCTION redoubt.lock_tree() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM redoubt.check_epoch();
    PERFORM 1 FROM redoubt.device_group g WHERE g.id = redoubt.root_group() FOR NO KEY UPDATE;
END $$;

-- The winner of each setting for the groups from `top` down: the locked one nearest to the
-- root; else the one nearest to the group; else the default.
CREATE FUNCTION redoubt.inherited(top uuid)
RETURNS TABLE (group_id uuid, settings jsonb, sources jsonb, hash text, document text)
LANGUAGE sql STABLE AS $$
    WITH said AS (
        SELECT DISTINCT ON (g.id, k.key) g.id, k.key, k.value -> 'value' AS value, p.group_id,
               (k.value ->> 'locked')::boolean AS locked
        FROM redoubt.device_group g
        CROSS JOIN unnest(g.lineage) WITH ORDINALITY AS a (id, depth)
        JOIN redoubt.policy p ON p.group_id = a.id
        CROSS JOIN jsonb_each(p.settings) AS k
        WHERE g.lineage @> ARRAY[top]
        ORDER BY g.id, k.key, (k.value ->> 'locked')::boolean DESC,
                 CASE WHEN (k.value ->> 'locked')::boolean THEN a.depth ELSE -a.depth END
    ), won AS (
        SELECT g.id,
               coalesce(jsonb_object_agg(s.key, s.value) FILTER (WHERE s.key IS NOT NULL), '{}')
                   AS given,
               coalesce(jsonb_object_agg(s.key, jsonb_build_object(
                   'group', s.group_id, 'locked', s.locked)) FILTER (WHERE s.key IS NOT NULL),
                   '{}') AS sources
        FROM redoubt.device_group g LEFT JOIN said s ON s.id = g.id
        WHERE g.lineage @> ARRAY[top]
        GROUP BY g.id
    ), written AS ( -- once for all groups that come to the same
        SELECT d.given, jsonb_object_agg(s.key, v.value) AS settings,
               '{' || string_agg(to_json(s.key)::text || ':' || v.value::text,
                                 ',' ORDER BY s.position) || '}' AS document
        FROM (SELECT DISTINCT w.given FROM won w) d
        CROSS JOIN redoubt.setting s
        CROSS JOIN LATERAL (SELECT coalesce(d.given -> s.key, s."default")) AS v (value)
        GROUP BY d.given
    )
    SELECT w.id, t.settings, w.sources,
           encode(sha256(convert_to(t.document, 'UTF8')), 'hex'), t.document
    FROM won w JOIN written t ON t.given = w.given
$$;

-- Writes redoubt.effective anew for the groups from `top` down.  Devices whose rules of
-- status changed are judged soon (judge_stale).  Returns how many groups changed.
CREATE FUNCTION redoubt.recompute(top uuid) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET jit = off AS $$
DECLARE
    others  text[] := (SELECT array_agg(s.key) FROM redoubt.setting s
                       WHERE s.key NOT LIKE 'status.%');
    changed uuid[];
    stale   uuid[];
BEGIN
    PERFORM redoubt.check_epoch();
    WITH written AS (
        INSERT INTO redoubt.effective AS e (group_id, settings, sources, hash, document)
        SELECT i.group_id, i.settings, i.sources, i.hash, i.document
        FROM redoubt.inherited(top) i
        ORDER BY i.group_id
        ON CONFLICT (group_id) DO UPDATE SET
            settings = excluded.settings, sources = excluded.sources,
            hash = excluded.hash, document = excluded.document
        WHERE e.hash <> excluded.hash OR e.sources <> excluded.sources
        RETURNING e.group_id, e.settings
    )
    SELECT array_agg(w.group_id),
           array_agg(w.group_id) FILTER (WHERE w.settings - others <> o.settings - others)
    INTO changed, stale
    FROM written w LEFT JOIN redoubt.effective o ON o.group_id = w.group_id; -- as it was before
    IF changed IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM redoubt.judge_soon(stale);
    PERFORM pg_notify('redoubt', '{"t":"policy"}');
    RETURN cardinality(changed);
END $$;

INSERT INTO redoubt.device_group (id, name, path, lineage)
VALUES (redoubt.root_group(), '', '/', ARRAY[redoubt.root_group()]);
INSERT INTO redoubt.policy (group_id) VALUES (redoubt.root_group());
INSERT INTO redoubt.effective (group_id, settings, sources, hash, document)
SELECT i.* FROM redoubt.inherited(redoubt.root_group()) i;

CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.device_group
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.policy
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.effective
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- --- devices ---------------------------------------------------------------------------------

ALTER TABLE redoubt.device
    ADD COLUMN label         text NOT NULL DEFAULT '',
    ADD COLUMN group_id      uuid NOT NULL DEFAULT redoubt.root_group()
                             REFERENCES redoubt.device_group (id),
    ADD COLUMN group_by_hand boolean NOT NULL DEFAULT false,
    ADD COLUMN tags          text[] NOT NULL DEFAULT '{}',
    ADD COLUMN policy_hash   text NOT NULL DEFAULT '',
    ADD COLUMN policy_state  text NOT NULL DEFAULT 'none' CHECK (policy_state IN
                             ('none', 'applying', 'applied', 'failed', 'drift')),
    ADD COLUMN policy_error  text NOT NULL DEFAULT '',
    ADD COLUMN policy_at     timestamptz,
    ADD COLUMN status        text NOT NULL DEFAULT 'unknown' CHECK (status IN
                             ('ok', 'warning', 'critical', 'unknown')),
    ADD COLUMN reasons       jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN status_at     timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN status_due    timestamptz DEFAULT now(),
    ADD COLUMN version       bigint NOT NULL DEFAULT 1;
COMMENT ON COLUMN redoubt.device.label IS
    'The name that an administrator gave it. Empty: the name that it tells of itself counts.';
COMMENT ON COLUMN redoubt.device.group_by_hand IS
    'An administrator put it into its group: rules leave it there, but those with "override".';
COMMENT ON COLUMN redoubt.device.status_at IS 'Since when it has its status.';
COMMENT ON COLUMN redoubt.device.status_due IS
    'When its status may change by time alone, or has to be judged anew.';
CREATE INDEX device_by_group ON redoubt.device (group_id, id);
CREATE INDEX device_by_status ON redoubt.device (status, id);
CREATE INDEX device_by_tag ON redoubt.device USING gin (tags);
CREATE INDEX device_by_due ON redoubt.device (status_due);

-- The devices of these groups are judged by the next calls of judge_stale.
CREATE FUNCTION redoubt.judge_soon(groups uuid[]) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    n bigint := 0;
BEGIN
    IF groups IS NOT NULL THEN
        PERFORM redoubt.check_epoch();
        -- In the order of ids, as everybody locks devices; and none but those.
        WITH mine AS (SELECT d.id FROM redoubt.device d WHERE d.group_id = ANY (groups)
                      ORDER BY d.id FOR NO KEY UPDATE)
        UPDATE redoubt.device d SET status_due = now() FROM mine m WHERE d.id = m.id;
        GET DIAGNOSTICS n = ROW_COUNT;
    END IF;
    RETURN n;
END $$;

-- Tells the workers, when this is committed, to look at these devices anew.
CREATE FUNCTION redoubt.device_moved(ids uuid[]) RETURNS void LANGUAGE sql VOLATILE AS $$
    SELECT pg_notify('redoubt', json_build_object('t', 'device', 'd', m.id)::text)
    FROM unnest(ids) AS m (id)
$$;

-- --- rules that move devices -----------------------------------------------------------------

CREATE TABLE redoubt.move_rule (
    position integer PRIMARY KEY,
    name     text NOT NULL DEFAULT '',
    tag      text,
    address  inet,
    os       text,
    group_id uuid NOT NULL REFERENCES redoubt.device_group (id),
    override boolean NOT NULL DEFAULT false,
    CHECK (tag IS NOT NULL OR address IS NOT NULL OR os IS NOT NULL)
);
COMMENT ON TABLE redoubt.move_rule IS
    'A device belongs to the group of the first rule of which all that is given holds.';
COMMENT ON COLUMN redoubt.move_rule.os IS
    'os.type of the device, or a part of its os.description; upper and lower case alike.';
COMMENT ON COLUMN redoubt.move_rule.override IS
    'Moves also devices that an administrator put into their group.';
CREATE INDEX move_rule_by_group ON redoubt.move_rule (group_id);

CREATE TABLE redoubt.rule_list (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version    bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE redoubt.rule_list IS 'The version of all of redoubt.move_rule.';
INSERT INTO redoubt.rule_list (version) VALUES (1);

CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.move_rule
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.rule_list
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- A text out of a description; agents that nobody here wrote may send anything.
CREATE FUNCTION redoubt.fact_text(description jsonb, key text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(description -> 'non_identifying' -> key) = 'string'
                THEN description -> 'non_identifying' ->> key END
$$;

-- Moves devices to where the rules want them.  Their rows are locked.
CREATE FUNCTION redoubt.apply_rules(ids uuid[]) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moved uuid[];
BEGIN
    IF NOT EXISTS (SELECT FROM redoubt.move_rule) THEN
        RETURN 0;
    END IF;
    WITH wanted AS (
        SELECT d.id, r.group_id
        FROM redoubt.device d
        CROSS JOIN LATERAL (
            SELECT m.group_id, m.override FROM redoubt.move_rule m
            WHERE (m.tag IS NULL OR m.tag = ANY (d.tags))
              AND (m.address IS NULL OR d.address <<= m.address)
              AND (m.os IS NULL
                   OR lower(redoubt.fact_text(d.description, 'os.type')) = lower(m.os)
                   OR strpos(lower(redoubt.fact_text(d.description, 'os.description')),
                             lower(m.os)) > 0)
              AND (m.override OR NOT d.group_by_hand)
            ORDER BY m.position LIMIT 1) r
        WHERE d.id = ANY (ids) AND d.group_id <> r.group_id
    ), done AS (
        UPDATE redoubt.device d
        SET group_id = w.group_id, group_by_hand = false, version = d.version + 1
        FROM wanted w WHERE d.id = w.id
        RETURNING d.id)
    SELECT array_agg(x.id) INTO moved FROM done x;
    PERFORM redoubt.device_moved(moved);
    RETURN coalesce(cardinality(moved), 0);
END $$;

-- --- the status of a device ------------------------------------------------------------------

-- A whole number out of a description, as a time or count may be; NULL if it is none.
CREATE FUNCTION redoubt.fact_number(description jsonb, key text) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(v) = 'number' AND v::text ~ '^[0-9]{1,11}$'
                THEN v::text::bigint END
    FROM (SELECT description -> 'non_identifying' -> key) AS f (v)
$$;

-- How bad it is when something has an age: warning and critical after hours (0: never), and
-- when that changes by time alone.
CREATE FUNCTION redoubt.judge_age(since timestamptz, warning_h integer, critical_h integer)
RETURNS TABLE (severity text, hours integer, due timestamptz) LANGUAGE sql STABLE AS $$
    WITH t AS (
        SELECT CASE WHEN warning_h > 0 THEN since + make_interval(hours => warning_h) END AS w,
               CASE WHEN critical_h > 0 THEN since + make_interval(hours => critical_h) END AS c)
    SELECT CASE WHEN t.c <= now() THEN 'critical' WHEN t.w <= now() THEN 'warning' END,
           CASE WHEN t.c <= now() THEN critical_h WHEN t.w <= now() THEN warning_h END,
           least(CASE WHEN t.w > now() AND (t.c > now()) IS NOT FALSE THEN t.w END,
                 CASE WHEN t.c > now() THEN t.c END)
    FROM t
$$;

-- All that is wrong with these devices: a row for each reason, its severity as the policy of
-- the device says; and rows without an id for when to look again, at least one a device.
CREATE FUNCTION redoubt.reasons_of(ids uuid[])
RETURNS TABLE (device uuid, rank integer, id text, severity text, words text, due timestamptz)
ROWS 20 LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH f AS MATERIALIZED (
        SELECT d.id, d.state, d.last_seen, d.policy_state, d.policy_error,
               d.description IS NOT NULL AS told,
               redoubt.fact_text(d.description, 'protection.engine') AS engine,
               redoubt.fact_text(d.description, 'protection.realtime') AS realtime,
               redoubt.fact_text(d.description, 'protection.licence') AS licence,
               redoubt.fact_number(d.description, 'protection.signatures.built') AS built,
               redoubt.fact_number(d.description, 'protection.last_scan') AS scanned,
               redoubt.fact_number(d.description, 'protection.threats_open') AS threats,
               e.settings ->> 'status.engine_down' AS engine_down,
               e.settings ->> 'status.realtime_off' AS realtime_off,
               e.settings ->> 'status.licence_missing' AS licence_missing,
               e.settings ->> 'status.threat' AS threat,
               (e.settings ->> 'status.signatures_warning_h')::integer AS sign_w,
               (e.settings ->> 'status.signatures_critical_h')::integer AS sign_c,
               (e.settings ->> 'status.scan_warning_days')::integer AS scan_w,
               (e.settings ->> 'status.unseen_warning_h')::integer AS unseen_w,
               (e.settings ->> 'status.unseen_critical_h')::integer AS unseen_c
        FROM redoubt.device d JOIN redoubt.effective e ON e.group_id = d.group_id
        WHERE d.id = ANY (ids))
    SELECT f.id, r.* FROM f CROSS JOIN LATERAL (
        SELECT 0, NULL::text, NULL::text, NULL::text, NULL::timestamptz
        UNION ALL
        SELECT 1, 'not_managed', 'unknown',
               CASE f.state WHEN 'revoked' THEN 'The device was revoked.'
                            ELSE 'The device waits for approval.' END, NULL
        WHERE f.state <> 'active'
        UNION ALL
        SELECT 2, 'threat', f.threat, CASE f.threats WHEN 1 THEN 'A threat was not cured.'
               ELSE format('%s threats were not cured.', f.threats) END, NULL
        WHERE f.threats > 0 AND f.state = 'active'
        UNION ALL
        SELECT 3, 'engine_down', f.engine_down, 'The engine does not run.', NULL
        WHERE f.engine = 'down' AND f.state = 'active'
        UNION ALL
        SELECT 4, 'signatures_missing', CASE WHEN f.sign_c > 0 THEN 'critical'
                                             WHEN f.sign_w > 0 THEN 'warning' END,
               'The engine has no signatures.', NULL
        WHERE f.engine IS NOT NULL AND f.built = 0 AND f.state = 'active'
        UNION ALL
        SELECT 5, CASE WHEN a.severity IS NOT NULL THEN 'signatures_old' END, a.severity,
               format('The signatures are older than %s hours.', a.hours), a.due
        FROM redoubt.judge_age(to_timestamp(nullif(f.built, 0)), f.sign_w, f.sign_c) a
        WHERE f.state = 'active'
        UNION ALL
        SELECT 6, 'realtime_off', f.realtime_off, CASE f.realtime
                   WHEN 'failed' THEN 'Real-time protection has failed.'
                   ELSE 'Real-time protection is off.' END, NULL
        WHERE f.realtime IN ('off', 'failed') AND f.state = 'active'
        UNION ALL
        SELECT 7, 'licence_missing', f.licence_missing, CASE f.licence
                   WHEN 'expired' THEN 'The licence has expired.'
                   ELSE 'There is no licence.' END, NULL
        WHERE f.licence IN ('missing', 'expired') AND f.state = 'active'
        UNION ALL
        SELECT 8, CASE WHEN a.severity IS NOT NULL THEN 'scan_old' END, a.severity,
               CASE f.scanned WHEN 0 THEN 'The device was never scanned.'
                    ELSE format('The last scan is older than %s days.', f.scan_w) END, a.due
        FROM redoubt.judge_age(to_timestamp(f.scanned), f.scan_w * 24, 0) a
        WHERE f.state = 'active'
        UNION ALL
        SELECT 9, CASE WHEN a.severity IS NOT NULL THEN 'unseen' END, a.severity,
               format('The device was not heard of for more than %s hours.', a.hours), a.due
        FROM redoubt.judge_age(f.last_seen, f.unseen_w, f.unseen_c) a
        WHERE f.state = 'active'
        UNION ALL
        SELECT 10, 'policy_failed', 'warning',
               'The policy could not be applied: ' || f.policy_error, NULL
        WHERE f.policy_state = 'failed' AND f.state = 'active'
        UNION ALL
        SELECT 11, 'policy_drift', 'warning',
               'The settings were changed on the device itself.', NULL
        WHERE f.policy_state = 'drift' AND f.state = 'active'
        UNION ALL
        SELECT 12, 'no_facts', 'unknown', CASE WHEN f.told
                   THEN 'The agent tells nothing of the protection.'
                   ELSE 'The device has not reported yet.' END, NULL
        WHERE f.engine IS NULL AND f.state = 'active') r;
END $$;

-- The status of these devices, and when it may change by time alone.
CREATE FUNCTION redoubt.verdicts(ids uuid[])
RETURNS TABLE (id uuid, status text, reasons jsonb, due timestamptz)
ROWS 20 LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT r.device,
           CASE WHEN bool_or(r.severity = 'critical') THEN 'critical'
                WHEN bool_or(r.severity = 'warning') THEN 'warning'
                WHEN bool_or(r.severity = 'unknown') THEN 'unknown'
                ELSE 'ok' END,
           coalesce(jsonb_agg(jsonb_build_object('id', r.id, 'text', r.words,
                                                 'severity', r.severity) ORDER BY r.rank)
                    FILTER (WHERE r.id IS NOT NULL
                                  AND r.severity IN ('critical', 'warning', 'unknown')), '[]'),
           min(r.due)
    FROM redoubt.reasons_of(ids) r
    GROUP BY r.device;
END $$;

-- Judges these devices anew: the rules may move them, then their status is what the facts and
-- the policy of their group say.  A change of it is an event.  Returns how many changed.
-- (By index whatever the planner knew of the tables when it kept the plans: see 0010.)
CREATE FUNCTION redoubt.judge_devices(ids uuid[]) RETURNS bigint LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    changed    uuid[];
    severities text[];
    data       jsonb[];
BEGIN
    PERFORM redoubt.check_epoch();
    PERFORM 1 FROM redoubt.device d WHERE d.id = ANY (ids) ORDER BY d.id FOR NO KEY UPDATE;
    PERFORM redoubt.apply_rules(ids);
    WITH done AS (
        UPDATE redoubt.device d
        SET status = v.status, reasons = v.reasons, status_due = v.due,
            status_at = CASE WHEN v.status <> d.status THEN now() ELSE d.status_at END
        FROM redoubt.verdicts(ids) v JOIN redoubt.device o ON o.id = v.id
        WHERE d.id = v.id AND (d.status, d.reasons, d.status_due)
                              IS DISTINCT FROM (v.status, v.reasons, v.due)
        RETURNING d.id, o.status AS before, d.status, d.reasons)
    SELECT array_agg(x.id),
           array_agg(CASE x.status WHEN 'critical' THEN 'critical' WHEN 'warning' THEN 'warning'
                                   ELSE 'info' END),
           array_agg(jsonb_build_object('before', x.before, 'status', x.status,
                                        'reasons', x.reasons))
    INTO changed, severities, data FROM done x WHERE x.before <> x.status;
    PERFORM redoubt.events_add(changed, 'protection_changed', severities, data);
    RETURN coalesce(cardinality(changed), 0);
END $$;

-- Judges devices whose status may have changed by time, by their policy or by the rules; at
-- most this many.  A device that somebody works on has its turn the next time.
CREATE FUNCTION redoubt.judge_stale(most integer) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    ids uuid[];
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT array_agg(x.id) INTO ids
    FROM (SELECT d.id FROM redoubt.device d WHERE d.status_due <= now()
          ORDER BY d.status_due LIMIT most FOR NO KEY UPDATE SKIP LOCKED) x;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM redoubt.judge_devices(ids);
    RETURN cardinality(ids);
END $$;

-- What decides over a status, and is changed by others than device_exchange.
CREATE FUNCTION redoubt.judge_later() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.status_due := now();
    RETURN NEW;
END $$;
CREATE TRIGGER judge_later BEFORE UPDATE ON redoubt.device FOR EACH ROW
    WHEN (OLD.state <> NEW.state OR OLD.group_id <> NEW.group_id OR OLD.tags <> NEW.tags)
    EXECUTE FUNCTION redoubt.judge_later();

-- --- what devices say of their policy --------------------------------------------------------

-- "policy": {"hash", "state": "applying" | "applied" | "failed", "error"}.  An agent that finds
-- its settings changed on the device and cannot put them right says "failed" with an error that
-- begins with "drift".
CREATE FUNCTION redoubt.x_policy(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    told record;
BEGIN
    PERFORM redoubt.check_epoch();
    WITH done AS (
        UPDATE redoubt.device d
        SET policy_hash = said.hash, policy_state = said.state, policy_error = said.error,
            policy_at = now()
        FROM (SELECT DISTINCT ON (1) (i.item ->> 'device')::uuid AS id,
                     CASE WHEN p.p ->> 'hash' ~ '^[0-9a-f]{64}$' THEN p.p ->> 'hash' ELSE '' END
                         AS hash,
                     CASE WHEN p.p ->> 'state' = 'failed'
                               AND p.p ->> 'error' ILIKE 'drift%' THEN 'drift'
                          WHEN p.p ->> 'state' IN ('applying', 'applied', 'failed', 'drift')
                               THEN p.p ->> 'state'
                          ELSE 'none' END AS state,
                     CASE WHEN p.p ->> 'state' IN ('failed', 'drift')
                          THEN left(coalesce(p.p ->> 'error', ''), 500) ELSE '' END AS error
              FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n)
              CROSS JOIN LATERAL (SELECT i.item -> 'policy') AS p (p)
              WHERE jsonb_typeof(p.p) = 'object'
              ORDER BY 1, i.n DESC) said
        WHERE d.id = said.id AND (d.policy_hash, d.policy_state, d.policy_error)
                                 IS DISTINCT FROM (said.hash, said.state, said.error)
        RETURNING d.id, d.policy_hash, d.policy_state, d.policy_error)
    SELECT array_agg(x.id) FILTER (WHERE x.policy_state = 'applied') AS applied,
           array_agg(jsonb_build_object('hash', x.policy_hash))
               FILTER (WHERE x.policy_state = 'applied') AS hashes,
           array_agg(x.id) FILTER (WHERE x.policy_state IN ('failed', 'drift')) AS failed,
           array_agg('error'::text) FILTER (WHERE x.policy_state IN ('failed', 'drift'))
               AS severities,
           array_agg(jsonb_build_object('hash', x.policy_hash, 'error', x.policy_error))
               FILTER (WHERE x.policy_state IN ('failed', 'drift')) AS errors
    INTO told FROM done x;
    PERFORM redoubt.events_add(told.applied, 'policy_applied', NULL, told.hashes);
    PERFORM redoubt.events_add(told.failed, 'policy_failed', told.severities, told.errors);
    RETURN;
END $$;

-- What is to be shown: "applied" counts only for the policy that it should have now.
CREATE FUNCTION redoubt.policy_state(d redoubt.device, wanted text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN d.policy_state IN ('applied', 'failed') AND d.policy_hash <> wanted
                THEN 'applying' ELSE d.policy_state END
$$;
