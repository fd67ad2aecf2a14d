-- Codes that a CLOSED book had and another book of its business has now, as they were: the other book got
-- the row of coupon_codes. They are changed only by who has locked that row, which goes on to be there.
-- spelling: as the code was uploaded to the CLOSED book, where that is not how it is stored.

CREATE TABLE coupon_past_codes (
    book_id           uuid NOT NULL,
    next_book_id      uuid NOT NULL,
    reuse_time        timestamptz NOT NULL,
    redemptions       integer NOT NULL,
    redemption_limit  integer NOT NULL,
    assignments       integer NOT NULL CHECK (assignments >= 0),
    source_tag        integer NOT NULL,
    bucket            smallint NOT NULL,
    state             smallint NOT NULL CHECK (state BETWEEN 1 AND 4),
    code              text COLLATE "C" NOT NULL,
    spelling          text,
    PRIMARY KEY (bucket, code, book_id),
    CONSTRAINT past_code_cap CHECK (
        redemptions >= 0 AND (redemption_limit = 0 OR redemptions <= redemption_limit))
) WITH (
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = 10000);

-- ListCodes, ExportCodes.
CREATE INDEX coupon_past_codes_by_state ON coupon_past_codes (book_id, state, bucket, code);
