-- What a device may be trusted with: enrolment, certificates, revocation, clones.
-- works-since: 1

CREATE FUNCTION redoubt.x_hello(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN;
END $$;

CREATE FUNCTION redoubt.x_csr(items jsonb) RETURNS TABLE (n bigint, answer jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN;
END $$;
