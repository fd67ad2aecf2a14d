ALTER TABLE coupon_books DROP COLUMN schedule;
