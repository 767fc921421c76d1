-- The API of groups, policies, rules and devices.
-- works-since: 1
--
-- See 0008_api.sql for what these functions are called with.  A group is named by its id or its
-- path; what an actor may not see is not found.  Changes of the tree come one at a time
-- (lock_tree), and devices learn of them by what recompute() writes.

-- --- the API: what its functions share -------------------------------------------------------

-- Refuses a query with something that the list does not know.
CREATE FUNCTION redoubt.api_query(query jsonb, allowed text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    wrong text;
BEGIN
    SELECT k INTO wrong FROM jsonb_object_keys(query) AS k
    WHERE k <> ALL (allowed || ARRAY['limit', 'cursor']) LIMIT 1;
    IF FOUND THEN
        PERFORM redoubt.api_refuse(400, 'The query is wrong',
            format('"%s" is not known here.', left(wrong, 100)),
            'Known are: ' || array_to_string(allowed || ARRAY['limit', 'cursor'], ', ') || '.');
    END IF;
END $$;

-- A text as a UUID; NULL if it is none.
CREATE FUNCTION redoubt.as_uuid(given text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN given ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN given::uuid END
$$;

-- The group of that id or path, which the actor may use with min_role.
CREATE FUNCTION redoubt.api_group(actor jsonb, ref text, min_role text)
RETURNS redoubt.device_group LANGUAGE plpgsql STABLE AS $$
DECLARE
    g redoubt.device_group;
BEGIN
    SELECT * INTO g FROM redoubt.device_group x WHERE x.id = redoubt.as_uuid(ref);
    IF NOT FOUND THEN
        SELECT * INTO g FROM redoubt.device_group x WHERE x.path = ref;
    END IF;
    IF g.id IS NULL THEN
        PERFORM redoubt.api_refuse(404, 'Not found',
            format('There is no group "%s".', left(ref, 200)),
            'Groups are named by their id, or by their path as in "/Servers/Linux".',
            'group_unknown');
    END IF;
    PERFORM redoubt.require(actor, min_role, g.id);
    RETURN g;
END $$;

CREATE FUNCTION redoubt.group_brief(id uuid) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', g.id, 'path', g.path)
    FROM redoubt.device_group g WHERE g.id = group_brief.id
$$;

-- --- the API: groups ---------------------------------------------------------------------------

CREATE FUNCTION redoubt.group_json(g redoubt.device_group) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', g.id, 'name', g.name, 'path', g.path,
        'parent', g.parent_id, 'depth', cardinality(g.lineage) - 1,
        'devices', (SELECT count(*) FROM redoubt.device d WHERE d.group_id = g.id),
        'groups', (SELECT count(*) FROM redoubt.device_group c WHERE c.parent_id = g.id),
        'settings', (SELECT count(*) FROM redoubt.policy p, jsonb_object_keys(p.settings)
                     WHERE p.group_id = g.id),
        'created_at', g.created_at, 'version', g.version)
$$;

CREATE FUNCTION redoubt.group_answer(status integer, g redoubt.device_group) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('status', status, 'body', redoubt.group_json(g),
                              'version', g.version)
$$;

-- Names become parts of paths, of command lines and of tables for people.
CREATE FUNCTION redoubt.group_name(name jsonb) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    t   text := name #>> '{}';
    why text;
BEGIN
    IF jsonb_typeof(name) IS DISTINCT FROM 'string' OR length(t) NOT BETWEEN 1 AND 64 THEN
        why := 'It must be a text of 1 to 64 characters.';
    ELSIF t ~ E'[\\x01-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff]' THEN
        why := 'It may not contain control characters or invisible ones.';
    ELSIF t ~ E'[/\\\\"''`;<>|*?%$]' THEN
        why := E'It may not contain / \\ " '' ` ; < > | * ? % or $.';
    ELSIF t IN ('.', '..') OR t <> btrim(t) THEN
        why := 'It may not be "." or "..", nor begin or end with a blank.';
    END IF;
    IF why IS NOT NULL THEN
        PERFORM redoubt.api_refuse(400, 'The name of the group is wrong', why, '',
                                   'group_name');
    END IF;
    RETURN t;
END $$;

CREATE FUNCTION redoubt.group_path_free(path text) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF EXISTS (SELECT FROM redoubt.device_group g WHERE g.path = group_path_free.path) THEN
        PERFORM redoubt.api_refuse(409, 'The group exists',
            format('There is a group "%s" already.', group_path_free.path), '', 'group_exists');
    END IF;
END $$;

CREATE FUNCTION redoubt.group_too_deep() RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM redoubt.api_refuse(409, 'The groups would be too deep',
        'Below the root there may be 15 levels of groups.', '', 'group_too_deep');
END $$;

CREATE FUNCTION redoubt.api_groups_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    n     integer := redoubt.api_limit(query);
    after text := query ->> 'cursor';
    mine  uuid[] := redoubt.scope_groups(actor);
    top   uuid;
    items jsonb;
    last  text;
    more  boolean;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    PERFORM redoubt.api_query(query, ARRAY['below']);
    IF query ? 'below' THEN
        top := (redoubt.api_group(actor, query ->> 'below', 'auditor')).id;
    END IF;
    WITH page AS (
        SELECT g, g.path, row_number() OVER (ORDER BY g.path) AS i
        FROM redoubt.device_group g
        WHERE (after IS NULL OR g.path > after COLLATE "C")
          AND (mine IS NULL OR g.id = ANY (mine))
          AND (top IS NULL OR g.lineage @> ARRAY[top])
        ORDER BY g.path LIMIT n + 1)
    SELECT coalesce(jsonb_agg(redoubt.group_json(p.g) ORDER BY p.i) FILTER (WHERE p.i <= n),
                    '[]'),
           max(p.path) FILTER (WHERE p.i = n), count(*) > n
    INTO items, last, more FROM page p;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'items', items, 'next', CASE WHEN more THEN last END));
