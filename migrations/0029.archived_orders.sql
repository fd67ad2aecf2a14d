-- What archived redemptions have on orders, in books whose coupons go by that (order_policy is not INDEPENDENT): when
-- the ledger has them no more, only this says whose they are. A row goes with its event: it comes when that is
-- deleted from the ledger, and goes when that is restored. Names are as in coupon_orders; user_id is as it was in
-- the ledger. redemptions: 0 where it was rolled back. discount_minor: what it takes off now.
CREATE TABLE coupon_archived_orders (
    redemption_id   uuid PRIMARY KEY,
    book_id         uuid NOT NULL,
    discount_minor  bigint NOT NULL,
    archive         integer NOT NULL,
    redemptions     smallint NOT NULL,
    user_id         text COLLATE "C" NOT NULL,
    order_id        text COLLATE "C" NOT NULL,
    order_user_id   text COLLATE "C" NOT NULL
);
CREATE INDEX coupon_archived_orders_by_user ON coupon_archived_orders (user_id);

-- Erases what these archived redemptions of a user, who is being erased (state 2), have on orders: it goes over to
-- what stands for the orders. Returns how many rows of which table were changed. names: all spellings of the
-- user, the one in NFC first; erased_orders: what stands for the order of each.
CREATE FUNCTION coupon_erase_archived_orders(
    pseudonym text, names text[], redemption_ids uuid[], erased_orders text[]
) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    held record;
    ordered coupon_orders;
    of_book coupon_order_books;
    of_archived bigint := 0;
    of_orders bigint := 0;
BEGIN
    IF pseudonym !~ '^erased-[a-z2-7]{32}$' OR NOT EXISTS (
        SELECT FROM coupon_erased_users AS u
        WHERE u.pseudonym = coupon_erase_archived_orders.pseudonym AND u.state = 2)
    THEN
        RAISE EXCEPTION 'nobody is being erased under this name' USING ERRCODE = 'insufficient_privilege';
    END IF;
    UPDATE coupon_audit_head SET erasures = erasures + 1;

    -- Others may be redeeming for the same order of a business: orders are locked as they do, in their order.
    FOR held IN
        SELECT a.*, b.business_id, w.erased_order,
            CASE a.order_user_id WHEN '' THEN '' ELSE pseudonym END AS erased_whose
        FROM unnest(redemption_ids, erased_orders) AS w (redemption_id, erased_order)
        JOIN coupon_archived_orders AS a USING (redemption_id)
        JOIN coupon_books AS b USING (book_id)
        WHERE a.user_id = ANY(names)
        ORDER BY b.business_id COLLATE "C", a.order_id, a.order_user_id, a.redemption_id
    LOOP
        UPDATE coupon_archived_orders AS a SET
            user_id = pseudonym, order_id = held.erased_order, order_user_id = held.erased_whose
        WHERE a.redemption_id = held.redemption_id;
        of_archived := of_archived + 1;

        SELECT * INTO ordered FROM coupon_orders AS o
        WHERE o.business_id = held.business_id AND o.order_id = held.order_id
            AND o.order_user_id = held.order_user_id
        FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        of_orders := of_orders + 1;
        SELECT * INTO of_book FROM coupon_order_books AS b
        WHERE b.business_id = held.business_id AND b.order_id = held.order_id
            AND b.order_user_id = held.order_user_id AND b.book_id = held.book_id;
        IF FOUND AND held.redemptions > 0 THEN
            INSERT INTO coupon_orders AS o (
                business_id, order_id, order_user_id, currency_code, discount_minor, discount_limit_minor)
            VALUES (
                held.business_id, held.erased_order, held.erased_whose, ordered.currency_code,
                held.discount_minor, ordered.discount_limit_minor)
            ON CONFLICT (business_id, order_id, order_user_id) DO UPDATE SET
                currency_code = CASE WHEN o.currency_code = '' THEN excluded.currency_code
                    ELSE o.currency_code END,
                discount_minor = o.discount_minor + excluded.discount_minor,
                discount_limit_minor = CASE
                    WHEN o.discount_limit_minor IS NULL OR excluded.discount_limit_minor IS NULL THEN NULL
                    ELSE greatest(o.discount_limit_minor, excluded.discount_limit_minor,
                        o.discount_minor + excluded.discount_minor) END;
            UPDATE coupon_orders AS o SET discount_minor = o.discount_minor - held.discount_minor
            WHERE o.business_id = held.business_id AND o.order_id = held.order_id
                AND o.order_user_id = held.order_user_id;
            INSERT INTO coupon_order_books AS b (
                business_id, order_id, order_user_id, book_id, redemptions, redemption_limit)
            VALUES (
                held.business_id, held.erased_order, held.erased_whose, held.book_id, held.redemptions,
                of_book.redemption_limit)
            ON CONFLICT (business_id, order_id, order_user_id, book_id) DO UPDATE SET
                redemptions = b.redemptions + excluded.redemptions,
                redemption_limit = CASE
                    WHEN b.redemption_limit = 0 OR excluded.redemption_limit = 0 THEN 0
                    ELSE greatest(b.redemption_limit, excluded.redemption_limit,
                        b.redemptions + excluded.redemptions) END;
            UPDATE coupon_order_books AS b SET redemptions = b.redemptions - held.redemptions
            WHERE b.business_id = held.business_id AND b.order_id = held.order_id
                AND b.order_user_id = held.order_user_id AND b.book_id = held.book_id;
        END IF;
        IF NOT EXISTS (
            SELECT FROM coupon_order_books AS b
            WHERE b.business_id = held.business_id AND b.order_id = held.order_id
                AND b.order_user_id = held.order_user_id AND b.redemptions <> 0)
        THEN
            DELETE FROM coupon_order_books AS b
            WHERE b.business_id = held.business_id AND b.order_id = held.order_id
                AND b.order_user_id = held.order_user_id;
            DELETE FROM coupon_orders AS o
            WHERE o.business_id = held.business_id AND o.order_id = held.order_id
                AND o.order_user_id = held.order_user_id;
        END IF;
    END LOOP;

    RETURN jsonb_strip_nulls(jsonb_build_object(
        'coupon_archived_orders', nullif(of_archived, 0), 'coupon_orders', nullif(of_orders, 0)));
END
$$;

-- Whoever may erase the ledger may erase this as well, before `migrate grants` has run.
DO $$
DECLARE
    erase text := 'coupon_erase_archived_orders(text, text[], uuid[], text[])';
    grantee text;
BEGIN
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', erase, current_schema());
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', erase);
    FOR grantee IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_proc, aclexplode(proacl) AS acl
        WHERE pg_proc.oid = 'coupon_erase_user'::regproc AND acl.privilege_type = 'EXECUTE'
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', erase, grantee);
        EXECUTE format('GRANT SELECT ON coupon_archived_orders TO %s', grantee);
    END LOOP;
END
$$;
