-- The seats of licences: how many devices hold one, counted once for both nodes.
-- works-since: 1

CREATE TABLE redoubt.licence (
    id         uuid PRIMARY KEY,
    first_used timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE redoubt.licence IS
    'Licences that were used. Its row is what counting the seats of a licence locks.';

CREATE TABLE redoubt.seat (
    licence    uuid NOT NULL REFERENCES redoubt.licence (id),
    device     uuid NOT NULL,
    taken_at   timestamptz NOT NULL,
    renewed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    epoch      bigint NOT NULL,
    PRIMARY KEY (licence, device)
);
COMMENT ON TABLE redoubt.seat IS
    'One row a device and licence. It counts until expires_at; the device itself may renew it.';
CREATE INDEX seat_by_expiry ON redoubt.seat (licence, expires_at);

CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.licence
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON redoubt.seat
    FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- A seat for this device until `until` at the latest and for hold_s seconds at most.  The
-- clock is the database's, so that it is the same whichever node asks.
CREATE FUNCTION redoubt.take_seat(licence_id uuid, device_id uuid, seats bigint,
                                  hold_s bigint, until timestamptz,
                                  OUT granted boolean, OUT used bigint,
                                  OUT issued bigint, OUT expires bigint)
LANGUAGE plpgsql AS $$
DECLARE
    present bigint := redoubt.check_epoch();
    t       timestamptz;
    ends    timestamptz;
BEGIN
    INSERT INTO redoubt.licence (id) VALUES (licence_id) ON CONFLICT DO NOTHING;
    PERFORM 1 FROM redoubt.licence l WHERE l.id = licence_id FOR UPDATE;
    t := clock_timestamp();
    ends := least(t + make_interval(secs => hold_s), until);
    issued := floor(extract(epoch FROM t));
    expires := floor(extract(epoch FROM ends));
    granted := true;

    UPDATE redoubt.seat s SET renewed_at = t, expires_at = ends, epoch = present
    WHERE s.licence = licence_id AND s.device = device_id AND s.expires_at > t;
    IF FOUND THEN
        SELECT count(*) INTO used FROM redoubt.seat s
        WHERE s.licence = licence_id AND s.expires_at > t;
        RETURN;
    END IF;
    SELECT count(*) INTO used FROM redoubt.seat s
    WHERE s.licence = licence_id AND s.expires_at > t;
    IF used >= seats OR ends <= t THEN
        granted := false;
        RETURN;
    END IF;
    INSERT INTO redoubt.seat AS s (licence, device, taken_at, renewed_at, expires_at, epoch)
    VALUES (licence_id, device_id, t, t, ends, present)
    ON CONFLICT (licence, device) DO UPDATE SET
        taken_at = excluded.taken_at, renewed_at = excluded.renewed_at,
        expires_at = excluded.expires_at, epoch = excluded.epoch;
    used := used + 1;
END $$;
