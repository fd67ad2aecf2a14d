-- transactional: false
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

CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_pkey
    ON redemption_audit (event_id, bucket);
CREATE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_by_code
    ON redemption_audit ((code || ''), event_time, event_id) WHERE code IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_by_user
    ON redemption_audit (user_id, event_time, event_id) WHERE user_id IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_by_book
    ON redemption_audit (book_id, type, event_time, event_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS redemption_audit_by_time
    ON redemption_audit ((type::integer), event_time, event_id);

DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_constraint
        WHERE conrelid = 'redemption_audit'::regclass AND conname = 'redemption_audit_event')
    THEN
        ALTER TABLE redemption_audit DROP CONSTRAINT redemption_audit_event;
        ALTER TABLE redemption_audit
            ADD CONSTRAINT redemption_audit_pkey PRIMARY KEY USING INDEX redemption_audit_pkey;
    END IF;
END
$$;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_code_and_time;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_user_and_time;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_book_and_time;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_type_and_time;
