-- Limits a day, week or month: {"period": 1 day, 2 week, 3 month, "zone": IANA time zone, "book": limit,
-- "user": limit}; a limit of 0: none. NULL: no such limits.

ALTER TABLE coupon_books ADD COLUMN period_limits jsonb;

-- What one user (user_id '': all users) has redeemed in one period of one book; only for books with such a
-- limit. period_start is the first day of the period in the time zone of the book, period_end that of the
-- next one, some time after which the row is deleted. bucket: of the user.
CREATE TABLE coupon_period_counters (
    book_id           uuid NOT NULL,
    redemptions       bigint NOT NULL DEFAULT 0,
    redemption_limit  bigint NOT NULL DEFAULT 0,
    period_start      date NOT NULL,
    period_end        date NOT NULL,
    bucket            smallint NOT NULL,
    user_id           text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, book_id, user_id, period_start),
    CONSTRAINT period_cap CHECK (
        redemptions >= 0 AND (redemption_limit = 0 OR redemptions <= redemption_limit))
) WITH (
    fillfactor = 85,
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = 10000);

-- Which rows are over.
CREATE INDEX coupon_period_counters_by_end ON coupon_period_counters (period_end);
