-- What the order of a redemption that knew no amount is in, such as of a benefit in a book without a currency:
-- the first amount says so. NULL: known otherwise.
ALTER TABLE coupon_adjustments ADD COLUMN currency_code text;

-- The trigger writes with the rights of who owns the tables: a role that has no rights on coupon_book_terms,
-- as that of a version before them, still makes and changes books.
DO $$
BEGIN
    EXECUTE format(
        'ALTER FUNCTION keep_book_terms() SECURITY DEFINER SET search_path = %I, pg_temp', current_schema());
END
$$;
