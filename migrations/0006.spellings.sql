-- Codes as they were uploaded, where that is not how they are stored: SUMMER-24 of SUMMER24. A table
-- beside that of the codes, so that plain codes take no more room: a ninth column there, even when it
-- is NULL, would make each of their rows eight bytes longer, by the bitmap that says so.

CREATE TABLE coupon_code_spellings (
    bucket    smallint NOT NULL,
    code      text COLLATE "C" NOT NULL,
    spelling  text NOT NULL,
    PRIMARY KEY (bucket, code)
) WITH (
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = 10000);
