ALTER TABLE coupon_books DROP COLUMN min_code_length;
