-- Events of devices and the server, the audit trail, partitions and retention.
-- works-since: 1

CREATE FUNCTION redoubt.x_events(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN;
END $$;
