-- Sums of discounts, of which each is at most 10^15: some 9,000 of those are more than bigint holds.
--
-- The rows are written anew, which takes about a second for each million of them, and a book has 64 at most.
-- Redemptions wait for that long. A version that adds bigints goes on to do so.
ALTER TABLE coupon_book_counters ALTER COLUMN discount_minor TYPE numeric;
