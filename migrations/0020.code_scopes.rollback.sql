-- Refused once it is finished: `coupon-service migrate down` takes that back before, where it can.
DO $$
BEGIN
    IF EXISTS (SELECT FROM coupon_finished_steps) THEN
        RAISE EXCEPTION 'codes are unique within their business: run coupon-service migrate down'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;
DROP TABLE coupon_finished_steps;
ALTER TABLE coupon_code_spellings DROP COLUMN scope;
ALTER TABLE coupon_codes DROP COLUMN scope;
