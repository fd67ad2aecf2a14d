-- transactional: false
-- Users, orders and businesses are compared in NFC: José is one user, however the é is written. What was
-- counted under several spellings of a name is merged: assignments and counters. A sum above a limit stays,
-- and the limit beside it, with which the CHECKs of the tables compare it, grows to it. The rows of the ledger
-- stay; it gets a REVOKED for an assignment that ends because the same user has another one of the same code.
--
-- Replicas of an earlier version write names as they come. So the work is a procedure, which can be called
-- again when the last of them has gone: CALL coupon_merge_names();
--
-- It reads each table once, and commits after each code and each counter: nobody waits for more than one of
-- them, and a call that was cut off goes on where it stopped. It locks as the service does: the code, its
-- assignments, the counter of the user, that of the book.

-- The bucket of a user's counters: the low six bits of the CRC-32 (IEEE 802.3) of the name in UTF-8, which
-- PostgreSQL has a function for from version 18 on.
CREATE OR REPLACE FUNCTION coupon_name_bucket(name text) RETURNS smallint
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    bytes bytea := convert_to(name, 'UTF8');
    crc bigint := 4294967295;
BEGIN
    FOR i IN 0 .. length(bytes) - 1 LOOP
        crc := crc # get_byte(bytes, i);
        FOR bit IN 1 .. 8 LOOP
            crc := (crc >> 1) # (3988292384 * (crc & 1));
        END LOOP;
    END LOOP;
    RETURN (~crc & 63)::smallint;
END
$$;

CREATE OR REPLACE PROCEDURE coupon_merge_names() LANGUAGE plpgsql AS $$
DECLARE
    named record;
    kept coupon_assignments;
    sums record;
    ended integer;
