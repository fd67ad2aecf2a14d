-- transactional: false
-- Whose order it is that a redemption is for: that of the end user who made it, or, where it is NULL, one of
-- the business. Orders of users may have the same name.
--
-- The index is built while the service goes on; what an earlier attempt has left of it is dropped before.

ALTER TABLE redemption_audit ADD COLUMN IF NOT EXISTS order_user_id text COLLATE "C";

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_order_and_user;

-- At most one live redemption of a code an order; ListRedemptions by order.
CREATE INDEX CONCURRENTLY redemption_audit_by_order_and_user
    ON redemption_audit (order_id, order_user_id, code) WHERE order_id IS NOT NULL;

DROP INDEX CONCURRENTLY IF EXISTS redemption_audit_by_order;
