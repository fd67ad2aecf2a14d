ALTER TABLE redemption_audit DROP COLUMN other_user_id;
