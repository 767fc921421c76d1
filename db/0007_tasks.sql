-- Tasks, their schedules, occurrences and the runs on devices.
-- works-since: 1

CREATE FUNCTION redoubt.x_tasks(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN;
END $$;
