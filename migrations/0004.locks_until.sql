-- When locking is switched off while locks are held, redemptions mind them until then: the greatest time of
-- a lock, and its grace, after the switch. NULL: locking is on, or was never on.
ALTER TABLE coupon_books ADD COLUMN locks_until timestamptz;
