-- Fails while a book has tiers: it would have no discount then.
ALTER TABLE coupon_books DROP CONSTRAINT one_discount;

ALTER TABLE coupon_books
    ADD CONSTRAINT coupon_books_check1 CHECK (
        num_nonnulls(percent_off_basis_points, amount_off_minor, benefit) = 1);

ALTER TABLE coupon_books DROP COLUMN discount_tiers;
