-- What the API keeps: tokens, idempotency; the one door that its calls go through.
-- works-since: 1
--
-- redoubt-manager answers each request with one call of redoubt.api_call(), which knows who
-- asks (an actor), looks at the role, and calls the function of the route:
--     redoubt.api_NAME(actor jsonb, path jsonb, query jsonb, body jsonb) RETURNS jsonb
--     {"status": 200, "body": ..., "version": n (the ETag, where there is one)}
-- A refusal is redoubt.api_refuse(); SQLSTATE RHnnn is the HTTP status.

CREATE TABLE redoubt.api_token (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name         text NOT NULL CHECK (name ~ '^[^[:cntrl:]]{1,100}$'),
    hash         bytea NOT NULL UNIQUE,
    role         text NOT NULL CHECK (role IN ('administrator', 'operator', 'auditor')),
    scope        uuid[],
    expires_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text NOT NULL,
    last_used_at timestamptz,
    revoked_at   timestamptz
);
COMMENT ON TABLE redoubt.api_token IS
    'Who may use the API over the network. Of the token itself only its SHA-256 is kept.';
COMMENT ON COLUMN redoubt.api_token.scope IS
    'Groups (and those below them) that it is limited to. NULL: the whole installation.';
CREATE INDEX api_token_by_age ON redoubt.api_token (created_at, id);
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.api_token
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

CREATE TABLE redoubt.idempotency (
    actor        text NOT NULL,
    key          text NOT NULL,
    request_hash text NOT NULL,
    reply        jsonb,
    at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (actor, key)
);
COMMENT ON TABLE redoubt.idempotency IS
    'Replies to requests with an Idempotency-Key, for 24 hours: a resend is answered with them.';
CREATE INDEX idempotency_by_age ON redoubt.idempotency (at);
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.idempotency
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- --- refusals, and what functions of the API need -----------------------------------------

-- Ends the call with this HTTP status; id is for programs, NULL: by the status.
CREATE FUNCTION redoubt.api_refuse(status integer, title text, explanation text DEFAULT '',
                                   suggestion text DEFAULT '', id text DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'RH' || status, MESSAGE = title, DETAIL = explanation,
                          HINT = suggestion, CONSTRAINT = coalesce(id, '');
END $$;

CREATE FUNCTION redoubt.role_rank(role text) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT array_position(ARRAY['auditor', 'operator', 'administrator'], role)
$$;

-- Refuses an actor whose role is not at least min_role.
CREATE FUNCTION redoubt.require(actor jsonb, min_role text) RETURNS void
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF coalesce(redoubt.role_rank(actor ->> 'role'), 0) < redoubt.role_rank(min_role) THEN
        PERFORM redoubt.api_refuse(403, 'Not allowed',
            format('This needs the role %s; %s has the role %s.', min_role, actor ->> 'name',
                   coalesce(actor ->> 'role', 'of nobody')),
            'Use a token with that role, or ask who has one.');
    END IF;
END $$;

-- The groups of an actor's scope with all those below; NULL: no limit.  For lists.
CREATE FUNCTION redoubt.scope_groups(actor jsonb) RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF jsonb_typeof(actor -> 'scope') IS DISTINCT FROM 'array' THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT coalesce(array_agg(DISTINCT g.id), '{}')
            FROM redoubt.device_group s
            JOIN redoubt.device_group g
              ON s.path = '/' OR g.path = s.path OR starts_with(g.path, s.path || '/')
            WHERE s.id IN (SELECT t.id::uuid
                           FROM jsonb_array_elements_text(actor -> 'scope') AS t (id)));
END $$;

-- Is the group in the actor's scope?
CREATE FUNCTION redoubt.may_see(actor jsonb, group_id uuid) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF jsonb_typeof(actor -> 'scope') IS DISTINCT FROM 'array' THEN
        RETURN true;
    END IF;
    RETURN coalesce(may_see.group_id = ANY (redoubt.scope_groups(actor)), false);
END $$;

-- The role, and for something of a group its scope: what an actor may not see is "not found".
-- group_id NULL: something of the whole installation, which an actor with a scope may read
-- (min_role auditor) but not change.
CREATE FUNCTION redoubt.require(actor jsonb, min_role text, group_id uuid) RETURNS void
LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM redoubt.require(actor, min_role);
    IF jsonb_typeof(actor -> 'scope') IS DISTINCT FROM 'array' THEN
        RETURN;
    END IF;
    IF require.group_id IS NULL THEN
        IF min_role <> 'auditor' THEN
            PERFORM redoubt.api_refuse(403, 'Not allowed',
                format('This concerns the whole installation; %s is limited to some groups.',
                       actor ->> 'name'),
                'Use a token without a scope.');
        END IF;
    ELSIF NOT redoubt.may_see(actor, require.group_id) THEN
        PERFORM redoubt.api_refuse(404, 'Not found',
            'There is no such object, or it is outside the scope of this token.', '');
    END IF;
