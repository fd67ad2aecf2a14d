-- A discount by order amount, of each tier [from_amount_minor, {"percent": basis points, "max": cap in minor
-- units, 0 = none}] or [from_amount_minor, {"amount": minor units}], in growing amounts. NULL: another kind of
-- discount. A version before this one takes such a book for one whose benefit has no description.

ALTER TABLE coupon_books
    ADD COLUMN discount_tiers jsonb,
    DROP CONSTRAINT coupon_books_check1;

ALTER TABLE coupon_books
    ADD CONSTRAINT one_discount CHECK (
        num_nonnulls(percent_off_basis_points, amount_off_minor, benefit, discount_tiers) = 1);
