-- Declarative configuration: apply and export.
-- works-since: 1
SELECT;
