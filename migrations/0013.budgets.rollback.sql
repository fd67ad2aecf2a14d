ALTER TABLE coupon_book_totals DROP COLUMN discount_limit_minor, DROP COLUMN discount_minor;

ALTER TABLE coupon_books DROP COLUMN budget_minor;
