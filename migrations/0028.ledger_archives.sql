-- Archives of the ledger: files with the events of closed books, which are no longer here.

-- state: 1 being written, 2 written, while what was begun before comes to its end, 3 verified, and its events
-- are being deleted, 4 done, 5 being restored, 6 restored. last_sequence: the events of the book up to that
-- number are archived, but for those of the book as a whole. What follows is what they came to.
CREATE TABLE coupon_audit_archives (
    archive               integer PRIMARY KEY,
    book_id               uuid NOT NULL,
    state                 smallint NOT NULL CHECK (state BETWEEN 1 AND 6),
    file_name             text NOT NULL,
    create_time           timestamptz NOT NULL,
    digest                bytea,
    row_count             bigint NOT NULL DEFAULT 0,
    first_sequence        bigint NOT NULL DEFAULT 0,
    last_sequence         bigint NOT NULL DEFAULT 0,
    redemptions           bigint NOT NULL DEFAULT 0,
    rollbacks             bigint NOT NULL DEFAULT 0,
    assignments           bigint NOT NULL DEFAULT 0,
    discount_minor        bigint NOT NULL DEFAULT 0,
    on_orders             bigint NOT NULL DEFAULT 0,
    order_discount_minor  bigint NOT NULL DEFAULT 0
);
CREATE INDEX coupon_audit_archives_by_book ON coupon_audit_archives (book_id);

-- The events that an archive has in place of the ledger, so that nothing is carried out again.
CREATE TABLE coupon_archived_events (
    event_id  uuid PRIMARY KEY,
    archive   integer NOT NULL,
    type      smallint NOT NULL
);

-- Their numbers, by the seals that have their leaves.
CREATE TABLE coupon_archived_ranges (
    seal       bigint NOT NULL,
    archive    integer NOT NULL,
    sequences  bigint[] NOT NULL,
    PRIMARY KEY (seal, archive)
);

-- The opening balances of codes: what the archived events of each came to.
CREATE TABLE coupon_archived_codes (
    book_id           uuid NOT NULL,
    archive           integer NOT NULL,
    redemptions       integer NOT NULL,
    assignments       integer NOT NULL,
    user_redemptions  integer NOT NULL,
    code              text COLLATE "C" NOT NULL,
    PRIMARY KEY (book_id, archive, code)
);

-- Assignments that only count what bearers have redeemed, of books that are archived: nothing else in the database
-- says whose they are.
CREATE TABLE coupon_archived_assignments (LIKE coupon_assignments INCLUDING DEFAULTS, archive integer NOT NULL);
CREATE INDEX coupon_archived_assignments_by_user ON coupon_archived_assignments (user_id);
CREATE INDEX coupon_archived_assignments_by_archive ON coupon_archived_assignments (archive);

-- The number up to which events of the codes of the book are archived; 0: of none, but earlier books had some of
-- its codes, and events of those are. So only in such books archives are asked for what the ledger does not have.
ALTER TABLE coupon_books ADD COLUMN archived_until bigint;

-- An event is deleted only by coupon_delete_archived, once its archive is verified.
CREATE FUNCTION refuse_ledger_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM coupon_archived_events AS e JOIN coupon_audit_archives AS a USING (archive)
        WHERE e.event_id = OLD.event_id AND a.book_id = OLD.book_id AND a.state = 3
            AND OLD.sequence BETWEEN a.first_sequence AND a.last_sequence AND OLD.code IS NOT NULL)
    THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'redemption_audit is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;

DROP TRIGGER redemption_audit_append_only ON redemption_audit;
CREATE TRIGGER redemption_audit_append_only
    BEFORE UPDATE ON redemption_audit
    FOR EACH ROW EXECUTE FUNCTION refuse_ledger_change();
CREATE TRIGGER redemption_audit_no_delete
    BEFORE DELETE ON redemption_audit
    FOR EACH ROW EXECUTE FUNCTION refuse_ledger_deletion();

-- Deletes the events of a seal that a verified archive has, and says how many there were.
CREATE FUNCTION coupon_delete_archived(of_archive integer, of_seal bigint)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    deleted bigint;
BEGIN
    INSERT INTO coupon_archived_events (event_id, archive, type)
    SELECT e.event_id, a.archive, e.type
    FROM coupon_audit_archives AS a
    JOIN coupon_archived_ranges AS r ON r.archive = a.archive AND r.seal = of_seal
    CROSS JOIN LATERAL unnest(r.sequences) AS of_range (sequence)
    JOIN redemption_audit AS e ON e.sequence = of_range.sequence AND e.book_id = a.book_id
    WHERE a.archive = of_archive AND a.state = 3;
    DELETE FROM redemption_audit AS e
    USING coupon_archived_ranges AS r, unnest(r.sequences) AS of_range (sequence), coupon_archived_events AS a
    WHERE r.archive = of_archive AND r.seal = of_seal AND e.sequence = of_range.sequence
        AND a.event_id = e.event_id AND a.archive = of_archive;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;
REVOKE EXECUTE ON FUNCTION coupon_delete_archived FROM PUBLIC;
DO $$
BEGIN
    EXECUTE format(
        'ALTER FUNCTION coupon_delete_archived SET search_path = %I, pg_temp', current_schema());
END
$$;