END $$;

CREATE FUNCTION redoubt.api_group_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN redoubt.group_answer(200, redoubt.api_group(actor, path ->> 'id', 'auditor'));
END $$;

-- body: name, parent (id or path; without it the root).
CREATE FUNCTION redoubt.api_group_create(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    called text;
    above  redoubt.device_group;
    g      redoubt.device_group;
BEGIN
    PERFORM redoubt.lock_tree();
    PERFORM redoubt.require(actor, 'administrator');
    PERFORM redoubt.api_members(body, ARRAY['name', 'parent']);
    called := redoubt.group_name(body -> 'name');
    above := redoubt.api_group(actor, coalesce(body ->> 'parent', '/'), 'administrator');
    IF cardinality(above.lineage) >= 16 THEN
        PERFORM redoubt.group_too_deep();
    ELSIF (SELECT count(*) FROM redoubt.device_group) >= 10000 THEN
        PERFORM redoubt.api_refuse(409, 'There are too many groups',
            'There may be 10,000 groups.', '', 'group_limit');
    END IF;
    g.id := gen_random_uuid();
    g.path := rtrim(above.path, '/') || '/' || called;
    PERFORM redoubt.group_path_free(g.path);
    INSERT INTO redoubt.device_group (id, parent_id, name, path, lineage)
    VALUES (g.id, above.id, called, g.path, above.lineage || g.id) RETURNING * INTO g;
    INSERT INTO redoubt.policy (group_id) VALUES (g.id);
    PERFORM redoubt.recompute(g.id);
    PERFORM redoubt.audit_add(actor, 'group_create', g.path, NULL, redoubt.group_json(g));
    RETURN redoubt.group_answer(201, g);
END $$;

-- Renames and moves; the groups below come along.  body: name, parent.
CREATE FUNCTION redoubt.api_group_patch(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    before redoubt.device_group;
    g      redoubt.device_group;
    above  redoubt.device_group;
    called text;
    target text;
    levels integer;
BEGIN
    PERFORM redoubt.lock_tree();
    before := redoubt.api_group(actor, path ->> 'id', 'administrator');
    PERFORM redoubt.api_members(body, ARRAY['name', 'parent']);
    IF before.id = redoubt.root_group() THEN
        PERFORM redoubt.api_refuse(409, 'The root cannot be changed',
            'The group "/" keeps its name and its place.', '', 'group_root');
    END IF;
    called := CASE WHEN body ? 'name' THEN redoubt.group_name(body -> 'name')
                   ELSE before.name END;
    IF body ? 'parent' AND redoubt.as_uuid(body ->> 'parent') IS DISTINCT FROM before.parent_id
    THEN
        above := redoubt.api_group(actor, coalesce(body ->> 'parent', '/'), 'administrator');
    ELSE
        SELECT * INTO above FROM redoubt.device_group x WHERE x.id = before.parent_id;
    END IF;
    IF before.id = ANY (above.lineage) THEN
        PERFORM redoubt.api_refuse(409, 'The group cannot be below itself',
            format('"%s" is "%s" itself, or below it.', above.path, before.path), '',
            'group_cycle');
    END IF;
    SELECT max(cardinality(x.lineage)) - cardinality(before.lineage) + 1 INTO levels
    FROM redoubt.device_group x WHERE x.lineage @> ARRAY[before.id];
    IF cardinality(above.lineage) + levels > 16 THEN
        PERFORM redoubt.group_too_deep();
    END IF;
    target := rtrim(above.path, '/') || '/' || called;
    IF target <> before.path THEN
        PERFORM redoubt.group_path_free(target);
        UPDATE redoubt.device_group x
        SET path = target || substr(x.path, length(before.path) + 1),
            lineage = above.lineage || x.lineage[cardinality(before.lineage):],
            name = CASE WHEN x.id = before.id THEN called ELSE x.name END,
            parent_id = CASE WHEN x.id = before.id THEN above.id ELSE x.parent_id END,
            version = x.version + 1
        WHERE x.lineage @> ARRAY[before.id];
        SELECT * INTO g FROM redoubt.device_group x WHERE x.id = before.id;
        PERFORM redoubt.recompute(g.id);
        PERFORM pg_notify('redoubt', '{"t":"policy"}');
        PERFORM redoubt.audit_add(actor, 'group_change', g.path, redoubt.group_json(before),
                                  redoubt.group_json(g));
    END IF;
    RETURN redoubt.group_answer(200, coalesce(g, before));
END $$;

CREATE FUNCTION redoubt.api_group_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    g   redoubt.device_group;
    why text;
BEGIN
    PERFORM redoubt.lock_tree();
    g := redoubt.api_group(actor, path ->> 'id', 'administrator');
    why := CASE
        WHEN g.id = redoubt.root_group() THEN 'It is the root.'
        WHEN EXISTS (SELECT FROM redoubt.device_group c WHERE c.parent_id = g.id)
            THEN 'There are groups below it.'
        WHEN EXISTS (SELECT FROM redoubt.device d WHERE d.group_id = g.id)
            THEN 'There are devices in it.'
        WHEN EXISTS (SELECT FROM redoubt.move_rule r WHERE r.group_id = g.id)
            THEN 'A rule moves devices into it.' END;
    IF why IS NOT NULL THEN
        PERFORM redoubt.api_refuse(409, 'The group cannot be deleted',
            format('"%s" is in use. %s', g.path, why), 'Only an empty group can be deleted.',
            'group_in_use');
    END IF;
    PERFORM redoubt.audit_add(actor, 'group_delete', g.path, redoubt.group_json(g), NULL);
    BEGIN
        DELETE FROM redoubt.device_group x WHERE x.id = g.id;
    EXCEPTION WHEN foreign_key_violation THEN
        PERFORM redoubt.api_refuse(409, 'The group cannot be deleted',
            format('"%s" is in use.', g.path), '', 'group_in_use');
    END;
    PERFORM pg_notify('redoubt', '{"t":"policy"}');
    RETURN jsonb_build_object('status', 200, 'body', '{}'::jsonb);
END $$;

-- --- the API: policies -------------------------------------------------------------------------

-- What is set for a group itself, and which of it a group above overrules.
CREATE FUNCTION redoubt.policy_answer(g redoubt.device_group) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('status', 200, 'version', p.version, 'body', jsonb_build_object(
        'group', redoubt.group_brief(g.id), 'settings', p.settings,
        'overruled', coalesce((
            SELECT jsonb_agg(k ORDER BY k) FROM jsonb_object_keys(p.settings) AS k
            WHERE e.sources -> k ->> 'group' <> g.id::text), '[]'),
        'changed_at', p.changed_at, 'version', p.version))
    FROM redoubt.policy p JOIN redoubt.effective e USING (group_id)
    WHERE p.group_id = g.id
$$;

CREATE FUNCTION redoubt.api_policy_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN redoubt.policy_answer(redoubt.api_group(actor, path ->> 'id', 'auditor'));
END $$;

-- Refuses settings that are not valid, with the path of each error.
CREATE FUNCTION redoubt.policy_check(settings jsonb) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    why text;
BEGIN
    SELECT string_agg(CASE p.path WHEN '' THEN 'settings' ELSE p.path END || ': ' || p.why,
                      E'\n' ORDER BY p.path)
    INTO why FROM redoubt.policy_problems(settings) p;
    IF why IS NOT NULL THEN
        PERFORM redoubt.api_refuse(422, 'The policy is not valid', why,
            'Nothing was changed. `redoubt policy catalogue` (GET /v1/settings) lists '
            'what may be set.', 'policy_invalid');
    END IF;
END $$;

CREATE FUNCTION redoubt.policy_store(actor jsonb, g redoubt.device_group, wanted jsonb,
                                     act text)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    before jsonb;
BEGIN
    SELECT p.settings INTO before FROM redoubt.policy p WHERE p.group_id = g.id;
    IF before <> wanted THEN
        UPDATE redoubt.policy p
        SET settings = wanted, version = p.version + 1, changed_at = now()
        WHERE p.group_id = g.id;
        PERFORM redoubt.recompute(g.id);
        PERFORM redoubt.audit_add(actor, act, g.path, before, wanted);
    END IF;
    RETURN redoubt.policy_answer(g);
END $$;

-- body: {"settings": {"key": value | {"value", "locked"}}}, all that is to be set.
CREATE FUNCTION redoubt.api_policy_put(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    g redoubt.device_group;
BEGIN
    PERFORM redoubt.lock_tree();
    g := redoubt.api_group(actor, path ->> 'id', 'administrator');
    PERFORM redoubt.api_members(body, ARRAY['settings']);
    PERFORM redoubt.policy_check(body -> 'settings');
    RETURN redoubt.policy_store(actor, g, redoubt.policy_normal(body -> 'settings'),
                                'policy_change');
END $$;

CREATE FUNCTION redoubt.api_policy_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    g redoubt.device_group;
BEGIN
    PERFORM redoubt.lock_tree();
    g := redoubt.api_group(actor, path ->> 'id', 'administrator');
    RETURN redoubt.policy_store(actor, g, '{}', 'policy_delete');
END $$;

-- Each setting with its value and where that comes from; "from" null: the default.
CREATE FUNCTION redoubt.effective_json(e redoubt.effective) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_object_agg(v.key, jsonb_build_object('value', v.value,
        'from', g.path, 'locked', coalesce((e.sources -> v.key ->> 'locked')::boolean, false)))
    FROM jsonb_each(e.settings) v
    LEFT JOIN redoubt.device_group g ON g.id = (e.sources -> v.key ->> 'group')::uuid
$$;

CREATE FUNCTION redoubt.api_effective_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    g redoubt.device_group := redoubt.api_group(actor, path ->> 'id', 'auditor');
    e redoubt.effective;
BEGIN
    SELECT * INTO STRICT e FROM redoubt.effective x WHERE x.group_id = g.id;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'group', redoubt.group_brief(g.id), 'hash', e.hash,
        'settings', redoubt.effective_json(e)));
END $$;

CREATE FUNCTION redoubt.api_settings_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('next', NULL, 'items',
        (SELECT jsonb_agg(to_jsonb(s) - 'position' ORDER BY s.position)
         FROM redoubt.setting s)));
