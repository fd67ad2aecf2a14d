-- Generations of codes that are under way: how many codes each has reserved in the format of its book and
-- not made yet. Whoever wants to begin one locks the book and adds these to the codes that there are.
-- A row goes with its last chunk; one without a chunk for long is given up, and removed by the next who
-- reserves.
CREATE TABLE coupon_generations (
    book_id        uuid NOT NULL,
    generation_id  uuid NOT NULL,
    count          bigint NOT NULL,
    missing        bigint NOT NULL CHECK (missing >= 0),
    update_time    timestamptz NOT NULL,
    PRIMARY KEY (book_id, generation_id)
);