END $$;

-- ?limit= of a list.
CREATE FUNCTION redoubt.api_limit(query jsonb) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    given text := coalesce(query ->> 'limit', '100');
BEGIN
    IF given !~ '^[0-9]{1,4}$' OR given::integer NOT BETWEEN 1 AND 1000 THEN
        PERFORM redoubt.api_refuse(400, 'limit is wrong',
            format('limit=%s is not a number between 1 and 1000.', left(given, 50)), '');
    END IF;
    RETURN given::integer;
END $$;

-- Refuses a body that is no object or has other members than these.
CREATE FUNCTION redoubt.api_members(body jsonb, allowed text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    wrong text;
BEGIN
    IF jsonb_typeof(body) IS DISTINCT FROM 'object' THEN
        PERFORM redoubt.api_refuse(400, 'The body is wrong', 'It must be a JSON object.', '');
    END IF;
    SELECT k INTO wrong FROM jsonb_object_keys(body) AS k WHERE k <> ALL (allowed) LIMIT 1;
    IF FOUND THEN
        PERFORM redoubt.api_refuse(400, 'The body is wrong',
            format('"%s" is not known here.', left(wrong, 100)),
            'Known are: ' || array_to_string(allowed, ', ') || '.');
    END IF;
END $$;

-- --- who asks -------------------------------------------------------------------------------

-- {"kind": "token", "hash": hex} becomes who the token is of; another actor is as it says.
CREATE FUNCTION redoubt.api_actor(actor jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    t redoubt.api_token;
BEGIN
    IF actor ->> 'kind' <> 'token' THEN
        RETURN actor;
    END IF;
    SELECT * INTO t FROM redoubt.api_token a WHERE a.hash = decode(actor ->> 'hash', 'hex');
    IF NOT FOUND THEN
        PERFORM redoubt.api_refuse(401, 'The token is not known',
            'There is no API token like this.', 'Make one with: redoubt api-token create NAME --role ROLE',
            'token_unknown');
    ELSIF t.revoked_at IS NOT NULL THEN
        PERFORM redoubt.api_refuse(401, 'The token was revoked',
            format('The token "%s" was revoked on %s.', t.name,
                   to_char(t.revoked_at, 'YYYY-MM-DD HH24:MI "UTC"')), '', 'token_revoked');
    ELSIF t.expires_at <= now() THEN
        PERFORM redoubt.api_refuse(401, 'The token has expired',
            format('The token "%s" expired on %s.', t.name,
                   to_char(t.expires_at, 'YYYY-MM-DD HH24:MI "UTC"')), '', 'token_expired');
    END IF;
    IF t.last_used_at IS NULL OR t.last_used_at < now() - interval '1 minute' THEN
        UPDATE redoubt.api_token a SET last_used_at = now() WHERE a.id = t.id;
    END IF;
    RETURN jsonb_build_object('kind', 'token', 'id', t.id, 'name', t.name, 'role', t.role,
                              'scope', to_jsonb(t.scope));
END $$;

-- --- the door -------------------------------------------------------------------------------

-- One request, one transaction.
--   path, query  {"id": ...}, texts as they were in the address, decoded
--   idem, hash   the Idempotency-Key, and the SHA-256 of what was asked with it
--   min_role     the role that the route needs
--   guard        the function that reads what this one changes; its calls come one at a time
--   if_match     the version that the object must have
CREATE FUNCTION redoubt.api_call(fn text, actor jsonb, path jsonb, query jsonb, body jsonb,
                                 idem text DEFAULT NULL, hash text DEFAULT NULL,
                                 write boolean DEFAULT false, min_role text DEFAULT 'auditor',
                                 guard text DEFAULT NULL, if_match bigint DEFAULT NULL)
RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    who    jsonb;
    owner  text;
    kept   redoubt.idempotency;
    answer jsonb;
BEGIN
    PERFORM set_config('TimeZone', 'UTC', true);
    IF write THEN
        PERFORM redoubt.check_epoch();
    END IF;
    who := redoubt.api_actor(actor);
    PERFORM redoubt.require(who, min_role);
    IF write THEN
        PERFORM redoubt.licence_gate(fn); -- 0013
    ELSE
        PERFORM set_config('transaction_read_only', 'on', true);
    END IF;

    IF write AND idem IS NOT NULL THEN
        owner := (who ->> 'kind') || ':' || coalesce(who ->> 'id', who ->> 'name');
        DELETE FROM redoubt.idempotency i
        WHERE i.actor = owner AND i.key = idem AND i.at < now() - interval '24 hours';
        -- Waits for another request with the same key to end.
        INSERT INTO redoubt.idempotency (actor, key, request_hash) VALUES (owner, idem, hash)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            SELECT * INTO STRICT kept FROM redoubt.idempotency i
            WHERE i.actor = owner AND i.key = idem;
            IF kept.request_hash <> hash THEN
                PERFORM redoubt.api_refuse(422, 'The Idempotency-Key was used before',
                    'The same key came with another request.', 'Use a new key.',
                    'idempotency_key_reused');
            END IF;
            RETURN kept.reply || '{"replayed": true}';
        END IF;
    END IF;

    IF write AND guard IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(1380208451, hashtext(guard));
        IF if_match IS NOT NULL THEN
            EXECUTE format('SELECT redoubt.%I($1, $2, $3, $4)', guard) INTO answer
                USING who, path, '{}'::jsonb, '{}'::jsonb;
            IF (answer ->> 'version')::bigint IS DISTINCT FROM if_match THEN
                PERFORM redoubt.api_refuse(412, 'It was changed meanwhile',
                    format('The present version is "v%s", not "v%s".', answer ->> 'version',
                           if_match),
                    'Read it again, and repeat the change if it still makes sense.');
            END IF;
        END IF;
    END IF;

    EXECUTE format('SELECT redoubt.%I($1, $2, $3, $4)', fn) INTO STRICT answer
        USING who, path, query, body;
    IF owner IS NOT NULL THEN
        -- Secrets are told once and never stored.
        UPDATE redoubt.idempotency i SET reply = answer #- '{body,token}'
        WHERE i.actor = owner AND i.key = idem;
    END IF;
    RETURN answer;
END $$;

-- --- API tokens -------------------------------------------------------------------------------

CREATE FUNCTION redoubt.api_token_json(t redoubt.api_token) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', t.id, 'name', t.name, 'role', t.role,
        'scope', to_jsonb(t.scope), 'created_at', t.created_at, 'created_by', t.created_by,
        'expires_at', t.expires_at, 'last_used_at', t.last_used_at,
        'revoked_at', t.revoked_at,
        'state', CASE WHEN t.revoked_at IS NOT NULL THEN 'revoked'
                      WHEN t.expires_at <= now() THEN 'expired' ELSE 'valid' END)
$$;

-- May the actor see and revoke this token?  One with a scope: only those within it.
CREATE FUNCTION redoubt.api_token_visible(actor jsonb, t redoubt.api_token) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF jsonb_typeof(actor -> 'scope') IS DISTINCT FROM 'array' THEN
        RETURN true;
    END IF;
    RETURN t.scope IS NOT NULL AND t.scope <@ redoubt.scope_groups(actor);
END $$;

CREATE FUNCTION redoubt.api_apitokens_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    n     integer := redoubt.api_limit(query);
    after uuid := nullif(query ->> 'cursor', '')::uuid;
    items jsonb;
    last  uuid;
    more  boolean;
BEGIN
    PERFORM redoubt.require(actor, 'administrator');
    WITH page AS (
        SELECT t, row_number() OVER (ORDER BY t.created_at, t.id) AS i
        FROM redoubt.api_token t
        WHERE redoubt.api_token_visible(actor, t)
          AND (after IS NULL OR (t.created_at, t.id) >
               (SELECT a.created_at, a.id FROM redoubt.api_token a WHERE a.id = after))
        ORDER BY t.created_at, t.id LIMIT n + 1)
    SELECT coalesce(jsonb_agg(redoubt.api_token_json(p.t) ORDER BY p.i)
                    FILTER (WHERE p.i <= n), '[]'),
           (array_agg((p.t).id) FILTER (WHERE p.i = n))[1], count(*) > n
    INTO items, last, more FROM page p;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'items', items, 'next', CASE WHEN more THEN last::text END));
