ALTER FUNCTION keep_book_terms() SECURITY INVOKER RESET search_path;
ALTER TABLE coupon_adjustments DROP COLUMN currency_code;
