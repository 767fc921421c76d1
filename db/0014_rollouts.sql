-- Agent packages offered to devices, in waves.
-- works-since: 1
--
-- A rollout brings a version of a package to the devices of a group: wave after wave, each begun
-- only when the one before is done and was healthy for a while.  docs/rollouts.md says what that
-- means; docs/protocol/opamp.md has the wire side.
--
-- What a device is offered is decided in one place, redoubt.package_offer(), from its row of
-- redoubt.rollout_device.  Which devices are in a wave follows from a hash of rollout and device,
-- and is written down when the wave begins: another node that goes on finds the same.
--
-- Lock order: rollouts; then their devices by id.

CREATE TABLE redoubt.device_package (
    device_id uuid NOT NULL REFERENCES redoubt.device (id) ON DELETE CASCADE,
    name      text NOT NULL,
    takes     boolean NOT NULL,
    version   text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device_id, name)
);
COMMENT ON TABLE redoubt.device_package IS 'The packages that devices say they have.';
COMMENT ON COLUMN redoubt.device_package.takes IS 'It takes packages at all (AcceptsPackages).';
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.device_package
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

CREATE TABLE redoubt.rollout (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name         text NOT NULL,
    target       text NOT NULL,
    group_id     uuid REFERENCES redoubt.device_group (id) ON DELETE SET NULL,
    group_path   text NOT NULL,
    waves        integer[] NOT NULL,
    soak_s       integer NOT NULL CHECK (soak_s >= 0),
    grace_s      integer NOT NULL DEFAULT 300 CHECK (grace_s >= 0),
    silent_s     integer NOT NULL DEFAULT 1200 CHECK (silent_s > 0),
    max_failures integer NOT NULL CHECK (max_failures >= 0),
    state        text NOT NULL DEFAULT 'running'
                 CHECK (state IN ('running', 'paused', 'stopped', 'rolled_back', 'done', 'failed')),
    why          text NOT NULL DEFAULT '',
    wave         integer NOT NULL DEFAULT 0,
    wave_at      timestamptz,
    filled       boolean NOT NULL DEFAULT false,
    soak_until   timestamptz,
    looked_at    timestamptz NOT NULL DEFAULT now(),
    stepped_at   timestamptz NOT NULL DEFAULT now(),
    awake_at     timestamptz NOT NULL DEFAULT now(),
    version      bigint NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text NOT NULL,
    changed_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz
);
COMMENT ON TABLE redoubt.rollout IS 'Brings version "target" of package "name" to a group.';
COMMENT ON COLUMN redoubt.rollout.waves IS 'Per cent of the devices, up to and with each wave.';
COMMENT ON COLUMN redoubt.rollout.grace_s IS
    'A device that is not healthy after the soak has so long to become it.';
COMMENT ON COLUMN redoubt.rollout.silent_s IS
    'A device that was to say something and says nothing for so long has failed.';
COMMENT ON COLUMN redoubt.rollout.stepped_at IS 'When it was last looked after, to a few seconds.';
COMMENT ON COLUMN redoubt.rollout.awake_at IS
    'Since when it is looked after without a gap: no silence of before counts.';
CREATE INDEX rollout_by_age ON redoubt.rollout (created_at, id);
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.rollout
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

CREATE TABLE redoubt.rollout_package (
    rollout_id uuid NOT NULL REFERENCES redoubt.rollout (id) ON DELETE CASCADE,
    package_id uuid NOT NULL REFERENCES redoubt.package (id),
    PRIMARY KEY (rollout_id, package_id)
);
COMMENT ON TABLE redoubt.rollout_package IS
    'What a rollout offers while it goes on: these packages cannot be removed.';
CREATE INDEX rollout_package_of ON redoubt.rollout_package (package_id);
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.rollout_package
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

CREATE TABLE redoubt.rollout_device (
    rollout_id    uuid NOT NULL REFERENCES redoubt.rollout (id) ON DELETE CASCADE,
    device_id     uuid NOT NULL REFERENCES redoubt.device (id) ON DELETE CASCADE,
    wave          integer NOT NULL,
    state         text NOT NULL DEFAULT 'offered'
                  CHECK (state IN ('offered', 'downloading', 'installing', 'installed', 'failed',
                                   'withdrawn', 'returning', 'rolled_back')),
    healthy       boolean NOT NULL DEFAULT false,
    percent       integer NOT NULL DEFAULT 0 CHECK (percent BETWEEN 0 AND 100),
    why           text NOT NULL DEFAULT '',
    late          boolean NOT NULL DEFAULT false,
    silent        boolean NOT NULL DEFAULT false,
    before        text NOT NULL,
    status_before text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rollout_id, device_id)
);
COMMENT ON TABLE redoubt.rollout_device IS 'How far a rollout is on a device.';
COMMENT ON COLUMN redoubt.rollout_device.late IS
    'It joined when its wave was full, or was away when the soak began: that is not held up by it.';
COMMENT ON COLUMN redoubt.rollout_device.silent IS
    'It failed because it said nothing: if it says later that it has it, that counts.';
COMMENT ON COLUMN redoubt.rollout_device.before IS 'The version that it had: where a roll-back leads.';
CREATE INDEX rollout_device_latest ON redoubt.rollout_device (device_id, created_at);
CREATE INDEX rollout_device_state ON redoubt.rollout_device (rollout_id, state);
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.rollout_device
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- --- what a device is offered -----------------------------------------------------------------

