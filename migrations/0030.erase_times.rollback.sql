-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS coupon_erased_users_by_time;
