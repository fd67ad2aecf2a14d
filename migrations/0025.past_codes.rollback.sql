-- Refused while there are any: the ledger has what was done with them in their CLOSED books.
DO $$
DECLARE
    codes bigint;
    books bigint;
BEGIN
    SELECT count(*), count(DISTINCT book_id) INTO codes, books FROM coupon_past_codes;
    IF codes > 0 THEN
        RAISE EXCEPTION '% codes of % CLOSED books were used again by later books', codes, books
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;
DROP TABLE coupon_past_codes;
