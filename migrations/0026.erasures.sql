-- Users who were erased, under the pseudonym that stands for them. state: 1 what they hold comes to its end,
-- and they get nothing new; 2 their names are being replaced, and nothing of theirs changes; 3 erased.
-- erased: the rows that the erasure which is under way, or else the last one, has changed, by table.
-- key_ids: hashes of the keys that were destroyed (SHA-256 of 'coupon-service key', a zero byte and the key, 16
-- bytes of it), by which what is kept elsewhere, encrypted with such a key, is known to be the user's.
CREATE TABLE coupon_erased_users (
    pseudonym   text COLLATE "C" PRIMARY KEY,
    state       smallint NOT NULL CHECK (state BETWEEN 1 AND 3),
    begin_time  timestamptz NOT NULL,
    erase_time  timestamptz,
    erased      jsonb NOT NULL DEFAULT '{}',
    key_ids     bytea[] NOT NULL DEFAULT '{}'
);
-- Those that are under way, which every batch of commands reads once anybody was erased.
CREATE INDEX coupon_erased_users_under_way ON coupon_erased_users (pseudonym) WHERE state < 3;

-- Every batch of commands looks whether anybody was erased: whoever may add to the ledger may do so, before
-- `migrate grants` has run.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE pg_class.oid = 'redemption_audit'::regclass AND acl.privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT SELECT ON coupon_erased_users TO %s', grantee);
    END LOOP;
END
$$;

-- The ledger is append-only, but for what is personal: coupon_erase_user replaces it by the pseudonym, or by
-- nothing. Everything else of a row is compared as a whole, so that a column that comes later is protected too.
CREATE OR REPLACE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    personal text[] := ARRAY['user_id', 'other_user_id', 'order_user_id', 'caller', 'order_id', 'peer',
        'user_agent', 'metadata', 'fingerprint', 'commitments'];
BEGIN
    IF TG_OP = 'UPDATE' AND current_setting('coupon.ledger_change', true) = 'erase' THEN
        IF to_jsonb(NEW) - personal = to_jsonb(OLD) - personal
            AND (NEW.user_id IS NOT DISTINCT FROM OLD.user_id OR NEW.user_id ~ '^erased-')
            AND (NEW.other_user_id IS NOT DISTINCT FROM OLD.other_user_id OR NEW.other_user_id ~ '^erased-')
            AND (NEW.order_user_id IS NOT DISTINCT FROM OLD.order_user_id OR NEW.order_user_id ~ '^erased-')
            AND (NEW.caller = OLD.caller OR NEW.caller ~ '^erased-')
            AND (NEW.order_id IS NOT DISTINCT FROM OLD.order_id OR NEW.order_id ~ '^erased-')
            AND NEW.peer IN (OLD.peer, '')
            AND NEW.user_agent IN (OLD.user_agent, '')
            AND (NEW.metadata IS NULL OR NEW.metadata = OLD.metadata)
            AND NEW.fingerprint IN (OLD.fingerprint, 0)
        THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'redemption_audit is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;

-- A row of the ledger that is being erased.
CREATE TYPE coupon_erased_event AS (
    event_id uuid, bucket smallint, book_id uuid, code text, type smallint, discount_minor bigint,
    order_id text, erased_order text, whose text, erased_whose text, rollback_id uuid, commitments bytea,
    of_user boolean, of_other boolean, of_line boolean
);

-- Erases a part of what is stored of a user, who is being erased (state 2), and says how many rows of which
-- table were changed. names: all spellings of the user, the one in NFC first.
--
-- With events: those rows of the ledger, which name the user, with the orders that they are for, and the
-- assignments to their codes. order_ids: the order of each as it is stored elsewhere, erased_orders: what
-- stands for it, rollbacks: the id that a roll-back of it has. What the orders have of these redemptions goes
-- over to what stands for them. commitments: those to what is erased of them; NULL for what is not sealed. Without events: what is left in other tables, of the assignments at most 500.
CREATE FUNCTION coupon_erase_user(
    pseudonym text, names text[], events uuid[], buckets smallint[],
    order_ids text[], erased_orders text[], rollbacks uuid[], commitments bytea[]
) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    of_order record;
    of_book record;
    ordered coupon_orders;
    held coupon_assignments;
    counts coupon_user_counters;
    period coupon_period_counters;
    named coupon_erased_event[];
    of_ledger bigint := 0;
    of_assignments bigint := 0;
    of_users bigint := 0;
    of_periods bigint := 0;
    of_orders bigint := 0;
    of_keys bigint := 0;
    of_archived bigint := 0;
    of_refusals bigint := 0;
    held_rows tid[];
    at tid;
