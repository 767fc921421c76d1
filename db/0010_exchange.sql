-- What the workers of the Administration Server exchange with the DBMS, in batches.
-- works-since: 1
--
-- redoubt.device_store (0002) stays for programs of older schemas while nodes are upgraded.
-- A batch is a transaction.  The parts that others own are functions x_*(items), each over
-- all items of the batch at once: they write, and answer (n, answer) with n counted from 1.

-- The devices of a batch, in one order for everybody: two batches never lock crosswise.
CREATE FUNCTION redoubt.exchange_lock(items jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[] := ARRAY(SELECT DISTINCT (i.item ->> 'device')::uuid
                        FROM jsonb_array_elements(items) AS i (item));
BEGIN
    PERFORM FROM redoubt.device d WHERE d.id = ANY (ids) ORDER BY d.id FOR NO KEY UPDATE;
END $$;

-- name, description, health, seen: of several items of a device the last word counts.
CREATE FUNCTION redoubt.exchange_state(items jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO redoubt.device AS d (id, name, description, health)
    SELECT (e.item ->> 'device')::uuid,
           coalesce((array_agg(e.item ->> 'name' ORDER BY e.n DESC)
                     FILTER (WHERE e.item ? 'name'))[1], ''),
           (array_agg(e.item -> 'description' ORDER BY e.n DESC)
            FILTER (WHERE e.item ? 'description'))[1],
           (array_agg(e.item -> 'health' ORDER BY e.n DESC)
            FILTER (WHERE e.item ? 'health'))[1]
    FROM jsonb_array_elements(items) WITH ORDINALITY AS e (item, n)
    WHERE e.item ?| ARRAY['name', 'description', 'health', 'reports', 'seen', 'hello',
                          'policy', 'events', 'progress', 'running', 'packages']
    GROUP BY 1
    ORDER BY 1
    ON CONFLICT (id) DO UPDATE SET
        name = CASE WHEN excluded.name <> '' THEN excluded.name ELSE d.name END,
        description = coalesce(excluded.description, d.description),
        health = coalesce(excluded.health, d.health),
        last_seen = now();
END $$;

-- A report that is there already is not stored again: (device, report) is its identity.
CREATE FUNCTION redoubt.exchange_reports(items jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO redoubt.report (device_id, report_id, seq, at, epoch, body)
    SELECT (i.item ->> 'device')::uuid, r.id, r.seq, to_timestamp(r.at / 1e6),
           current_setting('redoubt.epoch')::bigint, r.body
    FROM jsonb_array_elements(items) AS i (item),
         jsonb_to_recordset(coalesce(i.item -> 'reports', '[]'))
             AS r (id uuid, seq bigint, at double precision, body jsonb)
    ORDER BY 1, 3
    ON CONFLICT (device_id, report_id) DO NOTHING;
END $$;

-- The end of a connection.  "gone" holds what the hello answered as "at": a device that has
-- connected anew meanwhile, perhaps to another worker, stays connected.
CREATE FUNCTION redoubt.exchange_gone(items jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE redoubt.device d
    SET connected_epoch = NULL, connected_at = NULL, connected_node = NULL
    FROM jsonb_array_elements(items) AS i (item)
    WHERE i.item ? 'gone' AND d.id = (i.item ->> 'device')::uuid
      AND d.connected_at = (i.item ->> 'gone')::timestamptz;
END $$;

-- A worker holds a device back that says too much.
CREATE FUNCTION redoubt.exchange_flood(items jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    i jsonb;
BEGIN
    FOR i IN SELECT e.i FROM jsonb_array_elements(items) AS e (i) WHERE e.i ? 'flood' LOOP
        PERFORM redoubt.event_add((i ->> 'device')::uuid, 'device_flood', 'warning',
                                  jsonb_build_object('refused', i -> 'flood'));
    END LOOP;
END $$;

-- The answers of hello, with what a worker wants to know besides.  A device that was
-- connected has left a half-open connection, perhaps with another worker: that one is told.
CREATE FUNCTION redoubt.exchange_hello(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ids     uuid[] := ARRAY(SELECT DISTINCT (i.item ->> 'device')::uuid
                            FROM jsonb_array_elements(items) AS i (item)
                            WHERE i.item #>> '{hello,transport}' = 'ws');
    before  jsonb;
    answers jsonb;
    old     record;
BEGIN
    SELECT jsonb_object_agg(d.id, d.connected_at) INTO before FROM redoubt.device d
    WHERE d.connected_epoch = current_setting('redoubt.epoch')::bigint AND d.id = ANY (ids);

    SELECT coalesce(jsonb_agg(jsonb_build_array(h.n, h.answer -> 'hello')), '[]') INTO answers
    FROM redoubt.x_hello(items) h;
    -- A statement of its own: it sees what x_hello has written.
    RETURN QUERY
    SELECT h.n, jsonb_build_object('hello', h.hello || jsonb_build_object(
               'at', d.connected_at,
               'runs', CASE WHEN h.hello ->> 'state' = 'ok'
                            THEN coalesce(redoubt.runs_of(d.id), '[]') ELSE '[]' END))
    FROM (SELECT (a.a ->> 0)::bigint AS n, a.a -> 1 AS hello
          FROM jsonb_array_elements(answers) AS a (a)) h
    LEFT JOIN redoubt.device d ON d.id = (items -> (h.n - 1)::integer ->> 'device')::uuid;

    FOR old IN SELECT b.key AS id, b.value AS at
               FROM jsonb_each(before) AS b (key, value)
               JOIN redoubt.device d ON d.id = b.key::uuid
               WHERE to_jsonb(d.connected_at) IS DISTINCT FROM b.value LOOP
        PERFORM pg_notify('redoubt', json_build_object('t', 'old', 'd', old.id,
                                                       'at', old.at)::text);
    END LOOP;
END $$;

-- The package that a device is to have (0014), for whom it may have changed.  NULL: none.  As
-- long as there is no rollout, this costs one look for the whole batch.
CREATE FUNCTION redoubt.exchange_offers(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF NOT EXISTS (SELECT FROM redoubt.rollout_device) THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT i.n, jsonb_build_object('package', CASE WHEN EXISTS (
               SELECT FROM redoubt.rollout_device x WHERE x.device_id = (i.item ->> 'device')::uuid)
               THEN redoubt.package_offer((i.item ->> 'device')::uuid) END)
    FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n)
    WHERE i.item ?| ARRAY['hello', 'refresh', 'packages'];
END $$;

-- One batch, one transaction.  items: an array of objects, each with "device" and any of
--   hello, refresh, gone, seen, flood, csr       who is there, and may be
--   name, description, health, reports           what OpAMP and com.redoubt.report/v1 carry
--   policy, events, progress, running            what the device does
--   packages                                     what it has of what it was offered
-- Only items with an answer are answered; n counts from 1.  What a device says that is not
-- admitted (revoked, pending, a clone) is not stored.
--
-- PL/pgSQL keeps its plans, and those made while the tables were small would read them whole
-- for each item: a worker that had begun with a few devices would crawl when thousands came.
-- So everything is looked up by index.  (Hence, too, no joins of two lists from JSON in here.)
CREATE FUNCTION redoubt.device_exchange(items jsonb)
RETURNS TABLE (n bigint, answer jsonb) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    has     text[];
    parts   jsonb := '[]';
    more    jsonb;
    refused jsonb;
    judge   uuid[];
BEGIN
    PERFORM redoubt.check_epoch();
    SELECT coalesce(array_agg(DISTINCT k.k), '{}') INTO has
    FROM jsonb_array_elements(items) AS i (item), jsonb_object_keys(i.item) AS k (k);

    PERFORM redoubt.exchange_lock(items);
    IF has && ARRAY['hello', 'refresh'] THEN
        SELECT coalesce(jsonb_agg(jsonb_build_array(h.n, h.answer)), '[]'),
               jsonb_object_agg(h.n, true) FILTER (WHERE h.answer #>> '{hello,state}' <> 'ok')
        INTO parts, refused FROM redoubt.exchange_hello(items) h;
    END IF;
    IF refused IS NOT NULL THEN
        SELECT jsonb_agg(CASE WHEN refused ? i.n::text
                              THEN jsonb_build_object('device', i.item -> 'device')
                              ELSE i.item END ORDER BY i.n) INTO items
        FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n);
    END IF;
    PERFORM redoubt.exchange_state(items);
    IF 'reports' = ANY (has) THEN
        PERFORM redoubt.exchange_reports(items);
    END IF;
    IF 'gone' = ANY (has) THEN
        PERFORM redoubt.exchange_gone(items);
    END IF;
    IF 'flood' = ANY (has) THEN
        PERFORM redoubt.exchange_flood(items);
    END IF;
    IF 'packages' = ANY (has) THEN
        PERFORM redoubt.x_packages((
            SELECT jsonb_agg(jsonb_build_object('device', i.item -> 'device',
                                                'packages', i.item -> 'packages') ORDER BY i.n)
            FROM jsonb_array_elements(items) WITH ORDINALITY AS i (item, n)
            WHERE i.item ? 'packages'));
    END IF;
    SELECT coalesce(jsonb_agg(jsonb_build_array(x.n, x.answer)), '[]') INTO more
    FROM (SELECT * FROM redoubt.x_csr(items) WHERE 'csr' = ANY (has)
          UNION ALL SELECT * FROM redoubt.x_policy(items) WHERE 'policy' = ANY (has)
          UNION ALL SELECT * FROM redoubt.x_events(items) WHERE 'events' = ANY (has)
          UNION ALL SELECT * FROM redoubt.exchange_offers(items)
                    WHERE has && ARRAY['hello', 'refresh', 'packages']
          UNION ALL SELECT * FROM redoubt.x_tasks(items)
                    WHERE has && ARRAY['progress', 'running', 'hello', 'refresh']) x;
    parts := parts || more;

    SELECT array_agg(DISTINCT (i.item ->> 'device')::uuid) INTO judge
    FROM jsonb_array_elements(items) AS i (item)
    WHERE i.item ?| ARRAY['description', 'health', 'policy', 'events', 'hello'];
    IF judge IS NOT NULL THEN
        PERFORM redoubt.judge_devices(judge);
    END IF;

    RETURN QUERY
    SELECT (p.p ->> 0)::bigint, jsonb_object_agg(e.key, e.value)
    FROM jsonb_array_elements(parts) AS p (p), jsonb_each(p.p -> 1) AS e (key, value)
    GROUP BY 1;
END $$;
