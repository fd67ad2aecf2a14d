-- transactional: false
-- ListAssignments, newest first. Without the state: a redemption may change that, and so changes no index
-- (HOT). Built while the service goes on; what an earlier attempt has left of it is dropped before.

DROP INDEX CONCURRENTLY IF EXISTS coupon_assignments_by_book;

CREATE INDEX CONCURRENTLY coupon_assignments_by_book
    ON coupon_assignments (book_id, assign_time, code, user_id) WHERE assign_time IS NOT NULL;
