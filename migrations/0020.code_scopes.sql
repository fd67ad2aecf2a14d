-- Within which a code is unique: 0, over all businesses, or the number of a business. All codes have 0 until
-- `coupon-service migrate finish` has run, which the table of finished steps records: then new books have
-- codes that are unique within their business. Until then, and for the books of before, all is as it was.

ALTER TABLE coupon_codes ADD COLUMN scope bigint NOT NULL DEFAULT 0;
ALTER TABLE coupon_code_spellings ADD COLUMN scope bigint NOT NULL DEFAULT 0;

CREATE TABLE coupon_finished_steps (
    step         text PRIMARY KEY,
    finish_time  timestamptz NOT NULL
);
