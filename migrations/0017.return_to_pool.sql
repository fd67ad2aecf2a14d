-- transactional: false
-- Assignments that have expired, in books that give their codes to others. `returns`: the code goes back to
-- the pool at the end of the assignment; NULL elsewhere, so that the index has nothing of other books. It
-- changes with the first redemption of the code by the user: no other index change costs them more.
--
-- The indexes are built while the service goes on; what an earlier attempt has left of them is dropped
-- before.

ALTER TABLE coupon_books
    ADD COLUMN IF NOT EXISTS return_to_pool boolean NOT NULL DEFAULT false;

ALTER TABLE coupon_assignments ADD COLUMN IF NOT EXISTS returns boolean;

DROP INDEX CONCURRENTLY IF EXISTS coupon_books_returning;

CREATE INDEX CONCURRENTLY coupon_books_returning ON coupon_books (book_id) WHERE return_to_pool;

DROP INDEX CONCURRENTLY IF EXISTS coupon_assignments_to_return;

CREATE INDEX CONCURRENTLY coupon_assignments_to_return
    ON coupon_assignments (book_id, expire_time) WHERE returns;
