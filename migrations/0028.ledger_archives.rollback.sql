-- Refused while events are only in archives: `coupon-service audit restore` puts them back.
DO $$
BEGIN
    IF EXISTS (SELECT FROM coupon_audit_archives WHERE state BETWEEN 3 AND 5) THEN
        RAISE EXCEPTION 'Events of the ledger are in archives: restore them with coupon-service audit restore';
    END IF;
END
$$;
DROP FUNCTION coupon_delete_archived;
DROP TRIGGER redemption_audit_no_delete ON redemption_audit;
DROP FUNCTION refuse_ledger_deletion;
DROP TRIGGER redemption_audit_append_only ON redemption_audit;
CREATE TRIGGER redemption_audit_append_only
    BEFORE UPDATE OR DELETE ON redemption_audit
    FOR EACH ROW EXECUTE FUNCTION refuse_ledger_change();
ALTER TABLE coupon_books DROP COLUMN archived_until;
DROP TABLE coupon_archived_assignments;
DROP TABLE coupon_archived_codes;
DROP TABLE coupon_archived_ranges;
DROP TABLE coupon_archived_events;
DROP TABLE coupon_audit_archives;