-- Debian's word for what a device calls its architecture; '' if it did not say.
CREATE FUNCTION redoubt.platform_of(description jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE a.arch WHEN 'x86_64' THEN 'amd64' WHEN 'aarch64' THEN 'arm64'
                       WHEN 'i686' THEN 'i386' WHEN 'armv7l' THEN 'armhf'
                       WHEN 'ppc64le' THEN 'ppc64el' ELSE coalesce(a.arch, '') END
    FROM (SELECT redoubt.fact_text(description, 'host.arch') AS arch) a
$$;

-- The package of that name and version for a platform, if it is there for everybody.
CREATE FUNCTION redoubt.package_for(name text, version text, platform text)
RETURNS redoubt.package LANGUAGE plpgsql STABLE AS $$
DECLARE
    found redoubt.package;
BEGIN
    SELECT p.* INTO found FROM redoubt.package p
    WHERE p.name = package_for.name AND p.version = package_for.version
      AND p.platform IN (package_for.platform, 'all') AND p.visibility = 'public'
    ORDER BY p.platform = 'all' LIMIT 1;
    RETURN found;
END $$;

-- The row that says what a device is to have: the newest one that says anything.  One that
-- failed says something as long as the device has what it brought.
-- (PL/pgSQL keeps the plans of its statements: this is asked for each device that connects.)
CREATE FUNCTION redoubt.rollout_row(device uuid) RETURNS redoubt.rollout_device
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found redoubt.rollout_device;
BEGIN
    SELECT x.* INTO found
    FROM redoubt.rollout_device x JOIN redoubt.rollout r ON r.id = x.rollout_id
    WHERE x.device_id = rollout_row.device
      AND (x.state IN ('downloading', 'installing', 'installed', 'returning', 'rolled_back')
           OR (x.state = 'offered' AND r.state IN ('running', 'done'))
           OR (x.state = 'failed'
               AND EXISTS (SELECT FROM redoubt.device_package k
                           WHERE k.device_id = x.device_id AND k.name = r.name
                             AND k.version = r.target)))
    ORDER BY x.created_at DESC, x.rollout_id LIMIT 1;
    RETURN found;
END $$;

-- {"name", "version", "path", "sha256", "signature" (hex), "back", "hash"} or NULL.  hash stands
-- for the order, not for the bytes: who failed once is asked again by another rollout, and only
-- then.
CREATE FUNCTION redoubt.rollout_order(x redoubt.rollout_device) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    back constant boolean := x.state IN ('returning', 'rolled_back');
    o    record;
    p    redoubt.package;
BEGIN
    SELECT r.name, CASE WHEN back THEN x.before ELSE r.target END AS wanted,
           redoubt.platform_of(d.description) AS platform INTO o
    FROM redoubt.rollout r, redoubt.device d WHERE r.id = x.rollout_id AND d.id = x.device_id;
    p := redoubt.package_for(o.name, o.wanted, o.platform);
    IF p.id IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN jsonb_build_object('name', p.name, 'version', p.version, 'sha256', p.blob,
        'path', regexp_replace(redoubt.package_path(p), '^public/', ''),
        'signature', encode(p.signature, 'hex'), 'back', back,
        'hash', encode(sha256(convert_to(x.rollout_id || ' ' || back || ' ' || p.version || ' '
                                         || p.blob, 'UTF8')), 'hex'));
END $$;

-- What a device is offered.  Nothing, if it has told that it has it.
CREATE FUNCTION redoubt.package_offer(device uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    x redoubt.rollout_device;
BEGIN
    x := redoubt.rollout_row(device);
    IF x.device_id IS NULL OR x.state = 'failed' OR x.state IN ('installed', 'rolled_back')
       AND EXISTS (SELECT FROM redoubt.device_package k
                   JOIN redoubt.rollout r ON r.id = x.rollout_id AND r.name = k.name
                   WHERE k.device_id = x.device_id
                     AND k.version = CASE x.state WHEN 'installed' THEN r.target
                                                  ELSE x.before END) THEN
        RETURN NULL;
    END IF;
    RETURN redoubt.rollout_order(x);
END $$;

-- Devices of a rollout that have something new to be told: the server's workers ask.
CREATE FUNCTION redoubt.rollout_soon(rollout uuid) RETURNS void LANGUAGE sql AS $$
    SELECT redoubt.run_soon(rollout)
$$;

-- --- what devices tell --------------------------------------------------------------------------

-- What a device says about the package that it is to have.
CREATE FUNCTION redoubt.rollout_told(device uuid, told jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    x     redoubt.rollout_device := redoubt.rollout_row(device);
    offer jsonb;
    word  constant text := told ->> 'state';
BEGIN
    IF x.device_id IS NULL THEN
        RETURN;
    END IF;
    SELECT * INTO x FROM redoubt.rollout_device d
    WHERE d.rollout_id = x.rollout_id AND d.device_id = x.device_id FOR UPDATE;
    offer := redoubt.rollout_order(x);
    -- An answer to another offer than the present one is late, and says nothing about this one.
    IF offer ->> 'name' IS DISTINCT FROM told ->> 'name'
       OR offer ->> 'hash' IS DISTINCT FROM told ->> 'hash'
       OR (x.state IN ('installed', 'rolled_back') AND word <> 'failed')
       OR (x.state = 'failed' AND NOT (x.silent AND word = 'installed')) THEN
        RETURN;
    END IF;
    x.percent := CASE WHEN word = 'downloading' AND redoubt.is_whole(told -> 'percent', 0, 100)
                      THEN (told ->> 'percent')::integer ELSE x.percent END;
    IF word = 'installed' AND told ->> 'has' = offer ->> 'version' THEN
        -- Who comes with it when all others were taken back is to go back, too.
        x.state := CASE WHEN x.state = 'returning' THEN 'rolled_back'
                        WHEN x.state = 'failed' AND EXISTS (
                            SELECT FROM redoubt.rollout r
                            WHERE r.id = x.rollout_id AND r.state = 'rolled_back') THEN 'returning'
                        ELSE 'installed' END;
        x.percent := 100;
        x.why := '';
        x.silent := false;
    ELSIF word = 'failed' THEN
        x.why := left(CASE x.state WHEN 'returning' THEN 'roll-back: ' ELSE '' END
                      || coalesce(told ->> 'error', ''), 1000);
        x.state := 'failed';
        x.healthy := false;
    ELSIF x.state <> 'returning' AND word IN ('downloading', 'installing') THEN
        x.state := word;
    END IF;
    UPDATE redoubt.rollout_device d
    SET state = x.state, percent = x.percent, why = x.why, healthy = x.healthy,
        silent = x.silent, changed_at = now()
    WHERE d.rollout_id = x.rollout_id AND d.device_id = x.device_id;
END $$;

-- What these devices have is written down anew.  A device tells all that it has; one that makes
-- up names keeps the last ones only.
CREATE FUNCTION redoubt.packages_told(items jsonb, news uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH told AS MATERIALIZED (
        SELECT DISTINCT ON (1, 2) (i.item ->> 'device')::uuid AS device, s.s ->> 'name' AS name,
               (i.item #>> '{packages,takes}')::boolean AS takes, s.s ->> 'has' AS has
        FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n),
             jsonb_array_elements(i.item #> '{packages,list}') AS s (s)
        WHERE (i.item ->> 'device')::uuid = ANY (news)
        ORDER BY 1, 2, i.n DESC
    ), gone AS (
        DELETE FROM redoubt.device_package p USING (SELECT DISTINCT d.device FROM told d) d
        WHERE p.device_id = d.device AND NOT EXISTS (
            SELECT FROM told t WHERE t.device = p.device_id AND t.name = p.name))
    INSERT INTO redoubt.device_package AS p (device_id, name, takes, version)
    SELECT t.device, t.name, t.takes, t.has FROM told t JOIN redoubt.device d ON d.id = t.device
    WHERE NOT EXISTS (SELECT FROM redoubt.device_package o
                      WHERE o.device_id = t.device AND o.name = t.name
                        AND o.takes = t.takes AND o.version = t.has)
    ORDER BY 1, 2
    ON CONFLICT (device_id, name) DO UPDATE
    SET takes = excluded.takes, version = excluded.version, at = now();
END $$;

-- items with "packages": {"takes": bool, "list": [{"name", "has", "hash", "state", "percent",
-- "error"}]}.  Answers nothing.
CREATE FUNCTION redoubt.x_packages(items jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    word  record;
    news  uuid[];
    heard boolean;
BEGIN
    PERFORM redoubt.check_epoch();
    -- Most say what they said before: that costs a look at what they have, and no more.
    SELECT array_agg(DISTINCT t.device) FILTER (WHERE
               jsonb_array_length(t.list)
                   <> (SELECT count(*) FROM redoubt.device_package o WHERE o.device_id = t.device)
               OR EXISTS (SELECT FROM jsonb_array_elements(t.list) AS s (s)
                          WHERE NOT EXISTS (SELECT FROM redoubt.device_package o
                                            WHERE o.device_id = t.device AND o.name = s.s ->> 'name'
                                              AND o.version = s.s ->> 'has'
                                              AND o.takes = t.takes))),
           bool_or(EXISTS (SELECT FROM redoubt.rollout_device x WHERE x.device_id = t.device))
    INTO news, heard
    FROM (SELECT (i.item ->> 'device')::uuid AS device, i.item #> '{packages,list}' AS list,
                 (i.item #>> '{packages,takes}')::boolean AS takes
          FROM jsonb_array_elements(items) AS i (item)) t;
    IF news IS NOT NULL THEN
        PERFORM redoubt.packages_told(items, news);
    END IF;
    IF heard IS NOT TRUE THEN
        RETURN;
    END IF;

    FOR word IN
        SELECT (i.item ->> 'device')::uuid AS device, s.s AS told
        FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n),
             jsonb_array_elements(i.item #> '{packages,list}') AS s (s)
        WHERE s.s ->> 'hash' <> ''
          AND EXISTS (SELECT FROM redoubt.rollout_device x
                      WHERE x.device_id = (i.item ->> 'device')::uuid
                        AND (x.state IN ('offered', 'downloading', 'installing', 'returning')
                             OR x.silent OR s.s ->> 'state' = 'failed'))
        ORDER BY 1, i.n LOOP
        PERFORM redoubt.rollout_told(word.device, word.told);
    END LOOP;
END $$;

-- --- how it goes on -----------------------------------------------------------------------------

-- The numbers of a version, to see which of two is newer: '1.10~rc1' is {1,10}.
CREATE FUNCTION redoubt.version_numbers(version text) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(string_to_array(substring(version FROM '^(?:[0-9]+:)?([0-9]{1,9}(?:\.[0-9]{1,9})*)'),
                                    '.')::bigint[], '{}')
$$;

-- Devices that a rollout could still be offered to, in its order: those that are there first, so
-- that no wave waits for a computer in a drawer.
CREATE FUNCTION redoubt.rollout_candidates(r redoubt.rollout)
RETURNS TABLE (device_id uuid, before text, status text) LANGUAGE sql STABLE AS $$
    SELECT d.id, k.version, d.status
    FROM redoubt.device d
    JOIN redoubt.device_group g ON g.id = d.group_id
    JOIN redoubt.device_package k ON k.device_id = d.id AND k.name = r.name
    CROSS JOIN redoubt.fence f
    WHERE d.state = 'active' AND k.takes AND k.version <> r.target
      AND r.group_id = ANY (g.lineage)
      AND k.version = ANY (ARRAY( -- there are few versions, and many devices
          SELECT v.version FROM (SELECT DISTINCT o.version FROM redoubt.device_package o
                                 WHERE o.name = r.name) v
          WHERE redoubt.version_numbers(v.version) <= redoubt.version_numbers(r.target)))
      AND EXISTS (SELECT FROM redoubt.package p
                  WHERE p.name = r.name AND p.version = r.target AND p.visibility = 'public'
                    AND p.platform IN (redoubt.platform_of(d.description), 'all'))
      AND NOT EXISTS (SELECT FROM redoubt.rollout_device x
                      JOIN redoubt.rollout o ON o.id = x.rollout_id
                      WHERE x.device_id = d.id AND (o.id = r.id OR (o.name = r.name
                            AND o.state IN ('running', 'paused'))))
    ORDER BY d.connected_epoch IS DISTINCT FROM f.epoch, md5(r.id::text || d.id::text)
$$;

-- Writes down who is in the present wave, at most so many at once; how many there were.
CREATE FUNCTION redoubt.rollout_fill(r redoubt.rollout, most integer DEFAULT 20000) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    there bigint;
    n     bigint;
BEGIN
    SELECT count(*) INTO there FROM redoubt.rollout_device x WHERE x.rollout_id = r.id;
    INSERT INTO redoubt.rollout_device (rollout_id, device_id, wave, late, before, status_before)
    SELECT r.id, c.device_id, r.wave, r.filled, c.before, c.status
    FROM (SELECT a.*, row_number() OVER () AS i, count(*) OVER () AS n
          FROM redoubt.rollout_candidates(r) a) c
    WHERE c.i <= least(most, ceil((there + c.n) * r.waves[r.wave] / 100.0) - there);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        PERFORM redoubt.rollout_soon(r.id);
    END IF;
    RETURN n;
END $$;

CREATE FUNCTION redoubt.rollout_totals(which uuid) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('total', count(*),
        'offered', count(*) FILTER (WHERE x.state = 'offered'),
        'downloading', count(*) FILTER (WHERE x.state = 'downloading'),
        'installing', count(*) FILTER (WHERE x.state = 'installing'),
        'installed', count(*) FILTER (WHERE x.state = 'installed'),
        'healthy', count(*) FILTER (WHERE x.healthy),
        'failed', count(*) FILTER (WHERE x.state = 'failed'),
        'withdrawn', count(*) FILTER (WHERE x.state = 'withdrawn'),
        'returning', count(*) FILTER (WHERE x.state = 'returning'),
        'rolled_back', count(*) FILTER (WHERE x.state = 'rolled_back'))
    FROM redoubt.rollout_device x WHERE x.rollout_id = which
$$;

-- The end of a rollout, whichever: told loudly unless it is a good one.  Its packages may go.
CREATE FUNCTION redoubt.rollout_end(r redoubt.rollout, state text, why text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE redoubt.rollout o
    SET state = rollout_end.state, why = left(rollout_end.why, 1000), changed_at = now(),
        finished_at = CASE WHEN rollout_end.state <> 'rolled_back' THEN now() END,
        version = o.version + 1
    WHERE o.id = r.id;
    UPDATE redoubt.rollout_device x SET state = 'withdrawn', changed_at = now()
    WHERE x.rollout_id = r.id AND x.state = 'offered' AND rollout_end.state <> 'done';
    DELETE FROM redoubt.rollout_package p WHERE p.rollout_id = r.id;
    PERFORM redoubt.event_add(NULL,
        CASE rollout_end.state WHEN 'done' THEN 'rollout_finished' ELSE 'rollout_stopped' END,
        CASE rollout_end.state WHEN 'done' THEN 'info' WHEN 'rolled_back' THEN 'warning' ELSE 'error' END,
        jsonb_build_object('rollout', r.id, 'name', r.name, 'version', r.target,
            'group', r.group_path, 'state', rollout_end.state, 'why', left(rollout_end.why, 1000),
            'totals', redoubt.rollout_totals(r.id)));
END $$;

CREATE FUNCTION redoubt.rollout_wave(r redoubt.rollout) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    r.wave := r.wave + 1;
    r.filled := false;
    UPDATE redoubt.rollout o
    SET wave = r.wave, wave_at = now(), filled = false, soak_until = NULL, why = '',
        changed_at = now(), version = o.version + 1
    WHERE o.id = r.id;
    n := redoubt.rollout_fill(r);
    PERFORM redoubt.event_add(NULL, 'rollout_wave', 'info', jsonb_build_object(
        'rollout', r.id, 'name', r.name, 'version', r.target, 'group', r.group_path,
        'wave', r.wave, 'waves', cardinality(r.waves), 'percent', r.waves[r.wave],
        'devices', n));
END $$;

-- Since when devices can be expected to be there, and to say something: not before this node
-- became the active one, nor in a time when nobody could listen.
CREATE FUNCTION redoubt.rollout_awake(r redoubt.rollout) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT greatest(r.awake_at, f.raised_at) FROM redoubt.fence f
$$;

-- Who had its time to say something and said nothing.
CREATE FUNCTION redoubt.rollout_silent(r redoubt.rollout) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF redoubt.rollout_awake(r) > now() - make_interval(secs => r.silent_s) THEN
        RETURN;
    END IF;
    UPDATE redoubt.rollout_device x
    SET state = 'failed', silent = true, changed_at = now(), why = CASE x.state
            WHEN 'offered' THEN 'is connected, and did not take what it was offered'
            ELSE format('said nothing for %s s while it was %s', r.silent_s, x.state) END
    FROM redoubt.device d
    WHERE x.rollout_id = r.id AND d.id = x.device_id
      AND x.changed_at < now() - make_interval(secs => r.silent_s)
      AND (x.state IN ('downloading', 'installing')
           OR (x.state = 'offered' AND redoubt.device_connected(d)
               AND d.connected_at < now() - make_interval(secs => r.silent_s)));
END $$;

-- Was it there before the soak began?  It is judged at the end of the next one, if not.
CREATE FUNCTION redoubt.rollout_soaked(r redoubt.rollout, x redoubt.rollout_device)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT x.state = 'installed' AND NOT x.healthy
           AND (NOT x.late OR x.changed_at <= r.soak_until - make_interval(secs => r.soak_s))
$$;

-- Devices of the present wave that have the version and are not as well as they should be.
CREATE FUNCTION redoubt.rollout_unwell(r redoubt.rollout)
RETURNS TABLE (device_id uuid, name text, why text) LANGUAGE sql STABLE AS $$
    SELECT u.id, u.name, u.why
    FROM (SELECT d.id, d.name, CASE
              WHEN d.connected_epoch IS DISTINCT FROM f.epoch THEN 'is not connected'
              WHEN k.version IS DISTINCT FROM r.target
                  THEN 'says that it has ' || coalesce(k.version, 'nothing')
              WHEN d.status = 'critical' AND x.status_before <> 'critical'
                  THEN 'is critical since the upgrade' END AS why
          FROM redoubt.rollout_device x
          JOIN redoubt.device d ON d.id = x.device_id
          CROSS JOIN redoubt.fence f
          LEFT JOIN redoubt.device_package k ON k.device_id = x.device_id AND k.name = r.name
          WHERE x.rollout_id = r.id AND x.wave <= r.wave AND redoubt.rollout_soaked(r, x)) u
    WHERE u.why IS NOT NULL ORDER BY u.id
$$;

-- After the soak: false while it has to be waited.
CREATE FUNCTION redoubt.rollout_healthy(r redoubt.rollout) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    sick record;
BEGIN
    SELECT u.name, u.why, count(*) OVER () AS n INTO sick FROM redoubt.rollout_unwell(r) u LIMIT 1;
    IF NOT FOUND THEN
        UPDATE redoubt.rollout_device x SET healthy = true
        WHERE x.rollout_id = r.id AND redoubt.rollout_soaked(r, x);
        RETURN true;
    END IF;
    IF now() < greatest(r.soak_until, redoubt.rollout_awake(r)) + make_interval(secs => r.grace_s) THEN
        UPDATE redoubt.rollout o SET why = left(format('waits for %s devices: %s %s', sick.n,
                                                       sick.name, sick.why), 1000)
        WHERE o.id = r.id;
        RETURN false;
    END IF;
    UPDATE redoubt.rollout_device x SET state = 'failed', why = u.why, changed_at = now()
    FROM redoubt.rollout_unwell(r) u
    WHERE x.rollout_id = r.id AND x.device_id = u.device_id;
    RETURN false; -- with the next look, the failures are counted
END $$;

-- Whom does the wave wait for?  NULL: nobody.  Who is not connected and has not begun gets it
-- later, unless that is all of them.
CREATE FUNCTION redoubt.rollout_waits(r redoubt.rollout) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN EXISTS (SELECT FROM redoubt.rollout_device x
                     WHERE x.rollout_id = r.id AND x.state IN ('downloading', 'installing')
                       AND NOT x.late)
          OR EXISTS (SELECT FROM redoubt.rollout_device x
                     JOIN redoubt.device d ON d.id = x.device_id
                     JOIN redoubt.fence f ON f.epoch = d.connected_epoch
                     WHERE x.rollout_id = r.id AND x.state = 'offered' AND x.wave = r.wave
                       AND NOT x.late) THEN ''
        WHEN EXISTS (SELECT FROM redoubt.rollout_device x
                     WHERE x.rollout_id = r.id AND x.wave = r.wave AND NOT x.late
                       AND x.state <> 'offered') THEN NULL
        ELSE (SELECT format('no device of wave %s is connected: waits for %s', r.wave,
                            coalesce(nullif(d.name, ''), d.id::text))
              FROM redoubt.rollout_device x JOIN redoubt.device d ON d.id = x.device_id
              WHERE x.rollout_id = r.id AND x.wave = r.wave AND x.state = 'offered'
                AND NOT x.late
              ORDER BY x.device_id LIMIT 1) END
$$;

CREATE FUNCTION redoubt.rollout_too_many(r redoubt.rollout) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    bad record;
BEGIN
    SELECT count(*) OVER () AS n, d.name, x.why INTO bad
    FROM redoubt.rollout_device x JOIN redoubt.device d ON d.id = x.device_id
    WHERE x.rollout_id = r.id AND x.state = 'failed' ORDER BY x.changed_at DESC LIMIT 1;
    IF NOT FOUND OR bad.n <= r.max_failures THEN
        RETURN false;
    END IF;
    PERFORM redoubt.rollout_end(r, 'stopped', format('%s failed in wave %s, and %s may: %s: %s',
        bad.n, r.wave, r.max_failures, bad.name, bad.why));
    RETURN true;
END $$;

-- One step of a rollout that is running; its row is locked.
CREATE FUNCTION redoubt.rollout_step(r redoubt.rollout) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    waits text;
BEGIN
    PERFORM redoubt.rollout_silent(r);
    IF r.group_id IS NULL THEN
        PERFORM redoubt.rollout_end(r, 'failed', 'its group was removed');
        RETURN;
    ELSIF redoubt.rollout_too_many(r) THEN
        RETURN;
    ELSIF r.wave = 0 THEN
        PERFORM redoubt.rollout_wave(r);
        RETURN;
    ELSIF NOT r.filled OR (r.wave = cardinality(r.waves)
                           AND r.looked_at < now() - interval '10 seconds') THEN
        UPDATE redoubt.rollout o SET looked_at = now() WHERE o.id = r.id;
        IF redoubt.rollout_fill(r) = 0 AND NOT r.filled THEN
            UPDATE redoubt.rollout o SET filled = true WHERE o.id = r.id;
        END IF;
        RETURN;
    END IF;
    waits := redoubt.rollout_waits(r);
    IF waits IS NOT NULL THEN
        UPDATE redoubt.rollout o SET soak_until = NULL, why = left(waits, 1000)
        WHERE o.id = r.id AND (o.soak_until IS NOT NULL OR o.why <> left(waits, 1000));
    ELSIF r.soak_until IS NULL THEN
        UPDATE redoubt.rollout o
        SET soak_until = now() + make_interval(secs => r.soak_s), why = ''
        WHERE o.id = r.id;
        -- Who is away gets it later, and does not begin the soak anew.
        UPDATE redoubt.rollout_device x SET late = true
        WHERE x.rollout_id = r.id AND x.state = 'offered' AND NOT x.late;
    ELSIF now() < r.soak_until OR NOT redoubt.rollout_healthy(r) THEN
        RETURN;
    ELSIF r.wave < cardinality(r.waves) THEN
        PERFORM redoubt.rollout_wave(r);
    ELSE
        PERFORM redoubt.rollout_end(r, 'done', '');
    END IF;
END $$;

-- A roll-back is over when nobody is on the way back any more, but those who had their time and
-- said nothing: they are offered it when they come.
CREATE FUNCTION redoubt.rollouts_returned() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    r    redoubt.rollout;
    n    bigint := 0;
    away bigint;
BEGIN
    FOR r IN SELECT * FROM redoubt.rollout o
             WHERE o.state = 'rolled_back' AND o.finished_at IS NULL
               AND NOT EXISTS (SELECT FROM redoubt.rollout_device x
                               WHERE x.rollout_id = o.id AND x.state = 'returning'
                                 AND greatest(x.changed_at, redoubt.rollout_awake(o))
                                     >= now() - make_interval(secs => o.silent_s))
             ORDER BY o.created_at LIMIT 20 FOR UPDATE SKIP LOCKED LOOP
        SELECT count(*) INTO away FROM redoubt.rollout_device x
        WHERE x.rollout_id = r.id AND x.state = 'returning';
        UPDATE redoubt.rollout o SET finished_at = now(), changed_at = now(),
               version = o.version + 1,
               why = left(o.why || CASE WHEN away > 0
                   THEN format('; %s are not back yet', away) ELSE '' END, 1000)
        WHERE o.id = r.id RETURNING * INTO r;
        DELETE FROM redoubt.rollout_package p WHERE p.rollout_id = r.id;
        PERFORM redoubt.event_add(NULL, 'rollout_finished', 'info', jsonb_build_object(
            'rollout', r.id, 'name', r.name, 'version', r.target, 'group', r.group_path,
            'state', 'rolled_back', 'why', r.why, 'totals', redoubt.rollout_totals(r.id)));
        n := n + 1;
    END LOOP;
    RETURN n;
END $$;

-- Who was at it when a rollout ended, and was never heard of again.
CREATE FUNCTION redoubt.rollouts_lost() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout;
BEGIN
    FOR r IN SELECT * FROM redoubt.rollout o
             WHERE o.state NOT IN ('running', 'paused')
               AND EXISTS (SELECT FROM redoubt.rollout_device x
                           WHERE x.rollout_id = o.id AND x.state IN ('downloading', 'installing')
                             AND greatest(x.changed_at, redoubt.rollout_awake(o))
                                 < now() - make_interval(secs => o.silent_s))
             LIMIT 20 FOR UPDATE SKIP LOCKED LOOP
        PERFORM redoubt.rollout_silent(r);
    END LOOP;
END $$;

-- Who joins the group later is offered what the newest rollout there has brought.
CREATE FUNCTION redoubt.rollouts_late() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout;
    n bigint := 0;
BEGIN
    FOR r IN SELECT * FROM redoubt.rollout o
             WHERE o.state = 'done' AND o.looked_at < now() - interval '1 minute'
               AND o.group_id IS NOT NULL
               AND NOT EXISTS (SELECT FROM redoubt.rollout l WHERE l.name = o.name
                               AND l.group_id = o.group_id AND l.created_at > o.created_at)
             ORDER BY o.looked_at LIMIT 4 FOR UPDATE SKIP LOCKED LOOP
        UPDATE redoubt.rollout o SET looked_at = now() WHERE o.id = r.id;
        n := n + redoubt.rollout_fill(r, 1000);
    END LOOP;
    RETURN n;
END $$;

-- Forgets rollouts that ended long ago, a bounded piece at a time; not the one that says what
-- a group has.
CREATE FUNCTION redoubt.rollouts_trim() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    o uuid;
BEGIN
    SELECT r.id INTO o FROM redoubt.rollout r
    WHERE r.finished_at < now() - (SELECT make_interval(days => e.days)
                                   FROM redoubt.event_retention e WHERE e.kind = '@run')
      AND EXISTS (SELECT FROM redoubt.rollout l
                  WHERE l.name = r.name
                    AND (l.group_id = r.group_id
                         OR (r.group_id IS NULL AND l.group_path = r.group_path))
                    AND l.created_at > r.created_at AND l.state = 'done')
    ORDER BY r.finished_at LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    DELETE FROM redoubt.rollout_device x
    WHERE x.rollout_id = o AND x.device_id IN (
        SELECT d.device_id FROM redoubt.rollout_device d WHERE d.rollout_id = o LIMIT 2000);
    IF NOT EXISTS (SELECT FROM redoubt.rollout_device x WHERE x.rollout_id = o) THEN
        DELETE FROM redoubt.rollout r WHERE r.id = o;
    END IF;
END $$;

-- Each second on the active node.
CREATE FUNCTION redoubt.rollouts_due() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout;
    n bigint := 0;
BEGIN
    PERFORM redoubt.check_epoch();
    IF NOT EXISTS (SELECT FROM redoubt.rollout) THEN
        RETURN 0;
    END IF;
    FOR r IN SELECT * FROM redoubt.rollout o WHERE o.state = 'running'
             ORDER BY o.stepped_at, o.created_at LIMIT 20 FOR UPDATE SKIP LOCKED LOOP
        IF r.stepped_at < now() - interval '1 minute' THEN
            r.awake_at := now(); -- the DBMS was away, or nobody was active
        END IF;
        UPDATE redoubt.rollout o SET stepped_at = now(), awake_at = r.awake_at
        WHERE o.id = r.id AND o.stepped_at < now() - interval '4 seconds';
        PERFORM redoubt.rollout_step(r);
        n := n + 1;
    END LOOP;
    PERFORM redoubt.rollouts_lost();
    PERFORM redoubt.rollouts_trim();
    RETURN n + redoubt.rollouts_returned() + redoubt.rollouts_late();
END $$;

-- --- the API --------------------------------------------------------------------------------------

CREATE FUNCTION redoubt.rollout_json(r redoubt.rollout) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', r.id, 'package', r.name, 'version', r.target,
        'group', jsonb_build_object('id', r.group_id, 'path', coalesce(
            (SELECT g.path FROM redoubt.device_group g WHERE g.id = r.group_id), r.group_path)),
        'waves', to_jsonb(r.waves), 'soak_s', r.soak_s, 'max_failures', r.max_failures,
        'state', r.state, 'why', r.why, 'wave', r.wave, 'wave_at', r.wave_at,
        'soak_until', r.soak_until, 'totals', redoubt.rollout_totals(r.id),
        'created_at', r.created_at, 'created_by', r.created_by, 'changed_at', r.changed_at,
        'finished_at', r.finished_at)
$$;

CREATE FUNCTION redoubt.rollout_visible(actor jsonb, r redoubt.rollout) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN r.group_id IS NULL THEN jsonb_typeof(actor -> 'scope') IS DISTINCT FROM 'array'
                ELSE redoubt.may_see(actor, r.group_id) END
$$;

-- The rollout of the path; to change it, an administrator's, and locked.
CREATE FUNCTION redoubt.rollout_of(actor jsonb, path jsonb, change boolean DEFAULT false)
RETURNS redoubt.rollout LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout;
BEGIN
    PERFORM redoubt.require(actor, CASE WHEN change THEN 'administrator' ELSE 'auditor' END);
    IF change THEN
        PERFORM redoubt.check_epoch();
        SELECT * INTO r FROM redoubt.rollout o WHERE o.id = redoubt.as_uuid(path ->> 'id') FOR UPDATE;
    ELSE
        SELECT * INTO r FROM redoubt.rollout o WHERE o.id = redoubt.as_uuid(path ->> 'id');
    END IF;
    IF r.id IS NULL OR NOT redoubt.rollout_visible(actor, r) THEN
        PERFORM redoubt.api_refuse(404, 'Not found',
            format('There is no rollout "%s".', left(path ->> 'id', 100)),
            'redoubt rollout list shows them.', 'rollout_unknown');
    END IF;
    RETURN r;
END $$;

CREATE FUNCTION redoubt.rollout_answer(which uuid, status integer DEFAULT 200) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('status', status, 'version', r.version,
                              'body', redoubt.rollout_json(r))
    FROM redoubt.rollout r WHERE r.id = which
$$;

-- GET /v1/rollouts: newest first; ?state
CREATE FUNCTION redoubt.api_rollouts_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    most  constant integer := redoubt.api_limit(query);
    below constant uuid := redoubt.api_uuid(query, 'cursor');
    items jsonb;
    n     integer;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT coalesce(jsonb_agg(redoubt.rollout_json(p.r) ORDER BY (p.r).created_at DESC,
                              (p.r).id DESC), '[]'), count(*)
    INTO items, n
    FROM (SELECT r FROM redoubt.rollout r
          WHERE redoubt.rollout_visible(actor, r)
            AND (NOT query ? 'state' OR r.state = ANY (string_to_array(query ->> 'state', ',')))
            AND (below IS NULL OR (r.created_at, r.id) <
                 (SELECT b.created_at, b.id FROM redoubt.rollout b WHERE b.id = below))
          ORDER BY r.created_at DESC, r.id DESC LIMIT most) p;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'id' END));
END $$;

-- A new rollout as the body has it; refuses with what is wrong.
CREATE FUNCTION redoubt.rollout_from(actor jsonb, body jsonb) RETURNS redoubt.rollout
LANGUAGE plpgsql STABLE AS $$
DECLARE
    r redoubt.rollout;
    g redoubt.device_group;
    w jsonb := coalesce(body -> 'waves', '[5, 25, 100]');
BEGIN
    PERFORM redoubt.api_members(body, ARRAY['package', 'version', 'group', 'waves', 'soak_s',
                                            'max_failures']);
    IF jsonb_typeof(body -> 'package') IS DISTINCT FROM 'string'
       OR jsonb_typeof(body -> 'group') IS DISTINCT FROM 'string'
       OR jsonb_typeof(coalesce(body -> 'version', '""')) <> 'string' THEN
        PERFORM redoubt.api_refuse(400, 'The rollout is wrong',
            'It needs the texts package and group, and may have version.', '');
    END IF;
    IF jsonb_typeof(w) <> 'array' OR jsonb_array_length(w) NOT BETWEEN 1 AND 20
       OR EXISTS (SELECT FROM jsonb_array_elements(w) AS e (e)
                  WHERE NOT redoubt.is_whole(e.e, 1, 100))
       OR (w ->> -1)::integer <> 100
       OR EXISTS (SELECT FROM (SELECT e.e::integer AS v, lag(e.e::integer) OVER (ORDER BY e.n) AS b
                               FROM jsonb_array_elements_text(w) WITH ORDINALITY AS e (e, n)) x
                  WHERE x.v <= x.b) THEN
        PERFORM redoubt.api_refuse(400, 'waves is wrong',
            'It must be a list of 1 to 20 rising numbers of per cent, the last one 100.',
            'For example: [5, 25, 100].');
    END IF;
    IF NOT redoubt.is_whole(coalesce(body -> 'soak_s', '600'), 0, 604800)
       OR NOT redoubt.is_whole(coalesce(body -> 'max_failures', '0'), 0, 1000000) THEN
        PERFORM redoubt.api_refuse(400, 'The rollout is wrong',
            'soak_s must be 0 to 604800 seconds, max_failures 0 to 1000000.', '');
    END IF;
    g := redoubt.api_group(actor, body ->> 'group', 'administrator');
    r.id := gen_random_uuid();
    r.name := body ->> 'package';
    r.group_id := g.id;
    r.group_path := g.path;
    r.waves := ARRAY(SELECT e.e::integer FROM jsonb_array_elements_text(w) WITH ORDINALITY AS e (e, n)
                     ORDER BY e.n);
    r.soak_s := coalesce((body ->> 'soak_s')::integer, 600);
    r.max_failures := coalesce((body ->> 'max_failures')::integer, 0);
    r.target := coalesce(body ->> 'version', (SELECT p.version FROM redoubt.package p
        WHERE p.name = r.name AND p.visibility = 'public' ORDER BY p.created_at DESC LIMIT 1), '');
    RETURN r;
END $$;

-- Why a rollout cannot begin: refused.
CREATE FUNCTION redoubt.rollout_check(r redoubt.rollout) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    other redoubt.rollout;
    n     bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM redoubt.package p WHERE p.name = r.name AND p.version = r.target
                   AND p.visibility = 'public') THEN
        PERFORM redoubt.api_refuse(422, 'There is no such package',
            format('%s %s is not published for everybody.', left(r.name, 100), left(r.target, 100)),
            'Publish it first: redoubt package publish FILE. A private package cannot be rolled out.',
            'package_unknown');
    END IF;
    SELECT o.* INTO other
    FROM redoubt.rollout o
    JOIN redoubt.device_group its ON its.id = o.group_id
    JOIN redoubt.device_group mine ON mine.id = r.group_id
    WHERE o.name = r.name AND o.state IN ('running', 'paused')
      AND (its.id = ANY (mine.lineage) OR mine.id = ANY (its.lineage)) LIMIT 1;
    IF FOUND THEN
        PERFORM redoubt.api_refuse(409, 'Another rollout goes on',
            format('%s %s is being rolled out to %s.', other.name, other.target,
                   redoubt.rollout_json(other) #>> '{group,path}'),
            'Wait for its end, or stop it.', 'rollout_goes_on');
    END IF;
    SELECT count(*) INTO n FROM redoubt.rollout_candidates(r);
    IF n = 0 THEN
        PERFORM redoubt.api_refuse(422, 'No device can take it',
            format('No device of %s takes packages, has an older version, and is of a platform that %s %s is published for.',
                   r.group_path, r.name, r.target),
            'redoubt device list --group shows who is there.', 'rollout_without_devices');
    END IF;
END $$;

-- POST /v1/rollouts
CREATE FUNCTION redoubt.api_rollout_create(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout := redoubt.rollout_from(actor, body);
BEGIN
    PERFORM redoubt.check_epoch();
    -- One after the other, so that two that overlap cannot begin at once.
    PERFORM pg_advisory_xact_lock(1380208451, hashtext('rollouts'));
    PERFORM redoubt.rollout_check(r);
    INSERT INTO redoubt.rollout (id, name, target, group_id, group_path, waves, soak_s,
                                 max_failures, created_by)
    VALUES (r.id, r.name, r.target, r.group_id, r.group_path, r.waves, r.soak_s, r.max_failures,
            coalesce(actor ->> 'name', ''));
    INSERT INTO redoubt.rollout_package (rollout_id, package_id)
    SELECT r.id, p.id FROM redoubt.package p
    WHERE p.name = r.name AND p.version = r.target AND p.visibility = 'public';
    PERFORM redoubt.audit_add(actor, 'rollout_create', r.id::text, NULL,
        redoubt.rollout_answer(r.id) -> 'body');
    PERFORM redoubt.event_add(NULL, 'rollout_started', 'info', jsonb_build_object(
        'rollout', r.id, 'name', r.name, 'version', r.target, 'group', r.group_path,
        'waves', to_jsonb(r.waves), 'by', actor ->> 'name'));
    RETURN redoubt.rollout_answer(r.id, 201);
END $$;

-- GET /v1/rollouts/{id}
CREATE FUNCTION redoubt.api_rollout_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout := redoubt.rollout_of(actor, path);
BEGIN
    RETURN redoubt.rollout_answer(r.id);
END $$;

-- GET /v1/rollouts/{id}/devices: in the order of their ids; ?state ?wave
CREATE FUNCTION redoubt.api_rollout_devices(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    r     redoubt.rollout := redoubt.rollout_of(actor, path);
    most  constant integer := redoubt.api_limit(query);
    low   constant uuid := redoubt.api_uuid(query, 'cursor');
    one   constant bigint := redoubt.api_number(query, 'wave');
    items jsonb;
    n     integer;
BEGIN
    SELECT coalesce(jsonb_agg(jsonb_build_object('device', x.device_id, 'device_name', d.name,
               'wave', x.wave, 'state', x.state, 'healthy', x.healthy, 'percent', x.percent,
               'why', x.why, 'before', x.before, 'has', k.version,
               'connected', redoubt.device_connected(d), 'changed_at', x.changed_at)
               ORDER BY x.device_id), '[]'), count(*)
    INTO items, n
    FROM (SELECT * FROM redoubt.rollout_device x
          WHERE x.rollout_id = r.id AND (low IS NULL OR x.device_id > low)
            AND (one IS NULL OR x.wave = one)
            AND (NOT query ? 'state' OR x.state = ANY (string_to_array(query ->> 'state', ',')))
          ORDER BY x.device_id LIMIT most) x
    JOIN redoubt.device d ON d.id = x.device_id
    LEFT JOIN redoubt.device_package k ON k.device_id = x.device_id AND k.name = r.name;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'device' END));
END $$;

-- Refuses what makes no sense in the present state.
CREATE FUNCTION redoubt.rollout_only(r redoubt.rollout, states text[], what text) RETURNS void
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF r.state <> ALL (states) THEN
        PERFORM redoubt.api_refuse(409, 'The rollout is ' || replace(r.state, '_', ' '),
            format('Only one that is %s can be %s.', replace(array_to_string(states, ' or '), '_', ' '),
                   what), '', 'rollout_state');
    END IF;
END $$;

CREATE FUNCTION redoubt.rollout_set(actor jsonb, r redoubt.rollout, state text) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE redoubt.rollout o
    SET state = rollout_set.state, changed_at = now(), version = o.version + 1, why = '',
        soak_until = NULL, stepped_at = now(), awake_at = now()
    WHERE o.id = r.id;
    -- The time that it was paused is nobody's silence, and nobody's soak.
    UPDATE redoubt.rollout_device x SET changed_at = now()
    WHERE x.rollout_id = r.id AND x.state IN ('offered', 'downloading', 'installing');
    PERFORM redoubt.audit_add(actor, 'rollout_' || CASE rollout_set.state
            WHEN 'paused' THEN 'pause' ELSE 'resume' END, r.id::text,
        jsonb_build_object('state', r.state), jsonb_build_object('state', rollout_set.state));
    PERFORM redoubt.rollout_soon(r.id);
    RETURN redoubt.rollout_answer(r.id);
END $$;

CREATE FUNCTION redoubt.api_rollout_pause(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout := redoubt.rollout_of(actor, path, true);
BEGIN
    PERFORM redoubt.rollout_only(r, ARRAY['running'], 'paused');
    RETURN redoubt.rollout_set(actor, r, 'paused');
END $$;

CREATE FUNCTION redoubt.api_rollout_resume(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout := redoubt.rollout_of(actor, path, true);
BEGIN
    PERFORM redoubt.rollout_only(r, ARRAY['paused'], 'resumed');
    RETURN redoubt.rollout_set(actor, r, 'running');
END $$;

-- POST /v1/rollouts/{id}/stop: nobody is offered it any more; who has begun ends it.
CREATE FUNCTION redoubt.api_rollout_stop(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    r redoubt.rollout := redoubt.rollout_of(actor, path, true);
BEGIN
    PERFORM redoubt.rollout_only(r, ARRAY['running', 'paused'], 'stopped');
    PERFORM redoubt.audit_add(actor, 'rollout_stop', r.id::text,
        jsonb_build_object('state', r.state), '{"state": "stopped"}');
    PERFORM redoubt.rollout_end(r, 'stopped', 'stopped by ' || coalesce(actor ->> 'name', 'somebody'));
    RETURN redoubt.rollout_answer(r.id);
END $$;

-- Devices that have it from this rollout, well or not, or are at it; not those that another one
-- has given something else since.
CREATE FUNCTION redoubt.rollout_bearers(r redoubt.rollout) RETURNS SETOF redoubt.rollout_device
LANGUAGE sql STABLE AS $$
    SELECT x.* FROM redoubt.rollout_device x
    WHERE x.rollout_id = r.id
      AND x.state IN ('downloading', 'installing', 'installed', 'failed')
      AND (redoubt.rollout_row(x.device_id)).rollout_id = r.id
$$;

-- POST /v1/rollouts/{id}/rollback: who has it, or is at it, is offered what it had before.
CREATE FUNCTION redoubt.api_rollout_rollback(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    r       redoubt.rollout := redoubt.rollout_of(actor, path, true);
    missing text;
BEGIN
    PERFORM redoubt.rollout_only(r, ARRAY['running', 'paused', 'stopped', 'done', 'failed'],
                                 'rolled back');
    SELECT string_agg(DISTINCT x.before || ' (' || redoubt.platform_of(d.description) || ')', ', ')
    INTO missing
    FROM redoubt.rollout_bearers(r) x JOIN redoubt.device d ON d.id = x.device_id
    WHERE (redoubt.package_for(r.name, x.before, redoubt.platform_of(d.description))).id IS NULL;
    IF missing IS NOT NULL THEN
        PERFORM redoubt.api_refuse(409, 'There is no way back yet',
            format('Devices had %s, which is not published.', missing),
            format('Publish what they had: redoubt package publish FILE --name %s.', r.name),
            'rollout_no_way_back');
    END IF;
    PERFORM redoubt.audit_add(actor, 'rollout_rollback', r.id::text,
        jsonb_build_object('state', r.state), '{"state": "rolled_back"}');
    PERFORM redoubt.rollout_end(r, 'rolled_back', 'rolled back by ' || coalesce(actor ->> 'name', 'somebody'));
    INSERT INTO redoubt.rollout_package (rollout_id, package_id) -- not to be removed meanwhile
    SELECT DISTINCT r.id, (redoubt.package_for(r.name, x.before,
                                               redoubt.platform_of(d.description))).id
    FROM redoubt.rollout_bearers(r) x JOIN redoubt.device d ON d.id = x.device_id;
    UPDATE redoubt.rollout_device x
    SET state = 'returning', healthy = false, percent = 0, why = '', silent = false,
        changed_at = now()
    WHERE x.rollout_id = r.id AND x.device_id IN (SELECT b.device_id FROM redoubt.rollout_bearers(r) b);
    PERFORM redoubt.rollout_soon(r.id);
    RETURN redoubt.rollout_answer(r.id);
END $$;