END $$;

-- --- the API: rules ----------------------------------------------------------------------------

CREATE FUNCTION redoubt.api_rules_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    list redoubt.rule_list;
BEGIN
    PERFORM redoubt.require(actor, 'auditor', NULL);
    SELECT * INTO STRICT list FROM redoubt.rule_list;
    RETURN jsonb_build_object('status', 200, 'version', list.version,
        'body', jsonb_build_object('version', list.version, 'changed_at', list.changed_at,
            'rules', (SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                          'name', nullif(r.name, ''), 'tag', r.tag, 'address', r.address, 'os', r.os,
                          'group', redoubt.group_brief(r.group_id), 'override', r.override))
                          ORDER BY r.position), '[]')
                      FROM redoubt.move_rule r)));
END $$;

-- What is wrong with one rule; NULL: nothing.
CREATE FUNCTION redoubt.rule_problem(rule jsonb) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    at  inet;
    key text;
BEGIN
    IF jsonb_typeof(rule) <> 'object' THEN
        RETURN 'it must be an object';
    ELSIF rule - ARRAY['name', 'tag', 'address', 'os', 'group', 'override'] <> '{}' THEN
        RETURN 'it may have name, tag, address, os, group and override only';
    ELSIF NOT rule ?| ARRAY['tag', 'address', 'os'] THEN
        RETURN 'it needs a tag, an address or an os';
    ELSIF jsonb_typeof(coalesce(rule -> 'override', 'false')) <> 'boolean' THEN
        RETURN 'override must be true or false';
    END IF;
    FOREACH key IN ARRAY ARRAY['name', 'tag', 'address', 'os'] LOOP
        IF rule ? key AND (jsonb_typeof(rule -> key) <> 'string'
                           OR rule ->> key !~ '^[^[:cntrl:]]{1,64}$') THEN
            RETURN key || ' must be a text of 1 to 64 characters';
        END IF;
    END LOOP;
    IF rule ? 'address' THEN
        BEGIN
            at := (rule ->> 'address')::inet;
        EXCEPTION WHEN invalid_text_representation THEN
            RETURN 'address must be an address or a range like 192.0.2.0/24';
        END;
    END IF;
    RETURN NULL;
