DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_sequence;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_unnumbered;

ALTER TABLE redemption_audit DROP COLUMN IF EXISTS sequence;

DROP SEQUENCE IF EXISTS redemption_audit_numbers;
