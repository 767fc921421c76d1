-- Tasks, their schedules, occurrences and the runs on devices.
-- works-since: 1
--
-- A task says what, where and when.  Each time it starts is an occurrence, which freezes what
-- is to be done and makes one run a device.  docs/protocol/tasks.md has the wire side;
-- 0008 what the API does with them.
--
-- A device does one thing once: while a run of it is not finished, another one of the same
-- type and parameters (redoubt.run_key) is not sent, but is answered with that one's result
-- (run.same_as).  Should that one end without a result, the next takes its place.
--
-- Lock order: advisory (1380208454, 0) where runs are made or cancelled; occurrences; runs by id.

CREATE TABLE redoubt.task (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name        text NOT NULL CHECK (name ~ '^[^[:cntrl:]]{1,100}$'),
    spec        jsonb NOT NULL,
    enabled     boolean NOT NULL DEFAULT true,
    scope       uuid[],
    version     bigint NOT NULL DEFAULT 1,
    next_at     timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    created_by  text NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT now(),
    deleted_at  timestamptz
);
COMMENT ON TABLE redoubt.task IS
    'What is to be done: spec has type, params, target, schedule, priority, expires_min.';
COMMENT ON COLUMN redoubt.task.scope IS
    'Groups that its maker was limited to: it never reaches other devices. NULL: no limit.';
COMMENT ON COLUMN redoubt.task.deleted_at IS 'It stays until its occurrences have gone.';
CREATE UNIQUE INDEX task_by_name ON redoubt.task (name) WHERE deleted_at IS NULL;
CREATE INDEX task_by_age ON redoubt.task (created_at, id);
CREATE INDEX task_by_next ON redoubt.task (next_at) WHERE next_at IS NOT NULL;

CREATE TABLE redoubt.occurrence (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    task_id     uuid NOT NULL REFERENCES redoubt.task (id),
    at          timestamptz NOT NULL,
    not_before  timestamptz NOT NULL,
    not_after   timestamptz NOT NULL,
    spread_s    integer NOT NULL DEFAULT 0,
    type        text NOT NULL,
    params      jsonb NOT NULL,
    target      jsonb NOT NULL,
    priority    integer NOT NULL,
    state       text NOT NULL DEFAULT 'running'
                CHECK (state IN ('running', 'paused', 'finished', 'cancelled')),
    complete    boolean NOT NULL DEFAULT false,
    expanded    uuid,
    totals      jsonb,
    created_at  timestamptz NOT NULL DEFAULT now(),
    created_by  text NOT NULL,
    finished_at timestamptz
);
COMMENT ON TABLE redoubt.occurrence IS 'One time that a task was started.';
COMMENT ON COLUMN redoubt.occurrence.at IS 'When it was planned for.';
COMMENT ON COLUMN redoubt.occurrence.complete IS 'All runs are made; else those up to device "expanded".';
COMMENT ON COLUMN redoubt.occurrence.totals IS 'Once all runs are finished; before, they are counted.';
CREATE INDEX occurrence_by_task ON redoubt.occurrence (task_id, created_at, id);
CREATE INDEX occurrence_open ON redoubt.occurrence (created_at) WHERE finished_at IS NULL;
CREATE INDEX occurrence_by_end ON redoubt.occurrence (finished_at);

CREATE TABLE redoubt.run (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    occurrence_id uuid NOT NULL REFERENCES redoubt.occurrence (id),
    device_id     uuid NOT NULL REFERENCES redoubt.device (id) ON DELETE CASCADE,
    key           text NOT NULL,
    same_as       uuid,
    state         text NOT NULL DEFAULT 'pending'
                  CHECK (state IN ('pending', 'accepted', 'running', 'paused', 'finished')),
    wanted        text CHECK (wanted IN ('paused', 'cancelled')),
    outcome       text CHECK (outcome IN ('done', 'failed', 'refused', 'cancelled', 'expired',
                                          'missed')),
    assumed       boolean NOT NULL DEFAULT false,
    percent       integer NOT NULL DEFAULT 0 CHECK (percent BETWEEN 0 AND 100),
    counts        jsonb NOT NULL DEFAULT '{}',
    result        jsonb,
    priority      integer NOT NULL,
    not_before    timestamptz NOT NULL,
    not_after     timestamptz NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'finished') = (outcome IS NOT NULL))
);
COMMENT ON TABLE redoubt.run IS 'What one device does of an occurrence.';
COMMENT ON COLUMN redoubt.run.same_as IS 'The run of the same thing that answers for this one.';
COMMENT ON COLUMN redoubt.run.wanted IS 'What an administrator asked for and the device has not told yet.';
COMMENT ON COLUMN redoubt.run.assumed IS
    'The outcome is not the device''s word; should it tell another one, that one counts.';
CREATE INDEX run_by_occurrence ON redoubt.run (occurrence_id, id);
CREATE INDEX run_open ON redoubt.run (occurrence_id) WHERE state <> 'finished';
CREATE INDEX run_of_device ON redoubt.run (device_id) WHERE state <> 'finished';
CREATE INDEX run_by_device ON redoubt.run (device_id, changed_at);
CREATE INDEX run_by_end ON redoubt.run (state, not_after) WHERE state <> 'finished';
CREATE INDEX run_same ON redoubt.run (same_as) WHERE same_as IS NOT NULL;
CREATE UNIQUE INDEX run_once ON redoubt.run (device_id, key)
    WHERE state <> 'finished' AND same_as IS NULL AND wanted IS DISTINCT FROM 'cancelled';

CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.task
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.occurrence
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.run
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

CREATE FUNCTION redoubt.run_soon(occurrence uuid) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('redoubt', jsonb_build_object('t', 'run', 'o', occurrence)::text)
$$;

