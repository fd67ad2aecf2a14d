-- Whoever redeems for orders deletes those of which nothing was redeemed, before `migrate grants` has run.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE pg_class.oid = 'coupon_orders'::regclass AND acl.privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT DELETE ON coupon_orders TO %s', grantee);
    END LOOP;
END
$$;
