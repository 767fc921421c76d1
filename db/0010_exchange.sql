-- What the workers of the Administration Server exchange with the DBMS, in batches.
-- works-since: 1
SELECT;
