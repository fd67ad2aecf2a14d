DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_order;

CREATE INDEX CONCURRENTLY redemption_audit_by_order ON redemption_audit (order_id, code)
    WHERE order_id IS NOT NULL;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_order_and_user;

ALTER TABLE redemption_audit DROP COLUMN IF EXISTS order_user_id;
