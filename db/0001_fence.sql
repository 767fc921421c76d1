-- The fence: at most one node's sessions can commit, whatever became of the other node.
-- works-since: 1
--
-- Every session of a service announces the epoch it was activated with.  Every write
-- transaction takes the fence's lock shared and compares its epoch with the fence's; a
-- takeover ends the other sessions, takes the lock exclusively and raises the epoch.
-- docs/database.md has the argument.  Advisory lock (1380208450, 1) is the fence,
-- (1380208450, 2) serialises migrations.

CREATE SCHEMA redoubt;
COMMENT ON SCHEMA redoubt IS 'Redoubt: failover cluster and administration server';

CREATE TABLE redoubt.schema_version (
    version     integer PRIMARY KEY CHECK (version > 0),
    name        text NOT NULL,
    works_since integer NOT NULL CHECK (works_since BETWEEN 1 AND version),
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE redoubt.schema_version IS 'The migrations of db/ that were applied.';
COMMENT ON COLUMN redoubt.schema_version.works_since IS
    'Programs made for a schema as old as this still work with this one.';

CREATE TABLE redoubt.fence (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch     bigint NOT NULL CHECK (epoch >= 0),
    node      text NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE redoubt.fence IS
    'The epoch whose sessions may write. Changed by redoubt.raise_fence() only.';
INSERT INTO redoubt.fence (epoch, node) VALUES (0, '');

CREATE FUNCTION redoubt.fence_only_rises() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.epoch > OLD.epoch THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'the fence only rises' USING ERRCODE = 'RD003';
END $$;

CREATE TRIGGER fence_only_rises BEFORE UPDATE OR DELETE ON redoubt.fence
    FOR EACH ROW EXECUTE FUNCTION redoubt.fence_only_rises();
CREATE TRIGGER fence_stays BEFORE TRUNCATE ON redoubt.fence
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fence_only_rises();

-- What this session may write for from now on.  Once a session; again with a new epoch.
-- A node that names itself may write only under a fence that it raised itself: should a share
-- that went back in time give one epoch to both nodes, the fence is still one node's.
CREATE FUNCTION redoubt.announce(epoch bigint, service text DEFAULT 'service',
                                 node text DEFAULT '')
RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('redoubt.epoch', announce.epoch::text, false);
    PERFORM set_config('redoubt.node', announce.node, false);
    PERFORM set_config('application_name',
                       format('redoubt/%s/%s', left(service, 30), announce.epoch), false);
    -- What was acknowledged to a device must survive a crash of the DBMS.
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', false);
    END IF;
    RETURN announce.epoch;
END $$;

-- First in every transaction that writes.  RD001: this session may not (any more).
-- The lock is held until the transaction ends, so the fence cannot rise before.
CREATE FUNCTION redoubt.check_epoch() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    mine    bigint := nullif(current_setting('redoubt.epoch', true), '')::bigint;
    mynode  text := coalesce(current_setting('redoubt.node', true), '');
    present bigint;
    holder  text;
BEGIN
    IF mine IS NULL THEN
        RAISE EXCEPTION 'this session has not announced its epoch'
            USING ERRCODE = 'RD001', HINT = 'Call redoubt.announce(epoch) first.';
    END IF;
    -- With an older snapshot the SELECT below could see the fence before it rose.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
    THEN
        RAISE EXCEPTION 'fenced transactions must be READ COMMITTED'
            USING ERRCODE = 'RD002';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(1380208450, 1);
    SELECT f.epoch, f.node INTO STRICT present, holder FROM redoubt.fence f;
    IF mine <> present THEN
        RAISE EXCEPTION 'this session announced epoch %, the fence is at %', mine, present
            USING ERRCODE = 'RD001';
    END IF;
    IF mynode <> '' AND mynode <> holder THEN
        RAISE EXCEPTION 'this session is of %, the fence at % was raised by %', mynode,
                        present, holder USING ERRCODE = 'RD001';
    END IF;
    RETURN mine;
END $$;

-- For tables: CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE
-- ON ... FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE FUNCTION redoubt.fenced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM redoubt.check_epoch();
    RETURN NULL;
END $$;

-- Sessions that stand in the way of new_epoch: they hold the fence's lock, or they
-- announced another epoch.  Only those that this role may end.
CREATE FUNCTION redoubt.sessions_before(new_epoch bigint)
RETURNS TABLE (pid integer, role name, endable boolean) LANGUAGE sql VOLATILE AS $$
    SELECT a.pid, a.usename,
           pg_has_role(a.usesysid, 'USAGE') AND (NOT t.rolsuper OR me.rolsuper)
    FROM pg_stat_activity a
    JOIN pg_roles t ON t.oid = a.usesysid
    JOIN pg_roles me ON me.rolname = current_user
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
      AND (a.pid IN (SELECT l.pid FROM pg_locks l
                     WHERE l.locktype = 'advisory' AND l.granted
                       AND l.database = (SELECT d.oid FROM pg_database d
                                         WHERE d.datname = current_database())
                       AND l.classid = 1380208450 AND l.objid = 1 AND l.objsubid = 2
                       AND l.mode = 'ShareLock')
           OR substring(a.application_name FROM '^redoubt/.*/([0-9]+)$')::numeric
              <> new_epoch)
$$;

-- The takeover.  ok: the fence is at new_epoch and nobody else can commit any more.
-- Not ok: epoch and node say what it found, why says what stood in the way.
-- Bounded: it waits at most wait_ms for transactions that are just ending.
CREATE FUNCTION redoubt.raise_fence(new_epoch bigint, new_node text,
                                    wait_ms integer DEFAULT 1500,
                                    OUT ok boolean, OUT epoch bigint, OUT node text,
                                    OUT ended integer, OUT why text)
LANGUAGE plpgsql AS $$
DECLARE
    give_up timestamptz := clock_timestamp() + make_interval(secs => wait_ms / 1000.0);
    seen    integer[] := '{}';
    s       record;
BEGIN
    ok := false;
    ended := 0;
    SELECT f.epoch, f.node INTO STRICT epoch, node FROM redoubt.fence f;
    IF epoch >= new_epoch THEN
        ok := epoch = new_epoch AND node = new_node; -- the same call, once more
        IF NOT ok THEN why := 'stale'; END IF;
        RETURN;
    END IF;
    -- A raise that a crash of the DBMS could forget would let old sessions write again.
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    LOOP
        PERFORM pg_stat_clear_snapshot(); -- or pg_stat_activity would not change
        FOR s IN SELECT b.pid FROM redoubt.sessions_before(new_epoch) b WHERE b.endable LOOP
            IF pg_terminate_backend(s.pid) AND NOT s.pid = ANY (seen) THEN
                seen := seen || s.pid;
            END IF;
        END LOOP;
        ended := cardinality(seen);
        -- A waiting exclusive lock keeps new shared ones behind it: nobody slips past for
        -- ever.  Who got the lock between the two is ended in the next round.
        BEGIN
            PERFORM set_config('lock_timeout', '40ms', true);
            PERFORM pg_advisory_xact_lock(1380208450, 1);
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() >= give_up THEN
                PERFORM pg_stat_clear_snapshot();
                SELECT 'blocked by ' || string_agg(format('pid %s (%s)', b.pid, b.role), ', ')
                    INTO why FROM redoubt.sessions_before(new_epoch) b;
                why := coalesce(why, 'blocked');
                RETURN;
            END IF;
        END;
    END LOOP;
    -- Somebody else may have raised it while this call waited.
    SELECT f.epoch, f.node INTO STRICT epoch, node FROM redoubt.fence f;
    IF epoch >= new_epoch THEN
        ok := epoch = new_epoch AND node = new_node;
        IF NOT ok THEN why := 'stale'; END IF;
        RETURN;
    END IF;
    UPDATE redoubt.fence f SET epoch = new_epoch, node = new_node,
                               raised_at = clock_timestamp();
    epoch := new_epoch;
    node := new_node;
    ok := true;
END $$;
