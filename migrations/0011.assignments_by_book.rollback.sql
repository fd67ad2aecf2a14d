DROP INDEX CONCURRENTLY IF EXISTS coupon_assignments_by_book;
