-- What all redemptions of a book may take off together. discount_minor is counted only for books that limit it,
-- and discount_limit_minor is the book's limit when something was last taken off.

ALTER TABLE coupon_books
    ADD COLUMN budget_minor bigint NOT NULL DEFAULT 0;

ALTER TABLE coupon_books
    ADD CONSTRAINT coupon_books_budget_minor_check CHECK (budget_minor >= 0);

ALTER TABLE coupon_book_totals
    ADD COLUMN discount_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN discount_limit_minor bigint NOT NULL DEFAULT 0;

ALTER TABLE coupon_book_totals
    ADD CONSTRAINT book_budget CHECK (
        discount_minor >= 0 AND (discount_limit_minor = 0 OR discount_minor <= discount_limit_minor));
