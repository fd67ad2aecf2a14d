DROP TABLE coupon_period_counters;
ALTER TABLE coupon_books DROP COLUMN period_limits;
