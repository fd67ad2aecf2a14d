-- A privilege that the version before does not use.
SELECT;