BEGIN
    IF pseudonym !~ '^erased-[a-z2-7]{32}$' OR NOT EXISTS (
        SELECT FROM coupon_erased_users AS u WHERE u.pseudonym = coupon_erase_user.pseudonym AND u.state = 2)
    THEN
        RAISE EXCEPTION 'nobody is being erased under this name' USING ERRCODE = 'insufficient_privilege';
    END IF;

    -- Not by SET of the function: for that its owner would need a privilege on the parameter, or be superuser.
    PERFORM set_config('coupon.ledger_change', 'erase', true);
    UPDATE coupon_audit_head SET erasures = erasures + 1;

    IF cardinality(events) > 0 THEN
        named := ARRAY(
            SELECT ROW(e.event_id, e.bucket, e.book_id, e.code, e.type, e.discount_minor, w.order_id,
                w.erased_order, CASE WHEN e.order_user_id IS NULL THEN '' ELSE names[1] END,
                CASE WHEN e.order_user_id IS NULL THEN '' ELSE pseudonym END,
                w.rollback_id, w.commitments,
                coalesce(e.user_id = ANY(names), false), coalesce(e.other_user_id = ANY(names), false),
                CASE WHEN e.caller IS NOT DISTINCT FROM e.other_user_id THEN e.other_user_id = ANY(names)
                    ELSE coalesce(e.user_id = ANY(names), false) END)::coupon_erased_event
            FROM unnest(events, buckets, order_ids, erased_orders, rollbacks, commitments)
                AS w (event_id, bucket, order_id, erased_order, rollback_id, commitments)
            JOIN redemption_audit AS e ON e.event_id = w.event_id AND e.bucket = w.bucket
            WHERE e.user_id = ANY(names) OR e.other_user_id = ANY(names));

        -- Address and client are those of the caller, if that is the other user.
        UPDATE redemption_audit AS e SET
            user_id = CASE WHEN x.of_user THEN pseudonym ELSE e.user_id END,
            other_user_id = CASE WHEN x.of_other THEN pseudonym ELSE e.other_user_id END,
            order_user_id = CASE WHEN e.order_user_id = ANY(names) THEN pseudonym ELSE e.order_user_id END,
            caller = CASE WHEN e.caller = ANY(names) THEN pseudonym ELSE e.caller END,
            order_id = CASE WHEN x.of_user AND e.order_id IS NOT NULL THEN x.erased_order ELSE e.order_id END,
            peer = CASE WHEN x.of_line THEN '' ELSE e.peer END,
            user_agent = CASE WHEN x.of_line THEN '' ELSE e.user_agent END,
            metadata = CASE WHEN x.of_user THEN NULL ELSE e.metadata END,
            fingerprint = 0,
            commitments = coalesce(x.commitments, e.commitments)
        FROM unnest(named) AS x WHERE e.event_id = x.event_id AND e.bucket = x.bucket;
        GET DIAGNOSTICS of_ledger = ROW_COUNT;

        -- Others may be redeeming for the same order of a business: it is locked first, in their order.
        FOR of_order IN
            SELECT DISTINCT b.business_id COLLATE "C" AS business_id, x.order_id, x.whose, x.erased_order,
                x.erased_whose
            FROM unnest(named) AS x JOIN coupon_books AS b USING (book_id)
            WHERE x.order_id IS NOT NULL AND x.of_user
            ORDER BY 1, 2, 3
        LOOP
            SELECT * INTO ordered FROM coupon_orders AS o
            WHERE o.business_id = of_order.business_id AND o.order_id = of_order.order_id
                AND o.order_user_id = of_order.whose
            FOR UPDATE;
            CONTINUE WHEN NOT FOUND;
            FOR of_book IN
                SELECT x.book_id, least(count(*), max(b.redemptions)) AS redemptions,
                    sum(CASE WHEN a.redemption_id IS NULL THEN coalesce(x.discount_minor, 0)
                        ELSE coalesce(a.discount_minor, 0) END) AS discount_minor,
                    max(b.redemption_limit) AS redemption_limit
                FROM unnest(named) AS x
                JOIN coupon_order_books AS b ON b.business_id = of_order.business_id
                    AND b.order_id = of_order.order_id AND b.order_user_id = of_order.whose
                    AND b.book_id = x.book_id
                LEFT JOIN coupon_adjustments AS a
                    ON a.bucket = x.bucket AND a.redemption_id = x.event_id
                WHERE x.order_id = of_order.order_id AND x.whose = of_order.whose AND x.of_user
                    AND x.type = 16 -- REDEEMED
                    AND NOT EXISTS (
                        SELECT FROM redemption_audit AS r
                        WHERE r.event_id = x.rollback_id AND r.bucket = x.bucket)
                GROUP BY x.book_id
            LOOP
                INSERT INTO coupon_orders AS o (
                    business_id, order_id, order_user_id, currency_code, discount_minor, discount_limit_minor)
                VALUES (
                    of_order.business_id, of_order.erased_order, of_order.erased_whose, ordered.currency_code,
                    of_book.discount_minor, ordered.discount_limit_minor)
                ON CONFLICT (business_id, order_id, order_user_id) DO UPDATE SET
                    currency_code = CASE WHEN o.currency_code = '' THEN excluded.currency_code
                        ELSE o.currency_code END,
                    discount_minor = o.discount_minor + excluded.discount_minor,
                    discount_limit_minor = CASE
                        WHEN o.discount_limit_minor IS NULL OR excluded.discount_limit_minor IS NULL THEN NULL
                        ELSE greatest(o.discount_limit_minor, excluded.discount_limit_minor,
                            o.discount_minor + excluded.discount_minor) END;
                UPDATE coupon_orders AS o SET discount_minor = o.discount_minor - of_book.discount_minor
                WHERE o.business_id = of_order.business_id AND o.order_id = of_order.order_id
                    AND o.order_user_id = of_order.whose;
                INSERT INTO coupon_order_books AS b (
                    business_id, order_id, order_user_id, book_id, redemptions, redemption_limit)
                VALUES (
                    of_order.business_id, of_order.erased_order, of_order.erased_whose, of_book.book_id,
                    of_book.redemptions, of_book.redemption_limit)
                ON CONFLICT (business_id, order_id, order_user_id, book_id) DO UPDATE SET
                    redemptions = b.redemptions + excluded.redemptions,
                    redemption_limit = CASE
                        WHEN b.redemption_limit = 0 OR excluded.redemption_limit = 0 THEN 0
                        ELSE greatest(b.redemption_limit, excluded.redemption_limit,
                            b.redemptions + excluded.redemptions) END;
                UPDATE coupon_order_books AS b SET redemptions = b.redemptions - of_book.redemptions
                WHERE b.business_id = of_order.business_id AND b.order_id = of_order.order_id
                    AND b.order_user_id = of_order.whose AND b.book_id = of_book.book_id;
            END LOOP;
            IF NOT EXISTS (
                SELECT FROM coupon_order_books AS b
                WHERE b.business_id = of_order.business_id AND b.order_id = of_order.order_id
                    AND b.order_user_id = of_order.whose AND b.redemptions <> 0)
            THEN
                DELETE FROM coupon_order_books AS b
                WHERE b.business_id = of_order.business_id AND b.order_id = of_order.order_id
                    AND b.order_user_id = of_order.whose;
                DELETE FROM coupon_orders AS o
                WHERE o.business_id = of_order.business_id AND o.order_id = of_order.order_id
                    AND o.order_user_id = of_order.whose;
            END IF;
            of_orders := of_orders + 1;
        END LOOP;

        held_rows := ARRAY(
            SELECT DISTINCT a.ctid FROM unnest(named) AS x
            JOIN coupon_assignments AS a
                ON a.bucket = x.bucket AND a.code = x.code AND a.book_id = x.book_id
            WHERE x.of_user AND a.user_id = ANY(names));
    ELSE
        held_rows := ARRAY(
            SELECT a.ctid FROM coupon_assignments AS a
            WHERE a.user_id = ANY(names) AND a.assign_time IS NOT NULL
            LIMIT 500);
    END IF;

    -- Nobody else changes assignments and counts of the user now.
    FOREACH at IN ARRAY held_rows LOOP
        SELECT * INTO held FROM coupon_assignments AS a WHERE a.ctid = at FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        UPDATE coupon_assignments AS a SET
            redemptions = a.redemptions + held.redemptions,
            redemption_limit = CASE
                WHEN a.redemption_limit = 0 OR held.redemption_limit = 0 THEN 0
                ELSE greatest(a.redemption_limit, held.redemption_limit, a.redemptions + held.redemptions) END,
            state = CASE WHEN a.state = 0 OR held.state = 2 THEN held.state ELSE a.state END, -- REDEEMED
            fence = greatest(a.fence, held.fence),
            expire_time = CASE WHEN a.assign_time IS NULL THEN held.expire_time ELSE a.expire_time END,
            assign_time = coalesce(a.assign_time, held.assign_time)
        WHERE a.bucket = held.bucket AND a.code = held.code AND a.book_id = held.book_id
            AND a.user_id = pseudonym;
        IF FOUND THEN
            DELETE FROM coupon_assignments AS a WHERE a.ctid = at;
        ELSE
            UPDATE coupon_assignments AS a SET user_id = pseudonym, metadata = NULL WHERE a.ctid = at;
        END IF;
        of_assignments := of_assignments + 1;
    END LOOP;

    IF cardinality(events) = 0 THEN
        FOR counts IN
            SELECT u.* FROM coupon_books AS b
            CROSS JOIN unnest(names) AS spelled (spelling)
            JOIN coupon_user_counters AS u
                ON u.bucket = coupon_name_bucket(spelling) AND u.book_id = b.book_id AND u.user_id = spelling
        LOOP
            INSERT INTO coupon_user_counters AS u (
                bucket, book_id, user_id, redemptions, redemption_limit, assignments, assignment_limit)
            VALUES (
                coupon_name_bucket(pseudonym), counts.book_id, pseudonym, counts.redemptions,
                counts.redemption_limit, counts.assignments, counts.assignment_limit)
            ON CONFLICT (bucket, book_id, user_id) DO UPDATE SET
                redemptions = u.redemptions + excluded.redemptions,
                redemption_limit = CASE
                    WHEN u.redemption_limit = 0 OR excluded.redemption_limit = 0 THEN 0
                    ELSE greatest(u.redemption_limit, excluded.redemption_limit,
                        u.redemptions + excluded.redemptions) END,
                assignments = u.assignments + excluded.assignments,
                assignment_limit = CASE
                    WHEN u.assignment_limit = 0 OR excluded.assignment_limit = 0 THEN 0
                    ELSE greatest(u.assignment_limit, excluded.assignment_limit,
                        u.assignments + excluded.assignments) END;
            DELETE FROM coupon_user_counters AS u
            WHERE u.bucket = counts.bucket AND u.book_id = counts.book_id AND u.user_id = counts.user_id;
            of_users := of_users + 1;
        END LOOP;
        FOR period IN
            SELECT p.* FROM coupon_books AS b
            CROSS JOIN unnest(names) AS spelled (spelling)
            JOIN coupon_period_counters AS p
                ON p.bucket = coupon_name_bucket(spelling) AND p.book_id = b.book_id AND p.user_id = spelling
        LOOP
            INSERT INTO coupon_period_counters AS p (
                bucket, book_id, user_id, period_start, period_end, redemptions, redemption_limit)
            VALUES (
                coupon_name_bucket(pseudonym), period.book_id, pseudonym, period.period_start,
                period.period_end, period.redemptions, period.redemption_limit)
            ON CONFLICT (bucket, book_id, user_id, period_start) DO UPDATE SET
                redemptions = p.redemptions + excluded.redemptions,
                redemption_limit = CASE
                    WHEN p.redemption_limit = 0 OR excluded.redemption_limit = 0 THEN 0
                    ELSE greatest(p.redemption_limit, excluded.redemption_limit,
                        p.redemptions + excluded.redemptions) END;
            DELETE FROM coupon_period_counters AS p
            WHERE p.bucket = period.bucket AND p.book_id = period.book_id AND p.user_id = period.user_id
                AND p.period_start = period.period_start;
            of_periods := of_periods + 1;
        END LOOP;
        WITH destroyed AS (
            DELETE FROM coupon_user_keys AS k WHERE k.user_id = ANY(names) RETURNING k.key
        )
        UPDATE coupon_erased_users AS u SET key_ids = u.key_ids || ARRAY(
            SELECT substring(
                sha256(convert_to('coupon-service key', 'UTF8') || '\x00'::bytea || d.key) FROM 1 FOR 16)
            FROM destroyed AS d)
        WHERE u.pseudonym = coupon_erase_user.pseudonym AND EXISTS (SELECT FROM destroyed);
        GET DIAGNOSTICS of_keys = ROW_COUNT;
        -- Tables of later steps, where there are any.
        IF to_regclass('coupon_archived_assignments') IS NOT NULL THEN
            UPDATE coupon_archived_assignments AS a SET user_id = coupon_erase_user.pseudonym, metadata = NULL
            WHERE a.user_id = ANY(names);
            GET DIAGNOSTICS of_archived = ROW_COUNT;
        END IF;
        IF to_regclass('coupon_refusals') IS NOT NULL THEN
            DELETE FROM coupon_refusals AS r WHERE r.ctid = ANY(ARRAY(
                SELECT o.ctid FROM coupon_refusals AS o WHERE o.user_id = ANY(names) LIMIT 500));
            GET DIAGNOSTICS of_refusals = ROW_COUNT;
        END IF;
    END IF;

    PERFORM set_config('coupon.ledger_change', '', true);
    RETURN jsonb_strip_nulls(jsonb_build_object(
        'redemption_audit', nullif(of_ledger, 0), 'coupon_assignments', nullif(of_assignments, 0),
        'coupon_orders', nullif(of_orders, 0), 'coupon_user_counters', nullif(of_users, 0),
        'coupon_period_counters', nullif(of_periods, 0), 'coupon_user_keys', nullif(of_keys, 0),
        'coupon_archived_assignments', nullif(of_archived, 0), 'coupon_refusals', nullif(of_refusals, 0)));
END
$$;

DO $$
DECLARE
    erase text := 'coupon_erase_user(text, text[], uuid[], smallint[], text[], text[], uuid[], bytea[])';
BEGIN
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', erase, current_schema());
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', erase);
END
$$;
