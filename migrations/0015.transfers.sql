-- The other user of a transfer: who received the assignment, or, in the row of the receiver, who gave it.
ALTER TABLE redemption_audit ADD COLUMN other_user_id text COLLATE "C";