-- Runs with the same key do the same: how fast does not matter.
CREATE FUNCTION redoubt.run_key(type text, params jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT md5(type || (params - 'cpu_percent')::text)
$$;

-- --- schedules --------------------------------------------------------------------------------

-- The first time of a schedule after a moment.  One a local day: a time that the change to
-- summer time leaves out is as much later as the clock jumped; of one that comes twice when
-- it ends, it is the second.  A month without the day is left out.
CREATE FUNCTION redoubt.schedule_next(schedule jsonb, after timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT min(t.at)
    FROM (SELECT d.day, (d.day + (schedule ->> 'time')::time)
                        AT TIME ZONE (schedule ->> 'timezone') AS at
          FROM (SELECT (after AT TIME ZONE (schedule ->> 'timezone'))::date + n AS day
                FROM generate_series(-1, 63) AS n) d) t
    WHERE t.at > after
      AND (schedule -> 'days' ? lower(to_char(t.day, 'dy'))
           OR schedule -> 'monthdays' @> to_jsonb(extract(day FROM t.day)::integer))
$$;

-- How many seconds later than others this device begins: always the same for a task.
CREATE FUNCTION redoubt.spread_of(task uuid, device uuid, spread_s integer) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN spread_s <= 0 THEN 0 ELSE
        (('x' || left(md5(task::text || device::text), 8))::bit(32)::bigint % spread_s)::integer
    END
$$;

-- For how long after its time an occurrence may still begin.
CREATE FUNCTION redoubt.window_of(schedule jsonb) RETURNS interval LANGUAGE sql IMMUTABLE AS $$
    SELECT make_interval(mins => greatest(coalesce((schedule ->> 'window_min')::integer, 60),
                                          coalesce((schedule ->> 'spread_min')::integer, 0)))
$$;

-- --- what a task may be -----------------------------------------------------------------------

CREATE FUNCTION redoubt.is_whole(value jsonb, low bigint, high bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(value) = 'number' AND value #>> '{}' ~ '^[0-9]{1,9}$'
                THEN (value #>> '{}')::bigint BETWEEN low AND high ELSE false END
$$;
-- A text of at most 4096 bytes like a pattern, or a list of 1 to `most` of them.
CREATE FUNCTION redoubt.is_texts(value jsonb, most integer, pattern text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE jsonb_typeof(value)
        WHEN 'string' THEN octet_length(value #>> '{}') <= 4096 AND value #>> '{}' ~ pattern
        WHEN 'array' THEN jsonb_array_length(value) BETWEEN 1 AND most
             AND NOT EXISTS (SELECT FROM jsonb_array_elements(value) AS e (e)
                             WHERE jsonb_typeof(e.e) <> 'string'
                                OR octet_length(e.e #>> '{}') > 4096 OR e.e #>> '{}' !~ pattern)
        ELSE false END
$$;
CREATE FUNCTION redoubt.texts_of(value jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE jsonb_typeof(value)
        WHEN 'string' THEN ARRAY[value #>> '{}']
        WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text(value)) END
$$;
-- Members that an object may not have, as problems.
CREATE FUNCTION redoubt.unknown_members(value jsonb, prefix text, allowed text[])
RETURNS SETOF text LANGUAGE sql IMMUTABLE AS $$
    SELECT prefix || left(k, 60) || ': is not known here'
    FROM jsonb_object_keys(CASE WHEN jsonb_typeof(value) = 'object' THEN value ELSE '{}' END) k
    WHERE k <> ALL (allowed)
$$;

CREATE FUNCTION redoubt.params_problems(type text, params jsonb) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF jsonb_typeof(params) <> 'object' THEN
        RETURN NEXT 'params: must be an object';
    ELSIF octet_length(params::text) > 12288 THEN -- an agent takes 16 KiB
        RETURN NEXT 'params: must not be over 12 KiB';
    ELSIF type = 'scan' THEN
        RETURN QUERY SELECT redoubt.unknown_members(params, 'params.',
                                                    ARRAY['mode', 'paths', 'cpu_percent']);
        IF coalesce(params ->> 'mode', '') NOT IN ('quick', 'full', 'paths') THEN
            RETURN NEXT 'params.mode: must be quick, full or paths';
        ELSIF params ->> 'mode' = 'paths' THEN
            IF coalesce(jsonb_typeof(params -> 'paths'), '') <> 'array'
               OR NOT redoubt.is_texts(params -> 'paths', 100, '^/[^[:cntrl:]]*$') THEN
                RETURN NEXT 'params.paths: must be 1 to 100 absolute paths';
            END IF;
        ELSIF params ? 'paths' THEN
            RETURN NEXT 'params.paths: only with mode paths';
        END IF;
        IF params ? 'cpu_percent' AND NOT redoubt.is_whole(params -> 'cpu_percent', 1, 100) THEN
            RETURN NEXT 'params.cpu_percent: must be a number between 1 and 100';
        END IF;
    ELSIF type IN ('quarantine_restore', 'quarantine_delete') THEN
        RETURN QUERY SELECT redoubt.unknown_members(params, 'params.', ARRAY['item']);
        IF NOT redoubt.is_uuid(params ->> 'item') THEN
            RETURN NEXT 'params.item: must be the id of an item in quarantine';
        END IF;
    ELSE
        RETURN QUERY SELECT redoubt.unknown_members(params, 'params.', '{}');
    END IF;
END $$;

CREATE FUNCTION redoubt.schedule_problems(s jsonb) RETURNS SETOF text
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF jsonb_typeof(s) <> 'object' THEN
        RETURN NEXT 'schedule: must be an object or null';
        RETURN;
    END IF;
    RETURN QUERY SELECT redoubt.unknown_members(s, 'schedule.', ARRAY['days', 'monthdays',
        'time', 'timezone', 'window_min', 'spread_min', 'missed']);
    IF (s ? 'days') = (s ? 'monthdays') THEN
        RETURN NEXT 'schedule: must have days or monthdays';
    ELSIF s ? 'days' AND (jsonb_typeof(s -> 'days') <> 'array'
          OR NOT redoubt.is_texts(s -> 'days', 7, '^(mon|tue|wed|thu|fri|sat|sun)$')) THEN
        RETURN NEXT 'schedule.days: must be a list of mon, tue, wed, thu, fri, sat, sun';
    ELSIF s ? 'monthdays' AND (jsonb_typeof(s -> 'monthdays') <> 'array'
          OR jsonb_array_length(s -> 'monthdays') NOT BETWEEN 1 AND 31
          OR EXISTS (SELECT FROM jsonb_array_elements(s -> 'monthdays') AS e (e)
                     WHERE NOT redoubt.is_whole(e.e, 1, 31))) THEN
        RETURN NEXT 'schedule.monthdays: must be a list of numbers between 1 and 31';
    END IF;
    IF NOT coalesce(s ->> 'time' ~ '^([01][0-9]|2[0-3]):[0-5][0-9]$', false) THEN
        RETURN NEXT 'schedule.time: must be a time like 02:00';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_timezone_names z WHERE z.name = s ->> 'timezone'
                   AND z.name !~ '^(posix|right)/|^(posixrules|localtime|Factory)$') THEN
        RETURN NEXT 'schedule.timezone: must be an IANA name like Europe/Zurich';
    END IF;
    IF s ? 'window_min' AND NOT redoubt.is_whole(s -> 'window_min', 1, 1440) THEN
        RETURN NEXT 'schedule.window_min: must be a number between 1 and 1440';
    ELSIF s ? 'spread_min' AND NOT redoubt.is_whole(s -> 'spread_min', 0, 1440) THEN
        RETURN NEXT 'schedule.spread_min: must be a number between 0 and 1440';
    ELSIF (s ->> 'spread_min')::integer > (s ->> 'window_min')::integer THEN
        RETURN NEXT 'schedule.spread_min: must not be longer than window_min';
    END IF;
    IF s ? 'missed' AND coalesce(s ->> 'missed', '') NOT IN ('skip', 'run') THEN
        RETURN NEXT 'schedule.missed: must be skip or run';
    END IF;
END $$;

CREATE FUNCTION redoubt.target_problems(actor jsonb, type text, t jsonb) RETURNS SETOF text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    groups constant uuid[] := redoubt.scope_groups(actor);
BEGIN
    IF jsonb_typeof(t) IS DISTINCT FROM 'object'
       OR (SELECT count(*) FROM jsonb_object_keys(t) k
           WHERE k IN ('devices', 'group', 'select')) <> 1 THEN
        RETURN NEXT 'target: must have one of devices, group, select';
        RETURN;
    END IF;
    RETURN QUERY SELECT redoubt.unknown_members(t, 'target.', CASE WHEN t ? 'group'
        THEN ARRAY['group', 'subgroups'] ELSE ARRAY['devices', 'select'] END);
    IF t ? 'devices' THEN
        IF jsonb_typeof(t -> 'devices') <> 'array'
           OR jsonb_array_length(t -> 'devices') NOT BETWEEN 1 AND 10000 THEN
            RETURN NEXT 'target.devices: must be a list of 1 to 10000 devices';
            RETURN;
        END IF;
        RETURN QUERY
        SELECT format('target.devices[%s]: there is no device %s', e.n - 1, left(e.id, 60))
        FROM jsonb_array_elements_text(t -> 'devices') WITH ORDINALITY AS e (id, n)
        LEFT JOIN redoubt.device d ON d.id = CASE WHEN redoubt.is_uuid(e.id) THEN e.id::uuid END
             AND (groups IS NULL OR d.group_id = ANY (groups))
        WHERE d.id IS NULL ORDER BY e.n LIMIT 20;
    ELSIF t ? 'group' THEN
        IF NOT EXISTS (SELECT FROM redoubt.device_group g
                       WHERE (g.path = t ->> 'group' OR g.id::text = lower(t ->> 'group'))
                         AND (groups IS NULL OR g.id = ANY (groups))) THEN
            RETURN NEXT format('target.group: there is no group %s', left(t ->> 'group', 200));
        END IF;
        IF t ? 'subgroups' AND jsonb_typeof(t -> 'subgroups') <> 'boolean' THEN
            RETURN NEXT 'target.subgroups: must be true or false';
        END IF;
    ELSIF jsonb_typeof(t -> 'select') <> 'object' OR t -> 'select' = '{}' THEN
        RETURN NEXT 'target.select: must have one of status, tag, state, connected';
    ELSE
        RETURN QUERY SELECT redoubt.unknown_members(t -> 'select', 'target.select.',
            ARRAY['status', 'tag', 'state', 'connected']);
        IF t -> 'select' ? 'status' AND NOT redoubt.is_texts(t #> '{select,status}', 4,
                '^(ok|warning|critical|unknown)$') THEN
            RETURN NEXT 'target.select.status: must be ok, warning, critical or unknown';
        ELSIF t -> 'select' ? 'tag'
              AND NOT redoubt.is_texts(t #> '{select,tag}', 50, '^[^[:cntrl:]]{1,100}$') THEN
            RETURN NEXT 'target.select.tag: must be a tag or a list of tags';
        ELSIF t -> 'select' ? 'state'
              AND NOT redoubt.is_texts(t #> '{select,state}', 1, '^active$') THEN
            RETURN NEXT 'target.select.state: must be active; no others do tasks';
        ELSIF t -> 'select' ? 'connected'
              AND jsonb_typeof(t #> '{select,connected}') <> 'boolean' THEN
            RETURN NEXT 'target.select.connected: must be true or false';
        END IF;
    END IF;
    IF type LIKE 'quarantine_%' AND (NOT t ? 'devices' OR jsonb_array_length(t -> 'devices') <> 1)
    THEN
        RETURN NEXT 'target: an item in quarantine is on one device';
    END IF;
END $$;

-- A task as it is kept, defaults filled in.  Refuses with each problem and its path.
CREATE FUNCTION redoubt.task_spec(actor jsonb, body jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    problems text[];
    type     constant text := coalesce(body ->> 'type', '');
    s        jsonb := body -> 'schedule';
    t        jsonb := body -> 'target';
BEGIN
    IF jsonb_typeof(body) IS DISTINCT FROM 'object' THEN
        PERFORM redoubt.api_refuse(400, 'The task is wrong', 'It must be a JSON object.', '');
    END IF;
    IF jsonb_typeof(s) = 'null' THEN
        s := NULL;
    END IF;
    SELECT array_agg(p) INTO problems FROM (
        SELECT redoubt.unknown_members(body, '', ARRAY['name', 'type', 'params', 'target',
            'schedule', 'priority', 'expires_min', 'enabled'])
        UNION ALL
        SELECT 'name: must be 1 to 100 characters, without control characters'
        WHERE jsonb_typeof(body -> 'name') IS DISTINCT FROM 'string'
           OR body ->> 'name' !~ '^[^[:cntrl:]]{1,100}$'
        UNION ALL
        SELECT 'type: must be scan, update, inventory, restart_engine, quarantine_restore or '
               'quarantine_delete'
        WHERE type NOT IN ('scan', 'update', 'inventory', 'restart_engine',
                           'quarantine_restore', 'quarantine_delete')
        UNION ALL
        SELECT redoubt.params_problems(type, coalesce(body -> 'params', '{}'))
        UNION ALL
        SELECT redoubt.target_problems(actor, type, t)
        UNION ALL
        SELECT redoubt.schedule_problems(s) WHERE s IS NOT NULL
        UNION ALL
        SELECT 'priority: must be a number between 0 and 9'
        WHERE body ? 'priority' AND NOT redoubt.is_whole(body -> 'priority', 0, 9)
        UNION ALL
        SELECT 'expires_min: must be a number between 1 and 525600'
        WHERE body ? 'expires_min' AND NOT redoubt.is_whole(body -> 'expires_min', 1, 525600)
        UNION ALL
        SELECT 'enabled: must be true or false'
        WHERE body ? 'enabled' AND jsonb_typeof(body -> 'enabled') <> 'boolean') AS x (p);
    IF problems IS NOT NULL THEN
        PERFORM redoubt.api_refuse(400, 'The task is not valid', array_to_string(problems, E'\n'),
                                   'Correct it, and send it again.', 'task_invalid');
    END IF;
    IF t ? 'group' THEN
        t := jsonb_build_object('subgroups', true) || t || jsonb_build_object('group',
            (SELECT g.id FROM redoubt.device_group g
             WHERE g.path = t ->> 'group' OR g.id::text = lower(t ->> 'group')));
    END IF;
    RETURN jsonb_build_object('type', type, 'params', coalesce(body -> 'params', '{}'),
        'target', t, 'priority', coalesce(body -> 'priority', '5'),
        'expires_min', coalesce(body -> 'expires_min', '10080'), 'schedule',
        CASE WHEN s IS NOT NULL THEN '{"spread_min": 0, "missed": "skip"}' || s END);
END $$;

-- The devices of a target: the next ones by id.
CREATE FUNCTION redoubt.target_devices(target jsonb, scope uuid[], after uuid, most integer)
RETURNS SETOF uuid LANGUAGE plpgsql STABLE AS $$
DECLARE
    groups uuid[] := redoubt.scope_groups(jsonb_build_object('scope', to_jsonb(scope)));
    wanted uuid[];
    s      constant jsonb := coalesce(target -> 'select', '{}');
BEGIN
    IF target ? 'devices' THEN
        RETURN QUERY
        SELECT DISTINCT d.id FROM jsonb_array_elements_text(target -> 'devices') AS e (id)
        JOIN redoubt.device d ON d.id = e.id::uuid
        WHERE d.state = 'active' AND (after IS NULL OR d.id > after)
          AND (groups IS NULL OR d.group_id = ANY (groups))
        ORDER BY d.id LIMIT most;
        RETURN;
    END IF;
    IF target ? 'group' THEN
        wanted := ARRAY(SELECT g.id FROM redoubt.device_group g
                        WHERE CASE WHEN (target ->> 'subgroups')::boolean
                                   THEN g.lineage @> ARRAY[(target ->> 'group')::uuid]
                                   ELSE g.id = (target ->> 'group')::uuid END
                          AND (groups IS NULL OR g.id = ANY (groups)));
        groups := wanted;
    END IF;
    RETURN QUERY
    SELECT d.id FROM redoubt.device d
    WHERE d.state = 'active' AND (after IS NULL OR d.id > after)
      AND (groups IS NULL OR d.group_id = ANY (groups))
      AND (NOT s ? 'status' OR d.status = ANY (redoubt.texts_of(s -> 'status')))
      AND (NOT s ? 'tag' OR d.tags && redoubt.texts_of(s -> 'tag'))
      AND (NOT s ? 'connected'
           OR redoubt.device_connected(d) = (s ->> 'connected')::boolean) -- 0011
    ORDER BY d.id LIMIT most;
END $$;

-- --- starting ---------------------------------------------------------------------------------

-- Makes runs for the next devices of an occurrence.  Returns for how many.
CREATE FUNCTION redoubt.occurrence_expand(which uuid, most integer DEFAULT 5000)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    o     redoubt.occurrence;
    scope uuid[];
    ids   uuid[];
    todo  uuid[];
    made  uuid[];
    busy  jsonb;
    same  text;
BEGIN
    PERFORM pg_advisory_xact_lock(1380208454, 0);
    SELECT * INTO STRICT o FROM redoubt.occurrence c WHERE c.id = which FOR UPDATE;
    IF o.complete OR o.state IN ('finished', 'cancelled') THEN
        RETURN 0;
    END IF;
    SELECT t.scope INTO scope FROM redoubt.task t WHERE t.id = o.task_id;
    ids := ARRAY(SELECT redoubt.target_devices(o.target, scope, o.expanded, most));
    same := redoubt.run_key(o.type, o.params);
    todo := ids;
    WHILE cardinality(todo) > 0 LOOP
        -- Locked, so that none of these finishes before the runs that rely on it are there.
        SELECT jsonb_object_agg(r.device_id, r.id) INTO busy
        FROM (SELECT r.device_id, r.id FROM redoubt.run r
              WHERE r.device_id = ANY (todo) AND r.state <> 'finished' AND r.same_as IS NULL
                AND r.wanted IS DISTINCT FROM 'cancelled' AND r.key = same
              ORDER BY r.id FOR SHARE) r;
        -- Nothing is made where a run has just taken the place of one that ended: once more.
        WITH new AS (
            INSERT INTO redoubt.run (occurrence_id, device_id, key, same_as, wanted, priority,
                                     not_before, not_after)
            SELECT o.id, d.id, same, (busy ->> d.id::text)::uuid,
                   CASE WHEN o.state = 'paused' THEN 'paused' END, o.priority,
                   o.not_before + make_interval(
                       secs => redoubt.spread_of(o.task_id, d.id, o.spread_s)),
                   o.not_after
            FROM unnest(todo) AS d (id) ORDER BY d.id
            ON CONFLICT (device_id, key)
                WHERE state <> 'finished' AND same_as IS NULL
                  AND wanted IS DISTINCT FROM 'cancelled' DO NOTHING
            RETURNING device_id)
        SELECT coalesce(array_agg(n.device_id), '{}') INTO made FROM new n;
        todo := ARRAY(SELECT unnest(todo) EXCEPT SELECT unnest(made));
    END LOOP;
    UPDATE redoubt.occurrence c
    SET complete = cardinality(ids) < most,
        expanded = CASE WHEN cardinality(ids) > 0 THEN ids[cardinality(ids)] ELSE c.expanded END
    WHERE c.id = o.id;
    PERFORM redoubt.run_soon(o.id);
    RETURN cardinality(ids);
END $$;

-- Starts a task.  at: the time that it was planned for; from_at: devices may begin from then
-- on; planned: its schedule starts it, which is when its window and spread count.
CREATE FUNCTION redoubt.task_begin(t redoubt.task, at timestamptz, from_at timestamptz,
                                   planned boolean, by text)
RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    s    constant jsonb := nullif(t.spec -> 'schedule', 'null');
    life constant interval := make_interval(mins => (t.spec ->> 'expires_min')::integer);
    o    uuid;
BEGIN
    INSERT INTO redoubt.occurrence (task_id, at, not_before, not_after, spread_s, type, params,
                                    target, priority, created_by)
    VALUES (t.id, task_begin.at, from_at,
            from_at + CASE WHEN planned AND s ->> 'missed' = 'skip'
                           THEN least(life, redoubt.window_of(s)) ELSE life END,
            CASE WHEN planned THEN 60 * (s ->> 'spread_min')::integer ELSE 0 END,
            t.spec ->> 'type', t.spec -> 'params', t.spec -> 'target',
            (t.spec ->> 'priority')::integer, by)
    RETURNING id INTO o;
    PERFORM redoubt.event_add(NULL, 'task_started', 'info', jsonb_build_object(
        'task', t.id, 'name', t.name, 'occurrence', o, 'at', task_begin.at, 'by', by));
    PERFORM redoubt.occurrence_expand(o);
    RETURN o;
END $$;

-- --- the end of runs --------------------------------------------------------------------------

-- These runs come to no result: the oldest of those that each answers for is done now, for
-- the rest of them as well.
CREATE FUNCTION redoubt.runs_inherit(ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    heirs uuid[];
BEGIN
    PERFORM FROM redoubt.run d WHERE d.same_as = ANY (ids) AND d.state <> 'finished'
    ORDER BY d.id FOR UPDATE;
    WITH heir AS (
        SELECT DISTINCT ON (d.same_as) d.same_as AS of, d.id FROM redoubt.run d
        WHERE d.same_as = ANY (ids) AND d.state <> 'finished'
        ORDER BY d.same_as, d.created_at, d.id
    ), moved AS (
        UPDATE redoubt.run d SET same_as = nullif(h.id, d.id), changed_at = now()
        FROM heir h WHERE d.same_as = h.of AND d.state <> 'finished')
    SELECT array_agg(h.id) INTO heirs FROM heir h;
    PERFORM redoubt.run_soon(o.id)
    FROM (SELECT DISTINCT r.occurrence_id AS id FROM redoubt.run r WHERE r.id = ANY (heirs)) o;
END $$;

-- These runs have finished: what becomes of those that they answer for.
CREATE FUNCTION redoubt.runs_ended(ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE redoubt.run d
    SET state = 'finished', outcome = r.outcome, percent = r.percent, counts = r.counts,
        result = r.result, changed_at = now(), wanted = NULL
    FROM redoubt.run r
    WHERE r.id = ANY (ids) AND r.outcome IN ('done', 'failed') AND d.same_as = r.id
      AND d.state <> 'finished';
    PERFORM redoubt.runs_inherit(ids); -- of those without a result: there are no others left
    UPDATE redoubt.occurrence o SET totals = redoubt.occurrence_totals(o.id)
    WHERE o.finished_at IS NOT NULL
      AND o.id IN (SELECT r.occurrence_id FROM redoubt.run r WHERE r.id = ANY (ids));
END $$;

CREATE FUNCTION redoubt.occurrence_totals(which uuid) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('total', count(*),
        'pending', count(*) FILTER (WHERE r.state = 'pending'),
        'accepted', count(*) FILTER (WHERE r.state = 'accepted'),
        'running', count(*) FILTER (WHERE r.state = 'running'),
        'paused', count(*) FILTER (WHERE r.state = 'paused'),
        'finished', count(*) FILTER (WHERE r.state = 'finished'),
        'done', count(*) FILTER (WHERE r.outcome = 'done'),
        'failed', count(*) FILTER (WHERE r.outcome = 'failed'),
        'refused', count(*) FILTER (WHERE r.outcome = 'refused'),
        'cancelled', count(*) FILTER (WHERE r.outcome = 'cancelled'),
        'expired', count(*) FILTER (WHERE r.outcome = 'expired'),
        'missed', count(*) FILTER (WHERE r.outcome = 'missed'),
        'percent', coalesce(round(avg(CASE WHEN r.state = 'finished' THEN 100
                                           ELSE r.percent END)), 100))
    FROM redoubt.run r WHERE r.occurrence_id = which
$$;

-- What devices' events tell about runs: [{device, kind, at, data}]; called by events_apply.
CREATE FUNCTION redoubt.runs_told(events jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    ended uuid[];
BEGIN
    PERFORM FROM redoubt.run r
    WHERE r.id IN (SELECT (e.data ->> 'run')::uuid FROM jsonb_to_recordset(events) AS e (data jsonb)
                   WHERE redoubt.is_uuid(e.data ->> 'run'))
    ORDER BY r.id FOR UPDATE;

    UPDATE redoubt.run r SET state = 'accepted', changed_at = now()
    FROM jsonb_to_recordset(events) AS e (device uuid, kind text, data jsonb)
    WHERE e.kind = 'run_accepted' AND redoubt.is_uuid(e.data ->> 'run')
      AND r.id = (e.data ->> 'run')::uuid AND r.device_id = e.device AND r.state = 'pending';

    WITH word AS (
        SELECT DISTINCT ON (1) (e.data ->> 'run')::uuid AS run, e.device, e.data,
               CASE WHEN e.kind = 'run_refused' THEN 'refused'
                    ELSE e.data ->> 'outcome' END AS outcome
        FROM jsonb_to_recordset(events) AS e (device uuid, kind text, data jsonb)
        WHERE e.kind IN ('run_refused', 'run_finished') AND redoubt.is_uuid(e.data ->> 'run')
          AND (e.kind = 'run_refused'
               OR e.data ->> 'outcome' IN ('done', 'failed', 'cancelled', 'expired'))
        ORDER BY 1
    ), told AS (
        UPDATE redoubt.run r
        SET state = 'finished', outcome = w.outcome, assumed = false, wanted = NULL,
            percent = CASE WHEN w.outcome = 'done' THEN 100 ELSE r.percent END,
            counts = CASE WHEN jsonb_typeof(w.data -> 'counts') = 'object'
                          THEN w.data -> 'counts' ELSE r.counts END,
            result = w.data - '{run,outcome,type,counts}'::text[], changed_at = now()
        FROM word w
        WHERE r.id = w.run AND r.device_id = w.device
          AND (r.state <> 'finished' OR r.assumed)
        RETURNING r.id)
    SELECT array_agg(t.id) INTO ended FROM told t;
    IF ended IS NOT NULL THEN
        PERFORM redoubt.runs_ended(ended);
    END IF;
END $$;

-- --- what devices are told --------------------------------------------------------------------

-- The assignment of a run, as com.redoubt.tasks/v1 has it.
CREATE FUNCTION redoubt.run_assignment(r redoubt.run, o redoubt.occurrence) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('run', r.id, 'type', o.type, 'params', o.params,
        'priority', r.priority, 'not_before', floor(extract(epoch FROM r.not_before))::bigint,
        'not_after', floor(extract(epoch FROM r.not_after))::bigint)
$$;

-- The assignments of a device: what it has to do, the 60 most urgent first (an agent takes 64).
-- Sending one again is harmless.
CREATE FUNCTION redoubt.runs_of(device uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_agg(redoubt.run_assignment(r, o)
                              ORDER BY r.priority DESC, r.not_before, r.id), '[]')
    FROM (SELECT * FROM redoubt.run r
          WHERE r.device_id = runs_of.device AND r.state <> 'finished' AND r.same_as IS NULL
            AND (r.wanted IS NULL OR (r.wanted = 'paused' AND r.state <> 'pending'))
          ORDER BY r.priority DESC, r.not_before, r.id LIMIT 60) r
    JOIN redoubt.occurrence o ON o.id = r.occurrence_id);
END $$;

-- Those of an occurrence, by device.
CREATE FUNCTION redoubt.runs_of_occurrence(which uuid)
RETURNS TABLE (device uuid, run jsonb) LANGUAGE sql STABLE AS $$
    SELECT r.device_id, redoubt.run_assignment(r, o)
    FROM redoubt.run r JOIN redoubt.occurrence o ON o.id = r.occurrence_id
    WHERE r.occurrence_id = which AND r.state <> 'finished' AND r.same_as IS NULL
      AND r.wanted IS NULL
$$;

-- What a device is to stop, pause and resume: {} or some of {"cancel", "pause", "resume"}.
-- A run that was cancelled before the device told that it has it may be on its way there.
CREATE FUNCTION redoubt.orders_of(device uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT jsonb_strip_nulls(jsonb_build_object(
        'cancel', jsonb_agg(r.id ORDER BY r.id) FILTER (WHERE r.cancel),
        'pause', jsonb_agg(r.id ORDER BY r.id)
                 FILTER (WHERE NOT r.cancel AND r.wanted = 'paused' AND r.state <> 'paused'),
        'resume', jsonb_agg(r.id ORDER BY r.id)
                  FILTER (WHERE NOT r.cancel AND r.wanted IS NULL AND r.state = 'paused')))
    FROM (SELECT r.id, r.state, r.wanted, r.wanted IS NOT DISTINCT FROM 'cancelled' AS cancel
          FROM redoubt.run r
          WHERE r.device_id = orders_of.device AND r.state <> 'finished' AND r.same_as IS NULL
          UNION ALL
          SELECT r.id, r.state, r.wanted, true FROM redoubt.run r
          WHERE r.device_id = orders_of.device AND r.changed_at > now() - interval '10 minutes'
            AND r.outcome = 'cancelled' AND r.assumed AND r.same_as IS NULL) r);
END $$;

-- The runs that an item of a device speaks of.
CREATE FUNCTION redoubt.runs_spoken(item jsonb) RETURNS TABLE (run uuid)
LANGUAGE sql IMMUTABLE AS $$
    SELECT DISTINCT s.run::uuid
    FROM (SELECT e.e #>> '{}' AS run
          FROM jsonb_array_elements(CASE WHEN jsonb_typeof(item -> 'running') = 'array'
                                         THEN item -> 'running' ELSE '[]' END) AS e (e)
          UNION ALL
          SELECT p.p ->> 'run'
          FROM jsonb_array_elements(CASE WHEN jsonb_typeof(item -> 'progress') = 'array'
                                         THEN item -> 'progress' ELSE '[]' END) AS p (p)) s
    WHERE redoubt.is_uuid(s.run)
$$;

-- items with "progress": [{"run", "state", "percent", "counts"}] and "running": [uuid], and
-- those with "hello" or "refresh".  Answers some of {"runs", "cancel", "pause", "resume"}.
CREATE FUNCTION redoubt.x_tasks(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM redoubt.check_epoch();
    WITH told AS (
        SELECT DISTINCT ON (2) i.n, (p.p ->> 'run')::uuid AS run,
               (i.item ->> 'device')::uuid AS device, p.p ->> 'state' AS state,
               CASE WHEN redoubt.is_whole(p.p -> 'percent', 0, 100)
                    THEN (p.p ->> 'percent')::integer END AS percent,
               CASE WHEN jsonb_typeof(p.p -> 'counts') = 'object'
                         AND octet_length(p.p ->> 'counts') <= 4096 THEN p.p -> 'counts' END
               AS counts
        FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n),
             jsonb_array_elements(CASE WHEN jsonb_typeof(i.item -> 'progress') = 'array'
                                       THEN i.item -> 'progress' ELSE '[]' END)
                 WITH ORDINALITY AS p (p, o)
        WHERE redoubt.is_uuid(p.p ->> 'run')
          AND p.p ->> 'state' IN ('accepted', 'running', 'paused')
        ORDER BY 2, i.n DESC, p.o DESC
    ), locked AS MATERIALIZED (
        SELECT r.id FROM redoubt.run r JOIN told t ON t.run = r.id AND t.device = r.device_id
        WHERE r.state <> 'finished' ORDER BY r.id FOR UPDATE OF r)
    UPDATE redoubt.run r
    SET state = t.state, percent = coalesce(t.percent, r.percent),
        counts = coalesce(t.counts, r.counts), changed_at = now()
    FROM told t JOIN locked l ON l.id = t.run WHERE r.id = t.run;

    RETURN QUERY
    SELECT i.n, a.answer || b.answer
    FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n),
         LATERAL (SELECT redoubt.orders_of((i.item ->> 'device')::uuid) AS answer) o,
         LATERAL (
             -- What the device speaks of and should not have (any more) is cancelled, too.
             SELECT o.answer || CASE WHEN x.cancel IS NULL THEN '{}' ELSE
                 jsonb_build_object('cancel', x.cancel || coalesce(o.answer -> 'cancel', '[]')) END
                 AS answer
             FROM (SELECT jsonb_agg(to_jsonb(s.run) ORDER BY s.run) AS cancel
                   FROM redoubt.runs_spoken(i.item) s
                   LEFT JOIN redoubt.run r
                     ON r.id = s.run AND r.device_id = (i.item ->> 'device')::uuid
                    AND r.state <> 'finished'
                   WHERE r.id IS NULL
                     AND NOT coalesce(o.answer -> 'cancel' ? s.run::text, false)) x) a,
         LATERAL (
             SELECT CASE WHEN x.runs IS NULL THEN '{}' ELSE jsonb_build_object('runs', x.runs)
                    END AS answer
             FROM (SELECT jsonb_agg(e.e) AS runs
                   FROM jsonb_array_elements(CASE WHEN i.item ? 'running'
                       THEN redoubt.runs_of((i.item ->> 'device')::uuid) ELSE '[]' END) AS e (e)
                   WHERE NOT EXISTS (SELECT FROM redoubt.runs_spoken(i.item) s
                                     WHERE s.run = (e.e ->> 'run')::uuid)) x) b
    WHERE i.item ?| ARRAY['progress', 'running', 'hello', 'refresh']
      AND a.answer || b.answer <> '{}';
END $$;

-- --- upkeep -----------------------------------------------------------------------------------

-- Starts what is due.  Returns how many.
CREATE FUNCTION redoubt.tasks_start() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    t    redoubt.task;
    s    jsonb;
    n    bigint := 0;
    late boolean;
BEGIN
    FOR t IN SELECT * FROM redoubt.task k
             WHERE k.next_at <= now() AND k.enabled AND k.deleted_at IS NULL
             ORDER BY k.next_at LIMIT 4 FOR UPDATE SKIP LOCKED LOOP
        s := t.spec -> 'schedule';
        late := now() > t.next_at + redoubt.window_of(s);
        IF late AND s ->> 'missed' = 'skip' THEN
            PERFORM redoubt.event_add(NULL, 'task_missed', 'warning', jsonb_build_object(
                'task', t.id, 'name', t.name, 'at', t.next_at));
        ELSE
            PERFORM redoubt.task_begin(t, t.next_at, CASE WHEN late THEN now() ELSE t.next_at END,
                                       true, 'schedule');
        END IF;
        UPDATE redoubt.task k SET next_at = redoubt.schedule_next(s, now()) WHERE k.id = t.id;
        n := n + 1;
    END LOOP;
    RETURN n;
END $$;

-- Ends runs that nobody will tell the end of.  A run that its device never took is missed two
-- minutes after it should have begun at the latest; one that it took has a day to tell.
CREATE FUNCTION redoubt.runs_expire() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    ended uuid[];
BEGIN
    WITH old AS (
        SELECT r.id FROM redoubt.run r
        WHERE r.state = 'pending' AND r.same_as IS NULL
          AND r.not_after < now() - interval '2 minutes'
        ORDER BY r.not_after LIMIT 1000
    ), silent AS (
        SELECT r.id FROM redoubt.run r
        WHERE r.state IN ('accepted', 'running', 'paused') AND r.same_as IS NULL
          AND r.not_after < now() - interval '1 day'
        ORDER BY r.not_after LIMIT 1000
    ), locked AS MATERIALIZED (
        SELECT r.id FROM redoubt.run r
        WHERE r.id IN (SELECT o.id FROM old o UNION ALL SELECT s.id FROM silent s)
          AND r.state <> 'finished'
        ORDER BY r.id FOR UPDATE SKIP LOCKED
    ), gone AS (
        UPDATE redoubt.run r
        SET state = 'finished', assumed = true, wanted = NULL, changed_at = now(),
            outcome = CASE WHEN r.wanted = 'cancelled' THEN 'cancelled'
                           WHEN r.state = 'pending' THEN 'missed' ELSE 'expired' END
        FROM locked l WHERE r.id = l.id RETURNING r.id)
    SELECT array_agg(g.id) INTO ended FROM gone g;
    IF ended IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM redoubt.runs_ended(ended);
    RETURN cardinality(ended);
END $$;

-- Occurrences whose runs have all finished.
CREATE FUNCTION redoubt.occurrences_end() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    o redoubt.occurrence;
    n bigint := 0;
BEGIN
    FOR o IN SELECT * FROM redoubt.occurrence c
             WHERE c.finished_at IS NULL AND (c.complete OR c.state = 'cancelled')
               AND NOT EXISTS (SELECT FROM redoubt.run r
                               WHERE r.occurrence_id = c.id AND r.state <> 'finished')
             ORDER BY c.created_at LIMIT 100 FOR UPDATE SKIP LOCKED LOOP
        UPDATE redoubt.occurrence c
        SET state = CASE WHEN c.state = 'cancelled' THEN c.state ELSE 'finished' END,
            finished_at = now(), totals = redoubt.occurrence_totals(c.id)
        WHERE c.id = o.id RETURNING * INTO o;
        PERFORM redoubt.event_add(NULL, 'task_finished',
            CASE WHEN (o.totals ->> 'failed')::bigint > 0 THEN 'warning' ELSE 'info' END,
            jsonb_build_object('task', o.task_id, 'occurrence', o.id, 'state', o.state,
                'name', (SELECT t.name FROM redoubt.task t WHERE t.id = o.task_id),
                'totals', o.totals));
        n := n + 1;
    END LOOP;
    RETURN n;
END $$;

-- Forgets old occurrences, a bounded piece at a time.
CREATE FUNCTION redoubt.tasks_trim() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    o uuid;
BEGIN
    SELECT c.id INTO o FROM redoubt.occurrence c
    WHERE c.finished_at < now() - (SELECT make_interval(days => e.days)
                                   FROM redoubt.event_retention e WHERE e.kind = '@run')
    ORDER BY c.finished_at LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    DELETE FROM redoubt.run r WHERE r.id IN (
        SELECT d.id FROM redoubt.run d WHERE d.occurrence_id = o LIMIT 2000);
    IF NOT EXISTS (SELECT FROM redoubt.run r WHERE r.occurrence_id = o) THEN
        DELETE FROM redoubt.occurrence c WHERE c.id = o;
        DELETE FROM redoubt.task t WHERE t.deleted_at IS NOT NULL
           AND NOT EXISTS (SELECT FROM redoubt.occurrence c WHERE c.task_id = t.id);
    END IF;
END $$;

-- Each second on the active node.
CREATE FUNCTION redoubt.tasks_due() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    PERFORM redoubt.check_epoch();
    n := redoubt.tasks_start();
    SELECT n + coalesce(sum(redoubt.occurrence_expand(o.id)), 0) INTO n
    FROM (SELECT c.id FROM redoubt.occurrence c
          WHERE c.finished_at IS NULL AND NOT c.complete
            AND c.state IN ('running', 'paused')
          ORDER BY c.created_at LIMIT 1) o;
    n := n + redoubt.runs_expire() + redoubt.occurrences_end();
    PERFORM redoubt.tasks_trim();
    RETURN n;
END $$;
