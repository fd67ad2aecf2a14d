ALTER TABLE redemption_audit DROP COLUMN commitments;
DROP TABLE coupon_audit_head;
DROP TABLE coupon_audit_seals;
DROP FUNCTION refuse_seal_change();
DROP TABLE coupon_user_keys;