END $$;

-- body: {"rules": [{"name"?, "tag"?, "address"?, "os"?, "group": id or path, "override"?}]}, all rules
-- in their order.  Devices are moved by the next calls of judge_stale.
CREATE FUNCTION redoubt.api_rules_put(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    before jsonb;
    after  jsonb;
    why    text;
    r      record;
BEGIN
    PERFORM redoubt.lock_tree();
    PERFORM redoubt.require(actor, 'administrator', NULL);
    PERFORM redoubt.api_members(body, ARRAY['rules']);
    IF jsonb_typeof(body -> 'rules') IS DISTINCT FROM 'array'
       OR jsonb_array_length(body -> 'rules') > 100 THEN
        PERFORM redoubt.api_refuse(400, 'The rules are wrong',
            '"rules" must be a list of at most 100 rules.', '', 'rule_invalid');
    END IF;
    before := redoubt.api_rules_get(actor, path, '{}', NULL) #> '{body,rules}';
    DELETE FROM redoubt.move_rule;
    FOR r IN SELECT x.rule, x.n FROM jsonb_array_elements(body -> 'rules')
                    WITH ORDINALITY AS x (rule, n) LOOP
        why := redoubt.rule_problem(r.rule);
        IF why IS NOT NULL THEN
            PERFORM redoubt.api_refuse(422, 'A rule is not valid',
                format('Rule %s: %s.', r.n, why), 'Nothing was changed.', 'rule_invalid');
        END IF;
        INSERT INTO redoubt.move_rule (position, name, tag, address, os, group_id,
                                       override)
        VALUES (r.n, coalesce(r.rule ->> 'name', ''), r.rule ->> 'tag', (r.rule ->> 'address')::inet, r.rule ->> 'os',
                (redoubt.api_group(actor, coalesce(r.rule #>> '{group,id}', r.rule ->> 'group'),
                                   'administrator')).id,
                coalesce((r.rule -> 'override')::boolean, false));
    END LOOP;
    UPDATE redoubt.rule_list SET version = version + 1, changed_at = now();
    after := redoubt.api_rules_get(actor, path, '{}', NULL);
    IF before <> after #> '{body,rules}' THEN
        PERFORM redoubt.judge_soon((SELECT array_agg(g.id) FROM redoubt.device_group g));
        PERFORM redoubt.audit_add(actor, 'rules_change', 'rules', before,
                                  after #> '{body,rules}');
    END IF;
    RETURN after;
END $$;

-- --- the API: devices --------------------------------------------------------------------------

CREATE FUNCTION redoubt.device_connected(d redoubt.device) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT d.connected_epoch IS NOT NULL
           AND d.connected_epoch = (SELECT f.epoch FROM redoubt.fence f)
$$;

CREATE FUNCTION redoubt.device_json(d redoubt.device) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', d.id,
        'name', CASE d.label WHEN '' THEN d.name ELSE d.label END,
        'group', jsonb_build_object('id', g.id, 'path', g.path), 'by_hand', d.group_by_hand,
        'tags', to_jsonb(d.tags), 'state', d.state, 'status', d.status, 'reasons', d.reasons,
        'status_at', d.status_at, 'connected', redoubt.device_connected(d),
        'address', host(d.address), 'first_seen', d.first_seen, 'last_seen', d.last_seen,
        'policy', jsonb_build_object('state', redoubt.policy_state(d, e.hash),
                                     'error', d.policy_error),
        'version', d.version)
    FROM redoubt.device_group g JOIN redoubt.effective e ON e.group_id = g.id
    WHERE g.id = d.group_id
$$;

-- The device of the path, which the actor may use with min_role.
CREATE FUNCTION redoubt.api_device(actor jsonb, path jsonb, min_role text)
RETURNS redoubt.device LANGUAGE plpgsql STABLE AS $$
DECLARE
    d redoubt.device;
BEGIN
    SELECT * INTO d FROM redoubt.device x WHERE x.id = redoubt.as_uuid(path ->> 'id');
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(404, 'Not found',
            format('There is no device "%s".', left(path ->> 'id', 100)),
            'Devices are named by their id.', 'device_unknown');
    END IF;
    PERFORM redoubt.require(actor, min_role, d.group_id);
    RETURN d;
END $$;

-- A filter of the list that is one of these words, or not there.
CREATE FUNCTION redoubt.query_word(query jsonb, key text, words text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF query ? key AND (query ->> key) <> ALL (words) THEN
        PERFORM redoubt.api_refuse(400, 'The query is wrong',
            format('%s must be one of: %s.', key, array_to_string(words, ', ')), '');
    END IF;
    RETURN (query ->> key);
END $$;

CREATE FUNCTION redoubt.api_devices_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    n       integer := redoubt.api_limit(query);
    after   uuid := redoubt.as_uuid(query ->> 'cursor');
    within  uuid[] := redoubt.scope_groups(actor);
    g       redoubt.device_group;
    status_ text := redoubt.query_word(query, 'status', '{ok,warning,critical,unknown}');
    state_  text := redoubt.query_word(query, 'state', '{active,pending,revoked}');
    online  boolean := redoubt.query_word(query, 'connected', '{true,false}')::boolean;
    policy_ text := redoubt.query_word(query, 'policy', '{none,applying,applied,failed,drift}');
    here    bigint := (SELECT f.epoch FROM redoubt.fence f);
    words   text := lower(query ->> 'q');
    tagged  text := query ->> 'tag';
    items   jsonb;
    last    uuid;
    more    boolean;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    PERFORM redoubt.api_query(query, ARRAY['group', 'subgroups', 'state', 'status', 'tag', 'q',
                                           'connected', 'policy']);
    IF query ? 'cursor' AND after IS NULL THEN
        PERFORM redoubt.api_refuse(400, 'The cursor is wrong',
            'A cursor is the "next" of the page before.', '');
    END IF;
    IF query ? 'group' THEN
        g := redoubt.api_group(actor, query ->> 'group', 'auditor');
        SELECT array_agg(x.id) INTO within FROM redoubt.device_group x
        WHERE CASE WHEN redoubt.query_word(query, 'subgroups', '{true,false}') = 'false'
                   THEN x.id = g.id ELSE x.lineage @> ARRAY[g.id] END;
    END IF;
    WITH page AS (
        SELECT d, d.id, row_number() OVER (ORDER BY d.id) AS i
        FROM redoubt.device d
        WHERE (after IS NULL OR d.id > after)
          AND (within IS NULL OR d.group_id = ANY (within))
          AND (status_ IS NULL OR d.status = status_)
          AND (state_ IS NULL OR d.state = state_)
          AND (tagged IS NULL OR d.tags @> ARRAY[tagged])
          AND (online IS NULL OR (d.connected_epoch IS NOT DISTINCT FROM here) = online)
          AND (policy_ IS NULL OR policy_ = redoubt.policy_state(d,
                   (SELECT e.hash FROM redoubt.effective e WHERE e.group_id = d.group_id)))
          AND (words IS NULL OR strpos(lower(d.name), words) > 0
               OR strpos(lower(d.label), words) > 0 OR strpos(d.id::text, words) > 0
               OR strpos(host(d.address), words) > 0)
        ORDER BY d.id LIMIT n + 1)
    SELECT coalesce(jsonb_agg(redoubt.device_json(p.d) ORDER BY p.i) FILTER (WHERE p.i <= n),
                    '[]'),
           (array_agg(p.id) FILTER (WHERE p.i = n))[1], count(*) > n
    INTO items, last, more FROM page p;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'items', items, 'next', CASE WHEN more THEN last END));
END $$;

CREATE FUNCTION redoubt.device_answer(d redoubt.device) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('status', 200, 'version', d.version,
        'body', redoubt.device_json(d) || jsonb_build_object(
            'description', d.description, 'health', d.health, 'told_name', d.name,
            'certificate', jsonb_build_object('serial', d.serial, 'not_after', d.not_after),
            'connection', CASE WHEN redoubt.device_connected(d) THEN jsonb_build_object(
                'node', d.connected_node, 'since', d.connected_at) END))
$$;

CREATE FUNCTION redoubt.api_device_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN redoubt.device_answer(redoubt.api_device(actor, path, 'auditor'));
END $$;

CREATE FUNCTION redoubt.device_tags(given jsonb) RETURNS text[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    t    text;
    tags text[];
BEGIN
    IF jsonb_typeof(given) IS DISTINCT FROM 'array' OR jsonb_array_length(given) > 32 THEN
        PERFORM redoubt.api_refuse(400, 'tags are wrong',
            'They must be a list of at most 32 tags.', '');
    END IF;
    FOR t IN SELECT jsonb_array_elements_text(given) LOOP
        IF t IS NULL OR t !~ '^[A-Za-z0-9][A-Za-z0-9._:=-]{0,63}$' THEN
            PERFORM redoubt.api_refuse(400, 'tags are wrong',
                'A tag has 1 to 64 of the characters A-Z a-z 0-9 . _ : = - and begins with a '
                'letter or digit.', '');
        END IF;
    END LOOP;
    SELECT coalesce(array_agg(DISTINCT x ORDER BY x), '{}') INTO tags
    FROM jsonb_array_elements_text(given) AS x;
    RETURN tags;
END $$;

-- body: name ("" or null: as the device calls itself), tags, group (id or path: put there by
-- hand; null: the rules may move it again).
CREATE FUNCTION redoubt.api_device_patch(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    before redoubt.device;
    d      redoubt.device;
BEGIN
    PERFORM redoubt.lock_tree(); -- a policy that changes now either sees it moved, or waits
    PERFORM 1 FROM redoubt.device x WHERE x.id = redoubt.as_uuid(path ->> 'id')
    FOR NO KEY UPDATE;
    before := redoubt.api_device(actor, path, 'operator');
    d := before;
    PERFORM redoubt.api_members(body, ARRAY['name', 'tags', 'group']);
    IF body ? 'name' THEN
        d.label := coalesce(body ->> 'name', '');
        IF jsonb_typeof(body -> 'name') NOT IN ('string', 'null')
           OR d.label !~ '^[^[:cntrl:]]{0,100}$' THEN
            PERFORM redoubt.api_refuse(400, 'name is wrong',
                'It must be at most 100 characters, without control characters.', '');
        END IF;
    END IF;
    IF body ? 'tags' THEN
        d.tags := redoubt.device_tags(body -> 'tags');
    END IF;
    IF body ? 'group' THEN
        d.group_by_hand := body ->> 'group' IS NOT NULL;
        IF d.group_by_hand THEN
            d.group_id := (redoubt.api_group(actor, coalesce(body #>> '{group,id}',
                                             body ->> 'group'), 'operator')).id;
        END IF;
    END IF;
    IF d IS DISTINCT FROM before THEN
        UPDATE redoubt.device x
        SET label = d.label, tags = d.tags, group_id = d.group_id,
            group_by_hand = d.group_by_hand, version = x.version + 1
        WHERE x.id = d.id;
        PERFORM redoubt.judge_devices(ARRAY[d.id]);
        SELECT * INTO STRICT d FROM redoubt.device x WHERE x.id = before.id;
        PERFORM redoubt.device_moved(ARRAY[d.id]);
        PERFORM redoubt.audit_add(actor, 'device_change', d.id::text,
            jsonb_build_object('name', before.label, 'tags', before.tags,
                               'group', redoubt.group_brief(before.group_id)),
            jsonb_build_object('name', d.label, 'tags', d.tags,
                               'group', redoubt.group_brief(d.group_id)));
    END IF;
    RETURN redoubt.device_answer(d);
END $$;

-- The device is forgotten; its certificates are revoked with it (0004).
CREATE FUNCTION redoubt.api_device_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    d redoubt.device;
BEGIN
    PERFORM redoubt.check_epoch();
    PERFORM 1 FROM redoubt.device x WHERE x.id = redoubt.as_uuid(path ->> 'id') FOR UPDATE;
    d := redoubt.api_device(actor, path, 'administrator');
    DELETE FROM redoubt.report r WHERE r.device_id = d.id;
    DELETE FROM redoubt.device x WHERE x.id = d.id;
    PERFORM redoubt.device_moved(ARRAY[d.id]);
    PERFORM redoubt.audit_add(actor, 'device_delete', d.id::text, redoubt.device_json(d), NULL);
    RETURN jsonb_build_object('status', 200, 'body', '{}'::jsonb);
END $$;

CREATE FUNCTION redoubt.api_device_policy(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    d redoubt.device := redoubt.api_device(actor, path, 'auditor');
    e redoubt.effective;
BEGIN
    SELECT * INTO STRICT e FROM redoubt.effective x WHERE x.group_id = d.group_id;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'device', d.id, 'group', redoubt.group_brief(d.group_id),
        'state', redoubt.policy_state(d, e.hash), 'error', d.policy_error, 'at', d.policy_at,
        'hash', e.hash, 'reported_hash', d.policy_hash,
        'settings', redoubt.effective_json(e)));
END $$;
