-- What was merged stays so: an earlier version finds it under the names in NFC.
DROP PROCEDURE IF EXISTS coupon_merge_names();
DROP FUNCTION IF EXISTS coupon_name_bucket(text);
