DROP TABLE coupon_adjustments;
ALTER TABLE redemption_audit DROP COLUMN book_version;
DROP TRIGGER coupon_books_changed_terms ON coupon_books;
DROP TRIGGER coupon_books_first_terms ON coupon_books;
DROP FUNCTION keep_book_terms();
DROP TABLE coupon_book_terms;
