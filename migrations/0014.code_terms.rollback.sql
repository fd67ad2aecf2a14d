ALTER TABLE coupon_books DROP COLUMN codes_have_terms;
DROP TABLE coupon_code_terms;
