-- Opening hours: {"zone": IANA time zone, "windows": [[ISO weekdays, minute it opens, minute it closes]]}.
-- NULL: always open.

ALTER TABLE coupon_books ADD COLUMN schedule jsonb;
