-- The shortest code that a book takes from an upload; 0: the service's.

ALTER TABLE coupon_books
    ADD COLUMN min_code_length smallint NOT NULL DEFAULT 0;

ALTER TABLE coupon_books
    ADD CONSTRAINT coupon_books_min_code_length_check CHECK (min_code_length BETWEEN 0 AND 64);
