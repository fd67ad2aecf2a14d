DROP TABLE coupon_order_books;

DROP TABLE coupon_orders;

ALTER TABLE coupon_books
    DROP COLUMN max_redemptions_per_order, DROP COLUMN exclusive_group, DROP COLUMN order_policy;
