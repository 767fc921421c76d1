-- Devices and their status reports.
-- works-since: 1
--
-- Written only through redoubt.device_store, in the
-- session of the active Administration Server that announced its epoch (0001).

CREATE TABLE redoubt.device (
    id          uuid PRIMARY KEY,
    name        text NOT NULL DEFAULT '',
    description jsonb,
    health      jsonb,
    first_seen  timestamptz NOT NULL DEFAULT now(),
    last_seen   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE redoubt.device IS
    'One row a device: its latest description and health.';
COMMENT ON COLUMN redoubt.device.id IS
    'Device id: subjectAltName urn:uuid: of its certificate.';

CREATE TABLE redoubt.report (
    device_id   uuid NOT NULL REFERENCES redoubt.device (id),
    report_id   uuid NOT NULL,
    seq         bigint NOT NULL CHECK (seq >= 0),
    at          timestamptz NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    epoch       bigint NOT NULL,
    body        jsonb NOT NULL,
    PRIMARY KEY (device_id, report_id)
);
COMMENT ON TABLE redoubt.report IS
    'Status reports. The identity (device_id, report_id) makes a resend harmless.';
COMMENT ON COLUMN redoubt.report.at IS 'When it was made, by the clock of the device.';
COMMENT ON COLUMN redoubt.report.epoch IS 'Epoch of the node that stored it.';

CREATE INDEX report_by_seq ON redoubt.report (device_id, seq);

-- Belt and braces: a write by anything that did not announce the present epoch is refused.
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON redoubt.device FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();
CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON redoubt.report FOR EACH STATEMENT EXECUTE FUNCTION redoubt.fenced();

-- One batch, one transaction.  items: [{"device": uuid, "name": text, "description": {},
-- "health": {}, "reports": [{"id": uuid, "seq": n, "at": Unix microseconds, "body": {}}]}];
-- only "device" must be there.  Of several items of a device the last word counts.
CREATE FUNCTION redoubt.device_store(items jsonb, OUT stored bigint, OUT doubled bigint)
LANGUAGE plpgsql AS $$
DECLARE
    total bigint;
BEGIN
    PERFORM redoubt.check_epoch();

    INSERT INTO redoubt.device AS d (id, name, description, health)
    SELECT (e.item ->> 'device')::uuid,
           coalesce((array_agg(e.item ->> 'name' ORDER BY e.n DESC)
                     FILTER (WHERE e.item ? 'name'))[1], ''),
           (array_agg(e.item -> 'description' ORDER BY e.n DESC)
            FILTER (WHERE e.item ? 'description'))[1],
           (array_agg(e.item -> 'health' ORDER BY e.n DESC)
            FILTER (WHERE e.item ? 'health'))[1]
    FROM jsonb_array_elements(items) WITH ORDINALITY AS e (item, n)
    GROUP BY 1
    ORDER BY 1
    ON CONFLICT (id) DO UPDATE SET
        name = CASE WHEN excluded.name <> '' THEN excluded.name ELSE d.name END,
        description = coalesce(excluded.description, d.description),
        health = coalesce(excluded.health, d.health),
        last_seen = now();

    SELECT count(*) INTO total
    FROM jsonb_array_elements(items) AS i (item),
         jsonb_array_elements(coalesce(i.item -> 'reports', '[]')) AS r (item);

    INSERT INTO redoubt.report (device_id, report_id, seq, at, epoch, body)
    SELECT (i.item ->> 'device')::uuid, r.id, r.seq, to_timestamp(r.at / 1e6),
           current_setting('redoubt.epoch')::bigint, r.body
    FROM jsonb_array_elements(items) AS i (item),
         jsonb_to_recordset(coalesce(i.item -> 'reports', '[]'))
             AS r (id uuid, seq bigint, at double precision, body jsonb)
    ORDER BY 1, 3
    ON CONFLICT (device_id, report_id) DO NOTHING;

    GET DIAGNOSTICS stored = ROW_COUNT;
    doubled := total - stored;
END $$;
