DROP TABLE coupon_turns;
DROP TABLE coupon_book_levels;
DROP INDEX coupon_books_watched;
ALTER TABLE coupon_books DROP COLUMN low_threshold;
