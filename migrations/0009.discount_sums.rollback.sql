-- A sum that does not fit is the nearest that does. Nothing can be added to it then, as it was before.
ALTER TABLE coupon_book_counters ALTER COLUMN discount_minor TYPE bigint
    USING greatest(least(discount_minor, 9223372036854775807), -9223372036854775808)::bigint;
