-- Books that tell when they run low, and what was told last. What is done once, over all replicas.

ALTER TABLE coupon_books
    ADD COLUMN low_threshold bigint NOT NULL DEFAULT 0;

ALTER TABLE coupon_books
    ADD CONSTRAINT coupon_books_low_threshold_check CHECK (low_threshold >= 0);

-- Those that are looked at every few seconds: ACTIVE (2), and with a threshold.
CREATE INDEX coupon_books_watched ON coupon_books (book_id) WHERE low_threshold > 0 AND state = 2;

-- level: ENOUGH (1), LOW (2) or USED_UP (3), as of the last look that found another one than before.
-- changes counts those; whoever changes the level names the count that it has seen, so that of
-- several who see the same change one writes it down.
CREATE TABLE coupon_book_levels (
    book_id  uuid PRIMARY KEY,
    level    smallint NOT NULL CHECK (level BETWEEN 1 AND 3),
    changes  bigint NOT NULL
);

-- When a turn was last taken to do what is done every so often: name says what.
CREATE TABLE coupon_turns (
    name        text PRIMARY KEY,
    taken_time  timestamptz NOT NULL
);