END $$;

-- The scope in a body: ids or paths of groups.
CREATE FUNCTION redoubt.api_scope(actor jsonb, given jsonb) RETURNS uuid[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    ref text;
    g   uuid;
    ids uuid[] := '{}';
BEGIN
    IF given IS NULL OR jsonb_typeof(given) = 'null' THEN
        PERFORM redoubt.require(actor, 'administrator', NULL);
        RETURN NULL;
    END IF;
    IF jsonb_typeof(given) <> 'array' OR jsonb_array_length(given) NOT BETWEEN 1 AND 100 THEN
        PERFORM redoubt.api_refuse(400, 'scope is wrong',
            'It must be a list of 1 to 100 groups, or null for the whole installation.', '');
    END IF;
    FOR ref IN SELECT jsonb_array_elements_text(given) LOOP
        SELECT d.id INTO g FROM redoubt.device_group d
        WHERE d.path = ref OR d.id::text = lower(ref);
        IF NOT FOUND OR NOT redoubt.may_see(actor, g) THEN
            PERFORM redoubt.api_refuse(400, 'scope is wrong',
                format('There is no group "%s".', left(ref, 200)), '');
        END IF;
        ids := ids || g;
    END LOOP;
    RETURN ids;
END $$;

CREATE FUNCTION redoubt.api_apitoken_create(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    name   text := body ->> 'name';
    role   text := body ->> 'role';
    days   text := coalesce(body ->> 'expires_days', '365');
    secret text;
    t      redoubt.api_token;
BEGIN
    PERFORM redoubt.require(actor, 'administrator');
    PERFORM redoubt.api_members(body, ARRAY['name', 'role', 'scope', 'expires_days']);
    IF jsonb_typeof(body -> 'name') IS DISTINCT FROM 'string'
       OR name !~ '^[^[:cntrl:]]{1,100}$' THEN
        PERFORM redoubt.api_refuse(400, 'name is wrong',
            'It must be 1 to 100 characters, without control characters.', '');
    ELSIF redoubt.role_rank(role) IS NULL THEN
        PERFORM redoubt.api_refuse(400, 'role is wrong',
            'It must be administrator, operator or auditor.', '');
    ELSIF days !~ '^[0-9]{1,4}$' OR days::integer NOT BETWEEN 1 AND 3650 THEN
        PERFORM redoubt.api_refuse(400, 'expires_days is wrong',
            'It must be a number between 1 and 3650.', '');
    END IF;
    -- Two random UUIDs: 244 bits from the system's generator.
    secret := 'rda1.' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
    INSERT INTO redoubt.api_token (name, hash, role, scope, expires_at, created_by)
    VALUES (name, sha256(convert_to(secret, 'UTF8')), role,
            redoubt.api_scope(actor, body -> 'scope'),
            now() + make_interval(days => days::integer), actor ->> 'name')
    RETURNING * INTO t;
    PERFORM redoubt.audit_add(actor, 'api_token_create', t.id::text, NULL,
                              redoubt.api_token_json(t));
    RETURN jsonb_build_object('status', 201,
        'body', redoubt.api_token_json(t) || jsonb_build_object('token', secret));
END $$;

CREATE FUNCTION redoubt.api_apitoken_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    before redoubt.api_token;
    t      redoubt.api_token;
BEGIN
    PERFORM redoubt.require(actor, 'administrator');
    SELECT * INTO before FROM redoubt.api_token a WHERE a.id = (path ->> 'id')::uuid FOR UPDATE;
    IF NOT FOUND OR NOT redoubt.api_token_visible(actor, before) THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such API token.', '');
    END IF;
    UPDATE redoubt.api_token a SET revoked_at = coalesce(a.revoked_at, now())
    WHERE a.id = before.id RETURNING * INTO t;
    IF before.revoked_at IS NULL THEN
        PERFORM redoubt.audit_add(actor, 'api_token_revoke', t.id::text,
                                  redoubt.api_token_json(before), redoubt.api_token_json(t));
    END IF;
    RETURN jsonb_build_object('status', 200, 'body', redoubt.api_token_json(t));
END $$;

-- --- tasks (0007) ---------------------------------------------------------------------------

CREATE FUNCTION redoubt.occurrence_json(o redoubt.occurrence) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', o.id, 'task', o.task_id, 'task_name', t.name,
        'type', o.type, 'params', o.params, 'at', o.at, 'not_before', o.not_before,
        'not_after', o.not_after, 'state', o.state, 'complete', o.complete,
        'created_at', o.created_at, 'created_by', o.created_by, 'finished_at', o.finished_at,
        'totals', coalesce(o.totals, redoubt.occurrence_totals(o.id)))
    FROM redoubt.task t WHERE t.id = o.task_id
$$;

CREATE FUNCTION redoubt.task_json(t redoubt.task) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('id', t.id, 'name', t.name, 'enabled', t.enabled,
        'next_at', t.next_at, 'created_at', t.created_at, 'created_by', t.created_by,
        'changed_at', t.changed_at, 'version', t.version) || t.spec
$$;

-- Whether an actor may see a task: one with a scope those made within it, and those for a
-- group within it.
CREATE FUNCTION redoubt.task_visible(actor jsonb, t redoubt.task) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
DECLARE
    groups constant uuid[] := redoubt.scope_groups(actor);
BEGIN
    RETURN groups IS NULL OR coalesce(t.scope <@ groups, false)
        OR coalesce((t.spec #>> '{target,group}')::uuid = ANY (groups), false);
END $$;

-- The task of a path, if the actor may see it (and, to change it, has the role).
CREATE FUNCTION redoubt.task_of(actor jsonb, path jsonb, change boolean DEFAULT false)
RETURNS redoubt.task LANGUAGE plpgsql AS $$
DECLARE
    t redoubt.task;
BEGIN
    PERFORM redoubt.require(actor, CASE WHEN change THEN 'operator' ELSE 'auditor' END);
    IF change THEN
        PERFORM redoubt.check_epoch();
        SELECT * INTO t FROM redoubt.task k
        WHERE k.id = redoubt.api_uuid(path, 'id') AND k.deleted_at IS NULL FOR UPDATE;
    ELSE
        SELECT * INTO t FROM redoubt.task k
        WHERE k.id = redoubt.api_uuid(path, 'id') AND k.deleted_at IS NULL;
    END IF;
    IF NOT FOUND OR NOT redoubt.task_visible(actor, t) THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such task.', '');
    END IF;
    RETURN t;
END $$;

CREATE FUNCTION redoubt.task_next(t redoubt.task) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN t.enabled AND jsonb_typeof(t.spec -> 'schedule') = 'object'
                THEN redoubt.schedule_next(t.spec -> 'schedule', now()) END
$$;

CREATE FUNCTION redoubt.task_name_free(given text, but uuid) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1380208454, 1);
    IF EXISTS (SELECT FROM redoubt.task k WHERE k.name = given AND k.deleted_at IS NULL
                 AND k.id IS DISTINCT FROM but) THEN
        PERFORM redoubt.api_refuse(409, 'The name is taken',
            format('There is a task "%s" already.', given), 'Use another name.');
    END IF;
END $$;

-- GET /v1/tasks, oldest first; ?name
CREATE FUNCTION redoubt.api_tasks_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    most  constant integer := redoubt.api_limit(query);
    after constant uuid := redoubt.api_uuid(query, 'cursor');
    items jsonb;
    n     integer;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT coalesce(jsonb_agg(redoubt.task_json(p.t) ORDER BY (p.t).created_at, (p.t).id), '[]'),
           count(*)
    INTO items, n
    FROM (SELECT t FROM redoubt.task t
          WHERE t.deleted_at IS NULL AND redoubt.task_visible(actor, t)
            AND (NOT query ? 'name' OR t.name = query ->> 'name')
            AND (after IS NULL OR (t.created_at, t.id) >
                 (SELECT a.created_at, a.id FROM redoubt.task a WHERE a.id = after))
          ORDER BY t.created_at, t.id LIMIT most) p;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'id' END));
