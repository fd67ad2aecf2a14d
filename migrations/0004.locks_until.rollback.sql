ALTER TABLE coupon_books DROP COLUMN locks_until;
