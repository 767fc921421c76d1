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

-- An event of the server.  device NULL: it concerns no single one.
CREATE FUNCTION redoubt.event_add(device uuid, kind text, severity text,
                                  data jsonb DEFAULT '{}')
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM redoubt.check_epoch();
    IF severity NOT IN ('critical', 'error', 'warning', 'info') THEN
        RAISE EXCEPTION 'no such severity: %', severity;
    END IF;
    INSERT INTO redoubt.event (at, device_id, kind, severity, data, epoch)
    VALUES (clock_timestamp(), device, event_add.kind, event_add.severity,
            coalesce(event_add.data, '{}'), current_setting('redoubt.epoch')::bigint);
    PERFORM pg_notify('redoubt', '{"t":"events"}');
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
        WHEN octet_length(event ->> 'data') > 16384 THEN 'data is over 16 KiB'
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

-- The batches of events among the items that can be stored at all.
CREATE FUNCTION redoubt.event_batches(items jsonb)
RETURNS TABLE (n bigint, device uuid, stream uuid, first bigint, count bigint, list jsonb)
LANGUAGE sql AS $$
    SELECT i.n, (i.item ->> 'device')::uuid, (i.item #>> '{events,stream}')::uuid,
           (i.item #>> '{events,first}')::bigint, jsonb_array_length(i.item #> '{events,list}'),
           i.item #> '{events,list}'
    FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n)
    WHERE CASE WHEN redoubt.is_uuid(i.item #>> '{events,stream}')
                    AND i.item #>> '{events,first}' ~ '^[1-9][0-9]{0,15}$'
                    AND jsonb_typeof(i.item #> '{events,list}') = 'array'
               THEN jsonb_array_length(i.item #> '{events,list}') <= 100 ELSE false END
      AND EXISTS (SELECT FROM redoubt.device d WHERE d.id = (i.item ->> 'device')::uuid)
$$;

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
    SELECT (SELECT jsonb_agg(jsonb_build_array(b.n, jsonb_build_object(
                       'stream', b.stream, 'through', greatest(b.known, b.first + b.count - 1))
                   || CASE WHEN r.refused IS NULL THEN '{}'
                           ELSE jsonb_build_object('refused', r.refused) END))
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
    SELECT i.n, jsonb_build_object('events', coalesce(a.a -> 1,
               '{"error": "the batch is wrong, or the device is not known"}'))
    FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n)
    LEFT JOIN jsonb_array_elements(answers) AS a (a) ON (a.a ->> 0)::bigint = i.n
    WHERE i.item ? 'events';
END $$;
