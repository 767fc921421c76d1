-- Events of devices and the server, the audit trail, partitions and retention.
-- works-since: 1
--
-- Devices' events arrive in streams with numbers without gaps; redoubt.event_cursor says how
-- far each stream is stored, in the transaction that stores: a resend is skipped, so each
-- event is stored exactly once.  docs/protocol/events.md has the wire side.
--
-- Readers follow by id.  Ids are given before the commit, so a lower one can become visible
-- after a higher one.  The trigger "ordered" therefore takes an advisory lock that says above
-- which number this transaction takes its ids; redoubt.settled() is the number below which
-- nothing is open any more, and no reader is shown more than that.

CREATE SEQUENCE redoubt.event_id;
SELECT setval('redoubt.event_id', 1); -- from here on last_value is the last id that was given
CREATE TABLE redoubt.event (
    id          bigint NOT NULL DEFAULT nextval('redoubt.event_id'),
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    at          timestamptz NOT NULL,
    device_id   uuid,
    stream      uuid,
    seq         bigint,
    kind        text NOT NULL,
    severity    text NOT NULL,
    data        jsonb NOT NULL,
    epoch       bigint NOT NULL,
    PRIMARY KEY (received_at, id)
) PARTITION BY RANGE (received_at);
COMMENT ON TABLE redoubt.event IS
    'What happened, on devices and on the server. A partition a day (UTC) of received_at.';
COMMENT ON COLUMN redoubt.event.at IS
    'When it happened, by the clock of the device; received_at is by that of the DBMS.';
COMMENT ON COLUMN redoubt.event.device_id IS 'NULL: concerns no single device.';
COMMENT ON COLUMN redoubt.event.stream IS 'NULL: the server itself wrote it.';
COMMENT ON COLUMN redoubt.event.epoch IS 'Epoch of the node that stored it.';
CREATE INDEX event_by_id ON redoubt.event (id);
CREATE INDEX event_by_device ON redoubt.event (device_id, id);
CREATE INDEX event_by_kind ON redoubt.event (kind, id);
CREATE TABLE redoubt.event_other PARTITION OF redoubt.event DEFAULT;
COMMENT ON TABLE redoubt.event_other IS
    'Events of a day without a partition (a clock that jumped, upkeep that did not run).';

CREATE TABLE redoubt.event_cursor (
    device_id uuid NOT NULL REFERENCES redoubt.device (id) ON DELETE CASCADE,
    stream    uuid NOT NULL,
    through   bigint NOT NULL DEFAULT 0,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device_id, stream)
);
COMMENT ON TABLE redoubt.event_cursor IS
    'The number up to which a stream of events is stored. At most 16 streams a device.';

CREATE SEQUENCE redoubt.audit_id;
SELECT setval('redoubt.audit_id', 1);
CREATE TABLE redoubt.audit (
    id     bigint PRIMARY KEY DEFAULT nextval('redoubt.audit_id'),
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  jsonb NOT NULL,
    action text NOT NULL,
    object text NOT NULL,
    before jsonb,
    after  jsonb,
    epoch  bigint NOT NULL
);
COMMENT ON TABLE redoubt.audit IS 'Every act of an administrator: who, what, before and after.';
CREATE INDEX audit_by_age ON redoubt.audit (at);
CREATE INDEX audit_by_object ON redoubt.audit (object, id);

CREATE TABLE redoubt.quarantine (
    device_id uuid NOT NULL REFERENCES redoubt.device (id) ON DELETE CASCADE,
    item      uuid NOT NULL,
    path      text NOT NULL,
    threat    text NOT NULL DEFAULT '',
    size      bigint,
    sha256    text,
    state     text NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'restored', 'deleted')),
    at        timestamptz NOT NULL,
    PRIMARY KEY (device_id, item)
);
CREATE INDEX quarantine_gone ON redoubt.quarantine (at) WHERE state <> 'held';
COMMENT ON TABLE redoubt.quarantine IS 'What devices hold in quarantine, as their events told.';

-- --- the order that readers see ---------------------------------------------------------------

-- Trigger arguments: the number of the lock's class, the sequence.
CREATE FUNCTION redoubt.ordered() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last bigint;
BEGIN
    EXECUTE 'SELECT last_value FROM ' || TG_ARGV[1] INTO last;
    PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::integer,
        ((last & 4294967295) - CASE WHEN last & 2147483648 <> 0 THEN 4294967296 ELSE 0 END)
        ::integer);
    RETURN NULL;
END $$;

-- Every row with an id up to this is committed, or never will be.  Rows must be read by a
-- LATER statement of a READ COMMITTED transaction.
--   A writer reads the sequence (L), takes the lock on L, takes ids (above L), commits, and
-- only then is its lock released.  This reads the sequence (S) first and the locks after.  A
-- writer whose lock is not there has committed, and the later statement sees its rows; or it
-- takes its lock later, and its ids are above S.
CREATE FUNCTION redoubt.settled(class integer, sequence text) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    last   bigint;
    oldest bigint;
BEGIN
    EXECUTE 'SELECT last_value FROM ' || sequence INTO last;
    SELECT min(last - ((last - l.objid::bigint) & 4294967295)) INTO oldest FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid::bigint = class AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
    RETURN least(last, coalesce(oldest, last));
END $$;

CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.event
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER ordered BEFORE INSERT ON redoubt.event
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.ordered(1380208452, 'redoubt.event_id');
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.event_other
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.event_cursor
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.audit
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER ordered BEFORE INSERT ON redoubt.audit
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.ordered(1380208453, 'redoubt.audit_id');
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.quarantine
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- --- what the server itself writes ------------------------------------------------------------

-- Events of the server, one for each of these devices, in their order.  Lists that are shorter,
-- or NULL, are filled: severity info, no data.
CREATE FUNCTION redoubt.events_add(devices uuid[], kind text, severities text[] DEFAULT NULL,
                                   data jsonb[] DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wrong text;
BEGIN
    PERFORM redoubt.check_epoch();
    IF coalesce(cardinality(devices), 0) = 0 THEN
        RETURN;
    END IF;
    SELECT s.s INTO wrong FROM unnest(severities) AS s (s)
    WHERE s.s NOT IN ('critical', 'error', 'warning', 'info') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'no such severity: %', wrong;
    END IF;
    INSERT INTO redoubt.event (at, device_id, kind, severity, data, epoch)
    SELECT clock_timestamp(), e.device, events_add.kind, coalesce(e.severity, 'info'),
           coalesce(e.data, '{}'), current_setting('redoubt.epoch')::bigint
    FROM unnest(devices, severities, events_add.data) WITH ORDINALITY
         AS e (device, severity, data, o)
    ORDER BY e.o;
    PERFORM pg_notify('redoubt', '{"t":"events"}');
END $$;

-- An event of the server.  device NULL: it concerns no single one.
CREATE FUNCTION redoubt.event_add(device uuid, kind text, severity text,
                                  data jsonb DEFAULT '{}')
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM redoubt.events_add(ARRAY[device], kind, ARRAY[severity], ARRAY[data]);
END $$;

-- An act of an administrator.  before NULL: it was made; after NULL: it was removed.
CREATE FUNCTION redoubt.audit_add(actor jsonb, action text, object text, before jsonb,
                                  after jsonb)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM redoubt.check_epoch();
    INSERT INTO redoubt.audit (actor, action, object, before, after, epoch)
    VALUES (audit_add.actor, audit_add.action, coalesce(audit_add.object, ''),
            audit_add.before, audit_add.after, current_setting('redoubt.epoch')::bigint);
END $$;

-- --- what devices send ------------------------------------------------------------------------

-- The text is a UUID (and so can be cast).
CREATE FUNCTION redoubt.is_uuid(value text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(value ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$', false)
$$;

-- Why an event will never be stored; NULL: it will.
CREATE FUNCTION redoubt.event_fault(event jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN jsonb_typeof(event) <> 'object' THEN 'it is not an object'
        WHEN jsonb_typeof(event -> 'kind') IS DISTINCT FROM 'string'
             OR event ->> 'kind' !~ '^[a-z][a-z0-9_]{0,63}$' THEN 'kind is wrong'
        WHEN jsonb_typeof(event -> 'severity') IS DISTINCT FROM 'string'
             OR event ->> 'severity' NOT IN ('critical', 'error', 'warning', 'info')
             THEN 'severity is wrong'
        WHEN jsonb_typeof(event -> 'at') IS DISTINCT FROM 'number'
             OR event ->> 'at' !~ '^[0-9]{1,17}$' THEN 'at is wrong'
        WHEN event ? 'data' AND jsonb_typeof(event -> 'data') <> 'object'
             THEN 'data is not an object'
        WHEN octet_length(event ->> 'data') > 24576 THEN 'data is too big'
    END
$$;

-- Events that say what became of something else: [{device, kind, at, data}] in order.
CREATE FUNCTION redoubt.events_apply(events jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO redoubt.quarantine AS q (device_id, item, path, threat, size, sha256, at)
    SELECT DISTINCT ON (e.device, e.data ->> 'item')
           e.device, (e.data ->> 'item')::uuid, coalesce(e.data ->> 'path', ''),
           coalesce(e.data ->> 'threat', ''),
           CASE WHEN e.data ->> 'size' ~ '^[0-9]{1,18}$' THEN (e.data ->> 'size')::bigint END,
           left(e.data ->> 'sha256', 64), e.at
    FROM jsonb_to_recordset(events) AS e (device uuid, kind text, at timestamptz, data jsonb)
    WHERE e.kind = 'quarantine_added' AND redoubt.is_uuid(e.data ->> 'item')
    ORDER BY 1, e.data ->> 'item'
    ON CONFLICT (device_id, item) DO NOTHING;

    UPDATE redoubt.quarantine q
    SET state = CASE e.kind WHEN 'quarantine_restored' THEN 'restored' ELSE 'deleted' END,
        at = e.at
    FROM jsonb_to_recordset(events) AS e (device uuid, kind text, at timestamptz, data jsonb)
    WHERE e.kind IN ('quarantine_restored', 'quarantine_deleted')
      AND redoubt.is_uuid(e.data ->> 'item')
      AND q.device_id = e.device AND q.item = (e.data ->> 'item')::uuid;

    IF to_regprocedure('redoubt.runs_told(jsonb)') IS NOT NULL THEN
        PERFORM redoubt.runs_told(events);
    END IF;
END $$;

-- The batches of events among the items that can be stored at all.  (PL/pgSQL keeps the plans
-- of its statements for the session; an SQL function is planned with each call.)
CREATE FUNCTION redoubt.event_batches(items jsonb)
RETURNS TABLE (n bigint, device uuid, stream uuid, first bigint, count bigint, list jsonb)
ROWS 20
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT i.n, (i.item ->> 'device')::uuid, (i.item #>> '{events,stream}')::uuid,
           (i.item #>> '{events,first}')::bigint, jsonb_array_length(i.item #> '{events,list}')::bigint,
           i.item #> '{events,list}'
    FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n)
    WHERE CASE WHEN redoubt.is_uuid(i.item #>> '{events,stream}')
                    AND i.item #>> '{events,first}' ~ '^[1-9][0-9]{0,15}$'
                    AND jsonb_typeof(i.item #> '{events,list}') = 'array'
               THEN jsonb_array_length(i.item #> '{events,list}') <= 100 ELSE false END
      AND EXISTS (SELECT FROM redoubt.device d WHERE d.id = (i.item ->> 'device')::uuid);
END $$;

-- Makes and locks the cursors of these batches, in one order for everybody.
CREATE FUNCTION redoubt.events_lock(items jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO redoubt.event_cursor (device_id, stream)
    SELECT DISTINCT b.device, b.stream FROM redoubt.event_batches(items) b
    WHERE NOT EXISTS (SELECT FROM redoubt.event_cursor c
                      WHERE c.device_id = b.device AND c.stream = b.stream)
    ORDER BY 1, 2 ON CONFLICT DO NOTHING;
    IF FOUND THEN
        -- A device that makes up streams keeps the newest ones only.
        DELETE FROM redoubt.event_cursor c
        USING (SELECT o.device_id, o.stream,
                      row_number() OVER (PARTITION BY o.device_id ORDER BY o.at DESC) AS age
               FROM redoubt.event_cursor o
               WHERE o.device_id IN (SELECT b.device FROM redoubt.event_batches(items) b)) o
        WHERE o.age > 16 AND c.device_id = o.device_id AND c.stream = o.stream;
    END IF;
    PERFORM FROM redoubt.event_cursor c
    WHERE (c.device_id, c.stream) IN (SELECT b.device, b.stream
                                      FROM redoubt.event_batches(items) b)
    ORDER BY c.device_id, c.stream FOR UPDATE;
END $$;

-- items with "events": {"stream", "first", "list": [{"at", "kind", "severity", "data"}]} are
-- answered {"events": {"stream", "through"}}, with "refused": [{"seq", "why"}] for events that
-- will never be stored; a batch that is wrong as a whole {"events": {"error"}}.
CREATE FUNCTION redoubt.x_events(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    mine    constant bigint := redoubt.check_epoch();
    here    constant timestamptz := clock_timestamp();
    answers jsonb;
    effects jsonb;
    stored  bigint;
BEGIN
    PERFORM redoubt.events_lock(items);

    WITH batch AS MATERIALIZED (
        -- known: how far the stream is stored when this batch's turn comes
        SELECT b.*, greatest(c.through, coalesce(max(b.first + b.count - 1) OVER (
                   PARTITION BY b.device, b.stream ORDER BY b.n
                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)) AS known
        FROM redoubt.event_batches(items) b
        JOIN redoubt.event_cursor c ON c.device_id = b.device AND c.stream = b.stream
    ), new AS MATERIALIZED (
        SELECT b.n, b.device, b.stream, b.first + e.o - 1 AS seq, e.event,
               redoubt.event_fault(e.event) AS why
        FROM batch b, jsonb_array_elements(b.list) WITH ORDINALITY AS e (event, o)
        WHERE b.first + e.o - 1 > b.known
    ), gap AS (
        SELECT b.n, b.device, b.known, b.first, b.stream FROM batch b
        WHERE b.first > b.known + 1 AND b.count > 0
    ), insertion AS (
        INSERT INTO redoubt.event (received_at, at, device_id, stream, seq, kind, severity,
                                   data, epoch)
        SELECT here, a.at, a.device, a.stream, a.seq, a.kind, a.severity, a.data, mine
        FROM (SELECT w.n, to_timestamp((w.event ->> 'at')::bigint / 1e6) AS at, w.device,
                     w.stream, w.seq, w.event ->> 'kind' AS kind,
                     w.event ->> 'severity' AS severity,
                     coalesce(w.event -> 'data', '{}') AS data
              FROM new w WHERE w.why IS NULL
              UNION ALL
              SELECT g.n, here, g.device, NULL, NULL, 'stream_gap', 'warning',
                     jsonb_build_object('stream', g.stream, 'expected', g.known + 1,
                                        'first', g.first, 'missing', g.first - g.known - 1)
              FROM gap g) a
        ORDER BY a.n, a.seq NULLS FIRST
        RETURNING 1
    ), moved AS (
        UPDATE redoubt.event_cursor c SET through = b.through, at = here
        FROM (SELECT b.device, b.stream, max(greatest(b.known, b.first + b.count - 1)) AS through
              FROM batch b GROUP BY 1, 2) b
        WHERE c.device_id = b.device AND c.stream = b.stream AND c.through < b.through
    )
    SELECT (SELECT jsonb_object_agg(b.n, jsonb_build_object(
                       'stream', b.stream, 'through', greatest(b.known, b.first + b.count - 1))
                   || CASE WHEN r.refused IS NULL THEN '{}'
                           ELSE jsonb_build_object('refused', r.refused) END)
            FROM batch b
            LEFT JOIN (SELECT w.n, jsonb_agg(jsonb_build_object('seq', w.seq, 'why', w.why)
                                             ORDER BY w.seq) AS refused
                       FROM new w WHERE w.why IS NOT NULL GROUP BY w.n) r ON r.n = b.n),
           (SELECT jsonb_agg(jsonb_build_object('device', w.device, 'kind', w.event -> 'kind',
                                 'at', to_timestamp((w.event ->> 'at')::bigint / 1e6),
                                 'data', coalesce(w.event -> 'data', '{}')) ORDER BY w.n, w.seq)
            FROM new w
            WHERE w.why IS NULL AND w.event ->> 'kind' ~ '^(run|quarantine)_'),
           (SELECT count(*) FROM insertion)
    INTO answers, effects, stored;

    IF effects IS NOT NULL THEN
        PERFORM redoubt.events_apply(effects);
    END IF;
    IF stored > 0 THEN
        PERFORM pg_notify('redoubt', '{"t":"events"}');
    END IF;
    RETURN QUERY
    SELECT i.n, jsonb_build_object('events', coalesce(answers -> i.n::text,
               '{"error": "the batch is wrong, or the device is not known"}'))
    FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n)
    WHERE i.item ? 'events';
END $$;

-- --- partitions and retention -----------------------------------------------------------------

CREATE TABLE redoubt.event_retention (
    kind      text PRIMARY KEY,
    days      integer NOT NULL CHECK (days BETWEEN 1 AND 3650),
    count_max bigint CHECK (count_max BETWEEN 1 AND 1000000000)
);
COMMENT ON TABLE redoubt.event_retention IS
    'How long events are kept and how many of a kind. Kind "*": all others; "@audit", "@report"
and "@run": the audit trail, status reports, finished task runs (by age only).';
CREATE TABLE redoubt.event_count (
    day  date NOT NULL,
    kind text NOT NULL,
    held bigint NOT NULL,
    PRIMARY KEY (day, kind)
);
COMMENT ON TABLE redoubt.event_count IS
    'How many events of a kind and a day (UTC) are stored, up to event_upkeep.counted.';
CREATE TABLE redoubt.event_upkeep (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    counted   bigint NOT NULL DEFAULT 0,
    ahead_at  timestamptz NOT NULL DEFAULT '-infinity',
    drop_at   timestamptz NOT NULL DEFAULT '-infinity',
    retention bigint NOT NULL DEFAULT 1
);
COMMENT ON TABLE redoubt.event_upkeep IS 'Where redoubt.events_upkeep() goes on.';
COMMENT ON COLUMN redoubt.event_upkeep.counted IS 'Events up to this id are in event_count.';
COMMENT ON COLUMN redoubt.event_upkeep.ahead_at IS 'When to look for missing partitions again.';
COMMENT ON COLUMN redoubt.event_upkeep.drop_at IS 'When to look for expired partitions again.';
COMMENT ON COLUMN redoubt.event_upkeep.retention IS 'Version of event_retention.';
INSERT INTO redoubt.event_upkeep DEFAULT VALUES;

-- What a new installation keeps.
CREATE FUNCTION redoubt.retention_defaults()
RETURNS TABLE (kind text, days integer, count_max bigint) LANGUAGE sql IMMUTABLE AS $$
    VALUES ('*', 90, 1000000::bigint), ('@audit', 365, NULL), ('@report', 30, NULL),
           ('@run', 90, NULL)
$$;
INSERT INTO redoubt.event_retention SELECT * FROM redoubt.retention_defaults();

CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.event_retention
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.event_count
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.event_upkeep
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

CREATE INDEX report_by_age ON redoubt.report (received_at);

CREATE FUNCTION redoubt.utc_day(moment timestamptz) RETURNS date LANGUAGE sql STABLE AS $$
    SELECT (moment AT TIME ZONE 'UTC')::date
$$;
CREATE FUNCTION redoubt.day_start(day date) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT day::timestamp AT TIME ZONE 'UTC'
$$;
CREATE FUNCTION redoubt.event_part(day date) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'event_' || to_char(day, 'YYYYMMDD')
$$;

-- The partition of a day.  False: not now, somebody holds a lock or event_other has events of
-- that day.  It is made apart and attached, which lets writers of other partitions go on.
CREATE FUNCTION redoubt.event_part_make(day date) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '50ms' AS $$
DECLARE
    part constant text := redoubt.event_part(day);
BEGIN
    IF to_regclass('redoubt.' || part) IS NOT NULL THEN
        RETURN true;
    END IF;
    EXECUTE format('CREATE TABLE redoubt.%I (LIKE redoubt.event INCLUDING DEFAULTS)', part);
    EXECUTE format('CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE '
                   'ON redoubt.%I FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced()', part);
    EXECUTE format('ALTER TABLE redoubt.event ATTACH PARTITION redoubt.%I '
                   'FOR VALUES FROM (%L) TO (%L)', part,
                   to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00',
                   to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
    RETURN true;
EXCEPTION WHEN lock_not_available OR check_violation THEN
    RETURN false;
END $$;

-- Drops the partition of a day.  False: not now.  Writers wait for this at most 50 ms, or as
-- long as the transaction still takes: it must be the last that a transaction does.
CREATE FUNCTION redoubt.event_part_drop(day date, counted bigint) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '50ms' AS $$
DECLARE
    part constant text := redoubt.event_part(day);
    late boolean;
BEGIN
    LOCK TABLE redoubt.event IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('SELECT EXISTS (SELECT FROM redoubt.%I WHERE id > $1)', part)
        INTO late USING counted;
    IF late THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE redoubt.%I', part);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

SELECT redoubt.event_part_make(redoubt.utc_day(now()) + d) FROM generate_series(-1, 3) AS d;

-- Deletes up to n of the oldest events of a kind and day.
CREATE FUNCTION redoubt.events_delete(day date, kind text, n bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    deleted bigint;
BEGIN
    EXECUTE format('DELETE FROM redoubt.event e USING (
            SELECT o.received_at, o.id FROM redoubt.event o
            WHERE o.kind = %1$L AND o.received_at >= %2$L AND o.received_at < %3$L
            ORDER BY o.id LIMIT %4$s) o
        WHERE e.received_at = o.received_at AND e.id = o.id
          AND e.received_at >= %2$L AND e.received_at < %3$L', kind, redoubt.day_start(day),
        redoubt.day_start(day + 1), n);
    GET DIAGNOSTICS deleted = ROW_COUNT;
    -- Fewer than there should be: somebody else deleted some, so these were the last.
    UPDATE redoubt.event_count c SET held = CASE WHEN deleted < n THEN 0 ELSE c.held - n END
    WHERE c.day = events_delete.day AND c.kind = events_delete.kind;
    DELETE FROM redoubt.event_count c
    WHERE c.day = events_delete.day AND c.kind = events_delete.kind AND c.held <= 0;
    RETURN deleted;
END $$;

-- Deletes what one kind has too much of, a bounded piece: the oldest first.
CREATE FUNCTION redoubt.events_trim(most bigint DEFAULT 5000) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    today constant date := redoubt.utc_day(now());
    gone  record;
BEGIN
    WITH rule AS (
        SELECT c.day, c.kind, c.held, c.day < today - coalesce(r.days, d.days) AS old,
               CASE WHEN r.kind IS NULL THEN d.count_max ELSE r.count_max END AS count_max
        FROM redoubt.event_count c
        LEFT JOIN redoubt.event_retention r ON r.kind = c.kind
        JOIN redoubt.event_retention d ON d.kind = '*'
    ), kept AS ( -- without the days that are dropped as a whole
        SELECT r.*, sum(r.held) OVER (PARTITION BY r.kind) AS total FROM rule r
        WHERE NOT r.day IN (
            SELECT w.day FROM rule w GROUP BY w.day
            HAVING bool_and(w.old)
               AND to_regclass('redoubt.' || redoubt.event_part(w.day)) IS NOT NULL))
    SELECT r.day, r.kind,
           CASE WHEN r.old THEN r.held ELSE least(r.held, r.total - r.count_max) END AS n
    INTO gone FROM kept r
    WHERE r.old OR r.total > r.count_max
    ORDER BY r.day, r.kind LIMIT 1;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    RETURN redoubt.events_delete(gone.day, gone.kind, least(gone.n, most)::bigint);
END $$;

-- The oldest day with a partition of which nothing is to be kept.
CREATE FUNCTION redoubt.event_part_expired() RETURNS date LANGUAGE sql AS $$
    SELECT p.day
    FROM (SELECT to_date(substring(c.relname FROM '^event_([0-9]{8})$'), 'YYYYMMDD') AS day
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = 'redoubt.event'::regclass) p
    WHERE p.day < redoubt.utc_day(now()) - 1
      AND NOT EXISTS (
          SELECT FROM redoubt.event_count c
          JOIN redoubt.event_retention d ON d.kind = '*'
          LEFT JOIN redoubt.event_retention r ON r.kind = c.kind
          WHERE c.day = p.day
            AND c.day >= redoubt.utc_day(now()) - coalesce(r.days, d.days))
    ORDER BY 1 LIMIT 1
$$;

-- Each second on the active node.  Each call does a bounded piece, none waits for writers
-- and none makes them wait (but for 50 ms while a partition is dropped).
CREATE FUNCTION redoubt.events_upkeep() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    u    redoubt.event_upkeep;
    upto bigint;
    n    bigint;
    done bigint;
    old  date;
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT * INTO u FROM redoubt.event_upkeep FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;

    upto := redoubt.settled(1380208452, 'redoubt.event_id');
    IF upto > u.counted THEN
        upto := least(upto, u.counted + 50000);
        INSERT INTO redoubt.event_count AS c (day, kind, held)
        SELECT redoubt.utc_day(e.received_at), e.kind, count(*) FROM redoubt.event e
        WHERE e.id > u.counted AND e.id <= upto
        GROUP BY 1, 2
        ON CONFLICT ON CONSTRAINT event_count_pkey DO UPDATE SET held = c.held + excluded.held;
        UPDATE redoubt.event_upkeep SET counted = upto;
        u.counted := upto;
    END IF;

    done := redoubt.events_trim();
    DELETE FROM redoubt.report r USING (
        SELECT o.device_id, o.report_id FROM redoubt.report o
        WHERE o.received_at < now() - (SELECT make_interval(days => t.days)
                                       FROM redoubt.event_retention t
                                       WHERE t.kind = '@report')
        ORDER BY o.received_at LIMIT 1000) o
    WHERE r.device_id = o.device_id AND r.report_id = o.report_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    done := done + n;
    DELETE FROM redoubt.audit a USING (
        SELECT o.id FROM redoubt.audit o
        WHERE o.at < now() - (SELECT make_interval(days => t.days)
                              FROM redoubt.event_retention t WHERE t.kind = '@audit')
        ORDER BY o.at LIMIT 1000) o
    WHERE a.id = o.id;
    GET DIAGNOSTICS n = ROW_COUNT;
    done := done + n;
    DELETE FROM redoubt.quarantine q USING (
        SELECT o.device_id, o.item FROM redoubt.quarantine o
        WHERE o.state <> 'held'
          AND o.at < now() - (SELECT make_interval(days => t.days)
                              FROM redoubt.event_retention t WHERE t.kind = '*')
        ORDER BY o.at LIMIT 1000) o
    WHERE q.device_id = o.device_id AND q.item = o.item AND q.state <> 'held';
    GET DIAGNOSTICS n = ROW_COUNT;
    done := done + n;

    IF u.ahead_at <= now() THEN
        SELECT count(*) INTO n
        FROM (SELECT redoubt.event_part_make(redoubt.utc_day(now()) + d) AS made
              FROM generate_series(0, 3) AS d) p WHERE NOT p.made;
        UPDATE redoubt.event_upkeep
        SET ahead_at = now() + make_interval(mins => CASE WHEN n = 0 THEN 30 ELSE 1 END);
    ELSIF u.drop_at <= now() THEN
        old := redoubt.event_part_expired();
        UPDATE redoubt.event_upkeep SET drop_at = now() + CASE
            WHEN old IS NULL THEN interval '10 minutes' ELSE interval '10 seconds' END;
        IF old IS NOT NULL AND redoubt.event_part_drop(old, u.counted) THEN
            DELETE FROM redoubt.event_count c WHERE c.day = old;
            done := done + 1;
        END IF;
    END IF;
    RETURN done;
END $$;

-- --- the API ----------------------------------------------------------------------------------

-- A time in a query (RFC 3339, or a day); NULL: not given.
CREATE FUNCTION redoubt.api_time(query jsonb, name text) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
DECLARE
    given constant text := query ->> name;
BEGIN
    IF given IS NULL THEN
        RETURN NULL;
    END IF;
    IF given !~ ('^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?'
                 '(Z|[+-][0-9]{2}:?[0-9]{2})?)?$') THEN
        RAISE datetime_field_overflow;
    END IF;
    RETURN given::timestamptz;
EXCEPTION WHEN data_exception THEN
    PERFORM redoubt.api_refuse(400, name || ' is wrong',
        format('%s is not a time like 2027-01-31T18:00:00Z.', left(given, 50)), '');
END $$;

-- A number in a query; NULL: not given.
CREATE FUNCTION redoubt.api_number(query jsonb, name text) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
    given constant text := nullif(query ->> name, '');
BEGIN
    IF given !~ '^[0-9]{1,18}$' THEN
        PERFORM redoubt.api_refuse(400, name || ' is wrong',
            format('%s=%s is not a number.', name, left(given, 50)), '');
    END IF;
    RETURN given::bigint;
END $$;

-- A UUID in a path or query; NULL: not given.
CREATE FUNCTION redoubt.api_uuid(query jsonb, name text) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
DECLARE
    given constant text := query ->> name;
BEGIN
    IF given IS NOT NULL AND NOT redoubt.is_uuid(given) THEN
        PERFORM redoubt.api_refuse(400, name || ' is wrong',
            format('%s is not an id.', left(given, 50)), '');
    END IF;
    RETURN given::uuid;
END $$;

-- The groups of ?group= (a path or an id) with those below; NULL: not given.
CREATE FUNCTION redoubt.api_group_filter(actor jsonb, query jsonb) RETURNS uuid[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    top record;
BEGIN
    IF NOT query ? 'group' THEN
        RETURN NULL;
    END IF;
    SELECT * INTO top FROM redoubt.device_group g
    WHERE g.path = query ->> 'group' OR g.id::text = lower(query ->> 'group');
    IF NOT FOUND OR NOT redoubt.may_see(actor, top.id) THEN
        PERFORM redoubt.api_refuse(404, 'Not found',
            format('There is no group "%s".', left(query ->> 'group', 200)), '');
    END IF;
    RETURN (SELECT array_agg(g.id) FROM redoubt.device_group g
            WHERE top.path = '/' OR g.path = top.path OR starts_with(g.path, top.path || '/'));
END $$;

-- GET /v1/events.  Newest first, page by page with ?cursor=.  With ?after= (an id, or "end")
-- oldest first, to follow: the member "after" of the answer is the next call's.  Nothing is
-- shown that an event not committed yet could precede, so following never skips one.
-- It must be VOLATILE: what settled() promises holds for statements after it.
CREATE FUNCTION redoubt.api_events_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    follow  constant boolean := query ? 'after';
    most    constant integer := redoubt.api_limit(query);
    groups  uuid[] := redoubt.scope_groups(actor);
    wanted  constant uuid[] := redoubt.api_group_filter(actor, query);
    settled constant bigint := redoubt.settled(1380208452, 'redoubt.event_id');
    low     bigint := 0;
    high    bigint := settled;
    sql     text;
    items   jsonb;
    n       integer;
    last    bigint;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    IF follow THEN
        low := CASE WHEN query ->> 'after' = 'end' THEN settled
                    ELSE coalesce(redoubt.api_number(query, 'after'), 0) END;
        low := greatest(low, coalesce(redoubt.api_number(query, 'cursor'), 0));
    ELSE
        high := least(high, redoubt.api_number(query, 'cursor') - 1);
    END IF;
    IF wanted IS NOT NULL THEN
        groups := ARRAY(SELECT unnest(wanted) INTERSECT SELECT unnest(coalesce(groups, wanted)));
    END IF;
    sql := 'SELECT e.* FROM redoubt.event e WHERE e.id > $1 AND e.id <= $2'
        || CASE WHEN query ? 'kind' THEN ' AND e.kind = ANY (string_to_array($3, '',''))'
                ELSE '' END
        || CASE WHEN query ? 'severity'
                THEN ' AND e.severity = ANY (string_to_array($4, '',''))' ELSE '' END
        || CASE WHEN query ? 'device' THEN ' AND e.device_id = $5' ELSE '' END
        || CASE WHEN groups IS NOT NULL THEN ' AND EXISTS (SELECT FROM redoubt.device d '
                     'WHERE d.id = e.device_id AND d.group_id = ANY ($6))' ELSE '' END
        || CASE WHEN query ? 'since' THEN ' AND e.received_at >= $7' ELSE '' END
        || CASE WHEN query ? 'until' THEN ' AND e.received_at < $8' ELSE '' END
        || ' ORDER BY e.id ' || CASE WHEN follow THEN 'ASC' ELSE 'DESC' END || ' LIMIT $9';
    EXECUTE 'SELECT coalesce(jsonb_agg(jsonb_build_object(
                 ''id'', e.id, ''at'', e.at, ''received_at'', e.received_at,
                 ''device'', e.device_id, ''device_name'', d.name, ''kind'', e.kind,
                 ''severity'', e.severity, ''data'', e.data, ''source'',
                 CASE WHEN e.stream IS NULL THEN ''server'' ELSE ''device'' END)
                 ORDER BY e.id ' || CASE WHEN follow THEN 'ASC' ELSE 'DESC' END || '), ''[]''),
             count(*), ' || CASE WHEN follow THEN 'max' ELSE 'min' END || '(e.id)
             FROM (' || sql || ') e LEFT JOIN redoubt.device d ON d.id = e.device_id'
    INTO items, n, last
    USING low, high, query ->> 'kind', query ->> 'severity', redoubt.api_uuid(query, 'device'),
          groups, redoubt.api_time(query, 'since'), redoubt.api_time(query, 'until'), most;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN last::text END,
        'after', CASE WHEN follow AND n = most THEN last
                      WHEN follow THEN greatest(low, high) ELSE settled END::text));
END $$;

-- GET /v1/audit: newest first; ?action ?object ?actor ?since ?until.
CREATE FUNCTION redoubt.api_audit_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    most  constant integer := redoubt.api_limit(query);
    high  bigint := redoubt.settled(1380208453, 'redoubt.audit_id');
    items jsonb;
    n     integer;
    last  bigint;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    IF jsonb_typeof(actor -> 'scope') = 'array' THEN
        PERFORM redoubt.api_refuse(403, 'Not allowed',
            'The audit trail is of the whole installation; this token is limited to groups.',
            'Use a token without a scope.');
    END IF;
    high := least(high, redoubt.api_number(query, 'cursor') - 1);
    SELECT coalesce(jsonb_agg(jsonb_build_object('id', a.id, 'at', a.at, 'actor', a.actor,
               'action', a.action, 'object', a.object, 'before', a.before, 'after', a.after)
               ORDER BY a.id DESC), '[]'), count(*), min(a.id)
    INTO items, n, last
    FROM (SELECT * FROM redoubt.audit a
          WHERE a.id <= high
            AND (NOT query ? 'action' OR a.action = ANY (string_to_array(query ->> 'action', ',')))
            AND (NOT query ? 'object' OR a.object = query ->> 'object')
            AND (NOT query ? 'actor' OR a.actor ->> 'name' = query ->> 'actor')
            AND (NOT query ? 'since' OR a.at >= redoubt.api_time(query, 'since'))
            AND (NOT query ? 'until' OR a.at < redoubt.api_time(query, 'until'))
          ORDER BY a.id DESC LIMIT most) a;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN last::text END));
END $$;

-- GET /v1/retention
CREATE FUNCTION redoubt.api_retention_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    r jsonb;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT jsonb_object_agg(t.kind, jsonb_build_object('days', t.days)
               || CASE WHEN t.kind LIKE '@%' THEN '{}'
                       ELSE jsonb_build_object('count_max', t.count_max) END)
    INTO r FROM redoubt.event_retention t;
    RETURN jsonb_build_object('status', 200,
        'version', (SELECT u.retention FROM redoubt.event_upkeep u),
        'body', jsonb_build_object('default', r -> '*', 'audit', r -> '@audit',
            'reports', r -> '@report', 'runs', r -> '@run',
            'kinds', (SELECT coalesce(jsonb_object_agg(k.key, k.value), '{}')
                      FROM jsonb_each(r) AS k (key, value) WHERE k.key !~ '^[*@]')));
END $$;

-- Refuses limits that are none.
CREATE FUNCTION redoubt.retention_check(name text, given jsonb, counted boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM redoubt.api_members(given, CASE WHEN counted THEN ARRAY['days', 'count_max']
                                            ELSE ARRAY['days'] END);
    IF jsonb_typeof(given -> 'days') IS DISTINCT FROM 'number'
       OR given ->> 'days' !~ '^[0-9]{1,4}$'
       OR (given ->> 'days')::integer NOT BETWEEN 1 AND 3650 THEN
        PERFORM redoubt.api_refuse(400, name || '.days is wrong',
            'It must be a number between 1 and 3650.', '');
    ELSIF coalesce(jsonb_typeof(given -> 'count_max'), 'null') <> 'null'
          AND (jsonb_typeof(given -> 'count_max') <> 'number'
               OR given ->> 'count_max' !~ '^[0-9]{1,10}$'
               OR (given ->> 'count_max')::bigint NOT BETWEEN 1 AND 1000000000) THEN
        PERFORM redoubt.api_refuse(400, name || '.count_max is wrong',
            'It must be a number between 1 and 1000000000, or null.', '');
    END IF;
END $$;

-- PUT /v1/retention: all of it; what the body does not have becomes what the product has.
CREATE FUNCTION redoubt.api_retention_put(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    kinds  constant jsonb := coalesce(body -> 'kinds', '{}');
    before constant jsonb := redoubt.api_retention_get(actor, '{}', '{}', '{}') -> 'body';
    answer jsonb;
    k      record;
BEGIN
    PERFORM redoubt.check_epoch();
    PERFORM redoubt.require(actor, 'administrator', NULL);
    PERFORM redoubt.api_members(body, ARRAY['default', 'audit', 'reports', 'runs', 'kinds']);
    PERFORM redoubt.retention_check(e.key, e.value, e.key = 'default')
    FROM jsonb_each(body) AS e (key, value) WHERE e.key <> 'kinds';
    IF jsonb_typeof(kinds) <> 'object' OR (SELECT count(*) FROM jsonb_object_keys(kinds)) > 500
    THEN
        PERFORM redoubt.api_refuse(400, 'kinds is wrong',
            'It must be an object of at most 500 kinds of events.', '');
    END IF;
    FOR k IN SELECT * FROM jsonb_each(kinds) LOOP
        IF k.key !~ '^[a-z][a-z0-9_]{0,63}$' THEN
            PERFORM redoubt.api_refuse(400, 'kinds is wrong',
                format('"%s" is not the name of a kind.', left(k.key, 80)), '');
        END IF;
        PERFORM redoubt.retention_check('kinds.' || k.key, k.value, true);
    END LOOP;

    DELETE FROM redoubt.event_retention;
    INSERT INTO redoubt.event_retention (kind, days, count_max)
    SELECT d.kind, coalesce((g.given ->> 'days')::integer, d.days),
           CASE WHEN g.given ? 'count_max' THEN (g.given ->> 'count_max')::bigint
                ELSE d.count_max END
    FROM redoubt.retention_defaults() d,
         LATERAL (SELECT body -> CASE d.kind WHEN '*' THEN 'default' WHEN '@audit' THEN 'audit'
                                 WHEN '@report' THEN 'reports' ELSE 'runs' END AS given) g
    UNION ALL
    SELECT e.key, (e.value ->> 'days')::integer, (e.value ->> 'count_max')::bigint
    FROM jsonb_each(kinds) AS e (key, value);
    UPDATE redoubt.event_upkeep SET retention = retention + 1, drop_at = '-infinity';
    answer := redoubt.api_retention_get(actor, '{}', '{}', '{}');
    PERFORM redoubt.audit_add(actor, 'retention_put', 'retention', before, answer -> 'body');
    RETURN answer;
END $$;

-- The device of a path, if the actor may see it.
CREATE FUNCTION redoubt.api_device_seen(actor jsonb, path jsonb) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
DECLARE
    d record;
BEGIN
    SELECT t.id, t.group_id INTO d FROM redoubt.device t
    WHERE t.id = redoubt.api_uuid(path, 'id');
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such device.', '');
    END IF;
    PERFORM redoubt.require(actor, 'auditor', d.group_id);
    RETURN d.id;
END $$;

-- GET /v1/devices/{id}/quarantine: by item; ?state=held,restored,deleted
CREATE FUNCTION redoubt.api_device_quarantine(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    most   constant integer := redoubt.api_limit(query);
    device constant uuid := redoubt.api_device_seen(actor, path);
    low    constant uuid := redoubt.api_uuid(query, 'cursor');
    items  jsonb;
    n      integer;
BEGIN
    SELECT coalesce(jsonb_agg(jsonb_build_object('item', q.item, 'path', q.path, 'threat',
               q.threat, 'size', q.size, 'sha256', q.sha256, 'state', q.state, 'at', q.at)
               ORDER BY q.item), '[]'), count(*)
    INTO items, n
    FROM (SELECT * FROM redoubt.quarantine q
          WHERE q.device_id = device AND (low IS NULL OR q.item > low)
            AND (NOT query ? 'state' OR q.state = ANY (string_to_array(query ->> 'state', ',')))
          ORDER BY q.item LIMIT most) q;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'item' END));
END $$;
