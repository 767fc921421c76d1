-- What the API keeps: tokens, idempotency; the one door that its calls go through.
-- works-since: 1
SELECT;
