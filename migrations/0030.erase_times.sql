-- transactional: false
-- Who was erased of late: each batch of refused attempts looks, since one of them may be theirs. Built while the
-- service goes on; what an earlier attempt has left of it is dropped before.

DROP INDEX CONCURRENTLY IF EXISTS coupon_erased_users_by_time;

CREATE INDEX CONCURRENTLY coupon_erased_users_by_time ON coupon_erased_users (erase_time);
