-- transactional: false
-- The number of an event, by which the ledger is followed: rising in the order in which the events of a code
-- happened. It is drawn under the row locks of the transaction, after that has its id, so that numbers are
-- complete once all transactions have ended that had an id when the last of them was drawn. Drawn by a
-- DEFAULT, also for replicas of a version before. Rows of before have none, and come first.
--
-- Whoever may add to the ledger may draw numbers, so that no replica fails until `migrate grants` has run.
-- No row is rewritten, and the index is built while the service goes on; what an earlier attempt has left of it
-- is dropped before.

CREATE SEQUENCE IF NOT EXISTS redemption_audit_numbers CACHE 1;

DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE pg_class.oid = 'redemption_audit'::regclass AND acl.privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE redemption_audit_numbers TO %s', grantee);
    END LOOP;
END
$$;

ALTER TABLE redemption_audit ADD COLUMN IF NOT EXISTS sequence bigint;

ALTER SEQUENCE redemption_audit_numbers OWNED BY redemption_audit.sequence;

ALTER TABLE redemption_audit ALTER COLUMN sequence SET DEFAULT
    CASE WHEN pg_current_xact_id() <> '0' THEN nextval('redemption_audit_numbers') END;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_sequence;

CREATE UNIQUE INDEX CONCURRENTLY redemption_audit_by_sequence ON redemption_audit (sequence)
    WHERE sequence IS NOT NULL;

-- The events of before, which are followed by their time.
DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_unnumbered;

CREATE INDEX CONCURRENTLY redemption_audit_unnumbered ON redemption_audit (event_time, event_id)
    WHERE sequence IS NULL;
