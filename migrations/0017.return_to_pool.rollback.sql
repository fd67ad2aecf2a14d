-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS coupon_assignments_to_return;

DROP INDEX CONCURRENTLY IF EXISTS coupon_books_returning;

ALTER TABLE coupon_assignments DROP COLUMN IF EXISTS returns;

ALTER TABLE coupon_books DROP COLUMN IF EXISTS return_to_pool;
