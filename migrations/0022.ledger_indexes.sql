-- transactional: false
-- Smaller indexes of the ledger. Few events have the same time, so lists sort those of a time when they
-- read them, and their indexes have no event_id, by which they were sorted; without it, what was written
-- together is one entry. An event_id alone is unique.
--
-- The new ones are built while the service goes on, and before the old ones go. What an attempt that was cut
-- off has left unfinished is dropped first; what it has finished stays.

DO $$
DECLARE
    unfinished record;
BEGIN
    FOR unfinished IN
        SELECT indexrelid::regclass AS index FROM pg_index
        WHERE indrelid = 'redemption_audit'::regclass AND NOT indisvalid
    LOOP
        EXECUTE format('DROP INDEX %s', unfinished.index);
    END LOOP;
END
$$;

CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_event
    ON redemption_audit (event_id);
-- By code as an expression, so that only the list is read through it: the planner, which does not
-- know how many events a hot code has, would otherwise look for an order among all of them.
CREATE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_by_code_and_time
    ON redemption_audit ((code || ''), event_time) WHERE code IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_by_user_and_time
    ON redemption_audit (user_id, event_time) WHERE user_id IS NOT NULL;
-- By type as well: the few redemptions among the many assignments of a book.
CREATE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_by_book_and_time
    ON redemption_audit (book_id, type, event_time);
-- The whole ledger, by type. An expression, so that no other list is ever read through it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_by_type_and_time
    ON redemption_audit ((type::integer), event_time);

DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_constraint
        WHERE conrelid = 'redemption_audit'::regclass AND conname = 'redemption_audit_pkey')
    THEN
        ALTER TABLE redemption_audit DROP CONSTRAINT redemption_audit_pkey;
        ALTER TABLE redemption_audit
            ADD CONSTRAINT redemption_audit_event PRIMARY KEY USING INDEX redemption_audit_event;
    END IF;
END
$$;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_code;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_user;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_book;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_time;
