-- Groups, policies and their inheritance, rules that move devices, the status of a device.
-- works-since: 1

CREATE FUNCTION redoubt.x_policy(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN;
END $$;
