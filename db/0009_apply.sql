-- Apply and export: groups, policies, rules, scheduled tasks and retention as one document.
-- works-since: 1
--
-- POST /v1/apply brings the installation to the state of a document:
--     {"version": 1, "prune": false,
--      "groups":    ["/Servers", "/Servers/Linux"],
--      "policies":  {"/Servers": {"key": value | {"value": value, "locked": true}}},
--      "rules":     as PUT /v1/rules takes them,
--      "tasks":     as POST /v1/tasks takes them, known by their names,
--      "retention": as PUT /v1/retention takes it}
-- GET /v1/export answers such a document.  A member that is not there is left alone.  With
-- "prune", what the lists that are there do not name is removed.
--
-- Each object is changed by the function that the API has for it, so the rules, the audit
-- trail and what agents are told are the same.  All is done in the transaction of the call, or
-- nothing; a dry run does the same and takes it back.  docs/apply.md has it in words.

-- Calls a function of the API in a subtransaction; what it refuses is returned.
CREATE FUNCTION redoubt.apply_call(fn text, actor jsonb, path jsonb, body jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    state text;
    title text;
    more  text;
BEGIN
    EXECUTE format('SELECT redoubt.%I($1, $2, ''{}'', $3)', fn) USING actor, path, body;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, title = MESSAGE_TEXT,
                            more = PG_EXCEPTION_DETAIL;
    -- Refusals and wrong values are the document's fault; all else ends the call.
    IF state !~ '^(RH4|22|23)' THEN
        RAISE;
    END IF;
    RETURN concat_ws(': ', title, nullif(more, ''));
END $$;

-- What apply does, a row for each object that differs; or what is wrong, with its path in the
-- document ("before" and "after" are as the document has them).
CREATE TYPE redoubt.apply_row AS (action text, object text, before jsonb, after jsonb,
                                  problem text);

CREATE FUNCTION redoubt.apply_change(object text, before jsonb, after jsonb, problem text)
RETURNS redoubt.apply_row LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN before IS NULL THEN 'create' WHEN after IS NULL THEN 'remove'
                ELSE 'change' END, object, before, after, problem
$$;

CREATE FUNCTION redoubt.apply_problem(path text, why text) RETURNS redoubt.apply_row
LANGUAGE sql IMMUTABLE AS $$
    SELECT NULL::text, NULL::text, NULL::jsonb, NULL::jsonb, path || ': ' || why
$$;

-- --- groups ----------------------------------------------------------------------------------

CREATE FUNCTION redoubt.apply_groups(actor jsonb, wanted jsonb)
RETURNS SETOF redoubt.apply_row LANGUAGE plpgsql AS $$
DECLARE
    g   record;
    why text;
BEGIN
    FOR g IN SELECT e.n - 1 AS n, e.v #>> '{}' AS path, jsonb_typeof(e.v) AS kind
             FROM jsonb_array_elements(wanted) WITH ORDINALITY AS e (v, n)
             ORDER BY length(regexp_replace(e.v #>> '{}', '[^/]', '', 'g')), 2 LOOP
        IF g.kind <> 'string' OR g.path !~ '^(/|(/[^/]+)+)$' THEN
            RETURN NEXT redoubt.apply_problem(format('groups[%s]', g.n),
                                              'must be a path like "/Servers/Linux"');
            CONTINUE;
        END IF;
        CONTINUE WHEN EXISTS (SELECT FROM redoubt.device_group d WHERE d.path = g.path);
        why := redoubt.apply_call('api_group_create', actor, '{}', jsonb_build_object(
            'name', substring(g.path FROM '[^/]+$'),
            'parent', coalesce(nullif(regexp_replace(g.path, '/[^/]+$', ''), ''), '/')));
        IF why IS NULL THEN
            RETURN NEXT redoubt.apply_change('group ' || g.path, NULL,
                                             jsonb_build_object('path', g.path), NULL);
        ELSE
            RETURN NEXT redoubt.apply_problem(format('groups[%s] (%s)', g.n, g.path), why);
        END IF;
    END LOOP;
END $$;

-- The deepest first.
CREATE FUNCTION redoubt.prune_groups(actor jsonb, wanted jsonb)
RETURNS SETOF redoubt.apply_row LANGUAGE plpgsql AS $$
DECLARE
    g   record;
    why text;
BEGIN
    FOR g IN SELECT d.id, d.path FROM redoubt.device_group d
             WHERE d.path <> '/' AND NOT wanted ? d.path
             ORDER BY cardinality(d.lineage) DESC, d.path LOOP
        why := redoubt.apply_call('api_group_delete', actor,
                                  jsonb_build_object('id', g.id), '{}');
        IF why IS NULL THEN
            RETURN NEXT redoubt.apply_change('group ' || g.path,
                                             jsonb_build_object('path', g.path), NULL, NULL);
        ELSE
            RETURN NEXT redoubt.apply_problem(format('groups (without %s)', g.path), why);
        END IF;
    END LOOP;
END $$;

-- --- policies --------------------------------------------------------------------------------

-- Settings as people write them: {"key": value}, and {"value", "locked"} where it is locked.
CREATE FUNCTION redoubt.policy_short(settings jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(s.key, CASE WHEN (s.value ->> 'locked')::boolean
        THEN s.value ELSE s.value -> 'value' END), '{}')
    FROM jsonb_each(settings) s
$$;

CREATE FUNCTION redoubt.apply_policies(actor jsonb, wanted jsonb, prune boolean)
RETURNS SETOF redoubt.apply_row LANGUAGE plpgsql AS $$
DECLARE
    p      record;
    before jsonb;
    after  jsonb;
    why    text;
BEGIN
    FOR p IN SELECT w.key AS path, w.value AS settings FROM jsonb_each(wanted) w
             UNION ALL
             SELECT g.path, '{}' FROM redoubt.device_group g
             JOIN redoubt.policy o ON o.group_id = g.id
             WHERE prune AND o.settings <> '{}' AND NOT wanted ? g.path
             ORDER BY 1 LOOP
        SELECT o.settings INTO before FROM redoubt.policy o
        JOIN redoubt.device_group g ON g.id = o.group_id WHERE g.path = p.path;
        IF NOT FOUND THEN
            RETURN NEXT redoubt.apply_problem('policies.' || p.path,
                'there is no such group, here or in "groups"');
            CONTINUE;
        END IF;
        RETURN QUERY SELECT (redoubt.apply_problem(
            concat_ws('.', 'policies', p.path, nullif(x.path, '')), x.why)).*
        FROM redoubt.policy_problems(p.settings) x;
        CONTINUE WHEN FOUND;
        after := redoubt.policy_normal(p.settings);
        CONTINUE WHEN after = before;
        why := redoubt.apply_call('api_policy_put', actor, jsonb_build_object('id', p.path),
                                  jsonb_build_object('settings', after));
        IF why IS NULL THEN
            RETURN NEXT redoubt.apply_change('policy ' || p.path,
                nullif(redoubt.policy_short(before), '{}'),
                nullif(redoubt.policy_short(after), '{}'), NULL);
        ELSE
            RETURN NEXT redoubt.apply_problem('policies.' || p.path, why);
        END IF;
    END LOOP;
END $$;

-- --- rules and retention: each as a whole ----------------------------------------------------

-- Rules with the paths of their groups, as the API takes them.
CREATE FUNCTION redoubt.rules_short(rules jsonb) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_agg(jsonb_strip_nulls(
               (r.rule - 'group') || jsonb_build_object(
                   'group', coalesce((SELECT g.path FROM redoubt.device_group g
                                      WHERE g.id::text = lower(coalesce(r.rule #>> '{group,id}',
                                                                        r.rule ->> 'group'))),
                                     r.rule ->> 'group'),
                   'override', nullif(r.rule -> 'override', 'false'))) ORDER BY r.n), '[]')
    FROM jsonb_array_elements(rules) WITH ORDINALITY AS r (rule, n)
$$;

-- An object of the API that is written as a whole: read, written, read again.  What makes no
-- difference is taken back, so that it is not a new version.
CREATE FUNCTION redoubt.apply_whole(actor jsonb, object text, wanted jsonb)
RETURNS SETOF redoubt.apply_row LANGUAGE plpgsql AS $$
DECLARE
    before jsonb := redoubt.export_whole(actor, object);
    after  jsonb;
    why    text;
BEGIN
    why := redoubt.apply_call('api_' || object || '_put', actor, '{}', CASE object
        WHEN 'rules' THEN jsonb_build_object('rules', wanted) ELSE wanted END);
    IF why IS NOT NULL THEN
        RETURN NEXT redoubt.apply_problem(object, why);
        RETURN;
    END IF;
    after := redoubt.export_whole(actor, object);
    IF after = before THEN
        RAISE EXCEPTION USING ERRCODE = 'RHSAM';
    END IF;
    RETURN NEXT redoubt.apply_change(object, before, after, NULL);
EXCEPTION WHEN SQLSTATE 'RHSAM' THEN
    RETURN;
END $$;

CREATE FUNCTION redoubt.export_whole(actor jsonb, object text) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    IF object = 'rules' THEN
        RETURN redoubt.rules_short(redoubt.api_rules_get(actor, '{}', '{}', '{}')
                                   #> '{body,rules}');
    END IF;
    RETURN redoubt.api_retention_get(actor, '{}', '{}', '{}') -> 'body';
END $$;

-- --- tasks -----------------------------------------------------------------------------------

-- A task as the API takes it: what somebody decided, without what became of it; the group of
-- its target by path.
CREATE FUNCTION redoubt.task_short(task jsonb) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_strip_nulls(jsonb_object_agg(t.key, CASE
        WHEN t.key = 'target' AND t.value ? 'group' THEN t.value || jsonb_build_object('group',
            coalesce((SELECT g.path FROM redoubt.device_group g
                      WHERE g.id::text = lower(coalesce(t.value #>> '{group,id}',
                                                        t.value ->> 'group'))),
                     t.value ->> 'group'))
        ELSE t.value END))
    FROM jsonb_each(task) t
    WHERE t.key IN ('name', 'type', 'params', 'target', 'schedule', 'priority', 'expires_min',
                    'enabled')
$$;

CREATE FUNCTION redoubt.task_at(actor jsonb, id uuid) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN redoubt.task_short(
        redoubt.api_task_get(actor, jsonb_build_object('id', id), '{}', '{}') -> 'body');
END $$;

CREATE FUNCTION redoubt.task_named(name text) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT t.id FROM redoubt.task t
            WHERE t.name = task_named.name AND t.deleted_at IS NULL);
END $$;

-- One task of the document.
CREATE FUNCTION redoubt.apply_task(actor jsonb, wanted jsonb, at text)
RETURNS SETOF redoubt.apply_row LANGUAGE plpgsql AS $$
DECLARE
    name   constant text := wanted ->> 'name';
    id     uuid := redoubt.task_named(name);
    before jsonb;
    after  jsonb;
    why    text;
BEGIN
    IF id IS NULL THEN
        why := redoubt.apply_call('api_task_create', actor, '{}', wanted);
    ELSE
        before := redoubt.task_at(actor, id);
        why := redoubt.apply_call('api_task_patch', actor, jsonb_build_object('id', id),
            -- What the document leaves out is what a new task would have.
            '{"params": {}, "schedule": null, "priority": 5, "expires_min": 10080,'
            ' "enabled": true}'::jsonb || wanted);
    END IF;
    IF why IS NOT NULL THEN
        RETURN NEXT redoubt.apply_problem(at, why);
        RETURN;
    END IF;
    after := redoubt.task_at(actor, redoubt.task_named(name));
    IF after = before THEN
        RAISE EXCEPTION USING ERRCODE = 'RHSAM';
    END IF;
    RETURN NEXT redoubt.apply_change('task ' || name, before, after, NULL);
EXCEPTION WHEN SQLSTATE 'RHSAM' THEN
    RETURN;
END $$;

CREATE FUNCTION redoubt.apply_tasks(actor jsonb, wanted jsonb)
RETURNS SETOF redoubt.apply_row LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    FOR t IN SELECT e.v, format('tasks[%s]', e.n - 1) AS at,
                    count(*) OVER (PARTITION BY e.v ->> 'name') AS alike
             FROM jsonb_array_elements(wanted) WITH ORDINALITY AS e (v, n) ORDER BY e.n LOOP
        IF jsonb_typeof(t.v) <> 'object' OR jsonb_typeof(t.v -> 'name') IS DISTINCT FROM 'string'
        THEN
            RETURN NEXT redoubt.apply_problem(t.at, 'must be an object with a name');
        ELSIF t.alike > 1 THEN
            RETURN NEXT redoubt.apply_problem(t.at,
                                              format('"%s" is there twice', t.v ->> 'name'));
        ELSE
            RETURN QUERY SELECT * FROM redoubt.apply_task(actor, t.v,
                format('%s (%s)', t.at, t.v ->> 'name'));
        END IF;
    END LOOP;
END $$;

-- Tasks with a schedule only: others belong to whoever started them.
CREATE FUNCTION redoubt.prune_tasks(actor jsonb, wanted jsonb)
RETURNS SETOF redoubt.apply_row LANGUAGE plpgsql AS $$
DECLARE
    t      record;
    before jsonb;
    why    text;
BEGIN
    FOR t IN SELECT o.id, o.name FROM redoubt.task o
             WHERE o.deleted_at IS NULL
               AND NOT EXISTS (SELECT FROM jsonb_array_elements(wanted) AS e (v)
                               WHERE e.v ->> 'name' = o.name)
             ORDER BY o.name, o.id LOOP
        before := redoubt.task_at(actor, t.id);
        CONTINUE WHEN NOT before ? 'schedule';
        why := redoubt.apply_call('api_task_delete', actor, jsonb_build_object('id', t.id), '{}');
        IF why IS NULL THEN
            RETURN NEXT redoubt.apply_change('task ' || t.name, before, NULL, NULL);
        ELSE
            RETURN NEXT redoubt.apply_problem(format('tasks (without %s)', t.name), why);
        END IF;
    END LOOP;
END $$;

-- --- the whole -------------------------------------------------------------------------------

-- In an order in which each finds what it needs, and nothing that it is in the way of.
CREATE FUNCTION redoubt.apply_all(actor jsonb, d jsonb, prune boolean)
RETURNS SETOF redoubt.apply_row LANGUAGE plpgsql AS $$
BEGIN
    IF d ? 'groups' THEN
        RETURN QUERY SELECT * FROM redoubt.apply_groups(actor, d -> 'groups');
    END IF;
    IF d ? 'policies' THEN
        RETURN QUERY SELECT * FROM redoubt.apply_policies(actor, d -> 'policies', prune);
    END IF;
    IF d ? 'rules' THEN
        RETURN QUERY SELECT * FROM redoubt.apply_whole(actor, 'rules', d -> 'rules');
    END IF;
    IF d ? 'tasks' THEN
        RETURN QUERY SELECT * FROM redoubt.apply_tasks(actor, d -> 'tasks');
    END IF;
    IF d ? 'retention' THEN
        RETURN QUERY SELECT * FROM redoubt.apply_whole(actor, 'retention', d -> 'retention');
    END IF;
    IF prune AND d ? 'tasks' THEN
        RETURN QUERY SELECT * FROM redoubt.prune_tasks(actor, d -> 'tasks');
    END IF;
    IF prune AND d ? 'groups' THEN
        RETURN QUERY SELECT * FROM redoubt.prune_groups(actor, d -> 'groups');
    END IF;
END $$;

-- What is wrong with the document as a whole, a line each; NULL: nothing.
CREATE FUNCTION redoubt.apply_shape(d jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT string_agg(x.why, E'\n' ORDER BY x.why)
    FROM (SELECT CASE
              WHEN k.kind IS NULL THEN format('%s: is not known here', left(m.key, 80))
              WHEN jsonb_typeof(m.value) <> k.kind
                  THEN format('%s: must be of the type %s', m.key, k.kind)
              WHEN m.key = 'version' AND m.value <> '1'
                  THEN 'version: must be 1; this server knows no other'
              WHEN k.kind = 'array' AND jsonb_array_length(m.value) > 10000
                  THEN format('%s: may have at most 10,000 entries', m.key) END AS why
          FROM jsonb_each(d) m
          LEFT JOIN (VALUES ('version', 'number'), ('prune', 'boolean'), ('groups', 'array'),
                            ('policies', 'object'), ('rules', 'array'), ('tasks', 'array'),
                            ('retention', 'object')) AS k (key, kind) ON k.key = m.key) x
$$;

CREATE FUNCTION redoubt.apply_refuse(why text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF why IS NOT NULL THEN
        PERFORM redoubt.api_refuse(422, 'The document cannot be applied', why,
            'Nothing was changed. Correct it and apply it again.', 'apply_invalid');
    END IF;
END $$;

CREATE FUNCTION redoubt.api_apply(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    dry      constant boolean := coalesce(query ->> 'dry_run', '0') IN ('1', 'true');
    problems text;
    changes  jsonb;
BEGIN
    PERFORM redoubt.check_epoch();
    PERFORM redoubt.require(actor, 'administrator', NULL);
    IF coalesce(query ->> 'dry_run', '0') NOT IN ('0', '1', 'true', 'false') THEN
        PERFORM redoubt.api_refuse(400, 'dry_run is wrong', 'It must be 0 or 1.', '');
    ELSIF jsonb_typeof(body) IS DISTINCT FROM 'object' THEN
        PERFORM redoubt.api_refuse(400, 'The body is wrong', 'It must be a JSON object.', '');
    END IF;
    PERFORM redoubt.apply_refuse(redoubt.apply_shape(body));
    PERFORM redoubt.lock_tree();
    BEGIN
        SELECT string_agg(r.problem, E'\n'),
               coalesce(jsonb_agg(jsonb_build_object('action', r.action, 'object', r.object,
                   'before', r.before, 'after', r.after)) FILTER (WHERE r.problem IS NULL), '[]')
        INTO problems, changes
        FROM redoubt.apply_all(actor, body, coalesce((body ->> 'prune')::boolean, false)) r;
        IF dry THEN
            RAISE EXCEPTION USING ERRCODE = 'RHDRY';
        END IF;
    EXCEPTION WHEN SQLSTATE 'RHDRY' THEN
        NULL; -- all of it is taken back; the variables stay
    END;
    PERFORM redoubt.apply_refuse(problems);
    RETURN jsonb_build_object('status', 200, 'body',
                              jsonb_build_object('dry_run', dry, 'changes', changes));
END $$;

CREATE FUNCTION redoubt.api_export(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    IF jsonb_typeof(actor -> 'scope') = 'array' THEN
        PERFORM redoubt.api_refuse(403, 'Not allowed',
            'The export is of the whole installation; this token is limited to groups.',
            'Use a token without a scope.');
    END IF;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'version', 1,
        'groups', (SELECT coalesce(jsonb_agg(g.path ORDER BY g.path), '[]')
                   FROM redoubt.device_group g WHERE g.path <> '/'),
        'policies', (SELECT coalesce(jsonb_object_agg(g.path, redoubt.policy_short(p.settings)),
                                     '{}')
                     FROM redoubt.policy p JOIN redoubt.device_group g ON g.id = p.group_id
                     WHERE p.settings <> '{}'),
        'rules', redoubt.export_whole(actor, 'rules'),
        'tasks', (SELECT coalesce(jsonb_agg(t.task ORDER BY t.task ->> 'name', t.id), '[]')
                  FROM (SELECT o.id, redoubt.task_at(actor, o.id) AS task
                        FROM redoubt.task o WHERE o.deleted_at IS NULL) t
                  WHERE t.task ? 'schedule'),
        'retention', redoubt.export_whole(actor, 'retention')));
END $$;
