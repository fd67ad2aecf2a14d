-- What codes say for themselves: a limit, a window, a discount, metadata of their own. A table beside that
-- of the codes, as for spellings, so that plain codes take no more room. The row of a book says whether any
-- of its codes has such a row, so that for other books nobody looks.

CREATE TABLE coupon_code_terms (
    book_id          uuid NOT NULL,
    start_time       timestamptz,
    end_time         timestamptz CHECK (end_time > start_time),
    max_redemptions  integer NOT NULL CHECK (max_redemptions >= 0),
    bucket           smallint NOT NULL,
    code             text COLLATE "C" NOT NULL,
    discount         jsonb,
    metadata         jsonb,
    PRIMARY KEY (bucket, code, book_id)
) WITH (
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = 10000);

ALTER TABLE coupon_books ADD COLUMN codes_have_terms boolean NOT NULL DEFAULT false;
