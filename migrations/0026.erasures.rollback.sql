-- Who was erased stays so; a service of before does not know that limits they had used still bind.
DROP FUNCTION coupon_erase_user;
DROP TYPE coupon_erased_event;
DROP TABLE coupon_erased_users;
CREATE OR REPLACE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'redemption_audit is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;