BEGIN
    UPDATE coupon_books SET business_id = normalize(business_id)
    WHERE business_id IS NOT NFC NORMALIZED;
    COMMIT;

    FOR named IN
        SELECT bucket, code, normalize(user_id) COLLATE "C" AS name,
            array_agg(user_id) || normalize(user_id) AS spellings
        FROM coupon_assignments
        WHERE user_id IS NOT NFC NORMALIZED
        GROUP BY bucket, code, normalize(user_id)
        ORDER BY bucket, code
    LOOP
        SET LOCAL synchronous_commit = off;  -- what a crash undoes is done again
        PERFORM FROM coupon_codes
        WHERE bucket = named.bucket AND code = named.code
        FOR NO KEY UPDATE;

        -- The newest of those that are ACTIVE (1) or REDEEMED (2), or else of the others.
        SELECT * INTO kept FROM coupon_assignments
        WHERE bucket = named.bucket AND code = named.code AND user_id = ANY(named.spellings)
        ORDER BY state IN (1, 2) DESC, assign_time DESC NULLS LAST, user_id
        LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        SELECT sum(redemptions)::integer AS redemptions, max(redemption_limit) AS redemption_limit,
            max(fence) AS fence
        INTO sums FROM coupon_assignments
        WHERE bucket = named.bucket AND code = named.code AND user_id = ANY(named.spellings);

        WITH dropped AS (
            DELETE FROM coupon_assignments
            WHERE bucket = named.bucket AND code = named.code AND user_id = ANY(named.spellings)
                AND user_id <> kept.user_id
            RETURNING state, user_id
        ), revoked AS (
            SELECT user_id, lpad(to_hex(named.bucket::integer), 2, '0')  -- an id begins with its bucket
                || substr(gen_random_uuid()::text, 3) AS event_id
            FROM dropped WHERE state IN (1, 2)
        ), recorded AS (
            INSERT INTO redemption_audit (
                event_id, bucket, type, event_time, book_id, code, user_id, fingerprint, caller, peer,
                user_agent, request_id, state_before, state_after, metadata)
            SELECT r.event_id::uuid, c.bucket, 11, clock_timestamp(), c.book_id, c.code, r.user_id, 0,
                'migration', '', '', r.event_id, c.state, c.state,
                jsonb_build_object('same_user_as', named.name)
            FROM revoked AS r, coupon_codes AS c
            WHERE c.bucket = named.bucket AND c.code = named.code
        ), counted AS (
            UPDATE coupon_user_counters AS u SET assignments = u.assignments - 1
            FROM revoked AS r
            WHERE u.bucket = coupon_name_bucket(r.user_id)
                AND u.book_id = kept.book_id AND u.user_id = r.user_id
        )
        SELECT count(*) INTO ended FROM revoked;

        UPDATE coupon_assignments
        SET user_id = named.name, fence = sums.fence, redemptions = sums.redemptions,
            redemption_limit = CASE WHEN sums.redemption_limit > 0
                THEN greatest(sums.redemption_limit, sums.redemptions) ELSE 0 END,
            state = CASE
                WHEN state NOT IN (1, 2) THEN state
                WHEN sums.redemptions >= (
                    SELECT least(
                        nullif(max_redemptions_per_user_per_code, 0), nullif(max_redemptions_per_code, 0))
                    FROM coupon_books WHERE book_id = kept.book_id) THEN 2
                ELSE 1 END
        WHERE bucket = named.bucket AND code = named.code AND user_id = kept.user_id;

        IF ended > 0 THEN
            UPDATE coupon_codes SET assignments = assignments - ended
            WHERE bucket = named.bucket AND code = named.code;
            INSERT INTO coupon_book_counters AS s (
                book_id, bucket, available, assigned, redeemed, disabled, assignments, redemptions,
                rollbacks, discount_minor)
            VALUES (kept.book_id, named.bucket, 0, 0, 0, 0, -ended, 0, 0, 0)
            ON CONFLICT (book_id, bucket) DO UPDATE SET assignments = s.assignments - ended;
        END IF;
        COMMIT;
    END LOOP;

    FOR named IN
        SELECT book_id, normalize(user_id) COLLATE "C" AS name, array_agg(user_id) AS spellings
        FROM coupon_user_counters
        WHERE user_id IS NOT NFC NORMALIZED
        GROUP BY book_id, normalize(user_id)
    LOOP
        SET LOCAL synchronous_commit = off;
        WITH spelled AS (
            DELETE FROM coupon_user_counters AS u USING unnest(named.spellings) AS spelling
            WHERE u.bucket = coupon_name_bucket(spelling)
                AND u.book_id = named.book_id AND u.user_id = spelling
            RETURNING u.*
        )
        INSERT INTO coupon_user_counters AS u (
            bucket, book_id, user_id, redemptions, redemption_limit, assignments, assignment_limit)
        SELECT coupon_name_bucket(named.name), named.book_id, named.name,
            sum(redemptions), CASE WHEN max(redemption_limit) > 0
                THEN greatest(max(redemption_limit), sum(redemptions)) ELSE 0 END,
            sum(assignments), CASE WHEN max(assignment_limit) > 0
                THEN greatest(max(assignment_limit), sum(assignments)) ELSE 0 END
        FROM spelled
        HAVING count(*) > 0
        ON CONFLICT (bucket, book_id, user_id) DO UPDATE
        SET redemptions = u.redemptions + excluded.redemptions,
            redemption_limit = CASE WHEN greatest(u.redemption_limit, excluded.redemption_limit) > 0
                THEN greatest(u.redemption_limit, excluded.redemption_limit,
                    u.redemptions + excluded.redemptions) ELSE 0 END,
            assignments = u.assignments + excluded.assignments,
            assignment_limit = CASE WHEN greatest(u.assignment_limit, excluded.assignment_limit) > 0
                THEN greatest(u.assignment_limit, excluded.assignment_limit,
                    u.assignments + excluded.assignments) ELSE 0 END;
        COMMIT;
    END LOOP;
END
$$;

CALL coupon_merge_names();