END $$;

-- POST /v1/tasks.  One without a schedule runs when it is started.
CREATE FUNCTION redoubt.api_task_create(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    t redoubt.task;
BEGIN
    PERFORM redoubt.check_epoch();
    PERFORM redoubt.require(actor, 'operator');
    t.id := gen_random_uuid();
    t.spec := redoubt.task_spec(actor, body);
    t.name := body ->> 'name';
    t.enabled := coalesce((body ->> 'enabled')::boolean, true);
    PERFORM redoubt.task_name_free(t.name, NULL);
    INSERT INTO redoubt.task (id, name, spec, enabled, scope, created_by, next_at)
    VALUES (t.id, t.name, t.spec, t.enabled,
            CASE WHEN jsonb_typeof(actor -> 'scope') = 'array'
                 THEN ARRAY(SELECT jsonb_array_elements_text(actor -> 'scope')::uuid) END,
            coalesce(actor ->> 'name', ''), redoubt.task_next(t))
    RETURNING * INTO t;
    PERFORM redoubt.audit_add(actor, 'task_create', t.id::text, NULL, redoubt.task_json(t));
    RETURN jsonb_build_object('status', 201, 'version', t.version, 'body', redoubt.task_json(t));
END $$;

CREATE FUNCTION redoubt.api_task_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    t redoubt.task := redoubt.task_of(actor, path);
BEGIN
    RETURN jsonb_build_object('status', 200, 'version', t.version, 'body', redoubt.task_json(t));
END $$;

-- PATCH /v1/tasks/{id}: members of the body replace those of the task.  Occurrences that have
-- started go on as they were.
CREATE FUNCTION redoubt.api_task_patch(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    t   redoubt.task := redoubt.task_of(actor, path, true);
    old constant jsonb := redoubt.task_json(t);
    new constant jsonb := jsonb_build_object('name', t.name, 'enabled', t.enabled) || t.spec
                          || CASE WHEN jsonb_typeof(body) = 'object' THEN body ELSE '{}' END;
BEGIN
    IF jsonb_typeof(body) IS DISTINCT FROM 'object' THEN
        PERFORM redoubt.api_refuse(400, 'The body is wrong', 'It must be a JSON object.', '');
    END IF;
    t.spec := redoubt.task_spec(actor, new);
    t.name := new ->> 'name';
    t.enabled := (new ->> 'enabled')::boolean;
    PERFORM redoubt.task_name_free(t.name, t.id);
    UPDATE redoubt.task k
    SET spec = t.spec, name = t.name, enabled = t.enabled, version = k.version + 1,
        changed_at = now(),
        next_at = CASE WHEN body ?| ARRAY['schedule', 'enabled'] THEN redoubt.task_next(t)
                       ELSE k.next_at END
    WHERE k.id = t.id RETURNING * INTO t;
    PERFORM redoubt.audit_add(actor, 'task_patch', t.id::text, old, redoubt.task_json(t));
    RETURN jsonb_build_object('status', 200, 'version', t.version, 'body', redoubt.task_json(t));
END $$;

-- Cancels an occurrence: what no device has said to have ends now, the rest when it tells.
-- The caller holds the advisory lock.
CREATE FUNCTION redoubt.occurrence_cancel(which uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    ended uuid[];
BEGIN
    UPDATE redoubt.occurrence o SET state = 'cancelled' WHERE o.id = which;
    PERFORM FROM redoubt.run r WHERE r.occurrence_id = which AND r.state <> 'finished'
    ORDER BY r.id FOR UPDATE;
    WITH told AS (
        UPDATE redoubt.run r SET wanted = 'cancelled', changed_at = now()
        WHERE r.occurrence_id = which AND r.state NOT IN ('finished', 'pending')
        RETURNING r.id)
    SELECT array_agg(t.id) INTO ended FROM told t;
    PERFORM redoubt.runs_inherit(ended);
    WITH gone AS (
        UPDATE redoubt.run r SET state = 'finished', outcome = 'cancelled', assumed = true,
                                 wanted = NULL, changed_at = now()
        WHERE r.occurrence_id = which AND r.state = 'pending' RETURNING r.id)
    SELECT array_agg(g.id) INTO ended FROM gone g;
    IF ended IS NOT NULL THEN
        PERFORM redoubt.runs_ended(ended);
    END IF;
    PERFORM redoubt.run_soon(which);
END $$;

-- Pauses (or not) an occurrence.  Time goes on: what has not begun by not_after never does.
CREATE FUNCTION redoubt.occurrence_pause(which uuid, pause boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE redoubt.occurrence o SET state = CASE WHEN pause THEN 'paused' ELSE 'running' END
    WHERE o.id = which;
    PERFORM FROM redoubt.run r WHERE r.occurrence_id = which AND r.state <> 'finished'
    ORDER BY r.id FOR UPDATE;
    UPDATE redoubt.run r SET wanted = CASE WHEN pause THEN 'paused' END, changed_at = now()
    WHERE r.occurrence_id = which AND r.state <> 'finished'
      AND r.wanted IS DISTINCT FROM 'cancelled';
    PERFORM redoubt.run_soon(which);
END $$;

-- cancel, pause and resume: all occurrences of a task that have not ended.
CREATE FUNCTION redoubt.task_act(actor jsonb, path jsonb, act text) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    t    redoubt.task := redoubt.task_of(actor, path, true);
    o    uuid;
    done uuid[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock(1380208454, 0); -- before the occurrences: see 0007
    FOR o IN SELECT c.id FROM redoubt.occurrence c
             WHERE c.task_id = t.id AND c.finished_at IS NULL
               AND c.state = ANY (CASE act WHEN 'cancel' THEN ARRAY['running', 'paused']
                                           WHEN 'pause' THEN ARRAY['running']
                                           ELSE ARRAY['paused'] END)
             ORDER BY c.id FOR UPDATE LOOP
        IF act = 'cancel' THEN
            PERFORM redoubt.occurrence_cancel(o);
        ELSE
            PERFORM redoubt.occurrence_pause(o, act = 'pause');
        END IF;
        done := done || o;
    END LOOP;
    IF done = '{}' THEN
        PERFORM redoubt.api_refuse(409, 'There is nothing to ' || act,
            format('The task "%s" has no occurrence that is %s.', t.name,
                   CASE act WHEN 'resume' THEN 'paused' ELSE 'running' END), '');
    END IF;
    PERFORM redoubt.audit_add(actor, 'task_' || act, t.id::text, NULL,
                              jsonb_build_object('name', t.name, 'occurrences', to_jsonb(done)));
    RETURN jsonb_build_object('status', 200, 'body', redoubt.task_json(t) || jsonb_build_object(
        'occurrences', (SELECT jsonb_agg(redoubt.occurrence_json(c) ORDER BY c.created_at, c.id)
                        FROM redoubt.occurrence c WHERE c.id = ANY (done))));
END $$;

-- DELETE /v1/tasks/{id}: what runs is cancelled; its history stays as long as others'.
CREATE FUNCTION redoubt.api_task_delete(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    t redoubt.task := redoubt.task_of(actor, path, true);
BEGIN
    PERFORM pg_advisory_xact_lock(1380208454, 0);
    PERFORM redoubt.occurrence_cancel(o.id)
    FROM (SELECT c.id FROM redoubt.occurrence c
          WHERE c.task_id = t.id AND c.finished_at IS NULL AND c.state <> 'cancelled'
          ORDER BY c.id FOR UPDATE) o;
    UPDATE redoubt.task k SET deleted_at = now(), next_at = NULL, enabled = false
    WHERE k.id = t.id;
    DELETE FROM redoubt.task k
    WHERE k.id = t.id
      AND NOT EXISTS (SELECT FROM redoubt.occurrence c WHERE c.task_id = t.id);
    PERFORM redoubt.audit_add(actor, 'task_delete', t.id::text, redoubt.task_json(t), NULL);
    RETURN '{"status": 204}';
END $$;

-- POST /v1/tasks/{id}/start: now, on all its devices, whatever its schedule says.
CREATE FUNCTION redoubt.api_task_start(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    t redoubt.task := redoubt.task_of(actor, path, true);
    o uuid;
BEGIN
    o := redoubt.task_begin(t, now(), now(), false, coalesce(actor ->> 'name', ''));
    PERFORM redoubt.audit_add(actor, 'task_start', t.id::text, NULL,
                              jsonb_build_object('name', t.name, 'occurrence', o));
    RETURN jsonb_build_object('status', 201, 'body', (
        SELECT redoubt.occurrence_json(c) FROM redoubt.occurrence c WHERE c.id = o));
END $$;

CREATE FUNCTION redoubt.api_task_cancel(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE sql AS $$
    SELECT redoubt.task_act(actor, path, 'cancel')
$$;
CREATE FUNCTION redoubt.api_task_pause(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE sql AS $$
    SELECT redoubt.task_act(actor, path, 'pause')
$$;
CREATE FUNCTION redoubt.api_task_resume(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE sql AS $$
    SELECT redoubt.task_act(actor, path, 'resume')
$$;

-- GET /v1/tasks/{id}/occurrences: newest first
CREATE FUNCTION redoubt.api_occurrences_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    t      constant uuid := (redoubt.task_of(actor, path)).id;
    most   constant integer := redoubt.api_limit(query);
    before constant uuid := redoubt.api_uuid(query, 'cursor');
    items  jsonb;
    n      integer;
BEGIN
    SELECT coalesce(jsonb_agg(redoubt.occurrence_json(p.o)
                              ORDER BY (p.o).created_at DESC, (p.o).id DESC), '[]'), count(*)
    INTO items, n
    FROM (SELECT o FROM redoubt.occurrence o
          WHERE o.task_id = t
            AND (before IS NULL OR (o.created_at, o.id) <
                 (SELECT b.created_at, b.id FROM redoubt.occurrence b WHERE b.id = before))
          ORDER BY o.created_at DESC, o.id DESC LIMIT most) p;
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'id' END));
END $$;

-- The occurrence of a path, if the actor may see its task (deleted ones, too).
CREATE FUNCTION redoubt.occurrence_of(actor jsonb, path jsonb) RETURNS redoubt.occurrence
LANGUAGE plpgsql STABLE AS $$
DECLARE
    o redoubt.occurrence;
    t redoubt.task;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT * INTO o FROM redoubt.occurrence c WHERE c.id = redoubt.api_uuid(path, 'id');
    SELECT * INTO t FROM redoubt.task k WHERE k.id = o.task_id;
    IF NOT FOUND OR NOT redoubt.task_visible(actor, t) THEN
        PERFORM redoubt.api_refuse(404, 'Not found', 'There is no such occurrence.', '');
    END IF;
    RETURN o;
END $$;

CREATE FUNCTION redoubt.api_occurrence_get(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN jsonb_build_object('status', 200, 'body',
                              redoubt.occurrence_json(redoubt.occurrence_of(actor, path)));
END $$;

-- GET /v1/occurrences/{id}/runs: by id; ?state ?outcome ?device
CREATE FUNCTION redoubt.api_runs_list(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    o     constant uuid := (redoubt.occurrence_of(actor, path)).id;
    most  constant integer := redoubt.api_limit(query);
    low   constant uuid := redoubt.api_uuid(query, 'cursor');
    one   constant uuid := redoubt.api_uuid(query, 'device');
    items jsonb;
    n     integer;
BEGIN
    -- A run that another one answers for shows what that one has come to.
    SELECT coalesce(jsonb_agg(jsonb_build_object('id', r.id, 'device', r.device_id,
               'device_name', d.name, 'state', r.state, 'outcome', r.outcome,
               'wanted', r.wanted, 'percent', coalesce(s.percent, r.percent),
               'counts', coalesce(s.counts, r.counts), 'result', r.result,
               'same_as', r.same_as, 'not_before', r.not_before, 'not_after', r.not_after,
               'changed_at', coalesce(s.changed_at, r.changed_at)) ORDER BY r.id), '[]'),
           count(*)
    INTO items, n
    FROM (SELECT * FROM redoubt.run r
          WHERE r.occurrence_id = o AND (low IS NULL OR r.id > low)
            AND (one IS NULL OR r.device_id = one)
            AND (NOT query ? 'state' OR r.state = ANY (string_to_array(query ->> 'state', ',')))
            AND (NOT query ? 'outcome'
                 OR r.outcome = ANY (string_to_array(query ->> 'outcome', ',')))
          ORDER BY r.id LIMIT most) r
    JOIN redoubt.device d ON d.id = r.device_id
    LEFT JOIN redoubt.run s ON s.id = r.same_as AND r.state <> 'finished';
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object('items', items,
        'next', CASE WHEN n = most THEN items -> -1 ->> 'id' END));
END $$;

-- --- status and upkeep ------------------------------------------------------------------------

-- Numbers of the whole installation, or of the groups that the actor may see.
CREATE FUNCTION redoubt.api_status(actor jsonb, path jsonb, query jsonb, body jsonb)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    f       redoubt.fence;
    groups  uuid[] := redoubt.scope_groups(actor);
    devices jsonb;
    events  jsonb;
BEGIN
    PERFORM redoubt.require(actor, 'auditor');
    SELECT * INTO STRICT f FROM redoubt.fence;
    SELECT jsonb_build_object(
        'total', count(*),
        'connected', count(*) FILTER (WHERE d.connected_epoch = f.epoch),
        'state', jsonb_build_object(
            'active', count(*) FILTER (WHERE d.state = 'active'),
            'pending', count(*) FILTER (WHERE d.state = 'pending'),
            'revoked', count(*) FILTER (WHERE d.state = 'revoked')),
        'status', jsonb_build_object(
            'ok', count(*) FILTER (WHERE d.status = 'ok'),
            'warning', count(*) FILTER (WHERE d.status = 'warning'),
            'critical', count(*) FILTER (WHERE d.status = 'critical'),
            'unknown', count(*) FILTER (WHERE d.status = 'unknown')),
        'policy', jsonb_build_object(
            'none', count(*) FILTER (WHERE d.policy_state = 'none'),
            'applying', count(*) FILTER (WHERE d.policy_state = 'applying'),
            'applied', count(*) FILTER (WHERE d.policy_state = 'applied'),
            'failed', count(*) FILTER (WHERE d.policy_state = 'failed'),
            'drift', count(*) FILTER (WHERE d.policy_state = 'drift')))
    INTO devices FROM redoubt.device d
    WHERE groups IS NULL OR d.group_id = ANY (groups);
    SELECT jsonb_build_object(
        'last_minute', count(*),
        'per_second', round(count(*) FILTER (WHERE e.received_at > now() - interval '10 s')
                            / 10.0, 1))
    INTO events FROM redoubt.event e
    WHERE e.received_at > now() - interval '1 minute'
      AND (groups IS NULL OR EXISTS (SELECT FROM redoubt.device d
                                     WHERE d.id = e.device_id AND d.group_id = ANY (groups)));
    RETURN jsonb_build_object('status', 200, 'body', jsonb_build_object(
        'node', f.node, 'epoch', f.epoch, 'active_since', f.raised_at, 'now', now(),
        'schema', (SELECT max(v.version) FROM redoubt.schema_version v),
        'devices', devices, 'events', events));
END $$;

-- Forgets what nobody asks for any more; a bounded piece at a time.
CREATE FUNCTION redoubt.api_upkeep() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    PERFORM redoubt.check_epoch();
    DELETE FROM redoubt.idempotency i
    WHERE (i.actor, i.key) IN (SELECT o.actor, o.key FROM redoubt.idempotency o
                               WHERE o.at < now() - interval '24 hours' LIMIT 500);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;

-- What the active node's manager does each second, a step a transaction: tick(0), tick(1), ...
-- until it returns NULL.  Each step is bounded, and one that fails does not keep the others.
CREATE FUNCTION redoubt.tick(step integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    steps constant text[] := ARRAY['tasks_due()', 'rollouts_due()', 'judge_stale(500)',
                                   'events_upkeep()', 'api_upkeep()', 'signatures_upkeep()',
                                   'licences_upkeep()'];
BEGIN
    IF step NOT BETWEEN 0 AND cardinality(steps) - 1 THEN
        RETURN NULL;
    END IF;
    PERFORM redoubt.check_epoch();
    EXECUTE 'SELECT redoubt.' || steps[step + 1];
    RETURN steps[step + 1];
END $$;
